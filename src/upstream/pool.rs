//! Connections to upstreams that wait for their next request. Each worker has pools of its own, so that taking and
//! giving back a connection never waits for another worker.
//!
//! A connection comes back only when its response has ended and its request was handed over whole. Everything else
//! (an answer before the end of the request, a body that was dropped, bytes behind the end of a response) closes it,
//! so that nothing of one exchange can show up in the next.

mod connection;
mod lease;
mod read_on;

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use self::connection::{Http1, Http2};
pub(super) use self::lease::{Http1Lease, Http2Lease, Lease};
use super::{
    Lane, Pings,
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

/// The connections of one worker to one peer.
#[derive(Debug)]
pub(super) struct Node {
    state: Mutex<State>,
    /// A connection or a stream became free. Those that wait for one to keep it are woken apart from the others: they may
    /// have all that they may have, and what is free is for the others.
    freed: Notify,
    freed_for_long: Notify,
    /// Held while a connection is opened that others could share, so that a burst opens one and not many.
    opening: tokio::sync::Mutex<()>,
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
    /// How many of the open connections belong to exchanges that last.
    long: u32,
    waiting: u32,
    /// Those of them that take a pooled connection as well as a new one. What becomes free is theirs: if whoever comes next could
    /// have it, they would wait in vain under load.
    waiting_for_any: u32,
    /// No longer wanted: nothing is kept.
    drained: bool,
    /// TLS negotiated HTTP/1.1 the last time.
    negotiated_http1: bool,
    /// This and `max_age` are those of the configuration whose request came last.
    idle_timeout: Ticks,
    max_age: Ticks,
    /// Counted here and added to the shared counters by the sweep.
    reused: u64,
    reported_idle: i64,
}

impl Node {
    pub(super) fn new(counters: Counters, sweep: &Arc<Sweep>, pings: Pings) -> Arc<Self> {
        let node = Arc::new(Self {
            state: Mutex::default(),
            freed: Notify::new(),
            freed_for_long: Notify::new(),
            opening: tokio::sync::Mutex::new(()),
            counters,
            sweep: Arc::clone(sweep),
            pings,
        });
        sweep.add_node(&node);
        node
    }

    /// A connection for one short exchange.
    pub(super) async fn checkout(self: &Arc<Self>, upstream: &Upstream, pick: Pick) -> Result<Lease, UpstreamError> {
        match self.reuse(upstream, pick, false) {
            Some(lease) => Ok(lease),
            // Boxed, as it is rare and by far the largest part of a request's future.
            None => Box::pin(self.connect(upstream, pick)).await,
        }
    }

    async fn connect(self: &Arc<Self>, upstream: &Upstream, pick: Pick) -> Result<Lease, UpstreamError> {
        let deadline = Instant::now() + upstream.connect_timeout;
        let late = |_| UpstreamError::new(UpstreamErrorKind::ConnectTimeout, upstream.name()).nothing_sent();
        let _opening = if self.may_share(upstream) {
            let guard = timeout_at(deadline, self.opening.lock()).await.map_err(late)?;
            if let Some(lease) = self.reuse(upstream, pick, false) {
                return Ok(lease);
            }
            // Whoever held it may have found that there is nothing to share.
            self.may_share(upstream).then_some(guard)
        } else {
            None
        };
        let slot = match self.slot(upstream, pick, deadline).await? {
            Room::Slot(slot) => slot,
            Room::Lease(lease) => return Ok(lease),
        };
        let tls = upstream.tls.as_ref().map(|tls| &tls.shared);
        let transport = self.open(upstream, tls, deadline).await?;
        let is_http2 = transport.is_http2() || (tls.is_none() && upstream.identity.protocol == Protocol::Http2);
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
            self.freed.notify_waiters();
            return Ok(Lease::Http2(lease));
        }
        let connection = self.http1(upstream, transport, slot).await?;
        Ok(Lease::Http1(Http1Lease::first(self, connection)))
    }

    /// A connection that nobody shares and that is closed afterwards: HTTP/1.1, unless the upstream speaks HTTP/2
    /// only.
    pub(super) async fn own(self: &Arc<Self>, upstream: &Upstream) -> Result<Lease, UpstreamError> {
        let deadline = Instant::now() + upstream.connect_timeout;
        let slot = self.exclusive_slot(upstream, deadline).await?;
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
        let deadline = Instant::now() + upstream.connect_timeout;
        let slot = self.exclusive_slot(upstream, deadline).await?;
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
        // Some may have been given back while the last of an upload was still written, of which nobody tells when that is done.
        let waiting = usize::try_from(state.waiting).unwrap_or(usize::MAX);
        let missed = state.idle.iter().filter(|connection| connection.sender.is_ready()).take(waiting).count();
        drop(state);
        drop((gone, gone_shared));
        for _ in 0..missed {
            self.free();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn may_share(&self, upstream: &Upstream) -> bool {
        match upstream.identity.protocol {
            Protocol::Http1 => false,
            Protocol::Http2 => true,
            Protocol::Negotiated => upstream.tls.is_some() && !self.state().negotiated_http1,
        }
    }

    /// Who `has_waited` is next; others leave what those that wait are to have.
    fn reuse(self: &Arc<Self>, upstream: &Upstream, pick: Pick, has_waited: bool) -> Option<Lease> {
        let now = self.sweep.now();
        let mut state = self.state();
        state.idle_timeout = upstream.idle_timeout;
        state.max_age = upstream.max_age;
        if pick == Pick::Pooled
            && let Some(connection) = state.take_idle(now, has_waited)
        {
            state.reused += 1;
            drop(state);
            return Some(Lease::Http1(Http1Lease::reused(self, connection)));
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
        let wake = state.waiting > 0;
        drop(state);
        drop(unwanted);
        if wake {
            self.free();
        }
    }

    /// Wakes one of each kind of those that wait: which of them can use what is free shows when they look.
    fn free(&self) {
        self.freed.notify_one();
        self.freed_for_long.notify_one();
    }

    /// Waits for room for another connection, or for one that became free meanwhile.
    async fn slot(self: &Arc<Self>, upstream: &Upstream, pick: Pick, deadline: Instant) -> Result<Room, UpstreamError> {
        let (waiting, mut ahead) = Waiting::new(self, upstream, pick);
        loop {
            if let Some(slot) = self.try_slot(upstream, Lane::Short, pick, ahead) {
                return Ok(Room::Slot(slot));
            }
            waiting.until(&self.freed, deadline).await?;
            ahead = 0;
            if let Some(lease) = self.reuse(upstream, pick, true) {
                return Ok(Room::Lease(lease));
            }
        }
    }

    /// Waits for room for a connection that one exchange keeps for itself.
    async fn exclusive_slot(self: &Arc<Self>, upstream: &Upstream, deadline: Instant) -> Result<Slot, UpstreamError> {
        let (waiting, _) = Waiting::new(self, upstream, Pick::Fresh);
        loop {
            if let Some(slot) = self.try_slot(upstream, Lane::Long, Pick::Fresh, 0) {
                return Ok(slot);
            }
            waiting.until(&self.freed_for_long, deadline).await?;
        }
    }

    /// For a fresh one, a connection that nobody uses is closed where there is no room otherwise. Those of exchanges that last leave room for
    /// others: one caller's watches must not keep everybody from the upstream. Room for those `ahead` is left, too.
    fn try_slot(self: &Arc<Self>, upstream: &Upstream, lane: Lane, pick: Pick, ahead: u32) -> Option<Slot> {
        let is_long = lane == Lane::Long;
        let mut state = self.state();
        if is_long && state.long >= most_long(upstream.max_connections) {
            return None;
        }
        if state.open.saturating_add(ahead) < upstream.max_connections {
            state.open += 1;
            state.long += u32::from(is_long);
            drop(state);
            self.counters.open.inc();
            return Some(Slot { node: Arc::clone(self), is_long });
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
    /// A connection that can be closed for another. Of those that are shared the last, as requests
    /// take the first that has room: it is the least likely to be needed soon.
    fn take_unused(&mut self) -> (Option<Http1>, Option<Arc<Http2>>) {
        if !self.idle.is_empty() {
            return (Some(self.idle.remove(0)), None);
        }
        let unused = self.shared.iter().rposition(|connection| connection.unused_since().is_some());
        (None, unused.map(|at| self.shared.remove(at)))
    }

    fn take_idle(&mut self, now: u32, has_waited: bool) -> Option<Http1> {
        let max_age = self.max_age;
        // One that is not ready still winds up its last exchange; it is left where it is.
        let is_good = |connection: &Http1| connection.sender.is_ready() && !max_age.is_over(connection.born, now);
        if !has_waited && self.waiting_for_any > 0 {
            let ahead = usize::try_from(self.waiting_for_any).unwrap_or(usize::MAX);
            self.idle.iter().filter(|&connection| is_good(connection)).nth(ahead)?;
        }
        let at = self.idle.iter().rposition(is_good)?;
        Some(self.idle.remove(at))
    }
}

enum Room {
    Slot(Slot),
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

/// Somebody who waits for room. Made before the first look, so that what is freed after it is not missed.
struct Waiting<'a> {
    node: &'a Node,
    upstream: &'a Upstream,
    for_any: bool,
}

impl<'a> Waiting<'a> {
    /// With how many are ahead of it.
    fn new(node: &'a Node, upstream: &'a Upstream, pick: Pick) -> (Self, u32) {
        let for_any = pick == Pick::Pooled;
        let mut state = node.state();
        let ahead = if for_any { state.waiting_for_any } else { 0 };
        state.waiting += 1;
        state.waiting_for_any += u32::from(for_any);
        drop(state);
        (Self { node, upstream, for_any }, ahead)
    }

    async fn until(&self, freed: &Notify, deadline: Instant) -> Result<(), UpstreamError> {
        timeout_at(deadline, freed.notified())
            .await
            .map_err(|_| UpstreamError::new(UpstreamErrorKind::Exhausted, self.upstream.name()))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.node.state();
        state.waiting -= 1;
        state.waiting_for_any -= u32::from(self.for_any);
        // Others left it what is still there.
        let is_left = state.waiting_for_any > 0
            && (state.open < self.upstream.max_connections
                || state.idle.iter().any(|connection| connection.sender.is_ready()));
        drop(state);
        if is_left {
            self.node.freed.notify_one();
        }
    }
}
