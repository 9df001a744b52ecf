//! Which event of its EventListener a delivery became, for each Trigger that was asked about. The first event that asks for a
//! Trigger is bound to it; within one try, what the EventListener itself answers counts more.
//!
//! ```text
//! try 1, event E1: Trigger a asks, bound to E1, its run is made; the process dies before Trigger b asks
//! try 2, event E2: a is bound to E1 of another try: stopped; b is not bound: goes on
//! try 3, event E3: an interceptor that saw the assertion asked before under X; c is bound to X of this same try: what the
//!                  EventListener answers to Doorward, E3, decides
//! ```

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::replay::Replay;
use crate::{
    clock::Timestamp,
    error::{Reason, Rejection},
    sha256::sha256,
    store::{Expect, StoreError, Table, Written},
};

/// How long bindings are kept after the last try: longer than any sender retries.
const KEPT: Duration = Duration::from_secs(3 * 86_400);

/// Triggers of one delivery: an EventListener with more is none that people wrote.
const MAX_TRIGGERS: usize = 1024;

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

/// An event, and the try (the id of the request to the EventListener) in which it was named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriedEvent {
    pub event: EventId,
    pub attempt: Box<str>,
}

/// What came of a question about a Trigger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The Trigger is this event's.
    Ours,
    /// It was an earlier event's: its run is made.
    Others(EventId),
    /// Another event was named for it in this very try, and the EventListener has not said yet which is its own.
    Disputed(EventId),
}

/// What a delivery became.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Bindings {
    triggers: BTreeMap<String, TriedEvent>,
    /// What the EventListener answered to the last try that it answered.
    #[serde(default)]
    confirmed: Option<TriedEvent>,
}

fn key(once: &str) -> [u8; 32] {
    sha256(&[b"event\0", once.as_bytes()])
}

impl Bindings {
    /// Tells what a question comes to, and whether that is to be written.
    fn ask(&mut self, trigger: &str, named: &TriedEvent) -> Result<(Bound, bool), Rejection> {
        let Some(bound) = self.triggers.get(trigger) else {
            if self.triggers.len() >= MAX_TRIGGERS {
                return Err(Rejection::new(Reason::Internal, "a delivery was asked about for too many Triggers"));
            }
            let is_false = self
                .confirmed
                .as_ref()
                .filter(|confirmed| confirmed.attempt == named.attempt && confirmed.event != named.event);
            if let Some(confirmed) = is_false {
                return Ok((Bound::Others(confirmed.event.clone()), false));
            }
            self.triggers.insert(trigger.to_owned(), named.clone());
            return Ok((Bound::Ours, true));
        };
        if bound.event == named.event {
            return Ok((Bound::Ours, false));
        }
        if bound.attempt != named.attempt {
            return Ok((Bound::Others(bound.event.clone()), false));
        }
        match &self.confirmed {
            Some(confirmed) if confirmed == named => {
                self.triggers.insert(trigger.to_owned(), named.clone());
                Ok((Bound::Ours, true))
            }
            Some(confirmed) if confirmed.attempt == named.attempt => {
                Ok((Bound::Others(confirmed.event.clone()), false))
            }
            _ => Ok((Bound::Disputed(bound.event.clone()), false)),
        }
    }
}

impl Replay {
    /// Binds a Trigger of a delivery to an event, unless it is bound.
    pub async fn bind_event(
        &self,
        once: &str,
        trigger: &str,
        named: &TriedEvent,
        now: Timestamp,
    ) -> Result<Bound, Rejection> {
        let unavailable = |error| {
            Rejection::new(Reason::StoreUnavailable, "whether this delivery is an event already cannot be told")
                .because(error)
        };
        loop {
            let (mut bindings, expect) = self.bindings(once, now).await.map_err(unavailable)?;
            let (bound, is_new) = bindings.ask(trigger, named)?;
            if !is_new || self.write(once, &bindings, KEPT, expect, now).await.map_err(unavailable)? {
                return Ok(bound);
            }
        }
    }

    /// Notes the event that the EventListener's own answer names. Gives another that a Trigger was bound to in this try: then
    /// somebody who saw the delivery asked first.
    pub async fn confirm_event(
        &self,
        once: &str,
        named: &TriedEvent,
        now: Timestamp,
    ) -> Result<Option<EventId>, StoreError> {
        loop {
            let (mut bindings, expect) = self.bindings(once, now).await?;
            bindings.confirmed = Some(named.clone());
            if self.write(once, &bindings, KEPT, expect, now).await? {
                let mut others = bindings.triggers.into_values();
                let other = others.find(|bound| bound.attempt == named.attempt && bound.event != named.event);
                return Ok(other.map(|other| other.event));
            }
        }
    }

    /// The events that Triggers of a delivery are bound to, each once: those that label its runs.
    pub async fn events(&self, once: &str, now: Timestamp) -> Result<Vec<EventId>, StoreError> {
        let mut events: Vec<EventId> = Vec::new();
        for TriedEvent { event, .. } in self.bindings(once, now).await?.0.triggers.into_values() {
            if !events.contains(&event) {
                events.push(event);
            }
        }
        Ok(events)
    }

    /// Keeps what is bound for so long beyond [`KEPT`], where anything is: a delivery that may be tried again that late must make
    /// no run twice.
    pub(super) async fn keep_events(&self, once: &str, span: Duration, now: Timestamp) -> Result<(), StoreError> {
        loop {
            let (bindings, expect) = self.bindings(once, now).await?;
            if expect == Expect::Absent || self.write(once, &bindings, KEPT + span, expect, now).await? {
                return Ok(());
            }
        }
    }

    async fn bindings(&self, once: &str, now: Timestamp) -> Result<(Bindings, Expect), StoreError> {
        let Some(stored) = self.store().get(Table::Deliveries, &key(once), now).await? else {
            return Ok((Bindings::default(), Expect::Absent));
        };
        let bindings = serde_json::from_slice(&stored.value)
            .map_err(|error| StoreError::Corrupt(format!("what a delivery became cannot be read: {error}")))?;
        Ok((bindings, Expect::Version(stored.version)))
    }

    /// False if somebody else was there first.
    async fn write(
        &self,
        once: &str,
        bindings: &Bindings,
        span: Duration,
        expect: Expect,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let value = serde_json::to_vec(bindings)
            .map_err(|error| StoreError::Corrupt(format!("what a delivery became cannot be written: {error}")))?;
        let written = self.store().put(Table::Deliveries, &key(once), value, now + span, expect, now).await?;
        Ok(matches!(written, Written::Done(_)))
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
        let ask = async |trigger, text| replay.bind_event("d", trigger, &named(text), NOW).await.unwrap();
        assert_eq!(ask("a", "e1@1").await, Bound::Ours);
        assert_eq!(ask("a", "e1@1").await, Bound::Ours, "asked twice");
        // The answer was lost, or the process died before the next Trigger asked.
        assert_eq!(ask("a", "e2@2").await, Bound::Others(event("e1")));
        assert_eq!(ask("b", "e2@2").await, Bound::Ours, "it had made no run");
        assert_eq!(replay.confirm_event("d", &named("e2@2"), NOW).await.unwrap(), None, "that is no alarm");
        assert_eq!(ask("a", "e2@2").await, Bound::Others(event("e1")));
        assert_eq!(replay.events("d", NOW).await.unwrap(), [event("e1"), event("e2")]);
        let other = replay.bind_event("other", "a", &named("e3@3"), NOW).await.unwrap();
        assert_eq!(other, Bound::Ours, "another delivery");
    }

    #[tokio::test]
    async fn attacks_z46_within_a_try_the_event_listeners_own_answer_decides() {
        let replay = Replay::new(MemoryStore::shared());
        let ask = async |trigger, text| replay.bind_event("d", trigger, &named(text), NOW).await.unwrap();
        assert_eq!(ask("a", "false@1").await, Bound::Ours);
        assert_eq!(ask("a", "true@1").await, Bound::Disputed(event("false")));
        assert_eq!(replay.confirm_event("d", &named("true@1"), NOW).await.unwrap(), Some(event("false")));
        assert_eq!(ask("a", "true@1").await, Bound::Ours);
        assert_eq!(ask("a", "false@1").await, Bound::Others(event("true")));
        assert_eq!(ask("b", "false@1").await, Bound::Others(event("true")), "not even for another Trigger");
        assert_eq!(ask("b", "true@1").await, Bound::Ours);
    }

    #[tokio::test]
    async fn what_is_bound_lives_as_long_as_a_delivery_may_be_tried_again() {
        let replay = Replay::new(MemoryStore::shared());
        let late = NOW + KEPT + Duration::from_secs(1);
        let ask = async |once, text, now| replay.bind_event(once, "a", &named(text), now).await.unwrap();
        for once in ["d", "e"] {
            ask(once, "e1@1", NOW).await;
        }
        replay.keep_events("d", Duration::from_secs(86_400), NOW).await.unwrap();
        replay.keep_events("none", Duration::from_secs(86_400), NOW).await.unwrap();
        assert_eq!(ask("d", "e2@2", late).await, Bound::Others(event("e1")));
        assert_eq!(ask("e", "e2@2", late).await, Bound::Ours, "the twin that nothing kept");
    }
}
