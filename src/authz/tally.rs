//! The outcome that wins among the rules that match.

use std::sync::Arc;

use crate::authn::NeededLogin;

use super::{
    decision::{Decision, Denial, Outcome, Shadow, Would},
    rule::{Action, Approval, Case, Hit, Rule},
};

/// The combined result of the rules evaluated so far.
#[derive(Default)]
pub(super) struct Tally<'p> {
    deny: Option<&'p Rule>,
    /// A rule whose expression failed. It refuses, as a deny does, but a deny that matches has a reason to tell.
    failed: Option<(&'p Rule, String)>,
    approve: Vec<(&'p Rule, &'p Arc<Approval>)>,
    /// Approves that match only if doubt is read wide.
    doubtful: Vec<(&'p Rule, &'p Arc<Approval>)>,
    allow: Option<&'p Rule>,
    /// With what the rule needs, and the part of it that is missing.
    step_up: Option<(&'p Rule, &'p NeededLogin, NeededLogin)>,
    shadow: Vec<Shadow>,
}

impl<'p> Tally<'p> {
    /// Evaluates a rule and adds the result, unless it cannot change the decision any more.
    pub(super) fn look(&mut self, rule: &'p Rule, case: &Case<'_>) {
        // After one allow, another can change the decision only by failing.
        if !rule.shadow && (self.deny.is_some() || (self.allow.is_some() && !rule.can_fail())) {
            return;
        }
        match (rule.look(case), &rule.action) {
            (Hit::Miss, Action::Approve(approval)) if !rule.shadow => match rule.look_doubting(case) {
                Hit::Miss => {}
                Hit::Error(error) => self.failed = self.failed.take().or(Some((rule, error))),
                Hit::Yes | Hit::Unmet(_) => self.doubtful.push((rule, approval)),
            },
            (hit, _) => self.count(rule, &hit),
        }
    }

    /// Adds the result of evaluating a rule.
    pub(super) fn count(&mut self, rule: &'p Rule, hit: &Hit) {
        if rule.shadow {
            let would = match hit {
                Hit::Miss => return,
                Hit::Yes => match rule.action {
                    Action::Allow(_) => Would::Allow,
                    Action::Deny => Would::Deny,
                    Action::Approve(_) => Would::Approve,
                },
                Hit::Unmet(_) => Would::StepUp,
                Hit::Error(_) => Would::Error,
            };
            return self.shadow.push(Shadow { rule: Arc::clone(&rule.id), would });
        }
        match (hit, &rule.action) {
            (Hit::Miss, _) => {}
            (Hit::Error(error), _) => _ = self.failed.get_or_insert_with(|| (rule, error.clone())),
            (_, Action::Deny) => _ = self.deny.get_or_insert(rule),
            (_, Action::Approve(approval)) => self.approve.push((rule, approval)),
            (Hit::Yes, Action::Allow(_)) => _ = self.allow.get_or_insert(rule),
            (Hit::Unmet(missing), Action::Allow(need)) => {
                _ = self.step_up.get_or_insert_with(|| (rule, need, missing.clone()));
            }
        }
    }

    /// The decision, by the precedence of outcomes; that of `no_match` if no rule matched.
    pub(super) fn decide(self, no_match: impl FnOnce() -> Outcome) -> Decision {
        let denial = |rule: &Rule, error| Outcome::Deny(Denial { why: rule.why.clone(), fix: rule.fix.clone(), error });
        let (rule, outcome) = match self {
            Self { deny: Some(rule), .. } => (Some(rule), denial(rule, None)),
            Self { failed: Some((rule, error)), .. } => (Some(rule), denial(rule, Some(error))),
            Self { mut approve, doubtful, allow, step_up, .. } => {
                // Doubt takes an allow away; it does not offer an approval where nothing else would let the request
                // through.
                if !approve.is_empty() || allow.is_some() {
                    approve.extend(doubtful);
                }
                match (approve.first(), allow, step_up) {
                    (Some((rule, _)), ..) => {
                        let approvals = approve.iter().map(|(_, approval)| Arc::clone(approval)).collect();
                        (Some(*rule), Outcome::Approve(approvals))
                    }
                    (None, Some(rule), _) => (Some(rule), Outcome::Allow),
                    (None, None, Some((rule, need, missing))) => {
                        (Some(rule), Outcome::StepUp { need: Box::new(need.clone()), missing: Box::new(missing) })
                    }
                    (None, None, None) => (None, no_match()),
                }
            }
        };
        Decision { outcome, rule: rule.map(|rule| Arc::clone(&rule.id)), shadow: self.shadow, as_create: false }
    }
}
