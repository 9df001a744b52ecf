//! Waiting for a store that stalls, for as long as the sender of a delivery waits.

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

/// The pause before the store is asked again, which doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Asks again where the store has trouble that may pass, and begins no other try after `deadline`: most senders of what is held send it
/// once, and wait longer than one call to the store may take. `ask` is told whether it was asked before.
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
    /// As [`Queue::keep`], after a try of the same request whose answer may have been lost: what that has stored takes no further place,
    /// and is in no doubt.
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

    /// What becomes of a delivery that is not to be taken again, which is none where this request has stored it itself.
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
        // The first try may have heard 503 because no other server had it yet, and 200 says that it is safe.
        self.replicated(keys).await?;
        Err(rejection)
    }

    /// The delivery, where this request has stored it already: a write of which the store does not tell in time may be done all the
    /// same.
    async fn stored_by(
        &self,
        request: Uuid,
        replay: &Replay,
        keys: &ReplayKeys,
        now: Timestamp,
    ) -> Result<Option<HeldId>, StoreError> {
        for name in replay.stored_names(keys, now).await? {
            let id = HeldId::new(name);
            if self.look_or_leave(&id, now).await?.is_some_and(|(held, _)| held.request == request) {
                self.wake.notify_one();
                return Ok(Some(id));
            }
        }
        Ok(None)
    }
}
