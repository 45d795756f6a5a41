//! One connection by Shadowsocks, over any stream to the server.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use super::decode::{Decoded, Decoder, Fault};
use super::encode::{Encoder, random_salt};
use super::keys::Keys;
use super::unix_seconds;
use crate::data::outbound::pending::Pending;
use crate::data::outbound::{DialError, Peer, Target};
use crate::data::read_size::ReadSize;
use crate::data::stream::Duplex;

/// The most bytes that one write takes.
const MOST_WRITTEN: usize = 64 << 10;

/// A connection to a target by a Shadowsocks server. What is read and written is what the target sends and gets.
///
/// - **Nothing is sent before the first write, flush or shutdown.** The first write sends the target and the payload
///   together. For a server that speaks first, flush: that sends the target alone.
/// - What a write takes is encrypted at once and sent as the inner stream takes it, so flush before waiting for an answer.
/// - Shutdown ends the way to the server only; what the target still sends can be read.
/// - A server says nothing of a wrong password: it closes the connection, or waits. So an end of file before
///   [`has_answered`](Self::has_answered) can mean that, or a target that sent nothing.
pub struct ShadowsocksStream<S> {
    inner: S,
    keys: Arc<Keys>,
    up: Up,
    /// Encrypted and not yet taken by the inner stream.
    out: Pending,
    decoder: Decoder,
    received: BytesMut,
    /// Decrypted and not yet read.
    plain: BytesMut,
    ask: ReadSize,
    fault: Option<Fault>,
}

/// A target that is kept.
enum Whither {
    Address(SocketAddr),
    Name(Box<str>, u16),
}

impl From<Target<'_>> for Whither {
    fn from(target: Target<'_>) -> Self {
        match target {
            Target::Address(address) => Self::Address(address),
            Target::Name(name, port) => Self::Name(name.into(), port),
        }
    }
}

impl Whither {
    fn as_target(&self) -> Target<'_> {
        match self {
            Self::Address(address) => Target::Address(*address),
            Self::Name(name, port) => Target::Name(name, *port),
        }
    }
}

/// The way to the server.
enum Up {
    /// Nothing was sent.
    Waiting {
        salt: Vec<u8>,
        target: Whither,
    },
    Open(Box<Encoder>),
}

impl<S> ShadowsocksStream<S> {
    /// Over `inner`, which is connected to the server.
    pub fn new(inner: S, keys: &Arc<Keys>, target: Target<'_>) -> Self {
        let salt = random_salt(keys.method());
        Self {
            inner,
            decoder: Decoder::new(Keys::clone(keys), &salt),
            keys: Arc::clone(keys),
            up: Up::Waiting {
                salt,
                target: target.into(),
            },
            out: Pending::default(),
            received: BytesMut::new(),
            plain: BytesMut::new(),
            ask: ReadSize::default(),
            fault: None,
        }
    }

    /// Has the server shown that it has our key?
    pub fn has_answered(&self) -> bool {
        self.decoder.has_answered()
    }

    /// Why reading ended with an error, if that was not the inner stream's.
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Encrypts as much as one write takes, with the head before it if that is still to be sent.
    fn encrypt(&mut self, payload: &[u8]) -> usize {
        match &mut self.up {
            Up::Open(encoder) => {
                let payload = &payload[..payload.len().min(MOST_WRITTEN)];
                encoder.encode(payload, &mut self.out.bytes);
                payload.len()
            }
            Up::Waiting { salt, target } => {
                let target = target.as_target();
                let (encoder, taken) =
                    Encoder::start(&self.keys, salt, target, payload, &mut self.out.bytes);
                self.up = Up::Open(Box::new(encoder));
                taken
            }
        }
    }

    fn start(&mut self) {
        if matches!(self.up, Up::Waiting { .. }) {
            self.encrypt(&[]);
        }
    }
}

impl<S: AsyncWrite + Unpin> ShadowsocksStream<S> {
    /// Gives the inner stream what is encrypted.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.out.poll_drain(Pin::new(&mut self.inner), cx)
    }
}

impl<S: AsyncRead + Unpin> ShadowsocksStream<S> {
    /// Reads at least what makes `needs` bytes possible. Gives how many came.
    fn poll_receive(&mut self, cx: &mut Context<'_>, needs: usize) -> Poll<io::Result<usize>> {
        let missing = needs.saturating_sub(self.received.len());
        self.received.reserve(missing.max(self.ask.get()));
        let reading = pin!(self.inner.read_buf(&mut self.received)).poll(cx);
        match reading {
            Poll::Pending if self.received.is_empty() => {
                // An idle connection needs no memory.
                self.received = BytesMut::new();
                Poll::Pending
            }
            Poll::Ready(Ok(read)) => {
                self.ask.came(read);
                Poll::Ready(Ok(read))
            }
            other => other,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ShadowsocksStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        loop {
            let length = this.plain.len().min(buffer.remaining());
            buffer.put_slice(&this.plain[..length]);
            this.plain.advance(length);
            let has_read = buffer.filled().len() > before;
            if buffer.remaining() == 0 || (this.fault.is_some() && has_read) {
                return Poll::Ready(Ok(()));
            }
            if let Some(fault) = this.fault {
                return Poll::Ready(Err(fault.into()));
            }
            match this.decoder.decode(&mut this.received, unix_seconds()) {
                Err(fault) => this.fault = Some(fault),
                Ok(Decoded::Plain(plain)) => this.plain = plain,
                Ok(Decoded::Needs(_)) if has_read => return Poll::Ready(Ok(())),
                Ok(Decoded::Needs(needs)) => {
                    // The last part still holds the buffer that is to be filled again.
                    this.plain = BytesMut::new();
                    if ready!(this.poll_receive(cx, needs))? == 0 {
                        match this.decoder.end(&this.received) {
                            Ok(()) => return Poll::Ready(Ok(())),
                            Err(fault) => this.fault = Some(fault),
                        }
                    }
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ShadowsocksStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        payload: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        if payload.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let taken = this.encrypt(payload);
        // What does not go now goes with the next write or flush.
        if let Poll::Ready(Err(error)) = this.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.start();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.start();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for ShadowsocksStream<S> {
    fn complaint(&self, server: &Peer) -> Option<DialError> {
        match self.fault? {
            // A server that is stopped ends so.
            Fault::Cut => None,
            fault => Some(DialError::Fault {
                server: server.clone(),
                fault,
            }),
        }
    }
}

/// Without what is carried.
impl<S: fmt::Debug> fmt::Debug for ShadowsocksStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShadowsocksStream")
            .field("inner", &self.inner)
            .field("keys", &self.keys)
            .field("decoder", &self.decoder)
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}
