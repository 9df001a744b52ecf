//! The request pipeline: sanitize -> route -> authenticate -> authorize -> assume identity -> forward, with one audit
//! record around it that the [worker](super::worker) opens. Each step consumes the proof type that the previous step
//! made. Start reading at [`Worker::process`].
//!
//! - [`Exchange`]: the audit record and the metrics of one request. It is closed exactly once, on every exit path.
//! - [`Manner`]: how this client reads a refusal: as a page, as a problem in JSON, as the API server's `Status`, or as
//!   gRPC trailers.
//! - [`Cleared`]: a request that was allowed and, where required, recorded, so that it may be sent.

use std::sync::Arc;

use http::{Request, Response, StatusCode};

use super::{
    decide::Cleared,
    exchange::{AnswerBy, Exchange, RawTarget},
    expect::answer_or_refuse,
    forward::{self, Forwarded},
    forward_auth,
    notes::{note_request, note_route, recorded},
    outbound::Outbound,
    own::own_response,
    respond::Manner,
    route::{Miss, Target},
    sanitize::{Arrival, CleanRequest, sanitize},
    worker::Worker,
};
use crate::{
    authn::{self, Authenticator, Scheme},
    body::{ClientBody, ResponseBody},
    config::raw::RouteKind,
    downstream::Connection,
    error::{Reason, Rejection},
    memory::Level,
    snapshot::Snapshot,
    tekton::{self, RunKind},
};

/// A response whose body ends the exchange.
pub(super) type Answer = Response<ResponseBody<Exchange>>;

/// The outcome of a request.
pub(super) enum Ending {
    Response {
        response: Answer,
        by: AnswerBy,
    },
    /// A response after which the connection speaks another protocol.
    Upgraded(forward::Upgraded),
}

impl Worker {
    /// Takes a request through all steps.
    pub(super) async fn process(
        &self,
        snapshot: &Arc<Snapshot>,
        connection: &Arc<Connection>,
        request: Request<ClientBody>,
        exchange: &mut Exchange,
        manner: &mut Manner,
    ) -> Result<Ending, Rejection> {
        let arrival = arrival(connection, snapshot);
        if let Some(proxy) = forward_auth::querying_proxy(&request, arrival.trusted, snapshot) {
            let is_by_url = forward_auth::is_by_url(&request);
            let answer = Box::pin(self.answer_proxy(proxy, snapshot, connection, request, exchange, manner)).await;
            return answer.map_err(|rejection| forward_auth::as_understood_by(proxy, is_by_url, rejection));
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
        if let Err(refusal) = refuse_impersonation(&request) {
            return Err(Box::pin(self.authenticator(snapshot).named(request, &route, refusal)).await);
        }

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
        let (authenticated, acceptance) = match authenticated {
            authn::Authentication::Known(authenticated, acceptance) => (authenticated, acceptance),
            authn::Authentication::Respond(response) => return Ok(own_response(response, exchange.record().id)),
        };
        let authenticated = self.read_body(snapshot, authenticated, exchange).await?;
        match route.kind {
            RouteKind::Webhook => {
                Box::pin(self.take_delivery(snapshot, authenticated, &route, acceptance, exchange)).await
            }
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
        let sent = RawTarget::of(&request, arrival);
        let clean = sanitize(request, arrival, exchange.record().id, |host| snapshot.routes.host(host));
        let request = clean.inspect_err(|_| exchange.note_raw_target(&sent))?;
        note_request(&request, exchange, manner);
        if self.app.memory.level() >= Level::RefuseRequests {
            return Err(Rejection::short_of_memory());
        }
        Ok(request)
    }

    /// Reads the body where rules depend on it; other bodies are streamed. A request that the policy refuses whatever
    /// its body says is refused first, so that callers without any rights cannot fill the memory that bodies share.
    async fn read_body(
        &self,
        snapshot: &Snapshot,
        authenticated: authn::Authenticated,
        exchange: &mut Exchange,
    ) -> Result<authn::Authenticated, Rejection> {
        exchange.record().kubernetes = authenticated.kubernetes().cloned();
        let Some(body) = rule_body(&authenticated) else { return Ok(authenticated) };
        let view = authenticated.view(self.app.clock.now());
        if let Some(decision) = snapshot.policy.refuses_any_body(authenticated.principal(), &view) {
            exchange.record().decision = Some(recorded(&decision));
            if let Some(rejection) = decision.rejection() {
                return Err(rejection);
            }
        }
        let (limits, budget) = (&snapshot.limits, &self.app.budget);
        match body {
            RuleBody::Run(kind) => {
                let read = authenticated.read_run(kind, limits, budget, &snapshot.policy, exchange.record());
                let authenticated = Box::pin(read).await?;
                exchange.record().run = authenticated.run().cloned();
                Ok(authenticated)
            }
            RuleBody::Template => Box::pin(authenticated.read_template(limits, budget, exchange.record())).await,
            RuleBody::Call => Box::pin(authenticated.read_call(limits, budget, exchange.record())).await,
        }
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
                if let Some(why) = self.app.refusal_of(handle.stream()) {
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

/// A body that rules depend on.
enum RuleBody {
    /// Of a request to Kubernetes that creates or changes a Tekton run.
    Run(RunKind),
    /// Of a request to Kubernetes that creates or changes a template.
    Template,
    /// Of a call to an EventListener.
    Call,
}

/// The body of a request, if rules depend on it.
fn rule_body(authenticated: &authn::Authenticated) -> Option<RuleBody> {
    let asked = authenticated.kubernetes();
    if let Some(kind) = asked.and_then(|attributes| tekton::concerns(attributes)) {
        return Some(RuleBody::Run(kind));
    }
    if asked.is_some_and(|attributes| tekton::template::is_template(attributes)) {
        return Some(RuleBody::Template);
    }
    authenticated.is_call().then_some(RuleBody::Call)
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
