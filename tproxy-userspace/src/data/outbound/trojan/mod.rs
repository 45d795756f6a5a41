//! Trojan, the client's side: TLS to a server that looks like a web server, with a password and a target in front.
//!
//! Own code: the crates that there are have other licences, or no datagrams. Source:
//! <https://trojan-gfw.github.io/trojan/protocol>.
//!
//! - [`TrojanServer`] is what a URL says.
//! - [`TrojanStream`] carries one connection over a TLS stream to the server.
//! - [`put_datagram`] and [`parse_datagram`] frame what a stream of [`Command::UdpAssociate`] carries.
//!
//! A server answers to a wrong password as the web server that it pretends to be, or not at all. The former is found by
//! [`TrojanStream`] where it can be nothing else.

mod packets;
mod stream;
mod url;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;

use sha2::{Digest as _, Sha224};
use tokio::time::Instant;

pub use self::packets::{LONGEST_PAYLOAD, Malformed, Parsed, parse_datagram, put_datagram};
pub use self::stream::TrojanStream;
pub use self::url::{TrojanServer, TrojanUrlError};
pub use super::wire::Command;
use super::{DialError, Dialer, Endpoint, Target};
use crate::data::record::Protocol;
use crate::data::stream::Stream;
use crate::data::way::Way;

/// What a server is, for people.
pub(in crate::data) const KIND: &str = "Trojan server";
/// What to do about a certificate that is not for the server.
pub(super) const CERTIFICATE: &str = "a certificate must be for the host in the outbound's URL, or for the name that ?sni=NAME says behind it,";

/// Bytes of the password's hash in hexadecimal digits.
const HASH: usize = 56;

/// What a server knows its user by: SHA-224 of the password. It is as good as the password, so nothing shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; HASH]);

impl Token {
    /// Of a password.
    #[must_use]
    pub fn new(password: &[u8]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let hash = Sha224::digest(password);
        Self(std::array::from_fn(|at| {
            let byte = hash[at / 2];
            let digit = if at % 2 == 0 { byte >> 4 } else { byte & 15 };
            DIGITS[usize::from(digit)]
        }))
    }

    /// The bytes that go over the wire.
    fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Connects to a target by a server. Nothing but the TLS handshake is waited for: the target goes with the first
/// payload.
pub(super) async fn open(
    dialer: &Dialer,
    way: &Way,
    server: &TrojanServer,
    command: Command,
    target: Target<'_>,
    deadline: Instant,
) -> Result<Stream, DialError> {
    let stream = dialer.secured(way, deadline).await?.stream;
    Ok(stream.wrap_lazily(|inner| TrojanStream::new(inner, &server.token, command, target)))
}

impl Dialer {
    /// Opens a stream that carries datagrams, of which `first` is the first one's peer. As nothing but the TLS handshake
    /// is waited for, a success is not told: only an answer is one.
    ///
    /// # Errors
    /// What failed, on which machine.
    pub async fn datagrams(
        &self,
        way: &Way,
        server: &TrojanServer,
        first: SocketAddr,
    ) -> Result<Stream, DialError> {
        let deadline = Instant::now() + self.limit;
        let command = Command::UdpAssociate;
        let opening = open(self, way, server, command, first.into(), deadline);
        let endpoint = Endpoint {
            host: &server.host,
            port: server.port,
        };
        let opened = self.within(deadline, &endpoint, true, opening).await;
        if let Err(error) = &opened {
            way.report(Protocol::Udp, Some(error));
        }
        opened
    }
}
