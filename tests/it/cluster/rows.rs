//! The rows of the attack table again (`tests/it/kubernetes`), judged by the identities in the API server's audit log.
//! Doorward has a client certificate here with which the API server would accept `X-Remote-User`, so that any leaked
//! header takes effect.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde_json::{Value, json};

use super::{
    tekton::{Tekton, pod},
    world::{GROUP, World},
};
use crate::{
    fixture::{Change, bearer},
    harness::{Raw, h2, now, unique, until},
};

/// Forwarded as Alice. Any other value is the status of a refusal, and nothing is forwarded.
const CLEAN: u16 = 200;

/// How long a token is accepted after its end, in seconds: the default of `clock_skew`.
const SKEW: u64 = 30;

/// The default request of a case.
fn read(world: &World) -> String {
    format!("/api/v1/namespaces/{}/configmaps", world.namespace)
}

/// Asserts that exactly `sent` requests reached the API server and that all of them were Alice's. Sends one more, since
/// earlier requests are logged before it.
async fn assert_only(world: &World, sent: usize, row: &str) {
    let last = format!("GET {}/last", read(world));
    assert_eq!(world.alice(&last, &[], b"").await.status, 404, "{row}");
    world.event(|event| event["objectRef"]["name"] == "last").await;
    let events = world.audit();
    let complete = events.iter().filter(|event| event["stage"] == "ResponseComplete");
    let asked: Vec<String> = complete.map(|event| format!("{} {}", event["verb"], event["requestURI"])).collect();
    assert_eq!(asked.len(), sent + 1, "{row}: {asked:#?}");
    // No request had an identity of the client's own, or none.
    let namespace = &world.namespace;
    for event in world.api.audit(namespace) {
        let account = format!("system:serviceaccount:{namespace}:doorward");
        assert_eq!(event["user"]["username"], account.as_str(), "{row}: {event:#}");
        assert_eq!(event["sourceIPs"], json!(["127.0.0.1"]), "{row}: {event:#}");
    }
    world.assert_sent_as(&["alice"]).await;
}

#[tokio::test]
async fn identity_headers_of_a_client_are_ignored() {
    let world = World::start().await;
    let cases: &[(&str, &[&str], u16)] = &[
        ("cluster:A1", &["Impersonate-Group: system:masters"], 403),
        ("cluster:A2", &["Impersonate-Uid: 0"], 403),
        ("cluster:A3", &["imPerSoNaTE-uSer: root"], 403),
        ("cluster:A3", &["IMPERSONATE-GROUP: x"], 403),
        ("cluster:A4", &["Impersonate-Doesnotexist: x"], 403),
        ("cluster:A4", &["Impersonate: x"], 403),
        ("cluster:A4", &["Impersonate-Extra-: x"], 403),
        ("cluster:A5", &["Impersonate_User: root"], 403),
        ("cluster:A5", &["X_Remote_User: root"], CLEAN),
        ("cluster:A6", &["Impersonate-User: root", "Impersonate-User: alice"], 403),
        ("cluster:A7", &["Impersonate-User: alice"], 403),
        ("cluster:H1", &["Connection: Impersonate-User"], CLEAN),
        ("cluster:H1", &["Connection: close, Impersonate-Group"], CLEAN),
        ("cluster:H1", &["Connection: keep-alive, Authorization"], CLEAN),
        ("cluster:H2", &["Connection: ", "Connection: Impersonate-User"], CLEAN),
        ("cluster:H3", &["Connection: impersonate-user, impersonate-group, authorization, audit-id"], CLEAN),
        ("cluster:H3", &["Connection: Impersonate-User", "Impersonate-User: root"], 403),
        ("cluster:H4", &["Connection: close, X-Forwarded-For, Audit-ID", "Audit-ID: mine"], CLEAN),
        ("cluster:X1", &["X-Remote-User: system:admin"], CLEAN),
        ("cluster:X1", &["X-Remote-User: root", "X-Remote-Group: system:masters", "X-Remote-Uid: 0"], CLEAN),
        ("cluster:X1", &["X-Remote-User: root", "X-Remote-Extra-Foo: x", "Connection: Authorization"], CLEAN),
        ("cluster:X3", &["X-Forwarded-Uri: /healthz", "X-Original-Url: /healthz", "X-Rewrite-Url: /"], CLEAN),
        ("cluster:X4", &["X-Forwarded-For: 1.2.3.4", "X-Real-Ip: 1.2.3.4", "Forwarded: for=1.2.3.4"], CLEAN),
        ("cluster:N1", &["Impersonate-User: bob"], 403),
        ("cluster:N2", &["Impersonate-User: system:serviceaccount:ns:sa"], 403),
        ("cluster:N3", &["Impersonate-User: bob", "Impersonate-Uid: 1"], 403),
        ("cluster:N4", &["Impersonate-User: bob", "Impersonate-Extra-acme.com%2Fproject: p"], 403),
        ("cluster:N5", &["Impersonate-User: bob", "Impersonate-Extra-doorward.dev%2Fclient: x"], 403),
        ("cluster:N6", &["Impersonate-User: bob", "Impersonate-Group: system:masters"], 403),
        ("cluster:N7", &["Impersonate-User: alice", "Impersonate-Group: system:masters"], 403),
        ("cluster:N9", &["Impersonate-User: alice", "Impersonate-Group: admins"], 403),
    ];
    for (row, more, expected) in cases {
        let answer = world.alice(&format!("GET {}", read(&world)), more, b"").await;
        assert_eq!(answer.status, *expected, "{row} {more:?}: {}", answer.text());
    }
    assert_only(&world, cases.iter().filter(|case| case.2 == CLEAN).count(), "identities").await;
}

#[tokio::test]
async fn nothing_is_forwarded_without_a_certain_user_name() {
    let named = |yaml: String| yaml.change("username: '{sub}'", "username: '{claim:/name}'");
    let world = World::with(named).await;
    let with = |more: Value| {
        let mut claims = world.issuer.claims("7", &["dev"]);
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        bearer(&world.issuer.sign(&claims))
    };
    let alice = |groups: &[&str]| with(json!({"name": "alice", "groups": groups}));
    let mut expired = world.issuer.claims("7", &["dev"]);
    expired.as_object_mut().unwrap().extend([("name".into(), "alice".into()), ("exp".into(), (now() - 900).into())]);
    let one = alice(&["dev"]);
    let cases: Vec<(&str, Vec<String>, u16)> = vec![
        ("cluster:E1", vec![with(json!({}))], 403),
        ("cluster:E1", vec![with(json!({"name": ""}))], 403),
        ("cluster:E1", vec![with(json!({"name": " "}))], 403),
        ("cluster:E1", vec![alice(&[])], 403),
        ("cluster:E1", vec![alice(&[""])], 403),
        ("cluster:E2", vec!["Authorization: Bearer ".into()], 401),
        ("cluster:E2", vec!["Authorization: Bearer".into()], 401),
        ("cluster:E2", vec![one.replace("Bearer ", "Bearer  ")], 401),
        ("cluster:E2", vec![], 401),
        ("cluster:E3", vec![one.clone(), one.clone()], 400),
        ("cluster:E3", vec!["Authorization: Basic YWxpY2U6eA==".into()], 401),
        ("cluster:E3", vec!["Authorization: Basic YWxpY2U6eA==".into(), one.clone()], 400),
        ("cluster:S1", vec![with(json!({"name": "system:serviceaccount:kube-system:x"}))], 403),
        ("cluster:S1", vec![with(json!({"name": "system:authenticated"}))], 403),
        ("cluster:S1", vec![alice(&["dev", "system:masters"])], 403),
        ("cluster:S2", vec![alice(&["system:authenticated", "dev"])], CLEAN),
        ("cluster:S3", vec![alice(&["dev", "systemx:y"])], CLEAN),
        ("cluster:S3", vec![alice(&["dev", "System:masters"])], 403),
        ("cluster:S3", vec![alice(&["dev", "system:masters\t"])], 403),
        // It begins with a Cyrillic letter, so that it is an ordinary name that no grant maps.
        ("cluster:S3", vec![alice(&["dev", "\u{455}ystem:masters"])], CLEAN),
        ("cluster:S3", vec![with(json!({"name": "alice\t"}))], 403),
        ("cluster:N8", vec![alice(&["other"])], 403),
        ("cluster:C1", vec![bearer("garbage")], 401),
        ("cluster:C1", vec![bearer(&world.issuer.sign(&expired))], 401),
        ("cluster:C1", vec![one], CLEAN),
    ];
    for (row, lines, expected) in &cases {
        let line = format!("GET {} HTTP/1.1", read(&world));
        let mut all = vec![line.as_str(), "Host: localhost"];
        all.extend(lines.iter().map(String::as_str));
        let answer = world.doorward.send(&all, b"").await;
        assert_eq!(answer.status, *expected, "{row} {lines:?}: {}", answer.text());
        assert!(answer.status == CLEAN || answer.json()["kind"] == "Status", "{row}");
    }
    let line = format!("GET {} HTTP/1.1", read(&world));
    let token = alice(&["dev"]);
    let sent = cases.iter().filter(|case| case.2 == CLEAN).count();
    let last = format!("GET {}/last HTTP/1.1", read(&world));
    assert_eq!(world.doorward.send(&[&line, "Host: localhost", &token], b"").await.status, 200);
    assert_eq!(world.doorward.send(&[&last, "Host: localhost", &token], b"").await.status, 404);
    world.event(|event| event["objectRef"]["name"] == "last").await;
    assert_eq!(world.audit().len(), sent + 2);
    world.assert_sent_as(&["alice"]).await;
}

#[tokio::test]
async fn the_api_server_does_what_doorward_decided() {
    let few = |yaml: String| {
        let rules = "rules:
  - id: read
    on: {routes: [api], kubernetes: {verbs: [get, list], resources: [configmaps]}}
    who: {groups: [dev]}
    do: allow
  - id: one
    on: {routes: [api], kubernetes: {verbs: [list], resources: [pods], names: [mine]}}
    who: {groups: [dev]}
    do: allow
  - id: delete
    on: {routes: [api], kubernetes: {verbs: [delete], resources: [pods]}}
    who: {groups: [dev]}
    do: allow
";
        let at = yaml.find("rules:").unwrap();
        let end = yaml.find("store:").unwrap();
        format!("{}{rules}{}", &yaml[..at], &yaml[end..])
    };
    let world = World::with(few).await;
    let core = format!("/api/v1/namespaces/{}", world.namespace);
    // The expected status, and the verb in the API server's log.
    let cases: &[(&str, &str, &str, u16, &str)] = &[
        ("cluster:P1", "GET", "//api/v1/secrets", 400, ""),
        ("cluster:P1", "GET", "{core}//configmaps", 400, ""),
        ("cluster:P1", "GET", "{core}/configmaps/../secrets", 400, ""),
        ("cluster:P1", "GET", "{core}/configmaps/%2e%2e/secrets", 400, ""),
        ("cluster:P1", "GET", "{core}%2Fconfigmaps", 400, ""),
        ("cluster:P1", "GET", "{core}/configmaps;x", 400, ""),
        ("cluster:P1", "GET", "{core}/configmaps%00", 400, ""),
        ("cluster:P1", "GET", "{core}\\configmaps", 400, ""),
        ("cluster:P1", "GET", "{core}/configmaps/..\\secrets", 400, ""),
        ("cluster:P1", "GET", "{core}/configmaps?limit=1", 200, "list"),
        ("cluster:P2", "GET", "/api/v1/watch/namespaces/{ns}/configmaps", 403, ""),
        ("cluster:P2", "GET", "/api/v1/proxy/namespaces/{ns}/configmaps/x", 403, ""),
        ("cluster:P3", "GET", "{core}/configmaps?watch=1", 403, ""),
        ("cluster:P3", "GET", "{core}/configmaps?watch=t", 403, ""),
        ("cluster:P3", "GET", "{core}/configmaps?watch", 403, ""),
        ("cluster:P3", "GET", "{core}/configmaps?watch=true&watch=false", 403, ""),
        ("cluster:P3", "GET", "{core}/configmaps?limit=x&watch=1", 403, ""),
        ("cluster:P3", "GET", "{core}/configmaps?watch=false&watch=true", 200, "list"),
        ("cluster:P3", "GET", "{core}/configmaps?watch=0", 200, "list"),
        ("cluster:P4", "GET", "{core}/pods?fieldSelector=metadata.name=other", 403, ""),
        ("cluster:P4", "GET", "{core}/pods", 403, ""),
        ("cluster:P4", "GET", "{core}/pods?fieldSelector=metadata.name=mine", 200, "list"),
        ("cluster:P5", "DELETE", "{core}/pods", 403, ""),
        ("cluster:P5", "DELETE", "{core}/pods/none", 404, "delete"),
        ("cluster:P5", "BREW", "{core}/configmaps", 403, ""),
        // HEAD is a read, and none of these may be read.
        ("cluster:P5", "HEAD", "{core}/pods/none", 403, ""),
        ("cluster:P5", "HEAD", "{core}/configmaps/none", 405, "get"),
        ("cluster:P6", "GET", "{core}/services/x:80/proxy/secret", 403, ""),
        ("cluster:P6", "GET", "/api/v1/nodes/n/proxy/exec/ns/pod/c", 403, ""),
        (
            "cluster:C4",
            "GET",
            "{core}/pods?fieldSelector=metadata.name%3Dmine&fieldSelector=metadata.name%3Dx",
            400,
            "",
        ),
        ("cluster:C4", "GET", "{core}/configmaps?Namespace=a&namespace=b", 400, ""),
    ];
    let mut verbs = Vec::new();
    for (row, method, path, expected, verb) in cases {
        let path = path.replace("{core}", &core).replace("{ns}", &world.namespace);
        // A response to HEAD has a length and no body, so that it is delimited by the end of the connection.
        let answer = world.alice(&format!("{method} {path}"), &["Connection: close"], b"").await;
        assert_eq!(answer.status, *expected, "{row} {path}: {}", answer.text());
        if !verb.is_empty() {
            verbs.push(*verb);
        }
    }
    assert_only(&world, verbs.len(), "paths").await;
    verbs.push("get");
    let did: Vec<String> = world.audit().iter().filter_map(|event| event["verb"].as_str().map(str::to_owned)).collect();
    assert_eq!(did, verbs);
}

#[tokio::test]
async fn ambiguous_requests_do_not_reach_the_api_server() {
    let world = World::start().await;
    let (path, token) = (read(&world), world.developer("alice"));
    let smuggled = "GET /api/v1/secrets HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (headers, body) in [
        ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: xchunked\r\n\r\n", "0\r\n\r\n"),
        ("Content-Length: 4\r\nContent-Length: 5\r\n\r\n", "abcd"),
        ("Content-Length : 4\r\n\r\n", "abcd"),
        ("X-Folded: a\r\n b\r\n\r\n", ""),
        ("Name : v\r\n\r\n", ""),
    ] {
        let mut raw = world.doorward.raw().await;
        raw.send(format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{token}\r\n{headers}{body}{smuggled}")).await;
        let rest = String::from_utf8_lossy(&raw.rest().await).into_owned();
        assert!(rest.starts_with("HTTP/1.1 400"), "cluster:R1 {headers:?}: {rest}");
        assert_eq!(rest.matches("HTTP/1.1 ").count(), 1, "cluster:R1 {headers:?}: {rest}");
    }
    let token = token.replace("Authorization: ", "");
    let fields = |path: &str, more: &[(&str, &str)]| -> Vec<(String, String)> {
        let first = [
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "localhost"),
            (":path", path),
            ("authorization", &token),
        ];
        first.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    for (row, fields) in [
        ("cluster:A3", fields(&path, &[("impersonate-user", "root")])),
        ("cluster:H5", fields(&path, &[("connection", "impersonate-user")])),
        ("cluster:H5", fields(&path, &[("te", "gzip")])),
        ("cluster:H5", fields(&path, &[("transfer-encoding", "chunked")])),
        ("cluster:R2", fields(&format!("{path} x"), &[])),
        ("cluster:R2", fields(&format!("{path}\r\nx: y"), &[])),
        ("cluster:R2", fields(&path, &[("x-value", "a\rb")])),
        ("cluster:R2", fields(&path, &[("host", "other.test")])),
    ] {
        let answer = h2::ask(world.doorward.address("public"), &fields).await;
        assert_ne!(answer, h2::Outcome::Ok, "{row} {fields:?}");
    }
    assert_eq!(h2::ask(world.doorward.address("public"), &fields(&path, &[])).await, h2::Outcome::Ok, "the twin");
    h2::flood(world.doorward.address("public"), 1000, &path, "localhost").await;
    assert_only(&world, 1, "cluster:R4").await;
}

#[tokio::test]
async fn an_identity_belongs_to_a_request() {
    let world = World::start().await;
    let mut raw = Raw::connect(world.doorward.address("public")).await;
    for (marker, subject) in [("one", "alice"), ("two", "bob"), ("three", "alice")] {
        let token = world.developer(subject);
        raw.send(format!("GET {}/{marker} HTTP/1.1\r\nHost: localhost\r\n{token}\r\n\r\n", read(&world))).await;
        assert_eq!(raw.answer().await.status, 404, "cluster:R3");
        let event = world.event(|event| event["objectRef"]["name"] == marker).await;
        assert_eq!(event["impersonatedUser"]["username"], subject, "cluster:R3");
        assert_eq!(event["impersonatedUser"]["groups"], json!([GROUP, "system:authenticated"]), "cluster:R3");
    }

    // All at once on one connection, which may share one connection to the API server.
    const AT_ONCE: usize = 40;
    let who = |index: usize| ["alice", "bob", "carol"][index % 3];
    let fields = |index: usize| -> Vec<(String, String)> {
        let token = world.developer(who(index)).replace("Authorization: ", "");
        let path = format!("{}?labelSelector=number%3D{index}", read(&world));
        [
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "localhost"),
            (":path", &path),
            ("authorization", &token),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    };
    let requests: Vec<_> = (0..AT_ONCE).map(fields).collect();
    let outcomes = h2::ask_at_once(world.doorward.address("public"), &requests).await;
    assert_eq!(outcomes, [h2::Outcome::Ok; AT_ONCE], "cluster:R3");
    for index in 0..AT_ONCE {
        let uri = format!("{}?labelSelector=number%3D{index}", read(&world));
        let event = world.event(|event| event["requestURI"] == uri.as_str()).await;
        assert_eq!(event["impersonatedUser"]["username"], who(index), "cluster:R3");
    }
    world.assert_sent_as(&["alice", "bob", "carol"]).await;
}

#[tokio::test]
async fn invalid_upgrades_do_not_reach_the_upstream_and_nothing_follows_a_failed_one() {
    let world = World::start().await;
    let exec = format!("/api/v1/namespaces/{}/pods/none/exec?command=sh", world.namespace);
    let key = ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="];
    let with = |first: &[&'static str]| [first, &key].concat();
    let cases = [
        ("cluster:U3", vec!["Upgrade: h2c", "HTTP2-Settings: AAMAAABk"]),
        ("cluster:U3", vec!["Upgrade: TLS/1.0"]),
        ("cluster:U3", with(&["Connection: Upgrade", "Upgrade: TLS/1.0, websocket"])),
        ("cluster:U4", with(&["Connection: Upgrade", "Upgrade: websocket", "Content-Length: 5"])),
        ("cluster:U5", with(&["Connection: xupgrade", "Upgrade: websocket"])),
        ("cluster:U5", with(&["Connection: Upgrade"])),
    ];
    for (row, more) in &cases {
        assert_eq!(world.alice(&format!("GET {exec}"), more, b"").await.status, 400, "{row} {more:?}");
    }
    let token = world.issuer.token("alice", &["dev"]);
    let protocol = format!("base64url.bearer.authorization.k8s.io.{}", BASE64URL.encode(&token));
    let other = world.issuer.token("bob", &["dev"]);
    let other = format!("base64url.bearer.authorization.k8s.io.{}", BASE64URL.encode(other));
    let upgrade = with(&["Connection: Upgrade", "Upgrade: websocket"]).join("\r\n");
    let websocket = |path: &str, protocols: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{upgrade}\r\nSec-WebSocket-Protocol: {protocols}\r\n\r\n")
    };
    for (row, status, protocols) in [
        ("cluster:W2", 401, protocol.clone()),
        ("cluster:W3", 400, format!("{protocol}, {protocol}, v5.channel.k8s.io")),
        ("cluster:W3", 401, "base64url.bearer.authorization.k8s.io.!!!, v5.channel.k8s.io".to_owned()),
        ("cluster:W3", 401, format!("{protocol}==, v5.channel.k8s.io")),
        ("cluster:W3", 400, format!("{protocol}, {other}, v5.channel.k8s.io")),
        // Not text, though its encoding is valid.
        (
            "cluster:W3",
            401,
            format!("base64url.bearer.authorization.k8s.io.{}, v5.channel.k8s.io", BASE64URL.encode([0xff; 3])),
        ),
    ] {
        let mut raw = world.doorward.raw().await;
        raw.send(websocket(&exec, &protocols)).await;
        assert_eq!(raw.answer().await.status, status, "{row}: {protocols}");
    }
    let line = format!("Sec-WebSocket-Protocol: {protocol}, v5.channel.k8s.io");
    let get = format!("GET {} HTTP/1.1", read(&world));
    assert_eq!(world.doorward.send(&[&get, "Host: localhost", &line], b"").await.status, 401, "cluster:W4");

    // The pod does not exist: the API server refuses the upgrade, and what follows on the socket goes nowhere.
    let mut raw = world.doorward.raw().await;
    let smuggled = "GET /api/v1/secrets HTTP/1.1\r\nHost: localhost\r\n\r\n";
    raw.send(websocket(&exec, &format!("{protocol}, v5.channel.k8s.io")) + smuggled).await;
    let answer = raw.answer().await;
    assert_eq!(answer.status, 404, "cluster:U1: {}", answer.text());
    raw.send(smuggled).await;
    assert!(raw.rest().await.is_empty(), "cluster:U1");
    // An offer that may be ignored: the request is served without it.
    let h2c = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"];
    assert_eq!(world.alice(&format!("GET {}", read(&world)), &h2c, b"").await.status, 200, "cluster:U3");
    assert_only(&world, 2, "cluster:U1").await;
}

#[tokio::test]
async fn a_watch_ends_with_the_token_that_opened_it_and_with_its_revocation() {
    let world = World::start().await;
    let watch = format!("{}?watch=true", read(&world));
    let open = async |token: &str| {
        let mut raw = world.doorward.raw().await;
        let token = bearer(token);
        raw.send(format!("GET {watch} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{token}\r\n\r\n")).await;
        let head = String::from_utf8_lossy(&raw.some().await).into_owned();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        raw
    };
    // The API server logged the end of that many watches.
    let ended = async |count: usize| {
        let of_watch = |event: &&Value| event["verb"] == "watch" && event["stage"] == "ResponseComplete";
        until(async || world.audit().iter().filter(of_watch).count() >= count).await;
    };
    let mut claims = world.issuer.claims("alice", &["dev"]);
    // It is accepted for another 5 s.
    (claims["iat"], claims["exp"]) = (json!(now() - 600), json!(now() + 5 - SKEW));
    let mut short = open(&world.issuer.sign(&claims)).await;
    let mut long = open(&world.issuer.token("alice", &["dev"])).await;
    let rest = short.rest().await;
    assert!(rest.ends_with(b"0\r\n\r\n"), "cluster:T1 {}", String::from_utf8_lossy(&rest));
    ended(1).await;

    let (code, said) =
        world.doorward.operator(&["revoke", "--subject", "alice", "--issuer", "a", "--why", "a test"]).await;
    assert_eq!(code, Some(0), "cluster:T2 {said}");
    assert!(long.rest().await.ends_with(b"0\r\n\r\n"), "cluster:T2");
    ended(2).await;
    assert_eq!(world.alice(&format!("GET {}", read(&world)), &[], b"").await.status, 401, "cluster:T2");
    world.assert_sent_as(&["alice"]).await;
}

#[tokio::test]
async fn streams_of_pods_end_with_the_token_that_opened_them() {
    let tekton = Tekton::get().await;
    let world = World::start().await;
    let pod = pod(world.api, &world.namespace).await;
    let of_pod = format!("/api/v1/namespaces/{}/pods/{pod}", world.namespace);
    let open = async |line: &str, token: &str, more: &str| {
        let mut raw = world.doorward.raw().await;
        let (line, token) = (line.replace("{pod}", &of_pod), bearer(token));
        raw.send(format!("{line} HTTP/1.1\r\nHost: localhost\r\n{token}\r\n{more}\r\n")).await;
        let head = String::from_utf8_lossy(&raw.some().await).into_owned();
        let status = if more.contains("Upgrade") { 101 } else { 200 };
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "cluster:T1 {line}: {head}");
        raw
    };
    let websocket = |protocol: &str| {
        format!(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n"
        )
    };
    let spdy =
        |version: &str| format!("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {version}\r\n");
    let streams = [
        ("exec", "GET {pod}/exec?command=cat&stdin=true&stdout=true", websocket("v5.channel.k8s.io")),
        ("exec", "POST {pod}/exec?command=cat&stdin=true&stdout=true", spdy("v4.channel.k8s.io")),
        ("portforward", "GET {pod}/portforward?ports=80", websocket("SPDY/3.1+portforward.k8s.io")),
        ("portforward", "POST {pod}/portforward?ports=80", spdy("portforward.k8s.io")),
        ("log", "GET {pod}/log?follow=true", String::new()),
    ];
    let mut claims = world.issuer.claims("alice", &["dev"]);
    let ends = now() + 5;
    (claims["iat"], claims["exp"]) = (json!(now() - 600), json!(ends - SKEW));
    let (short, long) = (world.issuer.sign(&claims), world.issuer.token("bob", &["dev"]));
    let mut opened = Vec::new();
    for (subresource, line, more) in &streams {
        opened.push((subresource, line, open(line, &short, more).await));
    }
    let mut twin = open("GET {pod}/log?follow=true", &long, "").await;
    for (_, line, raw) in &mut opened {
        raw.rest().await;
        assert!(now() >= ends, "cluster:T1 {line} ended too early");
    }
    // None of them continues behind Doorward.
    let is_over =
        |event: &&Value| event["stage"] == "ResponseComplete" && event["impersonatedUser"]["username"] == "alice";
    until(async || world.audit().iter().filter(is_over).count() >= streams.len()).await;
    let line = unique();
    tekton.log(&line);
    // A line may arrive in pieces.
    let mut seen = String::new();
    until(async || {
        let some = twin.some().await;
        assert!(!some.is_empty(), "the twin has ended: {seen}");
        seen.push_str(&String::from_utf8_lossy(&some));
        seen.contains(&line)
    })
    .await;
}

#[tokio::test]
async fn an_opaque_token_among_websocket_subprotocols_is_in_base64url() {
    let introspected =
        "kind: human, introspection: {mode: opaque, cache: 1s, client: {id: doorward, secret: {file: client}}}}";
    let change = |yaml: String| yaml.change("kind: human}", introspected);
    let world = World::with_files(change, &[("client", "introspection-secret")]).await;
    let opaque = format!("ab~{}", unique());
    world.issuer.opaque(
        &opaque,
        json!({"active": true, "sub": "alice", "iss": world.issuer.url(), "aud": "https://doorward.test",
            "client_id": "tests", "groups": ["dev"], "exp": now() + 60}),
    );
    let encoded = BASE64URL.encode(&opaque);
    assert!(encoded.contains('-'));
    let pod = format!("/api/v1/namespaces/{}/pods/none/exec?command=sh", world.namespace);
    // The pod does not exist. That is the API server's response; the other one is Doorward's.
    for (encoded, status) in [(encoded.clone(), 404), (encoded.replace('-', "+"), 401)] {
        let mut raw = world.doorward.raw().await;
        raw.send(format!(
            "GET {pod} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.{encoded}, v5.channel.k8s.io\r\n\r\n"
        ))
        .await;
        let answer = raw.answer().await;
        assert_eq!(answer.status, status, "cluster:W5 {encoded}: {}", answer.text());
    }
    assert_only(&world, 1, "cluster:W5").await;
}
