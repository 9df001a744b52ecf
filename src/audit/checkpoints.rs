//! Checkpoints: when the next one is due, and how they are copied to a second place. That place may be slow or
//! unavailable, or hang for ever like a mount whose server is gone. It therefore has its own thread, and nothing else
//! waits for it.

use std::{
    fs::OpenOptions,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;

use super::{
    chain::{Link, MAX_LINE, Sealed},
    lines::end_of,
    settings::Settings,
};
use crate::{clock::Timestamp, lock::lock};

/// Bytes of checkpoints that are held while the second place is unavailable: enough for weeks.
const MAX_UNCOPIED: usize = 4 << 20;

/// How long the second place may take before it counts as failed.
const HANGS: Duration = Duration::from_secs(5);

/// When the next checkpoint is due, and the state of the last one.
pub(super) struct Checkpoints {
    pub every: u64,
    pub interval: Duration,
    /// Records since the last one.
    pub since: u64,
    pub last: Timestamp,
    /// How long the gaps were that were recorded since the last one.
    pub gaps: Duration,
    /// A line to be copied as soon as the sink has it on stable storage.
    pub unsaved: Vec<u8>,
    /// The number and code of that line.
    pub link: Link,
}

impl Checkpoints {
    pub(super) fn new(settings: &Settings, now: Timestamp) -> Self {
        Self {
            every: settings.checkpoint_records,
            interval: settings.checkpoint_interval,
            since: 0,
            last: now,
            gaps: Duration::ZERO,
            unsaved: Vec::new(),
            link: Link::NONE,
        }
    }

    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        // If the last one is in the future, the clock was set back.
        let is_soon = self.last <= now && now < self.last + self.interval;
        self.since >= self.every || !is_soon
    }
}

/// The second place for checkpoints, shared by the trail and the thread that writes there.
#[derive(Debug)]
pub(super) struct SecondPlace {
    path: PathBuf,
    errors: Counter,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Lines that are not there yet, earlier failures first.
    lines: Vec<u8>,
    /// Whether a line was added since the last try.
    is_due: bool,
    /// When the pending call began.
    asked: Option<Instant>,
    failure: Option<String>,
    is_closed: bool,
}

impl State {
    /// Queues a line. If there are too many, the earlier ones are dropped: the last one proves the most.
    fn keep(&mut self, line: &[u8]) {
        if self.lines.len() + line.len() > MAX_UNCOPIED {
            self.lines.clear();
        }
        self.lines.extend_from_slice(line);
    }

    fn hangs(&self) -> Option<Duration> {
        self.asked.map(|asked| asked.elapsed()).filter(|waited| *waited >= HANGS)
    }
}

impl SecondPlace {
    pub(super) fn new(path: PathBuf, errors: Counter) -> Self {
        Self { path, errors, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Starts the thread that writes there. Returns the number of the last checkpoint that is there, if it can be read
    /// soon.
    pub(super) fn start(self: &Arc<Self>) -> Option<u64> {
        let place = Arc::clone(self);
        let (tell, told) = mpsc::channel();
        self.state().asked = Some(Instant::now());
        let thread = thread::Builder::new().name("audit-copies".to_owned()).spawn(move || {
            let copied = place.copied();
            place.state().asked = None;
            // This fails if it took so long that nobody waits any more.
            let _ = tell.send(copied);
            place.run();
        });
        if let Err(error) = thread {
            let mut state = self.state();
            (state.asked, state.is_closed) = (None, true);
            self.failed(&mut state, &format!("its thread cannot be started: {error}"));
            return None;
        }
        told.recv_timeout(HANGS).unwrap_or_else(|_| {
            tracing::error!(
                path = %self.path.display(),
                "the second place for checkpoints of the audit trail cannot be read, so it is unknown whether the trail ends before \
                 its last checkpoint"
            );
            None
        })
    }

    /// Queues a checkpoint, which is written together with those that failed before.
    pub(super) fn save(&self, line: &[u8]) {
        let mut state = self.state();
        state.keep(line);
        state.is_due = true;
        if let Some(waited) = state.hangs() {
            self.failed(&mut state, &format!("it has not answered for {} s", waited.as_secs()));
        }
        self.changed.notify_all();
    }

    /// Returns why the last checkpoint was not written; none if it was.
    pub(super) fn failure(&self) -> Option<String> {
        let state = self.state();
        let hangs =
            |waited: Duration| format!("{}: it has not answered for {} s", self.path.display(), waited.as_secs());
        state.hangs().map(hangs).or_else(|| state.failure.clone())
    }

    /// Waits for at most `patience` until all queued lines are written, and ends the thread.
    pub(super) fn finish(&self, patience: Duration) {
        let mut state = self.state();
        state.is_closed = true;
        self.changed.notify_all();
        let waits = |state: &mut State| state.is_due || state.asked.is_some();
        drop(self.changed.wait_timeout_while(state, patience, waits));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn failed(&self, state: &mut State, why: &str) {
        self.errors.inc();
        let why = format!("{}: {why}", self.path.display());
        if state.failure.is_none() {
            tracing::error!(error = %why, "a checkpoint of the audit trail could not be copied to its second place");
        }
        state.failure = Some(why);
    }

    fn run(&self) {
        loop {
            let mut state = self.state();
            while !state.is_due {
                if state.is_closed {
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.is_due = false;
            state.asked = Some(Instant::now());
            let lines = std::mem::take(&mut state.lines);
            drop(state);
            let written = self.append(&lines);
            let mut state = self.state();
            state.asked = None;
            match written {
                Ok(()) => {
                    if state.failure.take().is_some() {
                        tracing::info!("checkpoints of the audit trail are copied to their second place again");
                    }
                }
                Err(error) => {
                    // They are written with the next one.
                    let newer = std::mem::replace(&mut state.lines, lines);
                    state.keep(&newer);
                    self.failed(&mut state, &error.to_string());
                }
            }
            self.changed.notify_all();
        }
    }

    /// Returns the number of the last checkpoint that is there.
    fn copied(&self) -> Option<u64> {
        let end = end_of(&self.path, 2 * MAX_LINE as u64).ok()?;
        let mut lines = end.rsplit(|byte| *byte == b'\n');
        lines.find_map(|line| Sealed::parse(line).map(|sealed| sealed.link.seq))
    }

    /// Appends lines. The file is opened each time, so that a mount that comes and goes is found again.
    fn append(&self, lines: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.path)?;
        // An incomplete earlier line must not run into this one.
        let mut last = [b'\n'];
        if file.metadata()?.len() > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
        file.write_all(lines)?;
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_of_too_many_uncopied_checkpoints_are_retained() {
        for (lines, retained) in [(4, 4 << 20), (5, 1 << 20)] {
            let mut state = State::default();
            for line in 1..=lines {
                state.keep(&vec![line; 1 << 20]);
            }
            assert_eq!((state.lines.len(), state.lines.last()), (retained, Some(&lines)));
        }
    }
}
