//! A rule of a role.

use serde::{Deserialize, Serialize};

/// A rule of a role (`rbac.authorization.k8s.io/v1`).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRule {
    #[serde(rename = "apiGroups", skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Empty means all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    pub verbs: Vec<String>,
}

impl PolicyRule {
    /// Creates a rule without resource names and URLs.
    pub fn new(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Self {
        Self { groups: texts(groups), resources: texts(resources), verbs: texts(verbs), ..Self::default() }
    }
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}
