//! Rotation to a new file, and removal of old files.

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

    /// Begins a new file after a sync. Exports learn its number before it exists: if somebody moved or removed the old
    /// file, they would take the new file's bytes for the old one's.
    fn begin_file(&mut self, now: Timestamp) -> io::Result<Option<Arc<str>>> {
        let rotated = self.sink.rotate(now);
        self.shared.backlog.grown(End { place: self.sink.place(), total: self.written });
        rotated
    }

    /// Marks a failed sync. If somebody removed the file, exports learn the number of the next file before it exists:
    /// they would take its bytes for those of the removed one.
    pub(super) fn doubt(&mut self) {
        self.in_doubt = true;
        let place = self.sink.place();
        if place.offset == 0 {
            let unsynced = i64::try_from(self.unsynced.len()).unwrap_or(i64::MAX);
            self.shared.backlog.grown(End { place, total: self.written - unsynced });
        }
    }

    /// Rotates or removes files that are due by age.
    pub(super) fn tidy(&mut self, now: Timestamp) {
        if self.sink.is_old(now) {
            self.rotate();
        } else {
            self.retire();
        }
    }

    /// Removes files beyond retention, once the line that says so is on stable storage.
    fn retire(&mut self) {
        let surplus = match self.sink.surplus(self.clock.now()) {
            Ok(Some(surplus)) => surplus,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(
                    %error,
                    "old files of the audit trail are not removed: one of them cannot be read; move that file away"
                );
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
