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
//! | `admission` | how many connections there may be |
//! | `connection` | the beginning of one, up to which HTTP it speaks |
//! | `proxy_protocol`, `tls` | whom a load balancer brings, and TLS |
//! | `http_server`, `answer`, `head`, `framing` | HTTP on a connection, an answer on its way, and what is not fit to serve |
//! | `frames` | for what HTTP/2 ended a connection |
//! | `io`, `liveness`, `registry` | the bytes of a connection, when what it does has lasted too long, and all that are open |
//! | `drain` | ending without losing a request |
//! | `metrics` | what the listeners count |
//!
//! # What is refused before the service
//!
//! hyper answers what it cannot parse (a control character or a space in a header name, obs-fold, a Content-Length
//! that is no number or differs from another, a Transfer-Encoding whose last coding is not `chunked`, a request line
//! that is none) with 400, a head beyond its buffer with 431, and closes the connection. What it can parse and what is
//! still not fit to serve comes to the service as [`Unfit`], so that it is answered and recorded like any other
//! refusal. `framing` says what that is on HTTP/1.1.

mod accept;
mod admission;
mod answer;
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

pub(crate) use self::admission::whose;
use self::liveness::Liveness;
#[cfg(any(test, fuzzing))]
pub use self::proxy_protocol::fuzz_proxy_header;
pub use self::{
    accept::Downstream,
    drain::{Drain, Unfinished, finished},
    listener::owner_of,
    listener::{BindError, Bound},
    metrics::Metrics,
    settings::Settings,
    tls::{ClientCertificate, TlsInfo, TlsVersion},
};
use crate::{body::ClientBody, error::Rejection, memory::Level};

/// Answers requests. Made once for each worker, on its thread.
///
/// A response with `Connection: close` ends the connection: on HTTP/1.1 by that header, on HTTP/2 by GOAWAY. The
/// listener adds it itself while it drains, after a chunked request and to the answer to an [`Unfit`] request.
pub trait Serve: Sized + Send + Sync + 'static {
    /// The body of responses. An error ends the stream, so that what was sent never looks complete.
    type Body: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static;

    /// Answers one request. The future is dropped when the client goes away. It is `Unpin`, and so most likely boxed,
    /// since hyper moves it: a large one would be copied for each request.
    fn serve(
        &self,
        connection: &Arc<Connection>,
        request: Result<Request<ClientBody>, Unfit>,
    ) -> impl Future<Output = Response<Self::Body>> + Send + Unpin + use<Self>;

    /// How short memory is: decides whether connections are taken, and how long unused ones are kept.
    fn memory(&self) -> Level {
        Level::Calm
    }
}

/// A request that was parsed and must not be served.
#[derive(Debug)]
pub struct Unfit {
    pub request: Request<ClientBody>,
    /// The answer it gets.
    pub rejection: Rejection,
}

/// What is known of the connection that a request came on.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Unique in this process.
    pub id: u64,
    /// The listener's name.
    pub listener: Arc<str>,
    /// The client: the peer of the socket, or what the PROXY protocol announced. An IPv4 address is never in its
    /// IPv6 form.
    pub peer: SocketAddr,
    /// Its address as the value of a header.
    pub peer_line: Option<HeaderValue>,
    /// Whether the peer is a balancer whose PROXY header names no client.
    pub is_unnamed: bool,
    pub protocol: Protocol,
    /// `None` in clear text.
    pub tls: Option<TlsInfo>,
    liveness: Arc<Liveness>,
}

impl Connection {
    /// Whether it was ended since its client flooded us.
    pub fn is_flooded(&self) -> bool {
        self.liveness.is_flooded()
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
