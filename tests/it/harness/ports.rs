//! Ports for servers that must know theirs before they listen.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
};

/// Below the ephemeral ports, which the system could give to a connection between the choice of a port and its use.
/// Browsers refuse 10080.
const FIRST: u16 = 11_000;
const LAST: u16 = 32_000;

/// The number of ports for the tests of one process.
const EACH: u16 = 500;

/// The loopback addresses of this machine, which may have no IPv6.
pub fn loopbacks() -> Vec<&'static str> {
    ["127.0.0.1", "::1"].into_iter().filter(|loopback| TcpListener::bind((*loopback, 0)).is_ok()).collect()
}

/// A port on which nothing listens at any loopback address, and that no other test of this process gets.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let blocks = u32::from((LAST - FIRST) / EACH);
    let block = u16::try_from(std::process::id() % blocks).unwrap() * EACH;
    let loopbacks = loopbacks();
    loop {
        let port = FIRST + block + NEXT.fetch_add(1, Ordering::Relaxed) % EACH;
        if loopbacks.iter().all(|loopback| TcpListener::bind((*loopback, port)).is_ok()) {
            return port;
        }
    }
}
