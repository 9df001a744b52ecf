use serde_json::json;

use super::*;
use crate::config::raw::Scheme;

const GROUND: &str = "
issuers:
  - {name: corp, issuer: 'https://corp.example', kind: human}
  - {name: partner, issuer: 'https://partner.example', kind: human}
routes:
  - {name: web, kind: http, hosts: [web.example], schemes: [session, bearer], upstream: web}
  - {name: robots, kind: http, hosts: [robots.example], schemes: [bearer], upstream: web}
  - {name: partners, kind: http, hosts: [partners.example], schemes: [session], issuers: [partner], upstream: web}
";

#[test]
fn a_person_is_shown_only_the_rules_that_concern_them() {
    let root = root(
        GROUND,
        "
rules:
  - {id: developers, why: Developers build, on: {routes: [web]}, who: {issuers: [corp], groups: [dev]}, do: allow}
  - {id: admins, on: {routes: [web]}, who: {issuers: [corp], groups: [admin]}, do: allow}
  - {id: nights, why: We sleep, on: {routes: [web], methods: [POST], time: {from: '20:00', to: '06:00'}}, do: deny}
  - {id: tried, on: {routes: [web]}, who: {issuers: [corp], groups: [dev]}, do: allow, mode: shadow}
  - {id: robots, on: {routes: [robots]}, do: allow}
  - {id: partners, on: {routes: [partners]}, do: allow}
",
    );
    let policy = compile(&root).unwrap();
    let facts =
        raw::PrincipalFacts { issuer: Some("corp".into()), groups: Some(vec!["dev".into()]), ..Default::default() };
    let request: raw::RequestFacts = serde_saphyr::from_str("{route: web}").unwrap();
    let principal = Scenario::new(Some(&facts), &request, &root).unwrap().principal;
    let told = serde_json::to_value(policy.concerns(&principal, Scheme::Session, &root)).unwrap();
    assert_eq!(
        told,
        json!([
            {"rule": "nights", "do": "deny", "why": "We sleep", "routes": ["web"],
                "only": ["POST requests", "at some times"]},
            {"rule": "developers", "do": "allow", "why": "Developers build", "routes": ["web"], "only": []},
        ])
    );
    let told = policy.concerns(&principal, Scheme::Bearer, &root);
    assert_eq!(told.last().map(|concern| (concern.rule, &*concern.routes)), Some(("robots", &["robots"][..])));
}

#[test]
fn the_unnamed_api_group_is_shown_as_core() {
    let ground = "
issuers: [{name: corp, issuer: 'https://corp.example', kind: human}]
routes: [{name: api, kind: kubernetes, hosts: [k8s.example], schemes: [bearer], upstream: api}]
upstreams: [{name: api, url: 'https://k8s.internal', credential: {bearer: {env: T}}}]
";
    let rules = "rules: [{id: look, on: {kubernetes: {api_groups: [tekton.dev, '']}}, do: allow}]";
    let root = root(ground, rules);
    let policy = compile(&root).unwrap();
    let principal = Principal::new(Scheme::Bearer, "corp", "alice", "alice");
    let told = policy.concerns(&principal, Scheme::Bearer, &root);
    assert_eq!(told[0].only, ["of the API groups tekton.dev, core"]);
}

/// One about requests to the API server alone was shown as if it were about the pages too.
#[test]
fn a_rule_about_the_pages_or_their_requests_is_shown_as_such() {
    let ground = "
issuers: [{name: corp, issuer: 'https://corp.example', kind: human}]
routes: [{name: board, kind: dashboard, hosts: [b.example], schemes: [bearer], upstream: board, kubernetes: api}]
upstreams: [{name: board, url: 'http://b.internal'}, {name: api, url: 'https://k8s.internal', credential: {bearer: {env: T}}}]
";
    for (pages, only) in
        [("true", &["for the pages"][..]), ("false", &["for what the pages request from the API server"])]
    {
        let root = root(ground, &format!("rules: [{{id: a, on: {{routes: [board], pages: {pages}}}, do: allow}}]"));
        let policy = compile(&root).unwrap();
        let principal = Principal::new(Scheme::Bearer, "corp", "alice", "alice");
        assert_eq!(policy.concerns(&principal, Scheme::Bearer, &root)[0].only, only);
    }
}

/// It took the allow away from somebody who was shown the allow alone.
#[test]
fn an_approve_that_is_in_doubt_for_somebody_is_shown_to_them() {
    let root = root(
        GROUND,
        "
rules:
  - {id: all, on: {routes: [web]}, who: {issuers: [corp]}, do: allow}
  - {id: eyes, on: {routes: [web]}, who: {issuers: [corp], groups: [ops]}, do: {approve: {by: {issuers: [corp], groups: [leads]}}}}
  - {id: never, on: {routes: [web]}, who: {issuers: [corp], groups: [ops]}, do: allow}
",
    );
    let policy = compile(&root).unwrap();
    let silent = Principal::new(Scheme::Bearer, "corp", "alice", "alice");
    let clear = Principal { says_groups: true, ..silent.clone() };
    let facts = raw::PrincipalFacts { issuer: Some("corp".into()), ..Default::default() };
    let request: raw::RequestFacts = serde_saphyr::from_str("{route: web}").unwrap();
    let scenario = Scenario::new(Some(&facts), &request, &root).unwrap();
    for (principal, shown, effect) in [(&silent, "eyes all", raw::Effect::Approve), (&clear, "all", raw::Effect::Allow)]
    {
        let concerns = policy.concerns(principal, Scheme::Bearer, &root);
        let rules: Vec<&str> = concerns.iter().map(|concern| concern.rule).collect();
        assert_eq!(rules.join(" "), shown);
        assert_eq!(policy.decide(principal, &scenario.request()).outcome.effect(), effect);
    }
}

/// It was shown as "after a login of some kind".
#[test]
fn a_rule_that_needs_a_login_is_shown_with_what_it_needs() {
    let rules = "rules: [{id: deploy, on: {routes: [web]}, need: {mfa: {max_age: 10m}, acr: [gold]}, do: allow}]";
    let root = root(GROUND, rules);
    let policy = compile(&root).unwrap();
    let principal = Principal::new(Scheme::Bearer, "corp", "alice", "alice");
    let told = policy.concerns(&principal, Scheme::Bearer, &root);
    assert_eq!(told[0].only, ["after a login with more than one factor in the last 10m, and a login of class gold"]);
}

/// A page that shows people their own access listed the namespace for a route that has none.
#[test]
fn a_rule_about_a_namespace_is_shown_for_routes_that_have_namespaces_alone() {
    let ground = "
issuers: [{name: corp, issuer: 'https://corp.example', kind: human}]
routes:
  - {name: api, kind: kubernetes, hosts: [k8s.example], schemes: [bearer], upstream: api}
  - {name: web, kind: http, hosts: [web.example], schemes: [bearer], upstream: web}
";
    let root = root(ground, "rules: [{id: prod, on: {namespace: prod}, do: deny}]");
    let policy = compile(&root).unwrap();
    let principal = Principal::new(Scheme::Bearer, "corp", "alice", "alice");
    let told = policy.concerns(&principal, Scheme::Bearer, &root);
    assert_eq!(told[0].routes, ["api"]);
}
