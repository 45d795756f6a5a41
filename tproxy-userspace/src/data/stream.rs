//! What dialling gives: a connection to the upstream side.

use std::fmt;
use std::io;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client;

use super::outbound::{DialError, Peer};

/// Bytes both ways, as something between here and the socket makes them.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {
    /// What is wrong with its server, if reading has shown that.
    fn complaint(&self, _server: &Peer) -> Option<DialError> {
        None
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for client::TlsStream<S> {}

#[cfg(test)]
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for tokio_rustls::server::TlsStream<S> {}

/// A connection to the upstream side.
#[derive(Debug)]
pub enum Stream {
    /// The bytes of the socket are the destination's own: they are spliced.
    Plain(TcpStream),
    /// They are transformed on the way (TLS): they are copied.
    Wrapped(Wrapped),
}

/// A connection whose bytes are transformed.
pub struct Wrapped {
    /// Gives and takes the destination's bytes. Its end of writing is the destination's FIN.
    pub duplex: Box<dyn Duplex>,
    /// The socket below.
    pub socket: Arc<TcpStream>,
    /// Nothing was heard from the server yet. What it is to connect to goes with the first bytes that are written, or
    /// with a flush; only an answer shows that it took them.
    pub opens_with_payload: bool,
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Wrapped").field(&self.socket).finish()
    }
}

impl Stream {
    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Wrapped(wrapped) => &wrapped.socket,
        }
    }

    /// What one more transformation is laid around.
    #[must_use]
    pub fn into_wrapped(self) -> Wrapped {
        match self {
            Self::Plain(socket) => {
                let socket = Arc::new(socket);
                Wrapped {
                    duplex: Box::new(Shared(Arc::clone(&socket))),
                    socket,
                    opens_with_payload: false,
                }
            }
            Self::Wrapped(wrapped) => wrapped,
        }
    }

    /// Lays one more transformation around it: one whose other side has shown itself.
    #[must_use]
    pub fn wrap<D: Duplex + 'static>(self, transform: impl FnOnce(Box<dyn Duplex>) -> D) -> Self {
        let Wrapped { duplex, socket, .. } = self.into_wrapped();
        Self::Wrapped(Wrapped {
            duplex: Box::new(transform(duplex)),
            socket,
            opens_with_payload: false,
        })
    }

    /// Lays one around it that says with the first payload what it is to be connected to.
    #[must_use]
    pub fn wrap_lazily<D: Duplex + 'static>(
        self,
        transform: impl FnOnce(Box<dyn Duplex>) -> D,
    ) -> Self {
        let mut stream = self.wrap(transform);
        if let Self::Wrapped(wrapped) = &mut stream {
            wrapped.opens_with_payload = true;
        }
        stream
    }

    /// See [`Wrapped::opens_with_payload`].
    #[must_use]
    pub fn opens_with_payload(&self) -> bool {
        matches!(self, Self::Wrapped(wrapped) if wrapped.opens_with_payload)
    }

    /// The other side has answered.
    #[must_use]
    pub fn answered(mut self) -> Self {
        if let Self::Wrapped(wrapped) = &mut self {
            wrapped.opens_with_payload = false;
        }
        self
    }

    /// Reads a head whose end only its reader knows, and not a byte behind that. `parse` gets all bytes so far and
    /// says how many of them the head has, or `None` while its end is not there. It is the judge of what is too long.
    ///
    /// # Errors
    /// What `parse` says, or that the connection broke or ended.
    pub async fn read_head<T, E: From<io::Error>>(
        &mut self,
        mut parse: impl FnMut(&[u8]) -> Result<Option<(T, usize)>, E>,
    ) -> Result<T, E> {
        const STEP: usize = 1024;
        let mut bytes = Vec::new();
        loop {
            let before = bytes.len();
            let step = match self {
                // Looked at before it is taken: what follows the head belongs to the destination, and is spliced.
                Self::Plain(socket) => {
                    bytes.resize(before + STEP, 0);
                    socket.peek(&mut bytes[before..]).await?
                }
                // Bytes that were decrypted are at hand: one by one costs little.
                Self::Wrapped(_) => {
                    bytes.push(self.read_u8().await?);
                    1
                }
            };
            if step == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            bytes.truncate(before + step);
            let parsed = parse(&bytes)?;
            let length = parsed.as_ref().map_or(bytes.len(), |(_, length)| *length);
            if matches!(self, Self::Plain(_)) {
                let taken = length.saturating_sub(before);
                self.read_exact(&mut bytes[before..before + taken]).await?;
            }
            if let Some((head, _)) = parsed {
                return Ok(head);
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(context, into),
            Self::Wrapped(wrapped) => Pin::new(&mut wrapped.duplex).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(context, bytes),
            Self::Wrapped(wrapped) => Pin::new(&mut wrapped.duplex).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(context),
            Self::Wrapped(wrapped) => Pin::new(&mut wrapped.duplex).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(context),
            Self::Wrapped(wrapped) => Pin::new(&mut wrapped.duplex).poll_shutdown(context),
        }
    }
}

/// A socket that others look at, too: for its errors, and to reset it.
#[derive(Debug)]
pub struct Shared<S>(pub S);

impl<S: Deref<Target = TcpStream> + Send + Unpin> Duplex for Shared<S> {}

impl<S: Deref<Target = TcpStream> + Unpin> AsyncRead for Shared<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            // Not into what would have to be cleared first.
            match self.0.try_read_buf(into) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl<S: Deref<Target = TcpStream> + Unpin> AsyncWrite for Shared<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// The records of TLS go out together.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(&*self.0).shutdown(std::net::Shutdown::Write))
    }
}
