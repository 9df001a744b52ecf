//! The last valid key set of an issuer on disk, with its discovery document, for a start while the issuer is down.
//!
//! Write access to the folder allows forging tokens, so only Doorward may have it.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{discovery::MAX_METADATA, keys::MAX_KEY_SET};
use crate::{atomic_file, clock::Timestamp};

/// The content of a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeptKeys {
    issuer: String,
    /// When the set was last confirmed to be the issuer's, in milliseconds since the Unix epoch.
    fetched: i64,
    /// The set as the issuer sent it; it is parsed again with all checks.
    jwks: Box<RawValue>,
    /// The discovery document as the issuer sent it, if it is needed for the endpoints of introspection and login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    discovery: Option<Box<RawValue>>,
}

impl KeptKeys {
    /// `None` if `jwks` is not JSON. A discovery document that is not JSON is left out.
    pub fn new(issuer: &str, fetched: Timestamp, jwks: &[u8], discovery: Option<&[u8]>) -> Option<Self> {
        let jwks = serde_json::from_slice(jwks).ok()?;
        let discovery = discovery.and_then(|document| serde_json::from_slice(document).ok());
        Some(Self { issuer: issuer.to_owned(), fetched: fetched.as_millis(), jwks, discovery })
    }

    pub fn fetched(&self) -> Timestamp {
        Timestamp::from_millis(self.fetched)
    }

    pub fn jwks(&self) -> &[u8] {
        self.jwks.get().as_bytes()
    }

    pub fn discovery(&self) -> Option<&[u8]> {
        self.discovery.as_ref().map(|document| document.get().as_bytes())
    }

    /// Reads the file for `issuer`, if there is one. A file of another issuer is an error, and so is one that must not be
    /// used any more `now`. Errors name the file.
    pub fn load(folder: &Path, issuer: &str, now: Timestamp, max_stale: Duration) -> io::Result<Option<Self>> {
        let path = path(folder, issuer);
        let kept = Self::read(&path, issuer).and_then(|kept| {
            let why = match kept.as_ref().map(Self::fetched) {
                // Its age is unknown.
                Some(fetched) if fetched > now => format!("it was confirmed on {fetched}, which is in the future"),
                Some(fetched) if now.since(fetched) >= max_stale => {
                    format!("it was confirmed on {fetched}, which is longer ago than `keys.max_stale`")
                }
                _ => return Ok(kept),
            };
            Err(io::Error::new(io::ErrorKind::InvalidData, why))
        });
        kept.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    fn read(path: &Path, issuer: &str) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut text = Vec::new();
        file.take(2 * (MAX_KEY_SET + MAX_METADATA) as u64).read_to_end(&mut text)?;
        let kept: Self = serde_json::from_slice(&text)?;
        if kept.issuer != issuer {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is of another issuer"));
        }
        Ok(Some(kept))
    }

    /// Writes the file atomically: a crash leaves the old set or the new one.
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        atomic_file::write(&path(folder, &self.issuer), &serde_json::to_vec(self)?, 0o600)
    }
}

fn path(folder: &Path, issuer: &str) -> PathBuf {
    let hash = digest::digest(&digest::SHA256, issuer.as_bytes());
    let name = HEXLOWER.encode(hash.as_ref().get(..16).unwrap_or_default());
    folder.join(format!("{name}.jwks.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FETCHED: Timestamp = Timestamp::from_secs(7);

    fn load(folder: &Path, issuer: &str) -> io::Result<Option<KeptKeys>> {
        KeptKeys::load(folder, issuer, FETCHED, Duration::from_secs(60))
    }

    /// Nobody learnt why it did not help.
    #[test]
    fn a_set_that_is_too_old_or_from_the_future_is_refused_by_the_name_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let kept = KeptKeys::new("https://a", FETCHED, br#"{"keys":[]}"#, None).unwrap();
        kept.save(folder.path()).unwrap();
        for (seconds, told) in [(6, Some("in the future")), (7, None), (66, None), (67, Some("`keys.max_stale`"))] {
            let loaded =
                KeptKeys::load(folder.path(), "https://a", Timestamp::from_secs(seconds), Duration::from_secs(60));
            let why = loaded.err().map(|error| error.to_string());
            assert_eq!(why.is_some(), told.is_some(), "{seconds}: {why:?}");
            let is_told = |why: &str| why.contains(".jwks.json") && why.contains(told.unwrap_or_default());
            assert!(why.as_deref().is_none_or(is_told), "{seconds}: {why:?}");
        }
    }

    #[test]
    fn a_set_is_kept_for_its_own_issuer_only() {
        let folder = tempfile::tempdir().unwrap();
        assert!(load(folder.path(), "https://a").unwrap().is_none());
        let document = br#"{"issuer":"https://a"}"#;
        let kept = KeptKeys::new("https://a", FETCHED, br#"{"keys":[]}"#, Some(document)).unwrap();
        kept.save(folder.path()).unwrap();
        let loaded = load(folder.path(), "https://a").unwrap().unwrap();
        assert_eq!((loaded.fetched(), loaded.jwks()), (FETCHED, &br#"{"keys":[]}"#[..]));
        assert_eq!(loaded.discovery(), Some(&document[..]));

        fs::copy(path(folder.path(), "https://a"), path(folder.path(), "https://b")).unwrap();
        assert!(load(folder.path(), "https://b").is_err());
        fs::write(path(folder.path(), "https://a"), "half a fi").unwrap();
        assert!(load(folder.path(), "https://a").unwrap_err().to_string().contains(".jwks.json"));
    }
}
