//! Checks of rules about an audience whose provider does not do what they say, and of names that are one scope there.

use std::collections::BTreeMap;

use crate::config::{
    raw::{self, OnToken, OnwardProvider},
    report::At,
    resolver::Resolver,
};

/// A problem of a rule, and what to do about it.
struct Fault {
    why: String,
    /// If the audience is named in full and the rule can only lead to refusals.
    if_error: Option<&'static str>,
    /// If a pattern matches the audience, or the effect is merely odd.
    if_warning: &'static str,
}

/// Reports rules that give what the provider cannot, or that use a name of a scope by which none is requested. A rule
/// whose pattern matches the audience may be meant for others as well.
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
            if_warning: "callers that get a scope by it are refused there; exclude this audience from its `audiences`",
        }),
        OnwardProvider::Google(_) if is_allow && scopes.is_empty() => Some(Fault {
            why: format!("rule `{}` gives no scopes, and Google gives no token without one", rule.id),
            if_error: Some("name `scopes` in the rule"),
            if_warning: "callers that get no other scope there are refused by Google; name `scopes` in a rule for this audience",
        }),
        // Whatever `audience` or `resource` it is asked for: they do not determine scopes (RFC 6749 section 3.3).
        OnwardProvider::TokenExchange(_) | OnwardProvider::JwtBearer(_) | OnwardProvider::ClientCredentials(_)
            if is_allow && scopes.is_empty() && raw.default_scopes.is_empty() =>
        {
            Some(Fault {
                why: format!(
                    "rule `{}` gives no scopes, and where none is asked for, the provider may choose them",
                    rule.id
                ),
                if_error: None,
                if_warning: "name `scopes` in the rule, or list in `default_scopes` what the provider gives by default",
            })
        }
        _ => scopes.iter().find_map(|scope| {
            let (ours, there) = meant_there(raw, scope, scopes, is_allow)?;
            // A scope that `scopes` does not list has the same name there, and is given.
            let is_nothing = |scope: &String| !scope.ends_with('*') && meant_there(raw, scope, scopes, is_allow).is_some();
            let opens_nothing = token.audiences.len() == 1 && scopes.iter().all(is_nothing);
            Some(Fault {
                why: format!("rule `{}` has scope `{scope}`, and `{there}` is what the provider calls `{ours}`", rule.id),
                // A deny is not meant to give anything, and either name may be right for other audiences.
                if_error: (is_allow && opens_nothing).then_some(
                    "rules go by the names on the left of `scopes`, and none is given by the other: name that in the rule",
                ),
                if_warning: "no scope is given there by the provider's name of one in `scopes`; name the other in a rule for this audience",
            })
        }),
    }
}

/// The scope that an entry of a rule names by its provider's name only. The policy refuses an entry that names it in
/// full (`our_names` of `authz`): change both together. An entry that also matches our names may be meant for those,
/// and a scope that a deny also denies by our name is denied.
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

/// Whether an entry of a rule matches one of our names of scopes.
fn names_ours(raw: &raw::Onward, named: &str) -> bool {
    raw.scopes.keys().any(|ours| OnToken::means(named, ours))
}

/// Reports names that are one scope there, so that a rule about one does not cover the other.
pub(super) fn check_names(raw: &raw::Onward, at: &At, resolver: &mut Resolver) {
    let mut known: BTreeMap<String, (&str, &str)> = BTreeMap::new();
    for (ours, there) in &raw.scopes {
        let Some((other, former)) = known.insert(there.to_ascii_lowercase(), (ours.as_str(), there.as_str())) else {
            continue;
        };
        let which = match former == there {
            true => format!("are one scope there, `{there}`"),
            // Some providers ignore case.
            false => format!("may be one scope there: `{former}` and `{there}`"),
        };
        resolver
            .warning(&at.key("scopes").key(ours), format!("`{other}` and `{ours}` {which}"))
            .help("a caller that is denied the scope by one name gets the same token by the other: use one name for it, or deny both");
    }
}

#[cfg(test)]
mod tests;
