//! The open connections of one worker.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::{
    Protocol,
    admission::Admitted,
    drain::{Drain, Phase as DrainPhase},
    liveness::{Command, Liveness, Sweep},
    metrics::{Metrics, Refused},
};
use crate::{config::raw::Limits, lock::lock, memory::Level};

/// The open connections of one worker. The lock is taken when a connection opens or closes, and by the sweep, all on
/// the same thread unless an upgraded stream ends elsewhere.
#[derive(Debug)]
pub(super) struct Registry {
    connections: Mutex<HashMap<u64, Entry>>,
    drain: Drain,
    metrics: Metrics,
}

#[derive(Debug)]
struct Entry {
    liveness: Arc<Liveness>,
    limits: Arc<Limits>,
    protocol: Protocol,
}

/// Counts one connection until dropped.
#[derive(Debug)]
pub(super) struct Registered {
    registry: Arc<Registry>,
    id: u64,
    admitted: Admitted,
}

impl Registry {
    pub(super) fn new(drain: Drain, metrics: Metrics) -> Self {
        Self { connections: Mutex::default(), drain, metrics }
    }

    pub(super) fn register(
        self: &Arc<Self>,
        id: u64,
        liveness: Arc<Liveness>,
        limits: Arc<Limits>,
        admitted: Admitted,
    ) -> Registered {
        self.lock().insert(id, Entry { liveness, limits, protocol: Protocol::Http1 });
        self.drain.opened();
        self.metrics.active.inc();
        Registered { registry: Arc::clone(self), id, admitted }
    }

    /// Visits all connections and closes those that are beyond a limit.
    pub(super) fn sweep(&self, step: Duration, memory: Level) {
        let sweep = Sweep { step, hurried: memory >= Level::CloseIdle };
        for entry in self.lock().values() {
            if let Some(why) = entry.liveness.sweep(sweep, &entry.limits, entry.protocol) {
                self.metrics.expired(why);
            }
        }
    }

    /// Tells all connections the phase of the shutdown.
    ///
    /// An HTTP/1.1 connection continues while a request is in progress or arriving, as closing it then would lose the
    /// request. It ends with the `Connection: close` of the response or, if the head of that was already sent, as soon
    /// as it is idle.
    pub(super) fn announce(&self, phase: DrainPhase) {
        for entry in self.lock().values() {
            match phase {
                DrainPhase::Open => {}
                DrainPhase::Announced if entry.protocol == Protocol::Http1 => {}
                DrainPhase::Announced | DrainPhase::Closing => entry.liveness.command(Command::Finish),
                DrainPhase::Cut => entry.liveness.end_drain(),
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Entry>> {
        lock(&self.connections)
    }
}

impl Registered {
    /// Counts the connection for its address, unless the address may have no more.
    pub(super) fn count_for(&mut self, listener: &Arc<str>, address: IpAddr, limits: &Limits) -> Result<(), Refused> {
        self.admitted.count_for(listener, address, limits, Instant::now())
    }

    /// Counts that the connection is closed for the memory that it takes.
    pub(super) fn lacks_memory(&self) {
        self.registry.metrics.refused(Refused::Memory);
    }

    pub(super) fn speaks_http2(&self) {
        if let Some(entry) = self.registry.lock().get_mut(&self.id) {
            entry.protocol = Protocol::Http2;
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let entry = self.registry.lock().remove(&self.id);
        if let Some(entry) = entry.filter(|entry| entry.liveness.is_flooded()) {
            let pause = entry.limits.flood_pause;
            if let Some(address) = self.admitted.blame(&entry.limits, Instant::now()) {
                tracing::warn!(
                    %address, %pause,
                    "an address is turned away for a while, as its connections flooded Doorward (see `limits.floods_per_address`); \
                     if it is your proxy's, list it in `trusted_proxies`"
                );
            }
        }
        self.registry.metrics.active.dec();
        self.registry.drain.closed();
    }
}
