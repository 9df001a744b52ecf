//! Pods and runs: the fields that say whether a task still runs, and what it is part of.
//!
//! Malformed fields count as missing, so that no object can stop the watch of all others.

use kube::{api::DynamicObject, core::ObjectMeta};
use serde_json::Value;

use super::ends::Kind;
use crate::{
    clock::{Timestamp, go_duration},
    kubernetes::ObjectRef,
    runs::EVENT_ID,
    tekton::{MADE_BY, REQUEST_ID, dashboard::is_subdomain, is_of_tekton_dev, reference::describe},
};

/// The label that Tekton writes on all pods that it makes, by which they are watched.
pub(super) const TASK_RUN: &str = "tekton.dev/taskRun";

/// An object that a PipelineRun has made.
#[derive(Debug)]
pub struct Child {
    pub kind: String,
    pub name: String,
    pub pipeline_task_name: String,
}

/// The metadata that all kinds have.
#[derive(Debug)]
pub struct Identity {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The Tekton run that controls it.
    pub owner: Option<Owner>,
    pub created: Option<Timestamp>,
    /// The event that it names as its origin.
    pub event: Option<String>,
    /// The request to Doorward that it says it was made by. For objects that are made through Doorward, this is true.
    pub request: Option<String>,
    /// Whether it says that a PipelineRun made it, as Tekton writes on everything that a PipelineRun makes.
    pub is_part: bool,
}

#[derive(Clone, Debug)]
pub struct Owner {
    pub kind: String,
    pub object: ObjectRef,
}

#[derive(Debug)]
pub struct Pod {
    pub identity: Identity,
    pub service_account: String,
    pub node: String,
    pub phase: String,
    /// Whether it has the label by which pods are watched.
    pub is_watched: bool,
    /// Why it has no tokens any more; `None` while it may have some.
    pub end: Option<&'static str>,
}

#[derive(Debug)]
pub struct Run {
    pub identity: Identity,
    /// The task or the pipeline that it runs, if it names one.
    pub reference: Option<String>,
    /// The pod of a TaskRun; empty until it has one.
    pub pod: String,
    pub children: Vec<Child>,
    /// When it times out, if it has a time-out.
    pub times_out: Option<Timestamp>,
    /// Why it has no tokens any more; `None` while it may have some.
    pub end: Option<&'static str>,
}

impl Identity {
    fn new(metadata: ObjectMeta) -> Self {
        let owner = metadata.owner_references.into_iter().flatten().find(|owner| owner.controller == Some(true));
        let owner = owner.filter(|owner| is_of_tekton_dev(&owner.api_version) && is_subdomain(&owner.name));
        let owner =
            owner.map(|owner| Owner { kind: owner.kind, object: ObjectRef { name: owner.name, uid: owner.uid } });
        let mut labels = metadata.labels.unwrap_or_default();
        Self {
            namespace: metadata.namespace.unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default(),
            owner,
            created: metadata.creation_timestamp.map(|time| Timestamp::from_millis(time.0.as_millisecond())),
            event: labels.remove(EVENT_ID),
            request: metadata.annotations.and_then(|mut annotations| annotations.remove(REQUEST_ID)),
            is_part: labels.contains_key(MADE_BY),
        }
    }

    /// Its owner, if that is of this kind.
    pub fn owner_of_kind(&self, kind: Kind) -> Option<&Owner> {
        self.owner.as_ref().filter(|owner| owner.kind == kind.name())
    }
}

impl Pod {
    pub fn read(object: DynamicObject) -> Self {
        let DynamicObject { metadata, data, .. } = object;
        let phase = text(&data, "/status/phase").unwrap_or_default().to_owned();
        let end = match metadata.deletion_timestamp {
            Some(_) => Some(DELETED),
            None => matches!(phase.as_str(), "Succeeded" | "Failed").then_some(ENDED),
        };
        Self {
            is_watched: metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(TASK_RUN)),
            identity: Identity::new(metadata),
            service_account: text(&data, "/spec/serviceAccountName").unwrap_or_default().to_owned(),
            node: text(&data, "/spec/nodeName").unwrap_or_default().to_owned(),
            phase,
            end,
        }
    }
}

impl Run {
    /// Reads a TaskRun or a PipelineRun.
    pub fn read(kind: Kind, object: DynamicObject) -> Self {
        let DynamicObject { metadata, data, .. } = object;
        let list = |pointer: &str| data.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
        let is_done = list("/status/conditions").any(|condition| {
            text(condition, "/type") == Some("Succeeded") && text(condition, "/status") != Some("Unknown")
        });
        let end = match text(&data, "/spec/status") {
            _ if metadata.deletion_timestamp.is_some() => Some(DELETED),
            _ if is_done || text(&data, "/status/completionTime").is_some() => Some(ENDED),
            // Runs that run `finally` tasks first are ended by the status of each task.
            Some("TaskRunCancelled" | "Cancelled") => Some(CANCELLED),
            _ => None,
        };
        let (code, timeout) = match kind {
            Kind::PipelineRun => ("/spec/pipelineRef", "/spec/timeouts/pipeline"),
            Kind::TaskRun | Kind::Pod => ("/spec/taskRef", "/spec/timeout"),
        };
        let children = list("/status/childReferences").map(|child| {
            let owned = |pointer| text(child, pointer).unwrap_or_default().to_owned();
            Child { kind: owned("/kind"), name: owned("/name"), pipeline_task_name: owned("/pipelineTaskName") }
        });
        Self {
            reference: data.pointer(code).and_then(reference),
            pod: text(&data, "/status/podName").unwrap_or_default().to_owned(),
            children: children.collect(),
            times_out: times_out(text(&data, "/status/startTime"), text(&data, timeout)),
            identity: Identity::new(metadata),
            end,
        }
    }
}

fn text<'v>(value: &'v Value, pointer: &str) -> Option<&'v str> {
    value.pointer(pointer)?.as_str()
}

const DELETED: &str = "it is being deleted";
const ENDED: &str = "it has ended";
const CANCELLED: &str = "it is cancelled";
pub const GONE: &str = "it does not exist any more";
pub const REPLACED: &str = "it is another one than is meant, under the same name";

/// The reasons why a run or a pod has no tokens any more, as worded in refusals.
pub const ENDS: [&str; 5] = [DELETED, ENDED, CANCELLED, GONE, REPLACED];

fn reference(value: &Value) -> Option<String> {
    value.is_object().then(|| describe(value).to_string()).filter(|reference| !reference.is_empty())
}

fn times_out(start: Option<&str>, after: Option<&str>) -> Option<Timestamp> {
    let after = go_duration(after?).filter(|after| !after.is_zero())?;
    Some(Timestamp::from_rfc3339(start?)? + after)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    /// An object with this spec and status, and more metadata.
    fn object(metadata: &Value, spec: &Value, status: &Value) -> DynamicObject {
        let mut all = json!({"name": "a", "uid": "u"});
        all.as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
        serde_json::from_value(
            json!({"apiVersion": "v1", "kind": "X", "metadata": all, "spec": spec, "status": status}),
        )
        .unwrap()
    }

    #[test]
    fn a_run_has_ended_however_it_did() {
        let none = json!({});
        let condition = |status: &str| json!({"conditions": [{"type": "Succeeded", "status": status}]});
        let deleted = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        for (what, metadata, spec, status, ended) in [
            ("new", &none, json!({}), json!(null), false),
            ("running, or about to be tried again", &none, json!({}), condition("Unknown"), false),
            ("succeeded", &none, json!({}), condition("True"), true),
            ("failed, cancelled or timed out", &none, json!({}), condition("False"), true),
            (
                "another condition",
                &none,
                json!({}),
                json!({"conditions": [{"type": "Ready", "status": "True"}]}),
                false,
            ),
            ("complete", &none, json!({}), json!({"completionTime": "2026-01-01T00:00:00Z"}), true),
            ("a task that is asked to end", &none, json!({"status": "TaskRunCancelled"}), json!({}), true),
            ("a run that is asked to end", &none, json!({"status": "Cancelled"}), json!({}), true),
            ("a run with tasks that come last", &none, json!({"status": "CancelledRunFinally"}), json!({}), false),
            ("being deleted", &deleted, json!({}), json!({}), true),
        ] {
            let run = Run::read(Kind::TaskRun, object(metadata, &spec, &status));
            assert_eq!(run.end.is_some(), ended, "{what}");
        }
        for (what, metadata, phase, ended) in [
            ("runs", &none, "Running", false),
            ("waits", &none, "Pending", false),
            ("succeeded", &none, "Succeeded", true),
            ("failed", &none, "Failed", true),
            ("being deleted", &deleted, "Running", true),
        ] {
            let pod = Pod::read(object(metadata, &json!({}), &json!({"phase": phase})));
            assert_eq!(pod.end.is_some(), ended, "{what}");
        }
    }

    #[test]
    fn malformed_objects_count_as_missing_and_stop_nothing() {
        let none = json!({});
        for (spec, status) in [
            (json!(null), json!(null)),
            (json!({"timeout": 5, "timeouts": null, "taskRef": "x", "status": []}), json!([])),
            (json!([]), json!({"conditions": {}, "childReferences": [1, {}], "podName": 1, "startTime": {}})),
        ] {
            let run = Run::read(Kind::TaskRun, object(&none, &spec, &status));
            assert_eq!((run.reference, run.end, run.times_out, run.pod.as_str()), (None, None, None, ""), "{spec}");
            let pod = Pod::read(object(&none, &spec, &status));
            assert_eq!((pod.end, pod.phase.as_str()), (None, ""));
        }
    }

    #[test]
    fn a_pipeline_is_named_by_its_own_reference_and_ends_by_its_own_time() {
        let spec = json!({"taskRef": {"name": "t"}, "pipelineRef": {"name": "p"}, "timeout": "1h", "timeouts": {"pipeline": "1m"}});
        let status = json!({"startTime": "2026-01-01T00:00:00Z"});
        let begun = Timestamp::from_rfc3339("2026-01-01T00:00:00Z").unwrap();
        for (kind, named, lasts) in [(Kind::TaskRun, "t", 3600), (Kind::PipelineRun, "p", 60)] {
            let run = Run::read(kind, object(&json!({}), &spec, &status));
            assert_eq!(run.reference.as_deref(), Some(named));
            assert_eq!(run.times_out, Some(begun + Duration::from_secs(lasts)));
        }
        let inline =
            Run::read(Kind::PipelineRun, object(&json!({}), &json!({"taskRef": {"name": "release"}}), &status));
        assert_eq!(inline.reference, None, "what it brings along has no name");
    }

    /// Fields beside the name passed it by a deny of that name.
    #[test]
    fn a_task_is_named_by_what_tekton_runs_whatever_else_its_reference_says() {
        for reference in [
            json!({"name": "release", "kind": "X"}),
            json!({"name": "release", "apiVersion": "example.com/v1", "kind": "Wait"}),
            json!({"name": "release", "bundle": "registry.example/ok"}),
        ] {
            let run = Run::read(Kind::TaskRun, object(&json!({}), &json!({"taskRef": reference}), &json!({})));
            assert_eq!(run.reference.as_deref(), Some("release"), "{reference}");
        }
    }

    #[test]
    fn only_a_controller_of_tekton_is_an_owner() {
        let owner = |change: &Value| {
            let mut owner =
                json!({"apiVersion": "tekton.dev/v1", "kind": "TaskRun", "name": "t", "uid": "x", "controller": true});
            owner.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let pod = object(&json!({"ownerReferences": [owner]}), &json!({}), &json!({}));
            Pod::read(pod).identity.owner_of_kind(Kind::TaskRun).map(|owner| owner.object.uid.clone())
        };
        assert_eq!(owner(&json!({})).as_deref(), Some("x"));
        for other in [
            json!({"controller": false}),
            json!({"apiVersion": "batch/v1"}),
            json!({"apiVersion": "tekton.dev.evil/v1"}),
            json!({"kind": "Job"}),
            json!({"name": "../../x"}),
        ] {
            assert_eq!(owner(&other), None, "{other}");
        }
    }
}
