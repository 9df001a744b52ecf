//! The deliveries that this process is forwarding.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use super::in_flight;
use crate::{clock::Timestamp, error::Rejection, lock::lock};

/// Deliveries in flight, if no other process uses the store. A reservation then needs no write, as it means nothing
/// after the end of the process. Clones share it.
#[derive(Clone, Default)]
pub(super) struct UnderWay(Arc<Process>);

#[derive(Default)]
struct Process {
    leases: Mutex<Leases>,
    /// Whether the last write succeeded. Only then may a delivery be forwarded before anything about it is written.
    store_works: AtomicBool,
}

#[derive(Default)]
pub(super) struct Leases {
    /// The expiry of each lease, by key.
    pub(super) until: HashMap<[u8; 32], Timestamp>,
    /// The number of leases at which expired ones are removed.
    sweep_at: usize,
}

/// The leases of a delivery. They end when this is dropped, unless `outlasts` is set.
pub(super) struct Leased {
    under_way: UnderWay,
    keys: Vec<[u8; 32]>,
    until: Timestamp,
    /// Whether they stay until they expire.
    pub(super) outlasts: bool,
}

/// The smallest number of leases at which expired ones are removed.
pub(super) const SWEEP_FROM: usize = 1024;

impl UnderWay {
    pub(super) fn leases(&self) -> MutexGuard<'_, Leases> {
        lock(&self.0.leases)
    }

    /// Takes all keys, or none if one of them is in flight.
    pub(super) fn lease(&self, keys: &[[u8; 32]], until: Timestamp, now: Timestamp) -> Result<Leased, Rejection> {
        let mut leases = self.leases();
        if keys.iter().any(|key| leases.until.get(key).is_some_and(|until| *until > now)) {
            return Err(in_flight());
        }
        if leases.until.len() >= leases.sweep_at.max(SWEEP_FROM) {
            leases.until.retain(|_, until| *until > now);
            leases.sweep_at = leases.until.len() * 2;
        }
        leases.until.extend(keys.iter().map(|key| (*key, until)));
        drop(leases);
        Ok(Leased { under_way: self.clone(), keys: keys.to_vec(), until, outlasts: false })
    }

    pub(super) fn store_works(&self) -> bool {
        self.0.store_works.load(Ordering::Relaxed)
    }

    pub(super) fn set_store_works(&self, works: bool) {
        self.0.store_works.store(works, Ordering::Relaxed);
    }
}

impl Leased {
    /// Remembers in memory what could not be stored. There are few of these: no further delivery is forwarded before
    /// the store works again.
    pub(super) fn keep_until(&mut self, until: Timestamp) {
        self.outlasts = true;
        self.until = until;
        self.under_way.leases().until.extend(self.keys.iter().map(|key| (*key, until)));
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        if self.outlasts {
            return;
        }
        let mut leases = self.under_way.leases();
        for key in &self.keys {
            // If the lease expired, another may have it now.
            if leases.until.get(key) == Some(&self.until) {
                leases.until.remove(key);
            }
        }
    }
}

impl std::fmt::Debug for Leased {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leased").field("until", &self.until).field("outlasts", &self.outlasts).finish_non_exhaustive()
    }
}
