//! Checks of a configuration as a whole: names, references between parts, and other checks across components. They read
//! no files and no clock.

mod listeners;
mod names;
mod operations;
mod routes;
mod upstreams;

pub use self::names::{is_label, is_name};

use std::collections::BTreeSet;

use super::{
    raw,
    report::{At, Report},
    resolver::Resolver,
};

/// Runs the checks that no component does itself, and reports problems. Routes with a `mended` part are not judged, nor
/// are missing rules unless all files of `policies` were read (`policies_whole`).
pub(super) fn check(root: &raw::Root, mended: &BTreeSet<At>, policies_whole: bool, resolver: &mut Resolver) {
    let report = &mut resolver.report;
    let names = Names::collect(root, report);
    let whole = |index: &usize| !is_touched(mended, &item("routes", *index));
    let routes: Vec<&raw::Route> =
        root.routes.iter().enumerate().filter(|(index, _)| whole(index)).map(|(_, route)| route).collect();
    listeners::check(root, report);
    upstreams::check(root, &names, &routes, mended, report);
    routes::check(root, &names, report);
    operations::check(root, &names, policies_whole, report);
    if mended.is_empty() && !report.has_errors() {
        unused(root, report);
    }
}

/// Warns of parts that nothing refers to. It is only called if all references are valid.
fn unused(root: &raw::Root, report: &mut Report) {
    let routes = root.routes.iter();
    let upstreams: BTreeSet<&str> = routes
        .flat_map(|route| std::iter::once(route.upstream.as_str()).chain(route.kubernetes.as_deref()))
        .chain(root.servers().map(|(_, server)| server))
        .chain(root.exchanged().flat_map(|from| &from.upstreams).map(String::as_str))
        .collect();
    let webhooks: BTreeSet<&str> = root.routes.iter().filter_map(|route| route.webhook.as_deref()).collect();
    let mut warn = |list: &str, what: &str, index: usize, name: &str| {
        report.warning(&item(list, index).key("name"), format!("nothing uses {what} `{name}`"));
    };
    for (index, upstream) in root.upstreams.iter().enumerate() {
        if !upstreams.contains(upstream.name.as_str()) {
            warn("upstreams", "upstream", index, &upstream.name);
        }
    }
    for (index, webhook) in root.webhooks.iter().enumerate() {
        if !webhooks.contains(webhook.name.as_str()) {
            warn("webhooks", "webhook", index, &webhook.name);
        }
    }
}

/// The names that other parts can refer to.
#[derive(Debug)]
struct Names<'a> {
    issuers: BTreeSet<&'a str>,
    webhooks: BTreeSet<&'a str>,
    upstreams: BTreeSet<&'a str>,
}

impl<'a> Names<'a> {
    fn collect(root: &'a raw::Root, report: &mut Report) -> Self {
        let mut of = |list: &str, what: &str, names: Vec<&'a str>| names::unique(list, what, names, report);
        of("listeners", "listener", root.listeners.iter().map(|listener| listener.name.as_str()).collect());
        of("routes", "route", root.routes.iter().map(|route| route.name.as_str()).collect());
        Self {
            issuers: of("issuers", "issuer", root.issuers.iter().map(|issuer| issuer.name.as_str()).collect()),
            webhooks: of("webhooks", "webhook", root.webhooks.iter().map(|webhook| webhook.name.as_str()).collect()),
            upstreams: of("upstreams", "upstream", root.upstreams.iter().map(|up| up.name.as_str()).collect()),
        }
    }
}

/// Checks a reference by name; returns whether it exists.
fn reference(known: &BTreeSet<&str>, what: &str, name: &str, at: &At, report: &mut Report) -> bool {
    let exists = known.contains(name);
    if !exists {
        report.unknown(at, what, name, known.iter().copied());
    }
    exists
}

/// Whether an entry of a list has a repaired part.
fn is_touched(mended: &BTreeSet<At>, entry: &At) -> bool {
    // Parts of an entry sort directly after it, as `/` sorts before all digits.
    mended.range(entry..).next().is_some_and(|part| part.is_within(entry))
}

/// The place of an entry of a list.
fn item(list: &str, index: usize) -> At {
    At::root().key(list).index(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_without_a_route_may_be_used_by_another_setting() {
        for (user, is_used) in [
            ("runs: {kubernetes: api}", true),
            ("interceptor: {host: doorward.svc, kubernetes: api}", true),
            ("tokens: {exchange: [{issuer: tasks, kubernetes: api}]}", true),
            ("tokens: {exchange: [{issuer: tasks, kubernetes: other, upstreams: [api]}]}", true),
            ("issuers: [{name: tasks, issuer: 'https://a', token_review: {upstream: api, bearer: {file: a}}}]", true),
            ("tokens: {exchange: [{issuer: api}]}", false),
            ("interceptor: {host: api}", false),
        ] {
            let root =
                serde_saphyr::from_str(&format!("upstreams: [{{name: api, url: 'https://a'}}]\n{user}")).unwrap();
            let mut report = Report::default();
            unused(&root, &mut report);
            let said: Vec<&str> = report.problems().iter().map(|problem| problem.message.as_str()).collect();
            let expected: &[&str] = if is_used { &[] } else { &["nothing uses upstream `api`"] };
            assert_eq!(said, expected, "{user}");
        }
    }
}
