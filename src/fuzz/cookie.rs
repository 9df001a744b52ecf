//! The body of the fuzz target for `Cookie` lines.

use http::{HeaderMap, HeaderValue, header};

use crate::sessions::cookie::{PREFIX, SESSION, find, for_upstream, pairs, without_ours};

/// Checks of `Cookie` lines:
///
/// - Doorward's cookie is recognised only by its exact name, and only if sent once.
/// - Forwarded cookies contain none of Doorward's, and all others with their values and in order. Filtering them again
///   changes nothing.
/// - An upstream gets them in a single line.
pub fn cookie(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(header::COOKIE, value);
        }
    }
    let lines: Vec<&HeaderValue> = headers.get_all(header::COOKIE).iter().collect();

    let ours: Vec<&[u8]> =
        lines.iter().flat_map(|line| split(line)).filter_map(|pair| value_of(pair, SESSION)).collect();
    match (find(&headers, SESSION), &ours[..]) {
        (Ok(None), []) | (Err(_), [_, _, ..]) => {}
        (Ok(Some(found)), [only]) => assert_eq!(&found, only),
        (found, _) => panic!("{found:?} where {ours:?} were sent"),
    }

    let mut kept = HeaderMap::new();
    for line in &lines {
        let others: Vec<&[u8]> = split(line).filter(|pair| !pair.starts_with(PREFIX.as_bytes())).collect();
        match without_ours(line) {
            None => assert!(others.iter().all(|other| other.is_empty()), "{line:?} lost {others:?}"),
            Some(left) => {
                let after: Vec<&[u8]> = split(&left).filter(|pair| !pair.is_empty()).collect();
                let before: Vec<&[u8]> = others.into_iter().filter(|pair| !pair.is_empty()).collect();
                assert_eq!(after, before, "{line:?}");
                assert_eq!(without_ours(&left), Some(left.clone()));
                kept.append(header::COOKIE, left);
            }
        }
    }
    let joined: HeaderMap = for_upstream(&headers).map(|line| (header::COOKIE, line)).into_iter().collect();
    assert!(pairs(&joined).eq(pairs(&kept)), "{joined:?} of {kept:?}");
    assert!(pairs(&kept).all(|(name, _)| !name.starts_with(PREFIX.as_bytes())));
}

/// The parts between semicolons, without the surrounding blanks of RFC 6265.
fn split(line: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    line.as_bytes().split(|byte| *byte == b';').map(blanks_off)
}

fn value_of<'p>(pair: &'p [u8], name: &str) -> Option<&'p [u8]> {
    let rest = blanks_off(pair.strip_prefix(name.as_bytes())?);
    Some(blanks_off(rest.strip_prefix(b"=")?))
}

fn blanks_off(text: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let Some(start) = text.iter().position(|byte| !blank(byte)) else { return b"" };
    let end = text.iter().rposition(|byte| !blank(byte)).unwrap();
    &text[start..=end]
}
