//! Shadowsocks, the client's side: AEAD ciphers (SIP004, SIP007) and the 2022 edition (SIP022) over any stream and by
//! datagrams.
//!
//! Own framing on ring and RustCrypto: the crate `shadowsocks` wants the head of an answer in one read, which a chain of
//! proxies does not give, keeps no window against replayed datagrams, remembers ciphers by the address of their key, which
//! a reload can give to another one, and builds a C library.
//!
//! - [`ShadowsocksServer`] is what a URL says (SIP002): host, port and [`Keys`].
//! - [`ShadowsocksStream`] carries one connection over a stream to the server.
//! - [`session`] gives the two halves of a UDP session.
//!
//! Sources: <https://shadowsocks.org/doc/aead.html> and
//! <https://github.com/Shadowsocks-NET/shadowsocks-specs> (2022-1 the protocol, 2022-2 identity headers, 2022-3 URLs).

mod cipher;
mod decode;
mod encode;
mod keys;
mod method;
mod packets;
mod stream;
mod url;
mod window;

#[cfg(test)]
pub mod tests;

use std::time::{SystemTime, UNIX_EPOCH};

pub use self::decode::{Decoded, Decoder, Fault};
pub use self::encode::{Encoder, random_salt};
pub use self::keys::{KeyError, Keys};
pub use self::method::{Method, MethodError};
pub use self::packets::{PacketFault, PacketOpener, PacketSealer, session};
pub use self::stream::ShadowsocksStream;
pub use self::url::{ShadowsocksServer, ShadowsocksUrlError};

/// What a server is, for people.
pub(in crate::data) const KIND: &str = "Shadowsocks server";

/// The types of SIP022: what a client sends, and what a server sends.
const FROM_CLIENT: u8 = 0;
const FROM_SERVER: u8 = 1;

/// How far clocks may differ, in seconds (SIP022 section 3.1.3).
const MOST_CLOCK_DIFFERENCE: u64 = 30;

/// Seconds since 1970.
pub(in crate::data) fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// By how much a clock is ahead of ours, if that is more than SIP022 bears.
fn clock_difference(theirs: u64, ours: u64) -> Option<i64> {
    let difference = i128::from(theirs) - i128::from(ours);
    let is_far = difference.unsigned_abs() > u128::from(MOST_CLOCK_DIFFERENCE);
    is_far.then(|| i64::try_from(difference).unwrap_or(i64::MAX))
}
