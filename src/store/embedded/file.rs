//! Opens the file of the store, and examines one without a change.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use redb::{Builder, Database, DatabaseError, ReadableDatabase, StorageBackend, StorageError, TableError};
use rustix::process::geteuid;

use super::{
    Examined, OpenError,
    layout::{self, FORMAT},
};
use crate::{config::resolver::found_at, supervisor::panic_message};

/// Memory that redb may use to cache pages.
const CACHE_BYTES: usize = 4 << 20;

/// The beginning of every file of redb.
const BEGINNING: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";

/// Whether a missing file may be created.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    First,
    /// After an error. A file that is gone must not be replaced by an empty one: that would end every session and lose
    /// all revocations.
    Again,
}

pub(super) fn not_opened(path: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => OpenError::Locked(path.to_owned()),
        DatabaseError::Storage(StorageError::Io(why)) if why.kind() != io::ErrorKind::InvalidData => {
            OpenError::Io { path: path.to_owned(), why }
        }
        other => OpenError::Corrupt { path: path.to_owned(), why: other.to_string() },
    }
}

/// Checks whether the file can be used, without writing to it.
pub(super) fn examine(path: &Path) -> Result<Examined, OpenError> {
    unwound(|| examine_closed(path)).unwrap_or_else(|why| Err(OpenError::Corrupt { path: path.to_owned(), why }))
}

fn examine_closed(path: &Path) -> Result<Examined, OpenError> {
    let database = match Builder::new().set_cache_size(CACHE_BYTES).open_read_only(path) {
        Ok(database) => database,
        Err(DatabaseError::RepairAborted) => return Ok(Examined::NotClosed),
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
        Ok(_) => Ok(Examined::Good),
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

pub(super) fn create(storage: impl StorageBackend) -> Result<Database, DatabaseError> {
    Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(storage)
}

/// Opens the file and makes it readable and writable by its owner only. A file of another owner, who alone may change
/// its mode, is used unchanged, unless everybody may read or write it.
pub(super) fn owner_only(path: &Path, opening: Opening) -> Result<File, DatabaseError> {
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

/// Returns what `work` does, or why it panicked, as redb does when it meets a damaged page.
pub(super) fn unwound<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panic_message(&*panic))
}
