//! The outcome of a request, or of a held delivery, by the responses in the trail.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use uuid::Uuid;

use crate::{
    audit::{
        note::code,
        replay::ReplayError,
        traced_files::Files,
        traced_line::{Line, Metadata, Webhook},
    },
    clock::Timestamp,
    error::Reason,
    terminal,
};

/// The outcome of a request.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Answers {
    /// How it was answered; none if its end is not in the trail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// For a delivery that was refused as a duplicate, the request that delivered it first, if that is in the trail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duplicate_of: Option<Uuid>,
    /// For a held delivery, how often it was forwarded.
    #[serde(skip_serializing_if = "is_zero")]
    pub tries: usize,
    /// The response of its receiver to the last try; none if the end of that is not in the trail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_try: Option<Answer>,
    /// For a held delivery, what operators did with it, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<HookCommand>,
}

/// A command by which an operator retried or dropped a held delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HookCommand {
    /// Unix time in milliseconds.
    pub time: i64,
    /// `retried` or `dropped`.
    pub did: &'static str,
    /// The name that the operator gave.
    pub by: String,
    pub why: String,
}

/// One response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// When it ended or, if its beginning was recorded, about when it began: Unix time in milliseconds.
    pub time: i64,
    /// None if it ended without a response, for example because its client was gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why Doorward refused it, or its upstream failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The event that an EventListener made of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// How it ended, if early: for example a watch that lost its permission.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ending>,
}

/// How a response ended early.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ending {
    /// Unix time in milliseconds.
    pub time: i64,
    pub why: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Returns the outcome of a request, by its id.
pub fn answers(files: &Files, id: Uuid) -> Result<Answers, ReplayError> {
    let mut own = None;
    // When each try began, and how it ended.
    let mut tries: BTreeMap<Uuid, (i64, Option<Answer>)> = BTreeMap::new();
    files.each(code::REQUEST, |line| {
        let Some(request) = line.metadata.correlation_uid else { return };
        let (begun, is_try) = (line.time, line.unmapped.held == Some(id) && request != id);
        // The receiver's own response counts for a try: nobody gets Doorward's.
        let said = line.unmapped.upstream.code.filter(|_| is_try);
        let answer = Answer::of(line, said);
        if is_try {
            let (_, ended) = tries.entry(request).or_insert((begun, None));
            if answer.is_some() {
                *ended = answer;
            }
        } else if let Some(answer) = answer.filter(|_| request == id) {
            // The beginning of a long response has its own record.
            let time = own.as_ref().map_or(answer.time, |begun: &Answer| begun.time);
            own = Some(Answer { time, ..answer });
        }
    })?;
    let count = tries.len();
    let last_try = tries.into_values().max_by_key(|(begun, _)| *begun).and_then(|(_, ended)| ended);
    let duplicate_of = match own.as_ref().is_some_and(Answer::is_of_duplicate) {
        true => accepted_before(files, id)?,
        false => None,
    };
    Ok(Answers { answer: own, duplicate_of, tries: count, last_try, commands: commands(files, id)? })
}

/// Returns the request whose delivery the one of this request repeats: the first that was accepted with the same id or,
/// if there is none, with the same body. Entries of `webhooks` that share a secret share their duplicates too; of another
/// entry, an id says nothing without the body, as many senders number their deliveries from 1.
fn accepted_before(files: &Files, id: Uuid) -> Result<Option<Uuid>, ReplayError> {
    let mut own = None;
    files.each(code::REQUEST, |line| {
        if line.metadata.correlation_uid == Some(id) {
            own = Some(line);
        }
    })?;
    let Some(own) = own else { return Ok(None) };
    let Webhook { webhook: entry, delivery } = own.unmapped.webhook.unwrap_or_default();
    let (body, came) = (own.unmapped.body_sha256, own.time);
    let mut first: Option<(bool, bool, i64, Uuid)> = None;
    files.each(code::REQUEST, |line| {
        let Line { metadata: Metadata { correlation_uid: Some(request) }, unmapped, .. } = line else { return };
        let is_accepted = line.status_code.is_none() && line.http_response.code.is_some_and(|code| code < 300);
        // The record of a task's token request also has the delivery that caused its run.
        let Some(webhook) = unmapped.webhook.filter(|_| is_accepted && unmapped.asked.is_none()) else { return };
        let has_other_id = delivery.is_none() || webhook.delivery != delivery;
        let has_other_body = body.is_none() || unmapped.body_sha256 != body;
        let is_of_another = webhook.webhook != entry;
        if request == id || line.time > came || (has_other_body && (has_other_id || is_of_another)) {
            return;
        }
        let this = (is_of_another, has_other_id, line.time, unmapped.held.or(unmapped.about).unwrap_or(request));
        first = Some(first.map_or(this, |before| before.min(this)));
    })?;
    Ok(first.map(|(_, _, _, request)| request))
}

/// Returns what operators did with the delivery of a request. A command that failed names those that it came to before.
fn commands(files: &Files, id: Uuid) -> Result<Vec<HookCommand>, ReplayError> {
    let id = id.to_string();
    let mut commands = Vec::new();
    files.each(code::OPERATOR, |line| {
        if !line.unmapped.deliveries.iter().any(|delivery| delivery.request.as_ref() == Some(&id)) {
            return;
        }
        let did = match line.unmapped.command.split(' ').next() {
            Some("drop-hook") => "dropped",
            Some("retry-hook") => "retried",
            _ => return,
        };
        commands.push(HookCommand { time: line.time, did, by: line.actor.user.name, why: line.unmapped.why });
    })?;
    commands.sort_by_key(|command| command.time);
    Ok(commands)
}

impl Answer {
    /// Whether a delivery was refused as it had been accepted before.
    fn is_of_duplicate(&self) -> bool {
        self.reason.as_deref() == Some(Reason::ReplayedDelivery.as_str())
    }

    /// Reads the response in a line. `said` is the status of the receiver, which takes precedence.
    fn of(line: Line, said: Option<u16>) -> Option<Self> {
        let status = said.or(line.http_response.code);
        // Only the record of its end says how long a request lasted.
        if status.is_none() && line.duration.is_none() {
            return None;
        }
        let end = line.time.saturating_add(line.duration.unwrap_or_default());
        Some(Self {
            time: end,
            status,
            reason: line.status_code,
            event: line.unmapped.event_id,
            ended: line.unmapped.ended.map(|why| Ending { time: end, why }),
        })
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, status, reason, event, ended: _ } = self;
        let time = Timestamp::from_millis(*time);
        match status {
            Some(status) => write!(f, "{status} at {time}")?,
            None => write!(f, "by nobody until {time}")?,
        }
        if let Some(reason) = reason {
            write!(f, ", {}", terminal::line(reason))?;
        }
        match event {
            Some(event) => write!(f, ", event {}", terminal::line(event)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.answer {
            Some(Answer { status: None, reason: None, .. }) => {
                writeln!(f, "  answered   nobody: it ended before there was a response")?;
            }
            Some(answer) => writeln!(f, "  answered   {answer}")?,
            None => writeln!(f, "  answered   not known: its end is not in these files")?,
        }
        if let Some(Ending { time, why }) = self.answer.as_ref().and_then(|answer| answer.ended.as_ref()) {
            writeln!(f, "  ended      {}: {}", Timestamp::from_millis(*time), terminal::line(why))?;
        }
        match &self.duplicate_of {
            Some(request) => writeln!(f, "  repeats    the delivery of request {request}")?,
            None if self.answer.as_ref().is_some_and(Answer::is_of_duplicate) => {
                writeln!(f, "  repeats    a delivery that is not in these files; give all files of all replicas")?;
            }
            None => {}
        }
        match (self.tries, &self.last_try) {
            (0, _) => {}
            (1, Some(only)) => writeln!(f, "  sent on    once, answered {only}")?,
            (1, None) => writeln!(f, "  sent on    once; the answer is not known: its end is not in these files")?,
            (tries, Some(last)) => writeln!(f, "  sent on    {tries} times, the last answered {last}")?,
            (tries, None) => {
                writeln!(f, "  sent on    {tries} times; the last answer is not known: its end is not in these files")?;
            }
        }
        for HookCommand { time, did, by, why } in &self.commands {
            let said = terminal::line(&format!("by {by}: {why}"));
            writeln!(f, "  {did}    {} {said}", Timestamp::from_millis(*time))?;
        }
        Ok(())
    }
}
