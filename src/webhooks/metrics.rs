//! Metrics of deliveries: genuine, refused, held, delivered and parked.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{Delivery, Webhook, hold::Usage};
use crate::{admin::metrics::Labels, error::Reason};

/// The metrics of deliveries. Cheap to clone; clones share the counters.
#[derive(Clone, Debug, Default)]
pub struct WebhookMetrics {
    genuine: Family<SecretLabels, Counter>,
    refused: Family<RefusedLabels, Counter>,
    /// Triggers that the interceptor stopped.
    pub stopped: Counter,
    /// Deliveries that were bound to another event than the EventListener's own.
    pub rebound: Counter,
    /// Triggers that were stopped, though the event may have been the EventListener's own.
    pub disputed: Counter,
    /// Triggers that continued without being recorded.
    pub unnoted: Counter,
    held: Family<HeldLabels, Gauge>,
    held_bytes: Family<Labels<Arc<str>>, Gauge>,
    held_oldest: Family<Labels<Arc<str>>, Gauge>,
    queue_full: Family<Labels<Arc<str>>, Counter>,
    unreadable: Gauge,
    delivered: Family<Labels<Arc<str>>, Counter>,
    failed: Family<Labels<Arc<str>>, Counter>,
    parked: Family<Labels<Arc<str>>, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HeldLabels {
    webhook: Arc<str>,
    /// `waiting` or `parked`.
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SecretLabels {
    webhook: Arc<str>,
    secret: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    webhook: Arc<str>,
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
            "Deliveries for which somebody else also named an event to the interceptor, in place of the EventListener",
            self.rebound.clone(),
        );
        registry.register(
            "interceptor_disputed",
            "Triggers that were stopped because several events were named for a delivery, and it was not known in time which is the EventListener's",
            self.disputed.clone(),
        );
        registry.register(
            "interceptor_unnoted",
            "Triggers that continued without being recorded, because somebody asked about too many for one delivery",
            self.unnoted.clone(),
        );
        registry.register("webhook_held", "Deliveries that are held, by state", self.held.clone());
        registry.register_with_unit(
            "webhook_held",
            "Size of the deliveries that are held",
            Unit::Bytes,
            self.held_bytes.clone(),
        );
        registry.register_with_unit(
            "webhook_held_oldest",
            "How long the oldest held delivery waits for its EventListener",
            Unit::Seconds,
            self.held_oldest.clone(),
        );
        registry.register(
            "webhook_queue_full",
            "Deliveries that were refused because too many of their sender are held",
            self.queue_full.clone(),
        );
        registry.register(
            "webhook_held_unreadable",
            "Held deliveries of all senders that cannot be read and are not tried",
            self.unreadable.clone(),
        );
        registry.register(
            "webhook_delivered",
            "Held deliveries that the EventListener accepted",
            self.delivered.clone(),
        );
        registry.register("webhook_try_failed", "Failed attempts to deliver held deliveries", self.failed.clone());
        registry.register(
            "webhook_parked",
            "Held deliveries that were given up until an operator retries them",
            self.parked.clone(),
        );
    }

    /// Sets how much a sender has held.
    pub(super) fn held(&self, webhook: &Arc<str>, usage: &Usage) {
        let set = |state, count: usize| {
            let labels = HeldLabels { webhook: Arc::clone(webhook), state };
            self.held.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        set("waiting", usage.waiting);
        set("parked", usage.parked);
        let bytes = i64::try_from(usage.bytes).unwrap_or(i64::MAX);
        self.held_bytes.get_or_create(&sender(webhook)).set(bytes);
    }

    /// Sets how long the oldest held delivery of a sender has waited.
    pub(super) fn oldest_held(&self, webhook: &Arc<str>, age: Duration) {
        let seconds = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
        self.held_oldest.get_or_create(&sender(webhook)).set(seconds);
    }

    /// Counts a delivery that was refused because its sender has reached its limit. A sender that sends once has lost
    /// it.
    pub(super) fn queue_full(&self, webhook: &Arc<str>) {
        self.queue_full.get_or_create(&sender(webhook)).inc();
    }

    /// Sets the number of unreadable held deliveries.
    pub(super) fn unreadable(&self, count: usize) {
        self.unreadable.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts a held delivery that the EventListener accepted.
    pub(super) fn delivered(&self, webhook: &Arc<str>) {
        self.delivered.get_or_create(&sender(webhook)).inc();
    }

    /// Counts a failed attempt to deliver a held delivery.
    pub(super) fn try_failed(&self, webhook: &Arc<str>) {
        self.failed.get_or_create(&sender(webhook)).inc();
    }

    /// Counts a held delivery that was parked.
    pub(super) fn parked(&self, webhook: &Arc<str>) {
        self.parked.get_or_create(&sender(webhook)).inc();
    }

    /// Counts a genuine delivery. Shows when the old secret of a rotation is no longer used.
    pub fn genuine(&self, webhook: &Webhook, delivery: &Delivery) {
        let labels = SecretLabels { webhook: Arc::clone(&webhook.name), secret: delivery.secret_index as u64 };
        self.genuine.get_or_create(&labels).inc();
    }

    /// Counts a refused delivery. The first 401 of a sender that was healthy means a lost secret.
    pub fn refused(&self, webhook: &Webhook, reason: Reason) {
        let labels = RefusedLabels { webhook: Arc::clone(&webhook.name), reason: reason.as_str() };
        self.refused.get_or_create(&labels).inc();
    }
}

fn sender(webhook: &Arc<str>) -> Labels<Arc<str>> {
    [("webhook", Arc::clone(webhook))]
}
