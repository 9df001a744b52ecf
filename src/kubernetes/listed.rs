//! The output of `kubectl get ... -o json`, as far as all its readers need the same.

use std::collections::BTreeMap;

use serde::{Deserialize, de::IgnoredAny};

/// A `v1` `List` in JSON, with the parts of each object that its reader needs.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an object with `items`")]
pub struct List<T> {
    pub items: Vec<T>,
}

/// The metadata of an object.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    pub name: String,
    pub namespace: Option<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Only the names: `kubectl apply` stores a complete Secret in the value of one of them.
    pub annotations: Option<BTreeMap<String, IgnoredAny>>,
}
