//! Notes who caused a run, at the moment when Doorward learns that there is one: from the API server's answer to the request that
//! made it, or from an EventListener's to a delivery.

use std::{sync::Arc, time::Duration};

use data_encoding::HEXLOWER;
use http::{StatusCode, header};
use serde::Deserialize;
use tokio::{runtime::Handle, time::Instant};
use uuid::Uuid;

use super::{
    exchange::Exchange,
    forward::Forwarded,
    pipeline::{Cleared, Worker},
};
use crate::{
    audit::Record,
    authn::Principal,
    body::{ResponseBody, collect},
    error::{Reason, Rejection},
    runs::{Cause, CauseError, Causes, Mark},
    snapshot::Snapshot,
    webhooks::{EventId, Events, Named, Once, TriedEvent},
};

/// How long noting the event of a delivery may keep its sender waiting.
const PATIENCE: Duration = Duration::from_millis(800);

/// How long who caused a run is tried to be kept in the background, and how long between two tries, at first and at most. Until then
/// an exchange says that it may be known later.
const LATER: Duration = Duration::from_secs(25);
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// The largest answer that is looked at: etcd takes no larger object.
const MAX_ANSWER: usize = 3 << 20;

/// How long the answer to a request that made a run may take to end.
const WHOLE: Duration = Duration::from_secs(30);

/// A request that causes something.
#[derive(Clone, Debug)]
pub(super) struct Causing {
    id: Uuid,
    principal: Option<Arc<Principal>>,
    upstream: Option<Arc<str>>,
    route: Option<Arc<str>>,
}

/// What somebody caused.
#[derive(Clone, Debug)]
enum Caused {
    /// A run, by its uid.
    Run(String),
    /// The runs of an event.
    Event(String),
}

#[derive(Deserialize)]
struct Made {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    uid: String,
}

impl Causing {
    fn of(record: &Record) -> Self {
        Self {
            id: record.id,
            principal: record.principal.clone(),
            upstream: record.upstream.as_ref().map(|upstream| Arc::clone(&upstream.name)),
            route: record.route.clone(),
        }
    }
}

impl Worker {
    /// Sends a request that makes a run, and notes who caused that before anybody has the answer. The run is there whether or not
    /// they wait for it, so this goes on when they have left, as long as the upstream may take.
    pub(super) async fn send_and_note_run(
        &self,
        snapshot: &Arc<Snapshot>,
        mut cleared: Box<Cleared>,
        exchange: &mut Exchange,
    ) -> Result<Forwarded<Exchange>, Rejection> {
        let (worker, snapshot, by) = (self.clone(), Arc::clone(snapshot), Causing::of(exchange.record()));
        // Nobody else knows who caused the run, so that the process does not end before, as long as it waits for requests.
        // Here and not on the control runtime: the connections to the upstream are this worker's.
        let made = self.app.drain.finish_on(&Handle::current(), async move {
            let forwarded = worker.send(&mut cleared).await?;
            Ok(worker.note_made(&snapshot, forwarded, &by).await)
        });
        made.await
            .unwrap_or_else(|error| Err(Rejection::new(Reason::Internal, "the request was given up").because(error)))
    }

    /// Looks at the answer to a request that may have made a run, and gives it back. Nothing is read of any other.
    async fn note_made(
        &self,
        snapshot: &Arc<Snapshot>,
        forwarded: Forwarded<Exchange>,
        by: &Causing,
    ) -> Forwarded<Exchange> {
        let Forwarded::Response { response, long } = forwarded else { return forwarded };
        let is_json = response
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|media| media.as_bytes().starts_with(b"application/json"));
        if response.status() != StatusCode::CREATED {
            return Forwarded::Response { response, long };
        }
        if !is_json {
            tracing::warn!(request_id = %by.id, "the answer to a request that made a run is no JSON, though no other was asked for: its tasks get no tokens");
            return Forwarded::Response { response, long };
        }
        let (mut parts, body) = response.into_parts();
        let whole = tokio::time::timeout(WHOLE, collect(body, MAX_ANSWER)).await;
        let Some(bytes) = whole.ok().flatten() else {
            tracing::warn!(request_id = %by.id, "the answer to a request that made a run has no end, or is too long: its tasks get no tokens");
            parts.headers.remove(header::CONTENT_LENGTH);
            let response = http::Response::from_parts(parts, ResponseBody::empty());
            return Forwarded::Response { response, long };
        };
        match serde_json::from_slice::<Made>(&bytes) {
            Ok(made) => self.note_cause(snapshot, &Caused::Run(made.metadata.uid), by).await,
            Err(error) => {
                tracing::warn!(request_id = %by.id, %error, "the answer to a request that made a run names no object: its tasks get no tokens");
            }
        }
        Forwarded::Response { response: http::Response::from_parts(parts, ResponseBody::full(bytes)), long }
    }

    /// Notes which event a delivery became that was sent: the one of the EventListener's answer, or where that was lost the one that
    /// the interceptor was asked about. `once` names the delivery. Its sender waits meanwhile.
    pub(super) async fn note_events(
        &self,
        snapshot: &Arc<Snapshot>,
        once: Once,
        answered: Option<EventId>,
        exchange: &mut Exchange,
    ) {
        let mut events = Vec::new();
        if snapshot.raw.interceptor.is_some() {
            let now = self.app.clock.now();
            let delivery =
                Named { once: HEXLOWER.encode(&once.id).into(), until: once.window.map(|window| now + window) };
            let bound = self.bound(&delivery, answered.as_ref(), exchange);
            events = tokio::time::timeout(PATIENCE, bound).await.unwrap_or_else(|_| {
                tracing::warn!("which event a delivery became was not noted in time");
                Vec::new()
            });
        }
        events.extend(answered.clone().filter(|event| !events.contains(event)));
        // Runs of an earlier try are of the same cause.
        let by = Causing::of(exchange.record());
        for event in &events {
            self.note_cause(snapshot, &Caused::Event(event.as_str().to_owned()), &by).await;
        }
        exchange.record().event_id = answered.or_else(|| events.into_iter().next()).map(EventId::into_inner);
    }

    /// What Triggers of a delivery are bound to, once the interceptor knows what its EventListener answered. An assertion that
    /// somebody saw may have been asked about before under another event, which then made no run of ours.
    async fn bound(&self, delivery: &Named, answered: Option<&EventId>, exchange: &mut Exchange) -> Vec<EventId> {
        let (replay, now) = (&self.app.replay, self.app.clock.now());
        let attempt = exchange.record().id.to_string();
        let events = match answered {
            Some(event) => {
                let tried = TriedEvent { event: event.clone(), attempt: attempt.into() };
                replay.confirm_event(delivery, &tried, now).await
            }
            None => replay.leave_open(delivery, &attempt, now).await,
        };
        match events {
            Ok(Events { bound, false_one }) => {
                match (false_one, answered) {
                    (None, _) => return bound,
                    (Some(other), Some(event)) => {
                        tracing::error!(%event, %other, "a delivery was bound to an event that its EventListener does not know");
                    }
                    (Some(event), None) => {
                        tracing::error!(%event, "several events were named for a delivery, and its EventListener did not tell its own; a next try may make a run twice, without one a run may be missing, and tasks of a run that was made get no tokens");
                    }
                }
                self.app.metrics.webhooks.rebound.inc();
                bound
            }
            Err(error) => {
                tracing::warn!(%error, "which events a delivery became cannot be noted");
                Vec::new()
            }
        }
    }

    /// Notes what the principal of a request caused. Where the store is away for a moment it is tried again while nobody waits; where
    /// it cannot be kept at all, its tasks get no tokens: a run that names a request of ours is not looked for by its event.
    async fn note_cause(&self, snapshot: &Arc<Snapshot>, caused: &Caused, by: &Causing) {
        let Causing { id, principal, upstream, route } = by;
        let (Some(own_issuer), Some(principal)) = (&snapshot.own_issuer, principal) else { return };
        let route = snapshot.raw.routes.iter().find(|known| route.as_deref() == Some(&*known.name));
        // The Dashboard's back end makes runs at this one.
        let behind = route.and_then(|route| route.kubernetes.as_deref());
        let upstreams: Vec<&str> = upstream.as_deref().into_iter().chain(behind).collect();
        let mut is_kept = false;
        let clusters: Vec<&Arc<str>> = match caused {
            // Whoever answers a request to make a run can name the run of another cluster.
            Caused::Run(_) => own_issuer.clusters_of_run(&upstreams).collect(),
            Caused::Event(_) => own_issuer.clusters_of_event(&upstreams).collect(),
        };
        for cluster in clusters {
            is_kept = true;
            let keeping = self.keeping(snapshot, cluster, caused, principal, *id);
            match keeping.once().await {
                Ok(()) => {}
                Err(CauseError::Store(error)) => {
                    tracing::warn!(request_id = %id, %error, "who caused a run cannot be kept yet; it is tried again");
                    self.app.drain.finish_on(&Handle::current(), keeping.until_kept());
                }
                Err(error) => keeping.gave_up(&error),
            }
        }
        if !is_kept && own_issuer.has_clusters() {
            tracing::warn!(
                request_id = %id,
                upstream = upstream.as_deref(),
                "who caused a run is not kept, since no cluster of `tokens.exchange` names the upstream: its tasks get no tokens"
            );
        }
    }

    fn keeping(
        &self,
        snapshot: &Arc<Snapshot>,
        cluster: &Arc<str>,
        caused: &Caused,
        principal: &Principal,
        request: Uuid,
    ) -> Keeping {
        let claims = snapshot.claims.as_deref().unwrap_or_default();
        let issuer = snapshot.issuers.get(&principal.issuer);
        let identifier = issuer.map(|issuer| &**issuer.identifier());
        let cause = Cause::new(principal, identifier, request, self.app.clock.now(), claims);
        let (snapshot, cluster, caused) = (Arc::clone(snapshot), Arc::clone(cluster), caused.clone());
        Keeping { worker: self.clone(), snapshot, cluster, caused, cause, request }
    }
}

/// A cause that is to be kept, of what was caused in a cluster.
struct Keeping {
    worker: Worker,
    snapshot: Arc<Snapshot>,
    cluster: Arc<str>,
    caused: Caused,
    cause: Cause,
    request: Uuid,
}

impl Keeping {
    async fn once(&self) -> Result<(), CauseError> {
        let app = &self.worker.app;
        let causes = Causes { store: app.store(), keys: self.snapshot.sessions.keys() };
        let cluster = &self.cluster;
        let mark = match &self.caused {
            Caused::Run(uid) => Mark::Uid { cluster, uid },
            Caused::Event(event) => Mark::Event { cluster, event },
        };
        causes.keep(mark, &self.cause, app.clock.now()).await
    }

    /// Tries until it is kept, or has been tried for so long that who asks for a token was told that nobody is known.
    async fn until_kept(self) {
        let until = Instant::now() + LATER;
        let mut pause = RETRY.0;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
            match self.once().await {
                Ok(()) => {
                    tracing::info!(request_id = %self.request, "who caused a run is kept now");
                    return;
                }
                Err(CauseError::Store(_)) if Instant::now() < until => {}
                Err(error) => return self.gave_up(&error),
            }
        }
    }

    fn gave_up(&self, error: &CauseError) {
        tracing::warn!(request_id = %self.request, %error, "who caused a run cannot be kept: its tasks get no tokens");
    }
}
