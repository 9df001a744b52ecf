//! Requests that no rule allows unless it names them: those that lead past the policy, or to credentials that outlive
//! it. A rule with wildcards, or without `kubernetes`, does not cover them.

use std::fmt;

use crate::{config::raw, kubernetes::Attributes, tekton};

use super::{RequestView, condition::Reading, kubernetes::Resource, names::Names};

/// Sub-resources that are guarded on every route: another server through the API server, a token for any service
/// account, and a container of one's own within somebody else's pod.
const SUBRESOURCES: [(&str, &str); 3] = [("*", "proxy"), ("serviceaccounts", "token"), ("pods", "ephemeralcontainers")];

/// Sub-resources that are guarded on routes for browsers, as no page of a dashboard needs them and a script injected on
/// its host could use them all, and for rules on reading methods alone: a WebSocket opens a shell with a GET.
const BROWSED: [&str; 3] = ["exec", "attach", "portforward"];

/// Methods by which a rule means to let read.
const READING: [&str; 3] = ["GET", "HEAD", "OPTIONS"];

/// Resources that are guarded on every route: credentials, and objects that give rights. Secrets are among them because
/// one of type `kubernetes.io/service-account-token` is a token that never expires, which only its body shows.
const RESOURCES: [(&str, &str); 7] = [
    ("", "secrets"),
    ("certificates.k8s.io", "certificatesigningrequests"),
    ("certificates.k8s.io", "podcertificaterequests"),
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
];

/// Guarded on every route against writes, as are sub-resources of runs: Tekton accepts a request that has the name it
/// would have given its own, whoever created it and whatever it asks for, and runs its content (`CRDRequester.Submit`).
const FETCHED: (&str, &str) = ("resolution.tekton.dev", "resolutionrequests");

/// The implied condition of each rule: it must name what is guarded.
#[derive(Debug)]
pub(super) struct Guard {
    /// Routes of dashboards, and other routes that accept the session cookie of a browser.
    browsed: Names,
    /// Whether the rule is for methods that read, and no others.
    reads_only: bool,
    /// Whether `proxy` is among the verbs of the rule.
    verb_proxy: bool,
    named: Box<[Resource]>,
}

/// A resource that must be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guarded<'a> {
    resource: &'a str,
    subresource: &'a str,
}

impl Guard {
    /// `on` is that of the rule. Invalid parts of it are reported elsewhere.
    pub(super) fn new(on: &raw::On, root: &raw::Root) -> Self {
        let raw = on.kubernetes.as_ref();
        let browsed: Vec<String> = root
            .routes
            .iter()
            .filter(|route| route.kind == raw::RouteKind::Dashboard || route.schemes.contains(&raw::Scheme::Session))
            .map(|route| route.name.clone())
            .collect();
        let named = raw.map(|raw| raw.resources.as_slice()).unwrap_or_default();
        Self {
            browsed: Names::new(&browsed),
            reads_only: !on.methods.is_empty() && on.methods.iter().all(|method| READING.contains(&method.as_str())),
            verb_proxy: raw.is_some_and(|raw| raw.verbs.iter().any(|verb| verb == "proxy")),
            named: named.iter().filter_map(|text| Resource::parse(text).ok()).collect(),
        }
    }

    /// Returns the guarded resource that a request asks for and the rule does not name. A deny need not name it.
    pub(super) fn missed<'a>(&self, view: &RequestView<'a>, reading: Reading) -> Option<Guarded<'a>> {
        if reading == Reading::Wide {
            return None;
        }
        let attributes = view.kubernetes?;
        let guarded = guarded(attributes, || self.reads_only || self.browsed.contains(view.route))?;
        let is_named = (attributes.verb == "proxy" && self.verb_proxy)
            || self.named.iter().any(|pattern| pattern.names(guarded.resource, guarded.subresource));
        (!is_named).then_some(guarded)
    }
}

/// The part of a request that must be named. `browsed`: whether it comes by a route for browsers, or the rule is for
/// reading methods alone.
fn guarded(a: &Attributes, browsed: impl Fn() -> bool) -> Option<Guarded<'_>> {
    if !a.is_resource {
        return None;
    }
    let subresource = if a.is_proxy() { "proxy" } else { &a.subresource };
    let is = |(resource, sub): &(&str, &str)| (*resource == "*" || *resource == a.resource) && *sub == subresource;
    if SUBRESOURCES.iter().any(is) || (BROWSED.contains(&subresource) && browsed()) || tekton::writes_part(a) {
        return Some(Guarded { resource: &a.resource, subresource });
    }
    let asked: (&str, &str) = (&a.api_group, &a.resource);
    let is = RESOURCES.contains(&asked) || (asked == FETCHED && a.brings_object());
    is.then_some(Guarded { resource: &a.resource, subresource: "" })
}

impl fmt::Display for Guarded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.resource)?;
        if !self.subresource.is_empty() {
            write!(f, "/{}", self.subresource)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guarded_resources_must_be_named() {
        const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
        const TEKTON: &str = "/apis/tekton.dev/v1/namespaces/a";
        const FETCHED: &str = "/apis/resolution.tekton.dev/v1beta1/namespaces/a/resolutionrequests";
        for (row, method, target, names, passing) in [
            ("kubernetes:P6", "GET", "/api/v1/namespaces/a/services/x:80/proxy/y", "services/proxy", "services"),
            ("kubernetes:P6", "GET", "/api/v1/namespaces/a/services/x:80/proxy/y", "'*/proxy'", "'*'"),
            ("kubernetes:P6", "GET", "/api/v1/nodes/n/proxy/exec/a", "nodes/proxy", "'nodes/*'"),
            ("kubernetes:P6", "GET", "/api/v1/proxy/namespaces/a/pods/p", "pods/proxy", "pods"),
            (
                "",
                "POST",
                "/api/v1/namespaces/a/serviceaccounts/s/token",
                "serviceaccounts/token",
                "'serviceaccounts/*'",
            ),
            ("", "POST", "/api/v1/namespaces/a/serviceaccounts/s/token", "'*/token'", "'*'"),
            ("", "PATCH", "/api/v1/namespaces/a/pods/p/ephemeralcontainers", "pods/ephemeralcontainers", "'pods/*'"),
            ("", "GET", "/api/v1/namespaces/a/secrets/s", "secrets", "'*'"),
            ("", "GET", "/api/v1/secrets", "secrets", "pods"),
            ("", "POST", "/api/v1/namespaces/a/secrets", "secrets", "'secrets/*'"),
            (
                "",
                "PUT",
                "/apis/certificates.k8s.io/v1/certificatesigningrequests/c/approval",
                "certificatesigningrequests",
                "'*'",
            ),
            (
                "",
                "POST",
                "/apis/certificates.k8s.io/v1beta1/namespaces/a/podcertificaterequests",
                "podcertificaterequests",
                "'*'",
            ),
            // Tekton runs the code in the status, whatever the run refers to.
            ("", "PATCH", &format!("{TEKTON}/pipelineruns/r/status"), "pipelineruns/status", "pipelineruns"),
            ("", "PUT", &format!("{TEKTON}/pipelineruns/r/status"), "'*/status'", "'pipelineruns/*'"),
            ("", "PATCH", &format!("{TEKTON}/taskruns/t/status"), "taskruns/status", "'*'"),
            ("", "PATCH", &format!("{TEKTON}/customruns/c/status"), "customruns/status", "'*'"),
            ("", "POST", FETCHED, "resolutionrequests", "'*'"),
            ("", "PUT", &format!("{FETCHED}/r"), "resolutionrequests", "'resolutionrequests/*'"),
            ("", "PATCH", &format!("{FETCHED}/r/status"), "resolutionrequests", "'*/status'"),
            ("", "POST", &format!("{RBAC}/clusterrolebindings"), "clusterrolebindings", "clusterroles"),
            ("", "POST", &format!("{RBAC}/namespaces/a/rolebindings"), "rolebindings", "'*'"),
            ("", "DELETE", &format!("{RBAC}/namespaces/a/roles"), "roles", "rolebindings"),
            ("", "PATCH", &format!("{RBAC}/clusterroles/view"), "clusterroles", "'*'"),
        ] {
            assert_eq!(missed(method, target, names, "api"), None, "{row} {target} {names}");
            assert!(missed(method, target, passing, "api").is_some(), "{row} {target} {passing}");
        }
        for (method, target) in [
            ("POST", "/api/v1/namespaces/a/pods/p/exec"),
            ("GET", "/api/v1/namespaces/a/pods/p/log"),
            ("GET", "/apis/example.com/v1/namespaces/a/secrets/s"),
            ("GET", "/api/v1/namespaces/a/serviceaccounts/s"),
            ("GET", "/version"),
            ("GET", &format!("{TEKTON}/pipelineruns/r/status")),
            ("PATCH", &format!("{TEKTON}/pipelineruns/r")),
            ("PATCH", &format!("{TEKTON}/pipelines/p/status")),
            ("GET", FETCHED),
            ("DELETE", &format!("{FETCHED}/r")),
        ] {
            assert_eq!(missed(method, target, "'*'", "api"), None, "{target}");
        }
    }

    #[test]
    fn a_browser_reaches_into_a_container_only_where_a_rule_names_it() {
        for sub in ["exec", "attach", "portforward"] {
            let target = format!("/api/v1/namespaces/a/pods/p/{sub}");
            assert_eq!(missed("GET", &target, "'*'", "board").as_deref(), Some(&*format!("pods/{sub}")));
            assert_eq!(missed("GET", &target, &format!("pods/{sub}"), "board"), None);
            assert_eq!(missed("GET", &target, "'*'", "api"), None);
        }
    }

    #[test]
    fn a_rule_that_lets_read_by_methods_opens_no_shell() {
        for sub in ["exec", "attach", "portforward"] {
            let target = format!("/api/v1/namespaces/a/pods/p/{sub}");
            let missed = |on: &str| missed_on(on, "GET", &target, "api");
            let guarded = format!("pods/{sub}");
            for reading in [
                "{methods: [GET, HEAD]}",
                "{methods: [GET, OPTIONS]}",
                "{methods: [GET], kubernetes: {resources: ['*', 'pods/*']}}",
                "{methods: [GET], kubernetes: {verbs: ['*']}}",
            ] {
                assert_eq!(missed(reading).as_deref(), Some(&*guarded), "{reading}");
            }
            assert_eq!(missed(&format!("{{methods: [GET], kubernetes: {{resources: [{guarded}]}}}}")), None);
            assert_eq!(missed("{methods: [GET, POST]}"), None);
            assert_eq!(missed("{}"), None);
        }
        assert_eq!(missed_on("{methods: [GET]}", "GET", "/api/v1/namespaces/a/pods/p/log", "api"), None);
    }

    #[test]
    fn every_route_that_accepts_a_cookie_counts_as_a_browser_route() {
        let routes = "routes:
  - {name: api, kind: kubernetes, hosts: [a], schemes: [bearer], upstream: u}
  - {name: shell, kind: kubernetes, hosts: [b], schemes: [bearer, session], upstream: u}
  - {name: board, kind: dashboard, hosts: [c], schemes: [bearer], upstream: u}";
        let guard = Guard::new(&raw::On::default(), &serde_saphyr::from_str(routes).unwrap());
        let browsed = |name: &str| guard.browsed.contains(name);
        assert_eq!([browsed("api"), browsed("shell"), browsed("board")], [false, true, true]);
    }

    #[test]
    fn a_rule_with_the_verb_names_proxying() {
        let target = "/api/v1/proxy/namespaces/a/pods/p";
        assert_eq!(missed_by("{verbs: [proxy]}", "GET", target, "api"), None);
        assert!(missed_by("{verbs: ['*']}", "GET", target, "api").is_some());
        let sub = "/api/v1/namespaces/a/pods/p/proxy/x";
        assert!(missed_by("{verbs: [proxy]}", "GET", sub, "api").is_some());
    }

    fn missed(method: &str, target: &str, resources: &str, route: &str) -> Option<String> {
        missed_by(&format!("{{resources: [{resources}]}}"), method, target, route)
    }

    fn missed_by(kubernetes: &str, method: &str, target: &str, route: &str) -> Option<String> {
        missed_on(&format!("{{kubernetes: {kubernetes}}}"), method, target, route)
    }

    fn missed_on(yaml: &str, method: &str, target: &str, route: &str) -> Option<String> {
        let method = method.parse().unwrap();
        let attributes = Attributes::parse(&method, target, None).unwrap();
        let on: raw::On = serde_saphyr::from_str(yaml).unwrap();
        let mut guard = Guard::new(&on, &raw::Root::default());
        guard.browsed = Names::new(&["board".to_owned()]);
        let view = RequestView {
            route,
            kind: raw::RouteKind::Kubernetes,
            host: "h",
            path: target,
            method: &method,
            upgrade: false,
            address: [127, 0, 0, 1].into(),
            event_listener: None,
            kubernetes: Some(&attributes),
            run: None,
            delivery: None,
            trigger: None,
            token: None,
            now: crate::clock::Timestamp::MAX,
        };
        assert_eq!(guard.missed(&view, Reading::Wide), None, "a deny need not name it");
        guard.missed(&view, Reading::Strict).map(|guarded| guarded.to_string())
    }
}
