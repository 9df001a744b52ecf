//! Places in a sender's queue.

use std::{sync::Arc, time::Duration};

use super::{Held, Queue, Settings};
use crate::error::{Reason, Rejection};

/// When a sender whose queue is full may retry.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Counts and refuses a delivery for which its sender's queue has no place.
pub(super) fn full(queue: &Queue, webhook: &Arc<str>) -> Rejection {
    queue.metrics.queue_full(webhook);
    Rejection::new(Reason::Overloaded, "too many deliveries of this sender wait for their EventListener")
        .fix("send it again later")
        .with_retry_after(RETRY_AFTER)
}

/// A place in a sender's queue, given back when dropped.
pub(super) struct QueueSlot<'a> {
    queue: &'a Queue,
    webhook: Arc<str>,
    size: u64,
}

impl<'a> QueueSlot<'a> {
    /// Reserves a place; `None` if the queue is full.
    pub(super) fn take(queue: &'a Queue, held: &Held, settings: &Settings) -> Option<Self> {
        let (webhook, size) = (Arc::clone(&held.webhook), held.size);
        let has_room = queue.index().reserve(&webhook, size, settings);
        has_room.then(|| Self { queue, webhook, size })
    }
}

impl Drop for QueueSlot<'_> {
    fn drop(&mut self) {
        self.queue.index().release(&self.webhook, self.size);
    }
}
