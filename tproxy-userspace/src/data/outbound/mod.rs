//! Where relayed traffic goes.

mod socks5;
mod url;
pub mod wire;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};

pub use self::url::{Credentials, Outbound, OutboundError, Server};
use self::wire::{Malformed, Refusal};
use super::guard::Guard;
use super::record::Outcome;
use super::way::Way;
use crate::net::{NetError, SocketFactory};

/// Why the upstream side could not be reached. Each variant is one [`Outcome`].
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No socket.
    #[error(transparent)]
    Socket(#[from] NetError),
    /// The connection failed.
    #[error("connecting to {peer} failed: {source}")]
    Connect {
        /// Whom.
        peer: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No answer within the limit.
    #[error("{peer} did not answer within {limit:?}")]
    Timeout {
        /// Whom.
        peer: String,
        /// The limit.
        limit: Duration,
    },
    /// The server is this proxy.
    #[error(
        "{what} {address} is this proxy itself, so the outbound {outbound} would go round in circles; let its name \
         stand for another address, or give the proxy another port (`[proxy] port`)"
    )]
    Loop {
        /// Whose address it is.
        what: &'static str,
        /// The outbound.
        outbound: String,
        /// The proxy's own address.
        address: SocketAddr,
    },
    /// The connection to the SOCKS5 server broke during the handshake.
    #[error("the SOCKS5 server {server} broke off while {step}: {source}")]
    Handshake {
        /// The server.
        server: SocketAddr,
        /// During what.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The SOCKS5 server broke the protocol.
    #[error("the answer of {server} while {step} is wrong: {reason}; is it a SOCKS5 server?")]
    Protocol {
        /// The server.
        server: SocketAddr,
        /// During what.
        step: &'static str,
        /// What is wrong.
        reason: Malformed,
    },
    /// The server takes none of the methods.
    #[error(
        "the SOCKS5 server {server} takes none of the authentication methods; {}",
        if *.with_password { "it accepts no user and password" } else { "it wants a user and password: socks5://user:password@…" }
    )]
    NoMethod {
        /// The server.
        server: SocketAddr,
        /// Were user and password on offer?
        with_password: bool,
    },
    /// User or password is wrong.
    #[error("the SOCKS5 server {server} refused the user \"{user}\"; check user and password")]
    Credentials {
        /// The server.
        server: SocketAddr,
        /// The user.
        user: String,
    },
    /// The server did not do what was asked.
    #[error("the SOCKS5 server {server} refused {request}: {refusal}")]
    Refused {
        /// The server.
        server: SocketAddr,
        /// What was asked.
        request: String,
        /// Its answer.
        refusal: Refusal,
    },
}

impl DialError {
    /// The outcome of a connection that ended so.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Socket(error) => outcome_of(error.io()),
            Self::Connect { source, .. } => outcome_of(source),
            Self::Timeout { .. } => Outcome::ConnectTimeout,
            Self::Loop { .. } => Outcome::Loop,
            Self::Handshake { .. } | Self::Protocol { .. } => Outcome::ProxyProtocol,
            Self::NoMethod { .. } | Self::Credentials { .. } => Outcome::ProxyAuth,
            Self::Refused { .. } => Outcome::ProxyRefused,
        }
    }
}

fn outcome_of(error: &io::Error) -> Outcome {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Outcome::ConnectRefused,
        // It accepted and reset before this side looked.
        Some(libc::ECONNRESET) => Outcome::UpstreamReset,
        Some(libc::ETIMEDOUT) => Outcome::ConnectTimeout,
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EACCES | libc::EINVAL) => {
            Outcome::Unreachable
        }
        Some(
            libc::EMFILE
            | libc::ENFILE
            | libc::ENOBUFS
            | libc::ENOMEM
            | libc::EADDRNOTAVAIL
            | libc::EADDRINUSE
            | libc::EAGAIN,
        ) => Outcome::NoResources,
        _ => Outcome::Failed,
    }
}

/// Where something is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'n> {
    /// The original destination.
    pub address: SocketAddr,
    /// The name to ask an outbound for that takes names.
    pub name: Option<&'n str>,
}

impl From<SocketAddr> for Target<'_> {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            name: None,
        }
    }
}

/// As it is asked for: the address, or name and port.
impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            None => self.address.fmt(f),
            Some(name) => write!(f, "{name}:{}", self.address.port()),
        }
    }
}

/// Opens TCP connections to the upstream side.
#[derive(Clone, Debug)]
pub struct Dialer {
    /// Makes the sockets.
    pub factory: SocketFactory,
    /// How long all of it may take.
    pub limit: Duration,
    /// See [`Limits::keepalive`](super::Limits::keepalive).
    pub keepalive: Duration,
    /// Knows what leads back into the proxy.
    pub guard: Arc<Guard>,
}

impl Dialer {
    /// Connects to `target` by an outbound. What comes back carries the target's bytes.
    ///
    /// # Errors
    /// What failed, on which machine.
    pub async fn connect(&self, way: &Way, target: Target<'_>) -> Result<TcpStream, DialError> {
        let deadline = Instant::now() + self.limit;
        match &*way.outbound {
            Outbound::Direct => {
                let connecting = self.tcp(target.address);
                self.within(deadline, self.limit, &target.address, connecting)
                    .await
            }
            Outbound::Socks5(server) => {
                let connecting = socks5::connect(self, way, server, target, deadline);
                self.within(deadline, self.limit, server, connecting).await
            }
        }
    }

    /// Gives up at `deadline`, which is `limit` after the beginning.
    async fn within<T>(
        &self,
        deadline: Instant,
        limit: Duration,
        peer: &impl ToString,
        work: impl Future<Output = Result<T, DialError>>,
    ) -> Result<T, DialError> {
        timeout_at(deadline, work).await.unwrap_or_else(|_| {
            Err(DialError::Timeout {
                peer: peer.to_string(),
                limit,
            })
        })
    }

    /// Connects to the outbound's server: one of its addresses after the other, each with a fair share of the
    /// time that is left, so that one that is silent leaves time for the others.
    async fn reach(
        &self,
        way: &Way,
        deadline: Instant,
    ) -> Result<(TcpStream, SocketAddr), DialError> {
        let mut failure = DialError::Timeout {
            peer: way.outbound.to_string(),
            limit: self.limit,
        };
        let mut candidates = way.candidates();
        candidates.retain(|address| {
            let is_loop = self.guard.is_listener(*address);
            if is_loop {
                failure = DialError::Loop {
                    what: "the server",
                    outbound: way.outbound.to_string(),
                    address: *address,
                };
            }
            !is_loop
        });
        let mut left = candidates.len() as u32;
        for address in candidates {
            let now = Instant::now();
            let limit = deadline.saturating_duration_since(now) / left;
            left -= 1;
            let connecting = self.tcp(address);
            let connected = self.within(now + limit, limit, &address, connecting).await;
            match connected {
                Ok(stream) => {
                    way.worked(address);
                    return Ok((stream, address));
                }
                // A loop is told of first: only a person can end it.
                Err(_) if matches!(failure, DialError::Loop { .. }) => {}
                Err(error) => failure = error,
            }
        }
        way.failed();
        Err(failure)
    }

    async fn tcp(&self, peer: SocketAddr) -> Result<TcpStream, DialError> {
        let socket = self.factory.tcp_outgoing(peer, self.keepalive)?;
        TcpSocket::from_std_stream(socket)
            .connect(peer)
            .await
            .map_err(|source| DialError::Connect { peer, source })
    }
}
