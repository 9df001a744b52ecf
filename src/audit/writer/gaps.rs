//! Gaps: the trail records why a checkpoint is late, so that nobody suspects that one was removed.

use std::time::Duration;

use super::{Event, Writer, millis};
use crate::{audit::watchdog::MAX_STALL, clock::Timestamp};

impl Writer {
    /// Records a gap if the next checkpoint is late: the sink hung, the process or its machine was paused, or the clock
    /// was set ahead. Called before a line is added, which would be as late.
    pub(super) fn note_lateness(&mut self) {
        let now = self.clock.moment();
        let seen = std::mem::replace(&mut self.seen, now);
        let until = now.wall();
        if let Some(since) = self.hung_since(until) {
            self.entered = None;
            self.gap(0, since, until, None);
        } else if self.is_overdue(until) {
            let ([since, before], [_, after]) = (seen.by_clock(), now.by_clock());
            let monotonic_ms = millis(after.since(before));
            tracing::warn!(
                %since,
                %until,
                monotonic_ms,
                fix = "if nobody suspended the process or its machine, check what sets its clock",
                "the process was paused, or its clock was set ahead, so that a checkpoint of the audit trail is late; the trail records \
                 the gap"
            );
            self.gap(0, since, until, Some(monotonic_ms));
        }
    }

    /// Writes a gap.
    pub(super) fn gap(&mut self, lost: u64, since: Timestamp, until: Timestamp, monotonic_ms: Option<u64>) {
        self.checkpoints.gaps = self.checkpoints.gaps.saturating_add(until.since(since));
        self.event(&Event::Gap { lost, since, until, monotonic_ms });
    }

    /// Returns since when the thread has been busy, if so long that a checkpoint is late.
    pub(super) fn hung_since(&self, now: Timestamp) -> Option<Timestamp> {
        self.entered.filter(|since| now.since(*since) >= self.tolerance())
    }

    /// Whether a checkpoint is late for longer than recorded gaps explain. This is so before a verifier misses it.
    fn is_overdue(&self, now: Timestamp) -> bool {
        let due = self.checkpoints.interval.saturating_add(self.checkpoints.gaps);
        now.since(self.checkpoints.last) >= due.saturating_add(self.tolerance())
    }

    /// How late a checkpoint may be without a gap.
    fn tolerance(&self) -> Duration {
        self.checkpoints.interval.max(MAX_STALL)
    }
}
