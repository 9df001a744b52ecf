//! Server-side apply, which creates a run or changes an existing one; only the API server knows which. The client that
//! applies has caused a run that it creates, but not one that somebody else created.

use serde_json::{Map, Value};

use super::{
    attribution::{forget, is_ours, member},
    existing::{There, Unknown, for_none, for_one},
    labels, ownership,
};

/// An apply whose body is that of a new run, and is valid for no other.
#[derive(Debug)]
pub struct Apply {
    /// The resource version that the client itself requires.
    version: Option<Value>,
    /// The `spec` that the client itself sent, if Doorward wrote more into it.
    spec: Option<Option<Value>>,
}

impl Apply {
    /// Makes the object of a run valid only for a new one. `came` is what the client sent, if Doorward wrote more into
    /// it.
    pub(super) fn of(object: &mut Map<String, Value>, came: Option<Map<String, Value>>) -> Self {
        Self { version: for_none(object), spec: came.map(|mut came| came.remove("spec")) }
    }

    /// Adapts the object to the existing run: with the annotations of whoever requested that run, or none, and with its
    /// event and the run that created it. An apply that left these out would remove them.
    pub(super) fn onto(self, object: &mut Map<String, Value>, there: There) -> Result<(), Unknown> {
        match self.spec {
            None => {}
            Some(Some(spec)) => drop(object.insert("spec".to_owned(), spec)),
            Some(None) => drop(object.remove("spec")),
        }
        forget(object);
        let metadata = for_one(object, there.uid, self.version)?;
        // With an owner, the label of the existing run would make it part of whatever the owner is.
        if there.labels.contains_key(labels::MADE_BY) {
            ownership::check_none(metadata).map_err(Unknown::Refused)?;
        }
        labels::keep(metadata, there.labels);
        if let Some(annotations) = member(metadata, "annotations") {
            annotations.extend(there.annotations.into_iter().filter(|(name, _)| is_ours(name)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::{document::Unreadable, existing::Fit},
        *,
    };
    use crate::runs::EVENT_ID;

    fn applied(body: Value, found: &Value) -> Value {
        written(body, None, found)
    }

    fn written(body: Value, came: Option<Value>, found: &Value) -> Value {
        let Value::Object(mut object) = body else { panic!() };
        let apply = Apply::of(&mut object, came.map(|came| came.as_object().unwrap().clone()));
        assert_eq!(object["metadata"]["resourceVersion"], "1", "taken for a new run only");
        let (body, found) = (Value::Object(object).to_string(), found.to_string());
        let sent = Fit::Apply(apply).onto(body.as_bytes(), found.as_bytes());
        serde_json::from_slice(&sent.unwrap()).unwrap()
    }

    #[test]
    fn a_run_that_is_there_keeps_its_cause() {
        let there = json!({"metadata": {"uid": "u", "resourceVersion": "7", "annotations": {
            "doorward.dev/requested-by": "bob", "doorward.dev/request-id": "5", "team": "b"}}});
        let forged = json!({"doorward.dev/requested-by": "alice", "doorward.dev/rule": "r", "team": "a"});
        assert_eq!(
            applied(json!({"metadata": {"name": "x", "annotations": forged}, "spec": {"status": "Cancelled"}}), &there),
            json!({
                "metadata": {"name": "x", "uid": "u", "annotations": {
                    "doorward.dev/requested-by": "bob", "doorward.dev/request-id": "5", "team": "a"}},
                "spec": {"status": "Cancelled"},
            })
        );
        let event = |event: &str| json!({"metadata": {"uid": "u", "labels": {EVENT_ID: event, "app": "x"}}});
        for (sent, found, expected) in [
            (event("of another"), event("own"), json!({EVENT_ID: "own", "app": "x"})),
            (event("of another"), json!({"metadata": {"uid": "u"}}), json!({"app": "x"})),
            (json!({}), event("own"), json!({EVENT_ID: "own"})),
        ] {
            assert_eq!(applied(sent, &found)["metadata"]["labels"], expected, "{found}");
        }
        // Also if the existing run has none, because it was created without Doorward.
        let past = json!({"metadata": {"uid": "u"}});
        let sent = applied(json!({"metadata": {"annotations": forged}}), &past);
        assert_eq!(sent["metadata"]["annotations"], json!({"team": "a"}));
    }

    #[test]
    fn annotations_for_a_new_run_do_not_change_an_existing_one() {
        let there = json!({"metadata": {"uid": "u"}});
        let new = json!({"spec": {"serviceAccountName": "default", "status": "Cancelled"}});
        let came =
            json!({"spec": {"status": "Cancelled", "taskSpec": {"metadata": {"labels": {"doorward.dev/rule": "r"}}}}});
        assert_eq!(
            written(new.clone(), Some(came), &there)["spec"],
            json!({"status": "Cancelled", "taskSpec": {"metadata": {"labels": {}}}})
        );
        assert_eq!(written(new, Some(json!({})), &there).get("spec"), None);
    }

    #[test]
    fn preconditions_of_the_client_on_an_existing_run_are_kept() {
        let there = json!({"metadata": {"uid": "u", "resourceVersion": "7"}});
        for (sent, expected) in [
            (json!({}), json!({"uid": "u"})),
            (json!({"resourceVersion": "5"}), json!({"uid": "u", "resourceVersion": "5"})),
            (json!({"resourceVersion": null}), json!({"uid": "u"})),
            (json!({"uid": "other"}), json!({"uid": "other"})),
            (json!({"uid": ""}), json!({"uid": "u"})),
        ] {
            let mut found = applied(json!({"metadata": sent}), &there);
            found["metadata"].as_object_mut().unwrap().remove("annotations");
            assert_eq!(found["metadata"], expected, "{sent}");
        }
        assert_eq!(applied(json!({}), &there)["metadata"]["uid"], "u");
    }

    #[test]
    fn an_apply_makes_no_run_a_part_of_another() {
        let owned =
            json!({"ownerReferences": [{"apiVersion": "example.com/v1", "kind": "X", "name": "release", "uid": "u"}]});
        let part = json!({labels::MADE_BY: "release"});
        let onto = |metadata: &Value, found: &Value| {
            let Value::Object(mut object) = json!({"metadata": metadata}) else { panic!() };
            let apply = Fit::Apply(Apply::of(&mut object, None));
            let found = json!({"metadata": {"uid": "u", "labels": found}});
            let sent = apply.onto(Value::Object(object).to_string().as_bytes(), found.to_string().as_bytes());
            sent.map(|sent| serde_json::from_slice::<Value>(&sent).unwrap())
        };
        assert!(matches!(onto(&owned, &part), Err(Unknown::Refused(Unreadable::Owned))));
        let labelled = onto(&json!({"labels": part}), &json!({})).unwrap();
        assert_eq!(labelled["metadata"].get("labels"), None, "one that has an owner already is given no such label");
        // The twins: whoever created a run may still name its owners, and a run that another run created keeps its
        // label.
        assert_eq!(
            onto(&owned, &json!({"app": "x"})).unwrap()["metadata"]["ownerReferences"],
            owned["ownerReferences"]
        );
        assert_eq!(onto(&json!({"ownerReferences": []}), &part).unwrap()["metadata"]["labels"], part);
    }
}
