//! Tests of the writer without its thread.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use tokio::sync::oneshot;

use super::*;
use crate::{
    audit::{
        Record, Trail,
        export::{Backlog, Place},
        settings::{Destination, Retention},
        sink::{RotatingFile, Surplus},
        tests as fixture,
    },
    logging::logged,
};

/// Creates a writer that does not run, with its queue.
fn writer() -> (mpsc::Sender<Item>, Writer) {
    let (settings, sink) = (fixture::settings(), fixture::Memory::default());
    let (keys, opened) = (fixture::keys_of(&settings), fixture::over(&sink));
    let (sender, _, writer) = Trail::begin(&settings, keys, opened, fixture::clock());
    (sender, writer)
}

/// Creates an item whose sender waits for a record to be on stable storage.
fn waiting() -> Item {
    let (reply, _) = oneshot::channel();
    let entry = Entry::Record(Box::new(fixture::record(1)));
    Item { entry, weight: 0, held: Held::default(), is_promised: true, reply: Some(reply) }
}

/// All of them were to be told at once that it fails.
#[test]
fn while_the_sink_fails_no_record_waits_for_others() {
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

/// Regression: a full group waited for a window in which no other write could arrive.
#[test]
fn a_full_batch_is_synced_without_waiting_for_more() {
    let (_sender, mut writer) = writer();
    let window = Duration::from_secs(60);
    writer.group = GroupCommit::expecting(2, window, Duration::MAX);
    writer.take(waiting());
    writer.pending.resize(GROUP, b' ');
    let begun = Instant::now();
    writer.gather();
    assert!(begun.elapsed() < window);
}

/// After a burst it held some MiB until the next checkpoint.
#[test]
fn buffers_for_unsynced_lines_are_kept_under_load_and_freed_before_the_thread_sleeps() {
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

/// A record that nobody waits for.
fn unawaited() -> Item {
    Item { reply: None, ..waiting() }
}

/// A time of the last sync from which no other is due for long.
fn just_synced() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// Without a sync at this interval, a steady trickle of such records would wait for one until it amounts to some MiB.
#[test]
fn records_without_a_waiter_are_synced_within_a_second() {
    let before = Instant::now().checked_sub(SYNC_INTERVAL).unwrap();
    for (last_sync, synced) in [(just_synced(), false), (before, true)] {
        let (_sender, mut writer) = writer();
        writer.take(unawaited());
        writer.last_sync = last_sync;
        writer.commit();
        assert_eq!(writer.synced, synced);
    }
}

/// After a loss of power, a copy of a checkpoint that the trail no longer has would look like lines that were cut off.
#[test]
fn a_checkpoint_is_on_stable_storage_before_it_is_copied_or_shown_to_other_replicas() {
    let (_sender, mut writer) = writer();
    writer.take(unawaited());
    writer.last_sync = just_synced();
    writer.commit();
    assert!(!writer.synced && writer.shared.heads.watch().borrow().is_none());
    writer.checkpoint();
    writer.commit();
    assert!(writer.synced && writer.unsynced.is_empty());
    assert!(writer.shared.heads.watch().borrow().is_some());
}

#[test]
fn only_so_many_records_are_taken_in_one_turn_while_the_sink_fails() {
    for (sent, taken) in [(10, 10), (TURN + 10, TURN)] {
        let (sender, mut writer) = writer();
        writer.fail(&io::Error::other("the disk is broken"));
        for _ in 0..sent {
            sender.send(unawaited()).unwrap();
        }
        assert_eq!(writer.drain(), taken);
    }
}

/// The late checkpoint looked as if somebody had removed one, for as long as the file was kept.
#[test]
fn a_pause_or_a_clock_that_is_set_ahead_leaves_a_gap_before_the_first_late_line() {
    let hour = Duration::from_secs(3600);
    for (is_paused, monotonic_ms, records) in [(true, 3_600_000, 2), (true, 3_600_000, 0), (false, 0, 2), (false, 0, 0)]
    {
        let (settings, sink, clock) = (fixture::settings(), fixture::Memory::default(), fixture::clock());
        let (keys, opened) = (fixture::keys_of(&settings), fixture::over(&sink));
        let (_sender, _, mut writer) = Trail::begin(&settings, keys, opened, clock.clone());
        let begun = clock.now();
        if is_paused {
            clock.advance(hour);
        } else {
            clock.set(begun + hour);
        }
        let check = || {
            let findings = fixture::verify(&sink.bytes(), &fixture::proof(&settings));
            assert_eq!(fixture::problems(&findings), [""; 0]);
            findings.summary
        };
        let ((), log) = logged(|| {
            for number in 0..records {
                let late = Record { time: begun + hour, ..fixture::record(number) };
                writer.take(Item { entry: Entry::Record(Box::new(late)), ..unawaited() });
            }
            writer.commit();
            // As if it was killed here.
            check();
            writer.checkpoint_if_due();
            writer.commit();
        });
        assert_eq!(log.matches("the process was paused, or its clock was set ahead").count(), 1, "{log}");
        let summary = check();
        assert_eq!((summary.gaps, summary.checkpoints), (1, 1));
        let gap = summary.longest_gap.unwrap();
        assert_eq!((gap.since, gap.until, gap.monotonic_ms), (begun, begun + hour, Some(monotonic_ms)));
    }
}

/// A file whose syncs can be made to fail.
struct Failing {
    file: RotatingFile,
    fails: Arc<AtomicBool>,
}

impl Sink for Failing {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.file.write(lines)
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(io::Error::other("the disk is broken"));
        }
        self.file.sync()
    }

    fn surplus(&self, now: Timestamp) -> io::Result<Option<Surplus>> {
        self.file.surplus(now)
    }

    fn goes_on(&self) -> bool {
        self.file.goes_on()
    }

    fn name(&self) -> Arc<str> {
        self.file.name()
    }

    fn place(&self) -> Place {
        self.file.place()
    }
}

/// Otherwise the beginning of the trail would be missing and no line would explain it.
#[test]
fn old_files_remain_if_the_line_about_their_removal_cannot_be_synced() {
    for fails in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let full = |number: u32| directory.path().join(format!("audit.jsonl.{number:06}"));
        let mut writer = writer_with_two_full_files(&path, &full, fails);
        // One more than are kept.
        fs::copy(full(2), full(3)).unwrap();
        writer.tidy(fixture::clock().now());
        assert_eq!((full(1).exists(), writer.outage.is_some()), (fails, fails));
        assert!(full(2).exists() && full(3).exists());
    }
}

/// A writer that keeps two full files, has two, and whose syncs from then on fail or not.
fn writer_with_two_full_files(path: &Path, full: &dyn Fn(u32) -> PathBuf, fails: bool) -> Writer {
    let (max_size, retention) = (1 << 20, Retention { keep: Some(2), retain: None });
    let settings = Settings {
        destination: Destination::File { path: path.to_owned(), max_size, retention },
        ..fixture::settings()
    };
    for number in [1, 2] {
        Trail::open(&settings, path.parent().unwrap(), fixture::clock()).unwrap().shutdown();
        fs::rename(path, full(number)).unwrap();
    }
    let (file, found) = RotatingFile::open(path, max_size, retention, fixture::clock().now()).unwrap();
    let broken = Arc::new(AtomicBool::new(false));
    let sink = Box::new(Failing { file, fails: Arc::clone(&broken) });
    let opened = Opened { sink, found, backlog: Arc::new(Backlog::none()) };
    let (_, _, writer) = Trail::begin(&settings, fixture::keys_of(&settings), opened, fixture::clock());
    broken.store(fails, Ordering::Relaxed);
    writer
}
