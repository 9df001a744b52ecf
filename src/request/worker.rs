//! The worker that serves requests: it opens the audit record, runs the [pipeline](super::pipeline), and makes a
//! response of its ending.
//!
//! - [`Ledger`]: the trail and the counters that an exchange reports to.
//! - **Epoch**: the number of sweeps over all open streams, which follow reloads and revocations. It is read before the
//!   snapshot of the configuration. If it has changed when a stream is registered, a sweep missed that stream, which is
//!   then checked by itself.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Body;
use uuid::Uuid;

use super::{
    exchange::{AnswerBy, Exchange, Ledger, RawTarget},
    forward,
    pipeline::{Answer, Ending, arrival},
    respond::{self, Manner},
    step_up,
};
use crate::{
    admin::metrics::RouteMetrics,
    app::App,
    body::{ClientBody, ResponseBody},
    downstream::{Connection, Protocol, Serve, Unfit},
    error::{Reason, Rejection},
    memory::{Level, RequestMemory},
    snapshot::Snapshot,
    upstream::Pools,
};

/// Serves requests on one worker.
#[derive(Clone, Debug)]
pub struct Worker {
    pub(super) app: Arc<App>,
    pub(super) pools: Pools,
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
                exchange.note_raw_target(&RawTarget::of(&request, arrival(&connection, &snapshot)));
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
        manner.kubernetes.clone_from(&record.kubernetes);
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

    fn request_memory(&self) -> RequestMemory {
        self.app.memory.requests().clone()
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
