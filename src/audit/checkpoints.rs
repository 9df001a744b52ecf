//! Checkpoints: when the next one is due, and their way to a second place. That place may be slow, away or hang for ever, as
//! a mount does whose server is gone: it has a thread of its own, for which nothing else waits.

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

/// Checkpoints of an outage of the second place: those of weeks.
const MAX_UNCOPIED: usize = 4 << 20;

/// How long the second place may take before it counts as failed.
const HANGS: Duration = Duration::from_secs(5);

/// When the next checkpoint is due, and what becomes of the last one.
pub(super) struct Checkpoints {
    pub every: u64,
    pub interval: Duration,
    /// Records since the last one.
    pub since: u64,
    pub last: Timestamp,
    /// A line to be copied as soon as the sink has it for good.
    pub unsaved: Vec<u8>,
    /// The number and the code of that line, which the next one links to.
    pub link: Link,
}

impl Checkpoints {
    pub(super) fn new(settings: &Settings, now: Timestamp) -> Self {
        Self {
            every: settings.checkpoint_records,
            interval: settings.checkpoint_interval,
            since: 0,
            last: now,
            unsaved: Vec::new(),
            link: Link::NONE,
        }
    }

    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        // Where the last one is still to come, the clock was set back.
        let is_soon = self.last <= now && now < self.last + self.interval;
        self.since >= self.every || !is_soon
    }
}

/// The second place of checkpoints, as the trail and the thread that writes there share it.
#[derive(Debug)]
pub(super) struct SecondPlace {
    path: PathBuf,
    errors: Counter,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Lines that are not there yet, those that it did not take first.
    lines: Vec<u8>,
    /// Whether one has come since it was last tried.
    is_due: bool,
    /// Since when its answer is waited for.
    asked: Option<Instant>,
    failure: Option<String>,
    is_closed: bool,
}

impl State {
    /// Keeps a line that is not there yet. Where there are too many, those that came before it are given up: the last one
    /// proves the most.
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

    /// Starts the thread that writes there. Gives the number of the last checkpoint that is there, if that can be read soon.
    pub(super) fn start(self: &Arc<Self>) -> Option<u64> {
        let place = Arc::clone(self);
        let (tell, told) = mpsc::channel();
        self.state().asked = Some(Instant::now());
        let thread = thread::Builder::new().name("audit-copies".to_owned()).spawn(move || {
            let copied = place.copied();
            place.state().asked = None;
            // Nobody waits any more if it took long.
            let _ = tell.send(copied);
            place.run();
        });
        if let Err(error) = thread {
            let mut state = self.state();
            (state.asked, state.is_closed) = (None, true);
            self.failed(&mut state, &format!("there is no thread for it: {error}"));
            return None;
        }
        told.recv_timeout(HANGS).unwrap_or_else(|_| {
            tracing::error!(path = %self.path.display(), "the second place of checkpoints of the audit trail cannot be read, so whether the trail ends before its last checkpoint is not known");
            None
        })
    }

    /// Has a checkpoint written there, with those that it did not take before.
    pub(super) fn save(&self, line: &[u8]) {
        let mut state = self.state();
        state.keep(line);
        state.is_due = true;
        if let Some(waited) = state.hangs() {
            self.failed(&mut state, &format!("it has not answered for {} s", waited.as_secs()));
        }
        self.changed.notify_all();
    }

    /// Why it took no checkpoint; none if it did.
    pub(super) fn failure(&self) -> Option<String> {
        let state = self.state();
        let hangs =
            |waited: Duration| format!("{}: it has not answered for {} s", self.path.display(), waited.as_secs());
        state.hangs().map(hangs).or_else(|| state.failure.clone())
    }

    /// Waits, for so long at most, until it has what it was given, and ends the thread.
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
                    // They are brought with the next.
                    let newer = std::mem::replace(&mut state.lines, lines);
                    state.keep(&newer);
                    self.failed(&mut state, &error.to_string());
                }
            }
            self.changed.notify_all();
        }
    }

    /// The number of the last checkpoint that is there.
    fn copied(&self) -> Option<u64> {
        let end = end_of(&self.path, 2 * MAX_LINE as u64).ok()?;
        let mut lines = end.rsplit(|byte| *byte == b'\n');
        lines.find_map(|line| Sealed::parse(line).map(|sealed| sealed.link.seq))
    }

    /// Opened each time, so that a second place that comes and goes (a mount) is found again.
    fn append(&self, lines: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.path)?;
        // A half-written line of before must not swallow this one.
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
    fn of_too_many_checkpoints_that_were_not_copied_the_last_ones_are_retained() {
        for (lines, retained) in [(4, 4 << 20), (5, 1 << 20)] {
            let mut state = State::default();
            for line in 1..=lines {
                state.keep(&vec![line; 1 << 20]);
            }
            assert_eq!((state.lines.len(), state.lines.last()), (retained, Some(&lines)));
        }
    }
}
