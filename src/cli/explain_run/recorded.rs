//! The output of `doorward explain --audit-id`.

use std::fmt;

use serde::Serialize;
use uuid::Uuid;

use super::Answer;
use crate::{audit::ReplayInputs, authz::AskedToken, config::raw::Effect, terminal};

/// The record of a request, and the decisions on its inputs by the recorded and by the current policy.
#[derive(Serialize)]
pub(super) struct FromTrail<'a> {
    pub(super) recorded: Recorded<'a>,
    /// Whether the policy that decided is stored, or is the current one.
    pub(super) policy_is_kept: bool,
    /// `None` if that is the current policy, or is no longer stored.
    pub(super) under_recorded: Option<Answer>,
    /// `None` if no rule was evaluated: the caller was not authenticated, or no route matched.
    pub(super) under_current: Option<Answer>,
    /// Claims that the current policy reads, and that were not recorded because no rule read them then.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) unrecorded: Vec<String>,
    /// Fields of the record that were cut, without which a new decision may differ.
    pub(super) truncated: &'a [String],
    /// The request whose delivery an EventListener asked about, if rules were evaluated for that one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) about: Option<Uuid>,
    /// Whether the record has a pseudonym for a person, so that rules that name people may decide differently.
    pub(super) pseudonymous: bool,
}

/// The decision that was recorded.
#[derive(Serialize)]
pub(super) struct Recorded<'a> {
    /// The token that was requested at the token endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) asked: Option<&'a AskedToken>,
    pub(super) outcome: Option<Effect>,
    pub(super) rule: Option<&'a str>,
    /// Why it was refused, by whichever step.
    pub(super) reason: Option<&'a str>,
    pub(super) detail: Option<&'a str>,
    pub(super) policy: Option<&'a str>,
}

impl<'a> Recorded<'a> {
    pub(super) fn of(inputs: &'a ReplayInputs) -> Self {
        let decision = inputs.decision.as_ref();
        Self {
            asked: inputs.asked.as_ref(),
            outcome: decision.map(|decision| decision.outcome),
            rule: decision.and_then(|decision| decision.rule.as_deref()),
            reason: inputs.reason.as_deref(),
            detail: inputs.detail.as_deref(),
            policy: inputs.policy.as_deref(),
        }
    }
}

impl fmt::Display for FromTrail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Recorded { asked, outcome, rule, reason, detail, policy } = &self.recorded;
        let [rule, reason, policy] = [rule, reason, policy].map(|text| text.map(terminal::line));
        let (rule, reason, policy) = (rule.as_deref(), reason.as_deref(), policy.as_deref().unwrap_or("unknown"));
        if let Some(asked) = asked {
            writeln!(f, "asked for: {asked}")?;
        }
        match outcome {
            Some(outcome) => {
                let on = if self.about.is_some() { " on the delivery" } else { "" };
                write!(f, "recorded: {} by {}{on}, policy {policy}", outcome.as_str(), rule.unwrap_or("no rule"))?;
            }
            None if reason.is_some() => write!(f, "recorded: refused before any rule was evaluated, policy {policy}")?,
            None => write!(f, "recorded: not refused, and no rule was evaluated, policy {policy}")?,
        }
        if let (Some(reason), Some(detail)) = (reason, detail) {
            write!(f, "\n  {reason}: {}", terminal::line(detail))?;
        }
        writeln!(f)?;
        if !self.truncated.is_empty() {
            let cut = terminal::line(&self.truncated.join(", "));
            writeln!(f, "the record was too long and lost {cut}: a new decision may differ")?;
        }
        if self.pseudonymous {
            writeln!(
                f,
                "the record has a pseudonym for a person: by rules that name people, or their repositories, a new \
                 decision may differ"
            )?;
        }
        if !self.unrecorded.is_empty() {
            let claims = terminal::line(&self.unrecorded.join(", "));
            writeln!(
                f,
                "the record does not have the claims {claims}, which only the current policy reads: they count as \
                 unknown, which never lets anybody through, and the decision may differ"
            )?;
        }
        if !self.policy_is_kept {
            writeln!(f, "recorded policy: no longer stored")?;
        }
        if let Some(answer) = &self.under_recorded {
            write!(f, "\nunder the recorded policy:\n{answer}")?;
        }
        match (&self.under_current, self.about) {
            (Some(answer), _) => write!(f, "\nunder the current policy:\n{answer}"),
            (None, Some(id)) => {
                writeln!(f, "\nthe rules were evaluated when the delivery came: explain that with `--audit-id {id}`")
            }
            (None, None) => writeln!(f, "\nno rule is evaluated before the caller and the request are known"),
        }
    }
}
