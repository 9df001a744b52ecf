//! The end of tokens: watches TaskRuns, their pods and the PipelineRuns around them, and revokes what was given to them as soon as they have ended, however
//! they did. Whatever ended while nobody watched is found when the watch begins anew, since it tells of all that there are.
//!
//! What has not ended is kept in memory, so that an exchange finds it there. An object is taken
//! out before its tokens are ended: who has noted a token and still finds its run here can be sure that its end is to come.

mod ending;
mod follow;
mod left;
mod watching;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use kube::api::{ApiResource, DynamicObject, GroupVersionKind};

pub use self::follow::follow;
use super::objects::{Identity, Pod, Run};
use crate::{clock::Moment, lock::lock};

/// How long tasks still get tokens after their ends can no longer be seen, and how long what was told is believed while nothing
/// more is told. Tokens that they have end by themselves.
const BLIND: Duration = Duration::from_secs(10);

/// What the watches tell: whether the ends of runs are seen, and what has not ended. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Ends {
    watches: Arc<Mutex<HashMap<Watch, Watched>>>,
    /// The clusters that somebody [follows](follow).
    followed: Arc<Mutex<HashSet<String>>>,
}

/// One watch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Watch {
    cluster: Arc<str>,
    kind: Kind,
    /// `None`: all.
    namespace: Option<String>,
}

#[derive(Debug, Default)]
struct Watched {
    state: State,
    /// By uid.
    live: HashMap<String, Object>,
    /// How often it was lost.
    losses: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Object {
    Pod(Arc<Pod>),
    Run(Arc<Run>),
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// All that happened until then is told.
    ToldAt(Moment),
    /// Since then it tells nothing.
    LostAt(Moment),
    /// It has never told anything.
    #[default]
    Never,
}

/// What a token lives as long as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    TaskRun,
    Pod,
    PipelineRun,
}

impl Ends {
    /// Whether nobody follows a cluster yet, which is said once: whoever hears it does from then on.
    pub fn is_new(&self, cluster: &str) -> bool {
        lock(&self.followed).insert(cluster.to_owned())
    }

    /// Whether the end of what is of these kinds in this namespace would be seen.
    pub fn are_seen(&self, cluster: &str, namespace: &str, kinds: &[Kind], now: Moment) -> bool {
        let all = self.all();
        kinds.iter().all(|&kind| {
            all.iter().any(|(watch, watched)| {
                watch.covers(cluster, kind, namespace)
                    && match watched.state {
                        State::ToldAt(_) => true,
                        State::LostAt(at) => now.since(at) < BLIND,
                        State::Never => false,
                    }
            })
        })
    }

    /// An object that has not ended, as far as was told in the last moments. `None` if it has, or nothing was told.
    pub(super) fn find(&self, cluster: &str, kind: Kind, namespace: &str, uid: &str, now: Moment) -> Option<Object> {
        let all = self.all();
        let (_, watched) = all.iter().find(|(watch, _)| watch.covers(cluster, kind, namespace))?;
        // A connection that is cut without a word is one of which nothing is heard.
        let is_told = matches!(watched.state, State::ToldAt(at) if now.since(at) < BLIND);
        // An owner reference can name the uid of an object of another namespace.
        watched.live.get(uid).filter(|object| is_told && object.identity().namespace == namespace).cloned()
    }

    /// Whether every watch of a cluster tells.
    fn all_tell(&self, cluster: &str) -> bool {
        let all = self.all();
        let mut of_cluster = all.iter().filter(|(watch, _)| *watch.cluster == *cluster);
        of_cluster.all(|(_, watched)| matches!(watched.state, State::ToldAt(_)))
    }

    /// Those of a cluster in which all watches have just told of these.
    #[cfg(test)]
    pub(super) fn told(cluster: &str, objects: impl Iterator<Item = (Kind, serde_json::Value)>, now: Moment) -> Self {
        let ends = Self::default();
        for (kind, object) in objects {
            let watch = Watch { cluster: cluster.into(), kind, namespace: None };
            ends.set(&watch, State::ToldAt(now));
            ends.tell(&watch, &Object::read(kind, serde_json::from_value(object).unwrap()));
        }
        ends
    }

    /// Forgets the watches of a cluster but for these: with those that a reload took away nobody goes on.
    fn keep(&self, cluster: &str, watches: &[Watch]) {
        self.all().retain(|watch, _| *watch.cluster != *cluster || watches.contains(watch));
    }

    /// A watch that has still to tell what there is. One that told before is lost since then.
    fn begin(&self, watch: &Watch) {
        self.all().entry(watch.clone()).or_default();
    }

    /// Nothing is told any more.
    fn lose(&self, watch: &Watch, now: Moment) {
        self.set(watch, State::LostAt(now));
        if let Some(watched) = self.all().get_mut(watch) {
            watched.live.clear();
            watched.losses += 1;
        }
    }

    fn losses(&self, watch: &Watch) -> u64 {
        self.all().get(watch).map_or(0, |watched| watched.losses)
    }

    /// All that happened until then is told, if the watch was lost no more often than so when it said that.
    fn see(&self, watch: &Watch, losses: u64, at: Moment) {
        if let Some(watched) = self.all().get_mut(watch).filter(|watched| watched.losses == losses) {
            watched.state = State::ToldAt(at);
        }
    }

    fn set(&self, watch: &Watch, state: State) {
        let mut all = self.all();
        let watched = all.entry(watch.clone()).or_insert_with(|| Watched { state, ..Watched::default() });
        match (watched.state, state) {
            // It is lost since the first failure.
            (State::LostAt(_), State::LostAt(_)) | (State::Never, State::LostAt(_)) => {}
            _ => watched.state = state,
        }
    }

    /// Notes what a watch tells of an object.
    fn tell(&self, watch: &Watch, object: &Object) {
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

    /// Why it has no tokens any more; `None` while it may have.
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
    fn ends_are_seen_only_while_every_watch_goes_on() {
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let ends = Ends::default();
        let watch = |kind| Watch { cluster: "c".into(), kind, namespace: None };
        let (runs, pods) = (watch(Kind::TaskRun), watch(Kind::Pod));
        assert!(!ends.are_seen("c", "ci", &BOTH, clock.moment()), "nobody watches");
        ends.begin(&runs);
        ends.begin(&pods);
        ends.set(&runs, State::ToldAt(clock.moment()));
        ends.set(&pods, State::LostAt(clock.moment()));
        assert!(!ends.are_seen("c", "ci", &BOTH, clock.moment()), "one has never told anything");
        ends.set(&pods, State::ToldAt(clock.moment()));
        assert!(ends.are_seen("c", "ci", &BOTH, clock.moment()));
        assert!(!ends.are_seen("d", "ci", &BOTH, clock.moment()));
        ends.set(&pods, State::LostAt(clock.moment()));
        ends.begin(&pods);
        assert!(ends.are_seen("c", "ci", &BOTH, clock.moment()), "for a moment");
        clock.advance(Duration::from_secs(9));
        ends.set(&pods, State::LostAt(clock.moment()));
        clock.advance(Duration::from_secs(1));
        assert!(!ends.are_seen("c", "ci", &BOTH, clock.moment()), "each try does not begin the moment anew");
        ends.set(&pods, State::ToldAt(clock.moment()));
        assert!(ends.are_seen("c", "ci", &BOTH, clock.moment()));
    }

    /// Tasks got tokens whose end nobody would see, until the clock had caught up.
    #[test]
    fn ends_are_not_seen_for_longer_though_the_clock_is_set_back() {
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let ends = Ends::default();
        let watch = Watch { cluster: "c".into(), kind: Kind::Pod, namespace: None };
        let pod = json!({"metadata": {"name": "a", "namespace": "ci", "uid": "u"}, "status": {"phase": "Running"}});
        ends.set(&watch, State::ToldAt(clock.moment()));
        ends.tell(&watch, &Object::read(Kind::Pod, serde_json::from_value(pod).unwrap()));
        let is_known = || ends.find("c", Kind::Pod, "ci", "u", clock.moment()).is_some();
        let are_seen = || ends.are_seen("c", "ci", &[Kind::Pod], clock.moment());
        clock.set(Timestamp::from_secs(1_600_000_000));
        clock.advance(Duration::from_secs(9));
        assert!(is_known());
        clock.advance(Duration::from_secs(1));
        assert!(!is_known(), "nothing was heard for too long");
        ends.set(&watch, State::LostAt(clock.moment()));
        clock.set(Timestamp::from_secs(1_500_000_000));
        clock.advance(Duration::from_secs(9));
        assert!(are_seen(), "for a moment");
        clock.advance(Duration::from_secs(1));
        assert!(!are_seen());
    }

    /// A watch that is lost for good would have been asked in place of the one that tells.
    #[test]
    fn of_watches_that_a_reload_took_away_nothing_is_left() {
        let now = Clock::manual(Timestamp::from_secs(1_700_000_000)).moment();
        let ends = Ends::default();
        let watch = |cluster: &str, namespace: Option<&str>| Watch {
            cluster: cluster.into(),
            kind: Kind::Pod,
            namespace: namespace.map(Into::into),
        };
        let (all, one, other) = (watch("c", None), watch("c", Some("ci")), watch("d", None));
        for watch in [&all, &one, &other] {
            ends.set(watch, State::ToldAt(now));
        }
        ends.lose(&all, now);
        assert!(!ends.all_tell("c"));
        ends.keep("c", std::slice::from_ref(&one));
        assert!(ends.all_tell("c"));
        let seen = |cluster, namespace| ends.are_seen(cluster, namespace, &[Kind::Pod], now);
        assert_eq!([seen("c", "ci"), seen("c", "staging"), seen("d", "staging")], [true, false, true]);
    }

    #[test]
    fn a_cluster_is_new_once() {
        let ends = Ends::default();
        let same = ends.clone();
        assert_eq!([ends.is_new("c"), same.is_new("c"), same.is_new("d")], [true, false, true]);
    }

    #[test]
    fn ends_are_seen_only_where_somebody_watches() {
        let now = Clock::manual(Timestamp::from_secs(1_700_000_000)).moment();
        let ends = Ends::default();
        for kind in [Kind::TaskRun, Kind::Pod] {
            let watch = Watch { cluster: "c".into(), kind, namespace: Some("ci".to_owned()) };
            assert!(!ends.are_seen("c", "ci", &BOTH, now));
            ends.set(&watch, State::ToldAt(now));
        }
        assert!(ends.are_seen("c", "ci", &BOTH, now));
        assert!(!ends.are_seen("c", "staging", &BOTH, now));
    }

    #[test]
    fn what_has_not_ended_is_known_while_the_watch_tells() {
        let now = Clock::manual(Timestamp::from_secs(1_700_000_000)).moment();
        let ends = Ends::default();
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
        ends.tell(&pods, &pod("Running"));
        assert!(!is_known(), "the watch has not told all yet");
        ends.set(&pods, State::ToldAt(now));
        assert!(is_known());
        assert!(ends.find("c", Kind::Pod, "other", "u", now).is_none());
        assert!(ends.find("d", Kind::Pod, "ci", "u", now).is_none());
        assert!(ends.find("c", Kind::TaskRun, "ci", "u", now).is_none());
        assert!(ends.find("c", Kind::Pod, "ci", "u", now + BLIND).is_none(), "nothing was heard for too long");
        ends.set(&pods, State::LostAt(now));
        assert!(!is_known(), "it may have ended meanwhile");
        ends.set(&pods, State::ToldAt(now));
        ends.tell(&pods, &pod("Succeeded"));
        assert!(!is_known());
        let lose = |ends: &Ends, watch: &Watch| {
            ends.lose(watch, now);
            ends.set(watch, State::ToldAt(now));
        };
        for forget in [Ends::forget_all as fn(&Ends, &Watch), |ends, watch| ends.forget(watch, "u")] {
            ends.tell(&pods, &pod("Pending"));
            assert!(is_known());
            forget(&ends, &pods);
            assert!(!is_known());
        }
        ends.tell(&pods, &pod("Pending"));
        lose(&ends, &pods);
        assert!(!is_known(), "what was lost is told anew");
        ends.tell(&pods, &pod("Pending"));
        let losses = ends.losses(&pods);
        ends.lose(&pods, now);
        ends.tell(&pods, &pod("Pending"));
        ends.see(&pods, losses, now);
        assert!(!is_known(), "what it told before it was lost says nothing any more");
        ends.see(&pods, losses + 1, now);
        assert!(is_known());
        lose(&ends, &pods);

        // Where all namespaces are watched, an owner reference that names the uid of another's run leads nowhere.
        ends.set(&everywhere, State::ToldAt(now));
        ends.tell(&everywhere, &object(Kind::TaskRun, json!({})));
        let run = |namespace| ends.find("c", Kind::TaskRun, namespace, "u", now);
        assert!(run("ci").is_some());
        assert!(run("other").is_none());
    }
}
