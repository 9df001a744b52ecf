//! The place where each part of the merged configuration was written: in which file and at which bytes, or by which
//! variable or flag.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
};

use super::{
    report::At,
    source::{Data, Key, Node, SourceFile},
};

/// The origin of a value outside of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Giver {
    /// An environment variable, by name.
    Variable(String),
    /// `--set` with this path.
    Flag(String),
}

impl fmt::Display for Giver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(path) => write!(f, "flag --set {path}"),
        }
    }
}

/// The place where something was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// In a file, by its number in [`Locations::files`].
    File { file: usize, span: Range<usize> },
    /// A file as a whole.
    WholeFile { file: usize },
    /// Not in a file.
    Given(Giver),
}

/// The places of all parts of a configuration.
#[derive(Clone, Debug, Default)]
pub struct Locations {
    files: Vec<SourceFile>,
    entries: BTreeMap<At, Entry>,
    /// Keys that are themselves the problem.
    at_key: BTreeSet<At>,
}

#[derive(Clone, Debug)]
enum Entry {
    Node { file: usize, key: Option<Range<usize>>, value: Range<usize>, container: bool },
    Given(Giver),
}

impl Locations {
    pub(super) fn new(files: Vec<SourceFile>) -> Self {
        Self { files, ..Self::default() }
    }

    /// The files read, the main one first.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// Returns the place to show for a problem with the value at `at`. If that was not written, it is the nearest part
    /// around it that was.
    pub fn place(&self, at: &At) -> Option<Location> {
        let (found, entry) = self.nearest(at)?;
        Some(match entry {
            Entry::Given(giver) => Location::Given(giver.clone()),
            Entry::Node { file, key: Some(key), .. } if found == *at && self.at_key.contains(at) => {
                Location::File { file: *file, span: key.clone() }
            }
            Entry::Node { file, key: Some(key), container: true, .. } => {
                Location::File { file: *file, span: key.clone() }
            }
            Entry::Node { file, .. } if found == At::root() => Location::WholeFile { file: *file },
            Entry::Node { file, value, container, .. } => {
                let span = if *container { self.to_line_end(*file, value.start) } else { value.clone() };
                Location::File { file: *file, span }
            }
        })
    }

    /// Returns the place of byte `offset` of the text at `at`, within a plain, quoted or block scalar.
    pub(super) fn place_within(&self, at: &At, offset: usize) -> Option<Location> {
        let place = self.place(at)?;
        let Location::File { file, span } = &place else { return Some(place) };
        let written = self.files.get(*file).and_then(|source| source.text.get(span.clone())).unwrap_or_default();
        let start = span.start + skip(written, offset);
        let width = self
            .files
            .get(*file)
            .and_then(|source| source.text.get(start..span.end))
            .and_then(|rest| rest.chars().next())
            .map_or(0, char::len_utf8);
        Some(Location::File { file: *file, span: start..start + width })
    }

    /// Returns where the value at `at` was written, by its key if it has one; `None` for a default.
    pub fn written(&self, at: &At) -> Option<Location> {
        match self.entries.get(at)? {
            // A text of several lines begins below its key.
            Entry::Node { file, key: Some(key), .. } => Some(Location::File { file: *file, span: key.clone() }),
            _ => self.place(at),
        }
    }

    /// Makes problems at `at` show the key instead of the value.
    pub(super) fn show_key(&mut self, at: &At) {
        self.at_key.insert(at.clone());
    }

    pub(super) fn insert_node(&mut self, at: &At, key: Option<&Key>, node: &Node) {
        let container = matches!(node.data, Data::List(_) | Data::Map(_));
        let key = key.map(|key| key.span.clone());
        self.entries.insert(at.clone(), Entry::Node { file: node.source, key, value: node.span.clone(), container });
    }

    /// Masks addresses with a password.
    pub(super) fn mask_passwords(&mut self, written: &Node) {
        written.mask(&mut self.files, &|data: &Data| matches!(data, Data::Text(text) if has_user(text)));
    }

    /// Masks values that another layer replaces: nothing checks them, and they may be secrets.
    pub(super) fn mask_replaced(&mut self, at: &At, written: &Node) {
        match &written.data {
            Data::List(items) => {
                items.iter().enumerate().for_each(|(index, item)| self.mask_replaced(&at.index(index), item));
            }
            Data::Map(entries) => {
                entries.iter().for_each(|(key, value)| self.mask_replaced(&at.key(&key.name), value));
            }
            _ if self.is_replaced(at) => written.mask(&mut self.files, &|_: &Data| true),
            _ => {}
        }
    }

    /// Whether another layer replaces the value that a file has there.
    pub(super) fn is_replaced(&self, at: &At) -> bool {
        self.written(at).is_none_or(|by| matches!(by, Location::Given(_)))
    }

    pub(super) fn insert_given(&mut self, at: &At, giver: Giver) {
        self.entries.insert(at.clone(), Entry::Given(giver));
    }

    /// Replaces the scalars at and within `at` with asterisks in the texts that reports show.
    pub(super) fn mask(&mut self, at: &At) {
        let scalars: Vec<(usize, Range<usize>)> = self
            .entries
            .range(at..)
            .take_while(|(found, _)| found.as_str().starts_with(at.as_str()))
            .filter(|(found, _)| found.is_within(at))
            .filter_map(|(_, entry)| match entry {
                Entry::Node { file, value, container: false, .. } => Some((*file, value.clone())),
                _ => None,
            })
            .collect();
        for (file, span) in scalars {
            if let Some(source) = self.files.get_mut(file) {
                source.mask(span);
            }
        }
    }

    fn nearest(&self, at: &At) -> Option<(At, &Entry)> {
        let mut pointer = at.clone();
        loop {
            if let Some(entry) = self.entries.get(&pointer) {
                return Some((pointer, entry));
            }
            pointer = pointer.parent()?;
        }
    }

    fn to_line_end(&self, file: usize, start: usize) -> Range<usize> {
        let rest = self.files.get(file).and_then(|source| source.text.get(start..)).unwrap_or_default();
        start..start + rest.find('\n').unwrap_or(rest.len())
    }
}

/// Whether a text is an address with a user, and perhaps a password (RFC 3986 section 3.2.1).
pub(super) fn has_user(text: &str) -> bool {
    let (rest, scheme) = text.split_once("://").map_or((text, None), |(scheme, rest)| (rest, Some(scheme)));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    // Without a scheme, or with a password that a URL cannot contain, only the form `USER:PASSWORD@HOST` shows it. An
    // email address has no `:` there, and an expression or a sentence has spaces.
    let has_password = || rest.rsplit_once('@').is_some_and(|(before, _)| before.contains(':'));
    let is_one_word = || !text.contains(char::is_whitespace);
    (scheme.is_some() && authority.contains('@')) || (is_one_word() && has_password())
}

/// Returns how many bytes of `written` precede byte `offset` of the value that it denotes, by walking quotes,
/// indentation and line folds. If that cannot be determined, it is 0.
fn skip(written: &str, offset: usize) -> usize {
    let body = match written.as_bytes().first() {
        Some(b'\'' | b'"') => 1,
        Some(b'|' | b'>') => written.find('\n').map_or(0, |end| end + 1),
        _ => 0,
    };
    let block = body > 1;
    let quoted = body == 1;
    let (mut value, mut line_start) = (0, true);
    let chars = written.char_indices().skip_while(|(at, _)| *at < body);
    for (at, c) in chars {
        let indentation = line_start && (block || at > body) && (c == ' ' || c == '\t');
        if indentation {
            continue;
        }
        if value >= offset {
            return at;
        }
        line_start = c == '\n';
        if quoted && c == '\\' {
            return 0;
        }
        value += c.len_utf8();
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_into_a_value_is_found_in_what_was_written() {
        for (written, offset, rest) in [
            ("a == b", 5, "b"),
            ("'a == b'", 5, "b'"),
            ("\"a == b\"", 0, "a == b\""),
            ("|\n    one\n    two\n", 4, "two\n"),
            ("|-\n  one\n  two", 5, "wo"),
            ("one\n    two", 4, "two"),
        ] {
            assert_eq!(&written[skip(written, offset)..], rest, "{written:?}");
        }
    }

    #[test]
    fn an_address_with_a_password_is_distinguished_from_other_text_with_an_at_sign() {
        for text in [
            "http://x:hunter2@host/",
            "http://hunter2@host",
            "https://x:hun/ter2@host",
            "doorward:hunter2@redis.example.com:6379",
            "redis://doorward:hunter2@redis.example.com:6379",
            ":hunter2@redis",
        ] {
            assert!(has_user(text), "{text}");
        }
        for text in [
            "alice@example.com",
            "{email}",
            "{sub}@corp",
            "https://id.example.com/a",
            "https://id.example.com/@team/x",
            "git@github.com:acme/app",
            "principal.email == 'a:b@example.com'",
            "ask the team: ops@example.com",
        ] {
            assert!(!has_user(text), "{text}");
        }
    }

    #[test]
    fn an_offset_behind_an_escape_or_the_end_points_at_the_start() {
        assert_eq!(skip("\"a\\tb\"", 2), 0);
        assert_eq!(skip("ab", 9), 0);
    }
}
