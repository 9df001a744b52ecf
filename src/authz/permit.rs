//! The proof that a request was decided, and by what.

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
    tekton::Document,
    upstream::{
        Lifetime,
        streams::{Stream, StreamKind, VouchedToken},
        upgrade::UpgradeProtocol,
    },
};

/// A request that the policy allows. It owns the request, so that it cannot carry another, and is consumed by what is
/// done with it.
///
/// It can be passed on, but not made except by [`authorize`]: its field is private.
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
/// It can be used once, but not twice: it is moved.
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

/// What the policy said, allowed or not.
#[derive(Debug)]
pub struct Decided {
    pub decision: Decision,
    pub permit: Result<Permit, Rejection>,
}

/// Asks the policy.
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

    /// Whether a record of the decision must be durable before the request is forwarded: writes, long-lived streams, break-glass.
    pub fn is_recorded_first(&self) -> bool {
        self.is_write() || self.lifetime() != Lifetime::Short || self.principal().scheme == Scheme::BreakGlass
    }

    fn is_write(&self) -> bool {
        match self.authenticated.kubernetes() {
            Some(attributes) => attributes.is_write(),
            None => !self.authenticated.request().method().is_safe(),
        }
    }

    /// Whether the answer is of something in a cluster, be it a log that the Dashboard's back end fetches from elsewhere.
    pub(crate) fn is_of_kubernetes(&self) -> bool {
        self.authenticated.kubernetes().is_some()
    }

    /// Whether the answer may be of another server, behind the API server.
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

    /// The body of a request that changes a run of Tekton.
    pub(crate) fn take_document(&mut self) -> Option<Box<Document>> {
        self.authenticated.take_document()
    }

    /// What is sent, less what describes it.
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

    /// What the registry of streams keeps of a request that was decided at `now` and goes under these groups, if it is or
    /// becomes a stream.
    pub(crate) fn stream(&self, kind: StreamKind, groups: Arc<[Arc<str>]>, now: Moment) -> Stream {
        let max = self.route().max_stream;
        let stream = Stream::new(kind, Arc::clone(self.principal()), groups, self.authenticated.keep(), max, now);
        Stream { token: self.authenticated.token().map(|token| VouchedToken::new(Arc::clone(token), now)), ..stream }
    }
}
