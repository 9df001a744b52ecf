//! Adapts the body of a request to a run that may exist already. Only the API server knows whether it does, and what it
//! contains.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{apply::Apply, attribution::member, claims::Claims, document::Unreadable};

/// A resource version that no object has, as etcd starts counting from it. The API server refuses a request with it if
/// the object exists.
const OF_NO_OBJECT: &str = "1";

/// Adapts a body to the existing run. Until then, the body does nothing to an existing one.
#[derive(Debug)]
pub enum Fit {
    /// By server-side apply.
    Apply(Apply),
    /// By a merge patch.
    Patch(Claims),
}

/// Why a body cannot be adapted to the existing run.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    #[error("the answer cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the answer names no object")]
    Unnamed,
    /// It must not be applied to that run.
    #[error(transparent)]
    Refused(Unreadable),
}

#[derive(Deserialize)]
struct Existing {
    metadata: There,
}

/// The metadata of an existing run.
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
    /// The body for the existing run, which the API server returned in `found`, and for no other run of this name.
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

/// Makes a body valid only if no run exists. Returns the resource version that the client itself requires.
pub(super) fn for_none(object: &mut Map<String, Value>) -> Option<Value> {
    let metadata = member(object, "metadata")?;
    let version = metadata.insert("resourceVersion".to_owned(), OF_NO_OBJECT.into());
    version.filter(|version| !version.is_null())
}

/// Makes a body valid only for the run with this uid, in the version that the client itself requires. Returns its
/// metadata.
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
