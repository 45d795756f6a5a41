//! One connection by Trojan, inside of TLS.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{HASH, Token};
use crate::data::outbound::Target;
use crate::data::outbound::pending::Pending;
use crate::data::outbound::wire::{self, Command};

/// The most payload that goes with the head: one TLS record holds both.
const FIRST_PAYLOAD: usize = 15 << 10;

/// A connection to a target by a Trojan server. What is read and written is what the target sends and gets.
///
/// Nothing is sent before the first write, flush or shutdown. The first write sends the target and the payload together.
/// For a server that speaks first, flush: that sends the target alone.
pub struct TrojanStream<S> {
    inner: S,
    /// What goes before all else: the head, then also the payload of the first write.
    out: Pending,
    has_started: bool,
}

impl<S> TrojanStream<S> {
    /// Over `inner`, which is encrypted and connected to the server. Datagrams have a target, too, which servers do not
    /// care for.
    #[must_use]
    pub fn new(inner: S, token: &Token, command: Command, target: Target<'_>) -> Self {
        let mut out = Vec::with_capacity(HASH + 2 + 1 + 19 + 2);
        out.extend_from_slice(token.as_bytes());
        out.extend_from_slice(b"\r\n");
        out.push(command as u8);
        wire::put_target(&mut out, target);
        out.extend_from_slice(b"\r\n");
        Self {
            inner,
            out: Pending::new(out),
            has_started: false,
        }
    }

    /// The stream inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: AsyncWrite + Unpin> TrojanStream<S> {
    /// Gives the inner stream what goes before all else.
    fn poll_start(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.has_started = true;
        ready!(self.out.poll_drain(Pin::new(&mut self.inner), cx))?;
        // The token was in it.
        self.out = Pending::default();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TrojanStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TrojanStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        payload: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.has_started || payload.is_empty() {
            if !payload.is_empty() {
                ready!(this.poll_start(cx))?;
            }
            return Pin::new(&mut this.inner).poll_write(cx, payload);
        }
        let payload = &payload[..payload.len().min(FIRST_PAYLOAD)];
        this.out.bytes.extend_from_slice(payload);
        // What does not go now goes with the next write or flush.
        match this.poll_start(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(payload.len())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_start(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_start(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

/// Without what is still to be sent: that holds the token.
impl<S: fmt::Debug> fmt::Debug for TrojanStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrojanStream")
            .field("inner", &self.inner)
            .field("has_started", &self.has_started)
            .finish_non_exhaustive()
    }
}
