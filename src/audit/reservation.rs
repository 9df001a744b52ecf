//! The space that a request holds in the trail from before it is forwarded until its last record is written.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{
    item::{Entry, Reply},
    record::Record,
    room::Held,
    trail::Handle,
    unavailable::AuditUnavailable,
};

/// Space in the trail that a request holds. Unused space is returned on drop.
#[derive(Debug)]
pub struct Reservation {
    pub(super) handle: Arc<Handle>,
    pub(super) room: u32,
    /// Whether the request was let through under `when_full: refuse`, whatever later reloads say.
    pub(super) is_promised: bool,
    /// Whether it must not happen unrecorded, whatever `when_full` says.
    pub(super) is_strict: bool,
}

impl Reservation {
    /// Writes a record. Records beyond the reserved number are written as by [`Trail::write`](super::Trail::write).
    pub fn write(&mut self, record: impl Into<Box<Record>>) {
        self.push(record.into(), None);
    }

    /// Writes a record as [`Reservation::write`] does, and returns when it is on stable storage. The call itself queues
    /// the record, so dropping the future loses nothing. Under `when_full: continue` it waits but never fails, unless
    /// it was reserved strictly.
    pub fn write_durable<R: Into<Box<Record>>>(
        &mut self,
        record: R,
    ) -> impl Future<Output = Result<(), AuditUnavailable>> + Send + use<R> {
        let (reply, answer) = oneshot::channel();
        self.push(record.into(), Some(reply));
        let (handle, is_strict) = (Arc::clone(&self.handle), self.is_strict);
        async move {
            let written = handle.durable(answer).await;
            let written = if is_strict { written } else { handle.as_configured(written) };
            written.inspect_err(|why| handle.shared.metrics.refused(*why))
        }
    }

    /// Writes the record of what has happened already, and waits for stable storage as long as
    /// [`Reservation::write_durable`] does. If that fails, nobody is refused: the record stays queued, and is written
    /// when the sink takes it.
    pub fn write_last(&mut self, record: Box<Record>) -> impl Future<Output = ()> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        self.push(record, Some(reply));
        let handle = Arc::clone(&self.handle);
        async move {
            // The trail itself reports why.
            let _ = handle.durable(answer).await;
        }
    }

    /// Returns the result of a durable write whose caller stops waiting. A refusal is counted.
    pub fn out_of_time(&self) -> Result<(), AuditUnavailable> {
        let late = Err(AuditUnavailable::Slow);
        let written = if self.is_strict { late } else { self.handle.as_configured(late) };
        written.inspect_err(|why| self.handle.shared.metrics.refused(*why))
    }

    /// Whether so much space is taken that no request should hold any for long.
    pub fn is_crowded(&self) -> bool {
        self.handle.shared.room.is_crowded()
    }

    fn push(&mut self, record: Box<Record>, reply: Option<Reply>) {
        if self.room == 0 {
            return self.handle.push_after_the_fact(Entry::Record(record), reply);
        }
        self.room -= 1;
        self.handle.push(Entry::Record(record), reply, Held::reserved(1), self.is_promised);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.handle.shared.room.give_back(Held::reserved(self.room));
    }
}
