//! The default settings of issuers.

use std::time::Duration;

use super::{
    client_auth::default_method,
    presets::{self, LoginQuirks, TokenQuirks},
};
use crate::config::{
    raw::{self, Algorithm, ClientAuthMethod, ClientCredentials, Kind, Preset},
    values::Span,
};

const DAY: Duration = Duration::from_secs(86_400);

const CLOCK_SKEW: Span = Span::from_secs(30);
/// For Doorward's own tokens, for which only the clocks of replicas can differ.
const OWN_CLOCK_SKEW: Span = Span::from_secs(5);
pub(super) const MAX_STALE: Span = Span::from_secs(12 * 3600);
pub(super) const KEYS_TIMEOUT: Span = Span::from_secs(5);
pub(super) const KEYS_NEGATIVE_CACHE: Span = Span::from_secs(60);
pub(super) const INTROSPECTION_CACHE: Span = Span::from_secs(30);
pub(super) const INTROSPECTION_TIMEOUT: Span = Span::from_secs(1);
pub(super) const INTROSPECTION_TRIES: u8 = 2;
pub(super) const TOKEN_REVIEW_CACHE: Span = Span::from_secs(10);
pub(super) const TOKEN_REVIEW_TIMEOUT: Span = Span::from_secs(2);
/// For introspection and TokenReview.
pub(super) const NEGATIVE_CACHE: Span = Span::from_secs(10);
const GROUPS: &[&str] = &["groups"];

/// Audiences that many applications share, and who shares them. A token for one of them may have been issued to any
/// application, so only listed clients are accepted.
const SHARED_AUDIENCES: [(&str, &str); 5] = [
    ("api://default", "every application of the Okta organisation"),
    ("account", "every client of the Keycloak realm"),
    ("00000003-0000-0000-c000-000000000000", "everybody who calls Microsoft Graph"),
    ("https://graph.microsoft.com", "everybody who calls Microsoft Graph"),
    ("api://AzureADTokenExchange", "every workload that federates with Entra ID"),
];

/// The defaults of a preset.
pub(super) struct Defaults {
    pub algorithms: &'static [Algorithm],
    pub token_types: &'static [&'static str],
    pub username: &'static str,
    /// The places of groups.
    pub groups: &'static [&'static str],
    pub kind: Option<Kind>,
    pub max_lifetime: Duration,
    pub clock_skew: Span,
}

/// The template of an issuer's user names; `None` for Doorward's own tokens, which contain complete names.
pub fn username_template(raw: &raw::Issuer) -> Option<&str> {
    let template = || raw.username.as_deref().unwrap_or_else(|| Defaults::of(raw.preset).username);
    (raw.preset != Some(Preset::Doorward)).then(template)
}

impl Defaults {
    pub fn of(preset: Option<Preset>) -> Self {
        if let Some(TokenQuirks { algorithms, token_types, groups, username }) = preset.and_then(TokenQuirks::of) {
            let (kind, max_lifetime) = (None, DAY);
            return Self { algorithms, token_types, username, groups, kind, max_lifetime, clock_skew: CLOCK_SKEW };
        }
        match preset {
            Some(Preset::GithubActions | Preset::GitlabCi) => Self {
                algorithms: &[Algorithm::RS256],
                token_types: &["JWT"],
                username: "{issuer}#{sub}",
                groups: GROUPS,
                kind: Some(Kind::Workload),
                max_lifetime: DAY,
                clock_skew: CLOCK_SKEW,
            },
            // Only extended default tokens live longer, and those are not projected for us.
            Some(Preset::Kubernetes) => Self {
                algorithms: &[Algorithm::RS256, Algorithm::ES256],
                token_types: &["", "JWT"],
                username: "{issuer}#{service_account}",
                groups: GROUPS,
                kind: Some(Kind::Workload),
                max_lifetime: Duration::from_secs(3_600),
                clock_skew: CLOCK_SKEW,
            },
            Some(Preset::Doorward) => Self {
                algorithms: &[Algorithm::ES256, Algorithm::RS256],
                token_types: &["at+jwt"],
                username: "{sub}",
                groups: &[],
                kind: None,
                max_lifetime: Duration::from_secs(600),
                clock_skew: OWN_CLOCK_SKEW,
            },
            _ => Self {
                algorithms: &[Algorithm::RS256, Algorithm::ES256],
                token_types: &["at+jwt", "application/at+jwt"],
                username: "{issuer}#{sub}",
                groups: GROUPS,
                kind: None,
                max_lifetime: DAY,
                clock_skew: CLOCK_SKEW,
            },
        }
    }
}

/// The kind of people who log in, if it differs from that of the issuer's bearer tokens. The preset of a login provider
/// makes them human, but says nothing about bearer tokens, which such a provider issues to programs too.
pub(super) fn kind_of_logins(raw: &raw::Issuer) -> Option<Kind> {
    let login = raw.login.as_ref()?;
    let of_people = |preset| preset == Preset::GithubOauth || TokenQuirks::of(preset).is_some();
    login.kind.or_else(|| (raw.kind.is_none() && raw.preset.is_some_and(of_people)).then_some(Kind::Human))
}

pub(super) fn shared_audience(raw: &raw::Issuer) -> Option<(&'static str, &'static str)> {
    SHARED_AUDIENCES.into_iter().find(|(shared, _)| raw.audiences.iter().any(|audience| audience == shared))
}

/// Sets the issuer of an entry that leaves it to its preset. At Google, which has one issuer for everybody, a tenant is
/// a Workspace domain, which becomes a required claim and the domain hint. GitHub documents the client secret only as a
/// form parameter. `external_host` is Doorward's own host.
pub fn name_issuer(raw: &mut raw::Issuer, external_host: Option<&str>) {
    if let (Some(Preset::Google), Some(domain)) = (raw.preset, &raw.tenant) {
        raw.required_claims.entry("hd".to_owned()).or_insert_with(|| vec![domain.as_str().into()]);
        if let Some(login) = &mut raw.login {
            login.domain_hint.get_or_insert_with(|| domain.clone());
        }
    }
    if let (Some(Preset::GithubOauth), Some(login)) = (raw.preset, &mut raw.login) {
        login.client.method.get_or_insert(ClientAuthMethod::Post);
    }
    if raw.issuer.is_empty() && raw.preset == Some(Preset::Entra) && !raw.tenants.is_empty() {
        raw.issuer = presets::ENTRA_ORGANIZATIONS.to_owned();
    }
    if raw.issuer.is_empty()
        && let Some(identifier) = raw.preset.and_then(|preset| match preset {
            Preset::Doorward => external_host.map(|host| format!("https://{host}")),
            preset => presets::identifier(preset, raw.tenant.as_deref()),
        })
    {
        raw.issuer = identifier;
    }
}

/// Fills in the default values of an entry, for display.
pub fn fill(raw: &mut raw::Issuer) {
    let defaults = Defaults::of(raw.preset);
    raw.listed_clients_only |= shared_audience(raw).is_some();
    raw.username.get_or_insert_with(|| defaults.username.to_owned());
    let kind_of_logins = kind_of_logins(raw);
    raw.kind = raw.kind.or(defaults.kind);
    if raw.preset != Some(Preset::GithubOauth) {
        raw.algorithms.get_or_insert_with(|| defaults.algorithms.to_vec());
        raw.token_types.get_or_insert_with(|| defaults.token_types.iter().map(|&typ| typ.to_owned()).collect());
        raw.clock_skew.get_or_insert(defaults.clock_skew);
        raw.max_lifetime.get_or_insert(Span(defaults.max_lifetime));
        raw.keys.max_stale.get_or_insert(MAX_STALE);
        raw.keys.timeout.get_or_insert(KEYS_TIMEOUT);
        raw.keys.negative_cache.get_or_insert(KEYS_NEGATIVE_CACHE);
    }
    // Not if no groups are expected: a deny over groups would match callers without the claim.
    if let [only] = presets::promised_groups(raw.preset) {
        raw.claims.groups.get_or_insert_with(|| (*only).to_owned());
    }
    if let Some(introspection) = &mut raw.introspection {
        introspection.cache.get_or_insert(INTROSPECTION_CACHE);
        introspection.negative_cache.get_or_insert(NEGATIVE_CACHE);
        introspection.timeout.get_or_insert(INTROSPECTION_TIMEOUT);
        introspection.tries.get_or_insert(INTROSPECTION_TRIES);
        fill_client(&mut introspection.client);
    }
    if let Some(login) = &mut raw.login {
        fill_client(&mut login.client);
        login.kind = kind_of_logins;
        login.label.get_or_insert_with(|| raw.name.clone());
        let quirks = LoginQuirks::of(raw.preset);
        for (list, usual) in [(&mut login.scopes, quirks.scopes), (&mut login.mfa_acr_values, quirks.mfa)] {
            if list.is_empty() {
                *list = usual.iter().map(|&value| value.to_owned()).collect();
            }
        }
    }
    if let Some(review) = &mut raw.token_review {
        review.cache.get_or_insert(TOKEN_REVIEW_CACHE);
        review.negative_cache.get_or_insert(NEGATIVE_CACHE);
        review.timeout.get_or_insert(TOKEN_REVIEW_TIMEOUT);
    }
}

fn fill_client(raw: &mut ClientCredentials) {
    raw.method = raw.method.or_else(|| default_method(raw));
}
