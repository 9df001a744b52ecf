//! Upstreams: their addresses, and that the credential of a Kubernetes upstream is only used with impersonation.

use std::collections::BTreeSet;

use url::Url;

use super::{Names, is_label, is_touched, item, reference};
use crate::{
    config::{
        raw::{self, Route, RouteKind},
        report::{At, Report},
    },
    tekton::dashboard::is_subdomain,
    upstream::Access,
};

pub(super) fn check(
    root: &raw::Root,
    names: &Names<'_>,
    routes: &[&Route],
    mended: &BTreeSet<At>,
    report: &mut Report,
) {
    let (kubernetes, others) = uses(routes);
    for (index, upstream) in root.upstreams.iter().enumerate() {
        let at = item("upstreams", index);
        let name = upstream.name.as_str();
        let whole = !is_touched(mended, &at);
        Access::check_address(upstream, &at, report);
        if upstream.kubeconfig.is_some() {
            alone(upstream, &at, report);
        } else if upstream.url.is_none() && whole {
            report
                .error(&at, format!("upstream `{name}` has no address"))
                .help("set `url`, or `kubeconfig` for an API server");
        }
        if let Some(account) = upstream.requested_account() {
            let at = at.key("credential").key("service_account");
            if reference(&names.upstreams, "upstream", &account.upstream, &at.key("upstream"), report) {
                requested(root, upstream, account, &at, report);
            }
            if others.contains(name) && !kubernetes.contains(name) {
                let what = format!("upstream `{name}` is not a Kubernetes API server, and would get the token of one");
                report.error(&at, what).help("use it for `kubernetes` routes only");
            }
        }
        let authenticated = !whole || upstream.has_credential();
        impersonation(root, upstream, (kubernetes.contains(name), others.contains(name)), authenticated, &at, report);
        if upstream.host.is_some() && kubernetes.contains(name) && !others.contains(name) {
            report
                .error(&at.key("host"), format!("upstream `{name}` always receives its own `Host`, whatever `host` is"))
                .help("leave it out: it is for upstreams of `http`, `dashboard` and `webhook` routes");
        }
        if let Some(account) = &upstream.default_service_account {
            let at = at.key("default_service_account");
            if !kubernetes.contains(name) {
                report
                    .error(
                        &at,
                        format!("upstream `{name}` is not a Kubernetes API server, and has no service accounts"),
                    )
                    .help("set it on the upstream of `kubernetes` routes, or leave it out");
            } else if !is_subdomain(account) {
                report
                    .error(&at, format!("`{account}` is not a valid name of a service account"))
                    .help("write what `default-service-account` is in Tekton's ConfigMap `config-defaults`");
            }
        }
    }
}

/// Reports an API server at which Doorward has no credential, and one that would receive the credential without
/// impersonation. `is_kubernetes` and `is_other` say for which kinds of routes an upstream is used.
fn impersonation(
    root: &raw::Root,
    upstream: &raw::Upstream,
    (is_kubernetes, is_other): (bool, bool),
    authenticated: bool,
    at: &At,
    report: &mut Report,
) {
    let name = upstream.name.as_str();
    if is_kubernetes && !authenticated {
        report
            .error(at, format!("upstream `{name}` is a Kubernetes API server, and Doorward has no credential there"))
            .help("impersonation needs one: set `credential`, `certificate` within `tls`, or `kubeconfig`");
    }
    match (is_kubernetes, is_other) {
        (true, true) => {
            report.error(&at.key("name"), format!("upstream `{name}` is used with impersonation and without")).help(
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
                .help("requests would run as Doorward itself; use it for `kubernetes` routes, or set `url` instead");
        }
        // An upstream with a requested account is reported elsewhere.
        (false, true) if upstream.requested_account().is_none() => {
            if let Some(who) = acts_as_itself(root, upstream, authenticated) {
                let what = format!("upstream `{name}` is the API server of `{who}`, and used without impersonation");
                report.error(&at.key("name"), what).help(
                    "requests would run as Doorward itself; use it for `kubernetes` routes, or another upstream for routes \
                     of other kinds",
                );
            }
        }
        _ => {}
    }
}

/// Checks an upstream at which Doorward is a service account whose token it requests.
fn requested(
    root: &raw::Root,
    upstream: &raw::Upstream,
    account: &raw::RequestedAccount,
    at: &At,
    report: &mut Report,
) {
    let namespace = ("namespace", &account.namespace, is_label(&account.namespace));
    let name = ("name", &account.name, is_subdomain(&account.name));
    for (key, text, _) in [namespace, name].into_iter().filter(|(.., is_one)| !is_one) {
        let what = format!("`{text}` is not a valid {key} of a service account");
        report.error(&at.key(key), what).help("write it as `kubectl get serviceaccounts -A` shows it");
    }
    if upstream.certificate().is_some() {
        report
            .error(at, "the upstream also gets a client certificate, which an API server would use instead")
            .help("leave `certificate` out of its `tls`");
    }
    let Some(asked) = root.upstreams.iter().find(|other| other.name == account.upstream) else { return };
    if asked.requested_account().is_some() {
        report
            .error(&at.key("upstream"), format!("upstream `{}` itself has a token that must be requested", asked.name))
            .help("name an upstream with a credential of its own, such as the token of Doorward's pod");
    } else if !asked.has_credential() {
        report
            .error(&at.key("upstream"), format!("Doorward has no credential at upstream `{}`", asked.name))
            .help("give it one, such as the token of Doorward's pod");
    } else if asked.url.is_some() && upstream.url.is_some() && asked.url != upstream.url {
        let what = "the token is requested at another address than that of the upstream that it is for";
        report
            .warning(&at.key("upstream"), what)
            .help("both must lead to the same API server, or the other learns the token");
    }
    if let Some((who, _)) = root.readers().find(|(_, server)| *server == upstream.name) {
        report
            .error(at, format!("`{who}` reads through this upstream, whose account should only impersonate"))
            .help(format!("have `{who}` name upstream `{}`, and that account may read", account.upstream));
    }
}

/// Returns the setting besides routes for which Doorward authenticates to an upstream as itself; such an upstream must
/// be an API server. A token review has its own token, so it counts only if the upstream has a credential. Upstreams
/// with another name but the same address and credential are the same account.
fn acts_as_itself(root: &raw::Root, upstream: &raw::Upstream, authenticated: bool) -> Option<&'static str> {
    let mut all = root.servers().filter(|(setting, _)| authenticated || *setting != "token_review");
    let account = |of: &raw::Upstream| {
        Some((Url::parse(of.url.as_deref()?).ok()?, of.credential.clone(), of.certificate().cloned()))
    };
    let own = account(upstream).filter(|_| authenticated);
    let is_same = |server: &&raw::Upstream| server.name == upstream.name || (own.is_some() && account(server) == own);
    let same: BTreeSet<&str> = root.upstreams.iter().filter(is_same).map(|server| server.name.as_str()).collect();
    all.find(|(_, server)| same.contains(server)).map(|(who, _)| who)
}

/// Returns the upstreams that receive requests with impersonation, and those that receive requests without. A token
/// review has its own token and does not count.
fn uses<'a>(routes: &[&'a Route]) -> (BTreeSet<&'a str>, BTreeSet<&'a str>) {
    let (mut kubernetes, mut others) = (BTreeSet::new(), BTreeSet::new());
    for route in routes {
        if route.kind == RouteKind::Kubernetes { &mut kubernetes } else { &mut others }.insert(route.upstream.as_str());
        kubernetes.extend(route.kubernetes.as_deref());
    }
    (kubernetes, others)
}

/// Reports settings that a kubeconfig replaces.
fn alone(upstream: &raw::Upstream, at: &At, report: &mut Report) {
    let others = [
        ("url", upstream.url.is_some()),
        ("tls", upstream.tls.is_some()),
        ("credential", upstream.credential.is_some()),
    ];
    for (key, _) in others.into_iter().filter(|(_, is_set)| *is_set) {
        report
            .error(&at.key(key), format!("`{key}` is set beside `kubeconfig`, which sets it already"))
            .help(format!("leave `{key}` out, or write `url`, `tls` and `credential` in place of `kubeconfig`"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: &str = "
routes: [{name: api, kind: kubernetes, hosts: [api.test], schemes: [bearer], upstream: api}]
upstreams:
  - {name: api, url: 'https://a', credential: {service_account: {namespace: doorward, name: proxy, upstream: own}}}
  - {name: own, url: 'https://a', credential: {bearer: {file: token}}}
";

    #[test]
    fn the_impersonating_account_is_requested_with_another_and_reads_nothing() {
        for (from, to, expected) in [
            ("", "", &[][..]),
            ("upstream: own}", "upstream: oun}", &["there is no upstream `oun`"]),
            ("namespace: doorward", "namespace: a/b", &["`a/b` is not a valid namespace of a service account"]),
            ("name: proxy", "name: Proxy", &["`Proxy` is not a valid name of a service account"]),
            ("upstream: own}", "upstream: api}", &["upstream `api` itself has a token that must be requested"]),
            (", credential: {bearer: {file: token}}", "", &["Doorward has no credential at upstream `own`"]),
            (
                "own, url: 'https://a'",
                "own, url: 'https://b'",
                &["the token is requested at another address than that of the upstream that it is for"],
            ),
            (
                "api, url: 'https://a'",
                "api, url: 'https://a', tls: {certificate: {chain: a, key: b}}",
                &["the upstream also gets a client certificate, which an API server would use instead"],
            ),
            (
                "kind: kubernetes",
                "kind: http",
                &["upstream `api` is not a Kubernetes API server, and would get the token of one"],
            ),
            (
                "upstreams:",
                "runs: {kubernetes: api}\nupstreams:",
                &["`runs` reads through this upstream, whose account should only impersonate"],
            ),
            ("upstreams:", "runs: {kubernetes: own}\nupstreams:", &[]),
            (
                "upstreams:",
                "interceptor: {host: a.svc, kubernetes: api}\nupstreams:",
                &["`interceptor` reads through this upstream, whose account should only impersonate"],
            ),
            (
                "upstreams:",
                "tokens: {exchange: [{issuer: a, kubernetes: api}]}\nupstreams:",
                &["`tokens.exchange` reads through this upstream, whose account should only impersonate"],
            ),
        ] {
            assert_eq!(said(&PARTS.replace(from, to)), expected, "{to}");
        }
    }

    #[test]
    fn the_host_that_an_upstream_sees_is_chosen_where_it_may_be_that_of_the_client() {
        for kind in ["http", "dashboard", "webhook"] {
            for host in ["own", "client"] {
                let route = format!("{{name: r, kind: {kind}, hosts: [r.test], schemes: [], upstream: web}}");
                let yaml = format!("routes: [{route}]\nupstreams: [{{name: web, url: 'http://web', host: {host}}}]\n");
                assert_eq!(said(&yaml), [""; 0], "{kind} {host}");
            }
        }
        let of_server = PARTS.replace("{name: api, url: 'https://a'", "{name: api, host: client, url: 'https://a'");
        assert_eq!(said(&of_server), ["upstream `api` always receives its own `Host`, whatever `host` is"]);
        assert_eq!(said("upstreams: [{name: web, url: 'http://web', host: own}]"), [""; 0]);
    }

    /// Otherwise everybody whom a rule allows on the route would have all rights of Doorward; with those of the account
    /// that requests others' tokens, they could impersonate anybody.
    #[test]
    fn an_api_server_where_doorward_acts_as_itself_is_behind_no_route_of_another_kind() {
        const ROUTE: &str = "{name: k, kind: http, hosts: [k.test], schemes: [bearer], upstream: own}";
        let refused =
            |who: &str| vec![format!("upstream `own` is the API server of `{who}`, and used without impersonation")];
        let beside = PARTS.replace("routes: [", &format!("routes: [{ROUTE}, "));
        assert_eq!(said(&beside), refused("credential.service_account"));

        let (bearer, nobody) = (", credential: {bearer: {file: token}}", "");
        let review = "issuers: [{name: a, issuer: 'https://i', token_review: {upstream: own, bearer: {file: b}}}]";
        for (credential, setting, who) in [
            (bearer, "runs: {kubernetes: own}", Some("runs")),
            (nobody, "runs: {kubernetes: own}", Some("runs")),
            (bearer, "interceptor: {host: a.svc, kubernetes: own}", Some("interceptor")),
            (bearer, "tokens: {exchange: [{issuer: a, kubernetes: own}]}", Some("tokens.exchange")),
            (bearer, "tokens: {exchange: [{issuer: a, upstreams: [own]}]}", None),
            (bearer, review, Some("token_review")),
            (nobody, review, None),
            (bearer, "runs: {kubernetes: other}", None),
            (bearer, "runs: {kubernetes: twin}", Some("runs")),
            (nobody, "runs: {kubernetes: twin}", None),
        ] {
            let own = format!("{{name: own, url: 'https://a'{credential}}}");
            let yaml = format!(
                "routes: [{ROUTE}]\nupstreams: [{own}, {{name: twin, url: 'https://a/'{bearer}}}]\n{setting}\n"
            );
            assert_eq!(said(&yaml), who.map(refused).unwrap_or_default(), "{yaml}");
        }
    }

    fn said(yaml: &str) -> Vec<String> {
        let root: raw::Root = serde_saphyr::from_str(yaml).unwrap();
        let mut report = Report::default();
        let names = Names::collect(&root, &mut report);
        check(&root, &names, &root.routes.iter().collect::<Vec<_>>(), &BTreeSet::new(), &mut report);
        report.problems().iter().map(|problem| problem.message.clone()).collect()
    }
}
