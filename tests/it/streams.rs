//! What becomes of streams that are open when their ground goes away. Each kind ends in its own way: a WebSocket with a
//! close frame that says why, SPDY cut, a watch cleanly, so that its client begins another, and a log broken off, so that
//! it never looks complete.

use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpStream;

use crate::{
    fixture::{Fixture, bearer},
    harness::{Doorward, Issuer, Raw, Recorded, Reply, Upstream, log_in, now, within},
};

const EXEC: &str = "/api/v1/namespaces/ci/pods/p/exec?command=sh";
pub const WATCH: &str = "/apis/tekton.dev/v1/namespaces/ci/taskruns?watch=true";
pub const LOG: &str = "/api/v1/namespaces/ci/pods/p/log?follow=true";

/// An upstream that streams: echoes on an upgrade, and goes on for ever on a watch and a log.
pub fn streaming(request: &Recorded) -> Reply {
    match request.line() {
        line if line.contains("watch=true") => Reply::Watch(vec![b"{\"type\":\"ADDED\"}\n".to_vec()]),
        line if line.contains("follow=true") => Reply::Watch(vec![b"a line of the log\n".to_vec()]),
        _ if request.has("upgrade") => Reply::Echo,
        _ => Reply::json(200, "{}"),
    }
}

/// One stream of each kind, opened by one caller; those of HTTP/2 share a connection.
pub struct Streams {
    watch: Raw,
    log: Raw,
    websocket: Raw,
    spdy: Raw,
    http2_watch: Incoming,
    http2_log: Incoming,
}

impl Streams {
    /// Opens them with these lines, which say who asks and of which host.
    pub async fn open(doorward: &Doorward, lines: &[&str]) -> Self {
        let websocket = [
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ];
        let mut http2 = http2(doorward).await;
        Self {
            http2_watch: stream(&mut http2, WATCH, lines).await,
            http2_log: stream(&mut http2, LOG, lines).await,
            watch: begin(doorward, WATCH, &[lines, &["Connection: close"]].concat(), 200).await,
            log: begin(doorward, LOG, &[lines, &["Connection: close"]].concat(), 200).await,
            websocket: begin(doorward, EXEC, &[lines, &websocket].concat(), 101).await,
            spdy: begin(doorward, EXEC, &[lines, &["Connection: Upgrade", "Upgrade: SPDY/3.1"]].concat(), 101).await,
        }
    }

    /// Asserts that what goes both ways still does.
    pub async fn are_open(&mut self) {
        // A masked text frame of four bytes (RFC 6455 section 5.2); to SPDY it is only bytes.
        let frame = b"\x81\x84\x01\x02\x03\x04abcd";
        for raw in [&mut self.websocket, &mut self.spdy] {
            raw.send(frame).await;
            assert_eq!(raw.some().await, frame);
        }
    }

    /// Waits until all have ended, and asserts how: the close code of the WebSocket, and the word that goes with it.
    pub async fn have_ended(mut self, code: u16, word: &str) {
        let closed = self.websocket.rest().await;
        let expected = [&[0x88, 2 + word.len() as u8], &code.to_be_bytes()[..], word.as_bytes()].concat();
        assert_eq!(closed, expected, "{word}: {}", String::from_utf8_lossy(&closed));
        assert_eq!(self.spdy.rest().await, b"", "{word}: nothing of ours goes into SPDY");
        let watch = self.watch.rest().await;
        assert!(watch.ends_with(b"0\r\n\r\n"), "{word}: a watch ends cleanly: {}", String::from_utf8_lossy(&watch));
        let log = self.log.rest().await;
        assert!(!log.ends_with(b"0\r\n\r\n"), "{word}: a log breaks off: {}", String::from_utf8_lossy(&log));
        let watch = within(self.http2_watch.collect()).await;
        assert!(watch.is_ok(), "{word}: a watch ends cleanly: {watch:?}");
        assert!(within(self.http2_log.collect()).await.is_err(), "{word}: a log breaks off");
    }
}

pub type Http2 = SendRequest<Empty<bytes::Bytes>>;

/// A connection of HTTP/2 with prior knowledge.
pub async fn http2(doorward: &Doorward) -> Http2 {
    let stream = TcpStream::connect(doorward.address("public")).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Opens a stream of HTTP/2 and reads the first bytes of the answer.
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

/// Sends the request and reads the head of the answer.
pub async fn begin(doorward: &Doorward, path: &str, lines: &[&str], status: u16) -> Raw {
    let mut raw = doorward.raw().await;
    raw.send(format!("GET {path} HTTP/1.1\r\n{}\r\n\r\n", lines.join("\r\n"))).await;
    let head =
        if status == 101 { raw.answer().await.head } else { String::from_utf8_lossy(&raw.some().await).into_owned() };
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head}");
    raw
}

/// Why streams ended, as the trail has it, once `count` of them have.
pub async fn ends(doorward: &Doorward, count: usize) -> Vec<String> {
    ends_in(doorward, "request.completed", count).await
}

/// The same of records with this code.
async fn ends_in(doorward: &Doorward, code: &str, count: usize) -> Vec<String> {
    let ended = || -> Vec<String> {
        let trail = doorward.audit();
        let completed = trail.iter().filter(|record| record["metadata"]["event_code"] == code);
        completed.filter_map(|record| record["unmapped"]["ended"].as_str().map(str::to_owned)).collect()
    };
    within(async {
        while ended().len() < count {
            tokio::task::yield_now().await;
        }
    })
    .await;
    ended()
}

#[tokio::test]
async fn streams_end_when_a_reload_takes_the_permission_away() {
    let mut fixture = Fixture::with(|yaml| yaml, streaming).await;
    let (alice, b) = (fixture.alice(), bearer(&fixture.b.token("bea", &["dev"])));
    let path = fixture.doorward.dir().join("doorward.yaml");
    let before = std::fs::read_to_string(&path).unwrap();
    // First give B's developers the same, so that there is somebody who keeps it.
    let both = before
        .replace(
            "rules:\n",
            "rules:\n  - {id: dev-b, on: {routes: [api]}, who: {issuers: [b], groups: [dev]}, do: allow}\n",
        )
        .replace("grants:\n", "grants:\n  - {id: dev-b, who: {issuers: [b], groups: [dev]}, kubernetes_groups: [b]}\n");
    std::fs::write(&path, &both).unwrap();
    fixture.doorward.wait_for_generation(2).await;
    let alices = Streams::open(&fixture.doorward, &["Host: api.test", &alice]).await;
    let mut beas = Streams::open(&fixture.doorward, &["Host: api.test", &b]).await;
    std::fs::write(&path, both.replace("on: {routes: [api, only-a, board, web]}", "on: {routes: [web]}")).unwrap();
    alices.have_ended(1008, "permission_lost").await;
    beas.are_open().await;
    // The rule stays and the route takes B's tokens no more: that is a permission lost too.
    let narrowed =
        both.replace("hosts: [api.test], schemes: [bearer],", "hosts: [api.test], schemes: [bearer], issuers: [a],");
    assert_ne!(narrowed, both);
    std::fs::write(&path, narrowed).unwrap();
    beas.have_ended(1008, "permission_lost").await;
    assert!(ends(&fixture.doorward, 12).await.iter().all(|why| why == "permission_lost"));
}

/// The rules stay as they are. Who may come is narrowed at the issuer or at the route, one thing at a time.
#[tokio::test]
async fn streams_end_when_a_reload_takes_no_more_tokens_like_that_of_who_opened_them() {
    let mut fixture = Fixture::with(|yaml| yaml, streaming).await;
    let path = fixture.doorward.dir().join("doorward.yaml");
    let narrow = |before: &str, from: &str, to: &str| {
        let after = before.replacen(from, to, 1);
        assert_ne!(after, before, "{from}");
        std::fs::write(&path, &after).unwrap();
        after
    };
    let of_a =
        format!("issuer: '{}'\n    audiences: ['https://doorward.test']\n    username: '{{sub}}'\n", fixture.a.url());
    let before = std::fs::read_to_string(&path).unwrap();
    let clients = "    clients: [{id: tests, kind: human}]\n";
    let widened = narrow(
        &before,
        &of_a,
        &(of_a.replace("['https://doorward.test']", "['https://doorward.test', other, third]") + clients),
    );
    fixture.doorward.wait_for_generation(2).await;
    // One of two audiences is taken back, so that its twin shows that the other one is still good.
    let token = |audience: &str, tenant: &str| {
        let mut claims = fixture.a.claims("alice", &["dev"]);
        claims["aud"] = json!([audience]);
        claims["tenant"] = json!(tenant);
        bearer(&fixture.a.sign(&claims))
    };
    let watch =
        async |token: &str| begin(&fixture.doorward, WATCH, &["Host: api.test", token, "Connection: close"], 200).await;
    let mut kept = watch(&token("https://doorward.test", "ours")).await;
    let mut opaque = {
        let answer = json!({"active": true, "sub": "alice", "iss": fixture.a.url(), "client_id": "tests",
            "aud": "https://doorward.test", "exp": now() + 600, "groups": ["dev"], "tenant": "ours"});
        fixture.a.opaque("an-opaque-token", answer);
        watch(&bearer("an-opaque-token")).await
    };

    let mut lost = watch(&token("other", "ours")).await;
    let narrowed = narrow(&widened, "'https://doorward.test', other, third]", "'https://doorward.test', third]");
    assert!(lost.rest().await.ends_with(b"0\r\n\r\n"), "the issuer's audience is gone");

    let mut lost = watch(&token("third", "ours")).await;
    let of_route = "hosts: [api.test], schemes: [bearer],";
    let narrowed =
        narrow(&narrowed, of_route, &format!("{of_route} issuers: [a], audiences: ['https://doorward.test'],"));
    assert!(lost.rest().await.ends_with(b"0\r\n\r\n"), "the route takes another audience");

    let mut lost = watch(&token("https://doorward.test", "another")).await;
    let narrowed =
        narrow(&narrowed, "    username: '{sub}'\n", "    username: '{sub}'\n    required_claims: {tenant: [ours]}\n");
    assert!(lost.rest().await.ends_with(b"0\r\n\r\n"), "a claim is required that the token has not");

    let mut lost = {
        let mut claims = fixture.a.claims("alice", &["dev"]);
        claims["tenant"] = json!("ours");
        claims["client_id"] = json!("another");
        watch(&bearer(&fixture.a.sign(&claims))).await
    };
    let narrowed =
        narrow(&narrowed, "    username: '{sub}'\n", "    username: '{sub}'\n    listed_clients_only: true\n");
    assert!(lost.rest().await.ends_with(b"0\r\n\r\n"), "only listed clients are taken");

    // The twins have seen it all.
    for (what, twin) in [("a JWT", &mut kept), ("an opaque token", &mut opaque)] {
        assert!(tokio::time::timeout(Duration::from_millis(300), twin.rest()).await.is_err(), "{what} is good still");
    }
    // Until they would be sent as somebody else.
    narrow(&narrowed, "    username: '{sub}'\n", "    username: 'corp:{sub}'\n");
    for (what, twin) in [("a JWT", kept), ("an opaque token", opaque)] {
        let mut twin = twin;
        assert!(twin.rest().await.ends_with(b"0\r\n\r\n"), "{what} has another name now");
    }
    assert!(ends(&fixture.doorward, 6).await.iter().all(|why| why == "permission_lost"));
}

/// A configuration with browser login; `sessions` and `rule` are more of it.
pub async fn with_login(sessions: &str, rule: &str) -> (Doorward, (Issuer, Upstream), String, String) {
    let (issuer, upstream) = (Issuer::start().await, Upstream::scripted(streaming).await);
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("token", "upstream-token"), ("client", "client-secret")] {
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
  - {{name: cluster, url: '{upstream}', credential: {{bearer: {{file: token}}}}}}
routes:
  - {{name: cluster, kind: kubernetes, hosts: [localhost], paths: ['/api/*', '/apis/*'], schemes: [session, bearer], upstream: cluster}}
rules:
  - {{id: people, on: {{routes: [cluster]{rule}}}, who: {{users: [alice]}}, do: allow}}
  - {{id: shells, on: {{routes: [cluster], kubernetes: {{resources: [pods/exec, services/proxy]}}{rule}}}, who: {{users: [alice]}}, do: allow}}
sessions: {{{sessions}}}
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0, socket: operator.sock}}
limits: {{drain_accept: 0}}
",
        issuer = issuer.url(),
        upstream = upstream.url(),
    );
    let doorward = Doorward::start_with_faults(dir, &yaml).await;
    let host = format!("localhost:{}", doorward.address("public").port());
    let token = bearer(&issuer.token("probe", &[]));
    within(async {
        while doorward.get("/api/v1/pods", &["Host: localhost", &token]).await.status == 503 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let cookie = log_in(&doorward, &host, "/api/v1/pods").await;
    (doorward, (issuer, upstream), host, cookie)
}

#[tokio::test]
async fn streams_end_with_the_logout_of_who_opened_them() {
    let (doorward, _peers, host, cookie) = with_login("", "").await;
    let (host_line, origin) = (format!("Host: {host}"), format!("Origin: http://{host}"));
    let streams = Streams::open(&doorward, &[&host_line, &origin, &cookie]).await;
    let out = doorward.send(&["POST /oauth2/sign_out HTTP/1.1", &host_line, &origin, &cookie], b"").await;
    assert!((300..400).contains(&out.status), "{}{}", out.head, out.text());
    streams.have_ended(1008, "signed_out").await;
    assert_eq!(doorward.get("/api/v1/pods", &[&host_line, &cookie]).await.status, 401);
    assert!(ends(&doorward, 6).await.iter().all(|why| why == "signed_out"));
}

#[tokio::test]
async fn streams_end_with_the_session_of_who_opened_them() {
    let (doorward, _peers, host, cookie) = with_login("absolute: 2h, idle: 2h", "").await;
    let (host_line, origin) = (format!("Host: {host}"), format!("Origin: http://{host}"));
    let mut streams = Streams::open(&doorward, &[&host_line, &origin, &cookie]).await;
    doorward.set_clock_ahead(7000);
    assert_eq!(doorward.get("/api/v1/pods", &[&host_line, &cookie]).await.status, 200);
    streams.are_open().await;
    doorward.set_clock_ahead(7300);
    streams.have_ended(1008, "expired").await;
    assert_eq!(doorward.get("/api/v1/pods", &[&host_line, &cookie]).await.status, 401);
}

/// Whatever the lifetime of their token, and without any refresh token: after `sessions.recheck`, 5 min.
#[tokio::test]
async fn attacks_z45_who_is_shut_out_at_the_provider_is_out_within_the_stated_time_with_what_they_have_open() {
    let (doorward, (issuer, _upstream), host, cookie) = with_login("", "").await;
    let (host_line, origin) = (format!("Host: {host}"), format!("Origin: http://{host}"));
    let mut streams = Streams::open(&doorward, &[&host_line, &origin, &cookie]).await;
    doorward.set_clock_ahead(301);
    assert_eq!(doorward.get("/api/v1/pods", &[&host_line, &cookie]).await.status, 200, "the provider vouches");
    streams.are_open().await;
    issuer.shut_out();
    doorward.set_clock_ahead(602);
    // The pages of Doorward itself are no way around: a tab that asks them now and then must not keep the session.
    for own in ["/oauth2/userinfo", "/.doorward/whoami", "/.doorward/sessions"] {
        let refused = doorward.get(own, &[&host_line, &cookie]).await;
        assert_eq!(refused.status, 401, "{own}: {}", refused.text());
    }
    assert_eq!(doorward.get("/api/v1/pods", &[&host_line, &cookie]).await.status, 401);
    streams.have_ended(1008, "signed_out").await;
}

/// A browser adds the cookie to a link on anybody's page.
#[tokio::test]
async fn a_link_reaches_no_server_behind_the_api_server_with_somebodys_cookie() {
    let (doorward, (_issuer, upstream), host, cookie) = with_login("", "").await;
    let (host_line, before) = (format!("Host: {host}"), upstream.requests().len());
    let get = async |more: &[&str]| {
        let lines = [&[host_line.as_str(), &cookie, "Accept: text/html"], more].concat();
        doorward.get("/api/v1/namespaces/ci/services/db/proxy/drop?all=yes", &lines).await
    };
    let navigates = ["Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"];
    for site in ["cross-site", "same-site", "none"] {
        let site = format!("Sec-Fetch-Site: {site}");
        let refused = get(&[&navigates[..], &[&site]].concat()).await;
        assert_eq!(refused.status, 403, "{site}: {}", refused.text());
    }
    assert_eq!(get(&[]).await.status, 403, "a browser that says nothing");
    assert_eq!(upstream.requests().len(), before);
    let own = get(&[&navigates[..], &["Sec-Fetch-Site: same-origin"]].concat()).await;
    assert_eq!(own.status, 200, "a page of this host: {}", own.text());
}

#[tokio::test]
async fn streams_end_with_the_token_of_who_opened_them() {
    let fixture = Fixture::with_faults(|yaml| yaml, streaming).await;
    let mut claims = fixture.a.claims("alice", &["dev"]);
    claims["exp"] = json!(now() + 1200);
    let short = bearer(&fixture.a.sign(&claims));
    claims["exp"] = json!(now() + 7200);
    let long = bearer(&fixture.a.sign(&claims));
    let streams = Streams::open(&fixture.doorward, &["Host: api.test", &short]).await;
    let mut twin = Streams::open(&fixture.doorward, &["Host: api.test", &long]).await;
    fixture.doorward.set_clock_ahead(1800);
    streams.have_ended(1008, "expired").await;
    twin.are_open().await;
}

/// Answers of which nothing says that they last but that they have no length, and one that does not.
fn without_a_length(request: &Recorded) -> Reply {
    let rest = match request.line() {
        line if line.contains("/grpc") => {
            "Content-Type: application/grpc+proto\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"
        }
        line if line.contains("/lines") => {
            "Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n"
        }
        line if line.contains("/file") => "Content-Type: application/octet-stream\r\n\r\nthe beginning",
        line if line.contains("/small") => "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        _ => return Reply::json(200, "{}"),
    };
    Reply::Bytes(format!("HTTP/1.1 200 OK\r\n{rest}").into_bytes())
}

/// Waits until so many answers without a length are open.
async fn unsized_are(doorward: &Doorward, count: usize) {
    let line = format!("doorward_streams_open{{kind=\"unsized\"}} {count}\n");
    within(async {
        while !doorward.metrics().await.contains(&line) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn answers_without_a_length_end_with_their_credential_and_at_the_limit_of_their_route() {
    let limited = |yaml: String| {
        let web = "hosts: [web.test], schemes: [bearer], upstream: web";
        assert!(yaml.contains(web));
        yaml.replace(web, &format!("{web}, max_stream: 20m"))
    };
    let fixture = Fixture::with_faults(limited, without_a_length).await;
    let token = |jti: &str| {
        let mut claims = fixture.a.claims("alice", &["dev"]);
        (claims["jti"], claims["exp"]) = (json!(jti), json!(now() + 7200));
        bearer(&fixture.a.sign(&claims))
    };
    let open = async |token: &str| {
        let mut opened = Vec::new();
        for path in ["/grpc", "/lines", "/file"] {
            let lines = ["Host: web.test", token, "Connection: close"];
            opened.push(begin(&fixture.doorward, path, &lines, 200).await);
        }
        opened
    };
    let (leaked, other) = (token("leaked"), token("other"));
    let (of_leaked, of_other) = (open(&leaked).await, open(&other).await);
    unsized_are(&fixture.doorward, 6).await;
    let break_off = async |opened: Vec<Raw>, why: &str| {
        for mut raw in opened {
            let rest = raw.rest().await;
            assert!(!rest.ends_with(b"0\r\n\r\n"), "{why}: {}", String::from_utf8_lossy(&rest));
        }
    };
    let revoke = ["revoke", "--issuer", "a", "--token-id", "leaked", "--why", "in a build log"];
    let (code, said) = fixture.doorward.operator(&revoke).await;
    assert_eq!(code, Some(0), "{said}");
    break_off(of_leaked, "revoked").await;
    unsized_are(&fixture.doorward, 3).await;

    // One that ends soon is what it was: one record, of an answer that is whole.
    let small = fixture.doorward.get("/small", &["Host: web.test", &other]).await;
    assert_eq!((small.status, small.text().as_str()), (200, "ok"));
    unsized_are(&fixture.doorward, 3).await;

    fixture.doorward.set_clock_ahead(1800);
    break_off(of_other, "expired").await;
    // What changes nothing and is not known to last has one record, at its end.
    let mut ended = ends_in(&fixture.doorward, "request", 6).await;
    ended.sort_unstable();
    assert_eq!(ended, ["expired", "expired", "expired", "revoked", "revoked", "revoked"]);
    let trail = fixture.doorward.audit();
    let small: Vec<_> = trail.iter().filter(|record| record.to_string().contains("/small")).collect();
    assert_eq!(small.len(), 1, "{small:#?}");
    assert_eq!(small[0]["metadata"]["event_code"], "request");
    assert!(small[0]["unmapped"]["ended"].is_null(), "{}", small[0]);
}

#[tokio::test]
async fn streams_end_when_the_hours_of_their_rule_are_over() {
    let clock = |minute: u64| format!("{:02}:{:02}", minute / 60 % 24, minute % 60);
    let minute = now() / 60;
    let window = format!(", time: {{from: '{}', to: '{}'}}", clock(minute + 24 * 60 - 60), clock(minute + 30));
    let (doorward, _peers, host, cookie) = with_login("", &window).await;
    let (host_line, origin) = (format!("Host: {host}"), format!("Origin: http://{host}"));
    let mut streams = Streams::open(&doorward, &[&host_line, &origin, &cookie]).await;
    streams.are_open().await;
    doorward.set_clock_ahead(1800);
    streams.have_ended(1008, "permission_lost").await;
    assert_eq!(doorward.get("/api/v1/pods", &[&host_line, &cookie]).await.status, 403);
}

#[tokio::test]
async fn revoking_a_person_ends_their_sessions_and_what_they_have_open() {
    let (doorward, (issuer, _upstream), host, cookie) = with_login("", "").await;
    let (host_line, origin) = (format!("Host: {host}"), format!("Origin: http://{host}"));
    let streams = Streams::open(&doorward, &[&host_line, &origin, &cookie]).await;
    let revoke = ["revoke", "--issuer", issuer.url(), "--subject", "alice", "--why", "lost a laptop"];
    let (code, said) = doorward.operator(&revoke).await;
    assert_eq!(code, Some(0), "{said}");
    streams.have_ended(1008, "revoked").await;
    let refused = doorward.get("/api/v1/pods", &[&host_line, &cookie]).await;
    assert_eq!((refused.status, refused.reason().as_str()), (401, "token_revoked"));
    assert!(!refused.text().contains("laptop"), "why is for operators: {}", refused.text());
    // A later word replaces the earlier one.
    let (code, said) = doorward.operator(&[&revoke[..6], &["found it", "--for", "1s"]].concat()).await;
    assert_eq!(code, Some(0), "{said}");
    within(async {
        while doorward.get("/api/v1/pods", &[&host_line, &cookie]).await.status != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// One caller's watches took every connection to the API server, and everybody else got 503.
#[tokio::test]
async fn watches_of_one_caller_leave_connections_to_others() {
    let few = |yaml: String| {
        let four = "response_timeout: 5s, connect_timeout: 1s, max_connections: 4";
        format!("workers: 1{}", yaml.replace("response_timeout: 5s", four))
    };
    let fixture = Fixture::with(few, streaming).await;
    let (alice, other) = (fixture.alice(), bearer(&fixture.a.token("olga", &["dev"])));
    let watch = async |status: u16| begin(&fixture.doorward, WATCH, &["Host: api.test", &alice], status).await;
    let watches = [watch(200).await, watch(200).await, watch(200).await];
    watch(503).await;
    for _ in 0..2 {
        let (answer, seen) = fixture.api("/api/v1/pods", &[&other]).await;
        assert_eq!((answer.status, seen.len()), (200, 1), "{}", answer.text());
    }
    drop(watches);
}

/// Servers of gRPC's core library, those in C++ and Python among them, refuse a call without it.
#[tokio::test]
async fn what_a_client_says_of_trailers_goes_on_to_an_upstream_of_http2() {
    let (heads, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let heads = heads.clone();
            let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
                heads.send(request.headers().get("te").cloned()).unwrap();
                async { Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<bytes::Bytes>::new())) }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    let upstream = format!("upstreams:\n  - {{name: grpc, url: 'http://{address}', protocol: http2}}\n");
    let change = |yaml: String| {
        yaml.replace("upstreams:\n", &upstream)
            .replace("schemes: [anonymous], upstream: web", "schemes: [anonymous], upstream: grpc")
    };
    let fixture = Fixture::with(change, |_| Reply::json(200, "{}")).await;
    let mut client = http2(&fixture.doorward).await;
    for (te, expected) in [(Some("trailers"), Some("trailers")), (None, None), (Some("gzip"), None)] {
        let mut request = http::Request::get("http://open.test/x").body(Empty::new()).unwrap();
        request.headers_mut().extend(te.map(|te| (http::header::TE, http::HeaderValue::from_static(te))));
        assert_eq!(within(client.send_request(request)).await.unwrap().status(), 200);
        let seen = within(seen.recv()).await.unwrap();
        assert_eq!(seen.as_ref().map(|te| te.to_str().unwrap()), expected, "{te:?}");
    }
}
