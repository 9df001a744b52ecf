//! Rereads the files of the configuration in force, such as a token, while a newer configuration is refused.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{
    fingerprint::Fingerprint,
    report::{At, Severity},
    resolver::{Contents, Resolver, Volume},
};

/// The result of resolving a configuration with its files as they are now.
#[derive(Debug)]
pub struct Renewal<T> {
    /// `None` if not even the previous content of the files at fault can be used.
    pub resolved: Option<T>,
    /// All files that were read, with digests of their present content.
    pub fingerprint: Fingerprint,
    /// The content that is used.
    pub contents: Contents,
    /// The files that cannot be used as they are now, or without another of these, and whose previous content is used.
    pub broken: BTreeSet<PathBuf>,
}

/// Resolves a valid configuration with its files as they are now. Those that cannot be used, such as a secret that is
/// empty or a certificate without its new key, keep the content that is `in_force`, with the files that belong to them,
/// so that they do not delay the others.
pub fn renew<T>(base: &Path, volume: &Volume, in_force: &Contents, resolve: impl Fn(&mut Resolver) -> T) -> Renewal<T> {
    let (mut kept, mut broken) = (volume.clone(), BTreeSet::new());
    let mut fingerprint = Fingerprint::default();
    loop {
        let mut resolver = Resolver::with_volume(base, kept.clone());
        let resolved = resolve(&mut resolver);
        // What was read first counts: a file that has changed since is read again.
        fingerprint.add(resolver.fingerprint());
        // Only the first, as it may cause others elsewhere.
        let mut problems = resolver.report.problems().iter();
        let error = problems.find(|problem| problem.severity == Severity::Error);
        let at_fault = error.map(|error| at_fault(&error.at, &resolver, in_force));
        if let Some(found) = at_fault.filter(|found| !found.is_empty()) {
            for path in found {
                kept.keep(&path, in_force);
                broken.insert(path);
            }
            continue;
        }
        let resolved = error.is_none().then_some(resolved);
        if resolved.is_none() {
            // It was none of them.
            broken.clear();
        }
        return Renewal { resolved, fingerprint, contents: resolver.contents().clone(), broken };
    }
}

/// Returns the files that have changed and are named nearest to the place of an error, with those that a list of keys or
/// secrets names beside them: with the new key alone, nothing of the old one would be accepted any more.
fn at_fault(at: &At, resolver: &Resolver, in_force: &Contents) -> Vec<PathBuf> {
    let has_changed = |path: &&Path| resolver.files().contains(*path) && !resolver.contents().agrees(in_force, path);
    let mut place = Some(at.clone());
    while let Some(around) = place {
        let nearest: Vec<&Path> = in_force.named_within(&around).filter(has_changed).collect();
        if !nearest.is_empty() {
            let listed = nearest.iter().flat_map(|path| in_force.listed_with(path)).filter(has_changed);
            return nearest.iter().copied().chain(listed).map(Path::to_owned).collect();
        }
        place = around.parent();
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::values::SecretSource;

    const FILES: [&str; 4] = ["hook", "token", "chain", "key"];

    /// A configuration with two secrets, a certificate and its key, which have the same content.
    fn resolve(resolver: &mut Resolver) -> [Option<String>; 4] {
        let root = At::root();
        let tls = root.key("listeners").index(0).key("tls");
        let places = [
            root.key("webhooks").index(0).key("secret"),
            root.key("upstreams").index(0).key("token"),
            tls.key("chain"),
            tls.key("key"),
        ];
        let mut found = [(); 4].map(|()| None);
        for ((name, at), found) in FILES.iter().zip(&places).zip(&mut found) {
            let secret = resolver.secret(at, &SecretSource::File(name.into()));
            *found = secret.and_then(|secret| secret.expose_str().map(str::to_owned));
        }
        let [_, token, chain, key] = &found;
        if chain.is_some() && key.is_some() && chain != key {
            resolver.error(&tls.key("key"), "it does not belong to the certificate");
        }
        if token.is_none() {
            resolver.error(&root.key("routes").index(0), "its upstream cannot be used");
        }
        found
    }

    /// Changes files, renews, and returns the contents in use and the names of the files that are reported.
    fn renewed(changes: &[(&str, Option<&str>)]) -> (Vec<String>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        for name in FILES {
            fs::write(folder.path().join(name), "old").unwrap();
        }
        let mut resolver = Resolver::new(folder.path());
        resolve(&mut resolver);
        assert!(!resolver.report.has_errors());
        let in_force = resolver.contents().clone();
        for (name, content) in changes {
            let path = folder.path().join(name);
            match content {
                Some(content) => fs::write(path, content).unwrap(),
                None => fs::remove_file(path).unwrap(),
            }
        }
        let renewal = renew(folder.path(), &Volume::default(), &in_force, resolve);
        assert!(renewal.fingerprint.is_current(), "what is broken would be read again for ever");
        let used = renewal.resolved.unwrap().into_iter().flatten().collect();
        let names: BTreeSet<String> =
            renewal.broken.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        let is_same = changes.iter().all(|(name, _)| names.contains(*name));
        assert_eq!(renewal.contents == in_force, is_same, "if nothing was renewed, nothing is put in force");
        // The next renewal goes on from there.
        assert!(FILES.iter().all(|name| renewal.contents.named_within(&At::root()).any(|path| path.ends_with(name))));
        (used, names.into_iter().collect())
    }

    /// A token that the kubelet renews every hour expired, because somebody had emptied the secret of a webhook.
    #[test]
    fn a_file_that_cannot_be_used_keeps_its_content_and_delays_no_other() {
        type Row<'a> = (&'a [(&'a str, Option<&'a str>)], [&'a str; 4], &'a [&'a str]);
        let rows: [Row<'_>; 7] = [
            (&[("token", Some("new"))], ["old", "new", "old", "old"], &[]),
            (&[("hook", Some(""))], ["old", "old", "old", "old"], &["hook"]),
            (&[("hook", Some("")), ("token", Some("new"))], ["old", "new", "old", "old"], &["hook"]),
            (&[("hook", None), ("token", Some("new"))], ["old", "new", "old", "old"], &["hook"]),
            // Between the two copies of a renewed pair.
            (&[("chain", Some("new")), ("token", Some("new"))], ["old", "new", "old", "old"], &["chain"]),
            (
                &[("chain", Some("new")), ("key", Some("")), ("hook", Some("new"))],
                ["new", "old", "old", "old"],
                &["chain", "key"],
            ),
            // The route, whose upstream then has no token, is named after it.
            (&[("token", Some("")), ("hook", Some("new"))], ["new", "old", "old", "old"], &["token"]),
        ];
        for (changes, used, broken) in rows {
            let (found, named) = renewed(changes);
            assert_eq!(found, used, "{changes:?}");
            assert_eq!(named, broken, "{changes:?}");
        }
    }

    /// With the new key alone, as the old one was in the file that could not be used, everybody was signed out.
    #[test]
    fn the_keys_of_a_list_keep_their_content_together() {
        let resolve = |resolver: &mut Resolver| -> Vec<Option<String>> {
            let (keys, secrets) =
                (At::root().key("sessions").key("keys"), At::root().key("webhooks").index(0).key("secrets"));
            let places = [
                ("first", keys.index(0)),
                ("second", keys.index(1)),
                ("third", secrets.index(0).key("secret")),
                ("fourth", secrets.index(1).key("secret")),
                ("token", At::root().key("admin").key("token")),
            ];
            let read = |(name, at): &(&str, At)| {
                let secret = resolver.secret(at, &SecretSource::File(name.into()))?;
                secret.expose_str().map(str::to_owned)
            };
            places.iter().map(read).collect()
        };
        for (broken, used) in [
            ("first", ["old", "old", "new", "new", "new"]),
            ("second", ["old", "old", "new", "new", "new"]),
            ("third", ["new", "new", "old", "old", "new"]),
            ("fourth", ["new", "new", "old", "old", "new"]),
            ("token", ["new", "new", "new", "new", "old"]),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let write_all = |content: &str| {
                for name in ["first", "second", "third", "fourth", "token"] {
                    fs::write(folder.path().join(name), content).unwrap();
                }
            };
            write_all("old");
            let mut resolver = Resolver::new(folder.path());
            resolve(&mut resolver);
            let in_force = resolver.contents().clone();
            write_all("new");
            fs::write(folder.path().join(broken), "").unwrap();
            let renewal = renew(folder.path(), &Volume::default(), &in_force, resolve);
            assert_eq!(renewal.resolved.unwrap(), used.map(|content| Some(content.to_owned())), "{broken}");
            let kept = used.iter().filter(|content| **content == "old").count();
            assert_eq!(renewal.broken.len(), kept, "{broken}");
        }
    }

    /// Files were named as unusable that were good.
    #[test]
    fn an_error_that_no_file_explains_keeps_everything() {
        let folder = tempfile::tempdir().unwrap();
        let renewal = renew(folder.path(), &Volume::default(), &Contents::default(), resolve);
        assert!(renewal.resolved.is_none() && renewal.broken.is_empty());

        for name in FILES {
            fs::write(folder.path().join(name), "old").unwrap();
        }
        let mut resolver = Resolver::new(folder.path());
        resolve(&mut resolver);
        let in_force = resolver.contents().clone();
        fs::write(folder.path().join("token"), "new").unwrap();
        let renewal = renew(folder.path(), &Volume::default(), &in_force, |resolver| {
            resolve(resolver);
            resolver.error(&At::root().key("store"), "its folder is gone");
        });
        assert!(renewal.resolved.is_none() && renewal.broken.is_empty());
    }
}
