//! Items in the queue of the trail's thread.

use tokio::sync::oneshot;

use super::{note::Note, record::Record, room::Held, unavailable::AuditUnavailable};

/// Answers a caller that waits until a record is on stable storage.
pub(super) type Reply = oneshot::Sender<Result<(), AuditUnavailable>>;

/// A queued entry.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) entry: Entry,
    /// Bytes of memory that it takes, roughly.
    pub(super) weight: usize,
    /// The place that it holds.
    pub(super) held: Held,
    /// Whether a request was let through because there was space for this record, so that it must not be lost.
    pub(super) is_promised: bool,
    /// Answered when it is on stable storage.
    pub(super) reply: Option<Reply>,
}

#[derive(Debug)]
pub(super) enum Entry {
    Record(Box<Record>),
    Note(Box<Note>),
}

impl Entry {
    /// Returns roughly the memory that it takes, in bytes, as far as clients can influence it.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Record(record) => record.weight(),
            Self::Note(_) => size_of::<Note>(),
        }
    }
}
