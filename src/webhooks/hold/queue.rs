//! The queue: the two tables of the store, and the in-memory index of them.

use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::ArcSwapOption;
use data_encoding::HEXLOWER;
use tokio::sync::{Notify, OnceCell};
use uuid::Uuid;

use super::{
    Held, HeldId, HeldRequest, Identity, PARKED_FOR, Settings,
    index::{Index, Usage},
    queue_slot::{QueueSlot, full},
    seal::Seal,
};
use crate::{
    clock::Timestamp,
    error::{Reason, Rejection},
    lock::lock,
    sessions::keyring::{KeyRing, Purpose},
    store::{Change, Expect, Put, Store, StoreError, Stored, Table, WrittenAll},
    upstream::buffered::Room,
    webhooks::{Replay, ReplayKeys, WebhookMetrics},
};

/// The number of records read at once.
const PAGE: usize = 256;

/// The number of parked records checked per tick: Redis is asked for each in turn, and no lane begins meanwhile.
const PARKED_TURN: usize = 16;

/// The number of unreadable records checked per tick.
const UNREADABLE_TURN: usize = 16;

/// The log message for a delivery that cannot be read, with its id and the reason.
const UNREADABLE: &str = "a held delivery cannot be read; it stays in the store until it can, for example when its key is restored; to remove it, use `doorward hooks drop` with its whole id";

/// The held deliveries. Clones share it.
#[derive(Clone)]
pub struct Queue {
    pub(super) store: Store,
    seal: Seal,
    index: Arc<Mutex<Index>>,
    /// Notified when a delivery may be due.
    pub(super) wake: Arc<Notify>,
    pub(super) metrics: WebhookMetrics,
    /// Why nothing is accepted at the moment: the store could lose what it has acknowledged, or has no space to spare.
    doubt: Arc<ArcSwapOption<&'static str>>,
    /// Set once the index knows all deliveries that were held before this process began.
    known: Arc<OnceCell<()>>,
    /// The holder of the leases that it takes.
    pub(super) identity: Identity,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Queue")
    }
}

impl Queue {
    /// Creates the queue. `keys` seal records in a shared store.
    pub fn new(store: Store, keys: &KeyRing, metrics: WebhookMetrics) -> Self {
        let seal = Seal::new(store.is_shared().then_some(keys));
        // A shared store is trusted only once it was checked.
        let doubt = store.is_shared().then(|| Arc::new("it is not known yet whether the store syncs its writes"));
        let doubt = Arc::new(ArcSwapOption::new(doubt));
        let identity = Identity::default();
        Self {
            store,
            seal,
            index: Arc::default(),
            wake: Arc::default(),
            metrics,
            doubt,
            known: Arc::default(),
            identity,
        }
    }

    /// Takes leases as this replica, so that those of its earlier processes are its own.
    pub fn identified(self, identity: Identity) -> Self {
        Self { identity, ..self }
    }

    /// Stops accepting deliveries because of a problem of the store, or resumes.
    pub fn set_doubt(&self, doubt: Option<&'static str>) {
        self.doubt.store(doubt.map(Arc::new));
    }

    /// Replaces the keys that seal and open records.
    pub fn set_keys(&self, keys: &KeyRing) {
        self.seal.set(keys);
    }

    /// Whether a delivery is in flight.
    pub fn is_delivering(&self) -> bool {
        self.index().is_busy()
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }

    /// Stores a delivery that was allowed, together with its replay ids. Once this has returned, the delivery
    /// will be tried, whatever happens to the process; [`Queue::replicated`] waits until a failover cannot lose it
    /// either. Refuses with 503 if the sender's queue is full or the store is unavailable, after which the same request
    /// may try again, and as [`Replay::reserve`] does.
    pub async fn keep(
        &self,
        replay: &Replay,
        keys: &ReplayKeys,
        mut held: Held,
        request: &HeldRequest,
        settings: &Settings,
        now: Timestamp,
    ) -> Result<HeldId, Rejection> {
        if let Some(doubt) = &*self.doubt.load() {
            let told = "the store may not take deliveries now: the component `held-deliveries` at /readyz says why";
            return Err(Rejection::new(Reason::StoreUnavailable, told).fix("send it again later").because(**doubt));
        }
        // The sender's limit includes what earlier processes left.
        self.read_once(now).await.map_err(unwritable)?;
        let head = request.encode_head().map_err(unwritable)?;
        held.size = (head.len() + request.body.len()) as u64;
        let Some(slot) = QueueSlot::take(self, &held, settings) else {
            // A delivery that is stored already needs no further place and is not lost.
            return match replay.check(keys, now).await {
                Ok(()) => Err(full(self, &held.webhook)),
                Err(rejection) => self.not_again(rejection, held.request, replay, keys, now).await,
            };
        };
        let record = held.encode().map_err(unwritable)?;
        let put = |table, once: &[u8; 32], value| Put {
            table,
            key: once.to_vec(),
            value,
            expires: Timestamp::MAX,
            expect: Expect::Absent,
        };
        let writes = |once: &[u8; 32]| {
            let record = self.seal.seal(Purpose::Held, once, &[&record])?;
            let request = self.seal.seal(Purpose::HeldRequest, once, &[&head, &request.body])?;
            Ok(vec![put(Table::Held, once, record), put(Table::HeldRequests, once, request)])
        };
        let (once, versions) = match replay.take(keys, now, writes).await {
            Ok(taken) => taken,
            Err(rejection) => return self.not_again(rejection, held.request, replay, keys, now).await,
        };
        drop(slot);
        let id = HeldId::new(once);
        self.index().set(id, held, versions.first().copied().unwrap_or_default());
        self.measure();
        self.wake.notify_one();
        Ok(id)
    }

    /// Waits until no failover can lose the records under these keys; 503 if that takes too long.
    pub async fn replicated(&self, keys: &ReplayKeys) -> Result<(), Rejection> {
        self.store.replicated(keys.records()).await.map_err(unwritable)
    }

    /// The stored delivery and the id of the request that delivered it, if it came before and still waits. A redelivery
    /// in the meantime is not stored again, as the EventListener would accept both.
    pub async fn waiting(
        &self,
        replay: &Replay,
        keys: &ReplayKeys,
        now: Timestamp,
    ) -> Result<Option<(HeldId, Uuid)>, Rejection> {
        for name in replay.names(keys, now).await.map_err(unwritable)? {
            let id = HeldId::new(name);
            let found = self.read_if_readable(&id, now).await.map_err(unwritable)?;
            if let Some((held, _)) = found.filter(|(held, _)| held.parked.is_none()) {
                return Ok(Some((id, held.request)));
            }
        }
        Ok(None)
    }

    /// Reads the whole table once, whoever calls it first: records of earlier processes and of other replicas.
    pub(super) async fn read_once(&self, now: Timestamp) -> Result<(), StoreError> {
        self.known.get_or_try_init(|| self.refresh(now)).await.copied()
    }

    /// Reads the records written since the last call, by any replica. If the store was set back, it forgets what it
    /// knows and reads everything again, as new records may have any version.
    pub async fn refresh(&self, now: Timestamp) -> Result<(), StoreError> {
        let after = self.index().seen;
        self.read_after(after, now).await
    }

    /// As [`Queue::refresh`], but reads all of a shared store: after a failover it may contain a delivery again that
    /// was sent and forgotten here, with a version that was read long ago, because the removal was lost.
    pub(super) async fn read_anew(&self, now: Timestamp) -> Result<(), StoreError> {
        if self.store.is_shared() { self.read_after(0, now).await } else { self.refresh(now).await }
    }

    async fn read_after(&self, mut after: u64, now: Timestamp) -> Result<(), StoreError> {
        loop {
            let changes = self.store.changes(Table::Held, after, PAGE, now).await?;
            let (first, last) = (changes.first(), changes.last());
            let is_set_back = first.is_some_and(|first| first.version <= after);
            after = last.map_or(after, |last| last.version);
            let is_last = changes.len() < PAGE;
            let read = changes.into_iter().map(|Change { key, version, stored }| {
                let decoded = |id: &HeldId| stored.and_then(|stored| self.decode(id, stored.value));
                let record = HeldId::of(&key).map(|id| (id, decoded(&id)));
                (key, version, record)
            });
            let read: Vec<_> = read.collect();
            let mut index = self.index();
            if is_set_back {
                tracing::warn!("the store was set back; what it holds is read again");
                index.begin_anew();
            }
            // Several calls may read at the same time.
            let known = index.seen;
            index.seen = known.max(after);
            for (key, version, record) in read {
                match record {
                    Some((id, Ok(held))) => index.set(id, held, version),
                    Some((id, Err(error))) => mark_unreadable(&mut index, id, version, &error, None),
                    // Logged when it was first read.
                    None if version <= known => {}
                    None => {
                        tracing::error!(
                            key = HEXLOWER.encode(&key),
                            "a held delivery has no id and cannot be delivered"
                        )
                    }
                }
            }
            if is_last {
                index.remove_ended(now);
                drop(index);
                self.measure();
                return Ok(());
            }
        }
    }

    /// Detects parked deliveries that are gone or no longer parked: another replica's operator dropped or retried them,
    /// or a failover lost the parking, which leaves nothing that [`Queue::refresh`] could read. Checks a few of them
    /// each time.
    pub(super) async fn recheck_parked(&self, now: Timestamp) -> Result<(), StoreError> {
        let turn = if self.store.is_shared() { self.index().parked_turn(PARKED_TURN) } else { Vec::new() };
        let rechecked = self.recheck(turn, now).await;
        // Even if the store failed, as it may have done so after some of them.
        self.measure();
        rechecked
    }

    async fn recheck(&self, parked: Vec<(HeldId, u64)>, now: Timestamp) -> Result<(), StoreError> {
        for (id, version) in parked {
            let found = self.store.get(Table::Held, id.as_bytes(), now).await;
            let mut index = self.index();
            match found {
                Ok(None) => index.remove_version(&id, version),
                // A failover lost that it was parked.
                Ok(Some(stored)) if stored.version != version => match self.decode(&id, stored.value) {
                    Ok(held) => index.set_found(id, held, stored.version, Some(version)),
                    Err(error) => mark_unreadable(&mut index, id, stored.version, &error, Some(version)),
                },
                Ok(Some(_)) => {}
                Err(error @ StoreError::Corrupt(_)) => mark_unreadable(&mut index, id, version, &error, Some(version)),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Detects unreadable records that can be read now, because their key came back, or are gone. Checks a few of them
    /// each time.
    pub(super) async fn recheck_unreadable(&self, now: Timestamp) -> Result<(), StoreError> {
        let turn = self.index().unreadable_turn(UNREADABLE_TURN);
        for id in turn {
            self.read_if_readable(&id, now).await?;
        }
        Ok(())
    }

    /// Reads the current record of a delivery and updates the index. An unreadable record leaves its lane and stays in
    /// the store, so that it blocks no other.
    pub(super) async fn read(&self, id: &HeldId, now: Timestamp) -> Result<Option<(Held, u64)>, StoreError> {
        let known = self.index().version(id);
        let found = match self.store.get(Table::Held, id.as_bytes(), now).await {
            // The store itself cannot read the record.
            Err(error @ StoreError::Corrupt(_)) => {
                {
                    let mut index = self.index();
                    let version = known.or_else(|| index.unreadable_version(id));
                    mark_unreadable(&mut index, *id, version.unwrap_or_default(), &error, known);
                }
                self.measure();
                return Err(error);
            }
            found => found?,
        };
        let Some(Stored { value, version, .. }) = found else {
            self.index().remove(id);
            self.measure();
            return Ok(None);
        };
        match self.decode(id, value) {
            Ok(held) => {
                self.index().set_found(*id, held.clone(), version, known);
                Ok(Some((held, version)))
            }
            Err(error) => {
                mark_unreadable(&mut self.index(), *id, version, &error, known);
                self.measure();
                Err(error)
            }
        }
    }

    /// As [`Queue::read`]; `None` also if it cannot be read.
    pub(super) async fn read_if_readable(
        &self,
        id: &HeldId,
        now: Timestamp,
    ) -> Result<Option<(Held, u64)>, StoreError> {
        match self.read(id, now).await {
            Err(StoreError::Corrupt(_)) => Ok(None),
            looked => looked,
        }
    }

    fn decode(&self, id: &HeldId, stored: Vec<u8>) -> Result<Held, StoreError> {
        Held::decode(&self.seal.open(Purpose::Held, id, stored)?)
    }

    pub(super) async fn request(&self, id: &HeldId, now: Timestamp) -> Result<HeldRequest, StoreError> {
        HeldRequest::decode(&self.opened_request(id, now).await?.into())
    }

    async fn opened_request(&self, id: &HeldId, now: Timestamp) -> Result<Vec<u8>, StoreError> {
        let stored = self.stored_request(id, now).await?.ok_or_else(no_request)?;
        self.seal.open(Purpose::HeldRequest, id, stored)
    }

    /// As [`Queue::request`], within reserved memory. `None` if it needs more than that and no more is available.
    pub(super) async fn request_in(
        &self,
        room: Room,
        id: &HeldId,
        now: Timestamp,
    ) -> Result<Option<HeldRequest>, StoreError> {
        let opened = self.opened_request(id, now).await?;
        room.fill(opened).map(|bytes| HeldRequest::decode(&bytes)).transpose()
    }

    /// The request of a delivery as it is stored; it may be unreadable or missing.
    pub(super) async fn stored_request(&self, id: &HeldId, now: Timestamp) -> Result<Option<Vec<u8>>, StoreError> {
        let stored = self.store.get(Table::HeldRequests, id.as_bytes(), now).await?;
        Ok(stored.map(|stored| stored.value))
    }

    /// Rewrites a record unless it was changed meanwhile. A delivery that becomes parked, or is no longer parked, has
    /// its request rewritten too, so that both expire together. Returns false if the record was changed.
    pub(super) async fn rewrite(
        &self,
        id: &HeldId,
        mut held: Held,
        version: u64,
        request: Option<Vec<u8>>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        held.place.get_or_insert(version);
        let expires = if held.parked.is_some() { now + PARKED_FOR } else { Timestamp::MAX };
        let put = |table, value, expect| Put { table, key: id.as_bytes().to_vec(), value, expires, expect };
        let record = self.seal.seal(Purpose::Held, id.as_bytes(), &[&held.encode()?])?;
        let mut puts = vec![put(Table::Held, record, Expect::Version(version))];
        if let Some(request) = request {
            puts.push(put(Table::HeldRequests, request, Expect::Any));
        }
        match self.store.put_all(puts, now).await? {
            WrittenAll::Done(versions) => {
                self.index().set(*id, held, versions.first().copied().unwrap_or_default());
                self.measure();
                Ok(true)
            }
            WrittenAll::Conflict { found: None, .. } => {
                self.index().remove(id);
                Ok(false)
            }
            WrittenAll::Conflict { found: Some(found), .. } => {
                let held = self.decode(id, found.value)?;
                self.index().set(*id, held, found.version);
                Ok(false)
            }
        }
    }

    /// Removes a delivery that was accepted or dropped. Its replay ids stay.
    pub(super) async fn forget(&self, id: &HeldId, now: Timestamp) -> Result<(), StoreError> {
        let gone = |table| Put {
            table,
            key: id.as_bytes().to_vec(),
            value: Vec::new(),
            expires: Timestamp::default(),
            expect: Expect::Any,
        };
        self.store.put_all(vec![gone(Table::Held), gone(Table::HeldRequests)], now).await?;
        self.index().remove(id);
        self.measure();
        Ok(())
    }

    /// The held deliveries of all senders or of one, the oldest first.
    pub async fn list(&self, webhook: Option<&str>, now: Timestamp) -> Result<Vec<(HeldId, Held)>, StoreError> {
        self.refresh(now).await?;
        let mut all = self.index().all();
        all.retain(|(_, held)| webhook.is_none_or(|webhook| *webhook == *held.webhook));
        Ok(all)
    }

    /// The unreadable records, with the reason.
    pub fn unreadable(&self) -> Vec<(HeldId, String)> {
        self.index().unreadable().map(|(id, why)| (*id, why.to_owned())).collect()
    }

    /// The deliveries whose id begins with `prefix`.
    pub async fn find(&self, prefix: &str, now: Timestamp) -> Result<Vec<(HeldId, Held)>, StoreError> {
        let mut all = self.list(None, now).await?;
        all.retain(|(id, _)| id.to_string().starts_with(prefix));
        Ok(all)
    }

    /// How much is held for each sender, as far as this process knows.
    pub fn usage(&self) -> Vec<(Arc<str>, Usage)> {
        self.index().usage().map(|(webhook, usage)| (Arc::clone(webhook), *usage)).collect()
    }

    /// A delivery with its request.
    pub async fn show(&self, id: &HeldId, now: Timestamp) -> Result<Option<(Held, HeldRequest)>, StoreError> {
        match self.read(id, now).await? {
            None => Ok(None),
            Some((held, _)) => Ok(Some((held, self.request(id, now).await?))),
        }
    }

    /// Makes a delivery due at once, with its whole time again. A parked one returns to its old place in its lane.
    /// Returns false if it is gone, or was accepted and only remained to be removed.
    pub async fn retry(&self, id: &HeldId, now: Timestamp) -> Result<bool, StoreError> {
        loop {
            let Some((mut held, version)) = self.read(id, now).await? else { return Ok(false) };
            if self.index().is_taken(id) {
                self.forget(id, now).await?;
                return Ok(false);
            }
            let request = match held.parked {
                Some(_) => {
                    let request = self.request(id, now).await?;
                    let parts = [&*request.encode_head()?, &*request.body];
                    Some(self.seal.seal(Purpose::HeldRequest, id.as_bytes(), &parts)?)
                }
                None => None,
            };
            held.parked = None;
            (held.tries, held.refusals) = (0, 0);
            held.next = now;
            held.until = now + held.span;
            if self.rewrite(id, held, version, request, now).await? {
                self.wake.notify_one();
                return Ok(true);
            }
        }
    }

    /// Drops a delivery, even an unreadable one. It is never sent, unless it is in flight at this moment. Returns false
    /// if it is gone.
    pub async fn drop_one(&self, id: &HeldId, now: Timestamp) -> Result<bool, StoreError> {
        let is_there = match self.store.get(Table::Held, id.as_bytes(), now).await {
            // There is a record, though the store itself cannot read it.
            Err(StoreError::Corrupt(_)) => true,
            found => found?.is_some(),
        };
        self.forget(id, now).await.map(|()| is_there)
    }

    /// Updates the metrics, and logs newly parked deliveries.
    fn measure(&self) {
        let mut index = self.index();
        for (id, held) in index.take_parked_here() {
            self.metrics.parked(&held.webhook);
            tracing::error!(
                held = %id,
                webhook = &*held.webhook,
                delivery = &*held.delivery,
                why = held.last_error,
                until = %(held.parked.unwrap_or_default() + PARKED_FOR),
                "a held delivery is parked; `doorward hooks retry` tries it again"
            );
        }
        for (webhook, usage) in index.usage() {
            self.metrics.held(webhook, usage);
        }
        self.metrics.unreadable(index.unreadable().len());
    }

    /// Updates the ages, which grow with time alone.
    pub(super) fn measure_age(&self, now: Timestamp) {
        let index = self.index();
        for (webhook, age) in index.oldest(now) {
            self.metrics.oldest_held(webhook, age);
        }
    }
}

/// Takes an unreadable record out of its lane and logs it once.
fn mark_unreadable(index: &mut Index, id: HeldId, version: u64, error: &StoreError, known: Option<u64>) {
    if index.mark_unreadable(id, version, error.to_string(), known) {
        tracing::error!(held = %id, %error, "{UNREADABLE}");
    }
}

fn no_request() -> StoreError {
    StoreError::Corrupt("a held delivery has no request".to_owned())
}

pub(super) fn unwritable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Rejection {
    Rejection::new(Reason::StoreUnavailable, "the delivery cannot be stored at the moment")
        .fix("send it again later")
        .because(cause)
}
