//! One sync for writes that come close together. A sync costs more than all else that is done for a write, so it is put off a moment
//! where others are likely to come for the same one. Who comes alone does not wait.

use std::{
    mem, thread,
    time::{Duration, Instant},
};

/// How long is waited for others, and again as long while some come.
const WINDOW: Duration = Duration::from_micros(300);

/// How long is waited at most while some come: whoever was first waits for all of them.
const MOST: Duration = Duration::from_millis(2);

/// Whether it is worth waiting before a sync, by how many shared the last ones.
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

    /// If several shared the last syncs, blocks for a window, and for another one as long as the one before brought somebody and fewer
    /// share the sync that is next than are expected. `take` takes those who have come, and tells how many share it, which were `sharing`
    /// before.
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

    /// One by which so many are expected, with these times.
    #[cfg(test)]
    pub(crate) const fn expecting(shared_by: usize, window: Duration, most: Duration) -> Self {
        Self { window, most, shared_by }
    }

    /// Notes how many share the sync that is next.
    pub(crate) fn shared(&mut self, by: usize) {
        // One that comes alone between others is no sign that they have ceased.
        self.shared_by = by.max(self.shared_by / 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many windows are waited for, behind each of which so many share the sync, and behind all others as many as behind the last.
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
    fn who_comes_alone_does_not_wait() {
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

    /// A sync was shared by those of one window, however many more were on their way.
    #[test]
    fn as_long_as_each_window_brings_somebody_another_one_is_waited_for() {
        let commit = GroupCommit::expecting(usize::MAX, Duration::ZERO, Duration::MAX);
        let cases: [(&[usize], usize); 4] = [(&[1, 2], 1), (&[2], 2), (&[2, 5, 6, 6, 7], 4), (&[2, 0, 1], 2)];
        for (sharing, waited) in cases {
            assert_eq!(windows(commit, sharing), waited, "{sharing:?}");
        }
    }

    /// Two that come in step waited for a window more each time, which could bring nobody.
    #[test]
    fn once_as_many_have_come_as_are_expected_no_other_window_is_waited_for() {
        let commit = GroupCommit::expecting(3, Duration::ZERO, Duration::MAX);
        let cases: [(&[usize], usize); 4] = [(&[3], 1), (&[5], 1), (&[2, 3, 4], 2), (&[2], 2)];
        for (sharing, waited) in cases {
            assert_eq!(windows(commit, sharing), waited, "{sharing:?}");
        }
    }

    #[test]
    fn a_flood_does_not_put_the_sync_off_for_longer_than_the_most() {
        let floods: Vec<usize> = (2..10).collect();
        // The window that would end too late is not begun.
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
    fn a_few_that_come_alone_between_others_wait_and_then_none_does() {
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
