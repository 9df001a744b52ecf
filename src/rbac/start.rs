//! The rights by which somebody can start a run in a namespace, from the roles of a cluster.

use std::collections::{BTreeMap, BTreeSet};

use super::who::{Cluster, Holder};
use crate::kubernetes::{Named, access_review::Access};

/// What leads to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Right {
    Create,
    /// As a service account that may create runs, by impersonation.
    BeAccount,
    /// With the token of such an account: a new one, or that of a pod.
    UseAccount,
    /// As a person known to Doorward, with their groups, by impersonation.
    BePerson,
    /// With an event of one's own, sent to an EventListener past its route.
    SendEvent,
    /// By changing what an event creates.
    Define,
    /// By giving a role that has more rights than its giver.
    Give,
}

/// Administrators of the cluster.
pub(super) const MASTERS: &str = "system:masters";

/// What each subject may do, and by which binding. The holders name no objects: the text of what they may do does.
pub(super) type Found = BTreeMap<(Right, Holder), BTreeSet<String>>;

const RUNS: [&str; 2] = ["pipelineruns", "taskruns"];

/// What decides which run an event creates, and as which account. The last ones are cluster-scoped.
const DEFINITIONS: [(&str, bool); 7] = [
    ("eventlisteners", true),
    ("triggers", true),
    ("triggertemplates", true),
    ("triggerbindings", true),
    ("interceptors", true),
    ("clustertriggerbindings", false),
    ("clusterinterceptors", false),
];

const MAKE: &[&str] = &["create"];
const USE: &[&str] = &["get", "create"];
const CHANGE: &[&str] = &["create", "update", "patch"];
const READ: &[&str] = &["get", "list", "watch"];
/// A proxied request is authorized by its method.
const PROXY: &[&str] = &["get", "create", "update", "patch", "delete"];

/// How somebody gets the token of an account: by creating one, by starting a pod that has one (directly or by what
/// creates pods), by getting into such a pod, or by reading the Secret of a token that does not expire. Name, verbs,
/// API group, resource.
const TOKENS: [(&str, &[&str], &str, &str); 14] = [
    ("create", MAKE, "", "serviceaccounts/token"),
    ("create", MAKE, "", "pods"),
    // Another image in a running pod.
    ("change", &["update", "patch"], "", "pods"),
    // A WebSocket is a GET.
    ("use", USE, "", "pods/exec"),
    ("use", USE, "", "pods/attach"),
    ("change", CHANGE, "", "pods/ephemeralcontainers"),
    ("read", READ, "", "secrets"),
    ("change", CHANGE, "", "replicationcontrollers"),
    ("change", CHANGE, "apps", "daemonsets"),
    ("change", CHANGE, "apps", "deployments"),
    ("change", CHANGE, "apps", "replicasets"),
    ("change", CHANGE, "apps", "statefulsets"),
    ("change", CHANGE, "batch", "cronjobs"),
    ("change", CHANGE, "batch", "jobs"),
];

/// How somebody reaches the pods of EventListeners past Doorward: none of these pods looks at the method of a request.
/// A port-forward comes from the kubelet, so no NetworkPolicy stops it.
const REACH: [(&[&str], &str); 3] = [(USE, "pods/portforward"), (PROXY, "pods/proxy"), (PROXY, "services/proxy")];

/// EventListeners, and what creates their runs.
#[derive(Debug, Default)]
pub(super) struct Listening {
    /// The namespaces that have some.
    pub namespaces: BTreeSet<String>,
    /// The namespace of an EventListener, and another one from which it selects Triggers too, or `*` (a
    /// `namespaceSelector`).
    pub selected: BTreeSet<(String, String)>,
    /// The accounts that Triggers name, each in the namespace of its Trigger.
    pub of_triggers: BTreeSet<(String, String)>,
}

impl Listening {
    /// Returns the namespaces whose EventListeners may create runs with one of these accounts: one of their own, or
    /// that of a Trigger elsewhere.
    fn makers<'a>(&'a self, accounts: &'a BTreeMap<String, BTreeSet<String>>) -> BTreeSet<&'a str> {
        let own = accounts.keys().filter(|of| self.namespaces.contains(*of));
        let makes = |of: &String, name: &String| accounts.get(of).is_some_and(|names| names.contains(name));
        let makers: BTreeSet<_> =
            self.of_triggers.iter().filter(|(of, name)| makes(of, name)).map(|(of, _)| of).collect();
        let others = self.selected.iter().filter(|(_, of)| makers.contains(of) || (of == "*" && !makers.is_empty()));
        own.chain(others.map(|(namespace, _)| namespace)).map(String::as_str).collect()
    }
}

/// Finds all subjects that the roles allow to start a run in a namespace.
pub(super) fn found(cluster: &Cluster, namespace: &str, listening: &Listening) -> Found {
    let mut found = Found::new();
    let accounts = creators(cluster, namespace, &mut found);
    for resource in ["users", "groups"] {
        for (holder, verb) in impersonators(cluster, namespace, "user-info", (resource, "")) {
            let may = limited(format!("{verb} {resource}"), &holder.names);
            add(&mut found, Right::BePerson, holder, may);
        }
    }
    for (of, names) in &accounts {
        for (holder, verb) in impersonators(cluster, namespace, "serviceaccount", ("serviceaccounts", of)) {
            let named: Vec<String> = holder.names.iter().filter(|name| names.contains(*name)).cloned().collect();
            if holder.names.is_empty() || !named.is_empty() {
                let may = limited(format!("{verb} serviceaccounts of {of}"), &named);
                add(&mut found, Right::BeAccount, holder, may);
            }
        }
        for (what, verbs, group, resource) in TOKENS {
            let holders = verbs.iter().flat_map(|verb| cluster.holders(&access(verb, group, resource, of)));
            let is_of_account = resource.starts_with("serviceaccounts");
            for holder in holders {
                let named: Vec<String> =
                    holder.names.iter().filter(|name| !is_of_account || names.contains(*name)).cloned().collect();
                if holder.names.is_empty() || !named.is_empty() {
                    let may = limited(format!("{what} {resource} of {of}"), &named);
                    add(&mut found, Right::UseAccount, holder, may);
                }
            }
        }
    }
    for of in listening.makers(&accounts) {
        for (verbs, resource) in REACH {
            for holder in verbs.iter().flat_map(|verb| cluster.holders(&access(verb, "", resource, of))) {
                let may = limited(format!("reach EventListeners by {resource} of {of}"), &holder.names);
                add(&mut found, Right::SendEvent, holder, may);
            }
        }
    }
    if !accounts.is_empty() {
        // The kubelet's own `exec`, in all pods of a node. Nodes are cluster-scoped.
        for holder in USE.iter().flat_map(|verb| cluster.holders(&access(verb, "", "nodes/proxy", ""))) {
            let may = limited("use nodes/proxy".to_owned(), &holder.names);
            add(&mut found, Right::UseAccount, holder, may);
        }
    }
    for (resource, is_namespaced) in DEFINITIONS {
        let namespace = if is_namespaced { namespace } else { "" };
        for verb in CHANGE {
            for holder in cluster.holders(&access(verb, "triggers.tekton.dev", resource, namespace)) {
                let may = limited(format!("change {resource}"), &holder.names);
                add(&mut found, Right::Define, holder, may);
            }
        }
    }
    for resource in ["roles", "clusterroles"] {
        for verb in ["bind", "escalate"] {
            for holder in cluster.holders(&access(verb, "rbac.authorization.k8s.io", resource, namespace)) {
                let may = limited(format!("{verb} {resource}"), &holder.names);
                add(&mut found, Right::Give, holder, may);
            }
        }
    }
    found
}

/// Adds the subjects that may create runs. Returns the accounts among them, by namespace.
fn creators(cluster: &Cluster, namespace: &str, found: &mut Found) -> BTreeMap<String, BTreeSet<String>> {
    let mut accounts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for resource in RUNS {
        for holder in cluster.holders(&access("create", "tekton.dev", resource, namespace)) {
            if let Some((of, name)) = account_of(&holder.subject) {
                accounts.entry(of.to_owned()).or_default().insert(name.to_owned());
            }
            let may = match holder.names.is_empty() {
                true => format!("create {resource}"),
                // A POST names no object, but an apply is a patch of a name, and authorized as a create of it too.
                false => format!("create {resource} named {} by server-side apply", holder.names.join(", ")),
            };
            add(found, Right::Create, holder, may);
        }
    }
    accounts
}

fn add(found: &mut Found, right: Right, holder: Holder, may: String) {
    found.entry((right, Holder { names: Vec::new(), ..holder })).or_default().insert(may);
}

/// Returns who may impersonate (a resource, in a namespace), and by which verb: the classic one, or otherwise that of a
/// mode of constrained impersonation (KEP-5284), which needs a second right to create runs as somebody else.
fn impersonators(
    cluster: &Cluster,
    namespace: &str,
    mode: &str,
    (resource, of): (&'static str, &str),
) -> Vec<(Holder, String)> {
    let classic = cluster.holders(&access("impersonate", "", resource, of));
    let act = format!("impersonate-on:{mode}:create");
    let acting = RUNS.map(|runs| cluster.holders(&access(&act, "tekton.dev", runs, namespace)));
    // The members of a group are unknown.
    let may_act = |who: &Named| {
        let is_of = |other: &Named| other == who || (other.kind == "Group" && other.name != MASTERS);
        acting.iter().flatten().any(|holder| is_of(&holder.subject))
    };
    let verb = format!("impersonate:{mode}");
    let mut further = cluster.holders(&access(&verb, "authentication.k8s.io", resource, of));
    further.retain(|holder| !classic.contains(holder) && may_act(&holder.subject));
    let all = classic.into_iter().map(|holder| (holder, "impersonate".to_owned()));
    all.chain(further.into_iter().map(|holder| (holder, verb.clone()))).collect()
}

fn access(verb: &str, group: &'static str, resource: &'static str, namespace: &str) -> Access {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    Access {
        group: group.into(),
        resource: resource.into(),
        subresource: subresource.into(),
        ..Access::new(verb.to_owned(), namespace.into())
    }
}

fn limited(may: String, names: &[String]) -> String {
    if names.is_empty() { may } else { format!("{may} named {}", names.join(", ")) }
}

/// Returns the account that a subject is, by either of its names.
pub(super) fn account_of(subject: &Named) -> Option<(&str, &str)> {
    match subject.kind.as_str() {
        "ServiceAccount" => Some((subject.namespace.as_deref()?, &subject.name)),
        _ => subject.name.strip_prefix("system:serviceaccount:")?.split_once(':'),
    }
}
