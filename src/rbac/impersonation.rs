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
pub(super) fn reader<'a>(root: &'a raw::Root, account: &'a Account) -> Option<Bound<'a>> {
    let mut rules = Vec::new();
    if root.issuers.iter().any(|issuer| issuer.token_review.is_some()) {
        rules.push(PolicyRule::new(&["authentication.k8s.io"], &["tokenreviews"], &["create"]));
    }
    let looks_at_accounts =
        |rule: &raw::Rule| rule.on.trigger.as_ref().is_some_and(|trigger| !trigger.service_accounts.is_empty());
    if root.rules.iter().any(looks_at_accounts) {
        rules.push(PolicyRule::new(&["triggers.tekton.dev"], &["triggers", "eventlisteners"], &["get"]));
    }
    if root.runs.as_ref().is_some_and(|runs| runs.namespaces.is_empty()) {
        rules.push(watch_runs());
    }
    (!rules.is_empty()).then(|| Bound {
        name: "doorward-reader".to_owned(),
        namespace: None,
        rules,
        subjects: vec![Subject::Account(account)],
    })
}

/// The same in single namespaces.
pub(super) fn readers_of_namespaces<'a>(root: &'a raw::Root, account: &'a Account) -> impl Iterator<Item = Bound<'a>> {
    root.runs.iter().flat_map(|runs| &runs.namespaces).map(|namespace| Bound {
        name: "doorward-reader".to_owned(),
        namespace: Some(namespace),
        rules: vec![watch_runs()],
        subjects: vec![Subject::Account(account)],
    })
}

fn watch_runs() -> PolicyRule {
    PolicyRule::new(&["tekton.dev"], &["pipelineruns", "taskruns"], &["list", "watch"])
}
