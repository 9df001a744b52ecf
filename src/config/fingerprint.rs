//! Digests of the files of a configuration, to tell whether any of them has changed since it was read.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{SHA256, digest};

use super::source::MAX_BYTES;

/// Files and the digests of their contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(BTreeMap<PathBuf, Content>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    /// It cannot be read, or is too large.
    Absent,
    Digest([u8; 32]),
    /// It was read twice, and had changed in between.
    Torn,
}

impl Fingerprint {
    /// Records the content that was read, or `None` if the file could not be read.
    pub fn record(&mut self, path: &Path, bytes: Option<&[u8]>) {
        let content = Content::of(bytes);
        match self.0.get_mut(path) {
            Some(seen) if *seen != content => *seen = Content::Torn,
            Some(_) => {}
            None => _ = self.0.insert(path.to_owned(), content),
        }
    }

    /// Returns the fingerprint of the same files as they are now.
    #[must_use]
    pub fn now(&self) -> Self {
        Self(self.0.keys().map(|path| (path.clone(), Content::of(read(path).ok().as_deref()))).collect())
    }

    /// Whether every file still has the content that was read.
    pub fn is_current(&self) -> bool {
        *self == self.now()
    }

    /// Adds the files of another fingerprint that are not in this one.
    pub fn add(&mut self, other: &Self) {
        for (path, content) in &other.0 {
            self.0.entry(path.clone()).or_insert_with(|| content.clone());
        }
    }

    /// Whether another fingerprint has the same content for all these files.
    pub fn is_part_of(&self, other: &Self) -> bool {
        self.0.iter().all(|(path, content)| other.0.get(path) == Some(content))
    }

    /// Whether both have the same content for one file.
    pub fn agrees(&self, other: &Self, path: &Path) -> bool {
        self.0.get(path) == other.0.get(path)
    }

    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(PathBuf::as_path)
    }
}

impl Content {
    fn of(bytes: Option<&[u8]>) -> Self {
        match bytes.and_then(|bytes| digest(&SHA256, bytes).as_ref().try_into().ok()) {
            Some(digest) => Self::Digest(digest),
            None => Self::Absent,
        }
    }
}

/// Reads a regular file of at most [`MAX_BYTES`] bytes.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    // Checked before it is opened, as opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(cannot)?.is_file() {
        return Err("is not a file".to_owned());
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)).map_err(cannot)?;
    if bytes.len() > MAX_BYTES {
        return Err(format!("is larger than {} MiB", MAX_BYTES >> 20));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_a_loss_and_a_change_while_reading_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "one").unwrap();
        let mut print = Fingerprint::default();
        print.record(&path, Some(b"one"));
        assert!(print.is_current());

        std::fs::write(&path, "two").unwrap();
        assert!(!print.is_current());
        print.record(&path, Some(b"two"));
        assert!(!print.is_current(), "read as one and as two");

        std::fs::remove_file(&path).unwrap();
        let mut print = Fingerprint::default();
        print.record(&path, None);
        assert!(print.is_current());
        std::fs::write(&path, "").unwrap();
        assert!(!print.is_current());
    }
}
