//! Checks of an ID token against this login, beyond those that every token must pass.

use std::time::Duration;

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, SHA384, SHA512, digest},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use super::VerifiedIdToken;
use crate::{clock::Timestamp, config::raw::Algorithm};

/// The allowed difference between the provider's clock and ours.
pub const SKEW: Duration = Duration::from_secs(60);

/// The maximum age of the token of a login that has just ended.
const MAX_AGE: Duration = Duration::from_secs(600);

/// The expected values.
#[derive(Clone, Copy)]
pub struct Expected<'a> {
    pub issuer: &'a str,
    pub client: &'a str,
    pub nonce: Nonce<'a>,
    pub access_token: &'a str,
    /// The maximum time since the person authenticated; `None` after a refresh.
    pub max_age: Option<Duration>,
    /// The accepted values of `acr`; empty: any.
    pub acr_values: &'a [String],
    pub now: Timestamp,
}

/// The expected nonce.
#[derive(Clone, Copy)]
pub enum Nonce<'a> {
    /// After a login: this one.
    Required(&'a str),
    /// After a refresh: that of the login, if the token has one at all (OpenID Connect Core 1.0 section 12.2).
    IfPresent(Option<&'a str>),
}

/// Why an ID token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("its issuer is another one")]
    Issuer,
    #[error("it is not for this client (`aud`)")]
    Audience,
    #[error("it was issued to another client (`azp`)")]
    AuthorizedParty,
    #[error("it has several audiences and does not say to whom it was issued (`azp`)")]
    AuthorizedPartyMissing,
    #[error("its nonce is not the one of this login")]
    Nonce,
    #[error("it does not say when it was issued (`iat`)")]
    IssuedAtMissing,
    #[error("its issue time is not now (`iat`); compare the clocks of the provider and of Doorward")]
    IssuedAt,
    #[error("it has expired (`exp`); compare the clocks of the provider and of Doorward")]
    Expired,
    #[error("the person authenticated longer ago than `max_age` allows, or it does not say when (`auth_time`)")]
    AuthenticatedAt,
    #[error("the person authenticated in another way than `acr_values` asks for (`acr`)")]
    AuthenticationContext,
    #[error("it belongs to another access token (`at_hash`)")]
    AccessToken,
}

/// Makes the checks of OpenID Connect Core 1.0 sections 3.1.3.7 (from step 3 on) and 3.1.3.8.
pub fn check(token: &VerifiedIdToken, expected: Expected<'_>) -> Result<(), Mismatch> {
    let claims = &token.claims;
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    let time =
        |name: &str| claims.get(name).and_then(Value::as_f64).map(|seconds| Timestamp::from_secs(seconds as i64));

    if text("iss") != Some(expected.issuer) {
        return Err(Mismatch::Issuer);
    }
    check_client(claims, expected.client)?;
    let nonce = match (expected.nonce, claims.contains_key("nonce")) {
        (Nonce::IfPresent(_), false) => None,
        (Nonce::Required(nonce), _) | (Nonce::IfPresent(Some(nonce)), true) => Some(nonce),
        (Nonce::IfPresent(None), true) => return Err(Mismatch::Nonce),
    };
    if let Some(nonce) = nonce {
        let came = text("nonce").ok_or(Mismatch::Nonce)?;
        verify_slices_are_equal(came.as_bytes(), nonce.as_bytes()).map_err(|_| Mismatch::Nonce)?;
    }
    let issued = time("iat").ok_or(Mismatch::IssuedAtMissing)?;
    if issued > expected.now + SKEW || issued + MAX_AGE + SKEW < expected.now {
        return Err(Mismatch::IssuedAt);
    }
    if time("exp").is_none_or(|end| end + SKEW <= expected.now) {
        return Err(Mismatch::Expired);
    }
    if let Some(max_age) = expected.max_age
        && time("auth_time").is_none_or(|at| at + max_age + SKEW < expected.now)
    {
        return Err(Mismatch::AuthenticatedAt);
    }
    let acr = text("acr");
    if !expected.acr_values.is_empty() && !expected.acr_values.iter().any(|asked| Some(&**asked) == acr) {
        return Err(Mismatch::AuthenticationContext);
    }
    match claims.get("at_hash") {
        None => Ok(()),
        Some(hash) if hash.as_str() == Some(&half_hash(token.algorithm, expected.access_token)) => Ok(()),
        Some(_) => Err(Mismatch::AccessToken),
    }
}

/// Checks that it was issued to this client (OpenID Connect Core 1.0 section 3.1.3.7, steps 3 to 5).
pub fn check_client(claims: &Map<String, Value>, client: &str) -> Result<(), Mismatch> {
    let (ours, several) = match claims.get("aud") {
        Some(Value::String(audience)) => (audience == client, false),
        Some(Value::Array(audiences)) => {
            (audiences.iter().any(|audience| audience.as_str() == Some(client)), audiences.len() > 1)
        }
        _ => (false, false),
    };
    if !ours {
        return Err(Mismatch::Audience);
    }
    match claims.get("azp") {
        Some(party) if party.as_str() == Some(client) => Ok(()),
        Some(_) => Err(Mismatch::AuthorizedParty),
        None if several => Err(Mismatch::AuthorizedPartyMissing),
        None => Ok(()),
    }
}

/// The left half of the hash of a signature algorithm, as in `at_hash` (section 3.1.3.6).
fn half_hash(algorithm: Algorithm, text: &str) -> String {
    let hash = match algorithm {
        Algorithm::RS256 | Algorithm::PS256 | Algorithm::ES256 => &SHA256,
        Algorithm::RS384 | Algorithm::PS384 | Algorithm::ES384 => &SHA384,
        Algorithm::RS512 | Algorithm::PS512 | Algorithm::EdDSA => &SHA512,
    };
    let whole = digest(hash, text.as_bytes());
    let (left, _) = whole.as_ref().split_at(whole.as_ref().len() / 2);
    BASE64_URL_SAFE_NO_PAD.encode(left)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_700_000_000;
    const ACCESS: &str = "jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y";

    fn result(patch: &Value) -> Result<(), Mismatch> {
        asking(patch, None, &[])
    }

    fn asking(patch: &Value, max_age: Option<Duration>, acr_values: &[String]) -> Result<(), Mismatch> {
        let mut claims = json!({
            "iss": "https://idp.example", "aud": "doorward", "sub": "alice", "nonce": "n-1",
            "iat": NOW, "exp": NOW + 300, "at_hash": "77QmUPtjPfzWtF2AnpK9RQ",
        });
        for (name, value) in patch.as_object().unwrap() {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
                value => claims[name] = value.clone(),
            }
        }
        let claims = Arc::new(claims.as_object().unwrap().clone());
        let expected = Expected {
            issuer: "https://idp.example",
            client: "doorward",
            nonce: Nonce::Required("n-1"),
            access_token: ACCESS,
            max_age,
            acr_values,
            now: Timestamp::from_secs(NOW),
        };
        check(&VerifiedIdToken { claims, algorithm: Algorithm::RS256 }, expected)
    }

    #[test]
    fn the_requested_authentication_is_verified() {
        let hour = Some(Duration::from_secs(3600));
        for (row, auth_time, expected) in [
            ("oauth-section:2.10 recent", json!(NOW - 3660), Ok(())),
            ("oauth-section:2.10 long ago", json!(NOW - 3661), Err(Mismatch::AuthenticatedAt)),
            ("oauth-section:2.10 not told", json!(null), Err(Mismatch::AuthenticatedAt)),
            ("oauth-section:2.10 text", json!("now"), Err(Mismatch::AuthenticatedAt)),
        ] {
            assert_eq!(asking(&json!({"auth_time": auth_time}), hour, &[]), expected, "{row}");
            assert_eq!(asking(&json!({"auth_time": auth_time}), None, &[]), Ok(()), "{row}, not asked");
        }
        let asked = ["gold".to_owned(), "silver".to_owned()];
        for (row, acr, expected) in [
            ("oauth-section:2.11 one of them", json!("silver"), Ok(())),
            ("oauth-section:2.11 another", json!("bronze"), Err(Mismatch::AuthenticationContext)),
            ("oauth-section:2.11 none", json!(null), Err(Mismatch::AuthenticationContext)),
            ("oauth-section:2.11 a list", json!(["gold"]), Err(Mismatch::AuthenticationContext)),
        ] {
            assert_eq!(asking(&json!({"acr": acr}), None, &asked), expected, "{row}");
        }
    }

    /// Rows of `oauth` section 2 by line; `null` takes a claim away.
    #[test]
    fn a_token_of_another_login_is_refused() {
        let rows = [
            ("good", json!({}), Ok(())),
            ("oauth-section:2.4 other issuer", json!({"iss": "https://idp.example/"}), Err(Mismatch::Issuer)),
            ("oauth-section:2.4 array", json!({"iss": ["https://idp.example"]}), Err(Mismatch::Issuer)),
            ("oauth-section:2.5 other client", json!({"aud": "other"}), Err(Mismatch::Audience)),
            ("oauth-section:2.5 none", json!({"aud": null}), Err(Mismatch::Audience)),
            ("oauth-section:2.5 list of one", json!({"aud": ["doorward"]}), Ok(())),
            (
                "oauth-section:2.6 several, no azp",
                json!({"aud": ["doorward", "x"]}),
                Err(Mismatch::AuthorizedPartyMissing),
            ),
            ("oauth-section:2.6 several, our azp", json!({"aud": ["doorward", "x"], "azp": "doorward"}), Ok(())),
            ("oauth-section:2.6 other azp", json!({"azp": "x"}), Err(Mismatch::AuthorizedParty)),
            ("oauth-section:2.6 azp a list", json!({"azp": ["doorward"]}), Err(Mismatch::AuthorizedParty)),
            ("oauth-section:2.7 just within the skew", json!({"exp": NOW - 59}), Ok(())),
            ("oauth-section:2.7 expired", json!({"exp": NOW - 60}), Err(Mismatch::Expired)),
            ("oauth-section:2.7 no end", json!({"exp": null}), Err(Mismatch::Expired)),
            ("oauth-section:2.8 no iat", json!({"iat": null}), Err(Mismatch::IssuedAtMissing)),
            ("oauth-section:2.8 text", json!({"iat": NOW.to_string()}), Err(Mismatch::IssuedAtMissing)),
            ("oauth-section:2.8 ahead within the skew", json!({"iat": NOW + 60}), Ok(())),
            ("oauth-section:2.8 ahead", json!({"iat": NOW + 61}), Err(Mismatch::IssuedAt)),
            ("oauth-section:2.8 old within bounds", json!({"iat": NOW - 660}), Ok(())),
            ("oauth-section:2.8 old", json!({"iat": NOW - 661}), Err(Mismatch::IssuedAt)),
            ("oauth-section:2.9 other nonce", json!({"nonce": "n-2"}), Err(Mismatch::Nonce)),
            ("oauth-section:2.9 none", json!({"nonce": null}), Err(Mismatch::Nonce)),
            ("oauth-section:2.9 prefix", json!({"nonce": "n-"}), Err(Mismatch::Nonce)),
            ("oauth-section:2.12 none", json!({"at_hash": null}), Ok(())),
            (
                "oauth-section:2.12 other token",
                json!({"at_hash": "77QmUPtjPfzWtF2AnpK9RA"}),
                Err(Mismatch::AccessToken),
            ),
            ("oauth-section:2.12 not text", json!({"at_hash": 1}), Err(Mismatch::AccessToken)),
        ];
        for (row, patch, expected) in rows {
            assert_eq!(result(&patch), expected, "{row}");
        }
    }

    #[test]
    fn half_hashes_are_those_of_the_specification() {
        assert_eq!(half_hash(Algorithm::RS256, ACCESS), "77QmUPtjPfzWtF2AnpK9RQ");
        let code = "Qcb0Orv1zh30vL1MPRsbm-diHiMwcLyZvn1arpZv-Jxf_11jnpEX3Tgfvk";
        assert_eq!(half_hash(Algorithm::ES256, code), "LDktKdoQak3Pk0cnXxCltA");
        assert_eq!(half_hash(Algorithm::ES384, "x").len(), 32);
        assert_eq!(half_hash(Algorithm::EdDSA, "x").len(), 43);
    }
}
