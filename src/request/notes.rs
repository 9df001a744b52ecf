//! Fills in the record of a request as its facts become known.

use std::sync::Arc;

use super::{exchange::Exchange, respond::Manner, route::Route, sanitize::CleanRequest};
use crate::{audit, authz, snapshot::Snapshot};

/// Notes what is requested, for the record and for a refusal.
pub(super) fn note_request<B>(request: &CleanRequest<B>, exchange: &mut Exchange, manner: &mut Manner) {
    let record = exchange.record();
    record.host = Arc::clone(request.host());
    record.path = request.path().into();
    record.address = Some(request.meta().client);
    record.upgrade = request.meta().upgrade.is_some();
    record.trace = request.meta().trace_id();
    manner.note(request);
}

/// Notes the route of a request, for the record and for a refusal.
pub(super) fn note_route(route: &Arc<Route>, snapshot: &Snapshot, exchange: &mut Exchange, manner: &mut Manner) {
    manner.route = Some(Arc::clone(route));
    exchange.count_on(&route.metrics);
    note_target(exchange.record(), route, snapshot);
}

/// Notes where a request goes and by which policy it is decided.
pub(super) fn note_target(record: &mut audit::Record, route: &Route, snapshot: &Snapshot) {
    record.route = Some(Arc::clone(&route.name));
    record.kind = Some(route.kind);
    record.event_listener.clone_from(&route.event_listener);
    record.policy = Some(Arc::clone(snapshot.policy.digest()));
    record.claims.clone_from(&snapshot.claims);
}

/// A decision in the form of the audit trail.
pub(crate) fn recorded(decision: &authz::Decision) -> audit::Decision {
    audit::Decision {
        outcome: decision.outcome.effect(),
        rule: decision.rule.clone(),
        shadow: decision.shadow.iter().map(|shadow| Arc::clone(&shadow.rule)).collect(),
        grants: Vec::new(),
    }
}
