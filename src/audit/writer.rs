//! The trail's thread: takes records from the queue, formats them as lines, and writes these to the sink in groups,
//! with one sync for all records that wait for one.

mod files;
mod gaps;
#[cfg(test)]
mod tests;

use std::{
    io,
    sync::{
        Arc,
        atomic::{Ordering, fence},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    caller::Callers,
    chain::Chain,
    checkpoints::{Checkpoints, SecondPlace},
    export::End,
    heads::Head,
    item::{Entry, Item, Reply},
    line,
    note::Event,
    pseudonym::Pseudonyms,
    room::Held,
    settings::Settings,
    sink::{Found, Sink},
    trail::{Keys, MAX_WAITING, Opened, Shared},
    unavailable::AuditUnavailable,
};
use crate::{
    clock::{Clock, Moment, Timestamp},
    group_commit::GroupCommit,
    lock::lock,
};

/// Bytes of lines that are collected before they are written.
const GROUP: usize = 256 << 10;
/// Records that are taken before the sink gets its turn, however many arrive.
const TURN: usize = 4096;
/// How long the thread rests between groups while records arrive. Senders need not wake it then, which would cost them
/// more than everything else.
const NAP: Duration = Duration::from_millis(4);
/// Naps without a record before it sleeps until it is woken.
const NAPS: u32 = 8;
/// How long lines may wait for a sync that no request asked for.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes that may wait for a sync. They are held in memory until then.
const UNSYNCED: usize = 4 << 20;
/// The pause after a failure.
const RETRY: Duration = Duration::from_millis(100);
/// How long a failing sink is retried at shutdown, and after that the place for copies of checkpoints.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long shutdown waits for the thread: a call of the sink that hangs may never return.
pub const END_TIMEOUT: Duration = Duration::from_secs(12);

pub(super) struct Writer {
    chain: Chain,
    keys: Keys,
    sink: Box<dyn Sink>,
    queue: mpsc::Receiver<Item>,
    shared: Arc<Shared>,
    clock: Clock,
    callers: Callers,
    /// None: people keep their names.
    pseudonyms: Option<Pseudonyms>,
    /// Sealed lines that the sink has not taken. May begin within a line.
    pending: Vec<u8>,
    /// Places that the lines in `pending` hold.
    held: Held,
    waiting: Vec<Reply>,
    group: GroupCommit,
    synced: bool,
    /// The bytes that the sink took since the last sync.
    unsynced: Vec<u8>,
    /// A sync failed, and the bytes that the sink took before may be lost.
    in_doubt: bool,
    /// Number of bytes that the sink took.
    written: i64,
    last_sync: Instant,
    last_commit: Timestamp,
    /// When the thread began the current commit; none if it is idle. While a checkpoint is due this is not reset
    /// between commits, so that several stalls in a row count as one.
    entered: Option<Timestamp>,
    /// When the thread last looked whether a checkpoint is late: it was running then.
    seen: Moment,
    outage: Option<Outage>,
    checkpoints: Checkpoints,
}

/// Since when nothing could be written, and when to retry.
struct Outage {
    since: Timestamp,
    retry: Instant,
}

impl Writer {
    /// Creates a writer and writes the first lines of a process.
    pub(super) fn begin(
        settings: &Settings,
        keys: Keys,
        opened: Opened,
        queue: mpsc::Receiver<Item>,
        shared: Arc<Shared>,
        clock: Clock,
    ) -> Self {
        let seen = clock.moment();
        let now = seen.wall();
        let mut writer = Self {
            chain: Chain::new(keys.chain.clone(), opened.found.last),
            keys,
            sink: opened.sink,
            queue,
            shared,
            clock,
            callers: Callers::default(),
            pseudonyms: settings.pseudonym_key.clone().map(Pseudonyms::new),
            pending: Vec::new(),
            held: Held::default(),
            waiting: Vec::new(),
            group: GroupCommit::new(),
            synced: true,
            unsynced: Vec::new(),
            in_doubt: false,
            written: 0,
            last_sync: Instant::now(),
            last_commit: now,
            entered: None,
            seen,
            outage: None,
            checkpoints: Checkpoints::new(settings, now),
        };
        writer.write_start(&opened.found);
        writer
    }

    fn write_start(&mut self, found: &Found) {
        // The first checkpoint is due one interval from now; none is late before that.
        self.shared.metrics.last_checkpoint.set(self.checkpoints.last.as_secs());
        if found.empty && found.last.seq > 0 {
            self.event(&Event::File { previous: None });
        }
        let copied = self.shared.second_place.as_ref().and_then(SecondPlace::start);
        let missing = copied.filter(|seq| self.sink.goes_on() && *seq > found.last.seq);
        if found.repaired > 0 {
            tracing::warn!(bytes = found.repaired, "an incomplete last line of the audit trail was cut off");
        }
        if let Some(seq) = missing {
            tracing::error!(
                last = found.last.seq,
                checkpoint = seq,
                "the audit trail ends before its last checkpoint: lines at its end were removed"
            );
        }
        self.event(&Event::Start {
            instance: Arc::clone(&self.shared.instance),
            key: Arc::clone(self.keys.chain.id()),
            interval_ms: millis(self.checkpoints.interval),
            repaired: found.repaired,
            missing,
        });
        self.synced = false;
        self.commit();
        if self.outage.is_none() {
            self.enter();
            self.tidy(self.clock.now());
            // The first commit of `run` resets it, unless the thread hung: then the next checkpoint records the gap.
            self.entered = self.hung_since(self.clock.now());
        }
    }

    pub(super) fn run(mut self) {
        let mut naps = 0;
        loop {
            let closing = self.shared.closed.load(Ordering::Acquire);
            let drained = self.drain();
            if closing && drained == 0 {
                return self.end();
            }
            self.gather();
            self.checkpoint_if_due();
            self.commit();
            if drained > 0 {
                naps = 0;
                if self.pending.is_empty() {
                    thread::park_timeout(NAP);
                }
            } else {
                naps += 1;
                self.rest(naps);
            }
        }
    }

    /// Formats queued records as lines, and returns how many.
    fn drain(&mut self) -> usize {
        let mut drained = 0;
        while drained < TURN && (self.outage.is_some() || self.pending.len() < GROUP) {
            let Ok(item) = self.queue.try_recv() else { break };
            self.take(item);
            drained += 1;
        }
        drained
    }

    /// Waits a moment if more records are likely to share the next sync. While the sink fails there is no sync to
    /// share.
    fn gather(&mut self) {
        if self.waiting.is_empty() || self.outage.is_some() {
            return;
        }
        // A full group takes no more records.
        if self.pending.len() < GROUP {
            let group = self.group;
            group.gather(self.waiting.len(), || {
                self.drain();
                self.waiting.len()
            });
        }
        self.group.shared(self.waiting.len());
    }

    fn take(&mut self, Item { mut entry, weight, held, is_promised, reply }: Item) {
        self.shared.waiting.fetch_sub(weight, Ordering::Relaxed);
        // The gap of an outage is recorded once it is over.
        if self.outage.is_none() {
            self.note_lateness();
        }
        // Reset by the commit that follows.
        self.enter();
        if self.pending.len() > MAX_WAITING && !is_promised {
            self.shared.room.give_back(held);
            self.shared.lose(1);
            if let Some(reply) = reply {
                // This fails if nobody waits any more.
                let _ = reply.send(Err(AuditUnavailable::Full));
            }
            return;
        }
        self.rotate_if_full();
        if let Some(pseudonyms) = &mut self.pseudonyms {
            match &mut entry {
                Entry::Record(record) => pseudonyms.hide(record),
                Entry::Note(note) => pseudonyms.hide_note(note),
            }
        }
        let start = self.pending.len();
        match &entry {
            Entry::Record(record) => line::write_record(record, &mut self.callers, &mut self.pending),
            Entry::Note(note) => line::write_note(note, self.clock.now(), &mut self.pending),
        }
        self.chain.seal(&mut self.pending, start, None);
        self.count();
        self.held += held;
        self.waiting.extend(reply);
    }

    fn event(&mut self, event: &Event) {
        let start = self.pending.len();
        line::write_event(event, self.clock.now(), &mut self.pending);
        self.chain.seal(&mut self.pending, start, event.is_signed().then_some(&self.keys.checkpoint));
        self.count();
    }

    /// Counts a line in the metrics and towards the next checkpoint.
    fn count(&mut self) {
        self.checkpoints.since += 1;
        self.shared.metrics.written.inc();
    }

    /// Writes pending lines to the sink, syncs if somebody waits for it or a sync is due, and answers those who wait.
    fn commit(&mut self) {
        if self.outage.as_ref().is_some_and(|outage| Instant::now() < outage.retry) {
            return self.answer(Err(AuditUnavailable::Failing));
        }
        loop {
            let due = !self.waiting.is_empty()
                || !self.checkpoints.unsaved.is_empty()
                || self.outage.is_some()
                || self.unsynced.len() >= UNSYNCED
                || self.last_sync.elapsed() >= SYNC_INTERVAL;
            if !self.pending.is_empty() || self.in_doubt || (due && (!self.synced || self.outage.is_some())) {
                self.enter();
            }
            let flushed = self.resync().and_then(|()| self.flush());
            if let Err(error) = flushed.and_then(|()| if due { self.sync() } else { Ok(()) }) {
                self.fail(&error);
                return self.answer(Err(AuditUnavailable::Failing));
            }
            self.answer(Ok(()));
            self.copy_checkpoint();
            let lost = self.shared.lost.swap(0, Ordering::Relaxed);
            let outage = self.outage.take();
            self.shared.show_queue();
            if outage.is_none() && lost == 0 {
                break;
            }
            let now = self.clock.now();
            let since = outage.as_ref().map_or(self.last_commit, |outage| outage.since);
            self.gap(lost, since, now, None);
            if outage.is_some() {
                // The gap record already explains a late checkpoint.
                self.entered = None;
                tracing::info!(lost, "the audit trail can be written again");
                self.shared.failing.store(false, Ordering::Relaxed);
                *lock(&self.shared.failure) = None;
            }
        }
        self.last_commit = self.clock.now();
        if !self.checkpoints.is_due(self.last_commit) {
            self.entered = None;
        }
    }

    /// Marks the beginning of a commit, unless one has begun.
    fn enter(&mut self) {
        self.shared.watchdog.enter();
        if self.entered.is_none() {
            self.entered = Some(self.clock.now());
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut taken = 0;
        let result = loop {
            let rest = self.pending.get(taken..).unwrap_or_default();
            if rest.is_empty() {
                break Ok(());
            }
            match self.sink.write(rest) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => taken += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        if taken > 0 {
            self.synced = false;
            self.unsynced.extend_from_slice(self.pending.get(..taken).unwrap_or_default());
            self.shared.metrics.bytes.inc_by(taken as u64);
            self.written += i64::try_from(taken).unwrap_or(i64::MAX);
            self.pending.drain(..taken);
        }
        if self.pending.is_empty() {
            self.shared.room.give_back(std::mem::take(&mut self.held));
            self.pending.shrink_to(GROUP);
        }
        result
    }

    fn sync(&mut self) -> io::Result<()> {
        if !self.synced || self.outage.is_some() {
            let begun = Instant::now();
            self.sink.sync().inspect_err(|_| self.doubt())?;
            self.has_synced(begun);
        }
        self.last_sync = Instant::now();
        Ok(())
    }

    /// Writes the data of a failed sync to the sink again. Until that succeeds the sink gets nothing else, so that no
    /// more data has to be held.
    fn resync(&mut self) -> io::Result<()> {
        if self.in_doubt {
            let begun = Instant::now();
            self.sink.sync_again(&self.unsynced).inspect_err(|_| self.doubt())?;
            self.in_doubt = false;
            self.has_synced(begun);
        }
        Ok(())
    }

    fn has_synced(&mut self, begun: Instant) {
        self.synced = true;
        // Keeps its capacity, because as much is needed again at once under load.
        self.unsynced.clear();
        self.shared.metrics.syncs.inc();
        self.shared.backlog.grown(End { place: self.sink.place(), total: self.written });
        self.shared.metrics.sync_time.inc_by(begun.elapsed().as_secs_f64());
    }

    /// Copies a checkpoint once the sink has it on stable storage; never before, or a crash would make the copy look
    /// like proof of a cut.
    fn copy_checkpoint(&mut self) {
        if self.checkpoints.unsaved.is_empty() {
            return;
        }
        self.shared.heads.publish(Head::new(&self.shared.instance, self.checkpoints.link));
        self.shared.metrics.last_checkpoint.set(self.checkpoints.last.as_secs());
        if let Some(place) = &self.shared.second_place {
            place.save(&self.checkpoints.unsaved);
        }
        self.checkpoints.unsaved.clear();
    }

    fn fail(&mut self, error: &io::Error) {
        self.shared.metrics.errors.inc();
        let retry = Instant::now() + RETRY;
        if let Some(outage) = &mut self.outage {
            outage.retry = retry;
            return;
        }
        // Names the path, because with several file systems it is not obvious which one is full.
        let why = format!("{}: {error}", self.sink.told());
        tracing::error!(error = why, "the audit trail cannot be written");
        // A failing disk may have hung before.
        let since = self.entered.unwrap_or_else(|| self.clock.now());
        self.outage = Some(Outage { since, retry });
        self.shared.fail(why);
    }

    fn answer(&mut self, result: Result<(), AuditUnavailable>) {
        self.shared.watchdog.leave(result.is_ok());
        for reply in self.waiting.drain(..) {
            // This fails if nobody waits any more.
            let _ = reply.send(result);
        }
    }

    fn checkpoint_if_due(&mut self) {
        if self.outage.is_some() {
            return;
        }
        self.note_lateness();
        let now = self.clock.now();
        if !self.checkpoints.is_due(now) {
            return;
        }
        self.enter();
        self.tidy(now);
        if self.outage.is_none() {
            self.checkpoint();
        }
    }

    fn checkpoint(&mut self) {
        let now = self.clock.now();
        self.note_lateness();
        self.entered = None;
        let start = self.pending.len();
        self.event(&Event::Checkpoint {
            instance: Arc::clone(&self.shared.instance),
            key: Arc::clone(self.keys.checkpoint.public().id()),
            file: self.sink.name(),
            records: self.checkpoints.since,
            interval_ms: millis(self.checkpoints.interval),
            heads: self.shared.heads.take(),
        });
        self.checkpoints.link = self.chain.last();
        self.checkpoints.unsaved.clear();
        self.checkpoints.unsaved.extend_from_slice(self.pending.get(start..).unwrap_or_default());
        // The checkpoint itself does not count towards the next one.
        self.checkpoints.since = 0;
        self.checkpoints.gaps = Duration::ZERO;
        self.checkpoints.last = now;
    }

    /// Waits for work: naps while records arrive, otherwise sleeps until a sender wakes it or a checkpoint is due.
    fn rest(&mut self, naps: u32) {
        if self.outage.is_some() {
            return thread::park_timeout(RETRY);
        }
        if naps < NAPS {
            return thread::park_timeout(NAP);
        }
        if !self.synced {
            self.enter();
            let synced = self.sync();
            self.shared.watchdog.leave(synced.is_ok());
            if let Err(error) = synced {
                self.fail(&error);
            }
            return;
        }
        self.unsynced.shrink_to(GROUP);
        self.shared.asleep.store(true, Ordering::SeqCst);
        // Pairs with the fence of the sender between queueing and checking `asleep`.
        fence(Ordering::SeqCst);
        if let Ok(item) = self.queue.try_recv() {
            self.take(item);
        } else if !self.shared.closed.load(Ordering::SeqCst) {
            let due = (self.checkpoints.last + self.checkpoints.interval).since(self.clock.now());
            thread::park_timeout(due.min(self.checkpoints.interval).max(NAP));
        }
        self.shared.asleep.store(false, Ordering::SeqCst);
    }

    fn end(mut self) {
        if self.outage.is_none() {
            self.note_lateness();
        }
        self.event(&Event::Stop { instance: Arc::clone(&self.shared.instance) });
        self.checkpoint();
        let begun = Instant::now();
        self.commit();
        while self.outage.is_some() && begun.elapsed() < PATIENCE {
            thread::park_timeout(RETRY);
            self.commit();
        }
        let lost = self.held.records() + self.queue.try_iter().count();
        if lost > 0 {
            self.shared.lose(lost as u64);
            tracing::error!(records = lost, "the audit trail ended with records that were not written");
        }
        if let Some(place) = &self.shared.second_place {
            place.finish(PATIENCE);
        }
    }
}

impl Drop for Writer {
    /// Closes the trail: without its thread it can take nothing, whatever ended the thread.
    fn drop(&mut self) {
        self.shared.close();
        if thread::panicking() {
            self.shared.metrics.errors.inc();
            let why = "its thread panicked (see standard error); restart Doorward";
            *lock(&self.shared.failure) = Some(why.to_owned());
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
