//! SIGTERM: unready at once, but still serving while others notice; then no new connections, work in progress ends, and
//! the rest is cut at the deadline.

use std::sync::Arc;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, sync::Notify};

use crate::{
    fixture::{Change, Fixture},
    harness::{
        Raw, Reply,
        streams::{Streams, streaming},
        within,
    },
};

const SLOW: &str = "/slow";

/// Sets pauses so long that only the test ends them.
fn with_drain(drain: &'static str) -> impl FnOnce(String) -> String {
    move |yaml| yaml.change("drain_accept: 0", drain)
}

#[tokio::test]
async fn a_drain_loses_nothing_in_progress() {
    let told = Arc::new(Notify::new());
    let script = {
        let told = told.clone();
        move |request: &crate::harness::Recorded| match request.line().contains(SLOW) {
            true => Reply::Later(told.clone(), b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate".to_vec()),
            false => streaming(request),
        }
    };
    let change = |yaml: String| {
        let yaml = with_drain("drain_accept: 20m, drain: 20m")(yaml);
        yaml.change("{name: web, url: ", "{name: web, response_timeout: 20m, url: ")
    };
    let mut fixture = Fixture::with(change, script).await;
    let alice = fixture.alice();
    let streams = Streams::open(&fixture.doorward, &["Host: api.test", &alice]).await;
    let mut slow = fixture.doorward.raw().await;
    slow.send(format!("GET {SLOW} HTTP/1.1\r\nHost: open.test\r\n\r\n")).await;
    fixture.upstream.wait_for_path(SLOW).await;
    let mut idle = fixture.doorward.raw().await;
    idle.send("GET /x HTTP/1.1\r\nHost: open.test\r\n\r\n").await;
    assert!(!idle.answer().await.head.to_ascii_lowercase().contains("connection: close"));
    let stream = TcpStream::connect(fixture.doorward.address("public")).await.unwrap();
    let (mut sender, http2) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map(|(sender, connection)| (sender, tokio::spawn(connection)))
        .unwrap();
    let request = http::Request::get("http://open.test/x").body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = within(sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap();

    fixture.doorward.until_ready().await;
    fixture.doorward.signal("TERM");
    fixture.doorward.wait_for_log("draining").await;
    let ready = fixture.doorward.admin("/readyz").await;
    assert_eq!(ready.status, 503, "{}", ready.text());
    assert!(ready.text().contains("drain"), "{}", ready.text());
    assert_eq!(fixture.doorward.admin("/healthz").await.status, 200, "it is alive");
    // Clients that have not noticed yet are served, and asked to reconnect elsewhere.
    let late = fixture.doorward.get("/x", &["Host: open.test"]).await;
    assert_eq!(late.status, 200);
    assert_eq!(late.header("connection"), Some("close"), "{}", late.head);
    idle.send("GET /x HTTP/1.1\r\nHost: open.test\r\n\r\n").await;
    let answer = idle.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{}", answer.head);
    // GOAWAY, after which the connection closes cleanly.
    within(http2).await.unwrap().unwrap();

    // A second signal skips the wait for others to notice.
    fixture.doorward.signal("TERM");
    streams.have_ended(1012, "draining").await;
    fixture.doorward.until_closed().await;
    told.notify_one();
    let answer = slow.answer().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "late"), "{}", answer.head);
    assert!(fixture.doorward.ended().await.success());
    let trail = fixture.doorward.audit();
    let last = trail.iter().rfind(|record| record["metadata"]["event_code"] != "trail.checkpoint").unwrap();
    assert_eq!(last["metadata"]["event_code"], "trail.stop", "{last}");
    let is_answered = |record: &serde_json::Value| {
        record["http_request"]["url"]["path"] == SLOW && record["http_response"]["code"] == 200
    };
    assert!(trail.iter().any(is_answered), "the request that ended last is on the record: {trail:#?}");
}

/// Nobody else knows who caused the run, so that it is recorded even if its client has left.
#[tokio::test]
async fn a_run_being_created_is_awaited_even_if_its_client_has_left() {
    const RUNS: &str = "/apis/tekton.dev/v1/namespaces/ci/pipelineruns";
    let told = Arc::new(Notify::new());
    let script = {
        let told = told.clone();
        // That the response names no object is logged where the cause of the run would be recorded.
        let made = b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}".to_vec();
        move |request: &crate::harness::Recorded| match request.line().contains(RUNS) {
            true => Reply::Later(told.clone(), made.clone()),
            false => Reply::json(200, "{}"),
        }
    };
    let change = |yaml: String| {
        let yaml =
            with_drain("drain_accept: 0s, drain: 20m")(yaml).change("response_timeout: 5s", "response_timeout: 5m");
        yaml.change_first("['https://doorward.test']", "['https://doorward.test', 'https://api.test']")
            + "tokens: {exchange: [{issuer: a}]}\n"
    };
    let mut fixture = Fixture::with(change, script).await;
    let (alice, body) = (fixture.alice(), "kind: PipelineRun\nmetadata: {name: a}\nspec: {pipelineRef: {name: x}}\n");
    let head = format!(
        "POST {RUNS} HTTP/1.1\r\nHost: api.test\r\n{alice}\r\nContent-Type: application/yaml\r\nContent-Length: {}",
        body.len()
    );
    let mut client = fixture.doorward.raw().await;
    client.send(format!("{head}\r\n\r\n{body}")).await;
    fixture.upstream.wait_for_path(RUNS).await;
    drop(client);
    fixture.doorward.until_metrics_say("doorward_downstream_connections 0").await;
    fixture.doorward.signal("TERM");
    fixture.doorward.until_closed().await;
    told.notify_one();
    fixture.doorward.wait_for_log_containing("names no object: its tasks get no tokens").await;
    assert!(fixture.doorward.ended().await.success());
}

/// An exec session or a copy out of a pod may use all of the drain time. A watch is reopened elsewhere at once.
#[tokio::test]
async fn a_shell_continues_after_the_listeners_closed_and_a_watch_does_not() {
    let mut fixture = Fixture::with(with_drain("drain_accept: 0s, drain: 20m"), streaming).await;
    let alice = fixture.alice();
    let mut streams = Streams::open(&fixture.doorward, &["Host: api.test", &alice]).await;
    fixture.doorward.signal("TERM");
    streams.watches_have_ended("draining").await;
    fixture.doorward.until_closed().await;
    streams.are_open().await;
    // A second signal asks for the end.
    fixture.doorward.signal("TERM");
    streams.have_ended(1012, "draining").await;
    assert!(fixture.doorward.ended().await.success());
}

/// Part of the drain time is reserved for them, so that they are told before connections are cut.
#[tokio::test]
async fn long_streams_are_notified_of_the_drain_before_its_deadline() {
    let mut fixture = Fixture::with(with_drain("drain_accept: 0s, drain: 8s"), streaming).await;
    let alice = fixture.alice();
    let streams = Streams::open(&fixture.doorward, &["Host: api.test", &alice]).await;
    fixture.doorward.signal("TERM");
    streams.have_ended(1012, "draining").await;
    assert!(fixture.doorward.ended().await.success());
}

#[tokio::test]
async fn unfinished_requests_are_cut_at_the_deadline() {
    let script = |request: &crate::harness::Recorded| match request.line().contains(SLOW) {
        true => Reply::Hang,
        false => streaming(request),
    };
    let mut fixture = Fixture::with(with_drain("drain_accept: 0s, drain: 1s"), script).await;
    let mut slow = fixture.doorward.raw().await;
    slow.send(format!("GET {SLOW} HTTP/1.1\r\nHost: open.test\r\n\r\n")).await;
    fixture.upstream.wait_for_path(SLOW).await;
    // A client that sends nothing at all does not delay the end either.
    let mut silent: Raw = fixture.doorward.raw().await;
    fixture.doorward.signal("TERM");
    assert!(fixture.doorward.ended().await.success());
    assert_eq!(slow.rest().await, b"");
    assert_eq!(silent.rest().await, b"");
    let trail = fixture.doorward.audit();
    let is_cut = |record: &serde_json::Value| {
        record["http_request"]["url"]["path"] == SLOW && record["unmapped"]["ended"] == "draining"
    };
    assert!(trail.iter().any(is_cut), "what was cut is on the record, and by whom: {trail:#?}");
}

#[tokio::test]
async fn ctrl_c_does_not_wait_if_nobody_is_connected() {
    let mut fixture = Fixture::with(with_drain("drain_accept: 10m, drain: 20m"), |_| Reply::json(200, "{}")).await;
    fixture.doorward.until_metrics_say("doorward_downstream_connections 0").await;
    fixture.doorward.signal("INT");
    assert!(fixture.doorward.ended().await.success());
}
