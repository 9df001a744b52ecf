//! Rechecks of a person at the provider: whether they may still be signed in, and with which claims. Uses the refresh
//! token or, if there is none, presents the access token. GitHub is always asked with the access token.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{
    Metadata, Protocol, Provider,
    exchange::{self, ExchangeError, Granted},
    github::{Github, GithubError},
    id_token::{self, Expected, Mismatch, Nonce},
    vouch::{can_vouch, fetch_userinfo, require_userinfo, vouch},
};
use crate::{clock::Timestamp, error::Reason, issuers::Unverified, sessions::Tokens};

/// The result of a refresh. Fields that are `None` stay as they were.
#[derive(Clone, Default)]
pub struct Refreshed {
    pub access: Option<String>,
    pub refresh: Option<String>,
    /// The ID token.
    pub id: Option<String>,
    /// The claims that replace the earlier ones.
    pub claims: Option<Map<String, Value>>,
    /// The claims that userinfo returned, to complete or update those of the ID token.
    pub userinfo: Option<Map<String, Value>>,
    pub scopes: Option<Vec<Arc<str>>>,
    /// Why the person could not be rechecked, though there may be new tokens.
    pub unvouched: Option<RefreshError>,
    /// Why userinfo answered without claims, although `userinfo: true` is set.
    pub lacks: Option<String>,
}

impl std::fmt::Debug for Refreshed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Refreshed(..)")
    }
}

/// Why a refresh failed. No variant carries a secret.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RefreshError {
    /// The provider no longer vouches for the person.
    #[error("{0}")]
    Gone(String),
    /// The provider answers, but does not vouch for the person. This may be trouble of its own, and not final.
    #[error("{0}")]
    Refused(String),
    /// The result is unknown; the refresh may be retried.
    #[error("{0}")]
    Later(String),
}

/// Whether the provider can be asked about a login with these tokens, as far as is known. If not, [`refresh`] returns
/// [`RefreshError::Gone`].
pub fn can_ask(provider: &dyn Provider, tokens: &Tokens) -> bool {
    tokens.refresh.is_some()
        || matches!(provider.client().protocol, Protocol::Github(_))
        || provider.metadata().is_none_or(|metadata| can_vouch(&metadata))
}

/// Rechecks a login whose ID token had `claims`, with its tokens. A new ID token must be of the same person, for us,
/// and of the same login (OpenID Connect Core 1.0 section 12.2).
pub async fn refresh(
    provider: &dyn Provider,
    tokens: &Tokens,
    claims: &Map<String, Value>,
    now: Timestamp,
) -> Result<Refreshed, RefreshError> {
    if let Protocol::Github(github) = &provider.client().protocol {
        return ask_github(provider, github, tokens, claims, now).await;
    }
    let metadata =
        provider.metadata().ok_or_else(|| RefreshError::Later("the provider was not reached yet".to_owned()))?;
    let subject = claims.get("sub").and_then(Value::as_str);
    let asks_userinfo = provider.client().asks_userinfo;
    let Some(token) = tokens.refresh.as_deref() else {
        let userinfo = vouch(provider, &metadata, &tokens.access, subject, now).await?;
        let lacks =
            (asks_userinfo && userinfo.is_none()).then(|| "its userinfo endpoint returned no claims".to_owned());
        return Ok(Refreshed { userinfo, lacks, ..Refreshed::default() });
    };
    if !provider.can_verify() {
        return Err(RefreshError::Later("the keys of the provider are not available".to_owned()));
    }
    let Granted { access, refresh, id, scopes } = renew(provider, &metadata, token, now).await?;
    let claims = match &id {
        None => None,
        Some(token) => match check(provider, token, &access, claims, now).await {
            Ok(claims) => Some(claims),
            Err(error @ RefreshError::Gone(_)) => return Err(error),
            Err(error) => return Ok(unvouched(access, refresh, error)),
        },
    };
    // An answer without an ID token is valid (OpenID Connect Core 1.0 section 12.2), but has no groups.
    let userinfo = match asks_userinfo {
        true => require_userinfo(provider, &metadata, &access, subject).await.map(Some),
        false if claims.is_none() => fetch_userinfo(provider, &metadata, &access, subject).await,
        false => Ok(None),
    };
    let (userinfo, lacks) = match userinfo {
        Ok(userinfo) => (userinfo, None),
        // The grant is valid, so userinfo is asked again at the next refresh, not by another one now.
        Err(RefreshError::Later(why)) => {
            tracing::debug!(issuer = %provider.name(), why, "a session keeps its claims: userinfo failed");
            (None, None)
        }
        Err(RefreshError::Refused(why)) => (None, Some(why)),
        Err(error) => return Err(error),
    };
    Ok(Refreshed { access: Some(access), refresh, id, claims, userinfo, scopes, unvouched: None, lacks })
}

/// New tokens of a person who could not be rechecked yet. They must be stored, as the earlier ones may be invalid now.
fn unvouched(access: String, refresh: Option<String>, why: RefreshError) -> Refreshed {
    Refreshed { access: Some(access), refresh, unvouched: Some(why), ..Refreshed::default() }
}

async fn renew(
    provider: &dyn Provider,
    metadata: &Metadata,
    token: &str,
    now: Timestamp,
) -> Result<Granted, RefreshError> {
    exchange::refresh(provider, metadata, token, now).await.map_err(|error| match error {
        ExchangeError::InvalidGrant(_) => RefreshError::Gone(error.to_string()),
        ExchangeError::Refused(_) => RefreshError::Refused(error.to_string()),
        error => RefreshError::Later(error.to_string()),
    })
}

/// Rechecks a person at GitHub with the present access token, and renews it only when GitHub refuses it: GitHub Apps
/// issue tokens for eight hours with a refresh token, OAuth apps issue tokens that do not expire.
async fn ask_github(
    provider: &dyn Provider,
    github: &Github,
    tokens: &Tokens,
    before: &Map<String, Value>,
    now: Timestamp,
) -> Result<Refreshed, RefreshError> {
    let (mut access, mut refresh) = (None, None);
    let mut person = github.person(provider, &tokens.access).await;
    if let (Err(GithubError::TokenRefused), Some(token)) = (&person, &tokens.refresh) {
        let renewed = renew(provider, &github.metadata, token, now).await?;
        person = github.person(provider, &renewed.access).await;
        refresh = renewed.refresh;
        access = Some(renewed.access);
    }
    let claims = match person {
        Ok(claims) => claims,
        Err(error @ GithubError::Unanswered(_)) => {
            let later = RefreshError::Later(error.to_string());
            return match access {
                Some(access) => Ok(unvouched(access, refresh, later)),
                None => Err(later),
            };
        }
        Err(error) => return Err(RefreshError::Gone(error.to_string())),
    };
    if claims.get("sub") != before.get("sub") {
        return Err(RefreshError::Gone("its access token is of another person".to_owned()));
    }
    Ok(Refreshed { access, refresh, claims: Some(claims), ..Refreshed::default() })
}

/// The claims of a new ID token. A token of another person ends the session, as its owner is no longer certain. A token
/// whose times do not match our clock says nothing about the person and is not accepted either: a wrong clock affects
/// everybody.
async fn check(
    provider: &dyn Provider,
    token: &str,
    access_token: &str,
    before: &Map<String, Value>,
    now: Timestamp,
) -> Result<Map<String, Value>, RefreshError> {
    let verified = provider.verify_id_token(token).await.map_err(|rejection| {
        let why = format!("its ID token: {}", rejection.detail());
        // Whose token it is was not checked yet. The unverified claims can only end the session.
        let of_another = || {
            let read = Unverified::parse(token).ok()?;
            check_whose(&read.claims, before, provider).err()
        };
        match rejection.reason() {
            // Says nothing about the person: the key may be new, and its key set could not be fetched.
            Reason::KeyUnknown => of_another().unwrap_or(RefreshError::Later(why)),
            Reason::TokenExpired | Reason::TokenNotYetValid => {
                let why = rejection.causes().unwrap_or_else(|| rejection.detail().to_owned());
                let differ = RefreshError::Refused(format!(
                    "the clocks of the provider and of Doorward differ, by its ID token: {why}"
                ));
                of_another().unwrap_or(differ)
            }
            _ if rejection.status().is_server_error() => of_another().unwrap_or(RefreshError::Later(why)),
            _ => RefreshError::Gone(why),
        }
    })?;
    let text = |name: &str| before.get(name).and_then(Value::as_str);
    let expected = Expected {
        issuer: provider.issuer(),
        client: provider.client().id(),
        nonce: Nonce::IfPresent(text("nonce")),
        access_token,
        max_age: None,
        acr_values: &[],
        now,
    };
    let claims = &verified.claims;
    check_whose(claims, before, provider)?;
    id_token::check(&verified, expected).map_err(|mismatch| {
        let why = format!("its ID token: {mismatch}");
        match mismatch {
            Mismatch::IssuedAt | Mismatch::Expired => RefreshError::Refused(why),
            _ => RefreshError::Gone(why),
        }
    })?;
    Ok(Map::clone(claims))
}

/// Checks that an ID token with these claims is of the same person as before, and for us.
fn check_whose(
    claims: &Map<String, Value>,
    before: &Map<String, Value>,
    provider: &dyn Provider,
) -> Result<(), RefreshError> {
    let [came, expected] = [claims, before].map(|claims| claims.get("sub").and_then(Value::as_str));
    if came != expected {
        return Err(RefreshError::Gone("its ID token is of another person".to_owned()));
    }
    id_token::check_client(claims, provider.client().id())
        .map_err(|mismatch| RefreshError::Gone(format!("its ID token: {mismatch}")))
}
