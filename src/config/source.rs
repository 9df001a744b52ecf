//! Reads YAML into a tree that records where each key and each value is written.
//!
//! A file has one document, in UTF-8, of at most 4 MiB and within the budgets of the reader: aliases are expanded, but
//! neither they nor nesting can make the tree larger than its limits. Merge keys (`<<`) and custom tags are refused, as
//! their result is not what a reader of the file sees.

use std::{collections::HashMap, fmt, ops::Range, path::PathBuf};

use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Number};
use serde_saphyr::{
    Error, Location, MergeKeyPolicy, Options, Spanned, alias_limits, budget, options, options::DuplicateKeyPolicy,
};

use super::syntax::explained;

/// The largest size of a file that belongs to a configuration.
pub const MAX_BYTES: usize = 4 << 20;
/// The most keys and values of a file.
const MAX_NODES: usize = 200_000;
/// The most levels of nesting.
pub(super) const MAX_DEPTH: usize = 48;
/// The most anchors, and the most aliases.
const MAX_ALIASES: usize = 1_000;
/// The most keys and values, with the marks around lists and maps, that aliases repeat.
pub(super) const MAX_REPEATED: usize = 50_000;

/// A file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// The path as it is printed.
    pub path: PathBuf,
    pub text: String,
}

/// A value and its place.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Node {
    /// The index of its file in the list of sources.
    pub source: usize,
    /// The bytes of the text. For a block list or map only its first byte.
    pub span: Range<usize>,
    pub data: Data,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Data {
    #[default]
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file, duplicates included.
    Map(Vec<(Key, Node)>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Key {
    pub name: String,
    pub span: Range<usize>,
}

/// Reads a YAML map without duplicate keys, within the budgets of the reader. The error is a sentence.
pub fn parse_yaml(text: &str) -> Result<Map<String, serde_json::Value>, String> {
    let node = Node::parse(text, 0).map_err(|malformed| malformed.message)?;
    if let Some(Repeated { key, .. }) = node.repeated_keys().first() {
        return Err(format!("`{}` is set twice", key.name));
    }
    match node.to_json() {
        serde_json::Value::Object(object) => Ok(object),
        _ => Err("it is not an object".to_owned()),
    }
}

/// A YAML syntax error and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    pub message: String,
    pub help: Option<&'static str>,
    pub span: Range<usize>,
}

/// A duplicate key of a map.
pub(super) struct Repeated<'a> {
    pub(super) source: usize,
    pub(super) first: &'a Key,
    pub(super) key: &'a Key,
    /// The value of the earlier key, which nothing checks.
    pub(super) lost: &'a Node,
}

impl SourceFile {
    /// Replaces a part with asterisks.
    pub(super) fn mask(&mut self, span: Range<usize>) {
        let Some(masked) = self.text.get(span.clone()).map(asterisks) else { return };
        self.text.replace_range(span, &masked);
    }
}

impl Node {
    /// Reads the only document of a text.
    pub(super) fn parse(text: &str, source: usize) -> Result<Self, Malformed> {
        if text.len() > MAX_BYTES {
            let message = format!("larger than {} MiB", MAX_BYTES >> 20);
            return Err(Malformed { message, help: None, span: 0..0 });
        }
        let mut node: Self =
            serde_saphyr::from_str_with_options(text, reader()).map_err(|error| Malformed::new(&error, text))?;
        node.set_source(source);
        Ok(node)
    }

    /// Returns the value without places. For a duplicate key, the last value counts.
    pub(super) fn to_json(&self) -> serde_json::Value {
        match &self.data {
            Data::Null => serde_json::Value::Null,
            Data::Bool(flag) => (*flag).into(),
            Data::Number(number) => serde_json::Value::Number(number.clone()),
            Data::Text(text) => text.as_str().into(),
            Data::List(items) => items.iter().map(Self::to_json).collect(),
            Data::Map(entries) => {
                entries.iter().map(|(key, value)| (key.name.clone(), value.to_json())).collect::<Map<_, _>>().into()
            }
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<(&Key, &Self)> {
        let Data::Map(entries) = &self.data else { return None };
        entries.iter().rev().find(|(key, _)| key.name == name).map(|(key, value)| (key, value))
    }

    /// Whether it is, or contains, a text for which `is_wanted` holds.
    pub(super) fn has_text(&self, is_wanted: &impl Fn(&str) -> bool) -> bool {
        match &self.data {
            Data::Text(text) => is_wanted(text),
            Data::List(items) => items.iter().any(|item| item.has_text(is_wanted)),
            Data::Map(entries) => entries.iter().any(|(_, value)| value.has_text(is_wanted)),
            _ => false,
        }
    }

    /// Replaces its scalars that may be secret with asterisks in the texts that reports show.
    pub(super) fn mask(&self, files: &mut [SourceFile], is_secret: &impl Fn(&Data) -> bool) {
        match &self.data {
            Data::List(items) => items.iter().for_each(|item| item.mask(files, is_secret)),
            Data::Map(entries) => entries.iter().for_each(|(_, value)| value.mask(files, is_secret)),
            data if is_secret(data) => {
                if let Some(file) = files.get_mut(self.source) {
                    file.mask(self.span.clone());
                }
            }
            _ => {}
        }
    }

    /// Returns the duplicate keys in all maps: each repetition.
    pub(super) fn repeated_keys(&self) -> Vec<Repeated<'_>> {
        let mut found = Vec::new();
        self.collect_repeated(&mut found);
        found
    }

    fn collect_repeated<'a>(&'a self, found: &mut Vec<Repeated<'a>>) {
        match &self.data {
            Data::List(items) => items.iter().for_each(|item| item.collect_repeated(found)),
            Data::Map(entries) => {
                let mut seen: HashMap<&str, (&Key, &Self)> = HashMap::new();
                for (key, value) in entries {
                    match seen.get_mut(key.name.as_str()) {
                        Some((first, last)) => {
                            let lost = std::mem::replace(last, value);
                            found.push(Repeated { source: self.source, first, key, lost });
                        }
                        None => _ = seen.insert(&key.name, (key, value)),
                    }
                    value.collect_repeated(found);
                }
            }
            _ => {}
        }
    }

    fn set_source(&mut self, source: usize) {
        self.source = source;
        match &mut self.data {
            Data::List(items) => items.iter_mut().for_each(|item| item.set_source(source)),
            Data::Map(entries) => entries.iter_mut().for_each(|(_, value)| value.set_source(source)),
            _ => {}
        }
    }
}

impl Malformed {
    fn new(error: &Error, text: &str) -> Self {
        let error = error.without_snippet();
        let mut start = error.location().map_or(0, |place| byte_of(text, place));
        let (message, help) = match error {
            Error::MultipleDocuments { .. } => ("more than one YAML document in a file".to_owned(), None),
            Error::MergeKeyNotAllowed { .. } => {
                ("merge keys (`<<`) are not accepted; write the keys out".to_owned(), None)
            }
            Error::Budget { .. } => (
                format!(
                    "a file may have {MAX_NODES} keys and values, {MAX_DEPTH} levels of nesting and {MAX_ALIASES} aliases, \
                     and this has more of one of them"
                ),
                Some(
                    "divide grants, rules and tests among several files (`policies`), and write out what aliases (`*name`) repeat: \
                     some programs write these on their own",
                ),
            ),
            // The value is not quoted: it may be a secret that begins with `!`, or that reads as an infinite number.
            Error::UnsupportedTag { .. } => {
                ("tags (`!name`) are not accepted".to_owned(), Some("put a text that begins with `!` in quotes"))
            }
            Error::NonFiniteFloat { .. } => {
                ("this number is not finite".to_owned(), Some("put a text that reads as one in quotes"))
            }
            other => explained(other.to_string(), text, &mut start),
        };
        let width = text.get(start..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
        Self { message, help, span: start..start + width }
    }
}

/// Returns asterisks of the same length, so that all other places remain valid.
fn asterisks(written: &str) -> String {
    written.chars().map(|c| if c == '\n' { "\n".to_owned() } else { "*".repeat(c.len_utf8()) }).collect()
}

/// Masks a text that cannot be read as YAML, except for the first key of each line: it is unknown which of the rest is
/// a secret.
pub(super) fn keys_alone(text: &str) -> String {
    let line = |line: &str| {
        let (keys, rest) = line.split_at_checked(end_of_key(line)).unwrap_or(("", line));
        keys.to_owned() + &asterisks(rest)
    };
    text.split_inclusive('\n').map(line).collect()
}

/// Returns the end of the first key of a line, or the offset where a key could begin.
fn end_of_key(line: &str) -> usize {
    let body = line.trim_start_matches([' ', '\t', '-', '{', '[']);
    let behind = body.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    match behind.strip_prefix(':') {
        Some(value) if behind.len() < body.len() && value.trim_start().len() < value.len() => {
            line.len() - value.trim_start().len()
        }
        _ => line.len() - body.len(),
    }
}

fn reader() -> Options {
    options! {
        budget: budget! {
            max_depth: MAX_DEPTH,
            max_events: 2 * MAX_NODES,
            max_nodes: MAX_NODES,
            max_aliases: MAX_ALIASES,
            max_anchors: MAX_ALIASES,
            max_recorded_anchor_events: 100_000,
            max_recorded_anchor_bytes: MAX_BYTES,
            max_total_scalar_bytes: 2 * MAX_BYTES,
        },
        alias_limits: alias_limits! { max_total_replayed_events: MAX_REPEATED, max_replay_stack_depth: 16 },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        reject_unsupported_tags: true,
        emit_comments: false,
    }
}

/// Returns the byte at a line and column (both from 1, columns in characters).
fn byte_of(text: &str, place: Location) -> usize {
    let line = usize::try_from(place.line()).unwrap_or(0).saturating_sub(1);
    let column = usize::try_from(place.column()).unwrap_or(0).saturating_sub(1);
    let mut start = 0;
    for _ in 0..line {
        match text.get(start..).and_then(|rest| rest.find('\n')) {
            Some(end) => start += end + 1,
            None => return text.len(),
        }
    }
    let rest = text.get(start..).unwrap_or_default();
    let rest = rest.split('\n').next().unwrap_or_default();
    start + rest.char_indices().nth(column).map_or(rest.len(), |(at, _)| at)
}

fn span_of(place: Location) -> Range<usize> {
    let bytes = |count: Option<u64>| count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    let start = bytes(place.span().byte_offset());
    start..start.saturating_add(bytes(place.span().byte_len()))
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Data>::deserialize(deserializer)?;
        Ok(Self { source: 0, span: span_of(spanned.defined), data: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DataVisitor)
    }
}

struct DataVisitor;

impl<'de> de::Visitor<'de> for DataVisitor {
    type Value = Data;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Data, E> {
        Ok(Data::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Data, E> {
        Ok(Data::Bool(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Data, E> {
        Ok(Data::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Data, E> {
        Ok(Data::Number(number.into()))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Data, E> {
        Number::from_f64(number).map(Data::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Data, E> {
        Ok(Data::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Data, E> {
        Ok(Data::Text(text))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut access: A) -> Result<Data, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Data::List(items))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut access: A) -> Result<Data, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let key = Key { span: span_of(key.defined), name: key.value };
            entries.push((key, access.next_value()?));
        }
        Ok(Data::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice<'a>(text: &'a str, span: &Range<usize>) -> &'a str {
        &text[span.clone()]
    }

    #[test]
    fn keys_and_scalars_know_their_bytes() {
        let text = "é: 1\nlist: [x, 'y z']\nmap:\n  inner: |\n    a\n    b\n";
        let node = Node::parse(text, 3).unwrap();
        let (key, value) = node.get("é").unwrap();
        assert_eq!((slice(text, &key.span), slice(text, &value.span), value.source), ("é", "1", 3));
        let (_, list) = node.get("list").unwrap();
        let Data::List(items) = &list.data else { panic!("{list:?}") };
        assert_eq!(slice(text, &items[1].span), "'y z'");
        let (_, inner) = node.get("map").unwrap().1.get("inner").unwrap();
        assert_eq!(inner.data, Data::Text("a\nb\n".to_owned()));
        assert!(slice(text, &inner.span).contains('|') || slice(text, &inner.span).contains('a'), "{:?}", inner.span);
    }

    #[test]
    fn words_that_older_yaml_took_for_booleans_are_text() {
        let node = Node::parse("a: yes\nb: no\nc: on\nd: 010\ne: 1_000\nf: true\ng: 0x10", 0).unwrap();
        assert_eq!(
            node.to_json(),
            serde_json::json!({"a": "yes", "b": "no", "c": "on", "d": "010", "e": "1_000", "f": true, "g": 16})
        );
    }

    #[test]
    fn only_the_keys_of_an_unreadable_text_are_shown() {
        for (text, shown) in [
            ("secret: @hunter2\n", "secret: ********\n"),
            ("  - {secret: hunter2, more: x}\n", "  - {secret: ***************"),
            ("keys:\n  - hunter2\n", "keys:\n  - *******\n"),
            ("a: [\n\tb: é\r\n", "a: *\n\tb: ***\n"),
            ("user:hunter2", "************"),
            (": hunter2", "*********"),
            ("hunter2, b: c", "*************"),
            ("\"hunter2\": c", "************"),
            ("-----BEGIN KEY-----\nabc=\n", "-----**************\n****\n"),
            ("last:", "*****"),
            ("", ""),
        ] {
            let masked = keys_alone(text);
            assert!(masked.starts_with(shown) && masked.len() == text.len(), "{text:?}: {masked:?}");
            assert!(!masked.contains("hunter2"), "{masked:?}");
        }
    }

    #[test]
    fn every_repeated_key_is_found() {
        let text = "a: 1\nb:\n  - c: 1\n    c: 2\na: 3\na: 4\n";
        let node = Node::parse(text, 0).unwrap();
        let starts: Vec<usize> = node.repeated_keys().iter().map(|found| found.key.span.start).collect();
        assert_eq!(starts, [21, 26, 31]);
        let lost: Vec<_> = node.repeated_keys().iter().map(|found| found.lost.to_json()).collect();
        assert_eq!(lost, [1, 1, 3]);
        assert_eq!(node.to_json()["a"], 4);
    }

    #[test]
    fn anything_but_a_single_plain_document_is_refused_at_the_line_at_fault() {
        let deep = "[".repeat(1000);
        let many = format!("a: &x 1\nb: [{}]", "*x,".repeat(MAX_ALIASES + 1));
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                    d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n";
        for (text, start, message) in [
            ("a: 1\n---\nb: 2", Some(9), "more than one YAML document"),
            ("a: [", Some(3), "unclosed bracket"),
            ("a:\n\t- b", Some(4), "a tab where YAML allows only spaces"),
            ("a: &x {b: 1}\nc:\n  <<: *x", None, "merge keys"),
            ("a: !secret b", None, "tag"),
            ("a: *nowhere", None, "anchor"),
            ("a: .inf", Some(3), "not finite"),
            ("? [a]\n: b", Some(2), "string"),
            (deep.as_str(), None, "48 levels"),
            (bomb, None, "aliases"),
            (many.as_str(), None, "1000 aliases"),
        ] {
            let malformed = Node::parse(text, 0).unwrap_err();
            assert!(malformed.message.contains(message), "{text:.40}: {malformed:?}");
            assert!(!malformed.message.contains("at line"), "{malformed:?}");
            if let Some(start) = start {
                assert_eq!(malformed.span.start, start, "{text:.40}: {malformed:?}");
            }
        }
        let help = Node::parse(&many, 0).unwrap_err().help;
        assert!(help.is_some_and(|help| help.contains("write out what aliases")), "{help:?}");
    }
}
