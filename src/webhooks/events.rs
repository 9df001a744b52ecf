//! Which event of its EventListener a delivery became, for each Trigger that was asked about. The first event that asks for a
//! Trigger is bound to it; within one try, what the EventListener itself answers counts more.
//!
//! ```text
//! try 1, event E1: Trigger a asks, bound to E1, its run is made; the process dies before Trigger b asks
//! try 2, event E2: a is bound to E1 of another try: stopped; b is not bound: goes on
//! try 3, event E3: an interceptor that saw the assertion asked before under X; c is bound to X of this same try: what the
//!                  EventListener answers to Doorward, E3, decides
//! ```
//!
//! An EventListener asks for all Triggers at once, so that what is bound is spread over [`SHARDS`] records by the Trigger's name.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::replay::Replay;
use crate::{
    clock::Timestamp,
    error::{Reason, Rejection},
    sha256::sha256,
    store::{Expect, StoreError, Stored, Table, Written},
};

/// How long bindings are kept after the last try, at most: longer than any sender retries.
const KEPT: Duration = Duration::from_secs(3 * 86_400);

/// Records that the Triggers of a delivery are spread over.
const SHARDS: u8 = 16;

/// Triggers in one of them: an EventListener with more is none that people wrote.
const MAX_TRIGGERS: usize = 64;

/// The `eventID` of an EventListener: a UUID, which labels every run that comes of the event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(Box<str>);

impl EventId {
    /// Only what could label a run.
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
    /// When the name ends: the delivery is forgotten then, and another that comes may have the same. `None`: no other ever has it.
    pub until: Option<Timestamp>,
}

impl Named {
    /// Until when what is bound is kept. No longer than the name is its own, or the Triggers of the next would be stopped.
    fn kept(&self, now: Timestamp) -> Timestamp {
        self.until.map_or(now + KEPT, |until| until.min(now + KEPT))
    }
}

/// An event, and the try (the id of the request to the EventListener) in which it was named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriedEvent {
    pub event: EventId,
    pub attempt: Box<str>,
}

impl TriedEvent {
    /// Whether it is of the same try and says otherwise.
    fn contradicts(&self, other: &Self) -> bool {
        self.attempt == other.attempt && self.event != other.event
    }
}

/// What came of a question about a Trigger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The Trigger is this event's.
    Ours,
    /// It is another's: an earlier try's, or what the EventListener answered.
    Others(EventId),
    /// Another event was named for it in this very try, and the EventListener has not said yet which is its own.
    Disputed(EventId),
}

/// The events of a delivery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Those that Triggers are bound to, each once: they label its runs.
    pub bound: Vec<EventId>,
    /// One that was named in this try, by somebody who is not the EventListener.
    pub false_one: Option<EventId>,
}

/// A part of the Triggers of a delivery, each with its event.
type Shard = BTreeMap<String, TriedEvent>;

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

/// Under which an older version kept the only event of a delivery, as it is.
fn single_key(once: &str) -> Vec<u8> {
    sha256(&[b"event\0", once.as_bytes()]).to_vec()
}

fn read<T: Default + for<'a> Deserialize<'a>>(stored: Option<&Stored>) -> Result<T, StoreError> {
    let Some(stored) = stored else { return Ok(T::default()) };
    serde_json::from_slice(&stored.value)
        .map_err(|error| StoreError::Corrupt(format!("what a delivery became cannot be read: {error}")))
}

fn written<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value)
        .map_err(|error| StoreError::Corrupt(format!("what a delivery became cannot be written: {error}")))
}

fn expect(stored: Option<&Stored>) -> Expect {
    stored.map_or(Expect::Absent, |stored| Expect::Version(stored.version))
}

/// Tells what a question comes to, and writes it into the shard where it is new.
fn ask(
    shard: &mut Shard,
    trigger: &str,
    tried: &TriedEvent,
    answered: Option<&TriedEvent>,
    single: Option<EventId>,
) -> Result<(Bound, bool), Rejection> {
    let answered = answered.filter(|answered| answered.attempt == tried.attempt);
    let is_answered = answered == Some(tried);
    match shard.get(trigger) {
        Some(bound) if bound.event == tried.event => return Ok((Bound::Ours, false)),
        Some(bound) if bound.attempt != tried.attempt => return Ok((Bound::Others(bound.event.clone()), false)),
        _ => {}
    }
    if let Some(other) = answered.filter(|_| !is_answered) {
        return Ok((Bound::Others(other.event.clone()), false));
    }
    match (shard.get(trigger), single) {
        (Some(bound), _) if !is_answered => return Ok((Bound::Disputed(bound.event.clone()), false)),
        (None, _) if shard.len() >= MAX_TRIGGERS => {
            return Err(Rejection::new(Reason::Internal, "a delivery was asked about for too many Triggers"));
        }
        (None, Some(single)) if single != tried.event => {
            shard.insert(trigger.to_owned(), TriedEvent { event: single.clone(), attempt: "".into() });
            return Ok((Bound::Others(single), true));
        }
        _ => {}
    }
    shard.insert(trigger.to_owned(), tried.clone());
    Ok((Bound::Ours, true))
}

impl Replay {
    /// Binds a Trigger of a delivery to an event, unless it is bound.
    pub async fn bind_event(
        &self,
        delivery: &Named,
        trigger: &str,
        tried: &TriedEvent,
        now: Timestamp,
    ) -> Result<Bound, Rejection> {
        let unavailable = |error| {
            Rejection::new(Reason::StoreUnavailable, "whether this delivery is an event already cannot be told")
                .because(error)
        };
        let once = &*delivery.once;
        let key = key_of(once, trigger);
        loop {
            let wanted = vec![key.clone(), confirmed_key(once), single_key(once)];
            let found = self.store().get_all(Table::Deliveries, wanted, now).await.map_err(unavailable)?;
            let [stored, answered, single] = [0, 1, 2].map(|index| found.get(index).and_then(Option::as_ref));
            let mut shard: Shard = read(stored).map_err(unavailable)?;
            let answered: Option<TriedEvent> = read(answered).map_err(unavailable)?;
            let single = single.and_then(|stored| EventId::parse(std::str::from_utf8(&stored.value).ok()?));
            let (bound, is_new) = ask(&mut shard, trigger, tried, answered.as_ref(), single)?;
            if !is_new || self.put_shard(&key, &shard, stored, delivery.kept(now), now).await.map_err(unavailable)? {
                return Ok(bound);
            }
        }
    }

    /// Notes the event that the EventListener's own answer names, and forgets what somebody else named in the same try, who saw the
    /// delivery and asked first.
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
            let mut shard: Shard = read(Some(&stored))?;
            let before = shard.len();
            shard.retain(|_, bound| {
                let goes = bound.contradicts(tried);
                if goes {
                    events.false_one = Some(bound.event.clone());
                }
                !goes
            });
            // Where somebody was there first, the next question finds the same.
            if shard.len() < before {
                self.put_shard(&key, &shard, Some(&stored), delivery.kept(now), now).await?;
            }
            events.add(shard);
        }
        Ok(events)
    }

    /// The events that Triggers of a delivery are bound to.
    pub async fn events(&self, once: &str, now: Timestamp) -> Result<Events, StoreError> {
        let mut events = Events::default();
        for (_, stored) in self.shards(once, now).await? {
            events.add(read(Some(&stored))?);
        }
        Ok(events)
    }

    /// Keeps what is bound for so long beyond the usual time, where anything is: a delivery that may be tried again that late must
    /// make no run twice.
    pub(super) async fn keep_events(&self, once: &str, span: Duration, now: Timestamp) -> Result<(), StoreError> {
        for (key, mut stored) in self.shards(once, now).await? {
            // Somebody may be asking meanwhile.
            while !self.put_shard(&key, &read(Some(&stored))?, Some(&stored), now + KEPT + span, now).await? {
                let Some(found) = self.store().get(Table::Deliveries, &key, now).await? else { break };
                stored = found;
            }
        }
        Ok(())
    }

    /// Those that there are, with their keys.
    async fn shards(&self, once: &str, now: Timestamp) -> Result<Vec<(Vec<u8>, Stored)>, StoreError> {
        let keys: Vec<Vec<u8>> = (0..SHARDS).map(|shard| shard_key(once, shard)).collect();
        let found = self.store().get_all(Table::Deliveries, keys.clone(), now).await?;
        Ok(keys.into_iter().zip(found).filter_map(|(key, stored)| Some((key, stored?))).collect())
    }

    /// Keeps a shard until then, or longer where it is; false if somebody else was there first.
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
        for TriedEvent { event, .. } in shard.into_values() {
            if !self.bound.contains(&event) {
                self.bound.push(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhooks::testing::MemoryStore;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn event(text: &str) -> EventId {
        EventId::parse(text).unwrap()
    }

    fn delivery(once: &str) -> Named {
        Named { once: once.into(), until: None }
    }

    /// `EVENT@TRY`.
    fn named(text: &str) -> TriedEvent {
        let (event, attempt) = text.split_once('@').unwrap();
        TriedEvent { event: EventId::parse(event).unwrap(), attempt: attempt.into() }
    }

    #[test]
    fn an_event_id_is_taken_only_where_it_could_label_a_run() {
        for (text, good) in [("a-1", true), ("", false), ("a b", false), (&*"x".repeat(64), false), ("é", false)] {
            assert_eq!(EventId::parse(text).is_some(), good, "{text:?}");
        }
    }

    #[tokio::test]
    async fn each_trigger_is_of_one_event_over_all_tries() {
        let replay = Replay::new(MemoryStore::shared());
        let ask = async |trigger, text| replay.bind_event(&delivery("d"), trigger, &named(text), NOW).await.unwrap();
        assert_eq!(ask("a", "e1@1").await, Bound::Ours);
        assert_eq!(ask("a", "e1@1").await, Bound::Ours, "asked twice");
        // The answer was lost, or the process died before the next Trigger asked.
        assert_eq!(ask("a", "e2@2").await, Bound::Others(event("e1")));
        assert_eq!(ask("b", "e2@2").await, Bound::Ours, "it had made no run");
        let confirmed = replay.confirm_event(&delivery("d"), &named("e2@2"), NOW).await.unwrap();
        assert_eq!(confirmed.false_one, None, "that is no alarm");
        assert_eq!(confirmed, replay.events("d", NOW).await.unwrap());
        assert_eq!(ask("a", "e2@2").await, Bound::Others(event("e1")));
        assert!(confirmed.bound.len() == 2 && confirmed.bound.contains(&event("e1")), "{confirmed:?}");
        let other = replay.bind_event(&delivery("other"), "a", &named("e3@3"), NOW).await.unwrap();
        assert_eq!(other, Bound::Ours, "another delivery");
    }

    #[tokio::test]
    async fn attacks_z46_within_a_try_the_event_listeners_own_answer_decides() {
        let replay = Replay::new(MemoryStore::shared());
        let ask = async |trigger, text| replay.bind_event(&delivery("d"), trigger, &named(text), NOW).await.unwrap();
        assert_eq!(ask("a", "false@1").await, Bound::Ours);
        assert_eq!(ask("a", "true@1").await, Bound::Disputed(event("false")));
        let confirmed = replay.confirm_event(&delivery("d"), &named("true@1"), NOW).await.unwrap();
        assert_eq!((confirmed.false_one, confirmed.bound), (Some(event("false")), vec![]), "nothing is caused by that");
        assert_eq!(ask("a", "true@1").await, Bound::Ours);
        assert_eq!(ask("a", "false@1").await, Bound::Others(event("true")));
        assert_eq!(ask("b", "false@1").await, Bound::Others(event("true")), "not even for another Trigger");
        assert_eq!(ask("b", "true@1").await, Bound::Ours);
    }

    #[tokio::test]
    async fn what_is_bound_lives_as_long_as_a_delivery_may_be_tried_again() {
        let replay = Replay::new(MemoryStore::shared());
        let late = NOW + KEPT + Duration::from_secs(1);
        let ask = async |once, text, now| replay.bind_event(&delivery(once), "a", &named(text), now).await.unwrap();
        for once in ["d", "e"] {
            ask(once, "e1@1", NOW).await;
        }
        replay.keep_events("d", Duration::from_secs(86_400), NOW).await.unwrap();
        replay.keep_events("none", Duration::from_secs(86_400), NOW).await.unwrap();
        assert_eq!(ask("d", "e2@2", late).await, Bound::Others(event("e1")));
        assert_eq!(ask("e", "e2@2", late).await, Bound::Ours, "the twin that nothing kept");
    }

    /// A sender without ids says the same thing every night, and is remembered for an hour.
    #[tokio::test]
    async fn a_delivery_that_is_new_again_is_another_to_its_triggers() {
        let replay = Replay::new(MemoryStore::shared());
        let window = Duration::from_secs(3600);
        let ask = async |text, asserted: Timestamp, now| {
            let delivery = Named { until: Some(asserted + window), ..delivery("d") };
            replay.bind_event(&delivery, "a", &named(text), now).await.unwrap()
        };
        let (second, late) = (Duration::from_secs(1), NOW + window - Duration::from_secs(1));
        assert_eq!(ask("e1@1", NOW, NOW + second).await, Bound::Ours);
        let known = Named { until: Some(NOW + window), ..delivery("d") };
        replay.confirm_event(&known, &named("e1@1"), NOW + second).await.unwrap();
        assert_eq!(ask("e2@2", late, late).await, Bound::Others(event("e1")), "a late try of the same");
        assert_eq!(ask("e3@3", NOW + window, NOW + window).await, Bound::Ours);
    }

    /// Where an older version bound a whole delivery, which may wait while Doorward is updated.
    #[tokio::test]
    async fn what_an_older_version_bound_is_bound_for_each_trigger() {
        let replay = Replay::new(MemoryStore::shared());
        let until = NOW + KEPT;
        let key = single_key("d");
        replay.store().put(Table::Deliveries, &key, b"e1".to_vec(), until, Expect::Any, NOW).await.unwrap();
        let ask = async |trigger, text| replay.bind_event(&delivery("d"), trigger, &named(text), NOW).await.unwrap();
        for trigger in ["a", "b"] {
            assert_eq!(ask(trigger, "e1@1").await, Bound::Ours);
            assert_eq!(ask(trigger, "e2@2").await, Bound::Others(event("e1")));
        }
        replay.keep_events("d", Duration::ZERO, NOW).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_kept_longer_is_not_cut_short_by_a_late_question() {
        let replay = Replay::new(MemoryStore::shared());
        let ask = async |trigger: &str, text, now| replay.bind_event(&delivery("d"), trigger, &named(text), now).await.unwrap();
        ask("a", "e1@1", NOW).await;
        replay.keep_events("d", Duration::from_secs(86_400), NOW).await.unwrap();
        // Of the same record.
        let same = (0..).map(|number| format!("t{number}")).find(|name| key_of("d", name) == key_of("d", "a")).unwrap();
        ask(&same, "e1@1", NOW).await;
        let late = NOW + KEPT + Duration::from_secs(1);
        assert_eq!(ask("a", "e2@2", late).await, Bound::Others(event("e1")));
    }
}
