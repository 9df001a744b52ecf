//! A principal and a request from a file, for tests of a policy and for `explain`.

mod principal;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use http::{HeaderMap, Method, header};
use serde_json::Value;

use self::principal::{arc, check_exchanged, cluster, complete};
use super::{RequestView, TOKEN_ENDPOINT, TaskView, TokenView, Trigger};
use crate::{
    authn::{Principal, Scheme},
    clock::Timestamp,
    config::{
        raw::{self, RouteKind},
        report::{nearest, no_such},
        values::Span,
    },
    error::Rejection,
    kubernetes::Attributes,
    request::{
        host, method,
        path::check_canonical,
        route::{self, Taker},
    },
    sts,
    tekton::{self, Document, Run, dashboard::Page},
    webhooks::{self, Facts},
};

/// The time of a request that has none: Monday, 1 January 2024, 12:00 UTC.
const NOON: Timestamp = Timestamp::from_secs(1_704_110_400);

/// A principal and a request, complete.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub principal: Principal,
    route: raw::Route,
    host: String,
    path: String,
    method: Method,
    address: IpAddr,
    kubernetes: Option<Attributes>,
    run: Option<Run>,
    held_against_run: bool,
    delivery: Option<Arc<Facts>>,
    trigger: Option<raw::TriggerFacts>,
    /// The token that is asked for, and the task that asks.
    token: Option<(raw::TokenFacts, Option<TaskView>)>,
    now: Timestamp,
}

/// Why no rule is evaluated.
#[derive(Debug)]
pub enum NotEvaluated {
    /// The facts do not make a request.
    Incomplete(String),
    /// The proxy itself refuses such a request.
    Refused(Rejection),
}

impl fmt::Display for NotEvaluated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Incomplete(why) => f.write_str(why),
            Self::Refused(rejection) => write!(f, "{}: it is refused before any rule is evaluated", rejection.detail()),
        }
    }
}

impl std::error::Error for NotEvaluated {}

impl From<String> for NotEvaluated {
    fn from(why: String) -> Self {
        Self::Incomplete(why)
    }
}

impl From<Rejection> for NotEvaluated {
    fn from(rejection: Rejection) -> Self {
        Self::Refused(rejection)
    }
}

impl Scenario {
    /// Completes the facts from the configuration; the error says what is missing or wrong.
    pub fn new(
        principal: Option<&raw::PrincipalFacts>,
        request: &raw::RequestFacts,
        root: &raw::Root,
    ) -> Result<Self, NotEvaluated> {
        let route = route_of(request, root)?;
        let Target { host, path, query, method } = target_of(request, &route, root)?;
        let now = match request.at.as_deref() {
            Some(at) => Timestamp::from_rfc3339(at)
                .ok_or_else(|| format!("`{at}` is not a time such as 2024-01-01T12:00:00Z"))?,
            None => NOON,
        };
        let delivery = delivery_of(principal, request, &route, root)?;
        let kubernetes = match &request.kubernetes {
            Some(written) => {
                let sent = request.path.as_ref().map(|_| attributes_of(&route, &method, path, query)).transpose()?;
                Some(attributes(written, path, &route, sent.map(Option::unwrap_or_default).as_ref())?)
            }
            None => attributes_of(&route, &method, path, query)?,
        };
        let kubernetes = kubernetes.map(|asked| asked.sent_as(request.content_type.as_deref().map(str::as_bytes)));
        let document = match kubernetes.as_ref().and_then(|asked| Some((tekton::concerns(asked)?, asked))) {
            Some((kind, attributes)) => document(kind, attributes, request, default_account(&route, root))?,
            None if request.body.is_some() => {
                return Err("a body is read only for requests that change runs".to_owned().into());
            }
            None => None,
        };
        let sender = raw::PrincipalFacts::default();
        let principal = match principal.or_else(|| comes_of_sender(request, &route).then_some(&sender)) {
            Some(facts) => complete(facts, delivery.clone(), request.token.as_ref(), &route, root, now)?,
            None => Principal::anonymous(),
        };
        if let Some(token) = &request.token {
            check_exchanged(&principal.issuer, token, root)?;
            sts::check_asked(&token.audience, token.scope.as_slice(), root)?;
        }
        Ok(Self {
            held_against_run: document.as_ref().is_some_and(Document::is_held_against_run),
            run: document.map(|document| Arc::unwrap_or_clone(document.run)),
            principal,
            host,
            path: path.to_owned(),
            method,
            address: request.address.unwrap_or(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
            kubernetes,
            delivery,
            trigger: request.trigger.clone(),
            token: request.token.clone().map(|token| {
                let task = token.task.as_ref().map(|task| view(task, root));
                (token, task)
            }),
            now,
            route,
        })
    }

    /// Whether nobody is authenticated and the route asks for a credential, so that the proxy refuses the request
    /// before any rule.
    pub fn lacks_credential(&self) -> bool {
        self.principal.is_anonymous() && !self.route.schemes.contains(&Scheme::Anonymous)
    }

    /// Whether rules look at the body of such a request and the facts have none.
    pub fn lacks_body(&self) -> bool {
        self.request().is_unread()
    }

    /// Whether it is a patch that is refused, whatever rules say, if the existing run contradicts it.
    pub fn is_held_against_run(&self) -> bool {
        self.held_against_run
    }

    /// The request as rules see it.
    pub fn request(&self) -> RequestView<'_> {
        RequestView {
            route: &self.route.name,
            kind: if is_api(&self.route, &self.path) { RouteKind::Kubernetes } else { self.route.kind },
            host: &self.host,
            path: &self.path,
            method: &self.method,
            upgrade: false,
            address: self.address,
            event_listener: self.route.event_listener.as_ref(),
            kubernetes: self.kubernetes.as_ref(),
            run: self.run.as_ref(),
            delivery: self.delivery.as_deref(),
            trigger: self.trigger.as_ref().map(|trigger| self.set_off(trigger)),
            token: self.token.as_ref().map(|(token, task)| TokenView {
                audience: &token.audience,
                scope: token.scope.as_deref(),
                task: task.as_ref(),
            }),
            now: self.now,
        }
    }

    fn set_off<'a>(&'a self, trigger: &'a raw::TriggerFacts) -> Trigger<'a> {
        let home = self.route.event_listener.as_ref().map_or("", |listener| &listener.namespace);
        Trigger {
            namespace: trigger.namespace.as_deref().unwrap_or(home),
            name: &trigger.name,
            service_account: trigger.service_account.as_deref(),
            listener_namespace: home,
        }
    }
}

/// Returns the route of a request, or what stands for it if a token is requested.
fn route_of(request: &raw::RequestFacts, root: &raw::Root) -> Result<raw::Route, String> {
    match &request.token {
        Some(_) if request.route.is_empty() => Ok(token_endpoint(root)),
        Some(_) => Err("tokens are not requested on a route; leave `route` out".to_owned()),
        None => {
            let mut routes = root.routes.iter();
            routes
                .find(|route| route.name == request.route)
                .cloned()
                .ok_or_else(|| no_such("route", &request.route, root.routes.iter().map(|route| route.name.as_str())))
        }
    }
}

/// The destination of a request, and its method.
struct Target<'a> {
    host: String,
    path: &'a str,
    query: Option<&'a str>,
    method: Method,
}

/// Reads these facts, and completes them from the route. A request that the proxy would refuse, or send elsewhere, is
/// an error.
fn target_of<'a>(
    request: &'a raw::RequestFacts,
    route: &'a raw::Route,
    root: &raw::Root,
) -> Result<Target<'a>, NotEvaluated> {
    let posts = route.kind == RouteKind::Webhook || request.token.is_some();
    let default_method = if posts { "POST" } else { "GET" };
    let method = request.method.as_deref().unwrap_or(default_method);
    let method: Method = method.parse().map_err(|_| format!("`{method}` is not a valid method"))?;
    method::check_spelling(&method).map_err(|why| format!("{why}: it is refused before any rule is asked"))?;
    let default_path = route.paths.first().map_or("/", |path| path.strip_suffix('*').unwrap_or(path));
    let target = request.path.as_deref().unwrap_or(default_path);
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    // As `request::sanitize` and the route do it.
    check_canonical(path)
        .map_err(|why| format!("the path `{path}` {why}: it is refused before any rule is evaluated"))?;
    let host = match &request.host {
        Some(host) => host::normalise(host).ok_or_else(|| format!("`{host}` is not a valid host"))?.into_owned(),
        None => route.hosts.first().cloned().unwrap_or_default(),
    };
    if request.token.is_none() {
        check_arrival(root, route, &host, path, &method)?;
    }
    Ok(Target { host, path, query, method })
}

/// Returns the delivery of a request, or the one that caused the run of the task that asks for a token.
fn delivery_of(
    principal: Option<&raw::PrincipalFacts>,
    request: &raw::RequestFacts,
    route: &raw::Route,
    root: &raw::Root,
) -> Result<Option<Arc<Facts>>, String> {
    let delivery = match (&request.delivery, &request.token) {
        (Some(written), Some(token)) => delivery(written, cause_webhook(principal, token, root)?, root)?,
        (written, _) if route.kind == RouteKind::Webhook => {
            let name = route.webhook.as_deref().unwrap_or_default();
            delivery(&written.clone().unwrap_or_default(), name, root)?
        }
        (Some(_), None) => return Err(format!("route `{}` is not a webhook route and has no deliveries", route.name)),
        (None, _) => return Ok(None),
    };
    Ok(Some(Arc::new(delivery)))
}

/// Returns the Kubernetes attributes of a request, if it goes to Kubernetes.
fn attributes_of(
    route: &raw::Route,
    method: &Method,
    path: &str,
    query: Option<&str>,
) -> Result<Option<Attributes>, Rejection> {
    if route.reaches_kubernetes() && is_api(route, path) {
        return Ok(Some(Attributes::parse(method, path, query)?));
    }
    match route.kind {
        RouteKind::Dashboard => Ok(Page::asked(method, path, route.kubernetes.is_some())?.attributes(path)),
        _ => Ok(None),
    }
}

/// Refuses a request that goes elsewhere than to the given route: no rule would see it as a request on that route.
fn check_arrival(
    root: &raw::Root,
    route: &raw::Route,
    host: &str,
    path: &str,
    method: &Method,
) -> Result<(), NotEvaluated> {
    let elsewhere = match route::taker(root, host, path, method)? {
        Taker::Route(taker) if taker.name == route.name => return Ok(()),
        Taker::Route(taker) => format!("to the route `{}`", taker.name),
        Taker::Own => "to Doorward itself".to_owned(),
    };
    Err(format!("`{method} {path}` at `{host}` goes {elsewhere}, and not to the route `{}`", route.name).into())
}

/// Returns what stands for the route of a request for a token.
fn token_endpoint(root: &raw::Root) -> raw::Route {
    raw::Route {
        name: TOKEN_ENDPOINT.to_owned(),
        kind: RouteKind::Http,
        hosts: root.external_host.iter().cloned().collect(),
        paths: vec![TOKEN_ENDPOINT.to_owned()],
        methods: vec!["POST".to_owned()],
        schemes: vec![Scheme::Bearer],
        issuers: Vec::new(),
        audiences: Vec::new(),
        upstream: String::new(),
        kubernetes: None,
        namespaces: Vec::new(),
        webhook: None,
        event_listener: None,
        pass_headers: Vec::new(),
        max_body: None,
        max_stream: Span::from_secs(0),
    }
}

fn view(task: &raw::TaskFacts, root: &raw::Root) -> TaskView {
    TaskView {
        cluster: cluster(task, root).unwrap_or_default().to_owned(),
        namespace: task.namespace.clone(),
        service_account: task.service_account.clone(),
        pipeline: task.pipeline.clone(),
        pipeline_task: task.pipeline_task.clone(),
        task: task.task.clone(),
    }
}

/// A dashboard passes only its API paths to Kubernetes.
fn is_api(route: &raw::Route, path: &str) -> bool {
    let of_dashboard = || {
        let mut apis = raw::API_PATHS.iter().filter_map(|api| api.strip_suffix("/*"));
        apis.any(|api| path.strip_prefix(api).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    };
    route.kind == RouteKind::Kubernetes
        || (route.kind == RouteKind::Dashboard && route.reaches_kubernetes() && of_dashboard())
}

/// Reads the body in the facts of a request.
fn document(
    kind: tekton::RunKind,
    attributes: &Attributes,
    request: &raw::RequestFacts,
    default_account: &str,
) -> Result<Option<Document>, NotEvaluated> {
    let default = match &request.body {
        Some(Value::Array(_)) => "application/json-patch+json",
        _ if attributes.verb == "patch" => "application/merge-patch+json",
        _ => "application/json",
    };
    let media = request.content_type.as_deref().unwrap_or(default);
    let media = media.parse().map_err(|_| format!("`{media}` is not a valid content type"))?;
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, media)]);
    let refused = |error| NotEvaluated::Refused(Rejection::from(error));
    let Some(body) = &request.body else {
        return Document::check_head(&attributes.verb, &headers).map(|()| None).map_err(refused);
    };
    let of = tekton::RunType { kind, version: &attributes.api_version };
    let document = Document::read(of, &attributes.verb, &headers, body.to_string().as_bytes(), default_account);
    document.map(Some).map_err(refused)
}

/// The service account of runs that name none, at the API server behind a route.
fn default_account<'a>(route: &raw::Route, root: &'a raw::Root) -> &'a str {
    let name = route.kubernetes.as_ref().unwrap_or(&route.upstream);
    let upstream = root.upstreams.iter().find(|upstream| upstream.name == *name);
    upstream.map_or("default", raw::Upstream::default_service_account)
}

/// Returns the written attributes. `sent` has those of the path, if one is written too.
fn attributes(
    written: &raw::KubernetesFacts,
    path: &str,
    route: &raw::Route,
    sent: Option<&Attributes>,
) -> Result<Attributes, String> {
    fn compared(of: &Attributes) -> [&str; 6] {
        [&of.verb, &of.api_group, &of.resource, &of.subresource, &of.namespace, &of.name]
    }
    if !route.reaches_kubernetes() {
        return Err(format!(
            "requests on `{}` reach no API server, so that they have no attributes; leave `kubernetes` out",
            route.name
        ));
    }
    let attributes = Attributes {
        is_resource: !written.resource.is_empty(),
        verb: written.verb.clone(),
        api_group: written.api_group.clone(),
        api_version: "v1".to_owned(),
        namespace: written.namespace.clone(),
        resource: written.resource.clone(),
        subresource: written.subresource.clone(),
        name: written.name.clone(),
        path: path.to_owned(),
        follow: false,
        apply: false,
    };
    match sent.filter(|sent| compared(sent) != compared(&attributes)) {
        Some(sent) => Err(format!(
            "`kubernetes` says `{}`, and the path and the method say `{}`; leave one of them out",
            attributes.in_words(),
            sent.in_words()
        )),
        None => Ok(attributes),
    }
}

/// Whether it is a delivery without a principal in the facts, so that its sender is taken. Without a principal it would
/// be decided as no delivery ever is.
fn comes_of_sender(request: &raw::RequestFacts, route: &raw::Route) -> bool {
    let is_delivery = request.token.is_none() && (request.delivery.is_some() || request.trigger.is_some());
    is_delivery && route.webhook.is_some()
}

/// The webhook whose delivery caused the run of a task that asks for a token.
fn cause_webhook<'a>(
    principal: Option<&'a raw::PrincipalFacts>,
    token: &raw::TokenFacts,
    root: &raw::Root,
) -> Result<&'a str, String> {
    if token.task.is_none() {
        return Err("only a task that asks for a token has the delivery that caused its run; write `task`".to_owned());
    }
    let issuer = principal.and_then(|principal| principal.issuer.as_deref());
    let Some(name) = issuer.and_then(webhooks::of_issuer) else {
        return Err(
            "only a webhook causes a run by a delivery; let the principal's `issuer` be `webhook:NAME`".to_owned()
        );
    };
    match root.webhooks.iter().any(|webhook| webhook.name == name) {
        true => Ok(name),
        false => Err(format!("there is no webhook `{name}`")),
    }
}

/// Returns the facts of a delivery, or an error if no delivery of the sender has its event or such a fact.
fn delivery(written: &raw::DeliveryFacts, name: &str, root: &raw::Root) -> Result<Facts, String> {
    let webhook = root.webhooks.iter().find(|webhook| webhook.name == name);
    let kind = webhook.map(webhooks::identity);
    let is_written = |fact: &str| match fact {
        "event" => written.event.is_some(),
        "action" => written.action.is_some(),
        "branch" => written.branch.is_some(),
        "tag" => written.tag.is_some(),
        "fork" => written.fork.is_some(),
        "draft" => written.draft.is_some(),
        _ => false,
    };
    if let Some(fact) = webhook.into_iter().flat_map(webhooks::missing_facts).find(|fact| is_written(fact)) {
        return Err(format!(
            "no delivery of `{name}` has the fact `{fact}`; leave it out, as rules see such a delivery"
        ));
    }
    if let (Some(event), Some(known)) = (&written.event, webhook.and_then(webhooks::known_events)) {
        let known: Vec<&str> = known.collect();
        if !known.contains(&event.as_str()) {
            let near = nearest(event, known).map(|near| format!("did you mean `{near}`? If not, ")).unwrap_or_default();
            return Err(format!(
                "no delivery of `{name}` is recognised by its body as the event `{event}`; {near}leave `event` out, as \
                 rules see such a delivery"
            ));
        }
    }
    Ok(Facts {
        webhook: name.into(),
        sender_kind: kind.unwrap_or_default().into(),
        delivery: "test".into(),
        event: arc(&written.event),
        action: arc(&written.action),
        repository: arc(&written.repository),
        repository_id: arc(&written.repository_id),
        owner: arc(&written.owner),
        branch: arc(&written.branch),
        tag: arc(&written.tag),
        commit: arc(&written.commit),
        actor: arc(&written.actor),
        actor_id: arc(&written.actor_id),
        fork: written.fork,
        pull_request: arc(&written.pull_request),
        draft: written.draft,
        several: written.several || written.build,
        build: written.build,
    })
}
