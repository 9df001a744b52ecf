//! The labels by which a run says where it came from. Tekton Triggers writes the event on what it makes; whoever could change that
//! later would give a run the cause of another delivery. Tekton takes a run that names another, and has its uid as that of an owner, for
//! a task of it, whatever kind of object the owner is said to be; so whoever could add the one to the other would have a run adopted.

use serde_json::{Map, Value};

use super::{
    attribution::{member, unescape},
    document::Unreadable,
};
use crate::runs::EVENT_ID;

/// The label that names the run which has made one.
pub(super) const MADE_BY: &str = "tekton.dev/pipelineRun";

const GUARDED: [&str; 2] = [EVENT_ID, MADE_BY];

/// Takes out of a merge patch what would take one of them away by its name.
pub(super) fn pass_over_removals(patch: &mut Map<String, Value>) {
    let labels = patch.get_mut("metadata").and_then(|metadata| metadata.get_mut("labels"));
    if let Some(labels) = labels.and_then(Value::as_object_mut) {
        labels.retain(|name, value| !(value.is_null() && GUARDED.contains(&name.as_str())));
    }
}

/// Refuses a merge patch of a run that changes one of them, or takes them away with all others.
pub(super) fn check_merge(patch: &Map<String, Value>) -> Result<(), Unreadable> {
    let Some(labels) = patch.get("metadata").and_then(|metadata| metadata.get("labels")) else { return Ok(()) };
    let is_changed = |name: &&&str| labels.as_object().is_none_or(|labels| labels.contains_key(**name));
    GUARDED.iter().find(is_changed).map_or(Ok(()), |name| Err(Unreadable::Label(name)))
}

/// Refuses a place that an operation of a JSON Patch names, if it is one of them or what holds them.
pub(super) fn check_pointer(pointer: &str) -> Result<(), Unreadable> {
    let mut tokens = pointer.split('/').skip(1).map(unescape);
    let is_labels = [tokens.next(), tokens.next()].iter().map(Option::as_deref).eq([Some("metadata"), Some("labels")]);
    if !is_labels {
        return Ok(());
    }
    let label = tokens.next();
    let is_named = |name: &&&str| label.as_ref().is_none_or(|label| label == **name);
    GUARDED.iter().find(is_named).map_or(Ok(()), |name| Err(Unreadable::Label(name)))
}

/// Has an object that is applied to a run say by them what the run itself says.
pub(super) fn keep(metadata: &mut Map<String, Value>, mut there: Map<String, Value>) {
    let Some(labels) = member(metadata, "labels") else { return };
    for name in GUARDED {
        labels.remove(name);
        labels.extend(there.remove(name).map(|value| (name.to_owned(), value)));
    }
    if labels.is_empty() {
        metadata.remove("labels");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn where_a_run_came_from_cannot_be_patched() {
        for (labels, good) in [
            (json!({EVENT_ID: "of another delivery"}), false),
            (json!({EVENT_ID: null}), false),
            (json!({MADE_BY: "release"}), false),
            (json!({"team": "a", MADE_BY: null}), false),
            (json!(null), false),
            (json!("x"), false),
            (json!({"team": "a", "old": null, "tekton.dev/pipeline": "p"}), true),
            (json!({}), true),
        ] {
            let patch = json!({"metadata": {"labels": labels}});
            assert_eq!(check_merge(patch.as_object().unwrap()).is_ok(), good, "{patch}");
        }
        assert!(check_merge(&Map::new()).is_ok());
        for (pointer, good) in [
            ("/metadata/labels/triggers.tekton.dev~1triggers-eventid", false),
            ("/metadata/labels/tekton.dev~1pipelineRun", false),
            ("/metadata/labels", false),
            ("/metadata/labels/team", true),
            ("/metadata/annotations/triggers.tekton.dev~1triggers-eventid", true),
            ("/spec/params/0", true),
        ] {
            assert_eq!(check_pointer(pointer).is_ok(), good, "{pointer}");
        }
    }

    #[test]
    fn an_apply_says_of_where_a_run_came_from_what_the_run_says() {
        let applied = |metadata: Value, there: &Value| {
            let Value::Object(mut metadata) = metadata else { panic!() };
            keep(&mut metadata, there.as_object().unwrap().clone());
            Value::Object(metadata)
        };
        let none = json!({});
        for name in GUARDED {
            let one = |value: &str| json!({"labels": {name: value}});
            let own = json!({name: "own", "app": "x"});
            assert_eq!(applied(one("x"), &none), json!({}));
            assert_eq!(applied(one("x"), &own), one("own"));
            assert_eq!(applied(json!({"labels": null}), &own), one("own"));
        }
        assert_eq!(applied(json!({"labels": {"team": "a"}}), &none), json!({"labels": {"team": "a"}}));
    }
}
