//! Which rule an explanation calls the nearest to allowing a request.

use super::*;

/// The first name won, though it was of a rule about quite other requests.
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
