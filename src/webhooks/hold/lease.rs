//! Leases of lanes: one replica at a time sends the deliveries of a lane.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{ATTEMPT_TIMEOUT, Lane, Queue, identity::Holder};
use crate::{
    clock::Timestamp,
    store::{Expect, Put, StoreError, Stored, Table, WrittenAll},
};

/// The exclusive right to send the deliveries of a lane.
#[derive(Debug)]
pub(super) struct Lease {
    key: [u8; 32],
    /// `None` if no other process uses the store.
    version: Option<u64>,
    until: Timestamp,
}

/// How long a lease lasts: longer than an attempt can take.
const LEASE: Duration = Duration::from_secs(60);

/// The remaining time that a lease must have for another attempt.
const MIN_REMAINING: Duration = Duration::from_secs(40);

// Recording the outcome of an attempt, in the audit trail and then in the store, takes time as well.
const _: () =
    assert!(2 * ATTEMPT_TIMEOUT.as_secs() <= MIN_REMAINING.as_secs() && MIN_REMAINING.as_secs() < LEASE.as_secs());

/// More leases than replicas have at the same time.
const PAGE: usize = 1000;

/// The leases that replicas have at the moment.
#[derive(Debug, Default)]
pub struct Leases(HashMap<Vec<u8>, (Arc<str>, Timestamp)>);

impl Leases {
    /// The replica that has a lane, and until when no other sends its deliveries unless that replica starts again.
    pub fn of(&self, lane: &Lane) -> Option<(&str, Timestamp)> {
        self.0.get(lane.key().as_slice()).map(|(replica, until)| (&**replica, *until))
    }
}

impl Queue {
    /// Takes the lease of a lane that has no other turn here; `None` if another replica has it. One that this process or
    /// an earlier one of this replica left behind is taken over. Its version changes with that, so a write of the
    /// earlier turn that arrives late does nothing.
    pub(super) async fn lease(&self, lane: &Lane, now: Timestamp) -> Result<Option<Lease>, StoreError> {
        let mut lease = Lease { key: lane.key(), version: None, until: Timestamp::MAX };
        if !self.store.is_shared() {
            return Ok(Some(lease));
        }
        let Err(found) = self.write_lease(&mut lease, Expect::Absent, now + LEASE, now).await? else {
            return Ok(Some(lease));
        };
        let Some(left) = found.filter(|found| self.identity.may_take_over(&found.value)) else { return Ok(None) };
        let written = self.write_lease(&mut lease, Expect::Version(left.version), now + LEASE, now).await?;
        Ok(written.is_ok().then_some(lease))
    }

    /// Makes sure that a lease lasts for another attempt. Returns false if it was lost.
    pub(super) async fn renew(&self, lease: &mut Lease, now: Timestamp) -> Result<bool, StoreError> {
        match lease.version {
            Some(version) if lease.until < now + MIN_REMAINING => {
                Ok(self.write_lease(lease, Expect::Version(version), now + LEASE, now).await?.is_ok())
            }
            _ => Ok(true),
        }
    }

    /// Releases a lane. If that cannot be written, the next turn of the lane here takes the lease over, or it expires.
    pub(super) async fn give_back(&self, mut lease: Lease, now: Timestamp) {
        if let Some(version) = lease.version
            && let Err(error) = self.write_lease(&mut lease, Expect::Version(version), Timestamp::default(), now).await
        {
            tracing::debug!(%error, "a lease could not be given back; it stays until the next turn of its lane here, or until it expires");
        }
    }

    /// The leases of all replicas; none if no other process uses the store.
    pub async fn leases(&self, now: Timestamp) -> Result<Leases, StoreError> {
        if !self.store.is_shared() {
            return Ok(Leases::default());
        }
        let found = self.store.changes(Table::HeldLeases, 0, PAGE, now).await?;
        let leases = found.into_iter().filter_map(|change| {
            let Stored { value, expires, .. } = change.stored.ok()?;
            let replica = Holder::decode(&value).map(|holder| holder.replica).unwrap_or_default();
            Some((change.key, (replica, expires)))
        });
        Ok(Leases(leases.collect()))
    }

    /// Writes a lease. If it is not as expected, the error is what is there.
    async fn write_lease(
        &self,
        lease: &mut Lease,
        expect: Expect,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<Result<(), Option<Stored>>, StoreError> {
        let (key, value) = (lease.key.to_vec(), self.identity.encode());
        let put = Put { table: Table::HeldLeases, key, value, expires: until, expect };
        match self.store.put_all(vec![put], now).await? {
            WrittenAll::Done(versions) => {
                lease.version = versions.first().copied();
                lease.until = until;
                Ok(Ok(()))
            }
            WrittenAll::Conflict { found, .. } => Ok(Err(found)),
        }
    }
}
