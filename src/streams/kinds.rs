//! The kinds of streams, the reasons why they are cut, and their metrics.

use std::fmt;

use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};

use crate::admin::metrics::Labels;

/// The kind of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamKind {
    Watch,
    Log,
    Download,
    WebSocket,
    Spdy,
    /// A request body that may last.
    Upload,
    /// A response without a known length. Most end at once, but it may be a gRPC stream or endless lines of JSON.
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

/// Why Doorward ended a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CutReason {
    /// Its credential or session has ended.
    Expired,
    /// The time that its route allows has passed; its credential is still valid.
    Overlong,
    SignedOut,
    /// A later login has taken the place of its session.
    Replaced,
    Revoked,
    /// The policy no longer allows the request.
    PermissionLost,
    /// Doorward is shutting down.
    Draining,
    /// Nothing moved for too long.
    Idle,
}

impl CutReason {
    /// The label, snake case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            // Names the setting and not a credential: a WebSocket client that sees it may reconnect with the same
            // credential.
            Self::Overlong => "max_stream",
            Self::SignedOut => "signed_out",
            Self::Replaced => "replaced",
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

/// Open streams by kind, and cut streams by kind and reason.
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
