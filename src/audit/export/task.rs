//! The task of an export: reads lines, sends them, and stores the receiver's position.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    backlog::Export,
    otlp::{self, Refused},
    reader::{BATCH_BYTES, Batch, Cursor, End, read},
    settings::Target,
    syslog::{self, Connection, IN_FLIGHT, SETTLES},
};
use crate::{
    admin::health::ComponentHandle,
    clock::{Clock, jitter},
    supervisor::TaskResult,
};

/// The back-off after a failure, which doubles up to a limit.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The back-off after a response that will not change until somebody fixes the cause.
const SLOW: Duration = Duration::from_secs(60);
/// How long a connection must have been open for its server to count as accepting lines, and for its end not to extend
/// the back-off.
const STEADY: Duration = Duration::from_secs(10);
/// How long lines are collected for one OTLP call.
const LINGER: Duration = Duration::from_millis(500);
/// The shortest time between two writes of the position.
const SAVE: Duration = Duration::from_secs(1);
/// How long sending may continue at shutdown.
const FINISH: Duration = Duration::from_secs(4);
/// How long calls stay small after one was too large: if each grew again, every second call would be too large.
const STAYS_SMALL: Duration = Duration::from_secs(600);
/// In-flight lines are tracked in steps of this time and size.
const STEP: (Duration, i64) = (Duration::from_secs(1), 1 << 20);

/// Sends the trail until `stop`, and then the rest of it, for some seconds at most. The trail should have ended before
/// `stop`, so that its last lines are sent too.
pub async fn run(export: Export, clock: Clock, component: ComponentHandle, stop: CancellationToken) -> TaskResult {
    let end = export.end();
    let mut task = Task::new(export, clock, component);
    let too_late = async {
        stop.cancelled().await;
        sleep(FINISH).await;
    };
    tokio::select! {
        () = task.work(end, &stop) => {}
        () = too_late => {
            tracing::warn!(
                export = &**task.export.name(),
                "not all of the audit trail was sent; the rest will be sent after the next start"
            );
        }
    }
    task.settle();
    task.save().await;
    Ok(())
}

struct Task {
    export: Export,
    clock: Clock,
    component: ComponentHandle,
    /// The end of the lines that were sent.
    cursor: Cursor,
    /// The connection to a syslog server, and its target.
    connection: Option<(Connection, Arc<Target>)>,
    /// Lines that were sent on the connection and do not count as received yet.
    in_flight: VecDeque<Sent>,
    /// Whether the connection has not been open long enough to prove that its server accepts lines: a server that
    /// rejects our certificate does so after the handshake (TLS 1.3), when the first lines are already in flight.
    unproven: bool,
    pause: Duration,
    /// Bytes of lines that a call may have.
    most: usize,
    /// When a call was last too large, until calls may grow again.
    too_large: Option<Instant>,
    /// Whether more is settled than the stored position says.
    unsaved: bool,
    saved: Instant,
}

/// A part of the lines sent on a connection.
struct Sent {
    since: Instant,
    from: i64,
    after: Cursor,
}

/// Why a batch was not sent.
struct Failure {
    cause: &'static str,
    why: String,
    retry: Retry,
}

/// When to retry.
enum Retry {
    /// At once, because the next call is smaller.
    AtOnce,
    /// After the back-off, which grows with each failure, but not before this time.
    After(Duration),
}

impl Failure {
    fn new(cause: &'static str, why: impl Into<String>) -> Self {
        Self { cause, why: why.into(), retry: Retry::After(Duration::ZERO) }
    }
}

impl Task {
    fn new(export: Export, clock: Clock, component: ComponentHandle) -> Self {
        let settled = export.goes_back();
        // After a panic of an earlier task: its in-flight lines are sent again.
        export.set_sent(&settled);
        Self {
            clock,
            component,
            cursor: settled,
            connection: None,
            in_flight: VecDeque::new(),
            unproven: false,
            pause: FIRST_PAUSE,
            most: BATCH_BYTES,
            too_large: None,
            unsaved: false,
            saved: Instant::now(),
            export,
        }
    }

    async fn work(&mut self, mut end: watch::Receiver<End>, stop: &CancellationToken) {
        loop {
            self.settle();
            if self.unsaved && self.saved.elapsed() >= SAVE {
                self.save().await;
            }
            let known = *end.borrow_and_update();
            let sent = match self.read(known).await {
                Ok(Some(batch)) => self.send(&batch).await,
                // The trail may have ended after its end was read.
                Ok(None) if stop.is_cancelled() && !end.has_changed().unwrap_or(false) => {
                    if let Err(error) = self.close().await {
                        let export = &**self.export.name();
                        tracing::warn!(
                            export,
                            %error,
                            "the syslog server did not confirm the end of the connection; lines will be sent again"
                        );
                    }
                    return;
                }
                Ok(None) => self.rest(&mut end, stop).await,
                Err(error) => Err(Failure::new("trail", format!("the audit trail cannot be read: {error}"))),
            };
            let Err(failure) = sent else { continue };
            if let Some(pause) = self.fail(failure) {
                if stop.is_cancelled() {
                    return;
                }
                tokio::select! {
                    () = sleep(pause) => {}
                    () = stop.cancelled() => {}
                }
            }
        }
    }

    async fn read(&self, mut end: End) -> io::Result<Option<Batch>> {
        let (export, from, most) = (self.export.clone(), self.cursor, self.most);
        let reading = tokio::task::spawn_blocking(move || {
            let batch = loop {
                let batch = read(export.trail(), from, end, most);
                let known = std::mem::replace(&mut end, export.end_now());
                if known.place.file == end.place.file {
                    break batch?;
                }
                // The batch may be from the file that replaced one that somebody moved, or the read failed as that file
                // is shorter.
            };
            if let Some(batch) = &batch {
                export.reads(batch.first, batch.after.last.seq);
            }
            Ok(batch)
        });
        reading.await.map_err(io::Error::other)?
    }

    async fn send(&mut self, batch: &Batch) -> Result<(), Failure> {
        let target = self.export.target();
        if self.connection.as_ref().is_some_and(|(_, to)| !Arc::ptr_eq(to, &target)) {
            self.close().await.map_err(|error| Failure::new("connection", error.to_string()))?;
        }
        match &*target {
            Target::Syslog(server) => {
                let (connection, _) = match &mut self.connection {
                    Some(connection) => connection,
                    None => {
                        let connection = server.connect().await;
                        let connection = connection.map_err(|error| Failure::new("unreachable", error.to_string()))?;
                        self.connection.insert((connection, Arc::clone(&target)))
                    }
                };
                let mut messages = Vec::with_capacity(batch.bytes.len() + 128 * batch.count);
                for line in batch.lines() {
                    syslog::frame(line, self.export.instance(), &mut messages);
                }
                connection.send(&messages).await.map_err(|error| Failure::new("connection", error.to_string()))?;
                self.flies(batch.after);
                self.unproven = true;
            }
            Target::Otlp(collector) => {
                let now = self.clock.now();
                let taken = collector.send(otlp::encode(batch.lines(), self.export.instance(), now), now).await;
                let taken = taken.map_err(|refused| self.refused(refused, batch))?;
                if taken.rejected > 0 {
                    self.export.metrics().rejected.inc_by(taken.rejected);
                    let (export, why) = (&**self.export.name(), &*taken.why);
                    tracing::error!(
                        export,
                        lines = taken.rejected,
                        why,
                        "the receiver rejected lines of the audit trail"
                    );
                }
                self.grow();
                self.export.set_settled(&batch.after);
                self.unsaved = true;
                self.succeeds();
            }
        }
        self.cursor = batch.after;
        self.export.set_sent(&batch.after);
        self.export.metrics().lines.inc_by(batch.count as u64);
        Ok(())
    }

    /// Records that the receiver accepts what it is sent.
    fn succeeds(&mut self) {
        self.pause = FIRST_PAUSE;
        self.export.metrics().last_success.set(self.clock.now().as_secs());
        self.component.ok();
    }

    fn refused(&mut self, refused: Refused, batch: &Batch) -> Failure {
        match refused {
            // `after` is 0 if the receiver means less than a second, or gave a date by a clock that is behind ours.
            Refused::Later { cause, why, after } => Failure { cause, why, retry: Retry::After(after) },
            // Receivers limit bytes: a few large lines do not say how many small ones they accept.
            Refused::TooLarge(why) if batch.count > 1 => {
                self.most = batch.bytes.len() / 2;
                self.too_large = Some(Instant::now());
                Failure { cause: "too_large", why, retry: Retry::AtOnce }
            }
            Refused::TooLarge(why) | Refused::Never(why) => {
                Failure { cause: "refused", why, retry: Retry::After(SLOW) }
            }
        }
    }

    /// Lets the next call be larger, after one was accepted.
    fn grow(&mut self) {
        if self.too_large.is_none_or(|since| since.elapsed() >= STAYS_SMALL) {
            self.too_large = None;
            self.most = (self.most * 2).min(BATCH_BYTES);
        }
    }

    /// Waits until there is more work.
    async fn rest(&mut self, end: &mut watch::Receiver<End>, stop: &CancellationToken) -> Result<(), Failure> {
        let settles = self.in_flight.front().map(|sent| sent.since + STEP.0 + SETTLES);
        let saves = self.unsaved.then(|| self.saved + SAVE);
        let proves =
            self.connection.as_ref().filter(|_| self.unproven).map(|(connection, _)| connection.since() + STEADY);
        let due = settles.into_iter().chain(saves).chain(proves).min();
        let due_in = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let ended = async {
            match &mut self.connection {
                Some((connection, _)) => connection.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            why = ended => return Err(Failure::new("connection", why.to_string())),
            changed = end.changed() => if changed.is_err() {
                // Without a trail there will be no more lines.
                stop.cancelled().await;
            },
            () = stop.cancelled() => return Ok(()),
            () = due_in => return Ok(()),
        }
        if matches!(&*self.export.target(), Target::Otlp(_)) {
            // At shutdown there is no reason to collect more lines.
            let _ = timeout(LINGER, stop.cancelled()).await;
        }
        Ok(())
    }

    /// Goes back to the receiver's known position, and returns how long to wait before the next try, if at all.
    fn fail(&mut self, Failure { cause, why, retry }: Failure) -> Option<Duration> {
        self.export.metrics().failed(cause);
        self.component.degraded(format!("the audit trail cannot be sent: {why}"));
        if self.connection.take().is_some_and(|(connection, _)| connection.since().elapsed() >= STEADY) {
            self.pause = FIRST_PAUSE;
        }
        self.in_flight.clear();
        self.unproven = false;
        self.cursor = self.export.goes_back();
        self.export.set_sent(&self.cursor);
        let Retry::After(least) = retry else { return None };
        let spread = self.pause.mul_f64(0.5 + jitter() / 2.0);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Some(spread.max(least))
    }

    /// Tracks lines that were sent and that nobody acknowledges.
    fn flies(&mut self, after: Cursor) {
        let (now, from) = (Instant::now(), self.cursor.total);
        match self.in_flight.back_mut() {
            Some(sent) if sent.since.elapsed() < STEP.0 && after.total - sent.from < STEP.1 => sent.after = after,
            _ => self.in_flight.push_back(Sent { since: now, from, after }),
        }
    }

    /// Checks which lines count as received now, and whether the connection has been open long enough.
    fn settle(&mut self) {
        let stands = |(connection, _): &(Connection, _)| connection.since().elapsed() >= STEADY;
        if self.unproven && self.connection.as_ref().is_some_and(stands) {
            self.unproven = false;
            self.succeeds();
        }
        let (head, far) = (self.cursor.total, i64::try_from(IN_FLIGHT).unwrap_or(i64::MAX));
        let is_settled =
            |sent: &&Sent| sent.since.elapsed() >= STEP.0 + SETTLES || head.saturating_sub(sent.after.total) >= far;
        let settled = self.in_flight.iter().take_while(is_settled).count();
        if let Some(sent) = self.in_flight.drain(..settled).next_back() {
            self.export.set_settled(&sent.after);
            self.unsaved = true;
        }
    }

    /// Closes the connection in an orderly way, after which all lines count as received.
    async fn close(&mut self) -> io::Result<()> {
        let Some((connection, _)) = self.connection.take() else { return Ok(()) };
        connection.close().await?;
        if std::mem::take(&mut self.unproven) {
            self.succeeds();
        }
        if let Some(sent) = self.in_flight.drain(..).next_back() {
            self.export.set_settled(&sent.after);
            self.unsaved = true;
        }
        Ok(())
    }

    async fn save(&mut self) {
        self.saved = Instant::now();
        if !std::mem::take(&mut self.unsaved) {
            return;
        }
        let export = self.export.clone();
        let saving = tokio::task::spawn_blocking(move || export.save());
        if let Err(error) = saving.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            self.unsaved = true;
            self.export.metrics().failed("position");
            let export = &**self.export.name();
            tracing::error!(
                export,
                %error,
                "the position of an export cannot be stored; after a restart lines will be sent again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    mod pauses;

    use std::fs;

    use tokio::time::advance;

    use super::*;
    use crate::{
        admin::health::{Gate, Health},
        audit::export::{
            Place,
            tests::{Written, limit, open},
        },
        config::raw::WhenBehind,
    };

    /// After `Retry-After: 0`, or a date in the past, it was called again in a loop without any pause.
    #[test]
    fn a_busy_receiver_is_retried_with_growing_pauses_even_if_it_asks_for_none() {
        let trail = Written::new(&[2]);
        let (_backlog, export) = open(&trail, limit(None, WhenBehind::Refuse));
        let clock = Clock::default();
        let component = Health::new(clock.clone()).component("export", Gate::Report);
        let mut task = Task::new(export, clock, component);
        let batch = lines(&task, 2, 100);
        let busy = |task: &mut Task, after: Duration| {
            let failure = task.refused(Refused::Later { cause: "busy", why: String::new(), after }, &batch);
            task.fail(failure).unwrap()
        };
        // The upper half is jitter.
        let mut least = FIRST_PAUSE / 2;
        for _ in 0..10 {
            let pause = busy(&mut task, Duration::ZERO);
            assert!(pause >= least && pause <= least * 2, "{pause:?} and not {least:?}");
            least = (least * 2).min(LONGEST_PAUSE / 2);
        }
        assert_eq!(busy(&mut task, Duration::from_secs(120)), Duration::from_secs(120));
        // A call of half the size is tried at once.
        let failure = task.refused(Refused::TooLarge(String::new()), &batch);
        assert_eq!(task.fail(failure), None);
    }

    /// Every second call was refused, for as long as there was a backlog.
    #[tokio::test(start_paused = true)]
    async fn calls_that_became_smaller_for_a_receiver_stay_so_for_some_minutes() {
        let trail = Written::new(&[2]);
        let (_backlog, export) = open(&trail, limit(None, WhenBehind::Refuse));
        let clock = Clock::default();
        let component = Health::new(clock.clone()).component("export", Gate::Report);
        let mut task = Task::new(export, clock, component);
        let calls = |task: &mut Task| (0..10).filter(|_| !call(task, 1 << 10).1).count();
        assert_eq!([calls(&mut task), calls(&mut task)], [2, 0]);
        advance(STAYS_SMALL).await;
        assert_eq!(calls(&mut task), 1, "it may take more by now");
    }

    /// Each call with a few large lines halved the lines of all that came after it, down to one in a call, and the
    /// export fell behind.
    #[tokio::test(start_paused = true)]
    async fn a_few_large_lines_do_not_make_calls_with_small_ones_smaller_than_the_receiver_takes() {
        let trail = Written::new(&[2]);
        let (_backlog, export) = open(&trail, limit(None, WhenBehind::Refuse));
        let clock = Clock::default();
        let component = Health::new(clock.clone()).component("export", Gate::Report);
        let mut task = Task::new(export, clock, component);
        for _ in 0..5 {
            for _ in 0..4 {
                call(&mut task, 14 << 10);
            }
            let (count, is_taken) = call(&mut task, 1 << 10);
            assert!(is_taken && count > TAKES / 2048, "{count} lines");
            advance(STAYS_SMALL * 9 / 10).await;
        }
    }

    /// The new file was sent from the receiver's position in the moved one on; if it was shorter than that, the trail
    /// could not be read.
    #[tokio::test]
    async fn a_new_file_is_not_mistaken_for_the_one_that_was_moved() {
        for count in [4, 1] {
            let trail = Written::new(&[2]);
            let (backlog, export) = open(&trail, limit(None, WhenBehind::Refuse));
            let end = export.end_now();
            let clock = Clock::default();
            let component = Health::new(clock.clone()).component("export", Gate::Report);
            let mut task = Task::new(export, clock, component);
            task.cursor = task.read(end).await.unwrap().unwrap().after;
            task.cursor.place.offset /= 2;
            let other = Written::new(&[count]);
            fs::copy(other.path(), trail.path()).unwrap();
            let offset = fs::metadata(trail.path()).unwrap().len();
            backlog.grown(End { place: Place { file: end.place.file + 1, offset }, total: end.total });
            let read = task.read(end).await.unwrap().unwrap();
            assert_eq!((read.first, read.bytes), (Some(1), fs::read(trail.path()).unwrap()));
        }
    }

    /// Bytes that a receiver accepts in a call.
    const TAKES: usize = 128 << 10;

    fn lines(task: &Task, count: usize, size: usize) -> Batch {
        Batch { bytes: vec![b'x'; count * size], count, first: None, after: task.cursor }
    }

    /// Makes a call with as many lines of a size as allowed. Returns how many, and whether they were accepted.
    fn call(task: &mut Task, size: usize) -> (usize, bool) {
        let batch = lines(task, (task.most / size).max(1), size);
        let is_taken = batch.bytes.len() <= TAKES;
        if is_taken {
            task.grow();
        } else {
            let failure = task.refused(Refused::TooLarge(String::new()), &batch);
            task.fail(failure);
        }
        (batch.count, is_taken)
    }
}
