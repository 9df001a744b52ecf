//! What Doorward needs to be allowed as itself, one right at a time, as an API server can be asked.

use std::collections::BTreeSet;

use super::{Account, Bound, Form, PolicyRule, actions, impersonation};
use crate::{config::raw, kubernetes::access_review::Access};

/// A right, and at which upstream it is needed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OwnRight {
    pub upstream: String,
    pub access: Access,
}

/// All of them, each once. What token reviews need is not among them: they have a credential of their own.
pub fn own_rights(root: &raw::Root, form: Form) -> Vec<OwnRight> {
    // To whom roles are bound is not asked.
    let account = Account { namespace: String::new(), name: String::new() };
    let reached = root.routes.iter().filter(|route| route.reaches_kubernetes());
    let servers: BTreeSet<&str> =
        reached.map(|route| route.kubernetes.as_deref().unwrap_or(route.upstream.as_str())).collect();
    let mut rights = Vec::new();
    let mut add = |upstream: &str, bound: &Bound<'_>| {
        for rule in &bound.rules {
            rights.extend(
                accesses(rule, bound.namespace).map(|access| OwnRight { upstream: upstream.to_owned(), access }),
            );
        }
    };
    let whom = impersonation::role(root, form, &account);
    servers.iter().for_each(|server| add(server, &whom));
    if form == Form::Constrained {
        for acting in actions::roles(root, &account) {
            servers.iter().for_each(|server| add(server, &acting));
        }
    }
    if let Some(runs) = &root.runs {
        impersonation::watchers_of_runs(runs, &account).iter().for_each(|watcher| add(&runs.kubernetes, watcher));
    }
    for exchanged in impersonation::exchanging(root) {
        let server = exchanged.kubernetes.as_deref().unwrap_or_default();
        impersonation::lookers_up_of_tasks(exchanged, &account).iter().for_each(|looker| add(server, looker));
    }
    if let Some(server) = root.interceptor.as_ref().and_then(|interceptor| interceptor.kubernetes.as_deref())
        && let Some(reader) = impersonation::trigger_reader(root, &account)
    {
        add(server, &reader);
    }
    rights
}

fn accesses<'a>(rule: &'a PolicyRule, namespace: Option<&'a str>) -> impl Iterator<Item = Access> + 'a {
    let any = [String::new()];
    let names = if rule.resource_names.is_empty() { any.to_vec() } else { rule.resource_names.clone() };
    let of = move |group: &'a String, resource: &'a String| {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let names = names.clone();
        rule.verbs.iter().flat_map(move |verb| {
            let access = Access {
                group: group.clone().into(),
                resource: resource.to_owned().into(),
                subresource: subresource.to_owned().into(),
                ..Access::new(verb.clone(), namespace.unwrap_or_default().into())
            };
            names.clone().into_iter().map(move |name| Access { name: name.into(), ..access.clone() })
        })
    };
    rule.groups.iter().flat_map(move |group| {
        let of = of.clone();
        rule.resources.iter().flat_map(move |resource| of(group, resource))
    })
}
