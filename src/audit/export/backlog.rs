//! The state that the writer of the trail and its exports share: how long the trail is, up to where each receiver has
//! it, and what that means for requests and for old files.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::{
    super::chain::Link,
    Metrics, Settings,
    metrics::ExportMetrics,
    position::{self, Position},
    reader::{Cursor, End, Place, bytes_after, first_number, locate},
    settings::{Limit, Target},
};
use crate::{config::raw::WhenBehind, lock::lock};

/// All exports of a trail.
#[derive(Debug)]
pub(in crate::audit) struct Backlog {
    exports: Vec<Export>,
    common: Arc<Common>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Common {
    end: watch::Sender<End>,
    /// The number of exports that make requests be refused.
    late: AtomicUsize,
    trail: PathBuf,
    /// The name of this replica.
    instance: Arc<str>,
}

/// An export. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Export(Arc<Share>);

#[derive(Debug)]
struct Share {
    name: Arc<str>,
    target: ArcSwap<Target>,
    /// The file with the position.
    position: PathBuf,
    mark: Mutex<Mark>,
    metrics: ExportMetrics,
    common: Arc<Common>,
}

/// The progress of a receiver.
#[derive(Debug)]
struct Mark {
    limit: Limit,
    /// The length of the trail, as [`End::total`] counts.
    total: i64,
    /// How much of it was sent, counted in the same way.
    sent: i64,
    /// Where the lines that still exist begin, counted in the same way. Nobody is behind by those before.
    begins: i64,
    /// Up to where the receiver is known to have it.
    settled: Cursor,
    /// The number of the line before the first that the receiver should get.
    base: u64,
    /// The number of the last line that was read for sending or is counted as lost.
    accounted: u64,
    /// The number of the last line that was deleted.
    deleted: u64,
    /// Ranges (first and last) of lines after `settled` that are counted as lost.
    holes: Vec<(u64, u64)>,
    /// Whether it has ever been within its limit.
    caught_up: bool,
    /// Whether requests are refused because of it.
    late: bool,
}

impl Backlog {
    /// Creates a backlog without exports.
    pub(in crate::audit) fn none() -> Self {
        Self::new(Path::new(""), "", Place::default())
    }

    fn new(trail: &Path, instance: &str, end: Place) -> Self {
        let common = Common {
            end: watch::Sender::new(End { place: end, total: 0 }),
            late: AtomicUsize::new(0),
            trail: trail.to_owned(),
            instance: instance.into(),
        };
        Self { exports: Vec::new(), common: Arc::new(common), metrics: Metrics::default() }
    }

    /// Finds for each export the place where it continues. The whole trail up to `end` must be on stable storage.
    pub(in crate::audit) fn open(
        trail: &Path,
        settings: &[Settings],
        folder: &Path,
        instance: &str,
        end: Place,
    ) -> io::Result<Self> {
        let mut backlog = Self::new(trail, instance, end);
        for settings in settings {
            let path = position::file_of(folder, &settings.name);
            let kept = position::load(&path)?;
            let (settled, found) = locate(trail, kept.as_ref(), end)?;
            if kept.is_some() && !found {
                tracing::error!(
                    export = &*settings.name,
                    "the position of this export is not in the audit trail any more; the whole trail is sent"
                );
            }
            // Lines that were removed before the export began do not count as lost.
            let base =
                if settled.last == Link::NONE { first_number(trail)?.saturating_sub(1) } else { settled.last.seq };
            let mark = Mark {
                limit: settings.limit,
                total: 0,
                sent: settled.total,
                begins: i64::MIN,
                base,
                accounted: base,
                deleted: 0,
                holes: Vec::new(),
                caught_up: kept.is_some_and(|position| position.caught_up),
                settled,
                late: false,
            };
            let export = Export(Arc::new(Share {
                name: Arc::clone(&settings.name),
                target: ArcSwap::from_pointee(settings.target.clone()),
                position: path,
                mark: Mutex::new(mark),
                metrics: backlog.metrics.of(&settings.name),
                common: Arc::clone(&backlog.common),
            }));
            export.judge(|_| {});
            // After a restart it must be known that the limit applies, even if the receiver is never reached.
            export.save()?;
            backlog.exports.push(export);
        }
        Ok(backlog)
    }

    /// Returns the current end of the trail.
    #[cfg(test)]
    pub(in crate::audit) fn end_now(&self) -> End {
        *self.common.end.borrow()
    }

    pub(in crate::audit) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(in crate::audit) fn exports(&self) -> &[Export] {
        &self.exports
    }

    /// Whether requests are refused because a receiver is too far behind.
    pub(in crate::audit) fn refuses(&self) -> bool {
        self.common.late.load(Ordering::Relaxed) > 0
    }

    /// Returns why requests are refused, with the receivers; none if they are not.
    pub(in crate::audit) fn why(&self) -> Option<String> {
        let late = self.exports.iter().filter(|export| export.mark().late).map(|export| &*export.0.name);
        let late: Vec<&str> = late.collect();
        let names = late.join(", ");
        (!late.is_empty()).then(|| format!("the export is further behind than `max_behind` allows: {names}"))
    }

    /// Moves the end of the trail: everything up to this place is on stable storage.
    pub(in crate::audit) fn grown(&self, end: End) {
        for export in &self.exports {
            export.judge(|mark| mark.total = end.total);
        }
        self.common.end.send_replace(end);
    }

    /// Whether a full file must stay because an export that must not lose lines still needs it.
    pub(in crate::audit) fn holds(&self, file: u64) -> bool {
        self.exports.iter().any(|export| {
            let mark = export.mark();
            mark.limit.when_behind == WhenBehind::Refuse && mark.settled.place.file <= file
        })
    }

    /// Records that the lines with these numbers were deleted, and counts those that exports lose.
    pub(in crate::audit) fn removed(&self, from: u64, last: u64) {
        if self.exports.is_empty() {
            return;
        }
        let end = *self.common.end.borrow();
        // If the files cannot be listed, this is right again with the next lines that are sent.
        let begins = bytes_after(&self.common.trail, Place::default(), end.place).map(|left| end.total - left);
        let begins = begins.unwrap_or(i64::MIN);
        for export in &self.exports {
            export.judge(|mark| {
                mark.begins = mark.begins.max(begins);
                mark.deleted = mark.deleted.max(last);
                export.0.lose(mark, from, last);
            });
        }
    }

    /// Applies the settings of a new configuration generation to existing exports.
    pub(in crate::audit) fn set(&self, settings: &[Settings]) {
        for export in &self.exports {
            if let Some(new) = settings.iter().find(|new| new.name == export.0.name) {
                // An unchanged target keeps its identity, and so its connection.
                if !export.0.target.load().is(&new.target) {
                    export.0.target.store(Arc::new(new.target.clone()));
                }
                export.judge(|mark| mark.limit = new.limit);
            }
        }
    }
}

impl Mark {
    fn behind(&self) -> u64 {
        u64::try_from(self.total.saturating_sub(self.sent.max(self.begins))).unwrap_or(0)
    }
}

impl Share {
    /// Counts as lost the lines in this range that were never read.
    fn lose(&self, mark: &mut Mark, from: u64, last: u64) {
        let before = mark.accounted.max(from.saturating_sub(1));
        if last > before {
            mark.accounted = last;
            mark.holes.push((before + 1, last));
            self.count(last - before, "lines of the audit trail were deleted or moved away before they were sent");
        }
    }

    /// Counts as lost the in-flight lines of a broken connection that cannot be sent again because they were deleted.
    fn lose_in_flight(&self, mark: &mut Mark) {
        let (had, deleted) = (mark.settled.last.seq.max(mark.base), mark.deleted);
        mark.holes.retain(|(_, last)| *last > had);
        let told: u64 = mark.holes.iter().map(|(from, last)| last - (*from).max(had + 1) + 1).sum();
        let lost = deleted.saturating_sub(had).saturating_sub(told);
        // All other lines will be read again, and count as lost if they are deleted before.
        mark.accounted = had.max(deleted);
        if lost > 0 {
            mark.holes = vec![(had + 1, deleted)];
            self.count(
                lost,
                "lines of the audit trail were deleted while they were in flight, and may not have arrived",
            );
        }
    }

    fn count(&self, lost: u64, what: &str) {
        self.metrics.lost.inc_by(lost);
        tracing::error!(export = &*self.name, lines = lost, "{what}");
    }
}

impl Export {
    /// Returns its name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    pub(super) fn metrics(&self) -> &ExportMetrics {
        &self.0.metrics
    }

    /// Returns its current receiver.
    pub(super) fn target(&self) -> Arc<Target> {
        self.0.target.load_full()
    }

    pub(super) fn trail(&self) -> &Path {
        &self.0.common.trail
    }

    pub(super) fn instance(&self) -> &Arc<str> {
        &self.0.common.instance
    }

    /// Watches the end of the trail.
    pub(super) fn end(&self) -> watch::Receiver<End> {
        self.0.common.end.subscribe()
    }

    /// Returns the current end of the trail.
    pub(super) fn end_now(&self) -> End {
        *self.0.common.end.borrow()
    }

    /// Returns up to where the receiver is known to have the trail.
    #[cfg(test)]
    pub(super) fn settled(&self) -> Cursor {
        self.mark().settled
    }

    /// Records that lines were read for sending, with the numbers of the first and the last.
    pub(super) fn reads(&self, first: Option<u64>, last: u64) {
        let mut mark = self.mark();
        if let Some(first) = first {
            self.0.lose(&mut mark, 0, first.saturating_sub(1));
        }
        mark.accounted = mark.accounted.max(last);
    }

    /// Goes back to the place up to which the receiver is known to have the trail, and returns it.
    pub(super) fn goes_back(&self) -> Cursor {
        let mut mark = self.mark();
        self.0.lose_in_flight(&mut mark);
        mark.settled
    }

    /// Sets the end of the lines that were sent.
    pub(super) fn set_sent(&self, cursor: &Cursor) {
        self.judge(|mark| mark.sent = cursor.total);
    }

    /// Sets up to where the receiver is known to have the trail.
    pub(super) fn set_settled(&self, cursor: &Cursor) {
        self.mark().settled = *cursor;
    }

    /// Stores the position of the receiver for the next start.
    pub(super) fn save(&self) -> io::Result<()> {
        let position = {
            let mark = self.mark();
            Position { place: mark.settled.place, last: mark.settled.last, caught_up: mark.caught_up }
        };
        position::save(&self.0.position, &position)
    }

    /// Changes the mark and decides whether requests are refused, under one lock, so that the last decision has the
    /// latest state.
    fn judge(&self, change: impl FnOnce(&mut Mark)) {
        let mut mark = self.mark();
        change(&mut mark);
        let behind = mark.behind();
        self.0.metrics.behind.set(i64::try_from(behind).unwrap_or(i64::MAX));
        let within = mark.limit.max_behind.is_none_or(|most| behind <= most);
        mark.caught_up |= within;
        let late = mark.limit.when_behind == WhenBehind::Refuse && mark.caught_up && !within;
        if late != std::mem::replace(&mut mark.late, late) {
            match late {
                true => self.0.common.late.fetch_add(1, Ordering::Relaxed),
                false => self.0.common.late.fetch_sub(1, Ordering::Relaxed),
            };
        }
    }

    fn mark(&self) -> MutexGuard<'_, Mark> {
        lock(&self.0.mark)
    }
}
