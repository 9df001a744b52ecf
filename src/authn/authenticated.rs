use std::sync::Arc;

use http::HeaderMap;
use hyper::upgrade::OnUpgrade;

use super::Principal;
use crate::{
    authz::RequestView,
    body::RequestBody,
    clock::Timestamp,
    config::raw::RouteKind,
    error::{Reason, Rejection},
    kubernetes::Attributes,
    request::{route::Route, sanitize::CleanRequest},
    upstream::streams::StreamRequest,
};

/// A request whose caller is known. Made by the schemes alone; what the authorizer takes.
#[derive(Debug)]
pub struct Authenticated {
    request: CleanRequest<RequestBody>,
    route: Arc<Route>,
    principal: Arc<Principal>,
    kubernetes: Option<Arc<Attributes>>,
}

impl Authenticated {
    pub(super) fn new(
        request: CleanRequest<RequestBody>,
        route: Arc<Route>,
        principal: Arc<Principal>,
    ) -> Result<Self, Rejection> {
        let kubernetes = match route.kind {
            RouteKind::Kubernetes => {
                let attributes =
                    Attributes::parse(request.method(), request.path(), request.query()).map_err(|error| {
                        Rejection::new(
                            Reason::BadRequest,
                            format!("the request is no clear one to Kubernetes: {error}"),
                        )
                    })?;
                if request.meta().upgrade.is_some() && !attributes.is_long_running() {
                    return Err(Rejection::new(
                        Reason::UpgradeRefused,
                        "only exec, attach, port-forward, watches and followed logs can be upgraded",
                    ));
                }
                Some(Arc::new(attributes))
            }
            _ => None,
        };
        Ok(Self { request, route, principal, kubernetes })
    }

    pub fn request(&self) -> &CleanRequest<RequestBody> {
        &self.request
    }

    pub fn route(&self) -> &Arc<Route> {
        &self.route
    }

    pub fn principal(&self) -> &Arc<Principal> {
        &self.principal
    }

    /// What the request asks of Kubernetes, if it goes there.
    pub fn kubernetes(&self) -> Option<&Arc<Attributes>> {
        self.kubernetes.as_ref()
    }

    /// The request as rules see it.
    pub fn view(&self, now: Timestamp) -> RequestView<'_> {
        let meta = self.request.meta();
        RequestView {
            route: &self.route.name,
            kind: self.route.kind,
            host: self.request.host(),
            path: self.request.path(),
            method: self.request.method(),
            upgrade: meta.upgrade.is_some(),
            address: meta.client,
            event_listener: self.route.event_listener.as_deref(),
            kubernetes: self.kubernetes.as_deref(),
            delivery: self.principal.delivery.as_deref(),
            now,
        }
    }

    /// The request as a stream keeps it.
    pub(crate) fn keep(&self) -> StreamRequest {
        let meta = self.request.meta();
        StreamRequest {
            route: Arc::clone(&self.route.name),
            kind: self.route.kind,
            host: Arc::clone(self.request.host()),
            target: self.request.target().clone(),
            method: self.request.method().clone(),
            upgrade: meta.upgrade.is_some(),
            address: meta.client,
            event_listener: self.route.event_listener.clone(),
            kubernetes: self.kubernetes.clone(),
        }
    }

    pub(crate) fn take_parts(&mut self) -> (HeaderMap, RequestBody, Option<OnUpgrade>) {
        self.request.take_parts()
    }
}
