//! Checks of rules about registries, whose scopes are actions on repositories and nothing else.

use super::{Registries, action_on, actions, is_action, is_name};
use crate::config::{
    raw,
    report::{At, Report},
};

/// Reports scopes of rules for registries alone that no token for a registry can have: an allow would give tokens
/// without access, and a deny would match nothing. Beside other audiences, a scope may be meant for those.
pub(super) fn check(registries: &Registries, root: &raw::Root, report: &mut Report) {
    let is_registry = |audience: &String| registries.contains_key(audience);
    for (index, rule) in root.rules.iter().enumerate() {
        let Some(token) = &rule.on.token else { continue };
        if token.audiences.is_empty() || !token.audiences.iter().all(is_registry) {
            continue;
        }
        let at = At::root().key("rules").index(index).key("on").key("token").key("scopes");
        for (index, scope) in token.scopes.iter().enumerate().filter(|(_, scope)| !may_be_action(scope)) {
            // As registries and their clients write it.
            let meant = actions(scope).unwrap_or_else(|| vec!["pull:acme/app".to_owned()]).join("`, `");
            report
                .error(&at.index(index), format!("`{scope}` is no action on a repository, and a registry knows nothing else"))
                .help(format!(
                    "write an action, a colon and a name in lower case without a tag, one entry for each action, such as `{meant}`; \
                     a `*` may end it"
                ));
        }
    }
}

/// Whether an entry of a rule matches some action on a repository.
fn may_be_action(named: &str) -> bool {
    let Some(beginning) = named.strip_suffix('*') else { return action_on(named).is_some() };
    match beginning.split_once(':') {
        None => beginning.is_empty() || is_action(beginning),
        // What follows may be the rest of a name, or of a host with a port.
        Some((action, name)) => {
            is_action(action) && ["", "a", "/a", "0/a"].iter().any(|rest| is_name(&format!("{name}{rest}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::resolve;
    use super::*;

    /// `check` found them good, and tokens without access were issued for them.
    #[test]
    fn a_scope_that_no_registry_knows_is_reported_with_what_to_write() {
        for (audiences, scope, action, help) in [
            ("images", "push:acme/app", "allow", None),
            ("images", "repository:acme/app:pull,push", "allow", Some("`pull:acme/app`, `push:acme/app`")),
            ("images", "repository:acme/app:push", "deny", Some("`push:acme/app`")),
            ("images", "repository:acme/*", "allow", Some("`pull:acme/app`")),
            ("images", "pull:acme/app:latest", "allow", Some("`pull:acme/app`")),
            ("images", "push:ACME/app", "allow", Some("in lower case")),
            ("images", "pull", "allow", Some("an action, a colon")),
            ("images", "pull:acme/app:*", "allow", Some("without a tag")),
            ("images", "pull:acme/../*", "allow", Some("`pull:acme/app`")),
            ("images", "PULL:*", "allow", Some("in lower case")),
            ("images", "*", "deny", None),
            ("images", "pu*", "allow", None),
            ("images", "pull:*", "allow", None),
            ("images", "pull:acme/*", "allow", None),
            ("images", "pull:acme/ap*", "allow", None),
            ("images", "pull:host:*", "allow", None),
            ("images", "pull:host:50*", "allow", None),
            ("images, api", "deploy", "allow", None),
            ("'*'", "deploy", "allow", None),
            ("api", "deploy", "allow", None),
        ] {
            let root: raw::Root = serde_saphyr::from_str(&format!(
                "
tokens: {{exchange: [], registries: [{{service: images}}]}}
rules: [{{id: a, on: {{token: {{audiences: [{audiences}], scopes: ['pull:a', '{scope}']}}}}, do: {action}}}]
"
            ))
            .unwrap();
            let mut report = Report::default();
            resolve(root.tokens.as_ref().unwrap(), &root, &At::root(), &mut report);
            let told: Vec<_> = report.problems().iter().map(|problem| problem.at.as_str()).collect();
            assert_eq!(told, Vec::from_iter(help.map(|_| "/rules/0/on/token/scopes/1")), "{scope}");
            for problem in report.problems() {
                let said = problem.help.as_deref().unwrap_or_default();
                assert!(said.contains(help.unwrap_or_default()), "{scope}: {said}");
            }
        }
    }
}
