//! Limits on connections, in total and per address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use super::metrics::Refused;
use crate::{config::raw::Limits, lock::lock};

/// How many addresses are remembered for their floods.
const MAX_BLAMED: usize = 4096;

/// Counts the connections of all workers.
#[derive(Debug, Default)]
pub(super) struct Admission {
    total: AtomicU32,
    /// Per listener and address, as each listener has a limit of its own.
    by_address: Mutex<HashMap<(Arc<str>, IpAddr), u32>>,
    floods: Mutex<HashMap<IpAddr, Floods>>,
}

/// The floods of an address, and until when they are remembered.
#[derive(Debug)]
struct Floods {
    count: u32,
    until: Instant,
}

/// One counted connection; no longer counted when dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    admission: Arc<Admission>,
    counted: Option<(Arc<str>, IpAddr)>,
}

impl Admission {
    /// Counts one more connection, unless there are already `limit`.
    pub(super) fn admit(self: &Arc<Self>, limit: u32) -> Option<Admitted> {
        self.total
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |total| (total < limit).then_some(total + 1))
            .ok()
            .map(|_| Admitted { admission: Arc::clone(self), counted: None })
    }

    fn is_blamed(&self, address: IpAddr, most: u32, now: Instant) -> bool {
        let floods = lock(&self.floods);
        floods.get(&address).is_some_and(|floods| floods.count >= most && floods.until > now)
    }

    /// Returns how many floods of the address are remembered now.
    fn blame(&self, address: IpAddr, pause: Duration, now: Instant) -> u32 {
        let mut floods = lock(&self.floods);
        if floods.len() >= MAX_BLAMED {
            floods.retain(|_, floods| floods.until > now);
        }
        if floods.len() >= MAX_BLAMED && !floods.contains_key(&address) {
            return 0;
        }
        let found = floods.entry(address).or_insert(Floods { count: 0, until: now });
        found.count = if found.until > now { found.count + 1 } else { 1 };
        found.until = now + pause;
        found.count
    }
}

impl Admitted {
    /// Counts the connection for its listener and address as well, unless the address has as many as it may, or has
    /// flooded Doorward recently.
    pub(super) fn count_for(
        &mut self,
        listener: &Arc<str>,
        address: IpAddr,
        limits: &Limits,
        now: Instant,
    ) -> Result<(), Refused> {
        let address = client_network(address);
        if self.admission.is_blamed(address, limits.floods_per_address, now) {
            return Err(Refused::Flood);
        }
        let counted = (Arc::clone(listener), address);
        let mut counts = lock(&self.admission.by_address);
        let count = counts.entry(counted.clone()).or_insert(0);
        if *count >= limits.connections_per_address {
            return Err(Refused::Address);
        }
        *count += 1;
        drop(counts);
        self.counted = Some(counted);
        Ok(())
    }

    /// Remembers that the connection flooded Doorward with resets. A connection that speaks for many has no address to
    /// blame. Returns the address if it is turned away from now on.
    pub(super) fn blame(&self, limits: &Limits, now: Instant) -> Option<IpAddr> {
        let (_, address) = self.counted.as_ref()?;
        let floods = self.admission.blame(*address, limits.flood_pause.get(), now);
        (floods == limits.floods_per_address).then_some(*address)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.total.fetch_sub(1, Ordering::Relaxed);
        let Some(counted) = self.counted.take() else { return };
        let mut counts = lock(&self.admission.by_address);
        if let Some(count) = counts.get_mut(&counted) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&counted);
            }
        }
    }
}

/// The network by which a client is counted: the address itself for IPv4, the /64 for IPv6, of which one host has all
/// (RFC 4291 section 2.5.1).
pub(crate) fn client_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX))),
        four => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::Span;

    #[test]
    fn both_limits_hold_and_are_given_back() {
        let admission = Arc::new(Admission::default());
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let (main, other): (Arc<str>, Arc<str>) = ("main".into(), "other".into());
        let now = Instant::now();
        let one = Limits { connections_per_address: 1, ..Limits::default() };
        let mut first = admission.admit(2).unwrap();
        assert_eq!(first.count_for(&main, address, &one, now), Ok(()));
        let mut second = admission.admit(2).unwrap();
        assert_eq!(second.count_for(&main, address, &one, now), Err(Refused::Address));
        assert!(admission.admit(2).is_none());
        drop(first);
        assert_eq!(second.count_for(&main, address, &one, now), Ok(()));
        assert!(admission.admit(2).is_some());
        drop(second);
        let [mut here, mut there] = [admission.admit(2).unwrap(), admission.admit(2).unwrap()];
        assert_eq!(here.count_for(&main, address, &one, now), Ok(()));
        assert_eq!(there.count_for(&other, address, &one, now), Ok(()), "another listener has its own count");
        drop((here, there));
        assert!(admission.by_address.lock().unwrap().is_empty());
    }

    #[test]
    fn an_address_that_floods_again_and_again_is_turned_away_for_a_while() {
        let admission = Arc::new(Admission::default());
        let [bad, good]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse().unwrap());
        let now = Instant::now();
        let (pause, most) = (Duration::from_secs(7), 5);
        let limits = Limits { floods_per_address: most, flood_pause: Span::from_secs(7), ..Limits::default() };
        let main: Arc<str> = "main".into();
        let admit = |address, now| {
            let mut admitted = admission.admit(10).unwrap();
            admitted.count_for(&main, address, &limits, now).map(|()| admitted)
        };
        for flood in 1..=most {
            let turned_away = admit(bad, now).unwrap_or_else(|_| panic!("flood {flood}")).blame(&limits, now);
            assert_eq!(turned_away, (flood == most).then_some(bad), "it is told once, at the last: flood {flood}");
        }
        assert_eq!(admit(bad, now).unwrap_err(), Refused::Flood);
        assert!(admit(good, now).is_ok());
        assert_eq!(admit(bad, now + pause - Duration::from_secs(1)).unwrap_err(), Refused::Flood);
        assert!(admit(bad, now + pause).is_ok());
        // Floods that are far apart do not add up.
        for flood in 1..10 {
            admit(bad, now + pause * (2 * flood)).unwrap().blame(&limits, now + pause * (2 * flood));
        }
        // Nor can made-up addresses exhaust memory.
        for number in 0..2 * MAX_BLAMED {
            let address = IpAddr::from(u32::try_from(number).unwrap().to_be_bytes());
            admission.blame(address, pause, now);
        }
        assert!(admission.floods.lock().unwrap().len() <= MAX_BLAMED);
    }

    #[test]
    fn addresses_of_one_host_count_together() {
        let same = |a: &str, b: &str| client_network(a.parse().unwrap()) == client_network(b.parse().unwrap());
        assert!(same("2001:db8::1", "2001:db8::ffff:2"));
        assert!(!same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1"));
        assert!(!same("192.0.2.1", "192.0.2.2"));
    }
}
