//! Tests against a scripted server.

use std::net::SocketAddr;

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

/// SHA-224 of "password".
const HASHED: &str = "d63dc919e201d7bc4c825630d2cf25fdc93d4b2f0d46706d29038d01";

fn target() -> SocketAddr {
    "192.0.2.1:443".parse().expect("literal")
}

fn head(command: u8, address: &[u8]) -> Vec<u8> {
    [HASHED.as_bytes(), b"\r\n", &[command], address, b"\r\n"].concat()
}

const ADDRESS: [u8; 7] = [1, 192, 0, 2, 1, 1, 187];

fn stream(target: Target<'_>, room: usize) -> (TrojanStream<DuplexStream>, DuplexStream) {
    let (client, server) = duplex(room);
    let token = Token::new(b"password");
    let stream = TrojanStream::new(client, &token, Command::Connect, target);
    (stream, server)
}

async fn sent(server: &mut DuplexStream) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let length = server.read(&mut bytes).await.expect("the client sends");
    bytes.truncate(length);
    bytes
}

#[tokio::test]
async fn the_target_goes_with_the_first_payload_or_by_a_flush() {
    let (mut client, mut server) = stream(target().into(), 1 << 20);
    assert!(!format!("{client:?}").contains("100, 54, 51"), "the token");
    client.write_all(b"hello").await.expect("room");
    assert_eq!(
        sent(&mut server).await,
        [&head(1, &ADDRESS)[..], b"hello"].concat()
    );
    client.write_all(b"more").await.expect("room");
    assert_eq!(sent(&mut server).await, b"more");
    // The ways end one by one.
    client.shutdown().await.expect("room");
    assert_eq!(sent(&mut server).await, b"");
    server.write_all(b"answer").await.expect("room");
    drop(server);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.expect("the answer");
    assert_eq!(answer, b"answer");

    let named = Target::Name("example.com", target().port());
    let (mut client, mut server) = stream(named, 1 << 20);
    client.flush().await.expect("room");
    let address = [&b"\x03\x0bexample.com"[..], &[1, 187]].concat();
    assert_eq!(sent(&mut server).await, head(1, &address));
    client.flush().await.expect("room");
    client.write_all(b"x").await.expect("room");
    assert_eq!(sent(&mut server).await, b"x");

    let (mut client, mut server) = stream(target().into(), 1 << 20);
    client.shutdown().await.expect("room");
    assert_eq!(sent(&mut server).await, head(1, &ADDRESS));
}

fn refused(text: &str) -> String {
    text.parse::<TrojanServer>().expect_err(text).to_string()
}

#[test]
fn urls_that_are_servers() {
    for (text, shown) in [
        (
            "trojan://password@trojan.example",
            "trojan://***@trojan.example:443",
        ),
        (
            "trojan://p%40ss@h.example:8443/?sni=n.example&allowInsecure=0#tag",
            "trojan://***@h.example:8443?sni=n.example",
        ),
        (
            "TROJAN://x@[2001:db8::1]:1?peer=n.example&type=tcp&security=tls",
            "trojan://***@[2001:db8::1]:1?sni=n.example",
        ),
        ("trojan://x@[2001:db8::1]:1", "trojan://***@[2001:db8::1]:1"),
        ("trojan://x@192.0.2.1:1?sni=", "trojan://***@192.0.2.1:1"),
    ] {
        let server: TrojanServer = text
            .parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(server.to_string(), shown);
    }
    let server: TrojanServer = "trojan://p%61ssword@h".parse().expect("a URL");
    assert_eq!(server.token.as_bytes(), HASHED.as_bytes());
    assert_eq!(
        format!("{:?} {server:?}", server.token),
        "Token(…) TrojanServer(trojan://***@h:443)"
    );
}

#[test]
fn refusals_say_what_to_do() {
    for (text, part) in [
        ("ss://x@h:1", "does not begin with trojan://"),
        ("trojan://h:1", "no password before the host"),
        ("trojan://a:b@h:1", "write it as %3A"),
        ("trojan://x@y?z@h:1", "%2F, %3F, %23 and %40"),
        ("trojan://x/y@h:1", "%2F, %3F, %23 and %40"),
        ("trojan://x@h:0", "port 0"),
        ("trojan://x@h:1/path", "takes no path"),
        ("trojan://x@h?allowInsecure=1", "allowInsecure=1 is refused"),
        ("trojan://x@h?type=ws", "wants type=ws"),
        ("trojan://x@h?security=reality", "wants security=reality"),
        ("trojan://x@h?fp=chrome", "imitated"),
        ("trojan://x@h?flow=x", "takes no flow; remove it"),
        (
            "trojan://x@h?sni=a%20b",
            "no certificate can be for the name \"a b\"",
        ),
        ("x", "cannot be read"),
    ] {
        let error = refused(text);
        assert!(error.contains(part), "{text}: {error}");
    }
}

type Got = Vec<(Option<SocketAddr>, Vec<u8>)>;

/// Reads as a receiver does: what is needed, then once more.
fn read_in_pieces(bytes: &[u8], piece: usize) -> Result<Got, Malformed> {
    let (mut came, mut got) = (Vec::new(), Vec::new());
    for part in bytes.chunks(piece) {
        came.extend_from_slice(part);
        loop {
            match parse_datagram(&came)? {
                Parsed::Needs(more) => {
                    assert!(more > 0);
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

#[test]
fn datagrams_are_as_the_protocol_page_has_them() {
    let mut out = Vec::new();
    assert!(put_datagram(target(), b"abc", &mut out));
    assert_eq!(out, [&ADDRESS[..], b"\x00\x03\r\nabc"].concat());
    let long = vec![0; LONGEST_PAYLOAD + 1];
    assert!(!put_datagram(target(), &long, &mut out));
    assert_eq!(out.len(), 14, "what does not fit leaves nothing behind");
    assert!(put_datagram(target(), &long[1..], &mut out));
    let named = b"\x03\x01x\x00\x50\x00\x01\r\n!";
    assert_eq!(read_in_pieces(named, 3), Ok(vec![(None, b"!".to_vec())]));
    assert_eq!(
        parse_datagram(b"HTTP/1.1 400"),
        Err(Malformed::AddressType(b'H'))
    );
    let bad = [&ADDRESS[..], b"\x00\x03\n\n"].concat();
    assert_eq!(parse_datagram(&bad), Err(Malformed::EndOfLine));
}

proptest! {
    #[test]
    fn datagrams_come_back_in_any_pieces(
        datagrams in vec((any::<std::net::IpAddr>(), any::<u16>(), vec(any::<u8>(), 0..300)), 0..6), piece in 1..200_usize,
    ) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for (ip, port, payload) in datagrams {
            prop_assert!(put_datagram((ip, port).into(), &payload, &mut bytes));
            expected.push((Some((ip.to_canonical(), port).into()), payload));
        }
        prop_assert_eq!(read_in_pieces(&bytes, piece), Ok(expected));
    }

    #[test]
    fn no_bytes_break_the_parser(bytes in vec(any::<u8>(), 0..100), piece in 1..20_usize) {
        prop_assert_eq!(read_in_pieces(&bytes, piece), read_in_pieces(&bytes, 1));
    }

    #[test]
    fn what_goes_in_comes_out_in_any_pieces(
        lengths in vec(0..40_000_usize, 0..4), room in prop_oneof![20..70_usize, 1000..100_000_usize],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let scale = if room < 70 { 20 } else { 1 };
        let parts = lengths.iter().zip(1..).map(|(length, byte)| vec![byte; length / scale]);
        let parts: Vec<Vec<u8>> = parts.collect();
        let expected = [head(1, &ADDRESS), parts.concat()].concat();
        let bytes = runtime.block_on(async {
            let (mut client, mut server) = stream(target().into(), room);
            let sending = async {
                for part in &parts {
                    client.write_all(part).await.expect("it is taken");
                }
                client.shutdown().await.expect("an end");
            };
            let mut bytes = Vec::new();
            let (_, read) = tokio::join!(sending, server.read_to_end(&mut bytes));
            read.expect("an end");
            bytes
        });
        prop_assert_eq!(bytes, expected);
    }

    #[test]
    fn no_url_makes_it_panic_or_leaks(text in "\\PC{0,20}", secret in "[A-Z]{12,24}") {
        for text in [format!("trojan://{secret}@{text}"), format!("trojan://{text}{secret}@h:1?sni={text}")] {
            let shown = match text.parse::<TrojanServer>() {
                Ok(server) => format!("{server} {server:?}"),
                Err(error) => format!("{error} {error:?}"),
            };
            prop_assert!(!shown.contains(&secret), "{}", shown);
        }
    }
}
