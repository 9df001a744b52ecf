//! The endpoints for programs: they exchange a code, poll for the person's decision, or end their session. Browsers
//! never call them.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use super::{
    super::{Login, LoginRequest, parameters::Parameters},
    DEVICE_GRANT, Grant,
};
use crate::{
    authn::EndpointAudit,
    error::{Reason, Rejection},
    request::headers::is_form,
    sessions::{Collected, Ended, Origin, Session},
    store::StoreError,
};

/// When to retry after a failure of ours.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The request context of a program that presents a code.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bearer<'a> {
    pub origin: &'a Origin,
    pub address: IpAddr,
    pub audit: &'a EndpointAudit,
}

/// Why a program gets no session, with the error codes of RFC 6749 section 5.2.
pub(super) struct Refusal {
    pub status: StatusCode,
    pub error: &'static str,
    pub description: String,
    pub retry_after: Option<Duration>,
}

impl Refusal {
    fn new(error: &'static str, description: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error, description: description.into(), retry_after: None }
    }

    pub fn request(description: impl Into<String>) -> Self {
        Self::new("invalid_request", description)
    }

    pub fn grant(description: impl Into<String>) -> Self {
        Self::new("invalid_grant", description)
    }

    /// The person or the policy decided against it.
    pub fn denied(description: impl Into<String>) -> Self {
        Self::new("access_denied", description)
    }

    /// The errors of a poll (RFC 8628 section 3.5).
    pub fn wait(error: &'static str, description: &'static str) -> Self {
        Self::new(error, description)
    }

    /// Whether the program only polled too early.
    fn is_wait(&self) -> bool {
        matches!(self.error, "authorization_pending" | "slow_down")
    }

    pub fn answer(self) -> Response<Bytes> {
        let body = json!({"error": self.error, "error_description": self.description});
        let mut response = json_answer(self.status, &body);
        if let Some(span) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds(span).into());
        }
        response
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        let description = rejection.in_words();
        let status = rejection.status();
        match status.as_u16() {
            503 => Self {
                status,
                retry_after: Some(rejection.retry_after().unwrap_or(RETRY_AFTER)),
                ..Self::new("temporarily_unavailable", description)
            },
            500..600 => Self { status, ..Self::new("server_error", description) },
            // Not the usual status: 401 would mean that the client must authenticate (RFC 6749 section 5.2).
            _ => Self::denied(description),
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store failed while a program signed in");
        Rejection::new(Reason::StoreUnavailable, "Doorward cannot reach its store; try again in a moment")
            .with_retry_after(RETRY_AFTER)
            .into()
    }
}

impl Login {
    /// Answers a program that exchanges its code (RFC 6749 section 4.1.3), or polls for the person's decision (RFC 8628
    /// section 3.4).
    pub(in super::super) async fn exchange_code(&self, request: LoginRequest<'_>) -> Response<Bytes> {
        let form = match from_program(request).and_then(|()| Form::parse(request.body)) {
            Ok(form) => form,
            Err(refusal) => return refusal.answer(),
        };
        let (login, origin, address) = (self.clone(), request.origin.clone(), request.address);
        let audit = request.audit.clone();
        // A program that disconnects must not leave a used code and a session that nobody has.
        let task = self.0.sessions.shared().finish(async move {
            let bearer = Bearer { origin: &origin, address, audit: &audit };
            match form.code {
                PresentedCode::Code(code) => login.redeem_code(&code, &form.verifier, bearer).await,
                PresentedCode::DeviceCode(code) => login.redeem_device(&code, &form.verifier, bearer).await,
            }
        });
        match task.await {
            Ok(Ok((handle, session))) => {
                request.audit.set_principal(&session.principal);
                let now = self.0.sessions.now();
                let body = json!({
                    "access_token": handle,
                    "token_type": "Bearer",
                    "expires_in": session.end.since(now).as_secs(),
                    "expires": session.end.to_string(),
                    "username": &*session.principal.username,
                });
                json_answer(StatusCode::OK, &body)
            }
            Ok(Err(refusal)) => {
                if !refusal.is_wait() {
                    let why = &refusal.description;
                    tracing::info!(request_id = request.request_id, %why, "a program got no session");
                }
                refusal.answer()
            }
            Err(error) => {
                tracing::error!(%error, "the login of a program ended early");
                Refusal::from(Rejection::new(Reason::Internal, "something went wrong here")).answer()
            }
        }
    }

    /// Collects the session that waits for its program. Only the first program gets it, and a second one ends it, as
    /// one of the two stole the code (RFC 6749 section 4.1.2). After an error it still waits.
    pub(super) async fn collect(&self, grant: &Grant, bearer: Bearer<'_>) -> Result<Arc<Session>, Refusal> {
        self.reserve(bearer.audit).await?;
        match self.0.sessions.collect(&grant.handle, bearer.origin, bearer.address).await? {
            Collected::Now(session) => {
                let (issuer, subject) = (session.issuer(), &session.principal.subject);
                tracing::info!(%issuer, %subject, session = grant.session, "a program signed in");
                Ok(session)
            }
            Collected::Before => Err(self.code_reused(&grant.session).await),
            Collected::Ended => Err(Refusal::denied(
                "the session was ended before this program collected it; run `doorward login` again if you want one",
            )),
        }
    }

    /// Ends the session of a code that was used twice, and returns the refusal.
    pub(super) async fn code_reused(&self, session: &str) -> Refusal {
        match self.0.sessions.end_named(session, Ended::revoked).await {
            Ok(ended) => {
                if ended {
                    tracing::warn!(session, "a login code was used twice; ended the session it had created");
                }
                Refusal::grant("the code was used before, so its session has ended; run `doorward login` again")
            }
            Err(error) => error.into(),
        }
    }

    /// Ends the session whose handle comes with the request.
    pub(in super::super) async fn end_for_program(&self, request: LoginRequest<'_>) -> Response<Bytes> {
        let ended = async {
            from_program(request)?;
            let session = self.0.sessions.of_program(request.headers, request.origin, request.address).await;
            let session = session.and_then(|session| {
                session.ok_or_else(|| {
                    Rejection::new(Reason::CredentialMissing, "the handle of the session to end is missing")
                })
            });
            // Here the program does authenticate (RFC 6750 section 3.1).
            let session = session.map_err(|rejection| match rejection.status() {
                status @ StatusCode::UNAUTHORIZED => {
                    Refusal { status, error: "invalid_token", ..Refusal::from(rejection) }
                }
                _ => rejection.into(),
            })?;
            request.audit.set_principal(&session.principal);
            self.0.sessions.end(&session, Ended::signed_out).await?;
            Ok::<_, Refusal>(())
        };
        match ended.await {
            Ok(()) => json_answer(StatusCode::OK, &json!({"ended": true})),
            Err(refusal) => refusal.answer(),
        }
    }
}

/// Refuses requests of pages, even of our own: only programs may call these endpoints, and a page could have its
/// browser send such a form without a preflight.
pub(super) fn from_program(request: LoginRequest<'_>) -> Result<(), Refusal> {
    if request.headers.contains_key(header::ORIGIN) || request.headers.contains_key("sec-fetch-site") {
        let status = StatusCode::FORBIDDEN;
        return Err(Refusal {
            status,
            ..Refusal::request("this endpoint is for programs, and a page in a browser sent the request")
        });
    }
    if !is_form(request.headers) {
        return Err(Refusal::request("the body is not `application/x-www-form-urlencoded`"));
    }
    Ok(())
}

/// The form of a program that presents a code.
struct Form {
    code: PresentedCode,
    verifier: String,
}

enum PresentedCode {
    Code(String),
    DeviceCode(String),
}

impl Form {
    fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let parameters = form_of(body)?;
        let needed = |name: &str| {
            let value = parameters.get(name).map(str::to_owned);
            value.ok_or_else(|| Refusal::request(format!("`{name}` is missing")))
        };
        let code = match parameters.get("grant_type") {
            Some("authorization_code") => PresentedCode::Code(needed("code")?),
            Some(DEVICE_GRANT) => PresentedCode::DeviceCode(needed("device_code")?),
            _ => {
                return Err(Refusal::new(
                    "unsupported_grant_type",
                    format!("`grant_type` is neither `authorization_code` nor `{DEVICE_GRANT}`"),
                ));
            }
        };
        let verifier = needed("code_verifier")?;
        let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if !(43..=128).contains(&verifier.len()) || !verifier.bytes().all(unreserved) {
            return Err(Refusal::request("`code_verifier` is not one of RFC 7636"));
        }
        Ok(Self { code, verifier })
    }
}

pub(super) fn form_of(body: &[u8]) -> Result<Parameters<'_>, Refusal> {
    let text = std::str::from_utf8(body).map_err(|_| Refusal::request("the form is not UTF-8"))?;
    Parameters::parse(Some(text)).map_err(|error| Refusal::request(error.to_string()))
}

pub(super) fn json_answer(status: StatusCode, body: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A wait in whole seconds, rounded up.
pub(super) fn seconds(span: Duration) -> u64 {
    span.as_secs() + u64::from(span.subsec_nanos() > 0)
}
