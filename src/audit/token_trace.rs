//! From a token of ours back to the run and the request that caused it, and on to each use of the token, by the trail alone.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    path::PathBuf,
};

use serde::Deserialize;
use uuid::Uuid;

use super::{note::code, replay::ReplayError, trace::each};
use crate::clock::Timestamp;

/// Uses of one token that are kept; the others are counted.
const MAX_USES: usize = 1000;

/// How many others are told apart, each of which has several records.
const MAX_MORE: usize = 1 << 18;

/// A token that was issued.
#[derive(Debug)]
pub struct TracedToken {
    pub issued: IssuedLine,
    /// The request that asked for it.
    pub request: Uuid,
    pub at: Timestamp,
    /// Whose it is, by the Kubernetes user name.
    pub whose: String,
    /// The same as their issuer knows them, and who acts.
    old_parties: OldParties,
    /// In order.
    pub uses: Vec<Use>,
    /// Further uses, by the request.
    more: HashSet<Uuid>,
    /// When it was ended before its time, and why.
    pub ended: Option<(Timestamp, String)>,
}

/// By whom a token can be ended as a whole, of a version that does not say it.
#[derive(Debug)]
struct OldParties {
    /// Name and identifier of the issuer.
    issuers: [String; 2],
    subject: String,
    actor: Option<String>,
}

/// A request that came with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    pub request: Uuid,
    pub at: Timestamp,
    pub method: String,
    pub host: String,
    pub path: String,
    pub status: Option<u16>,
    pub rule: Option<String>,
    /// Where it was used at a resource server, which asked about it.
    pub at_server: Option<AtServer>,
}

impl TracedToken {
    /// Notes an end. The files of several replicas are not in the order of time, and the first end counts.
    fn end(&mut self, at: Timestamp, why: impl FnOnce() -> String) {
        if self.ended.as_ref().is_none_or(|(before, _)| at < *before) {
            self.ended = Some((at, why()));
        }
    }
}

/// What a resource server heard of a token.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct AtServer {
    token: String,
    pub server: String,
    #[serde(default)]
    pub active: bool,
}

/// What the record of an exchange says of its token.
#[derive(Clone, Debug, Deserialize)]
pub struct IssuedLine {
    pub token: String,
    /// By what name it is known here who issued it. Older versions do not say it.
    #[serde(default)]
    pub issuer: Option<String>,
    pub audience: String,
    #[serde(default)]
    pub scopes: Vec<String>,
    pub expires: i64,
    #[serde(default)]
    pub rules: Vec<String>,
    /// The request that caused the run.
    #[serde(default)]
    pub cause: Option<Uuid>,
    #[serde(default)]
    pub task: Option<TaskLine>,
    /// Everybody whose revocation ends it, by the name of the issuer and the subject. Older versions do not say it.
    #[serde(default)]
    parties: Vec<(String, String)>,
    /// The issuer of who acts, of an older version.
    #[serde(default)]
    actor_issuer: Option<String>,
    /// Where it is another provider's.
    #[serde(default)]
    pub onward: Option<OnwardLine>,
}

impl IssuedLine {
    /// Whether this issuer has given it: others may give tokens the same id.
    pub fn is_by(&self, issuer: &str) -> bool {
        self.issuer.as_deref().is_none_or(|own| own == issuer)
    }
}

/// The provider of a token that is not ours.
#[derive(Clone, Debug, Deserialize)]
pub struct OnwardLine {
    pub provider: String,
    /// The id (`jti`) of the assertion that it was given for.
    pub assertion: String,
    pub sha256: String,
}

/// The task that got a token.
#[derive(Clone, Debug, Deserialize)]
pub struct TaskLine {
    #[serde(default)]
    pub cluster: String,
    pub namespace: String,
    pub task_run: ObjectLine,
    pub pod: ObjectLine,
    #[serde(default)]
    pub pipeline_run: Option<ObjectLine>,
    #[serde(default)]
    pub pipeline_task: Option<String>,
    /// The uid of the outermost run.
    pub root: String,
}

impl TaskLine {
    /// The outermost run as far as it has a name here: kind, name and uid.
    pub fn root(&self) -> (&str, &str, &str) {
        let runs = [("PipelineRun", self.pipeline_run.as_ref()), ("TaskRun", Some(&self.task_run))];
        let mut runs = runs.into_iter().filter_map(|(kind, run)| Some((kind, run?)));
        // A PipelineRun that another one made has that for its root.
        let named = runs.find(|(_, run)| run.uid == self.root);
        named
            .map_or(("PipelineRun", "?", self.root.as_str()), |(kind, run)| (kind, run.name.as_str(), run.uid.as_str()))
    }

    /// With whose end the token ends, by uid.
    fn lives_with(&self) -> impl Iterator<Item = &str> {
        let objects = [Some(&self.task_run), Some(&self.pod), self.pipeline_run.as_ref()];
        objects.into_iter().flatten().map(|object| object.uid.as_str()).chain([self.root.as_str()])
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct ObjectLine {
    pub name: String,
    pub uid: String,
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
    /// Those of the tasks of a PipelineRun, by namespace and name.
    PipelineRun(&'a str, &'a str),
    /// Those of a TaskRun, by namespace and name.
    TaskRun(&'a str, &'a str),
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    time: i64,
    /// 1 is success.
    #[serde(default)]
    status_id: u8,
    metadata: Metadata,
    #[serde(default)]
    actor: Actor,
    #[serde(default)]
    authorizations: Vec<Authorization>,
    #[serde(default)]
    http_request: Request,
    #[serde(default)]
    http_response: Response,
    #[serde(default)]
    unmapped: Unmapped,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    correlation_uid: Option<Uuid>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Actor {
    user: Named,
    idp: Named,
    session: Named,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
    uid: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Authorization {
    policy: Named,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Request {
    http_method: String,
    url: Url,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Url {
    hostname: String,
    path: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Response {
    code: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Unmapped {
    issued: Option<IssuedLine>,
    revoked: Option<String>,
    introspected: Option<AtServer>,
    tokens_ended: Option<Ended>,
    principal: PrincipalLine,
    /// Of an operator, and why.
    command: String,
    why: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PrincipalLine {
    actor: Option<ActorLine>,
    claims: Claims,
}

#[derive(Deserialize)]
struct ActorLine {
    #[serde(default)]
    subject: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Claims {
    iss: String,
}

/// What an operator revokes.
#[derive(Deserialize)]
struct Revocation {
    /// By its name.
    issuer: String,
    #[serde(default)]
    subject: Option<String>,
    #[serde(default)]
    token_id: Option<String>,
}

impl Revocation {
    /// From the command as it is recorded once it was done.
    fn read(command: &str) -> Option<Self> {
        serde_json::from_str(command.strip_prefix("revoke ")?).ok()
    }

    fn meets(&self, token: &TracedToken) -> bool {
        if let Some(id) = &self.token_id {
            return *id == token.issued.token && token.issued.is_by(&self.issuer);
        }
        let Some(subject) = &self.subject else { return false };
        match token.issued.parties.as_slice() {
            [] => self.meets_old(subject, token),
            parties => parties.iter().any(|(issuer, party)| *issuer == self.issuer && party == subject),
        }
    }

    fn meets_old(&self, subject: &str, token: &TracedToken) -> bool {
        let OldParties { issuers, subject: person, actor } = &token.old_parties;
        let of_person = issuers.contains(&self.issuer) && subject == person;
        // A service account is called otherwise as an actor.
        let account = subject.strip_prefix("system:serviceaccount:");
        let is_actor = |actor: &String| match account {
            None => actor == subject,
            Some(account) => actor.strip_prefix("serviceaccount:").is_some_and(|name| {
                name == account
                    || name.strip_prefix(&*self.issuer).and_then(|name| name.strip_prefix(':')) == Some(account)
            }),
        };
        let of_actor = token.issued.actor_issuer.as_ref() == Some(&self.issuer) && actor.as_ref().is_some_and(is_actor);
        of_person || of_actor
    }
}

#[derive(Deserialize)]
struct Ended {
    #[serde(default)]
    cluster: String,
    uid: String,
    why: String,
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
            Self::PipelineRun(namespace, name) => task.is_some_and(|task| {
                task.namespace == namespace && task.pipeline_run.as_ref().is_some_and(|run| run.name == name)
            }),
            Self::TaskRun(namespace, name) => {
                task.is_some_and(|task| task.namespace == namespace && task.task_run.name == name)
            }
        }
    }
}

/// The tokens that are meant, in the order in which they were issued, each with its uses.
pub fn trace_tokens(files: &[PathBuf], wanted: Tokens<'_>) -> Result<Vec<TracedToken>, ReplayError> {
    let mut found: BTreeMap<String, TracedToken> = BTreeMap::new();
    each(files, code::REQUEST, |line: Line| {
        let (Some(issued), Some(request)) = (line.unmapped.issued, line.metadata.correlation_uid) else { return };
        if wanted.mean(&issued, request) {
            let token = TracedToken {
                request,
                at: Timestamp::from_millis(line.time),
                whose: line.actor.user.name,
                old_parties: OldParties {
                    issuers: [line.actor.idp.name, line.unmapped.principal.claims.iss],
                    subject: line.actor.user.uid,
                    actor: line.unmapped.principal.actor.map(|actor| actor.subject),
                },
                uses: Vec::new(),
                more: HashSet::new(),
                ended: None,
                issued,
            };
            found.entry(token.issued.token.clone()).or_insert(token);
        }
    })?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    each(files, code::REQUEST, |line: Line| {
        let at = Timestamp::from_millis(line.time);
        if let Some(token) = line.unmapped.revoked.as_ref().and_then(|id| found.get_mut(id)) {
            token.end(at, || "its holder had done with it".to_owned());
        }
        let at_server = line.unmapped.introspected;
        let id = at_server.as_ref().map_or(&line.actor.session.uid, |at_server| &at_server.token);
        let (Some(token), Some(request)) = (found.get_mut(id), line.metadata.correlation_uid) else { return };
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
    })?;
    each(files, code::TOKENS_ENDED, |line: Line| {
        let Some(ended) = line.unmapped.tokens_ended else { return };
        let at = Timestamp::from_millis(line.time);
        for token in found.values_mut() {
            let is_meant = token
                .issued
                .task
                .as_ref()
                .is_some_and(|task| task.cluster == ended.cluster && task.lives_with().any(|uid| uid == ended.uid));
            if is_meant && at.as_millis() < token.issued.expires {
                token.end(at, || ended.why.clone());
            }
        }
    })?;
    each(files, code::OPERATOR, |line: Line| {
        let Some(revocation) = Revocation::read(&line.unmapped.command).filter(|_| line.status_id == 1) else { return };
        let at = Timestamp::from_millis(line.time);
        for token in found.values_mut() {
            let is_out = token.at <= at && at.as_millis() < token.issued.expires;
            if is_out && revocation.meets(token) {
                token.end(at, || format!("an operator revoked it: {}", line.unmapped.why.escape_debug()));
            }
        }
    })?;
    let mut tokens: Vec<TracedToken> = found.into_values().collect();
    for token in &mut tokens {
        token.uses.sort_by_key(|used| used.at);
    }
    tokens.sort_by(|a, b| (a.at, &a.issued.token).cmp(&(b.at, &b.issued.token)));
    Ok(tokens)
}

/// The id of the token of ours that a resource server asked about in this request.
pub fn introspected_in(files: &[PathBuf], request: Uuid) -> Result<Option<String>, ReplayError> {
    let mut found = None;
    each(files, code::REQUEST, |line: Line| {
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
        writeln!(f, "  token      {} for {} ({scopes}) on behalf of {}", issued.token, issued.audience, self.whose)?;
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
        writeln!(
            f,
            "    issued   {from} until {until}, by request {} and rule {}",
            self.request,
            issued.rules.join(", ")
        )?;
        if let Some((at, why)) = &self.ended {
            writeln!(f, "    ended    {at}: {why}")?;
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
