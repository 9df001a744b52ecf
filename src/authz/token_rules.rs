//! The rules that apply to a token regardless of its scope. They are evaluated once, as one request may be decided for
//! many scopes.

use std::collections::{BTreeMap, BTreeSet};

use crate::authn::Principal;

use super::{
    Decision, Outcome, Policy, RequestView,
    rule::{Case, Hit, Rule},
    tally::Tally,
    token::{misnamed, our_names},
};

/// The rules that match a requested token, apart from its scope.
#[derive(Debug)]
pub struct TokenRules<'p> {
    rules: Vec<(&'p Rule, Hit)>,
    /// The provider's names of scopes, by our names.
    names: Option<&'p BTreeMap<String, String>>,
}

impl Policy {
    /// Evaluates all rules about tokens. A scope in `request` is ignored.
    pub fn token_rules(&self, principal: &Principal, request: &RequestView<'_>) -> TokenRules<'_> {
        let case = Case::new(principal, self.issuer(principal), request);
        let looked = self.candidates(request.route).map(|rule| (rule, rule.look_but_scope(&case)));
        TokenRules {
            rules: looked.filter(|(_, hit)| !matches!(hit, Hit::Miss)).collect(),
            names: request.token.and_then(|token| self.scopes_of(token.audience)),
        }
    }
}

impl TokenRules<'_> {
    /// Decides one scope as [`Policy::decide`] does; `None`: a token without scopes. Does not say which scope of the
    /// caller's own credential would help.
    pub fn decide(&self, scope: Option<&str>) -> Decision {
        if let Some(refusal) = misnamed(self.names, scope) {
            return refusal;
        }
        let mut tally = Tally::default();
        for (rule, hit) in self.rules.iter().filter(|(rule, _)| rule.takes_scope(scope)) {
            tally.count(rule, hit);
        }
        tally.decide(|| Outcome::NoMatch { missing_scope: None, kept_scopes: Vec::new(), need: None })
    }

    /// Returns the refusal of a scope that a matching allow names as only its provider does. If no rule matches any of
    /// our names for it either, the caller cannot get it by asking for those, and the rule has to be changed.
    pub fn misnamed(&self) -> Option<Decision> {
        let allows = self.rules.iter().filter(|(rule, _)| rule.is_allow() && !rule.shadow);
        let mut named = allows.flat_map(|(rule, _)| rule.token_scope_patterns().map(move |scope| (&rule.id, scope)));
        named.find_map(|(id, scope)| {
            let mut refusal = misnamed(self.names, Some(&scope))?;
            let ours = our_names(self.names, &scope);
            let is_of_none = |ours: &&str| matches!(self.decide(Some(ours)).outcome, Outcome::NoMatch { .. });
            if ours.iter().all(is_of_none)
                && let Outcome::Deny(denial) = &mut refusal.outcome
            {
                denial.fix = Some(format!("change rule `{id}` to name `{}`", ours.join("` or `")).into());
            }
            Some(refusal)
        })
    }

    /// Returns the patterns of scopes in matching allows, as they are written. If any scope is given, then so is one of
    /// these patterns when it is taken for a scope: a pattern matches itself, and any other rule that matches it
    /// matches every scope that it stands for.
    pub fn scope_patterns(&self) -> BTreeSet<String> {
        let allows = self.rules.iter().filter(|(rule, _)| rule.is_allow());
        allows.flat_map(|(rule, _)| rule.token_scope_patterns()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        authz::{AskedToken, Scenario, TokenView},
        config::{
            raw::{self, Effect},
            resolver::Resolver,
        },
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

    fn policy(yaml: &str) -> (raw::Root, Policy) {
        let root: raw::Root = serde_saphyr::from_str(yaml).unwrap();
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
    fn a_scope_is_decided_as_if_all_rules_were_evaluated_again() {
        let (root, policy) = policy(POLICY);
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

    /// `explain` and `test` reported the scope as given, but the exchange refused it, and with it everything given
    /// beside it if no scope was requested by name. Later they left it out, and told people to ask for it by the name
    /// that only the rule has.
    #[test]
    fn a_scope_under_its_providers_name_is_refused_if_named_and_omitted_if_not() {
        let (root, policy) = policy(
            "
issuers: [{name: corp, issuer: 'https://corp.example', kind: human}]
external_host: id.example
tokens:
  exchange: [{issuer: corp}]
  onward: [{audience: x, provider: {jwt_bearer: {token_url: 'https://a'}}, assertion: {audience: a}, scopes: {read: There, there: else}}]
rules:
  - {id: several, on: {token: {audiences: ['*'], scopes: [There, ELSE]}}, do: allow}
  - {id: any, on: {token: {audiences: [x], scopes: [read, '*']}}, do: allow}
",
        );
        let scenario = scenario(&[], &root);
        let asked = scenario.request();
        let explain = |scopes: Option<&str>| {
            let scopes = scopes.map(|scope| vec![scope.to_owned()]);
            let asked = AskedToken { audience: "x".to_owned(), scopes, partly: false, task: None };
            policy.explain_token(&scenario.principal, &scenario.request(), &asked)
        };
        for (scope, effect) in [
            ("read", Effect::Allow),
            ("There", Effect::Deny),
            ("there", Effect::Allow),
            ("else", Effect::Deny),
            ("ELSE", Effect::Deny),
            ("other", Effect::Allow),
        ] {
            let token = asked.token.map(|token| TokenView { scope: Some(scope), ..token });
            let anew = policy.decide(&scenario.principal, &RequestView { token, ..asked });
            let decided = policy.token_rules(&scenario.principal, &asked).decide(Some(scope));
            assert_eq!((anew.outcome.effect(), explain(Some(scope)).outcome), (effect, effect), "{scope}");
            assert_eq!(format!("{decided:?}"), format!("{anew:?}"), "{scope}");
        }
        let said = explain(Some("There")).to_string();
        assert!(said.contains("name of `read`") && said.contains("to pass: ask for `read`, if"), "{said}");
        let told = policy.token_rules(&scenario.principal, &asked).misnamed().map(|refusal| format!("{refusal:?}"));
        assert!(told.as_ref().is_some_and(|told| told.contains("ask for `read`, if")), "{told:?}");
        let of_itself = explain(None);
        let said = of_itself.to_string();
        assert!(said.contains("scope There is not given: `There` is the provider's name of `read`"), "{said}");
        assert_eq!((of_itself.outcome, of_itself.scopes), (Effect::Allow, vec!["read".to_owned()]));
        assert_eq!(Vec::from_iter(policy.token_scopes("y")), ["ELSE", "There"]);
    }

    /// Otherwise each scope would cost a walk through all rules, and each refusal one for each scope of all rules.
    #[test]
    fn rules_for_other_callers_and_audiences_are_not_evaluated_for_each_scope() {
        let (root, policy) = policy(POLICY);
        let scenario = scenario(&["bare"], &root);
        let rules = policy.token_rules(&scenario.principal, &scenario.request());
        let ids: Vec<&str> = rules.rules.iter().map(|(rule, _)| &*rule.id).collect();
        assert_eq!(ids, ["closed", "bare", "fails", "fresh", "tried"]);
        assert_eq!(Vec::from_iter(rules.scope_patterns()), ["odd", "sign", "write"]);
    }
}
