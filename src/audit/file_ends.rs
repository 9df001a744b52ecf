//! The first and last lines of a file: when it began, which line to link to, and whether it belongs to a trail.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use serde::Deserialize;

use super::{
    chain::{Link, MAX_LINE, Sealed},
    line::HTTP_ACTIVITY,
    lines::Lines,
};
use crate::clock::Timestamp;

/// The end of a file of lines.
pub(super) struct FileEnd {
    pub(super) size: u64,
    /// Bytes up to and including the last line end.
    pub(super) whole: u64,
    pub(super) last: Option<Link>,
}

/// Returns when a file began: the time of its first line that is not of a request. The time of a request's line is its
/// arrival, which may be hours earlier, and a file that replaces a moved one may begin with such a line. None if there
/// is no other line. Damaged lines are skipped, as `verify` reports them and the next intact one has no earlier time.
pub(super) fn began(file: &mut File) -> io::Result<Option<Timestamp>> {
    file.seek(SeekFrom::Start(0))?;
    let mut lines = Lines::new(BufReader::new(file));
    while let Some(line) = lines.next()? {
        if let Some((_, Timed { class_uid, time })) = parse(line.bytes)
            && class_uid != HTTP_ACTIVITY
        {
            return Ok(Some(Timestamp::from_millis(time)));
        }
    }
    Ok(None)
}

/// Returns the first and the last line of a full file.
pub(super) fn first_and_last(path: &Path) -> io::Result<(Link, Link)> {
    let mut file = File::open(path)?;
    let last = FileEnd::of(&mut file)?.last.ok_or_else(|| foreign("last"))?;
    file.seek(SeekFrom::Start(0))?;
    let mut lines = Lines::new(BufReader::new(file));
    let first = lines.next()?.and_then(|line| parse(line.bytes)).ok_or_else(|| foreign("first"))?;
    Ok((first.0, last))
}

/// The members of a line that say when it was written.
#[derive(Deserialize)]
struct Timed {
    class_uid: u32,
    time: i64,
}

/// Parses a line; none if it does not belong to a trail.
fn parse(line: &[u8]) -> Option<(Link, Timed)> {
    let link = Sealed::parse(line)?.link;
    Some((link, serde_json::from_slice(line).ok()?))
}

/// How far back to search for a line end. A system crash can leave a run of zeros as long as the unsynced data.
const LOOK_BACK: u64 = 64 << 20;

/// The beginning of every line.
pub(super) const BEGINNING: &[u8] = b"{\"class_uid\":";

impl FileEnd {
    pub(super) fn of(file: &mut File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let Some(whole) = last_line_end(file, size)? else {
            let mut first = Vec::new();
            file.seek(SeekFrom::Start(0))?;
            file.take(BEGINNING.len() as u64).read_to_end(&mut first)?;
            // Only something that can be the rest of our own first line may be cut off.
            let ours = BEGINNING.starts_with(&first) || first.iter().all(|byte| *byte == 0);
            return if ours { Ok(Self { size, whole: 0, last: None }) } else { Err(foreign("last")) };
        };
        let last = line_before(file, whole)?.and_then(|line| parse(&line));
        let (last, _) = last.ok_or_else(|| foreign("last"))?;
        Ok(Self { size, whole, last: Some(last) })
    }
}

/// Returns the line that ends right before an offset, without its line end; none if no line ends there.
pub(super) fn line_before(file: &mut File, offset: u64) -> io::Result<Option<Vec<u8>>> {
    let start = offset.saturating_sub(MAX_LINE as u64);
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.take(offset - start).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != offset - start || bytes.pop() != Some(b'\n') {
        return Ok(None);
    }
    Ok(bytes.rsplit(|byte| *byte == b'\n').next().map(<[u8]>::to_vec))
}

/// Returns the offset after the last line end; none if there is no line end.
fn last_line_end(file: &mut File, size: u64) -> io::Result<Option<u64>> {
    let mut chunk = vec![0; 1 << 16];
    let mut end = size;
    while end > 0 && size - end < LOOK_BACK {
        let start = end.saturating_sub(chunk.len() as u64);
        let part = chunk.get_mut(..usize::try_from(end - start).unwrap_or_default()).unwrap_or_default();
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(Some(start + at as u64 + 1));
        }
        end = start;
    }
    Ok(None)
}

fn foreign(which: &str) -> io::Error {
    let message = format!("the {which} line is not one of an audit trail, so the file will not be used; move it away");
    io::Error::new(io::ErrorKind::InvalidData, message)
}
