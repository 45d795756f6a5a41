//! Datagrams on a stream: address, length, CRLF, payload.

use std::net::SocketAddr;
use std::ops::Range;

use crate::data::outbound::wire::{self, Address};

/// The longest payload that a server takes: trojan's own reads datagrams of 8 KiB at most, others of 64 KiB.
pub const LONGEST_PAYLOAD: usize = 0xffff;

/// How a server can break the protocol. The stream is of no use then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// An address type that RFC 1928 does not know.
    #[error(
        "the Trojan server sent a datagram whose address is of the unknown type {0}; if it begins as HTTP does (72), the \
         password is wrong"
    )]
    AddressType(u8),
    /// No CRLF behind the length.
    #[error("the Trojan server sent a datagram without an end of line behind its length")]
    EndOfLine,
}

/// How far a datagram has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// So many bytes more are needed at least.
    Needs(usize),
    /// It is whole.
    Datagram {
        /// Who sent it. None: a name, which no device could make sense of.
        peer: Option<SocketAddr>,
        /// Where its payload is. The next datagram begins at its end.
        payload: Range<usize>,
    },
}

/// Adds a datagram for `peer` to `out`. Returns whether it fits: at most [`LONGEST_PAYLOAD`] bytes do.
#[must_use]
pub fn put_datagram(peer: SocketAddr, payload: &[u8], out: &mut Vec<u8>) -> bool {
    let Ok(length) = u16::try_from(payload.len()) else {
        return false;
    };
    out.reserve(19 + 4 + payload.len());
    wire::put_target(out, peer.into());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(payload);
    true
}

/// Reads a datagram from the front of what came so far.
///
/// # Errors
/// When it can be none, whatever follows.
pub fn parse_datagram(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let unknown = |_| Malformed::AddressType(bytes.first().copied().unwrap_or_default());
    let (peer, start) = match wire::parse_address(bytes).map_err(unknown)? {
        Address::Needs(more) => return Ok(Parsed::Needs(more)),
        Address::Whole(peer, start) => (peer, start),
    };
    let rest = &bytes[start..];
    let Some([high, low, end @ ..]) = rest.first_chunk::<4>() else {
        return Ok(Parsed::Needs(4 - rest.len()));
    };
    if end != b"\r\n" {
        return Err(Malformed::EndOfLine);
    }
    let payload = start + 4..start + 4 + usize::from(u16::from_be_bytes([*high, *low]));
    Ok(match payload.end.saturating_sub(bytes.len()) {
        0 => Parsed::Datagram { peer, payload },
        more => Parsed::Needs(more),
    })
}
