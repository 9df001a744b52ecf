//! Whether anybody was there to try what is held.

use std::{sync::Mutex, time::Duration};

use super::{Held, LONGEST_PAUSE};
use crate::{
    clock::{Clock, Timestamp},
    lock::lock,
};

/// How long what is beyond its time is tried all the same by whoever was away for some of it: the EventListener may have been as well,
/// and is ready later.
const AFTER_ABSENCE: Duration = Duration::from_secs(600);

/// Since when this process has seen time go by. That of a delivery goes on while no process runs and while the machine is suspended, and
/// jumps with the wall clock.
#[derive(Debug)]
pub(super) struct Presence {
    clock: Clock,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    /// What the wall clock said at the last look, and how much time had passed by then.
    now: Timestamp,
    passed: Duration,
    /// How much had passed when this began, or the wall clock last jumped ahead.
    since: Duration,
}

impl Presence {
    pub(super) fn begin(clock: Clock) -> Self {
        let (now, passed) = (clock.now(), clock.passed());
        Self { clock, seen: Mutex::new(Seen { now, passed, since: passed }) }
    }

    /// Looks at the clock, and tells for how long it has gone on without a jump. Notices a jump however long ago the last look was.
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

    /// Whether a delivery had its time.
    pub(super) fn is_over(&self, held: &Held) -> bool {
        let present = self.look();
        self.clock.now() >= held.until && present >= held.span.min(AFTER_ABSENCE)
    }
}
