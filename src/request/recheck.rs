//! A second look at what was decided, where much may have happened since: the audit trail keeps requests waiting while its disk stands
//! still.

use std::time::Duration;

use super::{exchange::Exchange, notes::recorded, pipeline::Worker};
use crate::{
    authz::{Permit, RequestView},
    clock::Timestamp,
    error::{Reason, Rejection},
    snapshot::Snapshot,
};

/// How old a decision may be, as far as nobody was revoked since.
const FRESH: Duration = Duration::from_secs(1);

impl Worker {
    /// Refuses what was allowed at `decided` and would not be by now: its caller was revoked or has signed out, or the time is over in
    /// which a rule lets them. By the policy of the generation that it began with, as all of it is.
    pub(super) fn recheck(
        &self,
        snapshot: &Snapshot,
        permit: &Permit,
        decided: Timestamp,
        exchange: &mut Exchange,
    ) -> Result<(), Rejection> {
        let now = self.app.clock.now();
        // What an operator revokes here has all streams looked at.
        if now < decided + FRESH && self.app.streams.epoch() == exchange.epoch() {
            return Ok(());
        }
        let principal = permit.principal();
        if self.app.took_back(principal, &self.app.snapshot.load()).is_some() {
            let detail = "your access was revoked while the request waited to be recorded";
            return Err(Rejection::new(Reason::TokenRevoked, detail).fix("sign in again, or get a new token"));
        }
        // The body that says what becomes of a run is with the request that is sent by now.
        let run = exchange.record().run.clone();
        let decision = snapshot.policy.decide(principal, &RequestView { run: run.as_deref(), ..permit.view(now) });
        let Some(rejection) = decision.rejection() else { return Ok(()) };
        exchange.record().decision = Some(recorded(&decision));
        Err(rejection)
    }
}
