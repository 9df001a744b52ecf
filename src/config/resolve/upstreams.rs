//! Upstreams: their addresses, and that the credential of a Kubernetes upstream goes with impersonation only.

use std::collections::BTreeSet;

use url::{Host, Url};

use super::{is_touched, item};
use crate::{
    config::{
        raw::{self, Route, RouteKind},
        report::{At, Report},
    },
    tekton::dashboard::is_subdomain,
};

pub(super) fn check(root: &raw::Root, routes: &[&Route], mended: &BTreeSet<At>, report: &mut Report) {
    let (kubernetes, others) = uses(routes);
    for (index, upstream) in root.upstreams.iter().enumerate() {
        let at = item("upstreams", index);
        let name = upstream.name.as_str();
        let whole = !is_touched(mended, &at);
        let url = upstream.url.as_ref().and_then(|url| address(url, &at.key("url"), report));
        if let Some(url) = &url {
            transport(upstream, url, &at, report);
        }
        if upstream.kubeconfig.is_some() {
            alone(upstream, &at, report);
        } else if upstream.url.is_none() && whole {
            report
                .error(&at, format!("upstream `{name}` has no address"))
                .help("set `url`, or `kubeconfig` for an API server");
        }
        let authenticated = !whole
            || upstream.kubeconfig.is_some()
            || upstream.credential.is_some()
            || upstream.tls.as_ref().is_some_and(|tls| tls.certificate.is_some());
        if kubernetes.contains(name) && !authenticated {
            report
                .error(
                    &at,
                    format!("upstream `{name}` is a Kubernetes API server, and Doorward has no credential there"),
                )
                .help("impersonation needs one: set `credential`, `certificate` within `tls`, or `kubeconfig`");
        }
        match (kubernetes.contains(name), others.contains(name)) {
            (true, true) => {
                report
                    .error(&at.key("name"), format!("upstream `{name}` is used with impersonation and without"))
                    .help(
                        "without impersonation, requests would run as Doorward itself; use another upstream for routes \
                         of other kinds",
                    );
            }
            (false, true) if upstream.kubeconfig.is_some() => {
                report
                    .error(
                        &at.key("kubeconfig"),
                        format!("upstream `{name}` is a Kubernetes API server, and used without impersonation"),
                    )
                    .help(
                        "requests would run as Doorward itself; use it for `kubernetes` routes, or set `url` instead",
                    );
            }
            _ => {}
        }
        if let Some(account) = &upstream.default_service_account {
            let at = at.key("default_service_account");
            if !kubernetes.contains(name) {
                report
                    .error(&at, format!("upstream `{name}` is no Kubernetes API server, and has no service accounts"))
                    .help("set it on the upstream of `kubernetes` routes, or leave it out");
            } else if !is_subdomain(account) {
                report
                    .error(&at, format!("`{account}` is no name of a service account"))
                    .help("write what `default-service-account` is in Tekton's ConfigMap `config-defaults`");
            }
        }
    }
}

/// The upstreams that get requests with impersonation, and those that get requests without. A token review brings its
/// own token and does not count.
fn uses<'a>(routes: &[&'a Route]) -> (BTreeSet<&'a str>, BTreeSet<&'a str>) {
    let (mut kubernetes, mut others) = (BTreeSet::new(), BTreeSet::new());
    for route in routes {
        if route.kind == RouteKind::Kubernetes { &mut kubernetes } else { &mut others }.insert(route.upstream.as_str());
        kubernetes.extend(route.kubernetes.as_deref());
    }
    (kubernetes, others)
}

/// Reports what stands beside a kubeconfig and would be a second answer to what that says.
fn alone(upstream: &raw::Upstream, at: &At, report: &mut Report) {
    let others = [
        ("url", upstream.url.is_some()),
        ("tls", upstream.tls.is_some()),
        ("credential", upstream.credential.is_some()),
    ];
    for (key, _) in others.into_iter().filter(|(_, is_set)| *is_set) {
        report
            .error(&at.key(key), format!("`{key}` stands beside `kubeconfig`, which says it already"))
            .help(format!("leave `{key}` out, or write `url`, `tls` and `credential` in place of `kubeconfig`"));
    }
}

fn address(text: &str, at: &At, report: &mut Report) -> Option<Url> {
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(error) => {
            // Not repeated in full: it may hold a password.
            report.error(at, format!("this is not an address: {error}")).help("write it as `https://host:port`");
            return None;
        }
    };
    let problem = match &url {
        url if !matches!(url.scheme(), "http" | "https") => Some("only `http` and `https` upstreams are supported"),
        url if !url.username().is_empty() || url.password().is_some() => {
            Some("an address with a user or a password; use `credential`")
        }
        url if url.host_str().is_none_or(str::is_empty) => Some("the address has no host"),
        url if url.port() == Some(0) => Some("port 0 cannot be connected to"),
        url if url.path() != "/" => Some("the address has a path; requests keep their own"),
        url if url.query().is_some() || url.fragment().is_some() => Some("the address has a query or a fragment"),
        _ => None,
    };
    match problem {
        Some(problem) => {
            report.error(at, problem).help("write it as `https://host:port`");
            None
        }
        None => Some(url),
    }
}

fn transport(upstream: &raw::Upstream, url: &Url, at: &At, report: &mut Report) {
    let clear = url.scheme() == "http";
    if clear && upstream.tls.is_some() {
        report.error(&at.key("tls"), "`tls` is of no use with an `http` address").help("write `https://` in `url`");
    }
    let loopback = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    };
    if clear && upstream.credential.is_some() && !loopback {
        report
            .error(&at.key("url"), "Doorward's credential would cross the network in clear text")
            .help("use `https`, or drop `credential`");
    }
}
