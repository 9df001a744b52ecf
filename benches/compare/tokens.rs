//! An issuer without a server: keys, a key set, and as many tokens as a run needs.

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize, PublicKeyComponents},
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, ParsedPublicKey,
        RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde_json::{Value, json};

use crate::Failure;

pub const AUDIENCE: &str = "https://doorward.bench";

/// The audience of the pods' tokens: Doorward as an issuer.
pub const CLUSTER_AUDIENCE: &str = AUDIENCE;
/// The issuer of the pods' tokens.
pub const CLUSTER_ISSUER: &str = "https://kubernetes.bench";

/// How many signatures are made or checked to measure their cost.
const CHECKS: u64 = 4000;

/// The keys of the issuer.
pub struct Keys {
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
}

/// The signing key.
#[derive(Clone, Copy, Debug)]
pub enum Algorithm {
    Rs256,
    Es256,
}

impl Keys {
    pub fn new() -> Result<Self, Failure> {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)?;
        Ok(Self {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048)?,
            ec: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref())
                .map_err(|e| e.to_string())?,
        })
    }

    pub fn key_set(&self) -> Value {
        let rsa = PublicKeyComponents::<Vec<u8>>::from(self.rsa.public_key());
        let point = self.ec.public_key().as_ref();
        json!({"keys": [
            {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "rsa", "n": BASE64URL.encode(rsa.n), "e": BASE64URL.encode(rsa.e)},
            {"kty": "EC", "use": "sig", "alg": "ES256", "kid": "ec", "crv": "P-256",
                "x": BASE64URL.encode(&point[1..33]), "y": BASE64URL.encode(&point[33..])},
        ]})
    }

    /// Distinct tokens of about the size that providers issue.
    pub fn tokens(&self, issuer: &str, algorithm: Algorithm, count: usize) -> Result<Vec<String>, Failure> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        (0..count)
            .map(|number| {
                let claims = json!({"iss": issuer, "sub": format!("user-{number}"), "aud": AUDIENCE, "client_id": "bench",
                    "iat": now, "exp": now + 6 * 3600, "jti": uuid::Uuid::new_v4().to_string(), "scope": "openid profile tekton:run",
                    "groups": ["developers", "team-blue", "on-call", "everybody"], "auth_time": now,
                    "email": format!("user-{number}@bench.example"), "name": "A Person With An Ordinary Name",
                    "preferred_username": format!("user-{number}"), "tenant": "0b7ad2f5-8f2b-4a52-9a2e-6e1ffb2f7d20"});
                self.sign(algorithm, "at+jwt", &claims)
            })
            .collect()
    }

    /// Tokens of the pods in the [cluster](crate::cluster).
    pub fn pod_tokens(&self, count: usize) -> Result<Vec<String>, Failure> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        (0..count)
            .map(|number| {
                let claims = json!({"iss": CLUSTER_ISSUER, "sub": "system:serviceaccount:ci:builder", "aud": [CLUSTER_AUDIENCE],
                    "iat": now, "nbf": now, "exp": now + 3600, "jti": uuid::Uuid::new_v4().to_string(),
                    "kubernetes.io": {"namespace": "ci", "node": {"name": "node", "uid": "node"},
                        "pod": {"name": format!("pod-{number}"), "uid": format!("Pod-{number}")},
                        "serviceaccount": {"name": "builder", "uid": "builder"}}});
                self.sign(Algorithm::Rs256, "JWT", &claims)
            })
            .collect()
    }

    /// Signs as an exchange does and, for a new subject token, first checks one; results as in
    /// [`Self::check_signatures`].
    pub fn exchange_signatures(&self, new: bool) -> Result<(u64, f64), Failure> {
        let (times, mut cpu_us) = if new { self.check_signatures(Algorithm::Rs256)? } else { (CHECKS, 0.0) };
        let random = SystemRandom::new();
        let before = thread_cpu_us()?;
        for _ in 0..times {
            self.ec.sign(&random, &[b'x'; 900])?;
        }
        cpu_us += thread_cpu_us()? - before;
        Ok((times, cpu_us))
    }

    /// Checks a signature repeatedly, with a parsed key as in Doorward. Returns how often, and the total CPU time in
    /// microseconds.
    pub fn check_signatures(&self, algorithm: Algorithm) -> Result<(u64, f64), Failure> {
        let token = self.tokens("https://issuer.bench", algorithm, 1)?.pop().ok_or("no token")?;
        let (signed, signature) = token.rsplit_once('.').ok_or("no signature")?;
        let signature = BASE64URL.decode(signature)?;
        let key = match algorithm {
            Algorithm::Rs256 => ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, self.rsa.public_key().as_ref()),
            Algorithm::Es256 => ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.ec.public_key().as_ref()),
        }
        .map_err(|error| error.to_string())?;
        let before = thread_cpu_us()?;
        for _ in 0..CHECKS {
            key.verify_sig(signed.as_bytes(), &signature).map_err(|error| error.to_string())?;
        }
        Ok((CHECKS, thread_cpu_us()? - before))
    }

    fn sign(&self, algorithm: Algorithm, typ: &str, claims: &Value) -> Result<String, Failure> {
        let (alg, kid) = match algorithm {
            Algorithm::Rs256 => ("RS256", "rsa"),
            Algorithm::Es256 => ("ES256", "ec"),
        };
        let header = json!({"alg": alg, "kid": kid, "typ": typ});
        let signed = format!("{}.{}", BASE64URL.encode(header.to_string()), BASE64URL.encode(claims.to_string()));
        let random = SystemRandom::new();
        let signature = match algorithm {
            Algorithm::Rs256 => {
                let mut signature = vec![0; self.rsa.public_modulus_len()];
                self.rsa.sign(&RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature)?;
                signature
            }
            Algorithm::Es256 => self.ec.sign(&random, signed.as_bytes())?.as_ref().to_vec(),
        };
        Ok(format!("{signed}.{}", BASE64URL.encode(signature)))
    }
}

/// The CPU time of this thread so far.
fn thread_cpu_us() -> Result<f64, Failure> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: f64 = text.split_whitespace().next().ok_or("schedstat is empty")?.parse()?;
    Ok(nanoseconds / 1000.0)
}
