//! Introspection answers that the issuer signed (RFC 9701).

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value};

use super::{
    checks::{audiences, check_algorithm, check_audience, numeric_date, other_issuer, wrong},
    jwt::Unverified,
    key_cache::KeyCache,
    token_error::{Quoted, TokenError},
};
use crate::{
    clock::{Clock, Timestamp},
    config::raw::Algorithm,
};

pub(super) const MEDIA_TYPE: &str = "application/token-introspection+jwt";
/// The `typ` of the JWT; with `application/` it means the same (RFC 7515 section 4.1.9).
const TYPE: &str = "token-introspection+jwt";

/// The maximum age of a signed answer, besides the allowed clock difference: an old answer says nothing about the
/// present.
const FRESH: Duration = Duration::from_secs(60);

/// The verification of signed answers.
#[derive(Debug)]
pub(super) struct SignedAnswers {
    pub keys: Arc<KeyCache>,
    /// The issuer identifier.
    pub issuer: Arc<str>,
    /// The accepted audiences: our client id, and the audiences that mean Doorward.
    pub audiences: Box<[Box<str>]>,
    pub algorithms: Box<[Algorithm]>,
    /// The allowed difference between clocks.
    pub skew: Duration,
    pub clock: Clock,
}

impl SignedAnswers {
    /// Verifies an answer and returns its claims about the token. Waits at most for one fetch of keys.
    pub(super) async fn open(&self, answer: &str) -> Result<Map<String, Value>, TokenError> {
        let mut answer = Unverified::parse(answer)?;
        let typ = answer.header.typ.as_deref().unwrap_or_default();
        if ![TYPE, MEDIA_TYPE].iter().any(|known| typ.eq_ignore_ascii_case(known)) {
            return Err(TokenError::Type { came: Quoted::text(typ), expected: vec![TYPE.to_owned()] });
        }
        check_algorithm(answer.header.algorithm, &self.algorithms)?;
        let now = self.clock.now();
        let check = || self.check(&answer.claims, now);
        self.keys.check_signature(&answer, check).await?;
        check()?;
        match answer.claims.remove("token_introspection") {
            Some(Value::Object(told)) => Ok(told),
            other => Err(wrong("token_introspection", other.as_ref(), "an object")),
        }
    }

    fn check(&self, claims: &Map<String, Value>, now: Timestamp) -> Result<(), TokenError> {
        if claims.get("iss").and_then(Value::as_str) != Some(&*self.issuer) {
            return Err(other_issuer(claims.get("iss"), &self.issuer));
        }
        check_audience(&audiences(claims)?.unwrap_or_default(), &self.audiences, claims.get("aud"))?;
        let issued = numeric_date(claims, "iat")?;
        let fresh = |issued: &Timestamp| *issued <= now + self.skew && now.since(*issued) <= FRESH + self.skew;
        if issued.as_ref().is_some_and(fresh) {
            return Ok(());
        }
        Err(wrong("iat", claims.get("iat"), "a time at most a minute ago, besides `clock_skew`"))
    }
}
