//! ID tokens: the rows of `oauth` section 2. Those about one particular login, 8 to 12, are in `oidc::id_token`.

use serde_json::{Value, json};

use super::super::{Issuers, testing::*};
use crate::{clock::Timestamp, error::Reason};

async fn ask(issuers: &Issuers, token: &str) -> Result<(), Reason> {
    let now = Timestamp::from_secs(START);
    let outcome = issuers.get("main").unwrap().verify_id_token(token, "door", now).await;
    outcome.map(|_| ()).map_err(|error| error.reason())
}

#[tokio::test]
async fn every_line_of_the_list_that_is_of_no_one_login() {
    let provider = Provider::with_keys(&[RSA.jwk("rsa", json!({}))]).await;
    let root = json!({"issuers": [{"name": "main", "issuer": provider.url, "audiences": ["doorward"]}]});
    let (issuers, _) = ready(&root, &context()).await;
    let good = json!({"aud": "door", "nonce": "n-1"});
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
        ("13 typ JWT", json!({"typ": "jwt"}), json!({}), Ok(())),
        ("13 typ at+jwt (oauth:14)", json!({"typ": "at+jwt"}), json!({}), Err(Reason::TokenInvalid)),
        ("13 typ logout+jwt", json!({"typ": "logout+jwt"}), json!({}), Err(Reason::TokenInvalid)),
        ("14 sub", json!({}), json!({"sub": ""}), Err(Reason::TokenInvalid)),
        ("15 crit", json!({"crit": ["x"]}), json!({}), Err(Reason::TokenInvalid)),
        ("15 alg", json!({"alg": "RS384"}), json!({}), Err(Reason::TokenInvalid)),
        ("long", json!({}), json!({"pad": "x".repeat(16 << 10)}), Err(Reason::CredentialMalformed)),
    ] {
        assert_eq!(ask(&issuers, &token(header, &changes)).await, expected, "{line}");
    }

    // Regression: it said that the client is expected, which is in the token.
    let several = token(json!({}), &json!({"aud": ["door", "account"], "azp": "door"}));
    let now = Timestamp::from_secs(START);
    let refused = issuers.get("main").unwrap().verify_id_token(&several, "door", now).await.unwrap_err();
    let told = "the token's audience (`aud`) also has `account`, which is not in `audiences` of its issuer";
    assert_eq!(refused.to_string(), told);

    let header = json!({"alg": "RS256", "kid": "rsa"}).to_string();
    let forged = OTHER_RSA.token(&header, &claims(&provider.url, good.clone()));
    assert_eq!(ask(&issuers, &forged).await, Err(Reason::SignatureInvalid));
}
