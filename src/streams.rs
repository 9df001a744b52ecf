//! Long-lived streams: watches, followed logs, WebSockets, exec sessions and downloads; also uploads and responses that
//! may last, because their length is not known or the upload is not small. Each is registered with its principal and
//! its request, so that it is closed when its credential ends, when its user signs out or is revoked, and when a new
//! policy no longer allows it. A stream owns its data and never holds on to a configuration.

mod deadlines;
mod kinds;

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use self::deadlines::Deadlines;
pub use self::kinds::{CutReason, Metrics, StreamKind};
use crate::{
    abort::Abort,
    authn::{CredentialId, Principal},
    authz::RequestView,
    clock::{AtomicMoment, Clock, Moment, Timestamp, every},
    config::{
        raw::{EventListener, RouteKind},
        resolver::Secret,
    },
    kubernetes::Attributes,
    lock::lock,
    upstream::Place,
};
use futures_util::task::AtomicWaker;
use http::{Method, uri::PathAndQuery};

/// How often deadlines are checked.
const DEADLINE_TICK: Duration = Duration::from_secs(1);

/// How long a cut stream may take to end by itself before its task is aborted.
const GRACE: Duration = Duration::from_secs(2);

/// How many streams are rechecked before other tasks get a turn. With thousands of rules each takes milliseconds.
const AT_ONCE: usize = 16;

/// The request of a stream, stored so that it can be decided again. Its fields are shared or small, because every
/// request stores them: whether a response is a stream is known only when it arrives.
#[derive(Clone, Debug)]
pub struct StreamRequest {
    pub route: Arc<str>,
    /// Where the request was sent.
    pub upstream: Place,
    pub kind: RouteKind,
    pub host: Arc<str>,
    pub target: PathAndQuery,
    pub method: Method,
    pub upgrade: bool,
    pub address: IpAddr,
    pub event_listener: Option<Arc<EventListener>>,
    pub kubernetes: Option<Arc<Attributes>>,
}

/// A token that opened a stream, and about which its issuer is queried again while the stream lasts.
#[derive(Debug)]
pub struct VouchedToken {
    text: Arc<Secret>,
    /// When the issuer last confirmed the token.
    vouched: AtomicMoment,
}

impl VouchedToken {
    pub fn new(text: Arc<Secret>, vouched: Moment) -> Self {
        Self { text, vouched: AtomicMoment::new(vouched) }
    }

    pub fn text(&self) -> &Secret {
        &self.text
    }

    pub fn vouched(&self) -> Moment {
        self.vouched.load()
    }

    /// Records that the issuer has confirmed the token at `now`.
    pub fn vouched_again(&self, now: Moment) {
        self.vouched.store(now);
    }
}

/// A registered stream.
#[derive(Debug)]
pub struct Stream {
    pub kind: StreamKind,
    pub principal: Arc<Principal>,
    /// The groups that the request was sent with, along with the principal's name.
    pub groups: Arc<[Arc<str>]>,
    /// The token that opened the stream, if its issuer is queried about it.
    pub token: Option<VouchedToken>,
    pub request: StreamRequest,
    pub began: Moment,
    /// When the stream ends at the latest, as its route allowed when it began.
    pub deadline: Moment,
}

impl Stream {
    /// `max` is what the route allows. The deadline is `now + max` or the end of the credential, whichever is earlier.
    pub fn new(
        kind: StreamKind,
        principal: Arc<Principal>,
        groups: Arc<[Arc<str>]>,
        request: StreamRequest,
        max: Duration,
        now: Moment,
    ) -> Self {
        let deadline = (now + max).min(Moment::at_wall(principal.ends()));
        Self { kind, principal, groups, token: None, request, began: now, deadline }
    }

    /// Whether it is expected to continue until somebody ends it.
    fn lasts(&self) -> bool {
        !matches!(self.kind, StreamKind::Upload | StreamKind::Unsized)
    }

    /// Whether its client reopens it by itself where it ended, so that nothing is lost by closing it.
    fn is_begun_again(&self) -> bool {
        self.kind == StreamKind::Watch
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
            // A request whose body is read whole is never a stream.
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
    /// The number of sweeps over all streams.
    epoch: AtomicU64,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    streams: HashMap<u64, Entry>,
    deadlines: Deadlines,
    /// Streams that were cut and may not have ended yet, oldest first.
    ending: VecDeque<(Instant, u64, Arc<Cut>)>,
    /// Doorward is shutting down: no more long-lived streams may begin.
    draining: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    id: u64,
    stream: Arc<Stream>,
    cut: Arc<Cut>,
}

/// State shared by a stream and the registry: whether the stream must end, and why.
#[derive(Debug, Default)]
struct Cut {
    reason: OnceLock<CutReason>,
    waker: AtomicWaker,
    /// For the task that sends the client's upload.
    sender: AtomicWaker,
    /// The id of the response stream, if it was joined to an upload. Of the two, it is the one that a client may leave
    /// unread.
    answer: OnceLock<u64>,
    /// Aborts the task of the exchange, which does not poll for a cut while it waits for its client.
    abort: OnceLock<Abort>,
    /// Aborts the task that sends the upload, which likewise may wait for the upstream.
    sending: OnceLock<Abort>,
}

impl Cut {
    /// Returns false if the stream was already cut; the first reason stays.
    fn set(&self, reason: CutReason) -> bool {
        let first = self.reason.set(reason).is_ok();
        if first {
            self.waker.wake();
            self.sender.wake();
        }
        first
    }

    fn get(&self) -> Option<CutReason> {
        self.reason.get().copied()
    }

    fn poll(&self, waker: &AtomicWaker, cx: &Context<'_>) -> Poll<CutReason> {
        if let Some(reason) = self.get() {
            return Poll::Ready(reason);
        }
        waker.register(cx.waker());
        // Checked again, for a cut that happened before the registration.
        self.get().map_or(Poll::Pending, Poll::Ready)
    }
}

/// A stream's own handle: it reports when to end, and unregisters the stream when dropped.
#[derive(Debug)]
pub struct StreamHandle {
    epoch: u64,
    entry: Entry,
    shared: Arc<Shared>,
}

impl StreamHandle {
    /// Ready when the stream must end.
    pub fn poll_cut(&self, cx: &Context<'_>) -> Poll<CutReason> {
        self.entry.cut.poll(&self.entry.cut.waker, cx)
    }

    /// [`Self::poll_cut`] for the task that sends the upload, which is a separate one.
    pub(crate) fn poll_sender_cut(&self, cx: &Context<'_>) -> Poll<CutReason> {
        self.entry.cut.poll(&self.entry.cut.sender, cx)
    }

    /// Makes an upload, `other`, and its response end together and for the same reason.
    #[must_use]
    pub(crate) fn joined(mut self, other: &Self) -> Self {
        let own = std::mem::replace(&mut self.entry.cut, Arc::clone(&other.entry.cut));
        // Only ever joined once.
        let _ = self.entry.cut.answer.set(self.entry.id);
        let mut open = self.shared.open();
        open.streams.insert(self.entry.id, self.entry.clone());
        if self.reason().is_some() {
            open.ending.push_back((Instant::now(), self.entry.id, Arc::clone(&self.entry.cut)));
        }
        drop(open);
        if let Some(reason) = own.get() {
            self.end(reason);
        }
        self
    }

    /// Waits until the stream must end.
    pub async fn cut(&self) -> CutReason {
        std::future::poll_fn(|cx| self.poll_cut(cx)).await
    }

    /// Why it must end, if it must.
    pub fn reason(&self) -> Option<CutReason> {
        self.entry.cut.get()
    }

    /// Whether a sweep took place between `since` (from [`Registry::epoch`], read before the configuration snapshot)
    /// and the registration. That sweep missed this stream, so the request must be decided again before the stream
    /// begins.
    pub fn missed(&self, since: u64) -> bool {
        self.epoch != since
    }

    pub fn stream(&self) -> &Stream {
        &self.entry.stream
    }

    /// Marks the current task to be aborted if it has not ended shortly after the stream was cut.
    pub(crate) fn ends_this_work(&self) {
        let _ = self.entry.cut.abort.set(Abort::of_this_work());
    }

    /// The same for the task that sends the upload, which is a separate one.
    pub(crate) fn sent_by_this_work(&self) {
        let _ = self.entry.cut.sending.get_or_init(Abort::of_this_work);
    }

    /// Makes the stream end by `latest` if that is before its deadline.
    pub(crate) fn end_by(&self, latest: Moment) {
        self.shared.end_by(&self.entry, latest);
    }

    /// Ends the stream for a reason that it detects itself.
    pub(crate) fn end(&self, reason: CutReason) {
        self.shared.cut(&self.entry, reason);
    }
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        let mut open = self.shared.open();
        open.streams.remove(&self.entry.id);
        open.deadlines.remove(self.entry.stream.deadline, self.entry.id);
        drop(open);
        self.shared.metrics.ended(self.entry.stream.kind);
    }
}

impl Registry {
    pub fn new(clock: Clock, metrics: Metrics) -> Self {
        let shared = Shared { clock, metrics, epoch: AtomicU64::new(0), open: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Begins the shutdown. Closes watches, whose clients reopen them elsewhere; long-lived streams that register from
    /// now on are cut at once. Cutting a shell or a download loses work, so these may run until
    /// [`Registry::end_lasting`].
    pub fn drain(&self) -> usize {
        self.shared.open().draining = true;
        self.close_matching(Stream::is_begun_again, CutReason::Draining)
    }

    /// Ends all long-lived streams at shutdown. Uploads, and responses that merely have no known length, may end by
    /// themselves.
    pub fn end_lasting(&self) -> usize {
        self.close_matching(Stream::lasts, CutReason::Draining)
    }

    /// Ends all that is left shortly before connections are cut, so that each ends in its own way: the client of a gRPC
    /// call learns that it may call again.
    pub fn end_rest(&self) -> usize {
        self.close_matching(|_| true, CutReason::Draining)
    }

    /// The number of sweeps over all streams so far. See [`StreamHandle::missed`].
    pub fn epoch(&self) -> u64 {
        self.shared.epoch.load(Ordering::Acquire)
    }

    /// Registers a stream. It is cut at once if its deadline has passed, or if it is long-lived and Doorward is
    /// shutting down.
    pub fn register(&self, stream: Stream) -> StreamHandle {
        let (stream, cut) = (Arc::new(stream), Arc::<Cut>::default());
        let deadline = stream.deadline;
        self.shared.metrics.began(stream.kind);
        let (entry, epoch, draining) = {
            let mut open = self.shared.open();
            let entry = Entry { id: open.next, stream, cut };
            open.next += 1;
            open.streams.insert(entry.id, entry.clone());
            open.deadlines.insert(deadline, entry.id);
            // Under the lock: a later sweep finds the stream, and an earlier one shows in the epoch.
            (entry, self.epoch(), open.draining)
        };
        if draining && entry.stream.lasts() {
            self.shared.cut(&entry, CutReason::Draining);
        }
        let now = self.shared.clock.moment();
        if !now.is_before(deadline) {
            self.shared.expire(&entry, now.wall());
        }
        StreamHandle { epoch, entry, shared: Arc::clone(&self.shared) }
    }

    /// Ends the streams that `matches` selects, and returns how many.
    pub fn close_matching(&self, mut matches: impl FnMut(&Stream) -> bool, reason: CutReason) -> usize {
        self.each(|entry| matches(&entry.stream) && self.shared.cut(entry, reason))
    }

    /// The streams whose tokens are checked with their issuers.
    pub fn with_tokens(&self) -> Vec<CheckedStream> {
        let open = self.shared.open();
        let asked = open.streams.values().filter(|entry| entry.stream.token.is_some() && entry.cut.get().is_none());
        asked.map(|entry| self.checked(entry)).collect()
    }

    /// The streams of sessions, by session name.
    pub fn by_session(&self) -> HashMap<Arc<str>, Vec<CheckedStream>> {
        let open = self.shared.open();
        let mut sessions: HashMap<Arc<str>, Vec<CheckedStream>> = HashMap::new();
        for entry in open.streams.values().filter(|entry| entry.cut.get().is_none()) {
            if let CredentialId::Session(name) = &entry.stream.principal.credential {
                sessions.entry(Arc::clone(name)).or_default().push(self.checked(entry));
            }
        }
        sessions
    }

    fn checked(&self, entry: &Entry) -> CheckedStream {
        CheckedStream { entry: entry.clone(), shared: Arc::clone(&self.shared) }
    }

    /// Sweeps over all streams and ends those that may not continue. `refuses` is not called under a lock.
    pub fn recheck(&self, mut refuses: impl FnMut(&Stream) -> Option<CutReason>) -> usize {
        self.each(|entry| self.refuse(entry, &mut refuses))
    }

    /// [`Self::recheck`] for slow sweeps, such as after a reload and at the time boundaries of rules. Other tasks get a
    /// turn in between, such as the one that ends revoked streams.
    pub async fn recheck_in_parts(&self, mut refuses: impl FnMut(&Stream) -> Option<CutReason>) -> usize {
        let mut ended = 0;
        for part in self.all().chunks(AT_ONCE) {
            ended += part.iter().filter(|entry| self.refuse(entry, &mut refuses)).count();
            tokio::task::yield_now().await;
        }
        ended
    }

    fn refuse(&self, entry: &Entry, refuses: &mut impl FnMut(&Stream) -> Option<CutReason>) -> bool {
        entry.cut.get().is_none() && refuses(&entry.stream).is_some_and(|why| self.shared.cut(entry, why))
    }

    /// Shortens the deadline of each stream for which `latest` gives an earlier time.
    pub fn end_by(&self, latest: impl Fn(&Stream) -> Option<Moment>) {
        for entry in self.all() {
            if let Some(latest) = latest(&entry.stream) {
                self.shared.end_by(&entry, latest);
            }
        }
    }

    /// Ends the streams whose deadline has passed, and returns how many.
    pub fn cut_expired(&self) -> usize {
        let now = self.shared.clock.moment();
        let over: Vec<Entry> = {
            let mut open = self.shared.open();
            let mut over = Vec::new();
            while let Some(id) = open.deadlines.pop(now) {
                over.extend(open.streams.get(&id).cloned());
            }
            over
        };
        over.iter().filter(|entry| self.shared.expire(entry, now.wall())).count()
    }

    /// Aborts the tasks of streams that were cut a while ago and may still run because their client, or the upstream of
    /// an upload, reads nothing. Returns how many tasks it aborted.
    pub fn abort_stuck(&self) -> usize {
        // Dropped without the lock, as the last reference may hold others.
        let stuck: Vec<(Arc<Cut>, bool)> = {
            let mut open = self.shared.open();
            let mut stuck = Vec::new();
            while open.ending.front().is_some_and(|(cut, ..)| cut.elapsed() >= GRACE)
                && let Some((_, id, cut)) = open.ending.pop_front()
            {
                stuck.push((cut, open.streams.contains_key(&id)));
            }
            stuck
        };
        let told = stuck.iter().flat_map(|(cut, is_there)| {
            // If the response stream has ended, its task may already serve the next exchange of the connection.
            cut.sending.get().into_iter().chain(cut.abort.get().filter(|_| *is_there))
        });
        told.map(Abort::abort).count()
    }

    /// Ends streams at their deadlines and aborts stuck ones, forever. Run by one task of the control runtime.
    pub async fn enforce_deadlines(self) {
        let mut tick = every(DEADLINE_TICK);
        loop {
            tick.tick().await;
            self.cut_expired();
            self.abort_stuck();
        }
    }

    pub fn len(&self) -> usize {
        self.shared.open().streams.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn each(&self, mut cut: impl FnMut(&Entry) -> bool) -> usize {
        self.all().iter().filter(|entry| cut(entry)).count()
    }

    /// All streams, for a sweep. Increments the epoch, so that streams that register later notice the sweep.
    fn all(&self) -> Vec<Entry> {
        let open = self.shared.open();
        self.shared.epoch.fetch_add(1, Ordering::AcqRel);
        open.streams.values().cloned().collect()
    }
}

/// A stream whose token or session is being checked. It may end meanwhile.
#[derive(Debug)]
pub struct CheckedStream {
    entry: Entry,
    shared: Arc<Shared>,
}

impl CheckedStream {
    pub fn stream(&self) -> &Stream {
        &self.entry.stream
    }

    pub fn cut(&self, reason: CutReason) {
        self.shared.cut(&self.entry, reason);
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }

    /// An earlier deadline is added beside the original. It is removed when it passes, even if the stream has ended.
    fn end_by(&self, entry: &Entry, latest: Moment) {
        let deadline = entry.stream.deadline.min(latest);
        if deadline != entry.stream.deadline {
            self.open().deadlines.insert(deadline, entry.id);
        }
    }

    /// Ends a stream whose deadline has passed.
    fn expire(&self, entry: &Entry, now: Timestamp) -> bool {
        let is_good = entry.stream.principal.ends() > now;
        self.cut(entry, if is_good { CutReason::Overlong } else { CutReason::Expired })
    }

    fn cut(&self, entry: &Entry, reason: CutReason) -> bool {
        let first = entry.cut.set(reason);
        if first {
            let mut open = self.open();
            // Under the lock, like joining.
            let id = entry.cut.answer.get().copied().unwrap_or(entry.id);
            open.ending.push_back((Instant::now(), id, Arc::clone(&entry.cut)));
            drop(open);
            self.metrics.cut(entry.stream.kind, reason);
        }
        first
    }
}

#[cfg(test)]
pub(crate) mod tests;
