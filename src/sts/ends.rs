//! The end of tokens: watches TaskRuns and their pods, and revokes what was given to them as soon as they have ended, however
//! they did. Whatever ended while nobody watched is found when the watch begins anew, since it tells of all that there are.
//!
//! What has not ended is kept in memory, with the PipelineRuns around it, so that an exchange finds it there. An object is taken
//! out before its tokens are ended: who has noted a token and still finds its run here can be sure that its end is to come.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use kube::{
    Api, Client, Resource,
    api::{ApiResource, GroupVersionKind},
    core::DynamicResourceScope,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::{
    LIFETIME, Tokens,
    bearer::Bearer,
    objects::{Identity, Pod, RawPod, RawRun, Run},
};
use crate::{
    admin::health::{ComponentHandle, Gate},
    app::App,
    audit::{AuditUnavailable, Note, TokensEnded},
    clock::Timestamp,
    config::raw,
    store::{StoreError, Table, Target},
};

/// How long tasks still get tokens after their ends can no longer be seen. Those that they have end by themselves.
const BLIND: Duration = Duration::from_secs(10);

/// Room for clocks that differ.
const SKEW: Duration = Duration::from_secs(120);

/// Records that are read at once.
const PAGE: usize = 1000;

/// What the watches tell: whether the ends of runs are seen, and what has not ended. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Ends(Arc<Mutex<HashMap<Watch, Watched>>>);

/// One watch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Watch {
    cluster: Arc<str>,
    kind: Kind,
    /// `None`: all.
    namespace: Option<String>,
}

#[derive(Debug)]
struct Watched {
    state: State,
    /// By uid.
    live: HashMap<String, Object>,
}

#[derive(Clone, Debug)]
enum Object {
    Pod(Arc<Pod>),
    Run(Arc<Run>),
}

#[derive(Clone, Copy, Debug)]
enum State {
    Seen,
    LostAt(Timestamp),
    /// It has never told anything.
    Never,
}

/// What a token lives as long as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    TaskRun,
    Pod,
    /// Has no tokens itself, but tells of which run a task is.
    PipelineRun,
}

/// Why the watch begins anew.
#[derive(Debug, thiserror::Error)]
pub enum EndsError {
    #[error("runs that have tokens cannot be looked up: {0}")]
    Store(#[from] StoreError),
    #[error("the end of tokens cannot be written into the audit trail: {0}")]
    Trail(#[from] AuditUnavailable),
    #[error("the watch has ended")]
    Ended,
}

impl Ends {
    /// Whether the end of a task of this cluster would be seen, by every watch.
    pub fn are_seen(&self, cluster: &str, now: Timestamp) -> bool {
        let all = self.all();
        let mut of_tasks =
            all.iter().filter(|(watch, _)| *watch.cluster == *cluster && watch.kind != Kind::PipelineRun).peekable();
        of_tasks.peek().is_some()
            && of_tasks.all(|(_, watched)| match watched.state {
                State::Seen => true,
                State::LostAt(at) => now < at + BLIND,
                State::Never => false,
            })
    }

    /// A pod that has not ended. `None` if it has, or the watch does not tell at the moment.
    pub(super) fn pod(&self, cluster: &str, namespace: &str, uid: &str) -> Option<Arc<Pod>> {
        match self.find(cluster, Kind::Pod, namespace, uid)? {
            Object::Pod(pod) => Some(pod),
            Object::Run(_) => None,
        }
    }

    /// As [`Self::pod`], of a TaskRun or a PipelineRun.
    pub(super) fn run(&self, cluster: &str, kind: Kind, namespace: &str, uid: &str) -> Option<Arc<Run>> {
        match self.find(cluster, kind, namespace, uid)? {
            Object::Run(run) => Some(run),
            Object::Pod(_) => None,
        }
    }

    fn find(&self, cluster: &str, kind: Kind, namespace: &str, uid: &str) -> Option<Object> {
        let all = self.all();
        let (_, watched) = all.iter().find(|(watch, _)| {
            *watch.cluster == *cluster
                && watch.kind == kind
                && watch.namespace.as_ref().is_none_or(|watched| watched == namespace)
        })?;
        watched.live.get(uid).filter(|_| matches!(watched.state, State::Seen)).cloned()
    }

    fn set(&self, watch: &Watch, state: State) {
        let mut all = self.all();
        let watched = all.entry(watch.clone()).or_insert_with(|| Watched { state, live: HashMap::new() });
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Object {
    fn identity(&self) -> &Identity {
        match self {
            Self::Pod(pod) => &pod.identity,
            Self::Run(run) => &run.identity,
        }
    }

    /// Why it has no tokens any more; `None` while it may have.
    fn end(&self) -> Option<&'static str> {
        match self {
            Self::Pod(pod) => pod.end,
            Self::Run(run) => run.end,
        }
    }
}

impl From<RawPod> for Object {
    fn from(raw: RawPod) -> Self {
        Self::Pod(Arc::new(raw.into()))
    }
}

impl From<RawRun> for Object {
    fn from(raw: RawRun) -> Self {
        Self::Run(Arc::new(raw.into()))
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

/// Watches the runs of one cluster until `stop`.
pub async fn follow(
    app: Arc<App>,
    client: Client,
    exchanged: raw::Exchanged,
    stop: CancellationToken,
) -> Result<(), EndsError> {
    let cluster: Arc<str> = exchanged.issuer.as_str().into();
    let health = app.health.component(format!("ends/{cluster}"), Gate::Report);
    let namespaces: Vec<Option<String>> = match exchanged.namespaces.as_slice() {
        [] => vec![None],
        listed => listed.iter().cloned().map(Some).collect(),
    };
    let watches = namespaces.iter().flat_map(|namespace| {
        [Kind::TaskRun, Kind::Pod, Kind::PipelineRun].map(|kind| Watch {
            cluster: Arc::clone(&cluster),
            kind,
            namespace: namespace.clone(),
        })
    });
    let watches = watches.map(|watch| {
        app.ends.set(&watch, State::Never);
        let events = match watch.kind {
            // Tekton writes it on all that it makes.
            Kind::Pod => events::<RawPod>(&client, &watch, watcher::Config::default().labels("tekton.dev/taskRun")),
            Kind::TaskRun | Kind::PipelineRun => events::<RawRun>(&client, &watch, watcher::Config::default()),
        };
        events.map(move |event| (watch.clone(), event)).boxed()
    });
    let mut events = stream::select_all(watches.collect::<Vec<_>>());
    let mut follower = Follower { app, health, present: HashMap::new() };
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = stop.cancelled() => return Ok(()),
        };
        let Some((watch, event)) = event else { return Err(EndsError::Ended) };
        follower.take(watch, event).await?;
    }
}

/// What a watch tells.
fn events<K>(
    client: &Client,
    watch: &Watch,
    config: watcher::Config,
) -> BoxStream<'static, watcher::Result<Event<Object>>>
where
    K: Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Into<Object>
        + Send
        + 'static,
{
    let resource = watch.kind.resource();
    let api: Api<K> = match &watch.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let events = watcher(api, config).default_backoff();
    events
        .map_ok(|event| match event {
            Event::Init => Event::Init,
            Event::InitApply(object) => Event::InitApply(object.into()),
            Event::InitDone => Event::InitDone,
            Event::Apply(object) => Event::Apply(object.into()),
            Event::Delete(object) => Event::Delete(object.into()),
        })
        .boxed()
}

struct Follower {
    app: Arc<App>,
    health: ComponentHandle,
    /// What a watch has told since it began anew.
    present: HashMap<Watch, HashSet<String>>,
}

impl Follower {
    async fn take(&mut self, watch: Watch, event: watcher::Result<Event<Object>>) -> Result<(), EndsError> {
        match event {
            Ok(Event::Init) => {
                self.app.ends.forget_all(&watch);
                self.present.insert(watch, HashSet::new());
            }
            Ok(Event::InitApply(object)) => {
                self.look(&watch, &object).await?;
                self.present.entry(watch).or_default().insert(object.identity().uid.clone());
            }
            Ok(Event::InitDone) => {
                let present = self.present.remove(&watch).unwrap_or_default();
                self.end_absent(&watch, &present).await?;
                self.seen(&watch);
            }
            Ok(Event::Apply(object)) => {
                self.look(&watch, &object).await?;
                self.seen(&watch);
            }
            Ok(Event::Delete(object)) => {
                let uid = &object.identity().uid;
                self.app.ends.forget(&watch, uid);
                self.end(watch.kind, uid, "it was deleted").await?;
                self.seen(&watch);
            }
            Err(error) => {
                let why = format!("{} cannot be watched: {}", watch.kind.name(), crate::runs::root_cause(&error));
                tracing::warn!(
                    why,
                    cluster = &*watch.cluster,
                    "the ends of runs are not seen, so tasks get no tokens; the credential of the upstream must be allowed to list \
                     and watch taskruns and pods"
                );
                self.app.ends.set(&watch, State::LostAt(self.app.clock.now()));
                self.health.failed(why);
            }
        }
        Ok(())
    }

    fn seen(&self, watch: &Watch) {
        self.app.ends.set(watch, State::Seen);
        if self.app.ends.are_seen(&watch.cluster, self.app.clock.now()) {
            self.health.ok();
        }
    }

    async fn look(&self, watch: &Watch, object: &Object) -> Result<(), EndsError> {
        self.app.ends.tell(watch, object);
        match object.end() {
            Some(why) => self.end(watch.kind, &object.identity().uid, why).await,
            None => Ok(()),
        }
    }

    /// Ends the tokens of what has tokens and is not there any more.
    async fn end_absent(&self, watch: &Watch, present: &HashSet<String>) -> Result<(), EndsError> {
        let mut after = 0;
        loop {
            let now = self.app.clock.now();
            let page = self.app.store().changes(Table::Tokens, after, PAGE, now).await?;
            let (full, last) = (page.len() == PAGE, page.last().map(|change| change.stored.version));
            for change in page {
                let Ok(bearer) = serde_json::from_slice::<Bearer>(&change.stored.value) else { continue };
                let of_watch = bearer.kind == watch.kind
                    && bearer.cluster == watch.cluster
                    && watch.namespace.as_ref().is_none_or(|namespace| *namespace == bearer.namespace);
                if let Ok(uid) = std::str::from_utf8(&change.key)
                    && of_watch
                    && !present.contains(uid)
                {
                    self.end(watch.kind, uid, "it was deleted").await?;
                }
            }
            match last.filter(|_| full) {
                Some(last) => after = last,
                None => return Ok(()),
            }
        }
    }

    /// Revokes the tokens of an object, if it has any.
    async fn end(&self, kind: Kind, uid: &str, why: &'static str) -> Result<(), EndsError> {
        if kind == Kind::PipelineRun {
            return Ok(());
        }
        let ended = self.end_own(kind, uid, why).await;
        // After the revocation: a call that is under way looks for that once its token is held.
        let keys = self.app.snapshot.load().tokens.as_ref().and_then(Tokens::keys);
        self.app.onward.end(uid, keys.as_ref());
        ended
    }

    async fn end_own(&self, kind: Kind, uid: &str, why: &'static str) -> Result<(), EndsError> {
        let app = &self.app;
        let now = app.clock.now();
        if app.revocations.workload(uid).is_some() {
            return Ok(());
        }
        let Some(stored) = app.store().get(Table::Tokens, uid.as_bytes(), now).await? else { return Ok(()) };
        // As long as there is a record to find, so that it is ended once.
        let until = stored.expires.max(now + LIFETIME.1 + SKEW);
        app.revocations.revoke(Target::Workload(uid), why, until).await?;
        let streams = app.close_revoked_streams();
        let bearer = serde_json::from_slice::<Bearer>(&stored.value).ok();
        let (namespace, name) = bearer.map(|bearer| (bearer.namespace, bearer.name)).unwrap_or_default();
        tracing::info!(kind = kind.name(), namespace, name, why, streams, "tokens have ended");
        let ended = TokensEnded { kind: kind.name(), namespace, name, uid: uid.to_owned(), why };
        app.trail.note_durable(Note::TokensEnded(ended)).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn ends_are_seen_only_while_every_watch_goes_on() {
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let ends = Ends::default();
        let watch = |kind| Watch { cluster: "c".into(), kind, namespace: None };
        let (runs, pods) = (watch(Kind::TaskRun), watch(Kind::Pod));
        assert!(!ends.are_seen("c", clock.now()), "nobody watches");
        ends.set(&runs, State::Never);
        ends.set(&pods, State::Never);
        ends.set(&runs, State::Seen);
        ends.set(&pods, State::LostAt(clock.now()));
        assert!(!ends.are_seen("c", clock.now()), "one has never told anything");
        ends.set(&pods, State::Seen);
        assert!(ends.are_seen("c", clock.now()));
        assert!(!ends.are_seen("d", clock.now()));
        ends.set(&pods, State::LostAt(clock.now()));
        assert!(ends.are_seen("c", clock.now()), "for a moment");
        clock.advance(Duration::from_secs(9));
        ends.set(&pods, State::LostAt(clock.now()));
        clock.advance(Duration::from_secs(1));
        assert!(!ends.are_seen("c", clock.now()), "each try does not begin the moment anew");
        ends.set(&pods, State::Seen);
        assert!(ends.are_seen("c", clock.now()));
    }

    #[test]
    fn what_has_not_ended_is_known_while_the_watch_tells() {
        let now = Timestamp::from_secs(1_700_000_000);
        let ends = Ends::default();
        let watch =
            |kind, namespace: Option<&str>| Watch { cluster: "c".into(), kind, namespace: namespace.map(Into::into) };
        let pods = watch(Kind::Pod, Some("ci"));
        let pod = |phase: &str| {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "uid": "u"}, "spec": {}, "status": {"phase": phase}});
            Object::from(serde_json::from_value::<RawPod>(pod).unwrap())
        };
        let is_known = || ends.pod("c", "ci", "u").is_some();
        ends.set(&pods, State::Never);
        ends.tell(&pods, &pod("Running"));
        assert!(!is_known(), "the watch has not told all yet");
        ends.set(&pods, State::Seen);
        assert!(is_known());
        assert!(ends.pod("c", "other", "u").is_none());
        assert!(ends.pod("d", "ci", "u").is_none());
        assert!(ends.run("c", Kind::TaskRun, "ci", "u").is_none());
        ends.set(&pods, State::LostAt(now));
        assert!(!is_known(), "it may have ended meanwhile");
        ends.set(&pods, State::Seen);
        ends.tell(&pods, &pod("Succeeded"));
        assert!(!is_known());
        for forget in [Ends::forget_all as fn(&Ends, &Watch), |ends, watch| ends.forget(watch, "u")] {
            ends.tell(&pods, &pod("Pending"));
            assert!(is_known());
            forget(&ends, &pods);
            assert!(!is_known());
        }
    }
}
