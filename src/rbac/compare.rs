//! Compares what a cluster has with what the configuration needs.

use std::{collections::BTreeSet, fmt};

use super::{
    Account, Accounts, Form, actions,
    listed::{Object, RoleRef, is_account, is_of_everybody},
    objects,
    right::Right,
};
use crate::{
    config::raw,
    kubernetes::{Named, listed::List},
};

/// A difference from what the configuration needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Something does not work.
    Missing(String),
    /// Something is left of an earlier configuration.
    Stale(String),
    /// More is allowed than is needed.
    TooWide(String),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(what) => write!(f, "missing   {what}"),
            Self::Stale(what) => write!(f, "stale     {what}"),
            Self::TooWide(what) => write!(f, "too wide  {what}"),
        }
    }
}

/// What one configuration needs and another does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub added: Vec<String>,
    pub removed: Vec<String>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

/// Returns the difference between the objects that two configurations need.
pub fn changes(
    before: &raw::Root,
    after: &raw::Root,
    form: Form,
    accounts: Accounts<'_>,
) -> Result<Changes, serde_json::Error> {
    let there = serde_json::to_vec(&serde_json::json!({"items": objects(before, form, accounts)}))?;
    let mut changes = Changes::default();
    for difference in compare(after, form, accounts, &there)? {
        match difference {
            Difference::Missing(what) => changes.added.push(what),
            Difference::Stale(what) | Difference::TooWide(what) => changes.removed.push(what),
        }
    }
    Ok(changes)
}

impl Form {
    /// Returns the form that a cluster has, from a list as [`compare`] takes it. If the classic form was applied over
    /// the constrained one, which undoes it, a role is left that the classic form does not have: the constrained form
    /// is still the intended one.
    pub fn in_list(list: &[u8]) -> Result<Self, serde_json::Error> {
        let List::<Object> { items: there } = serde_json::from_slice(list)?;
        let acts =
            |object: &Object| object.is_rbac() && object.kind == "ClusterRole" && object.metadata.name == actions::NAME;
        Ok(if there.iter().any(acts) { Self::Constrained } else { Self::Classic })
    }
}

/// Compares with the roles and bindings of a cluster: a `v1` `List` in JSON, as `kubectl get` writes it. Objects of
/// other kinds are ignored.
pub fn compare(
    root: &raw::Root,
    form: Form,
    accounts: Accounts<'_>,
    list: &[u8],
) -> Result<Vec<Difference>, serde_json::Error> {
    let List::<Object> { items: there } = serde_json::from_slice(list)?;
    let mut needed = Vec::new();
    for object in objects(root, form, accounts) {
        needed.push(serde_json::from_value::<Object>(serde_json::to_value(object)?)?);
    }
    let own = accounts.each(root);
    let mut differences = Vec::new();
    for need in &needed {
        match there.iter().find(|object| object.is(need)) {
            None => differences.push(Difference::Missing(format!("{need}"))),
            Some(found) if need.role_ref.is_some() => bindings(need, found, &mut differences),
            Some(found) => roles(need, found, &mut differences),
        }
    }
    let others = there.iter().filter(|object| object.is_rbac() && !needed.iter().any(|need| need.is(object)));
    for other in others {
        let ours = other.metadata.labels.get("app.kubernetes.io/managed-by").is_some_and(|by| by == "doorward");
        match &other.role_ref {
            _ if ours => differences.push(Difference::Stale(format!("{other}"))),
            Some(role) => {
                for account in &own {
                    foreign(other, role, account, &needed, &there, &mut differences);
                }
            }
            None => {}
        }
    }
    Ok(differences)
}

/// Reports a binding that the configuration does not need: what it gives to an account of Doorward's, and to whom it
/// gives what only that account should have.
fn foreign(
    other: &Object,
    role: &RoleRef,
    account: &Account,
    needed: &[Object],
    there: &[Object],
    differences: &mut Vec<Difference>,
) {
    let Account { namespace, name } = account;
    let is_same = |bound: &Object| {
        bound.role_ref.as_ref() == Some(role)
            && (role.kind == "ClusterRole" || bound.metadata.namespace == other.metadata.namespace)
            && bound.subjects.iter().flatten().any(|subject| is_account(subject, account))
    };
    let is_ours = needed.iter().any(is_same);
    let is_harmless = || {
        there.iter().any(|object| object.is_bound_by(other, role) && object.rights().iter().all(Right::is_everybodys))
    };
    for subject in other.subjects.iter().flatten() {
        let what = match is_account(subject, account) {
            is_it if is_ours && (!is_it || subject.kind == "Group") => {
                format!("{other} gives {subject} the {} {}, which is Doorward's own", role.kind, role.name)
            }
            true if is_of_everybody(subject) && is_harmless() => continue,
            true if subject.kind == "Group" => {
                format!("{other} gives {namespace}/{name} the {} {}, as one of {}", role.kind, role.name, subject.name)
            }
            true => format!("{other} gives {namespace}/{name} the {} {}", role.kind, role.name),
            false => continue,
        };
        differences.push(Difference::TooWide(what));
    }
}

fn roles(need: &Object, found: &Object, differences: &mut Vec<Difference>) {
    let (wanted, given) = (need.rights(), found.rights());
    let lacking = wanted.iter().filter(|right| !given.iter().any(|given| given.covers(right)));
    differences.extend(lacking.map(|right| Difference::Missing(format!("{need}: {right}"))));
    let beyond = given.iter().filter(|right| !wanted.iter().any(|wanted| wanted.covers(right)));
    differences.extend(beyond.map(|right| Difference::TooWide(format!("{need}: {right}"))));
}

fn bindings(need: &Object, found: &Object, differences: &mut Vec<Difference>) {
    if need.role_ref != found.role_ref {
        differences.push(Difference::Missing(format!("{need}: it binds another role")));
    }
    let of = |object: &Object| object.subjects.iter().flatten().cloned().collect::<BTreeSet<Named>>();
    let (wanted, given) = (of(need), of(found));
    differences.extend(wanted.difference(&given).map(|subject| Difference::Missing(format!("{need}: {subject}"))));
    differences.extend(given.difference(&wanted).map(|subject| Difference::TooWide(format!("{need}: {subject}"))));
}

impl Object {
    /// Whether it is the role that a binding refers to.
    fn is_bound_by(&self, binding: &Self, role: &RoleRef) -> bool {
        self.kind == role.kind
            && self.metadata.name == role.name
            && (role.kind == "ClusterRole" || self.metadata.namespace == binding.metadata.namespace)
    }

    fn rights(&self) -> BTreeSet<Right> {
        self.rules.iter().flatten().flat_map(Right::of).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const CONFIGURATION: &str = "
upstreams: [{name: cluster, url: 'https://kubernetes.default.svc'}]
routes: [{name: api, kind: kubernetes, hosts: [api.test], schemes: [bearer], upstream: cluster}]
grants: [{id: dev, who: {issuers: [a], groups: [dev]}, kubernetes_groups: ['tekton:dev'], tekton_roles: [{role: view, namespaces: [ci]}]}]
rules: [{id: look, on: {kubernetes: {verbs: [read]}}, who: {issuers: [a]}, do: allow}]
";

    fn differences(change: impl FnOnce(&mut Vec<Value>)) -> Vec<String> {
        let root: raw::Root = serde_saphyr::from_str(CONFIGURATION).unwrap();
        let account = Account { namespace: "doorward".to_owned(), name: "doorward".to_owned() };
        let accounts = Accounts { impersonator: &account, reader: &account };
        let printed = objects(&root, Form::Classic, accounts);
        let mut items: Vec<Value> = printed.iter().map(|object| serde_json::to_value(object).unwrap()).collect();
        change(&mut items);
        let list = json!({"kind": "List", "items": items}).to_string();
        let told = compare(&root, Form::Classic, accounts, list.as_bytes()).unwrap();
        told.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn printed_roles_without_changes_show_no_difference() {
        assert!(differences(|_| ()).is_empty());
        let wider = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "another"},
            "roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [{"kind": "User", "name": "carol"}],
        });
        assert!(differences(|items| items.push(wider)).is_empty(), "what others have is theirs");
    }

    fn bound(name: &str, role: &str, subject: &Value) -> Value {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"kind": "ClusterRole", "name": role}, "subjects": [subject],
        })
    }

    #[test]
    fn bindings_of_doorwards_own_role_to_others_are_reported() {
        let mallory = json!({"kind": "User", "name": "mallory"});
        let told = differences(|items| {
            items.push(bound("backdoor", "doorward-impersonator", &mallory));
            let mut within = bound(
                "within",
                "doorward-impersonator",
                &json!({"kind": "Group", "name": "system:serviceaccounts:ci"}),
            );
            within["kind"] = json!("RoleBinding");
            within["metadata"]["namespace"] = json!("ci");
            items.push(within);
            items.push(bound(
                "all",
                "doorward-impersonator",
                &json!({"kind": "Group", "name": "system:authenticated"}),
            ));
            // The counterparts: another role with that name, and a Tekton role that grants give.
            let mut another = bound("another", "doorward-impersonator", &mallory);
            another["kind"] = json!("RoleBinding");
            another["roleRef"]["kind"] = json!("Role");
            another["metadata"]["namespace"] = json!("ci");
            items.push(another);
            items.push(bound("further", "doorward-tekton-view", &mallory));
        });
        let expected = [
            "too wide  ClusterRoleBinding backdoor gives User mallory the ClusterRole doorward-impersonator, which is Doorward's own",
            "too wide  RoleBinding ci/within gives Group system:serviceaccounts:ci the ClusterRole doorward-impersonator, \
             which is Doorward's own",
            "too wide  ClusterRoleBinding all gives Group system:authenticated the ClusterRole doorward-impersonator, \
             which is Doorward's own",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_a_group_is_given_is_given_to_doorward_as_one_of_it() {
        for group in ["system:authenticated", "system:serviceaccounts", "system:serviceaccounts:doorward"] {
            let told = differences(|items| items.push(bound("oops", "edit", &json!({"kind": "Group", "name": group}))));
            let expected = format!(
                "too wide  ClusterRoleBinding oops gives doorward/doorward the ClusterRole edit, as one of {group}"
            );
            assert_eq!(told, [expected]);
        }
        for group in ["system:unauthenticated", "system:serviceaccounts:ci", "system:masters"] {
            let told =
                differences(|items| items.push(bound("others", "edit", &json!({"kind": "Group", "name": group}))));
            assert!(told.is_empty(), "{group}: {told:?}");
        }
    }

    #[test]
    fn rights_of_everybody_are_reported_only_beyond_the_defaults_of_kubernetes_and_tekton() {
        let everybody = json!({"kind": "Group", "name": "system:authenticated"});
        let reviews = json!({"apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews"], "verbs": ["create"]});
        let told = |rule: &Value| {
            differences(|items| {
                items.push(json!({
                    "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "basic"},
                    "rules": [reviews, rule],
                }));
                items.push(bound("basic", "basic", &everybody));
            })
        };
        for rule in [
            json!({"nonResourceURLs": ["/api", "/apis/*", "/version"], "verbs": ["get"]}),
            json!({"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["pipelines-info"], "verbs": ["get"]}),
        ] {
            assert!(told(&rule).is_empty(), "{rule}");
        }
        for rule in [
            json!({"nonResourceURLs": ["*"], "verbs": ["get"]}),
            json!({"nonResourceURLs": ["/apis/*"], "verbs": ["*"]}),
            json!({"nonResourceURLs": ["/metrics"], "verbs": ["get"]}),
            json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}),
            json!({"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["pipelines-info"], "verbs": ["update"]}),
            json!({"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]}),
            json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}),
        ] {
            assert_eq!(told(&rule).len(), 1, "{rule}");
        }
    }

    #[test]
    fn missing_stale_and_excessive_rights_are_named() {
        let role = |items: &mut Vec<Value>, name: &str| -> usize {
            items.iter().position(|item| item["metadata"]["name"] == name && !item["rules"].is_null()).unwrap()
        };
        let told = differences(|items| drop(items.remove(0)));
        assert_eq!(told, ["missing   ClusterRole doorward-impersonator"]);

        let told = differences(|items| {
            let at = role(items, "doorward-impersonator");
            items[at]["rules"][1]["resourceNames"] = json!(["tekton:old"]);
        });
        let expected = [
            "missing   ClusterRole doorward-impersonator: impersonate groups named tekton:dev",
            "too wide  ClusterRole doorward-impersonator: impersonate groups named tekton:old",
        ];
        assert_eq!(told, expected);

        // No names mean all names: nothing is missing, and `system:masters` is among them.
        let told = differences(|items| {
            let at = role(items, "doorward-impersonator");
            items[at]["rules"][1].as_object_mut().unwrap().remove("resourceNames");
        });
        assert_eq!(told, ["too wide  ClusterRole doorward-impersonator: impersonate groups"]);

        let told = differences(|items| {
            let at = role(items, "doorward-tekton-view");
            items[at]["rules"]
                .as_array_mut()
                .unwrap()
                .push(json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["*"]}));
            let mut binding = items.last().unwrap().clone();
            items.last_mut().unwrap()["subjects"][0]["name"] = json!("tekton:ops");
            binding["metadata"]["namespace"] = json!("old");
            items.push(binding);
            items.push(json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "oops"},
                "roleRef": {"kind": "ClusterRole", "name": "cluster-admin"},
                "subjects": [{"kind": "ServiceAccount", "name": "doorward", "namespace": "doorward"}],
            }));
        });
        let expected = [
            "too wide  ClusterRole doorward-tekton-view: * secrets",
            "missing   RoleBinding ci/doorward-tekton-view: Group tekton:dev",
            "too wide  RoleBinding ci/doorward-tekton-view: Group tekton:ops",
            "stale     RoleBinding old/doorward-tekton-view",
            "too wide  ClusterRoleBinding oops gives doorward/doorward the ClusterRole cluster-admin",
        ];
        assert_eq!(told, expected);
    }
}
