//! All problems of one configuration, each with the place where it was written: the output of `doorward check`, and the
//! message of a refused start or reload.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    locations::{Location, Locations},
    report::{At, Problem, Report, Severity},
    source::SourceFile,
};

/// The most findings that are shown; nobody reads more at once.
pub const MAX_SHOWN: usize = 500;

/// One problem at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    /// `None` if it is about something that is not written anywhere.
    pub place: Option<Location>,
    pub at: At,
    pub message: String,
    pub help: Option<String>,
}

/// Findings, and the texts that they refer to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnosis {
    files: Vec<SourceFile>,
    findings: Vec<Finding>,
}

/// The place of a finding, for output.
#[derive(Default)]
struct Place {
    given_by: Option<String>,
    file: Option<String>,
    line_and_column: Option<(usize, usize)>,
}

impl Finding {
    pub(super) fn error(place: Option<Location>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, place, at: At::root(), message: message.into(), help: None }
    }
}

impl Diagnosis {
    /// Sorts the findings by file and line, and removes duplicates.
    pub(super) fn new(files: Vec<SourceFile>, mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| {
            let place = match &finding.place {
                Some(Location::WholeFile { file }) => (0, *file, 0),
                Some(Location::File { file, span }) => (0, *file, span.start),
                Some(Location::Given(_)) => (1, 0, 0),
                None => (2, 0, 0),
            };
            (place, finding.severity)
        });
        findings.dedup();
        Self { files, findings }
    }

    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    pub fn errors(&self) -> usize {
        self.count(Severity::Error)
    }

    pub fn warnings(&self) -> usize {
        self.count(Severity::Warning)
    }

    /// Returns the findings for programs:
    /// `{errors, warnings, findings: [{severity, message, help, at, file, line, column, given_by}]}`. Lines and columns
    /// count from 1, columns in characters; at most the first [`MAX_SHOWN`] findings are listed.
    pub fn to_json(&self) -> Value {
        let findings: Vec<Value> =
            self.findings.iter().take(MAX_SHOWN).map(|finding| self.finding_to_json(finding)).collect();
        json!({"errors": self.errors(), "warnings": self.warnings(), "findings": findings})
    }

    fn finding_to_json(&self, finding: &Finding) -> Value {
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let Place { given_by, file, line_and_column: place } = self.place(finding);
        json!({
            "severity": severity,
            "message": finding.message,
            "help": finding.help,
            "at": finding.at.to_string(),
            "file": file,
            "line": place.map(|(line, _)| line),
            "column": place.map(|(_, column)| column),
            "given_by": given_by,
        })
    }

    /// Returns a line for each error: where it is, what is wrong, and what to do.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let errors = self.findings.iter().filter(|finding| finding.severity == Severity::Error);
        errors.map(|finding| {
            let help = finding.help.as_ref().map(|help| format!("; {help}")).unwrap_or_default();
            format!("{}: {}{help}", self.origin(finding), finding.message)
        })
    }

    /// Where a finding was written: `FILE:LINE:COLUMN`, or what else gave it; its path in the configuration if nothing
    /// did. Rules of all files are numbered together, so that the path alone leads nobody to a line.
    pub fn origin(&self, finding: &Finding) -> String {
        let Place { given_by, file, line_and_column } = self.place(finding);
        let place = given_by.or(file).unwrap_or_else(|| finding.at.to_string());
        let within = line_and_column.map(|(line, column)| format!(":{line}:{column}")).unwrap_or_default();
        format!("{place}{within}")
    }

    fn place(&self, finding: &Finding) -> Place {
        match &finding.place {
            Some(Location::Given(giver)) => Place { given_by: Some(giver.to_string()), ..Place::default() },
            Some(Location::WholeFile { file }) => Place { file: Some(self.path(*file)), ..Place::default() },
            Some(Location::File { file, span }) => {
                let text = self.files.get(*file).map_or("", |file| file.text.as_str());
                Place {
                    file: Some(self.path(*file)),
                    line_and_column: Some(line_and_column(text, span.start)),
                    ..Place::default()
                }
            }
            None => Place::default(),
        }
    }

    fn path(&self, file: usize) -> String {
        self.files.get(file).map_or_else(String::new, |file| file.path.display().to_string())
    }

    fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }
}

/// Returns the findings of a report. Problems that later checks found at parts that were `mended` are left out, as
/// nobody wrote what is there.
pub(super) fn findings(report: &Report, locations: &Locations, mended: &BTreeSet<At>) -> Vec<Finding> {
    let written = |problem: &&Problem| {
        !std::iter::successors(Some(problem.at.clone()), At::parent).any(|part| mended.contains(&part))
    };
    report
        .problems()
        .iter()
        .filter(written)
        .map(|problem| Finding {
            severity: problem.severity,
            place: match problem.offset {
                Some(offset) => locations.place_within(&problem.at, offset),
                None => locations.place(&problem.at),
            },
            at: problem.at.clone(),
            message: shorten(&problem.message),
            help: problem.help.as_deref().map(shorten),
        })
        .collect()
}

/// Shortens a message, as it may quote a long value.
fn shorten(message: &str) -> String {
    const MAX: usize = 600;
    match message.char_indices().nth(MAX) {
        Some((end, _)) => format!("{}…", message.get(..end).unwrap_or_default()),
        None => message.to_owned(),
    }
}

/// Returns the line and column of a byte, both from 1; the column in characters.
pub(super) fn line_and_column(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

/// The lines of a text, for many look-ups: [`line_and_column`] reads the text from its beginning each time.
#[derive(Debug)]
pub(super) struct Lines<'a> {
    text: &'a str,
    /// The offsets of the first byte of each line.
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    /// The line of a byte, from 1.
    pub fn number(&self, byte: usize) -> usize {
        self.starts.partition_point(|start| *start <= byte)
    }

    /// The text before a byte on its line.
    pub fn before(&self, byte: usize) -> &'a str {
        let start = self.starts.get(self.number(byte) - 1).copied().unwrap_or_default();
        self.text.get(start..byte).unwrap_or_default()
    }
}
