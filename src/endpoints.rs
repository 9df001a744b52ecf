//! Doorward's own endpoints: the login, who am I, my sessions, and the metadata of the protected resource. Requests are
//! sanitized and routed before they get here, and nothing here can forward.

pub mod probe;
mod sessions;

use std::{any::Any, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::Body,
    response::{IntoResponse, Json, Response as AxumResponse},
    routing::{any, get, post},
};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::time::timeout;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    assertions,
    authn::{Authenticator, EndpointAudit, Principal},
    authz::Concern,
    body::ClientBody,
    config::raw::Scheme,
    error::{Reason, Rejection},
    issuers::Issuer,
    oidc::{Login, LoginRequest, backchannel, program},
    pages::{self, SessionTimes, WhoAmIView},
    request::{
        FORWARD_AUTH,
        exchange::Exchange,
        respond::{self, see_other},
        route::PROTECTED_RESOURCE,
        sanitize::CleanRequest,
    },
    sessions::{Origin, Session},
    snapshot::Snapshot,
    supervisor::panic_message,
    upstream::buffered::{self, BufferLimits},
};

/// The page that shows people and programs what Doorward knows about them.
pub const WHO_AM_I: &str = "/.doorward/whoami";

/// How long an endpoint may take; a login waits for its provider.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What an endpoint needs to answer.
#[derive(Clone)]
struct Context {
    snapshot: Arc<Snapshot>,
    request: Arc<CleanRequest<()>>,
    body: Bytes,
    origin: Option<Origin>,
    /// The principal of the bearer token, if the request has one.
    bearer: Option<Arc<Principal>>,
    audit: EndpointAudit,
}

/// A refusal that an endpoint leaves to [`Endpoints::serve`], so that it is presented in the client's format like any
/// other.
#[derive(Clone)]
struct Refused(Arc<Rejection>);

fn refused(rejection: Rejection) -> AxumResponse {
    let mut response = rejection.status().into_response();
    response.extensions_mut().insert(Refused(Arc::new(rejection)));
    response
}

/// Has a router that panics refuse the request.
fn guarded(router: Router) -> Router {
    router.layer(CatchPanicLayer::custom(|panic: Box<dyn Any + Send>| {
        tracing::error!(why = panic_message(&*panic), "an endpoint panicked");
        refused(Rejection::new(Reason::Internal, "an error in Doorward prevented the answer"))
    }))
}

/// Answers within [`TIMEOUT`].
async fn answer(router: Router, request: Request<Body>) -> AxumResponse {
    match timeout(TIMEOUT, router.oneshot(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => {
            let why = format!("the answer was not ready within {} s", TIMEOUT.as_secs());
            refused(Rejection::new(Reason::UpstreamTimeout, why).fix("try again in a moment"))
        }
    }
}

/// The router of all endpoints.
#[derive(Clone, Debug)]
pub struct Endpoints(Router);

impl Default for Endpoints {
    fn default() -> Self {
        Self(guarded(
            Router::new()
                .route("/oauth2/{*rest}", any(login))
                .route("/oauth2/userinfo", get(user_info))
                .route(FORWARD_AUTH, any(not_asked))
                .route(program::PAGE, any(login))
                .route(program::TOKEN, any(login))
                .route(program::END, any(login))
                .route(program::DEVICE_REQUEST, any(login))
                .route(program::DEVICE, any(login))
                .route(program::DONE, any(login))
                .route(WHO_AM_I, get(who_am_i))
                .route(probe::PATH, get(probe::answer))
                .route(sessions::PATH, get(sessions::list))
                .route(sessions::END, post(sessions::end))
                .route(PROTECTED_RESOURCE, get(protected_resource).options(allow_preflight))
                .route(&format!("{PROTECTED_RESOURCE}/{{*resource}}"), get(protected_resource).options(allow_preflight))
                .route(assertions::KEY_SET, get(assertion_keys)),
        ))
    }
}

impl Endpoints {
    /// Answers a request to one of Doorward's own paths. The body is read only for endpoints that use it.
    pub async fn serve(
        &self,
        snapshot: &Arc<Snapshot>,
        request: CleanRequest<ClientBody>,
        authenticator: Authenticator<'_>,
        exchange: &mut Exchange,
    ) -> Result<Response<Bytes>, Rejection> {
        exchange.record().endpoint = Some(name(request.path()));
        let bearer = match request.path() {
            WHO_AM_I => authenticator.of_token(&request, snapshot.routes.taking_tokens(request.host())).await?,
            _ => None,
        };
        let share = request.meta().unproven();
        let (request, body) = request.take_body();
        let max = match request.path() {
            backchannel::PATH => Some(backchannel::MAX_BODY),
            program::TOKEN | program::DEVICE_REQUEST | program::DEVICE => Some(program::MAX_BODY),
            _ => None,
        };
        let body = match max.map(|max| BufferLimits::whole(authenticator.limits, max)) {
            Some(limits) => buffered::read(body, limits, authenticator.budget, share).await?,
            None => Bytes::new(),
        };
        // Checked first, so that nothing is used up if it cannot be recorded. Space is reserved only once the caller is
        // authenticated, as strangers must not keep others out.
        if Login::lets_in(request.method(), request.path()) {
            exchange.check_trail()?;
        }
        let mut inner = Request::new(Body::empty());
        *inner.method_mut() = request.method().clone();
        *inner.uri_mut() = request.path().parse().map_err(|_| not_found())?;
        let (origin, audit) = (request.origin(), EndpointAudit::default());
        inner.extensions_mut().insert(Context {
            snapshot: Arc::clone(snapshot),
            request: Arc::new(request),
            body,
            origin,
            bearer,
            audit: audit.clone(),
        });
        let mut response = answer(self.0.clone(), inner).await;
        exchange.record().principal = audit.principal();
        if let Some(reservation) = audit.take_reservation() {
            exchange.set_reservation(reservation);
        }
        let refused = response.extensions_mut().remove::<Refused>();
        if let Some(rejection) = refused.and_then(|Refused(rejection)| Arc::into_inner(rejection)) {
            return Err(rejection);
        }
        if response.status() == StatusCode::NOT_FOUND {
            return Err(not_found());
        }
        // The router's own refusal has no text. A page of the login has its own.
        if response.status() == StatusCode::METHOD_NOT_ALLOWED && !response.headers().contains_key(header::CONTENT_TYPE)
        {
            let allow = response.headers().get(header::ALLOW).and_then(|allow| allow.to_str().ok()).unwrap_or_default();
            let allow = allow.split(',').map(str::trim).collect::<Vec<_>>().join(", ");
            return Err(Rejection::method_not_allowed(allow.clone(), format!("this address takes {allow} only")));
        }
        let (mut parts, body) = response.into_parts();
        parts.headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        let body = body
            .collect()
            .await
            .map_err(|error| Rejection::new(Reason::Internal, "the page could not be made").because(error))?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    }
}

fn name(path: &str) -> &'static str {
    match path {
        WHO_AM_I => "whoami",
        probe::PATH => "probe",
        sessions::PATH | sessions::END => "sessions",
        program::PAGE | program::TOKEN | program::END => "login",
        program::DEVICE | program::DONE | program::DEVICE_REQUEST => "login",
        path if path.starts_with("/oauth2/") => "login",
        path if path.starts_with("/.well-known/") => "metadata",
        _ => "own",
    }
}

fn not_found() -> Rejection {
    Rejection::new(Reason::RouteNotFound, "Doorward has no such page")
}

async fn login(Extension(context): Extension<Context>) -> AxumResponse {
    let Some(origin) = &context.origin else {
        let refusal = Rejection::new(Reason::BadRequest, "signing in needs https")
            .fix(
                "use the `https://` address; clear text works on this machine only, for development; if you did use it, the proxy in \
                 front must send `X-Forwarded-Proto` and be listed in `trusted_proxies`: `doorward doctor --only origin` says more",
            );
        return refused(refusal);
    };
    let request_id = context.request.meta().id.to_string();
    let Snapshot { routes, login, .. } = &*context.snapshot;
    let host = context.request.host();
    let left_out: Vec<Arc<str>> =
        login.issuers().filter(|issuer| routes.refuse_logins_at(host, issuer)).cloned().collect();
    let request = LoginRequest {
        origin,
        method: context.request.method(),
        path: context.request.path(),
        query: context.request.query(),
        headers: context.request.headers(),
        body: &context.body,
        request_id: &request_id,
        address: context.request.meta().client,
        is_shared_address: context.request.meta().is_shared_address,
        audit: &context.audit,
        left_out: &left_out,
    };
    // Before the answer, which may end the session. If the session cannot be read, the request is recorded as
    // anonymous, and an endpoint that needs the session reports the failure.
    if let Ok(Some(session)) = context.snapshot.sessions.held_by(request.headers, origin).await {
        context.audit.set_principal(&session.principal);
    }
    match login.answer(request).await {
        Some(response) => response.map(Body::from),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// The signed-in user, in the format of oauth2-proxy.
async fn user_info(Extension(context): Extension<Context>) -> AxumResponse {
    match context.session().await {
        Ok(session) => {
            let principal = &session.principal;
            let body = Json(json!({
                "user": &*principal.username,
                "preferredUsername": &*principal.username,
                "email": principal.email.as_deref(),
                "groups": texts(&principal.groups),
            }));
            ([(header::CACHE_CONTROL, "no-store")], body).into_response()
        }
        Err(answer) => answer,
    }
}

/// Answers a forward-auth query that is not allowed, or not from there. Those that are allowed never get here.
async fn not_asked(Extension(context): Extension<Context>) -> AxumResponse {
    if context.snapshot.raw.forward_auth.is_none() {
        return StatusCode::NOT_FOUND.into_response();
    }
    let refusal = "Only a proxy that `trusted_proxies` lists may ask, in the way that `forward_auth` names.\n";
    (StatusCode::FORBIDDEN, refusal).into_response()
}

async fn who_am_i(Extension(context): Extension<Context>) -> AxumResponse {
    let (principal, session) = match &context.bearer {
        Some(principal) => {
            context.audit.set_principal(principal);
            (Arc::clone(principal), None)
        }
        None => match context.session().await {
            Ok(session) => (Arc::clone(&session.principal), Some(session)),
            Err(answer) => return answer,
        },
    };
    let scheme = if session.is_some() { Scheme::Session } else { Scheme::Bearer };
    let Snapshot { policy, raw, sessions, .. } = &*context.snapshot;
    let groups = policy.kubernetes_groups(&principal).groups;
    let about = About {
        groups: &groups,
        rules: policy.concerns(&principal, scheme, raw),
        session: session.as_deref().map(|session| SessionTimes {
            created: session.created,
            recheck: sessions.rechecked_by(session),
            idle_end: session.idle_end,
            end: session.end,
        }),
        principal: &principal,
    };
    // A client that sends a token is not a person who looks at a page.
    if context.bearer.is_some() || context.wants_json() { about.as_json() } else { about.as_page(&context) }
}

impl Context {
    /// The session of the browser or program, or the response if there is none.
    async fn session(&self) -> Result<Arc<Session>, AxumResponse> {
        let session = match &self.origin {
            Some(origin) => self.held(origin).await,
            None => Ok(None),
        };
        match session {
            Ok(Some(session)) => {
                self.audit.set_principal(&session.principal);
                Ok(session)
            }
            Ok(None) => Err(signed_out(self)),
            Err(rejection) => Err(refused(rejection)),
        }
    }

    /// The session of the handle that the request carries; else, that of its cookie.
    async fn held(&self, origin: &Origin) -> Result<Option<Arc<Session>>, Rejection> {
        let (sessions, headers) = (&self.snapshot.sessions, self.request.headers());
        match sessions.of_program(headers, origin, self.request.meta().client).await {
            Ok(None) => sessions.held_rechecked_by(headers, origin, self.request.meta().client).await,
            Err(refusal) if refusal.reason() != Reason::StoreUnavailable => Ok(None),
            found => found,
        }
    }

    fn wants_json(&self) -> bool {
        let accept = self.request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
        accept.is_some_and(|accept| accept.contains("application/json") && !accept.contains("text/html"))
    }
}

fn signed_out(context: &Context) -> AxumResponse {
    let request = &context.request;
    let location = context.origin.as_ref().and_then(|origin| {
        let login = &context.snapshot.login;
        login.challenge(origin, request.method(), request.path(), request.query(), request.headers())
    });
    if let Some(location) = location {
        return see_other(&location).map(Body::from);
    }
    let problem = json!({"type": "about:blank", "title": "Unauthorized", "status": 401, "detail": "you are not signed in",
        "reason": Reason::CredentialMissing.as_str()});
    let takes_tokens =
        request.path() == WHO_AM_I && context.snapshot.routes.taking_tokens(request.host()).next().is_some();
    let challenge = match takes_tokens {
        true => "Bearer realm=\"doorward\", Cookie realm=\"doorward\"",
        false => "Cookie realm=\"doorward\"",
    };
    let headers = [
        (header::CONTENT_TYPE, "application/problem+json"),
        (header::CACHE_CONTROL, "no-store"),
        (header::WWW_AUTHENTICATE, challenge),
    ];
    (StatusCode::UNAUTHORIZED, headers, problem.to_string()).into_response()
}

/// What callers are told about themselves.
struct About<'a> {
    principal: &'a Principal,
    /// Kubernetes groups.
    groups: &'a [Arc<str>],
    rules: Vec<Concern<'a>>,
    /// `None` for a caller with a bearer token.
    session: Option<SessionTimes>,
}

impl About<'_> {
    fn as_json(&self) -> AxumResponse {
        let principal = self.principal;
        let body = Json(json!({
            "username": &*principal.username,
            "email": principal.email.as_deref(),
            "issuer": &*principal.issuer,
            "subject": &*principal.subject,
            "kind": principal.kind,
            "client": principal.client.as_deref(),
            "actor": principal.actor.as_ref().map(|actor| json!({
                "subject": &*actor.subject,
                "client": actor.client.as_deref(),
            })),
            "groups": texts(&principal.groups),
            "scopes": texts(&principal.scopes),
            "kubernetes_groups": texts(self.groups),
            "rules": self.rules,
            "session": self.session.as_ref().map(|session| json!({
                "created": session.created.to_string(),
                "checked_again_by": session.recheck.to_string(),
                "ends_if_unused": session.idle_end.to_string(),
                "ends": session.end.to_string(),
            })),
        }));
        ([(header::CACHE_CONTROL, "no-store")], body).into_response()
    }

    fn as_page(&self, context: &Context) -> AxumResponse {
        let principal = self.principal;
        let view = WhoAmIView {
            username: &principal.username,
            email: principal.email.as_deref(),
            issuer: &principal.issuer,
            subject: &principal.subject,
            kind: principal.kind.as_str(),
            groups: &texts(&principal.groups),
            scopes: &texts(&principal.scopes),
            kubernetes_groups: &texts(self.groups),
            rules: &self.rules,
            session: self.session,
            request_id: &context.request.meta().id.to_string(),
        };
        pages::html(StatusCode::OK, &pages::who_am_i(&view), &context.snapshot.brand).map(Body::from)
    }
}

fn texts(list: &[Arc<str>]) -> Vec<&str> {
    list.iter().map(|entry| &**entry).collect()
}

/// The public keys of assertions.
async fn assertion_keys(Extension(context): Extension<Context>) -> AxumResponse {
    ([(header::CACHE_CONTROL, "public, max-age=300")], Json(context.snapshot.assertions.key_set())).into_response()
}

/// OAuth 2.0 Protected Resource Metadata (RFC 9728 section 3.2), for the route at the path that follows or for the
/// whole host.
async fn protected_resource(Extension(context): Extension<Context>) -> AxumResponse {
    let Context { snapshot, request, .. } = &context;
    let resource = request.path().strip_prefix(PROTECTED_RESOURCE).unwrap_or_default();
    let mut metadata = json!({
        "resource": request.reached().url(request.host(), resource),
        "bearer_methods_supported": ["header"],
        "resource_name": "Doorward",
    });
    let route = snapshot.routes.described(request.host(), request.path());
    let servers = match route {
        Some(route) => asked_for_tokens(route.accepts.issuers().iter()),
        None => asked_for_tokens(snapshot.issuers.iter().filter(|issuer| issuer.signs())),
    };
    // A server refuses clients that ask it for a scope of another server.
    let is_listed = |name: &str| servers.iter().any(|issuer| **issuer.name() == *name);
    let scopes = route.map(|route| snapshot.policy.scopes_on(&route.name, is_listed)).unwrap_or_default();
    let servers: Vec<&str> = servers.iter().map(|issuer| &**issuer.identifier()).collect();
    if let Some(members) = metadata.as_object_mut() {
        members.insert("authorization_servers".to_owned(), servers.into());
        if !scopes.is_empty() {
            members.insert("scopes_supported".to_owned(), scopes.into_iter().collect());
        }
    }
    let headers = [
        (header::CACHE_CONTROL, "public, max-age=300"),
        // Clients within pages of any origin query this before they have a token.
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
    ];
    (headers, Json(metadata)).into_response()
}

async fn allow_preflight() -> AxumResponse {
    respond::allow_preflight().map(Body::from)
}

/// Selects the issuers that a client can ask for a token. Many clients take the first that is listed, so the others are
/// listed only if there is no such issuer.
fn asked_for_tokens<'a>(issuers: impl Iterator<Item = &'a Arc<Issuer>>) -> Vec<&'a Arc<Issuer>> {
    let (asked, others): (Vec<_>, Vec<_>) = issuers.partition(|issuer| issuer.is_asked_for_tokens());
    if asked.is_empty() { others } else { asked }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::Actor;

    /// Regression: a slow provider or a bug led to an empty page or a bare text, without a refusal in the record.
    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_takes_too_long_or_panics_refuses_the_request() {
        let router = guarded(
            Router::new()
                .route("/good", get(async || "good"))
                .route("/slow", get(std::future::pending::<String>))
                .route("/panics", get(async || -> String { panic!("scripted") })),
        );
        for (path, reason) in
            [("/good", None), ("/slow", Some(Reason::UpstreamTimeout)), ("/panics", Some(Reason::Internal))]
        {
            let mut response = answer(router.clone(), Request::get(path).body(Body::empty()).unwrap()).await;
            let refused = response.extensions_mut().remove::<Refused>();
            let refused = refused.and_then(|Refused(rejection)| Arc::into_inner(rejection));
            assert_eq!(refused.map(|rejection| rejection.reason()), reason, "{path}");
        }
    }

    /// An agent that came with a person's token was shown the person alone.
    #[tokio::test]
    async fn whoami_tells_an_agent_that_it_acts_and_by_which_client() {
        for (actor, told) in
            [(None, json!(null)), (Some("worker-app"), json!({"subject": "worker", "client": "worker-app"}))]
        {
            let principal = Principal {
                client: Some("cli".into()),
                actor: actor.map(|client: &str| Actor { subject: "worker".into(), client: Some(client.into()) }),
                ..Principal::new(Scheme::Bearer, "corp", "7", "alice")
            };
            let about = About { principal: &principal, groups: &[], rules: Vec::new(), session: None };
            let body = about.as_json().into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(
                (&body["subject"], &body["client"], &body["actor"]),
                (&json!("7"), &json!("cli"), &told),
                "{body}"
            );
        }
    }
}
