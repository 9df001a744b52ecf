//! Detects when a configuration has to be loaded again: when the content of any of its files differs from what was
//! read, on SIGHUP, or on request.
//!
//! Folders are watched instead of files, as files are replaced more often than written: by a rename or, if Kubernetes
//! mounts a ConfigMap or a Secret, by a swap of the symbolic link `..data` beside them. Events only say when to check;
//! the content decides. Where no events arrive (network file systems, a lack of inotify watches) a slow poll finds the
//! change.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode,
    event::{AccessKind, AccessMode},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};

use super::{fingerprint::Fingerprint, resolver::folder_of};

/// How long after the last event of a group of changes the files are checked.
const QUIET: Duration = Duration::from_millis(250);
/// The longest time from the first event of a group to the check, even if the folder stays busy.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often files are checked without an event.
const POLL: Duration = Duration::from_secs(30);

/// The reason to load a configuration again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The content of a file differs from what was read.
    Files,
    /// SIGHUP.
    Signal,
    /// [`Trigger::fire`].
    Request,
}

impl Cause {
    /// The name of the cause in the audit trail and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Signal => "signal",
            // Only operators request one.
            Self::Request => "operator",
        }
    }
}

/// A handle that requests reloads.
#[derive(Clone, Debug)]
pub struct Trigger(mpsc::Sender<()>);

impl Trigger {
    /// Requests a reload. Concurrent requests cause a single one.
    pub fn fire(&self) {
        // A full channel means that a reload is already about to begin.
        _ = self.0.try_send(());
    }
}

/// A watcher for the files of a configuration.
#[derive(Debug)]
pub struct Watcher {
    fingerprint: Fingerprint,
    folders: Folders,
    events: mpsc::Receiver<()>,
    requests: mpsc::Receiver<()>,
    trigger: Trigger,
    hangup: Signal,
    poll: tokio::time::Interval,
    quiet: Duration,
}

impl Watcher {
    /// Watches the files of a fingerprint, starting from the content that was read, so that no change in between is
    /// missed. Requires a tokio runtime.
    pub fn new(fingerprint: Fingerprint) -> io::Result<Self> {
        Self::with_times(fingerprint, QUIET, POLL)
    }

    fn with_times(fingerprint: Fingerprint, quiet: Duration, poll: Duration) -> io::Result<Self> {
        let (sender, events) = mpsc::channel(1);
        let (request, requests) = mpsc::channel(1);
        let mut poll = tokio::time::interval_at(Instant::now() + poll, poll);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            fingerprint,
            folders: Folders::new(sender),
            events,
            requests,
            trigger: Trigger(request),
            hangup: signal(SignalKind::hangup())?,
            poll,
            quiet,
        })
    }

    pub fn trigger(&self) -> Trigger {
        self.trigger.clone()
    }

    /// Switches to the files of another fingerprint: that of the configuration that was loaded or refused last.
    pub fn follow(&mut self, fingerprint: Fingerprint) {
        self.fingerprint = fingerprint;
    }

    /// Waits until the configuration is to be loaded again. It reports the same content only once. Cancel safe: no
    /// change is lost.
    pub async fn changed(&mut self) -> Cause {
        loop {
            self.folders.watch(self.fingerprint.files());
            if let Some(now) = self.difference().await {
                self.fingerprint = now;
                return Cause::Files;
            }
            tokio::select! {
                _ = self.events.recv() => {
                    if let Some(cause) = self.settle().await {
                        return cause;
                    }
                }
                _ = self.poll.tick() => {}
                _ = self.hangup.recv() => return Cause::Signal,
                _ = self.requests.recv() => return Cause::Request,
            }
        }
    }

    /// Returns the fingerprint of the files as they are now, if it has changed.
    async fn difference(&self) -> Option<Fingerprint> {
        let old = self.fingerprint.clone();
        // Off the runtime, as a network file system can block a read.
        let now = tokio::task::spawn_blocking(move || old.now()).await.ok()?;
        (now != self.fingerprint).then_some(now)
    }

    /// Waits for the end of a group of changes. A request for a reload ends the wait.
    async fn settle(&mut self) -> Option<Cause> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            tokio::select! {
                event = tokio::time::timeout(self.quiet, self.events.recv()) => {
                    if event.is_err() {
                        return None;
                    }
                }
                _ = self.hangup.recv() => return Some(Cause::Signal),
                _ = self.requests.recv() => return Some(Cause::Request),
            }
        }
        None
    }
}

/// The watched folders.
#[derive(Debug)]
struct Folders {
    /// `None` if the system grants no watches; only the poll is left then.
    notify: Option<RecommendedWatcher>,
    /// The watched folders with device and inode, to notice one that was deleted and created again.
    watched: BTreeMap<PathBuf, (u64, u64)>,
    /// Keeps the channel open if there is no `notify`.
    _events: mpsc::Sender<()>,
}

impl Folders {
    fn new(events: mpsc::Sender<()>) -> Self {
        let sender = events.clone();
        let notify = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the files causes events too, which must not cause another read.
            let read = |kind: EventKind| matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write));
            if !event.is_ok_and(|event| read(event.kind)) {
                _ = sender.try_send(());
            }
        });
        let notify = notify
            .inspect_err(|error| tracing::warn!(%error, "files cannot be watched; changes are found by polling"))
            .ok();
        Self { notify, watched: BTreeMap::new(), _events: events }
    }

    /// Watches the folders through which the files are reached, and no others.
    fn watch<'a>(&mut self, files: impl Iterator<Item = &'a Path>) {
        let Some(notify) = &mut self.notify else { return };
        let mut wanted = BTreeMap::new();
        for folder in files.flat_map(folders) {
            if let Ok(found) = std::fs::metadata(&folder) {
                wanted.insert(folder, (found.dev(), found.ino()));
            }
        }
        self.watched.retain(|folder, identity| {
            let keep = wanted.get(folder) == Some(identity);
            if !keep {
                // It fails if the folder, and thus its watch, is gone.
                _ = notify::Watcher::unwatch(notify, folder);
            }
            keep
        });
        for (folder, identity) in wanted {
            if self.watched.contains_key(&folder) {
                continue;
            }
            match notify::Watcher::watch(notify, &folder, RecursiveMode::NonRecursive) {
                Ok(()) => _ = self.watched.insert(folder, identity),
                Err(error) => tracing::debug!(folder = %folder.display(), %error, "cannot be watched"),
            }
        }
    }
}

/// Returns the folders in which a change can affect what a path resolves to: the folder of the file, or the nearest
/// that exists, that of its target, and those of all symbolic links on the way.
fn folders(file: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    found.extend(
        file.ancestors()
            .skip(1)
            .map(|ancestor| match ancestor {
                empty if empty.as_os_str().is_empty() => PathBuf::from("."),
                folder => folder.to_owned(),
            })
            .find(|ancestor| ancestor.is_dir()),
    );
    found.extend(file.ancestors().filter(|part| part.is_symlink()).map(|link| folder_of(link).to_owned()));
    found.extend(file.canonicalize().ok().map(|target| folder_of(&target).to_owned()));
    found
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn print_of(path: &Path) -> Fingerprint {
        let mut print = Fingerprint::default();
        print.record(path, fs::read(path).ok().as_deref());
        print
    }

    /// Returns a watcher without the poll, so that only events can report a change.
    fn by_events(path: &Path) -> Watcher {
        Watcher::with_times(print_of(path), Duration::from_millis(20), Duration::from_secs(3600)).unwrap()
    }

    /// Runs `change` after the folders are watched, and expects an event.
    async fn after(watcher: &mut Watcher, change: impl FnOnce()) -> Cause {
        watcher.folders.watch(watcher.fingerprint.files());
        change();
        tokio::time::timeout(LONG, watcher.events.recv()).await.unwrap();
        tokio::time::timeout(LONG, watcher.changed()).await.unwrap()
    }

    #[tokio::test]
    async fn every_way_in_which_files_are_replaced_is_noticed() {
        type Change = fn(&Path);
        let ways: [(&str, Change); 4] = [
            ("written in place", |path| fs::write(path, "new").unwrap()),
            ("renamed over", |path| {
                let beside = path.with_extension("tmp");
                fs::write(&beside, "new").unwrap();
                fs::rename(beside, path).unwrap();
            }),
            ("deleted and made again", |path| {
                fs::remove_file(path).unwrap();
                fs::write(path, "new").unwrap();
            }),
            ("deleted", |path| fs::remove_file(path).unwrap()),
        ];
        for (way, change) in ways {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("doorward.yaml");
            fs::write(&path, "old").unwrap();
            let mut watcher = by_events(&path);
            assert_eq!(after(&mut watcher, || change(&path)).await, Cause::Files, "{way}");
        }
    }

    #[tokio::test]
    async fn the_swap_of_a_config_map_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, text) in [("..1", "old"), ("..2", "new")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("doorward.yaml"), text).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/doorward.yaml", at("doorward.yaml")).unwrap();
        let mut watcher = by_events(&at("doorward.yaml"));
        let cause = after(&mut watcher, || {
            symlink("..2", at("..data_tmp")).unwrap();
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
        });
        assert_eq!(cause.await, Cause::Files);
        assert_eq!(watcher.fingerprint, print_of(&at("doorward.yaml")));
    }

    #[tokio::test]
    async fn a_folder_that_is_deleted_and_made_again_is_watched_on() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        let path = inner.join("doorward.yaml");
        fs::create_dir(&inner).unwrap();
        fs::write(&path, "old").unwrap();
        let mut watcher = by_events(&path);
        assert_eq!(after(&mut watcher, || fs::remove_dir_all(&inner).unwrap()).await, Cause::Files);
        let again = after(&mut watcher, || {
            fs::create_dir(&inner).unwrap();
            fs::write(&path, "new").unwrap();
        });
        assert_eq!(again.await, Cause::Files);
        // In the new folder as well.
        assert_eq!(after(&mut watcher, || fs::write(&path, "newer").unwrap()).await, Cause::Files);
    }

    #[tokio::test]
    async fn the_same_content_is_no_change_but_a_request_always_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("doorward.yaml");
        fs::write(&path, "same").unwrap();
        let mut watcher = by_events(&path);
        let trigger = watcher.trigger();
        let cause = after(&mut watcher, || {
            fs::write(&path, "same").unwrap();
            fs::write(folder.path().join("beside"), "x").unwrap();
            trigger.fire();
            trigger.fire();
        });
        assert_eq!(cause.await, Cause::Request);
        watcher.requests.try_recv().unwrap_err();
    }

    #[tokio::test]
    async fn without_events_the_poll_finds_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("doorward.yaml");
        fs::write(&path, "old").unwrap();
        let mut watcher = Watcher::with_times(print_of(&path), QUIET, Duration::from_millis(10)).unwrap();
        watcher.folders.notify = None;
        let waiting = tokio::spawn(async move { watcher.changed().await });
        tokio::task::yield_now().await;
        fs::write(&path, "new").unwrap();
        assert_eq!(tokio::time::timeout(LONG, waiting).await.unwrap().unwrap(), Cause::Files);
    }

    #[tokio::test]
    async fn a_change_is_reported_once_and_another_file_can_be_watched() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        fs::write(&one, "1").unwrap();
        fs::write(&two, "2").unwrap();
        let mut watcher = by_events(&one);
        assert_eq!(after(&mut watcher, || fs::write(&one, "11").unwrap()).await, Cause::Files);
        assert!(watcher.difference().await.is_none());
        watcher.follow(print_of(&two));
        assert_eq!(after(&mut watcher, || fs::write(&two, "22").unwrap()).await, Cause::Files);
    }

    #[test]
    fn the_folders_of_all_links_on_the_way_are_watched() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("v1/inner")).unwrap();
        fs::write(root.join("v1/inner/file"), "").unwrap();
        symlink("v1", root.join("current")).unwrap();
        let found = folders(&root.join("current/inner/file"));
        assert_eq!(found, BTreeSet::from([root.clone(), root.join("current/inner"), root.join("v1/inner")]));
        assert_eq!(folders(&root.join("gone/and/away")), BTreeSet::from([root]));
    }
}
