//! One sync for writes that come close together. A sync costs more than all else that is done for a write, so it is put off a moment
//! where others are likely to come for the same one. Who comes alone does not wait.

use std::{thread, time::Duration};

/// How long is waited for others.
pub(crate) const WINDOW: Duration = Duration::from_micros(300);

/// Whether it is worth waiting before a sync, by how many shared the last ones.
#[derive(Debug)]
pub(crate) struct GroupCommit {
    window: Duration,
    shared_by: usize,
}

impl GroupCommit {
    pub(crate) const fn new(window: Duration) -> Self {
        Self { window, shared_by: 0 }
    }

    /// Blocks until the window is over, if several shared the last syncs. Whether it did, so that there may be more to take.
    pub(crate) fn gather(&self) -> bool {
        let waits = self.shared_by > 1;
        if waits {
            thread::sleep(self.window);
        }
        waits
    }

    /// Notes how many share the sync that is next.
    pub(crate) fn shared(&mut self, by: usize) {
        // One that comes alone between others is no sign that they have ceased.
        self.shared_by = by.max(self.shared_by / 2);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn who_comes_alone_does_not_wait() {
        let mut commit = GroupCommit::new(Duration::MAX);
        for _ in 0..3 {
            assert!(!commit.gather());
            commit.shared(1);
        }
    }

    #[test]
    fn where_several_came_the_window_is_waited_for_more() {
        let mut commit = GroupCommit::new(Duration::from_millis(5));
        commit.shared(2);
        let begun = Instant::now();
        assert!(commit.gather());
        assert!(begun.elapsed() >= Duration::from_millis(5));
    }

    #[test]
    fn a_few_that_come_alone_between_others_wait_and_then_none_does() {
        let mut commit = GroupCommit::new(Duration::ZERO);
        commit.shared(8);
        let waits: Vec<bool> = std::iter::repeat_with(|| {
            commit.shared(1);
            commit.gather()
        })
        .take(4)
        .collect();
        assert_eq!(waits, [true, true, false, false]);
    }
}
