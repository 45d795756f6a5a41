//! Client hellos of rustls and requests, whole and in pieces.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;

/// What a client of rustls is told.
pub(super) fn rustls_config(protocols: usize) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = (0..protocols)
        .map(|index| format!("protocol-{index}").into_bytes())
        .collect();
    config
}

/// The first bytes of a connection of rustls.
fn rustls_hello(name: &str, config: ClientConfig) -> Vec<u8> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// The bytes of a handshake in records of this size.
pub(in crate::data) fn in_records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| {
        let length = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&[tls::HANDSHAKE, 3, 1, length[0], length[1]], part].concat()
    };
    message.chunks(size).flat_map(record).collect()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    [&length, bytes].concat()
}

/// A client hello with these extensions, without records.
pub(in crate::data) fn hello(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let extensions: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, data)| [&kind.to_be_bytes(), &*long(data)].concat())
        .collect();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &long(&[0x2a, 0x2a, 0x13, 0x01]),
        &[1, 0],
        &long(&extensions),
    ]
    .concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1], &length[1..], &body].concat()
}

/// The extension `server_name` with one host name.
pub(in crate::data) fn sni(name: &str) -> (u16, Vec<u8>) {
    (0, long(&[&[0], &*long(name.as_bytes())].concat()))
}

const GREASE: (u16, Vec<u8>) = (0x4a4a, Vec::new());

pub(super) fn named(name: &str, protocol: Protocol) -> Progress {
    Progress::Name(Found {
        name: name.to_owned(),
        protocol,
        ech: false,
    })
}

fn tls_name(name: &str) -> Progress {
    named(name, Protocol::Tls)
}

fn http_name(name: &str) -> Progress {
    named(name, Protocol::Http)
}

#[test]
fn the_hellos_of_rustls_are_read() {
    let hello = rustls_hello("www.Example.com", rustls_config(2));
    assert_eq!(tcp(&hello), tls_name("www.example.com"));
    let large = rustls_hello("x.example", rustls_config(300));
    assert!(large.len() > 4_000);
    assert_eq!(tcp(&large), tls_name("x.example"));
    // What follows in the same read does not matter.
    let more = [&*large, b"more"].concat();
    assert_eq!(tcp(&more), tls_name("x.example"));

    let mut silent = rustls_config(0);
    silent.enable_sni = false;
    assert_eq!(tcp(&rustls_hello("x.example", silent)), Progress::NotThis);
    let address = rustls_hello("192.0.2.1", rustls_config(0));
    assert_eq!(tcp(&address), Progress::NotThis);
}

#[test]
fn hellos_are_read_however_they_are_split() {
    let bytes = rustls_hello("www.example.com", rustls_config(2));
    let message = &bytes[5..];
    for size in [1, 2, 5, 100, message.len() - 1] {
        assert_eq!(tcp(&in_records(message, size)), tls_name("www.example.com"));
    }
    for bytes in [bytes.clone(), in_records(message, 40)] {
        for at in 0..bytes.len() {
            let (first, second) = bytes.split_at(at);
            let mut sniffer = Tcp::new();
            assert_eq!(*sniffer.feed(first), Progress::NeedMore, "{at}");
            assert_eq!(*sniffer.feed(second), tls_name("www.example.com"));
            assert_eq!(sniffer.memory(), 0);
            assert_eq!(*sniffer.feed(b"more"), tls_name("www.example.com"));
        }
        let mut sniffer = Tcp::default();
        let (last, first) = bytes.split_last().unwrap();
        for byte in first {
            assert_eq!(*sniffer.feed(&[*byte]), Progress::NeedMore);
        }
        assert_eq!(*sniffer.feed(&[*last]), tls_name("www.example.com"));
    }
}

#[test]
fn extensions_may_be_any() {
    let ech = (0xfe0d, vec![0; 40]);
    let padding = (21, vec![0; 9_000]);
    for (extensions, name, has_ech) in [
        (vec![GREASE, sni("a.example"), GREASE], "a.example", false),
        (vec![sni("a.example"), ech.clone()], "a.example", true),
        (vec![ech, padding, sni("B.Example.")], "b.example", true),
    ] {
        let found = Progress::Name(Found {
            name: name.to_owned(),
            protocol: Protocol::Tls,
            ech: has_ech,
        });
        assert_eq!(tcp(&in_records(&hello(&extensions), 1 << 14)), found);
    }
    // Another type of name before the host name.
    let list = [&[9][..], &long(b"?"), &[0], &long(b"a.example")].concat();
    let message = hello(&[(0, long(&list))]);
    assert_eq!(tcp(&in_records(&message, 999)), tls_name("a.example"));
}

#[test]
fn what_is_no_hello_with_a_name_is_not_this() {
    let good = hello(&[sni("a.example")]);
    let changed = |at: usize, byte: u8| {
        let mut bytes = in_records(&good, 999);
        bytes[at] = byte;
        bytes
    };
    let too_long = hello(&[sni("a.example"), (21, vec![0; LIMIT])]);
    for (what, bytes) in [
        ("another version", changed(1, 2)),
        ("an empty record", changed(4, 0)),
        ("a record of 64 KiB", changed(3, 0xff)),
        ("a server hello", changed(5, 2)),
        ("a message that ends within", changed(8, 60)),
        ("no extensions", in_records(&hello(&[]), 999)),
        ("no server name", in_records(&hello(&[GREASE]), 999)),
        ("two", in_records(&hello(&[sni("a.b"), sni("a.b")]), 999)),
        ("an address", in_records(&hello(&[sni("192.0.2.1")]), 999)),
        ("no name", in_records(&hello(&[sni("")]), 999)),
        ("an odd name", in_records(&hello(&[sni("a b")]), 999)),
        ("an empty list", in_records(&hello(&[(0, long(b""))]), 999)),
        (
            "an empty extension",
            in_records(&hello(&[(0, vec![])]), 999),
        ),
        ("too long", in_records(&too_long, 1 << 14)[..2000].to_vec()),
        (
            "another record",
            [in_records(&good[..9], 9), vec![23]].concat(),
        ),
        ("an alert", vec![21, 3, 1, 0, 2]),
        ("SSH", b"SSH-2.0-OpenSSH\r\n".to_vec()),
        ("BitTorrent", b"\x13BitTorrent protocol".to_vec()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("SMTP", b"EHLO a.example\r\n".to_vec()),
        ("lower case", b"get / HTTP/1.1\r\n".to_vec()),
        ("zeros", vec![0; 9]),
    ] {
        assert_eq!(tcp(&bytes), Progress::NotThis, "{what}");
    }
    assert_eq!(tcp(b""), Progress::NeedMore);
}

#[test]
fn requests_name_their_host() {
    for (request, name) in [
        ("GET / HTTP/1.1\r\nHost: a.example\r\n", "a.example"),
        (
            "GET / HTTP/1.1\r\nA: b\r\nhOST:A.Example.:8080 \r\n",
            "a.example",
        ),
        ("\r\nM-SEARCH * HTTP/1.1\nHost:\ta.example\n", "a.example"),
        (
            "GET / HTTP/1.0\r\nHostess: b\r\nHost: a.example\r\n",
            "a.example",
        ),
        ("CONNECT a.example:443 HTTP/1.1\r\n", "a.example"),
        ("GET http://a.example HTTP/1.1\r\n", "a.example"),
        (
            "GET HTTP://me:pw@A.example:80/@x:1?b HTTP/1.1\r\n",
            "a.example",
        ),
        ("GET ws://a.example?b HTTP/1.1\r\n", "a.example"),
    ] {
        assert_eq!(tcp(request.as_bytes()), http_name(name), "{request}");
        for end in 0..request.len() {
            let part = &request.as_bytes()[..end];
            assert_eq!(tcp(part), Progress::NeedMore, "{request} {end}");
        }
    }
    let both = b"GET http://a.example/ HTTP/1.1\r\nHost: b.example\r\n";
    assert_eq!(tcp(both), http_name("a.example"));
    for request in [
        "GET / HTTP/1.1\r\n\r\nHost: a.example\r\n",
        "GET / HTTP/1.1\r\nHost: 192.0.2.1:80\r\n",
        "GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n",
        "GET / HTTP/2.0\r\n",
        "GET  / HTTP/1.1\r\n",
        "GET / HTTP/1.1 x\r\n",
        "GET /\r\n",
        "GET /\0",
        "GET /\0 HTTP/1.1\r\n",
        "GET /a\rb HTTP/1.1\r\n",
        "G:T",
        " GET",
        "\r\n\r\n\r\nGET / HTTP/1.1\r\n",
        "CONNECT [2001:db8::1]:443 HTTP/1.1\r\n",
        "AMETHODOFMORELETTERSTHANANY",
    ] {
        assert_eq!(tcp(request.as_bytes()), Progress::NotThis, "{request}");
    }
}

#[test]
fn no_more_than_the_limit_is_kept() {
    for (start, more) in [
        ("GET / HTTP/1.1\r\n", "a: b\r\n"),
        ("GET /", "a"),
        ("\x16\x03\x01\x3f\u{ff}\x01\0", "\0"),
    ] {
        let start: Vec<u8> = start.chars().map(|byte| byte as u8).collect();
        let mut sniffer = Tcp::new();
        let mut fed = start.len();
        let mut progress = sniffer.feed(&start).clone();
        while progress == Progress::NeedMore && fed < 2 * LIMIT {
            progress = sniffer.feed(more.repeat(50).as_bytes()).clone();
            fed += more.len() * 50;
            assert!(sniffer.memory() <= 2 * LIMIT);
        }
        assert_eq!(progress, Progress::NotThis);
        assert!(fed < LIMIT + 1_000);
        assert_eq!(sniffer.memory(), 0);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        pieces in prop::collection::vec(prop_oneof![
            prop::collection::vec(any::<u8>(), 0..50),
            Just(b"\x16\x03\x01\x00\x20".to_vec()),
            Just(b"GET / HTTP/1.1\r\nHost: ".to_vec()),
            Just(b"CONNECT ".to_vec()),
        ], 0..20),
    ) {
        let mut sniffer = Tcp::new();
        for piece in &pieces {
            sniffer.feed(piece);
            prop_assert!(sniffer.memory() <= 2 * LIMIT);
        }
        prop_assert_eq!(&tcp(&pieces.concat()), sniffer.feed(b""));
    }

    #[test]
    fn no_slip_makes_it_panic(
        extensions in prop::collection::vec(prop_oneof![
            Just(sni("a.example")),
            Just(GREASE),
            (any::<u16>(), prop::collection::vec(any::<u8>(), 0..20)),
        ], 0..5),
        slips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        size in 1..200_usize,
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = in_records(&hello(&extensions), size);
        for (at, byte) in slips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = tcp(&bytes);
        let _ = tcp(&bytes[..cut.index(bytes.len())]);
    }
}
