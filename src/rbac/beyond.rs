//! Rights that reach far and that nothing in the configuration needs. Whoever takes Doorward over has them too, so that one
//! too many is worth a word.

use crate::{config::raw, kubernetes::access_review::Access};

use super::{Form, own_rights};

/// Verb, API group, resource with its sub-resource, name.
const FAR_REACHING: [(&str, &str, &str, &str); 13] = [
    ("*", "*", "*", ""),
    ("impersonate", "", "groups", "system:masters"),
    ("impersonate", "", "users", "system:admin"),
    ("list", "", "secrets", ""),
    ("create", "", "secrets", ""),
    ("create", "", "serviceaccounts/token", ""),
    ("create", "", "pods", ""),
    ("create", "", "pods/exec", ""),
    ("create", "tekton.dev", "pipelineruns", ""),
    ("create", "tekton.dev", "taskruns", ""),
    ("create", "rbac.authorization.k8s.io", "clusterrolebindings", ""),
    ("bind", "rbac.authorization.k8s.io", "clusterroles", ""),
    ("escalate", "rbac.authorization.k8s.io", "clusterroles", ""),
];

/// What reaches far and is not needed at the upstream `server`, in whichever form of impersonation.
pub fn far_reaching(root: &raw::Root, server: &str) -> Vec<Access> {
    let needed = [Form::Classic, Form::Constrained].map(|form| own_rights(root, form)).concat();
    let here = needed.iter().filter(|right| right.upstream == server).map(|right| &right.access);
    let here: Vec<&Access> = here.collect();
    let all = FAR_REACHING.iter().map(|(verb, group, resource, name)| {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Access {
            group: (*group).into(),
            resource: resource.into(),
            subresource: subresource.into(),
            name: (*name).into(),
            ..Access::new(*verb, "".into())
        }
    });
    all.filter(|far| !here.iter().any(|needed| gives(needed, far))).collect()
}

/// Whether who has `needed` has `far`.
fn gives(needed: &Access, far: &Access) -> bool {
    let is_any = |needed: &str, far: &str| needed.is_empty() || needed == far;
    needed.verb == far.verb
        && needed.group == far.group
        && needed.resource == far.resource
        && needed.subresource == far.subresource
        && is_any(&needed.name, &far.name)
        && is_any(&needed.namespace, &far.namespace)
}
