//! The claims that a policy reads, so that the audit trail records those and no others.

use std::{collections::BTreeSet, sync::Arc};

use super::{cel, issuers::ClaimPath};
use crate::config::raw::{Action, Root, Who};

/// Returns the names of the top-level claims that rules and grants use, in conditions or in expressions; `None` if they
/// use none.
pub fn claims_named(root: &Root) -> Option<Arc<[Arc<str>]>> {
    let mut names = BTreeSet::new();
    let mut add = |who: &Who| {
        for path in who.claims.keys() {
            names.insert(ClaimPath::new(path).claim().into_owned());
        }
    };
    for grant in &root.grants {
        add(&grant.who);
    }
    for rule in &root.rules {
        add(&rule.who);
        if let Action::Approve(approve) = &rule.action {
            add(&approve.by);
        }
    }
    names.extend(root.rules.iter().filter_map(|rule| rule.when.as_deref()).flat_map(cel::claims_read));
    (!names.is_empty()).then(|| names.into_iter().map(Arc::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_found_in_conditions_and_expressions() {
        let root: Root = serde_json::from_value(serde_json::json!({
            "grants": [{"id": "g", "who": {"claims": {
                "team": ["a"], "/realm/roles": ["b"], "/https:~1~1x~0y/roles": ["c"], "https://x/team": ["d"],
            }}, "kubernetes_groups": ["x"]}],
            "rules": [{"id": "r", "when": "principal.claims.hd == 'a' && principal.claims[\"x-y\"] == 1", "do": "allow"}],
        }))
        .unwrap();
        let named = claims_named(&root).unwrap();
        let named: Vec<&str> = named.iter().map(|name| &**name).collect();
        assert_eq!(named, ["hd", "https://x/team", "https://x~y", "realm", "team", "x-y"]);
        assert!(claims_named(&Root::default()).is_none());
    }

    #[test]
    fn an_expression_is_read_as_it_is_evaluated() {
        for (when, expected) in [
            ("'team' in principal.claims", &["team"][..]),
            ("has(principal.claims.team) && principal . claims [ 'a.b' ] == 'x'", &["a.b", "team"]),
            ("principal.claims.realm.roles.exists(role, role == principal.claims.wanted)", &["realm", "wanted"]),
            ("principal.email.endsWith('@example.com')", &["email", "email_verified"]),
            ("request.path == '/claims.secret' // principal.claims.secret", &[]),
            ("{'x': principal.claims.a} == {'x': [principal.claims.b][0]}", &["a", "b"]),
        ] {
            let root: Root =
                serde_json::from_value(serde_json::json!({"rules": [{"id": "r", "when": when, "do": "allow"}]}))
                    .unwrap();
            let named = claims_named(&root).unwrap_or_default();
            assert_eq!(named.iter().map(|name| &**name).collect::<Vec<_>>(), expected, "{when}");
        }
    }
}
