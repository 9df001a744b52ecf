//! Doorward's client at a provider and the parameters of its logins, from `login` of an issuer.

use std::{sync::Arc, time::Duration};

use super::{github::Github, redirect};
use crate::{
    config::{
        raw::{self, Preset, Prompt, Redirect},
        report::At,
        resolver::Resolver,
    },
    issuers::{
        ClientAuth,
        presets::{LoginQuirks, Logout},
    },
};

/// Doorward's client at a provider.
#[derive(Clone, Debug)]
pub struct Client {
    pub authentication: ClientAuth,
    pub protocol: Protocol,
    /// The scopes that a login requests; `openid` first, where the provider supports it.
    pub scopes: Vec<Arc<str>>,
    /// The name shown in the choice of providers; `None`: the name of the issuer.
    pub label: Option<Arc<str>>,
    pub wishes: Wishes,
    pub logout: Logout,
    /// The `prompt` that makes a person authenticate again who may be signed in there.
    pub anew: Prompt,
    /// The configured kind of redirect address.
    pub redirect: Option<Redirect>,
    /// Whether userinfo is asked for claims that the ID token lacks.
    pub asks_userinfo: bool,
}

/// Doorward's client at an issuer with a `login`, with the name of the issuer.
#[derive(Debug)]
pub struct LoginClient {
    /// The name of the issuer.
    pub issuer: Arc<str>,
    pub client: Client,
}

impl LoginClient {
    /// Resolves the clients of all issuers, in their order. Reports every problem at its place.
    pub fn resolve_all(raw: &[raw::Issuer], at: &At, resolver: &mut Resolver) -> Vec<Self> {
        redirect::check(raw, at, resolver);
        let mut clients = Vec::new();
        for (index, issuer) in raw.iter().enumerate() {
            let at = at.index(index);
            let Some(login) = &issuer.login else { continue };
            let Some(client) = Client::resolve(login, issuer, resolver, &at.key("login")) else { continue };
            clients.push(Self { issuer: issuer.name.as_str().into(), client });
        }
        clients
    }
}

/// How Doorward finds out who signed in.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// By an ID token (OpenID Connect Core 1.0).
    OpenId,
    Github(Box<Github>),
}

impl Protocol {
    /// Splits the scopes that the token endpoint returned.
    pub(super) fn split_scopes(&self, scopes: Vec<Arc<str>>) -> Vec<Arc<str>> {
        match self {
            Self::OpenId => scopes,
            // GitHub separates scopes by commas, RFC 6749 section 3.3 by spaces.
            Self::Github(_) => scopes.iter().flat_map(|scopes| scopes.split(',')).map(Into::into).collect(),
        }
    }
}

/// Parameters of the authorization request besides scopes.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    pub prompt: Option<Prompt>,
    pub login_hint: Option<String>,
    /// The accepted values of `acr`; empty: any.
    pub acr_values: Vec<String>,
    /// Values of `acr` that request more than one factor.
    pub mfa_acr_values: Vec<String>,
    pub max_age: Option<Duration>,
    /// Provider-specific parameters.
    pub parameters: Vec<(&'static str, String)>,
}

impl Client {
    /// The client id.
    pub fn id(&self) -> &Arc<str> {
        self.authentication.client_id()
    }

    /// Resolves the client of the login `raw` at `issuer`. Reports every problem at its place; `None` if there is one.
    pub fn resolve(raw: &raw::Login, issuer: &raw::Issuer, resolver: &mut Resolver, at: &At) -> Option<Self> {
        let quirks = LoginQuirks::of(issuer.preset);
        let is_github = issuer.preset == Some(Preset::GithubOauth);
        // `openid` is required for an ID token, `read:org` to see memberships at GitHub.
        let mut scopes: Vec<Arc<str>> = vec![if is_github { "read:org" } else { "openid" }.into()];
        let mut good = true;
        for (index, scope) in raw.scopes.iter().enumerate() {
            // RFC 6749 section 3.3, scope-token.
            let token = |byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
            if scope.is_empty() || !scope.bytes().all(token) {
                resolver
                    .error(&at.key("scopes").index(index), format!("`{scope}` is not a scope"))
                    .help("write one scope per entry, without spaces");
                good = false;
            } else if !scopes.iter().any(|known| **known == **scope) {
                scopes.push(scope.as_str().into());
            }
        }
        if raw.scopes.is_empty() {
            scopes.extend(quirks.scopes.iter().map(|&scope| Arc::from(scope)));
        }
        for (key, values) in [("acr_values", &raw.acr_values), ("mfa_acr_values", &raw.mfa_acr_values)] {
            for (index, acr) in values.iter().enumerate() {
                // A list of them is separated by blanks (OpenID Connect Core 1.0 section 3.1.2.1).
                if acr.is_empty() || acr.contains(char::is_whitespace) {
                    resolver
                        .error(&at.key(key).index(index), format!("`{acr}` is not a value of `acr`"))
                        .help("write one value per entry, without spaces");
                    good = false;
                }
            }
        }
        for (key, text) in [("label", &raw.label), ("login_hint", &raw.login_hint), ("domain_hint", &raw.domain_hint)] {
            if text.as_ref().is_some_and(|text| text.trim().is_empty() || text.len() > 200) {
                resolver.error(&at.key(key), format!("`{key}` is empty, or longer than 200 bytes"));
                good = false;
            }
        }
        if raw.userinfo && is_github {
            resolver
                .error(&at.key("userinfo"), "GitHub has no userinfo endpoint")
                .help("remove it: GitHub's API is always asked who signs in");
            good = false;
        }
        let mut parameters: Vec<_> = quirks.parameters.iter().map(|&(name, value)| (name, value.to_owned())).collect();
        parameters.extend(raw.domain_hint.clone().map(|domain| (quirks.domain_hint, domain)));
        let mut login_hint = raw.login_hint.clone();
        if is_github {
            parameters.extend(login_hint.take().map(|person| ("login", person)));
        }
        let authentication = ClientAuth::resolve(&raw.client, &issuer.issuer, &at.key("client"), resolver)?;
        // An invalid address or tenant was reported with the issuer.
        let protocol = match is_github {
            true => Protocol::Github(Github::new(&issuer.issuer, issuer.tenant.as_deref()?)?.into()),
            false => Protocol::OpenId,
        };
        good.then(|| Self {
            authentication,
            protocol,
            scopes,
            label: raw.label.as_deref().map(Into::into),
            wishes: Wishes {
                prompt: raw.prompt,
                login_hint,
                acr_values: raw.acr_values.clone(),
                mfa_acr_values: quirks.mfa_classes(raw),
                max_age: raw.max_age.map(crate::config::values::Span::get),
                parameters,
            },
            logout: quirks.logout,
            anew: quirks.anew,
            redirect: raw.redirect,
            asks_userinfo: raw.userinfo,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(scopes: &[&str]) -> Result<Vec<String>, String> {
        let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        resolve_login(None, |login| login.scopes = scopes)
            .map(|client| client.scopes.iter().map(ToString::to_string).collect())
    }

    fn resolve_login(preset: Option<Preset>, change: impl FnOnce(&mut raw::Login)) -> Result<Client, String> {
        let client = raw::ClientCredentials {
            id: "doorward".to_owned(),
            method: Some(raw::ClientAuthMethod::None),
            secret: None,
            key: None,
            key_id: None,
            assertion: None,
        };
        let mut login = raw::Login {
            client,
            redirect: None,
            kind: None,
            label: None,
            scopes: Vec::new(),
            prompt: None,
            login_hint: None,
            domain_hint: None,
            acr_values: Vec::new(),
            mfa_acr_values: Vec::new(),
            max_age: None,
            userinfo: false,
        };
        change(&mut login);
        let mut resolver = Resolver::default();
        let issuer = serde_json::json!({"name": "main", "issuer": "https://idp.example", "tenant": "acme"});
        let issuer = raw::Issuer { preset, ..serde_json::from_value(issuer).unwrap() };
        match Client::resolve(&login, &issuer, &mut resolver, &At::root()) {
            Some(client) => Ok(client),
            None => Err(resolver.report.problems()[0].at.as_str().to_owned()),
        }
    }

    #[test]
    fn openid_is_always_requested_and_each_scope_once() {
        assert_eq!(resolve(&[]).unwrap(), ["openid"]);
        assert_eq!(resolve(&["groups", "openid", "groups"]).unwrap(), ["openid", "groups"]);
    }

    #[test]
    fn a_preset_gives_what_is_not_written() {
        let scopes = |client: &Client| client.scopes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let okta = resolve_login(Some(Preset::Okta), |_| ()).unwrap();
        assert_eq!(scopes(&okta), "openid profile email groups offline_access");
        let written = resolve_login(Some(Preset::Okta), |login| login.scopes = vec!["groups".to_owned()]).unwrap();
        assert_eq!(scopes(&written), "openid groups");
        let hint = |login: &mut raw::Login| login.domain_hint = Some("example.com".to_owned());
        let google = resolve_login(Some(Preset::Google), hint).unwrap();
        let parameters = [("access_type", "offline".to_owned()), ("hd", "example.com".to_owned())];
        assert_eq!(google.wishes.parameters, parameters);
        // With `offline_access`, the end of the session at Keycloak would not reach us.
        let keycloak = resolve_login(Some(Preset::Keycloak), |_| ()).unwrap();
        assert_eq!(scopes(&keycloak), "openid profile email");
        // The name of the claim with the roles is not a scope there.
        let zitadel = resolve_login(Some(Preset::Zitadel), |_| ()).unwrap();
        assert_eq!(scopes(&zitadel), "openid profile email offline_access");
        let entra = resolve_login(Some(Preset::Entra), hint).unwrap();
        assert_eq!(entra.wishes.parameters, [("domain_hint", "example.com".to_owned())]);
        let octocat = |login: &mut raw::Login| login.login_hint = Some("octocat".to_owned());
        let github = resolve_login(Some(Preset::GithubOauth), octocat).unwrap();
        assert_eq!(scopes(&github), "read:org user:email");
        assert_eq!(github.wishes.parameters, [("login", "octocat".to_owned())]);
        assert_eq!(github.wishes.login_hint, None);
    }

    #[test]
    fn invalid_login_parameters_are_reported() {
        for (at, change) in [
            ("/acr_values/0", (|login| login.acr_values = vec!["a b".to_owned()]) as fn(&mut raw::Login)),
            ("/mfa_acr_values/0", |login| login.mfa_acr_values = vec![String::new()]),
            ("/label", |login| login.label = Some(" ".to_owned())),
            ("/login_hint", |login| login.login_hint = Some("x".repeat(201))),
            ("/domain_hint", |login| login.domain_hint = Some(String::new())),
        ] {
            assert_eq!(resolve_login(None, change).unwrap_err(), at);
        }
    }

    #[test]
    fn scopes_with_blanks_are_reported() {
        assert_eq!(resolve(&["openid groups"]).unwrap_err(), "/scopes/0");
        assert_eq!(resolve(&["email", ""]).unwrap_err(), "/scopes/1");
    }
}
