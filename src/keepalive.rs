//! TCP keep-alive, on either side of us.

use std::{io, time::Duration};

use socket2::{Socket, TcpKeepalive};

/// Has TCP ask whether the other side is still there, once a connection was `quiet` for so long.
pub(crate) fn set_keepalive(socket: &Socket, quiet: Duration) -> io::Result<()> {
    socket
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(quiet).with_interval(Duration::from_secs(10)).with_retries(3))
}
