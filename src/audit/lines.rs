//! Reads a trail line by line in bounded memory.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    path::Path,
    thread,
    time::Duration,
};

use super::chain::MAX_LINE;

/// How often, and after which pause, the end of a line is looked for that may just be being written.
const TRIES: usize = 5;
const PAUSE: Duration = Duration::from_millis(20);

/// The lines of a file. The rest of a line that is longer than any line of a trail is skipped.
#[derive(Debug)]
pub(super) struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    number: u64,
    is_patient: bool,
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
        Self { reader, buffer: Vec::new(), number: 0, is_patient: false }
    }

    /// Waits a moment for the rest of the last line: of a trail in use it may just be being written. It blocks the
    /// thread for a tenth of a second at most.
    pub(super) fn patient(self) -> Self {
        Self { is_patient: true, ..self }
    }

    /// Returns the next line, or none at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.buffer.clear();
        self.read_on()?;
        if self.buffer.is_empty() {
            return Ok(None);
        }
        let tries = if self.is_patient { TRIES } else { 0 };
        for _ in 0..tries {
            if self.buffer.ends_with(b"\n") || self.buffer.len() == MAX_LINE {
                break;
            }
            thread::sleep(PAUSE);
            self.read_on()?;
        }
        self.number += 1;
        let fault = if self.buffer.pop_if(|last| *last == b'\n').is_some() {
            None
        } else if self.buffer.len() == MAX_LINE {
            self.reader.skip_until(b'\n')?;
            Some(Fault::Long)
        } else {
            Some(Fault::Torn)
        };
        Ok(Some(Line { number: self.number, bytes: &self.buffer, fault }))
    }

    /// Reads up to the end of the line, of the file, or of the room for a line.
    fn read_on(&mut self) -> io::Result<()> {
        let room = MAX_LINE - self.buffer.len();
        self.reader.by_ref().take(room as u64).read_until(b'\n', &mut self.buffer).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that grows each time that its end was reached.
    struct Growing(Vec<&'static [u8]>);

    impl Read for Growing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let part = self.0.remove(0);
            buffer[..part.len()].copy_from_slice(part);
            Ok(part.len())
        }
    }

    /// `audit verify` called a line cut off that was just being written.
    #[test]
    fn a_line_that_is_being_written_is_waited_for() {
        let last = |parts: &[&'static [u8]], is_patient: bool| {
            let lines = Lines::new(BufReader::new(Growing(parts.to_vec())));
            let mut lines = if is_patient { lines.patient() } else { lines };
            let mut last = None;
            while let Some(line) = lines.next().unwrap() {
                last = Some((String::from_utf8_lossy(line.bytes).into_owned(), line.fault));
            }
            last.unwrap()
        };
        let grows: &[&[u8]] = &[b"a\nb", b"", b"c", b"", b"\n"];
        assert_eq!(last(grows, true), ("bc".to_owned(), None));
        let stays: &[&[u8]] = &[b"a\nb"];
        for is_patient in [true, false] {
            assert_eq!(last(stays, is_patient), ("b".to_owned(), Some(Fault::Torn)), "{is_patient}");
        }
    }
}
