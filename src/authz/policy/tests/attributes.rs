//! Attributes that are written in a case.

use super::*;

/// Such a case was decided by the attributes, although the request of its path has others, or none.
#[test]
fn a_case_whose_attributes_are_not_those_of_its_request_is_an_error() {
    const CREATE: &str = "kubernetes: {verb: create, api_group: tekton.dev, resource: pipelineruns, namespace: ci}";
    let root = root(GROUND, "tokens: {exchange: [{issuer: corp}]}");
    let of = |namespace: &str| format!("path: /apis/tekton.dev/v1/namespaces/{namespace}/pipelineruns");
    for (request, why) in [
        (format!("route: api, {CREATE}"), None),
        (format!("route: api, method: POST, {}, {CREATE}", of("ci")), None),
        (
            format!("route: api, method: POST, {}, {CREATE}", of("prod")),
            Some("and the path and the method say `create"),
        ),
        (format!("route: api, {}, {CREATE}", of("ci")), Some("and the path and the method say `list")),
        (format!("route: api, path: /version, {CREATE}"), Some("and the path and the method say `get /version`")),
        (format!("route: web, {CREATE}"), Some("requests on `web` reach no API server")),
        (format!("token: {{audience: x}}, {CREATE}"), Some("reach no API server")),
    ] {
        let asked: raw::RequestFacts = serde_saphyr::from_str(&format!("{{{request}}}")).unwrap();
        let facts: raw::PrincipalFacts = serde_saphyr::from_str("{issuer: corp}").unwrap();
        match (Scenario::new(Some(&facts), &asked, &root), why) {
            (Ok(_), None) => {}
            (Err(unasked), Some(why)) => assert!(unasked.to_string().contains(why), "{request}: {unasked}"),
            (came, _) => panic!("{request}: {came:?}"),
        }
    }
}
