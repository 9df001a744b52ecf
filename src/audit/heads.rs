//! The last checkpoints of all replicas that share a store. Each replica names those of the others in its own
//! checkpoints, so that they prove it if a whole chain is removed or reset.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::chain::Link;
use crate::lock::lock;

/// The heads of other replicas in one line: this many fit even if all host names have their maximum length. The rest
/// wait for the next.
const IN_ONE_LINE: usize = 32;

/// The last checkpoint of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The replica that writes the chain.
    pub instance: Arc<str>,
    /// The number of the line.
    pub seq: u64,
    /// Its code.
    pub mac: Arc<str>,
}

impl Head {
    pub(super) fn new(instance: &Arc<str>, link: Link) -> Self {
        Self { instance: Arc::clone(instance), seq: link.seq, mac: link.mac.as_str().into() }
    }
}

/// The state that the trail's thread shares with the task that exchanges heads.
#[derive(Debug)]
pub(super) struct Heads {
    /// Our last checkpoint that is on stable storage.
    own: watch::Sender<Option<Head>>,
    /// Heads of others that no checkpoint of ours names yet, by instance.
    others: Mutex<BTreeMap<Arc<str>, Head>>,
}

impl Default for Heads {
    fn default() -> Self {
        Self { own: watch::Sender::new(None), others: Mutex::default() }
    }
}

impl Heads {
    pub(super) fn watch(&self) -> watch::Receiver<Option<Head>> {
        self.own.subscribe()
    }

    pub(super) fn publish(&self, head: Head) {
        self.own.send_replace(Some(head));
    }

    pub(super) fn witness(&self, heads: impl IntoIterator<Item = Head>) {
        let mut others = lock(&self.others);
        others.extend(heads.into_iter().map(|head| (Arc::clone(&head.instance), head)));
    }

    /// Takes the heads that the next checkpoint is to name.
    pub(super) fn take(&self) -> Vec<Head> {
        let mut others = lock(&self.others);
        (0..IN_ONE_LINE).map_while(|_| others.pop_first()).map(|(_, head)| head).collect()
    }
}
