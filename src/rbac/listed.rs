//! Roles and bindings of a cluster, as `kubectl get` lists them.

use std::fmt;

use serde::Deserialize;

use super::{Account, RBAC};
use crate::kubernetes::{Named, PolicyRule, access_review::Access, listed::Metadata};

/// The fields of a role or a binding that are used here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Object {
    #[serde(default)]
    pub api_version: String,
    #[serde(default)]
    pub kind: String,
    pub metadata: Metadata,
    pub rules: Option<Vec<PolicyRule>>,
    pub role_ref: Option<RoleRef>,
    pub subjects: Option<Vec<Named>>,
}

#[derive(Deserialize, PartialEq, Eq)]
pub(super) struct RoleRef {
    pub kind: String,
    pub name: String,
}

impl Object {
    pub(super) fn is(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.metadata.name == other.metadata.name
            && self.metadata.namespace == other.metadata.namespace
    }

    pub(super) fn is_rbac(&self) -> bool {
        self.api_version.split('/').next() == Some(RBAC)
    }

    pub(super) fn named(&self) -> Named {
        Named { kind: self.kind.clone(), namespace: self.metadata.namespace.clone(), name: self.metadata.name.clone() }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.named().fmt(f)
    }
}

impl PolicyRule {
    /// Whether it allows this, with any name or with those that it lists (`evaluation_helpers.go` of Kubernetes).
    pub(super) fn allows(&self, access: &Access) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|entry| entry == "*" || entry == wanted);
        let resource = |entry: &String| match &*access.subresource {
            "" => *entry == *access.resource,
            // `*/scale`
            sub => entry
                .split_once('/')
                .is_some_and(|(resource, of)| of == sub && (resource == "*" || resource == access.resource)),
        };
        has(&self.verbs, &access.verb)
            && has(&self.groups, &access.group)
            && self.resources.iter().any(|entry| entry == "*" || resource(entry))
    }
}

/// Whether a subject includes this account: by its own name, or as a group that it belongs to.
pub(super) fn is_account(subject: &Named, account: &Account) -> bool {
    let Account { namespace, name } = account;
    match subject.kind.as_str() {
        "ServiceAccount" => subject.name == *name && subject.namespace.as_deref() == Some(namespace),
        "Group" => {
            is_of_everybody(subject) || subject.name.strip_prefix("system:serviceaccounts:") == Some(namespace.as_str())
        }
        _ => subject.name == format!("system:serviceaccount:{namespace}:{name}"),
    }
}

/// Whether a subject includes all accounts of a cluster.
pub(super) fn is_of_everybody(subject: &Named) -> bool {
    subject.kind == "Group" && matches!(subject.name.as_str(), "system:authenticated" | "system:serviceaccounts")
}
