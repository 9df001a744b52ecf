//! The life of a request: listener -> sanitize -> route -> authenticate -> authorize -> assume identity -> forward ->
//! audit. Each step takes the proof that the step before it made.

use std::{
    future::pending,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::body::{Body, Incoming};
use tokio::task::JoinError;
use uuid::Uuid;

use super::{
    delivery,
    exchange::{Exchange, Ledger, Sent},
    forward_auth,
    notes::{note_request, note_route, recorded},
    outbound::{Length, Outbound},
    respond::{self, Manner},
    route::{Miss, Route, Target},
    sanitize::{CleanRequest, Received, sanitize},
    step_up,
};
use crate::{
    app::App,
    assertions::Asserted,
    audit,
    authn::{self, Authenticator, Scheme},
    authz::authorize,
    body::ResponseBody,
    clock::Timestamp,
    config::raw::RouteKind,
    downstream::{Connection, Serve, Unfit},
    error::{Reason, Rejection},
    interceptor,
    memory::Level,
    sha256::sha256,
    snapshot::Snapshot,
    sts,
    tekton::{self, Apply, Attribution},
    upstream::{
        Pools,
        forward::{self, Forwarded},
    },
    webhooks,
};

/// Serves requests on one worker.
#[derive(Clone, Debug)]
pub struct Worker {
    pub(super) app: Arc<App>,
    pub(super) pools: Pools,
}

type Answer = Response<ResponseBody<Exchange>>;

/// What a request leads to.
pub(super) enum Ending {
    /// A response whose body ends the exchange.
    Response { response: Response<ResponseBody<Exchange>>, forwarded: bool },
    /// A response after which the connection speaks another protocol.
    Upgraded(forward::Upgraded),
}

/// A request that may be sent.
pub(super) struct Cleared {
    pub(super) outbound: Outbound,
    /// Those that grants gave, under which it is sent.
    pub(super) groups: Arc<[Arc<str>]>,
    /// It makes a run, unless that is there.
    apply: Option<Apply>,
    /// It is recorded before it is sent.
    announced: bool,
    /// Which look at all streams was the last before the generation was taken that decided it.
    epoch: u64,
    /// When it was decided.
    pub(super) now: Timestamp,
}

impl Worker {
    pub fn new(app: Arc<App>, pools: Pools) -> Self {
        Self { app, pools }
    }

    async fn answer(self, connection: Arc<Connection>, request: Result<Request<Incoming>, Unfit>) -> Answer {
        // Before the generation: a look at all streams after it would miss a stream that is not registered yet.
        let epoch = self.app.streams.epoch();
        let snapshot = self.app.snapshot.load_full();
        let id = Uuid::now_v7();
        let (request, unfit) = match request {
            Ok(request) => (request, None),
            Err(unfit) => (unfit.request, Some(unfit.rejection)),
        };
        let ledger = Ledger {
            trail: self.app.trail.clone(),
            metrics: Arc::clone(&snapshot.unrouted),
            in_flight: self.app.requests.begin(),
            epoch,
        };
        let mut exchange = Exchange::begin(id, self.app.clock.now(), &request, &connection, ledger);
        let is_head = *request.method() == Method::HEAD;
        let mut manner = Manner::of(id, &request);
        let ending = match unfit {
            Some(rejection) => {
                exchange.note_sent(&Sent::of(&request));
                Err(rejection)
            }
            None => self.process(&snapshot, &connection, request, id, &mut exchange, &mut manner).await,
        };
        let mut response = match ending {
            Ok(Ending::Response { response, forwarded }) => {
                exchange.answered(response.status(), forwarded);
                if !response.body().is_end_stream() {
                    exchange.started_if_crowded();
                }
                response
            }
            Ok(Ending::Upgraded(upgraded)) => {
                exchange.answered(StatusCode::SWITCHING_PROTOCOLS, true);
                exchange.started();
                let (response, splice) = upgraded.into_parts();
                tokio::spawn(async move { exchange.end_upgrade(splice.await) });
                return response.map(|()| ResponseBody::empty());
            }
            Err(rejection) => {
                log(&rejection, id);
                exchange.refused(&rejection);
                self.refusal(rejection, &snapshot, &mut manner, &mut exchange).map(ResponseBody::full)
            }
        };
        if is_head {
            respond::head_alone(&mut response);
        }
        response.map(|body| body.on_end(exchange))
    }

    /// What the caller gets for a refusal: the way to what it lacks where there is one, else why.
    fn refusal(
        &self,
        rejection: Rejection,
        snapshot: &Snapshot,
        manner: &mut Manner,
        exchange: &mut Exchange,
    ) -> Response<Bytes> {
        let record = exchange.record();
        manner.is_for_kubernetes = record.endpoint.is_none() && snapshot.routes.is_for_kubernetes(&record.host);
        match step_up::offer(rejection, &snapshot.login, record.principal.as_deref(), manner) {
            Ok(mut response) => {
                respond::identify(&mut response, record.id);
                response
            }
            Err(rejection) => {
                let who = record.principal.as_ref().map(|principal| &*principal.username);
                let metadata = manner.resource_metadata(&record.host);
                let asker = manner.asker(metadata.as_deref(), who, self.app.clock.now(), &snapshot.brand);
                respond::refuse(&rejection, &asker)
            }
        }
    }

    async fn process(
        &self,
        snapshot: &Arc<Snapshot>,
        connection: &Arc<Connection>,
        request: Request<Incoming>,
        id: Uuid,
        exchange: &mut Exchange,
        manner: &mut Manner,
    ) -> Result<Ending, Rejection> {
        let received = received(connection, snapshot);
        if let Some(proxy) = forward_auth::asks(&request, received.trusted, snapshot) {
            let judged = Box::pin(self.judge(proxy, snapshot, connection, request, exchange, manner)).await;
            return judged.map_err(|rejection| forward_auth::as_understood_by(proxy, rejection));
        }
        let sent = Sent::of(&request);
        let clean = sanitize(request, received, id, |host| snapshot.routes.host(host));
        let request = clean.inspect_err(|_| exchange.note_sent(&sent))?;
        note_request(&request, exchange, manner);
        if self.app.memory.level() >= Level::RefuseRequests {
            return Err(short_of_memory());
        }
        let target = snapshot.routes.find(request.host(), request.path(), request.method());
        if let Ok(Target::Own | Target::Tokens(_) | Target::Interceptor) = target {
            refuse_impersonation(&request)?;
        }
        let route = match target {
            Ok(Target::Upstream(route)) => route,
            Ok(Target::Own) => {
                let answer = Box::pin(self.app.endpoints.serve(snapshot, request, exchange)).await;
                return answer.map(|response| own(response, id));
            }
            Ok(Target::Tokens(endpoint)) => {
                let Some(tokens) = &snapshot.tokens else { return Err(Miss::Path.into()) };
                let answer = sts::answer(&self.app, &self.pools, snapshot, tokens, (endpoint, request), exchange);
                let answer = Box::pin(answer).await;
                return answer.map(|response| own(response, id));
            }
            Ok(Target::Interceptor) => {
                let answer = Box::pin(interceptor::answer(&self.app, &self.pools, snapshot, request, exchange)).await;
                return answer.map(|response| own(response, id));
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

        let authenticator = self.authenticator(snapshot);
        let authenticated = authenticator.authenticate(request, &route, connection, exchange.record()).await;
        let authenticated = authenticated.map_err(|rejection| match exchange.record().address {
            Some(address) if route.schemes.contains(&Scheme::Session) => {
                self.app.refusals.count(rejection, address, snapshot.limits.refusals_per_address)
            }
            _ => rejection,
        })?;
        let (authenticated, claim) = match authenticated {
            authn::Outcome::Known(authenticated, claim) => (authenticated, claim),
            authn::Outcome::Respond(response) => return Ok(own(response, id)),
        };
        exchange.record().kubernetes = authenticated.kubernetes().cloned();
        let authenticated = match authenticated.kubernetes().and_then(|attributes| tekton::concerns(attributes)) {
            Some(kind) => {
                let (limits, record) = (&snapshot.limits, exchange.record());
                let read = authenticated.read_run(kind, limits, &self.app.budget, &snapshot.policy, record);
                let authenticated = Box::pin(read).await?;
                exchange.record().run = authenticated.run().cloned();
                authenticated
            }
            None if authenticated.kubernetes().is_some_and(|attributes| tekton::template::is_template(attributes)) => {
                let (limits, record) = (&snapshot.limits, exchange.record());
                Box::pin(authenticated.read_template(limits, &self.app.budget, record)).await?
            }
            None => authenticated,
        };
        match route.kind {
            RouteKind::Webhook => Box::pin(self.take(snapshot, authenticated, &route, claim, exchange)).await,
            RouteKind::Dashboard => Box::pin(self.browse(snapshot, authenticated, exchange)).await,
            _ => self.forward(snapshot, self.decide(snapshot, authenticated, None, exchange)?, exchange).await,
        }
    }

    /// Takes what came for an EventListener: a delivery is stored or forwarded, whatever else comes is forwarded.
    async fn take(
        &self,
        snapshot: &Arc<Snapshot>,
        authenticated: authn::Authenticated,
        route: &Arc<Route>,
        claim: Option<webhooks::Claim>,
        exchange: &mut Exchange,
    ) -> Result<Ending, Rejection> {
        let sender = route.webhook.as_ref().filter(|_| claim.is_some());
        let taken = match claim {
            Some(webhooks::Claim::Held(keys, settings)) => {
                Box::pin(self.hold(snapshot, authenticated, &keys, settings, exchange)).await
            }
            Some(webhooks::Claim::Reserved(reservation)) => {
                self.deliver(snapshot, authenticated, route, Some(reservation), exchange).await
            }
            None => self.deliver(snapshot, authenticated, route, None, exchange).await,
        };
        taken.map_err(|rejection| match sender {
            Some(sender) => sender.heard(rejection),
            None => rejection,
        })
    }

    /// Forwards to an EventListener and tells the sender what became of it, while it still waits. The EventListener makes its
    /// run whether or not the sender does, so this goes on when they have left: else nobody would know who caused the run, and the
    /// delivery would be sent once more.
    async fn deliver(
        &self,
        snapshot: &Arc<Snapshot>,
        authenticated: authn::Authenticated,
        route: &Arc<Route>,
        reservation: Option<webhooks::Reservation>,
        exchange: &mut Exchange,
    ) -> Result<Ending, Rejection> {
        let (worker, snapshot, route) = (self.clone(), Arc::clone(snapshot), Arc::clone(route));
        let (unfinished, mut lent) = (self.app.drain.begin_task(), exchange.lend());
        // Here and not on the control runtime: the connections to the upstream are this worker's.
        let delivered = tokio::spawn(async move {
            let _unfinished = unfinished;
            let delivered = worker.deliver_once(&snapshot, authenticated, &route, reservation, &mut lent).await;
            (delivered, lent)
        });
        match delivered.await.map_err(JoinError::try_into_panic) {
            Ok((delivered, back)) => {
                *exchange = back;
                delivered
            }
            Err(Ok(panic)) => resume_unwind(panic),
            // The worker ends, and this with it.
            Err(Err(_)) => pending().await,
        }
    }

    async fn deliver_once(
        &self,
        snapshot: &Arc<Snapshot>,
        authenticated: authn::Authenticated,
        route: &Arc<Route>,
        reservation: Option<webhooks::Reservation>,
        exchange: &mut Exchange,
    ) -> Result<Ending, Rejection> {
        let sender = route.webhook.as_ref().filter(|_| reservation.is_some());
        let deadline = sender.map(|sender| delivery::deadline(sender.answer_within(), exchange.elapsed()));
        let once = reservation.as_ref().map(webhooks::Reservation::once);
        let is_sent = AtomicBool::new(false);
        let forward = async {
            let cleared = self.decide(snapshot, authenticated, once, exchange)?;
            is_sent.store(true, Ordering::Relaxed);
            let ending = self.forward(snapshot, cleared, exchange).await?;
            if let Ending::Response { response, .. } = &ending {
                delivery::check(response.status())?;
            }
            Ok(ending)
        };
        let forwarded = delivery::answer_by(deadline, forward).await;
        let forwarded = match forwarded {
            Ok(Ending::Response { response, forwarded }) => {
                let (response, event_id) = delivery::read(response, deadline.unwrap_or_else(delivery::unhurried)).await;
                self.note_events(snapshot, once, event_id, exchange).await;
                Ok(Ending::Response { response, forwarded })
            }
            other => {
                if is_sent.load(Ordering::Relaxed) {
                    self.note_events(snapshot, once, None, exchange).await;
                }
                other
            }
        };
        if let Some(reservation) = reservation {
            let is_taken =
                matches!(&forwarded, Ok(Ending::Response { response, .. }) if response.status().is_success());
            delivery::settle(reservation, is_taken, self.app.clock.now()).await;
        }
        forwarded
    }

    /// From a known caller to a request that may be sent, with the identity that it is sent under. `once` names the
    /// delivery that it is.
    pub(super) fn decide(
        &self,
        snapshot: &Snapshot,
        authenticated: authn::Authenticated,
        once: Option<webhooks::Once>,
        exchange: &mut Exchange,
    ) -> Result<Box<Cleared>, Rejection> {
        let now = self.app.clock.now();
        let decided = authorize(&snapshot.policy, authenticated, now);
        let decision = exchange.record().decision.insert(recorded(&decided.decision));
        let mut permit = decided.permit?;
        let given = snapshot.policy.kubernetes_groups(permit.principal());
        decision.grants = given.grants;
        let length = permit.length();
        if length != Length::Short && self.app.memory.level() >= Level::RefuseStreams {
            return Err(short_of_memory());
        }
        let announced = permit.is_write() || length != Length::Short;
        let upstream = Arc::clone(permit.route().upstream.name());
        let assertion = match exchange.record().body_digest {
            Some(body) if permit.route().kind == RouteKind::Webhook => {
                let id = exchange.record().id.to_string();
                let asserted = Asserted {
                    principal: permit.principal(),
                    route: permit.route(),
                    groups: &given.groups,
                    request_id: &id,
                    body_sha256: &body,
                    // Whoever comes without a delivery sends each request once.
                    once: once.unwrap_or_else(|| webhooks::Once { id: sha256(&[id.as_bytes()]), window: None }),
                    triggers: snapshot.policy.trigger_limits(permit.principal(), &permit.view(now)),
                };
                let assertion = snapshot.assertions.sign(asserted, now);
                Some(assertion.ok_or_else(|| Rejection::new(Reason::Internal, "the assertion cannot be signed"))?)
            }
            _ => None,
        };
        let (body, apply) = match permit.take_document() {
            Some(document) => {
                let rule = decided.decision.rule.as_deref();
                let request = exchange.record().id;
                let makes = document.run.intent.makes_a_run();
                let (body, apply) = document.into_body(&Attribution { principal: permit.principal(), rule, request });
                (Some((self.app.budget.hold(body).ok_or_else(short_of_memory)?, makes)), apply)
            }
            None => (None, None),
        };
        let mut outbound = Outbound::assume(permit, &given.groups)?;
        if let Some((body, makes_a_run)) = body {
            outbound.attribute(body, makes_a_run);
        }
        if let Some(assertion) = assertion {
            outbound.assert(assertion);
        }
        let record = exchange.record();
        record.impersonated_groups = (record.kind == Some(RouteKind::Kubernetes)).then(|| Arc::clone(&given.groups));
        record.upstream = Some(audit::Upstream { name: upstream, status: None });
        exchange.reserve(if announced { 2 } else { 1 })?;
        outbound.note_body(announced, || Arc::clone(exchange.received()));
        Ok(Box::new(Cleared { outbound, groups: given.groups, apply, announced, epoch: exchange.epoch(), now }))
    }

    /// From a request that may be sent to the upstream's answer.
    pub(super) async fn forward(
        &self,
        snapshot: &Arc<Snapshot>,
        mut cleared: Box<Cleared>,
        exchange: &mut Exchange,
    ) -> Result<Ending, Rejection> {
        if cleared.announced {
            Box::pin(exchange.decided()).await?;
        }
        let is_ready = match cleared.apply.take() {
            Some(apply) => Box::pin(self.keep_cause(apply, &mut cleared.outbound)).await,
            None => Ok(()),
        };
        let makes_a_run = exchange.record().run.as_ref().is_some_and(|run| run.intent.makes_a_run());
        let forwarded = match is_ready {
            Err(rejection) => Err(rejection),
            Ok(()) if makes_a_run && snapshot.tokens.is_some() => {
                Box::pin(self.make(snapshot, cleared, exchange)).await
            }
            Ok(()) => self.send(&mut cleared).await,
        };
        let status = match &forwarded {
            Ok(Forwarded::Response { response, .. }) => Some(response.status()),
            Ok(Forwarded::Upgraded(_)) => Some(StatusCode::SWITCHING_PROTOCOLS),
            // The caller is told otherwise, as it is our credential.
            Err(rejection) if rejection.reason() == Reason::UpstreamCredential => Some(StatusCode::UNAUTHORIZED),
            Err(_) => None,
        };
        if let Some(upstream) = &mut exchange.record().upstream {
            upstream.status = status;
        }
        match forwarded? {
            Forwarded::Response { response, long } => {
                if long {
                    exchange.answered(response.status(), true);
                    exchange.started();
                }
                Ok(Ending::Response { response, forwarded: true })
            }
            Forwarded::Upgraded(upgraded) => Ok(Ending::Upgraded(upgraded)),
        }
    }

    /// Sends, and gives what came.
    pub(super) async fn send(&self, cleared: &mut Cleared) -> Result<Forwarded<Exchange>, Rejection> {
        let Cleared { outbound, groups, epoch, now, .. } = cleared;
        let begin = |outbound: &Outbound, kind| {
            let handle = self.app.streams.register(outbound.permit.stream(kind, Arc::clone(groups), *now));
            if handle.missed(*epoch)
                && let Some(why) = self.app.refuses(handle.stream())
            {
                handle.end(why);
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
        }
    }
}

/// What a client asks to be is never passed on and never ignored.
pub(super) fn refuse_impersonation<B>(request: &CleanRequest<B>) -> Result<(), Rejection> {
    let Some(asked) = &request.meta().impersonation else { return Ok(()) };
    let names: Vec<&str> = asked.headers.iter().map(http::HeaderName::as_str).collect();
    let detail = format!("the request asks to be somebody else ({}), and no rule allows that here", names.join(", "));
    Err(Rejection::new(Reason::ImpersonationRefused, detail)
        .fix("send it without these headers (`kubectl` without `--as`)"))
}

pub(super) fn short_of_memory() -> Rejection {
    Rejection::new(Reason::Overloaded, "Doorward is short of memory").fix("try again in a moment")
}

impl Serve for Worker {
    type Body = ResponseBody<Exchange>;

    fn serve(
        &self,
        connection: &Arc<Connection>,
        request: Result<Request<Incoming>, Unfit>,
    ) -> impl Future<Output = Answer> + Send + Unpin + use<> {
        Box::pin(self.clone().answer(Arc::clone(connection), request))
    }

    fn memory(&self) -> Level {
        self.app.memory.level()
    }
}

pub(super) fn received<'a>(connection: &'a Connection, snapshot: &'a Snapshot) -> Received<'a> {
    let trusted_proxies = snapshot.trusted_proxies(&connection.listener);
    let peer = connection.peer.ip();
    Received {
        peer: connection.peer,
        peer_line: connection.peer_line.as_ref(),
        // By now, whatever it was when it connected.
        trusted: trusted_proxies.iter().any(|net| net.contains(&peer)),
        trusted_proxies,
        tls: connection.tls.is_some(),
        server_name: connection.tls.as_ref().and_then(|tls| tls.server_name.as_deref()),
    }
}

pub(super) fn own(mut response: Response<Bytes>, id: Uuid) -> Ending {
    respond::identify(&mut response, id);
    Ending::Response { response: response.map(ResponseBody::full), forwarded: false }
}

/// What only an operator may know goes to the log; the caller's own mistakes are in the audit trail.
fn log(rejection: &Rejection, id: Uuid) {
    if rejection.status().is_server_error() {
        tracing::warn!(request_id = %id, reason = rejection.reason().as_str(), error = rejection as &dyn std::error::Error, "request failed");
    } else {
        tracing::debug!(request_id = %id, reason = rejection.reason().as_str(), error = rejection as &dyn std::error::Error, "request refused");
    }
}
