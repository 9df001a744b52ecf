//! `doorward audit`: commands that read the audit trail, or answer questions of reviewers.

mod pseudonym;
mod report;
mod trace;
mod verify;
mod who_can;

use std::{
    collections::HashSet,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::Subcommand;

use super::Failure;
use crate::{
    audit::{InvalidKey, of_file, trail_files},
    clock::Timestamp,
};

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    Verify(verify::VerifyArgs),
    Pseudonym(pseudonym::PseudonymArgs),
    Trace(trace::TraceArgs),
    Report(report::ReportArgs),
    WhoCan(who_can::WhoCanArgs),
}

/// Runs the command. Returns the exit status.
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
    Timestamp::from_day_or_time(text)
        .ok_or_else(|| "write a day, such as `2026-01-01`, or a time, such as `2026-01-01T12:00:00Z`".to_owned())
}

/// Returns the files of these trails, each once. Full files are read along with their trail, and a shell pattern may
/// name them too.
pub(super) fn files_of(trails: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let (mut files, mut known) = (Vec::new(), HashSet::new());
    for trail in trails {
        let of_trail = trail_files(trail).map_err(of_file(trail))?.into_iter();
        // A missing file is reported when it is read.
        files.extend(of_trail.filter(|file| known.insert(file.canonicalize().unwrap_or_else(|_| file.clone()))));
    }
    Ok(files)
}

/// Reads a key of the trail.
fn key<K>(path: &Path, parse: impl Fn(&[u8]) -> Result<K, InvalidKey>) -> Result<K, String> {
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let bytes = zeroize::Zeroizing::new(fs::read(path).map_err(|error| told(&error))?);
    parse(&bytes).map_err(|error| format!("{}; give the key that was in use: no other fits the trail", told(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Files;

    /// The advice was to make a key, with which every line counts as forged.
    #[test]
    fn whoever_gives_the_wrong_file_for_a_key_is_not_told_to_make_another_key() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for wrong in ["-----BEGIN PRIVATE KEY-----\n", "c2hvcnQ=\n"] {
            fs::write(file.path(), wrong).unwrap();
            let why = key(file.path(), crate::audit::ChainKey::from_base64).err().unwrap();
            assert!(why.contains("the key that was in use") && !why.contains("make one"), "{why}");
        }
    }

    #[test]
    fn a_file_of_a_trail_is_read_once_however_often_it_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let [current, full, link] = ["audit.jsonl", "audit.jsonl.000001", "link"].map(|name| folder.path().join(name));
        fs::write(&current, "").unwrap();
        fs::write(&full, "").unwrap();
        std::os::unix::fs::symlink(&current, &link).unwrap();
        let both = [full.clone(), current.clone()];
        for trails in
            [vec![current.clone(), current.clone()], vec![current.clone(), full.clone()], vec![current.clone(), link]]
        {
            assert_eq!(files_of(&trails).unwrap(), both, "{trails:?}");
        }
        assert_eq!(files_of(&[full, current]).unwrap(), both);
        let none = folder.path().join("none");
        assert_eq!(files_of(std::slice::from_ref(&none)).unwrap(), [none]);
    }

    #[test]
    fn the_file_of_a_trail_that_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let [good, none, lost] = ["audit.jsonl", "adit.jsonl", "none/audit.jsonl"].map(|name| folder.path().join(name));
        fs::write(&good, "").unwrap();
        let said = |trail: &Path| {
            let files = files_of(&[good.clone(), trail.to_owned()])?;
            Files::new(files).requests(|_| {}).map_err(|error| io::Error::other(error.to_string()))
        };
        for trail in [&none, &lost] {
            let error = said(trail).unwrap_err().to_string();
            assert!(error.contains(&trail.display().to_string()), "{error}");
        }
        said(&good).unwrap();
    }

    /// A comparison of policies by a compressed trail said that nothing changes.
    #[test]
    fn a_file_without_any_record_is_no_trail_unless_it_is_empty_or_was_just_begun() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let read = |content: &[u8]| {
            fs::write(&path, content).unwrap();
            let files = Files::new(files_of(std::slice::from_ref(&path)).unwrap());
            files.requests(|_| {}).map_err(|error| error.to_string())
        };
        let record = b"{\"metadata\":{\"event_code\":\"trail.opened\"}}\n";
        for foreign in
            [&b"\x1f\x8b\x08 compressed"[..], b"\x1f\x8b\n\x08\n", b"listeners: []\n", b"{\"level\":\"INFO\"}\n"]
        {
            let told = read(foreign).unwrap_err();
            assert!(told.contains("audit.jsonl: this is not an audit trail"), "{told}");
            // One that is damaged has other records.
            assert_eq!(read(&[foreign, b"\n", record].concat()), Ok(()));
        }
        for begun in [&b""[..], b"\n", b"{\"class_uid\":", b"\0\0\0", record] {
            assert_eq!(read(begun), Ok(()));
        }
    }
}
