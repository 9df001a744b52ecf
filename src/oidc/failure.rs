//! Failed logins: the page for the person, the log line and the metric label.

use std::{borrow::Cow, error::Error};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::{Outcome, SIGN_OUT, START, parameters::encode, program};
use crate::{
    error::{Reason, Rejection},
    issuers::TokenError,
    pages::{self, Brand, LoginErrorView},
};

/// A failed login: the text for the person, the refusal for log and trail, and the outcome to count.
#[derive(Debug)]
pub(super) struct Failure {
    pub outcome: Outcome,
    status: StatusCode,
    title: &'static str,
    pub text: Cow<'static, str>,
    /// What the provider said, which comes through the browser and is not verified, or which check failed.
    detail: Option<Box<str>>,
    /// The refusal behind it, for the log and the trail. The person may see less.
    pub refusal: Option<Rejection>,
    /// The address that a new login returns to or, in the login of a program, the page where it begins.
    pub return_to: String,
    /// Whether the next login must have the person authenticate, or choose an account: the provider would otherwise
    /// return the same result.
    pub anew: bool,
    /// The address of the next attempt, if it is not that of an ordinary login.
    pub retry: Option<Box<str>>,
    /// Whether another attempt by the same person would be useless.
    is_final: bool,
    /// Whether the browser is signed in anyway and can go on at once.
    pub signed_in: bool,
    /// A `Set-Cookie` line that deletes a cookie.
    pub cookie: Option<Box<HeaderValue>>,
}

impl Failure {
    pub fn new(outcome: Outcome, text: impl Into<Cow<'static, str>>) -> Self {
        let (status, title) = match outcome {
            Outcome::malformed => (StatusCode::BAD_REQUEST, "This is not a valid answer to a sign-in"),
            Outcome::state_unknown => (StatusCode::BAD_REQUEST, "This sign-in did not begin here"),
            Outcome::expired => (StatusCode::BAD_REQUEST, "The sign-in took too long"),
            Outcome::replayed => (StatusCode::BAD_REQUEST, "This sign-in was already completed"),
            Outcome::other_browser => (StatusCode::FORBIDDEN, "This sign-in began somewhere else"),
            Outcome::issuer_mismatch => (StatusCode::BAD_REQUEST, "Another provider answered"),
            Outcome::provider_error => (StatusCode::FORBIDDEN, "The provider did not sign you in"),
            Outcome::provider_unavailable => (StatusCode::SERVICE_UNAVAILABLE, "The provider cannot be reached"),
            Outcome::exchange_failed | Outcome::id_token_refused => {
                (StatusCode::BAD_GATEWAY, "The answer of the provider is not valid")
            }
            Outcome::identity_refused => (StatusCode::FORBIDDEN, "You cannot sign in with this account"),
            Outcome::store_unavailable | Outcome::audit_unavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, "Signing in is not possible right now")
            }
            Outcome::looping => (StatusCode::LOOP_DETECTED, "Signing in does not last"),
            Outcome::success | Outcome::internal => (StatusCode::INTERNAL_SERVER_ERROR, "Something went wrong here"),
        };
        Self {
            outcome,
            status,
            title,
            text: text.into(),
            detail: None,
            refusal: None,
            return_to: "/".to_owned(),
            anew: outcome == Outcome::identity_refused,
            retry: None,
            is_final: false,
            signed_in: false,
            cookie: None,
        }
    }

    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into().into_boxed_str());
        self
    }

    /// The failure for an ID token, or claims, that cannot be accepted. The texts for bearer tokens would not help
    /// here.
    pub fn of_id_token(rejection: Rejection) -> Self {
        let mut failure = Self::new(
            Outcome::id_token_refused,
            "The ID token of the provider cannot be accepted. Sign in again. If this keeps happening, tell whoever runs \
             Doorward.",
        );
        failure.detail = token_error(&rejection)
            .and_then(TokenError::of_own_token)
            .map(|why| format!("ID token: {why}").into_boxed_str());
        failure.refusal = Some(rejection);
        failure
    }

    /// Replaces status and title, for requests that are not part of a login.
    #[must_use]
    pub fn titled(mut self, status: StatusCode, title: &'static str) -> Self {
        (self.status, self.title) = (status, title);
        self
    }

    /// Says of a sign-out that the store prevented whether it `may_be_done`, as the answer of the store could be lost:
    /// at a shared machine, others could go on as this person.
    #[must_use]
    pub fn of_sign_out(self, may_be_done: bool) -> Self {
        if self.outcome != Outcome::store_unavailable {
            return self;
        }
        let title = if may_be_done { "You may still be signed in" } else { "You are still signed in" };
        let text = "Signing out is not possible right now, as Doorward cannot use its store. Try again in a moment, before \
                    you leave this browser to anybody else.";
        Self { title, text: text.into(), retry: Some(SIGN_OUT.into()), ..self }
    }

    /// Sets the address that a new login returns to.
    #[must_use]
    pub fn back_to(mut self, address: &str) -> Self {
        address.clone_into(&mut self.return_to);
        self
    }

    /// Marks the failure as final: no new attempt is offered.
    #[must_use]
    pub fn final_here(mut self) -> Self {
        self.is_final = true;
        self
    }

    /// Logs why `what` failed: the page, of which operators may have only a picture, does not say all of it.
    pub fn log(&self, what: &'static str, issuer: Option<&str>, request_id: &str) {
        let (outcome, detail) = (self.outcome, self.detail.as_deref());
        let refusal = self.refusal.as_ref().map(ToString::to_string);
        let cause = self.refusal.as_ref().and_then(Rejection::causes);
        if self.is_for_operators() {
            tracing::warn!(request_id, issuer, ?outcome, detail, refusal, cause, "{what} failed");
        } else {
            tracing::info!(request_id, issuer, ?outcome, detail, refusal, cause, "{what} failed");
        }
    }

    /// Whether the person cannot mend it.
    fn is_for_operators(&self) -> bool {
        match self.outcome {
            // Of its errors, only `access_denied` is for the person: another account may be accepted.
            Outcome::provider_error => !self.anew,
            Outcome::issuer_mismatch => true,
            _ => self.refusal.as_ref().is_some_and(|refusal| refusal.status().is_server_error()),
        }
    }

    pub fn page(self, request_id: &str, brand: &Brand) -> Response<Bytes> {
        // The login of a program begins at its own page, and does not sign in this browser.
        let is_of_program = program::is_page(&self.return_to);
        let start = || format!("{START}?rd={}", encode(&self.return_to));
        let retry = if is_of_program { self.return_to.clone() } else { self.retry.map_or_else(start, Into::into) };
        let label = match (is_of_program, self.is_final) {
            (false, _) if retry == SIGN_OUT => "Sign out again",
            (false, _) => "Sign in again",
            (true, false) => "Try again",
            // The page of the program offers the choice, and a way to decline.
            (true, true) => "Use another account",
        };
        let mut response = pages::html(
            self.status,
            &pages::login_error(&LoginErrorView {
                title: self.title,
                text: &self.text,
                detail: self.detail.as_deref(),
                retry: (is_of_program || !self.is_final).then_some((&*retry, label)),
                cancel: program::cancel(&self.return_to).as_deref(),
                go_on: (self.signed_in && !is_of_program).then_some(&*self.return_to),
                request_id,
            }),
            brand,
        );
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        if let Some(cookie) = self.cookie {
            response.headers_mut().append(header::SET_COOKIE, *cookie);
        }
        response
    }
}

impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Self {
        if token_error(&rejection).is_some() && !rejection.status().is_server_error() {
            return Self::of_id_token(rejection);
        }
        let outcome = match rejection.reason() {
            Reason::StoreUnavailable => Outcome::store_unavailable,
            Reason::AuditUnavailable => Outcome::audit_unavailable,
            Reason::IssuerUnavailable => Outcome::provider_unavailable,
            Reason::IdentityRefused | Reason::TokenRevoked => Outcome::identity_refused,
            Reason::Internal => Outcome::internal,
            _ => Outcome::id_token_refused,
        };
        let failure = Self::new(outcome, sentence(&format!("{}.", rejection.in_words())));
        // Another login with this account would end in the same way.
        let is_final = rejection.reason() == Reason::TokenRevoked;
        Self { is_final, refusal: Some(rejection), ..failure }
    }
}

pub(super) fn token_error(rejection: &Rejection) -> Option<&TokenError> {
    rejection.source().and_then(|cause| cause.downcast_ref())
}

/// Capitalizes the first letter.
fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{issuers::Quoted, logging::logged};

    /// Regression: the log had only the outcome, and operators needed a picture of the person's page.
    #[test]
    fn the_log_says_what_the_provider_said_and_warns_of_what_the_person_cannot_mend() {
        for (detail, anew, level) in
            [("invalid_scope: scope foo is unknown", false, "WARN"), ("access_denied", true, "INFO")]
        {
            let failure = Failure { anew, ..Failure::new(Outcome::provider_error, "").detail(detail) };
            let ((), log) = logged(|| failure.log("a login", Some("corp"), "r-1"));
            for part in [level, "a login failed", "r-1", "corp", "provider_error", detail] {
                assert!(log.contains(part), "{part} in {log}");
            }
        }
        let refused = Failure::from(Rejection::new(Reason::IdentityRefused, "the token has no usable name"));
        let ((), log) = logged(|| refused.log("a login", None, "r-1"));
        assert!(log.contains("INFO") && log.contains("identity_refused: the token has no usable name"), "{log}");
        let away = Rejection::new(Reason::StoreUnavailable, "it is away").because("the disk is full");
        let ((), log) = logged(|| Failure::from(away).log("a login", None, "r-1"));
        assert!(log.contains("WARN") && log.contains("the disk is full"), "{log}");
    }

    /// Regression: a login that could not be recorded counted as a failure of the store.
    #[test]
    fn a_login_that_cannot_be_recorded_counts_as_one() {
        for (reason, outcome) in [
            (Reason::AuditUnavailable, Outcome::audit_unavailable),
            (Reason::StoreUnavailable, Outcome::store_unavailable),
        ] {
            let failure = Failure::from(Rejection::new(reason, "it is away"));
            assert_eq!((failure.outcome, failure.status), (outcome, StatusCode::SERVICE_UNAVAILABLE));
        }
    }

    /// Regression: the page said that signing in is not possible, so people left who were still signed in.
    #[test]
    fn a_sign_out_without_the_store_says_who_is_still_signed_in() {
        let away = || Failure::from(Rejection::new(Reason::StoreUnavailable, "sessions cannot be looked up"));
        for (may_be_done, title) in [(false, "You are still signed in"), (true, "You may still be signed in")] {
            let page = away().of_sign_out(may_be_done).page("r-1", &Brand::default());
            assert_eq!(page.status(), StatusCode::SERVICE_UNAVAILABLE);
            let page = std::str::from_utf8(page.body()).unwrap();
            for part in [title, "Signing out is not possible right now", "href=\"/oauth2/sign_out\"", "Sign out again"]
            {
                assert!(page.contains(part), "{part} in {page}");
            }
            assert!(!page.contains("Sign in again"), "{page}");
        }
        let other = Failure::from(Rejection::new(Reason::Internal, "a bug")).of_sign_out(false);
        assert_eq!(other.title, "Something went wrong here");
    }

    /// Regression: the page advised requesting an access token, and the log did not say what was wrong with the ID
    /// token.
    #[test]
    fn a_refused_id_token_is_reported_as_an_id_token() {
        let came = Quoted::text(&"x".repeat(300));
        let error = TokenError::Claim { name: "sub".into(), came, expected: "a text of at most 255 bytes" };
        let failure = Failure::from(Rejection::from(error));
        assert_eq!(failure.outcome, Outcome::id_token_refused);
        assert!(
            failure
                .refusal
                .as_ref()
                .and_then(Error::source)
                .is_some_and(|cause| cause.to_string().contains("the claim `sub` is"))
        );
        let page = failure.page("r-1", &Brand::default());
        let page = std::str::from_utf8(page.body()).unwrap();
        for part in ["The ID token of the provider cannot be accepted", "at most 255 bytes"] {
            assert!(page.contains(part), "{part} in {page}");
        }
        assert!(!page.contains("access token"), "{page}");
        // What the configuration asks of people is for its operators.
        let (name, expected) = ("team".into(), vec!["red".to_owned()]);
        let kept_out = TokenError::RequiredClaim { name, came: Quoted::json(None), expected };
        let failure = Failure::from(Rejection::from(kept_out));
        assert!(failure.detail.is_none() && failure.refusal.is_some());
    }
}
