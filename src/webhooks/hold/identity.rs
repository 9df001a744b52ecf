//! The holders of leases, so that a replica need not wait for its own: those of its process that was killed, and those
//! that it lost sight of while the store could not be reached.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::Path,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::atomic_file;

/// The extension of the file beside the store that is locked while a process of this replica lives.
pub const REPLICA_EXTENSION: &str = "replica";

/// The holder of a lease, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    /// The name of the replica.
    pub(super) replica: Arc<str>,
    /// The content of the file that the process has locked; `None` if it has none.
    folder: Option<Uuid>,
    process: Uuid,
}

/// What this process writes into its leases, with the lock that proves that no other process writes the same.
#[derive(Clone, Debug)]
pub struct Identity {
    holder: Holder,
    /// Released when the process ends, however it does.
    _lock: Option<Arc<File>>,
}

impl Default for Identity {
    /// Returns the identity of a process that has no predecessor.
    fn default() -> Self {
        Self { holder: Holder { replica: "".into(), folder: None, process: Uuid::new_v4() }, _lock: None }
    }
}

impl Identity {
    /// Locks the file at `path`, and creates it if it does not exist.
    pub fn of(replica: &str, path: &Path) -> Self {
        let locked = lock(path).inspect_err(|error| {
            tracing::warn!(
                %error,
                file = %path.display(),
                "the file of this replica cannot be locked, so held deliveries that are in flight when it is killed wait for a minute"
            );
        });
        let (folder, file) = locked.ok().unzip();
        let holder = Holder { replica: replica.into(), folder, process: Uuid::new_v4() };
        Self { holder, _lock: file.map(Arc::new) }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(&self.holder).unwrap_or_default()
    }

    /// Whether nobody sends under the lease with this value any more, as seen by this process when it wants the lane.
    ///
    /// Its own lease is left over from a turn that has ended, as a lane has one turn at a time: the answer to taking or
    /// renewing it was lost, or it could not be given back. An earlier process of this replica is gone, as this one has
    /// its lock. The name must be the same too, since folders are copied.
    pub(super) fn may_take_over(&self, value: &[u8]) -> bool {
        let Holder { replica, folder, process } = &self.holder;
        Holder::decode(value).is_some_and(|was| {
            let is_earlier = folder.is_some() && was.replica == *replica && was.folder == *folder;
            was.process == *process || is_earlier
        })
    }
}

impl Holder {
    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok()
    }
}

/// Locks the file, and returns its content.
fn lock(path: &Path) -> io::Result<(Uuid, File)> {
    let text = atomic_file::read_or_make(path, || Ok(Zeroizing::new(Uuid::new_v4().to_string().into_bytes())))?;
    let folder = Uuid::try_parse_ascii(text.trim_ascii()).map_err(|error| atomic_file::invalid(path, &error))?;
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    file.try_lock().map_err(|error| match error {
        TryLockError::Error(error) => error,
        TryLockError::WouldBlock => io::Error::new(io::ErrorKind::ResourceBusy, "another process has locked it"),
    })?;
    Ok((folder, file))
}
