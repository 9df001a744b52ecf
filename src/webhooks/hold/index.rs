//! What is held, in memory: which lane has what, whose turn it is, and how much each sender has.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{Held, HeldId, LANES, Lane, Settings};
use crate::clock::Timestamp;

#[derive(Debug, Default)]
pub(super) struct Index {
    entries: HashMap<HeldId, Entry>,
    lanes: HashMap<Lane, Waiting>,
    senders: HashMap<Arc<str>, Usage>,
    /// The last version of the table that was read.
    pub(super) seen: u64,
    /// Counts lanes that were begun, so that the one that waited longest for its turn is next.
    turns: u64,
}

#[derive(Debug)]
struct Entry {
    held: Held,
    version: u64,
    /// The EventListener has it, and only its removal is left to do.
    taken: bool,
}

/// The deliveries of a lane that are tried, by their place.
#[derive(Debug, Default)]
struct Waiting {
    by_place: BTreeMap<u64, HeldId>,
    busy: bool,
    /// Not before: something else than the delivery stands in the way.
    paused: Timestamp,
    last_turn: u64,
}

/// What a sender has held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub waiting: usize,
    pub parked: usize,
    pub bytes: u64,
    /// Being written at the moment.
    coming: usize,
    coming_bytes: u64,
    busy: usize,
}

impl Index {
    /// Takes a record as the store has it, unless a later one is known.
    pub(super) fn set(&mut self, id: HeldId, held: Held, version: u64) {
        let taken = match self.entries.get(&id) {
            Some(known) if known.version >= version => return,
            Some(known) => known.taken,
            None => false,
        };
        self.remove(&id);
        let usage = self.senders.entry(Arc::clone(&held.webhook)).or_default();
        usage.bytes += held.size;
        match held.parked {
            Some(_) => usage.parked += 1,
            None => {
                usage.waiting += 1;
                let lane = self.lanes.entry(held.lane()).or_default();
                lane.by_place.insert(held.place.unwrap_or(version), id);
            }
        }
        self.entries.insert(id, Entry { held, version, taken });
    }

    pub(super) fn remove(&mut self, id: &HeldId) {
        let Some(Entry { held, version, .. }) = self.entries.remove(id) else { return };
        if let Some(usage) = self.senders.get_mut(&held.webhook) {
            usage.bytes = usage.bytes.saturating_sub(held.size);
            match held.parked {
                Some(_) => usage.parked = usage.parked.saturating_sub(1),
                None => usage.waiting = usage.waiting.saturating_sub(1),
            }
        }
        let lane = held.lane();
        if let Some(waiting) = self.lanes.get_mut(&lane) {
            waiting.by_place.remove(&held.place.unwrap_or(version));
            if waiting.by_place.is_empty() && !waiting.busy {
                self.lanes.remove(&lane);
            }
        }
    }

    /// The oldest delivery of a lane.
    pub(super) fn first(&self, lane: &Lane) -> Option<HeldId> {
        self.lanes.get(lane)?.by_place.values().next().copied()
    }

    pub(super) fn is_taken(&self, id: &HeldId) -> bool {
        self.entries.get(id).is_some_and(|entry| entry.taken)
    }

    pub(super) fn set_taken(&mut self, id: &HeldId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.taken = true;
        }
    }

    /// All that is held, in order.
    pub(super) fn all(&self) -> Vec<(HeldId, Held)> {
        let mut all: Vec<_> = self.entries.iter().collect();
        all.sort_by_key(|(id, entry)| (entry.held.place.unwrap_or(entry.version), **id));
        all.into_iter().map(|(id, entry)| (*id, entry.held.clone())).collect()
    }

    pub(super) fn usage(&self) -> impl Iterator<Item = (&Arc<str>, &Usage)> {
        self.senders.iter()
    }

    /// When the oldest waiting delivery of a sender came.
    pub(super) fn oldest(&self, webhook: &str) -> Option<i64> {
        let of_sender = self.entries.values().filter(|entry| *entry.held.webhook == *webhook);
        of_sender.filter(|entry| entry.held.parked.is_none()).map(|entry| entry.held.received).min()
    }

    /// Takes room for a delivery that is about to be written; false if the sender has none left.
    pub(super) fn reserve(&mut self, webhook: &Arc<str>, size: u64, settings: &Settings) -> bool {
        let usage = self.senders.entry(Arc::clone(webhook)).or_default();
        let count = usage.waiting + usage.parked + usage.coming;
        let bytes = usage.bytes + usage.coming_bytes;
        if count >= settings.max || bytes.saturating_add(size) > settings.max_bytes {
            return false;
        }
        usage.coming += 1;
        usage.coming_bytes += size;
        true
    }

    /// Gives the room back: the delivery is written and counts itself, or was not.
    pub(super) fn release(&mut self, webhook: &Arc<str>, size: u64) {
        if let Some(usage) = self.senders.get_mut(webhook) {
            usage.coming = usage.coming.saturating_sub(1);
            usage.coming_bytes = usage.coming_bytes.saturating_sub(size);
        }
    }

    /// The lanes whose turn it is, which are busy from now on, and when the next one is due.
    pub(super) fn begin_due(&mut self, now: Timestamp) -> (Vec<Lane>, Option<Timestamp>) {
        let mut next: Option<Timestamp> = None;
        let mut due: Vec<(u64, Lane)> = Vec::new();
        for (lane, waiting) in &self.lanes {
            let Some(first) = waiting.by_place.values().next().filter(|_| !waiting.busy) else { continue };
            let at = self.entries.get(first).map_or(now, |entry| Timestamp::from_millis(entry.held.next));
            let at = at.max(waiting.paused);
            if at <= now {
                due.push((waiting.last_turn, lane.clone()));
            } else {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        due.sort_unstable();
        due.retain(|(_, lane)| {
            let usage = self.senders.entry(Arc::clone(&lane.webhook)).or_default();
            let fits = usage.busy < LANES;
            usage.busy += usize::from(fits);
            fits
        });
        for (_, lane) in &due {
            self.turns += 1;
            if let Some(waiting) = self.lanes.get_mut(lane) {
                waiting.busy = true;
                waiting.last_turn = self.turns;
            }
        }
        (due.into_iter().map(|(_, lane)| lane).collect(), next)
    }

    /// Ends the turn of a lane, which gets no other before `paused`.
    pub(super) fn end_turn(&mut self, lane: &Lane, paused: Timestamp) {
        if let Some(usage) = self.senders.get_mut(&lane.webhook) {
            usage.busy = usage.busy.saturating_sub(1);
        }
        if let Some(waiting) = self.lanes.get_mut(lane) {
            waiting.busy = false;
            waiting.paused = paused;
            if waiting.by_place.is_empty() {
                self.lanes.remove(lane);
            }
        }
    }
}
