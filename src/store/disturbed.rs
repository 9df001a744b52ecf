//! A store for tests that simulates what other processes do to it.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst},
};

use super::{Backend, Change, Put, Store, StoreError, StoreFuture, Stored, Table, WrittenAll};
use crate::clock::Timestamp;

/// A store that passes calls to the inner one, except for the disturbances set here.
#[derive(Debug)]
pub struct Disturbed {
    inner: Store,
    /// The next writes, this many, conflict as if another process had written.
    pub late: AtomicU32,
    /// Whether reading changes fails.
    pub fails: AtomicBool,
    /// The version that it is reset to.
    pub last: AtomicU64,
    /// The keys of records that the store itself cannot read, in any table.
    pub torn: Mutex<Vec<Vec<u8>>>,
}

impl Disturbed {
    /// Creates one without disturbances.
    pub fn new(inner: Store) -> Self {
        Self { inner, late: 0.into(), fails: false.into(), last: u64::MAX.into(), torn: Mutex::default() }
    }

    fn check_whole(&self, key: &[u8]) -> Result<(), StoreError> {
        match self.torn.lock().unwrap().iter().any(|torn| torn == key) {
            true => Err(StoreError::Corrupt("torn".to_owned())),
            false => Ok(()),
        }
    }
}

impl Backend for Disturbed {
    fn get<'a>(&'a self, table: Table, key: &'a [u8], now: Timestamp) -> StoreFuture<'a, Option<Stored>> {
        Box::pin(async move {
            self.check_whole(key)?;
            self.inner.get(table, key, now).await
        })
    }
    fn put_all(&self, puts: Vec<Put>, now: Timestamp) -> StoreFuture<'_, WrittenAll> {
        match self.late.fetch_update(SeqCst, SeqCst, |late| late.checked_sub(1)) {
            Ok(_) => Box::pin(async { Ok(WrittenAll::Conflict { index: 0, found: None }) }),
            Err(_) => self.inner.put_all(puts, now),
        }
    }
    fn delete<'a>(&'a self, table: Table, key: &'a [u8]) -> StoreFuture<'a, bool> {
        self.inner.delete(table, key)
    }
    fn changes<'a>(&'a self, table: Table, after: u64, limit: usize, now: Timestamp) -> StoreFuture<'a, Vec<Change>> {
        Box::pin(async move {
            if self.fails.load(SeqCst) {
                return Err(StoreError::Timeout);
            }
            let mut changes = self.inner.changes(table, after, limit, now).await?;
            for change in &mut changes {
                if let Err(error) = self.check_whole(&change.key) {
                    change.stored = Err(error);
                }
            }
            Ok(changes)
        })
    }
    fn was_set_back(&self, _table: Table, after: u64) -> StoreFuture<'_, bool> {
        let last = self.last.load(SeqCst);
        Box::pin(async move { Ok(last < after) })
    }
    fn is_shared(&self) -> bool {
        true
    }
    fn ping(&self) -> StoreFuture<'_, ()> {
        self.inner.ping()
    }
}
