//! Traces as JSON. Times are Unix time in milliseconds, as in the trail.

use std::net::IpAddr;

use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::Cause;
use crate::{audit::replay::ReplayInputs, authn::Kind, webhooks::Facts};

/// A request: who asked for what, and by which rule.
#[derive(Serialize)]
struct RequestView<'a> {
    id: Uuid,
    time: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<Person<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    /// The digest of the policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
}

/// A person, an agent or a workload.
#[derive(Serialize)]
struct Person<'a> {
    username: &'a str,
    kind: Kind,
    issuer: &'a str,
    subject: &'a str,
    /// The actor, if somebody acts for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<&'a str>,
}

#[derive(Serialize)]
struct CauseView<'a> {
    request: RequestView<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery: Option<&'a Facts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_by: Option<RequestView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing_arrival: Option<Uuid>,
}

impl<'a> RequestView<'a> {
    fn new(request: &'a ReplayInputs) -> Self {
        let by = request.principal.as_ref().map(|principal| Person {
            username: &principal.username,
            kind: principal.kind,
            issuer: &principal.issuer,
            subject: &principal.subject,
            actor: principal.actor.as_ref().map(|actor| &*actor.subject),
        });
        Self {
            id: request.id,
            time: request.time.as_millis(),
            by,
            address: request.address,
            method: request.method.as_str(),
            host: &request.host,
            path: &request.path,
            rule: request.decision.as_ref().and_then(|decision| decision.rule.as_deref()),
            policy: request.policy.as_deref(),
        }
    }
}

/// Serializes a request in the form of a trace.
pub fn request_json<S: Serializer>(request: &ReplayInputs, serializer: S) -> Result<S::Ok, S::Error> {
    RequestView::new(request).serialize(serializer)
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let view = CauseView {
            request: RequestView::new(&self.request),
            delivery: self.request.delivery.as_deref(),
            sent_by: self.sent.as_deref().map(RequestView::new),
            event: self.event.as_deref(),
            missing_arrival: self.missing_arrival,
        };
        view.serialize(serializer)
    }
}
