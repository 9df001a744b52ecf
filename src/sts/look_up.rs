//! Looks up pods and runs: in what the watches report, which costs nothing, or at the API server.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use kube::{Resource, api::DynamicObject};

use super::{
    ends::{Kind, Object, RunEnds},
    objects::{GONE, Identity, Pod, REPLACED, Run},
    refusal::Refusal,
    siblings::MadeRuns,
};
use crate::{
    clock::Clock,
    error::{Reason, Rejection},
    kubernetes::ObjectRef,
    lock::lock,
    upstream::{GetError, Pools, Upstream},
};

/// The largest object of a run; etcd stores none larger.
const MAX_OBJECT: usize = 3 << 20;

/// Looks up objects of one cluster.
#[derive(Clone, Copy, Debug)]
pub struct Lookup<'a> {
    pub ends: &'a RunEnds,
    pub lookups: &'a Lookups,
    pub clock: &'a Clock,
    /// The name of its issuer.
    pub cluster: &'a Arc<str>,
    pub pools: &'a Pools,
    /// The API server, which is queried with Doorward's own credential.
    pub server: &'a Arc<Upstream>,
}

/// Where a [`Lookup`] looks.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// Slightly stale, and without objects that have ended: good enough to find an object, but not to refuse one.
    Watched,
    Server,
}

impl Lookup<'_> {
    /// The pod with this name and uid, unless it has ended.
    pub async fn pod(self, source: Source, namespace: &str, meant: &ObjectRef) -> Result<Arc<Pod>, Refusal> {
        match self.object(source, Kind::Pod, namespace, meant).await? {
            Object::Pod(pod) => Ok(pod),
            Object::Run(_) => Err(gone(called(Kind::Pod), &meant.name)),
        }
    }

    /// The TaskRun or PipelineRun with this name and uid, unless it has ended.
    pub async fn run(
        self,
        source: Source,
        kind: Kind,
        namespace: &str,
        meant: &ObjectRef,
    ) -> Result<Arc<Run>, Refusal> {
        match self.object(source, kind, namespace, meant).await? {
            Object::Run(run) => Ok(run),
            Object::Pod(_) => Err(gone(called(kind), &meant.name)),
        }
    }

    /// As [`Self::pod`] and [`Self::run`], for any kind.
    pub(super) async fn object(
        self,
        source: Source,
        kind: Kind,
        namespace: &str,
        meant: &ObjectRef,
    ) -> Result<Object, Refusal> {
        let ObjectRef { name, uid } = meant;
        let object = match source {
            Source::Watched => self.ends.find(self.cluster, kind, namespace, uid, self.clock.moment()),
            Source::Server => {
                let all = DynamicObject::url_path(&kind.resource(), Some(namespace));
                self.get(kind, format!("{all}/{name}")).await?
            }
        };
        let object = object.ok_or_else(|| gone(called(kind), name))?;
        still_is(object.identity(), object.end(), called(kind), meant)?;
        Ok(object)
    }

    /// Its state at the time of the call or later. `None` if it does not exist.
    pub(super) async fn get(self, kind: Kind, path: String) -> Result<Option<Object>, Refusal> {
        let turn = self.lookups.turn(self.cluster, &path);
        let look = async { Ok(self.look(&path).await?.map(|object| Object::read(kind, object))) };
        turn.take(look).await
    }

    async fn look(self, path: &str) -> Result<Option<DynamicObject>, Refusal> {
        let failed = |why: String| {
            tracing::warn!(path, why, "a run cannot be looked up for the exchange of a token");
            let detail = "the caller cannot be looked up in the cluster at the moment; try again";
            Refusal::unavailable(Reason::UpstreamFailed, detail)
        };
        self.pools.get_json(self.server, path, MAX_OBJECT).await.map_err(|error| match error {
            GetError::Upstream(error) => failed(Rejection::from(error).in_full()),
            // 401 too: the caller can do nothing about it, and gets the same refusal whatever failed.
            GetError::Status(status) => failed(format!(
                "status {status}; the credential of the upstream must be allowed to get pods, taskruns, pipelineruns and customruns"
            )),
            other => failed(other.to_string()),
        })
    }
}

/// Coalesces look-ups at API servers: there is one at a time per object, however many callers ask. A caller that asks
/// after a look-up began waits for the next, since the object may have changed in between.
#[derive(Clone, Debug, Default)]
pub struct Lookups {
    turns: Arc<Mutex<Turns>>,
    pub(super) made: MadeRuns,
}

/// By cluster and path.
type Turns = HashMap<(Arc<str>, String), Arc<Turn>>;

type Found = Result<Option<Object>, Refusal>;

#[derive(Debug, Default)]
struct Turn {
    /// Numbers both callers and look-ups.
    next: AtomicU64,
    /// The last result, and the number with which its look-up began.
    last: tokio::sync::Mutex<Option<(u64, Found)>>,
}

/// A caller's place in the queue for an object.
struct Ticket {
    lookups: Lookups,
    key: (Arc<str>, String),
    turn: Arc<Turn>,
    number: u64,
}

impl Lookups {
    fn turn(&self, cluster: &Arc<str>, path: &str) -> Ticket {
        let key = (Arc::clone(cluster), path.to_owned());
        let turn = Arc::clone(self.turns().entry(key.clone()).or_default());
        let number = turn.number();
        Ticket { lookups: self.clone(), key, turn, number }
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        lock(&self.turns)
    }
}

impl Turn {
    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

impl Ticket {
    /// The result of a look-up that began after this caller asked: another caller's, or its own.
    async fn take(self, look: impl Future<Output = Found>) -> Found {
        let mut last = self.turn.last.lock().await;
        if let Some((began, found)) = &*last
            && *began > self.number
        {
            return found.clone();
        }
        let began = self.turn.number();
        let found = look.await;
        *last = Some((began, found.clone()));
        found
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut turns = self.lookups.turns();
        // Under the lock, so that of two callers that end at the same moment one sees that only the map is left.
        drop(std::mem::take(&mut self.turn));
        if turns.get(&self.key).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            turns.remove(&self.key);
        }
    }
}

/// The name of a kind in messages.
fn called(kind: Kind) -> &'static str {
    if kind == Kind::Pod { "pod" } else { kind.name() }
}

fn gone(kind: &str, name: &str) -> Refusal {
    Refusal::subject(format!("{kind} {name}: {GONE}"))
}

/// Refuses if another object was found, or one that has ended.
pub(super) fn still_is(found: &Identity, end: Option<&str>, kind: &str, meant: &ObjectRef) -> Result<(), Refusal> {
    let ObjectRef { name, uid } = meant;
    let refuse = |why: &str| Err(Refusal::subject(format!("{kind} {name}: {why}")));
    match end {
        _ if found.uid != *uid || found.name != *name => refuse(REPLACED),
        Some(end) => refuse(end),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, atomic::AtomicUsize};

    use serde_json::json;
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn an_object_has_one_look_up_at_a_time_and_no_caller_gets_an_older_result() {
        let (lookups, cluster) = (Lookups::default(), Arc::from("c"));
        let (looks, may_end) = (AtomicUsize::new(0), Semaphore::new(0));
        let ask = |path: &'static str| {
            let ticket = lookups.turn(&cluster, path);
            ticket.take(async {
                let number = looks.fetch_add(1, Ordering::SeqCst);
                may_end.acquire().await.unwrap().forget();
                let object = json!({"metadata": {"name": "a", "uid": number.to_string()}});
                Ok(Some(Object::read(Kind::Pod, serde_json::from_value(object).unwrap())))
            })
        };
        let uid = |found: Found| match found {
            Ok(Some(Object::Pod(pod))) => pod.identity.uid.clone(),
            other => panic!("{other:?}"),
        };
        let mut first = Box::pin(ask("pod"));
        assert!(futures_util::poll!(&mut first).is_pending());
        // They ask while a look-up is in progress, whose result may be older than what they know.
        let mut others: Vec<_> = (0..100).map(|_| Box::pin(ask("pod"))).collect();
        for other in &mut others {
            assert!(futures_util::poll!(other).is_pending());
        }
        assert_eq!(looks.load(Ordering::SeqCst), 1);
        // The caller that looks may leave, and the next takes its place.
        drop(first);
        let second = others.remove(0);
        may_end.add_permits(1);
        assert_eq!(uid(second.await), "1");
        for other in others {
            assert_eq!(uid(other.await), "1", "one look-up for all who asked before it began");
        }
        may_end.add_permits(2);
        assert_eq!(uid(ask("pod").await), "2", "nothing is kept");
        assert_eq!(uid(ask("run").await), "3");
        assert!(lookups.turns().is_empty());
    }

    /// Each took the other for a caller that still asks, and the result was cached for ever.
    #[test]
    fn nothing_is_kept_where_the_last_two_end_at_the_same_moment() {
        let (lookups, cluster) = (Lookups::default(), Arc::from("c"));
        let (together, kept) = (Barrier::new(2), AtomicUsize::new(0));
        let ask_again_and_again = || {
            for _ in 0..10_000 {
                let ticket = lookups.turn(&cluster, "pod");
                together.wait();
                drop(ticket);
                together.wait();
                kept.fetch_add(lookups.turns().len(), Ordering::SeqCst);
                together.wait();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(ask_again_and_again);
            ask_again_and_again();
        });
        assert_eq!(kept.into_inner(), 0);
    }
}
