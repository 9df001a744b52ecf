//! The end of tokens: watches TaskRuns, their pods and the PipelineRuns around them, and revokes their tokens as soon
//! as they have ended, for whatever reason. What ended while nobody watched is found when the watch starts again with a
//! list of everything.
//!
//! Objects that have not ended are cached in memory, where an exchange finds them. An object is removed before its
//! tokens are ended: an exchange that has recorded a token and still finds its run here can be sure that the end is yet
//! to come.

mod ending;
mod follow;
mod token_namespaces;
mod watches;
mod watching;

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use tokio::sync::watch::Sender;

pub use self::follow::follow;
use self::token_namespaces::TokenNamespaces;
use super::objects::{Identity, Pod, Run};
use crate::{clock::Moment, config::raw, lock::lock};

/// How long tasks still get tokens after their ends can no longer be seen, and how long the cache is trusted while the
/// watches are silent. Issued tokens end by themselves.
const MAX_UNOBSERVED: Duration = Duration::from_secs(10);

/// The state of the watches: whether the ends of runs are seen, and which objects have not ended. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct RunEnds {
    watches: Arc<Mutex<HashMap<Watch, Watched>>>,
    /// The number of turns of watches that have begun.
    turns: Arc<AtomicU64>,
    /// The clusters that are [followed](follow), and where their tasks get tokens.
    followed: Arc<Mutex<HashMap<Arc<str>, Sender<TokenNamespaces>>>>,
}

/// One watch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Watch {
    cluster: Arc<str>,
    kind: Kind,
    /// `None` for all.
    namespace: Option<String>,
}

#[derive(Debug, Default)]
struct Watched {
    state: State,
    /// By uid.
    live: HashMap<String, Object>,
    /// Begins with the watch, and again each time that it is lost. Turns are unique among all watches: a reload may
    /// remove a watch and bring it back while events of the first are still queued.
    turn: u64,
    /// Everything that happened until then was reported in this turn, and has been processed.
    done: Option<Moment>,
}

#[derive(Clone, Debug)]
pub(super) enum Object {
    Pod(Arc<Pod>),
    Run(Arc<Run>),
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// Everything that happened until then is reported.
    CurrentAt(Moment),
    /// Silent since then.
    LostAt(Moment),
    /// It has never reported anything.
    #[default]
    Never,
}

/// A kind of object with which tokens end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    TaskRun,
    Pod,
    PipelineRun,
}

impl RunEnds {
    /// Applies a configuration in force: followers of a cluster learn where its tasks get tokens now. Returns the
    /// clusters that nobody follows yet; the caller must start to follow them.
    pub fn configure(&self, root: &raw::Root) -> Vec<Arc<str>> {
        let mut followed = lock(&self.followed);
        let mut new = Vec::new();
        for exchanged in root.clusters() {
            let cluster: Arc<str> = exchanged.issuer.as_str().into();
            if let Entry::Vacant(place) = followed.entry(Arc::clone(&cluster)) {
                place.insert(Sender::default());
                new.push(cluster);
            }
        }
        for (cluster, namespaces) in &*followed {
            namespaces
                .send_if_modified(|namespaces| namespaces.change(root.clusters().find(|of| *of.issuer == **cluster)));
        }
        new
    }

    /// Where tasks of a followed cluster get tokens.
    fn token_namespaces(&self, cluster: &str) -> Sender<TokenNamespaces> {
        lock(&self.followed).get(cluster).cloned().unwrap_or_default()
    }

    /// Whether the end of objects of these kinds in this namespace would be seen.
    pub fn are_observed(&self, cluster: &str, namespace: &str, kinds: &[Kind], now: Moment) -> bool {
        let all = self.all();
        kinds.iter().all(|&kind| {
            all.iter().any(|(watch, watched)| {
                watch.covers(cluster, kind, namespace)
                    && match watched.state {
                        State::CurrentAt(_) => true,
                        State::LostAt(at) => now.since(at) < MAX_UNOBSERVED,
                        State::Never => false,
                    }
            })
        })
    }

    /// An object that has not ended, as recently reported. `None` if it has ended, or nothing was reported recently.
    pub(super) fn find(&self, cluster: &str, kind: Kind, namespace: &str, uid: &str, now: Moment) -> Option<Object> {
        let all = self.all();
        let (_, watched) = all.iter().find(|(watch, _)| watch.covers(cluster, kind, namespace))?;
        // A connection that was cut silently delivers nothing.
        let is_current = matches!(watched.state, State::CurrentAt(at) if now.since(at) < MAX_UNOBSERVED);
        // An owner reference can name the uid of an object in another namespace.
        watched.live.get(uid).filter(|object| is_current && object.identity().namespace == namespace).cloned()
    }

    /// Whether every watch of a cluster reports.
    fn all_current(&self, cluster: &str) -> bool {
        of_cluster(&mut self.all(), cluster).all(|watched| matches!(watched.state, State::CurrentAt(_)))
    }

    /// The state in which all watches of a cluster have just reported these objects.
    #[cfg(test)]
    pub(super) fn reported(
        cluster: &str,
        objects: impl Iterator<Item = (Kind, serde_json::Value)>,
        now: Moment,
    ) -> Self {
        let ends = Self::default();
        for (kind, object) in objects {
            let watch = Watch { cluster: cluster.into(), kind, namespace: None };
            ends.set(&watch, State::CurrentAt(now));
            ends.apply(&watch, &Object::read(kind, serde_json::from_value(object).unwrap()));
        }
        ends
    }

    /// Forgets all watches of a cluster but these: nobody continues those that a reload removed.
    fn keep(&self, cluster: &str, watches: &HashSet<Watch>) {
        self.all().retain(|watch, _| *watch.cluster != *cluster || watches.contains(watch));
    }

    /// Whether there is such a watch, in whatever state.
    fn has(&self, watch: &Watch) -> bool {
        self.all().contains_key(watch)
    }

    /// Adds a watch that has not reported anything yet. One that reported before stays lost since then.
    fn begin(&self, watch: &Watch) {
        let turn = self.next_turn();
        self.all().entry(watch.clone()).or_insert_with(|| Watched { turn, ..Watched::default() });
    }

    /// Marks a watch as lost, and drops its objects.
    fn mark_lost(&self, watch: &Watch, now: Moment) {
        let turn = self.next_turn();
        if let Some(watched) = self.all().get_mut(watch) {
            watched.lost(now);
            watched.live.clear();
            (watched.turn, watched.done) = (turn, None);
        }
    }

    /// Marks all watches of a cluster as lost, since what they report cannot be recorded any more.
    fn stall(&self, cluster: &str, now: Moment) {
        for watched in of_cluster(&mut self.all(), cluster) {
            watched.lost(now);
        }
    }

    /// Recording works again: the watches reported all the while, except for those that were lost meanwhile.
    fn resume(&self, cluster: &str) {
        for watched in of_cluster(&mut self.all(), cluster) {
            if let Some(at) = watched.done {
                watched.state = State::CurrentAt(at);
            }
        }
    }

    fn turn(&self, watch: &Watch) -> u64 {
        self.all().get(watch).map_or(0, |watched| watched.turn)
    }

    fn next_turn(&self) -> u64 {
        self.turns.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Notes that everything up to `at` is reported, if the watch is still in the turn in which it said so.
    fn mark_current(&self, watch: &Watch, turn: u64, at: Moment) {
        if let Some(watched) = self.all().get_mut(watch).filter(|watched| watched.turn == turn) {
            (watched.state, watched.done) = (State::CurrentAt(at), Some(at));
        }
    }

    #[cfg(test)]
    fn set(&self, watch: &Watch, state: State) {
        let mut all = self.all();
        let watched = all.entry(watch.clone()).or_insert_with(|| Watched { state, ..Watched::default() });
        match state {
            State::LostAt(at) => watched.lost(at),
            _ => watched.state = state,
        }
    }

    /// Notes what a watch reports about an object.
    fn apply(&self, watch: &Watch, object: &Object) {
        let mut all = self.all();
        let Some(watched) = all.get_mut(watch) else { return };
        match object.end() {
            None => _ = watched.live.insert(object.identity().uid.clone(), object.clone()),
            Some(_) => _ = watched.live.remove(&object.identity().uid),
        }
    }

    fn forget(&self, watch: &Watch, uid: &str) {
        if let Some(watched) = self.all().get_mut(watch) {
            watched.live.remove(uid);
        }
    }

    fn forget_all(&self, watch: &Watch) {
        if let Some(watched) = self.all().get_mut(watch) {
            watched.live.clear();
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Watch, Watched>> {
        lock(&self.watches)
    }
}

fn of_cluster<'a>(all: &'a mut HashMap<Watch, Watched>, cluster: &'a str) -> impl Iterator<Item = &'a mut Watched> {
    all.iter_mut().filter(move |(watch, _)| *watch.cluster == *cluster).map(|(_, watched)| watched)
}

impl Watched {
    fn lost(&mut self, at: Moment) {
        // Since the first failure, if it reported anything before.
        if matches!(self.state, State::CurrentAt(_)) {
            self.state = State::LostAt(at);
        }
    }
}

impl Watch {
    fn covers(&self, cluster: &str, kind: Kind, namespace: &str) -> bool {
        *self.cluster == *cluster
            && self.kind == kind
            && self.namespace.as_ref().is_none_or(|watched| watched == namespace)
    }
}

impl Object {
    pub(super) fn read(kind: Kind, object: DynamicObject) -> Self {
        match kind {
            Kind::Pod => Self::Pod(Arc::new(Pod::read(object))),
            Kind::TaskRun | Kind::PipelineRun => Self::Run(Arc::new(Run::read(kind, object))),
        }
    }

    pub(super) fn identity(&self) -> &Identity {
        match self {
            Self::Pod(pod) => &pod.identity,
            Self::Run(run) => &run.identity,
        }
    }

    /// Why it has no tokens any more; `None` while it may have some.
    pub(super) fn end(&self) -> Option<&'static str> {
        match self {
            Self::Pod(pod) => pod.end,
            Self::Run(run) => run.end,
        }
    }
}

impl Kind {
    pub(super) fn resource(self) -> ApiResource {
        ApiResource::from_gvk(&match self {
            Self::Pod => GroupVersionKind::gvk("", "v1", "Pod"),
            Self::TaskRun | Self::PipelineRun => GroupVersionKind::gvk("tekton.dev", "v1", self.name()),
        })
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::TaskRun => "TaskRun",
            Self::Pod => "Pod",
            Self::PipelineRun => "PipelineRun",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::clock::{Clock, Timestamp};

    const BOTH: [Kind; 2] = [Kind::TaskRun, Kind::Pod];

    #[test]
    fn ends_are_seen_only_while_every_watch_is_open() {
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let ends = RunEnds::default();
        let watch = |kind| Watch { cluster: "c".into(), kind, namespace: None };
        let (runs, pods) = (watch(Kind::TaskRun), watch(Kind::Pod));
        assert!(!ends.are_observed("c", "ci", &BOTH, clock.moment()), "nobody watches");
        ends.begin(&runs);
        ends.begin(&pods);
        ends.set(&runs, State::CurrentAt(clock.moment()));
        ends.set(&pods, State::LostAt(clock.moment()));
        assert!(!ends.are_observed("c", "ci", &BOTH, clock.moment()), "one has never told anything");
        ends.set(&pods, State::CurrentAt(clock.moment()));
        assert!(ends.are_observed("c", "ci", &BOTH, clock.moment()));
        assert!(!ends.are_observed("d", "ci", &BOTH, clock.moment()));
        ends.set(&pods, State::LostAt(clock.moment()));
        ends.begin(&pods);
        assert!(ends.are_observed("c", "ci", &BOTH, clock.moment()), "for a moment");
        clock.advance(Duration::from_secs(9));
        ends.set(&pods, State::LostAt(clock.moment()));
        clock.advance(Duration::from_secs(1));
        assert!(!ends.are_observed("c", "ci", &BOTH, clock.moment()), "each try does not begin the moment anew");
        ends.set(&pods, State::CurrentAt(clock.moment()));
        assert!(ends.are_observed("c", "ci", &BOTH, clock.moment()));
    }

    /// Tasks got tokens whose end nobody would see, until the clock had caught up.
    #[test]
    fn ends_are_not_seen_for_longer_even_if_the_clock_is_set_back() {
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let ends = RunEnds::default();
        let watch = Watch { cluster: "c".into(), kind: Kind::Pod, namespace: None };
        let pod = json!({"metadata": {"name": "a", "namespace": "ci", "uid": "u"}, "status": {"phase": "Running"}});
        ends.set(&watch, State::CurrentAt(clock.moment()));
        ends.apply(&watch, &Object::read(Kind::Pod, serde_json::from_value(pod).unwrap()));
        let is_known = || ends.find("c", Kind::Pod, "ci", "u", clock.moment()).is_some();
        let are_observed = || ends.are_observed("c", "ci", &[Kind::Pod], clock.moment());
        clock.set(Timestamp::from_secs(1_600_000_000));
        clock.advance(Duration::from_secs(9));
        assert!(is_known());
        clock.advance(Duration::from_secs(1));
        assert!(!is_known(), "nothing was heard for too long");
        ends.set(&watch, State::LostAt(clock.moment()));
        clock.set(Timestamp::from_secs(1_500_000_000));
        clock.advance(Duration::from_secs(9));
        assert!(are_observed(), "for a moment");
        clock.advance(Duration::from_secs(1));
        assert!(!are_observed());
    }

    /// A watch that is lost for good would have been queried in place of the one that reports.
    #[test]
    fn nothing_is_left_of_watches_that_a_reload_removed() {
        let now = Clock::manual(Timestamp::from_secs(1_700_000_000)).moment();
        let ends = RunEnds::default();
        let watch = |cluster: &str, namespace: Option<&str>| Watch {
            cluster: cluster.into(),
            kind: Kind::Pod,
            namespace: namespace.map(Into::into),
        };
        let (all, one, other) = (watch("c", None), watch("c", Some("ci")), watch("d", None));
        for watch in [&all, &one, &other] {
            ends.set(watch, State::CurrentAt(now));
        }
        ends.mark_lost(&all, now);
        assert!(!ends.all_current("c"));
        ends.keep("c", &HashSet::from([one.clone()]));
        assert!(ends.all_current("c"));
        let seen = |cluster, namespace| ends.are_observed(cluster, namespace, &[Kind::Pod], now);
        assert_eq!([seen("c", "ci"), seen("c", "staging"), seen("d", "staging")], [true, false, true]);
        assert!(ends.has(&one) && !ends.has(&all));

        // Queued work of a removed watch does not apply to one that a later reload begins.
        ends.begin(&all);
        let turn = ends.turn(&all);
        ends.keep("c", &HashSet::new());
        ends.begin(&all);
        ends.mark_current(&all, turn, now);
        assert!(!ends.all_current("c"));
        ends.mark_current(&all, ends.turn(&all), now);
        assert!(ends.all_current("c"));
    }

    /// A watch that was lost while the store was away is not among them.
    #[test]
    fn ends_seen_while_the_store_was_down_are_recorded_once_it_is_back() {
        let now = Clock::manual(Timestamp::from_secs(1_700_000_000)).moment();
        let ends = RunEnds::default();
        let watch = |cluster: &str, kind| Watch { cluster: cluster.into(), kind, namespace: None };
        let (runs, pods, other) = (watch("c", Kind::TaskRun), watch("c", Kind::Pod), watch("d", Kind::Pod));
        for watch in [&runs, &pods, &other] {
            ends.begin(watch);
            ends.mark_current(watch, ends.turn(watch), now);
        }
        let tells = |kind| ends.are_observed("c", "ci", &[kind], now + MAX_UNOBSERVED);
        ends.stall("c", now);
        assert_eq!([tells(Kind::TaskRun), tells(Kind::Pod), ends.all_current("d")], [false, false, true]);
        ends.mark_lost(&pods, now);
        ends.resume("c");
        assert_eq!([tells(Kind::TaskRun), tells(Kind::Pod)], [true, false]);
    }

    #[test]
    fn ends_are_seen_only_where_a_watch_is_open() {
        let now = Clock::manual(Timestamp::from_secs(1_700_000_000)).moment();
        let ends = RunEnds::default();
        for kind in [Kind::TaskRun, Kind::Pod] {
            let watch = Watch { cluster: "c".into(), kind, namespace: Some("ci".to_owned()) };
            assert!(!ends.are_observed("c", "ci", &BOTH, now));
            ends.set(&watch, State::CurrentAt(now));
        }
        assert!(ends.are_observed("c", "ci", &BOTH, now));
        assert!(!ends.are_observed("c", "staging", &BOTH, now));
    }

    #[test]
    fn what_has_not_ended_is_known_while_the_watch_tells() {
        let now = Clock::manual(Timestamp::from_secs(1_700_000_000)).moment();
        let ends = RunEnds::default();
        let watch =
            |kind, namespace: Option<&str>| Watch { cluster: "c".into(), kind, namespace: namespace.map(Into::into) };
        let (pods, everywhere) = (watch(Kind::Pod, Some("ci")), watch(Kind::TaskRun, None));
        let object = |kind, status: serde_json::Value| {
            let object = json!({"metadata": {"name": "a", "namespace": "ci", "uid": "u"}, "status": status});
            Object::read(kind, serde_json::from_value(object).unwrap())
        };
        let pod = |phase: &str| object(Kind::Pod, json!({"phase": phase}));
        let is_known = || ends.find("c", Kind::Pod, "ci", "u", now).is_some();
        ends.begin(&pods);
        ends.apply(&pods, &pod("Running"));
        assert!(!is_known(), "the watch has not told all yet");
        ends.set(&pods, State::CurrentAt(now));
        assert!(is_known());
        assert!(ends.find("c", Kind::Pod, "other", "u", now).is_none());
        assert!(ends.find("d", Kind::Pod, "ci", "u", now).is_none());
        assert!(ends.find("c", Kind::TaskRun, "ci", "u", now).is_none());
        assert!(ends.find("c", Kind::Pod, "ci", "u", now + MAX_UNOBSERVED).is_none(), "nothing was heard for too long");
        ends.set(&pods, State::LostAt(now));
        assert!(!is_known(), "it may have ended meanwhile");
        ends.set(&pods, State::CurrentAt(now));
        ends.apply(&pods, &pod("Succeeded"));
        assert!(!is_known());
        let lose = |ends: &RunEnds, watch: &Watch| {
            ends.mark_lost(watch, now);
            ends.set(watch, State::CurrentAt(now));
        };
        for forget in [RunEnds::forget_all as fn(&RunEnds, &Watch), |ends, watch| ends.forget(watch, "u")] {
            ends.apply(&pods, &pod("Pending"));
            assert!(is_known());
            forget(&ends, &pods);
            assert!(!is_known());
        }
        ends.apply(&pods, &pod("Pending"));
        lose(&ends, &pods);
        assert!(!is_known(), "what was lost is told anew");
        ends.apply(&pods, &pod("Pending"));
        let turn = ends.turn(&pods);
        ends.mark_lost(&pods, now);
        ends.apply(&pods, &pod("Pending"));
        ends.mark_current(&pods, turn, now);
        assert!(!is_known(), "what it told before it was lost says nothing any more");
        ends.mark_current(&pods, ends.turn(&pods), now);
        assert!(is_known());
        lose(&ends, &pods);

        // Where all namespaces are watched, an owner reference that names the uid of another's run leads nowhere.
        ends.set(&everywhere, State::CurrentAt(now));
        ends.apply(&everywhere, &object(Kind::TaskRun, json!({})));
        let run = |namespace| ends.find("c", Kind::TaskRun, namespace, "u", now);
        assert!(run("ci").is_some());
        assert!(run("other").is_none());
    }
}
