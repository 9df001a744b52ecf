//! One shared call for concurrent callers with the same key.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::{runtime::Handle, sync::watch};

use crate::lock::lock;

/// The SHA-256 of the subject of a call.
pub type Key = [u8; 32];

/// Calls in progress. Each runs on the given runtime, so the first caller may be cancelled.
#[derive(Debug)]
pub struct SingleFlight<T> {
    calls: Arc<Mutex<HashMap<Key, watch::Receiver<Option<T>>>>>,
}

impl<T> Default for SingleFlight<T> {
    fn default() -> Self {
        Self { calls: Arc::default() }
    }
}

impl<T: Clone + Send + Sync + 'static> SingleFlight<T> {
    /// Waits for the call in progress for `key`, or starts the one that `begin` returns. `begin` may refuse with an
    /// error. `None`: the call had no outcome, as its runtime shut down or it panicked.
    pub async fn join<E, F>(
        &self,
        key: Key,
        control: &Handle,
        begin: impl FnOnce() -> Result<F, E>,
    ) -> Result<Option<T>, E>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut answer = {
            let mut calls = lock(&self.calls);
            match calls.get(&key) {
                Some(answer) => answer.clone(),
                None => {
                    let call = begin()?;
                    let (sender, answer) = watch::channel(None);
                    let done = Forget { calls: Arc::clone(&self.calls), key };
                    control.spawn(async move {
                        let outcome = call.await;
                        drop(done);
                        sender.send_replace(Some(outcome));
                    });
                    calls.insert(key, answer.clone());
                    answer
                }
            }
        };
        Ok(answer.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone()))
    }
}

/// Removes the entry when the call ends in any way.
struct Forget<T> {
    calls: Arc<Mutex<HashMap<Key, watch::Receiver<Option<T>>>>>,
    key: Key,
}

impl<T> Drop for Forget<T> {
    fn drop(&mut self) {
        lock(&self.calls).remove(&self.key);
    }
}
