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
pub(super) const STALLED: &str =
    "its disk, or who reads standard output, has not taken what is written together within 10 s";

/// Knows since when the thread of the trail is at what it writes next, however many calls of the sink that takes: who waits for it
/// waits for all of them.
#[derive(Debug)]
pub(super) struct Watchdog {
    began: Instant,
    /// When the thread began with it, in milliseconds from one before `began` on. 0: it is at nothing.
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
    /// The thread begins, unless it is at it.
    pub(super) fn enter(&self) {
        if self.entered.load(Ordering::Relaxed) == 0 {
            self.entered.store(self.millis(), Ordering::Relaxed);
        }
    }

    /// It is written, or is not for now.
    pub(super) fn leave(&self, is_written: bool) {
        self.entered.store(0, Ordering::Relaxed);
        let was_told = self.is_told.load(Ordering::Relaxed) && self.is_told.swap(false, Ordering::Relaxed);
        if was_told && is_written {
            tracing::info!("the audit trail goes on");
        }
    }

    /// Whether the sink has been at it for too long.
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

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// Who waited for a write of six seconds and a sync of as many heard 503, while the replica counted as ready.
    #[tokio::test(start_paused = true)]
    async fn a_sink_hangs_though_no_call_of_it_lasts_for_as_long() {
        let watchdog = Watchdog::default();
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
}
