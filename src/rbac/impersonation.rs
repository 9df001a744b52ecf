//! Whom Doorward may impersonate.

use std::collections::BTreeMap;

use super::{Account, Bound, Form, groups};
use crate::{
    config::raw,
    kubernetes::{PolicyRule, impersonation::EXTRAS},
};

/// Any user, and no group but those that grants give. User names come from the issuers' templates, which RBAC cannot describe;
/// `system:` names are refused by Doorward itself.
pub(super) fn role<'a>(root: &'a raw::Root, form: Form, account: &'a Account) -> Bound<'a> {
    let (core, verb) = match form {
        Form::Classic => ("", "impersonate"),
        Form::Constrained => ("authentication.k8s.io", "impersonate:user-info"),
    };
    let mut rules = vec![PolicyRule::new(&[core], &["users"], &[verb])];
    let names: Vec<String> = groups(root).into_iter().map(str::to_owned).collect();
    // An empty list of names would be all names.
    if !names.is_empty() {
        rules.push(PolicyRule { resource_names: names, ..PolicyRule::new(&[core], &["groups"], &[verb]) });
    }
    let extras: Vec<String> = EXTRAS.iter().map(|key| format!("userextras/{key}")).collect();
    rules.push(PolicyRule { resources: extras, ..PolicyRule::new(&["authentication.k8s.io"], &[], &[verb]) });
    Bound::to(account, "doorward-impersonator", None, rules)
}

/// What Doorward does as itself: it reviews tokens, reads Triggers, and watches runs and pods, where the configuration says so.
pub(super) fn readers<'a>(root: &'a raw::Root, account: &'a Account) -> Vec<Bound<'a>> {
    let mut rules = Vec::new();
    if root.issuers.iter().any(|issuer| issuer.token_review.is_some()) {
        rules.push(PolicyRule::new(&["authentication.k8s.io"], &["tokenreviews"], &["create"]));
    }
    let further = trigger_reader(root, account).into_iter();
    let further = further.chain(root.runs.iter().flat_map(|runs| watchers_of_runs(runs, account)));
    let further = further.chain(exchanging(root).flat_map(|exchanged| lookers_up_of_tasks(exchanged, account)));
    let mut in_namespaces: BTreeMap<&str, Vec<PolicyRule>> = BTreeMap::new();
    for reader in further {
        let of = reader.namespace.map_or(&mut rules, |namespace| in_namespaces.entry(namespace).or_default());
        of.extend(reader.rules);
    }
    let all = (!rules.is_empty()).then(|| reader(None, rules, account));
    all.into_iter()
        .chain(in_namespaces.into_iter().map(|(namespace, rules)| reader(Some(namespace), rules, account)))
        .collect()
}

/// Clusters whose tasks get tokens.
pub(super) fn exchanging(root: &raw::Root) -> impl Iterator<Item = &raw::Exchanged> {
    let all = root.tokens.iter().flat_map(|tokens| &tokens.exchange);
    all.filter(|exchanged| exchanged.kubernetes.is_some())
}

/// Where tasks get tokens: in each of the namespaces, or everywhere.
pub(super) fn lookers_up_of_tasks<'a>(exchanged: &'a raw::Exchanged, account: &'a Account) -> Vec<Bound<'a>> {
    let rules = vec![
        PolicyRule::new(&[""], &["pods"], &["get", "list", "watch"]),
        PolicyRule::new(&["tekton.dev"], &["taskruns", "pipelineruns"], &["get", "list", "watch"]),
    ];
    in_each(&exchanged.namespaces, &rules, account)
}

/// Where rules look at the service accounts of Triggers.
pub(super) fn trigger_reader<'a>(root: &raw::Root, account: &'a Account) -> Option<Bound<'a>> {
    let looks_at_accounts =
        |rule: &raw::Rule| rule.on.trigger.as_ref().is_some_and(|trigger| !trigger.service_accounts.is_empty());
    let rule = PolicyRule::new(&["triggers.tekton.dev"], &["triggers", "eventlisteners"], &["get"]);
    root.rules.iter().any(looks_at_accounts).then(|| reader(None, vec![rule], account))
}

/// In each of the namespaces, or everywhere.
pub(super) fn watchers_of_runs<'a>(runs: &'a raw::Runs, account: &'a Account) -> Vec<Bound<'a>> {
    let rule = PolicyRule::new(&["tekton.dev"], &["pipelineruns", "taskruns"], &["list", "watch"]);
    in_each(&runs.namespaces, &[rule], account)
}

fn in_each<'a>(namespaces: &'a [String], rules: &[PolicyRule], account: &'a Account) -> Vec<Bound<'a>> {
    match namespaces {
        [] => vec![reader(None, rules.to_vec(), account)],
        listed => listed.iter().map(|namespace| reader(Some(namespace), rules.to_vec(), account)).collect(),
    }
}

fn reader<'a>(namespace: Option<&'a str>, rules: Vec<PolicyRule>, account: &'a Account) -> Bound<'a> {
    Bound::to(account, "doorward-reader", namespace, rules)
}
