//! The streams that last: watches, followed logs, WebSockets, exec sessions, downloads, and answers that may last, as
//! nobody said how long they are. Each is registered with who
//! opened it and what was asked, so that it ends when its credential ends, when somebody signs out or is revoked, and
//! when a new policy no longer allows it. What is kept is owned: a stream never holds on to a configuration.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Method, uri::PathAndQuery};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

use crate::{
    authn::Principal,
    authz::RequestView,
    clock::{Clock, Timestamp},
    config::raw::{EventListener, RouteKind},
    kubernetes::Attributes,
};

/// How often deadlines are looked at.
const DEADLINE_TICK: Duration = Duration::from_secs(1);

/// What a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamKind {
    Watch,
    Log,
    Download,
    WebSocket,
    Spdy,
    /// An answer without a length: mostly over at once, but it may be a gRPC stream or lines of JSON without end.
    Unsized,
}

impl StreamKind {
    /// The label, snake case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Watch => "watch",
            Self::Log => "log",
            Self::Download => "download",
            Self::WebSocket => "websocket",
            Self::Spdy => "spdy",
            Self::Unsized => "unsized",
        }
    }
}

/// Why a stream was ended by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CutReason {
    /// Its credential, its session or the time that its route allows is over.
    Expired,
    SignedOut,
    Revoked,
    /// The policy no longer allows what was asked.
    PermissionLost,
    /// Doorward stops.
    Draining,
    /// Nothing moved for too long.
    Idle,
}

impl CutReason {
    const ALL: [Self; 6] =
        [Self::Expired, Self::SignedOut, Self::Revoked, Self::PermissionLost, Self::Draining, Self::Idle];

    /// The label, snake case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::SignedOut => "signed_out",
            Self::Revoked => "revoked",
            Self::PermissionLost => "permission_lost",
            Self::Draining => "draining",
            Self::Idle => "idle",
        }
    }

    const fn code(self) -> u8 {
        self as u8 + 1
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }
}

impl fmt::Display for CutReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was asked, kept so that it can be decided again. All of it is shared or small, since every request keeps it: one
/// whose answer turns out to be a stream is known only when the answer comes.
#[derive(Clone, Debug)]
pub struct StreamRequest {
    pub route: Arc<str>,
    pub kind: RouteKind,
    pub host: Arc<str>,
    pub target: PathAndQuery,
    pub method: Method,
    pub upgrade: bool,
    pub address: IpAddr,
    pub event_listener: Option<Arc<EventListener>>,
    pub kubernetes: Option<Arc<Attributes>>,
}

/// A registered stream.
#[derive(Debug)]
pub struct Stream {
    pub kind: StreamKind,
    pub principal: Arc<Principal>,
    pub request: StreamRequest,
    /// When it ends at the latest.
    pub deadline: Timestamp,
}

impl Stream {
    /// `max` is what the route allows. The deadline is the earlier of it and the end of the credential.
    pub fn new(
        kind: StreamKind,
        principal: Arc<Principal>,
        request: StreamRequest,
        max: Duration,
        now: Timestamp,
    ) -> Self {
        let deadline = (now + max).min(principal.expires);
        Self { kind, principal, request, deadline }
    }

    /// The request as rules see it, at `now`.
    pub fn view(&self, now: Timestamp) -> RequestView<'_> {
        let request = &self.request;
        RequestView {
            route: &request.route,
            kind: request.kind,
            host: &request.host,
            path: request.target.path(),
            method: &request.method,
            upgrade: request.upgrade,
            address: request.address,
            event_listener: request.event_listener.as_deref(),
            kubernetes: request.kubernetes.as_deref(),
            // Nothing that is read whole is a stream.
            run: None,
            delivery: self.principal.delivery.as_deref(),
            trigger: None,
            token: None,
            now,
        }
    }
}

/// All streams of the process. Clones share them.
#[derive(Clone, Debug)]
pub struct Registry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    metrics: Metrics,
    /// Grows with every look at all streams.
    epoch: AtomicU64,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    streams: HashMap<u64, Entry>,
    deadlines: BTreeSet<(Timestamp, u64)>,
}

#[derive(Clone, Debug)]
struct Entry {
    stream: Arc<Stream>,
    cut: Arc<Cut>,
}

/// What a stream and the registry share: whether, and why, it is to end.
#[derive(Debug, Default)]
struct Cut {
    reason: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

impl Cut {
    /// False if it was cut before; the first reason stays.
    fn set(&self, reason: CutReason) -> bool {
        let first = self.reason.compare_exchange(0, reason.code(), Ordering::AcqRel, Ordering::Acquire).is_ok();
        if first && let Some(waker) = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waker.wake();
        }
        first
    }

    fn get(&self) -> Option<CutReason> {
        CutReason::from_code(self.reason.load(Ordering::Acquire))
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<CutReason> {
        if let Some(reason) = self.get() {
            return Poll::Ready(reason);
        }
        {
            let mut waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *waker {
                Some(known) if known.will_wake(cx.waker()) => {}
                other => *other = Some(cx.waker().clone()),
            }
        }
        self.get().map_or(Poll::Pending, Poll::Ready)
    }
}

/// Belongs to the stream: tells it when to end, and takes it out of the registry when dropped.
#[derive(Debug)]
pub struct StreamHandle {
    id: u64,
    epoch: u64,
    entry: Entry,
    shared: Arc<Shared>,
}

impl StreamHandle {
    /// Ready when the stream must end.
    pub fn poll_cut(&self, cx: &Context<'_>) -> Poll<CutReason> {
        self.entry.cut.poll(cx)
    }

    /// Waits until the stream must end.
    pub async fn cut(&self) -> CutReason {
        std::future::poll_fn(|cx| self.poll_cut(cx)).await
    }

    /// Why it must end, if it must.
    pub fn reason(&self) -> Option<CutReason> {
        self.entry.cut.get()
    }

    /// Whether somebody looked at all streams between `since` (from [`Registry::epoch`], taken before the request
    /// was decided) and the registration. Such a look missed this stream: decide again before it begins.
    pub fn missed(&self, since: u64) -> bool {
        self.epoch != since
    }

    pub fn stream(&self) -> &Stream {
        &self.entry.stream
    }

    /// Ends the stream from the inside, for reasons that it sees itself.
    pub(crate) fn end(&self, reason: CutReason) {
        self.shared.cut(&self.entry, reason);
    }
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        let mut open = self.shared.open();
        open.streams.remove(&self.id);
        open.deadlines.remove(&(self.entry.stream.deadline, self.id));
        drop(open);
        self.shared.metrics.open.get_or_create(&KindLabel { kind: self.entry.stream.kind.as_str() }).dec();
    }
}

impl Registry {
    pub fn new(clock: Clock, metrics: Metrics) -> Self {
        let shared = Shared { clock, metrics, epoch: AtomicU64::new(0), open: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Ends what lasts, as Doorward stops. Answers that are only without a length may end by themselves.
    pub fn drain(&self) -> usize {
        self.close_matching(|stream| stream.kind != StreamKind::Unsized, CutReason::Draining)
    }

    /// Which look at all streams was the last. See [`StreamHandle::missed`].
    pub fn epoch(&self) -> u64 {
        self.shared.epoch.load(Ordering::Acquire)
    }

    /// Adds a stream. One whose deadline is over is cut at once.
    pub fn register(&self, stream: Stream) -> StreamHandle {
        let entry = Entry { stream: Arc::new(stream), cut: Arc::default() };
        let deadline = entry.stream.deadline;
        self.shared.metrics.open.get_or_create(&KindLabel { kind: entry.stream.kind.as_str() }).inc();
        let (id, epoch) = {
            let mut open = self.shared.open();
            let id = open.next;
            open.next += 1;
            open.streams.insert(id, entry.clone());
            open.deadlines.insert((deadline, id));
            // Under the lock: a look that begins later finds the stream, one that began earlier shows in the epoch.
            (id, self.epoch())
        };
        if deadline <= self.shared.clock.now() {
            self.shared.cut(&entry, CutReason::Expired);
        }
        StreamHandle { id, epoch, entry, shared: Arc::clone(&self.shared) }
    }

    /// Ends the streams that `matches`, and tells how many.
    pub fn close_matching(&self, mut matches: impl FnMut(&Stream) -> bool, reason: CutReason) -> usize {
        self.each(|entry| matches(&entry.stream) && self.shared.cut(entry, reason))
    }

    /// Shows every stream to `look`.
    pub fn for_each(&self, mut look: impl FnMut(&Stream)) {
        self.shared.open().streams.values().for_each(|entry| look(&entry.stream));
    }

    /// Decides about every stream again and ends those that are no longer allowed. Called after a reload, a refresh
    /// of a credential, and at the time boundaries of rules. `refuses` is not called under a lock.
    pub fn recheck(&self, mut refuses: impl FnMut(&Stream) -> Option<CutReason>) -> usize {
        self.each(|entry| {
            entry.cut.get().is_none() && refuses(&entry.stream).is_some_and(|why| self.shared.cut(entry, why))
        })
    }

    /// Ends the streams whose deadline is over, and tells how many.
    pub fn cut_expired(&self) -> usize {
        let now = self.shared.clock.now();
        let over: Vec<Entry> = {
            let mut open = self.shared.open();
            let mut over = Vec::new();
            while let Some((deadline, id)) = open.deadlines.first().copied()
                && deadline <= now
            {
                open.deadlines.remove(&(deadline, id));
                over.extend(open.streams.get(&id).cloned());
            }
            over
        };
        over.iter().filter(|entry| self.shared.cut(entry, CutReason::Expired)).count()
    }

    /// Ends streams at their deadlines, for ever. One task of the control runtime runs it.
    pub async fn enforce_deadlines(self) {
        let mut interval = tokio::time::interval(DEADLINE_TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.cut_expired();
        }
    }

    pub fn len(&self) -> usize {
        self.shared.open().streams.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn each(&self, mut cut: impl FnMut(&Entry) -> bool) -> usize {
        let entries: Vec<Entry> = {
            let open = self.shared.open();
            self.shared.epoch.fetch_add(1, Ordering::AcqRel);
            open.streams.values().cloned().collect()
        };
        entries.iter().filter(|entry| cut(entry)).count()
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self, entry: &Entry, reason: CutReason) -> bool {
        let first = entry.cut.set(reason);
        if first {
            self.metrics
                .closed
                .get_or_create(&CutLabel { kind: entry.stream.kind.as_str(), reason: reason.as_str() })
                .inc();
        }
        first
    }
}

/// Streams by kind, and those that we ended by why.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    open: Family<KindLabel, Gauge>,
    closed: Family<CutLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CutLabel {
    kind: &'static str,
    reason: &'static str,
}

impl Metrics {
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        registry.register("streams_open", "Streams, and answers without a length, which may last", self.open.clone());
        registry.register("streams_cut", "Streams that Doorward ended", self.closed.clone());
    }
}

#[cfg(test)]
pub(crate) mod tests;
