//! Rules with expressions, and the warnings about them.

use super::*;

/// The number of warnings about the expression of a rule that contain this text.
fn warnings(rule: &str, text: &str) -> usize {
    let root = root(GROUND, &format!("rules: [{{id: a, {rule}}}]"));
    let mut resolver = Resolver::new(Path::new("/"));
    assert!(Policy::compile(&root, &mut resolver).is_some(), "{rule}: {:?}", resolver.report.problems());
    let of_when = resolver.report.problems().iter().filter(|problem| problem.at.as_str() == "/rules/0/when");
    of_when.filter(|problem| problem.message.contains(text) && problem.help.is_some()).count()
}

/// Such a request had the namespace `""`, with which it got round the deny and met the allow.
#[test]
fn a_request_about_all_namespaces_fails_an_expression_on_the_namespace() {
    decide_all(
        GROUND,
        "
rules:
  - {id: dev, on: {routes: [api]}, who: {issuers: [corp], groups: [dev]}, do: allow}
  - {id: prod, on: {kubernetes: {resources: [pods]}}, when: \"kubernetes.namespace.startsWith('prod')\", who: {issuers: [corp], groups: [dev]}, do: deny}
  - {id: but-prod, on: {routes: [api]}, when: \"kubernetes.namespace != 'prod'\", who: {issuers: [corp], groups: [ops]}, do: allow}
  - {id: tested, on: {routes: [api]}, when: \"!has(kubernetes.namespace) || kubernetes.namespace == 'prod'\", who: {issuers: [corp], groups: [sre]}, do: deny}
tests:
  - {name: the denied namespace, principal: &dev {issuer: corp, groups: [dev]}, request: {route: api, path: /api/v1/namespaces/prod/pods}, expect: {outcome: deny, rule: prod}}
  - {name: another namespace, principal: *dev, request: {route: api, path: /api/v1/namespaces/ci/pods}, expect: {outcome: allow, rule: dev}}
  - {name: all namespaces, principal: *dev, request: {route: api, path: /api/v1/pods}, expect: {outcome: deny}}
  - {name: all namespaces of what the deny is not about, principal: *dev, request: {route: api, path: /api/v1/configmaps}, expect: {outcome: allow, rule: dev}}
  - {name: an allowed namespace, principal: &ops {issuer: corp, groups: [ops]}, request: {route: api, path: /api/v1/namespaces/ci/pods}, expect: {outcome: allow, rule: but-prod}}
  - {name: all namespaces by an allow, principal: *ops, request: {route: api, path: /api/v1/pods}, expect: {outcome: deny}}
  - {name: what has no namespace, principal: *ops, request: {route: api, path: /api/v1/nodes}, expect: {outcome: allow, rule: but-prod}}
  - {name: discovery, principal: *ops, request: {route: api, path: /apis/tekton.dev/v1}, expect: {outcome: allow, rule: but-prod}}
  - {name: the version, principal: *ops, request: {route: api, path: /version}, expect: {outcome: allow, rule: but-prod}}
  - {name: a deny that tests for it, principal: {issuer: corp, groups: [dev, sre]}, request: {route: api, path: /api/v1/configmaps}, expect: {outcome: deny, rule: tested}}
",
    );
}

#[test]
fn an_expression_that_fails_for_requests_about_all_namespaces_is_warned_about() {
    const WHEN: &str = "when: \"kubernetes.namespace == 'a'\"";
    for (rule, expected) in [
        (format!("{WHEN}, do: deny"), 1),
        (format!("{WHEN}, do: allow"), 1),
        ("when: \"!has(kubernetes.namespace) || kubernetes.namespace == 'a'\", do: deny".to_owned(), 0),
        ("when: \"kubernetes.verb == 'create' && kubernetes.namespace == 'a'\", do: deny".to_owned(), 0),
        (format!("on: {{kubernetes: {{verbs: [create]}}}}, {WHEN}, do: deny"), 0),
        (format!("on: {{kubernetes: {{verbs: [read]}}}}, {WHEN}, do: deny"), 1),
        // A deny of `delete` is about `deletecollection` too.
        (format!("on: {{kubernetes: {{verbs: [delete]}}}}, {WHEN}, do: deny"), 1),
        (format!("on: {{kubernetes: {{verbs: [delete]}}}}, {WHEN}, do: allow"), 0),
        (format!("on: {{kubernetes: {{namespaces: [a, b]}}}}, {WHEN}, do: deny"), 1),
        (format!("on: {{kubernetes: {{namespaces: [a, b]}}}}, {WHEN}, do: allow"), 0),
        (format!("on: {{namespace: a}}, {WHEN}, do: allow"), 0),
        (format!("on: {{kubernetes: {{resources: [nodes, pods/log]}}}}, {WHEN}, do: deny"), 0),
        (format!("on: {{kubernetes: {{resources: [nodes, pods]}}}}, {WHEN}, do: deny"), 1),
        (format!("on: {{kubernetes: {{non_resource_urls: [/version]}}}}, {WHEN}, do: deny"), 0),
        (format!("on: {{run: {{does: [cancel]}}}}, {WHEN}, do: deny"), 0),
        (format!("on: {{routes: [web]}}, {WHEN}, do: deny"), 0),
        (format!("on: {{paths: [/api/v1/namespaces/a/*]}}, {WHEN}, do: deny"), 0),
        (format!("on: {{methods: [POST]}}, {WHEN}, do: deny"), 0),
        (format!("on: {{methods: [GET, POST]}}, {WHEN}, do: deny"), 1),
    ] {
        assert_eq!(warnings(&rule, "requests about all namespaces have no"), expected, "{rule}");
    }
}

/// `kubectl get` and `kubectl delete --all` got round such a rule without a word from `check`.
#[test]
fn an_expression_on_the_name_that_requests_without_one_get_round_is_warned_about() {
    for (rule, expected) in [
        ("when: \"kubernetes.name == 'vault'\", do: deny", 1),
        ("when: \"kubernetes.name in ['vault']\", do: {approve: {by: {kind: human}}}", 1),
        ("when: \"kubernetes.name == 'vault'\", do: allow", 0),
        ("when: \"kubernetes.name != 'vault'\", do: deny", 0),
        ("when: \"kubernetes.name != 'vault'\", do: allow", 1),
        ("when: \"!kubernetes.name.startsWith('vault')\", do: allow", 1),
        ("when: \"!(principal.kind in ['agent']) && kubernetes.name == 'a'\", do: allow", 0),
        ("when: \"['a'].exists(p, kubernetes.name.startsWith(p))\", do: allow", 0),
        ("when: \"['a'].exists(p, kubernetes.name.startsWith(p))\", do: deny", 1),
        ("when: \"kubernetes.name == '' || kubernetes.name == 'vault'\", do: deny", 0),
        ("when: \"kubernetes.name != '' && kubernetes.name != 'vault'\", do: allow", 0),
        ("when: \"kubernetes.verb == 'get' && kubernetes.name == 'vault'\", do: deny", 0),
        ("on: {kubernetes: {verbs: [get, update, patch]}}, when: \"kubernetes.name == 'vault'\", do: deny", 0),
        ("on: {kubernetes: {verbs: [delete]}}, when: \"kubernetes.name == 'vault'\", do: deny", 1),
        ("on: {kubernetes: {resources: [pods/exec]}}, when: \"kubernetes.name == 'vault'\", do: deny", 0),
        ("on: {kubernetes: {names: [a, vault]}}, when: \"kubernetes.name == 'vault'\", do: deny", 0),
        ("on: {routes: [web]}, when: \"kubernetes.name == 'vault'\", do: deny", 0),
    ] {
        assert_eq!(warnings(rule, "have an empty `kubernetes.name`"), expected, "{rule}");
    }
}
