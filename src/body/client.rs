//! The body of a client's request, as the listener receives it.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::BodyError;
use crate::downstream::Protocol;

/// The streamed body of a client's request. It ends only where the client ended it: hyper takes an HTTP/2 stream that
/// is reset with NO_ERROR for a complete one, and proxies use this code to reset what their own client broke off (RFC
/// 9113 section 8.1 allows it for responses only).
#[derive(Debug)]
pub struct ClientBody {
    incoming: Incoming,
    protocol: Protocol,
}

impl ClientBody {
    pub fn new(incoming: Incoming, protocol: Protocol) -> Self {
        Self { incoming, protocol }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        Poll::Ready(match ready!(Pin::new(&mut this.incoming).poll_frame(cx)) {
            None if this.protocol == Protocol::Http2 && !this.incoming.is_end_stream() => Some(Err(BodyError::Reset)),
            frame => frame.map(|frame| frame.map_err(BodyError::Client)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Mutex};

    use http::{HeaderMap, Request, Response};
    use http_body_util::{BodyExt as _, Empty};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::sync::oneshot;

    use super::*;

    /// How a client ends its stream after the first bytes of a body.
    #[derive(Clone, Copy, Debug)]
    enum End {
        Data,
        Trailers,
        Reset(h2::Reason),
    }

    /// The rest of a body over HTTP/2 after its first frame: how many bytes, and whether it was complete.
    async fn rest(end: End) -> Result<usize, BodyError> {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (hand_over, handed_over) = oneshot::channel();
        let hand_over = Mutex::new(Some(hand_over));
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let _ = hand_over.lock().unwrap().take().unwrap().send(request.into_body());
            std::future::pending::<Result<Response<Empty<Bytes>>, Infallible>>()
        });
        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::spawn(serving.serve_connection(TokioIo::new(server), service));
        let (mut sender, connection) = h2::client::handshake(client).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post("http://door.test/").body(()).unwrap();
        let (_answer, mut stream) = sender.send_request(request, false).unwrap();
        stream.send_data(Bytes::from_static(b"begun"), false).unwrap();
        let mut body = ClientBody::new(handed_over.await.unwrap(), Protocol::Http2);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "begun");
        match end {
            End::Data => stream.send_data(Bytes::from_static(b"done"), true).unwrap(),
            End::Trailers => stream.send_trailers(HeaderMap::new()).unwrap(),
            End::Reset(reason) => stream.send_reset(reason),
        }
        body.collect().await.map(|rest| rest.to_bytes().len())
    }

    /// The beginning of an upload was taken for the whole of it.
    #[tokio::test]
    async fn a_body_over_http2_is_whole_only_if_the_client_ended_it() {
        assert_eq!(rest(End::Data).await.unwrap(), 4);
        assert_eq!(rest(End::Trailers).await.unwrap(), 0);
        let reset = rest(End::Reset(h2::Reason::NO_ERROR)).await.unwrap_err();
        assert!(matches!(reset, BodyError::Reset), "{reset:?}");
        let cancelled = rest(End::Reset(h2::Reason::CANCEL)).await.unwrap_err();
        assert!(matches!(cancelled, BodyError::Client(_)), "{cancelled:?}");
    }
}
