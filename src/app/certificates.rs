//! Until when the certificates are valid that the configuration names: authorities of servers, and what Doorward shows as a client. Listeners
//! tell that of their own.

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

/// When certificates end. Clones tell the same.
#[derive(Clone, Debug, Default)]
pub(super) struct CertificateMetrics(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    ends: Family<Labels<String>, Gauge>,
    turns: AtomicU64,
    told: Mutex<Told>,
}

/// What is told, and by whose turn.
#[derive(Debug, Default)]
struct Told {
    turn: u64,
    ends: BTreeMap<String, i64>,
}

impl CertificateMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "certificate_file_not_after_timestamp_seconds",
            "When a certificate ends that the configuration names, but for those of listeners, in seconds since 1970",
            self.0.ends.clone(),
        );
    }

    /// The turn of a configuration that comes into force: files of one before it may be read for longer.
    pub(super) fn turn(&self) -> u64 {
        self.0.turns.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Tells of a configuration whose paths begin in `folder`, and of no other, unless a later one had its turn. Reads files.
    pub(super) fn follow(&self, turn: u64, root: &Root, folder: &Path) {
        let mut first = BTreeMap::new();
        for (place, ends) in ends_of_certificates(root, folder) {
            // A kubeconfig is the place of several.
            first.entry(place).and_modify(|first: &mut i64| *first = ends.min(*first)).or_insert(ends);
        }
        self.tell(turn, first);
    }

    /// What stays is there all the while: an alarm on it would end for a moment.
    fn tell(&self, turn: u64, ends: BTreeMap<String, i64>) {
        let mut told = lock(&self.0.told);
        if turn < told.turn {
            return;
        }
        for (place, at) in &ends {
            self.0.ends.get_or_create(&[("place", place.clone())]).set(*at);
        }
        for gone in told.ends.keys().filter(|place| !ends.contains_key(*place)) {
            self.0.ends.remove(&[("place", gone.clone())]);
        }
        *told = Told { turn, ends };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of the one before were still read, and what it named was told until the next reload.
    #[test]
    fn a_configuration_whose_files_are_read_last_does_not_take_the_place_of_a_later_one() {
        let metrics = CertificateMetrics::default();
        let told = |place: &str| metrics.0.ends.get(&[("place", place.to_owned())]).map(|ends| ends.get());
        let of = |places: &[(&str, i64)]| places.iter().map(|(place, ends)| ((*place).to_owned(), *ends)).collect();
        let (first, second, third) = (metrics.turn(), metrics.turn(), metrics.turn());
        metrics.tell(first, of(&[("a", 1), ("b", 1)]));
        metrics.tell(third, of(&[("b", 3), ("c", 3)]));
        metrics.tell(second, of(&[("a", 2), ("b", 2)]));
        assert_eq!((told("a"), told("b"), told("c")), (None, Some(3), Some(3)));
    }
}
