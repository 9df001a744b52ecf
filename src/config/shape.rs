//! Checks whether a document has the shape of a configuration: every key known, every value of its type. It finds all
//! problems and repairs the document (invalid parts are removed or replaced by placeholders), so that later checks can
//! continue and their problems are reported in the same run.

mod described;

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net};
use serde_json::{Map, Value};

use self::described::{description, holds_secret, is_fewer, is_word, largest, placeholder, text, words};
use super::{
    locations::{Giver, Location, Locations},
    raw,
    report::{At, Report, nearest},
    schema,
    values::{Size, Span},
};

/// Checks a document against its schema, and repairs it. Problems that later checks find at the parts returned are not
/// to be reported, as nobody wrote what is there or its key is unknown.
pub(super) fn check(
    root: &Value,
    document: &mut Value,
    report: &mut Report,
    locations: &mut Locations,
) -> BTreeSet<At> {
    let mut shape = Shape { root, report, locations, is_part: false, mended: BTreeSet::new() };
    if !shape.check(root, document, &At::root()) {
        *document = Value::Object(Map::new());
    }
    shape.mended
}

/// Whether a value conforms to its schema as far as it goes; missing parts may be in another layer.
pub(super) fn fits_in_part(root: &Value, schema: &Value, value: &Value) -> bool {
    fits(root, schema, value, true)
}

fn fits(root: &Value, schema: &Value, value: &Value, is_part: bool) -> bool {
    let (mut report, mut locations) = (Report::default(), Locations::default());
    let mut shape = Shape { root, report: &mut report, locations: &mut locations, is_part, mended: BTreeSet::new() };
    shape.check(schema, &mut value.clone(), &At::root()) && !report.has_errors()
}

struct Shape<'a> {
    root: &'a Value,
    report: &'a mut Report,
    locations: &'a mut Locations,
    /// Whether other parts may be elsewhere, so that missing keys are no problem.
    is_part: bool,
    mended: BTreeSet<At>,
}

impl Shape<'_> {
    /// Checks a value and repairs its parts. Returns whether it can stay.
    fn check(&mut self, schema: &Value, value: &mut Value, at: &At) -> bool {
        let Some(schema) = schema.as_object() else { return true };
        if let Some(reference) = text(schema, "$ref") {
            let Some(target) = schema::definition(self.root, reference) else { return true };
            return match reference.rsplit('/').next() {
                Some("Span") => self.parsed::<Span>(value, at, "a duration such as `30s`"),
                Some("Size") => self.parsed::<Size>(value, at, "a size such as `64KiB`"),
                Some("SecretSource") => self.secret(target, value, at, &["file", "env"]),
                Some("TokenKey") => self.secret(target, value, at, &["file", "env", "from"]),
                Some("Kubeconfig") => self.kubeconfig(target, value, at),
                Some("Algorithm") if is_no_signature_of_an_issuer(value) => {
                    self.report
                        .error(at, format!("{value} is never accepted").replace('"', "`"))
                        .help("anybody, or every verifier, could create such tokens; use an algorithm that the issuer signs with, such as `RS256`");
                    false
                }
                _ => self.check(target, value, at),
            };
        }
        if let Some(variants) = schema.get("oneOf").and_then(Value::as_array) {
            return self.variant(variants, value, at);
        }
        if schema.contains_key("enum") || schema.contains_key("const") {
            return self.variant(&[Value::Object(schema.clone())], value, at);
        }
        let Some(expected) = text(schema, "type") else { return true };
        match value {
            Value::Object(entries) if expected == "object" => {
                let before = self.report.problems().len();
                self.object(schema, entries, at);
                let is_empty = is_fewer(entries.len(), schema, "minProperties");
                if is_empty && self.report.problems().len() == before {
                    let (message, help) = raw::EMPTY_NEED;
                    self.report.error(at, message).help(help);
                }
                !is_empty
            }
            Value::Array(items) if expected == "array" && is_fewer(items.len(), schema, "minItems") => {
                let (message, help) = raw::EMPTY_LIST;
                self.report.error(at, message).help(help);
                false
            }
            Value::Array(items) if expected == "array" => {
                self.list(schema, items, at);
                true
            }
            Value::String(text) if expected == "string" => self.string(schema, text, at),
            Value::Bool(_) if expected == "boolean" => true,
            Value::Number(number) if expected == "integer" && !number.is_f64() => self.integer(schema, value, at),
            Value::Number(_) if expected == "number" => true,
            _ => self.wrong_type(schema, expected, value, at),
        }
    }

    fn object(&mut self, schema: &Map<String, Value>, entries: &mut Map<String, Value>, at: &At) {
        let none = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
        let required: Vec<&str> =
            schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let written: BTreeSet<String> = entries.keys().cloned().collect();

        for (name, mut value) in std::mem::take(entries) {
            let here = at.key(&name);
            if value.is_null() {
                // An empty value has nothing to show.
                self.locations.show_key(&here);
            }
            let rest = schema.get("additionalProperties").filter(|rest| **rest != Value::Bool(false));
            match properties.get(&name).or(rest) {
                Some(property) => {
                    if self.check(property, &mut value, &here) {
                        entries.insert(name, value);
                    } else {
                        self.mended.insert(here);
                        if required.contains(&name.as_str()) {
                            entries.insert(name, placeholder(self.root, property));
                        }
                    }
                }
                None => {
                    let Some(near) = self.unknown_key(properties, &name, &here) else { continue };
                    let Some(property) = properties.get(&near).filter(|_| !written.contains(&near)) else { continue };
                    // It is read as the setting that was meant, for all other checks. Its own problems are not
                    // reported, as messages quote the value.
                    self.mended.insert(at.key(&near));
                    if fits(self.root, property, &value, false) {
                        entries.insert(near, value);
                    } else if required.contains(&near.as_str()) {
                        entries.insert(near, placeholder(self.root, property));
                    }
                }
            }
        }
        for name in required {
            if self.is_part || entries.contains_key(name) || self.mended.contains(&at.key(name)) {
                continue;
            }
            let Some(property) = properties.get(name) else { continue };
            let description = description(self.root, property);
            let problem = self.report.error(at, format!("`{name}` is missing"));
            if let Some(description) = description {
                problem.help(format!("`{name}`: {description}"));
            }
            self.mended.insert(at.key(name));
            entries.insert(name.to_owned(), placeholder(self.root, property));
        }
    }

    /// Reports a key that does not exist; returns the one that was probably meant.
    fn unknown_key(&mut self, properties: &Map<String, Value>, name: &str, at: &At) -> Option<String> {
        self.locations.show_key(at);
        // Nothing is known about the value, and it may be a secret.
        self.locations.mask(at);
        let near = nearest(name, properties.keys().map(String::as_str));
        let problem = self.report.error(at, format!("there is no setting `{name}` here"));
        match near {
            Some(near) => problem.help(format!("did you mean `{near}`?")),
            None if properties.is_empty() => problem,
            None => problem.help(format!("known here: {}", join(properties.keys().map(String::as_str)))),
        };
        near.map(str::to_owned)
    }

    fn list(&mut self, schema: &Map<String, Value>, items: &mut [Value], at: &At) {
        let Some(inner) = schema.get("items") else { return };
        for (index, item) in items.iter_mut().enumerate() {
            let at = at.index(index);
            if !self.check(inner, item, &at) {
                // Items keep their indexes.
                *item = placeholder(self.root, inner);
                self.mended.insert(at);
            }
        }
    }

    fn string(&mut self, schema: &Map<String, Value>, value: &str, at: &At) -> bool {
        match text(schema, "format") {
            Some("cidr") => match value.parse::<IpNet>().map(as_ipv4) {
                Ok(None) => true,
                Ok(Some(range)) => {
                    self.report
                        .error(
                            at,
                            format!("nobody has an address in `{value}`: one of IPv4 counts as such, over IPv6 too"),
                        )
                        .help(format!("write `{range}`"));
                    false
                }
                Err(_) => {
                    let problem = self.report.error(at, format!("`{value}` is not a range of addresses"));
                    match value.parse::<std::net::IpAddr>() {
                        Ok(address) => {
                            problem.help(format!("for one address write `{}`", IpNet::from(address.to_canonical())))
                        }
                        Err(_) => {
                            problem.help("write an address and a prefix length, such as `10.0.0.0/8` or `fd00::/8`")
                        }
                    };
                    false
                }
            },
            Some("socket-address") if value.parse::<std::net::SocketAddr>().is_err() => {
                self.report
                    .error(at, format!("`{value}` is not an address to listen on"))
                    .help("write an IP address and a port, such as `0.0.0.0:8443` or `[::]:8443`");
                false
            }
            Some("ip") if value.parse::<std::net::IpAddr>().is_err() => {
                self.report
                    .error(at, format!("`{value}` is not an IP address"))
                    .help("write one address without a port or a prefix length, such as `192.0.2.1` or `2001:db8::1`");
                false
            }
            _ => true,
        }
    }

    fn integer(&mut self, schema: &Map<String, Value>, value: &Value, at: &At) -> bool {
        let bound = |name| schema.get(name).and_then(Value::as_f64);
        let (low, high) = (bound("minimum"), bound("maximum").or_else(|| largest(text(schema, "format")?)));
        let number = value.as_f64().unwrap_or(f64::NAN);
        if low.is_none_or(|low| number >= low) && high.is_none_or(|high| number <= high) {
            return true;
        }
        let range = match (low, high) {
            (Some(low), Some(high)) => format!("from {low} to {high}"),
            (Some(low), None) => format!("{low} or more"),
            _ => format!("{} or less", high.unwrap_or_default()),
        };
        self.report.error(at, format!("{value} is out of range")).help(format!("write a whole number {range}"));
        false
    }

    /// Checks a value that is one of several words, or one of several maps with a single key.
    fn variant(&mut self, variants: &[Value], value: &mut Value, at: &At) -> bool {
        let words: Vec<&str> = variants.iter().flat_map(words).collect();
        let maps: Vec<(&str, &Value)> = variants
            .iter()
            .filter_map(|variant| variant.get("properties")?.as_object()?.iter().next())
            .map(|(name, inner)| (name.as_str(), inner))
            .collect();
        let names = || words.iter().copied().chain(maps.iter().map(|(name, _)| *name));
        let secret = maps.iter().any(|(_, inner)| holds_secret(self.root, inner));
        let is_known = |key: &str| maps.iter().any(|(name, _)| *name == key);
        // Only the value of a single known key is checked. Anything else here may be a secret.
        let is_strange = match &*value {
            Value::Null => false,
            Value::Object(entries) => entries.len() != 1 || !entries.keys().all(|key| is_known(key)),
            Value::Array(_) => true,
            _ => secret,
        };
        if is_strange {
            self.locations.mask(at);
        }
        match value {
            Value::String(word) if words.contains(&word.as_str()) => true,
            Value::String(_) if secret => {
                self.report
                    .error(at, "this is not one of the allowed values")
                    .help(format!("write one of them with its settings: {}", join(names())));
                false
            }
            Value::String(word) => {
                let problem = self.report.error(at, format!("`{word}` is not one of the allowed values"));
                if maps.iter().any(|(name, _)| name == word) {
                    problem.help(format!("`{word}` needs settings: `{{{word}: {{…}}}}`"));
                } else {
                    match nearest(word, names()) {
                        Some(near) => problem.help(format!("did you mean `{near}`?")),
                        None => problem.help(format!("known: {}", join(names()))),
                    };
                }
                false
            }
            Value::Object(entries) if entries.len() == 1 && !maps.is_empty() => {
                let Some((name, inner)) = entries.iter_mut().next() else { return false };
                let at = at.key(name);
                let Some((_, schema)) = maps.iter().find(|(known, _)| known == name) else {
                    self.locations.show_key(&at);
                    let problem = self.report.error(&at, format!("there is no setting `{name}` here"));
                    match nearest(name, names()) {
                        Some(near) if words.contains(&near) => problem.help(format!("write `{near}` alone")),
                        Some(near) => problem.help(format!("did you mean `{near}`?")),
                        None => problem.help(format!("known: {}", join(names()))),
                    };
                    return false;
                };
                self.check(schema, inner, &at)
            }
            Value::Object(_) if !maps.is_empty() => {
                self.report
                    .error(at, "exactly one key is required here")
                    .help(format!("known: {}", join(maps.iter().map(|(name, _)| *name))));
                false
            }
            _ => {
                self.report
                    .error(at, format!("expected one of the known values, found {}", kind(value)))
                    .help(format!("known: {}", join(names())));
                false
            }
        }
    }

    fn parsed<T: std::str::FromStr<Err = String>>(&mut self, value: &Value, at: &At, expected: &str) -> bool {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            other => {
                self.mask_within(other, at);
                self.report.error(at, format!("expected {expected}, found {}", kind(other)));
                return false;
            }
        };
        match text.parse::<T>() {
            Ok(_) => true,
            Err(explanation) => {
                let (message, help) = explanation.split_once("; ").unwrap_or((&explanation, ""));
                let problem = self.report.error(at, message);
                if !help.is_empty() {
                    problem.help(help);
                }
                false
            }
        }
    }

    fn secret(&mut self, schema: &Value, value: &mut Value, at: &At, known: &[&str]) -> bool {
        if let Value::Object(entries) = value {
            let is_source = |name: &str, value: &Value| known.contains(&name) && (value.is_string() || value.is_null());
            for (name, _) in entries.iter().filter(|(name, value)| !is_source(name, value)) {
                self.locations.mask(&at.key(name));
            }
            return self.check(schema, value, at);
        }
        let message = if value.is_null() {
            "expected the source of a secret, found nothing"
        } else {
            self.locations.mask(at);
            "a secret cannot be written here itself"
        };
        self.report.error(at, message).help("write where it comes from: `{file: PATH}` or `{env: NAME}`");
        false
    }

    fn kubeconfig(&mut self, schema: &Value, value: &mut Value, at: &At) -> bool {
        let named = |(key, value): (&String, &Value)| matches!(key.as_str(), "file" | "context") && value.is_string();
        if !value.is_null() && !value.as_object().is_some_and(|entries| entries.iter().all(named)) {
            // It may be the content of a kubeconfig, which has tokens and keys.
            self.locations.mask(at);
        }
        if value.is_string() {
            self.report.error(at, "a kubeconfig is given by its path, in a map").help("write `{file: PATH}`");
            return false;
        }
        self.check(schema, value, at)
    }

    fn wrong_type(&mut self, schema: &Map<String, Value>, expected: &str, value: &Value, at: &At) -> bool {
        self.mask_within(value, at);
        if !value.is_null() && holds_secret(self.root, &Value::Object(schema.clone())) {
            self.locations.mask(at);
        }
        let named = match expected {
            "array" => "a list",
            "object" => "a map of settings",
            "string" => "text",
            "boolean" => "`true` or `false`",
            "integer" => "a whole number",
            other => other,
        };
        let lists_words = schema.get("items").is_some_and(|items| is_word(self.root, items));
        let problem = self.report.error(at, format!("expected {named}, found {}", kind(value)));
        match (expected, value) {
            ("string", Value::Number(_) | Value::Bool(_)) => _ = problem.help("put it in quotes"),
            // As in `username: {sub}`.
            ("string", Value::Object(entries)) if !entries.is_empty() && entries.values().all(Value::is_null) => {
                problem.help("put a text that begins with `{` in quotes");
            }
            ("array", Value::String(text)) if lists_words => {
                problem.help(format!("a list has brackets or dashes: `[{text}]`"));
            }
            ("array", Value::Object(_)) => _ = problem.help("each item begins with a dash (`- `)"),
            ("boolean", Value::String(text)) => match text.to_ascii_lowercase().as_str() {
                "yes" | "on" => _ = problem.help("write `true`"),
                "no" | "off" => _ = problem.help("write `false`"),
                _ => {}
            },
            (_, Value::Null) => {
                problem.help(match self.locations.written(at) {
                    Some(Location::Given(Giver::Variable(_))) => "unset the variable, or give it a value",
                    Some(Location::Given(Giver::Flag(_))) => "leave out the flag, or give it a value",
                    _ => "remove the key, or give it a value",
                });
            }
            _ => {}
        }
        false
    }

    /// Masks a map or a list that is not allowed at its place: nothing checks its content, and it may be a secret.
    fn mask_within(&mut self, value: &Value, at: &At) {
        if value.is_object() || value.is_array() {
            self.locations.mask(at);
        }
    }
}

/// Whether a value names an algorithm of RFC 7518 that cannot be used by an issuer: `none`, or one with a shared
/// secret.
fn is_no_signature_of_an_issuer(value: &Value) -> bool {
    let name = value.as_str().map(str::to_ascii_lowercase);
    matches!(name.as_deref(), Some("none" | "hs256" | "hs384" | "hs512"))
}

/// The range in the notation of IPv4, if it has addresses of IPv4 in the notation of IPv6.
fn as_ipv4(range: IpNet) -> Option<Ipv4Net> {
    let IpNet::V6(range) = range else { return None };
    let address = range.addr().to_ipv4_mapped()?;
    Ipv4Net::new(address, range.prefix_len().checked_sub(96)?).ok()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "`true` or `false`",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map of settings",
    }
}

fn join<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
