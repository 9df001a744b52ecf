//! A response on its way to the client: until when its request is in progress, and how it ends if the client does not
//! take it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::{Protocol, liveness::Liveness};
use crate::{abort::Abort, memory::Taken};

/// A request in progress. It ends when its response has been handed over, or when it is dropped before.
#[derive(Debug)]
pub(super) struct InFlight {
    liveness: Arc<Liveness>,
    /// When it began, in the time of the sweeps.
    since: u32,
    answered: bool,
    /// The memory that it takes.
    _taken: Option<Taken>,
}

impl InFlight {
    pub(super) fn new(liveness: Arc<Liveness>) -> Self {
        let since = liveness.swept();
        Self { liveness, since, answered: false, _taken: None }
    }

    pub(super) fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// Keeps what the request takes until it ends.
    pub(super) fn hold(&mut self, taken: Taken) {
        self._taken = Some(taken);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.liveness.end_request(self.answered, self.since);
    }
}

/// The response on an HTTP/2 stream, which is in progress until its last piece has been written: h2 takes a piece as
/// soon as there is room for one byte of it, and buffers the rest.
#[derive(Debug)]
pub(super) struct Answer {
    in_flight: InFlight,
    /// Whether there is more for the client than it takes, and since when, in the time of the sweeps.
    withheld: AtomicBool,
    since: AtomicU32,
    abort: Abort,
}

impl Answer {
    /// Must be called within the work that hands the response over.
    pub(super) fn begin(in_flight: InFlight) -> Arc<Self> {
        let since = AtomicU32::new(in_flight.liveness.swept());
        let answer = Arc::new(Self { in_flight, withheld: AtomicBool::new(true), since, abort: Abort::of_this_work() });
        answer.in_flight.liveness.begin_answer(&answer);
        answer
    }

    /// The response waits for the client to take more.
    pub(super) fn withhold(&self) {
        self.since.store(self.in_flight.liveness.swept(), Relaxed);
        self.withheld.store(true, Relaxed);
    }

    /// The client has taken what there was, or the response is gone.
    pub(super) fn release(&self) {
        if self.withheld.swap(false, Relaxed) {
            self.in_flight.liveness.note_taken();
        }
    }

    /// The client has taken a part of what there is: h2 keeps a piece until the last byte of it is written.
    fn note_moved(&self) {
        self.since.store(self.in_flight.liveness.swept(), Relaxed);
        self.in_flight.liveness.note_taken();
    }

    /// Since when it has been waiting for the client, in the time of the sweeps.
    pub(super) fn withheld_since(&self) -> Option<u32> {
        self.withheld.load(Relaxed).then(|| self.since.load(Relaxed))
    }

    /// Resets its stream, unless h2 already has all of it.
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
    /// The request ends with the body.
    Body { _in_flight: InFlight },
    /// The request ends with the last piece.
    Pieces(Arc<Answer>),
}

/// A piece of a response body.
#[derive(Debug)]
pub(super) struct Piece {
    bytes: Bytes,
    answer: Option<Arc<Answer>>,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if let Some(answer) = &self.answer {
            answer.note_moved();
        }
    }
}

pin_project! {
    /// A response body that reports when it is finished.
    #[derive(Debug)]
    pub(super) struct Tracked<B> {
        #[pin]
        inner: B,
        under_way: UnderWay,
    }
}

impl<B: Body> Tracked<B> {
    /// Must be called within the work that hands the response over.
    pub(super) fn new(inner: B, mut in_flight: InFlight, protocol: Protocol) -> Self {
        in_flight.answered = true;
        let under_way = match protocol {
            Protocol::Http2 if !inner.is_end_stream() => UnderWay::Pieces(Answer::begin(in_flight)),
            Protocol::Http1 | Protocol::Http2 => UnderWay::Body { _in_flight: in_flight },
        };
        Self { inner, under_way }
    }
}

impl<B: Body<Data = Bytes>> Body for Tracked<B> {
    type Data = Piece;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        let answer = match &*this.under_way {
            UnderWay::Body { .. } => None,
            UnderWay::Pieces(answer) => Some(answer),
        };
        // hyper asks for the next piece of an HTTP/2 body once h2 has taken the one before.
        if let Some(answer) = answer {
            answer.release();
        }
        let polled = this.inner.poll_frame(context);
        // The end of the body waits as well, behind what h2 has buffered.
        if let Some(answer) = answer
            && polled.is_ready()
        {
            answer.withhold();
        }
        polled.map_ok(|frame| frame.map_data(|bytes| Piece { bytes, answer: answer.cloned() }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{task::Waker, time::Duration};

    use http_body_util::Full;

    use super::*;
    use crate::{
        config::raw::Limits,
        downstream::liveness::{Phase, Sweep},
    };

    /// The connection counted as idle as soon as h2 had the last piece, and was closed while the client was still
    /// taking it.
    #[test]
    fn a_request_is_in_progress_until_the_last_byte_of_its_answer_is_written() {
        for (protocol, kept) in [(Protocol::Http2, Phase::Busy), (Protocol::Http1, Phase::Idle)] {
            let liveness = Arc::new(Liveness::new(&Limits::default()));
            liveness.begin_request();
            let in_flight = InFlight::new(Arc::clone(&liveness));
            let mut body = Tracked::new(Full::new(Bytes::from_static(b"last")), in_flight, protocol);
            let Poll::Ready(Some(Ok(piece))) = Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop()))
            else {
                panic!("there is a piece")
            };
            assert_eq!(liveness.phase(), Phase::Busy, "{protocol:?}");
            drop(body);
            assert_eq!(liveness.phase(), kept, "{protocol:?}");
            drop(piece);
            assert_eq!(liveness.phase(), Phase::Idle, "{protocol:?}");
        }
    }

    /// A piece had to be taken whole, however large it was, within the time in which a client may take nothing.
    #[test]
    fn a_client_that_takes_a_piece_byte_by_byte_is_not_one_that_takes_nothing() {
        let limits = Limits::default();
        for takes in [true, false] {
            let liveness = Arc::new(Liveness::new(&limits));
            liveness.begin_request();
            let in_flight = InFlight::new(Arc::clone(&liveness));
            let mut body = Tracked::new(Full::new(Bytes::from(vec![0; 1000])), in_flight, Protocol::Http2);
            let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop()))
            else {
                panic!("there is a piece")
            };
            let mut piece = frame.into_data().unwrap();
            let is_cut = (0..900).any(|_| {
                if takes {
                    piece.advance(1);
                }
                let sweep = Sweep { step: Duration::from_secs(1), hurried: false };
                liveness.sweep(sweep, &limits, Protocol::Http2).is_some()
            });
            assert_eq!(is_cut, !takes, "takes: {takes}");
        }
    }
}
