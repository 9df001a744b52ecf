//! `doorward audit report`: the figures that reviewers of access controls ask for.

use std::{io::Write, path::PathBuf};

use clap::ValueEnum;

use super::{files_of, moment};
use crate::{
    audit::{Configured, Report},
    cli::{CONFIG, Failure, format::print_json, load_policy},
    clock::Timestamp,
    config::{Sources, resolver::folder_of},
};

/// Report on access in a period, as reviews for SOC 2 (CC6, CC7) and ISO 27001 (A.5.15 to A.5.18, A.8.15) ask for.
///
/// Each figure is shown with the command of `jq` that gives it. Use `doorward audit verify` to check whether the trail
/// is complete.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// The first moment of the period: a day, such as `2026-01-01` (UTC), or a time of RFC 3339.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    from: Timestamp,
    /// The first moment after the period, in the same form.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    to: Timestamp,
    /// A file of the audit trail; full files with a number beside it are read too. Repeat it for each replica.
    #[arg(long = "trail", value_name = "FILE", required = true)]
    trails: Vec<PathBuf>,
    /// The configuration, for who has access, which access was unused, and how old keys and secrets are. Without it,
    /// and without `DOORWARD_CONFIG`, the report covers the trail alone.
    #[arg(long, value_name = "FILE|DIR", env = CONFIG)]
    config: Option<PathBuf>,
    /// How the report is printed.
    #[arg(long, value_enum, default_value_t = Form::Human)]
    format: Form,
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people: text.
    Human,
    /// For programs: JSON. Times are Unix time in milliseconds.
    Json,
    /// A page, to print.
    Html,
}

pub fn run(args: &ReportArgs, out: &mut impl Write) -> Result<u8, Failure> {
    if args.from >= args.to {
        return Err("the period is empty: `--from` is not before `--to`; `--to` is the first moment after it".into());
    }
    let mut report = Report::read(files_of(&args.trails)?, args.from, args.to)?;
    if let Some(config) = &args.config {
        let (loaded, _) = load_policy(&Sources::of_process(config.clone(), Vec::new()))?;
        report = report.with(Configured::of(&loaded.raw, config.clone(), folder_of(&loaded.path))?);
    }
    match args.format {
        Form::Human => write!(out, "{report}")?,
        Form::Json => print_json(&report, out)?,
        Form::Html => writeln!(out, "{}", report.to_html())?,
    }
    Ok(0)
}
