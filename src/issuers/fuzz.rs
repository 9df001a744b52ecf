//! Fuzz bodies for tokens and key sets; see `crate::fuzz`.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "what does not hold here is a finding")]

use std::{sync::LazyLock, time::Duration};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};

use super::{
    checks::{AccessTokenChecks, MAX_SUBJECT},
    jwt::{MAX_TOKEN, Unverified, is_jwt_shaped},
    keys::{Found, KeySetError, Keys, MAX_KEY_SET, MAX_KEYS},
};
use crate::{clock::Timestamp, config::raw::Algorithm};

const NOW: i64 = 1_800_000_000;
const SKEW: i64 = 30;
const DAY: i64 = 86_400;

const ALL: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// The key pair for signatures.
static PAIR: LazyLock<Ed25519KeyPair> = LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap());

/// The key of `PAIR`, and the one of RFC 7515 appendix A.3, which cannot sign here.
static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let set = json!({"keys": [
        {"kty": "OKP", "crv": "Ed25519", "kid": "ours", "x": b64(PAIR.public_key())},
        {"kty": "EC", "crv": "P-256", "kid": "theirs", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
    ]});
    Keys::parse(set.to_string().as_bytes(), &ALL).unwrap()
});

static CHECKS: LazyLock<AccessTokenChecks> = LazyLock::new(|| AccessTokenChecks {
    issuer: "https://issuer.test".into(),
    audiences: ["doorward".into()].into(),
    algorithms: ALL.into(),
    token_types: ["at+jwt".into(), "application/at+jwt".into()].into(),
    required_claims: [].into(),
    profile_claims: ["client_id", "jti"].into(),
    skew: Duration::from_secs(30),
    max_lifetime: Duration::from_secs(86_400),
    tenants: None,
    other_issuer: None,
    client_is_audience: false,
    like_id_tokens: false,
    id_tokens_for_project: false,
    marks: &[],
    longest_subject: MAX_SUBJECT,
});

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The input is a compact token or, if it has a line break, the texts of a header and a payload, to be encoded and
/// signed.
///
/// - A parsed token has three parts, each in canonical base64url, and JSON without repeated members, with the values
///   that any other parser reads. Its algorithm is supported. It is never treated as opaque.
/// - Only the key that signed it verifies it, and a made-up signature is never valid.
/// - Claims that pass are those of a current bearer token of this issuer for this audience.
pub fn jwt(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Some(token) = check_token(text) {
        assert!(!KEYS.verify_any(&token), "nobody signed {text}");
    }
    let Some((header, payload)) = text.split_once('\n') else { return };
    let signed = format!("{}.{}", b64(header), b64(payload));
    for nobodys in [&[0; 64][..], &[], &[0xff; 64]] {
        let token = format!("{signed}.{}", b64(nobodys));
        if let Some(token) = check_token(&token) {
            assert!(!KEYS.verify_any(&token), "nobody signed {text}");
        }
    }
    let signature = PAIR.sign(signed.as_bytes());
    if let Some(token) = check_token(&format!("{signed}.{}", b64(signature))) {
        let by_ours =
            matches!(KEYS.find(Some("ours"), token.header.algorithm), Found::One(key) if token.check_signature(key));
        assert_eq!(by_ours, token.header.algorithm == Algorithm::EdDSA);
        assert!(
            !matches!(KEYS.find(Some("theirs"), token.header.algorithm), Found::One(key) if token.check_signature(key))
        );
    }
}

impl Keys {
    fn verify_any(&self, token: &Unverified<'_>) -> bool {
        self.iter().any(|key| token.check_signature(key))
    }
}

fn check_token(text: &str) -> Option<Unverified<'_>> {
    let token = Unverified::parse(text).ok()?;
    assert!(text.len() <= MAX_TOKEN);
    assert!(is_jwt_shaped(text), "would be sent to an issuer as an opaque token");
    let parts: Vec<&str> = text.split('.').collect();
    assert_eq!(parts.len(), 3);
    let decoded: Vec<Vec<u8>> = parts.iter().map(|part| URL_SAFE_NO_PAD.decode(part).unwrap()).collect();
    for (part, bytes) in parts.iter().zip(&decoded) {
        assert_eq!(b64(bytes), *part, "has another form");
    }
    let header = only_once(&decoded[0]);
    assert_eq!(token.claims, only_once(&decoded[1]));
    assert_eq!(header["alg"], format!("{:?}", token.header.algorithm));
    assert_eq!(header.get("kid").map(|kid| kid.as_str().unwrap()), token.header.kid.as_deref());
    for member in ["crit", "b64", "zip", "jwk", "x5c", "enc"] {
        assert!(!header.contains_key(member), "{member} changes what was signed");
    }
    if CHECKS.check_header(&token).is_ok()
        && let Ok(checked) = CHECKS.check_claims(&token, Timestamp::from_secs(NOW))
    {
        assert!(
            ["at+jwt", "application/at+jwt"].contains(&&*token.header.typ.as_deref().unwrap().to_ascii_lowercase())
        );
        check_claims(&token.claims, &checked.subject);
        for name in ["client_id", "jti"] {
            assert!(!token.claims[name].as_str().unwrap().is_empty(), "{name}");
        }
    }
    Some(token)
}

fn check_claims(claims: &Map<String, Value>, subject: &str) {
    assert_eq!(claims["iss"], "https://issuer.test");
    assert_eq!(claims["sub"], subject);
    assert!((1..=MAX_SUBJECT).contains(&subject.len()));
    match &claims["aud"] {
        Value::String(audience) => assert_eq!(audience, "doorward"),
        Value::Array(audiences) => {
            assert!(audiences.iter().all(Value::is_string) && audiences.contains(&"doorward".into()));
        }
        other => panic!("{other} is no audience"),
    }
    let seconds = |name: &str| claims.get(name).map(|value| value.as_f64().unwrap());
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let (now, skew, day) = (NOW as f64, SKEW as f64, DAY as f64);
    let (expires, issued) = (seconds("exp").unwrap(), seconds("iat").unwrap());
    assert!(expires + skew > now, "is over");
    assert!(issued < now + skew + 1.0 && seconds("nbf").is_none_or(|from| from < now + skew + 1.0), "has not begun");
    assert!(expires - issued <= day + 1.0, "lives too long");
    for member in ["cnf", "events", "token_introspection"] {
        assert!(!claims.contains_key(member), "{member} says that it is no bearer token");
    }
}

/// The value that `serde_json` reads from a text without repeated members.
fn only_once(text: &[u8]) -> Map<String, Value> {
    /// Reads any JSON, and fails at a repeated member.
    struct OnlyOnce;
    impl<'de> serde::Deserialize<'de> for OnlyOnce {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_any(Self)
        }
    }
    impl<'de> serde::de::Visitor<'de> for OnlyOnce {
        type Value = Self;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("JSON")
        }
        fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
            Ok(Self)
        }
        fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
            Ok(Self)
        }
        fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
            Ok(Self)
        }
        fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
            Ok(Self)
        }
        fn visit_str<E>(self, _: &str) -> Result<Self, E> {
            Ok(Self)
        }
        fn visit_unit<E>(self) -> Result<Self, E> {
            Ok(Self)
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
            while items.next_element::<Self>()?.is_some() {}
            Ok(Self)
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut members: A) -> Result<Self, A::Error> {
            let mut names = std::collections::HashSet::new();
            while let Some((name, Self)) = members.next_entry::<String, Self>()? {
                if !names.insert(name) {
                    return Err(serde::de::Error::custom("a member stands twice"));
                }
            }
            Ok(Self)
        }
    }
    let OnlyOnce = serde_json::from_slice(text).unwrap();
    serde_json::from_slice(text).unwrap()
}

/// A JWK set.
///
/// - However large or odd the input, the result is small: at most [`MAX_KEYS`] keys, only for the allowed algorithms,
///   and no two with the same name and algorithm.
/// - Weak keys are skipped: no accepted key verifies a made-up signature, and no accepted RSA key has a modulus or
///   exponent that is known to be weak.
/// - The same document gives the same fingerprint.
pub fn jwks(bytes: &[u8]) {
    let keys = match Keys::parse(bytes, &ALL) {
        Ok(keys) => keys,
        Err(error) => {
            assert_eq!(matches!(error, KeySetError::TooLarge), bytes.len() > MAX_KEY_SET);
            assert!(error.to_string().len() < 32 << 10, "a long answer");
            return;
        }
    };
    assert!((1..=MAX_KEYS).contains(&keys.count()));
    assert!(keys.skipped().len() <= MAX_KEYS + 1 && keys.skipped().iter().all(|why| why.len() < 400));
    assert_eq!(Keys::parse(bytes, &ALL).unwrap().fingerprint(), keys.fingerprint());
    for algorithm in ALL {
        if let Ok(some) = Keys::parse(bytes, &[algorithm]) {
            assert!(some.iter().all(|key| key.algorithm() == algorithm), "taken for what is not allowed");
        }
    }
    for (index, key) in keys.iter().enumerate() {
        assert!(
            key.kid().is_none()
                || !keys
                    .iter()
                    .skip(index + 1)
                    .any(|other| (other.kid(), other.algorithm()) == (key.kid(), key.algorithm())),
            "two keys of one name"
        );
        check_signs_for_somebody(key);
    }
    let document: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let all = document.get("keys").and_then(Value::as_array).into_iter().flatten().take(MAX_KEYS);
    for jwk in all.filter(|jwk| is_weak_rsa(jwk)) {
        let alone = json!({"keys": [jwk]}).to_string();
        assert!(Keys::parse(alone.as_bytes(), &ALL).is_err(), "weak: {jwk}");
    }
}

/// Signatures that anybody can write down: zeros, ones, and the neutral point of Ed25519 with the scalar 0, which is
/// valid for every message, or for some, under a key of small order.
fn check_signs_for_somebody(key: &super::keys::PublicKey) {
    let mut neutral = [0; 64];
    neutral[0] = 1;
    let lengths: &[usize] = if key.algorithm() == Algorithm::EdDSA { &[64] } else { &[64, 96, 256] };
    for length in lengths {
        assert!(!key.verify(b"message", &vec![0; *length]) && !key.verify(b"message", &vec![1; *length]));
    }
    if key.algorithm() == Algorithm::EdDSA {
        for message in 0..24_u8 {
            assert!(!key.verify(&[message], &neutral), "a key of small order");
        }
    }
}

fn is_weak_rsa(jwk: &Value) -> bool {
    let number = |name: &str| {
        let bytes = URL_SAFE_NO_PAD.decode(jwk.get(name)?.as_str()?).ok()?;
        Some(bytes.into_iter().skip_while(|byte| *byte == 0).collect::<Vec<u8>>())
    };
    if jwk.get("kty").is_none_or(|kty| kty != "RSA") {
        return false;
    }
    let (Some(modulus), Some(exponent)) = (number("n"), number("e")) else { return true };
    let odd = |bytes: &[u8]| bytes.last().is_some_and(|last| last % 2 == 1);
    modulus.len() < 256 || !odd(&modulus) || !odd(&exponent) || matches!(exponent[..], [_] | [_, _])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The statement about claims that pass would be untested if the checks required a claim that no input has.
    #[test]
    fn an_input_of_the_corpus_passes_all_checks() {
        let (header, payload) = include_str!("../../fuzz/corpus/jwt/seed-00").split_once('\n').unwrap();
        let text = format!("{}.{}.{}", b64(header), b64(payload), b64([0; 64]));
        let token = Unverified::parse(&text).unwrap();
        CHECKS.check_header(&token).unwrap();
        CHECKS.check_claims(&token, Timestamp::from_secs(NOW)).unwrap();
    }
}
