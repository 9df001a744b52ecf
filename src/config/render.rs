//! Prints a diagnosis for people: the file, the line, the source with a caret, and the help.

use std::{fmt, ops::Range};

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use super::{
    diagnosis::{Diagnosis, Finding, MAX_SHOWN, line_and_column},
    locations::Location,
    report::Severity,
    source::SourceFile,
};
use crate::terminal;

/// A line longer than this is shown without its source.
const MAX_LINE: usize = 2_000;

impl Diagnosis {
    /// Returns the findings and a last line that counts them. `colours` only for a terminal.
    pub fn render(&self, colours: bool) -> String {
        let renderer = if colours { Renderer::styled() } else { Renderer::plain() };
        let mut text = String::new();
        for finding in self.findings().iter().take(MAX_SHOWN) {
            text.push_str(&renderer.render(&[self.group(finding)]));
            text.push_str("\n\n");
        }
        if let Some(more) = self.findings().len().checked_sub(MAX_SHOWN).filter(|more| *more > 0) {
            text.push_str(&format!("and {more} more\n\n"));
        }
        text.push_str(&self.summary());
        text.push('\n');
        text
    }

    /// `3 errors, 1 warning`.
    pub fn summary(&self) -> String {
        let count = |count: usize, what: &str| match count {
            0 => format!("no {what}s"),
            1 => format!("1 {what}"),
            n => format!("{n} {what}s"),
        };
        match (self.errors(), self.warnings()) {
            (errors, 0) => count(errors, "error"),
            (errors, warnings) => format!("{}, {}", count(errors, "error"), count(warnings, "warning")),
        }
    }

    fn group<'a>(&'a self, finding: &'a Finding) -> Group<'a> {
        let level = match finding.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(terminal::line(&finding.message));
        let group = match &finding.place {
            None => Group::with_title(title),
            Some(Location::Given(giver)) => title.element(Origin::path(terminal::line(&giver.to_string()))),
            Some(Location::WholeFile { file }) => match self.files().get(*file) {
                Some(source) => title.element(Origin::path(path(source))),
                None => Group::with_title(title),
            },
            Some(Location::File { file, span }) => match self.files().get(*file) {
                Some(source) => match excerpt(&source.text, span) {
                    Some((lines, number, span)) => title.element(
                        Snippet::source(terminal::masked(lines))
                            .path(path(source))
                            .line_start(number)
                            .annotation(AnnotationKind::Primary.span(span)),
                    ),
                    None => {
                        let (line, column) = line_and_column(&source.text, span.start);
                        title.element(Origin::path(path(source)).line(line).char_column(column))
                    }
                },
                None => Group::with_title(title),
            },
        };
        match &finding.help {
            Some(help) => group.element(Level::HELP.message(terminal::line(help))),
            None => group,
        }
    }
}

/// The path of a file, whose name somebody else may have chosen.
fn path(source: &SourceFile) -> String {
    terminal::line(&source.path.display().to_string())
}

/// The output of `render` without colours.
impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// Returns the line on which a span begins and the one before it, the number of the first of the two, and the part of
/// the span that is on its first line.
fn excerpt<'a>(text: &'a str, span: &Range<usize>) -> Option<(&'a str, usize, Range<usize>)> {
    let before = text.get(..span.start)?;
    let line = before.rfind('\n').map_or(0, |at| at + 1);
    let rest = text.get(span.start..)?;
    let end = span.start + rest.find('\n').unwrap_or(rest.len());
    let start = match line {
        0 => 0,
        line => before.get(..line - 1)?.rfind('\n').map_or(0, |at| at + 1),
    };
    if end - start > MAX_LINE {
        return None;
    }
    let stop = span.end.min(end).max(span.start);
    let lines = text.get(start..end)?;
    let (number, _) = line_and_column(text, start);
    Some((lines, number, span.start - start..stop - start))
}

#[cfg(test)]
mod tests {
    use crate::config::{Sources, load};

    #[test]
    fn names_of_files_and_settings_forge_no_line_and_move_no_cursor() {
        let folder = tempfile::tempdir().unwrap();
        let main = r#"
policies: ["p\e[31mx\nerror: fake\u202e.yaml"]
listeners: [{name: a, address: '127.0.0.1:1'}]
"#;
        let path = folder.path().join("doorward.yaml");
        std::fs::write(&path, main).unwrap();
        let policy = folder.path().join("p\u{1b}[31mx\nerror: fake\u{202e}.yaml");
        std::fs::write(policy, "\"rulez\\nerror: fake\": []\n").unwrap();
        let refused = load(&Sources { path, ..Sources::default() }, |_, _| ()).unwrap_err();
        let printed = refused.diagnosis.render(false);
        assert!(printed.contains(r"/p\u001b[31mx\nerror: fake\u202e.yaml:1:1"), "{printed:?}");
        assert!(printed.contains(r"`rulez\nerror: fake`"), "{printed:?}");
        assert!(!printed.contains(['\u{1b}', '\u{202e}']), "{printed:?}");
        assert!(!printed.lines().any(|line| line.trim_start().starts_with("error: fake")), "{printed:?}");
    }
}
