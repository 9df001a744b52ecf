//! A store for tests that simulates what other processes do to it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

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
}

impl Disturbed {
    /// Creates one without disturbances.
    pub fn new(inner: Store) -> Self {
        Self { inner, late: 0.into(), fails: false.into(), last: u64::MAX.into() }
    }
}

impl Backend for Disturbed {
    fn get<'a>(&'a self, table: Table, key: &'a [u8], now: Timestamp) -> StoreFuture<'a, Option<Stored>> {
        self.inner.get(table, key, now)
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
        match self.fails.load(SeqCst) {
            true => Box::pin(async { Err(StoreError::Timeout) }),
            false => self.inner.changes(table, after, limit, now),
        }
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
