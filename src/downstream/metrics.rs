//! The metrics of the listeners.

use std::fmt::{self, Write};

use prometheus_client::{
    encoding::{EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::admin::metrics::Labels;

/// The values of these enums as labels: the names of their variants in snake case, as all labels of Doorward are.
macro_rules! snake_case_labels {
    ($($label:ty),+) => {$(
        impl EncodeLabelValue for $label {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                snake_case(&format!("{self:?}"), encoder)
            }
        }
    )+};
}

snake_case_labels!(Refused, TlsFailure, ProtocolError, Expired);

fn snake_case(name: &str, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
    name.char_indices().try_for_each(|(index, letter)| {
        if index > 0 && letter.is_ascii_uppercase() {
            encoder.write_char('_')?;
        }
        encoder.write_char(letter.to_ascii_lowercase())
    })
}

/// Counters of all listeners.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) active: Gauge,
    accepted: Family<Labels<String>, Counter>,
    certificate_ends: Family<Labels<String>, Gauge>,
    served: Family<Labels<&'static str>, Counter>,
    refused: Family<Labels<Refused>, Counter>,
    tls_failures: Family<Labels<TlsFailure>, Counter>,
    protocol_errors: Family<Labels<ProtocolError>, Counter>,
    expired: Family<Labels<Expired>, Counter>,
    pub(super) accept_errors: Counter,
    pub(super) panics: Counter,
}

/// The enum with the list of its variants, so that none can be missing where the documentation is checked.
macro_rules! refusals {
    ($($(#[$doc:meta])* $refused:ident,)+) => {
        /// Why a connection was closed before it spoke HTTP.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(super) enum Refused {
            $($(#[$doc])* $refused,)+
        }

        #[cfg(test)]
        impl Refused {
            const ALL: &[Self] = &[$(Self::$refused,)+];
        }
    };
}

refusals! {
    /// Memory is short, or the client takes more of it than it may, also when it speaks HTTP already.
    Memory,
    /// `connections`.
    Total,
    /// `connections_per_address`.
    Address,
    /// An address whose connections were closed for floods repeatedly.
    Flood,
    /// A listed peer without a PROXY protocol header, or with an invalid one.
    ProxyHeader,
    /// A PROXY protocol header from a peer that is not listed.
    ProxyPeer,
    /// Nothing arrived in time.
    Silent,
}

/// Why a TLS handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum TlsFailure {
    Timeout,
    /// The peer disconnected.
    Closed,
    /// The client's certificate was not accepted.
    Certificate,
    /// Anything else that was wrong with the handshake.
    Protocol,
}

/// What was wrong with the bytes of a connection, or with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ProtocolError {
    /// The head could not be parsed: 400.
    Parse,
    /// The head is larger than hyper reads, or has more headers: 431.
    HeadTooLarge,
    /// The connection ended within a request.
    Incomplete,
    /// Request framing that two parsers could read differently: 400.
    Framing,
    /// A limit on the target or the headers: 414, 431.
    Limit,
    /// The rules of HTTP/2 were broken.
    Http2,
    /// Streams reset faster than they could be answered, or a head without end.
    Flood,
    /// Reading or writing failed.
    Io,
}

/// Which deadline closed a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Expired {
    /// The head of a request did not arrive in time.
    Head,
    /// No request arrived.
    Idle,
    /// The client did not take the response.
    Stalled,
}

impl Metrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "certificate_not_after_timestamp_seconds",
            "When the first certificate that a listener uses expires, in seconds since 1970",
            self.certificate_ends.clone(),
        );
        let registry = registry.sub_registry_with_prefix("downstream");
        registry.register("connections", "Connections that are open", self.active.clone());
        registry.register("connections_accepted", "Connections accepted", self.accepted.clone());
        registry.register("connections_served", "Connections that reached HTTP", self.served.clone());
        registry.register("connections_refused", "Connections closed before HTTP", self.refused.clone());
        registry.register("tls_handshake_failures", "TLS handshakes that failed", self.tls_failures.clone());
        registry.register(
            "protocol_errors",
            "Errors in the protocol of connections and requests",
            self.protocol_errors.clone(),
        );
        registry.register("connections_expired", "Connections closed by a deadline", self.expired.clone());
        registry.register(
            "accept_errors",
            "Failures to accept a connection, except those that the peer aborted",
            self.accept_errors.clone(),
        );
        registry.register("panics", "Connections that ended in a panic", self.panics.clone());
    }

    pub(super) fn accepted(&self, listener: &str) -> Counter {
        self.accepted.get_or_create(&of(listener)).clone()
    }

    pub(super) fn certificate_ends(&self, listener: &str) -> Gauge {
        self.certificate_ends.get_or_create(&of(listener)).clone()
    }

    pub(super) fn served(&self, protocol: &'static str) {
        self.served.get_or_create(&[("protocol", protocol)]).inc();
    }

    pub(super) fn refused(&self, reason: Refused) {
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }

    pub(super) fn tls_failed(&self, reason: TlsFailure) {
        self.tls_failures.get_or_create(&[("reason", reason)]).inc();
    }

    pub(super) fn protocol_error(&self, kind: ProtocolError) {
        self.protocol_errors.get_or_create(&[("kind", kind)]).inc();
    }

    pub(super) fn expired(&self, phase: Expired) {
        self.expired.get_or_create(&[("phase", phase)]).inc();
    }
}

fn of(listener: &str) -> Labels<String> {
    [("listener", listener.to_owned())]
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    /// Somebody with all alarms noticed nothing while each new connection was closed because there were as many as
    /// allowed.
    #[test]
    fn the_monitoring_guide_names_each_reason_for_refused_connections() {
        let (metrics, mut registry) = (Metrics::default(), Registry::default());
        metrics.register(&mut registry);
        for reason in Refused::ALL {
            metrics.refused(*reason);
        }
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let counted = text.split("downstream_connections_refused_total{reason=\"").skip(1);
        let reasons: Vec<&str> = counted.map(|rest| rest.split('"').next().unwrap()).collect();
        assert_eq!(reasons.len(), Refused::ALL.len(), "{text}");
        let page = include_str!("../../docs/operations.md");
        let (_, section) = page.split_once("\n## What to watch\n").unwrap();
        let section = section.split("\n## ").next().unwrap();
        for reason in reasons {
            let told = [format!("`{reason}`"), format!("{{reason=\"{reason}\"}}")];
            assert!(told.iter().any(|told| section.contains(told)), "{reason}");
        }
    }
}
