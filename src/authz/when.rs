//! Warnings about the expression of a rule: what it reads may be absent from requests that the rule is about, or have
//! another value there than its author expects.

use crate::config::{
    raw,
    report::{At, Report},
};

use super::{
    cel::{Expression, Reads},
    condition::Reading,
    on::On,
};

const NAME: (&str, &str) = ("kubernetes", "name");
const NAMESPACE: (&str, &str) = ("kubernetes", "namespace");
const VERB: (&str, &str) = ("kubernetes", "verb");

const NAMELESS: &str = "a create, and a list, watch or deletion of all objects have an empty `kubernetes.name`";

/// Warns about the expression `when` of a rule with the conditions `on`, which requests on `routes` can match.
pub(super) fn warn(
    rule: &raw::Rule,
    when: &Expression,
    on: &[On],
    reading: Reading,
    routes: &[&raw::Route],
    at: &At,
    report: &mut Report,
) {
    let (reads, at) = (when.reads(), at.key("when"));
    // By the verb or by paths, the author has told such requests apart.
    let tells_apart = reads.fields.contains(&VERB) || !rule.on.paths.is_empty();
    if !tells_apart && routes.iter().any(|route| route.reaches_kubernetes()) {
        warn_of_namespace(rule, &reads, on, reading, &at, report);
        warn_of_name(rule, &reads, on, reading, &at, report);
    }
}

/// Warns that the expression fails for requests about all namespaces.
fn warn_of_namespace(rule: &raw::Rule, reads: &Reads<'_>, on: &[On], reading: Reading, at: &At, report: &mut Report) {
    let can_hold = |on: &On| match on {
        On::Kubernetes(condition) => condition.can_be_about_all_namespaces(reading),
        On::Namespace(_) => reading == Reading::Wide,
        On::Methods(_) => has_method(rule, &["GET", "HEAD", "DELETE"]),
        On::Run(_) | On::Pages(true) => false,
        _ => true,
    };
    if !reads.fields.contains(&NAMESPACE) || reads.tested.contains(&NAMESPACE) || !on.iter().all(can_hold) {
        return;
    }
    let otherwise = "`has(kubernetes.namespace) && …` to leave them to other rules, or list names in `namespaces` of \
                     `on.kubernetes`";
    report
        .warning(
            at,
            "requests about all namespaces have no `kubernetes.namespace`, so that the expression fails and they are \
             refused",
        )
        .help(match rule.action {
            raw::Action::Allow => format!("write {otherwise}"),
            _ => format!("write `!has(kubernetes.namespace) || …` to include them in this rule, {otherwise}"),
        });
}

/// Warns that requests about all objects get round a rule about the names of some.
fn warn_of_name(rule: &raw::Rule, reads: &Reads<'_>, on: &[On], reading: Reading, at: &At, report: &mut Report) {
    let can_hold = |on: &On| match on {
        On::Kubernetes(condition) => condition.can_name_no_object(reading),
        On::Methods(_) => has_method(rule, &["GET", "HEAD", "DELETE", "POST"]),
        On::Run(_) | On::Pages(true) => false,
        _ => true,
    };
    if !reads.fields.contains(&NAME) || reads.empty || !on.iter().all(can_hold) {
        return;
    }
    match (&rule.action, reads.negated.contains(&NAME)) {
        (raw::Action::Allow, true) => {
            report
                .warning(at, format!("{NAMELESS}, so that this allow includes the objects that it excludes by name"))
                .help("add `kubernetes.name != '' && …`, and allow in another rule what names no object");
        }
        (raw::Action::Deny | raw::Action::Approve(_), false) => {
            report.warning(at, format!("{NAMELESS}, so that this rule misses them")).help(
                "use `names` in `on.kubernetes`, which a deny reads more broadly, or add `kubernetes.name == '' || …`",
            );
        }
        _ => {}
    }
}

/// Whether the rule is about one of these methods.
fn has_method(rule: &raw::Rule, methods: &[&str]) -> bool {
    rule.on.methods.iter().any(|method| methods.contains(&method.as_str()))
}
