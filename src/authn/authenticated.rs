//! A request whose caller is known: the input of `authz::authorize`. Also reads the bodies that rules look at.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, header};
use hyper::upgrade::OnUpgrade;

use super::{Principal, Scheme};
use crate::{
    audit,
    authz::{Policy, RequestView},
    body::RequestBody,
    clock::Timestamp,
    config::{
        raw::{self, RouteKind},
        resolver::Secret,
    },
    error::{Reason, Rejection},
    kubernetes::Attributes,
    request::{route::Route, sanitize::CleanRequest},
    streams::StreamRequest,
    tekton::{Document, MAX_BODY, Run, RunKind, RunType, dashboard::Page, template},
    upstream::buffered::{self, BufferLimits, ByteBudget, Share},
    webhooks,
};

/// The largest body of a call to an EventListener, unless the route says otherwise.
const MAX_CALL: usize = 10 << 20;

/// A request whose caller is known. Only `authn::schemes` makes one.
#[derive(Debug)]
pub struct Authenticated {
    request: CleanRequest<RequestBody>,
    route: Arc<Route>,
    principal: Arc<Principal>,
    /// The bearer token, kept only if its issuer must be asked about it again while a stream lasts (introspection,
    /// TokenReview).
    token: Option<Arc<Secret>>,
    kubernetes: Option<Arc<Attributes>>,
    /// The part of a dashboard's back end that the request is for.
    page: Option<Page>,
    /// The body of a request that changes a Tekton run, once it has been read.
    document: Option<Box<Document>>,
}

impl Authenticated {
    pub(super) fn new(
        request: CleanRequest<RequestBody>,
        route: Arc<Route>,
        principal: Arc<Principal>,
    ) -> Result<Self, Rejection> {
        let mut page = None;
        let kubernetes = match route.kind {
            RouteKind::Dashboard => {
                let page = page.insert(page_of(&request, &route)?);
                page.attributes(request.path()).map(Arc::new)
            }
            RouteKind::Kubernetes => {
                let types = request.headers().get_all(header::CONTENT_TYPE).iter().map(HeaderValue::as_bytes);
                let attributes = Attributes::parse(request.method(), request.path(), request.query())?.sent_as(types);
                if request.meta().upgrade.is_some() && !attributes.is_upgradable() {
                    return Err(Rejection::new(
                        Reason::UpgradeRefused,
                        "only exec, attach, port-forward, watches and logs can be upgraded",
                    ));
                }
                Some(Arc::new(attributes))
            }
            _ => None,
        };
        Ok(Self { request, route, principal, token: None, kubernetes, page, document: None })
    }

    /// Attaches the token, for as long as the request or its stream lasts.
    #[must_use]
    pub(super) fn with_token(self, token: Option<Arc<Secret>>) -> Self {
        Self { token, ..self }
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

    pub(crate) fn token(&self) -> Option<&Arc<Secret>> {
        self.token.as_ref()
    }

    /// What the request asks of Kubernetes, if that is where it goes.
    pub fn kubernetes(&self) -> Option<&Arc<Attributes>> {
        self.kubernetes.as_ref()
    }

    /// The part of a dashboard's back end that the request is for.
    pub(crate) fn page(&self) -> Option<&Page> {
        self.page.as_ref()
    }

    /// Reads the body of a request that changes a Tekton run, which rules look at. Of the run's parameters and labels,
    /// only those that `policy` names are kept. The record gets the digest of the body as it was received, not as it is
    /// sent.
    pub(crate) async fn read_run(
        self,
        kind: RunKind,
        limits: &raw::Limits,
        budget: &ByteBudget,
        policy: &Policy,
        record: &mut audit::Record,
    ) -> Result<Self, Rejection> {
        let asked = self.kubernetes.as_ref();
        let asked = asked.map(|attributes| (attributes.verb.as_str(), attributes.api_version.as_str()));
        let (verb, version) = asked.unwrap_or_default();
        let of = RunType { kind, version };
        Document::check_head(verb, self.request.headers())?;
        let share = self.share();
        let (request, body) = self.request.take_body();
        let body = buffered::read(body, BufferLimits::new(limits, largest(&self.route)), budget, share).await?;
        record.note_body(&body);
        let account = self.route.upstream.default_service_account();
        let mut document = Document::read(of, verb, request.headers(), &body, account)?;
        if policy.looks_at_accounts_of_runs() {
            document.name_account(of, account);
        }
        Arc::make_mut(&mut document.run).keep(|name| policy.run_names().any(|known| **known == *name));
        let request = request.with_body(RequestBody::Empty);
        Ok(Self { request, document: Some(Box::new(document)), ..self })
    }

    /// Reads the body of a request that writes an object whose annotations Tekton copies to runs.
    pub(crate) async fn read_template(
        self,
        limits: &raw::Limits,
        budget: &ByteBudget,
        record: &mut audit::Record,
    ) -> Result<Self, Rejection> {
        let verb = self.kubernetes.as_ref().map(|attributes| attributes.verb.as_str()).unwrap_or_default();
        template::check_head(verb, self.request.headers())?;
        let share = self.share();
        let (request, body) = self.request.take_body();
        let body = buffered::read(body, BufferLimits::new(limits, largest(&self.route)), budget, share).await?;
        record.note_body(&body);
        let sent = template::read(verb, request.headers(), &body)?;
        let sent = budget.hold(sent).ok_or_else(Rejection::short_of_memory)?;
        let request = request.with_body(RequestBody::Buffered(sent));
        Ok(Self { request, ..self })
    }

    /// Whether the request goes to an EventListener and is not a delivery. A delivery's body was already read to verify
    /// its sender.
    pub(crate) fn is_call(&self) -> bool {
        self.route.kind == RouteKind::Webhook && self.principal.scheme != Scheme::Webhook
    }

    /// Reads the whole body of such a call, because an EventListener waits only 5 s for it, and records its digest, as
    /// for a delivery.
    pub(crate) async fn read_call(
        self,
        limits: &raw::Limits,
        budget: &ByteBudget,
        record: &mut audit::Record,
    ) -> Result<Self, Rejection> {
        webhooks::check_json(self.request.headers())?;
        let max = self.route.max_in_memory().unwrap_or(MAX_CALL);
        let share = self.share();
        let (request, body) = self.request.take_body();
        let body = buffered::read(body, BufferLimits::new(limits, max), budget, share).await?;
        record.note_body(&body);
        let request = request.with_body(RequestBody::Buffered(body));
        Ok(Self { request, ..self })
    }

    /// The share of the buffer budget that the body counts against.
    fn share(&self) -> Share {
        match self.principal.scheme {
            Scheme::Anonymous => self.request.meta().unproven(),
            _ => Share::Known,
        }
    }

    /// What the request does to a run of Tekton.
    pub fn run(&self) -> Option<&Arc<Run>> {
        self.document.as_ref().map(|document| &document.run)
    }

    pub(crate) fn take_document(&mut self) -> Option<Box<Document>> {
        self.document.take()
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
            run: self.run().map(|run| &**run),
            delivery: self.principal.delivery.as_deref(),
            trigger: None,
            token: None,
            now,
        }
    }

    /// The request as a stream stores it, to be decided again later.
    pub(crate) fn keep(&self) -> StreamRequest {
        let meta = self.request.meta();
        StreamRequest {
            route: Arc::clone(&self.route.name),
            upstream: self.route.upstream.place(),
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

/// The largest body that is read whole.
fn largest(route: &Route) -> usize {
    route.max_in_memory().map_or(MAX_BODY, |max| max.min(MAX_BODY))
}

/// The part of a dashboard's back end that a request is for.
fn page_of<B>(request: &CleanRequest<B>, route: &Route) -> Result<Page, Rejection> {
    let page = Page::asked(request.method(), request.path(), route.dashboard.is_some())?;
    if route.dashboard.is_some() && request.meta().upgrade.is_some() {
        return Err(Rejection::new(Reason::UpgradeRefused, "the Dashboard's back end does not accept WebSockets"));
    }
    Ok(page)
}
