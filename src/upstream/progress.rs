//! Time limits for exchanges without a timer for each. An exchange records when it last made progress. One sweep per
//! worker checks all exchanges every [`TICK`] and ends those that stalled for too long. Limits are therefore accurate
//! to a tick or two, and cost a request a few stores to memory.

mod unread;

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

use self::unread::NOBODY;
use super::{UpstreamErrorKind, pool::Node};
use crate::{clock::every, lock::lock};

/// How often the sweep runs.
pub(super) const TICK: Duration = Duration::from_millis(100);

const TICKS_A_SECOND: u64 = 1000 / TICK.as_millis() as u64;

/// If the sweep is this many ticks late, its whole worker was stalled.
const STOOD_STILL: u32 = 10;

/// No limit on the body was exceeded.
const NOT_EXCEEDED: u64 = u64::MAX;

/// A time limit in ticks of the sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticks(u32);

impl Ticks {
    /// The number of whole ticks that cover `span`, at least one.
    pub(super) fn covering(span: Duration) -> Self {
        Self(u32::try_from(span.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u32::MAX).max(1))
    }

    pub(super) fn span(self) -> Duration {
        TICK * self.0
    }

    /// Whether what began at `since` has exceeded the limit at `now`.
    pub(super) fn is_over(self, since: u32, now: u32) -> bool {
        now.wrapping_sub(since) > self.0
    }
}

/// How slowly a client may send the body of a request. Doorward waits for `patience`, plus the time that the bytes
/// received so far take at the slowest `rate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pace {
    patience: Ticks,
    /// Bytes per second.
    rate: u32,
}

impl Pace {
    /// `rate` is in bytes per second.
    pub(super) fn new(patience: Duration, rate: u64) -> Self {
        Self { patience: Ticks::covering(patience), rate: u32::try_from(rate).unwrap_or(u32::MAX) }
    }
}

/// The progress of one exchange. Belongs to a connection on HTTP/1.1 and to a stream on HTTP/2.
#[derive(Debug)]
pub(crate) struct Progress {
    clock: Arc<CoarseClock>,
    last: AtomicU32,
    /// The ticks without progress that were deducted, and the value of `last` since then.
    excused: AtomicU32,
    excused_to: AtomicU32,
    /// In ticks; zero while nothing is awaited.
    limit: AtomicU32,
    expired: AtomicBool,
    /// Whether a part of the request body has not been handed to the socket yet.
    request_open: AtomicBool,
    /// Whether the rest of the request body will never be read.
    request_lost: AtomicBool,
    /// Whether the end of the response is held back until the request is handed over.
    holds: AtomicBool,
    /// Whether the head of the response has arrived.
    answered: AtomicBool,
    /// Whether the exchange is waiting for the client's body.
    client_stalls: AtomicBool,
    /// Whether the client's body ended early.
    client_failed: AtomicBool,
    /// The size limit that the client's body exceeded.
    exceeded: AtomicU64,
    /// The pace required of the client's body: patience in ticks (zero: none required) and bytes per second.
    patience: AtomicU32,
    rate: AtomicU32,
    /// Bytes of the client's body received, and for how many sweeps the client was waited for.
    received: AtomicU64,
    waited: AtomicU32,
    /// The client that the response is sent to, and whether it has yet to read what has arrived.
    reader: AtomicU64,
    unread: AtomicBool,
    waker: AtomicWaker,
    /// The task of an HTTP/1.1 connection, and the pool that it belongs to.
    connection: OnceLock<(AbortHandle, Weak<Node>)>,
}

impl Progress {
    /// Starts waiting for a response, for at most `limit` without progress.
    pub(super) fn begin(&self, limit: Ticks) {
        self.expired.store(false, Ordering::Relaxed);
        self.request_lost.store(false, Ordering::Relaxed);
        self.holds.store(false, Ordering::Relaxed);
        self.answered.store(false, Ordering::Relaxed);
        self.client_stalls.store(false, Ordering::Relaxed);
        self.client_failed.store(false, Ordering::Relaxed);
        self.exceeded.store(NOT_EXCEEDED, Ordering::Relaxed);
        self.patience.store(0, Ordering::Relaxed);
        self.reader.store(NOBODY, Ordering::Relaxed);
        self.wait(limit);
    }

    /// Requires this pace of the client's body until the response begins, and while the end of the response is held
    /// back.
    pub(super) fn keep_pace(&self, pace: Pace) {
        self.received.store(0, Ordering::Relaxed);
        self.waited.store(0, Ordering::Relaxed);
        self.rate.store(pace.rate, Ordering::Relaxed);
        self.patience.store(pace.patience.0, Ordering::Release);
    }

    /// Whether the client was waited for longer than its bytes allow. A sweep counts as one tick, and only while the
    /// exchange waits for the client: an upstream that reads slowly is not the client's fault.
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

    /// Records that the head of the response has arrived. Its body may stall for `limit`.
    pub(super) fn answered(&self, limit: Ticks) {
        self.answered.store(true, Ordering::Relaxed);
        self.wait(limit);
    }

    fn wait(&self, limit: Ticks) {
        self.touch();
        self.limit.store(limit.0, Ordering::Release);
    }

    /// Records progress.
    pub(crate) fn touch(&self) {
        self.last.store(self.clock.now(), Ordering::Relaxed);
    }

    /// Records that `bytes` of the client's body arrived.
    pub(crate) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
        self.touch();
    }

    /// Stops the time limit.
    pub(super) fn rest(&self) {
        self.limit.store(0, Ordering::Relaxed);
        drop(self.waker.take());
    }

    pub(crate) fn open_request(&self) {
        self.request_open.store(true, Ordering::Relaxed);
    }

    /// Records that the request is completely handed over.
    pub(crate) fn close_request(&self) {
        self.request_open.store(false, Ordering::SeqCst);
        self.release();
    }

    /// Records that the request has ended. What was not handed over never will be.
    pub(crate) fn lose_request(&self) {
        self.request_lost.store(true, Ordering::SeqCst);
        self.release();
    }

    fn release(&self) {
        if self.holds.load(Ordering::SeqCst) {
            self.waker.wake();
        }
    }

    /// Ready once the response may end: the request is handed over, or the rest of it will never be read. An error if
    /// that is the client's fault.
    pub(super) fn poll_handed_over(&self, cx: &Context<'_>) -> Poll<Result<(), UpstreamErrorKind>> {
        // Set before the request is checked: a request that ends later reads it.
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

    /// As [`Progress::close_request`]; from here on the response may take `limit`, unless it has already begun.
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

    /// Records that the client's body exceeds `limit` bytes, so that no more of it is read.
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

    /// Ready once the time limit has passed; wakes the task then.
    pub(super) fn poll_expired(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_expired() {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        // Checked again, as the sweep may have run before the waker was registered.
        if self.is_expired() { Poll::Ready(()) } else { Poll::Pending }
    }

    pub(super) fn set_connection(&self, task: AbortHandle, node: &Arc<Node>) {
        // Set once, when the connection is opened.
        let _ = self.connection.set((task, Arc::downgrade(node)));
    }

    /// Closes the connection at once, whatever is in progress on it.
    pub(super) fn abort(&self) {
        if let Some((task, _)) = self.connection.get() {
            task.abort();
        }
    }

    /// Deducts `ticks` before `now` from the time without progress. Does nothing if there was progress since, or if as
    /// much as the limit was deducted without any: the exchange itself may be what stalls the worker.
    fn excuse(&self, ticks: u32, now: u32) {
        let last = self.last.load(Ordering::Relaxed);
        let has_moved = last != self.excused_to.load(Ordering::Relaxed);
        let excused = if has_moved { 0 } else { self.excused.load(Ordering::Relaxed) };
        if now.wrapping_sub(last) <= ticks || excused >= self.limit.load(Ordering::Relaxed) {
            return;
        }
        let to = last.wrapping_add(ticks);
        // If that fails, there was progress just now.
        if self.last.compare_exchange(last, to, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.excused.store(excused.saturating_add(ticks), Ordering::Relaxed);
            self.excused_to.store(to, Ordering::Relaxed);
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
        self.expire();
    }

    fn expire(&self) {
        self.limit.store(0, Ordering::Relaxed);
        self.expired.store(true, Ordering::Release);
        self.abort();
        self.waker.wake();
    }
}

/// Ticks since the pools were created, as of the last sweep.
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

/// The sweep of one worker. It runs while there are connections.
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

    /// Creates the progress record of a new exchange and starts the sweep if it does not run.
    pub(super) fn watch(self: &Arc<Self>) -> Arc<Progress> {
        let progress = Arc::new(Progress {
            clock: Arc::clone(&self.clock),
            last: AtomicU32::new(self.clock.now()),
            excused: AtomicU32::new(0),
            excused_to: AtomicU32::new(0),
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
            reader: AtomicU64::new(NOBODY),
            unread: AtomicBool::new(false),
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

    /// Checks everything once. Returns false when nothing is left to check.
    fn turn(&self) -> bool {
        let before = self.clock.now();
        let now = self.clock.read();
        // Data that arrived meanwhile is still unread, and exchanges that began before this sweep have the time of the
        // previous one.
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
            if let Some(shortage) = node.shortage() {
                self.end_unread(&node, shortage, now);
            }
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
mod tests;
