//! Forwards each delivery once, whoever repeats it, over any route and replica.
//!
//! A delivery is reserved after its signature was verified (so that a forger cannot use up ids), committed when the
//! upstream accepted it, and released otherwise. A duplicate gets 503 while it is in flight, since an early 200 would
//! lose the delivery if the first attempt fails, and 200 afterwards.
//!
//! Keys depend on the sender's secrets, not on the route: the same delivery on a second route with the same secret is a
//! duplicate, whichever of several secrets signed it. If the body is signed and the id is not, the signed bytes are a
//! second key, as anybody who saw the delivery could send it under another id. A redelivery that somebody requests at
//! the sender looks like any repetition; [`ReplayKeys::redeliveries`] sets how many are forwarded.
//!
//! Limits: if a sender without signed ids sends exactly the same body for another event within the window, that event
//! is treated as a duplicate, unless its bodies may repeat and `unique_bodies` is off. A plain token signs nothing, so
//! its holder can make any delivery new.
//!
//! A delivery that is [held](super::hold) is not reserved: it is committed in the same write that stores it.

mod under_way;

use std::{sync::Arc, time::Duration};

use data_encoding::HEXLOWER;
use tokio::time::{Instant, sleep};

use self::under_way::{Leased, UnderWay};
use crate::{
    clock::{Clock, Timestamp},
    error::{Reason, Rejection},
    sha256::sha256,
    store::{Expect, Put, Store, StoreError, Stored, Table, WrittenAll},
};

/// The keys by which a delivery is recognized as a duplicate: opaque keys of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayKeys {
    /// The keys of the id, then those of the signed bytes.
    keys: Vec<[u8; 32]>,
    /// The number of keys of the id.
    ids: usize,
    /// How long the delivery is remembered.
    window: Duration,
    /// How often an accepted delivery is accepted again.
    redeliveries: u8,
    /// Whether the sender's redeliveries have an id of their own.
    anew: bool,
}

impl ReplayKeys {
    /// `scopes` stand for the secrets, the first of them for the delivery's name ([`DeliveryKey`]). `id` is the
    /// sender's id; `signed` is the hash of the signed bytes, if they count.
    pub(super) fn new(scopes: &[[u8; 32]], id: &str, signed: Option<&[u8; 32]>, window: Duration) -> Self {
        let keys = |kind: &'static [u8], data: Vec<u8>| scopes.iter().map(move |scope| sha256(&[scope, kind, &data]));
        let ids = keys(b"id\0", id.as_bytes().to_vec());
        let keys = ids.chain(signed.into_iter().flat_map(|bytes| keys(b"body\0", bytes.to_vec()))).collect();
        Self { keys, ids: scopes.len(), window, redeliveries: 0, anew: false }
    }

    /// Allows that many redeliveries of an accepted delivery, under the same id (or with `anew` under another), at
    /// least a minute apart: a sooner one is the sender's own retry after a lost answer.
    #[must_use]
    pub fn redeliveries(self, redeliveries: u8, anew: bool) -> Self {
        Self { redeliveries, anew, ..self }
    }

    /// Whether an accepted delivery may be accepted again: the version of its record, and its contents. `claimed` ends
    /// with it. The id is checked first: the same body under another id is a redelivery only for senders that give
    /// redeliveries a new id.
    fn may_reopen(&self, claimed: &[Claimed], twin: Option<&Stored>, now: Timestamp) -> Option<(u64, Committed)> {
        let (this, earlier) = claimed.split_last()?;
        let is_id = earlier.len() < self.ids;
        let under_its_id = is_id || self.anew || earlier.iter().take(self.ids).any(|claimed| claimed.before.is_some());
        let twin = twin.filter(|_| this.version.is_none() && under_its_id)?;
        Some((twin.version, self.reopens(twin, now)?))
    }

    /// Accepts the last of `claimed` once more, if that is allowed.
    fn reopen(&self, claimed: &mut [Claimed], twin: Option<&Stored>, now: Timestamp) -> Result<(), Rejection> {
        let reopened = self.may_reopen(claimed, twin, now);
        let (Some((version, before)), Some(last)) = (reopened, claimed.last_mut()) else {
            return Err(refuse_twin(twin));
        };
        last.version = Some(version);
        last.before = Some(before);
        Ok(())
    }

    /// The keys of the records by which a repeated delivery is recognized.
    pub(super) fn records(&self) -> Vec<Vec<u8>> {
        self.keys.iter().map(|key| key.to_vec()).collect()
    }

    /// The record of an accepted delivery, if it was accepted long enough ago and not too often.
    fn reopens(&self, record: &Stored, now: Timestamp) -> Option<Committed> {
        let taken = Committed::decode(&record.value)?;
        (taken.again < self.redeliveries && taken.at + REDELIVERY_GAP <= now).then_some(taken)
    }
}

/// The name of a delivery: the same for every attempt, and different for every other delivery and for each wanted
/// redelivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryKey {
    pub id: [u8; 32],
    /// How long the name belongs to this delivery, counted from an attempt. After that, the same delivery is new and
    /// gets the same name. `None`: no other delivery ever gets it, which is the case for held ones.
    pub window: Option<Duration>,
}

/// Remembers deliveries in the store.
#[derive(Clone)]
pub struct Replay {
    store: Store,
    under_way: UnderWay,
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Replay")
    }
}

/// A delivery that is being forwarded. If it is dropped without being settled, its lease expires: nobody knows whether
/// the upstream accepted it.
#[derive(Debug)]
#[must_use = "a reservation is committed or released"]
pub struct Reservation {
    replay: Replay,
    claimed: Vec<Claimed>,
    window: Duration,
    /// Whether it is reserved in the store.
    in_store: bool,
    /// Its lease, if it is reserved in this process.
    leased: Option<Leased>,
}

#[derive(Debug)]
struct Claimed {
    key: [u8; 32],
    /// The version of its record; `None` before the first write.
    version: Option<u64>,
    /// Its earlier record, if it was accepted before.
    before: Option<Committed>,
}

impl Claimed {
    /// How often it was accepted again, including this time.
    fn again(&self) -> u8 {
        self.before.map_or(0, |before| before.again.saturating_add(1))
    }

    fn put(&self, (value, expires): (Vec<u8>, Timestamp)) -> Put {
        let expect = self.version.map_or(Expect::Absent, Expect::Version);
        Put { table: Table::Deliveries, key: self.key.to_vec(), value, expires, expect }
    }
}

/// The record of an accepted delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Committed {
    at: Timestamp,
    /// How often it was accepted again.
    again: u8,
    /// The name under which it is held, if it is.
    name: Option<[u8; 32]>,
}

impl Committed {
    fn encode(self) -> Vec<u8> {
        let name = self.name.map_or_else(String::new, |name| format!(" {}", HEXLOWER.encode(&name)));
        format!("committed {} {}{name}", self.at.as_secs(), self.again).into_bytes()
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(value).ok()?.strip_prefix("committed ")?.split(' ');
        let at = Timestamp::from_secs(words.next()?.parse().ok()?);
        let again = words.next()?.parse().ok()?;
        // One that was forwarded, and not held, has none.
        let name = words.next().and_then(|name| HEXLOWER.decode(name.as_bytes()).ok()?.try_into().ok());
        Some(Self { at, again, name })
    }
}

const RESERVED: &[u8] = b"reserved";

/// The lease while a delivery is stored: longer than that can take.
const TAKE_LEASE: Duration = Duration::from_secs(60);

/// How long after the first a repetition counts as a requested redelivery.
const REDELIVERY_GAP: Duration = Duration::from_secs(60);

/// How long and how often recording the outcome is retried while the store is unavailable: as long as a failover takes.
const SETTLING: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(1);

/// When the sender may retry a duplicate of a delivery that is in flight.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl Replay {
    pub fn new(store: Store) -> Self {
        Self { store, under_way: UnderWay::default() }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Reserves the delivery for this request. `lease` must be longer than forwarding can take. Refuses with
    /// [`Reason::ReplayedDelivery`] (200), [`Reason::DeliveryInFlight`] (503) or [`Reason::StoreUnavailable`] (503).
    pub async fn reserve(&self, keys: &ReplayKeys, lease: Duration, now: Timestamp) -> Result<Reservation, Rejection> {
        let mut leased = match self.store.is_shared() {
            true => None,
            false => Some(self.under_way.lease(&keys.keys, now + lease, now)?),
        };
        let in_store = leased.is_none() || !self.under_way.store_works();
        let claimed = match in_store {
            true => self.claim(keys, now, |_, _| (RESERVED.to_vec(), now + lease), |_| Ok(Vec::new())).await?.0,
            false => self.look(keys, now).await?,
        };
        if let Some(leased) = &mut leased {
            leased.outlasts = true;
        }
        Ok(Reservation { replay: self.clone(), claimed, window: keys.window, in_store, leased })
    }

    /// Refuses a delivery that must not be accepted again, as [`Replay::reserve`] does, without reserving it.
    pub(super) async fn check(&self, keys: &ReplayKeys, now: Timestamp) -> Result<(), Rejection> {
        self.look(keys, now).await.map(drop)
    }

    /// Reads the earlier records of a delivery, and refuses it if it must not be accepted again.
    async fn look(&self, keys: &ReplayKeys, now: Timestamp) -> Result<Vec<Claimed>, Rejection> {
        let found = self.store.get_all(Table::Deliveries, keys.records(), now).await.map_err(unavailable)?;
        let mut claimed: Vec<Claimed> = Vec::with_capacity(keys.keys.len());
        for (key, twin) in keys.keys.iter().zip(found) {
            claimed.push(Claimed { key: *key, version: None, before: None });
            if twin.is_none() {
                continue;
            }
            keys.reopen(&mut claimed, twin.as_ref(), now)?;
        }
        Ok(claimed)
    }

    async fn put_all(&self, puts: Vec<Put>, now: Timestamp) -> Result<WrittenAll, StoreError> {
        let written = self.store.put_all(puts, now).await;
        self.under_way.set_store_works(written.is_ok());
        written
    }

    /// The names under which a delivery that may be accepted again now is held. Empty if it may not.
    pub(super) async fn names(&self, keys: &ReplayKeys, now: Timestamp) -> Result<Vec<[u8; 32]>, StoreError> {
        if keys.redeliveries == 0 {
            return Ok(Vec::new());
        }
        let found = self.store.get_all(Table::Deliveries, keys.records(), now).await?;
        let reopened = |found: &Option<Stored>| keys.reopens(found.as_ref()?, now);
        // As when it is accepted: for some senders, the same body alone is not the same delivery.
        let under_its_id = keys.anew || found.iter().take(keys.ids).any(|found| reopened(found).is_some());
        let mut names: Vec<_> =
            found.iter().filter(|_| under_its_id).filter_map(|found| reopened(found)?.name).collect();
        names.dedup();
        Ok(names)
    }

    /// The names under which a delivery was stored, as far as it is still remembered.
    pub(super) async fn stored_names(&self, keys: &ReplayKeys, now: Timestamp) -> Result<Vec<[u8; 32]>, StoreError> {
        let found = self.store.get_all(Table::Deliveries, keys.records(), now).await?;
        let name = |stored: &Stored| Committed::decode(&stored.value)?.name;
        let mut names: Vec<_> = found.iter().flatten().filter_map(name).collect();
        names.dedup();
        Ok(names)
    }

    /// Commits the delivery together with the writes that `more` makes from its name. The name is the same for every
    /// attempt, and no other delivery ever has it: one that arrives after this one is forgotten differs in its time.
    /// Returns the name and the versions of these writes. Refuses as [`Replay::reserve`] does.
    pub(super) async fn take(
        &self,
        keys: &ReplayKeys,
        now: Timestamp,
        more: impl Fn(&[u8; 32]) -> Result<Vec<Put>, StoreError>,
    ) -> Result<([u8; 32], Vec<u64>), Rejection> {
        // If a request of this process forwards it under another configuration, only this process knows that.
        let leased = match self.store.is_shared() {
            true => None,
            false => Some(self.under_way.lease(&keys.keys, now + TAKE_LEASE, now)?),
        };
        let name = |claimed: &[Claimed]| sha256(&[&once(claimed), &now.as_millis().to_be_bytes()]);
        let committed = |all: &[Claimed], one: &Claimed| {
            let taken = Committed { at: now, again: one.again(), name: Some(name(all)) };
            (taken.encode(), now + keys.window)
        };
        let (claimed, versions) = self.claim(keys, now, committed, |claimed| more(&name(claimed))).await?;
        drop(leased);
        Ok((name(&claimed), versions))
    }

    /// Writes all keys, or none if one of them exists. `value` gives the record and its expiry.
    async fn claim(
        &self,
        keys: &ReplayKeys,
        now: Timestamp,
        value: impl Fn(&[Claimed], &Claimed) -> (Vec<u8>, Timestamp),
        more: impl Fn(&[Claimed]) -> Result<Vec<Put>, StoreError>,
    ) -> Result<(Vec<Claimed>, Vec<u64>), Rejection> {
        let mut claimed: Vec<Claimed> =
            keys.keys.iter().map(|key| Claimed { key: *key, version: None, before: None }).collect();
        loop {
            let mut puts: Vec<Put> = claimed.iter().map(|one| one.put(value(&claimed, one))).collect();
            puts.extend(more(&claimed).map_err(unavailable)?);
            match self.put_all(puts, now).await.map_err(unavailable)? {
                WrittenAll::Done(mut versions) => {
                    let further = versions.split_off(claimed.len().min(versions.len()));
                    claimed.iter_mut().zip(versions).for_each(|(claimed, version)| claimed.version = Some(version));
                    return Ok((claimed, further));
                }
                WrittenAll::Conflict { index, found } => {
                    // A conflict in one of the writes of `more`: the delivery is stored already.
                    let claimed = claimed.get_mut(..=index).ok_or_else(duplicate)?;
                    keys.reopen(claimed, found.as_ref(), now)?;
                }
            }
        }
    }
}

/// See [`DeliveryKey`].
fn once(claimed: &[Claimed]) -> [u8; 32] {
    match claimed.first() {
        Some(claimed) => sha256(&[&claimed.key, &[claimed.again()]]),
        None => sha256(&[]),
    }
}

fn unavailable(error: StoreError) -> Rejection {
    let detail = match error {
        StoreError::Full(_) => "duplicate deliveries cannot be detected, as the store is full",
        _ => "duplicate deliveries cannot be detected at the moment",
    };
    Rejection::new(Reason::StoreUnavailable, detail)
        .fix("send it again later")
        .with_retry_after(RETRY_AFTER)
        .because(error)
}

impl Reservation {
    pub fn key(&self) -> DeliveryKey {
        DeliveryKey { id: once(&self.claimed), window: Some(self.window) }
    }

    /// Records the outcome of the delivery. Can be repeated after an error.
    pub async fn settle(&mut self, is_taken: bool, now: Timestamp) -> Result<(), StoreError> {
        match is_taken {
            true => self.commit(now).await,
            false => self.release(now).await,
        }
    }

    /// Retries recording the outcome until the store accepts it, or has been unavailable for [`SETTLING`]. Nothing is
    /// forwarded meanwhile, so a duplicate could only be accepted in the moment when the store is back.
    pub async fn settle_later(mut self, is_taken: bool, clock: &Clock) -> Result<(), StoreError> {
        let until = Instant::now() + SETTLING;
        loop {
            sleep(RETRY).await;
            match self.settle(is_taken, clock.now()).await {
                Err(_) if Instant::now() < until => {}
                settled => return settled,
            }
        }
    }

    /// Commits: the upstream accepted the delivery (2xx). After an error the delivery can be repeated once the lease
    /// has expired, or, if no other process uses the store, after this process has ended.
    async fn commit(&mut self, now: Timestamp) -> Result<(), StoreError> {
        let until = now + self.window;
        let taken = |claimed: &Claimed| Committed { at: now, again: claimed.again(), name: None };
        let written = self.write(now, |claimed| (taken(claimed).encode(), until)).await;
        match &mut self.leased {
            Some(leased) if written.is_err() => leased.keep_until(until),
            leased => end(leased.take()),
        }
        written
    }

    /// Releases: the upstream did not accept the delivery, and the sender may send it again.
    async fn release(&mut self, now: Timestamp) -> Result<(), StoreError> {
        let window = self.window;
        let written = match self.in_store {
            false => Ok(()),
            true => {
                self.write(now, |claimed| match claimed.before {
                    None => (RESERVED.to_vec(), Timestamp::default()),
                    Some(before) => (before.encode(), now + window),
                })
                .await
            }
        };
        end(self.leased.take());
        written
    }

    /// Writes only records that this reservation still owns, so that one whose lease expired does not overwrite its
    /// successor. If there is no record, this reservation still owns it.
    async fn write(
        &mut self,
        now: Timestamp,
        value: impl Fn(&Claimed) -> (Vec<u8>, Timestamp),
    ) -> Result<(), StoreError> {
        while !self.claimed.is_empty() {
            let puts = self.claimed.iter().map(|claimed| claimed.put(value(claimed))).collect();
            match self.replay.put_all(puts, now).await? {
                WrittenAll::Done(_) => break,
                WrittenAll::Conflict { index, found } => match self.claimed.get_mut(index) {
                    Some(lapsed) if found.is_none() && lapsed.version.is_some() => lapsed.version = None,
                    _ => drop(self.claimed.remove(index)),
                },
            }
        }
        Ok(())
    }
}

fn end(leased: Option<Leased>) {
    if let Some(mut leased) = leased {
        leased.outlasts = false;
    }
}

fn refuse_twin(twin: Option<&Stored>) -> Rejection {
    if twin.is_some_and(|twin| Committed::decode(&twin.value).is_some()) {
        return duplicate();
    }
    in_flight()
}

fn in_flight() -> Rejection {
    Rejection::new(Reason::DeliveryInFlight, "the same delivery is being forwarded").with_retry_after(RETRY_AFTER)
}

fn duplicate() -> Rejection {
    Rejection::new(Reason::ReplayedDelivery, "duplicate: this delivery has been accepted before")
}

/// The id of a delivery that has none of its own.
pub(super) fn body_id(body_sha256: &[u8; 32]) -> Arc<str> {
    format!("sha256-{}", HEXLOWER.encode(body_sha256)).into()
}

#[cfg(test)]
mod tests;
