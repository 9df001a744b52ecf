//! The owner references and the label by which Tekton takes a run for one that another of its runs has made. Whoever could write them
//! would have their run adopted by that of somebody else, and taken for a task of it.

use serde_json::{Map, Value};

use super::{attribution::unescape, document::Unreadable};

/// The label that names the run which has made one.
const MADE_BY: &str = "tekton.dev/pipelineRun";

/// Refuses the object of a run, or a part of one as a merge patch has it, that says another run owns it.
pub(super) fn check_object(object: &Map<String, Value>) -> Result<(), Unreadable> {
    let Some(metadata) = object.get("metadata").and_then(Value::as_object) else { return Ok(()) };
    let Some(owners) = metadata.get("ownerReferences") else { return Ok(()) };
    let says_who_made_it = metadata.get("labels").is_some_and(|labels| labels.get(MADE_BY).is_some());
    let has_owners = !matches!(owners, Value::Null) && owners.as_array().is_none_or(|owners| !owners.is_empty());
    match names_a_run(owners) || (says_who_made_it && has_owners) {
        true => Err(Unreadable::Owner),
        false => Ok(()),
    }
}

/// Refuses templates of runs that would say so: in the object that has them, in a part of it, or in the operations of a JSON Patch.
pub(super) fn check_templates(value: &Value) -> Result<(), Unreadable> {
    match value {
        Value::Object(object) => object.iter().try_for_each(|(name, value)| match name.as_str() {
            "resourcetemplates" => {
                value.as_array().into_iter().flatten().filter_map(Value::as_object).try_for_each(check_object)
            }
            _ => check_templates(value),
        }),
        Value::Array(values) => values.iter().try_for_each(|value| {
            let path = value.get("path").and_then(Value::as_str).unwrap_or_default();
            // A part of a template, whichever.
            let is_within = path.split('/').any(|token| token == "resourcetemplates");
            match is_within && value.to_string().contains("ownerReferences") {
                true => Err(Unreadable::Owner),
                false => check_templates(value),
            }
        }),
        _ => Ok(()),
    }
}

/// Refuses an operation of a JSON Patch that may do so.
pub(super) fn check_operation(op: &str, path: &str, value: Option<&Value>) -> Result<(), Unreadable> {
    let mut tokens = path.split('/').skip(1).map(unescape);
    let is_owners =
        [tokens.next(), tokens.next()].iter().map(Option::as_deref).eq([Some("metadata"), Some("ownerReferences")]);
    if !is_owners || op == "remove" {
        return Ok(());
    }
    // A part of one may make it another's.
    let is_within = tokens.count() > 1;
    match matches!(op, "copy" | "move") || is_within || value.is_some_and(names_a_run) {
        true => Err(Unreadable::Owner),
        false => Ok(()),
    }
}

/// Whether an owner reference, or one of a list, is to an object of Tekton's.
fn names_a_run(owners: &Value) -> bool {
    let is_run = |owner: &Value| {
        let version = owner.get("apiVersion").and_then(Value::as_str);
        version.is_some_and(|version| version == "tekton.dev" || version.starts_with("tekton.dev/"))
    };
    is_run(owners) || owners.as_array().into_iter().flatten().any(is_run)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn owner(version: &str) -> Value {
        json!({"apiVersion": version, "kind": "PipelineRun", "name": "release", "uid": "u", "controller": true})
    }

    #[test]
    fn a_run_cannot_say_that_another_has_made_it() {
        let labels = json!({"tekton.dev/pipelineRun": "release"});
        for (metadata, good) in [
            (json!({"ownerReferences": [owner("tekton.dev/v1")]}), false),
            (json!({"ownerReferences": [owner("tekton.dev/v1beta1")]}), false),
            (json!({"ownerReferences": [owner("example.com/v1"), owner("tekton.dev/v1")]}), false),
            // Tekton itself looks at the uid alone.
            (json!({"ownerReferences": [owner("example.com/v1")], "labels": labels}), false),
            (json!({"ownerReferences": [owner("example.com/v1")]}), true),
            (json!({"ownerReferences": [owner("tekton.dev.example.com/v1")]}), true),
            (json!({"ownerReferences": [], "labels": labels}), true),
            (json!({"ownerReferences": null, "labels": labels}), true),
            (json!({"labels": labels}), true),
        ] {
            let object = json!({"metadata": metadata});
            assert_eq!(check_object(object.as_object().unwrap()).is_ok(), good, "{object}");
        }
    }

    #[test]
    fn nor_can_a_patch_say_it_of_one_that_is_there() {
        for (op, path, value, good) in [
            ("add", "/metadata/ownerReferences", json!([owner("tekton.dev/v1")]), false),
            ("replace", "/metadata/ownerReferences/0", owner("tekton.dev/v1"), false),
            ("add", "/metadata/ownerReferences/-", owner("tekton.dev/v1"), false),
            ("replace", "/metadata/ownerReferences/0/apiVersion", json!("tekton.dev/v1"), false),
            ("replace", "/metadata/ownerReferences/0/uid", json!("u"), false),
            ("copy", "/metadata/ownerReferences", json!(null), false),
            ("move", "/metadata/ownerReferences/0", json!(null), false),
            ("add", "/metadata/ownerReferences/-", owner("apps/v1"), true),
            ("remove", "/metadata/ownerReferences", json!(null), true),
            ("remove", "/metadata/ownerReferences/0", json!(null), true),
            ("add", "/metadata/labels/team", json!("a"), true),
            ("add", "/spec/params/0/ownerReferences", json!([owner("tekton.dev/v1")]), true),
        ] {
            assert_eq!(check_operation(op, path, Some(&value)).is_ok(), good, "{op} {path} {value}");
        }
    }
}
