//! The file and the two threads that own it.

use std::{
    io, mem,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redb::{
    CommitError, Database, DatabaseError, ReadableDatabase, StorageError, TableError, TransactionError,
    backends::FileBackend,
};
use tokio::sync::mpsc;

use super::{
    super::{Change, Put, StoreError, Stored, Table, WrittenAll},
    OpenError, Reply,
    file::{Opening, create, not_opened, owner_only, unwound},
    layout::{self, FORMAT},
};
use crate::{
    clock::{Clock, Timestamp},
    group_commit::GroupCommit,
    lock::lock,
};

/// Writes in one commit.
pub(super) const GROUP: usize = 256;

/// How long the clock must have shown a time, or later ones, before records that had expired by then are removed: a
/// clock that is ahead until it is set after boot must not remove valid records.
pub(super) const SWEEP_AFTER: Duration = Duration::from_secs(600);

/// Expired records that one commit removes from each table.
const SWEEP_LIMIT: usize = 512;

pub(super) enum Read {
    Get { table: Table, keys: Vec<Vec<u8>>, now: Timestamp, reply: Reply<Vec<Option<Stored>>> },
    Changes { table: Table, after: u64, limit: usize, now: Timestamp, reply: Reply<Vec<Change>> },
    Ping { reply: Reply<()> },
}

pub(super) enum Write {
    Put {
        puts: Vec<Put>,
        now: Timestamp,
        reply: Reply<WrittenAll>,
    },
    Delete {
        table: Table,
        key: Vec<u8>,
        reply: Reply<bool>,
    },
    /// Closes the file for good, after all writes before it.
    Close {
        reply: Reply<()>,
    },
}

/// The result of a write, until its group is on disk.
enum Done {
    Put(WrittenAll),
    Delete(bool),
    Close,
}

type Opener = Box<dyn Fn(Opening) -> Result<Database, DatabaseError> + Send + Sync>;

/// The file of the store.
enum Slot {
    Open(Arc<Database>),
    /// redb cannot be used after a disk error. The next call opens the file again.
    Closed,
    /// It is not opened again, for this reason.
    Ended(StoreError),
}

pub(super) struct Disk {
    path: PathBuf,
    opener: Opener,
    slot: Mutex<Slot>,
    /// Whether the last write failed. A disk that is full can still be opened and read.
    read_only: Arc<AtomicBool>,
    clock: Clock,
}

impl Disk {
    pub(super) fn file(path: &Path) -> Result<Self, OpenError> {
        let at = path.to_owned();
        Self::open(
            path,
            Box::new(move |opening| create(FileBackend::new(owner_only(&at, opening)?)?)),
            Clock::default(),
        )
    }

    /// Opens any storage of redb. `make` is called again after an error.
    #[cfg(test)]
    pub(super) fn storage<S: redb::StorageBackend>(
        make: impl Fn() -> S + Send + Sync + 'static,
        clock: Clock,
    ) -> Result<Self, OpenError> {
        Self::open(Path::new("memory"), Box::new(move |_| create(make())), clock)
    }

    fn open(path: &Path, opener: Opener, clock: Clock) -> Result<Self, OpenError> {
        let database = unwound(|| opened(path, &opener))
            .unwrap_or_else(|why| Err(OpenError::Corrupt { path: path.to_owned(), why }))?;
        let slot = Mutex::new(Slot::Open(Arc::new(database)));
        Ok(Self { path: path.to_owned(), opener, slot, read_only: Arc::default(), clock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn read_only(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.read_only)
    }

    /// Does `work` with the file. One that makes redb panic is damaged, and not used again.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, Failure>) -> Result<T, StoreError> {
        let done = unwound(|| {
            let database = self.database()?;
            work(&database).map_err(|failure| failure.0)
        });
        done.unwrap_or_else(|why| {
            let error = StoreError::Unavailable(format!(
                "it is damaged ({why}); stop Doorward, move the file away and start again: everybody must log in again, and the \
                 deliveries and revocations in it are lost"
            ));
            tracing::error!(path = %self.path.display(), %error, "the store failed and is not opened again");
            self.end(error.clone());
            Err(error)
        })
    }

    fn database(&self) -> Result<Arc<Database>, StoreError> {
        let mut slot = lock(&self.slot);
        match &*slot {
            Slot::Open(database) => return Ok(Arc::clone(database)),
            Slot::Closed => {}
            Slot::Ended(why) => return Err(why.clone()),
        }
        let database = Arc::new((self.opener)(Opening::Again).map_err(|error| Failure::from(error).0)?);
        // While writes fail, each of them closes the file.
        if !self.read_only.load(Ordering::Relaxed) {
            tracing::info!(path = %self.path.display(), "the store is open again");
        }
        *slot = Slot::Open(Arc::clone(&database));
        Ok(database)
    }

    /// Closes the file if `error` is one that redb does not recover from.
    fn close_after(&self, error: &StoreError) {
        if matches!(error, StoreError::Unavailable(_) | StoreError::Full(_)) {
            let mut slot = lock(&self.slot);
            if matches!(*slot, Slot::Open(_)) {
                *slot = Slot::Closed;
                if !self.read_only.load(Ordering::Relaxed) {
                    tracing::error!(path = %self.path.display(), %error, "the store failed; it will be opened again");
                }
            }
        }
    }

    /// Closes the file for good.
    fn end(&self, why: StoreError) {
        let before = mem::replace(&mut *lock(&self.slot), Slot::Ended(why));
        // A damaged file may panic once more.
        if let Err(why) = unwound(|| drop(before)) {
            tracing::warn!(path = %self.path.display(), why, "the store was not closed properly");
        }
    }

    pub(super) fn serve_reads(&self, mut queue: mpsc::Receiver<Read>) {
        while let Some(read) = queue.blocking_recv() {
            match read {
                Read::Get { table, keys, now, reply } => self.answer(reply, |database| {
                    let records = database.begin_read()?.open_table(layout::records(table))?;
                    let find = |key: &Vec<u8>| Ok(layout::find(&records, key)?.filter(|stored| stored.expires > now));
                    keys.iter().map(find).collect()
                }),
                Read::Changes { table, after, limit, now, reply } => self
                    .answer(reply, |database| Ok(layout::changes(&database.begin_read()?, table, after, limit, now)?)),
                Read::Ping { reply } => self.answer(reply, |database| {
                    database.begin_read()?.open_table(layout::COUNTERS)?;
                    Ok(())
                }),
            }
        }
    }

    fn answer<T>(&self, reply: Reply<T>, read: impl FnOnce(&Database) -> Result<T, Failure>) {
        let answer = self.with(read);
        if let Err(error) = &answer {
            self.close_after(error);
        }
        // The caller may have given up.
        let _ = reply.send(answer);
    }

    pub(super) fn serve_writes(&self, mut queue: mpsc::Receiver<Write>, mut gathering: GroupCommit) {
        let mut sweeps = Sweeps::default();
        let mut group = Vec::with_capacity(GROUP);
        while queue.blocking_recv_many(&mut group, GROUP) > 0 {
            // A full group takes no more writes.
            if group.len() < GROUP {
                gathering.gather(group.len(), || {
                    let room = GROUP.saturating_sub(group.len());
                    group.extend(std::iter::from_fn(|| queue.try_recv().ok()).take(room));
                    group.len()
                });
            }
            gathering.shared(group.len());
            // Writes whose caller gave up are dropped: a late write would surprise it.
            group.retain(|write| !write.abandoned());
            // Sweeps by the time of writes: without writes nothing grows, so nothing needs to be swept.
            let now = group.iter().filter_map(Write::now).min();
            let sweep = now.and_then(|now| sweeps.due(now, self.clock.passed()));
            match self.commit(&group, sweep) {
                Ok((done, removed)) => {
                    if self.read_only.swap(false, Ordering::Relaxed) {
                        tracing::info!(path = %self.path.display(), "the store can be written again");
                    }
                    // After a full sweep there may be more records to remove; the next group continues.
                    if removed.is_some_and(|removed| removed < SWEEP_LIMIT) {
                        sweeps = Sweeps::default();
                    }
                    if group.iter().any(|write| matches!(write, Write::Close { .. })) {
                        self.end(StoreError::Unavailable("it is closed, as Doorward stops".to_owned()));
                    }
                    group.drain(..).zip(done).for_each(|(write, done)| write.succeed(done));
                }
                Err(error) => {
                    if !self.read_only.swap(true, Ordering::Relaxed) {
                        tracing::error!(path = %self.path.display(), %error, "the store cannot be written");
                    }
                    self.close_after(&error);
                    group.drain(..).for_each(|write| write.fail(error.clone()));
                }
            }
            group.clear();
        }
    }

    /// Does all writes of a group, or none.
    fn commit(&self, group: &[Write], sweep: Option<Timestamp>) -> Result<(Vec<Done>, Option<usize>), StoreError> {
        self.with(|database| {
            layout::commit(database.begin_write()?, |tables| {
                let mut done = Vec::with_capacity(group.len());
                for write in group {
                    done.push(match write {
                        Write::Put { puts, now, .. } => Done::Put(tables.put_all(puts, *now)?),
                        Write::Delete { table, key, .. } => Done::Delete(tables.delete(*table, key)?),
                        Write::Close { .. } => Done::Close,
                    });
                }
                let removed = sweep.map(|now| tables.sweep(now, SWEEP_LIMIT)).transpose()?;
                Ok::<_, Failure>((done, removed))
            })
        })
    }
}

/// The time by which records are swept next: a time that the clock showed, and [`Clock::passed`] at that moment.
#[derive(Default)]
struct Sweeps(Option<(Timestamp, Duration)>);

impl Sweeps {
    /// Returns the time by which to sweep with a write at `now`, if the clock has shown it, or later ones, for long
    /// enough.
    fn due(&mut self, now: Timestamp, passed: Duration) -> Option<Timestamp> {
        match self.0 {
            Some((shown, since)) if shown <= now => (passed.saturating_sub(since) >= SWEEP_AFTER).then_some(shown),
            _ => {
                self.0 = Some((now, passed));
                None
            }
        }
    }
}

impl Write {
    /// The time at which it was made; none for a deletion, and for a write that only tests whether the store can be
    /// written.
    fn now(&self) -> Option<Timestamp> {
        match self {
            Self::Put { now, .. } => Some(*now).filter(|now| *now > Timestamp::default()),
            Self::Delete { .. } | Self::Close { .. } => None,
        }
    }

    fn abandoned(&self) -> bool {
        match self {
            Self::Put { reply, .. } => reply.is_closed(),
            Self::Delete { reply, .. } => reply.is_closed(),
            Self::Close { .. } => false,
        }
    }

    /// Answers the caller with the result of this write.
    fn succeed(self, done: Done) {
        match (self, done) {
            (Self::Put { reply, .. }, Done::Put(written)) => drop(reply.send(Ok(written))),
            (Self::Delete { reply, .. }, Done::Delete(removed)) => drop(reply.send(Ok(removed))),
            (Self::Close { reply }, Done::Close) => drop(reply.send(Ok(()))),
            // The kinds always match.
            (Self::Put { .. } | Self::Delete { .. } | Self::Close { .. }, _) => {}
        }
    }

    fn fail(self, error: StoreError) {
        match self {
            Self::Put { reply, .. } => drop(reply.send(Err(error))),
            Self::Delete { reply, .. } => drop(reply.send(Err(error))),
            Self::Close { reply } => drop(reply.send(Err(error))),
        }
    }
}

/// Opens the file for the first time, and creates the tables that it lacks.
fn opened(path: &Path, opener: &Opener) -> Result<Database, OpenError> {
    let io_error = |why| OpenError::Io { path: path.to_owned(), why };
    let database = opener(Opening::First).map_err(|error| not_opened(path, error))?;
    let transaction = database.begin_write().map_err(|error| io_error(io::Error::other(error)))?;
    let format = layout::prepare(&transaction)
        .map_err(|error| OpenError::Corrupt { path: path.to_owned(), why: error.to_string() })?;
    if format != FORMAT {
        return Err(OpenError::Format { path: path.to_owned(), found: format });
    }
    transaction.commit().map_err(|error| io_error(io::Error::other(error)))?;
    Ok(database)
}

/// An error of redb as an error of the store.
struct Failure(StoreError);

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Self(match error {
            StorageError::Io(why) if is_full(&why) => StoreError::Full(why.to_string()),
            StorageError::Corrupted(why) => StoreError::Corrupt(why),
            StorageError::ValueTooLarge(size) => StoreError::Full(format!("a value of {size} bytes is too large")),
            other => StoreError::Unavailable(other.to_string()),
        })
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

macro_rules! storage_or {
    ($($error:ty: $storage:path),*) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                match error {
                    $storage(error) => error.into(),
                    other => Self(StoreError::Unavailable(other.to_string())),
                }
            }
        }
    )*};
}

storage_or!(
    TableError: TableError::Storage,
    TransactionError: TransactionError::Storage,
    CommitError: CommitError::Storage,
    DatabaseError: DatabaseError::Storage
);
