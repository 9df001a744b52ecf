//! Opens connections: the HTTP/1.1 and HTTP/2 handshakes, with Doorward's limits.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::task::AtomicWaker;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{Node, Slot, read_on::ReadOn};
use crate::{
    abort::AbortableTasks,
    body::RequestBody,
    clock::every,
    lock::lock,
    upstream::{
        connect::{Transport, connect},
        error::{MAX_RESPONSE_HEAD, MAX_RESPONSE_HEADERS, UpstreamError, UpstreamErrorKind},
        progress::Progress,
        settings::Upstream,
    },
};

/// The most streams on one HTTP/2 connection, even if the peer accepts more.
const MAX_STREAMS: usize = 100;

/// HTTP/2 windows. The connection's window is larger than those of all its streams together, so that streams whose
/// clients do not read can never block the others. It is much larger because h2 ends a connection on which too many
/// small frames wait to be read. Its limit is the number that fit into half of this window, counting the overhead of
/// each. At one byte per frame, four unread streams reach it, and then use about 80 MB.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 256 << 20;

/// How often a new HTTP/2 connection is checked for the peer's settings.
const SETTINGS_LOOK: Duration = Duration::from_millis(1);

/// An HTTP/1.1 connection.
#[derive(Debug)]
pub(in crate::upstream) struct Http1 {
    pub(in crate::upstream) sender: http1::SendRequest<RequestBody>,
    pub(in crate::upstream) progress: Arc<Progress>,
    pub(super) born: u32,
    pub(super) unused_since: u32,
}

/// An HTTP/2 connection.
#[derive(Debug)]
pub(in crate::upstream) struct Http2 {
    pub(in crate::upstream) sender: http2::SendRequest<RequestBody>,
    streams: AtomicUsize,
    /// How many concurrent streams the peer accepts.
    limit: watch::Receiver<usize>,
    /// Triggers another check of the peer's settings.
    look: Arc<AtomicWaker>,
    /// The peer is shutting the connection down, or it failed.
    retired: AtomicBool,
    pub(super) born: u32,
    /// When its last stream ended.
    unused_since: AtomicU32,
    /// Progress records of finished exchanges, for reuse.
    spare: Mutex<Vec<Arc<Progress>>>,
    /// Keeps the sweep running, which closes this connection: it runs as long as there is a progress record.
    _watched: Arc<Progress>,
}

impl Node {
    pub(super) async fn open(
        &self,
        upstream: &Upstream,
        tls: Option<&Arc<rustls::ClientConfig>>,
        deadline: Instant,
    ) -> Result<Transport, UpstreamError> {
        let result = timeout_at(deadline, connect(upstream, tls)).await.unwrap_or_else(|_| {
            Err(UpstreamError::new(UpstreamErrorKind::ConnectTimeout, upstream.name()).nothing_sent())
        });
        match &result {
            Ok(_) => self.counters.opened.inc(),
            Err(error) => {
                tracing::debug!(upstream = %upstream.name(), error = error as &dyn std::error::Error, "connect failed");
                self.counters.connect_failures.inc()
            }
        };
        result
    }

    pub(super) async fn http1(
        self: &Arc<Self>,
        upstream: &Upstream,
        transport: Transport,
        slot: Slot,
    ) -> Result<Http1, UpstreamError> {
        let (sender, connection) = builder()
            .handshake(TokioIo::new(ReadOn::new(transport)))
            .await
            .map_err(|error| UpstreamError::from_hyper(upstream.name(), error))?;
        Ok(self.run_http1(sender, connection, Some(slot)))
    }

    /// Opens an HTTP/1.1 connection that may change to another protocol. It counts as open as long as its lease lives,
    /// not only until hyper hands it over.
    pub(super) async fn upgradable_http1(
        self: &Arc<Self>,
        upstream: &Upstream,
        transport: Transport,
    ) -> Result<Http1, UpstreamError> {
        let (sender, connection) = builder()
            .handshake(TokioIo::new(transport))
            .await
            .map_err(|error| UpstreamError::from_hyper(upstream.name(), error))?;
        Ok(self.run_http1(sender, connection.with_upgrades(), None))
    }

    fn run_http1(
        self: &Arc<Self>,
        sender: http1::SendRequest<RequestBody>,
        connection: impl Future<Output = hyper::Result<()>> + Send + 'static,
        slot: Option<Slot>,
    ) -> Http1 {
        let progress = self.sweep.watch();
        progress.set_connection(tokio::spawn(drive(connection, slot)).abort_handle(), self);
        let born = self.sweep.now();
        Http1 { sender, progress, born, unused_since: born }
    }

    /// Opens an HTTP/2 connection. Waits for the peer's settings too, which show that it speaks HTTP/2 and how many
    /// streams it accepts.
    pub(super) async fn http2(
        &self,
        upstream: &Upstream,
        transport: Transport,
        slot: Slot,
        deadline: Instant,
    ) -> Result<Http2, UpstreamError> {
        let (sender, mut connection) = http2::Builder::new(AbortableTasks)
            .timer(TokioTimer::new())
            .initial_max_send_streams(0)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_RESPONSE_HEAD)
            .keep_alive_interval(self.pings.quiet)
            .keep_alive_timeout(self.pings.within)
            .handshake(TokioIo::new(transport))
            .await
            .map_err(|error| UpstreamError::from_hyper(upstream.name(), error).nothing_sent())?;
        let (publish, mut limit) = watch::channel(0);
        let look = Arc::<AtomicWaker>::default();
        let (looks, node) = (Arc::clone(&look), Arc::clone(&slot.node));
        // hyper reads the settings in a task of its own without a notification, so they are polled often until they
        // arrive.
        let mut often = Some(every(SETTINGS_LOOK));
        let connection = poll_fn(move |cx| {
            looks.register(cx.waker());
            let polled = Pin::new(&mut connection).poll(cx);
            let now = connection.current_max_send_streams();
            let before = *publish.borrow();
            publish.send_if_modified(|limit| std::mem::replace(limit, now) != now);
            // The first settings are announced by the task that opens the connection.
            if often.is_none() && now > before {
                node.free();
            }
            if now > 0 {
                often = None;
            } else if let Some(often) = &mut often {
                while often.poll_tick(cx).is_ready() {}
            }
            polled
        });
        tokio::spawn(drive(connection, Some(slot)));
        match timeout_at(deadline, limit.wait_for(|limit| *limit > 0)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => {
                return Err(UpstreamError::new(UpstreamErrorKind::Protocol, upstream.name())
                    .because("it does not speak HTTP/2")
                    .nothing_sent());
            }
            Err(_) => return Err(UpstreamError::new(UpstreamErrorKind::ConnectTimeout, upstream.name()).nothing_sent()),
        }
        // Before the clock is read, which stands still without a progress record.
        let watched = self.sweep.watch();
        let born = self.sweep.now();
        Ok(Http2 {
            sender,
            streams: AtomicUsize::new(0),
            limit,
            look,
            retired: AtomicBool::new(false),
            born,
            unused_since: AtomicU32::new(born),
            spare: Mutex::default(),
            _watched: watched,
        })
    }
}

impl Http2 {
    pub(super) fn begin_stream(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end_stream(&self, now: u32) {
        self.unused_since.store(now, Ordering::Relaxed);
        self.streams.fetch_sub(1, Ordering::Release);
    }

    /// Since when it has had no stream, if it has none. Stays true while the lock of its pool is held, as no stream
    /// begins without it.
    pub(super) fn unused_since(&self) -> Option<u32> {
        (self.streams.load(Ordering::Acquire) == 0).then(|| self.unused_since.load(Ordering::Relaxed))
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_open(&self) -> bool {
        !self.retired.load(Ordering::Relaxed) && !self.sender.is_closed()
    }

    pub(super) fn has_room(&self) -> bool {
        let limit = (*self.limit.borrow()).min(MAX_STREAMS);
        self.is_open() && self.streams.load(Ordering::Relaxed) < limit
    }

    /// Makes the connection notify those who wait if the peer now accepts more streams.
    pub(super) fn look_at_settings(&self) {
        self.look.wake();
    }

    pub(super) fn spare(&self) -> MutexGuard<'_, Vec<Arc<Progress>>> {
        lock(&self.spare)
    }
}

fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_header_size(MAX_RESPONSE_HEAD as usize);
    builder.max_headers(MAX_RESPONSE_HEADERS);
    builder
}

async fn drive(connection: impl Future<Output = hyper::Result<()>>, slot: Option<Slot>) {
    if let Err(error) = connection.await {
        tracing::debug!(error = &error as &dyn std::error::Error, "upstream connection ended");
    }
    drop(slot);
}
