//! Which name a client asks for, read from the first bytes that it sends.
//!
//! No I/O and no clock: the caller hands over bytes or datagrams, keeps them, and passes them on unharmed, whatever
//! comes out here. It also limits the time: with a protocol in which the server speaks first there is nothing to read, so
//! it stays at [`Progress::NeedMore`].

pub mod http;
mod name;
pub mod quic;
pub mod tls;

#[cfg(test)]
pub(in crate::data) mod tests;

use std::mem;

pub use self::quic::Quic;

/// The most bytes of a connection (or of a QUIC flow's handshake) that are looked at.
pub const LIMIT: usize = 16 << 10;

/// What is known so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// What was seen fits, and there is no name yet.
    NeedMore,
    /// The name. There is no need to look at more.
    Name(Found),
    /// There is no name to be had: it is another protocol, malformed, too large, or the client names no name. There
    /// is no need to look at more.
    NotThis,
}

/// A name that a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// A domain name: lower-case ASCII, without a dot at the end, never an IP address.
    pub name: String,
    /// Where it was found.
    pub protocol: Protocol,
    /// The client hello has the extension `encrypted_client_hello` (RFC 9849), so the name may be only the outer one
    /// and the one that is meant is encrypted. Browsers send the extension to servers without ECH too, filled
    /// with random bytes, and nobody but the server can tell the two apart.
    pub ech: bool,
}

/// The protocols that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The server name of a TLS client hello (RFC 6066 section 3).
    Tls,
    /// The host of an HTTP/1 request (RFC 9112 section 3.2).
    Http,
    /// The server name of the TLS client hello in QUIC (RFC 9001).
    Quic,
}

/// The name that a TCP client asks for, from all bytes that it has sent so far: the first of them tells whether it
/// speaks TLS or HTTP/1.
///
/// Of more than [`LIMIT`] bytes only the first are looked at. Fit for bytes that were peeked at; [`Tcp`] takes them
/// piece by piece.
#[must_use]
pub fn tcp(bytes: &[u8]) -> Progress {
    let seen = &bytes[..bytes.len().min(LIMIT)];
    let progress = match seen.first() {
        None => Progress::NeedMore,
        Some(&tls::HANDSHAKE) => tls::records(seen),
        Some(_) => http::request(seen),
    };
    if progress == Progress::NeedMore && seen.len() == LIMIT {
        return Progress::NotThis;
    }
    progress
}

/// The name that a TCP client asks for, piece by piece. It keeps a copy of at most [`LIMIT`] bytes until it is done.
#[derive(Debug)]
pub struct Tcp {
    seen: Vec<u8>,
    progress: Progress,
}

impl Default for Tcp {
    fn default() -> Self {
        Self::new()
    }
}

impl Tcp {
    /// Before the first byte.
    #[must_use]
    pub fn new() -> Self {
        Self {
            seen: Vec::new(),
            progress: Progress::NeedMore,
        }
    }

    /// Looks at the next bytes of the client. Once it is done, it stays with what it found.
    pub fn feed(&mut self, bytes: &[u8]) -> &Progress {
        if self.progress == Progress::NeedMore {
            let room = LIMIT - self.seen.len();
            self.seen.extend_from_slice(&bytes[..bytes.len().min(room)]);
            self.progress = tcp(&self.seen);
            if self.progress != Progress::NeedMore {
                drop(mem::take(&mut self.seen));
            }
        }
        &self.progress
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.seen.capacity()
    }
}

/// A name that was found, if it is one.
fn found(name: &[u8], protocol: Protocol, ech: bool) -> Progress {
    match name::domain(name) {
        Some(name) => Progress::Name(Found {
            name,
            protocol,
            ech,
        }),
        None => Progress::NotThis,
    }
}
