//! What `kubectl get ... -o json` writes, as far as all that read it agree.

use std::collections::BTreeMap;

use serde::{Deserialize, de::IgnoredAny};

/// A `v1` `List` in JSON, with of each object what its reader wants to know.
#[derive(Debug, Deserialize)]
pub struct List<T> {
    pub items: Vec<T>,
}

/// What an object is called.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    pub name: String,
    pub namespace: Option<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// By name alone: `kubectl apply` leaves all of a Secret in one of them.
    pub annotations: Option<BTreeMap<String, IgnoredAny>>,
}
