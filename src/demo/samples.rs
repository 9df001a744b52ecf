//! Sample upstreams in place of an EventListener, a Dashboard and a Kubernetes API, which show what arrived.

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{Html, IntoResponse, Json, Response},
    routing::any,
};
use serde_json::{Map, Value, json};

/// What a sample stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    EventListener,
    Dashboard,
    Kubernetes,
}

impl Sample {
    pub fn router(self) -> Router {
        Router::new().fallback(any(answer)).with_state(self)
    }
}

async fn answer(State(sample): State<Sample>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let arrived = arrived(&method, &uri, &headers, &body);
    // Where the real ones report their health, which `doorward doctor` checks.
    match (sample, uri.path()) {
        (Sample::EventListener, "/live") => return "ok".into_response(),
        (Sample::Kubernetes, "/version") => return Json(json!({"gitVersion": "v0.0.0-sample"})).into_response(),
        (Sample::Dashboard, "/health") => return StatusCode::OK.into_response(),
        _ => {}
    }
    match sample {
        // The answer of the real sink (tektoncd/triggers `pkg/sink/sink.go`), which says 202 to everything.
        Sample::EventListener => {
            let body = json!({"eventListener": "github", "namespace": "ci", "eventListenerUID": "",
                "eventID": uuid::Uuid::new_v4().to_string(), "arrived": arrived});
            (StatusCode::ACCEPTED, Json(body)).into_response()
        }
        // Doorward asks whether it may do what its configuration needs.
        Sample::Kubernetes if uri.path().ends_with("/selfsubjectaccessreviews") => {
            let allowed = headers.contains_key("impersonate-user") || is_doorwards(&body);
            (StatusCode::CREATED, Json(json!({"status": {"allowed": allowed}}))).into_response()
        }
        Sample::Kubernetes if uri.path().ends_with("/selfsubjectrulesreviews") => {
            let body = json!({"status": {"resourceRules": [], "nonResourceRules": [], "incomplete": true}});
            (StatusCode::CREATED, Json(body)).into_response()
        }
        // Indented for people who read it.
        Sample::Kubernetes => {
            let echo = json!({"kind": "Echo", "apiVersion": "demo.doorward.dev/v1", "arrived": arrived});
            ([(header::CONTENT_TYPE, "application/json")], format!("{echo:#}\n")).into_response()
        }
        Sample::Dashboard => match headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()) {
            Some(accept) if accept.contains("text/html") => {
                Html(super::page::arrived(&arrived).into_string()).into_response()
            }
            _ => Json(json!({"arrived": arrived})).into_response(),
        },
    }
}

/// Whether a review is about what Doorward itself may do: impersonate others, except those that belong to Kubernetes.
/// People may do everything here.
fn is_doorwards(review: &[u8]) -> bool {
    let review: Value = serde_json::from_slice(review).unwrap_or_default();
    let asked = |name: &str| {
        let value = review.pointer(&format!("/spec/resourceAttributes/{name}"));
        value.and_then(Value::as_str).unwrap_or_default()
    };
    asked("verb") == "impersonate" && !asked("name").starts_with("system:")
}

/// The request as the upstream saw it. Doorward's own credential is named, not shown.
fn arrived(method: &Method, uri: &Uri, headers: &HeaderMap, body: &Bytes) -> Value {
    let mut lines = Map::new();
    for name in headers.keys() {
        let mut values: Vec<String> = headers
            .get_all(name)
            .iter()
            .map(|value| match name {
                &header::AUTHORIZATION => "Bearer (Doorward's own)".to_owned(),
                _ => String::from_utf8_lossy(value.as_bytes()).into_owned(),
            })
            .collect();
        let value = if values.len() == 1 { values.pop().map(Value::String) } else { None };
        lines.insert(name.to_string(), value.unwrap_or_else(|| json!(values)));
    }
    json!({"method": method.as_str(), "path": uri.path(), "query": uri.query(), "headers": lines, "body_bytes": body.len()})
}
