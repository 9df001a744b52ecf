//! The memory that a head or a TLS handshake takes before it is whole. A client that stops in the middle of one holds
//! that memory on each of its connections, before there is a request that could be refused.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::memory::{Client, Taken, Taking};

/// A head or handshake up to this length fits into the buffers that each connection has in any case.
pub(super) const SMALL: usize = 4 << 10;

/// What has arrived of something that is not whole yet.
#[derive(Debug)]
pub(super) struct Arriving(Taken);

impl Arriving {
    pub(super) fn new(client: &Arc<Client>) -> Self {
        Self(Taken::by(client))
    }

    /// This many bytes of it are here. Fails if there is no memory for them, and the connection must end.
    pub(super) fn grow_to(&mut self, length: usize) -> io::Result<()> {
        match self.0.grow_to(cost(length), Taking::Begun) {
            true => Ok(()),
            false => {
                Err(io::Error::new(io::ErrorKind::OutOfMemory, "what arrives takes more memory than there is for it"))
            }
        }
    }

    /// Only this many bytes are left of it.
    pub(super) fn shrink_to(&mut self, length: usize) {
        self.0.shrink_to(cost(length));
    }
}

/// Buffers double as they grow.
const fn cost(length: usize) -> usize {
    length.saturating_sub(SMALL).saturating_mul(2)
}

/// The bytes of a connection below TLS, which are counted until the handshake is over.
#[derive(Debug)]
pub(super) struct Handshaking<T> {
    inner: T,
    length: usize,
    arriving: Option<Arriving>,
}

impl<T> Handshaking<T> {
    pub(super) fn new(inner: T, client: &Arc<Client>) -> Self {
        Self { inner, length: 0, arriving: Some(Arriving::new(client)) }
    }

    /// The handshake is over.
    pub(super) fn end(&mut self) {
        self.arriving = None;
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Handshaking<T> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(context, buffer))?;
        if let Some(arriving) = &mut this.arriving {
            this.length += buffer.filled().len() - before;
            arriving.grow_to(this.length)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Handshaking<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(context, slices)
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::memory::RequestMemory;

    #[tokio::test]
    async fn only_what_arrives_within_the_handshake_and_is_not_small_takes_memory() {
        let memory = RequestMemory::default();
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let mut ours = Handshaking::new(ours, &memory.client(None));
        let mut read = vec![0; SMALL];
        for (taken, ends) in [(0, false), (2 * SMALL, true), (0, false)] {
            theirs.write_all(&read).await.unwrap();
            ours.read_exact(&mut read).await.unwrap();
            assert_eq!(memory.taken(), taken);
            if ends {
                ours.end();
            }
        }
        memory.set_limit(SMALL);
        let mut other = Arriving::new(&memory.client(None));
        assert!(other.grow_to(SMALL).is_ok(), "small ones go on");
        assert_eq!(other.grow_to(2 * SMALL).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    }
}
