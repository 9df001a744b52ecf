//! The proof that a request was allowed, and by which decision.

use std::sync::Arc;

use http::{HeaderMap, Method, uri::PathAndQuery};
use hyper::upgrade::OnUpgrade;

use super::{Decision, Policy, RequestView};
use crate::{
    authn::{Authenticated, Principal, Scheme},
    body::RequestBody,
    clock::{Moment, Timestamp},
    error::Rejection,
    request::{route::Route, sanitize::Meta},
    streams::{Stream, StreamKind, VouchedToken},
    tekton::Document,
    upstream::{Lifetime, upgrade::UpgradeProtocol},
};

/// Proof that the policy allows a request. It owns the request, so it cannot be used for another one, and using it
/// consumes it.
///
/// It can be passed on, but only [`authorize`] can make it: its field is private.
///
/// ```
/// use doorward::{authn::Authenticated, authz::Permit};
/// fn pass(_: Authenticated, permit: Permit) -> Permit {
///     permit
/// }
/// ```
///
/// ```compile_fail,E0451
/// use doorward::{authn::Authenticated, authz::Permit};
/// fn forge(authenticated: Authenticated) -> Permit {
///     Permit { authenticated }
/// }
/// ```
///
/// It can be used once but not twice, because it is moved.
///
/// ```
/// use doorward::{authz::Permit, request::outbound::Outbound};
/// fn once(permit: Permit) {
///     let _ = Outbound::assume(permit, &[]);
/// }
/// ```
///
/// ```compile_fail,E0382
/// use doorward::{authz::Permit, request::outbound::Outbound};
/// fn twice(permit: Permit) {
///     let _ = Outbound::assume(permit, &[]);
///     let _ = Outbound::assume(permit, &[]);
/// }
/// ```
#[derive(Debug)]
pub struct Permit {
    authenticated: Authenticated,
}

/// A decision, with the permit or the refusal that follows from it.
#[derive(Debug)]
pub struct Decided {
    pub decision: Decision,
    pub permit: Result<Permit, Rejection>,
}

/// Decides a request by the policy.
pub fn authorize(policy: &Policy, authenticated: Authenticated, now: Timestamp) -> Decided {
    let decision = policy.decide(authenticated.principal(), &authenticated.view(now));
    let permit = match decision.rejection() {
        None => Ok(Permit { authenticated }),
        Some(rejection) => Err(rejection),
    };
    Decided { decision, permit }
}

impl Permit {
    pub fn principal(&self) -> &Arc<Principal> {
        self.authenticated.principal()
    }

    pub fn view(&self, now: Timestamp) -> RequestView<'_> {
        self.authenticated.view(now)
    }

    /// Whether a record of the decision must be durable before the request is forwarded, or stored to be forwarded
    /// later: writes, long-lived streams and break-glass.
    pub fn is_recorded_first(&self) -> bool {
        self.is_write() || self.lifetime() != Lifetime::Short || self.principal().scheme == Scheme::BreakGlass
    }

    fn is_write(&self) -> bool {
        match self.authenticated.kubernetes() {
            Some(attributes) => attributes.is_write(),
            None => !self.authenticated.request().method().is_safe(),
        }
    }

    /// Whether the response comes from a cluster, including logs that the Dashboard's back end fetches from elsewhere.
    pub(crate) fn is_of_kubernetes(&self) -> bool {
        self.authenticated.kubernetes().is_some()
    }

    /// Whether the response may come from another server behind the API server.
    pub(crate) fn is_proxied(&self) -> bool {
        self.authenticated.kubernetes().is_some_and(|attributes| attributes.is_proxy())
    }

    pub fn lifetime(&self) -> Lifetime {
        match self.authenticated.request().meta().upgrade {
            Some(protocol) => Lifetime::Upgrade(protocol),
            None if self.authenticated.kubernetes().is_some_and(|attributes| attributes.is_long_running()) => {
                Lifetime::Long
            }
            None => Lifetime::Short,
        }
    }

    pub fn route(&self) -> &Arc<Route> {
        self.authenticated.route()
    }

    pub(crate) fn meta(&self) -> &Meta {
        self.authenticated.request().meta()
    }

    pub(crate) fn method(&self) -> &Method {
        self.authenticated.request().method()
    }

    pub(crate) fn host(&self) -> &Arc<str> {
        self.authenticated.request().host()
    }

    pub(crate) fn target(&self) -> &PathAndQuery {
        self.authenticated.request().target()
    }

    /// Takes the body of a request that changes a Tekton run.
    pub(crate) fn take_document(&mut self) -> Option<Box<Document>> {
        self.authenticated.take_document()
    }

    /// Takes the headers, the body and the upgrade of the request.
    pub(crate) fn take_parts(&mut self) -> (HeaderMap, RequestBody, Option<OnUpgrade>) {
        self.authenticated.take_parts()
    }

    pub(crate) fn stream_kind(&self) -> StreamKind {
        match (self.lifetime(), self.authenticated.kubernetes()) {
            (Lifetime::Upgrade(UpgradeProtocol::WebSocket), _) => StreamKind::WebSocket,
            (Lifetime::Upgrade(UpgradeProtocol::Spdy31), _) => StreamKind::Spdy,
            (_, Some(attributes)) if attributes.verb == "watch" => StreamKind::Watch,
            (_, Some(attributes)) if attributes.subresource == "log" => StreamKind::Log,
            _ => StreamKind::Download,
        }
    }

    /// Returns the entry in the stream registry for a request that was decided at `now` and is sent under these groups,
    /// if it is or becomes a stream.
    pub(crate) fn stream(&self, kind: StreamKind, groups: Arc<[Arc<str>]>, now: Moment) -> Stream {
        let max = self.route().max_stream;
        let stream = Stream::new(kind, Arc::clone(self.principal()), groups, self.authenticated.keep(), max, now);
        Stream { token: self.authenticated.token().map(|token| VouchedToken::new(Arc::clone(token), now)), ..stream }
    }
}
