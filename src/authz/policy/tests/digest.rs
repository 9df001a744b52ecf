//! What the digest of a policy covers.

use super::*;

#[test]
fn the_digest_follows_the_meaning_of_the_policy() {
    let one = root(GROUND, "rules: [{id: a, on: {}, do: allow}, {id: b, who: {users: [x]}, do: deny, why: null}]");
    let two = root(GROUND, "rules: [{do: deny, who: {users: [x], anonymous: false}, id: b}, {id: a, do: allow}]");
    let other = root(GROUND, "rules: [{id: a, do: allow}, {id: b, who: {users: [y]}, do: deny}]");
    let digest = |root: &raw::Root| compile(root).unwrap().digest().to_string();
    assert_eq!(digest(&one), digest(&two));
    assert_ne!(digest(&one), digest(&other));
    assert_eq!(digest(&one).len(), 64);

    let policy = compile(&one).unwrap();
    let read: raw::PolicyFile = serde_json::from_str(policy.source()).unwrap();
    let again = raw::Root { rules: read.rules, grants: read.grants, ..root(GROUND, "") };
    assert_eq!(compile(&again).unwrap().digest(), policy.digest());
}

/// With other names, a rule gives another scope or none, and the trail had one digest for both.
#[test]
fn provider_names_of_scopes_are_part_of_the_policy() {
    let digest = |scopes: &str| {
        let onward = format!(
            "{{audience: x, provider: {{jwt_bearer: {{token_url: 'https://a'}}}}, assertion: {{audience: a}}{scopes}}}"
        );
        let rules = "rules: [{id: a, on: {token: {audiences: [x], scopes: ['*']}}, who: {issuers: [corp]}, do: allow}]";
        let policy = format!("tokens: {{exchange: [{{issuer: corp}}], onward: [{onward}]}}\n{rules}");
        compile(&root(GROUND, &policy)).unwrap().digest().to_string()
    };
    assert_eq!(digest(""), digest(", scopes: {}"));
    assert_ne!(digest(""), digest(", scopes: {read: There}"));
    assert_ne!(digest(", scopes: {read: There}"), digest(", scopes: {read: elsewhere}"));
}

/// A policy that is stored by its digest is used for decisions again, and must not have become wider.
#[test]
fn conditions_that_are_false_are_part_of_the_policy() {
    for asked in ["fork: false", "run: {inline: false}", "run: {does: [create], pod_template: false}"] {
        let written = root(GROUND, &format!("rules: [{{id: a, on: {{{asked}}}, do: allow}}]"));
        let policy = compile(&written).unwrap();
        let read: raw::PolicyFile = serde_json::from_str(policy.source()).unwrap();
        assert_eq!(read.rules, written.rules, "{asked}");
    }
}

/// `kubernetes: {}` asks for a Kubernetes request; without it, a rule applies to every request.
#[test]
fn an_empty_condition_is_part_of_the_policy() {
    // Includes those that a configuration may not have: later versions read what is stored.
    let kept = |rule: &str| {
        let written = root(GROUND, &format!("rules: [{{id: a, {rule}, do: allow}}]"));
        let source = canonical(&written, &scopes_of(&written));
        let read: raw::PolicyFile = serde_json::from_str(&source).unwrap();
        (source, read.rules == written.rules)
    };
    for (with, without) in [
        ("on: {kubernetes: {}}", "on: {}"),
        ("on: {run: {}}", "on: {}"),
        ("on: {trigger: {}}", "on: {}"),
        ("on: {token: {}}", "on: {}"),
        ("who: {kind: agent, on_behalf_of: {}}", "who: {kind: agent}"),
    ] {
        let (source, reads_back) = kept(with);
        assert!(reads_back, "{with}");
        assert_ne!(source, kept(without).0, "{with}");
    }
    let empty = "on: {run: {params: {}, labels: {}}}, who: {claims: {}}";
    assert_eq!(kept(empty).0, kept("on: {run: {}}").0, "what asks for nothing is no part of it");
    let digest = |rule: &str| {
        let policy = compile(&root(GROUND, &format!("rules: [{{id: a, on: {rule}, do: allow}}]"))).unwrap();
        policy.digest().to_string()
    };
    assert_ne!(digest("{kubernetes: {}}"), digest("{}"));
}
