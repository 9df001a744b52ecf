//! When the trail goes on in a new file, and when old files are removed.

use std::{io, sync::Arc};

use super::Writer;
use crate::{
    audit::{chain::MAX_LINE, export::End, note::Event},
    clock::Timestamp,
};

impl Writer {
    pub(super) fn rotate_if_full(&mut self) {
        if self.outage.is_some() || !self.sink.is_full(self.pending.len() + MAX_LINE / 8) {
            return;
        }
        self.rotate();
    }

    fn rotate(&mut self) {
        let now = self.clock.now();
        match self.flush().and_then(|()| self.sync()).and_then(|()| self.begin_file(now)) {
            Ok(previous) => self.event(&Event::File { previous }),
            Err(error) => return self.fail(&error),
        }
        self.retire();
    }

    /// Begins a new file after a sync. Those who read along hear of its number before it is there: where somebody moved or removed the
    /// old one, they would take its bytes for those of that.
    fn begin_file(&mut self, now: Timestamp) -> io::Result<Option<Arc<str>>> {
        let rotated = self.sink.rotate(now);
        self.shared.backlog.grown(End { place: self.sink.place(), total: self.written });
        rotated
    }

    /// Notes that a sync failed. Where it was for a file that somebody removed, those who read along hear of the number of the next one
    /// before that is there: they would take its bytes for those of the one that is gone.
    pub(super) fn doubt(&mut self) {
        self.in_doubt = true;
        let place = self.sink.place();
        if place.offset == 0 {
            let unsynced = i64::try_from(self.unsynced.len()).unwrap_or(i64::MAX);
            self.shared.backlog.grown(End { place, total: self.written - unsynced });
        }
    }

    /// Does what time asks of the files.
    pub(super) fn tidy(&mut self, now: Timestamp) {
        if self.sink.is_old(now) {
            self.rotate();
        } else {
            self.retire();
        }
    }

    /// Removes files that are not to be kept any more, once the trail tells of it for good.
    fn retire(&mut self) {
        let surplus = match self.sink.surplus(self.clock.now()) {
            Ok(Some(surplus)) => surplus,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "old files of the audit trail stay: what they hold cannot be told; move such a file away");
                return;
            }
        };
        self.event(&Event::Cut { files: surplus.files(), from: surplus.from, last: surplus.last });
        match self.flush().and_then(|()| self.sync()) {
            Ok(()) => {
                surplus.remove();
                self.shared.backlog.removed(surplus.from, surplus.last.seq);
            }
            Err(error) => self.fail(&error),
        }
    }
}
