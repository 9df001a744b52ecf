//! Doorward's own endpoints: the login, who am I, my sessions, and the metadata of the protected resource. Requests are
//! sanitized and routed before they get here, and nothing here can forward.

pub mod probe;
mod sessions;
#[cfg(test)]
mod tests;

use std::{error::Error, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body::Body;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    assertions,
    authn::{Authenticator, EndpointAudit, Principal, USE_HTTPS},
    authz::Concern,
    config::raw::Scheme,
    error::{Reason, Rejection},
    issuers::Issuer,
    oidc::{Login, LoginRequest, backchannel, program},
    pages::{self, SessionTimes, WhoAmIView},
    request::{
        exchange::Exchange,
        is_question, method,
        respond::{allow_preflight, see_other},
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

/// One of Doorward's own pages and documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    /// All pages of the login, which tells them apart itself.
    Login,
    UserInfo,
    ForwardAuth,
    WhoAmI,
    Probe,
    Sessions,
    EndSessions,
    ProtectedResource,
    AssertionKeys,
}

impl Page {
    /// The page at a path.
    fn at(path: &str) -> Option<Self> {
        Some(match path {
            "/oauth2/userinfo" => Self::UserInfo,
            WHO_AM_I => Self::WhoAmI,
            probe::PATH => Self::Probe,
            sessions::PATH => Self::Sessions,
            sessions::END => Self::EndSessions,
            assertions::KEY_SET => Self::AssertionKeys,
            PROTECTED_RESOURCE => Self::ProtectedResource,
            path if is_below(path, PROTECTED_RESOURCE) => Self::ProtectedResource,
            program::PAGE | program::TOKEN | program::END => Self::Login,
            program::DEVICE | program::DONE | program::DEVICE_REQUEST => Self::Login,
            path if is_question(path) => Self::ForwardAuth,
            path if is_below(path, "/oauth2") => Self::Login,
            _ => return None,
        })
    }

    /// The name in the audit trail.
    fn name(self) -> &'static str {
        match self {
            Self::Login | Self::UserInfo | Self::ForwardAuth => "login",
            Self::WhoAmI => "whoami",
            Self::Probe => "probe",
            Self::Sessions | Self::EndSessions => "sessions",
            Self::ProtectedResource | Self::AssertionKeys => "metadata",
        }
    }

    /// The methods that it accepts, in the form of `Allow`. `None` for a page that answers every method itself.
    fn methods(self) -> Option<&'static str> {
        match self {
            Self::Login | Self::ForwardAuth => None,
            Self::UserInfo | Self::WhoAmI | Self::Probe | Self::Sessions | Self::AssertionKeys => Some("GET, HEAD"),
            Self::EndSessions => Some("POST"),
            // Pages of other origins read it, and may send a header of their own.
            Self::ProtectedResource => Some("GET, HEAD, OPTIONS"),
        }
    }

    fn check_method(self, method: &Method) -> Result<(), Rejection> {
        match self.methods() {
            Some(allow) if !method::is_listed(method, allow) => {
                Err(Rejection::method_not_allowed(allow, format!("this address takes {allow} only")))
            }
            _ => Ok(()),
        }
    }

    async fn answer(self, context: &Context<'_>) -> Result<Response<Bytes>, Rejection> {
        match self {
            Self::Login => login(context).await,
            Self::UserInfo => user_info(context).await,
            Self::ForwardAuth => refuse_query(context),
            Self::WhoAmI => who_am_i(context).await,
            Self::Probe => Ok(probe::answer(context)),
            Self::Sessions => sessions::list(context).await,
            Self::EndSessions => sessions::end(context).await,
            Self::ProtectedResource if context.request.method() == Method::OPTIONS => Ok(allow_preflight()),
            Self::ProtectedResource => Ok(protected_resource(context)),
            Self::AssertionKeys => Ok(document(PUBLIC, &context.snapshot.assertions.key_set())),
        }
    }
}

/// Whether a path is below `folder`, which has no slash at its end.
fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/')).is_some_and(|rest| !rest.is_empty())
}

/// What an endpoint needs to answer.
struct Context<'a> {
    snapshot: &'a Snapshot,
    request: CleanRequest<()>,
    body: Bytes,
    origin: Option<Origin>,
    /// The principal of the bearer token, if the request has one.
    bearer: Option<Arc<Principal>>,
    audit: EndpointAudit,
}

/// Answers a request to one of Doorward's own paths. The body is read only for endpoints that use it.
pub async fn serve<B>(
    snapshot: &Snapshot,
    request: CleanRequest<B>,
    authenticator: Authenticator<'_>,
    exchange: &mut Exchange,
) -> Result<Response<Bytes>, Rejection>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let page = Page::at(request.path());
    exchange.record().endpoint = Some(page.map_or("own", Page::name));
    let page = page.ok_or_else(not_found)?;
    let bearer = match page {
        Page::WhoAmI => authenticator.of_token(&request, snapshot.routes.taking_tokens(request.host())).await?,
        _ => None,
    };
    page.check_method(request.method())?;
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
    // No digest: the code of a device in the form could be guessed from it.
    exchange.record().bytes_in = body.len() as u64;
    // Checked first, so that nothing is used up if it cannot be recorded. Space is reserved only once the caller is
    // authenticated, as strangers must not keep others out.
    if Login::lets_in(request.method(), request.path()) {
        exchange.check_trail()?;
    }
    let (origin, audit) = (request.origin(), EndpointAudit::default());
    let context = Context { snapshot, request, body, origin, bearer, audit };
    // Boxed, as it is moved, and as large as the largest of its pages.
    let answer = guarded(Box::pin(page.answer(&context))).await;
    let record = exchange.record();
    record.principal = context.audit.principal();
    if let Some((failed, refusal)) = context.audit.take_failed_login() {
        record.failed_login = Some(failed);
        // The page has a status of its own, which is recorded when it is sent.
        if let Some(refusal) = refusal {
            record.refuse(&refusal);
        }
    }
    if let Some(reservation) = context.audit.take_reservation() {
        exchange.set_reservation(reservation);
    }
    let mut response = answer?;
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

/// Waits for an answer. Refuses the request if that panics, or takes longer than [`TIMEOUT`].
async fn guarded(
    answer: impl Future<Output = Result<Response<Bytes>, Rejection>>,
) -> Result<Response<Bytes>, Rejection> {
    match timeout(TIMEOUT, AssertUnwindSafe(answer).catch_unwind()).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(panic)) => {
            tracing::error!(why = panic_message(&*panic), "an endpoint panicked");
            Err(Rejection::new(Reason::Internal, "an error in Doorward prevented the answer"))
        }
        Err(_) => {
            let why = format!("the answer was not ready within {} s", TIMEOUT.as_secs());
            Err(Rejection::new(Reason::UpstreamTimeout, why).fix("try again in a moment"))
        }
    }
}

fn not_found() -> Rejection {
    Rejection::new(Reason::RouteNotFound, "Doorward has no such page")
}

/// `Cache-Control` of documents that are the same for everybody.
const PUBLIC: &str = "public, max-age=300";

/// A document in JSON. `caching` is its `Cache-Control`.
fn document(caching: &'static str, content: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(content.to_string()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    response
}

async fn login(context: &Context<'_>) -> Result<Response<Bytes>, Rejection> {
    let Some(origin) = &context.origin else {
        return Err(Rejection::new(Reason::BadRequest, "signing in needs https").fix(USE_HTTPS));
    };
    let request_id = context.request.meta().id.to_string();
    let Snapshot { routes, login, .. } = context.snapshot;
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
    login.answer(request).await.ok_or_else(not_found)
}

/// The signed-in user, in the format of oauth2-proxy.
async fn user_info(context: &Context<'_>) -> Result<Response<Bytes>, Rejection> {
    let Some(session) = context.session().await? else { return Ok(signed_out(context)) };
    let principal = &session.principal;
    let user = json!({
        "user": &*principal.username,
        "preferredUsername": &*principal.username,
        "email": principal.email.as_deref(),
        "groups": texts(&principal.groups),
    });
    Ok(document("no-store", &user))
}

/// Refuses a forward-auth query that is not from a trusted proxy, or not in the configured form. All others are
/// answered before they get here.
fn refuse_query(context: &Context<'_>) -> Result<Response<Bytes>, Rejection> {
    if context.snapshot.raw.forward_auth.is_none() {
        return Err(not_found());
    }
    let refusal = "Only a proxy that `trusted_proxies` lists may ask, in the way that `forward_auth` names.\n";
    let mut response = Response::new(Bytes::from_static(refusal.as_bytes()));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}

async fn who_am_i(context: &Context<'_>) -> Result<Response<Bytes>, Rejection> {
    let (principal, session) = match &context.bearer {
        Some(principal) => {
            context.audit.set_principal(principal);
            (Arc::clone(principal), None)
        }
        None => match context.session().await? {
            Some(session) => (Arc::clone(&session.principal), Some(session)),
            None => return Ok(signed_out(context)),
        },
    };
    let scheme = if session.is_some() { Scheme::Session } else { Scheme::Bearer };
    let Snapshot { policy, raw, sessions, .. } = context.snapshot;
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
    let is_program = context.bearer.is_some() || context.wants_json();
    Ok(if is_program { about.as_json() } else { about.as_page(context) })
}

impl Context<'_> {
    /// The session of the browser or program, if it has one.
    async fn session(&self) -> Result<Option<Arc<Session>>, Rejection> {
        let Some(origin) = &self.origin else { return Ok(None) };
        let session = self.held(origin).await?;
        if let Some(session) = &session {
            self.audit.set_principal(&session.principal);
        }
        Ok(session)
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

/// The way to the login for a person, and 401 for others.
fn signed_out(context: &Context<'_>) -> Response<Bytes> {
    let request = &context.request;
    let location = context.origin.as_ref().and_then(|origin| {
        let login = &context.snapshot.login;
        login.challenge(origin, request.method(), request.path(), request.query(), request.headers())
    });
    if let Some(location) = location {
        return see_other(&location);
    }
    let problem = json!({"type": "about:blank", "title": "Unauthorized", "status": 401, "detail": "you are not signed in",
        "reason": Reason::CredentialMissing.as_str(), "request_id": request.meta().id.to_string()});
    let takes_tokens =
        request.path() == WHO_AM_I && context.snapshot.routes.taking_tokens(request.host()).next().is_some();
    let challenge = match takes_tokens {
        true => "Bearer realm=\"doorward\", Cookie realm=\"doorward\"",
        false => "Cookie realm=\"doorward\"",
    };
    let mut response = document("no-store", &problem);
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
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
    fn as_json(&self) -> Response<Bytes> {
        let principal = self.principal;
        let about = json!({
            "username": &*principal.username,
            "email": principal.email.as_deref(),
            "issuer": &*principal.issuer,
            "subject": &*principal.subject,
            "kind": principal.kind,
            "client": principal.client.as_deref(),
            "actor": principal.actor.as_ref().map(|actor| json!({
                "issuer": actor.issuer.as_deref(),
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
        });
        document("no-store", &about)
    }

    fn as_page(&self, context: &Context<'_>) -> Response<Bytes> {
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
        pages::html(StatusCode::OK, &pages::who_am_i(&view), &context.snapshot.brand)
    }
}

fn texts(list: &[Arc<str>]) -> Vec<&str> {
    list.iter().map(|entry| &**entry).collect()
}

/// OAuth 2.0 Protected Resource Metadata (RFC 9728 section 3.2), for the route at the path that follows or for the
/// whole host.
fn protected_resource(context: &Context<'_>) -> Response<Bytes> {
    let Context { snapshot, request, .. } = context;
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
    let mut response = document(PUBLIC, &metadata);
    // Clients within pages of any origin query this before they have a token.
    response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

/// Selects the issuers that a client can ask for a token. Many clients take the first that is listed, so the others are
/// listed only if there is no such issuer.
fn asked_for_tokens<'a>(issuers: impl Iterator<Item = &'a Arc<Issuer>>) -> Vec<&'a Arc<Issuer>> {
    let (asked, others): (Vec<_>, Vec<_>) = issuers.partition(|issuer| issuer.is_asked_for_tokens());
    if asked.is_empty() { others } else { asked }
}
