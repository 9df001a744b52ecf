//! Doorward's own endpoints by method: which methods each accepts, and that HEAD gets only the head.

use http_body_util::{BodyExt, Empty};
use serde_json::Value;

use crate::{
    fixture::{Change, Fixture},
    harness::{Raw, Reply, request, streams::http2, within},
};

/// Metadata of the API and of its issuer, also for pages of other origins.
const METADATA: [&str; 5] = [
    "/.well-known/oauth-protected-resource",
    "/.well-known/oauth-protected-resource/api/v1",
    "/.well-known/openid-configuration",
    "/.well-known/oauth-authorization-server",
    "/oauth2/jwks",
];

/// Every endpoint, with its host. The back-channel logout endpoint is missing: its specification demands 400 for
/// anything that is not a logout.
const ENDPOINTS: &[(&str, &str, &[&str])] = &[
    ("localhost", "GET", &["/oauth2/start", "/oauth2/callback"]),
    (
        "localhost",
        "GET, HEAD",
        &[
            "/oauth2/continue",
            "/oauth2/unsent",
            "/oauth2/sign_in",
            "/oauth2/signed_out",
            "/oauth2/userinfo",
            "/.doorward/device/done",
            "/.doorward/whoami",
            "/.doorward/probe",
            "/.doorward/sessions",
        ],
    ),
    ("localhost", "GET, HEAD, POST", &["/oauth2/sign_out", "/.doorward/login", "/.doorward/device"]),
    (
        "localhost",
        "POST",
        &["/.doorward/login/token", "/.doorward/login/end", "/.doorward/login/device", "/.doorward/sessions/end"],
    ),
    ("api.test", "GET, HEAD", &["/.well-known/jwks.json", "/oauth2/registry"]),
    ("api.test", "GET, HEAD, OPTIONS", &METADATA),
    ("api.test", "POST", &["/oauth2/token", "/oauth2/revoke", "/oauth2/introspect"]),
    ("door.door.svc", "POST", &["/", "/interceptor"]),
];

/// With a token issuer, an interceptor and logins, and a proxy that uses forward-auth.
fn with_all_endpoints(yaml: &str) -> String {
    let with = [
        ("address: 127.0.0.1:0}]", "address: 127.0.0.1:0, trusted_proxies: [127.0.0.1/32]}]\nforward_auth: traefik"),
        ("['https://doorward.test']", "['https://doorward.test', 'https://api.test']"),
        ("    kind: human\n", "    kind: human\n    login: {client: {id: doorward, secret: {file: client}}}\n"),
        (
            "routes:\n",
            "routes:\n  - {name: pages, kind: http, hosts: [localhost], methods: [GET, PUT], schemes: [session], upstream: web}\n",
        ),
        ("routes: [api, only-a, board, web]", "routes: [api, only-a, board, web, pages]"),
    ];
    let yaml = with.iter().fold(yaml.to_owned(), |yaml, (old, new)| yaml.change_first(old, new));
    yaml + "interceptor: {host: door.door.svc, kubernetes: cluster}\ntokens: {exchange: [{issuer: a}]}\n"
}

/// RFC 9110 section 15.5.6.
#[tokio::test]
async fn every_answer_that_a_method_is_not_allowed_says_which_are() {
    let fixture = Fixture::with(|yaml| with_all_endpoints(&yaml), |_| Reply::json(200, "{}")).await;
    for (host, allow, paths) in ENDPOINTS {
        for path in *paths {
            let lines = [&format!("DELETE {path} HTTP/1.1"), &*format!("Host: {host}")];
            let answer = fixture.doorward.send(&lines, b"").await;
            let told = answer.header("allow").map(|told| told.replace(',', ", ").replace("  ", " "));
            assert_eq!((answer.status, told.as_deref()), (405, Some(*allow)), "{host}{path}: {}", answer.text());
            assert!(!answer.text().is_empty(), "{host}{path} says nothing");
        }
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        let mut raw = Raw::connect(fixture.doorward.address("admin")).await;
        raw.send(request(&[&format!("DELETE {path} HTTP/1.1"), "Host: localhost"], b"")).await;
        let answer = raw.answer().await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET,HEAD")), "{path}");
    }
    // A proxy passes on the response that it gets.
    for (method, allow) in [("DELETE", "GET, PUT"), ("TRACE", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")] {
        let method = format!("X-Forwarded-Method: {method}");
        let about = [&*method, "Host: localhost", "X-Forwarded-Host: localhost", "X-Forwarded-Uri: /page"];
        let answer = fixture.doorward.get("/oauth2/auth", &about).await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allow)), "{method}: {}", answer.text());
    }
    let answer = fixture.doorward.send(&["TRACE / HTTP/1.1", "Host: api.test"], b"").await;
    assert_eq!(answer.status, 405, "{}", answer.text());
    assert!(fixture.upstream.take().is_empty());
}

/// A page that sends the MCP version, as its libraries do, could read neither where to get a token nor the metadata of
/// the issuer.
#[tokio::test]
async fn a_page_of_another_origin_may_ask_for_metadata_with_a_header_of_its_own() {
    let fixture = Fixture::with(|yaml| with_all_endpoints(&yaml), |_| Reply::json(200, "{}")).await;
    for path in METADATA {
        let line = format!("OPTIONS {path} HTTP/1.1");
        let asked = "Access-Control-Request-Headers: mcp-protocol-version";
        let lines =
            [&*line, "Host: api.test", "Origin: https://a.example", "Access-Control-Request-Method: GET", asked];
        let answer = fixture.doorward.send(&lines, b"").await;
        let told = ["access-control-allow-origin", "access-control-allow-methods", "access-control-allow-headers"]
            .map(|name| answer.header(name));
        assert_eq!((answer.status, told), (204, [Some("*"), Some("GET, HEAD"), Some("*")]), "{path}");
    }
    assert!(fixture.upstream.take().is_empty());
}

/// A deny that lists methods beside a broad allow was bypassed by `delete`, which some servers treat as DELETE, and by
/// PROPFIND.
#[tokio::test]
async fn no_method_passes_that_a_deny_of_methods_cannot_have_meant() {
    let deny = "rules:\n  - {id: ro, on: {routes: [open], methods: [POST, PUT, PATCH, DELETE]}, do: deny}\n";
    let fixture = Fixture::with(|yaml| yaml.change_first("rules:\n", deny), |_| Reply::json(200, "{}")).await;
    let all = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
    for (method, status, allow) in [
        ("GET", 200, None),
        ("DELETE", 403, None),
        ("delete", 400, None),
        ("Post", 400, None),
        ("PROPFIND", 405, Some(all)),
        ("MKCOL", 405, Some(all)),
    ] {
        let answer = fixture.doorward.send(&[&format!("{method} / HTTP/1.1"), "Host: open.test"], b"").await;
        assert_eq!((answer.status, answer.header("allow")), (status, allow), "{method}: {}", answer.text());
        let asked = http::Request::builder().method(method).uri("http://open.test/").body(Empty::new()).unwrap();
        let mut over_http2 = http2(&fixture.doorward).await;
        assert_eq!(within(over_http2.send_request(asked)).await.unwrap().status(), status, "{method}");
    }
    assert_eq!(fixture.upstream.take().len(), 2);
}

/// RFC 9110 section 9.3.2.
#[tokio::test]
async fn an_answer_to_head_has_the_headers_of_get_and_counts_as_complete() {
    let fixture = Fixture::start().await;
    for (path, status) in [("/api/v1/pods", 401), ("/.well-known/jwks.json", 200)] {
        let ask = async |method: &str| {
            let mut raw = fixture.doorward.raw().await;
            let lines = [&format!("{method} {path} HTTP/1.1"), "Host: api.test", "Connection: close"];
            raw.send(request(&lines, b"")).await;
            let answer = String::from_utf8_lossy(&raw.rest().await).into_owned();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            (head.to_ascii_lowercase(), body.len())
        };
        let (_, length) = ask("GET").await;
        let (head, sent) = ask("HEAD").await;
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{head}");
        let told = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map(str::to_owned);
        assert_eq!((told, sent), (Some(length.to_string()), 0), "{head}");

        // A 401 is the last response on its connection.
        let mut over_http2 = http2(&fixture.doorward).await;
        let asked = http::Request::head(format!("http://api.test{path}")).body(Empty::new()).unwrap();
        let answer = within(over_http2.send_request(asked)).await.unwrap();
        let told = answer.headers()["content-length"].to_str().unwrap();
        assert_eq!((answer.status().as_u16(), told), (status, &*length.to_string()), "{path}");
        assert!(within(answer.into_body().collect()).await.unwrap().to_bytes().is_empty(), "{path}");
    }
    let is_head = |record: &Value| record["http_request"]["http_method"] == "HEAD";
    let records = fixture.doorward.records(4, is_head).await;
    assert!(records.iter().all(|record| record["unmapped"]["ended"].is_null()), "{records:#?}");
}
