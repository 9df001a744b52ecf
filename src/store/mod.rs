//! What must survive a restart or be shared: small records with an end, behind one interface.
//!
//! The interface is a table of keys to bytes with an expiry, a version for compare-and-swap, and a running number of
//! changes, which is what every use needs (sessions, replay ids, revocations) and what redb and Redis both can do
//! atomically. Losing the store is an error for the caller to turn into 503, never an empty answer.
//!
//! | file | holds |
//! |---|---|
//! | `settings` | which store a configuration asks for |
//! | `embedded` | one redb file, for one process: its threads, and what stands where in it |
//! | `redis` | Redis or Valkey, for several replicas: what is written there, and the connection |
//! | `revocations` | what is revoked before its time, and what is done about a store that lost some |
//! | `metered` | counts and times what is asked of either |
//! | `suite` | what every store must do, as one function for the tests of each |
//! | `disturbed` | a store to which other processes do what a test says |

#[cfg(test)]
pub mod disturbed;
pub mod embedded;
pub mod metered;
pub mod redis;
pub mod revocations;
mod settings;
#[cfg(test)]
pub mod suite;

use std::{future::Future, pin::Pin, sync::Arc};

pub use self::{
    embedded::{Embedded, OpenError},
    metered::{Metered, StoreMetrics},
    redis::{Durability, Redis, clock_trouble},
    revocations::{Named, Revocations, Target},
    settings::Settings,
};
use crate::clock::Timestamp;

/// The tables, each with its name in the file and on metrics.
macro_rules! tables {
    ($($(#[$doc:meta])* $table:ident = $name:literal,)+) => {
        /// A kind of record. Each is a table of its own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Table {
            $($(#[$doc])* $table,)+
        }

        impl Table {
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$table),+];

            /// Its name in the file and on metrics.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$table => $name,)+
                }
            }

            /// The name in the file of its records by version.
            const fn versions(self) -> &'static str {
                match self {
                    $(Self::$table => concat!($name, "/versions"),)+
                }
            }

            /// The name in the file of its records by end.
            const fn ends(self) -> &'static str {
                match self {
                    $(Self::$table => concat!($name, "/ends"),)+
                }
            }
        }
    };
}

tables! {
    /// Browser sessions, by the hash of their id.
    Sessions = "sessions",
    /// Which sessions a person has, by the hash of issuer and subject.
    SessionIndex = "session_index",
    /// Logins that were completed, by the hash of their state, so that none is completed twice.
    Logins = "logins",
    /// Deliveries seen, by sender and id.
    Deliveries = "deliveries",
    /// Revoked credentials, sessions and principals.
    Revocations = "revocations",
    /// What is known of each held delivery but its request, by what is the same for every try of it.
    Held = "held",
    /// The requests of held deliveries, by the same key.
    HeldRequests = "held_requests",
    /// Who delivers the held deliveries of a repository at the moment.
    HeldLeases = "held_leases",
    /// Runs of Tekton whose cause is in the audit trail, by uid.
    Runs = "runs",
    /// Who caused a run: by its uid, and by the event that it came of.
    Causes = "causes",
    /// The keys that sign tokens, sealed.
    TokenKeys = "token_keys",
    /// Runs that have tokens of ours, by uid of the TaskRun.
    Tokens = "tokens",
    /// The last checkpoint of the audit trail of each replica, by its name.
    AuditHeads = "audit_heads",
    /// What each replica tells of the policy that it decides by, by its name.
    Replicas = "replicas",
}

impl Table {
    /// Whether its records last for seconds only and tell other replicas something by that: a shared store counts them by its own clock,
    /// as those of replicas differ. [`Backend::get`] reads none of them.
    pub const fn is_by_the_clock_of_the_store(self) -> bool {
        matches!(self, Self::HeldLeases | Self::Replicas)
    }

    /// The table that it is kept together with: only tables of one group can be written to at once.
    pub const fn group(self) -> Self {
        match self {
            Self::Held | Self::HeldRequests | Self::HeldLeases => Self::Deliveries,
            alone => alone,
        }
    }
}

/// A record as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub value: Vec<u8>,
    /// Grows with every write of this key; never repeats within a table.
    pub version: u64,
    pub expires: Timestamp,
}

/// What must be true of a key for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// It is absent or expired.
    Absent,
    /// It has this version.
    Version(u64),
}

/// A write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    pub table: Table,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    /// A time that has come already removes the record.
    pub expires: Timestamp,
    pub expect: Expect,
}

/// What several writes did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WrittenAll {
    /// All happened; the versions written.
    Done(Vec<u64>),
    /// None did, as the expectation of one failed, which is the first such; what stands there instead.
    Conflict { index: usize, found: Option<Stored> },
}

/// What a write did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It happened; the version written.
    Done(u64),
    /// It did not, as the expectation failed; what stands there instead.
    Conflict(Option<Stored>),
}

/// A change, for mirrors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: Vec<u8>,
    pub version: u64,
    /// The record, or why the store itself cannot read it: such a record hides no other.
    pub stored: Result<Stored, StoreError>,
}

/// Why the store gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("the store is not reachable: {0}")]
    Unavailable(String),
    #[error("the store did not answer in time")]
    Timeout,
    #[error("the store is full: {0}")]
    Full(String),
    #[error("a record of the store cannot be read: {0}")]
    Corrupt(String),
}

impl StoreError {
    /// Whether a write that failed so has surely not happened: a server without memory takes nothing. A file may have what found no room
    /// when it was synced.
    pub fn is_undone(&self, is_shared: bool) -> bool {
        is_shared && matches!(self, Self::Full(_))
    }
}

pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A place that keeps records. All methods are atomic. A write that returned is as safe as the backend can
/// make it: synced to disk by the embedded one, and by Redis as its own configuration says.
pub trait Backend: std::fmt::Debug + Send + Sync + 'static {
    /// The record under `key`, if there is one that has not expired at `now`.
    fn get<'a>(&'a self, table: Table, key: &'a [u8], now: Timestamp) -> StoreFuture<'a, Option<Stored>>;

    /// The records under these keys, each as [`Backend::get`] gives it.
    fn get_all(&self, table: Table, keys: Vec<Vec<u8>>, now: Timestamp) -> StoreFuture<'_, Vec<Option<Stored>>> {
        Box::pin(async move {
            let mut found = Vec::with_capacity(keys.len());
            for key in &keys {
                found.push(self.get(table, key, now).await?);
            }
            Ok(found)
        })
    }

    fn put<'a>(
        &'a self,
        table: Table,
        key: &'a [u8],
        value: Vec<u8>,
        expires: Timestamp,
        expect: Expect,
        now: Timestamp,
    ) -> StoreFuture<'a, Written> {
        let written = self.put_all(vec![Put { table, key: key.to_vec(), value, expires, expect }], now);
        Box::pin(async move {
            match written.await? {
                WrittenAll::Done(versions) => match versions.as_slice() {
                    [version] => Ok(Written::Done(*version)),
                    _ => Err(StoreError::Corrupt("one write has another number of versions".to_owned())),
                },
                WrittenAll::Conflict { found, .. } => Ok(Written::Conflict(found)),
            }
        })
    }

    /// Does all of these writes or none. Their tables must be of one [group](Table::group), and their keys differ.
    fn put_all(&self, puts: Vec<Put>, now: Timestamp) -> StoreFuture<'_, WrittenAll>;

    /// Whether there was a record.
    fn delete<'a>(&'a self, table: Table, key: &'a [u8]) -> StoreFuture<'a, bool>;

    /// Records written after version `after`, oldest first, at most `limit`. A store that was set back to before
    /// `after` tells all that it has.
    fn changes<'a>(&'a self, table: Table, after: u64, limit: usize, now: Timestamp) -> StoreFuture<'a, Vec<Change>>;

    /// Whether the table was emptied or set back since a version that was read from it, so that what was written up to then may be gone.
    fn was_set_back(&self, _table: Table, _after: u64) -> StoreFuture<'_, bool> {
        Box::pin(async { Ok(false) })
    }

    /// Returns once one of these deliveries, whoever has written it, has reached a second server, where there is one. An error if none
    /// of them is there.
    fn replicated(&self, _keys: Vec<Vec<u8>>) -> StoreFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Whether other processes use it too, so that what one of them knows must be kept in it.
    fn is_shared(&self) -> bool;

    /// Whether it answers, for readiness.
    fn ping(&self) -> StoreFuture<'_, ()>;
}

/// The store, shared.
pub type Store = Arc<dyn Backend>;
