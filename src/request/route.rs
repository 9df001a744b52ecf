//! Which route a request takes: host, then path, then method.

mod paths;
mod written;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use http::{HeaderName, Method};

use self::paths::Paths;
pub use self::written::{Taker, taker};
use super::{authorization::Authorization, dashboard::Dashboard, forward_auth, headers, host::Reached, method};
use crate::{
    admin::metrics::{RequestMetrics, RouteMetrics},
    assertions,
    authn::Scheme,
    config::{
        raw::{self, EventListener, RouteKind},
        report::At,
        resolver::Resolver,
    },
    error::{Reason, Rejection},
    issuers::{Accepts, Issuers},
    sts::metadata::Endpoint,
    upstream::Upstream,
    webhooks::Webhook,
};

/// A resolved route.
#[derive(Debug)]
pub struct Route {
    pub name: Arc<str>,
    pub kind: RouteKind,
    pub schemes: Vec<Scheme>,
    /// The issuers whose tokens and sessions it accepts.
    pub accepts: Accepts,
    pub metrics: Arc<RouteMetrics>,
    pub upstream: Arc<Upstream>,
    pub webhook: Option<Arc<Webhook>>,
    /// Set for dashboards whose API calls go to the API server as the person.
    pub dashboard: Option<Arc<Dashboard>>,
    pub event_listener: Option<Arc<EventListener>>,
    /// Request headers that are forwarded besides the fixed list of the kind.
    pub pass_headers: Vec<HeaderName>,
    /// Which `Authorization` of clients is forwarded.
    pub authorization: Authorization,
    pub max_body: Option<u64>,
    pub max_stream: Duration,
    /// Its first path or prefix, without a slash at the end; empty for a whole host.
    home: Box<str>,
    /// Empty: the methods that its kind accepts if none are named ([`method::is_taken`]).
    methods: Vec<Method>,
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub enum Target {
    /// To an upstream.
    Upstream(Arc<Route>),
    /// To Doorward itself, which never forwards such a request.
    Own(OwnEndpoint),
}

/// Which part of Doorward itself a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnEndpoint {
    /// The login, or another of the pages and documents in [`crate::endpoints`].
    Page,
    /// An endpoint of the token issuer.
    Issuer(Endpoint),
    /// The interceptor, which EventListeners query.
    Interceptor,
}

/// Why no route was found.
#[derive(Debug)]
pub enum Miss {
    Path,
    /// No route of this path accepts the method. Has the first of these routes, and the methods that any of them
    /// accepts, in the form of `Allow`.
    Method(Arc<Route>, String),
}

impl From<Miss> for Rejection {
    fn from(miss: Miss) -> Self {
        match miss {
            Miss::Path => no_path(),
            Miss::Method(_, allow) => not_taken(allow),
        }
    }
}

fn no_path() -> Rejection {
    Rejection::new(Reason::RouteNotFound, "no route is configured for this path")
}

fn not_taken(allow: String) -> Rejection {
    let detail = format!("this path takes {allow} only");
    Rejection::method_not_allowed(allow, detail)
}

/// The route table of a generation.
#[derive(Debug, Default)]
pub struct Routes {
    exact: HashMap<Arc<str>, Host>,
    /// Keyed by what follows the first label of `*.example.com`.
    wildcard: HashMap<String, Host>,
    external: Option<Arc<str>>,
    /// Whether Doorward issues tokens, on the external host.
    tokens: bool,
    /// Whether proxies ask for decisions.
    asked: bool,
    /// The host of the interceptor.
    interceptor: Option<Arc<str>>,
}

#[derive(Debug, Default)]
struct Host {
    paths: Paths<Arc<Route>>,
    /// Whether people sign in here, so that `/oauth2/` is Doorward's own.
    browser: bool,
}

impl Route {
    pub fn takes(&self, method: &Method) -> bool {
        method::is_taken(method, self.kind, &self.methods)
    }

    /// `max_body`, for a body that is read whole. Also `None` if it does not fit in a `usize`.
    pub fn max_in_memory(&self) -> Option<usize> {
        usize::try_from(self.max_body?).ok()
    }

    /// The URL of the protected-resource metadata (RFC 9728) of this route on a host; `None` if it accepts no bearer
    /// token.
    pub fn resource_metadata(&self, reached: Reached, host: &str) -> Option<String> {
        let address = || reached.url(host, &[PROTECTED_RESOURCE, &self.home].concat());
        self.schemes.contains(&Scheme::Bearer).then(address)
    }
}

impl Routes {
    /// Returns the form in which the host is used from here on, if Doorward serves it.
    pub fn host(&self, host: &str) -> Option<Arc<str>> {
        if let Some(interceptor) = self.interceptor.as_ref().filter(|interceptor| ***interceptor == *host) {
            return Some(Arc::clone(interceptor));
        }
        // Servers fetch its `/.well-known/`, whether or not a route has this host.
        if let Some(external) = self.external.as_ref().filter(|external| ***external == *host) {
            return Some(Arc::clone(external));
        }
        match self.exact.get_key_value(host) {
            Some((known, _)) => Some(known.clone()),
            None => self.wildcard(host).map(|_| host.into()),
        }
    }

    pub fn find(&self, host: &str, path: &str, method: &Method) -> Result<Target, Miss> {
        if self.interceptor.as_deref() == Some(host) {
            return Ok(Target::Own(OwnEndpoint::Interceptor));
        }
        let is_external = self.external.as_deref() == Some(host);
        if let Some(endpoint) = Endpoint::at(path).filter(|_| self.tokens && is_external) {
            return Ok(Target::Own(OwnEndpoint::Issuer(endpoint)));
        }
        let Some(entry) = self.entry(host) else {
            return if is_own(path, false, is_external, self.asked) {
                Ok(Target::Own(OwnEndpoint::Page))
            } else {
                Err(Miss::Path)
            };
        };
        let is_described = || resource_of(path).is_some_and(|resource| entry.bearer_route(resource).is_some());
        if is_own(path, entry.browser, is_external, self.asked) || is_described() {
            return Ok(Target::Own(OwnEndpoint::Page));
        }
        let mut asked = entry.paths.asked(path);
        match asked.clone().find(|route| route.takes(method)) {
            Some(route) => Ok(Target::Upstream(route.clone())),
            None => {
                let allow = || allow(entry.paths.asked(path).map(|route| route.methods.iter().map(Method::as_str)));
                Err(asked.next().map_or(Miss::Path, |first| Miss::Method(first.clone(), allow())))
            }
        }
    }

    /// The route whose metadata are requested at this path: the first that accepts bearer tokens at the resource that
    /// it names.
    pub fn described(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        let entry = self.entry(host)?;
        entry.bearer_route(resource_of(path)?)
    }

    /// The routes of a host that accept bearer tokens.
    pub fn taking_tokens(&self, host: &str) -> impl Iterator<Item = &Arc<Route>> {
        self.entry(host).into_iter().flat_map(Host::routes).filter(|route| route.schemes.contains(&Scheme::Bearer))
    }

    /// Whether all routes of a host lead to an API server, so that clients there expect its kind of response.
    pub fn is_for_kubernetes(&self, host: &str) -> bool {
        self.entry(host).is_some_and(|entry| entry.routes().all(|route| route.kind == RouteKind::Kubernetes))
    }

    /// Whether a host has routes for sessions, and none of them accepts a login at this issuer.
    pub fn refuse_logins_at(&self, host: &str, issuer: &str) -> bool {
        let routes = self.entry(host).into_iter().flat_map(Host::routes);
        let mut of_sessions = routes.filter(|route| route.schemes.contains(&Scheme::Session)).peekable();
        of_sessions.peek().is_some() && !of_sessions.any(|route| route.accepts.takes_logins_at(issuer))
    }

    /// Whether any route holds its deliveries.
    pub fn hold(&self) -> bool {
        self.routes().any(|route| route.webhook.as_ref().is_some_and(|webhook| webhook.hold().is_some()))
    }

    pub fn by_name(&self, name: &str) -> Option<&Arc<Route>> {
        self.routes().find(|route| *route.name == *name)
    }

    /// The route that receives the deliveries of an entry of `webhooks`; there is at most one.
    pub fn of_webhook(&self, name: &str) -> Option<&Arc<Route>> {
        let takes = |route: &Route| route.webhook.as_ref().is_some_and(|webhook| **webhook.name() == *name);
        self.routes().find(|route| route.kind == RouteKind::Webhook && takes(route))
    }

    fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.exact.values().chain(self.wildcard.values()).flat_map(Host::routes)
    }

    fn entry(&self, host: &str) -> Option<&Host> {
        self.exact.get(host).or_else(|| self.wildcard(host))
    }

    fn wildcard(&self, host: &str) -> Option<&Host> {
        let (_, rest) = host.split_once('.')?;
        self.wildcard.get(rest)
    }
}

/// The path of the metadata of protected resources (RFC 9728 section 3). The path of the resource follows it.
pub const PROTECTED_RESOURCE: &str = "/.well-known/oauth-protected-resource";

/// The path of the resource whose metadata are at this path.
fn resource_of(path: &str) -> Option<&str> {
    match path.strip_prefix(PROTECTED_RESOURCE)? {
        "" => Some("/"),
        rest => rest.starts_with('/').then_some(rest),
    }
}

impl Host {
    fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.paths.routes()
    }

    fn bearer_route(&self, path: &str) -> Option<&Arc<Route>> {
        let mut routes = self.paths.at(path).iter().map(|choice| &choice.route);
        routes.find(|route| route.schemes.contains(&Scheme::Bearer))
    }
}

/// Whether a path is one of Doorward's own pages. `asked` says whether proxies ask for decisions (`forward_auth`): an
/// upstream that answers such a question, even from a peer that may not ask, would allow everything with its 200.
fn is_own(path: &str, browser: bool, external: bool, asked: bool) -> bool {
    path.starts_with("/.doorward/")
        || (asked && forward_auth::is_question(path))
        || (browser && path.starts_with("/oauth2/"))
        || (external && path == PROTECTED_RESOURCE)
        || (external && path == assertions::KEY_SET)
}

/// The methods that at least one of the routes accepts, each once. `named` has the methods that each route names.
fn allow<'a>(named: impl Iterator<Item: IntoIterator<Item = &'a str>>) -> String {
    let mut names: Vec<&str> = Vec::new();
    for methods in named {
        let mut methods = methods.into_iter().peekable();
        if methods.peek().is_none() {
            return method::TAKEN.to_owned();
        }
        for method in methods {
            if !names.contains(&method) {
                names.push(method);
            }
        }
    }
    names.join(", ")
}

/// The parts of a configuration that routes refer to by name.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    pub upstreams: &'a BTreeMap<Arc<str>, Arc<Upstream>>,
    pub webhooks: &'a BTreeMap<Arc<str>, Arc<Webhook>>,
    pub issuers: &'a Issuers,
    pub metrics: &'a RequestMetrics,
}

/// Builds the table. Names, hosts, paths and methods have already been checked; anything else that cannot be used is
/// left out and reported.
pub fn resolve(root: &raw::Root, parts: Parts<'_>, resolver: &mut Resolver) -> Routes {
    let mut routes = Routes {
        external: root.external_host.as_deref().map(Into::into),
        tokens: root.tokens.is_some(),
        asked: root.forward_auth.is_some(),
        interceptor: root.interceptor.as_ref().map(|interceptor| interceptor.host.as_str().into()),
        ..Routes::default()
    };
    if root.forward_auth.is_some() && root.listeners.iter().all(|listener| listener.trusted_proxies.is_empty()) {
        let message = "no listener has `trusted_proxies`, so no proxy may ask";
        let help = "list the addresses of that proxy there";
        resolver.error(&At::root().key("forward_auth"), message).help(help);
    }
    let at = At::root().key("routes");
    for (index, written) in root.routes.iter().enumerate() {
        let at = at.index(index);
        let Some(upstream) = parts.upstreams.get(written.upstream.as_str()) else { continue };
        let webhook = written.webhook.as_deref().and_then(|name| parts.webhooks.get(name));
        let mut route = Route::resolve(written, &at, upstream, webhook, parts, resolver);
        route.authorization = Authorization::of(root, written);
        let api = written.kubernetes.as_deref().and_then(|name| parts.upstreams.get(name));
        route.dashboard = api.map(|api| Arc::new(Dashboard::new(api, namespaces(root, written))));
        let all = vec!["/*".to_owned()];
        let paths = if written.paths.is_empty() { &all } else { &written.paths };
        routes.insert(&written.hosts, paths, &Arc::new(route), &at, resolver);
        if let Some(api) = api {
            // The Dashboard's back end would send these with its own rights, so they go to the API server as the
            // person.
            let mut route = Route::resolve(written, &at, api, None, parts, resolver);
            route.kind = RouteKind::Kubernetes;
            let paths = raw::API_PATHS.map(str::to_owned);
            routes.insert(&written.hosts, &paths, &Arc::new(route), &at, resolver);
        }
    }
    routes
}

/// The namespaces whose runs people may see: those that rules and the route name.
fn namespaces<'a>(root: &'a raw::Root, route: &'a raw::Route) -> impl Iterator<Item = Arc<str>> {
    let rules = root.rules.iter().filter(|rule| !matches!(rule.action, raw::Action::Deny));
    let named = rules.flat_map(|rule| {
        let listed = rule.on.kubernetes.iter().flat_map(|kubernetes| &kubernetes.namespaces);
        rule.on.namespace.iter().chain(listed.filter(|name| *name != "*"))
    });
    named.chain(&route.namespaces).map(|name| name.as_str().into())
}

impl Route {
    fn resolve(
        written: &raw::Route,
        at: &At,
        upstream: &Arc<Upstream>,
        webhook: Option<&Arc<Webhook>>,
        parts: Parts<'_>,
        resolver: &mut Resolver,
    ) -> Self {
        let named = written.methods.iter();
        let mut methods: Vec<Method> = named.filter_map(|name| Method::from_bytes(name.as_bytes()).ok()).collect();
        if methods.is_empty() && written.kind == RouteKind::Webhook {
            methods.push(Method::POST);
        }
        let mut pass_headers = Vec::new();
        for (index, name) in written.pass_headers.iter().enumerate() {
            let at = at.key("pass_headers").index(index);
            let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
                resolver.error(&at, format!("`{name}` is not the name of a header"));
                continue;
            };
            if let Some(why) = headers::never_passes(&name) {
                resolver.error(&at, format!("`{name}` can never be forwarded: {why}"));
            } else if let Some(why) = webhook.and_then(|webhook| webhook.never_passes(&name)) {
                resolver.error(&at, format!("`{name}` can never be forwarded from this sender: {why}"));
            }
            pass_headers.push(name);
        }
        if let Some(webhook) = webhook {
            pass_headers.extend(webhook.allowed_headers().iter().cloned());
        }
        let name: Arc<str> = written.name.as_str().into();
        Self {
            kind: written.kind,
            schemes: written.schemes.clone(),
            accepts: parts
                .issuers
                .accepts(&written.issuers, &at.key("issuers"), resolver)
                .with_audiences(&written.audiences),
            metrics: Arc::new(parts.metrics.route(&name)),
            name,
            upstream: upstream.clone(),
            webhook: webhook.cloned(),
            dashboard: None,
            event_listener: written.event_listener.clone().map(Arc::new),
            pass_headers,
            authorization: Authorization::Ours,
            max_body: written.max_body.map(|size| size.0),
            max_stream: written.max_stream.get(),
            home: written
                .paths
                .first()
                .map_or("", |path| path.strip_suffix('*').unwrap_or(path))
                .trim_end_matches('/')
                .into(),
            methods,
        }
    }
}

impl Routes {
    fn insert(&mut self, hosts: &[String], paths: &[String], route: &Arc<Route>, at: &At, resolver: &mut Resolver) {
        for name in hosts {
            let host = match name.strip_prefix("*.") {
                Some(rest) => self.wildcard.entry(rest.to_owned()).or_default(),
                None => self.exact.entry(name.as_str().into()).or_default(),
            };
            host.browser |= route.schemes.contains(&Scheme::Session);
            for path in paths {
                if let Err(error) = host.paths.insert(path, route, !route.methods.is_empty()) {
                    resolver.error(&at.key("paths"), format!("the path `{path}` cannot be used: {error}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
