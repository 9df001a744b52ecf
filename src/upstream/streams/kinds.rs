//! What streams are, why they end, and how they are counted.

use std::fmt;

use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};

use crate::admin::metrics::Labels;

/// What a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamKind {
    Watch,
    Log,
    Download,
    WebSocket,
    Spdy,
    /// What a client sends, for as long as it likes.
    Upload,
    /// An answer without a length: mostly over at once, but it may be a gRPC stream or lines of JSON without end.
    Unsized,
}

impl StreamKind {
    /// The label, snake case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Watch => "watch",
            Self::Log => "log",
            Self::Download => "download",
            Self::WebSocket => "websocket",
            Self::Spdy => "spdy",
            Self::Upload => "upload",
            Self::Unsized => "unsized",
        }
    }
}

/// Why a stream was ended by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CutReason {
    /// Its credential or its session is over.
    Expired,
    /// The time that its route allows is over, and its credential is good still.
    Overlong,
    SignedOut,
    Revoked,
    /// The policy no longer allows what was asked.
    PermissionLost,
    /// Doorward stops.
    Draining,
    /// Nothing moved for too long.
    Idle,
}

impl CutReason {
    /// The label, snake case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            // What sets it, and no word about a credential: who hears it over a WebSocket comes again with the same one.
            Self::Overlong => "max_stream",
            Self::SignedOut => "signed_out",
            Self::Revoked => "revoked",
            Self::PermissionLost => "permission_lost",
            Self::Draining => "draining",
            Self::Idle => "idle",
        }
    }
}

impl fmt::Display for CutReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Streams by kind, and those that we ended by why.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    open: Family<Labels<&'static str>, Gauge>,
    closed: Family<Labels<&'static str, 2>, Counter>,
}

impl Metrics {
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        registry.register("streams_open", "Streams, and uploads and answers that may last", self.open.clone());
        registry.register("streams_cut", "Streams that Doorward ended", self.closed.clone());
    }

    pub(super) fn began(&self, kind: StreamKind) {
        self.open.get_or_create(&[("kind", kind.as_str())]).inc();
    }

    pub(super) fn ended(&self, kind: StreamKind) {
        self.open.get_or_create(&[("kind", kind.as_str())]).dec();
    }

    pub(super) fn cut(&self, kind: StreamKind, reason: CutReason) {
        self.closed.get_or_create(&[("kind", kind.as_str()), ("reason", reason.as_str())]).inc();
    }
}
