//! Rechecks a decision that is no longer fresh. A request can wait for the audit trail while its disk stalls, and be
//! revoked meanwhile.

use std::time::Duration;

use super::{exchange::Exchange, notes::recorded, worker::Worker};
use crate::{
    authn::Scheme,
    authz::{Permit, RequestView},
    clock::Moment,
    error::{Reason, Rejection},
    issuers::{RevocationCheck as _, Revoked},
    snapshot::Snapshot,
    streams::CutReason,
};

/// How old a decision may be, provided that nobody was revoked since.
const FRESH: Duration = Duration::from_secs(1);

impl Worker {
    /// Refuses a request that was allowed at `decided` and would not be allowed now: its caller was revoked or has
    /// signed out, or the time in which a rule allows it is over. Decides by the policy of the generation that the
    /// request began with, like all its other steps.
    pub(super) fn recheck(
        &self,
        snapshot: &Snapshot,
        permit: &Permit,
        decided: Moment,
        exchange: &mut Exchange,
    ) -> Result<(), Rejection> {
        let now = self.app.clock.moment();
        // A revocation by an operator on this replica sweeps all streams, which changes the epoch.
        if is_fresh(decided, now) && self.app.streams.epoch() == exchange.epoch() {
            return Ok(());
        }
        let principal = permit.principal();
        if let Some(why) = self.app.withdrawal_of(principal, &self.app.snapshot.load()) {
            return Err(withdrawn(why, principal.scheme, self.app.revocations.revoked(principal)));
        }
        // The body that says what becomes of a run has already moved to the request that is sent.
        let run = exchange.record().run.clone();
        let decision =
            snapshot.policy.decide(principal, &RequestView { run: run.as_deref(), ..permit.view(now.wall()) });
        let Some(rejection) = decision.rejection() else { return Ok(()) };
        exchange.record().decision = Some(recorded(&decision));
        Err(rejection)
    }
}

/// Whether a decision made at `decided` holds without a recheck.
fn is_fresh(decided: Moment, now: Moment) -> bool {
    now.since(decided) < FRESH
}

/// The refusal of a caller that was allowed and would not be now. Nothing was revoked if the key of its issuer or the
/// cluster of its run is gone.
fn withdrawn(why: CutReason, scheme: Scheme, revoked: Option<Revoked>) -> Rejection {
    match (scheme, why) {
        (Scheme::Webhook, _) => {
            let detail =
                "the deliveries of this sender or repository were revoked while this one waited to be recorded";
            Rejection::new(Reason::TokenRevoked, detail)
        }
        (_, CutReason::SignedOut) => {
            let detail = "the session ended while the request waited to be recorded";
            Rejection::new(Reason::SessionExpired, detail).fix("sign in again")
        }
        (_, CutReason::Replaced) => {
            let detail = "a later login replaced the session while the request waited to be recorded";
            Rejection::new(Reason::SessionExpired, detail).fix("send it again")
        }
        _ => {
            let detail = "your access was revoked while the request waited to be recorded";
            Rejection::new(Reason::TokenRevoked, detail).fix(match revoked {
                Some(Revoked::Holder) => "ask whoever runs Doorward",
                Some(Revoked::Credential) | None => "sign in again, or get a new token",
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, Timestamp};

    #[test]
    fn a_decision_is_rechecked_after_a_second_even_if_the_clock_is_set_back() {
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let decided = clock.moment();
        clock.set(clock.now() - Duration::from_secs(3600));
        clock.advance(Duration::from_millis(999));
        assert!(is_fresh(decided, clock.moment()));
        clock.advance(Duration::from_millis(1));
        assert!(!is_fresh(decided, clock.moment()));
    }

    /// Regression: somebody who had signed out in another tab read that their access was revoked, and a Git host that
    /// it should sign in again.
    #[test]
    fn a_caller_withdrawn_while_waiting_for_the_trail_gets_the_reason() {
        for (scheme, why, reason, told) in [
            (Scheme::Bearer, CutReason::Revoked, Reason::TokenRevoked, "your access was revoked"),
            (Scheme::Session, CutReason::Revoked, Reason::TokenRevoked, "your access was revoked"),
            (Scheme::Session, CutReason::SignedOut, Reason::SessionExpired, "the session ended"),
            (Scheme::Session, CutReason::Replaced, Reason::SessionExpired, "a later login replaced the session"),
            (Scheme::Webhook, CutReason::Revoked, Reason::TokenRevoked, "deliveries of this sender"),
        ] {
            let refused = withdrawn(why, scheme, None);
            assert_eq!(refused.reason(), reason, "{scheme:?} {why:?}");
            assert!(refused.to_string().contains(told), "{refused}");
        }
        for (revoked, fix) in [
            (Some(Revoked::Credential), "sign in again, or get a new token"),
            (Some(Revoked::Holder), "ask whoever runs Doorward"),
        ] {
            let refused = withdrawn(CutReason::Revoked, Scheme::Bearer, revoked);
            assert_eq!(refused.fix_text(), Some(fix), "{revoked:?}");
        }
    }
}
