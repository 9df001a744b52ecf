//! Routes: their references, whether their fields fit their kind and schemes, and whether two match the same requests.

use std::collections::{BTreeMap, BTreeSet};

use super::{Names, item, names, reference};
use crate::{
    config::{
        raw::{self, Route, RouteKind, Scheme},
        report::{At, Report},
    },
    request::is_question,
    sts::metadata::Endpoint,
};

pub(super) fn check(root: &raw::Root, names: &Names<'_>, report: &mut Report) {
    let browser = |route: &&Route| route.schemes.contains(&Scheme::Session);
    let browser: BTreeSet<&str> =
        root.routes.iter().filter(browser).flat_map(|route| &route.hosts).map(String::as_str).collect();
    for (index, route) in root.routes.iter().enumerate() {
        let at = item("routes", index);
        references(route, names, &at, report);
        audiences(root, route, &at, report);
        let own = OwnPaths::on(root, &browser, route);
        matching(route, &own, &at, report);
        fields_of_kind(route, &at, report);
        if route.kind == RouteKind::Dashboard && route.kubernetes.is_none() && !calls_the_api_elsewhere(root, route) {
            report
                .warning(&at.key("kind"), "what people do in this dashboard runs with the dashboard's own rights")
                .help("name the API server's upstream in `kubernetes`, and it runs with theirs");
        }
        schemes(root, route, &at, report);
        if route.max_body.is_some_and(|size| size.0 == 0) {
            report.error(&at.key("max_body"), "`max_body` cannot be zero");
        }
        if route.max_stream.get().is_zero() {
            report.error(&at.key("max_stream"), "`max_stream` cannot be zero");
        }
    }
    same_requests(&root.routes, report);
    shared_webhooks(root, report);
    certificates(root, report);
}

fn references(route: &Route, names: &Names<'_>, at: &At, report: &mut Report) {
    for (index, issuer) in route.issuers.iter().enumerate() {
        reference(&names.issuers, "issuer", issuer, &at.key("issuers").index(index), report);
    }
    reference(&names.upstreams, "upstream", &route.upstream, &at.key("upstream"), report);
    if let Some(kubernetes) = &route.kubernetes {
        reference(&names.upstreams, "upstream", kubernetes, &at.key("kubernetes"), report);
    }
    if let Some(webhook) = &route.webhook {
        reference(&names.webhooks, "webhook", webhook, &at.key("webhook"), report);
    }
}

fn matching(route: &Route, own: &OwnPaths, at: &At, report: &mut Report) {
    if route.hosts.is_empty() {
        report.error(&at.key("hosts"), "a route needs at least one host");
    }
    let mut seen = BTreeSet::new();
    for (index, host) in route.hosts.iter().enumerate() {
        let at = at.key("hosts").index(index);
        names::host(host, &at, report);
        if !seen.insert(host) {
            report.error(&at, format!("`{host}` is listed twice"));
        }
    }
    for (index, path) in route.paths.iter().enumerate() {
        let at = at.key("paths").index(index);
        if names::path(path, &at, report) {
            own.check(path, &at, report);
        }
    }
    for (index, method) in route.methods.iter().enumerate() {
        let at = at.key("methods").index(index);
        names::method(method, &at, report);
        if route.kind == RouteKind::Webhook && method != "POST" {
            report
                .error(&at, format!("an EventListener accepts only POST, not `{method}`"))
                .help("remove it; POST is the default of a `webhook` route");
        }
    }
}

/// Paths that Doorward answers itself on the hosts of a route, and that never reach the route.
struct OwnPaths {
    login: bool,
    well_known: bool,
    /// Whether proxies ask (`forward_auth`), which they do on every host.
    asked: bool,
    tokens: bool,
}

impl OwnPaths {
    fn on(root: &raw::Root, browser: &BTreeSet<&str>, route: &Route) -> Self {
        let is_external = root.external_host.as_ref().is_some_and(|host| route.hosts.contains(host));
        Self {
            login: route.hosts.iter().any(|host| browser.contains(host.as_str())),
            well_known: is_external,
            asked: root.forward_auth.is_some(),
            tokens: root.tokens.is_some() && is_external,
        }
    }

    fn check(&self, path: &str, at: &At, report: &mut Report) {
        let path = path.strip_suffix('*').unwrap_or(path);
        let own = if path.starts_with("/.doorward/") {
            "`/.doorward/` is Doorward's own on every host"
        } else if self.login && path.starts_with("/oauth2/") {
            "`/oauth2/` is Doorward's own where people log in"
        } else if self.well_known && path.starts_with("/.well-known/") {
            "`/.well-known/` is Doorward's own on `external_host`"
        } else if self.asked && is_question(path) {
            "`/oauth2/auth` is Doorward's own on every host, as `forward_auth` is set"
        } else if self.tokens && Endpoint::at(path).is_some() {
            "this path is Doorward's own on `external_host`, as `tokens` is set"
        } else {
            return;
        };
        report.error(at, own).help("no request would ever get to this route; choose another path");
    }
}

/// Checks the audiences of a route: a token must be for one of them, and for one of its issuer's. The audiences of
/// Doorward's own tokens are allowed by rules, one by one.
fn audiences(root: &raw::Root, route: &Route, at: &At, report: &mut Report) {
    let taken = |issuer: &&raw::Issuer| route.takes_issuer(&issuer.name);
    let taken: Vec<&raw::Issuer> = root.issuers.iter().filter(taken).collect();
    for (index, audience) in route.audiences.iter().enumerate() {
        let at = at.key("audiences").index(index);
        if !route.schemes.contains(&Scheme::Bearer) {
            report
                .error(&at, "`audiences` apply to bearer tokens, which this route does not accept")
                .help("add the scheme `bearer`");
        } else if !taken.iter().any(|issuer| issuer.audiences.contains(audience)) {
            let known = taken.iter().flat_map(|issuer| &issuer.audiences).map(String::as_str);
            report.unknown(&at, "audience", audience, known);
        }
    }
    // People of an issuer with a login use sessions, which have no audience.
    let comes_by_session = |issuer: &raw::Issuer| issuer.login.is_some() && route.schemes.contains(&Scheme::Session);
    let by_token = taken.iter().filter(|issuer| !issuer.audiences.is_empty() && !comes_by_session(issuer));
    for issuer in by_token.filter(|_| !route.audiences.is_empty()) {
        if !issuer.audiences.iter().any(|audience| route.audiences.contains(audience)) {
            report
                .error(
                    &at.key("audiences"),
                    format!("no token of `{}` would be accepted: none of its audiences is among these", issuer.name),
                )
                .help(
                    "add the one of its audiences that is meant for this route, or leave the issuer out of `issuers`",
                );
        }
    }
    let own = taken.iter().find(|issuer| issuer.preset == Some(raw::Preset::Doorward) && issuer.audiences.len() > 1);
    if let Some(own) = own
        && route.audiences.is_empty()
        && route.schemes.contains(&Scheme::Bearer)
    {
        report
            .error(at, format!("a token of `{}` for any of its audiences would be accepted on this route", own.name))
            .help("set `audiences` to those that are meant for this route");
    }
}

fn fields_of_kind(route: &Route, at: &At, report: &mut Report) {
    let mut only = |set: bool, field: &str, kinds: &[RouteKind], named: &str| {
        if set && !kinds.contains(&route.kind) {
            report.error(&at.key(field), format!("`{field}` is only for routes of kind {named}"));
        }
    };
    only(route.kubernetes.is_some(), "kubernetes", &[RouteKind::Dashboard], "`dashboard`");
    only(!route.namespaces.is_empty(), "namespaces", &[RouteKind::Dashboard], "`dashboard`");
    only(route.webhook.is_some(), "webhook", &[RouteKind::Webhook], "`webhook`");
    only(route.event_listener.is_some(), "event_listener", &[RouteKind::Webhook], "`webhook`");
    let listed = [RouteKind::Kubernetes, RouteKind::Webhook];
    only(!route.pass_headers.is_empty(), "pass_headers", &listed, "`kubernetes` or `webhook`");

    if route.kind == RouteKind::Dashboard && !route.schemes.contains(&Scheme::Session) {
        report.warning(&at.key("schemes"), "people cannot log in to this dashboard").help("add the scheme `session`");
    }
}

/// Whether `kubernetes` routes handle the API calls that this dashboard makes on its hosts.
fn calls_the_api_elsewhere(root: &raw::Root, dashboard: &Route) -> bool {
    raw::API_PATHS.iter().all(|calls| {
        dashboard.hosts.iter().all(|host| {
            root.routes.iter().any(|route| {
                route.kind == RouteKind::Kubernetes
                    && route.hosts.contains(host)
                    && route.paths.iter().any(|path| path == calls)
            })
        })
    })
}

fn schemes(root: &raw::Root, route: &Route, at: &At, report: &mut Report) {
    let here = at.key("schemes");
    if route.schemes.is_empty() {
        report.error(&here, "a route needs at least one scheme").help("nobody could ever get in");
    }
    let webhook = route.schemes.iter().position(|scheme| *scheme == Scheme::Webhook).unwrap_or(route.schemes.len());
    let mut seen = BTreeSet::new();
    for (index, scheme) in route.schemes.iter().enumerate() {
        let at = here.index(index);
        if index > webhook {
            behind_webhook(*scheme, &at, report);
        }
        if !seen.insert(scheme) {
            report.error(&at, "this scheme is listed twice");
            continue;
        }
        let taken = |issuer: &&raw::Issuer| route.takes_issuer(&issuer.name);
        match scheme {
            Scheme::Session if !root.issuers.iter().filter(taken).any(|issuer| issuer.login.is_some()) => {
                report
                    .error(&at, "no issuer of this route has a login")
                    .help("add `login` to an issuer, or take `session` off the list");
            }
            Scheme::Bearer if root.issuers.is_empty() => {
                report
                    .error(&at, "there is no issuer whose tokens could be accepted")
                    .help("add an entry to `issuers`, or take `bearer` off the list");
            }
            Scheme::Bearer if sign_nothing(root, route) => {
                report
                    .error(&at, "no issuer of this route signs tokens")
                    .help("name one in its `issuers` that does, or take `bearer` off the list");
            }
            Scheme::Webhook if route.webhook.is_none() => {
                report
                    .error(&at, "the scheme `webhook` needs a sender")
                    .help("name an entry of `webhooks` in `webhook`, on a route of kind `webhook`");
            }
            Scheme::BreakGlass => {
                if route.schemes.len() > 1 {
                    report.error(&at, "`break_glass` must have a route of its own").help(
                        "give it a host of its own, so that nobody reaches it by accident and rules can distinguish it",
                    );
                }
                break_glass(root, &at, report);
            }
            Scheme::Anonymous if route.kind == RouteKind::Kubernetes => {
                report
                    .error(&at, "a `kubernetes` route cannot have the scheme `anonymous`")
                    .help("the API server would take the request for Doorward's own");
            }
            Scheme::Anonymous if route.reaches_kubernetes() => {
                report
                    .error(&at, "a `dashboard` route with an API server cannot have the scheme `anonymous`")
                    .help("`/api/` and `/apis/` of such a route are forwarded as the caller: give public paths a route of their own, of kind `http`");
            }
            Scheme::Anonymous if index + 1 < route.schemes.len() => {
                report.error(&at, "`anonymous` must be the last scheme").help("schemes after it would never be tried");
            }
            _ => {}
        }
    }
    if seen.contains(&Scheme::Bearer) && seen.contains(&Scheme::Webhook) {
        let of_route = |webhook: &&raw::Webhook| route.webhook.as_ref() == Some(&webhook.name);
        let authorization = [raw::Sender::AzureDevops, raw::Sender::Harbor];
        if root.webhooks.iter().find(of_route).is_some_and(|webhook| authorization.contains(&webhook.sender)) {
            report
                .error(&here, "this sender and a bearer token both come in `Authorization`, so one hides the other")
                .help("give callers with a token a route of their own, with another path");
        }
    }
    if route.webhook.is_some() && route.kind == RouteKind::Webhook && !seen.contains(&Scheme::Webhook) {
        report
            .error(&at.key("webhook"), "the signatures of this sender would never be checked")
            .help("add `webhook` to `schemes`");
    }
}

/// Whether a route names only issuers that sign no tokens and whose people use sessions.
fn sign_nothing(root: &raw::Root, route: &Route) -> bool {
    let mut named = root.issuers.iter().filter(|issuer| route.issuers.contains(&issuer.name)).peekable();
    named.peek().is_some() && named.all(|issuer| issuer.preset == Some(raw::Preset::GithubOauth))
}

/// Reports a scheme after `webhook` that is never tried, as a request without a valid signature is refused. Bearer
/// tokens are tried before all other schemes, wherever they are listed.
fn behind_webhook(scheme: Scheme, at: &At, report: &mut Report) {
    let (name, help) = match scheme {
        Scheme::Bearer | Scheme::Webhook | Scheme::BreakGlass => return,
        Scheme::Session => ("session", "list `session` before `webhook`"),
        Scheme::Anonymous => ("anonymous", "give callers without a signature a route of their own, with another path"),
    };
    report.error(at, format!("`{name}` after `webhook` would never be tried")).help(help);
}

/// Checks that there is a listener that asks for certificates if a sender has one.
fn certificates(root: &raw::Root, report: &mut Report) {
    let asks = |listener: &raw::Listener| listener.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    if root.listeners.iter().any(asks) {
        return;
    }
    for (index, _) in root.webhooks.iter().enumerate().filter(|(_, webhook)| webhook.client_certificate.is_some()) {
        report
            .error(&item("webhooks", index).key("client_certificate"), "no listener asks for client certificates")
            .help("set `client_ca` within `tls` of a listener");
    }
}

/// Checks the `break_glass` scheme. A missing section is only a warning: somebody who removes it wants break-glass
/// disabled, and an error would keep the older configuration, in which it is enabled.
fn break_glass(root: &raw::Root, at: &At, report: &mut Report) {
    if root.break_glass.is_none() {
        report
            .warning(at, "there is no section `break_glass`, so this route admits nobody")
            .help("to keep break-glass disabled, change nothing; to enable it, name certificates in `break_glass`");
        return;
    }
    let asks = |listener: &&raw::Listener| listener.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let mut asking = root.listeners.iter().filter(asks).peekable();
    if asking.peek().is_none() {
        report.error(at, "no listener asks for client certificates").help("set `client_ca` within `tls` of a listener");
    } else if asking.all(|listener| !listener.trusted_proxies.is_empty() && listener.proxy_protocol_from.is_empty()) {
        report
            .warning(at, "clients behind the `trusted_proxies` of the listeners that ask for client certificates present the proxy's certificate, if any, and not their own")
            .help("give break-glass a listener of its own with `client_ca` and without `trusted_proxies`, to which TCP is forwarded");
    }
}

/// The most combinations of hosts, paths and methods of one route.
const MAX_COMBINATIONS: usize = 4096;

/// Reports two routes that match the same requests, as it would be undefined which one is used. Others may overlap, as
/// the more specific one takes precedence (`request::route`).
fn same_requests(routes: &[Route], report: &mut Report) {
    let mut taken: BTreeMap<(&str, &str, &str), (&str, bool)> = BTreeMap::new();
    for (index, route) in routes.iter().enumerate() {
        let paths = borrow(&route.paths, "/*");
        let methods = borrow(&route.methods, if route.kind == RouteKind::Webhook { "POST" } else { "*" });
        let calls: &[&str] = if route.kubernetes.is_some() { &raw::API_PATHS } else { &[] };
        let all = paths.len().saturating_add(calls.len());
        if route.hosts.len().saturating_mul(all).saturating_mul(methods.len()) > MAX_COMBINATIONS {
            report
                .error(&item("routes", index), "too many combinations of hosts, paths and methods")
                .help("use a wildcard host or a prefix, or split the route");
            continue;
        }
        let mut told = false;
        // A dashboard has an implicit second route, for its API calls.
        let paths = paths.iter().map(|path| (*path, false)).chain(calls.iter().map(|path| (*path, true)));
        let paths: Vec<(&str, bool)> = paths.collect();
        for (host, (path, calls), method) in route.hosts.iter().flat_map(|host| {
            let methods = &methods;
            paths.iter().flat_map(move |path| methods.iter().map(move |method| (host.as_str(), *path, *method)))
        }) {
            let Some((other, called)) = taken.insert((host, path, method), (&route.name, calls)) else { continue };
            if told || (other == route.name && calls == called) {
                continue;
            }
            told = true;
            let help = if calls || called {
                format!("`kubernetes` of a dashboard handles `{path}` on host `{host}` for the calls of its pages")
            } else {
                format!("both match host `{host}`, path `{path}` and the same methods")
            };
            report.error(&item("routes", index), format!("route `{other}` matches the same requests")).help(help);
        }
    }
}

fn borrow<'a>(list: &'a [String], default: &'a str) -> Vec<&'a str> {
    if list.is_empty() { vec![default] } else { list.iter().map(String::as_str).collect() }
}

/// Reports shared senders and secrets: a delivery to one route could be replayed to another that accepts the same
/// secret (attack Z16).
fn shared_webhooks(root: &raw::Root, report: &mut Report) {
    const HELP: &str = "a delivery to one could be replayed to the other; give each its own secret";
    let mut routes: BTreeMap<&str, &str> = BTreeMap::new();
    for (index, route) in root.routes.iter().enumerate() {
        let Some(webhook) = &route.webhook else { continue };
        if let Some(other) = routes.insert(webhook, &route.name) {
            report
                .error(&item("routes", index).key("webhook"), format!("route `{other}` has the same sender"))
                .help(HELP);
        }
    }
    let mut secrets = BTreeMap::new();
    for (index, webhook) in root.webhooks.iter().enumerate() {
        for (number, secret) in webhook.secrets.iter().enumerate() {
            let at = item("webhooks", index).key("secrets").index(number).key("secret");
            let source = secret.secret.to_string();
            match secrets.insert(source, webhook.name.as_str()) {
                Some(other) if other != webhook.name => {
                    report.error(&at, format!("webhook `{other}` has the same secret")).help(HELP);
                }
                _ => {}
            }
        }
    }
}
