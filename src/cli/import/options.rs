//! The options of oauth2-proxy in the three forms in which they can be written, under the names that they have in its
//! `.cfg`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::places::{Upstream, is_expression};

/// Names that are plural in the `.cfg`, where flags are repeated instead.
const PLURAL: [(&str, &str); 16] = [
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
    ("allowed_roles", "allowed_role"),
    ("entra_id_allowed_tenants", "entra_id_allowed_tenant"),
    ("gitlab_groups", "gitlab_group"),
    ("gitlab_projects", "gitlab_project"),
    ("google_groups", "google_group"),
    ("keycloak_groups", "keycloak_group"),
];

/// The places in the alpha YAML that correspond to options. They are not case-sensitive.
const ALPHA: [(&str, &str); 35] = [
    ("providers[0].provider", "provider"),
    ("providers[0].clientID", "client_id"),
    ("providers[0].clientSecret", "client_secret"),
    ("providers[0].clientSecretFile", "client_secret_file"),
    ("providers[0].name", "provider_display_name"),
    ("providers[0].scope", "scope"),
    ("providers[0].allowedGroups", "allowed_group"),
    ("providers[0].caFiles", "provider_ca_file"),
    ("providers[0].code_challenge_method", "code_challenge_method"),
    ("providers[0].oidcConfig.issuerURL", "oidc_issuer_url"),
    ("providers[0].oidcConfig.groupsClaim", "oidc_groups_claim"),
    ("providers[0].oidcConfig.emailClaim", "oidc_email_claim"),
    ("providers[0].oidcConfig.userIDClaim", "user_id_claim"),
    ("providers[0].oidcConfig.insecureSkipNonce", "insecure_oidc_skip_nonce"),
    ("providers[0].oidcConfig.insecureAllowUnverifiedEmail", "insecure_oidc_allow_unverified_email"),
    ("providers[0].loginURL", "login_url"),
    ("providers[0].redeemURL", "redeem_url"),
    ("providers[0].profileURL", "profile_url"),
    ("providers[0].validateURL", "validate_url"),
    ("providers[0].azureConfig.tenant", "azure_tenant"),
    ("providers[0].githubConfig.org", "github_org"),
    ("providers[0].githubConfig.team", "github_team"),
    ("providers[0].githubConfig.repo", "github_repo"),
    ("providers[0].githubConfig.token", "github_token"),
    ("providers[0].githubConfig.users", "github_user"),
    ("providers[0].gitlabConfig.group", "gitlab_group"),
    ("providers[0].gitlabConfig.projects", "gitlab_project"),
    ("providers[0].googleConfig.group", "google_group"),
    ("providers[0].keycloakConfig.groups", "keycloak_group"),
    ("providers[0].keycloakConfig.roles", "allowed_role"),
    ("providers[0].microsoftEntraIDConfig.allowedTenants", "entra_id_allowed_tenant"),
    ("server.BindAddress", "http_address"),
    ("server.SecureBindAddress", "https_address"),
    ("server.TLS.Cert.fromFile", "tls_cert_file"),
    ("server.TLS.Key.fromFile", "tls_key_file"),
];

/// The values in the alpha YAML if nothing was chosen, as its converter writes them. `false` is such a value too,
/// unless listed otherwise here.
const DEFAULTS: [(&str, &str); 5] = [
    ("providers[0].oidcConfig.audienceClaims", "aud"),
    ("server.TLS.MinVersion", "TLS1.2"),
    ("upstreamConfig.upstreams[].flushInterval", "1s"),
    ("upstreamConfig.upstreams[].proxyWebSockets", "true"),
    ("upstreamConfig.upstreams[].timeout", "30s"),
];

/// The same for options, in whichever form they are written.
const USUAL: [(&str, &str); 5] = [
    ("azure_tenant", "common"),
    ("oidc_email_claim", "email"),
    ("proxy_prefix", "/oauth2"),
    ("session_store_type", "cookie"),
    ("user_id_claim", "email"),
];

/// Keys of a provider that do not affect who may sign in: how it is queried, and what else its tokens are checked for.
const HOW: [&str; 9] = [
    "additionalClaims",
    "ADFSConfig",
    "authRequestResponseMode",
    "backendLogoutURL",
    "loginURLParameters",
    "oidcConfig",
    "resource",
    "skipClaimsFromProfileURL",
    "useSystemTrustStore",
];

#[derive(Debug, Default)]
pub(super) struct Options {
    named: Found,
    pub upstreams: Vec<Upstream>,
}

impl Options {
    /// Adds the options in a file. They replace those of the same name from earlier files.
    pub fn read(&mut self, text: &str) -> Result<(), String> {
        let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let is_flags = lines().any(|line| {
            line.contains("--") && (line.trim_start_matches(['-', ' ', '"', '\'']) != line || names_program(line))
        });
        let mut upstreams = Vec::new();
        let found = if is_flags {
            flags(text)?
        } else {
            match toml::from_str::<BTreeMap<String, Value>>(text) {
                Ok(table) => of_cfg(table)?,
                Err(error) if lines().next().is_some_and(is_assignment) => return Err(faulty(text, &error)),
                Err(_) => alpha(text, &mut upstreams)?,
            }
        };
        for (name, values) in found {
            let name = PLURAL.iter().find(|(plural, _)| *plural == name).map_or(name.as_str(), |(_, single)| *single);
            match name {
                "upstream" => upstreams.extend(values.iter().map(|address| Upstream::of_address(address))),
                _ if USUAL.iter().any(|(usual, value)| *usual == name && values.iter().all(|said| said == value)) => {
                    drop(self.named.remove(name));
                }
                _ => drop(self.named.insert(name.to_owned(), values)),
            }
        }
        if !upstreams.is_empty() {
            self.upstreams = upstreams;
        }
        Ok(())
    }

    pub fn take_all(&mut self, name: &str) -> Vec<String> {
        self.named.remove(name).unwrap_or_default()
    }

    /// Takes the last value.
    pub fn take(&mut self, name: &str) -> Option<String> {
        self.take_all(name).pop()
    }

    /// Puts back values that belong to another option.
    pub fn add(&mut self, name: &str, values: Vec<String>) {
        self.named.entry(name.to_owned()).or_default().extend(values);
    }

    /// The options that were not taken.
    pub fn left(&self) -> impl Iterator<Item = &str> {
        self.named.keys().map(String::as_str)
    }

    /// Whether an option that was not taken has a value.
    pub fn says(&self, name: &str) -> bool {
        self.named.get(name).is_some_and(|values| values.iter().any(|value| !value.is_empty()))
    }

    /// Whether an option that was not taken is switched on.
    pub fn is_on(&self, name: &str) -> bool {
        let last = self.named.get(name).and_then(|values| values.last());
        last.is_some_and(|value| ["1", "t", "true"].iter().any(|on| on.eq_ignore_ascii_case(value)))
    }
}

/// Whether a value switches an option off.
pub(super) fn is_off(value: &str) -> bool {
    ["", "0", "f", "false"].iter().any(|off| off.eq_ignore_ascii_case(value))
}

/// Whether a name of [`Options::left`] is an unknown key of a provider in the alpha YAML, and may affect who can sign
/// in there.
pub(super) fn may_say_who(name: &str) -> bool {
    let member = name.strip_prefix("providers[0].").map(|rest| rest.split(['.', '[']).next().unwrap_or_default());
    member.is_some_and(|member| !HOW.iter().any(|how| how.eq_ignore_ascii_case(member)))
}

/// Whether a line is a command that begins with the name of the program, which was a different one before version 6.
fn names_program(line: &str) -> bool {
    let program = shell_words(line).into_iter().find(|word| word != "exec").unwrap_or_default();
    program.rsplit('/').next().is_some_and(|name| ["oauth2-proxy", "oauth2_proxy"].contains(&name))
}

/// Whether an option, by its name in the `.cfg` or as a flag, takes many values, which may also be separated by commas.
fn is_list(name: &str) -> bool {
    PLURAL.iter().any(|(plural, single)| [*plural, *single].contains(&name))
}

type Found = BTreeMap<String, Vec<String>>;

/// `--name=value`, `--name value` or `--name`, on one line or many, also as the entries of a YAML list.
fn flags(text: &str) -> Result<Found, String> {
    let mut found = Found::new();
    let mut words = Vec::new();
    for (number, line) in (1..).zip(text.lines().map(str::trim)) {
        let entry = line.strip_prefix("- ").map(str::trim_start);
        let opens = ["[\"--", "['--", "[--"];
        if entry.unwrap_or(line).starts_with('[')
            || entry.is_none() && (line.ends_with('[') || opens.iter().any(|open| line.contains(open)))
        {
            return Err(
                "it has a list in brackets: write each of its entries on a line of its own, behind `- `".to_owned()
            );
        }
        match entry {
            // An entry of a list is one word, whatever it contains.
            Some(entry) => words.extend(scalar(entry).map_err(|why| format!("line {number}: {why}"))?),
            None => words.extend(shell_words(line.trim_end_matches('\\'))),
        }
    }
    let mut add = |name: String, value: &str| {
        let values = found.entry(name.clone()).or_default();
        match is_list(&name) {
            true => values.extend(fields(value)),
            false => values.push(value.trim_matches(['"', '\'']).to_owned()),
        }
    };
    let mut open: Option<String> = None;
    for word in words.iter().map(String::as_str) {
        if let Some(flag) = word.strip_prefix("--") {
            if let Some(name) = open.take() {
                add(name, "true");
            }
            match flag.split_once('=') {
                Some((name, value)) => add(name.replace('-', "_"), value),
                None => open = Some(flag.replace('-', "_")),
            }
        } else if let Some(name) = open.take() {
            add(name, word);
        }
    }
    if let Some(name) = open {
        add(name, "true");
    }
    if found.is_empty() { Err("there is no flag in it".to_owned()) } else { Ok(found) }
}

/// Splits the values of a flag that is a list at commas, except commas within quotes.
fn fields(list: &str) -> Vec<String> {
    let mut is_quoted = false;
    let fields = list.split(|character| {
        is_quoted ^= character == '"';
        character == ',' && !is_quoted
    });
    fields.map(|field| field.trim_matches(['"', '\'']).to_owned()).collect()
}

/// Parses an entry of a YAML list without its quotes and without a comment after it; the entry may consist of a comment
/// alone. An entry that opens a quote and is not a text is refused, because otherwise it would not be recognised as a
/// flag and be left out.
fn scalar(entry: &str) -> Result<Option<String>, &'static str> {
    match serde_saphyr::from_str(entry) {
        Ok(Value::String(text)) => Ok(Some(text)),
        Ok(Value::Null) => Ok(None),
        Ok(value @ (Value::Bool(_) | Value::Number(_))) => Ok(Some(value.to_string())),
        _ if entry.starts_with(['"', '\'']) => {
            Err("the quotes of this entry do not fit: close them in its line, and double each `'` within `'…'`")
        }
        _ => Ok(Some(entry.to_owned())),
    }
}

/// Splits a line into words as a shell does, without its comment.
fn shell_words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for character in line.chars() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, _) if character.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

fn of_cfg(table: BTreeMap<String, Value>) -> Result<Found, String> {
    let mut found = Found::new();
    for (name, value) in table {
        let values = match &value {
            Value::String(list) if is_list(&name) => list.split(',').map(str::to_owned).collect(),
            _ => texts(&value).ok_or_else(|| no_option(&name))?,
        };
        found.insert(name, values);
    }
    Ok(found)
}

/// Whether a line is one of a `.cfg`.
fn is_assignment(line: &str) -> bool {
    let name = line.split_once('=').map(|(name, _)| name.trim()).unwrap_or_default();
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}

/// The place of an error in a `.cfg`. Its own words are left out, as they may quote a secret.
fn faulty(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map(|before| format!("line {}: ", before.matches('\n').count() + 1)).unwrap_or_default();
    format!("{line}this is not valid TOML: close the quotes and brackets of each value, and write each name once")
}

fn alpha(text: &str, upstreams: &mut Vec<Upstream>) -> Result<Found, String> {
    const NEITHER: &str = "it is neither flags, nor a `.cfg` (TOML), nor alpha YAML";
    // A snippet of the text may contain a secret.
    let root: Value =
        serde_saphyr::from_str(text).map_err(|error| format!("{NEITHER}: {}", error.without_snippet()))?;
    let Value::Object(root) = root else { return Err(NEITHER.to_owned()) };
    let mut found = Found::new();
    for (name, value) in &root {
        match name.to_ascii_lowercase().as_str() {
            _ if value.is_null() => {}
            "server" => leaves(name, value, &mut found)?,
            "providers" => {
                let all = value.as_array().map(Vec::as_slice).unwrap_or_default();
                if let Some(first) = all.first() {
                    leaves("providers[0]", first, &mut found)?;
                }
                if all.len() > 1 {
                    found.insert("providers[1]".to_owned(), Vec::new());
                }
            }
            "upstreamconfig" => {
                for (member, value) in value.as_object().into_iter().flatten() {
                    match value.as_array().filter(|_| member.eq_ignore_ascii_case("upstreams")) {
                        Some(all) => {
                            for one in all {
                                upstreams.push(upstream(one, &mut found)?);
                            }
                        }
                        None => leaves(&format!("upstreamConfig.{member}"), value, &mut found)?,
                    }
                }
            }
            _ => drop(found.insert(name.clone(), Vec::new())),
        }
    }
    Ok(found)
}

fn upstream(upstream: &Value, found: &mut Found) -> Result<Upstream, String> {
    let members = || upstream.as_object().into_iter().flatten();
    let member = |name: &str| members().find(|(written, _)| written.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    let text = |name: &str| member(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let path = text("path");
    let address = match member("static") {
        Some(Value::Bool(true)) => {
            format!("static://{}", member("staticCode").and_then(Value::as_u64).unwrap_or(200))
        }
        _ => text("uri"),
    };
    let has_target = member("rewriteTarget").is_some_and(|target| !target.is_null() && target != "");
    for (name, value) in members() {
        let known = ["id", "path", "uri", "static", "staticCode", "rewriteTarget"];
        let is_host = name.eq_ignore_ascii_case("passHostHeader") && value.is_boolean();
        if !is_host && !known.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            leaves(&format!("upstreamConfig.upstreams[].{name}"), value, found)?;
        }
    }
    let sees_own_host = Some(member("passHostHeader") == Some(&Value::Bool(false)));
    Ok(Upstream { is_rewritten: has_target || is_expression(&path), path, address, sees_own_host })
}

/// Adds everything at a place of the alpha YAML and below: under the name of its option, or if there is none under its
/// own name, so that nothing is left out silently.
fn leaves(place: &str, value: &Value, found: &mut Found) -> Result<(), String> {
    let is_here = |known: &str| known.eq_ignore_ascii_case(place);
    let option = ALPHA.iter().find(|(known, _)| is_here(known)).map(|(_, option)| *option);
    let values = match value {
        Value::Object(members) if option.is_none() => {
            return members.iter().try_for_each(|(name, value)| leaves(&format!("{place}.{name}"), value, found));
        }
        // An identifier within the file.
        _ if value.is_null() || is_here("providers[0].id") => return Ok(()),
        _ => texts(value),
    };
    let default = DEFAULTS.iter().find(|(known, _)| is_here(known)).map_or("false", |(_, default)| *default);
    if values.as_ref().is_some_and(|values| values.iter().all(|value| value.is_empty() || value == default)) {
        return Ok(());
    }
    let name = option.unwrap_or(place);
    match values {
        Some(values) => found.entry(name.to_owned()).or_default().extend(values),
        // A list of maps, of which only the name is reported.
        None if option.is_none() => drop(found.entry(name.to_owned()).or_default()),
        None => return Err(no_option(place)),
    }
    Ok(())
}

/// Returns the values of an option; `None` if an option cannot have such a value.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Bool(_) | Value::Number(_) => Some(vec![value.to_string()]),
        Value::Array(values) => values.iter().map(texts).collect::<Option<Vec<_>>>().map(|all| all.concat()),
        Value::Null | Value::Object(_) => None,
    }
}

/// Reports the name without the value, which may be a secret.
fn no_option(name: &str) -> String {
    format!("`{name}` has a value that no option can have")
}
