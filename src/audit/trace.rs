//! From a run of Tekton back to what caused it, by the trail alone.
//!
//! A run says of itself which request or event it came of; whoever may make runs past Doorward can write that too. So what it
//! says counts only where the trail's own record of the request fits, and where no earlier run has said the same.

mod answers;
mod json;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use uuid::Uuid;

pub use self::{
    answers::{Answers, answers},
    json::request_json,
};
use super::{
    note::code,
    replay::{ReplayError, ReplayInputs},
    traced_files::Files,
    traced_line::{Line, Link, Metadata},
};
use crate::{
    authn::Kind,
    clock::Timestamp,
    config::raw::Effect,
    error::Reason,
    runs::{EVENT_WINDOW, SKEW},
    tekton::RunKind,
};

/// Why a request had no answer of its upstream, though that may have done what it asks.
const UNANSWERED: [Reason; 3] = [Reason::UpstreamTimeout, Reason::UpstreamProtocol, Reason::Internal];

/// A run, and what caused it.
#[derive(Debug)]
pub struct TracedRun {
    /// The cluster that it is in, as tokens of its tasks know it, where that is known.
    pub cluster: Option<String>,
    /// `PipelineRun` or `TaskRun`.
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub created: Option<Timestamp>,
    pub cause: Result<Cause, NoCause>,
}

/// What caused a run.
#[derive(Debug)]
pub struct Cause {
    /// The request that made the run, or that brought the delivery.
    pub request: Box<ReplayInputs>,
    /// Of a delivery: the event that the EventListener made of it.
    pub event: Option<String>,
    /// Of a delivery that was held: the request that sent it to the EventListener, which was decided anew.
    pub sent: Option<Box<ReplayInputs>>,
}

/// Why nothing is known to have caused a run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCause {
    #[error("it names the request {0}, which is not in these files; give all files of all replicas")]
    UnknownRequest(Uuid),
    #[error("it names the event {0}, which is in no record of these files; give all files of all replicas")]
    UnknownEvent(String),
    #[error(
        "it names the request {request}, which made another run, {uid}: somebody copied the annotation past Doorward"
    )]
    Copied { request: Uuid, uid: String },
    #[error(
        "it names the request {0}, which made no run in its namespace, or was refused: somebody wrote the annotation past Doorward"
    )]
    Forged(Uuid),
    #[error("it names the event {event}, and was made {} s after it: somebody copied the label past Doorward", after.as_secs())]
    Late { event: String, after: Duration },
    #[error("it names the event {event}, and was made {} s before it: somebody wrote the label on a run that was there", before.as_secs())]
    Early { event: String, before: Duration },
}

/// By what somebody knows a delivery.
#[derive(Clone, Copy, Debug)]
pub enum Arrival<'a> {
    /// The id that its sender gave it.
    Delivery(&'a str),
    /// The event that the EventListener made of it.
    Event(&'a str),
}

/// The request that an EventListener answered with an event.
#[derive(Clone, Copy, Debug)]
struct Event {
    request: Uuid,
    held: Option<Uuid>,
    time: Timestamp,
}

/// All runs that had this name, the oldest first, each with its cause.
pub fn trace(files: &Files, kind: RunKind, namespace: &str, name: &str) -> Result<Vec<TracedRun>, ReplayError> {
    traced(files, |link| link.kind == kind.name() && link.namespace == namespace && link.name == name)
}

/// The run with this uid in this cluster, with what it says of its cause, if it is in the trail. Where the trail does not know in which
/// cluster a run is, the uid must do.
pub fn trace_uid(files: &Files, cluster: &str, uid: &str) -> Result<Option<TracedRun>, ReplayError> {
    Ok(traced(files, |link| link.uid == uid && link.cluster.as_deref().is_none_or(|known| known == cluster))?.pop())
}

/// The request that is known to have caused something, with what the trail says of it, if it is there.
pub fn trace_cause(files: &Files, id: Uuid) -> Result<Option<Cause>, ReplayError> {
    let Some(request) = files.request(id)?.map(Box::new) else { return Ok(None) };
    let (mut held, mut event) = (None, None);
    files.each(code::REQUEST, |line| {
        if line.metadata.correlation_uid == Some(id) {
            held = held.or(line.unmapped.held);
            event = event.take().or(line.unmapped.event_id);
        }
    })?;
    let arrival = match held.filter(|held| *held != id) {
        Some(held) => files.request(held)?,
        None => None,
    };
    Ok(Some(match arrival {
        Some(arrival) => Cause { request: Box::new(arrival), event, sent: Some(request) },
        None => Cause { request, event, sent: None },
    }))
}

/// The requests in which a request was made: itself and, of a delivery that was held, those that sent it.
pub fn sent_for(files: &Files, id: Uuid) -> Result<BTreeSet<Uuid>, ReplayError> {
    let mut sent = BTreeSet::from([id]);
    files.each(code::REQUEST, |line| {
        sent.extend(line.metadata.correlation_uid.filter(|_| line.unmapped.held == Some(id)));
    })?;
    Ok(sent)
}

/// The runs that a request caused, itself or as a delivery.
pub fn trace_request(files: &Files, id: Uuid) -> Result<Vec<TracedRun>, ReplayError> {
    let mut events = BTreeSet::new();
    files.each(code::REQUEST, |line| {
        let is_its = line.metadata.correlation_uid == Some(id) || line.unmapped.held == Some(id);
        events.extend(line.unmapped.event_id.filter(|_| is_its));
    })?;
    // A run that names a request as well was made by that, and has the event from another run that it is a copy of.
    traced(files, |link| match (link.request, &link.event_id) {
        (Some(request), _) => request == id,
        (None, event) => event.as_ref().is_some_and(|event| events.contains(event)),
    })
}

/// The requests that brought a delivery, in order: more than one where its sender tried again, or somebody repeated it. One in which it
/// came again while it waited brought nothing further.
pub fn arrivals(files: &Files, known_by: Arrival<'_>) -> Result<Vec<Uuid>, ReplayError> {
    let mut arrivals = Vec::new();
    files.each(code::REQUEST, |line| {
        let Line { metadata: Metadata { correlation_uid: Some(request) }, unmapped, .. } = line else { return };
        // A task that asks for a token has the delivery that caused its run.
        if unmapped.asked.is_some() {
            return;
        }
        let is_it = match known_by {
            Arrival::Delivery(id) => unmapped.webhook.is_some_and(|webhook| webhook.delivery.as_deref() == Some(id)),
            Arrival::Event(id) => unmapped.event_id.as_deref() == Some(id),
        };
        let request = unmapped.held.or(unmapped.about).unwrap_or(request);
        if is_it && !arrivals.contains(&request) {
            arrivals.push(request);
        }
    })?;
    Ok(arrivals)
}

fn traced(files: &Files, wanted: impl Fn(&Link) -> bool) -> Result<Vec<TracedRun>, ReplayError> {
    let mut links = BTreeMap::new();
    files.each(code::RUN, |line| {
        if let Some(link) = line.unmapped.linked.filter(&wanted) {
            links.entry((link.cluster.clone(), link.uid.clone())).or_insert(link);
        }
    })?;
    let mut links: Vec<Link> = links.into_values().collect();
    let firsts = firsts(files, &links)?;
    let events = events(files, &links)?;
    links.sort_by(|a, b| (a.created, &a.uid).cmp(&(b.created, &b.uid)));
    let traced = |link: Link| {
        let created = link.created.map(Timestamp::from_millis);
        let cause = match (link.request, &link.event_id) {
            (Some(request), _) => of_request(files, &link, request, &firsts)?,
            (None, Some(event)) => of_event(files, created, event, events.get(event).copied())?,
            // No such line is written.
            (None, None) => Err(NoCause::UnknownEvent(String::new())),
        };
        let Link { cluster, kind, namespace, name, uid, .. } = link;
        Ok(TracedRun { cluster, kind, namespace, name, uid, created, cause })
    };
    links.into_iter().map(traced).collect()
}

fn of_request(
    files: &Files,
    link: &Link,
    id: Uuid,
    firsts: &BTreeMap<Uuid, (Option<i64>, String)>,
) -> Result<Result<Cause, NoCause>, ReplayError> {
    let Some(request) = files.request(id)? else { return Ok(Err(NoCause::UnknownRequest(id))) };
    let made_a_run = request.run.as_ref().is_some_and(|run| run.intent.makes_a_run())
        && request.kubernetes.as_ref().is_some_and(|attributes| attributes.namespace == link.namespace)
        && request.decision.as_ref().is_some_and(|decision| decision.outcome == Effect::Allow);
    if !made_a_run || has_failed(files, id)? {
        return Ok(Err(NoCause::Forged(id)));
    }
    Ok(match firsts.get(&id) {
        Some((_, first)) if *first != link.uid => Err(NoCause::Copied { request: id, uid: first.clone() }),
        _ => Ok(Cause { request: Box::new(request), event: None, sent: None }),
    })
}

fn of_event(
    files: &Files,
    created: Option<Timestamp>,
    event: &str,
    known: Option<Event>,
) -> Result<Result<Cause, NoCause>, ReplayError> {
    let unknown = || NoCause::UnknownEvent(event.to_owned());
    let Some(known) = known else { return Ok(Err(unknown())) };
    let created = created.unwrap_or(known.time);
    let (after, before) = (created.since(known.time), known.time.since(created));
    if after > EVENT_WINDOW + SKEW {
        return Ok(Err(NoCause::Late { event: event.to_owned(), after }));
    }
    if before > SKEW {
        return Ok(Err(NoCause::Early { event: event.to_owned(), before }));
    }
    let found = |id| Ok::<_, ReplayError>(files.request(id)?.map(Box::new));
    let sent = found(known.request)?;
    let (request, sent) = match known.held.filter(|held| *held != known.request) {
        Some(held) => (found(held)?, sent),
        None => (sent, None),
    };
    Ok(request.map(|request| Cause { request, event: Some(event.to_owned()), sent }).ok_or_else(unknown))
}

/// Whether the answer to a request says that it made nothing. Where there was none from the API server, it may have.
fn has_failed(files: &Files, id: Uuid) -> Result<bool, ReplayError> {
    let mut has_failed = false;
    files.each(code::REQUEST, |line| {
        let code = line.http_response.code.unwrap_or_default();
        let made_nothing = match line.status_code {
            // Refused here: it made nothing, unless it was sent and no answer came.
            Some(reason) => code >= 400 && !UNANSWERED.iter().any(|open| open.as_str() == reason),
            // The API server's own answer. With 5xx it may have made the run all the same.
            None => (400..500).contains(&code),
        };
        has_failed |= line.metadata.correlation_uid == Some(id) && made_nothing;
    })?;
    Ok(has_failed)
}

/// The first run that names each of the requests that these name.
fn firsts(files: &Files, links: &[Link]) -> Result<BTreeMap<Uuid, (Option<i64>, String)>, ReplayError> {
    let mut firsts: BTreeMap<Uuid, (Option<i64>, String)> = BTreeMap::new();
    files.each(code::RUN, |line| {
        let Some(Link { uid, created, request: Some(request), .. }) = line.unmapped.linked else { return };
        if !links.iter().any(|link| link.request == Some(request)) {
            return;
        }
        let this = (created, uid);
        // Of two within one second, the one that was seen first.
        let first = firsts.entry(request).or_insert_with(|| this.clone());
        if this.0 < first.0 {
            *first = this;
        }
    })?;
    Ok(firsts)
}

/// The events that these name.
fn events(files: &Files, links: &[Link]) -> Result<BTreeMap<String, Event>, ReplayError> {
    let mut events = BTreeMap::new();
    if links.iter().all(|link| link.event_id.is_none()) {
        return Ok(events);
    }
    files.each(code::REQUEST, |line| {
        let Line { time, metadata: Metadata { correlation_uid: Some(request) }, unmapped, .. } = line else { return };
        let Some(event) = unmapped.event_id else { return };
        if links.iter().any(|link| link.event_id.as_ref() == Some(&event)) {
            let this = Event { request, held: unmapped.held, time: Timestamp::from_millis(time) };
            events.entry(event).or_insert(this);
        }
    })?;
    Ok(events)
}

impl Cause {
    /// Whether this request is the cause, or sent the delivery that is.
    pub fn is_of(&self, id: Uuid) -> bool {
        self.request.id == id || self.sent.as_ref().is_some_and(|sent| sent.id == id)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let request = &self.request;
        if let Some(principal) = &request.principal {
            let kind = match principal.kind {
                Kind::Human => "a person",
                Kind::Agent => "an agent",
                Kind::Workload => "a workload",
            };
            writeln!(f, "  caused by  {} ({kind} of {})", principal.username, principal.issuer)?;
            if let Some(actor) = &principal.actor {
                writeln!(f, "  through    {}", actor.subject)?;
            }
        }
        if let Some(facts) = &request.delivery {
            write!(f, "  delivery   {} of {}", facts.delivery.escape_debug(), facts.webhook)?;
            let told = [
                ("", &facts.event),
                ("repository ", &facts.repository),
                ("branch ", &facts.branch),
                ("tag ", &facts.tag),
                ("commit ", &facts.commit),
                ("pull request ", &facts.pull_request),
                ("by ", &facts.actor),
            ];
            for (word, text) in told {
                if let Some(text) = text {
                    // Names of strangers: nothing of them may move the cursor.
                    write!(f, ", {word}{}", text.escape_debug())?;
                }
            }
            writeln!(f)?;
        }
        write_request(f, "request", request)?;
        if let Some(sent) = &self.sent {
            write_request(f, "sent by", sent)?;
        }
        match &self.event {
            Some(event) => writeln!(f, "  event      {event}"),
            None => Ok(()),
        }
    }
}

fn write_request(f: &mut fmt::Formatter<'_>, word: &str, request: &ReplayInputs) -> fmt::Result {
    write!(f, "  {word:<10} {} at {}", request.id, request.time)?;
    if let Some(address) = request.address {
        write!(f, " from {address}")?;
    }
    let rule = request.decision.as_ref().and_then(|decision| decision.rule.as_deref());
    let policy = request.policy.as_deref().map(|digest| digest.get(..12).unwrap_or(digest));
    if let (Some(rule), Some(policy)) = (rule, policy) {
        write!(f, ", by rule {rule} of policy {policy}")?;
    }
    writeln!(f)
}

#[cfg(test)]
mod tests;
