//! The users and groups that Doorward may impersonate.

use std::collections::BTreeMap;

use super::{Bound, Form, groups};
use crate::{
    config::raw,
    kubernetes::{PolicyRule, impersonation::EXTRAS},
};

/// Allows any user, and only the groups that grants give. User names come from the templates of issuers, which RBAC
/// cannot describe; Doorward itself refuses `system:` names.
pub(super) fn role(root: &raw::Root, form: Form) -> Bound<'static> {
    let (core, verb) = match form {
        Form::Classic => ("", "impersonate"),
        Form::Constrained => ("authentication.k8s.io", "impersonate:user-info"),
    };
    let mut rules = vec![PolicyRule::new(&[core], &["users"], &[verb])];
    let names: Vec<String> = groups(root).into_iter().map(str::to_owned).collect();
    // An empty list of names would mean all names.
    if !names.is_empty() {
        rules.push(PolicyRule { resource_names: names, ..PolicyRule::new(&[core], &["groups"], &[verb]) });
    }
    let extras: Vec<String> = EXTRAS.iter().map(|key| format!("userextras/{key}")).collect();
    rules.push(PolicyRule { resources: extras, ..PolicyRule::new(&["authentication.k8s.io"], &[], &[verb]) });
    Bound::new("doorward-impersonator", None, rules)
}

/// Returns the roles for what Doorward does as itself: it reviews tokens, reads Triggers, watches runs and pods, and
/// requests tokens of accounts that impersonate, if the configuration says so.
pub(super) fn as_itself(root: &raw::Root) -> Vec<Bound<'_>> {
    let mut rules = Vec::new();
    if root.issuers.iter().any(|issuer| issuer.token_review.is_some()) {
        rules.push(PolicyRule::new(&["authentication.k8s.io"], &["tokenreviews"], &["create"]));
    }
    let further = trigger_reader(root).into_iter();
    let further = further.chain(root.runs.iter().flat_map(watchers_of_runs));
    let further = further.chain(root.clusters().flat_map(lookers_up_of_tasks));
    let further = further.chain(requesters(root).into_iter().map(|(_, requester)| requester));
    let mut in_namespaces: BTreeMap<&str, Vec<PolicyRule>> = BTreeMap::new();
    for reader in further {
        let of = reader.namespace.map_or(&mut rules, |namespace| in_namespaces.entry(namespace).or_default());
        of.extend(reader.rules);
    }
    let all = (!rules.is_empty()).then(|| reader(None, rules));
    all.into_iter().chain(in_namespaces.into_iter().map(|(namespace, rules)| reader(Some(namespace), rules))).collect()
}

/// Returns the roles for clusters whose tasks get tokens: in each of the namespaces, or everywhere.
pub(super) fn lookers_up_of_tasks(exchanged: &raw::Exchanged) -> Vec<Bound<'_>> {
    let rules = vec![
        PolicyRule::new(&[""], &["pods"], &["get", "list", "watch"]),
        PolicyRule::new(&["tekton.dev"], &["taskruns", "pipelineruns"], &["get", "list", "watch"]),
        // A PipelineRun may list them beside a task, and their maker is looked up.
        PolicyRule::new(&["tekton.dev"], &["customruns"], &["get"]),
    ];
    in_each(&exchanged.namespaces, &rules)
}

/// Returns the role that is needed if rules look at the service accounts of Triggers.
pub(super) fn trigger_reader(root: &raw::Root) -> Option<Bound<'_>> {
    let looks_at_accounts =
        |rule: &raw::Rule| rule.on.trigger.as_ref().is_some_and(|trigger| !trigger.service_accounts.is_empty());
    let rule = PolicyRule::new(&["triggers.tekton.dev"], &["triggers", "eventlisteners"], &["get"]);
    root.rules.iter().any(looks_at_accounts).then(|| reader(None, vec![rule]))
}

/// Returns the roles for requesting tokens of service accounts, each with the upstream that is asked.
pub(super) fn requesters(root: &raw::Root) -> Vec<(&str, Bound<'_>)> {
    let accounts = root.upstreams.iter().filter_map(raw::Upstream::requested_account);
    let requester = |account: &'_ raw::RequestedAccount| PolicyRule {
        resource_names: vec![account.name.clone()],
        ..PolicyRule::new(&[""], &["serviceaccounts/token"], &["create"])
    };
    accounts
        .map(|account| (account.upstream.as_str(), reader(Some(&account.namespace), vec![requester(account)])))
        .collect()
}

/// Returns the roles for watching runs: in each of the namespaces, or everywhere.
pub(super) fn watchers_of_runs(runs: &raw::Runs) -> Vec<Bound<'_>> {
    let rule = PolicyRule::new(&["tekton.dev"], &["pipelineruns", "taskruns"], &["list", "watch"]);
    in_each(&runs.namespaces, &[rule])
}

fn in_each<'a>(namespaces: &'a [String], rules: &[PolicyRule]) -> Vec<Bound<'a>> {
    match namespaces {
        [] => vec![reader(None, rules.to_vec())],
        listed => listed.iter().map(|namespace| reader(Some(namespace), rules.to_vec())).collect(),
    }
}

fn reader(namespace: Option<&str>, rules: Vec<PolicyRule>) -> Bound<'_> {
    Bound::new("doorward-reader", namespace, rules)
}
