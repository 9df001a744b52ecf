//! Why a record cannot be had, and what whoever asked is told.

use crate::error::{Reason, Rejection};

/// The trail takes no record, so what was to be recorded must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditUnavailable {
    #[error("the audit trail is behind: its queue is full")]
    Full,
    #[error("the audit trail cannot be written")]
    Failing,
    #[error("the audit trail did not confirm the record in time")]
    Slow,
    #[error("a receiver of the audit trail is further behind than `max_behind` allows")]
    Behind,
    #[error(
        "the audit trail is closed: Doorward stops, or the thread of the trail ended by a fault and takes a restart"
    )]
    Closed,
}

impl AuditUnavailable {
    /// In metrics.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Failing => "failing",
            Self::Slow => "slow",
            Self::Behind => "behind",
            Self::Closed => "closed",
        }
    }
}

impl From<AuditUnavailable> for Rejection {
    fn from(error: AuditUnavailable) -> Self {
        Self::new(
            Reason::AuditUnavailable,
            "the request cannot be recorded in the audit trail at the moment, so it was not done",
        )
        .fix("try again; if it lasts, an operator should look at the audit sink, whose disk may be full or slow, or a receiver of it away")
        .because(error)
    }
}
