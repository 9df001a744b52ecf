//! How Doorward authenticates as a client of an issuer (RFC 6749 section 2.3.1, RFC 7523 section 2.2).

use std::{fmt, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, header};
use jsonwebtoken::EncodingKey;
use serde::Serialize;
use url::form_urlencoded;

use crate::{
    clock::Timestamp,
    config::{
        raw::{ClientAuthMethod, ClientCredentials},
        report::At,
        resolver::{Resolver, Secret},
    },
};

/// The life of an assertion, in seconds.
const ASSERTION_LIFE: i64 = 60;

/// A client with what proves it.
#[derive(Clone)]
pub struct ClientAuth {
    id: Box<str>,
    proof: Proof,
}

#[derive(Clone)]
enum Proof {
    Basic(HeaderValue),
    Post(Secret),
    PrivateKeyJwt { key: EncodingKey, header: Box<jsonwebtoken::Header>, audience: Arc<str> },
    Public,
}

#[derive(Serialize)]
struct Assertion<'a> {
    iss: &'a str,
    sub: &'a str,
    /// The issuer identifier alone, never an endpoint, which another issuer could have given us.
    aud: &'a str,
    jti: String,
    iat: i64,
    exp: i64,
}

impl ClientAuth {
    /// Reads the secret or key of `raw`; problems are reported.
    pub fn resolve(raw: &ClientCredentials, issuer: &Arc<str>, at: &At, resolver: &mut Resolver) -> Option<Self> {
        if raw.id.is_empty() {
            resolver.report.error(&at.key("id"), "the client id is empty");
        }
        let method = raw.method.unwrap_or(match (&raw.secret, &raw.key) {
            (None, Some(_)) => ClientAuthMethod::PrivateKeyJwt,
            _ => ClientAuthMethod::Basic,
        });
        let proof = match method {
            ClientAuthMethod::Basic => Proof::Basic(basic(&raw.id, &Self::secret(raw, at, resolver)?)?),
            ClientAuthMethod::Post => Proof::Post(Self::secret(raw, at, resolver)?),
            ClientAuthMethod::None => Proof::Public,
            ClientAuthMethod::PrivateKeyJwt => {
                let Some(source) = &raw.key else {
                    resolver
                        .report
                        .error(at, "`private_key_jwt` needs a `key`")
                        .help("add the private key, PEM (PKCS #8)");
                    return None;
                };
                let at = at.key("key");
                let secret = resolver.secret(&at, source)?;
                let Some((key, algorithm)) = signing_key(&secret) else {
                    let problem = resolver.report.error(&at, format!("{source} is not a private key that can sign"));
                    problem.help("give a PEM file (PKCS #8) with an RSA, P-256, P-384 or Ed25519 key");
                    return None;
                };
                let mut header = jsonwebtoken::Header::new(algorithm);
                header.kid = raw.key_id.clone();
                Proof::PrivateKeyJwt { key, header: Box::new(header), audience: Arc::clone(issuer) }
            }
        };
        Some(Self { id: raw.id.as_str().into(), proof })
    }

    fn secret(raw: &ClientCredentials, at: &At, resolver: &mut Resolver) -> Option<Secret> {
        let Some(source) = &raw.secret else {
            resolver.report.error(at, "the client has neither a `secret` nor a `key`").help("add `secret: {file: …}`");
            return None;
        };
        let at = at.key("secret");
        let secret = resolver.secret(&at, source)?;
        if secret.expose_str().is_none() {
            resolver.report.error(&at, format!("{source} is not text"));
            return None;
        }
        Some(secret)
    }

    pub fn client_id(&self) -> &str {
        &self.id
    }

    /// Whether nothing proves the client.
    pub fn is_public(&self) -> bool {
        matches!(self.proof, Proof::Public)
    }

    /// Adds what proves the client to a form request.
    pub fn apply(
        &self,
        now: Timestamp,
        form: &mut form_urlencoded::Serializer<'_, String>,
        headers: &mut HeaderMap,
    ) -> Result<(), String> {
        match &self.proof {
            Proof::Basic(value) => {
                headers.insert(header::AUTHORIZATION, value.clone());
            }
            Proof::Post(secret) => {
                form.append_pair("client_id", &self.id);
                form.append_pair("client_secret", secret.expose_str().unwrap_or_default());
            }
            Proof::Public => {
                form.append_pair("client_id", &self.id);
            }
            Proof::PrivateKeyJwt { key, header, audience } => {
                let iat = now.as_secs();
                let jti = uuid::Uuid::new_v4().to_string();
                let assertion =
                    Assertion { iss: &self.id, sub: &self.id, aud: audience, jti, iat, exp: iat + ASSERTION_LIFE };
                let assertion = jsonwebtoken::encode(header, &assertion, key)
                    .map_err(|error| format!("the client assertion cannot be signed: {error}"))?;
                form.append_pair("client_id", &self.id);
                form.append_pair("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
                form.append_pair("client_assertion", &assertion);
            }
        }
        Ok(())
    }
}

impl fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = match self.proof {
            Proof::Basic(_) => "basic",
            Proof::Post(_) => "post",
            Proof::PrivateKeyJwt { .. } => "private_key_jwt",
            Proof::Public => "none",
        };
        f.debug_struct("ClientAuth").field("id", &self.id).field("method", &method).finish_non_exhaustive()
    }
}

/// Id and secret are form-encoded before they are joined (RFC 6749 section 2.3.1): either may hold a colon.
fn basic(id: &str, secret: &Secret) -> Option<HeaderValue> {
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let pair = format!("{}:{}", encode(id), encode(secret.expose_str()?));
    let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The key and the algorithm that it can sign with, found by signing.
fn signing_key(pem: &Secret) -> Option<(EncodingKey, jsonwebtoken::Algorithm)> {
    use jsonwebtoken::Algorithm::{ES256, ES384, EdDSA, RS256};
    let pem = pem.expose();
    [
        (EncodingKey::from_rsa_pem(pem), RS256),
        (EncodingKey::from_ec_pem(pem), ES256),
        (EncodingKey::from_ec_pem(pem), ES384),
        (EncodingKey::from_ed_pem(pem), EdDSA),
    ]
    .into_iter()
    .filter_map(|(key, algorithm)| Some((key.ok()?, algorithm)))
    .find(|(key, algorithm)| jsonwebtoken::crypto::sign(b"probe", key, *algorithm).is_ok())
}
