//! The process from its start to its end.

use std::{
    future::pending,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::registry::Registry;
use tokio::runtime::Runtime;

use super::{
    App, Metrics, Operators, account_tokens,
    assemble::{Parts, Prepared},
    reload,
    signals::Signals,
    tasks,
};
use crate::{
    admin::{
        health_metric::HealthMetric,
        metrics::RequestMetrics,
        server::{AdminServer, AdminSettings},
        socket::CommandSocket,
    },
    audit,
    authn::break_glass,
    clock::Clock,
    code_pages,
    config::{self, Diagnosis, Refused, Sources, report::Severity},
    downstream::{BindError, Bound, Downstream},
    egress::{Egress, Proxy},
    issuers,
    logging::{Logging, LoggingError},
    open_files,
    request::worker::Worker,
    runtime::{control, worker_count},
    snapshot::{self, Context, Resolved},
    store::OpenError,
    sts::KeyMetric,
    supervisor::{TaskHandle, TaskSpec},
    upstream::{SEARCH_LIST_FIX, search_list_problem},
};

/// The longest time that long-lived streams have at the end to inform their clients, before connections are cut.
const STREAM_GRACE: Duration = Duration::from_secs(2);

/// How long background tasks may take to end after the drain.
pub(super) const TASKS_END: Duration = Duration::from_secs(5);

/// How long exports of the trail may take to send its last records, once these are written.
pub(super) const EXPORTS_END: Duration = Duration::from_secs(5);

/// The reason why Doorward did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is invalid; the error lists all problems.
    #[error("{0}")]
    Configuration(Box<Refused>),
    #[error("{0}")]
    Bind(#[from] BindError),
    #[error("{0}")]
    Store(#[from] OpenError),
    #[error("{0}")]
    Audit(#[from] audit::OpenError),
    #[error("{0}")]
    Log(#[from] LoggingError),
    #[error("{what}: {error}")]
    Io { what: String, error: io::Error },
    #[error("the system's certificate authorities cannot be read: {0}")]
    Trust(String),
    #[error("{0}")]
    Proxy(String),
}

impl StartError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io { what, error }
    }
}

/// Resolves a configuration as a start does, and discards it: for `doorward check`.
pub fn check(
    runtime: &Runtime,
) -> Result<impl FnMut(&config::raw::Root, &mut config::resolver::Resolver) -> Resolved, StartError> {
    check_at(runtime, Clock::default())
}

/// Does the same as [`check`] with another clock, for `doorward explain` at another time than now.
pub fn check_at(
    runtime: &Runtime,
    clock: Clock,
) -> Result<impl FnMut(&config::raw::Root, &mut config::resolver::Resolver) -> Resolved, StartError> {
    let context = context(runtime, clock, &Metrics::default(), &RequestMetrics::default(), of_system()?);
    Ok(move |root: &config::raw::Root, resolver: &mut config::resolver::Resolver| {
        snapshot::resolve(root, resolver, &context, None)
    })
}

/// Does the part of [`check`] that is possible on another machine than the one that Doorward will run on, which may
/// lack certificate authorities.
pub fn check_elsewhere(
    runtime: &Runtime,
) -> Result<impl FnMut(&config::raw::Root, &mut config::resolver::Resolver) -> Resolved, StartError> {
    let egress = Egress::without_authorities().map_err(StartError::Trust)?;
    let context = context(runtime, Clock::default(), &Metrics::default(), &RequestMetrics::default(), egress);
    Ok(move |root: &config::raw::Root, resolver: &mut config::resolver::Resolver| {
        resolver.elsewhere();
        snapshot::resolve(root, resolver, &context, None)
    })
}

/// Returns the client that uses the proxy and trusts the system's certificate authorities.
fn of_system() -> Result<Egress, StartError> {
    Egress::new(Proxy::from_environment().map_err(StartError::Proxy)?).map_err(StartError::Trust)
}

fn context(runtime: &Runtime, clock: Clock, metrics: &Metrics, requests: &RequestMetrics, egress: Egress) -> Context {
    let issuers = issuers::Context {
        refetches: issuers::Context::refetches(&clock),
        clock,
        control: runtime.handle().clone(),
        egress,
        metrics: metrics.issuers.clone(),
    };
    Context { issuers, requests: requests.clone() }
}

/// Runs Doorward until SIGTERM or SIGINT. `started` is called once it accepts connections.
pub fn run(sources: &Sources, started: impl FnOnce()) -> Result<(), StartError> {
    let runtime = control().map_err(StartError::io("the control runtime cannot be started"))?;
    let signals = runtime.block_on(Signals::of_start());
    let (signals, starting) = signals.map_err(StartError::io("signals cannot be received"))?;
    let metrics = Metrics::default();
    let requests = RequestMetrics::default();
    let clock = Clock::default();
    let context = context(&runtime, clock.clone(), &metrics, &requests, of_system()?);
    let (loaded, resolved) = config::load(sources, |root, resolver| snapshot::resolve(root, resolver, &context, None))
        .map_err(StartError::Configuration)?;
    let logging = Logging::init(&loaded.raw.log)?;
    warn_of(&loaded.warnings);
    if let Err(error) = open_files::raise_limit() {
        tracing::warn!(%error, "the limit of open files (RLIMIT_NOFILE) stays as it is, although a higher one is allowed");
    }
    if let Some(why) = search_list_problem() {
        tracing::error!(fix = SEARCH_LIST_FIX, "{why}");
    }
    let proxy = context.issuers.egress.proxy();
    if proxy.is_set() {
        tracing::info!(%proxy, "issuers are called through a proxy");
    }

    let parts = Parts { runtime: &runtime, metrics, requests, clock, context };
    let Prepared { app, downstream: settings, admin } = parts.open(&loaded, resolved)?;

    let bound = Bound::bind(&settings, worker_count(loaded.raw.workers))?;
    let listeners: Vec<(String, SocketAddr)> =
        bound.addresses().map(|(name, address)| (name.to_owned(), address)).collect();
    let admin_server = bind_admin(&runtime, &app, &admin, &logging)?;
    let socket = match &admin.socket {
        None => None,
        Some(path) => {
            let socket = runtime.block_on(CommandSocket::bind(path, &admin.socket_users));
            Some(socket.map_err(StartError::io("the socket for operator commands cannot be opened"))?)
        }
    };

    app.snapshot.load().issuers.start();
    // Before the first request, which would otherwise be refused for lack of a token.
    runtime.block_on(account_tokens::obtain(&app.own_pools(), &app.snapshot.load().upstreams, &app.clock));
    // From here on there are connections, and the process drains before it ends.
    starting.abort();
    let downstream = start_workers(bound, &app)?;
    let _entered = runtime.enter();
    let delivering = tasks::start(&app);
    let admin_address = admin_server.as_ref().map(AdminServer::address);
    let handles = reload::AdminHandles {
        token: admin_server.as_ref().map(AdminServer::token),
        socket_users: socket.as_ref().map(CommandSocket::users),
    };
    if let Some(server) = admin_server {
        serve_admin(&app, server);
    }
    let reloader = reload::Reloader::new(sources.clone(), Arc::clone(&app), loaded, logging, handles)
        .map_err(StartError::io("the files of the configuration cannot be watched"))?;
    let trigger = reloader.trigger();
    if let Some(socket) = socket {
        serve_operators(&app, socket, Operators::new(Arc::clone(&app), trigger));
    }
    for (listener, address) in listeners {
        tracing::info!(%listener, %address, "listening");
    }
    if let Some(address) = admin_address {
        tracing::info!(listener = "admin", %address, "listening");
    }
    break_glass::log_closed(app.snapshot.load().break_glass.as_ref(), app.clock.now());
    started();
    tracing::info!(generation = 1, policy = &**app.snapshot.load().policy.digest(), "started");
    runtime.spawn(code_pages::release_when_settled());
    let logging = runtime.block_on(serve(reloader, &downstream, &app, &delivering, signals));
    stop(&runtime, downstream, &app);
    drop(logging);
    Ok(())
}

/// Binds the listener for health and metrics, and registers all metrics.
fn bind_admin(
    runtime: &Runtime,
    app: &Arc<App>,
    admin: &AdminSettings,
    logging: &Logging,
) -> Result<Option<AdminServer>, StartError> {
    let mut registry = Registry::with_prefix("doorward");
    app.metrics.register(&mut registry);
    app.requests.register(&mut registry);
    app.trail.metrics().register(&mut registry);
    logging.metrics().register(&mut registry);
    let token_keys = {
        let app = Arc::clone(app);
        move || app.snapshot.load().own_issuer.as_ref()?.keys(app.clock.now())
    };
    registry.register_collector(Box::new(KeyMetric(token_keys)));
    registry.register_collector(Box::new(HealthMetric(app.health.clone())));
    let Some(address) = admin.address else { return Ok(None) };
    let server = AdminServer::bind(address, admin.token.as_ref(), app.health.clone(), Arc::new(registry));
    let bound = runtime.block_on(server);
    bound.map(Some).map_err(StartError::io(format!("the admin listener cannot bind {address}")))
}

fn serve_admin(app: &Arc<App>, server: AdminServer) {
    let server = Arc::new(server);
    tasks::spawn_until(app, TaskSpec::new("admin"), move |_, stop| {
        let server = Arc::clone(&server);
        async move { server.serve(stop).await }
    });
}

fn serve_operators(app: &Arc<App>, socket: CommandSocket, operators: Operators) {
    let (socket, operators) = (Arc::new(socket), Arc::new(operators));
    tasks::spawn_until(app, TaskSpec::new("operator-socket"), move |_, stop| {
        let (socket, operators) = (Arc::clone(&socket), Arc::clone(&operators));
        async move { socket.serve(operators, stop).await }
    });
}

/// Serves until a signal, and then until the requests in flight have ended.
async fn serve(
    mut reloader: reload::Reloader,
    downstream: &Downstream,
    app: &Arc<App>,
    delivering: &TaskHandle,
    mut signals: Signals,
) -> Logging {
    let reloads = async {
        loop {
            let cause = reloader.changed().await;
            reloader.reload(cause, downstream).await;
            tokio::spawn(code_pages::release_when_settled());
        }
    };
    // A reload that is waiting is cancelled: a generation takes effect as a whole or not at all.
    let by_hand = tokio::select! {
        () = reloads => false,
        by_hand = signals.asked() => by_hand,
    };
    app.health.drain();
    app.outcome.stopping();
    // While connections are still accepted, as an EventListener calls the interceptor about the delivery that it has
    // just received.
    delivering.stop();
    let limits = Arc::clone(&app.snapshot.load().limits);
    let connections = downstream.drain().connections();
    tracing::info!(connections, "draining");
    let (accept, rest) = limits.drain_times();
    downstream.drain().begin();
    // A load balancer keeps sending requests until it notices, even if it has no connection at the moment. Somebody who
    // presses Ctrl-C at a terminal, or sends a second signal, wants Doorward to stop now.
    let pause = if by_hand && connections == 0 && !app.held.is_delivering() { Duration::ZERO } else { accept };
    let skip_wait = tokio::select! {
        () = tokio::time::sleep(pause) => by_hand,
        _ = signals.asked() => true,
    };
    app.streams.drain();
    downstream.drain().close();
    let stream_grace = STREAM_GRACE.min(rest / 4);
    let begun = Instant::now();
    if !skip_wait {
        let recheck = async {
            // A reload that was cancelled may not have rechecked all streams.
            app.streams.recheck_in_parts(|stream| app.refusal_of(stream)).await;
            pending::<()>().await;
        };
        tokio::select! {
            () = downstream.drain().until_empty(rest - stream_grace) => {}
            () = recheck => {}
            _ = signals.asked() => {}
        }
    }
    app.streams.end_lasting();
    downstream.drain().until_empty(rest.saturating_sub(begun.elapsed() + stream_grace / 4)).await;
    app.streams.end_rest();
    let cut = downstream.drain().wait(rest.saturating_sub(begun.elapsed())).await;
    let unfinished = downstream.drain().unfinished();
    if unfinished > 0 {
        tracing::warn!(
            unfinished,
            "work was still running at the end of the drain and may be lost: tasks of runs that were being created may get no \
             tokens, deliveries may count as new when they are repeated, and people whose sessions were being refreshed may \
             have to sign in again; raise `limits.drain` if this repeats"
        );
    }
    tracing::info!(cut, "drained");
    reloader.into_logging()
}

fn stop(runtime: &Runtime, downstream: Downstream, app: &Arc<App>) {
    downstream.join();
    let late = runtime.block_on(app.supervisor.shutdown(TASKS_END));
    if !late.is_empty() {
        tracing::warn!(tasks = ?late, "tasks did not end in time");
    }
    app.trail.shutdown();
    // Last, so that the end of the trail is exported too.
    let late = runtime.block_on(app.exports.shutdown(EXPORTS_END));
    if !late.is_empty() {
        tracing::warn!(tasks = ?late, "exports did not end in time");
    }
    // Otherwise the next start of an embedded store reads the whole file in order to repair it.
    if let Err(error) = runtime.block_on(app.store.close()) {
        tracing::warn!(%error, "the store was not closed properly");
    }
    tracing::info!("stopped");
}

pub(super) fn warn_of(warnings: &Diagnosis) {
    for finding in warnings.findings() {
        tracing::warn!(at = %warnings.origin(finding), help = finding.help.as_deref(), "{}", finding.message);
    }
}

/// Returns places and texts for the audit trail: warnings of a configuration that was accepted, but only errors of one
/// that was refused, so that nobody takes a warning for the reason.
pub(super) fn problems(diagnosis: &Diagnosis, severity: Severity) -> Vec<String> {
    let findings = diagnosis.findings().iter().filter(|finding| finding.severity == severity);
    findings.map(|finding| format!("{}: {}", finding.at, finding.message)).collect()
}

fn start_workers(bound: Bound, app: &Arc<App>) -> Result<Downstream, StartError> {
    let (metrics, drain) = (app.metrics.downstream.clone(), app.drain.clone());
    let app = Arc::clone(app);
    let make = move |_| Worker::new(Arc::clone(&app), app.own_pools());
    bound.start(make, &metrics, drain).map_err(StartError::io("the workers cannot be started"))
}
