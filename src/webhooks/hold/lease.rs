//! The right to bring a lane, which one replica has at a time.

use std::time::Duration;

use super::{Lane, Queue, TRY};
use crate::{
    clock::Timestamp,
    store::{Expect, Put, StoreError, Table, WrittenAll},
};

/// The right to bring the deliveries of a lane.
#[derive(Debug)]
pub(super) struct Lease {
    key: [u8; 32],
    /// None where nobody else uses the store.
    version: Option<u64>,
    until: Timestamp,
}

/// How long a lease is good: longer than a try can take.
const LEASE: Duration = Duration::from_secs(60);

/// What must be left of a lease for another try.
const LEAST: Duration = Duration::from_secs(40);

// What is noted after a try takes a while as well.
const _: () = assert!(2 * TRY.as_secs() <= LEAST.as_secs() && LEAST.as_secs() < LEASE.as_secs());

impl Queue {
    /// Takes a lane; `None` if another replica has it.
    pub(super) async fn lease(&self, lane: &Lane, now: Timestamp) -> Result<Option<Lease>, StoreError> {
        let mut lease = Lease { key: lane.key(), version: None, until: Timestamp::MAX };
        if !self.store.is_shared() {
            return Ok(Some(lease));
        }
        Ok(self.write_lease(&mut lease, Expect::Absent, now + LEASE, now).await?.then_some(lease))
    }

    /// Makes sure that a lease lasts for another try; false if it was lost.
    pub(super) async fn renew(&self, lease: &mut Lease, now: Timestamp) -> Result<bool, StoreError> {
        match lease.version {
            Some(version) if lease.until < now + LEAST => {
                self.write_lease(lease, Expect::Version(version), now + LEASE, now).await
            }
            _ => Ok(true),
        }
    }

    /// Gives a lane back. What cannot be written lapses.
    pub(super) async fn give_back(&self, mut lease: Lease, now: Timestamp) {
        if let Some(version) = lease.version
            && let Err(error) = self.write_lease(&mut lease, Expect::Version(version), Timestamp::default(), now).await
        {
            tracing::debug!(%error, "a lane is kept until its lease ends");
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
