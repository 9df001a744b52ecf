//! Signals that arrive while Doorward is still starting.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use tokio::{
    io::AsyncWriteExt,
    net::unix::pipe::{self, Sender},
};

use crate::harness::{Doorward, Upstream, found};

/// A Doorward whose start waits for the session key, a pipe that nobody has written to yet.
async fn starting(upstream: &Upstream) -> (Doorward, Sender) {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("doorward.session.key");
    assert!(std::process::Command::new("mkfifo").arg(&key).status().unwrap().success());
    let yaml = format!(
        "
listeners: [{{name: public, address: 127.0.0.1:0}}]
upstreams: [{{name: web, url: '{}'}}]
routes: [{{name: web, kind: http, hosts: [tekton.test], schemes: [anonymous], upstream: web}}]
rules: [{{id: all, who: {{anonymous: true}}, do: allow}}]
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
limits: {{drain_accept: 0}}
",
        upstream.url()
    );
    let doorward = Doorward::begin_in(dir, &yaml);
    // The pipe can be opened only when it is being read.
    let written = found(async || pipe::OpenOptions::new().open_sender(&key).ok()).await;
    (doorward, written)
}

/// As process 1 of a container, it continued to start, and was finally killed without a drain.
#[tokio::test]
async fn a_start_ends_at_once_when_it_is_asked_to() {
    let upstream = Upstream::start().await;
    for signal in ["TERM", "INT"] {
        let (mut doorward, _waited_for) = starting(&upstream).await;
        doorward.signal(signal);
        assert!(doorward.ended().await.success(), "{signal}");
        doorward.wait_for_log_containing("before it had started").await;
    }
}

/// A hook that renews certificates may send it at any time.
#[tokio::test]
async fn a_hangup_ends_no_start() {
    let upstream = Upstream::start().await;
    let (mut doorward, mut key) = starting(&upstream).await;
    doorward.signal("HUP");
    key.write_all(BASE64_STANDARD.encode([7; 32]).as_bytes()).await.unwrap();
    drop(key);
    doorward.has_started().await;
    assert_eq!(doorward.get("/x", &[]).await.status, 200);
}
