//! The rule that lets in the people whom oauth2-proxy let in.

use serde_json::{Map, Value, json};
use url::Url;

use super::options::{Options, may_say_who};
use crate::issuers::presets::is_entra;

/// Its name.
pub(super) const RULE: &str = "signed-in";

/// Lets in people whose address the provider calls unverified.
const UNVERIFIED: &str = "insecure_oidc_allow_unverified_email";

/// Settings without a counterpart that say who may sign in. Without them, everybody at the provider could.
const WHO: [&str; 9] = [
    "allowed_group",
    "allowed_role",
    "azure_tenant",
    "entra_id_allowed_tenant",
    "github_repo",
    "gitlab_group",
    "gitlab_project",
    "google_group",
    "keycloak_group",
];

/// Returns the rule for the people who got in: everybody whom both the groups and the addresses let in.
pub(super) fn rule(
    options: &mut Options,
    provider: &str,
    emails: &[String],
    organisation: Option<&str>,
) -> Map<String, Value> {
    // Each is a role of a group there, which no claim has as one text.
    let mut groups = if provider == "cidaas" { Vec::new() } else { options.take_all("allowed_group") };
    if provider == "keycloak-oidc" {
        // Roles are among the groups there, but not here.
        let (roles, others): (Vec<_>, Vec<_>) = groups.into_iter().partition(|group| group.starts_with("role:"));
        options.add("allowed_role", roles);
        groups = others;
    }
    // Teams of one organisation are separated by commas there.
    let teams = options.take_all("github_team");
    let teams = teams.iter().flat_map(|teams| teams.split(',')).map(str::trim).filter(|team| !team.is_empty());
    groups.extend(teams.filter_map(|team| Some(format!("{}:{team}", organisation?))));
    let mut who = Map::new();
    who.insert("issuers".to_owned(), json!(["main"]));
    if !groups.is_empty() {
        who.insert("groups".to_owned(), groups.into());
    }
    let mut rule = Map::new();
    for (name, text) in [("id", RULE), ("why", "oauth2-proxy let these people do everything"), ("do", "allow")] {
        rule.insert(name.to_owned(), text.into());
    }
    rule.insert("who".to_owned(), who.into());
    if let Some(when) = when(options, provider, emails) {
        rule.insert("when".to_owned(), when.into());
    }
    if lets_in_any(emails) {
        // The rule says so, or the provider is not asked.
        options.take_all(UNVERIFIED);
    }
    rule
}

/// Whether every address is let in.
pub(super) fn lets_in_any(emails: &[String]) -> bool {
    emails.iter().any(|domain| domain == "*")
}

/// Returns the expression for the people whom their address lets in; `None` if no address is asked for.
fn when(options: &Options, provider: &str, emails: &[String]) -> Option<String> {
    if lets_in_any(emails) {
        // oauth2-proxy still refuses everybody whose address is not verified.
        return match provider {
            "github" | "google" | "login.gov" => Some("has(principal.email)".to_owned()),
            _ if options.is_on(UNVERIFIED) => None,
            "gitlab" => Some("has(principal.email)".to_owned()),
            // If the provider does not say whether an address is verified, it counts as verified.
            _ => Some("!has(principal.claims.email_verified) || principal.claims.email_verified == true".to_owned()),
        };
    }
    let ends = emails.iter().map(|domain| {
        let domain = domain.to_lowercase();
        // A leading dot stands for subdomains, as does `*.`.
        let end = match domain.strip_prefix('*').unwrap_or(&domain) {
            below if below.starts_with('.') => below.to_owned(),
            _ => format!("@{domain}"),
        };
        format!("principal.email.lowerAscii().endsWith({})", quoted(&end))
    });
    let ends = ends.collect::<Vec<_>>().join(" || ");
    match emails {
        [] => None,
        [_] => Some(format!("has(principal.email) && {ends}")),
        _ => Some(format!("has(principal.email) && ({ends})")),
    }
}

/// Whether the provider may say that it has verified an address: Entra ID and AD FS have no `email_verified`.
pub(super) fn verifies(provider: &str, issuer: &Value) -> bool {
    let address = issuer.get("issuer").and_then(Value::as_str).and_then(|text| Url::parse(text).ok());
    !matches!(provider, "adfs" | "azure" | "entra-id") && !address.is_some_and(|url| is_entra(&url))
}

/// Names the settings that say who may sign in and are not in the rule.
pub(super) fn missing(options: &Options, emails: &[String], notes: &mut Vec<String>) -> Option<String> {
    let mut missing: Vec<&str> =
        options.left().filter(|name| may_say_who(name) || (WHO.contains(name) && options.says(name))).collect();
    if emails.is_empty() {
        // oauth2-proxy requires one of the two. Beside a domain, the file lets in others as well.
        if options.says("authenticated_emails_file") {
            missing.push("authenticated_emails_file");
        } else {
            missing.push("email_domain");
            notes.push(
                "`email_domain`: nothing says whose addresses may sign in; give the file that does as well".to_owned(),
            );
        }
    }
    let named: Vec<String> = missing.iter().map(|name| format!("`{name}`")).collect();
    (!named.is_empty()).then(|| named.join(", "))
}

/// Quotes a text for CEL.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
