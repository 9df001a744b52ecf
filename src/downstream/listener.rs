//! The listening sockets: one for each listener and worker, all of them bound before anything is served.

use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    num::NonZeroUsize,
    path::Path,
    sync::Arc,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::settings::{ListenerSettings, Settings};
use crate::{
    config::{raw::Limits, values::Span},
    keepalive::set_keepalive,
    open_files,
};

/// The length of each worker's accept queue. The kernel lowers it to `net.core.somaxconn`.
pub(super) const BACKLOG: i32 = 4096;

/// Listening sockets, with connections already queueing.
#[derive(Debug)]
pub struct Bound {
    pub(super) listeners: Vec<BoundListener>,
    pub(super) settings: Settings,
}

#[derive(Debug)]
pub(super) struct BoundListener {
    pub(super) address: SocketAddr,
    /// One for each worker.
    pub(super) sockets: Vec<TcpListener>,
}

/// A listener could not be bound.
#[derive(Debug)]
pub struct BindError {
    listener: Arc<str>,
    address: SocketAddr,
    owner: Option<String>,
    source: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { listener, address, owner, source } = self;
        write!(f, "listener `{listener}` cannot listen on {address}: ")?;
        match source.kind() {
            io::ErrorKind::AddrInUse => {
                let owner = owner.as_deref().unwrap_or("another process");
                write!(f, "port {} is in use by {owner}; stop it or choose another port", address.port())
            }
            io::ErrorKind::PermissionDenied => write!(
                f,
                "{source}; ports below 1024 need the capability NET_BIND_SERVICE, so choose a higher one or grant it"
            ),
            io::ErrorKind::AddrNotAvailable => {
                write!(
                    f,
                    "this machine has no such address; use one of its own, or {}",
                    match address {
                        SocketAddr::V4(_) => "0.0.0.0 for all",
                        SocketAddr::V6(_) => "[::] for all",
                    }
                )
            }
            _ => write!(f, "{source}"),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl Bound {
    /// Binds every listener for this many workers.
    ///
    /// With `SO_REUSEPORT` alone the kernel would silently let a second process share the port. So the first socket of
    /// each listener is bound without it, which fails if anybody is there, and joins the others only after that; the
    /// port is held from then on.
    pub fn bind(settings: &Settings, workers: NonZeroUsize) -> Result<Self, BindError> {
        let listeners = settings
            .listeners
            .iter()
            .map(|listener| {
                bind_all(listener.address, settings.limits.tcp_keepalive, workers)
                    .map_err(|source| BindError::new(listener, source, &settings.listeners))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { listeners, settings: settings.clone() })
    }

    /// Names and addresses, with the port that the system chose if 0 was configured.
    pub fn addresses(&self) -> impl Iterator<Item = (&str, SocketAddr)> {
        self.settings.listeners.iter().zip(&self.listeners).map(|(settings, bound)| (&*settings.name, bound.address))
    }
}

impl BindError {
    fn new(listener: &ListenerSettings, source: io::Error, all: &[ListenerSettings]) -> Self {
        let owner =
            (source.kind() == io::ErrorKind::AddrInUse).then(|| owner_of(listener.address)).flatten().map(|owner| {
                if owner.process != std::process::id() {
                    return owner.to_string();
                }
                let other =
                    all.iter().find(|other| other.name != listener.name && overlap(other.address, listener.address));
                match other {
                    Some(other) => format!("listener `{}` of this configuration", other.name),
                    None => "this process itself".to_owned(),
                }
            });
        Self { listener: Arc::clone(&listener.name), address: listener.address, owner, source }
    }
}

fn bind_all(address: SocketAddr, quiet: Span, workers: NonZeroUsize) -> io::Result<BoundListener> {
    let first = socket(address, quiet)?;
    first.bind(&address.into())?;
    let bound =
        first.local_addr()?.as_socket().ok_or_else(|| io::Error::other("the socket has no internet address"))?;
    first.set_reuse_port(true)?;
    let mut sockets = vec![first];
    for _ in 1..workers.get() {
        let next = socket(bound, quiet)?;
        next.set_reuse_port(true)?;
        next.bind(&bound.into())?;
        sockets.push(next);
    }
    // Only now, so that no connection queues on a socket that a later failure would drop.
    for socket in &sockets {
        socket.listen(BACKLOG)?;
    }
    Ok(BoundListener { address: bound, sockets: sockets.into_iter().map(TcpListener::from).collect() })
}

/// Accepted connections inherit these options. Without keep-alive nobody would notice that a client is gone to which
/// nothing is sent, as on a quiet watch, and devices in between could forget a quiet connection.
fn socket(address: SocketAddr, quiet: Span) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    set_keepalive(&socket, quiet.get())?;
    Ok(socket)
}

/// The process that listens on an address.
#[derive(Debug)]
pub struct Owner {
    process: u32,
    name: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` (process {})", self.name, self.process)
    }
}

/// Returns the process that keeps Doorward from listening on the address, by `/proc`, if it may be inspected.
pub fn owner_of(address: SocketAddr) -> Option<Owner> {
    let sockets: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listening_inodes(&table, address))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let id: u32 = process.file_name().to_str()?.parse().ok()?;
        let holds = fs::read_dir(process.path().join("fd")).ok()?.flatten().any(|descriptor| {
            fs::read_link(descriptor.path())
                .is_ok_and(|target| sockets.iter().any(|socket| Path::new(socket) == target))
        });
        holds.then(|| {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            Owner { process: id, name: name.trim_end().to_owned() }
        })
    })
}

/// Whether two sockets cannot both listen. One at `[::]` may include IPv4, which `/proc` does not say.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |wide: IpAddr, narrow: IpAddr| wide.is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4());
    let (port, other_port) = (one.port(), other.port());
    let (one, other) = (one.ip().to_canonical(), other.ip().to_canonical());
    port == other_port && (one == other || covers(one, other) || covers(other, one))
}

/// The inodes of sockets in state LISTEN (0A) on the address, in the table of `/proc/net/tcp` or `/proc/net/tcp6`.
fn listening_inodes(table: &str, address: SocketAddr) -> Vec<String> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let local = local_address(fields.nth(1)?)?;
            let state = fields.nth(1)?;
            let inode = fields.nth(5)?;
            (state == "0A" && overlap(local, address)).then(|| inode.to_owned())
        })
        .collect()
}

/// Parses an address of these tables: words of 32 bits in the byte order of the machine, and the port.
fn local_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let words: Vec<[u8; 4]> = (0..address.len())
        .step_by(8)
        .map(|at| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes()))
        .collect::<Option<_>>()?;
    let address = match words.as_slice() {
        [address] => IpAddr::from(Ipv4Addr::from(*address)),
        _ => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?)),
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

/// How many connections are accepted if the process may have `files` open: as many as are configured, but at most their
/// share of the files for connections, as each request may need one more towards an upstream. The share is at least
/// one, as with none everybody would be refused.
pub(super) fn most_connections(limits: &Limits, files: Option<u64>) -> u32 {
    let share =
        |files| u128::from(open_files::for_connections(files)) * u128::from(limits.connections_file_share) / 100;
    let possible = files.and_then(|files| u32::try_from(share(files).max(1)).ok());
    possible.map_or(limits.connections, |possible| possible.min(limits.connections))
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    fn settings(addresses: &[SocketAddr]) -> Settings {
        let listeners = addresses
            .iter()
            .enumerate()
            .map(|(index, address)| ListenerSettings {
                name: Arc::from(format!("l{index}")),
                address: *address,
                proxy_protocol_from: Arc::default(),
                trusted_proxies: Arc::default(),
                connections_per_address: None,
                tls: None,
                certificate_ends: None,
                client_ca: None,
            })
            .collect();
        Settings { listeners, limits: Arc::new(Limits::default()) }
    }

    fn bind(addresses: &[SocketAddr], workers: usize) -> Result<Bound, BindError> {
        Bound::bind(&settings(addresses), NonZeroUsize::new(workers).unwrap())
    }

    fn loopback(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[test]
    fn workers_share_the_port_that_the_system_chose() {
        let bound = bind(&[loopback(0), "[::1]:0".parse().unwrap()], 3).unwrap();
        for listener in &bound.listeners {
            assert_ne!(listener.address.port(), 0);
            assert_eq!(listener.sockets.len(), 3);
            for socket in &listener.sockets {
                assert_eq!(socket.local_addr().unwrap(), listener.address);
            }
        }
    }

    #[test]
    fn every_worker_gets_connections() {
        let bound = bind(&[loopback(0)], 2).unwrap();
        let listener = &bound.listeners[0];
        let _clients: Vec<_> = (0..64).map(|_| TcpStream::connect(listener.address).unwrap()).collect();
        let counts: Vec<usize> =
            listener.sockets.iter().map(|socket| socket.incoming().map_while(Result::ok).count()).collect();
        assert_eq!(counts.iter().sum::<usize>(), 64);
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    }

    #[test]
    fn accepted_connections_inherit_the_options() {
        for quiet in [Limits::default().tcp_keepalive, Span::from_secs(45)] {
            let mut settings = settings(&[loopback(0)]);
            settings.limits = Arc::new(Limits { tcp_keepalive: quiet, ..Limits::default() });
            let bound = Bound::bind(&settings, NonZeroUsize::MIN).unwrap();
            let listener = &bound.listeners[0];
            let _client = TcpStream::connect(listener.address).unwrap();
            let (accepted, _) = listener.sockets[0].accept().unwrap();
            assert!(accepted.nodelay().unwrap());
            let accepted = Socket::from(accepted);
            assert!(accepted.keepalive().unwrap());
            assert_eq!(accepted.tcp_keepalive_time().unwrap(), quiet.get());
        }
    }

    #[test]
    fn a_port_in_use_is_refused_and_its_owner_named() {
        let first = bind(&[loopback(0)], 2).unwrap();
        let taken = first.listeners[0].address;
        let error = bind(&[taken], 2).unwrap_err().to_string();
        assert!(error.contains(&format!("port {} is in use by this process itself", taken.port())), "{error}");
        let error = bind(&[loopback(0), taken, taken], 2).unwrap_err().to_string();
        assert!(error.contains("listener `l2` of this configuration"), "{error}");
        drop(first);
        bind(&[taken], 2).unwrap();
    }

    #[test]
    fn a_port_held_by_another_plain_listener_is_refused_too() {
        let other = TcpListener::bind(loopback(0)).unwrap();
        assert_eq!(bind(&[other.local_addr().unwrap()], 2).unwrap_err().source.kind(), io::ErrorKind::AddrInUse);
    }

    /// By the port alone, our own listener at one loopback address was blamed for what another program has at the
    /// other.
    #[test]
    fn the_owner_of_a_port_is_found_by_its_address_too() {
        let table =
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let line = |words: &[[u8; 4]], state: &str, inode: u32| {
            let address: String = words.iter().map(|word| format!("{:08X}", u32::from_ne_bytes(*word))).collect();
            format!("   0: {address}:1F90 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 {inode} 1\n")
        };
        let table = table.to_owned()
            + &line(&[[127, 0, 0, 1]], "0A", 1)
            + &line(&[[127, 0, 0, 1]], "01", 2)
            + &line(&[[0; 4], [0; 4], [0; 4], [0, 0, 0, 1]], "0A", 3)
            + &line(&[[0; 4], [0; 4], [0, 0, 255, 255], [10, 0, 0, 1]], "0A", 4)
            + &line(&[[127, 0, 0, 2]], "0A", 5);
        let wide = table.clone() + &line(&[[0; 4]], "0A", 6) + &line(&[[0; 4]; 4], "0A", 7);
        for (address, narrow, wide_too) in [
            ("127.0.0.1:8080", "1", "1 6 7"),
            ("[::1]:8080", "3", "3 7"),
            ("10.0.0.1:8080", "4", "4 6 7"),
            ("0.0.0.0:8080", "1 4 5", "1 4 5 6 7"),
            ("[::]:8080", "1 3 4 5", "1 3 4 5 6 7"),
            ("127.0.0.1:8081", "", ""),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(listening_inodes(&table, address).join(" "), narrow, "{address}");
            assert_eq!(listening_inodes(&wide, address).join(" "), wide_too, "{address}");
        }
    }

    #[test]
    fn an_address_of_another_machine_is_explained() {
        let error = bind(&["192.0.2.1:0".parse().unwrap()], 1).unwrap_err().to_string();
        assert!(error.contains("no such address") && error.contains("0.0.0.0"), "{error}");
    }

    /// Otherwise files run out at `accept` and on the way to every upstream.
    #[test]
    fn connections_take_their_share_of_the_files_at_most() {
        let half = Limits::default().connections_file_share;
        for (connections, connections_file_share, files, most) in [
            (10_000, half, None, 10_000),
            (10_000, half, Some(1_024), 448),
            (10_000, half, Some(20_128), 10_000),
            (10_000, half, Some(20_127), 9_999),
            (100, half, Some(1_024), 100),
            (u32::MAX, half, Some(u64::MAX), u32::MAX),
            (10_000, 90, Some(1_128), 900),
            (10_000, 10, Some(1_128), 100),
            (10_000, 1, Some(99), 1),
        ] {
            let limits = Limits { connections, connections_file_share, ..Limits::default() };
            let told = format!("{connections} of {connections_file_share} % of {files:?}");
            assert_eq!(most_connections(&limits, files), most, "{told}");
        }
    }
}
