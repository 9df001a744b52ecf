//! Requests decide by their Kubernetes attributes and their paths.

use super::*;
use crate::{authz::NotEvaluated, error::Reason};

#[test]
fn kubernetes_requests_are_decided_on_their_attributes() {
    decide_all(
        GROUND,
        "
rules:
  - {id: read, on: {kubernetes: {verbs: [get, list, watch], resources: ['*']}}, who: {issuers: [corp], groups: [dev]}, do: allow}
  - {id: runs, on: {namespace: dev, kubernetes: {verbs: [create], api_groups: [tekton.dev], resources: [pipelineruns]}}, who: {issuers: [corp], groups: [dev]}, do: allow}
  - {id: root, on: {routes: [api]}, who: {issuers: [corp], groups: [admins]}, do: allow}
  - {id: secrets, on: {kubernetes: {resources: [secrets], namespaces: [prod]}}, do: deny}
  - {id: widgets, on: {kubernetes: {resources: [widgets], namespaces: [prod]}}, do: deny}
tests:
  - {name: read, principal: &dev {issuer: corp, groups: [dev]}, request: {route: api, path: /api/v1/namespaces/a/pods}, expect: {outcome: allow, rule: read}}
  - {name: 'kubernetes:1.5 exec is a write', principal: *dev, request: {route: api, path: /api/v1/namespaces/a/pods/p/exec}, expect: {outcome: deny}}
  - {name: 'kubernetes:P6 proxy', principal: *dev, request: {route: api, path: /api/v1/namespaces/a/services/x/proxy/y}, expect: {outcome: deny}}
  - {name: create, principal: *dev, request: {route: api, method: POST, path: /apis/tekton.dev/v1/namespaces/dev/pipelineruns}, expect: {outcome: allow, rule: runs}}
  - {name: create elsewhere, principal: *dev, request: {route: api, method: POST, path: /apis/tekton.dev/v1/namespaces/prod/pipelineruns}, expect: {outcome: deny}}
  - {name: written out, principal: *dev, request: {route: api, kubernetes: {verb: create, api_group: tekton.dev, resource: pipelineruns, namespace: dev}}, expect: {outcome: allow, rule: runs}}
  - {name: 'a list of all namespaces reaches into each', principal: *dev, request: {route: api, path: /api/v1/secrets}, expect: {outcome: deny, rule: secrets}}
  - {name: exec by an admin, principal: &root {issuer: corp, groups: [admins]}, request: {route: api, path: /api/v1/namespaces/a/pods/p/exec}, expect: {outcome: allow, rule: root}}
  - {name: a list of what may have namespaces, principal: *root, request: {route: api, path: /apis/x.example/v1/widgets}, expect: {outcome: deny, rule: widgets}}
  - {name: one without a namespace has none, principal: *root, request: {route: api, path: /apis/x.example/v1/widgets/a}, expect: {outcome: allow, rule: root}}
  - {name: 'kubernetes:P6 proxy by an admin', principal: *root, request: {route: api, path: /api/v1/nodes/n/proxy/exec}, expect: {outcome: deny}}
  - {name: 'kubernetes:P5 unknown verb', principal: *root, request: {route: api, method: OPTIONS, path: /api/v1/pods}, expect: {outcome: deny}}
  - {name: 'kubernetes:P5 unknown verb of what is no resource', principal: *root, request: {route: api, method: PROPFIND, path: /version}, expect: {outcome: deny}}
  - {name: 'the same with a known one', principal: *root, request: {route: api, path: /version}, expect: {outcome: allow}}
",
    );
}

/// A run that was allowed for what it refers to could be given other code in its status, and no deny about runs
/// matched.
#[test]
fn a_deny_about_runs_holds_for_a_write_of_their_status() {
    decide_all(
        GROUND,
        "
rules:
  - {id: tekton, on: {kubernetes: {api_groups: [tekton.dev], resources: ['*', pipelineruns/status]}}, who: {issuers: [corp], groups: [dev, ops]}, do: allow}
  - {id: changes, on: {kubernetes: {resources: [pipelineruns/status]}, run: {does: [change]}}, who: {issuers: [corp], groups: [trial]}, do: allow}
  - {id: brought, on: {run: {inline: true}}, who: {issuers: [corp], groups: [dev]}, do: deny}
  - {id: ended, on: {run: {does: [cancel]}}, who: {issuers: [corp], groups: [ops]}, do: deny}
tests:
  - {name: what is brought, principal: {issuer: corp, groups: [dev]}, request: &write {route: api, method: PATCH, path: /apis/tekton.dev/v1/namespaces/ci/pipelineruns/r/status}, expect: {outcome: deny, rule: brought}}
  - {name: it is a change, principal: &ops {issuer: corp, groups: [ops]}, request: *write, expect: {outcome: allow, rule: tekton}}
  - {name: nobody has read that it is no other, principal: {issuer: corp, groups: [trial]}, request: *write, expect: {outcome: deny}}
  - {name: it is named, principal: *ops, request: {route: api, method: PATCH, path: /apis/tekton.dev/v1/namespaces/ci/taskruns/t/status}, expect: {outcome: deny}}
  - {name: a look, principal: {issuer: corp, groups: [dev]}, request: {route: api, path: /apis/tekton.dev/v1/namespaces/ci/pipelineruns/r/status}, expect: {outcome: allow, rule: tekton}}
",
    );
}

#[test]
fn webhooks_and_workloads_are_distinguished_by_numbers_and_accounts() {
    decide_all(
        GROUND,
        "
rules:
  - {id: push, on: {event_listener: deploy, namespace: prod, event: [push], branch: [main, 'release/*']}, who: {repositories: ['github:1234']}, do: allow}
  - {id: job, on: {routes: [web]}, who: {issuers: [actions], repositories: ['github:1234']}, do: allow}
  - {id: pod, on: {routes: [web]}, who: {service_accounts: [ci/builder, 'ops/*']}, do: allow}
grants:
  - {id: repo, who: {repositories: ['github:1234']}, kubernetes_groups: [tekton:repo]}
tests:
  - {name: a push, principal: {}, request: {route: hooks, delivery: {event: push, branch: main, repository_id: '1234'}}, expect: {outcome: allow, kubernetes_groups: [tekton:repo]}}
  - {name: a push to a release, principal: {}, request: {route: hooks, delivery: {event: push, branch: release/1, repository_id: '1234'}}, expect: {outcome: allow}}
  - {name: another branch, principal: {}, request: {route: hooks, delivery: {event: push, branch: main2, repository_id: '1234'}}, expect: {outcome: deny}}
  - {name: no branch, principal: {}, request: {route: hooks, delivery: {event: push, repository_id: '1234'}}, expect: {outcome: deny}}
  - {name: another repository, principal: {}, request: {route: hooks, delivery: {event: push, branch: main, repository_id: '12345'}}, expect: {outcome: deny, kubernetes_groups: []}}
  - {name: a job, principal: {issuer: actions, claims: {repository_id: '1234'}}, request: {route: web}, expect: {outcome: allow, rule: job}}
  - {name: a job with a number, principal: {issuer: actions, claims: {repository_id: 1234}}, request: {route: web}, expect: {outcome: allow, rule: job}}
  - {name: a person who claims to be a job, principal: {issuer: corp, claims: {repository_id: '1234'}}, request: {route: web}, expect: {outcome: deny, kubernetes_groups: []}}
  - {name: a pod, principal: {issuer: cluster, subject: 'system:serviceaccount:ci:builder'}, request: {route: web}, expect: {outcome: allow, rule: pod}}
  - {name: a pod of a namespace, principal: {issuer: cluster, subject: 'system:serviceaccount:ops:x'}, request: {route: web}, expect: {outcome: allow, rule: pod}}
  - {name: another pod, principal: {issuer: cluster, subject: 'system:serviceaccount:ci:builder2'}, request: {route: web}, expect: {outcome: deny}}
  - {name: a subject that looks like a pod, principal: {issuer: corp, subject: 'system:serviceaccount:ci:builder'}, request: {route: web}, expect: {outcome: deny}}
",
    );
}

#[test]
fn requests_are_distinguished_by_path_method_host_time_and_address() {
    decide_all(
        &ONE_ISSUER.replace("[web.example]", "[web.example, a.web.example]"),
        "
rules:
  - {id: all, on: {hosts: ['*.example'], methods: [GET, POST, HEAD], addresses: [192.0.2.0/24, '2001:db8::/32']}, do: allow}
  - {id: no-read, on: {paths: [/secret/*], methods: [GET]}, do: deny}
  - {id: night, on: {time: {days: mon-fri, from: '22:00', to: '06:00'}}, do: deny}
tests:
  - {name: all, principal: {}, request: {route: web}, expect: {outcome: allow}}
  - {name: another method, principal: {}, request: {route: web, method: PUT}, expect: {outcome: deny}}
  - {name: another host, principal: {}, request: {route: web, host: a.web.example}, expect: {outcome: deny}}
  - {name: another address, principal: {}, request: {route: web, address: 198.51.100.1}, expect: {outcome: deny}}
  - {name: a mapped address, principal: {}, request: {route: web, address: '::ffff:192.0.2.7'}, expect: {outcome: allow}}
  - {name: a deny of GET holds for HEAD, principal: {}, request: {route: web, method: HEAD, path: /secret/x}, expect: {outcome: deny, rule: no-read}}
  - {name: and not for POST, principal: {}, request: {route: web, method: POST, path: /secret/x}, expect: {outcome: allow}}
  - {name: at night, principal: {}, request: {route: web, at: '2024-01-01T22:00:00Z'}, expect: {outcome: deny, rule: night}}
  - {name: on the morning after, principal: {}, request: {route: web, at: '2024-01-02T05:59:59Z'}, expect: {outcome: deny, rule: night}}
  - {name: at day, principal: {}, request: {route: web, at: '2024-01-02T06:00:00Z'}, expect: {outcome: allow}}
",
    );
}

/// Such a case was decided by the rules, which the proxy does not evaluate for it.
#[test]
fn a_request_for_a_run_that_is_always_refused_is_an_error_of_its_case() {
    let root = root(GROUND, "rules: [{id: all, on: {routes: [api]}, who: {issuers: [corp]}, do: allow}]");
    let told = |method: &str, path: &str, more: &str| {
        let path = format!("/apis/tekton.dev/v1/namespaces/ci/{path}");
        let request = format!("{{route: api, method: {method}, path: {path}{more}}}");
        let request: raw::RequestFacts = serde_saphyr::from_str(&request).unwrap();
        Scenario::new(None, &request, &root).map(|scenario| scenario.lacks_body())
    };
    for (method, path, more, reason, why) in [
        ("PUT", "pipelineruns/held", "", Reason::PolicyDenied, "a run cannot be replaced as a whole"),
        ("PATCH", "pipelineruns/held", ", content_type: text/plain", Reason::UnsupportedMediaType, "`text/plain`"),
        ("POST", "pipelineruns", ", body: {kind: Pipeline}", Reason::BadRequest, "the body is a Pipeline"),
        ("POST", "pipelines/other", "", Reason::MethodNotAllowed, "the object that its body names"),
    ] {
        let unasked = told(method, path, more).unwrap_err();
        let said = unasked.to_string();
        assert!(
            said.contains(why) && said.ends_with(": it is refused before any rule is evaluated"),
            "{method} {path}: {said}"
        );
        assert!(
            matches!(unasked, NotEvaluated::Refused(refused) if refused.reason() == reason),
            "{method} {path}: {said}"
        );
    }
    for (method, path, lacks_body) in [
        ("POST", "pipelineruns", true),
        ("PATCH", "pipelineruns/held", true),
        ("DELETE", "pipelineruns/held", false),
        ("PUT", "pipelines/other", false),
    ] {
        assert_eq!(told(method, path, "").unwrap(), lacks_body, "{method} {path}");
    }
}

/// Only the API server knows whether such a patch is accepted.
#[test]
fn a_patch_that_is_compared_with_the_run_is_distinguished_from_others() {
    let root = root(GROUND, "rules: [{id: all, on: {routes: [api]}, who: {issuers: [corp]}, do: allow}]");
    for (annotation, expected) in [("doorward.dev/requested-by", true), ("team", false)] {
        let path = "/apis/tekton.dev/v1/namespaces/ci/pipelineruns/held";
        let body = format!("{{metadata: {{annotations: {{{annotation}: bob}}}}}}");
        let request = format!("{{route: api, method: PATCH, path: {path}, body: {body}}}");
        let request: raw::RequestFacts = serde_saphyr::from_str(&request).unwrap();
        let scenario = Scenario::new(None, &request, &root).unwrap();
        assert_eq!(scenario.is_held_against_run(), expected, "{annotation}");
    }
}

/// Decides a patch of a run by a caller with these groups.
fn patch(root: &raw::Root, groups: &str, namespace: &str, content_type: &str) -> Scenario {
    let request: raw::RequestFacts = serde_saphyr::from_str(&format!(
        "{{route: api, method: PATCH, path: /apis/tekton.dev/v1/namespaces/{namespace}/pipelineruns/a, \
         content_type: {content_type}, body: {{apiVersion: tekton.dev/v1, kind: PipelineRun, metadata: {{name: a}}, \
         spec: {{pipelineRef: {{name: deploy}}}}}}}}"
    ))
    .unwrap();
    let facts: raw::PrincipalFacts = serde_saphyr::from_str(&format!("{{issuer: corp, groups: {groups}}}")).unwrap();
    Scenario::new(Some(&facts), &request, root).unwrap()
}

/// An apply must also be allowed as the create that it may be; the explanation is about what decided. The refusal named
/// the verb `patch`, which rules allowed.
#[test]
fn the_rule_that_refuses_an_apply_is_explained() {
    let rules = "
rules:
  - {id: patch, on: {kubernetes: {verbs: [patch]}}, who: {issuers: [corp], groups: [dev]}, do: allow}
  - {id: create, on: {kubernetes: {verbs: [create]}}, who: {issuers: [corp], groups: [ops]}, do: allow}
  - {id: frozen, on: {kubernetes: {verbs: [create], namespaces: [prod]}}, do: deny}
";
    let root = root(GROUND, rules);
    let policy = compile(&root).unwrap();
    let explained = |groups: &str, namespace: &str, content_type: &str| {
        let scenario = patch(&root, groups, namespace, content_type);
        let decision = policy.decide(&scenario.principal, &scenario.request());
        let explanation = policy.explain(&scenario.principal, &scenario.request());
        assert_eq!((explanation.outcome, &explanation.rule), (decision.outcome.effect(), &decision.rule));
        explanation
    };
    let apply = "application/apply-patch+yaml";
    let refused = explained("[dev]", "dev", apply).to_string();
    for part in [
        "DENY: no rule allows this server-side apply as a create",
        "to pass: `create` comes nearest to allowing it, and misses who.groups: needs ops, has dev",
        "note: server-side apply may create the object as well as patch it, and must be allowed as both; the rules below are \
         evaluated for the create",
        "  patch (allow): no match: on.kubernetes: needs verb patch, has create pipelineruns.tekton.dev",
    ] {
        assert!(refused.contains(part), "{part}\n---\n{refused}");
    }
    let denied = explained("[dev, ops]", "prod", apply);
    assert_eq!(denied.rule.as_deref(), Some("frozen"));
    assert!(denied.to_string().contains("- frozen (deny): matches"), "{denied}");
    assert_eq!(denied.summary, "the rule `frozen` denies this server-side apply as a create");
    let patch = explained("[ops]", "dev", apply);
    assert!(patch.to_string().contains("evaluated for the patch"), "{patch}");
    assert!(patch.fixes[0].contains("`patch` comes nearest"), "{patch}");
    assert_eq!(patch.summary, "no rule allows this request");
    let both = explained("[dev, ops]", "dev", apply);
    assert_eq!((both.outcome, both.rule.as_deref(), both.notes.len()), (raw::Effect::Allow, Some("patch"), 1));
    // A patch that creates nothing.
    let merge = explained("[dev]", "dev", "application/merge-patch+json");
    assert_eq!((merge.outcome, merge.notes.len()), (raw::Effect::Allow, 0), "{merge}");
}

/// The API server asks its own authorizer for both, whatever is applied.
#[test]
fn an_apply_of_anything_must_be_allowed_as_the_create_that_it_may_be() {
    decide_all(
        GROUND,
        "
rules:
  - {id: write, on: {kubernetes: {verbs: [write]}}, who: {issuers: [corp], groups: [dev]}, do: allow}
  - {id: change, on: {kubernetes: {verbs: [read, patch]}}, who: {issuers: [corp], groups: [ops]}, do: allow}
  - {id: no-pods, on: {kubernetes: {verbs: [create], resources: [pods]}}, who: {kind: agent}, do: deny}
tests:
  - {name: a pod, principal: &agent {issuer: corp, kind: agent, client: test, groups: [dev]}, request: {route: api, method: PATCH, path: /api/v1/namespaces/ci/pods/p, content_type: application/apply-patch+yaml}, expect: {outcome: deny, rule: no-pods}}
  - {name: in CBOR, principal: *agent, request: {route: api, method: PATCH, path: /api/v1/namespaces/ci/pods/p, content_type: application/apply-patch+cbor}, expect: {outcome: deny, rule: no-pods}}
  - {name: written out, principal: *agent, request: {route: api, kubernetes: {verb: patch, resource: pods, namespace: ci, name: p}, content_type: application/apply-patch+yaml}, expect: {outcome: deny, rule: no-pods}}
  - {name: another patch of it, principal: *agent, request: {route: api, method: PATCH, path: /api/v1/namespaces/ci/pods/p}, expect: {outcome: allow, rule: write}}
  - {name: a patch of its status, principal: *agent, request: {route: api, method: PATCH, path: /api/v1/namespaces/ci/pods/p/status, content_type: application/apply-patch+yaml}, expect: {outcome: allow, rule: write}}
  - {name: by a person, principal: {issuer: corp, kind: human, groups: [dev]}, request: {route: api, method: PATCH, path: /api/v1/namespaces/ci/pods/p, content_type: application/apply-patch+yaml}, expect: {outcome: allow, rule: write}}
  - {name: who may patch alone, principal: &ops {issuer: corp, groups: [ops]}, request: {route: api, method: PATCH, path: /apis/tekton.dev/v1/namespaces/ci/tasks/t, content_type: application/apply-patch+yaml}, expect: {outcome: deny}}
  - {name: does so, principal: *ops, request: {route: api, method: PATCH, path: /apis/tekton.dev/v1/namespaces/ci/tasks/t, content_type: application/merge-patch+json}, expect: {outcome: allow, rule: change}}
",
    );
}

/// It is decided as two requests, but there is one record.
#[test]
fn shadow_decisions_about_an_apply_as_a_possible_create_are_recorded_too() {
    let rules = "
rules:
  - {id: all, on: {kubernetes: {verbs: [create, patch], resources: [pipelineruns]}}, who: {issuers: [corp], groups: [dev]}, do: allow}
  - {id: patch, on: {kubernetes: {verbs: [patch], namespaces: [closed]}}, who: {issuers: [corp]}, do: allow}
  - {id: created, on: {kubernetes: {verbs: [create]}}, who: {issuers: [corp]}, do: deny, mode: shadow}
  - {id: patched, on: {kubernetes: {verbs: [patch]}}, who: {issuers: [corp]}, do: deny, mode: shadow}
  - {id: written, on: {kubernetes: {verbs: [write]}}, who: {issuers: [corp]}, do: deny, mode: shadow}
";
    let root = root(GROUND, rules);
    let policy = compile(&root).unwrap();
    for (groups, content_type, outcome, expected) in [
        ("[dev]", "application/apply-patch+yaml", raw::Effect::Allow, ["patched", "written", "created"].as_slice()),
        ("[]", "application/apply-patch+yaml", raw::Effect::Deny, &["created", "written", "patched"]),
        ("[dev]", "application/merge-patch+json", raw::Effect::Allow, &["patched", "written"]),
    ] {
        let scenario = patch(&root, groups, "closed", content_type);
        let decision = policy.decide(&scenario.principal, &scenario.request());
        assert_eq!(decision.outcome.effect(), outcome, "{groups} {content_type}");
        let shadow: Vec<&str> = decision.shadow.iter().map(|shadow| &*shadow.rule).collect();
        assert_eq!(shadow, expected, "{groups} {content_type}");
        let explanation = policy.explain(&scenario.principal, &scenario.request());
        assert_eq!((explanation.outcome, explanation.shadow), (outcome, decision.shadow), "{groups} {content_type}");
    }
}

/// A method that the route does not name is never forwarded, so a deny need not consider it.
#[test]
fn rules_name_whatever_methods_their_routes_name() {
    const SHARE: &str = "
issuers: [{name: corp, issuer: 'https://corp.example', kind: human}]
routes: [{name: web, kind: http, hosts: [web.example], methods: [GET, PUT, PROPFIND, MKCOL], schemes: [bearer], upstream: web}]
";
    decide_all(
        SHARE,
        "
rules:
  - {id: all, on: {routes: [web]}, do: allow}
  - {id: ro, on: {methods: [PUT, MKCOL]}, do: deny}
tests:
  - {name: reads, principal: {}, request: {route: web, method: PROPFIND}, expect: {outcome: allow}}
  - {name: makes, principal: {}, request: {route: web, method: MKCOL}, expect: {outcome: deny, rule: ro}}
",
    );
    let policy = "rules: [{id: all, on: {routes: [web]}, do: allow}]";
    let root = root(SHARE, policy);
    for (method, path, why) in [
        ("put", "/", "`put` is `PUT` in another spelling"),
        ("MOVE", "/", "this path takes"),
        ("POST", "/", "this path takes"),
        ("TRACE", "/", "this path takes"),
        ("GET", "/a//b", "has an empty segment (`//`): it is refused before any rule is evaluated"),
        ("GET", "/a/../b", "has a `.` or `..` segment"),
    ] {
        let request = raw::RequestFacts {
            route: "web".to_owned(),
            method: Some(method.to_owned()),
            path: Some(path.to_owned()),
            ..raw::RequestFacts::default()
        };
        let told = Scenario::new(None, &request, &root).map(drop).unwrap_err().to_string();
        assert!(told.contains(why), "{method} {path}: {told}");
    }
}

/// Otherwise a deny of a user would pass its test, and let the user in.
#[test]
fn a_principal_without_a_user_name_gets_that_of_the_issuers_template() {
    const ENTRA: &str = "https://login.microsoftonline.com";
    const TENANT: &str = "8f1c0a52-5d0e-4c0b-9d4e-0f5a3c1b2d77";
    let ground = format!(
        "
issuers:
  - {{name: corp, issuer: 'https://corp.example'}}
  - {{name: short, issuer: 'https://short.example', username: 'short:{{sub}}'}}
  - {{name: mail, issuer: 'https://mail.example', username: '{{claim:/email}}'}}
  - {{name: cluster, issuer: 'https://cluster.example', preset: kubernetes}}
  - {{name: entra, issuer: '{ENTRA}/organizations/v2.0', preset: entra, tenants: [{TENANT}]}}
  - {{name: own, issuer: 'https://door.example', preset: doorward}}
webhooks:
  - {{name: gh, sender: github, secrets: [{{secret: {{env: SECRET}}}}]}}
routes:
  - {{name: web, kind: http, hosts: [web.example], schemes: [bearer, break_glass], upstream: web}}
  - {{name: hooks, kind: webhook, hosts: [hooks.example], schemes: [webhook], webhook: gh, upstream: web}}
"
    );
    let web = "{route: web}";
    let repository = "{route: hooks, delivery: {repository_id: '7'}}";
    let decided = |rules: &str, principal: &str, request: &str| {
        let cases = format!(
            "rules: [{rules}]\ntests: [{{name: it, principal: {principal}, request: {request}, expect: {{outcome: allow}}}}]"
        );
        let root = root(&ground, &cases);
        let results = test::run(&compile(&root).unwrap(), &root, &[], None);
        (results.passed(), results.to_string())
    };
    for (principal, request, user) in [
        ("{issuer: corp, subject: a}", web, "https://corp.example#a"),
        ("{issuer: short, subject: a}", web, "short:a"),
        ("{issuer: mail, email: a@b.example}", web, "a@b.example"),
        ("{issuer: mail, claims: {email: a@b.example, email_verified: true}}", web, "a@b.example"),
        ("{issuer: cluster, subject: 'system:serviceaccount:ci:b'}", web, "https://cluster.example#ci/b"),
        (&format!("{{issuer: entra, claims: {{tid: {TENANT}, oid: o}}}}"), web, &format!("{ENTRA}/{TENANT}/v2.0#o")),
        ("{issuer: own, subject: 'short:a'}", web, "short:a"),
        ("{issuer: break-glass, subject: ann}", web, "break-glass:ann"),
        ("{}", repository, "webhook:github:repo:7"),
        ("{}", "{route: hooks}", "webhook:github:hook:gh"),
        ("{issuer: corp, subject: a, username: x}", web, "x"),
    ] {
        let (passed, told) = decided(&format!("{{id: r, who: {{users: ['{user}']}}, do: allow}}"), principal, request);
        assert!(passed, "{user}: {told}");
    }
    for (principal, why) in [
        ("{issuer: mail}", "the email address is not verified"),
        ("{issuer: cluster}", "the subject is not a service account"),
        ("{issuer: entra, claims: {oid: o}}", "the claim `tid` names no tenant of the issuer"),
    ] {
        let (passed, told) = decided("{id: r, who: {users: [x]}, do: deny}, {id: all, do: allow}", principal, web);
        assert!(!passed && told.contains(why) && told.contains("write `username`"), "{told}");
        // If no rule looks at user names, they need not be known.
        let (passed, told) = decided("{id: all, do: allow}", principal, web);
        assert!(passed, "{told}");
    }
    for policy in [
        "{id: r, when: \"principal.username == 'x'\", do: deny}, {id: all, do: allow}",
        // What `decided` puts into the list of rules ends it.
        "{id: all, do: allow}]\ngrants: [{id: g, who: {users: [x]}, kubernetes_groups: [g]}",
    ] {
        let (passed, told) = decided(policy, "{issuer: mail}", web);
        assert!(!passed && told.contains("write `username`"), "{policy}: {told}");
    }
}

/// Otherwise a body that no rule sees would pass for one that rules have seen.
#[test]
fn a_case_that_says_what_no_rule_sees_or_leaves_its_issuer_open_is_an_error() {
    const RUNS: &str = "method: POST, path: /apis/tekton.dev/v1/namespaces/ci/pipelineruns";
    for (ground, principal, request, why) in [
        (GROUND, "{issuer: corp}", "{route: web, body: {}}", Some("a body is read")),
        (GROUND, "{issuer: corp}", &format!("{{route: api, {RUNS}, body: {{}}}}"), None),
        (GROUND, "{issuer: corp}", "{route: web, token: {audience: x}}", Some("leave `route` out")),
        (GROUND, "{issuer: corp}", "{token: {audience: x}}", None),
        (GROUND, "{}", "{route: web}", Some("several issuers are defined")),
        (ONE_ISSUER, "{}", "{route: web}", None),
    ] {
        let root = root(ground, "tokens: {exchange: [{issuer: corp}]}");
        let facts: raw::PrincipalFacts = serde_saphyr::from_str(principal).unwrap();
        let asked: raw::RequestFacts = serde_saphyr::from_str(request).unwrap();
        let problem = Scenario::new(Some(&facts), &asked, &root).err().map(|unasked| unasked.to_string());
        let is_expected = match (&problem, why) {
            (Some(problem), Some(why)) => problem.contains(why),
            (problem, why) => problem.is_none() && why.is_none(),
        };
        assert!(is_expected, "{principal} {request}: {problem:?}");
    }
}

/// The rule for the pages, which is for everybody, let everybody read each log that the back end fetches.
#[test]
fn a_log_from_outside_is_no_page_and_pages_are_of_dashboards_alone() {
    decide_all(
        "
issuers: [{name: corp, issuer: 'https://corp.example', audiences: [door], login: {client: {id: door, secret: {env: SECRET}}}}]
routes:
  - {name: board, kind: dashboard, hosts: [board.example], schemes: [session], upstream: board, kubernetes: api}
  - {name: api, kind: kubernetes, hosts: [api.example], schemes: [bearer], upstream: api}
  - {name: web, kind: http, hosts: [web.example], schemes: [bearer], upstream: web}
",
        "
rules:
  - {id: page, on: {routes: [board], methods: [GET, HEAD], pages: true}, do: allow}
  - {id: log, on: {pages: false, kubernetes: {verbs: [get], resources: [pods/log], namespaces: [ci]}}, do: allow}
  - {id: asked, on: {pages: false}, who: {issuers: [corp], groups: [dev]}, do: allow}
tests:
  - {name: a file, principal: &ann {issuer: corp, groups: []}, request: {route: board, path: /main.js}, expect: {outcome: allow, rule: page}}
  - {name: properties, principal: *ann, request: {route: board, path: /v1/properties}, expect: {outcome: allow, rule: page}}
  - {name: a log from outside, principal: *ann, request: {route: board, path: /v1/logs-proxy/staging/p/c}, expect: {outcome: deny}}
  - {name: one that a rule is for, principal: *ann, request: {route: board, path: /v1/logs-proxy/ci/p/c}, expect: {outcome: allow, rule: log}}
  - {name: one of a pod, principal: *ann, request: {route: board, path: /api/v1/namespaces/ci/pods/p/log}, expect: {outcome: allow, rule: log}}
  - {name: what pages ask, principal: &dev {issuer: corp, groups: [dev]}, request: {route: board, path: /api/v1/pods}, expect: {outcome: allow, rule: asked}}
  - {name: of no dashboard, principal: *dev, request: {route: web}, expect: {outcome: deny}}
  - {name: nor of its API server, principal: *dev, request: {route: api, path: /api/v1/pods}, expect: {outcome: deny}}
",
    );
}

/// Such a case was decided as if the request had come to the route in the case.
#[test]
fn a_case_whose_request_would_not_reach_its_route_is_an_error() {
    const ROUTES: &str = "
issuers: [{name: corp, issuer: 'https://corp.example'}]
webhooks: [{name: gh, sender: github, secrets: [{secret: {env: SECRET}}]}]
external_host: door.example
routes:
  - {name: board, kind: dashboard, hosts: [board.example], schemes: [session], upstream: board, kubernetes: api}
  - {name: old, kind: dashboard, hosts: [old.example], schemes: [session], upstream: board}
  - {name: any, kind: http, hosts: ['*.example'], schemes: [bearer], upstream: web}
  - {name: read, kind: http, hosts: [web.example], paths: ['/a/*'], methods: [GET], schemes: [bearer], upstream: web}
  - {name: write, kind: http, hosts: [web.example], paths: ['/a/*', /a/b], methods: [POST], schemes: [bearer], upstream: web}
  - {name: hooks, kind: webhook, hosts: [web.example], paths: [/hook], schemes: [webhook], webhook: gh, upstream: web}
";
    let root = root(ROUTES, "rules: [{id: all, do: allow}]");
    let told = |request: &str| {
        let request: raw::RequestFacts = serde_saphyr::from_str(&format!("{{{request}}}")).unwrap();
        Scenario::new(None, &request, &root)
    };
    for request in [
        "route: read, path: /a/c",
        "route: read",
        "route: write, path: /a/c, method: POST",
        "route: any",
        "route: any, host: x.example, path: /oauth2/x",
        "route: hooks",
        "route: board",
        "route: board, path: /apis/tekton.dev/v1/pipelineruns, method: DELETE",
        "route: old, method: POST",
    ] {
        assert!(told(request).is_ok(), "{request}: {}", told(request).unwrap_err());
    }
    for (request, why) in [
        ("route: read, path: /a/c, method: POST", "goes to the route `write`, and not to the route `read`"),
        ("route: any, host: board.example", "goes to the route `board`"),
        ("route: board, path: /oauth2/x", "goes to Doorward itself"),
        ("route: any, host: x.example, path: /.doorward/x", "goes to Doorward itself"),
        ("route: any, host: x.example, path: /.well-known/oauth-protected-resource/y", "goes to Doorward itself"),
    ] {
        let unasked = told(request).unwrap_err();
        assert!(matches!(&unasked, NotEvaluated::Incomplete(told) if told.contains(why)), "{request}: {unasked}");
    }
    for (request, reason, why) in [
        ("route: read, path: /a/b", Reason::MethodNotAllowed, "this path takes POST only"),
        ("route: read, path: /a/c, method: PUT", Reason::MethodNotAllowed, "this path takes GET, POST only"),
        ("route: hooks, method: GET", Reason::MethodNotAllowed, "this path takes POST only"),
        ("route: read, path: /b", Reason::RouteNotFound, "no route is configured for this path"),
        ("route: read, host: web.other", Reason::MisdirectedHost, "no route is configured for this host"),
        ("route: board, method: POST", Reason::MethodNotAllowed, "read with GET and HEAD only"),
        ("route: board, path: /v1/properties, method: PUT", Reason::MethodNotAllowed, "read with GET and HEAD only"),
        ("route: old, path: /v1/logs-proxy/a/b/c", Reason::PolicyDenied, "as the route names no API server"),
    ] {
        let unasked = told(request).unwrap_err();
        let is_so = matches!(&unasked, NotEvaluated::Refused(refused) if refused.reason() == reason && refused.detail().contains(why));
        assert!(is_so, "{request}: {unasked}");
    }
}

/// Such a case was decided as allowed, although no delivery ever was.
#[test]
fn a_case_of_an_event_or_a_fact_that_no_delivery_has_is_an_error() {
    let webhooks = "\n  - {name: ci, sender: generic, signature: {header: x-a}, facts: {event: /kind}, secrets: [{secret: {env: CI}}]}
  - {name: gh, sender: github, secrets: [{secret: {env: GH}}]}\nroutes:
  - {name: ci, kind: webhook, hosts: [ci.example], schemes: [webhook], webhook: ci, upstream: web}
  - {name: gh, kind: webhook, hosts: [gh.example], schemes: [webhook], webhook: gh, upstream: web}\n";
    let root = root(&format!("webhooks:{webhooks}"), "rules: [{id: all, do: allow}]");
    let told = |request: &str| {
        let request: raw::RequestFacts = serde_saphyr::from_str(&format!("{{{request}}}")).unwrap();
        Scenario::new(None, &request, &root)
    };
    for request in [
        "route: gh, delivery: {event: package}",
        "route: gh, delivery: {action: created}",
        "route: ci, delivery: {event: any}",
    ] {
        assert!(told(request).is_ok(), "{request}: {}", told(request).unwrap_err());
    }
    for (event, why) in [
        ("psuh", "did you mean `push`? If not, leave"),
        ("repository", "leave `event` out"),
        ("watch", "leave `event` out"),
    ] {
        let unasked = told(&format!("route: gh, delivery: {{event: {event}}}")).unwrap_err();
        let is_told = |told: &str| told.contains(&format!("as the event `{event}`")) && told.contains(why);
        assert!(matches!(&unasked, NotEvaluated::Incomplete(told) if is_told(told)), "{event}: {unasked}");
    }
    for (fact, value) in [("action", "opened"), ("branch", "main"), ("tag", "v1"), ("fork", "false"), ("draft", "true")]
    {
        let unasked = told(&format!("route: ci, delivery: {{event: any, {fact}: {value}}}")).unwrap_err();
        let why = format!("no delivery of `ci` has the fact `{fact}`");
        assert!(matches!(&unasked, NotEvaluated::Incomplete(told) if told.contains(&why)), "{fact}: {unasked}");
    }
}
