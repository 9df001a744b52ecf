//! What people are told who are refused, or who ask for the reason.

use super::*;

#[test]
fn refusals_name_the_rule_and_what_to_do() {
    let root = root(
        ONE_ISSUER,
        "
rules:
  - {id: closed, on: {paths: [/closed]}, why: The store moved., fix: Use the new one., do: deny}
  - {id: eyes, on: {paths: [/eyes]}, do: {approve: {by: {groups: [leads]}, count: 2}}}
  - {id: mfa, on: {paths: [/mfa]}, need: {mfa: {max_age: 15m}, acr: [gold]}, do: allow}
  - {id: scope, on: {paths: [/scope]}, who: {groups: [dev], scopes: [tekton:run]}, do: allow}
  - {id: error, on: {paths: [/error]}, when: 'principal.claims.x', do: allow}
",
    );
    let policy = compile(&root).unwrap();
    for (path, reason, detail, fix, scopes) in [
        (
            "/closed",
            "policy_denied",
            "the rule `closed` denies this request: The store moved",
            Some("Use the new one"),
            0,
        ),
        (
            "/eyes",
            "approval_required",
            "only with the approval of 2 people",
            Some("Doorward takes no approvals yet, so ask the owners of the policy for a rule that needs none"),
            0,
        ),
        ("/mfa", "need_unmet", "more than one factor in the last 15m, and a login of class gold", None, 0),
        ("/scope", "no_rule_matched", "with the scope `tekton:run` one would", None, 1),
        ("/error", "policy_denied", "could not be evaluated", None, 0),
        ("/other", "no_rule_matched", "no rule allows this request", None, 0),
    ] {
        let facts = raw::PrincipalFacts { groups: Some(vec!["dev".into()]), ..Default::default() };
        let request: raw::RequestFacts = serde_saphyr::from_str(&format!("{{route: web, path: {path}}}")).unwrap();
        let scenario = Scenario::new(Some(&facts), &request, &root).unwrap();
        let rejection = policy.decide(&scenario.principal, &scenario.request()).rejection().unwrap();
        assert_eq!(rejection.reason().as_str(), reason, "{path}");
        assert!(rejection.detail().contains(detail), "{path}: {}", rejection.detail());
        assert_eq!(rejection.needed_scopes().len(), scopes, "{path}");
        if let Some(fix) = fix {
            assert_eq!(rejection.fix_text(), Some(fix), "{path}");
        }
    }
}

/// The first by id was named, so that people were told of a defect of the policy in place of the reason.
#[test]
fn a_deny_that_matches_is_named_rather_than_one_that_fails() {
    for failing in ["a-old", "c-old"] {
        let rules = format!(
            "
rules:
  - {{id: all, do: allow}}
  - {{id: {failing}, when: \"principal.claims.dept == 'x'\", do: deny}}
  - {{id: b-frozen, why: Frozen for the audit, fix: Wait until Monday, do: deny}}
"
        );
        let root = root(ONE_ISSUER, &rules);
        let policy = compile(&root).unwrap();
        let request: raw::RequestFacts = serde_saphyr::from_str("{route: web}").unwrap();
        let scenario = Scenario::new(Some(&raw::PrincipalFacts::default()), &request, &root).unwrap();
        let rejection = policy.decide(&scenario.principal, &scenario.request()).rejection().unwrap();
        assert_eq!(rejection.detail(), "the rule `b-frozen` denies this request: Frozen for the audit", "{failing}");
        assert_eq!(rejection.fix_text(), Some("Wait until Monday"), "{failing}");
    }
}

/// The rule that refused was said not to match, and nothing to make the request pass.
#[test]
fn an_approve_in_doubt_whose_expression_fails_is_explained_as_what_refuses() {
    let root = root(
        GROUND,
        "
rules:
  - {id: all, who: {issuers: [corp]}, do: allow}
  - id: eyes
    who: {issuers: [corp], groups: [ops]}
    when: \"principal.claims.team == 'x'\"
    do: {approve: {by: {issuers: [corp], groups: [leads]}}}
",
    );
    let policy = compile(&root).unwrap();
    let facts: raw::PrincipalFacts = serde_saphyr::from_str("{issuer: corp}").unwrap();
    let request: raw::RequestFacts = serde_saphyr::from_str("{route: web}").unwrap();
    let scenario = Scenario::new(Some(&facts), &request, &root).unwrap();
    let explanation = policy.explain(&scenario.principal, &scenario.request());
    assert_eq!((explanation.outcome, explanation.rule.as_deref()), (raw::Effect::Deny, Some("eyes")));
    let [fix] = &*explanation.fixes else { panic!("{:?}", explanation.fixes) };
    assert!(fix.starts_with("the expression of `eyes` must not fail"), "{fix}");
    assert!(explanation.to_string().contains("- eyes (approve): fails, which denies: "), "{explanation}");
}

/// A client asks for exactly what it is told to (RFC 6750 section 3.1: what is necessary to access the resource).
#[test]
fn a_caller_who_lacks_a_scope_is_asked_to_keep_the_scopes_of_the_route_too() {
    let root = root(
        GROUND,
        "
rules:
  - {id: read, on: {routes: [web], methods: [GET]}, who: {issuers: [corp], groups: [dev], scopes: [door:read]}, do: allow}
  - {id: write, on: {routes: [web], methods: [POST]}, who: {issuers: [corp], groups: [dev], scopes: [door:write]}, do: allow}
  - {id: theirs, on: {routes: [web]}, who: {issuers: [partner], groups: [dev], scopes: [partner:use]}, do: allow}
  - {id: elsewhere, on: {routes: [api]}, who: {issuers: [corp], groups: [dev], scopes: [kube]}, do: allow}
",
    );
    let policy = compile(&root).unwrap();
    let needed = |scopes: &str, method: &str| {
        let facts = format!("{{issuer: corp, groups: [dev], scopes: [{scopes}]}}");
        let facts: raw::PrincipalFacts = serde_saphyr::from_str(&facts).unwrap();
        let request: raw::RequestFacts =
            serde_saphyr::from_str(&format!("{{route: web, path: /, method: {method}}}")).unwrap();
        let scenario = Scenario::new(Some(&facts), &request, &root).unwrap();
        let rejection = policy.decide(&scenario.principal, &scenario.request()).rejection().unwrap();
        rejection.needed_scopes().join(" ")
    };
    assert_eq!(needed("'door:read', openid", "POST"), "door:write door:read");
    assert_eq!(needed("'door:write', kube, 'partner:use'", "GET"), "door:read door:write");
    assert_eq!(needed("", "GET"), "door:read");
    // No scope would suffice.
    assert_eq!(needed("'door:read', 'door:write'", "PUT"), "");
}

/// The scope was named as the one thing missing, so that an agent had its user sign in twice.
#[test]
fn a_caller_who_lacks_a_scope_and_a_login_is_told_of_both() {
    let rule = |id: &str, scope: &str, more: &str| {
        format!("{{id: {id}, who: {{issuers: [corp], groups: [dev], scopes: [{scope}]}}, {more}do: allow}}")
    };
    let needs = rule("needs", "door:deploy", "need: {mfa: {max_age: 15m}}, ");
    let plain = rule("plain", "door:plain", "");
    let never = rule("never", "door:never", "when: 'false', ");
    for (rules, amr, scopes, login) in [
        (needs.clone(), "pwd", "door:deploy", Some(" --mfa 15m")),
        (needs.clone(), "mfa", "door:deploy", None),
        (format!("{needs}, {plain}"), "pwd", "door:plain", None),
        (never, "mfa", "", None),
    ] {
        let root = root(ONE_ISSUER, &format!("rules: [{rules}]"));
        let policy = compile(&root).unwrap();
        let facts = format!("{{groups: [dev], scopes: [], amr: [{amr}], login_age: 1m}}");
        let facts: raw::PrincipalFacts = serde_saphyr::from_str(&facts).unwrap();
        let request: raw::RequestFacts = serde_saphyr::from_str("{route: web}").unwrap();
        let scenario = Scenario::new(Some(&facts), &request, &root).unwrap();
        let rejection = policy.decide(&scenario.principal, &scenario.request()).rejection().unwrap();
        assert_eq!(rejection.reason().as_str(), "no_rule_matched", "{rules}");
        assert_eq!(rejection.needed_scopes().join(" "), scopes, "{rules}");
        assert_eq!(rejection.needed_login().map(|needed| needed.options()).as_deref(), login, "{rules}");
        let told = ", after a login with more than one factor in the last 15m, one would";
        assert_eq!(rejection.detail().contains(told), login.is_some(), "{}", rejection.detail());
    }
}

/// A server refuses a client that asks it for a scope of another server.
#[test]
fn the_scopes_of_a_route_are_those_of_rules_for_the_issuers_that_are_asked_about() {
    let rules = "
rules:
  - {id: all, on: {routes: [web]}, who: {issuers: [cluster, corp], kind: agent, scopes: [b, a]}, do: allow}
  - {id: corp, on: {routes: [web]}, who: {issuers: [corp, partner], kind: agent, scopes: [c]}, do: allow}
  - {id: own, on: {routes: [web]}, who: {issuers: [cluster], kind: agent, scopes: [d]}, do: allow}
";
    let policy = compile(&root(GROUND, rules)).unwrap();
    let of = |issuers: &[&str]| policy.scopes_on("web", |name| issuers.contains(&name)).into_iter().collect::<String>();
    assert_eq!(
        (of(&["corp"]), of(&["cluster"]), of(&["corp", "cluster"])),
        ("abc".into(), "abd".into(), "abcd".into())
    );
}

/// A login for the missing part alone got that part and lost the rest: the person went back and forth, and their
/// session was weaker afterwards.
#[test]
fn a_caller_whose_login_lacks_a_factor_must_sign_in_with_all_that_the_rule_needs() {
    let rule = "{id: all, who: {issuers: [corp]}, need: {acr: [gold], fresh_login: {max_age: 5m}}, do: allow}";
    let root = root(ONE_ISSUER, &format!("rules: [{rule}]"));
    let policy = compile(&root).unwrap();
    let request: raw::RequestFacts = serde_saphyr::from_str("{route: web}").unwrap();
    for (facts, missing) in [
        ("{issuer: corp, acr: gold, login_age: 6m}", "a login in the last 5m"),
        ("{issuer: corp, acr: silver, login_age: 1m}", "a login of class gold"),
    ] {
        let facts: raw::PrincipalFacts = serde_saphyr::from_str(facts).unwrap();
        let scenario = Scenario::new(Some(&facts), &request, &root).unwrap();
        let rejection = policy.decide(&scenario.principal, &scenario.request()).rejection().unwrap();
        assert!(rejection.detail().ends_with(&format!("but it needs {missing}")), "{}", rejection.detail());
        assert_eq!(rejection.needed_login().unwrap().options(), " --max-age 5m --acr gold", "{missing}");
        let explained = policy.explain(&scenario.principal, &scenario.request()).to_string();
        assert!(explained.contains(&format!("would match with {missing}\n")), "{explained}");
    }
}

#[test]
fn an_explanation_lists_what_matches_what_misses_and_what_would_pass() {
    let root = root(
        ONE_ISSUER,
        "
rules:
  - {id: near, on: {methods: [POST]}, who: {groups: [dev]}, do: allow}
  - {id: here, on: {paths: [/]}, who: {groups: [ops]}, do: allow}
  - {id: far, on: {methods: [POST], paths: [/x]}, who: {groups: [ops]}, do: allow}
  - {id: never, on: {paths: [/]}, who: {kind: agent}, fix: Ask a person., do: deny}
",
    );
    let policy = compile(&root).unwrap();
    let request: raw::RequestFacts = serde_saphyr::from_str("{route: web}").unwrap();
    let facts: raw::PrincipalFacts =
        serde_saphyr::from_str("{groups: [dev], subject: \"a\\u001b[2J\", client: \"a\\u001b[2J\"}").unwrap();
    let scenario = Scenario::new(Some(&facts), &request, &root).unwrap();
    let explanation = policy.explain(&scenario.principal, &scenario.request());
    let text = explanation.to_string();
    for part in [
        "DENY: the rule `never` denies this request",
        "to pass: `never` must not match: Ask a person.",
        "to pass: `here` comes nearest to allowing it, and misses who.groups: needs ops, has dev",
        "- never (deny): matches",
        "  far (allow): no match: on.methods: needs POST, has GET",
    ] {
        assert!(text.contains(part), "{part}\n---\n{text}");
    }
    // attacks:Z19
    assert!(!text.contains('\u{1b}'));
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["outcome"], "deny");
    assert_eq!(json["rules"][0]["verdict"], "hit");
    assert_eq!(json["rules"][1]["misses"].as_array().map(Vec::len), Some(3));
}
