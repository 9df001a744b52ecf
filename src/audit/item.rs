//! What waits for the thread of the trail.

use tokio::sync::oneshot;

use super::{note::Note, record::Record, room::Held, unavailable::AuditUnavailable};

/// Who waits until a record is on stable storage.
pub(super) type Reply = oneshot::Sender<Result<(), AuditUnavailable>>;

/// What waits for the thread.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) entry: Entry,
    /// Bytes of memory that it takes, about.
    pub(super) weight: usize,
    /// The place that it holds.
    pub(super) held: Held,
    /// A request was let through as there was room for it, so that it must not be lost.
    pub(super) is_promised: bool,
    /// Whom to tell when it is on stable storage.
    pub(super) reply: Option<Reply>,
}

#[derive(Debug)]
pub(super) enum Entry {
    Record(Box<Record>),
    Note(Box<Note>),
}

impl Entry {
    /// Bytes of memory that it takes, about, as far as somebody outside decides how many.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Record(record) => record.weight(),
            Self::Note(_) => size_of::<Note>(),
        }
    }
}
