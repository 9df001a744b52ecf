//! Errors of watches, in words that tell operators what the API server, or a proxy in front of it, answered.

use std::error::Error;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{Either, Full};
use kube::core::Status;
use serde_json::{Map, Value, json};

use crate::{body::collect, upstream::UpstreamBody};

/// The maximum number of bytes of an error's body that are read.
const MAX_BODY: usize = 64 << 10;

/// The body of an answer: streamed, or the rewritten one of an error.
pub type AnswerBody = Either<UpstreamBody, Full<Bytes>>;

/// Writes the status of an error into its body, as the `kube` client reports nothing else.
pub async fn telling(answer: Response<UpstreamBody>) -> Response<AnswerBody> {
    let (parts, body) = answer.into_parts();
    let body = match parts.status {
        status if status.is_client_error() || status.is_server_error() => {
            let said = collect(body, MAX_BODY).await.unwrap_or_default();
            Either::Right(Full::new(told(status, said)))
        }
        _ => Either::Left(body),
    };
    Response::from_parts(parts, body)
}

/// Adds the status and a message to a `metav1.Status` that lacks them. Any other body is unchanged; `kube` makes a
/// `Status` of it.
fn told(status: StatusCode, said: Bytes) -> Bytes {
    let object: Option<Map<String, Value>> =
        if said.trim_ascii().is_empty() { Some(Map::new()) } else { serde_json::from_slice(&said).ok() };
    let Some(mut object) = object else { return said };
    if object.get("message").and_then(Value::as_str).is_none_or(str::is_empty) {
        object.insert("message".to_owned(), json!(format!("the API server answered with {status}")));
    }
    object.insert("code".to_owned(), json!(status.as_u16()));
    Value::Object(object).to_string().into()
}

/// The cause of an error, without the errors that only wrap it.
pub fn root_cause(error: &(dyn Error + 'static)) -> String {
    let cause = root(error);
    match status(cause) {
        // With an empty reason it would end in a colon.
        Some(status) if status.reason.is_empty() => status.message.clone(),
        _ => cause.to_string(),
    }
}

/// Whether the API server did not accept the credential, or its account lacks a right.
pub fn is_of_credential(error: &(dyn Error + 'static)) -> bool {
    status(root(error)).is_some_and(|status| matches!(status.code, 401 | 403))
}

fn root<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}

fn status<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Status> {
    error.downcast_ref::<Status>().or_else(|| error.downcast_ref::<Box<Status>>().map(|status| &**status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_server_error_is_reported_with_its_status_and_403_alone_as_a_missing_right() {
        for (code, said, expected, is_of_credential_expected) in [
            (503, "{}", "the API server answered with 503 Service Unavailable", false),
            (503, "", "the API server answered with 503 Service Unavailable", false),
            (500, r#"{"message":"etcd is away","reason":"InternalError"}"#, "etcd is away: InternalError", false),
            (
                403,
                r#"{"message":"pods is forbidden","reason":"Forbidden","code":403}"#,
                "pods is forbidden: Forbidden",
                true,
            ),
            (401, r#"{"message":""}"#, "the API server answered with 401 Unauthorized", true),
        ] {
            let body = told(StatusCode::from_u16(code).unwrap(), Bytes::from_static(said.as_bytes()));
            let status: Status = serde_json::from_slice(&body).unwrap();
            let error = kube::runtime::watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)));
            assert_eq!(root_cause(&error), expected, "{code} {said}");
            assert_eq!(is_of_credential(&error), is_of_credential_expected, "{code} {said}");
        }
        assert_eq!(told(StatusCode::BAD_GATEWAY, Bytes::from_static(b"<html>")), "<html>");
        let other = std::io::Error::other("cut");
        assert!(root_cause(&other) == "cut" && !is_of_credential(&other));
    }
}
