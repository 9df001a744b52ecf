//! Tokens of Doorward's own: which scopes of them are told.

use super::*;
use crate::authz::AskedToken;

/// Who asks for one audience has no use for what rules say of another.
#[test]
fn without_a_scope_those_of_other_audiences_are_not_told() {
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
        assert_eq!(explained.outcome, if scopes == [None] { "deny" } else { "allow" }, "{audience}");
    }
}
