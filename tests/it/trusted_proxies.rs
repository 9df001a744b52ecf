//! Rows of the attack tables that need the whole program: trusted proxies and open paths.

use serde_json::{Value, json};

use crate::{
    fixture::{Change, Fixture, bearer},
    harness::{HANDSHAKE, Push, Reply, h2},
};

const TASKRUNS: &str = "/apis/tekton.dev/v1/namespaces/ci/taskruns";

#[tokio::test]
async fn a_path_is_open_by_its_own_bytes_alone() {
    let open = |yaml: String| yaml.change("on: {routes: [open]}", "on: {routes: [open], paths: ['/public/*']}");
    let fixture = Fixture::with(open, |_| Reply::json(200, "{}")).await;
    let cases: &[(&str, &str, &[&str])] = &[
        ("peers:T8", "/private?path=/public/x", &[]),
        ("peers:T10", "/private", &["User-Agent: GoogleHC/1.0"]),
        ("peers:T10", "/private", &["User-Agent: kube-probe/1.30"]),
        ("peers:T11", "/private", &["X-Forwarded-Uri: /public/x"]),
        ("peers:T11", "/private", &["X-Original-Url: /public/x"]),
        ("peers:T12", "/private%23/public/x", &[]),
        ("peers:T12", "/private#/public/x", &[]),
        ("peers:D4", "/public/%2e%2e/private", &[]),
        ("peers:D4", "/public/..%2fprivate", &[]),
        ("peers:D4", "/public%2f..%2fprivate", &[]),
        ("peers:D4", "/public/;/../private", &[]),
        ("peers:D5", "//private/public/x", &[]),
        ("peers:D6", "/./public/x", &[]),
    ];
    for (row, path, more) in cases {
        let _ = fixture.upstream.take();
        let answer = fixture.doorward.get(path, &[&["Host: open.test"], *more].concat()).await;
        assert!(matches!(answer.status, 400 | 401 | 403), "{row} {path}: {}", answer.text());
        assert!(fixture.upstream.take().is_empty(), "{row} {path}");
        let answer = fixture.doorward.get("/public/x", &[&["Host: open.test"], *more].concat()).await;
        assert_eq!((answer.status, fixture.upstream.take().len()), (200, 1), "{row}: the twin: {}", answer.text());
    }
}

/// These headers describe a request only in forward-auth, not in a proxied request.
#[tokio::test]
async fn a_trusted_proxy_puts_no_path_method_or_host_in_the_place_of_the_real_one() {
    const NO: &[u16] = &[401, 403];
    for more in ["", "\nforward_auth: traefik"] {
        let change = |yaml: String| {
            let trusted = format!("address: 127.0.0.1:0, trusted_proxies: [127.0.0.1/32]}}]{more}");
            yaml.change("address: 127.0.0.1:0}]", &trusted)
                .change("on: {routes: [open]}", "on: {routes: [open], methods: [GET], paths: ['/public/*']}")
        };
        let fixture = Fixture::with(change, |_| Reply::json(200, "{}")).await;
        let cases: &[(&str, &str, &[&str], &[u16])] = &[
            ("GET /private", "open.test", &["X-Forwarded-Uri: /public/x"], NO),
            ("GET /private", "open.test", &["X-Original-Url: /public/x"], NO),
            ("GET /private", "open.test", &["X-Original-URI: /public/x", "X-Envoy-Original-Path: /public/x"], NO),
            ("POST /public/x", "open.test", &["X-Forwarded-Method: GET"], NO),
            ("POST /public/x", "open.test", &["X-Original-Method: GET"], NO),
            ("GET /public/x", "web.test", &["X-Forwarded-Host: open.test"], NO),
            ("GET /public/x", "elsewhere.test", &["X-Forwarded-Host: open.test"], &[421]),
            ("GET /public/x", "open.test", &["X-Forwarded-Uri: /private", "X-Forwarded-Host: web.test"], &[200]),
        ];
        for (line, host, headers, statuses) in cases {
            let _ = fixture.upstream.take();
            let (line, host_line) = (format!("{line} HTTP/1.1"), format!("Host: {host}"));
            let answer = fixture.doorward.send(&[&[&*line, &host_line], *headers].concat(), b"").await;
            let case = format!("peers:T11 {line} {host} {headers:?}{more}");
            assert!(statuses.contains(&answer.status), "{case}: {}{}", answer.head, answer.text());
            let seen = fixture.upstream.take();
            assert_eq!(seen.len(), usize::from(answer.status == 200), "{case}");
            if let [seen] = &seen[..] {
                assert_eq!((seen.line(), seen.one("x-forwarded-host")), (&*line, *host), "{case}: {}", seen.head);
            }
        }
    }
}

#[tokio::test]
async fn the_host_that_is_decided_is_the_host_that_is_forwarded() {
    let fixture = Fixture::start().await;
    let lines = ["GET http://open.test/public HTTP/1.1", "Host: elsewhere.test"];
    let answer = fixture.doorward.send(&lines, b"").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let [seen] = &fixture.upstream.take()[..] else { panic!("it arrived not once") };
    assert_eq!(seen.one("x-forwarded-host"), "open.test");
    assert!(!seen.head.contains("elsewhere.test"), "{}", seen.head);
    let lines = ["GET http://elsewhere.test/public HTTP/1.1", "Host: open.test"];
    assert_eq!(fixture.doorward.send(&lines, b"").await.status, 421);
    assert!(fixture.upstream.take().is_empty());
}

/// An ingress in front of the upstream, which routes by name, does not know the external name.
#[tokio::test]
async fn an_upstream_gets_its_own_host_if_configured_and_an_event_listener_by_default() {
    for (setting, of_client, of_sender) in
        [("", true, false), (", host: client", true, true), (", host: own", false, false)]
    {
        let change = |yaml: String| yaml.change("'}\nwebhooks:", &format!("'{setting}}}\nwebhooks:"));
        let fixture = Fixture::with(change, |_| Reply::json(200, "{}")).await;
        let address = fixture.upstream.address.to_string();
        let answer = fixture.doorward.get("/x", &["Host: web.test", &fixture.alice()]).await;
        assert_eq!(answer.status, 200, "{setting}: {}", answer.text());
        let page = fixture.upstream.take().remove(0);
        let expected = if of_client { "web.test" } else { &*address };
        assert_eq!((page.one("host"), page.one("x-forwarded-host")), (expected, "web.test"), "{setting}");
        let answer = Push::new().send(&fixture.doorward, &[]).await;
        assert_eq!(answer.status, 200, "{setting}: {}", answer.text());
        let delivery = fixture.upstream.take().remove(0);
        let expected = if of_sender { "hooks.test" } else { &*address };
        assert_eq!((delivery.one("host"), delivery.one("x-forwarded-host")), (expected, "hooks.test"), "{setting}");
    }
}

fn trusting(yaml: &str) -> String {
    yaml.change("address: 127.0.0.1:0}]", "address: 127.0.0.1:0, trusted_proxies: [127.0.0.1/32]}]")
        .change("on: {routes: [hooks],", "on: {routes: [hooks], addresses: [10.0.0.0/8],")
}

#[tokio::test]
async fn a_trusted_proxy_names_the_client_and_not_the_request() {
    let fixture = Fixture::with(|yaml| trusting(&yaml), |_| Reply::json(200, "{}")).await;
    // attacks:Z31: the same X-Request-Id twice gives two Audit-IDs.
    let mut ids = Vec::new();
    for _ in 0..2 {
        let (answer, seen) = fixture.api(TASKRUNS, &[&fixture.alice(), "X-Request-Id: of-the-client"]).await;
        assert_eq!(answer.status, 200, "attacks:Z31");
        ids.push(seen[0].one("audit-id").to_owned());
    }
    assert_ne!(ids[0], ids[1], "attacks:Z31");
    assert!(!ids.contains(&"of-the-client".to_owned()), "attacks:Z31");
    // The client's own entries are to the left of what the proxy saw.
    for (forwarded, status) in [
        ("10.1.1.1, 203.0.113.9", 403),
        ("203.0.113.9", 403),
        ("203.0.113.9, 10.1.1.1", 200),
        ("10.1.1.1", 200),
        ("10.1.1.1, 203.0.113.9:4711", 403),
        ("10.1.1.1:4711", 200),
    ] {
        let _ = fixture.upstream.take();
        let line = format!("X-Forwarded-For: {forwarded}");
        let answer = Push::new().send(&fixture.doorward, &[&line]).await;
        assert_eq!(answer.status, status, "webhooks:31 peers:T15 {forwarded}: {}", answer.text());
        assert_eq!(fixture.upstream.take().len(), usize::from(status == 200), "webhooks:31 {forwarded}");
    }
}

/// The proxy's own address is one that the rule allows.
#[tokio::test]
async fn a_client_does_not_pass_for_the_proxy_by_what_it_writes_into_the_line() {
    let own = |yaml: String| trusting(&yaml).change("addresses: [10.0.0.0/8]", "addresses: [127.0.0.0/8]");
    let fixture = Fixture::with(own, |_| Reply::json(200, "{}")).await;
    let cases: &[(&[&str], u16)] = &[
        (&[], 200),
        (&["X-Forwarded-For: 203.0.113.9"], 403),
        (&["X-Forwarded-For: é, 203.0.113.9"], 403),
        (&["X-Forwarded-For: é", "X-Forwarded-For: 203.0.113.9:4711"], 403),
        (&["X-Forwarded-For: é"], 400),
        (&["X-Forwarded-For: é, 127.0.0.1"], 400),
        (&["X-Forwarded-For: é, 127.0.0.2"], 200),
    ];
    for (forwarded, status) in cases {
        let _ = fixture.upstream.take();
        let answer = Push::new().send(&fixture.doorward, forwarded).await;
        assert_eq!(answer.status, *status, "peers:T15 {forwarded:?}: {}", answer.text());
        assert_eq!(fixture.upstream.take().len(), usize::from(*status == 200), "peers:T15 {forwarded:?}");
        assert!(*status != 400 || answer.text().contains("X-Forwarded-For"), "{}", answer.text());
    }
}

#[tokio::test]
async fn an_untrusted_peer_cannot_name_a_client_address() {
    let listed = |yaml: String| trusting(&yaml).change("trusted_proxies: [127.0.0.1/32]", "trusted_proxies: []");
    let fixture = Fixture::with(listed, |_| Reply::json(200, "{}")).await;
    let answer = Push::new().send(&fixture.doorward, &["X-Forwarded-For: 10.1.1.1"]).await;
    assert_eq!(answer.status, 403, "webhooks:31: {}", answer.text());
    assert!(fixture.upstream.take().is_empty(), "webhooks:31");
}

#[tokio::test]
async fn every_answer_carries_our_id_of_the_request_and_no_other() {
    let theirs = "Content-Length: 2\r\nX-Request-Id: theirs\r\nx-request-id: again\r\n\r\n{}";
    let fixture =
        Fixture::answering(move |request| match (request.has("upgrade"), request.line().contains("/refused")) {
            (true, true) => Reply::Bytes(format!("HTTP/1.1 403 X\r\n{theirs}").into_bytes()),
            (true, false) => Reply::Echo,
            _ => Reply::Bytes(format!("HTTP/1.1 200 X\r\n{theirs}").into_bytes()),
        })
        .await;
    let (alice, exec) = (fixture.alice(), "/api/v1/namespaces/ci/pods/p/exec");
    // Host, path, headers, status, and the header in which the upstream gets the id.
    type Case<'a> = (&'a str, &'a str, &'a [&'a str], u16, Option<&'a str>);
    let cases: [Case<'_>; 7] = [
        ("api.test", TASKRUNS, &[&alice], 200, Some("audit-id")),
        ("web.test", "/x", &[&alice], 200, Some("x-request-id")),
        ("api.test", exec, &[&[&*alice], &HANDSHAKE[..]].concat(), 101, Some("audit-id")),
        ("web.test", "/refused", &[&[&*alice], &HANDSHAKE[..]].concat(), 403, Some("x-request-id")),
        ("api.test", "/.doorward/whoami", &[], 401, None),
        ("api.test", "/.well-known/jwks.json", &[], 200, None),
        ("api.test", TASKRUNS, &[], 401, None),
    ];
    let mut ids = std::collections::BTreeSet::new();
    for (host, path, lines, status, told) in cases {
        let _ = fixture.upstream.take();
        let host_line = format!("Host: {host}");
        let answer = fixture.doorward.get(path, &[&[&*host_line], lines].concat()).await;
        assert_eq!(answer.status, status, "{host}{path}: {}{}", answer.head, answer.text());
        let [id] = answer.all("x-request-id")[..] else { panic!("{host}{path}: {}", answer.head) };
        assert!(ids.insert(id.to_owned()), "{host}{path}: {id} came twice");
        let seen = fixture.upstream.take();
        assert_eq!(seen.first().zip(told).map(|(seen, name)| seen.one(name)), told.map(|_| id), "{host}{path}");
    }
}

/// A bot has no session, but its owner may want to know who it is here.
#[tokio::test]
async fn whoami_accepts_the_bearer_tokens_that_the_routes_of_its_host_accept() {
    let two = ["a", "b"].map(|issuer| {
        format!(
            "  - {{name: two-{issuer}, kind: http, hosts: [two.test], paths: [/{issuer}/*], schemes: [bearer], issuers: [{issuer}], upstream: web}}\n"
        )
    });
    let fixture = Fixture::with(
        |yaml| yaml.change("  - {name: web, kind: http", &format!("{}  - {{name: web, kind: http", two.concat())),
        |_| Reply::json(200, "{}"),
    )
    .await;
    let ask = async |host: &str, lines: &[&str]| {
        let host = format!("Host: {host}");
        fixture.doorward.get("/.doorward/whoami", &[&[&*host], lines].concat()).await
    };
    let alice = fixture.alice();
    for host in ["api.test", "a.test", "web.test"] {
        let answer = ask(host, &[&alice]).await;
        assert_eq!(answer.status, 200, "{host}: {}", answer.text());
        let told = answer.json();
        assert_eq!((&told["username"], &told["issuer"]), (&json!("alice"), &json!("a")), "{told}");
        assert_eq!((&told["groups"], &told["kubernetes_groups"]), (&json!(["dev"]), &json!(["tekton:dev"])), "{told}");
        assert_eq!((&told["rules"][0]["rule"], &told["session"]), (&json!("dev"), &Value::Null), "{told}");
    }
    let is_told = |record: &Value| ["whoami", "alice"].iter().all(|text| record.to_string().contains(text));
    fixture.doorward.records(3, is_told).await;

    // A token that no route of the host accepts opens nothing here, and the reason is given.
    let bob = bearer(&fixture.b.token("bob", &[]));
    assert_eq!(ask("api.test", &[&bob]).await.status, 200, "the twin");
    let mut other = fixture.a.claims("alice", &["dev"]);
    other["aud"] = json!("https://other.test");
    let other = bearer(&fixture.a.sign(&other));
    let mut old = fixture.a.claims("alice", &["dev"]);
    old["exp"] = json!(1);
    let old = bearer(&fixture.a.sign(&old));
    let mut old_of_b = fixture.b.claims("bob", &[]);
    old_of_b["exp"] = json!(1);
    let old_of_b = bearer(&fixture.b.sign(&old_of_b));
    assert_eq!(ask("two.test", &[&bob]).await.status, 200, "the twin");
    for (what, host, line, reason) in [
        ("of an issuer of other routes", "a.test", &bob, "issuer_unknown"),
        ("for somebody else", "api.test", &other, "audience_mismatch"),
        ("ended", "api.test", &old, "token_expired"),
        ("ended, of the issuer of the second route", "two.test", &old_of_b, "token_expired"),
        ("no token", "api.test", &"Authorization: Basic YTpi".to_owned(), "credential_malformed"),
    ] {
        let answer = ask(host, &[line]).await;
        assert_eq!((answer.status, answer.reason().as_str()), (401, reason), "{what}: {}", answer.text());
        assert!(answer.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")), "{}", answer.head);
    }
    // Where no route accepts tokens, none is checked.
    assert_eq!(ask("open.test", &[&alice]).await.status, 401);
    let revoke = ["revoke", "--issuer", "a", "--subject", "alice", "--why", "test"];
    let (code, said) = fixture.doorward.operator(&revoke).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(ask("api.test", &[&alice]).await.status, 401);
    assert!(fixture.upstream.take().is_empty());
}

/// EventListeners and the programs behind them fetch the assertion keys there, whichever hosts people use.
#[tokio::test]
async fn the_keys_of_assertions_are_at_the_external_host_even_if_no_route_has_it() {
    let change = |yaml: String| yaml.change("external_host: api.test", "external_host: door.test");
    let fixture = Fixture::with(change, |_| Reply::json(200, "{}")).await;
    let get = async |host: &str, path: &str| fixture.doorward.get(path, &[&format!("Host: {host}")]).await;
    let set = get("door.test", "/.well-known/jwks.json").await;
    assert_eq!((set.status, set.json()["keys"].as_array().map(Vec::len)), (200, Some(1)), "{}", set.text());
    assert_eq!(get("door.test", "/x").await.status, 404);
    assert_eq!(get("unknown.test", "/.well-known/jwks.json").await.status, 421, "nobody knows that one");
    assert!(fixture.upstream.take().is_empty());
}

/// Over HTTP/2, browsers send each cookie in a field of its own (RFC 9113 section 8.2.3).
#[tokio::test]
async fn cookies_that_http2_splits_are_joined_into_one_line_for_an_http1_upstream() {
    let fixture = Fixture::start().await;
    let crumbs: Vec<String> = (0..150).map(|index| format!("c{index}={index}")).collect();
    let mut fields: Vec<(String, String)> =
        [(":method", "GET"), (":scheme", "http"), (":authority", "open.test"), (":path", "/page")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    fields.extend(crumbs.iter().map(|crumb| ("cookie".to_owned(), crumb.clone())));
    fields.push(("cookie".to_owned(), "__Host-doorward=ours".to_owned()));
    assert_eq!(h2::ask(fixture.doorward.address("public"), &fields).await, h2::Outcome::Ok);
    assert_eq!(fixture.upstream.only().all("cookie"), [crumbs.join("; ")]);
}
