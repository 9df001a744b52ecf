//! One call for many that ask the same at once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::{runtime::Handle, sync::watch};

use crate::lock::lock;

/// The SHA-256 of what is asked.
pub type Key = [u8; 32];

/// Calls under way. Each runs on the runtime given, so that whoever asked first may leave.
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
    /// The outcome of the call for `key` that is under way, or of the one that `begin` makes. `begin` may refuse to
    /// make one. `None`: the call came to no outcome, as its runtime shut down or it panicked.
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

/// Ends the entry however the call ends.
struct Forget<T> {
    calls: Arc<Mutex<HashMap<Key, watch::Receiver<Option<T>>>>>,
    key: Key,
}

impl<T> Drop for Forget<T> {
    fn drop(&mut self) {
        lock(&self.calls).remove(&self.key);
    }
}
