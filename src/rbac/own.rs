//! The rights that Doorward's own accounts need, one at a time, as an API server can be asked about them.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use super::{Bound, Form, actions, impersonation};
use crate::{
    config::raw,
    kubernetes::{PolicyRule, access_review::Access},
};

/// A right, and the upstream at which it is needed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OwnRight {
    pub upstream: String,
    pub access: Access,
}

/// Returns all of them, each once. Those for token reviews are left out, because these have a credential of their own.
pub fn own_rights(root: &raw::Root, form: Form) -> Vec<OwnRight> {
    let mut seen = HashSet::new();
    let mut rights: Vec<OwnRight> = Vec::new();
    for (upstream, Bound { namespace, rules, .. }) in own_roles(root, form) {
        for access in rules.iter().flat_map(|rule| accesses(rule, namespace)) {
            let right = OwnRight { upstream: upstream.to_owned(), access };
            if seen.insert(right.clone()) {
                rights.push(right);
            }
        }
    }
    rights
}

/// Returns those for impersonating the groups that grants give.
pub fn group_rights(root: &raw::Root, form: Form) -> Vec<OwnRight> {
    impersonation_rights(root, form, "groups")
}

/// Returns those for impersonating users. Every configuration with impersonation needs them.
pub fn user_rights(root: &raw::Root, form: Form) -> Vec<OwnRight> {
    impersonation_rights(root, form, "users")
}

fn impersonation_rights(root: &raw::Root, form: Form, whom: &str) -> Vec<OwnRight> {
    let role = impersonation::role(root, form);
    let rules = role.rules.iter().filter(|rule| rule.resources.iter().any(|resource| resource == whom));
    let accesses: Vec<Access> = rules.flat_map(|rule| accesses(rule, None)).collect();
    let at = |server: &str| {
        let upstream = server.to_owned();
        accesses.iter().cloned().map(move |access| OwnRight { upstream: upstream.clone(), access })
    };
    servers(root).into_iter().flat_map(at).collect()
}

/// Returns the API servers at which Doorward impersonates.
pub(super) fn servers(root: &raw::Root) -> BTreeSet<&str> {
    let reached = root.routes.iter().filter(|route| route.reaches_kubernetes());
    reached.map(|route| route.kubernetes.as_deref().unwrap_or(route.upstream.as_str())).collect()
}

/// Returns the first upstream at which Doorward both impersonates and reads on its own behalf, so that it has one
/// account for both.
pub fn shared_upstream(root: &raw::Root) -> Option<&str> {
    let servers = servers(root);
    readers(root).into_iter().map(|(server, _)| server).find(|server| servers.contains(server))
}

/// Returns the roles of an account that impersonates.
pub(super) fn impersonating(root: &raw::Root, form: Form) -> Vec<Bound<'_>> {
    let mut roles = vec![impersonation::role(root, form)];
    if form == Form::Constrained {
        roles.extend(actions::roles(root));
    }
    roles
}

/// Returns each role that `doorward rbac` prints, with the upstream that it is for.
pub(super) fn own_roles(root: &raw::Root, form: Form) -> Vec<(&str, Bound<'_>)> {
    let mut roles = Vec::new();
    for server in servers(root) {
        roles.extend(impersonating(root, form).into_iter().map(|role| (server, role)));
    }
    roles.extend(readers(root));
    roles
}

/// Returns the roles by which it reads on its own behalf.
fn readers(root: &raw::Root) -> Vec<(&str, Bound<'_>)> {
    let mut roles = Vec::new();
    if let Some(runs) = &root.runs {
        let watchers = impersonation::watchers_of_runs(runs).into_iter();
        roles.extend(watchers.map(|watcher| (runs.kubernetes.as_str(), watcher)));
    }
    for exchanged in root.clusters() {
        let server = exchanged.kubernetes.as_deref().unwrap_or_default();
        roles.extend(impersonation::lookers_up_of_tasks(exchanged).into_iter().map(|looker| (server, looker)));
    }
    roles.extend(impersonation::requesters(root));
    if let Some(server) = root.interceptor.as_ref().and_then(|interceptor| interceptor.kubernetes.as_deref()) {
        roles.extend(impersonation::trigger_reader(root).map(|reader| (server, reader)));
    }
    roles
}

fn accesses(rule: &PolicyRule, namespace: Option<&str>) -> Vec<Access> {
    let any = [String::new()];
    let names = if rule.resource_names.is_empty() { &any[..] } else { &rule.resource_names };
    let namespace: Arc<str> = namespace.unwrap_or_default().into();
    let mut accesses = Vec::new();
    for group in &rule.groups {
        for resource in &rule.resources {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            for verb in &rule.verbs {
                accesses.extend(names.iter().map(|name| Access {
                    group: group.clone().into(),
                    resource: resource.to_owned().into(),
                    subresource: subresource.to_owned().into(),
                    name: name.as_str().into(),
                    ..Access::new(verb.clone(), Arc::clone(&namespace))
                }));
            }
        }
    }
    let urls = rule.urls.iter().flat_map(|url| rule.verbs.iter().map(move |verb| (verb, url)));
    accesses.extend(urls.map(|(verb, url)| Access::to_url(verb.clone(), url.clone())));
    accesses
}
