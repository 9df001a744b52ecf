//! The configuration in force as YAML, each value that somebody set with a comment that tells who.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    diagnosis::line_and_column,
    load::Loaded,
    locations::Place,
    report::At,
    source::{Data, Node},
};

const HEAD: &str = "\
# The configuration in force. What has no comment is a default; what is left out is not set,
# and the schema tells what comes in its place.
# Secrets are named by their sources; what they contain is never printed.
";

impl Loaded {
    /// The configuration in force, defaults included, with the origin of each value that is not one.
    pub fn to_yaml(&self) -> Result<String, serde_saphyr::ser::Error> {
        let yaml = serde_saphyr::to_string(&self.raw)?;
        // What was just printed can be read; should it not, it is still true without comments.
        let Ok(tree) = Node::parse(&yaml, 0) else { return Ok(yaml) };
        let mut notes = Notes { loaded: self, yaml: &yaml, origins: BTreeMap::new(), unset: BTreeSet::new() };
        notes.collect(&tree, &At::root());

        let mut text = HEAD.to_owned();
        for (index, line) in yaml.lines().enumerate() {
            let number = index + 1;
            if notes.unset.contains(&number) {
                continue;
            }
            text.push_str(line);
            if let Some(origin) = notes.origins.get(&number) {
                text.push_str("  # ");
                text.push_str(origin);
            }
            text.push('\n');
        }
        Ok(text)
    }

    /// `doorward.yaml:12`, `environment variable DOORWARD_WORKERS`; nothing for a default.
    fn origin(&self, at: &At) -> Option<String> {
        Some(match self.locations.written(at)? {
            Place::Given(giver) => giver.to_string(),
            Place::WholeFile { file } => self.locations.files().get(file)?.path.display().to_string(),
            Place::File { file, span } => {
                let source = self.locations.files().get(file)?;
                format!("{}:{}", source.path.display(), line_and_column(&source.text, span.start).0)
            }
        })
    }
}

struct Notes<'a> {
    loaded: &'a Loaded,
    yaml: &'a str,
    /// By line.
    origins: BTreeMap<usize, String>,
    /// Lines of values that are null.
    unset: BTreeSet<usize>,
}

impl Notes<'_> {
    fn collect(&mut self, node: &Node, at: &At) {
        match &node.data {
            Data::Map(entries) => {
                let empty = entries.iter().all(|(_, value)| value.data == Data::Null);
                for (key, value) in entries {
                    let (line, column) = line_and_column(self.yaml, key.span.start);
                    let at = at.key(&key.name);
                    if value.data == Data::Null && !empty && self.is_alone(line, column) {
                        self.unset.insert(line);
                    } else if is_leaf(value) {
                        self.note(line, &at, value);
                    } else {
                        self.collect(value, &at);
                    }
                }
            }
            Data::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.collect(item, &at.index(index));
                }
            }
            _ => {}
        }
    }

    fn note(&mut self, line: usize, at: &At, value: &Node) {
        // A comment within a block scalar would be part of it.
        let block = matches!(&value.data, Data::Text(text) if text.contains('\n'));
        if let Some(origin) = self.loaded.origin(at).filter(|_| !block) {
            self.origins.insert(line, origin);
        }
    }

    /// Whether nothing but indentation stands before a key, no dash of a list.
    fn is_alone(&self, line: usize, column: usize) -> bool {
        let text = self.yaml.lines().nth(line - 1).unwrap_or_default();
        text.chars().take(column - 1).all(|c| c == ' ')
    }
}

/// A value that one comment is enough for: a scalar, or a list of scalars.
fn is_leaf(node: &Node) -> bool {
    match &node.data {
        Data::Map(entries) => entries.is_empty(),
        Data::List(items) => items.iter().all(|item| !matches!(item.data, Data::Map(_) | Data::List(_))),
        _ => true,
    }
}
