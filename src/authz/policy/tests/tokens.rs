//! Tokens of Doorward's own: which of their scopes are shown, and who presents them.

use super::*;
use crate::authz::{AskedToken, NotEvaluated};

/// Whoever asks for one audience has no use for rules about another.
#[test]
fn without_a_scope_the_scopes_of_other_audiences_are_not_listed() {
    let root = root(
        GROUND,
        "
tokens: {exchange: [{issuer: corp}]}
rules:
  - {id: api, on: {token: {audiences: ['https://api.example*'], scopes: [deploy, look]}}, who: {issuers: [corp], groups: [dev]}, do: allow}
  - {id: git, on: {token: {audiences: [git.example], scopes: [push]}}, who: {issuers: [corp], groups: [dev]}, do: allow}
",
    );
    let policy = compile(&root).unwrap();
    let request: raw::RequestFacts = serde_saphyr::from_str("{token: {audience: any}}").unwrap();
    let facts: raw::PrincipalFacts = serde_saphyr::from_str("{issuer: corp, groups: [dev]}").unwrap();
    let scenario = Scenario::new(Some(&facts), &request, &root).unwrap();
    for (audience, scopes) in [
        ("https://api.example/v1", &[Some("deploy"), Some("look")][..]),
        ("git.example", &[Some("push")]),
        ("other.example", &[None]),
    ] {
        let asked = AskedToken { audience: audience.to_owned(), scopes: None, partly: false, task: None };
        let explained = policy.explain_token(&scenario.principal, &scenario.request(), &asked);
        let told: Vec<Option<&str>> = explained.decisions.iter().map(|decision| decision.scope.as_deref()).collect();
        assert_eq!(told, scopes, "{audience}");
        let effect = if scopes == [None] { raw::Effect::Deny } else { raw::Effect::Allow };
        assert_eq!(explained.outcome, effect, "{audience}");
        let told = explained.to_string();
        assert_eq!(told.contains("\n  a token without a scope is not given: "), scopes == [None], "{told}");
    }
}

/// A registry client that only checks whether its password is valid asks for no scope, and is let in if it may get any.
#[test]
fn a_login_at_a_registry_is_explained_as_it_is_decided() {
    const RULES: &str = "
tokens: {exchange: [{issuer: corp}], registries: [{service: r}]}
rules:
  - {id: images, on: {token: {audiences: [r], scopes: ['pull:acme/*']}}, who: {issuers: [corp], groups: [dev]}, do: allow}
  - {id: left, on: {token: {audiences: [r], scopes: ['*']}}, who: {issuers: [corp], groups: [left]}, do: deny}
";
    let root = root(GROUND, RULES);
    let policy = compile(&root).unwrap();
    let request: raw::RequestFacts = serde_saphyr::from_str("{token: {audience: r}}").unwrap();
    let asked = |partly| AskedToken { audience: "r".to_owned(), scopes: Some(Vec::new()), partly, task: None };
    for (groups, partly, outcome) in [
        ("[dev]", true, raw::Effect::Allow),
        ("[dev, left]", true, raw::Effect::Deny),
        ("[guests]", true, raw::Effect::Deny),
        ("[dev]", false, raw::Effect::Deny),
    ] {
        let facts: raw::PrincipalFacts =
            serde_saphyr::from_str(&format!("{{issuer: corp, groups: {groups}}}")).unwrap();
        let scenario = Scenario::new(Some(&facts), &request, &root).unwrap();
        // A record has nothing about the token in its request.
        let view = RequestView { token: None, ..scenario.request() };
        let explained = policy.explain_token(&scenario.principal, &view, &asked(partly));
        assert_eq!(explained.outcome, outcome, "{groups} {partly}: {explained}");
        assert_eq!(explained.scopes, [""; 0], "a login gets none");
    }
}

/// The exchange evaluates no rule for them.
#[test]
fn a_principal_that_can_never_get_a_token_is_refused_in_a_case_too() {
    let policy = "
tokens: {exchange: [{issuer: corp}, {issuer: cluster, kubernetes: api, namespaces: [ci]}]}
rules:
  - {id: all, on: {token: {audiences: [x], service_accounts: [ci/builder, other/builder]}}, do: allow}
";
    let root = root(GROUND, policy);
    let told = |issuer: &str, task: &str| {
        let facts = raw::PrincipalFacts { issuer: Some(issuer.to_owned()), ..raw::PrincipalFacts::default() };
        let request: raw::RequestFacts = serde_saphyr::from_str(&format!("{{token: {{audience: x{task}}}}}")).unwrap();
        match Scenario::new(Some(&facts), &request, &root) {
            Ok(_) => None,
            Err(NotEvaluated::Refused(refused)) => Some(refused.detail().to_owned()),
            Err(unasked) => panic!("{unasked}"),
        }
    };
    let of = |namespace: &str| format!(", task: {{namespace: {namespace}, service_account: builder}}");
    assert_eq!(told("corp", ""), None);
    assert_eq!(told("partner", ""), Some("tokens of the issuer `partner` are not exchanged for others".to_owned()));
    assert_eq!(told("partner", &of("ci")), None, "they caused the run");
    assert_eq!(told("corp", &of("other")), Some("no task in namespace other gets tokens".to_owned()));
}

/// Otherwise a case would be decided by rules of a cluster whose tasks get no tokens, or of none.
#[test]
fn a_case_of_a_task_says_of_which_cluster_it_is_unless_there_is_only_one() {
    let told = |clusters: &str, task: &str| {
        let issuers = "issuers: [{name: corp, issuer: 'https://corp.example'}, \
            {name: east, issuer: 'https://east.example', preset: kubernetes}, \
            {name: west, issuer: 'https://west.example', preset: kubernetes}]\n";
        let root = root(issuers, &format!("tokens: {{exchange: [{clusters}]}}"));
        let facts = raw::PrincipalFacts { issuer: Some("corp".to_owned()), ..raw::PrincipalFacts::default() };
        let request = format!("{{token: {{audience: x, task: {{{task}namespace: ci, service_account: builder}}}}}}");
        let request: raw::RequestFacts = serde_saphyr::from_str(&request).unwrap();
        Scenario::new(Some(&facts), &request, &root).err().map(|unasked| unasked.to_string()).unwrap_or_default()
    };
    const ONE: &str = "{issuer: east, kubernetes: east}";
    const BOTH: &str = "{issuer: east, kubernetes: east}, {issuer: west, kubernetes: west}";
    for (clusters, task, problem) in [
        (ONE, "", ""),
        (ONE, "cluster: east, ", ""),
        (ONE, "cluster: west, ", "`tokens.exchange` has no cluster `west`"),
        (BOTH, "cluster: west, ", ""),
        (BOTH, "", "tasks of several clusters get tokens; write one of them in `cluster`: east, west"),
    ] {
        assert_eq!(told(clusters, task), problem, "{clusters} {task}");
    }
}

/// The token says `kind: human`, and the grant gave nothing, without a warning.
#[test]
fn a_kind_that_no_subject_of_a_task_token_has_is_warned_about() {
    const OWN: &str = "
issuers:
  - {name: corp, issuer: 'https://corp.example', kind: human}
  - {name: cluster, issuer: 'https://cluster.example', preset: kubernetes}
  - {name: own, preset: doorward, issuer: 'https://door.example', audiences: [a]}
";
    let tasks = "tokens: {exchange: [{issuer: cluster, kubernetes: api}]}";
    let people = "tokens: {exchange: [{issuer: cluster, kubernetes: api}, {issuer: corp}]}";
    for (tokens, who, is_told) in [
        (tasks, "{issuers: [own], kind: human, subjects: [x]}", true),
        (tasks, "{issuers: [own], kind: workload, subjects: [x]}", true),
        (tasks, "{issuers: [own], kind: human, on_behalf_of: {}}", false),
        (tasks, "{issuers: [own], kind: agent, scopes: [x]}", false),
        (tasks, "{issuers: [corp, own], kind: human}", false),
        // These present tokens without an actor.
        (people, "{issuers: [own], kind: human, subjects: [x]}", false),
    ] {
        for part in [
            format!("grants: [{{id: g, who: {who}, kubernetes_groups: [g]}}]"),
            format!("rules: [{{id: a, who: {who}, do: allow}}]"),
            format!("rules: [{{id: a, who: {who}, do: deny}}]"),
        ] {
            let root = root(OWN, &format!("{tokens}\n{part}"));
            let told = warnings_of(&root)
                .iter()
                .any(|found| found.message.contains("each token of this issuer has a task as actor"));
            assert_eq!(told, is_told && !part.contains("deny"), "{tokens} {part}");
        }
    }
}

/// What a client asks its provider for is no right of the person, but scopes in a token of Doorward's own were given by
/// rules.
#[test]
fn an_actor_can_use_scopes_that_rules_gave_and_not_those_of_a_provider() {
    const OWN: &str = "
issuers:
  - {name: corp, issuer: 'https://corp.example', kind: human}
  - {name: own, preset: doorward, issuer: 'https://door.example', audiences: [a]}
routes:
  - {name: web, kind: http, hosts: [web.example], schemes: [bearer], upstream: web}
";
    let mut cases = String::new();
    for (issuer, kind, actor, path, outcome) in [
        ("own", "human", true, "/alone", "allow"),
        ("own", "human", true, "/behalf", "allow"),
        ("own", "human", false, "/alone", "deny"),
        ("own", "agent", true, "/alone", "allow"),
        ("corp", "human", true, "/alone", "deny"),
        ("corp", "human", true, "/behalf", "deny"),
        ("corp", "agent", true, "/alone", "allow"),
        ("corp", "agent", false, "/alone", "allow"),
    ] {
        let acting = if actor { ", actor: {subject: bot}" } else { "" };
        // There, only a token of a client's own is not a person's.
        let client = if (issuer, kind) == ("corp", "agent") { ", client: test" } else { "" };
        cases.push_str(&format!(
            "  - {{name: \"{issuer} {kind} {actor} at {path}\", principal: {{issuer: {issuer}, kind: {kind}{client}, scopes: [run]{acting}}}, \
             request: {{route: web, path: {path}}}, expect: {{outcome: {outcome}}}}}\n"
        ));
    }
    decide_all(
        OWN,
        &format!(
            "
rules:
  - {{id: alone, on: {{paths: [/alone]}}, who: {{issuers: [own, corp], kind: agent, scopes: [run]}}, do: allow}}
  - {{id: behalf, on: {{paths: [/behalf]}}, who: {{issuers: [own, corp], kind: agent, scopes: [run], on_behalf_of: {{}}}}, do: allow}}
tests:
{cases}"
        ),
    );
}

#[test]
fn a_scope_that_gives_an_actor_nothing_is_warned_about() {
    const OWN: &str = "
issuers:
  - {name: corp, issuer: 'https://corp.example', kind: human}
  - {name: own, preset: doorward, issuer: 'https://door.example', audiences: [a]}
";
    for (who, is_told) in [
        ("{issuers: [corp], kind: agent, scopes: [x], on_behalf_of: {}}", true),
        ("{issuers: [corp, own], kind: agent, scopes: [x], on_behalf_of: {}}", true),
        ("{issuers: [own], kind: agent, scopes: [x], on_behalf_of: {}}", false),
        ("{issuers: [corp], kind: agent, scopes: [x], on_behalf_of: {groups: [dev]}}", false),
        ("{issuers: [corp], kind: agent, clients: [planner], scopes: [x], on_behalf_of: {}}", false),
        ("{issuers: [corp], kind: agent, scopes: [x]}", false),
    ] {
        for action in ["allow", "deny"] {
            let root = root(OWN, &format!("rules: [{{id: a, who: {who}, do: {action}}}]"));
            let told = warnings_of(&root).iter().any(|found| found.at.as_str() == "/rules/0/who/scopes");
            assert_eq!(told, is_told && action == "allow", "{who} {action}");
        }
    }
}
