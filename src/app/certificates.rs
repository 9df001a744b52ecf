//! Until when the certificates are valid that the configuration names: authorities of servers, and what Doorward shows as a client. Listeners
//! tell that of their own.

use std::{collections::BTreeMap, path::Path};

use prometheus_client::{
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{admin::metrics::Labels, audit::ends_of_certificates, config::raw::Root};

/// When certificates end. Clones tell the same.
#[derive(Clone, Debug, Default)]
pub(super) struct CertificateMetrics(Family<Labels<String>, Gauge>);

impl CertificateMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "certificate_file_not_after_timestamp_seconds",
            "When a certificate ends that the configuration names, but for those of listeners, in seconds since 1970",
            self.0.clone(),
        );
    }

    /// Tells of a configuration whose paths begin in `folder`, and of no other. Reads files.
    pub(super) fn follow(&self, root: &Root, folder: &Path) {
        let mut first = BTreeMap::new();
        for (place, ends) in ends_of_certificates(root, folder) {
            // A kubeconfig is the place of several.
            first.entry(place).and_modify(|first: &mut i64| *first = ends.min(*first)).or_insert(ends);
        }
        self.0.clear();
        for (place, ends) in first {
            self.0.get_or_create(&[("place", place)]).set(ends);
        }
    }
}
