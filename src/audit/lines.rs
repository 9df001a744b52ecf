//! Reads a trail line by line in bounded memory.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use super::chain::MAX_LINE;

/// The lines of a file. The rest of a line that is longer than any line of a trail is skipped.
#[derive(Debug)]
pub(super) struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    number: u64,
}

/// One line.
#[derive(Debug)]
pub(super) struct Line<'a> {
    /// Counts from 1.
    pub(super) number: u64,
    /// Without the line end.
    pub(super) bytes: &'a [u8],
    pub(super) fault: Option<Fault>,
}

/// A fault of a line, apart from its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is too long, and its end was skipped.
    Long,
    /// The file ends within it.
    Torn,
}

impl Line<'_> {
    /// Whether a file that has this line and no record is no trail. Of a line that is being written, or that a crash
    /// cut off, there is the beginning, or zeros.
    pub(super) fn is_foreign(&self) -> bool {
        match self.bytes.first() {
            None => false,
            Some(b'{' | 0) => self.fault != Some(Fault::Torn),
            Some(_) => true,
        }
    }
}

/// The error of a file that has lines and no record, as an answer from it would look like one about a quiet time.
pub(super) fn no_record() -> io::Error {
    let message = "this is not an audit trail, as none of its lines is a record; decompress a file that is compressed, and undo a \
                   conversion of its line ends";
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Adds the path to an error: errors of the system lack it, and a trail has several files.
pub fn of_file(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Reads the last bytes of a file, `most` at most.
pub(super) fn end_of(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(most)))?;
    let mut end = Vec::new();
    file.take(most).read_to_end(&mut end)?;
    Ok(end)
}

impl Lines<BufReader<File>> {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::new(BufReader::with_capacity(1 << 16, File::open(path)?)))
    }
}

impl<R: BufRead> Lines<R> {
    pub(super) const fn new(reader: R) -> Self {
        Self { reader, buffer: Vec::new(), number: 0 }
    }

    /// Returns the next line, or none at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.buffer.clear();
        let read = self.reader.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut self.buffer)?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        let fault = if self.buffer.pop_if(|last| *last == b'\n').is_some() {
            None
        } else if read == MAX_LINE {
            self.reader.skip_until(b'\n')?;
            Some(Fault::Long)
        } else {
            Some(Fault::Torn)
        };
        Ok(Some(Line { number: self.number, bytes: &self.buffer, fault }))
    }
}
