//! Opening connections: the handshakes of HTTP/1.1 and HTTP/2, with the bounds that ours have.

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

/// Streams of one HTTP/2 connection, even if the peer takes more.
const MAX_STREAMS: usize = 100;

/// HTTP/2 windows. The connection's is larger than those of all its streams together: streams whose clients do not
/// read can never block the others. It is larger still since h2 ends a connection on which many small frames wait to be read,
/// and counts as many as half of that window has room for, with what each takes besides. One byte a frame, four streams that
/// nobody reads come so far, and then take some 80 MB.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 256 << 20;

/// How often a new HTTP/2 connection is asked whether the peer's settings have come.
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
    /// Streams that the peer takes at once.
    limit: watch::Receiver<usize>,
    /// Has the peer's settings looked at again.
    look: Arc<AtomicWaker>,
    /// The peer sends it away, or it failed.
    retired: AtomicBool,
    pub(super) born: u32,
    /// When its last stream ended.
    unused_since: AtomicU32,
    /// Records of exchanges that ended, for the next ones.
    spare: Mutex<Vec<Arc<Progress>>>,
    /// The sweep runs as long as there is a record, and without it nobody closes this.
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
        &self,
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

    /// An HTTP/1.1 connection that may change to another protocol. It counts as open as long as its lease lives, not
    /// only until hyper hands it over.
    pub(super) async fn upgradable_http1(
        &self,
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
        &self,
        sender: http1::SendRequest<RequestBody>,
        connection: impl Future<Output = hyper::Result<()>> + Send + 'static,
        slot: Option<Slot>,
    ) -> Http1 {
        let progress = self.sweep.watch();
        progress.set_connection(tokio::spawn(drive(connection, slot)).abort_handle());
        let born = self.sweep.now();
        Http1 { sender, progress, born, unused_since: born }
    }

    /// Waits for the peer's settings too: they tell how many streams it takes, and that it speaks HTTP/2 at all.
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
        // hyper reads the settings in a task of its own and tells nobody, so until they are there we look often.
        let mut often = Some(every(SETTINGS_LOOK));
        let connection = poll_fn(move |cx| {
            looks.register(cx.waker());
            let polled = Pin::new(&mut connection).poll(cx);
            let now = connection.current_max_send_streams();
            let before = *publish.borrow();
            publish.send_if_modified(|limit| std::mem::replace(limit, now) != now);
            // Of the first settings whoever opens it tells.
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
        // Before the clock is looked at, which stands without a record.
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

    /// Since when it has had no stream, if it has none. True as long as the lock of its pool is held, without which none begins.
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

    /// Has those who wait told where the peer takes more streams than it did.
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
