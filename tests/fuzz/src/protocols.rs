//! What servers of outbounds send, and their URLs.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use tproxy_userspace::data::outbound::shadowsocks::{
    Decoded, Decoder, Encoder, Fault, Keys, Method, ShadowsocksServer, session,
};
use tproxy_userspace::data::outbound::trojan::{
    Malformed, Parsed, TrojanServer, parse_datagram, put_datagram,
};

use crate::bytes::{Input, assert_printable};

/// A key for every method.
const KEY: &str = "AAECAwQFBgcICQoLDA0ODw==";
const LONG_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const NOW: u64 = 1_800_000_000;

fn keys(method: u8) -> Arc<Keys> {
    let method = Method::ALL[usize::from(method) % Method::ALL.len()];
    let key = if method.key_length() == 16 {
        KEY
    } else {
        LONG_KEY
    };
    Arc::new(Keys::new(method, key.as_bytes()).expect("the key has the method's length"))
}

fn peer() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 443))
}

/// All that comes out of a stream, and how it ends.
fn decode(keys: &Keys, salt: &[u8], bytes: &[u8], piece: usize) -> (Vec<u8>, Result<(), Fault>) {
    let mut decoder = Decoder::new(keys.clone(), salt);
    let (mut received, mut text) = (BytesMut::new(), Vec::new());
    for part in bytes.chunks(piece) {
        received.extend_from_slice(part);
        loop {
            match decoder.decode(&mut received, NOW) {
                Ok(Decoded::Plain(plain)) => text.extend_from_slice(&plain),
                Ok(Decoded::Needs(needs)) => {
                    assert!(needs > received.len() && needs <= 0xffff + 16);
                    break;
                }
                Err(fault) => return (text, Err(fault)),
            }
        }
    }
    (text, decoder.end(&received))
}

/// A Shadowsocks server's bytes: as they are, and encrypted with our key, whole and with a bit that is flipped.
pub fn shadowsocks(bytes: &[u8]) {
    let mut input = Input(bytes);
    let keys = keys(input.byte());
    let piece = usize::from(input.byte()) + 1;
    let flip = usize::from(u16::from_be_bytes(input.array()));
    let payload = input.0;
    let salt = vec![7; keys.method().key_length()];
    let whole = decode(&keys, &salt, payload, usize::MAX);
    assert_eq!(decode(&keys, &salt, payload, piece), whole);

    let (sealer, mut opener) = session(&keys);
    let mut out = b"kept".to_vec();
    if let Ok((_, range)) = opener.open(payload, &mut out) {
        assert!(range.start >= 4 && out.get(range).is_some());
    }
    assert!(out.starts_with(b"kept"));
    if keys.method().is_2022() {
        return;
    }

    // The ways of SIP004 are the same in both directions.
    let mut sealed = Vec::new();
    let (mut encoder, taken) = Encoder::start(&keys, &salt, peer().into(), payload, &mut sealed);
    encoder.encode(&payload[taken..], &mut sealed);
    let (text, end) = decode(&keys, &[], &sealed, piece);
    assert_eq!((&text[7..], end), (payload, Ok(())));
    let flip_in = |bytes: &mut [u8]| {
        let at = flip % (8 * bytes.len());
        bytes[at / 8] ^= 1 << (at % 8);
    };
    flip_in(&mut sealed);
    let (cut, end) = decode(&keys, &[], &sealed, piece);
    assert!(end.is_err() && text.starts_with(&cut));

    let (mut sealed, mut out) = (Vec::new(), Vec::new());
    sealer.seal(peer(), payload, &mut sealed);
    let (from, range) = opener.open(&sealed, &mut out).expect("our own datagram");
    assert_eq!((from, &out[range]), (Some(peer()), payload));
    flip_in(&mut sealed);
    assert!(opener.open(&sealed, &mut out).is_err());
}

/// A datagram's sender and payload.
type Datagram = (Option<SocketAddr>, Vec<u8>);

/// All datagrams of a stream, and how it ends.
fn datagrams(bytes: &[u8], piece: usize) -> Result<Vec<Datagram>, Malformed> {
    let (mut came, mut got) = (Vec::new(), Vec::new());
    for part in bytes.chunks(piece) {
        came.extend_from_slice(part);
        loop {
            match parse_datagram(&came)? {
                Parsed::Needs(more) => {
                    assert!(more > 0 && came.len() + more <= 259 + 4 + 0xffff);
                    break;
                }
                Parsed::Datagram { peer, payload } => {
                    got.push((peer, came[payload.clone()].to_vec()));
                    came.drain(..payload.end);
                }
            }
        }
    }
    Ok(got)
}

/// A Trojan server's stream of datagrams.
pub fn trojan(bytes: &[u8]) {
    let mut input = Input(bytes);
    let piece = usize::from(input.byte()) + 1;
    let whole = datagrams(input.0, usize::MAX);
    assert_eq!(datagrams(input.0, piece), whole);
    let mut again = Vec::new();
    let named = whole.unwrap_or_default();
    let named: Vec<_> = named
        .into_iter()
        .filter(|(peer, _)| peer.is_some())
        .collect();
    for (peer, payload) in &named {
        assert!(put_datagram(
            peer.expect("the others were left out"),
            payload,
            &mut again
        ));
    }
    assert_eq!(datagrams(&again, piece), Ok(named));
}

/// URLs of servers.
pub fn urls(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match text.parse::<ShadowsocksServer>() {
        Ok(server) => shown(&server, server.port),
        Err(error) => assert_printable(&error.to_string()),
    }
    match text.parse::<TrojanServer>() {
        Ok(server) => shown(&server, server.port),
        Err(error) => assert_printable(&error.to_string()),
    }
}

fn shown(server: &impl Display, port: u16) {
    let shown = server.to_string();
    assert_printable(&shown);
    assert!(port > 0 && shown.contains("***@"), "{shown}");
}
