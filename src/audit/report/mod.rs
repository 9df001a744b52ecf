//! Reports for reviews of access controls, from trails and a configuration alone: SOC 2 CC6 and CC7, ISO 27001 A.5.15
//! to A.5.18 and A.8.15.
//!
//! Every figure comes with a `jq` query that produces the same rows from the same files, so that a reviewer need not
//! trust the report.

mod configuration;
mod coverage;
mod render;
mod sections;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::Value;

pub use self::configuration::{Access, Configured, ConfiguredSecret, ends_of_certificates};
use self::{
    coverage::{Coverage, Covered},
    sections::{Counts, GRANT_IDS, GRANTS, OUTSIDE, RULES, SECTIONS, Section},
};
use super::{
    chain::MAX_LINE,
    lines::{Fault, Lines, no_record, of_file},
};
use crate::clock::Timestamp;

/// Bytes that the texts of one section may take in memory. Records with further texts are only counted.
const MAX_BYTES: usize = 8 << 20;

/// A report of a period.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The first millisecond of the period (Unix time), and the first after it.
    pub from: i64,
    pub to: i64,
    pub files: Vec<PathBuf>,
    /// A shell command that defines `trail`, whose output the queries read: `trail | jq -nR 'QUERY'`.
    pub trail: String,
    /// Records in the period.
    pub records: u64,
    /// Computes `records`.
    pub records_query: String,
    /// Lines that are not records. `doorward audit verify` says what is wrong with them.
    pub unreadable: u64,
    /// Computes `unreadable`.
    pub unreadable_query: String,
    /// What is in the files: the figures say nothing about what is not.
    pub covered: Covered,
    /// Computes `covered`.
    pub covered_query: String,
    pub sections: Vec<Counted>,
    /// The part from the configuration; none if no configuration was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration: Option<Configured>,
}

/// A part of the report that comes from the trail.
#[derive(Clone, Debug, Serialize)]
pub struct Counted {
    pub id: &'static str,
    pub title: &'static str,
    /// The names of the controls that it is for.
    pub controls: &'static str,
    /// Computes `rows` from the files on its standard input.
    pub query: String,
    /// In the order of `what`.
    pub rows: Vec<Row>,
    /// Records whose texts exceeded the memory limit; the query shows them.
    pub left_out: u64,
}

/// Records with the same text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    pub what: String,
    pub records: u64,
    /// The times of the first and the last record, Unix time in milliseconds.
    pub first: i64,
    pub last: i64,
}

#[derive(Debug, Default)]
struct Group {
    rows: BTreeMap<String, Row>,
    bytes: usize,
    left_out: u64,
}

impl Report {
    /// Reads the records from `from` until before `to`. Seals are not checked here.
    pub fn read(files: Vec<PathBuf>, from: Timestamp, to: Timestamp) -> io::Result<Self> {
        let (from, to) = (from.as_millis(), to.as_millis());
        let mut groups: [Group; SECTIONS.len()] = Default::default();
        let (mut records, mut unreadable) = (0, 0);
        let mut coverage = Coverage::default();
        let read = readable();
        for path in &files {
            let file = BufReader::with_capacity(1 << 16, File::open(path).map_err(of_file(path))?);
            let (are, are_not) = count(file, from, to, &mut groups, &mut coverage).map_err(of_file(path))?;
            records += are;
            unreadable += are_not;
        }
        // Every figure would be 0, and every rule and grant unused.
        let covered = coverage.covered().ok_or_else(|| {
            let why = "there is no record in the files of the trail; check that the volume with the file that `audit.sink.file` \
                       names is mounted there";
            io::Error::new(io::ErrorKind::InvalidData, why)
        })?;
        let sections = SECTIONS
            .iter()
            .zip(groups)
            .map(|(section, group)| Counted {
                id: section.id,
                title: section.title,
                controls: section.controls,
                query: query(section, from, to),
                rows: group.rows.into_values().collect(),
                left_out: group.left_out,
            })
            .collect();
        Ok(Self {
            from,
            to,
            trail: trail(&files),
            files,
            records,
            records_query: format!(
                "reduce (inputs | {read} | select(.time >= {from} and .time < {to})) as $one (0; . + 1)"
            ),
            unreadable,
            unreadable_query: format!("reduce (inputs | [{read}] | length) as $is (0; . + 1 - $is)"),
            covered,
            covered_query: coverage::query(from),
            sections,
            configuration: None,
        })
    }

    /// Adds the part from the configuration, with the rules and grants that no record of the period names.
    #[must_use]
    pub fn with(mut self, held: Configured) -> Self {
        // A record that is missing may name them.
        let knows = self.records > 0 && self.covered.breaks == 0;
        self.configuration = Some(held.used(&self.named(RULES), &self.named(GRANTS), knows, self.from, self.to));
        self
    }

    /// Returns what the figures do not show, as the files do not cover the whole period.
    fn caveats(&self) -> Vec<String> {
        let Covered { first, last, breaks } = self.covered;
        let mut caveats = Vec::new();
        if breaks > 0 {
            caveats.push(format!(
                "INCOMPLETE: lines of the period may be missing in {breaks} places. Retention or somebody removed them, the trail \
                 could not be written, or a file was not given or cannot be read, such as a compressed one. Give all files, and \
                 check them with `doorward audit verify`."
            ));
        }
        if first > self.from {
            caveats.push("What happened in the period before the first record is not in these files.".to_owned());
        }
        if last < self.to {
            caveats.push("What happened in the period after the last record is not in these files.".to_owned());
        }
        caveats
    }

    /// Returns the rules or grants that the rows of a section name.
    fn named(&self, id: &str) -> BTreeSet<String> {
        let all = self.sections.iter().filter(|section| section.id == id).flat_map(|section| &section.rows);
        all.map(|row| row.what.strip_suffix(OUTSIDE).unwrap_or(&row.what).to_owned()).collect()
    }
}

fn count(
    reader: impl BufRead,
    from: i64,
    to: i64,
    groups: &mut [Group],
    coverage: &mut Coverage,
) -> io::Result<(u64, u64)> {
    let (mut records, mut unreadable) = (0, 0);
    let (mut is_foreign, mut has_record) = (false, false);
    let mut lines = Lines::new(reader);
    while let Some(line) = lines.next()? {
        // Accepts the same lines as `readable`.
        let is_whole = line.fault != Some(Fault::Long) && line.bytes.iter().all(|byte| *byte >= b' ');
        let text = is_whole.then(|| String::from_utf8_lossy(line.bytes));
        let parsed = text.and_then(|text| serde_json::from_str::<Value>(&text).ok());
        let Some((value, time)) = parsed.and_then(|value| value.get("time")?.as_i64().map(|time| (value, time))) else {
            unreadable += 1;
            is_foreign |= line.is_foreign();
            continue;
        };
        if !has_record {
            coverage.begin(&value)?;
        }
        has_record = true;
        records += u64::from((from..to).contains(&time));
        coverage.add(&value, time, from);
        for (section, group) in SECTIONS.iter().zip(&mut *groups) {
            let time = section.counts.time(&value, time);
            if time < to && (time >= from || section.counts == Counts::SinceEver) {
                (section.keys)(&value).into_iter().for_each(|what| group.add(what, time));
            }
        }
    }
    if is_foreign && !has_record {
        return Err(no_record());
    }
    Ok((records, unreadable))
}

impl Group {
    fn add(&mut self, what: String, time: i64) {
        if let Some(row) = self.rows.get_mut(&what) {
            row.records += 1;
            row.first = row.first.min(time);
            row.last = row.last.max(time);
        } else if self.bytes + what.len() > MAX_BYTES {
            self.left_out += 1;
        } else {
            self.bytes += what.len();
            self.rows.insert(what.clone(), Row { what, records: 1, first: time, last: time });
        }
    }
}

/// Returns the definition of a shell function, as a trail may have hundreds of files. `grep` adds a line end to an
/// incomplete last line of a file, so that it does not spoil the first line of the next.
fn trail(files: &[PathBuf]) -> String {
    let files: Vec<String> = files.iter().map(|file| quoted(file)).collect();
    format!("trail() {{ grep -ah '' {}; }}", files.join(" "))
}

/// Quotes a file name for a shell.
fn quoted(file: &Path) -> String {
    format!("'{}'", file.display().to_string().replace('\'', r"'\''"))
}

/// Returns a `jq -R` filter that parses a line, and produces nothing if it is not a record, so that a damaged line does
/// not stop a query.
fn readable() -> String {
    format!(
        r#"select(utf8bytelength < {MAX_LINE} and (test("[\\x00-\\x1f]") | not)) | fromjson? | objects | select(.time | type == "number" and . == floor)"#
    )
}

/// Returns the `jq -nR` program that computes the rows of a section. It contains no single quote, so that it can be
/// quoted with these.
fn query(section: &Section, from: i64, to: i64) -> String {
    let (read, time, texts) = (readable(), section.counts.jq(), (section.jq)());
    let from = match section.counts {
        Counts::SinceEver => String::new(),
        Counts::InPeriod | Counts::ByEnd => format!("$time >= {from} and "),
    };
    format!(
        "[inputs | {read} | ({time}) as $time | select({from}$time < {to}) | ({texts})? | {{what: ., time: $time}}] | \
         group_by(.what) | map({{what: .[0].what, records: length, first: (map(.time) | min), last: (map(.time) | max)}})"
    )
}

/// Returns the `jq -nR` program that lists which of these rules and grants no record of the period names.
fn unused(rules: &Value, grants: &Value, from: i64, to: i64) -> String {
    let read = readable();
    let rule = SECTIONS.iter().find(|section| section.id == RULES).map(|section| (section.jq)()).unwrap_or_default();
    format!(
        "[inputs | {read} | select(.time >= {from} and .time < {to})] as $records | {{rules: ({rules} - [$records[] | ({rule})?]), \
         grants: ({grants} - [$records[] | ({GRANT_IDS})?])}}"
    )
}

#[cfg(test)]
mod tests;
