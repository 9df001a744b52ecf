//! Rechecks without a refresh token: the access token is presented at the userinfo endpoint, which needs nothing but
//! the token, else at the introspection endpoint. Userinfo also supplies claims, for example after a refresh without an
//! ID token.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use serde_json::{Map, Value};
use url::Url;

use super::{Metadata, Provider, RefreshError};
use crate::{
    clock::Timestamp,
    egress::{self, Bounds},
    request::headers::media_type,
};

/// The bounds of one request.
const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(5), max_body: 64 << 10 };

/// The answer of an endpoint.
enum Answer {
    /// The person `sub` may be signed in; their claims.
    Confirmed(Map<String, Value>),
    Denied(&'static str),
    /// Neither, and why: for example the page of a portal in front of the provider, or a provider that refuses our
    /// client.
    Unusable(String),
}

/// Whether the provider announces an endpoint that can check an access token.
pub(super) const fn can_vouch(metadata: &Metadata) -> bool {
    metadata.userinfo_endpoint.is_some() || metadata.introspection_endpoint.is_some()
}

/// Checks that the provider still vouches for the person `subject`, for whom it issued `access`. Returns the claims of
/// its userinfo endpoint, if that answers.
pub(super) async fn vouch(
    provider: &dyn Provider,
    metadata: &Metadata,
    access: &str,
    subject: Option<&str>,
    now: Timestamp,
) -> Result<Option<Map<String, Value>>, RefreshError> {
    if !can_vouch(metadata) {
        return Err(RefreshError::Gone(
            "there is no refresh token, and it announces neither a userinfo nor an introspection endpoint".to_owned(),
        ));
    }
    let mut answer = match &metadata.userinfo_endpoint {
        Some(endpoint) => user_info(provider, endpoint, access).await?,
        None => Answer::Unusable("it announces no userinfo endpoint".to_owned()),
    };
    let tells = matches!(answer, Answer::Confirmed(_));
    if let (Answer::Unusable(why), Some(endpoint)) = (&answer, &metadata.introspection_endpoint) {
        answer = match introspect(provider, endpoint, access, now).await? {
            Answer::Unusable(more) => Answer::Unusable(format!("{why}, and {more}")),
            said => said,
        };
    }
    match answer {
        Answer::Confirmed(claims) if is_of(&claims, subject) => Ok(tells.then_some(claims)),
        Answer::Confirmed(_) => Err(of_another()),
        Answer::Denied(why) => Err(RefreshError::Gone(why.to_owned())),
        Answer::Unusable(why) => Err(RefreshError::Refused(why)),
    }
}

/// The userinfo claims of the person `subject`, for whom the provider has just issued `access`; `None` if it returns
/// none. A refusal says nothing about the person, as the new token vouches for them. Neither does
/// [`RefreshError::Later`], which the caller ignores.
pub(super) async fn fetch_userinfo(
    provider: &dyn Provider,
    metadata: &Metadata,
    access: &str,
    subject: Option<&str>,
) -> Result<Option<Map<String, Value>>, RefreshError> {
    let Some(endpoint) = &metadata.userinfo_endpoint else { return Ok(None) };
    match user_info(provider, endpoint, access).await? {
        Answer::Confirmed(claims) if is_of(&claims, subject) => Ok(Some(claims)),
        Answer::Confirmed(_) => Err(of_another()),
        Answer::Denied(_) | Answer::Unusable(_) => Ok(None),
    }
}

/// Like [`fetch_userinfo`], if the claims are required: an answer without claims is a refusal.
pub(super) async fn require_userinfo(
    provider: &dyn Provider,
    metadata: &Metadata,
    access: &str,
    subject: Option<&str>,
) -> Result<Map<String, Value>, RefreshError> {
    let Some(endpoint) = &metadata.userinfo_endpoint else {
        return Err(RefreshError::Refused("it announces no `userinfo_endpoint` with an https address".to_owned()));
    };
    match user_info(provider, endpoint, access).await? {
        Answer::Confirmed(claims) if is_of(&claims, subject) => Ok(claims),
        Answer::Confirmed(_) => Err(of_another()),
        Answer::Denied(why) => Err(RefreshError::Refused(why.to_owned())),
        Answer::Unusable(why) => Err(RefreshError::Refused(why)),
    }
}

fn is_of(claims: &Map<String, Value>, subject: Option<&str>) -> bool {
    claims.get("sub").is_none_or(|found| found.as_str() == subject)
}

fn of_another() -> RefreshError {
    RefreshError::Gone("its access token is of another person".to_owned())
}

/// Requests userinfo (OpenID Connect Core 1.0 section 5.3). An answer that is not JSON (section 5.3.2 allows a JWT) is
/// [`Answer::Unusable`].
async fn user_info(provider: &dyn Provider, endpoint: &Url, access: &str) -> Result<Answer, RefreshError> {
    let Some(bearer) = egress::bearer(access.as_bytes()) else {
        return Ok(Answer::Unusable("its access token cannot be sent in a header".to_owned()));
    };
    let request = Request::get(endpoint.as_str())
        .header(header::AUTHORIZATION, bearer)
        .header(header::ACCEPT, "application/json")
        .body(Bytes::new())
        .map_err(|error| RefreshError::Later(error.to_string()))?;
    Ok(of_user_info(&send(provider, request).await?))
}

fn of_user_info(answer: &Response<Bytes>) -> Answer {
    match (answer.status(), object(answer)) {
        // Section 5.3.2: `sub` is required.
        (StatusCode::OK, Some(claims)) if claims.contains_key("sub") => Answer::Confirmed(claims),
        (StatusCode::UNAUTHORIZED, _) => Answer::Denied("its userinfo endpoint no longer accepts the access token"),
        (StatusCode::OK, _) if media_type(answer.headers()).eq_ignore_ascii_case("application/jwt") => Answer::Unusable(
            "its userinfo endpoint answers with a JWT, which is not supported; have it answer this client with JSON"
                .to_owned(),
        ),
        (StatusCode::OK, _) => Answer::Unusable(
            "its userinfo endpoint answers with something other than a JSON object with a `sub`".to_owned(),
        ),
        (status, _) => Answer::Unusable(format!("its userinfo endpoint answers {status}")),
    }
}

/// Introspects the token (RFC 7662) as the client of the login. A refusal is about that client, not about the person.
async fn introspect(
    provider: &dyn Provider,
    endpoint: &Url,
    access: &str,
    now: Timestamp,
) -> Result<Answer, RefreshError> {
    let asked = [("token", access), ("token_type_hint", "access_token")];
    let request = provider.client().authentication.post(now, endpoint, "application/json", &asked);
    let answer = send(provider, request.map_err(RefreshError::Later)?).await?;
    let said = object(&answer).filter(|_| answer.status() == StatusCode::OK);
    Ok(match said.as_ref().and_then(|said| said.get("active")) {
        // The other members are about the token, not about the person.
        Some(Value::Bool(true)) => {
            Answer::Confirmed(said.into_iter().flatten().filter(|(name, _)| name == "sub").collect())
        }
        Some(Value::Bool(false)) => Answer::Denied("its access token is no longer active"),
        _ => Answer::Unusable(format!(
            "its introspection endpoint answers {} and does not say whether the token is active",
            answer.status()
        )),
    })
}

/// Sends a request. Failures of the provider, or of the network, are temporary and say nothing about the person.
async fn send(provider: &dyn Provider, request: Request<Bytes>) -> Result<Response<Bytes>, RefreshError> {
    let answer = provider.egress().send(request, BOUNDS).await;
    let answer = answer.map_err(|error| RefreshError::Later(error.to_string()))?;
    let status = answer.status();
    if status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) {
        return Err(RefreshError::Later(format!("the provider answers {status}")));
    }
    Ok(answer)
}

fn object(answer: &Response<Bytes>) -> Option<Map<String, Value>> {
    serde_json::from_slice(answer.body()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regression: nothing said why userinfo would never work.
    #[test]
    fn a_userinfo_answer_that_is_a_jwt_is_named_as_one() {
        let answer = Response::builder()
            .header(header::CONTENT_TYPE, "application/jwt; charset=utf-8")
            .body(Bytes::from_static(b"eyJhbGciOiJSUzI1NiJ9.e30.YQ"))
            .unwrap();
        let Answer::Unusable(why) = of_user_info(&answer) else { panic!("it has no claims that could be read") };
        assert!(why.contains("a JWT, which is not supported"), "{why}");
    }
}
