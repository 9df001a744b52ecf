//! Which host a request is for: one name, in one form, or a refusal.

use std::{borrow::Cow, net::Ipv6Addr};

use http::{HeaderMap, HeaderValue, Uri, Version, header};

use crate::{
    error::{Reason, Rejection},
    sessions::Origin,
};

/// The host of a request: lower case, without port and without a trailing dot.
///
/// HTTP/1.1 wants exactly one `Host` (RFC 9112 section 3.2); an absolute-form target replaces it. HTTP/2 has
/// `:authority`, and a `host` beside it must say the same (RFC 9113 section 8.3.1).
pub fn host_of<'a>(version: Version, uri: &'a Uri, headers: &'a HeaderMap) -> Result<Cow<'a, str>, Rejection> {
    let mut lines = headers.get_all(header::HOST).iter();
    let line = lines.next();
    if lines.next().is_some() {
        return Err(refused("has more than one Host header"));
    }
    let line = match line {
        Some(value) => Some(value.to_str().map_err(|_| refused("has a Host header that is not ASCII"))?),
        None => None,
    };
    let authority = uri.authority().map(http::uri::Authority::as_str);
    let named = match (authority, line) {
        (Some(authority), Some(line)) if version >= Version::HTTP_2 && !authority.eq_ignore_ascii_case(line) => {
            return Err(refused("names one host in :authority and another in Host"));
        }
        (Some(authority), _) => authority,
        (None, Some(line)) => line,
        (None, None) => return Err(refused("names no host")),
    };
    normalise(named).ok_or_else(|| refused("names an invalid host"))
}

/// The scheme and port by which a client reaches its host, for URLs that lead back there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    secure: bool,
    port: Option<u16>,
}

impl Reached {
    /// `named` is the host as the client sent it, which has been validated.
    pub fn of(secure: bool, named: Option<&HeaderValue>) -> Self {
        let port = named.and_then(|named| {
            let named = named.as_bytes();
            let colon = named.iter().rposition(|byte| *byte == b':')?;
            std::str::from_utf8(named.get(colon + 1..)?).ok()?.parse().ok()
        });
        Self { secure, port }
    }

    /// A URL on this host; `path` is empty or begins with a slash.
    pub fn url(self, host: &str, path: &str) -> String {
        // Clear text is for this machine only, as for origins. In front of other hosts something terminates TLS without
        // saying so.
        let secure = self.secure || Origin::loopback(host).is_none();
        let scheme = if secure { "https" } else { "http" };
        // The port of a hop in clear text is not the one that the client used.
        let port = self.port.filter(|port| *port != if self.secure { 443 } else { 80 });
        match port {
            Some(port) => format!("{scheme}://{host}:{port}{path}"),
            None => format!("{scheme}://{host}{path}"),
        }
    }
}

fn refused(what: &'static str) -> Rejection {
    Rejection::new(Reason::BadRequest, format!("the request {what}"))
}

/// An IPv6 address as a host, in brackets and in the canonical form of RFC 5952, however it is written.
pub fn ipv6_host(literal: &str) -> Option<String> {
    let address: Ipv6Addr = literal.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?;
    Some(format!("[{address}]"))
}

/// Help for a text that is not a host but seems to mean an IPv6 address.
pub fn ipv6_help(text: &str) -> Option<&'static str> {
    let is_meant = text.contains('[') || (text.matches(':').count() > 1 && !text.contains('/'));
    is_meant.then_some("write an IPv6 address alone, in brackets, as `[::1]`, without zone and port")
}

/// Returns a host in lower case, without port and trailing dot, and an IPv6 address in canonical form; `None` if it is
/// neither a host name nor an address.
pub fn normalise(named: &str) -> Option<Cow<'_, str>> {
    if named.starts_with('[') {
        let (literal, port) = named.split_at_checked(named.find(']')? + 1)?;
        check_port(port)?;
        let canonical = ipv6_host(literal)?;
        return Some(if canonical == literal { Cow::Borrowed(literal) } else { Cow::Owned(canonical) });
    }
    let (host, port) = named.find(':').map_or((named, ""), |colon| named.split_at(colon));
    check_port(port)?;
    let host = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if host.len() > 253 || !host.split('.').all(label) {
        return None;
    }
    Some(if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    })
}

fn check_port(port: &str) -> Option<()> {
    match port.strip_prefix(':') {
        None => port.is_empty().then_some(()),
        Some(digits) => {
            (digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u16>().is_ok()).then_some(())
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn of(version: Version, uri: &str, hosts: &[&str]) -> Result<String, Rejection> {
        let mut request = Request::builder().version(version).uri(uri);
        for host in hosts {
            request = request.header("host", *host);
        }
        let request = request.body(()).unwrap();
        host_of(version, request.uri(), request.headers()).map(Cow::into_owned)
    }

    #[test]
    fn a_return_address_has_the_scheme_and_port_that_the_client_used() {
        for (secure, named, host, url) in [
            (true, "Tekton.Example", "tekton.example", "https://tekton.example/x"),
            (true, "tekton.example:443", "tekton.example", "https://tekton.example/x"),
            (true, "tekton.example:8443", "tekton.example", "https://tekton.example:8443/x"),
            (true, "tekton.example:80", "tekton.example", "https://tekton.example:80/x"),
            (false, "tekton.example", "tekton.example", "https://tekton.example/x"),
            (false, "tekton.example:80", "tekton.example", "https://tekton.example/x"),
            (false, "tekton.example:8443", "tekton.example", "https://tekton.example:8443/x"),
            (false, "localhost:80", "localhost", "http://localhost/x"),
            (false, "localhost:8080", "localhost", "http://localhost:8080/x"),
            (false, "[::1]", "[::1]", "http://[::1]/x"),
            (false, "[::1]:8080", "[::1]", "http://[::1]:8080/x"),
            (true, "tekton.example:", "tekton.example", "https://tekton.example/x"),
            (true, "8443", "8443", "https://8443/x"),
        ] {
            let reached = Reached::of(secure, Some(&HeaderValue::from_static(named)));
            assert_eq!(reached.url(host, "/x"), url, "{named}");
        }
        assert_eq!(Reached::of(true, None).url("a", ""), "https://a");
    }

    #[test]
    fn every_spelling_of_a_host_has_one_form() {
        for spelling in
            ["tekton.example", "Tekton.Example", "tekton.example.", "tekton.example:443", "TEKTON.example.:8443"]
        {
            assert_eq!(of(Version::HTTP_11, "/", &[spelling]).unwrap(), "tekton.example", "{spelling}");
        }
        for spelling in ["[::1]:8080", "[::1]", "[0:0:0:0:0:0:0:1]:8080", "[0::0001]", "[::0.0.0.1]"] {
            assert_eq!(of(Version::HTTP_11, "/", &[spelling]).unwrap(), "[::1]", "{spelling}");
        }
        for spelling in ["[2001:db8::a:0:0:1]", "[2001:DB8:0:0:A::1]:443", "[2001:0db8::000a:0:0:1]"] {
            assert_eq!(of(Version::HTTP_11, "/", &[spelling]).unwrap(), "[2001:db8::a:0:0:1]", "{spelling}");
        }
        for spelling in ["[::ffff:192.0.2.1]", "[::FFFF:c000:201]"] {
            assert_eq!(of(Version::HTTP_11, "/", &[spelling]).unwrap(), "[::ffff:192.0.2.1]", "{spelling}");
        }
        assert_eq!(of(Version::HTTP_11, "http://a.example/x", &["b.example"]).unwrap(), "a.example");
        assert_eq!(of(Version::HTTP_2, "https://a.example/", &["a.example"]).unwrap(), "a.example");
    }

    #[test]
    fn ambiguous_or_broken_hosts_are_refused() {
        for (row, version, uri, hosts) in [
            ("kubernetes:R2 two hosts", Version::HTTP_11, "/", &["a.example", "a.example"][..]),
            ("kubernetes:R2 authority against host", Version::HTTP_2, "https://a.example/", &["b.example"]),
            ("none", Version::HTTP_11, "/", &[]),
            ("empty", Version::HTTP_11, "/", &[""]),
            ("blank", Version::HTTP_11, "/", &["a b"]),
            ("userinfo", Version::HTTP_11, "/", &["user@a.example"]),
            ("port", Version::HTTP_11, "/", &["a.example:99999"]),
            ("port sign", Version::HTTP_11, "/", &["a.example:+80"]),
            ("two dots", Version::HTTP_11, "/", &["a.example.."]),
            ("path", Version::HTTP_11, "/", &["a.example/x"]),
            ("ipv6", Version::HTTP_11, "/", &["[::1"]),
            ("ipv6 and more", Version::HTTP_11, "/", &["[::1]x"]),
            ("ipv6 port", Version::HTTP_11, "/", &["[::1]:99999"]),
            ("long label", Version::HTTP_11, "/", &[&format!("{}.example", "a".repeat(64))]),
            ("long name", Version::HTTP_11, "/", &[&"ab.".repeat(85)]),
            ("ipv6 without brackets", Version::HTTP_11, "/", &["::1"]),
            ("ipv4 in brackets", Version::HTTP_11, "/", &["[127.0.0.1]"]),
            ("ipv6 zone", Version::HTTP_11, "/", &["[fe80::1%25eth0]"]),
        ] {
            assert!(of(version, uri, hosts).is_err(), "{row}");
        }
        let longest = "ab.".repeat(84) + "a";
        assert_eq!(of(Version::HTTP_11, "/", &[longest.as_str()]).unwrap(), longest, "the twin of the long name");
    }
}
