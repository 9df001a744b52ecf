//! The request pipeline: sanitize -> route -> authenticate -> authorize -> assume identity -> forward, with one audit
//! record around it. Each step consumes the proof type that the previous step made. Start reading at
//! [`Worker::process`].
//!
//! - [`Exchange`]: the audit record and the metrics of one request. It is closed exactly once, on every exit path.
//! - [`Ledger`]: the trail and the counters that an exchange reports to.
//! - [`Manner`]: how this client reads a refusal: as a page, as a problem in JSON, as the API server's `Status`, or as
//!   gRPC trailers.
//! - [`Cleared`]: a request that was allowed and, where required, recorded, so that it may be sent.
//! - **Epoch**: the number of sweeps over all open streams, which follow reloads and revocations. It is read before the
//!   snapshot of the configuration. If it has changed when a stream is registered, a sweep missed that stream, which is
//!   then checked by itself.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Body;
use uuid::Uuid;

use super::{
    decide::Cleared,
    exchange::{AnswerBy, Exchange, Ledger, RawTarget},
    expect::answer_or_refuse,
    forward::{self, Forwarded},
    forward_auth,
    notes::{note_request, note_route, recorded},
    outbound::Outbound,
    own::own,
    respond::{self, Manner},
    route::{Miss, Target},
    sanitize::{Arrival, CleanRequest, sanitize},
    step_up,
};
use crate::{
    admin::metrics::RouteMetrics,
    app::App,
    authn::{self, Authenticator, Scheme},
    body::{ClientBody, ResponseBody},
    config::raw::RouteKind,
    downstream::{Connection, Protocol, Serve, Unfit},
    error::{Reason, Rejection},
    memory::Level,
    snapshot::Snapshot,
    tekton,
    upstream::Pools,
};

/// Serves requests on one worker.
#[derive(Clone, Debug)]
pub struct Worker {
    pub(super) app: Arc<App>,
    pub(super) pools: Pools,
}

type Answer = Response<ResponseBody<Exchange>>;

/// The outcome of a request.
pub(super) enum Ending {
    /// A response whose body ends the exchange.
    Response { response: Answer, by: AnswerBy },
    /// A response after which the connection speaks another protocol.
    Upgraded(forward::Upgraded),
}

impl Worker {
    pub fn new(app: Arc<App>, pools: Pools) -> Self {
        Self { app, pools }
    }

    /// The ledger of a request that has just arrived.
    pub(super) fn ledger(&self, metrics: &Arc<RouteMetrics>, epoch: u64) -> Ledger {
        Ledger {
            trail: self.app.trail.clone(),
            metrics: Arc::clone(metrics),
            in_flight: self.app.requests.begin(),
            epoch,
        }
    }

    async fn answer(self, connection: Arc<Connection>, request: Result<Request<ClientBody>, Unfit>) -> Answer {
        // Before the snapshot: a sweep in between would miss a stream that is not registered yet.
        let epoch = self.app.streams.epoch();
        let snapshot = self.app.snapshot.load_full();
        let id = Uuid::now_v7();
        let (request, unfit) = match request {
            Ok(request) => (request, None),
            Err(unfit) => (unfit.request, Some(unfit.rejection)),
        };
        let ledger = self.ledger(&snapshot.unrouted, epoch);
        let mut exchange = Exchange::begin(id, self.app.clock.now(), &request, &connection, ledger);
        let is_head = *request.method() == Method::HEAD;
        let mut manner = Manner::of(id, &request);
        let ending = match unfit {
            Some(rejection) => {
                exchange.note_raw_target(&RawTarget::of(&request));
                Err(rejection)
            }
            None => self.process(&snapshot, &connection, request, &mut exchange, &mut manner).await,
        };
        let (mut response, is_unauthenticated) = match ending {
            Ok(Ending::Upgraded(upgraded)) => return switch_protocols(upgraded, exchange),
            Ok(Ending::Response { response, by }) => {
                exchange.answered(response.status(), by);
                let is_unauthenticated = by == AnswerBy::Us && response.status() == StatusCode::UNAUTHORIZED;
                if !response.body().is_end_stream() {
                    exchange.write_started_if_crowded();
                }
                (response, is_unauthenticated)
            }
            Err(rejection) => {
                log(&rejection, id);
                exchange.refused(&rejection);
                // By the rejection and not by the response, whose status is 200 in gRPC.
                let is_unauthenticated =
                    rejection.status() == StatusCode::UNAUTHORIZED || rejection.reason() == Reason::TooManyRefusals;
                let response = self.refusal(rejection, &snapshot, &mut manner, &mut exchange);
                (response.map(ResponseBody::full), is_unauthenticated)
            }
        };
        if is_unauthenticated && is_stranger_over_http2(&connection, &snapshot, &mut exchange) {
            close_connection(&mut response);
        }
        if is_head {
            respond::head_alone(&mut response);
        }
        response.map(|body| body.on_end(exchange))
    }

    /// The response to a refused request: the way to what the caller lacks where there is one, else the reason.
    fn refusal(
        &self,
        rejection: Rejection,
        snapshot: &Snapshot,
        manner: &mut Manner,
        exchange: &mut Exchange,
    ) -> Response<Bytes> {
        let record = exchange.record();
        manner.wanted.clone_from(&record.kubernetes);
        manner.is_for_kubernetes = record.endpoint.is_none() && snapshot.routes.is_for_kubernetes(&record.host);
        match step_up::offer(rejection, &snapshot.login, record.principal.as_deref(), &record.host, manner) {
            Ok(mut response) => {
                respond::identify(&mut response, record.id);
                response
            }
            Err(rejection) => {
                let who = record.principal.as_ref().map(|principal| &*principal.username);
                let metadata = manner.resource_metadata(&record.host);
                let context = manner.context(metadata.as_deref(), who, self.app.clock.now(), &snapshot.brand);
                respond::refuse(&rejection, &context)
            }
        }
    }

    async fn process(
        &self,
        snapshot: &Arc<Snapshot>,
        connection: &Arc<Connection>,
        request: Request<ClientBody>,
        exchange: &mut Exchange,
        manner: &mut Manner,
    ) -> Result<Ending, Rejection> {
        let arrival = arrival(connection, snapshot);
        if let Some(proxy) = forward_auth::asks(&request, arrival.trusted, snapshot) {
            let answer = Box::pin(self.answer_proxy(proxy, snapshot, connection, request, exchange, manner)).await;
            return answer.map_err(|rejection| forward_auth::as_understood_by(proxy, rejection));
        }
        let request = self.sanitize_and_note(snapshot, arrival, request, exchange, manner)?;
        let route = match snapshot.routes.find(request.host(), request.path(), request.method()) {
            Ok(Target::Upstream(route)) => route,
            Ok(Target::Own(asked)) => {
                return Box::pin(self.serve_own(asked, snapshot, connection, request, exchange, manner)).await;
            }
            Err(miss) => {
                if let Miss::Method(route, _) = &miss {
                    manner.route = Some(Arc::clone(route));
                }
                return Err(miss.into());
            }
        };
        note_route(&route, snapshot, exchange, manner);
        refuse_impersonation(&request)?;

        let is_shared_address = request.meta().is_shared_address;
        let authenticator = self.authenticator(snapshot);
        let authenticated = authenticator.authenticate(request, &route, connection, exchange.record()).await;
        let authenticated = authenticated.map_err(|rejection| match exchange.record().address {
            Some(address) if route.schemes.contains(&Scheme::Session) && !is_shared_address => {
                let most = snapshot.limits.refusals_per_address;
                self.app.refusals.count(rejection, address, most, manner.is_program)
            }
            _ => rejection,
        })?;
        let (authenticated, taking) = match authenticated {
            authn::Authentication::Known(authenticated, taking) => (authenticated, taking),
            authn::Authentication::Respond(response) => return Ok(own(response, exchange.record().id)),
        };
        let authenticated = self.read_body(snapshot, authenticated, exchange).await?;
        match route.kind {
            RouteKind::Webhook => Box::pin(self.take_delivery(snapshot, authenticated, &route, taking, exchange)).await,
            RouteKind::Dashboard => Box::pin(self.browse(snapshot, authenticated, exchange)).await,
            _ => {
                let cleared = self.decide(snapshot, authenticated, None, exchange).await?;
                self.forward(snapshot, cleared, exchange).await
            }
        }
    }

    /// Sanitizes a request, and notes in its record what was asked, also where that is malformed.
    pub(super) fn sanitize_and_note<B>(
        &self,
        snapshot: &Snapshot,
        arrival: Arrival<'_>,
        request: Request<B>,
        exchange: &mut Exchange,
        manner: &mut Manner,
    ) -> Result<CleanRequest<B>, Rejection> {
        let sent = RawTarget::of(&request);
        let clean = sanitize(request, arrival, exchange.record().id, |host| snapshot.routes.host(host));
        let request = clean.inspect_err(|_| exchange.note_raw_target(&sent))?;
        note_request(&request, exchange, manner);
        if self.app.memory.level() >= Level::RefuseRequests {
            return Err(Rejection::short_of_memory());
        }
        Ok(request)
    }

    /// Reads the body where rules depend on it: requests to Kubernetes that create or change a Tekton run or template,
    /// and calls to an EventListener. Other bodies are streamed. A request that the policy refuses whatever its body
    /// says is refused first, so that callers without any rights cannot fill the memory that bodies share.
    async fn read_body(
        &self,
        snapshot: &Snapshot,
        authenticated: authn::Authenticated,
        exchange: &mut Exchange,
    ) -> Result<authn::Authenticated, Rejection> {
        exchange.record().kubernetes = authenticated.kubernetes().cloned();
        let kind = authenticated.kubernetes().and_then(|attributes| tekton::concerns(attributes));
        let is_template =
            authenticated.kubernetes().is_some_and(|attributes| tekton::template::is_template(attributes));
        if kind.is_none() && !is_template && !authenticated.is_call() {
            return Ok(authenticated);
        }
        let view = authenticated.view(self.app.clock.now());
        if let Some(decision) = snapshot.policy.refuses_any_body(authenticated.principal(), &view) {
            exchange.record().decision = Some(recorded(&decision));
            if let Some(rejection) = decision.rejection() {
                return Err(rejection);
            }
        }
        let (limits, budget) = (&snapshot.limits, &self.app.budget);
        if let Some(kind) = kind {
            let read = authenticated.read_run(kind, limits, budget, &snapshot.policy, exchange.record());
            let authenticated = Box::pin(read).await?;
            exchange.record().run = authenticated.run().cloned();
            return Ok(authenticated);
        }
        if is_template {
            return Box::pin(authenticated.read_template(limits, budget, exchange.record())).await;
        }
        Box::pin(authenticated.read_call(limits, budget, exchange.record())).await
    }

    /// Sends the request, and notes what the upstream answered.
    pub(super) async fn forward(
        &self,
        snapshot: &Arc<Snapshot>,
        mut cleared: Box<Cleared>,
        exchange: &mut Exchange,
    ) -> Result<Ending, Rejection> {
        let prepared = match cleared.fit.take() {
            Some(fit) => Box::pin(self.fit_to_existing_run(fit, &mut cleared.outbound)).await,
            None => Ok(()),
        };
        let makes_a_run = exchange.record().run.as_ref().is_some_and(|run| run.intent.makes_a_run());
        let forwarded = match prepared {
            Err(rejection) => Err(rejection),
            Ok(()) if makes_a_run && snapshot.own_issuer.is_some() && !cleared.outbound.is_dry_run() => {
                Box::pin(self.send_and_note_run(snapshot, cleared, exchange)).await
            }
            Ok(()) if cleared.outbound.expects_continue() => {
                let received = Arc::clone(exchange.received());
                Box::pin(answer_or_refuse(self.send(&mut cleared), || received.awaited())).await
            }
            Ok(()) => self.send(&mut cleared).await,
        };
        let status = match &forwarded {
            Ok(Forwarded::Response { response, .. }) => Some(response.status()),
            Ok(Forwarded::Upgraded(_)) => Some(StatusCode::SWITCHING_PROTOCOLS),
            Err(rejection) => rejection.upstream_status(),
        };
        if let Some(upstream) = &mut exchange.record().upstream {
            upstream.status = status;
        }
        match forwarded? {
            Forwarded::Response { response, long } => {
                if long {
                    exchange.answered(response.status(), AnswerBy::Upstream);
                    exchange.write_started();
                }
                Ok(Ending::Response { response, by: AnswerBy::Upstream })
            }
            Forwarded::Upgraded(upgraded) => Ok(Ending::Upgraded(upgraded)),
        }
    }

    /// Sends the request, and registers its streams.
    pub(super) async fn send(&self, cleared: &mut Cleared) -> Result<Forwarded<Exchange>, Rejection> {
        let Cleared { outbound, groups, epoch, now, .. } = cleared;
        let begin = |outbound: &Outbound, kind| {
            let handle = self.app.streams.register(outbound.permit().stream(kind, Arc::clone(groups), *now));
            if handle.missed(*epoch) {
                if let Some(why) = self.app.refuses(handle.stream()) {
                    handle.end(why);
                }
                if let Some(latest) = self.app.latest_end(handle.stream()) {
                    handle.end_by(latest);
                }
            }
            handle
        };
        forward::forward(&self.pools, outbound, begin).await
    }

    pub(super) fn authenticator<'a>(&'a self, snapshot: &'a Snapshot) -> Authenticator<'a> {
        Authenticator {
            issuers: &snapshot.issuers,
            sessions: &snapshot.sessions,
            login: &snapshot.login,
            break_glass: snapshot.break_glass.as_ref(),
            anonymous: &self.app.anonymous,
            revocations: &self.app.revocations,
            max_mirror_age: snapshot.max_mirror_age,
            replay: &self.app.replay,
            webhooks: &self.app.metrics.webhooks,
            limits: &snapshot.limits,
            budget: &self.app.budget,
            clock: &self.app.clock,
            control: &self.app.control,
        }
    }
}

/// Refuses a request by which the client itself asks to impersonate: that is never passed on and never ignored.
pub(super) fn refuse_impersonation<B>(request: &CleanRequest<B>) -> Result<(), Rejection> {
    let asked = &request.meta().impersonation;
    if asked.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = asked.iter().map(http::HeaderName::as_str).collect();
    let detail = format!("the request sets impersonation headers ({}), which only Doorward may", names.join(", "));
    Err(Rejection::new(Reason::ImpersonationRefused, detail)
        .fix("send it without these headers (`kubectl` without `--as`)"))
}

/// Ends the HTTP exchange of a connection that speaks another protocol from here on.
fn switch_protocols(upgraded: forward::Upgraded, mut exchange: Exchange) -> Answer {
    exchange.answered(StatusCode::SWITCHING_PROTOCOLS, AnswerBy::Upstream);
    exchange.write_started();
    let (response, splice) = upgraded.into_parts();
    tokio::spawn(async move { exchange.end_upgrade(splice.await) });
    response.map(|()| ResponseBody::empty())
}

impl Serve for Worker {
    type Body = ResponseBody<Exchange>;

    fn serve(
        &self,
        connection: &Arc<Connection>,
        request: Result<Request<ClientBody>, Unfit>,
    ) -> impl Future<Output = Answer> + Send + Unpin + use<> {
        Box::pin(self.clone().answer(Arc::clone(connection), request))
    }

    fn memory(&self) -> Level {
        self.app.memory.level()
    }
}

pub(super) fn arrival<'a>(connection: &'a Connection, snapshot: &'a Snapshot) -> Arrival<'a> {
    let trusted_proxies = snapshot.trusted_proxies(&connection.listener);
    let peer = connection.peer.ip();
    Arrival {
        peer: connection.peer,
        peer_line: connection.peer_line.as_ref(),
        lacks_proxy_address: connection.lacks_proxy_address,
        // Decided anew for each request: a reload may have changed the list since the connection began.
        trusted: trusted_proxies.iter().any(|net| net.contains(&peer)),
        trusted_proxies,
        tls: connection.tls.is_some(),
        server_name: connection.tls.as_ref().and_then(|tls| tls.server_name.as_deref()),
    }
}

/// Whether this is a client over HTTP/2 that has not authenticated. Not behind a trusted proxy, whose connection
/// carries the requests of other clients too.
fn is_stranger_over_http2(connection: &Connection, snapshot: &Snapshot, exchange: &mut Exchange) -> bool {
    exchange.record().principal.is_none()
        && connection.protocol == Protocol::Http2
        && !arrival(connection, snapshot).trusted
}

/// Closes the connection after this response: on a connection that stays open, a client could retry at next to no cost.
fn close_connection<B>(response: &mut Response<B>) {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// Logs the causes of a refusal, which only operators may see; mistakes of callers are in the audit trail. The causes
/// have a field of their own because the JSON format prints an error without its sources.
fn log(rejection: &Rejection, id: Uuid) {
    let reason = rejection.reason().as_str();
    if rejection.status().is_server_error() {
        tracing::warn!(request_id = %id, reason, error = %rejection, cause = rejection.causes(), "request failed");
    } else {
        tracing::debug!(request_id = %id, reason, error = %rejection, cause = rejection.causes(), "request refused");
    }
}
