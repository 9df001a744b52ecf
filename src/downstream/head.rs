//! The checks that every request passes before the service sees it: sizes, and framing that can be read in one way
//! only.

use http::{HeaderMap, Method, Request, Uri, header};

use super::{Protocol, framing::Defect, metrics::ProtocolError};
use crate::{
    config::raw::Limits,
    error::{Reason, Rejection},
};

/// Why a request is unfit, and how it is counted.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) rejection: Rejection,
    pub(super) kind: ProtocolError,
}

impl Fault {
    fn new(kind: ProtocolError, reason: Reason, detail: impl Into<std::borrow::Cow<'static, str>>) -> Self {
        Self { rejection: Rejection::new(reason, detail), kind }
    }
}

/// What is known of the bytes of the head; HTTP/1.1 only.
#[derive(Clone, Copy, Debug)]
pub(super) struct Framing {
    pub(super) scanned: bool,
    pub(super) defect: Option<Defect>,
}

/// Checks the length of a request target.
pub fn check_target(length: usize, limits: &Limits) -> Result<(), Rejection> {
    if length > limits.uri_bytes.bytes() {
        let allowed = limits.uri_bytes.bytes();
        let detail = format!("the address (request target) is {length} bytes long, {allowed} are allowed");
        return Err(Rejection::new(Reason::UriTooLong, detail)
            .fix("use a shorter address; if a link led you here, tell whoever gave it to you"));
    }
    Ok(())
}

/// Checks the head of a request.
pub(super) fn check<B>(request: &Request<B>, limits: &Limits, framing: Option<Framing>) -> Result<(), Fault> {
    if let Some(framing) = framing {
        check_framing(request.headers(), framing)?;
    }
    check_target(uri_length(request.uri()), limits)
        .map_err(|rejection| Fault { rejection, kind: ProtocolError::Limit })?;
    let headers = request.headers();
    let count = header_count(headers);
    if count > usize::from(limits.header_count) {
        let detail = format!("the request has {count} headers, {} are allowed", limits.header_count);
        return Err(Fault::new(ProtocolError::Limit, Reason::HeadersTooLarge, detail));
    }
    let bytes = header_bytes(headers);
    if bytes > limits.header_bytes.bytes() {
        let detail = format!("the headers are {bytes} bytes long, {} are allowed", limits.header_bytes);
        let mut fault = Fault::new(ProtocolError::Limit, Reason::HeadersTooLarge, detail);
        // In a browser the cause is the cookies, which a sibling host can set for the parent of both.
        fault.rejection = fault
            .rejection
            .fix("send less; in a browser, delete the cookies of this host and of its parent domains, then try again");
        return Err(fault);
    }
    if request.method() == Method::CONNECT {
        // The target of CONNECT is the other end of a tunnel, for which no method is accepted.
        let rejection = Rejection::method_not_allowed("", "Doorward is a reverse proxy and opens no tunnels");
        return Err(Fault { rejection, kind: ProtocolError::Framing });
    }
    Ok(())
}

/// How many headers a request has. All cookies count as one: over HTTP/2 browsers send each in a field of its own (RFC
/// 9113 section 8.2.3), and a person with many could do nothing about it. The limit on the bytes of the headers bounds
/// their number.
fn header_count(headers: &HeaderMap) -> usize {
    let cookies = headers.get_all(header::COOKIE).iter().count();
    headers.len() - cookies.saturating_sub(1)
}

/// With the colon, a space and the line end, as on the wire of HTTP/1.1.
fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// The length of the head of a request.
pub(super) fn length<B>(request: &Request<B>) -> usize {
    uri_length(request.uri()) + header_bytes(request.headers())
}

/// Refuses a request with both a length and a coding, or with codings that Doorward cannot undo (RFC 9112 section 6.1).
fn check_framing(headers: &HeaderMap, framing: Framing) -> Result<(), Fault> {
    let bad = |detail: &'static str| Err(Fault::new(ProtocolError::Framing, Reason::BadRequest, detail));
    match framing.defect {
        Some(Defect::AmbiguousLength) => {
            return bad("the request gives its length more than once (Content-Length, Transfer-Encoding)");
        }
        Some(Defect::BareLineFeed) => return bad("a line of the request head ends in LF without CR"),
        None => {}
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return Ok(()) };
    if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return bad("the only Transfer-Encoding that is understood is `chunked`");
    }
    if !framing.scanned {
        return bad("a chunked request cannot be pipelined behind another body");
    }
    Ok(())
}

/// Whether the connection ends with the response to this request: a chunked one (see [`super::framing`]), or one that
/// asks for an upgrade. After any response to the latter but 101 the client may continue in the protocol that it asked
/// for, whose bytes must not be read as requests (CVE-2018-1002105).
pub(super) fn is_last(protocol: Protocol, headers: &HeaderMap) -> bool {
    let ends = [header::TRANSFER_ENCODING, header::UPGRADE];
    protocol == Protocol::Http1 && ends.iter().any(|name| headers.contains_key(name))
}

fn uri_length(uri: &Uri) -> usize {
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
    // `http://authority` of the absolute form (RFC 9112 section 3.2.2), and of HTTP/2, where it costs nothing.
    target + uri.authority().map_or(0, |authority| authority.as_str().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(request: http::request::Builder, framing: Option<Framing>) -> Option<Reason> {
        check(&request.body(()).unwrap(), &Limits::default(), framing).err().map(|fault| fault.rejection.reason())
    }

    #[test]
    fn sizes_have_their_own_answers() {
        let with = |count: usize, size: usize| {
            let value = "v".repeat(size);
            (0..count).fold(Request::get("/"), |request, index| request.header(format!("h{index}"), &value))
        };
        let path = |length: usize| Request::get(format!("/{}", "p".repeat(length - 1)));
        assert_eq!(reason(path(8 << 10), None), None);
        assert_eq!(reason(path((8 << 10) + 1), None), Some(Reason::UriTooLong));
        assert_eq!(reason(with(100, 1), None), None);
        assert_eq!(reason(with(101, 1), None), Some(Reason::HeadersTooLarge));
        assert_eq!(reason(with(1, 32_762), None), None);
        assert_eq!(reason(with(1, 32_763), None), Some(Reason::HeadersTooLarge));
        assert_eq!(reason(Request::connect("a:1"), None), Some(Reason::MethodNotAllowed));
    }

    /// The refusal had two units and no remedy.
    #[test]
    fn a_person_with_a_long_link_learns_what_to_do() {
        let refused = check_target((8 << 10) + 1, &Limits::default()).unwrap_err();
        assert_eq!(refused.detail(), "the address (request target) is 8193 bytes long, 8192 are allowed");
        assert!(refused.fix_text().is_some_and(|fix| fix.contains("whoever gave it to you")), "{refused:?}");
    }

    #[test]
    fn a_browser_with_many_cookies_is_admitted_however_they_are_split() {
        let with = |cookies: usize, others: usize, size: usize| {
            let cookie = format!("c={}", "v".repeat(size));
            let request = (0..cookies).fold(Request::get("/"), |request, _| request.header("cookie", &cookie));
            (0..others).fold(request, |request, index| request.header(format!("h{index}"), "v"))
        };
        assert_eq!(reason(with(500, 99, 1), None), None);
        assert_eq!(reason(with(500, 100, 1), None), Some(Reason::HeadersTooLarge));
        assert_eq!(reason(with(1, 100, 1), None), Some(Reason::HeadersTooLarge));
        assert_eq!(reason(with(0, 100, 1), None), None);
        let too_much = check(&with(500, 1, 60).body(()).unwrap(), &Limits::default(), None).unwrap_err();
        assert_eq!(too_much.rejection.reason(), Reason::HeadersTooLarge);
        let fix = format!("{:?}", too_much.rejection);
        assert!(fix.contains("delete the cookies"), "{fix}");
    }

    #[test]
    fn a_connection_ends_where_its_next_bytes_may_be_no_request() {
        let ends = |protocol, name: &'static str| {
            let headers = HeaderMap::from_iter([(header::HeaderName::from_static(name), "x".parse().unwrap())]);
            is_last(protocol, &headers)
        };
        assert!(ends(Protocol::Http1, "transfer-encoding"));
        assert!(ends(Protocol::Http1, "upgrade"), "kubernetes:U1");
        assert!(!ends(Protocol::Http1, "content-length"));
        assert!(!ends(Protocol::Http2, "upgrade"));
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        let clean = Framing { scanned: true, defect: None };
        let chunked = |coding: &str| Request::post("/").header("transfer-encoding", coding);
        let cases = [
            (chunked("chunked"), clean, None),
            (chunked("Chunked"), clean, None),
            (chunked("gzip, chunked"), clean, Some(Reason::BadRequest)),
            (chunked("chunked").header("transfer-encoding", "chunked"), clean, Some(Reason::BadRequest)),
            (chunked("chunked"), Framing { scanned: false, ..clean }, Some(Reason::BadRequest)),
            (Request::get("/"), Framing { scanned: false, ..clean }, None),
            (Request::get("/"), Framing { defect: Some(Defect::BareLineFeed), ..clean }, Some(Reason::BadRequest)),
            (Request::get("/"), Framing { defect: Some(Defect::AmbiguousLength), ..clean }, Some(Reason::BadRequest)),
        ];
        for (index, (request, framing, expected)) in cases.into_iter().enumerate() {
            assert_eq!(reason(request, Some(framing)), expected, "case {index}");
        }
    }
}
