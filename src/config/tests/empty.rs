//! What is written down and left empty.

use super::{GOOD, with};

/// It would be none, and an allow wider than it looks: as of a template with a value that is not set, or of lines that are commented out.
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

/// A former secret of which the end is left empty would be good for ever.
#[test]
fn what_narrows_a_credential_and_is_left_empty_is_an_error() {
    const SECRET: &str = "secret: {file: github-secret}";
    for (there, empty) in [
        (SECRET, "secret: {file: github-secret}, not_before: "),
        (SECRET, "secret: {file: github-secret}, not_after: "),
        ("    sender: github", "    sender: github\n    client_certificate:"),
        ("    sender: github", "    sender: generic\n    signature: {header: x, timestamp_header: }"),
        ("login: {kind: human", "login: {kind: human, max_age: null"),
        ("address: 127.0.0.1:8080", "address: 127.0.0.1:8080\n    tls: {certificates: [], client_ca: }"),
    ] {
        let printed = with(there, empty).printed();
        assert!(printed.contains("found nothing"), "{empty}: {printed}");
    }
}
