//! Back-channel logout: the provider reports that it ended a session (OpenID Connect Back-Channel Logout 1.0 sections
//! 2.5 to 2.8). The request has no cookie, so only its token decides what it may do.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use serde_json::json;
use url::form_urlencoded;

use super::{Login, LoginRequest, bounded};
use crate::{
    downstream::finished,
    issuers::{LogoutToken, Unverified},
    request::headers::is_form,
    store::{Expect, StoreError, Table},
};

/// The path to which providers send logout tokens.
pub const PATH: &str = "/oauth2/backchannel_logout";

/// The maximum bytes of a body.
pub const MAX_BODY: usize = 32 << 10;

/// Why nothing was ended.
enum Refusal {
    /// The request or its token is invalid.
    Invalid(String),
    /// A failure here, or of the provider's keys; the request may be repeated.
    Unavailable(String),
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
            Err(Refusal::Invalid(why)) => {
                tracing::warn!(request_id = request.request_id, %why, "a back-channel logout was refused");
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
        let invalid = |why: &str| Refusal::Invalid(why.to_owned());
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
        let read = Unverified::parse(&token).map_err(|error| Refusal::Invalid(bounded(&error.to_string())))?;
        let provider =
            self.0.providers.iter().find(|provider| read.issuer().is_some_and(|issuer| provider.is_named(issuer)));
        let provider = provider.ok_or_else(|| invalid("it is of no provider that people sign in with here"))?;
        let LogoutToken { subject, session, id, expires } =
            provider.verify_logout_token(&token).await.map_err(|rejection| {
                let why = bounded(rejection.detail());
                if rejection.status().is_server_error() { Refusal::Unavailable(why) } else { Refusal::Invalid(why) }
            })?;
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
