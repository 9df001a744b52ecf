//! The bytes of a connection, above TLS: what hyper reads from and writes to. Notes what the deadlines need to know,
//! and keeps the connection counted for as long as anything holds its bytes, upgraded streams included.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    arriving::Arriving,
    frames::Frames,
    framing::Scanner,
    liveness::{Command, Liveness, Phase},
    registry::Registered,
};
use crate::memory::Client;

/// How much is read before it is known which protocol a connection in clear text speaks: the HTTP/2 preface.
pub(super) const SNIFF: usize = 24;

/// Bytes that were read before hyper and that it must read again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Prefix {
    pub(super) bytes: [u8; SNIFF],
    pub(super) length: usize,
    given: usize,
}

impl Prefix {
    pub(super) fn filled(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    pub(super) fn room(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.length..).unwrap_or_default()
    }
}

/// The parser that follows the bytes of a connection.
#[derive(Debug)]
pub(super) enum Follower {
    Http1(Scanner),
    Http2(Frames),
}

#[derive(Debug)]
pub(super) struct Io<T> {
    inner: T,
    prefix: Prefix,
    follower: Follower,
    liveness: Arc<Liveness>,
    /// HTTP/1.1: how much has arrived of a head that is not whole.
    of_head: usize,
    arriving: Arriving,
    counted: Registered,
}

impl<T> Io<T> {
    pub(super) fn new(
        inner: T,
        prefix: Prefix,
        follower: Follower,
        liveness: Arc<Liveness>,
        counted: Registered,
        client: &Arc<Client>,
    ) -> Self {
        Self { inner, prefix, follower, liveness, of_head: 0, arriving: Arriving::new(client), counted }
    }

    /// Called on every poll of an upgraded stream, whose task does not belong to the listener and cannot be stopped.
    fn check_upgraded(&self, context: &Context<'_>) -> io::Result<()> {
        if self.liveness.phase() != Phase::Upgraded {
            return Ok(());
        }
        self.liveness.register(context);
        if self.liveness.is_commanded(Command::Abort) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection is closed by shutdown"));
        }
        Ok(())
    }

    /// Notes the result of a write of `slices`.
    fn written<'a>(&mut self, result: &Poll<io::Result<usize>>, slices: impl IntoIterator<Item = &'a [u8]>) {
        match result {
            Poll::Ready(Ok(count)) if *count > 0 => {
                self.liveness.note_write();
                if let Follower::Http2(frames) = &mut self.follower {
                    let mut left = *count;
                    for slice in slices {
                        let here = slice.len().min(left);
                        frames.sent(slice.get(..here).unwrap_or_default());
                        left -= here;
                    }
                    self.liveness.note_small_pieces(frames.ended_for_small_pieces());
                }
            }
            Poll::Ready(_) => {}
            Poll::Pending => self.liveness.note_blocked(),
        }
    }

    fn arrived(&mut self, bytes: &[u8]) -> io::Result<()> {
        let has_room = match &mut self.follower {
            Follower::Http1(scanner) => {
                match self.liveness.phase() {
                    // Of a connection that only lingers, nothing is kept.
                    Phase::Upgraded | Phase::Opening => return Ok(()),
                    Phase::Idle => self.liveness.enter(Phase::Head),
                    _ => {}
                }
                scanner.scan(bytes);
                self.liveness.note_scan(scanner);
                // Empty lines before a head, however many, are no part of it for the scanner.
                let is_before_head =
                    self.liveness.phase() == Phase::Head && !self.liveness.has_head() && !scanner.is_within_body();
                let is_unfinished = scanner.is_within_head() || is_before_head;
                self.of_head = if is_unfinished { self.of_head + bytes.len() } else { 0 };
                // hyper keeps the buffer of the largest head, so what it takes is not given back with the head.
                self.arriving.grow_to(self.of_head)
            }
            Follower::Http2(frames) => {
                frames.received(bytes);
                let length = frames.of_head();
                self.arriving.shrink_to(length);
                let has_room = self.arriving.grow_to(length);
                // A connection has one such head at most, and that of a proxy carries the requests of others.
                if self.liveness.is_shared() { Ok(()) } else { has_room }
            }
        };
        has_room.inspect_err(|_| self.counted.lacks_memory())
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Io<T> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check_upgraded(context)?;
        let before = buffer.filled().len();
        if this.prefix.given < this.prefix.length {
            let rest = this.prefix.bytes.get(this.prefix.given..this.prefix.length).unwrap_or_default();
            let here = rest.len().min(buffer.remaining());
            buffer.put_slice(rest.get(..here).unwrap_or_default());
            this.prefix.given += here;
            // Together with what came after it: for a second read hyper makes room, which an idle connection then
            // keeps. An end or a failure is met again by the next read.
            let _ = Pin::new(&mut this.inner).poll_read(context, buffer);
        } else {
            ready!(Pin::new(&mut this.inner).poll_read(context, buffer))?;
        }
        let arrived = buffer.filled().get(before..).unwrap_or_default();
        if !arrived.is_empty() {
            this.arrived(arrived)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Io<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check_upgraded(context)?;
        let result = Pin::new(&mut this.inner).poll_write(context, bytes);
        this.written(&result, [bytes]);
        result
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check_upgraded(context)?;
        let result = Pin::new(&mut this.inner).poll_write_vectored(context, slices);
        this.written(&result, slices.iter().map(|slice| &**slice));
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;
    use crate::{
        config::raw::Limits,
        downstream::{admission::Admission, drain::Drain, framing::Defect, metrics::Metrics, registry::Registry},
        memory::RequestMemory,
    };

    /// A connection in a phase, and the client's end of it.
    fn connection(phase: Phase) -> (Io<DuplexStream>, DuplexStream) {
        let liveness = Arc::new(Liveness::new(&Limits::default()));
        liveness.enter(phase);
        let registry = Arc::new(Registry::new(Drain::default(), Metrics::default()));
        let admitted = Arc::new(Admission::default()).admit(1).unwrap();
        let counted = registry.register(1, Arc::clone(&liveness), Arc::new(Limits::default()), admitted);
        let (ours, theirs) = tokio::io::duplex(256);
        let client = RequestMemory::default().client(None);
        (Io::new(ours, Prefix::default(), Follower::Http1(Scanner::default()), liveness, counted, &client), theirs)
    }

    /// Makes the task that copies an upgraded stream stop, in whichever direction it polls next.
    #[test]
    fn an_upgraded_stream_that_is_aborted_ends_at_its_next_poll() {
        type Operation = fn(Pin<&mut Io<DuplexStream>>, &mut Context<'_>) -> Poll<io::Result<usize>>;
        let operations: [(&str, Operation); 3] = [
            ("read", |io, context| io.poll_read(context, &mut ReadBuf::new(&mut [0; 8])).map_ok(|()| 0)),
            ("write", |io, context| io.poll_write(context, b"x")),
            ("vectored write", |io, context| io.poll_write_vectored(context, &[io::IoSlice::new(b"x")])),
        ];
        let mut context = Context::from_waker(std::task::Waker::noop());
        for (name, operation) in operations {
            for (phase, command, ends) in [
                (Phase::Upgraded, Command::Abort, true),
                (Phase::Upgraded, Command::Finish, false),
                (Phase::Busy, Command::Abort, false),
            ] {
                let (mut io, _client) = connection(phase);
                io.liveness.command(command);
                let outcome = operation(Pin::new(&mut io), &mut context);
                let ended =
                    matches!(&outcome, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted);
                assert_eq!(ended, ends, "{name} {phase:?} {command:?}: {outcome:?}");
            }
        }
    }

    /// Nothing of a body is kept after its request has been answered, nor of what a client sends after a refusal.
    #[test]
    fn only_what_belongs_to_a_head_counts_as_an_unfinished_one() {
        let (mut io, _client) = connection(Phase::Head);
        let mut arrive = |phase, bytes: &[u8]| {
            io.liveness.enter(phase);
            io.arrived(bytes).unwrap();
            let is_whole = io.liveness.has_head();
            if is_whole {
                io.liveness.begin_request();
                io.liveness.end_request(true, io.liveness.swept());
            }
            (io.of_head, is_whole)
        };
        assert_eq!(arrive(Phase::Head, b"\r\n\r\n"), (4, false));
        assert_eq!(arrive(Phase::Head, b"POST / HTTP/1.1\r\nHost: a\r\n"), (30, false));
        assert_eq!(arrive(Phase::Head, b"Content-Length: 9\r\n\r\n"), (0, true));
        assert_eq!(arrive(Phase::Idle, b"12345"), (0, false));
        assert_eq!(arrive(Phase::Opening, b"GET / HTTP/1.1\r\nHost: a\r\n"), (0, false));
    }

    /// One head cost all requests that a proxy had sent over the same connection.
    #[test]
    fn an_unfinished_head_without_memory_ends_the_http2_connection_of_a_client_and_not_of_a_proxy() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        // The beginning of a HEADERS frame of 16,000 bytes.
        bytes.extend_from_slice(&[0, 0x3e, 0x80, 1, 0, 0, 0, 0, 1]);
        bytes.resize(bytes.len() + 12_000, 0);
        let memory = RequestMemory::default();
        memory.set_limit(8 << 10);
        for is_shared in [false, true] {
            let (mut io, _client) = connection(Phase::Head);
            io.follower = Follower::Http2(Frames::default());
            io.arriving = Arriving::new(&memory.client(None));
            if is_shared {
                io.liveness.mark_shared();
            }
            assert_eq!(io.arrived(&bytes).is_ok(), is_shared);
        }
    }

    #[test]
    fn bytes_of_an_upgraded_stream_are_not_parsed_as_a_request() {
        let bytes = b"GET / HTTP/1.1\nHost: a\r\n\r\n";
        for (phase, defect) in [(Phase::Head, Some(Defect::BareLineFeed)), (Phase::Upgraded, None)] {
            let (mut io, _client) = connection(phase);
            io.arrived(bytes).unwrap();
            assert_eq!(io.liveness.defect(), defect, "{phase:?}");
        }
    }
}
