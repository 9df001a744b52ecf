//! Rows P and C4: the meaning of a path and a query to the API server.

use serde_json::json;

use super::{
    Expect::{Clean, Refused},
    TASKRUNS, alice, check, fixture,
};
use crate::{
    fixture::{Change, Fixture, bearer},
    harness::Reply,
};

#[tokio::test]
async fn a_path_that_is_not_canonical_is_400() {
    let fixture = fixture().await;
    for path in [
        "//api/v1/configmaps",
        "/api/v1//configmaps",
        "/api/v1/namespaces/a/../b/configmaps",
        "/api/v1/namespaces/a/./configmaps",
        "/api/v1/namespaces/a/%2e%2e/b/configmaps",
        "/api/v1/namespaces/a%2Fb/configmaps",
        "/api/v1/namespaces/a\\b/configmaps",
        "/api/v1/namespaces/a;x/configmaps",
        "/api/v1/namespaces/a%00/configmaps",
        "/api/v1/namespaces/%zz/configmaps",
    ] {
        let answer = alice(&fixture, "kubernetes:P1", &format!("GET {path}"), &[], Refused(&[400])).await;
        assert_eq!(answer.json()["kind"], "Status", "kubernetes:P1 {path}");
    }
    // The counterpart: decided and forwarded as the same bytes.
    alice(&fixture, "kubernetes:P1", "GET /api/v1/namespaces/a/configmaps?limit=1", &[], Clean).await;
    let (_, seen) = fixture.api("/api/v1/namespaces/a/configmaps?limit=1", &[&fixture.alice()]).await;
    assert_eq!(seen[0].line(), "GET /api/v1/namespaces/a/configmaps?limit=1 HTTP/1.1");
}

/// Kubernetes clients understand nothing else, even if a request is refused before a route is found.
#[tokio::test]
async fn refusals_on_a_host_of_the_api_server_alone_have_its_format() {
    let change = |yaml: String| {
        let route = "{name: part, kind: kubernetes, hosts: [part.test], paths: ['/apis/*'], schemes: [bearer], upstream: cluster}";
        let page = "{name: page, kind: http, hosts: [both.test], paths: ['/page'], schemes: [bearer], upstream: web}";
        let both = route.replace("part", "both");
        yaml.change("\nroutes:\n", &format!("\nroutes:\n  - {route}\n  - {both}\n  - {page}\n"))
    };
    let fixture = Fixture::with(change, |_| Reply::json(200, "{}")).await;
    let long = format!("/apis/{}", "a".repeat(9000));
    for (path, status, reason) in
        [("/other", 404, "NotFound"), (&*long, 414, "BadRequest"), ("/apis//a", 400, "BadRequest")]
    {
        let answer = fixture.doorward.get(path, &["Host: part.test"]).await;
        let said = answer.json();
        assert_eq!((answer.status, &said["kind"], &said["code"]), (status, &"Status".into(), &status.into()), "{said}");
        assert_eq!(
            (&said["reason"], answer.header("content-type")),
            (&reason.into(), Some("application/json")),
            "{said}"
        );
        // The counterpart: a host that other clients use too.
        let answer = fixture.doorward.get(path, &["Host: both.test"]).await;
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{path}");
    }
    let lines = |more: &str| vec!["Host: part.test".to_owned(), format!("X-A: {more}")];
    let lines = lines(&"a".repeat(33_000));
    let answer = fixture.doorward.get("/apis", &lines.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_eq!((answer.status, &answer.json()["kind"]), (431, &"Status".into()));
    // kubectl does not parse a `Status` in discovery.
    let answer = fixture.doorward.get("/apis", &["Host: api.test"]).await;
    assert_eq!((answer.status, answer.header("content-type")), (401, Some("text/plain; charset=utf-8")));
}

/// Before routing, so that only the host shows which clients ask.
#[tokio::test]
async fn refusals_for_lack_of_memory_have_the_format_of_the_api_server() {
    let change = |yaml: String| yaml.change("limits: {", "limits: {memory: 1600KiB, ");
    let fixture = Fixture::with_faults(change, |_| Reply::json(200, "{}")).await;
    fixture.doorward.use_memory(100, "memory ok").await;
    // New connections are refused before requests are.
    let hosts = ["api.test", "web.test"];
    let request = |host: &str| {
        format!("GET /apis/tekton.dev/v1/taskruns HTTP/1.1\r\nHost: {host}\r\n{}\r\n\r\n", fixture.alice())
    };
    let mut open = Vec::new();
    for host in hosts {
        let mut raw = fixture.doorward.raw().await;
        raw.send(request(host)).await;
        assert_eq!(raw.answer().await.status, 200, "{host}");
        open.push(raw);
    }
    fixture.doorward.use_memory(990, "all requests are refused").await;
    let _ = fixture.upstream.take();
    let mut answers = Vec::new();
    for (raw, host) in open.iter_mut().zip(hosts) {
        raw.send(request(host)).await;
        answers.push(raw.answer().await);
    }
    assert!(fixture.upstream.take().is_empty());
    let [api, web] = &answers[..] else { panic!("{} answers", answers.len()) };
    assert_eq!((api.status, api.header("content-type")), (503, Some("application/json")));
    let mut said = api.json();
    let id = said["details"]["uid"].take();
    assert_eq!((id.as_str(), api.header("retry-after")), (api.header("x-request-id"), Some("1")));
    assert_eq!(
        said,
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 503,
            "reason": "ServiceUnavailable",
            "message": format!("doorward: Doorward is short of memory. Try again in a moment (request {})", api.header("x-request-id").unwrap()),
            "details": {"uid": null, "retryAfterSeconds": 1, "causes": [{"reason": "overloaded", "message": "Doorward is short of memory"}]},
        })
    );
    // The counterpart: a host that other clients use.
    assert_eq!((web.status, web.header("content-type")), (503, Some("application/problem+json")));
}

#[tokio::test]
async fn a_request_is_decided_by_what_the_api_server_will_do() {
    let fixture = fixture().await;
    let get = |suffix: &str| format!("GET {TASKRUNS}{suffix}");
    let cases: Vec<(&str, &str, String, u16)> = vec![
        ("kubernetes:P2", "readers", "GET /apis/tekton.dev/v1/watch/namespaces/ci/taskruns".into(), 403),
        ("kubernetes:P2", "readers", "GET /api/v1/watch/pods".into(), 403),
        ("kubernetes:P2", "readers", "GET /api/v1/proxy/namespaces/ci/pods/x".into(), 403),
        ("kubernetes:P2", "readers", "GET /api/v1/pods".into(), 200),
        ("kubernetes:P3", "readers", get("?watch=1"), 403),
        ("kubernetes:P3", "readers", get("?watch=t"), 403),
        ("kubernetes:P3", "readers", get("?watch"), 403),
        ("kubernetes:P3", "readers", get("?watch=true&watch=false"), 403),
        ("kubernetes:P3", "readers", get("?limit=x&watch=1"), 403),
        ("kubernetes:P3", "readers", get("?watch=false&watch=true"), 200),
        ("kubernetes:P3", "readers", get("?watch=0"), 200),
        ("kubernetes:P4", "readers", "GET /api/v1/configmaps?fieldSelector=metadata.name=other".into(), 403),
        ("kubernetes:P4", "readers", "GET /api/v1/configmaps".into(), 403),
        ("kubernetes:P4", "readers", "GET /api/v1/configmaps?fieldSelector=metadata.name=mine".into(), 200),
        ("kubernetes:P5", "cleaners", format!("DELETE {TASKRUNS}"), 403),
        ("kubernetes:P5", "cleaners", format!("DELETE {TASKRUNS}/one"), 200),
        ("kubernetes:P5", "readers", format!("BREW {TASKRUNS}/one"), 403),
        ("kubernetes:P5", "readers", format!("GET {TASKRUNS}/one"), 200),
        ("kubernetes:P6", "dev", "GET /api/v1/namespaces/a/services/x:80/proxy/secret".into(), 403),
        ("kubernetes:P6", "dev", "GET /api/v1/nodes/n/proxy/exec/ns/pod/c".into(), 403),
        ("kubernetes:P6", "dev", "GET /api/v1/namespaces/a/services/x:80/proxy/..%2f..".into(), 400),
        ("kubernetes:P6", "dev", "GET /api/v1/namespaces/a/services/x".into(), 200),
        // Nor a name that the API server ignores.
        ("kubernetes:P5", "dev", "POST /apis/tekton.dev/v1/namespaces/ci/tasks/ok".into(), 405),
        ("kubernetes:C4", "readers", get("?fieldSelector=a%3Db&fieldSelector=metadata.name%3Dx"), 400),
        ("kubernetes:C4", "readers", get("?fieldSelector=metadata.name%3Da&fieldSelector=metadata.name%3Db"), 400),
        ("kubernetes:C4", "readers", get("?Namespace=a&namespace=b"), 400),
        ("kubernetes:C4", "readers", get("?namespace=b"), 200),
    ];
    for (row, group, request, status) in &cases {
        let token = bearer(&fixture.a.token("alice", &[group]));
        let _ = fixture.upstream.take();
        let line = format!("{request} HTTP/1.1");
        let answer = fixture.doorward.send(&[&line, "Host: api.test", &token], b"").await;
        assert_eq!(answer.status, *status, "{row} {request}: {}", answer.text());
        assert_eq!(fixture.upstream.take().len(), usize::from(*status == 200), "{row} {request}");
    }
    // HEAD counts as get: the same rule allows it, and its response has no body.
    let token = bearer(&fixture.a.token("alice", &["readers"]));
    let mut raw = fixture.doorward.raw().await;
    raw.send(format!("HEAD {TASKRUNS}/one HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n{token}\r\n\r\n")).await;
    let rest = String::from_utf8_lossy(&raw.rest().await).into_owned();
    assert!(rest.starts_with("HTTP/1.1 200"), "kubernetes:P5 {rest}");
    let head = format!("HEAD {TASKRUNS} HTTP/1.1");
    check(&fixture, "kubernetes:P5", &[&head, "Host: api.test", "Connection: close"], b"", Refused(&[401])).await;
}
