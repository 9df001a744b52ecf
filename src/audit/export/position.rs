//! The position up to which a receiver is known to have the trail, in a small file that is replaced atomically.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    super::chain::{Link, Mac},
    reader::Place,
};
use crate::atomic_file;

/// A place between two lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) place: Place,
    /// The line before it.
    pub(super) last: Link,
    /// Whether the export has ever been within `max_behind`, from when on the limit applies.
    pub(super) caught_up: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    file: u64,
    offset: u64,
    seq: u64,
    mac: String,
    caught_up: bool,
}

/// Returns the position file of an export, in the folder of the store.
pub(super) fn file_of(folder: &Path, export: &str) -> PathBuf {
    folder.join(format!("audit-export-{export}.position"))
}

/// Reads a position. None if there is none or it is damaged: then the whole trail is sent again, which costs time and
/// loses nothing.
pub(super) fn load(path: &Path) -> io::Result<Option<Position>> {
    let Some(text) = atomic_file::read(path)? else { return Ok(None) };
    let written: Option<Written> = serde_json::from_slice(&text).ok();
    let position = written.and_then(|written| {
        Some(Position {
            place: Place { file: written.file, offset: written.offset },
            last: Link { seq: written.seq, mac: Mac::from_digits(&written.mac)? },
            caught_up: written.caught_up,
        })
    });
    if position.is_none() {
        tracing::error!(path = %path.display(), "the position of an export is damaged; all of the trail is sent again");
    }
    Ok(position)
}

/// Replaces a position durably.
pub(super) fn save(path: &Path, position: &Position) -> io::Result<()> {
    let Position { place, last, caught_up } = position;
    let mac = last.mac.as_str().to_owned();
    let written = Written { file: place.file, offset: place.offset, seq: last.seq, mac, caught_up: *caught_up };
    let mut text = serde_json::to_vec(&written)?;
    text.push(b'\n');
    atomic_file::write(path, &text, 0o600)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_position_is_read_as_it_was_written_and_a_damaged_one_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let path = file_of(folder.path(), "siem");
        assert_eq!(load(&path).unwrap(), None);
        let mac = Mac::from_digits(&"0a".repeat(32)).unwrap();
        let position =
            Position { place: Place { file: 3, offset: 4711 }, last: Link { seq: 12, mac }, caught_up: true };
        save(&path, &position).unwrap();
        assert_eq!(load(&path).unwrap(), Some(position));
        let whole = fs::read(&path).unwrap();
        let upper = String::from_utf8(whole.clone()).unwrap().replace("0a0a", "0A0a").into_bytes();
        for damaged in [&whole[..whole.len() / 2], b"", b"\0\0\0\0", b"{}", &upper] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(load(&path).unwrap(), None);
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(load(&path).is_err(), "what cannot be read is not taken for a first start");
    }
}
