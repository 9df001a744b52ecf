//! Handles requests for an EventListener, and decides what their sender is told: an answer while the sender still
//! waits, and one that makes it try again if the upstream did not take the delivery.
//!
//! Senders understand few statuses. GitLab takes 3xx for success, Azure DevOps disables a webhook after 500, and
//! senders that retry do so after 503. So everything that is neither an acceptance nor a refusal by the upstream is
//! answered with 503 and `Retry-After`, also what a gateway in front of it answers during a rollout.

use std::{borrow::Cow, sync::Arc, time::Duration};

use http::{Response, StatusCode, header};
use serde::Deserialize;
use tokio::{
    runtime::Handle,
    time::{Instant, timeout_at},
};

use super::{exchange::Exchange, pipeline::Ending, route::Route, worker::Worker};
use crate::{
    app::App,
    authn::Authenticated,
    body::{OnEnd, ResponseBody, collect},
    downstream::finished,
    error::{Reason, Rejection},
    sha256::sha256,
    snapshot::Snapshot,
    webhooks::{Acceptance, DeliveryKey, EventId, Reservation},
};

/// The part of the sender's time that is left for the last try to store a delivery.
const STORING: Duration = Duration::from_secs(1);

/// The least time for the upstream, or for storing a delivery, even if the sender or the audit trail has used up the
/// budget.
pub(super) const MIN_REMAINING: Duration = Duration::from_secs(1);

const RETRY_AFTER: Duration = Duration::from_secs(10);

/// How long the body of an answer may take if the sender sets no bound: it is read even if the sender has disconnected.
const DEFAULT_WAIT: Duration = Duration::from_secs(30);

/// The largest body of an answer that is returned to the sender. An EventListener's has some 150 bytes, and a sender
/// that shows the body (Slack, of other answers than 202) accepts no more.
const MAX_ANSWER: usize = 64 << 10;

impl Worker {
    /// Handles a request for an EventListener: a delivery is stored or forwarded, anything else is forwarded.
    pub(super) async fn take_delivery(
        &self,
        snapshot: &Arc<Snapshot>,
        authenticated: Authenticated,
        route: &Arc<Route>,
        acceptance: Option<Acceptance>,
        exchange: &mut Exchange,
    ) -> Result<Ending, Rejection> {
        let sender = route.webhook.as_ref().filter(|_| acceptance.is_some());
        let taken = match acceptance {
            Some(Acceptance::Held(keys, settings)) => {
                let budget = sender.map_or(Duration::ZERO, |sender| sender.answer_within().saturating_sub(STORING));
                Box::pin(self.hold(snapshot, authenticated, &keys, settings, budget, exchange)).await
            }
            Some(Acceptance::Reserved { reservation, is_form }) => {
                let delivered = self.deliver(snapshot, authenticated, route, Some(reservation), exchange).await;
                delivered.map(|ending| if is_form { without_body(ending) } else { ending })
            }
            None => self.deliver(snapshot, authenticated, route, None, exchange).await,
        };
        taken.map_err(|rejection| match sender {
            Some(sender) => sender.heard(rejection),
            None => rejection,
        })
    }

    /// Forwards to an EventListener and reports the outcome to the sender while it still waits. The EventListener makes
    /// its run whether or not the sender waits, so this continues after the sender has disconnected: otherwise nobody
    /// would know who caused the run, and the delivery would be sent once more.
    async fn deliver(
        &self,
        snapshot: &Arc<Snapshot>,
        authenticated: Authenticated,
        route: &Arc<Route>,
        reservation: Option<Reservation>,
        exchange: &mut Exchange,
    ) -> Result<Ending, Rejection> {
        let (worker, snapshot, route) = (self.clone(), Arc::clone(snapshot), Arc::clone(route));
        let mut lent = exchange.lend();
        // Here and not on the control runtime, because the connections to the upstream belong to this worker.
        let delivered = self.app.drain.finish_on(&Handle::current(), async move {
            let delivered = worker.deliver_once(&snapshot, authenticated, &route, reservation, &mut lent).await;
            (delivered, lent)
        });
        let (delivered, back) = finished(delivered).await;
        *exchange = back;
        delivered
    }

    async fn deliver_once(
        &self,
        snapshot: &Arc<Snapshot>,
        authenticated: Authenticated,
        route: &Arc<Route>,
        reservation: Option<Reservation>,
        exchange: &mut Exchange,
    ) -> Result<Ending, Rejection> {
        let sender = route.webhook.as_ref().filter(|_| reservation.is_some());
        let budget = sender.map(|sender| sender.answer_within());
        let trail_deadline = budget.map(|budget| deadline(budget, exchange.elapsed()));
        exchange.set_trail_deadline(trail_deadline);
        // Anything but a delivery is identified by its request alone, as it is sent only once.
        let key = match &reservation {
            Some(reservation) => reservation.key(),
            None => DeliveryKey { id: sha256(&[exchange.record().id.as_bytes()]), window: None },
        };
        let cleared = self.decide(snapshot, authenticated, Some(key), exchange).await;
        let is_sent = cleared.is_ok();
        // Computed again, as the audit trail may have used up the time.
        let deadline = budget.map(|budget| deadline(budget, exchange.elapsed()));
        let forward = async {
            let ending = self.forward(snapshot, cleared?, exchange).await?;
            if let Ending::Response { response, .. } = &ending {
                check(response.status())?;
            }
            Ok(ending)
        };
        let forwarded = answer_by(deadline, forward).await;
        let forwarded = match forwarded {
            Ok(Ending::Response { response, by }) => {
                let (response, event_id) = read(response, deadline.unwrap_or_else(default_deadline)).await;
                self.note_events(snapshot, key, event_id, exchange).await;
                Ok(Ending::Response { response, by })
            }
            other => {
                if is_sent {
                    self.note_events(snapshot, key, None, exchange).await;
                }
                other
            }
        };
        if let Some(reservation) = reservation {
            let is_taken =
                matches!(&forwarded, Ok(Ending::Response { response, .. }) if response.status().is_success());
            settle(&self.app, reservation, is_taken).await;
        }
        forwarded
    }
}

/// The answer to Slack for a form that an EventListener accepted: 200 without a body. After a 202, Slack tells whoever
/// pressed a button that it failed, so that they press again, and would show the JSON to whoever entered a command.
fn without_body(ending: Ending) -> Ending {
    match ending {
        Ending::Response { response, by } if response.status() == StatusCode::ACCEPTED => {
            let (mut parts, _) = response.into_parts();
            parts.status = StatusCode::OK;
            parts.headers.remove(header::CONTENT_LENGTH);
            parts.headers.remove(header::CONTENT_TYPE);
            Ending::Response { response: Response::from_parts(parts, ResponseBody::empty()), by }
        }
        other => other,
    }
}

/// The deadline for the sender's answer: `budget` after the delivery arrived, which was `elapsed` ago. At least
/// [`MIN_REMAINING`] is left if the budget has that much.
pub(super) fn deadline(budget: Duration, elapsed: Duration) -> Instant {
    Instant::now() + budget.saturating_sub(elapsed).max(MIN_REMAINING.min(budget))
}

/// The deadline for reading an answer if the sender sets no bound.
fn default_deadline() -> Instant {
    Instant::now() + DEFAULT_WAIT
}

/// Waits for `forward` until `deadline`. A timeout or another failure of the upstream becomes a 503.
async fn answer_by<T>(
    deadline: Option<Instant>,
    forward: impl Future<Output = Result<T, Rejection>>,
) -> Result<T, Rejection> {
    let result = match deadline {
        None => forward.await,
        Some(deadline) => timeout_at(deadline, forward).await.unwrap_or_else(|_| {
            let detail = "the EventListener did not answer within the time that the sender of the delivery waits";
            Err(Rejection::new(Reason::UpstreamTimeout, detail))
        }),
    };
    result.map_err(|rejection| {
        if !rejection.reason().is_of_upstream() {
            return rejection;
        }
        rejection.with_status(StatusCode::SERVICE_UNAVAILABLE).with_retry_after(RETRY_AFTER).fix("send it again later")
    })
}

/// Commits the reservation of a delivery that was taken, or releases it. The sender waits for the first try only.
async fn settle(app: &App, mut reservation: Reservation, is_taken: bool) {
    let Err(error) = reservation.settle(is_taken, app.clock.now()).await else { return };
    tracing::warn!(%error, is_taken, "cannot store the outcome of a delivery yet; retrying");
    let clock = app.clock.clone();
    app.drain.finish_on(&Handle::current(), async move {
        match reservation.settle_later(is_taken, &clock).await {
            Ok(()) => tracing::info!(is_taken, "the outcome of a delivery is stored now"),
            Err(error) => {
                tracing::warn!(%error, is_taken, "cannot store the outcome of a delivery: where replicas share the store, it counts as new when it is sent again");
            }
        }
    });
}

/// The statuses by which an EventListener says that it will never take a delivery. Any other 4xx comes from something
/// in front of it, such as a gateway that does not know it yet, or is transient.
const REFUSALS: [StatusCode; 4] = [
    StatusCode::BAD_REQUEST,
    StatusCode::PAYLOAD_TOO_LARGE,
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    StatusCode::UNPROCESSABLE_ENTITY,
];

/// Refuses an answer that neither accepts nor refuses the delivery, so that [`answer_by`] turns it into a 503.
pub(super) fn check(status: StatusCode) -> Result<(), Rejection> {
    if status.is_success() || REFUSALS.contains(&status) {
        return Ok(());
    }
    Err(Rejection::new(Reason::UpstreamFailed, format!("the EventListener answered {status}")))
}

/// Reads the whole body of an answer and finds the event id in it. The head alone decides the outcome, so a body that
/// is too long, or does not end before `deadline`, is left out.
pub(super) async fn read<E: OnEnd>(
    response: Response<ResponseBody<E>>,
    deadline: Instant,
) -> (Response<ResponseBody<E>>, Option<EventId>) {
    let (mut parts, body) = response.into_parts();
    let Some(bytes) = timeout_at(deadline, collect(body, MAX_ANSWER)).await.ok().flatten() else {
        tracing::debug!("the body of an EventListener's answer does not end in time, or is too long");
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.remove(header::CONTENT_TYPE);
        return (Response::from_parts(parts, ResponseBody::empty()), None);
    };
    let event_id = parts.status.is_success().then(|| event_id(&bytes)).flatten();
    (Response::from_parts(parts, ResponseBody::full(bytes)), event_id)
}

/// The `eventID` of an EventListener's 202.
fn event_id(body: &[u8]) -> Option<EventId> {
    #[derive(Deserialize)]
    struct Accepted<'a> {
        #[serde(rename = "eventID")]
        event_id: Cow<'a, str>,
    }
    let accepted: Accepted<'_> = serde_json::from_slice(body).ok()?;
    EventId::parse(&accepted.event_id)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[test]
    fn an_event_id_is_taken_only_where_it_could_label_a_run() {
        for (body, id) in [
            (r#"{"eventListener":"el","namespace":"n","eventListenerUID":"","eventID":"a-1"}"#, Some("a-1")),
            (r#"{"eventID":""}"#, None),
            (r#"{"eventID":"a b"}"#, None),
            (r#"{"eventID":7}"#, None),
            (r#"{}"#, None),
            ("pong", None),
        ] {
            assert_eq!(event_id(body.as_bytes()), id.and_then(EventId::parse), "{body}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn webhooks_33_the_upstream_has_what_is_left_of_the_senders_time() {
        for (budget, elapsed, left) in [(8, 0, 8), (8, 5, 3), (8, 8, 1), (8, 60, 1)] {
            let budget = Duration::from_secs(budget);
            let deadline = deadline(budget, Duration::from_secs(elapsed));
            assert_eq!(deadline - Instant::now(), Duration::from_secs(left), "{budget:?} {elapsed}");
        }
        let start = Instant::now();
        let deadline = deadline(Duration::from_millis(2500), Duration::ZERO);
        let late = answer_by(Some(deadline), pending::<Result<(), Rejection>>()).await.unwrap_err();
        assert_eq!(start.elapsed(), Duration::from_millis(2500));
        assert_eq!((late.status(), late.reason()), (StatusCode::SERVICE_UNAVAILABLE, Reason::UpstreamTimeout));
        assert!(late.retry_after().is_some());
    }

    #[tokio::test]
    async fn webhooks_33_failures_of_the_upstream_are_503_and_refusals_stay() {
        for (reason, status) in [
            (Reason::UpstreamUnreachable, 503),
            (Reason::UpstreamProtocol, 503),
            (Reason::UpstreamCredential, 503),
            (Reason::Overloaded, 503),
            (Reason::PolicyDenied, 403),
            (Reason::BadRequest, 400),
        ] {
            let failed = async { Err::<(), _>(Rejection::new(reason, "")) };
            let rejection = answer_by(None, failed).await.unwrap_err();
            assert_eq!((rejection.status().as_u16(), rejection.reason()), (status, reason));
            assert_eq!(rejection.retry_after().is_some(), status == 503);
        }
        for status in [200, 202, 400, 413, 415, 422] {
            assert!(check(StatusCode::from_u16(status).unwrap()).is_ok(), "{status}");
        }
        for status in [307, 401, 403, 404, 408, 410, 429, 500, 503] {
            let failed = async { check(StatusCode::from_u16(status).unwrap()) };
            let rejection = answer_by(None, failed).await.unwrap_err();
            let said = (rejection.status().as_u16(), rejection.reason(), rejection.retry_after().is_some());
            assert_eq!(said, (503, Reason::UpstreamFailed, true), "{status}");
        }
    }
}
