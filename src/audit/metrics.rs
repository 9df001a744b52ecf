//! The metrics of the trail.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use tokio::time::Instant;

use super::{export, unavailable::AuditUnavailable};
use crate::admin::metrics::Labels;

/// Counters and gauges of the trail.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub written: Counter,
    pub lost: Counter,
    pub bytes: Counter,
    pub errors: Counter,
    pub checkpoint_copy_errors: Counter,
    /// Records that wait, and places that are reserved for more.
    pub queued: Gauge,
    /// Requests that waited for space.
    pub waits: Counter,
    pub wait_time: Counter<f64, AtomicU64>,
    pub(super) refusals: Family<Labels<&'static str>, Counter>,
    /// Unix time of the last checkpoint, or of the start if there is none yet. Alerts watch its age.
    pub last_checkpoint: Gauge,
    pub syncs: Counter,
    pub sync_time: Counter<f64, AtomicU64>,
    pub slow_commits: Counter,
    pub export: export::Metrics,
}

/// A wait for space. Its duration is counted on drop, so also if the request is cancelled.
#[derive(Debug)]
pub(super) struct Wait<'a> {
    time: &'a Counter<f64, AtomicU64>,
    begun: Instant,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.time.inc_by(self.begun.elapsed().as_secs_f64());
    }
}

impl Metrics {
    /// Counts a request that begins to wait for space.
    pub(super) fn begin_wait(&self) -> Wait<'_> {
        self.waits.inc();
        Wait { time: &self.wait_time, begun: Instant::now() }
    }

    /// Counts a request that is refused.
    pub(super) fn refused(&self, why: AuditUnavailable) {
        self.refusals(why).inc();
    }

    /// Returns the counter of requests that were refused for this reason.
    pub(super) fn refusals(&self, why: AuditUnavailable) -> Counter {
        self.refusals.get_or_create_owned(&[("reason", why.as_str())])
    }

    pub fn register(&self, registry: &mut Registry) {
        let audit = registry.sub_registry_with_prefix("audit");
        audit.register("records_written", "Lines formatted for the sink", self.written.clone());
        audit.register("records_lost", "Records that were lost", self.lost.clone());
        audit.register_with_unit("written", "Bytes written to the sink", Unit::Bytes, self.bytes.clone());
        audit.register("errors", "Writes and syncs of the sink that failed", self.errors.clone());
        audit.register(
            "checkpoint_copy_errors",
            "Checkpoints that could not be copied to `audit.checkpoint_copy`",
            self.checkpoint_copy_errors.clone(),
        );
        audit.register("queue", "Records that wait for the sink, and places reserved for more", self.queued.clone());
        audit.register("waits", "Requests that waited for space in the queue", self.waits.clone());
        audit.register_with_unit(
            "wait",
            "Time that requests waited for space in the queue",
            Unit::Seconds,
            self.wait_time.clone(),
        );
        audit.register("refusals", "Requests that could not be recorded, by reason", self.refusals.clone());
        audit.register_with_unit(
            "last_checkpoint_timestamp",
            "Unix time of the last checkpoint, or of the start if there is none yet",
            Unit::Seconds,
            self.last_checkpoint.clone(),
        );
        audit.register("syncs", "Syncs of the sink to stable storage", self.syncs.clone());
        audit.register_with_unit("sync", "Time that syncs took", Unit::Seconds, self.sync_time.clone());
        audit.register("slow_commits", "Commits for which the sink took 5 s or longer", self.slow_commits.clone());
        self.export.register(audit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_registered() {
        let metrics = Metrics::default();
        let mut registry = Registry::with_prefix("doorward");
        metrics.register(&mut registry);
        metrics.lost.inc();
        metrics.refused(AuditUnavailable::Full);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "doorward_audit_records_lost_total 1",
            "doorward_audit_records_written_total 0",
            "doorward_audit_written_bytes_total 0",
            "doorward_audit_last_checkpoint_timestamp_seconds 0",
            "doorward_audit_sync_seconds_total 0.0",
            "doorward_audit_waits_total 0",
            "doorward_audit_slow_commits_total 0",
            "doorward_audit_wait_seconds_total 0.0",
            "doorward_audit_refusals_total{reason=\"full\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
