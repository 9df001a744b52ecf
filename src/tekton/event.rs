//! The label by which a run says of which event it came, and so who caused it. Tekton Triggers writes it on what it makes; whoever
//! could change it later would give a run the cause of another delivery.

use serde_json::{Map, Value};

use super::{attribution::unescape, document::Unreadable};
use crate::runs::EVENT_ID;

/// Refuses a merge patch of a run that changes the label, or takes it away with all others.
pub(super) fn check_merge(patch: &Map<String, Value>) -> Result<(), Unreadable> {
    let labels = patch.get("metadata").and_then(|metadata| metadata.get("labels"));
    match labels.is_some_and(|labels| labels.as_object().is_none_or(|labels| labels.contains_key(EVENT_ID))) {
        true => Err(Unreadable::Event),
        false => Ok(()),
    }
}

/// Refuses a place that an operation of a JSON Patch names, if it is the label or what holds it.
pub(super) fn check_pointer(pointer: &str) -> Result<(), Unreadable> {
    let mut tokens = pointer.split('/').skip(1).map(unescape);
    let is_labels = [tokens.next(), tokens.next()].iter().map(Option::as_deref).eq([Some("metadata"), Some("labels")]);
    match is_labels && tokens.next().is_none_or(|label| label == EVENT_ID) {
        true => Err(Unreadable::Event),
        false => Ok(()),
    }
}

/// Has an object that is applied to a run say of its event what the run itself says.
pub(super) fn keep(metadata: &mut Map<String, Value>, there: Option<Value>) {
    let labels = metadata.entry("labels").or_insert_with(|| Value::Object(Map::new()));
    if labels.is_null() {
        *labels = Value::Object(Map::new());
    }
    let Value::Object(labels) = labels else { return };
    labels.remove(EVENT_ID);
    labels.extend(there.map(|event| (EVENT_ID.to_owned(), event)));
    if labels.is_empty() {
        metadata.remove("labels");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_event_of_a_run_cannot_be_patched() {
        for (labels, good) in [
            (json!({EVENT_ID: "of another delivery"}), false),
            (json!({EVENT_ID: null}), false),
            (json!(null), false),
            (json!("x"), false),
            (json!({"team": "a", "old": null}), true),
            (json!({}), true),
        ] {
            let patch = json!({"metadata": {"labels": labels}});
            assert_eq!(check_merge(patch.as_object().unwrap()).is_ok(), good, "{patch}");
        }
        assert!(check_merge(&Map::new()).is_ok());
        for (pointer, good) in [
            ("/metadata/labels/triggers.tekton.dev~1triggers-eventid", false),
            ("/metadata/labels", false),
            ("/metadata/labels/team", true),
            ("/metadata/annotations/triggers.tekton.dev~1triggers-eventid", true),
            ("/spec/params/0", true),
        ] {
            assert_eq!(check_pointer(pointer).is_ok(), good, "{pointer}");
        }
    }

    #[test]
    fn an_apply_says_of_the_event_what_the_run_says() {
        let applied = |metadata: Value, there: Option<Value>| {
            let Value::Object(mut metadata) = metadata else { panic!() };
            keep(&mut metadata, there);
            Value::Object(metadata)
        };
        let event = |event: &str| json!({"labels": {EVENT_ID: event}});
        assert_eq!(applied(event("x"), None), json!({}));
        assert_eq!(applied(event("x"), Some(json!("own"))), event("own"));
        assert_eq!(applied(json!({"labels": null}), Some(json!("own"))), event("own"));
        assert_eq!(applied(json!({"labels": {"team": "a"}}), None), json!({"labels": {"team": "a"}}));
    }
}
