//! Lists of names and patterns of names, compiled once and compared without allocation.

use std::{fmt, sync::Arc};

use unicode_normalization::UnicodeNormalization as _;

use super::condition::Reading;
use crate::request::{
    host::{ipv6_help, ipv6_host},
    path::{check_pattern, plainly},
};

/// Names that are compared exactly.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    sorted: Box<[Arc<str>]>,
    /// The [`trait_of`] each name, as bits. Most names that are not in the list share none, and are then not compared.
    traits: u64,
}

impl Names {
    pub(super) fn new(names: &[String]) -> Self {
        let mut names: Vec<Arc<str>> = names.iter().map(|name| Arc::from(name.as_str())).collect();
        names.sort_unstable();
        names.dedup();
        Self { traits: names.iter().fold(0, |traits, name| traits | trait_of(name)), sorted: names.into() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        if self.traits & trait_of(name) == 0 {
            return false;
        }
        // A scan beats a binary search on the short lists that people write.
        match self.sorted.len() {
            0..=8 => self.sorted.iter().any(|known| &**known == name),
            _ => self.sorted.binary_search_by(|known| (**known).cmp(name)).is_ok(),
        }
    }

    pub(super) fn contains_any(&self, names: &[Arc<str>]) -> bool {
        names.iter().any(|name| self.contains(name))
    }

    /// In words, where one suffices and several could be had: a mere list reads as if all were needed.
    pub(super) fn one_of(&self) -> String {
        match self.sorted.len() {
            0..=1 => self.to_string(),
            _ => format!("one of {self}"),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<str>> {
        self.sorted.iter()
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sorted.join(", "))
    }
}

/// One of 64 bits, from what is cheap to read of a name: its length, its first and its last byte.
fn trait_of(name: &str) -> u64 {
    let end = |byte: Option<&u8>| byte.copied().map_or(0, usize::from);
    1 << ((name.len() + 7 * end(name.as_bytes().first()) + 31 * end(name.as_bytes().last())) % 64)
}

/// An exact text, or a prefix if it ends with `*`.
#[derive(Clone, Debug)]
pub(super) enum Prefix {
    Exact(Arc<str>),
    Starts(Arc<str>),
}

impl Prefix {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        match text.strip_suffix('*') {
            _ if text.is_empty() => Err("is empty"),
            Some(prefix) if !prefix.contains('*') => Ok(Self::Starts(prefix.into())),
            None if !text.contains('*') => Ok(Self::Exact(text.into())),
            _ => Err("may have a `*` at its end only"),
        }
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *text,
            Self::Starts(prefix) => text.starts_with(&**prefix),
        }
    }

    /// Whether it is for code that a resolver fetches: no name contains a `?`.
    pub(super) fn is_of_resolver(&self) -> bool {
        let (Self::Exact(text) | Self::Starts(text)) = self;
        text.contains('?')
    }

    /// Whether it matches some text that has this beginning.
    pub(super) fn may_match(&self, beginning: &str) -> bool {
        match self {
            Self::Exact(exact) => exact.starts_with(beginning),
            Self::Starts(prefix) => prefix.starts_with(beginning) || beginning.starts_with(&**prefix),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(exact) => f.write_str(exact),
            Self::Starts(prefix) => write!(f, "{prefix}*"),
        }
    }
}

/// A path, or all paths at or below one.
#[derive(Clone, Debug)]
pub(super) enum PathPattern {
    Exact(Arc<str>),
    Below(Arc<str>),
}

impl PathPattern {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        check_pattern(text).map_err(|help| format!("is not a path that a request can have: {help}"))?;
        Ok(match text.strip_suffix("/*") {
            Some(prefix) => Self::Below(prefix.into()),
            None => Self::Exact(text.into()),
        })
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *path,
            Self::Below(prefix) => {
                path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
    }

    /// Whether it matches a path under a reading. An allow takes the path as it is written. For a deny, `%3A` equals
    /// `:`, as it does for most servers.
    pub(super) fn holds(&self, path: &str, reading: Reading) -> bool {
        self.matches(path) || (reading == Reading::Wide && self.matches_decoded(path))
    }

    fn matches_decoded(&self, path: &str) -> bool {
        let (Self::Exact(own) | Self::Below(own)) = self;
        if !path.contains('%') && !own.contains('%') {
            return false;
        }
        let mut rest = plainly(path);
        if !plainly(own).all(|byte| rest.next() == Some(byte)) {
            return false;
        }
        let next = rest.next();
        next.is_none() || (matches!(self, Self::Below(_)) && next == Some(b'/'))
    }

    /// Whether some path matches both.
    pub(super) fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(path), pattern) | (pattern, Self::Exact(path)) => pattern.matches(path),
            (Self::Below(one), Self::Below(two)) => self.matches(two) || other.matches(one),
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(exact) => f.write_str(exact),
            Self::Below(prefix) => write!(f, "{prefix}/*"),
        }
    }
}

/// A host name, or all names that are one label below a given domain.
#[derive(Clone, Debug)]
pub(super) enum HostPattern {
    Exact(Arc<str>),
    OneBelow(Arc<str>),
}

impl HostPattern {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Some(address) = ipv6_host(text) {
            return Ok(Self::Exact(address.into()));
        }
        let (host, pattern): (&str, fn(Arc<str>) -> Self) = match text.strip_prefix("*.") {
            Some(domain) => (domain, Self::OneBelow),
            None => (text, Self::Exact),
        };
        let label = |label: &str| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if !host.split('.').all(label) {
            let otherwise = "write it without scheme, port and trailing dot, a `*` as first label only";
            return Err(format!("is not a host name; {}", ipv6_help(text).unwrap_or(otherwise)));
        }
        Ok(pattern(host.to_ascii_lowercase().into()))
    }

    /// `host` is in lower case.
    pub(super) fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *host,
            Self::OneBelow(domain) => {
                host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == &**domain)
            }
        }
    }

    /// Whether some host matches both.
    pub(super) fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(host), pattern) | (pattern, Self::Exact(host)) => pattern.matches(host),
            (Self::OneBelow(one), Self::OneBelow(two)) => one == two,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(exact) => f.write_str(exact),
            Self::OneBelow(domain) => write!(f, "*.{domain}"),
        }
    }
}

/// Whether two user names are the same to a policy. To an allow, a name in another case is a different name: subjects
/// differ by case (OpenID Connect Core 1.0 section 2), and so do Git branches, which are part of the names of CI jobs.
/// To a deny, all names are the same that people take for the same (NFKC, full case folding), so that nobody evades it
/// as `Alice` or `ａlice`.
pub(super) fn same_user(written: &str, given: &str, reading: Reading) -> bool {
    match reading {
        Reading::Strict => written == given,
        Reading::Wide if written.is_ascii() && given.is_ascii() => written.eq_ignore_ascii_case(given),
        Reading::Wide => wide(written).eq(wide(given)),
    }
}

/// Upper case between, so that letters with several lower-case forms (`ſ`, `ς`, `ß`) become equal. Lower case first,
/// because `ẞ` is upper case already, and not the `SS` that `ß` becomes.
fn wide(name: &str) -> impl Iterator<Item = char> {
    name.nfkc().flat_map(char::to_lowercase).flat_map(char::to_uppercase).flat_map(char::to_lowercase).nfkc()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "needs auditors, release-managers" read as if both were needed.
    #[test]
    fn several_names_of_which_one_suffices_are_called_so() {
        let of = |names: &[&str]| Names::new(&names.iter().map(ToString::to_string).collect::<Vec<_>>()).one_of();
        assert_eq!(of(&["ops"]), "ops");
        assert_eq!(of(&["ops", "auditors"]), "one of auditors, ops");
    }

    #[test]
    fn only_a_deny_ignores_case_and_unicode_form_of_a_user_name() {
        // attacks:Z4
        for (written, given, strict, wide) in [
            ("alice@corp", "alice@corp", true, true),
            ("alice@corp", "Alice@Corp", false, true),
            ("jürgen", "JU\u{308}RGEN", false, true),
            ("gh#repo:acme/app:ref:refs/heads/main", "gh#repo:acme/app:ref:refs/heads/Main", false, true),
            ("alice", "\u{ff41}lice", false, true),
            ("mass", "maß", false, true),
            ("straße", "STRA\u{1e9e}E", false, true),
            ("strasse", "STRA\u{1e9e}E", false, true),
            ("class", "cla\u{17f}s", false, true),
            ("ΟΔΟΣ", "οδος", false, true),
            ("alice", "аlice", false, false),
            ("alice", "alice2", false, false),
        ] {
            assert_eq!(same_user(written, given, Reading::Strict), strict, "strict {written} {given}");
            assert_eq!(same_user(written, given, Reading::Wide), wide, "wide {written} {given}");
        }
    }

    #[test]
    fn names_are_found_whatever_the_length_of_the_list() {
        for count in [0, 1, 2, 8, 9, 100] {
            let all: Vec<String> = (0..count).map(|i| format!("group-{i}")).chain([String::new()]).collect();
            let names = Names::new(&all);
            assert!(all.iter().all(|name| names.contains(name)), "{count}");
            for absent in ["group", "group-100", "Group-0", "group-0 ", "x"] {
                assert!(!names.contains(absent), "{count} {absent}");
            }
            assert!(!Names::new(&all[..count]).contains(""), "{count}");
        }
    }

    #[test]
    fn a_path_pattern_holds_whole_segments() {
        let below = PathPattern::parse("/hooks/*").unwrap();
        for (path, expected) in
            [("/hooks", true), ("/hooks/", true), ("/hooks/a/b", true), ("/hooks2", false), ("/", false)]
        {
            assert_eq!(below.matches(path), expected, "{path}");
        }
        assert!(PathPattern::parse("/*").unwrap().matches("/anything"));
        for (other, meets) in [
            ("/hooks/a", true),
            ("/hooks/a/*", true),
            ("/*", true),
            ("/hooks", true),
            ("/hooks2/*", false),
            ("/hook", false),
        ] {
            let other = PathPattern::parse(other).unwrap();
            assert_eq!((below.meets(&other), other.meets(&below)), (meets, meets), "{other}");
        }
    }

    #[test]
    fn a_deny_by_path_is_not_passed_by_encoding_what_needs_none() {
        const VAULT: &str = "/api/v1/namespaces/ci/services/vault:8200/proxy/*";
        for (pattern, path, strict, wide) in [
            (VAULT, "/api/v1/namespaces/ci/services/vault:8200/proxy/", true, true),
            (VAULT, "/api/v1/namespaces/ci/services/vault%3A8200/proxy/", false, true),
            (VAULT, "/api/v1/namespaces/ci/services/vault%3A8200/proxy", false, true),
            (VAULT, "/api/v1/namespaces/ci/services/vault%3A8200/proxy2", false, false),
            (VAULT, "/api/v1/namespaces/ci/services/vault%253A8200/proxy/", false, false),
            ("/v1/jobs/x:cancel", "/v1/jobs/x%3Acancel", false, true),
            ("/v1/jobs/x%3Acancel", "/v1/jobs/x:cancel", false, true),
            ("/v1/jobs/x:cancel", "/v1/jobs/x%3Acancel/y", false, false),
            ("/@admin/*", "/%40admin/a", false, true),
            ("/a/!$&'()+,=:@", "/a/%21%24%26%27%28%29%2B%2C%3D%3A%40", false, true),
            ("/a%2A", "/a*", false, true),
            // Characters that can only be written encoded.
            ("/a%20b", "/a%20b", true, true),
            ("/a%20b", "/a+b", false, false),
            ("/a", "/a%3F", false, false),
        ] {
            let compiled = PathPattern::parse(pattern).unwrap();
            let found = (compiled.holds(path, Reading::Strict), compiled.holds(path, Reading::Wide));
            assert_eq!(found, (strict, wide), "{pattern} {path}");
        }
    }

    /// A deny that names such a path would load and never match.
    #[test]
    fn a_path_that_no_request_can_have_is_no_pattern() {
        for bad in [
            "hooks",
            "/a*",
            "/*/b",
            "/a?b",
            "",
            "/a//b",
            "/größe/*",
            "/admin panel/*",
            "/caf%c3%a9/*",
            "/x/./y",
            "/a%7F",
            "/a{b}",
        ] {
            assert!(PathPattern::parse(bad).is_err(), "{bad}");
        }
        assert!(PathPattern::parse("/gr%C3%B6%C3%9Fe/*").unwrap().matches("/gr%C3%B6%C3%9Fe/1"));
    }

    #[test]
    fn a_host_pattern_holds_one_label() {
        // peers:T6
        let pattern = HostPattern::parse("*.Example.com").unwrap();
        for (host, expected) in
            [("a.example.com", true), ("example.com", false), ("a.b.example.com", false), ("evilexample.com", false)]
        {
            assert_eq!(pattern.matches(host), expected, "{host}");
        }
        for (other, meets) in
            [("a.example.com", true), ("*.example.com", true), ("example.com", false), ("*.a.example.com", false)]
        {
            let other = HostPattern::parse(other).unwrap();
            assert_eq!((pattern.meets(&other), other.meets(&pattern)), (meets, meets), "{other}");
        }
        // A pattern that matched another spelling than the one that requests are routed by would let them evade a deny.
        for spelling in ["[::1]", "[0:0:0:0:0:0:0:1]", "[::0001]"] {
            assert!(HostPattern::parse(spelling).unwrap().matches("[::1]"), "{spelling}");
        }
        // For an intended address, the error was about a port, or did not mention brackets.
        for (bad, is_address) in [
            ("https://a", false),
            ("https://a:80", false),
            ("a:80", false),
            ("a.", false),
            ("*.*.a", false),
            ("a*.b", false),
            ("", false),
            ("::1", true),
            ("fe80::1%eth0", true),
            ("[::1]:80", true),
            ("*.[::1]", true),
            ("[a]", true),
        ] {
            let why = HostPattern::parse(bad).unwrap_err();
            assert_eq!(why.contains("in brackets, as `[::1]`"), is_address, "{bad}: {why}");
        }
    }
}
