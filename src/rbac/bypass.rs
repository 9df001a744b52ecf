//! Whom a cluster allows to start Tekton runs in a namespace, and which of them can bypass Doorward.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Account, groups,
    own::servers,
    start::{Listening, MASTERS, Right, account_of, found},
    who::{Cluster, Dangling, Holder},
};
use crate::{
    config::raw,
    kubernetes::{
        Named,
        listed::{List, Metadata},
    },
    tekton::{dashboard::is_subdomain, listener_accounts},
};

/// Something that leads to a run and that one binding allows a subject to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BypassRight {
    pub subject: Named,
    /// Such as `create pipelineruns`, or `impersonate users`.
    pub may: Vec<String>,
    pub binding: Named,
    pub role: Named,
    /// Why it is as it should be; `None` if nothing in the configuration or in Tekton requires it.
    pub expected: Option<String>,
    /// What the name of the subject does not say.
    pub note: Option<String>,
}

/// The subjects that a cluster allows to start runs in a namespace.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Bypass {
    /// For each group that grants give, the rights by which its members may create runs. They need one to create
    /// runs through Doorward.
    pub by_group: BTreeMap<String, Vec<BypassRight>>,
    /// All other subjects: they need no rule.
    pub others: Vec<BypassRight>,
    /// Bindings in that namespace whose roles are not in the list.
    pub dangling: Vec<Dangling>,
    /// Kinds that are missing from the list, which is therefore incomplete.
    pub lacks: Vec<&'static str>,
}

/// The note on a group that grants give, if the right is not that to create runs.
const GRANTED: &str = "a group that grants give: through Doorward a rule must allow this too";

/// Everybody who is not anonymous, including the users that Doorward impersonates.
const AUTHENTICATED: &str = "system:authenticated";

/// The installed parts that must be able to start runs in a cluster, whatever the configuration says.
#[derive(Clone, Copy, Debug)]
pub struct Installed<'a> {
    /// Doorward's service account.
    pub doorward: &'a Account,
    /// The namespace of Tekton's controllers.
    pub tekton: &'a str,
}

/// Finds the subjects that may start runs in `namespace`, from the output of `kubectl get
/// clusterroles,clusterrolebindings,roles,rolebindings -A -o json`. With ServiceAccounts, EventListeners and Triggers
/// in it, the result says what accounts are for, and which do not exist.
pub fn find_bypass(
    list: &[u8],
    root: &raw::Root,
    installed: Installed<'_>,
    namespace: &str,
) -> serde_json::Result<Bypass> {
    Ok(Search::read(list, root, installed)?.within(namespace))
}

/// The subjects that may unexpectedly start runs, and in which namespaces. Namespaces are those where the list has
/// objects of Tekton, and those that the configuration names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strays {
    pub rights: Vec<(BypassRight, Vec<String>)>,
    /// Kinds that are missing from the list, as in [`Bypass`].
    pub lacks: Vec<&'static str>,
    /// The number of namespaces that were examined.
    pub namespaces: usize,
}

/// [`find_bypass`] for all of these namespaces, without the subjects that are expected.
pub fn strays(list: &[u8], root: &raw::Root, installed: Installed<'_>) -> serde_json::Result<Strays> {
    let search = Search::read(list, root, installed)?;
    let mut strays: Vec<(BypassRight, Vec<String>)> = Vec::new();
    let namespaces = namespaces_of(list, root)?;
    let count = namespaces.len();
    for namespace in namespaces {
        for right in search.within(&namespace).others.into_iter().filter(|right| right.expected.is_none()) {
            match strays.iter_mut().find(|(other, _)| *other == right) {
                Some((_, namespaces)) => namespaces.push(namespace.clone()),
                None => strays.push((right, vec![namespace.clone()])),
            }
        }
    }
    Ok(Strays { rights: strays, lacks: search.cluster.lacks(), namespaces: count })
}

fn namespaces_of(list: &[u8], root: &raw::Root) -> serde_json::Result<BTreeSet<String>> {
    let List::<Item> { items } = serde_json::from_slice(list)?;
    let is_tektons =
        |item: &Item| item.api_version.split_once('/').is_some_and(|(group, _)| group.ends_with("tekton.dev"));
    let there = items.into_iter().filter(is_tektons).filter_map(|item| item.metadata.namespace);
    let of_rules = root.rules.iter().flat_map(|rule| {
        let listed = rule.on.kubernetes.iter().flat_map(|on| &on.namespaces);
        rule.on.namespace.iter().chain(listed)
    });
    let of_runs = root.runs.iter().flat_map(|runs| &runs.namespaces);
    let of_tasks = root.exchanged().flat_map(|exchanged| &exchanged.namespaces);
    let configured = of_rules.chain(of_runs).chain(of_tasks).cloned();
    Ok(there.chain(configured).filter(|name| is_subdomain(name)).collect())
}

struct Search<'a> {
    cluster: Cluster,
    others: Others,
    granted: BTreeSet<&'a str>,
    /// Doorward's own accounts.
    accounts: Vec<(&'a str, &'a str)>,
    /// Whether it sends any request on behalf of a person to an API server.
    impersonates: bool,
    /// The namespace of Tekton.
    tekton: &'a str,
}

impl<'a> Search<'a> {
    fn read(list: &[u8], root: &'a raw::Root, installed: Installed<'a>) -> serde_json::Result<Self> {
        let Installed { doorward: Account { namespace, name }, tekton } = installed;
        let requested = root.upstreams.iter().filter_map(raw::Upstream::requested_account);
        let accounts = requested.map(|account| (account.namespace.as_str(), account.name.as_str()));
        let accounts = accounts.chain([(namespace.as_str(), name.as_str())]).collect();
        let (cluster, others) = (Cluster::read(list)?, Others::read(list, root)?);
        let impersonates = !servers(root).is_empty();
        Ok(Self { cluster, others, granted: groups(root), accounts, impersonates, tekton })
    }

    fn within(&self, namespace: &str) -> Bypass {
        let mut bypass = Bypass {
            by_group: self.granted.iter().map(|group| ((*group).to_owned(), Vec::new())).collect(),
            dangling: self.cluster.dangling(namespace),
            lacks: self.cluster.lacks(),
            ..Bypass::default()
        };
        for ((right, Holder { subject, binding, role, .. }), may) in
            found(&self.cluster, namespace, &self.others.listening)
        {
            let of_group = |group: &str| subject.kind == "Group" && subject.name == group;
            let is_granted = self.granted.iter().any(|group| of_group(group));
            let doorward = (self.accounts.as_slice(), self.impersonates);
            let (expected, note) = self.others.judge(right, &subject, (&binding, &role), doorward, self.tekton);
            let note = note.or_else(|| is_granted.then(|| GRANTED.to_owned()));
            let may = may.into_iter().collect();
            let bypass_right = BypassRight { expected, note, subject: subject.clone(), may, binding, role };
            if right == Right::Create {
                for (group, rights) in &mut bypass.by_group {
                    if of_group(group) || of_group(AUTHENTICATED) {
                        rights.push(BypassRight { note: None, ..bypass_right.clone() });
                    }
                }
                if is_granted {
                    continue;
                }
            }
            bypass.others.push(bypass_right);
        }
        bypass
    }
}

/// What a list says about accounts besides their rights.
#[derive(Default)]
struct Others {
    /// All accounts, if there are any in the list.
    accounts: BTreeSet<(String, String)>,
    /// What an account creates runs for.
    uses: BTreeMap<(String, String), BTreeSet<Use>>,
    listening: Listening,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    /// `EventListener ci/build`
    of: Named,
    /// Why its deliveries come through Doorward, as far as the configuration shows.
    through: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    spec: Value,
}

impl Others {
    fn read(list: &[u8], root: &raw::Root) -> serde_json::Result<Self> {
        let List::<Item> { items } = serde_json::from_slice(list)?;
        let mut others = Self::default();
        let mut of_triggers = Vec::new();
        let mut is_behind_route = Vec::new();
        for Item { kind, metadata: Metadata { name, namespace, .. }, spec, .. } in items {
            let namespace = namespace.unwrap_or_default();
            match kind.as_str() {
                "ServiceAccount" => drop(others.accounts.insert((namespace, name))),
                "EventListener" => {
                    let route = route_to(root, &namespace, &name);
                    is_behind_route.push(route.is_some());
                    others.listening.namespaces.insert(namespace.clone());
                    let selected = selected(&spec).map(|of| (namespace.clone(), of.to_owned()));
                    others.listening.selected.extend(selected);
                    let of = Use {
                        of: Named { kind, namespace: Some(namespace.clone()), name },
                        through: route.map(|route| format!("behind the route {route}")),
                    };
                    for account in listener_accounts(&spec) {
                        others.uses.entry((namespace.clone(), account)).or_default().insert(of.clone());
                    }
                }
                "Trigger" => {
                    let account = account_in(&spec).map(|account| (namespace.clone(), account));
                    others.listening.of_triggers.extend(account.clone());
                    let of = Named { kind, namespace: Some(namespace), name };
                    of_triggers.extend(account.map(|account| (account, of)));
                }
                _ => {}
            }
        }
        // It is not determined which of them selects a Trigger.
        let is_each = !is_behind_route.is_empty() && is_behind_route.iter().all(|is_behind| *is_behind);
        let through = is_each.then(|| "set off by EventListeners that are all behind routes".to_owned());
        for (account, of) in of_triggers {
            others.uses.entry(account).or_default().insert(Use { of, through: through.clone() });
        }
        Ok(others)
    }

    /// Returns why a subject should have a right, and what else is known about it.
    fn judge(
        &self,
        right: Right,
        subject: &Named,
        (binding, role): (&Named, &Named),
        (doorward, impersonates): (&[(&str, &str)], bool),
        tekton: &str,
    ) -> (Option<String>, Option<String>) {
        let expected = |why: &str| (Some(why.to_owned()), None);
        let noted = |what: &str| (None, Some(what.to_owned()));
        match (subject.kind.as_str(), subject.name.as_str()) {
            ("Group", MASTERS) => {
                return expected("administrators of the cluster, whom no authorizer refuses anything");
            }
            ("Group", AUTHENTICATED) => return noted("everybody with any credential of the cluster"),
            ("Group", "system:unauthenticated") => return noted("everybody, without any credential"),
            ("Group", "system:serviceaccounts") => return noted("every service account of the cluster"),
            ("Group", group) => {
                let Some(namespace) = group.strip_prefix("system:serviceaccounts:") else { return (None, None) };
                return noted(&format!("every service account of the namespace {namespace}"));
            }
            _ => {}
        }
        if is_kubernetes(subject, binding, role) {
            return expected("a part of Kubernetes, as it is installed");
        }
        let Some((namespace, name)) = account_of(subject) else {
            let what = "anybody who has this name at the API server; those who get it through Doorward need a rule too";
            let is_asked_here = !matches!(right, Right::BeAccount | Right::BePerson);
            return if is_asked_here { noted(what) } else { (None, None) };
        };
        if doorward.contains(&(namespace, name)) {
            return match right {
                Right::BePerson if impersonates => {
                    expected("Doorward itself, which impersonates the people that it let in")
                }
                _ => noted("Doorward itself, which needs no such right: see `doorward rbac --check`"),
            };
        }
        if let Some(why) = of_tekton(tekton, (namespace, name), right, (binding, role)) {
            return expected(why);
        }
        let account = (namespace.to_owned(), name.to_owned());
        if let Some(uses) = self.uses.get(&account).filter(|_| matches!(right, Right::Create | Right::BeAccount)) {
            let stray = uses.iter().find(|of| of.through.is_none());
            return match stray {
                Some(Use { of, .. }) if of.kind == "EventListener" => {
                    noted(&format!("it makes the runs of {of}, to which no route leads"))
                }
                Some(Use { of, .. }) => noted(&format!(
                    "it makes the runs of {of}, and not each EventListener is known to be behind a route"
                )),
                None => {
                    let each =
                        uses.iter().map(|Use { of, through }| format!("{of}, {}", through.as_deref().unwrap_or("")));
                    expected(&format!("it makes the runs of {}", each.collect::<Vec<_>>().join("; ")))
                }
            };
        }
        if !self.accounts.is_empty() && !self.accounts.contains(&account) {
            return noted("there is no such service account: whoever may make one of that name has the right");
        }
        (None, None)
    }
}

/// The service accounts of an installed Tekton, with what each is bound to and why.
const TEKTON: [(&str, Right, &str); 10] = [
    ("tekton-pipelines-controller", Right::Create, "Tekton's own controller, which makes the runs of pipelines"),
    ("tekton-pipelines-controller", Right::UseAccount, "Tekton's own controller, which makes the pods of runs"),
    ("tekton-pipelines-webhook", Right::UseAccount, "Tekton's own webhook, whose certificate is in a Secret"),
    (
        "tekton-triggers-controller",
        Right::UseAccount,
        "Tekton's own controller of Triggers, which makes the pods of EventListeners",
    ),
    ("tekton-triggers-controller", Right::Define, "Tekton's own controller of Triggers"),
    (
        "tekton-triggers-webhook",
        Right::UseAccount,
        "Tekton's own webhook of Triggers, with the role of their controller",
    ),
    ("tekton-triggers-webhook", Right::Define, "Tekton's own webhook of Triggers, with the role of their controller"),
    (
        "tekton-triggers-core-interceptors",
        Right::UseAccount,
        "Tekton's own interceptors, which read the secrets of webhooks",
    ),
    (
        "tekton-triggers-core-interceptors",
        Right::Define,
        "Tekton's own interceptors, which write their authority into their ClusterInterceptors",
    ),
    (RESOLVERS, Right::UseAccount, "Tekton's own resolvers, which read the secrets for sources of tasks and pipelines"),
];

const RESOLVERS: &str = "tekton-pipelines-resolvers";

/// Returns why an account of Tekton's has a right by this binding. Other rights that somebody gave it come from a
/// binding or a role of another name.
fn of_tekton(
    tekton: &str,
    (namespace, name): (&str, &str),
    right: Right,
    (binding, role): (&Named, &Named),
) -> Option<&'static str> {
    // A release of Tekton has its resolvers in a separate namespace, while Tekton's operator puts everything into one.
    let is_there = namespace == tekton || (name == RESOLVERS && namespace.strip_suffix("-resolvers") == Some(tekton));
    let is_its_own = is_there && [binding, role].iter().all(|named| named.name.starts_with("tekton-"));
    let mut known = TEKTON.iter().filter(|_| is_its_own);
    known.find(|(known, of, _)| *known == name && *of == right).map(|(.., why)| *why)
}

/// Whether it is one of the users and accounts that Kubernetes itself binds to its own roles.
fn is_kubernetes(subject: &Named, binding: &Named, role: &Named) -> bool {
    let of_its_own = match account_of(subject) {
        Some((namespace, _)) => namespace == "kube-system",
        None => subject.kind == "User" && subject.name.starts_with("system:kube-"),
    };
    of_its_own && [binding, role].iter().all(|named| named.name.starts_with("system:"))
}

/// Returns the namespaces whose Triggers an EventListener selects: by its own selector, and by that of each of its
/// groups.
fn selected(spec: &Value) -> impl Iterator<Item = &str> {
    let groups = spec.get("triggerGroups").and_then(Value::as_array).into_iter().flatten();
    let of_groups = groups.filter_map(|group| group.pointer("/triggerSelector/namespaceSelector"));
    let selectors = spec.get("namespaceSelector").into_iter().chain(of_groups);
    let names = selectors.filter_map(|selector| selector.get("matchNames")?.as_array()).flatten();
    names.filter_map(Value::as_str)
}

fn account_in(spec: &Value) -> Option<String> {
    spec.get("serviceAccountName").and_then(Value::as_str).filter(|name| !name.is_empty()).map(str::to_owned)
}

fn route_to<'a>(root: &'a raw::Root, namespace: &str, name: &str) -> Option<&'a str> {
    let leads_there = |route: &&raw::Route| {
        let listener = route.event_listener.as_ref();
        listener.is_some_and(|listener| listener.namespace == namespace && listener.name == name)
    };
    root.routes.iter().find(leads_there).map(|route| route.name.as_str())
}

#[cfg(test)]
mod tests;
