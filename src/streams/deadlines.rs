//! The order in which streams end.

use std::collections::BTreeSet;

use crate::clock::{Moment, Timestamp};

/// The deadlines of streams, earliest first, by each clock of a [`Moment`].
#[derive(Debug, Default)]
pub(super) struct Deadlines([BTreeSet<(Timestamp, u64)>; 2]);

impl Deadlines {
    pub(super) fn insert(&mut self, deadline: Moment, id: u64) {
        for (ends, end) in self.0.iter_mut().zip(deadline.by_clock()) {
            ends.insert((end, id));
        }
    }

    pub(super) fn remove(&mut self, deadline: Moment, id: u64) {
        for (ends, end) in self.0.iter_mut().zip(deadline.by_clock()) {
            ends.remove(&(end, id));
        }
    }

    /// Removes and returns a stream whose deadline has passed.
    pub(super) fn pop(&mut self, now: Moment) -> Option<u64> {
        for (ends, now) in self.0.iter_mut().zip(now.by_clock()) {
            if ends.first().is_some_and(|(end, _)| *end <= now) {
                return ends.pop_first().map(|(_, id)| id);
            }
        }
        None
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(BTreeSet::is_empty)
    }
}
