//! How a request counts in OCSF.

use http::StatusCode;

use crate::{audit::Record, config::raw::Effect};

/// Whether Doorward allowed a request, and what became of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verdict {
    is_allowed: bool,
    status: Option<StatusCode>,
}

impl Verdict {
    /// A failure of the upstream after a rule allowed the request counts as allowed; before any rule was evaluated it
    /// does not.
    pub(super) fn of(record: &Record) -> Self {
        let is_allowed = match &record.decision {
            Some(decision) => {
                decision.outcome == Effect::Allow
                    && record.refusal.as_ref().is_none_or(|refusal| refusal.reason.is_of_upstream())
            }
            None => record.refusal.is_none() && record.failed_login.is_none(),
        };
        Self { is_allowed, status: record.status }
    }

    /// Informational or low.
    pub(super) fn severity_id(self) -> u8 {
        if self.is_allowed { 1 } else { 2 }
    }

    /// Allowed or denied. As a `disposition_id`, the same number means allowed or blocked.
    pub(super) fn action_id(self) -> u8 {
        if self.is_allowed { 1 } else { 2 }
    }

    /// Unknown, success or failure.
    pub(super) fn status_id(self) -> u8 {
        match self.status {
            _ if !self.is_allowed => 2,
            Some(status) if status.is_client_error() || status.is_server_error() => 2,
            Some(_) => 1,
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::{Decision, FailedLogin, Refusal},
        error::Reason,
        oidc::Outcome,
    };

    #[test]
    fn a_request_counts_as_allowed_unless_doorward_refused_it() {
        for (outcome, reason, status, is_allowed, status_id) in [
            (None, None, None, true, 0),
            (None, None, Some(200), true, 1),
            (None, None, Some(404), true, 2),
            (None, Some(Reason::CredentialMissing), Some(401), false, 2),
            (None, Some(Reason::UpstreamFailed), Some(502), false, 2),
            (Some(Effect::Allow), None, None, true, 0),
            (Some(Effect::Allow), None, Some(201), true, 1),
            (Some(Effect::Allow), None, Some(409), true, 2),
            (Some(Effect::Allow), None, Some(500), true, 2),
            (Some(Effect::Allow), Some(Reason::UpstreamTimeout), Some(504), true, 2),
            (Some(Effect::Allow), Some(Reason::TokenRevoked), Some(401), false, 2),
            (Some(Effect::Deny), None, None, false, 2),
            (Some(Effect::Deny), Some(Reason::PolicyDenied), Some(403), false, 2),
            (Some(Effect::Deny), Some(Reason::UpstreamFailed), Some(502), false, 2),
            (Some(Effect::StepUp), Some(Reason::NeedUnmet), Some(401), false, 2),
            (Some(Effect::Approve), Some(Reason::ApprovalRequired), Some(403), false, 2),
        ] {
            let decision = |outcome| Decision { outcome, rule: None, shadow: Vec::new(), grants: Vec::new() };
            let verdict = Verdict::of(&Record {
                decision: outcome.map(decision),
                refusal: reason.map(|reason| Refusal { reason, detail: "".into() }),
                status: status.map(|status| StatusCode::from_u16(status).unwrap()),
                ..Record::default()
            });
            let row = format!("{outcome:?} {reason:?} {status:?}");
            assert_eq!((verdict.is_allowed, verdict.status_id()), (is_allowed, status_id), "{row}");
            let number = if is_allowed { 1 } else { 2 };
            assert_eq!((verdict.action_id(), verdict.severity_id()), (number, number), "{row}");
        }
    }

    /// A receiver that warns of refused requests missed a forged ID token.
    #[test]
    fn a_failed_login_counts_as_denied_without_a_refusal_of_its_own() {
        for (outcome, status) in [
            (Outcome::provider_error, StatusCode::FORBIDDEN),
            (Outcome::exchange_failed, StatusCode::BAD_GATEWAY),
            (Outcome::id_token_refused, StatusCode::BAD_GATEWAY),
        ] {
            let failed_login = Some(FailedLogin { outcome, issuer: None });
            let verdict = Verdict::of(&Record { failed_login, status: Some(status), ..Record::default() });
            assert_eq!((verdict.action_id(), verdict.severity_id(), verdict.status_id()), (2, 2, 2), "{outcome:?}");
        }
    }
}
