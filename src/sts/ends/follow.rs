//! The watches of one cluster, and what is done when something has ended.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use kube::{Api, Client, api::DynamicObject};
use tokio_util::sync::CancellationToken;

use super::{
    Ends, Kind, Object, State, Watch,
    watching::{RETRY, Told, WatchError, watch},
};
use crate::{
    admin::health::{ComponentHandle, Gate},
    app::App,
    audit::{AuditUnavailable, Note, TokensEnded},
    authn::principal::workload_key,
    clock::{Clock, Timestamp},
    config::raw,
    runs::root_cause,
    store::{Expect, StoreError, Stored, Table, Target, Written},
    sts::{LIFETIME, Tokens, bearer::Bearer},
};

/// Room for clocks that differ.
const SKEW: Duration = Duration::from_secs(120);

/// Records that are read at once.
const PAGE: usize = 1000;

/// Events that are taken at once, and objects whose tokens are ended at once.
const BATCH: usize = 64;

/// Why tokens end whose run is not there any more.
const GONE: &str = "it was deleted";

/// Why tokens end whose run nobody watches any more.
const NOT_CONFIGURED: &str = "its cluster is not configured any more";

/// Why the watches begin anew.
#[derive(Debug, thiserror::Error)]
enum EndsError {
    #[error("runs that have tokens cannot be looked up: {0}")]
    Store(#[from] StoreError),
    #[error("the end of tokens cannot be written into the audit trail: {0}")]
    Trail(#[from] AuditUnavailable),
    #[error("whether a run that has tokens is still there cannot be asked: {0}")]
    Cluster(#[from] kube::Error),
    #[error("the watch has ended")]
    Ended,
    #[error("the configuration does not name the cluster in `tokens.exchange` any more")]
    NotConfigured,
}

/// Watches the runs of one cluster until `stop`.
pub async fn follow(app: Arc<App>, client: Client, exchanged: raw::Exchanged, stop: CancellationToken) {
    let health = app.health.component(format!("ends/{}", exchanged.issuer), Gate::Report);
    let follower = Follower { app, client, health };
    loop {
        let error = tokio::select! {
            error = follower.watch(&exchanged) => error,
            () = stop.cancelled() => return,
        };
        // A reload may have taken it away.
        let cluster: Arc<str> = exchanged.issuer.as_str().into();
        if !is_configured(&follower.app, &cluster)
            && let Err(error) = follower.end_all(&cluster).await
        {
            tracing::warn!(%error, cluster = &*cluster, "tokens of tasks of a cluster that is not configured any more have not ended yet");
        }
        tracing::warn!(%error, cluster = exchanged.issuer, "the ends of runs are not seen, so tasks get no tokens; it is tried again");
        follower.health.failed(error.to_string());
        tokio::select! {
            () = tokio::time::sleep(RETRY.1) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Whether tasks of a cluster get tokens by the configuration in force.
fn is_configured(app: &App, cluster: &str) -> bool {
    app.snapshot.load().raw.tokens.as_ref().is_some_and(|tokens| tokens.clusters().any(|known| known == cluster))
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

struct Follower {
    app: Arc<App>,
    client: Client,
    health: ComponentHandle,
}

/// What a watch has told since it began anew: by uid, and why it has ended if it has.
type Present = HashMap<String, Option<&'static str>>;

/// Of all watches.
#[derive(Default)]
struct Progress {
    /// Of those that have not told all yet.
    present: HashMap<Watch, Present>,
    /// Why one cannot watch, as it was said last.
    trouble: HashMap<Watch, String>,
}

/// An object whose tokens are to end.
struct Over {
    cluster: Arc<str>,
    kind: Kind,
    uid: String,
    why: &'static str,
}

impl Follower {
    /// Watches until something fails.
    async fn watch(&self, exchanged: &raw::Exchanged) -> EndsError {
        let cluster: Arc<str> = exchanged.issuer.as_str().into();
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
        let watching =
            Watching { ends: self.app.ends.clone(), clock: self.app.clock.clone(), watches: watches.collect() };
        let streams = watching.watches.iter().cloned().map(|of| {
            self.app.ends.begin(&of);
            let api = api(&self.client, of.kind, of.namespace.as_deref());
            watch(api, of.kind, self.app.clock.clone()).map(move |told| (of.clone(), told)).boxed()
        });
        let mut events = stream::select_all(streams.collect::<Vec<_>>()).ready_chunks(BATCH);
        let mut progress = Progress::default();
        while let Some(batch) = events.next().await {
            if !is_configured(&self.app, &cluster) {
                return EndsError::NotConfigured;
            }
            if let Err(error) = self.take(batch, &mut progress).await {
                return error;
            }
        }
        EndsError::Ended
    }

    /// Takes what watches tell, in its order; only then what has ended is ended, much at once.
    async fn take(
        &self,
        batch: Vec<(Watch, Result<Told, WatchError>)>,
        Progress { present, trouble }: &mut Progress,
    ) -> Result<(), EndsError> {
        let ends = &self.app.ends;
        self.end_here(&batch);
        let (mut over, mut told) = (Vec::new(), Vec::new());
        for (watch, event) in batch {
            match event {
                Ok(Told::Begins) => {
                    ends.forget_all(&watch);
                    present.insert(watch, HashMap::new());
                }
                Ok(Told::Present(object)) => {
                    ends.tell(&watch, &object);
                    present.entry(watch).or_default().insert(object.identity().uid.clone(), object.end());
                }
                Ok(Told::All(at)) => {
                    let present = present.remove(&watch).unwrap_or_default();
                    over.extend(self.over(&watch, &present).await?);
                    told.push((watch, at));
                }
                Ok(Told::UpTo(at)) => told.push((watch, at)),
                Ok(Told::Changed(object)) => {
                    ends.tell(&watch, &object);
                    let uid = object.identity().uid.clone();
                    over.extend(object.end().map(|why| Over {
                        cluster: Arc::clone(&watch.cluster),
                        kind: watch.kind,
                        uid,
                        why,
                    }));
                }
                Ok(Told::Gone(object)) => {
                    let uid = object.identity().uid.clone();
                    ends.forget(&watch, &uid);
                    over.push(Over { cluster: Arc::clone(&watch.cluster), kind: watch.kind, uid, why: GONE });
                }
                Err(error) => {
                    told.retain(|(told, _)| *told != watch);
                    ends.lose(&watch, self.app.clock.now());
                    let why = root_cause(&error);
                    if trouble.get(&watch) != Some(&why) {
                        self.complain(&watch, &why);
                        trouble.insert(watch, why);
                    }
                }
            }
        }
        // What has ended is told of several times in a row, and is ended once.
        let mut ending = HashSet::new();
        over.retain(|over| ending.insert((Arc::clone(&over.cluster), over.uid.clone())));
        stream::iter(over.into_iter().map(Ok)).try_for_each_concurrent(BATCH, |over| self.end(over)).await?;
        for (watch, at) in told {
            trouble.remove(&watch);
            self.seen(&watch, at);
        }
        Ok(())
    }

    /// Ends the tokens of what has ended in this process, before the store is asked, which may be away: until it is there again no
    /// other process hears of it.
    fn end_here(&self, batch: &[(Watch, Result<Told, WatchError>)]) {
        let ended = batch.iter().filter_map(|(watch, told)| {
            let (object, why) = match told.as_ref().ok()? {
                // After trouble of the store all is listed anew, so that an end may be told so.
                Told::Changed(object) | Told::Present(object) => (object, object.end()?),
                Told::Gone(object) => (object, GONE),
                _ => return None,
            };
            Some((workload_key(&watch.cluster, &object.identity().uid), why))
        });
        // Whatever has a token by now is out of it then.
        if self.app.revocations.end_here(ended, self.app.clock.now() + LIFETIME.1 + SKEW) {
            self.app.close_revoked_streams();
        }
    }

    /// All that happened until then is told, and what had ended is ended.
    fn seen(&self, watch: &Watch, at: Timestamp) {
        self.app.ends.set(watch, State::ToldAt(at));
        if self.app.ends.all_tell(&watch.cluster) {
            self.health.ok();
        }
    }

    fn complain(&self, watch: &Watch, why: &str) {
        let why = format!("{} cannot be watched: {why}", watch.kind.name());
        let cluster = &*watch.cluster;
        tracing::warn!(
            why,
            cluster,
            "the ends of runs are not seen, so tasks get no tokens; the credential of the upstream must be allowed to list and watch \
             taskruns, pods and pipelineruns"
        );
        self.health.failed(why);
    }

    /// What has tokens and has ended, or is not there any more, by all that a watch has told.
    async fn over(&self, watch: &Watch, present: &Present) -> Result<Vec<Over>, EndsError> {
        let (mut over, mut missing, mut after) = (Vec::new(), Vec::new(), 0);
        loop {
            let now = self.app.clock.now();
            let page = self.app.store().changes(Table::Tokens, after, PAGE, now).await?;
            let (full, last) = (page.len() == PAGE, page.last().map(|change| change.stored.version));
            for change in page {
                let Ok(bearer) = serde_json::from_slice::<Bearer>(&change.stored.value) else { continue };
                let Ok(key) = String::from_utf8(change.key) else { continue };
                let uid = key.strip_prefix(&workload_key(&bearer.cluster, "")).unwrap_or(&key).to_owned();
                if bearer.kind != watch.kind || !watch.covers(&bearer.cluster, bearer.kind, &bearer.namespace) {
                    continue;
                }
                match present.get(&uid) {
                    Some(None) => {}
                    Some(Some(why)) => {
                        over.push(Over { cluster: Arc::clone(&watch.cluster), kind: watch.kind, uid, why })
                    }
                    None => missing.push((bearer, uid)),
                }
            }
            match last.filter(|_| full) {
                Some(last) => after = last,
                None => break,
            }
        }
        // It may have begun since the list was made.
        let asked = stream::iter(missing).map(async |(bearer, uid)| {
            let is_there = self.is_there(&bearer, &uid).await?;
            Ok::<_, EndsError>((!is_there).then_some(Over {
                cluster: Arc::clone(&watch.cluster),
                kind: watch.kind,
                uid,
                why: GONE,
            }))
        });
        let gone: Vec<Option<Over>> = asked.buffer_unordered(BATCH).try_collect().await?;
        over.extend(gone.into_iter().flatten());
        Ok(over)
    }

    async fn is_there(&self, bearer: &Bearer, uid: &str) -> Result<bool, EndsError> {
        let is_revoked = || self.app.revocations.workload(&workload_key(&bearer.cluster, uid)).is_some();
        if bearer.is_told || is_revoked() {
            return Ok(false);
        }
        let found = api(&self.client, bearer.kind, Some(&bearer.namespace)).get_opt(&bearer.name).await?;
        let found = found.map(|object| Object::read(bearer.kind, object));
        // A pod whose label was taken off is watched no more.
        let is_seen = |object: &Object| !matches!(object, Object::Pod(pod) if !pod.is_watched);
        Ok(found.is_some_and(|object| object.identity().uid == uid && object.end().is_none() && is_seen(&object)))
    }

    /// Revokes the tokens of an object, if it has any.
    async fn end(&self, over: Over) -> Result<(), EndsError> {
        let keys = self.app.snapshot.load().tokens.as_ref().and_then(Tokens::keys);
        // Older versions know it by the uid alone.
        for key in [workload_key(&over.cluster, &over.uid), over.uid.clone()] {
            let ended = self.end_own(&over, &key).await;
            // After the revocation: a call that is under way looks for that once its token is held.
            self.app.onward.end(&key, keys.as_ref());
            ended?;
        }
        Ok(())
    }

    async fn end_own(&self, Over { cluster, kind, uid, why }: &Over, key: &str) -> Result<(), EndsError> {
        let app = &self.app;
        let now = app.clock.now();
        let Some(stored) = app.store().get(Table::Tokens, key.as_bytes(), now).await? else { return Ok(()) };
        let Ok(bearer) = serde_json::from_slice::<Bearer>(&stored.value) else { return Ok(()) };
        if bearer.cluster != *cluster {
            return Ok(());
        }
        // As long as there is a record to find, so that it is ended once.
        let until = stored.expires.max(now + LIFETIME.1 + SKEW);
        if !app.revocations.has_stored(key) {
            app.revocations.revoke(Target::Workload(key), why, until).await?;
            let streams = app.close_revoked_streams();
            let Bearer { namespace, name, .. } = &bearer;
            tracing::info!(
                cluster = &**cluster,
                kind = kind.name(),
                namespace,
                name,
                why,
                streams,
                "tokens have ended"
            );
        }
        // Whoever was to write it down may not have come to it.
        if bearer.is_told {
            return Ok(());
        }
        let ended = TokensEnded {
            cluster: Arc::clone(cluster),
            kind: kind.name(),
            namespace: bearer.namespace.clone(),
            name: bearer.name.clone(),
            uid: uid.clone(),
            why,
        };
        app.trail.note_durable(Note::TokensEnded(ended)).await?;
        self.note_told(key, (stored, bearer), until).await
    }

    /// Notes that the end is in the trail. Whoever writes the record at the same time may keep it for longer.
    async fn note_told(
        &self,
        key: &str,
        (mut stored, mut bearer): (Stored, Bearer),
        mut until: Timestamp,
    ) -> Result<(), EndsError> {
        while !bearer.is_told {
            bearer.is_told = true;
            let told = serde_json::to_vec(&bearer).unwrap_or_default();
            let (expect, now) = (Expect::Version(stored.version), self.app.clock.now());
            match self.app.store().put(Table::Tokens, key.as_bytes(), told, until, expect, now).await? {
                Written::Done(_) | Written::Conflict(None) => return Ok(()),
                Written::Conflict(Some(found)) => stored = found,
            }
            let Ok(found) = serde_json::from_slice(&stored.value) else { return Ok(()) };
            (bearer, until) = (found, until.max(stored.expires));
        }
        Ok(())
    }

    /// Ends all tokens of tasks of a cluster that the configuration does not name any more.
    async fn end_all(&self, cluster: &Arc<str>) -> Result<(), EndsError> {
        let mut after = 0;
        loop {
            let page = self.app.store().changes(Table::Tokens, after, PAGE, self.app.clock.now()).await?;
            let Some(last) = page.last().map(|change| change.stored.version) else { return Ok(()) };
            for change in page {
                let Ok(bearer) = serde_json::from_slice::<Bearer>(&change.stored.value) else { continue };
                let Ok(key) = String::from_utf8(change.key) else { continue };
                if bearer.cluster == *cluster && !bearer.is_told {
                    let uid = key.strip_prefix(&workload_key(cluster, "")).unwrap_or(&key).to_owned();
                    self.end(Over { cluster: Arc::clone(cluster), kind: bearer.kind, uid, why: NOT_CONFIGURED })
                        .await?;
                }
            }
            after = last;
        }
    }
}
