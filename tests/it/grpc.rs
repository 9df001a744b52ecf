//! Bidirectional gRPC calls over HTTP/2 on both sides: how long they may be silent, and how each side learns of their
//! end.

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2::SendRequest,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::{
    fixture::{Change, Fixture},
    harness::{Recorded, Reply, within},
};

type Feed = mpsc::UnboundedSender<Result<Frame<Bytes>, Infallible>>;
type Fed = UnsyncBoxBody<Bytes, Infallible>;

fn fed() -> (Feed, Fed) {
    let (feed, mut frames): (Feed, _) = mpsc::unbounded_channel();
    let frames = futures_util::stream::poll_fn(move |context| frames.poll_recv(context));
    (feed, StreamBody::new(frames).boxed_unsync())
}

fn data(text: &'static str) -> Result<Frame<Bytes>, Infallible> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

/// A call at the upstream: the client's messages, and a sender for the response.
type Taken = (Incoming, Feed);

/// An upstream that begins its responses at once, except at `/waits`.
async fn upstream() -> (SocketAddr, mpsc::UnboundedReceiver<Taken>) {
    let (take, taken) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let take = take.clone();
            let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
                let waits = request.uri().path() == "/waits";
                let (feed, answer) = fed();
                let _ = take.send((request.into_body(), feed));
                async move {
                    if waits {
                        std::future::pending::<()>().await;
                    }
                    let answer = http::Response::builder().header("content-type", "application/grpc").body(answer);
                    Ok::<_, Infallible>(answer.unwrap())
                }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, taken)
}

/// Doorward with that upstream as `web.test`, where only a call may be silent for longer than 300 ms.
async fn door(address: SocketAddr) -> Fixture {
    door_with(address, "drain_accept: 0").await
}

/// The same with these times for the drain.
async fn door_with(address: SocketAddr, drain: &'static str) -> Fixture {
    let upstream = format!("upstreams:\n  - {{name: grpc, url: 'http://{address}', protocol: http2}}\n");
    let change = |yaml: String| {
        yaml.change("drain_accept: 0", drain)
            .change("upstreams:\n", &upstream)
            .change(
                "hosts: [web.test], schemes: [bearer], upstream: web",
                "hosts: [web.test], schemes: [bearer], upstream: grpc",
            )
            .change("body_timeout: 1s", "body_timeout: 300ms, stream_idle_timeout: 300ms")
    };
    let half = |_: &Recorded| Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf".to_vec());
    Fixture::with(change, half).await
}

async fn client(fixture: &Fixture) -> SendRequest<Fed> {
    let stream = TcpStream::connect(fixture.doorward.address("public")).await.unwrap();
    let (client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A call that has sent a first message; `te` is the client's `TE` header.
fn call(fixture: &Fixture, path: &str, te: Option<&'static str>) -> (Feed, http::Request<Fed>) {
    let mut claims = fixture.a.claims("alice", &["dev"]);
    claims["jti"] = json!("leaked");
    let (feed, body) = fed();
    feed.send(data("first")).unwrap();
    let mut request = http::Request::post(format!("http://web.test{path}"))
        .header("content-type", "application/grpc")
        .header("authorization", format!("Bearer {}", fixture.a.sign(&claims)))
        .body(body)
        .unwrap();
    request.headers_mut().extend(te.map(|te| (http::header::TE, http::HeaderValue::from_static(te))));
    (feed, request)
}

async fn next(body: &mut Incoming) -> Bytes {
    within(body.frame()).await.unwrap().unwrap().into_data().unwrap()
}

/// The client's messages are no longer forwarded: the upstream sees an abort, and the client sees that nobody reads.
async fn is_broken_off(mut sent: Incoming, feed: Feed, what: &str) {
    assert!(within(sent.frame()).await.unwrap().is_err(), "{what}");
    within(feed.closed()).await;
}

#[tokio::test]
async fn calls_may_be_silent_and_uploads_end_on_revocation_before_and_after_the_response() {
    let (address, mut taken) = upstream().await;
    let fixture = door(address).await;
    let mut client = client(&fixture).await;
    let mut calls = Vec::new();
    for te in [Some("trailers"), None, Some("trailers")] {
        let (feed, request) = call(&fixture, "/call", te);
        let answer = within(client.send_request(request)).await.unwrap().into_body();
        let (mut sent, answering) = within(taken.recv()).await.unwrap();
        assert_eq!(next(&mut sent).await, "first");
        calls.push((feed, sent, answering, answer));
    }
    // Meanwhile other stalled responses are aborted, one after the other.
    for _ in 0..3 {
        let half = fixture.doorward.get("/half", &["Host: open.test"]).await;
        assert_eq!((half.status, half.text().as_str()), (200, "half"), "{}", half.head);
    }
    for (feed, sent, answering, answer) in &mut calls {
        feed.send(data("more")).unwrap();
        answering.send(data("late")).unwrap();
        assert_eq!((next(sent).await, next(answer).await), ("more".into(), "late".into()));
    }
    let (feed, sent, answering, mut whole) = calls.pop().unwrap();
    drop(answering);
    assert!(within((&mut whole).collect()).await.unwrap().to_bytes().is_empty());

    let revoke = ["revoke", "--issuer", "a", "--token-id", "leaked", "--why", "in a build log"];
    let (code, said) = fixture.doorward.operator(&revoke).await;
    assert_eq!(code, Some(0), "{said}");
    is_broken_off(sent, feed, "the answer is over").await;
    let (feed, sent, _answering, mut answer) = calls.pop().unwrap();
    assert!(within(answer.frame()).await.unwrap().is_err(), "the client takes no trailers");
    is_broken_off(sent, feed, "the answer is broken off").await;
    let (feed, sent, _answering, mut answer) = calls.pop().unwrap();
    let trailers = within(answer.frame()).await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "16");
    is_broken_off(sent, feed, "the answer ends with a status").await;
}

#[tokio::test]
async fn an_unanswered_call_ends_with_its_permission() {
    let (address, mut taken) = upstream().await;
    let fixture = door(address).await;
    let mut client = client(&fixture).await;
    let (feed, request) = call(&fixture, "/waits", Some("trailers"));
    let answer = tokio::spawn(client.send_request(request));
    let (mut sent, _answering) = within(taken.recv()).await.unwrap();
    assert_eq!(next(&mut sent).await, "first");
    fixture.doorward.change("on: {routes: [api, only-a, board, web]}", "on: {routes: [api]}");
    let answer = within(answer).await.unwrap().unwrap();
    assert_eq!(answer.headers()["grpc-status"], "7");
    is_broken_off(sent, feed, "it has no answer").await;
}

/// Its connection was cut without a status, and the trail said that the client had left.
#[tokio::test]
async fn a_call_that_outlasts_the_drain_ends_with_a_status_that_allows_another_try() {
    let (address, mut taken) = upstream().await;
    let mut fixture = door_with(address, "drain_accept: 0s, drain: 1s").await;
    let mut client = client(&fixture).await;
    let (feed, request) = call(&fixture, "/call", Some("trailers"));
    let mut answer = within(client.send_request(request)).await.unwrap().into_body();
    let (mut sent, answering) = within(taken.recv()).await.unwrap();
    answering.send(data("late")).unwrap();
    assert_eq!((next(&mut sent).await, next(&mut answer).await), ("first".into(), "late".into()));
    fixture.doorward.signal("TERM");
    let trailers = within(answer.frame()).await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "14");
    is_broken_off(sent, feed, "the answer ends with a status").await;
    assert!(fixture.doorward.ended().await.success());
    let trail = fixture.doorward.audit();
    let is_drained = |record: &serde_json::Value| {
        record["http_request"]["url"]["path"] == "/call" && record["unmapped"]["ended"] == "draining"
    };
    assert!(trail.iter().any(is_drained), "{trail:#?}");
}
