//! The assertion that an EventListener gets, and the interceptor to which it presents it.

mod events;

use aws_lc_rs::digest;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::deliver;
use crate::{
    fixture::{Change, Fixture, bearer},
    harness::{Answer, Push, Raw, Recorded, Reply, hex, part, request, unique, until},
};

const ANSWER: &str = r#"{"eventListener":"build","namespace":"ci","eventID":"event-1"}"#;

async fn fixture() -> Fixture {
    fixture_with(|yaml| yaml, |_| Reply::json(202, ANSWER)).await
}

async fn fixture_with(
    change: impl FnOnce(String) -> String,
    script: impl Fn(&Recorded) -> Reply + Send + Sync + 'static,
) -> Fixture {
    Fixture::with(|yaml| change(with_interceptor(&yaml)), script).await
}

fn with_interceptor(yaml: &str) -> String {
    let yaml = yaml.change(
        "schemes: [webhook], webhook: github, upstream: web}",
        "schemes: [bearer, webhook], webhook: github, upstream: web, event_listener: {namespace: ci, name: build}}",
    );
    yaml.change("routes: [api, only-a, board, web]", "routes: [api, only-a, board, web, hooks]")
        + "interceptor: {host: door.door.svc, kubernetes: cluster}\n"
}

/// The assertion and the body of a delivery that the fixture forwards.
async fn asserted(fixture: &Fixture) -> (String, String) {
    let body = Push::body();
    assert_eq!(deliver(fixture, &unique(), &body, &["Doorward-Assertion: forged"]).await.status, 202);
    let seen = fixture.upstream.only();
    fixture.upstream.take();
    (seen.one("doorward-assertion").to_owned(), body)
}

/// An EventListener's request for a trigger.
pub(super) fn question(assertion: &str, body: &str, event: &str) -> Value {
    json!({
        "body": body,
        "header": {"Content-Type": ["application/json"], "Doorward-Assertion": [assertion]},
        "context": {"event_url": "/", "event_id": event, "trigger_id": "namespaces/ci/triggers/push"},
    })
}

pub(super) const ASKED: [&str; 3] =
    ["POST /interceptor HTTP/1.1", "Host: door.door.svc", "Content-Type: application/json"];

async fn ask(fixture: &Fixture, question: &Value) -> Answer {
    fixture.doorward.send(&ASKED, question.to_string().as_bytes()).await
}

/// Whether the trigger may continue, and the whole response.
async fn goes_on(fixture: &Fixture, question: &Value) -> (bool, Value) {
    let answer = ask(fixture, question).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer: Value = serde_json::from_str(&answer.text()).unwrap();
    (answer["continue"].as_bool().unwrap(), answer)
}

#[tokio::test]
async fn a_delivery_carries_an_assertion_that_the_published_keys_prove() {
    let fixture = fixture().await;
    let (assertion, body) = asserted(&fixture).await;
    let parts: Vec<&str> = assertion.split('.').collect();
    let set = fixture.doorward.get("/.well-known/jwks.json", &["Host: api.test"]).await;
    let set: Value = serde_json::from_str(&set.text()).unwrap();
    assert_eq!(set["keys"][0]["kid"], part(&assertion, 0)["kid"]);
    let key = BASE64_URL_SAFE_NO_PAD.decode(set["keys"][0]["x"].as_str().unwrap()).unwrap();
    let signature = BASE64_URL_SAFE_NO_PAD.decode(parts[2]).unwrap();
    aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, key)
        .verify(format!("{}.{}", parts[0], parts[1]).as_bytes(), &signature)
        .unwrap();
    let claims = part(&assertion, 1);
    let digest = hex(digest::digest(&digest::SHA256, body.as_bytes()));
    assert_eq!(claims["aud"], "ci/build");
    assert_eq!(claims["sub"], "webhook:github:repo:1234");
    assert_eq!(claims["body_sha256"], digest);
    assert_eq!(claims["delivery"]["branch"], "main");
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 60);
}

#[tokio::test]
async fn a_caller_with_a_token_reaches_the_event_listener_with_the_same_assertion() {
    let workloads = |yaml: String| {
        let pods = "{id: pods, on: {routes: [hooks]}, who: {issuers: [b], kind: workload}, do: allow}";
        yaml.change("username: 'b:{sub}', kind: human", "username: 'b:{sub}', kind: workload")
            .change("\nrules:\n", &format!("\nrules:\n  - {pods}\n"))
    };
    let fixture = fixture_with(workloads, |_| Reply::json(202, ANSWER)).await;
    let token = bearer(&fixture.b.token("pod", &[]));
    for (token, user, kind) in
        [(&token, "b:pod", "workload"), (&bearer(&fixture.a.token("alice", &["dev"])), "alice", "human")]
    {
        let lines = ["POST /github HTTP/1.1", "Host: hooks.test", "Content-Type: application/json", token];
        let answer = fixture.doorward.send(&lines, b"{\"by\":\"a bot\"}").await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        let seen = fixture.upstream.only();
        fixture.upstream.take();
        assert!(!seen.has("authorization"));
        let (go, answer) =
            goes_on(&fixture, &question(seen.one("doorward-assertion"), "{\"by\":\"a bot\"}", "event-1")).await;
        assert!(go, "{answer}");
        let who = &answer["extensions"]["doorward"];
        assert_eq!((&who["user"], &who["kind"]), (&json!(user), &json!(kind)));
    }
    let lines = ["POST /github HTTP/1.1", "Host: hooks.test", "Content-Type: application/json", &token];
    let form = [lines[0], lines[1], "Content-Type: application/x-www-form-urlencoded", lines[3]];
    assert_eq!(fixture.doorward.send(&form, b"a=1").await.status, 415, "an EventListener takes JSON");
    let forged = "Authorization: Bearer forged";
    assert_eq!(fixture.doorward.send(&[lines[0], lines[1], lines[2], forged], b"{}").await.status, 401);
}

/// The id of a Trigger, with this total length in bytes.
fn trigger_id_of(length: usize) -> String {
    format!("{:x<length$}", "namespaces/ci/triggers/")
}

#[tokio::test]
async fn the_interceptor_permits_only_events_that_came_through_doorward() {
    let mut fixture = fixture().await;
    let (assertion, body) = asserted(&fixture).await;
    let good = question(&assertion, &body, "event-1");
    let changed = |change: fn(&mut Value)| {
        let mut question = good.clone();
        change(&mut question);
        question
    };
    for (why, question) in [
        (
            "no assertion",
            changed(|question| drop(question["header"].as_object_mut().unwrap().remove("Doorward-Assertion"))),
        ),
        (
            "two assertions",
            changed(|question| {
                let assertion = question["header"]["Doorward-Assertion"][0].clone();
                question["header"]["Doorward-Assertion"] = json!([assertion, assertion]);
            }),
        ),
        ("another body", changed(|question| question["body"] = "{}".into())),
        ("a forged assertion", changed(|question| question["header"]["Doorward-Assertion"] = json!(["a.b.c"]))),
        (
            "a trigger of another namespace",
            changed(|question| question["context"]["trigger_id"] = "namespaces/other/triggers/push".into()),
        ),
        (
            "another EventListener",
            changed(|question| question["interceptor_params"] = json!({"event_listener": "ci/deploy"})),
        ),
        (
            "a misspelt parameter",
            changed(|question| question["interceptor_params"] = json!({"event-listener": "ci/deploy"})),
        ),
        (
            "a trigger with a blank in its name",
            changed(|question| question["context"]["trigger_id"] = "namespaces/ci/triggers/a b".into()),
        ),
        (
            "a trigger with an id of 321 bytes",
            changed(|question| question["context"]["trigger_id"] = trigger_id_of(321).into()),
        ),
        ("an event that is none", changed(|question| question["context"]["event_id"] = "a b".into())),
        (
            "another event than the EventListener's",
            changed(|question| question["context"]["event_id"] = "event-2".into()),
        ),
    ] {
        let (go, answer) = goes_on(&fixture, &question).await;
        assert!(!go, "{why}: {answer}");
        assert!(!answer.to_string().contains(&assertion), "{why}");
    }
    for (reason, count) in [
        ("credential_missing", 1),
        ("credential_malformed", 1),
        ("signature_invalid", 1),
        ("token_invalid", 1),
        ("audience_mismatch", 2),
        ("bad_request", 4),
        ("replayed_delivery", 1),
    ] {
        let is_its = |record: &Value| {
            record["unmapped"]["endpoint"] == "interceptor"
                && record["status_code"] == reason
                && record["action_id"] == 2
        };
        assert_eq!(fixture.doorward.records(count, is_its).await.len(), count, "{reason}");
    }
    let stopped = fixture.doorward.wait_for_log("a trigger was stopped").await;
    assert_eq!(stopped["why"], "the request has no assertion, so it bypassed Doorward");
    assert!(fixture.doorward.metrics().await.contains("doorward_interceptor_stopped_total 11\n"));
    let named = changed(|question| {
        question["interceptor_params"] = json!({"event_listener": "ci/build"});
        question["context"]["trigger_id"] = "namespaces/other/triggers/push".into();
    });
    let long = changed(|question| question["context"]["trigger_id"] = trigger_id_of(320).into());
    for question in [&good, &good, &named, &long] {
        let (go, answer) = goes_on(&fixture, question).await;
        assert!(go, "{answer}");
        let who = &answer["extensions"]["doorward"];
        assert_eq!(who["user"], "webhook:github:repo:1234");
        assert_eq!(who["delivery"]["repository_id"], "1234");
    }
    assert_eq!(ask(&fixture, &json!({"body": 7})).await.status, 400);
    assert_eq!(fixture.doorward.get("/interceptor", &["Host: door.door.svc"]).await.status, 405);
    assert!(fixture.upstream.take().is_empty(), "nothing is forwarded");
}

/// Regression: its size was recorded as 0.
#[tokio::test]
async fn the_size_and_the_digest_of_a_call_are_recorded() {
    let fixture = fixture().await;
    let (assertion, body) = asserted(&fixture).await;
    let asked = question(&assertion, &body, "event-1");
    assert_eq!(ask(&fixture, &asked).await.status, 200);
    let record = fixture.doorward.record(|record| record["unmapped"]["endpoint"] == "interceptor").await;
    let sent = asked.to_string();
    assert_eq!(record["traffic"]["bytes_in"], sent.len(), "{record:#}");
    let digest = hex(digest::digest(&digest::SHA256, sent.as_bytes()));
    assert_eq!(record["unmapped"]["body_sha256"], digest, "{record:#}");
}

/// A request for another Trigger.
fn of_trigger(question: &Value, id: &str) -> Value {
    let mut question = question.clone();
    question["context"]["trigger_id"] = id.into();
    question
}

#[tokio::test]
async fn a_delivery_sets_off_only_triggers_that_its_rules_name() {
    let rules = |yaml: String| {
        yaml.change(
            "  - {id: hooks, on: {routes: [hooks], event: [push], branch: [main]}, who: {webhooks: [github]}, do: allow}",
            "  - {id: main, on: {event: [push], branch: [main], trigger: {names: [push, 'deploy-*']}}, who: {webhooks: [github]}, do: allow}
  - {id: tags, on: {event: [push], branch: [v1], trigger: {names: [release]}}, who: {webhooks: [github]}, do: allow}
  - {id: never, on: {routes: [hooks], trigger: {names: [deploy-prod]}}, do: deny}",
        )
    };
    let fixture = fixture_with(rules, |_| Reply::json(202, ANSWER)).await;
    let (assertion, body) = asserted(&fixture).await;
    let delivered = fixture.doorward.record(|record| record["unmapped"]["route"] == "hooks").await;
    let good = question(&assertion, &body, "event-1");
    for (id, may) in [
        ("namespaces/ci/triggers/push", true),
        ("namespaces/ci/triggers/deploy-staging", true),
        ("namespaces/ci/triggers/deploy-prod", false),
        ("namespaces/ci/triggers/release", false),
        ("namespaces/ci/triggerGroups/push", false),
    ] {
        let (go, answer) = goes_on(&fixture, &of_trigger(&good, id)).await;
        assert_eq!(go, may, "{id}: {answer}");
        assert!(may || answer["status"]["code"] == 7, "{id}: {answer}");
    }
    assert!(fixture.upstream.take().is_empty(), "no rule looks at service accounts");
    // Each stop is recorded as a denial, with the id of the delivery's request.
    for (name, reason, rule, by) in [
        ("deploy-prod", "policy_denied", json!("never"), "never"),
        ("release", "no_rule_matched", Value::Null, "no rule"),
    ] {
        let stopped = fixture.doorward.record(|record| record["status_detail"].to_string().contains(name)).await;
        assert_eq!(
            (&stopped["unmapped"]["endpoint"], &stopped["status_code"]),
            (&json!("interceptor"), &json!(reason))
        );
        assert_eq!((&stopped["authorizations"][0]["decision"], &stopped["action_id"]), (&json!("deny"), &json!(2)));
        let (told, of) = (&stopped["authorizations"][0]["policy"], &delivered["authorizations"][0]["policy"]);
        assert_eq!((&told["uid"], &told["version"]), (&rule, &of["version"]), "{stopped}");
        assert!(of["version"].is_string(), "{delivered}");
        let of_delivery = delivered["http_request"]["uid"].as_str().unwrap();
        assert_eq!(stopped["unmapped"]["about"], of_delivery, "{stopped}");
        let id = stopped["http_request"]["uid"].as_str().unwrap();
        let (code, said) = fixture.doorward.told(&["explain", "doorward.yaml", "--audit-id", id]).await;
        assert!(code == Some(1) && said.contains(&format!("`--audit-id {of_delivery}`")), "{said}");
        assert!(said.starts_with(&format!("recorded: deny by {by} on the delivery, policy ")), "{said}");
    }
    // A request that may continue is not recorded as a stop.
    let went_on = fixture
        .doorward
        .record(|record| record["unmapped"]["endpoint"] == "interceptor" && record["status_code"].is_null());
    let id = went_on.await["http_request"]["uid"].as_str().unwrap().to_owned();
    let (_, said) = fixture.doorward.told(&["explain", "doorward.yaml", "--audit-id", &id]).await;
    assert!(said.starts_with("recorded: not refused, and no rule was evaluated"), "{said}");
    // A caller with a token is allowed by a rule that does not mention Triggers.
    let token = bearer(&fixture.a.token("alice", &["dev"]));
    let lines = ["POST /github HTTP/1.1", "Host: hooks.test", "Content-Type: application/json", &token];
    assert_eq!(fixture.doorward.send(&lines, b"{}").await.status, 202);
    let assertion = fixture.upstream.only().one("doorward-assertion").to_owned();
    // A Trigger inside the EventListener may have no name, so that no deny could name it.
    for (name, may) in [("release", true), ("deploy-prod", false), ("", false)] {
        let asked = of_trigger(&question(&assertion, "{}", "event-1"), &format!("namespaces/ci/triggers/{name}"));
        let (go, answer) = goes_on(&fixture, &asked).await;
        assert_eq!(go, may, "{name}: {answer}");
        assert_eq!(answer.to_string().contains("has no name"), name.is_empty(), "{name}: {answer}");
    }
}

#[tokio::test]
async fn attacks_z20_the_service_account_of_a_trigger_is_read_if_rules_test_it() {
    let rules =
        |yaml: String| yaml.change("branch: [main]}", "branch: [main], trigger: {service_accounts: [builder]}}");
    let fixture = fixture_with(rules, |request| {
        let of = |account: &str| Reply::json(200, &json!({"spec": {"serviceAccountName": account}}).to_string());
        match request.line().split(' ').nth(1).unwrap_or_default().rsplit('/').next().unwrap_or_default() {
            "build" => Reply::json(
                200,
                &json!({"spec": {"serviceAccountName": "builder", "triggers": [
                    {"name": "inline-deployer", "serviceAccountName": "deployer"},
                    {"name": "inline-default"},
                    {"name": "two", "serviceAccountName": "builder"},
                ]}})
                .to_string(),
            ),
            "own" => of("builder"),
            "deployer" | "two" => of("deployer"),
            "default" => of(""),
            "broken" => Reply::json(500, "{}"),
            "inline-deployer" | "inline-default" | "nowhere" => Reply::json(404, "{}"),
            _ => Reply::json(202, ANSWER),
        }
    })
    .await;
    let (assertion, body) = asserted(&fixture).await;
    let good = question(&assertion, &body, "event-1");
    for (name, may) in [
        ("own", true),
        ("default", true),
        ("inline-default", true),
        ("deployer", false),
        ("inline-deployer", false),
        // One inside the EventListener and one beside it.
        ("two", false),
        ("nowhere", false),
        ("..", false),
    ] {
        let (go, answer) = goes_on(&fixture, &of_trigger(&good, &format!("namespaces/ci/triggers/{name}"))).await;
        assert_eq!(go, may, "{name}: {answer}");
    }
    for seen in fixture.upstream.take() {
        assert!(seen.line().starts_with("GET /apis/triggers.tekton.dev/v1beta1/namespaces/ci/"), "{}", seen.line());
        assert_eq!(seen.one("authorization"), "Bearer upstream-token");
    }
    let answer = ask(&fixture, &of_trigger(&good, "namespaces/ci/triggers/broken")).await;
    assert_eq!((answer.status, answer.reason()), (502, "upstream_failed".to_owned()), "{}", answer.text());
}

/// An EventListener asks only once: after an error there would be no run.
#[tokio::test]
async fn a_brief_store_outage_loses_no_run() {
    let fixture = Fixture::with_faults(|yaml| with_interceptor(&yaml), |_| Reply::json(202, ANSWER)).await;
    let (assertion, body) = asserted(&fixture).await;
    fixture.doorward.break_disk(true);
    let question = question(&assertion, &body, "event-1");
    let mended = async {
        fixture.doorward.until_metrics_say("doorward_store_errors_total{operation=\"put").await;
        fixture.doorward.break_disk(false);
    };
    let ((goes_on, answer), ()) = tokio::join!(goes_on(&fixture, &question), mended);
    assert!(goes_on, "{answer}");
}

/// Parsed into values, such a list takes sixteen times its size.
#[tokio::test]
async fn a_question_with_many_values_uses_little_more_memory_than_its_bytes() {
    let fixture = fixture().await;
    let list = |value: &str, count: usize| format!("[{value}{}]", format!(",{value}").repeat(count));
    let context = r#""context":{"event_id":"e","trigger_id":"namespaces/ci/triggers/push"}"#;
    let escaped = format!(r#""\n{}""#, "x".repeat(8 << 20));
    let head = ["POST /interceptor HTTP/1.1", "Host: door.door.svc", "Content-Type: application/json"];
    for part in [
        format!(r#""interceptor_params":{{"a":{}}}"#, list("0", 4 << 20)),
        format!(r#""interceptor_params":{{"event_listener":{}}}"#, list("0", 4 << 20)),
        format!(r#""header":{{"A":{}}}"#, list(r#""""#, 2 << 20)),
        format!(r#""header":{{"Doorward-Assertion":{}}}"#, list(r#""""#, 2 << 20)),
        format!(r#""body":{}"#, list("0", 4 << 20)),
        format!(r#""body":{escaped}"#),
        format!(r#""header":{{"A":[{escaped}]}}"#),
    ] {
        let answer = fixture.doorward.send(&head, format!("{{{part},{context}}}").as_bytes()).await;
        let none = ["the request has no assertion", "the request has more than one assertion"];
        assert!(none.iter().any(|none| answer.text().contains(none)), "{}", answer.text());
    }
    for question in [
        format!(r#"{{"context":{{"event_id":"e","trigger_id":{escaped}}}}}"#),
        format!(r#"{{"context":{{"event_id":{escaped},"trigger_id":"t"}}}}"#),
        format!(r#"{{"header":{{{escaped}:[]}},{context}}}"#),
        format!(r#"{{"header":{{"Doorward-Assertion":[{escaped}]}},{context}}}"#),
    ] {
        let answer = fixture.doorward.send(&head, question.as_bytes()).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(answer.text().contains("a text with escapes is too long"), "{}", answer.text());
    }
    // A byte per level, and as much again while the buffer for them grows.
    let nested = "[".repeat(4 << 20) + &"]".repeat(4 << 20);
    for part in [format!(r#""body":{nested}"#), format!(r#""header":{{"A":{nested}}}"#)] {
        let answer = fixture.doorward.send(&head, format!("{{{part},{context}}}").as_bytes()).await;
        assert!(answer.text().contains("the request has no assertion"), "{}", answer.text());
    }
    // For two at once, as the previous one may not be freed yet. Values would take 130 MiB more.
    fixture.doorward.stays_below(170, "questions of many values");
}

#[tokio::test]
async fn it_is_asked_on_the_listener_that_the_configuration_names_and_on_no_other() {
    let change = |yaml: String| {
        let two = "listeners: [{name: public, address: 127.0.0.1:0}, {name: inner, address: 127.0.0.1:0}]";
        yaml.change("listeners: [{name: public, address: 127.0.0.1:0}]", two)
            .change("{host: door.door.svc,", "{host: door.door.svc, listener: inner,")
    };
    let fixture = fixture_with(change, |_| Reply::json(202, ANSWER)).await;
    let (assertion, body) = asserted(&fixture).await;
    let question = question(&assertion, &body, "event-1");
    assert_eq!(ask(&fixture, &question).await.status, 404);
    let mut raw = Raw::connect(fixture.doorward.address("inner")).await;
    raw.send(request(&ASKED, question.to_string().as_bytes())).await;
    let answer = raw.answer().await;
    assert!(answer.status == 200 && answer.text().contains("\"continue\":true"), "{}", answer.text());
}

/// An EventListener asks only once, so that a 503 meant a run that nobody made.
#[tokio::test]
async fn questions_that_one_address_never_ends_keep_out_none_of_another() {
    let change = |yaml: String| {
        yaml.change("limits: {", "limits: {buffered_bytes: 512KiB, ").change("body_timeout: 1s", "body_timeout: 1m")
    };
    let fixture = fixture_with(change, |_| Reply::json(202, ANSWER)).await;
    let (assertion, body) = asserted(&fixture).await;
    let lines = ASKED.join("\r\n");
    let mut idle = Vec::new();
    // They get half of the memory.
    for _ in 0..40 {
        let mut raw = fixture.doorward.raw().await;
        raw.send(format!("{lines}\r\nContent-Length: 8192\r\n\r\n{}", " ".repeat(8191))).await;
        idle.push(raw);
    }
    // Once their data is read, there is no room for a request from their address.
    until(async || {
        let mut raw = fixture.doorward.raw().await;
        raw.send(request(&ASKED, b"{}")).await;
        raw.answer().await.status == 503
    })
    .await;
    let mut raw = Raw::connect_from([127, 0, 0, 2].into(), fixture.doorward.address("public")).await;
    raw.send(request(&ASKED, question(&assertion, &body, "event-1").to_string().as_bytes())).await;
    let answer = raw.answer().await;
    assert!(answer.status == 200 && answer.text().contains("\"continue\":true"), "{}", answer.text());
}
