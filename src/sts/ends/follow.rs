//! What is done about what the watches of one cluster tell.
//!
//! It is read at once, whatever the store does: this process refuses the tokens of a run as soon as it has ended. What is
//! to be done in the store and the trail besides waits in a queue, in the order in which it was told, and is tried until it is done.

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
    ending::{GONE, Over, SKEW},
    given::{Given, end_left},
    watches::{Going, Watches},
    watching::{MAX_RETRY, Told, WatchError},
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

/// What is left to do of what a watch has told.
enum Work {
    End(Over),
    /// All that there was at first.
    All(Watch, Present, Mark),
    /// All that happened until then is told before.
    UpTo(Watch, Mark),
}

/// Up to when a watch has told all, and the turn in which it did.
#[derive(Clone, Copy)]
struct Mark {
    at: Moment,
    turn: u64,
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
        let given = self.app.ends.given(&self.cluster);
        tokio::join!(self.watch(given.subscribe()), self.end_left(&given));
    }

    /// Ends the tokens of tasks where a reload has it that they get none any more.
    async fn end_left(&self, given: &Sender<Given>) {
        let (cluster, mut is_failing) = (&*self.cluster, false);
        let told = |ended: &Result<(), EndsError>| {
            if let Err(error) = ended
                && !is_failing
            {
                tracing::warn!(
                    %error,
                    cluster,
                    "tokens of tasks whose cluster, or namespace there, is not configured any more have not ended yet; it is tried again"
                );
            }
            is_failing = ended.is_err();
            // Of one that is watched this tells how the watches are.
            match ended {
                _ if given.borrow().exchanged.is_some() => {}
                Ok(()) => self.health.ok(),
                Err(error) => self.health.failed(error.to_string()),
            }
        };
        end_left(given, || self.end_all_left(given), told).await;
    }

    /// Watches again and again, wherever the configuration in force has tasks get tokens.
    async fn watch(&self, mut given: Receiver<Given>) {
        loop {
            let exchanged = given.borrow_and_update().exchanged.clone();
            let Some(exchanged) = exchanged else {
                // Nothing is to be seen there meanwhile, and so nothing fails.
                _ = given.changed().await;
                continue;
            };
            let (queue, work) = mpsc::channel(BACKLOG);
            let watched = tokio::select! {
                watched = self.read(&mut given, &exchanged, queue) => watched,
                error = self.work(work) => Err(error),
            };
            if let Err(error) = watched {
                let cluster = &*self.cluster;
                tracing::warn!(%error, cluster, "the ends of runs are not seen, so tasks get no tokens; it is tried again");
                self.health.failed(error.to_string());
                tokio::time::sleep(MAX_RETRY).await;
            }
        }
    }

    /// Reads what watches tell, in its order, and waits for nothing else, until something fails or a reload has another upstream asked,
    /// or none.
    async fn read(
        &self,
        given: &mut Receiver<Given>,
        exchanged: &raw::Exchanged,
        queue: mpsc::Sender<Work>,
    ) -> Result<(), EndsError> {
        let (ends, clock) = (self.app.ends.clone(), self.app.clock.clone());
        let mut watches = Watches::new(ends, clock, self.client.clone(), Arc::clone(&self.cluster));
        let mut events = stream::select_all(watches.change(&exchanged.namespaces)).ready_chunks(BATCH);
        loop {
            let batch = tokio::select! {
                // First, as what is not configured any more cannot be watched either.
                biased;
                _ = given.changed() => {
                    let now = given.borrow_and_update().exchanged.clone();
                    let Some(now) = now.filter(|now| now.kubernetes == exchanged.kubernetes) else { return Ok(()) };
                    for begun in watches.change(&now.namespaces) {
                        events.get_mut().push(begun);
                    }
                    continue;
                }
                batch = events.next() => batch.ok_or(EndsError::Ended)?,
            };
            self.end_here(&batch);
            for (watch, told) in batch {
                let Some(going) = watches.get_mut(&watch) else { continue };
                if let Some(work) = self.take(watch, told, going) {
                    line_up(&queue, work)?;
                }
            }
        }
    }

    /// Takes what a watch tells. Gives what is left to do.
    fn take(
        &self,
        watch: Watch,
        told: Result<Told, WatchError>,
        Going { present, trouble, .. }: &mut Going,
    ) -> Option<Work> {
        let ends = &self.app.ends;
        let end = |watch: Watch, uid, why| Work::End(Over { cluster: watch.cluster, kind: watch.kind, uid, why });
        let mark = |watch: &Watch, at| Mark { at, turn: ends.turn(watch) };
        match told {
            Ok(Told::Begins) => {
                ends.forget_all(&watch);
                present.clear();
                None
            }
            Ok(Told::Present(object)) => {
                ends.tell(&watch, &object);
                present.insert(object.identity().uid.clone(), object.end());
                None
            }
            Ok(Told::All(at)) => {
                *trouble = None;
                let (present, mark) = (mem::take(present), mark(&watch, at));
                Some(Work::All(watch, present, mark))
            }
            Ok(Told::UpTo(at)) => {
                *trouble = None;
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
                if trouble.as_ref() != Some(&why) {
                    self.complain(&watch, &error, &why);
                    *trouble = Some(why);
                }
                None
            }
        }
    }

    /// Does what is left to do, in its order, much at once. What fails is tried again: tokens of what has ended meanwhile are refused
    /// here already.
    async fn work(&self, mut queue: mpsc::Receiver<Work>) -> EndsError {
        let mut batch = Vec::new();
        while queue.recv_many(&mut batch, BATCH).await > 0 {
            let mut is_late = false;
            while let Err(error) = self.do_all(&batch).await {
                is_late = true;
                self.app.ends.stall(&self.cluster, self.app.clock.moment());
                tracing::warn!(
                    error = root_cause(&error),
                    "the ends of runs are refused here and cannot be noted, so tasks get no tokens; it is tried again"
                );
                self.health.failed(error.to_string());
                tokio::time::sleep(MAX_RETRY).await;
            }
            for work in batch.drain(..) {
                if let Work::All(watch, _, Mark { at, turn }) | Work::UpTo(watch, Mark { at, turn }) = work {
                    self.app.ends.see(&watch, turn, at);
                }
            }
            if is_late {
                self.app.ends.resume(&self.cluster);
            }
            if self.app.ends.all_tell(&self.cluster) {
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
                // Of one that a reload has taken away meanwhile nobody may be allowed to ask any more.
                Work::All(watch, present, _) if self.app.ends.has(watch) => {
                    over.extend(self.over(watch, present).await?);
                }
                Work::All(..) | Work::UpTo(..) => {}
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
    use super::{super::Kind, *};

    /// In an outage of the store that lasts, what watches say every few seconds must not take the room of what they say once.
    #[test]
    fn how_far_a_watch_has_come_takes_half_of_the_queue_at_most() {
        let (queue, _work) = mpsc::channel(BACKLOG);
        let up_to = || {
            let watch = Watch { cluster: "c".into(), kind: Kind::Pod, namespace: None };
            Work::UpTo(watch, Mark { at: Moment::MIN, turn: 0 })
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
