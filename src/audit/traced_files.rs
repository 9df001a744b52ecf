//! The files of a trail, read line by line for a trace.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashSet},
    ops::ControlFlow,
    path::PathBuf,
};

use uuid::Uuid;

use super::{
    lines::{Fault, Lines, no_record, of_file},
    note::code,
    replay::{ReplayError, ReplayInputs},
    traced_line::Line,
};

/// The files of a trail. A damaged line does not stop a trace: it is skipped and reported.
#[derive(Debug)]
pub struct Files {
    paths: Vec<PathBuf>,
    /// Lines that cannot be read, by the place of the file in `paths`.
    unreadable: RefCell<BTreeSet<(usize, u64)>>,
}

impl Files {
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, unreadable: RefCell::default() }
    }

    /// Returns the inputs of a request's decision by its id, from the first of its records that can be read.
    pub fn request(&self, id: Uuid) -> Result<Option<ReplayInputs>, ReplayError> {
        let mut found = None;
        self.scan(&format!("\"correlation_uid\":\"{id}\""), |line| {
            match ReplayInputs::parse(line) {
                Ok(request) if request.id == id => found = Some(request),
                // A claim of another request, or a record of another kind, can name the request too.
                Ok(_) | Err(ReplayError::Kind(_)) => {}
                Err(_) => return None,
            }
            Some(if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(found)
    }

    /// Calls `look` once for each request, with the inputs of its decision.
    pub fn requests(&self, mut look: impl FnMut(&ReplayInputs)) -> Result<(), ReplayError> {
        let mut seen = HashSet::new();
        self.scan(&format!("\"event_code\":\"{}", code::REQUEST), |line| {
            match ReplayInputs::parse(line) {
                Ok(inputs) if seen.insert(inputs.id) => look(&inputs),
                // A later record of the request, or another kind of record.
                Ok(_) | Err(ReplayError::Kind(_)) => {}
                Err(_) => return None,
            }
            Some(ControlFlow::Continue(()))
        })
    }

    /// Reads the lines whose event code begins with `code`. Seals are not checked here.
    pub(super) fn each(&self, code: &str, mut read: impl FnMut(Line)) -> Result<(), ReplayError> {
        self.scan(&format!("\"event_code\":\"{code}"), |line| {
            read(serde_json::from_slice(line).ok()?);
            Some(ControlFlow::Continue(()))
        })
    }

    /// Returns the relevant lines that could not be read: files and line numbers.
    pub fn unreadable(&self) -> Vec<(PathBuf, u64)> {
        let known = self.unreadable.borrow();
        known.iter().filter_map(|(file, number)| Some((self.paths.get(*file)?.clone(), *number))).collect()
    }

    /// Calls `look` for the lines with these bytes near their beginning. It returns `None` for a line that it cannot
    /// read.
    fn scan(&self, wanted: &str, mut look: impl FnMut(&[u8]) -> Option<ControlFlow<()>>) -> Result<(), ReplayError> {
        for (file, path) in self.paths.iter().enumerate() {
            let mut lines = Lines::open(path).map_err(of_file(path))?;
            let (mut is_foreign, mut has_record) = (false, false);
            while let Some(line) = lines.next().map_err(of_file(path))? {
                // The metadata is near the beginning, before anything that a caller controls.
                let head = line.bytes.get(..line.bytes.len().min(512)).unwrap_or_default();
                is_foreign |= line.is_foreign();
                has_record = has_record || memchr::memmem::find(head, b"\"event_code\":\"").is_some();
                if memchr::memmem::find(head, wanted.as_bytes()).is_none() {
                    continue;
                }
                let looked = match line.fault {
                    None => look(line.bytes),
                    // It is being written.
                    Some(Fault::Torn) => Some(ControlFlow::Continue(())),
                    Some(Fault::Long) => None,
                };
                match looked {
                    Some(ControlFlow::Continue(())) => {}
                    Some(ControlFlow::Break(())) => return Ok(()),
                    None => {
                        self.unreadable.borrow_mut().insert((file, line.number));
                    }
                }
            }
            if is_foreign && !has_record {
                return Err(of_file(path)(no_record()).into());
            }
        }
        Ok(())
    }
}
