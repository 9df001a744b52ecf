//! Counts and times the calls to any store.

use std::{sync::atomic::AtomicU64, time::Instant};

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use super::{Backend, Change, Put, StoreError, StoreFuture, Stored, Table, WrittenAll};
use crate::{
    admin::metrics::Labels,
    clock::{Clock, Timestamp},
};

/// Latency and errors of the store.
#[derive(Clone, Debug)]
pub struct StoreMetrics {
    latency: Family<Labels<&'static str>, Histogram, fn() -> Histogram>,
    errors: Family<Labels<&'static str, 2>, Counter>,
    clock_ahead: Gauge<f64, AtomicU64>,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        let buckets: fn() -> Histogram = || Histogram::new(exponential_buckets(0.000_1, 4.0, 8));
        Self {
            latency: Family::new_with_constructor(buckets),
            errors: Family::default(),
            clock_ahead: Gauge::default(),
        }
    }
}

impl StoreMetrics {
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("store");
        registry.register_with_unit("latency", "Time of calls to the store", Unit::Seconds, self.latency.clone());
        registry.register("errors", "Calls that the store did not answer", self.errors.clone());
        registry.register_with_unit(
            "clock_ahead",
            "By how much the clock here is ahead of the shared store's",
            Unit::Seconds,
            self.clock_ahead.clone(),
        );
    }

    pub fn clock_ahead(&self, seconds: f64) {
        self.clock_ahead.set(seconds);
    }
}

/// A store whose calls are counted.
#[derive(Debug)]
pub struct Metered<B> {
    inner: B,
    metrics: StoreMetrics,
}

impl<B: Backend> Metered<B> {
    pub fn new(inner: B, metrics: StoreMetrics) -> Self {
        Self { inner, metrics }
    }

    fn measure<'a, T>(&'a self, operation: &'static str, call: StoreFuture<'a, T>) -> StoreFuture<'a, T>
    where
        T: Send + 'a,
    {
        Box::pin(async move {
            let start = Instant::now();
            let answer = call.await;
            self.metrics.latency.get_or_create(&[("operation", operation)]).observe(start.elapsed().as_secs_f64());
            if let Err(error) = &answer {
                let kind = match error {
                    StoreError::Unavailable(_) => "unavailable",
                    StoreError::Timeout => "timeout",
                    StoreError::Full(_) => "full",
                    StoreError::Corrupt(_) => "corrupt",
                };
                self.metrics.errors.get_or_create(&[("operation", operation), ("kind", kind)]).inc();
            }
            answer
        })
    }
}

impl<B: Backend> Backend for Metered<B> {
    fn get<'a>(&'a self, table: Table, key: &'a [u8], now: Timestamp) -> StoreFuture<'a, Option<Stored>> {
        self.measure("get", self.inner.get(table, key, now))
    }

    fn get_all(&self, table: Table, keys: Vec<Vec<u8>>, now: Timestamp) -> StoreFuture<'_, Vec<Option<Stored>>> {
        self.measure("get", self.inner.get_all(table, keys, now))
    }

    fn put_all(&self, puts: Vec<Put>, now: Timestamp) -> StoreFuture<'_, WrittenAll> {
        self.measure("put", self.inner.put_all(puts, now))
    }

    fn delete<'a>(&'a self, table: Table, key: &'a [u8]) -> StoreFuture<'a, bool> {
        self.measure("delete", self.inner.delete(table, key))
    }

    fn changes<'a>(&'a self, table: Table, after: u64, limit: usize, now: Timestamp) -> StoreFuture<'a, Vec<Change>> {
        self.measure("changes", self.inner.changes(table, after, limit, now))
    }

    fn was_set_back(&self, table: Table, after: u64) -> StoreFuture<'_, bool> {
        self.measure("was_set_back", self.inner.was_set_back(table, after))
    }

    fn replicated(&self, keys: Vec<Vec<u8>>) -> StoreFuture<'_, ()> {
        self.measure("replicate", self.inner.replicated(keys))
    }

    fn seconds_ahead<'a>(&'a self, clock: &'a Clock) -> StoreFuture<'a, f64> {
        self.measure("clock", self.inner.seconds_ahead(clock))
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn ping(&self) -> StoreFuture<'_, ()> {
        self.measure("ping", self.inner.ping())
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        self.inner.close()
    }
}
