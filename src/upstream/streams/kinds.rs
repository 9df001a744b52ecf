//! What streams are, why they end, and how they are counted.

use std::fmt;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

/// What a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamKind {
    Watch,
    Log,
    Download,
    WebSocket,
    Spdy,
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
            Self::Unsized => "unsized",
        }
    }
}

/// Why a stream was ended by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CutReason {
    /// Its credential, its session or the time that its route allows is over.
    Expired,
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
    const ALL: [Self; 6] =
        [Self::Expired, Self::SignedOut, Self::Revoked, Self::PermissionLost, Self::Draining, Self::Idle];

    /// The label, snake case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::SignedOut => "signed_out",
            Self::Revoked => "revoked",
            Self::PermissionLost => "permission_lost",
            Self::Draining => "draining",
            Self::Idle => "idle",
        }
    }

    pub(super) const fn code(self) -> u8 {
        self as u8 + 1
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
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
    pub(super) open: Family<KindLabel, Gauge>,
    pub(super) closed: Family<CutLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KindLabel {
    pub kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CutLabel {
    pub kind: &'static str,
    pub reason: &'static str,
}

impl Metrics {
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        registry.register("streams_open", "Streams, and answers without a length, which may last", self.open.clone());
        registry.register("streams_cut", "Streams that Doorward ended", self.closed.clone());
    }
}
