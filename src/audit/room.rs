//! The limit on records that wait for the sink. Each holds its place from when its request is let through until the
//! sink has its line.
//!
//! Requests have as many places as records after the fact (refusals, ends of streams and notes), so that a flood of
//! refusals delays no request.

use std::{
    ops::AddAssign,
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

/// The places, and the requests that wait for one.
#[derive(Debug)]
pub(super) struct Room {
    /// In records, for each of the two kinds.
    capacity: usize,
    /// Free places for requests. Waiting requests get them first, in the order in which they arrived.
    free: Semaphore,
    /// Places that records after the fact have taken.
    besides: AtomicUsize,
    /// Notified when the conditions have changed, so that waiting requests check whether they should still wait.
    pub(super) changed: Notify,
}

/// Places that are held.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    /// Held by requests.
    reserved: usize,
    /// Held by records after the fact.
    besides: usize,
}

impl Held {
    /// The place of a record after the fact.
    pub(super) const BESIDES: Self = Self { reserved: 0, besides: 1 };

    pub(super) const fn reserved(records: u32) -> Self {
        Self { reserved: records as usize, besides: 0 }
    }

    pub(super) const fn records(self) -> usize {
        self.reserved + self.besides
    }
}

impl AddAssign for Held {
    fn add_assign(&mut self, other: Self) {
        self.reserved += other.reserved;
        self.besides += other.besides;
    }
}

impl Room {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            free: Semaphore::new(capacity.min(Semaphore::MAX_PERMITS)),
            besides: AtomicUsize::new(0),
            changed: Notify::new(),
        }
    }

    /// Whether a request can ever have this many.
    pub(super) const fn suffices_for(&self, records: u32) -> bool {
        records as usize <= self.capacity
    }

    /// Whether a request could take a place now, beyond those that others wait for.
    pub(super) fn has_any(&self) -> bool {
        self.free.available_permits() > 0
    }

    /// Takes places for a request. Returns false if there are none beyond those that others wait for.
    pub(super) fn take(&self, records: u32) -> bool {
        self.free.try_acquire_many(records).map(SemaphorePermit::forget).is_ok()
    }

    /// Takes places for a request, waiting behind earlier ones. Returns false once the trail is closed.
    pub(super) async fn wait(&self, records: u32) -> bool {
        self.free.acquire_many(records).await.map(SemaphorePermit::forget).is_ok()
    }

    /// Takes a place for a record after the fact. Returns false if there is none.
    pub(super) fn take_besides(&self) -> bool {
        let taken = self.besides.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |besides| {
            (besides < self.capacity).then_some(besides + 1)
        });
        taken.is_ok()
    }

    /// Whether [`Room::take_besides`] would succeed now.
    pub(super) fn has_besides(&self) -> bool {
        self.besides.load(Ordering::Relaxed) < self.capacity
    }

    pub(super) fn give_back(&self, Held { reserved, besides }: Held) {
        if reserved > 0 {
            self.free.add_permits(reserved);
        }
        if besides > 0 {
            self.besides.fetch_sub(besides, Ordering::Relaxed);
        }
    }

    /// Whether requests have taken so many that none should hold one for long.
    pub(super) fn is_crowded(&self) -> bool {
        self.reserved() > self.capacity / 2
    }

    /// Whether so many are taken, of either kind, that the sink should get some soon.
    pub(super) fn is_filling(&self) -> bool {
        self.used() > self.capacity / 2
    }

    /// Returns how many are taken.
    pub(super) fn used(&self) -> usize {
        self.reserved() + self.besides.load(Ordering::Relaxed)
    }

    fn reserved(&self) -> usize {
        self.capacity.saturating_sub(self.free.available_permits())
    }

    /// Turns away all waiting and future requests.
    pub(super) fn close(&self) {
        self.free.close();
    }
}
