//! ID tokens: the list of `oauth.md` section 2, line by line.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::{IdTokenChecks, Issuers, testing::*};
use crate::{clock::Timestamp, error::Reason};

const ACCESS_TOKEN: &str = "jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y";

fn checks() -> IdTokenChecks<'static> {
    IdTokenChecks {
        client_id: "door",
        nonce: Some("n-1"),
        max_age: None,
        acr_values: &[],
        access_token: Some(ACCESS_TOKEN),
        fresh: true,
    }
}

async fn ask(issuers: &Issuers, token: &str, checks: &IdTokenChecks<'_>) -> Result<(), Reason> {
    let now = Timestamp::from_secs(START);
    let outcome = issuers.get("main").unwrap().verify_id_token(token, checks, now).await;
    outcome.map(|_| ()).map_err(|error| error.reason())
}

#[tokio::test]
async fn every_line_of_the_list() {
    let provider = Provider::with_keys(&[RSA.jwk("rsa", json!({}))]).await;
    let root = json!({"issuers": [{"name": "main", "issuer": provider.url, "audiences": ["doorward"]}]});
    let (issuers, _) = ready(&root, &context()).await;
    let good = json!({"aud": "door", "nonce": "n-1", "auth_time": START - 100, "acr": "gold", "at_hash": "77QmUPtjPfzWtF2AnpK9RQ"});
    let token = |header: Value, changes: &Value| {
        let header = changed(json!({"alg": "RS256", "kid": "rsa"}), &header);
        RSA.token(&header.to_string(), &claims(&provider.url, changed(good.clone(), changes)))
    };
    for (line, header, changes, expected) in [
        ("twin", json!({}), json!({}), Ok(())),
        ("4 iss", json!({}), json!({"iss": format!("{}/", provider.url)}), Err(Reason::IssuerUnknown)),
        ("5 aud", json!({}), json!({"aud": "doorward"}), Err(Reason::AudienceMismatch)),
        ("5 aud untrusted", json!({}), json!({"aud": ["door", "evil"], "azp": "door"}), Err(Reason::AudienceMismatch)),
        ("5 aud trusted", json!({}), json!({"aud": ["door", "doorward"], "azp": "door"}), Ok(())),
        ("6 azp missing", json!({}), json!({"aud": ["door", "doorward"]}), Err(Reason::TokenInvalid)),
        ("6 azp other", json!({}), json!({"azp": "other"}), Err(Reason::TokenInvalid)),
        ("7 exp", json!({}), json!({"iat": START - 100, "exp": START - 30}), Err(Reason::TokenExpired)),
        ("8 iat old", json!({}), json!({"iat": START - 631}), Err(Reason::TokenInvalid)),
        ("8 iat", json!({}), json!({"iat": START - 630}), Ok(())),
        ("9 nonce", json!({}), json!({"nonce": "n-2"}), Err(Reason::TokenInvalid)),
        ("9 nonce missing", json!({}), json!({"nonce": null}), Err(Reason::TokenInvalid)),
        ("12 at_hash", json!({}), json!({"at_hash": "77QmUPtjPfzWtF2AnpK9RR"}), Err(Reason::TokenInvalid)),
        ("12 at_hash absent", json!({}), json!({"at_hash": null}), Ok(())),
        ("13 typ JWT", json!({"typ": "jwt"}), json!({}), Ok(())),
        ("13 typ at+jwt (oauth:14)", json!({"typ": "at+jwt"}), json!({}), Err(Reason::TokenInvalid)),
        ("13 typ logout+jwt", json!({"typ": "logout+jwt"}), json!({}), Err(Reason::TokenInvalid)),
        ("14 sub", json!({}), json!({"sub": ""}), Err(Reason::TokenInvalid)),
        ("15 crit", json!({"crit": ["x"]}), json!({}), Err(Reason::TokenInvalid)),
        ("15 alg", json!({"alg": "RS384"}), json!({"at_hash": null}), Err(Reason::TokenInvalid)),
        ("long", json!({}), json!({"pad": "x".repeat(16 << 10)}), Err(Reason::CredentialMalformed)),
    ] {
        assert_eq!(ask(&issuers, &token(header, &changes), &checks()).await, expected, "{line}");
    }

    let header = json!({"alg": "RS256", "kid": "rsa"}).to_string();
    let forged = OTHER_RSA.token(&header, &claims(&provider.url, good.clone()));
    assert_eq!(ask(&issuers, &forged, &checks()).await, Err(Reason::SignatureInvalid));

    let plain = token(json!({}), &json!({}));
    let gold = ["gold".to_owned()];
    let silver = ["silver".to_owned()];
    for (line, checks, expected) in [
        ("10 max_age", IdTokenChecks { max_age: Some(Duration::from_secs(70)), ..checks() }, Ok(())),
        (
            "10 max_age over",
            IdTokenChecks { max_age: Some(Duration::from_secs(69)), ..checks() },
            Err(Reason::TokenInvalid),
        ),
        ("11 acr", IdTokenChecks { acr_values: &gold, ..checks() }, Ok(())),
        ("11 acr other", IdTokenChecks { acr_values: &silver, ..checks() }, Err(Reason::TokenInvalid)),
        ("refresh", IdTokenChecks { nonce: None, fresh: false, ..checks() }, Ok(())),
    ] {
        assert_eq!(ask(&issuers, &plain, &checks).await, expected, "{line}");
    }
    let without_time = token(json!({}), &json!({"auth_time": null}));
    let aged = IdTokenChecks { max_age: Some(Duration::from_secs(1_000)), ..checks() };
    assert_eq!(ask(&issuers, &without_time, &aged).await, Err(Reason::TokenInvalid));
    assert_eq!(ask(&issuers, &without_time, &checks()).await, Ok(()));
}
