//! Files that Doorward makes once and finds again at each start, such as keys: they stand there whole or not at all.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use zeroize::Zeroizing;

use crate::config::resolver::folder_of;

/// What stands in a file; none if there is no such file.
pub(crate) fn read(path: &Path) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(named(path, error.kind(), &error)),
    }
}

/// Writes a file, in place of one that is there. Once this has returned, no loss of power undoes it.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let write = || {
        // One that was left there would keep its own mode.
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        File::open(folder_of(path))?.sync_all()
    };
    write().map_err(|error| named(path, error.kind(), &error))
}

/// That what a file holds is of no use.
pub(crate) fn invalid(path: &Path, why: &(impl fmt::Display + ?Sized)) -> io::Error {
    named(path, io::ErrorKind::InvalidData, why)
}

fn named(path: &Path, kind: io::ErrorKind, why: &(impl fmt::Display + ?Sized)) -> io::Error {
    io::Error::new(kind, format!("{}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_a_process_left_that_died_half_way_is_no_hindrance() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        assert!(read(&path).unwrap().is_none());
        fs::write(path.with_extension("new"), "half").unwrap();
        assert!(read(&path).unwrap().is_none());
        write(&path, b"whole", 0o600).unwrap();
        assert_eq!(&**read(&path).unwrap().unwrap(), b"whole");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_error_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none").join("a.key");
        let error = write(&path, b"", 0o600).unwrap_err();
        assert!(error.to_string().contains("none/a.key"), "{error}");
    }
}
