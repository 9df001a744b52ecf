//! Tests of keys without a value.

use super::{Case, GOOD, with};
use crate::config::{
    raw::{PrincipalFacts, TestFile},
    read,
};

/// It would count as no condition, and an allow would be wider than it looks, as from a template whose value is not
/// set, or above lines that are commented out.
#[test]
fn a_condition_that_is_left_empty_is_an_error_at_its_key() {
    const RULE: &str = "    who: {groups: [developers]}\n";
    let schema = crate::config::schema();
    let line = GOOD[..GOOD.find(RULE).unwrap()].lines().count() + 1;
    for (part, condition) in [
        ("On", "on: {KEY: }"),
        ("OnKubernetes", "on: {kubernetes: {KEY: }}"),
        ("OnRun", "on: {run: {KEY: }}"),
        ("OnToken", "on: {token: {KEY: }}"),
        ("OnTrigger", "on: {trigger: {KEY: }}"),
        ("TimeWindow", "on: {time: {KEY: }}"),
        ("Who", "who: {KEY: }"),
        ("OnBehalfOf", "who: {on_behalf_of: {KEY: }}"),
        ("Need", "need: {KEY: }"),
        ("MaxAge", "need: {mfa: {KEY: }}"),
        ("Rule", "KEY:"),
    ] {
        let known = schema["$defs"][part]["properties"].as_object().unwrap().keys().map(String::as_str);
        for key in known.filter(|key| part != "Rule" || ["on", "who", "need", "when", "mode"].contains(key)) {
            let written = condition.replace("KEY", key);
            let printed = with(RULE, &format!("    {written}\n")).printed();
            let place = format!("doorward.yaml:{line}:{}\n", 5 + condition.find("KEY").unwrap());
            assert!(printed.contains("found nothing") && printed.contains(&place), "{written}: {place}: {printed}");
        }
    }
}

/// An empty setting would count as left out, and many optional settings protect something.
#[test]
fn the_schema_lets_no_setting_be_empty() {
    assert!(!crate::config::schema().to_string().contains("\"null\""));
}

/// A test case expected any rule, and `explain` explained a principal without groups.
#[test]
fn empty_values_in_files_of_tests_and_principals_are_errors_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part.yaml");
    let case = |more: &str| {
        std::fs::write(&path, format!("tests:\n- {{name: a, {more}}}\n")).unwrap();
        read::<TestFile>(&path).map(|file| file.tests.len())
    };
    assert_eq!(case("request: {route: web}, expect: {outcome: allow, rule: dev}").unwrap(), 1);
    for (empty, place) in [
        ("request: {route: web}, expect: {outcome: allow, rule: }", "part.yaml:2:"),
        ("request: {route: web}, expect: {outcome: allow, kubernetes_groups: }", "part.yaml:2:"),
        ("request: {route: web, path: }, expect: {outcome: allow}", "part.yaml:2:"),
        ("request: {route: web}, principal: {groups: null}, expect: {outcome: allow}", "part.yaml:2:"),
    ] {
        let told = case(empty).unwrap_err();
        assert!(told.contains("found nothing") && told.contains(place), "{empty}: {told}");
    }
    for nothing in ["", "# tests:\n# - {name: a}\n", "{}\n"] {
        std::fs::write(&path, nothing).unwrap();
        for told in [read::<TestFile>(&path).map(drop), read::<PrincipalFacts>(&path).map(drop)] {
            assert!(told.unwrap_err().contains("part.yaml says nothing"), "{nothing:?}");
        }
    }
    let twice = case("request: {route: web}, expect: {outcome: allow, outcome: deny}").unwrap_err();
    assert!(twice.contains("a second time"), "{twice}");

    let principal = |text: &str| {
        std::fs::write(&path, text).unwrap();
        read::<PrincipalFacts>(&path)
    };
    assert_eq!(principal("groups: [dev]\nclaims: {team: null}\n").unwrap().groups.unwrap(), ["dev"]);
    let told = principal("subject: alice\ngroups:\n").unwrap_err();
    assert!(told.contains("found nothing") && told.contains("part.yaml:2:"), "{told}");
    let told = principal("subjct: alice\n").unwrap_err();
    assert!(told.contains("did you mean `subject`?"), "{told}");
}

/// A former secret whose end is left empty would be accepted for ever, and a revoked token until its own expiry without
/// introspection.
#[test]
fn an_empty_protective_setting_is_an_error() {
    const SECRET: &str = "secret: {file: github-secret}";
    for (there, empty) in [
        (SECRET, "secret: {file: github-secret}, not_before: "),
        (SECRET, "secret: {file: github-secret}, not_after: "),
        ("    sender: github", "    sender: github\n    client_certificate:"),
        ("    sender: github", "    sender: generic\n    signature: {header: x, timestamp_header: }"),
        ("login: {kind: human", "login: {kind: human, max_age: null"),
        ("address: 127.0.0.1:8080", "address: 127.0.0.1:8080\n    tls: {certificates: [], client_ca: }"),
        ("address: 127.0.0.1:8080", "address: 127.0.0.1:8080\n    tls:"),
        ("    audiences: [doorward]", "    audiences: [doorward]\n    introspection:\n    # mode: always"),
        ("    audiences: [doorward]", "    audiences: [doorward]\n    token_review:"),
        ("    audiences: [doorward]", "    audiences: [doorward]\n    ca:"),
        ("    sender: github", "    sender: aws_sns\n    sns: {topics: [], ca: }"),
        ("url: https://kubernetes.default.svc", "url: https://kubernetes.default.svc\n    tls:"),
        ("url: https://kubernetes.default.svc", "url: https://kubernetes.default.svc\n    tls: {ca: }"),
        ("url: https://kubernetes.default.svc", "url: https://kubernetes.default.svc\n    tls: {certificate: }"),
        ("sessions:\n", "audit: {pseudonym_key: }\nsessions:\n"),
        ("sessions:\n", "tokens: {exchange: [], keys: [{file: key, from: }]}\nsessions:\n"),
        (
            "sessions:\n",
            "tokens: {exchange: [], onward: [{audience: a, provider: {aws: {role: r, session_policy: }}}]}\nsessions:\n",
        ),
    ] {
        let printed = with(there, empty).printed();
        assert!(printed.contains("found nothing"), "{empty}: {printed}");
        // The value is not a secret in any case.
        assert!(!printed.contains("cannot be written here itself"), "{empty}: {printed}");
    }
}

/// There is no key that could be removed.
#[test]
fn an_empty_value_that_is_in_no_file_is_unset_where_it_was_given() {
    for (case, remedy) in [
        (Case::new(GOOD).env("DOORWARD_EXTERNAL_HOST", ""), "unset the variable"),
        (Case::new(GOOD).set("external_host", ""), "leave out the flag"),
        (Case::new(&format!("external_host:\n{GOOD}")), "remove the key"),
    ] {
        let printed = case.printed();
        assert!(printed.contains(&format!("help: {remedy}, or give it a value")), "{printed}");
    }
}
