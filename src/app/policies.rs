//! Policies that were in force, stored beside the store by their digests, so that old decisions can be explained.

use std::{
    io,
    path::{Path, PathBuf},
};

use data_encoding::HEXLOWER;

use super::App;
use crate::{atomic_file, authz::Policy, config::resolver::folder_of, sha256::sha256};

/// Returns the folder of stored policies, beside the store.
pub(super) fn beside(store: &Path) -> PathBuf {
    store.with_extension("policies")
}

/// Returns a policy that was in force, in its canonical form; `None` if it is not stored or damaged.
pub fn stored_policy(store: &Path, digest: &str) -> Option<String> {
    // A digest is hexadecimal; anything else must not become part of a path.
    let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    let kept = is_digest.then(|| std::fs::read_to_string(beside(store).join(digest)).ok()).flatten()?;
    (HEXLOWER.encode(&sha256(&[kept.as_bytes()])) == digest).then_some(kept)
}

/// Checks, without a change, whether policies can be stored in what is in the place of their folder.
pub(super) fn examine(folder: &Path) -> io::Result<()> {
    if std::fs::metadata(folder).is_ok_and(|found| !found.is_dir()) {
        let why = format!("{} is not a folder; move it away, and the folder is made", folder.display());
        return Err(io::Error::new(io::ErrorKind::NotADirectory, why));
    }
    Ok(())
}

/// Stores a policy by its digest. A file with that name has the same content, unless a crash or the disk has damaged
/// it.
fn store_in(folder: &Path, digest: &str, source: &str) -> io::Result<()> {
    let path = folder.join(digest);
    if std::fs::read(&path).is_ok_and(|kept| kept == source.as_bytes()) {
        return Ok(());
    }
    let named = |error: io::Error| atomic_file::named(folder, error.kind(), &error);
    examine(folder)?;
    std::fs::create_dir_all(folder).map_err(named)?;
    std::fs::File::open(folder_of(folder)).and_then(|parent| parent.sync_all()).map_err(named)?;
    atomic_file::write(&path, source.as_bytes(), 0o644)
}

impl App {
    /// Stores a policy, so that its decisions can be explained later.
    pub(super) fn store_policy(&self, policy: &Policy) -> io::Result<()> {
        store_in(&self.policies, policy.digest(), policy.source())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_damaged_stored_policy_is_not_used_and_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("doorward.redb");
        let source = "rules: []";
        let digest = HEXLOWER.encode(&sha256(&[source.as_bytes()]));
        let policies = beside(&store);
        store_in(&policies, &digest, source).unwrap();
        assert_eq!(stored_policy(&store, &digest).as_deref(), Some(source));
        for damaged in ["", "rules"] {
            fs::write(policies.join(&digest), damaged).unwrap();
            assert_eq!(stored_policy(&store, &digest), None, "{damaged:?}");
            store_in(&policies, &digest, source).unwrap();
            assert_eq!(stored_policy(&store, &digest).as_deref(), Some(source));
        }
    }
}
