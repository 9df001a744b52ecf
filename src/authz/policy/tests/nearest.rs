//! Which rule an explanation names as the closest to allowing a request.

use super::*;

/// The first by name was chosen, although it was about quite different requests.
#[test]
fn a_rule_that_misses_what_the_body_says_is_nearer_than_one_of_other_requests() {
    const RULES: &str = "
rules:
  - {id: a-reads, on: {kubernetes: {verbs: [get], resources: [secrets]}}, who: {issuers: [corp], groups: [dev]}, do: allow}
  - {id: starts, on: {kubernetes: {verbs: [create], resources: [pipelineruns]}, run: {service_accounts: [builder]}}, who: {issuers: [corp], groups: [dev]}, do: allow}
";
    let root = root(GROUND, RULES);
    let policy = compile(&root).unwrap();
    let facts: raw::PrincipalFacts = serde_saphyr::from_str("{issuer: corp, groups: [dev]}").unwrap();
    for (body, found) in [
        ("", "has no body"),
        (
            ", body: {apiVersion: tekton.dev/v1, kind: PipelineRun, metadata: {name: a}, spec: {pipelineRef: {name: p}}}",
            "on.run: needs",
        ),
    ] {
        let path = "/apis/tekton.dev/v1/namespaces/ci/pipelineruns";
        let request = format!("{{route: api, method: POST, path: {path}{body}}}");
        let request: raw::RequestFacts = serde_saphyr::from_str(&request).unwrap();
        let scenario = Scenario::new(Some(&facts), &request, &root).unwrap();
        assert_eq!(scenario.lacks_body(), body.is_empty());
        let fixes = policy.explain(&scenario.principal, &scenario.request()).fixes;
        let nearest = "`starts` comes nearest to allowing it, and misses on.run: needs";
        assert!(fixes.len() == 1 && fixes[0].starts_with(nearest) && fixes[0].contains(found), "{fixes:?}");
    }
}

/// The owner of the policy was advised to make an administrator of somebody who had named the wrong service account.
#[test]
fn a_rule_of_the_caller_that_misses_only_the_body_is_nearer_than_one_of_other_people() {
    const RULES: &str = "
rules:
  - {id: admins, on: {namespace: ci, run: {does: [create]}}, who: {issuers: [corp], groups: [admins]}, do: allow}
  - {id: weak, on: {namespace: ci, run: {does: [create], service_accounts: [weak]}}, who: {issuers: [corp], groups: [dev]}, do: allow}
";
    let root = root(GROUND, RULES);
    let policy = compile(&root).unwrap();
    for (groups, nearest) in [
        ("dev", "`weak` comes nearest to allowing it, and misses on.run"),
        ("qa", "`admins` comes nearest to allowing it, and misses who.groups"),
    ] {
        let facts: raw::PrincipalFacts =
            serde_saphyr::from_str(&format!("{{issuer: corp, groups: [{groups}]}}")).unwrap();
        let request: raw::RequestFacts = serde_saphyr::from_str(
            "{route: api, method: POST, path: /apis/tekton.dev/v1/namespaces/ci/pipelineruns,
              body: {apiVersion: tekton.dev/v1, kind: PipelineRun, metadata: {name: a},
                spec: {pipelineRef: {name: p}, taskRunTemplate: {serviceAccountName: strong}}}}",
        )
        .unwrap();
        let scenario = Scenario::new(Some(&facts), &request, &root).unwrap();
        let fixes = policy.explain(&scenario.principal, &scenario.request()).fixes;
        assert!(fixes.len() == 1 && fixes[0].starts_with(nearest), "{groups}: {fixes:?}");
    }
}

/// A deny about bodies was in doubt for a body that was not read, and was named although it may not matter.
#[test]
fn a_body_is_wanted_of_those_alone_to_whom_it_may_make_a_difference() {
    const RULES: &str = "
rules:
  - {id: starts, on: {namespace: ci, run: {does: [create]}}, who: {issuers: [corp], groups: [dev]}, do: allow}
  - {id: by-scope, on: {namespace: ci, run: {does: [create]}}, who: {issuers: [corp], kind: agent, scopes: [run]}, do: allow}
  - {id: tried, on: {namespace: ci, run: {does: [create]}}, who: {issuers: [corp], groups: [ops]}, do: allow, mode: shadow}
  - {id: no-code, on: {run: {inline: true}}, do: deny}
  - {id: not-prod, on: {kubernetes: {namespaces: [prod]}}, do: deny}
";
    let root = root(GROUND, RULES);
    let policy = compile(&root).unwrap();
    for (facts, namespace, refused) in [
        ("groups: [dev], scopes: []", "ci", None),
        ("groups: [dev], scopes: []", "prod", Some("not-prod")),
        ("groups: [dev], scopes: []", "other", Some("")),
        ("groups: [qa], kind: human, scopes: []", "ci", Some("")),
        ("groups: [], kind: agent, client: test, scopes: [look]", "ci", Some("run")),
        ("groups: [ops], kind: human, scopes: []", "ci", None),
    ] {
        let path = format!("/apis/tekton.dev/v1/namespaces/{namespace}/pipelineruns");
        let facts: raw::PrincipalFacts = serde_saphyr::from_str(&format!("{{issuer: corp, {facts}}}")).unwrap();
        let request = serde_saphyr::from_str(&format!("{{route: api, method: POST, path: {path}}}")).unwrap();
        let scenario = Scenario::new(Some(&facts), &request, &root).unwrap();
        let refusal = policy.refuses_any_body(&scenario.principal, &scenario.request());
        let told = refusal.as_ref().map(|decision| match &decision.outcome {
            Outcome::NoMatch { missing_scope: Some(scope), .. } => &**scope,
            _ => decision.rule.as_deref().unwrap_or_default(),
        });
        assert_eq!(told, refused, "{facts:?} in {namespace}");
        let explained = policy.explain(&scenario.principal, &scenario.request());
        assert_eq!(explained.outcome, raw::Effect::Deny);
        if let Some(decision) = refusal {
            assert_eq!(explained.rule, decision.rule, "{facts:?} in {namespace}");
            assert!(explained.rules.iter().all(|report| &*report.rule != "no-code"), "{facts:?} in {namespace}");
        }
    }
}

/// It was taken for the nearest one, and no rule was said to allow anything on the route.
#[test]
fn an_allow_whose_expression_fails_is_not_the_nearest_to_allowing() {
    let mail = "{id: mail, on: {paths: ['/mail/*']}, who: {issuers: [corp]}, when: \"principal.email.endsWith('@a')\", do: allow}";
    let all = "{id: all, on: {routes: [web]}, who: {issuers: [corp], groups: [ops]}, do: allow}";
    let (fails, nearest) =
        ("the expression of `mail` must not fail", "`all` comes nearest to allowing it, and misses who.groups");
    let none = "no rule allows anything on this route; write one";
    for (rules, expected) in [
        (format!("{mail}, {all}"), vec![fails, nearest]),
        (mail.to_owned(), vec![fails]),
        (all.to_owned(), vec![nearest]),
        ("{id: no, on: {paths: [/other]}, do: deny}".to_owned(), vec![none]),
    ] {
        let root = root(GROUND, &format!("rules: [{rules}]"));
        let policy = compile(&root).unwrap();
        let facts: raw::PrincipalFacts = serde_saphyr::from_str("{issuer: corp, groups: [dev]}").unwrap();
        let request: raw::RequestFacts = serde_saphyr::from_str("{route: web, path: /mail/x}").unwrap();
        let scenario = Scenario::new(Some(&facts), &request, &root).unwrap();
        let fixes = policy.explain(&scenario.principal, &scenario.request()).fixes;
        let begin = |(fix, start): (&String, &&str)| fix.starts_with(start);
        assert!(fixes.len() == expected.len() && fixes.iter().zip(&expected).all(begin), "{rules}: {fixes:?}");
    }
}

/// A sender never becomes another one, however many other conditions its own rule has.
#[test]
fn a_rule_that_misses_only_the_branch_is_nearer_than_one_of_another_sender() {
    const GROUND: &str = "
webhooks:
  - {name: github, sender: github, secrets: [{secret: {env: A}}]}
  - {name: gitlab, sender: gitlab, secrets: [{secret: {env: B}}]}
upstreams: [{name: el, url: 'http://127.0.0.1:1'}]
routes:
  - {name: github, kind: webhook, hosts: [a], schemes: [webhook], webhook: github, upstream: el, event_listener: {namespace: ci, name: build}}
";
    const RULES: &str = "
rules:
  - {id: a-others, on: {event_listener: build}, who: {webhooks: [gitlab]}, do: allow}
  - {id: build, on: {event_listener: build, event: [push], branch: [main]}, who: {webhooks: [github]}, do: allow}
";
    let root = root(GROUND, RULES);
    let policy = compile(&root).unwrap();
    let request: raw::RequestFacts =
        serde_saphyr::from_str("{route: github, delivery: {event: push, tag: release/1, actor: ada}}").unwrap();
    let sender: raw::PrincipalFacts = serde_saphyr::from_str("{}").unwrap();
    let scenario = Scenario::new(Some(&sender), &request, &root).unwrap();
    let explanation = policy.explain(&scenario.principal, &scenario.request());
    let nearest = "`build` comes nearest to allowing it, and misses on.branch: needs main, has none";
    assert_eq!(explanation.fixes, [nearest]);
    let text = explanation.to_string();
    assert!(text.contains("delivery   push, tag release/1, actor ada\n"), "{text}");
    assert!(text.contains("a-others (allow): no match: who.webhooks: needs gitlab, has github"), "{text}");
}
