//! The configuration and the policy of each replica. Replicas publish them in the store, so that any of them can report
//! when one is in force everywhere.

mod namesake;

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;

use self::namesake::Namesakes;
pub use self::namesake::{Name, same_name};
use super::App;
use crate::{
    admin::{
        health::Gate,
        socket::{Command, CommandError},
    },
    clock::{Moment, Timestamp},
    config::values::Span,
    store::{Change, Expect, StoreError, Table},
};

/// How often a replica publishes its state, and how long that is valid.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(5);
const KEPT: Duration = Duration::from_secs(20);

/// How often the state of all replicas is checked, and for how long at most.
const LOOK: Duration = Duration::from_millis(500);
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// How long a required restart may take to begin, as an operator who orders one asks for the progress at once.
const BEGINS: Duration = Duration::from_secs(10);

/// The most problems of a configuration that are published, as the record is rewritten periodically.
const MAX_PROBLEMS: usize = 20;

/// More replicas than any deployment has.
const PAGE: usize = 1000;

/// The state that a replica publishes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replica {
    /// Its name in the audit trail.
    pub instance: Arc<str>,
    /// Its process. Nil in the record of an earlier version.
    #[serde(default)]
    pub process: Uuid,
    /// Whether it is alone with its name.
    #[serde(default)]
    pub name: Name,
    /// The digest of the policy that it decides by.
    pub policy: Arc<str>,
    /// The digest of the whole configuration that it has loaded ([`crate::config::Loaded::digest`]).
    pub configuration: Arc<str>,
    /// The changes of it that require a restart, as sentences.
    pub after_restart: Vec<String>,
    pub generation: u64,
    /// It is stopping. It does not know whether another replaces it.
    pub stopping: bool,
    /// Why it refused the last configuration that it saw; `None` if it did not.
    pub refused: Option<Refused>,
}

impl Replica {
    /// Whether its configuration or its policy has this digest.
    pub fn has(&self, digest: &str) -> bool {
        *self.policy == *digest || *self.configuration == *digest
    }

    /// Whether it has the configuration with this digest, except for changes that require a restart. A policy never
    /// requires one.
    fn has_in_part(&self, digest: &str) -> bool {
        *self.configuration == *digest && !self.after_restart.is_empty()
    }
}

/// A configuration that a replica refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// In milliseconds since the epoch.
    pub at: i64,
    pub problems: Vec<String>,
    /// Whether they are in the files, so that `doorward check` finds them too. Not published.
    #[serde(skip)]
    pub in_files: bool,
}

/// The outcome of the last configuration that was loaded.
#[derive(Debug)]
pub(super) struct Outcome(watch::Sender<Loads>);

/// What operators should know about a configuration that was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Applied {
    /// Its changes that require a restart.
    pub(super) after_restart: Vec<String>,
    pub(super) warnings: Vec<String>,
}

#[derive(Debug, Default)]
struct Loads {
    refused: Option<Refused>,
    /// The digest of the configuration that was loaded last, and what operators should know about it.
    taken: (Arc<str>, Applied),
    /// The numbers of the last load that began, and of the last one that ended.
    begun: u64,
    ended: u64,
    stopping: bool,
    namesakes: Namesakes,
}

impl Default for Outcome {
    fn default() -> Self {
        Self(watch::Sender::new(Loads::default()))
    }
}

impl Outcome {
    /// Notes that a configuration is being loaded.
    pub(super) fn begun(&self) {
        self.0.send_if_modified(|loads| {
            loads.begun += 1;
            false
        });
    }

    /// Notes that a configuration, given by its digest, is in force.
    pub(super) fn taken(&self, configuration: Arc<str>, applied: Applied) {
        self.end(Ok((configuration, applied)));
    }

    /// `in_files` as in [`Refused`].
    pub(super) fn refused(&self, at: Timestamp, problems: &[String], in_files: bool) {
        let mut published: Vec<String> = problems.iter().take(MAX_PROBLEMS).cloned().collect();
        if let Some(more) = problems.len().checked_sub(MAX_PROBLEMS).filter(|more| *more > 0) {
            published.push(format!("and {more} more; the log and the audit trail have all of them"));
        }
        self.end(Err(Refused { at: at.as_millis(), problems: published, in_files }));
    }

    /// Notes that this replica has begun to stop.
    pub(super) fn stopping(&self) {
        self.0.send_modify(|loads| loads.stopping = true);
    }

    /// Changes what is known of replicas with the same name. Nobody waits for that.
    fn with_namesakes(&self, change: impl FnOnce(&mut Namesakes)) {
        self.0.send_if_modified(|loads| {
            change(&mut loads.namesakes);
            false
        });
    }

    fn end(&self, outcome: Result<(Arc<str>, Applied), Refused>) {
        self.0.send_modify(|loads| {
            match outcome {
                Ok(taken) => (loads.taken, loads.refused) = (taken, None),
                Err(refused) => loads.refused = Some(refused),
            }
            loads.ended = loads.begun;
        });
    }

    /// Requests a load and waits until one that began afterwards has ended. Returns `None` if that takes longer than
    /// `patience`.
    pub(super) async fn of_next(&self, patience: Duration, ask: impl FnOnce()) -> Option<Result<Applied, Refused>> {
        let mut loads = self.0.subscribe();
        let before = loads.borrow().begun;
        ask();
        let ended = tokio::time::timeout(patience, loads.wait_for(|loads| loads.ended > before)).await;
        let loads = ended.ok()?.ok()?;
        Some(match &loads.refused {
            Some(refused) => Err(refused.clone()),
            None => Ok(loads.taken.1.clone()),
        })
    }
}

/// Publishes the state of this replica for the others, until it is dropped.
pub(super) async fn publish(app: &App) {
    let health = app.health.component("rollout", Gate::Report);
    let mut outcome = app.outcome.0.subscribe();
    loop {
        outcome.borrow_and_update();
        match publish_once(app).await {
            Ok(Name::Shared) => health.failed(same_name(app.trail.instance())),
            Ok(Name::Own | Name::Unsettled) => health.ok(),
            Err(error) => {
                health.failed(format!("the state of this replica cannot be published to the others: {error}"))
            }
        }
        tokio::select! {
            _ = outcome.changed() => {}
            () = tokio::time::sleep(PUBLISH_INTERVAL) => {}
        }
    }
}

/// Returns whether this replica is alone with its name.
async fn publish_once(app: &App) -> Result<Name, StoreError> {
    // First, as it then overwrites the record of another one with the same name.
    records(app).await?;
    let (own, now) = (own(app), app.clock.now());
    let value = serde_json::to_vec(&own).unwrap_or_default();
    app.store.put(Table::Replicas, own.instance.as_bytes(), value, now + KEPT, Expect::Any, now).await?;
    app.outcome.with_namesakes(Namesakes::published);
    Ok(own.name)
}

/// Reads the records of all replicas, if there can be others, and notes those of others with the name of this one.
async fn records(app: &App) -> Result<Vec<Change>, StoreError> {
    if !app.store.is_shared() {
        return Ok(Vec::new());
    }
    let page = app.store.changes(Table::Replicas, 0, PAGE, app.clock.now()).await?;
    app.outcome.with_namesakes(|namesakes| namesakes.look(&page, app.trail.instance(), app.clock.moment()));
    Ok(page)
}

fn own(app: &App) -> Replica {
    let (snapshot, loads) = (app.snapshot.load(), app.outcome.0.borrow());
    let (configuration, applied) = &loads.taken;
    Replica {
        instance: app.trail.instance().into(),
        process: loads.namesakes.process,
        name: loads.namesakes.name(app.clock.moment(), KEPT),
        policy: Arc::clone(snapshot.policy.digest()),
        configuration: Arc::clone(configuration),
        after_restart: applied.after_restart.clone(),
        generation: snapshot.number,
        stopping: loads.stopping,
        refused: loads.refused.clone(),
    }
}

/// Returns all live replicas, this one in its current state. Fails if the record of another cannot be read.
async fn replicas(app: &App) -> Result<Vec<Replica>, StoreError> {
    let page = records(app).await?;
    let own = own(app);
    let mut all = others(page, &own.instance, app.clock.now())?;
    all.push(own);
    all.sort_by(|one, other| one.instance.cmp(&other.instance));
    Ok(all)
}

/// Returns the live replicas in these records, except the one named `own`. One whose record cannot be read may have any
/// configuration, so it must not count as absent; it writes its record again with the next heartbeat.
fn others(page: Vec<Change>, own: &str, now: Timestamp) -> Result<Vec<Replica>, StoreError> {
    let mut others = Vec::new();
    for Change { key, stored, .. } in page {
        if key == own.as_bytes() {
            continue;
        }
        let stored = stored?;
        if stored.expires > now {
            let replica = serde_json::from_slice(&stored.value);
            let corrupt = |error: serde_json::Error| {
                StoreError::Corrupt(format!("the state of replica `{}`: {error}", key.escape_ascii()))
            };
            others.push(replica.map_err(corrupt)?);
        }
    }
    Ok(others)
}

/// Whether another replica decides by a policy. If that is unknown, it is assumed: work that depends on it waits for
/// the store anyway.
pub async fn is_in_force_elsewhere(app: &App, digest: &str) -> bool {
    another_decides_by(&replicas(app).await, app.trail.instance(), digest)
}

fn another_decides_by(replicas: &Result<Vec<Replica>, StoreError>, own: &str, digest: &str) -> bool {
    // One with a name of two may hide the other.
    let decides =
        |replica: &Replica| replica.name == Name::Shared || (*replica.instance != *own && *replica.policy == *digest);
    replicas.as_ref().map_or(true, |replicas| replicas.iter().any(decides))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    digest: String,
    timeout: Span,
}

/// Waits until every replica has the configuration or decides by the policy, one refuses a configuration, two have the
/// same name, all of them need a restart that nobody begins, or the time is over; returns the state of each replica.
pub(super) async fn status(app: &App, command: &Command) -> Result<Value, CommandError> {
    let Arguments { digest, timeout } = command.arguments()?;
    let until = app.clock.moment() + timeout.get().min(MAX_WAIT);
    // Without other replicas, the waiting command ends with the restart.
    let begins = if app.store.is_shared() { BEGINS } else { Duration::ZERO };
    let mut seen = Seen { begins, ..Seen::default() };
    loop {
        let replicas = match replicas(app).await {
            // A replica that is running writes its record again within seconds.
            Err(StoreError::Corrupt(_)) if app.clock.moment().is_before(until) => {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            found => found.map_err(|error| CommandError::store("the other replicas cannot be looked up", &error))?,
        };
        let state = State::of(&replicas, &digest, &mut seen);
        let now = app.clock.moment();
        if !seen.goes_on(state, now) || !now.is_before(until) {
            return Ok(json!({"state": state, "replicas": replicas}));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The progress of a configuration or a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    InForce,
    /// Every replica has it, and some changes require a restart.
    NeedsRestart,
    /// A replica has refused a configuration since the command began.
    Refused,
    /// Two replicas have the same name, and only one of them is seen.
    SameName,
    Waits,
}

/// The observations of replicas since the command began.
#[derive(Debug, Default)]
struct Seen {
    /// What each replica had refused when it was first seen, which may have been another policy. Refusals are compared
    /// with this and not by time, as each replica uses its own clock.
    refused: HashMap<Arc<str>, Option<Refused>>,
    /// Each replica, and whether its last configuration had changes that required a restart.
    known: HashMap<Arc<str>, bool>,
    /// Whether replicas are being restarted: one is stopping, or one that needed a restart now has everything while
    /// others still need theirs.
    restarts: bool,
    /// When only a restart was missing for the first time, and how long after that it may begin.
    lacking: Option<Moment>,
    begins: Duration,
}

impl Seen {
    /// Whether a replica has refused something since it was first seen.
    fn refuses_since(&mut self, replica: &Replica) -> bool {
        let before = self.refused.entry(Arc::clone(&replica.instance)).or_insert_with(|| replica.refused.clone());
        replica.refused.is_some() && replica.refused != *before
    }

    fn look_for_restarts(&mut self, replicas: &[Replica], digest: &str) {
        let stops = replicas.iter().any(|replica| replica.stopping);
        let in_part = replicas.iter().any(|replica| replica.has_in_part(digest));
        // A replica that had everything without a restart says nothing about the others.
        let was_restarted = |replica: &Replica| match self.known.get(&replica.instance) {
            Some(lacked) => *lacked,
            None => !self.known.is_empty(),
        };
        let whole = |replica: &Replica| replica.has(digest) && !replica.has_in_part(digest);
        let begun = replicas.iter().any(|replica| whole(replica) && was_restarted(replica));
        self.restarts |= stops || (in_part && begun);
        for replica in replicas {
            self.known.insert(Arc::clone(&replica.instance), !replica.after_restart.is_empty());
        }
    }

    /// Whether the state may still change by itself.
    fn goes_on(&mut self, state: State, now: Moment) -> bool {
        match state {
            State::InForce | State::Refused | State::SameName => false,
            State::Waits => true,
            State::NeedsRestart => self.restarts || now.since(*self.lacking.get_or_insert(now)) < self.begins,
        }
    }
}

impl State {
    fn of(replicas: &[Replica], digest: &str, seen: &mut Seen) -> Self {
        seen.look_for_restarts(replicas, digest);
        let is_behind = |replica: &Replica| !replica.has(digest);
        // For all of them, so that each is known from the first look on.
        let refuses = replicas.iter().filter(|replica| seen.refuses_since(replica)).any(is_behind);
        let all_have_it = !replicas.is_empty() && !replicas.iter().any(is_behind);
        let is_any = |name: Name| replicas.iter().any(|replica| replica.name == name);
        match () {
            () if is_any(Name::Shared) => Self::SameName,
            () if all_have_it && is_any(Name::Unsettled) => Self::Waits,
            () if all_have_it && replicas.iter().any(|replica| replica.has_in_part(digest)) => Self::NeedsRestart,
            () if all_have_it => Self::InForce,
            () if refuses => Self::Refused,
            () => Self::Waits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Clock, store::Stored};

    fn replica(instance: &str, policy: &str, configuration: &str) -> Replica {
        Replica {
            instance: instance.into(),
            process: Uuid::nil(),
            name: Name::Own,
            policy: policy.into(),
            configuration: configuration.into(),
            after_restart: Vec::new(),
            generation: 1,
            stopping: false,
            refused: None,
        }
    }

    /// The same with a refusal at this time, if any.
    fn with_refusal(replica: Replica, at: Option<i64>) -> Replica {
        Replica { refused: at.map(|at| Refused { at, problems: vec!["no".to_owned()], in_files: false }), ..replica }
    }

    /// The same if a restart is required.
    fn in_part(replica: Replica) -> Replica {
        Replica { after_restart: vec!["/workers stays 1".to_owned()], ..replica }
    }

    #[test]
    fn a_configuration_with_too_many_errors_is_reported_in_part() {
        let outcome = Outcome::default();
        for (found, told) in [(1, 1), (20, 20), (1000, 21)] {
            outcome.refused(Timestamp::from_secs(1), &vec!["wrong".to_owned(); found], true);
            let problems = outcome.0.borrow().refused.clone().unwrap().problems;
            assert_eq!(problems.len(), told);
            assert_eq!(problems.iter().any(|problem| problem.starts_with("and 980 more")), found == 1000);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_for_a_reload_is_answered_by_one_that_began_afterwards() {
        let (outcome, second) = (Outcome::default(), Duration::from_secs(1));
        outcome.begun();
        let load = async || {
            tokio::task::yield_now().await;
            // One that was in progress already.
            outcome.taken("one".into(), Applied::default());
            outcome.begun();
            outcome.refused(Timestamp::from_secs(1), &["wrong".to_owned()], true);
        };
        let (told, ()) = tokio::join!(outcome.of_next(second, || ()), load());
        assert_eq!(told, Some(Err(Refused { at: 1000, problems: vec!["wrong".to_owned()], in_files: true })));
        let list = |text: &str| vec![text.to_owned()];
        let applied = Applied { after_restart: list("/workers stays 1"), warnings: list("it is short") };
        let asked = || {
            outcome.begun();
            outcome.taken("two".into(), applied.clone());
        };
        assert_eq!(outcome.of_next(second, asked).await, Some(Ok(applied.clone())));
        assert_eq!(outcome.of_next(second, || ()).await, None, "nothing came");
    }

    #[test]
    fn a_policy_is_in_force_once_each_replica_has_it() {
        let all = Ok(vec![replica("own", "new", ""), replica("b", "old", "")]);
        assert!(another_decides_by(&all, "own", "old"));
        assert!(!another_decides_by(&all, "own", "new"), "it is this one that does");
        assert!(!another_decides_by(&all, "own", "older"));
        let old = |refused| with_refusal(replica("b", "old", ""), refused);
        let new = |refused| with_refusal(replica("a", "new", ""), refused);
        let other = with_refusal(replica("a", "old", ""), Some(1));
        for (looks, state) in [
            (vec![vec![]], State::Waits),
            (vec![vec![new(None)]], State::InForce),
            (vec![vec![new(None), old(None)]], State::Waits),
            // A refusal from before may have been of another policy, whatever its clock says.
            (vec![vec![new(None), old(Some(i64::MAX))]], State::Waits),
            (vec![vec![new(None), old(Some(99))], vec![new(None), old(Some(99))]], State::Waits),
            (vec![vec![new(None), old(Some(99))], vec![new(None), old(None)]], State::Waits),
            (vec![vec![new(None), old(None)], vec![new(None), old(Some(1))]], State::Refused),
            (vec![vec![new(None), old(Some(99))], vec![new(None), old(Some(98))]], State::Refused),
            // A replica that is first seen later than others.
            (vec![vec![new(None)], vec![new(None), old(Some(99))]], State::Waits),
            // It has the policy, whatever it refused afterwards.
            (vec![vec![new(None)], vec![new(Some(100))]], State::InForce),
            // It was seen from the first look on, whatever policy it has.
            (vec![vec![new(Some(1)), old(None)], vec![other, old(None)]], State::Waits),
        ] {
            let mut seen = Seen::default();
            let found = looks.iter().map(|replicas| State::of(replicas, "new", &mut seen)).last();
            assert_eq!(found, Some(state), "{looks:?}");
        }
    }

    /// Regression: it counted as absent, so a delivery that only its policy still allowed was parked, and a
    /// configuration that it did not have was reported as in force everywhere.
    #[test]
    fn a_replica_whose_record_cannot_be_read_may_have_any_policy() {
        let now = Timestamp::from_secs(1_700_000_000);
        let stored = |value: &str, expires| Ok(Stored { value: value.as_bytes().to_vec(), version: 1, expires });
        let torn = || Err(StoreError::Corrupt("torn".to_owned()));
        for (key, stored, is_unknown) in [
            ("b", torn(), true),
            ("b", stored("{}", now + KEPT), true),
            ("b", stored("{}", now), false),
            ("own", torn(), false),
        ] {
            let page = vec![Change { key: key.as_bytes().to_vec(), version: 1, stored }];
            let found = others(page, "own", now);
            assert_eq!(found.is_err(), is_unknown, "{key}: {found:?}");
            assert_eq!(another_decides_by(&found, "own", "old"), is_unknown, "{key}: {found:?}");
        }
    }

    /// Only rules and grants were published, so a new route or key was reported as in force everywhere before any
    /// replica had it.
    #[test]
    fn a_configuration_is_in_force_once_all_replicas_loaded_it_even_with_the_same_policy() {
        let old = |refused| with_refusal(replica("b", "policy", "old"), refused);
        let new = |instance| replica(instance, "policy", "new");
        for (asked, looks, state) in [
            ("new", vec![vec![new("a"), old(None)]], State::Waits),
            ("new", vec![vec![new("a"), old(None)], vec![new("a"), old(Some(1))]], State::Refused),
            ("new", vec![vec![new("a"), old(None)], vec![new("a"), new("b")]], State::InForce),
            ("policy", vec![vec![new("a"), old(Some(1))]], State::InForce),
        ] {
            let mut seen = Seen::default();
            let found = looks.iter().map(|replicas| State::of(replicas, asked, &mut seen)).last();
            assert_eq!(found, Some(state), "{asked}: {looks:?}");
        }
    }

    /// A listener kept serving the interceptor, although its new setting was reported as in force.
    #[test]
    fn with_settings_that_need_a_restart_only_the_policy_of_a_configuration_is_in_force() {
        let (whole, part) = (replica("a", "policy", "new"), in_part(replica("b", "policy", "new")));
        let old = in_part(replica("b", "policy", "old"));
        for (asked, replicas, state) in [
            ("new", vec![whole.clone(), part.clone()], State::NeedsRestart),
            ("new", vec![whole.clone(), old], State::Waits),
            ("policy", vec![whole, part.clone()], State::InForce),
        ] {
            assert_eq!(State::of(&replicas, asked, &mut Seen::default()), state, "{asked}: {replicas:?}");
        }
        let outcome = Outcome::default();
        let applied = Applied { after_restart: part.after_restart, ..Applied::default() };
        outcome.taken("new".into(), applied.clone());
        let taken: (Arc<str>, Applied) = ("new".into(), applied);
        assert_eq!(outcome.0.borrow().taken, taken);
    }

    /// The wait ended at once while pods were restarted, and named those that were gone.
    #[test]
    fn a_restart_in_progress_is_awaited_and_one_yet_to_begin_only_briefly() {
        let whole = |instance| replica(instance, "policy", "new");
        let part = |instance| in_part(whole(instance));
        let stops = |instance| Replica { stopping: true, ..part(instance) };
        let before = |instance| replica(instance, "policy", "old");
        let lacks = |instance| in_part(before(instance));
        let old = |instance| Replica { stopping: true, ..lacks(instance) };
        let both = || vec![part("a"), part("b")];
        let alone = || vec![part("a"), whole("b")];
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let begun = clock.moment();
        for (looks, expected) in [
            (vec![(0, both())], (State::NeedsRestart, true)),
            (vec![(0, both()), (9, both())], (State::NeedsRestart, true)),
            (vec![(0, both()), (10, both())], (State::NeedsRestart, false)),
            (vec![(0, both()), (10, vec![part("a"), stops("b")])], (State::NeedsRestart, true)),
            // It is gone, and its replacement is not there yet.
            (vec![(0, vec![part("a"), stops("b")]), (60, vec![part("a")])], (State::NeedsRestart, true)),
            (vec![(0, vec![part("a"), old("b")]), (60, vec![part("a")])], (State::NeedsRestart, true)),
            (vec![(0, both()), (60, vec![part("a"), whole("b")])], (State::NeedsRestart, true)),
            // A replacement of another replica.
            (vec![(0, both()), (60, vec![part("a"), whole("c")])], (State::NeedsRestart, true)),
            (vec![(0, both()), (60, vec![whole("a"), whole("b")])], (State::InForce, false)),
            // A replica that had restarted before the command, or for which nothing required a restart.
            (vec![(0, alone()), (10, alone())], (State::NeedsRestart, false)),
            (vec![(0, vec![part("a"), before("b")]), (1, alone()), (11, alone())], (State::NeedsRestart, false)),
            // A replica that reverted the change that required a restart.
            (
                vec![(0, vec![part("a"), lacks("b")]), (1, vec![part("a"), before("b")]), (2, alone()), (12, alone())],
                (State::NeedsRestart, false),
            ),
            (vec![(0, vec![whole("a"), old("b")])], (State::Waits, true)),
        ] {
            let mut seen = Seen { begins: Duration::from_secs(10), ..Seen::default() };
            let look = |(at, replicas): &(u64, Vec<Replica>)| {
                let state = State::of(replicas, "new", &mut seen);
                (state, seen.goes_on(state, begun + Duration::from_secs(*at)))
            };
            let found = looks.iter().map(look).last();
            assert_eq!(found, Some(expected), "{looks:?}");
        }
        let mut alone = Seen::default();
        let state = State::of(&[part("a")], "new", &mut alone);
        assert!(!alone.goes_on(state, begun), "whoever restarts it ends the wait with it");

        let mut seen = Seen { begins: Duration::from_secs(10), ..Seen::default() };
        assert!(seen.goes_on(State::NeedsRestart, begun));
        clock.set(Timestamp::from_secs(1_600_000_000));
        clock.advance(Duration::from_secs(10));
        assert!(!seen.goes_on(State::NeedsRestart, clock.moment()), "the clock was set back");

        let outcome = Outcome::default();
        assert!(!outcome.0.borrow().stopping);
        outcome.stopping();
        assert!(outcome.0.borrow().stopping);
    }
}
