//! Why a request cannot be recorded, and the refusal that its caller gets.

use crate::error::{Reason, Rejection};

/// The trail cannot take a record, so the request must not happen.
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
        "the audit trail is closed: Doorward is shutting down, or the trail's thread has failed and needs a restart"
    )]
    Closed,
}

impl AuditUnavailable {
    /// Returns its label in metrics.
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
            "the request cannot be recorded in the audit trail at the moment, so it was not executed",
        )
        .fix(
            "try again; if this persists, an operator should check the disk of the audit trail, which may be full or slow, and \
             its receivers",
        )
        .because(error)
    }
}
