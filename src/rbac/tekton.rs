//! The Tekton roles that grants give, for their groups.

use std::collections::{BTreeMap, BTreeSet};

use super::{Object, PolicyRule, Subject, binding, role};
use crate::config::raw::{self, TektonRole};

/// Each role includes the one before it.
const ROLES: [TektonRole; 4] = [TektonRole::View, TektonRole::Cancel, TektonRole::Run, TektonRole::Admin];

const RUNS: [&str; 3] = ["pipelineruns", "taskruns", "customruns"];

/// What `kubectl apply` reads first for somebody who defines them, and the Dashboard shows to everybody.
const DEFINITIONS: [&str; 3] = ["pipelines", "tasks", "stepactions"];
const TRIGGERS: [&str; 5] = ["eventlisteners", "triggers", "triggerbindings", "triggertemplates", "interceptors"];

pub(super) fn objects(root: &raw::Root) -> Vec<Object> {
    let mut bound: BTreeMap<(TektonRole, Option<&str>), BTreeSet<&str>> = BTreeMap::new();
    for grant in &root.grants {
        for given in &grant.tekton_roles {
            let mut namespaces: Vec<Option<&str>> = given.namespaces.iter().map(|name| Some(name.as_str())).collect();
            if namespaces.is_empty() {
                namespaces.push(None);
            }
            for namespace in namespaces {
                let groups = bound.entry((given.role, namespace)).or_default();
                groups.extend(grant.kubernetes_groups.iter().map(String::as_str));
            }
        }
    }
    let used = ROLES.into_iter().filter(|role| bound.keys().any(|(used, _)| used == role));
    let mut objects: Vec<Object> = used.map(|used| role("ClusterRole", &name(used), None, rules(used))).collect();
    for ((given, namespace), groups) in bound {
        let subjects: Vec<Subject<'_>> = groups.into_iter().map(Subject::Group).collect();
        objects.push(binding("ClusterRole", &name(given), &name(given), namespace, &subjects));
    }
    objects
}

fn name(role: TektonRole) -> String {
    let role = match role {
        TektonRole::View => "view",
        TektonRole::Cancel => "cancel",
        TektonRole::Run => "run",
        TektonRole::Admin => "admin",
    };
    format!("doorward-tekton-{role}")
}

/// Returns what each role allows in a namespace. RBAC cannot express cancelling: it is a patch, and Doorward
/// distinguishes it from others (`on: {run: {does: [cancel]}}`).
fn rules(role: TektonRole) -> Vec<PolicyRule> {
    let read = ["get", "list", "watch"];
    let mut rules = vec![
        PolicyRule::new(&["tekton.dev"], &RUNS, &read),
        PolicyRule::new(&["tekton.dev"], &DEFINITIONS, &read),
        PolicyRule::new(&["triggers.tekton.dev"], &TRIGGERS, &read),
        PolicyRule::new(&[""], &["pods", "events"], &read),
        PolicyRule::new(&[""], &["pods/log"], &["get"]),
    ];
    if role == TektonRole::View {
        return rules;
    }
    rules.push(PolicyRule::new(&["tekton.dev"], &RUNS, &["patch"]));
    if role == TektonRole::Cancel {
        return rules;
    }
    rules.push(PolicyRule::new(&["tekton.dev"], &RUNS, &["create"]));
    // For the form that starts a pipeline.
    rules.push(PolicyRule::new(&[""], &["serviceaccounts"], &["list"]));
    if role == TektonRole::Run {
        return rules;
    }
    rules.push(PolicyRule::new(&["tekton.dev"], &RUNS, &["delete", "deletecollection"]));
    let define = ["create", "update", "patch", "delete"];
    rules.push(PolicyRule::new(&["tekton.dev"], &DEFINITIONS, &define));
    rules.push(PolicyRule::new(&["triggers.tekton.dev"], &TRIGGERS, &define));
    rules
}
