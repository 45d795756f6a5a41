//! Why the upstream side could not be reached.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::Outbound;
use super::shadowsocks::Fault;
use crate::data::record::Outcome;
use crate::net::NetError;

/// A server, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What it should be: "SOCKS5 server".
    pub kind: &'static str,
    /// Where it is.
    pub at: String,
}

/// `the SOCKS5 server 192.0.2.1:1080`, `the HTTP proxy 192.0.2.1:8080`.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} {}", self.kind, self.at)
    }
}

impl Peer {
    fn article(&self) -> String {
        let article = if self.kind.starts_with('H') {
            "an"
        } else {
            "a"
        };
        format!("{article} {}", self.kind)
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
        /// A connection to it was there. What was asked may take so long.
        connected: bool,
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
    /// The connection to the server broke during the handshake.
    #[error("{server} broke off while {step}: {source}")]
    Handshake {
        /// The server.
        server: Peer,
        /// During what.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no encryption with the server, or it could not show who it is.
    #[error(
        "the TLS handshake with {server} failed: {source}; {help} and from an authority that this machine trusts"
    )]
    Tls {
        /// The server.
        server: Peer,
        /// The library's answer.
        source: io::Error,
        /// Whom the certificate must be for, and what to do if it is for another name.
        help: &'static str,
    },
    /// What a Shadowsocks server sends cannot be used.
    #[error("{server} cannot be used: {fault}")]
    Fault {
        /// The server.
        server: Peer,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The server broke the protocol.
    #[error("the answer of {server} while {step} is wrong: {reason}; is it {}?", .server.article())]
    Protocol {
        /// The server.
        server: Peer,
        /// During what.
        step: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The server wants another user or password, or another way to show them.
    #[error("{server} {reason}")]
    Auth {
        /// The server.
        server: Peer,
        /// What it does.
        reason: String,
    },
    /// The server did not do what was asked.
    #[error("{server} refused {request}: {reason}")]
    Refused {
        /// The server.
        server: Peer,
        /// What was asked.
        request: String,
        /// Its answer.
        reason: String,
    },
    /// The outbound lets nothing pass.
    #[error("the outbound block:// lets nothing pass")]
    Blocked,
    /// The outbound has no way to do it.
    #[error("the outbound {outbound} carries no {what}")]
    Unsupported {
        /// The outbound.
        outbound: String,
        /// What it does not carry.
        what: &'static str,
    },
}

/// Who is to blame that something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The outbound.
    Outbound,
    /// One of the two.
    Unclear,
    /// The destination, or the outbound does what it is there for.
    Destination,
}

impl DialError {
    /// Who is to blame, if it came of this outbound?
    #[must_use]
    pub fn blame(&self, outbound: &Outbound) -> Blame {
        let has_server = outbound.server().is_some();
        match self {
            Self::Blocked | Self::Unsupported { .. } | Self::Refused { .. } => Blame::Destination,
            Self::Timeout { connected, .. } if has_server && !connected => Blame::Outbound,
            Self::Timeout { .. } | Self::Socket(_) => Blame::Unclear,
            // Whether a line is dead shows in that nothing can be reached by it.
            Self::Connect { source, .. } if !has_server => match outcome_of(source) {
                Outcome::Unreachable => Blame::Outbound,
                _ => Blame::Destination,
            },
            Self::Connect { .. }
            | Self::Loop { .. }
            | Self::Handshake { .. }
            | Self::Tls { .. }
            | Self::Protocol { .. }
            | Self::Fault { .. }
            | Self::Auth { .. } => Blame::Outbound,
        }
    }

    /// The outcome of a connection that ended so.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Socket(error) => outcome_of(error.io()),
            Self::Connect { source, .. } => outcome_of(source),
            Self::Timeout { .. } => Outcome::ConnectTimeout,
            Self::Loop { .. } => Outcome::Loop,
            Self::Fault {
                fault: Fault::Key, ..
            }
            | Self::Auth { .. } => Outcome::ProxyAuth,
            Self::Handshake { .. } | Self::Protocol { .. } | Self::Fault { .. } => {
                Outcome::ProxyProtocol
            }
            Self::Tls { .. } => Outcome::ProxyTls,
            Self::Refused { .. } => Outcome::ProxyRefused,
            Self::Unsupported { .. } => Outcome::Unsupported,
            Self::Blocked => Outcome::Blocked,
        }
    }
}

fn outcome_of(error: &io::Error) -> Outcome {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Outcome::ConnectRefused,
        // It accepted and reset before this side looked.
        Some(libc::ECONNRESET) => Outcome::UpstreamReset,
        Some(libc::ETIMEDOUT) => Outcome::ConnectTimeout,
        Some(
            libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EACCES | libc::EINVAL | libc::ENODEV,
        ) => Outcome::Unreachable,
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
