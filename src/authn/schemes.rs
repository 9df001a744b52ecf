//! Authenticates the caller by the first credential that is present, or refuses: a bearer token or session handle in
//! `Authorization` first, then the other schemes of the route in their order.

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Response, header};
use tokio::runtime::Handle;

use super::{
    Authenticated, Presented, Principal, Scheme,
    bearer::{self, BearerToken},
    break_glass::{self, BreakGlass},
};
use crate::{
    audit,
    body::{ClientBody, RequestBody, Trailers},
    clock::{Clock, Timestamp},
    config::{
        raw::{Limits, RouteKind},
        resolver::Secret,
    },
    downstream::{ClientCertificate, Connection},
    error::{PresentedIdentity, Reason, Rejection},
    issuers::Issuers,
    kubernetes::Attributes,
    oidc::Login,
    request::{respond::see_other, route::Route, sanitize::CleanRequest},
    sessions::{self, CookieRequest, Origin, Sessions, access_revoked, cookie, csrf},
    store::Revocations,
    upstream::buffered::{self, BufferLimits, ByteBudget},
    webhooks::{self, Replay, Webhook},
};

/// What the schemes of one generation need.
#[derive(Clone, Copy, Debug)]
pub struct Authenticator<'a> {
    pub issuers: &'a Issuers,
    pub sessions: &'a Sessions,
    pub login: &'a Login,
    pub break_glass: Option<&'a BreakGlass>,
    pub anonymous: &'a Arc<Principal>,
    pub revocations: &'a Revocations,
    /// How old the mirror of the revocations may be before bearer tokens are refused.
    pub max_mirror_age: Duration,
    pub replay: &'a Replay,
    pub webhooks: &'a webhooks::WebhookMetrics,
    pub limits: &'a Limits,
    pub budget: &'a ByteBudget,
    pub clock: &'a Clock,
    /// The control runtime, for work that several requests wait for.
    pub control: &'a Handle,
}

/// The result of authentication.
#[derive(Debug)]
pub enum Authentication {
    Known(Authenticated, Option<webhooks::Acceptance>),
    /// A response of Doorward itself: a redirect to the login, or the answer to a sender that tests its webhook.
    Respond(Response<Bytes>),
}

impl Authenticator<'_> {
    /// Finds out who sent `request`, and writes what it learns to `record` along the way.
    pub async fn authenticate(
        &self,
        mut request: CleanRequest<ClientBody>,
        route: &Arc<Route>,
        connection: &Connection,
        record: &mut audit::Record,
    ) -> Result<Authentication, Rejection> {
        if matches!(route.kind, RouteKind::Dashboard | RouteKind::Kubernetes)
            && csrf::is_preflight(request.method(), request.headers())
        {
            return Err(Rejection::new(Reason::OriginRefused, "pages of other origins cannot use this host"));
        }
        let schemes = &route.schemes;
        if (schemes.contains(&Scheme::Bearer) || self.may_hold_handle(&request, route))
            && let Some((principal, token)) = self.bearer(&mut request, route).await?
        {
            self.check_login(&principal, route, record)?;
            return known(streamed(request, route)?, route, principal, token, record);
        }
        for scheme in schemes {
            let presented = match scheme {
                Scheme::Bearer => continue,
                // Boxed, as are all uncommon paths: a future is as large as its largest path, and is moved.
                Scheme::Session => Box::pin(self.session(&request, route)).await,
                Scheme::Webhook => match &route.webhook {
                    Some(webhook) => return Box::pin(self.webhook(request, route, webhook, connection, record)).await,
                    None => continue,
                },
                Scheme::BreakGlass => self.break_glass(&request, connection),
                Scheme::Anonymous => Presented::Valid(Arc::clone(self.anonymous)),
            };
            let principal = match presented {
                Presented::Absent => continue,
                Presented::Valid(principal) => principal,
                Presented::Invalid(rejection) if rejection.reason() == Reason::SessionExpired => {
                    return self.challenge(&request, rejection);
                }
                Presented::Invalid(rejection) => return Err(rejection),
            };
            self.check_login(&principal, route, record)?;
            // Before the check, so that the record of a refusal names the principal too.
            record.principal = Some(Arc::clone(&principal));
            check_revoked(self.revocations, &principal)?;
            return known(streamed(request, route)?, route, principal, None, record);
        }
        if schemes.contains(&Scheme::Session) && csrf::is_form_of_another_host(request.method(), request.headers()) {
            let why = "this form was sent by a page of another host, and without a session cookie";
            return Err(Rejection::new(Reason::OriginRefused, why).fix(
                "if you meant to send it, go to the start page and send it from there; signing in does not help",
            ));
        }
        let missing = missing(schemes, request.headers());
        if schemes.contains(&Scheme::Session) {
            let fix = how_to_sign_in(route.kind, request.origin().as_ref());
            return self.challenge(&request, missing.fix(fix));
        }
        Err(match schemes.contains(&Scheme::Bearer) {
            true => missing.fix("send a bearer token in the header `Authorization`"),
            false => missing,
        })
    }

    /// The principal of a token or session handle, and the token itself if its issuer must be asked about it again.
    async fn bearer(
        &self,
        request: &mut CleanRequest<ClientBody>,
        route: &Route,
    ) -> Result<Option<(Arc<Principal>, Option<Arc<Secret>>)>, Rejection> {
        let upgrade = request.meta().upgrade.is_some();
        let (bearers, handles) = (route.schemes.contains(&Scheme::Bearer), route.schemes.contains(&Scheme::Session));
        let (principal, token, protocols) = match bearer::presented(request.headers(), request.query(), upgrade) {
            Presented::Absent => return Ok(None),
            Presented::Valid(token) if handles && sessions::is_handle(&token.token) => {
                let (sessions, client) = (self.sessions, request.meta().client);
                let origin = request.origin().ok_or_else(|| {
                    Rejection::new(Reason::CredentialMalformed, "a session handle is accepted over TLS only")
                        .fix("use https")
                })?;
                let session = Box::pin(sessions.authenticate_handle(&token.token, &origin, client)).await?;
                (Arc::clone(&session.principal), None, token.remaining_protocols)
            }
            // A route that accepts no bearer tokens does not look at them.
            _ if !bearers => return Ok(None),
            Presented::Invalid(rejection) => return Err(rejection),
            Presented::Valid(token) => {
                self.revocations.check_fresh(self.max_mirror_age)?;
                let BearerToken { token, remaining_protocols } = token;
                let principal = self.issuers.authenticate(&token, &route.accepts, self.revocations).await?;
                let asked = route.accepts.ask_about(&token, &principal);
                (principal, asked.then(|| Arc::new(Secret::new(token.as_bytes().to_vec()))), remaining_protocols)
            }
        };
        if let Some(protocols) = protocols {
            request.replace_header(HeaderName::from_static("sec-websocket-protocol"), protocols);
        }
        Ok(Some((principal, token)))
    }

    /// Names in a refusal, for its record, whose token, session handle or session cookie the request carries. It is
    /// refused whoever that is, and nothing else comes of the credential.
    pub async fn named(&self, mut request: CleanRequest<ClientBody>, route: &Route, refusal: Rejection) -> Rejection {
        match self.sender(&mut request, route).await {
            Some(sender) => refusal.with_presented(sender),
            None => refusal,
        }
    }

    async fn sender(&self, request: &mut CleanRequest<ClientBody>, route: &Route) -> Option<PresentedIdentity> {
        if route.schemes.contains(&Scheme::Bearer) || self.may_hold_handle(request, route) {
            match self.bearer(request, route).await {
                Ok(Some((principal, _))) => return Some(PresentedIdentity::of(&principal)),
                Ok(None) => {}
                Err(refused) => return refused.presented().cloned(),
            }
        }
        if !route.schemes.contains(&Scheme::Session) {
            return None;
        }
        let session = self.sessions.held_by(request.headers(), &request.origin()?).await.ok()??;
        Some(PresentedIdentity::of(&session.principal))
    }

    /// The principal of a bearer token that is sent to one of Doorward's own pages, by the first of `routes` (those of
    /// the host) that accepts it. `None` if no route accepts tokens or the request has none. A session handle does not
    /// count as a token.
    pub async fn of_token<'r, B>(
        &self,
        request: &CleanRequest<B>,
        routes: impl Iterator<Item = &'r Arc<Route>>,
    ) -> Result<Option<Arc<Principal>>, Rejection> {
        let mut routes = routes.peekable();
        if routes.peek().is_none() {
            return Ok(None);
        }
        let token = match bearer::presented(request.headers(), request.query(), false) {
            Presented::Absent => return Ok(None),
            Presented::Invalid(rejection) => return Err(rejection),
            Presented::Valid(token) if sessions::is_handle(&token.token) => return Ok(None),
            Presented::Valid(BearerToken { token, .. }) => token,
        };
        self.revocations.check_fresh(self.max_mirror_age)?;
        let (mut tried, mut refusal): (Vec<&Arc<Route>>, Option<Rejection>) = Default::default();
        for route in routes {
            // A route is listed once for each of its paths.
            if tried.iter().any(|known| Arc::ptr_eq(known, route)) {
                continue;
            }
            tried.push(route);
            match self.issuers.authenticate(&token, &route.accepts, self.revocations).await {
                Ok(principal) => return Ok(Some(principal)),
                // Another route may accept it. `IssuerUnknown` says less than the refusal of a route that knows the
                // issuer.
                Err(other) if other.reason() == Reason::IssuerUnknown => refusal = refusal.or(Some(other)),
                Err(other) if other.reason() == Reason::AudienceMismatch => refusal = Some(other),
                Err(bad) => return Err(bad),
            }
        }
        refusal.map_or(Ok(None), Err)
    }

    /// Whether a request may carry the handle of a program's session, which is sent where bearer tokens are.
    fn may_hold_handle<B>(&self, request: &CleanRequest<B>, route: &Route) -> bool {
        let credential = request.headers().contains_key(header::AUTHORIZATION) || request.meta().upgrade.is_some();
        credential && route.schemes.contains(&Scheme::Session)
    }

    /// Whether a request for the API server or the Dashboard carries, besides a cookie, another credential that nobody
    /// has checked. On other routes an application's page may send a token of its own, which is not meant for Doorward.
    fn has_another_credential<B>(&self, request: &CleanRequest<B>, route: &Route) -> bool {
        matches!(route.kind, RouteKind::Kubernetes | RouteKind::Dashboard)
            && self.may_hold_handle(request, route)
            && !matches!(
                bearer::presented(request.headers(), None, request.meta().upgrade.is_some()),
                Presented::Absent
            )
    }

    async fn session(&self, request: &CleanRequest<ClientBody>, route: &Route) -> Presented<Arc<Principal>> {
        if !request.headers().contains_key(header::COOKIE) {
            return Presented::Absent;
        }
        let Some(origin) = request.origin() else { return Presented::Absent };
        // It is not known what a server behind the API server does on a GET, and a link on any page can send one.
        let method = if is_proxied(request, route) { &Method::POST } else { request.method() };
        let cookie = CookieRequest {
            origin: &origin,
            method,
            headers: request.headers(),
            upgrade: request.meta().upgrade.is_some(),
            address: request.meta().client,
        };
        let presented = self.sessions.authenticate(cookie).await;
        if !matches!(presented, Presented::Absent) && self.has_another_credential(request, route) {
            return Presented::Invalid(
                Rejection::new(
                    Reason::CredentialAmbiguous,
                    "the request carries a session cookie and another credential, and this route takes sessions alone",
                )
                .fix("send the cookie without `Authorization`, and no token among WebSocket subprotocols"),
            );
        }
        presented.map(|session| Arc::clone(&session.principal))
    }

    /// The client certificate that was presented for the host of this request.
    fn certificate<'c, B>(
        &self,
        request: &CleanRequest<B>,
        connection: &'c Connection,
    ) -> Option<&'c ClientCertificate> {
        connection.certificate_for(request.host(), request.meta().proxied, self.clock.now())
    }

    fn break_glass<B>(&self, request: &CleanRequest<B>, connection: &Connection) -> Presented<Arc<Principal>> {
        let der = self.certificate(request, connection).map(|certificate| &*certificate.der);
        match self.break_glass {
            Some(break_glass) => break_glass.present(der, self.clock.now()).map(Arc::new),
            None if der.is_some() => Presented::Invalid(break_glass::not_known()),
            None => Presented::Absent,
        }
    }

    /// Checks the issuer of a session's login. A session is valid on all routes of its host, but each route says at
    /// which issuers people may have signed in.
    fn check_login(
        &self,
        principal: &Arc<Principal>,
        route: &Route,
        record: &mut audit::Record,
    ) -> Result<(), Rejection> {
        if principal.scheme != Scheme::Session || route.accepts.takes_logins_at(&principal.issuer) {
            return Ok(());
        }
        // The caller's identity is certain, so the refusal is recorded under it.
        record.principal = Some(Arc::clone(principal));
        let logins = self.login.issuers().map(|issuer| &**issuer);
        let taken: Vec<&str> = logins.filter(|issuer| route.accepts.takes_logins_at(issuer)).collect();
        let why = format!("you signed in at `{}`, which this route does not accept", principal.issuer);
        Err(Rejection::new(Reason::IdentityRefused, why).fix(format!("sign in at `{}`", taken.join("` or `"))))
    }

    /// Redirects a page navigation to the login; a program gets the refusal, which it can read.
    fn challenge<B>(&self, request: &CleanRequest<B>, rejection: Rejection) -> Result<Authentication, Rejection> {
        let location = request.origin().and_then(|origin| {
            self.login.challenge(&origin, request.method(), request.path(), request.query(), request.headers())
        });
        location.map_or(Err(rejection), |location| Ok(Authentication::Respond(see_other(&location))))
    }

    async fn webhook(
        &self,
        request: CleanRequest<ClientBody>,
        route: &Arc<Route>,
        webhook: &Arc<Webhook>,
        connection: &Connection,
        record: &mut audit::Record,
    ) -> Result<Authentication, Rejection> {
        let counted = |rejection: Rejection| {
            self.webhooks.refused(webhook, rejection.reason());
            rejection
        };
        webhook.check_certificate(self.certificate(&request, connection)).map_err(counted)?;
        if webhook.is_unsigned_ping(request.method(), request.headers()) {
            return Ok(Authentication::Respond(Response::new(Bytes::from_static(b"pong\n"))));
        }
        let length = http_body::Body::size_hint(request.body()).exact();
        let expected =
            webhook.precheck(request.method(), request.headers(), request.query(), length).map_err(counted)?;
        let max = route.max_in_memory().map_or(expected.max_body, |max| max.min(expected.max_body));
        let (share, client) = (request.meta().unproven(), request.meta().client_network());
        let (request, body) = request.take_body();
        let limits = BufferLimits::whole(self.limits, max);
        let body = buffered::read_unproven(body, limits, self.budget, share).await.map_err(counted)?;
        record.bytes_in = body.bytes().len() as u64;
        // Read only now, because a secret may have expired while the body was received.
        let now = self.clock.now();
        let delivery = webhook.prove(expected, body.bytes(), client, self.control, now).await.map_err(|refused| {
            // A refused delivery that is genuine is recorded with its sender.
            if let Some(webhooks::Genuine { facts, body_sha256 }) = refused.genuine {
                record.body_digest = Some(body_sha256);
                record.delivery = Some(facts);
            }
            counted(refused.rejection)
        })?;
        let body = body.proven();
        record.body_digest = Some(delivery.body_sha256);
        record.delivery = Some(Arc::clone(&delivery.facts));
        self.webhooks.genuine(webhook, &delivery);
        let principal = Arc::new(webhook.principal(&delivery).map_err(|rejection| webhook.heard(rejection))?);
        record.principal = Some(Arc::clone(&principal));
        check_revoked(self.revocations, &principal).map_err(|rejection| webhook.heard(rejection))?;
        if delivery.ping {
            let answer = delivery.challenge.as_deref().unwrap_or("pong\n");
            return Ok(Authentication::Respond(Response::new(Bytes::copy_from_slice(answer.as_bytes()))));
        }
        let acceptance = match webhook.hold() {
            Some(settings) => webhooks::Acceptance::Held(delivery.replay, settings),
            None => {
                // Read again, because verifying an SNS message includes fetching its certificate.
                let reservation = self.replay.reserve(&delivery.replay, webhook.lease(), self.clock.now()).await?;
                webhooks::Acceptance::Reserved { reservation, is_form: delivery.is_form }
            }
        };
        let mut request = request.with_body(RequestBody::Buffered(body));
        if webhook.has_secret_in_query() {
            request.drop_query();
        }
        let authenticated = Authenticated::new(request, Arc::clone(route), principal)?;
        Ok(Authentication::Known(authenticated, Some(acceptance)))
    }
}

/// Whether a request is passed on by the API server to another server behind it.
fn is_proxied<B>(request: &CleanRequest<B>, route: &Route) -> bool {
    matches!(route.kind, RouteKind::Kubernetes | RouteKind::Dashboard)
        && request.path().contains("/proxy")
        && Attributes::parse(request.method(), request.path(), request.query())
            .is_ok_and(|attributes| attributes.is_proxy())
}

/// A delivery that was stored after its signature had been verified on arrival. Whether it may still be forwarded is
/// for the policy to decide.
pub(crate) fn stored_delivery(
    request: CleanRequest<RequestBody>,
    route: &Arc<Route>,
    facts: &Arc<webhooks::Facts>,
    revocations: &Revocations,
    record: &mut audit::Record,
) -> Result<Authenticated, Rejection> {
    let principal = Arc::new(webhooks::principal(facts, Timestamp::MAX)?);
    record.principal = Some(Arc::clone(&principal));
    check_revoked(revocations, &principal)?;
    Authenticated::new(request, Arc::clone(route), principal)
}

/// Checks revocations for schemes that have not done so themselves, against the mirror however old that is, once it was
/// read. Sessions and deliveries need the store anyway, and break-glass may be needed on a day without it.
fn check_revoked(revocations: &Revocations, principal: &Principal) -> Result<(), Rejection> {
    if principal.scheme != Scheme::Anonymous {
        revocations.check_read()?;
    }
    if revocations.is_revoked(principal).is_none() {
        return Ok(());
    }
    Err(match principal.scheme {
        Scheme::Webhook => {
            Rejection::new(Reason::TokenRevoked, "the deliveries of this sender or repository were revoked")
        }
        _ => access_revoked(),
    })
}

fn known(
    request: CleanRequest<RequestBody>,
    route: &Arc<Route>,
    principal: Arc<Principal>,
    token: Option<Arc<Secret>>,
    record: &mut audit::Record,
) -> Result<Authentication, Rejection> {
    record.principal = Some(Arc::clone(&principal));
    Ok(Authentication::Known(Authenticated::new(request, Arc::clone(route), principal)?.with_token(token), None))
}

/// The request with its body streamed.
fn streamed(request: CleanRequest<ClientBody>, route: &Route) -> Result<CleanRequest<RequestBody>, Rejection> {
    let trailers =
        if route.kind == RouteKind::Http && request.meta().accepts_trailers { Trailers::Pass } else { Trailers::Drop };
    let (request, body) = request.take_body();
    let Some(max) = route.max_body else { return Ok(request.with_body(RequestBody::streaming(body, trailers))) };
    if http_body::Body::size_hint(&body).lower() > max {
        return Err(Rejection::body_too_large(max));
    }
    Ok(request.with_body(RequestBody::streaming(body, trailers).limited(max)))
}

/// The advice for people who reach a host in a way that allows no login.
pub const USE_HTTPS: &str = "use the `https://` address; clear text works on this machine only, for development; if \
                             you did use it, the proxy in front must send `X-Forwarded-Proto` and be listed in \
                             `trusted_proxies`: `doorward doctor --only origin` says more";

/// The advice for signing in. Clients of an API server are kubectl, tkn and the like, which have no browser.
fn how_to_sign_in(kind: RouteKind, origin: Option<&Origin>) -> Cow<'static, str> {
    match origin {
        Some(origin) if kind == RouteKind::Kubernetes => format!("run `doorward login {origin}`").into(),
        Some(_) => "sign in with a browser".into(),
        None => USE_HTTPS.into(),
    }
}

/// The refusal of a request without a credential that its route accepts. It names a credential that was sent and is not
/// accepted here: the sender would otherwise search for the place where it was lost.
fn missing(schemes: &[Scheme], headers: &HeaderMap) -> Rejection {
    let has_session = || !matches!(cookie::find(headers, cookie::SESSION), Ok(None));
    let what = if headers.contains_key(header::AUTHORIZATION) {
        "this route does not accept the `Authorization` of the request; it"
    } else if !schemes.contains(&Scheme::Session) && has_session() {
        "this route does not accept the session of a browser; it"
    } else {
        "the request has no credential; this route"
    };
    Rejection::new(Reason::CredentialMissing, format!("{what} accepts {}", wanted(schemes)))
}

/// The credentials that a route accepts, in words: `a signed-in browser or a bearer token`.
pub fn wanted(schemes: &[Scheme]) -> String {
    let words = schemes.iter().filter_map(|scheme| match scheme {
        Scheme::Session => Some("a signed-in browser"),
        Scheme::Bearer => Some("a bearer token"),
        Scheme::Webhook => Some("a signed delivery"),
        Scheme::BreakGlass => Some("a client certificate"),
        Scheme::Anonymous => None,
    });
    words.collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::store::{Embedded, Store};

    /// A start without the store, or the first moments after it, let in callers that had been revoked.
    #[tokio::test]
    async fn no_revocable_caller_is_admitted_before_revocations_were_read() {
        let folder = tempfile::tempdir().unwrap();
        let store: Store = Arc::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
        let revocations = Revocations::new(store, Clock::default());
        let of = |scheme| Principal::new(scheme, "issuer", "subject", "username");
        let outcomes = || {
            let reason = |checked: Result<(), Rejection>| checked.err().map(|rejection| rejection.reason());
            [
                reason(check_revoked(&revocations, &of(Scheme::BreakGlass))),
                reason(check_revoked(&revocations, &of(Scheme::Webhook))),
                reason(check_revoked(&revocations, &of(Scheme::Anonymous))),
            ]
        };
        let unknown = Some(Reason::StoreUnavailable);
        assert_eq!(outcomes(), [unknown, unknown, None]);
        revocations.refresh().await.unwrap();
        assert_eq!(outcomes(), [None, None, None]);
    }

    /// A bot whose token was valid, but not accepted there, was told that its request had none.
    #[test]
    fn a_refusal_names_the_credential_that_the_route_does_not_accept() {
        let token = (header::AUTHORIZATION, "Bearer x");
        let cookie = (header::COOKIE, "a=b; __Host-doorward=x");
        let other_cookie = (header::COOKIE, "a=b");
        for (schemes, sent, said) in [
            (
                Scheme::Session,
                Some(&token),
                "does not accept the `Authorization` of the request; it accepts a signed-in",
            ),
            (Scheme::Session, None, "the request has no credential; this route accepts a signed-in browser"),
            (
                Scheme::BreakGlass,
                Some(&token),
                "does not accept the `Authorization` of the request; it accepts a client",
            ),
            (Scheme::Bearer, Some(&cookie), "does not accept the session of a browser; it accepts a bearer token"),
            (Scheme::Bearer, Some(&other_cookie), "the request has no credential; this route accepts a bearer token"),
        ] {
            let line = |(name, value): &(HeaderName, &'static str)| (name.clone(), HeaderValue::from_static(value));
            let refused = missing(&[schemes], &sent.into_iter().map(line).collect());
            assert_eq!(refused.reason(), Reason::CredentialMissing);
            assert!(refused.detail().contains(said), "{schemes:?} {sent:?}: {}", refused.detail());
        }
    }

    /// The page advised to sign in, and only after that it said that this needs `https`.
    #[test]
    fn nobody_is_sent_to_a_login_from_an_address_at_which_none_is_possible() {
        let (secure, clear) = (Origin::https("a.test"), Origin::loopback("a.test"));
        for kind in [RouteKind::Http, RouteKind::Kubernetes] {
            assert_eq!(how_to_sign_in(kind, clear.as_ref()), USE_HTTPS, "{kind:?}");
        }
        assert_eq!(how_to_sign_in(RouteKind::Http, secure.as_ref()), "sign in with a browser");
        assert_eq!(how_to_sign_in(RouteKind::Kubernetes, secure.as_ref()), "run `doorward login https://a.test`");
    }
}
