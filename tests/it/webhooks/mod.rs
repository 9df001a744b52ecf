//! Deliveries over the wire, as far as the whole program is needed. The vectors of each sender are also unit tests of
//! `webhooks`.

mod again;
mod attacks;
mod certificate;
pub mod crash_recovery;
mod flood;
mod handover;
mod hold;
mod interceptor;
mod recorded;
mod renamed;
mod rotation;
mod sealed;
mod sender_attacks;
pub mod senders;
mod shared;
mod sns;
mod unwanted;
mod vectors;
mod weaker;

use aws_lc_rs::hmac;

use crate::{
    fixture::{Change, Fixture, WEBHOOK_SECRET},
    harness::{Answer, Push, Reply, Upstream, free_port, hex, now, unique},
};

const BODY: &str = Push::BODY;

async fn deliver(fixture: &Fixture, id: &str, body: &str, more: &[&str]) -> Answer {
    Push::of(body, id, WEBHOOK_SECRET).send(&fixture.doorward, more).await
}

#[tokio::test]
async fn a_genuine_delivery_arrives_once_byte_for_byte() {
    let fixture = Fixture::answering(|_| Reply::json(202, r#"{"eventID":"e"}"#)).await;
    let id = unique();
    let secret_headers = [
        "Authorization: Bearer x",
        "Cookie: a=b",
        "X-GitHub-Enterprise-Host: evil.example",
        "Ce-Specversion: 1.0",
        "Ce-Type: evil",
    ];
    assert_eq!(deliver(&fixture, &id, BODY, &secret_headers).await.status, 202, "webhooks:1");
    let seen = fixture.upstream.only();
    assert_eq!(seen.body, BODY.as_bytes());
    assert_eq!(seen.one("x-forwarded-user"), "webhook:github:repo:1234");
    assert_eq!(seen.one("x-github-event"), "push");
    for name in ["authorization", "cookie", "x-github-enterprise-host", "ce-specversion", "ce-type"] {
        assert!(!seen.has(name), "attacks:Z17 {name}");
    }
    let again = deliver(&fixture, &id, BODY, &[]).await;
    assert_eq!((again.status, again.reason().as_str()), (200, "replayed_delivery"), "webhooks:17");
    assert_eq!(
        deliver(&fixture, &unique(), BODY, &[]).await.status,
        200,
        "webhooks:18: the same signed body under another id"
    );
    assert_eq!(fixture.upstream.requests().len(), 1);
}

#[tokio::test]
async fn a_genuine_delivery_that_no_rule_allows_is_403() {
    let fixture = Fixture::start().await;
    let other = BODY.replace("refs/heads/main", "refs/heads/other");
    assert_eq!(deliver(&fixture, &unique(), &other, &[]).await.status, 403);
    assert!(fixture.upstream.take().is_empty());
    assert_eq!(deliver(&fixture, &unique(), BODY, &[]).await.status, 200, "twin");
}

/// A 503 with the time after which to retry, which senders respect.
fn assert_asks_to_come_back(answer: &Answer, row: &str) {
    assert_eq!(answer.status, 503, "{row}: {}", answer.text());
    let span: u64 = answer.header("retry-after").expect("Retry-After").parse().unwrap();
    assert!((1..=60).contains(&span), "{row}: {span}");
}

#[tokio::test]
async fn webhooks_33_while_the_upstream_refuses_the_sender_gets_503_and_its_retry_arrives() {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
    let down = format!("- {{name: down, url: 'http://{address}'}}\n  - {{name: web, url: ");
    let fixture = Fixture::with(
        |yaml| {
            yaml.change("- {name: web, url: ", &down)
                .change("webhook: github, upstream: web", "webhook: github, upstream: down")
        },
        |_| Reply::Hang,
    )
    .await;
    let id = unique();
    assert_asks_to_come_back(&deliver(&fixture, &id, BODY, &[]).await, "webhooks:33 refused");
    let upstream = Upstream::scripted_at(address, |_| Reply::json(202, "{}")).await;
    assert_eq!(deliver(&fixture, &id, BODY, &[]).await.status, 202, "webhooks:33 given back");
    assert_eq!(upstream.requests().len(), 1);
    assert_eq!(deliver(&fixture, &id, BODY, &[]).await.status, 200, "webhooks:33 taken once");
}

#[tokio::test]
async fn webhooks_33_while_the_upstream_hangs_the_sender_gets_503_in_time_and_can_retry() {
    let hangs = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let script = hangs.clone();
    // Far longer than the test: only the sender's own time limit ends the request.
    let mut fixture = Fixture::with(
        |yaml| {
            yaml.change("{name: web, url:", "{name: web, response_timeout: 10m, url:")
                .change("sender: github,", "sender: github, answer_within: 200ms,")
        },
        move |_| match script.load(std::sync::atomic::Ordering::SeqCst) {
            true => Reply::Hang,
            false => Reply::json(202, "{}"),
        },
    )
    .await;
    let id = unique();
    assert_asks_to_come_back(&deliver(&fixture, &id, BODY, &[]).await, "webhooks:33 hangs");
    assert_asks_to_come_back(&deliver(&fixture, &id, BODY, &[]).await, "webhooks:33 hangs again");
    hangs.store(false, std::sync::atomic::Ordering::SeqCst);
    // A slow machine may need longer than the time limit for the answer.
    fixture.doorward.change("answer_within: 200ms", "answer_within: 1m");
    fixture.doorward.wait_for_generation(2).await;
    assert_eq!(deliver(&fixture, &id, BODY, &[]).await.status, 202, "webhooks:33 given back");
    assert_eq!(deliver(&fixture, &id, BODY, &[]).await.status, 200, "webhooks:33 taken once");
}

#[tokio::test]
async fn webhooks_33_an_answer_that_is_neither_yes_nor_no_is_503() {
    let fixture = Fixture::answering(|request| {
        let number = request.one("x-github-delivery");
        Reply::Bytes(format!("HTTP/1.1 {number} X\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n").into_bytes())
    })
    .await;
    for (status, expected) in [("500", 503), ("503", 503), ("307", 503), ("400", 400), ("422", 422), ("404", 503)] {
        for _ in 0..2 {
            let answer = deliver(&fixture, status, BODY, &[]).await;
            assert_eq!(answer.status, expected, "webhooks:33 {status}");
            assert_eq!(fixture.upstream.take().len(), 1, "webhooks:33 {status}: given back");
            if expected == 503 {
                assert_asks_to_come_back(&answer, status);
            }
        }
    }
}

#[tokio::test]
async fn the_event_id_of_the_event_listener_is_in_the_audit_record() {
    let id = unique();
    let answer = format!(r#"{{"eventListener":"el","namespace":"ci","eventListenerUID":"","eventID":"{id}"}}"#);
    let body = answer.clone();
    let fixture = Fixture::answering(move |_| Reply::json(202, &body)).await;
    let accepted = deliver(&fixture, &unique(), BODY, &[]).await;
    assert_eq!((accepted.status, accepted.text()), (202, answer));
    fixture.doorward.record(|record| record["unmapped"]["event_id"] == id.as_str()).await;
}

#[tokio::test]
async fn only_one_of_fifty_simultaneous_duplicates_arrives() {
    let fixture = std::sync::Arc::new(Fixture::answering(|_| Reply::json(202, "{}")).await);
    let id = unique();
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let (fixture, id) = (fixture.clone(), id.clone());
            tokio::spawn(async move { deliver(&fixture, &id, BODY, &[]).await.status })
        })
        .collect();
    let mut statuses = Vec::new();
    for task in tasks {
        statuses.push(task.await.unwrap());
    }
    assert_eq!(statuses.iter().filter(|status| **status == 202).count(), 1, "webhooks:17 {statuses:?}");
    assert!(statuses.iter().all(|status| [200, 202, 503].contains(status)), "{statuses:?}");
    assert_eq!(fixture.upstream.requests().len(), 1, "webhooks:17");
}

#[tokio::test]
async fn webhooks_27_an_unsigned_test_is_answered_if_configured_and_not_forwarded() {
    let fixture = Fixture::with(
        |yaml| yaml.change("sender: github,", "sender: bitbucket_data_center, unsigned_pings: true,"),
        |_| Reply::json(202, "{}"),
    )
    .await;
    let send = async |event: &str| {
        let lines = ["POST /github HTTP/1.1", "Host: hooks.test", "Content-Type: application/json", event];
        fixture.doorward.send(&lines, b"{\"test\": true}").await.status
    };
    assert_eq!(send("X-Event-Key: diagnostics:ping").await, 200);
    assert_eq!(send("X-Event-Key: repo:refs_changed").await, 401);
    assert!(fixture.upstream.requests().is_empty());
}

/// Senders whose proof is not a signature over a JSON body; their deliveries are forwarded differently.
#[tokio::test]
async fn a_secret_in_the_address_stays_here_and_a_signed_form_passes_as_it_came() {
    let fixture = Fixture::with(
        |yaml| {
            let route = |name: &str| {
                format!(
                    "  - {{name: {name}, kind: webhook, hosts: [hooks.test], paths: [/{name}], schemes: [webhook], \
                     webhook: {name}, upstream: web}}\n"
                )
            };
            let sender = |name: &str, kind: &str, file: &str| {
                format!("  - {{name: {name}, sender: {kind}, secrets: [{{secret: {{file: {file}}}}}]}}\n")
            };
            let senders = sender("hub", "docker_hub", "token") + &sender("slack", "slack", "client");
            let rule = "  - {id: others, on: {routes: [hub, slack]}, who: {webhooks: [hub, slack]}, do: allow}\n";
            yaml.change("\nwebhooks:\n", &format!("\nwebhooks:\n{senders}"))
                .change("\nroutes:\n", &format!("\nroutes:\n{}{}", route("hub"), route("slack")))
                .change("\nrules:\n", &format!("\nrules:\n{rule}"))
        },
        |_| Reply::json(202, "{}"),
    )
    .await;
    let hub = |query: &str| format!("POST /hub{query} HTTP/1.1");
    let json = "Content-Type: application/json";
    let body = br#"{"push_data":{"tag":"v1"},"repository":{"repo_name":"acme/app"}}"#;
    for query in ["", "?secret=upstream-toke", "?secret=upstream-token&secret=upstream-token"] {
        let answer = fixture.doorward.send(&[&hub(query), "Host: hooks.test", json], body).await;
        assert!(matches!(answer.status, 400 | 401), "webhooks:24 {query}");
    }
    let answer = fixture.doorward.send(&[&hub("?secret=upstream-token"), "Host: hooks.test", json], body).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let seen = fixture.upstream.only();
    assert!(seen.head.starts_with("POST /hub HTTP/1.1"), "{}", seen.head);
    fixture.upstream.take();

    let (form, time) = (b"command=%2Fdeploy&user_id=U1&trigger_id=1.2", now());
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"introspection-secret");
    let signed = [format!("v0:{time}:").as_bytes(), form].concat();
    let tag = hex(hmac::sign(&key, &signed));
    let (time, signature) = (format!("X-Slack-Request-Timestamp: {time}"), format!("X-Slack-Signature: v0={tag}"));
    let kind = "Content-Type: application/x-www-form-urlencoded";
    let lines = ["POST /slack HTTP/1.1", "Host: hooks.test", kind, &time, &signature];
    let taken = fixture.doorward.send(&lines, form).await;
    assert_eq!(
        (taken.status, taken.text().as_str()),
        (200, ""),
        "Slack takes no 202, and shows people what is in an answer"
    );
    let seen = fixture.upstream.only();
    assert_eq!((&*seen.body, seen.one("content-type")), (&form[..], "application/x-www-form-urlencoded"));
    let again = fixture.doorward.send(&lines, form).await;
    assert_eq!((again.status, again.reason().as_str()), (200, "replayed_delivery"), "webhooks:17");
    for record in fixture.doorward.audit() {
        assert!(!record.to_string().contains("upstream-token"), "{record}");
    }
}
