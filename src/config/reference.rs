//! The reference of all settings for people, in Markdown, generated from the schema that editors read. It is the last
//! part of `docs/configuration.md`.

use serde_json::{Map, Value};

use super::schema::{definition, schema};

/// Returns the reference: a section for the main file, and one for each type that it refers to, in the order in which
/// they are first mentioned.
pub fn reference() -> String {
    let schema = schema();
    let mut reference = Reference::default();
    let mut text = reference.section("The main file", &schema);
    let mut next = 0;
    while let Some(found) = reference.0.get(next).copied() {
        next += 1;
        if let Some(definition) = definition(&schema, found) {
            text += &reference.section(name(found), definition);
        }
    }
    text
}

/// The types that were referred to so far, without duplicates.
#[derive(Default)]
struct Reference<'s>(Vec<&'s str>);

impl<'s> Reference<'s> {
    fn section(&mut self, title: &str, schema: &'s Value) -> String {
        let mut text = format!("\n### {title}\n\n{}\n", told(schema));
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            text += "\n| key | value | default | |\n|---|---|---|---|\n";
            let required: Vec<&str> = list(schema, "required").iter().filter_map(Value::as_str).collect();
            for (key, property) in properties {
                let default = if required.contains(&key.as_str()) { "required".to_owned() } else { default(property) };
                text += &format!("| `{key}` | {} | {default} | {} |\n", self.kind(property), told(property));
            }
        }
        let choices = list(schema, "oneOf");
        if !choices.is_empty() {
            text += "\n| value | |\n|---|---|\n";
            choices.iter().for_each(|choice| text += &self.choice(choice));
        }
        let values: Vec<String> = list(schema, "enum").iter().map(code).collect();
        if !values.is_empty() {
            text += &format!("\nOne of {}.\n", values.join(", "));
        }
        let is_text_of_a_form = ["pattern", "anyOf"].iter().any(|key| schema.get(key).is_some());
        if let ([example, ..], true) = (list(schema, "examples"), is_text_of_a_form) {
            text += &format!("\nSuch as {}.\n", code(example));
        }
        text
    }

    /// Returns the rows of one alternative of a choice.
    fn choice(&mut self, choice: &'s Value) -> String {
        let constant = choice.get("const").into_iter().chain(list(choice, "enum"));
        let mut rows: String = constant.map(|value| format!("| {} | {} |\n", code(value), told(choice))).collect();
        for (key, property) in choice.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::iter) {
            rows += &format!("| `{key}:` {} | {} |\n", self.kind(property), told(choice));
        }
        rows
    }

    /// Returns the type of a value, in words.
    fn kind(&mut self, schema: &'s Value) -> String {
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            if !self.0.contains(&reference) {
                self.0.push(reference);
            }
            let name = name(reference);
            return format!("[{name}](#{})", name.to_lowercase());
        }
        if let Some(items) = schema.get("items") {
            return format!("list of {}", self.kind(items));
        }
        match schema.get("type").and_then(Value::as_str) {
            Some("string") => "text".to_owned(),
            Some("boolean") => "`true`, `false`".to_owned(),
            Some("integer" | "number") => match (schema.get("minimum"), schema.get("maximum")) {
                (Some(least), Some(most)) => format!("number, {least} to {most}"),
                _ => "number".to_owned(),
            },
            Some("object") => match schema.get("additionalProperties").filter(|values| values.is_object()) {
                Some(values) => format!("by name: {}", self.kind(values)),
                None => "keys and values".to_owned(),
            },
            _ => "anything".to_owned(),
        }
    }
}

/// The name in a `$ref`.
fn name(reference: &str) -> &str {
    reference.rsplit('/').next().unwrap_or(reference)
}

fn list<'s>(schema: &'s Value, key: &str) -> &'s [Value] {
    schema.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Returns the description of a schema, escaped for a cell of a table.
fn told(schema: &Value) -> String {
    schema.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " ").replace('|', "\\|")
}

fn code(value: &Value) -> String {
    format!("`{}`", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// Returns the default, if it is a scalar. The default of a section is listed with the keys of the section.
fn default(property: &Value) -> String {
    match property.get("default") {
        Some(Value::String(text)) if text.is_empty() => String::new(),
        Some(value @ (Value::String(_) | Value::Number(_) | Value::Bool(_))) => code(value),
        _ => String::new(),
    }
}
