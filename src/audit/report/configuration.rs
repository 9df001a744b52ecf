//! The report's part from the configuration: who may do what, and which keys and secrets it names.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::Serialize;
use serde_json::Value;
use x509_parser::pem::Pem;

use super::{quoted, unused};
use crate::{
    assertions,
    audit::{CHAIN_KEY_FILE, CHECKPOINT_KEY_FILE},
    authz::{SAME_WITHOUT, may_be_of_deliveries},
    config::{
        raw::{Action, Mode, Root, RouteKind, Rule, Upstream},
        report::At,
        resolver::Resolver,
    },
    sessions::keyring,
};

/// Members of the configuration that name the file of a key, a certificate or a secret.
pub(super) const FILES: [&str; 8] =
    ["ca", "chain", "chain_key", "checkpoint_key", "client_ca", "file", "key", "pseudonym_key"];

/// Those of them that name certificates.
const CERTIFICATES: [&str; 3] = ["ca", "chain", "client_ca"];

/// The report's part from the configuration.
#[derive(Clone, Debug, Serialize)]
pub struct Configured {
    /// The path of the configuration.
    pub path: PathBuf,
    /// The shell command that prints rules and grants, and the places of secrets.
    pub command: String,
    pub access: Vec<Access>,
    /// Computes the members of `access` for which `used` is false, as the `query` of a section computes its rows.
    pub unused_query: String,
    pub secrets: Vec<ConfiguredSecret>,
    /// The shell commands that print when files were written or mounted, and until when certificates are valid.
    pub age_commands: Vec<String>,
}

/// A rule or a grant.
#[derive(Clone, Debug, Serialize)]
pub struct Access {
    /// `rule` or `grant`.
    pub kind: &'static str,
    pub id: String,
    /// As in the configuration, without unset members.
    pub who: Value,
    /// The conditions and action of a rule, or the groups of a grant.
    pub gives: Value,
    pub why: Option<String>,
    /// Whether a record of the period names it; none if no record does, but it may have applied without being named, or a
    /// record that does may be missing.
    pub used: Option<bool>,
}

/// A key, a certificate or a secret, without its content.
#[derive(Clone, Debug, Serialize)]
pub struct ConfiguredSecret {
    /// Its place in the configuration.
    pub place: String,
    /// The file, or the name of the environment variable.
    pub source: String,
    /// When its file was last written, Unix time in milliseconds; none for a variable, or if the file does not exist
    /// here.
    pub written: Option<i64>,
    /// The validity of a certificate, Unix time in milliseconds.
    pub not_before: Option<i64>,
    pub not_after: Option<i64>,
}

impl Configured {
    /// Reads a configuration that is at `path`, and whose relative paths begin in `folder`.
    pub fn of(root: &Root, path: PathBuf, folder: &Path) -> serde_json::Result<Self> {
        let mut access = Vec::new();
        for rule in &root.rules {
            let written = one("rule", rule.id.clone(), rule.why.clone(), serde_json::to_value(rule)?);
            access.push(Access { used: is_recorded(rule, root).then_some(false), ..written });
        }
        for grant in &root.grants {
            access.push(one("grant", grant.id.clone(), grant.why.clone(), serde_json::to_value(grant)?));
        }
        let mut secrets = Vec::new();
        find(&serde_json::to_value(without_texts(root))?, "", folder, &FILES, &mut secrets);
        find_named(root, folder, &mut secrets);
        find_made(&folder.join(&root.store.path), &mut secrets);
        Ok(Self::new(path, access, secrets))
    }

    pub(super) fn new(path: PathBuf, access: Vec<Access>, secrets: Vec<ConfiguredSecret>) -> Self {
        let (command, age_commands) = (format!("doorward print-config {}", quoted(&path)), ages(&secrets));
        Self { path, command, access, unused_query: String::new(), secrets, age_commands }
    }

    /// Marks the rules and grants that records name, and sets the query for the period from `from` until before `to`.
    /// `knows` says whether all others were not named, as no record is missing.
    #[must_use]
    pub(super) fn used(
        mut self,
        rules: &BTreeSet<String>,
        grants: &BTreeSet<String>,
        knows: bool,
        from: i64,
        to: i64,
    ) -> Self {
        for access in &mut self.access {
            let seen = if access.kind == "rule" { rules } else { grants };
            if seen.contains(&access.id) {
                access.used = Some(true);
            } else if !knows {
                access.used = None;
            }
        }
        self.unused_query = unused(&self.ids("rule"), &self.ids("grant"), from, to);
        self
    }

    fn ids(&self, kind: &str) -> Value {
        let counted = self.access.iter().filter(|one| one.kind == kind && one.used.is_some());
        counted.map(|one| one.id.as_str()).collect()
    }
}

/// Returns the places of certificates in a configuration, except those of listeners, and when they expire, in seconds
/// since 1970. Reads their files, and those that kubeconfigs name.
pub fn ends_of_certificates(root: &Root, folder: &Path) -> impl Iterator<Item = (String, i64)> {
    let mut root = without_texts(root);
    for tls in root.listeners.iter_mut().filter_map(|listener| listener.tls.as_mut()) {
        tls.certificates.clear();
    }
    let mut found = Vec::new();
    find(&serde_json::to_value(&root).unwrap_or_default(), "", folder, &CERTIFICATES, &mut found);
    find_named(&root, folder, &mut found);
    found.into_iter().filter_map(|held| Some((held.place, held.not_after? / 1000)))
}

/// Whether records name a rule whenever it applies. Which Triggers a delivery starts is decided after its record, which
/// names one allow: other allows may let it start more Triggers, and a deny that stops some of them is not in that
/// record. The record of a stopped Trigger names the first deny that stopped it, and no allow. The record of a
/// server-side apply names the allow of the patch, but not that of the create that it may be. A rule in shadow mode
/// decides nothing.
fn is_recorded(rule: &Rule, root: &Root) -> bool {
    let allows = |rule: &&Rule| rule.action == Action::Allow && rule.mode == Mode::Enforce;
    let mut allowing = root.rules.iter().filter(allows);
    let creates_alone = may_write(rule, "create", root) && !may_write(rule, "patch", root);
    let is_beside_another = (may_be_of_deliveries(rule, root)
        && allowing.clone().any(|other| other.on.trigger.is_some()))
        || (creates_alone && allowing.any(|other| may_write(other, "patch", root)));
    rule.mode == Mode::Enforce && rule.on.trigger.is_none() && !(allows(&rule) && is_beside_another)
}

/// Whether a rule may apply to Kubernetes requests with this verb, one that writes.
fn may_write(rule: &Rule, verb: &str, root: &Root) -> bool {
    let on = &rule.on;
    let is_of_others = on.trigger.is_some() || on.token.is_some() || on.pages.is_some() || !on.event.is_empty();
    let has_verb = on.kubernetes.as_ref().is_none_or(|of| {
        of.verbs.is_empty() || of.verbs.iter().any(|named| [verb, "write", "*"].contains(&named.as_str()))
    });
    let mut servers =
        root.routes.iter().filter(|route| matches!(route.kind, RouteKind::Kubernetes | RouteKind::Dashboard));
    !is_of_others && has_verb && servers.any(|route| on.routes.is_empty() || on.routes.contains(&route.name))
}

/// Removes the parts with user-defined member names, such as claims and bodies of test cases. They name no files.
fn without_texts(root: &Root) -> Root {
    let mut root = Root { tests: Vec::new(), rules: Vec::new(), grants: Vec::new(), ..root.clone() };
    for issuer in &mut root.issuers {
        issuer.required_claims.clear();
    }
    for onward in root.tokens.iter_mut().flat_map(|tokens| &mut tokens.onward) {
        onward.scopes.clear();
    }
    root
}

fn ages(secrets: &[ConfiguredSecret]) -> Vec<String> {
    let files = |certificates: bool| {
        let among = secrets.iter().filter(move |held| match certificates {
            // A certificate inside a kubeconfig has no file of its own.
            true => held.not_after.is_some() && held.written.is_some(),
            false => held.written.is_some(),
        });
        let mut files: Vec<String> = among.map(|held| quoted(Path::new(&held.source))).collect();
        files.dedup();
        files
    };
    let written = files(false);
    let written = (!written.is_empty()).then(|| format!("stat -c '%y %n' {}", written.join(" ")));
    let dates = files(true).into_iter().map(|file| format!("openssl x509 -noout -dates -in {file}"));
    written.into_iter().chain(dates).collect()
}

fn one(kind: &'static str, id: String, why: Option<String>, written: Value) -> Access {
    let mut gives = set(written);
    let mut who = Value::Object(serde_json::Map::new());
    if let Value::Object(members) = &mut gives {
        who = members.remove("who").unwrap_or(who);
        for told in ["id", "why", "fix"] {
            members.remove(told);
        }
    }
    Access { kind, id, who, gives, why, used: Some(false) }
}

/// Removes unset members.
fn set(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let members = members.into_iter().map(|(name, value)| (name, set(value)));
            Value::Object(members.filter(|(name, value)| !is_unset(name, value)).collect())
        }
        other => other,
    }
}

/// Whether a member is unset. `false` is a condition in `fork: false`, and so is `{}` in `on_behalf_of: {}`.
fn is_unset(name: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(is_set) => !is_set && name == "anonymous",
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty() && SAME_WITHOUT.contains(&name),
        _ => false,
    }
}

/// Finds the files in members with these names, and environment variables.
pub(super) fn find(value: &Value, place: &str, folder: &Path, names: &[&str], found: &mut Vec<ConfiguredSecret>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let at = if place.is_empty() { name.clone() } else { format!("{place}.{name}") };
                match value {
                    Value::String(text) if names.contains(&name.as_str()) => found.push(file(at, &folder.join(text))),
                    Value::String(text) if name == "env" => found.push(ConfiguredSecret {
                        place: at,
                        source: text.clone(),
                        written: None,
                        not_before: None,
                        not_after: None,
                    }),
                    _ => find(value, &at, folder, names, found),
                }
            }
        }
        Value::Array(all) => {
            for (index, value) in all.iter().enumerate() {
                find(value, &format!("{place}[{index}]"), folder, names, found);
            }
        }
        _ => {}
    }
}

/// Finds the certificates in kubeconfigs, and the files that they name.
fn find_named(root: &Root, folder: &Path, found: &mut Vec<ConfiguredSecret>) {
    for (index, upstream) in root.upstreams.iter().enumerate() {
        if let Some(kubeconfig) = &upstream.kubeconfig {
            find_in(upstream, &folder.join(&kubeconfig.file), index, folder, found);
        }
    }
}

fn find_in(upstream: &Upstream, kubeconfig: &Path, index: usize, folder: &Path, found: &mut Vec<ConfiguredSecret>) {
    let place = format!("upstreams[{index}].kubeconfig");
    let mut resolver = Resolver::new(folder);
    let access = crate::upstream::Access::resolve(upstream, &At::root(), &mut resolver);
    let tls = access.as_ref().and_then(|access| access.tls());
    let certificate = tls.and_then(|tls| tls.certificate.as_ref()).map(|(chain, key)| [chain, key]);
    let authorities = tls.and_then(|tls| tls.authorities.as_ref());
    for pem in authorities.into_iter().chain(certificate.into_iter().flatten()) {
        let Some(text) = pem.read(&mut resolver).filter(|_| !pem.is_file()) else { continue };
        let (not_before, not_after) = validity(text.expose()).unzip();
        found.push(ConfiguredSecret {
            place: place.clone(),
            source: pem.to_string(),
            written: None,
            not_before,
            not_after,
        });
    }
    let named = resolver.files().iter().filter(|path| *path != kubeconfig);
    found.extend(named.map(|path| file(place.clone(), path)));
}

/// Finds the key files beside the store, which Doorward creates if none are configured.
fn find_made(store: &Path, found: &mut Vec<ConfiguredSecret>) {
    let beside = [CHAIN_KEY_FILE, CHECKPOINT_KEY_FILE].map(|name| store.with_file_name(name));
    let of_store = [keyring::KEY_EXTENSION, assertions::KEY_EXTENSION].map(|ending| store.with_extension(ending));
    for path in of_store.into_iter().chain(beside).filter(|path| path.exists()) {
        found.push(file("(made by Doorward)".to_owned(), &path));
    }
}

fn file(place: String, path: &PathBuf) -> ConfiguredSecret {
    let written = fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let written = written.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let validity = fs::read(path).ok().and_then(|bytes| validity(&bytes));
    ConfiguredSecret {
        place,
        source: path.display().to_string(),
        written: written.and_then(|since| i64::try_from(since.as_millis()).ok()),
        not_before: validity.map(|(from, _)| from),
        not_after: validity.map(|(_, until)| until),
    }
}

/// Returns the validity of the first certificate of a PEM file.
fn validity(bytes: &[u8]) -> Option<(i64, i64)> {
    let pem = Pem::iter_from_buffer(bytes).filter_map(Result::ok).find(|pem| pem.label == "CERTIFICATE")?;
    let certificate = pem.parse_x509().ok()?;
    let validity = certificate.validity();
    Some((validity.not_before.timestamp() * 1000, validity.not_after.timestamp() * 1000))
}
