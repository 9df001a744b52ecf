//! The watches of one cluster.
//!
//! What they tell is read at once, whatever the store does: this process refuses the tokens of a run as soon as it has ended. What is
//! to be done in the store and the trail besides waits in a queue, in the order in which it was told, and is tried until it is done.

use std::{collections::HashMap, future::pending, pin::pin, sync::Arc};

use futures_util::{Stream, StreamExt, stream};
use kube::{Api, Client, api::DynamicObject};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Ends, Kind, State, Watch,
    ending::{GONE, Over, SKEW},
    left::{Left, end_until, until},
    watching::{MAX_RETRY, Told, WatchError, watch},
};
use crate::{
    admin::health::{ComponentHandle, Gate},
    app::App,
    audit::AuditUnavailable,
    authn::principal::workload_key,
    clock::{Clock, Moment},
    config::raw,
    runs::{is_of_credential, root_cause},
    store::StoreError,
    sts::MAX_LIFETIME,
    upstream::Pools,
};

/// Events that are taken at once.
const BATCH: usize = 64;

/// What may be left to do in the store and the trail while they are away, before all is listed anew.
const BACKLOG: usize = 10_000;

/// Why the watches begin anew.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndsError {
    #[error("runs that have tokens cannot be looked up: {0}")]
    Store(#[from] StoreError),
    #[error("the end of tokens cannot be written into the audit trail: {0}")]
    Trail(#[from] AuditUnavailable),
    #[error("whether a run that has tokens is still there cannot be asked: {0}")]
    Cluster(#[from] kube::Error),
    #[error("the watch has ended")]
    Ended,
    #[error("more runs have ended than could be noted while the store or the audit trail is away")]
    Behind,
    #[error("the configuration has changed in `tokens.exchange`")]
    Changed,
}

/// Watches the runs of one cluster until `stop`, wherever the configuration in force has its tasks get tokens. The pools are those of the
/// client, and of nobody else.
pub async fn follow(app: Arc<App>, (client, pools): (Client, Pools), cluster: Arc<str>, stop: CancellationToken) {
    let health = app.health.component(format!("ends/{cluster}"), Gate::Report);
    let follower = Follower { app, client, pools, health, cluster };
    tokio::select! {
        () = follower.run() => {}
        () = stop.cancelled() => {}
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
            self.ends.lose(watch, self.clock.moment());
        }
    }
}

pub(super) fn api(client: &Client, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
    let resource = kind.resource();
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

pub(super) struct Follower {
    pub(super) app: Arc<App>,
    pub(super) client: Client,
    pools: Pools,
    health: ComponentHandle,
    /// The name of its issuer.
    pub(super) cluster: Arc<str>,
}

/// What a watch has told since it began anew: by uid, and why it has ended if it has.
pub(super) type Present = HashMap<String, Option<&'static str>>;

/// How far all watches are.
#[derive(Default)]
struct Progress {
    /// What those have told that have not told all yet.
    present: HashMap<Watch, Present>,
    /// Why one cannot watch, as it was said last.
    trouble: HashMap<Watch, String>,
}

/// What is left to do of what a watch has told.
enum Work {
    End(Over),
    /// All that there was at first, as of this moment; the watch was lost so often until then.
    All(Watch, Present, Mark),
    /// All that happened until then is told before.
    UpTo(Watch, Mark),
}

/// Up to when a watch has told all, and how often it was lost before.
#[derive(Clone, Copy)]
struct Mark {
    at: Moment,
    losses: u64,
}

/// Puts work into the queue, unless there is no room for it.
fn line_up(queue: &mpsc::Sender<Work>, work: Work) -> Result<(), EndsError> {
    // The next one says it again, while the room is for what is said once.
    if matches!(work, Work::UpTo(..)) && queue.capacity() < BACKLOG / 2 {
        return Ok(());
    }
    queue.try_send(work).map_err(|_| EndsError::Behind)
}

impl Follower {
    /// Watches where the configuration in force has tasks get tokens, and ends those that they have where it has them get none any more.
    async fn run(&self) {
        let mut before: Vec<raw::Exchanged> = Vec::new();
        loop {
            let given = self.given();
            let left = Left::new(&before, given.as_ref());
            let is_over = || self.given() != given;
            let watches = async {
                match &given {
                    Some(exchanged) => self.watch_until(&is_over, exchanged).await,
                    // Nothing is to be seen there meanwhile, and so nothing fails.
                    None => pending().await,
                }
            };
            tokio::select! {
                () = watches => {}
                () = self.end_left_until(&is_over, &left) => {}
            }
            if let Some(given) = given
                && !before.contains(&given)
            {
                before.push(given);
            }
        }
    }

    /// Where tasks of the cluster get tokens by the configuration in force.
    fn given(&self) -> Option<raw::Exchanged> {
        let snapshot = self.app.snapshot.load();
        let exchange = &snapshot.raw.tokens.as_ref()?.exchange;
        exchange.iter().find(|of| of.kubernetes.is_some() && *of.issuer == *self.cluster).cloned()
    }

    /// Ends the tokens of tasks where they get none any more, until a reload changes where that is.
    async fn end_left_until(&self, is_over: &impl Fn() -> bool, left: &Left<'_>) {
        if left.is_empty() {
            return until(is_over).await;
        }
        let cluster = &*self.cluster;
        let told = |ended: &Result<(), EndsError>| match (ended, left.given) {
            (Ok(()), None) => {
                tracing::info!(cluster, "the tokens of tasks of a cluster that is not configured any more have ended");
                self.health.ok();
            }
            (Ok(()), Some(_)) => {
                tracing::info!(
                    cluster,
                    "the tokens of tasks in namespaces that are not configured any more have ended"
                );
            }
            (Err(error), given) => {
                tracing::warn!(
                    %error,
                    cluster,
                    "tokens of tasks whose cluster, or namespace there, is not configured any more have not ended yet; it is tried again"
                );
                // Of one that is watched this tells how the watches are.
                if given.is_none() {
                    self.health.failed(error.to_string());
                }
            }
        };
        end_until(is_over, || self.end_left(left), told).await;
    }

    /// Watches again and again, until a reload changes where that is to be.
    async fn watch_until(&self, is_over: &impl Fn() -> bool, exchanged: &raw::Exchanged) {
        loop {
            let error = self.watch(is_over, exchanged).await;
            if is_over() {
                return;
            }
            let cluster = &*self.cluster;
            tracing::warn!(%error, cluster, "the ends of runs are not seen, so tasks get no tokens; it is tried again");
            self.health.failed(error.to_string());
            tokio::time::sleep(MAX_RETRY).await;
        }
    }

    /// Watches until something fails.
    async fn watch(&self, is_over: &impl Fn() -> bool, exchanged: &raw::Exchanged) -> EndsError {
        let namespaces: Vec<Option<String>> = match exchanged.namespaces.as_slice() {
            [] => vec![None],
            listed => listed.iter().cloned().map(Some).collect(),
        };
        let watches = namespaces.iter().flat_map(|namespace| {
            [Kind::TaskRun, Kind::Pod, Kind::PipelineRun].map(|kind| Watch {
                cluster: Arc::clone(&self.cluster),
                kind,
                namespace: namespace.clone(),
            })
        });
        let watching =
            Watching { ends: self.app.ends.clone(), clock: self.app.clock.clone(), watches: watches.collect() };
        self.app.ends.keep(&self.cluster, &watching.watches);
        let streams = watching.watches.iter().cloned().map(|of| {
            self.app.ends.begin(&of);
            let api = api(&self.client, of.kind, of.namespace.as_deref());
            watch(api, of.kind, self.app.clock.clone()).map(move |told| (of.clone(), told)).boxed()
        });
        let events = stream::select_all(streams.collect::<Vec<_>>());
        let (queue, work) = mpsc::channel(BACKLOG);
        tokio::select! {
            error = self.read(is_over, events, queue) => error,
            error = self.work(&watching.watches, work) => error,
        }
    }

    /// Reads what watches tell, in its order, and waits for nothing else.
    async fn read(
        &self,
        is_over: &impl Fn() -> bool,
        events: impl Stream<Item = (Watch, Result<Told, WatchError>)>,
        queue: mpsc::Sender<Work>,
    ) -> EndsError {
        let mut events = pin!(events.ready_chunks(BATCH));
        let mut progress = Progress::default();
        while let Some(batch) = events.next().await {
            // First, as what is not configured any more cannot be watched either.
            if is_over() {
                return EndsError::Changed;
            }
            self.end_here(&batch);
            for (watch, told) in batch {
                let Some(work) = self.take(watch, told, &mut progress) else { continue };
                if let Err(error) = line_up(&queue, work) {
                    return error;
                }
            }
        }
        EndsError::Ended
    }

    /// Takes what a watch tells. Gives what is left to do.
    fn take(
        &self,
        watch: Watch,
        told: Result<Told, WatchError>,
        Progress { present, trouble }: &mut Progress,
    ) -> Option<Work> {
        let ends = &self.app.ends;
        let end = |watch: Watch, uid, why| Work::End(Over { cluster: watch.cluster, kind: watch.kind, uid, why });
        let mark = |watch: &Watch, at| Mark { at, losses: ends.losses(watch) };
        match told {
            Ok(Told::Begins) => {
                ends.forget_all(&watch);
                present.insert(watch, HashMap::new());
                None
            }
            Ok(Told::Present(object)) => {
                ends.tell(&watch, &object);
                present.entry(watch).or_default().insert(object.identity().uid.clone(), object.end());
                None
            }
            Ok(Told::All(at)) => {
                trouble.remove(&watch);
                let (present, mark) = (present.remove(&watch).unwrap_or_default(), mark(&watch, at));
                Some(Work::All(watch, present, mark))
            }
            Ok(Told::UpTo(at)) => {
                trouble.remove(&watch);
                let mark = mark(&watch, at);
                Some(Work::UpTo(watch, mark))
            }
            Ok(Told::Changed(object)) => {
                ends.tell(&watch, &object);
                object.end().map(|why| end(watch, object.identity().uid.clone(), why))
            }
            Ok(Told::Gone(object)) => {
                let uid = object.identity().uid.clone();
                ends.forget(&watch, &uid);
                Some(end(watch, uid, GONE))
            }
            Err(error) => {
                ends.lose(&watch, self.app.clock.moment());
                // Connections for lists that are kept may be cut as silently, and the next list would wait for an answer on one.
                if matches!(error, WatchError::Silent) {
                    self.pools.retain(&[]);
                }
                let why = root_cause(&error);
                if trouble.get(&watch) != Some(&why) {
                    self.complain(&watch, &error, &why);
                    trouble.insert(watch, why);
                }
                None
            }
        }
    }

    /// Does what is left to do, in its order, much at once. What fails is tried again: tokens of what has ended meanwhile are refused
    /// here already.
    async fn work(&self, watches: &[Watch], mut queue: mpsc::Receiver<Work>) -> EndsError {
        let (mut batch, mut told) = (Vec::new(), HashMap::new());
        while queue.recv_many(&mut batch, BATCH).await > 0 {
            let mut is_late = false;
            while let Err(error) = self.do_all(&batch).await {
                is_late = true;
                for watch in watches {
                    self.app.ends.set(watch, State::LostAt(self.app.clock.moment()));
                }
                tracing::warn!(
                    error = root_cause(&error),
                    "the ends of runs are refused here and cannot be noted, so tasks get no tokens; it is tried again"
                );
                self.health.failed(error.to_string());
                tokio::time::sleep(MAX_RETRY).await;
            }
            for work in batch.drain(..) {
                if let Work::All(watch, _, mark) | Work::UpTo(watch, mark) = work {
                    self.seen(&watch, mark);
                    told.insert(watch, mark);
                }
            }
            if is_late {
                // They told all the while.
                for (watch, mark) in &told {
                    self.seen(watch, *mark);
                }
            }
        }
        EndsError::Ended
    }

    async fn do_all(&self, batch: &[Work]) -> Result<(), EndsError> {
        let mut over = Vec::new();
        for work in batch {
            match work {
                Work::End(one) => over.push(one.clone()),
                Work::All(watch, present, _) => over.extend(self.over(watch, present).await?),
                Work::UpTo(..) => {}
            }
        }
        self.end(over).await
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
        if self.app.revocations.end_here(ended, self.app.clock.now() + MAX_LIFETIME + SKEW) {
            self.app.close_revoked_streams();
        }
    }

    /// All that happened until then is told, and what had ended is ended.
    fn seen(&self, watch: &Watch, Mark { at, losses }: Mark) {
        self.app.ends.see(watch, losses, at);
        if self.app.ends.all_tell(&watch.cluster) {
            self.health.ok();
        }
    }

    fn complain(&self, watch: &Watch, error: &WatchError, why: &str) {
        let why = format!("{} cannot be watched: {why}", watch.kind.name());
        let cluster = &*watch.cluster;
        match is_of_credential(error) {
            true => tracing::warn!(
                why,
                cluster,
                "the ends of runs are not seen, so tasks get no tokens; the credential of the upstream must be allowed to list and \
                 watch taskruns, pods and pipelineruns"
            ),
            false => {
                tracing::warn!(
                    why,
                    cluster,
                    "the ends of runs are not seen, so tasks get no tokens; it is tried again"
                );
            }
        }
        self.health.failed(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In an outage of the store that lasts, what watches say every few seconds must not take the room of what they say once.
    #[test]
    fn how_far_a_watch_has_come_takes_half_of_the_queue_at_most() {
        let (queue, _work) = mpsc::channel(BACKLOG);
        let up_to = || {
            let watch = Watch { cluster: "c".into(), kind: Kind::Pod, namespace: None };
            Work::UpTo(watch, Mark { at: Moment::MIN, losses: 0 })
        };
        let end = || Work::End(Over { cluster: "c".into(), kind: Kind::Pod, uid: "u".to_owned(), why: GONE });
        for _ in 0..2 * BACKLOG {
            line_up(&queue, up_to()).unwrap();
        }
        assert!((1..=BACKLOG / 2).contains(&queue.capacity()), "{}", queue.capacity());
        for _ in 0..queue.capacity() {
            line_up(&queue, end()).unwrap();
        }
        assert!(matches!(line_up(&queue, end()), Err(EndsError::Behind)));
        line_up(&queue, up_to()).expect("it is left out");
    }
}
