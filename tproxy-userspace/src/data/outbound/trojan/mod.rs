//! Trojan, the client's side: TLS to a server that looks like a web server, with a password and a target in front.
//!
//! Own code: the crates that there are have other licences, or no datagrams. Source:
//! <https://trojan-gfw.github.io/trojan/protocol>.
//!
//! - [`TrojanServer`] is what a URL says.
//! - [`connect`] does the TLS handshake over any stream and gives a [`TrojanStream`].
//! - [`put_datagram`] and [`parse_datagram`] frame what a stream of [`Command::UdpAssociate`] carries.
//!
//! A server answers to a wrong password as the web server that it pretends to be. So nothing can be known of it here.

mod packets;
mod stream;
mod url;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use sha2::{Digest as _, Sha224};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub use self::packets::{LONGEST_PAYLOAD, Malformed, Parsed, parse_datagram, put_datagram};
pub use self::stream::TrojanStream;
pub use self::url::{TrojanServer, TrojanUrlError};
use super::Target;
pub use super::wire::Command;

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

/// Why no TLS connection to the server could be made.
#[derive(Debug, thiserror::Error)]
pub enum TrojanError {
    /// The server's certificate is not one of its name.
    #[error(
        "the Trojan server shows a certificate that is not good for \"{name}\": {reason}; if it is for another name, write \
         ?sni=NAME behind the port"
    )]
    Certificate {
        /// The name that was asked for.
        name: String,
        /// What is wrong with it.
        reason: rustls::Error,
    },
    /// It does not speak TLS as we do.
    #[error(
        "the TLS handshake with the Trojan server \"{name}\" failed: {reason}; is it a Trojan server's port?"
    )]
    Tls {
        /// The name that was asked for.
        name: String,
        /// What is wrong.
        reason: rustls::Error,
    },
    /// The connection broke.
    #[error("the Trojan server \"{name}\" broke off during the TLS handshake: {source}")]
    Handshake {
        /// The name that was asked for.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl TrojanError {
    fn new(name: &ServerName<'_>, error: io::Error) -> Self {
        let name = name.to_str().into_owned();
        let reason = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match reason.cloned() {
            Some(reason @ rustls::Error::InvalidCertificate(_)) => {
                Self::Certificate { name, reason }
            }
            Some(reason) => Self::Tls { name, reason },
            None => Self::Handshake {
                name,
                source: error,
            },
        }
    }
}

/// Connects to a target by a server, over a stream that is connected to it. Nothing but the TLS handshake is waited for:
/// the target goes with the first payload.
///
/// # Errors
/// When the TLS handshake fails.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    inner: S,
    config: &Arc<ClientConfig>,
    server: &TrojanServer,
    command: Command,
    target: Target<'_>,
) -> Result<TrojanStream<TlsStream<S>>, TrojanError> {
    let name = server.name.clone();
    let connector = TlsConnector::from(Arc::clone(config));
    let connected = connector.connect(name, inner).await;
    let stream = connected.map_err(|error| TrojanError::new(&server.name, error))?;
    Ok(TrojanStream::new(stream, &server.token, command, target))
}
