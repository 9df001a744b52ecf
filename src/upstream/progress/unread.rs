//! Ends responses that their clients do not read, while other requests wait for their connections. Over HTTP/1.1, a
//! response occupies its connection until the client has read it, so that one client could occupy all of them.
//!
//! Nothing is counted before requests wait. A client that holds few such responses keeps them, as a download that is
//! slow but read looks the same between two reads.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Weak, atomic::Ordering},
};

use super::{Progress, Sweep, TICKS_A_SECOND};
use crate::upstream::pool::{Node, Shortage};

/// The response is not sent to a client.
pub(super) const NOBODY: u64 = 0;

/// Clients behind a proxy that does not tell them apart.
const SHARED: u64 = u64::MAX;

impl Progress {
    /// Records that the body of the response is sent to a client in this network, or behind a shared address.
    pub(in crate::upstream) fn read_by(&self, network: Option<IpAddr>) {
        let reader = match network {
            Some(IpAddr::V4(four)) => u64::from(four.to_bits()),
            Some(IpAddr::V6(six)) => u64::try_from(six.to_bits() >> 64).unwrap_or(SHARED),
            None => SHARED,
        };
        self.unread.store(true, Ordering::Relaxed);
        self.reader.store(reader.max(NOBODY + 1), Ordering::Relaxed);
    }

    /// Records whether the client has yet to read what the upstream has sent.
    pub(in crate::upstream) fn set_unread(&self, unread: bool) {
        self.unread.store(unread, Ordering::Relaxed);
    }

    /// Who reads the response, if it occupies a connection of `node` and the upstream is not what it waits for.
    fn idle_reader(&self, node: &Arc<Node>) -> Option<u64> {
        let reader = self.reader.load(Ordering::Relaxed);
        let is_in_use = self.limit.load(Ordering::Relaxed) != 0;
        let is_idle = reader != NOBODY && is_in_use && self.unread.load(Ordering::Relaxed);
        let is_of_node = || self.connection.get().is_some_and(|(_, of)| std::ptr::eq(of.as_ptr(), Arc::as_ptr(node)));
        (is_idle && is_of_node()).then_some(reader)
    }
}

impl Sweep {
    /// Ends a response for each request that waits, as long as its client has more of them than its share: first those
    /// of which nothing was read for longest.
    pub(super) fn end_unread(&self, node: &Arc<Node>, shortage: Shortage, now: u32) {
        let mut of_reader = HashMap::<u64, usize>::new();
        let mut unread = Vec::new();
        for exchange in self.watched().exchanges.iter().filter_map(Weak::upgrade) {
            let Some(reader) = exchange.idle_reader(node) else { continue };
            *of_reader.entry(reader).or_default() += 1;
            let ticks = now.wrapping_sub(exchange.last.load(Ordering::Relaxed));
            if u64::from(ticks) > TICKS_A_SECOND {
                unread.push((ticks, reader, exchange));
            }
        }
        unread.sort_by_key(|(ticks, ..)| Reverse(*ticks));
        let mut wanted = shortage.waiting;
        for (_, reader, exchange) in unread {
            let Some(held) = of_reader.get_mut(&reader).filter(|held| **held > shortage.share) else { continue };
            if wanted == 0 {
                return;
            }
            *held -= 1;
            wanted -= 1;
            exchange.expire();
        }
    }
}
