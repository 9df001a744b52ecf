//! What the first and the last lines of a file tell: when it began, what to link to, and that it is one of a trail.

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
    /// Bytes up to and with the last line end.
    pub(super) whole: u64,
    pub(super) last: Option<Link>,
}

/// When a file began: by its first line that tells when it was written, as that of a request has the time of its arrival, which may be
/// hours before, and a file that somebody moved may go on with one. None if it has no such line. A damaged line is for `verify` to tell of:
/// the next one that is whole tells no earlier time.
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

/// The first and the last line of a full file.
pub(super) fn first_and_last(path: &Path) -> io::Result<(Link, Link)> {
    let mut file = File::open(path)?;
    let last = FileEnd::of(&mut file)?.last.ok_or_else(|| foreign("last"))?;
    file.seek(SeekFrom::Start(0))?;
    let mut lines = Lines::new(BufReader::new(file));
    let first = lines.next()?.and_then(|line| parse(line.bytes)).ok_or_else(|| foreign("first"))?;
    Ok((first.0, last))
}

/// What a line says of when it was written.
#[derive(Deserialize)]
struct Timed {
    class_uid: u32,
    time: i64,
}

/// A line of a trail; none if it is none.
fn parse(line: &[u8]) -> Option<(Link, Timed)> {
    let link = Sealed::parse(line)?.link;
    Some((link, serde_json::from_slice(line).ok()?))
}

/// How far back a line end is looked for. A crash of the system can leave a run of zeros as long as what was not synced.
const LOOK_BACK: u64 = 64 << 20;

/// How every line begins.
pub(super) const BEGINNING: &[u8] = b"{\"class_uid\":";

impl FileEnd {
    pub(super) fn of(file: &mut File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let Some(whole) = last_line_end(file, size)? else {
            let mut first = Vec::new();
            file.seek(SeekFrom::Start(0))?;
            file.take(BEGINNING.len() as u64).read_to_end(&mut first)?;
            // Only what can be the rest of our own first line may be cut.
            let ours = BEGINNING.starts_with(&first) || first.iter().all(|byte| *byte == 0);
            return if ours { Ok(Self { size, whole: 0, last: None }) } else { Err(foreign("last")) };
        };
        let last = line_before(file, whole)?.and_then(|line| parse(&line));
        let (last, _) = last.ok_or_else(|| foreign("last"))?;
        Ok(Self { size, whole, last: Some(last) })
    }
}

/// The line that ends right before an offset, without its end; none if none does.
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

/// The offset after the last line end, none if there is no line end to be found.
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
    let message =
        format!("the {which} line is not one of an audit trail, so the file is not taken for one; move it away");
    io::Error::new(io::ErrorKind::InvalidData, message)
}
