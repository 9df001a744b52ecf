//! The JSON Schema of the configuration, derived from [`raw::Root`](super::raw::Root). Editors read it, and the shape
//! of a configuration is checked against it.

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::{Value, json};

use super::raw;

/// Returns the JSON Schema (draft 2020-12) of the main file.
pub fn schema() -> Value {
    let mut schema = generator().into_root_schema_for::<raw::Root>();
    schema.insert("title".to_owned(), "Doorward".into());
    schema.insert(
        "examples".to_owned(),
        json!([{
            "listeners": [{"name": "main", "address": "127.0.0.1:8080"}],
            "issuers": [{"name": "company", "issuer": "https://id.example.com", "audiences": ["doorward"]}],
            "upstreams": [{"name": "api", "url": "https://kubernetes.default.svc", "credential": {"bearer": {
                "file": "/var/run/secrets/doorward/token"}}}],
            "routes": [{"name": "api", "kind": "kubernetes", "hosts": ["k8s.example.com"], "schemes": ["bearer"],
                "upstream": "api"}],
            "rules": [{"id": "read", "who": {"groups": ["developers"]}, "on": {"kubernetes": {"verbs": ["read"]}},
                "do": "allow"}],
        }]),
    );
    schema.to_value()
}

/// Returns the JSON Schema of a part that is a file of its own.
pub(super) fn of<T: JsonSchema>() -> Value {
    generator().into_root_schema_for::<T>().to_value()
}

fn generator() -> SchemaGenerator {
    SchemaSettings::draft2020_12().with_transform(RecursiveTransform(without_null)).into_generator()
}

/// Removes null from optional settings. A setting that is left empty, as in a template whose value is not set or above
/// lines that are commented out, would count as left out, and many optional settings protect something: a condition, a
/// CA, TLS itself.
fn without_null(schema: &mut Schema) {
    let Some(schema) = schema.as_object_mut() else { return };
    let types = schema.get("type").and_then(Value::as_array);
    if let Some(other) = types.and_then(|types| types.iter().find(|name| *name != "null")).cloned() {
        schema.insert("type".to_owned(), other);
    }
    let inner = schema.get("anyOf").and_then(Value::as_array).and_then(|forms| match forms.as_slice() {
        [form, null] if null.get("type") == Some(&"null".into()) => form.as_object().cloned(),
        _ => None,
    });
    if let Some(inner) = inner {
        schema.remove("anyOf");
        schema.extend(inner);
    }
    if schema.get("default").is_some_and(Value::is_null) {
        schema.remove("default");
    }
    if let Some(Value::Object(defaults)) = schema.get_mut("default") {
        defaults.retain(|_, value| !value.is_null());
    }
}

/// Returns the keys of a policy file, each of which is a list that is appended to that of the main file.
pub(super) fn policy_parts() -> Vec<String> {
    let schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<raw::PolicyFile>();
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.into_iter().flat_map(|properties| properties.keys().cloned()).collect()
}

/// Returns the target of a `$ref` within the schema.
pub(super) fn definition<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

/// Returns the schema of a part of what `schema` describes, through references and, for a choice, from the alternative
/// that has the key.
pub(super) fn property<'a>(root: &'a Value, schema: &'a Value, key: &str) -> Option<&'a Value> {
    alternatives(root, schema).into_iter().find_map(|schema| {
        let properties = schema.get("properties").and_then(|properties| properties.get(key));
        properties.or_else(|| schema.get("additionalProperties").filter(|rest| rest.is_object()))
    })
}

/// Whether a part that has this key excludes all, or some, other keys.
pub(super) fn excludes_others(root: &Value, schema: &Value, key: &str) -> bool {
    match schema.get("$ref").and_then(Value::as_str) {
        Some(reference) if reference.ends_with("/Redis") => raw::Redis::PLACES.contains(&key),
        Some(reference) => definition(root, reference).is_some_and(|target| excludes_others(root, target, key)),
        None => schema.get("oneOf").is_some(),
    }
}

/// Returns the schema of the elements of a list.
pub(super) fn items<'a>(root: &'a Value, schema: &'a Value) -> Option<&'a Value> {
    alternatives(root, schema).into_iter().find_map(|schema| schema.get("items"))
}

/// Returns the alternatives of a schema, with references resolved.
fn alternatives<'a>(root: &'a Value, schema: &'a Value) -> Vec<&'a Value> {
    if let Some(target) = schema.get("$ref").and_then(Value::as_str).and_then(|target| definition(root, target)) {
        return alternatives(root, target);
    }
    let choices = ["anyOf", "oneOf"].into_iter().find_map(|key| schema.get(key)?.as_array());
    choices
        .map_or_else(|| vec![schema], |choices| choices.iter().flat_map(|choice| alternatives(root, choice)).collect())
}

/// Returns the part of a description that says what applies if a setting is left out.
pub(super) fn default_told(property: &Value) -> Option<String> {
    let description = property.get("description")?.as_str()?;
    let from = ["Default: ", "Without it"].into_iter().find_map(|start| description.find(start))?;
    Some(description.get(from..)?.replace('\n', " "))
}

/// Returns the paths of all settings outside of lists.
pub(super) fn settings(root: &Value) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    collect(root, root, &mut Vec::new(), &mut found);
    found
}

fn collect(root: &Value, schema: &Value, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let target = schema.get("$ref").and_then(Value::as_str).and_then(|target| definition(root, target));
    let properties = target.unwrap_or(schema).get("properties").and_then(Value::as_object);
    for (name, property) in properties.into_iter().flatten() {
        path.push(name.clone());
        found.push(path.clone());
        // The shape has no recursion outside of lists; the bound keeps it so.
        if path.len() < 6 {
            collect(root, property, path, found);
        }
        path.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_listed_with_their_paths() {
        let settings = settings(&schema());
        for path in [&["workers"][..], &["audit", "when_full"], &["break_glass", "until"], &["limits", "uri_bytes"]] {
            assert!(settings.iter().any(|found| found == path), "{path:?}");
        }
    }
}
