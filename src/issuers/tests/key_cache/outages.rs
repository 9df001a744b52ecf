//! Providers that are down, hang or return unusable answers: how long keys stay valid, what is reported, and recovery.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};

use super::{Bench, DISCOVERY};
use crate::{error::Reason, issuers::testing::*};

/// A provider that hangs must not delay a reload for the whole timeout of a fetch.
#[tokio::test]
async fn keys_are_waited_for_no_longer_than_patience_lasts() {
    let provider = Provider::with_keys(&[]).await;
    provider.on("/jwks", Reply::Hang);
    let (issuers, _) = resolve(&Bench::root(&provider, &json!({})), None, &context());
    let waiting = issuers.start_and_wait(Duration::from_millis(50));
    tokio::time::timeout(Duration::from_secs(3), waiting).await.expect("it waits for the try to end");
    assert!(!issuers.get("main").unwrap().keys().status().usable);
}

/// Whatever a provider answers, a valid set stays until `max_stale`; then tokens are refused with 503, not 401.
#[tokio::test]
async fn a_good_set_outlives_bad_answers_until_it_is_too_old() {
    let big = json!({"keys": [RSA.jwk("a", json!({})), {"pad": "x".repeat(600 << 10)}]});
    for (what, reply) in [
        ("500", Reply::Answer(500, "text/plain", "".into())),
        ("404", Reply::Answer(404, "application/json", "{}".into())),
        ("empty set", Reply::keys(&[])),
        ("unusable set", Reply::keys(&[json!({"kty": "oct", "k": "AA"})])),
        ("HTML", Reply::Answer(200, "text/html", "<html>".into())),
        ("garbage", Reply::Answer(200, "application/json", vec![0xff; 1_000].into())),
        ("too large", Reply::json(&big)),
        ("50 MB without a length", Reply::Endless),
        ("a length of 50 MB", Reply::Promise(50 << 20)),
        ("redirect", Reply::Redirect("/jwks2".to_owned())),
    ] {
        let bench = Bench::new(json!({"keys": {"max_stale": "2h"}})).await;
        let token = bench.token(&RSA, "a", json!({}));
        bench.provider.on("/jwks2", Reply::keys(&[OTHER_RSA.jwk("a", json!({}))]));
        bench.provider.on("/jwks", reply);
        bench.refresh().await;
        assert!(bench.status().last_error.is_some(), "{what}: {:?}", bench.status());
        assert_eq!(bench.ask(&token).await, Ok(()), "{what}");
        assert_eq!(bench.provider.hits("/jwks2"), 0, "{what}");
        bench.context.clock.advance(Duration::from_secs(3_599));
        assert_eq!(bench.ask(&token).await, Ok(()), "{what}");
        bench.context.clock.advance(Duration::from_secs(1));
        assert_eq!(bench.ask(&token).await, Err(Reason::IssuerUnavailable), "{what}");
        assert!(!bench.status().usable);
        // It recovers by itself.
        bench.provider.on("/jwks", Reply::keys(&[RSA.jwk("a", json!({}))]));
        bench.context.clock.advance(Duration::from_secs(60));
        let _ = bench.status();
        until("recovery", || bench.status().usable).await;
        assert_eq!(bench.ask(&token).await, Ok(()), "{what}");
    }
}

#[tokio::test]
async fn keys_that_could_not_be_fetched_for_an_hour_are_an_alarm() {
    let bench = Bench::new(json!({})).await;
    let stale = || {
        let label = [("issuer", "main".into())];
        bench.context.metrics.keys_stale.get_or_create(&label).get()
    };
    bench.provider.on("/jwks", Reply::Answer(500, "text/plain", "".into()));
    bench.refresh().await;
    assert_eq!(stale(), 0, "an hour is not over yet");
    bench.context.clock.advance(Duration::from_secs(1));
    let _ = bench.status();
    bench.context.clock.advance(Duration::from_secs(60));
    let _ = bench.status();
    until("the alarm", || stale() == 1).await;
    bench.provider.on("/jwks", Reply::keys(&[RSA.jwk("a", json!({}))]));
    bench.context.clock.advance(Duration::from_secs(60));
    let _ = bench.status();
    until("its end", || stale() == 0).await;
}

#[tokio::test]
async fn a_provider_that_hangs_delays_no_request_and_its_fetch_is_abandoned() {
    let bench = Bench::new(json!({})).await;
    let token = bench.token(&RSA, "a", json!({}));
    bench.provider.on(DISCOVERY, Reply::Hang);
    bench.provider.on("/jwks", Reply::Drip);
    bench.context.clock.advance(Duration::from_secs(3_600));
    let _ = bench.status();
    until("a fetch", || bench.provider.hits(DISCOVERY) > 1).await;
    let asked = tokio::time::timeout(Duration::from_millis(500), bench.ask(&token)).await;
    assert_eq!(asked, Ok(Ok(())), "requests do not wait for the refresh");
    until("the fetch is given up", || bench.status().last_error.is_some()).await;
}

/// A longer timeout for a slow provider must not discard the present keys.
#[tokio::test]
async fn the_time_for_a_fetch_can_be_set_and_a_reload_takes_it_and_keeps_the_keys() {
    for hangs in [DISCOVERY, "/jwks"] {
        let mut bench = Bench::new(json!({"keys": {"timeout": "10s"}})).await;
        bench.provider.on(hangs, Reply::Hang);
        let root = Bench::root(&bench.provider, &json!({"keys": {"timeout": "50ms"}}));
        (bench.issuers, bench.accepts) = resolve(&root, Some(&bench.issuers), &bench.context);
        let token = bench.token(&RSA, "a", json!({}));
        assert_eq!(bench.ask(&token).await, Ok(()), "{hangs}");
        bench.context.clock.advance(Duration::from_secs(3_600));
        until("the fetch is given up", || bench.status().doubt().is_some()).await;
        let doubt = bench.status().doubt().unwrap();
        assert!(doubt.ends_with("no answer within 50ms"), "{hangs}: {doubt}");
        assert_eq!(bench.ask(&token).await, Ok(()), "{hangs}");
    }
}

#[tokio::test]
async fn discovery_of_another_issuer_gives_no_keys() {
    let provider = Provider::with_keys(&[RSA.jwk("a", json!({}))]).await;
    let wrong = changed(provider.metadata(), &json!({"issuer": format!("{}/", provider.url)}));
    provider.on(DISCOVERY, Reply::json(&wrong));
    let context = context();
    let (issuers, _) = resolve(&Bench::root(&provider, &json!({})), None, &context);
    let status = || issuers.get("main").unwrap().keys().status();
    until("an error", || status().last_error.is_some()).await;
    assert!(!status().usable && status().last_error.unwrap().contains("another issuer"));
    assert_eq!(provider.hits("/jwks"), 0);

    provider.on(DISCOVERY, Reply::json(&provider.metadata()));
    context.clock.advance(Duration::from_secs(1));
    until("recovery", || status().usable).await;
}

/// The failure was not reported, as the old document stayed in use: logins and introspection used endpoints that may be
/// gone, and the next start had no keys.
#[tokio::test]
async fn a_discovery_document_that_became_unusable_is_reported_even_with_fresh_keys() {
    let bench = Bench::new(json!({})).await;
    let good = bench.provider.metadata();
    let moved = Reply::json(&changed(good.clone(), &json!({"issuer": "https://renamed.test"})));
    let gone = Reply::Answer(404, "text/plain", "".into());
    for (what, reply, kid) in [("another issuer", moved, "x"), ("404", gone, "y")] {
        bench.provider.on(DISCOVERY, reply);
        bench.refresh().await;
        let status = bench.status();
        assert_eq!((status.usable, status.last_error.as_deref()), (true, None), "{what}");
        let doubt = status.doubt().unwrap();
        assert!(doubt.contains("discovery document") && doubt.contains(what), "{what}: {doubt}");
        // A fetch for a made-up key does not affect the document.
        assert_eq!(bench.ask(&bench.token(&OTHER_RSA, kid, json!({}))).await, Err(Reason::KeyUnknown));
        assert_eq!(bench.status().doubt(), Some(doubt), "{what}");
        bench.provider.on(DISCOVERY, Reply::json(&good));
        bench.refresh().await;
        assert_eq!(bench.status().doubt(), None, "{what}: it is back");
    }
}

/// Regression: a failed discovery document was retried only when the keys were due, after up to an hour, and the doubt
/// about endpoints was reported until then.
#[tokio::test]
async fn a_discovery_document_that_failed_is_retried_after_the_back_off() {
    let bench = Bench::new(json!({})).await;
    bench.provider.on(DISCOVERY, Reply::Answer(503, "text/plain", "".into()));
    bench.refresh().await;
    assert!(bench.status().doubt().unwrap().contains("discovery document"));
    // The back-off doubles each time, as after other failures.
    for (tries, pause) in [(3, 1), (4, 2)] {
        bench.context.clock.advance(Duration::from_secs(pause));
        let _ = bench.status();
        until("another try", || bench.provider.hits(DISCOVERY) == tries).await;
        until("its end", || bench.status().age == Some(Duration::ZERO)).await;
    }
    bench.provider.on(DISCOVERY, Reply::json(&bench.provider.metadata()));
    bench.context.clock.advance(Duration::from_secs(4));
    let _ = bench.status();
    until("the document", || bench.status().doubt().is_none()).await;
}

/// An issuer that is down causes 503 for its own tokens only.
#[tokio::test]
async fn one_issuer_down_never_stops_another() {
    let down = Provider::start().await;
    let up = Provider::with_keys(&[RSA.jwk("a", json!({}))]).await;
    down.on(DISCOVERY, Reply::Hang);
    let root = json!({"issuers": [
        {"name": "down", "issuer": down.url, "audiences": ["doorward"]},
        {"name": "up", "issuer": up.url, "audiences": ["doorward"]},
    ]});
    let context = context();
    let (issuers, accepts) = resolve(&root, None, &context);
    until("keys", || issuers.get("up").unwrap().keys().status().usable).await;
    let header = r#"{"alg":"RS256","kid":"a","typ":"at+jwt"}"#;
    let token = |provider: &Provider| RSA.token(header, &claims(&provider.url, json!({})));
    issuers.authenticate(&token(&up), &accepts, &nothing).await.unwrap();
    let rejection = issuers.authenticate(&token(&down), &accepts, &nothing).await.unwrap_err();
    assert_eq!((rejection.reason(), rejection.status().as_u16()), (Reason::IssuerUnavailable, 503));
    assert!(rejection.retry_after().is_some());
}

#[tokio::test]
async fn the_set_on_disk_serves_a_start_during_an_outage() {
    let folder = tempfile::tempdir().unwrap();
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "s3cret").unwrap();
    let settings = json!({
        "keys": {"keep_in": folder.path(), "max_stale": "1h"},
        "introspection": {"mode": "opaque", "client": {"id": "doorward", "secret": {"file": secret.path()}}},
    });
    let bench = Bench::new(settings.clone()).await;
    let token = bench.token(&RSA, "a", json!({}));
    until("the file", || {
        std::fs::read_dir(folder.path()).unwrap().any(|file| file.unwrap().path().extension().unwrap() == "json")
    })
    .await;
    bench.provider.on(DISCOVERY, Reply::Answer(503, "text/plain", "".into()));
    bench.provider.on("/jwks", Reply::Answer(503, "text/plain", "".into()));
    bench.provider.on("/introspect", Reply::json(&json!({"active": true, "sub": "alice", "aud": "doorward"})));

    let second = context();
    let (issuers, accepts) = ready(&Bench::root(&bench.provider, &settings), &second).await;
    issuers.authenticate(&token, &accepts, &nothing).await.unwrap();
    // The endpoints of the discovery document are restored too.
    issuers.authenticate("opaque", &accepts, &nothing).await.unwrap();
    assert_eq!(bench.provider.hits("/introspect"), 1);

    // Its age is checked, and with it that of the endpoints.
    let third = context();
    third.clock.advance(Duration::from_secs(3_600));
    let (issuers, accepts) = resolve(&Bench::root(&bench.provider, &settings), None, &third);
    until("a try", || issuers.get("main").unwrap().keys().status().last_error.is_some()).await;
    for token in [&*token, "opaque"] {
        let rejection = issuers.authenticate(token, &accepts, &nothing).await.unwrap_err();
        assert_eq!(rejection.reason(), Reason::IssuerUnavailable, "{token}");
    }
    assert_eq!(bench.provider.hits("/introspect"), 1, "it is asked nowhere");
}

/// Its age is unknown, so it might be used forever.
#[tokio::test]
async fn a_set_on_disk_from_the_future_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |folder: &Path| json!({"keys": {"keep_in": folder, "max_stale": "1h"}});
    let bench = Bench::new(settings(folder.path())).await;
    let token = bench.token(&RSA, "a", json!({}));
    let find = || {
        std::fs::read_dir(folder.path())
            .unwrap()
            .map(|file| file.unwrap().path())
            .find(|path| path.extension().unwrap() == "json")
    };
    until("the file", || find().is_some()).await;
    let path = find().unwrap();
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    bench.provider.on(DISCOVERY, Reply::Answer(503, "text/plain", "".into()));
    for (ahead, expected) in [(0, None), (1, Some(Reason::IssuerUnavailable))] {
        kept["fetched"] = ((START + ahead) * 1_000).into();
        // A separate folder, in which no running cache stores its keys.
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(path.file_name().unwrap()), kept.to_string()).unwrap();
        let (issuers, accepts) = resolve(&Bench::root(&bench.provider, &settings(folder.path())), None, &context());
        let status = || issuers.get("main").unwrap().keys().status();
        until("keys or a try", || status().usable || status().last_error.is_some()).await;
        let outcome = issuers.authenticate(&token, &accepts, &nothing).await;
        assert_eq!(outcome.err().map(|rejection| rejection.reason()), expected, "{ahead} s");
    }
}

/// Tokens are verified with the keys, but callers that need an endpoint get the reason why it is unknown, and the
/// document is soon requested again.
#[tokio::test]
async fn keys_without_the_discovery_document_that_is_wanted_are_half_a_success() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "s3cret").unwrap();
    let provider = Provider::with_keys(&[RSA.jwk("a", json!({}))]).await;
    provider.on(DISCOVERY, Reply::Answer(503, "text/plain", "".into()));
    let settings = json!({
        "keys": {"url": format!("{}/jwks", provider.url)},
        "introspection": {"mode": "opaque", "client": {"id": "doorward", "secret": {"file": secret.path()}}},
    });
    let context = context();
    let (issuers, _) = ready(&Bench::root(&provider, &settings), &context).await;
    let status = || issuers.get("main").unwrap().keys().status();
    until("the failure", || status().last_error.is_some()).await;
    assert!(status().usable);
    provider.on(DISCOVERY, Reply::json(&provider.metadata()));
    context.clock.advance(Duration::from_secs(1));
    until("recovery", || status().last_error.is_none()).await;
}
