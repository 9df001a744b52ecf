//! Queries on a schema, for code that checks a value or replaces it.

use serde_json::{Map, Value};

use crate::config::schema::definition;

pub(super) fn text<'a>(schema: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    schema.get(name).and_then(Value::as_str)
}

/// Whether there are fewer entries than the schema requires. That is one entry if it sets a minimum: an empty condition
/// could mean "nothing" or "all".
pub(super) fn is_fewer(count: usize, schema: &Map<String, Value>, bound: &str) -> bool {
    schema.get(bound).and_then(Value::as_u64).is_some_and(|least| (count as u64) < least)
}

/// Whether a value of this schema has a place for a secret, itself or in one of its fields: text that is written there
/// instead may be that secret.
pub(super) fn holds_secret(root: &Value, schema: &Value) -> bool {
    fn within(root: &Value, schema: &Value, fields: bool) -> bool {
        let Some(schema) = schema.as_object() else { return false };
        if let Some(reference) = text(schema, "$ref") {
            return reference.ends_with("/SecretSource")
                || reference.ends_with("/TokenKey")
                || (fields && definition(root, reference).is_some_and(|target| within(root, target, fields)));
        }
        let variants = schema.get("oneOf").and_then(Value::as_array).into_iter().flatten();
        let properties = schema.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::values);
        variants.chain(schema.get("items")).any(|inner| within(root, inner, fields))
            || (fields && properties.into_iter().any(|inner| within(root, inner, false)))
    }
    within(root, schema, true)
}

/// Returns the words that a variant allows.
pub(super) fn words(variant: &Value) -> Vec<&str> {
    let one = variant.get("const").and_then(Value::as_str);
    let several = variant.get("enum").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    one.into_iter().chain(several).collect()
}

/// Returns the largest number of an unsigned type, for which the schema has only a lower bound.
pub(super) fn largest(format: &str) -> Option<f64> {
    match format {
        "uint8" => Some(f64::from(u8::MAX)),
        "uint16" => Some(f64::from(u16::MAX)),
        "uint32" => Some(f64::from(u32::MAX)),
        _ => None,
    }
}

/// Whether a schema describes a text, a number or one of several words.
pub(super) fn is_word(root: &Value, schema: &Value) -> bool {
    let named = schema.get("$ref").and_then(Value::as_str);
    let schema = named.and_then(|reference| definition(root, reference)).unwrap_or(schema);
    let words = |choices: &Vec<Value>| choices.iter().all(|choice| choice.get("const").is_some());
    schema.get("type").is_some_and(|named| named != "object")
        || schema.get("oneOf").and_then(Value::as_array).is_some_and(words)
}

/// Returns the smallest value of a type, as a placeholder.
pub(super) fn placeholder(root: &Value, schema: &Value) -> Value {
    let Some(schema) = schema.as_object() else { return Value::Null };
    if let Some(reference) = text(schema, "$ref") {
        return match reference.rsplit('/').next() {
            Some("Span" | "Size") => "0".into(),
            _ => definition(root, reference).map_or(Value::Null, |target| placeholder(root, target)),
        };
    }
    let one_of = schema.get("oneOf").and_then(Value::as_array).and_then(|variants| variants.first());
    if let Some(first) = one_of {
        return placeholder(root, first);
    }
    let whole = Value::Object(schema.clone());
    if let Some(word) = words(&whole).first() {
        return (*word).into();
    }
    match text(schema, "type") {
        Some("string") => match text(schema, "format") {
            Some("cidr") => "127.0.0.1/32".into(),
            Some("socket-address") => "127.0.0.1:0".into(),
            Some("ip") => "127.0.0.1".into(),
            _ => "".into(),
        },
        Some("array") => Value::Array(Vec::new()),
        Some("boolean") => false.into(),
        Some("integer") => schema.get("minimum").cloned().unwrap_or_else(|| 0.into()),
        Some("object") => {
            let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
            required
                .filter_map(Value::as_str)
                .filter_map(|name| Some((name.to_owned(), placeholder(root, schema.get("properties")?.get(name)?))))
                .collect::<Map<_, _>>()
                .into()
        }
        _ => Value::Null,
    }
}

/// Returns the first sentence of the description of a property.
pub(super) fn description(root: &Value, property: &Value) -> Option<String> {
    let own = property.get("description").and_then(Value::as_str);
    let text = own.or_else(|| {
        let target = property.get("$ref").and_then(Value::as_str)?;
        definition(root, target)?.get("description")?.as_str()
    })?;
    let text = text.replace('\n', " ");
    let sentence = text.split(". ").next().unwrap_or_default();
    let mut chars = sentence.trim_end_matches('.').chars();
    let first = chars.next()?;
    Some(first.to_lowercase().chain(chars).collect())
}
