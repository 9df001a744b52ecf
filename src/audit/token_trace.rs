//! From a token of ours back to the run and the request that caused it, and on to each use of the token, by the trail alone.

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
};

/// Why a token ended that its holder revoked.
pub(super) const DONE: &str = "its holder had done with it";

/// Uses of one token that are kept; the others are counted.
const MAX_USES: usize = 1000;

/// How many others are told apart, each of which has several records.
const MAX_MORE: usize = 1 << 18;

/// A token that was issued. Programs are told of times in milliseconds since 1970, as the trail does.
#[derive(Debug, Serialize)]
pub struct TracedToken {
    #[serde(flatten)]
    pub issued: IssuedLine,
    /// Whose it is, by the Kubernetes user name.
    #[serde(rename = "on_behalf_of")]
    pub whose: String,
    /// Who acts for them, where somebody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<ActorLine>,
    #[serde(rename = "issued", with = "millis")]
    pub at: Timestamp,
    /// The request that asked for it.
    pub request: Uuid,
    /// Why it was given to nobody, where its request was refused after it had been written down, as who asked was revoked meanwhile, or
    /// its client left before the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub withheld: Option<String>,
    /// When it was ended before its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<End>,
    /// From when on no other was given, and why, where it is another provider's: it goes on until its own end, unless the provider ended
    /// it, which the trail does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_others_since: Option<End>,
    /// In order.
    pub uses: Vec<Use>,
    /// Further uses, by the request.
    #[serde(rename = "more_uses", serialize_with = "count")]
    more: HashSet<Uuid>,
}

/// The end of a token before its time.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct End {
    #[serde(with = "millis")]
    pub time: Timestamp,
    pub why: String,
}

/// A request that came with a token.
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
    /// Where it was used at a resource server, which asked about it.
    #[serde(flatten)]
    pub at_server: Option<AtServer>,
}

fn count<S: Serializer>(more: &HashSet<Uuid>, serializer: S) -> Result<S::Ok, S::Error> {
    more.len().serialize(serializer)
}

impl TracedToken {
    /// Notes an end. The files of several replicas are not in the order of time, and the first end counts.
    fn end(&mut self, time: Timestamp, why: impl FnOnce() -> String) {
        let end = if self.issued.onward.is_some() { &mut self.no_others_since } else { &mut self.ended };
        if end.as_ref().is_none_or(|before| time < before.time) {
            *end = Some(End { time, why: why() });
        }
    }
}

/// Which tokens are meant.
#[derive(Clone, Copy, Debug)]
pub enum Tokens<'a> {
    /// One, by its id (`jti`).
    Id(&'a str),
    /// Those of the tasks of a run, by the uid of the outermost one, and by its cluster where that is known.
    Root(Option<&'a str>, &'a str),
    /// Those of the runs that one of these requests caused.
    Cause(&'a BTreeSet<Uuid>),
    /// Those that a request asked for.
    Request(Uuid),
    /// Those of a TaskRun, or of the tasks of a PipelineRun, by namespace and name.
    Run(RunKind, &'a str, &'a str),
}

/// What an operator revokes.
#[derive(Deserialize)]
struct Revocation {
    /// By its name.
    issuer: String,
    subject: Option<String>,
    token_id: Option<String>,
}

impl Revocation {
    /// From the command as it is recorded once it was done.
    fn read(command: &str) -> Option<Self> {
        serde_json::from_str(command.strip_prefix("revoke ")?).ok()
    }

    fn meets(&self, token: &TracedToken) -> bool {
        if let Some(id) = &self.token_id {
            // By its id a token of ours is refused: nobody asks here about one of a provider.
            return *id == token.issued.token && token.issued.is_by(&self.issuer) && token.issued.onward.is_none();
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
                    // It has no task of its own.
                    RunKind::CustomRun => false,
                };
                task.is_some_and(|task| task.namespace == namespace && of_task(task))
            }
        }
    }
}

/// The tokens that are meant, in the order in which they were issued, each with its uses.
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

/// The tokens that are meant, with what lines say of them.
#[derive(Default)]
struct Found {
    /// By id.
    tokens: BTreeMap<String, TracedToken>,
    /// The id of the one that a request asked for.
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
        // The record of the end of a request that gave a token has it as well.
        let has_ended = line.duration.is_some() && line.unmapped.issued.is_none();
        if let Some(request) = line.metadata.correlation_uid.filter(|_| has_ended)
            && let Some(token) = self.of_request.get(&request).and_then(|id| self.tokens.get_mut(id))
        {
            token.withheld = line.status_code.clone().or_else(|| line.unmapped.ended.clone());
        }
        let at = Timestamp::from_millis(line.time);
        if let Some(token) = line.unmapped.revoked.as_ref().and_then(|id| self.tokens.get_mut(id)) {
            token.end(at, || DONE.to_owned());
        }
        let at_server = line.unmapped.introspected;
        let id = at_server.as_ref().map_or(&line.actor.session.uid, |at_server| &at_server.token);
        let (Some(token), Some(request)) = (self.tokens.get_mut(id), line.metadata.correlation_uid) else { return };
        // A resource server asks about tokens of ours alone.
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
        // A request has a record before it is forwarded, and one with its answer.
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
            let is_out = token.at <= at && at.as_millis() < token.issued.expires;
            if is_out && revocation.meets(token) {
                token.end(at, || format!("an operator revoked it: {}", line.unmapped.why.escape_debug()));
            }
        }
    }

    /// In the order in which they were issued.
    fn in_order(self) -> Vec<TracedToken> {
        let mut tokens: Vec<TracedToken> = self.tokens.into_values().collect();
        for token in &mut tokens {
            token.uses.sort_by_key(|used| used.at);
        }
        tokens.sort_by(|a, b| (a.at, &a.issued.token).cmp(&(b.at, &b.issued.token)));
        tokens
    }
}

/// The id of the token of ours that a resource server asked about in this request.
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
        write!(f, "  token      {} for {} ({scopes})", issued.token, issued.audience)?;
        match &self.actor {
            Some(_) => writeln!(f, " on behalf of {}", self.whose)?,
            None => writeln!(f)?,
        }
        if let Some(task) = &issued.task {
            write!(f, "    to       TaskRun {}/{}, pod {}", task.namespace, task.task_run.name, task.pod.name)?;
            if let Some(run) = &task.pipeline_run {
                write!(f, ", task {} of PipelineRun {}", task.pipeline_task.as_deref().unwrap_or("?"), run.name)?;
            }
            writeln!(f)?;
        }
        if let Some(onward) = &issued.onward {
            let OnwardLine { provider, assertion, sha256 } = onward;
            writeln!(f, "    of       {provider}, for assertion {assertion}, SHA-256 {sha256}")?;
        }
        let (from, until) = (self.at, Timestamp::from_millis(issued.expires));
        match &self.withheld {
            Some(why) => writeln!(f, "    withheld {from}: {why}, by request {}; nobody was given it", self.request)?,
            None => writeln!(
                f,
                "    issued   {from} until {until}, by request {} and rule {}",
                self.request,
                issued.rules.join(", ")
            )?,
        }
        if let Some(End { time, why }) = &self.ended {
            writeln!(f, "    ended    {time}: {why}")?;
        }
        if let Some(End { time, why }) = &self.no_others_since {
            writeln!(
                f,
                "    no more  from {time} on: {why}; this one lasts until {until}, unless the provider ended it, as the log tells by its SHA-256"
            )?;
        }
        for used in &self.uses {
            if let Some(AtServer { server, active, .. }) = &used.at_server {
                let heard = if *active { "active" } else { "not active" };
                writeln!(
                    f,
                    "    used     {} at resource server {server}, which heard {heard}, request {}",
                    used.at, used.request
                )?;
                continue;
            }
            let status = used.status.map_or_else(|| "-".to_owned(), |status| status.to_string());
            write!(f, "    used     {} {} {}{} {status}", used.at, used.method, used.host, used.path.escape_debug())?;
            match &used.rule {
                Some(rule) => writeln!(f, ", by rule {rule}, request {}", used.request)?,
                None => writeln!(f, ", request {}", used.request)?,
            }
        }
        match self.more.len() {
            0 => Ok(()),
            MAX_MORE => writeln!(f, "    used     {MAX_MORE} times more, or still more often"),
            more => writeln!(f, "    used     {more} times more"),
        }
    }
}

#[cfg(test)]
mod tests;
