//! What is sent to a run that may be there: whether it is, and what it says, only the API server knows.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{apply::Apply, attribution::member, claims::Claims, document::Unreadable};

/// A version that no object has, as etcd counts from there: what asks for it is refused by the API server if there is an object.
const OF_NO_OBJECT: &str = "1";

/// What the run that is there makes of a body, which does nothing to one as it stands.
#[derive(Debug)]
pub enum Fit {
    /// By server-side apply.
    Apply(Apply),
    /// By a merge patch.
    Patch(Claims),
}

/// Why a body cannot be made one for the run that is there.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    #[error("the answer cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the answer names no object")]
    Unnamed,
    /// It may not be made one.
    #[error(transparent)]
    Refused(Unreadable),
}

#[derive(Deserialize)]
struct Existing {
    metadata: There,
}

/// The metadata of a run that is there.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct There {
    pub(super) uid: String,
    #[serde(default)]
    pub(super) annotations: Map<String, Value>,
    #[serde(default)]
    pub(super) labels: Map<String, Value>,
    #[serde(default)]
    pub(super) owner_references: Value,
}

impl Fit {
    /// The body for the run that is there, as the API server tells of it in `found`, and for no other run of this name.
    pub fn onto(self, body: &[u8], found: &[u8]) -> Result<Bytes, Unknown> {
        let Existing { metadata: there } = serde_json::from_slice(found)?;
        if there.uid.is_empty() {
            return Err(Unknown::Unnamed);
        }
        let mut object: Map<String, Value> = serde_json::from_slice(body)?;
        match self {
            Self::Apply(apply) => apply.onto(&mut object, there)?,
            Self::Patch(claims) => claims.onto(&mut object, there)?,
        }
        Ok(serde_json::to_vec(&object)?.into())
    }
}

/// Has a body taken for no run that is there. Gives the version that the client itself asks for.
pub(super) fn for_none(object: &mut Map<String, Value>) -> Option<Value> {
    let metadata = member(object, "metadata")?;
    let version = metadata.insert("resourceVersion".to_owned(), OF_NO_OBJECT.into());
    version.filter(|version| !version.is_null())
}

/// Has a body taken for the run that has this uid, in the version that the client itself asks for. Gives its metadata.
pub(super) fn for_one(
    object: &mut Map<String, Value>,
    uid: String,
    version: Option<Value>,
) -> Result<&mut Map<String, Value>, Unknown> {
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut).ok_or(Unknown::Unnamed)?;
    metadata.remove("resourceVersion");
    metadata.extend(version.map(|version| ("resourceVersion".to_owned(), version)));
    let names_one = metadata.get("uid").and_then(Value::as_str).is_some_and(|uid| !uid.is_empty());
    if !names_one {
        metadata.insert("uid".to_owned(), uid.into());
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_names_no_object_is_no_run_that_is_there() {
        for found in ["", "{}", r#"{"ok":true}"#, r#"{"metadata":{}}"#, r#"{"metadata":{"uid":""}}"#] {
            let apply = Fit::Apply(Apply::of(&mut Map::new(), None));
            assert!(apply.onto(br#"{"metadata":{}}"#, found.as_bytes()).is_err(), "{found}");
        }
    }
}
