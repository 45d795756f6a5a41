//! The server name of a TLS client hello (RFC 8446 section 4.1.2, RFC 6066 section 3).

use std::borrow::Cow;

use super::{LIMIT, Progress, Protocol, found};

/// The content type of a handshake record (RFC 8446 section 5.1): the first byte of every TLS connection.
pub const HANDSHAKE: u8 = 22;
/// Handshake types and extensions.
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
/// The only type of server name that there is.
const HOST_NAME: u8 = 0;
/// The longest record in bytes.
const LONGEST_RECORD: usize = 1 << 14;
const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;

/// The name in a client hello that comes in TLS records, from all bytes so far. The message may be spread over any
/// number of records.
///
/// A client hello has to be whole, because only then it is known to be well-formed and without ECH.
#[must_use]
pub fn records(bytes: &[u8]) -> Progress {
    match handshake(bytes) {
        Some(message) => client_hello(&message, Protocol::Tls),
        None => Progress::NotThis,
    }
}

/// The handshake bytes in these records, up to the end of what is there. None if they are something else.
fn handshake(mut bytes: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut message = Cow::Borrowed(&[][..]);
    loop {
        let fits = |at: usize, fit: fn(u8) -> bool| bytes.get(at).is_none_or(|byte| fit(*byte));
        // The minor version says nothing: for a client hello every implementation writes another.
        if !fits(0, |byte| byte == HANDSHAKE) || !fits(1, |byte| byte == 3) {
            return None;
        }
        let [_, _, _, high, low, rest @ ..] = bytes else {
            return Some(message);
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if !(1..=LONGEST_RECORD).contains(&length) {
            return None;
        }
        let fragment = &rest[..rest.len().min(length)];
        // Nearly always there is one record, so nothing is copied.
        if message.is_empty() {
            message = fragment.into();
        } else {
            message.to_mut().extend_from_slice(fragment);
        }
        if rest.len() <= length || whole(&message) {
            return Some(message);
        }
        bytes = &bytes[RECORD_HEADER + length..];
    }
}

/// Is the first message all there?
fn whole(message: &[u8]) -> bool {
    message_length(message).is_some_and(|length| message.len() >= MESSAGE_HEADER + length)
}

fn message_length(message: &[u8]) -> Option<usize> {
    let [_, high, middle, low, ..] = message else {
        return None;
    };
    Some(u32::from_be_bytes([0, *high, *middle, *low]) as usize)
}

/// The name in a client hello, from all bytes of the handshake so far, without records around them (as in QUIC's
/// CRYPTO frames).
#[must_use]
pub fn client_hello(message: &[u8], protocol: Protocol) -> Progress {
    if message.first().is_some_and(|first| *first != CLIENT_HELLO) {
        return Progress::NotThis;
    }
    let Some(length) = message_length(message) else {
        return Progress::NeedMore;
    };
    if length > LIMIT - MESSAGE_HEADER {
        return Progress::NotThis;
    }
    let Some(body) = message[MESSAGE_HEADER..].get(..length) else {
        return Progress::NeedMore;
    };
    match server_name(body) {
        Some((name, ech)) => found(name, protocol, ech),
        None => Progress::NotThis,
    }
}

/// The first host name in the body of a client hello, and whether there is ECH. None without a name, and if anything
/// in it is not as it should be.
fn server_name(body: &[u8]) -> Option<(&[u8], bool)> {
    let mut hello = Reader(body);
    let (_version, _random) = (hello.take(2)?, hello.take(32)?);
    let (_session, _suites, _compression) = (hello.short()?, hello.long()?, hello.short()?);
    let mut extensions = Reader(hello.long()?);
    hello.end()?;
    let (mut name, mut ech) = (None, false);
    while !extensions.0.is_empty() {
        let (kind, data) = (extensions.number()?, extensions.long()?);
        match kind {
            // An extension must not stand twice (RFC 8446 section 4.2).
            SERVER_NAME if name.is_some() => return None,
            SERVER_NAME => name = Some(host_name(data)?),
            ENCRYPTED_CLIENT_HELLO => ech = true,
            _ => {}
        }
    }
    Some((name?, ech))
}

fn host_name(data: &[u8]) -> Option<&[u8]> {
    let mut data = Reader(data);
    let mut list = Reader(data.long()?);
    data.end()?;
    let mut host = None;
    while !list.0.is_empty() {
        let (kind, name) = (list.take(1)?, list.long()?);
        if kind == [HOST_NAME] {
            host = host.or(Some(name));
        }
    }
    host
}

/// What has not been read yet. Everything is None at its end.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, length: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*number))
    }

    /// What stands behind its length in one byte.
    fn short(&mut self) -> Option<&'b [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    /// What stands behind its length in two bytes.
    fn long(&mut self) -> Option<&'b [u8]> {
        let length = self.number()?;
        self.take(length.into())
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}
