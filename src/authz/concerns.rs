//! What the policy says of somebody, whatever they ask for: what they may be told of themselves.

use std::sync::Arc;

use serde::Serialize;

use super::{policy::Policy, who::Caller};
use crate::{
    authn::Principal,
    config::raw::{self, Scheme},
};

/// A rule that speaks of somebody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Concern<'a> {
    pub rule: &'a str,
    /// `allow`, `approve` or `deny`.
    #[serde(rename = "do")]
    pub does: &'static str,
    /// Why it exists, in the words of the policy.
    pub why: Option<&'a str>,
    /// The routes where it can decide and that take `scheme`, in the order of the configuration.
    pub routes: Vec<&'a str>,
}

impl Policy {
    /// The rules in force that can decide about requests of this principal with a credential of this kind: allows whose
    /// `who` is met, and denies and approvals whose `who` may be. What they say of requests besides, by `on` and `when`,
    /// is left open. In the order in which the policy decides: denies first.
    pub fn concerns<'a>(&'a self, principal: &Principal, scheme: Scheme, root: &'a raw::Root) -> Vec<Concern<'a>> {
        let caller = Caller { principal, issuer: self.issuer(principal) };
        let routes = || root.routes.iter().filter(|route| route.schemes.contains(&scheme));
        let concerns = self.rules.iter().filter(|rule| !rule.shadow && rule.speaks_of(&caller)).map(|rule| Concern {
            rule: &rule.id,
            does: rule.action.name(),
            why: rule.why.as_deref(),
            routes: routes()
                .filter(|route| self.candidates(&route.name).any(|found| Arc::ptr_eq(&found.id, &rule.id)))
                .map(|route| &*route.name)
                .collect(),
        });
        concerns.filter(|concern| !concern.routes.is_empty()).collect()
    }
}
