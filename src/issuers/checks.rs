//! The checks of the claims of a token, besides its signature (RFC 9068 section 4, OpenID Connect Core 1.0 section
//! 3.1.3.7, RFC 8725).

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value};

use super::{
    claim_path::ClaimPath,
    jwt::{Header, Unverified},
    tenants::Tenants,
    token_error::{Quoted, TokenError},
};
use crate::{clock::Timestamp, config::raw::Algorithm};

/// Claims for the client or scopes of access tokens that ID tokens do not have. The configured claims for client and
/// scopes do not distinguish the two: they may be in both, or in neither.
const OF_ACCESS_TOKENS: [&str; 5] = ["client_id", "cid", "appid", "scope", "scp"];

/// The maximum bytes of a subject of most issuers (OpenID Connect Core 1.0 section 2).
pub(super) const MAX_SUBJECT: usize = 255;

/// The description of a text of at most [`MAX_SUBJECT`] bytes, or [`MAX_NAME`](crate::authn::principal::MAX_NAME).
pub(super) const fn text_up_to(longest: usize) -> &'static str {
    if longest == MAX_SUBJECT { "a text of 1 to 255 bytes" } else { "a text of 1 to 512 bytes" }
}

/// The maximum number of audiences; a token with more is refused.
const MAX_AUDIENCES: usize = 64;

/// The values that the checks extract from the claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    pub subject: Arc<str>,
    pub audiences: Vec<Box<str>>,
    pub not_before: Option<Timestamp>,
    /// `exp`, without the tolerance for clocks.
    pub expires: Timestamp,
}

/// The same for a token that need not have a subject.
#[derive(Debug)]
pub(super) struct Registered {
    pub audiences: Vec<Box<str>>,
    pub not_before: Option<Timestamp>,
    pub expires: Timestamp,
}

/// The checks of access tokens of one issuer.
#[derive(Debug)]
pub struct AccessTokenChecks {
    pub issuer: Arc<str>,
    pub audiences: Box<[Box<str>]>,
    pub algorithms: Box<[Algorithm]>,
    /// The accepted `typ`, in lower case; `""` is an absent one.
    pub token_types: Box<[Box<str>]>,
    pub required_claims: Box<[(ClaimPath, Vec<Value>)]>,
    /// Claims that an `at+jwt` must have, without those that this issuer is known to omit.
    pub profile_claims: Box<[&'static str]>,
    pub skew: Duration,
    pub max_lifetime: Duration,
    /// Another `iss` that the issuer uses in its tokens.
    pub other_issuer: Option<&'static str>,
    /// The tenants whose tokens, each with an issuer of its own, are accepted in place of those of `issuer`.
    pub tenants: Option<Tenants>,
    /// Whether its access tokens have no `aud`, so that the client is the audience (Cognito).
    pub client_is_audience: bool,
    /// Whether its access tokens look like its ID tokens, including `at_hash`, except for `c_hash` (Dex).
    pub like_id_tokens: bool,
    /// Whether its ID tokens list the project and all its clients as audiences, so that only `azp` names the client
    /// (Zitadel).
    pub id_tokens_for_project: bool,
    /// Claims of which each access token of the issuer has one, and no ID token. Empty: none are known.
    pub marks: &'static [&'static str],
    /// The maximum bytes of a subject. It is larger for service accounts and for the user names in Doorward's own
    /// tokens.
    pub longest_subject: usize,
}

impl AccessTokenChecks {
    /// Checks the header and the kind of a token, before any key is needed.
    pub fn check_header(&self, token: &Unverified<'_>) -> Result<(), TokenError> {
        check_algorithm(token.header.algorithm, &self.algorithms)?;
        let typ = token.header.typ.as_deref().unwrap_or_default();
        if !self.token_types.iter().any(|accepted| accepted.eq_ignore_ascii_case(typ)) {
            return Err(TokenError::Type {
                came: token.header.typ.as_deref().map_or_else(|| Quoted::json(None), Quoted::text),
                expected: self
                    .token_types
                    .iter()
                    .map(|typ| if typ.is_empty() { "none" } else { typ }.to_owned())
                    .collect(),
            });
        }
        check_kind(&token.claims, typ)?;
        if says_access_token(typ) { Ok(()) } else { self.check_no_id_token(&token.claims) }
    }

    /// Refuses ID tokens that only their claims distinguish from access tokens. An ID token from a refresh has no
    /// `nonce`.
    fn check_no_id_token(&self, claims: &Map<String, Value>) -> Result<(), TokenError> {
        let is = |name: &str, kind: &str| claims.get(name).and_then(Value::as_str) == Some(kind);
        // Keycloak and Cognito mark access tokens like this.
        if is("typ", "Bearer") || is("token_use", "access") {
            return Ok(());
        }
        if !self.marks.is_empty() && !self.marks.iter().any(|name| claims.contains_key(*name)) {
            return Err(TokenError::OtherKind("an ID token (it does not say which client it was issued to)"));
        }
        if claims.contains_key("c_hash") {
            return Err(TokenError::OtherKind("an ID token (it has a `c_hash`)"));
        }
        if self.like_id_tokens {
            return Ok(());
        }
        if claims.contains_key("at_hash") {
            return Err(TokenError::OtherKind("an ID token (it has an `at_hash`)"));
        }
        let of_a_login = claims.contains_key("sid") || claims.contains_key("auth_time");
        if of_a_login && !OF_ACCESS_TOKENS.iter().any(|name| claims.contains_key(*name)) {
            return Err(TokenError::OtherKind(
                "an ID token (it has `sid` or `auth_time`, and neither a client nor scopes)",
            ));
        }
        Ok(())
    }

    /// Makes all checks of the claims. The caller verifies the signature.
    pub fn check_claims(&self, token: &Unverified<'_>, now: Timestamp) -> Result<Checked, TokenError> {
        let checked = self.check_common(&token.claims, now)?;
        check_audience(&checked.audiences, &self.audiences, token.claims.get("aud"))?;
        self.check_required(&token.claims)?;
        self.check_profile(token)?;
        Ok(checked)
    }

    /// Checks for the claims that a token of type `at+jwt` must have (RFC 9068 section 2.2).
    fn check_profile(&self, token: &Unverified<'_>) -> Result<(), TokenError> {
        if !says_access_token(token.header.typ.as_deref().unwrap_or_default()) {
            return Ok(());
        }
        for name in self.profile_claims.iter().copied() {
            let came = token.claims.get(name);
            if came.and_then(Value::as_str).is_none_or(str::is_empty) {
                return Err(wrong(name, came, "a text, as every `at+jwt` has"));
            }
        }
        Ok(())
    }

    /// Checks an active introspection answer (RFC 7662 section 2.2), which may have few members. `is_listed` says
    /// whether its client is listed: then an answer with `token_type` `Bearer` needs no `aud`. `own_subject` is the
    /// configured subject of the tokens that the client has for itself.
    pub fn check_answer(
        &self,
        claims: &Map<String, Value>,
        is_listed: bool,
        own_subject: Option<&str>,
        now: Timestamp,
    ) -> Result<Checked, TokenError> {
        if let Some(issuer) = claims.get("iss")
            && issuer.as_str() != Some(&*self.issuer)
        {
            return Err(other_issuer(Some(issuer), &self.issuer));
        }
        check_kind(claims, "at+jwt")?;
        check_sender_constraint(claims)?;
        let (issued, not_before) = (numeric_date(claims, "iat")?, numeric_date(claims, "nbf")?);
        let end = numeric_date(claims, "exp")?;
        let expires = end.unwrap_or(now + self.max_lifetime);
        check_times(now, self.skew, expires, &[("nbf", not_before), ("iat", issued)])?;
        if let Some(end) = end {
            self.check_lifetime(issued.unwrap_or(now), end)?;
        }
        let audiences = self.own_audiences(audiences(claims)?, is_listed, claims)?;
        if audiences.is_empty() {
            check_says_bearer(claims)?;
        }
        self.check_required(claims)?;
        Ok(Checked { subject: self.subject_or(own_subject, claims)?, audiences, not_before, expires })
    }

    /// Rechecks claims that were verified before by settings that have changed since: issuer, audience and required
    /// claims. Returns the audiences. Header and signature are not checked again.
    pub fn check_again(&self, claims: &Map<String, Value>, is_listed: bool) -> Result<Vec<Box<str>>, TokenError> {
        // An introspection answer need not name its issuer.
        let is_ours = |issuer: &Value| issuer.as_str().is_some_and(|iss| self.is_named(iss, claims.get("tid")));
        if let Some(other) = claims.get("iss").filter(|issuer| !is_ours(issuer)) {
            return Err(other_issuer(Some(other), &self.issuer));
        }
        let came = audiences(claims)?.or_else(|| self.client_as_audience(claims));
        let audiences = self.own_audiences(came, is_listed, claims)?;
        self.check_required(claims)?;
        Ok(audiences)
    }

    /// Checks that one of the audiences is ours. The token of a listed client may have none: listing the client means
    /// that its tokens are for Doorward, but not for a certain audience, so a route that requires one refuses them.
    fn own_audiences(
        &self,
        came: Option<Vec<Box<str>>>,
        is_listed: bool,
        claims: &Map<String, Value>,
    ) -> Result<Vec<Box<str>>, TokenError> {
        if came.is_some() || !is_listed {
            check_audience(came.as_deref().unwrap_or_default(), &self.audiences, claims.get("aud"))?;
        }
        Ok(came.unwrap_or_default())
    }

    /// The client as the audience, for issuers whose access tokens have no `aud`.
    fn client_as_audience(&self, claims: &Map<String, Value>) -> Option<Vec<Box<str>>> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let is_access_token = self.client_is_audience && text("token_use") == Some("access");
        text("client_id").filter(|_| is_access_token).map(|client| vec![client.into()])
    }

    /// Checks an ID token for the client `client_id`. The values of a particular login are checked in
    /// [`oidc::id_token`](crate::oidc).
    pub fn check_id_token(&self, token: &Unverified<'_>, client_id: &str, now: Timestamp) -> Result<(), TokenError> {
        let claims = &token.claims;
        let verified = self.check_common(claims, now)?;
        let ours = [Box::from(client_id)];
        check_audience(&verified.audiences, &ours, claims.get("aud"))?;
        let untrusted =
            verified.audiences.iter().find(|audience| ***audience != *client_id && !self.audiences.contains(audience));
        if let Some(other) = untrusted.filter(|_| !self.id_tokens_for_project) {
            return Err(TokenError::OtherAudience { came: Quoted::text(other) });
        }
        // With several audiences, only `azp` says that it was issued to us.
        match claims.get("azp") {
            None if verified.audiences.len() == 1 => {}
            Some(Value::String(azp)) if azp == client_id => {}
            other => return Err(wrong("azp", other, "our client id")),
        }
        self.check_required(claims)
    }

    /// Checks the header of an ID token: its `typ` is absent or `JWT`.
    pub fn check_id_token_header(&self, token: &Unverified<'_>) -> Result<(), TokenError> {
        check_algorithm(token.header.algorithm, &self.algorithms)?;
        check_type(&token.header, &["jwt", "application/jwt"], "JWT")
    }

    /// Checks the claims against `required_claims`.
    pub fn check_required(&self, claims: &Map<String, Value>) -> Result<(), TokenError> {
        for (path, accepted) in &self.required_claims {
            let came = path.find(claims);
            if !came.is_some_and(|came| accepted.contains(came)) {
                return Err(TokenError::RequiredClaim {
                    name: path.as_str().into(),
                    came: Quoted::json(came),
                    expected: accepted
                        .iter()
                        .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
                        .collect(),
                });
            }
        }
        Ok(())
    }

    fn check_common(&self, claims: &Map<String, Value>, now: Timestamp) -> Result<Checked, TokenError> {
        let Registered { audiences, not_before, expires } = self.check_registered(claims, now)?;
        let subject = self.subject(claims)?.ok_or_else(|| wrong("sub", None, text_up_to(self.longest_subject)))?;
        Ok(Checked { subject, audiences, not_before, expires })
    }

    /// The subject of an answer that may lack `sub`. The token counts as the client's own only if the settings name a
    /// subject and the answer has no `username`: some providers return no `sub` for people either.
    pub(super) fn subject_or(
        &self,
        own_subject: Option<&str>,
        claims: &Map<String, Value>,
    ) -> Result<Arc<str>, TokenError> {
        if let Some(subject) = self.subject(claims)? {
            return Ok(subject);
        }
        let of_somebody = claims.get("username").is_some_and(|name| !name.is_null());
        match own_subject {
            Some(subject) if !of_somebody => Ok(subject.into()),
            Some(_) => {
                Err(wrong("sub", None, "present beside `username`: the token is a person's, and not the client's own"))
            }
            None => Err(wrong("sub", None, "a text of 1 to 255 bytes, or the `subject` of its client in `clients`")),
        }
    }

    /// Reads `sub`: a text without control characters.
    pub(super) fn subject(&self, claims: &Map<String, Value>) -> Result<Option<Arc<str>>, TokenError> {
        match claims.get("sub") {
            None => Ok(None),
            Some(Value::String(subject))
                if !subject.trim().is_empty()
                    && subject.len() <= self.longest_subject
                    && !subject.chars().any(char::is_control) =>
            {
                Ok(Some(subject.as_str().into()))
            }
            other => {
                let text = other.and_then(Value::as_str).unwrap_or_default();
                let expected = match text.chars().any(char::is_control) {
                    true => "a text without control characters",
                    false => text_up_to(self.longest_subject),
                };
                Err(wrong("sub", other, expected))
            }
        }
    }

    /// Whether `iss` is one of the issuer's names; `tid` is the tenant that the token names.
    fn is_named(&self, iss: &str, tid: Option<&Value>) -> bool {
        match &self.tenants {
            None => *iss == *self.issuer || Some(iss) == self.other_issuer,
            Some(tenants) => tenants.named(iss).is_some_and(|id| tid.is_some_and(|tid| tid == id)),
        }
    }

    fn check_lifetime(&self, issued: Timestamp, expires: Timestamp) -> Result<(), TokenError> {
        let (came, limit) = (expires.since(issued), self.max_lifetime);
        if came > limit { Err(TokenError::Lifetime { came, limit }) } else { Ok(()) }
    }

    /// Makes the checks of every token: issuer, times, lifetime, no sender constraint, readable audiences.
    pub(super) fn check_registered(
        &self,
        claims: &Map<String, Value>,
        now: Timestamp,
    ) -> Result<Registered, TokenError> {
        match claims.get("iss") {
            Some(Value::String(issuer)) if self.is_named(issuer, claims.get("tid")) => {}
            other => return Err(other_issuer(other, &self.issuer)),
        }
        let expires = numeric_date(claims, "exp")?.ok_or_else(|| wrong("exp", None, "a time"))?;
        let issued = numeric_date(claims, "iat")?.ok_or_else(|| wrong("iat", None, "a time"))?;
        let not_before = numeric_date(claims, "nbf")?;
        check_times(now, self.skew, expires, &[("nbf", not_before), ("iat", Some(issued))])?;
        self.check_lifetime(issued, expires)?;
        check_sender_constraint(claims)?;
        let audiences =
            audiences(claims)?.or_else(|| self.client_as_audience(claims)).ok_or_else(|| TokenError::Audience {
                came: Quoted::json(None),
                expected: self.audiences.iter().map(ToString::to_string).collect(),
            })?;
        Ok(Registered { audiences, not_before, expires })
    }
}

/// Checks that the algorithm of a token is accepted.
pub(super) fn check_algorithm(came: Algorithm, accepted: &[Algorithm]) -> Result<(), TokenError> {
    if accepted.contains(&came) {
        return Ok(());
    }
    Err(TokenError::Algorithm {
        came: Quoted::text(&format!("{came:?}")),
        expected: accepted.iter().map(|algorithm| format!("{algorithm:?}")).collect(),
    })
}

/// Checks that `typ` is absent or one of these; `expected` is named in the error.
pub(super) fn check_type(header: &Header, accepted: &[&str], expected: &str) -> Result<(), TokenError> {
    match header.typ.as_deref() {
        None => Ok(()),
        Some(typ) if accepted.iter().any(|accepted| typ.eq_ignore_ascii_case(accepted)) => Ok(()),
        Some(typ) => Err(TokenError::Type { came: Quoted::text(typ), expected: vec![expected.to_owned()] }),
    }
}

fn says_access_token(typ: &str) -> bool {
    ["at+jwt", "application/at+jwt"].iter().any(|access| typ.eq_ignore_ascii_case(access))
}

/// Refuses other kinds of token by their claims, as `typ` may not distinguish them (RFC 8725 section 3.12).
pub fn check_kind(claims: &Map<String, Value>, typ: &str) -> Result<(), TokenError> {
    if claims.contains_key("events") {
        return Err(TokenError::OtherKind("a security event or logout token"));
    }
    if claims.contains_key("token_introspection") {
        return Err(TokenError::OtherKind("an introspection answer"));
    }
    if claims.contains_key("nonce") && !says_access_token(typ) {
        return Err(TokenError::OtherKind("an ID token (it has a `nonce`)"));
    }
    // OpenIddict has `token_usage` in its introspection answers, which can name an audience whatever the token is.
    for name in ["typ", "token_use", "token_type", "token_usage"] {
        let Some(kind) = claims.get(name).and_then(Value::as_str) else { continue };
        // Keycloak writes `ID`, `Refresh`, `Offline`, `Logout`; Cognito and Dex `id`, `refresh_token` and the like.
        match kind.to_ascii_lowercase().as_str() {
            "id" | "id_token" => return Err(TokenError::OtherKind("an ID token")),
            "refresh" | "refresh_token" | "offline" => return Err(TokenError::OtherKind("a refresh token")),
            "logout" | "logout_token" => return Err(TokenError::OtherKind("a logout token")),
            "dpop" => return Err(TokenError::SenderConstrained),
            _ => {}
        }
    }
    Ok(())
}

/// Checks the `token_type` of an answer without audience. Some providers report everything they issued as active,
/// including refresh tokens and codes of logins that nobody approved; only access tokens have a `token_type` (RFC 6749
/// section 7.1).
fn check_says_bearer(claims: &Map<String, Value>) -> Result<(), TokenError> {
    let came = claims.get("token_type");
    if came.and_then(Value::as_str).is_some_and(|kind| kind.eq_ignore_ascii_case("bearer")) {
        return Ok(());
    }
    let expected = "`Bearer` in an answer without `aud`: codes and refresh tokens are active too";
    Err(wrong("token_type", came, expected))
}

/// Checks that a token is current; `starts` are the claims with times before which it is not valid.
pub fn check_times(
    now: Timestamp,
    skew: Duration,
    expires: Timestamp,
    starts: &[(&'static str, Option<Timestamp>)],
) -> Result<(), TokenError> {
    if now >= expires + skew {
        return Err(TokenError::Expired { by: now.since(expires), at: expires });
    }
    for (claim, start) in starts {
        if let Some(start) = start.filter(|start| *start > now + skew) {
            return Err(TokenError::NotYetValid { claim, by: start.since(now) });
        }
    }
    Ok(())
}

/// Refuses tokens that are bound to a key of their client (RFC 7800, RFC 8705, RFC 9449), as they are not bearer
/// tokens.
pub fn check_sender_constraint(claims: &Map<String, Value>) -> Result<(), TokenError> {
    if claims.contains_key("cnf") { Err(TokenError::SenderConstrained) } else { Ok(()) }
}

/// Checks that one of the token's audiences is one of ours.
pub fn check_audience(came: &[Box<str>], ours: &[Box<str>], raw: Option<&Value>) -> Result<(), TokenError> {
    if came.iter().any(|audience| ours.contains(audience)) {
        return Ok(());
    }
    Err(TokenError::Audience { came: Quoted::json(raw), expected: ours.iter().map(ToString::to_string).collect() })
}

/// Reads `aud`: a text or an array of texts.
pub fn audiences(claims: &Map<String, Value>) -> Result<Option<Vec<Box<str>>>, TokenError> {
    let malformed = |value| wrong("aud", Some(value), "a text or a short list of texts");
    match claims.get("aud") {
        None => Ok(None),
        Some(Value::String(audience)) => Ok(Some(vec![audience.as_str().into()])),
        Some(value @ Value::Array(values)) if values.len() <= MAX_AUDIENCES => values
            .iter()
            .map(|audience| audience.as_str().map(Box::from))
            .collect::<Option<_>>()
            .map(Some)
            .ok_or_else(|| malformed(value)),
        Some(value) => Err(malformed(value)),
    }
}

/// Reads a NumericDate (RFC 7519 section 2): whole seconds, or a fraction whose whole seconds are exact.
pub fn numeric_date(claims: &Map<String, Value>, name: &'static str) -> Result<Option<Timestamp>, TokenError> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let Some(value) = claims.get(name) else { return Ok(None) };
    let seconds = match value.as_i64() {
        Some(seconds) => Some(seconds),
        #[expect(clippy::cast_possible_truncation, reason = "within the exact range")]
        None => value.as_f64().filter(|seconds| (0.0..EXACT).contains(seconds)).map(|seconds| seconds as i64),
    };
    match seconds {
        Some(seconds @ 0..) => Ok(Some(Timestamp::from_secs(seconds))),
        _ => Err(wrong(name, Some(value), "a time in seconds")),
    }
}

pub(super) fn wrong(name: &'static str, came: Option<&Value>, expected: &'static str) -> TokenError {
    TokenError::Claim { name: name.into(), came: Quoted::json(came), expected }
}

/// The same for a claim whose place is configured.
pub(super) fn wrong_at(place: &str, came: Option<&Value>, expected: &'static str) -> TokenError {
    TokenError::Claim { name: place.to_owned().into(), came: Quoted::json(came), expected }
}

pub(super) fn other_issuer(came: Option<&Value>, ours: &str) -> TokenError {
    TokenError::IssuerUnknown { came: Quoted::json(came), expected: vec![ours.to_owned()] }
}
