//! A store in memory that can be switched off.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    clock::Timestamp,
    store::{Backend, Change, Expect, StoreError, StoreFuture, Stored, Table, Written},
};

type Records = HashMap<(Table, Vec<u8>), Stored>;

#[derive(Debug, Default)]
pub(super) struct MemoryStore {
    records: Mutex<(u64, Records)>,
    down: AtomicBool,
}

impl MemoryStore {
    pub(super) fn shared() -> Arc<Self> {
        Arc::default()
    }

    pub(super) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    fn check(&self) -> Result<(), StoreError> {
        match self.down.load(Ordering::SeqCst) {
            true => Err(StoreError::Unavailable("switched off".to_owned())),
            false => Ok(()),
        }
    }
}

impl Backend for MemoryStore {
    fn get<'a>(&'a self, table: Table, key: &'a [u8], now: Timestamp) -> StoreFuture<'a, Option<Stored>> {
        Box::pin(async move {
            self.check()?;
            let records = self.records.lock().unwrap();
            Ok(records.1.get(&(table, key.to_vec())).filter(|stored| stored.expires > now).cloned())
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
        Box::pin(async move {
            self.check()?;
            let mut records = self.records.lock().unwrap();
            let (last, map) = &mut *records;
            let there = map.get(&(table, key.to_vec())).filter(|stored| stored.expires > now).cloned();
            let met = match expect {
                Expect::Any => true,
                Expect::Absent => there.is_none(),
                Expect::Version(version) => there.as_ref().is_some_and(|stored| stored.version == version),
            };
            if !met {
                return Ok(Written::Conflict(there));
            }
            *last += 1;
            map.insert((table, key.to_vec()), Stored { value, version: *last, expires });
            Ok(Written::Done(*last))
        })
    }

    fn delete<'a>(&'a self, table: Table, key: &'a [u8]) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            self.check()?;
            Ok(self.records.lock().unwrap().1.remove(&(table, key.to_vec())).is_some())
        })
    }

    fn changes<'a>(&'a self, _: Table, _: u64, _: usize, _: Timestamp) -> StoreFuture<'a, Vec<Change>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn ping(&self) -> StoreFuture<'_, ()> {
        Box::pin(async { self.check() })
    }
}
