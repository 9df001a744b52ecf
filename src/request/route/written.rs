//! Routing by the written routes alone, for commands that name a route as it was written.

use http::Method;

use super::{Paths, allow, is_own, no_path, not_taken, resource_of};
use crate::{
    config::raw::{self, RouteKind},
    error::Rejection,
    request::{method::is_taken, sanitize::misdirected},
    sts::metadata::Endpoint,
};

/// Where a request goes, as decided by [`Routes::find`](super::Routes::find).
#[derive(Clone, Copy, Debug)]
pub enum Taker<'a> {
    Route(&'a raw::Route),
    /// Doorward itself.
    Own,
}

pub fn taker<'a>(root: &'a raw::Root, host: &str, path: &str, method: &Method) -> Result<Taker<'a>, Rejection> {
    let is_external = root.external_host.as_deref() == Some(host);
    let is_of_issuer = root.tokens.is_some() && is_external && Endpoint::at(path).is_some();
    if is_of_issuer || root.interceptor.as_ref().is_some_and(|interceptor| interceptor.host == host) {
        return Ok(Taker::Own);
    }
    let wildcard = host.split_once('.').map(|(_, rest)| format!("*.{rest}"));
    let of = |name: &str| -> Vec<&'a raw::Route> {
        root.routes.iter().filter(|route| route.hosts.iter().any(|host| host == name)).collect()
    };
    let mut routes = of(host);
    if let (true, Some(wildcard)) = (routes.is_empty(), &wildcard) {
        routes = of(wildcard);
    }
    if routes.is_empty() && !is_external {
        return Err(misdirected());
    }
    let mut paths = Paths::default();
    for route in &routes {
        let all = ["/*".to_owned()];
        let own = if route.paths.is_empty() { &all[..] } else { &route.paths };
        let own = own.iter().map(|path| (path.as_str(), route.kind));
        let api = raw::API_PATHS.iter().filter(|_| route.kubernetes.is_some());
        for (path, kind) in own.chain(api.map(|path| (*path, RouteKind::Kubernetes))) {
            // A path that cannot be used was refused when the configuration was read.
            let _ = paths.insert(path, &(*route, kind), !named(route).is_empty());
        }
    }
    let takes = |scheme| move |route: &&raw::Route| route.schemes.contains(&scheme);
    let is_described = |resource| paths.at(resource).iter().any(|choice| takes(raw::Scheme::Bearer)(&choice.route.0));
    if is_own(path, routes.iter().any(takes(raw::Scheme::Session)), is_external, root.forward_auth.is_some())
        || resource_of(path).is_some_and(is_described)
    {
        return Ok(Taker::Own);
    }
    let mut asked = paths.asked(path);
    if let Some((route, _)) = asked.clone().find(|(route, kind)| is_taken(method, *kind, &named(route))) {
        return Ok(Taker::Route(route));
    }
    match asked.next() {
        None => Err(no_path()),
        Some(_) => Err(not_taken(allow(paths.asked(path).map(|(route, _)| named(route))))),
    }
}

/// The methods that a route names; empty if it accepts those of its kind.
fn named(route: &raw::Route) -> Vec<&str> {
    match route.methods.as_slice() {
        [] if route.kind == RouteKind::Webhook => vec!["POST"],
        named => named.iter().map(String::as_str).collect(),
    }
}
