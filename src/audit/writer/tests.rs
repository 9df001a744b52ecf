//! What is done on the thread, without one.

use tokio::sync::oneshot;

use super::*;
use crate::audit::{Trail, tests as fixture};

/// One that nobody runs, and what leads to it.
fn writer() -> (mpsc::Sender<Item>, Writer) {
    let (settings, sink) = (fixture::settings(), fixture::Memory::default());
    let (keys, opened) = (fixture::keys_of(&settings), fixture::over(&sink));
    let (sender, _, writer) = Trail::begin(&settings, keys, opened, fixture::clock());
    (sender, writer)
}

/// Somebody who waits for a record to be on stable storage.
fn waiting() -> Item {
    let (reply, _) = oneshot::channel();
    let entry = Entry::Record(Box::new(fixture::record(1)));
    Item { entry, weight: 0, held: Held::default(), is_promised: true, reply: Some(reply) }
}

/// All of them were to be told at once that it fails.
#[test]
fn while_the_sink_fails_nobody_waits_for_others() {
    for (fails, taken) in [(false, 2), (true, 1)] {
        let (sender, mut writer) = writer();
        writer.group = GroupCommit::expecting(2, Duration::ZERO, Duration::MAX);
        writer.take(waiting());
        sender.send(waiting()).unwrap();
        if fails {
            writer.fail(&io::Error::other("the disk is broken"));
        }
        writer.gather();
        assert_eq!(writer.waiting.len(), taken, "{fails}");
    }
}

/// It waited for a window that could bring nobody.
#[test]
fn with_as_much_as_is_handed_over_at_once_nobody_waits_for_others() {
    let (_sender, mut writer) = writer();
    let window = Duration::from_secs(60);
    writer.group = GroupCommit::expecting(2, window, Duration::MAX);
    writer.take(waiting());
    writer.pending.resize(GROUP, b' ');
    let begun = Instant::now();
    writer.gather();
    assert!(begun.elapsed() < window);
}

/// After a burst it kept some MiB until the next checkpoint.
#[test]
fn room_for_what_is_not_synced_is_kept_under_load_and_given_back_before_the_thread_sleeps() {
    let (_sender, mut writer) = writer();
    writer.unsynced.reserve(UNSYNCED);
    writer.synced = false;
    writer.sync().unwrap();
    assert!(writer.unsynced.is_empty() && writer.unsynced.capacity() >= UNSYNCED);
    // It does not wait then.
    writer.shared.close();
    writer.rest(NAPS);
    assert!(writer.unsynced.capacity() < 2 * GROUP, "{}", writer.unsynced.capacity());
}
