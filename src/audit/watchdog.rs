//! Whether the sink hangs. Whoever asks finds out by the clock, so that it shows however short those are patient who wait for it.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// How long a request waits for the trail: for room in the queue, and again for a durable write. A disk may stand still for a moment,
/// as may who reads standard output; one that hangs for so long is as good as a full one.
pub(super) const MAX_STALL: Duration = Duration::from_secs(10);

/// Why requests cannot be recorded once it does.
pub(super) const STALLED: &str = "its disk, or who reads standard output, has not taken a record within 10 s";

/// Knows since when the thread of the trail is in the sink.
#[derive(Debug)]
pub(super) struct Watchdog {
    began: Instant,
    /// When the thread went into the sink, in milliseconds from one before `began` on. 0: it is not there.
    entered: AtomicU64,
    /// Whether the log has been told that it does not come back.
    is_told: AtomicBool,
}

impl Default for Watchdog {
    fn default() -> Self {
        Self { began: Instant::now(), entered: AtomicU64::new(0), is_told: AtomicBool::new(false) }
    }
}

impl Watchdog {
    /// Does what the sink is asked to.
    pub(super) fn watch<T>(&self, work: impl FnOnce() -> T) -> T {
        self.entered.store(self.millis(), Ordering::Relaxed);
        let done = work();
        self.entered.store(0, Ordering::Relaxed);
        if self.is_told.load(Ordering::Relaxed) && self.is_told.swap(false, Ordering::Relaxed) {
            tracing::info!("the audit trail goes on");
        }
        done
    }

    /// Whether the sink has been at one thing for too long.
    pub(super) fn has_stalled(&self) -> bool {
        let entered = self.entered.load(Ordering::Relaxed);
        if entered == 0 || u128::from(self.millis().saturating_sub(entered)) < MAX_STALL.as_millis() {
            return false;
        }
        if !self.is_told.swap(true, Ordering::Relaxed) {
            tracing::error!(error = STALLED, "the audit trail stands still");
        }
        true
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).map_or(u64::MAX, |millis| millis.saturating_add(1))
    }
}
