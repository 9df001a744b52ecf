//! Tracks whether this process was there to try held deliveries.

use std::{sync::Mutex, time::Duration};

use super::{Held, LONGEST_PAUSE};
use crate::{
    clock::{Clock, Timestamp},
    lock::lock,
};

/// How long a process that was absent for some of a delivery's time keeps trying it after its time: the EventListener
/// may have been absent too and be ready later.
const AFTER_ABSENCE: Duration = Duration::from_secs(600);

/// Since when this process has continuously seen time pass. A delivery's time also runs while no process is running or
/// the machine is suspended, and jumps with the wall clock.
#[derive(Debug)]
pub(super) struct Presence {
    clock: Clock,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    /// The wall clock and the monotonic clock at the last check.
    now: Timestamp,
    passed: Duration,
    /// The monotonic clock at the start, or when the wall clock last jumped ahead.
    since: Duration,
}

impl Presence {
    pub(super) fn begin(clock: Clock) -> Self {
        let (now, passed) = (clock.now(), clock.passed());
        Self { clock, seen: Mutex::new(Seen { now, passed, since: passed }) }
    }

    /// Reads the clocks and returns for how long there was no jump. Notices a jump however long ago the last check was.
    pub(super) fn look(&self) -> Duration {
        let mut seen = lock(&self.seen);
        let (now, passed) = (self.clock.now(), self.clock.passed());
        if now.since(seen.now) > passed.saturating_sub(seen.passed) + LONGEST_PAUSE {
            seen.since = passed;
        }
        seen.now = now;
        seen.passed = passed;
        passed.saturating_sub(seen.since)
    }

    /// Whether a delivery has had its time.
    pub(super) fn is_over(&self, held: &Held) -> bool {
        let present = self.look();
        self.clock.now() >= held.until && present >= held.span.min(AFTER_ABSENCE)
    }
}
