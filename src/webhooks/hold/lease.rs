//! Leases of lanes: one replica at a time sends the deliveries of a lane.

use std::time::Duration;

use super::{ATTEMPT_TIMEOUT, Lane, Queue};
use crate::{
    clock::Timestamp,
    store::{Expect, Put, StoreError, Table, WrittenAll},
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

impl Queue {
    /// Takes the lease of a lane; `None` if another replica has it.
    pub(super) async fn lease(&self, lane: &Lane, now: Timestamp) -> Result<Option<Lease>, StoreError> {
        let mut lease = Lease { key: lane.key(), version: None, until: Timestamp::MAX };
        if !self.store.is_shared() {
            return Ok(Some(lease));
        }
        Ok(self.write_lease(&mut lease, Expect::Absent, now + LEASE, now).await?.then_some(lease))
    }

    /// Makes sure that a lease lasts for another attempt. Returns false if it was lost.
    pub(super) async fn renew(&self, lease: &mut Lease, now: Timestamp) -> Result<bool, StoreError> {
        match lease.version {
            Some(version) if lease.until < now + MIN_REMAINING => {
                self.write_lease(lease, Expect::Version(version), now + LEASE, now).await
            }
            _ => Ok(true),
        }
    }

    /// Releases a lane. If that cannot be written, the lease expires.
    pub(super) async fn give_back(&self, mut lease: Lease, now: Timestamp) {
        if let Some(version) = lease.version
            && let Err(error) = self.write_lease(&mut lease, Expect::Version(version), Timestamp::default(), now).await
        {
            tracing::debug!(%error, "a lane stays leased until its lease expires");
        }
    }

    async fn write_lease(
        &self,
        lease: &mut Lease,
        expect: Expect,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let put = Put { table: Table::HeldLeases, key: lease.key.to_vec(), value: Vec::new(), expires: until, expect };
        match self.store.put_all(vec![put], now).await? {
            WrittenAll::Done(versions) => {
                lease.version = versions.first().copied();
                lease.until = until;
                Ok(true)
            }
            WrittenAll::Conflict { .. } => Ok(false),
        }
    }
}
