//! The configuration in force as YAML, with a comment on the origin of each value that somebody set.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    diagnosis::Lines,
    load::Loaded,
    locations::Location,
    raw,
    report::At,
    schema::{self, schema},
    source::{Data, Key, Node},
};
use crate::terminal;

const HEAD: &str = "\
# The configuration in force. Values without a comment are defaults; settings that are left out have no value.
# Secrets are named by their sources; what they contain is never printed.
";

/// The list is a comment, as `policies` would cause the parts below to be read a second time.
const POLICIES: &str = "# With the grants, rules and tests of these files, which `policies` lists:\n";

impl Loaded {
    /// Returns the configuration in force, with the origin of each value that is not a default. `fill` adds the
    /// defaults that depend on other settings.
    pub fn to_yaml(&self, fill: impl FnOnce(&mut raw::Root)) -> Result<String, serde_saphyr::ser::Error> {
        let mut effective = self.raw.clone();
        fill(&mut effective);
        effective.policies.clear();
        let yaml = serde_saphyr::to_string(&effective)?;
        // The YAML that was just printed can be parsed; if it ever cannot, it is still correct without comments.
        let Ok(tree) = Node::parse(&yaml, 0) else { return Ok(yaml) };
        let root = schema();
        let mut notes = Notes {
            loaded: self,
            files: self.locations.files().iter().map(|file| Lines::new(&file.text)).collect(),
            schema: &root,
            yaml: Lines::new(&yaml),
            notes: BTreeMap::new(),
            unset: BTreeMap::new(),
            emptied: BTreeSet::new(),
        };
        notes.collect(&tree, &At::root(), Some(&root));

        let mut text = HEAD.to_owned();
        if !self.raw.policies.is_empty() {
            text.push_str(POLICIES);
            self.raw.policies.iter().for_each(|path| text.push_str(&format!("#   {path:?}\n")));
        }
        for (index, line) in yaml.lines().enumerate() {
            let number = index + 1;
            match notes.unset.get(&number) {
                Some(None) => continue,
                Some(Some(note)) => {
                    let indent = line.len() - line.trim_start().len();
                    let (indent, key) = line.split_at(indent);
                    let key = key.split(':').next().unwrap_or_default();
                    text.push_str(&format!("{indent}# {key} is not set. {note}"));
                }
                None => text.push_str(line),
            }
            if notes.emptied.contains(&number) {
                text.push_str(" {}");
            }
            if let Some(note) = notes.notes.get(&number) {
                text.push_str("  # ");
                text.push_str(note);
            }
            text.push('\n');
        }
        Ok(text)
    }
}

struct Notes<'a> {
    loaded: &'a Loaded,
    /// The lines of the files that it was read from.
    files: Vec<Lines<'a>>,
    schema: &'a Value,
    /// The lines of the output.
    yaml: Lines<'a>,
    /// The comments to append, by line.
    notes: BTreeMap<usize, String>,
    /// Lines of values that are null, with the text on what applies then.
    unset: BTreeMap<usize, Option<String>>,
    /// Lines of the keys of sections in which nothing is set: a key without a value could not be read again.
    emptied: BTreeSet<usize>,
}

impl Notes<'_> {
    fn collect(&mut self, node: &Node, at: &At, schema: Option<&Value>) {
        match &node.data {
            Data::Map(entries) => {
                for (key, value) in entries {
                    let line = self.yaml.number(key.span.start);
                    let at = at.key(&key.name);
                    let schema = setting(self.schema, schema, key);
                    // Keys that a test case leaves out are not explained.
                    let default = schema.filter(|_| !at.is_within(&At::root().key("tests")));
                    let default = default.and_then(schema::default_told);
                    if at == At::root().key("policies") && !self.loaded.raw.policies.is_empty() {
                        self.unset.insert(line, None);
                    } else if value.data == Data::Null && schema.is_some() && self.is_alone(key) {
                        self.unset.insert(line, default);
                    } else if is_leaf(value) {
                        self.note(line, &at, value, default);
                    } else {
                        if self.is_unset(value, schema) {
                            self.emptied.insert(line);
                            self.note(line, &at, value, None);
                        }
                        self.collect(value, &at, schema);
                    }
                }
            }
            Data::List(items) => {
                let schema = schema.and_then(|schema| schema::items(self.schema, schema));
                for (index, item) in items.iter().enumerate() {
                    self.collect(item, &at.index(index), schema);
                }
            }
            _ => {}
        }
    }

    fn note(&mut self, line: usize, at: &At, value: &Node, default: Option<String>) {
        let says_nothing = match &value.data {
            Data::Null => true,
            Data::List(items) => items.is_empty(),
            Data::Map(entries) => entries.is_empty(),
            _ => false,
        };
        if let Some(note) = self.origin(at).or_else(|| default.filter(|_| says_nothing)) {
            self.notes.insert(line, note);
        }
    }

    /// Whether none of the settings of a section is set.
    fn is_unset(&self, section: &Node, schema: Option<&Value>) -> bool {
        let Data::Map(entries) = &section.data else { return false };
        entries.iter().all(|(key, value)| value.data == Data::Null && setting(self.schema, schema, key).is_some())
    }

    /// Whether a key is preceded by indentation only, and not by the dash of a list item.
    fn is_alone(&self, key: &Key) -> bool {
        self.yaml.before(key.span.start).chars().all(|c| c == ' ')
    }

    /// Returns the origin, such as `doorward.yaml:12` or `environment variable DOORWARD_WORKERS`; `None` for a default.
    fn origin(&self, at: &At) -> Option<String> {
        let locations = &self.loaded.locations;
        let path = |file: usize| Some(locations.files().get(file)?.path.display());
        let origin = match locations.written(at)? {
            Location::Given(giver) => giver.to_string(),
            Location::WholeFile { file } => path(file)?.to_string(),
            Location::File { file, span } => format!("{}:{}", path(file)?, self.files.get(file)?.number(span.start)),
        };
        // A line break in the name of a file would end the comment.
        Some(terminal::line(&origin))
    }
}

/// Returns the schema of the value of a key, if it is a setting: in a claim or a body null is a value.
fn setting<'s>(root: &'s Value, schema: Option<&'s Value>, key: &Key) -> Option<&'s Value> {
    schema::property(root, schema?, &key.name)
}

/// Whether one comment is enough for a value: a scalar, or a list of scalars.
fn is_leaf(node: &Node) -> bool {
    match &node.data {
        Data::Map(entries) => entries.is_empty(),
        Data::List(items) => items.iter().all(|item| !matches!(item.data, Data::Map(_) | Data::List(_))),
        _ => true,
    }
}

#[cfg(test)]
mod tests;
