//! Detects a sink that hangs, and one that is repeatedly slow. A hang is detected by the clock when somebody asks, so
//! that it shows even if all waiting requests have shorter deadlines. No single wait shows repeated slowness.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use crate::lock::lock;

/// How long a request waits for the trail: for space in the queue, and again for a durable write. A disk or a reader of
/// standard output may stall for a moment; one that hangs for this long is treated as full.
pub(super) const MAX_STALL: Duration = Duration::from_secs(10);

/// Why requests cannot be recorded while the sink hangs.
pub(super) const STALLED: &str = "its disk, or the reader of standard output, has not accepted one commit within 10 s";

/// A commit that takes this long is slow. Requests that need a record wait for it, but none is refused before
/// [`MAX_STALL`].
const SLOW: Duration = Duration::from_secs(5);

/// How many slow commits, each within a minute of the one before, are logged: a disk may stall once.
const IN_A_ROW: u32 = 3;
const MINUTE: Duration = Duration::from_secs(60);

/// Knows since when the trail's thread has been busy with the current commit, however many calls of the sink it takes:
/// waiting requests wait for all of them.
#[derive(Debug)]
pub(super) struct Watchdog {
    began: Instant,
    /// When the current commit began, in milliseconds since `began`, plus one. 0 if the thread is idle.
    entered: AtomicU64,
    /// Whether the current stall has been logged.
    is_told: AtomicBool,
    slow: Mutex<Slow>,
    slow_commits: Counter,
}

/// A row of slow commits.
#[derive(Debug, Default)]
struct Slow {
    row: u32,
    /// When the last of them ended, in milliseconds as above.
    last: u64,
}

impl Watchdog {
    /// Creates a watchdog that counts slow commits in `slow_commits`.
    pub(super) fn new(slow_commits: Counter) -> Self {
        Self {
            began: Instant::now(),
            entered: AtomicU64::new(0),
            is_told: AtomicBool::new(false),
            slow: Mutex::default(),
            slow_commits,
        }
    }

    /// Marks the beginning of a commit, unless one has begun.
    pub(super) fn enter(&self) {
        if self.entered.load(Ordering::Relaxed) == 0 {
            self.entered.store(self.millis(), Ordering::Relaxed);
        }
    }

    /// Marks the end of a commit, successful or not.
    pub(super) fn leave(&self, is_written: bool) {
        let entered = self.entered.swap(0, Ordering::Relaxed);
        if is_written && entered != 0 {
            self.judge(entered);
        }
        let was_told = self.is_told.load(Ordering::Relaxed) && self.is_told.swap(false, Ordering::Relaxed);
        if was_told && is_written {
            tracing::info!("audit trail writes resumed");
        }
    }

    /// Logs that the sink is repeatedly slow, and when that ends. Commits in between may be quick, as not every commit
    /// syncs.
    fn judge(&self, entered: u64) {
        let now = self.millis();
        let mut slow = lock(&self.slow);
        let goes_on = Duration::from_millis(now.saturating_sub(slow.last)) < MINUTE;
        if Duration::from_millis(now.saturating_sub(entered)) >= SLOW {
            self.slow_commits.inc();
            slow.row = if goes_on { slow.row.saturating_add(1) } else { 1 };
            slow.last = now;
            if slow.row == IN_A_ROW {
                tracing::warn!(
                    fix = "check whether the disk is overloaded, or give the trail a disk of its own",
                    "the audit trail is slow: its disk, or the reader of standard output, took 5 s or longer for a commit, \
                     {IN_A_ROW} times in a row"
                );
            }
        } else if !goes_on {
            if slow.row >= IN_A_ROW {
                tracing::info!("the audit trail is no longer slow");
            }
            slow.row = 0;
        }
    }

    /// Whether the current commit has taken too long.
    pub(super) fn has_stalled(&self) -> bool {
        let entered = self.entered.load(Ordering::Relaxed);
        if entered == 0 || u128::from(self.millis().saturating_sub(entered)) < MAX_STALL.as_millis() {
            return false;
        }
        if !self.is_told.swap(true, Ordering::Relaxed) {
            tracing::error!(error = STALLED, "audit trail writes are stalled");
        }
        true
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).map_or(u64::MAX, |millis| millis.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// Requests that waited for a write of six seconds and a sync of another six got 503, while the replica counted as
    /// ready.
    #[tokio::test(start_paused = true)]
    async fn a_sink_can_hang_even_if_no_single_call_lasts_that_long() {
        let watchdog = Watchdog::new(Counter::default());
        for _ in 0..2 {
            watchdog.enter();
            assert!(!watchdog.has_stalled());
            advance(MAX_STALL * 3 / 5).await;
        }
        assert!(watchdog.has_stalled());
        watchdog.leave(true);
        assert!(!watchdog.has_stalled());
        watchdog.enter();
        advance(MAX_STALL * 3 / 5).await;
        assert!(!watchdog.has_stalled(), "it is at the next");
    }

    /// Regression: a sink that stalls repeatedly was never logged, as each commit ended before it counted as hung.
    #[tokio::test(start_paused = true)]
    async fn a_sink_that_is_slow_repeatedly_is_reported_even_if_it_never_hangs() {
        let slow_commits: Counter = Counter::default();
        let watchdog = Watchdog::new(slow_commits.clone());
        let is_slow_after = async |took: Duration| {
            watchdog.enter();
            advance(took).await;
            assert!(!watchdog.has_stalled());
            watchdog.leave(true);
            lock(&watchdog.slow).row >= IN_A_ROW
        };
        let (long, short) = (MAX_STALL * 3 / 5, Duration::from_millis(1));
        for (took, is_slow) in [(long, false), (short, false), (long, false), (long, true), (short, true), (long, true)]
        {
            assert_eq!(is_slow_after(took).await, is_slow);
        }
        advance(MINUTE).await;
        assert!(!is_slow_after(short).await, "it has recovered");
        for _ in 0..IN_A_ROW {
            assert!(!is_slow_after(long).await, "now and then");
            advance(MINUTE).await;
        }
        assert_eq!(slow_commits.get(), 7);
    }
}
