//! Sends held deliveries: which lanes have their turn, and what follows from each attempt.

use std::{sync::Arc, time::Duration};

use data_encoding::HEXLOWER;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Attempt, Deliverer, Failure, FailureKind, Held, HeldId, Lane, PARKED_FOR, Queue, index::Lacking, is_due,
    lease::Lease, presence::Presence,
};
use crate::{
    clock::{Clock, Timestamp, every},
    downstream::{Drain, Unfinished},
    store::StoreError,
    webhooks::{EventId, Replay},
};

/// Deliveries of one lane before another lane of its sender gets its turn.
const DELIVERIES_PER_TURN: usize = 32;

/// How long a lane pauses after an error of the store, or while another replica has it.
const LANE_PAUSE: Duration = Duration::from_secs(1);

/// How often the store is checked for new records, and ages are measured.
const TICK: Duration = Duration::from_millis(500);

/// How often all records of a shared store are read again, so that a delivery that a failover restored is sent soon. No
/// lane begins meanwhile.
const FULL_READ_INTERVAL: Duration = Duration::from_secs(300);

/// Sends held deliveries until `stop`, and then finishes those in flight, for which `drain` waits. Nothing is sent
/// before `settle` has passed; held deliveries are read and measured meanwhile.
pub async fn run<C: Deliverer>(
    queue: Queue,
    deliverer: Arc<C>,
    clock: Clock,
    drain: Drain,
    settle: Duration,
    stop: CancellationToken,
) {
    let (settling, mut has_settled) = (tokio::time::sleep(settle), settle.is_zero());
    tokio::pin!(settling);
    let presence = Arc::new(Presence::begin(clock.clone()));
    while let Err(error) = queue.read_once(clock.now()).await {
        tracing::warn!(%error, "cannot read held deliveries from the store yet");
        tokio::select! {
            () = tokio::time::sleep(LANE_PAUSE) => {}
            () = stop.cancelled() => return,
        }
    }
    deliverer.knows_all();
    let mut lanes = JoinSet::new();
    let mut tick = every(TICK);
    let mut read_at = Instant::now();
    loop {
        presence.look();
        let (due, next) = if has_settled { queue.index().begin_due(clock.now()) } else { (Vec::new(), None) };
        for lane in due {
            let (paused, unfinished) = (clock.now() + LANE_PAUSE, drain.begin_task());
            let busy = Busy { queue: queue.clone(), lane: lane.clone(), paused, _unfinished: unfinished };
            let turn = Turn {
                queue: queue.clone(),
                deliverer: Arc::clone(&deliverer),
                clock: clock.clone(),
                presence: Arc::clone(&presence),
                lane,
            };
            let stop = stop.clone();
            lanes.spawn(async move { turn.run(busy, &stop).await });
        }
        let until_next = next.map_or(TICK, |next| next.since(clock.now()));
        tokio::select! {
            () = stop.cancelled() => break,
            () = &mut settling, if !has_settled => has_settled = true,
            () = queue.wake.notified() => {}
            Some(_) = lanes.join_next() => {}
            () = tokio::time::sleep(until_next) => {}
            _ = tick.tick() => {
                queue.measure_age(clock.now());
                // Other replicas write too, and a write that this process gave up on may still arrive.
                let looked = async {
                    match read_at.elapsed() >= FULL_READ_INTERVAL {
                        true => {
                            queue.read_anew(clock.now()).await?;
                            read_at = Instant::now();
                        }
                        false => queue.refresh(clock.now()).await?,
                    }
                    queue.recheck_parked(clock.now()).await?;
                    queue.recheck_unreadable(clock.now()).await
                };
                if let Err(error) = looked.await {
                    tracing::debug!(%error, "cannot read new held deliveries from the store at the moment");
                }
            }
        }
    }
    while lanes.join_next().await.is_some() {}
}

/// Marks a lane as having its turn until this is dropped, also by a panic.
struct Busy {
    queue: Queue,
    lane: Lane,
    /// The lane gets no other turn before.
    paused: Timestamp,
    /// The drain waits for the turn: a delivery that an EventListener has accepted and that is still stored would be
    /// sent again.
    _unfinished: Unfinished,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.queue.index().end_turn(&self.lane, self.paused);
    }
}

/// The turn of a lane.
struct Turn<C> {
    queue: Queue,
    deliverer: Arc<C>,
    clock: Clock,
    presence: Arc<Presence>,
    lane: Lane,
}

/// How the turn of a lane continues.
#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    /// Its first delivery is not due, or it has none.
    Rest,
    /// Memory is short: try again after a pause.
    Pause,
}

impl<C: Deliverer> Turn<C> {
    async fn run(&self, mut busy: Busy, stop: &CancellationToken) {
        busy.paused = match self.deliver_all(stop).await {
            Ok(true) => Timestamp::default(),
            Ok(false) => self.clock.now() + LANE_PAUSE,
            Err(error) => {
                if self.queue.index().is_warning_due(&self.lane.webhook, Lacking::Store) {
                    tracing::warn!(webhook = &*self.lane.webhook, %error, "held deliveries wait for the store");
                }
                self.clock.now() + LANE_PAUSE
            }
        };
    }

    /// Returns false if another replica has the lane, or there is no memory for its first delivery.
    async fn deliver_all(&self, stop: &CancellationToken) -> Result<bool, StoreError> {
        // A delivery that another replica has sent is gone; this check costs less than a lease.
        let Some(first) = self.queue.index().first(&self.lane) else { return Ok(true) };
        if self.queue.store.is_shared() && self.queue.read_if_readable(&first, self.clock.now()).await?.is_none() {
            return Ok(true);
        }
        // Only this process knows that it was accepted: whichever replica gets the lease would send it again.
        if self.queue.index().is_taken(&first) {
            self.queue.forget(&first, self.clock.now()).await?;
        }
        let Some(mut lease) = self.queue.lease(&self.lane, self.clock.now()).await? else { return Ok(false) };
        let delivered = self.deliver_some(&mut lease, stop).await;
        self.queue.give_back(lease, self.clock.now()).await;
        delivered
    }

    async fn deliver_some(&self, lease: &mut Lease, stop: &CancellationToken) -> Result<bool, StoreError> {
        // The replica that had the lane before may have written records that are not known here. So may a request here
        // whose sender left; its delivery must not be overtaken.
        self.queue.refresh(self.clock.now()).await?;
        for _ in 0..DELIVERIES_PER_TURN {
            if stop.is_cancelled() {
                break;
            }
            let Some(id) = self.next().await? else { break };
            if !self.queue.renew(lease, self.clock.now()).await? {
                return Ok(false);
            }
            match self.deliver(&id).await? {
                Next::GoOn => {}
                Next::Rest => break,
                Next::Pause => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The oldest delivery of the lane. Deliveries stored by this process are known at once. Those that another replica
    /// stored before it, or a local request that ended before it could report, are known only once the store was read
    /// up to their version.
    async fn next(&self) -> Result<Option<HeldId>, StoreError> {
        let mut looked = None;
        loop {
            let (first, is_preceded) = {
                let index = self.queue.index();
                let Some((place, id)) = index.first_with_place(&self.lane) else { return Ok(None) };
                (id, place > index.seen)
            };
            // Not found by reading either: whatever preceded it is gone.
            if !is_preceded || looked == Some(first) {
                return Ok(Some(first));
            }
            self.queue.refresh(self.clock.now()).await?;
            looked = Some(first);
        }
    }

    async fn deliver(&self, id: &HeldId) -> Result<Next, StoreError> {
        if self.queue.index().is_taken(id) {
            self.queue.forget(id, self.clock.now()).await?;
            return Ok(Next::GoOn);
        }
        let now = self.clock.now();
        let Some((held, version)) = self.queue.read_if_readable(id, now).await? else { return Ok(Next::GoOn) };
        if held.parked.is_some() {
            return Ok(Next::GoOn);
        }
        if !is_due(held.next, now) {
            return Ok(Next::Rest);
        }
        // Reserved before the request is read: all lanes of all senders may have their turn at the same time, and once
        // read, requests cannot be refused.
        let Some(room) = self.deliverer.room(&held) else { return self.has_no_room(id, held, version).await };
        let request = match self.queue.request_in(room, id, now).await {
            Ok(Some(request)) => request,
            Ok(None) => return self.has_no_room(id, held, version).await,
            Err(error @ StoreError::Corrupt(_)) => {
                let failure = Failure { kind: FailureKind::Denied, why: error.to_string() };
                return self.failed(id, held, version, &failure).await;
            }
            Err(error) => return Err(error),
        };
        match self.deliverer.deliver(*id, &held, request).await {
            Attempt::Accepted(event) => {
                self.queue.metrics.delivered(&held.webhook);
                let (webhook, delivery, tries) = (&*held.webhook, &*held.delivery, held.tries + 1);
                let event = event.as_ref().map(EventId::as_str);
                // Failed attempts are in the log, so their end is too.
                match held.tries {
                    0 => tracing::debug!(webhook, delivery, event, "a held delivery was delivered"),
                    _ => {
                        tracing::info!(webhook, delivery, event, tries, "a held delivery was delivered after retries")
                    }
                }
                self.queue.index().set_taken(id);
                self.queue.forget(id, self.clock.now()).await?;
                Ok(Next::GoOn)
            }
            Attempt::Failed(failure) => self.failed(id, held, version, &failure).await,
        }
    }

    /// Waits for memory, which is not an attempt, until the delivery is late: for one that is larger than all the
    /// memory, room never comes.
    async fn has_no_room(&self, id: &HeldId, mut held: Held, version: u64) -> Result<Next, StoreError> {
        let now = self.clock.now();
        if self.presence.is_over(&held) && held.is_late(now) {
            held.parked = Some(now);
            let why = "there was no room for it in memory (`limits.buffered_bytes`)";
            held.last_error = Some(match held.last_error.take().filter(|_| held.tries > 0) {
                Some(before) => format!("{why}; the last attempt: {before}"),
                None => why.to_owned(),
            });
            return self.put_back(id, held, version, now).await;
        }
        if self.queue.index().is_warning_due(&self.lane.webhook, Lacking::Memory) {
            tracing::warn!(webhook = &*self.lane.webhook, bytes = held.size, "held deliveries wait for memory");
        }
        Ok(Next::Pause)
    }

    async fn failed(&self, id: &HeldId, mut held: Held, version: u64, failure: &Failure) -> Result<Next, StoreError> {
        let now = self.clock.now();
        let is_over = self.presence.is_over(&held);
        let is_last = held.record_failure(failure, now, is_over);
        self.queue.metrics.try_failed(&held.webhook);
        if is_last {
            held.parked = Some(now);
        } else if held.tries == 1 {
            // Once per delivery: its sender got 202, and nobody else learns that no run is created.
            tracing::warn!(
                held = %id,
                webhook = &*held.webhook,
                delivery = &*held.delivery,
                why = failure.why,
                until = %held.until,
                "a held delivery was not accepted and will be retried; later ones of its repository wait for it"
            );
        }
        self.put_back(id, held, version, now).await
    }

    /// Rewrites the record of a delivery that is to be tried later or, if it says so, is parked now.
    async fn put_back(&self, id: &HeldId, held: Held, version: u64, now: Timestamp) -> Result<Next, StoreError> {
        let is_parked = held.parked.is_some();
        if is_parked {
            self.queue.index().set_parking(*id, now);
        }
        // Before the record, as a process that dies after parking would never do it.
        let span = if is_parked { PARKED_FOR } else { Duration::ZERO };
        let replay = Replay::new(self.queue.store.clone());
        if let Err(error) = replay.keep_events(&HEXLOWER.encode(id.as_bytes()), span, now).await {
            tracing::warn!(held = %id, %error, "the events of a held delivery could not be kept for longer; if it is retried late, it may create a run twice");
        }
        // As stored, so that a request that cannot be opened expires as well. One that the store itself cannot read is
        // lost and replaced by an empty one, which also expires.
        let request = match is_parked {
            true => match self.queue.stored_request(id, now).await {
                Err(StoreError::Corrupt(_)) => Some(Vec::new()),
                found => found?,
            },
            false => None,
        };
        self.queue.rewrite(id, held, version, request, now).await?;
        // A lane whose first delivery was parked continues; one whose first delivery was put off waits for it.
        Ok(if is_parked { Next::GoOn } else { Next::Rest })
    }
}
