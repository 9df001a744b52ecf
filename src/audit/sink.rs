//! The destination of lines: standard output, or a file with rotation.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::retry_on_intr,
};

use super::{
    chain::Link,
    export::{Backlog, Place},
    file_ends::{FileEnd, began, first_and_last},
    lines::of_file,
    settings::Retention,
};
use crate::{
    clock::Timestamp,
    config::resolver::{folder_of, found_at},
};

/// A destination of lines. It is used by one thread, which offers bytes that were not taken again, unchanged.
pub(super) trait Sink: Send + 'static {
    /// Takes the first bytes of `lines` and returns how many. An error means that nothing was taken.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize>;

    /// Returns when everything taken so far would survive a power failure.
    fn sync(&mut self) -> io::Result<()>;

    /// Syncs after a failed [`Sink::sync`]. `taken` are the bytes since the last successful one. Linux reports a failed
    /// write only once and then treats the data as written, so these bytes are written again, in the same place.
    fn sync_again(&mut self, _taken: &[u8]) -> io::Result<()> {
        self.sync()
    }

    /// Whether a new file should begin instead of taking `more` bytes.
    fn is_full(&self, _more: usize) -> bool {
        false
    }

    /// Whether a new file should begin because the current one began long before `now`.
    fn is_old(&self, _now: Timestamp) -> bool {
        false
    }

    /// Begins a new file at `now` and returns the name of the old one, if it still exists. Called between lines only,
    /// after a sync.
    fn rotate(&mut self, _now: Timestamp) -> io::Result<Option<Arc<str>>> {
        Ok(None)
    }

    /// Returns the full files whose retention is over at `now`.
    fn surplus(&self, _now: Timestamp) -> io::Result<Option<Surplus>> {
        Ok(None)
    }

    /// Whether the chain continues where the last process ended. Otherwise each start begins a new chain, with numbers
    /// of its own.
    fn goes_on(&self) -> bool;

    /// Returns the name of the current file, for checkpoints.
    fn name(&self) -> Arc<str>;

    /// Returns the destination, for log messages.
    fn told(&self) -> String {
        self.name().to_string()
    }

    /// Returns the place after everything that was taken. Only files have places.
    fn place(&self) -> Place {
        Place::default()
    }
}

/// Full files that are to be removed, the oldest first.
#[derive(Debug)]
pub(super) struct Surplus {
    files: Vec<PathBuf>,
    /// The number of their first line.
    pub(super) from: u64,
    pub(super) last: Link,
}

impl Surplus {
    pub(super) fn files(&self) -> usize {
        self.files.len()
    }

    /// Removes them. A file that cannot be removed is tried again next time.
    pub(super) fn remove(&self) {
        for path in &self.files {
            if let Err(error) = fs::remove_file(path) {
                tracing::error!(path = %path.display(), %error, "an old audit file could not be removed");
            }
        }
    }
}

/// Standard output. The process that reads it is responsible for the lines.
#[derive(Debug)]
pub(super) struct Stdout;

impl Sink for Stdout {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        when_ready(&mut io::stdout().lock(), |out| out.write(lines))
    }

    fn sync(&mut self) -> io::Result<()> {
        when_ready(&mut io::stdout().lock(), |out| out.flush())
    }

    fn goes_on(&self) -> bool {
        false
    }

    fn name(&self) -> Arc<str> {
        "stdout".into()
    }
}

/// Repeats `attempt` until `out` accepts data. Another process that shares standard output may have made it
/// non-blocking, and a reader that is slow for a moment is not a failure.
fn when_ready<W: AsFd, T>(out: &mut W, mut attempt: impl FnMut(&mut W) -> io::Result<T>) -> io::Result<T> {
    loop {
        match attempt(out) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                retry_on_intr(|| poll(&mut [PollFd::new(&*out, PollFlags::OUT)], None))?;
            }
            done => return done,
        }
    }
}

/// A file with rotation. Full files are beside it with increasing numbers: `audit.jsonl.000001` is the oldest.
#[derive(Debug)]
pub(super) struct RotatingFile {
    path: PathBuf,
    name: Arc<str>,
    file: Option<File>,
    /// The same file, for rewriting data in place: `file` can only append.
    mending: Option<File>,
    size: u64,
    /// Its size after the last sync.
    synced: u64,
    max_size: u64,
    retention: Retention,
    last_number: u64,
    /// When the current file began.
    began: Timestamp,
    /// The exports, which may still need a full file.
    backlog: Arc<Backlog>,
}

/// The end of an existing trail that is continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) last: Link,
    /// Whether the current file has no line yet.
    pub(super) empty: bool,
    /// Bytes of an incomplete line that were cut off.
    pub(super) repaired: u64,
}

/// Checks whether [`RotatingFile::open`] can continue the trail in this place, without a lock or a change.
pub(super) fn examine(path: &Path) -> io::Result<()> {
    found_at(path)?.map_or(Ok(()), |mut file| FileEnd::of(&mut file).map(|_| ()))
}

impl RotatingFile {
    /// Opens the file, or creates it readable by its owner only; cuts off an incomplete last line; and finds the line
    /// to link to. Refuses a file that another process writes, and one that does not end as a trail does.
    pub(super) fn open(path: &Path, max_size: u64, retention: Retention, now: Timestamp) -> io::Result<(Self, Found)> {
        let numbered = numbered_files(path)?;
        let mut sink = Self {
            path: path.to_owned(),
            name: file_name(path),
            file: None,
            mending: None,
            size: 0,
            synced: 0,
            max_size,
            retention,
            last_number: numbered.last().map_or(0, |(number, _)| *number),
            began: now,
            backlog: Arc::new(Backlog::none()),
        };
        let file = sink.current()?;
        let end = FileEnd::of(file)?;
        let repaired = end.size - end.whole;
        if repaired > 0 {
            file.set_len(end.whole)?;
            file.sync_data()?;
        }
        sink.began = began(file)?.unwrap_or(now);
        (sink.size, sink.synced) = (end.whole, end.whole);
        let last = match (end.last, numbered.last()) {
            (Some(last), _) => Some(last),
            (None, Some((_, previous))) => FileEnd::of(&mut File::open(previous)?)?.last,
            (None, None) => None,
        };
        Ok((sink, Found { last: last.unwrap_or(Link::NONE), empty: end.whole == 0, repaired }))
    }

    /// Retains full files that exports need.
    pub(super) fn keep_for(&mut self, backlog: Arc<Backlog>) {
        self.backlog = backlog;
    }

    fn current(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.path)?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::new(
                        io::ErrorKind::ResourceBusy,
                        "another process writes this trail; give each instance its own file",
                    ));
                }
                // Not every file system supports locks, and the lock only guards against a mistake.
                Ok(()) | Err(TryLockError::Error(_)) => {}
            }
            sync_directory(&self.path)?;
            self.mending = Some(OpenOptions::new().write(true).open(&self.path)?);
            self.size = file.metadata()?.len();
            self.synced = self.size;
            self.file = Some(file);
        }
        self.file.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Returns the latest time at which the last line of a full file may have been written: when the first of the
    /// `later` files began that says so, or else the current one. The time of the line itself may be hours earlier, as
    /// a request's is that of its arrival.
    fn written_until(&self, later: &[(u64, PathBuf)]) -> Timestamp {
        let told = later.iter().find_map(|(_, path)| began(&mut File::open(path).ok()?).ok()?);
        told.unwrap_or(self.began)
    }

    fn close(&mut self) {
        self.file = None;
        self.mending = None;
        (self.size, self.synced) = (0, 0);
    }

    /// Checks after a sync whether somebody moved or removed the open file, in which case later lines would be lost
    /// with it, and begins a new file; or truncated it, in which case places in it mean something else. Fails if the
    /// bytes taken since the last sync may be lost.
    fn check_place(&mut self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let open = file.metadata()?;
        let is_here = match fs::metadata(&self.path) {
            Ok(here) => (here.dev(), here.ino()) == (open.dev(), open.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if is_here && open.len() >= self.size {
            self.synced = self.size;
            return Ok(());
        }
        // Under the same number, exports would take what follows for the rest of what is gone.
        self.last_number += 1;
        if is_here {
            return self.follow_truncated(open.len());
        }
        self.close();
        if open.nlink() == 0 {
            let what = "somebody removed the file of the trail; leave rotation to `max_size` and `keep`";
            return Err(io::Error::new(io::ErrorKind::NotFound, what));
        }
        tracing::error!(
            path = %self.path.display(),
            "somebody moved the file of the trail, which continues in a new one; leave rotation to `max_size` and `keep`"
        );
        Ok(())
    }

    /// Continues after a truncation that left `left` bytes: in the same file if that is as much as was written since
    /// the last sync, as it is if the file was emptied before that. Otherwise the rest may end within a line, and is
    /// set aside as a full file.
    fn follow_truncated(&mut self, left: u64) -> io::Result<()> {
        let at_risk = self.size - self.synced;
        if left == at_risk {
            (self.size, self.synced) = (left, left);
        } else {
            self.close();
            if left > 0 {
                fs::rename(&self.path, numbered_path(&self.path, self.last_number + 1))?;
                self.last_number += 1;
            }
            if at_risk > 0 {
                let what = "somebody truncated the file of the trail; leave rotation to `max_size` and `keep`";
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        }
        tracing::error!(
            path = %self.path.display(),
            "somebody truncated the file of the trail, and the lines that were in it are gone from it; leave rotation to `max_size` and `keep`"
        );
        Ok(())
    }
}

impl Sink for RotatingFile {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let written = self.current()?.write(lines)?;
        self.size += written as u64;
        Ok(written)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_data)?;
        self.check_place()
    }

    fn sync_again(&mut self, taken: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            // The file that had them is gone.
            self.current()?;
            self.size += taken.len() as u64;
        }
        if let Some(file) = &self.mending {
            file.write_all_at(taken, self.size.saturating_sub(taken.len() as u64))?;
        }
        self.sync()
    }

    fn goes_on(&self) -> bool {
        true
    }

    fn is_full(&self, more: usize) -> bool {
        self.size + more as u64 > self.max_size
    }

    fn is_old(&self, now: Timestamp) -> bool {
        self.size > 0 && self.retention.period().is_some_and(|period| now.since(self.began) >= period)
    }

    fn rotate(&mut self, now: Timestamp) -> io::Result<Option<Arc<str>>> {
        self.check_place()?;
        // A file that may be there now is somebody else's, and one that was emptied has nothing to keep.
        if self.file.is_none() || self.size == 0 {
            self.began = now;
            return Ok(None);
        }
        let number = self.last_number + 1;
        let full = numbered_path(&self.path, number);
        fs::rename(&self.path, &full)?;
        self.last_number = number;
        self.close();
        self.began = now;
        Ok(Some(file_name(&full)))
    }

    fn surplus(&self, now: Timestamp) -> io::Result<Option<Surplus>> {
        let Retention { keep, retain } = self.retention;
        if keep.is_none() && retain.is_none() {
            return Ok(None);
        }
        let numbered = numbered_files(&self.path)?;
        let keep = keep.map_or(usize::MAX, |keep| usize::try_from(keep).unwrap_or(usize::MAX));
        let beyond = numbered.len().saturating_sub(keep);
        let mut surplus: Option<Surplus> = None;
        for (at, (number, path)) in numbered.iter().enumerate() {
            let later = numbered.get(at + 1..).unwrap_or_default();
            let stays = at >= beyond && retain.is_none_or(|retain| now.since(self.written_until(later)) < retain);
            if stays || self.backlog.holds(*number) {
                break;
            }
            match first_and_last(path) {
                Ok((first, last)) => {
                    let surplus =
                        surplus.get_or_insert_with(|| Surplus { files: Vec::new(), from: first.seq, last: Link::NONE });
                    surplus.last = last;
                    surplus.files.push(path.clone());
                }
                // It stays, and is reported once it is the oldest.
                Err(_) if surplus.is_some() => break,
                Err(error) => return Err(of_file(path)(error)),
            }
        }
        Ok(surplus)
    }

    fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    fn told(&self) -> String {
        self.path.display().to_string()
    }

    fn place(&self) -> Place {
        Place { file: self.last_number + 1, offset: self.size }
    }
}

/// Returns the files of a trail, the oldest first and the current one last.
pub fn trail_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let path = place_of(path)?;
    let mut files: Vec<PathBuf> = numbered_files(&path)?.into_iter().map(|(_, path)| path).collect();
    if path.try_exists()? || files.is_empty() {
        files.push(path);
    }
    Ok(files)
}

/// Returns the path beside which the full files of a trail are: of a symbolic link, that of the file that it leads to,
/// unless some are beside the link.
pub(super) fn place_of(path: &Path) -> io::Result<PathBuf> {
    let leads = path.is_symlink() && path.try_exists()? && numbered_files(path)?.is_empty();
    if leads { path.canonicalize() } else { Ok(path.to_owned()) }
}

pub(super) fn numbered_path(path: &Path, number: u64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number:06}"));
    name.into()
}

/// Returns the full files with their numbers, the oldest first.
pub(super) fn numbered_files(path: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let prefix = format!("{}.", file_name(path));
    let mut files = Vec::new();
    for entry in fs::read_dir(folder_of(path))? {
        let entry = entry?;
        let name = entry.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix(&prefix));
        let digits = digits.filter(|digits| digits.len() >= 6 && digits.bytes().all(|byte| byte.is_ascii_digit()));
        if let Some(number) = digits.and_then(|digits| digits.parse().ok()) {
            files.push((number, entry.path()));
        }
    }
    files.sort();
    Ok(files)
}

fn file_name(path: &Path) -> Arc<str> {
    path.file_name().unwrap_or_default().to_string_lossy().into()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixStream, thread};

    use super::*;

    /// This counted as a full disk, and requests were refused.
    #[test]
    fn a_slow_reader_of_an_output_that_does_not_block_is_waited_for() {
        let (mut out, reader) = UnixStream::pair().unwrap();
        out.set_nonblocking(true).unwrap();
        let mut filled = 0;
        while let Ok(written) = out.write(&[b'x'; 4096]) {
            filled += written;
        }
        let (mut reader, mut reading) = (Some(reader), None);
        let written = when_ready(&mut out, |out| {
            let written = out.write(b"line\n");
            // Begins to read once the output was full.
            if let Some(mut reader) = reader.take() {
                reading = Some(thread::spawn(move || {
                    let mut read = vec![0; filled + 5];
                    reader.read_exact(&mut read).unwrap();
                    read
                }));
            }
            written
        });
        assert_eq!(written.unwrap(), 5);
        assert!(reading.unwrap().join().unwrap().ends_with(b"line\n"));
    }

    #[test]
    fn an_output_without_a_reader_is_a_failure() {
        let (mut out, reader) = UnixStream::pair().unwrap();
        out.set_nonblocking(true).unwrap();
        while out.write(&[b'x'; 4096]).is_ok() {}
        drop(reader);
        assert!(when_ready(&mut out, |out| out.write(b"line\n")).is_err());
    }
}
