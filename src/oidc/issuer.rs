//! A configured issuer as the provider of a login. Bearer tokens and ID tokens share its checks and its key cache.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, header};
use serde_json::{Map, Value};
use tokio::{sync::Mutex, time::Instant};

use super::{Client, Identity, Metadata, Protocol, Provider, ProviderFuture, VerifiedIdToken};
use crate::{
    authn::{Principal, Scheme},
    clock::Clock,
    egress::{Bounds, Egress},
    error::{Reason, Rejection},
    issuers::{Facts, Issuer, LogoutToken, MAX_METADATA, discovery_location},
};

/// The bounds of a probe, which a person waits for if the provider is down.
const PROBE: Bounds = Bounds { timeout: Duration::from_secs(3), max_body: MAX_METADATA };

/// How long a successful probe is cached.
const BELIEVED_THERE: Duration = Duration::from_secs(2);

/// How long a failed probe is cached.
const BELIEVED_AWAY: Duration = Duration::from_secs(1);

/// An issuer with a `login`.
#[derive(Debug)]
pub struct LoginIssuer {
    issuer: Arc<Issuer>,
    client: Client,
    clock: Clock,
    /// The result of the last probe, and until when it is cached.
    answered: Mutex<Option<(bool, Instant)>>,
}

impl LoginIssuer {
    pub fn new(issuer: Arc<Issuer>, client: Client, clock: Clock) -> Self {
        Self { issuer, client, clock, answered: Mutex::default() }
    }

    /// Requests a public resource of the provider.
    async fn probe(&self) -> Result<(), String> {
        let place = match &self.client.protocol {
            Protocol::Github(github) => github.probe().to_string(),
            Protocol::OpenId => discovery_location(self.issuer.identifier()),
        };
        let request = Request::get(&place).header(header::USER_AGENT, "doorward").body(Bytes::new());
        let answer = self.egress().send(request.map_err(|error| error.to_string())?, PROBE).await;
        match answer.map_err(|error| error.to_string())?.status() {
            status if status.is_server_error() => Err(format!("{place} answers {status}")),
            _ => Ok(()),
        }
    }
}

impl Provider for LoginIssuer {
    fn name(&self) -> &Arc<str> {
        self.issuer.name()
    }

    fn issuer(&self) -> &str {
        self.issuer.identifier()
    }

    fn is_named(&self, issuer: &str) -> bool {
        let is_github = matches!(&self.client.protocol, Protocol::Github(github) if github.is_named(issuer));
        is_github || self.issuer.is_named(issuer)
    }

    fn client(&self) -> &Client {
        &self.client
    }

    fn metadata(&self) -> Option<Arc<Metadata>> {
        if let Protocol::Github(github) = &self.client.protocol {
            return Some(Arc::clone(&github.metadata));
        }
        let discovered = self.issuer.keys().metadata()?;
        Some(Arc::new(Metadata {
            authorization_endpoint: discovered.authorization_endpoint.clone()?,
            token_endpoint: discovered.token_endpoint.clone()?,
            end_session_endpoint: discovered.end_session_endpoint.clone(),
            userinfo_endpoint: discovered.userinfo_endpoint.clone(),
            introspection_endpoint: discovered.introspection_endpoint.clone(),
            revocation_endpoint: discovered.revocation_endpoint.clone(),
            iss_parameter_supported: discovered.iss_parameter_supported,
        }))
    }

    fn can_verify(&self) -> bool {
        !self.issuer.signs() || self.issuer.keys().generation_number(self.clock.moment()).is_some()
    }

    fn answers(&self) -> ProviderFuture<'_, bool> {
        Box::pin(async move {
            // Held during the probe, so that concurrent callers wait for the same result.
            let mut answered = self.answered.lock().await;
            if let Some((answers, until)) = *answered
                && Instant::now() < until
            {
                return answers;
            }
            let probed = self.probe().await;
            if let Err(why) = &probed {
                tracing::warn!(issuer = %self.name(), why, "nobody can sign in: the provider does not answer");
            }
            let believed = if probed.is_ok() { BELIEVED_THERE } else { BELIEVED_AWAY };
            *answered = Some((probed.is_ok(), Instant::now() + believed));
            probed.is_ok()
        })
    }

    fn clock_skew(&self) -> Duration {
        self.issuer.skew()
    }

    fn egress(&self) -> &Egress {
        self.issuer.keys().egress()
    }

    fn verify_id_token<'a>(&'a self, token: &'a str) -> ProviderFuture<'a, Result<VerifiedIdToken, Rejection>> {
        Box::pin(async move {
            // The login checks nonce, age and access-token hash, as it knows what it asked for.
            let (mut claims, algorithm) =
                self.issuer.verify_id_token(token, self.client.id(), self.clock.now()).await?;
            // The issuer was accepted under one of its names; from here on it has a single one.
            claims.insert("iss".to_owned(), (**self.issuer.identifier()).into());
            Ok(VerifiedIdToken { claims: Arc::new(claims), algorithm })
        })
    }

    fn verify_logout_token<'a>(&'a self, token: &'a str) -> ProviderFuture<'a, Result<LogoutToken, Rejection>> {
        Box::pin(async move { Ok(self.issuer.verify_logout_token(token, self.client.id(), self.clock.now()).await?) })
    }

    fn check_required(&self, claims: &Map<String, Value>) -> Result<(), Rejection> {
        self.issuer.check_required(claims)
    }

    fn principal(&self, identity: Identity<'_>) -> Result<Principal, Rejection> {
        let subject = identity
            .claims
            .get("sub")
            .and_then(Value::as_str)
            .ok_or_else(|| Rejection::new(Reason::IdentityRefused, "the login names no subject"))?;
        // Checked again for each session: the configuration may require more than when the person signed in, and a
        // refresh may have changed the claims. A new login shows whether the person satisfies it now.
        self.check_required(identity.claims).map_err(|rejection| {
            Rejection::new(
                Reason::SessionExpired,
                "the claims of this session do not have what is required to sign in here",
            )
            .fix("sign in again, perhaps with another account")
            .because(rejection)
        })?;
        // The token was issued to our client: the audience of the ID token proves it, or our own exchange of the access
        // token. Kinds are configured by client.
        let mut claims = (**identity.claims).clone();
        claims.entry("client_id").or_insert_with(|| (**self.client.id()).into());
        self.issuer.principal(Facts {
            claims,
            subject: subject.into(),
            expires: identity.expires,
            scheme: Scheme::Session,
            scopes: Some(identity.scopes.to_vec()),
            credential: identity.credential,
        })
    }
}
