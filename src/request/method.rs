//! Names of methods, which are compared byte for byte (RFC 9110 section 9.1). Some servers are less exact, so a method
//! that is let through must not be a known one in another spelling.

use http::Method;

use crate::{
    config::raw::RouteKind,
    error::{Reason, Rejection},
};

/// The methods of RFC 9110 and RFC 5789.
pub const KNOWN: [Method; 9] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::OPTIONS,
    Method::TRACE,
    Method::CONNECT,
];

/// The methods of [`KNOWN`] that a route accepts if it names none, in the form of `Allow`.
pub(super) const TAKEN: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// A method that differs from a known one only in case: a rule that names the known one would not apply to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the method `{sent}` is `{known}` in another spelling, and names of methods are compared exactly")]
pub struct Misspelt {
    sent: Method,
    known: Method,
}

impl From<Misspelt> for Rejection {
    fn from(why: Misspelt) -> Self {
        let fix = format!("send `{}`", why.known);
        Self::new(Reason::BadRequest, why.to_string()).fix(fix)
    }
}

/// Whether a list in the form of `Allow` names a method.
pub fn is_listed(method: &Method, allow: &str) -> bool {
    allow.split(", ").any(|listed| listed == method.as_str())
}

pub fn is_known(method: &Method) -> bool {
    KNOWN.contains(method)
}

/// Whether a route that names these methods accepts one, whatever its rules say. No route accepts `TRACE`, which shows
/// the client what Doorward itself adds to a request (RFC 9110 section 9.3.8), or `CONNECT`. An unknown method is
/// accepted only if the route names it, because no rule that lists methods may have considered it. On Kubernetes routes
/// the policy refuses methods that the API server has no verb for, as the API server would.
pub fn is_taken(method: &Method, kind: RouteKind, named: &[impl AsRef<str>]) -> bool {
    match named {
        _ if *method == Method::TRACE || *method == Method::CONNECT => false,
        [] => kind == RouteKind::Kubernetes || is_known(method),
        named => named.iter().any(|named| named.as_ref() == method.as_str()),
    }
}

pub fn check_spelling(method: &Method) -> Result<(), Misspelt> {
    if is_known(method) {
        return Ok(());
    }
    let meant = KNOWN.into_iter().find(|known| known.as_str().eq_ignore_ascii_case(method.as_str()));
    meant.map_or(Ok(()), |known| Err(Misspelt { sent: method.clone(), known }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allow_has_the_methods_that_routes_take_which_name_none() {
        for kind in [RouteKind::Http, RouteKind::Kubernetes] {
            let taken = KNOWN.iter().filter(|method| is_taken(method, kind, &[] as &[&str]));
            assert_eq!(taken.map(Method::as_str).collect::<Vec<_>>().join(", "), TAKEN);
        }
    }

    #[test]
    fn another_spelling_of_a_known_method_is_distinguished_from_an_unknown_method() {
        for (sent, known) in
            [("delete", Some("DELETE")), ("Post", Some("POST")), ("connect", Some("CONNECT")), ("DELETE", None)]
        {
            let misspelt = check_spelling(&sent.parse().unwrap()).err();
            assert_eq!(misspelt.as_ref().map(|misspelt| misspelt.known.as_str()), known, "{sent}");
        }
        for own in ["PROPFIND", "propfind", "DELETED"] {
            assert_eq!(check_spelling(&own.parse().unwrap()), Ok(()), "{own}");
        }
    }
}
