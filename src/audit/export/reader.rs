//! Reads the part of a trail that is on stable storage, from a place on, across files that are rotated and deleted
//! meanwhile.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{
    super::{
        chain::{Link, Mac, Sealed},
        file_ends::line_before,
        lines::{Lines, of_file},
        sink::{numbered_files, numbered_path},
    },
    position::Position,
};

/// The largest batch.
const BATCH_LINES: usize = 512;
pub(super) const BATCH_BYTES: usize = 512 << 10;

/// A place in the trail. `file` is the number that the file has, or will have, after rotation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::audit) struct Place {
    pub(in crate::audit) file: u64,
    pub(in crate::audit) offset: u64,
}

/// The end of the part of the trail that is on stable storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::audit) struct End {
    pub(in crate::audit) place: Place,
    /// Bytes written since the start of the process.
    pub(in crate::audit) total: i64,
}

/// A place between two lines, where an export is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) place: Place,
    /// The line before it.
    pub(super) last: Link,
    /// The place as [`End::total`] counts; negative for lines that existed at the start.
    pub(super) total: i64,
}

/// Consecutive lines.
#[derive(Debug)]
pub(super) struct Batch {
    /// With their line ends.
    pub(super) bytes: Vec<u8>,
    pub(super) count: usize,
    /// The number of the first line whose number can be read.
    pub(super) first: Option<u64>,
    pub(super) after: Cursor,
}

impl Batch {
    /// Returns the lines without their line ends.
    pub(super) fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.split_inclusive(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\n").unwrap_or(line))
    }
}

/// Reads the lines after `from`, up to `most` bytes but at least one line; none if there are none.
pub(super) fn read(path: &Path, mut from: Cursor, end: End, most: usize) -> io::Result<Option<Batch>> {
    let start = from.place;
    loop {
        let Some((mut file, number)) = open(path, from.place.file, end.place.file)? else { return Ok(None) };
        let is_full = number < end.place.file;
        let limit = if is_full { file.metadata()?.len() } else { end.place.offset };
        let is_other = number == from.place.file
            && from.place == start
            && from.place.offset < limit
            && !is_line_end(&file, from.place.offset)?;
        if is_other {
            tracing::error!(
                file = number,
                "the audit file does not continue what was sent of it: somebody truncated or changed it, and all of it is sent"
            );
        }
        if is_other || number != from.place.file {
            from.place = Place { file: number, offset: 0 };
            from.total = end.total - bytes_after(path, from.place, end.place)?;
        }
        let left = usize::try_from(limit.saturating_sub(from.place.offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(BATCH_BYTES)];
        file.seek(SeekFrom::Start(from.place.offset))?;
        file.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => of_file(path)(io::Error::new(error.kind(), SHORTER)),
            _ => error,
        })?;
        let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).enumerate();
        let ends = ends.take(BATCH_LINES).take_while(|(before, end)| *before == 0 || *end <= most);
        let (count, used) = ends.last().map_or((0, 0), |(before, end)| (before + 1, end));
        if count > 0 {
            bytes.truncate(used);
            let mut links = bytes.split(|byte| *byte == b'\n').filter_map(|line| Some(Sealed::parse(line)?.link));
            let first = links.next();
            let last = links.next_back().or(first).unwrap_or(from.last);
            let place = Place { offset: from.place.offset + used as u64, ..from.place };
            let after = Cursor { place, last, total: from.total + signed(used as u64) };
            return Ok(Some(Batch { bytes, count, first: first.map(|first| first.seq), after }));
        }
        if bytes.len() < BATCH_BYTES && !is_full {
            return Ok(None);
        }
        if !bytes.is_empty() {
            tracing::error!(
                file = number,
                bytes = bytes.len(),
                "a part of the audit trail has no line end and is not sent"
            );
        }
        from.total += signed(bytes.len() as u64);
        from.place = match bytes.len() < BATCH_BYTES {
            true => Place { file: number + 1, offset: 0 },
            false => Place { offset: from.place.offset + bytes.len() as u64, ..from.place },
        };
    }
}

/// The writer notices with the next line, and gives the file another number.
const SHORTER: &str = "it is shorter than what was written to it, as somebody truncated or moved it; sending goes on with \
    the next line that is written";

/// Whether a line ends at this place, so that another one begins there. A file that ends before it is found to be too
/// short when it is read.
fn is_line_end(file: &File, offset: u64) -> io::Result<bool> {
    let Some(before) = offset.checked_sub(1) else { return Ok(true) };
    let mut byte = [0];
    Ok(file.read_at(&mut byte, before)? == 0 || byte == *b"\n")
}

/// Opens a file of the trail, or the next one that still exists, and returns its number. `current` was recently the
/// number of the file being written.
fn open(path: &Path, number: u64, current: u64) -> io::Result<Option<(File, u64)>> {
    let found = |result: io::Result<File>| match result {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    if number < current {
        if let Some(file) = found(File::open(numbered_path(path, number)))? {
            return Ok(Some((file, number)));
        }
        let next = numbered_files(path)?.into_iter().find(|(found, _)| *found > number && *found < current);
        if let Some((number, path)) = next {
            return Ok(found(File::open(path))?.map(|file| (file, number)));
        }
    }
    let newest = found(File::open(path))?;
    // If it was just rotated, the file opened above may be the next one; then the numbered file exists and is used.
    let file = found(File::open(numbered_path(path, current)))?.or(newest);
    Ok(file.map(|file| (file, current)))
}

/// Returns the number of bytes between two places.
pub(super) fn bytes_after(path: &Path, from: Place, end: Place) -> io::Result<i64> {
    let mut bytes = signed(end.offset) - signed(from.offset);
    for (number, path) in numbered_files(path)? {
        if (from.file..end.file).contains(&number) {
            bytes += signed(fs::metadata(path)?.len());
        }
    }
    Ok(bytes)
}

/// Finds the place of a stored position, even if files were moved away since, or the beginning of the trail if there is
/// none. Returns also whether the position was found, or was at the beginning.
pub(super) fn locate(path: &Path, position: Option<&Position>, end: Place) -> io::Result<(Cursor, bool)> {
    let mut files = numbered_files(path)?;
    files.push((end.file, path.to_owned()));
    let first = files.first().map_or(end.file, |(number, _)| *number);
    let beginning = (Place { file: first, offset: 0 }, Link::NONE);
    let found = match position {
        None => None,
        Some(position) if position.last == Link::NONE => Some(beginning),
        Some(position) if is_there(&files, position, end)? => Some((position.place, position.last)),
        Some(position) => search(&files, position, end)?,
    };
    let (place, last) = found.unwrap_or(beginning);
    let total = -bytes_after(path, place, end)?;
    Ok((Cursor { place, last, total }, found.is_some()))
}

/// Whether the line before the place is the expected one.
fn is_there(files: &[(u64, PathBuf)], position: &Position, end: Place) -> io::Result<bool> {
    let Position { place, last, .. } = *position;
    let Some((_, path)) = files.iter().find(|(number, _)| *number == place.file) else { return Ok(false) };
    if place > end {
        return Ok(false);
    }
    let line = line_before(&mut File::open(path)?, place.offset)?.unwrap_or_default();
    Ok(Sealed::parse(&line).is_some_and(|sealed| sealed.link == last))
}

/// Searches for the line by its number.
fn search(files: &[(u64, PathBuf)], position: &Position, end: Place) -> io::Result<Option<(Place, Link)>> {
    let Link { seq, mac } = position.last;
    let mut before: Option<(u64, &Path)> = None;
    // The first file after `before` whose first line cannot be read: the line may have been in it.
    let mut unclear: Option<u64> = None;
    let mut after: Option<(u64, Link, Mac)> = None;
    for (number, path) in files {
        let Some((first, prev)) = first_line(path)? else {
            unclear = unclear.or(Some(*number));
            continue;
        };
        if first.seq > seq {
            after = Some((*number, first, prev));
            break;
        }
        before = Some((*number, path));
        unclear = None;
    }
    let after_it = |number| Some((Place { file: number, offset: 0 }, position.last));
    // It was the last line of the previous file, whatever has become of that.
    if let Some((number, first, prev)) = after
        && first.seq == seq + 1
        && prev == mac
    {
        return Ok(after_it(number));
    }
    let mut last = (Place::default(), Link::NONE);
    if let Some((number, path)) = before {
        let mut lines = Lines::open(path)?;
        let mut offset = 0;
        while let Some(line) = lines.next()? {
            offset += line.bytes.len() as u64 + 1;
            if line.fault.is_some() || (number == end.file && offset > end.offset) {
                return Ok(None);
            }
            let Some(sealed) = Sealed::parse(line.bytes) else { continue };
            if sealed.link == position.last {
                return Ok(Some((Place { file: number, offset }, position.last)));
            }
            last = (Place { file: number, offset }, sealed.link);
        }
    }
    // The line is gone, perhaps with lines after it. Whether the remaining lines continue the same chain is unknown.
    // The receiver has the lines before it, and all remaining lines must be sent.
    let is_current_gone = end.offset == 0 && position.place.file >= end.file && last.1 != Link::NONE;
    match after {
        _ if last.1.seq >= seq => Ok(None),
        Some((number, ..)) => Ok(after_it(unclear.unwrap_or(number))),
        // The next line continues after the last one that is there, with numbers that the receiver already had.
        None if is_current_gone => {
            tracing::error!(
                sent = seq,
                goes_on_after = last.1.seq,
                "the audit file with the last line that a receiver got was moved or removed: its other lines are not sent"
            );
            Ok(Some(last))
        }
        None => Ok(None),
    }
}

/// Returns the number of the first line that a trail still has; 1 if it has none.
pub(super) fn first_number(path: &Path) -> io::Result<u64> {
    for (_, path) in numbered_files(path)? {
        if let Some((first, _)) = first_line(&path)? {
            return Ok(first.seq);
        }
    }
    let current = if path.try_exists()? { first_line(path)? } else { None };
    Ok(current.map_or(1, |(first, _)| first.seq))
}

/// Returns the first line of a file, and the code that it links to.
fn first_line(path: &Path) -> io::Result<Option<(Link, Mac)>> {
    let mut lines = Lines::open(path)?;
    let line = lines.next()?;
    Ok(line.and_then(|line| Sealed::parse(line.bytes)).map(|sealed| (sealed.link, sealed.prev)))
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
