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

/// The most likely slip in a template had no help.
#[test]
fn a_text_that_reads_as_a_map_for_want_of_quotes_is_told_so() {
    let root = schema();
    for (value, is_told) in [
        (serde_json::json!({"sub": null}), true),
        (serde_json::json!({}), false),
        (serde_json::json!({"sub": 1}), false),
    ] {
        let (mut report, mut locations) = (Report::default(), Locations::default());
        let mut shape = Shape {
            root: &root,
            report: &mut report,
            locations: &mut locations,
            is_part: false,
            mended: BTreeSet::new(),
        };
        assert!(!shape.wrong_type(&Map::new(), "string", &value, &At::root()));
        let help = report.problems().first().and_then(|problem| problem.help.as_deref());
        assert_eq!(help, is_told.then_some("put a text that begins with `{` in quotes"), "{value}");
    }
}

/// A deny of such a network matched nobody, and a proxy in one was not trusted. The advice for one address led there.
#[test]
fn a_range_of_ipv4_in_the_notation_of_ipv6_is_refused() {
    let root = schema();
    let cidr = Map::from_iter([("format".to_owned(), Value::from("cidr"))]);
    for (value, help) in [
        ("::ffff:10.0.0.0/104", Some("write `10.0.0.0/8`")),
        ("::ffff:a00:1/128", Some("write `10.0.0.1/32`")),
        ("::ffff:10.0.0.1", Some("for one address write `10.0.0.1/32`")),
        ("2001:db8::1", Some("for one address write `2001:db8::1/128`")),
        ("10.0.0.0/8", None),
        ("2001:db8::/32", None),
        ("::/0", None),
    ] {
        let (mut report, mut locations) = (Report::default(), Locations::default());
        let mut shape = Shape {
            root: &root,
            report: &mut report,
            locations: &mut locations,
            is_part: false,
            mended: BTreeSet::new(),
        };
        assert_eq!(shape.string(&cidr, value, &At::root()), help.is_none(), "{value}");
        assert_eq!(report.problems().first().and_then(|problem| problem.help.as_deref()), help, "{value}");
    }
}
