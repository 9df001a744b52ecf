//! The owner references by which Tekton recognizes the runs that another run created, together with the label that
//! names that run. Anybody who could write them could have their run adopted by somebody else's, and treated as a task
//! of it.

use serde_json::{Map, Value};

use super::{attribution::has_name, document::Unreadable, is_of_tekton_dev, labels::MADE_BY};
use crate::pointer::unescape;

/// Refuses the object of a run that claims to be owned by another run.
pub(super) fn check_object(object: &Map<String, Value>) -> Result<(), Unreadable> {
    let Some(metadata) = object.get("metadata").and_then(Value::as_object) else { return Ok(()) };
    let Some(owners) = metadata.get("ownerReferences") else { return Ok(()) };
    let says_who_made_it = metadata.get("labels").is_some_and(|labels| labels.get(MADE_BY).is_some());
    match names_a_run(owners) || (says_who_made_it && names_any(owners)) {
        true => Err(Unreadable::Owner),
        false => Ok(()),
    }
}

/// Refuses metadata with any owner, for a run whose label says that another run created it.
pub(super) fn check_none(metadata: &Map<String, Value>) -> Result<(), Unreadable> {
    match metadata.get("ownerReferences") {
        Some(owners) if names_any(owners) => Err(refusal(owners)),
        _ => Ok(()),
    }
}

/// Why owners cannot be written into an existing run.
pub(super) fn refusal(owners: &Value) -> Unreadable {
    if names_a_run(owners) { Unreadable::Owner } else { Unreadable::Owned }
}

/// Refuses templates of runs that could claim an owner: in an object with templates, in a part of it, or in the
/// operations of a JSON Patch. Tekton Triggers substitutes parameters anywhere in the text of a template, so that the
/// group of an owner, and the name of a label or an annotation, could become any.
pub(super) fn check_templates(value: &Value) -> Result<(), Unreadable> {
    match value {
        Value::Object(object) => object.iter().try_for_each(|(name, value)| match name.as_str() {
            "resourcetemplates" => value.as_array().into_iter().flatten().try_for_each(check_template),
            _ => check_templates(value),
        }),
        Value::Array(values) => values.iter().try_for_each(|value| {
            let path = value.get("path").and_then(Value::as_str).unwrap_or_default();
            // Some part of a template.
            let is_within = path.split('/').any(|token| token == "resourcetemplates");
            if !is_within {
                return check_templates(value);
            }
            if has_parameter(path) || value.get("value").is_some_and(names_by_parameter) {
                return Err(Unreadable::Parameter);
            }
            match value.to_string().contains("ownerReferences") && !takes_owners_away(path, value) {
                true => Err(Unreadable::TemplateOwner),
                false => Ok(()),
            }
        }),
        _ => Ok(()),
    }
}

fn check_template(template: &Value) -> Result<(), Unreadable> {
    if names_by_parameter(template) {
        return Err(Unreadable::Parameter);
    }
    match template.get("metadata").and_then(|metadata| metadata.get("ownerReferences")) {
        Some(owners) if names_any(owners) => Err(Unreadable::TemplateOwner),
        _ => Ok(()),
    }
}

/// Whether an operation of a JSON Patch removes owners, one or all, and adds none.
fn takes_owners_away(path: &str, operation: &Value) -> bool {
    let brings_none = || operation.get("value").is_some_and(|owners| !names_any(owners));
    match operation.get("op").and_then(Value::as_str) {
        Some("remove") => true,
        Some("add" | "replace") => path.ends_with("/metadata/ownerReferences") && brings_none(),
        _ => false,
    }
}

fn has_parameter(text: &str) -> bool {
    text.contains("$(")
}

/// Whether the name of a nested member contains a parameter.
fn names_by_parameter(value: &Value) -> bool {
    has_name(value, &has_parameter)
}

/// Refuses an operation of a JSON Patch that adds an owner.
pub(super) fn check_operation(op: &str, path: &str, value: Option<&Value>) -> Result<(), Unreadable> {
    let mut tokens = path.split('/').skip(1).map(unescape);
    let is_owners =
        [tokens.next(), tokens.next()].iter().map(Option::as_deref).eq([Some("metadata"), Some("ownerReferences")]);
    if !is_owners || op == "remove" {
        return Ok(());
    }
    let takes_all_away = tokens.next().is_none() && value.is_some_and(|owners| !names_any(owners));
    match value {
        Some(owners) if names_a_run(owners) => Err(Unreadable::Owner),
        _ if takes_all_away && !matches!(op, "copy" | "move") => Ok(()),
        _ => Err(Unreadable::Owned),
    }
}

/// Whether a list of owner references is not empty.
pub(super) fn names_any(owners: &Value) -> bool {
    !owners.is_null() && owners.as_array().is_none_or(|owners| !owners.is_empty())
}

/// Whether an owner reference, or one of a list, is to an object of Tekton.
fn names_a_run(owners: &Value) -> bool {
    let is_run = |owner: &Value| {
        let version = owner.get("apiVersion").and_then(Value::as_str);
        version.is_some_and(|version| version == "tekton.dev" || is_of_tekton_dev(version))
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
            // Tekton itself checks only the uid.
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
        for (op, path, value, expected) in [
            ("add", "/metadata/ownerReferences", json!([owner("tekton.dev/v1")]), "by a run"),
            ("replace", "/metadata/ownerReferences/0", owner("tekton.dev/v1"), "by a run"),
            ("add", "/metadata/ownerReferences/-", owner("tekton.dev/v1"), "by a run"),
            ("replace", "/metadata/ownerReferences/0/apiVersion", json!("tekton.dev/v1"), "owned"),
            ("replace", "/metadata/ownerReferences/0/uid", json!("u"), "owned"),
            ("copy", "/metadata/ownerReferences", json!(null), "owned"),
            ("move", "/metadata/ownerReferences", json!(null), "owned"),
            ("move", "/metadata/ownerReferences/0", json!(null), "owned"),
            // The run may have the label already.
            ("add", "/metadata/ownerReferences", json!([owner("example.com/v1")]), "owned"),
            ("add", "/metadata/ownerReferences/-", owner("apps/v1"), "owned"),
            ("add", "/metadata/ownerReferences", json!([]), "fine"),
            ("replace", "/metadata/ownerReferences", json!(null), "fine"),
            ("remove", "/metadata/ownerReferences", json!(null), "fine"),
            ("remove", "/metadata/ownerReferences/0", json!(null), "fine"),
            ("add", "/metadata/labels/team", json!("a"), "fine"),
            ("add", "/spec/params/0/ownerReferences", json!([owner("tekton.dev/v1")]), "fine"),
        ] {
            let refused = match check_operation(op, path, Some(&value)) {
                Ok(()) => "fine",
                Err(Unreadable::Owner) => "by a run",
                Err(Unreadable::Owned) => "owned",
                Err(other) => panic!("{op} {path} {value}: {other}"),
            };
            assert_eq!(refused, expected, "{op} {path} {value}");
        }
    }
}
