//! `doorward import oauth2-proxy`: converts its flags, its `oauth2-proxy.cfg` or its alpha YAML to a configuration of
//! Doorward, and lists what could not be converted. Secrets in these files are named but never printed.

mod options;
mod places;
mod rule;

use std::{
    io::{self, Write},
    path::PathBuf,
};

use serde_json::{Map, Value, json};
use url::Url;

use self::{
    options::{Options, is_off},
    places::{Places, places},
    rule::{RULE, lets_in_any, missing, rule, verifies},
};
use crate::{clock::go_duration, terminal};

/// Convert the configuration of another proxy, such as oauth2-proxy.
///
/// Prints a configuration, and on standard error what could not be converted. The exit status is 2 if there is
/// any such thing, for example a secret.
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// The other proxy.
    #[arg(value_name = "PROXY", value_parser = ["oauth2-proxy"])]
    proxy: String,

    /// Its flags (a command line, or the `args` of a container), its `.cfg`, or its alpha `.yaml`. If there are
    /// several, later ones take precedence.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// The host that browsers use, if no `redirect_url` names it.
    #[arg(long)]
    host: Option<String>,
}

/// Where a secret is expected that was in the file itself.
const CLIENT_SECRET: &str = "/etc/doorward/secrets/oidc-client-secret";

/// Settings that need no counterpart, because Doorward always behaves in this way.
const ALWAYS: [&str; 15] = [
    "code_challenge_method",
    "cookie_csrf_per_request",
    "cookie_csrf_per_request_limit",
    "cookie_httponly",
    "cookie_name",
    "cookie_samesite",
    "cookie_secure",
    "encode_state",
    "force_json_errors",
    "insecure_oidc_skip_nonce",
    "pass_user_headers",
    "proxy_websockets",
    "set_xauthrequest",
    "skip_provider_button",
    "standard_logging",
];

/// What to do for paths that need no login.
const OPEN_ROUTE: &str = "add a route of kind `http` for these paths with `schemes: [anonymous]` and no other scheme, \
                          and a rule that allows it. Such a route forwards `Authorization`, but no bearer token if \
                          another route of the host has the scheme `bearer`; if applications take tokens of their own \
                          there, give them a host of their own";

/// Settings without a counterpart, and what to do instead.
const INSTEAD: [(&str, &str); 33] = [
    (
        "cookie_domain",
        "a session belongs to one host here; each further host has a login of its own, which goes to the \
      provider and back without a question. List all hosts in the route",
    ),
    ("whitelist_domain", "a login leads back to its own host only"),
    ("cookie_secret", "write a new key and name it under `sessions.keys`; everybody signs in once more"),
    ("cookie_secret_file", "write a new key and name it under `sessions.keys`; everybody signs in once more"),
    ("cookie_refresh", "sessions are refreshed as `sessions.recheck` says, 5 minutes by default"),
    ("skip_auth_route", OPEN_ROUTE),
    ("skip_auth_regex", OPEN_ROUTE),
    ("skip_auth_preflight", "preflights are refused or forwarded by route; take credentials by `Authorization`"),
    ("skip_jwt_bearer_tokens", "give the issuer `audiences`, and the route the scheme `bearer`"),
    ("extra_jwt_issuers", "add an issuer for each, with its `audiences`, and give the route the scheme `bearer`"),
    ("pass_access_token", "tokens of the provider never leave Doorward"),
    ("pass_authorization_header", "tokens of the provider never leave Doorward"),
    ("set_authorization_header", "tokens of the provider never leave Doorward"),
    (
        "proxy_prefix",
        "logins are under `/oauth2` here: register `/oauth2/callback` at the provider, and have the ingress send `/oauth2` and \
         `/.doorward` here",
    ),
    (
        "oidc_email_claim",
        "an address is the claim `email`, if the provider says that it is verified; of another claim write \
         `principal.claims.CLAIM.lowerAscii().endsWith(\"@DOMAIN\")` into `when` of the rule",
    ),
    ("pass_basic_auth", "the user is passed in `X-Forwarded-User`"),
    ("htpasswd_file", "there are no passwords; `break_glass` accepts client certificates"),
    ("authenticated_emails_file", "write these people into `who` of a rule"),
    ("session_store_type", "name Redis under `store.redis`; see docs/store.md"),
    ("redis_connection_url", "name Redis under `store.redis`; see docs/store.md"),
    ("insecure_oidc_allow_unverified_email", "an address that is not verified is ignored"),
    ("ssl_insecure_skip_verify", "name the authority of the certificate by `ca`"),
    (
        "user_id_claim",
        "people are identified by their issuer and `sub`, which never pass to somebody else; if they need another \
         name, write `username: '{claim:/CLAIM}'` into the issuer",
    ),
    ("github_repo", "members of the organisation sign in; narrow the rule by `groups`, which are teams"),
    ("github_token", "members of the organisation sign in; nobody else does"),
    ("github_user", "name these people by `users` in a rule; their user names end with the number of the account"),
    (
        "allowed_role",
        "roles are claims: write `claims: {/realm_access/roles: [ROLE]}` into `who` of the rule, and those of a client as \
         `/resource_access/CLIENT/roles`; and have Keycloak add them to the ID token, by the mappers of its client scope `roles`",
    ),
    ("azure_tenant", "name it by `tenant` of the issuer, several by `tenants`"),
    ("entra_id_allowed_tenant", "name it by `tenant` of the issuer, several by `tenants`"),
    ("gitlab_group", "write these groups into `who` of the rule"),
    ("gitlab_project", "no claim has projects: write groups or people into `who` of the rule"),
    ("google_group", "Google provides no groups: name these people in `who` of the rule"),
    ("keycloak_group", "write these groups into `who` of the rule, as the claim `groups` has them"),
];

/// A configuration, and what could not be converted.
#[derive(Debug)]
struct Imported {
    yaml: String,
    notes: Vec<String>,
}

/// Runs the command. The exit status is 2 if something could not be converted.
pub fn run(args: &ImportArgs, out: &mut impl Write, notes: &mut impl Write) -> io::Result<u8> {
    let mut options = Options::default();
    for path in &args.files {
        let text = std::fs::read_to_string(path);
        let read = text.map_err(|error| error.to_string()).and_then(|text| options.read(&text));
        if let Err(why) = read {
            writeln!(notes, "doorward: {}", terminal::line(&format!("{}: {why}", path.display())))?;
            return Ok(1);
        }
    }
    match import(options, args.host.as_deref()) {
        Err(why) => {
            writeln!(notes, "doorward: {}", terminal::line(&why))?;
            Ok(1)
        }
        Ok(Imported { yaml, notes: found }) => {
            out.write_all(yaml.as_bytes())?;
            for note in &found {
                writeln!(notes, "not converted: {}", terminal::line(note))?;
            }
            Ok(if found.is_empty() { 0 } else { 2 })
        }
    }
}

fn import(mut options: Options, host: Option<&str>) -> Result<Imported, String> {
    let mut notes = Vec::new();
    let redirect = options.take("redirect_url").and_then(|text| Url::parse(&text).ok());
    let named = redirect.as_ref().and_then(|url| url.host_str().map(str::to_owned));
    let host = host
        .map(str::to_owned)
        .or(named)
        .ok_or("no `redirect_url` names the host that browsers use: give it with `--host`")?;
    notes.extend(redirect.and_then(|url| elsewhere(&url, &host)));
    let provider = options.take("provider").unwrap_or_else(|| "google".to_owned());
    let mut emails = options.take_all("email_domain");
    emails.retain(|domain| !domain.is_empty());
    let organisation = options.take("github_org");
    let issuer = issuer(&mut options, &provider, &emails, organisation.as_deref(), &mut notes)?;
    let Places { upstreams, routes, left_out, asked } = places(&mut options, &host, &mut notes);
    if routes.is_empty() {
        return Err("there is no upstream with an http address, so there is nothing to protect".to_owned());
    }
    let mut sessions = Map::new();
    if let Some(expire) = options.take("cookie_expire") {
        match seconds(&expire) {
            Some(seconds @ 1..) => drop(sessions.insert("absolute".to_owned(), format!("{seconds}s").into())),
            _ => notes.push(format!("`cookie_expire`: `{expire}` is not a valid length of a session")),
        }
    }
    let listener = listener(&mut options, &mut notes);
    let mut rule = rule(&mut options, &provider, &emails, organisation.as_deref());
    if !verifies(&provider, &issuer) {
        notes.extend(unverified(&emails));
    }
    if let Some(missing) = missing(&options, &emails, &mut notes) {
        rule.insert("mode".to_owned(), "shadow".into());
        rule.insert("why".to_owned(), "oauth2-proxy let some of these people do everything".into());
        notes.push(format!(
            "`{RULE}`: the rule lets nobody in yet (`mode: shadow`), as it would let in more people than oauth2-proxy \
             did: {missing} is not in it. Say in `who` and `when` who these people are, then remove `mode`"
        ));
    }
    let mut rules = vec![Value::Object(rule)];
    rules.extend(left_out);
    let mut root = json!({
        "external_host": host,
        "listeners": [listener],
        "issuers": [issuer],
        "upstreams": upstreams,
        "routes": routes,
        "rules": rules,
        "sessions": sessions,
        "audit": {"sink": {"file": {"path": "audit.jsonl"}}},
    });
    if let (true, Some(root)) = (asked, root.as_object_mut()) {
        root.insert("forward_auth".to_owned(), "nginx".into());
    }
    for (name, instead) in INSTEAD {
        if options.take_all(name).iter().any(|value| !is_off(value)) {
            notes.push(format!("`{name}`: {instead}"));
        }
    }
    for name in ALWAYS {
        options.take_all(name);
    }
    for name in options.left() {
        notes.push(format!("`{name}`: it has no counterpart, or its counterpart works in another way"));
    }
    let body = serde_saphyr::to_string(&root).map_err(|error| error.to_string())?;
    let mut yaml = "# Converted from oauth2-proxy. Read the rules before use: nobody gets in without one.\n".to_owned();
    for note in &notes {
        yaml.push_str(&format!("# Not converted: {}\n", terminal::line(note)));
    }
    yaml.push_str(&body);
    Ok(Imported { yaml, notes })
}

/// What to do if people came back to another place than here.
fn elsewhere(redirect: &Url, host: &str) -> Option<String> {
    let is_secure = redirect.scheme() == "https" || redirect.host_str() == Some("localhost");
    let is_ours = is_secure && ["/", "/oauth2/callback"].contains(&redirect.path());
    (!is_ours).then(|| {
        format!(
            "`redirect_url`: people come back to `/oauth2/callback` here; register `https://{host}/oauth2/callback` at the provider"
        )
    })
}

/// What happens to people who were known by the domain of their address, at a provider that does not say whether it has
/// verified one.
fn unverified(emails: &[String]) -> Option<String> {
    let are_some = !emails.is_empty() && !lets_in_any(emails);
    are_some.then(|| {
        "`email_domain`: the rule takes an address only if the provider says that it has verified it (`email_verified`), and this \
         provider never says so, so that nobody gets in yet: name these people by `groups` or `claims` in `who`, and take `when` away"
            .to_owned()
    })
}

fn issuer(
    options: &mut Options,
    provider: &str,
    emails: &[String],
    organisation: Option<&str>,
    notes: &mut Vec<String>,
) -> Result<Value, String> {
    let preset = match provider {
        "oidc" | "adfs" | "cidaas" | "login.gov" | "gitlab" => None,
        "google" => Some("google"),
        "entra-id" | "azure" => Some("entra"),
        "keycloak-oidc" | "keycloak" => Some("keycloak"),
        "github" => Some("github_oauth"),
        other => {
            return Err(format!(
                "the provider `{other}` is not an OpenID provider; put one in front of it, such as Dex"
            ));
        }
    };
    let mut entry = Map::new();
    entry.insert("name".to_owned(), "main".into());
    if let Some(preset) = preset {
        entry.insert("preset".to_owned(), preset.into());
    }
    match (options.take("oidc_issuer_url"), preset) {
        (Some(url), _) if !matches!(preset, Some("google" | "github_oauth")) => {
            drop(entry.insert("issuer".to_owned(), url.into()))
        }
        (_, Some("google")) => match emails {
            // A leading dot stands for subdomains, which have other tenants.
            [domain] if !domain.starts_with(['*', '.']) => {
                entry.insert("tenant".to_owned(), domain.to_lowercase().into());
            }
            _ => notes.push(
                "`email_domain`: name the one Workspace domain by `tenant` of the issuer, or people by \
                 `required_claims: {sub: […]}`; until then `doorward check` refuses it"
                    .to_owned(),
            ),
        },
        (_, Some("github_oauth")) => {
            let organisation = organisation.ok_or(
                "no `github_org` names the organisation, so everybody with an account at GitHub could sign in",
            )?;
            if organisation.contains([',', ' ']) {
                notes.push(format!(
                    "`github_org`: no organisation can have the name `{organisation}`, so nobody gets in: name one by \
                     `tenant` of the issuer"
                ));
            }
            entry.insert("tenant".to_owned(), organisation.into());
            let server = options.take("login_url").and_then(|url| Url::parse(&url).ok());
            if let Some(server) = server.filter(|url| url.host_str() != Some("github.com")) {
                entry.insert("issuer".to_owned(), server.origin().ascii_serialization().into());
            }
            for of_server in ["redeem_url", "validate_url", "profile_url"] {
                options.take(of_server);
            }
        }
        _ => return Err("no `oidc_issuer_url` names the provider".to_owned()),
    }
    entry.insert("login".to_owned(), login(options, provider, preset.is_some(), notes)?);
    if let Some(claim) = options.take("oidc_groups_claim").filter(|claim| claim != "groups") {
        // Its dots lead into objects, except in addresses such as `https://example.com/groups`.
        let is_path = claim.contains('.') && !claim.contains([':', '/']);
        let claim = if is_path { format!("/{}", claim.replace('.', "/")) } else { claim };
        entry.insert("claims".to_owned(), json!({ "groups": claim }));
    }
    if let [ca, others @ ..] = options.take_all("provider_ca_file").as_slice() {
        entry.insert("ca".to_owned(), ca.as_str().into());
        if !others.is_empty() {
            notes.push(format!("`provider_ca_file`: one file is read; add to {ca} what is in {}", others.join(", ")));
        }
    }
    Ok(entry.into())
}

/// How people sign in at the provider.
fn login(options: &mut Options, provider: &str, has_preset: bool, notes: &mut Vec<String>) -> Result<Value, String> {
    let id = options.take("client_id").ok_or("there is no `client_id`")?;
    let file = options.take("client_secret_file");
    if options.take("client_secret").is_some() {
        notes.push(format!("`client_secret`: write it to {CLIENT_SECRET}; configurations here contain no secrets"));
    }
    let file = file.unwrap_or_else(|| CLIENT_SECRET.to_owned());
    let mut login = Map::new();
    login.insert("kind".to_owned(), "human".into());
    login.insert("client".to_owned(), json!({"id": id, "secret": {"file": file}}));
    if matches!(provider, "gitlab" | "login.gov") {
        // One of them provides groups only at userinfo; at the other, oauth2-proxy asked there for the address.
        login.insert("userinfo".to_owned(), true.into());
    }
    if let Some(label) = options.take("provider_display_name") {
        login.insert("label".to_owned(), label.into());
    }
    let usual = match provider {
        // The preset asks for the same.
        _ if has_preset => "",
        "cidaas" => "openid email profile roles groups",
        "gitlab" | "login.gov" => "openid email",
        _ if options.says("allowed_group") => "openid email profile groups",
        _ => "openid email profile",
    };
    let scope = options.take("scope").filter(|scope| !scope.is_empty()).unwrap_or_else(|| usual.to_owned());
    if !scope.is_empty() {
        login.insert("scopes".to_owned(), scope.split_ascii_whitespace().collect());
    }
    match options.take("prompt").as_deref() {
        Some(prompt @ ("login" | "consent" | "select_account")) => {
            login.insert("prompt".to_owned(), prompt.into());
        }
        Some(other) if !other.is_empty() => notes.push(format!("`prompt`: Doorward never sends `{other}`")),
        _ => {}
    }
    if let Some(values) = options.take("acr_values") {
        login.insert("acr_values".to_owned(), values.split_ascii_whitespace().collect());
    }
    Ok(login.into())
}

fn listener(options: &mut Options, notes: &mut Vec<String>) -> Value {
    let mut text = |name: &str| options.take(name).filter(|value| !value.is_empty());
    let (chain, key) = (text("tls_cert_file"), text("tls_key_file"));
    let (clear, secure) = (text("http_address"), text("https_address"));
    // A key in the file itself has no option.
    let is_inline = options.left().any(|name| name.to_ascii_lowercase().starts_with("server.tls."));
    let is_tls = chain.is_some() || key.is_some() || is_inline;
    let (setting, written) = match is_tls {
        true => ("https_address", secure.unwrap_or_else(|| ":443".to_owned())),
        false => ("http_address", clear.unwrap_or_else(|| "127.0.0.1:4180".to_owned())),
    };
    let address = written.split_once("://").map_or(&*written, |(_, address)| address);
    let address = match address.split_once(':') {
        Some(("", port)) => format!("0.0.0.0:{port}"),
        Some((host, port)) if host.eq_ignore_ascii_case("localhost") => format!("127.0.0.1:{port}"),
        _ => address.to_owned(),
    };
    let mut listener = Map::new();
    listener.insert("name".to_owned(), "public".into());
    if address.parse::<std::net::SocketAddr>().is_ok() {
        listener.insert("address".to_owned(), address.into());
    } else {
        notes.push(format!(
            "`{setting}`: `{written}` is not an address and port; it is replaced by 127.0.0.1:4180, which only the \
             same machine can reach"
        ));
        listener.insert("address".to_owned(), "127.0.0.1:4180".into());
    }
    if is_tls {
        let mut file = |setting: &str, named: Option<String>, place: &str| {
            named.unwrap_or_else(|| {
                notes.push(format!("`{setting}`: no file is named; write it to {place}"));
                place.to_owned()
            })
        };
        let chain = file("tls_cert_file", chain, "/etc/doorward/secrets/tls.crt");
        let key = file("tls_key_file", key, "/etc/doorward/secrets/tls.key");
        listener.insert("tls".to_owned(), json!({"certificates": [{"chain": chain, "key": key}]}));
    }
    let trusted = options.take_all("trusted_proxy_ip");
    let is_behind = options.is_on("reverse_proxy");
    options.take("reverse_proxy");
    if is_behind && trusted.is_empty() {
        notes.push(
            "`reverse_proxy`: list the ingress in `trusted_proxies` of the listener; oauth2-proxy believed everybody"
                .to_owned(),
        );
    }
    if !is_behind && !trusted.is_empty() {
        notes.push(
            "`trusted_proxy_ip`: without `reverse_proxy` oauth2-proxy believed nobody; list the ingress in `trusted_proxies` of the \
             listener if there is one"
                .to_owned(),
        );
    } else if !trusted.is_empty() {
        let nets = trusted.iter().map(|net| match net.parse::<std::net::IpAddr>() {
            Ok(address) => ipnet::IpNet::from(address).to_string(),
            Err(_) => net.clone(),
        });
        listener.insert("trusted_proxies".to_owned(), nets.collect());
    }
    listener.into()
}

/// Returns the seconds of a duration as Go writes it, `168h0m0s`. A duration with a fraction of a second is not a
/// length of a session.
fn seconds(text: &str) -> Option<u64> {
    go_duration(text).filter(|length| length.subsec_nanos() == 0).map(|length| length.as_secs())
}

#[cfg(test)]
mod tests;
