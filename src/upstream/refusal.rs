//! Which 403 of an API server is about our own account. Whether it may ask as the caller is the first that the API server looks at, and
//! it refuses that in the words in which it refuses the caller. They must not reach the caller, who can do nothing about it, and would
//! read whose name Doorward's account has.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::Body as _;
use serde::Deserialize;

use super::{UpstreamBody, UpstreamError, UpstreamErrorKind};
use crate::{authz::Permit, body::collect, config::raw::RouteKind, error::Rejection};

/// Bytes of a refusal that are read. Those of an API server have some hundred.
const MAX: usize = 4096;

/// How long these may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A body that says it is short, in a form in which an API server writes a `Status`. All else goes on as it comes: what is longer, of
/// unknown length or compressed, which an API server does to long answers alone.
pub(super) fn may_be_of_us(response: &Response<UpstreamBody>, kind: RouteKind) -> bool {
    let is_short = |length: u64| length > 0 && usize::try_from(length).is_ok_and(|length| length <= MAX);
    response.status() == StatusCode::FORBIDDEN
        && kind == RouteKind::Kubernetes
        && !response.headers().contains_key(header::CONTENT_ENCODING)
        && is_status(response.headers())
        && response.body().size_hint().exact().is_some_and(is_short)
}

/// The forms that clients can ask for, but YAML, which wraps its lines.
fn is_status(headers: &HeaderMap) -> bool {
    const FORMS: [&[u8]; 3] = [b"application/json", b"application/vnd.kubernetes.protobuf", b"application/cbor"];
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    FORMS.iter().any(|form| kind.starts_with(form))
}

/// Reads the body of such an answer, and refuses in our own words if it is about our account.
pub(super) async fn of_the_caller(
    response: Response<UpstreamBody>,
    permit: &Permit,
) -> Result<Response<Bytes>, Rejection> {
    let upstream = &permit.route().upstream;
    let (parts, body) = response.into_parts();
    let failed = |kind| UpstreamError::new(kind, upstream.name());
    let read = tokio::time::timeout(PATIENCE, collect(body, MAX)).await;
    let read = read.map_err(|_| failed(UpstreamErrorKind::ResponseTimeout))?;
    let body = read.ok_or_else(|| failed(UpstreamErrorKind::Closed))?;
    match about_us(&body, &permit.principal().username) {
        Some(said) => Err(upstream.impersonation_refused(said)),
        None => Ok(Response::from_parts(parts, body)),
    }
}

#[derive(Deserialize)]
struct Status<'a> {
    #[serde(borrow)]
    message: Cow<'a, str>,
}

/// What a refusal says of our account. The words are those of all forms of impersonation: `User "doorward" cannot impersonate resource`,
/// `cannot impersonate:user-info resource`, `cannot impersonate-on:user-info:get resource`. A refusal of the caller says that
/// `User "CALLER" cannot`, whatever names the caller asked for, which stand there too.
fn about_us(body: &[u8], username: &str) -> Option<String> {
    let text = match serde_json::from_slice::<Status<'_>>(body) {
        Ok(status) => status.message,
        // Other forms hold the message as it is.
        Err(_) => String::from_utf8_lossy(body),
    };
    if !text.contains("\" cannot impersonate") || text.contains(&format!("User {username:?} cannot ")) {
        return None;
    }
    let said = text.get(text.find("User \"")?..)?;
    Some(said.split(char::is_control).next().unwrap_or(said).to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const OURS: &str = r#"User "system:serviceaccount:doorward:doorward" cannot "#;

    #[test]
    fn a_refusal_of_our_account_is_told_from_one_of_the_caller() {
        for (message, is_ours) in [
            (format!(r#"users "alice" is forbidden: {OURS}impersonate resource "users" in API group """#), true),
            (
                format!(
                    r#"users.authentication.k8s.io "alice" is forbidden: {OURS}impersonate:user-info resource "users""#
                ),
                true,
            ),
            (format!(r#"pods is forbidden: {OURS}impersonate-on:user-info:list resource "pods""#), true),
            (format!(r#"forbidden: {OURS}impersonate-on:user-info:get path "/version""#), true),
            (r#"pods is forbidden: User "alice" cannot list resource "pods" in API group """#.to_owned(), false),
            // Names are the caller's to choose.
            (
                r#"pods "User \"b\" cannot impersonate" is forbidden: User "alice" cannot get resource "pods""#
                    .to_owned(),
                false,
            ),
            (r#"User "b" cannot impersonate is forbidden: User "alice" cannot get resource "x""#.to_owned(), false),
            ("cannot impersonate".to_owned(), false),
            (String::new(), false),
        ] {
            let json = json!({"kind": "Status", "status": "Failure", "message": message, "code": 403}).to_string();
            let protobuf = [
                &b"k8s\0\n\x0c\n\x02v1\x12\x06Status\x12\x80\x02\x1a\xff\x01"[..],
                message.as_bytes(),
                b"\"\x09Forbidden",
            ];
            for body in [json.into_bytes(), protobuf.concat()] {
                let said = about_us(&body, "alice");
                assert_eq!(said.is_some(), is_ours, "{message}");
                assert!(said.is_none_or(|said| said.starts_with(OURS)), "{message}");
            }
        }
    }

    #[test]
    fn only_the_forms_of_a_status_are_read() {
        for (kind, expected) in [
            ("application/json", true),
            ("application/json;as=Table;v=v1;g=meta.k8s.io", true),
            ("application/vnd.kubernetes.protobuf", true),
            ("application/cbor", true),
            ("text/plain; charset=utf-8", false),
            ("application/yaml", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
            assert_eq!(is_status(&headers), expected, "{kind}");
        }
        assert!(!is_status(&HeaderMap::new()));
    }
}
