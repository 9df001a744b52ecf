//! Response bodies on their way to the client: Doorward's own and streams of an upstream, which can be cut and report
//! how they ended.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};

use super::{BodyError, Events, Trailers, exactly};
use crate::{
    streams::{CutReason, StreamHandle},
    upstream::UpstreamBody,
};

/// How a response's body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyEnd {
    pub outcome: EndedBy,
    /// Bytes of the body that were handed to the client's connection.
    pub bytes: u64,
}

/// Who ended a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    Complete,
    /// The client disconnected before the end, or sends more than is accepted.
    ClientAborted,
    /// The upstream broke off.
    UpstreamAborted,
    /// Doorward ended it.
    Cut(CutReason),
}

/// Is told once how a body ended, also when it is dropped.
pub trait OnEnd: Send + Unpin {
    fn on_end(self, end: BodyEnd);
}

/// How a body ends when it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutStyle {
    /// As if the upstream had ended it: for a watch, whose clients then begin another. Only between its events; within
    /// one it acts as [`CutStyle::Abort`].
    End(Events),
    /// With an error, for logs and downloads, which must not look complete.
    Abort,
    /// With a status in trailers, which tells gRPC clients why. Only for responses whose trailers are forwarded.
    Status,
}

impl CutStyle {
    /// The last frame of a body that is cut for this reason, depending on what was sent so far.
    fn last(self, reason: CutReason, error: BodyError) -> Option<Result<Frame<Bytes>, BodyError>> {
        match self {
            Self::End(events) if events.is_between() => None,
            Self::End(_) | Self::Abort => Some(Err(error)),
            Self::Status => Some(Ok(Frame::trailers(status(reason)))),
        }
    }
}

/// The status for gRPC clients whose stream was ended (gRPC, "Status codes"): whether they must authenticate again,
/// have no permission, or may retry.
fn status(reason: CutReason) -> HeaderMap {
    let (code, message) = match reason {
        CutReason::Expired => ("16", "the credential or the session has expired"),
        CutReason::Overlong => ("4", "the stream exceeded the time limit of its route (`max_stream`)"),
        CutReason::SignedOut => ("16", "the session has ended"),
        CutReason::Replaced => ("16", "a later login has replaced the session"),
        CutReason::Revoked => ("16", "the credential was revoked"),
        CutReason::PermissionLost => ("7", "the policy no longer allows it, or its route now has another upstream"),
        CutReason::Draining => ("14", "Doorward is shutting down"),
        CutReason::Idle => ("14", "nothing moved for too long"),
    };
    let lines = [("grpc-status", code), ("grpc-message", message)];
    lines.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).into_iter().collect()
}

/// The body of a response to a client.
pub struct ResponseBody<E: OnEnd> {
    source: Source,
    trailers: Trailers,
    cut: Option<(Arc<StreamHandle>, CutStyle)>,
    bytes: u64,
    on_end: Option<E>,
}

#[derive(Debug)]
enum Source {
    /// No bytes, or no more.
    Nothing,
    Full(Bytes),
    Streaming(UpstreamBody),
}

impl<E: OnEnd> ResponseBody<E> {
    /// An empty body, also for responses to `HEAD`.
    pub fn empty() -> Self {
        Self::new(Source::Nothing, Trailers::Drop)
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::new(Source::Full(bytes.into()), Trailers::Drop)
    }

    /// The streamed body of an upstream's response.
    pub fn streaming(body: UpstreamBody, trailers: Trailers) -> Self {
        Self::new(Source::Streaming(body), trailers)
    }

    fn new(source: Source, trailers: Trailers) -> Self {
        Self { source, trailers, cut: None, bytes: 0, on_end: None }
    }

    /// Takes out a body that is in memory as a whole, leaving an empty one; `None` for a streamed body.
    pub fn take_whole(&mut self) -> Option<Bytes> {
        let Source::Full(bytes) = &mut self.source else { return None };
        let bytes = std::mem::take(bytes);
        self.source = Source::Nothing;
        Some(bytes)
    }

    /// Ends the body in this style when the registry says so.
    #[must_use]
    pub fn cut_by(mut self, handle: impl Into<Arc<StreamHandle>>, style: CutStyle) -> Self {
        let handle = handle.into();
        // While its client takes nothing, a body is not polled, and would never notice that it is cut.
        handle.ends_this_work();
        self.cut = Some((handle, style));
        self
    }

    /// Calls `hook` when the body has ended.
    #[must_use]
    pub fn on_end(mut self, hook: E) -> Self {
        self.on_end = Some(hook);
        self
    }

    fn end(&mut self, outcome: EndedBy) {
        self.source = Source::Nothing;
        self.cut = None;
        if let Some(hook) = self.on_end.take() {
            hook.on_end(BodyEnd { outcome, bytes: self.bytes });
        }
    }

    fn poll_cut(&self, cx: &Context<'_>) -> Option<(CutReason, CutStyle)> {
        let (handle, style) = self.cut.as_ref()?;
        match handle.poll_cut(cx) {
            Poll::Ready(reason) => Some((reason, *style)),
            Poll::Pending => None,
        }
    }

    fn note(&mut self, data: &Bytes) {
        self.bytes += u64::try_from(data.len()).unwrap_or(u64::MAX);
        if let Some((_, CutStyle::End(events))) = &mut self.cut {
            events.pass(data);
        }
    }
}

impl<E: OnEnd> Body for ResponseBody<E> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let body = match &mut this.source {
            Source::Nothing => {
                this.end(EndedBy::Complete);
                return Poll::Ready(None);
            }
            Source::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.note(&bytes);
                this.end(EndedBy::Complete);
                return Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))));
            }
            Source::Streaming(_) => match this.poll_cut(cx) {
                Some((reason, style)) => {
                    this.end(EndedBy::Cut(reason));
                    return Poll::Ready(style.last(reason, BodyError::Cut(reason)));
                }
                None => match &mut this.source {
                    Source::Streaming(body) => body,
                    _ => return Poll::Ready(None),
                },
            },
        };
        match ready!(Pin::new(&mut *body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                let is_last = body.is_end_stream();
                if let Some(data) = frame.data_ref() {
                    this.note(data);
                } else if this.trailers == Trailers::Drop {
                    this.end(EndedBy::Complete);
                    return Poll::Ready(None);
                }
                if is_last {
                    this.end(EndedBy::Complete);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(BodyError::Idle)) => {
                let style = this.cut.as_ref().map_or(CutStyle::Abort, |(handle, style)| {
                    handle.end(CutReason::Idle);
                    *style
                });
                this.end(EndedBy::Cut(CutReason::Idle));
                Poll::Ready(style.last(CutReason::Idle, BodyError::Idle))
            }
            Some(Err(error)) => {
                // The upload was too large, which ended the response as well.
                let is_of_upload = matches!(error, BodyError::TooLarge(_));
                this.end(if is_of_upload { EndedBy::ClientAborted } else { EndedBy::UpstreamAborted });
                Poll::Ready(Some(Err(error)))
            }
            None => {
                this.end(EndedBy::Complete);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Nothing => true,
            Source::Full(bytes) => bytes.is_empty(),
            Source::Streaming(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Nothing => SizeHint::with_exact(0),
            Source::Full(bytes) => exactly(bytes),
            Source::Streaming(body) => body.size_hint(),
        }
    }
}

impl<E: OnEnd> Drop for ResponseBody<E> {
    fn drop(&mut self) {
        let cut = self.cut.as_ref().and_then(|(handle, _)| handle.reason());
        let outcome = match cut {
            _ if self.is_end_stream() => EndedBy::Complete,
            Some(reason) => EndedBy::Cut(reason),
            None => EndedBy::ClientAborted,
        };
        self.end(outcome);
    }
}

impl<E: OnEnd> fmt::Debug for ResponseBody<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("source", &self.source).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
