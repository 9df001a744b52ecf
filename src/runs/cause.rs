//! Who caused a run, as Doorward itself saw it: the principal of the request that made it, or of the delivery that an
//! EventListener made it of. Nothing that a run says of itself is believed for it, since whoever may make runs past Doorward can
//! write anything into them.
//!
//! A run that a request makes is known by the uid in the API server's own answer. Of a delivery only the event is known, which
//! Tekton Triggers writes on every run as a label; there a run counts only if it was made right after the delivery.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{
    audit::CLAIMS,
    authn::{
        Actor, Kind, KnownAs, LoginFacts, Principal, Scheme,
        principal::{ANONYMOUS, KIND_CLAIM},
    },
    clock::Timestamp,
    sessions::keyring::{KeyRing, OpenError, Purpose},
    store::{Expect, Store, StoreError, Table},
    webhooks::Facts,
};

/// How long the cause of a run is kept, which is the longest that a run can have tokens. It is not prolonged while a run goes on: rules
/// decide by the groups and claims of then, which may be others by now.
pub const KEPT: Duration = Duration::from_secs(7 * 86_400);

/// How long after a delivery an EventListener may make runs of it.
pub const EVENT_WINDOW: Duration = Duration::from_secs(120);

/// How far the clock of the API server may differ.
pub const SKEW: Duration = Duration::from_secs(30);

/// By what a run is told from others, in its cluster, which alone vouches for it. That is named as its issuer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark<'a> {
    /// The uid of the object.
    Uid { cluster: &'a str, uid: &'a str },
    /// The event that it came of.
    Event { cluster: &'a str, event: &'a str },
}

/// A run whose cause is asked for.
#[derive(Clone, Copy, Debug)]
pub struct AskedRun<'a> {
    pub cluster: &'a str,
    /// Whether there is no other cluster, so that what older versions have noted is of this one.
    pub is_alone: bool,
    pub uid: &'a str,
    /// The event that it says it came of.
    pub event: Option<&'a str>,
    /// The uids of the runs within it, which other runs are said to have made.
    pub within: &'a [&'a str],
}

/// What is kept of a run and of those within it.
#[derive(Debug)]
pub struct Known {
    pub cause: Option<Cause>,
    /// The first of those within that somebody made through Doorward: its place.
    pub made: Option<usize>,
}

/// Who caused a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cause {
    /// The id of the request, which is that of its record in the audit trail.
    pub request: Uuid,
    /// When that came, in milliseconds.
    at: i64,
    issuer: Arc<str>,
    subject: Arc<str>,
    username: Arc<str>,
    kind: Kind,
    /// What the subject is, where somebody acted for them. Earlier versions kept none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject_kind: Option<Kind>,
    /// `None` if the issuer said nothing of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    groups: Option<Vec<Arc<str>>>,
    /// `None` if the issuer said nothing of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scopes: Option<Vec<Arc<str>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client: Option<Arc<str>>,
    /// Where it came with a token of ours, on whose behalf that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on_behalf_of: Option<KnownAs>,
    /// Who acted for them, and before, as their issuers know them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    acting: Vec<KnownAs>,
    /// What tokens say of those who acted (`act` of RFC 8693).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    act: Option<Value>,
    /// Who acted for them: subject and client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    actor: Option<(Arc<str>, Option<Arc<str>>)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    auth_time: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    acr: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    amr: Vec<Arc<str>>,
    /// Those claims that rules can look at, as the audit trail keeps them, and of a token of ours what its subject is.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    claims: Map<String, Value>,
    /// The names of the claims that were looked for. Versions that kept none knew no rule of later.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    looked_for: Vec<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delivery: Option<Facts>,
}

/// Why a cause is not known.
#[derive(Debug, thiserror::Error)]
pub enum CauseError {
    #[error("who caused the run cannot be looked up: {0}")]
    Store(#[from] StoreError),
    #[error("the record of who caused the run cannot be opened: {0}")]
    Sealed(#[from] OpenError),
    #[error("the record of who caused the run cannot be read")]
    Unreadable,
}

/// Where causes are kept, sealed.
#[derive(Clone, Copy, Debug)]
pub struct Causes<'a> {
    pub store: &'a Store,
    pub keys: &'a KeyRing,
}

impl Cause {
    /// `identifier`: that of the principal's issuer. `claims`: names of those that the policy looks at.
    pub fn new(
        principal: &Principal,
        identifier: Option<&str>,
        request: Uuid,
        at: Timestamp,
        claims: &[Arc<str>],
    ) -> Self {
        let kept = |name: &str| Some((name.to_owned(), principal.claims.get(name)?.clone()));
        let said = |is_said: bool, list: &[Arc<str>]| (is_said || !list.is_empty()).then(|| list.to_vec());
        // By this the audit trail tells of a token of ours whether it is on behalf of a person.
        let own = principal.on_behalf_of.as_ref().map(|_| Arc::from(KIND_CLAIM));
        let looked_for: Vec<Arc<str>> =
            CLAIMS.into_iter().map(Arc::from).chain(claims.iter().cloned()).chain(own).collect();
        Self {
            request,
            at: at.as_millis(),
            issuer: Arc::clone(&principal.issuer),
            subject: Arc::clone(&principal.subject),
            username: Arc::clone(&principal.username),
            kind: principal.kind,
            subject_kind: principal.actor.as_ref().map(|_| principal.kind_of_subject()),
            groups: said(principal.says_groups, &principal.groups),
            scopes: said(principal.says_scopes, &principal.scopes),
            client: principal.client.clone(),
            on_behalf_of: principal.on_behalf_of.as_deref().cloned(),
            acting: principal.acting.to_vec(),
            act: principal.act(identifier),
            actor: principal.actor.as_ref().map(|actor| (Arc::clone(&actor.subject), actor.client.clone())),
            auth_time: principal.login.auth_time.map(Timestamp::as_millis),
            acr: principal.login.acr.clone(),
            amr: principal.login.amr.clone(),
            claims: looked_for.iter().filter_map(|name| kept(name)).collect(),
            looked_for,
            delivery: principal.delivery.as_deref().cloned(),
        }
    }

    /// The principal as it was. What it came with has ended, as far as this is concerned: it is for decisions on tokens alone.
    pub fn principal(&self) -> Principal {
        let mut claims = self.claims.clone();
        // By this the audit trail tells that who is spoken of may be a person, though an agent acted for them.
        if let Some(act) = &self.act {
            claims.entry("act").or_insert_with(|| act.clone());
        }
        Principal {
            kind: self.kind,
            subject_kind: self.kind_of_subject().filter(|kind| *kind != self.kind),
            says_groups: self.groups.is_some(),
            groups: self.groups.clone().unwrap_or_default(),
            says_scopes: self.scopes.is_some(),
            scopes: self.scopes.clone().unwrap_or_default(),
            client: self.client.clone(),
            actor: self.actor.clone().map(|(subject, client)| Actor { subject, client }),
            on_behalf_of: self.on_behalf_of.clone().map(Box::new),
            acting: self.acting.as_slice().into(),
            login: LoginFacts {
                auth_time: self.auth_time.map(Timestamp::from_millis),
                acr: self.acr.clone(),
                amr: self.amr.clone(),
            },
            email: Principal::verified_email(&claims),
            claims: Arc::new(claims),
            // What a sender signs has no claims.
            kept_claims: self.delivery.is_none().then(|| self.looked_for.as_slice().into()),
            delivery: self.delivery.clone().map(Arc::new),
            ..Principal::new(
                match &self.delivery {
                    Some(_) => Scheme::Webhook,
                    None if *self.issuer == *ANONYMOUS => Scheme::Anonymous,
                    None => Scheme::Bearer,
                },
                Arc::clone(&self.issuer),
                Arc::clone(&self.subject),
                Arc::clone(&self.username),
            )
        }
    }

    /// Who acted for the principal, as tokens say it.
    pub fn act(&self) -> Option<&Value> {
        self.act.as_ref()
    }

    /// Whether it was kept by a version that noted of an actor neither who they are to their issuer nor on whose behalf they acted, or
    /// not whether it was for a person.
    pub fn lacks_actors(&self) -> bool {
        (self.actor.is_some() && self.act.is_none()) || self.kind_of_subject().is_none()
    }

    /// What the subject is, unless an earlier version kept of somebody for whom another acted that it was an agent who came. It kept what
    /// a token of ours says of that.
    fn kind_of_subject(&self) -> Option<Kind> {
        let own = || Kind::deserialize(self.claims.get(KIND_CLAIM).filter(|_| self.on_behalf_of.is_some())?).ok();
        let is_of_subject = self.actor.is_none() || self.kind != Kind::Agent;
        self.subject_kind.or_else(own).or_else(|| is_of_subject.then_some(self.kind))
    }

    /// From when on it counts no more.
    fn ends(&self) -> Timestamp {
        Timestamp::from_millis(self.at) + KEPT
    }

    /// Whether a run that was made then can have come of the delivery.
    fn explains(&self, created: Timestamp) -> bool {
        let at = Timestamp::from_millis(self.at);
        created + SKEW >= at && created <= at + EVENT_WINDOW + SKEW
    }
}

impl Mark<'_> {
    fn key(self) -> Vec<u8> {
        match self {
            Self::Uid { cluster, uid } => format!("run:{cluster}/{uid}").into_bytes(),
            Self::Event { cluster, event } => format!("event:{cluster}/{event}").into_bytes(),
        }
    }

    /// The key of versions that knew of one cluster.
    fn old_key(self) -> Vec<u8> {
        match self {
            Self::Uid { uid, .. } => format!("run:{uid}").into_bytes(),
            Self::Event { event, .. } => format!("event:{event}").into_bytes(),
        }
    }
}

impl Causes<'_> {
    /// Keeps who caused what bears the mark. The first word counts: what is known of a run does not change.
    pub async fn keep(&self, mark: Mark<'_>, cause: &Cause, now: Timestamp) -> Result<(), CauseError> {
        let key = mark.key();
        let plain = serde_json::to_vec(cause).map_err(|_| CauseError::Unreadable)?;
        let sealed = self.keys.seal(Purpose::Cause, &key, &plain).ok_or(CauseError::Unreadable)?;
        self.store.put(Table::Causes, &key, sealed, cause.ends(), Expect::Absent, now).await?;
        Ok(())
    }

    /// What is kept of a run: by its uid, or else who caused the event that it says it came of, if it was made right after that.
    pub async fn of(
        &self,
        asked: AskedRun<'_>,
        created: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Known, CauseError> {
        let AskedRun { cluster, is_alone, uid, event, within } = asked;
        let run = Mark::Uid { cluster, uid };
        let marks = within.iter().map(|uid| Mark::Uid { cluster, uid });
        let keys = marks.flat_map(|mark| [mark.key(), mark.old_key()]).chain([run.key()]).collect();
        // In one go, since each costs a way to the store.
        let mut found = self.store.get_all(Table::Causes, keys, now).await?;
        let cause = match found.pop().flatten() {
            Some(stored) => self.open(&run.key(), &stored.value, now)?,
            None => None,
        };
        let made = found.iter().position(Option::is_some).map(|place| place / 2);
        if made.is_some() || cause.is_some() {
            return Ok(Known { cause, made });
        }
        let mut cause = self.first(is_alone.then(|| run.old_key()), now).await?;
        if let (None, Some(event), Some(created)) = (&cause, event, created) {
            let event = Mark::Event { cluster, event };
            let keys = [event.key()].into_iter().chain(is_alone.then(|| event.old_key()));
            cause = self.first(keys, now).await?.filter(|cause| cause.explains(created));
            if let Some(cause) = &cause {
                self.keep(run, cause, now).await?;
            }
        }
        Ok(Known { cause, made })
    }

    /// What is kept under the first of these keys that there is.
    async fn first(
        &self,
        keys: impl IntoIterator<Item = Vec<u8>>,
        now: Timestamp,
    ) -> Result<Option<Cause>, CauseError> {
        for key in keys {
            if let Some(stored) = self.store.get(Table::Causes, &key, now).await? {
                return self.open(&key, &stored.value, now);
            }
        }
        Ok(None)
    }

    /// What was sealed, if it still counts: earlier versions kept the cause of a delivery's run anew when that first asked.
    fn open(&self, key: &[u8], sealed: &[u8], now: Timestamp) -> Result<Option<Cause>, CauseError> {
        let plain = self.keys.open(Purpose::Cause, key, sealed)?;
        let cause: Cause = serde_json::from_slice(&plain).map_err(|_| CauseError::Unreadable)?;
        Ok(Some(cause).filter(|cause| now < cause.ends()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Embedded;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn alice() -> Principal {
        let claims = serde_json::json!({"department": "x", "address": "y"});
        Principal {
            kind: Kind::Human,
            groups: vec!["dev".into()],
            actor: Some(Actor { subject: "bot".into(), client: Some("b".into()) }),
            claims: Arc::new(claims.as_object().unwrap().clone()),
            ..Principal::new(Scheme::Session, "corp", "7", "alice")
        }
    }

    fn cause() -> Cause {
        Cause::new(&alice(), None, Uuid::from_u128(1), NOW, &["department".into()])
    }

    const fn run(uid: &str) -> Mark<'_> {
        Mark::Uid { cluster: "c", uid }
    }

    const fn asked<'a>(uid: &'a str, event: Option<&'a str>) -> AskedRun<'a> {
        AskedRun { cluster: "c", is_alone: false, uid, event, within: &[] }
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
    async fn who_caused_a_run_is_known_by_its_uid_with_what_rules_look_at() {
        let at = Fixture::new();
        at.causes().keep(run("u"), &cause(), NOW).await.unwrap();
        let found = at.causes().of(asked("u", None), None, NOW).await.unwrap().cause.unwrap().principal();
        assert_eq!((&*found.issuer, &*found.subject, &*found.username), ("corp", "7", "alice"));
        assert_eq!((found.kind, found.groups.len(), found.actor), (Kind::Human, 1, alice().actor));
        assert_eq!(serde_json::to_value(&*found.claims).unwrap(), serde_json::json!({"department": "x"}));
        assert!(at.causes().of(asked("v", None), None, NOW).await.unwrap().cause.is_none());
        // Nobody takes a run over.
        let mallory = Cause::new(&Principal::new(Scheme::Bearer, "corp", "8", "mallory"), None, Uuid::nil(), NOW, &[]);
        at.causes().keep(run("u"), &mallory, NOW).await.unwrap();
        let found = at.causes().of(asked("u", None), None, NOW).await.unwrap().cause.unwrap();
        assert_eq!(&*found.principal().username, "alice");
    }

    #[tokio::test]
    async fn a_run_comes_of_an_event_only_if_it_was_made_right_after_it() {
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
            // An uid is no event, whatever the label says.
            ("the mark of a run", "i", Some("run:c/a"), Some(NOW), false),
        ] {
            let found = at.causes().of(asked(uid, event), created, NOW).await.unwrap().cause;
            assert_eq!(found.is_some(), known, "{what}");
        }
        // What was found is kept for the run.
        assert!(at.causes().of(asked("a", None), None, NOW).await.unwrap().cause.is_some());
    }

    /// It was kept anew when its run first asked, so that one that had waited had tokens for up to two weeks.
    #[tokio::test]
    async fn the_cause_of_a_delivery_is_kept_for_seven_days_of_it_whenever_its_run_first_asks() {
        let at = Fixture::new();
        at.causes().keep(Mark::Event { cluster: "c", event: "e" }, &cause(), NOW).await.unwrap();
        let day = Duration::from_secs(86_400);
        // As a version kept it that counted from the first question.
        let plain = serde_json::to_vec(&cause()).unwrap();
        let sealed = at.keys.seal(Purpose::Cause, b"run:c/old", &plain).unwrap();
        at.store.put(Table::Causes, b"run:c/old", sealed, NOW + day * 13, Expect::Any, NOW).await.unwrap();
        for (days, is_known) in [(6_u32, true), (8, false)] {
            for uid in ["u", "old"] {
                let now = NOW + day * days;
                let known = at.causes().of(asked(uid, Some("e")), Some(NOW), now).await.unwrap();
                assert_eq!(known.cause.is_some(), is_known, "{uid} after {days} days");
            }
        }
    }

    #[tokio::test]
    async fn a_cluster_that_presents_the_uid_of_anothers_run_does_not_inherit_its_cause() {
        let at = Fixture::new();
        at.causes().keep(run("u"), &cause(), NOW).await.unwrap();
        at.causes().keep(Mark::Event { cluster: "c", event: "e" }, &cause(), NOW).await.unwrap();
        let hostile = AskedRun { cluster: "d", event: Some("e"), ..asked("u", None) };
        assert!(at.causes().of(hostile, Some(NOW), NOW).await.unwrap().cause.is_none());
        // What an older version noted is of the only cluster, and of none where there are several.
        let sealed = |key: &[u8]| at.keys.seal(Purpose::Cause, key, &serde_json::to_vec(&cause()).unwrap()).unwrap();
        let old = sealed(b"run:old");
        at.store.put(Table::Causes, b"run:old", old, NOW + KEPT, Expect::Any, NOW).await.unwrap();
        for (is_alone, known) in [(true, true), (false, false)] {
            let found = at.causes().of(AskedRun { is_alone, ..asked("old", None) }, None, NOW).await.unwrap().cause;
            assert_eq!(found.is_some(), known, "{is_alone}");
        }
    }

    #[tokio::test]
    async fn of_the_runs_within_it_is_told_which_somebody_made() {
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
        // The run itself is nobody's within.
        let known = at.causes().of(AskedRun { within: &["a"], ..asked("made", None) }, None, NOW).await.unwrap();
        assert_eq!((known.made, known.cause.is_some()), (None, true));
    }

    #[test]
    fn what_somebody_is_is_known_of_a_run_that_their_task_made() {
        let own = Some(Box::new(KnownAs { issuer: "corp".into(), subject: "7".into() }));
        for (of_subject, on_behalf_of, claims) in [
            (Kind::Human, own.clone(), 1),
            (Kind::Agent, own.clone(), 1),
            (Kind::Workload, own, 1),
            // What another's token says by that name is not kept.
            (Kind::Human, None, 0),
        ] {
            let (kind, subject_kind) = Principal::kinds(of_subject, true);
            let said = serde_json::json!({"kind": of_subject, "scope": "x"});
            let principal = Principal {
                kind,
                subject_kind,
                on_behalf_of,
                claims: Arc::new(said.as_object().unwrap().clone()),
                ..alice()
            };
            let kept = serde_json::to_vec(&Cause::new(&principal, None, Uuid::from_u128(1), NOW, &[])).unwrap();
            let again = serde_json::from_slice::<Cause>(&kept).unwrap().principal();
            assert_eq!((again.kind, again.kind_of_subject(), again.claims.len()), (kind, of_subject, claims));
            assert_ne!(again.kind, Kind::Human, "they do not act themselves");
        }
    }

    /// As kept by a version that had no `subject_kind`: the person became an agent, whom a deny of people missed.
    #[test]
    fn what_somebody_is_is_known_of_records_that_say_it_by_the_claim_of_our_token_alone() {
        let kept = |kind: &str, more: Value| -> Cause {
            let mut kept = serde_json::json!({
                "request": Uuid::nil(), "at": 0, "issuer": "doorward", "subject": "alice", "username": "alice", "kind": kind,
            });
            kept.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value(kept).unwrap()
        };
        let acted_for = |more: Value| {
            let mut acted_for = serde_json::json!({"actor": ["serviceaccount:ci:builder", null], "act": {"sub": "serviceaccount:ci:builder"}});
            acted_for.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            acted_for
        };
        let own = |claims: Value| {
            acted_for(serde_json::json!({"on_behalf_of": {"issuer": "corp", "sub": "7"}, "claims": claims}))
        };
        for (kind, more, of_subject) in [
            ("agent", own(serde_json::json!({"kind": "human"})), Some(Kind::Human)),
            ("agent", own(serde_json::json!({"kind": "agent"})), Some(Kind::Agent)),
            ("workload", own(serde_json::json!({"kind": "workload"})), Some(Kind::Workload)),
            ("agent", own(serde_json::json!({})), None),
            // Of another's token only the whole was kept, and what it says by that name means nothing.
            ("agent", acted_for(serde_json::json!({"claims": {"kind": "human"}})), None),
            ("workload", acted_for(serde_json::json!({})), Some(Kind::Workload)),
            ("human", serde_json::json!({}), Some(Kind::Human)),
            ("agent", serde_json::json!({}), Some(Kind::Agent)),
        ] {
            let cause = kept(kind, more.clone());
            assert_eq!(cause.lacks_actors(), of_subject.is_none(), "{kind} {more}");
            let Some(of_subject) = of_subject else { continue };
            let again = cause.principal();
            assert_eq!((again.kind.as_str(), again.kind_of_subject()), (kind, of_subject), "{kind} {more}");
        }
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
