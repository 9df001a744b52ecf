//! An in-memory store that can be made unavailable.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    clock::Timestamp,
    store::{Backend, Change, Expect, Put, StoreError, StoreFuture, Stored, Table, WrittenAll},
};

type Records = HashMap<(Table, Vec<u8>), Stored>;

#[derive(Debug, Default)]
pub(super) struct MemoryStore {
    records: Mutex<(u64, Records)>,
    down: AtomicBool,
    is_shared: AtomicBool,
    is_alone: AtomicBool,
    dies_once_parked: AtomicBool,
    torn: Mutex<HashSet<(Table, Vec<u8>)>>,
}

impl MemoryStore {
    pub(super) fn shared() -> Arc<Self> {
        Arc::default()
    }

    pub(super) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// Makes it a store that several replicas share.
    pub(super) fn set_shared(&self) {
        self.is_shared.store(true, Ordering::SeqCst);
    }

    /// Makes the server unavailable that records would be replicated to.
    pub(super) fn set_alone(&self, alone: bool) {
        self.is_alone.store(alone, Ordering::SeqCst);
    }

    /// Becomes unavailable with the write that parks a delivery, as if the process had died there.
    pub(super) fn set_dies_once_parked(&self) {
        self.dies_once_parked.store(true, Ordering::SeqCst);
    }

    /// Damages the record of this key, so that the store itself cannot read it until it is overwritten.
    pub(super) fn tear(&self, table: Table, key: &[u8]) {
        self.torn.lock().unwrap().insert((table, key.to_vec()));
    }

    fn check_whole(&self, table: Table, key: &[u8]) -> Result<(), StoreError> {
        match self.torn.lock().unwrap().contains(&(table, key.to_vec())) {
            true => Err(StoreError::Corrupt("torn".to_owned())),
            false => Ok(()),
        }
    }

    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::SeqCst)
    }

    /// The present state of a standby.
    pub(super) fn copy(&self) -> Self {
        Self { records: Mutex::new(self.records.lock().unwrap().clone()), ..Self::default() }
    }

    /// Replaces it with a standby.
    pub(super) fn fail_over_to(&self, standby: Self) {
        *self.records.lock().unwrap() = standby.records.into_inner().unwrap();
    }

    /// Sets it back to a backup in which the records that a table has now have the versions from one on.
    pub(super) fn set_back(&self, table: Table) {
        let mut records = self.records.lock().unwrap();
        let (last, map) = &mut *records;
        let of_table = map.iter_mut().filter(|((of, _), _)| *of == table);
        let mut of_table: Vec<&mut Stored> = of_table.map(|(_, stored)| stored).collect();
        of_table.sort_by_key(|stored| stored.version);
        *last = 0;
        for stored in of_table {
            *last += 1;
            stored.version = *last;
        }
    }

    fn check(&self) -> Result<(), StoreError> {
        match self.is_down() {
            true => Err(StoreError::Unavailable("switched off".to_owned())),
            false => Ok(()),
        }
    }
}

impl Backend for MemoryStore {
    fn get<'a>(&'a self, table: Table, key: &'a [u8], now: Timestamp) -> StoreFuture<'a, Option<Stored>> {
        Box::pin(async move {
            self.check()?;
            self.check_whole(table, key)?;
            let records = self.records.lock().unwrap();
            Ok(records.1.get(&(table, key.to_vec())).filter(|stored| stored.expires > now).cloned())
        })
    }

    fn put_all(&self, puts: Vec<Put>, now: Timestamp) -> StoreFuture<'_, WrittenAll> {
        Box::pin(async move {
            self.check()?;
            let mut records = self.records.lock().unwrap();
            let (last, map) = &mut *records;
            for (index, put) in puts.iter().enumerate() {
                let there = map.get(&(put.table, put.key.clone())).filter(|stored| stored.expires > now);
                let met = match put.expect {
                    Expect::Any => true,
                    Expect::Absent => there.is_none(),
                    Expect::Version(version) => there.is_some_and(|stored| stored.version == version),
                };
                if !met {
                    return Ok(WrittenAll::Conflict { index, found: there.cloned() });
                }
            }
            let parks =
                |put: &Put| put.table == Table::Held && memchr::memmem::find(&put.value, b"\"parked\":").is_some();
            if self.dies_once_parked.load(Ordering::SeqCst) && puts.iter().any(parks) {
                self.set_down(true);
            }
            let mut versions = Vec::new();
            for Put { table, key, value, expires, .. } in puts {
                *last += 1;
                versions.push(*last);
                self.torn.lock().unwrap().remove(&(table, key.clone()));
                match expires > now {
                    true => drop(map.insert((table, key), Stored { value, version: *last, expires })),
                    false => drop(map.remove(&(table, key))),
                }
            }
            Ok(WrittenAll::Done(versions))
        })
    }

    fn delete<'a>(&'a self, table: Table, key: &'a [u8]) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            self.check()?;
            Ok(self.records.lock().unwrap().1.remove(&(table, key.to_vec())).is_some())
        })
    }

    fn changes<'a>(&'a self, table: Table, after: u64, limit: usize, now: Timestamp) -> StoreFuture<'a, Vec<Change>> {
        Box::pin(async move {
            self.check()?;
            let is_set_back = self.records.lock().unwrap().0 < after;
            let after = if is_set_back { 0 } else { after };
            if is_set_back {
                // So that a caller that retries in a loop lets others continue.
                tokio::task::yield_now().await;
            }
            let records = self.records.lock().unwrap();
            let of_table = records.1.iter().filter(|((of, _), stored)| *of == table && stored.expires > now);
            let mut changes: Vec<Change> = of_table
                .filter(|(_, stored)| stored.version > after)
                .map(|((_, key), stored)| Change {
                    key: key.clone(),
                    version: stored.version,
                    stored: self.check_whole(table, key).map(|()| stored.clone()),
                })
                .collect();
            changes.sort_by_key(|change| change.version);
            changes.truncate(limit);
            Ok(changes)
        })
    }

    fn replicated(&self, keys: Vec<Vec<u8>>) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let records = self.records.lock().unwrap();
            match self.is_alone.load(Ordering::SeqCst) {
                true => Err(StoreError::Timeout),
                false if keys.into_iter().any(|key| records.1.contains_key(&(Table::Deliveries, key))) => Ok(()),
                false => Err(StoreError::Unavailable("none of them is there".to_owned())),
            }
        })
    }

    fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::SeqCst)
    }

    fn ping(&self) -> StoreFuture<'_, ()> {
        Box::pin(async { self.check() })
    }
}
