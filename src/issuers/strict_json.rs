//! Strict JSON for security decisions: one value, each member once, bounded depth.
//!
//! `serde_json` keeps the last of two members of the same name. If two parsers disagree about which one counts, a token
//! has two subjects (RFC 8725 section 2.6), so a repeated member is an error here, even if it is escaped.

use std::fmt;

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value, map::Entry};

/// The maximum nesting of objects and arrays. Tokens and provider documents in use stay below ten.
const MAX_DEPTH: u8 = 32;

/// Why a text was refused, without any part of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    #[error("is not valid JSON")]
    Syntax,
    #[error("has a member twice")]
    DuplicateMember,
    #[error("is nested too deep")]
    TooDeep,
    #[error("is not a JSON object")]
    NotAnObject,
}

/// Reads one JSON object and nothing after it.
pub fn object(text: &[u8]) -> Result<Map<String, Value>, JsonError> {
    // One check of the whole is faster than one per string.
    let text = str::from_utf8(text).map_err(|_| JsonError::Syntax)?;
    let mut failure = None;
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Strict { depth: MAX_DEPTH, failure: &mut failure }.deserialize(&mut reader);
    match (value, failure) {
        (_, Some(failure)) => Err(failure),
        (Err(_), None) => Err(JsonError::Syntax),
        (Ok(value), None) => {
            reader.end().map_err(|_| JsonError::Syntax)?;
            match value {
                Value::Object(members) => Ok(members),
                _ => Err(JsonError::NotAnObject),
            }
        }
    }
}

struct Strict<'f> {
    depth: u8,
    /// The typed error; the parser's own error is only a text.
    failure: &'f mut Option<JsonError>,
}

impl Strict<'_> {
    fn fail<E: de::Error>(&mut self, failure: JsonError) -> E {
        *self.failure = Some(failure);
        E::custom(failure)
    }

    fn below<E: de::Error>(&mut self) -> Result<u8, E> {
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(depth),
            None => Err(self.fail(JsonError::TooDeep)),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut sequence: A) -> Result<Value, A::Error> {
        let depth = self.below()?;
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element_seed(Strict { depth, failure: self.failure })? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        let depth = self.below()?;
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let Entry::Vacant(place) = members.entry(name) else {
                return Err(self.fail(JsonError::DuplicateMember));
            };
            place.insert(map.next_value_seed(Strict { depth, failure: self.failure })?);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_documents_equal_what_serde_json_reads() {
        for text in [r#"{}"#, r#"{"a":[1,-2,3.5,true,null,"x\u0041"],"b":{"a":{}}}"#, " {\"a\" : 1e3}\n"] {
            let expected: Value = serde_json::from_str(text).unwrap();
            assert_eq!(Value::Object(object(text.as_bytes()).unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn ambiguous_and_broken_texts_are_refused() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        for (text, why) in [
            (r#"{"sub":"a","sub":"b"}"#, JsonError::DuplicateMember),
            (r#"{"sub":"a","s\u0075b":"b"}"#, JsonError::DuplicateMember),
            (r#"{"x":{"a":1,"a":1}}"#, JsonError::DuplicateMember),
            (r#"{"x":[{"a":1,"a":1}]}"#, JsonError::DuplicateMember),
            (deep.as_str(), JsonError::TooDeep),
            ("[]", JsonError::NotAnObject),
            ("\"x\"", JsonError::NotAnObject),
            ("", JsonError::Syntax),
            ("{} {}", JsonError::Syntax),
            ("{}x", JsonError::Syntax),
            ("\u{feff}{}", JsonError::Syntax),
            (r#"{"exp":NaN}"#, JsonError::Syntax),
        ] {
            assert_eq!(object(text.as_bytes()), Err(why), "{}", &text[..text.len().min(40)]);
        }
        assert_eq!(object(b"{\"a\":\"\xff\"}"), Err(JsonError::Syntax));
    }
}
