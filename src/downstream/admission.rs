//! How many connections there may be, in all and from one address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

/// Counts the connections of all workers.
#[derive(Debug, Default)]
pub(super) struct Admission {
    total: AtomicU32,
    by_address: Mutex<HashMap<IpAddr, u32>>,
}

/// One counted connection; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Arc<Admission>,
    address: Option<IpAddr>,
}

impl Admission {
    /// Counts one more connection, unless there are `limit` already.
    pub(super) fn admit(self: &Arc<Self>, limit: u32) -> Option<Permit> {
        self.total
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |total| (total < limit).then_some(total + 1))
            .ok()
            .map(|_| Permit { admission: Arc::clone(self), address: None })
    }
}

impl Permit {
    /// Counts the connection for its address too, unless that has `limit` already.
    pub(super) fn count_for(&mut self, address: IpAddr, limit: u32) -> bool {
        let address = group(address);
        let mut counts = self.admission.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_insert(0);
        if *count >= limit {
            return false;
        }
        *count += 1;
        drop(counts);
        self.address = Some(address);
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.total.fetch_sub(1, Ordering::Relaxed);
        let Some(address) = self.address else { return };
        let mut counts = self.admission.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&address);
            }
        }
    }
}

/// Whose an address is: one host has a whole /64 of IPv6 (RFC 4291 section 2.5.1) to choose from.
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX))),
        four => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_hold_and_are_given_back() {
        let admission = Arc::new(Admission::default());
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let mut first = admission.admit(2).unwrap();
        assert!(first.count_for(address, 1));
        let mut second = admission.admit(2).unwrap();
        assert!(!second.count_for(address, 1));
        assert!(admission.admit(2).is_none());
        drop(first);
        assert!(second.count_for(address, 1));
        assert!(admission.admit(2).is_some());
        drop(second);
        assert!(admission.by_address.lock().unwrap().is_empty());
    }

    #[test]
    fn addresses_of_one_host_count_together() {
        let same = |a: &str, b: &str| group(a.parse().unwrap()) == group(b.parse().unwrap());
        assert!(same("2001:db8::1", "2001:db8::ffff:2"));
        assert!(!same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1"));
        assert!(!same("192.0.2.1", "192.0.2.2"));
    }
}
