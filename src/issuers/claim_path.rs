//! Paths to a value in a set of claims.

use serde_json::{Map, Value};

/// The name of a claim, or a JSON pointer (RFC 6901) into one. Names may have `:` and `/`, like namespaced claims; a
/// path that begins with `/` is a pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPath {
    text: Box<str>,
    first: Box<str>,
    rest: Box<[Box<str>]>,
}

impl ClaimPath {
    /// Parses a path. The error completes a sentence about the text.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("is empty");
        }
        let Some(pointer) = text.strip_prefix('/') else {
            return Ok(Self { text: text.into(), first: text.into(), rest: Box::default() });
        };
        let mut steps = pointer.split('/').map(unescape);
        let first = steps.next().unwrap_or(Err("is empty"))?;
        let rest = steps.collect::<Result<_, _>>()?;
        if first.is_empty() {
            return Err("names no claim");
        }
        Ok(Self { text: text.into(), first, rest })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name of the claim that the path leads into.
    pub fn claim(&self) -> &str {
        &self.first
    }

    pub fn find<'c>(&self, claims: &'c Map<String, Value>) -> Option<&'c Value> {
        let start = claims.get(&*self.first)?;
        self.rest.iter().try_fold(start, |value, step| match value {
            Value::Object(members) => members.get(&**step),
            Value::Array(values) => values.get(step.parse::<usize>().ok()?),
            _ => None,
        })
    }
}

fn unescape(step: &str) -> Result<Box<str>, &'static str> {
    let mut text = String::with_capacity(step.len());
    let mut chars = step.chars();
    while let Some(c) = chars.next() {
        text.push(match c {
            '~' => match chars.next() {
                Some('0') => '~',
                Some('1') => '/',
                _ => return Err("has a `~` that is neither `~0` nor `~1`"),
            },
            c => c,
        });
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_and_pointers() {
        let Value::Object(claims) = json!({"groups": 1, "https://x/roles": 2, "a": {"b/c": [3]}, "cognito:groups": 4})
        else {
            unreachable!()
        };
        for (path, expected) in [
            ("groups", Some(1)),
            ("https://x/roles", Some(2)),
            ("/a/b~1c/0", Some(3)),
            ("cognito:groups", Some(4)),
            ("/a/x", None),
        ] {
            assert_eq!(ClaimPath::parse(path).unwrap().find(&claims), expected.map(Value::from).as_ref(), "{path}");
        }
        for bad in ["", "/", "/a~2", "/~"] {
            assert!(ClaimPath::parse(bad).is_err(), "{bad}");
        }
    }
}
