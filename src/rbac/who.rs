//! Whom RBAC allows to do something, from the roles and bindings of a cluster.
//!
//! This covers RBAC alone: another authorizer of the API server may allow more, and no authorizer is asked about
//! `system:masters`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::listed::Object;
use crate::kubernetes::{Named, PolicyRule, access_review::Access, listed::List};

/// A subject that a binding allows to do something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Holder {
    pub subject: Named,
    /// A binding with a namespace holds in that namespace, and one without everywhere.
    pub binding: Named,
    pub role: Named,
    /// The names of objects to which it is limited; empty: all. A request that names none, such as a POST, is then
    /// refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// A binding of a role that is not in the list: it gives nothing until somebody creates the role.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Dangling {
    pub binding: Named,
    pub role: Named,
    pub subjects: Vec<Named>,
}

/// The roles and bindings of a cluster.
#[derive(Debug, Default)]
pub struct Cluster {
    /// The rules of each role.
    roles: BTreeMap<Named, Vec<PolicyRule>>,
    bindings: Vec<Binding>,
}

#[derive(Debug)]
struct Binding {
    named: Named,
    role: Named,
    subjects: Vec<Named>,
}

impl Cluster {
    /// Reads a `v1` `List` in JSON, as `kubectl get clusterroles,clusterrolebindings,roles,rolebindings -A -o json`
    /// writes it. Objects of other kinds are ignored. Aggregated ClusterRoles have the rules that the API server wrote
    /// into them.
    pub fn read(list: &[u8]) -> serde_json::Result<Self> {
        let List::<Object> { items } = serde_json::from_slice(list)?;
        let mut cluster = Self::default();
        for object in items.into_iter().filter(Object::is_rbac) {
            let named = object.named();
            match (named.kind.as_str(), object.role_ref) {
                ("Role" | "ClusterRole", _) => {
                    cluster.roles.insert(named, object.rules.unwrap_or_default());
                }
                ("RoleBinding" | "ClusterRoleBinding", Some(role)) => {
                    let namespace = named.namespace.clone().filter(|_| role.kind == "Role");
                    let role = Named { kind: role.kind, namespace, name: role.name };
                    let mut subjects = object.subjects.unwrap_or_default();
                    // In a RoleBinding, an account without a namespace is in the namespace of the binding.
                    for account in subjects.iter_mut().filter(|subject| subject.kind == "ServiceAccount") {
                        account.namespace = account.namespace.take().or_else(|| named.namespace.clone());
                    }
                    cluster.bindings.push(Binding { named, role, subjects });
                }
                _ => {}
            }
        }
        Ok(cluster)
    }

    /// Returns the kinds that are missing from the list although every cluster with RBAC has some. Such a list is
    /// incomplete and cannot show who may do something.
    pub fn lacks(&self) -> Vec<&'static str> {
        let kinds: BTreeSet<&str> = self
            .roles
            .keys()
            .chain(self.bindings.iter().map(|binding| &binding.named))
            .map(|named| &*named.kind)
            .collect();
        let all = ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
        all.into_iter().filter(|kind| !kinds.contains(kind)).collect()
    }

    /// Returns everybody whom some binding allows this, once for each binding. Without a namespace, the question is
    /// about all namespaces or a cluster-scoped resource, and bindings in a namespace do not count. Without a name,
    /// what is allowed for some names counts too.
    pub fn holders(&self, access: &Access) -> Vec<Holder> {
        let mut holders = Vec::new();
        for binding in self.in_force(&access.namespace) {
            let Some(names) = self.roles.get(&binding.role).and_then(|rules| names(rules, access)) else { continue };
            holders.extend(binding.subjects.iter().map(|subject| Holder {
                subject: subject.clone(),
                binding: binding.named.clone(),
                role: binding.role.clone(),
                names: names.clone(),
            }));
        }
        holders.sort_unstable();
        holders
    }

    /// Returns the bindings in force in a namespace whose roles are not in the list. Their subjects get whatever
    /// somebody writes into a role of that name.
    pub fn dangling(&self, namespace: &str) -> Vec<Dangling> {
        let without = self.in_force(namespace).filter(|binding| !self.roles.contains_key(&binding.role));
        let mut dangling: Vec<Dangling> = without
            .map(|binding| Dangling {
                binding: binding.named.clone(),
                role: binding.role.clone(),
                subjects: binding.subjects.clone(),
            })
            .collect();
        dangling.sort_unstable();
        dangling
    }

    fn in_force<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Binding> {
        self.bindings
            .iter()
            .filter(move |binding| binding.named.namespace.as_deref().is_none_or(|own| own == namespace))
    }
}

/// Returns the names to which rules limit what they allow; empty: all. `None` if they do not allow it.
fn names(rules: &[PolicyRule], access: &Access) -> Option<Vec<String>> {
    let mut allowing = rules.iter().filter(|rule| rule.allows(access)).peekable();
    allowing.peek()?;
    let mut all = BTreeSet::new();
    for rule in allowing {
        if rule.resource_names.is_empty() {
            return Some(Vec::new());
        }
        all.extend(rule.resource_names.iter().filter(|name| access.name.is_empty() || ***name == *access.name));
    }
    (!all.is_empty()).then(|| all.into_iter().cloned().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const RBAC: &str = "rbac.authorization.k8s.io/v1";

    fn role(kind: &str, at: &str, rules: &Value) -> Value {
        json!({"apiVersion": RBAC, "kind": kind, "metadata": metadata(at), "rules": rules})
    }

    fn binding(at: &str, role: (&str, &str), subjects: &Value) -> Value {
        let kind = if at.contains('/') { "RoleBinding" } else { "ClusterRoleBinding" };
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": role.0, "name": role.1});
        json!({"apiVersion": RBAC, "kind": kind, "metadata": metadata(at), "roleRef": role, "subjects": subjects})
    }

    fn metadata(at: &str) -> Value {
        match at.split_once('/') {
            Some((namespace, name)) => json!({"namespace": namespace, "name": name}),
            None => json!({"name": at}),
        }
    }

    fn told(items: &[Value], access: &Access) -> Vec<String> {
        let list = json!({"kind": "List", "items": items}).to_string();
        let line = |holder: Holder| {
            let names = if holder.names.is_empty() { String::new() } else { format!(" {}", holder.names.join(",")) };
            format!("{} by {}, {}{names}", holder.subject, holder.binding, holder.role)
        };
        Cluster::read(list.as_bytes()).unwrap().holders(access).into_iter().map(line).collect()
    }

    fn create(resource: &'static str, namespace: &str) -> Access {
        Access { group: "tekton.dev".into(), resource: resource.into(), ..Access::new("create", namespace.into()) }
    }

    #[test]
    fn a_rule_allows_what_the_api_server_takes_it_to_allow() {
        let pod = |sub: &'static str| Access {
            resource: "pods".into(),
            subresource: sub.into(),
            ..Access::new("create", "ci".into())
        };
        for (rule, access, allows) in [
            (
                r#"{"apiGroups":["tekton.dev"],"resources":["pipelineruns"],"verbs":["create"]}"#,
                create("pipelineruns", "ci"),
                true,
            ),
            (
                r#"{"apiGroups":["tekton.dev"],"resources":["pipelineruns"],"verbs":["create"]}"#,
                create("taskruns", "ci"),
                false,
            ),
            (r#"{"apiGroups":["*"],"resources":["*"],"verbs":["*"]}"#, create("taskruns", "ci"), true),
            (r#"{"apiGroups":["*"],"resources":["*"],"verbs":["get","patch"]}"#, create("taskruns", "ci"), false),
            (r#"{"apiGroups":["tekton.*"],"resources":["*"],"verbs":["*"]}"#, create("taskruns", "ci"), false),
            (r#"{"apiGroups":[""],"resources":["*"],"verbs":["*"]}"#, create("taskruns", "ci"), false),
            (
                r#"{"apiGroups":["tekton.dev"],"resources":["taskruns/status"],"verbs":["*"]}"#,
                create("taskruns", "ci"),
                false,
            ),
            (r#"{"apiGroups":["tekton.dev"],"resources":["*/status"],"verbs":["*"]}"#, create("taskruns", "ci"), false),
            (r#"{"nonResourceURLs":["*"],"verbs":["*"]}"#, create("taskruns", "ci"), false),
            (r#"{"apiGroups":[""],"resources":["pods"],"verbs":["*"]}"#, pod("exec"), false),
            (r#"{"apiGroups":[""],"resources":["pods/exec"],"verbs":["*"]}"#, pod("exec"), true),
            (r#"{"apiGroups":[""],"resources":["*/exec"],"verbs":["*"]}"#, pod("exec"), true),
            (r#"{"apiGroups":[""],"resources":["*"],"verbs":["*"]}"#, pod("exec"), true),
            (r#"{"apiGroups":[""],"resources":["pods/*"],"verbs":["*"]}"#, pod("exec"), false),
        ] {
            let read: PolicyRule = serde_json::from_str(rule).unwrap();
            assert_eq!(read.allows(&access), allows, "{rule} {access}");
        }
    }

    #[test]
    fn a_right_holds_where_its_binding_does() {
        let runs = json!([{"apiGroups": ["tekton.dev"], "resources": ["pipelineruns"], "verbs": ["create"]}]);
        let someone = |name: &str| json!([{"kind": "User", "name": name}]);
        let items = [
            role("ClusterRole", "runner", &runs),
            role("Role", "ci/runner", &runs),
            role("Role", "ci/reader", &json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["get"]}])),
            role("ClusterRole", "empty", &Value::Null),
            binding("everywhere", ("ClusterRole", "runner"), &someone("ann")),
            binding("ci/of-cluster", ("ClusterRole", "runner"), &someone("bob")),
            binding("ci/of-namespace", ("Role", "runner"), &someone("cat")),
            binding("ci/reads", ("Role", "reader"), &someone("dan")),
            // The role with that name is in another namespace.
            binding("prod/none", ("Role", "runner"), &someone("eve")),
            binding("prod/of-cluster", ("ClusterRole", "runner"), &someone("fay")),
            binding("ci/empty", ("ClusterRole", "empty"), &someone("gil")),
            binding("ci/nobody", ("ClusterRole", "runner"), &Value::Null),
            // From another API group, which binds nothing in Kubernetes.
            json!({"apiVersion": "authorization.openshift.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "other"},
                "roleRef": {"kind": "ClusterRole", "name": "runner"}, "subjects": [{"kind": "User", "name": "hal"}]}),
        ];
        let everywhere = "User ann by ClusterRoleBinding everywhere, ClusterRole runner";
        let here = [
            everywhere,
            "User bob by RoleBinding ci/of-cluster, ClusterRole runner",
            "User cat by RoleBinding ci/of-namespace, Role ci/runner",
        ];
        assert_eq!(told(&items, &create("pipelineruns", "ci")), here);
        let there = [everywhere, "User fay by RoleBinding prod/of-cluster, ClusterRole runner"];
        assert_eq!(told(&items, &create("pipelineruns", "prod")), there);
        assert_eq!(told(&items, &create("pipelineruns", "")), [everywhere], "in all namespaces at once");
        assert!(told(&items, &create("taskruns", "ci")).is_empty());

        let cluster = Cluster::read(json!({"items": items}).to_string().as_bytes()).unwrap();
        let dangling = cluster.dangling("prod");
        assert_eq!(dangling.len(), 1);
        assert_eq!(dangling[0].role.to_string(), "Role prod/runner");
        assert_eq!(dangling[0].subjects, [Named { kind: "User".into(), namespace: None, name: "eve".into() }]);
        assert!(cluster.dangling("ci").is_empty());
    }

    #[test]
    fn names_limit_a_right_and_a_rule_without_them_lifts_the_limit() {
        let of = |names: &Value| json!({"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"], "resourceNames": names});
        let item = |rules: &Value| {
            let subjects = json!([{"kind": "ServiceAccount", "namespace": "a", "name": "b"}]);
            [role("ClusterRole", "r", rules), binding("r", ("ClusterRole", "r"), &subjects)]
        };
        let access = |name: &str| Access {
            resource: "groups".into(),
            name: name.into(),
            ..Access::new("impersonate", "".into())
        };
        let by = "ServiceAccount a/b by ClusterRoleBinding r, ClusterRole r";
        let two = item(&json!([of(&json!(["x"])), of(&json!(["y", "x"]))]));
        assert_eq!(told(&two, &access("")), [format!("{by} x,y")]);
        assert_eq!(told(&two, &access("y")), [format!("{by} y")]);
        assert!(told(&two, &access("z")).is_empty());
        let all = item(&json!([of(&json!(["x"])), of(&json!([]))]));
        assert_eq!(told(&all, &access("")), [by]);
        assert_eq!(told(&all, &access("z")), [by]);
    }

    #[test]
    fn an_account_without_a_namespace_is_of_the_bindings() {
        let all = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
        let items = [
            role("ClusterRole", "all", &all),
            binding("ci/all", ("ClusterRole", "all"), &json!([{"kind": "ServiceAccount", "name": "builder"}])),
        ];
        let by = "ServiceAccount ci/builder by RoleBinding ci/all, ClusterRole all";
        assert_eq!(told(&items, &create("taskruns", "ci")), [by]);
    }

    #[test]
    fn an_incomplete_list_is_reported() {
        assert!(Cluster::read(b"{}").is_err());
        assert!(Cluster::read(b"no").is_err());
        let items = [role("ClusterRole", "r", &json!([])), binding("ci/r", ("Role", "r"), &json!([]))];
        let cluster = Cluster::read(json!({"items": items}).to_string().as_bytes()).unwrap();
        assert_eq!(cluster.lacks(), ["ClusterRoleBinding", "Role"]);
    }
}
