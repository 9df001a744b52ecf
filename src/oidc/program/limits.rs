//! Limits on the programs that wait for a person, and on wrong codes. Each replica counts for itself, and counts
//! survive a reload of the configuration.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use moka::{
    ops::compute::{CompResult, Op},
    sync::Cache,
};

use super::super::flow::LIFETIME;
use crate::{clock::Moment, lock::lock};

/// The minimum time between two polls; a program that polls sooner gets `slow_down`.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// The maximum number of programs that wait at once.
const WAITING: Bounds = Bounds { network: 30, site: 60, total: 1000 };

/// The maximum number of wrong codes within ten minutes.
///
/// There are 20^8 codes, about 2.6 * 10^10, of which at most a thousand are valid. So fifty thousand guesses find one
/// with a probability of 50 000 * 1000 / (2.6 * 10^10), or 0.2 percent, and only while the maximum number of programs
/// wait; with ten it is two in a hundred thousand. An attacker who finds one can decline it, or sign somebody's
/// terminal in as themselves, but gains nobody's access. Using up the total takes 2500 IPv4 addresses, or 500 IPv6
/// networks of 2^80 addresses; browsers with a session may then type as many again, which doubles the probability.
const MISTYPED: Bounds = Bounds { network: 20, site: 100, total: 50_000 };

/// Limits waiting programs and guesses. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Devices(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    waiting: Recent,
    /// The place of each program, by the key of its code.
    places: Cache<[u8; 32], u64>,
    mistyped: Recent,
    /// The time of the last poll, by the key of the code.
    asked: Cache<[u8; 32], Moment>,
}

impl Default for Devices {
    fn default() -> Self {
        let cache = || 4 * WAITING.total as u64;
        Self(Arc::new(Inner {
            waiting: Recent::new(WAITING),
            places: Cache::builder().max_capacity(cache()).time_to_live(LIFETIME).build(),
            mistyped: Recent::new(MISTYPED),
            asked: Cache::builder().max_capacity(cache()).time_to_live(LIFETIME).build(),
        }))
    }
}

impl Devices {
    /// Takes a place for a program that will wait, for as long as it may wait: the store may have written its record
    /// even if the store's answer is lost or nobody waits for it. Without an address, only the total applies.
    pub(in super::super) fn place(&self, address: Option<IpAddr>, now: Moment) -> Result<u64, Full> {
        self.0.waiting.take(address, now, false).map(Taken::keep)
    }

    /// Frees a place whose program was not stored.
    pub(super) fn give_back(&self, place: u64) {
        self.0.waiting.give_back(place);
    }

    /// Assigns the place to the program with this code.
    pub(super) fn settle(&self, code: [u8; 32], place: u64) {
        self.0.places.insert(code, place);
    }

    /// Frees the place of the program with this code, which no longer waits.
    pub(super) fn free(&self, code: &[u8; 32]) {
        if let Some(ticket) = self.0.places.remove(code) {
            self.0.waiting.give_back(ticket);
        }
    }

    /// Takes a guess at a code. A wrong guess keeps it; otherwise it is given back.
    pub(in super::super) fn guess(
        &self,
        address: Option<IpAddr>,
        now: Moment,
        is_known_here: bool,
    ) -> Result<Taken<'_>, Full> {
        self.0.mistyped.take(address, now, is_known_here)
    }

    /// Whether a program polls too soon. A poll that is not too soon is recorded.
    pub(super) fn asks_too_soon(&self, code: [u8; 32], now: Moment) -> bool {
        let noted = self.0.asked.entry(code).and_compute_with(|before| match before {
            Some(before) if now.since(*before.value()) < MIN_INTERVAL => Op::Nop,
            _ => Op::Put(now),
        });
        matches!(noted, CompResult::Unchanged(_))
    }
}

/// Which limit is reached, and for how long at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Full {
    /// The limit of the caller's network or site.
    Network(Duration),
    /// The total.
    Total(Duration),
}

/// Limits per network, per site, and in total.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    network: usize,
    site: usize,
    total: usize,
}

/// Events of the last ten minutes.
#[derive(Debug)]
struct Recent {
    bounds: Bounds,
    within: Mutex<Within>,
}

#[derive(Debug, Default)]
struct Within {
    next: u64,
    /// Tickets are issued in order of time.
    taken: BTreeMap<u64, (Moment, Option<IpAddr>)>,
    of: HashMap<Network, BTreeSet<u64>>,
}

/// A place, which is freed on drop unless it is kept.
#[derive(Debug)]
pub(in super::super) struct Taken<'a> {
    of: &'a Recent,
    ticket: Option<u64>,
}

impl Taken<'_> {
    pub fn keep(mut self) -> u64 {
        self.ticket.take().unwrap_or_default()
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.of.give_back(ticket);
        }
    }
}

impl Recent {
    fn new(bounds: Bounds) -> Self {
        Self { bounds, within: Mutex::default() }
    }

    /// Checks the limits and takes a place in one step, so that no two callers take the last one.
    fn take(&self, address: Option<IpAddr>, now: Moment, is_known_here: bool) -> Result<Taken<'_>, Full> {
        let mut within = self.within();
        while let Some((ticket, _)) = within
            .taken
            .first_key_value()
            .filter(|(_, (at, _))| now.since(*at) >= LIFETIME)
            .map(|(ticket, of)| (*ticket, *of))
        {
            within.remove(ticket);
        }
        let wait = |ticket: Option<&u64>| {
            let at = ticket.and_then(|ticket| within.taken.get(ticket)).map_or(now, |(at, _)| *at);
            now.until(at + LIFETIME)
        };
        let too_many = address.into_iter().flat_map(networks).filter_map(|network| {
            let of = within.of.get(&network)?;
            let bound = if network.1 == SITE { self.bounds.site } else { self.bounds.network };
            (of.len() >= bound).then(|| wait(of.first()))
        });
        if let Some(wait) = too_many.max() {
            return Err(Full::Network(wait));
        }
        let total = if is_known_here { 2 * self.bounds.total } else { self.bounds.total };
        if within.taken.len() >= total {
            return Err(Full::Total(wait(within.taken.keys().next())));
        }
        let ticket = within.next;
        within.next += 1;
        within.taken.insert(ticket, (now, address));
        for network in address.into_iter().flat_map(networks) {
            within.of.entry(network).or_default().insert(ticket);
        }
        drop(within);
        Ok(Taken { of: self, ticket: Some(ticket) })
    }

    fn give_back(&self, ticket: u64) {
        self.within().remove(ticket);
    }

    fn within(&self) -> MutexGuard<'_, Within> {
        lock(&self.within)
    }
}

impl Within {
    fn remove(&mut self, ticket: u64) {
        let Some((_, address)) = self.taken.remove(&ticket) else { return };
        for network in address.into_iter().flat_map(networks) {
            if let Some(of) = self.of.get_mut(&network) {
                of.remove(&ticket);
                if of.is_empty() {
                    self.of.remove(&network);
                }
            }
        }
    }
}

/// The first address of a network, and the length of its prefix.
type Network = (IpAddr, u32);

/// The IPv6 prefix that a provider assigns to one customer (RFC 6177).
const SITE: u32 = 48;

/// The networks of an address: the address itself for IPv4; the /64 and the /48 for IPv6.
fn networks(address: IpAddr) -> impl Iterator<Item = Network> {
    let first = |address: Ipv6Addr, bits: u32| {
        (IpAddr::from(Ipv6Addr::from_bits(address.to_bits() & (!0_u128 << (128 - bits)))), bits)
    };
    let (one, other) = match address.to_canonical() {
        IpAddr::V6(address) => (first(address, 64), Some(first(address, SITE))),
        address @ IpAddr::V4(_) => ((address, 32), None),
    };
    [Some(one), other].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, Timestamp};

    fn clock() -> Clock {
        Clock::manual(Timestamp::from_secs(1_700_000_000))
    }

    fn now() -> Moment {
        clock().moment()
    }

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn a_program_that_polls_too_soon_must_wait() {
        let devices = Devices::default();
        assert!(!devices.asks_too_soon([1; 32], now()));
        assert!(devices.asks_too_soon([1; 32], now() + MIN_INTERVAL / 2));
        assert!(!devices.asks_too_soon([2; 32], now()));
        // An early poll does not restart the interval.
        assert!(!devices.asks_too_soon([1; 32], now() + MIN_INTERVAL));
    }

    /// Programs had to slow down, and networks stayed full, until the clock had caught up.
    #[test]
    fn neither_a_pause_nor_a_limit_is_longer_if_the_clock_is_set_back() {
        let (devices, clock, here) = (Devices::default(), clock(), address("192.0.2.1"));
        assert!(!devices.asks_too_soon([1; 32], clock.moment()));
        while devices.guess(here, clock.moment(), false).map(Taken::keep).is_ok() {}
        clock.set(Timestamp::from_secs(1_600_000_000));
        assert!(devices.asks_too_soon([1; 32], clock.moment()));
        assert_eq!(devices.guess(here, clock.moment(), false).map(Taken::keep), Err(Full::Network(LIFETIME)));
        clock.advance(MIN_INTERVAL);
        assert!(!devices.asks_too_soon([1; 32], clock.moment()));
        clock.advance(LIFETIME - MIN_INTERVAL);
        assert!(devices.guess(here, clock.moment(), false).is_ok());
    }

    #[test]
    fn a_limit_is_for_one_network_for_a_site_and_for_all_and_passes() {
        let recent = Recent::new(Bounds { network: 2, site: 3, total: 5 });
        let take = |text: &str, now| recent.take(address(text), now, false).map(Taken::keep);
        let later = now() + Duration::from_secs(60);
        assert!(take("2001:db8::1", now()).is_ok() && take("2001:db8:0:0:ffff::1", later).is_ok());
        assert_eq!(take("2001:db8::2", later), Err(Full::Network(LIFETIME - Duration::from_secs(60))));
        assert!(take("2001:db8:0:1::1", later).is_ok(), "another network of the site");
        assert!(matches!(take("2001:db8:0:2::1", later), Err(Full::Network(_))), "the site has enough of them");
        assert!(take("192.0.2.1", later).is_ok() && take("::ffff:192.0.2.1", later).is_ok());
        assert!(matches!(take("192.0.2.1", later), Err(Full::Network(_))), "it is the same, however it is written");
        assert_eq!(take("198.51.100.1", later), Err(Full::Total(LIFETIME - Duration::from_secs(60))));
        assert!(
            recent.take(address("198.51.100.1"), later, true).is_ok(),
            "for who is known here the total is not reached"
        );
        // The wait that was returned is exact.
        assert!(take("198.51.100.1", now() + LIFETIME - Duration::from_millis(1)).is_err());
        assert!(take("198.51.100.1", now() + LIFETIME).is_ok());
    }

    /// Behind a trusted proxy that names no client, one client locked out the others.
    #[test]
    fn a_client_without_an_address_counts_towards_the_total_alone() {
        let recent = Recent::new(Bounds { network: 1, site: 1, total: 3 });
        let take = || recent.take(None, now(), false).map(Taken::keep);
        let tickets: Vec<_> = (0..3).map(|_| take().unwrap()).collect();
        assert_eq!(take(), Err(Full::Total(LIFETIME)));
        let take_known = || recent.take(None, now(), true).map(Taken::keep);
        let of_known: Vec<_> = (0..3).map(|_| take_known().unwrap()).collect();
        assert_eq!(take_known(), Err(Full::Total(LIFETIME)), "who is known here finds an end too");
        of_known.into_iter().for_each(|ticket| recent.give_back(ticket));
        recent.give_back(tickets[1]);
        assert!(recent.take(address("192.0.2.1"), now(), false).is_ok());
    }

    #[test]
    fn a_slot_that_is_no_longer_needed_becomes_free() {
        let devices = Devices::default();
        let here = address("192.0.2.1");
        for number in 0..WAITING.network {
            devices.settle([u8::try_from(number).unwrap(); 32], devices.place(here, now()).unwrap());
        }
        assert!(devices.place(here, now()).is_err());
        devices.free(&[0; 32]);
        // Freeing a code twice frees one place.
        devices.free(&[0; 32]);
        devices.settle([200; 32], devices.place(here, now()).unwrap());
        assert!(devices.place(here, now()).is_err());
    }

    #[test]
    fn fifty_networks_of_one_site_lock_nobody_else_out() {
        let devices = Devices::default();
        for network in 0..50_u16 {
            let address = Some(IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, network, 0, 0, 0, 1)));
            while devices.guess(address, now(), false).map(Taken::keep).is_ok() {}
        }
        assert_eq!(devices.0.mistyped.within().taken.len(), MISTYPED.site, "a site is one party");
        assert!(devices.guess(address("192.0.2.1"), now(), false).is_ok());
    }

    #[test]
    fn simultaneous_guesses_do_not_exceed_the_limit() {
        let devices = Devices::default();
        let through = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while devices.guess(address("192.0.2.1"), now(), false).map(Taken::keep).is_ok() {
                        through.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(through.into_inner(), MISTYPED.network);
    }
}
