//! `doorward audit`: commands that read the audit trail, or tell what one is asked by who reviews it.

mod pseudonym;
mod report;
mod trace;
mod verify;
mod who_can;

use std::{fs, io::Write, path::Path};

use clap::Subcommand;

use super::Failure;
use crate::{audit::InvalidKey, clock::Timestamp};

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    Verify(verify::VerifyArgs),
    Pseudonym(pseudonym::PseudonymArgs),
    Trace(trace::TraceArgs),
    Report(report::ReportArgs),
    WhoCan(who_can::WhoCanArgs),
}

/// Gives the exit status.
pub fn run(command: &AuditCommand, out: &mut impl Write) -> Result<u8, Failure> {
    match command {
        AuditCommand::Verify(args) => Ok(verify::run(args, out)),
        AuditCommand::Pseudonym(args) => pseudonym::run(args, out),
        AuditCommand::Trace(args) => trace::run(args, out),
        AuditCommand::Report(args) => report::run(args, out),
        AuditCommand::WhoCan(args) => who_can::run(args, out),
    }
}

fn moment(text: &str) -> Result<Timestamp, String> {
    Timestamp::from_rfc3339(text)
        .or_else(|| Timestamp::from_rfc3339(&format!("{text}T00:00:00Z")))
        .ok_or_else(|| "write a day, such as `2026-01-01`, or a time, such as `2026-01-01T12:00:00Z`".to_owned())
}

/// Reads a key of the trail.
fn key<K>(path: &Path, parse: impl Fn(&[u8]) -> Result<K, InvalidKey>) -> Result<K, String> {
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let bytes = zeroize::Zeroizing::new(fs::read(path).map_err(|error| told(&error))?);
    parse(&bytes).map_err(|error| told(&error))
}
