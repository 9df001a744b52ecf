//! Streams of each kind through Doorward, and how they end.

use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::{Doorward, HANDSHAKE, Issuer, Raw, Recorded, Reply, Upstream, log_in, settled, within};
use crate::{
    fixture::bearer,
    login_fixture::{Changes, LoginFixture, ROUTE, RULE, STORE},
};

pub const EXEC: &str = "/api/v1/namespaces/ci/pods/p/exec?command=sh";
pub const WATCH: &str = "/apis/tekton.dev/v1/namespaces/ci/taskruns?watch=true";
pub const LOG: &str = "/api/v1/namespaces/ci/pods/p/log?follow=true";

/// A streaming upstream: echoes after an upgrade, and continues forever on a watch or a log.
pub fn streaming(request: &Recorded) -> Reply {
    match request.line() {
        line if line.contains("watch=true") => Reply::Watch(vec![b"{\"type\":\"ADDED\"}\n".to_vec()]),
        line if line.contains("follow=true") => Reply::Watch(vec![b"a line of the log\n".to_vec()]),
        _ if request.has("upgrade") => Reply::Echo,
        _ => Reply::json(200, "{}"),
    }
}

/// One stream of each kind, opened by one caller; those over HTTP/2 share a connection.
pub struct Streams {
    /// Over HTTP/1.1 and over HTTP/2, until their end was checked.
    watches: Option<(Raw, Incoming)>,
    log: Raw,
    websocket: Raw,
    spdy: Raw,
    http2_log: Incoming,
}

impl Streams {
    /// Opens them with these header lines, which contain the credential and the host.
    pub async fn open(doorward: &Doorward, lines: &[&str]) -> Self {
        let watch = begin(doorward, WATCH, &[lines, &["Connection: close"]].concat(), 200).await;
        // Only now, as the time for its first request is short.
        let mut http2 = http2(doorward).await;
        Self {
            watches: Some((watch, stream(&mut http2, WATCH, lines).await)),
            http2_log: stream(&mut http2, LOG, lines).await,
            log: begin(doorward, LOG, &[lines, &["Connection: close"]].concat(), 200).await,
            websocket: begin(doorward, EXEC, &[lines, &HANDSHAKE].concat(), 101).await,
            spdy: begin(doorward, EXEC, &[lines, &["Connection: Upgrade", "Upgrade: SPDY/3.1"]].concat(), 101).await,
        }
    }

    /// Asserts that the bidirectional streams are still open.
    pub async fn are_open(&mut self) {
        // A masked text frame of four bytes (RFC 6455 section 5.2); to SPDY these are just bytes.
        let frame = b"\x81\x84\x01\x02\x03\x04abcd";
        for raw in [&mut self.websocket, &mut self.spdy] {
            raw.send(frame).await;
            assert_eq!(raw.some().await, frame);
        }
    }

    /// Waits until the watches have ended, and asserts that they did so cleanly.
    pub async fn watches_have_ended(&mut self, word: &str) {
        if let Some((mut watch, http2_watch)) = self.watches.take() {
            let watch = watch.rest().await;
            assert!(watch.ends_with(b"0\r\n\r\n"), "{word}: a watch breaks off: {}", String::from_utf8_lossy(&watch));
            let watch = within(http2_watch.collect()).await;
            assert!(watch.is_ok(), "{word}: a watch breaks off: {watch:?}");
        }
    }

    /// Waits until all have ended, and asserts how: the close code of the WebSocket, and its reason.
    pub async fn have_ended(mut self, code: u16, word: &str) {
        let closed = self.websocket.rest().await;
        let expected = [&[0x88, 2 + word.len() as u8], &code.to_be_bytes()[..], word.as_bytes()].concat();
        assert_eq!(closed, expected, "{word}: {}", String::from_utf8_lossy(&closed));
        assert_eq!(self.spdy.rest().await, b"", "{word}: nothing of ours goes into SPDY");
        self.watches_have_ended(word).await;
        let log = self.log.rest().await;
        assert!(!log.ends_with(b"0\r\n\r\n"), "{word}: a log breaks off: {}", String::from_utf8_lossy(&log));
        assert!(within(self.http2_log.collect()).await.is_err(), "{word}: a log breaks off");
    }
}

pub type Http2 = SendRequest<Empty<bytes::Bytes>>;

/// An HTTP/2 connection with prior knowledge.
pub async fn http2(doorward: &Doorward) -> Http2 {
    http2_on(TcpStream::connect(doorward.address("public")).await.unwrap()).await
}

/// Starts HTTP/2 on a connection.
pub async fn http2_on(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Http2 {
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Opens an HTTP/2 stream and reads the first bytes of the response.
pub async fn stream(sender: &mut Http2, path: &str, lines: &[&str]) -> Incoming {
    let fields = lines.iter().map(|line| line.split_once(": ").unwrap());
    let (hosts, headers): (Vec<_>, Vec<_>) = fields.partition(|(name, _)| *name == "Host");
    let mut request = http::Request::get(format!("http://{}{path}", hosts[0].1));
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let response = within(sender.send_request(request.body(Empty::new()).unwrap())).await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    let mut body = response.into_body();
    assert!(within(body.frame()).await.unwrap().is_ok(), "{path}");
    body
}

/// Sends the request and reads the head of the response.
pub async fn begin(doorward: &Doorward, path: &str, lines: &[&str], status: u16) -> Raw {
    let mut raw = doorward.raw().await;
    raw.send(format!("GET {path} HTTP/1.1\r\n{}\r\n\r\n", lines.join("\r\n"))).await;
    let head =
        if status == 101 { raw.answer().await.head } else { String::from_utf8_lossy(&raw.some().await).into_owned() };
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head}");
    raw
}

/// Why streams ended, according to the trail, once `count` of them have.
pub async fn ends(doorward: &Doorward, count: usize) -> Vec<String> {
    ends_in(doorward, "request.completed", count).await
}

/// The same for records with this code.
pub async fn ends_in(doorward: &Doorward, code: &str, count: usize) -> Vec<String> {
    let why = |record: &Value| record["unmapped"]["ended"].as_str().map(str::to_owned);
    let ended = |record: &Value| record["metadata"]["event_code"] == code && why(record).is_some();
    doorward.records(count, ended).await.iter().filter_map(why).collect()
}

/// Turns the configuration of a login into one of a cluster.
pub const OF_CLUSTER: Changes<'_> = &[
    (
        "{name: web, url: '{upstream}'}",
        "{name: cluster, url: '{upstream}', credential: {bearer: {file: token}}}",
    ),
    (
        ROUTE,
        "{name: cluster, kind: kubernetes, hosts: [localhost], paths: ['/api/*', '/apis/*'], schemes: [session, bearer], upstream: cluster}",
    ),
    (
        RULE,
        "{id: people, on: {routes: [cluster]}, who: {users: [alice]}, do: allow}
  - {id: shells, on: {routes: [cluster], kubernetes: {resources: [pods/exec, services/proxy]}}, who: {users: [alice]}, do: allow}",
    ),
];

/// A cluster where Alice has signed in; `sessions` and `rule` are further configuration.
pub async fn with_login(sessions: &str, rule: &str) -> (Doorward, (Issuer, Upstream), String, String) {
    let (store, on) = (format!("sessions: {{{sessions}}}\n{STORE}"), format!("on: {{routes: [cluster]{rule}"));
    let changes = [OF_CLUSTER, &[(STORE, &store), ("on: {routes: [cluster]", &on)]].concat();
    let (world, issuer) = LoginFixture::scripted_with(Upstream::scripted(streaming).await, &changes).await;
    let LoginFixture { doorward, upstream, host } = world;
    let token = bearer(&issuer.token("probe", &[]));
    settled(async || doorward.get("/api/v1/pods", &["Host: localhost", &token]).await).await;
    let cookie = log_in(&doorward, &host, "/api/v1/pods").await;
    (doorward, (issuer, upstream), host, cookie)
}
