//! Verifies a trail: whether every line that was written is there, unchanged and in order.

mod all;
mod checkpoint;
mod findings;

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

#[cfg(test)]
pub(super) use self::all::Reading;
#[cfg(test)]
pub use self::findings::Summary;
use self::{
    all::Collected,
    findings::{Gap, NotCompared},
};
pub use self::{
    all::{AllFindings, Chain, verify_all},
    checkpoint::Checkpoint,
    findings::{Findings, Problem},
};
use super::{
    chain::{Link, Mac, Sealed},
    heads::Head,
    keys::{ChainKey, CheckpointPublicKey},
    lines::{Fault, Line, Lines},
    note::code,
};
use crate::clock::Timestamp;

/// Problems beyond this number are only counted.
const MAX_PROBLEMS: usize = 1000;

/// The keys and options for verifying a trail.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The chain keys that were in use. Any of them may have sealed a line.
    pub keys: Vec<ChainKey>,
    /// The checkpoint keys. Any of them may have signed a checkpoint; without any, signatures are not checked.
    pub checkpoint_keys: Vec<CheckpointPublicKey>,
    /// The last checkpoint, from the second place. Without it, lines cut off the end cannot be detected.
    pub last_checkpoint: Option<Checkpoint>,
    /// Whether the lines were collected from standard output, where every start begins a new chain.
    pub restarts: bool,
    /// Whether the files are a part of the trail, so that lines before the first are not missed.
    pub part: bool,
}

/// Why a trail cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum CannotVerify {
    #[error(
        "a trail cannot be verified without its chain key; give the file that `audit.chain_key` names, or \
         `audit-chain.key` beside the store"
    )]
    NoKey,
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("the last checkpoint cannot be read: {0}")]
    LastCheckpoint(io::Error),
    #[error(
        "the file of the last checkpoint does not end with a checkpoint; give the file that `audit.checkpoint_copy` names"
    )]
    NoCheckpoint,
    #[error("the last checkpoint is not genuine: its code or its signature does not match the keys given")]
    ForgedCheckpoint,
    #[error(
        "no line is sealed with the key given; check that it is the key of this trail, decompress a file that is compressed, and \
         undo a conversion of its line ends; if that is not it, somebody replaced the trail or edited every line"
    )]
    NothingSealed,
    #[error(
        "there is no trail among the files and folders given, so nothing was verified; check that the volume with the file that \
         `audit.sink.file` names is mounted there{}",
        others(.0)
    )]
    NoTrail(Vec<PathBuf>),
}

/// Names the files that are not trails: a trail whose first line somebody damaged looks like one of these.
fn others(paths: &[PathBuf]) -> String {
    match paths {
        [] => String::new(),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            format!("; {}{more} is not a trail, or its first line was damaged", first.display())
        }
    }
}

/// Verifies files in the order given, the oldest first.
pub fn verify_files<P: AsRef<Path>>(
    files: impl IntoIterator<Item = P>,
    proof: &Proof,
) -> Result<Findings, CannotVerify> {
    let mut verifier = Verifier::new(proof)?;
    verifier.read_files(files)?;
    if verifier.findings.summary.lines > 0 && !verifier.fitted {
        return Err(CannotVerify::NothingSealed);
    }
    Ok(verifier.finish())
}

fn open(path: &Path) -> Result<BufReader<File>, CannotVerify> {
    let file = File::open(path).map_err(|error| CannotVerify::Io { path: path.to_owned(), error })?;
    Ok(BufReader::with_capacity(1 << 16, file))
}

/// Verifies a trail as it is read, in bounded memory.
#[derive(Debug)]
pub struct Verifier<'a> {
    proof: &'a Proof,
    /// The index of the key that matched last.
    key: usize,
    /// Whether any line was sealed with one of the keys.
    fitted: bool,
    /// The line that the first one given links to; none at the beginning.
    before: Option<Link>,
    /// Whether a line says that retention removed everything up to there.
    explained: bool,
    /// Whether lines after the last one about removed files cannot be read: one of them may be about such files too.
    holed: bool,
    /// The first lines of the chains that were collected from standard output.
    begun: HashSet<Mac>,
    /// The previous line; none at the beginning.
    last: Option<Link>,
    /// The last checkpoint or start of this segment, and the checkpoint interval.
    mark: Option<(Timestamp, Duration)>,
    /// The latest time of a line of this segment.
    latest: Option<Timestamp>,
    /// How long the gaps since then were, which explain that a checkpoint is late by as much.
    gaps: Duration,
    file: String,
    /// Set if a line has the number of a checkpoint from the second place and is a different line.
    rewritten: Option<Problem>,
    /// Whether the line of the last checkpoint was found.
    reached: bool,
    findings: Findings,
    /// Facts for comparing chains with each other; none unless requested.
    collected: Option<Collected>,
}

impl<'a> Verifier<'a> {
    pub fn new(proof: &'a Proof) -> Result<Self, CannotVerify> {
        if proof.keys.is_empty() {
            return Err(CannotVerify::NoKey);
        }
        let mut findings = Findings::default();
        findings.summary.signatures_checked = !proof.checkpoint_keys.is_empty();
        Ok(Self {
            proof,
            key: 0,
            fitted: false,
            before: None,
            explained: false,
            holed: false,
            begun: HashSet::new(),
            last: None,
            mark: None,
            latest: None,
            gaps: Duration::ZERO,
            file: String::new(),
            rewritten: None,
            reached: false,
            findings,
            collected: None,
        })
    }

    /// Also collects the facts for comparing chains: some bytes for each checkpoint.
    fn collecting(self) -> Self {
        Self { collected: Some(Collected::default()), ..self }
    }

    fn read_files<P: AsRef<Path>>(&mut self, files: impl IntoIterator<Item = P>) -> Result<(), CannotVerify> {
        for path in files {
            let path = path.as_ref();
            let read = self.read(&path.display().to_string(), open(path)?);
            read.map_err(|error| CannotVerify::Io { path: path.to_owned(), error })?;
        }
        Ok(())
    }

    /// Verifies the next file.
    pub fn read(&mut self, name: &str, reader: impl BufRead) -> io::Result<()> {
        name.clone_into(&mut self.file);
        let mut lines = Lines::new(reader).patient();
        while let Some(line) = lines.next()? {
            self.line(&line);
        }
        Ok(())
    }

    /// Returns the findings, after all files were read.
    pub fn finish(self) -> Findings {
        self.end().0
    }

    fn end(mut self) -> (Findings, Collected) {
        self.end_segment(None);
        let last = self.last.unwrap_or(Link::NONE);
        self.findings.summary.last = last.seq;
        if self.last.is_none() {
            self.problem(None, "there is no line of a trail".to_owned());
        } else if !self.fitted {
            self.problem(None, "no line matches the key given: is it the key of this trail?".to_owned());
        }
        let first = self.findings.summary.first;
        if first > 1 && !self.explained && !self.proof.part {
            self.problem(
                None,
                format!(
                    "lines before number {first} are missing, and no line says that retention removed them; if these files are a \
                     part of the trail, use --part"
                ),
            );
        }
        if let Some(Checkpoint { link: checkpoint, at, .. }) = self.proof.last_checkpoint {
            // A chain that began later has its own numbers, and may have no checkpoint yet.
            let was_before = self.proof.restarts && self.reached;
            let is_cut = !was_before && last.seq < checkpoint.seq;
            let summary = &mut self.findings.summary;
            // Otherwise its line is not there for the comparison, for example because retention removed it.
            summary.end_checked = self.reached || is_cut || self.rewritten.is_some();
            if summary.end_checked {
                (summary.compared_to, summary.compared_at) = (Some(checkpoint.seq), Some(at));
            } else {
                summary.not_compared = Some(NotCompared { seq: checkpoint.seq, at });
            }
            if was_before {
                self.rewritten = None;
            } else if is_cut {
                self.problem(
                    None,
                    format!(
                        "lines were cut off the end: the last one is number {}, and the last checkpoint is number {}",
                        last.seq, checkpoint.seq
                    ),
                );
            }
        }
        self.findings.problems.extend(self.rewritten);
        (self.findings, self.collected.unwrap_or_default())
    }

    fn line(&mut self, line: &Line<'_>) {
        let number = Some(line.number);
        self.findings.summary.lines += 1;
        match line.fault {
            Some(Fault::Long) => return self.problem(number, "the line is longer than any line of a trail".to_owned()),
            Some(Fault::Torn) => return self.problem(number, "the line is cut off: it has no line end".to_owned()),
            None => {}
        }
        let Some(sealed) = Sealed::parse(line.bytes) else {
            return self
                .problem(number, "this is not a line of a trail: it was inserted, or its end was edited".to_owned());
        };
        let Some(key) = self.fitting_key(&sealed) else {
            self.problem(
                number,
                "the line was edited or forged, or sealed with another key: its code does not match its text"
                    .to_owned(),
            );
            // Its own claims still locate the lines after it.
            self.follow(number, &sealed);
            self.holed = true;
            return;
        };
        (self.key, self.fitted) = (key, true);
        let Ok(content) = serde_json::from_slice::<Content>(line.bytes) else {
            self.problem(number, "the line is sealed and yet not JSON".to_owned());
            self.follow(number, &sealed);
            return;
        };
        let begins = content.metadata.event_code == code::START && sealed.link.seq == 1;
        if begins && self.proof.restarts && !self.begun.insert(sealed.link.mac) {
            self.problem(number, "the lines from this start on are repeated: they were given before".to_owned());
        }
        if self.last.is_none() {
            self.first(&sealed);
            if !begins && content.metadata.event_code != code::FILE && !self.proof.part {
                self.problem(
                    number,
                    "lines before this one are missing: neither a trail nor a file begins like this".to_owned(),
                );
            }
            self.last = Some(sealed.link);
        } else if begins && self.proof.restarts {
            self.last = Some(sealed.link);
            self.rewritten = None;
        } else {
            self.follow(number, &sealed);
        }
        if let Some(Checkpoint { link: checkpoint, all, .. }) = &self.proof.last_checkpoint {
            let Link { seq, mac } = sealed.link;
            self.reached |= *checkpoint == sealed.link;
            let copied = all.get(&seq).or_else(|| (checkpoint.seq == seq).then_some(&checkpoint.mac));
            if self.rewritten.is_none() && copied.is_some_and(|copied| *copied != mac) {
                let what = format!(
                    "this is not the line that the copy of checkpoint number {seq} signed: the trail was rewritten"
                );
                self.rewritten = Some(Problem { file: self.file.clone(), line: number, through: number, what });
            }
        }
        self.content(number, &content, &sealed);
    }

    fn fitting_key(&self, sealed: &Sealed<'_>) -> Option<usize> {
        let fits = |at: &usize| self.proof.keys.get(*at).is_some_and(|key| key.mac(sealed.covered) == sealed.link.mac);
        Some(self.key).filter(fits).or_else(|| (0..self.proof.keys.len()).find(fits))
    }

    fn first(&mut self, sealed: &Sealed<'_>) {
        self.findings.summary.first = sealed.link.seq;
        self.before = sealed.link.seq.checked_sub(1).map(|seq| Link { seq, mac: sealed.prev });
    }

    /// Checks that a line has the next number and links to the previous line.
    fn follow(&mut self, number: Option<u64>, sealed: &Sealed<'_>) {
        let Link { seq, .. } = sealed.link;
        if self.last.is_none() {
            self.first(sealed);
        }
        if let Some(last) = self.last {
            let expected = last.seq.saturating_add(1);
            if seq > expected {
                self.holed = true;
                let missing = match seq - expected {
                    1 => format!("line number {expected} is missing before this one"),
                    _ => format!("lines number {expected} to {} are missing before this one", seq - 1),
                };
                self.problem(number, missing);
            } else if seq < expected {
                self.problem(
                    number,
                    format!("the line does not belong here: it is number {seq}, and number {expected} was expected"),
                );
            } else if sealed.prev != last.mac {
                self.problem(
                    number,
                    "the line does not link to the one before: one of the two was replaced".to_owned(),
                );
            }
        }
        self.last = Some(sealed.link);
    }

    fn content(&mut self, number: Option<u64>, content: &Content, sealed: &Sealed<'_>) {
        // The code of the line does not cover what follows it.
        if sealed.signature.is_some() && !matches!(&*content.metadata.event_code, code::CUT | code::CHECKPOINT) {
            self.problem(
                number,
                "the line was edited: somebody added a signature, which such a line does not have".to_owned(),
            );
        }
        let time = Timestamp::from_millis(content.time);
        let summary = &mut self.findings.summary;
        summary.earliest = Some(summary.earliest.map_or(time, |earliest| earliest.min(time)));
        summary.latest = Some(summary.latest.map_or(time, |latest| latest.max(time)));
        *summary.kinds.entry(content.metadata.event_code.clone()).or_default() += 1;
        let Details { interval_ms, lost, missing, since, until, monotonic_ms, .. } = content.unmapped;
        match content.metadata.event_code.as_str() {
            code::START => {
                summary.segments += 1;
                self.end_segment(number);
                if let Some(collected) = &mut self.collected {
                    collected.instance(&content.unmapped);
                }
                self.mark = Some((time, Duration::from_millis(interval_ms)));
                self.gaps = Duration::ZERO;
                if let Some(missing) = missing {
                    self.problem(
                        number,
                        format!("at this start the trail no longer reached its checkpoint number {missing}: lines were cut off"),
                    );
                }
            }
            code::CUT => self.cut(number, content.unmapped.cut.as_ref(), sealed),
            code::GAP => {
                summary.gaps += 1;
                summary.lost += lost;
                let gap =
                    Gap { since: Timestamp::from_millis(since), until: Timestamp::from_millis(until), monotonic_ms };
                let longest = summary.longest_gap.filter(|longest| longest.span() >= gap.span());
                summary.longest_gap = longest.or(Some(gap));
                self.gaps = self.gaps.saturating_add(gap.span());
            }
            code::CHECKPOINT => {
                summary.checkpoints += 1;
                self.checkpoint(number, time, sealed);
                if let Some(collected) = &mut self.collected {
                    collected.checkpoint(sealed.link, time, &content.unmapped);
                }
                self.mark = Some((time, Duration::from_millis(interval_ms)));
                self.gaps = Duration::ZERO;
            }
            _ => {}
        }
        self.latest = match content.metadata.event_code.as_str() {
            // Earlier lines do not make the next checkpoint late: the clock may have been set back since.
            code::START | code::CHECKPOINT => None,
            _ => Some(self.latest.map_or(time, |latest| latest.max(time))),
        };
    }

    /// Checks a line that says which files retention removed.
    fn cut(&mut self, number: Option<u64>, cut: Option<&Cut>, sealed: &Sealed<'_>) {
        let Some(cut) = cut.filter(|_| is_signed(sealed, &self.proof.checkpoint_keys)) else {
            self.holed = true;
            return self
                .problem(number, "the signature of this line, which names removed files, is not valid".to_owned());
        };
        let told = self.findings.summary.cut.replace(cut.through);
        let is_holed = std::mem::take(&mut self.holed);
        if let Some(told) = told.filter(|told| cut.from > told + 1) {
            let unless = if is_holed { ", unless a line that is missing or was edited says so" } else { "" };
            self.problem(
                number,
                format!(
                    "lines number {} to {} were gone before retention removed them{unless}",
                    told + 1,
                    cut.from - 1
                ),
            );
        }
        self.explained |= self.before.is_some_and(|before| before.mac.as_str() == cut.mac);
    }

    fn checkpoint(&mut self, number: Option<u64>, time: Timestamp, sealed: &Sealed<'_>) {
        if !is_signed(sealed, &self.proof.checkpoint_keys) {
            self.problem(number, "the signature of the checkpoint is not valid".to_owned());
        }
        self.check_late(number, time);
    }

    /// Checks whether the last checkpoint of a segment is missing. A segment that ends soon after a checkpoint ended in
    /// a crash.
    fn end_segment(&mut self, number: Option<u64>) {
        if let Some(latest) = self.latest.take() {
            self.check_late(number, latest);
        }
    }

    /// Checks whether a checkpoint was due before `until`.
    fn check_late(&mut self, number: Option<u64>, until: Timestamp) {
        if let Some((before, interval)) = self.mark
            && until.since(before) > self.gaps.saturating_add(interval * 2 + Duration::from_secs(10))
        {
            self.problem(
                number,
                format!(
                    "there is no checkpoint from {before} to {until}, though there should be one every {} s",
                    interval.as_secs_f64()
                ),
            );
        }
    }

    fn problem(&mut self, line: Option<u64>, what: String) {
        // The same problem of consecutive lines is reported once.
        if let (Some(last), Some(number)) = (self.findings.problems.last_mut(), line)
            && last.through.is_some_and(|through| through + 1 == number)
            && last.what == what
            && last.file == self.file
        {
            last.through = line;
            return;
        }
        if self.findings.problems.len() < MAX_PROBLEMS {
            self.findings.problems.push(Problem { file: self.file.clone(), line, through: line, what });
        } else {
            self.findings.more += 1;
        }
    }
}

/// Whether a line has a signature by one of the keys. Without keys any signature is accepted.
fn is_signed(sealed: &Sealed<'_>, keys: &[CheckpointPublicKey]) -> bool {
    sealed
        .signature
        .is_some_and(|(signed, signature)| keys.is_empty() || keys.iter().any(|key| key.verifies(signed, &signature)))
}

/// Whether a line is signed by one of the checkpoint keys, and sealed with one of the chain keys.
fn is_genuine(sealed: &Sealed<'_>, keys: &[ChainKey], checkpoint_keys: &[CheckpointPublicKey]) -> bool {
    is_signed(sealed, checkpoint_keys) && keys.iter().any(|key| key.mac(sealed.covered) == sealed.link.mac)
}

#[derive(Deserialize)]
struct Content {
    time: i64,
    metadata: Metadata,
    unmapped: Details,
}

#[derive(Deserialize)]
struct Metadata {
    event_code: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    interval_ms: u64,
    lost: u64,
    missing: Option<u64>,
    /// Of a gap, as the next two.
    since: i64,
    until: i64,
    monotonic_ms: Option<u64>,
    cut: Option<Cut>,
    instance: Option<String>,
    heads: Vec<Head>,
}

#[derive(Deserialize)]
struct Cut {
    from: u64,
    through: u64,
    mac: String,
}
