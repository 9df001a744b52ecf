//! Rules about an audience whose provider does not do what they say.

use std::collections::BTreeMap;

use crate::config::{
    raw::{self, OnwardProvider},
    report::At,
    resolver::Resolver,
};

/// What is wrong with a rule, and what to do about it where the audience is named and where a pattern means it.
struct Fault {
    why: String,
    named: &'static str,
    meant: &'static str,
}

/// Reports rules that would give what the provider cannot, or that know a scope by a name that none is asked for by. One that means
/// the audience by a pattern may be for others as well.
pub(super) fn check(raw: &raw::Onward, root: &raw::Root, at: &At, resolver: &mut Resolver) {
    let at = at.key("audience");
    for rule in &root.rules {
        let Some(token) = rule.on.token.as_ref() else { continue };
        // A deny that names no audience is of all.
        if !token.audiences.is_empty() && !token.is_for(&raw.audience) {
            continue;
        }
        let is_named = token.audiences.contains(&raw.audience);
        match fault(raw, rule, &token.scopes) {
            Some(Fault { why, named, .. }) if is_named => _ = resolver.error(&at, why).help(named),
            Some(Fault { why, meant, .. }) => _ = resolver.warning(&at, why).help(meant),
            None if rule.action == raw::Action::Allow && token.scopes.is_empty() && chooses(raw) => {
                resolver
                    .warning(
                        &at,
                        format!(
                            "rule `{}` gives no scopes, and where none is asked for, the provider may choose them",
                            rule.id
                        ),
                    )
                    .help("name `scopes` in the rule, or say in `default_scopes` what the provider gives of itself");
            }
            None => {}
        }
    }
}

fn fault(raw: &raw::Onward, rule: &raw::Rule, scopes: &[String]) -> Option<Fault> {
    let is_allow = rule.action == raw::Action::Allow;
    match &raw.provider {
        OnwardProvider::Aws(_) if is_allow && !scopes.is_empty() => Some(Fault {
            why: format!("rule `{}` gives scopes for it, and AWS knows none", rule.id),
            named: "leave `scopes` out of the rule; what the role and `session_policy` let it do is all that it may",
            meant: "who gets a scope by it is refused there; have its `audiences` leave this one out",
        }),
        OnwardProvider::Google(_) if is_allow && scopes.is_empty() => Some(Fault {
            why: format!("rule `{}` gives no scopes, and Google gives no token without one", rule.id),
            named: "name `scopes` in the rule",
            meant: "who gets nothing else there is refused by Google; name `scopes` in a rule for this audience",
        }),
        _ => scopes.iter().find_map(|scope| {
            let ours = ours(&raw.scopes, scope)?;
            Some(Fault {
                why: format!("rule `{}` names scope `{scope}`, which is what the provider calls `{ours}`", rule.id),
                named: "rules go by the names on the left of `scopes`, and none is given by the other: name that in the rule",
                meant: "no scope is given there by the provider's name of one in `scopes`; name the other in a rule for this audience",
            })
        }),
    }
}

/// Whether nothing says what a token opens for which no scope was asked (RFC 6749 section 3.3).
fn chooses(raw: &raw::Onward) -> bool {
    let (audience, resource) = match &raw.provider {
        OnwardProvider::TokenExchange(grant) | OnwardProvider::JwtBearer(grant) => (&grant.audience, &grant.resource),
        OnwardProvider::ClientCredentials(client) => (&client.audience, &client.resource),
        OnwardProvider::Google(_) | OnwardProvider::Aws(_) => return false,
    };
    audience.is_none() && resource.is_none() && raw.default_scopes.is_empty()
}

/// Our name of a scope that is the provider's alone, for which rules do not know it.
pub(super) fn ours<'s>(scopes: &'s BTreeMap<String, String>, scope: &str) -> Option<&'s str> {
    let is_it = |there: &str| there.eq_ignore_ascii_case(scope) && !scopes.contains_key(scope);
    scopes.iter().find(|(_, there)| is_it(there)).map(|(ours, _)| ours.as_str())
}

/// Reports names that are one scope there, so that a rule about one of them says nothing of what the other gives.
pub(super) fn check_names(raw: &raw::Onward, at: &At, resolver: &mut Resolver) {
    let mut known: BTreeMap<&str, &str> = BTreeMap::new();
    for (ours, there) in &raw.scopes {
        let Some(other) = known.insert(there, ours) else { continue };
        resolver
            .warning(&at.key("scopes").key(ours), format!("`{other}` and `{ours}` are one scope there, `{there}`"))
            .help("who is denied one gets the same token by the other: have one name for it, or deny both");
    }
}

#[cfg(test)]
mod tests;
