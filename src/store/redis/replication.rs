//! Waits until a replica has a written delivery. A wait blocks its connection until a replica has reported its offset.
//! There is therefore one wait at a time, and all callers that arrive meanwhile share the next: with one wait for each
//! caller, the last one would wait for a slow replica once for each caller before it.

use std::{sync::Arc, time::Duration};

use redis::Value;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};

use super::{
    super::StoreError,
    link::{Link, PATIENCE, Repeat, Request},
};

/// The timeout of one wait, shorter than that of a call.
const REPLICA_PATIENCE: Duration = Duration::from_secs(1);

/// How many callers share one wait at most.
const AT_ONCE: usize = 1000;

/// The waits of a store, over their own connection. The task ends with the last clone.
#[derive(Clone)]
pub(super) struct Replication(mpsc::UnboundedSender<WaitRequest>);

struct WaitRequest {
    keys: Vec<Vec<u8>>,
    reply: oneshot::Sender<Result<(), StoreError>>,
}

impl Replication {
    /// Starts the task. `records` is the name of the hash with the deliveries, and `mark` is the key that a wait
    /// writes, in the same slot.
    pub fn new(link: Arc<Link>, control: &Handle, records: String, mark: String) -> Self {
        let (asks, mut asked) = mpsc::unbounded_channel::<WaitRequest>();
        control.spawn(async move {
            let mut all: Vec<WaitRequest> = Vec::new();
            while asked.recv_many(&mut all, AT_ONCE).await > 0 {
                all.retain(|one| !one.reply.is_closed());
                wait(&link, &records, &mark, std::mem::take(&mut all)).await;
            }
        });
        Self(asks)
    }

    /// Waits until a replica has everything that was written before. At least one of these keys must exist.
    pub async fn has(&self, keys: Vec<Vec<u8>>) -> Result<(), StoreError> {
        let (reply, hears) = oneshot::channel();
        let given_up = || StoreError::Unavailable("waiting for a replica was given up".to_owned());
        self.0.send(WaitRequest { keys, reply }).map_err(|_| given_up())?;
        match tokio::time::timeout(PATIENCE, hears).await {
            Ok(reply) => reply.unwrap_or_else(|_| Err(given_up())),
            Err(_) => Err(StoreError::Timeout),
        }
    }
}

async fn wait(link: &Link, records: &str, mark: &str, asked: Vec<WaitRequest>) {
    if asked.is_empty() {
        return;
    }
    // WAIT covers the last write of its own connection, and nothing if there was none. So this connection writes
    // something after the records: the connection that wrote them may be gone, or another Doorward replica's. The
    // records are read as well, because a server that took over may not have them.
    let mut commands = redis::pipe();
    for key in asked.iter().flat_map(|one| &one.keys) {
        commands.cmd("HGET").arg(records).arg(key);
    }
    commands.cmd("SET").arg(mark).arg("");
    commands.cmd("WAIT").arg(1).arg(REPLICA_PATIENCE.as_millis() as u64);
    let answers = link.call::<Vec<Value>>(&Request::Pipeline(commands), Repeat::Harmless).await;
    let mut found = answers.as_deref().unwrap_or_default();
    for WaitRequest { keys, reply } in asked {
        let (own, others) = found.split_at(keys.len().min(found.len()));
        found = others;
        let is_there = own.iter().any(|found| matches!(found, Value::BulkString(_)));
        let outcome = match answers.as_deref().map(<[Value]>::last) {
            Err(error) => Err(error.clone()),
            Ok(_) if !is_there => Err(StoreError::Unavailable(
                "the written record is not there any more, for example after a failover to a server that did not have it"
                    .to_owned(),
            )),
            Ok(Some(Value::Int(1..))) => Ok(()),
            Ok(_) => Err(StoreError::Timeout),
        };
        // This fails if the caller does not wait any more.
        let _ = reply.send(outcome);
    }
}
