//! The session handles of this person, by the address where each is valid: one file, readable by nobody else.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Address, Failure, state_folder};
use crate::{
    atomic_file::{could_replace, replace},
    clock::Timestamp,
};

/// The mode of files with a credential, or with a reference to one: readable by their owner only.
pub(crate) const MODE: u32 = 0o600;

/// A session of a program. Never printed.
#[derive(Clone, Serialize, Deserialize)]
pub struct Entry {
    pub handle: String,
    /// RFC 3339.
    pub expires: String,
    pub username: String,
    /// The authorities that are trusted there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

impl Entry {
    /// When it ends. An end that cannot be parsed counts as past.
    pub fn ends(&self) -> Timestamp {
        Timestamp::from_rfc3339(&self.expires).unwrap_or_default()
    }
}

#[derive(Default, Serialize, Deserialize)]
pub struct SessionFile {
    sessions: BTreeMap<String, Entry>,
}

impl SessionFile {
    pub fn read() -> Result<Self, Failure> {
        Self::of(&file(&state_folder()?))
    }

    fn of(path: &Path) -> Result<Self, Failure> {
        let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(told(&error).into()),
        };
        if fs::metadata(path)?.mode() & 0o077 != 0 {
            return Err(told(
                &"others may read it, so its sessions may be known; run `chmod 600` on it, and `doorward \
                              logout`",
            )
            .into());
        }
        // As a full disk or a system crash may leave it.
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_str(&text).map_err(|error| {
            let path = path.display();
            format!(
                "{path} is damaged ({error}); remove it, sign in again, and end the sessions that it had in a browser, under \"Your \
                 sessions\" (`/.doorward/sessions`)"
            )
            .into()
        })
    }

    /// Changes the file atomically, one process at a time. Returns the result of `change`.
    pub fn change<T>(change: impl FnOnce(&mut Self) -> T) -> Result<T, Failure> {
        Self::change_in(&state_folder()?, change)
    }

    /// Whether [`Self::change`] would currently succeed.
    pub fn check() -> Result<(), Failure> {
        Self::check_in(&state_folder()?)
    }

    fn check_in(folder: &Path) -> Result<(), Failure> {
        let told = |error: io::Error| format!("sessions cannot be stored in {}: {error}", folder.display());
        let _lock = lock(folder).map_err(told)?;
        let path = file(folder);
        Self::of(&path)?;
        Ok(could_replace(&path, MODE).map_err(|error| format!("sessions cannot be stored: {error}"))?)
    }

    fn change_in<T>(folder: &Path, change: impl FnOnce(&mut Self) -> T) -> Result<T, Failure> {
        let _lock = lock(folder)?;
        let path = file(folder);
        let mut kept = Self::of(&path)?;
        let given = change(&mut kept);
        replace(&path, &serde_json::to_vec_pretty(&kept)?, MODE)?;
        Ok(given)
    }

    /// Returns the former entry.
    pub fn put(&mut self, address: &Address, entry: Entry) -> Option<Entry> {
        self.sessions.insert(address.to_string(), entry)
    }

    pub fn remove(&mut self, address: &Address) {
        self.sessions.remove(address.as_str());
    }

    pub fn get(&self, address: &Address) -> Option<&Entry> {
        self.sessions.get(address.as_str())
    }

    /// The only entry.
    pub fn only(self) -> Result<(Address, Entry), Failure> {
        let mut sessions = self.sessions.into_iter();
        match (sessions.next(), sessions.next()) {
            (Some((address, entry)), None) => Ok((address.parse()?, entry)),
            (None, _) => Err("you are not signed in; run `doorward login URL`".into()),
            (Some((one, _)), Some((other, _))) => {
                Err(format!("you are signed in at several addresses, such as {one} and {other}; name one").into())
            }
        }
    }
}

/// Locks the file against other processes while this is held.
fn lock(folder: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(MODE).open(folder.join("lock"))?;
    lock.lock()?;
    Ok(lock)
}

fn file(folder: &Path) -> PathBuf {
    folder.join("sessions.json")
}

/// The kind of a path that is not a regular file.
pub fn not_a_file(found: &fs::Metadata) -> Option<&'static str> {
    match found.file_type() {
        found if found.is_file() => None,
        found if found.is_symlink() => Some("a symbolic link"),
        found if found.is_dir() => Some("a folder"),
        _ => Some("a pipe, a socket or a device"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn handles_can_be_read_by_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("state/doorward");
        let (one, other): (Address, Address) =
            ("https://a.example".parse().unwrap(), "https://b.example".parse().unwrap());
        let entry = |handle: &str| Entry {
            handle: handle.to_owned(),
            expires: "2026-01-31T18:00:00Z".to_owned(),
            username: "alice".to_owned(),
            ca: None,
        };
        assert!(SessionFile::of(&file(&folder)).unwrap().only().is_err(), "nobody is signed in");
        assert!(SessionFile::change_in(&folder, |kept| kept.put(&one, entry("dws_0"))).unwrap().is_none());
        let former = SessionFile::change_in(&folder, |kept| kept.put(&one, entry("dws_1"))).unwrap();
        assert_eq!(former.unwrap().handle, "dws_0");
        assert_eq!(SessionFile::of(&file(&folder)).unwrap().only().unwrap().1.handle, "dws_1");
        SessionFile::change_in(&folder, |kept| kept.put(&other, entry("dws_2"))).unwrap();
        let kept = SessionFile::of(&file(&folder)).unwrap();
        assert_eq!((&*kept.get(&one).unwrap().handle, &*kept.get(&other).unwrap().handle), ("dws_1", "dws_2"));
        assert!(kept.only().err().unwrap().to_string().contains("name one"));
        for (path, mode) in [(folder.clone(), 0o700), (file(&folder), 0o600)] {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "nothing but the file and its lock");

        SessionFile::change_in(&folder, |kept| kept.remove(&one)).unwrap();
        assert!(SessionFile::of(&file(&folder)).unwrap().get(&one).is_none());
        // A file that others could read no longer counts as secret.
        fs::set_permissions(file(&folder), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(SessionFile::of(&file(&folder)).err().unwrap().to_string().contains("chmod 600"));
    }

    #[test]
    fn an_empty_file_counts_as_missing_and_a_damaged_one_gives_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path());
        for (text, is_none) in [("", true), ("\n", true), ("{\"sess", false), ("[]", false)] {
            let _ = fs::remove_file(&path);
            replace(&path, text.as_bytes(), MODE).unwrap();
            match (SessionFile::of(&path), is_none) {
                (Ok(kept), true) => assert!(kept.sessions.is_empty()),
                (Err(error), false) => {
                    let told = error.to_string();
                    assert!(told.contains("is damaged") && told.contains("remove it, sign in again"), "{told}");
                }
                (Ok(_), false) | (Err(_), true) => panic!("{text:?}"),
            }
        }
    }

    #[test]
    fn the_session_file_is_checked_before_there_is_a_session() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("doorward");
        SessionFile::check_in(&folder).unwrap();
        assert!(!file(&folder).exists(), "nothing is written");
        fs::write(file(&folder), "{").unwrap();
        assert!(SessionFile::check_in(&folder).is_err(), "damaged");
        fs::remove_file(file(&folder)).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        fs::write(&folder, "").unwrap();
        let told = SessionFile::check_in(&folder).unwrap_err().to_string();
        assert!(told.starts_with(&format!("sessions cannot be stored in {}: ", folder.display())), "{told}");
    }
}
