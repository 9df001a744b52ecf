//! Writes a JSON object member by member into a buffer, so that a line is built without an intermediate value.
//! serde_json writes all values except texts that need no escaping.

use std::sync::Arc;

use serde::Serialize;

use super::chain::push_hex;

/// An object that is being written. Its parent closes it; the seal of the line closes the outermost one.
#[derive(Debug)]
pub(super) struct Object<'a> {
    out: &'a mut Vec<u8>,
    empty: bool,
}

impl<'a> Object<'a> {
    pub(super) fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self::open(out)
    }

    /// Starts an object whose opening brace the caller writes.
    pub(super) fn open(out: &'a mut Vec<u8>) -> Self {
        Self { out, empty: true }
    }

    /// Writes a member. `name` needs no escaping.
    pub(super) fn field(&mut self, name: &'static str, value: impl Serialize) -> &mut Self {
        self.name(name);
        self.value(&value);
        self
    }

    /// Writes a member if there is a value.
    pub(super) fn some(&mut self, name: &'static str, value: Option<impl Serialize>) -> &mut Self {
        if let Some(value) = value {
            self.field(name, value);
        }
        self
    }

    /// Writes a text.
    pub(super) fn text(&mut self, name: &'static str, value: &str) -> &mut Self {
        self.name(name);
        self.text_value(value);
        self
    }

    /// Writes a text if there is one.
    pub(super) fn some_text(&mut self, name: &'static str, value: Option<&str>) -> &mut Self {
        if let Some(value) = value {
            self.text(name, value);
        }
        self
    }

    /// Writes members that are JSON already.
    pub(super) fn members(&mut self, json: &[u8]) -> &mut Self {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
        self.out.extend_from_slice(json);
        self
    }

    /// Writes a list if it is not empty.
    pub(super) fn list(&mut self, name: &'static str, entries: &[Arc<str>]) -> &mut Self {
        if entries.is_empty() {
            return self;
        }
        self.entries(name, entries, |object, entry| object.text_value(entry))
    }

    /// Writes a list that is empty.
    pub(super) fn empty_list(&mut self, name: &'static str) -> &mut Self {
        self.field(name, [(); 0])
    }

    /// Writes a list of pairs, each a list of two, if it is not empty.
    pub(super) fn pairs(&mut self, name: &'static str, pairs: &[(&str, &str)]) -> &mut Self {
        if pairs.is_empty() {
            return self;
        }
        self.entries(name, pairs, |object, (key, value)| object.value(&[*key, *value]))
    }

    pub(super) fn hex(&mut self, name: &'static str, bytes: &[u8]) -> &mut Self {
        self.name(name);
        self.out.push(b'"');
        push_hex(bytes, self.out);
        self.out.push(b'"');
        self
    }

    /// Writes a member that is itself an object.
    pub(super) fn object(&mut self, name: &'static str, write: impl FnOnce(&mut Object<'_>)) -> &mut Self {
        self.name(name);
        write(&mut Object::begin(self.out));
        self.out.push(b'}');
        self
    }

    /// Writes a list of one object, the form of several OCSF attributes.
    pub(super) fn objects(&mut self, name: &'static str, write: impl FnOnce(&mut Object<'_>)) -> &mut Self {
        self.name(name);
        self.out.push(b'[');
        write(&mut Object::begin(self.out));
        self.out.extend_from_slice(b"}]");
        self
    }

    fn entries<T>(&mut self, name: &'static str, entries: &[T], write: impl Fn(&mut Self, &T)) -> &mut Self {
        self.name(name);
        let mut separator = b'[';
        for entry in entries {
            self.out.push(separator);
            write(self, entry);
            separator = b',';
        }
        self.out.push(b']');
        self
    }

    fn name(&mut self, name: &'static str) {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// Writes a text. Most need no escaping, and testing a whole text at once is faster than byte by byte.
    fn text_value(&mut self, text: &str) {
        let plain = text.bytes().fold(true, |plain, byte| plain & (byte >= b' ') & (byte != b'"') & (byte != b'\\'));
        if plain {
            self.out.push(b'"');
            self.out.extend_from_slice(text.as_bytes());
            self.out.push(b'"');
        } else {
            self.value(text);
        }
    }

    fn value<T: Serialize + ?Sized>(&mut self, value: &T) {
        let start = self.out.len();
        // Writing to a buffer cannot fail, so only a map with keys that are not strings could fail here.
        if serde_json::to_writer(&mut *self.out, value).is_err() {
            self.out.truncate(start);
            self.out.extend_from_slice(b"null");
        }
    }
}
