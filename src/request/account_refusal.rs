//! Recognizes a 403 of an API server that is about Doorward's own account. The API server first checks whether that
//! account may impersonate the caller, and refuses it in the same words in which it refuses the caller. Such a refusal
//! must not reach callers: they can do nothing about it, and it names Doorward's account.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde::Deserialize;

use crate::{
    authz::Permit,
    body::collect,
    config::raw::RouteKind,
    error::Rejection,
    upstream::{UpstreamBody, UpstreamError, UpstreamErrorKind},
};

const YAML: &[u8] = b"application/yaml";

/// The maximum bytes of a refusal without what it quotes of the request, with room for long names of people and groups.
const MAX: usize = 64 << 10;

/// The maximum bytes that a refusal has for one byte of the path: it names resource and group three times, and `&`
/// becomes `\u0026amp;` in one of these places and `\u0026` in the others.
const QUOTED: usize = 24;

/// An API server compresses responses of at least this many bytes (`defaultGzipThresholdBytes`).
const COMPRESSED: usize = 128 << 10;

/// Whether a response may be such a refusal: a body that may be short enough, in a format in which an API server writes
/// a `Status`. The responses of servers behind the API server are exempt, as they may say anything.
pub(super) fn may_be_of_us(response: &Response<UpstreamBody>, permit: &Permit) -> bool {
    response.status() == StatusCode::FORBIDDEN
        && permit.route().kind == RouteKind::Kubernetes
        && !permit.is_proxied()
        && is_status(response.headers())
        && may_be_read(response, longest(permit))
}

/// The maximum length of a refusal of Doorward's account, which quotes resource, name and path of the request.
fn longest(permit: &Permit) -> usize {
    MAX + QUOTED * permit.target().as_str().len()
}

/// Whether to read a body. Over HTTP/1.1 the API server gives no length above 2 KiB. A compressed body is passed on,
/// unless the request itself can have made it long enough to be compressed.
fn may_be_read<B: http_body::Body>(response: &Response<B>, longest: usize) -> bool {
    let hint = response.body().size_hint();
    match is_compressed(response.headers()) {
        true => longest > COMPRESSED,
        false => hint.exact() != Some(0) && usize::try_from(hint.lower()).is_ok_and(|length| length <= longest),
    }
}

fn is_compressed(headers: &HeaderMap) -> bool {
    headers.contains_key(header::CONTENT_ENCODING)
}

/// Whether the body is in one of the formats that clients can ask for.
fn is_status(headers: &HeaderMap) -> bool {
    const FORMS: [&[u8]; 4] = [b"application/json", b"application/vnd.kubernetes.protobuf", b"application/cbor", YAML];
    FORMS.iter().any(|form| kind(headers).starts_with(form))
}

fn kind(headers: &HeaderMap) -> &[u8] {
    headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes)
}

/// Reads the body of such a response, and replaces it by an error if it is about Doorward's own account.
pub(super) async fn of_the_caller(
    response: Response<UpstreamBody>,
    permit: &Permit,
) -> Result<Response<Bytes>, Rejection> {
    let upstream = &permit.route().upstream;
    let (parts, body) = response.into_parts();
    let failed = |kind, why: &str| {
        let error = UpstreamError::new(kind, upstream.name()).because(why);
        Rejection::from(error).with_upstream_status(StatusCode::FORBIDDEN)
    };
    if is_compressed(&parts.headers) {
        let why = "a compressed 403 to a long path, which may name Doorward's own account";
        return Err(failed(UpstreamErrorKind::Protocol, why));
    }
    let longest = longest(permit);
    let read = tokio::time::timeout(upstream.response_timeout(), collect(body, longest)).await;
    let read = read.map_err(|_| failed(UpstreamErrorKind::ResponseTimeout, "the body of a 403 did not end"))?;
    let body = read.ok_or_else(|| {
        let why = format!("the body of a 403 broke off, or has more than {longest} bytes");
        failed(UpstreamErrorKind::Closed, &why)
    })?;
    match about_us(&parts.headers, &body, &permit.principal().username) {
        Some(said) => Err(upstream.impersonation_refused(said)),
        None => Ok(Response::from_parts(parts, body)),
    }
}

#[derive(Deserialize)]
struct Status {
    message: String,
}

/// The refusal of Doorward's account in a body, if it is one. It covers all forms of impersonation: `User "doorward"
/// cannot impersonate resource`, `cannot impersonate:user-info resource`, `cannot impersonate-on:user-info:get
/// resource`. The body also contains names from the request: a resource and its group verbatim before the refusal, and
/// in quotes after it. So the last complete refusal counts.
fn about_us(headers: &HeaderMap, body: &[u8], username: &str) -> Option<String> {
    let message = if kind(headers).starts_with(YAML) {
        std::str::from_utf8(body).ok().and_then(|text| serde_saphyr::from_str::<Status>(text).ok())
    } else {
        serde_json::from_slice::<Status>(body).ok()
    };
    let is_alone = message.is_some();
    let text: Cow<'_, str> = match message {
        Some(status) => status.message.into(),
        // The other formats contain the message verbatim, followed by other fields.
        None => String::from_utf8_lossy(body),
    };
    const BEFORE: &str = "forbidden: ";
    let last = text.rmatch_indices("forbidden: User \"").find_map(|(at, _)| {
        let said = &text[at + BEFORE.len()..];
        Refusal::parse(said).map(|refusal| (said, refusal))
    });
    let (said, refusal) = last.filter(|(_, refusal)| refusal.verb.starts_with("impersonate"))?;
    if unquoted(refusal.user) == escaped(username).into_bytes() {
        return None;
    }
    let said = if is_alone { said } else { &said[..said.len() - refusal.rest.len()] };
    Some(said.split(char::is_control).next().unwrap_or(said).to_owned())
}

/// The message by which an API server refuses a user (`forbiddenMessage` in `pkg/endpoints/handlers/responsewriters` of
/// k8s.io/apiserver).
struct Refusal<'a> {
    /// Still escaped.
    user: &'a str,
    verb: &'a str,
    /// The rest of the message: the authorizer's reason, if it gave one.
    rest: &'a str,
}

impl<'a> Refusal<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (user, rest) = quoted(text.strip_prefix("User ")?)?;
        let (verb, rest) = rest.strip_prefix(" cannot ")?.split_once(' ')?;
        let rest = match rest.strip_prefix("path ") {
            Some(path) => quoted(path).filter(|(path, _)| path.starts_with('/'))?.1,
            None => {
                let (_, rest) = quoted(rest.strip_prefix("resource ")?)?;
                let (_, rest) = quoted(rest.strip_prefix(" in API group ")?)?;
                match rest.strip_prefix(" in the namespace ") {
                    Some(namespace) => quoted(namespace)?.1,
                    None => rest.strip_prefix(" at the cluster scope")?,
                }
            }
        };
        Some(Self { user, verb, rest })
    }
}

/// Splits a text that begins with a string quoted by Go's `%q` into what is between the quotes and the rest.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let inner = text.strip_prefix('"')?;
    let mut is_escaped = false;
    let end = inner.find(|c| {
        let is_end = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        is_end
    })?;
    Some((&inner[..end], &inner[end + 1..]))
}

/// Undoes the escapes of Go's `%q`.
fn unquoted(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            push(&mut bytes, c);
            continue;
        }
        let c = chars.next().unwrap_or(c);
        let digits = match c {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        let code: String = chars.by_ref().take(digits).collect();
        let code = u32::from_str_radix(&code, 16).ok();
        match (c, code) {
            ('x', Some(code)) => bytes.extend(u8::try_from(code)),
            ('u' | 'U', Some(code)) => push(&mut bytes, char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)),
            ('a', _) => bytes.push(0x07),
            ('b', _) => bytes.push(0x08),
            ('f', _) => bytes.push(0x0c),
            ('n', _) => bytes.push(b'\n'),
            ('r', _) => bytes.push(b'\r'),
            ('t', _) => bytes.push(b'\t'),
            ('v', _) => bytes.push(0x0b),
            (c, _) => push(&mut bytes, c),
        }
    }
    bytes
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

/// As an API server makes a message safe for pages.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use serde_json::json;

    use super::*;

    const OURS: &str = r#"User "system:serviceaccount:doorward:doorward" cannot "#;
    const USERS: &str = r#"resource "users" in API group "" at the cluster scope"#;
    const PODS: &str = r#"resource "pods" in API group "" in the namespace "ci""#;

    fn of_kind(kind: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))])
    }

    /// As sigs.k8s.io/yaml writes it, which breaks lines where a space is.
    fn yaml(message: &str) -> String {
        let message = message.replace('\'', "''").replace(" cannot ", "\n  cannot ");
        format!(
            "apiVersion: v1\ncode: 403\nkind: Status\nmessage: '{message}'\nmetadata: {{}}\nreason: Forbidden\nstatus: Failure\n"
        )
    }

    #[test]
    fn a_refusal_of_our_account_is_distinguished_from_one_of_the_caller() {
        let on = format!("{OURS}impersonate-on:user-info:list");
        for (message, is_ours) in [
            (format!(r#"users "alice" is forbidden: {OURS}impersonate {USERS}"#), true),
            (format!(r#"users.authentication.k8s.io "alice" is forbidden: {OURS}impersonate:user-info {USERS}"#), true),
            (format!("pods is forbidden: {on} {PODS}"), true),
            (format!(r#"pods is forbidden: {on} {PODS}: RBAC: role "a" not found"#), true),
            (format!(r#"forbidden: {OURS}impersonate-on:user-info:get path "/version""#), true),
            (format!(r#"pods is forbidden: User "alice" cannot list {PODS}"#), false),
            // Names are the caller's to choose: of a resource as they are,
            (format!(r#"User "alice" cannot  is forbidden: {on} {PODS}"#), true),
            (format!(r#"x is forbidden: User "alice" cannot list {PODS} is forbidden: {on} {PODS}"#), true),
            (format!(r#"x is forbidden: {on} {PODS} is forbidden: User "alice" cannot list {PODS}"#), false),
            // and in quotes, the end of which must not be taken for a beginning.
            (
                format!(
                    r#"x is forbidden: {on} resource "a forbidden: User " in API group " cannot get " in the namespace "b""#
                ),
                true,
            ),
            (
                format!(
                    r#"x is forbidden: {on} resource "a forbidden: User " in API group " cannot get path " in the namespace "b""#
                ),
                true,
            ),
            (format!(r#"pods "User \"b\" cannot impersonate" is forbidden: User "alice" cannot get {PODS}"#), false),
            (format!(r#"pods "forbidden: User \"b\" cannot impersonate {USERS}" is forbidden: no"#), false),
            (
                r#"pods "\" cannot impersonate User " is forbidden: error looking up service account a/b"#.to_owned(),
                false,
            ),
            (r#"pods "a forbidden: User " is forbidden: error looking up " cannot impersonate x"#.to_owned(), false),
            // Whoever is refused by their own name may read it.
            (format!(r#"users "b" is forbidden: User "alice" cannot impersonate {USERS}"#), false),
            ("cannot impersonate".to_owned(), false),
            (String::new(), false),
        ] {
            let json = json!({"kind": "Status", "status": "Failure", "message": message, "code": 403}).to_string();
            let protobuf = [
                &b"k8s\0\n\x0c\n\x02v1\x12\x06Status\x12\x80\x02\x1a\xff\x01"[..],
                message.as_bytes(),
                b"\"\x09Forbidden",
            ];
            let cbor = [&b"\xd9\xd9\xf7\xa6Gmessage\x58\xff"[..], message.as_bytes(), b"FreasonIForbidden"];
            for (kind, body) in [
                ("application/json", json.into_bytes()),
                ("application/vnd.kubernetes.protobuf", protobuf.concat()),
                ("application/cbor", cbor.concat()),
                ("application/yaml", yaml(&message).into_bytes()),
            ] {
                let said = about_us(&of_kind(kind), &body, "alice");
                assert_eq!(said.is_some(), is_ours, "{kind} {message}");
                assert!(said.as_ref().is_none_or(|said| said.starts_with(OURS)), "{kind} {message}");
                assert!(said.is_none_or(|said| message.contains(&said)), "{kind} {message}");
            }
        }
    }

    #[test]
    fn a_name_is_known_in_the_quotes_of_go() {
        for (name, quoted) in [
            ("alice", "alice"),
            ("a\"b\\c", r#"a\"b\\c"#),
            ("a<b>&c", "a&lt;b&gt;&amp;c"),
            // Rust would write these otherwise.
            ("e\u{301}", "e\u{301}"),
            ("a\u{2028}", r"a\u2028"),
            ("\u{1f}\t\u{e0001}", r"\x1f\t\U000e0001"),
        ] {
            let message = format!(r#"users "b" is forbidden: User "{quoted}" cannot impersonate {USERS}"#);
            let body = json!({ "message": message }).to_string();
            let about = |name| about_us(&of_kind("application/json"), body.as_bytes(), name);
            assert_eq!(about(name), None, "{quoted}");
            assert!(about("bob").is_some(), "{quoted}");
        }
    }

    #[test]
    fn only_the_forms_of_a_status_are_read() {
        for (kind, expected) in [
            ("application/json", true),
            ("application/json;as=Table;v=v1;g=meta.k8s.io", true),
            ("application/vnd.kubernetes.protobuf", true),
            ("application/cbor", true),
            ("application/yaml", true),
            ("text/plain; charset=utf-8", false),
        ] {
            assert_eq!(is_status(&of_kind(kind)), expected, "{kind}");
        }
        assert!(!is_status(&HeaderMap::new()));
    }

    #[test]
    fn a_body_is_read_that_a_refusal_of_this_request_can_have() {
        for (length, is_compressed, longest, expected) in [
            (0, false, MAX, false),
            (1, false, MAX, true),
            (MAX, false, MAX, true),
            (MAX + 1, false, MAX, false),
            (1, true, MAX, false),
            (1, true, COMPRESSED + 1, true),
        ] {
            let mut response = Response::new(Full::new(Bytes::from(vec![b' '; length])));
            if is_compressed {
                response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
            assert_eq!(may_be_read(&response, longest), expected, "{length} {is_compressed} {longest}");
        }
    }
}
