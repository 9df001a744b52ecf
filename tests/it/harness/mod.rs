//! The test harness: Doorward as a process, its peers, and a client that hides nothing.

mod client;
mod connect_proxy;
mod doorward;
mod exchange;
pub mod faults;
pub mod github;
pub mod h2;
mod issuer;
mod login;
mod nginx;
mod node;
mod ports;
mod push;
mod receivers;
mod redis;
mod reviews;
pub mod streams;
mod tls;
mod upstream;
mod wire;

use std::{future::Future, path::Path, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::Value;
use tempfile::TempDir;

pub use self::{
    client::{Answer, HANDSHAKE, Raw},
    connect_proxy::ConnectProxy,
    doorward::{Doorward, checked, request, told},
    exchange::{EXCHANGE, exchange_form},
    issuer::{AUDIENCE, Fault, Issuer, now, rfc3339, unique},
    login::{Answered, asked, call_back, cookies, log_in, session},
    nginx::Nginx,
    node::{OidcProvider, aws_credentials, browse, browse_until, verify},
    ports::{free_port, loopbacks},
    push::{Push, hex},
    receivers::{Collector, CollectorAnswer, SyslogServer},
    redis::RedisServer,
    reviews::{Reviews, Verdict},
    tls::{Authority, Pair, connect_tls},
    upstream::{NOT_ALLOWED, Recorded, Reply, Upstream, held_up},
    wire::Wire,
};

/// How long an expected event may take on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// A folder with these files.
pub fn folder_with(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// Replaces a file atomically, as editors and ConfigMaps do.
pub fn replace_file(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(draft, path).unwrap();
}

/// A part of a JWT, unverified: 0 is its header, 1 are the claims.
pub fn part(token: &str, index: usize) -> Value {
    let part = token.split('.').nth(index).unwrap();
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// Waits for something that must happen. The limit only ends a test that has already failed.
pub async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it did not happen within 90 s")
}

/// Polls until there is a result, and returns it. It only samples: do not use it for what must never occur.
pub async fn found<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    within(async {
        let mut pause = Duration::from_millis(5);
        loop {
            if let Some(it) = look().await {
                return it;
            }
            // What takes long may also be expensive to poll.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(40));
        }
    })
    .await
}

/// Waits until the condition holds.
pub async fn until(mut holds: impl AsyncFnMut() -> bool) {
    found(async || holds().await.then_some(())).await;
}

/// Retries until the response is not a 503, so until what Doorward itself was missing for a moment is there, such as
/// keys, the store, or current revocations after a clock was set.
pub async fn settled(mut ask: impl AsyncFnMut() -> Answer) -> Answer {
    found(async || Some(ask().await).filter(|answer| answer.status != 503)).await
}
