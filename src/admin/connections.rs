//! Limits on the connections of the admin listener, in total and per address.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};

use crate::{downstream::client_network, lock::lock};

/// Concurrent connections. The clients are few: kubelet, Prometheus, an operator.
pub(super) const MAX_CONNECTIONS: usize = 64;
/// Concurrent connections from one address, so that no client can keep kubelet from checking liveness.
const MAX_PER_ADDRESS: usize = 16;

/// The number of open connections, by address.
#[derive(Debug, Default)]
pub(super) struct Open(Mutex<HashMap<IpAddr, usize>>);

/// A counted connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    open: Arc<Open>,
    address: IpAddr,
}

impl Open {
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Counted> {
        let address = client_network(address);
        let mut counts = lock(&self.0);
        if counts.values().sum::<usize>() >= MAX_CONNECTIONS {
            return None;
        }
        let count = counts.entry(address).or_insert(0);
        if *count >= MAX_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Counted { open: Arc::clone(self), address })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = lock(&self.open.0);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counted_connection_is_released() {
        let open = Arc::<Open>::default();
        let from = |number: u8| open.admit(IpAddr::from([192, 0, 2, number]));
        let mut held: Vec<Counted> = (0..MAX_PER_ADDRESS).map(|_| from(1).unwrap()).collect();
        assert!(from(1).is_none());
        held.pop();
        held.push(from(1).unwrap());
        held.extend((0..).map_while(|other: usize| from(u8::try_from(2 + other / MAX_PER_ADDRESS).unwrap())));
        assert_eq!(held.len(), MAX_CONNECTIONS);
        assert!(from(200).is_none(), "nobody is left room for");
        drop(held);
        assert!(open.0.lock().unwrap().is_empty());
    }
}
