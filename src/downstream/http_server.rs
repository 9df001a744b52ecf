//! HTTP on a connection: hyper with Doorward's limits, and the steps of each request to the service and back.

use std::{
    convert::Infallible,
    error::Error as _,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    time::timeout,
};

use super::{
    Connection, Protocol, Serve, Unfit,
    accept::Shared,
    answer::{InFlight, Tracked},
    arriving::SMALL,
    frames::Frames,
    framing::Scanner,
    head::{self, Framing},
    io::{Follower, Io, Prefix},
    liveness::{Command, Liveness, Phase},
    metrics::{ProtocolError, Refused},
    registry::Registered,
};
use crate::{
    abort::{Abortable, AbortableTasks},
    body::ClientBody,
    config::raw::Limits,
    error::{Reason, Rejection},
    memory::{Client, Taken, Taking},
};

/// What a request takes beside its head until it is over, with its tasks, its record and its stream.
const OF_REQUEST: usize = 8 << 10;

/// How much of a request that nobody reads is taken from the client, so that it sees the response and not a reset: as
/// much as a browser has cookies for one site, 180 of 4 KiB, which any host of that site can set.
const LINGER_BYTES: u64 = 1 << 20;
/// How long for, in all and without anything more from the client: over a slow line that much takes seconds.
const LINGER_TIME: Duration = Duration::from_secs(5);
const LINGER_PAUSE: Duration = Duration::from_secs(1);

/// How many streams may be reset before they are looked at, by a peer that carries the requests of many clients. Each
/// takes memory until then, so there is a limit, but one client that cancels in bursts must not cost all others their
/// streams.
const RESETS_OF_MANY: u32 = 1000;

/// The least connection window for a peer that carries the requests of many clients. h2 ends a connection on which many
/// small frames wait to be read, and allows as many as half of that window has room for. The windows of streams bound
/// what waits in any case.
const WINDOW_OF_MANY: u64 = 64 << 20;

/// How many headers beyond a limit above a hundred are read, so that a client with a few too many gets a proper
/// refusal.
const HEADERS_BEYOND: usize = 28;

/// One connection that speaks HTTP.
pub(super) struct Server<S> {
    pub(super) shared: Arc<Shared<S>>,
    pub(super) limits: Arc<Limits>,
    pub(super) liveness: Arc<Liveness>,
    pub(super) connection: Arc<Connection>,
    pub(super) client: Arc<Client>,
}

impl<S: Serve> Server<S> {
    /// Serves the connection to its end.
    pub(super) fn run<T>(
        self,
        stream: T,
        prefix: Prefix,
        registered: Registered,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let liveness = Arc::clone(&self.liveness);
        liveness.enter(Phase::Head);
        match self.connection.protocol {
            Protocol::Http1 => {
                let io =
                    Io::new(stream, prefix, Follower::Http1(Scanner::default()), liveness, registered, &self.client);
                Box::pin(Abortable::new(self.http1(TokioIo::new(io))))
            }
            Protocol::Http2 => {
                registered.speaks_http2();
                let io =
                    Io::new(stream, prefix, Follower::Http2(Frames::default()), liveness, registered, &self.client);
                Box::pin(self.http2(TokioIo::new(io)))
            }
        }
    }

    async fn http1<T>(self, io: TokioIo<Io<T>>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let head = largest_head(&self.limits);
        let mut builder = http1::Builder::new();
        builder.max_header_size(head).max_buf_size(head.max(self.limits.body_buffer.bytes()));
        // hyper is slower if this is set, and reads a hundred headers if it is not.
        if usize::from(self.limits.header_count) > 100 {
            builder.max_headers(usize::from(self.limits.header_count) + HEADERS_BEYOND);
        }
        let service = service_fn(|request| self.answer(request));
        let mut connection = builder.serve_connection(io, service).with_upgrades();
        let mut finishing = false;
        let result = poll_fn(|context| {
            let mut connection = Pin::new(&mut connection);
            // First what has already arrived, so that a request on its way is not lost.
            if let Poll::Ready(result) = connection.as_mut().poll(context) {
                return Poll::Ready(result);
            }
            if !finishing && self.liveness.is_commanded(Command::Finish) && self.liveness.phase() == Phase::Idle {
                finishing = true;
                connection.as_mut().graceful_shutdown();
                return connection.poll(context);
            }
            Poll::Pending
        })
        .await;
        let refused = result.as_ref().is_err_and(hyper::Error::is_parse);
        self.count(&result);
        if (refused || self.liveness.is_within_body())
            && let Some(parts) = connection.into_parts()
        {
            self.liveness.enter(Phase::Opening);
            Box::pin(linger(parts.io.into_inner())).await;
        }
    }

    async fn http2<T>(self, io: TokioIo<Io<T>>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let window = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        let ping = self.limits.http2_ping_interval.get();
        let mut builder = http2::Builder::new(AbortableTasks);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.limits.http2_streams)
            .initial_stream_window_size(window(self.limits.http2_stream_window.0))
            .initial_connection_window_size(window(connection_window(&self.limits, self.liveness.is_shared())))
            .max_header_list_size(u32::try_from(largest_list(&self.limits)).unwrap_or(u32::MAX))
            .max_send_buf_size(self.limits.body_buffer.bytes())
            .max_pending_accept_reset_streams(pending_resets(&self.limits, self.liveness.is_shared()) as usize)
            .max_local_error_reset_streams(self.limits.http2_local_resets as usize)
            .keep_alive_interval(ping)
            .keep_alive_timeout(ping * 2 / 3);
        let service = service_fn(|request| self.answer(request));
        let mut connection = pin!(builder.serve_connection(io, service));
        let mut finishing = false;
        let result = poll_fn(|context| {
            if !finishing && self.liveness.is_commanded(Command::Finish) {
                finishing = true;
                connection.as_mut().graceful_shutdown();
            }
            connection.as_mut().poll(context)
        })
        .await;
        self.count(&result);
    }

    /// Passes one request to the service and its response back.
    fn answer(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Tracked<S::Body>>, Infallible>> + Send + use<S> {
        let protocol = self.connection.protocol;
        let scanned = self.liveness.begin_request();
        let mut in_flight = InFlight::new(Arc::clone(&self.liveness));
        let framing = (protocol == Protocol::Http1).then(|| Framing { scanned, defect: self.liveness.defect() });
        let mut close = head::is_last(protocol, request.headers());
        let is_http10 = request.version() == Version::HTTP_10;
        let mut request = request.map(|incoming| ClientBody::new(incoming, protocol));
        let checked = self.make_room(&mut request, &mut in_flight).and_then(|()| {
            head::check(&request, &self.limits, framing).map_err(|fault| {
                self.shared.metrics.protocol_error(fault.kind);
                fault.rejection
            })
        });
        let request = match checked {
            Ok(()) => Ok(request),
            Err(rejection) => {
                close = protocol == Protocol::Http1;
                Err(Unfit { request, rejection })
            }
        };
        let answered = self.shared.service.serve(&self.connection, request);
        let drain = self.shared.drain.clone();
        async move {
            let mut response = answered.await;
            let liveness = in_flight.liveness();
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                liveness.enter(Phase::Upgraded);
            } else {
                close |= drain.is_announced() || liveness.is_commanded(Command::Finish);
                // hyper closes the connection if the rest of the request body has not arrived yet, and a client that is
                // not told loses its next request. With a 2xx, the rest is still read.
                close |= protocol == Protocol::Http1 && liveness.is_within_body() && !response.status().is_success();
                // The end of the connection is that of the body, so that it cannot be kept.
                close |= is_http10 && response.body().size_hint().exact().is_none();
                if close && is_http10 {
                    // To the head of another version hyper adds that the connection is kept.
                    *response.version_mut() = Version::HTTP_10;
                }
                end_connection(&mut response, protocol, close, liveness);
            }
            Ok(response.map(|inner| Tracked::new(inner, in_flight, protocol)))
        }
    }

    /// Takes the memory for a request until it is over. Here, where the request begins, and not where it is served: one
    /// poll of a connection can begin many requests, and those of all connections may be polled before the first one is
    /// served.
    fn make_room(&self, request: &mut Request<ClientBody>, in_flight: &mut InFlight) -> Result<(), Rejection> {
        let head = head::length(request);
        let mut taken = Taken::by(&self.client);
        let has_room = taken.grow_to(OF_REQUEST + head, Taking::Request);
        if !has_room && self.connection.protocol == Protocol::Http2 {
            // Nobody reads it any more. Over HTTP/1.1, its bytes are in the buffer of the connection.
            if head > SMALL {
                *request.headers_mut() = HeaderMap::new();
            }
            // A stream lasts until its client has read the answer, so refusals alone could take all memory. A proxy
            // reads them, and its connection carries the requests of others.
            let may_be_answered = self.liveness.is_shared() || taken.grow_to(OF_REQUEST, Taking::Begun);
            if !may_be_answered && !self.liveness.is_commanded(Command::Abort) {
                self.shared.metrics.refused(Refused::Memory);
                self.liveness.command(Command::Abort);
            }
        }
        in_flight.hold(taken);
        if has_room {
            return Ok(());
        }
        let detail = "the requests in progress, of all clients or of this one alone, take as much memory as they may";
        Err(Rejection::new(Reason::Overloaded, detail).fix("try again in a moment, with fewer requests at once"))
    }

    fn count(&self, result: &hyper::Result<()>) {
        let Err(error) = result else { return };
        let kind = match classify(error, self.connection.protocol) {
            ProtocolError::Flood if self.liveness.is_of_small_pieces() => ProtocolError::Http2,
            kind => kind,
        };
        if kind == ProtocolError::Flood {
            self.liveness.mark_flooded();
        }
        tracing::debug!(connection = self.connection.id, peer = %self.connection.peer, ?kind, %error, "connection failed");
        self.shared.metrics.protocol_error(kind);
    }
}

/// Ends the connection after this response, if Doorward or the service wants it.
fn end_connection<B>(response: &mut Response<B>, protocol: Protocol, close: bool, liveness: &Liveness) {
    match protocol {
        Protocol::Http1 => {
            if close {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
        }
        // The header means nothing there (RFC 9113 section 8.2.2), a GOAWAY does.
        Protocol::Http2 => {
            if response.headers_mut().remove(header::CONNECTION).is_some() || close {
                liveness.command(Command::Finish);
            }
        }
    }
}

/// The largest head that hyper parses. A head that exceeds the limits by little is answered by the service.
fn largest_head(limits: &Limits) -> usize {
    limits.header_bytes.bytes() + limits.uri_bytes.bytes() + 1024
}

/// The same for HTTP/2, which counts 32 bytes more for each header (RFC 9113 section 6.5.2).
fn largest_list(limits: &Limits) -> usize {
    largest_head(limits) + 32 * usize::from(limits.header_count)
}

fn pending_resets(limits: &Limits, of_many: bool) -> u32 {
    let own = limits.http2_pending_resets;
    if of_many { own.max(RESETS_OF_MANY).max(limits.http2_streams.saturating_mul(10)) } else { own }
}

fn connection_window(limits: &Limits, of_many: bool) -> u64 {
    let own = limits.http2_connection_window.0;
    if of_many { own.max(WINDOW_OF_MANY) } else { own }
}

fn classify(error: &hyper::Error, protocol: Protocol) -> ProtocolError {
    if error.is_parse_too_large() {
        ProtocolError::HeadTooLarge
    } else if error.is_parse() {
        ProtocolError::Parse
    } else if error.is_incomplete_message() {
        ProtocolError::Incomplete
    } else if error.source().is_some_and(|source| source.is::<io::Error>()) || protocol == Protocol::Http1 {
        ProtocolError::Io
    } else if error.source().and_then(|source| source.downcast_ref::<h2::Error>()).is_some_and(is_flood) {
        ProtocolError::Flood
    } else {
        ProtocolError::Http2
    }
}

/// Whether h2 ended the connection for too much of what costs the client nothing: resets (CVE-2023-44487,
/// CVE-2025-8671), pieces of a head (CVE-2024-27316), or pieces of bodies (CVE-2019-9518).
fn is_flood(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_library() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM)
}

/// Reads what the client is still sending, up to a bound: closing with unread bytes is a reset, which may overtake the
/// response.
async fn linger(io: impl AsyncRead + Unpin) {
    let (mut unread, mut buffer) = (io.take(LINGER_BYTES), [0; 4096]);
    let reading = async { while let Ok(Ok(1..)) = timeout(LINGER_PAUSE, unread.read(&mut buffer)).await {} };
    let _ = timeout(LINGER_TIME, reading).await;
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, time::Instant};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn data_a_client_still_sends_is_read_up_to_a_bound_of_bytes_and_time() {
        for (sent, taken) in [(0, 0), (100, 100), (LINGER_BYTES, LINGER_BYTES), (LINGER_BYTES * 2, LINGER_BYTES)] {
            let mut client = io::Cursor::new(vec![0; usize::try_from(sent).unwrap()]);
            linger(&mut client).await;
            assert_eq!(client.position(), taken, "of {sent}");
        }
        let (silent, _open) = tokio::io::duplex(1);
        let begun = Instant::now();
        linger(silent).await;
        assert_eq!(begun.elapsed(), LINGER_PAUSE);
        // Regression: a client that sent on, but slowly, got a reset instead of the response after a second.
        let (slow, mut client) = tokio::io::duplex(1);
        tokio::spawn(async move {
            while client.write_all(b"x").await.is_ok() {
                tokio::time::sleep(LINGER_PAUSE / 2).await;
            }
        });
        let begun = Instant::now();
        linger(slow).await;
        assert_eq!(begun.elapsed(), LINGER_TIME);
    }
}
