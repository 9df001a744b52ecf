//! The origin under which a browser sees Doorward, in its one serialized form.

use std::{fmt, net::IpAddr, sync::Arc};

use http::uri::Authority;
use url::Url;

/// The origin (RFC 6454) under which a browser sees Doorward: scheme, host and port. Sessions, redirect addresses and
/// the checks of `Origin` headers are bound to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin(Arc<str>);

impl Origin {
    /// `https://` and the host, with its port unless that is 443. `None` if it is not a host.
    pub fn https(authority: &str) -> Option<Self> {
        Self::parse("https", authority)
    }

    /// `http://`, for a host of this machine only. Browsers treat such origins as secure (W3C Secure Contexts section
    /// 3.1) and, except for those of WebKit, keep `__Host-` cookies for them, so development needs no weaker cookie.
    pub fn loopback(authority: &str) -> Option<Self> {
        let host = authority.parse::<Authority>().ok()?.host().trim_matches(['[', ']']).to_ascii_lowercase();
        let here = host == "localhost"
            || host.ends_with(".localhost")
            || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        here.then(|| Self::parse("http", authority)).flatten()
    }

    fn parse(scheme: &str, authority: &str) -> Option<Self> {
        if is_serialized(scheme, authority) {
            return Some(Self([scheme, "://", authority].concat().into()));
        }
        Self::parse_as_url(scheme, authority)
    }

    fn parse_as_url(scheme: &str, authority: &str) -> Option<Self> {
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

    /// The host, with its port if that is not the scheme's default.
    pub fn authority(&self) -> &str {
        self.0.split_once("://").map_or("", |(_, authority)| authority)
    }

    /// A URL of this origin; `path` begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }
}

/// Whether an authority certainly equals its serialization, as nearly all do: each request needs it, and parsing a URL
/// costs more than all other checks of a session.
fn is_serialized(scheme: &str, authority: &str) -> bool {
    let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
    let default = if scheme == "https" { "443" } else { "80" };
    let is_port = |port: &str| {
        (1..=4).contains(&port.len())
            && !port.starts_with('0')
            && port.bytes().all(|byte| byte.is_ascii_digit())
            && port != default
    };
    // A last label with a letter other than a hexadecimal digit or `x` cannot be an IP address; `--` may be an encoded
    // name.
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_name = last.bytes().any(|byte| matches!(byte, b'g'..=b'w' | b'y'..=b'z'))
        && host.len() <= 200
        && !host.contains("--")
        && host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        });
    is_name && port.is_none_or(is_port)
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

    /// An authority that is taken as it is must equal its parsed form.
    #[test]
    fn an_authority_that_needs_no_reading_reads_the_same() {
        let hosts = [
            "dash.example.com",
            "a",
            "z9-x.k8s.io",
            "localhost",
            "x.localhost",
            "1.2.3.4",
            "0x7f.1",
            "face",
            "0xg",
            "a.b.c.0x1z",
            "Dash.example.com",
            "a..b",
            "a.",
            ".a",
            "-a.com",
            "a-.com",
            "xn--bcher-kva.example",
            "xn--a",
            "ab--cd.example",
            "a_b.com",
            "ä.com",
            "a%2eb",
            "[::1]",
            "",
        ];
        let ports = ["", ":1", ":80", ":443", ":8443", ":65535", ":65536", ":99999", ":0", ":08", ":", ":x", ":8:8"];
        for (host, port) in hosts.iter().flat_map(|host| ports.iter().map(move |port| (host, port))) {
            let authority = format!("{host}{port}");
            for scheme in ["https", "http"] {
                let read = Origin::parse_as_url(scheme, &authority);
                assert_eq!(Origin::parse(scheme, &authority), read, "{scheme} {authority}");
            }
        }
    }
}
