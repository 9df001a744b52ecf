//! What may be done while impersonating (constrained impersonation): everything that rules can allow. RBAC does not
//! know bodies, times or people, so this is wider than the policy, which decides first.

use std::collections::{BTreeMap, BTreeSet};

use super::Bound;
use crate::{config::raw, kubernetes::PolicyRule};

const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];

/// The sub-resources that `pods/*` and similar patterns of rules stand for; RBAC has no such pattern.
const OF_PODS: [&str; 10] =
    ["attach", "binding", "ephemeralcontainers", "eviction", "exec", "log", "portforward", "proxy", "resize", "status"];
const OF_NAMESPACES: [&str; 2] = ["finalize", "status"];
const OF_SIGNING_REQUESTS: [&str; 2] = ["approval", "status"];
const OF_OTHERS: [&str; 3] = ["finalizers", "scale", "status"];

/// Discovery, which every client requests, and the questions of `kubectl auth`. What `system:discovery` gives everybody
/// must be allowed here too.
const DISCOVERY: [&str; 11] = [
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/healthz",
    "/livez",
    "/openapi",
    "/openapi/*",
    "/readyz",
    "/version",
    "/version/",
];

/// The verbs of non-resource paths are methods; these only read.
const READ_URLS: [&str; 3] = ["get", "head", "options"];
const WRITE_URLS: [&str; 4] = ["post", "put", "patch", "delete"];

/// The name of the roles. One of them is for the whole cluster.
pub(super) const NAME: &str = "doorward-impersonated-actions";

pub(super) fn roles(root: &raw::Root) -> Vec<Bound<'_>> {
    let mut by_namespace: BTreeMap<Option<&str>, BTreeSet<PolicyRule>> = BTreeMap::new();
    let everywhere = by_namespace.entry(None).or_default();
    everywhere.insert(PolicyRule {
        urls: DISCOVERY.iter().map(|url| (*url).to_owned()).collect(),
        verbs: vec![acting("get")],
        ..PolicyRule::default()
    });
    let reviews = ["selfsubjectaccessreviews", "selfsubjectrulesreviews"];
    everywhere.insert(PolicyRule::new(&["authorization.k8s.io"], &reviews, &[&acting("create")]));
    everywhere.insert(PolicyRule::new(&["authentication.k8s.io"], &["selfsubjectreviews"], &[&acting("create")]));
    let goes = |rule: &raw::Rule, by: fn(&raw::Route) -> bool| {
        let named = |route: &&raw::Route| rule.on.routes.is_empty() || rule.on.routes.contains(&route.name);
        root.routes.iter().filter(named).any(by)
    };
    let leads_there = |rule: &&raw::Rule| {
        let is_elsewhere = rule.on.pages == Some(true) || rule.on.is_of_deliveries() || rule.on.token.is_some();
        !is_elsewhere && goes(rule, raw::Route::reaches_kubernetes)
    };
    let allows = root.rules.iter().filter(|rule| !matches!(rule.action, raw::Action::Deny)).filter(leads_there);
    for rule in allows {
        let is_on_kubernetes_route = goes(rule, |route| route.kind == raw::RouteKind::Kubernetes);
        // On routes for browsers, a rule must name tunnels.
        let opens_tunnels = goes(rule, |route| {
            route.kind == raw::RouteKind::Kubernetes && !route.schemes.contains(&raw::Scheme::Session)
        });
        for action in actions(rule, is_on_kubernetes_route, opens_tunnels) {
            let namespaces = if action.urls.is_empty() { namespaces(rule) } else { vec![None] };
            for namespace in namespaces {
                by_namespace.entry(namespace).or_default().insert(action.clone());
            }
        }
    }
    let role = |(namespace, rules): (_, BTreeSet<PolicyRule>)| Bound::new(NAME, namespace, rules.into_iter().collect());
    by_namespace.into_iter().map(role).collect()
}

fn acting(verb: &str) -> String {
    format!("impersonate-on:user-info:{verb}")
}

/// The namespaces of a rule, which its two conditions must both contain; `None` stands for all.
fn namespaces(rule: &raw::Rule) -> Vec<Option<&str>> {
    let listed = rule.on.kubernetes.as_ref().map(|on| on.namespaces.as_slice()).unwrap_or_default();
    let has_all = listed.is_empty() || listed.iter().any(|name| name == "*");
    match rule.on.namespace.as_deref() {
        Some(only) if has_all || listed.iter().any(|name| name == only) => vec![Some(only)],
        Some(_) => Vec::new(),
        None if has_all => vec![None],
        None => listed.iter().map(|name| Some(name.as_str())).collect(),
    }
}

/// Returns what a rule allows. On a route of a Dashboard, only resource paths and those in [`DISCOVERY`] reach the API
/// server.
fn actions(rule: &raw::Rule, is_on_kubernetes_route: bool, opens_tunnels: bool) -> Vec<PolicyRule> {
    let all = raw::OnKubernetes::default();
    let runs = raw::OnKubernetes {
        verbs: of_runs(rule.on.run.as_ref()),
        api_groups: vec!["tekton.dev".to_owned()],
        resources: ["pipelineruns", "taskruns", "customruns"].map(str::to_owned).to_vec(),
        ..raw::OnKubernetes::default()
    };
    let on = match (&rule.on.kubernetes, &rule.on.run) {
        (Some(on), _) => on,
        (None, Some(_)) => &runs,
        (None, None) => &all,
    };
    let or_all = |list: &[String]| if list.is_empty() { vec!["*".to_owned()] } else { list.to_vec() };
    let groups = or_all(&on.api_groups);
    let (mut tunnels, plain): (Vec<String>, Vec<String>) =
        resources(&on.resources).into_iter().partition(|r| is_tunnel(r));
    let mut actions = Vec::new();
    let verbs = verbs(&on.verbs, &rule.on.methods);
    let names = if on.names.iter().any(|name| name == "*") { Vec::new() } else { on.names.clone() };
    let is_of_resources = !on.resources.is_empty() || on.non_resource_urls.is_empty();
    // All of them belong to pods, nodes or services, which are in the core group, and none to a run.
    let is_of_core = rule.on.run.is_none() && groups.iter().any(|group| group.is_empty() || group == "*");
    let is_of_tunnels = opens_tunnels && is_of_resources && is_of_core && plain.iter().any(|resource| resource == "*");
    // The policy takes them for a create, whatever the method; a role has a verb for each method.
    if is_of_tunnels && among(&on.verbs, &READ, &WRITE).any(|verb| verb == "create") {
        let needed = ["get", "create"].into_iter().filter(|verb| is_asked_by(verb, &rule.on.methods));
        if needed.map(acting).any(|verb| !verbs.contains(&verb)) {
            tunnels.extend(["exec", "attach", "portforward"].map(|sub| format!("*/{sub}")));
        }
    }
    if !plain.is_empty() && !verbs.is_empty() && is_of_resources {
        actions.push(PolicyRule {
            groups: groups.clone(),
            resources: plain,
            resource_names: names.clone(),
            verbs,
            ..PolicyRule::default()
        });
    }
    if !tunnels.is_empty() {
        // A WebSocket is a GET, and SPDY a POST. From 1.35 on, a WebSocket must be allowed as a create too
        // (kubernetes/kubernetes#133515), but that is checked for the person alone.
        let verbs = ["get", "create"].map(acting).to_vec();
        actions.push(PolicyRule { groups, resources: tunnels, resource_names: names, verbs, ..PolicyRule::default() });
    }
    let verbs = url_verbs(&on.verbs, &rule.on.methods);
    let urls = urls(rule, on);
    if is_on_kubernetes_route && !urls.is_empty() && !verbs.is_empty() {
        actions.push(PolicyRule { urls, verbs, ..PolicyRule::default() });
    }
    actions
}

/// Returns the non-resource paths that a rule is about: those that it names, or all if it names nothing that only
/// resources have. They are in no namespace.
fn urls(rule: &raw::Rule, on: &raw::OnKubernetes) -> Vec<String> {
    let is_of_resources = rule.on.run.is_some()
        || rule.on.namespace.is_some()
        || [&on.api_groups, &on.resources, &on.namespaces, &on.names].into_iter().any(|list| !list.is_empty());
    match (on.non_resource_urls.as_slice(), rule.on.paths.as_slice()) {
        ([], _) if is_of_resources => Vec::new(),
        ([], []) => vec!["*".to_owned()],
        // To Kubernetes, a path is not among the paths below it.
        ([], paths) => {
            let above = paths.iter().filter_map(|path| path.strip_suffix("/*")).filter(|above| !above.is_empty());
            above.map(str::to_owned).chain(paths.iter().cloned()).collect()
        }
        (named, _) => named.to_vec(),
    }
}

/// Returns what the API server is asked for when runs are created, ended or changed.
fn of_runs(run: Option<&raw::OnRun>) -> Vec<String> {
    let does = run.map(|run| run.does.as_slice()).unwrap_or_default();
    let creates = does.is_empty() || does.iter().any(|intent| intent.makes_a_run());
    let patches = does.is_empty() || does.iter().any(|intent| *intent != raw::RunIntent::Create);
    let verbs = [("create", creates), ("patch", patches)].into_iter().filter(|(_, is_needed)| *is_needed);
    verbs.map(|(verb, _)| verb.to_owned()).collect()
}

/// Whether a request of one of these methods can ask for a verb.
fn is_asked_by(verb: &str, methods: &[String]) -> bool {
    let asking: &[&str] = match verb {
        "get" | "list" | "watch" => &["GET", "HEAD"],
        "create" => &["POST"],
        "update" => &["PUT"],
        "patch" => &["PATCH"],
        _ => &["DELETE"],
    };
    methods.is_empty() || methods.iter().any(|method| asking.contains(&method.as_str()))
}

fn verbs(named: &[String], methods: &[String]) -> Vec<String> {
    let all = among(named, &READ, &WRITE);
    all.filter(|verb| is_asked_by(verb, methods)).map(acting).collect()
}

fn url_verbs(named: &[String], methods: &[String]) -> Vec<String> {
    let all = among(named, &READ_URLS, &WRITE_URLS);
    let is_asked = |verb: &str| methods.is_empty() || methods.iter().any(|method| method.eq_ignore_ascii_case(verb));
    all.filter(|verb| is_asked(verb)).map(acting).collect()
}

/// Returns those of these verbs that a rule names, by themselves or as `read` and `write`.
fn among<'a>(
    named: &'a [String],
    reads: &'static [&'static str],
    writes: &'static [&'static str],
) -> impl Iterator<Item = &'static str> + 'a {
    let has = move |name: &str| named.is_empty() || named.iter().any(|verb| verb == name || verb == "*");
    let of = move |verbs: &'static [&'static str], group: &'static str| {
        verbs.iter().copied().filter(move |verb| has(group) || has(verb))
    };
    of(reads, "read").chain(of(writes, "write"))
}

/// Returns patterns of resources in the form of RBAC, which has only `*` and `*/sub`.
fn resources(named: &[String]) -> Vec<String> {
    if named.is_empty() {
        return vec!["*".to_owned()];
    }
    let each = named.iter().flat_map(|name| match name.strip_suffix("/*") {
        Some(resource) => {
            let subs = match resource {
                "pods" => &OF_PODS[..],
                "namespaces" => &OF_NAMESPACES,
                "certificatesigningrequests" => &OF_SIGNING_REQUESTS,
                _ => &OF_OTHERS,
            };
            subs.iter().map(|sub| format!("{resource}/{sub}")).collect()
        }
        None => vec![name.clone()],
    });
    each.collect()
}

fn is_tunnel(resource: &str) -> bool {
    resource.split_once('/').is_some_and(|(_, sub)| ["exec", "attach", "portforward", "proxy"].contains(&sub))
}
