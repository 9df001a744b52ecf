//! Upstreams and their connection pools.
//!
//! `Pools::send` sends a prepared request and returns the streamed response. Connections are pooled per worker and per
//! upstream identity (entry, address, TLS with the client certificate; see `settings`), never per caller: a token of
//! Doorward's own and the caller's identity are in the headers of each request.
//!
//! Short requests share connections, HTTP/1.1 one after the other and HTTP/2 concurrently. Watches, followed logs
//! ([`Lane::Long`]) and [upgrades](upgrade) have a connection each: on a shared one, a few clients that do not read
//! would fill its window and block everybody.
//!
//! | file | holds |
//! |---|---|
//! | `settings` | an upstream as resolved from the configuration |
//! | `account_token` | the short-lived service account token that Doorward requests and presents to an API server |
//! | `pool`, `connect` | idle connections, and new ones |
//! | `send` | sending a request and, if that is safe, sending it again; waiting for the head of the response |
//! | `response` | the response body |
//! | `get` | objects that Doorward itself reads from an API server |
//! | `buffered` | request bodies that are read whole |
//! | `progress` | time limits without timers; ending what clients do not read while others wait |
//! | `upgrade`, `websocket`, `splice` | upgrades to other protocols: handshake, WebSocket frames, copying both ways |
//! | `error`, `metrics` | upstream errors, and the metrics of the pools |

mod account_token;
pub mod buffered;
mod connect;
mod error;
mod get;
mod metrics;
mod pool;
mod progress;
mod response;
mod send;
mod settings;
mod splice;
pub mod upgrade;
mod websocket;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

pub(crate) use self::{
    account_token::AccountToken,
    connect::{SEARCH_LIST_FIX, USER_TIMEOUT, keep_alive, search_list_problem},
    get::GetError,
    progress::{Progress, Ticks},
    send::{ExpectsContinue, is_event_stream, is_of_messages},
    settings::{Access, TlsClient, TlsIdentity},
};
pub use self::{
    error::{UpstreamError, UpstreamErrorKind},
    metrics::Metrics,
    response::UpstreamBody,
    settings::{Place, Upstream},
};
use self::{pool::Node, progress::Sweep, settings::Identity, upgrade::UpgradeProtocol};
use crate::lock::lock;

/// The kind of connection that a request is sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Answered soon; shares connections.
    Short,
    /// A watch or a followed log; has a connection of its own.
    Long,
}

/// How long a request to the upstream lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Answered soon.
    Short,
    /// A watch or a followed log.
    Long,
    /// Another protocol after a handshake.
    Upgrade(UpgradeProtocol),
}

/// When to ping a quiet HTTP/2 connection that has streams, to detect a dead peer (RFC 9113 section 6.7).
#[derive(Clone, Copy, Debug)]
pub struct Pings {
    /// The time without a frame before a ping is sent.
    quiet: Duration,
    /// How long the answer to a ping may take before all streams of the connection fail.
    within: Duration,
}

impl Pings {
    /// For requests.
    pub const NORMAL: Self = Self { quiet: Duration::from_secs(20), within: Duration::from_secs(10) };

    /// For the watches by which tokens end. If one is cut off silently, it must be noticed and everything listed again
    /// within two seconds.
    pub const EAGER: Self = Self { quiet: Duration::from_millis(300), within: Duration::from_millis(900) };

    /// The longest that it takes to notice a dead peer.
    #[cfg(test)]
    pub(crate) fn notice(self) -> Duration {
        self.quiet + self.within
    }
}

/// The connections of one worker. Created once per worker and used from its runtime.
#[derive(Clone, Debug)]
pub struct Pools {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    nodes: Mutex<HashMap<Arc<Identity>, Arc<Node>>>,
    sweep: Arc<Sweep>,
    metrics: Metrics,
    pings: Pings,
}

impl Pools {
    pub fn new(metrics: Metrics, pings: Pings) -> Self {
        let shared = Shared { nodes: Mutex::default(), sweep: Sweep::new(), metrics, pings };
        Self { shared: Arc::new(shared) }
    }

    /// Closes connections to upstreams that are not among `live` as soon as they are free. Called for each worker when
    /// a new configuration takes effect; connections whose settings did not change stay.
    pub fn retain(&self, live: &[Arc<Upstream>]) {
        let mut gone = Vec::new();
        self.nodes().retain(|identity, node| {
            let keep = live.iter().any(|upstream| upstream.identity == *identity);
            if !keep {
                gone.push(Arc::clone(node));
            }
            keep
        });
        for node in gone {
            node.drain();
        }
    }

    fn node(&self, upstream: &Arc<Upstream>) -> Arc<Node> {
        let mut nodes = self.nodes();
        if let Some(node) = nodes.get(&upstream.identity) {
            return Arc::clone(node);
        }
        let node = Node::new(self.shared.metrics.of(upstream.name()), &self.shared.sweep, self.shared.pings);
        nodes.insert(Arc::clone(&upstream.identity), Arc::clone(&node));
        node
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<Arc<Identity>, Arc<Node>>> {
        lock(&self.shared.nodes)
    }
}
