//! What a connection is doing, and when that has lasted too long.
//!
//! # Deadlines without timers
//!
//! hyper's own header timeout also covers the idle time between requests, and arms a timer for every request, which
//! costs as much as a tenth of a plain proxied request. Here no timer is armed and no clock is read while requests
//! flow. Each connection stores its [`Phase`] and how long it has lasted, which every change of phase resets to zero. A
//! sweep, one for each worker, visits the connections in a fixed step (a twentieth of the shortest limit, at most a
//! second, and half of `http2_reset_within`), adds the step and acts on those beyond their limit. A limit is thus kept
//! to within two steps.
//!
//! | phase | begins with | limit | then |
//! |---|---|---|---|
//! | `Opening` | accept | `handshake_timeout`, `header_timeout` (timers of their own, once a connection) | closed |
//! | `Head` | the connection is open, or the first byte of a further head | `header_timeout` in all, however the bytes drip | closed |
//! | `Busy` | a request is being served | `stream_idle_timeout` while the client takes nothing of what there is for it | closed; on HTTP/2 its stream is reset if others are in progress |
//! | `Idle` | the last response has been handed over, on HTTP/2 written | `idle_timeout` | closed gracefully |
//! | `Upgraded` | a 101 | none here: the registry of streams has its own | |
//!
//! On HTTP/2 there is one `Head` phase, before the first request. Later heads cannot be told from other frames here, so
//! bytes that arrive neither end nor prolong `Idle`: a peer that sends pings or drips a header block is still closed
//! after `idle_timeout`.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;

use super::{
    Protocol,
    answer::Answer,
    framing::{Defect, Scanner},
    metrics::Expired,
};
use crate::{config::raw::Limits, lock::lock};

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    Opening,
    Head,
    Busy,
    Idle,
    Upgraded,
}

impl Phase {
    const fn from_u8(number: u8) -> Self {
        match number {
            0 => Self::Opening,
            1 => Self::Head,
            2 => Self::Busy,
            3 => Self::Idle,
            _ => Self::Upgraded,
        }
    }
}

/// What a connection is told to do; only ever raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Command {
    Run,
    /// Take no further requests and close when those in progress have ended.
    Finish,
    /// Close at once.
    Abort,
}

/// How many times shorter idle connections are kept when memory is short.
const HURRY: u32 = 10;

/// One pass of the sweep over all connections of a worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sweep {
    /// The time since the last one.
    pub(super) step: Duration,
    /// Memory is short: idle connections have less time.
    pub(super) hurried: bool,
}

/// The part of a connection that its task, its bytes, its requests and the sweep share.
///
/// The fields are atomic so that futures are `Send`; all of them are touched by one worker only.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    phase: AtomicU8,
    /// How many milliseconds the phase has lasted, or nothing was taken in it.
    age: AtomicU32,
    /// The sum of the steps of all sweeps, in milliseconds, by which streams are timed without reading the clock.
    swept: AtomicU32,
    /// Whether bytes were written since the last sweep.
    wrote: AtomicBool,
    /// Whether the client takes nothing of what is written.
    blocked: AtomicBool,
    /// HTTP/2: the responses in transit, and when, in the time of the sweeps, the client last took from one that had
    /// more than it took. Writes do not show that, as answers to pings are writes, too.
    answers: Mutex<Vec<Weak<Answer>>>,
    taken: AtomicU32,
    command: AtomicU8,
    task: AtomicWaker,
    /// Requests in progress.
    active: AtomicU32,
    /// How many requests of the current window have ended, and how many of those the client reset early and before a
    /// response.
    ended: AtomicU32,
    reset: AtomicU32,
    flooded: AtomicBool,
    /// Whether it was cut at the end of the drain.
    cut_by_drain: AtomicBool,
    /// Whether HTTP/2 ended it for small pieces of bodies that waited to be read.
    small_pieces: AtomicBool,
    /// How many requests make a window (CVE-2023-44487), and how many resets among them make a flood.
    reset_window: u32,
    resets: u32,
    /// Up to which age of its stream a reset counts as one that costs its sender nothing, in milliseconds. A client
    /// that waited longer had a stream open all that time, of which there are only so many; deadlines of gRPC expire so
    /// while an upstream is slow.
    reset_within: u32,
    /// The peer carries the requests of many clients, who are not responsible for each other's resets.
    is_shared: AtomicBool,
    /// HTTP/1.1: scanned heads whose requests have not begun yet, whether part of a head or of a body is on its way,
    /// and what is wrong with the heads.
    heads: AtomicU32,
    within_head: AtomicBool,
    within_body: AtomicBool,
    defect: OnceLock<Defect>,
}

impl Liveness {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            phase: AtomicU8::new(Phase::Opening as u8),
            command: AtomicU8::new(Command::Run as u8),
            reset_window: limits.http2_reset_window,
            resets: share_of(limits.http2_reset_window, limits.http2_reset_share),
            reset_within: u32::try_from(limits.http2_reset_within.get().as_millis()).unwrap_or(u32::MAX),
            ..Self::default()
        }
    }

    /// From now on its resets are not judged by their share, and h2 tolerates more of them.
    pub(super) fn mark_shared(&self) {
        self.is_shared.store(true, Relaxed);
    }

    pub(super) fn is_shared(&self) -> bool {
        self.is_shared.load(Relaxed)
    }

    pub(super) fn phase(&self) -> Phase {
        Phase::from_u8(self.phase.load(Relaxed))
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
        self.age.store(0, Relaxed);
    }

    /// Tells the connection what to do. A weaker command than the last has no effect.
    pub(super) fn command(&self, command: Command) {
        if self.command.fetch_max(command as u8, Relaxed) < command as u8 {
            self.task.wake();
        }
    }

    pub(super) fn is_commanded(&self, command: Command) -> bool {
        self.command.load(Relaxed) >= command as u8
    }

    /// Makes commands wake the task that polls now.
    pub(super) fn register(&self, context: &Context<'_>) {
        self.task.register(context.waker());
    }

    /// Completes when the connection is to be closed at once.
    pub(super) async fn aborted(&self) {
        let mut registered = false;
        poll_fn(|context| {
            // The waker of a spawned task never changes.
            if !registered {
                self.register(context);
                registered = true;
            }
            if self.is_commanded(Command::Abort) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// A request begins. On HTTP/1.1, returns `false` if its head was not scanned.
    pub(super) fn begin_request(&self) -> bool {
        self.active.fetch_add(1, Relaxed);
        self.enter(Phase::Busy);
        let heads = self.heads.load(Relaxed);
        self.heads.store(heads.saturating_sub(1), Relaxed);
        heads > 0
    }

    /// The time of the sweeps, which a request notes when it begins.
    pub(super) fn swept(&self) -> u32 {
        self.swept.load(Relaxed)
    }

    /// A request that began at `since` ends; `answered` says whether the service gave a response. A client that resets
    /// most of its streams early and before a response loses the connection, but not one that speaks for many.
    pub(super) fn end_request(&self, answered: bool, since: u32) {
        if self.active.fetch_sub(1, Relaxed) == 1 && self.phase() != Phase::Upgraded {
            self.enter(if self.within_head.load(Relaxed) { Phase::Head } else { Phase::Idle });
        }
        if self.is_shared() {
            return;
        }
        let early = self.swept().wrapping_sub(since) < self.reset_within;
        let reset = self.reset.load(Relaxed) + u32::from(!answered && early);
        let ended = self.ended.load(Relaxed) + 1;
        if ended < self.reset_window {
            self.reset.store(reset, Relaxed);
            self.ended.store(ended, Relaxed);
            return;
        }
        self.reset.store(0, Relaxed);
        self.ended.store(0, Relaxed);
        if reset >= self.resets {
            self.flooded.store(true, Relaxed);
            self.command(Command::Abort);
        }
    }

    /// Marks a client that resets streams faster than HTTP/2 itself allows.
    pub(super) fn mark_flooded(&self) {
        self.flooded.store(true, Relaxed);
    }

    /// Notes whether what was written last ends the connection for small pieces of bodies that waited to be read, which
    /// gRPC clients send in good faith.
    pub(super) fn note_small_pieces(&self, ends: bool) {
        self.small_pieces.store(ends, Relaxed);
    }

    pub(super) fn is_of_small_pieces(&self) -> bool {
        self.small_pieces.load(Relaxed)
    }

    /// Whether the connection was closed because its client flooded Doorward.
    pub(super) fn is_flooded(&self) -> bool {
        self.flooded.load(Relaxed)
    }

    /// Closes the connection at once, as the drain is over.
    pub(super) fn end_drain(&self) {
        if !self.is_commanded(Command::Abort) {
            self.cut_by_drain.store(true, Relaxed);
            self.command(Command::Abort);
        }
    }

    /// Whether the end of the drain closed the connection, and not its client.
    pub(super) fn is_cut_by_drain(&self) -> bool {
        self.cut_by_drain.load(Relaxed)
    }

    /// Takes over what the scanner found in the bytes of one read.
    pub(super) fn note_scan(&self, scanner: &mut Scanner) {
        let heads = scanner.take_heads();
        if heads > 0 {
            self.heads.fetch_add(heads, Relaxed);
        }
        self.within_head.store(scanner.is_within_head(), Relaxed);
        self.within_body.store(scanner.is_within_body(), Relaxed);
        if let Some(defect) = scanner.defect() {
            // The first defect stays, as in the scanner.
            let _ = self.defect.set(defect);
        }
    }

    /// Whether a head has ended whose request has not begun yet; HTTP/1.1 only.
    pub(super) fn has_head(&self) -> bool {
        self.heads.load(Relaxed) > 0
    }

    pub(super) fn defect(&self) -> Option<Defect> {
        self.defect.get().copied()
    }

    /// Whether the client may still be sending a body.
    pub(super) fn is_within_body(&self) -> bool {
        self.within_body.load(Relaxed)
    }

    /// The client has taken bytes.
    pub(super) fn note_write(&self) {
        self.wrote.store(true, Relaxed);
        self.blocked.store(false, Relaxed);
    }

    /// The client takes no bytes at the moment.
    pub(super) fn note_blocked(&self) {
        self.blocked.store(true, Relaxed);
    }

    /// An HTTP/2 response is in transit.
    pub(super) fn begin_answer(&self, answer: &Arc<Answer>) {
        lock(&self.answers).push(Arc::downgrade(answer));
    }

    /// Removes the responses that are gone.
    pub(super) fn forget_answers(&self) {
        lock(&self.answers).retain(|answer| answer.strong_count() > 0);
    }

    /// The client has taken from a response that had more for it than it took.
    pub(super) fn note_taken(&self) {
        self.taken.store(self.swept(), Relaxed);
    }

    /// Cuts the responses from which the client has taken nothing for longer than `limit`, if it has not taken from
    /// another one that waits either. Returns `true` if nothing else is in progress, so that the connection must end
    /// with them.
    fn cut_unread(&self, limit: Duration) -> bool {
        let (now, taken) = (self.swept(), self.taken.load(Relaxed));
        let lasts = |since| Duration::from_millis(now.wrapping_sub(since).into());
        let is_unread = |since| lasts(since).min(lasts(taken)) > limit;
        let mut unread: Vec<_> = lock(&self.answers).iter().filter_map(Weak::upgrade).collect();
        unread.retain(|answer| answer.withheld_since().is_some_and(is_unread));
        let others = (self.active.load(Relaxed) as usize).saturating_sub(unread.len());
        if others > 0 {
            unread.iter().for_each(|answer| answer.cut());
        }
        others == 0 && !unread.is_empty()
    }

    /// Adds the step of a sweep, and closes the connection if it is beyond a limit.
    pub(super) fn sweep(&self, sweep: Sweep, limits: &Limits, protocol: Protocol) -> Option<Expired> {
        let http2 = protocol == Protocol::Http2;
        self.swept.fetch_add(u32::try_from(sweep.step.as_millis()).unwrap_or(u32::MAX), Relaxed);
        let wrote = self.wrote.swap(false, Relaxed);
        let phase = self.phase();
        let counts = match phase {
            Phase::Opening | Phase::Upgraded => return None,
            Phase::Head => true,
            Phase::Busy if http2 && self.cut_unread(limits.stream_idle_timeout.get()) => {
                return self.expire(Command::Abort, Expired::Stalled);
            }
            Phase::Busy => self.blocked.load(Relaxed) && !wrote,
            Phase::Idle => http2 || !wrote,
        };
        if !counts {
            self.age.store(0, Relaxed);
            return None;
        }
        let age = Duration::from_millis(self.age.load(Relaxed).into()) + sweep.step;
        self.age.store(u32::try_from(age.as_millis()).unwrap_or(u32::MAX), Relaxed);
        let idle_timeout = limits.idle_timeout.get() / if sweep.hurried { HURRY } else { 1 };
        match phase {
            Phase::Head if age > limits.header_timeout.get() => self.expire(Command::Abort, Expired::Head),
            Phase::Busy if age > limits.stream_idle_timeout.get() => self.expire(Command::Abort, Expired::Stalled),
            // A peer that does not take even the end of its connection.
            Phase::Idle if age > idle_timeout + limits.header_timeout.get() => {
                self.expire(Command::Abort, Expired::Idle)
            }
            Phase::Idle if age > idle_timeout => self.expire(Command::Finish, Expired::Idle),
            _ => None,
        }
    }

    fn expire(&self, command: Command, why: Expired) -> Option<Expired> {
        let counted = self.is_commanded(Command::Finish);
        self.command(command);
        (!counted).then_some(why)
    }
}

/// This percentage of a number, rounded up.
fn share_of(number: u32, percent: u8) -> u32 {
    u32::try_from((u64::from(number) * u64::from(percent)).div_ceil(100)).unwrap_or(u32::MAX)
}

/// The step of the sweep for these limits.
pub(super) fn step(limits: &Limits) -> Duration {
    let shortest = limits.header_timeout.min(limits.idle_timeout).min(limits.stream_idle_timeout).get();
    let most = Duration::from_secs(1).min(limits.http2_reset_within.get() / 2);
    (shortest / 20).min(most).max(Duration::from_millis(5))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::values::Span, downstream::answer::InFlight};

    /// Sweeps with steps of a second until the connection is told something, for at most two hours.
    fn lasts(liveness: &Liveness, protocol: Protocol, mut each: impl FnMut(&Liveness)) -> Option<(u32, Command)> {
        let limits = Limits::default();
        (1..7200).find_map(|second| {
            each(liveness);
            liveness.sweep(Sweep { step: Duration::from_secs(1), hurried: false }, &limits, protocol)?;
            Some((second, if liveness.is_commanded(Command::Abort) { Command::Abort } else { Command::Finish }))
        })
    }

    #[test]
    fn phases_end_at_their_limits() {
        let in_phase = |phase| {
            let liveness = Liveness::new(&Limits::default());
            liveness.enter(phase);
            liveness
        };
        assert_eq!(lasts(&in_phase(Phase::Head), Protocol::Http1, |_| ()), Some((11, Command::Abort)));
        assert_eq!(lasts(&in_phase(Phase::Idle), Protocol::Http1, |_| ()), Some((76, Command::Finish)));
        assert_eq!(lasts(&in_phase(Phase::Busy), Protocol::Http1, Liveness::note_blocked), Some((301, Command::Abort)));
        assert_eq!(lasts(&in_phase(Phase::Busy), Protocol::Http1, |_| ()), None);
        assert_eq!(lasts(&in_phase(Phase::Busy), Protocol::Http2, |_| ()), None);
        assert_eq!(lasts(&in_phase(Phase::Opening), Protocol::Http1, |_| ()), None);
        assert_eq!(lasts(&in_phase(Phase::Upgraded), Protocol::Http1, |_| ()), None);
    }

    #[test]
    fn an_unused_connection_has_less_time_when_memory_is_short_and_others_as_much() {
        let told = |phase, seconds| {
            let liveness = Liveness::new(&Limits::default());
            liveness.enter(phase);
            let sweep = Sweep { step: Duration::from_secs(seconds), hurried: true };
            liveness.sweep(sweep, &Limits::default(), Protocol::Http1)
        };
        assert_eq!((told(Phase::Idle, 7), told(Phase::Idle, 8)), (None, Some(Expired::Idle)));
        assert_eq!((told(Phase::Head, 10), told(Phase::Head, 11)), (None, Some(Expired::Head)));
        assert_eq!(told(Phase::Busy, 3600), None);
    }

    #[test]
    fn writing_prolongs_a_slow_response_but_no_head_and_no_idle_http2() {
        let idle = Liveness::new(&Limits::default());
        idle.enter(Phase::Idle);
        assert_eq!(lasts(&idle, Protocol::Http1, Liveness::note_write), None);
        assert_eq!(lasts(&idle, Protocol::Http2, Liveness::note_write), Some((76, Command::Finish)));
        let head = Liveness::new(&Limits::default());
        head.enter(Phase::Head);
        assert_eq!(lasts(&head, Protocol::Http1, Liveness::note_write), Some((11, Command::Abort)));
    }

    /// A request whose response has more for the client than it takes.
    fn unread(liveness: &Arc<Liveness>) -> Arc<Answer> {
        liveness.begin_request();
        Answer::begin(InFlight::new(Arc::clone(liveness)))
    }

    #[test]
    fn a_stream_that_the_client_does_not_take_from_ends_its_connection() {
        let liveness = Arc::new(Liveness::new(&Limits::default()));
        let _answer = unread(&liveness);
        assert_eq!(lasts(&liveness, Protocol::Http2, Liveness::note_write), Some((301, Command::Abort)));

        let liveness = Arc::new(Liveness::new(&Limits::default()));
        let answer = unread(&liveness);
        let moves = |_: &Liveness| {
            answer.release();
            answer.withhold();
        };
        assert_eq!(lasts(&liveness, Protocol::Http2, moves), None);
    }

    #[test]
    fn it_ends_no_connection_on_which_another_is_quiet_until_that_waits_too() {
        let liveness = Arc::new(Liveness::new(&Limits::default()));
        let (_unread, quiet) = (unread(&liveness), unread(&liveness));
        quiet.release();
        assert_eq!(lasts(&liveness, Protocol::Http2, |_| ()), None);
        // It has its full time, however long the other has waited.
        quiet.withhold();
        assert_eq!(lasts(&liveness, Protocol::Http2, |_| ()), Some((301, Command::Abort)));
        drop(quiet);
        assert_eq!(lock(&liveness.answers).len(), 1);
    }

    #[test]
    fn resets_are_judged_by_their_share() {
        let share = Limits::default().http2_reset_share;
        for (http2_reset_share, answered_of_ten, expected) in
            [(share, 4, true), (share, 6, false), (70, 4, false), (70, 2, true), (30, 6, true)]
        {
            let liveness = Liveness::new(&Limits { http2_reset_share, ..Limits::default() });
            let closed = (0..400).any(|stream| {
                liveness.begin_request();
                liveness.end_request(stream % 10 < answered_of_ten, liveness.swept());
                liveness.is_flooded()
            });
            assert_eq!(closed, expected, "{answered_of_ten} of ten answered, {http2_reset_share} %");
        }
    }

    /// When an upstream became slow, a whole office was locked out, as the deadlines of its gRPC calls expired.
    #[test]
    fn a_reset_after_a_second_is_no_flood_and_an_immediate_one_is() {
        for (seconds, expected) in [(0, true), (1, false), (2, false)] {
            let liveness = Liveness::new(&Limits::default());
            let closed = (0..20).any(|_| {
                let begin = |_| {
                    liveness.begin_request();
                    liveness.swept()
                };
                let streams: Vec<_> = (0..20).map(begin).collect();
                for _ in 0..seconds {
                    let sweep = Sweep { step: Duration::from_secs(1), hurried: false };
                    liveness.sweep(sweep, &Limits::default(), Protocol::Http2);
                }
                streams.into_iter().for_each(|since| liveness.end_request(false, since));
                liveness.is_flooded()
            });
            assert_eq!(closed, expected, "after {seconds} sweeps of a second");
        }
    }

    #[test]
    fn the_time_within_which_a_reset_counts_as_flood_can_be_set() {
        for (within, after, expected) in [(1000, 500, true), (400, 500, false), (400, 200, true), (3000, 2500, true)] {
            let limits = Limits { http2_reset_within: Span::from_millis(within), ..Limits::default() };
            assert!(step(&limits) <= Duration::from_millis(within / 2), "the sweeps of {within} ms cannot tell");
            let liveness = Liveness::new(&limits);
            let closed = (0..400).any(|_| {
                liveness.begin_request();
                let since = liveness.swept();
                let sweep = Sweep { step: Duration::from_millis(after), hurried: false };
                liveness.sweep(sweep, &limits, Protocol::Http2);
                liveness.end_request(false, since);
                liveness.is_flooded()
            });
            assert_eq!(closed, expected, "within {within} ms, reset after {after} ms");
        }
    }

    #[test]
    fn a_connection_that_serves_many_clients_is_not_judged_as_a_flood() {
        let liveness = Liveness::new(&Limits::default());
        liveness.mark_shared();
        for _ in 0..400 {
            liveness.begin_request();
            liveness.end_request(false, liveness.swept());
        }
        assert!(!liveness.is_flooded() && !liveness.is_commanded(Command::Abort));
        assert_eq!(liveness.phase(), Phase::Idle);
    }

    #[test]
    fn the_window_in_which_they_are_judged_can_be_set() {
        let liveness = Liveness::new(&Limits { http2_reset_window: 10, ..Limits::default() });
        let closed_at = (1..=400).find(|_| {
            liveness.begin_request();
            liveness.end_request(false, liveness.swept());
            liveness.is_flooded()
        });
        assert_eq!(closed_at, Some(10));
    }
}
