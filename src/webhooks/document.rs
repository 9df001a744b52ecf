//! A strict JSON reader that checks a whole body and extracts a few wanted values.
//!
//! The text is read in a single pass. Duplicate names in an object, invalid UTF-8, nesting beyond serde_json's 128
//! levels and trailing bytes are refused, because two parsers could read two different bodies from them. Only the
//! wanted scalars are kept, so no tree is built of a body of 26 MiB.

use std::{borrow::Cow, collections::HashSet, fmt, str};

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor},
};

use crate::pointer::unescape;

/// The form field that contains a document of its own, as in Slack's forms.
const DOCUMENT: &str = "payload";

/// The token of a pointer that stands for the element of a list.
const ELEMENT: &str = "*";

/// The longest text that is kept, in bytes. Names of repositories and branches are far shorter.
pub(super) const MAX_TEXT: usize = 1024;

/// A value at a wanted place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Null,
    Bool(bool),
    /// A non-negative whole number.
    Number(u64),
    /// A negative whole number.
    Negative(i64),
    Text(String),
    /// A list with this many elements.
    List(usize),
    /// A text longer than [`MAX_TEXT`].
    LongText,
    /// Any other value: an object, a fraction.
    Other,
}

/// The wanted places of a document, as JSON pointers (RFC 6901). Array indices are not supported, but `*` is the
/// element of a list that has only one: of several, none is preferred.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    root: Node,
    places: usize,
}

#[derive(Clone, Debug, Default)]
struct Node {
    place: Option<usize>,
    children: Vec<(Box<str>, Self)>,
}

/// The place of a wanted value within [`Values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(usize);

/// The values that were found, by place.
#[derive(Debug)]
pub(super) struct Values(Vec<Option<Found>>);

/// Why a body cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the body cannot be read unambiguously: {0}")]
pub(super) struct NotStrict(#[from] serde_json::Error);

impl Wanted {
    /// Adds a pointer such as `/repository/id`. It must begin with `/`.
    pub(super) fn add(&mut self, pointer: &str) -> Place {
        let mut node = &mut self.root;
        for name in pointer.split('/').skip(1) {
            let name = unescape(name);
            let position = node.children.iter().position(|(known, _)| **known == *name);
            let position = position.unwrap_or_else(|| {
                node.children.push((name.into(), Node::default()));
                node.children.len() - 1
            });
            let Some((_, child)) = node.children.get_mut(position) else { break };
            node = child;
        }
        let place = *node.place.get_or_insert_with(|| {
            self.places += 1;
            self.places - 1
        });
        Place(place)
    }

    /// Reads a form (`application/x-www-form-urlencoded`). Each field is a member with a text, except the one that
    /// contains a document. A repeated field is refused.
    pub(super) fn read_form(&self, body: &[u8]) -> Result<Values, NotStrict> {
        let mut values = Values(vec![None; self.places]);
        let mut names = HashSet::new();
        if is_read_in_part(body) {
            return Err(serde_json::Error::custom(
                "a field has a bare `;` or a `%` without two digits, and other readers drop it",
            )
            .into());
        }
        for (name, text) in url::form_urlencoded::parse(body) {
            // Invalid UTF-8 was replaced by this character, so two different texts could look the same.
            if name.contains('\u{fffd}') || text.contains('\u{fffd}') {
                return Err(serde_json::Error::custom("it is not UTF-8").into());
            }
            match self.root.member(&name) {
                Some(node) if name == DOCUMENT => node.read(&text, &mut values)?,
                node => {
                    if let Some(slot) = node.and_then(|node| values.0.get_mut(node.place?)) {
                        *slot = Some(kept(&text));
                    }
                }
            }
            if !names.insert(name) {
                return Err(serde_json::Error::custom("a field is repeated").into());
            }
        }
        Ok(values)
    }

    pub(super) fn read(&self, body: &[u8]) -> Result<Values, NotStrict> {
        // Once for the whole body instead of once per text.
        let body = str::from_utf8(body).map_err(|_| serde_json::Error::custom("it is not UTF-8"))?;
        let mut values = Values(vec![None; self.places]);
        self.root.read(body, &mut values)?;
        Ok(values)
    }
}

/// Whether a form has pairs that Go's `url.ParseQuery`, which Tekton uses, drops.
fn is_read_in_part(form: &[u8]) -> bool {
    let is_escape = |after: &[u8]| matches!(after, [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
    form.contains(&b';') || !form.split(|byte| *byte == b'%').skip(1).all(is_escape)
}

impl Node {
    /// Reads the wanted values of a document into `values`.
    fn read(&self, document: &str, values: &mut Values) -> Result<(), NotStrict> {
        let mut names = Vec::new();
        let mut text = serde_json::Deserializer::from_str(document);
        Walk { node: Some(self), values, names: &mut names, root: true }.deserialize(&mut text)?;
        Ok(text.end()?)
    }

    /// The node of a member of an object. A member that is called like the element of a list is never wanted.
    fn member(&self, name: &str) -> Option<&Self> {
        if name == ELEMENT { None } else { self.child(name) }
    }

    fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|(known, _)| **known == *name).map(|(_, child)| child)
    }

    fn forget(&self, values: &mut Values) {
        if let Some(slot) = self.place.and_then(|place| values.0.get_mut(place)) {
            *slot = None;
        }
        self.children.iter().for_each(|(_, child)| child.forget(values));
    }
}

fn kept(text: &str) -> Found {
    if text.len() > MAX_TEXT { Found::LongText } else { Found::Text(text.to_owned()) }
}

impl Values {
    pub(super) fn get(&self, place: Place) -> Option<&Found> {
        self.0.get(place.0).and_then(Option::as_ref)
    }
}

struct Walk<'a, 'de> {
    node: Option<&'a Node>,
    values: &'a mut Values,
    /// The names seen so far in this object and in those around it.
    names: &'a mut Vec<Cow<'de, str>>,
    root: bool,
}

impl Walk<'_, '_> {
    fn keep(self, found: impl FnOnce() -> Found) {
        let slot = self.node.and_then(|node| node.place).and_then(|place| self.values.0.get_mut(place));
        if let Some(slot) = slot {
            *slot = Some(found());
        }
    }

    fn scalar<E: serde::de::Error>(self, found: impl FnOnce() -> Found) -> Result<(), E> {
        if self.root {
            return Err(E::custom("it is not an object"));
        }
        self.keep(found);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.scalar(|| Found::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.scalar(|| Found::Bool(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.scalar(|| Found::Number(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.scalar(|| Found::Negative(value))
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        self.scalar(|| Found::Other)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.scalar(|| kept(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        if self.root {
            return Err(A::Error::custom("it is not an object"));
        }
        let only = self.node.and_then(|node| node.child(ELEMENT));
        let mut count = 0;
        loop {
            let node = only.filter(|_| count == 0);
            let item = Walk { node, values: self.values, names: self.names, root: false };
            if items.next_element_seed(item)?.is_none() {
                break;
            }
            count += 1;
        }
        if let Some(only) = only.filter(|_| count > 1) {
            only.forget(self.values);
        }
        self.keep(|| Found::List(count));
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let first = self.names.len();
        while let Some(Name(name)) = members.next_key()? {
            let child = self.node.and_then(|node| node.member(&name));
            self.names.push(name);
            members.next_value_seed(Walk { node: child, values: self.values, names: self.names, root: false })?;
        }
        let names = self.names.get_mut(first..).unwrap_or_default();
        names.sort_unstable();
        if names.windows(2).any(|pair| matches!(pair, [one, next] if one == next)) {
            return Err(A::Error::custom("an object has a name twice"));
        }
        self.names.truncate(first);
        self.keep(|| Found::Other);
        Ok(())
    }
}

/// A member's name, borrowed from the body unless it has escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pointer: &str, body: &[u8]) -> Result<Option<Found>, String> {
        let mut wanted = Wanted::default();
        let place = wanted.add(pointer);
        wanted.read(body).map(|values| values.get(place).cloned()).map_err(|error| error.to_string())
    }

    #[test]
    fn wanted_values_are_found() {
        for (pointer, body, found) in [
            ("/a/b", r#"{"x": [1, {"y": 2}], "a": {"b": 7}}"#, Some(Found::Number(7))),
            ("/a", r#"{"a": "t\u00e9xt"}"#, Some(Found::Text("téxt".into()))),
            ("/a", r#"{"\u0061": true}"#, Some(Found::Bool(true))),
            ("/a~1b", r#"{"a/b": null}"#, Some(Found::Null)),
            ("/a", r#"{"a": -1}"#, Some(Found::Negative(-1))),
            ("/a", r#"{"a": -1.5}"#, Some(Found::Other)),
            ("/a", r#"{"a": 18446744073709551616}"#, Some(Found::Other)),
            ("/a", r#"{"a": {"b": 1}}"#, Some(Found::Other)),
            ("/a", r#"{"b": {"a": 1}}"#, None),
            ("/a", r#"{"a": [1, 2]}"#, Some(Found::List(2))),
            ("/a/*/b", r#"{"a": [{"b": 1}]}"#, Some(Found::Number(1))),
            ("/a/*/b", r#"{"a": [{"b": 1}, {}]}"#, None),
            ("/a/*/b", r#"{"a": []}"#, None),
            ("/a/*/b", r#"{"a": {"*": {"b": 1}}}"#, None),
            ("/*/b", r#"{"*": {"b": 1}}"#, None),
            ("/a/0/b", r#"{"a": [{"b": 1}]}"#, None),
        ] {
            assert_eq!(read(pointer, body.as_bytes()).unwrap(), found, "{body}");
        }
    }

    #[test]
    fn documents_that_two_parsers_could_read_differently_are_refused() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        for body in [
            &br#"{"ref": 1, "ref": 2}"#[..],
            br#"{"ref": 1, "\u0072ef": 2}"#,
            br#"{"x": {"y": [{"z": 1, "z": 1}]}}"#,
            br#"[]"#,
            br#""text""#,
            br#"1"#,
            b"",
            b"{} {}",
            b"\xef\xbb\xbf{}",
            b"{\"a\": \"\xff\"}",
            b"{\"\xff\": 1}",
            br#"{"a": NaN}"#,
            br#"{"a": 1e999}"#,
            br#"{"a": "\ud800"}"#,
            br#"{"a": 1,}"#,
            deep.as_bytes(),
        ] {
            let shown = String::from_utf8_lossy(body.get(..40).unwrap_or(body)).into_owned();
            assert!(read("/a", body).is_err(), "{shown}");
        }
    }

    #[test]
    fn forms_are_read_as_strictly() {
        let mut wanted = Wanted::default();
        let (place, user) = (wanted.add("/command"), wanted.add("/payload/user/id"));
        let command = |body: &[u8]| wanted.read_form(body).map(|values| values.get(place).cloned());
        assert_eq!(command(b"a=1&command=%2Fdeploy+x").unwrap(), Some(Found::Text("/deploy x".into())));
        assert_eq!(command(b"a=1").unwrap(), None);
        let of_user = |body: &[u8]| wanted.read_form(body).map(|values| values.get(user).cloned());
        let long = format!("payload=%7B%22x%22%3A%22{}%22,%22user%22:%7B%22id%22:7%7D%7D", "x".repeat(MAX_TEXT));
        assert_eq!(of_user(long.as_bytes()).unwrap(), Some(Found::Number(7)));
        assert_eq!(of_user(b"a=1").unwrap(), None);
        for body in [
            &b"command=a&command=b"[..],
            b"a=1&%61=2",
            b"command=%ff",
            b"command=\xff",
            b"command=a;x=1",
            b"command=a%zz",
            b"command=a&x=%2",
            b"payload=x",
            b"payload=7",
            b"payload={\"user\":{\"id\":1},\"user\":{\"id\":2}}",
        ] {
            assert!(command(body).is_err(), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn long_bodies_are_walked_without_being_kept() {
        let body = format!(r#"{{"list": [{}0], "a": 5}}"#, "1,".repeat(1_000_000));
        assert_eq!(read("/a", body.as_bytes()).unwrap(), Some(Found::Number(5)));
        let body = format!(r#"{{"a": "{}"}}"#, "x".repeat(MAX_TEXT + 1));
        assert_eq!(read("/a", body.as_bytes()).unwrap(), Some(Found::LongText));
    }
}
