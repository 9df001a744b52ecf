//! Traces a Tekton run back to its cause, by the trail alone.
//!
//! A run names the request or event that caused it, but anybody who can create runs without going through Doorward can
//! write that too. It therefore counts only if the trail's own record of the request fits, and if no earlier run has
//! named the same request.

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
    terminal,
};

/// Reasons for which a request got no response of its upstream, although that may have executed it.
const UNANSWERED: [Reason; 3] = [Reason::UpstreamTimeout, Reason::UpstreamProtocol, Reason::Internal];

/// The note on a request that a record names and whose own record was not found.
pub const MISSING: &str = "which is not in these files; give all files of all replicas";

/// A run, and what caused it.
#[derive(Debug)]
pub struct TracedRun {
    /// Its cluster, by the name in tokens of its tasks, if known.
    pub cluster: Option<String>,
    /// `PipelineRun` or `TaskRun`.
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub created: Option<Timestamp>,
    pub cause: Result<Cause, NoCause>,
}

/// The cause of a run.
#[derive(Debug)]
pub struct Cause {
    /// The request that created the run, or that delivered the webhook.
    pub request: Box<ReplayInputs>,
    /// For a delivery, the event that the EventListener made of it.
    pub event: Option<String>,
    /// For a delivery that was held, the request that sent it to the EventListener, which was decided again.
    pub sent: Option<Box<ReplayInputs>>,
    /// For a delivery that was held, the request that delivered it, if that is not in these files. Then the one that
    /// sent it, which has the same facts, is in `request`.
    pub missing_arrival: Option<Uuid>,
}

/// Why the cause of a run is not known.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCause {
    #[error("it names the request {0}, which is not in these files; give all files of all replicas")]
    UnknownRequest(Uuid),
    #[error("it names the event {0}, which is in no record of these files; give all files of all replicas")]
    UnknownEvent(String),
    #[error(
        "it names the request {request}, which created another run, {uid}: somebody copied the annotation, bypassing Doorward"
    )]
    Copied { request: Uuid, uid: String },
    #[error(
        "it names the request {0}, which created no run in its namespace, or was refused: somebody wrote the annotation, bypassing \
         Doorward"
    )]
    Forged(Uuid),
    #[error(
        "it names the event {event}, and was created {} s after it: somebody copied the label, bypassing Doorward",
        after.as_secs()
    )]
    Late { event: String, after: Duration },
    #[error(
        "it names the event {event}, and was created {} s before it: somebody wrote the label on an existing run",
        before.as_secs()
    )]
    Early { event: String, before: Duration },
}

/// An id by which a delivery is known.
#[derive(Clone, Copy, Debug)]
pub enum Arrival<'a> {
    /// The id that its sender gave it.
    Delivery(&'a str),
    /// The event that the EventListener made of it.
    Event(&'a str),
}

/// A request to which an EventListener responded with an event.
#[derive(Clone, Copy, Debug)]
struct Event {
    request: Uuid,
    held: Option<Uuid>,
    time: Timestamp,
}

/// Returns all runs that had this name, the oldest first, each with its cause.
pub fn trace(files: &Files, kind: RunKind, namespace: &str, name: &str) -> Result<Vec<TracedRun>, ReplayError> {
    traced(files, |link| link.kind == kind.name() && link.namespace == namespace && link.name == name)
}

/// Returns the run with this uid in this cluster, with the cause that it names, if it is in the trail. If the trail
/// does not know the cluster of a run, the uid alone decides.
pub fn trace_uid(files: &Files, cluster: &str, uid: &str) -> Result<Option<TracedRun>, ReplayError> {
    Ok(traced(files, |link| link.uid == uid && link.cluster.as_deref().is_none_or(|known| known == cluster))?.pop())
}

/// Returns a request that is known to be the cause of something, with the facts in the trail, if it is there.
pub fn trace_cause(files: &Files, id: Uuid) -> Result<Option<Cause>, ReplayError> {
    let Some(request) = files.request(id)?.map(Box::new) else { return Ok(None) };
    let (mut held, mut event) = (None, None);
    files.each(code::REQUEST, |line| {
        if line.metadata.correlation_uid == Some(id) {
            held = held.or(line.unmapped.held);
            event = event.take().or(line.unmapped.event_id);
        }
    })?;
    Ok(Some(cause(files, request, held, event)?))
}

/// The cause of what `request` made. `held` is the request that delivered it, if it was a delivery that was held.
fn cause(
    files: &Files,
    request: Box<ReplayInputs>,
    held: Option<Uuid>,
    event: Option<String>,
) -> Result<Cause, ReplayError> {
    let Some(held) = held.filter(|held| *held != request.id) else {
        return Ok(Cause { request, event, sent: None, missing_arrival: None });
    };
    Ok(match files.request(held)?.map(Box::new) {
        Some(arrival) => Cause { request: arrival, event, sent: Some(request), missing_arrival: None },
        None => Cause { request, event, sent: None, missing_arrival: Some(held) },
    })
}

/// Returns the first request that sent a held delivery, by the id of the one that delivered it.
pub fn sent_on(files: &Files, id: Uuid) -> Result<Option<ReplayInputs>, ReplayError> {
    match sent_for(files, id)?.into_iter().find(|sent| *sent != id) {
        Some(sent) => files.request(sent),
        None => Ok(None),
    }
}

/// Returns the ids of a request and, for a delivery that was held, of those that sent it.
pub fn sent_for(files: &Files, id: Uuid) -> Result<BTreeSet<Uuid>, ReplayError> {
    let mut sent = BTreeSet::from([id]);
    files.each(code::REQUEST, |line| {
        sent.extend(line.metadata.correlation_uid.filter(|_| line.unmapped.held == Some(id)));
    })?;
    Ok(sent)
}

/// Returns the runs that a request caused, itself or as a delivery.
pub fn trace_request(files: &Files, id: Uuid) -> Result<Vec<TracedRun>, ReplayError> {
    let mut events = BTreeSet::new();
    files.each(code::REQUEST, |line| {
        let is_its = line.metadata.correlation_uid == Some(id) || line.unmapped.held == Some(id);
        events.extend(line.unmapped.event_id.filter(|_| is_its));
    })?;
    // A run that also names a request was created by that, and copied its event from another run.
    traced(files, |link| match (link.request, &link.event_id) {
        (Some(request), _) => request == id,
        (None, event) => event.as_ref().is_some_and(|event| events.contains(event)),
    })
}

/// Returns the requests that delivered a delivery, in order: more than one if its sender retried, or somebody repeated
/// it. A repetition while it was held does not count.
pub fn arrivals(files: &Files, known_by: Arrival<'_>) -> Result<Vec<Uuid>, ReplayError> {
    let mut requests: Vec<(Uuid, Option<Uuid>)> = Vec::new();
    files.each(code::REQUEST, |line| {
        let Line { metadata: Metadata { correlation_uid: Some(request) }, unmapped, .. } = line else { return };
        // The record of a task's token request also has the delivery that caused its run.
        if unmapped.asked.is_some() {
            return;
        }
        let is_it = match known_by {
            Arrival::Delivery(id) => unmapped.webhook.is_some_and(|webhook| webhook.delivery.as_deref() == Some(id)),
            Arrival::Event(id) => unmapped.event_id.as_deref() == Some(id),
        };
        if !is_it {
            return;
        }
        // A request that repeats a delivery knows only at its end which one it repeats.
        let first = unmapped.held.or(unmapped.about);
        match requests.iter_mut().find(|(known, _)| *known == request) {
            Some((_, known)) => *known = known.or(first),
            None => requests.push((request, first)),
        }
    })?;
    let mut seen = BTreeSet::new();
    let arrivals = requests.into_iter().map(|(request, first)| first.unwrap_or(request));
    Ok(arrivals.filter(|arrival| seen.insert(*arrival)).collect())
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
            // Such lines are never written.
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
        _ => Ok(Cause { request: Box::new(request), event: None, sent: None, missing_arrival: None }),
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
    let Some(request) = files.request(known.request)?.map(Box::new) else { return Ok(Err(unknown())) };
    cause(files, request, known.held, Some(event.to_owned())).map(Ok)
}

/// Whether the response to a request shows that it created nothing. Without a response of the API server, it may have.
fn has_failed(files: &Files, id: Uuid) -> Result<bool, ReplayError> {
    let mut has_failed = false;
    files.each(code::REQUEST, |line| {
        let code = line.http_response.code.unwrap_or_default();
        let made_nothing = match line.status_code {
            // Refused by Doorward: it created nothing, unless it was sent and got no response.
            Some(reason) => code >= 400 && !UNANSWERED.iter().any(|open| open.as_str() == reason),
            // The API server's own response. With 5xx it may have created the run nevertheless.
            None => (400..500).contains(&code),
        };
        has_failed |= line.metadata.correlation_uid == Some(id) && made_nothing;
    })?;
    Ok(has_failed)
}

/// Returns, for each request that `links` name, the first run that names it.
fn firsts(files: &Files, links: &[Link]) -> Result<BTreeMap<Uuid, (Option<i64>, String)>, ReplayError> {
    let mut firsts: BTreeMap<Uuid, (Option<i64>, String)> = BTreeMap::new();
    files.each(code::RUN, |line| {
        let Some(Link { uid, created, request: Some(request), .. }) = line.unmapped.linked else { return };
        if !links.iter().any(|link| link.request == Some(request)) {
            return;
        }
        let this = (created, uid);
        // If two were created within one second, the one that was seen first.
        let first = firsts.entry(request).or_insert_with(|| this.clone());
        if this.0 < first.0 {
            *first = this;
        }
    })?;
    Ok(firsts)
}

/// Returns the events that `links` name.
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
    /// Whether this request is the cause, or sent the delivery that is the cause.
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
            let (username, issuer) = (terminal::line(&principal.username), terminal::line(&principal.issuer));
            writeln!(f, "  caused by  {username} ({kind} of {issuer})")?;
            if let Some(actor) = &principal.actor {
                writeln!(f, "  through    {}", terminal::line(&actor.subject))?;
            }
        }
        if let Some(facts) = &request.delivery {
            // These are strangers' texts.
            write!(f, "  delivery   {} of {}", terminal::line(&facts.delivery), terminal::line(&facts.webhook))?;
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
                    write!(f, ", {word}{}", terminal::line(text))?;
                }
            }
            writeln!(f)?;
        }
        match self.missing_arrival {
            Some(arrival) => {
                writeln!(f, "  request    {arrival}, {MISSING}")?;
                write_request(f, "sent by", request)?;
            }
            None => write_request(f, "request", request)?,
        }
        if let Some(sent) = &self.sent {
            write_request(f, "sent by", sent)?;
        }
        match &self.event {
            Some(event) => writeln!(f, "  event      {}", terminal::line(event)),
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
        write!(f, ", by rule {} of policy {}", terminal::line(rule), terminal::line(policy))?;
    }
    writeln!(f)
}

#[cfg(test)]
mod tests;
