//! The annotations with who requested a run.

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{authn::Principal, pointer::unescape};

/// The prefix of Doorward's annotations. Whatever a client writes under it is removed.
pub(super) const PREFIX: &str = "doorward.dev/";

/// The annotation with the id of the request that created a run.
pub const REQUEST_ID: &str = "doorward.dev/request-id";

/// Whether an annotation or a label has Doorward's prefix. Kubernetes compares names byte by byte; one in another case
/// is removed as well, since people may take it for Doorward's.
pub(super) fn is_ours(name: &str) -> bool {
    name.get(..PREFIX.len()).is_some_and(|prefix| prefix.eq_ignore_ascii_case(PREFIX))
}

/// Whether any part of a patch has a name with Doorward's prefix.
pub(super) fn mentions_ours(value: &Value) -> bool {
    has_name(value, &is_ours)
}

/// Whether a value contains a member with such a name, at any depth.
pub(super) fn has_name(value: &Value, is: &dyn Fn(&str) -> bool) -> bool {
    match value {
        Value::Object(object) => object.iter().any(|(name, value)| is(name) || has_name(value, is)),
        Value::Array(values) => values.iter().any(|value| has_name(value, is)),
        _ => false,
    }
}

/// Removes from a merge patch the members that would remove one of Doorward's. Those that would change one stay, and
/// are refused.
pub(super) fn pass_over_removals(patch: &mut Map<String, Value>) {
    patch.retain(|name, value| !(value.is_null() && is_ours(name)));
    patch.values_mut().filter_map(Value::as_object_mut).for_each(pass_over_removals);
}

/// Whether a JSON pointer (RFC 6901) contains a name with Doorward's prefix, anywhere: templates within a run have
/// annotations too, which Tekton copies.
pub(super) fn points_at_ours(pointer: &str) -> bool {
    pointer.split('/').any(|token| is_ours(&unescape(token)))
}

/// The object in a member of another object, which is created if it is missing or null. `None` if the member is
/// something else.
pub(super) fn member<'o>(object: &'o mut Map<String, Value>, name: &str) -> Option<&'o mut Map<String, Value>> {
    let member = object.entry(name).or_insert(Value::Null);
    if member.is_null() {
        *member = Value::Object(Map::new());
    }
    member.as_object_mut()
}

/// Who caused a run.
#[derive(Clone, Copy, Debug)]
pub struct Attribution<'a> {
    pub principal: &'a Principal,
    /// The rule that allowed it.
    pub rule: Option<&'a str>,
    /// The id of the request, which is also that of its audit record, and the `auditID` of the API server's.
    pub request: Uuid,
}

impl Attribution<'_> {
    /// Writes the annotations into the object of a run, and removes everything else under their prefix from it.
    pub(super) fn write(&self, object: &mut Map<String, Value>) {
        forget(object);
        let Some(metadata) = member(object, "metadata") else { return };
        let Some(annotations) = member(metadata, "annotations") else { return };
        let principal = self.principal;
        let request = self.request.to_string();
        let facts = [
            ("requested-by", Some(&*principal.username)),
            ("issuer", Some(&*principal.issuer)),
            ("subject", Some(&*principal.subject)),
            ("kind", Some(principal.kind.as_str())),
            ("client", principal.client.as_deref()),
            ("actor", principal.actor.as_ref().map(|actor| &*actor.subject)),
            ("rule", self.rule),
            ("request-id", Some(request.as_str())),
        ];
        for (name, value) in facts {
            if let Some(value) = value {
                annotations.insert(format!("{PREFIX}{name}"), value.into());
            }
        }
    }
}

/// Removes everything under Doorward's prefix from the annotations and labels of the object, and of all templates
/// within it, which Tekton copies to the runs that it creates.
pub(super) fn forget(object: &mut Map<String, Value>) {
    for (name, value) in object.iter_mut() {
        match value {
            Value::Object(members) if name == "annotations" || name == "labels" => {
                members.retain(|name, _| !is_ours(name));
            }
            value => forget_within(value),
        }
    }
}

fn forget_within(value: &mut Value) {
    match value {
        Value::Object(object) => forget(object),
        Value::Array(values) => values.iter_mut().for_each(forget_within),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::authn::{Actor, Kind, Scheme};

    #[test]
    fn identity_annotations_of_the_client_are_overwritten() {
        let principal = Principal {
            kind: Kind::Human,
            actor: Some(Actor { issuer: None, subject: "bot".into(), client: None }),
            ..Principal::new(Scheme::Session, "corp", "7", "alice")
        };
        let attribution = Attribution { principal: &principal, rule: Some("run"), request: Uuid::from_u128(7) };
        let forged = json!({"doorward.dev/requested-by": "root", "Doorward.dev/x": "y", "doorward.dev/client": "z", "team": "a"});
        let mut object = json!({
            "metadata": {"annotations": forged, "labels": forged},
            "spec": {"taskRunSpecs": [{"metadata": {"annotations": forged}}]},
        });
        attribution.write(object.as_object_mut().unwrap());
        let id: Arc<str> = Uuid::from_u128(7).to_string().into();
        assert_eq!(
            object,
            json!({
                "metadata": {
                    "annotations": {
                        "doorward.dev/actor": "bot",
                        "doorward.dev/issuer": "corp",
                        "doorward.dev/kind": "human",
                        "doorward.dev/request-id": &*id,
                        "doorward.dev/requested-by": "alice",
                        "doorward.dev/rule": "run",
                        "doorward.dev/subject": "7",
                        "team": "a",
                    },
                    "labels": {"team": "a"},
                },
                "spec": {"taskRunSpecs": [{"metadata": {"annotations": {"team": "a"}}}]},
            })
        );
        for mut empty in [json!({}), json!({"metadata": null}), json!({"metadata": {"annotations": null}})] {
            attribution.write(empty.as_object_mut().unwrap());
            assert_eq!(empty["metadata"]["annotations"]["doorward.dev/requested-by"], "alice");
        }
    }
}
