//! Acts on what the watches of one cluster report.
//!
//! Events are read at once, whatever the state of the store: this process refuses the tokens of a run as soon as it has
//! ended. The remaining work in the store and the trail waits in a queue, in order, and is retried until it succeeds.

use std::{collections::HashMap, mem, sync::Arc};

use futures_util::{StreamExt, stream};
use kube::Client;
use tokio::sync::{
    mpsc,
    watch::{Receiver, Sender},
};
use tokio_util::sync::CancellationToken;

use super::{
    Watch,
    ending::{EndedObject, GONE, SKEW},
    token_namespaces::{TokenNamespaces, end_withdrawn},
    watches::{Going, Watches},
    watching::{MAX_RETRY, ObjectEvent, WatchError},
};
use crate::{
    admin::health::{ComponentHandle, Gate},
    app::App,
    audit::AuditUnavailable,
    authn::principal::workload_key,
    clock::Moment,
    config::raw,
    runs::{is_of_credential, root_cause},
    store::StoreError,
    sts::MAX_LIFETIME,
    upstream::Pools,
};

/// Events that are taken at once.
const BATCH: usize = 64;

/// Capacity for work in the store and the trail while they are away. Beyond that, everything is listed again.
const BACKLOG: usize = 10_000;

/// Why the watches start again.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndsError {
    #[error("runs that have tokens cannot be looked up: {0}")]
    Store(#[from] StoreError),
    #[error("the end of tokens cannot be written into the audit trail: {0}")]
    Trail(#[from] AuditUnavailable),
    #[error("cannot check whether a run that has tokens still exists: {0}")]
    Cluster(#[from] kube::Error),
    #[error("the watch has ended")]
    Ended,
    #[error("more runs have ended than could be noted while the store or the audit trail is away")]
    Behind,
}

/// Watches the runs of one cluster until `stop`, wherever the configuration in force gives its tasks tokens. The pools
/// must belong to this client alone.
pub async fn follow(app: Arc<App>, (client, pools): (Client, Pools), cluster: Arc<str>, stop: CancellationToken) {
    let health = app.health.component(format!("ends/{cluster}"), Gate::Report);
    let follower = Follower { app, client, pools, health, cluster };
    tokio::select! {
        () = follower.run() => {}
        () = stop.cancelled() => {}
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

/// The objects that a watch has reported since it started again: the uid, and why it has ended if it has.
pub(super) type Present = HashMap<String, Option<&'static str>>;

/// The work that is left for an event of a watch.
enum Work {
    End(EndedObject),
    /// The initial list is complete.
    All(Watch, Present, Mark),
    /// Everything that happened until then was queued before.
    UpTo(Watch, Mark),
}

/// Up to when a watch has reported everything, and the turn in which it did.
#[derive(Clone, Copy)]
struct Mark {
    at: Moment,
    turn: u64,
}

/// Queues work, unless there is no room for it.
fn line_up(queue: &mpsc::Sender<Work>, work: Work) -> Result<(), EndsError> {
    // The next one says it again, while the room is needed for work that comes once.
    if matches!(work, Work::UpTo(..)) && queue.capacity() < BACKLOG / 2 {
        return Ok(());
    }
    queue.try_send(work).map_err(|_| EndsError::Behind)
}

impl Follower {
    /// Watches where the configuration in force gives tasks tokens, and ends their tokens where it no longer does.
    async fn run(&self) {
        let namespaces = self.app.run_ends.token_namespaces(&self.cluster);
        tokio::join!(self.watch(namespaces.subscribe()), self.end_withdrawn(&namespaces));
    }

    /// Ends the tokens of tasks where a reload no longer gives them any.
    async fn end_withdrawn(&self, namespaces: &Sender<TokenNamespaces>) {
        let (cluster, mut is_failing) = (&*self.cluster, false);
        let told = |ended: &Result<(), EndsError>| {
            if let Err(error) = ended
                && !is_failing
            {
                tracing::warn!(
                    %error,
                    cluster,
                    "tokens of tasks whose cluster, or namespace there, is no longer configured have not ended yet; will retry"
                );
            }
            is_failing = ended.is_err();
            // For a watched cluster the health shows the state of the watches.
            match ended {
                _ if namespaces.borrow().exchanged.is_some() => {}
                Ok(()) => self.health.ok(),
                Err(error) => self.health.failed(error.to_string()),
            }
        };
        end_withdrawn(namespaces, || self.end_all_withdrawn(namespaces), told).await;
    }

    /// Watches again and again, wherever the configuration in force gives tasks tokens.
    async fn watch(&self, mut namespaces: Receiver<TokenNamespaces>) {
        loop {
            let exchanged = namespaces.borrow_and_update().exchanged.clone();
            let Some(exchanged) = exchanged else {
                // There is nothing to watch meanwhile, so nothing fails.
                _ = namespaces.changed().await;
                continue;
            };
            let (queue, work) = mpsc::channel(BACKLOG);
            let watched = tokio::select! {
                watched = self.read(&mut namespaces, &exchanged, queue) => watched,
                error = self.work(work) => Err(error),
            };
            if let Err(error) = watched {
                let cluster = &*self.cluster;
                tracing::warn!(%error, cluster, "the ends of runs are not seen, so tasks get no tokens; will retry");
                self.health.failed(error.to_string());
                tokio::time::sleep(MAX_RETRY).await;
            }
        }
    }

    /// Reads what watches report, in order, and waits for nothing else, until something fails or a reload changes or
    /// removes the upstream.
    async fn read(
        &self,
        namespaces: &mut Receiver<TokenNamespaces>,
        exchanged: &raw::Exchanged,
        queue: mpsc::Sender<Work>,
    ) -> Result<(), EndsError> {
        let (ends, clock) = (self.app.run_ends.clone(), self.app.clock.clone());
        let mut watches = Watches::new(ends, clock, self.client.clone(), Arc::clone(&self.cluster));
        let mut events = stream::select_all(watches.change(&exchanged.namespaces)).ready_chunks(BATCH);
        loop {
            let batch = tokio::select! {
                // First, as what is no longer configured cannot be watched either.
                biased;
                _ = namespaces.changed() => {
                    let now = namespaces.borrow_and_update().exchanged.clone();
                    let Some(now) = now.filter(|now| now.kubernetes == exchanged.kubernetes) else { return Ok(()) };
                    for begun in watches.change(&now.namespaces) {
                        events.get_mut().push(begun);
                    }
                    continue;
                }
                batch = events.next() => batch.ok_or(EndsError::Ended)?,
            };
            self.end_here(&batch);
            for (watch, event) in batch {
                let Some(going) = watches.get_mut(&watch) else { continue };
                if let Some(work) = self.take(watch, event, going) {
                    line_up(&queue, work)?;
                }
            }
        }
    }

    /// Processes an event of a watch. Returns the work that is left.
    fn take(
        &self,
        watch: Watch,
        event: Result<ObjectEvent, WatchError>,
        Going { present, trouble, .. }: &mut Going,
    ) -> Option<Work> {
        let ends = &self.app.run_ends;
        let end =
            |watch: Watch, uid, why| Work::End(EndedObject { cluster: watch.cluster, kind: watch.kind, uid, why });
        let mark = |watch: &Watch, at| Mark { at, turn: ends.turn(watch) };
        match event {
            Ok(ObjectEvent::ListBegins) => {
                ends.forget_all(&watch);
                present.clear();
                None
            }
            Ok(ObjectEvent::Listed(object)) => {
                ends.apply(&watch, &object);
                present.insert(object.identity().uid.clone(), object.end());
                None
            }
            Ok(ObjectEvent::ListComplete(at)) => {
                *trouble = None;
                let (present, mark) = (mem::take(present), mark(&watch, at));
                Some(Work::All(watch, present, mark))
            }
            Ok(ObjectEvent::Bookmark(at)) => {
                *trouble = None;
                let mark = mark(&watch, at);
                Some(Work::UpTo(watch, mark))
            }
            Ok(ObjectEvent::Changed(object)) => {
                ends.apply(&watch, &object);
                object.end().map(|why| end(watch, object.identity().uid.clone(), why))
            }
            Ok(ObjectEvent::Deleted(object)) => {
                let uid = object.identity().uid.clone();
                ends.forget(&watch, &uid);
                Some(end(watch, uid, GONE))
            }
            Err(error) => {
                ends.mark_lost(&watch, self.app.clock.moment());
                // Idle connections for lists may have been cut as silently, and the next list would wait for a response
                // on one.
                if matches!(error, WatchError::Silent) {
                    self.pools.retain(&[]);
                }
                let why = root_cause(&error);
                if trouble.as_ref() != Some(&why) {
                    self.complain(&watch, &error, &why);
                    *trouble = Some(why);
                }
                None
            }
        }
    }

    /// Does the queued work, in order and in batches. What fails is retried: tokens of what has ended meanwhile are
    /// refused here already.
    async fn work(&self, mut queue: mpsc::Receiver<Work>) -> EndsError {
        let mut batch = Vec::new();
        while queue.recv_many(&mut batch, BATCH).await > 0 {
            let mut is_late = false;
            while let Err(error) = self.do_all(&batch).await {
                is_late = true;
                self.app.run_ends.stall(&self.cluster, self.app.clock.moment());
                tracing::warn!(
                    error = root_cause(&error),
                    "tokens of ended runs are refused here, but the ends cannot be recorded, so tasks get no tokens; will retry"
                );
                self.health.failed(error.to_string());
                tokio::time::sleep(MAX_RETRY).await;
            }
            for work in batch.drain(..) {
                if let Work::All(watch, _, Mark { at, turn }) | Work::UpTo(watch, Mark { at, turn }) = work {
                    self.app.run_ends.mark_current(&watch, turn, at);
                }
            }
            if is_late {
                self.app.run_ends.resume(&self.cluster);
            }
            if self.app.run_ends.all_current(&self.cluster) {
                self.health.ok();
            }
        }
        EndsError::Ended
    }

    async fn do_all(&self, batch: &[Work]) -> Result<(), EndsError> {
        let mut over = Vec::new();
        for work in batch {
            match work {
                Work::End(one) => over.push(one.clone()),
                // If a reload has removed the watch meanwhile, there may be no permission to query any more.
                Work::All(watch, present, _) if self.app.run_ends.has(watch) => {
                    over.extend(self.find_ended(watch, present).await?);
                }
                Work::All(..) | Work::UpTo(..) => {}
            }
        }
        self.end(over).await
    }

    /// Ends the tokens of ended objects in this process, before the store is involved, which may be away: until it
    /// is back no other process learns of it.
    fn end_here(&self, batch: &[(Watch, Result<ObjectEvent, WatchError>)]) {
        let ended = batch.iter().filter_map(|(watch, event)| {
            let (object, why) = match event.as_ref().ok()? {
                // After trouble with the store everything is listed again, so the list may report an end.
                ObjectEvent::Changed(object) | ObjectEvent::Listed(object) => (object, object.end()?),
                ObjectEvent::Deleted(object) => (object, GONE),
                _ => return None,
            };
            Some((workload_key(&watch.cluster, &object.identity().uid), why))
        });
        // Every token issued so far has expired by then.
        if self.app.revocations.end_here(ended, self.app.clock.now() + MAX_LIFETIME + SKEW) {
            self.app.close_revoked_streams();
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
                tracing::warn!(why, cluster, "the ends of runs are not seen, so tasks get no tokens; will retry");
            }
        }
        self.health.failed(why);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Kind, *};

    /// In a long outage of the store, what watches say every few seconds must not take the room of what they say once.
    #[test]
    fn progress_marks_of_watches_take_half_of_the_queue_at_most() {
        let (queue, _work) = mpsc::channel(BACKLOG);
        let up_to = || {
            let watch = Watch { cluster: "c".into(), kind: Kind::Pod, namespace: None };
            Work::UpTo(watch, Mark { at: Moment::MIN, turn: 0 })
        };
        let end = || Work::End(EndedObject { cluster: "c".into(), kind: Kind::Pod, uid: "u".to_owned(), why: GONE });
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
