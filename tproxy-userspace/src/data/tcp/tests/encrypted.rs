//! Shadowsocks and Trojan: what goes with the first payload, and what shows that a password is wrong.

use tokio::net::TcpListener;
use tokio_rustls::server::TlsStream;

use super::*;
use crate::data::logged::Lines;
use crate::data::outbound::Target;
use crate::data::outbound::shadowsocks::tests::{answer, play, serve};
use crate::data::outbound::shadowsocks::{Keys, Method};

/// What a Trojan server gets before the payload for 192.0.2.1:443, with "password".
const HEAD: &[u8] =
    b"d63dc919e201d7bc4c825630d2cf25fdc93d4b2f0d46706d29038d01\r\n\x01\x01\xc0\x00\x02\x01\x01\xbb\r\n";
/// The beginning of a TLS client hello.
const HELLO: &[u8] = b"\x16\x03\x01\x00\x06hello!";
const LONG_AGO: u64 = 1_000_000;

fn far(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

/// A device that has sent this before its connection is relayed.
async fn sending(relay: &Arc<TcpRelay>, destination: SocketAddr, bytes: &[u8]) -> TcpStream {
    let (front, address) = listen().await;
    let mut device = TcpStream::connect(address).await.expect("it listens");
    send(&mut device, bytes).await;
    let (accepted, client) = front.accept().await.expect("the device came");
    relay.relay_to(accepted, client, destination);
    device
}

async fn some(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let read = timeout(SOON, stream.read(&mut bytes)).await;
    bytes.truncate(read.expect("in time").expect("connected"));
    bytes
}

/// A Trojan server, and a relay that uses it.
struct Trojan {
    listener: TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
    relay: Arc<TcpRelay>,
}

impl Trojan {
    async fn new() -> Self {
        let (listener, address) = listen().await;
        let (acceptor, roots) = secure::certified();
        let url = format!("trojan://password@{address}?sni=proxy.example");
        let way = Way::trusting(&url, &roots);
        Self {
            listener,
            acceptor,
            relay: relay_by(10, 8, way.into(), &Limits::default()),
        }
    }

    async fn accept(&self) -> TlsStream<TcpStream> {
        let (stream, _) = self.listener.accept().await.expect("a client came");
        self.acceptor.accept(stream).await.expect("a handshake")
    }

    /// The server's end, after it has got these bytes and the target before them.
    async fn got(&self, payload: &[u8]) -> TlsStream<TcpStream> {
        let mut server = self.accept().await;
        assert_eq!(some(&mut server).await, [HEAD, payload].concat());
        server
    }
}

#[tokio::test]
async fn trojan_gets_target_and_payload_at_once_by_tls_of_the_right_name() {
    let trojan = Trojan::new().await;
    let mut device = sending(&trojan.relay, far(443), HELLO).await;
    let mut server = trojan.got(HELLO).await;
    assert_eq!(server.get_ref().1.server_name(), Some("proxy.example"));
    send(&mut server, b"answer").await;
    assert_eq!(read(&mut device, 6).await, b"answer");
    send(&mut device, b"more").await;
    assert_eq!(read(&mut server, 4).await, b"more");
    device.shutdown().await.expect("connected");
    assert!(is_end(&mut server).await);
    server.shutdown().await.expect("connected");
    assert!(is_end(&mut device).await);
    assert_eq!(outcome(&trojan.relay).await, Outcome::Finished);
}

#[tokio::test]
async fn a_server_that_speaks_first_is_asked_for() {
    let trojan = Trojan::new().await;
    let mut device = device(&trojan.relay, far(443)).await;
    let mut server = trojan.got(b"").await;
    send(&mut server, b"220 hello\r\n").await;
    assert_eq!(read(&mut device, 11).await, b"220 hello\r\n");
    send(&mut device, b"QUIT\r\n").await;
    assert_eq!(read(&mut server, 6).await, b"QUIT\r\n");
}

#[tokio::test]
async fn no_answer_is_a_wrong_password_only_to_a_device_that_waits_for_one() {
    for (sent, ends, expected) in [
        (HELLO, false, Outcome::ProxyAuth),
        (HELLO, true, Outcome::Finished),
        (b"", false, Outcome::Finished),
    ] {
        let trojan = Trojan::new().await;
        let mut device = sending(&trojan.relay, far(443), sent).await;
        if ends {
            device.shutdown().await.expect("connected");
        }
        let mut server = trojan.got(sent).await;
        if ends {
            assert!(is_end(&mut server).await);
        }
        server.shutdown().await.expect("connected");
        if expected == Outcome::ProxyAuth {
            assert!(is_reset(&mut device).await);
        } else {
            assert!(is_end(&mut device).await);
            device.shutdown().await.expect("half open");
            drop(device);
        }
        drop(server);
        assert_eq!(outcome(&trojan.relay).await, expected);
    }
    // A reset, and an answer before the end.
    let trojan = Trojan::new().await;
    let mut device = sending(&trojan.relay, far(443), HELLO).await;
    let server = trojan.got(HELLO).await;
    reset_on_close(server.get_ref().0);
    drop(server);
    assert!(is_reset(&mut device).await);
    assert_eq!(outcome(&trojan.relay).await, Outcome::ProxyAuth);
    let trojan = Trojan::new().await;
    let mut device = sending(&trojan.relay, far(443), HELLO).await;
    let mut server = trojan.got(HELLO).await;
    send(&mut server, b"x").await;
    assert_eq!(read(&mut device, 1).await, b"x");
    reset_on_close(server.get_ref().0);
    drop(server);
    assert!(is_reset(&mut device).await);
    assert_eq!(outcome(&trojan.relay).await, Outcome::UpstreamReset);
}

#[tokio::test]
async fn a_server_that_has_answered_is_not_blamed_for_destinations_that_hang_up() {
    let trojan = Trojan::new().await;
    let counters = &trojan.relay.hands.shared.counters;
    let count = |outcome| counters.ended(outcome).load(Relaxed);
    let hang_up = async |expected| {
        let before = count(expected);
        let mut device = sending(&trojan.relay, far(443), HELLO).await;
        let mut server = trojan.got(HELLO).await;
        server.shutdown().await.expect("connected");
        assert!(is_reset(&mut device).await);
        let ended = timeout(SOON, trojan.relay.ended()).await;
        ended.expect("the connection ends");
        assert_eq!(count(expected), before + 1);
    };
    hang_up(Outcome::ProxyAuth).await;
    let mut device = sending(&trojan.relay, far(443), HELLO).await;
    send(&mut trojan.got(HELLO).await, b"x").await;
    assert_eq!(read(&mut device, 1).await, b"x");
    drop(device);
    // The password was good just now. When nobody answers any more it may be another.
    for _ in 0..19 {
        hang_up(Outcome::UpstreamReset).await;
    }
    hang_up(Outcome::ProxyAuth).await;
}

#[tokio::test]
async fn a_web_page_that_nobody_asked_for_is_a_wrong_password() {
    const BAD: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\r\n";
    for (sent, said, is_wrong) in [
        (HELLO, BAD, true),
        (b"SSH-2.0-x\r\n", BAD, true),
        (b"", BAD, true),
        (b"", b"HTTP/1.0 408 Request Time-out\r\n\r\n", false),
        (b"GET / HTTP/1.1\r\n", BAD, false),
        (HELLO, b"\x16\x03\x03", false),
    ] {
        let trojan = Trojan::new().await;
        let mut device = sending(&trojan.relay, far(443), sent).await;
        let mut server = trojan.got(sent).await;
        send(&mut server, said).await;
        if is_wrong {
            assert!(is_reset(&mut device).await);
            assert_eq!(outcome(&trojan.relay).await, Outcome::ProxyAuth);
        } else {
            assert_eq!(read(&mut device, said.len()).await, said);
        }
    }
}

#[tokio::test]
async fn a_certificate_for_another_name_is_told_with_the_remedy() {
    let (listener, address) = listen().await;
    let (acceptor, roots) = secure::certified();
    let lines = Lines::default();
    let _guard = lines.collect();
    let url = format!("trojan://password@{address}?sni=other.example");
    let relay = relay_by(1, 1, Way::trusting(&url, &roots).into(), &Limits::default());
    let mut device = device(&relay, far(443)).await;
    let (stream, _) = listener.accept().await.expect("a client came");
    let _ = acceptor.accept(stream).await;
    assert!(is_reset(&mut device).await);
    assert_eq!(outcome(&relay).await, Outcome::ProxyTls);
    let words = format!("the TLS handshake with the Trojan server {address} failed: ");
    assert_eq!(lines.with(&words), 1, "{}", lines.text());
    assert_eq!(lines.with("?sni=NAME"), 1, "{}", lines.text());

    // What speaks no TLS, and who says nothing.
    for said in [&b"SSH-2.0-x\r\n"[..], b""] {
        let (listener, address) = listen().await;
        let url = format!("trojan://password@{address}");
        let relay = relay_by(1, 1, Way::trusting(&url, &roots).into(), &Limits::default());
        let mut device = super::device(&relay, far(443)).await;
        let (mut stream, _) = listener.accept().await.expect("a client came");
        send(&mut stream, said).await;
        stream.shutdown().await.expect("connected");
        assert!(is_reset(&mut device).await);
        assert_eq!(outcome(&relay).await, Outcome::ProxyTls);
    }
}

fn keys(method: Method) -> Keys {
    let password: &[u8] = if method.is_2022() {
        b"AAECAwQFBgcICQoLDA0ODw=="
    } else {
        b"password"
    };
    Keys::new(method, password).expect("a password")
}

async fn shadowsocks(method: Method) -> (TcpListener, String) {
    let (listener, address) = listen().await;
    let password = match method.is_2022() {
        true => "AAECAwQFBgcICQoLDA0ODw%3D%3D",
        false => "password",
    };
    (listener, format!("ss://{method}:{password}@{address}"))
}

#[tokio::test]
async fn shadowsocks_gets_target_and_payload_at_once_and_failures_are_told_once() {
    for (method, causes) in [
        (Method::Aes128Gcm, "the method is wrong, or the destination"),
        (
            Method::Blake3Aes128Gcm,
            "or the clocks differ by more than 30 s",
        ),
    ] {
        let (listener, url) = shadowsocks(method).await;
        let keys = keys(method);
        let lines = Lines::default();
        let _guard = lines.collect();
        let way = Way::fixed(&url);
        let relay = relay_by(1, 1, way.into(), &Limits::default());
        for (answers, told) in [(false, 1), (false, 1), (true, 1), (false, 1)] {
            let mut device = sending(&relay, far(443), HELLO).await;
            let (mut server, _) = listener.accept().await.expect("a client came");
            let asked = some(&mut server).await;
            let (target, payload) = serve(&keys, &asked);
            assert_eq!(target, b"\x01\xc0\x00\x02\x01\x01\xbb");
            assert_eq!(payload, HELLO);
            if answers {
                let salt = &asked[..method.key_length()];
                let now = crate::data::outbound::shadowsocks::unix_seconds();
                send(&mut server, &answer(&keys, salt, now, &[b"answer"])).await;
                assert_eq!(read(&mut device, 6).await, b"answer");
            }
            drop(server);
            if answers {
                assert!(is_end(&mut device).await);
            } else {
                assert!(is_reset(&mut device).await);
            }
            drop(device);
            timeout(SOON, relay.ended()).await.expect("in time");
            assert_eq!(lines.with(causes), told, "{}", lines.text());
        }
        let counters = &relay.hands.shared.counters;
        assert_eq!(counters.ended(Outcome::ProxyAuth).load(Relaxed), 2);
        assert_eq!(counters.ended(Outcome::UpstreamReset).load(Relaxed), 1);
        assert_eq!(counters.ended(Outcome::Finished).load(Relaxed), 1);
    }
}

#[tokio::test]
async fn what_cannot_be_decrypted_and_a_clock_that_differs_are_told_apart() {
    let other = Keys::new(Method::Aes128Gcm, b"other").expect("a password");
    for (method, with, now, expected, words) in [
        (
            Method::Aes128Gcm,
            other,
            0,
            Outcome::ProxyAuth,
            "decrypting the Shadowsocks server's first bytes failed",
        ),
        (
            Method::Blake3Aes128Gcm,
            keys(Method::Blake3Aes128Gcm),
            LONG_AGO,
            Outcome::ProxyProtocol,
            "set both by NTP",
        ),
    ] {
        let (listener, url) = shadowsocks(method).await;
        let lines = Lines::default();
        let _guard = lines.collect();
        let relay = relay_by(1, 1, Way::fixed(&url).into(), &Limits::default());
        let mut device = sending(&relay, far(443), HELLO).await;
        let (mut server, _) = listener.accept().await.expect("a client came");
        let asked = some(&mut server).await;
        let salt = &asked[..method.key_length()];
        send(&mut server, &answer(&with, salt, now, &[b"answer"])).await;
        assert!(is_reset(&mut device).await);
        assert_eq!(outcome(&relay).await, expected);
        assert_eq!(lines.with(words), 1, "{}", lines.text());
    }
}

#[tokio::test]
async fn trojan_through_shadowsocks_and_the_other_way_round() {
    let (acceptor, roots) = secure::certified();
    let keys = || keys(Method::Aes128Gcm);
    // Trojan through Shadowsocks: TLS within it.
    let (listener, url) = shadowsocks(Method::Aes128Gcm).await;
    let trojan = Way::trusting("trojan://password@192.0.2.7:443?sni=proxy.example", &roots);
    let way = trojan.via(Way::named("other", &url));
    let relay = relay_by(1, 1, way.into(), &Limits::default());
    let mut device = sending(&relay, far(443), HELLO).await;
    let (server, _) = listener.accept().await.expect("a client came");
    let (target, near) = play(keys(), server).await;
    assert_eq!(target, b"\x01\xc0\x00\x02\x07\x01\xbb");
    let mut server = acceptor.accept(near).await.expect("a handshake");
    assert_eq!(some(&mut server).await, [HEAD, HELLO].concat());
    send(&mut server, b"answer").await;
    assert_eq!(read(&mut device, 6).await, b"answer");

    // Shadowsocks through Trojan: both heads and the payload in one piece.
    let (listener, address) = listen().await;
    let url = format!("trojan://password@{address}");
    let way = Way::fixed("ss://aes-128-gcm:password@192.0.2.1:443");
    let way = way.via(Way::trusting(&url, &roots));
    let relay = relay_by(1, 1, way.into(), &Limits::default());
    let mut device = sending(&relay, far(443), HELLO).await;
    let (server, _) = listener.accept().await.expect("a client came");
    let mut server = acceptor.accept(server).await.expect("a handshake");
    let asked = some(&mut server).await;
    let asked = asked.strip_prefix(HEAD).expect("Trojan's head");
    let (_, payload) = serve(&keys(), asked);
    assert_eq!(payload, HELLO);
    let said = answer(&keys(), &asked[..16], 0, &[b"answer"]);
    send(&mut server, &said).await;
    assert_eq!(read(&mut device, 6).await, b"answer");
}

#[tokio::test]
async fn names_go_to_the_server() {
    let (listener, url) = shadowsocks(Method::Aes128Gcm).await;
    let relay = relay_by(1, 1, Way::fixed(&url).into(), &Limits::default());
    let router = relay.hands.shared.router();
    let target = Target::Name("www.example", 443);
    let dialled = relay.hands.dialer.connect(router.default_way(), target);
    let mut stream = dialled.await.expect("connected");
    assert!(stream.opens_with_payload());
    send(&mut stream, HELLO).await;
    let (mut server, _) = listener.accept().await.expect("a client came");
    let (target, _) = serve(&keys(Method::Aes128Gcm), &some(&mut server).await);
    assert_eq!(target, b"\x03\x0bwww.example\x01\xbb");
}
