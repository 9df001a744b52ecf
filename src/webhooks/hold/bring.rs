//! Brings what is held: which lanes have their turn, and what follows of each try.

use std::{sync::Arc, time::Duration};

use data_encoding::HEXLOWER;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Brought, Carrier, Failure, FailureKind, Held, HeldId, Lane, PARKED_FOR, Queue, is_due, lease::Lease,
    presence::Presence,
};
use crate::{
    clock::{Clock, Timestamp, every},
    downstream::{Drain, Unfinished},
    store::StoreError,
    webhooks::Replay,
};

/// Deliveries of one lane before another lane of its sender has its turn.
const TURN: usize = 32;

/// How long a lane rests after an error of the store, or while another replica has it.
const REST: Duration = Duration::from_secs(1);

/// How often the store is looked at for what is not known yet, and ages are measured.
const TICK: Duration = Duration::from_millis(500);

/// How often all records of a shared store are read, without what they bring: so that what a failover brought back is brought soon. No lane
/// begins meanwhile.
const ANEW: Duration = Duration::from_secs(300);

/// Brings what is held until `stop`, and then ends what is on its way, for which `drain` waits. Nothing is brought before `settle` has
/// passed; what is held is known and measured meanwhile.
pub async fn run<C: Carrier>(
    queue: Queue,
    carrier: Arc<C>,
    clock: Clock,
    drain: Drain,
    settle: Duration,
    stop: CancellationToken,
) {
    let (settling, mut has_settled) = (tokio::time::sleep(settle), settle.is_zero());
    tokio::pin!(settling);
    let presence = Arc::new(Presence::begin(clock.clone()));
    while let Err(error) = queue.read_once(clock.now()).await {
        tracing::warn!(%error, "what is held cannot be read yet");
        tokio::select! {
            () = tokio::time::sleep(REST) => {}
            () = stop.cancelled() => return,
        }
    }
    carrier.knows_all();
    let mut lanes = JoinSet::new();
    let mut tick = every(TICK);
    let mut read_at = Instant::now();
    loop {
        presence.look();
        let (due, next) = if has_settled { queue.index().begin_due(clock.now()) } else { (Vec::new(), None) };
        for lane in due {
            let (paused, unfinished) = (clock.now() + REST, drain.begin_task());
            let busy = Busy { queue: queue.clone(), lane: lane.clone(), paused, _unfinished: unfinished };
            let turn = Turn {
                queue: queue.clone(),
                carrier: Arc::clone(&carrier),
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
                // Others write too, and what was given up on here may be written yet.
                let looked = async {
                    match read_at.elapsed() >= ANEW {
                        true => {
                            queue.read_anew(clock.now()).await?;
                            read_at = Instant::now();
                        }
                        false => queue.refresh(clock.now()).await?,
                    }
                    queue.look_at_parked(clock.now()).await?;
                    queue.look_at_unreadable(clock.now()).await
                };
                if let Err(error) = looked.await {
                    tracing::debug!(%error, "what was stored since cannot be read at the moment");
                }
            }
        }
    }
    while lanes.join_next().await.is_some() {}
}

/// A lane that has its turn, until this is dropped, which a panic does too.
struct Busy {
    queue: Queue,
    lane: Lane,
    /// It gets no other turn before.
    paused: Timestamp,
    /// What an EventListener has taken and is still stored comes to it again.
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
    carrier: Arc<C>,
    clock: Clock,
    presence: Arc<Presence>,
    lane: Lane,
}

/// Whether the lane goes on.
#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    /// Its first is not due, or it has none.
    Rest,
    /// Memory is short: not at once.
    Pause,
}

impl<C: Carrier> Turn<C> {
    async fn run(&self, mut busy: Busy, stop: &CancellationToken) {
        busy.paused = match self.bring_all(stop).await {
            Ok(true) => Timestamp::default(),
            Ok(false) => self.clock.now() + REST,
            Err(error) => {
                tracing::warn!(webhook = &*self.lane.webhook, %error, "held deliveries wait for the store");
                self.clock.now() + REST
            }
        };
    }

    /// False if another replica has the lane, or there is no room for its first in memory.
    async fn bring_all(&self, stop: &CancellationToken) -> Result<bool, StoreError> {
        // One that another replica brought is gone, which costs less to find out than a lease.
        let Some(first) = self.queue.index().first(&self.lane) else { return Ok(true) };
        if self.queue.store.is_shared() && self.queue.look_or_leave(&first, self.clock.now()).await?.is_none() {
            return Ok(true);
        }
        let Some(mut lease) = self.queue.lease(&self.lane, self.clock.now()).await? else { return Ok(false) };
        let brought = self.bring_some(&mut lease, stop).await;
        self.queue.give_back(lease, self.clock.now()).await;
        brought
    }

    async fn bring_some(&self, lease: &mut Lease, stop: &CancellationToken) -> Result<bool, StoreError> {
        // Whoever had the lane before may have written what is not known here; and here, one that was stored while its sender
        // left, which must not be overtaken.
        self.queue.refresh(self.clock.now()).await?;
        for _ in 0..TURN {
            if stop.is_cancelled() {
                break;
            }
            let Some(id) = self.next().await? else { break };
            if !self.queue.renew(lease, self.clock.now()).await? {
                return Ok(false);
            }
            match self.bring(&id).await? {
                Next::GoOn => {}
                Next::Rest => break,
                Next::Pause => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The oldest delivery of the lane. What was stored here is known at once, but what another replica stored before it, or a request
    /// here that ended before it could tell, only once the store was read as far.
    async fn next(&self) -> Result<Option<HeldId>, StoreError> {
        let mut looked = None;
        loop {
            let (first, is_preceded) = {
                let index = self.queue.index();
                let Some((place, id)) = index.first_with_place(&self.lane) else { return Ok(None) };
                (id, place > index.seen)
            };
            // One that is not found by reading either is gone.
            if !is_preceded || looked == Some(first) {
                return Ok(Some(first));
            }
            self.queue.refresh(self.clock.now()).await?;
            looked = Some(first);
        }
    }

    async fn bring(&self, id: &HeldId) -> Result<Next, StoreError> {
        if self.queue.index().is_taken(id) {
            self.queue.forget(id, self.clock.now()).await?;
            return Ok(Next::GoOn);
        }
        let now = self.clock.now();
        let Some((held, version)) = self.queue.look_or_leave(id, now).await? else { return Ok(Next::GoOn) };
        if held.parked.is_some() {
            return Ok(Next::GoOn);
        }
        if !is_due(held.next, now) {
            return Ok(Next::Rest);
        }
        // Before it is read: all lanes of all senders may have their turn at once, and what they read nobody could refuse any more.
        let Some(room) = self.carrier.room(&held) else { return self.has_no_room(id, held, version).await };
        let request = match self.queue.request_in(room, id, now).await {
            Ok(Some(request)) => request,
            Ok(None) => return self.has_no_room(id, held, version).await,
            Err(error @ StoreError::Corrupt(_)) => {
                let failure = Failure { kind: FailureKind::Denied, why: error.to_string() };
                return self.failed(id, held, version, &failure).await;
            }
            Err(error) => return Err(error),
        };
        match self.carrier.bring(*id, &held, request).await {
            Brought::Taken(event) => {
                self.queue.metrics.delivered(&held.webhook);
                let (webhook, delivery, tries) = (&*held.webhook, &*held.delivery, held.tries + 1);
                // That a try failed is in the log, so that its end is too.
                match held.tries {
                    0 => tracing::debug!(webhook, delivery, event = ?event, "a held delivery was taken"),
                    _ => {
                        tracing::info!(webhook, delivery, event = ?event, tries, "a held delivery was taken after all")
                    }
                }
                self.queue.index().set_taken(id);
                self.queue.forget(id, self.clock.now()).await?;
                Ok(Next::GoOn)
            }
            Brought::Failed(failure) => self.failed(id, held, version, &failure).await,
        }
    }

    /// Waits for memory, which is no try, until it is late and no longer: for one that is larger than all there may be room never comes.
    async fn has_no_room(&self, id: &HeldId, mut held: Held, version: u64) -> Result<Next, StoreError> {
        let now = self.clock.now();
        if self.presence.is_over(&held) && held.is_late(now) {
            held.parked = Some(now);
            let why = "there was no room for it in memory (`limits.buffered_bytes`)";
            held.last_error = Some(match held.last_error.take().filter(|_| held.tries > 0) {
                Some(before) => format!("{why}; the last try: {before}"),
                None => why.to_owned(),
            });
            return self.put_back(id, held, version, now).await;
        }
        tracing::warn!(webhook = &*self.lane.webhook, bytes = held.size, "held deliveries wait for memory");
        Ok(Next::Pause)
    }

    async fn failed(&self, id: &HeldId, mut held: Held, version: u64, failure: &Failure) -> Result<Next, StoreError> {
        let now = self.clock.now();
        let is_over = self.presence.is_over(&held);
        let is_last = held.failed(failure, now, is_over);
        self.queue.metrics.try_failed(&held.webhook);
        if is_last {
            held.parked = Some(now);
        } else if held.tries == 1 {
            // Once for each, as its sender had 202 and nobody else learns that no run is made.
            tracing::warn!(
                held = %id,
                webhook = &*held.webhook,
                delivery = &*held.delivery,
                why = failure.why,
                until = %held.until,
                "a held delivery was not taken, and is tried again; later ones of its repository wait for it"
            );
        }
        self.put_back(id, held, version, now).await
    }

    /// Writes one again that is to be tried later or, where it says so, is parked as of now.
    async fn put_back(&self, id: &HeldId, held: Held, version: u64, now: Timestamp) -> Result<Next, StoreError> {
        let is_parked = held.parked.is_some();
        if is_parked {
            self.queue.index().set_parking(*id, now);
        }
        // First, as a process that dies after it was parked would never do it.
        let span = if is_parked { PARKED_FOR } else { Duration::ZERO };
        let replay = Replay::new(self.queue.store.clone());
        if let Err(error) = replay.keep_events(&HEXLOWER.encode(id.once()), span, now).await {
            tracing::warn!(held = %id, %error, "which runs a held delivery has made is kept for a shorter time");
        }
        // As it is stored, so that a request that cannot be opened ends as well. One that the store itself cannot read is lost, and is
        // replaced by an empty one, which ends too.
        let request = match is_parked {
            true => match self.queue.stored_request(id, now).await {
                Err(StoreError::Corrupt(_)) => Some(Vec::new()),
                found => found?,
            },
            false => None,
        };
        self.queue.rewrite(id, held, version, request, now).await?;
        // A lane whose first was parked goes on; one whose first was set back waits for it.
        Ok(if is_parked { Next::GoOn } else { Next::Rest })
    }
}
