//! The end of tokens: watches TaskRuns and their pods, and revokes what was given to them as soon as they have ended, however
//! they did. Whatever ended while nobody watched is found when the watch begins anew, since it tells of all that there are.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{LIFETIME, Tokens, bearer::Bearer};
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

/// Whether the ends of runs are seen, by cluster and watch. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Ends(Arc<Mutex<HashMap<Watch, State>>>);

/// One watch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Watch {
    cluster: Arc<str>,
    kind: Kind,
    /// `None`: all.
    namespace: Option<String>,
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
    /// Whether the end of a run of this cluster would be seen, by every watch.
    pub fn are_seen(&self, cluster: &str, now: Timestamp) -> bool {
        let states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut of_cluster = states.iter().filter(|(watch, _)| *watch.cluster == *cluster).peekable();
        of_cluster.peek().is_some()
            && of_cluster.all(|(_, state)| match state {
                State::Seen => true,
                State::LostAt(at) => now < *at + BLIND,
                State::Never => false,
            })
    }

    fn set(&self, watch: &Watch, state: State) {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let current = states.entry(watch.clone()).or_insert(state);
        match (*current, state) {
            // It is lost since the first failure.
            (State::LostAt(_), State::LostAt(_)) | (State::Never, State::LostAt(_)) => {}
            _ => *current = state,
        }
    }
}

impl Kind {
    fn resource(self) -> ApiResource {
        ApiResource::from_gvk(&match self {
            Self::TaskRun => GroupVersionKind::gvk("tekton.dev", "v1", "TaskRun"),
            Self::Pod => GroupVersionKind::gvk("", "v1", "Pod"),
        })
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::TaskRun => "TaskRun",
            Self::Pod => "Pod",
        }
    }

    /// Why an object of this kind has no tokens any more; `None` while it may have.
    fn ended(self, object: &DynamicObject) -> Option<&'static str> {
        if object.metadata.deletion_timestamp.is_some() {
            return Some("it is being deleted");
        }
        let at = |pointer: &str| object.data.pointer(pointer).and_then(Value::as_str);
        match self {
            Self::Pod => matches!(at("/status/phase"), Some("Succeeded" | "Failed")).then_some("it has ended"),
            Self::TaskRun => {
                let conditions = object.data.pointer("/status/conditions").and_then(Value::as_array);
                let is_done = conditions
                    .into_iter()
                    .flatten()
                    .any(|condition| condition["type"] == "Succeeded" && condition["status"] != "Unknown");
                if is_done || at("/status/completionTime").is_some() {
                    return Some("it has ended");
                }
                (at("/spec/status") == Some("TaskRunCancelled")).then_some("it was cancelled")
            }
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
        [Kind::TaskRun, Kind::Pod].map(|kind| Watch {
            cluster: Arc::clone(&cluster),
            kind,
            namespace: namespace.clone(),
        })
    });
    let watches = watches.map(|watch| {
        app.ends.set(&watch, State::Never);
        let resource = watch.kind.resource();
        let api: Api<DynamicObject> = match &watch.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let config = match watch.kind {
            Kind::TaskRun => watcher::Config::default(),
            // Tekton writes it on all that it makes.
            Kind::Pod => watcher::Config::default().labels("tekton.dev/taskRun"),
        };
        watcher(api, config).default_backoff().map(move |event| (watch.clone(), event)).boxed()
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

struct Follower {
    app: Arc<App>,
    health: ComponentHandle,
    /// What a watch has told since it began anew.
    present: HashMap<Watch, HashSet<String>>,
}

impl Follower {
    async fn take(&mut self, watch: Watch, event: watcher::Result<Event<DynamicObject>>) -> Result<(), EndsError> {
        match event {
            Ok(Event::Init) => _ = self.present.insert(watch, HashSet::new()),
            Ok(Event::InitApply(object)) => {
                let uid = object.metadata.uid.clone().unwrap_or_default();
                self.look(&watch, &object).await?;
                self.present.entry(watch).or_default().insert(uid);
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
                self.end(watch.kind, object.metadata.uid.as_deref().unwrap_or_default(), "it was deleted").await?;
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

    async fn look(&self, watch: &Watch, object: &DynamicObject) -> Result<(), EndsError> {
        match (watch.kind.ended(object), object.metadata.uid.as_deref()) {
            (Some(why), Some(uid)) => self.end(watch.kind, uid, why).await,
            _ => Ok(()),
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
        app.revocations.revoke(Target::Workload(uid), why, now + LIFETIME.1 + SKEW).await?;
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

    fn object(value: &Value) -> DynamicObject {
        let mut object = json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": "a"}});
        object.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_task_has_ended_however_it_did() {
        let condition = |status: &str| json!({"status": {"conditions": [{"type": "Succeeded", "status": status}]}});
        for (what, kind, value, ended) in [
            ("new", Kind::TaskRun, json!({}), false),
            ("running, or about to be tried again", Kind::TaskRun, condition("Unknown"), false),
            ("succeeded", Kind::TaskRun, condition("True"), true),
            ("failed, cancelled or timed out", Kind::TaskRun, condition("False"), true),
            (
                "another condition",
                Kind::TaskRun,
                json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
                false,
            ),
            ("complete", Kind::TaskRun, json!({"status": {"completionTime": "2026-01-01T00:00:00Z"}}), true),
            ("asked to end", Kind::TaskRun, json!({"spec": {"status": "TaskRunCancelled"}}), true),
            (
                "being deleted",
                Kind::TaskRun,
                json!({"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}}),
                true,
            ),
            ("pod runs", Kind::Pod, json!({"status": {"phase": "Running"}}), false),
            ("pod waits", Kind::Pod, json!({"status": {"phase": "Pending"}}), false),
            ("pod succeeded", Kind::Pod, json!({"status": {"phase": "Succeeded"}}), true),
            ("pod failed", Kind::Pod, json!({"status": {"phase": "Failed"}}), true),
        ] {
            assert_eq!(kind.ended(&object(&value)).is_some(), ended, "{what}");
        }
    }

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
}
