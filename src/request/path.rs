//! The canonical path. The path that is decided is forwarded byte for byte, so a path that any later reader could read
//! in another way is refused here rather than repaired (CVE-2019-9901, GHSA-p224-6x5r-fjpm and similar).

use crate::error::{Reason, Rejection};

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCanonical {
    #[error("does not begin with `/`")]
    NotAbsolute,
    #[error("has an empty segment (`//`)")]
    EmptySegment,
    #[error("has a `.` or `..` segment")]
    DotSegment,
    #[error("has a `;`, which some servers cut off")]
    Parameter,
    #[error("has a character that must be percent-encoded")]
    Character,
    #[error("has a `%` that two hexadecimal digits do not follow")]
    Escape,
    #[error("encodes a `/`, a `\\` or a control character")]
    EncodedDelimiter,
    #[error("encodes a letter, a digit or one of `-._~`, which need no encoding")]
    NeedlesslyEncoded,
    #[error("encodes with lower-case digits; RFC 3986 section 6.2.2.1 writes them in upper case")]
    LowerCaseEscape,
}

impl From<NotCanonical> for Rejection {
    fn from(why: NotCanonical) -> Self {
        Self::new(Reason::PathNotCanonical, format!("the path of the request {why}"))
            .fix(
                "correct the address: its path must be in the normal form of RFC 3986 section 6.2.2; if a link led you here, \
                 tell whoever gave it to you",
            )
    }
}

impl NotCanonical {
    /// How to write the path instead.
    pub const fn fix(self) -> &'static str {
        match self {
            Self::NotAbsolute => "a path begins with `/`",
            Self::EmptySegment => "requests with `//` are refused; write one `/`",
            Self::DotSegment => "requests with `.` or `..` segments are refused; write the path that they lead to",
            Self::Parameter => "requests with `;` in the path are refused",
            Self::Character => {
                "blanks, non-ASCII letters and most symbols must be percent-encoded: write `%20` for a blank, `%C3%A9` for `é`"
            }
            Self::Escape => "`%` must be followed by two hexadecimal digits",
            Self::EncodedDelimiter => "requests with an encoded `/`, backslash or control character are refused",
            Self::NeedlesslyEncoded => {
                "requests that encode letters, digits, `-`, `.`, `_` or `~` are refused; write them plainly"
            }
            Self::LowerCaseEscape => "requests with `%c3` are refused; write the digits in upper case, as in `%C3`",
        }
    }
}

/// Checks a path, or a prefix that ends in `/*`, that paths of requests are to be compared with. A pattern that no
/// request can match is an error, which says what to write instead.
pub fn check_pattern(text: &str) -> Result<(), &'static str> {
    let exact = match text.strip_suffix('*') {
        Some(prefix) if prefix.ends_with('/') => prefix,
        _ => text,
    };
    if exact.starts_with('/') && exact.contains('*') {
        return Err("`*` can only stand alone at the end, as in `/hooks/*`");
    }
    if exact.contains(['?', '#']) {
        return Err("a path has no query and no fragment");
    }
    if exact.contains('\\') {
        return Err("requests with a backslash in the path are refused");
    }
    check_canonical(exact).map_err(NotCanonical::fix)
}

/// Refuses every path that normalising by RFC 3986 section 6.2.2 would change. A character that may be sent plainly or
/// encoded, such as `:`, which `encodeURIComponent` encodes, stays as it was sent: see [`plainly`].
pub fn check_canonical(path: &str) -> Result<(), NotCanonical> {
    let bytes = path.as_bytes();
    let Some((b'/', rest)) = bytes.split_first() else {
        return Err(NotCanonical::NotAbsolute);
    };
    let mut segment_start = true;
    let mut iter = rest.iter().copied();
    let mut dots_only = 0_usize;
    while let Some(byte) = iter.next() {
        match byte {
            b'/' => {
                end_segment(segment_start, dots_only)?;
                if segment_start {
                    return Err(NotCanonical::EmptySegment);
                }
                segment_start = true;
                dots_only = 0;
                continue;
            }
            b'.' if segment_start || dots_only > 0 => dots_only += 1,
            b'%' => {
                check_escape(iter.next(), iter.next())?;
                dots_only = 0;
            }
            b';' => return Err(NotCanonical::Parameter),
            _ if is_plain(byte) => dots_only = 0,
            _ => return Err(NotCanonical::Character),
        }
        segment_start = false;
        // A dot after anything else no longer makes a dot segment.
        if dots_only > 2 {
            dots_only = 0;
        }
    }
    end_segment(segment_start, dots_only)
}

/// The bytes of a canonical path, with those decoded that may also be sent plainly. Most servers take both for the
/// same.
pub fn plainly(path: &str) -> impl Iterator<Item = u8> {
    let mut rest = path.as_bytes();
    std::iter::from_fn(move || {
        let (first, mut next) = rest.split_first()?;
        let mut byte = *first;
        if let [b'%', high, low, after @ ..] = rest
            && let Some(plain) = decoded(*high, *low).filter(|byte| is_plain(*byte))
        {
            (byte, next) = (plain, after);
        }
        rest = next;
        Some(byte)
    })
}

fn end_segment(empty: bool, dots: usize) -> Result<(), NotCanonical> {
    if !empty && (dots == 1 || dots == 2) { Err(NotCanonical::DotSegment) } else { Ok(()) }
}

/// `pchar` of RFC 3986 section 3.3 less `%` and `;`.
const fn is_plain(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@')
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn decoded(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

fn check_escape(high: Option<u8>, low: Option<u8>) -> Result<(), NotCanonical> {
    let (Some(high), Some(low)) = (high, low) else {
        return Err(NotCanonical::Escape);
    };
    let Some(byte) = decoded(high, low) else {
        return Err(NotCanonical::Escape);
    };
    match byte {
        b'/' | b'\\' | 0..=0x1f | 0x7f => Err(NotCanonical::EncodedDelimiter),
        byte if is_unreserved(byte) => Err(NotCanonical::NeedlesslyEncoded),
        _ if high.is_ascii_lowercase() || low.is_ascii_lowercase() => Err(NotCanonical::LowerCaseEscape),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn canonical_paths_pass() {
        for path in [
            "/",
            "/a",
            "/a/",
            "/a..b",
            "/...",
            "/.a",
            "/a.",
            "/..a",
            "/a/b.c/d",
            "/caf%C3%A9",
            "/a%20b",
            "/a%25",
            "/x:80/y@z",
            "/secret%23/bar",
        ] {
            assert_eq!(check_canonical(path), Ok(()), "{path}");
        }
    }

    #[test]
    fn paths_that_could_be_read_in_two_ways_are_refused() {
        use NotCanonical::*;
        for (row, path, why) in [
            ("kubernetes:P1", "//api/v1/secrets", EmptySegment),
            ("kubernetes:P1", "/api/v1//secrets", EmptySegment),
            ("kubernetes:P1", "/api/v1/namespaces/a/../b/secrets", DotSegment),
            ("kubernetes:P1", "/a/%2e%2e/b", NeedlesslyEncoded),
            ("kubernetes:P1", "/a%2Fb", EncodedDelimiter),
            ("kubernetes:P1", "/a\\b", Character),
            ("kubernetes:P1", "/a;x", Parameter),
            ("kubernetes:P1", "/a%00", EncodedDelimiter),
            ("peers:D4", "/public/..%2fadmin", EncodedDelimiter),
            ("peers:D4", "/public%2f..%2fadmin", EncodedDelimiter),
            ("peers:D4", "/public/;/../admin", Parameter),
            ("peers:D4", "/pub%6cic/x", NeedlesslyEncoded),
            ("peers:D4", "/public%00/x", EncodedDelimiter),
            ("peers:D5", "/a/%zz", Escape),
            ("peers:D6", "/./api/x", DotSegment),
            ("peers:D6", "/%61pi/x", NeedlesslyEncoded),
            ("limits", "/a%5Cb", EncodedDelimiter),
            ("limits", "/a/..", DotSegment),
            ("limits", "/a/.", DotSegment),
            ("limits", "/%", Escape),
            ("limits", "/%c3%a9", LowerCaseEscape),
            ("limits", "a", NotAbsolute),
            ("limits", "*", NotAbsolute),
            ("limits", "/a b", Character),
            ("limits", "/a\u{e9}", Character),
        ] {
            assert_eq!(check_canonical(path), Err(why), "{row} {path}");
        }
    }

    #[test]
    fn a_pattern_that_no_request_can_match_is_refused() {
        for good in ["/", "/*", "/a", "/a/", "/a/*", "/a..b", "/%C3%A9/*", "/a%20b", "/.well-known/x", "/x:80/y@z"] {
            assert_eq!(check_pattern(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "a",
            "*",
            "a/*",
            "/a*",
            "/*/a",
            "/a?b",
            "/a#b",
            "//",
            "//*",
            "/a//b",
            "/a//*",
            "/./a",
            "/a/..",
            "/x/./y",
            "/x/../*",
            "/a;b",
            "/a\\b",
            "/a b",
            "/admin panel/*",
            "/é",
            "/größe/*",
            "/%",
            "/%2",
            "/%zz",
            "/%2F",
            "/%2f",
            "/%5C",
            "/%00",
            "/%1f",
            "/%1F",
            "/%7F",
            "/%7f",
            "/%41",
            "/%2e",
            "/caf%c3%a9/*",
            "/a\"b",
            "/a<b",
            "/a>b",
            "/a^b",
            "/a{b",
            "/a|b",
            "/a}b",
            "/a[b",
            "/a]b",
            "/a`b",
        ] {
            assert!(check_pattern(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        /// Canonical paths are fixed points of a URL parser's own normalisation.
        #[test]
        fn a_url_parser_leaves_canonical_paths_as_they_are(path in "/[a-zA-Z0-9./%;:@_~-]{0,24}") {
            if check_canonical(&path).is_ok() {
                let url = url::Url::parse(&format!("http://host{path}")).unwrap();
                prop_assert_eq!(url.path(), path);
            }
        }
    }
}
