//! Logout tokens, which a provider sends when it ends a session (OpenID Connect Back-Channel Logout 1.0).

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{
    checks::{self, AccessTokenChecks},
    jwt::Unverified,
    token_error::TokenError,
};
use crate::clock::Timestamp;

/// The member of `events` that makes it a logout (section 2.4).
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

/// The maximum bytes of a `jti` or `sid`.
const MAX_ID: usize = 255;

/// A valid logout token, which may have been used before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogoutToken {
    /// `sub`: all sessions of this person, unless `session` names one.
    pub subject: Option<Arc<str>>,
    /// `sid`: the provider's own session.
    pub session: Option<Box<str>>,
    /// `jti`.
    pub id: Box<str>,
    /// `exp`, without the tolerance for clocks.
    pub expires: Timestamp,
}

impl AccessTokenChecks {
    /// Checks the header: `typ` is `logout+jwt` (section 2.4, recommended), or absent or `JWT`, as with older
    /// providers.
    pub fn check_logout_token_header(&self, token: &Unverified<'_>) -> Result<(), TokenError> {
        checks::check_algorithm(token.header.algorithm, &self.algorithms)?;
        let accepted = ["logout+jwt", "application/logout+jwt", "jwt", "application/jwt"];
        checks::check_type(&token.header, &accepted, "logout+jwt")
    }

    /// Makes all checks of section 2.6 for the claims, except whether the `jti` was seen before, which the caller
    /// checks, like the signature.
    pub fn check_logout_token(
        &self,
        claims: &Map<String, Value>,
        client_id: &str,
        now: Timestamp,
    ) -> Result<LogoutToken, TokenError> {
        let registered = self.check_registered(claims, now)?;
        checks::check_audience(&registered.audiences, &[client_id.into()], claims.get("aud"))?;
        let wrong = |name, expected| checks::wrong(name, claims.get(name), expected);
        if claims.contains_key("nonce") {
            return Err(TokenError::OtherKind("an ID token (it has a `nonce`)"));
        }
        if !claims.get("events").and_then(|events| events.get(EVENT)).is_some_and(Value::is_object) {
            return Err(wrong("events", "an object with the back-channel logout event"));
        }
        let text = |name| match claims.get(name) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() && text.len() <= MAX_ID => Ok(Some(Box::from(text.as_str()))),
            Some(_) => Err(wrong(name, "a text of 1 to 255 bytes")),
        };
        let subject = self.subject(claims)?;
        let session = text("sid")?;
        if subject.is_none() && session.is_none() {
            return Err(wrong("sub", "present if `sid` is not"));
        }
        let id = text("jti")?.ok_or_else(|| wrong("jti", "a text of 1 to 255 bytes"))?;
        Ok(LogoutToken { subject, session, id, expires: registered.expires })
    }
}
