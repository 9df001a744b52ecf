//! The provider as a login sees it: what an OpenID provider and GitHub both answer, and a scripted one in tests.

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

    /// Whether it calls itself so. One that stands for several tenants calls itself as each of them, and GitHub goes by another
    /// name in its answers.
    fn is_named(&self, issuer: &str) -> bool {
        issuer == self.issuer()
    }

    /// Who we are there.
    fn client(&self) -> &Client;

    /// What discovery says of it, or what is known of it; `None` while it has not been reached.
    fn metadata(&self) -> Option<Arc<Metadata>>;

    /// Whether what it says of people can be verified now. A login that ends before it can would cost its person the way
    /// there, and a refresh token that rotates would be used up for nothing.
    fn can_verify(&self) -> bool {
        true
    }

    /// Whether it answers at all now, as was found out in the last moments. Nobody is sent to one that does not.
    fn answers(&self) -> ProviderFuture<'_, bool> {
        Box::pin(async { true })
    }

    /// How far its clock and ours may be apart.
    fn clock_skew(&self) -> Duration;

    /// What calls to it go through.
    fn egress(&self) -> &Egress;

    /// Checks an ID token as the strict check of bearer tokens does, for the audience of [`Client::id`] and the types
    /// of an ID token: compact form, signature by a current key of this issuer and an algorithm that is allowed, `typ`,
    /// `crit`, no member twice, `iss`, `aud`, `exp`, `nbf`, `iat` not ahead, `sub`
    /// (OpenID Connect Core 1.0 section 3.1.3.7). May fetch a key that is new.
    fn verify_id_token<'a>(&'a self, token: &'a str) -> ProviderFuture<'a, Result<VerifiedIdToken, Rejection>>;

    /// Checks a logout token for [`Client::id`] by all rules of OpenID Connect Back-Channel Logout 1.0 section 2.6 but
    /// whether it was used before. May fetch a key that is new.
    fn verify_logout_token<'a>(&'a self, token: &'a str) -> ProviderFuture<'a, Result<LogoutToken, Rejection>>;

    /// Whether the claims of a person who came without an ID token have the values that the issuer must see.
    fn check_required(&self, claims: &Map<String, Value>) -> Result<(), Rejection>;

    /// Who the claims of a login name: user name, kind and groups by the issuer's settings, with the scheme
    /// [`Session`](crate::authn::Scheme::Session) and exactly the scopes, credential and end given. Refuses claims that lack
    /// what the issuer must see, as [`check_required`](Self::check_required) does.
    fn principal(&self, identity: Identity<'_>) -> Result<Principal, Rejection>;
}

pub type ProviderFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a login uses of a provider's metadata (OpenID Connect Discovery 1.0 section 3). Its `issuer` was compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    pub authorization_endpoint: Url,
    pub token_endpoint: Url,
    pub end_session_endpoint: Option<Url>,
    pub userinfo_endpoint: Option<Url>,
    pub introspection_endpoint: Option<Url>,
    /// RFC 7009.
    pub revocation_endpoint: Option<Url>,
    /// Whether each answer names its issuer (RFC 9207 section 3).
    pub iss_parameter_supported: bool,
}

/// The claims of an ID token whose signature and registered claims are good.
#[derive(Clone, Debug)]
pub struct VerifiedIdToken {
    pub claims: Arc<Map<String, Value>>,
    /// What it was signed with.
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
