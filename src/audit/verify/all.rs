//! Verifies the chains of all replicas, and each against the heads that the others recorded.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Serialize;

use super::{
    super::{
        chain::{Link, MAX_LINE, Sealed},
        file_ends::BEGINNING,
        heads::Head,
        lines::{Lines, end_of},
        note::code,
        sink::{place_of, trail_files},
    },
    CannotVerify, Content, Details, Findings, Proof, Verifier, is_genuine, open,
};
use crate::clock::Timestamp;

/// How deep folders are searched.
const MAX_DEPTH: usize = 8;

/// The findings of a verification of all chains.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AllFindings {
    pub chains: Vec<Chain>,
    /// Problems that no chain shows by itself: a chain is missing, or is not the one that others saw.
    pub problems: Vec<String>,
    /// Files in the folders given that are neither a trail nor a copy of checkpoints.
    pub others: Vec<PathBuf>,
}

impl AllFindings {
    pub fn is_intact(&self) -> bool {
        self.problems.is_empty() && self.chains.iter().all(|chain| chain.findings.is_intact())
    }
}

/// One chain.
#[derive(Clone, Debug, Serialize)]
pub struct Chain {
    /// Its current file.
    pub path: PathBuf,
    /// The replicas that wrote it; several if its volume was passed on.
    pub instances: BTreeSet<Arc<str>>,
    pub findings: Findings,
}

/// The facts in a chain about itself and about others.
#[derive(Debug, Default)]
pub(super) struct Collected {
    instances: BTreeSet<Arc<str>>,
    /// The replica that wrote its end.
    last: Option<Arc<str>>,
    /// Its checkpoints: number, and enough of the code to distinguish lines.
    marks: HashSet<(u64, u64)>,
    witnessed: BTreeMap<Seen, Witnessed>,
}

/// A head: its replica, its number, and its code as in `marks`. A chain that was begun again repeats numbers, with
/// other codes.
type Seen = (Arc<str>, u64, u64);

/// Who saw a head.
#[derive(Clone, Debug)]
struct Witnessed {
    by: Arc<str>,
    at: Timestamp,
}

impl Collected {
    pub(super) fn instance(&mut self, details: &Details) {
        let Some(instance) = details.instance.as_deref().map(Arc::<str>::from) else { return };
        self.instances.insert(Arc::clone(&instance));
        self.last = Some(instance);
    }

    pub(super) fn checkpoint(&mut self, link: Link, at: Timestamp, details: &Details) {
        self.instance(details);
        self.marks.insert((link.seq, brief(link.mac.as_str())));
        for head in &details.heads {
            self.saw(head, details.instance.as_deref().unwrap_or_default(), at);
        }
    }

    fn saw(&mut self, head: &Head, by: &str, at: Timestamp) {
        let seen = (Arc::clone(&head.instance), head.seq, brief(&head.mac));
        self.witnessed.insert(seen, Witnessed { by: by.into(), at });
    }

    /// Returns the last head of a chain that was seen elsewhere, and when: later lines may be cut off. `marks` are the
    /// checkpoints of the chain, and `instance` is the replica that wrote it last.
    fn end_of(&self, instance: &Arc<str>, marks: &HashSet<(u64, u64)>, since: Timestamp) -> Option<(u64, Timestamp)> {
        let own = (Arc::clone(instance), 0, 0)..=(Arc::clone(instance), u64::MAX, u64::MAX);
        let mut seen = self.witnessed.range(own).rev();
        seen.find_map(|((_, seq, mac), Witnessed { by, at })| {
            (by != instance && *at >= since && marks.contains(&(*seq, *mac))).then_some((*seq, *at))
        })
    }

    /// Adds the heads that a copy of checkpoints proves. Lines that are not genuine prove nothing.
    fn read_copy(&mut self, path: &Path, proof: &Proof) -> Result<(), CannotVerify> {
        let failed = |error| CannotVerify::Io { path: path.to_owned(), error };
        let by = path.display().to_string();
        let mut lines = Lines::new(open(path)?);
        while let Some(line) = lines.next().map_err(failed)? {
            let is_proved = |sealed: &Sealed<'_>| is_genuine(sealed, &proof.keys, &proof.checkpoint_keys);
            let Some(sealed) = Sealed::parse(line.bytes).filter(is_proved) else { continue };
            let Ok(Content { time, unmapped, .. }) = serde_json::from_slice(line.bytes) else { continue };
            let Some(instance) = unmapped.instance else { continue };
            self.saw(&Head::new(&instance.into(), sealed.link), &by, Timestamp::from_millis(time));
        }
        Ok(())
    }
}

/// Verifies the trails among `paths` (files and folders), and that each chain that one of them saw since `since` is
/// there.
pub fn verify_all(paths: &[PathBuf], proof: &Proof, since: Timestamp) -> Result<AllFindings, CannotVerify> {
    Reading::of(paths, proof)?.compare(proof, since)
}

/// All chains and copies, each as it was when it was read.
pub(in crate::audit) struct Reading {
    all: AllFindings,
    /// Of each chain of `all`.
    collected: Vec<Collected>,
    /// The heads that were seen in any of them.
    seen: Collected,
}

impl Reading {
    pub(in crate::audit) fn of(paths: &[PathBuf], proof: &Proof) -> Result<Self, CannotVerify> {
        let mut found = Found::default();
        for path in paths {
            found.look(path, 0).map_err(|error| CannotVerify::Io { path: path.clone(), error })?;
        }
        let mut all = AllFindings { others: found.others, ..AllFindings::default() };
        let mut seen = Collected::default();
        let mut collected = Vec::new();
        for path in found.trails.into_values() {
            let (findings, chain) = check(&path, proof)?;
            all.chains.push(Chain { path, instances: chain.instances.clone(), findings });
            collected.push(chain);
        }
        for copy in &found.copies {
            seen.read_copy(copy, proof)?;
        }
        for chain in &mut collected {
            seen.witnessed.append(&mut chain.witnessed);
        }
        Ok(Self { all, collected, seen })
    }

    pub(in crate::audit) fn compare(mut self, proof: &Proof, since: Timestamp) -> Result<AllFindings, CannotVerify> {
        for (chain, Collected { last, marks, .. }) in self.all.chains.iter_mut().zip(&self.collected) {
            let end = last.as_ref().and_then(|last| self.seen.end_of(last, marks, since));
            let summary = &mut chain.findings.summary;
            summary.end_checked = end.is_some();
            (summary.compared_to, summary.compared_at) = end.unzip();
        }
        self.all.problems = compare(&self.seen.witnessed, &self.all.chains, &self.collected, since);
        if !self.all.problems.is_empty() {
            // A chain that is being written may have gone on since it was read, and others that were read later have
            // seen that.
            for (chain, collected) in self.all.chains.iter().zip(&mut self.collected) {
                collected.marks.extend(check(&chain.path, proof)?.1.marks);
            }
            self.all.problems = compare(&self.seen.witnessed, &self.all.chains, &self.collected, since);
        }
        // Copies of checkpoints without any trail still show which chains are missing.
        if self.all.chains.is_empty() && self.all.problems.is_empty() {
            return Err(CannotVerify::NoTrail(self.all.others));
        }
        Ok(self.all)
    }
}

fn check(path: &Path, proof: &Proof) -> Result<(Findings, Collected), CannotVerify> {
    let mut verifier = Verifier::new(proof)?.collecting();
    let files = trail_files(path).map_err(|error| CannotVerify::Io { path: path.to_owned(), error })?;
    verifier.read_files(files)?;
    Ok(verifier.end())
}

/// Returns a problem for each chain that others saw and that is missing or different, by the latest such head.
fn compare(
    witnessed: &BTreeMap<Seen, Witnessed>,
    chains: &[Chain],
    collected: &[Collected],
    since: Timestamp,
) -> Vec<String> {
    let mut of: HashMap<&Arc<str>, Vec<(&Chain, &Collected)>> = HashMap::new();
    for (chain, collected) in chains.iter().zip(collected) {
        for instance in &chain.instances {
            of.entry(instance).or_default().push((chain, collected));
        }
    }
    let mut wrong: BTreeMap<&Arc<str>, String> = BTreeMap::new();
    // Sorted by time, not by number: a chain that was begun again may have lower numbers later.
    let mut seen: Vec<_> = witnessed.iter().filter(|(_, Witnessed { at, .. })| *at >= since).collect();
    seen.sort_by_key(|(_, Witnessed { at, .. })| *at);
    for ((instance, seq, mac), Witnessed { by, at }) in seen {
        let Some(own) = of.get(instance) else {
            let what = format!(
                "the chain of {instance} is missing: {by} saw it at line {seq} at {at}, and none of these files belongs to it"
            );
            wrong.insert(instance, what);
            continue;
        };
        let is_there = own.iter().any(|(chain, collected)| {
            // If the trail does not explain that its first lines are gone, that is a problem of the chain itself.
            *seq < chain.findings.summary.first || collected.marks.contains(&(*seq, *mac))
        });
        if !is_there {
            let what = format!(
                "the chain of {instance} was cut, or replaced by another: {by} saw its checkpoint number {seq} at {at}, and it \
                 is not in these files"
            );
            wrong.insert(instance, what);
        }
    }
    wrong.into_values().collect()
}

/// Returns the first 64 bits of a code. Without the key nobody can create another line with the same.
fn brief(mac: &str) -> u64 {
    mac.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_default()
}

/// The files found in the places given.
#[derive(Debug, Default)]
struct Found {
    /// The current file of each trail, by its path without symbolic links: a trail may be found by several.
    trails: BTreeMap<PathBuf, PathBuf>,
    copies: BTreeSet<PathBuf>,
    others: Vec<PathBuf>,
}

impl Found {
    fn look(&mut self, path: &Path, depth: usize) -> io::Result<()> {
        let metadata = path.metadata()?;
        if metadata.is_dir() {
            if depth == MAX_DEPTH {
                return Err(io::Error::other("the folders are nested too deep"));
            }
            let mut entries = path.read_dir()?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
            entries.sort();
            return entries.iter().try_for_each(|entry| self.look(entry, depth + 1));
        }
        // A socket or a pipe beside a trail is not read.
        if depth > 0 && !metadata.is_file() {
            self.others.push(path.to_owned());
            return Ok(());
        }
        match Looks::of(path)? {
            Looks::Trail => self.add(path)?,
            Looks::Copy => _ = self.copies.insert(path.to_owned()),
            // A file that is named explicitly is taken for a trail; if it is damaged from its first byte on, that is
            // reported.
            Looks::Other if depth == 0 || ends_as_trail(path)? => self.add(path)?,
            Looks::Other => self.others.push(path.to_owned()),
        }
        Ok(())
    }

    /// Adds the trail of a file.
    fn add(&mut self, path: &Path) -> io::Result<()> {
        let path = current(&place_of(&current(path))?);
        // There may be full files only.
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        self.trails.entry(real).or_insert(path);
        Ok(())
    }
}

/// The kind of a file by its first line.
enum Looks {
    Trail,
    /// A copy of checkpoints, with no other lines.
    Copy,
    Other,
}

impl Looks {
    fn of(path: &Path) -> io::Result<Self> {
        let mut line = Vec::new();
        BufReader::new(File::open(path)?.take(MAX_LINE as u64)).read_until(b'\n', &mut line)?;
        if !line.starts_with(BEGINNING) {
            return Ok(Self::Other);
        }
        let content = serde_json::from_slice::<Content>(&line);
        let is_copy = content.is_ok_and(|content| content.metadata.event_code == code::CHECKPOINT);
        Ok(if is_copy { Self::Copy } else { Self::Trail })
    }
}

/// Whether a file ends as a trail does, so that a trail is not skipped because somebody edited its first line. A file
/// that has only checkpoints is a copy of them.
fn ends_as_trail(path: &Path) -> io::Result<bool> {
    // An incomplete line may follow the last complete one after a crash.
    let end = end_of(path, 2 * MAX_LINE as u64)?;
    let is_checkpoint = |line: &[u8]| {
        serde_json::from_slice::<Content>(line).is_ok_and(|content| content.metadata.event_code == code::CHECKPOINT)
    };
    Ok(end.split(|byte| *byte == b'\n').any(|line| Sealed::parse(line).is_some() && !is_checkpoint(line)))
}

/// Returns the path of the current file of a file's trail: without the number of a full file.
fn current(path: &Path) -> PathBuf {
    let is_number = |extension: &str| extension.len() >= 6 && extension.bytes().all(|byte| byte.is_ascii_digit());
    match path.extension().and_then(|extension| extension.to_str()) {
        Some(extension) if is_number(extension) => path.with_extension(""),
        _ => path.to_owned(),
    }
}
