//! Reads a kubeconfig, which describes an API server and Doorward's credential for it.
//!
//! Fields that would make kubectl connect or authenticate in a way that Doorward does not support are refused, and so
//! are unknown fields: ignoring them would give a different connection than described. Messages quote nothing from the
//! file except the names of its contexts, clusters and users.

use std::path::PathBuf;

use base64::{Engine, prelude::BASE64_STANDARD};
use http::HeaderValue;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{
    access::{Access, Credential, Target, bearer},
    tls::{Material, Pem, server_name},
};
use crate::config::{
    parse_yaml, raw,
    report::{At, nearest},
    resolver::{Resolver, Secret},
    values::SecretSource,
};

/// The fields of a part that are supported, and those that do not affect the connection.
fn known(part: &str) -> &'static [&'static str] {
    match part {
        "context" => &["cluster", "user", "namespace", "extensions"],
        "cluster" => &[
            "server",
            "certificate-authority",
            "certificate-authority-data",
            "tls-server-name",
            "disable-compression",
            "extensions",
        ],
        _ => &[
            "token",
            "tokenFile",
            "client-certificate",
            "client-certificate-data",
            "client-key",
            "client-key-data",
            "extensions",
        ],
    }
}

/// What to do instead of a field that kubectl supports and Doorward does not.
fn instead_of(field: &str) -> Option<&'static str> {
    Some(match field {
        "insecure-skip-tls-verify" => {
            "any server would be accepted; put the CA certificate into `certificate-authority-data`, and a \
             name from the server's certificate into `tls-server-name`"
        }
        "proxy-url" => {
            "upstreams are connected to directly; use an address in `server` that is reachable without a proxy"
        }
        "exec" | "auth-provider" => {
            "Doorward runs no programs to get credentials; let the program write the token to a file, and name \
             that in `tokenFile`, or use a client certificate"
        }
        "username" | "password" => "API servers no longer accept passwords; use a token or a client certificate",
        "as" | "as-uid" | "as-groups" | "as-user-extra" => {
            "Doorward itself impersonates its callers; use a credential of Doorward's own account"
        }
        _ => return None,
    })
}

/// Reads the kubeconfig that is named at `at`. All problems are reported, and any of them gives `None`.
pub(super) fn read(raw: &raw::Kubeconfig, at: &At, resolver: &mut Resolver) -> Option<Access> {
    let path = resolver.path(&raw.file).display().to_string();
    let mut reader = Reader { raw, at: at.key("file"), path, resolver, refused: false };
    let document = reader.document()?;
    let (name, context_at) = match (&raw.context, document.get("current-context")) {
        (Some(name), _) => (name.as_str(), at.key("context")),
        (None, Some(Value::String(name))) if !name.is_empty() => (name.as_str(), at.key("file")),
        _ => {
            reader.refuse("has no `current-context`", "set `context` to the one to use");
            return None;
        }
    };
    let context = reader.part(&document, "context", name, &context_at)?;
    let (cluster, user) = (reader.text(&context, "cluster"), reader.text(&context, "user"));
    let (Some(cluster), Some(user)) = (cluster, user) else {
        reader.refuse(&format!("names no cluster or no user in {context}"), "`kubectl config set-context` sets them");
        return None;
    };
    let at = reader.at.clone();
    let (cluster, user) = (reader.part(&document, "cluster", cluster, &at), reader.part(&document, "user", user, &at));
    let (cluster, user) = (cluster?, user?);

    let target = reader.target(&cluster);
    let server_name = target.as_ref().and_then(|target| reader.server_name(&cluster, target));
    let authorities = reader.pem(&cluster, "certificate-authority");
    let (chain, key) = (reader.pem(&user, "client-certificate"), reader.pem(&user, "client-key"));
    let credential = reader.token(&user).map(Credential::Written);
    let target = target.filter(|_| !reader.refused)?;
    if chain.is_some() != key.is_some() {
        let help = "write both `client-certificate` and `client-key`, or leave both out for a token";
        reader.refuse(&format!("has half of a client certificate and its key in {user}"), help);
    } else if credential.is_none() && chain.is_none() {
        let help = "give it `tokenFile`, `token`, or `client-certificate` and `client-key`: impersonation needs one";
        reader.refuse(&format!("has no credential in {user}"), help);
    }
    let certificate = chain.zip(key);
    let is_tls =
        authorities.is_some() || certificate.is_some() || cluster.fields.get("tls-server-name").is_some_and(is_set);
    if !target.is_secure() && is_tls {
        reader.refuse(&format!("has TLS settings, but the `server` in {cluster} is not https"), HTTPS);
    }
    let tls = target.is_secure().then_some(Material { at, server_name, authorities, certificate });
    (!reader.refused).then_some(Access { target, tls, credential })
}

const HTTPS: &str = "write `https://` in `server`";

/// A context, cluster or user.
struct Part<'d> {
    what: &'static str,
    name: &'d str,
    fields: &'d Map<String, Value>,
}

impl std::fmt::Display for Part<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the {} `{}`", self.what, self.name)
    }
}

struct Reader<'a> {
    raw: &'a raw::Kubeconfig,
    /// Where the configuration names the file.
    at: At,
    /// The path of the file as it appears in messages.
    path: String,
    resolver: &'a mut Resolver,
    refused: bool,
}

impl Reader<'_> {
    /// `why` continues the sentence that begins with the name of the file.
    fn refuse(&mut self, why: &str, help: &str) {
        self.refused = true;
        self.resolver.error(&self.at, format!("{} {why}", self.path)).help(help);
    }

    fn document(&mut self) -> Option<Map<String, Value>> {
        let bytes = Zeroizing::new(self.resolver.read(&self.at, &self.raw.file)?);
        // The YAML parser's message could quote the content.
        let document = std::str::from_utf8(&bytes).ok().and_then(|text| parse_yaml(text).ok());
        let Some(document) = document else {
            let help = "its content is not shown here; `kubectl config view --kubeconfig FILE` says where it is broken";
            self.refuse("is not valid YAML, or has a duplicate key", help);
            return None;
        };
        if document.get("kind") != Some(&"Config".into()) || document.get("apiVersion") != Some(&"v1".into()) {
            self.refuse("is not a kubeconfig", "a kubeconfig has `apiVersion: v1` and `kind: Config`");
            return None;
        }
        Some(document)
    }

    /// The entry with this name in a list. `at` is the place of the name.
    fn part<'d>(
        &mut self,
        document: &'d Map<String, Value>,
        what: &'static str,
        name: &'d str,
        at: &At,
    ) -> Option<Part<'d>> {
        let entries = document.get(&format!("{what}s")).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let named = |entry: &'d Value| entry.get("name").and_then(Value::as_str);
        let mut found = entries.iter().filter(|entry| named(entry) == Some(name));
        let Some(entry) = found.next() else {
            let problem = self.resolver.unknown(at, what, name, entries.iter().filter_map(named));
            problem.message = format!("{}: {}", self.path, problem.message);
            return None;
        };
        if found.next().is_some() {
            self.refuse(&format!("has the {what} `{name}` twice"), "leave out or rename one of them");
            return None;
        }
        let Some(fields) = entry.get(what).and_then(Value::as_object) else {
            self.refuse(&format!("has nothing for the {what} `{name}`"), "compare it with `kubectl config view`");
            return None;
        };
        let part = Part { what, name, fields };
        self.check(&part);
        Some(part)
    }

    /// Refuses unsupported fields of a part. An unknown field is not named, as it may be a misplaced token.
    fn check(&mut self, part: &Part<'_>) {
        for (key, value) in part.fields {
            let known = known(part.what);
            match instead_of(key) {
                _ if known.contains(&key.as_str()) => {}
                Some(_) if !is_set(value) => {}
                Some(help) => self.refuse(&format!("has `{key}` in {part}, which Doorward does not support"), help),
                None => {
                    let near = nearest(key, known.iter().copied()).map(|near| format!("did you mean `{near}`?"));
                    let help = near.unwrap_or_else(|| format!("known there: {}", known.join(", ")));
                    self.refuse(&format!("has an unknown field in {part}"), &help);
                }
            }
        }
    }

    /// A text field. As in kubectl, an empty one counts as missing.
    fn text<'d>(&mut self, part: &Part<'d>, key: &str) -> Option<&'d str> {
        match part.fields.get(key)? {
            Value::Null => None,
            Value::String(text) => Some(text.as_str()).filter(|text| !text.is_empty()),
            _ => {
                self.refuse(&format!("has a value that is not text in `{key}` of {part}"), "put it in quotes");
                None
            }
        }
    }

    fn target(&mut self, cluster: &Part<'_>) -> Option<Target> {
        let help = "write `https://host:port`, an address of the API server itself, without a path";
        let Some(server) = self.text(cluster, "server") else {
            self.refuse(&format!("has no `server` in {cluster}"), help);
            return None;
        };
        match Target::parse(server) {
            Err(why) => self.refuse(&format!("has a `server` in {cluster} that {why}"), help),
            Ok(target) if !target.is_secure() && !target.is_loopback() => {
                self.refuse(&format!("has a `server` in {cluster} to which credentials would go in clear text"), HTTPS);
            }
            Ok(target) => return Some(target),
        }
        None
    }

    fn server_name(&mut self, cluster: &Part<'_>, target: &Target) -> Option<rustls::pki_types::ServerName<'static>> {
        let given = self.text(cluster, "tls-server-name");
        let name = server_name(given, &target.host);
        if name.is_none() {
            let help = "put a name from the server's certificate into `tls-server-name`";
            self.refuse(&format!("has no name for {cluster} that a certificate could have"), help);
        }
        name
    }

    /// PEM data in the file itself, or in one that it names; both at once are refused.
    fn pem(&mut self, part: &Part<'_>, key: &str) -> Option<Pem> {
        let data_key = format!("{key}-data");
        match (self.file(part, key), self.text(part, &data_key)) {
            (None, None) => None,
            (Some(path), None) => Some(Pem::file(path, self.at.clone())),
            (None, Some(data)) => {
                // It may contain line breaks.
                let data: Zeroizing<String> = Zeroizing::new(data.split(['\r', '\n']).collect());
                let Ok(text) = BASE64_STANDARD.decode(data.as_bytes()) else {
                    let help = "it must hold a PEM file in base64, as `base64 -w0 FILE` prints it";
                    self.refuse(&format!("has a value that is not base64 in `{data_key}` of {part}"), help);
                    return None;
                };
                let called = format!("`{data_key}` of {part} in {}", self.path);
                Some(Pem::text(Secret::new(text), called, self.at.clone()))
            }
            (Some(_), Some(_)) => {
                self.refuse(&format!("has both `{key}` and `{data_key}` in {part}"), "leave one of them out");
                None
            }
        }
    }

    fn token(&mut self, user: &Part<'_>) -> Option<HeaderValue> {
        // As in kubectl, the file wins.
        let (token, called) = match (self.file(user, "tokenFile"), self.text(user, "token")) {
            (Some(path), _) => {
                let source = SecretSource::File(path);
                (self.resolver.secret(&self.at, &source), source.to_string())
            }
            (None, Some(token)) => (Some(Secret::new(token.into())), format!("`token` of {user} in {}", self.path)),
            (None, None) => return None,
        };
        let value = token.and_then(|token| bearer(&token, called, &self.at, self.resolver));
        self.refused |= value.is_none();
        value
    }

    /// A file named by the kubeconfig, relative to its folder.
    fn file(&mut self, part: &Part<'_>, key: &str) -> Option<PathBuf> {
        let path = self.text(part, key)?;
        // Messages show paths, but must not show anything that is not a path.
        if path.contains(char::is_control) || path.split('/').any(|name| name.len() > 255) {
            self.refuse(&format!("has a value that is not a path in `{key}` of {part}"), "write the path of a file");
            return None;
        }
        Some(self.raw.file.with_file_name(path))
    }
}

/// Whether a field has a value.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests;
