//! The bytes of SOCKS5 (RFC 1928) and of its user/password method (RFC 1929), without any I/O.
//!
//! The readers take whatever a server may send and never panic.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::Target;
use crate::net::mmsg::Prefix;

const VERSION: u8 = 5;
/// The version of RFC 1929's negotiation.
const AUTH_VERSION: u8 = 1;
const NO_AUTH: u8 = 0;
const USER_PASSWORD: u8 = 2;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// The longest reply: a bound address given as a name of 255 bytes.
pub const LONGEST_REPLY: usize = 4 + 1 + 255 + 2;

/// What is asked of the server (RFC 1928 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    /// A TCP connection.
    Connect = 1,
    /// A relay for datagrams.
    UdpAssociate = 3,
}

/// The authentication that the server chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// None.
    NoAuth,
    /// User and password (RFC 1929).
    UserPassword,
}

/// How a server can break the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The first byte is not the version.
    #[error("it does not speak SOCKS5 (its answer begins with byte {0})")]
    Version(u8),
    /// A method that was not offered.
    #[error("it chose authentication method {0}, which was not offered")]
    Method(u8),
    /// An address type that RFC 1928 does not know.
    #[error("it sent an address of the unknown type {0}")]
    AddressType(u8),
    /// A datagram shorter than its header.
    #[error("it sent a datagram that is cut off")]
    Short,
    /// A datagram that is a fragment.
    #[error("it sent a fragment of a datagram")]
    Fragment,
}

/// What the server says to a request other than "succeeded" (RFC 1928 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal(pub u8);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            1 => "general failure",
            2 => "not allowed by its rules",
            3 => "network unreachable",
            4 => "host unreachable",
            5 => "connection refused",
            6 => "time to live expired",
            7 => "command not supported",
            8 => "address type not supported",
            other => return write!(f, "unknown reply {other}"),
        })
    }
}

/// The greeting: the methods on offer.
#[must_use]
pub fn greeting(with_password: bool) -> &'static [u8] {
    if with_password {
        &[VERSION, 2, NO_AUTH, USER_PASSWORD]
    } else {
        &[VERSION, 1, NO_AUTH]
    }
}

/// Reads the answer to the greeting. None: none of the methods suits the server.
///
/// # Errors
/// Another version, or a method that was not offered.
pub fn parse_method(answer: [u8; 2], with_password: bool) -> Result<Option<Method>, Malformed> {
    match answer {
        [VERSION, NO_AUTH] => Ok(Some(Method::NoAuth)),
        [VERSION, USER_PASSWORD] if with_password => Ok(Some(Method::UserPassword)),
        [VERSION, 0xff] => Ok(None),
        [VERSION, other] => Err(Malformed::Method(other)),
        [other, _] => Err(Malformed::Version(other)),
    }
}

/// User and password. Both are 1 to 255 bytes long, which the outbound's parser has made sure of.
#[must_use]
pub fn credentials(user: &[u8], password: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(3 + user.len() + password.len());
    bytes.push(AUTH_VERSION);
    for field in [user, password] {
        bytes.push(field.len() as u8);
        bytes.extend_from_slice(field);
    }
    bytes
}

/// Reads the answer to user and password: did the server take them?
///
/// # Errors
/// Another version. Some servers wrongly answer with that of SOCKS, which is taken.
pub fn parse_auth(answer: [u8; 2]) -> Result<bool, Malformed> {
    match answer {
        [AUTH_VERSION | VERSION, status] => Ok(status == 0),
        [other, _] => Err(Malformed::Version(other)),
    }
}

/// A request for a target.
///
/// # Panics
/// With a name of more than 255 bytes; no domain name is.
#[must_use]
pub fn request(command: Command, target: Target<'_>) -> Vec<u8> {
    let mut bytes = vec![VERSION, command as u8, 0];
    put_target(&mut bytes, target);
    bytes
}

/// The header of a datagram (RFC 1928 section 7).
#[must_use]
pub fn datagram_header(peer: SocketAddr) -> Prefix {
    let mut bytes = Prefix::default();
    bytes.push(&[0, 0, 0]);
    push_address(&mut bytes, peer);
    bytes
}

/// Adds a target as requests hold it (RFC 1928 section 5), which Shadowsocks and Trojan do in the same way.
///
/// # Panics
/// With a name of more than 255 bytes; no domain name is.
pub(super) fn put_target(bytes: &mut Vec<u8>, target: Target<'_>) {
    match target {
        Target::Address(address) => {
            let mut prefix = Prefix::default();
            push_address(&mut prefix, address);
            bytes.extend_from_slice(prefix.as_slice());
        }
        Target::Name(name, port) => {
            let length = u8::try_from(name.len()).expect("a domain name has at most 253 bytes");
            bytes.extend_from_slice(&[NAME, length]);
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&port.to_be_bytes());
        }
    }
}

fn push_address(bytes: &mut Prefix, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => {
            bytes.push(&[IPV4]);
            bytes.push(&ip.octets());
        }
        IpAddr::V6(ip) => {
            bytes.push(&[IPV6]);
            bytes.push(&ip.octets());
        }
    }
    bytes.push(&address.port().to_be_bytes());
}

/// How far a reply has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// So many bytes more are needed at least. Reading no more than that keeps the relayed bytes, which
    /// follow at once, out of the reply.
    Needs(usize),
    /// The server refused.
    Refused(Refusal),
    /// It did what was asked. The address is where it did; None when that is a name.
    Done(Option<SocketAddr>),
}

/// Reads the reply to a request from its bytes so far.
///
/// # Errors
/// Another version or an unknown address type.
pub fn parse_reply(bytes: &[u8]) -> Result<Reply, Malformed> {
    let &[version, status, _, ..] = bytes else {
        return Ok(Reply::Needs(4 - bytes.len()));
    };
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    if status != 0 {
        // Some servers end the reply here.
        return Ok(Reply::Refused(Refusal(status)));
    }
    match parse_address(&bytes[3..])? {
        Address::Needs(more) => Ok(Reply::Needs(more)),
        Address::Whole(address, _) => Ok(Reply::Done(address)),
    }
}

/// Reads a datagram from the relay: who sent it, and where its payload begins. None: the sender is
/// given as a name, which no device could make sense of.
///
/// # Errors
/// A datagram that is cut off, a fragment, or has an unknown address type.
pub fn parse_datagram(bytes: &[u8]) -> Result<(Option<SocketAddr>, usize), Malformed> {
    let &[_, _, fragment, ref rest @ ..] = bytes else {
        return Err(Malformed::Short);
    };
    if fragment != 0 {
        return Err(Malformed::Fragment);
    }
    match parse_address(rest)? {
        Address::Needs(_) => Err(Malformed::Short),
        Address::Whole(address, length) => Ok((address, 3 + length)),
    }
}

/// How far an address has come.
pub(super) enum Address {
    /// So many bytes more are needed at least.
    Needs(usize),
    /// The address, None when it is a name, and how many bytes it took.
    Whole(Option<SocketAddr>, usize),
}

/// Reads an address from the front of these bytes (RFC 1928 section 5).
pub(super) fn parse_address(bytes: &[u8]) -> Result<Address, Malformed> {
    let length = match bytes {
        [] => return Ok(Address::Needs(1)),
        [IPV4, ..] => 1 + 4 + 2,
        [IPV6, ..] => 1 + 16 + 2,
        [NAME] => return Ok(Address::Needs(1)),
        [NAME, name, ..] => 1 + 1 + usize::from(*name) + 2,
        [other, ..] => return Err(Malformed::AddressType(*other)),
    };
    let Some((address, port)) = bytes.get(1..length).and_then(<[u8]>::split_last_chunk) else {
        return Ok(Address::Needs(length - bytes.len()));
    };
    let ip = if let Ok(octets) = <[u8; 4]>::try_from(address)
        && bytes[0] == IPV4
    {
        Some(IpAddr::from(octets))
    } else if let Ok(octets) = <[u8; 16]>::try_from(address)
        && bytes[0] == IPV6
    {
        // A server may write IPv4 peers in their mapped form.
        Some(IpAddr::from(octets).to_canonical())
    } else {
        None
    };
    let port = u16::from_be_bytes(*port);
    Ok(Address::Whole(ip.map(|ip| (ip, port).into()), length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn greetings_and_their_answers() {
        assert_eq!(greeting(false), [5, 1, 0]);
        assert_eq!(greeting(true), [5, 2, 0, 2]);
        assert_eq!(parse_method([5, 0], false), Ok(Some(Method::NoAuth)));
        assert_eq!(parse_method([5, 2], true), Ok(Some(Method::UserPassword)));
        assert_eq!(parse_method([5, 2], false), Err(Malformed::Method(2)));
        assert_eq!(parse_method([5, 255], true), Ok(None));
        assert_eq!(
            parse_method([b'H', b'T'], true),
            Err(Malformed::Version(b'H'))
        );
    }

    #[test]
    fn credentials_are_length_prefixed() {
        assert_eq!(credentials(b"me", b"pw!"), b"\x01\x02me\x03pw!");
        assert_eq!(parse_auth([1, 0]), Ok(true));
        assert_eq!(parse_auth([1, 1]), Ok(false));
        assert_eq!(parse_auth([9, 0]), Err(Malformed::Version(9)));
    }

    #[test]
    fn requests_hold_the_destination_in_network_order() {
        let address: SocketAddr = "192.0.2.1:443".parse().expect("literal");
        assert_eq!(
            request(Command::Connect, address.into()),
            [5, 1, 0, 1, 192, 0, 2, 1, 1, 187]
        );
        assert_eq!(
            request(Command::Connect, Target::Name("h.example", 443)),
            b"\x05\x01\x00\x03\x09h.example\x01\xbb"
        );
    }

    #[test]
    fn every_refusal_has_words_of_its_own() {
        let words: std::collections::BTreeSet<_> =
            (1..=9).map(|code| Refusal(code).to_string()).collect();
        assert_eq!(words.len(), 9);
        assert_eq!(parse_reply(&[5, 5, 0]), Ok(Reply::Refused(Refusal(5))));
    }

    #[test]
    fn a_reply_with_a_name_is_read_to_its_end_and_not_further() {
        let reply = b"\x05\x00\x00\x03\x04host\x04\x38";
        assert_eq!(parse_reply(&reply[..4]), Ok(Reply::Needs(1)));
        assert_eq!(parse_reply(&reply[..5]), Ok(Reply::Needs(6)));
        assert_eq!(parse_reply(reply), Ok(Reply::Done(None)));
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_readers(bytes in proptest::collection::vec(any::<u8>(), 0..300), flag: bool) {
            if let Ok(Reply::Needs(more)) = parse_reply(&bytes) {
                prop_assert!(more > 0 && bytes.len() + more <= LONGEST_REPLY);
            }
            if let Ok((_, start)) = parse_datagram(&bytes) {
                prop_assert!(start <= bytes.len());
            }
            if let Some(answer) = bytes.first_chunk() {
                let _ = parse_method(*answer, flag);
                let _ = parse_auth(*answer);
            }
        }

        #[test]
        fn a_reader_that_reads_what_is_needed_ends_exactly(
            ip: IpAddr, port: u16, tail in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let bound = SocketAddr::from((ip, port));
            let mut stream = vec![5, 0, 0];
            stream.extend(&datagram_header(bound).as_slice()[3..]);
            let whole = stream.len();
            stream.extend(tail);
            let mut read = 0;
            let done = loop {
                match parse_reply(&stream[..read]).expect("well formed") {
                    Reply::Needs(more) => read += more,
                    other => break other,
                }
            };
            prop_assert_eq!(read, whole);
            let canonical = SocketAddr::from((ip.to_canonical(), port));
            prop_assert_eq!(done, Reply::Done(Some(canonical)));
        }

        #[test]
        fn datagrams_come_back_as_they_were_sent(
            ip: IpAddr, port: u16, payload in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            let mut bytes = datagram_header((ip, port).into()).as_slice().to_vec();
            bytes.extend(&payload);
            let (peer, start) = parse_datagram(&bytes).expect("well formed");
            prop_assert_eq!(peer, Some((ip.to_canonical(), port).into()));
            prop_assert_eq!(&bytes[start..], payload);
            bytes[2] = 1;
            prop_assert_eq!(parse_datagram(&bytes), Err(Malformed::Fragment));
        }
    }
}
