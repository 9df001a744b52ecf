//! Which event of the EventListener a delivery became. The first that asks is bound; what the EventListener itself
//! answers counts more.

use std::fmt;

use super::replay::Replay;
use crate::{
    clock::Timestamp,
    error::{Reason, Rejection},
    sha256::sha256,
    store::{Expect, StoreError, Table, Written},
};

/// How long a binding is kept: longer than any sender retries.
const KEPT: std::time::Duration = std::time::Duration::from_secs(3 * 86_400);

/// The `eventID` of an EventListener: a UUID, which labels every run that comes of the event.
#[derive(Clone, Debug, PartialEq, Eq)]
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

fn key(once: &str) -> [u8; 32] {
    sha256(&[b"event\0", once.as_bytes()])
}

impl Replay {
    /// Binds a delivery to an event, unless it is bound; gives the event that it is bound to.
    pub async fn bind_event(&self, once: &str, event: &EventId, now: Timestamp) -> Result<EventId, Rejection> {
        let unavailable = |error| {
            Rejection::new(Reason::StoreUnavailable, "whether this delivery is an event already cannot be told")
                .because(error)
        };
        let (key, value) = (key(once), event.0.as_bytes().to_vec());
        let put = self.store().put(Table::Deliveries, &key, value, now + KEPT, Expect::Absent, now);
        match put.await.map_err(unavailable)? {
            Written::Done(_) => Ok(event.clone()),
            Written::Conflict(bound) => {
                let bound = bound.and_then(|bound| EventId::parse(std::str::from_utf8(&bound.value).ok()?));
                bound.ok_or_else(|| Rejection::new(Reason::Internal, "what a delivery is bound to cannot be read"))
            }
        }
    }

    /// Binds a delivery to the event that the EventListener's own answer names. Gives another that it was bound to
    /// before: then somebody who saw the delivery asked first.
    pub async fn confirm_event(
        &self,
        once: &str,
        event: &EventId,
        now: Timestamp,
    ) -> Result<Option<EventId>, StoreError> {
        let (key, value) = (key(once), event.0.as_bytes());
        loop {
            let put = self.store().put(Table::Deliveries, &key, value.to_vec(), now + KEPT, Expect::Absent, now);
            let Written::Conflict(Some(bound)) = put.await? else { return Ok(None) };
            if bound.value == value {
                return Ok(None);
            }
            let expect = Expect::Version(bound.version);
            let put = self.store().put(Table::Deliveries, &key, value.to_vec(), now + KEPT, expect, now);
            if let Written::Done(_) = put.await? {
                return Ok(std::str::from_utf8(&bound.value).ok().and_then(EventId::parse));
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

    #[test]
    fn an_event_id_is_taken_only_where_it_could_label_a_run() {
        for (text, good) in [("a-1", true), ("", false), ("a b", false), (&*"x".repeat(64), false), ("é", false)] {
            assert_eq!(EventId::parse(text).is_some(), good, "{text:?}");
        }
    }

    #[tokio::test]
    async fn the_first_event_is_the_only_one_until_the_event_listener_says_otherwise() {
        let replay = Replay::new(MemoryStore::shared());
        assert_eq!(replay.bind_event("d", &event("a"), NOW).await.unwrap(), event("a"));
        assert_eq!(replay.bind_event("d", &event("a"), NOW).await.unwrap(), event("a"), "another trigger of it");
        assert_eq!(replay.bind_event("d", &event("b"), NOW).await.unwrap(), event("a"));
        assert_eq!(replay.bind_event("e", &event("b"), NOW).await.unwrap(), event("b"), "another delivery");
        assert_eq!(replay.confirm_event("d", &event("a"), NOW).await.unwrap(), None);
        assert_eq!(replay.confirm_event("d", &event("c"), NOW).await.unwrap(), Some(event("a")));
        assert_eq!(replay.bind_event("d", &event("a"), NOW).await.unwrap(), event("c"));
    }
}
