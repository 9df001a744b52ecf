//! `doorward audit trace`: who caused a run.

use std::{io::Write, path::PathBuf};

use super::Failure;
use crate::audit::{self, trail_files};

/// Show who caused a run of Tekton: from which delivery or click, and by which rule. Exit code 1: that is not known.
///
/// `runs` in the configuration has runs linked to their causes as they appear.
#[derive(Debug, clap::Args)]
pub struct TraceArgs {
    #[arg(value_enum)]
    kind: Kind,
    /// The run. All runs that ever had this name are shown.
    #[arg(value_name = "NAMESPACE/NAME", value_parser = run_name)]
    run: (String, String),
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
}

fn run_name(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("write NAMESPACE/NAME, such as `ci/build-x7k2p`".to_owned()),
    }
}

pub fn run(args: &TraceArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let mut files = Vec::new();
    for trail in &args.trails {
        files.extend(trail_files(trail)?);
    }
    let kind = match args.kind {
        Kind::PipelineRun => "PipelineRun",
        Kind::TaskRun => "TaskRun",
    };
    let (namespace, name) = &args.run;
    let runs = audit::trace(&files, kind, namespace, name)?;
    if runs.is_empty() {
        writeln!(
            out,
            "no {kind} {namespace}/{name} is in the trail: it was not made through Doorward, or `runs` of the configuration does \
             not cover its namespace"
        )?;
    }
    for run in &runs {
        write!(out, "{kind} {namespace}/{name} {}", run.uid)?;
        match run.created {
            Some(created) => writeln!(out, ", made at {created}")?,
            None => writeln!(out)?,
        }
        match &run.cause {
            Ok(cause) => write!(out, "{cause}")?,
            Err(none) => writeln!(out, "  not known  {none}")?,
        }
    }
    Ok(u8::from(runs.is_empty() || runs.iter().any(|run| run.cause.is_err())))
}
