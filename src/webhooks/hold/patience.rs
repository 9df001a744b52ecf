//! Retries against a stalled store, for as long as the sender of a delivery waits.

use std::{error::Error as _, time::Duration};

use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::{Held, HeldId, HeldRequest, Queue, Settings, queue::unwritable};
use crate::{
    clock::Timestamp,
    error::{Reason, Rejection},
    store::StoreError,
    webhooks::{Replay, ReplayKeys},
};

/// The first pause before a retry. It doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Retries `ask` while the store has trouble that may pass, and starts no attempt after `deadline`: most senders of
/// held deliveries send once, and wait longer than one call to the store may take. `ask` is told whether it is a retry.
pub async fn patiently<T, F>(deadline: Instant, ask: impl Fn(bool) -> F) -> Result<T, Rejection>
where
    F: Future<Output = Result<T, Rejection>>,
{
    let (mut pause, mut is_again) = (FIRST_PAUSE, false);
    loop {
        let answer = ask(is_again).await;
        let next = Instant::now() + pause;
        if !answer.as_ref().is_err_and(may_pass) || next >= deadline {
            return answer;
        }
        sleep_until(next).await;
        (pause, is_again) = ((pause * 2).min(LONGEST_PAUSE), true);
    }
}

fn may_pass(rejection: &Rejection) -> bool {
    let cause = rejection.source().and_then(|cause| cause.downcast_ref::<StoreError>());
    matches!(cause, Some(StoreError::Timeout | StoreError::Unavailable(_)))
}

impl Queue {
    /// As [`Queue::keep`], after an attempt of the same request whose answer may have been lost: what that attempt
    /// stored takes no further place and counts as stored.
    pub async fn keep_again(
        &self,
        replay: &Replay,
        keys: &ReplayKeys,
        held: Held,
        request: &HeldRequest,
        settings: &Settings,
        now: Timestamp,
    ) -> Result<HeldId, Rejection> {
        match self.stored_by(held.request, replay, keys, now).await.map_err(unwritable)? {
            Some(id) => Ok(id),
            None => self.keep(replay, keys, held, request, settings, now).await,
        }
    }

    /// Handles a delivery that was refused as a duplicate: it is none if this request itself stored it.
    pub(super) async fn not_again(
        &self,
        rejection: Rejection,
        request: Uuid,
        replay: &Replay,
        keys: &ReplayKeys,
        now: Timestamp,
    ) -> Result<HeldId, Rejection> {
        if rejection.reason() != Reason::ReplayedDelivery {
            return Err(rejection);
        }
        if let Some(own) = self.stored_by(request, replay, keys, now).await.map_err(unwritable)? {
            return Ok(own);
        }
        // The first attempt may have got 503 because no replica had the record yet, and a 200 would say that it is
        // safe.
        self.replicated(keys).await?;
        Err(rejection)
    }

    /// The delivery, if this request has stored it already: a write that the store does not confirm in time may be done
    /// all the same.
    async fn stored_by(
        &self,
        request: Uuid,
        replay: &Replay,
        keys: &ReplayKeys,
        now: Timestamp,
    ) -> Result<Option<HeldId>, StoreError> {
        for name in replay.stored_names(keys, now).await? {
            let id = HeldId::new(name);
            if self.read_if_readable(&id, now).await?.is_some_and(|(held, _)| held.request == request) {
                self.wake.notify_one();
                return Ok(Some(id));
            }
        }
        Ok(None)
    }
}
