//! `doorward audit trace`: who caused a run, what tokens its tasks got, and where these were used; or the way back.

use std::{io::Write, path::PathBuf};

use uuid::Uuid;

use crate::{
    audit::{self, Arrival, Cause, NoCause, ReplayInputs, TaskLine, Tokens, TracedRun, TracedToken, trail_files},
    authn::CredentialId,
    cli::Failure,
};

/// Follow a delivery or a click to the run that it caused, to the tokens that the tasks of the run got and to each use of these,
/// forwards and backwards. Exit code 1: a cause is not known.
///
/// `runs` in the configuration has runs linked to their causes as they appear.
#[derive(Debug, clap::Args)]
pub struct TraceArgs {
    #[arg(value_enum)]
    kind: Kind,
    /// A run as NAMESPACE/NAME, all that ever had the name; a token by its `jti`; a request by its id; a delivery by the id that its
    /// sender gave it; an event by the id that the EventListener gave it.
    what: String,
    /// A file of the audit trail; full ones with a number beside it are read too. Give it again for each replica.
    #[arg(long = "trail", value_name = "FILE", required = true)]
    trails: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Kind {
    #[value(name = "pipelinerun")]
    PipelineRun,
    #[value(name = "taskrun")]
    TaskRun,
    /// One that Doorward issued.
    #[value(name = "token")]
    Token,
    /// A request, or a delivery, by the id in its answer.
    #[value(name = "request")]
    Request,
    /// A delivery, such as by GitHub's `X-GitHub-Delivery`.
    #[value(name = "delivery")]
    Delivery,
    /// What an EventListener made of a delivery (`eventID`).
    #[value(name = "event")]
    Event,
}

fn run_name(text: &str) -> Result<(&str, &str), Failure> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace, name))
        }
        _ => Err("write NAMESPACE/NAME, such as `ci/build-x7k2p`".into()),
    }
}

pub fn run(args: &TraceArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let mut files = Vec::new();
    for trail in &args.trails {
        files.extend(trail_files(trail)?);
    }
    let mut tracer = Tracer { files: &files, out, unknown: false };
    match args.kind {
        Kind::PipelineRun => tracer.pipeline_runs(run_name(&args.what)?)?,
        Kind::TaskRun => tracer.task_runs(run_name(&args.what)?)?,
        Kind::Token => tracer.token(&args.what)?,
        Kind::Request => {
            let id = Uuid::try_parse(&args.what);
            tracer.request(id.map_err(|_| "write the id of a request, which is a UUID")?)?;
        }
        Kind::Delivery => tracer.arrivals("delivery", Arrival::Delivery(&args.what))?,
        Kind::Event => tracer.arrivals("event", Arrival::Event(&args.what))?,
    }
    Ok(u8::from(tracer.unknown))
}

struct Tracer<'a, W> {
    files: &'a [PathBuf],
    out: &'a mut W,
    /// Something is not known that was asked for.
    unknown: bool,
}

impl<W: Write> Tracer<'_, W> {
    fn pipeline_runs(&mut self, (namespace, name): (&str, &str)) -> Result<(), Failure> {
        let runs = audit::trace(self.files, "PipelineRun", namespace, name)?;
        if runs.is_empty() {
            return self.by_tokens("PipelineRun", Tokens::PipelineRun(namespace, name), (namespace, name));
        }
        runs.iter().try_for_each(|run| self.run_with_tokens(run))
    }

    /// One that a person or a delivery made is in the trail itself, where `runs` is configured; those that Tekton made for a pipeline,
    /// by their tokens.
    fn task_runs(&mut self, (namespace, name): (&str, &str)) -> Result<(), Failure> {
        let runs = audit::trace(self.files, "TaskRun", namespace, name)?;
        if !runs.is_empty() {
            return runs.iter().try_for_each(|run| self.run_with_tokens(run));
        }
        self.by_tokens("TaskRun", Tokens::TaskRun(namespace, name), (namespace, name))
    }

    /// A run that is in the trail by the tokens of its tasks alone.
    fn by_tokens(&mut self, kind: &str, wanted: Tokens<'_>, (namespace, name): (&str, &str)) -> Result<(), Failure> {
        let tokens = audit::trace_tokens(self.files, wanted)?;
        if tokens.is_empty() {
            return self.no_run(kind, namespace, name);
        }
        tokens.iter().try_for_each(|token| self.token_with_cause(token))
    }

    fn token(&mut self, id: &str) -> Result<(), Failure> {
        let tokens = audit::trace_tokens(self.files, Tokens::Id(id))?;
        if tokens.is_empty() {
            self.unknown = true;
            writeln!(self.out, "no token {id} is in these files; give all files of all replicas")?;
        }
        tokens.iter().try_for_each(|token| self.token_with_cause(token))
    }

    fn arrivals(&mut self, what: &str, known_by: Arrival<'_>) -> Result<(), Failure> {
        let (Arrival::Delivery(id) | Arrival::Event(id)) = known_by;
        let requests = audit::arrivals(self.files, known_by)?;
        if requests.is_empty() {
            self.unknown = true;
            writeln!(self.out, "no {what} {id} is in these files; give all files of all replicas")?;
        }
        requests.into_iter().try_for_each(|request| self.request(request))
    }

    fn request(&mut self, id: Uuid) -> Result<(), Failure> {
        let Some(request) = ReplayInputs::find(self.files, id)? else {
            self.unknown = true;
            writeln!(self.out, "no request {id} is in these files; give all files of all replicas")?;
            return Ok(());
        };
        let whose = request.principal.as_ref().map_or("nobody", |principal| &*principal.username);
        writeln!(
            self.out,
            "request {id} at {}, of {whose}: {} {}{}",
            request.time, request.method, request.host, request.path
        )?;
        if let Some(principal) = &request.principal
            && let CredentialId::Token(jti) = &principal.credential
        {
            let tokens = audit::trace_tokens(self.files, Tokens::Id(jti))?;
            let mut own = tokens.iter().filter(|token| token.issued.is_by(&principal.issuer));
            own.try_for_each(|token| self.token_with_cause(token))?;
        }
        if let Some(jti) = audit::introspected_in(self.files, id)? {
            let tokens = audit::trace_tokens(self.files, Tokens::Id(&jti))?;
            tokens.iter().try_for_each(|token| self.token_with_cause(token))?;
        }
        let given = audit::trace_tokens(self.files, Tokens::Request(id))?;
        given.iter().try_for_each(|token| self.token_with_cause(token))?;
        let runs = audit::trace_request(self.files, id)?;
        runs.iter().try_for_each(|run| self.run_with_tokens(run))?;
        // Those of runs that are not in the trail themselves.
        let mut tokens = audit::trace_tokens(self.files, Tokens::Cause(&audit::sent_for(self.files, id)?))?;
        tokens.retain(|token| !runs.iter().any(|run| is_within(token, run)));
        tokens.iter().try_for_each(|token| self.token_with_cause(token))
    }

    fn run_with_tokens(&mut self, run: &TracedRun) -> Result<(), Failure> {
        let tokens = audit::trace_tokens(self.files, Tokens::Root(run.cluster.as_deref(), &run.uid))?;
        let found = tokens.iter().find_map(|token| Some((token.issued.task.as_ref()?, token.issued.cause?)));
        match found {
            Some((task, cause)) => self.task(task, Some(cause))?,
            None => self.run(run)?,
        }
        tokens.iter().try_for_each(|token| Ok(write!(self.out, "{token}")?))
    }

    fn token_with_cause(&mut self, token: &TracedToken) -> Result<(), Failure> {
        match &token.issued.task {
            Some(task) => self.task(task, token.issued.cause)?,
            None => writeln!(self.out, "asked for by {} in request {}", token.whose, token.request)?,
        }
        write!(self.out, "{token}")?;
        Ok(())
    }

    /// The run of a task with its cause, which is the one that the exchange found: it has that by what Doorward itself noted, and not
    /// by what the run says.
    fn task(&mut self, task: &TaskLine, cause: Option<Uuid>) -> Result<(), Failure> {
        let run = audit::trace_uid(self.files, &task.cluster, &task.root)?;
        let Some(id) = cause else {
            // Of a version that did not write it.
            return match run {
                Some(run) => self.run(&run),
                None => self.no_run(task.root().0, &task.namespace, task.root().1),
            };
        };
        if let Some(run) = run.as_ref().filter(|run| run.cause.as_ref().is_ok_and(|cause| cause.is_of(id))) {
            return self.run(run);
        }
        match &run {
            Some(TracedRun { kind, name, uid, .. }) => {
                writeln!(self.out, "{kind} {}/{name} {uid}", task.namespace)?;
            }
            None => {
                let (kind, name, uid) = task.root();
                writeln!(self.out, "{kind} {}/{name} {uid}", task.namespace)?;
            }
        }
        match audit::trace_cause(self.files, id)? {
            Some(cause) => write!(self.out, "{cause}")?,
            None => {
                self.unknown = true;
                writeln!(
                    self.out,
                    "  not known  request {id} caused it, which is not in these files; give all files of all replicas"
                )?;
            }
        }
        match run.map(|run| run.cause) {
            Some(Ok(Cause { request, .. })) => {
                let other = request.id;
                writeln!(
                    self.out,
                    "  warning    the run says of itself that request {other} caused it; somebody changed that"
                )?;
            }
            // It says the same, or what it says cannot be looked at in these files.
            Some(Err(NoCause::UnknownRequest(named) | NoCause::Forged(named))) if named == id => {}
            Some(Err(NoCause::UnknownEvent(_))) => {}
            Some(Err(none)) => writeln!(self.out, "  warning    the run's own word does not say so: {none}")?,
            None => {}
        }
        Ok(())
    }

    fn run(&mut self, run: &TracedRun) -> Result<(), Failure> {
        let TracedRun { kind, namespace, name, uid, created, cause, .. } = run;
        write!(self.out, "{kind} {namespace}/{name} {uid}")?;
        match created {
            Some(created) => writeln!(self.out, ", made at {created}")?,
            None => writeln!(self.out)?,
        }
        match cause {
            Ok(cause) => write!(self.out, "{cause}")?,
            Err(none) => {
                self.unknown = true;
                writeln!(self.out, "  not known  {none}")?;
            }
        }
        Ok(())
    }

    fn no_run(&mut self, kind: &str, namespace: &str, name: &str) -> Result<(), Failure> {
        self.unknown = true;
        writeln!(
            self.out,
            "no {kind} {namespace}/{name} is in the trail: it was not made through Doorward, or `runs` of the configuration does \
             not cover its namespace"
        )?;
        Ok(())
    }
}

/// Whether a token is of a task of this run.
fn is_within(token: &TracedToken, run: &TracedRun) -> bool {
    let is_here = |task: &TaskLine| run.cluster.as_ref().is_none_or(|cluster| *cluster == task.cluster);
    token.issued.task.as_ref().is_some_and(|task| task.root == run.uid && is_here(task))
}

#[cfg(test)]
mod tests;
