//! Group commit: one fsync for writes that come close together. An fsync costs more than everything else about a write,
//! so it is delayed a moment if others are likely to share it. A write that comes alone does not wait.

use std::{
    mem, thread,
    time::{Duration, Instant},
};

/// How long to wait for other writes, and again as long while more arrive.
const WINDOW: Duration = Duration::from_micros(300);

/// The longest wait while more arrive, as the first write waits for all of them.
const MOST: Duration = Duration::from_millis(2);

/// Decides whether to wait before an fsync, by how many writes shared the last ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupCommit {
    window: Duration,
    most: Duration,
    shared_by: usize,
}

impl GroupCommit {
    pub(crate) const fn new() -> Self {
        Self { window: WINDOW, most: MOST, shared_by: 0 }
    }

    /// If several writes shared the last fsyncs, blocks for a window, and for another one as long as the previous
    /// window brought a write and fewer share the next fsync than are expected. `take` takes the writes that have
    /// arrived and returns how many share the fsync now; before that there were `sharing`.
    pub(crate) fn gather(&self, mut sharing: usize, mut take: impl FnMut() -> usize) {
        if self.shared_by <= 1 {
            return;
        }
        let begun = Instant::now();
        loop {
            thread::sleep(self.window);
            let before = mem::replace(&mut sharing, take());
            if sharing <= before || sharing >= self.shared_by || begun.elapsed() + self.window >= self.most {
                return;
            }
        }
    }

    /// One that expects `shared_by` writes, with these times.
    #[cfg(test)]
    pub(crate) const fn expecting(shared_by: usize, window: Duration, most: Duration) -> Self {
        Self { window, most, shared_by }
    }

    /// Notes how many writes share the next fsync.
    pub(crate) fn shared(&mut self, by: usize) {
        // A write that comes alone between others does not show that they have ceased.
        self.shared_by = by.max(self.shared_by / 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many windows are waited for, if after each of them so many writes share the fsync, and after all others as
    /// many as after the last.
    fn windows(commit: GroupCommit, sharing: &[usize]) -> usize {
        let (mut windows, mut last) = (0, 1);
        commit.gather(last, || {
            last = sharing.get(windows).copied().unwrap_or(last);
            windows += 1;
            last
        });
        windows
    }

    #[test]
    fn a_single_caller_does_not_wait() {
        let mut commit = GroupCommit { window: Duration::MAX, ..GroupCommit::new() };
        for _ in 0..3 {
            assert_eq!(windows(commit, &[2]), 0);
            commit.shared(1);
        }
    }

    #[test]
    fn where_several_came_the_window_is_waited_for_more() {
        let window = Duration::from_millis(5);
        let begun = Instant::now();
        assert_eq!(windows(GroupCommit::expecting(2, window, Duration::MAX), &[]), 1);
        assert!(begun.elapsed() >= window);
    }

    /// An fsync was shared by the writes of one window, however many more were on their way.
    #[test]
    fn another_window_is_awaited_as_long_as_each_brings_a_caller() {
        let commit = GroupCommit::expecting(usize::MAX, Duration::ZERO, Duration::MAX);
        let cases: [(&[usize], usize); 4] = [(&[1, 2], 1), (&[2], 2), (&[2, 5, 6, 6, 7], 4), (&[2, 0, 1], 2)];
        for (sharing, waited) in cases {
            assert_eq!(windows(commit, sharing), waited, "{sharing:?}");
        }
    }

    /// Two writers in step waited for one more window each time, which could bring nobody.
    #[test]
    fn once_the_expected_callers_have_arrived_no_further_window_is_awaited() {
        let commit = GroupCommit::expecting(3, Duration::ZERO, Duration::MAX);
        let cases: [(&[usize], usize); 4] = [(&[3], 1), (&[5], 1), (&[2, 3, 4], 2), (&[2], 2)];
        for (sharing, waited) in cases {
            assert_eq!(windows(commit, sharing), waited, "{sharing:?}");
        }
    }

    #[test]
    fn a_flood_does_not_put_the_sync_off_for_longer_than_the_most() {
        let floods: Vec<usize> = (2..10).collect();
        // A window that would end too late is not begun.
        let window = Duration::from_millis(1);
        for most in [Duration::ZERO, window, window * 2] {
            assert_eq!(windows(GroupCommit::expecting(usize::MAX, window, most), &floods), 1, "{most:?}");
        }
        let (begun, mut sharing) = (Instant::now(), 1);
        GroupCommit::expecting(usize::MAX, Duration::ZERO, window).gather(sharing, || {
            sharing += 1;
            sharing
        });
        assert!(begun.elapsed() >= window);
    }

    #[test]
    fn a_few_single_callers_after_a_burst_wait_and_then_none_does() {
        let mut commit = GroupCommit::expecting(8, Duration::ZERO, MOST);
        let waited: Vec<usize> = std::iter::repeat_with(|| {
            commit.shared(1);
            windows(commit, &[])
        })
        .take(4)
        .collect();
        assert_eq!(waited, [1, 1, 0, 0]);
    }
}
