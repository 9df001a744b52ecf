//! `doorward audit trace`: who caused a run, which tokens its tasks got, and where these were used; or the reverse.

mod found;

use std::{io::Write, path::PathBuf};

use uuid::Uuid;

use self::found::{Found, FoundRequest, FoundRun, Known};
use crate::{
    audit::{self, Arrival, Cause, Files, MISSING, NoCause, TaskLine, Tokens, TracedRun, TracedToken},
    authn::CredentialId,
    cli::{
        Failure,
        format::{Format, print_json},
        namespaced,
    },
    tekton::RunKind,
    terminal,
};

/// Follow a delivery or a click to the run that it caused, to the tokens that the tasks of the run got and to each use
/// of them, forwards and backwards. Exit status 1: a cause is not known, or a line cannot be read.
///
/// Set `runs` in the configuration to link runs to their causes as they appear.
#[derive(Debug, clap::Args)]
pub struct TraceArgs {
    #[arg(value_enum)]
    kind: Kind,
    /// A run as NAMESPACE/NAME, which finds every run that ever had the name; a token by its `jti`; a request by its
    /// id; a delivery by the id that its sender gave it; an event by the id that the EventListener gave it.
    what: String,
    /// A file of the audit trail; full files with a number beside it are read too. Repeat it for each replica.
    #[arg(long = "trail", value_name = "FILE", required = true)]
    trails: Vec<PathBuf>,
    /// How the result is printed. Times in JSON are Unix time in milliseconds.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Kind {
    #[value(name = "pipelinerun")]
    PipelineRun,
    #[value(name = "taskrun")]
    TaskRun,
    /// A token that Doorward issued.
    #[value(name = "token")]
    Token,
    /// A request or a delivery, by the id in its response.
    #[value(name = "request")]
    Request,
    /// A delivery, such as by GitHub's `X-GitHub-Delivery`.
    #[value(name = "delivery")]
    Delivery,
    /// What an EventListener made of a delivery (`eventID`).
    #[value(name = "event")]
    Event,
}

/// Why a run is not in the trail.
const NOT_LINKED: &str =
    "it was not made through Doorward, or `runs` of the configuration does not cover its namespace";

/// The addition for a run about which nothing else is known. What Tekton creates for a PipelineRun is not recorded.
const OR_A_PART: &str =
    ", or it is a part of a PipelineRun: trace that one, which its label `tekton.dev/pipelineRun` names";

fn run_name(text: &str) -> Result<(&str, &str), Failure> {
    namespaced(text).ok_or_else(|| "write NAMESPACE/NAME, such as `ci/build-x7k2p`".into())
}

pub fn run(args: &TraceArgs, out: &mut impl Write) -> Result<u8, Failure> {
    if args.what.trim().is_empty() {
        return Err("what is to be traced is empty: write its id or, for a run, NAMESPACE/NAME".into());
    }
    let files = Files::new(super::files_of(&args.trails)?);
    let mut tracer = Tracer { files: &files, found: Vec::new() };
    match args.kind {
        Kind::PipelineRun => tracer.runs(RunKind::PipelineRun, run_name(&args.what)?)?,
        Kind::TaskRun => tracer.runs(RunKind::TaskRun, run_name(&args.what)?)?,
        Kind::Token => tracer.token(&args.what)?,
        Kind::Request => {
            let id = Uuid::try_parse(&args.what);
            tracer.request(id.map_err(|_| "write the id of a request, which is a UUID")?)?;
        }
        Kind::Delivery => tracer.arrivals("delivery", Arrival::Delivery(&args.what))?,
        Kind::Event => tracer.arrivals("event", Arrival::Event(&args.what))?,
    }
    let mut unreadable = files.unreadable().into_iter();
    if let Some((file, line)) = unreadable.next() {
        tracer.found.push(Found::Unreadable { lines: 1 + unreadable.len(), file, line });
    }
    match args.format {
        // All of it contains names, ids and paths from strangers.
        Format::Human => {
            let mut found = tracer.found.iter();
            found.try_for_each(|found| write!(out, "{}", terminal::block(&found.to_string())))?;
        }
        Format::Json => print_json(&tracer.found, out)?,
    }
    Ok(u8::from(tracer.found.iter().any(Found::is_unknown)))
}

struct Tracer<'a> {
    files: &'a Files,
    /// In the order in which it is printed.
    found: Vec<Found>,
}

impl Tracer<'_> {
    /// Finds runs by name. A run that a person or a delivery created is in the trail itself, if `runs` is configured;
    /// those that Tekton created for a pipeline are found by their tokens.
    fn runs(&mut self, kind: RunKind, (namespace, name): (&str, &str)) -> Result<(), Failure> {
        let runs = audit::trace(self.files, kind, namespace, name)?;
        if !runs.is_empty() {
            return runs.into_iter().try_for_each(|run| self.run_with_tokens(run));
        }
        let tokens = audit::trace_tokens(self.files, Tokens::Run(kind, namespace, name))?;
        if tokens.is_empty() {
            let or_a_part = if kind == RunKind::TaskRun { OR_A_PART } else { "" };
            let kind = kind.name();
            self.nothing(format!("no {kind} {namespace}/{name} is in the trail: {NOT_LINKED}{or_a_part}"));
        }
        self.tokens_with_cause(tokens)
    }

    fn token(&mut self, id: &str) -> Result<(), Failure> {
        let tokens = audit::trace_tokens(self.files, Tokens::Id(id))?;
        if tokens.is_empty() {
            self.nothing(format!("no token {id} is in these files; give all files of all replicas"));
        }
        self.tokens_with_cause(tokens)
    }

    fn arrivals(&mut self, what: &str, known_by: Arrival<'_>) -> Result<(), Failure> {
        let (Arrival::Delivery(id) | Arrival::Event(id)) = known_by;
        let requests = audit::arrivals(self.files, known_by)?;
        if requests.is_empty() {
            self.nothing(format!("no {what} {id} is in these files; give all files of all replicas"));
        }
        requests.into_iter().try_for_each(|request| self.request(request))
    }

    fn request(&mut self, id: Uuid) -> Result<(), Failure> {
        let (request, missing_arrival) = match self.files.request(id)? {
            Some(request) => (request, None),
            None => match audit::sent_on(self.files, id)? {
                Some(sent) => (sent, Some(id)),
                None => {
                    self.nothing(format!("no request {id} is in these files; give all files of all replicas"));
                    return Ok(());
                }
            },
        };
        let came_with = request.principal.as_ref().and_then(|principal| match &principal.credential {
            CredentialId::Token(jti) => Some((jti.clone(), principal.issuer.clone())),
            _ => None,
        });
        let answers = audit::answers(self.files, id)?;
        self.found.push(Found::Request(Box::new(FoundRequest { request, missing_arrival, answers })));
        if let Some((jti, issuer)) = came_with {
            let mut tokens = audit::trace_tokens(self.files, Tokens::Id(&jti))?;
            tokens.retain(|token| token.issued.is_by(&issuer));
            self.tokens_with_cause(tokens)?;
        }
        if let Some(jti) = audit::introspected_in(self.files, id)? {
            let tokens = audit::trace_tokens(self.files, Tokens::Id(&jti))?;
            self.tokens_with_cause(tokens)?;
        }
        let given = audit::trace_tokens(self.files, Tokens::Request(id))?;
        self.tokens_with_cause(given)?;
        let runs = audit::trace_request(self.files, id)?;
        // The tokens of runs that are not in the trail themselves.
        let mut tokens = audit::trace_tokens(self.files, Tokens::Cause(&audit::sent_for(self.files, id)?))?;
        tokens.retain(|token| !runs.iter().any(|run| is_within(token, run)));
        runs.into_iter().try_for_each(|run| self.run_with_tokens(run))?;
        self.tokens_with_cause(tokens)
    }

    fn run_with_tokens(&mut self, run: TracedRun) -> Result<(), Failure> {
        let tokens = audit::trace_tokens(self.files, Tokens::Root(run.cluster.as_deref(), &run.uid))?;
        let known = tokens.iter().find_map(|token| Some((token.issued.task.as_ref()?, token.issued.cause?)));
        let found = match known {
            Some((task, cause)) => self.task(task, cause)?,
            None => of_run(run),
        };
        self.found.push(Found::Run(Box::new(FoundRun { tokens, ..found })));
        Ok(())
    }

    /// Adds tokens with their runs. Consecutive tokens of one run are printed together.
    fn tokens_with_cause(&mut self, tokens: Vec<TracedToken>) -> Result<(), Failure> {
        let mut last: Option<FoundRun> = None;
        for token in tokens {
            let (Some(task), Some(cause)) = (&token.issued.task, token.issued.cause) else {
                self.found.extend(last.take().map(|run| Found::Run(Box::new(run))));
                self.found.push(Found::Token(Box::new(token)));
                continue;
            };
            if let Some(run) = last.as_mut().filter(|run| run.tokens.iter().all(|other| are_of_one_run(other, &token)))
            {
                run.tokens.push(token);
                continue;
            }
            let found = self.task(task, cause)?;
            self.found
                .extend(last.replace(FoundRun { tokens: vec![token], ..found }).map(|run| Found::Run(Box::new(run))));
        }
        self.found.extend(last.map(|run| Found::Run(Box::new(run))));
        Ok(())
    }

    /// Returns the run of a task with the cause that the exchange found: the exchange uses what Doorward itself
    /// recorded, not what the run says.
    fn task(&self, task: &TaskLine, id: Uuid) -> Result<FoundRun, Failure> {
        let run = audit::trace_uid(self.files, &task.cluster, &task.root)?;
        let Some(run) = run else { return Ok(of_root(task, self.cause(id)?)) };
        let warning = match &run.cause {
            Ok(cause) if cause.is_of(id) => return Ok(of_run(run)),
            Ok(Cause { request, .. }) => {
                Some(format!("the run itself says that request {} caused it; somebody changed that", request.id))
            }
            // It says the same, or what it says cannot be checked in these files.
            Err(NoCause::UnknownRequest(named) | NoCause::Forged(named)) if *named == id => None,
            Err(NoCause::UnknownEvent(_)) => None,
            Err(none) => Some(format!("the run itself does not say so: {none}")),
        };
        Ok(FoundRun { cause: self.cause(id)?, warning, ..of_run(run) })
    }

    /// The request that an exchange found to have caused a run.
    fn cause(&self, id: Uuid) -> Result<Known, Failure> {
        Ok(match audit::trace_cause(self.files, id)? {
            Some(cause) => Known::Cause(Box::new(cause)),
            None => Known::NotKnown(format!("request {id} caused it, {MISSING}")),
        })
    }

    fn nothing(&mut self, detail: String) {
        self.found.push(Found::Nothing { detail });
    }
}

/// A run of which only tokens are known.
fn of_root(task: &TaskLine, cause: Known) -> FoundRun {
    let (kind, name, uid) = task.root();
    FoundRun {
        kind: kind.to_owned(),
        namespace: task.namespace.clone(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        created: None,
        cause,
        warning: None,
        tokens: Vec::new(),
    }
}

/// A run, according to what it says itself.
fn of_run(run: TracedRun) -> FoundRun {
    let TracedRun { kind, namespace, name, uid, created, cause, .. } = run;
    let cause = match cause {
        Ok(cause) => Known::Cause(Box::new(cause)),
        Err(none) => Known::NotKnown(none.to_string()),
    };
    FoundRun { kind, namespace, name, uid, created, cause, warning: None, tokens: Vec::new() }
}

/// Whether two tokens belong to tasks of one run, and their exchanges found the same cause.
fn are_of_one_run(one: &TracedToken, other: &TracedToken) -> bool {
    let of = |token: &TracedToken| {
        let task = token.issued.task.as_ref()?;
        Some((task.cluster.clone(), task.root.clone(), token.issued.cause))
    };
    of(one) == of(other)
}

/// Whether a token belongs to a task of this run.
fn is_within(token: &TracedToken, run: &TracedRun) -> bool {
    let is_here = |task: &TaskLine| run.cluster.as_ref().is_none_or(|cluster| *cluster == task.cluster);
    token.issued.task.as_ref().is_some_and(|task| task.root == run.uid && is_here(task))
}

#[cfg(test)]
mod tests;
