//! TCP keep-alive, for connections to clients and to upstreams.

use std::{io, time::Duration};

use socket2::{Socket, TcpKeepalive};

/// Makes TCP probe the other side once a connection has been `quiet` for that long.
pub(crate) fn set_keepalive(socket: &Socket, quiet: Duration) -> io::Result<()> {
    socket
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(quiet).with_interval(Duration::from_secs(10)).with_retries(3))
}
