//! A connection that is read to its end after writing has failed.
//!
//! A server that refuses an upload may respond and close without reading the rest, which resets the connection. hyper
//! gives up at the failed write, and loses the response that has already arrived. Here, a failed write counts as
//! successful, and the reading side reports the outcome: the response or, where the bytes end, the error of the write.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Continues to read after the peer has closed its side.
#[derive(Debug)]
pub(super) struct ReadOn<T> {
    inner: T,
    /// The error with which writing failed.
    lost: Option<io::ErrorKind>,
}

impl<T> ReadOn<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, lost: None }
    }

    /// The result of a write; `taken` if the peer has closed the connection.
    fn written<V>(&mut self, polled: Poll<io::Result<V>>, taken: V) -> Poll<io::Result<V>> {
        match polled {
            Poll::Ready(Err(error)) if is_gone(error.kind()) => {
                self.lost = Some(error.kind());
                Poll::Ready(Ok(taken))
            }
            polled => polled,
        }
    }
}

/// Whether a write error means that the peer has closed the connection. Reading ends then too.
fn is_gone(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadOn<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.remaining();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buffer))?;
        match this.lost {
            // This must not look like a normal end, by which a response that ends with its connection would look
            // complete.
            Some(kind) if before > 0 && buffer.remaining() == before => Poll::Ready(Err(kind.into())),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadOn<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.lost.is_some() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let polled = Pin::new(&mut this.inner).poll_write(cx, bytes);
        this.written(polled, bytes.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let length = slices.iter().map(|slice| slice.len()).sum();
        if this.lost.is_some() {
            return Poll::Ready(Ok(length));
        }
        let polled = Pin::new(&mut this.inner).poll_write_vectored(cx, slices);
        this.written(polled, length)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lost.is_some() {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut this.inner).poll_flush(cx);
        this.written(polled, ())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lost.is_some() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use bytes::Bytes;
    use http::{Request, StatusCode};
    use http_body_util::{BodyExt as _, Full};
    use hyper_util::rt::TokioIo;

    use super::*;

    /// A peer that reads the head of a request, has responded by the time that more arrives, and has then closed the
    /// connection.
    #[derive(Debug)]
    struct Refuses {
        answer: io::Cursor<&'static [u8]>,
        taken: usize,
        is_gone: bool,
        reader: Option<Waker>,
    }

    impl AsyncRead for Refuses {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if !self.is_gone {
                self.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Pin::new(&mut self.answer).poll_read(cx, buffer)
        }
    }

    impl AsyncWrite for Refuses {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            if self.taken > 0 {
                self.is_gone = true;
                self.reader.take().into_iter().for_each(Waker::wake);
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            self.taken = bytes.len().min(1000);
            Poll::Ready(Ok(self.taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// The outcome of an upload: the status, and the body if it is complete; `None` without a response.
    async fn upload(answer: &'static [u8]) -> Option<(StatusCode, Option<Bytes>)> {
        let peer = Refuses { answer: io::Cursor::new(answer), taken: 0, is_gone: false, reader: None };
        let io = TokioIo::new(ReadOn::new(peer));
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let body = Full::new(Bytes::from(vec![b'x'; 1 << 20]));
        let request = Request::put("/").header("host", "a").body(body).unwrap();
        let response = sender.send_request(request).await.ok()?;
        let status = response.status();
        Some((status, response.into_body().collect().await.ok().map(http_body_util::Collected::to_bytes)))
    }

    #[tokio::test]
    async fn an_answer_that_came_before_the_connection_was_reset_is_read() {
        let large = StatusCode::PAYLOAD_TOO_LARGE;
        assert_eq!(
            upload(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno").await,
            Some((large, Some(Bytes::from_static(b"no"))))
        );
        // How much of it is missing is unknown.
        assert_eq!(upload(b"HTTP/1.1 413 Too Large\r\n\r\nno").await, Some((large, None)));
        assert_eq!(upload(b"HTTP/1.1 413 Too").await, None);
        assert_eq!(upload(b"").await, None);
    }
}
