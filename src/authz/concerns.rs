//! The rules that concern a caller, whatever they ask for, for a page that shows people their own access.

use serde::Serialize;

use super::{policy::Policy, rule::RuleAction, who::Caller};
use crate::{
    authn::{NeededLogin, Principal},
    config::raw::{self, Scheme},
};

/// A rule that concerns a caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Concern<'a> {
    pub rule: &'a str,
    #[serde(rename = "do")]
    pub does: RuleAction,
    /// Why the rule exists, in the words of the policy.
    pub why: Option<&'a str>,
    /// The routes on which it can decide and that accept `scheme`, in the order of the configuration.
    pub routes: Vec<&'a str>,
    /// Which requests on them, in a few words each; empty: all of them.
    pub only: Vec<String>,
}

impl Policy {
    /// Returns the enforced rules that can decide about requests of this principal with a credential of this kind:
    /// allows whose `who` is met, and denies and approvals whose `who` may be met. Their further conditions on
    /// requests, by `on`, `when` and `need`, are described in words and not evaluated. Rules are in the order of
    /// precedence: denies first.
    pub fn concerns<'a>(&'a self, principal: &Principal, scheme: Scheme, root: &'a raw::Root) -> Vec<Concern<'a>> {
        let caller = Caller { principal, issuer: self.issuer(principal) };
        let takes = |route: &&raw::Route| route.schemes.contains(&scheme) && route.takes_issuer(&principal.issuer);
        // Each route is walked once, not for each rule.
        let mut routes = vec![Vec::new(); self.rules.len()];
        for route in root.routes.iter().filter(takes) {
            for place in self.candidate_places(&route.name) {
                routes.get_mut(*place).into_iter().for_each(|of_rule| of_rule.push(&*route.name));
            }
        }
        let rules = self.rules.iter().zip(routes).filter(|(rule, _)| !rule.shadow && rule.speaks_of(&caller));
        let concerns = rules.map(|(rule, routes)| Concern {
            rule: &rule.id,
            does: rule.action.kind(),
            why: rule.why.as_deref(),
            only: rule.written(root).map(only).unwrap_or_default(),
            routes,
        });
        concerns.filter(|concern| !concern.routes.is_empty()).collect()
    }
}

/// The name of an API group; that of Pods and Secrets is empty.
fn core(group: &str) -> &str {
    if group.is_empty() { "core" } else { group }
}

/// Describes the conditions that narrow a rule, besides routes and people.
fn only(rule: &raw::Rule) -> Vec<String> {
    let on = &rule.on;
    let kubernetes = on.kubernetes.clone().unwrap_or_default();
    let listed = |list: &[String], before: &str, after: &str| {
        (!list.is_empty()).then(|| format!("{before}{}{after}", list.join(", ")))
    };
    let namespaces: Vec<String> = on.namespace.iter().chain(&kubernetes.namespaces).cloned().collect();
    let api_groups: Vec<String> = kubernetes.api_groups.iter().map(|group| core(group).to_owned()).collect();
    let lists = [
        listed(&on.methods, "", " requests"),
        listed(&on.hosts, "at ", ""),
        listed(&on.paths, "under ", ""),
        listed(&kubernetes.verbs, "to ", ""),
        listed(&kubernetes.resources, "of ", ""),
        listed(&api_groups, "of the API groups ", ""),
        listed(&kubernetes.non_resource_urls, "of ", ""),
        listed(&namespaces, "in ", ""),
        listed(&kubernetes.names, "named ", ""),
    ];
    let others = [
        (on.pages == Some(true), "for the pages"),
        (on.pages == Some(false), "for what the pages request from the API server"),
        (on.is_of_deliveries(), "for some deliveries"),
        (on.run.is_some(), "for some runs"),
        (on.token.is_some(), "for tokens"),
        (on.time.is_some(), "at some times"),
        (!on.addresses.is_empty(), "from some addresses"),
        (rule.when.is_some(), "under a condition"),
    ];
    let others = others.into_iter().filter(|(holds, _)| *holds).map(|(_, words)| words.to_owned());
    let need = (rule.need != raw::Need::default()).then(|| format!("after {}", NeededLogin::of(&rule.need)));
    lists.into_iter().flatten().chain(others).chain(need).collect()
}
