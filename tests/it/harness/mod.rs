//! What the tests stand on: Doorward as a process, its peers, and a client that hides nothing.

mod client;
mod connect_proxy;
mod doorward;
pub mod faults;
pub mod github;
pub mod h2;
mod issuer;
mod login;
mod nginx;
mod node;
mod ports;
mod receivers;
mod redis;
mod reviews;
pub mod streams;
mod tls;
mod upstream;
mod wire;

use std::{future::Future, time::Duration};

pub use self::{
    client::{Answer, Raw},
    connect_proxy::ConnectProxy,
    doorward::{Doorward, request},
    issuer::{AUDIENCE, Fault, Issuer, now, unique},
    login::{Answered, asked, call_back, come_back, cookies, log_in, session},
    nginx::Nginx,
    node::{OidcProvider, aws_credentials, browse, browse_until, verify},
    ports::free_port,
    receivers::{Collector, CollectorAnswer, SyslogServer},
    redis::RedisServer,
    reviews::{Reviews, Verdict},
    tls::{Authority, Pair, connect_tls},
    upstream::{Recorded, Reply, Upstream, held_up},
    wire::Wire,
};

/// Waits for something that must happen. The bound only ends a test that has already failed.
pub async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(90), what).await.expect("it did not happen within 90 s")
}
