//! Attacks that no other module covers: the rows `attacks:*` of `rows.txt`.

use crate::{
    fixture::{Change, Fixture, bearer},
    harness::{HANDSHAKE, Push, Raw, Recorded, Reply},
};

#[tokio::test]
async fn the_admin_listener_reveals_nothing_to_strangers() {
    let change = |yaml: String| {
        yaml.change("admin: {address: 127.0.0.1:0,", "admin: {address: 127.0.0.1:0, token: {file: admin},")
    };
    let fixture = Fixture::with(change, |_| Reply::json(200, "{}")).await;
    for path in ["/metrics", "/readyz"] {
        let answer = fixture.doorward.admin(path).await;
        let text = answer.text();
        assert!(!text.contains("issuer/") && !text.contains("doorward_"), "attacks:Z11 {path}: {text}");
    }
    assert_eq!(fixture.doorward.admin("/healthz").await.status, 200);
    let mut raw = Raw::connect(fixture.doorward.address("admin")).await;
    raw.send("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer the-admin-token-of-the-tests\r\nConnection: close\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 200, "the twin, with the token");
}

#[tokio::test]
async fn html_in_a_log_is_text() {
    let script = |request: &Recorded| {
        // If there are several types, browsers use the last.
        let lines = match request.line() {
            line if line.contains("/line/") => "Content-Type: application/json, text/html",
            line if line.contains("/lines/") => "Content-Type: application/json\r\nContent-Type: text/html",
            line if line.contains("/json/") => "Content-Type: application/json",
            _ => "Content-Type: text/html",
        };
        let answer = format!("HTTP/1.1 200 OK\r\n{lines}\r\nContent-Length: 25\r\n\r\n<script>alert(1)</script>");
        Reply::Bytes(answer.into_bytes())
    };
    let fixture = Fixture::answering(script).await;
    for (pod, kind) in [
        ("one", "text/plain; charset=utf-8"),
        ("line", "text/plain; charset=utf-8"),
        ("lines", "text/plain; charset=utf-8"),
        ("json", "application/json"),
    ] {
        let path = format!("/api/v1/namespaces/ci/pods/{pod}/log");
        let (answer, _) = fixture.api(&path, &[&fixture.alice()]).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.all("content-type"), [kind], "attacks:Z12 {}", answer.head);
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let is_sandboxed = answer.header("content-security-policy").is_some_and(|policy| policy.contains("sandbox"));
        assert_eq!(is_sandboxed, pod != "json", "attacks:Z12 {}", answer.head);
    }
}

/// kubectl caches discovery and revalidates it; the headers of a 304 replace those in its cache.
#[tokio::test]
async fn an_answer_that_nothing_changed_says_nothing_of_the_type() {
    let unchanged = b"HTTP/1.1 304 Not Modified\r\nEtag: \"1\"\r\nCache-Control: public\r\n\r\n";
    let fixture = Fixture::answering(|_| Reply::Bytes(unchanged.to_vec())).await;
    let (answer, _) = fixture.api("/api", &[&fixture.alice(), "If-None-Match: \"1\""]).await;
    assert_eq!((answer.status, answer.header("etag")), (304, Some("\"1\"")));
    assert_eq!((answer.header("content-type"), answer.header("content-security-policy")), (None, None));
    assert_eq!(answer.header("cache-control"), Some("public"));
}

#[tokio::test]
async fn preflights_and_other_hosts_never_reach_an_upstream() {
    let fixture = Fixture::start().await;
    for host in ["api.test", "board.test"] {
        let lines = [
            "OPTIONS /apis/x HTTP/1.1",
            &format!("Host: {host}"),
            "Origin: https://evil.example",
            "Access-Control-Request-Method: POST",
        ];
        let answer = fixture.doorward.send(&lines, b"").await;
        assert_eq!(answer.status, 403, "attacks:Z8");
        assert!(!answer.head.to_ascii_lowercase().contains("access-control-allow"), "attacks:Z8");
    }
    assert_eq!(fixture.doorward.get("/", &["Host: unknown.test"]).await.status, 421);
    assert_eq!(fixture.doorward.get("/elsewhere", &["Host: hooks.test"]).await.status, 404);
    let wrong = fixture.doorward.get("/github", &["Host: hooks.test"]).await;
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("POST")), "webhooks:32");
    assert!(fixture.upstream.take().is_empty());
}

/// A lax route for all methods must not get the requests of a stricter one because it comes first.
#[tokio::test]
async fn a_route_for_some_methods_takes_them_even_after_a_route_for_all() {
    let both = "routes:\n  - {name: read, kind: http, hosts: [both.test], schemes: [anonymous], upstream: web}\n  \
        - {name: write, kind: http, hosts: [both.test], methods: [POST, PUT], schemes: [bearer], upstream: web}\n";
    let rules = "rules:\n  - {id: both, on: {routes: [read, write]}, who: {anonymous: true}, do: allow}\n";
    let change = |yaml: String| yaml.change("routes:\n", both).change("rules:\n", rules);
    let fixture = Fixture::with(change, |_| Reply::json(200, "{}")).await;
    for method in ["POST", "PUT"] {
        let answer = fixture.doorward.send(&[&format!("{method} /x HTTP/1.1"), "Host: both.test"], b"").await;
        assert_eq!((answer.status, answer.reason().as_str()), (401, "credential_missing"), "{method}");
    }
    assert!(fixture.upstream.take().is_empty());
    assert_eq!(fixture.doorward.get("/x", &["Host: both.test"]).await.status, 200, "the twin");
}

/// Regression: an application that authenticates its callers itself got none of their credentials. Credentials that may
/// be meant for Doorward are still not disclosed to it.
#[tokio::test]
async fn an_application_gets_authorization_where_doorward_reads_none() {
    let own = "routes:\n  - {name: own, kind: http, hosts: [web.test], paths: ['/own/*'], schemes: [anonymous], upstream: web}\n";
    let rules = "rules:\n  - {id: own, on: {routes: [own]}, who: {anonymous: true}, do: allow}\n";
    let change = |yaml: String| yaml.change("routes:\n", own).change("rules:\n", rules);
    let fixture = Fixture::with(change, |_| Reply::json(200, "{}")).await;
    let alice = fixture.alice();
    for (row, host, path, line, passes) in [
        ("a password", "Host: open.test", "/x", "Authorization: Basic eDp5", true),
        ("a token of the application", "Host: open.test", "/x", "Authorization: Bearer x", true),
        ("a session handle", "Host: open.test", "/x", "Authorization: Bearer dws_x", false),
        ("a password, beside a route for tokens", "Host: web.test", "/own/x", "Authorization: Basic eDp5", true),
        ("a token, beside a route for tokens", "Host: web.test", "/own/x", &alice, false),
        ("a token that Doorward reads", "Host: web.test", "/x", &alice, false),
    ] {
        fixture.upstream.take();
        let answer = fixture.doorward.get(path, &[host, line]).await;
        assert_eq!(answer.status, 200, "{row}: {}", answer.text());
        let sent: Vec<&str> = line.strip_prefix("Authorization: ").filter(|_| passes).into_iter().collect();
        assert_eq!(fixture.upstream.only().all("authorization"), sent, "{row}");
    }
}

#[tokio::test]
async fn a_method_that_no_route_of_a_path_takes_is_answered_with_those_of_all_of_them() {
    let both = "routes:\n  - {name: reads, kind: http, hosts: [both.test], methods: [GET, HEAD], schemes: [anonymous], upstream: web}\n  \
        - {name: writes, kind: http, hosts: [both.test], methods: [POST, GET], paths: ['/w'], schemes: [anonymous], upstream: web}\n  \
        - {name: writes-all, kind: http, hosts: [both.test], methods: [POST], schemes: [anonymous], upstream: web}\n";
    let fixture = Fixture::with(|yaml| yaml.change("routes:\n", both), |_| Reply::json(200, "{}")).await;
    for (path, allow) in [("/x", "GET, HEAD, POST"), ("/w", "POST, GET")] {
        let answer = fixture.doorward.send(&[&format!("DELETE {path} HTTP/1.1"), "Host: both.test"], b"").await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allow)), "{path}");
        assert!(answer.text().contains(allow), "{}", answer.text());
    }
    assert!(fixture.upstream.take().is_empty());
}

/// A client's request to impersonate is never ignored, even where nothing is forwarded.
#[tokio::test]
async fn doorwards_own_pages_refuse_impersonation_headers() {
    let fixture = Fixture::start().await;
    let alice = fixture.alice();
    for line in ["Impersonate-User: root", "Impersonate-Group: system:masters", "Impersonate-Uid: 1"] {
        let refused = fixture.doorward.get("/.doorward/whoami", &["Host: web.test", &alice, line]).await;
        assert_eq!((refused.status, refused.reason().as_str()), (403, "impersonation_refused"), "{line}");
    }
    let twin = fixture.doorward.get("/.doorward/whoami", &["Host: web.test", &alice]).await;
    assert_ne!(twin.reason(), "impersonation_refused", "the twin: {}", twin.text());
}

/// For callers, deliveries and anonymous requests, both plain and upgrades.
#[tokio::test]
async fn every_kind_of_route_sends_only_doorwards_identity_headers() {
    let fixture = Fixture::answering(|request| match request.has("upgrade") {
        true => Reply::Echo,
        false => Reply::json(200, "{}"),
    })
    .await;
    let alice = fixture.alice();
    let ask = async |host: &str, path: &str, upgrades: bool, more: &[&str]| {
        let _ = fixture.upstream.take();
        let answer = match host {
            "hooks.test" => Push::new().send(&fixture.doorward, more).await,
            host => {
                let host_line = format!("Host: {host}");
                let mut lines = vec![&*host_line];
                lines.extend((host != "open.test").then_some(&*alice));
                lines.extend(HANDSHAKE.iter().filter(|_| upgrades));
                lines.extend(more);
                fixture.doorward.get(path, &lines).await
            }
        };
        (answer, fixture.upstream.take())
    };
    let forged: [&[&str]; 7] = [
        &["X_Forwarded_User: forged"],
        &["x-forwarded_user: forged"],
        &["X-Forwarded-User: forged", "X-Forwarded-User: forged too"],
        &["X-Auth_Request_User: forged"],
        &["X-Forwarded-Groups: forged"],
        &["Authorization: Bearer forged"],
        // The counterpart.
        &[],
    ];
    let nobody: &[&str] = &[];
    for (host, path, upgrades) in [
        ("api.test", "/apis/tekton.dev/v1/namespaces/ci/taskruns", false),
        ("api.test", "/api/v1/namespaces/ci/pods/p/exec?command=sh", true),
        ("board.test", "/", false),
        ("web.test", "/x", false),
        ("web.test", "/x", true),
        ("open.test", "/x", false),
        ("open.test", "/x", true),
        ("hooks.test", "/github", false),
    ] {
        let row = format!("peers:T9 peers:D2 kubernetes:A5 kubernetes:X2 {host}{path}, upgrades: {upgrades}");
        for line in ["Impersonate_User: forged", "impersonate-group: forged"] {
            let (answer, seen) = ask(host, path, upgrades, &[line]).await;
            let refused = (answer.status, answer.reason());
            assert_eq!((refused, seen.len()), ((403, "impersonation_refused".to_owned()), 0), "{row} {line}");
        }
        // A token is refused where tokens are taken, and is the application's own where Doorward reads no credential.
        let (users, forwards_no_token) = match host {
            "api.test" => (nobody, false),
            "board.test" | "web.test" => (&["alice"][..], false),
            "open.test" => (nobody, false),
            _ => (&["webhook:github:repo:1234"][..], true),
        };
        for lines in forged.into_iter().filter(|lines| forwards_no_token || !lines.concat().contains("Bearer")) {
            let (answer, seen) = ask(host, path, upgrades, lines).await;
            let status = if upgrades { 101 } else { 200 };
            assert_eq!((answer.status, seen.len()), (status, 1), "{row} {lines:?}: {}", answer.text());
            assert_eq!(seen[0].all("x-forwarded-user"), users, "{row} {lines:?}: {}", seen[0].head);
            assert!(!seen[0].head.contains("forged"), "{row} {lines:?}: {}", seen[0].head);
        }
        if host == "open.test" {
            let (_, seen) = ask(host, path, upgrades, &["Authorization: Bearer forged"]).await;
            assert_eq!(seen[0].all("authorization"), ["Bearer forged"], "{row}: for the application");
        }
    }
}

/// In rules as people write them, as the import from oauth2-proxy writes them, and inverted in a deny.
#[tokio::test]
async fn peers_t13_an_address_of_two_domains_is_of_neither() {
    let change = |yaml: String| {
        let route = |name: &str| {
            format!("  - {{name: {name}, kind: http, hosts: [{name}.test], schemes: [bearer], upstream: web}}\n")
        };
        let routes = ["plain", "imported", "denied"].map(route).concat();
        let rules = r#"rules:
  - {id: plain, on: {routes: [plain]}, who: {issuers: [a]}, when: "has(principal.email) && principal.email.endsWith('@company.com')", do: allow}
  - id: imported
    on: {routes: [imported]}
    who: {issuers: [a]}
    when: 'has(principal.email) && (principal.email.lowerAscii().endsWith("@company.com") || principal.email.lowerAscii().endsWith(".company.com"))'
    do: allow
  - {id: denied, on: {routes: [denied]}, who: {issuers: [a]}, when: "!principal.email.endsWith('@company.com')", do: deny}
  - {id: others, on: {routes: [denied]}, who: {issuers: [a]}, do: allow}
"#;
        yaml.change("routes:\n", &format!("routes:\n{routes}")).change("rules:\n", rules)
    };
    let fixture = Fixture::with(change, |_| Reply::json(200, "{}")).await;
    for (email, plain, imported) in [
        ("a@company.com", 200, 200),
        ("a@COMPANY.com", 403, 200),
        ("a@sub.company.com", 403, 200),
        ("attacker@evil.com@company.com", 403, 403),
        ("attacker@evil.com@sub.company.com", 403, 403),
        ("attacker@company.com@evil.com", 403, 403),
        ("a@company.com.evil.com", 403, 403),
        ("a@evilcompany.com", 403, 403),
        ("", 403, 403),
    ] {
        let mut claims = fixture.a.claims("alice", &[]);
        claims["email"] = email.into();
        claims["email_verified"] = true.into();
        let token = bearer(&fixture.a.sign(&claims));
        for (host, status) in [("plain.test", plain), ("imported.test", imported), ("denied.test", plain)] {
            let _ = fixture.upstream.take();
            let answer = fixture.doorward.get("/x", &[&format!("Host: {host}"), &token]).await;
            let arrived = fixture.upstream.take().len();
            let expected = (status, usize::from(status == 200));
            assert_eq!((answer.status, arrived), expected, "peers:T13 {host} {email}: {}", answer.text());
        }
    }
}

#[tokio::test]
async fn a_proxy_header_from_an_unlisted_peer_closes_the_connection() {
    let fixture = Fixture::start().await;
    let mut raw = fixture.doorward.raw().await;
    raw.send("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET /x HTTP/1.1\r\nHost: open.test\r\n\r\n").await;
    let rest = String::from_utf8_lossy(&raw.rest().await).into_owned();
    assert!(!rest.contains(" 200 "), "attacks:Z36 {rest}");
    assert!(fixture.upstream.take().is_empty(), "attacks:Z36");
    assert_eq!(fixture.doorward.get("/x", &["Host: open.test"]).await.status, 200, "the twin");
}

#[tokio::test]
async fn sizes_have_their_own_answers() {
    let fixture = Fixture::start().await;
    let open = "Host: open.test";
    assert_eq!(fixture.doorward.get(&format!("/{}", "a".repeat(9000)), &[open]).await.status, 414);
    assert_eq!(fixture.doorward.get("/x", &[open, &format!("X-A: {}", "a".repeat(33_000))]).await.status, 431);
    let many: Vec<String> = (0..120).map(|number| format!("X-{number}: 1")).collect();
    let mut lines = vec![open];
    lines.extend(many.iter().map(String::as_str));
    assert_eq!(fixture.doorward.get("/x", &lines).await.status, 431);
    let body = vec![b'x'; 65 << 10];
    assert_eq!(fixture.doorward.send(&["POST /x HTTP/1.1", open], &body).await.status, 413);
    assert!(fixture.upstream.take().is_empty());
    assert_eq!(fixture.doorward.send(&["POST /x HTTP/1.1", open], &body[..64 << 10]).await.status, 200);
    fixture.doorward.stays_below(90, "heads and bodies that are too large");
}

#[tokio::test]
async fn an_unreachable_upstream_is_distinguished_from_a_silent_one() {
    let fixture =
        Fixture::with(|yaml| yaml.change("response_timeout: 5s", "response_timeout: 300ms"), |_| Reply::Hang).await;
    let (answer, _) = fixture.api("/api/v1/pods", &[&fixture.alice()]).await;
    assert_eq!((answer.status, answer.reason().as_str()), (504, "upstream_timeout"));
    let away = Fixture::with(
        |yaml| {
            yaml.change("{name: web, url: ", "{name: gone, url: 'http://127.0.0.1:1'}\n  - {name: web, url: ")
                .change("schemes: [anonymous], upstream: web", "schemes: [anonymous], upstream: gone")
        },
        |_| Reply::Hang,
    )
    .await;
    let answer = away.doorward.get("/x", &["Host: open.test"]).await;
    assert_eq!((answer.status, answer.reason().as_str()), (502, "upstream_unreachable"));
}
