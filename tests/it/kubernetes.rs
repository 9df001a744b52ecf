//! The attacks on an impersonating proxy, one case a row of `kubernetes.md` section 2, over raw sockets. What counts is
//! what reached the upstream.

use serde_json::json;

use crate::{
    fixture::{Fixture, bearer},
    harness::{Answer, Recorded, Reply, within},
};

const PATH: &str = "/apis/tekton.dev/v1/namespaces/ci/taskruns";

/// What must come of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expect {
    /// Refused with this status; the upstream sees nothing.
    Refused(u16),
    /// Forwarded, clean.
    Clean,
}
use Expect::{Clean, Refused};

/// Exactly one user, ours; nothing that the client said about itself; our own credential.
fn assert_clean(row: &str, seen: &[Recorded]) {
    assert_eq!(seen.len(), 1, "{row}: {seen:#?}");
    let head = seen[0].head.to_ascii_lowercase();
    assert_eq!(seen[0].one("impersonate-user"), "alice", "{row}");
    assert_eq!(seen[0].all("impersonate-group"), ["tekton:dev"], "{row}");
    assert_eq!(seen[0].one("authorization"), "Bearer upstream-token", "{row}");
    assert_eq!(seen[0].one("x-forwarded-for"), "127.0.0.1", "{row}");
    for forged in [
        "root",
        "mallory",
        "system:masters",
        "x-remote-",
        "impersonate_",
        "x_forwarded",
        "impersonate-uid",
        "x-secret",
        "evil",
    ] {
        assert!(!head.contains(forged), "{row}: {forged} in {head}");
    }
}

fn check(row: &str, expect: Expect, answer: &Answer, seen: &[Recorded]) {
    match expect {
        Refused(status) => {
            assert_eq!(answer.status, status, "{row}: {}{}", answer.head, answer.text());
            assert!(seen.is_empty(), "{row}: {seen:#?}");
        }
        Clean => {
            assert_eq!(answer.status, 200, "{row}: {}", answer.text());
            assert_clean(row, seen);
        }
    }
}

#[tokio::test]
async fn headers_never_carry_a_forged_identity_upstream() {
    let fixture = Fixture::start().await;
    let alice = fixture.alice();
    let cases: &[(&str, &[&str], Expect)] = &[
        ("twin", &[], Clean),
        ("kubernetes:A1", &["Impersonate-Group: system:masters"], Refused(403)),
        ("kubernetes:A2", &["Impersonate-Uid: 0"], Refused(403)),
        ("kubernetes:A3", &["imPerSoNaTE-uSer: root"], Refused(403)),
        ("kubernetes:A3", &["IMPERSONATE-GROUP: x"], Refused(403)),
        ("kubernetes:A4", &["Impersonate-Doesnotexist: x"], Refused(403)),
        ("kubernetes:A4", &["Impersonate: x"], Refused(403)),
        ("kubernetes:A4", &["Impersonate-Extra-: x"], Refused(403)),
        ("kubernetes:A5", &["Impersonate_User: root"], Refused(403)),
        ("kubernetes:A5", &["X_Remote_User: root"], Clean),
        ("kubernetes:A5", &["X_Forwarded_User: root"], Clean),
        ("kubernetes:A6", &["Impersonate-User: mallory", "Impersonate-User: alice"], Refused(403)),
        ("kubernetes:A7", &["Impersonate-User: mallory"], Refused(403)),
        ("kubernetes:H1", &["Connection: Impersonate-User"], Clean),
        ("kubernetes:H1", &["Connection: keep-alive, Authorization"], Clean),
        ("kubernetes:H1", &["Connection: keep-alive, X-Secret", "X-Secret: 1"], Clean),
        ("kubernetes:H2", &["Connection: ", "Connection: Impersonate-User"], Clean),
        ("kubernetes:H3", &["Connection: close, Impersonate-Group, Audit-ID, X-Forwarded-For"], Clean),
        ("kubernetes:H4", &["Connection: close, X-Forwarded-For, Audit-ID", "Audit-ID: evil"], Clean),
        (
            "kubernetes:X1",
            &["X-Remote-User: system:admin", "X-Remote-Group: system:masters", "X-Remote-Extra-Foo: evil"],
            Clean,
        ),
        ("kubernetes:X3", &["X-Forwarded-Uri: /healthz", "X-Original-Url: /evil", "X-Rewrite-Url: /evil"], Clean),
        ("kubernetes:X4", &["X-Forwarded-For: 1.2.3.4", "X-Real-Ip: 1.2.3.4", "Forwarded: for=1.2.3.4"], Clean),
        ("kubernetes:N1", &["Impersonate-User: bob"], Refused(403)),
        ("kubernetes:N2", &["Impersonate-User: system:serviceaccount:ns:sa"], Refused(403)),
        ("kubernetes:N3", &["Impersonate-User: bob", "Impersonate-Uid: 1"], Refused(403)),
        ("kubernetes:N4", &["Impersonate-User: bob", "Impersonate-Extra-acme.com%2Fproject: p"], Refused(403)),
        ("kubernetes:N5", &["Impersonate-User: bob", "Impersonate-Extra-doorward.dev%2Fclient: evil"], Refused(403)),
        ("kubernetes:N6", &["Impersonate-Group: system:masters"], Refused(403)),
        ("kubernetes:N7", &["Impersonate-User: bob", "Impersonate-Group: system:masters"], Refused(403)),
        ("kubernetes:N8", &["Impersonate-User: dev"], Refused(403)),
        ("kubernetes:N9", &["Impersonate-User: alice", "Impersonate-Group: admins"], Refused(403)),
        ("kubernetes:N10", &["Impersonate-User: slow"], Refused(403)),
        (
            "kubernetes:U3",
            &["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"],
            Refused(400),
        ),
        ("kubernetes:U5", &["Connection: xupgrade", "Upgrade: websocket"], Refused(400)),
        ("attacks:Z31", &["X-Request-Id: evil"], Clean),
        ("attacks:Z32", &["X-HTTP-Method-Override: DELETE"], Clean),
        ("peers:D1", &["Connection: keep-alive, Impersonate-User, Impersonate-Group, X-Forwarded-User"], Clean),
        ("peers:D2", &["Impersonate-Extra-Scopes: admin"], Refused(403)),
        ("peers:T9", &["X-Auth_Request_User: evil"], Clean),
        ("peers:T11", &["X-Forwarded-Uri: /public"], Clean),
        ("peers:T10", &["User-Agent: GoogleHC/1.0"], Clean),
    ];
    for (row, headers, expect) in cases {
        let mut lines = vec![alice.as_str()];
        lines.extend(*headers);
        let (answer, seen) = fixture.api(PATH, &lines).await;
        check(row, *expect, &answer, &seen);
    }
    // kubernetes:X2, peers:T10: on routes without authentication they are stripped all the same.
    let answer = fixture
        .doorward
        .get("/x", &["Host: open.test", "X-Forwarded-User: root", "X-Remote-User: root", "User-Agent: kube-probe/1.30"])
        .await;
    assert_eq!(answer.status, 200);
    let seen = fixture.upstream.take();
    assert!(!seen[0].has("x-forwarded-user") && !seen[0].has("x-remote-user"), "kubernetes:X2 {seen:#?}");
    let audit_ids: Vec<_> = {
        fixture
            .api(PATH, &[&alice, "X-Request-Id: same"])
            .await
            .1
            .iter()
            .map(|seen| seen.one("audit-id").to_owned())
            .collect()
    };
    let again = fixture.api(PATH, &[&alice, "X-Request-Id: same"]).await.1;
    assert_ne!(audit_ids[0], again[0].one("audit-id"), "attacks:Z31");
}

#[tokio::test]
async fn credentials_are_one_or_none() {
    let fixture = Fixture::start().await;
    let alice = fixture.alice();
    let cases: &[(&str, &[&str], Expect)] = &[
        ("kubernetes:E2", &["Authorization: Bearer "], Refused(401)),
        ("kubernetes:E2", &["Authorization: Bearer"], Refused(401)),
        ("kubernetes:E2", &["Authorization: Bearer  x"], Refused(401)),
        ("kubernetes:E2", &[], Refused(401)),
        ("kubernetes:E3", &[&alice, &alice], Refused(400)),
        ("kubernetes:E3", &["Authorization: Basic YTpi", "Cookie: __Host-doorward=x"], Refused(401)),
        ("kubernetes:C1", &["Authorization: Bearer not-a-token"], Refused(401)),
        ("twin", &[&alice], Clean),
    ];
    for (row, headers, expect) in cases {
        let (answer, seen) = fixture.api(PATH, headers).await;
        check(row, *expect, &answer, &seen);
        if answer.status == 401 {
            assert!(answer.header("www-authenticate").is_some(), "{row}");
            assert_eq!(answer.json()["kind"], "Status", "{row}: kubectl reads nothing else");
        }
    }
    let (answer, seen) = fixture.api(&format!("{PATH}?access_token=x"), &[&alice]).await;
    check("oauth: a token in the query", Refused(400), &answer, &seen);
}

#[tokio::test]
async fn paths_and_queries_are_read_as_the_api_server_reads_them() {
    let rule = "  - {id: reads, on: {routes: [api], kubernetes: {verbs: [get, list], resources: [pods]}}, who: {issuers: [a], groups: [dev]}, do: allow}\n  - {id: open,";
    let fixture = Fixture::with(
        |yaml| {
            yaml.replace("on: {routes: [api, only-a, board, web]}", "on: {routes: [web]}")
                .replace("  - {id: open,", rule)
        },
        |_| Reply::json(200, "{}"),
    )
    .await;
    let alice = fixture.alice();
    let cases: &[(&str, &str, Expect)] = &[
        ("twin", "/api/v1/namespaces/a/pods", Clean),
        ("twin", "/api/v1/namespaces/a/pods/", Clean),
        ("twin", "/api/v1/namespaces/a/pods/x?limit=5", Clean),
        ("kubernetes:P1", "//api/v1/pods", Refused(400)),
        ("kubernetes:P1", "/api/v1//pods", Refused(400)),
        ("kubernetes:P1", "/api/v1/namespaces/a/../b/pods", Refused(400)),
        ("kubernetes:P1", "/api/v1/namespaces/a/%2e%2e/pods", Refused(400)),
        ("kubernetes:P1", "/api/v1/namespaces/a%2Fb/pods", Refused(400)),
        ("kubernetes:P1", "/api/v1/pods;x", Refused(400)),
        ("kubernetes:P1", "/api/v1/pods%00", Refused(400)),
        ("kubernetes:P2", "/api/v1/watch/pods", Refused(403)),
        ("kubernetes:P2", "/api/v1/proxy/nodes/x", Refused(403)),
        ("kubernetes:P3", "/api/v1/pods?watch=1", Refused(403)),
        ("kubernetes:P3", "/api/v1/pods?watch", Refused(403)),
        ("kubernetes:P3", "/api/v1/pods?watch=t", Refused(403)),
        ("kubernetes:P3", "/api/v1/pods?limit=x&watch=1", Refused(403)),
        ("twin", "/api/v1/pods?watch=false", Clean),
        ("twin", "/api/v1/pods?watch=0", Clean),
        ("kubernetes:P6", "/api/v1/namespaces/a/services/x:80/proxy/y", Refused(403)),
        ("kubernetes:P6", "/api/v1/nodes/n/proxy/exec/a/b/c", Refused(403)),
        ("kubernetes:C4", "/api/v1/pods?fieldSelector=metadata.name%3Da&fieldSelector=metadata.name%3Db", Refused(400)),
        ("peers:T8", "/api/v1/secrets?path=/pods", Refused(403)),
        ("peers:T12", "/api/v1/secrets%23/pods", Refused(403)),
        ("peers:D4", "/api/v1/pods/%2e%2e/secrets", Refused(400)),
        ("peers:D5", "/a/%zz", Refused(400)),
        ("peers:D6", "/%61pi/v1/pods", Refused(400)),
    ];
    for (row, path, expect) in cases {
        let (answer, seen) = fixture.api(path, &[&alice]).await;
        check(&format!("{row} {path}"), *expect, &answer, &seen);
        if *expect == Clean {
            assert!(seen[0].line().contains(path), "the very bytes that were decided are forwarded");
        }
    }
    // kubernetes:P4 is a named list, and allowed; kubernetes:P5 is deletecollection, which `read` is not.
    let (answer, seen) = fixture.api("/api/v1/pods?fieldSelector=metadata.name%3Dx", &[&alice]).await;
    check("kubernetes:P4", Clean, &answer, &seen);
    let answer =
        fixture.doorward.send(&["DELETE /api/v1/namespaces/a/pods HTTP/1.1", "Host: api.test", &alice], b"").await;
    assert_eq!(answer.status, 403, "kubernetes:P5");
    let answer =
        fixture.doorward.send(&["BREW /api/v1/namespaces/a/pods HTTP/1.1", "Host: api.test", &alice], b"").await;
    assert_eq!(answer.status, 403, "kubernetes:P5: an unknown method has no verb");
}

#[tokio::test]
async fn smuggling_shapes_are_refused_and_the_connection_closed() {
    let fixture = Fixture::start().await;
    let alice = fixture.alice();
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: api.test\r\n{alice}\r\n");
    let follow = "GET /smuggled HTTP/1.1\r\nHost: api.test\r\n\r\n";
    for (row, rest) in [
        ("kubernetes:R1 CL+TE", format!("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{follow}")),
        ("kubernetes:R1 TE", format!("Transfer-Encoding: xchunked\r\n\r\n{follow}")),
        ("kubernetes:R1 two CL", format!("Content-Length: 0\r\nContent-Length: 5\r\n\r\n{follow}")),
        ("kubernetes:R1 obs-fold", format!("X-A: b\r\n c\r\n\r\n{follow}")),
        ("kubernetes:R1 blank", format!("X-A : b\r\n\r\n{follow}")),
    ] {
        let _ = fixture.upstream.take();
        let mut raw = fixture.doorward.raw().await;
        raw.send(format!("{head}{rest}")).await;
        let answer = raw.answer().await;
        let all = String::from_utf8_lossy(&raw.rest().await).into_owned();
        assert!(matches!(answer.status, 400 | 501), "{row}: {}", answer.head);
        assert!(!all.contains("HTTP/1.1 2"), "{row}: {all}");
        assert!(fixture.upstream.take().iter().all(|seen| !seen.line().contains("smuggled")), "{row}");
    }
    let two_hosts = format!("GET {PATH} HTTP/1.1\r\nHost: api.test\r\nHost: web.test\r\n{alice}\r\n\r\n");
    let mut raw = fixture.doorward.raw().await;
    raw.send(two_hosts).await;
    assert_eq!(raw.answer().await.status, 400, "kubernetes:R2");
    // The twin: the same request with one length.
    let mut raw = fixture.doorward.raw().await;
    raw.send(format!("{head}Content-Length: 4\r\n\r\nbody")).await;
    assert_eq!(raw.answer().await.status, 200);
    // kubernetes:R3: two people on one connection are two people.
    let bob = bearer(&fixture.a.token("bob", &["dev"]));
    let _ = fixture.upstream.take();
    for line in [&alice, &bob] {
        raw.send(format!("GET {PATH} HTTP/1.1\r\nHost: api.test\r\n{line}\r\n\r\n")).await;
        assert_eq!(raw.answer().await.status, 200);
    }
    let users: Vec<_> = fixture.upstream.take().iter().map(|seen| seen.one("impersonate-user").to_owned()).collect();
    assert_eq!(users, ["alice", "bob"], "kubernetes:R3");
    // attacks:Z37: a trailer is no header.
    raw.send(format!("{head}Transfer-Encoding: chunked\r\nTrailer: Impersonate-Group\r\n\r\n0\r\nImpersonate-Group: system:masters\r\n\r\n")).await;
    raw.answer().await;
    assert!(fixture.upstream.take().iter().all(|seen| !seen.head.contains("masters")), "attacks:Z37");
}

const HANDSHAKE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";

#[tokio::test]
async fn upgrades_follow_the_rules_of_exec() {
    let fixture = Fixture::with(
        |yaml| yaml,
        |request| match request.line() {
            line if line.contains("/denied/") => Reply::json(403, "{}"),
            line if line.contains("/odd/") => Reply::json(200, "{}"),
            line if line.contains("/moved/") => {
                Reply::Bytes(b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n".to_vec())
            }
            line if line.contains("/unasked/") => Reply::Bytes(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".to_vec(),
            ),
            _ => Reply::Echo,
        },
    )
    .await;
    let alice = fixture.alice();
    let exec = |pod: &str| {
        format!("GET /api/v1/namespaces/ci/pods/{pod}/exec?command=sh HTTP/1.1\r\nHost: api.test\r\n{HANDSHAKE}\r\n")
    };
    let encoded = base64::Engine::encode(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
        alice.strip_prefix("Authorization: Bearer ").unwrap(),
    );
    let token_protocol = format!("base64url.bearer.authorization.k8s.io.{encoded}");

    let mut raw = fixture.doorward.raw().await;
    raw.send(format!("{}{alice}\r\n\r\n", exec("a"))).await;
    assert_eq!(raw.answer().await.status, 101, "twin");
    raw.send(b"\x81\x85\x01\x02\x03\x04abcde").await;
    assert_eq!(raw.some().await, b"\x81\x85\x01\x02\x03\x04abcde", "what the client sends comes back");

    for (row, lines, status) in [
        ("kubernetes:W1", format!("Sec-WebSocket-Protocol: {token_protocol}, v5.channel.k8s.io"), 101),
        ("kubernetes:W2", format!("Sec-WebSocket-Protocol: {token_protocol}"), 401),
        (
            "kubernetes:W3",
            format!("Sec-WebSocket-Protocol: {token_protocol}, {token_protocol}, v5.channel.k8s.io"),
            401,
        ),
        (
            "kubernetes:W3",
            "Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.!!!, v5.channel.k8s.io".to_owned(),
            401,
        ),
    ] {
        let _ = fixture.upstream.take();
        let mut raw = fixture.doorward.raw().await;
        raw.send(format!("{}{lines}\r\n\r\n", exec("a"))).await;
        let answer = raw.answer().await;
        assert_eq!(answer.status, status, "{row}: {}", answer.text());
        let seen = fixture.upstream.take();
        assert_eq!(seen.len(), usize::from(status == 101), "{row}");
        if let [seen] = &seen[..] {
            assert_eq!(
                seen.one("sec-websocket-protocol"),
                "v5.channel.k8s.io",
                "{row}: the upstream never sees the token"
            );
        }
    }
    let (answer, seen) =
        fixture.api(PATH, &[&format!("Sec-WebSocket-Protocol: {token_protocol}, v5.channel.k8s.io")]).await;
    assert_eq!((answer.status, seen.len()), (401, 0), "kubernetes:W4");

    // kubernetes:U1: the refusal is relayed, and nothing else can follow on the connection.
    let mut raw = fixture.doorward.raw().await;
    raw.send(format!("{}{alice}\r\n\r\nGET /api/v1/secrets HTTP/1.1\r\nHost: api.test\r\n\r\n", exec("denied"))).await;
    assert_eq!(raw.answer().await.status, 403, "kubernetes:U1");
    raw.rest().await;
    assert!(fixture.upstream.take().iter().all(|seen| !seen.line().contains("secrets")), "kubernetes:U1");
    for (row, pod) in [("kubernetes:U2", "odd"), ("kubernetes:U2", "moved")] {
        let mut raw = fixture.doorward.raw().await;
        raw.send(format!("{}{alice}\r\n\r\n", exec(pod))).await;
        assert_eq!(raw.answer().await.status, 502, "{row} {pod}");
    }
    let mut raw = fixture.doorward.raw().await;
    raw.send(format!("{}{alice}\r\nContent-Length: 5\r\n\r\nhello", exec("a"))).await;
    assert_eq!(raw.answer().await.status, 400, "kubernetes:U4");
    let (answer, _) = fixture.api("/api/v1/namespaces/ci/pods/unasked/log", &[&alice]).await;
    assert_eq!(answer.status, 502, "attacks:Z38");
}

#[tokio::test]
async fn streams_end_with_their_token() {
    let fixture = Fixture::with(
        |yaml| yaml,
        |request| {
            if request.has("upgrade") { Reply::Echo } else { Reply::Watch(vec![b"{\"type\":\"ADDED\"}\n".to_vec()]) }
        },
    )
    .await;
    let mut claims = fixture.a.claims("alice", &["dev"]);
    claims["exp"] = json!(crate::harness::now() + 2);
    let short = bearer(&fixture.a.sign(&claims));
    let mut watch = fixture.doorward.raw().await;
    watch
        .send(format!("GET {PATH}?watch=true HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n{short}\r\n\r\n"))
        .await;
    let mut socket = fixture.doorward.raw().await;
    socket
        .send(format!(
            "GET /api/v1/namespaces/ci/pods/a/exec HTTP/1.1\r\nHost: api.test\r\n{HANDSHAKE}\r\n{short}\r\n\r\n"
        ))
        .await;
    assert_eq!(socket.answer().await.status, 101);
    let watched = watch.rest().await;
    assert!(watched.ends_with(b"0\r\n\r\n"), "kubernetes:T1, peers:D14: a watch ends cleanly");
    let closed = socket.rest().await;
    assert_eq!(closed[0], 0x88, "kubernetes:T1: a close frame, {closed:?}");
    // kubernetes:T3: a stream is in the trail when it is decided, when it begins and when it ends, and why.
    let mut codes = Vec::new();
    within(async {
        while codes.len() < 6 {
            codes = fixture
                .doorward
                .audit()
                .iter()
                .filter(|record| record["unmapped"]["route"] == "api" && record["metadata"]["event_code"] != "request")
                .map(|record| record["metadata"]["event_code"].as_str().unwrap().to_owned())
                .collect();
            tokio::task::yield_now().await;
        }
    })
    .await;
    for code in ["request.decided", "request.started", "request.completed"] {
        assert_eq!(codes.iter().filter(|found| *found == code).count(), 2, "kubernetes:T3 {codes:?}");
    }
}

#[tokio::test]
async fn our_own_credential_is_our_own_trouble() {
    let fixture = Fixture::with(
        |yaml| yaml,
        |request| {
            if request.line().contains("forbidden") { Reply::json(403, "{}") } else { Reply::json(401, "{}") }
        },
    )
    .await;
    let (answer, _) = fixture.api(PATH, &[&fixture.alice()]).await;
    assert_eq!((answer.status, answer.reason().as_str()), (502, "upstream_credential"), "kubernetes:C1");
    // The twin: what the upstream says of the caller passes.
    let (answer, _) = fixture.api("/api/v1/forbidden", &[&fixture.alice()]).await;
    assert_eq!(answer.status, 403);
}

#[tokio::test]
async fn nothing_secret_reaches_a_log_or_the_trail() {
    let mut fixture = Fixture::start().await;
    let token = fixture.a.token("alice", &["dev"]);
    fixture.api(PATH, &[&bearer(&token), "Cookie: __Host-doorward=cookie-secret"]).await;
    fixture
        .api(
            &format!("{PATH}?secret=query-secret"),
            &["Authorization: Bearer bad.to.ken", "Impersonate-User: impersonated-secret"],
        )
        .await;
    fixture.api("/oauth2/callback?code=code-secret&state=x", &[&bearer(&token)]).await;
    fixture.doorward.signal("TERM");
    fixture.doorward.ended().await;
    let log =
        format!("{:?}{}", fixture.doorward.log(), std::fs::read_to_string(fixture.doorward.audit_path()).unwrap());
    for secret in [
        token.as_str(),
        token.split('.').nth(2).unwrap(),
        "cookie-secret",
        "query-secret",
        "code-secret",
        "impersonated-secret",
        "upstream-token",
        "introspection-secret",
    ] {
        assert!(!log.contains(secret), "kubernetes:L1, peers:D13 {secret}");
    }
    assert!(log.contains("\"alice\"") || log.contains("alice"));
}
