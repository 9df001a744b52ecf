//! The embedded store: one redb file, for one process.
//!
//! Two threads own the file. The writer commits all writes that have gathered in its channel as a group, so that a
//! hundred simultaneous logins cost one sync of the disk; the reader never waits for a commit. Both channels are
//! bounded and every call times out, so that a slow disk causes errors instead of a growing queue.

mod disk;
mod file;
mod layout;
#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use self::disk::{Disk, Read, Write};
use super::{Backend, Change, Expect, Put, StoreError, StoreFuture, Stored, Table, WrittenAll};
use crate::{clock::Timestamp, group_commit::GroupCommit};

/// Calls that may wait for each of the two threads.
const QUEUE: usize = 1024;

/// The timeout of a call. A write that timed out may still happen.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why the file cannot be used. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "{} is in use by another Doorward; the embedded store serves one process: stop the other one, or give this one its own \
         `store.path`",
        .0.display()
    )]
    Locked(PathBuf),
    #[error(
        "{} is damaged or not a store of Doorward ({why}); move it away and start again: everybody must log in again, and the deliveries \
         and revocations in it are lost",
        path.display()
    )]
    Corrupt { path: PathBuf, why: String },
    #[error("{} was written by another version of Doorward (format {found}); use that version, or move the file away", path.display())]
    Format { path: PathBuf, found: u64 },
    #[error("{} cannot be opened: {why}", path.display())]
    Io { path: PathBuf, why: io::Error },
    #[error("the threads of the store cannot be started: {0}")]
    Thread(io::Error),
}

/// The result of [`Embedded::examine`] for a file that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Examined {
    Good,
    /// It was not closed, so only the next start, which repairs it, tells whether it is undamaged.
    NotClosed,
}

/// The embedded store. The file is released once this is dropped and all calls in progress have ended.
pub struct Embedded {
    path: PathBuf,
    reads: mpsc::Sender<Read>,
    writes: mpsc::Sender<Write>,
    /// Whether the last write failed. Then a ping tries to write, as a full disk can still be read.
    read_only: Arc<AtomicBool>,
}

impl Embedded {
    /// Opens the file, or creates it readable by its owner only. The mode of a file of another owner is not changed.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::start(Disk::file(path)?)
    }

    /// Checks whether [`Self::open`] would open an existing file, without writing to it. Nobody else can open it
    /// meanwhile.
    pub fn examine(path: &Path) -> Result<Examined, OpenError> {
        file::examine(path)
    }

    /// Checks whether the file in this place, if there is one, begins as a store does. Unlike [`Self::examine`] it takes
    /// no lock.
    pub fn recognize(path: &Path) -> Result<(), OpenError> {
        file::recognize(path)
    }

    /// Writes a record that has expired, which changes a counter and leaves nothing else.
    async fn try_write(&self) -> Result<(), StoreError> {
        let now = Timestamp::default();
        let put =
            Put { table: Table::Logins, key: b"ping".to_vec(), value: Vec::new(), expires: now, expect: Expect::Any };
        self.put_all(vec![put], now).await.map(drop)
    }

    fn start(disk: Disk) -> Result<Self, OpenError> {
        let (reads, read_queue) = mpsc::channel(QUEUE);
        let (writes, write_queue) = mpsc::channel(QUEUE);
        let (path, read_only) = (disk.path().to_owned(), disk.read_only());
        let disk = Arc::new(disk);
        let reader = Arc::clone(&disk);
        thread::Builder::new()
            .name("store-read".to_owned())
            .spawn(move || reader.serve_reads(read_queue))
            .map_err(OpenError::Thread)?;
        thread::Builder::new()
            .name("store-write".to_owned())
            .spawn(move || disk.serve_writes(write_queue, GroupCommit::new()))
            .map_err(OpenError::Thread)?;
        Ok(Self { path, reads, writes, read_only })
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").finish_non_exhaustive()
    }
}

/// The channel for the result of one call.
type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

async fn ask<M, T>(queue: &mpsc::Sender<M>, message: impl FnOnce(Reply<T>) -> M) -> Result<T, StoreError> {
    let (reply, answer) = oneshot::channel();
    let exchange = async {
        let gone = || StoreError::Unavailable("its thread has ended".to_owned());
        queue.send(message(reply)).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap_or(Err(StoreError::Timeout))
}

impl Backend for Embedded {
    fn get<'a>(&'a self, table: Table, key: &'a [u8], now: Timestamp) -> StoreFuture<'a, Option<Stored>> {
        Box::pin(async move { Ok(self.get_all(table, vec![key.to_vec()], now).await?.pop().flatten()) })
    }

    fn get_all(&self, table: Table, keys: Vec<Vec<u8>>, now: Timestamp) -> StoreFuture<'_, Vec<Option<Stored>>> {
        Box::pin(ask(&self.reads, move |reply| Read::Get { table, keys, now, reply }))
    }

    fn put_all(&self, puts: Vec<Put>, now: Timestamp) -> StoreFuture<'_, WrittenAll> {
        Box::pin(ask(&self.writes, move |reply| Write::Put { puts, now, reply }))
    }

    fn delete<'a>(&'a self, table: Table, key: &'a [u8]) -> StoreFuture<'a, bool> {
        Box::pin(ask(&self.writes, move |reply| Write::Delete { table, key: key.to_vec(), reply }))
    }

    fn changes<'a>(&'a self, table: Table, after: u64, limit: usize, now: Timestamp) -> StoreFuture<'a, Vec<Change>> {
        Box::pin(ask(&self.reads, move |reply| Read::Changes { table, after, limit, now, reply }))
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        Box::pin(ask(&self.writes, |reply| Write::Close { reply }))
    }

    fn ping(&self) -> StoreFuture<'_, ()> {
        Box::pin(async {
            if self.writes.is_closed() {
                return Err(StoreError::Unavailable("its writing thread has ended".to_owned()));
            }
            let answer = match self.read_only.load(Ordering::Relaxed) {
                true => self.try_write().await,
                false => ask(&self.reads, |reply| Read::Ping { reply }).await,
            };
            // Names the file, so that the reader knows where to look.
            let at_path = |why: String| format!("{}: {why}", self.path.display());
            answer.map_err(|error| match error {
                StoreError::Unavailable(why) => StoreError::Unavailable(at_path(why)),
                StoreError::Full(why) => StoreError::Full(at_path(why)),
                StoreError::Corrupt(why) => StoreError::Corrupt(at_path(why)),
                StoreError::Timeout => StoreError::Timeout,
            })
        })
    }
}
