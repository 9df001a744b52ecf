//! An answer on its way to the client, and its end where the client does not take it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::{Protocol, liveness::Liveness};
use crate::abort::Abort;

/// A request under way; ends when its response has been handed over, or when it is dropped before.
#[derive(Debug)]
pub(super) struct InFlight {
    liveness: Arc<Liveness>,
    /// When it began, by the sweeps.
    since: u32,
    answered: bool,
}

impl InFlight {
    pub(super) fn new(liveness: Arc<Liveness>) -> Self {
        let since = liveness.swept();
        Self { liveness, since, answered: false }
    }

    pub(super) fn liveness(&self) -> &Liveness {
        &self.liveness
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.liveness.end_request(self.answered, self.since);
    }
}

/// The answer on a stream of HTTP/2.
#[derive(Debug)]
pub(super) struct Answer {
    in_flight: InFlight,
    /// There is more for the client than it takes, and by the sweeps since when.
    withheld: AtomicBool,
    since: AtomicU32,
    abort: Abort,
}

impl Answer {
    /// To be called within the work that hands it over.
    pub(super) fn begin(in_flight: InFlight) -> Arc<Self> {
        let since = AtomicU32::new(in_flight.liveness.swept());
        let answer = Arc::new(Self { in_flight, withheld: AtomicBool::new(true), since, abort: Abort::of_this_work() });
        answer.in_flight.liveness.begin_answer(&answer);
        answer
    }

    /// It waits for the client to take more.
    pub(super) fn withhold(&self) {
        self.since.store(self.in_flight.liveness.swept(), Relaxed);
        self.withheld.store(true, Relaxed);
    }

    /// The client has taken what there was, or the answer is gone.
    pub(super) fn release(&self) {
        if self.withheld.swap(false, Relaxed) {
            self.in_flight.liveness.note_taken();
        }
    }

    /// Since when, by the sweeps, it waits for the client.
    pub(super) fn withheld_since(&self) -> Option<u32> {
        self.withheld.load(Relaxed).then(|| self.since.load(Relaxed))
    }

    /// Resets its stream, unless all of it is with h2.
    pub(super) fn cut(&self) {
        self.abort.abort();
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.release();
        self.in_flight.liveness.forget_answers();
    }
}

/// What ends the request when it is dropped.
#[derive(Debug)]
enum UnderWay {
    Http1 { _in_flight: InFlight },
    Http2(Arc<Answer>),
}

pin_project! {
    /// A response body that tells when it is done with.
    #[derive(Debug)]
    pub(super) struct Tracked<B> {
        #[pin]
        inner: B,
        under_way: UnderWay,
    }
}

impl<B> Tracked<B> {
    /// To be called within the work that hands it over.
    pub(super) fn new(inner: B, mut in_flight: InFlight, protocol: Protocol) -> Self {
        in_flight.answered = true;
        let under_way = match protocol {
            Protocol::Http1 => UnderWay::Http1 { _in_flight: in_flight },
            Protocol::Http2 => UnderWay::Http2(Answer::begin(in_flight)),
        };
        Self { inner, under_way }
    }
}

impl<B: Body> Body for Tracked<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        let UnderWay::Http2(answer) = &*this.under_way else { return this.inner.poll_frame(context) };
        // hyper asks for the next piece of an HTTP/2 body when h2 has taken the one before.
        answer.release();
        let polled = this.inner.poll_frame(context);
        if matches!(polled, Poll::Ready(Some(Ok(_)))) {
            answer.withhold();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
