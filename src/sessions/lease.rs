//! The lease of a refresh, which the other replicas respect: it is written into the record first, for longer than the
//! provider may take, and the result is written only if it is still in force.

use std::{ops::ControlFlow, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use super::{
    Sessions,
    keyring::random,
    record::{Record, SessionHash, is_in_future},
    refresh::{Done, Wait},
};
use crate::{
    clock::{Moment, Timestamp, millis},
    downstream::Unfinished,
    store::StoreError,
};

/// The duration of a lease. Longer than a call to the provider may take, including the writes around it.
pub(super) const LEASE: Duration = Duration::from_secs(45);

/// How long a lease is respected that seems to begin in the future. Longer than most calls to a provider.
const FUTURE_LEASE_GRACE: Duration = Duration::from_secs(5);

/// The polling interval while another replica holds the lease.
pub(super) const POLL: Duration = Duration::from_millis(100);

/// The lease of a refresh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Lease {
    pub(super) id: [u8; 16],
    #[serde(with = "millis")]
    pub(super) until: Timestamp,
}

impl Lease {
    /// Whether it excludes others at `now`, who know it since `since`. If it seems to begin in the future, either the
    /// clock was set back after it was left behind, or its replica is ahead of this one and working; the two cannot be
    /// distinguished.
    fn is_in_force(&self, now: Moment, since: Moment) -> bool {
        let is_ahead = is_in_future(self.until - LEASE, now.wall());
        self.until > now.wall() && (!is_ahead || now.is_before(since + FUTURE_LEASE_GRACE))
    }
}

/// A refresh that this process may do.
pub(super) struct Leased {
    /// The record, with the lease.
    pub(super) record: Record,
    pub(super) lease: Lease,
    /// The end of the process waits for it: a token that was used and whose successor was not stored is lost.
    pub(super) unfinished: Unfinished,
}

impl Sessions {
    /// Acquires the lease of a refresh, unless somebody has refreshed since `seen`. Waits for the lease of another
    /// replica, and tells so to `waits`.
    pub(super) async fn acquire(
        &self,
        hash: SessionHash,
        seen: Timestamp,
        waits: &watch::Sender<Wait>,
    ) -> Result<ControlFlow<Done, Leased>, StoreError> {
        let give_up = self.moment() + LEASE;
        // The lease of another, and since when it is known.
        let mut known: Option<([u8; 16], Moment)> = None;
        loop {
            let Some((record, version)) = self.read(hash).await? else { return Ok(ControlFlow::Break(Done::Settled)) };
            if record.checked != seen {
                return Ok(ControlFlow::Break(Done::Settled));
            }
            let now = self.moment();
            if let Some(other) = &record.lease {
                let since = known.filter(|(id, _)| *id == other.id).map_or(now, |(_, since)| since);
                known = Some((other.id, since));
                if other.is_in_force(now, since) {
                    if !now.is_before(give_up) {
                        return Ok(ControlFlow::Break(Done::Later));
                    }
                    waits.send_if_modified(|since| since.is_none() && since.replace(Instant::now()).is_none());
                    tokio::time::sleep(POLL).await;
                    continue;
                }
            }
            // From now on: the wait for another's lease may have been long, but the call is not.
            let lease = Lease { id: random(), until: now.wall() + LEASE };
            let record = Record { lease: Some(lease.clone()), ..record };
            // If the process is already closing, this is left to other replicas.
            let Some(unfinished) = self.0.shared.drain.begin_task_unless_closing() else {
                return Ok(ControlFlow::Break(Done::Later));
            };
            if self.write(hash, &record, version).await? {
                waits.send_if_modified(|since| since.take().is_some());
                return Ok(ControlFlow::Continue(Leased { record, lease, unfinished }));
            }
        }
    }

    /// Writes the result of a refresh, if its lease is still in force. If the store is away, this is retried until
    /// `give_up`, as a token that rotated and was not stored is lost. Returns whether the session still exists.
    pub(super) async fn settle(
        &self,
        hash: SessionHash,
        lease: &Lease,
        give_up: Moment,
        change: impl Fn(&mut Record),
    ) -> Result<bool, StoreError> {
        loop {
            let attempt = async {
                let Some((mut record, version)) = self.read(hash).await? else { return Ok(Some(false)) };
                if record.lease.as_ref() != Some(lease) {
                    tracing::warn!(session = %hash, "a refresh took longer than its lease");
                    return Ok(Some(true));
                }
                change(&mut record);
                self.write(hash, &record, version).await.map(|written| written.then_some(true))
            };
            match attempt.await {
                Ok(Some(is_there)) => return Ok(is_there),
                Ok(None) => {}
                Err(error) if !self.moment().is_before(give_up) => return Err(error),
                Err(error) => {
                    tracing::warn!(session = %hash, %error, "a refreshed session cannot be stored yet");
                    tokio::time::sleep(POLL).await;
                }
            }
        }
    }
}
