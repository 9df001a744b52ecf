//! The query parameters that affect the attributes of a request: `watch`, `fieldSelector` and `follow`.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::{InvalidAttributes, is_escape};

/// The attributes from a query.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    pub watch: bool,
    pub follow: bool,
    /// The only name that `fieldSelector=metadata.name=NAME` selects.
    pub name: Option<String>,
}

/// Parameters that determine what a request is if its path names no object. If one is given twice with different
/// values, or in two spellings, another reader may use the other (CVE-2022-2385). For `watch` the API server always
/// uses the first.
pub(super) const IDENTIFYING: [&str; 7] =
    ["fieldSelector", "labelSelector", "namespace", "name", "resource", "follow", "watch"];

/// The maximum number of parts of a query, including empty ones. With more, Go since 1.24.12 and 1.25.6 reads none of
/// them (CVE-2025-61726): neither what is requested nor that it is a dry run.
const MAX_PARTS: usize = 10_000;

/// The parameters that also matter if the path names an object. They are true except for a few values. Go folds more
/// than ASCII letters: it reads `fal\u{17f}e` as false in one place and as true in another.
pub(super) const BOOLEANS: [&str; 2] = ["watch", "follow"];

impl Query {
    /// Parses a query. `telling` are the parameters that matter for this request, which must be unambiguous.
    pub(super) fn parse(query: &str, telling: &[&'static str]) -> Result<Self, InvalidAttributes> {
        if query.is_empty() {
            return Ok(Self::default());
        }
        if query.split('&').nth(MAX_PARTS).is_some() {
            return Err(InvalidAttributes::TooManyParts(MAX_PARTS));
        }
        let pairs: Vec<(Cow<'_, str>, Cow<'_, str>)> = query.split('&').filter_map(pair).collect();
        for &known in telling {
            let mut given = pairs.iter().filter(|(key, _)| key.eq_ignore_ascii_case(known));
            if let Some((key, value)) = given.next()
                && given.any(|(other, another)| other != key || (known != "watch" && another != value))
            {
                return Err(InvalidAttributes::Ambiguous(known));
            }
        }
        for known in BOOLEANS.into_iter().filter(|known| telling.contains(known)) {
            if pairs.iter().any(|(key, value)| key == known && !value.is_ascii()) {
                return Err(InvalidAttributes::NotAscii(known));
            }
        }
        let first = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_ref());
        let integer = |name: &str| first(name).is_none_or(|value| value.parse::<i64>().is_ok());
        // If one parameter does not decode, the API server ignores all but `watch`. That includes `labelSelector`,
        // which is not read here: the request is then a list of all objects, which the API server refuses, as the
        // selector is invalid.
        let decodes = integer("limit") && integer("timeoutSeconds");
        let name = first("fieldSelector").filter(|_| decodes).and_then(selected_name);
        Ok(Self { watch: first("watch").is_some_and(truthy), follow: first("follow").is_some_and(truthy), name })
    }
}

/// Parses a boolean as `k8s.io/apimachinery/pkg/conversion/queryparams` does: everything but `0` and `false` is true.
fn truthy(value: &str) -> bool {
    !(value == "0" || value.eq_ignore_ascii_case("false"))
}

/// Parses one pair of a query as Go's `url.ParseQuery` does: pairs with a semicolon or a malformed encoding are
/// dropped.
fn pair(text: &str) -> Option<(Cow<'_, str>, Cow<'_, str>)> {
    if text.is_empty() || text.contains(';') {
        return None;
    }
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    Some((unescape(key)?, unescape(value)?))
}

fn unescape(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let well_formed = text.split('%').skip(1).all(is_escape);
    let spaced = text.replace('+', " ");
    well_formed.then(|| Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned()))
}

/// The name that a field selector requires, as determined by `fields.ParseSelector` and
/// `RequiresExactMatch("metadata.name")`. `None` if it requires none, does not parse, or requires something that cannot
/// be a name.
fn selected_name(selector: &str) -> Option<String> {
    let mut terms = split_terms(selector);
    terms.sort_unstable();
    let mut name = None;
    for term in terms.into_iter().filter(|term| !term.is_empty()) {
        let (field, operator, value) = split_term(term)?;
        let value = unescape_value(value)?;
        if name.is_none() && operator != "!=" && field == "metadata.name" {
            name = Some(value);
        }
    }
    name.filter(|name| !matches!(name.as_str(), "." | "..") && !name.contains(['/', '%']))
}

/// Splits at commas that no backslash escapes.
fn split_terms(selector: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in selector.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.extend(selector.get(start..at));
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.extend(selector.get(start..));
    terms
}

fn split_term(term: &str) -> Option<(&str, &str, &str)> {
    term.char_indices().find_map(|(at, _)| {
        let (field, rest) = term.split_at(at);
        ["!=", "==", "="].into_iter().find_map(|operator| Some((field, operator, rest.strip_prefix(operator)?)))
    })
}

fn unescape_value(value: &str) -> Option<String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                c @ ('\\' | ',' | '=') => out.push(c),
                _ => return None,
            },
            ',' | '=' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}
