//! Deliveries that are stored before their sender gets an answer, and sent later: with the same steps from the decision
//! on, and with the configuration that is in force then.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header, uri::PathAndQuery};
use serde_json::json;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::{
    decide::decide_by_policy,
    delivery::{self, MIN_REMAINING},
    exchange::{AnswerBy, Exchange},
    headers,
    notes::note_target,
    own::own_response,
    pipeline::Ending,
    route::Route,
    sanitize::{CleanRequest, Meta},
    worker::Worker,
};
use crate::{
    app::{hooks, rollout},
    audit::Record,
    authn::{self, Authenticated},
    authz::Permit,
    body::RequestBody,
    clock::Timestamp,
    error::{Reason, Rejection},
    logging::TraceContext,
    memory::Level,
    snapshot::Snapshot,
    upstream::buffered::{Room, Share},
    webhooks::{
        DeliveryKey, EventId, ReplayKeys,
        hold::{
            ATTEMPT_TIMEOUT, Attempt, Deliverer, Failure, FailureKind, Held, HeldHead, HeldId, HeldRequest, Settings,
            patiently,
        },
    },
};

impl Worker {
    /// Records and stores a delivery that the policy allows, and answers its sender. The record comes first, as for a
    /// request that is forwarded: what is stored will be sent, whatever happens to this process. Until `budget` is over,
    /// this waits for the audit trail and retries a store that stalls.
    pub(super) async fn hold(
        &self,
        snapshot: &Snapshot,
        authenticated: Authenticated,
        keys: &ReplayKeys,
        settings: Settings,
        budget: Duration,
        exchange: &mut Exchange,
    ) -> Result<Ending, Rejection> {
        let begun = self.app.clock.moment();
        let now = begun.wall();
        let (permit, _) = decide_by_policy(&snapshot.policy, authenticated, now, exchange.record())?;
        exchange.set_trail_deadline(Some(delivery::deadline(budget, exchange.elapsed())));
        self.record_decision(snapshot, &permit, begun, exchange).await?;
        let deadline = delivery::deadline(budget, exchange.elapsed());
        let record = exchange.record();
        let request_id = record.id;
        let (held, request) = keep(permit, request_id, settings, Arc::clone(snapshot.policy.digest()), now)?;
        let delivery = Arc::clone(&held.delivery);
        let waiting = |_| self.app.held.waiting(&self.app.replay, keys, now);
        let id = match patiently(deadline, waiting).await? {
            Some((id, held_by)) => {
                // This request does not send the delivery, nor is it one of its tries.
                record.about = Some(held_by);
                id
            }
            None => {
                let (app, held, request, settings) = (&self.app, &held, &request, &settings);
                let keep = |is_again: bool| async move {
                    match is_again {
                        true => app.held.keep_again(&app.replay, keys, held.clone(), request, settings, now).await,
                        false => app.held.keep(&app.replay, keys, held.clone(), request, settings, now).await,
                    }
                };
                let id = patiently(deadline, keep).await?;
                record.held = Some(request_id);
                id
            }
        };
        // The delivery is sent in any case, but its sender gets 202 only once a failover cannot lose it.
        patiently(deadline, |_| self.app.held.replicated(keys)).await?;
        let body = json!({"delivery": &*delivery, "held": id.to_string()});
        let mut response = Response::new(Bytes::from(format!("{body}\n")));
        *response.status_mut() = StatusCode::ACCEPTED;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(own_response(response, request_id))
    }

    async fn send_held(
        &self,
        snapshot: &Arc<Snapshot>,
        route: &Arc<Route>,
        id: HeldId,
        request: HeldRequest,
        exchange: &mut Exchange,
    ) -> Result<(StatusCode, Option<EventId>), Rejection> {
        let HeldRequest { head, body } = request;
        let record = exchange.record();
        let facts = Arc::new(head.facts.clone());
        record.delivery = Some(Arc::clone(&facts));
        record.note_body(&body);
        let request = restore(&head, record.id, RequestBody::Buffered(body))?;
        record.trace = request.meta().trace_id();
        let authenticated = authn::stored_delivery(request, route, &facts, &self.app.revocations, record)?;
        let key = DeliveryKey { id: *id.as_bytes(), window: None };
        let begun = Instant::now();
        let deadline = begun + ATTEMPT_TIMEOUT;
        exchange.set_trail_deadline(Some(begun + ATTEMPT_TIMEOUT.saturating_sub(MIN_REMAINING)));
        let is_sent = AtomicBool::new(false);
        let send = async {
            let cleared = self.decide(snapshot, authenticated, Some(key), exchange).await?;
            is_sent.store(true, Ordering::Relaxed);
            let forward = async {
                let ending = self.forward(snapshot, cleared, exchange).await?;
                let Ending::Response { response, .. } = ending else {
                    return Err(Rejection::new(Reason::UpstreamProtocol, "the EventListener switched protocols"));
                };
                let status = response.status();
                delivery::check(status)?;
                Ok((status, delivery::read(response, deadline).await.1))
            };
            end_by(deadline, forward).await
        };
        let sent = tokio::select! {
            sent = send => sent,
            () = self.stops_asking(snapshot) => Err(cut(is_sent.load(Ordering::Relaxed))),
        };
        let event = sent.as_ref().ok().and_then(|(_, event)| event.clone());
        if is_sent.load(Ordering::Relaxed) {
            self.note_events(snapshot, key, event, exchange).await;
        }
        sent
    }

    /// Completes when this process closes its listeners, if an interceptor is configured. From then on an EventListener
    /// cannot reach the interceptor, and makes no run of what it answers. That is treated like an answer that never
    /// came: the delivery is sent again, and the interceptor lets only one of them pass.
    async fn stops_asking(&self, snapshot: &Snapshot) {
        if snapshot.raw.interceptor.is_none() {
            return pending().await;
        }
        self.app.drain.until_closing().await;
    }
}

impl Deliverer for Worker {
    fn knows_all(&self) {
        hooks::warn_of_gone(&self.app);
    }

    fn room(&self, held: &Held) -> Option<Room> {
        // Streams are refused from this level on as well, and a delivery that waits in the store costs no memory.
        let is_short = self.app.memory.level() >= Level::RefuseStreams;
        let share = Share::Held(Arc::clone(&held.webhook));
        self.app.budget.room(share, usize::try_from(held.size).ok()?).filter(|_| !is_short)
    }

    async fn deliver(&self, id: HeldId, held: &Held, request: HeldRequest) -> Attempt {
        let epoch = self.app.streams.epoch();
        let snapshot = self.app.snapshot.load_full();
        // Found by its sender, which has one route, whatever that route is called now.
        let Some(route) = snapshot.routes.of_webhook(&held.webhook) else {
            let why = format!("no route takes deliveries of the webhook `{}` any more", held.webhook);
            return Attempt::Failed(Failure { kind: FailureKind::Passing, why });
        };
        let ledger = self.ledger(&route.metrics, epoch);
        let mut record = Record::begin(Uuid::now_v7(), self.app.clock.now(), Method::POST);
        record.held = Some(held.request);
        record.host = Arc::clone(&request.head.host);
        record.path = request.head.target.split('?').next().unwrap_or_default().into();
        record.address = Some(request.head.client);
        note_target(&mut record, route, &snapshot);
        let mut exchange = Exchange::resume(record, ledger);
        let sent = Box::pin(self.send_held(&snapshot, route, id, request, &mut exchange)).await;
        let attempt = match sent {
            Ok((status, event)) => {
                exchange.answered(status, AnswerBy::Upstream);
                match status.is_success() {
                    true => Attempt::Accepted(event),
                    false => Attempt::Failed(refused(status)),
                }
            }
            Err(rejection) => {
                exchange.refused(&rejection);
                let mut failure = failure(&rejection);
                // A replica that has not loaded a new policy yet, or already has, must not give up what another replica
                // still allows.
                if is_of_policy(&rejection)
                    && held.policy != *snapshot.policy.digest()
                    && rollout::is_in_force_elsewhere(&self.app, &held.policy).await
                {
                    failure.kind = FailureKind::Passing;
                    failure.why.push_str(
                        "; another replica still decides by the policy that accepted it, so it is tried again",
                    );
                }
                Attempt::Failed(failure)
            }
        };
        // Before anything follows from the attempt: once the delivery is forgotten, only the trail knows its event.
        exchange.end_recorded().await;
        attempt
    }
}

/// What is stored of a delivery that may be sent. The permit ends here: a held delivery is decided again when it is
/// sent.
fn keep(
    mut permit: Permit,
    request: Uuid,
    settings: Settings,
    policy: Arc<str>,
    now: Timestamp,
) -> Result<(Held, HeldRequest), Rejection> {
    let internal = |why: &'static str| Rejection::new(Reason::Internal, why);
    let facts = permit.principal().delivery.clone().ok_or_else(|| internal("a delivery without facts"))?;
    let (received, body, _) = permit.take_parts();
    let RequestBody::Buffered(body) = body else { return Err(internal("a delivery whose body was not read")) };
    let route = permit.route();
    let mut passing = headers::outbound(route.kind, received, &route.pass_headers, None);
    let meta = permit.meta();
    if let Some(trace) = &meta.trace {
        trace.write(&mut passing);
    }
    let head = HeldHead {
        host: Arc::clone(permit.host()),
        host_line: meta.host_line.as_ref().and_then(|line| Some(line.to_str().ok()?.to_owned())),
        target: permit.target().to_string(),
        secure: meta.secure,
        client: meta.client,
        headers: HeldHead::keep_headers(&passing),
        facts: (*facts).clone(),
    };
    let held = Held {
        webhook: Arc::clone(&facts.webhook),
        route: Arc::clone(&route.name),
        delivery: Arc::clone(&facts.delivery),
        request,
        event: facts.event.clone(),
        repository: facts.repository.clone(),
        repository_id: facts.repository_id.clone(),
        size: 0,
        received: now,
        span: settings.span,
        until: now + settings.span,
        place: None,
        tries: 0,
        refusals: 0,
        next: now,
        parked: None,
        policy,
        last_error: None,
    };
    Ok((held, HeldRequest { head, body }))
}

/// Rebuilds the request as it was when it was stored, under an id of its own.
fn restore(head: &HeldHead, id: Uuid, body: RequestBody) -> Result<CleanRequest<RequestBody>, Rejection> {
    let unreadable = |_| Rejection::new(Reason::Internal, "the address of a held delivery cannot be read");
    let target = PathAndQuery::try_from(head.target.as_str()).map_err(unreadable)?;
    let line = |text: String| HeaderValue::try_from(text).ok();
    let headers = head.header_map();
    let meta = Meta {
        id,
        id_line: headers::id_line(id),
        proxied: false,
        client: head.client,
        is_shared_address: false,
        client_line: line(head.client.to_string()),
        secure: head.secure,
        impersonation: Vec::new(),
        upgrade: None,
        on_upgrade: None,
        accepts_trailers: false,
        expects_continue: false,
        trace: TraceContext::from_headers(&headers),
        host_line: head.host_line.clone().and_then(line),
    };
    Ok(CleanRequest::restored(Method::POST, Arc::clone(&head.host), target, headers, meta, body))
}

/// The outcome of an attempt that was not over when the listeners were closed.
fn cut(is_sent: bool) -> Rejection {
    match is_sent {
        true => {
            let why = "this process, which an EventListener queries before it makes a run, stopped before there was an answer, if \
                       the EventListener got the delivery at all";
            Rejection::new(Reason::UpstreamTimeout, why)
        }
        false => Rejection::new(Reason::Draining, "this process stopped before it sent the delivery on"),
    }
}

/// Waits for `send` until `deadline`. An attempt that is not over by then has failed.
async fn end_by<T>(deadline: Instant, send: impl Future<Output = Result<T, Rejection>>) -> Result<T, Rejection> {
    timeout_at(deadline, send).await.unwrap_or_else(|_| {
        let why =
            format!("the EventListener did not answer within {ATTEMPT_TIMEOUT:?}, if it received the delivery by then");
        Err(Rejection::new(Reason::UpstreamTimeout, why))
    })
}

/// The meaning of a refusal by the EventListener, which [`delivery::check`] has told from a failure.
fn refused(status: StatusCode) -> Failure {
    Failure { kind: FailureKind::Refused, why: format!("the EventListener answered {status}") }
}

/// The meaning of a refusal by Doorward itself. Unless it is a decision, it is a failure that passes.
fn failure(rejection: &Rejection) -> Failure {
    let denied = rejection.reason().is_decision();
    let mut why = format!("{}: {}", rejection.reason(), rejection.in_full());
    let rule = rejection.rule().map(|rule| format!("rule `{rule}`"));
    // A denial names it already.
    if let Some(rule) = rule.filter(|rule| !why.contains(rule)) {
        why = format!("{why} ({rule})");
    }
    Failure { kind: if denied { FailureKind::Denied } else { FailureKind::Passing }, why }
}

/// Whether another policy might allow what was refused.
fn is_of_policy(rejection: &Rejection) -> bool {
    rejection.reason().is_decision() && rejection.reason() != Reason::TokenRevoked
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName};
    use serde::Deserialize as _;
    use serde_json::Value;

    use super::*;
    use crate::webhooks::Facts;

    #[test]
    fn the_rule_that_denies_a_held_delivery_is_named_once() {
        let said = |detail: &str| {
            let rejection = Rejection::new(Reason::PolicyDenied, detail.to_owned()).with_rule("closed".into());
            failure(&rejection).why
        };
        assert_eq!(
            said("the rule `closed` denies this request"),
            "policy_denied: the rule `closed` denies this request"
        );
        assert_eq!(said("it needs more"), "policy_denied: it needs more (rule `closed`)");
    }

    #[test]
    fn temporary_failures_are_distinguished_from_final_ones() {
        for (status, kind) in [
            (400, FailureKind::Refused),
            (413, FailureKind::Refused),
            (415, FailureKind::Refused),
            (422, FailureKind::Refused),
            (401, FailureKind::Passing),
            (403, FailureKind::Passing),
            (404, FailureKind::Passing),
            (405, FailureKind::Passing),
            (408, FailureKind::Passing),
            (410, FailureKind::Passing),
            (425, FailureKind::Passing),
            (429, FailureKind::Passing),
            (503, FailureKind::Passing),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let failed = delivery::check(status).map_or_else(|rejection| failure(&rejection), |()| refused(status));
            assert_eq!(failed.kind, kind, "{status}");
            assert!(failed.why.contains(status.as_str()), "{}", failed.why);
        }
        for (reason, kind) in [
            (Reason::PolicyDenied, FailureKind::Denied),
            (Reason::TokenRevoked, FailureKind::Denied),
            (Reason::UpstreamTimeout, FailureKind::Passing),
            (Reason::UpstreamUnreachable, FailureKind::Passing),
            (Reason::UpstreamFailed, FailureKind::Passing),
            (Reason::StoreUnavailable, FailureKind::Passing),
            (Reason::Overloaded, FailureKind::Passing),
            (Reason::Internal, FailureKind::Passing),
        ] {
            assert_eq!(failure(&Rejection::new(reason, "")).kind, kind, "{reason:?}");
        }
    }

    #[test]
    fn a_failed_attempt_says_why_the_event_listener_could_not_be_reached() {
        let unreachable = Rejection::new(Reason::UpstreamUnreachable, "it cannot be reached");
        let why = failure(&unreachable.because("Connection refused")).why;
        assert_eq!(why, "upstream_unreachable: it cannot be reached: Connection refused");
    }

    /// Regression: an attempt that was cut before it was sent counted as an EventListener that did not answer.
    #[test]
    fn a_try_that_the_end_of_the_process_cuts_is_of_the_event_listener_only_if_it_was_sent() {
        for (is_sent, reason) in [(true, Reason::UpstreamTimeout), (false, Reason::Draining)] {
            let cut = cut(is_sent);
            assert_eq!((cut.reason(), failure(&cut).kind), (reason, FailureKind::Passing));
            assert!(cut.to_string().contains("this process"), "{cut}");
            // It may have waited for a connection.
            assert_eq!(cut.to_string().contains("if the EventListener got the delivery at all"), is_sent, "{cut}");
        }
    }

    fn kept(headers: &[(&str, &str)]) -> Value {
        json!({
            "host": "hooks.test", "target": "/github", "secure": true, "client": "192.0.2.1", "headers": headers,
            "facts": Facts::default(),
        })
    }

    /// The trace that it is forwarded with.
    fn trace_of(kept: &Value) -> HeaderMap {
        let restored = restore(&HeldHead::deserialize(kept).unwrap(), Uuid::nil(), RequestBody::Empty).unwrap();
        let mut sent = HeaderMap::new();
        if let Some(trace) = &restored.meta().trace {
            trace.write(&mut sent);
        }
        sent
    }

    #[test]
    fn a_held_delivery_is_forwarded_with_the_trace_that_it_came_with_or_with_none() {
        let parent = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        for lines in [&[parent, ("tracestate", "a=1")][..], &[parent], &[]] {
            let line = |&(name, value): &(&'static str, &'static str)| {
                (HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            assert_eq!(trace_of(&kept(lines)), lines.iter().map(line).collect::<HeaderMap>());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_ends_before_the_lease_of_its_lane_does() {
        let begin = Instant::now();
        let failed = end_by(begin + ATTEMPT_TIMEOUT, pending::<Result<(), Rejection>>()).await.unwrap_err();
        assert_eq!((begin.elapsed(), failure(&failed).kind), (ATTEMPT_TIMEOUT, FailureKind::Passing));
        assert!(end_by(begin + ATTEMPT_TIMEOUT, async { Ok(()) }).await.is_ok());
    }
}
