//! Strict parsing of the parameters of a query or a form, and encoding of those of a query.

use std::borrow::Cow;

use url::form_urlencoded;

/// The maximum number of parameters; no provider sends as many.
const MAX: usize = 32;

/// The parameters of a query, each at most once (RFC 6749 section 3.1).
#[derive(Debug)]
pub struct Parameters<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the parameter `{0}` is there more than once")]
    Twice(String),
    #[error("there are more than {MAX} parameters")]
    TooMany,
}

impl<'a> Parameters<'a> {
    pub fn parse(query: Option<&'a str>) -> Result<Self, Malformed> {
        let mut found: Vec<(Cow<'a, str>, Cow<'a, str>)> = Vec::new();
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            if found.iter().any(|(known, _)| *known == name) {
                return Err(Malformed::Twice(super::bounded(&name)));
            }
            if found.len() == MAX {
                return Err(Malformed::TooMany);
            }
            found.push((name, value));
        }
        Ok(Self(found))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_ref())
    }
}

/// Encodes a value for a query.
pub fn encode(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
