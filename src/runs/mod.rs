//! Runs of Tekton, and the requests that caused them.
//!
//! Doorward sees the request that creates a run, but for a delivery only the event that its EventListener makes of it.
//! The run itself appears in the cluster, where it is [watched](follow). Each run that names a request or an event is
//! written to the audit trail once, with its uid, so that `doorward audit trace` can find who caused it long after the
//! run is deleted.
//!
//! What a run says about its cause is only recorded here, not trusted. Anybody who can create runs without Doorward
//! could write anything. The admission policy in `deploy/` prevents that, and the trace compares both sides.

mod cause;
mod causes;
mod follow;
mod trouble;

use kube::core::{ObjectMeta, PartialObjectMeta};
use uuid::Uuid;

pub use self::{
    cause::{Cause, EVENT_WINDOW, KEPT as CAUSE_KEPT, SKEW},
    causes::{AskedRun, CauseError, Causes, Mark},
    follow::follow,
};
pub(crate) use self::{
    follow::client,
    trouble::{is_of_credential, root_cause},
};
use crate::{
    audit::Linked,
    clock::Timestamp,
    tekton::{REQUEST_ID, is_of_tekton_dev},
};

/// The label in which Tekton Triggers writes the event that created a run.
pub(crate) const EVENT_ID: &str = "triggers.tekton.dev/triggers-eventid";

/// The cause that a run names; `None` if it names none, or was created by Tekton for another run.
fn linked<K>(kind: &'static str, object: &PartialObjectMeta<K>) -> Option<Linked> {
    let metadata: &ObjectMeta = &object.metadata;
    // Whoever creates a run may name any other object as its controller.
    let mut owners = metadata.owner_references.iter().flatten();
    let is_part = owners.any(|owner| owner.controller == Some(true) && is_of_tekton_dev(&owner.api_version));
    let annotation = |name: &str| metadata.annotations.as_ref()?.get(name);
    let request = annotation(REQUEST_ID).and_then(|id| Uuid::try_parse(id).ok());
    let event = metadata.labels.as_ref().and_then(|labels| labels.get(EVENT_ID)).cloned();
    if is_part || (request.is_none() && event.is_none()) {
        return None;
    }
    Some(Linked {
        cluster: None,
        kind,
        namespace: metadata.namespace.clone()?,
        name: metadata.name.clone()?,
        uid: metadata.uid.clone()?,
        created: metadata.creation_timestamp.as_ref().map(|time| Timestamp::from_millis(time.0.as_millisecond())),
        request,
        event,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(metadata: &Value) -> Option<Linked> {
        let object = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata});
        linked("PipelineRun", &serde_json::from_value::<PartialObjectMeta>(object).unwrap())
    }

    #[test]
    fn a_run_is_linked_by_what_it_says_itself_and_none_that_tekton_made_for_another() {
        let id = Uuid::from_u128(7).to_string();
        let metadata = |more: Value| {
            let mut metadata =
                json!({"namespace": "ci", "name": "build-1", "uid": "u", "creationTimestamp": "2026-01-02T03:04:05Z"});
            metadata.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            metadata
        };
        let asked = of(&metadata(json!({"annotations": {"doorward.dev/request-id": id}}))).unwrap();
        assert_eq!((asked.request, asked.event), (Some(Uuid::from_u128(7)), None));
        assert_eq!(asked.created.unwrap().as_secs(), 1_767_323_045);
        let came = of(&metadata(json!({"labels": {"triggers.tekton.dev/triggers-eventid": "e"}}))).unwrap();
        assert_eq!((came.request, came.event.as_deref()), (None, Some("e")));
        let owned = of(&metadata(json!({
            "annotations": {"doorward.dev/request-id": id},
            "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": "b", "controller": true}],
        })));
        assert_eq!(owned.and_then(|owned| owned.request), Some(Uuid::from_u128(7)), "whatever else owns it");
        for controls in [json!({}), json!({"controller": false})] {
            let mut owner = json!({"apiVersion": "tekton.dev/v1", "kind": "PipelineRun", "name": "a", "uid": "b"});
            owner.as_object_mut().unwrap().extend(controls.as_object().unwrap().clone());
            let named = metadata(json!({"annotations": {"doorward.dev/request-id": id}, "ownerReferences": [owner]}));
            let request = of(&named).and_then(|linked| linked.request);
            assert_eq!(request, Some(Uuid::from_u128(7)), "an owner that does not control it has not made it: {named}");
        }
        for nothing in [
            metadata(json!({})),
            metadata(json!({"annotations": {"doorward.dev/request-id": "none"}})),
            metadata(json!({
                "annotations": {"doorward.dev/request-id": id},
                "ownerReferences": [{"apiVersion": "tekton.dev/v1", "kind": "PipelineRun", "name": "a", "uid": "b", "controller": true}],
            })),
        ] {
            assert_eq!(of(&nothing), None, "{nothing}");
        }
    }
}
