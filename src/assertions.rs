//! Doorward's statement about a request, for the upstream that gets it: a signed JWT in `Doorward-Assertion`, valid for
//! at most a minute, for one audience and one body. Whoever has the public keys (`/.well-known/jwks.json`) can tell a
//! request that came through Doorward from one that did not; [`crate::interceptor`] does so for Tekton.

use std::{io, path::Path, sync::Arc, time::Duration};

use aws_lc_rs::{
    digest::{SHA256, digest},
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::STANDARD, prelude::BASE64_URL_SAFE_NO_PAD};
use data_encoding::HEXLOWER;
use http::{HeaderName, HeaderValue};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::{
    atomic_file,
    authn::{Kind, Principal},
    authz::TriggerLimits,
    clock::Timestamp,
    config::{raw, report::At, resolver::Resolver},
    request::route::Route,
    webhooks::DeliveryKey,
};

/// The request header of an assertion. A client's own is dropped, like every header that begins with `doorward-`.
pub const HEADER: HeaderName = HeaderName::from_static("doorward-assertion");

/// How long an assertion is valid.
pub const LIFETIME: Duration = Duration::from_secs(60);

/// How far the clock of the replica that verifies may be ahead of that of the replica that signed. An assertion that is
/// replayed in this time makes no run, because what it is about stays bound for longer.
const LEEWAY: Duration = Duration::from_secs(60);

/// The `typ` of an assertion, so that no other JWT of Doorward's is accepted as one.
const TYPE: &str = "doorward-assertion+jwt";

/// The file of the key that Doorward generates has the name of the store with this extension.
pub const KEY_EXTENSION: &str = "assertion.pem";

/// The path of the keys of assertions, on the external host.
pub const KEY_SET: &str = "/.well-known/jwks.json";

/// The claims of an assertion. `T` is `webhooks::Facts` when it is written and any JSON when it is read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims<T = Value> {
    pub iss: Arc<str>,
    /// The EventListener as `namespace/name`, or the name of the upstream.
    pub aud: Arc<str>,
    /// The Kubernetes user name.
    pub sub: Arc<str>,
    pub iat: i64,
    pub exp: i64,
    /// The id of the request.
    pub jti: String,
    /// SHA-256 of the body, in hex.
    pub body_sha256: String,
    /// The same for every try to deliver one delivery, and different for every other delivery.
    pub once: String,
    /// Until when `once` is unique; absent: forever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub once_until: Option<i64>,
    pub kind: Kind,
    /// The name of the issuer or `webhook:NAME`.
    pub issuer: Arc<str>,
    /// The Kubernetes groups that grants gave.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub groups: Arc<[Arc<str>]>,
    /// The facts of the delivery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<T>,
    /// Which Triggers the delivery may set off. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub triggers: Option<TriggerLimits>,
}

/// The keys of a generation: the first signs, all are published.
#[derive(Clone)]
pub struct Keys(Arc<[AssertionKey]>);

struct AssertionKey {
    id: String,
    /// The public key, base64url.
    public: String,
    /// The encoded JOSE header of what it signs.
    header: String,
    signing: Ed25519KeyPair,
    verifying: DecodingKey,
}

/// Signs and verifies the assertions of a generation.
#[derive(Clone, Debug)]
pub struct Assertions {
    issuer: Arc<str>,
    keys: Keys,
}

/// The request that an assertion is about.
#[derive(Clone, Debug)]
pub struct Asserted<'a> {
    pub principal: &'a Principal,
    pub route: &'a Route,
    pub groups: &'a Arc<[Arc<str>]>,
    pub request_id: &'a str,
    pub body_sha256: &'a [u8; 32],
    pub once: DeliveryKey,
    pub triggers: Option<TriggerLimits>,
}

/// Why an assertion is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Unproven {
    #[error("it is not signed with a key of this Doorward")]
    Signature,
    #[error("it is malformed, or names another Doorward")]
    Malformed,
    #[error("it names no key of this Doorward, or is of another type")]
    Key,
    #[error("it expired {0} s ago")]
    Expired(u64),
}

impl From<jsonwebtoken::errors::Error> for Unproven {
    fn from(error: jsonwebtoken::errors::Error) -> Self {
        match error.kind() {
            jsonwebtoken::errors::ErrorKind::InvalidSignature => Self::Signature,
            _ => Self::Malformed,
        }
    }
}

impl Keys {
    /// From the configuration: Ed25519 keys in PEM (PKCS #8). `None` if none is configured, or if one is invalid, which
    /// is reported. `shared` says that several replicas assert, and so must use the same keys.
    pub fn resolve(raw: &raw::Assertions, shared: bool, resolver: &mut Resolver, at: &At) -> Option<Self> {
        let at = at.key("keys");
        if shared && raw.keys.is_empty() {
            resolver
                .error(&at, "with `store.redis`, webhook routes need `assertions.keys`, the same on every replica")
                .help(
                    "make one with `openssl genpkey -algorithm ed25519`; if each replica had its own key, the interceptor \
                     of one would stop what another sends",
                );
        }
        let mut keys = Vec::with_capacity(raw.keys.len());
        for (index, source) in raw.keys.iter().enumerate() {
            let at = at.index(index);
            let Some(secret) = resolver.secret(&at, source) else { continue };
            match AssertionKey::from_pem(secret.expose()) {
                Some(key) => keys.push(key),
                None => drop(
                    resolver
                        .error(&at, format!("{source} is not an Ed25519 key in PEM (PKCS #8)"))
                        .help("make one with `openssl genpkey -algorithm ed25519`"),
                ),
            }
        }
        (!keys.is_empty() && keys.len() == raw.keys.len()).then(|| Self(keys.into()))
    }

    /// The key stored in `path`. If there is none, it is generated and written for its owner only.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        let pem = atomic_file::read_or_make(path, || {
            let pair = Ed25519KeyPair::generate();
            let pair = pair.map_err(|_| atomic_file::invalid(path, "no random bytes are available"))?;
            let der = pair.to_pkcs8v1().map_err(|_| atomic_file::invalid(path, "the key cannot be written"))?;
            let text = Zeroizing::new(STANDARD.encode(der.as_ref()));
            let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", *text);
            Ok(Zeroizing::new(pem.into_bytes()))
        })?;
        Self::of_file(path, &pem)
    }

    /// Checks, without a change, whether [`Self::load_or_create`] can use what is there.
    pub fn examine(path: &Path) -> io::Result<()> {
        atomic_file::examine(path, |pem| Self::of_file(path, pem))
    }

    fn of_file(path: &Path, pem: &[u8]) -> io::Result<Self> {
        AssertionKey::from_pem(pem).map(|key| Self(Arc::new([key]))).ok_or_else(|| {
            let why = "the key is not an Ed25519 key in PEM (PKCS #8); restore it from a backup, or remove it: a new one is \
                       made";
            atomic_file::invalid(path, why)
        })
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.id)).finish()
    }
}

impl AssertionKey {
    fn from_pem(pem: &[u8]) -> Option<Self> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).ok()?;
        let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der()).ok()?;
        let public = BASE64_URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        // The thumbprint of the key (RFC 7638 section 3).
        let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{public}"}}"#);
        let id = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, canonical.as_bytes()));
        let header = Header { typ: Some(TYPE.to_owned()), kid: Some(id.clone()), ..Header::new(Algorithm::EdDSA) };
        Some(Self {
            id,
            header: BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&header).ok()?),
            verifying: DecodingKey::from_ed_components(&public).ok()?,
            public,
            signing: pair,
        })
    }
}

/// The `iss` of assertions if the configuration names none.
pub fn default_issuer(host: Option<&str>) -> String {
    host.map_or_else(|| "doorward".to_owned(), |host| format!("https://{host}"))
}

impl Assertions {
    /// `host` is the external host, from which the issuer is made unless it is configured.
    pub fn new(raw: &raw::Assertions, host: Option<&str>, keys: Keys) -> Self {
        let issuer = raw.issuer.clone().unwrap_or_else(|| default_issuer(host));
        Self { issuer: issuer.into(), keys }
    }

    /// The value of [`HEADER`] for a request, or `None` if it cannot be signed, which only a lack of memory explains.
    pub fn sign(&self, asserted: Asserted<'_>, now: Timestamp) -> Option<HeaderValue> {
        let Asserted { principal, route, groups, request_id, body_sha256, once, triggers } = asserted;
        let claims = Claims {
            iss: Arc::clone(&self.issuer),
            aud: audience(route),
            sub: Arc::clone(&principal.username),
            iat: now.as_secs(),
            exp: (now + LIFETIME).as_secs(),
            jti: request_id.to_owned(),
            body_sha256: HEXLOWER.encode(body_sha256),
            once: HEXLOWER.encode(&once.id),
            once_until: once.window.map(|window| (now + window).as_secs()),
            kind: principal.kind,
            issuer: Arc::clone(&principal.issuer),
            groups: Arc::clone(groups),
            delivery: principal.delivery.as_deref(),
            triggers,
        };
        self.encode(&claims)
    }

    /// A JWS in its compact form (RFC 7515 section 7.1). `jsonwebtoken` would parse the key for each one, which costs
    /// as much as the signature.
    fn encode<T: Serialize>(&self, claims: &Claims<T>) -> Option<HeaderValue> {
        let key = self.keys.0.first()?;
        let mut token = format!("{}.", key.header);
        BASE64_URL_SAFE_NO_PAD.encode_string(serde_json::to_vec(claims).ok()?, &mut token);
        let signature = key.signing.sign(token.as_bytes());
        token.push('.');
        BASE64_URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        HeaderValue::try_from(token).ok()
    }

    /// Verifies signature, issuer and age. The caller must compare audience and body.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, Unproven> {
        let header = jsonwebtoken::decode_header(token)?;
        let key = self.keys.0.iter().find(|key| header.kid.as_deref() == Some(&*key.id));
        let key = key.filter(|_| header.typ.as_deref() == Some(TYPE)).ok_or(Unproven::Key)?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        // By our own clock, below.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["iss", "aud", "sub", "exp"]);
        let claims = jsonwebtoken::decode::<Claims>(token, &key.verifying, &validation)?.claims;
        let late = now.since(Timestamp::from_secs(claims.exp));
        if late >= LEEWAY {
            return Err(Unproven::Expired(late.as_secs()));
        }
        Ok(claims)
    }

    /// The public keys (RFC 7517).
    pub fn key_set(&self) -> Value {
        let keys = self.keys.0.iter().map(
            |key| json!({"kty": "OKP", "crv": "Ed25519", "x": key.public, "kid": key.id, "use": "sig", "alg": "EdDSA"}),
        );
        json!({"keys": keys.collect::<Vec<_>>()})
    }
}

/// The audience of an assertion.
fn audience(route: &Route) -> Arc<str> {
    match &route.event_listener {
        Some(listener) => format!("{}/{}", listener.namespace, listener.name).into(),
        None => Arc::clone(route.upstream.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn keys(dir: &tempfile::TempDir, name: &str) -> Keys {
        Keys::load_or_create(&dir.path().join(name)).unwrap()
    }

    fn assertions(keys: Keys) -> Assertions {
        Assertions::new(&raw::Assertions::default(), Some("door.example"), keys)
    }

    fn claims(assertions: &Assertions) -> Claims {
        Claims {
            iss: Arc::clone(&assertions.issuer),
            aud: "ci/build".into(),
            sub: "webhook:github:repo:1".into(),
            iat: NOW.as_secs(),
            exp: (NOW + LIFETIME).as_secs(),
            jti: "r".to_owned(),
            body_sha256: String::new(),
            once: String::new(),
            once_until: None,
            kind: Kind::Agent,
            issuer: "webhook:hub".into(),
            groups: Arc::default(),
            delivery: None,
            triggers: None,
        }
    }

    #[test]
    fn an_assertion_is_valid_for_a_minute_with_clocks_a_minute_apart_and_its_own_keys() {
        let dir = tempfile::tempdir().unwrap();
        let ours = assertions(keys(&dir, "a"));
        let token = ours.encode(&claims(&ours)).unwrap();
        let token = token.to_str().unwrap();
        assert_eq!(&*ours.verify(token, NOW).unwrap().sub, "webhook:github:repo:1");
        let end = NOW + LIFETIME + LEEWAY;
        for now in [NOW - LEEWAY, end - Duration::from_secs(1)] {
            assert!(ours.verify(token, now).is_ok(), "{now}");
        }
        assert!(matches!(ours.verify(token, end), Err(Unproven::Expired(60))));
        // The key is stored: the next start has the same.
        assert!(assertions(keys(&dir, "a")).verify(token, NOW).is_ok());
        assert!(assertions(keys(&dir, "b")).verify(token, NOW).is_err());
        let elsewhere = Assertions::new(&raw::Assertions::default(), Some("other.example"), keys(&dir, "a"));
        assert!(elsewhere.verify(token, NOW).is_err(), "another issuer");
        let mut parts: Vec<_> = token.split('.').map(str::to_owned).collect();
        parts[1] =
            BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&Claims { sub: "root".into(), ..claims(&ours) }).unwrap());
        let forged = parts.join(".");
        // In words, as whoever debugs an EventListener reads them in its status.
        for (token, why) in [
            (&*forged, "it is not signed with a key of this Doorward"),
            ("", "it is malformed, or names another Doorward"),
            ("a.b.c", "it is malformed, or names another Doorward"),
            ("eyJhbGciOiJub25lIn0.e30.", "it is malformed, or names another Doorward"),
        ] {
            let refused = ours.verify(token, NOW).err().map(|error| error.to_string());
            assert_eq!(refused.as_deref(), Some(why), "{token}");
        }
    }

    /// The file of the keys may be that of the keys of other JWTs.
    #[test]
    fn a_jwt_of_another_type_is_no_assertion_even_with_our_key() {
        let dir = tempfile::tempdir().unwrap();
        let ours = assertions(keys(&dir, "a"));
        for (typ, is_one) in [(Some(TYPE), true), (Some("at+jwt"), false), (None, false)] {
            let mut signing = keys(&dir, "a");
            let key = &mut Arc::get_mut(&mut signing.0).unwrap()[0];
            let (typ, kid) = (typ.map(str::to_owned), Some(key.id.clone()));
            let header = Header { typ, kid, ..Header::new(Algorithm::EdDSA) };
            key.header = BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&header).unwrap());
            let token = assertions(signing).encode(&claims(&ours)).unwrap();
            match ours.verify(token.to_str().unwrap(), NOW) {
                Ok(_) => assert!(is_one, "{:?}", header.typ),
                Err(error) => assert!(!is_one && matches!(error, Unproven::Key), "{:?}: {error}", header.typ),
            }
        }
    }

    #[test]
    fn the_published_keys_are_public() {
        let dir = tempfile::tempdir().unwrap();
        let set = assertions(keys(&dir, "a")).key_set();
        assert_eq!(set["keys"][0]["crv"], "Ed25519");
        assert!(set["keys"][0].get("d").is_none());
    }
}
