//! Cookies, read strictly. Names are compared as bytes, only the blanks of RFC 6265 are trimmed, and two cookies with
//! our own name are refused: a sibling domain can add a cookie, and choosing one of them would let it win.

use std::time::Duration;

use bytes::Bytes;
use cookie::{Cookie, SameSite};
use http::{HeaderMap, HeaderValue, header};

/// The session cookie. The prefix makes browsers refuse it from other hosts and over clear text (RFC 6265bis section
/// 4.1.3.2).
pub const SESSION: &str = "__Host-doorward";

/// The prefix of all Doorward cookies: none is sent to an upstream, and no upstream can set one.
pub const PREFIX: &str = "__Host-doorward";

/// Doorward's cookie was sent more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cookie `{SESSION}` was sent more than once")]
pub struct Duplicate;

/// The value of a cookie, as raw bytes.
pub fn find<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a [u8]>, Duplicate> {
    let mut values = pairs(headers).filter(|(found, _)| *found == name.as_bytes()).map(|(_, value)| value);
    let value = values.next();
    if values.next().is_some() { Err(Duplicate) } else { Ok(value) }
}

/// Names and values in the order in which the browser sent them, oldest first (RFC 6265 section 5.4). HTTP/2 may split
/// the header (RFC 9113 section 8.2.3).
pub fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers.get_all(header::COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';')).filter_map(
        |pair| {
            let equals = pair.iter().position(|byte| *byte == b'=')?;
            let (name, value) = pair.split_at_checked(equals)?;
            Some((trim(name), trim(value.get(1..)?)))
        },
    )
}

/// The cookies of a `Cookie` line that an upstream may see: all but Doorward's own. `None` if none is left.
pub fn without_ours(line: &HeaderValue) -> Option<HeaderValue> {
    let ours = |pair: &&[u8]| trim(pair).starts_with(PREFIX.as_bytes());
    let pairs = || line.as_bytes().split(|byte| *byte == b';');
    if !pairs().any(|pair| ours(&pair)) {
        return Some(line.clone());
    }
    let others: Vec<&[u8]> = pairs().filter(|pair| !ours(pair)).map(trim).filter(|pair| !pair.is_empty()).collect();
    if others.is_empty() { None } else { HeaderValue::from_bytes(&others.join(&b"; "[..])).ok() }
}

/// The single `Cookie` line for an upstream, without Doorward's own. Lines that HTTP/2 split are joined, as HTTP/1.1
/// knows only one (RFC 9113 section 8.2.3).
pub fn for_upstream(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut lines = headers.get_all(header::COOKIE).iter().filter_map(without_ours).filter(|line| !line.is_empty());
    let first = lines.next()?;
    let Some(second) = lines.next() else { return Some(first) };
    let mut joined = first.as_bytes().to_vec();
    for line in std::iter::once(second).chain(lines) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(line.as_bytes());
    }
    HeaderValue::from_maybe_shared(Bytes::from(joined)).ok()
}

fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The `Set-Cookie` line of one of Doorward's cookies. Without `lasts` it ends with the browser session.
pub fn set(name: &str, value: &str, lasts: Option<Duration>) -> HeaderValue {
    let mut cookie = Cookie::build((name, value)).path("/").secure(true).http_only(true).same_site(SameSite::Lax);
    if let Some(lasts) = lasts {
        let seconds = i64::try_from(lasts.as_secs()).unwrap_or(i64::MAX);
        cookie = cookie.max_age(time::Duration::seconds(seconds));
    }
    line(&cookie.build())
}

/// The `Set-Cookie` line that deletes a cookie, with the same attributes: without them a browser ignores a `__Host-`
/// cookie and keeps the old one.
pub fn delete(name: &str) -> HeaderValue {
    set(name, "", Some(Duration::ZERO))
}

fn line(cookie: &Cookie<'_>) -> HeaderValue {
    // Names and values are base64url and hex of our own making, valid in every header.
    HeaderValue::try_from(cookie.to_string()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::COOKIE, HeaderValue::from_bytes(line).unwrap());
        }
        headers
    }

    /// Rows named as in the attack tables, `attacks:Z6` with its forms; the others are twins.
    #[test]
    fn our_cookie_is_found_by_its_exact_name_only() {
        type Row<'a> = (&'a str, &'a [&'a [u8]], Result<Option<&'a [u8]>, Duplicate>);
        let rows: &[Row<'_>] = &[
            ("plain", &[b"__Host-doorward=abc"], Ok(Some(b"abc"))),
            ("among others", &[b"a=b; __Host-doorward=abc; c=d"], Ok(Some(b"abc"))),
            ("split by HTTP/2", &[b"a=b", b"__Host-doorward=abc"], Ok(Some(b"abc"))),
            ("blanks", &[b"a=b ;\t __Host-doorward = abc \t"], Ok(Some(b"abc"))),
            ("none", &[b"a=b"], Ok(None)),
            ("no header", &[], Ok(None)),
            ("empty", &[b"__Host-doorward="], Ok(Some(b""))),
            ("no equals sign", &[b"__Host-doorward"], Ok(None)),
            ("equals sign in the value", &[b"__Host-doorward=a=b"], Ok(Some(b"a=b"))),
            ("attacks:Z6 U+2000 before", &["\u{2000}__Host-doorward=evil".as_bytes()], Ok(None)),
            ("attacks:Z6 U+00A0 before", &["\u{a0}__Host-doorward=evil".as_bytes()], Ok(None)),
            ("attacks:Z6 0x85 before", &[b"\x85__Host-doorward=evil"], Ok(None)),
            ("attacks:Z6 U+2000 after", &["__Host-doorward\u{2000}=evil".as_bytes()], Ok(None)),
            ("attacks:Z6 $Version with a comma", &[b"$Version=1, __Host-doorward=evil"], Ok(None)),
            ("attacks:Z6 $Version without a separator", &[b"$Version=1,__Host-doorward=evil"], Ok(None)),
            ("attacks:Z6 $Version is another name", &[b"$Version=1; __Host-doorward=good"], Ok(Some(b"good"))),
            ("quotes are part of the value", &[b"__Host-doorward=\"abc\""], Ok(Some(b"\"abc\""))),
            ("a quoted neighbour ends at its semicolon", &[b"a=\"x; __Host-doorward=abc\""], Ok(Some(b"abc\""))),
            ("another case", &[b"__host-doorward=evil"], Ok(None)),
            ("a longer name", &[b"__Host-doorward2=evil"], Ok(None)),
            ("twice", &[b"__Host-doorward=a; __Host-doorward=b"], Err(Duplicate)),
            ("twice the same", &[b"__Host-doorward=a; __Host-doorward=a"], Err(Duplicate)),
            ("twice over two lines", &[b"__Host-doorward=a", b"__Host-doorward=b"], Err(Duplicate)),
        ];
        for (row, lines, expected) in rows {
            assert_eq!(find(&headers(lines), SESSION), *expected, "{row}");
        }
    }

    #[test]
    fn an_upstream_gets_one_line_of_cookies_without_ours() {
        for (sent, expected) in [
            (&[][..], None),
            (&[&b"a=1"[..]][..], Some("a=1")),
            (&[b"a=1; b=2"], Some("a=1; b=2")),
            (&[b"a=1", b"__Host-doorward=x", b"b=2", b"c=3"], Some("a=1; b=2; c=3")),
            (&[b"a=1; __Host-doorward=x", b"", b"b=2; a=3"], Some("a=1; b=2; a=3")),
            (&[b"__Host-doorward=x", b"__Host-doorward-login-y=z"], None),
        ] {
            let line = for_upstream(&headers(sent));
            assert_eq!(line.as_ref().map(|line| line.to_str().unwrap()), expected, "{sent:?}");
        }
    }

    #[test]
    fn our_cookies_carry_every_attribute_also_when_deleted() {
        for line in [set(SESSION, "abc", None), delete(SESSION)] {
            let line = line.to_str().unwrap();
            for attribute in ["__Host-doorward=", "; Path=/", "; Secure", "; HttpOnly", "; SameSite=Lax"] {
                assert!(line.contains(attribute), "{line} lacks {attribute}");
            }
            assert!(!line.contains("Domain"), "{line}");
        }
        assert!(!set(SESSION, "abc", None).to_str().unwrap().contains("Max-Age"));
        assert!(delete(SESSION).to_str().unwrap().contains("; Max-Age=0"));
    }
}
