//! Counts logins by outcome.

use std::sync::Arc;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use serde::Serialize;

/// The outcome of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue, Serialize)]
#[allow(non_camel_case_types, reason = "the names of the label's values, and in the audit trail")]
pub enum Outcome {
    success,
    /// The request is not one that a provider or a browser sends in a login.
    malformed,
    /// The state is not ours.
    state_unknown,
    /// The login took longer than ten minutes.
    expired,
    /// The response came a second time.
    replayed,
    /// The response came in another browser, or to another host.
    other_browser,
    /// The response names another issuer, or none where it must (RFC 9207), or came at another redirect address.
    issuer_mismatch,
    /// The provider answered with an error.
    provider_error,
    provider_unavailable,
    /// The exchange of the code returned no tokens.
    exchange_failed,
    id_token_refused,
    /// The claims give no identity that may sign in, or the person is revoked.
    identity_refused,
    store_unavailable,
    /// The login could not be recorded in the audit trail.
    audit_unavailable,
    /// The login was not begun: the browser had logged in too many times in a row.
    looping,
    internal,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    issuer: Arc<str>,
    outcome: Outcome,
}

/// Counters of logins begun and ended.
#[derive(Clone, Debug, Default)]
pub struct LoginMetrics {
    begun: Counter,
    ended: Family<Labels, Counter>,
}

impl LoginMetrics {
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("logins");
        registry.register("begun", "Browsers sent to a provider", self.begun.clone());
        registry.register("ended", "Logins by what they came to", self.ended.clone());
    }

    pub(super) fn begun(&self) {
        self.begun.inc();
    }

    pub(super) fn ended(&self, issuer: Option<&Arc<str>>, outcome: Outcome) {
        let issuer = issuer.cloned().unwrap_or_default();
        self.ended.get_or_create(&Labels { issuer, outcome }).inc();
    }

    #[cfg(test)]
    pub(super) fn count(&self, issuer: &str, outcome: Outcome) -> u64 {
        self.ended.get_or_create(&Labels { issuer: issuer.into(), outcome }).get()
    }
}
