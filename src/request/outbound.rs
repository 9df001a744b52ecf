//! The request that is sent upstream. It is made from a permit and carries the permit's identity; identity headers that
//! the client sent are gone.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header, uri::PathAndQuery};
use hyper::upgrade::OnUpgrade;
use url::form_urlencoded;

use super::{headers, sanitize::Meta};
use crate::{
    assertions,
    authn::Principal,
    authz::Permit,
    body::{Received, RequestBody},
    config::raw::RouteKind,
    error::{Reason, Rejection},
    kubernetes::impersonation::{self, AUDIT_ID, assert_impersonated},
    sessions::cookie,
    upstream::{ExpectsContinue, Lifetime, upgrade::UpgradeProtocol},
};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_USER: HeaderName = HeaderName::from_static("x-forwarded-user");
const FORWARDED_EMAIL: HeaderName = HeaderName::from_static("x-forwarded-email");
const FORWARDED_GROUPS: HeaderName = HeaderName::from_static("x-forwarded-groups");
const FORWARDED_ACTOR: HeaderName = HeaderName::from_static("x-forwarded-actor");
const FORWARDED_CLIENT: HeaderName = HeaderName::from_static("x-forwarded-client");

/// A request that may be sent, and the only type that can be forwarded. It can be made from a [`Permit`] only:
///
/// ```
/// use doorward::{authz::Permit, error::Rejection, request::outbound::Outbound};
/// fn assume(permit: Permit) -> Result<Outbound, Rejection> {
///     Outbound::assume(permit, &[])
/// }
/// ```
///
/// It cannot be given any other request, as its fields are private:
///
/// ```compile_fail,E0451
/// use doorward::{body::RequestBody, request::outbound::Outbound};
/// fn forge(outbound: Outbound, request: http::Request<RequestBody>) -> Outbound {
///     Outbound { request, ..outbound }
/// }
/// ```
#[derive(Debug)]
pub struct Outbound {
    request: Request<RequestBody>,
    permit: Permit,
    lifetime: Lifetime,
    on_upgrade: Option<OnUpgrade>,
}

impl Outbound {
    /// Assumes the identity of the permit's principal, in the `groups` that grants gave.
    pub fn assume(mut permit: Permit, groups: &[Arc<str>]) -> Result<Self, Rejection> {
        let lifetime = permit.lifetime();
        let (received, body, on_upgrade) = permit.take_parts();
        let (route, principal) = (permit.route(), permit.principal());
        let of_page = route.kind == RouteKind::Kubernetes
            && lifetime == Lifetime::Upgrade(UpgradeProtocol::WebSocket)
            && received.contains_key(header::ORIGIN);
        let of_application = route.authorization.of_application(&received);
        let mut headers =
            headers_for(route.kind, &route.pass_headers, received, lifetime, permit.meta(), principal, groups)?;
        if let Some(of_application) = of_application {
            headers.insert(header::AUTHORIZATION, of_application);
        }
        if route.upstream.sees_own_host(route.kind) {
            // A request without one gets the upstream's when it is sent.
            headers.remove(header::HOST);
        }
        if of_page {
            // Ours was checked. The API server answers 403 to a watch over a WebSocket without an origin, and servers
            // behind it to the origin of another host.
            headers.insert(header::ORIGIN, route.upstream.origin().clone());
        }
        let mut request = Request::new(body);
        request.method_mut().clone_from(permit.method());
        *request.uri_mut() = uri(permit.target().clone());
        *request.headers_mut() = headers;
        if permit.meta().expects_continue {
            request.extensions_mut().insert(ExpectsContinue);
        }
        Ok(Self { request, permit, lifetime, on_upgrade })
    }

    pub(super) fn permit(&self) -> &Permit {
        &self.permit
    }

    pub(super) fn lifetime(&self) -> Lifetime {
        self.lifetime
    }

    pub(super) fn request(&self) -> &Request<RequestBody> {
        &self.request
    }

    /// The request, which its sender takes out, and the permit by which it is sent.
    pub(super) fn parts_to_send(&mut self) -> (&mut Request<RequestBody>, &Permit) {
        (&mut self.request, &self.permit)
    }

    /// Takes the client's side of an upgrade, which can be done once.
    pub(super) fn take_upgrade(&mut self) -> Option<OnUpgrade> {
        self.on_upgrade.take()
    }

    pub(super) fn remove_headers(&mut self, names: &[HeaderName]) {
        for name in names {
            self.request.headers_mut().remove(name);
        }
    }

    /// Adds the signed assertion of who the request is from.
    pub fn assert(&mut self, assertion: HeaderValue) {
        self.request.headers_mut().insert(assertions::HEADER, assertion);
    }

    /// Sets the body of a run, which names this request as the one that makes the run, and vouches for that name. If it
    /// creates a run, Doorward has to read the run's name in the response, so it asks for JSON, whatever the client
    /// prefers.
    pub fn attribute(&mut self, body: Bytes, makes_a_run: bool) {
        let headers = self.request.headers_mut();
        if makes_a_run {
            headers.remove(header::ACCEPT_ENCODING);
            headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        }
        impersonation::set_request_id(&self.permit.meta().id_line, headers);
        self.replace_body(body);
    }

    pub(super) fn replace_body(&mut self, body: Bytes) {
        *self.request.body_mut() = RequestBody::Buffered(body);
    }

    /// Whether this is a dry run, of which nothing is persisted.
    pub fn is_dry_run(&self) -> bool {
        let query = self.request.uri().query().unwrap_or_default();
        form_urlencoded::parse(query.as_bytes()).any(|(name, value)| name == "dryRun" && value == "All")
    }

    /// Whether the body is streamed and the client may be waiting for a `100 Continue` that it cannot get.
    pub fn expects_continue(&self) -> bool {
        self.permit.meta().expects_continue && self.request.body().is_streaming()
    }

    /// Counts the bytes of a streamed body as they pass, and computes their digest if the decision is recorded before
    /// the request is sent.
    pub fn note_body(&mut self, received: impl FnOnce() -> Arc<Received>) {
        if let RequestBody::Streaming(_) = self.request.body() {
            let body = std::mem::take(self.request.body_mut());
            *self.request.body_mut() = body.noted(&received(), self.permit.is_recorded_first());
        }
    }
}

/// The headers that are sent to an upstream of this kind, with the identity that it understands. `further` headers pass
/// besides the fixed list of the kind.
pub(crate) fn headers_for(
    kind: RouteKind,
    further: &[HeaderName],
    received: HeaderMap,
    lifetime: Lifetime,
    meta: &Meta,
    principal: &Principal,
    groups: &[Arc<str>],
) -> Result<HeaderMap, Rejection> {
    let kubernetes = kind == RouteKind::Kubernetes;
    let (cookies, host) = match kind {
        RouteKind::Dashboard | RouteKind::Http => (cookie::for_upstream(&received), meta.host_line.as_ref()),
        RouteKind::Webhook => (None, meta.host_line.as_ref()),
        RouteKind::Kubernetes => (None, None),
    };
    let mut headers = headers::outbound(kind, received, further, host);
    if let Some(cookies) = cookies {
        headers.insert(header::COOKIE, cookies);
    }
    if !matches!(lifetime, Lifetime::Upgrade(_)) {
        // Without an upgrade these mean nothing, and one of them may carry a token.
        for name in [
            header::SEC_WEBSOCKET_PROTOCOL,
            header::SEC_WEBSOCKET_KEY,
            header::SEC_WEBSOCKET_VERSION,
            header::SEC_WEBSOCKET_EXTENSIONS,
        ] {
            headers.remove(name);
        }
    }
    if meta.accepts_trailers && kind == RouteKind::Http {
        // Servers of gRPC's core library refuse a call without it. Connections of HTTP/1.1 remove it again.
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    describe_client(&mut headers, kind, meta);
    if let Some(trace) = &meta.trace {
        trace.write(&mut headers);
    }
    if !kubernetes {
        describe_principal(&mut headers, principal, groups)?;
        return Ok(headers);
    }
    impersonation::assume(principal, groups, &mut headers)?;
    assert_impersonated(&headers)?;
    Ok(headers)
}

fn uri(target: PathAndQuery) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(target);
    // A path alone is always a valid URI.
    Uri::from_parts(parts).unwrap_or_default()
}

/// Adds where the request came from, as Doorward knows it.
fn describe_client(headers: &mut HeaderMap, kind: RouteKind, meta: &Meta) {
    headers.insert(if kind == RouteKind::Kubernetes { AUDIT_ID } else { headers::REQUEST_ID }, meta.id_line.clone());
    if let Some(client) = &meta.client_line {
        headers.insert(FORWARDED_FOR, client.clone());
    }
    if kind != RouteKind::Kubernetes {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(if meta.secure { "https" } else { "http" }));
        if let Some(host) = &meta.host_line {
            headers.insert(FORWARDED_HOST, host.clone());
        }
    }
}

/// Adds `X-Forwarded-User`, `-Groups`, `-Email`, `-Actor` and `-Client` for upstreams other than Kubernetes, with one
/// header line per group. An anonymous request gets none of them, and an upstream may rely on that.
fn describe_principal(headers: &mut HeaderMap, principal: &Principal, groups: &[Arc<str>]) -> Result<(), Rejection> {
    if principal.is_anonymous() {
        return Ok(());
    }
    let mut append = |name: HeaderName, text: &str| {
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            headers.append(name, value);
        }
    };
    append(FORWARDED_USER, &principal.username);
    for group in groups {
        append(FORWARDED_GROUPS, group);
    }
    if let Some(email) = &principal.email {
        append(FORWARDED_EMAIL, email);
    }
    let actor = principal.actor.as_ref().map(|actor| &*actor.subject);
    for (name, what, text) in
        [(FORWARDED_ACTOR, "actor", actor), (FORWARDED_CLIENT, "client", principal.client.as_deref())]
    {
        if let Some(text) = text {
            headers.insert(name, name_line(what, text)?);
        }
    }
    Ok(())
}

/// The name of an actor or a client as a header value. A name that HTTP would change is refused: without it, the
/// request would look like one of the person alone.
pub(super) fn name_line(what: &str, text: &str) -> Result<HeaderValue, Rejection> {
    let value = Some(text).filter(|text| text.trim() == *text).map(str::as_bytes).map(HeaderValue::from_bytes);
    value.and_then(Result::ok).ok_or_else(|| {
        let detail = format!("the {what} that your credential names cannot be written as a header");
        Rejection::new(Reason::IdentityRefused, detail).fix("ask whoever runs the identity provider for another name")
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        authn::{Actor, Scheme},
        request::sanitize::{Arrival, CleanRequest, sanitize},
    };

    /// A request whose client claims an actor and a client of its own.
    fn forged() -> CleanRequest<()> {
        let request = Request::post("/mcp")
            .header("host", "door.test")
            .header("x-forwarded-actor", "nobody")
            .header("x-forwarded-client", "nobody")
            .body(())
            .unwrap();
        sanitize(request, Arrival::of_tests(), Uuid::nil(), |host| Some(host.into())).unwrap()
    }

    fn sent(kind: RouteKind, principal: &Principal) -> Result<HeaderMap, Rejection> {
        let clean = forged();
        headers_for(kind, &[], clean.headers().clone(), Lifetime::Short, clean.meta(), principal, &[])
    }

    fn alice(client: Option<&str>, actor: Option<&str>) -> Principal {
        Principal {
            client: client.map(Into::into),
            actor: actor.map(|subject| Actor { issuer: None, subject: subject.into(), client: None }),
            ..Principal::new(Scheme::Bearer, "corp", "7", "alice")
        }
    }

    #[test]
    fn an_upstream_learns_actor_and_client_from_doorward_alone() {
        for kind in [RouteKind::Http, RouteKind::Dashboard] {
            for (client, actor) in
                [(None, None), (Some("assistant"), None), (Some("cli"), Some("worker")), (Some("J\u{fc}rgen"), None)]
            {
                let headers = sent(kind, &alice(client, actor)).unwrap();
                let all = |name: &str| headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
                let told = |text: Option<&'static str>| text.map(str::as_bytes).into_iter().collect::<Vec<_>>();
                assert_eq!(all("x-forwarded-user"), [b"alice"], "{kind:?}");
                assert_eq!(
                    (all("x-forwarded-client"), all("x-forwarded-actor")),
                    (told(client), told(actor)),
                    "{kind:?}"
                );
            }
        }
        assert!(!sent(RouteKind::Http, &Principal::anonymous()).unwrap().contains_key("x-forwarded-client"));
    }

    /// Without the name, the request would look like one of the person alone; trimmed, like one of another agent.
    #[test]
    fn an_agent_whose_name_fits_no_header_is_refused_and_not_omitted() {
        for name in ["wor\nker", " worker", "worker\t", "wor\u{7f}ker"] {
            for principal in [alice(None, Some(name)), alice(Some(name), None)] {
                let refused = sent(RouteKind::Http, &principal).unwrap_err();
                assert_eq!(refused.reason(), Reason::IdentityRefused, "{name:?}");
            }
        }
    }
}
