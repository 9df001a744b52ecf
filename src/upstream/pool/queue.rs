//! The queue of requests that wait for a connection, first come first served. If a new request could take a connection
//! that becomes free, the waiting ones would starve under load.
//!
//! Only the first of a lane is woken. A waiter that leaves wakes the next, which then checks what the first did not
//! take or gave up.

use std::{collections::VecDeque, sync::Arc};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::Node;
use crate::upstream::{
    Lane,
    error::{UpstreamError, UpstreamErrorKind},
    settings::Upstream,
};

/// A position in the order of all waiters of all lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

impl Ticket {
    /// For a request that has just arrived.
    pub(super) const LAST: Self = Self(u64::MAX);
}

/// One queue per lane: long-lived exchanges may have used up their share while there is still room for others.
#[derive(Debug, Default)]
pub(super) struct Queues {
    short: VecDeque<Waiter>,
    long: VecDeque<Waiter>,
    issued: u64,
}

#[derive(Clone, Debug)]
struct Waiter {
    ticket: Ticket,
    woken: Arc<Notify>,
}

impl Queues {
    pub(super) fn is_empty(&self) -> bool {
        self.short.is_empty() && self.long.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.short.len() + self.long.len()
    }

    /// Whether a request in this lane has waited longer than the holder of `ticket`.
    pub(super) fn has_before(&self, lane: Lane, ticket: Ticket) -> bool {
        let queue = match lane {
            Lane::Short => &self.short,
            Lane::Long => &self.long,
        };
        queue.front().is_some_and(|first| first.ticket < ticket)
    }

    /// The notifiers of the first waiter of each lane.
    pub(super) fn first_ones(&self) -> [Option<Arc<Notify>>; 2] {
        [&self.short, &self.long].map(|queue| queue.front().map(|first| Arc::clone(&first.woken)))
    }

    fn enter(&mut self, lane: Lane) -> Waiter {
        self.issued += 1;
        let waiter = Waiter { ticket: Ticket(self.issued), woken: Arc::default() };
        self.of_mut(lane).push_back(waiter.clone());
        waiter
    }

    fn leave(&mut self, lane: Lane, ticket: Ticket) {
        let queue = self.of_mut(lane);
        if let Ok(at) = queue.binary_search_by_key(&ticket, |waiter| waiter.ticket) {
            queue.remove(at);
        }
    }

    fn of_mut(&mut self, lane: Lane) -> &mut VecDeque<Waiter> {
        match lane {
            Lane::Short => &mut self.short,
            Lane::Long => &mut self.long,
        }
    }
}

/// A waiter in the queue of a lane. Created before the first check, so that what is freed after it is not missed.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    node: &'a Node,
    lane: Lane,
    waiter: Waiter,
    deadline: Instant,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(node: &'a Node, upstream: &Upstream, lane: Lane) -> Self {
        let mut state = node.state();
        let limit = upstream.max_connections;
        let has_changed = std::mem::replace(&mut state.max_connections, limit) != limit;
        let wake = has_changed && !state.waiting.is_empty();
        let waiter = state.waiting.enter(lane);
        drop(state);
        if wake {
            node.free();
        }
        Self { node, lane, waiter, deadline: Instant::now() + upstream.connect_timeout }
    }

    pub(super) fn ticket(&self) -> Ticket {
        self.waiter.ticket
    }

    /// Waits until something may be free; false once the deadline has passed. The caller must check then too, as not
    /// every change is notified.
    pub(super) async fn woken(&self) -> bool {
        timeout_at(self.deadline, self.waiter.woken.notified()).await.is_ok()
    }

    /// The error for a wait that timed out.
    pub(super) fn in_vain(&self, upstream: &Upstream) -> UpstreamError {
        let state = self.node.state();
        // It did not wait for room, but for another request to open a connection that can be shared.
        if self.lane == Lane::Short && state.opening && state.may_share(upstream) {
            return UpstreamError::new(UpstreamErrorKind::ConnectTimeout, upstream.name()).nothing_sent();
        }
        UpstreamError::new(UpstreamErrorKind::Exhausted, upstream.name())
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.node.state();
        state.waiting.leave(self.lane, self.waiter.ticket);
        let wake = !state.waiting.is_empty();
        drop(state);
        if wake {
            self.node.free();
        }
    }
}
