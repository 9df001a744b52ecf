//! The layers of a configuration: files, then the environment, then flags; later layers override earlier ones. Below
//! them are the defaults of [`raw::Root`](super::raw::Root).
//!
//! # The environment
//!
//! `DOORWARD_` and the path of a setting in upper case, with two underscores between the parts, set it:
//! `DOORWARD_AUDIT__WHEN_FULL=continue`. The value is YAML. A list replaces the earlier list, a map is merged into the
//! earlier map, and where only one of several keys is allowed, the key of the later layer replaces that of the earlier
//! one. A variable that begins with `DOORWARD_` and is not a setting is an error, so that a misspelt one cannot go
//! unnoticed, except:
//!
//! - those that an `env:` source of a secret names,
//! - [`NOT_SETTINGS`], which commands read,
//! - those that Kubernetes sets in every pod for a Service called `doorward` or `doorward-…` (`DOORWARD_SERVICE_HOST`,
//!   `DOORWARD_PORT_443_TCP_ADDR`).
//!
//! `TERMINATION_GRACE_PERIOD_SECONDS`, which tells programs in a pod how long they may take to stop, sets
//! `limits.drain` to five seconds less if nothing else sets it.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsString,
    path::PathBuf,
};

use figment::{
    Figment, Metadata, Profile, Provider,
    value::{Dict, Map, Value},
};

use super::{
    diagnosis::Finding,
    locations::{Giver, Location, Locations},
    raw::Limits,
    report::{At, nearest},
    schema, shape,
    source::{Data, Node},
    values::Span,
};

/// Variables that begin with [`PREFIX`] and are not settings: those that the command line reads, and the one that tells
/// a command run by `doorward token` where its token is.
pub const NOT_SETTINGS: &[&str] = &[
    "DOORWARD_CONFIG",
    "DOORWARD_SOCKET",
    "DOORWARD_SERVER",
    "DOORWARD_SUBJECT_TOKEN_FILE",
    "DOORWARD_CA_FILE",
    "DOORWARD_TOKEN_FILE",
];

/// The prefix of variables that are settings.
pub const PREFIX: &str = "DOORWARD_";

/// The variable with the time that a pod may take to stop, in seconds.
const GRACE_PERIOD: &str = "TERMINATION_GRACE_PERIOD_SECONDS";

/// The part of it that is reserved for the time after the drain, in seconds.
const AFTER_DRAIN: u64 = 5;

/// The sources of a configuration.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The main file, or its folder.
    pub path: PathBuf,
    /// The variables of the process; those that do not begin with [`PREFIX`] are ignored.
    pub environment: Vec<(OsString, OsString)>,
    /// The paths and values of `--set`.
    pub settings: Vec<(String, String)>,
}

impl Sources {
    /// Returns sources with the environment of this process.
    pub fn of_process(path: PathBuf, settings: Vec<(String, String)>) -> Self {
        Self { path, environment: std::env::vars_os().collect(), settings }
    }
}

/// A value that a variable or a flag sets.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    giver: Giver,
    path: Vec<String>,
    pub(super) value: Node,
}

impl Setting {
    /// Does the same as [`collect_secret_variables`] for its value, which may itself be the value of an `env` key.
    fn collect_secret_variables(&self, names: &mut BTreeSet<String>) {
        match &self.value.data {
            Data::Text(name) if self.path.last().is_some_and(|key| key == "env") => _ = names.insert(name.clone()),
            _ => collect_secret_variables(&self.value, names),
        }
    }
}

/// Reads the flags and the variables that are settings; variables come first. `root` is the schema of the whole.
pub(super) fn settings(
    root: &serde_json::Value,
    sources: &Sources,
    file: &Node,
    findings: &mut Vec<Finding>,
) -> Vec<Setting> {
    let mut flags = Vec::new();
    for (path, value) in &sources.settings {
        let giver = Giver::Flag(path.clone());
        let path = path.split('.').map(str::to_owned).collect();
        flags.extend(setting(giver, path, value, findings));
    }

    let mut secrets = BTreeSet::new();
    collect_secret_variables(file, &mut secrets);
    flags.iter().for_each(|setting: &Setting| setting.collect_secret_variables(&mut secrets));

    let known = schema::settings(root);
    let roots: BTreeSet<&str> = known.iter().filter_map(|path| path.first().map(String::as_str)).collect();
    let (mut variables, mut strangers) = (Vec::new(), Vec::new());
    let mut environment: Vec<_> = sources.environment.iter().collect();
    environment.sort();
    for (name, value) in environment {
        let Some(name) = name.to_str() else { continue };
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        if NOT_SETTINGS.contains(&name) || secrets.contains(name) {
            continue;
        }
        let giver = Giver::Variable(name.to_owned());
        let path: Vec<String> = rest.split("__").map(str::to_ascii_lowercase).collect();
        if !path.first().is_some_and(|first| roots.contains(first.as_str())) {
            if !is_service_link(rest) {
                strangers.push(name);
            }
        } else if let Some(value) = value.to_str() {
            variables.extend(setting(giver, path, value, findings));
        } else {
            findings.push(given(giver, "the value is not UTF-8"));
        }
    }

    let in_file = file.get("limits").and_then(|(_, limits)| limits.get("drain"));
    let is_set = in_file.is_some_and(|(_, drain)| drain.data != Data::Null)
        || variables.iter().chain(&flags).any(|setting| setting.path == ["limits", "drain"]);
    if !is_set {
        // Before the others, as one of them may set all of `limits`.
        variables.splice(0..0, drain(&sources.environment, findings));
    }

    variables.iter().for_each(|setting| setting.collect_secret_variables(&mut secrets));
    for name in strangers.into_iter().filter(|name| !secrets.contains(*name)) {
        let names: Vec<String> = known.iter().map(|path| variable_name(path)).collect();
        let mut finding = given(Giver::Variable(name.to_owned()), "this variable is not a setting of Doorward");
        finding.help = Some(match nearest(name, names.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("variables that begin with `{PREFIX}` are settings; rename it if it is something else"),
        });
        findings.push(finding);
    }
    variables.retain(|setting| !matches!(&setting.giver, Giver::Variable(name) if secrets.contains(name)));
    variables.extend(flags);
    variables
}

/// Returns the drain that the grace period of the pod leaves time for.
fn drain(environment: &[(OsString, OsString)], findings: &mut Vec<Finding>) -> Option<Setting> {
    let (_, value) = environment.iter().find(|(name, _)| name == GRACE_PERIOD)?;
    let giver = Giver::Variable(GRACE_PERIOD.to_owned());
    let seconds = value.to_str().and_then(|value| value.trim().parse::<u64>().ok());
    let Some(drain) = seconds.and_then(|seconds| seconds.checked_sub(AFTER_DRAIN)).filter(|drain| *drain > 0) else {
        let mut finding = given(giver, "this is not a number of seconds above 5, and `limits.drain` is not set");
        finding.help = Some("set it to the pod's `terminationGracePeriodSeconds`, or set `limits.drain`".to_owned());
        findings.push(finding);
        return None;
    };
    let path = ["limits", "drain"].map(str::to_owned).to_vec();
    setting(giver, path, &Span::from_secs(drain).to_string(), findings)
}

/// Shortens `drain_accept` for a short drain if it is not set.
fn shorten_accept(root: &mut serde_json::Value) {
    let Some(limits) = root.get_mut("limits").and_then(serde_json::Value::as_object_mut) else { return };
    let drain = limits.get("drain").and_then(|drain| serde_json::from_value::<Span>(drain.clone()).ok());
    let Some(drain) = drain.filter(|_| !limits.contains_key("drain_accept")) else { return };
    let whole = Limits { drain, ..Limits::default() };
    let (accept, _) = whole.drain_times();
    if accept < whole.drain_accept.get() {
        limits.insert("drain_accept".to_owned(), Span(accept).to_string().into());
    }
}

/// Merges the layers. Returns the whole and writes the origin of each part to `locations`. `root` is the schema of the
/// whole.
pub(super) fn merge(
    root: &serde_json::Value,
    file: &Node,
    settings: &[Setting],
    locations: &mut Locations,
) -> Result<serde_json::Value, Box<figment::Error>> {
    let mut layers: Vec<(Option<&Giver>, serde_json::Value)> = vec![(None, file.to_json())];
    for setting in settings {
        let value = setting
            .path
            .iter()
            .rev()
            .fold(setting.value.to_json(), |value, part| serde_json::json!({ part.as_str(): value }));
        for (earlier, said) in &mut layers {
            // Variables are one layer without an order: two that exclude each other are an error.
            if !matches!((&*earlier, &setting.giver), (Some(Giver::Variable(_)), Giver::Variable(_))) {
                give_way(root, root, said, &value);
            }
        }
        layers.push((Some(&setting.giver), value));
    }
    let left = layers.first().map(|(_, said)| said.clone());
    let mut figment = Figment::new();
    let mut givers: HashMap<String, &Giver> = HashMap::new();
    for (giver, value) in layers {
        let name = giver.map(ToString::to_string).unwrap_or_default();
        givers.extend(giver.map(|giver| (name.clone(), giver)));
        figment = figment.merge(Layer { name, value });
    }
    let whole = Value::from(figment.data()?.remove(&Profile::Default).unwrap_or_default());
    locations.mask_passwords(file);
    locations.insert_node(&At::root(), None, file);
    let tracer = Tracer { figment: &figment, givers: &givers };
    if let Value::Dict(_, entries) = &whole {
        tracer.entries(&At::root(), entries, Some(file), left.as_ref(), locations);
    }
    locations.mask_replaced(&At::root(), file);
    let mut merged = Value::deserialize(&whole).map_err(Box::new)?;
    shorten_accept(&mut merged);
    Ok(merged)
}

/// Removes from an earlier layer the one of several exclusive keys that a later layer replaces with another: maps are
/// merged, and both would be present where only one is allowed. An invalid value stays, so that it is reported: it may
/// be a secret. Missing parts do not make a value invalid, as another layer may have them.
fn give_way(
    root: &serde_json::Value,
    schema: &serde_json::Value,
    earlier: &mut serde_json::Value,
    later: &serde_json::Value,
) {
    let (Some(before), Some(after)) = (earlier.as_object_mut(), later.as_object()) else { return };
    // An empty list, as from a template whose value is not set, selects nothing. A null is refused and must be reported
    // itself.
    let says_something = |value: &serde_json::Value| value.as_array().is_none_or(|list| !list.is_empty());
    let choices = |entries: &serde_json::Map<String, serde_json::Value>| -> Vec<String> {
        let chosen =
            entries.iter().filter(|(key, value)| says_something(value) && schema::excludes_others(root, schema, key));
        chosen.map(|(key, _)| key.clone()).collect()
    };
    if let [key] = choices(before).as_slice()
        && !after.contains_key(key)
        && !choices(after).is_empty()
        && let (Some(said), Some(schema)) = (before.get(key), schema::property(root, schema, key))
        && shape::fits_in_part(root, schema, said)
    {
        before.remove(key);
    }
    for (key, value) in after {
        if let (Some(before), Some(schema)) = (before.get_mut(key), schema::property(root, schema, key)) {
            give_way(root, schema, before, value);
        }
    }
}

struct Layer {
    name: String,
    value: serde_json::Value,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        let dict: Dict = Value::serialize(&self.value)?.deserialize()?;
        Ok(Map::from([(Profile::Default, dict)]))
    }
}

struct Tracer<'a> {
    figment: &'a Figment,
    givers: &'a HashMap<String, &'a Giver>,
}

impl Tracer<'_> {
    /// `left` is the part of the file that was not replaced.
    fn entries(
        &self,
        at: &At,
        entries: &Dict,
        node: Option<&Node>,
        left: Option<&serde_json::Value>,
        locations: &mut Locations,
    ) {
        for (name, value) in entries {
            let at = at.key(name);
            let found = node.and_then(|node| node.get(name));
            let left = left.and_then(|left| left.get(name));
            match (self.giver(value), found) {
                (_, Some((key, node))) if self.is_of_file(value, left) => locations.insert_node(&at, Some(key), node),
                (Some(giver), _) => locations.insert_given(&at, giver.clone()),
                _ => {}
            }
            self.within(&at, value, found.map(|(_, node)| node), left, locations);
        }
    }

    fn within(
        &self,
        at: &At,
        value: &Value,
        node: Option<&Node>,
        left: Option<&serde_json::Value>,
        locations: &mut Locations,
    ) {
        match value {
            Value::Dict(_, entries) => self.entries(at, entries, node, left, locations),
            Value::Array(_, items) if self.giver(value).is_none() => {
                let Some(Node { data: Data::List(nodes), .. }) = node else { return };
                for (index, (item, node)) in items.iter().zip(nodes).enumerate() {
                    let at = at.index(index);
                    locations.insert_node(&at, None, node);
                    // A list comes from one layer, so nothing in it is set by another.
                    self.within(&at, item, Some(node), None, locations);
                }
            }
            _ => {}
        }
    }

    /// Whether a file is shown as its place: for a map, if any part of it is left from the file. A layer that sets one
    /// setting of a section is not to blame for another that is missing.
    fn is_of_file(&self, value: &Value, left: Option<&serde_json::Value>) -> bool {
        match (value, left) {
            (Value::Dict(_, entries), Some(serde_json::Value::Object(left))) if self.giver(value).is_some() => {
                entries.keys().any(|name| left.contains_key(name))
            }
            _ => self.giver(value).is_none(),
        }
    }

    fn giver(&self, value: &Value) -> Option<&Giver> {
        let metadata = self.figment.get_metadata(value.tag())?;
        self.givers.get(metadata.name.as_ref()).copied()
    }
}

fn setting(giver: Giver, path: Vec<String>, value: &str, findings: &mut Vec<Finding>) -> Option<Setting> {
    if path.iter().any(|part| part.is_empty() || part.bytes().all(|byte| byte.is_ascii_digit())) {
        let mut finding = given(giver, "this is not the path of a setting");
        finding.help = Some("a path consists of names; a list is set whole, such as `[a, b]`".to_owned());
        findings.push(finding);
        return None;
    }
    // The value is not quoted: it may be a secret.
    let Ok(value) = Node::parse(value, 0) else {
        let mut finding = given(giver, "the value cannot be read as YAML");
        finding.help = Some("put text with special characters in quotes".to_owned());
        findings.push(finding);
        return None;
    };
    if !value.repeated_keys().is_empty() {
        findings.push(given(giver, "a key is set twice in the value"));
        return None;
    }
    Some(Setting { giver, path, value })
}

fn given(giver: Giver, message: &str) -> Finding {
    Finding::error(Some(Location::Given(giver)), message)
}

fn variable_name(path: &[String]) -> String {
    format!("{PREFIX}{}", path.join("__").to_ascii_uppercase())
}

/// Collects the values of keys `env`, the form of a secret's source.
fn collect_secret_variables(node: &Node, names: &mut BTreeSet<String>) {
    match &node.data {
        Data::List(items) => items.iter().for_each(|item| collect_secret_variables(item, names)),
        Data::Map(entries) => {
            for (key, value) in entries {
                match &value.data {
                    Data::Text(name) if key.name == "env" => _ = names.insert(name.clone()),
                    _ => collect_secret_variables(value, names),
                }
            }
        }
        _ => {}
    }
}

/// Whether a name, without its prefix, is that of a variable for a Kubernetes Service (kubelet's `envvars` package).
fn is_service_link(rest: &str) -> bool {
    let parts: Vec<&str> = rest.split('_').collect();
    let ends = |tail: &[&str]| parts.ends_with(tail);
    let port = parts.iter().rposition(|part| matches!(*part, "TCP" | "UDP" | "SCTP"));
    let of_port = port.is_some_and(|at| {
        let number = at.checked_sub(1).and_then(|at| parts.get(at));
        let word = at.checked_sub(2).and_then(|at| parts.get(at));
        let tail = parts.get(at + 1..).unwrap_or_default();
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
            && word == Some(&"PORT")
            && matches!(tail, [] | ["PROTO" | "PORT" | "ADDR"])
    });
    ends(&["SERVICE", "HOST"]) || parts.windows(2).any(|pair| pair == ["SERVICE", "PORT"]) || ends(&["PORT"]) || of_port
}

#[cfg(test)]
mod tests;
