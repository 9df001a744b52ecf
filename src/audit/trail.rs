//! The handle through which the rest of the program writes to the trail. Writing moves the record into a queue;
//! everything else happens on the trail's own thread.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
        mpsc,
    },
    thread::{self, JoinHandle, Thread},
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

use super::{
    chain::Link,
    checkpoints::SecondPlace,
    export::{Backlog, Export},
    heads::{Head, Heads},
    item::{Entry, Item, Reply},
    keys,
    metrics::Metrics,
    note::Note,
    record::Record,
    reservation::Reservation,
    room::{Held, Room},
    settings::{Destination, Settings},
    sink::{self, Found, RotatingFile, Sink, Stdout},
    unavailable::AuditUnavailable,
    watchdog::{MAX_STALL, STALLED, Watchdog},
    writer::{END_TIMEOUT, Writer},
};
use crate::{clock::Clock, config::raw::WhenFull, lock::lock};

/// Bytes that may wait for the thread, not counting records of requests that were let through under `when_full:
/// refuse`.
pub(super) const MAX_WAITING: usize = 16 << 20;

/// The audit trail. Clones write to the same one.
#[derive(Clone, Debug)]
pub struct Trail(Arc<Handle>);

impl Trail {
    /// Opens the trail and starts its thread. Keys that are not configured are read from `key_directory`, or created
    /// there. Each replica has its own chain.
    pub fn open(settings: &Settings, key_directory: &Path, clock: Clock) -> Result<Self, OpenError> {
        let chain_key = match &settings.chain_key {
            Some(key) => key.clone(),
            None => keys::load_or_create_chain_key(key_directory).map_err(OpenError::Key)?,
        };
        let checkpoint_key = match &settings.checkpoint_key {
            Some(key) => key.clone(),
            None => keys::load_or_create_checkpoint_key(key_directory).map_err(OpenError::Key)?,
        };
        let mut backlog = Arc::new(Backlog::none());
        let (sink, found): (Box<dyn Sink>, _) = match &settings.destination {
            Destination::Stdout => (Box::new(Stdout), Found { last: Link::NONE, empty: false, repaired: 0 }),
            Destination::File { path, max_size, retention } => {
                let failed = |source| OpenError::File { path: path.clone(), source };
                // A rotation renames the file: of a symbolic link it would rename the link, and go on in that folder.
                let path = &sink::place_of(path).map_err(failed)?;
                let opened = RotatingFile::open(path, *max_size, *retention, clock.now());
                let (mut sink, found) = opened.map_err(failed)?;
                if !settings.exports.is_empty() {
                    sink.sync().map_err(failed)?;
                    let opened =
                        Backlog::open(path, &settings.exports, key_directory, &settings.instance, sink.place());
                    backlog = Arc::new(opened.map_err(failed)?);
                    sink.keep_for(Arc::clone(&backlog));
                }
                (Box::new(sink), found)
            }
        };
        let keys = Keys { chain: chain_key, checkpoint: checkpoint_key };
        Self::start(settings, keys, Opened { sink, found, backlog }, clock)
    }

    /// Checks whether [`Self::open`] can use the keys in `key_directory`, without a change.
    pub fn examine_keys(settings: &Settings, key_directory: &Path) -> Result<(), OpenError> {
        if settings.chain_key.is_none() {
            keys::examine_chain_key(key_directory).map_err(OpenError::Key)?;
        }
        if settings.checkpoint_key.is_none() {
            keys::examine_checkpoint_key(key_directory).map_err(OpenError::Key)?;
        }
        Ok(())
    }

    /// Checks whether [`Self::open`] can continue what is in the place of the trail, without a lock or a change.
    pub fn examine(settings: &Settings) -> Result<(), OpenError> {
        let Destination::File { path, .. } = &settings.destination else { return Ok(()) };
        sink::examine(path).map_err(|source| OpenError::File { path: path.clone(), source })
    }

    /// Creates the writer over an open sink, with its queue and the state that it shares with the handle.
    pub(super) fn begin(
        settings: &Settings,
        keys: Keys,
        opened: Opened,
        clock: Clock,
    ) -> (mpsc::Sender<Item>, Arc<Shared>, Writer) {
        let metrics = Metrics { export: opened.backlog.metrics().clone(), ..Metrics::default() };
        let second_place = settings.checkpoint_copy.clone();
        let second_place = second_place.map(|path| SecondPlace::new(path, metrics.checkpoint_copy_errors.clone()));
        let second_place = second_place.map(Arc::new);
        let shared = Arc::new(Shared {
            instance: settings.instance.as_str().into(),
            room: Room::new(settings.queue),
            waiting: AtomicUsize::new(0),
            refuses: AtomicBool::new(settings.when_full == WhenFull::Refuse),
            lost: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            failure: Mutex::new(None),
            second_place,
            failing: AtomicBool::new(false),
            watchdog: Watchdog::new(metrics.slow_commits.clone()),
            metrics,
            backlog: Arc::clone(&opened.backlog),
            heads: Heads::default(),
        });
        let (sender, queue) = mpsc::channel();
        let writer = Writer::begin(settings, keys, opened, queue, Arc::clone(&shared), clock);
        (sender, shared, writer)
    }

    /// Starts the thread over an open sink.
    pub(super) fn start(settings: &Settings, keys: Keys, opened: Opened, clock: Clock) -> Result<Self, OpenError> {
        let (sender, shared, writer) = Self::begin(settings, keys, opened, clock);
        let (ending, ended) = mpsc::channel();
        let run = move || {
            // Dropping it signals the end, also in a panic.
            let _ending: mpsc::Sender<()> = ending;
            writer.run();
        };
        let thread = thread::Builder::new().name("audit".to_owned()).spawn(run).map_err(OpenError::Thread)?;
        let handle =
            Handle { sender, shared, writer: thread.thread().clone(), thread: Mutex::new(Some((thread, ended))) };
        Ok(Self(Arc::new(handle)))
    }

    /// Reserves space for `records` records of one request, before it is forwarded. If there is none it waits, for
    /// `MAX_STALL` at most. Under `when_full: continue` it does not wait, and fails only once the trail is closed, or
    /// while a receiver is further behind than allowed.
    pub async fn reserve(&self, records: u32) -> Result<Reservation, AuditUnavailable> {
        self.take_or_wait(records, false).await
    }

    /// Reserves space for a request that must not happen unrecorded, whatever `when_full` says.
    pub async fn reserve_strictly(&self, records: u32) -> Result<Reservation, AuditUnavailable> {
        self.take_or_wait(records, true).await
    }

    /// Checks whether a record would be taken, before work that would be wasted otherwise. Reserves nothing: that
    /// happens only once the caller is known.
    pub fn check(&self) -> Result<(), AuditUnavailable> {
        let shared = &self.0.shared;
        let begins = match self.may_begin(1, false) {
            // A reservation would fail at once in this state.
            Ok(true) if !shared.room.has_any() && shared.watchdog.has_stalled() => Err(AuditUnavailable::Full),
            begins => begins.map(|_| ()),
        };
        begins.inspect_err(|why| self.metrics().refused(*why))
    }

    async fn take_or_wait(&self, records: u32, is_strict: bool) -> Result<Reservation, AuditUnavailable> {
        let taken = match self.take_room(records, is_strict) {
            // Boxed, as it is rare and large.
            Err(AuditUnavailable::Full) => Box::pin(self.wait_for_room(records, is_strict)).await,
            taken => taken,
        };
        taken.inspect_err(|why| self.metrics().refused(*why))
    }

    /// Reserves space if there is some that no other request waits for.
    pub(super) fn take_room(&self, records: u32, is_strict: bool) -> Result<Reservation, AuditUnavailable> {
        let is_promised = self.may_begin(records, is_strict)?;
        let fits = self.0.shared.room.take(records);
        if !fits && is_promised {
            self.0.wake();
            return Err(AuditUnavailable::Full);
        }
        let room = if fits { records } else { 0 };
        Ok(Reservation { handle: Arc::clone(&self.0), room, is_promised, is_strict })
    }

    /// Whether a request may begin, space aside. The value says whether it may begin only with a guaranteed record.
    fn may_begin(&self, records: u32, is_strict: bool) -> Result<bool, AuditUnavailable> {
        let shared = &self.0.shared;
        if shared.closed.load(Ordering::Relaxed) {
            return Err(AuditUnavailable::Closed);
        }
        if shared.backlog.refuses() {
            return Err(AuditUnavailable::Behind);
        }
        let is_promised = is_strict || shared.refuses.load(Ordering::Relaxed);
        if is_promised && shared.failing.load(Ordering::Relaxed) {
            return Err(AuditUnavailable::Failing);
        }
        // With several records the first must be on stable storage before the request is executed, and would be late.
        if is_promised && records > 1 && shared.watchdog.has_stalled() {
            return Err(AuditUnavailable::Slow);
        }
        Ok(is_promised)
    }

    /// Waits for space behind earlier requests.
    async fn wait_for_room(&self, records: u32, is_strict: bool) -> Result<Reservation, AuditUnavailable> {
        let shared = &self.0.shared;
        if !shared.room.suffices_for(records) || shared.watchdog.has_stalled() {
            return Err(AuditUnavailable::Full);
        }
        let _counted = shared.metrics.begin_wait();
        shared.show_queue();
        let wait = async {
            loop {
                // Created before the check, so that no change is missed.
                let changed = shared.room.changed.notified();
                match self.take_room(records, is_strict) {
                    Err(AuditUnavailable::Full) => {}
                    taken => return taken,
                }
                tokio::select! {
                    biased;
                    is_taken = shared.room.wait(records) => {
                        if !is_taken {
                            return Err(AuditUnavailable::Closed);
                        }
                        let handle = Arc::clone(&self.0);
                        let mut taken = Reservation { handle, room: records, is_promised: true, is_strict };
                        // Not every change is notified to waiting requests.
                        taken.is_promised = self.may_begin(records, is_strict)?;
                        return Ok(taken);
                    }
                    () = changed => {}
                }
            }
        };
        timeout(MAX_STALL, wait).await.unwrap_or(Err(AuditUnavailable::Full))
    }

    /// Counts and returns the refusal of a request whose own deadline passed while it waited for the trail.
    pub fn out_of_time(&self) -> AuditUnavailable {
        self.metrics().refused(AuditUnavailable::Slow);
        AuditUnavailable::Slow
    }

    /// Writes a record after the fact, when refusing is no longer possible: for example the end of a long stream, which
    /// does not hold a reservation for hours. Such records have as many places as requests; beyond these the record is
    /// lost and counted.
    pub fn write(&self, record: impl Into<Box<Record>>) {
        self.0.push_after_the_fact(Entry::Record(record.into()), None);
    }

    /// Records something that happened outside of any request.
    pub fn note(&self, note: Note) {
        self.0.push_after_the_fact(Entry::Note(Box::new(note)), None);
    }

    /// Records a note as [`Trail::note`] does, and returns when it is on stable storage.
    pub async fn note_durable(&self, note: Note) -> Result<(), AuditUnavailable> {
        let (reply, answer) = oneshot::channel();
        self.0.push_after_the_fact(Entry::Note(Box::new(note)), Some(reply));
        let written = self.0.durable(answer).await;
        self.0.as_configured(written)
    }

    /// Records a note as [`Trail::note_durable`] does, for callers that retry until it succeeds. While the sink fails
    /// or is known to hang, nothing is queued, as each try would add a line; if there is no place, nothing counts as
    /// lost. A note that is tried just as the sink begins to hang may be recorded twice.
    pub async fn note_once(&self, note: Note) -> Result<(), AuditUnavailable> {
        let shared = &self.0.shared;
        if shared.refuses.load(Ordering::Relaxed) {
            if shared.failing.load(Ordering::Relaxed) {
                return Err(AuditUnavailable::Failing);
            }
            if shared.watchdog.has_stalled() {
                return Err(AuditUnavailable::Slow);
            }
            if !shared.room.has_besides() {
                self.0.wake();
                return Err(AuditUnavailable::Full);
            }
        }
        self.note_durable(note).await
    }

    /// Returns the name of this replica.
    pub fn instance(&self) -> &str {
        &self.0.shared.instance
    }

    pub fn metrics(&self) -> &Metrics {
        &self.0.shared.metrics
    }

    /// Watches the last checkpoint on stable storage.
    pub fn head(&self) -> watch::Receiver<Option<Head>> {
        self.0.shared.heads.watch()
    }

    /// Adds checkpoints of other replicas that the next checkpoint is to name.
    pub fn witness(&self, heads: impl IntoIterator<Item = Head>) {
        self.0.shared.heads.witness(heads);
    }

    /// Returns why requests cannot be recorded at the moment, for readiness; none if they can.
    pub fn failure(&self) -> Option<String> {
        let shared = &self.0.shared;
        let stalled = || shared.watchdog.has_stalled().then(|| STALLED.to_owned());
        lock(&shared.failure).clone().or_else(stalled).or_else(|| shared.backlog.why())
    }

    /// Whether requests are refused while they cannot be recorded.
    pub fn refuses(&self) -> bool {
        let shared = &self.0.shared;
        let is_closed = shared.closed.load(Ordering::Relaxed);
        is_closed || shared.refuses.load(Ordering::Relaxed) || shared.backlog.refuses()
    }

    /// Whether copies of checkpoints are written, and why not; none if no place for copies is configured.
    pub fn checkpoint_copy(&self) -> Option<Result<(), String>> {
        self.0.shared.second_place.as_ref().map(|place| place.failure().map_or(Ok(()), Err))
    }

    /// Returns the exports of the trail, for the tasks that send them.
    pub fn exports(&self) -> &[Export] {
        self.0.shared.backlog.exports()
    }

    /// Applies a new configuration generation: the settings of existing receivers, and `when_full`. Everything else
    /// takes a restart.
    pub fn follow(&self, settings: &Settings) {
        self.0.shared.refuses.store(settings.when_full == WhenFull::Refuse, Ordering::Relaxed);
        self.0.shared.backlog.set(&settings.exports);
        self.0.shared.room.changed.notify_waiters();
    }

    /// Writes the queued records and a last checkpoint, and ends the thread. Blocks, for some seconds at most if the
    /// sink fails or hangs.
    pub fn shutdown(&self) {
        self.shutdown_within(END_TIMEOUT);
    }

    pub(super) fn shutdown_within(&self, patience: Duration) {
        self.0.shared.close();
        self.0.writer.unpark();
        let thread = lock(&self.0.thread).take();
        let Some((thread, ended)) = thread else { return };
        if ended.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
            let records = self.0.shared.room.used();
            tracing::error!(
                records,
                "the audit trail did not end in time: a write or sync of its sink does not return; its last records may be missing"
            );
            return;
        }
        if thread.join().is_err() {
            tracing::error!("the thread of the audit trail panicked");
        }
    }
}

/// The trail could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the audit trail cannot be opened: {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("a key of the audit trail cannot be read or made: {0}")]
    Key(io::Error),
    #[error("the thread of the audit trail cannot be started: {0}")]
    Thread(io::Error),
}

/// The opened destination of the trail, and what was found there.
pub(super) struct Opened {
    pub(super) sink: Box<dyn Sink>,
    pub(super) found: Found,
    pub(super) backlog: Arc<Backlog>,
}

/// The keys that a trail is written with.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) chain: super::ChainKey,
    pub(super) checkpoint: super::CheckpointKey,
}

/// The state that the handle and the thread share.
pub(super) struct Shared {
    /// The name of this replica.
    pub(super) instance: Arc<str>,
    /// Places are returned when the sink has the line.
    pub(super) room: Room,
    /// Bytes that wait in the queue, roughly.
    pub(super) waiting: AtomicUsize,
    /// Whether requests are refused when the sink takes no more. Follows a reload, because it may have to be changed in
    /// an incident.
    refuses: AtomicBool,
    /// Records lost since the last gap was recorded.
    pub(super) lost: AtomicU64,
    /// Whether the thread sleeps until it is woken.
    pub(super) asleep: AtomicBool,
    pub(super) closed: AtomicBool,
    pub(super) failing: AtomicBool,
    /// How long the current commit has taken.
    pub(super) watchdog: Watchdog,
    pub(super) failure: Mutex<Option<String>>,
    /// Where checkpoints are copied to.
    pub(super) second_place: Option<Arc<SecondPlace>>,
    pub(super) metrics: Metrics,
    pub(super) backlog: Arc<Backlog>,
    pub(super) heads: Heads,
}

impl Shared {
    /// Takes nothing more, and turns away requests that wait for space.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.room.close();
    }

    /// Refuses requests from now on, including those that wait for space.
    pub(super) fn fail(&self, why: String) {
        *lock(&self.failure) = Some(why);
        self.failing.store(true, Ordering::Relaxed);
        self.room.changed.notify_waiters();
    }

    pub(super) fn show_queue(&self) {
        self.metrics.queued.set(i64::try_from(self.room.used()).unwrap_or(i64::MAX));
    }

    pub(super) fn lose(&self, records: u64) {
        self.lost.fetch_add(records, Ordering::Relaxed);
        self.metrics.lost.inc_by(records);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("room", &self.room).finish_non_exhaustive()
    }
}

/// The sending end. The thread ends when the last one is dropped.
#[derive(Debug)]
pub(super) struct Handle {
    sender: mpsc::Sender<Item>,
    pub(super) shared: Arc<Shared>,
    writer: Thread,
    /// The thread, and a channel that closes when it ends.
    thread: Mutex<Option<(JoinHandle<()>, mpsc::Receiver<()>)>>,
}

impl Handle {
    /// Queues an entry, for which a place must have been taken.
    pub(super) fn push(&self, entry: Entry, reply: Option<Reply>, held: Held, is_promised: bool) {
        let weight = entry.weight();
        let waiting = self.shared.waiting.fetch_add(weight, Ordering::Relaxed);
        if waiting + weight > MAX_WAITING && !is_promised {
            self.shared.waiting.fetch_sub(weight, Ordering::Relaxed);
            self.shared.room.give_back(held);
            return self.lose(reply);
        }
        let urgent = reply.is_some() || self.shared.room.is_filling();
        if self.sender.send(Item { entry, weight, held, is_promised, reply }).is_err() {
            self.shared.waiting.fetch_sub(weight, Ordering::Relaxed);
            self.shared.room.give_back(held);
            self.shared.lose(1);
            return;
        }
        // Pairs with the fence of the thread between setting `asleep` and its last check of the queue.
        fence(Ordering::SeqCst);
        if urgent || (self.shared.asleep.load(Ordering::Relaxed) && self.shared.asleep.swap(false, Ordering::Relaxed)) {
            self.writer.unpark();
        }
    }

    pub(super) fn push_after_the_fact(&self, entry: Entry, reply: Option<Reply>) {
        if self.shared.room.take_besides() {
            return self.push(entry, reply, Held::BESIDES, false);
        }
        self.lose(reply);
    }

    fn lose(&self, reply: Option<Reply>) {
        self.shared.lose(1);
        self.wake();
        if let Some(reply) = reply {
            // This fails if nobody waits any more.
            let _ = reply.send(Err(AuditUnavailable::Full));
        }
    }

    fn wake(&self) {
        self.writer.unpark();
    }

    pub(super) async fn durable(
        &self,
        answer: oneshot::Receiver<Result<(), AuditUnavailable>>,
    ) -> Result<(), AuditUnavailable> {
        if self.shared.watchdog.has_stalled() {
            return Err(AuditUnavailable::Slow);
        }
        match timeout(MAX_STALL, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(AuditUnavailable::Closed),
            Err(_) => Err(AuditUnavailable::Slow),
        }
    }

    /// Turns a failed write into success under `when_full: continue`, which lets requests proceed.
    pub(super) fn as_configured(&self, written: Result<(), AuditUnavailable>) -> Result<(), AuditUnavailable> {
        if self.shared.refuses.load(Ordering::Relaxed) { written } else { Ok(()) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
        self.writer.unpark();
    }
}
