//! One issuer: its checks, its keys, and the principals of its tokens.

use std::{sync::Arc, time::Duration};

use data_encoding::HEXLOWER;
use http::HeaderValue;
use serde_json::{Map, Value};

use super::{
    checks::{AccessTokenChecks, Checked},
    discovery::Metadata,
    introspection::Introspection,
    jwt::{Unverified, is_jwt_shaped},
    key_cache::{FetchSettings, KeyCache, KeySource},
    logout_token::LogoutToken,
    principal::{Facts, Mapping},
    signature::Signed,
    single_flight::Key,
    token_error::TokenError,
    token_review::{REVIEW_CLAIM, TokenReview},
    verified::Verified,
};
use crate::{
    authn::{CredentialId, Kind, Principal, Scheme},
    clock::{Moment, Timestamp},
    config::raw::{Algorithm, IntrospectionMode, Preset},
    error::Rejection,
    sha256::sha256,
};

/// An issuer whose tokens are accepted.
#[derive(Debug)]
pub struct Issuer {
    pub(super) name: Arc<str>,
    pub(super) checks: AccessTokenChecks,
    pub(super) mapping: Mapping,
    pub(super) keys: Arc<KeyCache>,
    /// How keys are fetched.
    pub(super) fetches: Arc<FetchSettings>,
    pub(super) introspection: Option<Arc<Introspection>>,
    pub(super) token_review: Option<Arc<TokenReview>>,
}

impl Issuer {
    /// The name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The issuer identifier (`iss`).
    pub fn identifier(&self) -> &Arc<str> {
        &self.checks.issuer
    }

    /// Whether tokens with this `iss` are for this issuer to verify.
    pub fn is_named(&self, iss: &str) -> bool {
        match &self.checks.tenants {
            None => *iss == *self.checks.issuer,
            Some(tenants) => tenants.named(iss).is_some(),
        }
    }

    /// The TokenReview of its tokens, if configured.
    pub fn token_review(&self) -> Option<Arc<TokenReview>> {
        self.token_review.clone()
    }

    /// The values of `aud` that mean Doorward.
    pub fn audiences(&self) -> &[Box<str>] {
        &self.checks.audiences
    }

    /// Whether a subject is this client itself.
    pub fn is_client(&self, client: &str, subject: &str) -> bool {
        self.mapping.kinds.is_client(client, subject)
    }

    /// The kind of the subject of a token, if somebody acts for it.
    pub fn kind_behind_actor(&self, of: &Principal) -> Kind {
        self.mapping.kinds.of_subject(&of.subject, of.client.as_deref(), of.scheme, &of.claims, true)
    }

    /// The allowed difference between clocks.
    pub fn skew(&self) -> Duration {
        self.checks.skew
    }

    /// Its keys and discovery document.
    pub fn keys(&self) -> &KeyCache {
        &self.keys
    }

    /// The value of `Authorization` for fetches of keys.
    pub fn keys_bearer(&self) -> Option<&HeaderValue> {
        self.fetches.bearer.as_ref()
    }

    /// Whether it signs tokens. If not, people can only log in there.
    pub fn signs(&self) -> bool {
        self.keys.settings().source != KeySource::Nowhere
    }

    /// Whether a client can request tokens there, for somebody or for itself. Clusters and CI systems issue tokens only
    /// to their own jobs, and Doorward only exchanges tokens of other issuers.
    pub fn is_asked_for_tokens(&self) -> bool {
        use Preset::{Doorward, GithubActions, GitlabCi, Kubernetes};
        self.signs() && !matches!(self.mapping.preset, Some(Kubernetes | GithubActions | GitlabCi | Doorward))
    }

    /// Checks `claims` against `required_claims`. The verification of a token does this too.
    pub fn check_required(&self, claims: &Map<String, Value>) -> Result<(), Rejection> {
        Ok(self.checks.check_required(claims)?)
    }

    /// Whether opaque tokens are introspected here.
    pub fn introspects(&self) -> bool {
        self.introspection.as_ref().is_some_and(|introspection| introspection.mode() != IntrospectionMode::Never)
    }

    /// Why introspection is not possible with this discovery document.
    pub fn introspection_trouble(&self, discovered: &Metadata) -> Option<&'static str> {
        self.introspection.as_ref()?.trouble(discovered)
    }

    /// [Introspects](Introspection::probe) a made-up token, if introspection is configured.
    pub async fn probe_introspection(&self, discovered: Option<&Metadata>) -> Option<Result<Option<bool>, String>> {
        self.introspection.as_ref()?.probe(discovered).await
    }

    /// Whether such a token must be checked at this issuer, or its API server, again whenever the cached answer is too
    /// old.
    pub(super) fn asks_about(&self, token: &str) -> bool {
        let Some(introspection) = &self.introspection else { return self.token_review.is_some() };
        let of_jwts = || introspection.mode() == IntrospectionMode::Always || self.token_review.is_some();
        if is_jwt_shaped(token) { of_jwts() } else { self.introspects() }
    }

    /// Verifies an ID token for the client `client_id`. Returns its claims and signature algorithm. Waits at most for
    /// one fetch of keys.
    pub async fn verify_id_token(
        &self,
        token: &str,
        client_id: &str,
        now: Timestamp,
    ) -> Result<(Map<String, Value>, Algorithm), TokenError> {
        let token = Unverified::parse(token)?;
        self.checks.check_id_token_header(&token)?;
        let check = || self.checks.check_id_token(&token, client_id, now);
        self.keys.check_signature(&token, check).await?;
        check()?;
        Ok((token.claims, token.header.algorithm))
    }

    /// Verifies a logout token for the client `client_id`. Waits at most for one fetch of keys.
    pub async fn verify_logout_token(
        &self,
        token: &str,
        client_id: &str,
        now: Timestamp,
    ) -> Result<LogoutToken, TokenError> {
        let token = Unverified::parse(token)?;
        self.checks.check_logout_token_header(&token)?;
        let check = || self.checks.check_logout_token(&token.claims, client_id, now);
        self.keys.check_signature(&token, check).await?;
        check()
    }

    /// The principal of verified claims, for a login, whose scopes come from the token response.
    pub fn principal(&self, facts: Facts) -> Result<Principal, Rejection> {
        self.mapping.principal(facts)
    }

    /// Rechecks a caller, whose bearer token was verified under an earlier generation, by the settings of this one.
    /// Returns the principal and the audiences of the token. The token itself is not stored; [`Self::has_lost_key_of`]
    /// checks whether its key is still in the set.
    pub(super) fn judge_again(&self, known: &Principal) -> Result<(Principal, Vec<Box<str>>), Rejection> {
        if !known.claims.contains_key("iss") && !self.introspects() {
            return Err(TokenError::OpaqueNotAccepted.into());
        }
        let client = self.mapping.client(&known.claims, known.scheme)?;
        // Only an introspection answer may have no audience; a JWT always has one.
        let is_listed = self.introspects() && self.mapping.lists(client.as_deref());
        let audiences = self.checks.check_again(&known.claims, is_listed)?;
        let mut principal = self.mapping.principal(Facts {
            claims: (*known.claims).clone(),
            subject: self.checks.subject_or(self.mapping.kinds.own_subject(client.as_deref()), &known.claims)?,
            expires: known.expires,
            scheme: known.scheme,
            scopes: None,
            credential: known.credential.clone(),
        })?;
        principal.signed_by = known.signed_by;
        Ok((principal, audiences))
    }

    /// Whether the key that signed the token of a caller was removed from the issuer's set, confirmed by a second
    /// answer. While there is no set, no key counts as removed.
    pub(super) fn has_lost_key_of(&self, known: &Principal) -> bool {
        known.signed_by.is_some_and(|key| self.keys.lacks(key))
    }

    /// Verifies a JWT as a bearer token, with all checks of this issuer.
    pub(super) async fn authenticate_jwt(
        self: &Arc<Self>,
        text: &str,
        token: Unverified<'_>,
        key: Key,
        now: Timestamp,
    ) -> Result<Verified, Rejection> {
        let signed = token.signed();
        self.checks.check_header(&token)?;
        let check = || self.checks.check_claims(&token, now);
        let signed_by = self.keys.check_signature(&token, check).await?;
        let mut checked = check().map_err(TokenError::of_verified)?;
        let mut claims = token.claims;
        let (mut good_until, mut size) = (Moment::MAX, text.len());
        if let Some(introspection) = &self.introspection
            && introspection.mode() == IntrospectionMode::Always
        {
            let discovered = self.keys.metadata();
            let answer = introspection.ask(text, key, true, discovered.as_deref()).await?;
            let answer = answer.ok_or_else(|| self.inactive())?;
            // The issuer's answer overrides the claims of the token, but the subject must be the same.
            for (name, value) in &answer.claims {
                claims.insert(name.clone(), value.clone());
            }
            let client = self.mapping.client(&claims, Scheme::Bearer).map_err(TokenError::of_verified)?;
            let fresh = self.checks.check_answer(&claims, client.is_some(), None, now);
            let fresh = fresh.map_err(TokenError::of_verified)?;
            if fresh.subject != checked.subject {
                return Err(self.inactive().into());
            }
            checked = Checked { expires: fresh.expires.min(checked.expires), ..fresh };
            good_until = answer.good_until;
            size += answer.size;
        }
        if let Some(review) = &self.token_review {
            let answer = review.ask(text, key).await?.ok_or_else(|| self.inactive())?;
            if answer.claims.get("username").and_then(Value::as_str) != Some(&*checked.subject) {
                return Err(self.inactive().into());
            }
            claims.insert(REVIEW_CLAIM.to_owned(), answer.claims.clone().into());
            good_until = good_until.min(answer.good_until);
            size += answer.size;
        }
        self.verified(claims, checked, signed, size, Some(signed_by), good_until)
    }

    /// Verifies an opaque bearer token by introspection.
    pub(super) async fn authenticate_opaque(
        self: &Arc<Self>,
        text: &str,
        key: Key,
        now: Timestamp,
    ) -> Result<Verified, Rejection> {
        let introspection = self.introspection.as_ref().ok_or(TokenError::OpaqueNotAccepted)?;
        let discovered = self.keys.metadata();
        let answer = introspection.ask(text, key, false, discovered.as_deref()).await?;
        let answer = answer.ok_or_else(|| self.inactive())?;
        let client = self.mapping.client(&answer.claims, Scheme::Bearer).map_err(TokenError::of_verified)?;
        let (is_listed, own) =
            (self.mapping.lists(client.as_deref()), self.mapping.kinds.own_subject(client.as_deref()));
        let checked = self.checks.check_answer(&answer.claims, is_listed, own, now);
        let checked = checked.map_err(TokenError::of_verified)?;
        let size = text.len() + answer.size;
        self.verified(answer.claims.clone(), checked, text.as_bytes(), size, None, answer.good_until)
    }

    /// Builds the cache entry of a verified token. `named_by` identifies a token without `jti`: the part that only its
    /// issuer can vary. `size` is the total size of the token and the answers that the claims are from.
    fn verified(
        self: &Arc<Self>,
        claims: Map<String, Value>,
        checked: Checked,
        named_by: &[u8],
        size: usize,
        signed: Option<Signed>,
        good_until: Moment,
    ) -> Result<Verified, Rejection> {
        let credential = match claims.get("jti").and_then(Value::as_str) {
            Some(jti) if !jti.is_empty() && jti.len() <= 256 => CredentialId::Token(jti.into()),
            _ => CredentialId::Token(HEXLOWER.encode(&sha256(&[named_by])).into()),
        };
        let mut principal = self.mapping.principal(Facts {
            claims,
            subject: checked.subject,
            expires: checked.expires,
            scheme: Scheme::Bearer,
            scopes: None,
            credential,
        })?;
        principal.signed_by = signed.map(|signed| signed.by);
        principal.skew = self.skew();
        Ok(Verified {
            principal: Arc::new(principal),
            issuer: Arc::clone(self),
            generation: signed.map(|signed| signed.generation),
            not_before: checked.not_before,
            good_until,
            audiences: checked.audiences,
            size: u32::try_from(size).unwrap_or(u32::MAX),
        })
    }

    fn inactive(&self) -> TokenError {
        TokenError::Inactive { issuer: Arc::clone(&self.name) }
    }
}
