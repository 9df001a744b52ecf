//! Names in the tests of a policy that do not exist. `doorward test` decides the tests; a test that can never pass
//! because of such a name is reported earlier.

use crate::{
    authn::break_glass,
    config::{
        raw,
        report::{At, Report, Severity},
    },
    webhooks,
};

/// Warns of routes, issuers and rules that tests name and that do not exist. These are only warnings: tests decide
/// nothing about requests.
pub fn check_cases(root: &raw::Root, report: &mut Report) {
    let at = At::root().key("tests");
    for (i, case) in root.tests.iter().enumerate() {
        let at = at.index(i);
        let mut check = |at: At, what: &str, name: &str, known: Vec<&str>| {
            if !known.contains(&name) {
                report.unknown(&at, what, name, known).severity = Severity::Warning;
            }
        };
        if case.request.token.is_none() {
            let routes = root.routes.iter().map(|route| route.name.as_str()).collect();
            check(at.key("request").key("route"), "route", &case.request.route, routes);
        }
        let issuers = || root.issuers.iter().map(|issuer| issuer.name.as_str());
        let actor = case.principal.as_ref().and_then(|principal| principal.actor.as_ref());
        if let Some(name) = actor.and_then(|actor| actor.issuer.as_deref()) {
            check(at.key("principal").key("actor").key("issuer"), "issuer", name, issuers().collect());
        }
        if let Some(name) = case.principal.as_ref().and_then(|principal| principal.issuer.as_deref()) {
            let at = at.key("principal").key("issuer");
            match webhooks::of_issuer(name) {
                Some(name) => {
                    let webhooks = root.webhooks.iter().map(|webhook| webhook.name.as_str()).collect();
                    check(at, "webhook", name, webhooks);
                }
                None => check(at, "issuer", name, issuers().chain([break_glass::ISSUER]).collect()),
            }
        }
        if let Some(rule) = &case.expect.rule {
            let rules = root.rules.iter().map(|rule| rule.id.as_str()).collect();
            check(at.key("expect").key("rule"), "rule", rule, rules);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_in_cases_are_reported() {
        let root: raw::Root = serde_saphyr::from_str(
            "
issuers: [{name: company, issuer: 'https://company.example'}]
webhooks: [{name: hooks, sender: github, secrets: [{secret: {env: SECRET}}]}]
routes: [{name: k8s, kind: kubernetes, hosts: [k8s.example], schemes: [bearer], upstream: api}]
rules: [{id: look, do: allow}]
tests:
  - {name: good, principal: {issuer: company}, request: {route: k8s}, expect: {outcome: allow, rule: look}}
  - {name: token, principal: {issuer: 'webhook:hooks'}, request: {token: {audience: x}}, expect: {outcome: deny}}
  - {name: glass, principal: {issuer: break-glass}, request: {route: k8s}, expect: {outcome: deny}}
  - {name: bad, principal: {issuer: compny}, request: {route: k8}, expect: {outcome: deny, rule: lok}}
  - {name: hook, principal: {issuer: 'webhook:hoks'}, request: {route: k8s}, expect: {outcome: deny}}
  - {name: agent, principal: {actor: {issuer: compny, subject: bot}}, request: {route: k8s}, expect: {outcome: deny}}
",
        )
        .unwrap();
        let mut report = Report::default();
        check_cases(&root, &mut report);
        assert!(!report.has_errors());
        let told: Vec<String> = report
            .problems()
            .iter()
            .map(|found| format!("{} {} {}", found.at, found.message, found.help.as_deref().unwrap_or_default()))
            .collect();
        assert_eq!(
            told,
            [
                "/tests/3/request/route there is no route `k8` did you mean `k8s`?",
                "/tests/3/principal/issuer there is no issuer `compny` did you mean `company`?",
                "/tests/3/expect/rule there is no rule `lok` did you mean `look`?",
                "/tests/4/principal/issuer there is no webhook `hoks` did you mean `hooks`?",
                "/tests/5/principal/actor/issuer there is no issuer `compny` did you mean `company`?",
            ]
        );
    }
}
