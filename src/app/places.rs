//! Checks of the places that Doorward writes to, without a lock or a change.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
};

use super::policies;
use crate::{
    admin::socket,
    assertions::{self, Keys},
    audit::{self, Trail},
    config::{
        raw,
        report::At,
        resolver::{Resolver, folder_of},
    },
    sessions::keyring::{self, KeyRing},
    snapshot::Resolved,
    store::{Embedded, Settings},
};

/// Reports what would be in the way of the files that a start opens: for `doorward check`.
pub fn check_places(root: &raw::Root, resolved: &Resolved, resolver: &mut Resolver) {
    let store = resolver.path(&root.store.path);
    if matches!(resolved.store, Some(Settings::Embedded)) {
        report(Embedded::recognize(&store), &["store", "path"], resolver);
    }
    report(KeyRing::examine(&store.with_extension(keyring::KEY_EXTENSION)), &["store", "path"], resolver);
    report(Keys::examine(&store.with_extension(assertions::KEY_EXTENSION)), &["store", "path"], resolver);
    report(policies::examine(&policies::beside(&store)), &["store", "path"], resolver);
    if let Some(audit) = &resolved.audit {
        report(Trail::examine_keys(audit, folder_of(&store)), &["audit"], resolver);
        report(Trail::examine(audit), &["audit", "sink", "file", "path"], resolver);
    }
    if let Some(path) = &resolved.admin.socket {
        report(socket::is_there(path), &["admin", "socket"], resolver);
    }
}

/// Returns the files that a first start creates and that are missing, or empty, although an earlier start has left
/// others: what was in them is lost. `store` is the place of the embedded store, even if another is used.
pub(super) fn lost(store: &Path, is_embedded: bool, audit: &audit::Settings) -> Vec<PathBuf> {
    let is_there = |path: &Path| std::fs::metadata(path).is_ok_and(|found| found.len() > 0 || !found.is_file());
    let keys = [keyring::KEY_EXTENSION, assertions::KEY_EXTENSION].map(|extension| store.with_extension(extension));
    // A first start that failed may have left the store and the keys of the trail, but none of these.
    let was_started = keys.iter().map(PathBuf::as_path).chain(audit.file()).any(is_there);
    let mut made = keys.to_vec();
    made.extend(audit.key_files(folder_of(store)));
    made.extend(is_embedded.then(|| store.to_owned()));
    made.retain(|path| was_started && !is_there(path));
    made
}

/// Reports an error at a setting. Its text says what to do.
fn report<T>(found: Result<T, impl Display>, setting: &[&str], resolver: &mut Resolver) {
    if let Err(error) = found {
        let at = setting.iter().fold(At::root(), |at, key| at.key(key));
        resolver.error(&at, error.to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Everybody was signed out, or had their revocation forgotten, and neither log nor trail said a word.
    #[test]
    fn a_file_that_is_missing_beside_others_is_lost_and_at_a_first_start_none_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let store = at("doorward.redb");
        let egress = crate::egress::Egress::direct(None, None).unwrap();
        let mut resolver = Resolver::new(folder.path());
        let audit = audit::Settings::resolve(&raw::Audit::default(), &egress, &mut resolver, &At::root()).unwrap();
        let (path, retention) = (at("audit.jsonl"), audit::Retention::default());
        let audit =
            audit::Settings { destination: audit::Destination::File { path, max_size: 1 << 20, retention }, ..audit };
        assert!(lost(&store, true, &audit).is_empty());
        let keys = ["doorward.session.key", "doorward.assertion.pem", "audit-chain.key", "audit-checkpoint.pem"];
        let all = [&keys[..], &["doorward.redb"]].concat();
        // As a first start that failed may leave them.
        for name in ["doorward.redb", "audit-chain.key"] {
            fs::write(at(name), "x").unwrap();
        }
        assert!(lost(&store, true, &audit).is_empty());
        for name in &all {
            fs::write(at(name), "x").unwrap();
        }
        assert!(lost(&store, true, &audit).is_empty());
        for name in &all {
            fs::write(at(name), "").unwrap();
            assert_eq!(lost(&store, true, &audit), [at(name)], "empty");
            fs::remove_file(at(name)).unwrap();
            assert_eq!(lost(&store, true, &audit), [at(name)], "removed");
            fs::write(at(name), "x").unwrap();
        }
        fs::remove_file(&store).unwrap();
        assert!(lost(&store, false, &audit).is_empty(), "with Redis there is none");
        for name in keys {
            fs::remove_file(at(name)).unwrap();
        }
        fs::write(at("audit.jsonl"), "{}").unwrap();
        assert_eq!(lost(&store, true, &audit).len(), all.len(), "only the trail is there");
    }

    /// `check` said that all was well, and the start failed.
    #[test]
    fn key_files_that_a_start_cannot_use_are_reported_and_those_it_makes_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("doorward.redb");
        let (session, assertion) =
            (store.with_extension(keyring::KEY_EXTENSION), store.with_extension(assertions::KEY_EXTENSION));
        let egress = crate::egress::Egress::direct(None, None).unwrap();
        let mut resolver = Resolver::new(folder.path());
        let audit =
            audit::Settings::resolve(&raw::Audit::default(), &egress, &mut resolver, &At::root().key("audit")).unwrap();
        let policies = policies::beside(&store);
        let examined = || {
            [
                KeyRing::examine(&session).map_err(|error| error.to_string()),
                Keys::examine(&assertion).map_err(|error| error.to_string()),
                Trail::examine_keys(&audit, folder.path()).map_err(|error| error.to_string()),
                policies::examine(&policies).map_err(|error| error.to_string()),
            ]
        };
        assert!(examined().iter().all(Result::is_ok), "a first start makes them");
        KeyRing::load_or_create(&session).unwrap();
        Keys::load_or_create(&assertion).unwrap();
        fs::create_dir(&policies).unwrap();
        assert!(examined().iter().all(Result::is_ok));
        let files = [session.clone(), assertion.clone(), folder.path().join(audit::CHAIN_KEY_FILE)];
        for (index, file) in files.iter().enumerate() {
            let good = fs::read(file).ok();
            for bad in ["", "c2hvcnQ="] {
                fs::write(file, bad).unwrap();
                let told = examined()[index].clone().unwrap_err();
                assert!(told.contains(&file.display().to_string()) && told.contains("restore it"), "{told}");
            }
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
            assert!(examined()[index].is_err(), "a folder: {}", file.display());
            fs::remove_dir(file).unwrap();
            good.map_or(Ok(()), |good| fs::write(file, good)).unwrap();
        }
        fs::write(folder.path().join(audit::CHECKPOINT_KEY_FILE), "half").unwrap();
        assert!(examined()[2].is_err());
        fs::remove_dir(&policies).unwrap();
        fs::write(&policies, "").unwrap();
        assert!(examined()[3].as_ref().unwrap_err().contains("is not a folder"));
    }
}
