//! The interface of a provider that a login uses. OpenID providers and GitHub implement it, and a scripted one in
//! tests.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use serde_json::{Map, Value};
use url::Url;

use super::Client;
use crate::{
    authn::{CredentialId, Principal},
    config::raw::Algorithm,
    egress::Egress,
    error::Rejection,
    issuers::LogoutToken,
};

/// A provider as the login needs it. An issuer with a `login` is one.
pub trait Provider: std::fmt::Debug + Send + Sync + 'static {
    /// Its name in the configuration.
    fn name(&self) -> &Arc<str>;

    /// Its issuer identifier, byte for byte.
    fn issuer(&self) -> &str;

    /// Whether `issuer` is one of its names. An issuer of several tenants has the name of each of them, and GitHub uses
    /// another name in its responses.
    fn is_named(&self, issuer: &str) -> bool {
        issuer == self.issuer()
    }

    /// Doorward's client there.
    fn client(&self) -> &Client;

    /// Its metadata, from discovery or built in; `None` while it has not been reached.
    fn metadata(&self) -> Option<Arc<Metadata>>;

    /// Whether its ID tokens can be verified now. Otherwise a login would fail at its end, and a rotating refresh token
    /// would be used up for nothing.
    fn can_verify(&self) -> bool {
        true
    }

    /// Whether it answers, as probed within the last seconds. Nobody is sent to a provider that does not.
    fn answers(&self) -> ProviderFuture<'_, bool> {
        Box::pin(async { true })
    }

    /// The allowed difference between its clock and ours.
    fn clock_skew(&self) -> Duration;

    /// The client for calls to it.
    fn egress(&self) -> &Egress;

    /// Checks an ID token like a bearer token, for the audience of [`Client::id`] and the types
    /// of an ID token: compact form, signature by a current key of this issuer and an algorithm that is allowed, `typ`,
    /// `crit`, no member twice, `iss`, `aud`, `exp`, `nbf`, `iat` not ahead, `sub`
    /// (OpenID Connect Core 1.0 section 3.1.3.7). May fetch a new key.
    fn verify_id_token<'a>(&'a self, token: &'a str) -> ProviderFuture<'a, Result<VerifiedIdToken, Rejection>>;

    /// Checks a logout token for [`Client::id`] by all rules of OpenID Connect Back-Channel Logout 1.0 section 2.6
    /// except whether it was used before. May fetch a new key.
    fn verify_logout_token<'a>(&'a self, token: &'a str) -> ProviderFuture<'a, Result<LogoutToken, Rejection>>;

    /// Checks the claims of a person without an ID token against `required_claims`.
    fn check_required(&self, claims: &Map<String, Value>) -> Result<(), Rejection>;

    /// The principal of a login: user name, kind and groups by the issuer's settings, with the scheme
    /// [`Session`](crate::authn::Scheme::Session) and exactly the given scopes, credential and end. Refuses claims that
    /// do not satisfy `required_claims`, as [`check_required`](Self::check_required) does.
    fn principal(&self, identity: Identity<'_>) -> Result<Principal, Rejection>;
}

pub type ProviderFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The metadata of a provider that a login uses (OpenID Connect Discovery 1.0 section 3). Its `issuer` was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    pub authorization_endpoint: Url,
    pub token_endpoint: Url,
    pub end_session_endpoint: Option<Url>,
    pub userinfo_endpoint: Option<Url>,
    pub introspection_endpoint: Option<Url>,
    /// RFC 7009.
    pub revocation_endpoint: Option<Url>,
    /// Whether each response names its issuer (RFC 9207 section 3).
    pub iss_parameter_supported: bool,
}

/// The claims of an ID token whose signature and registered claims are valid.
#[derive(Clone, Debug)]
pub struct VerifiedIdToken {
    pub claims: Arc<Map<String, Value>>,
    /// The algorithm of its signature.
    pub algorithm: Algorithm,
}

/// The facts of a login.
#[derive(Clone, Debug)]
pub struct Identity<'a> {
    pub claims: &'a Arc<Map<String, Value>>,
    pub scopes: &'a [Arc<str>],
    pub credential: CredentialId,
    pub expires: crate::clock::Timestamp,
}
