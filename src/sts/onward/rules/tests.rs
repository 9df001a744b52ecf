use super::super::Onward;
use crate::{
    config::{
        report::{At, Problem, Severity},
        resolver::Resolver,
    },
    egress::Egress,
};

/// The problems of this provider under this rule.
fn problems_of(onward: &str, rule: &str) -> Vec<Problem> {
    let yaml = format!(
        "tokens: {{exchange: [], onward: [{{audience: v, {onward}}}]}}\nrules: [{{id: r, on: {{token: {{{rule}}}]"
    );
    let (root, mut resolver) = (serde_saphyr::from_str(&yaml).unwrap(), Resolver::default());
    Onward::resolve_all(
        &root,
        ("https://door.test", None),
        &Egress::direct(None, None).unwrap(),
        &At::root(),
        &mut resolver,
    );
    resolver.report.problems().to_vec()
}

/// Their places, and whether each is an error.
fn told_of(onward: &str, rule: &str) -> Vec<(String, bool)> {
    let problems = problems_of(onward, rule);
    problems.iter().map(|problem| (problem.at.as_str().to_owned(), problem.severity == Severity::Error)).collect()
}

/// It adds a warning to a configuration in force, and stops none.
#[test]
fn a_rule_with_scopes_that_matches_aws_by_a_pattern_is_warned_about() {
    let aws = "provider: {aws: {role: 'arn:aws:iam::1:role/a'}}";
    for (audiences, scopes, told) in
        [("'v*'", ", scopes: [a]", 1), ("'*'", ", scopes: [a]", 1), ("'v*'", "", 0), ("'vault*'", ", scopes: [a]", 0)]
    {
        let rule = format!("audiences: [{audiences}]{scopes}}}}}, do: allow");
        assert_eq!(told_of(aws, &rule), vec![("/0/audience".to_owned(), false); told], "{rule}");
    }
}

/// A provider that is asked for no scope gives what it chooses, or nothing: `check` accepted it, and each exchange was
/// refused.
#[test]
fn a_rule_without_scopes_is_reported_if_the_provider_needs_or_chooses_one() {
    let google = "provider: {google: {pool_provider: '//iam.googleapis.com/p/providers/q'}}";
    let standard = "provider: {token_exchange: {token_url: 'https://a'}}, assertion: {audience: x}";
    let client =
        "provider: {client_credentials: {token_url: 'https://a', resource: 'https://b'}}, assertion: {audience: x}";
    let default = format!("{standard}, default_scopes: [all]");
    for (onward, rule, told) in [
        (google, "audiences: [v]}}, do: allow", Some(true)),
        (google, "audiences: ['*']}}, do: allow", Some(false)),
        (google, "audiences: [v], scopes: [a]}}, do: allow", None),
        (google, "audiences: [v]}}, do: deny", None),
        (standard, "audiences: [v]}}, do: allow", Some(false)),
        (standard, "audiences: ['*']}}, do: allow", Some(false)),
        (standard, "audiences: [v], scopes: [a]}}, do: allow", None),
        (standard, "audiences: [v]}}, do: deny", None),
        // The audience does not determine its scopes, and what is given is refused all the same.
        (client, "audiences: [v]}}, do: allow", Some(false)),
        // It is reported where it is written.
        (standard, "}}, do: allow", None),
        (&*default, "audiences: [v]}}, do: allow", None),
    ] {
        let told: Vec<_> = told.map(|is_error| ("/0/audience".to_owned(), is_error)).into_iter().collect();
        assert_eq!(told_of(onward, rule), told, "{onward} {rule}");
    }
}

/// A caller that was denied such a scope by one name got it by the other. A deny gives nothing, and an allow may need
/// the name at another audience, or give something beside it: these only get a warning.
#[test]
fn a_scope_name_that_rules_do_not_use_is_reported() {
    for (scopes, rule, told) in [
        ("{a: there}", "audiences: [v], scopes: [a]}}, do: allow", vec![]),
        ("{a: there}", "audiences: [v], scopes: [there]}}, do: allow", vec![("/0/audience", true)]),
        ("{a: there}", "audiences: [v], scopes: [THERE]}}, do: deny", vec![("/0/audience", false)]),
        ("{a: there}", "audiences: [v, w], scopes: [there]}}, do: deny", vec![("/0/audience", false)]),
        ("{a: there}", "audiences: [v], scopes: [a, there]}}, do: deny", vec![]),
        ("{a: there}", "audiences: [v], scopes: ['*', there]}}, do: deny", vec![]),
        ("{a: there}", "audiences: [v], scopes: [a, there]}}, do: allow", vec![("/0/audience", false)]),
        ("{a: there}", "audiences: [v], scopes: [there, other]}}, do: allow", vec![("/0/audience", false)]),
        ("{a: there}", "audiences: [v], scopes: [there, 'the*']}}, do: allow", vec![("/0/audience", false)]),
        ("{a: there}", "audiences: [v], scopes: [there, THERE]}}, do: allow", vec![("/0/audience", true)]),
        ("{a: there}", "audiences: [v, w], scopes: [there]}}, do: allow", vec![("/0/audience", false)]),
        ("{a: there}", "audiences: [v, w], scopes: [a, there]}}, do: allow", vec![("/0/audience", false)]),
        ("{a: there}", "audiences: [v], scopes: ['the*']}}, do: allow", vec![("/0/audience", false)]),
        ("{a: there}", "audiences: [v], scopes: ['the*']}}, do: deny", vec![("/0/audience", false)]),
        ("{a: there, b: these}", "audiences: [v], scopes: [a, 'the*']}}, do: deny", vec![("/0/audience", false)]),
        ("{a: there, the: x}", "audiences: [v], scopes: ['the*']}}, do: allow", vec![]),
        ("{a: there}", "audiences: [v], scopes: ['*']}}, do: allow", vec![]),
        ("{a: there}", "audiences: ['*'], scopes: [there]}}, do: allow", vec![("/0/audience", false)]),
        ("{a: there}", "scopes: [there]}}, do: deny", vec![("/0/audience", false)]),
        ("{a: there}", "audiences: [w], scopes: [there]}}, do: allow", vec![]),
        ("{a: there, there: elsewhere}", "audiences: [v], scopes: [there]}}, do: allow", vec![]),
    ] {
        let onward = format!(
            "provider: {{jwt_bearer: {{token_url: 'https://a'}}}}, assertion: {{audience: x}}, scopes: {scopes}"
        );
        let found = told_of(&onward, rule);
        let found: Vec<_> = found.iter().map(|(at, is_error)| (at.as_str(), *is_error)).collect();
        assert_eq!(found, told, "{scopes} {rule}");
    }
}

/// Two that differ in case were reported as one, though scopes are case-sensitive (RFC 6749 section 3.3).
#[test]
fn names_that_differ_in_case_are_reported_as_possibly_one_scope() {
    for (scopes, said) in [
        ("{a: there, b: there}", "`a` and `b` are one scope there, `there`"),
        ("{a: There, b: there}", "`a` and `b` may be one scope there: `There` and `there`"),
    ] {
        let onward = format!(
            "provider: {{jwt_bearer: {{token_url: 'https://a'}}}}, assertion: {{audience: x}}, scopes: {scopes}"
        );
        let problems = problems_of(&onward, "audiences: [v], scopes: [a]}}, do: allow");
        let found: Vec<_> = problems.iter().map(|problem| (problem.at.as_str(), problem.message.as_str())).collect();
        assert_eq!(found, [("/0/scopes/b", said)]);
    }
}
