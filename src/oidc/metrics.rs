//! Counts what came of logins.

use std::sync::Arc;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// What a login came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names of the label's values")]
pub enum Outcome {
    success,
    /// The request of the callback is not one that a provider sends.
    malformed,
    /// The state is not ours.
    state_unknown,
    /// It took longer than ten minutes.
    expired,
    /// It came back a second time.
    replayed,
    /// It came back in another browser, or to another host.
    other_browser,
    /// The answer names another issuer, or none where it must (RFC 9207).
    issuer_mismatch,
    /// The provider answered with an error.
    provider_error,
    provider_unavailable,
    /// The code gave no tokens.
    exchange_failed,
    id_token_refused,
    /// The claims name nobody who could use Kubernetes, or somebody who is revoked.
    identity_refused,
    store_unavailable,
    /// It could not be recorded.
    audit_unavailable,
    /// It was not begun, as the browser came back from one after the other.
    looping,
    internal,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    issuer: Arc<str>,
    outcome: Outcome,
}

/// Logins begun and ended.
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
