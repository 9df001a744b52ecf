//! Joins two connections after an upgrade: bytes are copied both ways until both have ended, nothing moves for too
//! long, or the stream is cut. Memory is two buffers, whatever either side sends.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Instant, sleep_until, timeout},
};

use super::websocket::{FrameTracker, close_frame};
use crate::{
    body::EndedBy,
    streams::{CutReason, StreamHandle},
};

/// The size of the buffer of each direction.
const BUFFER: usize = 16 << 10;

/// How long a cut WebSocket may take to end its current frame, and its client to receive the close frame.
const GOODBYE: Duration = Duration::from_secs(1);

/// How an upgraded connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpliceEnd {
    pub outcome: EndedBy,
    pub bytes_to_client: u64,
    pub bytes_to_upstream: u64,
}

/// One direction.
struct Direction {
    buffer: Box<[u8]>,
    /// The part of the buffer that is read and not yet written: from `start` to `end`.
    start: usize,
    end: usize,
    has_ended: bool,
    is_done: bool,
    bytes: u64,
    /// Tracks what is written, where frames matter.
    frames: Option<FrameTracker>,
}

enum Fault {
    Read,
    Write,
}

impl Direction {
    fn new(frames: Option<FrameTracker>) -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self { buffer, start: 0, end: 0, has_ended: false, is_done: false, bytes: 0, frames }
    }

    /// Copies as much as possible. Ready when the reader has ended and the writer is shut down, or on an error.
    fn poll_copy<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        moved: &mut bool,
    ) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while !self.is_done {
            if self.start < self.end {
                ready!(self.poll_write(cx, writer)).map_err(|_| Fault::Write)?;
                *moved = true;
            } else if self.has_ended {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(|_| Fault::Write)?;
                self.is_done = true;
            } else {
                match self.poll_read(cx, reader) {
                    Poll::Ready(result) => {
                        result.map_err(|_| Fault::Read)?;
                        *moved = true;
                    }
                    Poll::Pending => {
                        // Nothing may stay behind in a TLS record while this waits.
                        ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(|_| Fault::Write)?;
                        return Poll::Pending;
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read<R: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, reader: &mut R) -> Poll<io::Result<()>> {
        let mut buffer = ReadBuf::new(&mut self.buffer);
        ready!(Pin::new(reader).poll_read(cx, &mut buffer))?;
        (self.start, self.end) = (0, buffer.filled().len());
        self.has_ended = self.end == 0;
        Poll::Ready(Ok(()))
    }

    fn poll_write<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, writer: &mut W) -> Poll<io::Result<()>> {
        let waiting = self.buffer.get(self.start..self.end).unwrap_or_default();
        let written = ready!(Pin::new(writer).poll_write(cx, waiting))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.wrote(written);
        Poll::Ready(Ok(()))
    }

    fn wrote(&mut self, written: usize) {
        if let Some(frames) = &mut self.frames {
            frames.advance(self.buffer.get(self.start..self.start + written).unwrap_or_default());
        }
        self.start += written;
        self.bytes += written as u64;
    }

    /// Copies up to the end of the current frame, and no further.
    async fn finish_frame<R, W>(&mut self, reader: &mut R, writer: &mut W) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while let Some(frames) = &self.frames
            && !frames.is_between_frames()
        {
            if self.start == self.end {
                poll_fn(|cx| self.poll_read(cx, reader)).await?;
                if self.has_ended {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            } else {
                let waiting = self.buffer.get(self.start..self.end).unwrap_or_default();
                let rest = frames.rest_of_frame(waiting);
                let written = writer.write(waiting.get(..rest).unwrap_or_default()).await?;
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                self.wrote(written);
            }
        }
        Ok(())
    }
}

/// Joins `client` and `upstream` until they end or `handle` is cut. With `is_websocket`, a cut client gets a close
/// frame with the reason.
pub(super) async fn splice<C, U>(
    mut client: C,
    mut upstream: U,
    is_websocket: bool,
    idle: Duration,
    handle: &StreamHandle,
) -> SpliceEnd
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let mut to_client = Direction::new(is_websocket.then(FrameTracker::default));
    let mut to_upstream = Direction::new(None);
    let mut last = Instant::now();
    let outcome = {
        let mut timer = pin!(sleep_until(last + idle));
        // Each connection is the reader of one direction and the writer of the other.
        poll_fn(|cx| {
            if let Poll::Ready(reason) = handle.poll_cut(cx) {
                return Poll::Ready(EndedBy::Cut(reason));
            }
            let mut moved = false;
            let down = to_client.poll_copy(cx, &mut upstream, &mut client, &mut moved);
            match &down {
                Poll::Ready(Err(Fault::Read)) => return Poll::Ready(EndedBy::UpstreamAborted),
                Poll::Ready(Err(Fault::Write)) => return Poll::Ready(EndedBy::ClientAborted),
                _ => {}
            }
            let up = to_upstream.poll_copy(cx, &mut client, &mut upstream, &mut moved);
            match &up {
                Poll::Ready(Err(Fault::Read)) => return Poll::Ready(EndedBy::ClientAborted),
                Poll::Ready(Err(Fault::Write)) => return Poll::Ready(EndedBy::UpstreamAborted),
                _ => {}
            }
            if down.is_ready() && up.is_ready() {
                return Poll::Ready(EndedBy::Complete);
            }
            if moved {
                last = Instant::now();
            }
            // Reset only when it fires, not with each byte.
            while timer.as_mut().poll(cx).is_ready() {
                if last + idle <= Instant::now() {
                    return Poll::Ready(EndedBy::Cut(CutReason::Idle));
                }
                timer.as_mut().reset(last + idle);
            }
            Poll::Pending
        })
        .await
    };
    if let EndedBy::Cut(reason) = outcome {
        handle.end(reason);
        if is_websocket && !to_client.is_done {
            // Bounded by a timeout, as the client may not read.
            let _ = timeout(GOODBYE, say_goodbye(&mut to_client, &mut client, &mut upstream, reason)).await;
        }
    }
    SpliceEnd { outcome, bytes_to_client: to_client.bytes, bytes_to_upstream: to_upstream.bytes }
}

async fn say_goodbye<C, U>(
    to_client: &mut Direction,
    client: &mut C,
    upstream: &mut U,
    reason: CutReason,
) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + Unpin,
{
    to_client.finish_frame(upstream, client).await?;
    client.write_all(&close_frame(reason)).await?;
    client.shutdown().await?;
    // Closing a socket with unread bytes resets it, and the client might lose the close frame.
    let mut sink = [0; 1024];
    while client.read(&mut sink).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;
    use crate::{
        clock::Timestamp,
        streams::{
            Registry,
            tests::{registry, watch},
        },
    };

    const IDLE: Duration = Duration::from_secs(3600);

    fn handle() -> (Registry, StreamHandle) {
        let (registry, clock) = registry();
        let handle = registry.register(watch("alice", Timestamp::MAX, clock.moment()));
        (registry, handle)
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_each_half_closes_separately() {
        let (mut client, client_end) = duplex(64);
        let (mut upstream, upstream_end) = duplex(64);
        let (_registry, handle) = handle();
        let splice = tokio::spawn(async move { splice(client_end, upstream_end, false, IDLE, &handle).await });
        client.write_all(b"ping").await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        upstream.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"ping");
        upstream.write_all(b"the answer after the end").await.unwrap();
        upstream.shutdown().await.unwrap();
        got.clear();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"the answer after the end");
        let end = splice.await.unwrap();
        assert_eq!(end, SpliceEnd { outcome: EndedBy::Complete, bytes_to_client: 24, bytes_to_upstream: 4 });
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_uses_a_bounded_buffer() {
        const PIPE: usize = 4 * BUFFER;
        let (_client, client_end) = duplex(1024);
        let (mut upstream, upstream_end) = duplex(PIPE);
        let (registry, handle) = handle();
        let splice = tokio::spawn(async move { splice(client_end, upstream_end, false, IDLE, &handle).await });
        let mut taken = 0;
        while let Ok(written) = timeout(Duration::from_millis(200), upstream.write(&[0; 512])).await {
            taken += written.unwrap();
            assert!(taken <= PIPE + BUFFER + 1024, "more than the pipes and the buffer was taken");
        }
        assert!(taken > PIPE);
        registry.close_matching(|_| true, CutReason::Revoked);
        assert_eq!(splice.await.unwrap().outcome, EndedBy::Cut(CutReason::Revoked));
    }

    #[tokio::test]
    async fn a_websocket_is_closed_between_frames_and_spdy_is_cut() {
        for (is_websocket, expected) in
            [(true, b"\x82\x05hello\x88\x09\x03\xf0revoked".as_slice()), (false, b"\x82\x05he".as_slice())]
        {
            let (mut client, client_end) = duplex(1024);
            let (mut upstream, upstream_end) = duplex(1024);
            let (registry, handle) = handle();
            let splice =
                tokio::spawn(async move { splice(client_end, upstream_end, is_websocket, IDLE, &handle).await });
            upstream.write_all(b"\x82\x05he").await.unwrap();
            let mut got = vec![0; 4];
            client.read_exact(&mut got).await.unwrap();
            registry.close_matching(|_| true, CutReason::Revoked);
            // The current frame is completed; the next one is not started.
            let _ = upstream.write_all(b"llo\x82\x03bye").await;
            let read = async {
                client.read_to_end(&mut got).await.unwrap();
                drop(client);
            };
            let (end, ()) = tokio::join!(splice, read);
            assert_eq!(got, expected);
            assert_eq!(end.unwrap().outcome, EndedBy::Cut(CutReason::Revoked));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn kubernetes_t4_only_a_connection_on_which_nothing_moves_is_idle() {
        let (mut client, client_end) = duplex(1024);
        let (mut upstream, upstream_end) = duplex(1024);
        let (_registry, handle) = handle();
        let idle = Duration::from_secs(100);
        let splice = tokio::spawn(async move { splice(client_end, upstream_end, false, idle, &handle).await });
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(90)).await;
            client.write_all(b"x").await.unwrap();
            upstream.read_u8().await.unwrap();
            assert!(!splice.is_finished());
        }
        let before = Instant::now();
        assert_eq!(splice.await.unwrap().outcome, EndedBy::Cut(CutReason::Idle));
        assert!((100..=101).contains(&before.elapsed().as_secs()));
    }
}
