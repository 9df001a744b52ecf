//! The body of an upstream's response, tied to its connection.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{UpstreamErrorKind, pool::Lease};
use crate::body::BodyError;

/// The body of a response. When it has ended, its connection is free for the next request. If it is dropped before, the
/// connection is closed (HTTP/1.1) or the stream is reset (HTTP/2), the latter once the request body has ended too, as
/// hyper continues to send that. Only HTTP/2 trailers are passed on.
#[derive(Debug)]
pub struct UpstreamBody {
    incoming: Incoming,
    lease: Option<Lease>,
    end: End,
}

/// What happens at the end of the response.
#[derive(Debug)]
enum End {
    Passes,
    /// The end will be held back until the request is handed over: the client would stop sending when it sees it.
    Waits,
    /// The end is being held back, along with the last data of the response.
    Held(Option<Bytes>),
}

impl UpstreamBody {
    /// `holds`: hold back the end of the response until the request is handed over.
    pub(super) fn new(incoming: Incoming, lease: Lease, holds: bool) -> Self {
        let end = if holds { End::Waits } else { End::Passes };
        let mut body = Self { incoming, lease: Some(lease), end };
        if body.incoming.is_end_stream() {
            body.finish();
        }
        body
    }

    fn finish(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.finish();
        }
    }

    /// Names the client that the body is sent to, by its network or as one behind a shared address. If it does not read,
    /// the body may be ended for other requests.
    #[must_use]
    pub(crate) fn read_by(self, network: Option<IpAddr>) -> Self {
        if let Some(lease) = &self.lease {
            lease.progress().read_by(network);
        }
        self
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if matches!(self.end, End::Held(_)) {
            return self.poll_end(cx);
        }
        let Some(lease) = &self.lease else { return Poll::Ready(None) };
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                lease.progress().touch();
                let is_trailers = frame.is_trailers();
                let is_http1 = matches!(lease, Lease::Http1(_));
                if is_trailers || self.incoming.is_end_stream() {
                    if matches!(self.end, End::Waits) {
                        self.end = End::Held(frame.into_data().ok());
                        return self.poll_end(cx);
                    }
                    self.finish();
                }
                if is_trailers && is_http1 {
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let error = match lease.progress().exceeded() {
                    _ if lease.progress().is_expired() => BodyError::Idle,
                    // The HTTP library fails the response along with the upload, as if the upstream had done so.
                    Some(limit) => BodyError::TooLarge(limit),
                    None => BodyError::Upstream(error),
                };
                self.lease = None;
                Poll::Ready(Some(Err(error)))
            }
            // hyper treats RST_STREAM with NO_ERROR as an end, but it is one only for a complete response (RFC 9113
            // section 8.1).
            Poll::Ready(None) if matches!(lease, Lease::Http2(_)) && !self.incoming.is_end_stream() => {
                self.lease = None;
                Poll::Ready(Some(Err(BodyError::Unfinished)))
            }
            Poll::Ready(None) if matches!(self.end, End::Waits) => {
                self.end = End::Held(None);
                self.poll_end(cx)
            }
            Poll::Ready(None) => {
                self.finish();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let progress = Arc::clone(lease.progress());
                if progress.poll_expired(cx).is_ready() {
                    self.lease = None;
                    return Poll::Ready(Some(Err(BodyError::Idle)));
                }
                Poll::Pending
            }
        }
    }

    fn poll_end(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(lease) = &self.lease else { return Poll::Ready(None) };
        let last = match (ready!(lease.progress().poll_handed_over(cx)), &mut self.end) {
            (Ok(()), End::Held(last)) => last.take(),
            (Ok(()), _) => None,
            (Err(kind), _) => {
                self.lease = None;
                return Poll::Ready(Some(Err(match kind {
                    UpstreamErrorKind::RequestBodyTooLarge(limit) => BodyError::TooLarge(limit),
                    _ => BodyError::Idle,
                })));
            }
        };
        self.finish();
        Poll::Ready(last.map(|data| Ok(Frame::data(data))))
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = this.poll_next(cx);
        if let Some(lease) = &this.lease {
            lease.progress().set_unread(polled.is_ready());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.lease.is_none() || (self.incoming.is_end_stream() && !matches!(self.end, End::Held(_)))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.end {
            End::Held(Some(data)) => SizeHint::with_exact(u64::try_from(data.len()).unwrap_or(u64::MAX)),
            _ => self.incoming.size_hint(),
        }
    }
}
