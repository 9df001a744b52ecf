//! `doorward schema`: the JSON Schema of the configuration for editors, and a reference for people.

use std::io::{self, Write};

use crate::config;

/// Print the JSON Schema of the configuration, for editors.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct SchemaArgs {
    /// Print a reference of all settings for people, in Markdown.
    #[arg(long)]
    markdown: bool,
}

/// Prints the JSON Schema, of which `config/schema.json` is the committed copy, or the reference at the end of
/// `docs/configuration.md`.
pub fn run(args: SchemaArgs, out: &mut impl Write) -> io::Result<()> {
    if args.markdown { out.write_all(config::reference().as_bytes()) } else { writeln!(out, "{:#}", config::schema()) }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn committed(path: &str) -> String {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_default()
    }

    fn printed(markdown: bool) -> String {
        let mut out = Vec::new();
        run(SchemaArgs { markdown }, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_committed_copy_is_the_schema() {
        let is_fresh = committed("config/schema.json") == printed(false);
        assert!(is_fresh, "config/schema.json is stale: run `doorward schema > config/schema.json`");
    }

    #[test]
    fn the_page_about_the_configuration_ends_with_the_reference() {
        let (page, reference) = (committed("docs/configuration.md"), printed(true));
        assert!(
            reference.contains("\n### OnKubernetes\n") && reference.contains("| `when_full` | [WhenFull](#whenfull) |")
        );
        let (_, written) = page.split_at(page.find("\n### ").unwrap_or(page.len()));
        assert!(
            written == reference,
            "docs/configuration.md is stale: replace all from its first `###` on by what `doorward schema --markdown` prints"
        );
    }

    /// Otherwise only people who read the reference would find such a key.
    #[test]
    fn the_page_about_the_policy_has_every_key_of_a_rule() {
        let (page, schema) = (committed("docs/policy.md"), config::schema());
        let mut missing = Vec::new();
        for part in
            ["Rule", "Grant", "On", "OnKubernetes", "OnRun", "OnToken", "OnTrigger", "TimeWindow", "Who", "Need"]
        {
            let keys = schema["$defs"][part]["properties"].as_object().unwrap().keys();
            missing.extend(keys.filter(|key| !page.contains(&format!("`{key}`"))).map(|key| format!("{part}.{key}")));
        }
        assert!(missing.is_empty(), "docs/policy.md lacks {missing:?}");
    }

    #[test]
    fn every_setting_has_a_description() {
        fn undescribed(schema: &serde_json::Value, path: &str, found: &mut Vec<String>) {
            let Some(schema) = schema.as_object() else { return };
            for (name, property) in schema.get("properties").and_then(|p| p.as_object()).into_iter().flatten() {
                let path = format!("{path}/{name}");
                if property.get("description").is_none() && property.get("$ref").is_none() {
                    found.push(path);
                }
            }
        }
        let schema = config::schema();
        let mut found = Vec::new();
        undescribed(&schema, "", &mut found);
        for (name, definition) in schema["$defs"].as_object().unwrap() {
            undescribed(definition, name, &mut found);
        }
        assert!(found.is_empty(), "{found:?}");
    }
}
