//! Introspection calls: for which tokens, with which credential and how often, and failures.

use std::{collections::HashMap, time::Duration};

use serde_json::json;

use super::{super::key_cache::join_all, Bench};
use crate::{
    error::Reason,
    issuers::{
        discovery::Metadata,
        jwt::{MAX_TOKEN, Unverified},
        testing::*,
    },
};

/// A session handle is a credential for every route that accepts sessions.
#[tokio::test]
async fn the_handle_of_a_session_is_sent_to_no_issuer() {
    let bench = Bench::new(json!({})).await;
    bench.ask("opaque").await.unwrap();
    assert_eq!(bench.calls(), 1, "the twin");
    for handle in ["dws_NwTiQmDA5KvEe0yHTTO1rYsAmiu8c2m7C6MGZw7cXnk", "dws_a.b.c"] {
        assert_eq!(bench.ask(handle).await, Err(Reason::CredentialMalformed), "{handle}");
    }
    assert_eq!(bench.calls(), 1);
}

#[tokio::test]
async fn an_invalid_answer_is_an_internal_failure_and_is_not_cached() {
    let duplicate = r#"{"active":false,"active":true,"sub":"alice","aud":"doorward"}"#;
    let large = format!(r#"{{"active":true,"pad":"{}"}}"#, "x".repeat(100_000));
    for (what, reply) in [
        ("HTML", Reply::Answer(200, "text/html", "<html>".into())),
        ("JSON as text", Reply::Answer(200, "text/plain", r#"{"active":true}"#.into())),
        ("500", Reply::Answer(500, "application/json", r#"{"active":true}"#.into())),
        ("401", Reply::Answer(401, "application/json", "{}".into())),
        ("404", Reply::Answer(404, "application/json", r#"{"active":true}"#.into())),
        ("repeated member", Reply::Answer(200, "application/json", duplicate.into())),
        ("array", Reply::Answer(200, "application/json", "[]".into())),
        ("large", Reply::Answer(200, "application/json", large.into())),
        ("10 MB", Reply::Promise(10 << 20)),
        ("endless", Reply::Endless),
        ("redirect", Reply::Redirect("/elsewhere".to_owned())),
        ("hang", Reply::Hang),
        ("slow", Reply::Drip),
    ] {
        // The good answer at the end has to come within it.
        let bench = Bench::new(json!({"timeout": "700ms"})).await;
        bench.provider.on("/introspect", reply);
        let started = std::time::Instant::now();
        assert_eq!(bench.ask("opaque").await, Err(Reason::IssuerUnavailable), "{what}");
        assert!(started.elapsed() < Duration::from_secs(5), "{what}");
        assert!(bench.calls() <= 2, "{what}");
        assert_eq!(bench.provider.hits("/elsewhere"), 0);
        bench.answer(json!({}));
        assert_eq!(bench.ask("opaque").await, Ok(()), "{what}");
    }
}

/// Answers are cached for seconds.
#[tokio::test]
async fn answers_are_remembered_for_their_time() {
    let bench = Bench::new(json!({})).await;
    for _ in 0..3 {
        assert_eq!(bench.ask("good").await, Ok(()));
    }
    assert_eq!(bench.calls(), 1);
    bench.answer(json!({"active": false}));
    bench.context.clock.advance(Duration::from_secs(29));
    assert_eq!(bench.ask("good").await, Ok(()));
    bench.context.clock.advance(Duration::from_secs(1));
    for _ in 0..3 {
        assert_eq!(bench.ask("good").await, Err(Reason::TokenInactive), "oauth:27");
    }
    assert_eq!(bench.calls(), 2);
    bench.answer(json!({}));
    bench.context.clock.advance(Duration::from_secs(10));
    assert_eq!(bench.ask("good").await, Ok(()));
    assert_eq!(bench.calls(), 3);
}

#[tokio::test]
async fn many_requests_share_one_call_which_survives_the_one_that_began_it() {
    let bench = Bench::new(json!({})).await;
    for outcome in join_all((0..50).map(|_| bench.ask("good"))).await {
        assert_eq!(outcome, Ok(()));
    }
    assert_eq!(bench.calls(), 1);

    bench.provider.on("/introspect", Reply::Hang);
    // The first caller is cancelled while the call is in progress.
    let first = tokio::time::timeout(Duration::from_millis(20), bench.ask("other")).await;
    assert!(first.is_err());
    until("the call", || bench.calls() == 2).await;
    bench.answer(json!({}));
    // The call continues: its second try answers a later caller.
    assert_eq!(bench.ask("other").await, Ok(()));
    assert_eq!(bench.calls(), 3);
}

/// Unknown tokens are limited by their bucket, known ones are not.
#[tokio::test]
async fn a_flood_of_unknown_tokens_leaves_others_unaffected() {
    let bench = Bench::new(json!({})).await;
    assert_eq!(bench.ask("regular").await, Ok(()));
    bench.answer(json!({"active": false}));
    let mut refused = 0;
    for n in 0..10_000 {
        match bench.ask(&format!("stranger-{n}")).await {
            Err(Reason::Overloaded) => refused += 1,
            Err(Reason::TokenInactive) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(bench.calls() <= 101, "attacks:Z34: {} calls", bench.calls());
    assert!(refused >= 9_899);
    // From the cache, and introspected again while the flood continues.
    assert_eq!(bench.ask("regular").await, Ok(()));
    bench.answer(json!({}));
    bench.context.clock.advance(Duration::from_secs(31));
    for n in 0..200 {
        let _ = bench.ask(&format!("later-{n}")).await;
    }
    assert_eq!(bench.ask("regular").await, Ok(()), "attacks:Z34");
}

#[tokio::test]
async fn a_question_has_two_tries_of_a_second_where_nothing_else_is_set() {
    for (set, timeout, tries) in
        [(json!({}), Duration::from_secs(1), 2), (json!({"timeout": "50ms", "tries": 5}), Duration::from_millis(50), 5)]
    {
        let bench = Bench::new(set).await;
        let settings = bench.issuers.get("main").unwrap().introspection.as_ref().unwrap().settings();
        assert_eq!((settings.timeout, settings.tries), (timeout, tries));
    }
}

#[tokio::test]
async fn an_endpoint_that_fails_is_given_a_pause() {
    let bench = Bench::new(json!({})).await;
    bench.provider.on("/introspect", Reply::Answer(500, "text/plain", "".into()));
    for n in 0..50 {
        assert_eq!(bench.ask(&format!("t{n}")).await, Err(Reason::IssuerUnavailable));
    }
    assert_eq!(bench.calls(), 10, "five calls of two tries");
    bench.answer(json!({}));
    bench.context.clock.advance(Duration::from_secs(5));
    assert_eq!(bench.ask("probe").await, Ok(()));
    assert_eq!(bench.ask("next").await, Ok(()));
}

/// A reload that changes the breaker resets its count.
#[tokio::test]
async fn the_pause_of_an_endpoint_that_fails_can_be_set_and_a_reload_takes_it() {
    let mut bench = Bench::new(json!({"tries": 1, "circuit_breaker": {"failures": 2, "pause": "1m"}})).await;
    let failing = async |bench: &Bench, failures: usize, pause: u64| {
        bench.provider.on("/introspect", Reply::Answer(500, "text/plain", "".into()));
        let before = bench.calls();
        for n in 0..10 {
            assert_eq!(bench.ask(&format!("t{n}")).await, Err(Reason::IssuerUnavailable));
        }
        assert_eq!(bench.calls() - before, failures);
        bench.answer(json!({}));
        bench.context.clock.advance(Duration::from_secs(pause - 1));
        assert_eq!(bench.ask("probe").await, Err(Reason::IssuerUnavailable));
        bench.context.clock.advance(Duration::from_secs(1));
        assert_eq!(bench.ask("probe").await, Ok(()));
    };
    failing(&bench, 2, 60).await;
    bench.reload(&json!({"tries": 1, "circuit_breaker": {"failures": 3, "pause": "2s"}}));
    failing(&bench, 3, 2).await;
}

#[tokio::test]
async fn how_long_a_negative_answer_is_used_can_be_set_and_a_reload_takes_it() {
    let mut bench = Bench::new(json!({"negative_cache": "20s"})).await;
    let remembered = async |bench: &Bench, token: &str, seconds: u64| {
        bench.answer(json!({"active": false}));
        assert_eq!(bench.ask(token).await, Err(Reason::TokenInactive));
        bench.answer(json!({}));
        bench.context.clock.advance(Duration::from_secs(seconds - 1));
        assert_eq!(bench.ask(token).await, Err(Reason::TokenInactive));
        bench.context.clock.advance(Duration::from_secs(1));
        assert_eq!(bench.ask(token).await, Ok(()));
    };
    remembered(&bench, "first", 20).await;
    bench.reload(&json!({"negative_cache": "2s"}));
    remembered(&bench, "second", 2).await;
}

#[tokio::test]
async fn we_authenticate_as_a_client() {
    let bench = Bench::new(json!({})).await;
    assert_eq!(bench.ask("tok+en/=").await, Ok(()));
    let got = bench.provider.got().pop().unwrap();
    // Form-encoded before base64: `door%3Award:s3cret%3A+%C3%BC`.
    assert_eq!(got.headers["authorization"], "Basic ZG9vciUzQXdhcmQ6czNjcmV0JTNBKyVDMyVCQw==");
    assert_eq!(got.body, "token=tok%2Ben%2F%3D&token_type_hint=access_token");

    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), key.serialize_pem()).unwrap();
    let bench = Bench::new(json!({"client": {"id": "doorward", "key": {"file": file.path()}, "key_id": "k1"}})).await;
    assert_eq!(bench.ask("token").await, Ok(()));
    let got = bench.provider.got().pop().unwrap();
    assert!(!got.headers.contains_key("authorization"));
    let form: HashMap<_, _> = url::form_urlencoded::parse(got.body.as_bytes()).into_owned().collect();
    let assertion = Unverified::parse(&form["client_assertion"]).unwrap();
    assert_eq!(assertion.header.kid.as_deref(), Some("k1"));
    let claims = &assertion.claims;
    assert_eq!(
        (&claims["iss"], &claims["sub"], &claims["aud"]),
        (&json!("doorward"), &json!("doorward"), &json!(bench.provider.url))
    );
    assert!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap() <= 300);
}

/// Only an operator can fix a refusal of our own client, so the error says where.
#[tokio::test]
async fn a_refusal_of_our_own_client_says_what_to_check() {
    let bench = Bench::new(json!({})).await;
    for status in [401, 403] {
        bench.provider.on("/introspect", Reply::Answer(status, "application/json", "{}".into()));
        let rejection = bench.issuers.authenticate("opaque", &bench.accepts, &nothing).await.unwrap_err();
        assert_eq!(rejection.reason(), Reason::IssuerUnavailable);
        assert!(precise(&rejection).contains("introspection.client"), "{status}: {}", precise(&rejection));
    }
}

/// oidc-provider refuses introspection of any JWT, and says so only here.
#[tokio::test]
async fn a_refusal_is_reported_without_the_data_that_was_sent() {
    let bench = Bench::new(json!({})).await;
    let told = json!({
        "error": "unsupported_token_type",
        "error_description": format!("\u{1b}[31mno opaque-1 of s3cret: ü here {}", "x".repeat(500)),
    });
    for status in [400, 401, 500] {
        bench.provider.on("/introspect", Reply::Answer(status, "application/json", told.to_string().into()));
        let rejection = bench.issuers.authenticate("opaque-1", &bench.accepts, &nothing).await.unwrap_err();
        let said = precise(&rejection);
        assert!(said.contains("it says `unsupported_token_type`, `<U+001B>[31mno … of … here xx"), "{said}");
        assert!(!said.contains("opaque-1") && !said.contains("s3cret") && said.len() < 500, "{said}");
    }
}

/// Regression: providers that encrypt their opaque tokens for themselves were never asked about them, and the caller
/// was told to send the token as it was issued.
#[tokio::test]
async fn an_encrypted_token_is_introspected_as_an_opaque_one() {
    let bench = Bench::new(json!({})).await;
    let header = b64(r#"{"alg":"A256GCMKW","enc":"A256GCM"}"#);
    let token = format!("{header}.YWJj.YWJj.YWJj.YWJj");
    assert_eq!((bench.ask(&token).await, bench.calls()), (Ok(()), 1));
    // Without five parts it may be a JWT, of any issuer.
    assert_eq!(bench.ask(&format!("{header}.YWJj.YWJj")).await, Err(Reason::TokenInvalid));
    assert_eq!(bench.ask(&format!("{token}.YWJj")).await, Err(Reason::CredentialMalformed));
    assert_eq!(bench.calls(), 1);

    let entry = json!({"name": "main", "issuer": bench.provider.url, "audiences": ["doorward"]});
    let (issuers, accepts) = ready(&json!({"issuers": [entry]}), &bench.context).await;
    let rejection = issuers.authenticate(&token, &accepts, &nothing).await.unwrap_err();
    assert_eq!(rejection.reason(), Reason::CredentialMalformed);
    assert!(rejection.in_words().contains("is encrypted (JWE)"), "{}", rejection.in_words());
}

/// django-oauth-toolkit announces no introspection endpoint.
#[tokio::test]
async fn an_endpoint_that_discovery_does_not_name_is_to_be_written() {
    let context = context();
    let provider = Provider::with_keys(&[RSA.jwk("rsa", json!({}))]).await;
    let discovery = changed(provider.metadata(), &json!({"introspection_endpoint": null}));
    provider.on("/.well-known/openid-configuration", Reply::json(&discovery));
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "s3cret").unwrap();
    let client = json!({"id": "door", "secret": {"file": secret.path()}});
    let introspection = json!({"mode": "opaque", "client": client});
    let entry = json!({
        "name": "main", "issuer": provider.url, "audiences": ["doorward"], "introspection": introspection,
    });
    let (issuers, accepts) = ready(&json!({"issuers": [entry.clone()]}), &context).await;
    let rejection = issuers.authenticate("opaque", &accepts, &nothing).await.unwrap_err();
    assert_eq!(rejection.reason(), Reason::IssuerUnavailable);
    assert!(precise(&rejection).contains("`introspection.endpoint`"), "{}", precise(&rejection));
    let issuer = issuers.get("main").unwrap();
    assert!(issuer.introspection_trouble(&issuer.keys().metadata().unwrap()).is_some());

    let written = changed(introspection, &json!({"endpoint": format!("{}/ask", provider.url)}));
    let (issuers, _) = ready(&json!({"issuers": [changed(entry, &json!({"introspection": written}))]}), &context).await;
    let issuer = issuers.get("main").unwrap();
    // Discovery is not needed for anything else then, so it is not fetched.
    assert_eq!(
        issuer.introspection_trouble(&Metadata::parse(discovery.to_string().as_bytes(), &provider.url).unwrap()),
        None
    );
}

/// No issuer is queried about a text that is too long for a token.
#[tokio::test]
async fn a_token_without_an_expiry_is_refused_without_asking_the_issuer() {
    let bench = Bench::new(json!({})).await;
    let token = "t".repeat(MAX_TOKEN);
    assert_eq!((bench.ask(&token).await, bench.calls()), (Ok(()), 1));
    assert_eq!((bench.ask(&format!("{token}t")).await, bench.calls()), (Err(Reason::CredentialMalformed), 1));
}

/// attacks:Z35, and the JWT of another issuer (section 5): only the route's issuer sees an opaque token.
#[tokio::test]
async fn opaque_tokens_go_to_the_routes_issuer_alone() {
    let bench = Bench::new(json!({})).await;
    let jwt = RSA.token(r#"{"alg":"RS256","kid":"rsa","typ":"at+jwt"}"#, &claims("https://evil.example", json!({})));
    assert_eq!(bench.ask(&jwt).await, Err(Reason::IssuerUnknown));
    let own = RSA.token(r#"{"alg":"RS256","kid":"rsa","typ":"at+jwt"}"#, &claims(&bench.provider.url, json!({})));
    assert_eq!(bench.ask(&own).await, Ok(()));
    assert_eq!(bench.calls(), 0);
    assert_eq!(bench.ask("opaque").await, Ok(()));
    let calls = bench.calls();

    let plain = Provider::with_keys(&[RSA.jwk("rsa", json!({}))]).await;
    let root = json!({"issuers": [{"name": "plain", "issuer": plain.url, "audiences": ["doorward"]}]});
    let (issuers, accepts) = ready(&root, &bench.context).await;
    let rejection = issuers.authenticate("opaque", &accepts, &nothing).await.unwrap_err();
    assert_eq!(rejection.reason(), Reason::CredentialMalformed);
    assert_eq!((bench.calls(), plain.hits("/introspect")), (calls, 0));
}

/// `always`: the signature is checked, and the issuer is queried as well.
#[tokio::test]
async fn jwts_are_introspected_if_configured() {
    let bench = Bench::new(json!({"mode": "always"})).await;
    let token =
        |changes| RSA.token(r#"{"alg":"RS256","kid":"rsa","typ":"at+jwt"}"#, &claims(&bench.provider.url, changes));
    bench.answer(json!({"scope": "tekton:less"}));
    let principal = bench.issuers.authenticate(&token(json!({})), &bench.accepts, &nothing).await.unwrap();
    assert_eq!(*principal.scopes[0], *"tekton:less");
    bench.answer(json!({"sub": "mallory"}));
    assert_eq!(bench.ask(&token(json!({"jti": "t2"}))).await, Err(Reason::TokenInactive));
    bench.answer(json!({"active": false}));
    assert_eq!(bench.ask(&token(json!({"jti": "t3"}))).await, Err(Reason::TokenInactive));
    let forged =
        OTHER_RSA.token(r#"{"alg":"RS256","kid":"rsa","typ":"at+jwt"}"#, &claims(&bench.provider.url, json!({})));
    let calls = bench.calls();
    assert_eq!(bench.ask(&forged).await, Err(Reason::SignatureInvalid));
    assert_eq!(bench.calls(), calls);
}
