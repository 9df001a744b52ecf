//! References of issuers, and the sections that exist only once.

use super::{Names, item, names, reference};
use crate::config::{
    raw::{self, Scheme},
    report::{At, Report},
    values::Span,
};

/// Audiences that many applications share: a token for any of them would be accepted here.
const SHARED_AUDIENCES: [(&str, &str); 5] = [
    ("api://default", "Okta's default audience"),
    ("account", "Keycloak's default audience"),
    ("https://kubernetes.default.svc", "the API server's own audience"),
    ("https://kubernetes.default.svc.cluster.local", "the API server's own audience"),
    ("00000003-0000-0000-c000-000000000000", "the audience of Microsoft Graph"),
];

pub(super) fn check(root: &raw::Root, names: &Names<'_>, policies_whole: bool, report: &mut Report) {
    let at = At::root();
    issuers(root, names, report);
    if let Some(written) = &root.interceptor {
        interceptor(root, written, names, report);
    }
    if let Some(runs) = &root.runs {
        let at = at.key("runs");
        reference(&names.upstreams, "upstream", &runs.kubernetes, &at.key("kubernetes"), report);
        for (index, namespace) in runs.namespaces.iter().enumerate() {
            names::namespace(namespace, &at.key("namespaces").index(index), report);
        }
    }
    for (index, exchanged) in root.exchanged().enumerate() {
        let at = at.key("tokens").key("exchange").index(index).key("namespaces");
        for (index, namespace) in exchanged.namespaces.iter().enumerate() {
            names::namespace(namespace, &at.index(index), report);
        }
    }
    onward_lifetimes(root, report);
    if let Some(host) = &root.external_host {
        let at = at.key("external_host");
        match host.starts_with('*') {
            true => _ = report.error(&at, "`external_host` must be one name, not a wildcard"),
            false => names::host(host, &at, report),
        }
    }
    if policies_whole && root.rules.is_empty() && !root.routes.is_empty() {
        report
            .warning(&at.key("routes"), "there is no rule: every request will be denied")
            .help("add rules to `rules` or to a file that `policies` lists");
    }
    if root.store.path.as_os_str().is_empty() {
        report.error(&at.key("store").key("path"), "`path` cannot be empty");
    }
    if root.break_glass.is_some() && !root.routes.iter().any(|route| route.schemes.contains(&Scheme::BreakGlass)) {
        report
            .warning(&at.key("break_glass"), "no route has the scheme `break_glass`")
            .help("the section has no effect");
    }
}

fn interceptor(root: &raw::Root, interceptor: &raw::Interceptor, names: &Names<'_>, report: &mut Report) {
    let at = At::root().key("interceptor");
    if let Some(kubernetes) = &interceptor.kubernetes {
        reference(&names.upstreams, "upstream", kubernetes, &at.key("kubernetes"), report);
    }
    if let Some(listener) = &interceptor.listener {
        let listeners = root.listeners.iter().map(|listener| listener.name.as_str()).collect();
        reference(&listeners, "listener", listener, &at.key("listener"), report);
    }
    let at = at.key("host");
    if interceptor.host.contains('*') {
        report.error(&at, "the interceptor's host must be one name, not a wildcard");
        return;
    }
    names::host(&interceptor.host, &at, report);
    let taken = root.routes.iter().find(|route| route.hosts.contains(&interceptor.host));
    if let Some(route) = taken {
        report
            .error(&at, format!("route `{}` handles requests to `{}`", route.name, interceptor.host))
            .help("give the interceptor a Service, and so a name, of its own");
    } else if root.external_host.as_ref() == Some(&interceptor.host) {
        report.error(&at, "the interceptor's host is the `external_host`, whose `/.well-known/` would be out of reach");
    }
}

fn issuers(root: &raw::Root, names: &Names<'_>, report: &mut Report) {
    for (index, issuer) in root.issuers.iter().enumerate() {
        let at = item("issuers", index);
        if let Some(review) = &issuer.token_review {
            reference(&names.upstreams, "upstream", &review.upstream, &at.key("token_review").key("upstream"), report);
        }
        for (number, audience) in issuer.audiences.iter().enumerate() {
            let shared = SHARED_AUDIENCES.iter().find(|(shared, _)| shared == audience);
            let Some((_, what)) = shared.filter(|_| issuer.clients.is_empty()) else { continue };
            report
                .warning(
                    &at.key("audiences").index(number),
                    format!("`{audience}` is {what}, shared by many applications"),
                )
                .help("use an audience of Doorward's own, or list the `clients` whose tokens are accepted");
        }
    }
}

/// Checks the lifetimes that rules require of tokens of other providers, whose lifetime only the provider can set.
fn onward_lifetimes(root: &raw::Root, report: &mut Report) {
    let onward: Vec<&raw::Onward> = root.onward().collect();
    for (index, rule) in root.rules.iter().enumerate() {
        let Some(token) = &rule.on.token else { continue };
        let at = item("rules", index);
        let need = at.key("need");
        let ages = [("mfa", rule.need.mfa), ("fresh_login", rule.need.fresh_login)];
        let lifetime = token.lifetime.map(|lifetime| (at.key("on").key("token").key("lifetime"), "lifetime", lifetime));
        // Only a login in the same instant could give a token that lasts as long as the largest age of a login.
        let ages = ages.into_iter().filter_map(|(name, age)| {
            let most = age?.max_age.get().as_secs().saturating_sub(1);
            Some((need.key(name).key("max_age"), name, Span::from_secs(most)))
        });
        for (at, name, limit) in lifetime.into_iter().chain(ages) {
            for onward in onward.iter().filter(|onward| token.is_for(&onward.audience) && onward.max_lifetime > limit) {
                report
                    .error(
                        &at,
                        format!("a token for `{}` may last longer, as its provider sets the lifetime", onward.audience),
                    )
                    .help(format!(
                        "give that audience a shorter `max_lifetime` (its tokens can be requested for the rest of this time after a login), or a rule of its own without `{name}`"
                    ));
            }
        }
    }
}
