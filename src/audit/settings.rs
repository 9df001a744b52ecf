//! The validated settings of the trail.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::system::uname;

use super::{
    export,
    keys::{CHAIN_KEY_FILE, CHECKPOINT_KEY_FILE, ChainKey, CheckpointKey, InvalidKey},
    pseudonym::PseudonymKey,
};
use crate::{
    config::{
        raw::{Audit, AuditFile, AuditSink, WhenFull},
        report::At,
        resolver::Resolver,
        values::{SecretSource, Size, Span},
    },
    egress::Egress,
};

/// The smallest allowed `max_size`: a few lines of maximum length.
const MIN_FILE: u64 = 64 << 10;
/// The longest name of a replica, as for a host (RFC 1035 section 2.3.4).
const MAX_INSTANCE: usize = 253;
/// The kernel's name of a host without a name.
const NAMELESS: &str = "(none)";
/// The shortest allowed `retain`.
const MIN_RETAIN: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The default `max_size` of a file.
pub const DEFAULT_FILE: Size = Size::mib(100);

/// Resolved settings of the trail. They hold from start to end of the process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name of this replica.
    pub instance: String,
    pub destination: Destination,
    /// None: created beside the store.
    pub chain_key: Option<ChainKey>,
    /// None: created beside the store.
    pub checkpoint_key: Option<CheckpointKey>,
    /// None: people keep their names.
    pub pseudonym_key: Option<PseudonymKey>,
    pub checkpoint_copy: Option<PathBuf>,
    pub checkpoint_records: u64,
    pub checkpoint_interval: Duration,
    pub when_full: WhenFull,
    /// Records that wait before `when_full` applies.
    pub queue: usize,
    /// The receivers that lines are also sent to.
    pub exports: Vec<export::Settings>,
}

/// The destination of lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    Stdout,
    File { path: PathBuf, max_size: u64, retention: Retention },
}

/// How long full files are retained. A signed line of the trail says which were removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// The number of full files; none: all.
    pub keep: Option<u32>,
    /// The time since their last line was written; none: for ever.
    pub retain: Option<Duration>,
}

impl Retention {
    /// Returns how old the first line of a file may be before a new file begins, so that lines are removed close to
    /// their time.
    pub(super) fn period(self) -> Option<Duration> {
        self.retain.map(|retain| DAY.min(retain / 4))
    }
}

impl Settings {
    /// The files of keys that a start reads in `directory`, or creates there.
    pub fn key_files(&self, directory: &Path) -> Vec<PathBuf> {
        let names = [(self.chain_key.is_none(), CHAIN_KEY_FILE), (self.checkpoint_key.is_none(), CHECKPOINT_KEY_FILE)];
        names.into_iter().filter(|(is_used, _)| *is_used).map(|(_, name)| directory.join(name)).collect()
    }

    /// The file that lines are written to.
    pub fn file(&self) -> Option<&Path> {
        match &self.destination {
            Destination::Stdout => None,
            Destination::File { path, .. } => Some(path),
        }
    }

    /// Validates the `audit` part of the configuration, which is at `at`. Returns none, and reports why, if it cannot
    /// be used. Exports over HTTP use `egress`.
    pub fn resolve(raw: &Audit, egress: &Egress, resolver: &mut Resolver, at: &At) -> Option<Self> {
        let mark = resolver.report.mark();
        let chain_key = key(raw.chain_key.as_ref(), ChainKey::from_base64, resolver, &at.key("chain_key"));
        let checkpoint_key =
            key(raw.checkpoint_key.as_ref(), CheckpointKey::from_pem, resolver, &at.key("checkpoint_key"));
        let pseudonym_key =
            key(raw.pseudonym_key.as_ref(), PseudonymKey::from_base64, resolver, &at.key("pseudonym_key"));
        let destination = match &raw.sink {
            AuditSink::Stdout => Destination::Stdout,
            AuditSink::File(file) => resolve_file(file, resolver, &at.key("sink").key("file")),
        };
        let checkpoint_copy =
            raw.checkpoint_copy.as_deref().map(|path| resolver.written(&at.key("checkpoint_copy"), path));
        let exports = export::Settings::resolve_all(&raw.export, egress, &at.key("export"), resolver);
        if destination == Destination::Stdout && !raw.export.is_empty() {
            resolver
                .error(
                    &at.key("export"),
                    "only a trail in a file can be exported, and this one goes to standard output",
                )
                .help("let the platform's log collector send standard output, or set `sink: {file: {path: ...}}`");
        }
        let host = uname().nodename().to_string_lossy().into_owned();
        let instance = instance(raw.instance.as_deref(), &host, resolver, &at.key("instance"));
        let positive = [
            ("checkpoint_records", raw.checkpoint_records > 0),
            ("checkpoint_interval", !raw.checkpoint_interval.get().is_zero()),
            ("queue", raw.queue > 0),
        ];
        for (key, _) in positive.into_iter().filter(|(_, positive)| !positive) {
            resolver.error(&at.key(key), format!("`{key}` must be more than zero"));
        }
        if resolver.report.has_errors_since(mark) {
            return None;
        }
        Some(Self {
            instance,
            destination,
            chain_key,
            checkpoint_key,
            pseudonym_key,
            checkpoint_copy,
            checkpoint_records: raw.checkpoint_records.into(),
            checkpoint_interval: raw.checkpoint_interval.get(),
            when_full: raw.when_full,
            queue: usize::try_from(raw.queue).unwrap_or(usize::MAX / 4),
            exports,
        })
    }
}

/// Returns the configured name of this replica, or that of its host.
fn instance(given: Option<&str>, host: &str, resolver: &mut Resolver, at: &At) -> String {
    let name = given.unwrap_or(host);
    let fits = (1..=MAX_INSTANCE).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
    let wrong = match given {
        Some(_) => (!fits).then_some("`instance` is not a valid name for a replica"),
        None if resolver.is_elsewhere() => None,
        None => (!fits || name == NAMELESS).then_some("the host has no name that can be used for the replica"),
    };
    if let Some(wrong) = wrong {
        resolver
            .error(at, wrong)
            .help(format!("set `instance` to 1 to {MAX_INSTANCE} printable ASCII characters, such as `doorward-0`"));
    }
    name.to_owned()
}

/// Reads a key of the trail from its configured source.
fn key<K>(
    source: Option<&SecretSource>,
    parse: impl Fn(&[u8]) -> Result<K, InvalidKey>,
    resolver: &mut Resolver,
    at: &At,
) -> Option<K> {
    let source = source?;
    let secret = resolver.secret(at, source)?;
    match parse(secret.expose()) {
        Ok(key) => Some(key),
        Err(error) => {
            let problem = resolver.error(at, format!("{source}: {error}"));
            if let Some(remedy) = error.remedy() {
                problem.help(remedy);
            }
            None
        }
    }
}

fn resolve_file(file: &AuditFile, resolver: &mut Resolver, at: &At) -> Destination {
    let max_size = file.max_size.unwrap_or(DEFAULT_FILE).0;
    if max_size < MIN_FILE {
        resolver
            .error(&at.key("max_size"), format!("`max_size` must be at least {}", Size(MIN_FILE)))
            .help("a line of the trail can be 16KiB long");
    }
    if file.keep == Some(0) {
        resolver
            .error(&at.key("keep"), "`keep` would delete every file as soon as it is full")
            .help("leave it out to keep all, or give a number of at least 1");
    }
    let retain = file.retain.map(Span::get);
    if retain.is_some_and(|retain| retain < MIN_RETAIN) {
        resolver
            .error(&at.key("retain"), format!("`retain` must be at least {}", Span(MIN_RETAIN)))
            .help("leave it out to retain lines for ever");
    }
    let retention = Retention { keep: file.keep, retain };
    Destination::File { path: resolver.written(&at.key("path"), &file.path), max_size, retention }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::config::values::SecretSource;

    fn egress() -> Egress {
        Egress::direct(None, None).unwrap()
    }

    fn at() -> At {
        At::root().key("audit")
    }

    #[test]
    fn the_defaults_are_valid() {
        let mut resolver = Resolver::new(Path::new("/etc/doorward"));
        let settings = Settings::resolve(&Audit::default(), &egress(), &mut resolver, &at()).unwrap();
        assert_eq!(settings.destination, Destination::Stdout);
        assert_eq!(settings.instance, fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim());
        assert!(resolver.report.problems().is_empty());
    }

    /// Replicas on hosts without `/etc/hostname` all had an empty name, and were taken for one.
    #[test]
    fn a_replica_has_the_name_of_its_host_unless_it_was_given_one_and_always_some_name() {
        for (given, host, expected) in [
            (None, "doorward-0", Some("doorward-0")),
            (Some("doorward-1"), "doorward-0", Some("doorward-1")),
            (Some("doorward-1"), "", Some("doorward-1")),
            (Some(""), "doorward-0", None),
            (None, "", None),
            (None, "(none)", None),
            (None, "two words", None),
        ] {
            let mut resolver = Resolver::default();
            let name = instance(given, host, &mut resolver, &at());
            let name = Some(name.as_str()).filter(|_| !resolver.report.has_errors());
            assert_eq!(name, expected, "{given:?} on `{host}`");
            // Another host has a name of its own.
            let mut resolver = Resolver::default();
            resolver.elsewhere();
            instance(given, host, &mut resolver, &at());
            assert_eq!(resolver.report.has_errors(), given == Some(""), "{given:?} on `{host}`");
        }
    }

    #[test]
    fn every_problem_is_reported_at_its_path() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("short"), "c2hvcnQ=\n").unwrap();
        let raw = Audit {
            instance: Some("two words".to_owned()),
            sink: AuditSink::File(AuditFile {
                path: "audit.jsonl".into(),
                max_size: Some(Size(1)),
                keep: Some(0),
                retain: Some(Span::from_secs(3599)),
            }),
            chain_key: Some(SecretSource::File("short".into())),
            checkpoint_key: Some(SecretSource::File("short".into())),
            pseudonym_key: Some(SecretSource::File("short".into())),
            checkpoint_copy: Some("audit.jsonl".into()),
            checkpoint_records: 0,
            checkpoint_interval: Span::from_secs(0),
            queue: 0,
            ..Audit::default()
        };
        let mut resolver = Resolver::new(directory.path());
        assert!(Settings::resolve(&raw, &egress(), &mut resolver, &at()).is_none());
        let mut places: Vec<&str> = resolver.report.problems().iter().map(|problem| problem.at.as_str()).collect();
        places.sort_unstable();
        assert_eq!(
            places,
            [
                "/audit/chain_key",
                "/audit/checkpoint_copy",
                "/audit/checkpoint_interval",
                "/audit/checkpoint_key",
                "/audit/checkpoint_records",
                "/audit/instance",
                "/audit/pseudonym_key",
                "/audit/queue",
                "/audit/sink/file/keep",
                "/audit/sink/file/max_size",
                "/audit/sink/file/retain",
            ]
        );
        assert!(resolver.report.problems().iter().all(|problem| !problem.message.contains("c2hvcnQ")));
    }

    /// 32 names of this length fit into one checkpoint.
    #[test]
    fn the_name_of_a_replica_has_at_most_253_characters() {
        for (length, fits) in [(MAX_INSTANCE, true), (MAX_INSTANCE + 1, false)] {
            let mut resolver = Resolver::default();
            instance(Some("a".repeat(length).as_str()), "doorward-0", &mut resolver, &at());
            assert_eq!(!resolver.report.has_errors(), fits, "{length}");
        }
    }
}
