//! The guarded labels, which contain the origin of a run. Tekton Triggers writes the event into what it creates;
//! anybody who could change that later could give a run the cause of another delivery. If a run names another in a
//! label, and has its uid as that of an owner, Tekton treats it as a task of that run, whatever kind the owner claims
//! to be. So anybody who could add that label to a run with such an owner, or that owner to a run with the label, could
//! have it adopted.

use serde_json::{Map, Value};

use super::{attribution::member, document::Unreadable};
use crate::{pointer::unescape, runs::EVENT_ID};

/// The label with the name of the run that created a run.
pub(crate) const MADE_BY: &str = "tekton.dev/pipelineRun";

const GUARDED: [&str; 2] = [EVENT_ID, MADE_BY];

pub(super) fn is_guarded(name: &str) -> bool {
    GUARDED.contains(&name)
}

/// Removes from a merge patch what would remove a guarded label, by name or with all others. Returns whether it was
/// with all others.
pub(super) fn pass_over_removals(patch: &mut Map<String, Value>) -> bool {
    let Some(metadata) = patch.get_mut("metadata").and_then(Value::as_object_mut) else { return false };
    match metadata.get_mut("labels") {
        Some(Value::Null) => metadata.remove("labels").is_some(),
        Some(Value::Object(labels)) => {
            labels.retain(|name, value| !(value.is_null() && is_guarded(name)));
            false
        }
        _ => false,
    }
}

/// Refuses a merge patch of a run that changes a guarded label, or removes it with all others.
pub(super) fn check_merge(patch: &Map<String, Value>) -> Result<(), Unreadable> {
    match patch.get("metadata").and_then(|metadata| metadata.get("labels")) {
        None => Ok(()),
        Some(Value::Object(labels)) => match labels.keys().find(|name| is_guarded(name)) {
            Some(name) => Err(refusal(name)),
            None => Ok(()),
        },
        Some(_) => Err(Unreadable::Labels),
    }
}

/// Why a guarded label cannot be written into an existing run.
pub(super) fn refusal(name: &str) -> Unreadable {
    Unreadable::Label(name.to_owned())
}

/// Refuses a pointer in a JSON Patch to a guarded label or to all labels.
pub(super) fn check_pointer(pointer: &str) -> Result<(), Unreadable> {
    let mut tokens = pointer.split('/').skip(1).map(unescape);
    let is_labels = [tokens.next(), tokens.next()].iter().map(Option::as_deref).eq([Some("metadata"), Some("labels")]);
    if !is_labels {
        return Ok(());
    }
    match tokens.next() {
        None => Err(Unreadable::Labels),
        Some(name) if is_guarded(&name) => Err(refusal(&name)),
        Some(_) => Ok(()),
    }
}

/// Sets the guarded labels of an object that is applied to a run to those of the run itself.
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
    fn an_apply_repeats_the_origin_labels_of_the_run() {
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
