//! The side that clients connect to: listeners, TLS, PROXY protocol, connection limits, deadlines, drain.
//!
//! ```text
//! accept -> admission -> PROXY protocol -> TLS -> HTTP/1.1 or HTTP/2 -> head -> Serve
//! ```
//!
//! Each worker has its own sockets, runtime and connections; what they share is counted in atomics. Every step up to
//! the first request is bounded in time and bytes, and a connection that fails one of them is closed and counted.
//!
//! | file | holds |
//! |---|---|
//! | `settings` | listeners and limits, checked |
//! | `listener`, `accept` | the sockets, and the loops that accept from them |
//! | `admission` | the limits on connections |
//! | `connection` | the start of a connection, until its HTTP version is known |
//! | `proxy_protocol`, `tls` | the client's address from a load balancer, and TLS |
//! | `http_server`, `answer`, `head`, `framing` | HTTP on a connection, responses in transit, and requests that are not fit to serve |
//! | `frames` | why HTTP/2 ended a connection |
//! | `io`, `liveness`, `registry` | the bytes of a connection, its deadlines, and all open connections |
//! | `arriving` | the memory that unfinished heads and TLS handshakes take |
//! | `drain` | shutting down without losing a request |
//! | `metrics` | what the listeners count |
//!
//! # What is refused before the service
//!
//! hyper answers what it cannot parse (a control character or a space in a header name, obs-fold, a Content-Length that
//! is not a number or differs from another, a Transfer-Encoding whose last coding is not `chunked`, an invalid request
//! line) with 400, and a head beyond its buffer with 431, and closes the connection. A request that it can parse and
//! that is still not fit to serve is passed to the service as [`Unfit`], so that it is answered and recorded like any
//! other refusal. `framing` says what that is on HTTP/1.1.

mod accept;
mod admission;
mod answer;
mod arriving;
mod connection;
mod drain;
mod frames;
mod framing;
mod head;
mod http_server;
mod io;
mod listener;
mod liveness;
mod metrics;
mod proxy_protocol;
mod registry;
mod settings;
mod tls;

#[cfg(test)]
mod tests;

use std::{future::Future, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};

pub(crate) use self::admission::client_network;
use self::liveness::{Command, Liveness};
#[cfg(any(test, fuzzing))]
pub use self::proxy_protocol::fuzz_proxy_header;
pub use self::{
    accept::Downstream,
    drain::{Drain, Unfinished, finished},
    head::check_target,
    listener::owner_of,
    listener::{BindError, Bound},
    metrics::Metrics,
    settings::Settings,
    tls::{ClientCertificate, TlsInfo, TlsVersion},
};
use crate::{
    body::ClientBody,
    clock::Timestamp,
    error::Rejection,
    memory::{Level, RequestMemory},
};

/// Answers requests. Created once for each worker, on its thread.
///
/// A response with `Connection: close` ends the connection: on HTTP/1.1 by that header, on HTTP/2 by GOAWAY. The
/// listener adds it itself while it drains, after a chunked request and to the answer to an [`Unfit`] request.
pub trait Serve: Sized + Send + Sync + 'static {
    /// The body of responses. An error ends the stream, so that what was sent never looks complete.
    type Body: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static;

    /// Answers one request. The future is dropped when the client disconnects. It is `Unpin`, and so most likely boxed,
    /// because hyper moves it: a large one would be copied for each request.
    fn serve(
        &self,
        connection: &Arc<Connection>,
        request: Result<Request<ClientBody>, Unfit>,
    ) -> impl Future<Output = Response<Self::Body>> + Send + Unpin + use<Self>;

    /// How short memory is. Decides whether connections are accepted, and how long idle ones are kept.
    fn memory(&self) -> Level {
        Level::Calm
    }

    /// The memory that requests share, and heads that are still arriving. The same for all workers.
    fn request_memory(&self) -> RequestMemory {
        RequestMemory::default()
    }
}

/// A request that was parsed but must not be served.
#[derive(Debug)]
pub struct Unfit {
    pub request: Request<ClientBody>,
    /// The answer it gets.
    pub rejection: Rejection,
}

/// What is known of the connection that a request arrived on.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Unique in this process.
    pub id: u64,
    /// The listener's name.
    pub listener: Arc<str>,
    /// The client: the peer of the socket, or the address that the PROXY protocol announced. An IPv4 address is never
    /// in its IPv6 form.
    pub peer: SocketAddr,
    /// Its address as a header value.
    pub peer_line: Option<HeaderValue>,
    /// Whether the peer is a load balancer whose PROXY header names no client.
    pub lacks_proxy_address: bool,
    pub protocol: Protocol,
    /// `None` in clear text.
    pub tls: Option<TlsInfo>,
    liveness: Arc<Liveness>,
}

impl Connection {
    /// Whether the connection was ended because its client flooded Doorward.
    pub fn is_flooded(&self) -> bool {
        self.liveness.is_flooded()
    }

    /// Whether the connection was cut at the end of the drain.
    pub fn is_cut_by_drain(&self) -> bool {
        self.liveness.is_cut_by_drain()
    }

    /// The client's certificate, as [`TlsInfo::certificate_for`]. One that has ended, or that the authorities in force
    /// do not verify, counts as none and ends the connection, so that the client can show its present one on another.
    pub fn certificate_for(&self, host: &str, proxy: bool, now: Timestamp) -> Option<&ClientCertificate> {
        let tls = self.tls.as_ref()?;
        let certificate = tls.certificate_for(host, proxy)?;
        if !tls.is_certificate_valid(now) {
            self.liveness.command(Command::Finish);
            return None;
        }
        Some(certificate)
    }
}

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1 or HTTP/1.0.
    Http1,
    Http2,
}

impl Protocol {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "h2",
        }
    }
}
