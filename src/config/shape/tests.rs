use super::*;

/// Collects the parts with a `format` and a type: texts and numbers that the deserializer validates.
fn formatted<'a>(schema: &'a Value, found: &mut Vec<&'a Map<String, Value>>) {
    match schema {
        Value::Object(entries) => {
            if text(entries, "format").is_some() && entries.contains_key("type") {
                found.push(entries);
            }
            entries.values().for_each(|inner| formatted(inner, found));
        }
        Value::Array(items) => items.iter().for_each(|inner| formatted(inner, found)),
        _ => {}
    }
}

/// A value that passes the shape check would be refused by the deserializer, without its place, and hide all other
/// problems.
#[test]
fn every_format_that_the_schema_names_is_checked() {
    let root = schema();
    let mut found = Vec::new();
    formatted(&root, &mut found);
    assert!(found.len() > 10, "{found:?}");
    let (mut report, mut locations) = (Report::default(), Locations::default());
    let mut shape =
        Shape { root: &root, report: &mut report, locations: &mut locations, is_part: false, mended: BTreeSet::new() };
    for schema in found {
        if text(schema, "type") == Some("string") {
            assert!(!shape.string(schema, "x", &At::root()), "{schema:?}");
            let placeholder = placeholder(&root, &Value::Object(schema.clone()));
            assert!(shape.string(schema, placeholder.as_str().unwrap(), &At::root()), "{schema:?}");
        } else {
            assert!(text(schema, "format").and_then(largest).is_some(), "{schema:?}");
        }
    }
}
