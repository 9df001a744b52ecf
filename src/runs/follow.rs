//! Watches runs, with the `kube` crate over Doorward's own connections and credential.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use http::{Request, Response};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    client::Body,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        utils::Backoff,
        watcher::{self, DefaultBackoff, Event, watcher},
    },
};
use tokio_util::sync::CancellationToken;
use tower::BoxError;

use super::{
    linked,
    trouble::{AnswerBody, is_of_credential, root_cause, telling},
};
use crate::{
    admin::health::{ComponentHandle, Gate},
    app::App,
    audit::{AuditUnavailable, Linked, Note},
    body::{RequestBody, collect},
    config::raw,
    lock::lock,
    rbac::PRINTS,
    snapshot::Snapshot,
    store::{Expect, Store, StoreError, Table},
    upstream::{Lane, Pools},
};

/// How long Doorward remembers that a run is in the trail. A run that still exists after that is written again.
const KEPT: Duration = Duration::from_secs(90 * 86_400);

/// The largest request body of a watch, which has none.
const MAX_REQUEST: usize = 1 << 10;

/// The longest pause before a failed watch is retried. While the API server starts, the pause of `kube` grows to half a
/// minute, which would pass once more after it is available again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

type Metadata = PartialObjectMeta<DynamicObject>;

/// The pauses between retries: those of `kube`, up to [`LONGEST_PAUSE`].
#[derive(Default)]
struct Pause(DefaultBackoff);

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|pause| pause.min(LONGEST_PAUSE))
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// Why the watch has to be restarted.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    #[error("new runs cannot be recorded in the store: {0}")]
    Store(#[from] StoreError),
    #[error("new runs cannot be written to the audit trail: {0}")]
    Trail(#[from] AuditUnavailable),
    #[error("the watch has ended")]
    Ended,
}

/// Watches runs until `stop`, and writes each that names its cause to the audit trail, including those that appeared
/// while nothing watched. At least once: a process that dies in between writes a run again.
pub async fn follow(app: Arc<App>, pools: Pools, runs: raw::Runs, stop: CancellationToken) -> Result<(), FollowError> {
    let namespaces: Vec<Option<&str>> = match runs.namespaces.as_slice() {
        [] => vec![None],
        listed => listed.iter().map(|namespace| Some(namespace.as_str())).collect(),
    };
    let watched: Vec<_> =
        namespaces.iter().flat_map(|namespace| ["PipelineRun", "TaskRun"].map(|kind| (*namespace, kind))).collect();
    let states = States::new(app.health.component("runs", Gate::Report), watched.len());
    let watches = watched.into_iter().enumerate().map(|(i, (namespace, kind))| {
        let opened = {
            let states = states.clone();
            move || states.opened(i)
        };
        let client =
            client(Arc::clone(&app), (pools.clone(), Lane::Long), |root| Some(&root.runs.as_ref()?.kubernetes), opened);
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("tekton.dev", "v1", kind));
        let api: Api<Metadata> = match namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        watcher(api, watcher::Config::default()).backoff(Pause::default()).map(move |event| (i, kind, event)).boxed()
    });
    let mut events = stream::select_all(watches);
    let mut seen = HashSet::new();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = stop.cancelled() => return Ok(()),
        };
        let Some((i, kind, event)) = event else { return Err(FollowError::Ended) };
        if matches!(event, Ok(Event::Apply(_) | Event::Delete(_))) {
            states.opened(i);
        }
        match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => {
                if let Some(run) = linked(kind, &object)
                    && !seen.contains(&run.uid)
                {
                    let uid = run.uid.clone();
                    note(&app, run).await?;
                    seen.insert(uid);
                }
            }
            Ok(Event::Delete(object)) => {
                seen.remove(object.metadata.uid.as_deref().unwrap_or_default());
            }
            // A list of all existing runs follows.
            Ok(Event::Init) => seen.clear(),
            // From here on, the watch reports all changes.
            Ok(Event::InitDone) => {}
            Err(error) => states.failed(i, &error),
        }
    }
}

/// Writes a run to the trail, unless it is there already.
async fn note(app: &App, run: Linked) -> Result<(), FollowError> {
    let now = app.clock.now();
    let (store, key): (&Store, _) = (app.store(), run.uid.clone().into_bytes());
    if store.get(Table::Runs, &key, now).await?.is_some() {
        return Ok(());
    }
    let cluster = cluster(&app.snapshot.load());
    app.trail.note_once(Note::Run(Linked { cluster, ..run })).await?;
    store.put(Table::Runs, &key, Vec::new(), now + KEPT, Expect::Any, now).await?;
    Ok(())
}

/// The cluster whose runs are watched, by its name in `tokens.exchange`. `None` if two issuers stand for it.
fn cluster(snapshot: &Snapshot) -> Option<Arc<str>> {
    let (runs, own_issuer) = (snapshot.raw.runs.as_ref()?, snapshot.own_issuer.as_ref()?);
    let upstreams = [runs.kubernetes.as_str()];
    let mut clusters = own_issuer.clusters_of_run(&upstreams);
    clusters.next().filter(|_| clusters.next().is_none()).cloned()
}

/// The state of each watch: one that works says nothing about the others. Clones share it.
#[derive(Clone, Debug)]
struct States {
    health: ComponentHandle,
    watches: Arc<Mutex<Vec<State>>>,
}

#[derive(Clone, Debug)]
enum State {
    Starting,
    Open,
    Failed(String),
}

impl States {
    fn new(health: ComponentHandle, watches: usize) -> Self {
        Self { health, watches: Arc::new(Mutex::new(vec![State::Starting; watches])) }
    }

    fn opened(&self, watch: usize) {
        self.set(watch, State::Open);
    }

    /// The watcher retries by itself. Having to list again (410) is part of a watch's normal operation and not a
    /// failure.
    fn failed(&self, watch: usize, error: &watcher::Error) {
        // Not for a watch that failed to start, which `kube` requests again instead of listing.
        if matches!(error, watcher::Error::WatchError(status) if status.code == 410) {
            tracing::debug!(error = root_cause(error), "listing runs again");
            return;
        }
        let why = format!("runs cannot be watched: {}", root_cause(error));
        match is_of_credential(error) {
            true => tracing::warn!(
                why,
                "runs are not linked to their causes at the moment; the credential of `runs.kubernetes` must be allowed to list and \
                 watch pipelineruns and taskruns ({PRINTS} the role)"
            ),
            false => tracing::warn!(why, "runs are not linked to their causes at the moment; will retry"),
        }
        self.set(watch, State::Failed(why));
    }

    fn set(&self, watch: usize, state: State) {
        let mut watches = lock(&self.watches);
        if let Some(known) = watches.get_mut(watch) {
            *known = state;
        }
        let failed = watches.iter().find_map(|state| if let State::Failed(why) = state { Some(why) } else { None });
        match failed {
            Some(why) => self.health.failed(why.clone()),
            None if watches.iter().all(|state| matches!(state, State::Open)) => self.health.ok(),
            None => {}
        }
    }
}

/// Creates a client for an API server that uses Doorward's own pools and the upstream of the current configuration,
/// whose name `named` returns; watches use `lane`. `opened` is called for each watch that is established. The watcher
/// does not report that: a watch that resumes where it was interrupted is silent until the next event, which may be
/// days away.
pub(crate) fn client(
    app: Arc<App>,
    (pools, lane): (Pools, Lane),
    named: impl Fn(&raw::Root) -> Option<&String> + Clone + Send + Sync + 'static,
    opened: impl Fn() + Clone + Send + Sync + 'static,
) -> Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let (app, pools, named, opened) = (Arc::clone(&app), pools.clone(), named.clone(), opened.clone());
        async move {
            let is_watch = is_watch(&request);
            let lane = if is_watch { lane } else { Lane::Short };
            let answer = send(&app, &pools, lane, named, request).await?;
            if is_watch && answer.status().is_success() {
                opened();
            }
            Ok::<_, BoxError>(answer)
        }
    });
    Client::new(service, "default")
}

async fn send(
    app: &App,
    pools: &Pools,
    lane: Lane,
    named: impl Fn(&raw::Root) -> Option<&String>,
    request: Request<Body>,
) -> Result<Response<AnswerBody>, BoxError> {
    let snapshot = app.snapshot.load_full();
    let name = named(&snapshot.raw).map(String::as_str);
    let server = snapshot.upstreams.iter().find(|upstream| Some(&**upstream.name()) == name);
    let server = server.ok_or("the configuration has no such upstream any more")?;
    let (parts, body) = request.into_parts();
    let body = collect(body, MAX_REQUEST).await.ok_or("a request to watch has a long body")?;
    let body = if body.is_empty() { RequestBody::Empty } else { RequestBody::Buffered(body) };
    Ok(telling(pools.send(server, &mut Request::from_parts(parts, body), lane).await?).await)
}

fn is_watch(request: &Request<Body>) -> bool {
    request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::health::{Health, Status},
        clock::Clock,
    };

    /// Regression: the component was reported as healthy at each event of the watch that worked.
    #[test]
    fn one_working_watch_does_not_mean_that_all_work() {
        let health = Health::new(Clock::default());
        let states = States::new(health.component("runs", Gate::Report), 2);
        let told = || {
            let report = health.report().components.remove(0);
            (report.status, report.reason.into_owned())
        };
        let refused = || watcher::Error::NoResourceVersion;
        states.opened(0);
        assert_eq!(told().0, Status::Starting);
        states.opened(1);
        assert_eq!(told().0, Status::Ok);
        states.failed(1, &refused());
        states.opened(0);
        let (status, reason) = told();
        assert!(status == Status::Failed && reason.starts_with("runs cannot be watched: "), "{reason}");
        states.failed(0, &refused());
        states.opened(1);
        assert_eq!(told().0, Status::Failed);
        states.opened(0);
        assert_eq!(told(), (Status::Ok, String::new()));
    }

    /// Regression: it was reported as a failed component.
    #[test]
    fn a_watch_that_must_list_again_has_not_failed() {
        let health = Health::new(Clock::default());
        let states = States::new(health.component("runs", Gate::Report), 1);
        let told = || health.report().components.remove(0).status;
        states.opened(0);
        let said = |code, message: &str| {
            let status = kube::core::Status { code, message: message.to_owned(), ..Default::default() };
            watcher::Error::WatchError(Box::new(status))
        };
        states.failed(0, &said(410, "too old resource version: 354 (356)"));
        assert_eq!(told(), Status::Ok);
        states.failed(0, &said(500, "etcd is away"));
        assert_eq!(told(), Status::Failed);
        states.opened(0);
        // `kube` requests this watch again instead of listing.
        let gone = kube::core::Status { code: 410, ..Default::default() };
        states.failed(0, &watcher::Error::WatchStartFailed(kube::Error::Api(Box::new(gone))));
        assert_eq!(told(), Status::Failed);
    }

    #[test]
    fn a_watch_is_tried_again_within_seconds_however_long_it_failed() {
        let pauses: Vec<Duration> = Pause::default().take(20).collect();
        assert!(pauses.len() == 20 && pauses.iter().all(|pause| *pause <= LONGEST_PAUSE), "{pauses:?}");
        assert!(pauses[0] < pauses[19], "{pauses:?}");
    }
}
