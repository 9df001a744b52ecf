//! Client authentication of Doorward at an issuer, for the token endpoint and the introspection endpoint
//! (RFC 6749 section 2.3.1, RFC 7523 section 2.2, OpenID Connect Core 1.0 section 9).

use std::{borrow::Cow, fmt, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, header};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use url::{Url, form_urlencoded};

use super::federated::{FederatedAssertion, Unfit};
use crate::{
    clock::Timestamp,
    config::{
        raw::{ClientAuthMethod as Method, ClientCredentials},
        report::At,
        resolver::{Resolver, Secret},
        values::SecretSource,
    },
};

/// The lifetime of an assertion, in seconds; it is used at once.
const ASSERTION_LIFE: i64 = 60;

/// The seconds by which `iat` of assertions is set back: some providers refuse any `iat` ahead of their clock, and ours
/// may be slightly fast. Keycloak does so for assertions of an identity provider without an allowed clock skew.
pub const ISSUED_BEFORE: i64 = 5;

/// A client of one issuer, with its credential. Two are equal if id and credential are.
#[derive(Clone, PartialEq)]
pub struct ClientAuth {
    id: Arc<str>,
    method: Credential,
}

#[derive(Clone)]
enum Credential {
    Basic(Secret),
    Post(Secret),
    PrivateKeyJwt(AssertionKey),
    Federated(FederatedAssertion),
    None,
}

/// The credential for one request.
#[derive(Clone)]
pub enum Proof<'c> {
    /// `client_secret_basic`.
    Basic(&'c Secret),
    /// `client_secret_post`.
    Post(&'c Secret),
    /// `private_key_jwt`: a new assertion; or one that another issuer signed.
    Assertion(Cow<'c, str>),
    /// A public client, without a credential.
    Public,
}

impl fmt::Debug for Proof<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof(..)")
    }
}

/// `client_assertion_type` beside an assertion.
pub const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// The key that signs our assertions.
#[derive(Clone)]
struct AssertionKey {
    /// The PEM that it was parsed from.
    pem: Secret,
    key: EncodingKey,
    header: Box<Header>,
    audience: Arc<str>,
}

#[derive(Serialize)]
struct Assertion<'a> {
    iss: &'a str,
    sub: &'a str,
    /// Only the issuer identifier, as RFC 7523bis requires: an assertion for one issuer is then invalid at another one
    /// that claims the first one's endpoint as its own.
    aud: &'a str,
    jti: String,
    iat: i64,
    exp: i64,
}

/// The default authentication method of a client.
pub(super) fn default_method(raw: &ClientCredentials) -> Option<Method> {
    match (&raw.secret, &raw.key, &raw.assertion) {
        (Some(_), None, None) => Some(Method::Basic),
        (None, Some(_), None) => Some(Method::PrivateKeyJwt),
        (None, None, Some(_)) => Some(Method::Assertion),
        _ => None,
    }
}

impl ClientAuth {
    /// Reads the credential of `raw` for the issuer with the identifier `issuer`. Reports every problem at its place;
    /// `None` if there is one.
    pub fn resolve(raw: &ClientCredentials, issuer: &str, at: &At, resolver: &mut Resolver) -> Option<Self> {
        if raw.id.is_empty() {
            resolver.error(&at.key("id"), "the client id is empty").help("the issuer gave it at registration");
        }
        let method = raw.method.or_else(|| default_method(raw));
        let method = match (method, &raw.secret, &raw.key, &raw.assertion) {
            (Some(method @ (Method::Basic | Method::Post)), Some(source), None, None) => {
                let at = at.key("secret");
                let secret = resolver.secret(&at, source)?;
                if secret.expose_str().is_none() {
                    resolver.error(&at, format!("{source} is not text"));
                    return None;
                }
                if method == Method::Basic { Credential::Basic(secret) } else { Credential::Post(secret) }
            }
            (Some(Method::PrivateKeyJwt), None, Some(source), None) => {
                let at = at.key("key");
                let pem = resolver.secret(&at, source)?;
                let Some(key) = AssertionKey::new(pem, raw.key_id.clone(), issuer) else {
                    let problem = resolver.error(&at, format!("{source} is not a private key that can sign"));
                    problem.help("PKCS #8 in PEM: RSA of 2048 bits or more, P-256, P-384 or Ed25519");
                    return None;
                };
                Credential::PrivateKeyJwt(key)
            }
            (Some(Method::Assertion), None, None, Some(source)) => {
                Credential::Federated(federated(source, &at.key("assertion"), resolver)?)
            }
            (Some(Method::None), None, None, None) => Credential::None,
            (method, ..) => {
                let help = match method {
                    Some(Method::Basic | Method::Post) => "this method needs `secret`, without `key` and `assertion`",
                    Some(Method::PrivateKeyJwt) => "this method needs `key`, without `secret` and `assertion`",
                    Some(Method::Assertion) => "this method needs `assertion`, without `secret` and `key`",
                    Some(Method::None) => "the method `none` takes none of `secret`, `key` and `assertion`",
                    None => "give one of `secret`, `key` and `assertion`, or the method `none` for a public client",
                };
                resolver.error(at, "it is not clear how this client authenticates").help(help);
                return None;
            }
        };
        (!raw.id.is_empty()).then(|| Self { id: raw.id.as_str().into(), method })
    }

    pub fn client_id(&self) -> &Arc<str> {
        &self.id
    }

    /// Whether the client has no credential.
    pub fn is_public(&self) -> bool {
        matches!(self.method, Credential::None)
    }

    /// The credential at `now`. The error says why there is no assertion.
    pub fn proof(&self, now: Timestamp) -> Result<Proof<'_>, String> {
        Ok(match &self.method {
            Credential::Basic(secret) => Proof::Basic(secret),
            Credential::Post(secret) => Proof::Post(secret),
            Credential::PrivateKeyJwt(key) => Proof::Assertion(key.sign(&self.id, now)?.into()),
            Credential::Federated(assertion) => Proof::Assertion(assertion.present(now)?.into()),
            Credential::None => Proof::Public,
        })
    }

    /// A form request with these `pairs` and the credential at `now`. The error says why it cannot be built.
    pub fn post(
        &self,
        now: Timestamp,
        endpoint: &Url,
        accept: &'static str,
        pairs: &[(&str, &str)],
    ) -> Result<Request<Bytes>, String> {
        let mut request = form_request(endpoint, accept)?;
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(pairs);
        self.apply(now, &mut form, request.headers_mut())?;
        *request.body_mut() = form.finish().into();
        Ok(request)
    }

    /// Adds the credential to a form request.
    pub fn apply(
        &self,
        now: Timestamp,
        form: &mut form_urlencoded::Serializer<'_, String>,
        headers: &mut HeaderMap,
    ) -> Result<(), String> {
        match self.proof(now)? {
            Proof::Basic(secret) => {
                let value = basic(&self.id, secret).ok_or("the client secret cannot be sent in a header")?;
                headers.insert(header::AUTHORIZATION, value);
            }
            Proof::Post(secret) => {
                form.append_pair("client_id", &self.id);
                form.append_pair("client_secret", secret.expose_str().unwrap_or_default());
            }
            Proof::Assertion(assertion) => {
                form.append_pair("client_id", &self.id);
                form.append_pair("client_assertion_type", ASSERTION_TYPE);
                form.append_pair("client_assertion", &assertion);
            }
            Proof::Public => {
                form.append_pair("client_id", &self.id);
            }
        }
        Ok(())
    }
}

/// Reads the assertion in the file `source`.
fn federated(source: &SecretSource, at: &At, resolver: &mut Resolver) -> Option<FederatedAssertion> {
    if let SecretSource::Env(name) = source {
        let problem = resolver.error(at, format!("the assertion in `{name}` could not be replaced as it expires"));
        problem.help("name a `file`, which is read again whenever it changes");
        return None;
    }
    let text = resolver.secret(at, source)?;
    let unfit = |unfit: Unfit| _ = resolver.error(at, format!("{source} {}", unfit.why())).help(unfit.help());
    FederatedAssertion::new(text).map_err(unfit).ok()
}

#[cfg(test)]
impl ClientAuth {
    /// A client for tests, with a secret as text.
    pub fn of_test(id: &str, method: Method, secret: Option<&str>) -> Self {
        let secret = || Secret::new(secret.unwrap_or_default().as_bytes().to_vec());
        let method = match method {
            Method::Basic => Credential::Basic(secret()),
            Method::Post => Credential::Post(secret()),
            Method::PrivateKeyJwt => panic!("see `of_test_key`"),
            Method::Assertion => Credential::Federated(FederatedAssertion::new(secret()).unwrap()),
            Method::None => Credential::None,
        };
        Self { id: id.into(), method }
    }

    /// A client that signs assertions for `issuer`.
    pub fn of_test_key(id: &str, pem: &str, key_id: &str, issuer: &str) -> Self {
        let key = AssertionKey::new(Secret::new(pem.as_bytes().to_vec()), Some(key_id.to_owned()), issuer).unwrap();
        Self { id: id.into(), method: Credential::PrivateKeyJwt(key) }
    }
}

impl PartialEq for Credential {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Basic(one), Self::Basic(other)) | (Self::Post(one), Self::Post(other)) => one == other,
            (Self::PrivateKeyJwt(one), Self::PrivateKeyJwt(other)) => {
                one.pem == other.pem && one.header.kid == other.header.kid && one.audience == other.audience
            }
            (Self::Federated(one), Self::Federated(other)) => one == other,
            (Self::None, Self::None) => true,
            _ => false,
        }
    }
}

impl AssertionKey {
    /// Parses PKCS #8 in PEM. The algorithm depends on the key and is found by trial signatures.
    fn new(pem: Secret, id: Option<String>, issuer: &str) -> Option<Self> {
        let text = pem.expose();
        let candidates = [
            (EncodingKey::from_rsa_pem(text), Algorithm::RS256),
            (EncodingKey::from_ec_pem(text), Algorithm::ES256),
            (EncodingKey::from_ec_pem(text), Algorithm::ES384),
            (EncodingKey::from_ed_pem(text), Algorithm::EdDSA),
        ];
        let (key, algorithm) = candidates.into_iter().find_map(|(key, algorithm)| {
            let key = key.ok()?;
            jsonwebtoken::crypto::sign(b"trial", &key, algorithm).ok()?;
            Some((key, algorithm))
        })?;
        let header = Box::new(Header { kid: id, ..Header::new(algorithm) });
        Some(Self { pem, key, header, audience: issuer.into() })
    }

    /// Signs a new assertion (RFC 7523 section 3).
    fn sign(&self, client: &str, now: Timestamp) -> Result<String, String> {
        let (jti, iat) = (uuid::Uuid::new_v4().to_string(), now.as_secs() - ISSUED_BEFORE);
        let exp = iat + ASSERTION_LIFE;
        let claims = Assertion { iss: client, sub: client, aud: &self.audience, jti, iat, exp };
        jsonwebtoken::encode(&self.header, &claims, &self.key)
            .map_err(|error| format!("the client assertion cannot be signed: {error}"))
    }
}

impl fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = match self.method {
            Credential::Basic(_) => "basic",
            Credential::Post(_) => "post",
            Credential::PrivateKeyJwt(_) => "private_key_jwt",
            Credential::Federated(_) => "assertion",
            Credential::None => "none",
        };
        f.debug_struct("ClientAuth").field("id", &self.id).field("method", &method).finish_non_exhaustive()
    }
}

/// An empty form request for `endpoint`, with `Accept: accept`.
pub fn form_request(endpoint: &Url, accept: &'static str) -> Result<Request<Bytes>, String> {
    Request::post(endpoint.as_str())
        .header(header::ACCEPT, accept)
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Bytes::new())
        .map_err(|error| error.to_string())
}

/// The value for HTTP Basic. Id and secret are form-encoded before they are joined, as either may have a colon (RFC
/// 6749 section 2.3.1).
fn basic(id: &str, secret: &Secret) -> Option<HeaderValue> {
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let pair = format!("{}:{}", encode(id), encode(secret.expose_str()?));
    let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;

    use super::*;
    use crate::config::values::SecretSource;

    const ISSUER: &str = "https://idp.example";

    fn pem(algorithm: &'static rcgen::SignatureAlgorithm) -> String {
        rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_pem()
    }

    fn key(pem: &str) -> Option<AssertionKey> {
        AssertionKey::new(Secret::new(pem.as_bytes().to_vec()), Some("k1".to_owned()), ISSUER)
    }

    /// Providers that allow no clock skew refused it when our clock was slightly ahead.
    #[test]
    fn an_assertion_was_issued_a_moment_ago_and_lasts_a_minute() {
        let key = key(&pem(&rcgen::PKCS_ECDSA_P256_SHA256)).unwrap();
        let assertion = key.sign("doorward", Timestamp::from_secs(1_700_000_000)).unwrap();
        let claims = BASE64_URL_SAFE_NO_PAD.decode(assertion.split('.').nth(1).unwrap()).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        let times = ["iat", "exp"].map(|name| claims[name].as_i64().unwrap());
        assert_eq!(times, [1_699_999_995, 1_700_000_055]);
    }

    #[test]
    fn the_algorithm_follows_from_the_key() {
        for (algorithm, expected) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, Algorithm::ES256),
            (&rcgen::PKCS_ECDSA_P384_SHA384, Algorithm::ES384),
            (&rcgen::PKCS_ED25519, Algorithm::EdDSA),
            (&rcgen::PKCS_RSA_SHA256, Algorithm::RS256),
        ] {
            let assertion =
                key(&pem(algorithm)).unwrap().sign("doorward", Timestamp::from_secs(1_700_000_000)).unwrap();
            let header = jsonwebtoken::decode_header(assertion.as_bytes()).unwrap();
            assert_eq!((header.alg, header.kid.as_deref()), (expected, Some("k1")));
        }
        assert!(key("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").is_none());
    }

    /// The guide had "nothing" for a public client, which is refused.
    #[test]
    fn what_the_guide_has_people_write_is_the_method_beside_it() {
        let guide = include_str!("../../docs/providers.md");
        let (_, table) = guide.split_once("| written | method | sent |\n|---|---|---|\n").unwrap();
        let rows: Vec<&str> = table.lines().take_while(|line| line.starts_with('|')).collect();
        assert_eq!(rows.len(), 5, "{rows:?}");
        for row in rows {
            let cells: Vec<&str> = row.split('`').collect();
            let written = format!("{{id: doorward, {}}}", cells[1].replace('…', "x"));
            let raw: ClientCredentials = serde_saphyr::from_str(&written).unwrap();
            let method =
                raw.method.or_else(|| default_method(&raw)).map(|method| serde_json::to_value(method).unwrap());
            assert_eq!(method.as_ref().and_then(serde_json::Value::as_str), Some(cells[3]), "{row}");
        }
    }

    /// Caches that survive a reload were filled as this client.
    #[test]
    fn another_key_another_name_of_it_or_another_issuer_is_another_client() {
        let (pem, other) = (pem(&rcgen::PKCS_ED25519), pem(&rcgen::PKCS_ED25519));
        let client =
            |pem: &str, key_id: &str, issuer: &str| ClientAuth::of_test_key("doorward", pem, key_id, issuer).method;
        let first = client(&pem, "k1", ISSUER);
        assert!(first == client(&pem, "k1", ISSUER));
        for changed in
            [client(&other, "k1", ISSUER), client(&pem, "k2", ISSUER), client(&pem, "k1", "https://b.example")]
        {
            assert!(first != changed);
        }
    }

    #[test]
    fn credentials_must_be_clear() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), "s3cret\n").unwrap();
        std::fs::write(folder.path().join("key"), pem(&rcgen::PKCS_ECDSA_P256_SHA256)).unwrap();
        std::fs::write(folder.path().join("binary"), [0xff, 0xfe]).unwrap();
        // `{"exp":4102444800}`, and without an end.
        std::fs::write(folder.path().join("token"), "e30.eyJleHAiOjQxMDI0NDQ4MDB9.c2ln\n").unwrap();
        std::fs::write(folder.path().join("endless"), "e30.e30.c2ln").unwrap();
        type Row = (&'static str, Option<Method>, [Option<&'static str>; 3], Result<&'static str, &'static str>);
        let (secret, key, token) = (Some("secret"), Some("key"), Some("token"));
        let rows: [Row; 20] = [
            ("doorward", None, [secret, None, None], Ok("basic")),
            ("doorward", Some(Method::Post), [secret, None, None], Ok("post")),
            ("doorward", None, [None, key, None], Ok("private_key_jwt")),
            ("doorward", None, [None, None, token], Ok("assertion")),
            ("doorward", Some(Method::Assertion), [None, None, token], Ok("assertion")),
            ("doorward", Some(Method::None), [None, None, None], Ok("none")),
            ("doorward", None, [None, None, None], Err("")),
            ("doorward", None, [secret, key, None], Err("")),
            ("doorward", None, [secret, None, token], Err("")),
            ("doorward", None, [None, key, token], Err("")),
            ("doorward", Some(Method::None), [secret, None, None], Err("")),
            ("doorward", Some(Method::None), [None, None, token], Err("")),
            ("doorward", Some(Method::Basic), [None, key, None], Err("")),
            ("doorward", Some(Method::PrivateKeyJwt), [None, None, token], Err("")),
            ("doorward", Some(Method::Assertion), [secret, None, None], Err("")),
            ("doorward", None, [Some("absent"), None, None], Err("/secret")),
            ("doorward", None, [Some("binary"), None, None], Err("/secret")),
            ("doorward", None, [None, secret, None], Err("/key")),
            ("doorward", None, [None, None, Some("endless")], Err("/assertion")),
            ("", Some(Method::None), [None, None, None], Err("/id")),
        ];
        for (id, method, sources, expected) in rows {
            let [secret, key, assertion] = sources.map(|name| name.map(|name| SecretSource::File(name.into())));
            let credentials = ClientCredentials { id: id.to_owned(), method, secret, key, key_id: None, assertion };
            let mut resolver = Resolver::new(folder.path());
            let client = ClientAuth::resolve(&credentials, ISSUER, &At::root(), &mut resolver);
            let shown = client.as_ref().map(|client| format!("{client:?}"));
            assert_eq!(shown.is_some(), expected.is_ok(), "{credentials:?} {:?}", resolver.report);
            match (expected, shown) {
                (Ok(method), Some(shown)) => {
                    let secret = shown.contains("s3cret") || shown.contains("e30.");
                    assert!(shown.contains(&format!("{method:?}")) && !secret, "{shown}");
                }
                // Once, and at its place.
                _ => {
                    let places: Vec<&str> =
                        resolver.report.problems().iter().map(|problem| problem.at.as_str()).collect();
                    assert_eq!(Err(&*places.join(" ")), expected, "{credentials:?}");
                }
            }
        }
    }

    #[test]
    fn an_assertion_from_the_environment_is_refused_as_it_cannot_be_replaced() {
        let source = SecretSource::Env("PATH".to_owned());
        let mut resolver = Resolver::default();
        assert!(federated(&source, &At::root(), &mut resolver).is_none());
        assert!(format!("{:?}", resolver.report).contains("could not be replaced"), "{:?}", resolver.report);
    }
}
