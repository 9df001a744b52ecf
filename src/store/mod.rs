//! The store: small records that expire and must survive a restart or be shared, behind one interface.
//!
//! The interface is a table from keys to bytes with an expiry, a version for compare-and-swap, and a list of changes by
//! version. Every use needs that (sessions, replay ids, revocations), and redb and Redis can both do it atomically. If
//! the store is unavailable, callers get an error, which they turn into 503, never an empty answer.
//!
//! | file | holds |
//! |---|---|
//! | `settings` | which store a configuration selects |
//! | `embedded` | one redb file, for one process: its threads and its layout |
//! | `redis` | Redis or Valkey, for several replicas: the layout and the connection |
//! | `revocations` | revoked credentials and principals, and restoring them in a store that lost some |
//! | `metered` | counts and times the calls to either |
//! | `suite` | the tests that every store must pass, as one function |
//! | `disturbed` | a store for tests that simulates what other processes do to it |

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
    embedded::{Embedded, Examined, OpenError},
    metered::{Metered, StoreMetrics},
    redis::{Durability, Redis, clock_trouble},
    revocations::{Named, Revocations, Target},
    settings::Settings,
};
use crate::clock::{Clock, Timestamp};

/// The tables, each with its name in the file and in metrics.
macro_rules! tables {
    ($($(#[$doc:meta])* $table:ident = $name:literal,)+) => {
        /// A kind of record. Each is a table of its own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Table {
            $($(#[$doc])* $table,)+
        }

        impl Table {
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$table),+];

            /// Returns its name in the file and in metrics.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$table => $name,)+
                }
            }

            /// Returns the name in the file of its index by version.
            const fn versions(self) -> &'static str {
                match self {
                    $(Self::$table => concat!($name, "/versions"),)+
                }
            }

            /// Returns the name in the file of its index by expiry.
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
    /// The sessions of a person, by the hash of issuer and subject.
    SessionIndex = "session_index",
    /// Completed logins, by the hash of their state, so that none is completed twice.
    Logins = "logins",
    /// Deliveries seen, by sender and id.
    Deliveries = "deliveries",
    /// Revoked credentials, sessions and principals.
    Revocations = "revocations",
    /// The state of each held delivery without its request, by a key that is the same for every attempt.
    Held = "held",
    /// The requests of held deliveries, by the same key.
    HeldRequests = "held_requests",
    /// Leases on the held deliveries of a repository: their holder delivers them.
    HeldLeases = "held_leases",
    /// Tekton runs whose cause is in the audit trail, by uid.
    Runs = "runs",
    /// The cause of a run, by its uid and by the event that led to it.
    Causes = "causes",
    /// The keys that sign tokens, encrypted.
    TokenKeys = "token_keys",
    /// Runs and pods that have tokens of ours, by cluster and uid.
    Tokens = "tokens",
    /// The last checkpoint of the audit trail of each replica, by its name.
    AuditHeads = "audit_heads",
    /// The policy of each replica, by its name.
    Replicas = "replicas",
}

impl Table {
    /// Whether its records live for seconds only and signal something to other replicas by that. A shared store expires
    /// them by its own clock, as the clocks of replicas differ. [`Backend::get`] is not used for them.
    pub const fn is_by_the_clock_of_the_store(self) -> bool {
        matches!(self, Self::HeldLeases | Self::Replicas)
    }

    /// Returns the table that represents its group: only tables of one group can be written to at once.
    pub const fn group(self) -> Self {
        match self {
            Self::Held | Self::HeldRequests | Self::HeldLeases => Self::Deliveries,
            alone => alone,
        }
    }
}

/// A record in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub value: Vec<u8>,
    /// Grows with every write of this key; never repeats within a table.
    pub version: u64,
    pub expires: Timestamp,
}

/// The condition for a write.
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
    /// A time that has passed removes the record.
    pub expires: Timestamp,
    pub expect: Expect,
}

/// The result of several writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WrittenAll {
    /// All were done, with these versions.
    Done(Vec<u64>),
    /// None was done, because an expectation failed: the index of the first such write, and the record that is there.
    Conflict { index: usize, found: Option<Stored> },
}

/// The result of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It was done, with this version.
    Done(u64),
    /// It was not done, because the expectation failed. This record is there.
    Conflict(Option<Stored>),
}

/// A change, for mirrors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: Vec<u8>,
    pub version: u64,
    /// The record, or why the store itself cannot read it. Such a record does not affect other changes.
    pub stored: Result<Stored, StoreError>,
}

/// Why a call to the store failed.
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
    /// Whether a write with this error was certainly not done: a server without memory writes nothing. The file may
    /// contain data that did not fit when it was synced.
    pub fn is_undone(&self, is_shared: bool) -> bool {
        is_shared && matches!(self, Self::Full(_))
    }
}

pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A storage of records. All methods are atomic. A write that returned is as durable as the backend can
/// make it: synced to disk by the embedded store, and as its own configuration says by Redis.
pub trait Backend: std::fmt::Debug + Send + Sync + 'static {
    /// Returns the record under `key`, if there is one that has not expired at `now`.
    fn get<'a>(&'a self, table: Table, key: &'a [u8], now: Timestamp) -> StoreFuture<'a, Option<Stored>>;

    /// Returns the records under these keys, each as [`Backend::get`] does.
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

    /// Does all of these writes or none. Their tables must be of one [group](Table::group), and their keys must differ.
    fn put_all(&self, puts: Vec<Put>, now: Timestamp) -> StoreFuture<'_, WrittenAll>;

    /// Deletes a record. Returns whether there was one.
    fn delete<'a>(&'a self, table: Table, key: &'a [u8]) -> StoreFuture<'a, bool>;

    /// Returns records written after version `after`, oldest first, at most `limit`. A store that was reset to before
    /// `after` returns all records from the beginning.
    fn changes<'a>(&'a self, table: Table, after: u64, limit: usize, now: Timestamp) -> StoreFuture<'a, Vec<Change>>;

    /// Whether the table was emptied or reset since a version that was read from it, so that records written up to then
    /// may be lost. `after` is such a version, so never 0.
    fn was_set_back(&self, _table: Table, _after: u64) -> StoreFuture<'_, bool> {
        Box::pin(async { Ok(false) })
    }

    /// Waits until one of these deliveries, whoever wrote it, has reached a second server, if there is one. Returns an
    /// error if none of them is there.
    fn replicated(&self, _keys: Vec<Vec<u8>>) -> StoreFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Whether other processes use it too, so that shared knowledge must be stored in it.
    fn is_shared(&self) -> bool;

    /// Returns how far this clock is ahead of that of the server, which all processes share, in seconds; negative if
    /// behind.
    fn seconds_ahead<'a>(&'a self, _clock: &'a Clock) -> StoreFuture<'a, f64> {
        Box::pin(async { Ok(0.0) })
    }

    /// Checks whether it answers, for readiness.
    fn ping(&self) -> StoreFuture<'_, ()>;

    /// Closes it at the end of the process. It answers no calls afterwards.
    fn close(&self) -> StoreFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// The store, shared.
pub type Store = Arc<dyn Backend>;
