//! Connections to upstreams that wait for their next request. Each worker has pools of its own, so that taking and
//! giving back a connection never waits for another worker.
//!
//! A connection comes back only when its response has ended and its request was handed over whole. Everything else
//! (an answer before the end of the request, a body that was dropped, bytes behind the end of a response) closes it,
//! so that nothing of one exchange can show up in the next.

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

/// Which connection an exchange takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pick {
    /// One that waits, if there is one.
    Pooled,
    /// A new one: the peer may have closed all those that wait. A stream of a shared one does too.
    Fresh,
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
    /// The one used last is taken first, so that those not needed grow old.
    idle: Vec<Http1>,
    shared: Vec<Arc<Http2>>,
    open: u32,
    /// How many may be open. One number for all, that of the generation of who last came to wait: could each go by its own, one that has
    /// no room by its own would hold back all those behind.
    max_connections: u32,
    /// How many of the open connections belong to exchanges that last.
    long: u32,
    waiting: Queues,
    /// A connection is being opened that others could share, so that a burst opens one and not many.
    opening: bool,
    /// No longer wanted: nothing is kept.
    drained: bool,
    /// TLS negotiated HTTP/1.1 the last time.
    negotiated_http1: bool,
    /// This and `max_age` are those of the generation whose request came last.
    idle_timeout: Ticks,
    max_age: Ticks,
    /// Counted here and added to the shared counters by the sweep.
    reused: u64,
    reported_idle: i64,
}

impl Node {
    pub(super) fn new(counters: Counters, sweep: &Arc<Sweep>, pings: Pings) -> Arc<Self> {
        let node = Arc::new(Self { state: Mutex::default(), counters, sweep: Arc::clone(sweep), pings });
        sweep.add_node(&node);
        node
    }

    /// A connection for one short exchange.
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

    /// A connection that nobody shares and that is closed afterwards: HTTP/1.1, unless the upstream speaks HTTP/2
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

    /// A connection of its own for a request that asks for another protocol.
    pub(super) async fn upgradable(self: &Arc<Self>, upstream: &Upstream) -> Result<Http1Lease, UpstreamError> {
        let slot = self.exclusive_slot(upstream).await?;
        let deadline = Instant::now() + upstream.connect_timeout;
        let transport = self.open(upstream, upstream.tls.as_ref().map(|tls| &tls.http1), deadline).await?;
        let connection = self.upgradable_http1(upstream, transport).await?;
        let mut lease = Http1Lease::exclusive(self, connection);
        lease.slot = Some(slot);
        Ok(lease)
    }

    /// Keeps nothing any more; exchanges under way end as they would.
    pub(super) fn drain(&self) {
        let (idle, shared) = {
            let mut state = self.state();
            state.drained = true;
            (std::mem::take(&mut state.idle), std::mem::take(&mut state.shared))
        };
        // Outside of the lock, as closing a connection comes back for it.
        drop((idle, shared));
        self.tidy(self.sweep.now());
    }

    /// Closes what is too old and brings the counters up to date.
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
        // Some may have been given back while the last of an upload was still written, of which nobody tells when that is done.
        let wake = !state.waiting.is_empty() && state.has_ready();
        drop(state);
        drop((gone, gone_shared));
        if wake {
            self.free();
        }
    }

    /// Whether a connection is idle that can take a request.
    #[cfg(test)]
    pub(super) fn has_ready(&self) -> bool {
        self.state().has_ready()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A connection or a stream that is free, and that nobody who came before `ticket` is to have.
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
        // While the lock is held, so that two requests cannot take the same last stream.
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

    /// Wakes the first of each lane: which of them can use what is free shows when they look.
    fn free(&self) {
        let first = self.state().waiting.first_ones();
        for woken in first.into_iter().flatten() {
            woken.notify_one();
        }
    }

    /// Waits for room for another connection, or for one that became free meanwhile. As long as it may take to connect, which has a
    /// time of its own: the rest of this would be too short for those that waited longest, and all that they were given lost on them.
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

    /// Waits for room for a connection that one exchange keeps for itself.
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

    /// For a fresh one, a connection that nobody uses is closed where there is no room otherwise. Those of exchanges that last leave room for
    /// others: one caller's watches must not keep everybody from the upstream.
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

/// How many connections may be held by exchanges that last, of so many.
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

    /// Whether somebody waits for longer than who has `ticket`, in any lane, who could take a connection or room for one.
    fn is_for_others(&self, lane: Lane, ticket: Ticket) -> bool {
        let (other, could_take) = match lane {
            Lane::Short => (Lane::Long, self.long < most_long(self.max_connections)),
            Lane::Long => (Lane::Short, !self.opening),
        };
        self.waiting.has_before(lane, ticket) || (could_take && self.waiting.has_before(other, ticket))
    }

    /// A connection that can be closed for another, which one that is closed already makes no room for. Of those that are shared
    /// the last, as requests take the first that has room: it is the least likely to be needed soon.
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
            // One that is not ready still winds up its last exchange; it is left where it is.
            connection.sender.is_ready() && !max_age.is_over(connection.born, now)
        })?;
        Some(self.idle.remove(at))
    }
}

enum Room {
    Slot(Slot, Option<Opening>),
    Lease(Lease),
}

/// The place of an open connection among those that its upstream may have. Held by the task that drives it.
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

/// Held while a connection is opened that others could share.
struct Opening(Arc<Node>);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.state().opening = false;
        self.0.free();
    }
}
