//! Rows W, U, T: connections that are upgraded, and how long they live.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde_json::{Value, json};

use super::{
    Expect::{self, Refused},
    TASKRUNS, check, rules, scripted,
};
use crate::{
    fixture::{Fixture, bearer},
    harness::{HANDSHAKE, Raw, Recorded, Reply, now, unique},
};

const EXEC: &str = "/api/v1/namespaces/ci/pods/p/exec?command=sh";

async fn upstream() -> Fixture {
    scripted(script).await
}

/// Echoes on exec, and answers differently if the pod's name asks for it.
fn script(request: &Recorded) -> Reply {
    match request.line() {
        line if line.contains("/pods/refused/") => Reply::json(403, "{}"),
        line if line.contains("/pods/plain/") => Reply::json(200, "{}"),
        line if line.contains("/pods/moved/") => {
            Reply::Bytes(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".to_vec())
        }
        line if line.contains("/unasked/") => Reply::Bytes(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".to_vec(),
        ),
        line if line.contains("/exec?") => Reply::Echo,
        line if line.contains("/p/log?") && request.has("upgrade") => Reply::Echo,
        line if line.contains("watch=true") => Reply::Watch(vec![b"{\"type\":\"ADDED\"}\n".to_vec()]),
        _ => Reply::json(200, "{}"),
    }
}

fn exec(path: &str, headers: &[&str]) -> String {
    let mut lines = vec![format!("GET {path} HTTP/1.1"), "Host: api.test".to_owned()];
    lines.extend(headers.iter().map(|line| (*line).to_owned()));
    lines.join("\r\n") + "\r\n\r\n"
}

fn with<'a>(first: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [first, more].concat()
}

/// Sends a request on a connection of its own, and returns the connection after the head of the response.
async fn open(fixture: &Fixture, request: &str) -> (Raw, u16) {
    let mut raw = fixture.doorward.raw().await;
    raw.send(request).await;
    let answer = raw.answer().await;
    (raw, answer.status)
}

async fn echoes(raw: &mut Raw, row: &str) {
    // A masked text frame of four bytes (RFC 6455 section 5.2).
    let frame = b"\x81\x84\x01\x02\x03\x04abcd";
    raw.send(frame).await;
    assert_eq!(raw.some().await, frame, "{row}");
}

#[tokio::test]
async fn a_token_among_websocket_protocols() {
    let fixture = upstream().await;
    let token = fixture.a.token("alice", &["dev"]);
    // An opaque ASCII token cannot have both letters in its base64url that the standard alphabet lacks; `-` is
    // possible.
    let opaque = format!("ab~{}", unique());
    fixture.a.opaque(
        &opaque,
        json!({"active": true, "sub": "alice", "iss": fixture.a.url(), "aud": "https://doorward.test",
            "client_id": "tests", "groups": ["dev"], "exp": now() + 60}),
    );
    assert!(BASE64URL.encode(&opaque).contains('-'));
    let protocol = |encoded: &str| format!("base64url.bearer.authorization.k8s.io.{encoded}");
    let encoded = protocol(&BASE64URL.encode(&token));
    let [head, payload, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!("{token}") };
    let flattened = json!({"protected": head, "payload": payload, "signature": signature});
    let general = json!({"payload": payload, "signatures": [{"protected": head, "signature": signature}]});
    let cases: Vec<(&str, Vec<String>, u16)> = vec![
        ("kubernetes:W1", vec![format!("{encoded}, v5.channel.k8s.io")], 101),
        ("kubernetes:W1", vec![encoded.clone(), "v5.channel.k8s.io".into()], 101),
        ("kubernetes:W2", vec![encoded.clone()], 401),
        ("kubernetes:W3", vec![format!("{encoded}, {encoded}, v5.channel.k8s.io")], 400),
        ("kubernetes:W3", vec![format!("{}, v5.channel.k8s.io", protocol("!!!"))], 401),
        ("kubernetes:W3", vec![format!("{}, v5.channel.k8s.io", protocol("YWI="))], 401),
        ("kubernetes:W3", vec![format!("{}, v5.channel.k8s.io", protocol(&BASE64URL.encode([0xff, 0xfe])))], 401),
        ("kubernetes:W5", vec![format!("{}, v5.channel.k8s.io", protocol(&BASE64URL.encode(&opaque)))], 101),
        ("oauth:13", vec![format!("{}, v5.channel.k8s.io", protocol(&BASE64URL.encode(flattened.to_string())))], 401),
        ("oauth:13", vec![format!("{}, v5.channel.k8s.io", protocol(&BASE64URL.encode(general.to_string())))], 401),
    ];
    for (row, protocols, status) in &cases {
        let _ = fixture.upstream.take();
        let lines: Vec<String> = protocols.iter().map(|value| format!("Sec-WebSocket-Protocol: {value}")).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let (mut raw, found) = open(&fixture, &exec(EXEC, &with(&HANDSHAKE, &lines))).await;
        assert_eq!(found, *status, "{row} {protocols:?}");
        let seen = fixture.upstream.take();
        assert_eq!(seen.len(), usize::from(*status == 101), "{row}");
        if let [seen] = &seen[..] {
            assert_eq!(seen.all("sec-websocket-protocol"), ["v5.channel.k8s.io"], "{row}");
            assert_eq!(seen.all("impersonate-user"), ["alice"], "{row}");
            assert_eq!(seen.all("authorization"), ["Bearer upstream-token"], "{row}");
            echoes(&mut raw, row).await;
        }
    }
    // Without an upgrade the protocols are no credential, and are not forwarded.
    let line = format!("Sec-WebSocket-Protocol: {encoded}, v5.channel.k8s.io");
    let get = format!("GET {TASKRUNS} HTTP/1.1");
    check(&fixture, "kubernetes:W4", &[&get, "Host: api.test", &line], b"", Refused(&[401])).await;
    let answer = fixture.doorward.send(&[&get, "Host: api.test", &line, &bearer(&token)], b"").await;
    assert_eq!(answer.status, 200, "kubernetes:W4");
    assert!(!fixture.upstream.only().has("sec-websocket-protocol"), "kubernetes:W4");
    // kubernetes:E3: a token in each place.
    let both = with(&HANDSHAKE, &[&line]);
    let alice = bearer(&token);
    let first = format!("GET {EXEC} HTTP/1.1");
    let lines = with(&[&first, "Host: api.test", &alice], &both);
    check(&fixture, "kubernetes:E3", &lines, b"", Refused(&[400, 401])).await;
}

#[tokio::test]
async fn an_upgrade_that_is_not_exactly_one_is_400() {
    let fixture = upstream().await;
    let alice = fixture.alice();
    let key = &HANDSHAKE[2..];
    let no: Expect = Refused(&[400]);
    let cases: Vec<(&str, Vec<&str>)> = vec![
        ("kubernetes:U3", vec!["Upgrade: h2c", "HTTP2-Settings: AAMAAABk"]),
        ("kubernetes:U3", vec!["Upgrade: TLS/1.0"]),
        ("kubernetes:U3", with(&["Connection: Upgrade", "Upgrade: TLS/1.0, websocket"], key)),
        ("kubernetes:U3", with(&["Connection: Upgrade", "Upgrade: websocket, h2c"], key)),
        ("kubernetes:U4", with(&HANDSHAKE, &["Content-Length: 5"])),
        ("kubernetes:U4", with(&HANDSHAKE, &["Transfer-Encoding: chunked"])),
        ("kubernetes:U5", with(&["Connection: xupgrade", "Upgrade: websocket"], key)),
        ("kubernetes:U5", with(&["Connection: upgrade-insecure", "Upgrade: websocket"], key)),
        ("kubernetes:U5", with(&["Connection: Upgrade"], key)),
        ("kubernetes:U5", with(&["Upgrade: websocket"], key)),
    ];
    let first = format!("GET {EXEC} HTTP/1.1");
    for (row, lines) in &cases {
        let lines = with(&[&first, "Host: api.test", &alice], lines);
        check(&fixture, row, &lines, b"", no).await;
    }
    // Only streams and logs can be upgraded.
    for path in [TASKRUNS, "/api/v1/namespaces/ci/pods/p", "/version"] {
        let first = format!("GET {path} HTTP/1.1");
        check(&fixture, path, &with(&[&first, "Host: api.test", &alice], &HANDSHAKE), b"", no).await;
    }
    let (mut raw, status) = open(&fixture, &exec(EXEC, &with(&HANDSHAKE, &[&alice]))).await;
    assert_eq!(status, 101, "the twin");
    echoes(&mut raw, "the twin").await;
    let spdy = ["Connection: Upgrade", "Upgrade: SPDY/3.1"];
    let (mut raw, status) = open(&fixture, &exec(EXEC, &with(&spdy, &[&alice]))).await;
    assert_eq!(status, 101, "the twin of kubernetes:U3");
    echoes(&mut raw, "kubernetes:U3").await;
}

/// Some clients send such an offer with each request in clear text.
#[tokio::test]
async fn an_offer_of_h2c_or_tls_is_left_alone_and_nothing_follows_it() {
    let fixture = upstream().await;
    let alice = fixture.alice();
    for offer in [
        &["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"][..],
        &["Connection: Upgrade", "Upgrade: TLS/1.2"],
    ] {
        fixture.upstream.take();
        let smuggled = "GET /api/v1/secrets HTTP/1.1\r\nHost: api.test\r\n\r\n";
        let mut raw = fixture.doorward.raw().await;
        raw.send(exec(TASKRUNS, &with(&[&alice], offer)) + smuggled).await;
        let answer = raw.answer().await;
        assert_eq!(answer.status, 200, "kubernetes:U3 {offer:?}: {}", answer.text());
        assert!(raw.rest().await.is_empty(), "kubernetes:U3 {offer:?}");
        let seen = fixture.upstream.only();
        for name in ["upgrade", "http2-settings", "connection"] {
            assert!(!seen.has(name), "kubernetes:U3 {offer:?}: {}", seen.head);
        }
    }
}

/// As Headlamp reads it without following.
#[tokio::test]
async fn a_log_that_is_not_followed_is_read_over_a_websocket() {
    let fixture = upstream().await;
    let (alice, log) = (fixture.alice(), "/api/v1/namespaces/ci/pods/p/log?container=c&follow=false");
    let (mut raw, status) = open(&fixture, &exec(log, &with(&HANDSHAKE, &[&alice]))).await;
    assert_eq!(status, 101);
    echoes(&mut raw, log).await;
    let (answer, _) = fixture.api(log, &[&alice]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// nginx sends it with every request when set up by the first example on its page about WebSockets.
#[tokio::test]
async fn connection_upgrade_without_a_handshake_is_forwarded_as_a_plain_request() {
    let fixture = upstream().await;
    let (answer, seen) = fixture.api(TASKRUNS, &[&fixture.alice(), "Connection: upgrade"]).await;
    assert_eq!((answer.status, seen.len()), (200, 1), "{}", answer.text());
    assert!(!seen[0].has("connection") && !seen[0].has("upgrade"), "{}", seen[0].head);
}

#[tokio::test]
async fn nothing_follows_on_a_connection_whose_upgrade_failed() {
    let fixture = upstream().await;
    let alice = fixture.alice();
    for (row, pod, status) in
        [("kubernetes:U1", "refused", 403), ("kubernetes:U2", "plain", 502), ("kubernetes:U2", "moved", 502)]
    {
        let _ = fixture.upstream.take();
        let path = EXEC.replace("/p/", &format!("/{pod}/"));
        let mut raw = fixture.doorward.raw().await;
        // The second request is sent with the first: it must not be forwarded on the upstream connection.
        let smuggled = "GET /api/v1/secrets HTTP/1.1\r\nHost: api.test\r\n\r\n";
        raw.send(exec(&path, &with(&HANDSHAKE, &[&alice])) + smuggled).await;
        let answer = raw.answer().await;
        assert_eq!(answer.status, status, "{row} {pod}: {}", answer.text());
        raw.send(smuggled).await;
        let rest = raw.rest().await;
        assert!(!String::from_utf8_lossy(&rest).contains("200 OK"), "{row}");
        let seen = fixture.upstream.take();
        assert_eq!(seen.len(), 1, "{row}: {seen:#?}");
        assert!(!seen[0].head.contains("secrets") && seen[0].body.is_empty(), "{row}");
    }
}

#[tokio::test]
async fn an_unrequested_101_becomes_502() {
    let fixture = upstream().await;
    let alice = fixture.alice();
    for (pod, status) in [("unasked", 502), ("p", 200)] {
        let (answer, seen) = fixture.api(&format!("/api/v1/namespaces/ci/pods/{pod}/log"), &[&alice]).await;
        assert_eq!((answer.status, seen.len()), (status, 1), "attacks:Z38 {pod}");
    }
}

/// Otherwise an upstream could plant a session of its choice in the browser that opens the socket.
#[tokio::test]
async fn a_101_sets_no_doorward_cookie_and_has_no_hop_by_hop_headers_of_the_upstream() {
    let switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade, X-Hop\r\nUpgrade: websocket\r\n\
                    X-Hop: 1\r\nKeep-Alive: timeout=5\r\nSec-WebSocket-Accept: accepted\r\n\
                    Set-Cookie: __Host-doorward=planted; Secure; Path=/\r\nSet-Cookie: theirs=1\r\n\r\n";
    let fixture = scripted(move |request| match request.has("upgrade") {
        true => Reply::Bytes(switched.into()),
        false => Reply::json(200, "{}"),
    })
    .await;
    for (host, path) in [("api.test", EXEC), ("web.test", "/socket")] {
        let (host, alice) = (format!("Host: {host}"), fixture.alice());
        let answer = fixture.doorward.get(path, &with(&HANDSHAKE, &[&host, &alice])).await;
        assert_eq!(answer.status, 101, "{host}: {}", answer.text());
        assert_eq!(answer.all("set-cookie"), ["theirs=1"], "{host}: {}", answer.head);
        assert_eq!(answer.all("connection"), ["Upgrade"], "{host}: {}", answer.head);
        assert_eq!(answer.all("upgrade"), ["websocket"], "{host}: {}", answer.head);
        assert_eq!(answer.all("sec-websocket-accept"), ["accepted"], "{host}: {}", answer.head);
        for name in ["x-hop", "keep-alive"] {
            assert!(answer.all(name).is_empty(), "{host}: {}", answer.head);
        }
    }
}

#[tokio::test]
async fn bytes_before_the_101_are_no_request() {
    let fixture = upstream().await;
    let mut raw = fixture.doorward.raw().await;
    let early = "GET /api/v1/secrets HTTP/1.1\r\nHost: api.test\r\n\r\n";
    raw.send(exec(EXEC, &with(&HANDSHAKE, &[&fixture.alice()])) + early).await;
    assert_eq!(raw.answer().await.status, 101, "kubernetes:U4");
    // They belong to the new protocol, which echoes them.
    let mut echoed = Vec::new();
    while echoed.len() < early.len() {
        let some = raw.some().await;
        assert!(!some.is_empty(), "kubernetes:U4");
        echoed.extend(some);
    }
    assert_eq!(echoed, early.as_bytes(), "kubernetes:U4");
    assert_eq!(fixture.upstream.take().len(), 1, "kubernetes:U4");
}

#[tokio::test]
async fn streams_end_with_the_token_that_opened_them() {
    let fixture = Fixture::with_faults(rules("info"), script).await;
    let token = |seconds: u64| {
        let mut claims = fixture.b.claims("bea", &["dev"]);
        claims["name"] = json!("alice");
        claims["exp"] = json!(now() + seconds);
        bearer(&fixture.b.sign(&claims))
    };
    let (short, long) = (token(1200), token(7200));
    let watch = format!("{TASKRUNS}?watch=true");
    let mut watches = Vec::new();
    let mut sockets = Vec::new();
    for token in [&short, &long] {
        let mut raw = fixture.doorward.raw().await;
        raw.send(exec(&watch, &[token, "Connection: close"])).await;
        let head = String::from_utf8_lossy(&raw.some().await).into_owned();
        assert!(head.starts_with("HTTP/1.1 200"), "kubernetes:T1 {head}");
        watches.push(raw);
        let (mut raw, status) = open(&fixture, &exec(EXEC, &with(&HANDSHAKE, &[token]))).await;
        assert_eq!(status, 101, "kubernetes:T1");
        echoes(&mut raw, "kubernetes:T1").await;
        sockets.push(raw);
    }
    // Before any of them has ended.
    let of_exec = |record: &Value| record.to_string().contains("/exec");
    let is_begin = |record: &Value| record["metadata"]["event_code"] == "request.started" && of_exec(record);
    fixture.doorward.records(2, is_begin).await;
    fixture.doorward.set_clock_ahead(1800);
    let rest = watches[0].rest().await;
    assert!(
        rest.ends_with(b"0\r\n\r\n"),
        "kubernetes:T1 peers:D14 a watch ends cleanly: {}",
        String::from_utf8_lossy(&rest)
    );
    let closed = sockets[0].rest().await;
    assert_eq!(closed.first(), Some(&0x88), "kubernetes:T1 a WebSocket ends with a close frame: {closed:?}");
    // The counterparts, with a token that lasts.
    echoes(&mut sockets[1], "kubernetes:T1 twin").await;
    // kubernetes:T3: the decision, the beginning and the end are recorded, at the latest soon after.
    let is_end = |record: &Value| record["metadata"]["event_code"] == "request.completed" && of_exec(record);
    fixture.doorward.record(is_end).await;
    let trail = fixture.doorward.audit();
    let count =
        |code: &str| trail.iter().filter(|record| of_exec(record) && record["metadata"]["event_code"] == code).count();
    let counts = ["request.decided", "request.started", "request.completed"].map(count);
    assert_eq!(counts, [2, 2, 1], "kubernetes:T3");
    for record in trail.iter().filter(|record| of_exec(record)) {
        if record["metadata"]["event_code"] == "request.decided" {
            continue;
        }
        assert_eq!(record["unmapped"]["upstream"]["status"], 101, "kubernetes:T3 {record}");
    }
}

/// The API server answers a watch over a WebSocket with 403 if there is no `Origin`, which only pages send.
#[tokio::test]
async fn a_socket_of_a_page_has_the_origin_of_the_server_and_one_of_a_program_has_none() {
    let fixture = upstream().await;
    let token = bearer(&fixture.a.token("alice", &["dev"]));
    for (page, expected) in [(true, true), (false, false)] {
        let _ = fixture.upstream.take();
        let origin = if page { &["Origin: https://api.test"][..] } else { &[] };
        let lines = [&HANDSHAKE[..], &[&token], origin].concat();
        let (_raw, status) = open(&fixture, &exec(EXEC, &lines)).await;
        assert_eq!(status, 101);
        let seen = fixture.upstream.take();
        let own = fixture.upstream.url();
        assert_eq!(seen[0].all("origin"), if expected { vec![own.as_str()] } else { vec![] });
    }
}
