//! Waiting until a replica has a delivery that was written. A wait holds up its connection until one has told how far it is, so that there
//! is one at a time, and all who come meanwhile share the next: with one for each, the last of them would wait for a slow replica once for
//! each before it.

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

/// How long one wait takes, less than a call may take.
const REPLICA_PATIENCE: Duration = Duration::from_secs(1);

/// How many share one.
const AT_ONCE: usize = 1000;

/// The waits of a store, over a connection of its own. It ends with its last clone.
#[derive(Clone)]
pub(super) struct Replication(mpsc::UnboundedSender<Asked>);

struct Asked {
    keys: Vec<Vec<u8>>,
    told: oneshot::Sender<Result<(), StoreError>>,
}

impl Replication {
    /// `records` is the name of the hash in which deliveries are, and `mark` of what a wait writes, which lies in the same slot.
    pub fn new(link: Arc<Link>, control: &Handle, records: String, mark: String) -> Self {
        let (asks, mut asked) = mpsc::unbounded_channel::<Asked>();
        control.spawn(async move {
            let mut all: Vec<Asked> = Vec::new();
            while asked.recv_many(&mut all, AT_ONCE).await > 0 {
                all.retain(|one| !one.told.is_closed());
                wait(&link, &records, &mark, std::mem::take(&mut all)).await;
            }
        });
        Self(asks)
    }

    /// Waits until a replica has all that was written before, which is under at least one of these keys.
    pub async fn has(&self, keys: Vec<Vec<u8>>) -> Result<(), StoreError> {
        let (told, hears) = oneshot::channel();
        let given_up = || StoreError::Unavailable("waiting for a replica was given up".to_owned());
        self.0.send(Asked { keys, told }).map_err(|_| given_up())?;
        match tokio::time::timeout(PATIENCE, hears).await {
            Ok(told) => told.unwrap_or_else(|_| Err(given_up())),
            Err(_) => Err(StoreError::Timeout),
        }
    }
}

async fn wait(link: &Link, records: &str, mark: &str, asked: Vec<Asked>) {
    if asked.is_empty() {
        return;
    }
    // A connection waits for what was written on it last, and for nothing where nothing was. So this writes something after
    // what is there, over the same one: that of the write may be gone, or another replica's. A server that took over without
    // the records does not have them.
    let mut commands = redis::pipe();
    for key in asked.iter().flat_map(|one| &one.keys) {
        commands.cmd("HGET").arg(records).arg(key);
    }
    commands.cmd("SET").arg(mark).arg("");
    commands.cmd("WAIT").arg(1).arg(REPLICA_PATIENCE.as_millis() as u64);
    let answers = link.call::<Vec<Value>>(&Request::Pipeline(commands), Repeat::Harmless).await;
    let mut found = answers.as_deref().unwrap_or_default();
    for Asked { keys, told } in asked {
        let (own, others) = found.split_at(keys.len().min(found.len()));
        found = others;
        let is_there = own.iter().any(|found| matches!(found, Value::BulkString(_)));
        let outcome = match answers.as_deref().map(<[Value]>::last) {
            Err(error) => Err(error.clone()),
            Ok(_) if !is_there => Err(StoreError::Unavailable(
                "what was written is not there any more, as after a failover to a server that did not have it"
                    .to_owned(),
            )),
            Ok(Some(Value::Int(1..))) => Ok(()),
            Ok(_) => Err(StoreError::Timeout),
        };
        // Whoever does not wait any more needs no answer.
        let _ = told.send(outcome);
    }
}
