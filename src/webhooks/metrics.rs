use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::{Delivery, Webhook};
use crate::error::Reason;

/// Counts deliveries. Cheap to clone; clones count together.
#[derive(Clone, Debug, Default)]
pub struct WebhookMetrics {
    genuine: Family<Secret, Counter>,
    refused: Family<Refused, Counter>,
    stopped: Counter,
    rebound: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Secret {
    webhook: String,
    secret: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    webhook: String,
    reason: &'static str,
}

impl WebhookMetrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "webhook_genuine",
            "Deliveries whose signature was good, by the position of the secret that made it",
            self.genuine.clone(),
        );
        registry.register("webhook_refused", "Deliveries that were refused", self.refused.clone());
        registry.register("interceptor_stopped", "Triggers that the interceptor stopped", self.stopped.clone());
        registry.register(
            "interceptor_rebound",
            "Deliveries that an event was bound to which the EventListener does not know: somebody else asked first",
            self.rebound.clone(),
        );
    }

    /// A delivery was genuine. Tells when the old secret of a rotation is no longer used.
    pub fn genuine(&self, webhook: &Webhook, delivery: &Delivery) {
        let labels = Secret { webhook: webhook.name.to_string(), secret: delivery.secret_index as u64 };
        self.genuine.get_or_create(&labels).inc();
    }

    /// The interceptor stopped a trigger.
    pub fn stopped(&self) {
        self.stopped.inc();
    }

    /// A delivery was bound to an event that was not the EventListener's.
    pub fn rebound(&self) {
        self.rebound.inc();
    }

    /// A delivery was refused. The first 401 of a sender that was healthy means a lost secret.
    pub fn refused(&self, webhook: &Webhook, reason: Reason) {
        self.refused.get_or_create(&Refused { webhook: webhook.name.to_string(), reason: reason.as_str() }).inc();
    }
}
