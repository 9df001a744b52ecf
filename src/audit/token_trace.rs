//! Traces a token of ours back to the run and the request that caused it, and forward to each use, by the trail alone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
};

use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

use super::{
    note::code,
    replay::ReplayError,
    traced_files::Files,
    traced_line::{ActorLine, AtServer, IssuedLine, Line, OnwardLine, TaskLine},
};
use crate::{
    clock::{Timestamp, millis},
    tekton::RunKind,
    terminal::line,
};

/// Why a token ended that its holder revoked.
pub(super) const DONE: &str = "its holder revoked it";

/// Uses of one token that are listed; further uses are only counted.
const MAX_USES: usize = 1000;

/// Further uses that are counted. Each has several records, so their ids are held.
const MAX_MORE: usize = 1 << 18;

/// A token that was issued. Times in JSON are Unix time in milliseconds, as in the trail.
#[derive(Debug, Serialize)]
pub struct TracedToken {
    #[serde(flatten)]
    pub issued: IssuedLine,
    /// Its subject, by the Kubernetes user name.
    #[serde(rename = "on_behalf_of")]
    pub whose: String,
    /// The actor, if somebody acts for the subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<ActorLine>,
    #[serde(rename = "issued", with = "millis")]
    pub at: Timestamp,
    /// The request that asked for it.
    pub request: Uuid,
    /// Why nobody received it: its request was refused after the token had been recorded, for example because the
    /// requester was revoked meanwhile, or its client left before the response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub withheld: Option<String>,
    /// When it ended before it expired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<End>,
    /// For another provider's token: since when, and why, no other is issued. The token itself is valid until it
    /// expires, unless the provider ended it, which the trail does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_others_since: Option<End>,
    /// In order of time.
    pub uses: Vec<Use>,
    /// Further uses, by the request.
    #[serde(rename = "more_uses", serialize_with = "count")]
    more: HashSet<Uuid>,
}

/// The end of a token before it expires.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct End {
    #[serde(with = "millis")]
    pub time: Timestamp,
    pub why: String,
}

/// A request that used a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Use {
    #[serde(rename = "time", with = "millis")]
    pub at: Timestamp,
    pub request: Uuid,
    pub method: String,
    pub host: String,
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Set if it was used at a resource server, which queried it.
    #[serde(flatten)]
    pub at_server: Option<AtServer>,
}

fn count<S: Serializer>(more: &HashSet<Uuid>, serializer: S) -> Result<S::Ok, S::Error> {
    more.len().serialize(serializer)
}

impl TracedToken {
    /// Whether it had been issued and had not expired at this time.
    fn is_valid_at(&self, at: Timestamp) -> bool {
        self.at <= at && at.as_millis() < self.issued.expires
    }

    /// Records an end. The earliest one counts, as the files of several replicas are not in the order of time.
    fn end(&mut self, time: Timestamp, why: impl FnOnce() -> String) {
        let end = if self.issued.onward.is_some() { &mut self.no_others_since } else { &mut self.ended };
        if end.as_ref().is_none_or(|before| time < before.time) {
            *end = Some(End { time, why: why() });
        }
    }
}

/// A selection of tokens.
#[derive(Clone, Copy, Debug)]
pub enum Tokens<'a> {
    /// One token, by its id (`jti`).
    Id(&'a str),
    /// The tokens of the tasks of a run, by the cluster, if known, and the uid of the outermost run.
    Root(Option<&'a str>, &'a str),
    /// The tokens of the runs that one of these requests caused.
    Cause(&'a BTreeSet<Uuid>),
    /// The tokens that a request asked for.
    Request(Uuid),
    /// The tokens of a TaskRun, or of the tasks of a PipelineRun, by namespace and name.
    Run(RunKind, &'a str, &'a str),
}

/// A revocation by an operator.
#[derive(Deserialize)]
struct Revocation {
    /// The name of the issuer.
    issuer: String,
    subject: Option<String>,
    token_id: Option<String>,
}

impl Revocation {
    /// Reads the command as it is recorded after it was executed.
    fn read(command: &str) -> Option<Self> {
        serde_json::from_str(command.strip_prefix("revoke ")?).ok()
    }

    fn meets(&self, token: &TracedToken) -> bool {
        if let Some(id) = &self.token_id {
            // A revocation by id refuses tokens of ours only: a provider's tokens are never presented here.
            let TracedToken { issued, .. } = token;
            let is_it = *id == issued.token && issued.is_by(&self.issuer);
            return (is_it || issued.is_made_of(&self.issuer, id)) && issued.onward.is_none();
        }
        let Some(subject) = &self.subject else { return false };
        token.issued.parties.iter().any(|(issuer, party)| *issuer == self.issuer && party == subject)
    }
}

impl Tokens<'_> {
    fn mean(self, issued: &IssuedLine, request: Uuid) -> bool {
        let task = issued.task.as_ref();
        match self {
            Self::Id(id) => issued.token == id,
            Self::Root(cluster, uid) => {
                task.is_some_and(|task| task.root == uid && cluster.is_none_or(|cluster| task.cluster == cluster))
            }
            Self::Cause(requests) => issued.cause.is_some_and(|cause| requests.contains(&cause)),
            Self::Request(asked) => request == asked,
            Self::Run(kind, namespace, name) => {
                let of_task = |task: &TaskLine| match kind {
                    RunKind::PipelineRun => task.pipeline_run.as_ref().is_some_and(|run| run.name == name),
                    RunKind::TaskRun => task.task_run.name == name,
                    // A CustomRun has no task of its own.
                    RunKind::CustomRun => false,
                };
                task.is_some_and(|task| task.namespace == namespace && of_task(task))
            }
        }
    }
}

/// Returns the wanted tokens, in the order in which they were issued, each with its uses.
pub fn trace_tokens(files: &Files, wanted: Tokens<'_>) -> Result<Vec<TracedToken>, ReplayError> {
    let mut found = Found::default();
    files.each(code::REQUEST, |line| found.issued(line, wanted))?;
    if found.tokens.is_empty() {
        return Ok(Vec::new());
    }
    files.each(code::REQUEST, |line| found.used(line))?;
    files.each(code::TOKENS_ENDED, |line| found.ended(line))?;
    files.each(code::OPERATOR, |line| found.revoked(&line))?;
    Ok(found.in_order())
}

/// The tokens found, with the facts about them.
#[derive(Default)]
struct Found {
    /// By id.
    tokens: BTreeMap<String, TracedToken>,
    /// The id of the token that a request asked for.
    of_request: HashMap<Uuid, String>,
}

impl Found {
    fn issued(&mut self, line: Line, wanted: Tokens<'_>) {
        let (Some(issued), Some(request)) = (line.unmapped.issued, line.metadata.correlation_uid) else { return };
        if !wanted.mean(&issued, request) {
            return;
        }
        let token = TracedToken {
            request,
            at: Timestamp::from_millis(line.time),
            whose: line.actor.user.name,
            actor: line.unmapped.principal.actor,
            withheld: None,
            uses: Vec::new(),
            more: HashSet::new(),
            ended: None,
            no_others_since: None,
            issued,
        };
        self.of_request.insert(request, token.issued.token.clone());
        self.tokens.entry(token.issued.token.clone()).or_insert(token);
    }

    fn used(&mut self, line: Line) {
        // If the token was returned, the record of the request's end has it as well.
        let has_ended = line.duration.is_some() && line.unmapped.issued.is_none();
        if let Some(request) = line.metadata.correlation_uid.filter(|_| has_ended)
            && let Some(token) = self.of_request.get(&request).and_then(|id| self.tokens.get_mut(id))
        {
            token.withheld = line.status_code.clone().or_else(|| line.unmapped.ended.clone());
        }
        let at = Timestamp::from_millis(line.time);
        // Holders can revoke tokens of ours only, and no token is exchanged for one of these.
        if let Some(token) = line.unmapped.revoked.as_ref().and_then(|id| self.tokens.get_mut(id)) {
            token.end(at, || DONE.to_owned());
        }
        let at_server = line.unmapped.introspected;
        let id = at_server.as_ref().map_or(&line.actor.session.uid, |at_server| &at_server.token);
        let (Some(token), Some(request)) = (self.tokens.get_mut(id), line.metadata.correlation_uid) else { return };
        // A resource server queries only tokens of ours.
        if at_server.is_none() && !token.issued.is_by(&line.actor.idp.name) {
            return;
        }
        let used = Use {
            request,
            at,
            method: line.http_request.http_method,
            host: line.http_request.url.hostname,
            path: line.http_request.url.path,
            status: line.http_response.code,
            rule: line.authorizations.into_iter().next().map(|of| of.policy.uid).filter(|rule| !rule.is_empty()),
            at_server,
        };
        // A request may have a record before it is forwarded, and one with its response.
        let has_room = token.uses.len() < MAX_USES;
        match token.uses.iter_mut().rev().find(|known| known.request == request) {
            Some(known) => *known = Use { at: known.at.min(at), ..used },
            None if has_room => token.uses.push(used),
            None if token.more.len() < MAX_MORE => {
                token.more.insert(request);
            }
            None => {}
        }
    }

    fn ended(&mut self, line: Line) {
        let Some(ended) = line.unmapped.tokens_ended else { return };
        let at = Timestamp::from_millis(line.time);
        let is_of = |task: &TaskLine| task.cluster == ended.cluster && task.lives_with().any(|uid| uid == ended.uid);
        for token in self.tokens.values_mut() {
            if token.issued.task.as_ref().is_some_and(is_of) && at.as_millis() < token.issued.expires {
                token.end(at, || ended.why.clone());
            }
        }
    }

    fn revoked(&mut self, line: &Line) {
        let Some(revocation) = Revocation::read(&line.unmapped.command).filter(|_| line.status_id == 1) else { return };
        let at = Timestamp::from_millis(line.time);
        for token in self.tokens.values_mut() {
            if token.is_valid_at(at) && revocation.meets(token) {
                token.end(at, || format!("an operator revoked it: {}", line.unmapped.why));
            }
        }
    }

    /// Returns the tokens in the order in which they were issued.
    fn in_order(self) -> Vec<TracedToken> {
        let mut tokens: Vec<TracedToken> = self.tokens.into_values().collect();
        for token in &mut tokens {
            token.uses.sort_by_key(|used| used.at);
        }
        tokens.sort_by(|a, b| (a.at, &a.issued.token).cmp(&(b.at, &b.issued.token)));
        tokens
    }
}

/// Returns the id of the token of ours that a resource server queried in this request.
pub fn introspected_in(files: &Files, request: Uuid) -> Result<Option<String>, ReplayError> {
    let mut found = None;
    files.each(code::REQUEST, |line| {
        if let Some(at_server) = line.unmapped.introspected.filter(|_| line.metadata.correlation_uid == Some(request)) {
            found = Some(at_server.token);
        }
    })?;
    Ok(found)
}

impl fmt::Display for TracedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { issued, .. } = self;
        let scopes = if issued.scopes.is_empty() { "no scope".to_owned() } else { issued.scopes.join(" ") };
        let whose = self.actor.as_ref().map(|_| format!(" on behalf of {}", self.whose)).unwrap_or_default();
        let token = format!("{} for {} ({scopes}){whose}", issued.token, issued.audience);
        writeln!(f, "  token      {}", line(&token))?;
        if let Some(task) = &issued.task {
            let mut to = format!("TaskRun {}/{}, pod {}", task.namespace, task.task_run.name, task.pod.name);
            if let Some(run) = &task.pipeline_run {
                let of = task.pipeline_task.as_deref().unwrap_or("?");
                to.push_str(&format!(", task {of} of PipelineRun {}", run.name));
            }
            writeln!(f, "    to       {}", line(&to))?;
        }
        if let Some(onward) = &issued.onward {
            let OnwardLine { provider, assertion, sha256 } = onward;
            let of = format!("{provider}, for assertion {assertion}, SHA-256 {sha256}");
            writeln!(f, "    of       {}", line(&of))?;
        }
        let (from, until) = (self.at, Timestamp::from_millis(issued.expires));
        match &self.withheld {
            Some(why) => {
                let why = line(why);
                writeln!(f, "    withheld {from}: {why}, by request {}; nobody received it", self.request)?;
            }
            None => writeln!(
                f,
                "    issued   {from} until {until}, by request {} and rule {}",
                self.request,
                line(&issued.rules.join(", "))
            )?,
        }
        if let Some(End { time, why }) = &self.ended {
            writeln!(f, "    ended    {time}: {}", line(why))?;
        }
        if let Some(End { time, why }) = &self.no_others_since {
            writeln!(
                f,
                "    no more  from {time} on: {}; this one is valid until {until}, unless the provider ended it: find its SHA-256 in the log",
                line(why)
            )?;
        }
        for used in &self.uses {
            if let Some(AtServer { server, active, .. }) = &used.at_server {
                let heard = if *active { "active" } else { "not active" };
                let server = line(server);
                writeln!(
                    f,
                    "    used     {} at resource server {server}, which was told it is {heard}, request {}",
                    used.at, used.request
                )?;
                continue;
            }
            let status = used.status.map_or_else(|| "-".to_owned(), |status| status.to_string());
            let what = line(&format!("{} {}{}", used.method, used.host, used.path));
            write!(f, "    used     {} {what} {status}", used.at)?;
            match &used.rule {
                Some(rule) => writeln!(f, ", by rule {}, request {}", line(rule), used.request)?,
                None => writeln!(f, ", request {}", used.request)?,
            }
        }
        match self.more.len() {
            0 => Ok(()),
            MAX_MORE => writeln!(f, "    used     at least {MAX_MORE} more times"),
            more => writeln!(f, "    used     {more} more times"),
        }
    }
}

#[cfg(test)]
mod tests;
