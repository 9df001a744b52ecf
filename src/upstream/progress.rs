//! Time limits of exchanges without a timer each. An exchange notes when it last got on; one sweep a worker looks at
//! all of them every [`TICK`] and ends those that stood still for too long. Limits are therefore kept to within a
//! tick or two, and cost a request some stores to memory.

use std::{
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::{task::AbortHandle, time::Instant};

use super::{UpstreamErrorKind, pool::Node};
use crate::{clock::every, lock::lock};

/// How often the sweep looks.
pub(super) const TICK: Duration = Duration::from_millis(100);

const TICKS_A_SECOND: u64 = 1000 / TICK.as_millis() as u64;

/// A sweep that is so many ticks late did not run, and nothing else of its worker either.
const STOOD_STILL: u32 = 10;

/// A limit that no body can go beyond.
const NOT_EXCEEDED: u64 = u64::MAX;

/// A time limit as the sweep counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticks(u32);

impl Ticks {
    /// Whole ticks, at least one, that cover `span`.
    pub(super) fn covering(span: Duration) -> Self {
        Self(u32::try_from(span.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u32::MAX).max(1))
    }

    pub(super) fn span(self) -> Duration {
        TICK * self.0
    }

    /// Whether the limit is over for what has lasted from `since` to `now`.
    pub(super) fn is_over(self, since: u32, now: u32) -> bool {
        now.wrapping_sub(since) > self.0
    }
}

/// How slowly a client may send the body of a request: it may let us wait for so long, and for the time that what it has
/// sent takes at the slowest rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pace {
    patience: Ticks,
    /// Bytes a second.
    rate: u32,
}

impl Pace {
    /// `rate` is in bytes a second.
    pub(super) fn new(patience: Duration, rate: u64) -> Self {
        Self { patience: Ticks::covering(patience), rate: u32::try_from(rate).unwrap_or(u32::MAX) }
    }
}

/// How far one exchange has got. Belongs to a connection on HTTP/1.1 and to a stream on HTTP/2.
#[derive(Debug)]
pub(crate) struct Progress {
    clock: Arc<CoarseClock>,
    last: AtomicU32,
    /// In ticks; zero while nobody waits.
    limit: AtomicU32,
    expired: AtomicBool,
    /// Whether a part of the request's body is not yet handed to the socket.
    request_open: AtomicBool,
    /// Whether nobody takes what is left of it any more.
    request_lost: AtomicBool,
    /// Whether the end of the answer is held back until the request is handed over.
    holds: AtomicBool,
    /// Whether the head of the response is there.
    answered: AtomicBool,
    /// Whether the client's body is what the exchange waits for.
    client_stalls: AtomicBool,
    /// Whether the client's body broke off.
    client_failed: AtomicBool,
    /// The limit that it went beyond.
    exceeded: AtomicU64,
    /// What is asked of the client's body: patience in ticks, zero if nothing is, and bytes a second.
    patience: AtomicU32,
    rate: AtomicU32,
    /// Bytes that came of it, and for how many looks of the sweep it was waited for.
    received: AtomicU64,
    waited: AtomicU32,
    waker: AtomicWaker,
    connection: OnceLock<AbortHandle>,
}

impl Progress {
    /// Begins to wait for an answer, for at most `limit` without progress.
    pub(super) fn begin(&self, limit: Ticks) {
        self.expired.store(false, Ordering::Relaxed);
        self.request_lost.store(false, Ordering::Relaxed);
        self.holds.store(false, Ordering::Relaxed);
        self.answered.store(false, Ordering::Relaxed);
        self.client_stalls.store(false, Ordering::Relaxed);
        self.client_failed.store(false, Ordering::Relaxed);
        self.exceeded.store(NOT_EXCEEDED, Ordering::Relaxed);
        self.patience.store(0, Ordering::Relaxed);
        self.wait(limit);
    }

    /// Asks of the client that its body come at this pace, until the answer begins, and while the end of that is held back.
    pub(super) fn keep_pace(&self, pace: Pace) {
        self.received.store(0, Ordering::Relaxed);
        self.waited.store(0, Ordering::Relaxed);
        self.rate.store(pace.rate, Ordering::Relaxed);
        self.patience.store(pace.patience.0, Ordering::Release);
    }

    /// Whether the client has been waited for longer than what came of its body pays for. One look of the sweep counts for
    /// the tick since the last, and only while it is the client that nothing comes from: an upstream that is slow to take the
    /// body is not the client's fault.
    fn is_too_slow(&self) -> bool {
        let patience = self.patience.load(Ordering::Acquire);
        let nobody_waits = self.answered.load(Ordering::Relaxed) && !self.holds.load(Ordering::Relaxed);
        if patience == 0 || !self.is_stalled_by_client() || nobody_waits {
            return false;
        }
        let waited = self.waited.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let rate = u64::from(self.rate.load(Ordering::Relaxed)).max(1);
        let paid = self.received.load(Ordering::Relaxed).saturating_mul(TICKS_A_SECOND) / rate;
        u64::from(waited) > u64::from(patience) + paid
    }

    /// The head of the answer is there; its body may stand still for `limit`.
    pub(super) fn answered(&self, limit: Ticks) {
        self.answered.store(true, Ordering::Relaxed);
        self.wait(limit);
    }

    fn wait(&self, limit: Ticks) {
        self.touch();
        self.limit.store(limit.0, Ordering::Release);
    }

    /// Notes that something moved.
    pub(crate) fn touch(&self) {
        self.last.store(self.clock.now(), Ordering::Relaxed);
    }

    /// Notes that so many bytes of the client's body came.
    pub(crate) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
        self.touch();
    }

    /// Nobody waits any more.
    pub(super) fn rest(&self) {
        self.limit.store(0, Ordering::Relaxed);
        drop(self.waker.take());
    }

    pub(crate) fn open_request(&self) {
        self.request_open.store(true, Ordering::Relaxed);
    }

    /// The request is handed over whole.
    pub(crate) fn close_request(&self) {
        self.request_open.store(false, Ordering::SeqCst);
        self.release();
    }

    /// The request is over, and if it is open still, it will not be handed over.
    pub(crate) fn lose_request(&self) {
        self.request_lost.store(true, Ordering::SeqCst);
        self.release();
    }

    fn release(&self) {
        if self.holds.load(Ordering::SeqCst) {
            self.waker.wake();
        }
    }

    /// Ready once what follows the request may end: it is handed over, or nobody takes the rest of it. An error if that is the
    /// client's fault.
    pub(super) fn poll_handed_over(&self, cx: &Context<'_>) -> Poll<Result<(), UpstreamErrorKind>> {
        // Before the look at the request, which looks for it after its end.
        self.holds.store(true, Ordering::SeqCst);
        let expired = self.poll_expired(cx).is_ready();
        if !self.request_open.load(Ordering::SeqCst) {
            return Poll::Ready(Ok(()));
        }
        if let Some(limit) = self.exceeded() {
            return Poll::Ready(Err(UpstreamErrorKind::RequestBodyTooLarge(limit)));
        }
        if self.has_client_failed() {
            return Poll::Ready(Err(UpstreamErrorKind::RequestBody));
        }
        if expired && self.is_stalled_by_client() {
            return Poll::Ready(Err(UpstreamErrorKind::RequestBodyTimeout));
        }
        if expired || self.request_lost.load(Ordering::SeqCst) { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// As [`Progress::close_request`]; what counts from here is the answer, which may take `limit`, unless it is
    /// there already.
    pub(crate) fn await_answer(&self, limit: Ticks) {
        self.close_request();
        self.client_stalls.store(false, Ordering::Relaxed);
        if !self.answered.load(Ordering::Relaxed) {
            self.wait(limit);
        }
    }

    pub(super) fn is_request_open(&self) -> bool {
        self.request_open.load(Ordering::Acquire)
    }

    pub(crate) fn client_stalls(&self, stalls: bool) {
        self.client_stalls.store(stalls, Ordering::Relaxed);
    }

    pub(super) fn is_stalled_by_client(&self) -> bool {
        self.client_stalls.load(Ordering::Relaxed)
    }

    pub(crate) fn client_failed(&self) {
        self.client_failed.store(true, Ordering::Release);
    }

    pub(super) fn has_client_failed(&self) -> bool {
        self.client_failed.load(Ordering::Acquire)
    }

    /// The client's body has more than so many bytes, so that no more of it is taken.
    pub(crate) fn exceeds(&self, limit: u64) {
        self.exceeded.store(limit, Ordering::Release);
    }

    pub(super) fn exceeded(&self) -> Option<u64> {
        match self.exceeded.load(Ordering::Acquire) {
            NOT_EXCEEDED => None,
            limit => Some(limit),
        }
    }

    pub(super) fn is_expired(&self) -> bool {
        self.expired.load(Ordering::Acquire)
    }

    /// Ready once the limit is over; the task is woken then.
    pub(super) fn poll_expired(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_expired() {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        // Again, as the sweep may have looked for a waker before there was one.
        if self.is_expired() { Poll::Ready(()) } else { Poll::Pending }
    }

    pub(super) fn set_connection(&self, task: AbortHandle) {
        // Set once, when the connection is opened.
        let _ = self.connection.set(task);
    }

    /// Closes the connection at once, whatever is under way on it.
    pub(super) fn abort(&self) {
        if let Some(task) = self.connection.get() {
            task.abort();
        }
    }

    /// Takes so many ticks before `now` off what it has stood still for. Nothing where it has moved since.
    fn excuse(&self, ticks: u32, now: u32) {
        let last = self.last.load(Ordering::Relaxed);
        if now.wrapping_sub(last) > ticks {
            // If that fails, it has just moved.
            let _ = self.last.compare_exchange(last, last.wrapping_add(ticks), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn check(&self, now: u32) {
        let limit = self.limit.load(Ordering::Acquire);
        if limit == 0 {
            return;
        }
        let is_too_slow = self.is_too_slow();
        if !is_too_slow && !Ticks(limit).is_over(self.last.load(Ordering::Relaxed), now) {
            return;
        }
        self.limit.store(0, Ordering::Relaxed);
        self.expired.store(true, Ordering::Release);
        self.abort();
        self.waker.wake();
    }
}

/// Ticks since the pools were made, as the sweep last saw them.
#[derive(Debug)]
struct CoarseClock {
    start: Instant,
    now: AtomicU32,
}

impl CoarseClock {
    fn now(&self) -> u32 {
        self.now.load(Ordering::Relaxed)
    }

    fn read(&self) -> u32 {
        let now = u32::try_from(self.start.elapsed().as_millis() / TICK.as_millis()).unwrap_or(u32::MAX);
        self.now.store(now, Ordering::Relaxed);
        now
    }
}

/// The sweep of one worker. Runs while there are connections.
#[derive(Debug)]
pub(super) struct Sweep {
    clock: Arc<CoarseClock>,
    watched: Mutex<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    exchanges: Vec<Weak<Progress>>,
    nodes: Vec<Weak<Node>>,
    running: bool,
}

impl Sweep {
    pub(super) fn new() -> Arc<Self> {
        let clock = CoarseClock { start: Instant::now(), now: AtomicU32::new(0) };
        Arc::new(Self { clock: Arc::new(clock), watched: Mutex::default() })
    }

    pub(super) fn now(&self) -> u32 {
        self.clock.now()
    }

    pub(super) fn add_node(&self, node: &Arc<Node>) {
        self.watched().nodes.push(Arc::downgrade(node));
    }

    /// Makes the record of a new exchange and sees to it that somebody looks at it.
    pub(super) fn watch(self: &Arc<Self>) -> Arc<Progress> {
        let progress = Arc::new(Progress {
            clock: Arc::clone(&self.clock),
            last: AtomicU32::new(self.clock.now()),
            limit: AtomicU32::new(0),
            expired: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            request_open: AtomicBool::new(false),
            request_lost: AtomicBool::new(false),
            holds: AtomicBool::new(false),
            client_stalls: AtomicBool::new(false),
            client_failed: AtomicBool::new(false),
            exceeded: AtomicU64::new(NOT_EXCEEDED),
            patience: AtomicU32::new(0),
            rate: AtomicU32::new(0),
            received: AtomicU64::new(0),
            waited: AtomicU32::new(0),
            waker: AtomicWaker::new(),
            connection: OnceLock::new(),
        });
        let mut watched = self.watched();
        watched.exchanges.push(Arc::downgrade(&progress));
        if !watched.running {
            watched.running = true;
            self.clock.read();
            progress.touch();
            tokio::spawn(run(Arc::downgrade(self)));
        }
        progress
    }

    fn watched(&self) -> std::sync::MutexGuard<'_, Watched> {
        lock(&self.watched)
    }

    /// Looks at everything once; false when there is nothing left to look at.
    fn turn(&self) -> bool {
        let before = self.clock.now();
        let now = self.clock.read();
        // What came meanwhile is still to be read, and what begins before this look began by the time of the last.
        let missed = now.wrapping_sub(before).saturating_sub(1);
        let excused = (missed >= STOOD_STILL).then_some(missed);
        let mut nodes = Vec::new();
        let more = {
            let mut watched = self.watched();
            watched.exchanges.retain(|exchange| match exchange.upgrade() {
                Some(exchange) => {
                    if let Some(missed) = excused {
                        exchange.excuse(missed, now);
                    }
                    exchange.check(now);
                    true
                }
                None => false,
            });
            watched.nodes.retain(|node| match node.upgrade() {
                Some(node) => {
                    nodes.push(node);
                    true
                }
                None => false,
            });
            watched.running = !watched.exchanges.is_empty();
            watched.running
        };
        for node in nodes {
            node.tidy(now);
        }
        more
    }
}

async fn run(sweep: Weak<Sweep>) {
    let mut tick = every(TICK);
    loop {
        tick.tick().await;
        match sweep.upgrade() {
            Some(sweep) if sweep.turn() => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many looks of the sweep it takes until the exchange is given up, of at most 100.
    fn looks(sweep: &Arc<Sweep>, progress: &Progress) -> Option<u32> {
        (1..=100).find(|_| {
            sweep.turn();
            progress.is_expired()
        })
    }

    #[tokio::test]
    async fn a_client_is_waited_for_as_long_as_what_it_sends_pays_for() {
        let sweep = Sweep::new();
        let progress = sweep.watch();
        let begin = || {
            progress.begin(Ticks(1_000_000));
            progress.keep_pace(Pace::new(Duration::from_millis(500), 1000));
            progress.client_stalls(true);
        };
        begin();
        assert_eq!(looks(&sweep, &progress), Some(6), "its patience");
        begin();
        progress.received(1000);
        assert_eq!(looks(&sweep, &progress), Some(16), "and a second for a thousand bytes");
        begin();
        progress.client_stalls(false);
        assert_eq!(looks(&sweep, &progress), None, "the upstream is slow to take it");
        begin();
        progress.answered(Ticks(1_000_000));
        assert_eq!(looks(&sweep, &progress), None, "it is answered");
        begin();
        progress.open_request();
        progress.answered(Ticks(1_000_000));
        let cx = Context::from_waker(std::task::Waker::noop());
        assert_eq!(progress.poll_handed_over(&cx), Poll::Pending);
        assert_eq!(looks(&sweep, &progress), Some(6), "the end of the answer waits for it");
        assert_eq!(progress.poll_handed_over(&cx), Poll::Ready(Err(UpstreamErrorKind::RequestBodyTimeout)));
        progress.close_request();
        begin();
        progress.begin(Ticks(1_000_000));
        progress.client_stalls(true);
        assert_eq!(looks(&sweep, &progress), None, "the next exchange of the connection has no such limit");
    }

    /// All exchanges of a worker that had stood still for longer than they may take were given up when it went on, also those that
    /// began only then.
    #[tokio::test(start_paused = true)]
    async fn the_time_for_which_a_worker_stood_still_counts_for_no_exchange() {
        let sweep = Sweep::new();
        // It looks when this test says so.
        sweep.watched().running = true;
        let begin = || {
            let progress = sweep.watch();
            progress.begin(Ticks(300));
            progress
        };
        let before = begin();
        for _ in 0..100 {
            tokio::time::advance(TICK).await;
            sweep.turn();
        }
        tokio::time::advance(TICK * 600).await;
        let after = begin();
        sweep.turn();
        let mut looks = [0; 2];
        for look in 1..=400 {
            tokio::time::advance(TICK).await;
            sweep.turn();
            for (looks, progress) in looks.iter_mut().zip([&before, &after]) {
                if *looks == 0 && progress.is_expired() {
                    *looks = look;
                }
            }
        }
        assert_eq!(looks, [200, 300]);
    }
}
