//! The store away: nobody is logged out, nobody gets in, and what can do without it goes on for a while.

use crate::{
    fixture::{WEBHOOK_SECRET, bearer},
    harness::{Doorward, Issuer, Upstream, log_in, unique, within},
};

/// What a delivery of its own hears.
async fn deliver(doorward: &Doorward) -> u16 {
    deliver_as(doorward, &unique()).await
}

async fn deliver_as(doorward: &Doorward, id: &str) -> u16 {
    let body = format!(
        r#"{{"ref":"refs/heads/main","before":"1","after":"{}","commits":[],"repository":{{"id":1,"full_name":"o/r","owner":{{"login":"o"}}}},"sender":{{"id":1,"login":"s"}}}}"#,
        id
    );
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, WEBHOOK_SECRET.as_bytes());
    let signed = aws_lc_rs::hmac::sign(&key, body.as_bytes());
    let hex: String = signed.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let lines = [
        "POST /github HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        "X-GitHub-Event: push",
        &format!("X-GitHub-Delivery: {id}"),
        &format!("X-Hub-Signature-256: sha256={hex}"),
    ];
    doorward.send(&lines, body.as_bytes()).await.status
}

#[tokio::test]
async fn a_store_that_is_away_is_503_and_nobody_is_logged_out() {
    let (issuer, upstream) = (Issuer::start().await, Upstream::start().await);
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("secret", WEBHOOK_SECRET), ("client", "client-secret")] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let yaml = format!(
        "
listeners: [{{name: public, address: 127.0.0.1:0}}]
issuers:
  - name: a
    issuer: '{issuer}'
    audiences: ['https://doorward.test']
    username: '{{sub}}'
    kind: human
    login: {{client: {{id: doorward, secret: {{file: client}}}}}}
upstreams:
  - {{name: web, url: '{upstream}'}}
webhooks:
  - {{name: github, sender: github, hold: false, secrets: [{{secret: {{file: secret}}}}]}}
routes:
  - {{name: hooks, kind: webhook, hosts: [localhost], paths: [/github], schemes: [webhook], webhook: github, upstream: web}}
  - {{name: web, kind: http, hosts: [localhost], schemes: [session, bearer], upstream: web}}
rules:
  - {{id: people, on: {{routes: [web]}}, who: {{users: [alice]}}, do: allow}}
  - {{id: hooks, on: {{routes: [hooks]}}, who: {{webhooks: [github]}}, do: allow}}
store: {{path: doorward.redb, max_mirror_age: 3s}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0}}
limits: {{drain_accept: 0}}
",
        issuer = issuer.url(),
        upstream = upstream.url(),
    );
    let doorward = Doorward::start_with_faults(dir, &yaml).await;
    let token = bearer(&issuer.token("alice", &[]));
    let by_token = async || doorward.get("/page", &["Host: localhost", &token]).await;
    within(async {
        while by_token().await.status != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let host = format!("localhost:{}", doorward.address("public").port());
    let cookie = log_in(&doorward, &host, "/page").await;
    let host_line = format!("Host: {host}");
    let by_cookie = async || doorward.get("/page", &[&host_line, &cookie]).await;
    assert_eq!((by_cookie().await.status, deliver(&doorward).await), (200, 200));

    doorward.break_disk(true);
    // A webhook whose repetition could not be seen is not taken. A write finds the disk broken, which may be that of the
    // first delivery after it has gone on: that one is remembered here.
    let first = deliver_as(&doorward, "first").await;
    assert!(matches!(first, 200 | 503), "{first}");
    assert_eq!(deliver(&doorward).await, 503);
    assert_eq!(deliver_as(&doorward, "first").await, 503, "no second time");
    assert_eq!(by_token().await.status, 200, "the copy of the revocations is fresh");
    within(async {
        // What was read a moment ago is still believed.
        while by_cookie().await.status == 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Doorward's own pages say so as all others do: to people on a page, to programs as a problem.
    for path in ["/.doorward/whoami", "/.doorward/sessions"] {
        for (accept, kind) in [
            ("Accept: text/html", "text/html; charset=utf-8"),
            ("Accept: application/json", "application/problem+json"),
        ] {
            let refused = doorward.get(path, &[&host_line, &cookie, accept]).await;
            assert_eq!((refused.status, refused.header("content-type")), (503, Some(kind)), "{path}: {}", refused.head);
            assert!(refused.header("retry-after").is_some(), "{path}: {}", refused.head);
            assert!(refused.all("set-cookie").is_empty(), "the cookie stays: {}", refused.head);
        }
    }
    let refused = by_cookie().await;
    assert_eq!((refused.status, refused.reason().as_str()), (503, "store_unavailable"), "{}", refused.text());
    assert!(refused.all("set-cookie").is_empty(), "the cookie stays: {}", refused.head);
    assert!(refused.header("retry-after").is_some(), "{}", refused.head);
    let ready = doorward.admin("/readyz").await;
    within(async {
        while doorward.admin("/readyz").await.status != 503 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(ready.text().contains("store"), "{}", ready.text());
    within(async {
        while by_token().await.status == 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let refused = by_token().await;
    assert_eq!((refused.status, refused.reason().as_str()), (503, "store_unavailable"), "{}", refused.text());

    // It mends itself, and the session is the same.
    doorward.break_disk(false);
    within(async {
        while by_token().await.status != 200 || by_cookie().await.status != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(deliver(&doorward).await, 200);

    // A file that was taken away does not come back empty, which would log everybody out.
    let (store, away) = (doorward.dir().join("doorward.redb"), doorward.dir().join("away.redb"));
    std::fs::rename(&store, &away).unwrap();
    doorward.break_disk(true);
    deliver(&doorward).await;
    assert_eq!(deliver(&doorward).await, 503);
    doorward.break_disk(false);
    assert_eq!(deliver(&doorward).await, 503);
    assert!(!store.exists());
    std::fs::rename(&away, &store).unwrap();
    within(async {
        while by_cookie().await.status != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
