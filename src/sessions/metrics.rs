//! Session metrics: sessions in use, begun and ended, and why.

use std::{fmt, time::Duration};

use moka::sync::Cache;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelValue, EncodeMetric},
    metrics::{counter::Counter, family::Family, gauge::ConstGauge},
    registry::Registry,
};

use super::record::SessionHash;
use crate::admin::metrics::Labels;

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names of the label's values")]
pub enum Ended {
    /// The person signed out, here or on another host.
    signed_out,
    /// The same browser logged in again.
    replaced,
    /// The person had too many.
    surplus,
    /// An operator ended it, or its login code was used twice, so that its login may be somebody else's.
    revoked,
    /// The provider ended it: the grant is gone, or it logged the person out.
    provider,
    /// The program that it was approved for had stopped waiting.
    uncollected,
}

impl Ended {
    /// Its name in the audit trail and in the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::signed_out => "signed_out",
            Self::replaced => "replaced",
            Self::surplus => "surplus",
            Self::revoked => "revoked",
            Self::provider => "provider",
            Self::uncollected => "uncollected",
        }
    }
}

/// Sessions in use, created and ended.
#[derive(Clone, Debug)]
pub struct SessionMetrics {
    created: Counter,
    ended: Family<Labels<Ended>, Counter>,
    active: Cache<SessionHash, ()>,
}

impl Default for SessionMetrics {
    fn default() -> Self {
        let active = Cache::builder().max_capacity(100_000).time_to_live(Duration::from_secs(300)).build();
        Self { created: Counter::default(), ended: Family::default(), active }
    }
}

impl SessionMetrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(Active(self.active.clone())));
        let registry = registry.sub_registry_with_prefix("sessions");
        registry.register("created", "Browser sessions created", self.created.clone());
        registry.register("ended", "Browser sessions ended before their time", self.ended.clone());
    }

    pub(super) fn created(&self) {
        self.created.inc();
    }

    pub(super) fn ended(&self, hash: &SessionHash, reason: Ended) {
        self.active.invalidate(hash);
        self.ended.get_or_create(&[("reason", reason)]).inc();
    }

    pub(super) fn seen(&self, hash: SessionHash) {
        self.active.insert(hash, ());
    }
}

/// Counted on each scrape, as sessions become idle without any event.
struct Active(Cache<SessionHash, ()>);

impl Collector for Active {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.run_pending_tasks();
        let gauge = ConstGauge::new(i64::try_from(self.0.entry_count()).unwrap_or(i64::MAX));
        let help = "Browser sessions used here in the last five minutes";
        gauge.encode(encoder.encode_descriptor("sessions_active", help, None, gauge.metric_type())?)
    }
}

impl fmt::Debug for Active {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Active")
    }
}
