//! Room in the trail: how many records may wait for the sink. Each holds its place from when its request is let through until the
//! sink has its line.
//!
//! Requests have as much as records after the fact, which are those of refusals, ends of streams and notes: a flood of refusals
//! keeps no request waiting.

use std::{
    ops::AddAssign,
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

/// The room, and who waits for some.
#[derive(Debug)]
pub(super) struct Room {
    /// In records, of each of the two kinds.
    capacity: usize,
    /// What requests may take. Given to those that wait in the order in which they came, and to nobody else meanwhile.
    free: Semaphore,
    /// What records after the fact have taken.
    besides: AtomicUsize,
    /// Something else is in force, so that who waits is to look whether that is still right.
    pub(super) changed: Notify,
}

/// Places that are held.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    /// Of requests.
    reserved: usize,
    /// Of records after the fact.
    besides: usize,
}

impl Held {
    /// That of a record after the fact.
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

    /// Whether a request can have so much at all.
    pub(super) const fn suffices_for(&self, records: u32) -> bool {
        records as usize <= self.capacity
    }

    /// Whether there is any for requests beyond what others wait for.
    pub(super) fn has_any(&self) -> bool {
        self.free.available_permits() > 0
    }

    /// Takes room for a request, or says that there is none beyond what others wait for.
    pub(super) fn take(&self, records: u32) -> bool {
        self.free.try_acquire_many(records).map(SemaphorePermit::forget).is_ok()
    }

    /// The same, and waits for it behind those that wait already. False once the trail is closed.
    pub(super) async fn wait(&self, records: u32) -> bool {
        self.free.acquire_many(records).await.map(SemaphorePermit::forget).is_ok()
    }

    /// Takes room for a record after the fact, or says that there is none.
    pub(super) fn take_besides(&self) -> bool {
        let taken = self.besides.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |besides| {
            (besides < self.capacity).then_some(besides + 1)
        });
        taken.is_ok()
    }

    /// Whether [`Room::take_besides`] would take some now.
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

    /// Whether requests have taken so much that none should hold any for long.
    pub(super) fn is_crowded(&self) -> bool {
        self.reserved() > self.capacity / 2
    }

    /// Whether so much is taken, of either kind, that the sink should be given some soon.
    pub(super) fn is_filling(&self) -> bool {
        self.used() > self.capacity / 2
    }

    /// How much is taken.
    pub(super) fn used(&self) -> usize {
        self.reserved() + self.besides.load(Ordering::Relaxed)
    }

    fn reserved(&self) -> usize {
        self.capacity.saturating_sub(self.free.available_permits())
    }

    /// Turns those that wait away, and all that come.
    pub(super) fn close(&self) {
        self.free.close();
    }
}
