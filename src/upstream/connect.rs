//! Opens connections: names are resolved each time, all addresses are tried, and TLS is set up if the URL asks for it.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustix::io::Errno;
use rustls::ClientConfig;
use socket2::SockRef;
use tokio::{
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;
use url::Host;

use super::{
    error::{UpstreamError, UpstreamErrorKind},
    settings::{Identity, Upstream},
};
use crate::{keepalive::set_keepalive, open_files};

/// How long to wait for an address before the next one is tried in parallel (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// How long to wait for all addresses before one is tried again in parallel. The kernel retransmits after one second,
/// then two, then four, which is long when a network has just come back; and one address may have several peers behind
/// it.
const PATIENCE: Duration = Duration::from_millis(500);

/// A peer that does not acknowledge sent data for this long is dead (RFC 5482).
pub(crate) const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why no connection is opened although an upstream may have more.
const NO_FILES: &str =
    "as many files are open as leave some to new clients and operators: raise the limit of open files (RLIMIT_NOFILE)";

/// How many bytes of a line of `/etc/resolv.conf` are read by musl, the libc of static builds, without the line end. It
/// ignores longer lines.
const RESOLVER_LINE: usize = 254;

/// What to do about [`search_list_problem`].
pub(crate) const SEARCH_LIST_FIX: &str = "give the pod only the domains of the cluster, by `dnsPolicy: None` and `dnsConfig` \
                                           (docs/install.md, \"Where clusters differ\")";

/// Why this program does not resolve names that need the domains of `search`, such as those of a cluster, although
/// other programs do.
pub(crate) fn search_list_problem() -> Option<String> {
    if !cfg!(target_env = "musl") {
        return None;
    }
    unread_search_list(&std::fs::read_to_string("/etc/resolv.conf").ok()?)
}

fn unread_search_list(resolver: &str) -> Option<String> {
    let unread = resolver.lines().find(|line| line.starts_with("search") && line.len() > RESOLVER_LINE)?;
    Some(format!(
        "the `search` line of /etc/resolv.conf has {} bytes, and this program ignores one of more than {RESOLVER_LINE}: \
         names such as `kubernetes.default.svc` are not found",
        unread.len()
    ))
}

/// An open connection: clear text on the left, TLS on the right.
pub(super) type Transport = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Whether TLS negotiated HTTP/2.
pub(super) fn is_http2(transport: &Transport) -> bool {
    match transport {
        Transport::Left(_) => false,
        Transport::Right(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
    }
}

/// Opens a connection. `tls` is one of the two TLS configurations of the upstream. The caller limits the time.
pub(super) async fn connect(upstream: &Upstream, tls: Option<&Arc<ClientConfig>>) -> Result<Transport, UpstreamError> {
    let unreachable = |error: io::Error| {
        UpstreamError::new(UpstreamErrorKind::Unreachable, upstream.name()).because(error).nothing_sent()
    };
    let addresses = addresses(&upstream.identity).await.map_err(unreachable)?;
    let stream = dial(addresses, open).await.map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::MFILE.raw_os_error() => {
            UpstreamError::new(UpstreamErrorKind::NoFiles, upstream.name()).because(NO_FILES).nothing_sent()
        }
        _ => unreachable(error),
    })?;
    keep_alive(&stream, upstream.tcp_keepalive).map_err(unreachable)?;
    let (Some(settings), Some(config)) = (&upstream.tls, tls) else {
        return Ok(Transport::Left(stream));
    };
    let handshake = TlsConnector::from(Arc::clone(config)).connect(settings.server_name.clone(), stream);
    match handshake.await {
        Ok(stream) => Ok(Transport::Right(Box::new(stream))),
        Err(error) if is_of_tls(&error) => {
            Err(UpstreamError::new(UpstreamErrorKind::Tls, upstream.name()).because(error))
        }
        // The connection broke during the handshake, as when a server is being replaced.
        Err(error) => Err(unreachable(error)),
    }
}

/// Whether a handshake failed because of its content, and not because of its connection.
fn is_of_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

async fn addresses(identity: &Identity) -> io::Result<Vec<SocketAddr>> {
    let port = identity.port;
    match &identity.host {
        Host::Ipv4(address) => Ok(vec![(*address, port).into()]),
        Host::Ipv6(address) => Ok(vec![(*address, port).into()]),
        Host::Domain(name) => {
            let (first, second): (Vec<_>, Vec<_>) = {
                let found: Vec<SocketAddr> = tokio::net::lookup_host((name.clone(), port)).await?.collect();
                let leads_with_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
                found.into_iter().partition(|address| address.is_ipv6() == leads_with_v6)
            };
            Ok(interleave(first, second))
        }
    }
}

/// Alternates the address families, so that a broken one costs little time (RFC 8305 section 4).
fn interleave(first: Vec<SocketAddr>, second: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let mut merged = Vec::with_capacity(first.len() + second.len());
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    loop {
        let before = merged.len();
        merged.extend(first.next());
        merged.extend(second.next());
        if merged.len() == before {
            return merged;
        }
    }
}

/// Connects to an address, unless that would take one of the files that are kept for others.
async fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if !open_files::has_room_for_upstream(&socket, open_files::limit()) {
        return Err(Errno::MFILE.into());
    }
    socket.connect(address).await
}

/// Returns the first connection that succeeds, opened with `connect`. The caller limits the time.
async fn dial<T, F>(addresses: Vec<SocketAddr>, connect: impl Fn(SocketAddr) -> F) -> io::Result<T>
where
    T: Send + 'static,
    F: Future<Output = io::Result<T>> + Send + 'static,
{
    let mut once = addresses.clone().into_iter();
    let mut anew = addresses.into_iter().cycle();
    let mut attempts = JoinSet::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        if let Some(address) = once.next() {
            attempts.spawn(connect(address));
        }
        let patience = if once.len() > 0 { STAGGER } else { PATIENCE };
        match timeout(patience, attempts.join_next()).await {
            Ok(None) => return Err(last),
            Ok(Some(Ok(Ok(stream)))) => return Ok(stream),
            Ok(Some(Ok(Err(error)))) => last = error,
            Ok(Some(Err(error))) => last = io::Error::other(error),
            Err(_) if once.len() > 0 => {}
            Err(_) => {
                if let Some(address) = anew.next() {
                    attempts.spawn(connect(address));
                }
            }
        }
    }
}

/// Sets up a connection so that a dead peer is detected: within [`USER_TIMEOUT`] if data was sent, otherwise soon after
/// the connection has been quiet for `quiet`.
pub(crate) fn keep_alive(stream: &TcpStream, quiet: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    set_keepalive(&socket, quiet)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use tokio::time::Instant;

    use super::{
        super::tests::{raw_upstream, resolve},
        *,
    };
    use crate::config::{raw, values::Span};

    #[tokio::test]
    async fn an_address_that_refuses_does_not_hide_the_next_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let good = listener.local_addr().unwrap();
        let stream = dial(vec![closed, closed, good], TcpStream::connect).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        let refused = dial(vec![closed, closed], TcpStream::connect).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(dial(Vec::new(), TcpStream::connect).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// A single address was not tried again in parallel, so that a network that had come back was noticed only at the
    /// kernel's next retransmission.
    #[tokio::test(start_paused = true)]
    async fn a_slow_address_is_tried_again_in_parallel() {
        let began = Instant::now();
        let tries = Arc::new(AtomicUsize::new(0));
        let answered_at = |number: usize| {
            let tries = Arc::clone(&tries);
            move |_| {
                let is_answered = tries.fetch_add(1, Ordering::SeqCst) + 1 == number;
                async move { if is_answered { Ok(number) } else { std::future::pending().await } }
            }
        };
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(dial(vec![address], answered_at(4)).await.unwrap(), 4);
        assert_eq!(began.elapsed(), PATIENCE * 3);
        // Each of several is tried once first.
        tries.store(0, Ordering::SeqCst);
        let began = Instant::now();
        assert_eq!(dial(vec![address; 2], answered_at(3)).await.unwrap(), 3);
        assert_eq!(began.elapsed(), STAGGER + PATIENCE);
    }

    #[tokio::test]
    async fn a_connection_to_an_upstream_has_the_configured_keep_alive() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let entry = raw_upstream(format!("http://{}", listener.local_addr().unwrap()));
        for seconds in [45, 60] {
            let limits = raw::Limits { tcp_keepalive: Span::from_secs(seconds), ..raw::Limits::default() };
            let upstream = resolve(&entry, &limits, Path::new("/"));
            let Transport::Left(stream) = connect(&upstream, None).await.unwrap() else { panic!("it is by TLS") };
            let socket = SockRef::from(&stream);
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(seconds));
            // The default retransmits for a quarter of an hour.
            #[cfg(target_os = "linux")]
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
        }
    }

    /// All names of the shipped configuration need it, and other programs on the same node resolve them.
    #[test]
    fn a_search_list_that_is_too_long_for_a_static_binary_is_reported() {
        let of = |length: usize| {
            format!("nameserver 10.96.0.10\n{:x<length$}\noptions ndots:5\n", "search ci.svc.cluster.local ")
        };
        assert_eq!(unread_search_list(&of(RESOLVER_LINE)), None);
        let told = unread_search_list(&of(RESOLVER_LINE + 1)).unwrap();
        assert!(told.contains("has 255 bytes"), "{told}");
    }

    #[test]
    fn families_alternate() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (a, b, c) = (address("[::1]:1"), address("[::2]:1"), address("127.0.0.1:1"));
        assert_eq!(interleave(vec![a, b], vec![c]), [a, c, b]);
    }
}
