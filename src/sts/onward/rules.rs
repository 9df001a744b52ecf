//! Rules about an audience whose provider does not do what they say, and names of scopes that are one there.

use std::collections::BTreeMap;

use crate::config::{
    raw::{self, OnToken, OnwardProvider},
    report::At,
    resolver::Resolver,
};

/// What is wrong with a rule, and what to do about it.
struct Fault {
    why: String,
    /// Where the audience is named in full and nothing but a refusal can come of the rule.
    if_error: Option<&'static str>,
    /// Where a pattern means the audience, or what it does is no more than odd.
    if_warning: &'static str,
}

/// Reports rules that would give what the provider cannot, or that know a scope by a name that none is asked for by. One that means
/// the audience by a pattern may be for others as well.
pub(super) fn check(raw: &raw::Onward, root: &raw::Root, at: &At, resolver: &mut Resolver) {
    let at = at.key("audience");
    for rule in &root.rules {
        let Some(token) = rule.on.token.as_ref() else { continue };
        let is_of_all = token.audiences.is_empty() && rule.action == raw::Action::Deny;
        if !is_of_all && !token.is_for(&raw.audience) {
            continue;
        }
        let is_named = token.audiences.contains(&raw.audience);
        match fault(raw, rule, token) {
            Some(Fault { why, if_error: Some(help), .. }) if is_named => _ = resolver.error(&at, why).help(help),
            Some(Fault { why, if_warning, .. }) => _ = resolver.warning(&at, why).help(if_warning),
            None => {}
        }
    }
}

fn fault(raw: &raw::Onward, rule: &raw::Rule, token: &OnToken) -> Option<Fault> {
    let (scopes, is_allow) = (&token.scopes, rule.action == raw::Action::Allow);
    match &raw.provider {
        OnwardProvider::Aws(_) if is_allow && !scopes.is_empty() => Some(Fault {
            why: format!("rule `{}` gives scopes for it, and AWS knows none", rule.id),
            if_error: Some("leave `scopes` out of the rule; what the role and `session_policy` let it do is all that it may"),
            if_warning: "who gets a scope by it is refused there; have its `audiences` leave this one out",
        }),
        OnwardProvider::Google(_) if is_allow && scopes.is_empty() => Some(Fault {
            why: format!("rule `{}` gives no scopes, and Google gives no token without one", rule.id),
            if_error: Some("name `scopes` in the rule"),
            if_warning: "who gets nothing else there is refused by Google; name `scopes` in a rule for this audience",
        }),
        // Whatever it is asked for by `audience` or `resource`: of scopes that says nothing (RFC 6749 section 3.3).
        OnwardProvider::TokenExchange(_) | OnwardProvider::JwtBearer(_) | OnwardProvider::ClientCredentials(_)
            if is_allow && scopes.is_empty() && raw.default_scopes.is_empty() =>
        {
            Some(Fault {
                why: format!(
                    "rule `{}` gives no scopes, and where none is asked for, the provider may choose them",
                    rule.id
                ),
                if_error: None,
                if_warning: "name `scopes` in the rule, or say in `default_scopes` what the provider gives of itself",
            })
        }
        _ => scopes.iter().find_map(|scope| {
            let (ours, there) = meant_there(raw, scope, scopes, is_allow)?;
            // A scope that `scopes` does not list is called the same there, and given.
            let is_nothing = |scope: &String| !scope.ends_with('*') && meant_there(raw, scope, scopes, is_allow).is_some();
            let opens_nothing = token.audiences.len() == 1 && scopes.iter().all(is_nothing);
            Some(Fault {
                why: format!("rule `{}` has scope `{scope}`, and `{there}` is what the provider calls `{ours}`", rule.id),
                // A deny is to open nothing, and either may be right for other audiences.
                if_error: (is_allow && opens_nothing).then_some(
                    "rules go by the names on the left of `scopes`, and none is given by the other: name that in the rule",
                ),
                if_warning: "no scope is given there by the provider's name of one in `scopes`; name the other in a rule for this audience",
            })
        }),
    }
}

/// The scope that an entry of a rule means by its provider's name alone. One that names it in full is what the policy refuses
/// (`our_names` of `authz`): change both. One that means names of ours too may be meant for those, and what a deny denies by ours as
/// well is denied.
fn meant_there<'r>(
    raw: &'r raw::Onward,
    named: &str,
    all: &[String],
    is_allow: bool,
) -> Option<(&'r String, &'r String)> {
    if names_ours(raw, named) {
        return None;
    }
    let is_denied = |ours: &str| !is_allow && all.iter().any(|other| OnToken::means(other, ours));
    let is_meant = |there: &str| OnToken::means(named, there) || there.eq_ignore_ascii_case(named);
    raw.scopes.iter().find(|(ours, there)| is_meant(there) && !is_denied(ours))
}

/// Whether an entry of a rule means a scope by our name of it.
fn names_ours(raw: &raw::Onward, named: &str) -> bool {
    raw.scopes.keys().any(|ours| OnToken::means(named, ours))
}

/// Reports names that are one scope there, so that a rule about one of them says nothing of what the other gives.
pub(super) fn check_names(raw: &raw::Onward, at: &At, resolver: &mut Resolver) {
    let mut known: BTreeMap<String, (&str, &str)> = BTreeMap::new();
    for (ours, there) in &raw.scopes {
        let Some((other, former)) = known.insert(there.to_ascii_lowercase(), (ours.as_str(), there.as_str())) else {
            continue;
        };
        let which = match former == there {
            true => format!("are one scope there, `{there}`"),
            // Some providers tell no case apart.
            false => format!("may be one scope there: `{former}` and `{there}`"),
        };
        resolver
            .warning(&at.key("scopes").key(ours), format!("`{other}` and `{ours}` {which}"))
            .help("who is denied one scope by its one name gets the same token by the other: have one name for it, or deny both");
    }
}

#[cfg(test)]
mod tests;
