//! Upstreams and their connection pools.
//!
//! `Pools::send` sends a prepared request and returns the streamed response. Connections are pooled per worker and per upstream
//! identity (address, TLS, credential; see `settings`), never per caller: the caller's identity is in the headers of each request.
//!
//! Short requests share connections, HTTP/1.1 one after the other and HTTP/2 concurrently. Watches and followed logs
//! ([`Lane::Long`]) have a connection each, as a few clients that do not read would otherwise fill the window of a shared one and
//! block everybody. So have [upgrades](upgrade).
//!
//! | file | holds |
//! |---|---|
//! | `settings` | an upstream as the program runs on it |
//! | `account_token` | the short token of a service account that Doorward is there, where it asks for one |
//! | `pool`, `connect` | connections that wait for their next request, and new ones |
//! | `response` | the body that comes back |
//! | `get` | objects that Doorward reads at an API server for itself |
//! | `buffered` | request bodies that are read whole |
//! | `progress` | time limits without timers |
//! | `upgrade`, `websocket`, `splice` | other protocols: what may ask for one, its frames, and the bytes of both sides |
//! | `streams` | what lasts, and ends with its credential or its permission |
//! | `error`, `metrics` | why there is no answer, and what the pools count |

mod account_token;
pub mod buffered;
mod connect;
mod error;
mod get;
mod metrics;
mod pool;
mod progress;
mod response;
mod settings;
mod splice;
pub mod streams;
pub mod upgrade;
mod websocket;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard},
    task::Poll,
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body::Body as _;
use hyper::{body::Incoming, client::conn::TrySendError};

pub(crate) use self::{
    account_token::AccountToken,
    connect::{SEARCH_LIST_CURE, USER_TIMEOUT, keep_alive, search_list_trouble},
    get::GetError,
    progress::{Progress, Ticks},
    settings::{Access, TlsClient, TlsIdentity},
};
pub use self::{
    error::{UpstreamError, UpstreamErrorKind},
    metrics::Metrics,
    response::UpstreamBody,
    settings::{Place, Upstream},
};
use self::{
    pool::{Lease, Node, Pick},
    progress::Sweep,
    settings::Identity,
    upgrade::UpgradeProtocol,
};
use crate::{body::RequestBody, lock::lock};

/// The kind of connection that a request is sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Answered soon; shares connections.
    Short,
    /// Lasts (a watch, a followed log); has a connection of its own.
    Long,
}

/// How long the exchange with the upstream will last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Answered soon.
    Short,
    /// A watch or a followed log.
    Long,
    /// Another protocol after a handshake.
    Upgrade(UpgradeProtocol),
}

/// How a quiet connection of HTTP/2 that has streams is asked whether its peer is there (RFC 9113 section 6.7).
#[derive(Clone, Copy, Debug)]
pub struct Pings {
    /// After so long without a frame.
    quiet: Duration,
    /// How long the answer may take, before all streams of the connection fail.
    within: Duration,
}

impl Pings {
    /// For requests.
    pub const NORMAL: Self = Self { quiet: Duration::from_secs(20), within: Duration::from_secs(10) };

    /// For watches by which tokens end: one that is cut without a word must be noticed, and all be listed anew, within two seconds.
    pub const EAGER: Self = Self { quiet: Duration::from_millis(300), within: Duration::from_millis(900) };

    /// When it is noticed at the latest that the peer is gone.
    #[cfg(test)]
    pub(crate) fn notice(self) -> Duration {
        self.quiet + self.within
    }
}

/// The connections of one worker. Made once a worker and used from its runtime.
#[derive(Clone, Debug)]
pub struct Pools {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    nodes: Mutex<HashMap<Arc<Identity>, Arc<Node>>>,
    sweep: Arc<Sweep>,
    metrics: Metrics,
    pings: Pings,
}

impl Pools {
    pub fn new(metrics: Metrics, pings: Pings) -> Self {
        let shared = Shared { nodes: Mutex::default(), sweep: Sweep::new(), metrics, pings };
        Self { shared: Arc::new(shared) }
    }

    /// Sends a request and waits for the head of the response. Of the URI only path and query are used. `Host`, where
    /// it is absent, is the upstream's; `Authorization` is the upstream's credential, if it has one, whatever stood
    /// there; the framing headers are made from the body.
    ///
    /// A request is sent again at most once, and only if nothing of it was sent, if the peer says that it did not
    /// look at it, or if it was idempotent and a pooled connection turned out to be closed.
    ///
    /// Takes the request out of `request`, which is a loan only so that the future need not hold it twice.
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
            let again = if is_retry { None } else { replay(&lease, request) };
            match exchange(upstream, lease, request, lane).await {
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

    /// Closes the connections to upstreams that are not among `live`, as soon as they are free. Called for each worker
    /// when another configuration takes over; connections whose settings did not change stay.
    pub fn retain(&self, live: &[Arc<Upstream>]) {
        let mut gone = Vec::new();
        self.nodes().retain(|identity, node| {
            let keep = live.iter().any(|upstream| upstream.identity == *identity);
            if !keep {
                gone.push(Arc::clone(node));
            }
            keep
        });
        for node in gone {
            node.drain();
        }
    }

    fn node(&self, upstream: &Arc<Upstream>) -> Arc<Node> {
        let mut nodes = self.nodes();
        if let Some(node) = nodes.get(&upstream.identity) {
            return Arc::clone(node);
        }
        let node = Node::new(self.shared.metrics.of(upstream.name()), &self.shared.sweep, self.shared.pings);
        nodes.insert(Arc::clone(&upstream.identity), Arc::clone(&node));
        node
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<Arc<Identity>, Arc<Node>>> {
        lock(&self.shared.nodes)
    }
}

/// Gives the request what every request to this upstream has.
fn prepare(upstream: &Upstream, request: &mut Request<RequestBody>) -> Result<(), UpstreamError> {
    // RFC 9110 section 8.6: a method that anticipates content says that there is none.
    let says_empty = matches!(request.body(), RequestBody::Empty)
        && matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
    let headers = request.headers_mut();
    if let Some(authorization) = upstream.authorization()? {
        headers.insert(header::AUTHORIZATION, authorization);
    }
    if !headers.contains_key(header::HOST) {
        headers.insert(header::HOST, upstream.authority.host.clone());
    }
    // How the client framed the body says nothing about how we do, and Expect was answered by us.
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

/// A second copy of a request.
struct Replay {
    request: Request<RequestBody>,
    /// It is idempotent, and the connection was there before: the peer may have closed it before it saw the request.
    may_be_stale: bool,
}

impl Replay {
    fn is_allowed_after(&self, error: &UpstreamError) -> bool {
        error.is_retryable() || (self.may_be_stale && error.kind() == UpstreamErrorKind::Closed)
    }
}

/// Keeps a copy where a second attempt could be right: the connection was there before, so that the peer may have
/// closed it meanwhile, and nothing of the body is lost by sending it.
fn replay(lease: &Lease, request: &Request<RequestBody>) -> Option<Box<Replay>> {
    let is_idempotent = request.method().is_idempotent();
    let (may_be_stale, is_wanted) = match lease {
        Lease::Http1(lease) => (lease.reused && is_idempotent, lease.reused && is_idempotent),
        // Here the peer can also say of any request that it did not look at it (RFC 9113 section 8.7).
        Lease::Http2(lease) => (lease.reused && is_idempotent, true),
    };
    if !is_wanted {
        return None;
    }
    let mut copy = Request::new(request.body().replay()?);
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    Some(Box::new(Replay { request: copy, may_be_stale }))
}

/// A failed attempt, with the request if nothing of it was sent.
struct Failure {
    error: UpstreamError,
    unsent: Option<Box<Request<RequestBody>>>,
}

impl From<UpstreamError> for Failure {
    fn from(error: UpstreamError) -> Self {
        Self { error, unsent: None }
    }
}

/// Whether the body is a stream of messages, which may come at any time. Such speak HTTP/2, where one that stands still holds no
/// connection of the upstream.
pub(crate) fn is_of_messages(headers: &HeaderMap, is_http2: bool) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    is_http2 && (kind.starts_with(b"application/grpc") || kind.starts_with(b"application/connect+"))
}

/// Whether a response is a stream of events (HTML section 9.2), which comes where nobody knew that one would.
pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

/// Has the answer go on in our version of HTTP and gives the peer's (RFC 9110 section 2.5). In HTTP/1.0 what is cut looks
/// as if it were whole.
fn in_our_version<B>(response: &mut Response<B>) -> Version {
    std::mem::replace(response.version_mut(), Version::HTTP_11)
}

/// Whether the peer closes the connection after its answer, and with that takes no more of the request.
fn closes(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(header::CONNECTION).iter();
    lines.any(|line| {
        line.as_bytes().split(|byte| *byte == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(b"close"))
    })
}

/// Marks a request whose client may send nothing of its body once it has an answer, so that no answer waits for the body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitsForAnswer;

/// Sends a request on a connection and waits for the head of the response.
async fn exchange(
    upstream: &Arc<Upstream>,
    mut lease: Lease,
    request: &mut Request<RequestBody>,
    lane: Lane,
) -> Result<Response<UpstreamBody>, Failure> {
    let progress = Arc::clone(lease.progress());
    let is_streaming = request.body().is_streaming();
    let is_http2 = matches!(lease, Lease::Http2(_));
    let waits_for_answer = request.extensions().get::<WaitsForAnswer>().is_some();
    let is_of_messages = is_of_messages(request.headers(), is_http2);
    // While the client still sends, it is the client that must not stall.
    progress.begin(match is_streaming {
        true if is_of_messages => upstream.long_idle_timeout,
        true => upstream.stream_idle_timeout,
        false => upstream.response_timeout,
    });
    if is_streaming && lane == Lane::Short && !is_of_messages {
        progress.keep_pace(upstream.body_pace);
    }
    request.body_mut().begin(&progress, is_streaming.then_some(upstream.response_timeout), is_http2);

    let sent = match &mut lease {
        Lease::Http1(lease) => {
            *request.version_mut() = Version::HTTP_11;
            request.headers_mut().remove(header::TE);
            let Some(sender) = lease.sender() else {
                return Err(UpstreamError::new(UpstreamErrorKind::Closed, upstream.name()).into());
            };
            wait(upstream, &progress, pin!(sender.try_send_request(std::mem::take(request)))).await
        }
        Lease::Http2(lease) => {
            make_absolute(upstream, request);
            let mut sender = lease.connection.sender.clone();
            let sent = wait(upstream, &progress, pin!(sender.try_send_request(std::mem::take(request)))).await;
            sent.map_err(|failure| {
                if failure.is_of_connection() {
                    lease.retire();
                }
                failure.restore(is_http2)
            })
        }
    };
    let mut response = sent?;
    let is_last = closes(response.headers());
    let is_persistent = in_our_version(&mut response) >= Version::HTTP_11 && !is_last;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // Nobody asked. What follows on this connection is not HTTP.
        return Err(UpstreamError::new(UpstreamErrorKind::Protocol, upstream.name())
            .because("status 101, although no upgrade was asked for")
            .into());
    }
    let mut holds = false;
    if let Lease::Http1(lease) = &mut lease {
        // It would hold its place among the open ones until the peer has closed it.
        lease.reusable &= !is_last;
        if progress.is_request_open() {
            // Answered before the end of the request. With the end of an answer the rest of an upload is lost, so that of one that
            // takes it waits for it.
            holds = lane == Lane::Short && is_persistent && response.status().is_success() && !waits_for_answer;
            // What of others is still to come must not run into the next one.
            lease.reusable = holds;
        }
    }
    // Silence says as little about a stream of events or messages as about a watch.
    let limit = match lane {
        Lane::Short if !is_of_messages && !is_event_stream(response.headers()) => upstream.stream_idle_timeout,
        Lane::Short | Lane::Long => upstream.long_idle_timeout,
    };
    progress.answered(limit);
    if holds && response.body().is_end_stream() {
        // Its head is its end.
        let status = response.status();
        let failed = |kind| UpstreamError::new(kind, upstream.name()).after_answer(status);
        poll_fn(|cx| progress.poll_handed_over(cx)).await.map_err(failed)?;
        holds = false;
    }
    // The lease ends here where the answer has no body, and keeps the record for the next exchange if it has the last of it.
    drop(progress);
    Ok(response.map(|body| UpstreamBody::new(body, lease, holds)))
}

/// Waits for the head of a response, as long as the exchange may take.
async fn wait(
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
        // The sweep closes the connection and wakes us; which of the two shows first is a matter of chance.
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

/// What the client's own body did, where that is why there is no answer: hyper does not tell it over HTTP/2.
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

    /// Takes back what was done to a request for HTTP/2, as the next attempt may go by HTTP/1.1.
    fn restore(mut self, was_http2: bool) -> Self {
        if was_http2 && let Some(unsent) = &mut self.unsent {
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

/// Whether the peer says that it did not look at the request (RFC 9113 sections 6.8 and 8.7).
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
