//! One request and its answer, from the listener's hands back to them: what is recorded, counted, and when.
//!
//! The exchange is opened before anything else and closed once, whatever happens: when the last byte of the answer is
//! handed over, when the client goes away, when a stream is cut. Closing it writes the audit record.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use tokio::time::timeout_at;
use uuid::Uuid;

use super::host::normalise;
use crate::{
    admin::metrics::{InFlight, Outcome, RouteMetrics},
    audit::{self, AuditUnavailable, Phase, Record, Reservation, Trail},
    authn::Scheme,
    body::{BodyEnd, EndedBy, OnEnd, Received},
    clock::Timestamp,
    downstream::{Connection, TlsInfo, TlsVersion},
    error::Rejection,
    upstream::upgrade::SpliceEnd,
};

/// The exchange. Dropped before its end, it says that the client went away.
#[derive(Debug)]
pub struct Exchange(Box<Open>);

#[derive(Debug)]
struct Open {
    /// Goes to the trail as it is when the exchange is closed, which leaves none.
    record: Option<Box<Record>>,
    began: Instant,
    trail: Trail,
    /// None of what was held, or was lent.
    connection: Option<Arc<Connection>>,
    reservation: Option<Reservation>,
    /// Until when its sender waits for the trail, where that is known.
    patience: Option<tokio::time::Instant>,
    metrics: Arc<RouteMetrics>,
    outcome: Outcome,
    /// How long it took until the head of its answer was there.
    to_answer: Option<Duration>,
    /// What came of a request body that is passed on as it comes.
    received: Option<Arc<Received>>,
    epoch: u64,
    /// None once it is lent.
    _in_flight: Option<InFlight>,
}

/// What was asked, as it was sent: for the record of a request that is refused before it is understood. Made of each
/// request, so it shares what it holds.
#[derive(Debug)]
pub struct Sent {
    uri: Uri,
    host: Option<HeaderValue>,
}

impl Sent {
    pub fn of<B>(request: &Request<B>) -> Self {
        Self { uri: request.uri().clone(), host: request.headers().get(header::HOST).cloned() }
    }

    fn host(&self) -> Cow<'_, str> {
        let line = self.host.as_ref().map(|line| String::from_utf8_lossy(line.as_bytes()));
        let named = self.uri.authority().map(|authority| authority.as_str().into()).or(line).unwrap_or_default();
        match normalise(&named) {
            Some(host) => host.into_owned().into(),
            // What stands before an `@` may be a password.
            None => named.rsplit('@').next().unwrap_or_default().to_owned().into(),
        }
    }
}

/// Who gave an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerBy {
    Upstream,
    /// Doorward itself.
    Us,
}

/// What an exchange writes to and is counted on, and when it began as far as streams are concerned.
#[derive(Debug)]
pub struct Ledger {
    pub trail: Trail,
    /// The metrics of requests that match no route, until one is found.
    pub metrics: Arc<RouteMetrics>,
    pub in_flight: InFlight,
    /// Which look at all streams was the last before the generation was taken that decides.
    pub epoch: u64,
}

impl Exchange {
    pub fn begin<B>(
        id: Uuid,
        now: Timestamp,
        request: &Request<B>,
        connection: &Arc<Connection>,
        ledger: Ledger,
    ) -> Self {
        let mut record = Record::begin(id, now, request.method().clone());
        record.address = Some(connection.peer.ip());
        record.tls = connection.tls.as_ref().map(recorded_tls);
        record.user_agent = user_agent(request.headers());
        let mut exchange = Self::resume(record, ledger);
        exchange.0.connection = Some(Arc::clone(connection));
        exchange
    }

    /// Brings again what came before and was held: nobody waits for its answer.
    pub fn resume(record: Record, ledger: Ledger) -> Self {
        Self(Box::new(Open {
            record: Some(Box::new(record)),
            began: Instant::now(),
            trail: ledger.trail,
            connection: None,
            reservation: None,
            patience: None,
            metrics: ledger.metrics,
            outcome: Outcome::Abandoned,
            to_answer: None,
            received: None,
            epoch: ledger.epoch,
            _in_flight: Some(ledger.in_flight),
        }))
    }

    /// Hands everything to a task that goes on when the client has left, and closes it then. What is left here records and counts
    /// nothing, until the task has given it back.
    #[must_use]
    pub fn lend(&mut self) -> Self {
        let open = &mut *self.0;
        let husk = Open {
            record: None,
            began: open.began,
            trail: open.trail.clone(),
            connection: None,
            reservation: None,
            patience: None,
            metrics: Arc::clone(&open.metrics),
            outcome: Outcome::Abandoned,
            to_answer: None,
            received: None,
            epoch: open.epoch,
            _in_flight: None,
        };
        Self(std::mem::replace(&mut self.0, Box::new(husk)))
    }

    /// The record, to fill in as things become known.
    pub fn record(&mut self) -> &mut Record {
        self.0.record.get_or_insert_with(|| Box::new(Record::begin(Uuid::nil(), Timestamp::default(), Method::GET)))
    }

    /// Notes what was sent, where nothing better is known. Never the query, which may carry codes and tokens.
    pub fn note_sent(&mut self, sent: &Sent) {
        const MAX: usize = 1024;
        let cut = |text: &str| text.chars().take(MAX).collect::<String>();
        let record = self.record();
        record.host = cut(&sent.host()).into();
        record.path = cut(sent.uri.path()).into();
    }

    /// Counts on the metrics of a route from here on.
    pub fn count_on(&mut self, metrics: &Arc<RouteMetrics>) {
        self.0.metrics = Arc::clone(metrics);
    }

    /// See [`Ledger::epoch`].
    pub fn epoch(&self) -> u64 {
        self.0.epoch
    }

    /// The time since the request arrived.
    pub fn elapsed(&self) -> Duration {
        self.0.began.elapsed()
    }

    pub fn refused(&mut self, rejection: &Rejection) {
        self.record().refuse(rejection);
        self.0.outcome = Outcome::Refused(rejection.reason());
        self.0.to_answer = Some(self.elapsed());
    }

    /// Takes room for the records of what is about to be done; refuses with 503 if there is none for too long. What comes through
    /// break-glass is done on no other terms, whatever is configured.
    pub async fn reserve(&mut self, records: u32) -> Result<(), Rejection> {
        let scheme = self.record().principal.as_ref().map(|principal| principal.scheme);
        let trail = &self.0.trail;
        let taken = async {
            match scheme {
                Some(Scheme::BreakGlass) => trail.reserve_strictly(records).await,
                _ => trail.reserve(records).await,
            }
        };
        let reservation = recorded_by(self.0.patience, taken, || Err(trail.out_of_time())).await?;
        self.0.reservation = Some(reservation);
        Ok(())
    }

    /// Has its sender wait for the trail no longer than until then. Whoever does not wait longer is told of the trail, which has kept
    /// its delivery.
    pub fn set_patience(&mut self, until: Option<tokio::time::Instant>) {
        self.0.patience = until;
    }

    /// Refuses with 503 where nothing can be recorded.
    pub fn check_trail(&self) -> Result<(), Rejection> {
        Ok(self.0.trail.check()?)
    }

    /// Has its last record written in a place that was taken for it.
    pub fn hold(&mut self, place: Reservation) {
        self.0.reservation = Some(place);
    }

    /// Writes the record as it stands, before the request is forwarded, and returns when it is on stable storage.
    pub async fn decided(&mut self) -> Result<(), Rejection> {
        let open = &mut *self.0;
        let until = open.patience;
        let (Some(reservation), Some(record)) = (&mut open.reservation, &mut open.record) else { return Ok(()) };
        record.phase = Phase::Decided;
        let written = reservation.write_durable(record.clone());
        record.phase = Phase::Completed;
        Ok(recorded_by(until, written, || reservation.out_of_time()).await?)
    }

    /// Writes that a stream has begun. Its end is written after the fact, so that it holds no room for hours.
    pub fn started(&mut self) {
        let open = &mut *self.0;
        if let (Some(mut reservation), Some(record)) = (open.reservation.take(), &open.record) {
            let mut begun = record.clone();
            begun.phase = Phase::Started;
            begun.latency = open.began.elapsed();
            reservation.write(begun);
        }
    }

    /// Writes that an answer has begun where room is short: a client that takes it slowly, or not at all, would hold room that
    /// others need.
    pub fn started_if_crowded(&mut self) {
        if self.0.reservation.as_ref().is_some_and(Reservation::is_crowded) {
            self.started();
        }
    }

    /// Where a request body is noted that is passed on as it comes.
    pub fn received(&mut self) -> &Arc<Received> {
        self.0.received.get_or_insert_with(Arc::default)
    }

    /// What the caller gets, and who gave it.
    pub fn answered(&mut self, status: StatusCode, by: AnswerBy) {
        self.record().status = Some(status);
        self.0.outcome = match by {
            AnswerBy::Upstream => Outcome::Forwarded,
            // Some refuse in words of their own standard, and note that they did.
            AnswerBy::Us => match &self.record().refusal {
                Some(refusal) => Outcome::Refused(refusal.reason),
                None => Outcome::Answered,
            },
        };
        self.0.to_answer = Some(self.elapsed());
    }

    /// Ends an exchange whose connection was upgraded.
    pub fn end_upgrade(mut self, end: SpliceEnd) {
        self.record().bytes_in = end.bytes_to_upstream;
        self.end(BodyEnd { outcome: end.outcome, bytes: end.bytes_to_client });
    }

    fn end(&mut self, end: BodyEnd) {
        let open = &mut *self.0;
        let Some(mut record) = open.record.take() else { return };
        record.latency = open.began.elapsed();
        record.bytes_out = end.bytes;
        if let Some(received) = &open.received {
            record.bytes_in = received.bytes();
            record.body_digest = record.body_digest.or_else(|| received.digest());
        }
        // Whoever asked for a token heard of none.
        if record.status.is_none() {
            record.issued = None;
        }
        record.ended = match end.outcome {
            EndedBy::Complete => None,
            EndedBy::ClientAborted if open.connection.as_ref().is_some_and(|from| from.is_flooded()) => {
                Some(Cow::Borrowed("flood"))
            }
            EndedBy::ClientAborted => Some(Cow::Borrowed("client_gone")),
            EndedBy::UpstreamAborted => Some(Cow::Borrowed("upstream_gone")),
            EndedBy::Cut(reason) => Some(Cow::Borrowed(reason.as_str())),
        };
        let scheme = record.principal.as_ref().map(|principal| principal.scheme);
        open.metrics.record(scheme, open.outcome, open.to_answer.unwrap_or(record.latency));
        match open.reservation.take() {
            Some(mut reservation) => reservation.write(record),
            None => open.trail.write(record),
        }
    }
}

impl OnEnd for Exchange {
    fn on_end(mut self, end: BodyEnd) {
        self.end(end);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.end(BodyEnd { outcome: EndedBy::ClientAborted, bytes: 0 });
    }
}

/// Waits for the trail until `patience` is over. What is `late` is what it comes to then.
async fn recorded_by<T>(
    patience: Option<tokio::time::Instant>,
    recorded: impl Future<Output = Result<T, AuditUnavailable>>,
    late: impl FnOnce() -> Result<T, AuditUnavailable>,
) -> Result<T, AuditUnavailable> {
    match patience {
        None => recorded.await,
        Some(until) => timeout_at(until, recorded).await.unwrap_or_else(|_| late()),
    }
}

/// A prefix that tells one program from another; the rest is noise that anybody can write.
fn user_agent(headers: &HeaderMap) -> Option<Box<str>> {
    const MAX: usize = 256;
    let agent = headers.get(header::USER_AGENT)?.to_str().ok()?;
    Some(agent.get(..MAX).unwrap_or(agent).into())
}

fn recorded_tls(tls: &TlsInfo) -> Arc<audit::Tls> {
    let certificate = tls.client_certificate.as_ref();
    Arc::new(audit::Tls {
        version: match tls.version {
            TlsVersion::Tls12 => "1.2",
            TlsVersion::Tls13 => "1.3",
        },
        server_name: tls.server_name.as_deref().map(Into::into),
        certificate: certificate.map(|certificate| certificate.sha256),
        subject: certificate.and_then(|certificate| certificate.subject.clone()),
    })
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use serde_json::Value;

    use super::*;
    use crate::{admin::metrics::RequestMetrics, error::Reason, sessions::tests::trail};

    /// The trail said that it was issued to whoever left while it was being written down.
    #[tokio::test]
    async fn a_token_whose_request_ended_without_an_answer_was_given_to_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let (trail, requests) = (trail(folder.path()), RequestMetrics::default());
        let ids = [1, 2].map(Uuid::from_u128);
        for (id, is_answered) in ids.into_iter().zip([false, true]) {
            let metrics = Arc::new(requests.route(&"-".into()));
            let ledger = Ledger { trail: trail.clone(), metrics, in_flight: requests.begin(), epoch: 0 };
            let mut exchange = Exchange::resume(Record::begin(id, Timestamp::default(), Method::POST), ledger);
            exchange.record().issued = Some(Box::new(audit::Issued {
                token: "t".to_owned(),
                issuer: "own".into(),
                audience: "x".to_owned(),
                scopes: Vec::new(),
                expires: Timestamp::from_secs(600),
                rules: Vec::new(),
                cause: None,
                task: None,
                parties: Vec::new(),
                onward: None,
            }));
            if is_answered {
                exchange.answered(StatusCode::OK, AnswerBy::Us);
            }
        }
        // Behind both of them.
        let last = audit::Note::PolicyRefused { digest: None, cause: "test", problems: Vec::new() };
        trail.note_durable(last).await.unwrap();
        let text = std::fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let is_issued = ids.map(|id| {
            let of = |line: &&Value| line["metadata"]["correlation_uid"] == id.to_string();
            lines.iter().find(of).unwrap()["unmapped"]["issued"].is_object()
        });
        assert_eq!(is_issued, [false, true], "{text}");
    }

    /// It was told that the EventListener had not answered, which nobody had asked.
    #[tokio::test(start_paused = true)]
    async fn a_sender_whose_time_is_over_while_the_trail_keeps_its_delivery_hears_of_the_trail() {
        let folder = tempfile::tempdir().unwrap();
        let (trail, start) = (trail(folder.path()), tokio::time::Instant::now());
        let until = start + Duration::from_secs(8);
        let out_of_time = || Err(trail.out_of_time());
        let late = recorded_by::<()>(Some(until), pending(), out_of_time).await;
        let late = Rejection::from(late.unwrap_err());
        assert_eq!(start.elapsed(), Duration::from_secs(8));
        assert_eq!((late.status(), late.reason()), (StatusCode::SERVICE_UNAVAILABLE, Reason::AuditUnavailable));
        assert!(recorded_by(Some(until), async { Ok(()) }, out_of_time).await.is_ok(), "the twin");
    }
}
