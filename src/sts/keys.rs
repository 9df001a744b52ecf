//! The keys that sign tokens: P-256 (ES256, RFC 7518 section 3.4), or RSA (RS256, section 3.3) for verifiers that
//! accept nothing else. Where Doorward makes keys itself, at least two are published at any time, so that verifiers
//! know a successor long before it signs.

use std::sync::Arc;

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, PublicKeyComponents},
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_2048_8192_SHA256,
        RSA_PKCS1_SHA256, UnparsedPublicKey,
    },
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{clock::Timestamp, config::raw::SigningAlgorithm, sha256::sha256};

/// The `typ` of an access token (RFC 9068 section 2.1).
const TYPE: &str = "at+jwt";

/// The `typ` of an assertion for another provider (RFC 7523 section 3). It differs from that of an access token, so no
/// Doorward route accepts one.
const ASSERTION_TYPE: &str = "JWT";

/// A signing key.
pub struct SigningKey {
    /// The thumbprint of the public key (RFC 7638 section 3).
    id: Arc<str>,
    /// The encoded JOSE headers of access tokens and of assertions.
    header: String,
    assertion_header: String,
    /// The public key, as a JWK (RFC 7517).
    public: Value,
    pair: Pair,
}

enum Pair {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// Keys, one of which signs and all of which are published. Cheap to clone.
#[derive(Clone)]
pub struct SigningKeys {
    published: Arc<Published>,
    /// The time that determines which key signs.
    now: Timestamp,
}

/// A key, and the time from which it signs.
type Dated = (Arc<SigningKey>, Timestamp);

struct Published {
    keys: Vec<Dated>,
    /// The key set (RFC 7517 section 5), as served.
    set: Bytes,
}

impl SigningKey {
    /// Makes a new P-256 key. Returns it with its private part (PKCS #8), or `None` if the system has no random bytes.
    pub fn generate() -> Option<(Self, Vec<u8>)> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).ok()?;
        let der = pair.to_pkcs8v1().ok()?.as_ref().to_vec();
        Some((Self::new(Pair::Ec(pair))?, der))
    }

    /// The name of the key: its thumbprint (RFC 7638).
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Reads a key from its private part (PKCS #8): P-256, or RSA of 2048 to 8192 bits.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let pair = match EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der) {
            Ok(pair) => Pair::Ec(pair),
            Err(_) => Pair::Rsa(RsaKeyPair::from_pkcs8(der).ok()?),
        };
        Self::new(pair)
    }

    /// Reads a key in PEM.
    pub fn from_pem(pem: &[u8]) -> Option<Self> {
        Self::from_der(PrivatePkcs8KeyDer::from_pem_slice(pem).ok()?.secret_pkcs8_der())
    }

    fn new(pair: Pair) -> Option<Self> {
        let (mut public, algorithm) = pair.public()?;
        // The members that identify the key and nothing else, in their order (RFC 7638 section 3.2).
        let id = BASE64_URL_SAFE_NO_PAD.encode(sha256(&[public.to_string().as_bytes()]));
        let header =
            |kind: &str| BASE64_URL_SAFE_NO_PAD.encode(json!({"alg": algorithm, "kid": id, "typ": kind}).to_string());
        let (header, assertion_header) = (header(TYPE), header(ASSERTION_TYPE));
        let further = json!({"kid": id, "use": "sig", "alg": algorithm});
        public.as_object_mut()?.extend(further.as_object()?.clone());
        Some(Self { id: id.into(), header, assertion_header, public, pair })
    }

    /// The algorithm with which it signs.
    pub fn algorithm(&self) -> SigningAlgorithm {
        match self.pair {
            Pair::Ec(_) => SigningAlgorithm::Es256,
            Pair::Rsa(_) => SigningAlgorithm::Rs256,
        }
    }
}

impl Pair {
    /// The public key as a JWK with the required members only, and its algorithm.
    fn public(&self) -> Option<(Value, SigningAlgorithm)> {
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Self::Ec(pair) => {
                // An uncompressed point (SEC 1 section 2.3.3): 4, then both coordinates.
                let (x, y) = pair.public_key().as_ref().strip_prefix(&[4])?.split_at_checked(32)?;
                let public = json!({"crv": "P-256", "kty": "EC", "x": encode(x), "y": encode(y)});
                Some((public, SigningAlgorithm::Es256))
            }
            Self::Rsa(pair) => {
                let PublicKeyComponents { n, e } = PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                Some((json!({"e": encode(&e), "kty": "RSA", "n": encode(&n)}), SigningAlgorithm::Rs256))
            }
        }
    }

    /// `None` if the system has no random bytes.
    fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        match self {
            Self::Ec(pair) => Some(pair.sign(&random, message).ok()?.as_ref().to_vec()),
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).ok()?;
                Some(signature)
            }
        }
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let checked = match self {
            Self::Ec(pair) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, pair.public_key().as_ref()).verify(message, signature)
            }
            Self::Rsa(pair) => UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, pair.public_key().as_ref())
                .verify(message, signature),
        };
        checked.is_ok()
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.id)
    }
}

impl SigningKeys {
    /// The first of the keys signs. `keys` must not be empty.
    pub fn new(keys: Vec<Arc<SigningKey>>) -> Option<Self> {
        Self::dated(keys.into_iter().map(|key| (key, Timestamp::default())).collect())
    }

    /// Among keys of one algorithm, the newest whose time has come signs ([`Self::at`]); of equal ones, the first.
    /// `keys` must not be empty.
    pub fn dated(keys: Vec<Dated>) -> Option<Self> {
        keys.first()?;
        let public: Vec<_> = keys.iter().map(|(key, _)| &key.public).collect();
        let set = json!({"keys": public}).to_string();
        Some(Self { published: Arc::new(Published { keys, set: set.into() }), now: Timestamp::default() })
    }

    /// The keys as of `now`, which determines which of them signs.
    pub fn at(self, now: Timestamp) -> Self {
        Self { now, ..self }
    }

    /// These keys, followed by others that no longer sign.
    pub fn followed_by(&self, others: &Self) -> Self {
        let own = &self.published.keys;
        let is_new = |key: &&Dated| !own.iter().any(|(own, _)| own.id == key.0.id);
        let others = others.published.keys.iter().filter(is_new);
        let all = own.iter().cloned().chain(others.map(|(key, _)| (Arc::clone(key), Timestamp::MAX)));
        Self::dated(all.collect()).unwrap_or_else(|| self.clone()).at(self.now)
    }

    /// The key that signs with this algorithm. Without one, the algorithm is that of the first key in the list whose
    /// algorithm has a key in force: verifiers may accept nothing else, whenever the time of a key further back comes.
    /// Before the time of all of them, the key that begins first signs.
    fn signer(&self, algorithm: Option<SigningAlgorithm>) -> Option<&SigningKey> {
        let keys = &self.published.keys;
        let has_begun = |algorithm: &SigningAlgorithm| {
            keys.iter().any(|(key, from)| key.algorithm() == *algorithm && *from <= self.now)
        };
        let in_order = || keys.iter().map(|(key, _)| key.algorithm());
        let algorithm = algorithm.or_else(|| in_order().find(has_begun)).or_else(|| in_order().next())?;
        let all = || keys.iter().filter(|(key, _)| key.algorithm() == algorithm);
        // `max_by_key` returns the last of equal ones.
        let begun = all().rev().filter(|(_, from)| *from <= self.now).max_by_key(|(_, from)| *from);
        begun.or_else(|| all().min_by_key(|(_, from)| *from)).map(|(key, _)| &**key)
    }

    /// The key that signs access tokens, if others lack it.
    pub fn signer_missing_from(&self, others: &Self) -> Option<Self> {
        let id = self.signer(None)?.id();
        let find =
            |keys: &Self| keys.published.keys.iter().find(|(key, _)| key.id() == id).map(|(key, _)| Arc::clone(key));
        let signer = find(self)?;
        if find(others).is_none() { Self::new(vec![signer]) } else { None }
    }

    /// The names of all published keys, and whether each is the one that signs access tokens.
    pub fn names(&self) -> impl Iterator<Item = (&str, bool)> {
        let signer = self.signer(None).map(SigningKey::id);
        self.published.keys.iter().map(move |(key, _)| (key.id(), signer == Some(key.id())))
    }

    /// The key set (RFC 7517 section 5) as JSON.
    pub fn set(&self) -> &Bytes {
        &self.published.set
    }

    /// The claims of a token that one of these keys has signed. Their time and audience are not checked.
    pub fn verify(&self, token: &str) -> Option<Map<String, Value>> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        // The header must equal, byte for byte, what this key writes: there is nothing to interpret in it.
        let (key, _) = self.published.keys.iter().find(|(key, _)| key.header == header)?;
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).ok()?;
        if !key.pair.verify(message.as_bytes(), &signature) {
            return None;
        }
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    }

    /// Signs an access token: a JWS in compact form (RFC 7515 section 7.1). Returns `None` if the system has no random
    /// bytes, or `claims` cannot be serialised.
    pub fn sign<T: Serialize>(&self, claims: &T) -> Option<String> {
        let key = self.signer(None)?;
        key.sign(&key.header, claims)
    }

    /// Signs claims for another provider, which are no access token of Doorward's, with a key of this algorithm;
    /// without one, with the key of access tokens.
    pub fn sign_assertion<T: Serialize>(&self, algorithm: Option<SigningAlgorithm>, claims: &T) -> Option<String> {
        let key = self.signer(algorithm)?;
        key.sign(&key.assertion_header, claims)
    }

    /// The default algorithm of assertions.
    pub fn algorithm(&self) -> Option<SigningAlgorithm> {
        self.signer(None).map(SigningKey::algorithm)
    }

    /// The algorithms of all published keys, including those that sign later.
    pub fn algorithms(&self) -> Vec<SigningAlgorithm> {
        let all = [SigningAlgorithm::Es256, SigningAlgorithm::Rs256];
        all.into_iter().filter(|algorithm| self.can_sign(*algorithm)).collect()
    }

    /// Whether one of them has this algorithm.
    pub fn can_sign(&self, algorithm: SigningAlgorithm) -> bool {
        self.published.keys.iter().any(|(key, _)| key.algorithm() == algorithm)
    }
}

impl SigningKey {
    fn sign<T: Serialize>(&self, header: &str, claims: &T) -> Option<String> {
        let mut token = format!("{header}.");
        BASE64_URL_SAFE_NO_PAD.encode_string(serde_json::to_vec(claims).ok()?, &mut token);
        let signature = self.pair.sign(token.as_bytes())?;
        token.push('.');
        BASE64_URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Some(token)
    }
}

impl std::fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.published.keys.iter().map(|(key, _)| &key.id)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::{
        encoding::{AsDer, Pkcs8V1Der},
        rsa::KeySize,
    };
    use base64::prelude::BASE64_STANDARD;
    use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};

    fn key() -> Arc<SigningKey> {
        Arc::new(SigningKey::generate().unwrap().0)
    }

    /// Another library's reading of a signed token, with the published set alone.
    fn read(set: &[u8], token: &str, algorithm: Algorithm, kind: &str) -> Option<Value> {
        let set: JwkSet = serde_json::from_slice(set).unwrap();
        let header = jsonwebtoken::decode_header(token).unwrap();
        assert_eq!((header.alg, header.typ.as_deref()), (algorithm, Some(kind)));
        let key = DecodingKey::from_jwk(set.find(&header.kid.unwrap())?).unwrap();
        let mut validation = Validation::new(algorithm);
        validation.validate_exp = false;
        validation.required_spec_claims.clear();
        Some(jsonwebtoken::decode(token, &key, &validation).ok()?.claims)
    }

    fn read_ours(set: &[u8], token: &str) -> Option<Value> {
        read(set, token, Algorithm::ES256, "at+jwt")
    }

    fn rsa(bits: KeySize) -> Option<SigningKey> {
        let der: Pkcs8V1Der<'_> = RsaKeyPair::generate(bits).unwrap().as_der().unwrap();
        SigningKey::from_der(der.as_ref())
    }

    #[test]
    fn a_provider_that_accepts_only_rs256_gets_assertions_of_the_first_rsa_key() {
        let (ec, rsa) = (key(), Arc::new(rsa(KeySize::Rsa2048).unwrap()));
        let keys = SigningKeys::new(vec![Arc::clone(&ec), Arc::clone(&rsa)]).unwrap();
        let claims = json!({"sub": "alice"});
        assert!(read_ours(keys.set(), &keys.sign(&claims).unwrap()).is_some());
        for (asked, signed) in [
            (None, Algorithm::ES256),
            (Some(SigningAlgorithm::Es256), Algorithm::ES256),
            (Some(SigningAlgorithm::Rs256), Algorithm::RS256),
        ] {
            let assertion = keys.sign_assertion(asked, &claims).unwrap();
            assert_eq!(read(keys.set(), &assertion, signed, "JWT").unwrap()["sub"], "alice", "{asked:?}");
        }
        let ec = SigningKeys::new(vec![ec]).unwrap();
        assert!(!ec.can_sign(SigningAlgorithm::Rs256));
        assert!(ec.sign_assertion(Some(SigningAlgorithm::Rs256), &claims).is_none());
        let first = SigningKeys::new(vec![rsa]).unwrap();
        let token = first.sign(&claims).unwrap();
        assert!(read(first.set(), &token, Algorithm::RS256, "at+jwt").is_some());
        assert_eq!(first.verify(&token).unwrap()["sub"], "alice");
        assert!(first.verify(&format!("{token}A")).is_none());
    }

    /// A key of 1024 bits, made for this test.
    const SHORT: &str = "\
        MIICdwIBADANBgkqhkiG9w0BAQEFAASCAmEwggJdAgEAAoGBALerYK1c6NfZ6JmqZbvHCsKgqfLUzzDbOA5e3npnGVcKWjmOV6BSSH44O6aeDc+e\
        AGp511eal8WHLABupkqYElaR6wL1xgJ2c/76wyPgXcA/5+/fZ5ZAfNBFlQTLuoNUKPBOa+CIb8DujKNlcSYPuaQf/RY3KYg41tpNlxKIcOBbAgMB\
        AAECgYA8zy7I9xPYMztBdRsNmo7DdXIPBco7QLlEeMBsAipvmOvaVnhIijWaJIALYBTugj9dAU38oSBSs7grxHamB8c59oWxP+7/lMbKQ6tRJI89\
        vayC/FsjngV1w+JE4/qg539XbkH3GPCc2esBKLGYPQ8t4+qz7m9u3DO0kxSQx1RhoQJBAOL5MyGo1OZb8MaVyo/9fEps8K7PbFEk36S5ivE0MJSA\
        AXyFfvjmlp8VYST/fu8dCVBHnjmrtxHTO7zCt7yq9KMCQQDPKHbfplnbPrHLP3AcGt07Xui3MCx4PRDefcnFw+x0qrcc67i3TLCFmSeLPIaafsp8\
        vG53opzLtki2PYbOEmjpAkEAgxCLqiAn8G2e981/ju49W2zU/tzgG2tDiYdq6CXO97GDKjicPXZJ+8sIsainz8PgoO76OyshJ7XmhPWby+KcKQJB\
        AIbHbef+5DF37dct0/QFKnDpRAGDjzs/h80qC+/mk94n//EKEGj5tVOGnKrDW1QDMBzNwBWIL/l+BHrFNwK2CZkCQEZ2dGoDfU7L+jgSxPgRIiMV\
        ze55q5hlpaSxEBt3QLZxNj8/hnWV1EgZbRmC/K8jVt161J2KIRNS/cdrgHt5T5o=";

    #[test]
    fn an_rsa_key_that_is_shorter_than_2048_bits_signs_nothing() {
        let der = BASE64_STANDARD.decode(SHORT).unwrap();
        assert!(SigningKey::from_der(&der).is_none());
        assert!(rsa(KeySize::Rsa2048).is_some(), "the twin");
    }

    /// RFC 7638 section 3.1.
    #[test]
    fn an_rsa_key_is_named_by_its_thumbprint() {
        let key = rsa(KeySize::Rsa2048).unwrap();
        let members: Vec<_> = key.public.as_object().unwrap().keys().cloned().collect();
        assert_eq!(members, ["alg", "e", "kid", "kty", "n", "use"]);
        let canonical = format!(r#"{{"e":{},"kty":"RSA","n":{}}}"#, key.public["e"], key.public["n"]);
        assert_eq!(*key.id, *BASE64_URL_SAFE_NO_PAD.encode(sha256(&[canonical.as_bytes()])));
    }

    #[test]
    fn the_first_key_signs_and_the_published_set_verifies() {
        let (one, other) = (key(), key());
        let both = SigningKeys::new(vec![Arc::clone(&one), Arc::clone(&other)]).unwrap();
        let token = both.sign(&json!({"sub": "alice"})).unwrap();
        assert_eq!(read_ours(both.set(), &token).unwrap()["sub"], "alice");
        let swapped = SigningKeys::new(vec![other, one]).unwrap();
        assert!(read_ours(swapped.set(), &token).is_some(), "a key that no longer signs is still published");
        assert_eq!(swapped.verify(&token).unwrap()["sub"], "alice");
        assert!(SigningKeys::new(vec![key()]).unwrap().verify(&token).is_none(), "another key");
        for changed in [format!("{token}A"), token.replace("ey", "fy"), token.replacen('.', "..", 1), String::new()] {
            assert!(swapped.verify(&changed).is_none(), "{changed}");
        }
        assert!(read_ours(SigningKeys::new(vec![key()]).unwrap().set(), &token).is_none());
    }

    #[test]
    fn among_dated_keys_the_newest_active_one_signs_and_all_are_published() {
        let at = Timestamp::from_secs;
        let (first, second, third) = (key(), key(), key());
        let dated = |keys: &[(&Arc<SigningKey>, i64)]| {
            SigningKeys::dated(keys.iter().map(|(key, from)| (Arc::clone(key), at(*from))).collect()).unwrap()
        };
        let signer = |keys: &SigningKeys, now| keys.clone().at(at(now)).signer(None).unwrap().id.clone();
        let keys = dated(&[(&first, 0), (&third, 200), (&second, 100)]);
        for (now, key) in [(50, &first), (100, &second), (199, &second), (200, &third), (900, &third)] {
            assert_eq!(signer(&keys, now), key.id, "{now}");
            let token = keys.clone().at(at(now)).sign(&json!({"sub": "alice"})).unwrap();
            assert!(keys.verify(&token).is_some(), "{now}: as any replica whose clock differs");
        }
        assert_eq!(signer(&dated(&[(&second, 200), (&first, 100)]), 50), first.id, "before the time of any");
        assert_eq!(signer(&dated(&[(&second, 100), (&first, 100)]), 100), second.id, "of two at a time the first");
        // Keys made before the configuration had keys sign nothing.
        let made = SigningKeys::new(vec![key()]).unwrap();
        assert_eq!(signer(&dated(&[(&first, 100)]).followed_by(&made), 50), first.id);
    }

    /// From the time of a new RSA key on, it signed all access tokens, which registries and others that accept only
    /// ES256 refused.
    #[test]
    fn the_date_of_a_key_of_another_algorithm_does_not_affect_access_tokens() {
        let at = Timestamp::from_secs;
        let (first, second) = (key(), key());
        let [old, new] = [(); 2].map(|()| Arc::new(rsa(KeySize::Rsa2048).unwrap()));
        let all = [(&first, 0), (&old, 0), (&new, 100), (&second, 200)].map(|(key, from)| (Arc::clone(key), at(from)));
        let keys = SigningKeys::dated(Vec::from(all)).unwrap();
        for (now, tokens, assertions) in [(99, &first, &old), (100, &first, &new), (200, &second, &new)] {
            let keys = keys.clone().at(at(now));
            let names: Vec<_> = keys.names().filter(|(_, signs)| *signs).map(|(id, _)| id.to_owned()).collect();
            assert_eq!(names, [tokens.id()], "{now}");
            for (asked, key) in
                [(None, tokens), (Some(SigningAlgorithm::Es256), tokens), (Some(SigningAlgorithm::Rs256), assertions)]
            {
                assert_eq!(keys.signer(asked).unwrap().id(), key.id(), "{now} {asked:?}");
            }
            let token = keys.sign(&json!({"sub": "alice"})).unwrap();
            assert!(read_ours(keys.set(), &token).is_some(), "{now}");
        }
        // Also before its time, if there is no other.
        let keys = SigningKeys::dated(vec![(first, at(0)), (new, at(100))]).unwrap().at(at(50));
        let assertion = keys.sign_assertion(Some(SigningAlgorithm::Rs256), &json!({})).unwrap();
        assert!(read(keys.set(), &assertion, Algorithm::RS256, "JWT").is_some());
    }

    /// Regression: a new first key signed at once, before verifiers had read the key set that contains it.
    #[test]
    fn a_first_key_of_another_algorithm_signs_nothing_before_its_time() {
        let at = Timestamp::from_secs;
        let (one, other) = (key(), key());
        let rsa = Arc::new(rsa(KeySize::Rsa2048).unwrap());
        let to_change = [(&rsa, 100), (&one, 0)];
        let begun_behind = [(&other, 200), (&rsa, 0), (&one, 0)];
        let behind = [(&one, 0), (&rsa, 100)];
        for (keys, signers) in [
            (&to_change[..], [(99, &one), (100, &rsa), (900, &rsa)]),
            (&begun_behind[..], [(0, &one), (199, &one), (200, &other)]),
            (&behind[..], [(99, &one), (100, &one), (900, &one)]),
            // None has begun yet.
            (&[(&rsa, 200), (&one, 100)][..], [(99, &rsa), (100, &one), (200, &rsa)]),
        ] {
            let keys =
                SigningKeys::dated(keys.iter().map(|(key, from)| (Arc::clone(key), at(*from))).collect()).unwrap();
            for (now, signer) in signers {
                assert_eq!(keys.clone().at(at(now)).signer(None).unwrap().id, signer.id, "{keys:?} {now}");
            }
        }
    }

    #[test]
    fn no_private_key_is_published() {
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
