//! One connection by Trojan, inside of TLS.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{HASH, Token};
use crate::data::outbound::pending::Pending;
use crate::data::outbound::wire::{self, Command};
use crate::data::outbound::{DialError, Peer, Target};
use crate::data::stream::Duplex;

/// The most payload that goes with the head: one TLS record holds both.
const FIRST_PAYLOAD: usize = 15 << 10;

/// What a server does that does not know the password: it pretends to be a web server.
const WRONG_PASSWORD: &str = "answers as a web server what was no request for one: the password is wrong, or the \
                              destination is such a server";

/// A connection to a target by a Trojan server. What is read and written is what the target sends and gets.
///
/// Nothing is sent before the first write, flush or shutdown. The first write sends the target and the payload together.
/// For a server that speaks first, flush: that sends the target alone.
pub struct TrojanStream<S> {
    inner: S,
    /// What goes before all else: the head, then also the payload of the first write.
    out: Pending,
    has_started: bool,
    answer: Answer,
}

/// Whose the answer is: the target's, or the web server's that the server pretends to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// None came yet, to what was asked.
    Expected(Asked),
    /// It may be the target's.
    Came,
    /// It is the web server's: the password is wrong.
    WebServer,
}

/// What the first payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Nothing,
    /// It may be a request for a web server.
    Http,
    Other,
}

impl Asked {
    /// By the first payload.
    fn by(payload: &[u8]) -> Self {
        let end = payload.iter().position(|byte| *byte == b' ');
        let method = &payload[..end.unwrap_or(payload.len())];
        let is_of_method = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'-';
        if method.iter().all(is_of_method) {
            Self::Http
        } else {
            Self::Other
        }
    }

    /// Can only a web server that understood nothing have answered so? To a client that says nothing, servers of HTTP
    /// say 408 at last.
    fn is_not_answered_by(self, answer: &[u8]) -> bool {
        let Some(status) = answer.strip_prefix(b"HTTP/1.") else {
            return false;
        };
        match self {
            Self::Nothing => status.get(1..5) == Some(b" 400"),
            Self::Http => false,
            Self::Other => true,
        }
    }
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
            answer: match command {
                Command::Connect => Answer::Expected(Asked::Nothing),
                // Whoever reads datagrams sees what is none.
                Command::UdpAssociate => Answer::Came,
            },
        }
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
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buffer))?;
        let Answer::Expected(asked) = this.answer else {
            return Poll::Ready(Ok(()));
        };
        let answer = &buffer.filled()[before..];
        if asked.is_not_answered_by(answer) {
            this.answer = Answer::WebServer;
            buffer.set_filled(before);
            let kind = io::ErrorKind::InvalidData;
            return Poll::Ready(Err(io::Error::new(kind, WRONG_PASSWORD)));
        }
        if !answer.is_empty() {
            this.answer = Answer::Came;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TrojanStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        payload: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.answer == Answer::Expected(Asked::Nothing) && !payload.is_empty() {
            this.answer = Answer::Expected(Asked::by(payload));
        }
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

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for TrojanStream<S> {
    fn complaint(&self, server: &Peer) -> Option<DialError> {
        (self.answer == Answer::WebServer).then(|| DialError::Auth {
            server: server.clone(),
            reason: WRONG_PASSWORD.to_owned(),
        })
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
