//! The Dashboard route: its pages offer what each person may do, logs from outside the cluster are shown to those who
//! may read them, and no other part of its back end answers.

use serde_json::{Value, json};

use crate::{
    fixture::{Change, Fixture},
    harness::{Answer, HANDSHAKE, Recorded, Reply},
};

/// An API server that allows what `allowed` lists as `VERB RESOURCE NAMESPACE`.
fn reviewed(allowed: &'static [&'static str]) -> impl Fn(&Recorded) -> Reply + Send + Sync + 'static {
    move |request| {
        if request.line().starts_with("POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews ") {
            let review: Value = serde_json::from_slice(&request.body).unwrap();
            let spec = &review["spec"]["resourceAttributes"];
            let text = |key: &str| spec[key].as_str().unwrap().to_owned();
            let sub = if text("subresource").is_empty() { String::new() } else { format!("/{}", text("subresource")) };
            let asked = format!("{} {}{sub} {}", text("verb"), text("resource"), text("namespace"));
            let status = json!({"status": {"allowed": allowed.contains(&asked.trim_end())}});
            return Reply::json(201, &status.to_string());
        }
        if request.line().contains("/v1/properties") {
            return Reply::json(200, r#"{"dashboardVersion":"v0.60.0","isReadOnly":false,"logoutURL":"/elsewhere"}"#);
        }
        Reply::json(200, r#"{"ok":true}"#)
    }
}

async fn dashboard(script: impl Fn(&Recorded) -> Reply + Send + Sync + 'static) -> Fixture {
    let change = |yaml: String| {
        let yaml = yaml.change("kubernetes: cluster}", "kubernetes: cluster, namespaces: [team-a, team-b, prod]}");
        yaml.change("rules:\n", "rules:\n  - {id: never-prod, on: {kubernetes: {namespaces: [prod]}}, do: deny}\n")
    };
    Fixture::with(change, script).await
}

async fn get(fixture: &Fixture, path: &str, more: &[&str]) -> (Answer, Vec<Recorded>) {
    get_with(fixture, &fixture.alice(), path, more).await
}

async fn get_with(fixture: &Fixture, token: &str, path: &str, more: &[&str]) -> (Answer, Vec<Recorded>) {
    let _ = fixture.upstream.take();
    let answer = fixture.doorward.get(path, &[&["Host: board.test", token], more].concat()).await;
    (answer, fixture.upstream.take())
}

/// What the upstream received other than the reviews.
fn forwarded(seen: &[Recorded]) -> Vec<&Recorded> {
    seen.iter().filter(|request| !request.line().contains("selfsubjectaccessreviews")).collect()
}

#[tokio::test]
async fn pages_offer_each_person_what_that_person_may_do() {
    let fixture =
        dashboard(reviewed(&["list pipelineruns team-a", "create pipelineruns team-a", "list pipelineruns prod"]))
            .await;
    let token = fixture.alice();
    let (answer, seen) = get_with(&fixture, &token, "/v1/properties", &[]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let expected = json!({"dashboardVersion": "v0.60.0", "isReadOnly": false, "tenantNamespaces": ["team-a"]});
    assert_eq!(answer.json(), expected);
    assert_eq!(answer.header("cache-control"), Some("private, no-store"));
    let properties = forwarded(&seen);
    assert_eq!(properties.len(), 1);
    assert!(!properties[0].has("authorization") && !properties[0].has("impersonate-user"), "{}", properties[0].head);
    for review in seen.iter().filter(|request| request.line().contains("selfsubjectaccessreviews")) {
        assert_eq!(review.one("impersonate-user"), "alice");
        assert_eq!(review.all("impersonate-group"), ["tekton:dev"]);
        assert_eq!(review.one("authorization"), "Bearer upstream-token");
        assert!(!String::from_utf8_lossy(&review.body).contains("prod"), "the policy denies it already");
    }
    // It was asked a moment ago.
    let (answer, seen) = get_with(&fixture, &token, "/v1/properties", &[]).await;
    assert_eq!((answer.json(), seen.len()), (expected, 1));
}

/// Rules were evaluated for the path of the properties.
#[tokio::test]
async fn pages_offer_what_rules_allow_by_path() {
    let change = |yaml: String| {
        let yaml = yaml.change("kubernetes: cluster}", "kubernetes: cluster, namespaces: [team-a]}");
        let yaml = yaml.change("routes: [api, only-a, board, web]", "routes: [api, only-a, web]");
        let who = "who: {issuers: [a], groups: [dev]}, do: allow}";
        let page = format!("{{id: page, on: {{routes: [board], pages: true}}, {who}");
        let asked = format!("{{id: asked, on: {{routes: [board], paths: ['/api/*', '/apis/*']}}, {who}");
        yaml.change("rules:\n", &format!("rules:\n  - {page}\n  - {asked}\n"))
    };
    let fixture = Fixture::with(change, reviewed(&["list pipelineruns team-a", "create pipelineruns team-a"])).await;
    let (answer, _) = get(&fixture, "/v1/properties", &[]).await;
    let expected = json!({"dashboardVersion": "v0.60.0", "isReadOnly": false, "tenantNamespaces": ["team-a"]});
    assert_eq!(answer.json(), expected);
}

#[tokio::test]
async fn the_dashboard_offers_only_what_its_user_may_see_and_start() {
    let fixture = Fixture::answering(reviewed(&["list namespaces", "list pipelineruns"])).await;
    let (answer, _) = get(&fixture, "/v1/properties", &[]).await;
    assert_eq!(answer.json(), json!({"dashboardVersion": "v0.60.0", "isReadOnly": true}));
}

#[tokio::test]
async fn attacks_z54_properties_are_fetched_uncached_and_complete() {
    let fixture = dashboard(reviewed(&[])).await;
    let more = [
        "If-None-Match: \"1\"",
        "Range: bytes=0-1",
        "Accept-Encoding: br",
        "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT",
    ];
    let (answer, seen) = get(&fixture, "/v1/properties", &more).await;
    assert_eq!((answer.status, answer.json()["isReadOnly"].clone()), (200, true.into()));
    for name in ["if-none-match", "range", "accept-encoding", "if-modified-since"] {
        assert!(!forwarded(&seen)[0].has(name), "{name}");
    }
    for body in ["[]", "<html>", r#"{"isReadOnly":"no"}"#] {
        let fixture = dashboard(move |request| match request.line().contains("/v1/properties") {
            true => Reply::json(200, body),
            false => Reply::json(201, r#"{"status":{"allowed":true}}"#),
        });
        let (answer, _) = get(&fixture.await, "/v1/properties", &[]).await;
        assert_eq!((answer.status, answer.reason()), (502, "upstream_protocol".to_owned()), "attacks:Z54 {body}");
    }
    // If the API server cannot be asked, nothing is offered.
    let fixture = dashboard(|request| match request.line().contains("selfsubjectaccessreviews") {
        true => Reply::json(500, "{}"),
        false => Reply::json(200, "{}"),
    });
    let (answer, seen) = get(&fixture.await, "/v1/properties", &[]).await;
    assert_eq!((answer.status, forwarded(&seen).len()), (502, 0), "{}", answer.text());
}

#[tokio::test]
async fn a_log_from_outside_needs_the_right_to_read_logs_there() {
    let fixture = dashboard(reviewed(&["get pods/log team-a"])).await;
    let (answer, seen) = get(&fixture, "/v1/logs-proxy/team-a/build-pod/step-build?startTime=1", &[]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(forwarded(&seen)[0].line(), "GET /v1/logs-proxy/team-a/build-pod/step-build?startTime=1 HTTP/1.1");
    let review: Value = serde_json::from_slice(&seen[0].body).unwrap();
    assert_eq!(review["spec"]["resourceAttributes"]["name"], "build-pod");
    for (path, status, reason) in [
        ("/v1/logs-proxy/team-b/build-pod/step-build", 403, "kubernetes_denied"),
        ("/v1/logs-proxy/prod/build-pod/step-build", 403, "policy_denied"),
        ("/v1/logs-proxy/team-a/build-pod", 404, "route_not_found"),
        ("/v1/logs-proxy/team-a/build-pod/step-build/more", 404, "route_not_found"),
        ("/v1/logs-proxy/team-a/%2e%2e/version", 400, "path_not_canonical"),
        ("/v1/logs-proxy/team-a/build-pod/Step_Build", 400, "bad_request"),
        ("/v1/anything", 404, "route_not_found"),
    ] {
        let (answer, seen) = get(&fixture, path, &[]).await;
        assert_eq!((answer.status, answer.reason()), (status, reason.to_owned()), "{path}");
        assert!(forwarded(&seen).is_empty(), "{path}");
    }
    let record = fixture.doorward.record(|line| line.to_string().contains("kubernetes_denied")).await;
    assert!(record.to_string().contains("team-b"), "{record}");
}

/// The back end copies the type that the log server declares, or guesses one from what a stranger wrote.
#[tokio::test]
async fn html_in_a_log_from_outside_is_text() {
    let review = reviewed(&["get pods/log team-a"]);
    let fixture = dashboard(move |request| match request.line() {
        line if line.contains("/v1/logs-proxy/") => {
            let html =
                b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 25\r\n\r\n<script>alert(1)</script>";
            Reply::Bytes(html.to_vec())
        }
        line if line.starts_with("GET / ") => {
            Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<p>1".to_vec())
        }
        _ => review(request),
    })
    .await;
    let (answer, _) = get(&fixture, "/v1/logs-proxy/team-a/build-pod/step-build", &[]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.all("content-type"), ["text/plain; charset=utf-8"], "attacks:Z12 {}", answer.head);
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "attacks:Z12");
    assert_eq!(answer.header("content-security-policy"), Some("sandbox; default-src 'none'"), "attacks:Z12");
    let (page, _) = get(&fixture, "/", &[]).await;
    assert_eq!((page.header("content-type"), page.header("content-security-policy")), (Some("text/html"), None));
}

#[tokio::test]
async fn the_back_end_of_a_dashboard_is_only_read() {
    let fixture = dashboard(reviewed(&[])).await;
    let token = fixture.alice();
    for lines in [
        ["POST / HTTP/1.1", "Host: board.test", &token, "Content-Length: 0"],
        ["DELETE /v1/properties HTTP/1.1", "Host: board.test", &token, "Content-Length: 0"],
        ["POST /v1/logs-proxy/team-a/p/c HTTP/1.1", "Host: board.test", &token, "Content-Length: 0"],
    ] {
        let _ = fixture.upstream.take();
        let answer = fixture.doorward.send(&lines, b"").await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{lines:?}");
        assert!(fixture.upstream.take().is_empty(), "{lines:?}");
    }
    // The counterpart with the scheme of the pages.
    let (answer, seen) = get(&fixture, "/", &[]).await;
    assert_eq!((answer.status, seen.len()), (200, 1));
    let (answer, seen) = get(&fixture, "/apis/tekton.dev/v1/namespaces/team-a/pipelineruns/", &[]).await;
    assert_eq!((answer.status, seen[0].one("impersonate-user")), (200, "alice"));
}

/// Access to its pages gives no tunnel to their server.
#[tokio::test]
async fn the_back_end_of_a_dashboard_has_no_sockets() {
    let fixture = dashboard(reviewed(&[])).await;
    for path in ["/", "/v1/properties"] {
        let (answer, seen) = get(&fixture, path, &HANDSHAKE).await;
        assert_eq!((answer.status, answer.reason(), seen.len()), (400, "upgrade_refused".to_owned(), 0), "{path}");
        assert_eq!(get(&fixture, path, &[]).await.0.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_dashboard_that_knows_no_api_server_shows_no_logs() {
    let fixture = Fixture::with(|yaml| yaml.change(", kubernetes: cluster}", "}"), reviewed(&[])).await;
    for path in ["/v1/logs-proxy/team-a/p/c", "/v1/logs-proxy/a/b"] {
        let (answer, seen) = get(&fixture, path, &[]).await;
        assert_eq!((answer.status, answer.reason(), seen.len()), (403, "policy_denied".to_owned(), 0));
    }
    assert_eq!(get(&fixture, "/v1/properties", &[]).await.0.status, 200);
}

#[tokio::test]
async fn on_a_dashboard_host_requests_unusual_for_a_browser_must_be_named() {
    let fixture = dashboard(reviewed(&[])).await;
    for path in [
        "/api/v1/namespaces/team-a/secrets",
        "/api/v1/namespaces/team-a/services/x/proxy/y",
        "/api/v1/namespaces/team-a/pods/p/exec?command=sh",
        "/api/v1/namespaces/team-a/pods/p/attach",
        "/api/v1/namespaces/team-a/pods/p/portforward?ports=1",
    ] {
        let (answer, seen) = get(&fixture, path, &[]).await;
        assert_eq!((answer.status, answer.reason(), seen.len()), (403, "no_rule_matched".to_owned(), 0), "{path}");
        assert_eq!(answer.json()["kind"], "Status", "{path}");
    }
    let (answer, _) = get(&fixture, "/api/v1/namespaces/team-a/pods/p/log", &[]).await;
    assert_eq!(answer.status, 200);
}
