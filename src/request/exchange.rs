//! The audit record and the metrics of one request, from its arrival to the last byte of its response.
//!
//! An exchange is opened before anything else and closed exactly once: when the last byte of the response was handed
//! over, when the client disconnects, or when a stream is cut. Closing it writes the audit record.

use std::{
    borrow::Cow,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use tokio::time::timeout_at;
use uuid::Uuid;

use super::{
    host::normalise,
    sanitize::{Arrival, client_of},
};
use crate::{
    admin::metrics::{InFlight, Outcome, RouteMetrics},
    audit::{self, AuditUnavailable, Phase, Record, Reservation, Trail},
    authn::Scheme,
    body::{BodyEnd, EndedBy, OnEnd, Received},
    clock::Timestamp,
    downstream::{Connection, TlsInfo, TlsVersion},
    error::Rejection,
    streams::CutReason,
    upstream::upgrade::SpliceEnd,
};

/// The exchange. Dropping it closes it as "client gone".
#[derive(Debug)]
pub struct Exchange(Box<Open>);

#[derive(Debug)]
struct Open {
    /// Written to the trail when the exchange is closed, which leaves `None`.
    record: Option<Box<Record>>,
    began: Instant,
    trail: Trail,
    /// `None` for a held delivery, and once the exchange is lent.
    connection: Option<Arc<Connection>>,
    reservation: Option<Reservation>,
    /// Until when the sender waits for the trail, if that is known.
    trail_deadline: Option<tokio::time::Instant>,
    metrics: Arc<RouteMetrics>,
    outcome: Outcome,
    /// The time until the head of the response was there.
    to_answer: Option<Duration>,
    /// The counts of a request body that is streamed.
    received: Option<Arc<Received>>,
    epoch: u64,
    /// `None` once it is lent.
    _in_flight: Option<InFlight>,
}

/// Host and path as they were sent, and by whom, for the record of a request that cannot be sanitized. It is made for
/// each request, so it shares what it holds.
#[derive(Debug)]
pub struct RawTarget {
    uri: Uri,
    host: Option<HeaderValue>,
    client: IpAddr,
}

impl RawTarget {
    pub fn of<B>(request: &Request<B>, arrival: Arrival<'_>) -> Self {
        let headers = request.headers();
        let client = match client_of(arrival, headers) {
            Ok((client, _)) => client,
            // What the proxy says may be malformed, too.
            Err(_) => arrival.peer.ip(),
        };
        Self { uri: request.uri().clone(), host: headers.get(header::HOST).cloned(), client }
    }

    fn host(&self) -> Cow<'_, str> {
        let line = self.host.as_ref().map(|line| String::from_utf8_lossy(line.as_bytes()));
        let named = self.uri.authority().map(|authority| authority.as_str().into()).or(line).unwrap_or_default();
        match normalise(&named) {
            Some(host) => host.into_owned().into(),
            // The part before an `@` may be a password.
            None => named.rsplit('@').next().unwrap_or_default().to_owned().into(),
        }
    }
}

/// Who answered a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerBy {
    Upstream,
    /// Doorward itself.
    Us,
}

/// What an exchange reports to, and the stream epoch at which it began.
#[derive(Debug)]
pub struct Ledger {
    pub trail: Trail,
    /// The metrics of requests without a route, until one is found.
    pub metrics: Arc<RouteMetrics>,
    pub in_flight: InFlight,
    /// The stream epoch, read before the configuration snapshot; see [`super::worker`].
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

    /// Opens the exchange of a held delivery, whose sender has been answered.
    pub fn resume(record: Record, ledger: Ledger) -> Self {
        Self(Box::new(Open {
            record: Some(Box::new(record)),
            began: Instant::now(),
            trail: ledger.trail,
            connection: None,
            reservation: None,
            trail_deadline: None,
            metrics: ledger.metrics,
            outcome: Outcome::Abandoned,
            to_answer: None,
            received: None,
            epoch: ledger.epoch,
            _in_flight: Some(ledger.in_flight),
        }))
    }

    /// Moves the contents to a task that outlives the client's connection, and that closes the exchange if the client
    /// leaves. Until the task gives them back, `self` is empty and records nothing.
    #[must_use]
    pub fn lend(&mut self) -> Self {
        let open = &mut *self.0;
        let emptied = Open {
            record: None,
            began: open.began,
            trail: open.trail.clone(),
            connection: None,
            reservation: None,
            trail_deadline: None,
            metrics: Arc::clone(&open.metrics),
            outcome: Outcome::Abandoned,
            to_answer: None,
            received: None,
            epoch: open.epoch,
            _in_flight: None,
        };
        Self(std::mem::replace(&mut self.0, Box::new(emptied)))
    }

    /// The record, to fill in as things become known.
    pub fn record(&mut self) -> &mut Record {
        self.0.record.get_or_insert_with(|| Box::new(Record::begin(Uuid::nil(), Timestamp::default(), Method::GET)))
    }

    /// Records host and path as they were sent, without the query, which may carry codes and tokens, and the client.
    pub fn note_raw_target(&mut self, sent: &RawTarget) {
        const MAX: usize = 1024;
        let cut = |text: &str| text.chars().take(MAX).collect::<String>();
        let record = self.record();
        record.host = cut(&sent.host()).into();
        record.path = cut(sent.uri.path()).into();
        record.address = Some(sent.client);
    }

    /// Counts the request on the metrics of a route from here on.
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

    /// Reserves room for the records of the request; 503 if there is none for too long. A request through break-glass
    /// always needs a record, whatever is configured.
    pub async fn reserve(&mut self, records: u32) -> Result<(), Rejection> {
        let scheme = self.record().principal.as_ref().map(|principal| principal.scheme);
        let trail = &self.0.trail;
        let taken = async {
            match scheme {
                Some(Scheme::BreakGlass) => trail.reserve_strictly(records).await,
                _ => trail.reserve(records).await,
            }
        };
        let reservation = within_deadline(self.0.trail_deadline, taken, || Err(trail.out_of_time())).await?;
        self.0.reservation = Some(reservation);
        Ok(())
    }

    /// Sets until when the sender waits for the trail. After that it is answered that the trail delays its delivery.
    pub fn set_trail_deadline(&mut self, until: Option<tokio::time::Instant>) {
        self.0.trail_deadline = until;
    }

    /// Refuses with 503 where nothing can be recorded.
    pub fn check_trail(&self) -> Result<(), Rejection> {
        Ok(self.0.trail.check()?)
    }

    /// Uses a reservation that was made elsewhere for its last record.
    pub fn set_reservation(&mut self, reservation: Reservation) {
        self.0.reservation = Some(reservation);
    }

    /// Writes the decision before the request is forwarded, and returns when the record is on stable storage.
    pub async fn write_decided(&mut self) -> Result<(), Rejection> {
        let open = &mut *self.0;
        let until = open.trail_deadline;
        let (Some(reservation), Some(record)) = (&mut open.reservation, &mut open.record) else { return Ok(()) };
        record.phase = Phase::Decided;
        let written = reservation.write_durable(record.clone());
        record.phase = Phase::Completed;
        Ok(within_deadline(until, written, || reservation.out_of_time()).await?)
    }

    /// Records that a stream has begun, and gives its reservation back, so that it does not occupy room for hours.
    pub fn write_started(&mut self) {
        let open = &mut *self.0;
        if let (Some(mut reservation), Some(record)) = (open.reservation.take(), &open.record) {
            let mut begun = record.clone();
            begun.phase = Phase::Started;
            begun.latency = open.began.elapsed();
            reservation.write(begun);
        }
    }

    /// Records that a response has begun if room is short: a client that reads it slowly, or not at all, would occupy
    /// room that others need.
    pub fn write_started_if_crowded(&mut self) {
        if self.0.reservation.as_ref().is_some_and(Reservation::is_crowded) {
            self.write_started();
        }
    }

    /// The counts of a request body that is streamed.
    pub fn received(&mut self) -> &Arc<Received> {
        self.0.received.get_or_insert_with(Arc::default)
    }

    /// Records the response and who gave it.
    pub fn answered(&mut self, status: StatusCode, by: AnswerBy) {
        self.record().status = Some(status);
        self.0.outcome = match by {
            AnswerBy::Upstream => Outcome::Forwarded,
            // Some endpoints refuse in the words of their own standard, and record the refusal themselves.
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

    /// Ends the exchange of a held delivery, and returns when its record is on stable storage, or the trail has stalled
    /// or failed: the delivery, which is forgotten then, must not wait for the disk of the trail for ever.
    pub async fn end_recorded(mut self) {
        let Some((record, reservation)) = self.close(BodyEnd { outcome: EndedBy::Complete, bytes: 0 }) else { return };
        match reservation {
            Some(mut reservation) => reservation.write_last(record).await,
            // Nothing was sent, or the answer was a stream.
            None => self.0.trail.write(record),
        }
    }

    fn end(&mut self, end: BodyEnd) {
        let Some((record, reservation)) = self.close(end) else { return };
        match reservation {
            Some(mut reservation) => reservation.write(record),
            None => self.0.trail.write(record),
        }
    }

    /// Completes the record, once, and counts the request.
    fn close(&mut self, end: BodyEnd) -> Option<(Box<Record>, Option<Reservation>)> {
        let open = &mut *self.0;
        let mut record = open.record.take()?;
        record.latency = open.began.elapsed();
        record.bytes_out = end.bytes;
        if let Some(received) = &open.received {
            record.bytes_in = received.bytes();
            record.body_digest = record.body_digest.or_else(|| received.digest());
        }
        // Without an answer the token did not reach whoever asked for it.
        if record.status.is_none() {
            record.issued = None;
        }
        record.ended = match end.outcome {
            EndedBy::Complete => None,
            // First, as unanswered requests that are cut look like a flood of resets.
            EndedBy::ClientAborted if open.connection.as_ref().is_some_and(|from| from.is_cut_by_drain()) => {
                Some(Cow::Borrowed(CutReason::Draining.as_str()))
            }
            EndedBy::ClientAborted if open.connection.as_ref().is_some_and(|from| from.is_flooded()) => {
                Some(Cow::Borrowed("flood"))
            }
            EndedBy::ClientAborted => Some(Cow::Borrowed("client_gone")),
            EndedBy::UpstreamAborted => Some(Cow::Borrowed("upstream_gone")),
            EndedBy::Cut(reason) => Some(Cow::Borrowed(reason.as_str())),
        };
        let scheme = record.principal.as_ref().map(|principal| principal.scheme);
        open.metrics.record(scheme, open.outcome, open.to_answer.unwrap_or(record.latency));
        Some((record, open.reservation.take()))
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

/// Waits for the trail until `deadline`, and returns the result of `late` then.
async fn within_deadline<T>(
    deadline: Option<tokio::time::Instant>,
    recorded: impl Future<Output = Result<T, AuditUnavailable>>,
    late: impl FnOnce() -> Result<T, AuditUnavailable>,
) -> Result<T, AuditUnavailable> {
    match deadline {
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

    /// Attacks that came through an ingress were recorded as those of the ingress.
    #[tokio::test]
    async fn a_request_that_cannot_be_sanitized_is_recorded_with_the_client_that_a_trusted_proxy_names() {
        let folder = tempfile::tempdir().unwrap();
        let (trail, requests) = (trail(folder.path()), RequestMetrics::default());
        let metrics = Arc::new(requests.route(&"-".into()));
        let ledger = Ledger { trail, metrics, in_flight: requests.begin(), epoch: 0 };
        let mut exchange = Exchange::resume(Record::begin(Uuid::nil(), Timestamp::default(), Method::GET), ledger);
        let proxies: [ipnet::IpNet; 1] = ["192.0.2.0/24".parse().unwrap()];
        for (trusted, line, expected) in [
            (true, "203.0.113.9, 192.0.2.7", "203.0.113.9"),
            (true, "nobody", "192.0.2.1"),
            (false, "203.0.113.9", "192.0.2.1"),
        ] {
            let arrival = Arrival { trusted, trusted_proxies: &proxies, ..Arrival::of_tests() };
            let request = Request::get("/a;b").header("x-forwarded-for", line).body(()).unwrap();
            exchange.note_raw_target(&RawTarget::of(&request, arrival));
            assert_eq!(exchange.record().address, Some(expected.parse().unwrap()), "{trusted} {line}");
        }
    }

    /// Regression: the trail named a token as issued although the client had left before it was answered.
    #[tokio::test]
    async fn a_token_whose_request_got_no_answer_is_not_recorded_as_issued() {
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
                exchanged: Vec::new(),
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

    /// Regression: a held delivery was forgotten while its event was in memory only, and a kill lost it.
    #[tokio::test]
    async fn the_event_of_a_held_delivery_is_in_the_trail_before_its_attempt_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let (trail, requests) = (trail(folder.path()), RequestMetrics::default());
        let metrics = Arc::new(requests.route(&"-".into()));
        let ledger = Ledger { trail, metrics, in_flight: requests.begin(), epoch: 0 };
        let record = Record::begin(Uuid::from_u128(1), Timestamp::default(), Method::POST);
        let mut exchange = Exchange::resume(record, ledger);
        exchange.reserve(2).await.unwrap();
        exchange.write_decided().await.unwrap();
        exchange.record().event_id = Some("event-1".into());
        exchange.answered(StatusCode::ACCEPTED, AnswerBy::Upstream);
        exchange.end_recorded().await;
        let text = std::fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
        assert!(text.lines().any(|line| line.contains(r#""event_id":"event-1""#)), "{text}");
    }

    /// Regression: the sender got the refusal of an EventListener that did not answer, although none had been asked.
    #[tokio::test(start_paused = true)]
    async fn a_sender_whose_deadline_passes_while_the_trail_stalls_is_refused_because_of_the_trail() {
        let folder = tempfile::tempdir().unwrap();
        let (trail, start) = (trail(folder.path()), tokio::time::Instant::now());
        let until = start + Duration::from_secs(8);
        let out_of_time = || Err(trail.out_of_time());
        let late = within_deadline::<()>(Some(until), pending(), out_of_time).await;
        let late = Rejection::from(late.unwrap_err());
        assert_eq!(start.elapsed(), Duration::from_secs(8));
        assert_eq!((late.status(), late.reason()), (StatusCode::SERVICE_UNAVAILABLE, Reason::AuditUnavailable));
        assert!(within_deadline(Some(until), async { Ok(()) }, out_of_time).await.is_ok(), "the twin");
    }
}
