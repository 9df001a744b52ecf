//! What is done about a store that lost revocations: each replica puts back what its copy has.

use super::{Mirror, Record, What};
use crate::{
    clock::Timestamp,
    store::{Expect, Put, Store, StoreError, Table, WrittenAll},
};

/// Records that are looked for, and written, at once.
const AT_ONCE: usize = 100;

/// Writes all of a copy that is still in force and not in the store. What is there stays. Tells how many were
/// written.
pub(super) async fn put_back(store: &Store, mirror: &Mirror, now: Timestamp) -> Result<usize, StoreError> {
    let puts = puts(mirror, now)?;
    let mut written = 0;
    for some in puts.chunks(AT_ONCE) {
        written += put_some(store, some, now).await?;
    }
    Ok(written)
}

async fn put_some(store: &Store, puts: &[Put], now: Timestamp) -> Result<usize, StoreError> {
    let mut missing = puts.to_vec();
    // All replicas do so at once. Each conflict means that another has written one more, so there are no more of them than records.
    for _ in 0..=puts.len() {
        if missing.is_empty() {
            break;
        }
        if let WrittenAll::Done(versions) = store.put_all(missing.clone(), now).await? {
            return Ok(versions.len());
        }
        let keys = missing.iter().map(|put| put.key.clone()).collect();
        let found = store.get_all(Table::Revocations, keys, now).await?;
        missing = missing.into_iter().zip(found).filter(|(_, found)| found.is_none()).map(|(put, _)| put).collect();
    }
    Ok(0)
}

fn puts(mirror: &Mirror, now: Timestamp) -> Result<Vec<Put>, StoreError> {
    let in_force = mirror.all().filter(|(_, revocation)| revocation.until > now);
    let records = in_force.map(|(target, revocation)| Record::of(What::from(target), revocation.clone()));
    records.map(|(record, kept)| record.put(kept, Expect::Absent)).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicU64, Ordering},
        },
        time::Duration,
    };

    use super::{super::Revocations, *};
    use crate::{
        clock::Clock,
        store::{Backend, Change, Embedded, StoreFuture, Stored, Target},
    };

    /// A store that other processes use too, which fails to tell what has changed, or is set back to a version.
    #[derive(Debug)]
    struct SetBack {
        inner: Embedded,
        fails: AtomicBool,
        last: AtomicU64,
    }

    impl Backend for SetBack {
        fn get<'a>(&'a self, table: Table, key: &'a [u8], now: Timestamp) -> StoreFuture<'a, Option<Stored>> {
            self.inner.get(table, key, now)
        }
        fn put_all(&self, puts: Vec<Put>, now: Timestamp) -> StoreFuture<'_, WrittenAll> {
            self.inner.put_all(puts, now)
        }
        fn delete<'a>(&'a self, table: Table, key: &'a [u8]) -> StoreFuture<'a, bool> {
            self.inner.delete(table, key)
        }
        fn changes<'a>(
            &'a self,
            table: Table,
            after: u64,
            limit: usize,
            now: Timestamp,
        ) -> StoreFuture<'a, Vec<Change>> {
            match self.fails.load(Ordering::SeqCst) {
                true => Box::pin(async { Err(StoreError::Timeout) }),
                false => self.inner.changes(table, after, limit, now),
            }
        }
        fn was_set_back(&self, _table: Table, after: u64) -> StoreFuture<'_, bool> {
            let last = self.last.load(Ordering::SeqCst);
            Box::pin(async move { Ok(last < after) })
        }
        fn is_shared(&self) -> bool {
            true
        }
        fn ping(&self) -> StoreFuture<'_, ()> {
            self.inner.ping()
        }
    }

    /// The look that failed had begun at an earlier version, as an own word was to be read again, and the next one went by that.
    #[tokio::test]
    async fn what_a_store_lost_while_a_look_failed_is_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let inner = Embedded::open(&folder.path().join("store.redb")).unwrap();
        let switched = Arc::new(SetBack { inner, fails: false.into(), last: u64::MAX.into() });
        let store = Arc::clone(&switched) as Store;
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let (now, new) = (clock.now(), || Revocations::new(Arc::clone(&store), clock.clone()));
        let until = now + Duration::from_secs(60);
        let here = new();
        let changes = async || store.changes(Table::Revocations, 0, AT_ONCE, now).await.unwrap();
        // What `here` writes, whose answer is on its way, and then a word of another.
        new().revoke(Target::Session("own"), "signed out", until).await.unwrap();
        new().revoke(Target::Session("other"), "signed out", until).await.unwrap();
        let [own, other] = <[Change; 2]>::try_from(changes().await).unwrap();
        here.refresh().await.unwrap();
        let (record, version) = (serde_json::from_slice(&own.stored.value).unwrap(), own.stored.version);
        here.learn_own(vec![(record, own.stored.expires)], &[version]);
        switched.fails.store(true, Ordering::SeqCst);
        here.refresh().await.unwrap_err();
        switched.fails.store(false, Ordering::SeqCst);
        // Another server takes its place, which has not heard of the last word.
        assert!(store.delete(Table::Revocations, &other.key).await.unwrap());
        switched.last.store(version, Ordering::SeqCst);
        here.refresh().await.unwrap();
        let kept = changes().await;
        assert!(kept.iter().any(|change| change.key == other.key), "{kept:?}");
    }
}
