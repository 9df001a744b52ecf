//! What a sender of webhooks hears of the upstream: an answer while it still waits, and one that makes it try again
//! where the upstream did not take the delivery.
//!
//! Senders know few statuses. GitLab takes 3xx for success, Azure DevOps switches a hook off after 500, and those that
//! try again do so after 503. So everything that is not the upstream's yes or no is 503 with `Retry-After`, also what a gateway in
//! front of it says while it is rolled out.

use std::{borrow::Cow, time::Duration};

use http::{Response, StatusCode, header};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use crate::{
    body::{OnEnd, ResponseBody, collect},
    clock::Timestamp,
    error::{Reason, Rejection},
    webhooks::{EventId, Reservation},
};

/// The upstream has so much time even if the sender used up its own.
const LEAST: Duration = Duration::from_secs(1);

const RETRY_AFTER: Duration = Duration::from_secs(10);

/// How long the body of an answer may take where the sender sets no bound: it is read though they may have left.
const UNHURRIED: Duration = Duration::from_secs(30);

/// The longest body of an answer that goes back to the sender. An EventListener's has some 150 bytes, and a sender that
/// shows the body (Slack) takes no more.
const MAX_ANSWER: usize = 64 << 10;

/// When the sender must have its answer: `budget` after the arrival of the delivery, which was `elapsed` ago.
pub(super) fn deadline(budget: Duration, elapsed: Duration) -> Instant {
    Instant::now() + budget.saturating_sub(elapsed).max(LEAST.min(budget))
}

/// Until when an answer is read where the sender sets no bound.
pub(super) fn unhurried() -> Instant {
    Instant::now() + UNHURRIED
}

/// Waits for `forward` until `deadline`. What failed by then is 503.
pub(super) async fn answer_by<T>(
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
    result.map_err(|rejection| match rejection.reason() {
        Reason::UpstreamUnreachable
        | Reason::UpstreamTimeout
        | Reason::UpstreamProtocol
        | Reason::UpstreamFailed
        | Reason::UpstreamCredential => {
            rejection.with_status(StatusCode::SERVICE_UNAVAILABLE).retry_after(RETRY_AFTER).fix("send it again later")
        }
        _ => rejection,
    })
}

/// Commits or gives back what a delivery holds, by what became of it.
pub(super) async fn settle(reservation: Reservation, is_taken: bool, now: Timestamp) {
    let settled = if is_taken { reservation.commit(now).await } else { reservation.release(now).await };
    if let Err(error) = settled {
        tracing::warn!(error = &error as &dyn std::error::Error, "a delivery's id is held until its lease ends");
    }
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
        let late = answer_by(Some(deadline), std::future::pending::<Result<(), Rejection>>()).await.unwrap_err();
        assert_eq!(start.elapsed(), Duration::from_millis(2500));
        assert_eq!((late.status(), late.reason()), (StatusCode::SERVICE_UNAVAILABLE, Reason::UpstreamTimeout));
        assert!(late.retry_after_span().is_some());
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
            assert_eq!(rejection.retry_after_span().is_some(), status == 503);
        }
        for status in [200, 202, 400, 413, 415, 422] {
            assert!(check(StatusCode::from_u16(status).unwrap()).is_ok(), "{status}");
        }
        for status in [307, 401, 403, 404, 408, 410, 429, 500, 503] {
            let failed = async { check(StatusCode::from_u16(status).unwrap()) };
            let rejection = answer_by(None, failed).await.unwrap_err();
            let said = (rejection.status().as_u16(), rejection.reason(), rejection.retry_after_span().is_some());
            assert_eq!(said, (503, Reason::UpstreamFailed, true), "{status}");
        }
    }
}
