//! Whether a replica is alone with its name. The records of two with one name overwrite each other, so that each of
//! them hides which policy the other decides by.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Replica;
use crate::{clock::Moment, store::Change};

/// Whether a replica is alone with its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    /// As far as is known.
    #[default]
    Own,
    /// Not known yet: when it started, there was a record of another process with this name. Either that was itself
    /// before it was killed, or it is another replica.
    Unsettled,
    /// Another replica has it too.
    Shared,
}

/// Tells whoever must mend it.
pub fn same_name(instance: &str) -> String {
    format!("another replica has the name `{instance}` too; give each its own name with `audit.instance`")
}

/// What this process knows of others with its name.
#[derive(Debug)]
pub(super) struct Namesakes {
    /// In the records of this process.
    pub(super) process: Uuid,
    /// Whether this process has published: a predecessor writes nothing after that.
    has_published: bool,
    /// When a record of another process was seen last, and what that meant.
    seen: Option<(Moment, Name)>,
}

impl Default for Namesakes {
    fn default() -> Self {
        Self { process: Uuid::new_v4(), has_published: false, seen: None }
    }
}

impl Namesakes {
    /// Looks for the record of another process among the records of all replicas. One that is stopping need not be
    /// another replica, and soon decides nothing.
    pub(super) fn look(&mut self, page: &[Change], own: &str, now: Moment) {
        let mut stored = page.iter().filter(|change| change.key == own.as_bytes()).filter_map(|change| {
            let stored = change.stored.as_ref().ok().filter(|stored| stored.expires > now.wall())?;
            serde_json::from_slice::<Replica>(&stored.value).ok()
        });
        if stored.any(|replica| replica.process != self.process && !replica.stopping) {
            self.seen = Some((now, if self.has_published { Name::Shared } else { Name::Unsettled }));
        }
    }

    pub(super) const fn published(&mut self) {
        self.has_published = true;
    }

    /// Whether the name is ours alone. Another replica that lives writes its record again within `kept`.
    pub(super) fn name(&self, now: Moment, kept: Duration) -> Name {
        self.seen.filter(|(at, _)| now.since(*at) < kept).map_or(Name::Own, |(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use crate::{clock::Clock, store::Stored};

    /// Regression: a policy was reported as in force on every replica while one of two with the same name decided by an
    /// older one.
    #[test]
    fn two_replicas_with_one_name_do_not_count_as_one() {
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let (mut ours, theirs) = (Namesakes::default(), Namesakes::default());
        let replica = |process, name, stopping| Replica {
            instance: "r0".into(),
            process,
            name,
            policy: "new".into(),
            configuration: "".into(),
            after_restart: Vec::new(),
            generation: 1,
            stopping,
            refused: None,
        };
        let page = |process, stopping| {
            let value = serde_json::to_vec(&replica(process, Name::Own, stopping)).unwrap();
            let stored = Ok(Stored { value, version: 1, expires: clock.now() + KEPT });
            vec![Change { key: b"r0".to_vec(), version: 1, stored }]
        };
        let (own, other) = (ours.process, theirs.process);
        let state = |ours: &Namesakes| {
            let name = ours.name(clock.moment(), KEPT);
            (name, State::of(&[replica(own, name, false)], "new", &mut Seen::default()))
        };
        // It was killed and starts again, or another one has the name: the record does not say which.
        ours.look(&page(other, false), "r0", clock.moment());
        ours.published();
        assert_eq!(state(&ours), (Name::Unsettled, State::Waits));
        clock.advance(KEPT);
        ours.look(&page(own, false), "r0", clock.moment());
        assert_eq!(state(&ours), (Name::Own, State::InForce), "nobody else has written since");
        ours.look(&page(other, true), "r0", clock.moment());
        ours.look(&page(other, false), "r1", clock.moment());
        assert_eq!(state(&ours).0, Name::Own, "one that is stopping, and one with another name");

        ours.look(&page(other, false), "r0", clock.moment());
        assert_eq!(state(&ours), (Name::Shared, State::SameName));
        ours.look(&page(own, false), "r0", clock.moment());
        assert_eq!(state(&ours).0, Name::Shared, "its record was only overwritten");
        let all = Ok(vec![replica(own, Name::Shared, false)]);
        assert!(another_decides_by(&all, "r0", "old"), "what the other decides by is not known");
        clock.advance(KEPT);
        assert_eq!(state(&ours), (Name::Own, State::InForce));
    }

    /// Replicas of an earlier version say neither.
    #[test]
    fn a_record_without_a_process_is_read() {
        let record = r#"{"instance": "r0", "policy": "p", "configuration": "c", "after_restart": [], "generation": 1,
            "stopping": false, "refused": null}"#;
        let replica: Replica = serde_json::from_str(record).unwrap();
        assert_eq!((replica.process, replica.name), (Uuid::nil(), Name::Own));
    }
}
