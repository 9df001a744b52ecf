//! `doorward schema`: the JSON Schema of the configuration, for editors.

use std::io::{self, Write};

/// Prints the JSON Schema. `config/schema.json` is its committed copy.
pub fn run(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:#}", crate::config::schema())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn the_committed_copy_is_the_schema() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/schema.json");
        let mut schema = Vec::new();
        super::run(&mut schema).unwrap();
        let schema = String::from_utf8(schema).unwrap();
        let committed = fs::read_to_string(path).unwrap_or_default();
        assert!(committed == schema, "config/schema.json is stale: run `doorward schema > config/schema.json`");
    }

    #[test]
    fn every_setting_says_what_it_is() {
        fn undescribed(schema: &serde_json::Value, path: &str, found: &mut Vec<String>) {
            let Some(schema) = schema.as_object() else { return };
            for (name, property) in schema.get("properties").and_then(|p| p.as_object()).into_iter().flatten() {
                let path = format!("{path}/{name}");
                if property.get("description").is_none() && property.get("$ref").is_none() {
                    found.push(path);
                }
            }
        }
        let schema = crate::config::schema();
        let mut found = Vec::new();
        undescribed(&schema, "", &mut found);
        for (name, definition) in schema["$defs"].as_object().unwrap() {
            undescribed(definition, name, &mut found);
        }
        assert!(found.is_empty(), "{found:?}");
    }
}
