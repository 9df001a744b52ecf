//! The steps from a known caller to a request that may be sent: authorize, assume identity, and the audit record that
//! must be durable before it is sent.

use std::sync::Arc;

use http::HeaderValue;

use super::{exchange::Exchange, notes::recorded, outbound::Outbound, worker::Worker};
use crate::{
    assertions::Asserted,
    audit, authn,
    authz::{Permit, Policy, authorize},
    clock::{Moment, Timestamp},
    config::raw::RouteKind,
    error::{Reason, Rejection},
    memory::Level,
    snapshot::Snapshot,
    tekton::{Attribution, Fit},
    upstream::Lifetime,
    webhooks,
};

/// A request that the policy allows, and what follows from that.
struct Permitted {
    permit: Permit,
    /// The rule that allowed it.
    rule: Option<Arc<str>>,
    /// The groups that grants gave.
    groups: Arc<[Arc<str>]>,
}

/// A request that may be sent.
pub(super) struct Cleared {
    pub(super) outbound: Outbound,
    /// The groups that grants gave, in which it is sent.
    pub(super) groups: Arc<[Arc<str>]>,
    /// For an apply or a patch of a run: adapts the body to the existing run, if there is one.
    pub(super) fit: Option<Fit>,
    /// The epoch at which it was decided.
    pub(super) epoch: u64,
    /// When it was decided.
    pub(super) now: Moment,
}

impl Worker {
    /// Authorizes the request, assumes the identity that it is sent under, and records the decision. `key` is the
    /// idempotency key of a delivery to an EventListener.
    pub(super) fn decide<'e>(
        &'e self,
        snapshot: &'e Snapshot,
        authenticated: authn::Authenticated,
        key: Option<webhooks::DeliveryKey>,
        exchange: &'e mut Exchange,
    ) -> impl Future<Output = Result<Box<Cleared>, Rejection>> + Send + use<'e> {
        // Outside the async block, so that the future does not have to store `authenticated`.
        let now = self.app.clock.moment();
        let cleared = self
            .authorize(snapshot, authenticated, now, exchange)
            .and_then(|permitted| self.assume(snapshot, permitted, key, now, exchange));
        async move {
            let cleared = cleared?;
            self.record_decision(snapshot, cleared.outbound.permit(), cleared.now, exchange).await?;
            Ok(cleared)
        }
    }

    /// Reserves room for the audit records of a request that was allowed at `decided`, and writes the first if it must
    /// be durable before the request is sent, or stored to be sent later. Then rechecks the decision, as it may have
    /// waited for the trail.
    pub(super) async fn record_decision(
        &self,
        snapshot: &Snapshot,
        permit: &Permit,
        decided: Moment,
        exchange: &mut Exchange,
    ) -> Result<(), Rejection> {
        let is_recorded_first = permit.is_recorded_first();
        exchange.reserve(if is_recorded_first { 2 } else { 1 }).await?;
        if is_recorded_first {
            Box::pin(exchange.write_decided()).await?;
        }
        self.recheck(snapshot, permit, decided, exchange)
    }

    /// Decides by the policy, and adds the grants to the record of the decision.
    fn authorize(
        &self,
        snapshot: &Snapshot,
        authenticated: authn::Authenticated,
        now: Moment,
        exchange: &mut Exchange,
    ) -> Result<Permitted, Rejection> {
        let record = exchange.record();
        let (permit, rule) = decide_by_policy(&snapshot.policy, authenticated, now.wall(), record)?;
        let given = snapshot.policy.kubernetes_groups(permit.principal());
        if let Some(decision) = &mut record.decision {
            decision.grants = given.grants;
        }
        if permit.lifetime() != Lifetime::Short && self.app.memory.level() >= Level::RefuseStreams {
            return Err(Rejection::short_of_memory());
        }
        Ok(Permitted { permit, rule, groups: given.groups })
    }

    /// Makes the request that is sent: with the caller's identity, the assertion for an EventListener, and the body of
    /// a run that says who caused it.
    fn assume(
        &self,
        snapshot: &Snapshot,
        permitted: Permitted,
        key: Option<webhooks::DeliveryKey>,
        now: Moment,
        exchange: &mut Exchange,
    ) -> Result<Box<Cleared>, Rejection> {
        let Permitted { mut permit, rule, groups } = permitted;
        let assertion = asserted(snapshot, &permit, &groups, key, now.wall(), exchange.record())?;
        let (body, fit) = match permit.take_document() {
            Some(document) => {
                let (rule, request) = (rule.as_deref(), exchange.record().id);
                let makes = document.run.intent.makes_a_run();
                let (body, fit) = document.into_body(&Attribution { principal: permit.principal(), rule, request });
                (Some((self.app.budget.hold(body).ok_or_else(Rejection::short_of_memory)?, makes)), fit)
            }
            None => (None, None),
        };
        let mut outbound = Outbound::assume(permit, &groups)?;
        if let Some((body, makes_a_run)) = body {
            outbound.attribute(body, makes_a_run);
        }
        if let Some(assertion) = assertion {
            outbound.assert(assertion);
        }
        let record = exchange.record();
        record.impersonated_groups = (record.kind == Some(RouteKind::Kubernetes)).then(|| Arc::clone(&groups));
        let upstream = Arc::clone(outbound.permit().route().upstream.name());
        record.upstream = Some(audit::Upstream { name: upstream, status: None });
        outbound.note_body(|| Arc::clone(exchange.received()));
        Ok(Box::new(Cleared { outbound, groups, fit, epoch: exchange.epoch(), now }))
    }
}

/// Decides a request by the policy, and notes the decision in `record`. Returns the permit and the rule that decided.
pub(super) fn decide_by_policy(
    policy: &Policy,
    authenticated: authn::Authenticated,
    now: Timestamp,
    record: &mut audit::Record,
) -> Result<(Permit, Option<Arc<str>>), Rejection> {
    let decided = authorize(policy, authenticated, now);
    record.decision = Some(recorded(&decided.decision));
    Ok((decided.permit?, decided.decision.rule))
}

/// The signed assertion for an EventListener. `None` for other upstreams, and for a request whose body was not read.
fn asserted(
    snapshot: &Snapshot,
    permit: &Permit,
    groups: &Arc<[Arc<str>]>,
    key: Option<webhooks::DeliveryKey>,
    now: Timestamp,
    record: &audit::Record,
) -> Result<Option<HeaderValue>, Rejection> {
    let Some((body, key)) = record.body_digest.zip(key) else { return Ok(None) };
    let id = record.id.to_string();
    let asserted = Asserted {
        principal: permit.principal(),
        route: permit.route(),
        groups,
        request_id: &id,
        body_sha256: &body,
        once: key,
        triggers: snapshot.policy.trigger_limits(permit.principal(), &permit.view(now)),
    };
    let assertion = snapshot.assertions.sign(asserted, now);
    assertion.map(Some).ok_or_else(|| Rejection::new(Reason::Internal, "the assertion cannot be signed"))
}
