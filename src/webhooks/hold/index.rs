//! The in-memory index of held deliveries: the contents of each lane, whose turn it is, and the usage of each sender.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{Held, HeldId, LANES, Lane, PARKED_FOR, Settings, is_due};
use crate::clock::Timestamp;

/// How long a warning about a sender is not repeated: each of its lanes has a turn every second.
const WARN_AGAIN: Duration = Duration::from_secs(60);

/// What deliveries wait for besides their EventListener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lacking {
    Memory,
    Store,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    entries: HashMap<HeldId, Entry>,
    lanes: HashMap<Lane, Waiting>,
    senders: HashMap<Arc<str>, Sender>,
    /// Parked deliveries, the one parked longest ago first.
    parked: BTreeSet<(Timestamp, HeldId)>,
    /// The last parked delivery that was checked.
    looked_at: Option<(Timestamp, HeldId)>,
    /// Deliveries that this process is about to park, with the time in the record that parks them.
    parking: HashMap<HeldId, Timestamp>,
    /// Deliveries that this process has parked and not logged yet.
    parked_here: Vec<HeldId>,
    /// Unreadable records, which belong to no lane and no sender.
    unreadable: BTreeMap<HeldId, Unreadable>,
    /// The last unreadable record that was checked.
    unreadable_looked_at: Option<HeldId>,
    /// The last version of the table that was read.
    pub(super) seen: u64,
    /// The number of turns so far: the lane whose last turn was longest ago is next.
    turns: u64,
}

#[derive(Debug)]
struct Entry {
    held: Held,
    version: u64,
    /// When this process first learned of it.
    since: Instant,
    /// The EventListener has accepted it, and only its removal remains.
    taken: bool,
}

#[derive(Debug)]
struct Unreadable {
    version: u64,
    why: String,
}

/// The waiting deliveries of a lane, by their place.
#[derive(Debug, Default)]
struct Waiting {
    by_place: BTreeMap<u64, HeldId>,
    busy: bool,
    /// The lane has no turn before this time, for a reason other than the delivery itself.
    paused: Timestamp,
    last_turn: u64,
    /// When its first delivery is due: the key of the lane in the sets of its sender, unless it is busy or empty.
    due: Option<Timestamp>,
}

/// The state of a sender. Its lanes are sorted, so that a turn costs the same however many wait.
#[derive(Debug, Default)]
struct Sender {
    usage: Usage,
    /// Lanes that are due, the one whose last turn was longest ago first.
    ready: BTreeSet<(u64, Lane)>,
    /// Lanes that are not due yet.
    later: BTreeSet<(Timestamp, Lane)>,
    /// The number of lanes that have their turn.
    busy: usize,
    /// Waiting deliveries by arrival, the oldest first.
    received: BTreeSet<(Timestamp, HeldId)>,
    /// Waiting deliveries by when this process learned of them, the oldest first.
    known: BTreeSet<(Instant, HeldId)>,
    /// When the last warning was logged.
    warned: BTreeMap<Lacking, Instant>,
}

impl Sender {
    /// Removes and returns a lane that is due. Lanes whose time is further ahead than any pause are last.
    fn pop_due(&mut self, now: Timestamp) -> Option<(Timestamp, Lane)> {
        let is_due = |lane: Option<&(Timestamp, Lane)>| lane.is_some_and(|(at, _)| is_due(*at, now));
        if is_due(self.later.first()) {
            return self.later.pop_first();
        }
        if is_due(self.later.last()) { self.later.pop_last() } else { None }
    }
}

/// How much a sender has held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub waiting: usize,
    pub parked: usize,
    pub bytes: u64,
    /// Being written at the moment.
    coming: usize,
    coming_bytes: u64,
}

impl Index {
    /// Adds or updates a record as the store has it, unless a later version is known.
    pub(super) fn set(&mut self, id: HeldId, held: Held, version: u64) {
        if self.version(&id).is_none_or(|known| known < version) {
            self.replace(id, held, version);
        }
    }

    /// Adds or updates a record that was read from the store, where `known` was the known version before the read. An
    /// earlier version means that the store was set back; it replaces the known one unless a later version arrived
    /// during the read.
    pub(super) fn set_found(&mut self, id: HeldId, held: Held, version: u64, known: Option<u64>) {
        if self.version(&id) == known && known.is_some_and(|known| known > version) {
            self.replace(id, held, version);
        } else {
            self.set(id, held, version);
        }
    }

    /// Takes an unreadable record out of its lane, where `known` was the known version before it was read. Returns
    /// false if it is already known as unreadable, or a later version arrived during the read.
    pub(super) fn mark_unreadable(&mut self, id: HeldId, version: u64, why: String, known: Option<u64>) -> bool {
        let is_later = |there: u64| there > version && Some(there) != known;
        let is_known = |left: &Unreadable| left.version == version && left.why == why;
        if self.version(&id).is_some_and(is_later) || self.unreadable.get(&id).is_some_and(is_known) {
            return false;
        }
        self.remove(&id);
        self.unreadable.insert(id, Unreadable { version, why });
        true
    }

    /// The unreadable records, with the reason.
    pub(super) fn unreadable(&self) -> impl ExactSizeIterator<Item = (&HeldId, &str)> {
        self.unreadable.iter().map(|(id, left)| (id, left.why.as_str()))
    }

    /// The next unreadable records to check, starting over after the last.
    pub(super) fn unreadable_turn(&mut self, count: usize) -> Vec<HeldId> {
        let after = self.unreadable_looked_at.map_or(Bound::Unbounded, Bound::Excluded);
        let turn: Vec<_> = self.unreadable.range((after, Bound::Unbounded)).take(count).map(|(id, _)| *id).collect();
        self.unreadable_looked_at = if turn.len() < count { None } else { turn.last().copied() };
        turn
    }

    pub(super) fn unreadable_version(&self, id: &HeldId) -> Option<u64> {
        self.unreadable.get(id).map(|left| left.version)
    }

    pub(super) fn version(&self, id: &HeldId) -> Option<u64> {
        self.entries.get(id).map(|entry| entry.version)
    }

    /// Forgets what is known of a store that was set back. Keeps deliveries that an EventListener has accepted, as only
    /// this process knows that.
    pub(super) fn begin_anew(&mut self) {
        self.seen = 0;
        self.unreadable.clear();
        let known: Vec<HeldId> = self.entries.iter().filter(|(_, entry)| !entry.taken).map(|(id, _)| *id).collect();
        for id in known {
            self.remove(&id);
        }
    }

    fn replace(&mut self, id: HeldId, held: Held, version: u64) {
        let known = self.entries.get(&id).map(|known| (known.taken, known.since));
        let (taken, since) = known.unwrap_or_else(|| (false, Instant::now()));
        let is_parked_here = held.parked.is_some_and(|parked| self.parking.get(&id) == Some(&parked));
        self.remove(&id);
        self.parked_here.extend(is_parked_here.then_some(id));
        let sender = self.senders.entry(Arc::clone(&held.webhook)).or_default();
        sender.usage.bytes += held.size;
        let lane = held.parked.is_none().then(|| held.lane());
        self.parked.extend(held.parked.map(|since| (since, id)));
        match &lane {
            None => sender.usage.parked += 1,
            Some(lane) => {
                sender.usage.waiting += 1;
                sender.received.insert((held.received, id));
                sender.known.insert((since, id));
                let waiting = self.lanes.entry(lane.clone()).or_default();
                waiting.by_place.insert(held.place.unwrap_or(version), id);
            }
        }
        self.entries.insert(id, Entry { held, version, since, taken });
        if let Some(lane) = lane {
            self.line_up(&lane);
        }
    }

    /// Removes a delivery that is gone, unless another version of it is known now.
    pub(super) fn remove_version(&mut self, id: &HeldId, version: u64) {
        if self.entries.get(id).is_some_and(|entry| entry.version == version) {
            self.remove(id);
        }
    }

    pub(super) fn remove(&mut self, id: &HeldId) {
        self.unreadable.remove(id);
        self.parking.remove(id);
        let Some(Entry { held, version, since, .. }) = self.entries.remove(id) else { return };
        if let Some(since) = held.parked {
            self.parked.remove(&(since, *id));
        }
        if let Some(sender) = self.senders.get_mut(&held.webhook) {
            let usage = &mut sender.usage;
            usage.bytes = usage.bytes.saturating_sub(held.size);
            match held.parked {
                Some(_) => usage.parked = usage.parked.saturating_sub(1),
                None => usage.waiting = usage.waiting.saturating_sub(1),
            }
            sender.received.remove(&(held.received, *id));
            sender.known.remove(&(since, *id));
        }
        let lane = held.lane();
        if let Some(waiting) = self.lanes.get_mut(&lane) {
            waiting.by_place.remove(&held.place.unwrap_or(version));
            self.line_up(&lane);
        }
    }

    /// Moves a lane to the right set of its sender after its contents or its state have changed.
    fn line_up(&mut self, lane: &Lane) {
        let Some(waiting) = self.lanes.get_mut(lane) else { return };
        let sender = self.senders.entry(Arc::clone(&lane.webhook)).or_default();
        if let Some(due) = waiting.due.take()
            && !sender.later.remove(&(due, lane.clone()))
        {
            sender.ready.remove(&(waiting.last_turn, lane.clone()));
        }
        if waiting.busy {
            return;
        }
        let Some(first) = waiting.by_place.values().next() else {
            self.lanes.remove(lane);
            return;
        };
        let next = self.entries.get(first).map_or_else(Timestamp::default, |entry| entry.held.next);
        let due = next.max(waiting.paused);
        waiting.due = Some(due);
        sender.later.insert((due, lane.clone()));
    }

    /// The oldest delivery of a lane.
    pub(super) fn first(&self, lane: &Lane) -> Option<HeldId> {
        self.first_with_place(lane).map(|(_, id)| id)
    }

    pub(super) fn first_with_place(&self, lane: &Lane) -> Option<(u64, HeldId)> {
        self.lanes.get(lane)?.by_place.first_key_value().map(|(place, id)| (*place, *id))
    }

    pub(super) fn is_taken(&self, id: &HeldId) -> bool {
        self.entries.get(id).is_some_and(|entry| entry.taken)
    }

    pub(super) fn set_taken(&mut self, id: &HeldId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.taken = true;
        }
    }

    /// Notes that this process is about to park a delivery as of `parked`. Only a record with this very time shows that
    /// it did: the store may be unavailable, or another replica may be first.
    pub(super) fn set_parking(&mut self, id: HeldId, parked: Timestamp) {
        self.parking.insert(id, parked);
    }

    /// Returns the deliveries that this process has parked since the last call.
    pub(super) fn take_parked_here(&mut self) -> Vec<(HeldId, Held)> {
        let parked = std::mem::take(&mut self.parked_here);
        parked.into_iter().filter_map(|id| Some((id, self.entries.get(&id)?.held.clone()))).collect()
    }

    /// Removes parked deliveries whose records have expired.
    pub(super) fn remove_ended(&mut self, now: Timestamp) {
        while let Some((since, id)) = self.parked.first().copied()
            && since + PARKED_FOR <= now
        {
            self.remove(&id);
            self.parked.remove(&(since, id));
        }
    }

    /// The next parked deliveries to check, with their known versions, starting over after the last.
    pub(super) fn parked_turn(&mut self, count: usize) -> Vec<(HeldId, u64)> {
        let after = self.looked_at.map_or(Bound::Unbounded, Bound::Excluded);
        let turn: Vec<_> = self.parked.range((after, Bound::Unbounded)).take(count).copied().collect();
        self.looked_at = if turn.len() < count { None } else { turn.last().copied() };
        turn.into_iter().filter_map(|(_, id)| Some((id, self.entries.get(&id)?.version))).collect()
    }

    /// All held deliveries, in order.
    pub(super) fn all(&self) -> Vec<(HeldId, Held)> {
        let mut all: Vec<_> = self.entries.iter().collect();
        all.sort_by_key(|(id, entry)| (entry.held.place.unwrap_or(entry.version), **id));
        all.into_iter().map(|(id, entry)| (*id, entry.held.clone())).collect()
    }

    pub(super) fn usage(&self) -> impl Iterator<Item = (&Arc<str>, &Usage)> {
        self.senders.iter().map(|(webhook, sender)| (webhook, &sender.usage))
    }

    /// How long the oldest waiting delivery of each sender has waited: since its arrival by the wall clock, and at
    /// least since this process learned of it, as that clock may have been set back.
    pub(super) fn oldest(&self, now: Timestamp) -> impl Iterator<Item = (&Arc<str>, Duration)> {
        self.senders.iter().map(move |(webhook, sender)| {
            let came = sender.received.first().map(|(since, _)| now.since(*since));
            let known = sender.known.first().map(|(since, _)| since.elapsed());
            (webhook, came.max(known).unwrap_or_default())
        })
    }

    /// Reserves a place for a delivery that is about to be written. Returns false if the sender has none left.
    pub(super) fn reserve(&mut self, webhook: &Arc<str>, size: u64, settings: &Settings) -> bool {
        let usage = &mut self.senders.entry(Arc::clone(webhook)).or_default().usage;
        let count = usage.waiting + usage.parked + usage.coming;
        let bytes = usage.bytes + usage.coming_bytes;
        if count >= settings.max || bytes.saturating_add(size) > settings.max_bytes {
            return false;
        }
        usage.coming += 1;
        usage.coming_bytes += size;
        true
    }

    /// Releases the reserved place: the delivery was written and now counts itself, or was not written.
    pub(super) fn release(&mut self, webhook: &Arc<str>, size: u64) {
        if let Some(Sender { usage, .. }) = self.senders.get_mut(webhook) {
            usage.coming = usage.coming.saturating_sub(1);
            usage.coming_bytes = usage.coming_bytes.saturating_sub(size);
        }
    }

    /// Whether to warn that deliveries of a sender wait for this. If so, the warning counts as logged.
    pub(super) fn is_warning_due(&mut self, webhook: &Arc<str>, lacking: Lacking) -> bool {
        let warned = &mut self.senders.entry(Arc::clone(webhook)).or_default().warned;
        let now = Instant::now();
        let is_due = warned.get(&lacking).is_none_or(|last| now.duration_since(*last) >= WARN_AGAIN);
        if is_due {
            warned.insert(lacking, now);
        }
        is_due
    }

    pub(super) fn is_busy(&self) -> bool {
        self.senders.values().any(|sender| sender.busy > 0)
    }

    /// Starts the turns of all lanes that are due, which are busy from now on. Also returns when the next lane is due.
    pub(super) fn begin_due(&mut self, now: Timestamp) -> (Vec<Lane>, Option<Timestamp>) {
        let mut due = Vec::new();
        let mut next: Option<Timestamp> = None;
        for sender in self.senders.values_mut() {
            while let Some((_, lane)) = sender.pop_due(now) {
                let last_turn = self.lanes.get(&lane).map_or(0, |waiting| waiting.last_turn);
                sender.ready.insert((last_turn, lane));
            }
            while sender.busy < LANES
                && let Some((_, lane)) = sender.ready.pop_first()
            {
                sender.busy += 1;
                self.turns += 1;
                if let Some(waiting) = self.lanes.get_mut(&lane) {
                    waiting.busy = true;
                    waiting.due = None;
                    waiting.last_turn = self.turns;
                }
                due.push(lane);
            }
            let later = sender.later.first().map(|(at, _)| *at);
            next = next.into_iter().chain(later).min();
        }
        (due, next)
    }

    /// Ends the turn of a lane, which gets no other before `paused`.
    pub(super) fn end_turn(&mut self, lane: &Lane, paused: Timestamp) {
        if let Some(sender) = self.senders.get_mut(&lane.webhook) {
            sender.busy = sender.busy.saturating_sub(1);
        }
        if let Some(waiting) = self.lanes.get_mut(lane) {
            waiting.busy = false;
            waiting.paused = paused;
            self.line_up(lane);
        }
    }
}
