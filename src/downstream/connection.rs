//! The start of a connection: admission, PROXY protocol, TLS, and which HTTP it speaks.

use std::{io, net::SocketAddr, pin::Pin, sync::Arc};

use http::HeaderValue;
use ipnet::IpNet;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    Connection, Protocol, Serve,
    accept::{ConnectionSettings, Listener, ProxyFault, Shared},
    admission::{Admitted, client_network},
    arriving::Handshaking,
    http_server,
    io::{Prefix, SNIFF},
    liveness::Liveness,
    metrics::{Metrics, ProtocolError, Refused, TlsFailure},
    proxy_protocol::{self, HeaderError, V1_SIGNATURE, V2_SIGNATURE, begins_alike},
    registry::Registered,
    tls::TlsInfo,
};
use crate::memory::Client;

/// The beginning of every HTTP/2 connection (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8; SNIFF] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves one connection to its end.
pub(super) async fn run<S: Serve>(
    shared: Arc<Shared<S>>,
    listener: Arc<Listener>,
    settings: Arc<ConnectionSettings>,
    stream: TcpStream,
    peer: SocketAddr,
    id: u64,
    admitted: Admitted,
) {
    let _panic = CountPanic(&shared.metrics);
    let liveness = Arc::new(Liveness::new(&settings.limits));
    let registered = shared.registry.register(id, Arc::clone(&liveness), Arc::clone(&settings.limits), admitted);
    let opening =
        Opening { shared: &shared, listener: &listener, settings: &settings, liveness: &liveness, registered, id };
    tokio::select! {
        biased;
        () = liveness.aborted() => {
            if liveness.is_flooded() {
                shared.metrics.protocol_error(ProtocolError::Flood);
            }
        }
        outcome = opening.serve(stream, canonical(peer)) => {
            if let Err(refused) = outcome {
                tracing::debug!(connection = id, listener = %listener.name, %peer, reason = ?refused, "connection refused");
                shared.metrics.refused(refused);
            }
        }
    }
}

struct Opening<'a, S> {
    shared: &'a Arc<Shared<S>>,
    listener: &'a Listener,
    settings: &'a ConnectionSettings,
    liveness: &'a Arc<Liveness>,
    registered: Registered,
    id: u64,
}

/// Serves a connection that speaks HTTP to its end. Boxed, like each step before it, so that an idle connection holds
/// the memory of its last step only, not of the largest.
type Http = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection with TLS.
type Tls = TlsStream<Handshaking<TcpStream>>;

impl<S: Serve> Opening<'_, S> {
    async fn serve(self, stream: TcpStream, peer: SocketAddr) -> Result<(), Refused> {
        let Some(http) = Box::pin(self.open(stream, peer)).await? else { return Ok(()) };
        http.await;
        Ok(())
    }

    /// `None` if the peer disconnected or TLS failed.
    async fn open(mut self, mut stream: TcpStream, peer: SocketAddr) -> Result<Option<Http>, Refused> {
        let header_timeout = self.settings.limits.header_timeout.get();
        let from_balancer = contains(&self.settings.proxy_protocol_from, peer);
        let announced = if from_balancer { self.announced(&mut stream, peer).await? } else { None };
        let sender = peer;
        let peer = announced.unwrap_or(peer);
        // An ingress or load balancer speaks for many clients, and its own limits apply to them. Whether its
        // `X-Forwarded-*` headers are trusted is not decided here: each request is judged by the generation that it
        // begins with.
        let lacks_proxy_address = from_balancer && announced.is_none();
        if lacks_proxy_address || contains(&self.settings.trusted_proxies, peer) {
            self.liveness.mark_shared();
        } else {
            self.registered.count_for(&self.listener.name, peer.ip(), &self.settings.limits)?;
        }
        let network = (!self.liveness.is_shared()).then(|| client_network(peer.ip()));
        let client = self.shared.request_memory.client(network);
        let mut connection = Connection {
            id: self.id,
            listener: Arc::clone(&self.listener.name),
            peer,
            peer_line: HeaderValue::try_from(peer.ip().to_string()).ok(),
            lacks_proxy_address,
            protocol: Protocol::Http1,
            tls: None,
            liveness: Arc::clone(self.liveness),
        };
        if let Some(config) = &self.settings.tls {
            let acceptor = TlsAcceptor::from(Arc::clone(config));
            let accepted = acceptor.accept(Handshaking::new(stream, &client));
            let handshake = timeout(self.settings.limits.handshake_timeout.get(), accepted).await;
            let Some(mut stream) = self.handshake(handshake)? else { return Ok(None) };
            let (handshake, session) = stream.get_mut();
            handshake.end();
            connection.tls = Some(TlsInfo::of(session, self.settings.client_ca.as_deref(), &self.listener.client_ca));
            if session.alpn_protocol() == Some(b"h2") {
                connection.protocol = Protocol::Http2;
            }
            Ok(Some(self.http(stream, Prefix::default(), connection, client)))
        } else {
            let sniffed = timeout(header_timeout, sniff(&mut stream)).await.map_err(|_| Refused::Silent)?;
            // A peer that disconnects without sending anything, as port health checks do.
            let Ok((prefix, protocol)) = sniffed else { return Ok(None) };
            let Some(protocol) = protocol else {
                let (why, fix) = if from_balancer {
                    (
                        "a second PROXY protocol header follows the first",
                        "have only the balancer next to Doorward send one",
                    )
                } else {
                    (
                        "the peer began with a PROXY protocol header and is not in `proxy_protocol_from`",
                        "list it there if it is your load balancer; otherwise it must not send one",
                    )
                };
                self.listener.warn_of_proxy_protocol(ProxyFault::Peer, sender, &why, fix);
                return Err(Refused::ProxyPeer);
            };
            connection.protocol = protocol;
            Ok(Some(self.http(stream, prefix, connection, client)))
        }
    }

    /// The address that the load balancer announced; `None` if it speaks for itself.
    async fn announced(&self, stream: &mut TcpStream, peer: SocketAddr) -> Result<Option<SocketAddr>, Refused> {
        match timeout(self.settings.limits.header_timeout.get(), proxy_protocol::read(stream)).await {
            Ok(Ok(source)) => Ok(source.map(canonical)),
            // A peer that disconnects without sending anything, as port health checks do.
            Ok(Err(HeaderError::Io(_))) => Err(Refused::ProxyHeader),
            Ok(Err(error)) => {
                self.listener.warn_of_proxy_protocol(
                    ProxyFault::Header,
                    peer,
                    &error,
                    "have the balancer send one (HAProxy: `send-proxy-v2`), or remove its address from `proxy_protocol_from`",
                );
                Err(Refused::ProxyHeader)
            }
            Err(_) => Err(Refused::Silent),
        }
    }

    /// `None` if it failed.
    fn handshake(&self, outcome: Result<io::Result<Tls>, tokio::time::error::Elapsed>) -> Result<Option<Tls>, Refused> {
        let failure = match outcome {
            Ok(Ok(stream)) => return Ok(Some(stream)),
            Ok(Err(error)) if error.kind() == io::ErrorKind::OutOfMemory => return Err(Refused::Memory),
            Ok(Err(error)) => classify(&error),
            Err(_) => TlsFailure::Timeout,
        };
        tracing::debug!(connection = self.id, listener = %self.listener.name, reason = ?failure, "TLS handshake failed");
        self.shared.metrics.tls_failed(failure);
        Ok(None)
    }

    fn http<T>(self, stream: T, prefix: Prefix, connection: Connection, client: Arc<Client>) -> Http
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.shared.metrics.served(connection.protocol.as_str());
        let server = http_server::Server {
            shared: Arc::clone(self.shared),
            limits: Arc::clone(&self.settings.limits),
            liveness: Arc::clone(self.liveness),
            connection: Arc::new(connection),
            client,
        };
        server.run(stream, prefix, self.registered)
    }
}

/// Reads until the first bytes identify the protocol. `None` is the PROXY protocol, which this peer must not speak: its
/// requests could then pass for somebody else's.
async fn sniff(stream: &mut TcpStream) -> io::Result<(Prefix, Option<Protocol>)> {
    let mut prefix = Prefix::default();
    loop {
        let count = stream.read(prefix.room()).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        prefix.length += count;
        let bytes = prefix.filled();
        let whole = |pattern: &[u8]| bytes.len() >= pattern.len() && begins_alike(bytes, pattern);
        let part = |pattern: &[u8]| bytes.len() < pattern.len() && begins_alike(bytes, pattern);
        if whole(HTTP2_PREFACE) {
            return Ok((prefix, Some(Protocol::Http2)));
        }
        if whole(V1_SIGNATURE) || whole(V2_SIGNATURE) {
            return Ok((prefix, None));
        }
        if !(part(HTTP2_PREFACE) || part(V1_SIGNATURE) || part(V2_SIGNATURE)) {
            return Ok((prefix, Some(Protocol::Http1)));
        }
    }
}

fn classify(error: &io::Error) -> TlsFailure {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => TlsFailure::Certificate,
        Some(_) => TlsFailure::Protocol,
        None => TlsFailure::Closed,
    }
}

fn contains(networks: &[IpNet], peer: SocketAddr) -> bool {
    networks.iter().any(|network| network.contains(&peer.ip()))
}

/// Converts an IPv4 address that came over an IPv6 socket to its own form, as no rule about it would match otherwise.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

struct CountPanic<'a>(&'a Metrics);

impl Drop for CountPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panics.inc();
        }
    }
}
