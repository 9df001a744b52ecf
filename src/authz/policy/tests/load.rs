//! Errors for which a policy is refused at load: all of them are reported, with their places.

use super::*;
use crate::config::report::Severity;

/// The places and texts of all errors.
fn problems(ground: &str, policy: &str) -> Vec<String> {
    match compile(&root(ground, policy)) {
        Ok(_) => Vec::new(),
        Err(report) => {
            let errors = report.problems().iter().filter(|problem| problem.severity == Severity::Error);
            errors.map(|p| format!("{} {}", p.at, p.message)).collect()
        }
    }
}

/// Asserts that each policy has one error. A row is the attack, the policy, and the place and words of the error.
fn assert_reported(rows: &[(&str, &str, &str, &str)]) {
    for &(row, policy, at, message) in rows {
        let found = problems(GROUND, policy);
        let is_told = found
            .iter()
            .any(|p| p.strip_prefix(at).is_some_and(|rest| rest.starts_with(' ') && rest.contains(message)));
        assert!(is_told, "{row} {policy}\nexpected {at} {message}\ngot {found:#?}");
        assert_eq!(found.len(), 1, "{policy} {found:#?}");
    }
}

#[test]
fn an_id_that_is_no_id_or_another_rule_has_is_reported() {
    assert_reported(&[
        ("", "rules: [{id: a, do: allow}, {id: a, do: deny}]", "/rules/1/id", "another rule has the id"),
        ("", "rules: [{id: '', do: allow}]", "/rules/0/id", "cannot be the id"),
    ]);
}

#[test]
fn mistakes_in_on_are_reported_at_their_paths() {
    assert_reported(&[
        ("", "rules: [{id: a, on: {routes: [wbe]}, do: allow}]", "/rules/0/on/routes/0", "no route `wbe`"),
        ("", "rules: [{id: a, on: {event_listener: x}, do: allow}]", "/rules/0/on/event_listener", "no event listener"),
        (
            "",
            "rules: [{id: a, on: {pages: true, kubernetes: {verbs: [get]}}, do: allow}]",
            "/rules/0/on/pages",
            "do not go to the API server",
        ),
        (
            "",
            "rules: [{id: a, on: {pages: true, run: {does: [cancel]}}, do: allow}]",
            "/rules/0/on/pages",
            "do not go to the API server",
        ),
        (
            "",
            "rules: [{id: a, on: {pages: true, routes: [web]}, do: allow}]",
            "/rules/0/on/routes",
            "a `dashboard` route",
        ),
        ("", "rules: [{id: a, on: {methods: [get]}, do: allow}]", "/rules/0/on/methods/0", "did you mean `GET`"),
        ("", "rules: [{id: a, on: {methods: [PSOT]}, do: deny}]", "/rules/0/on/methods/0", "did you mean `POST`"),
        (
            "",
            "rules: [{id: a, on: {methods: [MKCOL]}, do: deny}]",
            "/rules/0/on/methods/0",
            "in `methods` of the route",
        ),
        ("", "rules: [{id: a, on: {hosts: ['https://x']}, do: allow}]", "/rules/0/on/hosts/0", "not a host name"),
        ("", "rules: [{id: a, on: {paths: ['/a*b']}, do: allow}]", "/rules/0/on/paths/0", "alone at the end"),
        ("", "rules: [{id: a, on: {branch: ['*x']}, do: allow}]", "/rules/0/on/branch/0", "at its end"),
        (
            "",
            "rules: [{id: a, on: {time: {from: '8', to: '18:00'}}, do: allow}]",
            "/rules/0/on/time/from",
            "time of day",
        ),
        ("", "rules: [{id: a, on: {namespace: 'team-*'}, do: allow}]", "/rules/0/on/namespace", "not a valid name"),
        (
            "",
            "rules: [{id: a, on: {kubernetes: {verbs: [lits]}}, do: allow}]",
            "/rules/0/on/kubernetes/verbs/0",
            "no verb",
        ),
        ("", "rules: [{id: a, on: {event: [push], kubernetes: {}}, do: allow}]", "/rules/0/on/kubernetes", "both"),
        (
            "",
            "rules: [{id: a, on: {routes: [web], kubernetes: {}}, do: deny}]",
            "/rules/0/on/routes",
            "leads to a Kubernetes",
        ),
        ("", "rules: [{id: a, on: {routes: [web], event: [push]}, do: deny}]", "/rules/0/on/routes", "webhook"),
        ("", "rules: [{id: a, on: {run: {params: {x: []}}}, do: deny}]", "/rules/0/on/run/params/x", "empty list"),
        ("", "rules: [{id: a, on: {run: {labels: {x: []}}}, do: deny}]", "/rules/0/on/run/labels/x", "empty list"),
    ]);
}

#[test]
fn mistakes_in_who_are_reported_at_their_paths() {
    assert_reported(&[
        ("", "rules: [{id: a, who: {issuers: [crop]}, do: allow}]", "/rules/0/who/issuers/0", "no issuer `crop`"),
        ("", "rules: [{id: a, who: {webhooks: [hg]}, do: allow}]", "/rules/0/who/webhooks/0", "no webhook `hg`"),
        ("attacks:Z1", "rules: [{id: a, who: {groups: [x]}, do: allow}]", "/rules/0/who/groups", "several issuers"),
        ("attacks:Z1", "rules: [{id: a, who: {groups: [x]}, do: deny}]", "/rules/0/who/groups", "several issuers"),
        (
            "attacks:Z1",
            "rules: [{id: a, who: {scopes: [x], kind: agent}, do: allow}]",
            "/rules/0/who/scopes",
            "several issuers",
        ),
        (
            "attacks:Z1",
            "rules: [{id: a, who: {claims: {x: [1]}}, do: allow}]",
            "/rules/0/who/claims",
            "several issuers",
        ),
        ("attacks:Z1", "rules: [{id: a, who: {subjects: [x]}, do: allow}]", "/rules/0/who/subjects", "several issuers"),
        ("attacks:Z1", "rules: [{id: a, who: {clients: [x]}, do: allow}]", "/rules/0/who/clients", "several issuers"),
        (
            "attacks:Z1",
            "rules: [{id: a, who: {on_behalf_of: {groups: [x]}}, do: allow}]",
            "/rules/0/who/on_behalf_of",
            "several issuers",
        ),
        (
            "attacks:Z41",
            "rules: [{id: a, who: {issuers: [corp], scopes: [x], kind: human}, do: allow}]",
            "/rules/0/who/scopes",
            "a scope alone",
        ),
        (
            "",
            "rules: [{id: a, who: {anonymous: true, kind: agent}, do: allow}]",
            "/rules/0/who/anonymous",
            "no other condition",
        ),
        ("", "rules: [{id: a, who: {issuers: [corp], webhooks: [gh]}, do: allow}]", "/rules/0/who/webhooks", "both"),
        (
            "",
            "rules: [{id: a, who: {webhooks: [gh], groups: [x]}, do: allow}]",
            "/rules/0/who/groups",
            "a webhook gives no",
        ),
        (
            "",
            "rules: [{id: a, who: {repositories: [owner/name]}, do: allow}]",
            "/rules/0/who/repositories/0",
            "form `github:1234`",
        ),
        (
            "",
            "rules: [{id: a, who: {repositories: ['gitbuh:1']}, do: allow}]",
            "/rules/0/who/repositories/0",
            "kind of repository",
        ),
        (
            "",
            "rules: [{id: a, who: {service_accounts: [x]}, do: allow}]",
            "/rules/0/who/service_accounts/0",
            "namespace/name",
        ),
        (
            "",
            "rules: [{id: a, who: {issuers: [corp], service_accounts: [a/b]}, do: allow}]",
            "/rules/0/who/service_accounts",
            "no issuer gives",
        ),
        (
            "",
            "rules: [{id: a, who: {issuers: [corp], claims: {x: []}}, do: allow}]",
            "/rules/0/who/claims/x",
            "empty list",
        ),
        (
            "",
            "rules: [{id: a, who: {issuers: [corp], claims: {'': [y]}}, do: allow}]",
            "/rules/0/who/claims/",
            "the name of the claim is empty",
        ),
        (
            "",
            "rules: [{id: a, who: {issuers: [corp], claims: {'/': [y]}}, do: allow}]",
            "/rules/0/who/claims/~1",
            "the name of the claim is empty",
        ),
        ("", "rules: [{id: a, who: {issuers: [corp], groups: ['']}, do: allow}]", "/rules/0/who/groups/0", "blank"),
        (
            "",
            "rules: [{id: a, who: {issuers: [corp], groups: [x], on_behalf_of: {}}, do: allow}]",
            "/rules/0/who/groups",
            "whose groups",
        ),
        (
            "",
            "rules: [{id: a, who: {issuers: [corp], users: [x], on_behalf_of: {}}, do: allow}]",
            "/rules/0/who/users",
            "whose name",
        ),
    ]);
}

#[test]
fn mistakes_in_need_and_do_are_reported_at_their_paths() {
    assert_reported(&[
        ("", "rules: [{id: a, need: {acr: [x]}, do: deny}]", "/rules/0/need", "only an allow"),
        ("", "rules: [{id: a, need: {mfa: {max_age: 0}}, do: allow}]", "/rules/0/need/mfa/max_age", "that fresh"),
        ("", "rules: [{id: a, do: {approve: {by: {}}}}]", "/rules/0/do/approve/by", "nobody is named"),
        ("", "rules: [{id: a, do: {approve: {by: {kind: agent}}}}]", "/rules/0/do/approve/by/kind", "only people"),
        ("", "rules: [{id: a, do: {approve: {by: {kind: workload}}}}]", "/rules/0/do/approve/by/kind", "only people"),
        (
            "",
            "rules: [{id: a, do: {approve: {by: {kind: human}, count: 0}}}]",
            "/rules/0/do/approve/count",
            "at least one person",
        ),
        (
            "",
            "rules: [{id: a, do: {approve: {by: {kind: human}, grant: 25h}}}]",
            "/rules/0/do/approve/grant",
            "between",
        ),
        ("", "rules: [{id: a, do: {approve: {by: {kind: human}, grant: 0s}}}]", "/rules/0/do/approve/grant", "between"),
    ]);
}

#[test]
fn mistakes_in_when_are_reported_at_its_path() {
    assert_reported(&[
        ("", "rules: [{id: a, when: 'principal.groups ==', do: allow}]", "/rules/0/when", "does not parse"),
        ("", "rules: [{id: a, when: 'user.name == \"x\"', do: allow}]", "/rules/0/when", "no variable `user`"),
        ("", "rules: [{id: a, when: 'principal.subject', do: allow}]", "/rules/0/when", "not a bool"),
    ]);
}

#[test]
fn mistakes_in_grants_are_reported_at_their_paths() {
    assert_reported(&[
        (
            "attacks:Z1",
            "grants: [{id: a, who: {groups: [x]}, kubernetes_groups: [g]}]",
            "/grants/0/who/groups",
            "several issuers",
        ),
        (
            "attacks:Z41",
            "grants: [{id: a, who: {issuers: [corp], scopes: [x]}, kubernetes_groups: [g]}]",
            "/grants/0/who/scopes",
            "a scope alone",
        ),
        (
            "kubernetes:S1",
            "grants: [{id: a, who: {issuers: [corp]}, kubernetes_groups: ['system:masters']}]",
            "/grants/0/kubernetes_groups/0",
            "reserved",
        ),
        (
            "kubernetes:S3",
            "grants: [{id: a, who: {issuers: [corp]}, kubernetes_groups: ['System:masters']}]",
            "/grants/0/kubernetes_groups/0",
            "reserved",
        ),
        (
            "",
            "grants: [{id: a, who: {issuers: [corp]}, kubernetes_groups: []}]",
            "/grants/0/kubernetes_groups",
            "a grant needs at least one Kubernetes group",
        ),
        ("", "grants: [{id: a, who: {}, kubernetes_groups: [g]}]", "/grants/0/who", "nobody is named"),
        (
            "",
            "grants: [{id: a, who: {issuers: [corp]}, kubernetes_groups: [g]}, \
             {id: b, who: {issuers: [corp]}, kubernetes_groups: [g, h], tekton_roles: [{role: admin}]}]",
            "/grants/1/tekton_roles/0",
            "grant `a` gives the group `g` too",
        ),
        (
            "",
            "grants: [{id: a, who: {anonymous: true}, kubernetes_groups: [g]}]",
            "/grants/0/who/anonymous",
            "anonymous callers",
        ),
    ]);
}

#[test]
fn all_mistakes_are_reported_together() {
    let policy = "
rules:
  - {id: a, on: {routes: [x], methods: [get]}, who: {groups: [g]}, when: 'x', do: allow}
  - {id: a, do: allow}
grants:
  - {id: g, who: {}, kubernetes_groups: ['system:x']}
";
    assert_eq!(problems(GROUND, policy).len(), 7, "{:#?}", problems(GROUND, policy));
}

#[test]
fn a_valid_policy_is_accepted() {
    for (ground, policy) in [
        (ONE_ISSUER, "rules: [{id: a, who: {groups: [x]}, do: allow}]"),
        (ONE_ISSUER, "rules: [{id: a, who: {scopes: [x]}, do: deny}]"),
        (GROUND, "rules: [{id: a, who: {users: [x]}, do: deny}]"),
        (GROUND, "rules: [{id: a, who: {issuers: [corp], scopes: [x], clients: [y]}, do: allow}]"),
        (GROUND, "rules: [{id: a, who: {issuers: [corp], users: [x]}, do: allow}]"),
        (GROUND, "rules: [{id: a, who: {issuers: [corp], on_behalf_of: {}}, do: allow}]"),
        (GROUND, "rules: [{id: a, who: {issuers: [corp], claims: {x: [y], '/x': [y]}}, do: allow}]"),
        (GROUND, "rules: [{id: a, who: {webhooks: [gh]}, do: allow}]"),
        (GROUND, "rules: [{id: a, do: {approve: {by: {kind: human}, grant: 1s}}}]"),
        (GROUND, "rules: [{id: a, do: {approve: {by: {kind: human}, grant: 24h}}}]"),
        (GROUND, "grants: [{id: a, who: {issuers: [corp], scopes: [x], kind: workload}, kubernetes_groups: [g]}]"),
        (GROUND, "rules: [{id: a, when: 'principal.subject == \"x\"', do: allow}]"),
    ] {
        assert_eq!(problems(ground, policy), [""; 0], "{policy}");
    }
}

/// A rule that names no issuer means the only one there is.
#[test]
fn a_condition_on_groups_needs_a_defined_issuer() {
    let rule = "rules: [{id: a, who: {groups: [x]}, do: allow}]";
    assert_eq!(problems(ONE_ISSUER, rule), [""; 0]);
    assert_eq!(problems("", rule), ["/rules/0/who/groups no issuer is defined that could provide it"]);
}

/// They go into responses, annotations in Kubernetes, the audit trail and logs.
#[test]
fn ids_are_short_and_of_plain_characters() {
    let (longest, too_long) = ("a".repeat(128), "a".repeat(129));
    for (id, is_good) in [
        (&*longest, true),
        (&*too_long, false),
        ("aZ9-_./:", true),
        ("a b", false),
        ("a\nb", false),
        ("a\"b", false),
        ("ä", false),
    ] {
        let id = serde_json::to_string(id).unwrap();
        for (place, policy) in [
            ("rule", format!("rules: [{{id: {id}, do: allow}}]")),
            ("grant", format!("grants: [{{id: {id}, who: {{issuers: [corp]}}, kubernetes_groups: [g]}}]")),
        ] {
            let found = problems(GROUND, &policy);
            assert_eq!(found.len(), usize::from(!is_good), "{policy}: {found:?}");
            let (at, told) = (format!("/{place}s/0/id "), format!("cannot be the id of a {place}"));
            assert!(found.iter().all(|p| p.starts_with(&at) && p.ends_with(&told)), "{policy}: {found:?}");
        }
    }
}

#[test]
fn an_empty_list_is_refused_at_its_path() {
    for policy in [
        "{id: a, on: {routes: []}, do: deny}",
        "{id: a, who: {groups: []}, do: deny}",
        "{id: a, need: {acr: []}, do: allow}",
    ] {
        let error = serde_saphyr::from_str::<raw::Rule>(policy).unwrap_err().to_string();
        assert!(error.contains("empty list"), "{policy}: {error}");
    }
}

/// Such an allow looks as if it needed something.
#[test]
fn an_empty_need_is_refused() {
    for need in ["{}", "{mfa: null}"] {
        let rule = format!("{{id: a, need: {need}, do: allow}}");
        let error = serde_saphyr::from_str::<raw::Rule>(&rule).unwrap_err().to_string();
        assert!(error.contains("needs nothing"), "{need}: {error}");
    }
    let plain: raw::Rule = serde_saphyr::from_str("{id: a, do: allow}").unwrap();
    let again: raw::Rule = serde_json::from_str(&serde_json::to_string(&plain).unwrap()).unwrap();
    assert_eq!(again, plain);
}

/// Such a deny never matched, and neither did such an allow.
#[test]
fn a_rule_for_triggers_of_an_event_listener_that_its_route_does_not_name_is_refused() {
    const ROUTES: &str = "
interceptor: {host: door.svc, kubernetes: api}
webhooks:
  - {name: gh, sender: github, secrets: [{secret: {env: SECRET}}]}
  - {name: lab, sender: gitlab, secrets: [{secret: {env: SECRET}}]}
routes:
  - {name: home, kind: webhook, hosts: [gh.example], schemes: [webhook], webhook: gh, upstream: el, event_listener: {namespace: ci, name: build}}
  - {name: bare, kind: webhook, hosts: [lab.example], schemes: [webhook], webhook: lab, upstream: el}
";
    for (rule, is_refused) in [
        ("on: {trigger: {names: [deploy]}}, do: deny", true),
        ("on: {trigger: {names: [ci/build, deploy]}}, do: deny", true),
        ("on: {trigger: {service_accounts: [deployer]}}, do: deny", true),
        ("on: {routes: [bare], trigger: {names: [deploy]}}, do: allow", true),
        ("on: {trigger: {names: [deploy]}}, who: {webhooks: [gh, lab]}, do: allow", true),
        ("on: {routes: [home], trigger: {names: [deploy]}}, do: deny", false),
        ("on: {trigger: {names: [deploy]}}, who: {webhooks: [gh]}, do: deny", false),
        ("on: {event_listener: build, trigger: {names: [deploy]}}, do: deny", false),
        ("on: {namespace: ci, trigger: {service_accounts: [deployer]}}, do: deny", false),
        // A name with a namespace needs none from the route.
        ("on: {trigger: {names: [ci/deploy]}}, do: deny", false),
    ] {
        let root = root(ROUTES, &format!("rules: [{{id: a, {rule}}}]"));
        let mut resolver = Resolver::new(Path::new("/"));
        assert_eq!(Policy::compile(&root, &mut resolver).is_none(), is_refused, "{rule}");
        let told = resolver.report.problems();
        let message = "on `bare`, which names no `event_listener`";
        assert_eq!(told.iter().any(|problem| problem.message.contains(message)), is_refused, "{rule}: {told:?}");
    }
}

/// In shadow mode, it left no trace as a deny, and one for each delivery as an allow; and no EventListener waits for
/// people.
#[test]
fn a_rule_for_triggers_in_shadow_mode_or_that_waits_for_an_approval_is_refused() {
    const ROUTES: &str = "
interceptor: {host: door.svc}
webhooks: [{name: gh, sender: github, secrets: [{secret: {env: SECRET}}]}]
routes:
  - {name: home, kind: webhook, hosts: [gh.example], schemes: [webhook], webhook: gh, upstream: el, event_listener: {namespace: ci, name: build}}
";
    let shadow = Some("/rules/0/mode which Triggers a delivery sets off");
    let waits = Some("/rules/0/on/trigger no Trigger waits for an approval");
    for (rule, expected) in [
        ("on: {trigger: {names: [ci/deploy]}}, do: deny, mode: shadow", shadow),
        ("on: {trigger: {names: [ci/deploy]}}, do: allow, mode: shadow", shadow),
        ("on: {trigger: {names: [ci/deploy]}}, do: deny", None),
        ("on: {routes: [home]}, do: deny, mode: shadow", None),
        ("on: {trigger: {names: [ci/deploy]}}, do: {approve: {by: {kind: human}}}", waits),
        ("on: {routes: [home]}, do: {approve: {by: {kind: human}}}", None),
    ] {
        let found = problems(ROUTES, &format!("rules: [{{id: a, {rule}}}]"));
        assert_eq!(found.len(), usize::from(expected.is_some()), "{rule}: {found:?}");
        assert!(found.iter().all(|p| expected.is_some_and(|told| p.starts_with(told))), "{rule}: {found:?}");
    }
}

/// Each of these was written beside a broad allow and never matched, without any warning.
#[test]
fn names_that_no_request_can_have_are_errors() {
    for (kubernetes, at, message) in [
        ("resources: ['pods ']", "resources/0", "`pods ` is not a valid resource"),
        ("api_groups: [tekton.dev/v1]", "api_groups/0", "the version is not part of it"),
        ("api_groups: [Tekton.dev]", "api_groups/0", "`Tekton.dev` is not a valid API group"),
        ("namespaces: [ok, Prod]", "namespaces/1", "`Prod` is not a valid name of a namespace"),
        ("namespaces: ['prod ']", "namespaces/0", "`prod ` is not a valid name of a namespace"),
        ("namespaces: ['*', ci-1, kube_system]", "namespaces/2", "`kube_system` is not a valid name of a namespace"),
        ("namespaces: [prod-]", "namespaces/0", "`prod-` is not a valid name of a namespace"),
    ] {
        let found = problems(GROUND, &format!("rules: [{{id: a, on: {{kubernetes: {{{kubernetes}}}}}, do: deny}}]"));
        let is_told = |told: &str| told.starts_with(&format!("/rules/0/on/kubernetes/{at} ")) && told.contains(message);
        assert!(found.len() == 1 && is_told(&found[0]), "{kubernetes}: {found:?}");
    }
    for name in ["Prod", "kube_system"] {
        let found = problems(GROUND, &format!("rules: [{{id: a, on: {{namespace: {name}}}, do: deny}}]"));
        assert!(found.len() == 1 && found[0].starts_with("/rules/0/on/namespace "), "{found:?}");
    }
    let refused = compile(&root(GROUND, "rules: [{id: a, on: {namespace: kube_system}, do: deny}]")).err().unwrap();
    assert_eq!(refused.problems()[0].help.as_deref(), Some("did you mean `kube-system`?"));
}

/// Such a deny would prevent nothing, and such an allow would give nothing.
#[test]
fn a_rule_of_tokens_that_is_never_met_is_refused() {
    const TOKENS: &str = "tokens: {exchange: [{issuer: corp}]}\n";
    const DENY: &str = "on: {token: {audiences: [x]}}, do: deny";
    for (tokens, rule, slip) in [
        (TOKENS, DENY, None),
        ("", DENY, Some(("", "no token is given"))),
        (TOKENS, "on: {routes: [web], token: {audiences: [x]}}, do: deny", Some(("", "go with it"))),
        (TOKENS, "on: {methods: [GET], token: {audiences: [x]}}, do: deny", Some(("", "go with it"))),
        (TOKENS, "on: {namespace: ci, token: {audiences: [x]}}, do: deny", None),
        (TOKENS, "on: {addresses: [10.0.0.0/8], token: {audiences: [x]}}, do: deny", None),
        (TOKENS, "on: {token: {audiences: [x]}}, do: allow", None),
        (TOKENS, "on: {token: {}}, do: allow", Some(("", "must name the audiences"))),
        (TOKENS, "on: {token: {}}, do: deny", None),
        (
            TOKENS,
            "on: {token: {audiences: [x]}}, do: {approve: {by: {kind: human}}}",
            Some(("", "waits for an approval")),
        ),
        (TOKENS, "on: {token: {service_accounts: [ci/builder]}}, do: deny", None),
        (
            TOKENS,
            "on: {token: {service_accounts: [builder]}}, do: deny",
            Some(("/service_accounts/0", "names no namespace")),
        ),
        (TOKENS, "on: {token: {scopes: [a, b]}}, do: deny", None),
        (TOKENS, "on: {token: {scopes: ['a b']}}, do: deny", Some(("/scopes/0", "has a blank"))),
    ] {
        let found = problems(GROUND, &format!("{tokens}rules: [{{id: a, {rule}}}]"));
        assert_eq!(found.len(), usize::from(slip.is_some()), "{rule}: {found:?}");
        if let Some((at, message)) = slip {
            assert!(found[0].starts_with(&format!("/rules/0/on/token{at} ")), "{rule}: {found:?}");
            assert!(found[0].contains(message), "{rule}: {found:?}");
        }
    }
}
