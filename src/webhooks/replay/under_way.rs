//! Which deliveries this process forwards at the moment.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use super::in_flight;
use crate::{clock::Timestamp, error::Rejection, lock::lock};

/// Deliveries under way, where no other process uses the store: a reservation has no meaning beyond the life of the
/// process then and costs no write. Clones share it.
#[derive(Clone, Default)]
pub(super) struct UnderWay(Arc<Process>);

#[derive(Default)]
struct Process {
    leases: Mutex<Leases>,
    /// The last write worked. Only then a delivery may be forwarded before anything of it is written.
    store_works: AtomicBool,
}

#[derive(Default)]
pub(super) struct Leases {
    /// By key, with the end.
    pub(super) until: HashMap<[u8; 32], Timestamp>,
    /// Those that lapsed are cleared away once there are so many.
    sweep_at: usize,
}

/// Leases of a delivery. They end with this, unless `outlasts`.
pub(super) struct Leased {
    under_way: UnderWay,
    keys: Vec<[u8; 32]>,
    until: Timestamp,
    /// They stay until they lapse.
    pub(super) outlasts: bool,
}

/// From how many leases on those that lapsed are cleared away.
pub(super) const SWEEP_FROM: usize = 1024;

impl UnderWay {
    pub(super) fn leases(&self) -> MutexGuard<'_, Leases> {
        lock(&self.0.leases)
    }

    /// Takes all keys, or none where one of them is under way.
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
    /// Remembers here what the store does not: the next are not forwarded before it works again, so these are few.
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
            // One that lapsed may be another's by now.
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
