//! Request bodies on their way to an upstream: streamed, bounded and hashed, or read whole before.

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{BodyError, ClientBody, Trailers, exactly};
use crate::{
    request::{expect::Awaited, headers::clean_trailers},
    sha256::Sha256,
    streams::StreamHandle,
    upstream::{Progress, Ticks},
};

/// The body of a request to an upstream.
#[derive(Debug, Default)]
pub enum RequestBody {
    #[default]
    Empty,
    /// Read whole before the request is sent, so it can be sent again.
    Buffered(Bytes),
    /// Streamed. Boxed, as it is the rarest and by far the largest.
    Streaming(Box<RequestStream>),
}

/// What was received of a streamed body.
#[derive(Debug, Default)]
pub struct Received {
    bytes: AtomicU64,
    /// Whether the body was polled before anything of it had arrived.
    waited: AtomicBool,
    digest: OnceLock<[u8; 32]>,
}

impl Received {
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Its SHA-256, if that was requested and the body is complete.
    pub fn digest(&self) -> Option<[u8; 32]> {
        self.digest.get().copied()
    }

    pub(crate) fn awaited(&self) -> Awaited {
        if self.bytes() > 0 {
            Awaited::Something
        } else if self.waited.load(Ordering::Relaxed) {
            Awaited::Nothing
        } else {
            Awaited::NotYet
        }
    }

    fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A streamed body.
#[derive(Debug)]
pub struct RequestStream {
    source: ClientBody,
    trailers: Trailers,
    received: Option<Arc<Received>>,
    hash: Option<Sha256>,
    /// How many bytes are accepted, and how many of them are left.
    limit: u64,
    room: u64,
    exchange: Option<Exchange>,
    /// Its registration as a stream, until it has ended: it may outlive its response.
    cut: Option<Arc<StreamHandle>>,
    sender: Sender,
}

/// What sends a body, and must be ended to cut it while its upstream takes nothing and nobody polls the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    /// The connection, which ends with the exchange (HTTP/1.1).
    Connection,
    /// A task that hyper makes once the connection has polled the body (HTTP/2).
    TaskToBe,
    /// That task.
    Task,
}

/// What sending the body reports to.
#[derive(Debug)]
struct Exchange {
    progress: Arc<Progress>,
    /// How long the response may take once the request is sent.
    response_timeout: Option<Ticks>,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.progress.lose_request();
    }
}

impl RequestBody {
    /// The streamed body of a client's request, or [`RequestBody::Empty`] if it is known to be empty.
    pub fn streaming(source: ClientBody, trailers: Trailers) -> Self {
        if source.is_end_stream() {
            return Self::Empty;
        }
        let (received, hash, limit) = (None, None, u64::MAX);
        Self::Streaming(Box::new(RequestStream {
            source,
            trailers,
            received,
            hash,
            limit,
            room: limit,
            exchange: None,
            cut: None,
            sender: Sender::Connection,
        }))
    }

    /// Breaks off a streamed body once it has more than `max` bytes.
    #[must_use]
    pub fn limited(mut self, max: u64) -> Self {
        if let Self::Streaming(stream) = &mut self {
            (stream.limit, stream.room) = (max, max);
        }
        self
    }

    /// Breaks off a streamed body when the registry says so.
    pub(crate) fn cut_by(&mut self, handle: &Arc<StreamHandle>) {
        if let Self::Streaming(stream) = self {
            stream.cut = Some(Arc::clone(handle));
        }
    }

    /// Reports to `received` how many bytes of a streamed body arrive and, if `hashed`, their digest.
    #[must_use]
    pub fn noted(mut self, received: &Arc<Received>, hashed: bool) -> Self {
        if let Self::Streaming(stream) = &mut self {
            stream.received = Some(Arc::clone(received));
            stream.hash = hashed.then(Sha256::new);
        }
        self
    }

    /// The same body for a second attempt, if it can be sent again.
    pub(crate) fn try_clone(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Buffered(bytes) => Some(Self::Buffered(bytes.clone())),
            Self::Streaming(_) => None,
        }
    }

    pub(crate) fn is_streaming(&self) -> bool {
        matches!(self, Self::Streaming(_))
    }

    /// Ties the body to its exchange on a connection: `progress` is told when it moves and when it was handed over.
    /// `response_timeout` is the limit from then on, if the exchange has one.
    pub(crate) fn begin(&mut self, progress: &Arc<Progress>, response_timeout: Option<Ticks>, is_http2: bool) {
        match self {
            Self::Empty => {}
            Self::Buffered(bytes) => {
                progress.open_request();
                let tracked = Tracked { bytes: std::mem::take(bytes), progress: Arc::clone(progress) };
                *bytes = Bytes::from_owner(tracked);
            }
            Self::Streaming(stream) => {
                progress.open_request();
                if !is_http2 {
                    stream.trailers = Trailers::Drop;
                }
                let is_of_task = is_http2 && stream.cut.is_some();
                stream.sender = if is_of_task { Sender::TaskToBe } else { Sender::Connection };
                stream.exchange = Some(Exchange { progress: Arc::clone(progress), response_timeout });
            }
        }
    }
}

impl RequestStream {
    fn ended(&mut self) {
        self.cut = None;
        if let Some(received) = &self.received {
            // Nothing more is waited for, however little arrived.
            received.waited.store(false, Ordering::Relaxed);
        }
        if let (Some(received), Some(hash)) = (&self.received, self.hash.take()) {
            // It ends once.
            let _ = received.digest.set(hash.finish());
        }
        if let Some(exchange) = self.exchange.take() {
            match exchange.response_timeout {
                Some(limit) => exchange.progress.await_answer(limit),
                None => exchange.progress.close_request(),
            }
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match this {
            Self::Empty => Poll::Ready(None),
            Self::Buffered(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Streaming(stream) => stream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Buffered(bytes) => bytes.is_empty(),
            Self::Streaming(stream) => stream.source.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Buffered(bytes) => exactly(bytes),
            Self::Streaming(stream) => stream.source.size_hint(),
        }
    }
}

impl RequestStream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match (self.sender, &self.cut) {
            (Sender::TaskToBe, _) => {
                // hyper sends as much as it can before it makes the task. Bytes that it took here and cannot send would
                // belong to a task that never polls again, and so would not be known here.
                self.sender = Sender::Task;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            (Sender::Task, Some(handle)) => handle.sent_by_this_work(),
            (Sender::Task, None) | (Sender::Connection, _) => {}
        }
        let polled = match self.cut.as_ref().map(|handle| handle.poll_sender_cut(cx)) {
            Some(Poll::Ready(reason)) => Poll::Ready(Some(Err(BodyError::Cut(reason)))),
            Some(Poll::Pending) | None => Pin::new(&mut self.source).poll_frame(cx),
        };
        if let Some(received) = &self.received
            && polled.is_pending()
        {
            received.waited.store(true, Ordering::Relaxed);
        }
        if let Some(exchange) = &self.exchange {
            exchange.progress.client_stalls(polled.is_pending());
        }
        match ready!(polled) {
            Some(Ok(mut frame)) => {
                if let Some(data) = frame.data_ref() {
                    let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
                    match self.room.checked_sub(length) {
                        Some(room) => self.room = room,
                        None => {
                            // Over HTTP/2 hyper reports only that there is no response, and not why.
                            if let Some(exchange) = &self.exchange {
                                exchange.progress.exceeds(self.limit);
                            }
                            return Poll::Ready(Some(Err(BodyError::TooLarge(self.limit))));
                        }
                    }
                    if let Some(received) = &self.received {
                        received.add(length);
                    }
                    if let Some(hash) = &mut self.hash {
                        hash.update(data);
                    }
                    if let Some(exchange) = &self.exchange {
                        exchange.progress.received(length);
                    }
                } else if self.trailers == Trailers::Drop {
                    self.ended();
                    return Poll::Ready(None);
                } else if let Some(trailers) = frame.trailers_mut() {
                    clean_trailers(trailers);
                }
                if self.source.is_end_stream() {
                    self.ended();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                if let Some(exchange) = &self.exchange {
                    exchange.progress.client_failed();
                }
                Poll::Ready(Some(Err(error)))
            }
            None => {
                self.ended();
                Poll::Ready(None)
            }
        }
    }
}

/// Bytes that report when the connection no longer needs them, which is when they are written.
struct Tracked {
    bytes: Bytes,
    progress: Arc<Progress>,
}

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.progress.close_request();
    }
}
