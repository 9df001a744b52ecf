//! The expiry of the certificates that the configuration names: certificate authorities of servers, and Doorward's
//! client certificates. Listeners report their own certificates.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::{
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{admin::metrics::Labels, audit::ends_of_certificates, config::raw::Root, lock::lock};

/// Metrics of the expiry of certificates. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct CertificateMetrics(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    ends: Family<Labels<String>, Gauge>,
    turns: AtomicU64,
    published: Mutex<Published>,
}

/// The metrics that are reported, and the turn that set them.
#[derive(Debug, Default)]
struct Published {
    turn: u64,
    ends: BTreeMap<String, i64>,
}

impl CertificateMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "certificate_file_not_after_timestamp_seconds",
            "When a certificate that the configuration names expires, except those of listeners, in seconds since 1970",
            self.0.ends.clone(),
        );
    }

    /// Returns the turn of a configuration that takes effect. Files of an earlier one may take longer to read.
    pub(super) fn turn(&self) -> u64 {
        self.0.turns.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Reports the certificates of a configuration with paths relative to `folder`, unless a later turn already did.
    /// Reads files.
    pub(super) fn follow(&self, turn: u64, root: &Root, folder: &Path) {
        let mut first = BTreeMap::new();
        for (place, ends) in ends_of_certificates(root, folder) {
            // A kubeconfig can hold several.
            first.entry(place).and_modify(|first: &mut i64| *first = ends.min(*first)).or_insert(ends);
        }
        self.publish(turn, first);
    }

    /// Updates the metrics. Series that stay are never removed in between, as an alert on them would end for a moment.
    fn publish(&self, turn: u64, ends: BTreeMap<String, i64>) {
        let mut published = lock(&self.0.published);
        if turn < published.turn {
            return;
        }
        for (place, at) in &ends {
            self.0.ends.get_or_create(&[("place", place.clone())]).set(*at);
        }
        for gone in published.ends.keys().filter(|place| !ends.contains_key(*place)) {
            self.0.ends.remove(&[("place", gone.clone())]);
        }
        *published = Published { turn, ends };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files of an earlier configuration were still being read, and its certificates were reported until the next
    /// reload.
    #[test]
    fn a_configuration_whose_files_are_read_late_does_not_replace_a_later_one() {
        let metrics = CertificateMetrics::default();
        let published = |place: &str| metrics.0.ends.get(&[("place", place.to_owned())]).map(|ends| ends.get());
        let of = |places: &[(&str, i64)]| places.iter().map(|(place, ends)| ((*place).to_owned(), *ends)).collect();
        let (first, second, third) = (metrics.turn(), metrics.turn(), metrics.turn());
        metrics.publish(first, of(&[("a", 1), ("b", 1)]));
        metrics.publish(third, of(&[("b", 3), ("c", 3)]));
        metrics.publish(second, of(&[("a", 2), ("b", 2)]));
        assert_eq!((published("a"), published("b"), published("c")), (None, Some(3), Some(3)));
    }
}
