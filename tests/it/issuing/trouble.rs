//! The responses of the token endpoints to trouble on Doorward's side: that it is temporary, and when to retry.

use std::{fs, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{TARGET, World, secret};
use crate::{
    fixture::{Change, bearer},
    harness::{Answer, EXCHANGE, Fault, Issuer, exchange_form, found, request, until},
};

/// It may succeed later, but not at once.
fn assert_passes(what: &str, answer: &Answer, why: &str) {
    assert_eq!(answer.status, 503, "{what}: {}", answer.text());
    assert_later(what, answer);
    assert_eq!(answer.json()["error"], "temporarily_unavailable", "{what}: {}", answer.text());
    let said = answer.json()["error_description"].as_str().unwrap().to_owned();
    assert!(said.contains(why), "{what}: {said}");
}

fn assert_later(what: &str, answer: &Answer) {
    let after: u64 = answer.header("retry-after").unwrap_or_else(|| panic!("{what}: {}", answer.head)).parse().unwrap();
    assert!((1..=60).contains(&after), "{what}: {after}");
}

#[tokio::test]
async fn a_refusal_for_an_internal_problem_says_when_to_retry() {
    let away = Issuer::start().await;
    away.set_fault(Fault::Error);
    let world = World::with(|yaml| {
        let name = format!("  - {{name: away, issuer: '{}', audiences: ['https://doorward.test']}}\n", away.url());
        yaml.change("  - {name: own, preset", &format!("{name}  - {{name: own, preset"))
            .change("{issuer: ci}]", "{issuer: ci}, {issuer: away}]")
            .change("{path: doorward.redb}", "{path: doorward.redb, max_mirror_age: 3s}")
    })
    .await;
    let refused = world.exchange(&away.token("alice", &["dev"]), "deploy").await;
    assert_passes("an issuer whose keys are not to be had", &refused, "cannot be asked right now");

    let job = world.job(&json!({}));
    let own = world.exchange(&job, "deploy").await.token();
    world.doorward.break_disk(true);
    // A write detects the broken disk.
    let refused = found(async || {
        let answer = world.doorward.submit("/oauth2/revoke", &[], &format!("token={own}")).await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert_passes("an end that cannot be written down", &refused, "try again");
    let basic = BASE64_STANDARD.encode(format!("target:{}", secret("target").replace(' ', "+")));
    let basic = format!("Authorization: Basic {basic}");
    let (exchanged, told) = found(async || {
        let exchanged = world.exchange(&job, "deploy").await;
        let told = world.doorward.submit("/oauth2/introspect", &[&basic], &format!("token={own}")).await;
        (exchanged.status == 503 && told.status == 503).then_some((exchanged, told))
    })
    .await;
    let why = "Doorward cannot check at the moment whether the token was revoked";
    assert_passes("nobody knows what was revoked", &exchanged, why);
    assert_passes("nobody knows what was revoked, a resource server asks", &told, why);
    world.doorward.break_disk(false);
    until(async || world.exchange(&job, "deploy").await.status == 200).await;
}

#[tokio::test]
async fn errors_in_a_form_are_reported_as_oauth_errors() {
    let limits = "limits: {body_timeout: 1s, buffered_bytes: 8KiB, ";
    let world = World::with(|yaml| yaml.change("limits: {", limits)).await;
    let form = "Content-Type: application/x-www-form-urlencoded";
    for path in ["/oauth2/token", "/oauth2/revoke", "/oauth2/introspect"] {
        for (method, length, body, status, error) in [
            ("GET", 0, 0, 405, "invalid_request"),
            ("POST", 65 << 10, 0, 413, "invalid_request"),
            ("POST", 10, 3, 408, "invalid_request"),
            ("POST", 9 << 10, 9 << 10, 503, "temporarily_unavailable"),
        ] {
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: doorward.test\r\n{form}\r\nContent-Length: {length}\r\n\r\n"
            );
            let mut raw = world.doorward.raw().await;
            raw.send(head + &"x".repeat(body)).await;
            let answer = raw.answer().await;
            let said = answer.json();
            assert_eq!((answer.status, &said["error"]), (status, &json!(error)), "{path}: {}", answer.text());
            assert!(said["error_description"].is_string(), "{path}: {said}");
            assert_eq!(answer.header("allow"), (status == 405).then_some("POST"), "{path}: {}", answer.head);
        }
    }
}

#[tokio::test]
async fn without_keys_no_token_is_issued_and_the_refusal_says_when_to_retry() {
    let seal = |byte: u8| BASE64_STANDARD.encode([byte; 32]);
    let change = |yaml: String| yaml.change("\ntokens:\n", "\nsessions: {keys: [{file: seal}]}\ntokens:\n");
    let mut world = World::with_files(change, &[("seal", &seal(7))]).await;
    let job = world.job(&json!({}));
    world.exchange(&job, "deploy").await.token();
    let (path, kids) = (world.doorward.dir().join("seal"), world.kids().await);
    // The sealing key was replaced, and the previous one was not kept beside it.
    fs::write(&path, seal(8)).unwrap();
    world.doorward = world.doorward.kill_and_restart().await;
    let why = "the keys of tokens have not been read from the store yet; try again in a moment";
    for (path, form) in [
        ("/oauth2/token", format!("subject_token={job}&audience={TARGET}")),
        ("/oauth2/revoke", "token=x".to_owned()),
        ("/oauth2/introspect", "token=x".to_owned()),
    ] {
        assert_passes(path, &world.doorward.submit(path, &[], &form).await, why);
    }
    // In the format of the registry protocol.
    let answer = world.doorward.get("/oauth2/registry?service=registry.test", &["Host: doorward.test"]).await;
    assert_eq!((answer.status, answer.header("content-type")), (503, Some("application/json")), "{}", answer.text());
    let error = &answer.json()["errors"][0];
    assert_eq!((&error["code"], &error["message"]), (&json!("UNAVAILABLE"), &json!(why)), "{error}");
    assert_later("a registry", &answer);
    let answer = world.doorward.get("/oauth2/jwks", &["Host: doorward.test"]).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_later("the set", &answer);
    // Metrics count refusals in any format.
    let failed = r#"doorward_requests_total{route="-",scheme="none",outcome="failed",reason="store_unavailable"} 5"#;
    world.doorward.until_metrics_say(failed).await;
    // It is restored, without a restart.
    fs::write(&path, seal(7)).unwrap();
    until(async || world.exchange(&job, "deploy").await.status == 200).await;
    assert_eq!(world.kids().await, kids);
}

/// Keys were only recreated after moving the whole store away, with its revocations.
#[tokio::test]
async fn an_operator_drops_keys_whose_seal_is_lost_and_new_ones_are_made() {
    let seal = |byte: u8| BASE64_STANDARD.encode([byte; 32]);
    let change = |yaml: String| yaml.change("\ntokens:\n", "\nsessions: {keys: [{file: seal}]}\ntokens:\n");
    let mut world = World::with_files(change, &[("seal", &seal(7))]).await;
    let (job, before) = (world.job(&json!({})), world.kids().await);
    let drop = ["token-keys", "drop", "--why", "the old seal is given up"];
    let (code, said) = world.doorward.operator(&drop).await;
    assert!(code == Some(1) && said.contains("nothing was dropped"), "of keys that can be used: {code:?} {said}");
    fs::write(world.doorward.dir().join("seal"), seal(8)).unwrap();
    world.doorward = world.doorward.kill_and_restart().await;
    assert_eq!(world.exchange(&job, "deploy").await.status, 503);
    let (code, said) = world.doorward.operator(&drop).await;
    assert_eq!(code, Some(0), "{said}");
    until(async || world.exchange(&job, "deploy").await.status == 200).await;
    let after = world.kids().await;
    assert!(!after.iter().any(|kid| before.contains(kid)), "{before:?} {after:?}");
    let commands = |record: &Value| record["unmapped"]["command"] == "drop-token-keys" && record["status_id"] == 1;
    assert_eq!(world.doorward.records(1, commands).await[0]["unmapped"]["why"], "the old seal is given up");
    let made = |record: &Value| {
        let id = record["unmapped"]["key"]["id"].as_str();
        record["metadata"]["event_code"] == "key.made" && id.is_some_and(|id| after.iter().any(|kid| kid == id))
    };
    assert_eq!(world.doorward.records(after.len(), made).await.len(), after.len());
}

/// Each occupied two places in the trail while the keys of the issuer were fetched, and requests with valid tokens
/// waited behind them.
#[tokio::test]
async fn unverified_tokens_do_not_delay_other_requests_at_the_trail() {
    let world = World::with(|yaml| yaml.change("audit: {", "audit: {queue: 2, ")).await;
    let alice = bearer(&world.person("alice", &json!({})));
    let get = async || world.doorward.get("/", &["Host: localhost", &alice]).await;
    assert_eq!(get().await.status, 200);
    world.people.set_fault(Fault::Hang);
    let header = json!({"alg": "ES256", "typ": "at+jwt", "kid": "of-nobody"});
    let forged = world.people.sign_with(&header, &world.people.claims("alice", &["dev"]));
    let form = exchange_form(&[("subject_token", &forged), ("audience", TARGET), ("scope", "plan")]);
    let mut stranger = world.doorward.raw().await;
    stranger.send(request(&EXCHANGE, form.as_bytes())).await;
    world.doorward.until_metrics_say("doorward_issuer_unknown_kids_total{issuer=\"people\"} 1").await;
    assert_eq!(get().await.status, 200);
    assert!(timeout(Duration::ZERO, stranger.some()).await.is_err(), "its key is still asked for");
}
