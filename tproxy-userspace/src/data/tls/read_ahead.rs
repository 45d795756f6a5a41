//! Large reads for a reader of small pieces: the library of TLS asks for 4 KiB at a time.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use crate::data::read_size::ReadSize;

/// A stream that is read from in pieces that grow with the traffic. While nothing comes, it has no buffer. Writes go
/// through as they are.
#[derive(Debug)]
pub struct ReadAhead<S> {
    inner: S,
    /// Read, and not yet asked for.
    bytes: BytesMut,
    ask: ReadSize,
}

impl<S> ReadAhead<S> {
    /// Over this stream.
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            bytes: BytesMut::new(),
            ask: ReadSize::default(),
        }
    }
}

impl<S: AsyncRead + Unpin> ReadAhead<S> {
    /// Fills the buffer, which is empty. It stays empty at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.bytes.reserve(self.ask.get());
        let reading = pin!(self.inner.read_buf(&mut self.bytes)).poll(cx);
        match reading {
            Poll::Ready(Ok(read)) => self.ask.came(read),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.bytes = BytesMut::new(),
        }
        reading.map_ok(|_| ())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.bytes.is_empty() {
            ready!(this.poll_fill(cx))?;
        }
        let length = this.bytes.len().min(into.remaining());
        into.put_slice(&this.bytes[..length]);
        this.bytes.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt as _, duplex};

    use super::*;
    use crate::data::read_size::{LEAST, MOST};

    /// What a reader of 100 bytes gets of so many, and the largest buffer that there was.
    async fn read(bytes: usize) -> (Vec<u8>, usize) {
        let (mut far, near) = duplex(1 << 20);
        let sent: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
        far.write_all(&sent).await.expect("there is room");
        drop(far);
        let mut near = ReadAhead::new(near);
        let (mut all, mut most) = (Vec::new(), 0);
        loop {
            let mut piece = [0; 100];
            let read = near.read(&mut piece).await.expect("no error");
            if read == 0 {
                assert!(all == sent);
                return (all, most);
            }
            all.extend_from_slice(&piece[..read]);
            most = most.max(near.bytes.capacity());
        }
    }

    #[tokio::test]
    async fn buffers_grow_with_the_traffic() {
        assert!(read(1_000).await.1 < 2 * LEAST);
        let (_, most) = read(1 << 20).await;
        assert!(most >= MOST / 2, "{most}");
        assert!(most <= 2 * MOST, "{most}");
    }

    #[tokio::test]
    async fn an_idle_stream_has_no_buffer() {
        let (mut far, near) = duplex(64);
        let mut near = ReadAhead::new(near);
        far.write_all(b"abc").await.expect("there is room");
        assert_eq!(near.read_u8().await.expect("a byte"), b'a');
        assert!(near.bytes.capacity() > 0);
        let mut rest = [0; 3];
        tokio::select! {
            biased;
            _ = near.read_exact(&mut rest) => unreachable!("there are only two"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(near.bytes.capacity(), 0);
    }
}
