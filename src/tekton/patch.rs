//! Reads what a patch does to a run, and refuses changes to who requested it.

use serde_json::{Map, Value};

use super::{
    attribution::{has_name, mentions_ours, pass_over_removals, points_at_ours},
    document::Unreadable,
    labels, ownership,
    run::Intent,
};
use crate::pointer::unescape;

/// Reads a JSON Patch (RFC 6902): its intent, and the changes of the status if it changes more than that.
pub(super) fn json_patch(operations: &[Value]) -> Result<(Intent, Vec<Intent>), Unreadable> {
    let mut intent = None;
    let mut statuses = Vec::new();
    for operation in operations {
        let text = |name: &str| operation.get(name).and_then(Value::as_str);
        let (Some(op), Some(path)) = (text("op"), text("path")) else {
            return Err(Unreadable::Malformed("an operation of the patch has no `op` or no `path`"));
        };
        // The API server's library ignores everything before the first `/` (evanphx/json-patch).
        if pointers(operation).any(|pointer| !pointer.is_empty() && !pointer.starts_with('/')) {
            return Err(Unreadable::Malformed("a pointer of the patch does not begin with `/`"));
        }
        if op == "test" {
            continue;
        }
        if pointers(operation).any(reaches_attribution) {
            return Err(Unreadable::Attribution);
        }
        if operation.get("value").is_some_and(mentions_ours) {
            return Err(Unreadable::Attribution);
        }
        if matches!(op, "copy" | "move") && holds_metadata(path) {
            return Err(Unreadable::Copied);
        }
        ownership::check_operation(op, path, operation.get("value"))?;
        pointers(operation).try_for_each(labels::check_pointer)?;
        let value = operation.get("value");
        let asks = match (op, path) {
            ("add" | "replace", "/spec/status") => value.map_or(Intent::Change, of_value),
            ("remove", "/spec/status") => Intent::Start,
            _ => Intent::Change,
        };
        statuses.extend(match (op, path, value.and_then(Value::as_object)) {
            (_, "/spec/status", _) if asks.is_status() => vec![asks],
            ("add" | "replace", "/spec", Some(spec)) => of_whole(spec),
            // The value comes from elsewhere or nowhere, so it is not known here.
            (_, "" | "/spec" | "/spec/status", _) => ANY.to_vec(),
            _ if operation.get("from").and_then(Value::as_str) == Some("/spec/status") => vec![Intent::Start],
            _ => Vec::new(),
        });
        // Two different intents make a change, whichever is last.
        intent = Some(if intent.is_none_or(|before| before == asks) { asks } else { Intent::Change });
    }
    let intent = intent.unwrap_or(Intent::Change);
    Ok((intent, besides(intent, statuses)))
}

/// All intents that a change of the status can have.
const ANY: [Intent; 3] = [Intent::Cancel, Intent::Pause, Intent::Start];

/// The intent of a value of `spec.status`.
fn of_value(status: &Value) -> Intent {
    match status {
        Value::String(status) => Intent::of_status(Some(status)),
        Value::Null => Intent::of_status(None),
        _ => Intent::Change,
    }
}

/// The intents of a `spec` that sets the status.
pub(super) fn statuses(spec: &Map<String, Value>) -> Vec<Intent> {
    match spec.get("status").map(of_value) {
        None => Vec::new(),
        Some(status) if status.is_status() => vec![status],
        Some(_) => ANY.to_vec(),
    }
}

/// The intents of a `spec` that replaces another: one without a status removes it.
fn of_whole(spec: &Map<String, Value>) -> Vec<Intent> {
    if spec.contains_key("status") { statuses(spec) } else { vec![Intent::Start] }
}

/// Sorts and deduplicates `statuses`, without the intent itself.
fn besides(intent: Intent, mut statuses: Vec<Intent>) -> Vec<Intent> {
    statuses.retain(|status| *status != intent);
    statuses.sort_unstable();
    statuses.dedup();
    statuses
}

/// The places that an operation of a JSON Patch names.
pub(super) fn pointers(operation: &Value) -> impl Iterator<Item = &str> {
    ["path", "from"].into_iter().filter_map(|name| operation.get(name)?.as_str())
}

/// Whether a pointer is to one of Doorward's annotations, or to an object that contains those of the run.
fn reaches_attribution(pointer: &str) -> bool {
    let mut tokens = pointer.split('/').skip(1).map(unescape);
    let holds_them = matches!(
        (tokens.next().as_deref(), tokens.next().as_deref(), tokens.next()),
        (None, ..) | (Some("metadata"), None, _) | (Some("metadata"), Some("annotations"), None)
    );
    holds_them || points_at_ours(pointer)
}

/// Whether the value at a pointer is or contains metadata, which Tekton copies. The source of a copy is in the run
/// already, where a parameter may have any keys.
fn holds_metadata(pointer: &str) -> bool {
    const PLAIN: [&str; 4] = ["params", "workspaces", "timeouts", "status"];
    let mut tokens = pointer.split('/').skip(1).map(unescape);
    let field = tokens.next().filter(|token| token == "spec").and_then(|_| tokens.next());
    field.is_none_or(|field| !PLAIN.contains(&&*field))
}

/// The annotation with the last applied object, from which `kubectl apply` computes what to remove
/// (`k8s.io/api/core/v1/annotation_key_constants.go`).
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Prevents a patch of `kubectl apply` from removing what Doorward wrote. The API server stores an object that was
/// applied with `--server-side`, including Doorward's additions, as the last applied one for later client-side applies.
/// The next of those removes the additions, although the file does not mention them. A patch that does not come from an
/// apply removes them deliberately and is refused. Returns whether the patch removes all labels, as it does when a file
/// no longer has any.
pub(super) fn keep_what_apply_takes_away(patch: &mut Map<String, Value>) -> bool {
    let annotations = patch.get("metadata").and_then(|metadata| metadata.get("annotations"));
    if !annotations.and_then(|annotations| annotations.get(LAST_APPLIED)).is_some_and(Value::is_string) {
        return false;
    }
    pass_over_removals(patch);
    labels::pass_over_removals(patch)
}

/// Reads a merge patch (RFC 7386), or a strategic one, which differs by its directives.
pub(super) fn merge_patch(patch: &Map<String, Value>) -> Result<(Intent, Vec<Intent>), Unreadable> {
    let is_directive = |name: &str| name.starts_with('$');
    if patch.iter().any(|(name, value)| is_directive(name) || has_name(value, &is_directive)) {
        return Err(Unreadable::Malformed("the patch has directives (`$patch` and the like), which runs do not take"));
    }
    let removes = match patch.get("metadata") {
        None => false,
        Some(Value::Object(metadata)) => {
            metadata.get("annotations").is_some_and(|annotations| !annotations.is_object())
        }
        Some(_) => true,
    };
    if removes || patch.values().any(mentions_ours) {
        return Err(Unreadable::Attribution);
    }
    labels::check_merge(patch)?;
    let intent = status_alone(patch).map_or(Intent::Change, of_value);
    let statuses = match patch.get("spec") {
        None => Vec::new(),
        Some(Value::Object(spec)) => statuses(spec),
        Some(_) => ANY.to_vec(),
    };
    Ok((intent, besides(intent, statuses)))
}

/// `spec.status`, if the patch contains nothing else but the identification of its object.
fn status_alone(patch: &Map<String, Value>) -> Option<&Value> {
    let names_the_object = |name: &String| matches!(name.as_str(), "name" | "namespace" | "uid" | "resourceVersion");
    let about = patch.iter().filter(|(name, _)| *name != "spec").all(|(name, value)| match name.as_str() {
        "apiVersion" | "kind" => true,
        "metadata" => value.as_object().is_some_and(|metadata| metadata.keys().all(names_the_object)),
        _ => false,
    });
    let spec = patch.get("spec")?.as_object()?;
    spec.get("status").filter(|_| about && spec.len() == 1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::attribution::PREFIX, *};

    /// Some parsers ignore the beginning and find the rest.
    #[test]
    fn a_pointer_that_does_not_begin_with_a_slash_is_invalid() {
        for operation in [
            json!({"op": "add", "path": "x/spec/status", "value": "Cancelled"}),
            json!({"op": "move", "from": "x/spec/status", "path": "/spec/params/0/value"}),
            json!({"op": "test", "path": "spec/status", "value": "Cancelled"}),
        ] {
            let patch = std::slice::from_ref(&operation);
            assert!(matches!(json_patch(patch), Err(Unreadable::Malformed(_))), "{operation}");
        }
    }

    /// Otherwise a deny of a status would not match if the patch also changes a label.
    #[test]
    fn a_status_change_beside_another_change_is_recognized() {
        let label = json!({"op": "add", "path": "/metadata/labels/a", "value": "b"});
        let status = |op: &str, value: Value| json!({"op": op, "path": "/spec/status", "value": value});
        let (cancel, start, any) = (vec![Intent::Cancel], vec![Intent::Start], ANY.to_vec());
        for (patch, expected) in [
            (json!([label]), vec![]),
            (json!([status("replace", "Cancelled".into())]), vec![]),
            (json!([label, status("replace", "Cancelled".into())]), cancel.clone()),
            (json!([label, {"op": "remove", "path": "/spec/status"}]), start.clone()),
            (json!([status("add", "Cancelled".into()), status("add", "".into())]), vec![Intent::Cancel, Intent::Start]),
            (json!([label, status("add", json!(["Cancelled"]))]), any.clone()),
            (json!([{"op": "copy", "from": "/spec/params/0/value", "path": "/spec/status"}]), any.clone()),
            (json!([{"op": "move", "from": "/spec/status", "path": "/spec/params/0/value"}]), start.clone()),
            (json!([{"op": "replace", "path": "/spec", "value": {"status": "Cancelled"}}]), cancel.clone()),
            (json!([{"op": "replace", "path": "/spec", "value": {}}]), start),
            (json!([{"op": "remove", "path": "/spec"}]), any.clone()),
            (json!([label, status("add", "TaskRunPending".into())]), vec![Intent::Pause]),
        ] {
            assert_eq!(json_patch(patch.as_array().unwrap()).unwrap().1, expected, "{patch}");
        }
        let labels = json!({"labels": {"a": "b"}});
        for (patch, expected) in [
            (json!({"metadata": labels}), vec![]),
            (json!({"spec": {"status": "Cancelled"}}), vec![]),
            (json!({"metadata": labels, "spec": {"status": "Cancelled"}}), cancel),
            (json!({"metadata": labels, "spec": {"status": "TaskRunPending"}}), vec![Intent::Pause]),
            (json!({"metadata": labels, "spec": {"status": 7}}), any.clone()),
            (json!({"metadata": labels, "spec": null}), any),
        ] {
            assert_eq!(merge_patch(patch.as_object().unwrap()).unwrap().1, expected, "{patch}");
        }
    }

    #[test]
    fn a_patch_of_the_status_alone_is_distinguished_from_other_changes() {
        let replace = |value: Value| json!([{"op": "replace", "path": "/spec/status", "value": value}]);
        for (patch, expected) in [
            (replace("Cancelled".into()), Intent::Cancel),
            (replace("StoppedRunFinally".into()), Intent::Cancel),
            (replace("TaskRunCancelled".into()), Intent::Cancel),
            (replace("PipelineRunPending".into()), Intent::Pause),
            (replace("TaskRunPending".into()), Intent::Pause),
            (replace("".into()), Intent::Start),
            (replace(Value::Null), Intent::Start),
            (replace("cancelled".into()), Intent::Change),
            (replace(json!(["Cancelled"])), Intent::Change),
            (json!([{"op": "remove", "path": "/spec/status"}]), Intent::Start),
            (
                json!([{"op": "test", "path": "/metadata/uid", "value": "1"}, {"op": "add", "path": "/spec/status", "value": "Cancelled"}]),
                Intent::Cancel,
            ),
            (
                json!([{"op": "replace", "path": "/spec/status", "value": "Cancelled"}, {"op": "remove", "path": "/spec/status"}]),
                Intent::Change,
            ),
            (
                json!([{"op": "replace", "path": "/spec/status", "value": "Cancelled"}, {"op": "add", "path": "/spec/params", "value": []}]),
                Intent::Change,
            ),
            (json!([{"op": "replace", "path": "/spec", "value": {"status": "Cancelled"}}]), Intent::Change),
            (json!([{"op": "copy", "from": "/spec/x", "path": "/spec/status"}]), Intent::Change),
            (json!([{"op": "move", "from": "/spec/params/0", "path": "/spec/params/1"}]), Intent::Change),
            (json!([{"op": "add", "path": "/metadata/annotations/team", "value": "a"}]), Intent::Change),
            (json!([]), Intent::Change),
        ] {
            assert_eq!(json_patch(patch.as_array().unwrap()).unwrap().0, expected, "{patch}");
        }
        for (patch, expected) in [
            (json!({"spec": {"status": "Cancelled"}}), Intent::Cancel),
            (
                json!({"kind": "PipelineRun", "metadata": {"name": "a", "resourceVersion": "7"}, "spec": {"status": "CancelledRunFinally"}}),
                Intent::Cancel,
            ),
            (json!({"spec": {"status": null}}), Intent::Start),
            (json!({"spec": {"status": "TaskRunPending"}}), Intent::Pause),
            (json!({"spec": {"status": "Cancelled", "params": []}}), Intent::Change),
            (json!({"metadata": {"labels": {"a": "b"}}, "spec": {"status": "Cancelled"}}), Intent::Change),
            (json!({"spec": {"status": "Cancelled"}, "status": {}}), Intent::Change),
            (json!({"spec": null}), Intent::Change),
            (json!({"metadata": {"annotations": {"team": null}}}), Intent::Change),
        ] {
            assert_eq!(merge_patch(patch.as_object().unwrap()).unwrap().0, expected, "{patch}");
        }
    }

    /// The run may already have one of the two.
    #[test]
    fn a_run_cannot_be_made_a_part_of_another_in_two_steps() {
        let owners =
            json!([{"apiVersion": "example.com/v1", "kind": "X", "name": "release", "uid": "u", "controller": true}]);
        let label = json!({"op": "add", "path": "/metadata/labels/tekton.dev~1pipelineRun", "value": "release"});
        let owned = json!({"op": "add", "path": "/metadata/ownerReferences", "value": owners});
        for patch in [json!([label, owned]), json!([label]), json!([owned])] {
            assert!(json_patch(patch.as_array().unwrap()).is_err(), "{patch}");
        }
        for (label, good) in
            [("tekton.dev~1pipelineRun", false), ("triggers.tekton.dev~1triggers-eventid", false), ("team", true)]
        {
            let away =
                json!({"op": "move", "from": format!("/metadata/labels/{label}"), "path": "/spec/params/0/value"});
            let read = json_patch(std::slice::from_ref(&away));
            assert_eq!(matches!(read, Err(Unreadable::Label(_))), !good, "{away}: {read:?}");
            assert_eq!(read.is_ok(), good, "{away}");
        }
        for (metadata, good) in [
            (json!({"labels": {"tekton.dev/pipelineRun": "release"}}), false),
            (json!({"ownerReferences": null, "labels": {"team": "a"}}), true),
        ] {
            let patch = json!({"metadata": metadata});
            assert_eq!(merge_patch(patch.as_object().unwrap()).is_ok(), good, "{patch}");
        }
    }

    #[test]
    fn the_requester_of_a_run_cannot_be_patched() {
        let ours = format!("{PREFIX}requested-by");
        let pointer = format!("/metadata/annotations/{}", ours.replace('/', "~1"));
        for operation in [
            json!({"op": "add", "path": pointer, "value": "mallory"}),
            json!({"op": "remove", "path": pointer}),
            json!({"op": "move", "from": pointer, "path": "/metadata/annotations/x"}),
            json!({"op": "copy", "from": "/metadata/labels/x", "path": pointer}),
            json!({"op": "replace", "path": "/metadata/annotations", "value": {}}),
            json!({"op": "add", "path": "/spec/taskRunSpecs", "value": [{"metadata": {"annotations": {ours.clone(): "x"}}}]}),
            json!({"op": "add", "path": format!("/spec/taskRunSpecs/0{pointer}"), "value": "x"}),
            json!({"op": "copy", "from": format!("/spec/taskRunSpecs/0{pointer}"), "path": "/metadata/annotations/x"}),
            json!({"op": "remove", "path": "/metadata"}),
            json!({"op": "replace", "path": "", "value": {}}),
        ] {
            assert!(
                matches!(json_patch(std::slice::from_ref(&operation)), Err(Unreadable::Attribution)),
                "{operation}"
            );
        }
        for operation in [
            json!({"op": "copy", "from": "/spec/params/0/value", "path": "/metadata/labels"}),
            json!({"op": "move", "from": "/spec/params/0/value", "path": "/spec/taskRunSpecs/0/metadata/annotations"}),
            json!({"op": "copy", "from": "/spec/params/0/value", "path": "/spec"}),
        ] {
            assert!(
                matches!(json_patch(std::slice::from_ref(&operation)), Err(Unreadable::Copied)),
                "none is named: {operation}"
            );
        }
        for patch in [
            json!({"metadata": {"annotations": {ours.clone(): "mallory"}}}),
            json!({"metadata": {"annotations": {ours.clone(): null}}}),
            json!({"metadata": {"annotations": null}}),
            json!({"metadata": null}),
            json!({"spec": {"taskRunSpecs": [{"metadata": {"annotations": {ours: "x"}}}]}}),
        ] {
            assert!(matches!(merge_patch(patch.as_object().unwrap()), Err(Unreadable::Attribution)), "{patch}");
        }
        let directive = json!({"metadata": {"annotations": {"$patch": "replace"}}});
        assert!(matches!(merge_patch(directive.as_object().unwrap()), Err(Unreadable::Malformed(_))));
    }
}
