//! What the pools count, by upstream.

use std::sync::Arc;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// The counters of all pools. Clones share them, so that each worker has one.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    open: Family<UpstreamLabel, Gauge>,
    idle: Family<UpstreamLabel, Gauge>,
    opened: Family<UpstreamLabel, Counter>,
    reused: Family<UpstreamLabel, Counter>,
    connect_failures: Family<UpstreamLabel, Counter>,
    retries: Family<UpstreamLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabel {
    upstream: String,
}

/// The counters of one upstream, looked up once.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) open: Gauge,
    pub(super) idle: Gauge,
    pub(super) opened: Counter,
    pub(super) reused: Counter,
    pub(super) connect_failures: Counter,
    pub(super) retries: Counter,
}

impl Metrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register("upstream_connections_open", "Connections to upstreams", self.open.clone());
        registry.register("upstream_connections_idle", "Connections that wait for a request", self.idle.clone());
        registry.register("upstream_connections_opened", "Connections opened", self.opened.clone());
        registry.register("upstream_connections_reused", "Requests on a pooled connection", self.reused.clone());
        registry.register("upstream_connect_failures", "Connections that failed", self.connect_failures.clone());
        registry.register("upstream_retries", "Requests sent a second time", self.retries.clone());
    }

    pub(super) fn of(&self, upstream: &Arc<str>) -> Counters {
        let label = UpstreamLabel { upstream: upstream.as_ref().to_owned() };
        Counters {
            open: self.open.get_or_create(&label).clone(),
            idle: self.idle.get_or_create(&label).clone(),
            opened: self.opened.get_or_create(&label).clone(),
            reused: self.reused.get_or_create(&label).clone(),
            connect_failures: self.connect_failures.get_or_create(&label).clone(),
            retries: self.retries.get_or_create(&label).clone(),
        }
    }
}
