//! The running listeners: the workers' accept loops, reload and shutdown.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use rustix::io::Errno;
use rustls::{ServerConfig, server::ProducesTickets};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};

use super::{
    Serve, Settings,
    admission::Admission,
    connection,
    drain::{Drain, Phase},
    listener::{BACKLOG, Bound, most_connections},
    liveness,
    metrics::{Metrics, Refused},
    registry::Registry,
    settings::ListenerSettings,
    tls,
};
use crate::{
    config::{raw::Limits, values::Span},
    keepalive::set_keepalive,
    lock::lock,
    memory::{Level, RequestMemory},
    open_files,
    runtime::Workers,
};

/// The pause after a failure that the next attempt would also meet, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long to wait for cut connections to end.
const CUT_PAUSE: Duration = Duration::from_millis(10);
const CUT_PAUSES: u32 = 100;

/// How long a warning about connections is not repeated, as anybody who can connect can cause it.
const WARN_AGAIN: Duration = Duration::from_secs(60);

/// What to do when the process has opened as many files as it may.
const NO_FILES_FIX: &str = "raise the number of files that the process may open (the hard limit of RLIMIT_NOFILE), or lower \
                            `limits.connections_file_share`, so that connections leave more of them to upstreams";

/// The running listeners.
#[derive(Debug)]
pub struct Downstream {
    listeners: Vec<Arc<Listener>>,
    drain: Drain,
    workers: Workers,
}

/// A change that a reload cannot make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeedsRestart(pub String);

/// One listener, shared by all workers.
pub(super) struct Listener {
    pub(super) name: Arc<str>,
    configured: SocketAddr,
    tickets: Option<Arc<dyn ProducesTickets>>,
    pub(super) client_ca: Arc<tls::CurrentCa>,
    /// The `limits.tcp_keepalive` that accepted connections inherit.
    keepalive: Span,
    settings: ArcSwap<ConnectionSettings>,
    accepted: Counter,
    /// Set if the listener has TLS.
    certificate_ends: Option<Gauge>,
    warned: Mutex<Warned>,
}

/// How a connection violates the settings of the PROXY protocol.
#[derive(Clone, Copy, Debug)]
pub(super) enum ProxyFault {
    /// A listed load balancer sends no header, or an invalid one.
    Header,
    /// A peer that is not listed sends a header, which anybody can do.
    Peer,
}

/// When each fault was last logged. The one that anybody can cause does not hide the other.
#[derive(Debug, Default)]
struct Warned {
    header: Option<Instant>,
    peer: Option<Instant>,
    /// About failures to accept.
    accept: Option<Instant>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The settings that a reload changes. A connection keeps those that it began with.
pub(super) struct ConnectionSettings {
    pub(super) limits: Arc<Limits>,
    pub(super) proxy_protocol_from: Arc<[IpNet]>,
    pub(super) trusted_proxies: Arc<[IpNet]>,
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) client_ca: Option<Arc<tls::ClientCa>>,
}

/// What the connections of a worker share.
pub(super) struct Shared<S> {
    pub(super) service: S,
    pub(super) request_memory: RequestMemory,
    pub(super) registry: Arc<Registry>,
    pub(super) drain: Drain,
    pub(super) metrics: Metrics,
    admission: Arc<Admission>,
    ids: Arc<AtomicU64>,
}

impl Bound {
    /// Starts a worker thread for each socket of a listener. `make` is called on each of them, within its runtime, so
    /// that a service may own what belongs to the worker. `drain` ends them.
    pub fn start<S: Serve>(
        self,
        make: impl Fn(usize) -> S + Send + Sync + 'static,
        metrics: &Metrics,
        drain: Drain,
    ) -> io::Result<Downstream> {
        let Self { listeners: bound, settings } = self;
        let connections = settings.limits.connections;
        let possible = most_connections(&settings.limits, open_files::limit());
        // A few less, for the files that are kept back, need no action.
        if possible < connections - connections / 10 {
            tracing::warn!(
                connections,
                possible,
                "fewer connections are possible than configured: raise the limit of open files (RLIMIT_NOFILE), or \
                 `limits.connections_file_share`"
            );
        }
        let listeners: Vec<Arc<Listener>> = settings
            .listeners
            .iter()
            .map(|listener| Arc::new(Listener::new(listener, &settings.limits, metrics)))
            .collect();
        let count = bound.first().map_or(0, |bound| bound.sockets.len());
        let mut sockets: Vec<Vec<Socket>> = (0..count).map(|_| Vec::new()).collect();
        for (listener, bound) in listeners.iter().zip(bound) {
            for (worker, socket) in sockets.iter_mut().zip(bound.sockets) {
                worker.push((Arc::clone(listener), socket));
            }
        }
        let sockets = sockets.into_iter().map(|sockets| Arc::new(Mutex::new(sockets))).collect();
        let admission = Arc::new(Admission::default());
        let ids = Arc::new(AtomicU64::new(1));
        let (worker_drain, metrics) = (drain.clone(), metrics.clone());
        let make = Arc::new(make);
        let workers = Workers::start(sockets, move |index, sockets: &Arc<Held>| {
            let (make, drain, metrics) = (Arc::clone(&make), worker_drain.clone(), metrics.clone());
            let (admission, ids, held) = (Arc::clone(&admission), Arc::clone(&ids), Arc::clone(sockets));
            async move {
                let registry = Arc::new(Registry::new(drain.clone(), metrics.clone()));
                let service = make(index);
                let request_memory = service.request_memory();
                let shared = Shared { service, request_memory, registry, drain, metrics, admission, ids };
                work(Arc::new(shared), &held).await;
            }
        })?;
        Ok(Downstream { listeners, drain, workers })
    }
}

impl Downstream {
    /// Swaps in the certificates, trusted peers and limits of a new generation, for new connections. Returns the other
    /// changes, which need a restart.
    pub fn reload(&self, settings: &Settings) -> Vec<NeedsRestart> {
        let mut left = Vec::new();
        for listener in &self.listeners {
            match settings.listeners.iter().find(|changed| changed.name == listener.name) {
                None => left.push(NeedsRestart(format!("listener `{}` was removed", listener.name))),
                Some(changed) => left.extend(listener.reload(changed, &settings.limits)),
            }
        }
        for listener in &settings.listeners {
            if !self.listeners.iter().any(|known| known.name == listener.name) {
                left.push(NeedsRestart(format!("listener `{}` was added", listener.name)));
            }
        }
        left
    }

    /// The handle that shuts the listeners down.
    pub fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Waits for the workers to end, which they do once [`Drain::wait`] is over. Blocks.
    pub fn join(self) {
        self.workers.join();
    }
}

impl Listener {
    fn new(settings: &ListenerSettings, limits: &Arc<Limits>, metrics: &Metrics) -> Self {
        let tickets = settings.tls.as_ref().and_then(|_| tls::tickets());
        let listener = Self {
            name: Arc::clone(&settings.name),
            configured: settings.address,
            settings: ArcSwap::from_pointee(ConnectionSettings::new(settings, limits, tickets.as_ref())),
            tickets,
            client_ca: Arc::new(tls::CurrentCa::new(settings.client_ca.clone())),
            keepalive: limits.tcp_keepalive,
            accepted: metrics.accepted(&settings.name),
            certificate_ends: settings.tls.as_ref().map(|_| metrics.certificate_ends(&settings.name)),
            warned: Mutex::default(),
        };
        listener.report_certificate_expiry(settings);
        listener
    }

    /// Reports when the certificates that are in use from now on expire.
    fn report_certificate_expiry(&self, settings: &ListenerSettings) {
        if let (Some(gauge), Some(ends)) = (&self.certificate_ends, settings.certificate_ends) {
            gauge.set(ends);
        }
    }

    /// Logs why connections of a load balancer are closed, for those who set it up, but so rarely that nobody else can
    /// fill the log with it.
    pub(super) fn warn_of_proxy_protocol(
        &self,
        fault: ProxyFault,
        peer: SocketAddr,
        why: &dyn std::fmt::Display,
        fix: &'static str,
    ) {
        if self.may_warn(fault, Instant::now()) {
            tracing::warn!(listener = %self.name, %peer, %why, fix, "a connection was closed for its PROXY protocol");
        }
    }

    fn may_warn(&self, fault: ProxyFault, now: Instant) -> bool {
        let mut warned = lock(&self.warned);
        let last = match fault {
            ProxyFault::Header => &mut warned.header,
            ProxyFault::Peer => &mut warned.peer,
        };
        is_due(last, now)
    }

    fn warn_of_accepting(&self, error: &io::Error) {
        if is_due(&mut lock(&self.warned).accept, Instant::now()) {
            let lacks_files =
                Errno::from_io_error(error).is_some_and(|errno| [Errno::MFILE, Errno::NFILE].contains(&errno));
            let fix = lacks_files.then_some(NO_FILES_FIX);
            tracing::warn!(listener = %self.name, %error, fix, "connections cannot be accepted");
        }
    }

    /// Gives a connection the current keep-alive, if it has inherited another.
    fn apply_keepalive(&self, stream: &TcpStream, quiet: Span) {
        if quiet != self.keepalive
            && let Err(error) = set_keepalive(&SockRef::from(stream), quiet.get())
        {
            tracing::debug!(%error, "a connection keeps the TCP keep-alive of the start");
        }
    }

    fn reload(&self, settings: &ListenerSettings, limits: &Arc<Limits>) -> Option<NeedsRestart> {
        // Clients must never find clear text where there was TLS.
        if settings.tls.is_some() != self.settings.load().tls.is_some() {
            return Some(NeedsRestart(format!("TLS of listener `{}` was switched on or off", self.name)));
        }
        self.settings.store(Arc::new(ConnectionSettings::new(settings, limits, self.tickets.as_ref())));
        self.client_ca.store(settings.client_ca.clone());
        self.report_certificate_expiry(settings);
        (settings.address != self.configured)
            .then(|| NeedsRestart(format!("the address of listener `{}` changed to {}", self.name, settings.address)))
    }
}

impl ConnectionSettings {
    fn new(settings: &ListenerSettings, limits: &Arc<Limits>, tickets: Option<&Arc<dyn ProducesTickets>>) -> Self {
        let limits = match settings.connections_per_address {
            Some(connections_per_address) => Arc::new(Limits { connections_per_address, ..(**limits).clone() }),
            None => Arc::clone(limits),
        };
        Self {
            limits,
            proxy_protocol_from: Arc::clone(&settings.proxy_protocol_from),
            trusted_proxies: Arc::clone(&settings.trusted_proxies),
            tls: settings.tls.clone().map(|config| tls::with_tickets(config, tickets)),
            client_ca: settings.client_ca.clone(),
        }
    }
}

/// A listener's socket of one worker.
type Socket = (Arc<Listener>, StdListener);

/// The sockets of a worker, kept outside of what a panic may unwind. A worker that is restarted takes new handles of
/// them, and their queues have gone on filling. Emptied when the listeners close, as the port is open for as long as
/// there is a handle.
type Held = Mutex<Vec<Socket>>;

/// Runs a worker until its listeners are closed and their connections gone.
async fn work<S: Serve>(shared: Arc<Shared<S>>, held: &Held) {
    let listeners = match listen(&shared, held) {
        Ok(listeners) => listeners,
        Err(error) => return tracing::error!(%error, "the worker cannot listen"),
    };
    let mut phase = shared.drain.subscribe();
    loop {
        let reached = *phase.borrow_and_update();
        shared.registry.announce(reached);
        if reached >= Phase::Closing {
            lock(held).clear();
        }
        if reached == Phase::Cut {
            break;
        }
        tokio::select! {
            changed = phase.changed() => if changed.is_err() { break },
            () = sweep(&shared, &listeners) => {}
        }
    }
    for _ in 0..CUT_PAUSES {
        if shared.registry.is_empty() {
            break;
        }
        tokio::time::sleep(CUT_PAUSE).await;
    }
}

/// Starts accepting on all sockets.
fn listen<S: Serve>(shared: &Arc<Shared<S>>, held: &Held) -> io::Result<Vec<Arc<Listener>>> {
    let held = lock(held);
    held.iter()
        .map(|(listener, socket)| {
            let socket = TcpListener::from_std(socket.try_clone()?)?;
            tokio::spawn(accept_all(Arc::clone(shared), Arc::clone(listener), socket));
            Ok(Arc::clone(listener))
        })
        .collect()
}

async fn sweep<S: Serve>(shared: &Shared<S>, listeners: &[Arc<Listener>]) {
    loop {
        let step = listeners.iter().map(|listener| liveness::step(&listener.settings.load().limits)).min();
        let step = step.unwrap_or(Duration::from_secs(1));
        tokio::time::sleep(step).await;
        shared.registry.sweep(step, shared.service.memory());
    }
}

async fn accept_all<S: Serve>(shared: Arc<Shared<S>>, listener: Arc<Listener>, socket: TcpListener) {
    let mut phase = shared.drain.subscribe();
    let mut closing = std::pin::pin!(phase.wait_for(|phase| *phase >= Phase::Closing));
    loop {
        let accepted = tokio::select! {
            biased;
            _ = &mut closing => break,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => admit(&shared, &listener, stream, peer),
            Err(error) => pause_after(&error, &listener, &shared.metrics).await,
        }
    }
    // Connections that the kernel has already accepted would be reset when the socket is closed. No more are taken than
    // the queue holds, or clients that keep connecting would keep this loop going.
    if let Ok(socket) = socket.into_std() {
        for (stream, peer) in (0..BACKLOG).map_while(|_| socket.accept().ok()) {
            if stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = TcpStream::from_std(stream)
            {
                admit(&shared, &listener, stream, peer);
            }
        }
    }
}

fn admit<S: Serve>(shared: &Arc<Shared<S>>, listener: &Arc<Listener>, stream: TcpStream, peer: SocketAddr) {
    listener.accepted.inc();
    if shared.service.memory() >= Level::RefuseConnections {
        return shared.metrics.refused(Refused::Memory);
    }
    let settings = listener.settings.load_full();
    let files = open_files::limit();
    let has_room = open_files::has_room_for_client(&stream, files);
    let most = most_connections(&settings.limits, files);
    let Some(admitted) = has_room.then(|| shared.admission.admit(most)).flatten() else {
        return shared.metrics.refused(Refused::Total);
    };
    listener.apply_keepalive(&stream, settings.limits.tcp_keepalive);
    let id = shared.ids.fetch_add(1, Ordering::Relaxed);
    tokio::spawn(connection::run(Arc::clone(shared), Arc::clone(listener), settings, stream, peer, id, admitted));
}

/// Whether a warning is due that was last given at `last`, which then becomes `now`.
fn is_due(last: &mut Option<Instant>, now: Instant) -> bool {
    let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= WARN_AGAIN);
    if is_due {
        *last = Some(now);
    }
    is_due
}

async fn pause_after(error: &io::Error, listener: &Listener, metrics: &Metrics) {
    // The connection was gone before it was accepted, which says nothing about the next one.
    let of_the_peer = matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    );
    if !of_the_peer {
        metrics.accept_errors.inc();
        listener.warn_of_accepting(error);
    }
    tokio::time::sleep(if of_the_peer { Duration::ZERO } else { ACCEPT_PAUSE }).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise descriptors that have run out look like clients that disconnect, or the reverse, and an alarm watches
    /// the count.
    #[tokio::test(start_paused = true)]
    async fn a_failure_to_accept_is_counted_and_paused_after_unless_it_is_the_peers() {
        let metrics = Metrics::default();
        let listener = Listener::new(&settings(), &Arc::new(Limits::default()), &metrics);
        for (kind, pause, counted) in [
            (io::ErrorKind::ConnectionAborted, Duration::ZERO, 0),
            (io::ErrorKind::ConnectionReset, Duration::ZERO, 0),
            (io::ErrorKind::Interrupted, Duration::ZERO, 0),
            (io::ErrorKind::Other, ACCEPT_PAUSE, 1),
        ] {
            let begun = tokio::time::Instant::now();
            pause_after(&kind.into(), &listener, &metrics).await;
            // The timer has a resolution of milliseconds.
            let waited = begun.elapsed();
            assert!(waited >= pause && waited < pause + Duration::from_millis(2), "{kind}: {waited:?}");
            assert_eq!(metrics.accept_errors.get(), counted, "{kind}");
            assert_eq!(lock(&listener.warned).accept.is_some(), counted > 0, "{kind}");
        }
    }

    fn settings() -> ListenerSettings {
        ListenerSettings {
            name: "main".into(),
            address: "127.0.0.1:0".parse().unwrap(),
            proxy_protocol_from: Arc::default(),
            trusted_proxies: Arc::default(),
            connections_per_address: None,
            tls: None,
            certificate_ends: None,
            client_ca: None,
        }
    }

    /// Otherwise a load balancer that is set up wrong leaves nothing in the log, or anybody who connects can fill it.
    #[test]
    fn a_mismatch_of_the_proxy_protocol_is_logged_once_a_minute() {
        let listener = Listener::new(&settings(), &Arc::new(Limits::default()), &Metrics::default());
        let begun = Instant::now();
        let told = |fault, second| listener.may_warn(fault, begun + Duration::from_secs(second));
        assert_eq!(
            [0, 1, 59, 60, 61, 120].map(|second| told(ProxyFault::Peer, second)),
            [true, false, false, true, false, true]
        );
        assert!(told(ProxyFault::Header, 1), "a stranger's header hides no fault of a balancer");
    }

    /// It came every 50 ms from each listener of each worker.
    #[test]
    fn a_failure_to_accept_is_logged_once_a_minute() {
        let (begun, mut last) = (Instant::now(), None);
        let told = |second| is_due(&mut last, begun + Duration::from_secs(second));
        assert_eq!([0, 1, 59, 60, 61].map(told), [true, false, false, true, false]);
    }

    #[tokio::test]
    async fn a_connection_has_the_keep_alive_in_force_when_it_is_accepted() {
        let settings = settings();
        let listener = Listener::new(&settings, &Arc::new(Limits::default()), &Metrics::default());
        let socket = TcpListener::bind(settings.address).await.unwrap();
        let stream = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
        for seconds in [45, 60] {
            listener.apply_keepalive(&stream, Span::from_secs(seconds));
            assert_eq!(SockRef::from(&stream).tcp_keepalive_time().unwrap(), Duration::from_secs(seconds));
        }
    }
}
