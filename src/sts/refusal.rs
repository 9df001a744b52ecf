//! Refusals of requests for tokens (RFC 6749 section 5.2, RFC 8693 section 2.2.2): a JSON object with `error`, and with
//! an `error_description` that says what to change.

use std::{error::Error as _, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    error::{PresentedIdentity, Reason, Rejection},
    issuers::TokenError,
    store::StoreError,
};

/// Seconds after which a retry may succeed, if the cause is on Doorward's side.
const RETRY_AFTER: u16 = 2;

/// The maximum, for a provider whose circuit breaker is open. Also used after a provider's refusal, which may be
/// intended, and providers have limits of their own.
const LONGEST_RETRY_AFTER: u16 = 10;

/// A refusal. Its text is for the caller, who holds the token that it is about.
#[derive(Clone, Debug)]
pub struct Refusal {
    status: StatusCode,
    error: &'static str,
    /// Clauses in lower case without a full stop at the end, as in [`Rejection::new`], with `;` between them. For the
    /// audit trail too.
    description: String,
    /// What the log says instead.
    logged: Option<Box<str>>,
    /// For the audit trail and metrics.
    reason: Reason,
    /// For the audit trail.
    presented: Option<Box<PresentedIdentity>>,
    /// The permitted methods, if that of the request is not one of them.
    allow: Option<HeaderValue>,
    /// Sent with 503, in seconds.
    retry_after: u16,
}

impl Refusal {
    fn new(error: &'static str, reason: Reason, description: impl Into<String>) -> Self {
        let description = description.into();
        Self {
            status: StatusCode::BAD_REQUEST,
            error,
            description,
            logged: None,
            reason,
            presented: None,
            allow: None,
            retry_after: RETRY_AFTER,
        }
    }

    /// The request cannot be understood.
    pub fn malformed(description: impl Into<String>) -> Self {
        Self::new("invalid_request", Reason::BadRequest, description)
    }

    /// The token that is to be exchanged is not, or no longer, valid here.
    pub fn subject(description: impl Into<String>) -> Self {
        Self::new("invalid_request", Reason::TokenInvalid, description)
    }

    /// No rule gives a token for this audience.
    pub fn target(description: impl Into<String>) -> Self {
        Self::new("invalid_target", Reason::PolicyDenied, description)
    }

    /// No rule gives a scope.
    pub fn scope(description: impl Into<String>) -> Self {
        Self::new("invalid_scope", Reason::PolicyDenied, description)
    }

    /// The audience is malformed or unknown, so rules are not evaluated.
    pub fn bad_target(description: impl Into<String>) -> Self {
        Self::new("invalid_target", Reason::BadRequest, description)
    }

    /// The scope is malformed or unknown, so rules are not evaluated.
    pub fn bad_scope(description: impl Into<String>) -> Self {
        Self::new("invalid_scope", Reason::BadRequest, description)
    }

    /// Another grant than the exchange.
    pub fn grant_type(description: impl Into<String>) -> Self {
        Self::new("unsupported_grant_type", Reason::BadRequest, description)
    }

    /// A failure of Doorward or of the API server, which may pass.
    pub fn unavailable(reason: Reason, description: impl Into<String>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, ..Self::new("temporarily_unavailable", reason, description) }
    }

    /// A provider refused in a way that may pass.
    pub fn refused_for_now(description: impl Into<String>) -> Self {
        Self { retry_after: LONGEST_RETRY_AFTER, ..Self::unavailable(Reason::UpstreamFailed, description) }
    }

    /// Tells the caller to come again after this long, within bounds.
    pub fn again_after(self, wait: Duration) -> Self {
        let seconds = u16::try_from(wait.as_millis().div_ceil(1_000)).unwrap_or(u16::MAX);
        Self { retry_after: seconds.clamp(RETRY_AFTER, LONGEST_RETRY_AFTER), ..self }
    }

    /// A provider gave a token that is not passed on.
    pub fn gateway(description: impl Into<String>) -> Self {
        let new = Self::new("server_error", Reason::UpstreamProtocol, description);
        Self { status: StatusCode::BAD_GATEWAY, ..new }
    }

    /// A provider refused with an error of its own. Errors about its client or its grant concern Doorward and not the
    /// caller, for whom they mean that the audience cannot be had (RFC 8693 section 2.2.2).
    pub fn of_provider(error: &str, description: impl Into<String>) -> Self {
        let known = if error == "invalid_scope" { "invalid_scope" } else { "invalid_target" };
        Self::new(known, Reason::UpstreamFailed, description)
    }

    /// The same with a text that fits the case better.
    #[must_use]
    pub fn described(self, description: String) -> Self {
        Self { description, ..self }
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The identity in the token, if it was verified but cannot be used.
    pub fn presented(&self) -> Option<&PresentedIdentity> {
        self.presented.as_deref()
    }

    pub fn description(&self) -> &str {
        &self.description
    }

    /// For the log alone: may name people.
    pub fn logged(&self) -> &str {
        self.logged.as_deref().unwrap_or(&self.description)
    }

    /// The value of `Retry-After`, if retrying may help.
    pub fn retry_after(&self) -> Option<HeaderValue> {
        (self.status == StatusCode::SERVICE_UNAVAILABLE).then(|| self.retry_after.into())
    }

    pub fn answer(&self) -> Response<Bytes> {
        let body = json!({"error": self.error, "error_description": printable(&self.description)});
        let mut response = answer(self.status, &body);
        if let Some(seconds) = self.retry_after() {
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        if let Some(allow) = &self.allow {
            response.headers_mut().insert(header::ALLOW, allow.clone());
        }
        response
    }
}

impl Refusal {
    /// The refusal of a token. Its holder may learn precisely what is wrong with it, but nothing about people.
    /// `parameter` is where the token was sent.
    pub fn of_token(parameter: &'static str, rejection: &Rejection) -> Self {
        let reason = rejection.reason();
        let error = rejection.source().and_then(|source| source.downcast_ref::<TokenError>());
        if rejection.status().is_server_error() {
            return Self::unavailable(reason, with_fix(rejection.detail(), rejection));
        }
        let description = match error {
            Some(error) => with_fix(&error.without_people(), rejection),
            None => with_fix(rejection.detail(), rejection),
        };
        let logged = error.map(|error| format!("{parameter}: {error}").into());
        let presented = rejection.presented().cloned().map(Box::new);
        Self { reason, presented, logged, ..Self::subject(format!("{parameter}: {description}")) }
    }
}

/// A rejection before any token was checked, in the form for OAuth clients.
impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        let status = rejection.status();
        let error = if status.is_server_error() { "temporarily_unavailable" } else { "invalid_request" };
        let allow = rejection.allow().and_then(|allow| HeaderValue::from_str(allow).ok());
        Self { status, allow, ..Self::new(error, rejection.reason(), with_fix(rejection.detail(), &rejection)) }
    }
}

fn with_fix(detail: &str, rejection: &Rejection) -> String {
    match rejection.fix_text() {
        Some(fix) => format!("{detail}; {fix}"),
        None => detail.to_owned(),
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        tracing::warn!(%error, "no token can be given");
        Self::unavailable(
            Reason::StoreUnavailable,
            "the token cannot be recorded in the store at the moment; try again",
        )
    }
}

/// A response of the token endpoint, which must not be cached (RFC 6749 section 5.1).
pub fn answer(status: StatusCode, body: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The characters that a description may have (RFC 6749 section 5.2), all of which may be within quotes in a header.
pub(crate) fn printable(text: &str) -> String {
    let plain = |character| match character {
        '"' => '\'',
        '\\' => '/',
        ' '..='~' => character,
        _ => '?',
    };
    text.replace('…', "...").chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuers::Quoted;

    #[test]
    fn the_refusal_of_a_token_names_the_expected_and_the_actual_value() {
        let error = TokenError::Audience {
            came: Quoted::text("https://kubernetes.default.svc"),
            expected: vec!["https://door.example".to_owned()],
        };
        let refusal = Refusal::of_token("subject_token", &error.into());
        assert_eq!((refusal.status, refusal.error), (StatusCode::BAD_REQUEST, "invalid_request"));
        for said in ["`https://kubernetes.default.svc`", "`https://door.example` is expected"] {
            assert!(refusal.description.contains(said), "{}", refusal.description);
        }
        let away = TokenError::Unavailable { issuer: "cluster".into(), why: "its password is x".to_owned() };
        let refusal = Refusal::of_token("subject_token", &away.into());
        assert_eq!((refusal.status, refusal.error), (StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable"));
        assert!(!refusal.description.contains("password"));
        assert!(refusal.answer().headers().contains_key(header::RETRY_AFTER));
    }

    /// Holders of a token could read who is accepted, and the trail had them and the token's owner, though it has
    /// pseudonyms for people.
    #[test]
    fn token_subjects_and_permitted_issuers_are_named_in_the_log_alone() {
        let came = Quoted::text("mallory");
        let required = TokenError::RequiredClaim {
            name: "sub".into(),
            came: came.clone(),
            expected: vec!["alice".to_owned(), "bob".to_owned()],
        };
        let claim = TokenError::Claim { name: "act".into(), came, expected: "an object with a `sub`" };
        for (error, said) in [
            (required, "the claim `sub` has no accepted value"),
            (claim, "the claim `act` must be an object with a `sub`;"),
        ] {
            let refusal = Refusal::of_token("subject_token", &error.clone().into());
            assert!(refusal.description().starts_with(&format!("subject_token: {said}")), "{refusal:?}");
            let body = String::from_utf8(refusal.answer().into_body().to_vec()).unwrap();
            for text in [refusal.description(), &body] {
                assert!(["mallory", "alice", "bob"].iter().all(|name| !text.contains(name)), "{text}");
            }
            assert_eq!(refusal.logged(), format!("subject_token: {error}"));
        }
    }

    #[test]
    fn request_errors_are_reported_as_oauth_errors_with_their_status() {
        let broken = Rejection::new(Reason::BadRequest, "the body broke off before its end").fix("send the whole body");
        let full =
            Rejection::new(Reason::Overloaded, "too many bodies are being read at once").fix("try again in a moment");
        let slow = Rejection::new(Reason::BodyTimeout, "the body came too slowly");
        for (rejection, status, error, said, later) in [
            (broken, 400, "invalid_request", "the body broke off before its end; send the whole body", false),
            (Rejection::body_too_large(9), 413, "invalid_request", "larger than 9 bytes", false),
            (slow, 408, "invalid_request", "the body came too slowly", false),
            (full, 503, "temporarily_unavailable", "at once; try again in a moment", true),
        ] {
            let reason = rejection.reason();
            let refusal = Refusal::from(rejection);
            let answer = refusal.answer();
            let body: Value = serde_json::from_slice(answer.body()).unwrap();
            assert_eq!((answer.status().as_u16(), &body["error"], refusal.reason()), (status, &json!(error), reason));
            assert!(body["error_description"].as_str().unwrap().contains(said), "{body}");
            assert_eq!(answer.headers().contains_key(header::RETRY_AFTER), later, "{said}");
            assert!(!answer.headers().contains_key(header::ALLOW), "{said}");
        }
        let answer = Refusal::from(Rejection::method_not_allowed("POST", "this address takes POST only")).answer();
        assert_eq!((answer.status().as_u16(), answer.headers()[header::ALLOW].to_str().ok()), (405, Some("POST")));
    }

    #[test]
    fn the_audience_of_a_pod_token_is_reported_verbatim() {
        let came = Quoted::json(Some(&json!(["https://kubernetes.default.svc"])));
        let error = TokenError::Audience { came, expected: vec!["https://door.example".to_owned()] };
        let answer = Refusal::of_token("subject_token", &error.into()).answer();
        let body: Value = serde_json::from_slice(answer.body()).unwrap();
        let said = body["error_description"].as_str().unwrap();
        assert!(said.contains("(`aud`) is `https://kubernetes.default.svc`;"), "{said}");
    }

    /// Each step retried every two seconds for all of a pause of minutes, with the same result.
    #[test]
    fn a_request_during_a_providers_pause_may_retry_after_it_or_in_ten_seconds() {
        for (left, told) in [(1, "2"), (2_000, "2"), (2_001, "3"), (9_500, "10"), (300_000, "10")] {
            let refusal = Refusal::unavailable(Reason::UpstreamUnreachable, "left alone");
            let answer = refusal.again_after(Duration::from_millis(left)).answer();
            assert_eq!(answer.headers()[header::RETRY_AFTER], told, "{left} ms");
        }
    }

    #[test]
    fn a_description_has_the_characters_of_the_standard() {
        assert_eq!(printable("a \"b\" \\ \u{7f}é\n`c`"), "a 'b' / ???`c`");
    }

    /// What was to be filled in, and the end of a quotation that was cut, was `?`.
    #[test]
    fn an_ellipsis_is_written_as_three_dots() {
        let refusal = Refusal::subject("write `clients: [{id: …, subject: …}]`");
        let body: Value = serde_json::from_slice(refusal.answer().body()).unwrap();
        assert_eq!(body["error_description"], "write `clients: [{id: ..., subject: ...}]`");
    }
}
