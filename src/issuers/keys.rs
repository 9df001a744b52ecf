//! The public keys of an issuer, parsed once (RFC 7517, RFC 7518 section 6, RFC 8037).
//!
//! A set is parsed key by key: an unusable key is skipped with a reason, and the others are used.

use std::fmt;

use aws_lc_rs::{
    digest,
    rsa::PublicKeyComponents,
    signature::{self, ParsedPublicKey, RsaParameters},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use super::{jwt, strict_json, token_error::Quoted, weak_ed25519, weak_rsa};
use crate::{authn::KeyId, config::raw::Algorithm};

/// The `Accept` of requests for key sets and discovery documents. An API server does not return its keys for
/// `application/json` alone.
pub const KEY_SET_TYPES: &str = "application/json, application/jwk-set+json";

/// The maximum bytes of a key set.
pub const MAX_KEY_SET: usize = 512 << 10;

/// The maximum number of keys; further ones are ignored.
pub const MAX_KEYS: usize = 64;

/// One public key for one algorithm, ready to verify.
pub struct PublicKey {
    kid: Option<Box<str>>,
    issuer: Option<Box<str>>,
    algorithm: Algorithm,
    parsed: ParsedPublicKey,
    id: KeyId,
}

impl PublicKey {
    fn new(kid: Option<&str>, issuer: Option<&str>, algorithm: Algorithm, parsed: ParsedPublicKey) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(format!("{kid:?} {algorithm:?} {issuer:?}").as_bytes());
        context.update(parsed.as_ref());
        let id = KeyId(context.finish().as_ref().try_into().unwrap_or_default());
        Self { kid: kid.map(Into::into), issuer: issuer.map(Into::into), algorithm, parsed, id }
    }

    /// Its unique id, from its name, algorithm, issuer and the key itself.
    pub fn id(&self) -> KeyId {
        self.id
    }

    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self.parsed.verify_sig(message, signature).is_ok()
    }

    /// The only issuer whose tokens it may sign, if the JWK says so, as in Entra ID.
    pub fn issuer(&self) -> Option<&str> {
        self.issuer.as_deref()
    }
}

#[cfg(any(test, fuzzing))]
impl PublicKey {
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicKey").field("kid", &self.kid).field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// The usable keys of an issuer; never empty.
#[derive(Debug)]
pub struct Keys {
    keys: Vec<PublicKey>,
    count: usize,
    skipped: Vec<String>,
    fingerprint: [u8; 32],
}

/// The result of a search for a key.
#[derive(Debug)]
pub enum Found<'k> {
    One(&'k PublicKey),
    None,
    /// The token names no key, and this many match.
    Several(usize),
}

/// Why a text is not a usable key set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    #[error("it is not a JSON object with an array `keys`")]
    NotAKeySet,
    #[error("it is larger than {MAX_KEY_SET} bytes")]
    TooLarge,
    #[error("it has no usable key{}", if .0.is_empty() { String::new() } else { format!(" ({})", .0.join("; ")) })]
    NoUsableKey(Vec<String>),
}

#[derive(Deserialize)]
struct Document<'d> {
    #[serde(borrow)]
    keys: Vec<&'d RawValue>,
}

impl Keys {
    /// Parses a JWK set. Keys are used for the `allowed` algorithms only, whatever they declare.
    pub fn parse(text: &[u8], allowed: &[Algorithm]) -> Result<Self, KeySetError> {
        if text.len() > MAX_KEY_SET {
            return Err(KeySetError::TooLarge);
        }
        let document: Document<'_> = serde_json::from_slice(text).map_err(|_| KeySetError::NotAKeySet)?;
        let mut set = Self { keys: Vec::new(), count: 0, skipped: Vec::new(), fingerprint: [0; 32] };
        for (index, raw) in document.keys.iter().enumerate().take(MAX_KEYS) {
            match set.add(raw, allowed) {
                Ok(()) => set.count += 1,
                Err(why) => set.skipped.push(format!("key {index} {why}")),
            }
        }
        if document.keys.len() > MAX_KEYS {
            set.skipped.push(format!("only the first {MAX_KEYS} keys are read"));
        }
        if set.keys.is_empty() {
            return Err(KeySetError::NoUsableKey(set.skipped));
        }
        set.fingerprint = set.digest();
        Ok(set)
    }

    /// The key for a token's header.
    pub fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Found<'_> {
        let mut fitting =
            self.keys.iter().filter(|key| key.algorithm == algorithm && (kid.is_none() || key.kid.as_deref() == kid));
        match (fitting.next(), fitting.count()) {
            (None, _) => Found::None,
            (Some(key), 0) => Found::One(key),
            (Some(_), more) => Found::Several(more + 1),
        }
    }

    /// Whether the set has this key.
    pub fn has(&self, id: KeyId) -> bool {
        self.keys.iter().any(|key| key.id == id)
    }

    /// Whether the set has all keys of another one.
    pub fn has_all_of(&self, other: &Self) -> bool {
        other.keys.iter().all(|key| self.has(key.id))
    }

    #[cfg(any(test, fuzzing))]
    pub fn iter(&self) -> impl Iterator<Item = &PublicKey> {
        self.keys.iter()
    }

    /// The number of usable keys.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Why keys were skipped, for the log.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// A digest that is equal for sets with the same usable keys, in any order.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    fn add(&mut self, raw: &RawValue, allowed: &[Algorithm]) -> Result<(), String> {
        let jwk = strict_json::object(raw.get().as_bytes()).map_err(|why| why.to_string())?;
        let jwk = Jwk { members: &jwk };
        jwk.check_purpose()?;
        let kid = match jwk.members.get("kid") {
            None => None,
            Some(Value::String(kid)) if kid.len() <= 256 => Some(kid.as_str()),
            Some(_) => return Err("has a `kid` that is not a short text".to_owned()),
        };
        let bound = match jwk.members.get("alg") {
            None => None,
            Some(Value::String(name)) => Some(
                jwt::algorithm(name)
                    .ok_or_else(|| format!("is for algorithm {}, which is not known here", Quoted::text(name)))?,
            ),
            Some(_) => return Err("has an `alg` that is not a text".to_owned()),
        };
        let issuer = jwk.members.get("issuer").and_then(Value::as_str);
        let material = jwk.material()?;
        let mut usable = material.algorithms().to_vec();
        usable.retain(|algorithm| allowed.contains(algorithm) && bound.is_none_or(|bound| bound == *algorithm));
        if usable.is_empty() {
            return Err("is for no accepted algorithm".to_owned());
        }
        // With two keys of the same name and algorithm, the choice would be arbitrary.
        if self.keys.iter().any(|key| key.kid.is_some() && key.kid.as_deref() == kid && usable.contains(&key.algorithm))
        {
            return Err("has the `kid` of another key".to_owned());
        }
        for algorithm in usable {
            let parsed = material.parse(algorithm).ok_or("is not a valid public key")?;
            self.keys.push(PublicKey::new(kid, issuer, algorithm, parsed));
        }
        Ok(())
    }

    fn digest(&self) -> [u8; 32] {
        let mut parts: Vec<[u8; 32]> = self.keys.iter().map(|key| key.id.0).collect();
        parts.sort_unstable();
        let whole = digest::digest(&digest::SHA256, &parts.concat());
        whole.as_ref().try_into().unwrap_or_default()
    }
}

struct Jwk<'m> {
    members: &'m Map<String, Value>,
}

enum Material {
    Rsa { modulus: Vec<u8>, exponent: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl Jwk<'_> {
    fn check_purpose(&self) -> Result<(), String> {
        match self.members.get("use") {
            None => {}
            Some(Value::String(purpose)) if purpose == "sig" => {}
            Some(_) => return Err("is not for signatures (`use`)".to_owned()),
        }
        match self.members.get("key_ops") {
            None => {}
            Some(Value::Array(operations)) if operations.iter().any(|operation| operation == "verify") => {}
            Some(_) => return Err("is not for verifying (`key_ops`)".to_owned()),
        }
        if self.members.contains_key("d") {
            return Err("carries its private part and must be considered stolen".to_owned());
        }
        Ok(())
    }

    fn text(&self, name: &str) -> Result<&str, String> {
        self.members.get(name).and_then(Value::as_str).ok_or_else(|| format!("has no `{name}`"))
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>, String> {
        URL_SAFE_NO_PAD.decode(self.text(name)?).map_err(|_| format!("has a `{name}` that is not base64url"))
    }

    fn material(&self) -> Result<Material, String> {
        match self.text("kty")? {
            "RSA" => {
                let modulus = without_leading_zeros(self.bytes("n")?);
                let exponent = without_leading_zeros(self.bytes("e")?);
                weak_rsa::check(&modulus, &exponent)?;
                Ok(Material::Rsa { modulus, exponent })
            }
            "EC" => match self.text("crv")? {
                "P-256" => Ok(Material::P256(self.point(32)?)),
                "P-384" => Ok(Material::P384(self.point(48)?)),
                other => Err(format!("is on curve {}", Quoted::text(other))),
            },
            "OKP" => match self.text("crv")? {
                "Ed25519" => {
                    let x = self.bytes("x")?;
                    weak_ed25519::check(&x)?;
                    Ok(Material::Ed25519(x))
                }
                other => Err(format!("is on curve {}", Quoted::text(other))),
            },
            other => Err(format!("is of type {}", Quoted::text(other))),
        }
    }

    /// The uncompressed point of SEC 1; both coordinates must have the full length of the field.
    fn point(&self, length: usize) -> Result<Vec<u8>, String> {
        let (x, y) = (self.bytes("x")?, self.bytes("y")?);
        if x.len() != length || y.len() != length {
            return Err("has a coordinate of the wrong length".to_owned());
        }
        Ok([&[4_u8][..], &x, &y].concat())
    }
}

impl Material {
    fn algorithms(&self) -> &'static [Algorithm] {
        match self {
            Self::Rsa { .. } => &[
                Algorithm::RS256,
                Algorithm::RS384,
                Algorithm::RS512,
                Algorithm::PS256,
                Algorithm::PS384,
                Algorithm::PS512,
            ],
            Self::P256(_) => &[Algorithm::ES256],
            Self::P384(_) => &[Algorithm::ES384],
            Self::Ed25519(_) => &[Algorithm::EdDSA],
        }
    }

    fn parse(&self, algorithm: Algorithm) -> Option<ParsedPublicKey> {
        match self {
            Self::Rsa { modulus, exponent } => {
                PublicKeyComponents { n: modulus, e: exponent }.to_parsed_public_key(rsa_parameters(algorithm)?).ok()
            }
            Self::P256(point) => ParsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).ok(),
            Self::P384(point) => ParsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point).ok(),
            Self::Ed25519(x) => ParsedPublicKey::new(&signature::ED25519, x).ok(),
        }
    }
}

fn rsa_parameters(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        Algorithm::RS256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::RS384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::RS512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::PS256 => &signature::RSA_PSS_2048_8192_SHA256,
        Algorithm::PS384 => &signature::RSA_PSS_2048_8192_SHA384,
        Algorithm::PS512 => &signature::RSA_PSS_2048_8192_SHA512,
        Algorithm::ES256 | Algorithm::ES384 | Algorithm::EdDSA => return None,
    })
}

fn without_leading_zeros(mut bytes: Vec<u8>) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.drain(..zeros);
    bytes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::testing::{ED25519, OTHER_RSA, P256, RSA, changed},
        *,
    };

    /// The number of usable keys, or why there are none.
    fn parse(keys: &[Value]) -> Result<usize, String> {
        let text = json!({"keys": keys}).to_string();
        let parsed = Keys::parse(text.as_bytes(), &[Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA]);
        parsed.map(|keys| keys.count()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_that_is_not_just_so_is_left_out() {
        let (rsa, ec, okp) = (RSA.jwk("rsa", json!({})), P256.jwk("ec", json!({})), ED25519.jwk("okp", json!({})));
        // Only the concatenation of both coordinates has the right length, and is the point.
        let point: Vec<u8> =
            ["x", "y"].iter().flat_map(|name| URL_SAFE_NO_PAD.decode(ec[name].as_str().unwrap()).unwrap()).collect();
        let (x, y) = point.split_at(31);
        let shifted = changed(ec.clone(), &json!({"x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)}));
        assert_eq!((parse(std::slice::from_ref(&rsa)), parse(&[ec]), parse(&[okp])), (Ok(1), Ok(1), Ok(1)));
        for (key, why) in [
            (RSA.jwk("rsa", json!({"d": "AQAB"})), "carries its private part"),
            (RSA.jwk("rsa", json!({"use": "enc"})), "`use`"),
            (RSA.jwk("rsa", json!({"use": 1})), "`use`"),
            (RSA.jwk("rsa", json!({"key_ops": ["sign"]})), "`key_ops`"),
            (RSA.jwk("rsa", json!({"key_ops": "verify"})), "`key_ops`"),
            (RSA.jwk("rsa", json!({"alg": "PS512"})), "no accepted algorithm"),
            (RSA.jwk("rsa", json!({"alg": "HS256"})), "is for algorithm `HS256`"),
            (RSA.jwk("rsa", json!({"alg": 5})), "not a text"),
            (RSA.jwk(&"k".repeat(257), json!({})), "`kid`"),
            (RSA.jwk("rsa", json!({"kid": 5})), "`kid`"),
            (RSA.jwk("rsa", json!({"kty": "oct", "k": "AAAA"})), "of type `oct`"),
            (RSA.jwk("rsa", json!({"n": "%"})), "not base64url"),
            (P256.jwk("ec", json!({"crv": "secp256k1"})), "on curve `secp256k1`"),
            (ED25519.jwk("okp", json!({"crv": "X25519"})), "on curve `X25519`"),
            (P256.jwk("ec", json!({"x": null})), "has no `x`"),
            (P256.jwk("ec", json!({"x": "AAAA"})), "wrong length"),
            (shifted, "wrong length"),
        ] {
            let said = parse(&[key]).unwrap_err();
            assert!(said.contains(why), "{why}: {said}");
        }
        let twins = [rsa.clone(), OTHER_RSA.jwk("rsa", json!({}))];
        assert_eq!(parse(&twins), Ok(1), "of two keys with one name the first counts");
        let text = json!({"keys": [rsa]}).to_string();
        let padded = format!("{text}{}", " ".repeat(MAX_KEY_SET));
        let parsed = |text: &str| Keys::parse(text.as_bytes(), &[Algorithm::RS256]).map(|_| ());
        assert_eq!((parsed(&text), parsed(&padded)), (Ok(()), Err(KeySetError::TooLarge)));
    }

    #[test]
    fn the_number_of_keys_read_from_a_set_is_bounded() {
        let numbered = |number: usize| P256.jwk(&number.to_string(), json!({}));
        let keys: Vec<Value> = (0..=MAX_KEYS).map(numbered).collect();
        assert_eq!(parse(&keys), Ok(MAX_KEYS));
        let unusable = (0..MAX_KEYS).map(|number| P256.jwk(&number.to_string(), json!({"use": "enc"})));
        for (last, is_read) in [(MAX_KEYS - 1, true), (MAX_KEYS, false)] {
            let keys: Vec<Value> = unusable.clone().take(last).chain([numbered(last)]).collect();
            let outcome = parse(&keys);
            assert_eq!(outcome.is_ok(), is_read, "key {last}: {outcome:?}");
            assert!(is_read || outcome.unwrap_err().contains("only the first 64 keys are read"));
        }
    }
}
