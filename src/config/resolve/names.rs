//! The syntax of names: of parts of the configuration, hosts, paths, methods, headers.

use std::collections::BTreeSet;

use super::item;
use crate::{
    config::report::{At, Report},
    request::{
        host::{ipv6_help, ipv6_host},
        path::check_pattern,
    },
};

/// Checks that the names of a list's entries are valid and unique.
pub(super) fn unique<'a>(list: &str, what: &str, names: Vec<&'a str>, report: &mut Report) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    for (index, name) in names.into_iter().enumerate() {
        let at = item(list, index).key("name");
        if !seen.insert(name) {
            report.error(&at, format!("there is another {what} `{name}`")).help("names of a list must differ");
        } else if !is_name(name) {
            report
                .error(&at, format!("`{name}` cannot be the name of a {what}"))
                .help("a name has 1 to 63 letters, digits, `-`, `_` or `.`, and not dots alone");
        }
    }
    seen
}

/// Whether an entry of a list can have this name. Some names are used in paths, where one of dots only would be a path
/// segment such as `..`.
pub fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=63).contains(&name.len()) && name.bytes().all(allowed) && name.bytes().any(|byte| byte != b'.')
}

/// Checks a host: a name in lower case or an address, IPv6 in brackets and in the form that requests are matched in, no
/// port, and a wildcard only for the whole first label.
pub(super) fn host(host: &str, at: &At, report: &mut Report) {
    let problem = |help: &str, report: &mut Report| {
        report.error(at, format!("`{host}` is not a host name")).help(help);
    };
    let name = host.strip_prefix("*.").unwrap_or(host);
    if let Some(address) = ipv6_host(&format!("[{}]", host.trim_matches(['[', ']']))) {
        if address != host {
            problem(&format!("write `{address}`"), report);
        }
        return;
    }
    if host.contains("://") || host.contains('/') {
        problem("write the name alone, without scheme and path", report);
    } else if let Some(help) = ipv6_help(host) {
        problem(help, report);
    } else if host.contains(':') {
        problem("write the name without the port", report);
    } else if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        problem(&format!("write `{}`", host.to_ascii_lowercase()), report);
    } else if !host.is_ascii() {
        problem("write the ASCII form, in which such a label begins with `xn--`", report);
    } else if name.contains('*') {
        problem("`*` stands for one whole label at the beginning, as in `*.example.com`", report);
    } else if host.starts_with('*') && !name.contains('.') {
        problem("`*.` must be followed by at least two labels", report);
    } else if host.ends_with('.') {
        problem("write the name without the dot at the end", report);
    } else if host.len() > 253 || !name.split('.').all(is_label) {
        problem("labels have 1 to 63 letters, digits and dashes, and do not begin or end with a dash", report);
    }
}

pub(super) fn namespace(name: &str, at: &At, report: &mut Report) {
    if !is_label(name) {
        report.error(at, format!("`{}` is not a valid name of a namespace", name.escape_debug()));
    }
}

/// Whether a text is a DNS label, as names of Services and namespaces are.
pub fn is_label(label: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&label.len()) && label.bytes().all(allowed) && !label.starts_with('-') && !label.ends_with('-')
}

/// Checks a path or a prefix that ends in `/*`: it must have the canonical form of request paths, or no request would
/// ever match it.
pub(super) fn path(path: &str, at: &At, report: &mut Report) -> bool {
    match check_pattern(path) {
        Ok(()) => true,
        Err(help) => {
            report.error(at, format!("`{path}` is not a path that a request can have")).help(help);
            false
        }
    }
}

/// Checks a request method.
pub(super) fn method(method: &str, at: &At, report: &mut Report) {
    const NEVER: [&str; 2] = ["CONNECT", "TRACE"];
    let upper = method.to_ascii_uppercase();
    if NEVER.contains(&upper.as_str()) {
        report.error(at, format!("`{upper}` is never forwarded")).help("remove it");
    } else if method != upper {
        report.error(at, format!("`{method}` is not a method")).help(format!("did you mean `{upper}`?"));
    } else if http::Method::from_bytes(method.as_bytes()).is_err() {
        report.error(at, format!("`{method}` is not a method")).help("write methods as `GET` or `POST`");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(check: impl FnOnce(&At, &mut Report)) -> usize {
        let mut report = Report::default();
        check(&At::root(), &mut report);
        report.problems().len()
    }

    #[test]
    fn a_name_is_no_step_of_a_path() {
        for (name, expected) in
            [("b.c_d-1", true), (".a", true), ("", false), (".", false), ("..", false), ("a/b", false), ("a b", false)]
        {
            assert_eq!(is_name(name), expected, "{name}");
        }
    }

    #[test]
    fn hosts_are_lower_case_names_with_at_most_one_wildcard_label() {
        for good in [
            "a.example.com",
            "localhost",
            "*.example.com",
            "127.0.0.1",
            "xn--bcher-kva.example",
            "[::1]",
            "[2001:db8::1]",
        ] {
            assert_eq!(problems(|at, report| host(good, at, report)), 0, "{good}");
        }
        for bad in [
            "",
            "A.example.com",
            "a.example.com:443",
            "https://a.example.com",
            "a.example.com/x",
            "a.example.com.",
            "a..b",
            "-a.b",
            "a_b.c",
            "*.com",
            "*",
            "a.*.com",
            "*.*.example.com",
            "a*.example.com",
            "bücher.example",
            "::1",
            "*.[::1]",
            "[::1",
            "[fe80::1%25eth0]",
        ] {
            assert_eq!(problems(|at, report| host(bad, at, report)), 1, "{bad}");
        }
    }

    #[test]
    fn an_ipv6_address_is_not_taken_for_a_name_with_a_port_and_has_one_spelling() {
        for (text, word) in [
            ("::1", "write `[::1]`"),
            ("[0:0::1]", "write `[::1]`"),
            ("2001:db8::8443", "write `[2001:db8::8443]`"),
            ("[2001:DB8::1]", "write `[2001:db8::1]`"),
            ("[::ffff:7f00:1]", "write `[::ffff:127.0.0.1]`"),
            ("[::1]:8443", "without zone and port"),
            ("[::1", "write `[::1]`"),
            ("*.[::1]", "an IPv6 address alone"),
            ("[fe80::1%25eth0]", "without zone"),
            ("fe80::1%eth0", "without zone"),
            ("a.example.com:443", "write the name without the port"),
            ("https://[::1]", "without scheme and path"),
        ] {
            let mut report = Report::default();
            host(text, &At::root(), &mut report);
            let problem = format!("{:?}", report.problems());
            assert!(problem.contains(word), "{text}: {problem}");
        }
    }

    #[test]
    fn paths_have_the_form_that_requests_are_let_through_with() {
        for (text, found) in [("/caf%C3%A9/*", 0), ("/caf%c3%a9/*", 1), ("/a%7Fb", 1), ("/a{b}", 1)] {
            assert_eq!(problems(|at, report| _ = path(text, at, report)), found, "{text}");
        }
    }

    #[test]
    fn methods_are_upper_case_and_tunnels_are_never_let_through() {
        for good in ["GET", "POST", "PROPFIND"] {
            assert_eq!(problems(|at, report| method(good, at, report)), 0, "{good}");
        }
        for bad in ["get", "CONNECT", "trace", "", "A B"] {
            assert_eq!(problems(|at, report| method(bad, at, report)), 1, "{bad}");
        }
    }
}
