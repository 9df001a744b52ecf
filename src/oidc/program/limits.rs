//! How many programs may wait for a person, and how many codes may be typed in vain. All of it is counted by each replica
//! for itself, and outlives a generation of the configuration.

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

/// Sooner than that a program is told to slow down.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Programs that may wait at once.
const WAITING: Bounds = Bounds { network: 30, site: 60, house: 1000 };

/// Codes that may be typed within ten minutes which nobody waits for.
///
/// There are 20^8 codes, about 2.6 * 10^10, of which a thousand at most are good. So fifty thousand guesses find one with a
/// chance of 50 000 * 1000 / (2.6 * 10^10), or 0.2 percent, and only while as many programs wait as may; with ten that wait
/// it is two in a hundred thousand. Whoever finds one may decline it, or sign somebody's terminal in as themselves, and gets
/// nothing of anybody. To shut this door on others takes 2500 addresses of version 4, or 500 networks of 2^80 of version 6;
/// and browsers with a session may then type as many again, which doubles the chance.
const MISTYPED: Bounds = Bounds { network: 20, site: 100, house: 50_000 };

/// What keeps waiting programs few, and guesses. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Devices(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    waiting: Recent,
    /// Whose place is whose, by the key of the code.
    places: Cache<[u8; 32], u64>,
    mistyped: Recent,
    /// When a program asked last, by the key of its code.
    asked: Cache<[u8; 32], Moment>,
}

impl Default for Devices {
    fn default() -> Self {
        let cache = || 4 * WAITING.house as u64;
        Self(Arc::new(Inner {
            waiting: Recent::new(WAITING),
            places: Cache::builder().max_capacity(cache()).time_to_live(LIFETIME).build(),
            mistyped: Recent::new(MISTYPED),
            asked: Cache::builder().max_capacity(cache()).time_to_live(LIFETIME).build(),
        }))
    }
}

impl Devices {
    /// A place for a program that will wait, taken for as long as it may: what the store was asked to keep for it may be kept though
    /// its answer does not come, or nobody waits for that. Of whom nobody knows the address counts for the house alone.
    pub(in super::super) fn place(&self, address: Option<IpAddr>, now: Moment) -> Result<u64, Full> {
        self.0.waiting.take(address, now, false).map(Taken::keep)
    }

    /// Nothing is kept for the program that was to wait in that place, so another may.
    pub(super) fn give_back(&self, place: u64) {
        self.0.waiting.give_back(place);
    }

    /// The program with this code waits in that place from now on.
    pub(super) fn settle(&self, code: [u8; 32], place: u64) {
        self.0.places.insert(code, place);
    }

    /// The program with this code waits no more, so another may.
    pub(super) fn free(&self, code: &[u8; 32]) {
        if let Some(ticket) = self.0.places.remove(code) {
            self.0.waiting.give_back(ticket);
        }
    }

    /// Leave to type a code. It is kept by one that nobody waits for.
    pub(in super::super) fn guess(
        &self,
        address: Option<IpAddr>,
        now: Moment,
        is_known_here: bool,
    ) -> Result<Taken<'_>, Full> {
        self.0.mistyped.take(address, now, is_known_here)
    }

    /// Whether a program that asks now is to wait; one that is not told so is noted.
    pub(super) fn asks_too_soon(&self, code: [u8; 32], now: Moment) -> bool {
        let noted = self.0.asked.entry(code).and_compute_with(|before| match before {
            Some(before) if now.since(*before.value()) < MIN_INTERVAL => Op::Nop,
            _ => Op::Put(now),
        });
        matches!(noted, CompResult::Unchanged(_))
    }
}

/// Why there is no room, and for how long at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Full {
    /// For whoever asks.
    Network(Duration),
    /// For all.
    House(Duration),
}

/// How much there may be of one network, of one site, and in all.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    network: usize,
    site: usize,
    house: usize,
}

/// What happened within the last ten minutes.
#[derive(Debug)]
struct Recent {
    bounds: Bounds,
    within: Mutex<Within>,
}

#[derive(Debug, Default)]
struct Within {
    next: u64,
    /// Tickets are given in the order of time.
    taken: BTreeMap<u64, (Moment, Option<IpAddr>)>,
    of: HashMap<Network, BTreeSet<u64>>,
}

/// A place, which is free again unless it is kept.
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

    /// Looked at and noted in one step, so that no two take the last place.
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
        let house = if is_known_here { 2 * self.bounds.house } else { self.bounds.house };
        if within.taken.len() >= house {
            return Err(Full::House(wait(within.taken.keys().next())));
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

/// Its first address, and how many bits of it count.
type Network = (IpAddr, u32);

/// What a provider gives to one customer, who has many networks of version 6 (RFC 6177).
const SITE: u32 = 48;

/// What one party has of addresses: one of version 4; 2^64 of version 6, or all of a site.
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
    fn a_program_that_asks_too_soon_is_to_wait() {
        let devices = Devices::default();
        assert!(!devices.asks_too_soon([1; 32], now()));
        assert!(devices.asks_too_soon([1; 32], now() + MIN_INTERVAL / 2));
        assert!(!devices.asks_too_soon([2; 32], now()));
        // It need not be silent to be heard again.
        assert!(!devices.asks_too_soon([1; 32], now() + MIN_INTERVAL));
    }

    /// Programs were told to slow down, and networks were full, until the clock had caught up.
    #[test]
    fn neither_a_pause_nor_a_limit_is_longer_where_the_clock_is_set_back() {
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
        let recent = Recent::new(Bounds { network: 2, site: 3, house: 5 });
        let take = |text: &str, now| recent.take(address(text), now, false).map(Taken::keep);
        let later = now() + Duration::from_secs(60);
        assert!(take("2001:db8::1", now()).is_ok() && take("2001:db8:0:0:ffff::1", later).is_ok());
        assert_eq!(take("2001:db8::2", later), Err(Full::Network(LIFETIME - Duration::from_secs(60))));
        assert!(take("2001:db8:0:1::1", later).is_ok(), "another network of the site");
        assert!(matches!(take("2001:db8:0:2::1", later), Err(Full::Network(_))), "the site has enough of them");
        assert!(take("192.0.2.1", later).is_ok() && take("::ffff:192.0.2.1", later).is_ok());
        assert!(matches!(take("192.0.2.1", later), Err(Full::Network(_))), "it is the same, however it is written");
        assert_eq!(take("198.51.100.1", later), Err(Full::House(LIFETIME - Duration::from_secs(60))));
        assert!(
            recent.take(address("198.51.100.1"), later, true).is_ok(),
            "for who is known here the house is not full"
        );
        // The wait that was told is the wait that it takes.
        assert!(take("198.51.100.1", now() + LIFETIME - Duration::from_millis(1)).is_err());
        assert!(take("198.51.100.1", now() + LIFETIME).is_ok());
    }

    /// A trusted proxy that does not name its clients: one of them shut the others out.
    #[test]
    fn whose_network_nobody_knows_counts_for_the_house_alone() {
        let recent = Recent::new(Bounds { network: 1, site: 1, house: 3 });
        let take = || recent.take(None, now(), false).map(Taken::keep);
        let tickets: Vec<_> = (0..3).map(|_| take().unwrap()).collect();
        assert_eq!(take(), Err(Full::House(LIFETIME)));
        let take_known = || recent.take(None, now(), true).map(Taken::keep);
        let of_known: Vec<_> = (0..3).map(|_| take_known().unwrap()).collect();
        assert_eq!(take_known(), Err(Full::House(LIFETIME)), "who is known here finds an end too");
        of_known.into_iter().for_each(|ticket| recent.give_back(ticket));
        recent.give_back(tickets[1]);
        assert!(recent.take(address("192.0.2.1"), now(), false).is_ok());
    }

    #[test]
    fn a_place_that_is_not_needed_any_more_is_free() {
        let devices = Devices::default();
        let here = address("192.0.2.1");
        for number in 0..WAITING.network {
            devices.settle([u8::try_from(number).unwrap(); 32], devices.place(here, now()).unwrap());
        }
        assert!(devices.place(here, now()).is_err());
        devices.free(&[0; 32]);
        // A code that is done with twice frees one place.
        devices.free(&[0; 32]);
        devices.settle([200; 32], devices.place(here, now()).unwrap());
        assert!(devices.place(here, now()).is_err());
    }

    #[test]
    fn nobody_closes_the_door_to_others_from_fifty_networks() {
        let devices = Devices::default();
        for network in 0..50_u16 {
            let address = Some(IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, network, 0, 0, 0, 1)));
            while devices.guess(address, now(), false).map(Taken::keep).is_ok() {}
        }
        assert_eq!(devices.0.mistyped.within().taken.len(), MISTYPED.site, "a site is one party");
        assert!(devices.guess(address("192.0.2.1"), now(), false).is_ok());
    }

    #[test]
    fn of_many_who_guess_at_once_no_more_get_through() {
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
