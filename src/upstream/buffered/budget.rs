//! The memory that buffered bodies share, and what each kind of them has of it whatever the others do.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;

use crate::lock::lock;

/// The part of the memory, as a divisor, that each kind of bodies has for itself, and beyond which one client or sender has a single
/// body at most.
const PART: usize = 8;

/// Whose a body is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Share {
    /// Of somebody of whom nothing is proven yet: at this address, where that is of one client alone.
    Unproven(Option<IpAddr>),
    /// Of somebody who is known.
    Known,
    /// Held, of this sender, and brought now.
    Held(Arc<str>),
    /// What an EventListener asks the interceptor.
    Question,
}

impl Share {
    /// Whether it is of one among many of its kind.
    fn is_of_one(&self) -> bool {
        matches!(self, Self::Unproven(Some(_)) | Self::Held(_))
    }
}

/// Memory for buffered bodies, of the whole process. Clones share it.
#[derive(Clone, Debug)]
pub struct ByteBudget {
    shared: Arc<Mutex<Used>>,
}

impl ByteBudget {
    /// `limit` in bytes.
    pub fn new(limit: usize) -> Self {
        Self { shared: Arc::new(Mutex::new(Used { limit, ..Used::default() })) }
    }

    /// Another limit, from the next reservation on.
    pub fn set_limit(&self, limit: usize) {
        lock(&self.shared).limit = limit;
    }

    /// Bytes in use.
    #[cfg(test)]
    pub fn used(&self) -> usize {
        lock(&self.shared).by_kind().iter().sum()
    }

    /// Counts a body of somebody known that was read from elsewhere, as long as anybody has it; `None` if there is no room.
    pub fn hold(&self, body: Bytes) -> Option<Bytes> {
        self.room(Share::Known, 0)?.fill(body)
    }

    /// Takes room for `bytes` that are about to be read from elsewhere; `None` if there is none.
    pub fn room(&self, share: Share, bytes: usize) -> Option<Room> {
        let mut reservation = self.reservation(share);
        reservation.grow_to(bytes).then_some(Room(reservation))
    }

    pub(super) fn reservation(&self, share: Share) -> Reservation {
        Reservation { budget: Arc::clone(&self.shared), share, bytes: 0 }
    }
}

/// Bytes in use, of what there is.
#[derive(Debug, Default)]
struct Used {
    limit: usize,
    unproven: usize,
    known: usize,
    held: usize,
    questions: usize,
    /// Of each client and each sender that has any.
    by_one: HashMap<Share, usize>,
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
            Share::Question => &mut self.questions,
        }
    }

    /// Whether there is room for `more` bytes of a body that has `own` already.
    fn has_room(&mut self, share: &Share, own: usize, more: usize) -> bool {
        let part = self.limit / PART;
        let of_kind = *self.of_kind(share);
        let taken = self.by_kind().iter().fold(0_usize, |sum, used| sum.saturating_add((*used).max(part)));
        let others = taken - of_kind.max(part);
        let fits = others.saturating_add(of_kind).saturating_add(more) <= self.limit;
        let of_one = self.by_one.get(share).copied().unwrap_or_default();
        // A part may be smaller than the largest body that is taken.
        let is_only = of_one == own;
        fits && (!share.is_of_one() || is_only || of_one.saturating_add(more) <= part)
    }

    fn add(&mut self, share: &Share, bytes: usize) {
        *self.of_kind(share) += bytes;
        if share.is_of_one() {
            *self.by_one.entry(share.clone()).or_default() += bytes;
        }
    }

    fn subtract(&mut self, share: &Share, bytes: usize) {
        *self.of_kind(share) -= bytes;
        if let Some(of_one) = self.by_one.get_mut(share) {
            *of_one -= bytes;
            if *of_one == 0 {
                self.by_one.remove(share);
            }
        }
    }
}

/// Room for bytes that are about to be read. Given back when it is dropped, or nobody has the bytes any more.
#[derive(Debug)]
pub struct Room(Reservation);

impl Room {
    /// Counts the bytes that were read, as long as anybody has them; `None` if there are more than room was taken for, and the
    /// budget has no more.
    pub fn fill<B: AsRef<[u8]> + Send + 'static>(mut self, bytes: B) -> Option<Bytes> {
        let length = bytes.as_ref().len();
        if !self.0.grow_to(length) {
            return None;
        }
        self.0.shrink_to(length);
        Some(counted(bytes, self.0))
    }
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<Mutex<Used>>,
    share: Share,
    bytes: usize,
}

impl Reservation {
    /// Makes it `bytes` large; false if the budget has no room.
    pub(super) fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 {
            return true;
        }
        let mut used = lock(&self.budget);
        let has_room = used.has_room(&self.share, self.bytes, more);
        if has_room {
            used.add(&self.share, more);
            self.bytes += more;
        }
        has_room
    }

    /// Gives back what is beyond `bytes`.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        lock(&self.budget).subtract(&self.share, less);
        self.bytes -= less;
    }

    /// Counts it as that of somebody who is known from now on.
    pub(super) fn prove(&mut self) {
        let mut used = lock(&self.budget);
        used.subtract(&self.share, self.bytes);
        self.share = Share::Known;
        used.add(&self.share, self.bytes);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// Bytes with their part of the budget, which lives as long as anybody has them.
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

    fn at(last: u8) -> Share {
        Share::Unproven(Some([192, 0, 2, last].into()))
    }

    fn of(sender: &str) -> Share {
        Share::Held(sender.into())
    }

    /// All the room that there is, in small pieces.
    fn fill(budget: &ByteBudget, share: &Share) -> Vec<Room> {
        std::iter::from_fn(|| budget.room(share.clone(), 10)).collect()
    }

    /// Ten connections of a stranger closed the door for the deliveries of everybody.
    #[test]
    fn what_one_client_or_sender_has_leaves_room_for_others() {
        for (one, other) in [(at(1), at(2)), (of("hub"), of("lab"))] {
            let budget = ByteBudget::new(800);
            let filled = fill(&budget, &one);
            assert_eq!((filled.len(), budget.used()), (10, 100), "{one:?}");
            assert!(budget.room(other.clone(), 100).is_some(), "{one:?}");
            drop(filled);
            assert_eq!(budget.used(), 0);
            // No body is refused whoever sends it, only because it is large.
            let large = budget.room(one.clone(), 300).unwrap();
            assert!(budget.room(one.clone(), 1).is_none(), "{one:?}: one alone");
            assert!(budget.room(other, 100).is_some(), "{one:?}");
            drop(large);
            assert!(lock(&budget.shared).by_one.is_empty(), "{one:?}");
        }
    }

    /// An EventListener heard 503 of the interceptor, which it asks once, while strangers sent bodies that they never ended.
    #[test]
    fn no_kind_of_bodies_takes_the_part_of_another() {
        let kinds = [Share::Unproven(None), Share::Known, of("hub"), Share::Question];
        for kind in &kinds {
            let budget = ByteBudget::new(800);
            // A sender has a part of its kind's.
            let many: Vec<Share> = match kind {
                Share::Held(_) => ["a", "b", "c", "d", "e", "f", "g", "h"].map(of).to_vec(),
                kind => vec![kind.clone()],
            };
            let filled: Vec<Room> = many.iter().flat_map(|one| fill(&budget, one)).collect();
            assert_eq!((filled.len(), budget.used()), (50, 500), "{kind:?}");
            for other in kinds.iter().filter(|other| *other != kind) {
                assert_eq!(fill(&budget, other).len(), 10, "{other:?} beside {kind:?}");
            }
        }
    }
}
