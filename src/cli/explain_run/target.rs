//! The address that `doorward explain` explains, read as the proxy reads it.

use http::Method;
use url::Url;

use super::Misused;
use crate::{
    config::raw::Limits,
    downstream::check_target,
    error::Rejection,
    request::{host::normalise, method::check_spelling, path::check_canonical},
};

/// The target of a request as it is written in an address: [`Url`] would change the path of one that Doorward refuses.
#[derive(Debug)]
pub(super) struct Target<'a> {
    pub(super) host: String,
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
}

impl<'a> Target<'a> {
    pub(super) fn of(url: &'a str) -> Result<Self, Misused> {
        let invalid = |why: &str| Misused::Address { url: url.to_owned(), why: why.to_owned() };
        // Without one, `Url` would look for a host in the path.
        let names_host = |rest: &str| !rest.starts_with(['/', '\\', '?', '#']);
        let rest = url.trim().split_once("://").map(|(_, rest)| rest).filter(|rest| names_host(rest));
        let rest = rest.ok_or_else(|| invalid("it names no host"))?;
        let parsed = Url::parse(url).map_err(|error| invalid(&error.to_string()))?;
        let host = parsed.host_str().ok_or_else(|| invalid("it names no host"))?;
        let host = normalise(host).ok_or_else(|| Misused::Host(host.to_owned()))?.into_owned();
        // A backslash ends the host for `Url` too.
        let (_, target) = rest.split_at(rest.find(['/', '\\', '?', '#']).unwrap_or(rest.len()));
        let target = target.split_once('#').map_or(target, |(target, _)| target);
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        Ok(Self { host, path: if path.is_empty() { "/" } else { path }, query })
    }

    /// Whether it would get as far as a route, as the listener and `request::sanitize` decide.
    pub(super) fn check(&self, method: &Method, limits: &Limits) -> Result<(), Rejection> {
        // As HTTP/1.1 sends it: HTTP/2 counts the host too.
        check_target(self.path.len() + self.query.map_or(0, |query| 1 + query.len()), limits)?;
        check_canonical(self.path)?;
        check_spelling(method)?;
        Ok(())
    }
}
