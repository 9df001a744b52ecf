//! Which event of its EventListener a delivery became, for each Trigger that the interceptor was asked about. The first
//! event that asks for a Trigger is bound to it. Within one attempt, the EventListener's own answer takes precedence.
//!
//! ```text
//! attempt 1, event E1: Trigger a asks, is bound to E1, its run is created; the process dies before Trigger b asks
//! attempt 2, event E2: a is bound to E1 of another attempt: stopped; b is not bound: continues
//! attempt 3, event E3: an interceptor that saw the assertion asked first, as X; c is bound to X of this same attempt:
//!                      the EventListener's answer to Doorward, E3, decides
//! attempt 4, event E4: the same, but the answer is lost: nobody knows which event was its own, so that the next
//!                      attempt may have c
//! ```
//!
//! If several events were named in an attempt and it is unknown which of them created a run, the next attempt creates
//! it: at least once rather than never. A single event is taken for the EventListener's own, which may have created its
//! run, even if its answer was lost.
//!
//! An EventListener asks for all Triggers at once, so bindings are spread over [`SHARDS`] records by the Trigger's
//! name.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::replay::Replay;
use crate::{
    clock::Timestamp,
    error::{Reason, Rejection},
    sha256::sha256,
    store::{Expect, StoreError, Stored, Table, Written},
};

/// The maximum time that bindings are kept after the last attempt: longer than any sender retries.
const KEPT: Duration = Duration::from_secs(3 * 86_400);

/// The number of records that the Triggers of a delivery are spread over.
const SHARDS: u8 = 16;

/// The maximum number of Triggers in one record: no EventListener that people wrote has more.
const MAX_TRIGGERS: usize = 64;

/// The `eventID` of an EventListener: a UUID, which labels every run that the event creates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(Box<str>);

impl EventId {
    /// Parses an id; `None` if it could not be the value of a label.
    pub fn parse(text: &str) -> Option<Self> {
        let is_id = (1..=63).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        is_id.then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn into_inner(self) -> Box<str> {
        self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A delivery as assertions name it.
#[derive(Clone, Debug)]
pub struct Named {
    pub once: Box<str>,
    /// When the name expires: the delivery is then forgotten, and another one may get the same name. `None`: no other
    /// ever gets it.
    pub until: Option<Timestamp>,
}

impl Named {
    /// Until when bindings are kept: no longer than the name belongs to the delivery, or the Triggers of the next one
    /// would be stopped.
    fn kept(&self, now: Timestamp) -> Timestamp {
        self.until.map_or(now + KEPT, |until| until.min(now + KEPT))
    }
}

/// An event, and the attempt (the id of the request to the EventListener) in which it was named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriedEvent {
    pub event: EventId,
    pub attempt: Box<str>,
}

/// The answer to a question about a Trigger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The Trigger is bound to this event.
    Ours,
    /// It is bound to another event: of an earlier attempt, or the one that the EventListener answered.
    Others(EventId),
    /// Another event was named for it in the same attempt, and the EventListener has not answered yet which is its own.
    Disputed(EventId),
    /// It continues, but there is no room to record that, so it would also continue in another attempt or for another
    /// event.
    Unnoted,
}

/// The events of a delivery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// The events that Triggers are bound to, without repetitions; they label its runs. Disputed ones are excluded:
    /// they may be a stranger's, whose runs the caller has not caused.
    pub bound: Vec<EventId>,
    /// An event that was named in this attempt by somebody who is not the EventListener. If its answer was lost, any of
    /// several.
    pub false_one: Option<EventId>,
}

/// The binding of a Trigger to an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Binding {
    event: EventId,
    attempt: Box<str>,
    /// Whether another event was named in the same attempt.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    disputed: bool,
}

impl Binding {
    fn new(tried: &TriedEvent) -> Self {
        Self { event: tried.event.clone(), attempt: tried.attempt.clone(), disputed: false }
    }

    fn is_of_try(&self, tried: &TriedEvent) -> bool {
        self.attempt == tried.attempt
    }

    /// Whether this attempt may have the Trigger, because nobody knows whether the bound event was the EventListener's.
    /// Only a later attempt may: that of the binding can still be in flight, and the assertion of an earlier one can be
    /// in the wrong hands. Ids of attempts are UUIDv7, which sort by time.
    fn is_open(&self, tried: &TriedEvent, answered: Option<&TriedEvent>) -> bool {
        let is_answered = answered.is_some_and(|answered| self.is_of_try(answered) && self.event == answered.event);
        self.disputed && !is_answered && tried.attempt > self.attempt
    }

    /// Notes that another event is named in the same attempt.
    fn dispute(&mut self) -> (Bound, bool) {
        let is_new = !std::mem::replace(&mut self.disputed, true);
        (Bound::Disputed(self.event.clone()), is_new)
    }
}

/// Some of the Triggers of a delivery, each with its binding.
type Shard = BTreeMap<String, Binding>;

fn shard_key(once: &str, shard: u8) -> Vec<u8> {
    sha256(&[b"events\0", once.as_bytes(), &[shard]]).to_vec()
}

fn key_of(once: &str, trigger: &str) -> Vec<u8> {
    let [first, ..] = sha256(&[trigger.as_bytes()]);
    shard_key(once, first % SHARDS)
}

fn confirmed_key(once: &str) -> Vec<u8> {
    sha256(&[b"event answered\0", once.as_bytes()]).to_vec()
}

fn read<T: Default + for<'a> Deserialize<'a>>(stored: Option<&Stored>) -> Result<T, StoreError> {
    let Some(stored) = stored else { return Ok(T::default()) };
    serde_json::from_slice(&stored.value)
        .map_err(|error| StoreError::Corrupt(format!("the events of a delivery cannot be read: {error}")))
}

fn written<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value)
        .map_err(|error| StoreError::Corrupt(format!("the events of a delivery cannot be written: {error}")))
}

fn expect(stored: Option<&Stored>) -> Expect {
    stored.map_or(Expect::Absent, |stored| Expect::Version(stored.version))
}

/// Answers a question about a Trigger, and returns whether the shard was changed.
fn ask(shard: &mut Shard, trigger: &str, tried: &TriedEvent, answered: Option<&TriedEvent>) -> (Bound, bool) {
    let of_this_try = answered.filter(|answered| answered.attempt == tried.attempt);
    let is_answered = of_this_try == Some(tried);
    match shard.get(trigger) {
        Some(bound) if bound.event == tried.event => return (Bound::Ours, false),
        Some(bound) if !bound.is_of_try(tried) && !bound.is_open(tried, answered) => {
            return (Bound::Others(bound.event.clone()), false);
        }
        _ => {}
    }
    if let Some(other) = of_this_try.filter(|_| !is_answered) {
        return (Bound::Others(other.event.clone()), false);
    }
    let is_full = shard.len() >= MAX_TRIGGERS;
    match shard.get_mut(trigger) {
        Some(bound) if bound.is_of_try(tried) && !is_answered => return bound.dispute(),
        None if is_full => {
            // Whoever filled the shard must not get the run of this Trigger as well.
            let rival = shard.values_mut().find(|bound| bound.is_of_try(tried) && bound.event != tried.event);
            return rival.filter(|_| !is_answered).map_or((Bound::Unnoted, false), Binding::dispute);
        }
        _ => {}
    }
    shard.insert(trigger.to_owned(), Binding::new(tried));
    (Bound::Ours, true)
}

impl Replay {
    /// Binds a Trigger of a delivery to an event, unless it is bound already.
    pub async fn bind_event(
        &self,
        delivery: &Named,
        trigger: &str,
        tried: &TriedEvent,
        now: Timestamp,
    ) -> Result<Bound, Rejection> {
        let unavailable = |error| {
            Rejection::new(
                Reason::StoreUnavailable,
                "it cannot be determined whether this delivery already has an event",
            )
            .because(error)
        };
        let once = &*delivery.once;
        let key = key_of(once, trigger);
        loop {
            let wanted = vec![key.clone(), confirmed_key(once)];
            let found = self.store().get_all(Table::Deliveries, wanted, now).await.map_err(unavailable)?;
            let [stored, answered] = [0, 1].map(|index| found.get(index).and_then(Option::as_ref));
            let mut shard: Shard = read(stored).map_err(unavailable)?;
            let answered: Option<TriedEvent> = read(answered).map_err(unavailable)?;
            let (bound, is_new) = ask(&mut shard, trigger, tried, answered.as_ref());
            if !is_new || self.put_shard(&key, &shard, stored, delivery.kept(now), now).await.map_err(unavailable)? {
                return Ok(bound);
            }
        }
    }

    /// Records the event in the EventListener's own answer, and removes the bindings to other events of the same
    /// attempt: they were named by somebody who saw the delivery and asked first.
    pub async fn confirm_event(
        &self,
        delivery: &Named,
        tried: &TriedEvent,
        now: Timestamp,
    ) -> Result<Events, StoreError> {
        let (key, value) = (confirmed_key(&delivery.once), written(&Some(tried))?);
        self.store().put(Table::Deliveries, &key, value, delivery.kept(now), Expect::Any, now).await?;
        let mut events = Events::default();
        for (key, stored) in self.shards(&delivery.once, now).await? {
            let settle = |shard: &mut Shard| {
                shard.retain(|_, bound| {
                    let goes = bound.is_of_try(tried) && bound.event != tried.event;
                    if goes {
                        events.false_one = Some(bound.event.clone());
                    } else if bound.is_of_try(tried) {
                        bound.disputed = false;
                    }
                    !goes
                });
            };
            let shard = self.change_shard(&key, stored, Timestamp::default(), now, settle).await?;
            events.add(shard);
        }
        Ok(events)
    }

    /// The events that Triggers of a delivery are bound to, after an attempt whose answer was lost. If several were
    /// named in it, somebody other than the EventListener named one, and the next attempt may have all its Triggers.
    pub async fn leave_open(&self, delivery: &Named, attempt: &str, now: Timestamp) -> Result<Events, StoreError> {
        let of_try = |bound: &&Binding| *bound.attempt == *attempt;
        let shards = self.shards(&delivery.once, now).await?;
        let mut named = Vec::new();
        for (_, stored) in &shards {
            named.extend(read::<Shard>(Some(stored))?.into_values().filter(|bound| of_try(&bound)));
        }
        let is_disputed = |first: &&Binding| named.iter().any(|bound| bound.disputed || bound.event != first.event);
        let false_one = named.first().filter(is_disputed).map(|bound| bound.event.clone());
        let mut events = Events { false_one, ..Events::default() };
        for (key, stored) in shards {
            let mark = |shard: &mut Shard| {
                let is_open = events.false_one.is_some();
                shard.values_mut().filter(|bound| of_try(&&**bound)).for_each(|bound| bound.disputed |= is_open);
            };
            let shard = self.change_shard(&key, stored, Timestamp::default(), now, mark).await?;
            events.add(shard);
        }
        Ok(events)
    }

    /// Extends the life of existing bindings by `span` beyond the usual time: a delivery that may be retried that late
    /// must not create a run twice.
    pub(super) async fn keep_events(&self, once: &str, span: Duration, now: Timestamp) -> Result<(), StoreError> {
        for (key, stored) in self.shards(once, now).await? {
            self.change_shard(&key, stored, now + KEPT + span, now, |_| ()).await?;
        }
        Ok(())
    }

    /// The shards that exist, with their keys.
    async fn shards(&self, once: &str, now: Timestamp) -> Result<Vec<(Vec<u8>, Stored)>, StoreError> {
        let keys: Vec<Vec<u8>> = (0..SHARDS).map(|shard| shard_key(once, shard)).collect();
        let found = self.store().get_all(Table::Deliveries, keys.clone(), now).await?;
        Ok(keys.into_iter().zip(found).filter_map(|(key, stored)| Some((key, stored?))).collect())
    }

    /// Changes a shard and keeps it at least until `until`, even if somebody asks concurrently. Returns the shard as it
    /// is then.
    async fn change_shard(
        &self,
        key: &[u8],
        mut stored: Stored,
        until: Timestamp,
        now: Timestamp,
        mut change: impl FnMut(&mut Shard),
    ) -> Result<Shard, StoreError> {
        loop {
            let before: Shard = read(Some(&stored))?;
            let mut shard = before.clone();
            change(&mut shard);
            let is_written = shard == before && stored.expires >= until;
            if is_written || self.put_shard(key, &shard, Some(&stored), until, now).await? {
                return Ok(shard);
            }
            let Some(found) = self.store().get(Table::Deliveries, key, now).await? else { return Ok(Shard::new()) };
            stored = found;
        }
    }

    /// Stores a shard until `until`, or its present expiry if that is later. Returns false if it was changed
    /// concurrently.
    async fn put_shard(
        &self,
        key: &[u8],
        shard: &Shard,
        stored: Option<&Stored>,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let until = stored.map_or(until, |stored| stored.expires.max(until));
        let put = self.store().put(Table::Deliveries, key, written(shard)?, until, expect(stored), now);
        Ok(matches!(put.await?, Written::Done(_)))
    }
}

impl Events {
    fn add(&mut self, shard: Shard) {
        for Binding { event, disputed, .. } in shard.into_values() {
            if !disputed && !self.bound.contains(&event) {
                self.bound.push(event);
            }
        }
    }
}

#[cfg(test)]
mod tests;
