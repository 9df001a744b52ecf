//! The decision of the policy on a request.

use std::sync::Arc;

use crate::{
    authn::NeededLogin,
    config::raw::Effect,
    error::{Reason, Rejection},
};

use super::rule::Approval;

/// The decision on a request, and the rule that made it.
#[derive(Clone, Debug)]
#[must_use]
pub struct Decision {
    pub outcome: Outcome,
    /// The rule that decided; `None` if none matched, or if Doorward itself refuses.
    pub rule: Option<Arc<str>>,
    /// What rules in `mode: shadow` would have done, for the audit trail.
    pub shadow: Vec<Shadow>,
    /// Whether it is on the create that a server-side apply may be, rather than on the patch that it is.
    pub as_create: bool,
}

/// The decision. Any deny wins, then approve, then allow, then step up; no match is a denial.
#[derive(Clone, Debug)]
pub enum Outcome {
    Allow,
    Deny(Denial),
    /// All of these approvals are required. Approvals are not implemented yet, so the request is refused.
    Approve(Vec<Arc<Approval>>),
    /// An `allow` matches, but the login does not satisfy its `need`.
    StepUp {
        /// Everything that the rule needs, for the next login: a login that asks for the missing part alone may lose
        /// the rest.
        need: Box<NeededLogin>,
        /// The part of it that the current login lacks.
        missing: Box<NeededLogin>,
    },
    NoMatch {
        /// A scope that would suffice, if only a scope is missing.
        missing_scope: Option<Arc<str>>,
        /// In that case, those scopes of the token that rules of the route ask for. Clients request exactly the scopes
        /// that they are told to, so they would otherwise lose these.
        kept_scopes: Vec<Arc<str>>,
        /// In that case, everything that the rule needs of the login, if the current one does not meet it.
        need: Option<Box<NeededLogin>>,
    },
}

/// The reason for a denial by a rule, or by Doorward itself, for the person who is denied.
#[derive(Clone, Debug)]
pub struct Denial {
    /// From a rule: why it exists. From Doorward itself: the whole reason, as a clause.
    pub why: Option<Arc<str>>,
    /// From a rule: what the person can do. Always set if Doorward itself denies.
    pub fix: Option<Arc<str>>,
    /// The error of an expression, which denies; or what Doorward itself found. The text is for operators.
    pub error: Option<String>,
}

/// What a rule in `mode: shadow` would have done.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Shadow {
    pub rule: Arc<str>,
    pub would: Would,
}

/// What a rule that matched would have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Would {
    Allow,
    Deny,
    Approve,
    /// Its `need` would not have been met.
    StepUp,
    /// Its expression would have failed.
    Error,
}

impl Outcome {
    /// The effect, as people and the audit trail see it.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Allow => Effect::Allow,
            Self::Deny(_) | Self::NoMatch { .. } => Effect::Deny,
            Self::Approve(_) => Effect::Approve,
            Self::StepUp { .. } => Effect::StepUp,
        }
    }
}

impl Decision {
    /// Creates a denial by Doorward itself, regardless of the rules.
    pub(super) fn denied(why: impl Into<Arc<str>>, fix: impl Into<Arc<str>>, error: Option<String>) -> Self {
        let denial = Denial { why: Some(why.into()), fix: Some(fix.into()), error };
        Self { outcome: Outcome::Deny(denial), rule: None, shadow: Vec::new(), as_create: false }
    }

    pub fn is_allow(&self) -> bool {
        matches!(self.outcome, Outcome::Allow)
    }

    /// Adds what rules in `mode: shadow` would have done when the same request was decided in another way, each rule
    /// once.
    pub fn add_shadow(&mut self, more: impl IntoIterator<Item = Shadow>) {
        for shadow in more {
            if !self.shadow.iter().any(|own| own.rule == shadow.rule) {
                self.shadow.push(shadow);
            }
        }
    }

    /// The refusal that follows from the decision; `None` if it allows.
    pub fn rejection(&self) -> Option<Rejection> {
        let id = self.rule.as_deref().unwrap_or_default();
        let request = if self.as_create { "this server-side apply as a create" } else { "this request" };
        let rejection = match &self.outcome {
            Outcome::Allow => return None,
            Outcome::Deny(Denial { why, fix, error }) if self.rule.is_none() => {
                let said = |text: &Option<Arc<str>>| text.as_deref().unwrap_or_default().to_owned();
                let rejection = Rejection::new(Reason::PolicyDenied, said(why)).fix(said(fix));
                match error {
                    Some(error) => rejection.because(error.clone()),
                    None => rejection,
                }
            }
            Outcome::Deny(Denial { error: Some(error), fix, .. }) => {
                let detail = format!("the rule `{id}` could not be evaluated for {request}, which denies it");
                let fix = fix.as_deref().map_or("ask the owners of the policy to look at the rule", as_clause);
                Rejection::new(Reason::PolicyDenied, detail).fix(fix.to_owned()).because(error.clone())
            }
            Outcome::Deny(Denial { why, fix, error: None }) => {
                let why = why.as_deref().map(|why| format!(": {}", as_clause(why)));
                let detail = format!("the rule `{id}` denies {request}{}", why.unwrap_or_default());
                let rejection = Rejection::new(Reason::PolicyDenied, detail);
                match fix {
                    Some(fix) => rejection.fix(as_clause(fix).to_owned()),
                    None => rejection,
                }
            }
            Outcome::Approve(approvals) => {
                let count = approvals.iter().map(|approval| approval.count).max().unwrap_or(1);
                let people = if count == 1 {
                    "somebody else's approval".to_owned()
                } else {
                    format!("the approval of {count} people")
                };
                let detail = format!("the rule `{id}` lets {request} pass only with {people}");
                Rejection::new(Reason::ApprovalRequired, detail)
                    .fix("Doorward takes no approvals yet, so ask the owners of the policy for a rule that needs none")
            }
            Outcome::StepUp { need, missing } => {
                let detail = format!("the rule `{id}` would allow {request}, but it needs {missing}");
                let fix = "sign in again, with what is needed";
                Rejection::new(Reason::NeedUnmet, detail).fix(fix).needs_login((**need).clone())
            }
            Outcome::NoMatch { missing_scope: Some(scope), kept_scopes, need } => {
                let (after, fix) = match need {
                    Some(need) => (format!(", after {need},"), "get a token with that scope, by such a login"),
                    None => (String::new(), "get a token with that scope"),
                };
                let detail = format!("no rule allows {request}; with the scope `{scope}`{after} one would");
                let scopes = [scope].into_iter().chain(kept_scopes).map(ToString::to_string).collect();
                let rejection = Rejection::new(Reason::NoRuleMatched, detail).fix(fix).needs_scopes(scopes);
                match need {
                    Some(need) => rejection.needs_login((**need).clone()),
                    None => rejection,
                }
            }
            Outcome::NoMatch { missing_scope: None, .. } => {
                Rejection::new(Reason::NoRuleMatched, format!("no rule allows {request}"))
                    .fix("ask the owners of the policy; `doorward explain` tells them what is missing")
            }
        };
        Some(match &self.rule {
            Some(rule) => rejection.with_rule(Arc::clone(rule)),
            None => rejection,
        })
    }
}

/// The `why` or `fix` of a rule without a full stop at the end, as [`Rejection::new`] takes it.
pub(crate) fn as_clause(text: &str) -> &str {
    text.trim_end().trim_end_matches('.')
}
