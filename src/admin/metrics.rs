//! Metrics of requests and of configurations.
//!
//! The handles of a route are created with its generation. A request then costs one atomic addition to a counter, one
//! to a bucket and one for the time: no label is hashed and no lock is taken.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric, counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use crate::{authn::Scheme, clock::Timestamp, error::Reason};

/// How a request ended, as far as Doorward determines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was forwarded, and a response head arrived.
    Forwarded,
    /// Doorward answered it itself, as intended.
    Answered,
    /// Its client disconnected before a response.
    Abandoned,
    /// It was refused, or failed.
    Refused(Reason),
}

impl Outcome {
    /// Returns the label `outcome`, which says who has to act; `reason` has the details.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Answered => "answered",
            Self::Abandoned => "abandoned",
            Self::Refused(reason) => match reason.status() {
                StatusCode::UNAUTHORIZED => "unauthenticated",
                StatusCode::FORBIDDEN => "denied",
                status if status.is_success() => "duplicate",
                status if status.is_server_error() => "failed",
                _ => "rejected",
            },
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Forwarded | Self::Answered | Self::Abandoned => "",
            Self::Refused(reason) => reason.as_str(),
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Forwarded => 0,
            Self::Answered => 1,
            Self::Abandoned => 2,
            Self::Refused(reason) => 3 + reason as usize,
        }
    }
}

/// `Internal` is the last variant of [`Reason`].
const OUTCOMES: usize = Outcome::Refused(Reason::Internal).index() + 1;

/// Returns the label `scheme`; it is `none` for requests that are refused before it is known.
const fn scheme_name(scheme: Option<Scheme>) -> &'static str {
    match scheme {
        None => "none",
        Some(Scheme::Session) => "session",
        Some(Scheme::Bearer) => "bearer",
        Some(Scheme::Webhook) => "webhook",
        Some(Scheme::BreakGlass) => "break_glass",
        Some(Scheme::Anonymous) => "anonymous",
    }
}

const fn scheme_index(scheme: Option<Scheme>) -> usize {
    match scheme {
        None => 0,
        Some(scheme) => 1 + scheme as usize,
    }
}

/// `Anonymous` is the last variant of [`Scheme`].
const SCHEMES: usize = scheme_index(Some(Scheme::Anonymous)) + 1;

/// The labels of a metric whose values have one type: names and values.
pub type Labels<V, const N: usize = 1> = [(&'static str, V); N];

/// Metrics of requests and configurations. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct RequestMetrics {
    requests: Family<RequestLabels, Counter>,
    seconds: Family<Labels<Arc<str>>, Latency>,
    in_flight: Gauge,
    generation: Gauge,
    reloads: Family<Labels<&'static str>, Counter>,
    last_reload: Gauge,
    refused: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: Arc<str>,
    scheme: &'static str,
    outcome: &'static str,
    reason: &'static str,
}

impl RequestMetrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register("requests", "Requests by route, scheme, outcome and reason", self.requests.clone());
        registry.register_with_unit(
            "request_duration",
            "Time from a request head to its response head, or until the client disconnected",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register("requests_in_flight", "Requests that have not ended yet", self.in_flight.clone());
        registry.register("config_generation", "The generation in use", self.generation.clone());
        registry.register("config_reloads", "Reloads by outcome", self.reloads.clone());
        registry.register(
            "config_refused",
            "1 while the configuration that was read last is refused and an older one is in use",
            self.refused.clone(),
        );
        registry.register_with_unit(
            "config_last_reload_timestamp",
            "When the configuration in use was loaded, Unix time",
            Unit::Seconds,
            self.last_reload.clone(),
        );
    }

    /// Returns the handles of a route, created once per generation. Requests that match no route have a name such as
    /// `-`.
    pub fn route(&self, name: &Arc<str>) -> RouteMetrics {
        RouteMetrics {
            seconds: self.seconds.get_or_create_owned(&[("route", Arc::clone(name))]),
            name: Arc::clone(name),
            requests: self.requests.clone(),
            counters: std::array::from_fn(|_| std::array::from_fn(|_| OnceLock::new())),
        }
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn begin(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// Counts a configuration that was loaded.
    pub fn reload_applied(&self, generation: u64, now: Timestamp) {
        self.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.last_reload.set(now.as_secs());
        self.reloads.get_or_create(&[("outcome", "applied")]).inc();
        self.refused.set(0);
    }

    /// Counts a configuration that was refused while the old one stays in force.
    pub fn reload_refused(&self) {
        self.reloads.get_or_create(&[("outcome", "refused")]).inc();
        self.refused.set(1);
    }
}

/// A request in flight.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The metric handles of one route.
pub struct RouteMetrics {
    name: Arc<str>,
    requests: Family<RequestLabels, Counter>,
    seconds: Latency,
    /// Counters are created when they are first needed, so that combinations that never occur are not exported.
    counters: [[OnceLock<Counter>; OUTCOMES]; SCHEMES],
}

impl RouteMetrics {
    /// Counts a request that has ended. `elapsed` is the time until its response head.
    pub fn record(&self, scheme: Option<Scheme>, outcome: Outcome, elapsed: Duration) {
        self.seconds.observe(elapsed);
        let slot = self.counters.get(scheme_index(scheme)).and_then(|outcomes| outcomes.get(outcome.index()));
        match slot {
            Some(slot) => slot.get_or_init(|| self.counter(scheme, outcome)).inc(),
            None => self.counter(scheme, outcome).inc(),
        };
    }

    fn counter(&self, scheme: Option<Scheme>, outcome: Outcome) -> Counter {
        self.requests.get_or_create_owned(&RequestLabels {
            route: Arc::clone(&self.name),
            scheme: scheme_name(scheme),
            outcome: outcome.as_str(),
            reason: outcome.reason(),
        })
    }
}

impl fmt::Debug for RouteMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RouteMetrics").field(&self.name).finish()
    }
}

/// The upper bounds of the buckets in microseconds, from the latency that a proxy adds to the time that people wait.
const BOUNDS: [u64; 14] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 10_000_000,
];

/// A lock-free histogram of durations; the one of `prometheus-client` takes a lock for each value.
#[derive(Clone, Debug, Default)]
pub struct Latency(Arc<LatencyCells>);

#[derive(Debug, Default)]
struct LatencyCells {
    micros: AtomicU64,
    /// One more than the bounds, for values above them.
    buckets: [AtomicU64; BOUNDS.len() + 1],
}

impl Latency {
    pub fn observe(&self, elapsed: Duration) {
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let index = BOUNDS.partition_point(|bound| *bound < micros);
        if let Some(bucket) = self.0.buckets.get(index) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.0.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

impl TypedMetric for Latency {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS.iter().map(|bound| Duration::from_micros(*bound).as_secs_f64()).chain([f64::INFINITY]);
        let counts = self.0.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        let buckets: Vec<_> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_micros(self.0.micros.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &RequestMetrics) -> String {
        let mut registry = Registry::with_prefix("doorward");
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn requests_are_counted_by_route_scheme_outcome_and_reason() {
        let metrics = RequestMetrics::default();
        let route = metrics.route(&"hooks".into());
        // A second generation counts into the same series.
        let next = metrics.route(&"hooks".into());
        let bearer = Some(Scheme::Bearer);
        route.record(bearer, Outcome::Forwarded, Duration::from_micros(400));
        next.record(bearer, Outcome::Forwarded, Duration::from_secs(60));
        next.record(None, Outcome::Refused(Reason::Internal), Duration::ZERO);
        let text = text(&metrics);
        for line in [
            r#"doorward_requests_total{route="hooks",scheme="bearer",outcome="forwarded",reason=""} 2"#,
            r#"doorward_requests_total{route="hooks",scheme="none",outcome="failed",reason="internal"} 1"#,
            r#"doorward_request_duration_seconds_bucket{le="0.0005",route="hooks"} 2"#,
            r#"doorward_request_duration_seconds_bucket{le="10.0",route="hooks"} 2"#,
            r#"doorward_request_duration_seconds_bucket{le="+Inf",route="hooks"} 3"#,
            r#"doorward_request_duration_seconds_count{route="hooks"} 3"#,
            r#"doorward_request_duration_seconds_sum{route="hooks"} 60.0004"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn each_scheme_has_its_name() {
        for scheme in [Scheme::Session, Scheme::Bearer, Scheme::Webhook, Scheme::BreakGlass, Scheme::Anonymous] {
            assert_eq!(serde_json::to_value(scheme).unwrap(), scheme_name(Some(scheme)));
        }
    }

    #[test]
    fn outcomes_distinguish_denied_rejected_failed_and_duplicate_requests() {
        assert_eq!(Outcome::Abandoned.as_str(), "abandoned");
        for (reason, outcome) in [
            (Reason::TokenExpired, "unauthenticated"),
            (Reason::NoRuleMatched, "denied"),
            (Reason::BadRequest, "rejected"),
            (Reason::UpstreamTimeout, "failed"),
            (Reason::ReplayedDelivery, "duplicate"),
        ] {
            assert_eq!(Outcome::Refused(reason).as_str(), outcome);
        }
    }

    #[test]
    fn requests_in_flight_end_with_their_guard() {
        let metrics = RequestMetrics::default();
        let guard = metrics.begin();
        assert!(text(&metrics).contains("doorward_requests_in_flight 1"));
        drop(guard);
        assert!(text(&metrics).contains("doorward_requests_in_flight 0"));
    }

    #[test]
    fn reloads_are_counted() {
        let metrics = RequestMetrics::default();
        metrics.reload_applied(7, Timestamp::from_secs(1_700_000_000));
        assert!(text(&metrics).contains("doorward_config_refused 0"));
        metrics.reload_refused();
        assert!(text(&metrics).contains("doorward_config_refused 1"), "for as long as it stays so");
        let text = text(&metrics);
        assert!(text.contains("doorward_config_generation 7"), "{text}");
        assert!(text.contains(r#"doorward_config_reloads_total{outcome="refused"} 1"#), "{text}");
        assert!(text.contains(r#"doorward_config_reloads_total{outcome="applied"} 1"#), "{text}");
        assert!(text.contains("doorward_config_last_reload_timestamp_seconds 1700000000"), "{text}");
    }
}
