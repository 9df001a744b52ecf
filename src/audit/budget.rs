//! The share of a line that each field may take. Every field has a full budget and a least one. A line that is longer
//! than [`MAX_LINE`](super::MAX_LINE) is written again with one more field on its least budget, in the order of
//! [`Field`]; the least budgets together fit, so this terminates.

use serde::Serialize;
use serde_json::Value;

/// A field that can be cut, in the order in which they are. `truncated` in a line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Field {
    UserAgent,
    Claims,
    Detail,
    Shadow,
    Grants,
    Webhook,
    Extras,
    Scopes,
    KubernetesGroups,
    Groups,
    Path,
    Problems,
    Deliveries,
    Kubernetes,
    Run,
    /// Those whose revocation ends a token, and the tokens whose revocation does.
    Parties,
    /// All other text: names, ids and subjects. Cut last, as it identifies the caller and the object.
    Names,
}

impl Field {
    pub(super) const ALL: [Self; 17] = [
        Self::UserAgent,
        Self::Claims,
        Self::Detail,
        Self::Shadow,
        Self::Grants,
        Self::Webhook,
        Self::Extras,
        Self::Scopes,
        Self::KubernetesGroups,
        Self::Groups,
        Self::Path,
        Self::Problems,
        Self::Deliveries,
        Self::Kubernetes,
        Self::Run,
        Self::Parties,
        Self::Names,
    ];

    /// Returns the full budget in bytes of JSON: for each single text, and for all entries of a list together.
    const fn full(self) -> usize {
        match self {
            Self::UserAgent | Self::Webhook | Self::Kubernetes | Self::Names => 512,
            Self::Detail => 1024,
            Self::Shadow | Self::Grants | Self::Extras | Self::Run => 2048,
            Self::Parties => 4096,
            Self::Claims | Self::Scopes | Self::KubernetesGroups | Self::Path | Self::Deliveries => 8192,
            Self::Groups | Self::Problems => 12_288,
        }
    }

    const fn least(self) -> usize {
        match self {
            Self::UserAgent | Self::Claims | Self::Shadow | Self::Grants | Self::Extras => 0,
            Self::Webhook => 64,
            Self::Detail => 128,
            Self::Names => 160,
            Self::Kubernetes | Self::Run => 256,
            Self::Parties => 512,
            Self::Scopes | Self::KubernetesGroups => 1024,
            Self::Groups | Self::Path | Self::Problems | Self::Deliveries => 2048,
        }
    }
}

/// The budgets of one attempt, and which fields it cut.
#[derive(Debug)]
pub(super) struct Budget {
    /// Fields before this one are on their least budget.
    level: usize,
    cut: Cut,
}

/// Which fields were cut.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cut(u32);

impl Budget {
    pub(super) const fn new(level: usize) -> Self {
        Self { level, cut: Cut(0) }
    }

    /// Whether every field has its full budget.
    pub(super) const fn is_full(&self) -> bool {
        self.level == 0
    }

    pub(super) const fn cut(&self) -> Cut {
        self.cut
    }

    /// Adds fields that were cut elsewhere.
    pub(super) const fn add(&mut self, cut: Cut) {
        self.cut.0 |= cut.0;
    }

    /// Returns as much of the beginning of `text` as fits.
    pub(super) fn text<'a>(&mut self, field: Field, text: &'a str) -> &'a str {
        let room = self.room(field);
        if longest(text) <= room {
            return text;
        }
        let mut used = 0;
        for (at, c) in text.char_indices() {
            used += escaped_len(c);
            if used > room {
                self.mark(field);
                return text.get(..at).unwrap_or_default();
            }
        }
        text
    }

    pub(super) fn optional<'a>(&mut self, field: Field, text: Option<&'a str>) -> Option<&'a str> {
        text.map(|text| self.text(field, text))
    }

    /// Returns as many of the first entries as fit.
    pub(super) fn list<'a, T: AsRef<str>>(&mut self, field: Field, entries: &'a [T]) -> &'a [T] {
        if entries.iter().map(|entry| longest(entry.as_ref())).sum::<usize>() <= self.room(field) {
            return entries;
        }
        let taken = self.take(field, entries.iter().map(|entry| text_len(entry.as_ref())));
        entries.get(..taken).unwrap_or_default()
    }

    /// Returns as many of the first pairs as fit.
    pub(super) fn pairs<'a, 'p>(&mut self, field: Field, pairs: &'a [(&'p str, &'p str)]) -> &'a [(&'p str, &'p str)] {
        if pairs.iter().map(|(key, value)| longest(key) + longest(value) + 2).sum::<usize>() <= self.room(field) {
            return pairs;
        }
        let taken = self.take(field, pairs.iter().map(|(key, value)| text_len(key) + text_len(value) + 1));
        pairs.get(..taken).unwrap_or_default()
    }

    /// Drops the values that do not fit, and keeps all others.
    pub(super) fn values(&mut self, field: Field, values: &mut Vec<(&str, &Value)>) {
        let mut left = self.room(field);
        let before = values.len();
        values.retain(|(name, value)| {
            let size = value_len(value, left).map(|size| size + text_len(name) + 2);
            match size.and_then(|size| left.checked_sub(size)) {
                Some(rest) => {
                    left = rest;
                    true
                }
                None => false,
            }
        });
        if values.len() < before {
            self.mark(field);
        }
    }

    /// The fields that were cut.
    pub(super) fn truncated(&self) -> impl Iterator<Item = Field> {
        Field::ALL.into_iter().filter(|field| self.cut.0 & (1 << *field as u32) != 0)
    }

    fn take(&mut self, field: Field, sizes: impl Iterator<Item = usize>) -> usize {
        let room = self.room(field);
        let mut used = 0;
        let mut taken = 0;
        for size in sizes {
            used += size + 1;
            if used > room {
                self.mark(field);
                break;
            }
            taken += 1;
        }
        taken
    }

    fn room(&self, field: Field) -> usize {
        if (field as usize) < self.level { field.least() } else { field.full() }
    }

    fn mark(&mut self, field: Field) {
        self.cut.0 |= 1 << field as u32;
    }
}

/// Returns the length of a character in a JSON string, as serde_json writes it.
const fn escaped_len(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        _ => c.len_utf8(),
    }
}

/// Returns an upper bound for the length of a text in JSON with a comma, without reading it: no byte becomes longer
/// than six.
const fn longest(text: &str) -> usize {
    6 * text.len() + 3
}

fn text_len(text: &str) -> usize {
    text.chars().map(escaped_len).sum::<usize>() + 2
}

/// Returns the length of a value in JSON, or none if it exceeds `limit`.
fn value_len(value: &Value, limit: usize) -> Option<usize> {
    let size = match value {
        Value::Null | Value::Bool(true) => 4,
        Value::Bool(false) => 5,
        Value::Number(number) => number.to_string().len(),
        Value::String(text) if text.len() > limit => return None,
        Value::String(text) => text_len(text),
        Value::Array(entries) => {
            let mut size = 2;
            for entry in entries {
                size += value_len(entry, limit.checked_sub(size)?)? + 1;
            }
            size
        }
        Value::Object(entries) => {
            let mut size = 2;
            for (name, entry) in entries {
                size += text_len(name) + value_len(entry, limit.checked_sub(size)?)? + 2;
            }
            size
        }
    };
    (size <= limit).then_some(size)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lengths_are_those_that_serde_json_writes() {
        for text in ["", "plain", "q\"b\\", "\n\r\t\u{8}\u{c}", "\0\u{1b}\u{7f}", "Jürgen 🚪"] {
            assert_eq!(text_len(text), serde_json::to_string(text).unwrap().len(), "{text:?}");
        }
        let value = json!({"a": [1, -2.5, true, false, null], "b\n": {"c": "d"}});
        let written = serde_json::to_string(&value).unwrap().len();
        let counted = value_len(&value, 1000).unwrap();
        assert!((written..written + 4).contains(&counted), "{counted} for {written}");
        assert_eq!(value_len(&value, 20), None);
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        let mut budget = Budget::new(Field::ALL.len());
        let text = "🚪".repeat(100);
        assert_eq!(budget.text(Field::Names, &text).len(), 160);
        assert_eq!(budget.text(Field::Webhook, "\u{1}\u{1}").len(), 2);
        assert_eq!(budget.truncated().collect::<Vec<_>>(), [Field::Names]);
    }
}
