//! Why an upstream gave no answer.

use std::{fmt, io, sync::Arc};

use http::StatusCode;

use crate::{
    body::BodyError,
    error::{Reason, Rejection},
};

/// What the head of an answer may have: bytes, and over HTTP/1.1 headers. Over HTTP/2 each counts as 32 bytes more (RFC 9113
/// section 6.5.2), which bounds their number. For more than 100 the HTTP library allocates with each answer, so that this is
/// well above what servers send, and no more.
pub(super) const MAX_RESPONSE_HEAD: u32 = 64 << 10;
pub(super) const MAX_RESPONSE_HEADERS: usize = 256;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamErrorKind {
    /// Its name has no address, or no address takes a connection.
    Unreachable,
    /// No connection within the connect timeout, TLS included.
    ConnectTimeout,
    /// The TLS handshake failed.
    Tls,
    /// All connections that it may have are in use.
    Exhausted,
    /// There is no token of ours that it could be shown.
    NoCredential,
    /// The request was sent, and no head of a response came in time.
    ResponseTimeout,
    /// It closed the connection, or ended the request, before it answered.
    Closed,
    /// The same, and it is known that it did nothing of what was asked.
    NotTaken,
    /// It answered what no HTTP peer may answer.
    Protocol,
    /// What it answered over HTTP/1.1 is no head of an answer.
    NotHttp1,
    /// The head of its answer is larger than is taken over HTTP/1.1.
    HeadTooLarge,
    /// It answered a request to switch protocols with a status that neither switches nor refuses.
    NotSwitched(StatusCode),
    /// The client's own body stopped, so that there was no whole request to answer.
    RequestBody,
    /// The same, because what the client sent is no body.
    RequestBodyMalformed,
    /// The same, because the client sent nothing for too long.
    RequestBodyTimeout,
    /// The same, because it has more than so many bytes, which is what the route takes.
    RequestBodyTooLarge(u64),
}

impl UpstreamErrorKind {
    /// Of a body that broke off at the client.
    pub(crate) fn of_body(error: &BodyError) -> Self {
        // As hyper tells of chunks that it cannot read; of a connection that ends it says `UnexpectedEof`.
        let is_malformed = find::<io::Error>(error)
            .is_some_and(|error| matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData));
        if is_malformed { Self::RequestBodyMalformed } else { Self::RequestBody }
    }
}

/// No answer from an upstream. Its text names the upstream as the configuration does, never by its address; the
/// cause goes to the log only.
#[derive(Debug)]
pub struct UpstreamError {
    kind: UpstreamErrorKind,
    upstream: Arc<str>,
    retryable: bool,
    /// What it had answered before the client's body failed, of which nothing went on.
    answered: Option<StatusCode>,
    source: Option<Source>,
}

impl UpstreamError {
    pub(crate) fn new(kind: UpstreamErrorKind, upstream: &Arc<str>) -> Self {
        Self { kind, upstream: Arc::clone(upstream), retryable: false, answered: None, source: None }
    }

    #[must_use]
    pub(crate) fn because(mut self, source: impl Into<Source>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Marks it as having happened before a byte of the request was sent.
    #[must_use]
    pub(crate) fn nothing_sent(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// The same, or the peer says that it did not look at the request.
    #[must_use]
    pub(crate) fn not_taken(mut self) -> Self {
        if self.kind == UpstreamErrorKind::Closed {
            self.kind = UpstreamErrorKind::NotTaken;
        }
        self.nothing_sent()
    }

    /// It had answered with `status`, which went no further.
    #[must_use]
    pub(super) fn after_answer(mut self, status: StatusCode) -> Self {
        self.answered = Some(status);
        self
    }

    /// Tells what hyper's error means. `nothing_sent` and `not_taken` are for the caller to add, who knows whether hyper
    /// gave the request back.
    pub(crate) fn from_hyper(upstream: &Arc<str>, error: hyper::Error) -> Self {
        let kind = match find::<BodyError>(&error) {
            Some(BodyError::TooLarge(limit)) => UpstreamErrorKind::RequestBodyTooLarge(*limit),
            Some(error) => UpstreamErrorKind::of_body(error),
            None if error.is_parse_too_large() => UpstreamErrorKind::HeadTooLarge,
            // Of HTTP/2 hyper parses nothing.
            None if error.is_parse() => UpstreamErrorKind::NotHttp1,
            None if error.is_user() => UpstreamErrorKind::Protocol,
            None => UpstreamErrorKind::Closed,
        };
        Self::new(kind, upstream).because(error)
    }

    pub fn kind(&self) -> UpstreamErrorKind {
        self.kind
    }

    /// Whether another attempt is safe whatever the method: nothing of the request was sent, or the peer said that
    /// it did not look at it.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            UpstreamErrorKind::Unreachable => "cannot be reached",
            UpstreamErrorKind::ConnectTimeout => "did not take a connection in time",
            UpstreamErrorKind::Tls => "could not be verified by TLS",
            UpstreamErrorKind::Exhausted => "is busy: all connections to it are in use",
            UpstreamErrorKind::NoCredential => "was not asked, as Doorward has no token for it",
            UpstreamErrorKind::ResponseTimeout => "did not answer in time",
            UpstreamErrorKind::Closed => "broke off before it answered",
            UpstreamErrorKind::NotTaken => "did not take the request",
            UpstreamErrorKind::Protocol => "gave an answer that is not valid HTTP for this request",
            UpstreamErrorKind::NotHttp1 => "gave an answer that is not valid HTTP/1.1",
            UpstreamErrorKind::HeadTooLarge => {
                return write!(
                    f,
                    "the upstream `{}` gave an answer whose head has more than {MAX_RESPONSE_HEADERS} headers or {} KiB",
                    self.upstream,
                    MAX_RESPONSE_HEAD >> 10
                );
            }
            UpstreamErrorKind::NotSwitched(status) => {
                let (upstream, status) = (&self.upstream, status.as_u16());
                return write!(
                    f,
                    "the upstream `{upstream}` did not switch protocols and answered with status {status}"
                );
            }
            UpstreamErrorKind::RequestBodyMalformed => "got only a part of the request, because the body is malformed",
            UpstreamErrorKind::RequestBody => "got only a part of the request, because the body ended early",
            UpstreamErrorKind::RequestBodyTimeout => "got only a part of the request, because the body stalled",
            UpstreamErrorKind::RequestBodyTooLarge(limit) => {
                return write!(
                    f,
                    "the upstream `{}` got only a part of the request, because the body is larger than {limit} bytes",
                    self.upstream
                );
            }
        };
        write!(f, "the upstream `{}` {what}", self.upstream)
    }
}

impl std::error::Error for UpstreamError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}

impl From<UpstreamError> for Rejection {
    fn from(error: UpstreamError) -> Self {
        let (reason, fix) = match error.kind {
            UpstreamErrorKind::Unreachable => {
                (Reason::UpstreamUnreachable, "try again; if it lasts, an operator should look whether it is running")
            }
            UpstreamErrorKind::ConnectTimeout | UpstreamErrorKind::ResponseTimeout => (
                Reason::UpstreamTimeout,
                "try again; if the request was to change something, look first whether it did",
            ),
            UpstreamErrorKind::Tls => {
                (Reason::UpstreamUnreachable, "an operator should compare its certificate with `tls` of this upstream")
            }
            UpstreamErrorKind::Exhausted => (Reason::Overloaded, "try again in a moment"),
            UpstreamErrorKind::NoCredential => (
                Reason::UpstreamCredential,
                "try again in a moment; if it lasts, an operator should look at `credential/` in `/readyz`",
            ),
            UpstreamErrorKind::NotTaken => (Reason::Overloaded, "nothing was done: send it again in a moment"),
            UpstreamErrorKind::Closed | UpstreamErrorKind::Protocol => (
                Reason::UpstreamProtocol,
                "try again; if the request was to change something, look first whether it did",
            ),
            UpstreamErrorKind::NotHttp1 => (
                Reason::UpstreamProtocol,
                "an operator should set `protocol: http2` of this upstream if it speaks HTTP/2 alone, as gRPC servers do; if the request \
                 was to change something, look first whether it did",
            ),
            UpstreamErrorKind::HeadTooLarge => (
                Reason::UpstreamProtocol,
                "an operator should have it answer with fewer or shorter headers; if the request was to change something, look first \
                 whether it did",
            ),
            UpstreamErrorKind::NotSwitched(_) => (
                Reason::UpstreamProtocol,
                "ask for an address of it that speaks this protocol; an operator should look whether it does",
            ),
            UpstreamErrorKind::RequestBody => (Reason::BadRequest, "send the whole body"),
            UpstreamErrorKind::RequestBodyMalformed => {
                (Reason::BadRequest, "send the body in chunks as RFC 9112 section 7.1 has them, or with its length")
            }
            UpstreamErrorKind::RequestBodyTimeout => (Reason::BodyTimeout, "send the body without long pauses"),
            UpstreamErrorKind::RequestBodyTooLarge(_) => (Reason::BodyTooLarge, "send a smaller body"),
        };
        let rejection = Self::new(reason, error.to_string());
        let rejection = match error.answered {
            Some(status) => {
                // After 408 clients send it again by themselves (RFC 9110 section 15.5.9).
                let rejection = match error.kind {
                    UpstreamErrorKind::RequestBodyTimeout => rejection.with_status(StatusCode::BAD_REQUEST),
                    _ => rejection,
                };
                rejection.with_upstream_status(status).fix(format!(
                    "look first whether it did what was asked, as it had answered with status {}; else {fix}",
                    status.as_u16()
                ))
            }
            None => rejection.fix(fix),
        };
        rejection.because(error)
    }
}

/// The first error of type `T` among the causes of `error`.
pub(crate) fn find<'a, T: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a T> {
    let mut current = Some(error);
    while let Some(error) = current {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        current = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_status_and_names_only_the_configured_name() {
        use UpstreamErrorKind as Kind;
        let name: Arc<str> = "cluster".into();
        for (kind, status) in [
            (Kind::Unreachable, StatusCode::BAD_GATEWAY),
            (Kind::ConnectTimeout, StatusCode::GATEWAY_TIMEOUT),
            (Kind::Tls, StatusCode::BAD_GATEWAY),
            (Kind::Exhausted, StatusCode::SERVICE_UNAVAILABLE),
            (Kind::NoCredential, StatusCode::BAD_GATEWAY),
            (Kind::ResponseTimeout, StatusCode::GATEWAY_TIMEOUT),
            (Kind::Closed, StatusCode::BAD_GATEWAY),
            (Kind::NotTaken, StatusCode::SERVICE_UNAVAILABLE),
            (Kind::Protocol, StatusCode::BAD_GATEWAY),
            (Kind::NotHttp1, StatusCode::BAD_GATEWAY),
            (Kind::HeadTooLarge, StatusCode::BAD_GATEWAY),
            (Kind::NotSwitched(StatusCode::OK), StatusCode::BAD_GATEWAY),
            (Kind::RequestBody, StatusCode::BAD_REQUEST),
            (Kind::RequestBodyMalformed, StatusCode::BAD_REQUEST),
            (Kind::RequestBodyTimeout, StatusCode::REQUEST_TIMEOUT),
            (Kind::RequestBodyTooLarge(7), StatusCode::PAYLOAD_TOO_LARGE),
        ] {
            let error = UpstreamError::new(kind, &name).because("10.0.0.7:6443 said secret");
            let rejection = Rejection::from(error);
            assert_eq!(rejection.status(), status, "{kind:?}");
            assert!(rejection.detail().contains("`cluster`"), "{kind:?}");
            assert!(!rejection.detail().contains("10.0.0.7") && !rejection.detail().contains("secret"), "{kind:?}");
            assert!(rejection.fix_text().is_some());
        }
    }

    #[test]
    fn an_answer_that_does_not_switch_is_no_invalid_answer() {
        let error = UpstreamError::new(UpstreamErrorKind::NotSwitched(StatusCode::FOUND), &"board".into());
        assert_eq!(error.to_string(), "the upstream `board` did not switch protocols and answered with status 302");
    }
}
