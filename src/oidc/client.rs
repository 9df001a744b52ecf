use std::{fmt, sync::Arc};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

use crate::{
    clock::Timestamp,
    config::{
        raw,
        report::At,
        resolver::{Resolver, Secret},
    },
    sessions::keyring::random,
};

/// How long an assertion is good; it is used at once.
const ASSERTION_SECONDS: i64 = 60;

/// Who we are at a provider.
#[derive(Clone, Debug)]
pub struct Client {
    pub id: Arc<str>,
    pub authentication: ClientAuthentication,
    /// What a login requests, `openid` first.
    pub scopes: Vec<Arc<str>>,
}

/// How we prove it at the token endpoint (OpenID Connect Core 1.0 section 9).
#[derive(Clone, Debug)]
pub enum ClientAuthentication {
    /// `client_secret_basic`.
    Basic(Secret),
    /// `client_secret_post`.
    Post(Secret),
    /// `private_key_jwt`.
    PrivateKeyJwt(AssertionKey),
    /// `none`: a public client, guarded by PKCE alone.
    None,
}

/// The key that signs our assertions.
#[derive(Clone)]
pub struct AssertionKey {
    key: EncodingKey,
    algorithm: Algorithm,
    id: Option<String>,
}

impl Client {
    /// Reports every problem at its place; `None` if there is one.
    pub fn resolve(raw: &raw::Login, resolver: &mut Resolver, at: &At) -> Option<Self> {
        let at_client = at.key("client");
        if raw.client.id.is_empty() {
            resolver.report.error(&at_client.key("id"), "is empty").help("the provider gave it at registration");
        }
        let mut scopes: Vec<Arc<str>> = vec!["openid".into()];
        let mut good = !raw.client.id.is_empty();
        for (index, scope) in raw.scopes.iter().enumerate() {
            // RFC 6749 section 3.3, scope-token.
            let token = |byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
            if scope.is_empty() || !scope.bytes().all(token) {
                resolver
                    .report
                    .error(&at.key("scopes").index(index), format!("`{scope}` is not a scope"))
                    .help("one scope an entry, without blanks");
                good = false;
            } else if !scopes.iter().any(|known| **known == **scope) {
                scopes.push(scope.as_str().into());
            }
        }
        let authentication = ClientAuthentication::resolve(&raw.client, resolver, &at_client)?;
        good.then(|| Self { id: raw.client.id.as_str().into(), authentication, scopes })
    }
}

impl ClientAuthentication {
    /// Reports every problem at its place; `None` if there is one.
    pub fn resolve(raw: &raw::ClientCredentials, resolver: &mut Resolver, at: &At) -> Option<Self> {
        use raw::ClientAuthMethod as Method;
        let method = raw.method.or(match (&raw.secret, &raw.key) {
            (Some(_), None) => Some(Method::Basic),
            (None, Some(_)) => Some(Method::PrivateKeyJwt),
            _ => None,
        });
        match (method, &raw.secret, &raw.key) {
            (Some(Method::Basic), Some(secret), None) => {
                resolver.secret(&at.key("secret"), secret).and_then(|found| text(found, resolver, at)).map(Self::Basic)
            }
            (Some(Method::Post), Some(secret), None) => {
                resolver.secret(&at.key("secret"), secret).and_then(|found| text(found, resolver, at)).map(Self::Post)
            }
            (Some(Method::PrivateKeyJwt), None, Some(key)) => {
                let pem = resolver.secret(&at.key("key"), key)?;
                let found = AssertionKey::from_pem(pem.expose(), raw.key_id.as_deref());
                if found.is_none() {
                    resolver
                        .report
                        .error(&at.key("key"), format!("{key} is not a private key that can sign"))
                        .help("PKCS #8 in PEM: RSA of 2048 bits or more, P-256, P-384 or Ed25519");
                }
                found.map(Self::PrivateKeyJwt)
            }
            (Some(Method::None), None, None) => Some(Self::None),
            (method, ..) => {
                let help = match method {
                    Some(Method::Basic | Method::Post) => "this method wants `secret` and no `key`",
                    Some(Method::PrivateKeyJwt) => "this method wants `key` and no `secret`",
                    Some(Method::None) => "the method `none` wants neither `secret` nor `key`",
                    None => "give `secret`, or `key`, or the method `none` for a public client",
                };
                resolver.report.error(at, "how we authenticate as a client is not clear").help(help);
                None
            }
        }
    }
}

fn text(secret: Secret, resolver: &mut Resolver, at: &At) -> Option<Secret> {
    if secret.expose_str().is_some() {
        return Some(secret);
    }
    resolver.report.error(&at.key("secret"), "is not text");
    None
}

impl AssertionKey {
    /// From PKCS #8 in PEM; the algorithm follows from the key.
    pub fn from_pem(pem: &[u8], id: Option<&str>) -> Option<Self> {
        let candidates = [
            (EncodingKey::from_rsa_pem(pem), Algorithm::RS256),
            (EncodingKey::from_ec_pem(pem), Algorithm::ES256),
            (EncodingKey::from_ec_pem(pem), Algorithm::ES384),
            (EncodingKey::from_ed_pem(pem), Algorithm::EdDSA),
        ];
        candidates.into_iter().find_map(|(key, algorithm)| {
            let key = key.ok()?;
            jsonwebtoken::crypto::sign(b"trial", &key, algorithm).ok()?;
            Some(Self { key, algorithm, id: id.map(str::to_owned) })
        })
    }

    /// A fresh assertion (RFC 7523 section 3). Its audience is the issuer, as RFC 7523bis asks: an assertion for one
    /// provider is then worth nothing at another that names the first one's token endpoint as its own.
    pub fn sign(&self, client: &str, issuer: &str, now: Timestamp) -> Result<String, jsonwebtoken::errors::Error> {
        #[derive(Serialize)]
        struct Claims<'a> {
            iss: &'a str,
            sub: &'a str,
            aud: &'a str,
            jti: String,
            iat: i64,
            exp: i64,
        }
        let jti = BASE64_URL_SAFE_NO_PAD.encode(random::<16>());
        let iat = now.as_secs();
        let claims = Claims { iss: client, sub: client, aud: issuer, jti, iat, exp: iat + ASSERTION_SECONDS };
        let header = Header { kid: self.id.clone(), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, &claims, &self.key)
    }
}

impl fmt::Debug for AssertionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AssertionKey({:?})", self.algorithm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::SecretSource;

    fn pem(algorithm: &'static rcgen::SignatureAlgorithm) -> String {
        rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_pem()
    }

    #[test]
    fn the_algorithm_follows_from_the_key() {
        for (algorithm, expected) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, Algorithm::ES256),
            (&rcgen::PKCS_ECDSA_P384_SHA384, Algorithm::ES384),
            (&rcgen::PKCS_ED25519, Algorithm::EdDSA),
            (&rcgen::PKCS_RSA_SHA256, Algorithm::RS256),
        ] {
            let key = AssertionKey::from_pem(pem(algorithm).as_bytes(), Some("k1")).unwrap();
            assert_eq!(key.algorithm, expected);
            let assertion = key.sign("doorward", "https://idp.example", Timestamp::from_secs(1_700_000_000)).unwrap();
            let header = jsonwebtoken::decode_header(assertion.as_bytes()).unwrap();
            assert_eq!((header.alg, header.kid.as_deref()), (expected, Some("k1")));
        }
        assert!(
            AssertionKey::from_pem(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", None).is_none()
        );
    }

    #[test]
    fn credentials_must_be_clear() {
        use raw::ClientAuthMethod as Method;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), "s3cret\n").unwrap();
        std::fs::write(folder.path().join("key"), pem(&rcgen::PKCS_ECDSA_P256_SHA256)).unwrap();
        let rows = [
            (None, true, false, Some("Basic")),
            (Some(Method::Post), true, false, Some("Post")),
            (None, false, true, Some("PrivateKeyJwt")),
            (Some(Method::None), false, false, Some("None")),
            (None, false, false, None),
            (None, true, true, None),
            (Some(Method::None), true, false, None),
            (Some(Method::Basic), false, true, None),
            (Some(Method::PrivateKeyJwt), true, false, None),
        ];
        for (method, secret, key, expected) in rows {
            let credentials = raw::ClientCredentials {
                id: "doorward".to_owned(),
                method,
                secret: secret.then(|| SecretSource::File("secret".into())),
                key: key.then(|| SecretSource::File("key".into())),
                key_id: None,
            };
            let login = raw::Login { client: credentials, scopes: vec!["groups".to_owned(), "openid".to_owned()] };
            let mut resolver = Resolver::new(folder.path());
            let client = Client::resolve(&login, &mut resolver, &At::root());
            let found = client.as_ref().map(|client| format!("{:?}", client.authentication));
            assert_eq!(
                found.as_deref().map(|text| text.split('(').next().unwrap()),
                expected,
                "{method:?} {secret} {key}"
            );
            assert_eq!(resolver.report.has_errors(), expected.is_none());
            if let Some(client) = client {
                assert_eq!(client.scopes.iter().map(|scope| &**scope).collect::<Vec<_>>(), ["openid", "groups"]);
                assert!(!format!("{client:?}").contains("s3cret"));
            }
        }
    }

    #[test]
    fn scopes_with_blanks_are_reported() {
        let client = raw::ClientCredentials {
            id: "doorward".to_owned(),
            method: Some(raw::ClientAuthMethod::None),
            secret: None,
            key: None,
            key_id: None,
        };
        let login = raw::Login { client, scopes: vec!["openid groups".to_owned()] };
        let mut resolver = Resolver::default();
        assert!(Client::resolve(&login, &mut resolver, &At::root()).is_none());
        assert_eq!(resolver.report.problems()[0].at.as_str(), "/scopes/0");
    }
}
