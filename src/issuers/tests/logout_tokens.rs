//! Logout tokens: the rules of OpenID Connect Back-Channel Logout 1.0 section 2.6, each with its twin.

use serde_json::json;

use super::super::testing::*;
use crate::{clock::Timestamp, error::Reason};

const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

#[tokio::test]
async fn every_rule() {
    let provider = Provider::with_keys(&[RSA.jwk("rsa", json!({})), P256.jwk("p256", json!({}))]).await;
    let root = json!({"issuers": [{"name": "main", "issuer": provider.url, "audiences": ["doorward"]}]});
    let (issuers, _) = ready(&root, &context()).await;
    let good = json!({"iss": provider.url, "aud": "door", "sub": "alice", "sid": "s-1", "jti": "j-1", "events": {EVENT: {}},
        "iat": START, "exp": START + 120});
    for (rule, header, changes, expected) in [
        ("twin", json!({"typ": "logout+jwt"}), json!({}), Ok(())),
        ("typ of older providers", json!({}), json!({}), Ok(())),
        ("typ JWT", json!({"typ": "JWT"}), json!({}), Ok(())),
        ("typ of an access token", json!({"typ": "at+jwt"}), json!({}), Err(Reason::TokenInvalid)),
        ("alg", json!({"alg": "none"}), json!({}), Err(Reason::TokenInvalid)),
        ("alg of no key here", json!({"alg": "RS384"}), json!({}), Err(Reason::TokenInvalid)),
        ("key of another", json!({"kid": "p256"}), json!({}), Err(Reason::KeyUnknown)),
        ("iss", json!({}), json!({"iss": "https://other.example"}), Err(Reason::IssuerUnknown)),
        ("aud", json!({}), json!({"aud": "other"}), Err(Reason::AudienceMismatch)),
        ("aud of bearer tokens", json!({}), json!({"aud": "doorward"}), Err(Reason::AudienceMismatch)),
        ("aud one of several", json!({}), json!({"aud": ["other", "door"]}), Ok(())),
        ("aud missing", json!({}), json!({"aud": null}), Err(Reason::AudienceMismatch)),
        ("iat missing", json!({}), json!({"iat": null}), Err(Reason::TokenInvalid)),
        ("iat ahead", json!({}), json!({"iat": START + 100, "exp": START + 200}), Err(Reason::TokenNotYetValid)),
        ("exp missing", json!({}), json!({"exp": null}), Err(Reason::TokenInvalid)),
        ("exp over", json!({}), json!({"iat": START - 200, "exp": START - 100}), Err(Reason::TokenExpired)),
        ("sub alone", json!({}), json!({"sid": null}), Ok(())),
        ("sid alone", json!({}), json!({"sub": null}), Ok(())),
        ("neither sub nor sid", json!({}), json!({"sub": null, "sid": null}), Err(Reason::TokenInvalid)),
        ("sid not text", json!({}), json!({"sid": 1}), Err(Reason::TokenInvalid)),
        ("sid empty", json!({}), json!({"sid": ""}), Err(Reason::TokenInvalid)),
        ("sid long", json!({}), json!({"sid": "s".repeat(255)}), Ok(())),
        ("sid too long", json!({}), json!({"sid": "s".repeat(256)}), Err(Reason::TokenInvalid)),
        ("sub empty", json!({}), json!({"sub": ""}), Err(Reason::TokenInvalid)),
        ("jti missing", json!({}), json!({"jti": null}), Err(Reason::TokenInvalid)),
        ("jti long", json!({}), json!({"jti": "j".repeat(255)}), Ok(())),
        ("jti too long", json!({}), json!({"jti": "j".repeat(256)}), Err(Reason::TokenInvalid)),
        ("events missing", json!({}), json!({"events": null}), Err(Reason::TokenInvalid)),
        ("events of another kind", json!({}), json!({"events": {"http://other": {}}}), Err(Reason::TokenInvalid)),
        ("event not an object", json!({}), json!({"events": {EVENT: true}}), Err(Reason::TokenInvalid)),
        ("events a list", json!({}), json!({"events": [EVENT]}), Err(Reason::TokenInvalid)),
        ("nonce", json!({}), json!({"nonce": "n-1"}), Err(Reason::TokenInvalid)),
        ("an ID token", json!({}), json!({"nonce": "n-1", "events": null}), Err(Reason::TokenInvalid)),
    ] {
        let header = changed(json!({"alg": "RS256", "kid": "rsa"}), &header);
        let claims = changed(good.clone(), &changes);
        let token = RSA.token(&header.to_string(), &claims.to_string());
        let issuer = issuers.get("main").unwrap();
        let outcome = issuer.verify_logout_token(&token, "door", Timestamp::from_secs(START)).await;
        let outcome =
            outcome.map(|token| assert_eq!(Some(&*token.id), claims["jti"].as_str())).map_err(|error| error.reason());
        assert_eq!(outcome, expected, "{rule}");
    }
    let forged = OTHER_RSA.token(&json!({"alg": "RS256", "kid": "rsa"}).to_string(), &good.to_string());
    let issuer = issuers.get("main").unwrap();
    let refused = issuer.verify_logout_token(&forged, "door", Timestamp::from_secs(START)).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::SignatureInvalid);
}
