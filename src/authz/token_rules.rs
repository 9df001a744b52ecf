//! What rules say of a token, whatever its scope: looked at once, as one request may be decided for each of many scopes.

use std::collections::BTreeSet;

use crate::authn::Principal;

use super::{
    Decision, Outcome, Policy, RequestView,
    policy::Tally,
    rule::{Case, Hit, Rule},
};

/// The rules that hold of a token that somebody asks for, but for its scope.
#[derive(Debug)]
pub struct TokenRules<'p>(Vec<(&'p Rule, Hit)>);

impl Policy {
    /// Looks at all rules for tokens. What `request` says of a scope is left out.
    pub fn token_rules(&self, principal: &Principal, request: &RequestView<'_>) -> TokenRules<'_> {
        let case = Case::new(principal, self.issuer(principal), request);
        let looked = self.candidates(request.route).map(|rule| (rule, rule.look_but_scope(&case)));
        TokenRules(looked.filter(|(_, hit)| !matches!(hit, Hit::Miss)).collect())
    }
}

impl TokenRules<'_> {
    /// Decides about one scope, as [`Policy::decide`] does; `None`: a token without any. Which scope of their own credential would
    /// help is not told.
    pub fn decide(&self, scope: Option<&str>) -> Decision {
        let mut tally = Tally::default();
        for (rule, hit) in self.0.iter().filter(|(rule, _)| rule.takes_scope(scope)) {
            tally.count(rule, hit);
        }
        tally.decide(|| Outcome::NoMatch { missing_scope: None, kept_scopes: Vec::new() })
    }

    /// The patterns of scopes in those that allow, as they are written. Where any scope is given, one of these is, taken for a scope:
    /// a pattern is among those that it stands for, and whatever else hits it hits all of them.
    pub fn scope_patterns(&self) -> BTreeSet<String> {
        let allows = self.0.iter().filter(|(rule, _)| rule.is_allow());
        allows.flat_map(|(rule, _)| rule.token_scope_patterns()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        authz::{Scenario, TokenView},
        config::{raw, resolver::Resolver},
    };

    const POLICY: &str = "
issuers: [{name: corp, issuer: 'https://corp.example', kind: human}]
external_host: id.example
tokens: {exchange: [{issuer: corp}]}
rules:
  - {id: reads, on: {token: {audiences: [x], scopes: [read, 'repo:*']}}, who: {groups: [dev]}, do: allow}
  - {id: bare, on: {token: {audiences: [x]}}, who: {groups: [bare]}, do: allow}
  - {id: admins, on: {token: {audiences: [x], scopes: [read, write, 'repo:secret']}}, who: {groups: [admin]}, do: allow}
  - {id: fresh, on: {token: {audiences: [x], scopes: [sign]}}, need: {fresh_login: {max_age: 5m}}, do: allow}
  - {id: fails, on: {token: {audiences: [x], scopes: [odd]}}, when: \"principal.claims.team == 'a'\", do: allow}
  - {id: tried, on: {token: {audiences: [x], scopes: [write]}}, do: allow, mode: shadow}
  - {id: elsewhere, on: {token: {audiences: [y], scopes: [read]}}, do: allow}
  - {id: closed, on: {token: {audiences: [x], scopes: ['repo:closed/*']}}, do: deny}
  - {id: leavers, who: {groups: [leaving]}, do: deny}
  - {id: doubt, on: {token: {scopes: [write]}}, when: \"principal.claims.level > 3\", who: {groups: [doubted]}, do: deny}
";

    fn policy() -> (raw::Root, Policy) {
        let root: raw::Root = serde_saphyr::from_str(POLICY).unwrap();
        let mut resolver = Resolver::default();
        let policy = Policy::compile(&root, &mut resolver);
        let policy = policy.unwrap_or_else(|| panic!("{:?}", resolver.report.problems()));
        (root, policy)
    }

    fn scenario(groups: &[&str], root: &raw::Root) -> Scenario {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        let facts = raw::PrincipalFacts { issuer: Some("corp".into()), groups: Some(groups), ..Default::default() };
        let request: raw::RequestFacts = serde_saphyr::from_str("{token: {audience: x}}").unwrap();
        Scenario::new(Some(&facts), &request, root).unwrap()
    }

    #[test]
    fn a_scope_is_decided_as_if_all_rules_were_asked_anew() {
        let (root, policy) = policy();
        for groups in [&[][..], &["dev"], &["bare"], &["admin"], &["dev", "admin", "leaving"], &["admin", "doubted"]] {
            let scenario = scenario(groups, &root);
            let asked = scenario.request();
            let rules = policy.token_rules(&scenario.principal, &asked);
            let scopes = ["read", "write", "repo:a", "repo:secret", "repo:closed/a", "repo:*", "sign", "odd", "none"];
            for scope in scopes.into_iter().map(Some).chain([None]) {
                let token = asked.token.map(|token| TokenView { scope, ..token });
                let anew = policy.decide(&scenario.principal, &RequestView { token, ..asked });
                assert_eq!(format!("{:?}", rules.decide(scope)), format!("{anew:?}"), "{groups:?} {scope:?}");
            }
        }
    }

    /// Else each scope would cost a walk through all rules, and each refusal one for each scope of all rules.
    #[test]
    fn rules_of_others_and_for_others_are_not_looked_at_for_each_scope() {
        let (root, policy) = policy();
        let scenario = scenario(&["bare"], &root);
        let rules = policy.token_rules(&scenario.principal, &scenario.request());
        let ids: Vec<&str> = rules.0.iter().map(|(rule, _)| &*rule.id).collect();
        assert_eq!(ids, ["closed", "bare", "fails", "fresh", "tried"]);
        assert_eq!(Vec::from_iter(rules.scope_patterns()), ["odd", "sign", "write"]);
    }
}
