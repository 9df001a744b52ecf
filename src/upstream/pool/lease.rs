//! A connection in use by an exchange.

use std::sync::Arc;

use hyper::client::conn::http1;

use super::{
    Node, Slot,
    connection::{Http1, Http2},
};
use crate::{body::RequestBody, upstream::progress::Progress};

/// A connection, or a stream of one, for one exchange. Dropping it before [`Lease::finish`] aborts the exchange.
#[derive(Debug)]
pub(in crate::upstream) enum Lease {
    Http1(Http1Lease),
    Http2(Http2Lease),
}

#[derive(Debug)]
pub(in crate::upstream) struct Http1Lease {
    pub(super) connection: Option<Http1>,
    pub(super) node: Arc<Node>,
    pub(in crate::upstream) progress: Arc<Progress>,
    /// Whether it has served an exchange before, so that the peer may just have closed it.
    pub(in crate::upstream) reused: bool,
    /// Whether it may serve another one.
    pub(in crate::upstream) reusable: bool,
    /// Set if the connection may outlive the task that drives it, which otherwise holds the slot.
    pub(super) slot: Option<Slot>,
}

#[derive(Debug)]
pub(in crate::upstream) struct Http2Lease {
    pub(in crate::upstream) connection: Arc<Http2>,
    pub(in crate::upstream) progress: Arc<Progress>,
    /// Whether the connection was already open, so that the peer may just have closed it.
    pub(in crate::upstream) reused: bool,
    pub(super) node: Arc<Node>,
}

impl Lease {
    pub(in crate::upstream) fn progress(&self) -> &Arc<Progress> {
        match self {
            Self::Http1(lease) => &lease.progress,
            Self::Http2(lease) => &lease.progress,
        }
    }

    /// Called when the response has ended: returns an HTTP/1.1 connection to the pool if it can take another request.
    pub(in crate::upstream) fn finish(self) {
        match self {
            Self::Http1(mut lease) => {
                if lease.reusable
                    && !lease.progress.is_request_open()
                    && let Some(connection) = lease.connection.take()
                {
                    lease.node.give_back(connection);
                }
            }
            Self::Http2(lease) => drop(lease),
        }
    }
}

impl Http1Lease {
    /// For a connection that was opened for this exchange and may serve others.
    pub(super) fn first(node: &Arc<Node>, connection: Http1) -> Self {
        let progress = Arc::clone(&connection.progress);
        let node = Arc::clone(node);
        Self { connection: Some(connection), node, progress, reused: false, reusable: true, slot: None }
    }

    /// For a connection from the pool.
    pub(super) fn reused(node: &Arc<Node>, connection: Http1) -> Self {
        let mut lease = Self::first(node, connection);
        lease.reused = true;
        lease
    }

    /// For a connection that no other exchange will use.
    pub(super) fn exclusive(node: &Arc<Node>, connection: Http1) -> Self {
        let mut lease = Self::first(node, connection);
        lease.reusable = false;
        lease
    }

    pub(in crate::upstream) fn sender(&mut self) -> Option<&mut http1::SendRequest<RequestBody>> {
        self.connection.as_mut().map(|connection| &mut connection.sender)
    }
}

impl Drop for Http1Lease {
    fn drop(&mut self) {
        if self.connection.take().is_some() {
            // hyper alone would continue to send the request body.
            self.progress.abort();
        }
    }
}

impl Http2Lease {
    /// Makes the connection take no more requests.
    pub(in crate::upstream) fn retire(&self) {
        self.connection.retire();
    }
}

impl Drop for Http2Lease {
    fn drop(&mut self) {
        self.progress.rest();
        // A request body that is still being sent keeps its progress record.
        if Arc::strong_count(&self.progress) == 1 {
            self.connection.spare().push(Arc::clone(&self.progress));
        }
        self.connection.end_stream(self.node.sweep.now());
        if !self.node.state().waiting.is_empty() {
            self.node.free();
        }
    }
}
