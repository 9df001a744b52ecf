//! The watches of one cluster, and what is done when something has ended.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream, stream::BoxStream};
use kube::{
    Api, Client,
    api::DynamicObject,
    runtime::watcher::{self, Event, watcher},
};
use tokio_util::sync::CancellationToken;

use super::{Ends, Kind, Object, State, Watch};
use crate::{
    admin::health::{ComponentHandle, Gate},
    app::App,
    audit::{AuditUnavailable, Note, TokensEnded},
    clock::Clock,
    config::raw,
    runs::root_cause,
    store::{StoreError, Table, Target},
    sts::{LIFETIME, Tokens, bearer::Bearer},
};

/// Room for clocks that differ.
const SKEW: Duration = Duration::from_secs(120);

/// Records that are read at once.
const PAGE: usize = 1000;

/// How long a watch waits before it begins anew, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));

/// Why the watch begins anew.
#[derive(Debug, thiserror::Error)]
pub enum EndsError {
    #[error("runs that have tokens cannot be looked up: {0}")]
    Store(#[from] StoreError),
    #[error("the end of tokens cannot be written into the audit trail: {0}")]
    Trail(#[from] AuditUnavailable),
    #[error("whether a run that has tokens is still there cannot be asked: {0}")]
    Cluster(#[from] kube::Error),
    #[error("the watch has ended")]
    Ended,
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
    let watching = Watching { ends: app.ends.clone(), clock: app.clock.clone(), watches: watches.collect() };
    let streams = watching.watches.iter().cloned().map(|watch| {
        app.ends.set(&watch, State::Never);
        events(api(&client, watch.kind, watch.namespace.as_deref()), watch.kind)
            .map(move |event| (watch.clone(), event))
            .boxed()
    });
    let mut events = stream::select_all(streams.collect::<Vec<_>>());
    let mut follower = Follower { app, client, health, present: HashMap::new() };
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = stop.cancelled() => return Ok(()),
        };
        let Some((watch, event)) = event else { return Err(EndsError::Ended) };
        follower.take(watch, event).await?;
    }
}

/// Watches that tell nothing any more once their follower has ended, whichever way it did.
struct Watching {
    ends: Ends,
    clock: Clock,
    watches: Vec<Watch>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        for watch in &self.watches {
            self.ends.lose(watch, self.clock.now());
        }
    }
}

fn api(client: &Client, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
    let resource = kind.resource();
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// What a watch tells. After an error it begins anew with all that there is: one that merely goes on would say nothing until
/// something happens, and so not that it is heard again.
fn events(api: Api<DynamicObject>, kind: Kind) -> BoxStream<'static, watcher::Result<Event<Object>>> {
    let config = match kind {
        // Tekton writes it on all that it makes.
        Kind::Pod => watcher::Config::default().labels("tekton.dev/taskRun"),
        Kind::TaskRun | Kind::PipelineRun => watcher::Config::default(),
    };
    let begin = move || watcher(api.clone(), config.clone()).boxed();
    stream::unfold((begin(), Duration::ZERO, RETRY.0), move |(mut events, wait, next)| {
        let begin = begin.clone();
        async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let event = events.next().await?;
            let state = match &event {
                Err(_) => (begin(), next, (next * 2).min(RETRY.1)),
                Ok(Event::InitDone) => (events, Duration::ZERO, RETRY.0),
                Ok(_) => (events, Duration::ZERO, next),
            };
            let read = |object| Object::read(kind, object);
            let event = event.map(|event| match event {
                Event::Init => Event::Init,
                Event::InitApply(object) => Event::InitApply(read(object)),
                Event::InitDone => Event::InitDone,
                Event::Apply(object) => Event::Apply(read(object)),
                Event::Delete(object) => Event::Delete(read(object)),
            });
            Some((event, state))
        }
    })
    .boxed()
}

struct Follower {
    app: Arc<App>,
    client: Client,
    health: ComponentHandle,
    /// What a watch has told since it began anew: by uid, and why it has ended if it has.
    present: HashMap<Watch, HashMap<String, Option<&'static str>>>,
}

impl Follower {
    async fn take(&mut self, watch: Watch, event: watcher::Result<Event<Object>>) -> Result<(), EndsError> {
        match event {
            Ok(Event::Init) => {
                self.app.ends.forget_all(&watch);
                self.present.insert(watch, HashMap::new());
            }
            Ok(Event::InitApply(object)) => {
                self.app.ends.tell(&watch, &object);
                self.present.entry(watch).or_default().insert(object.identity().uid.clone(), object.end());
            }
            Ok(Event::InitDone) => {
                let present = self.present.remove(&watch).unwrap_or_default();
                self.end_of(&watch, &present).await?;
                self.seen(&watch);
            }
            Ok(Event::Apply(object)) => {
                self.app.ends.tell(&watch, &object);
                if let Some(why) = object.end() {
                    self.end(watch.kind, &object.identity().uid, why).await?;
                }
                self.seen(&watch);
            }
            Ok(Event::Delete(object)) => {
                let uid = &object.identity().uid;
                self.app.ends.forget(&watch, uid);
                self.end(watch.kind, uid, "it was deleted").await?;
                self.seen(&watch);
            }
            Err(error) => self.lost(&watch, &error),
        }
        Ok(())
    }

    fn seen(&self, watch: &Watch) {
        let now = self.app.clock.now();
        self.app.ends.set(watch, State::ToldAt(now));
        if self.app.ends.all_tell(&watch.cluster) {
            self.health.ok();
        }
    }

    fn lost(&self, watch: &Watch, error: &watcher::Error) {
        self.app.ends.lose(watch, self.app.clock.now());
        let why = format!("{} cannot be watched: {}", watch.kind.name(), root_cause(error));
        let cluster = &*watch.cluster;
        match watch.kind {
            Kind::PipelineRun => {
                tracing::warn!(
                    why,
                    cluster,
                    "each exchange asks the API server for its run; the credential of the upstream must be allowed to list and watch \
                     pipelineruns"
                );
                self.health.degraded(why);
            }
            Kind::TaskRun | Kind::Pod => {
                tracing::warn!(
                    why,
                    cluster,
                    "the ends of runs are not seen, so tasks get no tokens; the credential of the upstream must be allowed to list \
                     and watch taskruns and pods"
                );
                self.health.failed(why);
            }
        }
    }

    /// Ends the tokens of what has tokens and has ended, or is not there any more, by all that a watch has told.
    async fn end_of(&self, watch: &Watch, present: &HashMap<String, Option<&'static str>>) -> Result<(), EndsError> {
        let mut after = 0;
        loop {
            let now = self.app.clock.now();
            let page = self.app.store().changes(Table::Tokens, after, PAGE, now).await?;
            let (full, last) = (page.len() == PAGE, page.last().map(|change| change.stored.version));
            for change in page {
                let Ok(bearer) = serde_json::from_slice::<Bearer>(&change.stored.value) else { continue };
                let Ok(uid) = std::str::from_utf8(&change.key) else { continue };
                let of_watch = bearer.kind == watch.kind
                    && bearer.cluster == watch.cluster
                    && watch.namespace.as_ref().is_none_or(|namespace| *namespace == bearer.namespace);
                match present.get(uid) {
                    _ if !of_watch => {}
                    Some(None) => {}
                    Some(Some(why)) => self.end(watch.kind, uid, why).await?,
                    // It may have begun since the list was made.
                    None => {
                        if !self.is_there(&bearer, uid).await? {
                            self.end(watch.kind, uid, "it was deleted").await?;
                        }
                    }
                }
            }
            match last.filter(|_| full) {
                Some(last) => after = last,
                None => return Ok(()),
            }
        }
    }

    async fn is_there(&self, bearer: &Bearer, uid: &str) -> Result<bool, EndsError> {
        if self.app.revocations.workload(uid).is_some() {
            return Ok(false);
        }
        let found = api(&self.client, bearer.kind, Some(&bearer.namespace)).get_opt(&bearer.name).await?;
        let found = found.map(|object| Object::read(bearer.kind, object));
        Ok(found.is_some_and(|object| object.identity().uid == uid && object.end().is_none()))
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
