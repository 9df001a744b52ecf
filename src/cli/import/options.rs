//! The options of oauth2-proxy in its three ways of writing them, under the names that they have in its `.cfg`.

use std::collections::BTreeMap;

use serde_json::Value;

/// Names with a plural in the `.cfg`, as flags are repeated instead.
const PLURAL: [(&str, &str); 10] = [
    ("email_domains", "email_domain"),
    ("upstreams", "upstream"),
    ("cookie_domains", "cookie_domain"),
    ("whitelist_domains", "whitelist_domain"),
    ("allowed_groups", "allowed_group"),
    ("skip_auth_routes", "skip_auth_route"),
    ("trusted_proxy_ips", "trusted_proxy_ip"),
    ("provider_ca_files", "provider_ca_file"),
    ("login_url_parameters", "login_url_parameter"),
    ("github_users", "github_user"),
];

/// Where the alpha YAML says what an option says, by JSON pointer.
const ALPHA: [(&str, &str); 26] = [
    ("/providers/0/provider", "provider"),
    ("/providers/0/clientID", "client_id"),
    ("/providers/0/clientSecret", "client_secret"),
    ("/providers/0/clientSecretFile", "client_secret_file"),
    ("/providers/0/name", "provider_display_name"),
    ("/providers/0/scope", "scope"),
    ("/providers/0/allowedGroups", "allowed_group"),
    ("/providers/0/caFiles", "provider_ca_file"),
    ("/providers/0/code_challenge_method", "code_challenge_method"),
    ("/providers/0/oidcConfig/issuerURL", "oidc_issuer_url"),
    ("/providers/0/oidcConfig/groupsClaim", "oidc_groups_claim"),
    ("/providers/0/oidcConfig/insecureSkipNonce", "insecure_oidc_skip_nonce"),
    ("/providers/0/oidcConfig/insecureAllowUnverifiedEmail", "insecure_oidc_allow_unverified_email"),
    ("/providers/0/loginURL", "login_url"),
    ("/providers/0/redeemURL", "redeem_url"),
    ("/providers/0/profileURL", "profile_url"),
    ("/providers/0/validateURL", "validate_url"),
    ("/providers/0/githubConfig/org", "github_org"),
    ("/providers/0/githubConfig/team", "github_team"),
    ("/providers/0/githubConfig/repo", "github_repo"),
    ("/providers/0/githubConfig/token", "github_token"),
    ("/providers/0/githubConfig/users", "github_user"),
    ("/server/BindAddress", "http_address"),
    ("/server/bindAddress", "http_address"),
    ("/server/SecureBindAddress", "https_address"),
    ("/server/secureBindAddress", "https_address"),
];

#[derive(Debug, Default)]
pub(super) struct Options(BTreeMap<String, Vec<String>>);

impl Options {
    /// Adds what a file says. What it names replaces what was named before.
    pub fn read(&mut self, text: &str) -> Result<(), String> {
        let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let is_flags =
            lines().any(|line| line.trim_start_matches(['-', ' ', '"', '\'']) != line && line.contains("--"));
        let found = if is_flags {
            flags(text)?
        } else if let Ok(table) = toml::from_str::<BTreeMap<String, Value>>(text) {
            let mut found = BTreeMap::new();
            for (name, value) in table {
                found.insert(name, texts(&value)?);
            }
            found
        } else {
            alpha(text)?
        };
        for (name, values) in found {
            let name = PLURAL.iter().find(|(plural, _)| *plural == name).map_or(name.as_str(), |(_, single)| *single);
            self.0.insert(name.to_owned(), values);
        }
        Ok(())
    }

    pub fn take_all(&mut self, name: &str) -> Vec<String> {
        self.0.remove(name).unwrap_or_default()
    }

    /// The last value.
    pub fn take(&mut self, name: &str) -> Option<String> {
        self.take_all(name).pop()
    }

    /// What nobody took.
    pub fn left(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

type Found = BTreeMap<String, Vec<String>>;

/// `--name=value`, `--name value` or `--name`, on one line or many, also as the entries of a YAML list.
fn flags(text: &str) -> Result<Found, String> {
    let mut found = Found::new();
    let words = text.lines().flat_map(|line| {
        let line = line.trim().trim_end_matches('\\').trim();
        // An entry of a list is one word, whatever it holds.
        match line.strip_prefix("- ") {
            Some(entry) => vec![entry.trim()],
            None => line.split_ascii_whitespace().collect(),
        }
    });
    let mut open: Option<String> = None;
    for word in words.map(|word| word.trim_matches(['"', '\''])) {
        if let Some(flag) = word.strip_prefix("--") {
            if let Some(name) = open.take() {
                found.entry(name).or_default().push("true".to_owned());
            }
            match flag.split_once('=') {
                Some((name, value)) => {
                    let value = value.trim_matches(['"', '\'']).to_owned();
                    found.entry(name.replace('-', "_")).or_default().push(value);
                }
                None => open = Some(flag.replace('-', "_")),
            }
        } else if let Some(name) = open.take() {
            found.entry(name).or_default().push(word.to_owned());
        }
    }
    if let Some(name) = open {
        found.entry(name).or_default().push("true".to_owned());
    }
    if found.is_empty() { Err("there is no flag in it".to_owned()) } else { Ok(found) }
}

fn alpha(text: &str) -> Result<Found, String> {
    let root: Value = serde_saphyr::from_str(text)
        .map_err(|error| format!("it is neither flags, nor a `.cfg` (TOML), nor alpha YAML: {error}"))?;
    if !root.is_object() {
        return Err("it is neither flags, nor a `.cfg` (TOML), nor alpha YAML".to_owned());
    }
    let mut found = Found::new();
    for (pointer, name) in ALPHA {
        if let Some(value) = root.pointer(pointer).filter(|value| !value.is_null()) {
            found.insert(name.to_owned(), texts(value)?);
        }
    }
    let upstreams = root.pointer("/upstreamConfig/upstreams").and_then(Value::as_array);
    for upstream in upstreams.into_iter().flatten() {
        let text = |name: &str| upstream.get(name).and_then(Value::as_str).unwrap_or_default();
        let (uri, path) = (text("uri").trim_end_matches('/'), text("path"));
        if upstream.get("static") == Some(&Value::Bool(true)) {
            let code = upstream.get("staticCode").and_then(Value::as_u64).unwrap_or(200);
            found.entry("upstreams".to_owned()).or_default().push(format!("static://{code}"));
        } else if path.starts_with('^') || upstream.get("rewriteTarget").is_some() {
            found.entry("upstreamConfig.rewriteTarget".to_owned()).or_default().push(path.to_owned());
        } else {
            found.entry("upstreams".to_owned()).or_default().push(format!("{uri}{path}"));
        }
    }
    if root.pointer("/providers/1").is_some() {
        found.insert("providers[1]".to_owned(), Vec::new());
    }
    for name in ["injectRequestHeaders", "injectResponseHeaders", "metricsServer"] {
        if root.get(name).is_some() {
            found.insert(name.to_owned(), Vec::new());
        }
    }
    for name in root.as_object().into_iter().flatten().map(|(name, _)| name) {
        let known = ["providers", "upstreamConfig", "server", "injectRequestHeaders", "injectResponseHeaders"];
        if !known.contains(&name.as_str()) {
            found.insert(name.clone(), Vec::new());
        }
    }
    Ok(found)
}

fn texts(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Bool(_) | Value::Number(_) => Ok(vec![value.to_string()]),
        Value::Array(values) => values.iter().map(texts).collect::<Result<Vec<_>, _>>().map(|all| all.concat()),
        other => Err(format!("`{other}` is no value of an option")),
    }
}
