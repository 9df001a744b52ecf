//! The file and the two threads that own it.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redb::{
    Builder, CommitError, Database, DatabaseError, ReadableDatabase, StorageBackend, StorageError, TableError,
    TransactionError, backends::FileBackend,
};
use rustix::process::geteuid;
use tokio::sync::mpsc;

use super::{
    super::{Change, Put, StoreError, Stored, Table, WrittenAll},
    OpenError, Reply,
    layout::{self, FORMAT},
};
use crate::{
    clock::{Clock, Timestamp},
    config::resolver::found_at,
    group_commit::GroupCommit,
    lock::lock,
};

/// Memory that redb may use to cache pages.
const CACHE_BYTES: usize = 4 << 20;

/// The beginning of every file of redb.
const BEGINNING: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";

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
    Put { puts: Vec<Put>, now: Timestamp, reply: Reply<WrittenAll> },
    Delete { table: Table, key: Vec<u8>, reply: Reply<bool> },
}

/// The result of a write, until its group is on disk.
enum Done {
    Put(WrittenAll),
    Delete(bool),
}

/// Whether a missing file may be created.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opening {
    First,
    /// After an error. A file that is gone must not be replaced by an empty one: that would end every session and lose
    /// all revocations.
    Again,
}

type Opener = Box<dyn Fn(Opening) -> Result<Database, DatabaseError> + Send + Sync>;

/// The open file. redb cannot be used after a disk error, so the file is then closed, and the next call opens it again.
pub(super) struct Disk {
    path: PathBuf,
    opener: Opener,
    database: Mutex<Option<Arc<Database>>>,
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
    pub(super) fn storage<S: StorageBackend>(
        make: impl Fn() -> S + Send + Sync + 'static,
        clock: Clock,
    ) -> Result<Self, OpenError> {
        Self::open(Path::new("memory"), Box::new(move |_| create(make())), clock)
    }

    fn open(path: &Path, opener: Opener, clock: Clock) -> Result<Self, OpenError> {
        let io_error = |why| OpenError::Io { path: path.to_owned(), why };
        let database = opener(Opening::First).map_err(|error| not_opened(path, error))?;
        let transaction = database.begin_write().map_err(|error| io_error(io::Error::other(error)))?;
        let format = layout::prepare(&transaction)
            .map_err(|error| OpenError::Corrupt { path: path.to_owned(), why: error.to_string() })?;
        if format != FORMAT {
            return Err(OpenError::Format { path: path.to_owned(), found: format });
        }
        transaction.commit().map_err(|error| io_error(io::Error::other(error)))?;
        let database = Mutex::new(Some(Arc::new(database)));
        Ok(Self { path: path.to_owned(), opener, database, read_only: Arc::default(), clock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn read_only(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.read_only)
    }

    fn database(&self) -> Result<Arc<Database>, StoreError> {
        let mut slot = lock(&self.database);
        if let Some(database) = &*slot {
            return Ok(Arc::clone(database));
        }
        let database = Arc::new((self.opener)(Opening::Again).map_err(|error| Failure::from(error).0)?);
        // While writes fail, each of them closes the file.
        if !self.read_only.load(Ordering::Relaxed) {
            tracing::info!(path = %self.path.display(), "the store is open again");
        }
        *slot = Some(Arc::clone(&database));
        Ok(database)
    }

    /// Closes the file if `error` is one that redb does not recover from.
    fn close_after(&self, error: &StoreError) {
        if matches!(error, StoreError::Unavailable(_) | StoreError::Full(_)) {
            let mut slot = lock(&self.database);
            if slot.take().is_some() && !self.read_only.load(Ordering::Relaxed) {
                tracing::error!(path = %self.path.display(), %error, "the store failed; it will be opened again");
            }
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
        let answer = self.database().and_then(|database| read(&database).map_err(|failure| failure.0));
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
                    group.drain(..).zip(done).for_each(|(write, done)| write.succeed(done));
                }
                Err(Failure(error)) => {
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
    fn commit(&self, group: &[Write], sweep: Option<Timestamp>) -> Result<(Vec<Done>, Option<usize>), Failure> {
        let database = self.database().map_err(Failure)?;
        layout::commit(database.begin_write()?, |tables| {
            let mut done = Vec::with_capacity(group.len());
            for write in group {
                done.push(match write {
                    Write::Put { puts, now, .. } => Done::Put(tables.put_all(puts, *now)?),
                    Write::Delete { table, key, .. } => Done::Delete(tables.delete(*table, key)?),
                });
            }
            let removed = sweep.map(|now| tables.sweep(now, SWEEP_LIMIT)).transpose()?;
            Ok::<_, Failure>((done, removed))
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
            Self::Delete { .. } => None,
        }
    }

    fn abandoned(&self) -> bool {
        match self {
            Self::Put { reply, .. } => reply.is_closed(),
            Self::Delete { reply, .. } => reply.is_closed(),
        }
    }

    /// Answers the caller with the result of this write.
    fn succeed(self, done: Done) {
        match (self, done) {
            (Self::Put { reply, .. }, Done::Put(written)) => drop(reply.send(Ok(written))),
            (Self::Delete { reply, .. }, Done::Delete(removed)) => drop(reply.send(Ok(removed))),
            // The kinds always match.
            (Self::Put { .. }, Done::Delete(_)) | (Self::Delete { .. }, Done::Put(_)) => {}
        }
    }

    fn fail(self, error: StoreError) {
        match self {
            Self::Put { reply, .. } => drop(reply.send(Err(error))),
            Self::Delete { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

fn not_opened(path: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => OpenError::Locked(path.to_owned()),
        DatabaseError::Storage(StorageError::Io(why)) if why.kind() != io::ErrorKind::InvalidData => {
            OpenError::Io { path: path.to_owned(), why }
        }
        other => OpenError::Corrupt { path: path.to_owned(), why: other.to_string() },
    }
}

/// Checks whether the file can be used, without writing to it.
pub(super) fn examine(path: &Path) -> Result<(), OpenError> {
    let database = match Builder::new().set_cache_size(CACHE_BYTES).open_read_only(path) {
        Ok(database) => database,
        // It was not closed properly, which the next start repairs.
        Err(DatabaseError::RepairAborted) => return Ok(()),
        Err(error) => return Err(not_opened(path, error)),
    };
    let read = || -> Result<Option<u64>, redb::Error> {
        let counters = match database.begin_read()?.open_table(layout::COUNTERS) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            counters => counters?,
        };
        Ok(counters.get("format")?.map(|format| format.value()))
    };
    match read() {
        Ok(Some(found)) if found != FORMAT => Err(OpenError::Format { path: path.to_owned(), found }),
        Ok(_) => Ok(()),
        Err(error) => Err(OpenError::Corrupt { path: path.to_owned(), why: error.to_string() }),
    }
}

/// Checks whether the file in this place begins as a store does. An empty one is filled by the first start.
pub(super) fn recognize(path: &Path) -> Result<(), OpenError> {
    let mut beginning = Vec::new();
    let read = found_at(path)
        .and_then(|found| found.map_or(Ok(0), |file| file.take(BEGINNING.len() as u64).read_to_end(&mut beginning)));
    read.map_err(|why| OpenError::Io { path: path.to_owned(), why })?;
    if beginning.is_empty() || beginning == BEGINNING {
        return Ok(());
    }
    Err(OpenError::Corrupt { path: path.to_owned(), why: "it does not begin as one".to_owned() })
}

fn create(storage: impl StorageBackend) -> Result<Database, DatabaseError> {
    Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(storage)
}

/// Opens the file and makes it readable and writable by its owner only. A file of another owner, who alone may change
/// its mode, is used unchanged, unless everybody may read or write it.
fn owner_only(path: &Path, opening: Opening) -> Result<File, DatabaseError> {
    let first = opening == Opening::First;
    let file = OpenOptions::new().read(true).write(true).create(first).truncate(false).mode(0o600).open(path)?;
    let metadata = file.metadata()?;
    if !first && metadata.len() == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file of the store was emptied").into());
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0
        && let Err(error) = file.set_permissions(Permissions::from_mode(0o600))
    {
        let owner = metadata.uid();
        if error.kind() != io::ErrorKind::PermissionDenied || owner == geteuid().as_raw() {
            return Err(error.into());
        }
        // Kubernetes has changed the group of the volume, for example because it came from another namespace of
        // OpenShift.
        if mode & 0o006 != 0 {
            let why = format!(
                "it belongs to the user {owner}, and everybody may read or write it (mode {mode:o}); give it to the user of Doorward, or \
                 `chmod o=` it"
            );
            return Err(io::Error::new(error.kind(), why).into());
        }
        // Logged once, because the file is opened again after each disk error.
        if first {
            tracing::warn!(
                path = %path.display(),
                owner,
                group = metadata.gid(),
                "the file of the store belongs to another user, so its mode cannot be changed: that user and the group may read it too"
            );
        }
    }
    Ok(file)
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
