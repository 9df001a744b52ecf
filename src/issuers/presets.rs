//! Quirks of login providers, so that an entry needs only issuer, client and secret. `docs/providers.md` has the same
//! for operators.

use url::Url;

use crate::config::raw::{self, Algorithm, Preset, Prompt};

/// How logins at a provider differ from the specifications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginQuirks {
    /// The scopes to request if the entry names none.
    pub scopes: &'static [&'static str],
    /// Additional parameters of the authorization request.
    pub parameters: &'static [(&'static str, &'static str)],
    /// The name of the parameter for the person's organisation.
    pub domain_hint: &'static str,
    pub logout: Logout,
    /// The values of `acr` that request more than one factor.
    pub mfa: &'static [&'static str],
    /// The `prompt` that makes people authenticate again, or the closest to it.
    pub anew: Prompt,
}

/// The protocol by which a browser ends its session at the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logout {
    /// OpenID Connect RP-Initiated Logout 1.0.
    RpInitiated,
    /// `logout_uri` in place of `post_logout_redirect_uri`, at `/logout` beside the authorization endpoint's folder.
    Cognito,
    /// [`Self::RpInitiated`] if discovery names an endpoint; tenants that do not announce it have `/v2/logout`.
    Auth0,
}

impl LoginQuirks {
    pub const fn of(preset: Option<Preset>) -> Self {
        let usual = Self {
            scopes: &[],
            parameters: &[],
            domain_hint: "domain_hint",
            logout: Logout::RpInitiated,
            mfa: &[],
            anew: Prompt::Login,
        };
        match preset {
            None | Some(Preset::GithubActions | Preset::GitlabCi | Preset::Kubernetes | Preset::Doorward) => usual,
            Some(Preset::Okta) => Self {
                scopes: &["profile", "email", "groups", "offline_access"],
                mfa: &["urn:okta:loa:2fa:any"],
                ..usual
            },
            Some(Preset::Dex) => Self { scopes: &["profile", "email", "groups", "offline_access"], ..usual },
            Some(Preset::Entra) => Self { scopes: &["profile", "email", "offline_access"], ..usual },
            Some(Preset::Auth0) => Self {
                scopes: &["profile", "email", "offline_access"],
                logout: Logout::Auth0,
                mfa: &["http://schemas.openid.net/pape/policies/2007/06/multi-factor"],
                ..usual
            },
            Some(Preset::Cognito) => Self { scopes: &["profile", "email"], logout: Logout::Cognito, ..usual },
            // A parameter, and not a scope, requests a refresh token; and `prompt=login` is an error.
            Some(Preset::Google) => Self {
                scopes: &["profile", "email"],
                parameters: &[("access_type", "offline")],
                domain_hint: "hd",
                anew: Prompt::SelectAccount,
                ..usual
            },
            // No scope requests all roles of the application's own project: settings of project and application do.
            Some(Preset::Zitadel) => Self { scopes: &["profile", "email", "offline_access"], ..usual },
            // In addition to `read:org`, which is always requested to read memberships.
            Some(Preset::GithubOauth) => Self { scopes: &["user:email"], anew: Prompt::SelectAccount, ..usual },
            // A refresh token needs no scope. With `offline_access` Keycloak stores only an offline session for a
            // person who signs in here first, and does not notify anybody when that person is signed out.
            Some(Preset::Keycloak) => Self { scopes: &["profile", "email"], ..usual },
            // Refresh tokens are a setting of the application.
            Some(Preset::Ping) => Self { scopes: &["profile", "email"], ..usual },
        }
    }

    /// The values of `acr` that request more than one factor in the login of an issuer.
    pub fn mfa_classes(self, login: &raw::Login) -> Vec<String> {
        match &*login.mfa_acr_values {
            [] => self.mfa.iter().map(|&class| class.to_owned()).collect(),
            written => written.to_vec(),
        }
    }
}

/// How tokens of a provider differ from the defaults.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenQuirks {
    pub algorithms: &'static [Algorithm],
    /// The `typ` of access tokens; `""` is an absent one.
    pub token_types: &'static [&'static str],
    /// The place of groups. There is only one: with a second, its value would become the groups of people who left all
    /// groups.
    pub groups: &'static [&'static str],
    pub username: &'static str,
}

impl TokenQuirks {
    /// `None` for presets without OpenID Connect logins.
    pub fn of(preset: Preset) -> Option<Self> {
        let usual = Self {
            algorithms: &[Algorithm::RS256],
            token_types: &["at+jwt", "application/at+jwt"],
            groups: &["groups"],
            username: "{issuer}#{sub}",
        };
        const JWT: &[&str] = &["JWT", "at+jwt", "application/at+jwt"];
        const ANY: &[&str] = &["", "JWT", "at+jwt", "application/at+jwt"];
        const NONE: &[&str] = &["", "at+jwt", "application/at+jwt"];
        Some(match preset {
            Preset::GithubActions | Preset::GitlabCi | Preset::Kubernetes | Preset::Doorward | Preset::GithubOauth => {
                return None;
            }
            Preset::Okta | Preset::Dex => Self { token_types: NONE, ..usual },
            // `sub` differs between applications; `oid` identifies the person in the whole tenant.
            Preset::Entra => Self { token_types: &["JWT"], username: "{issuer}#{claim:/oid}", ..usual },
            Preset::Cognito => Self { token_types: &[""], groups: &["cognito:groups"], ..usual },
            Preset::Google => usual,
            Preset::Keycloak | Preset::Auth0 => Self { token_types: JWT, ..usual },
            // The roles are the member names of an object.
            Preset::Zitadel => Self { token_types: JWT, groups: &["urn:zitadel:iam:org:project:roles"], ..usual },
            Preset::Ping => Self { token_types: ANY, ..usual },
        })
    }
}

/// The places where tokens of an issuer must have groups, if its entry names none. Empty for tokens that are known to
/// have no groups: those of workloads, our own, and Google's.
pub fn promised_groups(preset: Option<Preset>) -> &'static [&'static str] {
    match preset {
        None => &["groups"],
        Some(Preset::Google) => &[],
        Some(preset) => TokenQuirks::of(preset).map_or(&[], |quirks| quirks.groups),
    }
}

/// Claims of which each access token of the provider has one, and no ID token: for Entra ID, by version 2.0 and 1.0 of
/// its tokens (<https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference>).
pub(super) const fn marks_of_access_tokens(preset: Option<Preset>) -> &'static [&'static str] {
    match preset {
        Some(Preset::Entra) => &["azp", "appid"],
        _ => &[],
    }
}

/// Whether the claims of the provider's tokens say their kind, though all kinds have the same `typ`.
pub(super) const fn tells_kinds_apart(preset: Option<Preset>) -> bool {
    matches!(preset, Some(Preset::Keycloak | Preset::Cognito | Preset::Entra))
}

/// Claims of RFC 9068 that the access tokens of a provider lack although their `typ` is `at+jwt`: the client is in
/// another claim (`azp`, `cid`), and in PingFederate the administrator chooses the claims.
pub(super) const fn left_out(preset: Option<Preset>) -> &'static [&'static str] {
    match preset {
        Some(Preset::Keycloak | Preset::Okta) => &["client_id"],
        Some(Preset::Ping) => &["client_id", "jti"],
        _ => &[],
    }
}

/// Whether the single audience of an access token is its client, which no other claim names: Dex writes `azp` only if
/// there are several audiences.
pub(super) fn audience_is_client(preset: Option<Preset>) -> bool {
    preset == Some(Preset::Dex)
}

/// The address of all tenants of Entra ID.
pub const ENTRA_ORGANIZATIONS: &str = "https://login.microsoftonline.com/organizations/v2.0";

/// The hosts of issuers of Entra ID's version 1.0 tokens, by cloud.
const ENTRA_V1: [&str; 3] = ["sts.windows.net", "sts.chinacloudapi.cn", "sts.microsoftonline.us"];

/// The hosts of issuers of version 2.0 tokens.
const ENTRA_V2: [&str; 3] =
    ["login.microsoftonline.com", "login.partner.microsoftonline.cn", "login.microsoftonline.us"];

/// Whether an issuer is one of Entra ID, in any of its clouds.
pub fn is_entra(issuer: &Url) -> bool {
    issuer.host_str().is_some_and(|host| ENTRA_V1.contains(&host) || ENTRA_V2.contains(&host))
}

/// The issuer of an entry with a preset and a tenant, or with a preset only.
pub fn identifier(preset: Preset, tenant: Option<&str>) -> Option<String> {
    match (preset, tenant) {
        (Preset::Google, _) => Some("https://accounts.google.com".to_owned()),
        // The tenant is an organisation there.
        (Preset::GithubOauth, _) => Some("https://github.com".to_owned()),
        (Preset::GithubActions, None) => Some("https://token.actions.githubusercontent.com".to_owned()),
        (Preset::Entra, Some(tenant)) => Some(format!("https://login.microsoftonline.com/{tenant}/v2.0")),
        // The issuer of an Auth0 tenant ends with a slash, and issuers are compared byte for byte.
        (Preset::Auth0, Some(tenant)) => Some(format!("https://{tenant}/")),
        (Preset::Okta | Preset::Zitadel, Some(tenant)) => Some(format!("https://{tenant}")),
        // The id of a pool begins with its region (`eu-central-1_Ab12`).
        (Preset::Cognito, Some(pool)) => {
            let (region, _) = pool.split_once('_')?;
            Some(format!("https://cognito-idp.{region}.amazonaws.com/{pool}"))
        }
        _ => None,
    }
}

/// The problem of an issuer with this preset, and its fix.
pub(super) fn misfit(
    preset: Preset,
    issuer: &Url,
    has_audiences: bool,
    has_tenants: bool,
) -> Option<(String, &'static str)> {
    let host = issuer.host_str().unwrap_or_default();
    let path = issuer.path();
    match preset {
        Preset::Entra if has_tenants => None,
        Preset::Entra if ["/common/", "/organizations/", "/consumers/"].iter().any(|all| path.starts_with(all)) => {
            Some((
                "it is the address of all tenants of Entra ID, whose tokens have the issuer of their own tenant"
                    .to_owned(),
                "write `tenants` with the directory ids of the tenants whose people may sign in",
            ))
        }
        // User names begin with the issuer: a later change to version 2.0 would lose all rights that are granted by
        // name.
        Preset::Entra if ENTRA_V1.contains(&host) || (ENTRA_V2.contains(&host) && !path.ends_with("/v2.0")) => {
            // With only `tenant`, the issuer is of the global cloud.
            let help = match host.rsplit('.').next() {
                Some("cn") => "write `https://login.partner.microsoftonline.cn/TENANT/v2.0`",
                Some("us") => "write `https://login.microsoftonline.us/TENANT/v2.0`",
                _ => "write `tenant`, or `https://login.microsoftonline.com/TENANT/v2.0` (with the host of your cloud)",
            };
            Some((
                "it is not the issuer of a v2.0 endpoint, which access tokens have if `requestedAccessTokenVersion` in the manifest of \
                 their application is 2"
                    .to_owned(),
                help,
            ))
        }
        Preset::Auth0 if !path.ends_with('/') => {
            Some(("the issuer of an Auth0 tenant ends with a slash".to_owned(), "add the slash, or write `tenant`"))
        }
        Preset::Okta
            if has_audiences
                && !path.starts_with("/oauth2/")
                && ["okta.com", "oktapreview.com", "okta-emea.com"].iter().any(|domain| host.ends_with(domain)) =>
        {
            Some((
                "only Okta can verify access tokens of the organisation's own server".to_owned(),
                "for bearer tokens use a custom authorization server (`https://ORG/oauth2/default`); for logins only, \
                 remove `audiences`",
            ))
        }
        _ => None,
    }
}

/// Another `iss` that a provider uses.
pub(super) fn other_identifier(preset: Option<Preset>) -> Option<&'static str> {
    (preset == Some(Preset::Google)).then_some("accounts.google.com")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_choose_an_account_where_prompt_login_is_an_error() {
        for (preset, prompt) in [
            (Some(Preset::Google), Prompt::SelectAccount),
            (Some(Preset::GithubOauth), Prompt::SelectAccount),
            (Some(Preset::Okta), Prompt::Login),
            (None, Prompt::Login),
        ] {
            assert_eq!(LoginQuirks::of(preset).anew, prompt, "{preset:?}");
        }
    }

    #[test]
    fn tenants_name_issuers() {
        for (preset, tenant, issuer) in [
            (Preset::Entra, Some("8f1c"), Some("https://login.microsoftonline.com/8f1c/v2.0")),
            (Preset::Auth0, Some("acme.eu.auth0.com"), Some("https://acme.eu.auth0.com/")),
            (Preset::Okta, Some("acme.okta.com"), Some("https://acme.okta.com")),
            (Preset::Google, None, Some("https://accounts.google.com")),
            (Preset::Google, Some("acme.example"), Some("https://accounts.google.com")),
            (Preset::GithubOauth, Some("acme"), Some("https://github.com")),
            (Preset::Zitadel, Some("acme.zitadel.cloud"), Some("https://acme.zitadel.cloud")),
            (
                Preset::Cognito,
                Some("eu-central-1_Ab12"),
                Some("https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_Ab12"),
            ),
            (Preset::Cognito, Some("Ab12"), None),
            (Preset::Keycloak, Some("acme"), None),
            (Preset::Entra, None, None),
        ] {
            assert_eq!(identifier(preset, tenant).as_deref(), issuer, "{preset:?}");
        }
    }

    #[test]
    fn unworkable_settings_are_reported() {
        for (preset, issuer, audiences, fits) in [
            (Preset::Entra, "https://login.microsoftonline.com/8f1c/v2.0", true, true),
            (Preset::Entra, "https://login.microsoftonline.com/common/v2.0", true, false),
            (Preset::Entra, "https://login.microsoftonline.com/organizations/v2.0", false, false),
            (Preset::Entra, "https://login.microsoftonline.com/8f1c", false, false),
            (Preset::Entra, "https://login.microsoftonline.us/8f1c/v2.0", true, true),
            (Preset::Entra, "https://login.microsoftonline.us/8f1c/", true, false),
            (Preset::Entra, "https://sts.windows.net/8f1c/", true, false),
            (Preset::Entra, "https://sts.chinacloudapi.cn/8f1c/", false, false),
            (Preset::Auth0, "https://acme.auth0.com/", true, true),
            (Preset::Auth0, "https://acme.auth0.com/login", true, false),
            (Preset::Okta, "https://acme.okta.com", false, true),
            (Preset::Okta, "https://acme.okta.com", true, false),
            (Preset::Okta, "https://acme.okta.com/oauth2/default", true, true),
            (Preset::Okta, "https://id.acme.example", true, true),
        ] {
            let found = misfit(preset, &Url::parse(issuer).unwrap(), audiences, false);
            assert_eq!(found.is_none(), fits, "{preset:?} {issuer}: {found:?}");
        }
    }

    /// With `tenant`, a tenant of a national cloud got the issuer of the global one, which issues no tokens for it.
    #[test]
    fn the_issuer_of_another_version_is_answered_with_that_of_its_own_cloud() {
        for (host, names_tenant, address) in [
            ("sts.windows.net", true, "login.microsoftonline.com"),
            ("login.microsoftonline.com", true, "login.microsoftonline.com"),
            ("sts.chinacloudapi.cn", false, "login.partner.microsoftonline.cn"),
            ("login.partner.microsoftonline.cn", false, "login.partner.microsoftonline.cn"),
            ("sts.microsoftonline.us", false, "login.microsoftonline.us"),
            ("login.microsoftonline.us", false, "login.microsoftonline.us"),
        ] {
            let issuer = Url::parse(&format!("https://{host}/8f1c/")).unwrap();
            let (_, help) = misfit(Preset::Entra, &issuer, true, false).unwrap();
            assert_eq!(help.contains("`tenant`"), names_tenant, "{host}: {help}");
            assert!(help.contains(&format!("`https://{address}/TENANT/v2.0`")), "{host}: {help}");
        }
    }
}
