//! Idle connections to upstreams. Each worker has its own pools, so that taking and returning a connection never waits
//! for another worker.
//!
//! A connection returns to the pool only when its response has ended and its request was handed over completely.
//! Otherwise (a response before the end of the request, a dropped body, bytes after the end of a response) it is
//! closed, so that nothing of one exchange can appear in the next.

mod connection;
mod lease;
mod queue;
mod read_on;

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::time::Instant;

pub(super) use self::lease::{Http1Lease, Http2Lease, Lease};
use self::{
    connection::{Http1, Http2},
    queue::{Queues, Ticket, Waiting},
};
use super::{
    Lane, Pings,
    connect::is_http2,
    error::{UpstreamError, UpstreamErrorKind},
    metrics::Counters,
    progress::{Sweep, Ticks},
    settings::{Protocol, Upstream},
};
use crate::lock::lock;

/// Which connection an exchange uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pick {
    /// An idle one, if there is one.
    Pooled,
    /// A new one, as the peer may have closed all idle ones; or a stream of a shared one.
    Fresh,
}

/// A lack of connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shortage {
    /// How many requests wait.
    pub(super) waiting: usize,
    /// How many connections a client may keep occupied meanwhile without reading.
    pub(super) share: usize,
}

/// The connections of one worker to one upstream.
#[derive(Debug)]
pub(super) struct Node {
    state: Mutex<State>,
    pub(super) counters: Counters,
    pub(super) sweep: Arc<Sweep>,
    pings: Pings,
}

#[derive(Debug, Default)]
struct State {
    /// The most recently used one is taken first, so that unneeded ones age out.
    idle: Vec<Http1>,
    shared: Vec<Arc<Http2>>,
    open: u32,
    /// How many connections may be open, according to the configuration of the last request that had to wait. It is one
    /// number for all: with a limit each, a request without room under its own limit would block all those behind it.
    max_connections: u32,
    /// How many of the open connections belong to long-lived exchanges.
    long: u32,
    waiting: Queues,
    /// A connection that can be shared is being opened, so that a burst opens one and not many.
    opening: bool,
    /// The upstream was removed or changed: no connection is stored any more.
    drained: bool,
    /// TLS negotiated HTTP/1.1 last time.
    negotiated_http1: bool,
    /// This and `max_age` are from the configuration of the last request.
    idle_timeout: Ticks,
    max_age: Ticks,
    /// Counted here; the sweep adds it to the shared counters.
    reused: u64,
    reported_idle: i64,
}

impl Node {
    pub(super) fn new(counters: Counters, sweep: &Arc<Sweep>, pings: Pings) -> Arc<Self> {
        let node = Arc::new(Self { state: Mutex::default(), counters, sweep: Arc::clone(sweep), pings });
        sweep.add_node(&node);
        node
    }

    /// Gets a connection for one short exchange.
    pub(super) async fn checkout(self: &Arc<Self>, upstream: &Upstream, pick: Pick) -> Result<Lease, UpstreamError> {
        match self.reuse(upstream, pick, Ticket::LAST) {
            Some(lease) => Ok(lease),
            // Boxed, as it is rare and by far the largest part of a request's future.
            None => Box::pin(self.connect(upstream, pick)).await,
        }
    }

    async fn connect(self: &Arc<Self>, upstream: &Upstream, pick: Pick) -> Result<Lease, UpstreamError> {
        let (slot, _opening) = match self.room(upstream, pick).await? {
            Room::Slot(slot, opening) => (slot, opening),
            Room::Lease(lease) => return Ok(lease),
        };
        let deadline = Instant::now() + upstream.connect_timeout;
        let tls = upstream.tls.as_ref().map(|tls| &tls.shared);
        let transport = self.open(upstream, tls, deadline).await?;
        let is_http2 = is_http2(&transport) || (tls.is_none() && upstream.identity.protocol == Protocol::Http2);
        if !is_http2 && upstream.identity.protocol == Protocol::Http2 {
            return Err(UpstreamError::new(UpstreamErrorKind::Protocol, upstream.name())
                .because("TLS did not negotiate HTTP/2, which `protocol: http2` asks for")
                .nothing_sent());
        }
        self.state().negotiated_http1 = !is_http2;
        if is_http2 {
            let connection = Arc::new(self.http2(upstream, transport, slot, deadline).await?);
            let lease = self.stream(&connection, false);
            let mut state = self.state();
            if !state.drained {
                state.shared.push(connection);
            }
            drop(state);
            self.free();
            return Ok(Lease::Http2(lease));
        }
        let connection = self.http1(upstream, transport, slot).await?;
        Ok(Lease::Http1(Http1Lease::first(self, connection)))
    }

    /// Opens a connection that is not shared and is closed afterwards: HTTP/1.1, unless the upstream speaks HTTP/2
    /// only.
    pub(super) async fn own(self: &Arc<Self>, upstream: &Upstream) -> Result<Lease, UpstreamError> {
        let slot = self.exclusive_slot(upstream).await?;
        let deadline = Instant::now() + upstream.connect_timeout;
        if upstream.identity.protocol == Protocol::Http2 {
            let transport = self.open(upstream, upstream.tls.as_ref().map(|tls| &tls.shared), deadline).await?;
            let connection = Arc::new(self.http2(upstream, transport, slot, deadline).await?);
            return Ok(Lease::Http2(self.stream(&connection, false)));
        }
        let transport = self.open(upstream, upstream.tls.as_ref().map(|tls| &tls.http1), deadline).await?;
        let connection = self.http1(upstream, transport, slot).await?;
        Ok(Lease::Http1(Http1Lease::exclusive(self, connection)))
    }

    /// Opens a connection for a request that asks for another protocol.
    pub(super) async fn upgradable(self: &Arc<Self>, upstream: &Upstream) -> Result<Http1Lease, UpstreamError> {
        let slot = self.exclusive_slot(upstream).await?;
        let deadline = Instant::now() + upstream.connect_timeout;
        let transport = self.open(upstream, upstream.tls.as_ref().map(|tls| &tls.http1), deadline).await?;
        let connection = self.upgradable_http1(upstream, transport).await?;
        let mut lease = Http1Lease::exclusive(self, connection);
        lease.slot = Some(slot);
        Ok(lease)
    }

    /// Stops storing connections. Exchanges in progress end normally.
    pub(super) fn drain(&self) {
        let (idle, shared) = {
            let mut state = self.state();
            state.drained = true;
            (std::mem::take(&mut state.idle), std::mem::take(&mut state.shared))
        };
        // Outside the lock, as closing a connection takes it again.
        drop((idle, shared));
        self.tidy(self.sweep.now());
    }

    /// Closes connections that are too old and updates the counters.
    pub(super) fn tidy(&self, now: u32) {
        let mut gone = Vec::new();
        let mut gone_shared = Vec::new();
        let mut state = self.state();
        let (idle_timeout, max_age) = (state.idle_timeout, state.max_age);
        gone.extend(state.idle.extract_if(.., |connection| {
            connection.sender.is_closed()
                || idle_timeout.is_over(connection.unused_since, now)
                || max_age.is_over(connection.born, now)
        }));
        gone_shared.extend(state.shared.extract_if(.., |connection| {
            !connection.is_open()
                || connection.unused_since().is_some_and(|since| idle_timeout.is_over(since, now))
                || max_age.is_over(connection.born, now)
        }));
        self.counters.reused.inc_by(std::mem::take(&mut state.reused));
        let idle = i64::try_from(state.idle.len()).unwrap_or(i64::MAX);
        self.counters.idle.inc_by(idle - state.reported_idle);
        state.reported_idle = idle;
        if !state.waiting.is_empty() {
            for connection in &state.shared {
                connection.look_at_settings();
            }
        }
        // A connection may have been returned while the end of an upload was still being written; its completion is not
        // signalled.
        let wake = !state.waiting.is_empty() && state.has_ready();
        drop(state);
        drop((gone, gone_shared));
        if wake {
            self.free();
        }
    }

    /// What is to be done for requests that wait while all connections are in use.
    pub(super) fn shortage(&self) -> Option<Shortage> {
        let state = self.state();
        let waiting = state.waiting.len();
        let is_short = waiting > 0 && state.open >= state.max_connections && !state.has_ready();
        is_short.then(|| Shortage { waiting, share: state.max_connections.div_ceil(8) as usize })
    }

    /// Whether there is an idle connection that can take a request.
    #[cfg(test)]
    pub(super) fn has_ready(&self) -> bool {
        self.state().has_ready()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Returns a free connection or stream, unless a request that came before `ticket` is waiting for it.
    fn reuse(self: &Arc<Self>, upstream: &Upstream, pick: Pick, ticket: Ticket) -> Option<Lease> {
        let now = self.sweep.now();
        let mut state = self.state();
        state.idle_timeout = upstream.idle_timeout;
        state.max_age = upstream.max_age;
        if pick == Pick::Pooled
            && !state.is_for_others(Lane::Short, ticket)
            && let Some(connection) = state.take_idle(now)
        {
            state.reused += 1;
            drop(state);
            return Some(Lease::Http1(Http1Lease::reused(self, connection)));
        }
        if state.waiting.has_before(Lane::Short, ticket) {
            return None;
        }
        let max_age = state.max_age;
        let shared = state
            .shared
            .iter()
            .find(|connection| connection.has_room() && !max_age.is_over(connection.born, now))
            .cloned()?;
        state.reused += 1;
        // Under the lock, so that two requests cannot take the same last stream.
        let lease = self.stream(&shared, true);
        drop(state);
        Some(Lease::Http2(lease))
    }

    fn stream(self: &Arc<Self>, connection: &Arc<Http2>, reused: bool) -> Http2Lease {
        connection.begin_stream();
        let progress = connection.spare().pop().unwrap_or_else(|| self.sweep.watch());
        Http2Lease { connection: Arc::clone(connection), progress, reused, node: Arc::clone(self) }
    }

    fn give_back(&self, mut connection: Http1) {
        connection.progress.rest();
        connection.unused_since = self.sweep.now();
        let mut state = self.state();
        let keep = !state.drained
            && !connection.sender.is_closed()
            && !state.max_age.is_over(connection.born, connection.unused_since);
        let unwanted = if keep {
            state.idle.push(connection);
            None
        } else {
            Some(connection)
        };
        let wake = !state.waiting.is_empty();
        drop(state);
        drop(unwanted);
        if wake {
            self.free();
        }
    }

    /// Wakes the first waiter of each lane; each checks whether it can use what is free.
    fn free(&self) {
        let first = self.state().waiting.first_ones();
        for woken in first.into_iter().flatten() {
            woken.notify_one();
        }
    }

    /// Waits for room for another connection, or for one that became free meanwhile, for at most the connect timeout.
    /// Connecting has a timeout of its own: with only the rest of this one, the requests that waited longest would fail
    /// after all.
    async fn room(self: &Arc<Self>, upstream: &Upstream, pick: Pick) -> Result<Room, UpstreamError> {
        let waiting = Waiting::new(self, upstream, Lane::Short);
        let mut is_over = false;
        loop {
            if let Some(lease) = self.reuse(upstream, pick, waiting.ticket()) {
                return Ok(Room::Lease(lease));
            }
            if let Some((slot, opening)) = self.try_slot(upstream, Lane::Short, pick, waiting.ticket()) {
                return Ok(Room::Slot(slot, opening));
            }
            if is_over {
                return Err(waiting.in_vain(upstream));
            }
            is_over = !waiting.woken().await;
        }
    }

    /// Waits for room for a connection that a single exchange uses.
    async fn exclusive_slot(self: &Arc<Self>, upstream: &Upstream) -> Result<Slot, UpstreamError> {
        let waiting = Waiting::new(self, upstream, Lane::Long);
        let mut is_over = false;
        loop {
            if let Some((slot, _)) = self.try_slot(upstream, Lane::Long, Pick::Fresh, waiting.ticket()) {
                return Ok(slot);
            }
            if is_over {
                return Err(waiting.in_vain(upstream));
            }
            is_over = !waiting.woken().await;
        }
    }

    /// Reserves room for a connection. For a fresh one, an unused connection is closed if there is no room otherwise.
    /// Long-lived exchanges leave room for others: one caller's watches must not keep everybody from the upstream.
    fn try_slot(
        self: &Arc<Self>,
        upstream: &Upstream,
        lane: Lane,
        pick: Pick,
        ticket: Ticket,
    ) -> Option<(Slot, Option<Opening>)> {
        let is_long = lane == Lane::Long;
        let mut state = self.state();
        let may_share = !is_long && state.may_share(upstream);
        if (is_long && state.long >= most_long(state.max_connections))
            || (may_share && state.opening)
            || state.is_for_others(lane, ticket)
        {
            return None;
        }
        if state.open < state.max_connections {
            state.open += 1;
            state.long += u32::from(is_long);
            state.opening |= may_share;
            drop(state);
            self.counters.open.inc();
            let slot = Slot { node: Arc::clone(self), is_long };
            return Some((slot, may_share.then(|| Opening(Arc::clone(self)))));
        }
        let (evicted, evicted_shared) = match pick {
            Pick::Pooled => (None, None),
            Pick::Fresh => state.take_unused(),
        };
        drop(state);
        drop((evicted, evicted_shared));
        None
    }
}

/// How many of `connections` may be used by long-lived exchanges.
fn most_long(connections: u32) -> u32 {
    (connections - connections.div_ceil(4)).max(1)
}

impl State {
    fn may_share(&self, upstream: &Upstream) -> bool {
        match upstream.identity.protocol {
            Protocol::Http1 => false,
            Protocol::Http2 => true,
            Protocol::Negotiated => upstream.tls.is_some() && !self.negotiated_http1,
        }
    }

    /// Whether a request in any lane that has waited longer than the holder of `ticket` could take a connection, or
    /// room for one.
    fn is_for_others(&self, lane: Lane, ticket: Ticket) -> bool {
        let (other, could_take) = match lane {
            Lane::Short => (Lane::Long, self.long < most_long(self.max_connections)),
            Lane::Long => (Lane::Short, !self.opening),
        };
        self.waiting.has_before(lane, ticket) || (could_take && self.waiting.has_before(other, ticket))
    }

    /// Removes a connection that can be closed to make room. A connection that is already closed makes none. Of the
    /// shared ones, takes the last: requests use the first with room, so the last is least likely to be needed soon.
    fn take_unused(&mut self) -> (Option<Http1>, Option<Arc<Http2>>) {
        if let Some(at) = self.idle.iter().position(|connection| !connection.sender.is_closed()) {
            return (Some(self.idle.remove(at)), None);
        }
        let is_unused = |connection: &Arc<Http2>| !connection.sender.is_closed() && connection.unused_since().is_some();
        let unused = self.shared.iter().rposition(is_unused);
        (None, unused.map(|at| self.shared.remove(at)))
    }

    fn has_ready(&self) -> bool {
        self.idle.iter().any(|connection| connection.sender.is_ready())
    }

    fn take_idle(&mut self, now: u32) -> Option<Http1> {
        let max_age = self.max_age;
        let at = self.idle.iter().rposition(|connection| {
            // One that is not ready is still finishing its last exchange.
            connection.sender.is_ready() && !max_age.is_over(connection.born, now)
        })?;
        Some(self.idle.remove(at))
    }
}

enum Room {
    Slot(Slot, Option<Opening>),
    Lease(Lease),
}

/// The slot of an open connection among those that its upstream may have. Held by the task that drives the connection.
#[derive(Debug)]
struct Slot {
    node: Arc<Node>,
    is_long: bool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.node.state();
        state.open -= 1;
        state.long -= u32::from(self.is_long);
        drop(state);
        self.node.counters.open.dec();
        self.node.free();
    }
}

/// Held while a connection that can be shared is being opened.
struct Opening(Arc<Node>);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.state().opening = false;
        self.0.free();
    }
}
