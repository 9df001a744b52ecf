//! `doorward audit verify`: whether an audit trail is complete and unedited.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufReader, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{key, moment};
use crate::{
    assertions,
    audit::{
        AllFindings, CHAIN_KEY_FILE, CannotVerify, Chain, ChainKey, Checkpoint, CheckpointPublicKey, Findings, Proof,
        trail_files, verify_all, verify_files,
    },
    cli::{
        Failure,
        format::{Format, print_json},
    },
    clock::Timestamp,
    sessions::keyring,
    terminal,
    webhooks::hold,
};

/// Check an audit trail. Exit status 0: intact; 1: tampered with; 2: it cannot be checked.
#[derive(Clone, Debug, clap::Args)]
pub struct VerifyArgs {
    /// The files of the trail, the oldest first. For a single file, the full files with a number beside it are
    /// included. With `--all`: files and folders with the trails of all replicas, and the copies of their checkpoints
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Check each trail among the given files and folders. Also check whether the chains that replicas with one shared
    /// store have seen of each other are present and the same
    #[arg(long, conflicts_with_all = ["checkpoints", "part"])]
    pub all: bool,
    /// With `--all`: chains that nobody has seen since then are not reported as missing. A day in UTC, or a time of RFC
    /// 3339
    #[arg(long, value_name = "DAY", value_parser = moment, requires = "all", conflicts_with_all = ["checkpoints", "part"])]
    pub since: Option<Timestamp>,
    /// The key of the chain, base64: the file that `audit.chain_key` names, or `audit-chain.key` beside the store.
    /// Repeat it for each key that was in use
    #[arg(long, value_name = "FILE")]
    pub key: Vec<PathBuf>,
    /// The public key of checkpoints, PEM: `audit-checkpoint.pub.pem` beside the store. Without it, their signatures
    /// are not checked. Repeat it for each key that was in use
    #[arg(long, value_name = "FILE")]
    pub checkpoint_key: Vec<PathBuf>,
    /// The file that `audit.checkpoint_copy` names. Without it, lines that were cut off the end cannot be detected, and
    /// with it those that were written after its last checkpoint cannot
    #[arg(long, value_name = "FILE")]
    pub checkpoints: Option<PathBuf>,
    /// The lines were collected from standard output, where every start begins a new chain
    #[arg(long)]
    pub stdout: bool,
    /// The files are a part of the trail. Without this option, lines before the first one are expected, unless the
    /// trail records that they were removed as configured (`keep` and `retain` of `audit.sink.file`)
    #[arg(long)]
    pub part: bool,
    /// How the result is printed. JSON includes the problems, on standard output.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    pub format: Format,
}

/// Checks and prints the result: for people, problems on standard error and the summary on standard output. Returns the
/// exit status.
pub fn run(args: &VerifyArgs, out: &mut impl Write) -> u8 {
    check(args, out, &mut io::stderr().lock())
}

fn check(args: &VerifyArgs, out: &mut impl Write, stderr: &mut impl Write) -> u8 {
    let checked = proof(args).and_then(|proof| {
        if args.all {
            let all = verify_all(&args.files, &proof, args.since.unwrap_or_default())?;
            printed(match args.format {
                Format::Human => print_all(&all, out, stderr),
                Format::Json => json(all.is_intact(), &all, out),
            })?;
            return Ok(all.is_intact());
        }
        let findings = verify_files(trail(args)?, &proof)?;
        printed(match args.format {
            Format::Human => print(&findings, out, stderr),
            Format::Json => json(findings.is_intact(), &findings, out),
        })?;
        // For callers that look at the exit status alone. If something is wrong, that line may have been edited, and a
        // newer copy is no remedy.
        if findings.summary.not_compared.is_some() && !args.part && findings.is_intact() {
            let _ = writeln!(
                stderr,
                "no line was compared with the last one of --checkpoints: give a newer copy, or say --part if the files are a part of \
                 the trail"
            );
        }
        Ok(findings.is_intact())
    });
    match checked {
        Ok(intact) => u8::from(!intact),
        Err(error) => {
            let _ = writeln!(stderr, "cannot check: {}", terminal::block(&error.to_string()));
            2
        }
    }
}

/// A terminal that went away does not change the result; half a document for a program does.
fn printed(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[derive(Serialize)]
struct Output<'a, T> {
    intact: bool,
    #[serde(flatten)]
    found: &'a T,
}

fn json(intact: bool, found: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    print_json(&Output { intact, found }, out)
}

fn print(findings: &Findings, stdout: &mut impl Write, stderr: &mut impl Write) -> io::Result<()> {
    for problem in &findings.problems {
        writeln!(stderr, "{}", terminal::line(&problem.to_string()))?;
    }
    if findings.more > 0 {
        writeln!(stderr, "and {} problems more", findings.more)?;
    }
    let first = findings.summary.first;
    let verdict = match findings.is_intact() {
        true if first > 1 => format!("intact from line number {first} on"),
        true => "intact".to_owned(),
        false => "TAMPERED WITH".to_owned(),
    };
    write!(stdout, "{verdict}\n{}", findings.summary)
}

fn print_all(all: &AllFindings, stdout: &mut impl Write, stderr: &mut impl Write) -> io::Result<()> {
    for Chain { path, instances, findings } in &all.chains {
        let instances: Vec<&str> = instances.iter().map(|instance| &**instance).collect();
        let chain = format!("{} of {}", path.display(), instances.join(", "));
        writeln!(stdout, "{}", terminal::line(&chain))?;
        print(findings, stdout, stderr)?;
        writeln!(stdout)?;
    }
    for other in all.others.iter().filter(|other| !is_beside_a_store(other)) {
        let other = terminal::line(&other.display().to_string());
        writeln!(stdout, "{other}: neither a trail nor a copy of checkpoints, skipped")?;
    }
    for problem in &all.problems {
        writeln!(stderr, "{}", terminal::line(problem))?;
    }
    let verdict = if all.is_intact() { "all intact" } else { "NOT ALL INTACT" };
    writeln!(stdout, "{verdict}: {} chains", all.chains.len())
}

/// Whether Doorward keeps a file of this name in its folder. A line for each would hide one about a file that should be a
/// trail.
fn is_beside_a_store(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(OsStr::to_str) else { return false };
    // The store may have any name.
    let endings = [keyring::KEY_EXTENSION, assertions::KEY_EXTENSION, hold::REPLICA_EXTENSION, "redb"];
    let is_of_store = endings.iter().any(|ending| name.strip_suffix(*ending).is_some_and(|stem| stem.ends_with('.')));
    // With the public keys of earlier checkpoints.
    let is_of_checkpoints = name.starts_with("audit-checkpoint.") && name.ends_with(".pem");
    is_of_store || is_of_checkpoints || name == CHAIN_KEY_FILE
}

fn proof(args: &VerifyArgs) -> Result<Proof, Failure> {
    let keys = args.key.iter().map(|path| key(path, ChainKey::from_base64)).collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() {
        return Err(CannotVerify::NoKey.into());
    }
    let checkpoint_keys = args.checkpoint_key.iter().map(|path| key(path, CheckpointPublicKey::from_pem));
    let checkpoint_keys = checkpoint_keys.collect::<Result<Vec<_>, _>>()?;
    let proof = Proof { keys, checkpoint_keys, last_checkpoint: None, restarts: args.stdout, part: args.part };
    let last_checkpoint = args.checkpoints.as_deref().map(|path| -> Result<Checkpoint, Failure> {
        if trail(args)?.iter().any(|file| is_same(file, path)) {
            let why = "this is a file of the trail, which is no copy of its checkpoints; give the file that \
                       `audit.checkpoint_copy` names, or leave --checkpoints out";
            return Err(format!("{}: {why}", path.display()).into());
        }
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        Ok(Checkpoint::last_of(BufReader::new(file), &proof)?)
    });
    let last_checkpoint = last_checkpoint.transpose()?;
    Ok(Proof { last_checkpoint, ..proof })
}

/// The files of the one trail that is checked.
fn trail(args: &VerifyArgs) -> Result<Vec<PathBuf>, Failure> {
    Ok(match args.files.as_slice() {
        [file] => trail_files(file).map_err(|error| unreadable(file, &error))?,
        files => files.to_vec(),
    })
}

fn is_same(one: &Path, other: &Path) -> bool {
    let file = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    file(one).is_some_and(|one| Some(one) == file(other))
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;
    use crate::{
        audit::{CHECKPOINT_PUBLIC_KEY_FILE, Destination, Retention, Settings, Trail},
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
        ran(directory, Retention::default(), Clock::default())
    }

    /// Returns the trail after a process that continued or began it.
    fn ran(directory: &Path, retention: Retention, clock: Clock) -> PathBuf {
        let path = directory.join("audit.jsonl");
        let mut resolver = Resolver::new(directory);
        let egress = crate::egress::Egress::direct(None, None).unwrap();
        let settings = Settings::resolve(&raw::Audit::default(), &egress, &mut resolver, &At::root()).unwrap();
        let settings = Settings {
            instance: "replica-0".to_owned(),
            destination: Destination::File { path: path.clone(), max_size: 1 << 20, retention },
            checkpoint_copy: Some(directory.join("checkpoints.jsonl")),
            ..settings
        };
        Trail::open(&settings, directory, clock).unwrap().shutdown();
        path
    }

    fn run(directory: &Path, options: &[(&str, &str)]) -> u8 {
        let mut line = vec!["verify".into(), directory.join("audit.jsonl")];
        for (option, file) in options {
            line.extend([PathBuf::from(option), directory.join(file)]);
        }
        super::run(&Cli::try_parse_from(line).unwrap().args, &mut io::sink())
    }

    #[test]
    fn findings_are_printed_as_json_with_each_problem() {
        let directory = tempfile::tempdir().unwrap();
        let path = written(directory.path());
        let told = || {
            let key = directory.path().join(CHAIN_KEY_FILE);
            let words = ["verify", "--format", "json", "--key"].map(PathBuf::from);
            let line = words.into_iter().chain([key, path.clone()]);
            let mut out = Vec::new();
            let status = super::run(&Cli::try_parse_from(line).unwrap().args, &mut out);
            (status, serde_json::from_slice::<serde_json::Value>(&out).unwrap())
        };
        let (status, good) = told();
        assert_eq!((status, &good["intact"], &good["problems"]), (0, &true.into(), &serde_json::json!([])), "{good}");
        assert!(good["summary"]["earliest"].as_str().is_some_and(|time| time.ends_with('Z')), "{good}");
        let trail = fs::read_to_string(&path).unwrap();
        fs::write(&path, trail.replacen("\"time\":1", "\"time\":2", 1)).unwrap();
        let (status, bad) = told();
        assert_eq!((status, &bad["intact"], &bad["problems"][0]["line"]), (1, &false.into(), &1.into()), "{bad}");
    }

    /// The trail was reported as intact, with no hint for callers that look at the exit status; and for an edited line,
    /// a newer copy was suggested.
    #[test]
    fn a_copy_of_checkpoints_that_was_not_compared_is_reported_on_standard_error() {
        let directory = tempfile::tempdir().unwrap();
        let retention = Retention { keep: None, retain: Some(Duration::from_secs(8 * 3600)) };
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let path = ran(directory.path(), retention, clock.clone());
        let told = || {
            let words = ["verify", "--format", "json", "--key"].map(PathBuf::from);
            let files = [CHAIN_KEY_FILE, "audit.jsonl", "--checkpoints", "checkpoints.jsonl"];
            let files = files
                .map(|name| if name.starts_with("--") { PathBuf::from(name) } else { directory.path().join(name) });
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let status = check(&Cli::try_parse_from(words.into_iter().chain(files)).unwrap().args, &mut out, &mut err);
            let found: serde_json::Value = serde_json::from_slice(&out).unwrap();
            (status, found["summary"].clone(), String::from_utf8(err).unwrap())
        };
        let (status, summary, err) = told();
        assert_eq!((&summary["compared_to"], &summary["not_compared"]), (&3.into(), &().into()));
        assert_eq!((status, &*err), (0, ""));
        let whole = fs::read_to_string(&path).unwrap();
        let mut trail = whole.clone();
        let at = trail.rfind("\"time\":1").unwrap();
        trail.replace_range(at..at + 8, "\"time\":2");
        fs::write(&path, trail).unwrap();
        let (status, summary, err) = told();
        assert_eq!((&summary["compared_to"], &summary["not_compared"]["seq"]), (&().into(), &3.into()), "{summary}");
        assert_eq!((status, &*err), (1, ""));
        // A copy that is older than its lines may be.
        fs::write(&path, whole).unwrap();
        let copy = directory.path().join("checkpoints.jsonl");
        let old = fs::read(&copy).unwrap();
        for _ in 0..2 {
            clock.advance(Duration::from_secs(9 * 3600));
            ran(directory.path(), retention, clock.clone());
        }
        fs::write(&copy, old).unwrap();
        let (status, summary, err) = told();
        assert_eq!((status, &summary["not_compared"]["seq"]), (0, &3.into()), "{summary}");
        assert!(err.contains("no line was compared with the last one of --checkpoints: give a newer copy"), "{err}");
    }

    /// The end of a trail was compared with itself, and found as it should be.
    #[test]
    fn a_trail_is_not_taken_for_the_copy_of_its_checkpoints() {
        let directory = tempfile::tempdir().unwrap();
        let trail = written(directory.path());
        let link = directory.path().join("link");
        fs::hard_link(&trail, &link).unwrap();
        for copy in ["audit.jsonl", "link"] {
            let words = ["verify", "--key"].map(PathBuf::from);
            let key = directory.path().join(CHAIN_KEY_FILE);
            let line =
                words.into_iter().chain([key, trail.clone(), "--checkpoints".into(), directory.path().join(copy)]);
            let (mut out, mut err) = (Vec::new(), Vec::new());
            assert_eq!(check(&Cli::try_parse_from(line).unwrap().args, &mut out, &mut err), 2);
            let err = String::from_utf8(err).unwrap();
            assert!(err.contains(&format!("{copy}: this is a file of the trail")), "{err}");
        }
    }

    /// All of them were called tampered with.
    #[test]
    fn a_file_that_is_compressed_or_converted_and_one_of_another_key_cannot_be_checked() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let path = written(directory);
        fs::write(directory.join("other.key"), format!("{}CQk=", "CQkJ".repeat(10))).unwrap();
        assert_eq!(run(directory, &[("--key", "other.key")]), 2);
        let trail = fs::read_to_string(&path).unwrap();
        for foreign in [trail.replace('\n', "\r\n").into_bytes(), b"\x1f\x8b\x08 compressed".to_vec()] {
            fs::write(&path, foreign).unwrap();
            assert_eq!(run(directory, &[("--key", CHAIN_KEY_FILE)]), 2);
        }
        // The twins: one line shows that the key and the form are right.
        fs::write(&path, trail.replace('\n', "\r\n").replacen("\r\n", "\n", 1)).unwrap();
        assert_eq!(run(directory, &[("--key", CHAIN_KEY_FILE)]), 1);
        fs::write(&path, "").unwrap();
        assert_eq!(run(directory, &[("--key", CHAIN_KEY_FILE)]), 1, "somebody emptied it");
    }

    /// A dozen lines for each replica hid the verdict.
    #[test]
    fn files_that_doorward_keeps_beside_its_store_are_not_told_as_skipped() {
        let folder = Path::new("/var/lib/doorward");
        for (name, is_own) in [
            ("doorward.redb", true),
            ("doorward.session.key", true),
            ("other.assertion.pem", true),
            ("doorward.replica", true),
            (CHAIN_KEY_FILE, true),
            (CHECKPOINT_PUBLIC_KEY_FILE, true),
            ("audit-checkpoint.3f.pub.pem", true),
            ("audit.jsonl", false),
            ("audit.jsonl.1", false),
            ("replica", false),
            ("notes.txt", false),
        ] {
            assert_eq!(is_beside_a_store(&folder.join(name)), is_own, "{name}");
        }
    }

    #[test]
    fn the_exit_code_distinguishes_intact_tampered_and_unknown() {
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
