//! Claims that a recorded caller may have had, and that are not in the trail because no rule read them at the time.

use std::sync::Arc;

use super::Answer;
use crate::{
    audit::CLAIMS,
    authn::{Principal, Scheme},
    authz::claims_named,
    config::raw::Root,
};

/// The recorded caller, whose other claims count as unknown. `then` has the policy of the time, if it is known.
pub(super) fn as_recorded(principal: &Principal, then: Option<&Root>) -> Principal {
    let has_claims = matches!(principal.scheme, Scheme::Bearer | Scheme::Session);
    let named = then.and_then(claims_named).unwrap_or_default();
    let kept = CLAIMS.into_iter().map(Arc::from).chain(named.iter().cloned()).collect();
    Principal { kept_claims: has_claims.then_some(kept), ..principal.clone() }
}

/// Returns the unknown claims that the answer could depend on.
pub(super) fn unrecorded(principal: &Principal, root: &Root, answer: &Answer) -> Vec<String> {
    let counts = |id: &str| match answer {
        Answer::Decided(explanation) => {
            explanation.rules.iter().any(|report| *report.rule == *id && !report.shadow && report.depends_on_claims())
        }
        _ => true,
    };
    let rules = root.rules.iter().filter(|rule| counts(&rule.id)).cloned().collect();
    let named = claims_named(&Root { rules, grants: root.grants.clone(), ..Root::default() }).unwrap_or_default();
    named.iter().filter(|claim| principal.may_have_had(claim)).map(ToString::to_string).collect()
}
