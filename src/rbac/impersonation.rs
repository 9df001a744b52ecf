//! Whom Doorward may impersonate.

use super::{Account, Bound, Form, PolicyRule, Subject, groups};
use crate::{config::raw, kubernetes::impersonation::EXTRAS};

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
    Bound {
        name: "doorward-impersonator".to_owned(),
        namespace: None,
        rules,
        subjects: vec![Subject::Account(account)],
    }
}

/// What Doorward does as itself: it reviews tokens, reads Triggers and watches runs, where the configuration says so.
pub(super) fn readers<'a>(root: &'a raw::Root, account: &'a Account) -> Vec<Bound<'a>> {
    let mut rules = Vec::new();
    if root.issuers.iter().any(|issuer| issuer.token_review.is_some()) {
        rules.push(PolicyRule::new(&["authentication.k8s.io"], &["tokenreviews"], &["create"]));
    }
    let further = trigger_reader(root, account).into_iter();
    let further = further.chain(root.runs.iter().flat_map(|runs| watchers_of_runs(runs, account)));
    let (everywhere, in_namespaces): (Vec<_>, Vec<_>) = further.partition(|reader| reader.namespace.is_none());
    rules.extend(everywhere.into_iter().flat_map(|reader| reader.rules));
    let all = (!rules.is_empty()).then(|| reader(None, rules, account));
    all.into_iter().chain(in_namespaces).collect()
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
    let watcher = |namespace: Option<&'a str>| reader(namespace, vec![rule.clone()], account);
    match runs.namespaces.as_slice() {
        [] => vec![watcher(None)],
        listed => listed.iter().map(|namespace| watcher(Some(namespace))).collect(),
    }
}

fn reader<'a>(namespace: Option<&'a str>, rules: Vec<PolicyRule>, account: &'a Account) -> Bound<'a> {
    Bound { name: "doorward-reader".to_owned(), namespace, rules, subjects: vec![Subject::Account(account)] }
}
