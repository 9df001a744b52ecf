//! Sends requests on connections of the pools, retries those that are safe to send again, and waits for the heads of
//! responses.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body::Body as _;
use hyper::{body::Incoming, client::conn::TrySendError};

use super::{
    Lane, Pools, Upstream, UpstreamBody, UpstreamError, UpstreamErrorKind, error,
    pool::{Lease, Pick},
    progress::Progress,
};
use crate::body::RequestBody;

impl Pools {
    /// Sends a request and waits for the head of the response. Only the path and query of the URI are used. A missing
    /// `Host` is set to the upstream's. If the upstream has a credential, it replaces any `Authorization`. Framing
    /// headers are made from the body.
    ///
    /// A request is retried at most once, and only if nothing of it was sent, if the peer says that it did not process
    /// it, or if it is idempotent and a pooled connection turned out to be closed.
    ///
    /// Takes the request out of `request`. It is passed by reference only so that the future does not store it twice.
    pub(crate) async fn send(
        &self,
        upstream: &Arc<Upstream>,
        request: &mut Request<RequestBody>,
        lane: Lane,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let node = self.node(upstream);
        prepare(upstream, request)?;
        let mut is_retry = false;
        loop {
            let checkout = match lane {
                Lane::Short => {
                    let pick = if is_retry { Pick::Fresh } else { Pick::Pooled };
                    node.checkout(upstream, pick).await
                }
                Lane::Long => Box::pin(node.own(upstream)).await,
            };
            let lease = match checkout {
                Ok(lease) => lease,
                Err(error) if !is_retry && error.kind() == UpstreamErrorKind::Unreachable => {
                    is_retry = true;
                    node.counters.retries.inc();
                    continue;
                }
                Err(error) => return Err(error),
            };
            let again = if is_retry { None } else { copy_for_retry(&lease, request) };
            match send_on(upstream, lease, request, lane).await {
                Ok(response) => return Ok(response),
                Err(Failure { error, unsent }) => {
                    let next = match unsent {
                        _ if is_retry => None,
                        Some(unsent) => Some(*unsent),
                        None => again.filter(|again| again.is_allowed_after(&error)).map(|again| again.request),
                    };
                    let Some(next) = next else { return Err(error) };
                    tracing::debug!(upstream = %upstream.name(), error = &error as &dyn std::error::Error, "sent again");
                    *request = next;
                    is_retry = true;
                    node.counters.retries.inc();
                }
            }
        }
    }
}

/// Adds what every request to this upstream has.
pub(super) fn prepare(upstream: &Upstream, request: &mut Request<RequestBody>) -> Result<(), UpstreamError> {
    // RFC 9110 section 8.6: an empty body is declared for methods that anticipate content.
    let says_empty = matches!(request.body(), RequestBody::Empty)
        && matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
    let headers = request.headers_mut();
    if let Some(authorization) = upstream.authorization()? {
        headers.insert(header::AUTHORIZATION, authorization);
    }
    if !headers.contains_key(header::HOST) {
        headers.insert(header::HOST, upstream.authority.host.clone());
    }
    // The client's framing does not apply to this connection, and Doorward has answered Expect itself.
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::EXPECT);
    if says_empty {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    if request.uri().authority().is_some() {
        *request.uri_mut() = request.uri().path_and_query().map_or_else(Uri::default, |path| Uri::from(path.clone()));
    }
    Ok(())
}

/// A copy of a request, for a retry.
struct RetryCopy {
    request: Request<RequestBody>,
    /// The request is idempotent and the connection was reused: the peer may have closed it before it saw the request.
    may_be_stale: bool,
}

impl RetryCopy {
    fn is_allowed_after(&self, error: &UpstreamError) -> bool {
        error.is_retryable() || (self.may_be_stale && error.kind() == UpstreamErrorKind::Closed)
    }
}

/// Copies a request that may be retried, if its body can be sent again.
fn copy_for_retry(lease: &Lease, request: &Request<RequestBody>) -> Option<Box<RetryCopy>> {
    let (is_reused, is_http2) = match lease {
        Lease::Http1(lease) => (lease.reused, false),
        Lease::Http2(lease) => (lease.reused, true),
    };
    let may_be_stale = is_reused && request.method().is_idempotent();
    // An HTTP/2 peer can also say of any request that it did not process it (RFC 9113 section 8.7).
    if !may_be_stale && !is_http2 {
        return None;
    }
    let mut copy = Request::new(request.body().try_clone()?);
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    Some(Box::new(RetryCopy { request: copy, may_be_stale }))
}

/// A failed attempt, with the request if nothing of it was sent.
pub(super) struct Failure {
    pub(super) error: UpstreamError,
    unsent: Option<Box<Request<RequestBody>>>,
}

impl From<UpstreamError> for Failure {
    fn from(error: UpstreamError) -> Self {
        Self { error, unsent: None }
    }
}

/// Whether the body is a stream of messages, which may arrive at any time. These streams use HTTP/2, where an idle one
/// does not occupy a connection to the upstream.
pub(crate) fn is_of_messages(headers: &HeaderMap, is_http2: bool) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    is_http2 && (kind.starts_with(b"application/grpc") || kind.starts_with(b"application/connect+"))
}

/// Whether a response is a stream of events (HTML section 9.2), which the request did not announce.
pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

/// Changes the response to HTTP/1.1 and returns the peer's version (RFC 9110 section 2.5). In HTTP/1.0, a truncated
/// response would look complete.
pub(super) fn in_our_version<B>(response: &mut Response<B>) -> Version {
    std::mem::replace(response.version_mut(), Version::HTTP_11)
}

/// Whether the peer closes the connection after this response, and so reads no more of the request.
fn closes(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(header::CONNECTION).iter();
    lines.any(|line| {
        line.as_bytes().split(|byte| *byte == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(b"close"))
    })
}

/// Marks a request whose client may send no more of its body once it has a response, so that the response must not wait
/// for the body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpectsContinue;

/// Frames a body of unknown length of a method that seldom has one, for HTTP/1.1: hyper would leave it out, and the
/// upstream would answer another request than that of the client. The connection ends with the response, as a server
/// that ignores such a body takes it for the next request (RFC 9110 section 9.3.1). Returns whether there is one.
fn frame_rare_body(request: &mut Request<RequestBody>) -> bool {
    let body = request.body();
    let is_left_out = matches!(*request.method(), Method::GET | Method::HEAD)
        && body.is_streaming()
        && !body.is_end_stream()
        && body.size_hint().exact().is_none();
    if is_left_out {
        let headers = request.headers_mut();
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    is_left_out
}

/// Sends a request on a connection and waits for the head of the response.
async fn send_on(
    upstream: &Arc<Upstream>,
    mut lease: Lease,
    request: &mut Request<RequestBody>,
    lane: Lane,
) -> Result<Response<UpstreamBody>, Failure> {
    let progress = Arc::clone(lease.progress());
    let is_streaming = request.body().is_streaming();
    let is_http2 = matches!(lease, Lease::Http2(_));
    let expects_continue = request.extensions().get::<ExpectsContinue>().is_some();
    let is_of_messages = is_of_messages(request.headers(), is_http2);
    // While the client still sends, the stall limit applies to the client.
    progress.begin(match is_streaming {
        true if is_of_messages => upstream.long_idle_timeout,
        true => upstream.stream_idle_timeout,
        false => upstream.response_timeout,
    });
    if is_streaming && lane == Lane::Short && !is_of_messages {
        progress.keep_pace(upstream.body_pace);
    }
    request.body_mut().begin(&progress, is_streaming.then_some(upstream.response_timeout), is_http2);
    let is_alone = !is_http2 && frame_rare_body(request);

    let sent = match &mut lease {
        Lease::Http1(lease) => {
            *request.version_mut() = Version::HTTP_11;
            request.headers_mut().remove(header::TE);
            let Some(sender) = lease.sender() else {
                return Err(UpstreamError::new(UpstreamErrorKind::Closed, upstream.name()).into());
            };
            wait_for_head(upstream, &progress, pin!(sender.try_send_request(std::mem::take(request)))).await
        }
        Lease::Http2(lease) => {
            make_absolute(upstream, request);
            let mut sender = lease.connection.sender.clone();
            let sent = wait_for_head(upstream, &progress, pin!(sender.try_send_request(std::mem::take(request)))).await;
            sent.map_err(|failure| {
                if failure.is_of_connection() {
                    lease.retire();
                }
                failure.restore()
            })
        }
    };
    let mut response = sent?;
    let is_last = closes(response.headers());
    let is_persistent = in_our_version(&mut response) >= Version::HTTP_11 && !is_last;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // No upgrade was requested, and what follows on this connection is not HTTP.
        return Err(UpstreamError::new(UpstreamErrorKind::Protocol, upstream.name())
            .because("status 101, although no upgrade was asked for")
            .into());
    }
    let mut holds = false;
    if let Lease::Http1(lease) = &mut lease {
        // In the pool it would count as an open connection until the peer closes it.
        lease.reusable &= !is_last && !is_alone;
        if progress.is_request_open() {
            // Answered before the end of the request. The end of the response would cut off an upload that the upstream
            // still accepts, so the response waits for it.
            holds = lane == Lane::Short && is_persistent && response.status().is_success() && !expects_continue;
            // In all other cases, the rest of the request must not run into the next one.
            lease.reusable = holds && !is_alone;
        }
    }
    // Silence on a stream of events or messages is as normal as on a watch.
    let limit = match lane {
        Lane::Short if !is_of_messages && !is_event_stream(response.headers()) => upstream.stream_idle_timeout,
        Lane::Short | Lane::Long => upstream.long_idle_timeout,
    };
    progress.answered(limit);
    if holds && response.body().is_end_stream() {
        // The head is the whole response.
        let status = response.status();
        let failed = |kind| UpstreamError::new(kind, upstream.name()).after_answer(status);
        poll_fn(|cx| progress.poll_handed_over(cx)).await.map_err(failed)?;
        holds = false;
    }
    // A response without a body ends the lease here. The lease stores `progress` for the next exchange if it has the
    // last reference.
    drop(progress);
    Ok(response.map(|body| UpstreamBody::new(body, lease, holds)))
}

/// Waits for the head of a response, within the time limit of the exchange.
pub(super) async fn wait_for_head(
    upstream: &Arc<Upstream>,
    progress: &Progress,
    mut response: Pin<&mut impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>>,
) -> Result<Response<Incoming>, Failure> {
    let result = poll_fn(|cx| match response.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => progress.poll_expired(cx).map(|()| None),
    })
    .await;
    match result {
        Some(Ok(response)) => Ok(response),
        Some(Err(mut failed)) if !progress.is_expired() => {
            let unsent = failed.take_message().map(Box::new);
            let cause = failed.into_error();
            if let Some(kind) = fault_of_client(progress, &cause) {
                return Err(UpstreamError::new(kind, upstream.name()).because(cause).into());
            }
            let was_refused = error::find::<h2::Error>(&cause).is_some_and(is_refusal);
            let mut error = UpstreamError::from_hyper(upstream.name(), cause);
            if unsent.is_some() || was_refused {
                error = error.not_taken();
            }
            Err(Failure { error, unsent })
        }
        // The sweep closes the connection and wakes this task. Either may be noticed first.
        _ => {
            let kind = if progress.is_stalled_by_client() {
                UpstreamErrorKind::RequestBodyTimeout
            } else {
                UpstreamErrorKind::ResponseTimeout
            };
            Err(UpstreamError::new(kind, upstream.name()).into())
        }
    }
}

/// How the client's own body failed, if that is why there is no response: hyper does not report it over HTTP/2.
fn fault_of_client(progress: &Progress, cause: &hyper::Error) -> Option<UpstreamErrorKind> {
    if let Some(limit) = progress.exceeded() {
        return Some(UpstreamErrorKind::RequestBodyTooLarge(limit));
    }
    let failed = progress.has_client_failed();
    failed.then(|| error::find(cause).map_or(UpstreamErrorKind::RequestBody, UpstreamErrorKind::of_body))
}

impl Failure {
    /// Whether the whole connection failed, and not one stream of it.
    fn is_of_connection(&self) -> bool {
        matches!(self.error.kind(), UpstreamErrorKind::Closed | UpstreamErrorKind::NotTaken)
            && error::find::<h2::Error>(&self.error).is_none_or(|error| !error.is_reset())
    }

    /// Undoes what was changed for HTTP/2, as the retry may use HTTP/1.1.
    fn restore(mut self) -> Self {
        if let Some(unsent) = &mut self.unsent {
            if let Some(authority) = unsent.uri().authority()
                && let Ok(host) = HeaderValue::from_str(authority.as_str())
            {
                unsent.headers_mut().insert(header::HOST, host);
            }
            if let Some(path) = unsent.uri().path_and_query().cloned() {
                *unsent.uri_mut() = Uri::from(path);
            }
        }
        self
    }
}

/// Whether the peer says that it did not process the request (RFC 9113 sections 6.8 and 8.7).
fn is_refusal(error: &h2::Error) -> bool {
    error.is_remote()
        && match error.reason() {
            Some(h2::Reason::REFUSED_STREAM) => true,
            Some(h2::Reason::NO_ERROR) => error.is_go_away(),
            _ => false,
        }
}

/// HTTP/2 carries the host in `:authority`, which hyper takes from the URI.
fn make_absolute(upstream: &Upstream, request: &mut Request<RequestBody>) {
    let host = request.headers_mut().remove(header::HOST);
    let authority = host
        .filter(|host| *host != upstream.authority.host)
        .and_then(|host| http::uri::Authority::try_from(host.as_bytes()).ok())
        .unwrap_or_else(|| upstream.authority.uri.clone());
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(upstream.authority.scheme.clone());
    parts.authority = Some(authority);
    parts.path_and_query =
        request.uri().path_and_query().cloned().or_else(|| Some(http::uri::PathAndQuery::from_static("/")));
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    *request.version_mut() = Version::HTTP_2;
}
