//! Rules with expressions, and the warnings about them.

use super::*;

/// The number of warnings about the expression of a rule that contain this text.
fn warnings(rule: &str, text: &str) -> usize {
    let root = root(GROUND, &format!("rules: [{{id: a, {rule}}}]"));
    let of_when = warnings_of(&root).into_iter().filter(|problem| problem.at.as_str() == "/rules/0/when");
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
        ("when: \"size(kubernetes.name) > 0 && kubernetes.name != 'vault'\", do: allow", 0),
        ("when: \"kubernetes.verb == 'get' && kubernetes.name == 'vault'\", do: deny", 0),
        ("on: {kubernetes: {verbs: [get, update, patch]}}, when: \"kubernetes.name == 'vault'\", do: deny", 0),
        ("on: {kubernetes: {verbs: [delete]}}, when: \"kubernetes.name == 'vault'\", do: deny", 1),
        ("on: {kubernetes: {verbs: [create]}}, when: \"kubernetes.name == 'vault'\", do: deny", 1),
        ("on: {methods: [POST]}, when: \"kubernetes.name == 'vault'\", do: deny", 1),
        ("on: {methods: [PUT, PATCH]}, when: \"kubernetes.name == 'vault'\", do: deny", 0),
        ("on: {run: {does: [cancel]}}, when: \"kubernetes.name == 'vault'\", do: deny", 0),
        ("on: {kubernetes: {resources: [pods/exec]}}, when: \"kubernetes.name == 'vault'\", do: deny", 0),
        ("on: {kubernetes: {names: [a, vault]}}, when: \"kubernetes.name == 'vault'\", do: deny", 0),
        ("on: {routes: [web]}, when: \"kubernetes.name == 'vault'\", do: deny", 0),
    ] {
        assert_eq!(warnings(rule, "have an empty `kubernetes.name`"), expected, "{rule}");
    }
}

/// A deny for `prod` by such an expression shut everybody whom it is about out of every other route.
#[test]
fn an_expression_on_what_requests_of_a_route_lack_is_warned_about() {
    const VERB: &str = "when: \"kubernetes.verb == 'get'\"";
    const BRANCH: &str = "when: \"delivery.branch == 'main'\"";
    for (rule, expected) in [
        (format!("{VERB}, do: deny"), 1),
        (format!("on: {{routes: [api, web]}}, {VERB}, do: allow"), 1),
        (format!("on: {{routes: [api]}}, {VERB}, do: deny"), 0),
        (format!("on: {{kubernetes: {{resources: [pods]}}}}, {VERB}, do: deny"), 0),
        (format!("on: {{paths: [/api/*]}}, {VERB}, do: deny"), 0),
        (format!("on: {{namespace: dev}}, {VERB}, do: deny"), 0),
        // There is an EventListener in it.
        (format!("on: {{namespace: prod}}, {VERB}, do: deny"), 1),
        (format!("on: {{namespace: prod}}, who: {{issuers: [corp]}}, {VERB}, do: deny"), 0),
        ("when: \"has(kubernetes.verb) && kubernetes.verb == 'get'\", do: deny".to_owned(), 0),
        ("when: \"request.route == 'api' && kubernetes.verb == 'get'\", do: deny".to_owned(), 0),
        (format!("{BRANCH}, do: deny"), 1),
        (format!("on: {{event: [push]}}, {BRANCH}, do: deny"), 0),
        (format!("who: {{webhooks: [gh]}}, {BRANCH}, do: allow"), 0),
        (format!("who: {{repositories: ['github:1']}}, {BRANCH}, do: allow"), 0),
        ("when: \"principal.issuer == 'webhook:gh' && delivery.branch == 'main'\", do: deny".to_owned(), 0),
    ] {
        assert_eq!(warnings(&rule, "may have no `"), expected, "{rule}");
    }
}

/// Where people register themselves, an address that nobody has verified may be that of anybody.
#[test]
fn an_address_that_nobody_may_have_verified_is_warned_about() {
    const WHO: &str = "who: {claims: {email: [a@corp.example]}}";
    const WHEN: &str = "when: \"principal.claims.email == 'a@corp.example'\"";
    let rule = |rule: &str| format!("rules: [{{id: a, {rule}}}]");
    for (issuer, policy, expected) in [
        ("kind: human", rule(&format!("{WHO}, do: allow")), Some("/rules/0/who/claims/email")),
        ("kind: human", rule("who: {claims: {'/email': [x]}}, do: allow"), Some("/rules/0/who/claims/~1email")),
        ("kind: human", rule(&format!("{WHEN}, do: allow")), Some("/rules/0/when")),
        (
            "kind: human",
            format!("grants: [{{id: a, {WHO}, kubernetes_groups: [g]}}]"),
            Some("/grants/0/who/claims/email"),
        ),
        ("kind: human", rule(&format!("{WHO}, do: deny")), None),
        ("kind: human", rule(&format!("{WHEN}, do: deny")), None),
        ("kind: human", rule("who: {claims: {email: [x], email_verified: [true]}}, do: allow"), None),
        ("kind: human", rule(&format!("{WHO}, when: principal.claims.email_verified, do: allow")), None),
        ("kind: human", rule("when: \"has(principal.email) && principal.email == 'x'\", do: allow"), None),
        ("required_claims: {email_verified: [true]}", rule(&format!("{WHO}, do: allow")), None),
        ("preset: github_oauth", rule(&format!("{WHEN}, do: allow")), None),
    ] {
        let root = root(&ONE_ISSUER.replacen("kind: human", issuer, 1), &policy);
        let warnings = warnings_of(&root);
        let told: Vec<&str> = warnings.iter().map(|problem| problem.at.as_str()).collect();
        assert_eq!(told, Vec::from_iter(expected), "{issuer} {policy}");
    }
}
