//! Files that Doorward creates once and reads at each start, such as keys, and files that its client stores. They are
//! there as a whole or not at all.

use std::{
    ffi::OsString,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use tempfile::{Builder, NamedTempFile};
use zeroize::Zeroizing;

use crate::config::resolver::folder_of;

/// Reads a file that only its owner may read. If it does not exist, it is created first, with what `make` returns.
///
/// If two processes start at once on a new folder, the second finds what the first has written: with a key of its own
/// it could not read what the other seals.
pub(crate) fn read_or_make(
    path: &Path,
    make: impl FnOnce() -> io::Result<Zeroizing<Vec<u8>>>,
) -> io::Result<Zeroizing<Vec<u8>>> {
    if let Some(found) = read(path)? {
        return Ok(found);
    }
    let made = make()?;
    let write = || {
        let unfinished = beside(path, 0o600)?;
        fill(unfinished.as_file(), &made)?;
        match unfinished.persist_noclobber(path) {
            Ok(_) => last(path).map(|()| true),
            Err(taken) if taken.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(failed) => Err(failed.error),
        }
    };
    if write().map_err(|error| named(path, error.kind(), &error))? {
        return Ok(made);
    }
    read(path)?.ok_or_else(|| named(path, io::ErrorKind::NotFound, "it was created and removed again"))
}

/// Reads a file; `None` if it does not exist.
pub(crate) fn read(path: &Path) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(named(path, error.kind(), &error)),
    }
}

/// Checks, without a change, what is in the place of a file that [`read_or_make`] reads. Nothing yet, or a file that
/// this user may not read, is in order.
pub(crate) fn examine<T>(path: &Path, parse: impl FnOnce(&[u8]) -> io::Result<T>) -> io::Result<()> {
    // Reading a pipe would wait for its other end.
    if fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return Ok(());
    }
    match read(path) {
        Ok(Some(found)) => parse(found.as_slice()).map(drop),
        Ok(None) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes a file, replacing an existing one. Once this has returned, the file is durable.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace(path, bytes, mode)?;
    last(path).map_err(|error| named(path, error.kind(), &error))
}

/// Writes a file, replacing an existing one atomically. A power failure may undo it, and then leaves the previous file.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let replace = || {
        let unfinished = beside(path, mode)?;
        fill(unfinished.as_file(), bytes)?;
        unfinished.persist(path).map(drop).map_err(|failed| failed.error)
    };
    replace().map_err(|error| named(path, error.kind(), &error))
}

/// Whether [`replace`] would succeed at the moment.
pub(crate) fn could_replace(path: &Path, mode: u32) -> io::Result<()> {
    beside(path, mode).map(drop).map_err(|error| named(path, error.kind(), &error))
}

/// A temporary file that is to become the one at `path`, under a name that no other process uses. A process that dies
/// meanwhile leaves it behind.
fn beside(path: &Path, mode: u32) -> io::Result<NamedTempFile<File>> {
    // Hidden, so that somebody's pattern such as `config*` does not match it.
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    Builder::new().prefix(&name).suffix(".new").make_in(folder_of(path), |beside| create(beside, mode))
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

fn fill(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the name of a file durable, too.
fn last(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// The error for a file whose contents cannot be used.
pub(crate) fn invalid(path: &Path, why: &(impl fmt::Display + ?Sized)) -> io::Error {
    named(path, io::ErrorKind::InvalidData, why)
}

/// An error that names the file: errors of the system do not.
pub(crate) fn named(path: &Path, kind: io::ErrorKind, why: &(impl fmt::Display + ?Sized)) -> io::Error {
    io::Error::new(kind, format!("{}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};

    use super::*;

    fn bytes(text: &str) -> io::Result<Zeroizing<Vec<u8>>> {
        Ok(Zeroizing::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn a_file_is_made_once_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        assert_eq!(**read_or_make(&path, || bytes("first")).unwrap(), *b"first");
        assert_eq!(**read_or_make(&path, || panic!("it is there")).unwrap(), *b"first");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn two_processes_that_create_a_file_at_once_both_get_the_content_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        let second = read_or_make(&path, || {
            assert_eq!(**read_or_make(&path, || bytes("first")).unwrap(), *b"first");
            bytes("second")
        });
        assert_eq!(**second.unwrap(), *b"first");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "what the second would have written is gone");
    }

    #[test]
    fn a_file_is_written_in_place_of_another_with_its_own_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy");
        fs::write(&path, "damaged").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        write(&path, b"whole", 0o644).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    }

    #[test]
    fn files_of_one_name_and_several_endings_are_written_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let writers = ["a.token", "a.json", "a"].map(|name| (name, folder.path().join(name)));
        std::thread::scope(|scope| {
            for (name, path) in writers.iter().chain(&writers) {
                scope.spawn(move || (0..50).for_each(|_| replace(path, name.as_bytes(), 0o600).unwrap()));
            }
        });
        for (name, path) in &writers {
            assert_eq!(fs::read_to_string(path).unwrap(), *name);
        }
        could_replace(&writers[0].1, 0o600).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "nothing unfinished is left");
    }

    #[test]
    fn an_error_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none").join("a.key");
        for refused in
            [write(&path, b"", 0o600), could_replace(&path, 0o600), read_or_make(&path, || bytes("x")).map(drop)]
        {
            let error = refused.unwrap_err();
            assert_eq!(error.to_string(), format!("{}: No such file or directory (os error 2)", path.display()));
        }
    }
}
