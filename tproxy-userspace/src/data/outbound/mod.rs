//! Where relayed traffic goes.

pub mod shadowsocks;
pub mod socks5;
pub mod trojan;
pub mod wire;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};
use url::{Host, Url};

use self::wire::{Malformed, Refusal};
use super::guard::Guard;
use super::record::Outcome;
use super::way::Way;
use crate::net::{NetError, SocketFactory};

/// The port of a SOCKS server that names none.
const SOCKS_PORT: u16 = 1080;

/// Where relayed traffic goes, as read from a URL.
#[derive(Clone, PartialEq, Eq)]
pub enum Outbound {
    /// `direct://`: to the destination itself.
    Direct,
    /// `socks5://[user:password@]host[:port]`: through a SOCKS5 server (RFC 1928).
    Socks5(Socks5Server),
}

/// A SOCKS5 server.
#[derive(Clone, PartialEq, Eq)]
pub struct Socks5Server {
    /// Its address, or its name.
    pub host: Host<String>,
    /// Its TCP port, a plain number.
    pub port: u16,
    /// User and password (RFC 1929).
    pub credentials: Option<Credentials>,
}

/// A user and a password, each 1 to 255 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: Vec<u8>,
    /// The password.
    pub password: Vec<u8>,
}

/// Why a text is no outbound. The text itself is left out: it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboundError {
    /// Not a URL.
    #[error("the outbound is no URL ({0}); write direct:// or socks5://[user:password@]host:port")]
    Url(#[from] url::ParseError),
    /// A scheme that is not known.
    #[error("the outbound's scheme \"{0}\" is not known; direct and socks5 are")]
    Scheme(String),
    /// No host.
    #[error("the outbound {0}:// names no host; write socks5://[user:password@]host:port")]
    Host(String),
    /// A part that the scheme has no use for.
    #[error("the outbound {scheme}:// takes no {part}; remove it")]
    Surplus {
        /// The scheme.
        scheme: String,
        /// The part.
        part: &'static str,
    },
    /// Port 0.
    #[error("the outbound's port 0 cannot be connected to; the usual one is 1080")]
    Port,
    /// User or password is empty or too long.
    #[error("the outbound's {0} must have 1 to 255 bytes (RFC 1929)")]
    Credentials(&'static str),
}

impl FromStr for Outbound {
    type Err = OutboundError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = Url::parse(text)?;
        let surplus = |part| OutboundError::Surplus {
            scheme: url.scheme().to_owned(),
            part,
        };
        if !matches!(url.path(), "" | "/") {
            return Err(surplus("path"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(surplus("query or fragment"));
        }
        match url.scheme() {
            "direct" => {
                if url.has_host() && url.host_str() != Some("") {
                    return Err(surplus("host"));
                }
                Ok(Self::Direct)
            }
            "socks5" => {
                let no_host = || OutboundError::Host(url.scheme().to_owned());
                // For schemes other than the web's, the parser leaves IPv4 addresses to us.
                let host = match url.host().ok_or_else(no_host)? {
                    Host::Domain(name) => {
                        let name = percent_decode_str(name).decode_utf8_lossy();
                        Host::parse(&name)?
                    }
                    Host::Ipv4(ip) => Host::Ipv4(ip),
                    Host::Ipv6(ip) => Host::Ipv6(ip),
                };
                Ok(Self::Socks5(Socks5Server {
                    host,
                    port: match url.port() {
                        Some(0) => return Err(OutboundError::Port),
                        Some(port) => port,
                        None => SOCKS_PORT,
                    },
                    credentials: Credentials::of(&url)?,
                }))
            }
            other => Err(OutboundError::Scheme(other.to_owned())),
        }
    }
}

impl Credentials {
    fn of(url: &Url) -> Result<Option<Self>, OutboundError> {
        if url.username().is_empty() && url.password().is_none() {
            return Ok(None);
        }
        let decode = |part: &str, name| {
            let bytes: Vec<u8> = percent_decode_str(part).collect();
            if bytes.is_empty() || bytes.len() > 255 {
                return Err(OutboundError::Credentials(name));
            }
            Ok(bytes)
        };
        Ok(Some(Self {
            user: decode(url.username(), "user")?,
            password: decode(url.password().unwrap_or_default(), "password")?,
        }))
    }
}

/// The URL without the password.
impl fmt::Display for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct://"),
            Self::Socks5(server) => write!(f, "socks5://{server}"),
        }
    }
}

/// `[user@]host:port`.
impl fmt::Display for Socks5Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Credentials { user, .. }) = &self.credentials {
            write!(f, "{}@", user.escape_ascii())?;
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outbound({self})")
    }
}

impl fmt::Debug for Socks5Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socks5Server({self})")
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({}:…)", self.user.escape_ascii())
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Outbound, OutboundError> {
        text.parse()
    }

    #[test]
    fn urls_that_are_outbounds() {
        assert_eq!(parse("direct://"), Ok(Outbound::Direct));
        let Ok(Outbound::Socks5(server)) = parse("socks5://me:p%40ss@192.0.2.1:1081") else {
            panic!("a SOCKS5 server");
        };
        assert_eq!(server.host.to_string(), "192.0.2.1");
        assert!(matches!(server.host, Host::Ipv4(_)));
        assert_eq!(server.port, 1081);
        let credentials = server.credentials.expect("given");
        assert_eq!(credentials.user, b"me");
        assert_eq!(credentials.password, b"p@ss");
        let Ok(Outbound::Socks5(server)) = parse("socks5://proxy.example") else {
            panic!("a SOCKS5 server");
        };
        assert_eq!(server.host, Host::Domain("proxy.example".to_owned()));
        assert_eq!(server.port, 1080);
        assert_eq!(server.credentials, None);
        assert!(parse("socks5://[2001:db8::1]:1080").is_ok());
    }

    #[test]
    fn no_form_of_it_shows_the_password() {
        let outbound = parse("socks5://me:secret@[2001:db8::1]:1080").expect("well formed");
        assert_eq!(outbound.to_string(), "socks5://me@[2001:db8::1]:1080");
        assert!(!format!("{outbound:?}").contains("secret"));
        for bad in [
            "socks5://me:secret@h:70000",
            "ftp://me:secret@h",
            "me:secret@h",
        ] {
            let error = parse(bad).expect_err("not an outbound");
            assert!(!format!("{error} {error:?}").contains("secret"));
        }
    }

    #[test]
    fn texts_that_are_not() {
        let surplus = |part| OutboundError::Surplus {
            scheme: "socks5".to_owned(),
            part,
        };
        assert_eq!(
            parse("http://h:1"),
            Err(OutboundError::Scheme("http".to_owned()))
        );
        assert!(matches!(
            parse("192.0.2.1:1080"),
            Err(OutboundError::Url(_))
        ));
        assert!(matches!(
            parse("socks5:///"),
            Err(OutboundError::Host(_) | OutboundError::Url(_))
        ));
        assert!(matches!(
            parse("direct://host"),
            Err(OutboundError::Surplus { .. })
        ));
        assert_eq!(parse("socks5://h/path"), Err(surplus("path")));
        assert_eq!(parse("socks5://h?x"), Err(surplus("query or fragment")));
        assert_eq!(parse("socks5://h:0"), Err(OutboundError::Port));
        assert_eq!(
            parse("socks5://user@h"),
            Err(OutboundError::Credentials("password"))
        );
        let long = format!("socks5://{}:p@h", "u".repeat(256));
        assert_eq!(parse(&long), Err(OutboundError::Credentials("user")));
    }
}
