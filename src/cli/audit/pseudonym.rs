//! `doorward audit pseudonym`: the names of people in a trail without names.

use std::{io::Write, path::PathBuf};

use crate::{audit::PseudonymKey, cli::Failure};

/// Show the pseudonyms of people in a trail that is written with `audit.pseudonym_key`.
#[derive(Clone, Debug, clap::Args)]
pub struct PseudonymArgs {
    /// The key, base64: the file that `audit.pseudonym_key` names
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// A subject, a user name, a login at a Git host
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

pub fn run(args: &PseudonymArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let key = super::key(&args.key, PseudonymKey::from_base64)?;
    for name in &args.names {
        writeln!(out, "{} {name}", key.pseudonym(name))?;
    }
    Ok(0)
}
