//! The one place where a refusal becomes a response, in the format that the client understands: `metav1.Status` for
//! clients of Kubernetes, or plain text where these do not read it, a page for people, trailers for gRPC, problem+json
//! (RFC 9457) for all others.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    headers::{REQUEST_ID, id_line},
    host::Reached,
    route::Route,
    sanitize::CleanRequest,
};
use crate::{
    body::{OnEnd, ResponseBody},
    clock::Timestamp,
    config::raw::{ForwardAuth, RouteKind, Scheme},
    error::{Reason, Rejection},
    kubernetes::Attributes,
    oidc::{SIGN_IN, page_of_form, sign_in_page},
    pages::{self, Brand, DeniedView},
    sessions::csrf,
    sts::printable,
    terminal,
};

/// The characters that `grpc-message` encodes (gRPC over HTTP/2, "Percent-Encoded") besides those that are not ASCII.
/// If more were encoded, grpc-js would not decode all of it, such as `%2C`.
const MESSAGE: &AsciiSet = &CONTROLS.add(b'%');

/// How the client of a request reads a refusal, noted before the request is consumed.
#[derive(Clone, Debug)]
pub struct Manner {
    id: Uuid,
    /// A navigation or a submitted form of a browser: a person sees the response.
    pub(super) is_page: bool,
    is_grpc: bool,
    /// A discovery path, whose responses client-go reads as bytes.
    is_discovery: bool,
    /// Method and path, for people.
    request: String,
    /// Whether there is an `Authorization` header, which browsers do not add.
    pub(super) is_program: bool,
    /// The proxy that asks on the client's behalf, and reads the response.
    pub(super) proxy: Option<ForwardAuth>,
    /// Where a login leads back to: the page that was navigated to.
    pub(super) back: Option<String>,
    /// The page of the submitted form, if it is known.
    pub(super) form: Option<String>,
    /// Where a login begins that satisfies the rule, for the page of the refusal.
    pub(super) step_up: Option<String>,
    /// By which scheme and port the client reached this host, for the addresses in challenges.
    reached: Reached,
    /// The route, once it is known.
    pub(super) route: Option<Arc<Route>>,
    /// For one of Doorward's own pages: a route whose schemes it accepts.
    pub(super) endpoint_route: Option<Arc<Route>>,
    /// Only clients of Kubernetes use this host, so that they understand a `Status` without a route too.
    pub(super) is_for_kubernetes: bool,
    /// The request attributes of Kubernetes, once they are known.
    pub(super) kubernetes: Option<Arc<Attributes>>,
}

impl Manner {
    pub fn of<B>(id: Uuid, request: &Request<B>) -> Self {
        let headers = request.headers();
        Self {
            id,
            is_page: csrf::is_navigation(request.method(), headers) || csrf::is_submission(request.method(), headers),
            is_grpc: headers.get(header::CONTENT_TYPE).is_some_and(is_grpc),
            is_discovery: false,
            is_program: headers.contains_key(header::AUTHORIZATION),
            proxy: None,
            request: String::new(),
            back: None,
            form: None,
            step_up: None,
            reached: Reached::default(),
            route: None,
            endpoint_route: None,
            is_for_kubernetes: false,
            kubernetes: None,
        }
    }

    /// Notes how the client reached this host, what a page of refusal names, and where a login leads back to; the
    /// latter two for people only.
    pub fn note<B>(&mut self, request: &CleanRequest<B>) {
        self.reached = request.reached();
        self.is_discovery = is_discovery(request.path());
        if !self.is_page {
            return;
        }
        let (method, path) = (request.method(), request.path());
        self.request = format!("{method} {path}");
        self.back = csrf::is_navigation(method, request.headers())
            .then(|| request.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}")));
        if self.back.is_none() {
            self.form = request.origin().and_then(|origin| page_of_form(&origin, request.headers()));
        }
    }

    /// The address of this host as the client reaches it.
    pub(super) fn address(&self, host: &str) -> String {
        self.reached.url(host, "")
    }

    pub(super) fn resource_metadata(&self, host: &str) -> Option<String> {
        self.route.as_deref().and_then(|route| route.resource_metadata(self.reached, host))
    }

    pub(super) fn context<'a>(
        &'a self,
        resource_metadata: Option<&'a str>,
        who: Option<&'a str>,
        now: Timestamp,
        brand: &'a Brand,
    ) -> RefusalContext<'a> {
        let own = self.endpoint_route.as_deref().map(|route| RouteTerms { kind: None, schemes: &route.schemes });
        let route =
            self.route.as_deref().map(|route| RouteTerms { kind: Some(route.kind), schemes: &route.schemes }).or(own);
        RefusalContext { manner: self, route, resource_metadata, who, now, brand }
    }
}

/// Everything that the response depends on besides the refusal. Parts of it are unknown when a request is refused
/// early.
#[derive(Clone, Copy, Debug)]
pub struct RefusalContext<'a> {
    pub manner: &'a Manner,
    /// The route, once it is known.
    pub route: Option<RouteTerms<'a>>,
    /// The address of the protected-resource metadata (RFC 9728), if there is any.
    pub resource_metadata: Option<&'a str>,
    /// The caller, once known.
    pub who: Option<&'a str>,
    pub now: Timestamp,
    pub brand: &'a Brand,
}

/// The properties of a route that a refusal depends on.
#[derive(Clone, Copy, Debug)]
pub struct RouteTerms<'a> {
    /// `None` for one of Doorward's own pages.
    pub kind: Option<RouteKind>,
    pub schemes: &'a [Scheme],
}

/// The format of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    GrpcTrailers,
    Page,
    /// A delivery that is refused and answered with 2xx, so that its sender does not send it again.
    Ignored,
    PlainText,
    KubernetesStatus,
    Problem,
}

/// The format that this client understands.
fn format_for(rejection: &Rejection, context: &RefusalContext<'_>) -> Format {
    let kind = context.route.and_then(|route| route.kind);
    let manner = context.manner;
    if kind == Some(RouteKind::Http) && manner.is_grpc {
        Format::GrpcTrailers
    } else if manner.is_page && kind != Some(RouteKind::Webhook) {
        Format::Page
    } else if rejection.status().is_success() && !rejection.reason().status().is_success() {
        Format::Ignored
    } else if kind.map_or(manner.is_for_kubernetes, |kind| kind == RouteKind::Kubernetes) {
        if manner.is_discovery { Format::PlainText } else { Format::KubernetesStatus }
    } else {
        Format::Problem
    }
}

/// Turns a refusal into a response.
pub fn refuse(rejection: &Rejection, context: &RefusalContext<'_>) -> Response<Bytes> {
    let format = format_for(rejection, context);
    let mut response = match format {
        Format::GrpcTrailers => trailers_only(rejection),
        Format::Page => page(rejection, context),
        Format::Ignored => body("application/json", json!({"ignored": rejection.in_words()}).to_string()),
        Format::PlainText => in_plain_text(rejection, context),
        Format::KubernetesStatus => body("application/json", status_object(rejection, context).to_string()),
        Format::Problem => body("application/problem+json", problem(rejection, context).to_string()),
    };
    // That of gRPC is always 200, and the refusal is in its trailers.
    if format != Format::GrpcTrailers {
        *response.status_mut() = rejection.status();
    }
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(span) = rejection.retry_after() {
        insert(headers, header::RETRY_AFTER, &span.as_secs().max(1).to_string());
    }
    if let Some(allow) = rejection.allow() {
        insert(headers, header::ALLOW, allow);
    }
    if rejection.is_for_websocket_version() {
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    for challenge in challenges(rejection, context) {
        if let Ok(value) = HeaderValue::from_str(&challenge) {
            headers.append(header::WWW_AUTHENTICATE, value);
        }
    }
    identify(&mut response, context.manner.id);
    response
}

/// Redirects a browser by 303, so that it repeats neither method nor body (RFC 9700 section 4.12).
pub fn see_other(location: &str) -> Response<Bytes> {
    let location = HeaderValue::from_str(location).unwrap_or_else(|_| HeaderValue::from_static("/"));
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, location);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The response to a CORS preflight for public documents, which pages of other origins may read with headers of their
/// own, such as the version of MCP (Fetch section 4.8).
pub fn allow_preflight() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*"));
    response
}

/// Adds the id of the request to a response.
pub fn identify(response: &mut Response<Bytes>, id: Uuid) {
    response.headers_mut().insert(REQUEST_ID, id_line(id));
}

/// Removes the content from Doorward's own response to `HEAD`, and keeps its length (RFC 9110 section 9.3.2). Responses
/// of upstreams are left as they are.
pub fn head_alone<E: OnEnd>(response: &mut Response<ResponseBody<E>>) {
    if let Some(content) = response.body_mut().take_whole() {
        response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(content.len().into());
    }
}

fn body(content_type: &'static str, text: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn insert(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

/// The page for people. It offers to sign in as somebody else, except for a request from a page of another origin,
/// which no login lets through.
fn page(rejection: &Rejection, context: &RefusalContext<'_>) -> Response<Bytes> {
    let id = context.manner.id.to_string();
    let signs_in = context.route.is_some_and(|route| route.schemes.contains(&Scheme::Session))
        && rejection.reason() != Reason::OriginRefused
        && matches!(rejection.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    let manner = context.manner;
    let back = manner.back.as_deref().or(manner.form.as_deref());
    let sign_in = signs_in.then(|| back.map_or_else(|| SIGN_IN.to_owned(), sign_in_page));
    let view = DeniedView {
        rejection,
        why: None,
        request: &manner.request,
        who: context.who,
        request_id: &id,
        now: context.now,
        step_up: manner.step_up.as_deref(),
        sign_in: sign_in.as_deref(),
        no_sign_in: context.route.and_then(|route| without_sign_in(route.schemes)),
    };
    pages::html(rejection.status(), &pages::denied(&view), context.brand)
}

/// The title for people who come to a route without its credential, if nobody can sign in there.
fn without_sign_in(schemes: &[Scheme]) -> Option<&'static str> {
    match schemes {
        [] => None,
        schemes if schemes.contains(&Scheme::Session) => None,
        // Browsers have client certificates, too.
        schemes if schemes.contains(&Scheme::BreakGlass) => Some("This address takes no sign-in"),
        _ => Some("This address is for programs"),
    }
}

/// `metav1.Status`. `kubectl` prints `message` and decides by `reason` and `code`.
fn status_object(rejection: &Rejection, context: &RefusalContext<'_>) -> Value {
    let reason = match rejection.status() {
        StatusCode::UNAUTHORIZED => "Unauthorized",
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::METHOD_NOT_ALLOWED => "MethodNotAllowed",
        StatusCode::PAYLOAD_TOO_LARGE => "RequestEntityTooLarge",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "UnsupportedMediaType",
        StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY => "ServiceUnavailable",
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => "Timeout",
        StatusCode::INTERNAL_SERVER_ERROR => "InternalError",
        _ => "BadRequest",
    };
    let mut causes = vec![json!({"reason": rejection.reason().as_str(), "message": rejection.detail()})];
    causes.extend(rejection.rule().map(|rule| json!({"reason": "rule", "message": &**rule})));
    let mut details = json!({"causes": causes, "uid": context.manner.id.to_string()});
    if let (Some(span), Some(details)) = (rejection.retry_after(), details.as_object_mut()) {
        details.insert("retryAfterSeconds".to_owned(), span.as_secs().max(1).into());
    }
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": in_words_of_status(rejection, context),
        "reason": reason,
        "details": details,
        "code": rejection.status().as_u16(),
    })
}

/// The `message` of a `Status`. Clients show nothing else of it, so it also names what was refused by a rule, and the
/// request id that `doorward explain` takes.
fn in_words_of_status(rejection: &Rejection, context: &RefusalContext<'_>) -> String {
    let manner = context.manner;
    let wanted = manner.kubernetes.as_deref().filter(|_| rejection.reason().is_decision());
    let wanted = wanted.map(|wanted| format!("{}; ", terminal::line(&wanted.in_words()))).unwrap_or_default();
    format!("doorward: {} ({wanted}request {})", rejection.in_words(), manner.id)
}

/// For clients that do not read a `Status`. For a 401 client-go discards the text too, but prints a warning; it prints
/// equal warnings once, so this one has no request id.
fn in_plain_text(rejection: &Rejection, context: &RefusalContext<'_>) -> Response<Bytes> {
    let mut response = body("text/plain; charset=utf-8", in_words_of_status(rejection, context));
    if rejection.status() == StatusCode::UNAUTHORIZED {
        let words = printable(&format!("doorward: {}", rejection.in_words()));
        insert(response.headers_mut(), header::WARNING, &format!("299 - \"{words}\""));
    }
    response
}

/// Whether this is a discovery path. client-go reads these responses as bytes and not as a `Status`: kubectl prints
/// `unknown` for a refusal in JSON, and a refusal in plain text as it is.
fn is_discovery(path: &str) -> bool {
    matches!(path, "/api" | "/apis" | "/version" | "/version/" | "/openapi/v2" | "/openapi/v3")
        || path.starts_with("/openapi/v3/")
}

fn problem(rejection: &Rejection, context: &RefusalContext<'_>) -> Value {
    let status = rejection.status();
    let mut problem = json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("Refused"),
        "status": status.as_u16(),
        "detail": rejection.detail(),
        "reason": rejection.reason().as_str(),
        "request_id": context.manner.id.to_string(),
    });
    if let Some(problem) = problem.as_object_mut() {
        problem.extend(rejection.rule().map(|rule| ("rule".to_owned(), Value::from(&**rule))));
        problem.extend(rejection.fix_text().map(|fix| ("fix".to_owned(), Value::from(fix))));
    }
    problem
}

/// Whether this is gRPC over HTTP/2. Clients of gRPC-Web read the HTTP status instead.
pub(crate) fn is_grpc(content_type: &HeaderValue) -> bool {
    let rest = content_type.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// A gRPC response without messages: the status is in its only header block (gRPC over HTTP/2, "Trailers-Only").
fn trailers_only(rejection: &Rejection) -> Response<Bytes> {
    let code = match rejection.status() {
        StatusCode::UNAUTHORIZED => "16",
        StatusCode::FORBIDDEN => "7",
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => "14",
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => "12",
        StatusCode::REQUEST_TIMEOUT => "4",
        // Not "14", which clients retry at once: that makes no message smaller and lets no time pass.
        StatusCode::TOO_MANY_REQUESTS | StatusCode::PAYLOAD_TOO_LARGE => "8",
        StatusCode::INTERNAL_SERVER_ERROR => "13",
        _ => "3",
    };
    let mut response = body("application/grpc", String::new());
    let headers = response.headers_mut();
    headers.insert("grpc-status", HeaderValue::from_static(code));
    let message = utf8_percent_encode(rejection.detail(), MESSAGE).to_string();
    insert(headers, HeaderName::from_static("grpc-message"), &message);
    response
}

/// `WWW-Authenticate` (RFC 6750 section 3, RFC 9470 section 3, RFC 9728 section 5.1): a challenge for each scheme that
/// the route accepts in a header. Without a credential it has no error code.
fn challenges(rejection: &Rejection, context: &RefusalContext<'_>) -> Vec<String> {
    let Some(route) = context.route else { return Vec::new() };
    let insufficient = rejection.status() == StatusCode::FORBIDDEN && !rejection.needed_scopes().is_empty();
    // RFC 6750 has a challenge with a 400 too, and no other scheme does.
    let misused = rejection.status() == StatusCode::BAD_REQUEST && rejection.is_for_misuse_of_bearer();
    if rejection.status() != StatusCode::UNAUTHORIZED && !insufficient && !misused {
        return Vec::new();
    }
    let mut challenges = Vec::new();
    for scheme in route.schemes {
        match scheme {
            Scheme::Bearer => {
                let mut challenge = "Bearer realm=\"doorward\"".to_owned();
                let error = match rejection.reason() {
                    Reason::CredentialMissing | Reason::SessionExpired => None,
                    _ if insufficient => Some("insufficient_scope"),
                    _ if misused => Some("invalid_request"),
                    Reason::NeedUnmet => Some("insufficient_user_authentication"),
                    _ => Some("invalid_token"),
                };
                if let Some(error) = error {
                    // RFC 6750 allows printable ASCII without `"` and `\` here.
                    let description = printable(rejection.detail());
                    challenge.push_str(&format!(", error=\"{error}\", error_description=\"{description}\""));
                }
                if insufficient {
                    challenge.push_str(&format!(", scope=\"{}\"", rejection.needed_scopes().join(" ")));
                }
                if let Some(needed) = rejection.needed_login() {
                    if !needed.acr.is_empty() {
                        challenge.push_str(&format!(", acr_values=\"{}\"", needed.acr.join(" ")));
                    }
                    if let Some(max_age) = needed.max_age() {
                        challenge.push_str(&format!(", max_age=\"{}\"", max_age.as_secs()));
                    }
                }
                if let Some(address) = context.resource_metadata {
                    challenge.push_str(&format!(", resource_metadata=\"{address}\""));
                }
                challenges.push(challenge);
            }
            Scheme::Webhook | Scheme::Session if misused => {}
            // No registered scheme fits, but every 401 needs a challenge (RFC 9110 section 15.5.2).
            Scheme::Webhook => challenges.push("Signature realm=\"doorward\"".to_owned()),
            Scheme::Session => challenges.push("Cookie realm=\"doorward\"".to_owned()),
            Scheme::BreakGlass | Scheme::Anonymous => {}
        }
    }
    challenges
}

#[cfg(test)]
mod tests;
