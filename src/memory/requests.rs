//! The memory that clients take with requests, until these are over, and with request heads and TLS handshakes that are
//! still arriving: whatever anybody can send without a credential, except bodies that are read whole, which have a
//! [budget](crate::upstream::buffered::ByteBudget) of their own.
//!
//! A client may have as much as it leaves free. One alone thus gets half of all, and however many take what they can
//! get, the next one finds as much free as each of them has. The sums are estimates, so the memory of the process is
//! measured as well once they are large. No lock is taken while requests flow, only when a connection begins or ends.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use super::Headroom;
use crate::lock::lock;

/// How much may be taken until the memory of the process is measured again.
const MEASURED_EVERY: usize = 1 << 20;

/// The part of it, as a divisor, that may be taken without measuring the memory of the process.
const UNMEASURED: usize = 4;

/// What memory is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// A request that is to be served.
    Request,
    /// What has begun, or the answer to a request that is not served. A client that may take no more for requests may
    /// still take some for this, as it costs the client a connection if there is none.
    Begun,
}

impl Taking {
    /// How many times what is free a client may have.
    const fn times(self) -> usize {
        match self {
            Self::Request => 1,
            Self::Begun => 2,
        }
    }
}

/// The memory for requests of the whole process, by default without a limit. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct RequestMemory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: AtomicUsize,
    taken: AtomicUsize,
    /// What was taken since the memory of the process was measured.
    unmeasured: AtomicUsize,
    headroom: Headroom,
    /// Those that have a connection.
    clients: Mutex<HashMap<IpAddr, Weak<Client>>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            limit: AtomicUsize::new(usize::MAX),
            taken: AtomicUsize::default(),
            unmeasured: AtomicUsize::default(),
            headroom: Headroom::default(),
            clients: Mutex::default(),
        }
    }
}

impl RequestMemory {
    /// Also refuses while the process has no headroom.
    pub(super) fn measured_by(headroom: Headroom) -> Self {
        Self(Arc::new(Shared { headroom, ..Shared::default() }))
    }

    /// Sets another limit in bytes, which applies from the next request on.
    pub fn set_limit(&self, bytes: usize) {
        self.0.limit.store(bytes, Relaxed);
    }

    /// Bytes in use.
    #[cfg(test)]
    pub fn taken(&self) -> usize {
        self.0.taken.load(Relaxed)
    }

    /// The client of a connection, by the network by which it is counted; `None` for a peer that carries the requests
    /// of many clients, to which only the limit for all applies.
    pub fn client(&self, network: Option<IpAddr>) -> Arc<Client> {
        let new = || Arc::new(Client { shared: Arc::clone(&self.0), network, taken: AtomicUsize::default() });
        let Some(address) = network else { return new() };
        let mut clients = lock(&self.0.clients);
        if let Some(client) = clients.get(&address).and_then(Weak::upgrade) {
            return client;
        }
        let client = new();
        clients.insert(address, Arc::downgrade(&client));
        client
    }
}

impl Shared {
    /// Whether the process has the memory for `more` bytes.
    fn is_affordable(&self, more: usize) -> bool {
        let unmeasured = self.unmeasured.load(Relaxed).saturating_add(more);
        let is_due = unmeasured >= MEASURED_EVERY;
        if is_due && !self.headroom.fits(unmeasured) {
            return false;
        }
        self.unmeasured.store(if is_due { 0 } else { unmeasured }, Relaxed);
        true
    }
}

/// What one client takes, with all its connections.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    network: Option<IpAddr>,
    taken: AtomicUsize,
}

impl Client {
    /// Takes `more` bytes; false if there is no room for them.
    fn take(&self, more: usize, taking: Taking) -> bool {
        let limit = self.shared.limit.load(Relaxed);
        // Added first: between a look and an addition, other threads could take the same room.
        let of_all = self.shared.taken.fetch_add(more, Relaxed).saturating_add(more);
        let own = self.taken.fetch_add(more, Relaxed).saturating_add(more);
        let leaves_enough =
            self.network.is_none() || own <= limit.saturating_sub(of_all).saturating_mul(taking.times());
        let has_room =
            of_all <= limit && leaves_enough && (of_all < limit / UNMEASURED || self.shared.is_affordable(more));
        if !has_room {
            self.give_back(more);
        }
        has_room
    }

    fn give_back(&self, bytes: usize) {
        self.shared.taken.fetch_sub(bytes, Relaxed);
        self.taken.fetch_sub(bytes, Relaxed);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let Some(address) = self.network else { return };
        let mut clients = lock(&self.shared.clients);
        // A connection that began in this moment has another one there already.
        if clients.get(&address).is_some_and(|client| client.strong_count() == 0) {
            clients.remove(&address);
        }
    }
}

/// Memory that a client takes, given back when dropped.
#[derive(Debug)]
pub struct Taken {
    client: Arc<Client>,
    bytes: usize,
}

impl Taken {
    /// Takes nothing yet.
    pub fn by(client: &Arc<Client>) -> Self {
        Self { client: Arc::clone(client), bytes: 0 }
    }

    /// Grows it to `bytes`; false if there is no room.
    #[must_use]
    pub fn grow_to(&mut self, bytes: usize, taking: Taking) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let has_room = more == 0 || self.client.take(more, taking);
        if has_room {
            self.bytes += more;
        }
        has_room
    }

    /// Gives back what exceeds `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        if less > 0 {
            self.client.give_back(less);
            self.bytes -= less;
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::health::{Gate, Health},
        clock::Clock,
        config::{raw::Limits, values::Size},
        memory::Memory,
    };

    fn limited(bytes: usize) -> RequestMemory {
        let memory = RequestMemory::default();
        memory.set_limit(bytes);
        memory
    }

    fn at(last: u8) -> Option<IpAddr> {
        Some([192, 0, 2, last].into())
    }

    /// Takes all that a client gets for requests of ten bytes.
    fn fill(client: &Arc<Client>, taking: Taking) -> Vec<Taken> {
        let one = || {
            let mut taken = Taken::by(client);
            taken.grow_to(10, taking).then_some(taken)
        };
        std::iter::from_fn(one).collect()
    }

    /// One address alone had the process killed, with the heads of requests that waited for their bodies.
    #[test]
    fn one_client_takes_half_with_all_its_connections_and_leaves_the_rest_to_others() {
        let memory = limited(1000);
        let (one, same) = (memory.client(at(1)), memory.client(at(1)));
        let filled = fill(&one, Taking::Request);
        assert_eq!((filled.len(), memory.taken()), (50, 500));
        assert!(fill(&same, Taking::Request).is_empty());
        assert_eq!(fill(&memory.client(at(2)), Taking::Request).len(), 25);
        drop(filled);
        assert_eq!(memory.taken(), 0);
        assert_eq!(fill(&same, Taking::Request).len(), 50);
        drop((one, same));
        assert!(lock(&memory.0.clients).is_empty());
    }

    #[test]
    fn many_clients_that_take_all_they_can_get_leave_room_for_the_next() {
        for taking in [Taking::Request, Taking::Begun] {
            let memory = limited(100_000);
            let clients: Vec<_> = (0..50).map(|last| memory.client(at(last))).collect();
            // In turns, so that each has the same part in the end.
            let mut filled = Vec::new();
            loop {
                let before = filled.len();
                for client in &clients {
                    let mut taken = Taken::by(client);
                    if taken.grow_to(10, taking) {
                        filled.push(taken);
                    }
                }
                if filled.len() == before {
                    break;
                }
            }
            assert!(memory.taken() < 100_000, "{taking:?}");
            assert!(Taken::by(&memory.client(at(99))).grow_to(400, Taking::Request), "{taking:?}");
        }
    }

    #[test]
    fn what_has_begun_may_still_grow_when_the_client_gets_no_further_request() {
        let memory = limited(900);
        let client = memory.client(at(1));
        let requests = fill(&client, Taking::Request);
        let begun = fill(&client, Taking::Begun);
        assert_eq!((requests.len(), begun.len()), (45, 15));
    }

    #[test]
    fn a_proxy_that_carries_the_requests_of_many_may_take_all_there_is_and_no_more() {
        let memory = limited(1000);
        assert_eq!(fill(&memory.client(None), Taking::Request).len(), 100);
        assert_eq!(memory.taken(), 0);
    }

    #[test]
    fn a_growth_that_is_refused_leaves_what_was_taken_before() {
        let memory = limited(1000);
        let mut taken = Taken::by(&memory.client(at(1)));
        assert!(taken.grow_to(400, Taking::Request) && !taken.grow_to(600, Taking::Request));
        assert_eq!(memory.taken(), 400);
        taken.shrink_to(100);
        assert!(taken.grow_to(500, Taking::Request));
        assert_eq!(memory.taken(), 500);
    }

    /// The sums are estimates, and other things take memory too.
    #[test]
    fn requests_are_refused_as_soon_as_the_process_is_short_of_memory() {
        let component = Health::new(Clock::default()).component("memory", Gate::Readiness);
        let memory = Memory::default();
        let requests = memory.requests().clone();
        let limits = |memory| Limits { memory: Some(memory), ..Limits::default() };
        let client = requests.client(None);
        memory.look(&limits(Size::kib(1)), &component);
        requests.set_limit(16 * MEASURED_EVERY);
        let mut few = Taken::by(&client);
        assert!(few.grow_to(3 * MEASURED_EVERY, Taking::Request), "below what is measured");
        let mut more = Taken::by(&client);
        assert!(!more.grow_to(2 * MEASURED_EVERY, Taking::Request));
        memory.look(&limits(Size(1 << 50)), &component);
        assert!(more.grow_to(2 * MEASURED_EVERY, Taking::Request));
    }
}
