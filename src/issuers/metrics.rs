//! Metrics of issuers and their tokens.

use std::sync::Arc;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::admin::metrics::Labels;

/// Counters and gauges of issuers. Labels come from the configuration, never from a token.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) key_fetches: Family<FetchLabels, Counter>,
    pub(super) keys: Family<Labels<Arc<str>>, Gauge>,
    pub(super) keys_fetched_at: Family<Labels<Arc<str>>, Gauge>,
    pub(super) keys_stale: Family<Labels<Arc<str>>, Gauge>,
    pub(super) unknown_kids: Family<Labels<Arc<str>>, Counter>,
    pub(super) introspections: Family<OutcomeLabels, Counter>,
    pub(super) token_reviews: Family<OutcomeLabels, Counter>,
    pub(super) cache_hits: Counter,
    pub(super) cache_misses: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FetchLabels {
    pub issuer: Arc<str>,
    pub cause: &'static str,
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabels {
    pub issuer: Arc<str>,
    pub outcome: &'static str,
}

impl Metrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register("issuer_key_fetches", "Fetches of key sets", self.key_fetches.clone());
        registry.register("issuer_keys", "Usable keys of the issuer", self.keys.clone());
        registry.register(
            "issuer_keys_fetched_timestamp_seconds",
            "When the key set was last fetched with success",
            self.keys_fetched_at.clone(),
        );
        registry.register(
            "issuer_keys_stale",
            "1 while keys are used that could not be fetched again for an hour",
            self.keys_stale.clone(),
        );
        registry.register("issuer_unknown_kids", "Tokens that name an unknown key", self.unknown_kids.clone());
        registry.register("issuer_introspections", "Introspection calls", self.introspections.clone());
        registry.register("issuer_token_reviews", "TokenReview calls", self.token_reviews.clone());
        registry.register("token_cache_hits", "Tokens found verified in memory", self.cache_hits.clone());
        registry.register("token_cache_misses", "Tokens that had to be verified", self.cache_misses.clone());
    }
}
