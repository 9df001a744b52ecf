//! The metrics of the connection pools, by upstream.

use std::sync::Arc;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::admin::metrics::Labels;

/// The counters of all pools. Clones share them, so that each worker has one.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    open: Family<Labels<Arc<str>>, Gauge>,
    idle: Family<Labels<Arc<str>>, Gauge>,
    opened: Family<Labels<Arc<str>>, Counter>,
    reused: Family<Labels<Arc<str>>, Counter>,
    connect_failures: Family<Labels<Arc<str>>, Counter>,
    retries: Family<Labels<Arc<str>>, Counter>,
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
        let label = [("upstream", Arc::clone(upstream))];
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
