//! Turns sources into a valid configuration, or into a list of everything that is wrong with them.
//!
//! One run finds all problems: after the syntax, the shape of the whole document is checked and repaired, so that the
//! semantic checks can continue in spite of misspelt keys. A repaired document is never used: a single error refuses
//! the whole configuration.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use data_encoding::HEXLOWER;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    diagnosis::{self, Diagnosis, Finding, Lines},
    fingerprint::Fingerprint,
    layers::{self, Setting, Sources},
    locations::{Location, Locations, has_user},
    raw,
    report::{At, Report, Severity, nearest},
    resolve,
    resolver::{Contents, Resolver, Volume},
    schema, shape,
    source::{Data, Node, Repeated, SourceFile, keys_alone},
};
use crate::sha256::sha256;

/// The main file, if the configuration is given as a folder.
pub const MAIN_FILE: &str = "doorward.yaml";

/// How often loading is attempted if files change while they are read.
const ATTEMPTS: usize = 5;

/// A configuration without errors.
#[derive(Debug)]
pub struct Loaded {
    pub raw: raw::Root,
    /// Problems that do not refuse it.
    pub warnings: Diagnosis,
    /// The origin of each part, for printing.
    pub locations: Locations,
    /// All files that it depends on, as they were read.
    pub fingerprint: Fingerprint,
    /// Those of them that are swapped together with the main file.
    pub volume: Volume,
    /// The content of the files that settings name.
    pub contents: Contents,
    /// The main file.
    pub path: PathBuf,
    /// The digest of the content of the main file and the policy files, independent of their paths and of variables and
    /// flags: it is the same in a checkout and in each replica. Secrets are in other files and not part of it.
    pub digest: Arc<str>,
}

impl Loaded {
    /// The folder that its paths are relative to: that of the main file; empty if the main file is named without a
    /// folder.
    pub fn base(&self) -> &Path {
        base_of(&self.path)
    }
}

/// Returns the written configuration for the digest, without possible secrets: somebody who knows the rest could
/// otherwise guess them until the digest matches. A secret that is in force is refused anyway, so only values that
/// another layer replaces have to be removed: passwords in addresses, and values that are invalid for their setting.
fn digested(main: &Node, schema: &Value, locations: &Locations) -> Value {
    let mut said = main.to_json();
    let mended = shape::check(schema, &mut said, &mut Report::default(), &mut Locations::default());
    without_secrets(said, &At::root(), &mended, locations)
}

fn without_secrets(said: Value, at: &At, mended: &BTreeSet<At>, locations: &Locations) -> Value {
    let within = |value, at: &At| without_secrets(value, at, mended, locations);
    match said {
        _ if mended.contains(at) => Value::Null,
        Value::Object(entries) => {
            let of = |(key, value): (String, Value)| {
                let at = at.key(&key);
                (key, within(value, &at))
            };
            entries.into_iter().map(of).collect()
        }
        Value::Array(items) => {
            items.into_iter().enumerate().map(|(index, item)| within(item, &at.index(index))).collect()
        }
        Value::String(text) if has_user(&text) && locations.is_replaced(at) => Value::Null,
        other => other,
    }
}

fn base_of(main: &Path) -> &Path {
    main.parent().unwrap_or_else(|| Path::new(""))
}

/// A configuration with errors.
#[derive(Debug)]
pub struct Refused {
    pub diagnosis: Diagnosis,
    /// The files read: a change of any may repair it.
    pub fingerprint: Fingerprint,
}

/// Loads a configuration.
///
/// `components` converts it into runtime settings and reports problems of its part through the resolver; its result is
/// returned if there were none. It is called again if a file changed in the meantime, so that all settings come from
/// one state of all files: a half-replaced folder never combines an old main file with a new policy.
pub fn load<T>(
    sources: &Sources,
    mut components: impl FnMut(&raw::Root, &mut Resolver) -> T,
) -> Result<(Loaded, T), Box<Refused>> {
    let mut attempt = 1;
    loop {
        let result = load_once(sources, &mut components);
        let fingerprint = match &result {
            Ok((loaded, _)) => &loaded.fingerprint,
            Err(refused) => &refused.fingerprint,
        };
        if fingerprint.is_current() {
            return result;
        }
        if attempt == ATTEMPTS {
            let finding = Finding {
                help: Some("replace files atomically: write a new file and rename it".to_owned()),
                ..Finding::error(None, "the files changed again and again while they were read")
            };
            let diagnosis = Diagnosis::new(Vec::new(), vec![finding]);
            return Err(Box::new(Refused { diagnosis, fingerprint: fingerprint.clone() }));
        }
        attempt += 1;
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.diagnosis.fmt(f)
    }
}

impl std::error::Error for Refused {}

/// Reads a file with a part of a configuration, such as test cases, as strictly as the configuration itself: a key that
/// is left empty would otherwise count as left out. The error lists all problems, each with its place.
pub fn read<T: JsonSchema + DeserializeOwned>(path: &Path) -> Result<T, String> {
    let mut draft = Draft::default();
    let node = match std::fs::read(path) {
        Ok(bytes) => draft.parse(path, bytes),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    if node.as_ref().is_some_and(|node| node.data == Data::Map(Vec::new())) {
        let path = path.display();
        return Err(format!(
            "{path} says nothing: it is empty or has only comments; restore it, or remove the reference to it"
        ));
    }
    let shaped = node.map(|node| draft.shaped(&node, &[], &schema::of::<T>()));
    let (part, mended) = match shaped {
        Some(Ok((part, mended))) => (Some(part), mended),
        Some(Err(message)) => return Err(format!("{}: {message}", path.display())),
        None => (None, BTreeSet::new()),
    };
    let diagnosis = draft.diagnosis();
    match part {
        Some(part) if diagnosis.errors() == 0 && mended.is_empty() => Ok(part),
        _ => Err(format!("{} cannot be used:\n{}", path.display(), diagnosis.render(false).trim_end())),
    }
}

fn load_once<T>(
    sources: &Sources,
    components: &mut impl FnMut(&raw::Root, &mut Resolver) -> T,
) -> Result<(Loaded, T), Box<Refused>> {
    let folder = sources.path.is_dir();
    let path = if folder { sources.path.join(MAIN_FILE) } else { sources.path.clone() };
    let base = base_of(&path);
    let mut resolver = Resolver::new(base);
    let mut draft = Draft::default();

    let main = match resolver.read_named(&path) {
        Ok(bytes) => draft.parse(&path, bytes),
        Err(why) => {
            let message = format!("{} {why}", path.display());
            let help = (folder && !path.exists()).then(|| format!("in a folder the main file is `{MAIN_FILE}`"));
            draft.findings.push(Finding { help, ..Finding::error(None, message) });
            None
        }
    };
    let Some(main) = main else { return Err(draft.refuse(&resolver)) };
    let schema = schema();
    let settings = layers::settings(&schema, sources, &main, &mut draft.findings);
    let before = draft.findings.len();
    let main = draft.add_policies(main, &settings, &schema, &mut resolver);
    let policies_whole = draft.findings.len() == before;
    if folder {
        let written = || std::iter::once(&main).chain(settings.iter().map(|setting| &setting.value));
        draft.note_unlisted(base, &path, &resolver, |file| {
            written().any(|node| node.has_text(&|text: &str| base.join(text) == file))
        });
    }
    let (mut raw, mended) = match draft.shaped::<raw::Root>(&main, &settings, &schema) {
        Ok(assembled) => assembled,
        Err(message) => {
            draft.findings.push(Finding::error(None, message));
            return Err(draft.refuse(&resolver));
        }
    };

    let host = raw.external_host.as_deref();
    raw.issuers.iter_mut().for_each(|issuer| crate::issuers::name_issuer(issuer, host));
    resolve::check(&raw, &mended, policies_whole, &mut resolver);
    let result = components(&raw, &mut resolver);
    draft.findings.extend(diagnosis::findings(&resolver.report, &draft.locations, &mended));
    let fingerprint = resolver.fingerprint().clone();
    let diagnosis = Diagnosis::new(draft.locations.files().to_vec(), draft.findings);
    // Repaired parts are reported where they are repaired; if that is ever missed, they are still refused.
    if diagnosis.errors() > 0 || !mended.is_empty() || resolver.report.has_errors() {
        return Err(Box::new(Refused { diagnosis, fingerprint }));
    }
    // Maps of `serde_json` are sorted by key.
    let text = digested(&main, &schema, &draft.locations).to_string();
    let digest = HEXLOWER.encode(&sha256(&[text.as_bytes()])).into();
    Ok((
        Loaded {
            raw,
            warnings: diagnosis,
            locations: draft.locations,
            fingerprint,
            volume: resolver.volume().clone(),
            contents: resolver.contents().clone(),
            path,
            digest,
        },
        result,
    ))
}

/// A configuration that is being loaded.
#[derive(Debug, Default)]
struct Draft {
    files: Vec<SourceFile>,
    findings: Vec<Finding>,
    locations: Locations,
}

impl Draft {
    fn parse(&mut self, path: &Path, bytes: Vec<u8>) -> Option<Node> {
        let file = self.files.len();
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let before = error.as_bytes().get(..valid).unwrap_or_default();
                let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
                self.files.push(SourceFile { path: path.to_owned(), text: String::new() });
                let message = format!("line {line} of the file is not UTF-8 (byte {valid})");
                self.findings.push(Finding::error(Some(Location::WholeFile { file }), message));
                return None;
            }
        };
        let parsed = Node::parse(&text, file);
        let text = if parsed.is_err() { keys_alone(&text) } else { text };
        self.files.push(SourceFile { path: path.to_owned(), text });
        let node = match parsed {
            Ok(node) => node,
            Err(malformed) => {
                let place = Location::File { file, span: malformed.span };
                let help = malformed.help.map(str::to_owned);
                self.findings.push(Finding { help, ..Finding::error(Some(place), malformed.message) });
                return None;
            }
        };
        let text = self.files.get(file).map(|file| file.text.as_str()).unwrap_or_default();
        let lines = Lines::new(text);
        let repeated = node.repeated_keys();
        for Repeated { source: file, first, key, .. } in &repeated {
            let place = Location::File { file: *file, span: key.span.clone() };
            let line = lines.number(first.span.start);
            let message = format!("`{}` is set here a second time; the first is on line {line}", key.name);
            self.findings.push(Finding::error(Some(place), message));
        }
        repeated.iter().for_each(|repeated| repeated.lost.mask(&mut self.files, &|_: &Data| true));
        match node.data {
            Data::Map(_) => Some(node),
            Data::Null => Some(Node { data: Data::Map(Vec::new()), ..node }),
            _ => {
                self.findings.push(Finding::error(
                    Some(Location::WholeFile { file }),
                    "the file must be a map of settings".to_owned(),
                ));
                None
            }
        }
    }

    /// Reads the files that `policies` lists, and appends their grants and rules to those of the main file.
    fn add_policies(&mut self, mut main: Node, settings: &[Setting], schema: &Value, resolver: &mut Resolver) -> Node {
        let mut locations = Locations::new(self.files.clone());
        let Ok(merged) = layers::merge(schema, &main, settings, &mut locations) else { return main };
        let listed = merged.get("policies").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut seen = BTreeSet::new();
        for (index, name) in listed.iter().enumerate() {
            let Some(name) = name.as_str() else { continue };
            let at = At::root().key("policies").index(index);
            let path = resolver.path(Path::new(name));
            if !seen.insert(std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone())) {
                self.findings.push(Finding::error(locations.place(&at), format!("`{name}` is listed twice")));
                continue;
            }
            match resolver.read_named(&path) {
                Ok(bytes) => {
                    let Some(policy) = self.parse(&path, bytes) else { continue };
                    if policy.data == Data::Map(Vec::new()) {
                        let why = format!("has none of {}", parts());
                        self.findings.push(lost_policy(locations.place(&at), &path, &why));
                    }
                    self.append_policy(&mut main, policy);
                }
                Err(why) => self.findings.push(lost_policy(locations.place(&at), &path, &why)),
            }
        }
        main
    }

    fn append_policy(&mut self, main: &mut Node, policy: Node) {
        let parts = schema::policy_parts();
        let Data::Map(entries) = policy.data else { return };
        for (key, value) in entries {
            let file = value.source;
            if !parts.contains(&key.name) {
                // Nothing checks this value, and it may be a secret.
                value.mask(&mut self.files, &|_: &Data| true);
                let help = match nearest(&key.name, parts.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "all other settings belong in the main file".to_owned(),
                };
                let place = Location::File { file, span: key.span };
                let message = format!("there is no setting `{}` in a policy file", key.name);
                self.findings.push(Finding { help: Some(help), ..Finding::error(Some(place), message) });
                continue;
            }
            if !matches!(value.data, Data::List(_)) {
                value.mask(&mut self.files, &|_: &Data| true);
            }
            let span = value.span;
            let Data::List(items) = value.data else {
                let place = Location::File { file, span: key.span };
                self.findings.push(Finding::error(Some(place), format!("`{}` must be a list", key.name)));
                continue;
            };
            let Data::Map(all) = &mut main.data else { return };
            match all.iter_mut().rev().find(|(known, _)| known.name == key.name) {
                Some((_, Node { data: Data::List(known), .. })) => known.extend(items),
                // The shape check reports the value that is there instead, and nothing checks these.
                Some(_) => items.iter().for_each(|item| item.mask(&mut self.files, &|_: &Data| true)),
                None => all.push((key, Node { source: file, span, data: Data::List(items) })),
            }
        }
    }

    /// Warns of files in the folder that look like parts of the configuration but are not. Files that a setting names
    /// are exempt, such as a kubeconfig, which is read later or not at all.
    fn note_unlisted(&mut self, base: &Path, main: &Path, resolver: &Resolver, is_named: impl Fn(&Path) -> bool) {
        let Ok(folder) = std::fs::read_dir(base) else { return };
        let mut unlisted: Vec<PathBuf> = folder
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml"))
            .filter(|path| path.is_file() && path != main && !resolver.files().contains(path))
            .filter(|path| !is_named(path))
            .collect();
        unlisted.sort();
        for path in unlisted {
            let name = path.file_name().unwrap_or_default().display().to_string();
            self.findings.push(Finding {
                severity: Severity::Warning,
                help: Some(format!("add `{name}` to `policies`, or move it elsewhere")),
                ..Finding::error(
                    Some(Location::WholeFile { file: 0 }),
                    format!("{} is in the folder, but not used", path.display()),
                )
            });
        }
    }

    /// Merges the layers and deserializes them; also returns the parts that had to be repaired.
    fn shaped<T: DeserializeOwned>(
        &mut self,
        main: &Node,
        settings: &[Setting],
        schema: &Value,
    ) -> Result<(T, BTreeSet<At>), String> {
        self.locations = Locations::new(self.files.clone());
        let mut document =
            layers::merge(schema, main, settings, &mut self.locations).map_err(|error| error.to_string())?;
        let mut report = Report::default();
        let mended = shape::check(schema, &mut document, &mut report, &mut self.locations);
        self.findings.extend(diagnosis::findings(&report, &self.locations, &BTreeSet::new()));
        let whole = serde_json::from_value(document).map_err(|error| format!("cannot be read: {error}"))?;
        Ok((whole, mended))
    }

    fn refuse(self, resolver: &Resolver) -> Box<Refused> {
        Box::new(Refused { diagnosis: self.diagnosis(), fingerprint: resolver.fingerprint().clone() })
    }

    fn diagnosis(self) -> Diagnosis {
        // If there are locations, their texts have secrets masked.
        let masked = self.locations.files();
        let files = if masked.is_empty() { self.files } else { masked.to_vec() };
        Diagnosis::new(files, self.findings)
    }
}

/// The names of the keys that are allowed in a policy file.
fn parts() -> String {
    let names: Vec<String> = schema::policy_parts().iter().map(|part| format!("`{part}`")).collect();
    names.join(", ")
}

fn lost_policy(place: Option<Location>, path: &Path, why: &str) -> Finding {
    let help = "a lost policy file could widen the policy; restore it, or remove it from the list";
    let message = format!("policy file {} {why}", path.display());
    Finding { help: Some(help.to_owned()), ..Finding::error(place, message) }
}

/// Fuzz body: any bytes as a main file, through all checks that need no other file. It must not panic, every document
/// that passes the shape check must be readable, and every problem must have a place.
#[cfg(any(test, fuzzing))]
pub fn fuzz_configuration(bytes: &[u8]) {
    let mut draft = Draft::default();
    let Some(main) = draft.parse(Path::new("fuzz.yaml"), bytes.to_vec()) else {
        let diagnosis = Diagnosis::new(draft.files, draft.findings);
        assert!(diagnosis.errors() > 0, "refused without a finding");
        _ = diagnosis.render(false);
        return;
    };
    // Whatever the shape check accepts or repairs must be readable, or problems would go unreported.
    let (raw, mended) = match draft.shaped::<raw::Root>(&main, &[], &schema()) {
        Ok(assembled) => assembled,
        Err(message) => panic!("the shape check let through what {message}"),
    };
    let mut resolver = Resolver::new(Path::new(""));
    resolve::check(&raw, &mended, true, &mut resolver);
    draft.findings.extend(diagnosis::findings(&resolver.report, &draft.locations, &mended));
    let diagnosis = Diagnosis::new(draft.locations.files().to_vec(), draft.findings);
    assert!(mended.is_empty() || diagnosis.errors() > 0, "mended without a finding");
    for finding in diagnosis.findings() {
        assert!(finding.place.is_some(), "{finding:?} has no place");
    }
    _ = (diagnosis.render(false), diagnosis.to_json());
}
