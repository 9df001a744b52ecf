//! Errors of upstreams.

use std::{fmt, io, sync::Arc};

use http::StatusCode;

use crate::{
    body::BodyError,
    error::{Reason, Rejection},
};

/// Limits on the head of a response: bytes, and for HTTP/1.1 the number of headers. In HTTP/2 each header counts as 32
/// bytes more (RFC 9113 section 6.5.2), which bounds their number. The header limit is well above what servers send,
/// but not higher: above 100 the HTTP library allocates for each response.
pub(super) const MAX_RESPONSE_HEAD: u32 = 64 << 10;
pub(super) const MAX_RESPONSE_HEADERS: usize = 256;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamErrorKind {
    /// Its name has no address, or no address accepts a connection.
    Unreachable,
    /// No connection within the connect timeout, TLS included.
    ConnectTimeout,
    /// The TLS handshake failed.
    Tls,
    /// All connections that it may have are in use.
    Exhausted,
    /// The process may open no more files, and so no connection.
    NoFiles,
    /// Doorward holds no token for it.
    NoCredential,
    /// The request was sent, but no head of a response arrived in time.
    ResponseTimeout,
    /// It closed the connection or reset the stream before it responded.
    Closed,
    /// As `Closed`, but it is known that the request was not processed.
    NotTaken,
    /// Its response is not valid HTTP for the request.
    Protocol,
    /// Over HTTP/1.1, its response does not begin with a valid head.
    NotHttp1,
    /// The head of its response exceeds the HTTP/1.1 limits.
    HeadTooLarge,
    /// It answered an upgrade request with a status that neither switches protocols nor refuses.
    NotSwitched(StatusCode),
    /// The client's own body ended early, so that there was no complete request.
    RequestBody,
    /// As `RequestBody`, because the body is malformed.
    RequestBodyMalformed,
    /// As `RequestBody`, because the client sent nothing for too long, or too slowly.
    RequestBodyTimeout,
    /// As `RequestBody`, because the body exceeds this limit of the route, in bytes.
    RequestBodyTooLarge(u64),
}

impl UpstreamErrorKind {
    /// For a body that failed at the client.
    pub(crate) fn of_body(error: &BodyError) -> Self {
        // These are hyper's kinds for unreadable chunks; a connection that ends gives `UnexpectedEof`.
        let is_malformed = find::<io::Error>(error)
            .is_some_and(|error| matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData));
        if is_malformed { Self::RequestBodyMalformed } else { Self::RequestBody }
    }
}

/// An upstream gave no response. The text names the upstream as in the configuration, never by its address; the cause
/// is for operators only.
#[derive(Debug)]
pub struct UpstreamError {
    kind: UpstreamErrorKind,
    upstream: Arc<str>,
    retryable: bool,
    /// The status with which it had responded before the client's body failed. Nothing of that response was sent on.
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

    /// Marks that the error occurred before a byte of the request was sent.
    #[must_use]
    pub(crate) fn nothing_sent(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// As [`Self::nothing_sent`], or the peer says that it did not process the request.
    #[must_use]
    pub(crate) fn not_taken(mut self) -> Self {
        if self.kind == UpstreamErrorKind::Closed {
            self.kind = UpstreamErrorKind::NotTaken;
        }
        self.nothing_sent()
    }

    /// Records that it had responded with `status`, which was not sent on.
    #[must_use]
    pub(super) fn after_answer(mut self, status: StatusCode) -> Self {
        self.answered = Some(status);
        self
    }

    /// Classifies hyper's error. The caller adds `nothing_sent` or `not_taken`, as it knows whether hyper returned the
    /// request.
    pub(crate) fn from_hyper(upstream: &Arc<str>, error: hyper::Error) -> Self {
        let kind = match find::<BodyError>(&error) {
            Some(BodyError::TooLarge(limit)) => UpstreamErrorKind::RequestBodyTooLarge(*limit),
            Some(error) => UpstreamErrorKind::of_body(error),
            None if error.is_parse_too_large() => UpstreamErrorKind::HeadTooLarge,
            // hyper itself parses nothing of HTTP/2.
            None if error.is_parse() => UpstreamErrorKind::NotHttp1,
            None if error.is_user() => UpstreamErrorKind::Protocol,
            None => UpstreamErrorKind::Closed,
        };
        Self::new(kind, upstream).because(error)
    }

    pub fn kind(&self) -> UpstreamErrorKind {
        self.kind
    }

    /// Whether a retry is safe for any method: nothing of the request was sent, or the peer said that it did not
    /// process it.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            UpstreamErrorKind::Unreachable => "cannot be reached",
            UpstreamErrorKind::ConnectTimeout => "did not accept a connection in time",
            UpstreamErrorKind::Tls => "could not be verified by TLS",
            UpstreamErrorKind::Exhausted => "is busy: all connections to it are in use",
            UpstreamErrorKind::NoFiles => "was not called, as Doorward can open no more connections",
            UpstreamErrorKind::NoCredential => "was not called, as Doorward has no token for it",
            UpstreamErrorKind::ResponseTimeout => "did not answer in time",
            UpstreamErrorKind::Closed => "aborted the request before it answered",
            UpstreamErrorKind::NotTaken => "did not accept the request",
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
            UpstreamErrorKind::RequestBodyMalformed => "got no complete request, because the body is malformed",
            UpstreamErrorKind::RequestBody => "got no complete request, because the body ended early",
            UpstreamErrorKind::RequestBodyTimeout => "got no complete request, because the body came too slowly",
            UpstreamErrorKind::RequestBodyTooLarge(limit) => {
                return write!(
                    f,
                    "the upstream `{}` got no complete request, because the body is larger than {limit} bytes",
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
            UpstreamErrorKind::Unreachable => (
                Reason::UpstreamUnreachable,
                "try again; if this persists, an operator should check whether it is running",
            ),
            UpstreamErrorKind::ConnectTimeout | UpstreamErrorKind::ResponseTimeout => (
                Reason::UpstreamTimeout,
                "try again; if the request was to change something, check first whether it did",
            ),
            UpstreamErrorKind::Tls => {
                (Reason::UpstreamUnreachable, "an operator should compare its certificate with `tls` of this upstream")
            }
            UpstreamErrorKind::Exhausted => (Reason::Overloaded, "try again in a moment"),
            UpstreamErrorKind::NoFiles => (
                Reason::Overloaded,
                "try again in a moment; if this persists, an operator should raise the limit of open files of Doorward",
            ),
            UpstreamErrorKind::NoCredential => (
                Reason::UpstreamCredential,
                "try again in a moment; if this persists, an operator should check `credential/` in `/readyz`",
            ),
            UpstreamErrorKind::NotTaken => (Reason::Overloaded, "nothing was done: send it again in a moment"),
            UpstreamErrorKind::Closed | UpstreamErrorKind::Protocol => (
                Reason::UpstreamProtocol,
                "try again; if the request was to change something, check first whether it did",
            ),
            UpstreamErrorKind::NotHttp1 => (
                Reason::UpstreamProtocol,
                "an operator should set `protocol: http2` of this upstream if it speaks HTTP/2 alone, as gRPC servers do; if the request \
                 was to change something, check first whether it did",
            ),
            UpstreamErrorKind::HeadTooLarge => (
                Reason::UpstreamProtocol,
                "an operator should make it answer with fewer or shorter headers; if the request was to change something, check first \
                 whether it did",
            ),
            UpstreamErrorKind::NotSwitched(_) => (
                Reason::UpstreamProtocol,
                "use an address that supports this protocol; an operator should check whether the upstream does",
            ),
            UpstreamErrorKind::RequestBody => (Reason::BadRequest, "send the whole body"),
            UpstreamErrorKind::RequestBodyMalformed => {
                (Reason::BadRequest, "send the body chunked as in RFC 9112 section 7.1, or with its length")
            }
            UpstreamErrorKind::RequestBodyTimeout => {
                (Reason::BodyTimeout, "send the body faster, and without long pauses")
            }
            UpstreamErrorKind::RequestBodyTooLarge(_) => (Reason::BodyTooLarge, "send a smaller body"),
        };
        let rejection = Self::new(reason, error.to_string());
        let rejection = match error.answered {
            Some(status) => {
                // On a 408, clients send the request again by themselves (RFC 9110 section 15.5.9).
                let rejection = match error.kind {
                    UpstreamErrorKind::RequestBodyTimeout => rejection.with_status(StatusCode::BAD_REQUEST),
                    _ => rejection,
                };
                rejection.with_upstream_status(status).fix(format!(
                    "check first whether it did what was asked, as it had answered with status {}; else {fix}",
                    status.as_u16()
                ))
            }
            None => match error.kind {
                UpstreamErrorKind::NotSwitched(status) => rejection.fix(fix).with_upstream_status(status),
                _ => rejection.fix(fix),
            },
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
            (Kind::NoFiles, StatusCode::SERVICE_UNAVAILABLE),
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

    /// It said that the upstream had got a part of the request and that the body had stalled, of bodies of which nothing
    /// had been sent on, or that arrived steadily.
    #[test]
    fn a_refusal_for_the_body_claims_nothing_of_what_was_sent_on_or_when() {
        let says = |kind| UpstreamError::new(kind, &"board".into()).to_string();
        assert_eq!(
            says(UpstreamErrorKind::RequestBodyTimeout),
            "the upstream `board` got no complete request, because the body came too slowly"
        );
        assert_eq!(
            says(UpstreamErrorKind::RequestBodyMalformed),
            "the upstream `board` got no complete request, because the body is malformed"
        );
    }

    /// It said that all connections to the upstream were in use, of which there may have been none.
    #[test]
    fn a_lack_of_files_is_not_blamed_on_the_upstream() {
        let rejection = Rejection::from(UpstreamError::new(UpstreamErrorKind::NoFiles, &"board".into()));
        let expected = "the upstream `board` was not called, as Doorward can open no more connections";
        assert_eq!((rejection.reason(), rejection.detail()), (Reason::Overloaded, expected));
        assert!(rejection.fix_text().is_some_and(|fix| fix.contains("limit of open files")));
    }

    #[test]
    fn an_answer_that_does_not_switch_is_no_invalid_answer() {
        let error = UpstreamError::new(UpstreamErrorKind::NotSwitched(StatusCode::FOUND), &"board".into());
        assert_eq!(error.to_string(), "the upstream `board` did not switch protocols and answered with status 302");
        assert_eq!(Rejection::from(error).upstream_status(), Some(StatusCode::FOUND), "for the trail");
    }
}
