//! Warnings about the expression of a rule: what it reads may be absent from requests that the rule is about, or have
//! another value there than its author expects.

use crate::config::{
    raw::{self, RouteKind},
    report::{At, Report},
};

use super::{
    cel::Reads,
    condition::Reading,
    on::On,
    reach::{VERIFIED_EMAIL, may_have_unverified_email},
};

const NAME: (&str, &str) = ("kubernetes", "name");
const NAMESPACE: (&str, &str) = ("kubernetes", "namespace");
const VERB: (&str, &str) = ("kubernetes", "verb");

/// Fields by which an expression tells requests of different routes apart.
const APART: [(&str, &str); 6] = [
    ("principal", "issuer"),
    ("principal", "kind"),
    ("request", "host"),
    ("request", "method"),
    ("request", "path"),
    ("request", "route"),
];

const NAMELESS: &str = "a create, and a list, watch or deletion of all objects have an empty `kubernetes.name`";

/// Warns about fields that the expression of a rule reads. `on` has the conditions of the rule, and `routes` the routes
/// where it can match.
pub(super) fn warn(
    rule: &raw::Rule,
    reads: &Reads<'_>,
    on: &[On],
    reading: Reading,
    routes: &[&raw::Route],
    at: &At,
    report: &mut Report,
) {
    let at = at.key("when");
    // The author has distinguished such requests by verb or by path.
    let tells_apart = reads.fields.contains(&VERB) || !rule.on.paths.is_empty();
    if !tells_apart && routes.iter().any(|route| route.reaches_kubernetes()) {
        warn_of_namespace(rule, reads, on, reading, &at, report);
        warn_of_name(rule, reads, on, reading, &at, report);
    }
    warn_of_variables(rule, reads, routes, &at, report);
}

/// Warns of an address among the claims that the callers may have chosen for themselves, in an allow.
pub(super) fn warn_of_email(rule: &raw::Rule, reads: &Reads<'_>, root: &raw::Root, at: &At, report: &mut Report) {
    if reads.claims.contains("email") && may_have_unverified_email(&rule.who, root) {
        report
            .warning(
                &at.key("when"),
                "`principal.claims.email` is there whether or not the address is verified: where people choose it \
                 themselves, anybody can have it",
            )
            .help(VERIFIED_EMAIL);
    }
}

/// Warns of a variable that requests of a route do not have, so that the expression fails for all of them.
fn warn_of_variables(rule: &raw::Rule, reads: &Reads<'_>, routes: &[&raw::Route], at: &At, report: &mut Report) {
    let (on, who) = (&rule.on, &rule.who);
    // The author has distinguished requests by other means than the route.
    if APART.iter().any(|field| reads.fields.contains(field))
        || !(on.hosts.is_empty() && on.paths.is_empty())
        || !(who.repositories.is_empty() && who.senders.is_empty())
    {
        return;
    }
    for variable in ["kubernetes", "delivery"] {
        let is_of = |(of, _): &(&str, &str)| *of == variable;
        let lacks = |route: &&&raw::Route| match (variable, route.kind) {
            ("kubernetes", RouteKind::Dashboard) => {
                on.kubernetes.is_none() && on.run.is_none() && on.namespace.is_none() && on.pages != Some(false)
            }
            ("kubernetes", RouteKind::Kubernetes) | ("delivery", RouteKind::Webhook) => false,
            _ => true,
        };
        let Some(route) = routes.iter().find(lacks) else { continue };
        if reads.fields.iter().any(is_of) && !reads.tested.iter().any(is_of) {
            report
                .warning(
                    at,
                    format!(
                        "requests on the route `{}` may have no `{variable}`: the expression fails, and refuses those \
                         that the rest of the rule is about",
                        route.name
                    ),
                )
                .help(format!(
                    "name in `on.routes` the routes that are meant, or test for a field of it: `has({variable}.{})`",
                    if variable == "kubernetes" { "verb" } else { "event" }
                ));
        }
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

/// Warns that requests which name no object evade a rule about the names of some.
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
