//! Records who caused a run as soon as Doorward learns of the run: from the API server's answer to the request that
//! created it, or from an EventListener's answer to a delivery.

use std::{sync::Arc, time::Duration};

use data_encoding::HEXLOWER;
use http::{StatusCode, header};
use serde::Deserialize;
use tokio::{runtime::Handle, time::Instant};
use uuid::Uuid;

use super::{decide::Cleared, exchange::Exchange, forward::Forwarded, worker::Worker};
use crate::{
    audit::Record,
    authn::Principal,
    body::{ResponseBody, collect},
    error::{Reason, Rejection},
    runs::{Cause, CauseError, Causes, Mark},
    snapshot::Snapshot,
    webhooks::{DeliveryKey, EventId, Events, Named, TriedEvent},
};

/// How long noting the event of a delivery may delay its sender.
const PATIENCE: Duration = Duration::from_millis(800);

/// How long storing a cause is retried in the background, and the first and the longest pause between two tries. Until
/// then a token exchange answers that the cause may be known later.
const LATER: Duration = Duration::from_secs(25);
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// The largest answer that is read: etcd stores no larger object.
const MAX_ANSWER: usize = 3 << 20;

/// How long the body of an answer that created a run may take.
const WHOLE: Duration = Duration::from_secs(30);

/// The request that caused something.
#[derive(Clone, Debug)]
pub(super) struct Causing {
    id: Uuid,
    principal: Option<Arc<Principal>>,
    upstream: Option<Arc<str>>,
    route: Option<Arc<str>>,
}

/// What a request caused.
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
    /// Sends a request that creates a run, and records who caused the run before the client gets the answer. The run
    /// exists whether or not the client waits, so this continues after the client has disconnected, for as long as the
    /// upstream may take.
    pub(super) async fn send_and_note_run(
        &self,
        snapshot: &Arc<Snapshot>,
        mut cleared: Box<Cleared>,
        exchange: &mut Exchange,
    ) -> Result<Forwarded<Exchange>, Rejection> {
        let (worker, snapshot, by) = (self.clone(), Arc::clone(snapshot), Causing::of(exchange.record()));
        // Nobody else knows who caused the run, so the drain waits for this as it does for requests. It runs here and
        // not on the control runtime, because the connections to the upstream belong to this worker.
        let made = self.app.drain.finish_on(&Handle::current(), async move {
            let forwarded = worker.send(&mut cleared).await?;
            Ok(worker.note_made(&snapshot, forwarded, &by).await)
        });
        made.await
            .unwrap_or_else(|error| Err(Rejection::new(Reason::Internal, "the request was abandoned").because(error)))
    }

    /// Reads the answer to a request that may have created a run, records the run's cause, and returns the answer. The
    /// body is read only if a run was created.
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
            tracing::warn!(request_id = %by.id, "the answer to a request that made a run is not JSON, although only JSON was accepted: its tasks get no tokens");
            return Forwarded::Response { response, long };
        }
        let (mut parts, body) = response.into_parts();
        let whole = tokio::time::timeout(WHOLE, collect(body, MAX_ANSWER)).await;
        let Some(bytes) = whole.ok().flatten() else {
            tracing::warn!(request_id = %by.id, "the answer to a request that made a run does not end in time, or is too long: its tasks get no tokens");
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

    /// Notes which event a delivery became after it was sent: the one in the EventListener's answer or, if that was
    /// lost, the one that the interceptor was asked about. `key` identifies the delivery. Its sender waits meanwhile.
    pub(super) async fn note_events(
        &self,
        snapshot: &Arc<Snapshot>,
        key: DeliveryKey,
        answered: Option<EventId>,
        exchange: &mut Exchange,
    ) {
        let mut events = Vec::new();
        if snapshot.raw.interceptor.is_some() {
            let now = self.app.clock.now();
            let delivery =
                Named { once: HEXLOWER.encode(&key.id).into(), until: key.window.map(|window| now + window) };
            let bound = self.bound(&delivery, answered.as_ref(), exchange);
            events = tokio::time::timeout(PATIENCE, bound).await.unwrap_or_else(|_| {
                tracing::warn!("the event of a delivery was not noted in time");
                Vec::new()
            });
        }
        events.extend(answered.clone().filter(|event| !events.contains(event)));
        // Runs of an earlier try have the same cause.
        let by = Causing::of(exchange.record());
        for event in &events {
            self.note_cause(snapshot, &Caused::Event(event.as_str().to_owned()), &by).await;
        }
        exchange.record().event_id = answered.or_else(|| events.into_iter().next()).map(EventId::into_inner);
    }

    /// Returns the events that Triggers of a delivery are bound to, once the interceptor knows what the EventListener
    /// answered. Somebody who saw an assertion may have asked about it earlier under another event, which then made no
    /// run of ours.
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
                        tracing::error!(%event, "several events were named for a delivery, and its EventListener did not say which is its own; another try may make a run twice, without one a run may be missing, and tasks of a run that was made get no tokens");
                    }
                }
                self.app.metrics.webhooks.rebound.inc();
                bound
            }
            Err(error) => {
                tracing::warn!(%error, "cannot note the events of a delivery");
                Vec::new()
            }
        }
    }

    /// Stores what the principal of a request caused. If the store is unavailable, storing is retried in the
    /// background. If it fails for good, tasks of the run get no tokens: a run that names a request of ours is not
    /// looked up by its event.
    async fn note_cause(&self, snapshot: &Arc<Snapshot>, caused: &Caused, by: &Causing) {
        let Causing { id, principal, upstream, route } = by;
        let (Some(own_issuer), Some(principal)) = (&snapshot.own_issuer, principal) else { return };
        let route = snapshot.raw.routes.iter().find(|known| route.as_deref() == Some(&*known.name));
        // The upstream through which the Dashboard's back end creates runs.
        let behind = route.and_then(|route| route.kubernetes.as_deref());
        let upstreams: Vec<&str> = upstream.as_deref().into_iter().chain(behind).collect();
        let mut is_kept = false;
        let clusters: Vec<&Arc<str>> = match caused {
            // An upstream that answers a request to create a run could name a run of another cluster.
            Caused::Run(_) => own_issuer.clusters_of_run(&upstreams).collect(),
            Caused::Event(_) => own_issuer.clusters_of_event(&upstreams).collect(),
        };
        for cluster in clusters {
            is_kept = true;
            let keeping = self.keeping(snapshot, cluster, caused, principal, *id);
            match keeping.once().await {
                Ok(()) => {}
                Err(CauseError::Store(error)) => {
                    tracing::warn!(request_id = %id, %error, "cannot store the cause of a run yet; retrying");
                    self.app.drain.finish_on(&Handle::current(), keeping.until_kept());
                }
                Err(error) => keeping.gave_up(&error),
            }
        }
        if !is_kept && own_issuer.has_clusters() {
            tracing::warn!(
                request_id = %id,
                upstream = upstream.as_deref(),
                "the cause of a run is not stored, since no cluster of `tokens.exchange` names the upstream: its tasks get no tokens"
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

/// A cause that is to be stored for a run or an event of a cluster.
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

    /// Retries until the cause is stored, or until token exchanges have begun to answer that nobody is known.
    async fn until_kept(self) {
        let until = Instant::now() + LATER;
        let mut pause = RETRY.0;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
            match self.once().await {
                Ok(()) => {
                    tracing::info!(request_id = %self.request, "the cause of a run is stored now");
                    return;
                }
                Err(CauseError::Store(_)) if Instant::now() < until => {}
                Err(error) => return self.gave_up(&error),
            }
        }
    }

    fn gave_up(&self, error: &CauseError) {
        tracing::warn!(request_id = %self.request, %error, "cannot store the cause of a run: its tasks get no tokens");
    }
}
