//! Deliveries over the wire. The vectors of each sender are unit tests of `webhooks`; here is what only the whole shows.

use aws_lc_rs::hmac;

use crate::{
    fixture::{Fixture, WEBHOOK_SECRET},
    harness::{Answer, Reply, unique},
};

const BODY: &str = r#"{"ref":"refs/heads/main","before":"0","after":"1","commits":[],"repository":{"id":1234,"full_name":"acme/app","owner":{"login":"acme"}},"sender":{"id":7,"login":"octocat"}}"#;

fn signature(body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, WEBHOOK_SECRET.as_bytes());
    hmac::sign(&key, body).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn lines(id: &str, signature: &str) -> Vec<String> {
    [
        "POST /github HTTP/1.1",
        "Host: hooks.test",
        "Content-Type: application/json",
        "X-GitHub-Event: push",
        &format!("X-GitHub-Delivery: {id}"),
        &format!("X-Hub-Signature-256: sha256={signature}"),
    ]
    .map(str::to_owned)
    .to_vec()
}

async fn deliver(fixture: &Fixture, id: &str, body: &str, more: &[&str]) -> Answer {
    let lines = lines(id, &signature(body.as_bytes()));
    let mut all: Vec<&str> = lines.iter().map(String::as_str).collect();
    all.extend(more);
    fixture.doorward.send(&all, body.as_bytes()).await
}

#[tokio::test]
async fn a_genuine_delivery_arrives_once_byte_for_byte() {
    let fixture = Fixture::with(|yaml| yaml, |_| Reply::json(202, r#"{"eventID":"e"}"#)).await;
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
async fn a_forged_delivery_is_401_and_nothing_arrives() {
    let fixture = Fixture::start().await;
    let good = signature(BODY.as_bytes());
    let flipped = format!("{}{}", &good[..63], if good.ends_with('0') { '1' } else { '0' });
    for (row, signature, body) in [
        ("webhooks:2", flipped, BODY.to_owned()),
        ("webhooks:2", good[..62].to_owned(), BODY.to_owned()),
        ("webhooks:6", String::new(), BODY.to_owned()),
        ("webhooks:8", good.clone(), format!("{BODY} ")),
        ("webhooks:8", good.clone(), BODY.replace(":", ": ")),
    ] {
        let lines = lines(&unique(), &signature);
        let answer =
            fixture.doorward.send(&lines.iter().map(String::as_str).collect::<Vec<_>>(), body.as_bytes()).await;
        assert!(matches!(answer.status, 400 | 401), "{row}: {}", answer.text());
        assert!(!answer.text().contains(&good), "{row}");
    }
    let answer = deliver(&fixture, &unique(), BODY, &["Content-Encoding: gzip"]).await;
    assert_eq!(answer.status, 415, "webhooks:12");
    let other = BODY.replace("refs/heads/main", "refs/heads/other");
    let answer = deliver(&fixture, &unique(), &other, &[]).await;
    assert_eq!(answer.status, 403, "a genuine one that no rule allows");
    assert!(fixture.upstream.take().is_empty());
}

#[tokio::test]
async fn a_chunked_delivery_is_verified_and_a_trailer_is_not_its_signature() {
    let fixture = Fixture::with(|yaml| yaml, |_| Reply::json(202, "{}")).await;
    let chunks =
        |body: &str| body.as_bytes().iter().map(|byte| format!("1\r\n{}\r\n", char::from(*byte))).collect::<String>();
    let mut raw = fixture.doorward.raw().await;
    let head = lines(&unique(), &signature(BODY.as_bytes())).join("\r\n");
    raw.send(format!("{head}\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", chunks(BODY))).await;
    assert_eq!(raw.answer().await.status, 202, "webhooks:10");
    let mut raw = fixture.doorward.raw().await;
    let head =
        lines(&unique(), "x").into_iter().filter(|line| !line.starts_with("X-Hub")).collect::<Vec<_>>().join("\r\n");
    let trailer = format!("X-Hub-Signature-256: sha256={}", signature(BODY.as_bytes()));
    raw.send(format!("{head}\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n{trailer}\r\n\r\n", chunks(BODY))).await;
    assert_eq!(raw.answer().await.status, 401, "webhooks:10");
    let mut raw = fixture.doorward.raw().await;
    let head = lines(&unique(), &signature(BODY.as_bytes())).join("\r\n");
    raw.send(format!("{head}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")).await;
    assert_eq!(raw.answer().await.status, 400, "webhooks:11");
    raw.rest().await;
}

#[tokio::test]
async fn a_body_that_stalls_is_408_and_an_upstream_that_is_down_lets_the_sender_try_again() {
    let fixture = Fixture::with(
        |yaml| yaml,
        |request| if request.body.is_empty() { Reply::Hang } else { Reply::json(500, "{}") },
    )
    .await;
    let mut raw = fixture.doorward.raw().await;
    let head = lines(&unique(), &signature(BODY.as_bytes())).join("\r\n");
    raw.send(format!("{head}\r\nContent-Length: {}\r\n\r\n{{", BODY.len())).await;
    assert_eq!(raw.answer().await.status, 408, "webhooks:16");
    let id = unique();
    assert_eq!(deliver(&fixture, &id, BODY, &[]).await.status, 500);
    // The failed one was given back: the sender's next try is forwarded, not swallowed.
    assert_eq!(deliver(&fixture, &id, BODY, &[]).await.status, 500, "webhooks:33");
    assert_eq!(fixture.upstream.requests().len(), 2, "webhooks:33");
}

#[tokio::test]
async fn of_fifty_twins_at_once_one_arrives() {
    let fixture = std::sync::Arc::new(Fixture::with(|yaml| yaml, |_| Reply::json(202, "{}")).await);
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
