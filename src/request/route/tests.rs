//! Which of several routes takes a request.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::issuers::testing;

/// The table of these routes for the host `a.test`. By default they are of kind `http` and let anybody in.
fn table(more: &Value, routes: &[Value]) -> Routes {
    table_and_root(more, routes).0
}

fn table_and_root(more: &Value, routes: &[Value]) -> (Routes, raw::Root) {
    let mut root = json!({
        "upstreams": [{"name": "up", "url": "http://127.0.0.1:1"}],
        "routes": routes.iter().map(|route| {
            let given = json!({"kind": "http", "hosts": ["a.test"], "schemes": ["anonymous"], "upstream": "up"});
            testing::changed(given, route)
        }).collect::<Vec<_>>(),
    });
    root = testing::changed(root, more);
    let (issuers, _) = testing::resolve(&root, None, &testing::context());
    let root: raw::Root = serde_json::from_value(root).unwrap();
    let mut resolver = Resolver::new(Path::new("/"));
    let upstream = Upstream::resolve(&root.upstreams[0], &root.limits, &At::root(), &mut resolver).unwrap();
    let upstreams = BTreeMap::from([(Arc::from("up"), upstream)]);
    let (webhooks, metrics) = (BTreeMap::new(), RequestMetrics::default());
    let parts = Parts { upstreams: &upstreams, webhooks: &webhooks, issuers: &issuers, metrics: &metrics };
    let routes = resolve(&root, parts, &mut resolver);
    assert!(!resolver.report.has_errors(), "{:?}", resolver.report.problems());
    (routes, root)
}

/// Where a request goes by the written routes alone, in the words of [`taker`].
fn taker_as_written(root: &raw::Root, method: &str, path: &str) -> String {
    match written::taker(root, "a.test", path, &Method::from_bytes(method.as_bytes()).unwrap()) {
        Ok(Taker::Route(route)) => route.name.clone(),
        Ok(Taker::Own) => "Own".to_owned(),
        Err(rejection) if rejection.reason() == Reason::RouteNotFound => "none".to_owned(),
        Err(rejection) => {
            let detail = rejection.detail();
            detail
                .strip_prefix("this path takes ")
                .and_then(|rest| rest.strip_suffix(" only"))
                .unwrap_or(detail)
                .to_owned()
        }
    }
}

/// The route that takes a request, with its kind if that is not the written one.
fn taker(routes: &Routes, method: &str, path: &str) -> String {
    let found = routes.find("a.test", path, &Method::from_bytes(method.as_bytes()).unwrap());
    match found {
        Ok(Target::Upstream(route)) if route.kind == RouteKind::Kubernetes => {
            format!("{} to the API server", route.name)
        }
        Ok(Target::Upstream(route)) => route.name.to_string(),
        Ok(own) => format!("{own:?}"),
        Err(Miss::Method(_, allow)) => format!("only {allow}"),
        Err(Miss::Path) => "none".to_owned(),
    }
}

/// Where a route lists no methods. Such a route forwarded TRACE, which no route may list.
const ANY: &str = "only GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// Which route is stricter must not depend on its place in the file.
#[tokio::test]
async fn the_more_specific_route_takes_a_request_in_either_order() {
    let dashboard = json!({"name": "board", "kind": "dashboard", "kubernetes": "up"});
    for (one, other, requests) in [
        (
            json!({"name": "read"}),
            json!({"name": "write", "methods": ["POST", "PUT"]}),
            &[
                ("GET", "/x", "read"),
                ("POST", "/x", "write"),
                ("PUT", "/", "write"),
                ("DELETE", "/", "read"),
                ("TRACE", "/", ANY),
                ("PROPFIND", "/", ANY),
            ][..],
        ),
        (
            json!({"name": "below", "paths": ["/app/*"]}),
            json!({"name": "exact", "paths": ["/app"]}),
            &[
                ("GET", "/app", "exact"),
                ("GET", "/app/", "below"),
                ("GET", "/app/x", "below"),
                ("GET", "/appx", "none"),
            ],
        ),
        (
            json!({"name": "below", "paths": ["/app/*"], "methods": ["GET"]}),
            json!({"name": "exact", "paths": ["/app"]}),
            &[("GET", "/app", "exact"), ("POST", "/app", "exact"), ("POST", "/app/x", "only GET")],
        ),
        (
            json!({"name": "below", "paths": ["/app/*"]}),
            json!({"name": "exact", "paths": ["/app"], "methods": ["GET"]}),
            &[("GET", "/app", "exact"), ("POST", "/app", "only GET"), ("POST", "/app/x", "below")],
        ),
        (
            json!({"name": "all"}),
            json!({"name": "exact", "paths": ["/"]}),
            &[("GET", "/", "exact"), ("GET", "/x", "all")],
        ),
        (
            json!({"name": "all"}),
            json!({"name": "below", "paths": ["/app/*"]}),
            &[
                ("GET", "/app", "below"),
                ("GET", "/app/x/y", "below"),
                ("GET", "/ap", "all"),
                ("GET", "/app-2/x", "all"),
            ],
        ),
        (
            json!({"name": "short", "paths": ["/app/*"]}),
            json!({"name": "long", "paths": ["/app/admin/*"], "methods": ["GET"]}),
            &[
                ("GET", "/app/admin", "long"),
                ("GET", "/app/admin/x", "long"),
                ("GET", "/app/adm", "short"),
                // Whoever gives a part of a site a route of its own does not mean the rest of the site to take what
                // that route refuses.
                ("POST", "/app/admin/x", "only GET"),
                ("POST", "/app/administrators", "short"),
            ],
        ),
        (
            dashboard.clone(),
            json!({"name": "writes", "paths": ["/api/*", "/apis/*"], "methods": ["POST"]}),
            &[
                ("GET", "/", "board"),
                ("GET", "/api/v1/pods", "board to the API server"),
                ("PROPFIND", "/api/v1/pods", "board to the API server"),
                ("PROPFIND", "/", ANY),
                ("POST", "/apis/x", "writes"),
            ],
        ),
        (
            dashboard,
            json!({"name": "part", "paths": ["/apis/metrics.k8s.io/*"]}),
            &[("GET", "/apis", "board to the API server"), ("GET", "/apis/metrics.k8s.io/v1", "part")],
        ),
    ] {
        for routes in [[one.clone(), other.clone()], [other.clone(), one.clone()]] {
            let (table, root) = table_and_root(&json!({}), &routes);
            for (method, path, expected) in requests {
                assert_eq!(taker(&table, method, path), *expected, "{method} {path} in {routes:?}");
                let written = expected.trim_start_matches("only ").trim_end_matches(" to the API server");
                assert_eq!(taker_as_written(&root, method, path), written, "{method} {path} as written in {routes:?}");
            }
        }
    }
}

/// The upstream's 200 to a question of a proxy that may not ask, or asks in another form, let that proxy pass everything.
#[tokio::test]
async fn questions_of_proxies_go_to_no_upstream_on_any_host() {
    let listeners = json!([{"name": "p", "address": "127.0.0.1:0", "trusted_proxies": ["127.0.0.1/32"]}]);
    for (root, own) in [(json!({"forward_auth": "nginx", "listeners": listeners}), true), (json!({}), false)] {
        let routes = table(&root, &[json!({"name": "web"})]);
        for path in ["/oauth2/auth", "/oauth2/auth/", "/oauth2/auth/page"] {
            let taken = matches!(routes.find("a.test", path, &Method::GET), Ok(Target::Own(OwnEndpoint::Page)));
            assert_eq!(taken, own, "{path}");
        }
        assert_eq!(taker(&routes, "GET", "/oauth2/authors"), "web");
    }
}

/// Servers fetch the keys of assertions there, whichever hosts people and programs use.
#[tokio::test]
async fn the_external_host_is_known_even_if_no_route_has_it() {
    let routes = table(&json!({"external_host": "door.test"}), &[json!({"name": "web"})]);
    assert_eq!(routes.host("door.test").as_deref(), Some("door.test"));
    assert_eq!(routes.host("other.test"), None);
    for (path, own) in [
        ("/.well-known/jwks.json", true),
        ("/.well-known/oauth-protected-resource", true),
        ("/.doorward/probe", true),
        ("/.well-known/other", false),
        ("/oauth2/start", false),
        ("/", false),
    ] {
        match routes.find("door.test", path, &Method::GET) {
            Ok(Target::Own(OwnEndpoint::Page)) => assert!(own, "{path}"),
            Err(Miss::Path) => assert!(!own, "{path}"),
            other => panic!("{path}: {other:?}"),
        }
    }
    assert_eq!(taker(&routes, "GET", "/.well-known/jwks.json"), "web", "on its own host");
}
