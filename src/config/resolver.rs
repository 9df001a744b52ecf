//! Support for components that turn the written configuration into runtime settings: reads the files that it names,
//! collects problems, and records the files whose changes require a reload.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::unix::ffi::OsStringExt,
    path::{Component, Path, PathBuf},
};

use zeroize::Zeroizing;

use super::{
    fingerprint::{self, Fingerprint},
    report::{At, Problem, Report},
    values::SecretSource,
};

/// The bytes of a secret, wiped when dropped and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret itself; the name is conspicuous so that a reader notices each use.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The secret as text, if it is UTF-8.
    pub fn expose_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The content of files in the same volume as the configuration, if that is swapped as a whole: a mounted ConfigMap or
/// Secret, whose names lead through `..data`. The content belongs to that configuration; the next state of the volume
/// belongs to the next one.
#[derive(Clone, Debug, Default)]
pub struct Volume(BTreeMap<PathBuf, Secret>);

impl Volume {
    /// Uses, for this file too, the content that it had there.
    pub(super) fn keep(&mut self, path: &Path, contents: &Contents) {
        if let Some(named) = contents.0.get(path) {
            self.0.insert(path.to_owned(), named.content.clone());
        }
    }
}

/// The content of the files that settings name, as it was used, and where they are named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents(BTreeMap<PathBuf, NamedFile>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct NamedFile {
    content: Secret,
    places: Vec<At>,
}

impl Contents {
    fn add(&mut self, path: &Path, content: &[u8], at: &At) {
        let new = || NamedFile { content: Secret::new(content.to_vec()), places: Vec::new() };
        self.0.entry(path.to_owned()).or_insert_with(new).places.push(at.clone());
    }

    /// The files that are named within a part of the configuration.
    pub(super) fn named_within(&self, at: &At) -> impl Iterator<Item = &Path> {
        let named = self.0.iter().filter(move |(_, file)| file.places.iter().any(|place| place.is_within(at)));
        named.map(|(path, _)| path.as_path())
    }

    /// The files of the lists of keys or secrets that name this one.
    pub(super) fn listed_with(&self, path: &Path) -> impl Iterator<Item = &Path> {
        let places = self.0.get(path).into_iter().flat_map(|file| &file.places);
        let lists: Vec<At> = places.filter_map(At::list_of_keys).collect();
        let is_listed = move |place: &At| lists.iter().any(|list| place.is_within(list));
        self.0.iter().filter(move |(_, file)| file.places.iter().any(&is_listed)).map(|(path, _)| path.as_path())
    }

    /// Whether both have the same content for one file.
    pub(super) fn agrees(&self, other: &Self, path: &Path) -> bool {
        let [ours, others] = [self, other].map(|contents| contents.0.get(path).map(|file| &file.content));
        ours == others
    }
}

/// Collects problems and the files that the configuration depends on.
#[derive(Debug, Default)]
pub struct Resolver {
    pub report: Report,
    base: PathBuf,
    files: BTreeSet<PathBuf>,
    fingerprint: Fingerprint,
    volume: Volume,
    contents: Contents,
    /// Content that is used in place of what is on the disk.
    kept: Volume,
    /// A folder that Doorward creates when it starts.
    made: Option<PathBuf>,
    /// The places that Doorward writes to.
    places: Vec<(PathBuf, At)>,
    /// Whether files and variables of this machine are ignored, without a problem.
    elsewhere: bool,
}

/// Returns the folder of a file, `.` for a name without a folder.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// Opens, for reading, what is in the place of a file that Doorward writes. Anything but a regular file is an error.
/// `None` if nothing is there yet, or this user may not see it.
pub fn found_at(path: &Path) -> io::Result<Option<File>> {
    let open = || {
        // Opening a pipe would wait for its other end.
        let found = std::fs::metadata(path)?;
        if !found.is_file() {
            let what = if found.is_dir() { "it is a folder" } else { "it is not a regular file" };
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{what}; give the path of a file")));
        }
        File::open(path)
    };
    match open() {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => Ok(None),
        found => found.map(Some),
    }
}

impl Resolver {
    /// Relative paths are resolved against `base`, the folder of the main file.
    pub fn new(base: &Path) -> Self {
        Self { base: base.to_owned(), ..Self::default() }
    }

    /// Returns a resolver for the configuration that was read with `volume`, whose content is not read again.
    pub fn with_volume(base: &Path, volume: Volume) -> Self {
        Self { kept: volume, ..Self::new(base) }
    }

    /// Ignores, from now on, the machine that Doorward will run on: files, folders and variables that the configuration
    /// names are neither read nor reported as missing.
    pub fn elsewhere(&mut self) {
        self.elsewhere = true;
    }

    /// Whether files and variables of this machine are ignored.
    pub fn is_elsewhere(&self) -> bool {
        self.elsewhere
    }

    /// The content that was read from the volume of the configuration.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// The content of the files that settings name.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    pub fn path(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// Declares that a start creates the folder of this file.
    pub fn makes_folder_of(&mut self, path: &Path) {
        self.made = Some(folder_of(&self.path(path)).to_owned());
    }

    /// Reports a problem for which the configuration is refused.
    pub fn error(&mut self, at: &At, message: impl Into<String>) -> &mut Problem {
        self.report.error(at, message)
    }

    /// Reports a problem that somebody should check.
    pub fn warning(&mut self, at: &At, message: impl Into<String>) -> &mut Problem {
        self.report.warning(at, message)
    }

    /// Reports an unknown name; see [`Report::unknown`].
    pub fn unknown<'a>(
        &mut self,
        at: &At,
        what: &str,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> &mut Problem {
        self.report.unknown(at, what, name, known)
    }

    /// Returns the path of a file that Doorward will write; a missing folder is a problem, and so is the place of
    /// another such file.
    pub fn written(&mut self, at: &At, path: &Path) -> PathBuf {
        let path = self.path(path);
        let folder = folder_of(&path);
        if !self.elsewhere && !folder.is_dir() && self.made.as_deref() != Some(folder) {
            self.report
                .error(at, format!("the folder {} does not exist", folder.display()))
                .help("make it, and let the user that Doorward runs as write there");
        }
        if let Some((_, other)) = self.places.iter().find(|(place, _)| *place == path) {
            let other = other.as_str().trim_start_matches('/').replace('/', ".");
            self.report
                .error(at, format!("{} is also the place of `{other}`", path.display()))
                .help("give each a place of its own");
        }
        self.places.push((path.clone(), at.clone()));
        path
    }

    /// The files read so far, of which any change requires a new generation.
    pub fn files(&self) -> &BTreeSet<PathBuf> {
        &self.files
    }

    /// The files that were read, with digests of their content.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Reads a file; on a problem reports it and returns `None`.
    pub fn read(&mut self, at: &At, path: &Path) -> Option<Vec<u8>> {
        if self.elsewhere {
            return None;
        }
        let path = self.path(path);
        match self.read_named(&path) {
            Ok(bytes) => {
                self.contents.add(&path, &bytes, at);
                Some(bytes)
            }
            Err(why) => {
                self.report.error(at, format!("{} {why}", path.display()));
                None
            }
        }
    }

    /// Reads a file whose path is already complete; the caller reports a problem.
    pub(super) fn read_named(&mut self, path: &Path) -> Result<Vec<u8>, String> {
        let result = match self.kept.0.get(path) {
            Some(kept) => Ok(kept.expose().to_vec()),
            None => fingerprint::read(path),
        };
        if let Ok(bytes) = &result
            && self.is_in_volume(path)
        {
            self.volume.0.insert(path.to_owned(), Secret::new(bytes.clone()));
        }
        self.fingerprint.record(path, result.as_deref().ok());
        self.files.insert(path.to_owned());
        result
    }

    /// Whether a file is in the same volume as the configuration. A folder within it may be the mount of another
    /// volume.
    fn is_in_volume(&self, path: &Path) -> bool {
        let Ok(within) = path.strip_prefix(&self.base) else { return false };
        let leaves = within.components().any(|component| component == Component::ParentDir);
        let volume = path.ancestors().skip(1).find(|folder| folder.join("..data").is_symlink());
        !leaves && volume == Some(&*self.base)
    }

    /// Reads a secret; an absent or empty one is a problem.
    pub fn secret(&mut self, at: &At, source: &SecretSource) -> Option<Secret> {
        if self.elsewhere {
            return None;
        }
        let mut bytes = match source {
            SecretSource::File(path) => self.read(at, path)?,
            SecretSource::Env(name) => match std::env::var_os(name) {
                Some(value) => value.into_vec(),
                None => {
                    self.report.error(at, format!("environment variable `{name}` is not set"));
                    return None;
                }
            },
        };
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        if bytes.is_empty() {
            self.report.error(at, format!("{source} is empty")).help("an empty secret would be known to everybody");
            return None;
        }
        Some(Secret::new(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A volume as the kubelet mounts it, with one file.
    fn mount(folder: &Path, name: &str) {
        std::fs::create_dir_all(folder.join("..2026")).unwrap();
        std::fs::write(folder.join("..2026").join(name), "one").unwrap();
        std::os::unix::fs::symlink("..2026", folder.join("..data")).unwrap();
        std::os::unix::fs::symlink(Path::new("..data").join(name), folder.join(name)).unwrap();
    }

    #[test]
    fn only_files_of_the_same_volume_are_replaced_with_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config");
        mount(&config, "secret");
        mount(&config.join("tokens"), "token");
        mount(&folder.path().join("beside"), "token");
        std::fs::write(folder.path().join("plain"), "one").unwrap();
        let mut resolver = Resolver::new(&config);
        for path in ["secret", "tokens/token", "../beside/token", "../plain"] {
            assert_eq!(resolver.read(&At::root(), Path::new(path)).as_deref(), Some(&b"one"[..]), "{path}");
        }
        let volume = resolver.volume().clone();
        assert_eq!(volume.0.keys().collect::<Vec<_>>(), [&config.join("secret")]);

        for path in ["config/..2026/secret", "config/tokens/..2026/token"] {
            std::fs::write(folder.path().join(path), "two").unwrap();
        }
        let mut resolver = Resolver::with_volume(&config, volume);
        for (path, expected) in [("secret", "one"), ("tokens/token", "two")] {
            assert_eq!(resolver.read(&At::root(), Path::new(path)).unwrap(), expected.as_bytes(), "{path}");
        }
    }

    #[test]
    fn paths_on_another_machine_are_neither_read_nor_reported_as_missing() {
        let (folder, at) = (tempfile::tempdir().unwrap(), At::root());
        std::fs::write(folder.path().join("secret"), "one").unwrap();
        let file = SecretSource::File("secret".into());
        let missing = SecretSource::Env("DOORWARD_TEST_NO_SUCH_VARIABLE".into());
        let look = |resolver: &mut Resolver| {
            resolver.written(&at, Path::new("lost/socket"));
            let found = [resolver.read(&at, Path::new("lost")).is_some(), resolver.secret(&at, &file).is_some()];
            (found, resolver.secret(&at, &missing).is_some(), resolver.report.problems().len())
        };
        let mut resolver = Resolver::new(folder.path());
        assert_eq!(look(&mut resolver), ([false, true], false, 3));
        let mut resolver = Resolver::new(folder.path());
        resolver.elsewhere();
        assert_eq!(look(&mut resolver), ([false, false], false, 0));
        assert!(resolver.files().is_empty());
    }

    /// Whichever was opened second reported that another process has the file.
    #[test]
    fn two_settings_may_not_name_the_same_place() {
        let folder = tempfile::tempdir().unwrap();
        let mut resolver = Resolver::new(folder.path());
        resolver.written(&At::root().key("store").key("path"), Path::new("a"));
        resolver.written(&At::root().key("socket"), Path::new("b"));
        assert!(!resolver.report.has_errors());
        resolver.written(&At::root().key("sink"), Path::new("./a"));
        let problem = resolver.report.problems().first().unwrap();
        assert_eq!(problem.at.as_str(), "/sink");
        assert!(problem.message.ends_with("is also the place of `store.path`"), "{}", problem.message);
    }

    #[test]
    fn only_a_regular_file_is_in_order_in_the_place_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert!(found_at(&path).unwrap().is_none());
        std::fs::write(&path, "").unwrap();
        assert!(found_at(&path).unwrap().is_some());
        assert!(found_at(folder.path()).unwrap_err().to_string().contains("it is a folder"));
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(found_at(&socket).unwrap_err().to_string().contains("not a regular file"));
    }

    #[test]
    fn in_a_plain_folder_nothing_is_swapped_as_one() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), "one").unwrap();
        let mut resolver = Resolver::new(folder.path());
        resolver.read(&At::root(), Path::new("secret")).unwrap();
        assert!(resolver.volume().0.is_empty());
    }
}
