//! The keys that sign tokens: P-256 (ES256, RFC 7518 section 3.4), at least two of them published at any time where Doorward
//! makes them itself, so that a successor is known to everybody long before it signs.

use std::sync::Arc;

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    config::{raw, report::At, resolver::Resolver},
    sha256::sha256,
};

/// The `typ` of an access token (RFC 9068 section 2.1).
const TYPE: &str = "at+jwt";

/// The `typ` of an assertion for another provider (RFC 7523 section 3). It is none of an access token, so that no route of ours
/// takes one.
const ASSERTION_TYPE: &str = "JWT";

/// A key that signs.
pub struct SigningKey {
    /// The thumbprint of the public key (RFC 7638 section 3).
    id: Arc<str>,
    /// The JOSE header of access tokens, and of assertions, encoded.
    header: String,
    assertion_header: String,
    /// The public key, as a JWK (RFC 7517).
    public: Value,
    pair: EcdsaKeyPair,
}

/// Keys of which the first signs and all are published. Cheap to clone.
#[derive(Clone)]
pub struct SigningKeys(Arc<Published>);

struct Published {
    keys: Vec<Arc<SigningKey>>,
    /// The key set (RFC 7517 section 5), as it is served.
    set: Bytes,
}

impl SigningKey {
    /// A new key, and its private part (PKCS #8). `None`: the system has no random bytes.
    pub fn generate() -> Option<(Self, Vec<u8>)> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).ok()?;
        let der = pair.to_pkcs8v1().ok()?.as_ref().to_vec();
        Some((Self::new(pair)?, der))
    }

    /// The name of the key: its thumbprint (RFC 7638).
    pub fn id(&self) -> &str {
        &self.id
    }

    /// From its private part (PKCS #8).
    pub fn from_der(der: &[u8]) -> Option<Self> {
        Self::new(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).ok()?)
    }

    /// The same in PEM.
    fn from_pem(pem: &[u8]) -> Option<Self> {
        Self::from_der(PrivatePkcs8KeyDer::from_pem_slice(pem).ok()?.secret_pkcs8_der())
    }

    fn new(pair: EcdsaKeyPair) -> Option<Self> {
        // An uncompressed point (SEC 1 section 2.3.3): 4, then both coordinates.
        let (x, y) = pair.public_key().as_ref().strip_prefix(&[4])?.split_at_checked(32)?;
        let (x, y) = (BASE64_URL_SAFE_NO_PAD.encode(x), BASE64_URL_SAFE_NO_PAD.encode(y));
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let id = BASE64_URL_SAFE_NO_PAD.encode(sha256(&[canonical.as_bytes()]));
        let header =
            |kind: &str| BASE64_URL_SAFE_NO_PAD.encode(json!({"alg": "ES256", "kid": id, "typ": kind}).to_string());
        Some(Self {
            header: header(TYPE),
            assertion_header: header(ASSERTION_TYPE),
            public: json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": id, "use": "sig", "alg": "ES256"}),
            id: id.into(),
            pair,
        })
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.id)
    }
}

impl SigningKeys {
    /// `keys` must not be empty.
    pub fn new(keys: Vec<Arc<SigningKey>>) -> Option<Self> {
        keys.first()?;
        let public: Vec<_> = keys.iter().map(|key| &key.public).collect();
        let set = json!({"keys": public}).to_string();
        Some(Self(Arc::new(Published { keys, set: set.into() })))
    }

    /// From the configuration. `None` if none is configured, or if one is wrong, which is then reported. `shared` says that
    /// several replicas issue, which then must do so with the same keys.
    pub fn resolve(raw: &raw::Tokens, shared: bool, resolver: &mut Resolver, at: &At) -> Option<Self> {
        let at = at.key("keys");
        let help = "make one with `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`";
        if shared && raw.keys.is_empty() {
            resolver.report.error(&at, "with `store.redis`, tokens need `keys`, the same on every replica").help(help);
        }
        let mut keys: Vec<Arc<SigningKey>> = Vec::with_capacity(raw.keys.len());
        for (index, source) in raw.keys.iter().enumerate() {
            let at = at.index(index);
            let Some(secret) = resolver.secret(&at, source) else { continue };
            match SigningKey::from_pem(secret.expose()) {
                Some(key) if keys.iter().any(|other| other.id == key.id) => {
                    resolver.report.error(&at, format!("{source} is a key that stands there already"));
                }
                Some(key) => keys.push(Arc::new(key)),
                None => {
                    resolver
                        .report
                        .error(&at, format!("{source} is not a P-256 key in PEM (PKCS #8, `BEGIN PRIVATE KEY`)"))
                        .help(help);
                }
            }
        }
        if keys.len() == raw.keys.len() { Self::new(keys) } else { None }
    }

    /// The key set (RFC 7517 section 5) as JSON.
    pub fn set(&self) -> &Bytes {
        &self.0.set
    }

    /// The claims of a token that one of these keys has signed, whatever they say of time and audience.
    pub fn verify(&self, token: &str) -> Option<Map<String, Value>> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        // Its header is, byte for byte, what this key writes: there is nothing to interpret in it.
        let key = self.0.keys.iter().find(|key| key.header == header)?;
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).ok()?;
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.pair.public_key().as_ref());
        public.verify(message.as_bytes(), &signature).ok()?;
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    }

    /// An access token: a JWS in its compact form (RFC 7515 section 7.1). `None`: the system has no random bytes, or `claims` are
    /// no JSON.
    pub fn sign<T: Serialize>(&self, claims: &T) -> Option<String> {
        let key = self.0.keys.first()?;
        key.sign(&key.header, claims)
    }

    /// The same for another provider, which is no access token of ours.
    pub fn sign_assertion<T: Serialize>(&self, claims: &T) -> Option<String> {
        let key = self.0.keys.first()?;
        key.sign(&key.assertion_header, claims)
    }
}

impl SigningKey {
    fn sign<T: Serialize>(&self, header: &str, claims: &T) -> Option<String> {
        let mut token = format!("{header}.");
        BASE64_URL_SAFE_NO_PAD.encode_string(serde_json::to_vec(claims).ok()?, &mut token);
        let signature = self.pair.sign(&SystemRandom::new(), token.as_bytes()).ok()?;
        token.push('.');
        BASE64_URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Some(token)
    }
}

impl std::fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.keys.iter().map(|key| &key.id)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};

    fn key() -> Arc<SigningKey> {
        Arc::new(SigningKey::generate().unwrap().0)
    }

    /// Another library's reading of what was signed, by the published set alone.
    fn read(set: &[u8], token: &str) -> Option<Value> {
        let set: JwkSet = serde_json::from_slice(set).unwrap();
        let header = jsonwebtoken::decode_header(token).unwrap();
        assert_eq!((header.alg, header.typ.as_deref()), (Algorithm::ES256, Some("at+jwt")));
        let key = DecodingKey::from_jwk(set.find(&header.kid.unwrap())?).unwrap();
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_exp = false;
        validation.required_spec_claims.clear();
        Some(jsonwebtoken::decode(token, &key, &validation).ok()?.claims)
    }

    #[test]
    fn the_first_key_signs_and_whoever_has_the_set_can_check() {
        let (one, other) = (key(), key());
        let both = SigningKeys::new(vec![Arc::clone(&one), Arc::clone(&other)]).unwrap();
        let token = both.sign(&json!({"sub": "alice"})).unwrap();
        assert_eq!(read(both.set(), &token).unwrap()["sub"], "alice");
        let swapped = SigningKeys::new(vec![other, one]).unwrap();
        assert!(read(swapped.set(), &token).is_some(), "a key that no longer signs is still published");
        assert_eq!(swapped.verify(&token).unwrap()["sub"], "alice");
        assert!(SigningKeys::new(vec![key()]).unwrap().verify(&token).is_none(), "another key");
        for changed in [format!("{token}A"), token.replace("ey", "fy"), token.replacen('.', "..", 1), String::new()] {
            assert!(swapped.verify(&changed).is_none(), "{changed}");
        }
        assert!(read(SigningKeys::new(vec![key()]).unwrap().set(), &token).is_none());
    }

    #[test]
    fn what_is_published_is_public() {
        let (key, der) = SigningKey::generate().unwrap();
        let again = SigningKey::from_der(&der).unwrap();
        assert_eq!(key.id, again.id);
        let set = SigningKeys::new(vec![Arc::new(key)]).unwrap();
        let set: Value = serde_json::from_slice(set.set()).unwrap();
        let members: Vec<_> = set["keys"][0].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(members, ["alg", "crv", "kid", "kty", "use", "x", "y"]);
    }

    #[test]
    fn no_key_gives_no_keys() {
        assert!(SigningKeys::new(Vec::new()).is_none());
        assert!(SigningKey::from_der(b"nothing").is_none());
    }
}
