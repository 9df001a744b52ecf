//! The problems of a configuration: all of them in one run, each with its place.

use std::{fmt, ops::RangeInclusive};

use super::diagnosis::MAX_SHOWN;
use crate::pointer;

/// A place in the configuration: a JSON pointer into [`raw::Root`](super::raw::Root), such as `/rules/3/when`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At(String);

impl At {
    pub fn root() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}/{}", self.0, pointer::escape(key)))
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}/{index}", self.0))
    }

    /// The part that contains this one; `None` for the whole.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.0.rsplit_once('/').map(|(parent, _)| Self(parent.to_owned()))
    }

    /// Whether this part is `other` or within it.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.strip_prefix(&other.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Returns the list of keys or secrets of which this is an entry, or within an entry.
    pub fn list_of_keys(&self) -> Option<Self> {
        let mut within = self.as_str();
        while let Some((list, entry)) = within.rsplit_once('/') {
            let is_entry = entry.bytes().all(|byte| byte.is_ascii_digit());
            if is_entry && ["/keys", "/secrets"].iter().any(|name| list.ends_with(name)) {
                return Some(Self(list.to_owned()));
            }
            within = list;
        }
        None
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "/" } else { &self.0 })
    }
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// It is accepted, but somebody should check it.
    Warning,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub severity: Severity,
    pub at: At,
    /// What is wrong, without the place.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// Byte offset of the problem within the scalar at `at`, for expressions.
    pub offset: Option<usize>,
}

/// The state of a report at some moment.
#[derive(Clone, Copy, Debug)]
pub struct Mark(usize);

/// The problems found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    problems: Vec<Problem>,
}

impl Report {
    /// Adds a problem for which the configuration is refused.
    pub fn error(&mut self, at: &At, message: impl Into<String>) -> &mut Problem {
        self.push(Severity::Error, at, message.into())
    }

    /// Adds a problem that somebody should check.
    pub fn warning(&mut self, at: &At, message: impl Into<String>) -> &mut Problem {
        self.push(Severity::Warning, at, message.into())
    }

    /// Refuses the value of `key` below `at` unless it is within the bounds. Returns the problem, so that help can be
    /// added.
    pub fn bounded<T: Copy + PartialOrd + fmt::Display>(
        &mut self,
        at: &At,
        key: &str,
        value: T,
        bounds: RangeInclusive<T>,
    ) -> Option<&mut Problem> {
        if bounds.contains(&value) {
            return None;
        }
        let (least, most) = bounds.into_inner();
        Some(self.error(&at.key(key), format!("`{key}` is not between {least} and {most}")))
    }

    /// Adds an unknown name, with the nearest known name as help. If there are very many problems, only the first ones
    /// get this help, as each name is compared with all known ones.
    pub fn unknown<'a>(
        &mut self,
        at: &At,
        what: &str,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> &mut Problem {
        let message = format!("there is no {what} `{name}`");
        if self.problems.len() >= MAX_SHOWN {
            return self.error(at, message);
        }
        // A name that cannot be read is empty.
        let (known, unreadable): (Vec<&str>, Vec<&str>) = known.into_iter().partition(|name| !name.is_empty());
        let help = match (known.is_empty(), unreadable.is_empty()) {
            (true, true) => format!("no {what} is defined"),
            (true, false) => format!("no {what} that is defined has a valid name"),
            (false, _) => meant(name, &known),
        };
        self.error(at, message).help(help)
    }

    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    pub fn mark(&self) -> Mark {
        Mark(self.problems.len())
    }

    /// Whether errors were added after the mark.
    pub fn has_errors_since(&self, mark: Mark) -> bool {
        self.problems.iter().skip(mark.0).any(|problem| problem.severity == Severity::Error)
    }

    fn push(&mut self, severity: Severity, at: &At, message: String) -> &mut Problem {
        self.problems.push(Problem { severity, at: at.clone(), message, help: None, offset: None });
        let [.., last] = self.problems.as_mut_slice() else { unreachable!("one was just pushed") };
        last
    }
}

impl Problem {
    pub fn help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = Some(help.into());
        self
    }

    pub fn offset(&mut self, offset: usize) -> &mut Self {
        self.offset = Some(offset);
        self
    }
}

/// The help for an unknown name: the nearest known name, or else all known names.
pub fn meant(name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known: {}", known.join(", ")),
    }
}

/// Returns a one-line message that a name is unknown, with the nearest known name.
pub fn no_such<'a>(what: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = nearest(name, known).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    format!("there is no {what} `{name}`{near}")
}

/// The known name that a person most likely meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The comparison takes time and memory in proportion to both lengths; nobody misspells a name this long.
    if name.len() > 100 {
        return None;
    }
    let known: Vec<&str> = known.into_iter().filter(|candidate| candidate.len() <= 200).collect();
    let misspelt = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(name.len()) / 3)
        .min()
        .map(|(_, candidate)| candidate);
    // The name may also be shortened, as `github` for `github_actions`.
    let mut longer = known.iter().filter(|candidate| name.len() >= 3 && candidate.starts_with(name));
    misspelt.or_else(|| longer.next().copied().filter(|_| longer.next().is_none()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With each of 2,000 rules renamed, each of the names in tests was compared with each rule, for seconds.
    #[test]
    fn no_suggestion_is_computed_for_unknown_names_beyond_those_shown() {
        let mut report = Report::default();
        let help = |report: &mut Report| report.unknown(&At::root(), "rule", "deplyo", ["deploy", "look"]).help.clone();
        for _ in 0..MAX_SHOWN {
            assert_eq!(help(&mut report).as_deref(), Some("did you mean `deploy`?"));
        }
        assert_eq!(help(&mut report), None);
        assert!(report.has_errors());
    }

    #[test]
    fn what_has_no_valid_name_is_not_called_undefined() {
        let cases: [(&[&str], &str); 3] = [
            (&[], "no upstream is defined"),
            (&[""], "no upstream that is defined has a valid name"),
            (&["", "apq"], "did you mean `apq`?"),
        ];
        for (known, help) in cases {
            let mut report = Report::default();
            let problem = report.unknown(&At::root(), "upstream", "app", known.iter().copied());
            assert_eq!(problem.help.as_deref(), Some(help));
        }
    }
}
