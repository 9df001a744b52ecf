//! Restores revocations in a store that lost them: each replica writes back those in its copy.

use super::{Mirror, Record, What};
use crate::{
    clock::Timestamp,
    store::{Expect, Put, Store, StoreError, Table, WrittenAll},
};

/// Records that are read and written at once.
const AT_ONCE: usize = 100;

/// Writes all revocations of a copy that are still in force and not in the store. Existing records are not overwritten.
/// Returns how many were written.
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
    // All replicas do this at once. Each conflict means that another replica has written one more record, so there are
    // at most as many conflicts as records.
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
        sync::{Arc, atomic::Ordering::SeqCst},
        time::Duration,
    };

    use super::{super::Revocations, *};
    use crate::{
        clock::Clock,
        store::{Change, Embedded, Target, disturbed::Disturbed},
    };

    /// The failed renewal had begun at an earlier version, because an own write was to be read again, and the next one
    /// started from that.
    #[tokio::test]
    async fn revocations_the_store_lost_while_a_read_failed_are_restored() {
        let folder = tempfile::tempdir().unwrap();
        let inner = Embedded::open(&folder.path().join("store.redb")).unwrap();
        let disturbed = Arc::new(Disturbed::new(Arc::new(inner)));
        let store = Arc::clone(&disturbed) as Store;
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let (now, new) = (clock.now(), || Revocations::new(Arc::clone(&store), clock.clone()));
        let until = now + Duration::from_secs(60);
        let here = new();
        let changes = async || store.changes(Table::Revocations, 0, AT_ONCE, now).await.unwrap();
        // A write by `here` whose response is still on its way, and then one by another replica.
        new().revoke(Target::Session("own"), "signed out", until).await.unwrap();
        new().revoke(Target::Session("other"), "signed out", until).await.unwrap();
        let [own, other] = <[Change; 2]>::try_from(changes().await).unwrap();
        here.refresh().await.unwrap();
        let (stored, version) = (own.stored.unwrap(), own.version);
        let record = serde_json::from_slice(&stored.value).unwrap();
        here.learn_own(vec![(record, stored.expires)], &[version]);
        disturbed.fails.store(true, SeqCst);
        here.refresh().await.unwrap_err();
        disturbed.fails.store(false, SeqCst);
        // Another server takes its place, without the last write.
        assert!(store.delete(Table::Revocations, &other.key).await.unwrap());
        disturbed.last.store(version, SeqCst);
        here.refresh().await.unwrap();
        let kept = changes().await;
        assert!(kept.iter().any(|change| change.key == other.key), "{kept:?}");
    }
}
