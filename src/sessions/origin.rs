use std::{fmt, net::IpAddr, sync::Arc};

use http::uri::Authority;
use url::Url;

/// The origin (RFC 6454) under which a browser sees Doorward: scheme, host and port. Sessions, redirect addresses and
/// the checks of `Origin` headers are bound to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin(Arc<str>);

impl Origin {
    /// `https://` and the host, with its port if that is not 443. `None` if it is no host.
    pub fn https(authority: &str) -> Option<Self> {
        Self::parse("https", authority)
    }

    /// `http://`, for a host of this machine only. Browsers treat such origins as secure (W3C Secure Contexts
    /// section 3.1) and keep `__Host-` cookies for them, so development needs no weaker cookie.
    pub fn loopback(authority: &str) -> Option<Self> {
        let host = authority.parse::<Authority>().ok()?.host().trim_matches(['[', ']']).to_ascii_lowercase();
        let here = host == "localhost"
            || host.ends_with(".localhost")
            || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        here.then(|| Self::parse("http", authority)).flatten()
    }

    fn parse(scheme: &str, authority: &str) -> Option<Self> {
        let authority: Authority = authority.parse().ok()?;
        if authority.as_str().contains('@') {
            return None;
        }
        let url = Url::parse(&format!("{scheme}://{authority}/")).ok()?;
        url.host().is_some().then(|| Self(url.origin().ascii_serialization().into()))
    }

    /// The serialization of RFC 6454 section 6.2, the form of the `Origin` header.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// An address of this origin; `path` begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_have_one_form() {
        for (authority, origin) in [
            ("dash.example.com", Some("https://dash.example.com")),
            ("Dash.Example.com:443", Some("https://dash.example.com")),
            ("dash.example.com:8443", Some("https://dash.example.com:8443")),
            ("[::1]:8443", Some("https://[::1]:8443")),
            ("user@dash.example.com", None),
            ("", None),
            ("a b", None),
        ] {
            assert_eq!(Origin::https(authority).as_ref().map(Origin::as_str), origin, "{authority}");
        }
    }

    #[test]
    fn clear_text_is_for_this_machine_only() {
        for (authority, loopback) in [
            ("localhost:8080", true),
            ("dash.localhost:8080", true),
            ("127.0.0.1:8080", true),
            ("127.8.8.8", true),
            ("[::1]:8080", true),
            ("dash.example.com", false),
            ("localhost.example.com", false),
            ("10.0.0.1", false),
            ("127.0.0.1.example.com", false),
        ] {
            assert_eq!(Origin::loopback(authority).is_some(), loopback, "{authority}");
        }
    }
}
