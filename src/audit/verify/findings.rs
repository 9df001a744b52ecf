//! The findings of a verification, and their text.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Serialize, Serializer};

use crate::{
    clock::{Timestamp, rfc3339},
    terminal,
};

/// The findings of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    pub problems: Vec<Problem>,
    /// The number of problems beyond those in `problems`.
    pub more: u64,
    pub summary: Summary,
}

impl Findings {
    pub fn is_intact(&self) -> bool {
        self.problems.is_empty()
    }
}

/// A problem, in plain words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub file: String,
    /// Counts from 1; none if it concerns the trail as a whole.
    pub line: Option<u64>,
    /// The last of several consecutive lines with this problem.
    pub through: Option<u64>,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.through) {
            (Some(line), Some(through)) if through > line => {
                write!(f, "{}:{line} to {through}: {}", self.file, self.what)
            }
            (Some(line), _) => write!(f, "{}:{line}: {}", self.file, self.what),
            (None, _) => write!(f, "{}: {}", self.file, self.what),
        }
    }
}

/// The content of a trail.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub lines: u64,
    /// The number of the first line.
    pub first: u64,
    /// The number of the last line.
    pub last: u64,
    /// Starts of a process.
    pub segments: u64,
    pub checkpoints: u64,
    /// The last line that retention removed, according to the trail.
    pub cut: Option<u64>,
    /// Whether signatures were checked.
    pub signatures_checked: bool,
    /// Whether the end was compared with a checkpoint from elsewhere.
    pub end_checked: bool,
    /// The number of that checkpoint.
    pub compared_to: Option<u64>,
    /// When it was seen. It may be long ago: lines written since may be cut off.
    #[serde(serialize_with = "as_text")]
    pub compared_at: Option<Timestamp>,
    /// The last checkpoint from elsewhere, if its line was not there for the comparison.
    pub not_compared: Option<NotCompared>,
    /// Gaps that the trail itself records.
    pub gaps: u64,
    /// Records lost in these.
    pub lost: u64,
    /// The longest gap.
    pub longest_gap: Option<Gap>,
    #[serde(serialize_with = "as_text")]
    pub earliest: Option<Timestamp>,
    #[serde(serialize_with = "as_text")]
    pub latest: Option<Timestamp>,
    /// Lines by kind.
    pub kinds: BTreeMap<String, u64>,
}

/// A time in which nothing was written, as the trail records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    #[serde(serialize_with = "rfc3339")]
    pub since: Timestamp,
    #[serde(serialize_with = "rfc3339")]
    pub until: Timestamp,
    /// How much time passed by the monotonic clock; none if the sink was busy or failed.
    pub monotonic_ms: Option<u64>,
}

impl Gap {
    pub(super) fn span(&self) -> Duration {
        self.until.since(self.since)
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { since, until, monotonic_ms } = self;
        write!(f, "from {since} to {until}")?;
        match monotonic_ms.map(Duration::from_millis) {
            None => f.write_str(", when the trail could not be written"),
            Some(passed) => write!(
                f,
                ", when the process was paused or its clock was set ahead; {} s passed by its monotonic clock",
                passed.as_secs_f64()
            ),
        }
    }
}

/// A checkpoint that was seen elsewhere, and whose line is not unchanged in the files given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NotCompared {
    /// The number of its line.
    pub seq: u64,
    /// When it was seen.
    #[serde(serialize_with = "rfc3339")]
    pub at: Timestamp,
}

impl fmt::Display for NotCompared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seq, at } = self;
        write!(
            f,
            "the end was not compared: the last checkpoint from elsewhere is of line {seq} at {at}, which was not found unedited in \
             the files given; lines cut off the end would not be detected"
        )
    }
}

fn as_text<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.to_string()).serialize(serializer)
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |time: Option<Timestamp>| time.map_or_else(|| "?".to_owned(), |time| time.to_string());
        writeln!(
            f,
            "{} lines, number {} to {}, {} to {}",
            self.lines,
            self.first,
            self.last,
            time(self.earliest),
            time(self.latest)
        )?;
        writeln!(f, "{} starts, {} gaps with {} records lost", self.segments, self.gaps, self.lost)?;
        if let Some(gap) = &self.longest_gap {
            writeln!(f, "the longest gap was {gap}")?;
        }
        let signatures =
            if self.signatures_checked { "signatures checked" } else { "signatures not checked: no key given" };
        writeln!(f, "{} checkpoints, {signatures}", self.checkpoints)?;
        for (kind, count) in &self.kinds {
            writeln!(f, "  {}: {count}", terminal::line(kind))?;
        }
        if let Some(cut) = self.cut {
            writeln!(f, "lines up to number {cut} were removed by retention, according to the trail")?;
        } else if self.first > 1 {
            writeln!(f, "lines before number {} are not in the files given", self.first)?;
        }
        if let Some((number, at)) = self.compared_to.zip(self.compared_at) {
            writeln!(
                f,
                "compared up to line {number}, which was seen elsewhere at {at}: lines written later and cut off would not be detected"
            )?;
        } else if let Some(not_compared) = &self.not_compared {
            writeln!(f, "{not_compared}")?;
        } else {
            writeln!(
                f,
                "the end was not compared with a checkpoint from elsewhere: lines cut off the end would not be detected"
            )?;
        }
        Ok(())
    }
}
