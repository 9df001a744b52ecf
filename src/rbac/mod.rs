//! What Doorward's configuration needs from Kubernetes RBAC: the minimum rights to impersonate, and the Tekton roles
//! that grants give.
//!
//! | file | holds |
//! |---|---|
//! | `impersonation` | who may be impersonated, in the classic and in the constrained form |
//! | `actions` | what may be done while impersonating, from the rules (constrained form only) |
//! | `own` | these rights and what Doorward reads, one right at a time, as an API server can be asked |
//! | `tekton` | the roles that people, bots and agents get by their groups |
//! | `beyond` | rights that an API server gives Doorward and nothing needs |
//! | `right` | one verb on one thing, and whether another right includes it |
//! | `listed` | roles and bindings as a cluster lists them |
//! | `compare` | what a cluster has, compared with what is needed |
//! | `who` | whom a cluster allows to do something |
//! | `start` | the rights by which somebody can start a run |
//! | `bypass` | whom a cluster allows to start runs, and which of them can bypass Doorward |

mod actions;
mod beyond;
mod bypass;
mod compare;
mod impersonation;
mod listed;
mod own;
mod right;
mod start;
mod tekton;
mod who;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde::Serialize;

pub use self::{
    beyond::{beyond, far_reaching, namespaces},
    bypass::{Bypass, BypassRight, Installed, Strays, find_bypass, strays},
    compare::{Changes, changes, compare},
    own::{OwnRight, group_rights, own_rights, shared_upstream, user_rights},
};
use crate::{config::raw, kubernetes::PolicyRule};

/// How messages name the roles to apply. Without its earlier options, the command prints the classic form, which undoes
/// an applied constrained form, and for the account `doorward/doorward`.
pub const PRINTS: &str = "`doorward rbac`, with the same options as before (`--form` too), prints";

/// How impersonation is allowed. Never both: an API server falls back to the classic right, which undoes the
/// constraint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// The verb `impersonate`, for all API servers.
    Classic,
    /// Constrained impersonation (KEP-5284), on by default from Kubernetes 1.36: it limits not only who may be
    /// impersonated, but also what may be done then.
    Constrained,
}

/// A service account, such as Doorward's at the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub namespace: String,
    pub name: String,
}

/// Doorward's accounts at an API server, which may be the same.
#[derive(Clone, Copy, Debug)]
pub struct Accounts<'a> {
    /// At upstreams to which it sends requests of people, unless the configuration names another account for one.
    pub impersonator: &'a Account,
    /// At upstreams where it reads on its own behalf: runs, pods and Triggers.
    pub reader: &'a Account,
}

impl Accounts<'_> {
    /// All accounts that impersonate, each once.
    fn impersonators(self, root: &raw::Root) -> Vec<Account> {
        let mut all = Vec::new();
        for server in own::servers(root) {
            let requested = root.upstreams.iter().find(|upstream| upstream.name == server);
            let account = match requested.and_then(raw::Upstream::requested_account) {
                Some(raw::RequestedAccount { namespace, name, .. }) => {
                    Account { namespace: namespace.clone(), name: name.clone() }
                }
                None => self.impersonator.clone(),
            };
            if !all.contains(&account) {
                all.push(account);
            }
        }
        all
    }

    /// All accounts, each once.
    fn each(self, root: &raw::Root) -> Vec<Account> {
        let mut all = self.impersonators(root);
        // Where nothing impersonates, the account can still have the rights of an earlier configuration.
        if all.is_empty() {
            all.push(self.impersonator.clone());
        }
        if !all.contains(self.reader) {
            all.push(self.reader.clone());
        }
        all
    }
}

/// A subject that gets a role.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject<'a> {
    Account(&'a Account),
    Group(&'a str),
}

/// A role of one of Doorward's accounts, bound in one namespace or everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bound<'a> {
    name: &'static str,
    namespace: Option<&'a str>,
    rules: Vec<PolicyRule>,
}

/// Returns all objects, as YAML for `kubectl apply -f -`; empty if the configuration needs none.
pub fn manifest(root: &raw::Root, form: Form, accounts: Accounts<'_>) -> Result<String, serde_saphyr::ser::Error> {
    let mut yaml = String::new();
    for object in objects(root, form, accounts) {
        yaml.push_str("---\n");
        yaml.push_str(&serde_saphyr::to_string(&object)?);
    }
    Ok(yaml)
}

fn objects(root: &raw::Root, form: Form, accounts: Accounts<'_>) -> Vec<Object> {
    let impersonators = accounts.impersonators(root);
    let roles = if impersonators.is_empty() { Vec::new() } else { own::impersonating(root, form) };
    let acting = roles.into_iter().flat_map(|bound| bound.objects(&impersonators));
    let reading = impersonation::as_itself(root).into_iter();
    let reading = reading.flat_map(|bound| bound.objects(std::slice::from_ref(accounts.reader)));
    acting.chain(reading).chain(tekton::objects(root)).collect()
}

/// The Kubernetes groups that grants give.
fn groups(root: &raw::Root) -> BTreeSet<&str> {
    root.grants.iter().flat_map(|grant| &grant.kubernetes_groups).map(String::as_str).collect()
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    #[serde(skip_serializing_if = "Option::is_none")]
    rules: Option<Vec<PolicyRule>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role_ref: Option<RoleRef>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subjects: Vec<SubjectRef>,
}

#[derive(Debug, Serialize)]
struct Metadata {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    labels: Labels,
}

/// `kubectl apply --prune` uses these to find what a later configuration no longer needs.
#[derive(Debug, Serialize)]
struct Labels {
    #[serde(rename = "app.kubernetes.io/managed-by")]
    managed_by: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RoleRef {
    api_group: &'static str,
    kind: &'static str,
    name: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SubjectRef {
    kind: &'static str,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_group: Option<&'static str>,
}

const RBAC: &str = "rbac.authorization.k8s.io";

impl<'a> Bound<'a> {
    fn new(name: &'static str, namespace: Option<&'a str>, rules: Vec<PolicyRule>) -> Self {
        Self { name, namespace, rules: right::without_repeats(rules) }
    }

    /// Returns the role, and the binding to those accounts.
    fn objects(self, accounts: &[Account]) -> [Object; 2] {
        let Self { name, namespace, rules } = self;
        let kind = if namespace.is_some() { "Role" } else { "ClusterRole" };
        let subjects: Vec<Subject<'_>> = accounts.iter().map(Subject::Account).collect();
        [role(kind, name, namespace, rules), binding(kind, name, name, namespace, &subjects)]
    }
}

fn role(kind: &'static str, name: &str, namespace: Option<&str>, rules: Vec<PolicyRule>) -> Object {
    Object { rules: Some(rules), ..object(kind, name, namespace) }
}

/// Returns the binding of a role of `kind`: everywhere, or in one namespace.
fn binding(kind: &'static str, role: &str, name: &str, namespace: Option<&str>, subjects: &[Subject<'_>]) -> Object {
    let binding = if namespace.is_some() { "RoleBinding" } else { "ClusterRoleBinding" };
    Object {
        role_ref: Some(RoleRef { api_group: RBAC, kind, name: role.to_owned() }),
        subjects: subjects.iter().map(SubjectRef::from).collect(),
        ..object(binding, name, namespace)
    }
}

fn object(kind: &'static str, name: &str, namespace: Option<&str>) -> Object {
    Object {
        api_version: "rbac.authorization.k8s.io/v1",
        kind,
        metadata: Metadata {
            name: name.to_owned(),
            namespace: namespace.map(str::to_owned),
            labels: Labels { managed_by: "doorward" },
        },
        rules: None,
        role_ref: None,
        subjects: Vec::new(),
    }
}

impl From<&Subject<'_>> for SubjectRef {
    fn from(subject: &Subject<'_>) -> Self {
        match subject {
            Subject::Account(account) => Self {
                kind: "ServiceAccount",
                name: account.name.clone(),
                namespace: Some(account.namespace.clone()),
                api_group: None,
            },
            Subject::Group(group) => {
                Self { kind: "Group", name: (*group).to_owned(), namespace: None, api_group: Some(RBAC) }
            }
        }
    }
}
