//! Takes what comes for an EventListener, and says what its sender hears: an answer while it still waits, and one that makes it try
//! again where the upstream did not take the delivery.
//!
//! Senders know few statuses. GitLab takes 3xx for success, Azure DevOps switches a hook off after 500, and those that
//! try again do so after 503. So everything that is not the upstream's yes or no is 503 with `Retry-After`, also what a gateway in
//! front of it says while it is rolled out.

use std::{borrow::Cow, sync::Arc, time::Duration};

use http::{Response, StatusCode, header};
use serde::Deserialize;
use tokio::{
    runtime::Handle,
    time::{Instant, timeout_at},
};

use super::{
    exchange::Exchange,
    pipeline::{Ending, Worker},
    route::Route,
};
use crate::{
    app::App,
    authn::Authenticated,
    body::{OnEnd, ResponseBody, collect},
    downstream::finished,
    error::{Reason, Rejection},
    sha256::sha256,
    snapshot::Snapshot,
    webhooks::{EventId, Once, Reservation, Taking},
};

/// What storing a delivery leaves of its sender's time to the last try.
const STORING: Duration = Duration::from_secs(1);

/// The upstream, and what stores a delivery, has so much time even if the sender, or the audit trail, used up its own.
pub(super) const LEAST: Duration = Duration::from_secs(1);

const RETRY_AFTER: Duration = Duration::from_secs(10);

/// How long the body of an answer may take where the sender sets no bound: it is read though they may have left.
const UNHURRIED: Duration = Duration::from_secs(30);

/// The longest body of an answer that goes back to the sender. An EventListener's has some 150 bytes, and a sender that
/// shows the body (Slack, of another answer than 202) takes no more.
const MAX_ANSWER: usize = 64 << 10;

impl Worker {
    /// Takes what came for an EventListener: a delivery is stored or forwarded, whatever else comes is forwarded.
    pub(super) async fn take_delivery(
        &self,
        snapshot: &Arc<Snapshot>,
        authenticated: Authenticated,
        route: &Arc<Route>,
        taking: Option<Taking>,
        exchange: &mut Exchange,
    ) -> Result<Ending, Rejection> {
        let sender = route.webhook.as_ref().filter(|_| taking.is_some());
        let taken = match taking {
            Some(Taking::Held(keys, settings)) => {
                let budget = sender.map_or(Duration::ZERO, |sender| sender.answer_within().saturating_sub(STORING));
                Box::pin(self.hold(snapshot, authenticated, &keys, settings, budget, exchange)).await
            }
            Some(Taking::Reserved { reservation, is_form }) => {
                let delivered = self.deliver(snapshot, authenticated, route, Some(reservation), exchange).await;
                delivered.map(|ending| if is_form { plainly_taken(ending) } else { ending })
            }
            None => self.deliver(snapshot, authenticated, route, None, exchange).await,
        };
        taken.map_err(|rejection| match sender {
            Some(sender) => sender.heard(rejection),
            None => rejection,
        })
    }

    /// Forwards to an EventListener and tells the sender what became of it, while it still waits. The EventListener makes its
    /// run whether or not the sender does, so this goes on when they have left: else nobody would know who caused the run, and the
    /// delivery would be sent once more.
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
        // Here and not on the control runtime: the connections to the upstream are this worker's.
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
        let patience = budget.map(|budget| deadline(budget, exchange.elapsed()));
        exchange.set_deadline_of_trail(patience);
        // Whoever comes without a delivery sends each request once.
        let once = match &reservation {
            Some(reservation) => reservation.once(),
            None => Once { id: sha256(&[exchange.record().id.as_bytes()]), window: None },
        };
        let cleared = self.decide(snapshot, authenticated, Some(once), exchange).await;
        let is_sent = cleared.is_ok();
        // Anew, as the trail may have used it up.
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
                let (response, event_id) = read(response, deadline.unwrap_or_else(unhurried)).await;
                self.note_events(snapshot, once, event_id, exchange).await;
                Ok(Ending::Response { response, by })
            }
            other => {
                if is_sent {
                    self.note_events(snapshot, once, None, exchange).await;
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

/// What Slack hears of a form that an EventListener accepted: 200 and no body. Whoever pressed a button reads of its 202 that this
/// failed, and presses again, and whoever gave a command would be shown its JSON.
fn plainly_taken(ending: Ending) -> Ending {
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

/// When the sender must have its answer: `budget` after the arrival of the delivery, which was `elapsed` ago.
pub(super) fn deadline(budget: Duration, elapsed: Duration) -> Instant {
    Instant::now() + budget.saturating_sub(elapsed).max(LEAST.min(budget))
}

/// Until when an answer is read where the sender sets no bound.
fn unhurried() -> Instant {
    Instant::now() + UNHURRIED
}

/// Waits for `forward` until `deadline`. What failed by then is 503.
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

/// Commits or gives back what a delivery holds, by what became of it. Its sender waits for the first try alone.
async fn settle(app: &App, mut reservation: Reservation, is_taken: bool) {
    let Err(error) = reservation.settle(is_taken, app.clock.now()).await else { return };
    tracing::warn!(%error, is_taken, "what became of a delivery cannot be stored yet; it is tried again");
    let clock = app.clock.clone();
    app.drain.finish_on(&Handle::current(), async move {
        match reservation.settle_later(is_taken, &clock).await {
            Ok(()) => tracing::info!(is_taken, "what became of a delivery is stored now"),
            Err(error) => {
                tracing::warn!(%error, is_taken, "what became of a delivery cannot be stored: where replicas share the store, it is new when it comes again");
            }
        }
    });
}

/// What an EventListener says of a delivery that it will never take. Any other 4xx is of something in front of it, such as a gateway
/// that does not know it yet, or passes by itself.
const REFUSALS: [StatusCode; 4] = [
    StatusCode::BAD_REQUEST,
    StatusCode::PAYLOAD_TOO_LARGE,
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    StatusCode::UNPROCESSABLE_ENTITY,
];

/// Refuses an answer that says neither yes nor no, so that [`answer_by`] makes a 503 of it.
pub(super) fn check(status: StatusCode) -> Result<(), Rejection> {
    if status.is_success() || REFUSALS.contains(&status) {
        return Ok(());
    }
    Err(Rejection::new(Reason::UpstreamFailed, format!("the EventListener answered {status}")))
}

/// Reads the body of an answer whole and finds the event id in it. The head has decided already: a body that is too
/// long, or does not end before `deadline`, is left out.
pub(super) async fn read<E: OnEnd>(
    response: Response<ResponseBody<E>>,
    deadline: Instant,
) -> (Response<ResponseBody<E>>, Option<EventId>) {
    let (mut parts, body) = response.into_parts();
    let Some(bytes) = timeout_at(deadline, collect(body, MAX_ANSWER)).await.ok().flatten() else {
        tracing::debug!("the answer of an EventListener has no end, or a body that is too long");
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
