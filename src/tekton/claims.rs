//! The values in a merge patch that no patch may change. Programs read a run, change a field of it, and send all of it
//! back; kubectl removes all labels when a file no longer has any. Only a comparison with the existing run shows
//! whether that changes something that must not change.

use serde_json::{Map, Value};

use super::{
    attribution::is_ours,
    document::Unreadable,
    existing::{There, Unknown, for_none, for_one},
    labels, ownership,
};

/// Values that were taken out of a patch. They are omitted if the existing run has the same values; otherwise the patch
/// is refused.
#[derive(Debug, Default)]
pub struct Claims {
    /// Who requested the run.
    annotations: Map<String, Value>,
    /// The origin of the run.
    labels: Map<String, Value>,
    owners: Option<Value>,
    /// Whether the patch removes all labels of the run; the guarded ones then stay.
    takes_labels: bool,
    /// The resource version that the client itself requires.
    version: Option<Value>,
}

impl Claims {
    /// Takes the claims out of a patch, which is then valid for no existing run. `None` if there are none, so that
    /// nothing need be known about the run.
    pub(super) fn of(patch: &mut Map<String, Value>, takes_labels: bool) -> Option<Self> {
        let mut claims = Self { takes_labels, ..Self::default() };
        if let Some(metadata) = patch.get_mut("metadata").and_then(Value::as_object_mut) {
            claims.annotations = taken(metadata, "annotations", is_ours);
            claims.labels = taken(metadata, "labels", labels::is_guarded);
            if metadata.get("ownerReferences").is_some_and(ownership::names_any) {
                claims.owners = metadata.remove("ownerReferences");
            }
        }
        if !takes_labels && !claims.any() {
            return None;
        }
        claims.version = for_none(patch);
        Some(claims)
    }

    /// Whether the patch is refused if the existing run differs.
    pub(super) fn any(&self) -> bool {
        !self.annotations.is_empty() || !self.labels.is_empty() || self.owners.is_some()
    }

    /// Makes the patch valid for the existing run.
    pub(super) fn onto(self, patch: &mut Map<String, Value>, there: There) -> Result<(), Unknown> {
        if differing(&self.annotations, &there.annotations).is_some() {
            return Err(Unknown::Refused(Unreadable::Attribution));
        }
        if let Some(name) = differing(&self.labels, &there.labels) {
            return Err(Unknown::Refused(labels::refusal(name)));
        }
        if let Some(owners) = self.owners.filter(|owners| *owners != there.owner_references) {
            return Err(Unknown::Refused(ownership::refusal(&owners)));
        }
        let metadata = for_one(patch, there.uid, self.version)?;
        if self.takes_labels {
            let others = there.labels.into_iter().filter(|(name, _)| !labels::is_guarded(name) && !is_ours(name));
            let away = others.map(|(name, _)| (name, Value::Null)).collect();
            metadata.insert("labels".to_owned(), Value::Object(away));
        }
        Ok(())
    }
}

/// Takes guarded members out of a part of the metadata. Those with `null`, which would remove them, stay and are
/// refused.
fn taken(metadata: &mut Map<String, Value>, part: &str, is_guarded: fn(&str) -> bool) -> Map<String, Value> {
    let Some(part) = metadata.get_mut(part).and_then(Value::as_object_mut) else { return Map::new() };
    let (claimed, rest) =
        std::mem::take(part).into_iter().partition(|(name, value)| is_guarded(name) && !value.is_null());
    *part = rest;
    claimed
}

/// The first name whose claimed value differs from that of the existing run.
fn differing<'c>(claimed: &'c Map<String, Value>, there: &Map<String, Value>) -> Option<&'c str> {
    claimed.iter().find(|(name, value)| there.get(*name) != Some(*value)).map(|(name, _)| name.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::{existing::Fit, labels::MADE_BY},
        *,
    };
    use crate::runs::EVENT_ID;

    const ASKED: &str = "doorward.dev/requested-by";

    /// What is sent for a patch once the run is known.
    fn sent(patch: &Value, takes_labels: bool, there: &Value) -> Result<Value, Unknown> {
        let Value::Object(mut patch) = patch.clone() else { panic!() };
        let claims = Claims::of(&mut patch, takes_labels).unwrap();
        assert_eq!(patch["metadata"]["resourceVersion"], "1", "until then it is for no run that is there");
        let sent = Fit::Patch(claims)
            .onto(Value::Object(patch).to_string().as_bytes(), json!({"metadata": there}).to_string().as_bytes());
        sent.map(|sent| serde_json::from_slice(&sent).unwrap())
    }

    #[test]
    fn a_patch_with_unchanged_claims_is_applied_without_them() {
        let owners = json!([{"apiVersion": "tekton.dev/v1", "kind": "PipelineRun", "name": "release", "uid": "r"}]);
        let there = json!({
            "name": "x", "uid": "u", "resourceVersion": "7", "ownerReferences": owners,
            "annotations": {ASKED: "bob", "team": "b"}, "labels": {EVENT_ID: "e", MADE_BY: "release", "app": "x"},
        });
        let mut whole = json!({"metadata": there, "spec": {"status": "Cancelled"}});
        whole["metadata"]["labels"]["app"] = "y".into();
        assert_eq!(
            sent(&whole, false, &there).unwrap(),
            json!({
                "metadata": {"name": "x", "uid": "u", "resourceVersion": "7", "annotations": {"team": "b"}, "labels": {"app": "y"}},
                "spec": {"status": "Cancelled"},
            })
        );
        let one = json!({"metadata": {"annotations": {ASKED: "bob"}}});
        assert_eq!(sent(&one, false, &there).unwrap(), json!({"metadata": {"annotations": {}, "uid": "u"}}));
        let mut plain = json!({"metadata": {"labels": {"app": "y"}, "ownerReferences": []}});
        assert!(Claims::of(plain.as_object_mut().unwrap(), false).is_none(), "nothing is asked");
    }

    #[test]
    fn a_patch_with_other_claims_is_refused() {
        let owner = |name: &str| json!([{"apiVersion": "example.com/v1", "kind": "X", "name": name, "uid": name}]);
        let there = json!({"uid": "u", "annotations": {ASKED: "bob"}, "labels": {EVENT_ID: "e"}, "ownerReferences": owner("a")});
        for metadata in [
            json!({"annotations": {ASKED: "mallory"}}),
            json!({"annotations": {ASKED: "bob", "doorward.dev/rule": "forged"}}),
            json!({"annotations": {"Doorward.dev/requested-by": "bob"}}),
            json!({"annotations": {ASKED: ["bob"]}}),
            json!({"labels": {EVENT_ID: "of another"}}),
            json!({"labels": {EVENT_ID: "e", MADE_BY: "release"}}),
            json!({"ownerReferences": owner("b")}),
            json!({"ownerReferences": [owner("a")[0], owner("b")[0]]}),
            json!({"ownerReferences": owner("a")[0]}),
        ] {
            let refused = sent(&json!({"metadata": metadata}), false, &there);
            assert!(matches!(refused, Err(Unknown::Refused(_))), "{metadata}: {refused:?}");
            // Also for a run without any of these.
            let refused = sent(&json!({"metadata": metadata}), false, &json!({"uid": "u"}));
            assert!(matches!(refused, Err(Unknown::Refused(_))), "{metadata}: {refused:?}");
        }
    }

    #[test]
    fn labels_that_name_the_origin_of_a_run_are_kept() {
        let patch = json!({"metadata": {"annotations": {}}});
        let labels = json!({EVENT_ID: "e", MADE_BY: "release", "doorward.dev/x": "y", "app": "x", "team": "a"});
        for (labels, away) in [(labels, json!({"app": null, "team": null})), (json!({}), json!({}))] {
            let sent = sent(&patch, true, &json!({"uid": "u", "labels": labels})).unwrap();
            assert_eq!(sent, json!({"metadata": {"annotations": {}, "uid": "u", "labels": away}}), "{labels}");
        }
    }
}
