//! The streams that last: watches, followed logs, WebSockets, exec sessions, downloads, and uploads and answers that may last:
//! those of which nobody said how long they are, and uploads that are not small. Each is registered with who opened it and what
//! was asked, so that it ends when its credential ends, when somebody signs out or is revoked, and when a new policy no longer
//! allows it. What is kept is owned: a stream never holds on to a configuration.

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

/// How often deadlines are looked at.
const DEADLINE_TICK: Duration = Duration::from_secs(1);

/// How long a stream that is cut may take to end by itself, before the work on it is.
const GRACE: Duration = Duration::from_secs(2);

/// How many streams are decided again in one go. A policy of thousands of rules takes milliseconds for each.
const AT_ONCE: usize = 16;

/// What was asked, kept so that it can be decided again. All of it is shared or small, since every request keeps it: one
/// whose answer turns out to be a stream is known only when the answer comes.
#[derive(Clone, Debug)]
pub struct StreamRequest {
    pub route: Arc<str>,
    /// Where it was sent.
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

/// A token about which its issuer is asked again while a stream lasts that it opened.
#[derive(Debug)]
pub struct VouchedToken {
    text: Arc<Secret>,
    /// When its issuer last said that it is good.
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

    /// Notes that its issuer says now that it is good.
    pub fn vouched_again(&self, now: Moment) {
        self.vouched.store(now);
    }
}

/// A registered stream.
#[derive(Debug)]
pub struct Stream {
    pub kind: StreamKind,
    pub principal: Arc<Principal>,
    /// The groups that it was sent under, with the name of the principal.
    pub groups: Arc<[Arc<str>]>,
    /// The token that it was opened with, if its issuer is asked about it.
    pub token: Option<VouchedToken>,
    pub request: StreamRequest,
    pub began: Moment,
    /// When it ends at the latest, by what its route allowed when it began.
    pub deadline: Moment,
}

impl Stream {
    /// `max` is what the route allows. The deadline is the earlier of it and the end of the credential.
    pub fn new(
        kind: StreamKind,
        principal: Arc<Principal>,
        groups: Arc<[Arc<str>]>,
        request: StreamRequest,
        max: Duration,
        now: Moment,
    ) -> Self {
        let deadline = (now + max).min(Moment::when_shown(principal.ends()));
        Self { kind, principal, groups, token: None, request, began: now, deadline }
    }

    /// Whether it goes on until somebody ends it, as far as is known.
    fn lasts(&self) -> bool {
        !matches!(self.kind, StreamKind::Upload | StreamKind::Unsized)
    }

    /// Whether its client begins another by itself where it ended, so that nothing is lost by its end.
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
    deadlines: Deadlines,
    /// Those that were cut and may not have ended yet, the first first.
    ending: VecDeque<(Instant, u64, Arc<Cut>)>,
    /// Doorward stops: nothing that lasts begins any more.
    draining: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    id: u64,
    stream: Arc<Stream>,
    cut: Arc<Cut>,
}

/// What a stream and the registry share: whether, and why, it is to end.
#[derive(Debug, Default)]
struct Cut {
    reason: OnceLock<CutReason>,
    waker: AtomicWaker,
    /// Of the task that sends what the client still sends.
    sender: AtomicWaker,
    /// The stream of the answer, where that was joined to what the client still sends: of the two it is what a client may leave where
    /// it is.
    answer: OnceLock<u64>,
    /// Ends the work on the exchange, where that does not ask whether it is to end while it waits for its client.
    abort: OnceLock<Abort>,
    /// The same of what the client still sends, and of the upstream.
    sending: OnceLock<Abort>,
}

impl Cut {
    /// False if it was cut before; the first reason stays.
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
        // Again, for a cut that came before it was registered.
        self.get().map_or(Poll::Pending, Poll::Ready)
    }
}

/// Belongs to the stream: tells it when to end, and takes it out of the registry when dropped.
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

    /// The same for the task that sends what the client still sends, which is another.
    pub(crate) fn poll_sender_cut(&self, cx: &Context<'_>) -> Poll<CutReason> {
        self.entry.cut.poll(&self.entry.cut.sender, cx)
    }

    /// Has both end at once and for one reason: what a client sends, which is `other`, and its answer.
    #[must_use]
    pub(crate) fn joined(mut self, other: &Self) -> Self {
        let own = std::mem::replace(&mut self.entry.cut, Arc::clone(&other.entry.cut));
        // Joined once.
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

    /// Whether somebody looked at all streams between `since` (from [`Registry::epoch`], taken before the generation
    /// that decided the request) and the registration. Such a look missed this stream: decide again before it begins.
    pub fn missed(&self, since: u64) -> bool {
        self.epoch != since
    }

    pub fn stream(&self) -> &Stream {
        &self.entry.stream
    }

    /// Has the work within which this is called ended, if it has not a moment after the stream was cut.
    pub(crate) fn ends_this_work(&self) {
        let _ = self.entry.cut.abort.set(Abort::of_this_work());
    }

    /// The same of the work that sends what the client still sends, which is a task of its own.
    pub(crate) fn sent_by_this_work(&self) {
        let _ = self.entry.cut.sending.get_or_init(Abort::of_this_work);
    }

    /// Has it end by `latest`, if that is before its deadline.
    pub(crate) fn end_by(&self, latest: Moment) {
        self.shared.end_by(&self.entry, latest);
    }

    /// Ends the stream from the inside, for reasons that it sees itself.
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

    /// Begins the end, as Doorward stops: watches end, whose clients go on elsewhere, and so does from here on what is still on its
    /// way to become a stream that lasts. A shell or a download that is broken off is lost, so that those have until
    /// [`Registry::end_lasting`].
    pub fn drain(&self) -> usize {
        self.shared.open().draining = true;
        self.close_matching(Stream::is_begun_again, CutReason::Draining)
    }

    /// Ends all that lasts, as Doorward stops. Uploads and answers that are only without a length may end by themselves.
    pub fn end_lasting(&self) -> usize {
        self.close_matching(Stream::lasts, CutReason::Draining)
    }

    /// Which look at all streams was the last. See [`StreamHandle::missed`].
    pub fn epoch(&self) -> u64 {
        self.shared.epoch.load(Ordering::Acquire)
    }

    /// Adds a stream. One whose deadline is over is cut at once, and one that lasts while Doorward stops.
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
            // Under the lock: a look that begins later finds the stream, one that began earlier shows in the epoch.
            (entry, self.epoch(), open.draining)
        };
        if draining && entry.stream.lasts() {
            self.shared.cut(&entry, CutReason::Draining);
        }
        let now = self.shared.clock.moment();
        if !now.is_before(deadline) {
            self.shared.expire(&entry, now.shown());
        }
        StreamHandle { epoch, entry, shared: Arc::clone(&self.shared) }
    }

    /// Ends the streams that `matches`, and tells how many.
    pub fn close_matching(&self, mut matches: impl FnMut(&Stream) -> bool, reason: CutReason) -> usize {
        self.each(|entry| matches(&entry.stream) && self.shared.cut(entry, reason))
    }

    /// The streams of tokens about which their issuers are asked.
    pub fn asked(&self) -> Vec<Asked> {
        let open = self.shared.open();
        let asked = open.streams.values().filter(|entry| entry.stream.token.is_some() && entry.cut.get().is_none());
        asked.map(|entry| self.ask_about(entry)).collect()
    }

    /// The streams of sessions, by the name of the session.
    pub fn by_session(&self) -> HashMap<Arc<str>, Vec<Asked>> {
        let open = self.shared.open();
        let mut sessions: HashMap<Arc<str>, Vec<Asked>> = HashMap::new();
        for entry in open.streams.values().filter(|entry| entry.cut.get().is_none()) {
            if let CredentialId::Session(name) = &entry.stream.principal.credential {
                sessions.entry(Arc::clone(name)).or_default().push(self.ask_about(entry));
            }
        }
        sessions
    }

    fn ask_about(&self, entry: &Entry) -> Asked {
        Asked { entry: entry.clone(), shared: Arc::clone(&self.shared) }
    }

    /// Looks at every stream again and ends those that may not go on. `refuses` is not called under a lock.
    pub fn recheck(&self, mut refuses: impl FnMut(&Stream) -> Option<CutReason>) -> usize {
        self.each(|entry| self.refuse(entry, &mut refuses))
    }

    /// The same for looks that take long, as after a reload and at the time boundaries of rules: other tasks go on meanwhile, such as
    /// the one that ends what is revoked.
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

    /// Has those end earlier for which `latest` gives a time before their deadline.
    pub fn end_by(&self, latest: impl Fn(&Stream) -> Option<Moment>) {
        for entry in self.all() {
            if let Some(latest) = latest(&entry.stream) {
                self.shared.end_by(&entry, latest);
            }
        }
    }

    /// Ends the streams whose deadline is over, and tells how many.
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
        over.iter().filter(|entry| self.shared.expire(entry, now.shown())).count()
    }

    /// Ends the work on exchanges whose streams were cut a while ago and may not have ended, since their client, or the upstream of
    /// what that sends, takes nothing. Tells how much work it told to end.
    pub fn abort_stuck(&self) -> usize {
        // What is left of them is dropped without the lock, as it may hold others.
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
            // The work of an answer that has ended may be on the next exchange of its connection.
            cut.sending.get().into_iter().chain(cut.abort.get().filter(|_| *is_there))
        });
        told.map(Abort::abort).count()
    }

    /// Ends streams at their deadlines, and those that do not end, for ever. One task of the control runtime runs it.
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

    /// All streams, for a look at them that those which begin later notice.
    fn all(&self) -> Vec<Entry> {
        let open = self.shared.open();
        self.shared.epoch.fetch_add(1, Ordering::AcqRel);
        open.streams.values().cloned().collect()
    }
}

/// A stream whose token or session is asked about. It may end meanwhile.
#[derive(Debug)]
pub struct Asked {
    entry: Entry,
    shared: Arc<Shared>,
}

impl Asked {
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

    /// An earlier deadline stands beside the first one, and goes when it is over, be the stream there or not.
    fn end_by(&self, entry: &Entry, latest: Moment) {
        let deadline = entry.stream.deadline.min(latest);
        if deadline != entry.stream.deadline {
            self.open().deadlines.insert(deadline, entry.id);
        }
    }

    /// Ends one whose deadline is over.
    fn expire(&self, entry: &Entry, now: Timestamp) -> bool {
        let is_good = entry.stream.principal.ends() > now;
        self.cut(entry, if is_good { CutReason::Overlong } else { CutReason::Expired })
    }

    fn cut(&self, entry: &Entry, reason: CutReason) -> bool {
        let first = entry.cut.set(reason);
        if first {
            let mut open = self.open();
            // Under the lock, as joining is.
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
