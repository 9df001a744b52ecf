//! The last good key set of an issuer on disk, for a start during an outage of the issuer.
//!
//! Whoever can write to the folder can forge tokens, so it belongs to Doorward alone.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::keys::MAX_KEY_SET;
use crate::clock::Timestamp;

/// What one file holds.
#[derive(Debug, Serialize, Deserialize)]
pub struct KeptKeys {
    issuer: String,
    /// When the set was fetched, in milliseconds since the Unix epoch.
    fetched: i64,
    /// As the issuer sent it; it is read again with all checks.
    jwks: Box<RawValue>,
}

impl KeptKeys {
    /// `None` if `jwks` is not JSON.
    pub fn new(issuer: &str, fetched: Timestamp, jwks: &[u8]) -> Option<Self> {
        let jwks = serde_json::from_slice(jwks).ok()?;
        Some(Self { issuer: issuer.to_owned(), fetched: fetched.as_millis(), jwks })
    }

    pub fn fetched(&self) -> Timestamp {
        Timestamp::from_millis(self.fetched)
    }

    pub fn jwks(&self) -> &[u8] {
        self.jwks.get().as_bytes()
    }

    /// The set kept for `issuer`, if there is one. A file of another issuer is an error.
    pub fn load(folder: &Path, issuer: &str) -> io::Result<Option<Self>> {
        let file = match File::open(path(folder, issuer)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut text = Vec::new();
        file.take(2 * MAX_KEY_SET as u64).read_to_end(&mut text)?;
        let kept: Self = serde_json::from_slice(&text)?;
        if kept.issuer != issuer {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the kept key set is of another issuer"));
        }
        Ok(Some(kept))
    }

    /// Writes beside and renames, so that a crash leaves the old set or the new one.
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let path = path(folder, &self.issuer);
        let beside = path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&beside, &path)
    }
}

fn path(folder: &Path, issuer: &str) -> PathBuf {
    let hash = digest::digest(&digest::SHA256, issuer.as_bytes());
    let name: String = hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    folder.join(format!("{name}.jwks.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_kept_for_its_own_issuer_only() {
        let folder = tempfile::tempdir().unwrap();
        assert!(KeptKeys::load(folder.path(), "https://a").unwrap().is_none());
        let kept = KeptKeys::new("https://a", Timestamp::from_secs(7), br#"{"keys":[]}"#).unwrap();
        kept.save(folder.path()).unwrap();
        let loaded = KeptKeys::load(folder.path(), "https://a").unwrap().unwrap();
        assert_eq!((loaded.fetched(), loaded.jwks()), (Timestamp::from_secs(7), &br#"{"keys":[]}"#[..]));

        fs::copy(path(folder.path(), "https://a"), path(folder.path(), "https://b")).unwrap();
        assert!(KeptKeys::load(folder.path(), "https://b").is_err());
        fs::write(path(folder.path(), "https://a"), "half a fi").unwrap();
        assert!(KeptKeys::load(folder.path(), "https://a").is_err());
    }
}
