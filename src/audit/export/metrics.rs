//! The metrics of exports.

use std::sync::Arc;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use crate::admin::metrics::Labels;

/// Counters and gauges of all exports, by the name of the export.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    lines: Family<Labels<Arc<str>>, Counter>,
    behind: Family<Labels<Arc<str>>, Gauge>,
    failures: Family<Failure, Counter>,
    lost: Family<Labels<Arc<str>>, Counter>,
    rejected: Family<Labels<Arc<str>>, Counter>,
    last_success: Family<Labels<Arc<str>>, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    export: Arc<str>,
    cause: &'static str,
}

impl Metrics {
    pub fn register(&self, registry: &mut Registry) {
        let export = registry.sub_registry_with_prefix("export");
        export.register("lines", "Lines of the trail that were sent, including those sent again", self.lines.clone());
        export.register_with_unit(
            "behind",
            "Amount of the trail that the receiver does not have",
            Unit::Bytes,
            self.behind.clone(),
        );
        export.register("failures", "Failures to send, by cause", self.failures.clone());
        export.register("lost", "Lines that were deleted before the receiver had them", self.lost.clone());
        export.register("rejected", "Lines that the receiver accepted and discarded", self.rejected.clone());
        export.register_with_unit(
            "last_success_timestamp",
            "Unix time when the receiver last accepted lines",
            Unit::Seconds,
            self.last_success.clone(),
        );
    }

    /// The metrics of one export.
    pub(super) fn of(&self, export: &Arc<str>) -> ExportMetrics {
        let name = [("export", Arc::clone(export))];
        ExportMetrics {
            lines: self.lines.get_or_create_owned(&name),
            behind: self.behind.get_or_create_owned(&name),
            lost: self.lost.get_or_create_owned(&name),
            rejected: self.rejected.get_or_create_owned(&name),
            last_success: self.last_success.get_or_create_owned(&name),
            failures: self.failures.clone(),
            export: Arc::clone(export),
        }
    }
}

/// Counters and gauges of one export.
#[derive(Clone, Debug)]
pub(super) struct ExportMetrics {
    pub(super) lines: Counter,
    /// Bytes.
    pub(super) behind: Gauge,
    pub(super) lost: Counter,
    pub(super) rejected: Counter,
    /// Unix time.
    pub(super) last_success: Gauge,
    failures: Family<Failure, Counter>,
    export: Arc<str>,
}

impl ExportMetrics {
    pub(super) fn failed(&self, cause: &'static str) {
        self.failures.get_or_create(&Failure { export: Arc::clone(&self.export), cause }).inc();
    }
}
