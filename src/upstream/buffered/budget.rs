//! The memory budget that buffered bodies share, and the guaranteed part of each kind of body.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;

use crate::{lock::lock, memory::Memory};

/// The part of the budget, as a divisor, that is guaranteed to each kind of body. Beyond it, a single client or sender
/// may have only one body.
const PART: usize = 8;

/// The bytes that senders who are not known may take until the memory of the process is measured again.
const MEASURED_EVERY: usize = 1 << 20;

/// Whose memory a body counts as.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Share {
    /// Of a sender not yet authenticated, at this address if it belongs to a single client.
    Unproven(Option<IpAddr>),
    /// Of a known caller.
    Known,
    /// A held delivery of this sender that is being delivered now.
    Held(Arc<str>),
    /// A request to the interceptor, by an EventListener or anybody else at this address, if it belongs to a single
    /// client.
    Question(Option<IpAddr>),
}

impl Share {
    /// Whether it is counted for a single client or sender.
    fn is_of_one(&self) -> bool {
        matches!(self, Self::Unproven(Some(_)) | Self::Held(_) | Self::Question(Some(_)))
    }

    /// Whether anybody can use it.
    fn is_of_anybody(&self) -> bool {
        matches!(self, Self::Unproven(_) | Self::Question(_))
    }

    /// The same kind without the address, where it is counted by address.
    fn of_nobody(&self) -> Self {
        match self {
            Self::Unproven(_) => Self::Unproven(None),
            Self::Question(_) => Self::Question(None),
            Self::Known | Self::Held(_) => self.clone(),
        }
    }
}

/// The memory for buffered bodies of the whole process. Clones share it.
#[derive(Clone, Debug)]
pub struct ByteBudget {
    shared: Arc<Mutex<Used>>,
}

impl ByteBudget {
    /// `limit` is in bytes.
    pub fn new(limit: usize) -> Self {
        Self { shared: Arc::new(Mutex::new(Used { limit, ..Used::default() })) }
    }

    /// Also refuses senders who are not known while the process is short of memory, which is not used by bodies alone.
    pub fn measured_by(self, memory: Memory) -> Self {
        lock(&self.shared).memory = memory;
        self
    }

    /// Sets another limit, which applies from the next reservation on.
    pub fn set_limit(&self, limit: usize) {
        lock(&self.shared).limit = limit;
    }

    /// Bytes in use.
    #[cfg(test)]
    pub fn used(&self) -> usize {
        lock(&self.shared).by_kind().iter().sum()
    }

    /// Counts a known caller's body that was read elsewhere for as long as the body lives; `None` if there is no room.
    pub fn hold(&self, body: Bytes) -> Option<Bytes> {
        self.room(Share::Known, 0)?.fill(body)
    }

    /// Reserves `bytes` that are about to be read elsewhere; `None` if there is no room.
    pub fn room(&self, share: Share, bytes: usize) -> Option<Room> {
        let mut reservation = self.reservation(share);
        reservation.grow_to(bytes).then_some(Room(reservation))
    }

    pub(super) fn reservation(&self, share: Share) -> Reservation {
        Reservation::new(Arc::clone(&self.shared), share)
    }
}

/// The bytes in use.
#[derive(Debug, Default)]
struct Used {
    limit: usize,
    unproven: usize,
    known: usize,
    held: usize,
    questions: usize,
    /// By client and sender, for those that use any.
    by_one: HashMap<Share, OfOne>,
    /// The number of bodies so far that were counted for a single client or sender.
    bodies: u64,
    memory: Memory,
    /// What senders who are not known have taken since the memory was measured.
    unmeasured: usize,
}

/// The use of one client or sender.
#[derive(Clone, Copy, Debug, Default)]
struct OfOne {
    bytes: usize,
    /// The one body that is allowed beyond the client's part of the budget.
    beyond: Option<u64>,
}

impl Used {
    fn by_kind(&self) -> [usize; 4] {
        [self.unproven, self.known, self.held, self.questions]
    }

    fn of_kind(&mut self, share: &Share) -> &mut usize {
        match share {
            Share::Unproven(_) => &mut self.unproven,
            Share::Known => &mut self.known,
            Share::Held(_) => &mut self.held,
            Share::Question(_) => &mut self.questions,
        }
    }

    /// Whether there is room for `more` bytes of this kind.
    fn fits(&mut self, share: &Share, more: usize) -> bool {
        let part = self.limit / PART;
        let of_kind = *self.of_kind(share);
        let taken = self.by_kind().iter().fold(0_usize, |sum, used| sum.saturating_add((*used).max(part)));
        let others = taken - of_kind.max(part);
        others.saturating_add(of_kind).saturating_add(more) <= self.limit
    }

    /// Whether the process has the memory for `more` bytes of a sender who is not known.
    fn is_affordable(&mut self, more: usize) -> bool {
        let unmeasured = self.unmeasured.saturating_add(more);
        let is_due = unmeasured >= MEASURED_EVERY;
        if is_due && !self.memory.fits(unmeasured) {
            return false;
        }
        self.unmeasured = if is_due { 0 } else { unmeasured };
        true
    }

    /// Reserves `more` bytes for a body; false if there is no room.
    fn take(&mut self, share: &Share, body: u64, more: usize) -> bool {
        let part = self.limit / PART;
        let mut of_one = self.by_one.get(share).copied().unwrap_or_default();
        let mut left = 0;
        if share.is_of_one() {
            of_one.bytes = of_one.bytes.saturating_add(more);
            // The largest accepted body may be larger than a part, so one body may go beyond it. An EventListener asks
            // about all its Triggers at once, each time with the whole body.
            let is_bound = !matches!(share, Share::Question(_));
            if is_bound && of_one.bytes > part && *of_one.beyond.get_or_insert(body) != body {
                return false;
            }
            // Beyond the part of its kind, a client that uses much must leave room for those that use less: otherwise a
            // few addresses would lock out all others.
            if self.of_kind(share).saturating_add(more) > part {
                left = of_one.bytes.saturating_mul(PART).min(part);
            }
        }
        let has_room =
            self.fits(share, more.saturating_add(left)) && (!share.is_of_anybody() || self.is_affordable(more));
        if has_room {
            *self.of_kind(share) += more;
            if share.is_of_one() {
                self.by_one.insert(share.clone(), of_one);
            }
        }
        has_room
    }

    /// Releases `bytes` of a body, which does not grow any more.
    fn subtract(&mut self, share: &Share, body: u64, bytes: usize) {
        *self.of_kind(share) -= bytes;
        let part = self.limit / PART;
        if let Some(of_one) = self.by_one.get_mut(share) {
            of_one.bytes -= bytes;
            if of_one.bytes <= part || of_one.beyond == Some(body) {
                of_one.beyond = None;
            }
            if of_one.bytes == 0 {
                self.by_one.remove(share);
            }
        }
    }
}

/// A reservation for bytes that are about to be read. It is released when dropped, or when the last reference to the
/// bytes is.
#[derive(Debug)]
pub struct Room(Reservation);

impl Room {
    /// Counts the bytes that were read for as long as they live; `None` if they exceed both the reservation and the
    /// budget.
    pub fn fill<B: AsRef<[u8]> + Send + 'static>(mut self, bytes: B) -> Option<Bytes> {
        let length = bytes.as_ref().len();
        if !self.0.grow_to(length) {
            return None;
        }
        self.0.shrink_to(length);
        Some(counted(bytes, self.0))
    }
}

/// A part of the budget, released when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<Mutex<Used>>,
    share: Share,
    /// The number of the body, if it is counted for a single client or sender.
    body: u64,
    bytes: usize,
}

impl Reservation {
    fn new(budget: Arc<Mutex<Used>>, share: Share) -> Self {
        // Bodies that are not counted for a single client need no number.
        let body = match share.is_of_one() {
            true => {
                let mut used = lock(&budget);
                used.bodies += 1;
                used.bodies
            }
            false => 0,
        };
        Self { budget, share, body, bytes: 0 }
    }

    /// Grows it to `bytes`; false if the budget has no room.
    pub(super) fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let has_room = more == 0 || lock(&self.budget).take(&self.share, self.body, more);
        if has_room {
            self.bytes += more;
        }
        has_room
    }

    /// Reserves `bytes` of the same kind for a moment. They do not count towards the limit of a client that is counted
    /// by its address.
    pub(super) fn beside(&self, bytes: usize) -> Option<Self> {
        let mut beside = Self::new(Arc::clone(&self.budget), self.share.of_nobody());
        beside.grow_to(bytes).then_some(beside)
    }

    /// Releases what exceeds `bytes`.
    fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        lock(&self.budget).subtract(&self.share, self.body, less);
        self.bytes -= less;
    }

    /// Counts it as a known caller's from now on.
    pub(super) fn prove(&mut self) {
        let mut used = lock(&self.budget);
        used.subtract(&self.share, self.body, self.bytes);
        self.share = Share::Known;
        used.known += self.bytes;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// Bytes with their part of the budget, which is released with the last reference to them.
pub(super) fn counted<B, R>(bytes: B, reservation: R) -> Bytes
where
    B: AsRef<[u8]> + Send + 'static,
    R: Send + 'static,
{
    if bytes.as_ref().is_empty() {
        return Bytes::new();
    }
    Bytes::from_owner(Counted { bytes, _reservation: reservation })
}

struct Counted<B, R> {
    bytes: B,
    _reservation: R,
}

impl<B: AsRef<[u8]>, R> AsRef<[u8]> for Counted<B, R> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::health::{Gate, Health},
        clock::Clock,
        config::{raw::Limits, values::Size},
    };

    fn at(last: u8) -> Share {
        Share::Unproven(Some([192, 0, 2, last].into()))
    }

    fn of(sender: &str) -> Share {
        Share::Held(sender.into())
    }

    /// Reserves all the room there is, in small pieces.
    fn fill(budget: &ByteBudget, share: &Share) -> Vec<Room> {
        std::iter::from_fn(|| budget.room(share.clone(), 10)).collect()
    }

    fn asks(last: u8) -> Share {
        Share::Question(Some([192, 0, 2, last].into()))
    }

    /// Ten connections of a stranger blocked everybody's deliveries and the requests of EventListeners.
    #[test]
    fn one_client_or_sender_leaves_room_for_others() {
        for (one, other) in [(at(1), at(2)), (of("hub"), of("lab"))] {
            let budget = ByteBudget::new(800);
            let filled = fill(&budget, &one);
            // One body is beyond its part.
            assert_eq!((filled.len(), budget.used()), (11, 110), "{one:?}");
            assert!(budget.room(other.clone(), 100).is_some(), "{one:?}");
            drop(filled);
            assert_eq!(budget.used(), 0);
            // No body is refused merely because it is large.
            let large = budget.room(one.clone(), 300).unwrap();
            assert!(budget.room(one.clone(), 1).is_none(), "{one:?}: one alone");
            assert!(budget.room(other, 100).is_some(), "{one:?}");
            drop(large);
            assert!(lock(&budget.shared).by_one.is_empty(), "{one:?}");
        }
    }

    /// The third of an EventListener's Triggers created no run for a large delivery, as its request came from the same
    /// address as the first two.
    #[test]
    fn an_event_listener_asks_of_as_many_triggers_as_leave_room_for_others() {
        let budget = ByteBudget::new(800);
        let asked: Vec<Room> = std::iter::from_fn(|| budget.room(asks(1), 100)).collect();
        assert_eq!(asked.len(), 4);
        assert!(budget.room(asks(2), 10).is_some(), "of another");
        drop(asked);
        assert!(lock(&budget.shared).by_one.is_empty());
    }

    /// Six addresses blocked everybody with a large body each, and then with several.
    #[test]
    fn some_few_addresses_that_have_much_leave_room_for_others() {
        for each in [300, 100] {
            for share in [at, asks] {
                let budget = ByteBudget::new(800);
                let large: Vec<Room> = (1..=6).filter_map(|last| budget.room(share(last), each)).collect();
                assert!(!large.is_empty());
                assert!(budget.room(share(9), 10).is_some(), "beside {} of {each}", large.len());
            }
        }
    }

    /// Regression: a body was refused whenever another one from its address was in flight, whichever came first.
    #[test]
    fn the_body_of_a_client_that_exceeds_its_share_first_continues() {
        let budget = ByteBudget::new(8000);
        let (mut first, mut second) = (budget.reservation(at(1)), budget.reservation(at(1)));
        assert!(first.grow_to(600) && second.grow_to(300));
        assert!(first.grow_to(1200));
        assert!(!second.grow_to(301), "one is beyond it");
        assert!(first.grow_to(2400));
        drop(first);
        assert!(second.grow_to(1200), "there is none beyond it any more");
        drop(second);
        assert!(lock(&budget.shared).by_one.is_empty());
    }

    /// Bodies whose requests were accepted before continued to grow until the kernel killed the process.
    #[test]
    fn bodies_of_unknown_senders_stop_growing_as_soon_as_memory_is_short() {
        let component = Health::new(Clock::default()).component("memory", Gate::Readiness);
        let memory = Memory::default();
        let limits = |memory| Limits { memory: Some(memory), ..Limits::default() };
        for share in [Share::Unproven(None), at(1), Share::Question(None), asks(1)] {
            let budget = ByteBudget::new(1 << 30).measured_by(memory.clone());
            let mut body = budget.reservation(share.clone());
            memory.look(&limits(Size(1 << 50)), &component);
            assert!(body.grow_to(4 * MEASURED_EVERY), "{share:?}");
            memory.look(&limits(Size::kib(1)), &component);
            assert!(body.grow_to(5 * MEASURED_EVERY - 1), "{share:?}: not measured again yet");
            assert!(!body.grow_to(5 * MEASURED_EVERY), "{share:?}");
            assert!(budget.room(Share::Known, 2 * MEASURED_EVERY).is_some(), "{share:?}: a known caller");
            memory.look(&limits(Size(1 << 50)), &component);
            assert!(body.grow_to(5 * MEASURED_EVERY), "{share:?}");
        }
    }

    /// An EventListener got a 503 from the interceptor, which it does not retry, while strangers sent bodies of other
    /// kinds that never ended.
    #[test]
    fn no_kind_of_bodies_takes_the_part_of_another() {
        let kinds = [Share::Unproven(None), Share::Known, of("hub"), Share::Question(None)];
        for kind in &kinds {
            let budget = ByteBudget::new(800);
            // A sender has a part of its kind's part, and leaves some to others.
            let (many, most): (Vec<Share>, usize) = match kind {
                Share::Held(_) => (["a", "b", "c", "d", "e", "f", "g", "h"].map(of).to_vec(), 420),
                kind => (vec![kind.clone()], 500),
            };
            let filled: Vec<Room> = many.iter().flat_map(|one| fill(&budget, one)).collect();
            assert_eq!((filled.len(), budget.used()), (most / 10, most), "{kind:?}");
            for other in kinds.iter().filter(|other| *other != kind) {
                assert!(fill(&budget, other).len() >= 10, "{other:?} beside {kind:?}");
            }
        }
    }
}
