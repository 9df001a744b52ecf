//! `Authorization` of a client on a route where Doorward reads no credential: there it is for the application, which
//! authenticates its callers itself. Everywhere else it is for Doorward, and no upstream gets it.

use http::{HeaderMap, HeaderValue, header};

use crate::{
    config::raw::{self, RouteKind, Scheme},
    sessions,
};

/// Which `Authorization` of clients a route forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authorization {
    /// None, as it is for Doorward.
    Ours,
    /// No bearer token, as another route of the host accepts these, and clients may send theirs to all of the host.
    NoBearer,
    /// The application's own, whatever it is.
    Any,
}

impl Authorization {
    pub(super) fn of(root: &raw::Root, route: &raw::Route) -> Self {
        if route.kind != RouteKind::Http || route.schemes != [Scheme::Anonymous] {
            return Self::Ours;
        }
        let shares_host = |other: &raw::Route| other.hosts.iter().any(|host| route.hosts.contains(host));
        let mut of_tokens = root.routes.iter().filter(|other| other.schemes.contains(&Scheme::Bearer));
        if of_tokens.any(shares_host) { Self::NoBearer } else { Self::Any }
    }

    /// The header that is the application's own, from those of a request.
    pub(super) fn of_application(self, received: &HeaderMap) -> Option<HeaderValue> {
        if self == Self::Ours {
            return None;
        }
        let mut values = received.get_all(header::AUTHORIZATION).iter();
        // If there are two, it is not known which one the application reads.
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        let text = value.as_bytes().trim_ascii();
        let end = text.iter().position(|byte| !byte.is_ascii_alphanumeric()).unwrap_or(text.len());
        let (scheme, credential) = text.split_at(end);
        let is = |name: &str| scheme.eq_ignore_ascii_case(name.as_bytes());
        let is_handle = || std::str::from_utf8(credential.trim_ascii()).is_ok_and(sessions::is_handle);
        let is_for_doorward = is("bearer") && (self == Self::NoBearer || is_handle());
        // These authenticate the connection (RFC 4559 section 6), and connections to upstreams are shared.
        let is_of_connection = is("negotiate") || is("ntlm");
        if is_for_doorward || is_of_connection {
            return None;
        }
        let mut value = value.clone();
        value.set_sensitive(true);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_route_is_the_applications_if_doorward_reads_no_credential_there() {
        let route = |kind: &str, host: &str, schemes: &[&str]| -> Value {
            json!({"name": "a", "kind": kind, "hosts": [host], "schemes": schemes, "upstream": "up"})
        };
        let open = || route("http", "a.test", &["anonymous"]);
        let rows: [(&str, Value, Value, Authorization); 6] = [
            ("alone", open(), open(), Authorization::Any),
            ("beside sessions", open(), route("http", "a.test", &["session"]), Authorization::Any),
            ("beside tokens", open(), route("http", "a.test", &["session", "bearer"]), Authorization::NoBearer),
            ("tokens at another host", open(), route("http", "b.test", &["bearer"]), Authorization::Any),
            ("strangers too", route("http", "a.test", &["session", "anonymous"]), open(), Authorization::Ours),
            ("a dashboard", route("dashboard", "a.test", &["anonymous"]), open(), Authorization::Ours),
        ];
        for (row, route, other, expected) in rows {
            let root: raw::Root = serde_json::from_value(json!({"routes": [route, other]})).unwrap();
            assert_eq!(Authorization::of(&root, &root.routes[0]), expected, "{row}");
        }
    }

    #[test]
    fn only_what_is_the_applications_own_is_forwarded() {
        use Authorization::{Any, NoBearer, Ours};
        for (row, which, sent, passes) in [
            ("Basic", Any, &["Basic eDp5"][..], true),
            ("a token of its own", Any, &["Bearer x"], true),
            ("a signature", Any, &["AWS4-HMAC-SHA256 Credential=x"], true),
            ("no header", Any, &[], false),
            ("two headers", Any, &["Basic eDp5", "Basic eDp6"], false),
            ("a session handle", Any, &["Bearer dws_x"], false),
            ("a session handle, written in another way", Any, &[" bearer\t dws_x"], false),
            ("for the connection", Any, &["Negotiate YII="], false),
            ("for the connection", Any, &["ntlm TlRM"], false),
            ("Basic, beside tokens", NoBearer, &["Basic eDp5"], true),
            ("a token that may be for Doorward", NoBearer, &["Bearer x"], false),
            ("a token that may be for Doorward", NoBearer, &["BEARER\tx"], false),
            ("for Doorward", Ours, &["Basic eDp5"], false),
        ] {
            let lines = sent.iter().map(|value| (header::AUTHORIZATION, HeaderValue::from_static(value)));
            let received: HeaderMap = lines.collect();
            let expected = passes.then(|| HeaderValue::from_static(sent[0]));
            assert_eq!(which.of_application(&received), expected, "{row}");
        }
    }
}
