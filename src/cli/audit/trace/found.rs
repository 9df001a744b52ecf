//! The findings of a trace, for people and for programs.

use std::{fmt, path::PathBuf};

use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::{
    audit::{Answers, Cause, MISSING, ReplayInputs, TracedToken, request_json},
    clock::Timestamp,
    terminal,
};

/// One finding of a trace.
#[derive(Debug, Serialize)]
#[serde(tag = "found", rename_all = "snake_case")]
pub enum Found {
    Request(Box<FoundRequest>),
    Run(Box<FoundRun>),
    /// A token that no task asked for.
    Token(Box<TracedToken>),
    Nothing {
        detail: String,
    },
    /// Lines that may belong to the trace and cannot be read, and the first of them.
    Unreadable {
        lines: usize,
        file: PathBuf,
        line: u64,
    },
}

/// A request and its results.
#[derive(Debug, Serialize)]
pub struct FoundRequest {
    #[serde(flatten, serialize_with = "request_json")]
    pub request: ReplayInputs,
    /// The request that was asked for, which delivered a webhook, if it is not in these files. Then `request` is the
    /// first that sent the delivery on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing_arrival: Option<Uuid>,
    #[serde(flatten)]
    pub answers: Answers,
}

/// A run, with what caused it and the tokens of its tasks.
#[derive(Debug, Serialize)]
pub struct FoundRun {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "millis")]
    pub created: Option<Timestamp>,
    #[serde(flatten)]
    pub cause: Known,
    /// Set if somebody has changed what the run says about its cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    pub tokens: Vec<TracedToken>,
}

/// The cause of a run, or why it is not known.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Known {
    Cause(Box<Cause>),
    NotKnown(String),
}

fn millis<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(Timestamp::as_millis).serialize(serializer)
}

impl Found {
    /// Whether something that was asked for is not known.
    pub fn is_unknown(&self) -> bool {
        match self {
            Self::Token(_) => false,
            Self::Request(found) => found.missing_arrival.is_some(),
            Self::Run(run) => match &run.cause {
                Known::Cause(cause) => cause.missing_arrival.is_some(),
                Known::NotKnown(_) => true,
            },
            Self::Nothing { .. } | Self::Unreadable { .. } => true,
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(found) => {
                let FoundRequest { request, missing_arrival, answers } = &**found;
                let ReplayInputs { id, time, method, host, path, principal, .. } = request;
                let whose = principal.as_ref().map_or("nobody", |principal| &*principal.username);
                let asked = terminal::line(&format!("{method} {host}{path}"));
                writeln!(f, "request {id} at {time}, of {}: {asked}", terminal::line(whose))?;
                if let Some(arrival) = missing_arrival {
                    writeln!(f, "  arrival    request {arrival}, {MISSING}")?;
                }
                answers.fmt(f)
            }
            Self::Run(run) => run.fmt(f),
            Self::Token(token) => {
                let whose = terminal::line(&token.whose);
                match &token.actor {
                    Some(actor) => write!(f, "asked for by {actor}, on behalf of {whose}")?,
                    None => write!(f, "asked for by {whose}")?,
                }
                writeln!(f, " in request {}", token.request)?;
                token.fmt(f)
            }
            Self::Nothing { detail } => writeln!(f, "{}", terminal::line(detail)),
            Self::Unreadable { lines, file, line } => writeln!(
                f,
                "{lines} of the lines that were searched cannot be read, the first is line {line} of {}; `doorward \
                 audit verify` shows what was done to the trail",
                file.display()
            ),
        }
    }
}

impl fmt::Display for FoundRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name, uid, created, cause, warning, tokens } = self;
        write!(f, "{}", terminal::line(&format!("{kind} {namespace}/{name} {uid}")))?;
        match created {
            Some(created) => writeln!(f, ", created at {created}")?,
            None => writeln!(f)?,
        }
        match cause {
            Known::Cause(cause) => cause.fmt(f)?,
            Known::NotKnown(why) => writeln!(f, "  not known  {}", terminal::line(why))?,
        }
        if let Some(warning) = warning {
            writeln!(f, "  warning    {}", terminal::line(warning))?;
        }
        tokens.iter().try_for_each(|token| token.fmt(f))
    }
}
