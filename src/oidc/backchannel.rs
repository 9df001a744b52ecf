//! Back-channel logout: the provider reports that it ended a session (OpenID Connect Back-Channel Logout 1.0 sections
//! 2.5 to 2.8). The request has no cookie, so only its token decides what it may do.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use serde_json::json;
use url::form_urlencoded;

use super::{Login, LoginRequest, bounded, failure::token_error};
use crate::{
    downstream::finished,
    error::Rejection,
    issuers::{LogoutToken, TokenError, Unverified},
    request::headers::is_form,
    store::{Expect, StoreError, Table},
};

/// The path to which providers send logout tokens.
pub const PATH: &str = "/oauth2/backchannel_logout";

/// The maximum bytes of a body.
pub const MAX_BODY: usize = 32 << 10;

/// Why nothing was ended.
enum Refusal {
    /// The request or its token is invalid. The provider reads `why`; `cause` is for the log only.
    Invalid { why: String, cause: Option<String> },
    /// A failure here, or of the provider's keys; the request may be repeated.
    Unavailable(String),
}

impl Refusal {
    /// The refusal of a logout token. The sender is not authenticated: it learns which part of the token is wrong, and
    /// neither the content nor what the configuration expects.
    fn of_token(rejection: &Rejection) -> Self {
        if rejection.status().is_server_error() {
            return Self::Unavailable(bounded(&rejection.in_full()));
        }
        let why = match token_error(rejection) {
            Some(error @ TokenError::Claim { .. }) => error.without_people(),
            Some(TokenError::OtherKind(kind)) => format!("it is {kind}"),
            Some(TokenError::Algorithm { .. }) => "its algorithm is not accepted".to_owned(),
            Some(TokenError::Type { .. }) => "its `typ` is not that of a logout token".to_owned(),
            // The texts for access tokens are right for these too.
            _ => rejection.detail().to_owned(),
        };
        Self::Invalid { why: bounded(&format!("logout token: {why}")), cause: rejection.causes() }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl Login {
    pub(super) async fn backchannel_logout(&self, request: LoginRequest<'_>) -> Response<Bytes> {
        let (status, body) = match self.end_at_word_of_provider(request).await {
            Ok(ended) => {
                tracing::info!(request_id = request.request_id, ended, "a provider ended sessions");
                (StatusCode::OK, Bytes::new())
            }
            Err(Refusal::Invalid { why, cause }) => {
                tracing::warn!(request_id = request.request_id, %why, cause, "a back-channel logout was refused");
                let body = json!({"error": "invalid_request", "error_description": why});
                (StatusCode::BAD_REQUEST, body.to_string().into())
            }
            Err(Refusal::Unavailable(why)) => {
                tracing::error!(request_id = request.request_id, %why, "a back-channel logout could not be done");
                let body =
                    json!({"error": "temporarily_unavailable", "error_description": "send it again in a moment"});
                (StatusCode::SERVICE_UNAVAILABLE, body.to_string().into())
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status != StatusCode::OK {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }

    async fn end_at_word_of_provider(&self, request: LoginRequest<'_>) -> Result<usize, Refusal> {
        let invalid = |why: &str| Refusal::Invalid { why: why.to_owned(), cause: None };
        if *request.method != Method::POST {
            return Err(invalid("a logout token must be sent in a POST"));
        }
        if !is_form(request.headers) {
            return Err(invalid("the body is not `application/x-www-form-urlencoded`"));
        }
        let mut tokens = form_urlencoded::parse(request.body).filter(|(name, _)| name == "logout_token");
        let (Some((_, token)), None) = (tokens.next(), tokens.next()) else {
            return Err(invalid("there is not exactly one `logout_token`"));
        };
        // The unverified issuer only selects the provider that checks the token.
        let read = Unverified::parse(&token).map_err(|error| invalid(&bounded(&error.to_string())))?;
        let provider =
            self.0.providers.iter().find(|provider| read.issuer().is_some_and(|issuer| provider.is_named(issuer)));
        let provider = provider.ok_or_else(|| invalid("it is of no provider that people sign in with here"))?;
        let LogoutToken { subject, session, id, expires } =
            provider.verify_logout_token(&token).await.map_err(|rejection| Refusal::of_token(&rejection))?;
        let sessions = &self.0.sessions;
        let (store, now) = (&sessions.shared().store, sessions.now());
        let seen = aws_lc_rs::digest::digest(
            &aws_lc_rs::digest::SHA256,
            format!("logout token\0{}\0{id}", provider.issuer()).as_bytes(),
        );
        if store.get(Table::Logins, seen.as_ref(), now).await?.is_some() {
            return Err(invalid("it was used before (`jti`)"));
        }
        let (provider, of) = (Arc::clone(provider), sessions.clone());
        // A provider that disconnects must not leave a token reusable that has ended sessions.
        let ended = sessions.shared().finish(async move {
            let ended = of.end_by_provider(provider.issuer(), subject.as_deref(), session.as_deref()).await?;
            // Marked as used only now: until all sessions have ended, the provider may send it again.
            let until = expires + super::id_token::SKEW;
            of.shared().store.put(Table::Logins, seen.as_ref(), Vec::new(), until, Expect::Any, now).await?;
            Ok::<_, Refusal>(ended)
        });
        finished(ended).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuers::Quoted;

    /// Regression: answer and log said "the token is not an access token that is accepted here", whatever was wrong.
    #[test]
    fn a_refused_logout_token_is_told_with_its_cause() {
        let (came, expected) = (Quoted::text("mallory"), vec!["our-client".to_owned()]);
        for (error, told, logged) in [
            (
                TokenError::Claim { name: "exp".into(), came: Quoted::json(None), expected: "a time" },
                "logout token: the claim `exp` must be a time",
                "the claim `exp` is nothing; it must be a time",
            ),
            (
                TokenError::OtherKind("an ID token (it has a `nonce`)"),
                "logout token: it is an ID token (it has a `nonce`)",
                "it has a `nonce`",
            ),
            (
                TokenError::Audience { came, expected },
                "logout token: the token is meant for another audience",
                "is `mallory`; `our-client` is expected",
            ),
        ] {
            let Refusal::Invalid { why, cause } = Refusal::of_token(&Rejection::from(error)) else {
                panic!("{told}: not the fault of the token");
            };
            assert_eq!(why, told);
            assert!(cause.is_some_and(|cause| cause.contains(logged)), "{told}");
        }
    }
}
