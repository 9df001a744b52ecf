//! `doorward audit verify`: whether an audit trail is whole and unedited.

use std::{
    fs::{self, File},
    io::{self, BufReader, Write},
    path::{Path, PathBuf},
};

use crate::audit::{
    CannotVerify, ChainKey, Checkpoint, CheckpointPublicKey, Findings, InvalidKey, Proof, trail_files, verify_files,
};

/// Check an audit trail. Exit code 0: intact; 1: tampered with; 2: it cannot be checked.
#[derive(Clone, Debug, clap::Args)]
pub struct VerifyArgs {
    /// The files of the trail, the oldest first. Of a single file, the full ones with a number beside it are taken too
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The key of the chain, base64: what `audit.chain_key` names, or `audit-chain.key` beside the store. Give it again
    /// for each key that was in use
    #[arg(long, value_name = "FILE")]
    pub key: Vec<PathBuf>,
    /// The public key of checkpoints, PEM: `audit-checkpoint.pub.pem` beside the store. Without it their signatures are
    /// not checked
    #[arg(long, value_name = "FILE")]
    pub checkpoint_key: Option<PathBuf>,
    /// The file that `audit.checkpoint_copy` names. Without it, lines cut off the end cannot be seen
    #[arg(long, value_name = "FILE")]
    pub checkpoints: Option<PathBuf>,
    /// The lines were collected from standard output, where every start begins a new chain
    #[arg(long)]
    pub stdout: bool,
    /// The files are a part of the trail. Without it, lines before the first are asked for unless the trail tells that they
    /// were removed when their time was over (`keep` and `retain` of `audit.sink.file`)
    #[arg(long)]
    pub part: bool,
}

/// Checks and prints what was found: problems to standard error, the summary to standard output.
pub fn verify(args: &VerifyArgs) -> u8 {
    let mut stderr = io::stderr().lock();
    match check(args) {
        Ok(findings) => {
            for problem in &findings.problems {
                // A terminal that went away changes nothing about the result.
                let _ = writeln!(stderr, "{problem}");
            }
            if findings.more > 0 {
                let _ = writeln!(stderr, "and {} problems more", findings.more);
            }
            let first = findings.summary.first;
            let verdict = match findings.is_intact() {
                true if first > 1 => format!("intact from line number {first} on"),
                true => "intact".to_owned(),
                false => "TAMPERED WITH".to_owned(),
            };
            let _ = write!(io::stdout().lock(), "{verdict}\n{}", findings.summary);
            u8::from(!findings.is_intact())
        }
        Err(error) => {
            let _ = writeln!(stderr, "cannot check: {error}");
            2
        }
    }
}

fn check(args: &VerifyArgs) -> Result<Findings, Error> {
    let keys = args.key.iter().map(|path| read(path, ChainKey::from_base64)).collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() {
        return Err(CannotVerify::NoKey.into());
    }
    let checkpoint_key =
        args.checkpoint_key.as_deref().map(|path| read(path, CheckpointPublicKey::from_pem)).transpose()?;
    let last_checkpoint = args.checkpoints.as_deref().map(|path| {
        let file = File::open(path).map_err(|error| Error::read(path, error))?;
        Checkpoint::last_of(BufReader::new(file), &keys, checkpoint_key.as_ref()).map_err(Error::from)
    });
    let last_checkpoint = last_checkpoint.transpose()?;
    let proof = Proof { keys, checkpoint_key, last_checkpoint, restarts: args.stdout, part: args.part };
    let findings = match args.files.as_slice() {
        [file] => verify_files(trail_files(file).map_err(|error| Error::read(file, error))?, &proof)?,
        files => verify_files(files, &proof)?,
    };
    Ok(findings)
}

fn read<T>(path: &Path, parse: impl Fn(&[u8]) -> Result<T, InvalidKey>) -> Result<T, Error> {
    let bytes = zeroize::Zeroizing::new(fs::read(path).map_err(|error| Error::read(path, error))?);
    parse(&bytes).map_err(|error| Error::Key { path: path.to_owned(), error })
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    CannotVerify(#[from] CannotVerify),
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}: {error}", path.display())]
    Key { path: PathBuf, error: InvalidKey },
}

impl Error {
    fn read(path: &Path, error: io::Error) -> Self {
        Self::Read { path: path.to_owned(), error }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{
        audit::{CHAIN_KEY_FILE, CHECKPOINT_PUBLIC_KEY_FILE, Destination, Retention, Settings, Trail},
        clock::Clock,
        config::{raw, report::At, resolver::Resolver},
    };

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: VerifyArgs,
    }

    /// A short trail with its keys and the copies of its checkpoints.
    fn written(directory: &Path) -> PathBuf {
        let path = directory.join("audit.jsonl");
        let mut resolver = Resolver::new(directory);
        let egress = crate::egress::Egress::direct(None).unwrap();
        let settings = Settings::resolve(&raw::Audit::default(), &egress, &mut resolver, &At::root()).unwrap();
        let settings = Settings {
            destination: Destination::File { path: path.clone(), max_size: 1 << 20, retention: Retention::default() },
            checkpoint_copy: Some(directory.join("checkpoints.jsonl")),
            ..settings
        };
        Trail::open(&settings, directory, "replica-0", Clock::default()).unwrap().shutdown();
        path
    }

    fn run(directory: &Path, options: &[(&str, &str)]) -> u8 {
        let mut line = vec!["verify".into(), directory.join("audit.jsonl")];
        for (option, file) in options {
            line.extend([PathBuf::from(option), directory.join(file)]);
        }
        verify(&Cli::try_parse_from(line).unwrap().args)
    }

    #[test]
    fn the_exit_code_tells_intact_from_tampered_from_unknown() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let path = written(directory);
        let key = ("--key", CHAIN_KEY_FILE);
        let public = ("--checkpoint-key", CHECKPOINT_PUBLIC_KEY_FILE);
        let all = [key, public, ("--checkpoints", "checkpoints.jsonl")];
        assert_eq!(run(directory, &[key]), 0);
        assert_eq!(run(directory, &all), 0);
        for cannot in [&[][..], &[public], &[("--key", "audit.jsonl")], &[key, ("--checkpoints", "nowhere")]] {
            assert_eq!(run(directory, cannot), 2, "{cannot:?}");
        }
        let trail = fs::read(&path).unwrap();
        let last = trail.iter().rposition(|byte| *byte == b'{').unwrap();
        let cut = trail[..last].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
        fs::write(&path, &trail[..cut]).unwrap();
        assert_eq!(run(directory, &all), 1);
        assert_eq!(run(directory, &[key]), 0);
        fs::write(&path, &trail[1..]).unwrap();
        assert_eq!(run(directory, &[key]), 1);
    }
}
