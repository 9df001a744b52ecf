//! Stores who caused which run, sealed.
//!
//! A run that is created by a request is known by the uid in the API server's own answer. For a delivery, only the
//! event is known, which Tekton Triggers writes on every run as a label; such a run counts only if it was created right
//! after the delivery.

use super::cause::Cause;
use crate::{
    clock::Timestamp,
    sessions::keyring::{KeyRing, OpenError, Purpose},
    store::{Expect, Store, StoreError, Table},
};

/// What identifies a run within its cluster, which alone vouches for it. The cluster has the name of its issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark<'a> {
    /// The uid of the object.
    Uid { cluster: &'a str, uid: &'a str },
    /// The event that created it.
    Event { cluster: &'a str, event: &'a str },
}

/// A run whose cause is looked up.
#[derive(Clone, Copy, Debug)]
pub struct AskedRun<'a> {
    pub cluster: &'a str,
    pub uid: &'a str,
    /// The event that it names.
    pub event: Option<&'a str>,
    /// The uids of the runs nested in it, which other runs are said to have created.
    pub within: &'a [&'a str],
}

/// What is known of a run and of those nested in it.
#[derive(Debug)]
pub struct Known {
    pub cause: Option<Cause>,
    /// The index of the first run in `within` that somebody created through Doorward.
    pub made: Option<usize>,
}

/// Why a cause is not available.
#[derive(Debug, thiserror::Error)]
pub enum CauseError {
    #[error("the cause of the run cannot be looked up: {0}")]
    Store(#[from] StoreError),
    #[error("the record of the run's cause cannot be opened: {0}")]
    Sealed(#[from] OpenError),
    #[error("the record of the run's cause cannot be read")]
    Unreadable,
}

/// The store of causes.
#[derive(Clone, Copy, Debug)]
pub struct Causes<'a> {
    pub store: &'a Store,
    pub keys: &'a KeyRing,
}

impl Mark<'_> {
    fn key(self) -> Vec<u8> {
        match self {
            Self::Uid { cluster, uid } => format!("run:{cluster}/{uid}").into_bytes(),
            Self::Event { cluster, event } => format!("event:{cluster}/{event}").into_bytes(),
        }
    }
}

impl Causes<'_> {
    /// Stores the cause for a mark. The first record counts: the cause of a run does not change.
    pub async fn keep(&self, mark: Mark<'_>, cause: &Cause, now: Timestamp) -> Result<(), CauseError> {
        let key = mark.key();
        let plain = serde_json::to_vec(cause).map_err(|_| CauseError::Unreadable)?;
        let sealed = self.keys.seal(Purpose::Cause, &key, &plain).ok_or(CauseError::Unreadable)?;
        self.store.put(Table::Causes, &key, sealed, cause.ends(), Expect::Absent, now).await?;
        Ok(())
    }

    /// Looks up a run: by its uid, or else by the event that it names, if it was created right after that.
    pub async fn of(
        &self,
        asked: AskedRun<'_>,
        created: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Known, CauseError> {
        let AskedRun { cluster, uid, event, within } = asked;
        let run = Mark::Uid { cluster, uid };
        let marks = within.iter().map(|uid| Mark::Uid { cluster, uid });
        let keys = marks.chain([run]).map(Mark::key).collect();
        // In a single call, since each is a round trip to the store.
        let mut found = self.store.get_all(Table::Causes, keys, now).await?;
        let stored = found.pop().flatten();
        let mut cause = stored.map(|stored| self.open(&run.key(), &stored.value)).transpose()?;
        let made = found.iter().position(Option::is_some);
        if let (None, None, Some(event), Some(created)) = (made, &cause, event, created) {
            let key = Mark::Event { cluster, event }.key();
            let stored = self.store.get(Table::Causes, &key, now).await?;
            let of_event = stored.map(|stored| self.open(&key, &stored.value)).transpose()?;
            cause = of_event.filter(|cause| cause.explains(created));
            if let Some(cause) = &cause {
                self.keep(run, cause, now).await?;
            }
        }
        Ok(Known { cause, made })
    }

    fn open(&self, key: &[u8], sealed: &[u8]) -> Result<Cause, CauseError> {
        let plain = self.keys.open(Purpose::Cause, key, sealed)?;
        serde_json::from_slice(&plain).map_err(|_| CauseError::Unreadable)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use uuid::Uuid;

    use super::{
        super::cause::{
            KEPT,
            tests::{NOW, alice},
        },
        *,
    };
    use crate::{
        authn::{Kind, Principal, Scheme},
        store::Embedded,
    };

    fn cause() -> Cause {
        Cause::new(&alice(), None, Uuid::from_u128(1), NOW, &["department".into()])
    }

    const fn run(uid: &str) -> Mark<'_> {
        Mark::Uid { cluster: "c", uid }
    }

    const fn asked<'a>(uid: &'a str, event: Option<&'a str>) -> AskedRun<'a> {
        AskedRun { cluster: "c", uid, event, within: &[] }
    }

    struct Fixture {
        store: Store,
        keys: KeyRing,
        _folder: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store: Store = Arc::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
            Self { store, keys: KeyRing::of(&[[1; 32]]), _folder: folder }
        }

        fn causes(&self) -> Causes<'_> {
            Causes { store: &self.store, keys: &self.keys }
        }
    }

    #[tokio::test]
    async fn the_cause_of_a_run_is_found_by_its_uid_with_the_facts_for_rules() {
        let at = Fixture::new();
        at.causes().keep(run("u"), &cause(), NOW).await.unwrap();
        let found = at.causes().of(asked("u", None), None, NOW).await.unwrap().cause.unwrap().principal();
        assert_eq!((&*found.issuer, &*found.subject, &*found.username), ("corp", "7", "alice"));
        assert_eq!((found.kind, found.groups.len(), found.actor), (Kind::Human, 1, alice().actor));
        assert_eq!(serde_json::to_value(&*found.claims).unwrap(), serde_json::json!({"department": "x"}));
        assert!(at.causes().of(asked("v", None), None, NOW).await.unwrap().cause.is_none());
        // A run cannot be taken over.
        let mallory = Cause::new(&Principal::new(Scheme::Bearer, "corp", "8", "mallory"), None, Uuid::nil(), NOW, &[]);
        at.causes().keep(run("u"), &mallory, NOW).await.unwrap();
        let found = at.causes().of(asked("u", None), None, NOW).await.unwrap().cause.unwrap();
        assert_eq!(&*found.principal().username, "alice");
    }

    #[tokio::test]
    async fn a_run_is_attributed_to_an_event_only_if_created_right_after_it() {
        let at = Fixture::new();
        at.causes().keep(Mark::Event { cluster: "c", event: "e" }, &cause(), NOW).await.unwrap();
        for (what, uid, event, created, known) in [
            ("at once", "a", Some("e"), Some(NOW), true),
            ("the API server's clock is behind", "b", Some("e"), Some(NOW - Duration::from_secs(20)), true),
            ("a minute later", "c", Some("e"), Some(NOW + Duration::from_secs(60)), true),
            ("an hour later: somebody copied the label", "d", Some("e"), Some(NOW + Duration::from_secs(3600)), false),
            ("before", "e", Some("e"), Some(NOW - Duration::from_secs(60)), false),
            ("another event", "f", Some("x"), Some(NOW), false),
            ("no event", "g", None, Some(NOW), false),
            ("no time", "h", Some("e"), None, false),
            // A uid is not an event, whatever the label says.
            ("the mark of a run", "i", Some("run:c/a"), Some(NOW), false),
        ] {
            let found = at.causes().of(asked(uid, event), created, NOW).await.unwrap().cause;
            assert_eq!(found.is_some(), known, "{what}");
        }
        // The cause that was found is stored for the run.
        assert!(at.causes().of(asked("a", None), None, NOW).await.unwrap().cause.is_some());
    }

    /// Regression: it was stored again when its run first asked, so a run that had waited could get tokens for up to
    /// two weeks.
    #[tokio::test]
    async fn the_cause_of_a_delivery_is_kept_for_seven_days_of_it_whenever_its_run_first_asks() {
        let at = Fixture::new();
        at.causes().keep(Mark::Event { cluster: "c", event: "e" }, &cause(), NOW).await.unwrap();
        let day = Duration::from_secs(86_400);
        for (days, is_known) in [(6_u32, true), (8, false)] {
            let known = at.causes().of(asked("u", Some("e")), Some(NOW), NOW + day * days).await.unwrap();
            assert_eq!(known.cause.is_some(), is_known, "after {days} days");
        }
    }

    #[tokio::test]
    async fn a_cluster_that_presents_the_uid_of_anothers_run_does_not_inherit_its_cause() {
        let at = Fixture::new();
        at.causes().keep(run("u"), &cause(), NOW).await.unwrap();
        at.causes().keep(Mark::Event { cluster: "c", event: "e" }, &cause(), NOW).await.unwrap();
        let hostile = AskedRun { cluster: "d", event: Some("e"), ..asked("u", None) };
        assert!(at.causes().of(hostile, Some(NOW), NOW).await.unwrap().cause.is_none());
    }

    #[tokio::test]
    async fn the_first_outer_run_that_was_made_by_a_request_is_found() {
        let at = Fixture::new();
        at.causes().keep(run("made"), &cause(), NOW).await.unwrap();
        for (cluster, within, made) in [
            ("c", ["a", "b"], None),
            ("c", ["a", "made"], Some(1)),
            ("c", ["made", "b"], Some(0)),
            ("d", ["a", "made"], None),
        ] {
            let asked = AskedRun { cluster, within: &within, ..asked("u", None) };
            let known = at.causes().of(asked, None, NOW).await.unwrap();
            assert_eq!((known.made, known.cause.is_some()), (made, false), "{cluster} {within:?}");
        }
        // The run itself is not nested in any.
        let known = at.causes().of(AskedRun { within: &["a"], ..asked("made", None) }, None, NOW).await.unwrap();
        assert_eq!((known.made, known.cause.is_some()), (None, true));
    }

    #[tokio::test]
    async fn a_cause_is_sealed_and_bound_to_its_run() {
        let at = Fixture::new();
        at.causes().keep(run("u"), &cause(), NOW).await.unwrap();
        let stored = at.store.get(Table::Causes, b"run:c/u", NOW).await.unwrap().unwrap();
        assert!(!stored.value.windows(5).any(|window| window == b"alice"));
        at.store.put(Table::Causes, b"run:c/v", stored.value, NOW + KEPT, Expect::Any, NOW).await.unwrap();
        assert!(matches!(at.causes().of(asked("v", None), None, NOW).await, Err(CauseError::Sealed(_))));
    }
}
