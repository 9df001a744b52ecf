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
