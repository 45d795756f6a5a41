//! Where relayed traffic goes.

pub mod connect;
mod error;
mod http;
mod pending;
mod reach;
mod secure;
pub mod shadowsocks;
mod socks5;
pub mod trojan;
mod url;
mod verdict;
pub mod wire;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout_at};

pub use self::error::{Blame, DialError, Peer};
pub use self::secure::secure;
use self::shadowsocks::ShadowsocksStream;
pub use self::url::{Credentials, Endpoint, Outbound, OutboundError, Server};
pub use self::verdict::what_is_wrong;
use self::wire::Command;
use super::guard::Guard;
use super::record::Protocol;
use super::stream::Stream;
use super::way::Way;
use crate::net::SocketFactory;

/// Where something is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'n> {
    /// This address.
    Address(SocketAddr),
    /// This name, at this port. Only for an outbound that takes names.
    Name(&'n str, u16),
}

impl From<SocketAddr> for Target<'_> {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

/// As it is asked for: address and port, with brackets around an IPv6 address, or name and port.
impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Without what IPv6 addresses have beside.
            Self::Address(address) => SocketAddr::new(address.ip(), address.port()).fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
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
    pub async fn connect(&self, way: &Way, target: Target<'_>) -> Result<Stream, DialError> {
        let connected = self.dial(way, target).await;
        match &connected {
            // Its first answer will show whether it works.
            Ok(stream) if stream.opens_with_payload() => {}
            connected => way.report(Protocol::Tcp, connected.as_ref().err()),
        }
        connected
    }

    /// The same, and the outbound's health stays as it was.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn dial(&self, way: &Way, target: Target<'_>) -> Result<Stream, DialError> {
        let deadline = Instant::now() + self.limit;
        let connecting = self.open(way, target, deadline);
        match way.outbound.server() {
            None => self.within(deadline, &target, false, connecting).await,
            Some(server) => self.within(deadline, &server, true, connecting).await,
        }
    }

    /// The same without a limit of its own. In a box, since a way may lead through another one.
    fn open<'a>(
        &'a self,
        way: &'a Way,
        target: Target<'a>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Stream, DialError>> {
        async move {
            match (&*way.outbound, target) {
                (Outbound::Direct, Target::Address(address)) => {
                    let connecting = self.tcp(address, way.binding());
                    connecting.await.map(Stream::Plain)
                }
                (Outbound::Block, _) => Err(DialError::Blocked),
                (Outbound::Direct, Target::Name(..)) => Err(DialError::Unsupported {
                    outbound: way.outbound.to_string(),
                    what: "names in the place of addresses",
                }),
                (Outbound::Socks5(server), _) => {
                    socks5::connect(self, way, server, target, deadline).await
                }
                (Outbound::Http(server) | Outbound::Https(server), _) => {
                    http::connect(self, way, server, target, deadline).await
                }
                (Outbound::Shadowsocks(server), _) => {
                    let (stream, _) = self.reach(way, deadline).await?;
                    let keys = &server.keys;
                    Ok(stream.wrap_lazily(|inner| ShadowsocksStream::new(inner, keys, target)))
                }
                (Outbound::Trojan(server), _) => {
                    let command = Command::Connect;
                    trojan::open(self, way, server, command, target, deadline).await
                }
            }
        }
        .boxed()
    }

    /// Gives up at `deadline`, which is at most the limit away. `connected`: what takes so long is more than to connect.
    async fn within<T>(
        &self,
        deadline: Instant,
        peer: &impl ToString,
        connected: bool,
        work: impl Future<Output = Result<T, DialError>>,
    ) -> Result<T, DialError> {
        timeout_at(deadline, work).await.unwrap_or_else(|_| {
            Err(DialError::Timeout {
                peer: peer.to_string(),
                limit: self.limit,
                connected,
            })
        })
    }
}
