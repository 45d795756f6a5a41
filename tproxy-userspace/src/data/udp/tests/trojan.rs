//! Associations with a Trojan server.

use super::*;
use crate::data::outbound::trojan::{Parsed, parse_datagram, put_datagram};
use crate::data::tls::samples;
use crate::data::way::Way;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Bytes before the first datagram: the password's hash and the request for an IPv4 target, with their ends of line.
const HEAD: usize = 56 + 2 + 1 + 7 + 2;

/// The server's part.
pub struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Server {
    pub async fn start() -> (Self, Way) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let (acceptor, roots) = samples::certified("trojan.example", &[]);
        let way = Way::trusting(&format!("trojan://secret@{address}"), &roots);
        (Self { listener, acceptor }, way)
    }

    /// The next stream, of which only TLS was looked at.
    async fn accept(&self) -> TlsStream<TcpStream> {
        let (stream, _) = self.listener.accept().await.expect("a client came");
        self.acceptor.accept(stream).await.expect("trusted")
    }

    /// The next stream that carries datagrams, the first of them for `first`.
    pub async fn associate(&self, first: SocketAddr) -> Association {
        let mut stream = self.accept().await;
        let mut head = [0; HEAD];
        stream.read_exact(&mut head).await.expect("a head");
        assert_eq!(head[56..59], *b"\r\n\x03");
        let mut address = Vec::new();
        assert!(put_datagram(first, b"", &mut address));
        assert_eq!(head[59..], [&address[..7], b"\r\n"].concat());
        Association {
            stream,
            came: Vec::new(),
        }
    }
}

pub struct Association {
    stream: TlsStream<TcpStream>,
    came: Vec<u8>,
}

impl Association {
    /// The next datagram: for whom, and what.
    pub async fn receive(&mut self) -> (SocketAddr, Vec<u8>) {
        loop {
            if let Parsed::Datagram { peer, payload } = parse_datagram(&self.came).expect("sound") {
                let bytes = self.came[payload.clone()].to_vec();
                self.came.drain(..payload.end);
                return (peer.expect("an address"), bytes);
            }
            let read = timeout(SOON, self.stream.read_buf(&mut self.came)).await;
            assert_ne!(read.expect("in time").expect("a stream"), 0);
        }
    }

    pub async fn answer(&mut self, datagrams: &[(SocketAddr, &[u8])]) {
        let mut bytes = Vec::new();
        for (peer, payload) in datagrams {
            assert!(put_datagram(*peer, payload, &mut bytes));
        }
        self.write(&bytes).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("room");
        self.stream.flush().await.expect("room");
    }
}

fn peer(number: u8) -> SocketAddr {
    ([192, 0, 2, number], 443).into()
}

#[tokio::test]
async fn datagrams_wait_for_the_stream_and_come_whole_both_ways() {
    let (server, way) = Server::start().await;
    let bench = Bench::with_router(way.into(), 10, "127.0.0.1:0");
    let (device, client) = bind("127.0.0.1:0").await;
    bench.steer(&[(client, peer(1), b"one"), (client, peer(2), b"")]);
    let mut association = server.associate(peer(1)).await;
    assert_eq!(association.receive().await, (peer(1), b"one".to_vec()));
    assert_eq!(association.receive().await, (peer(2), Vec::new()));
    for size in [0, 1, 1_200, 9_000, 65_507] {
        let payload = vec![size as u8; size];
        bench.steer(&[(client, peer(3), &payload)]);
        assert!(association.receive().await == (peer(3), payload.clone()));
        association.answer(&[(peer(3), &payload)]).await;
        assert!(receive(&device).await.0 == payload, "{size} bytes changed");
    }
    let bytes = 1 + 1_200 + 9_000 + 65_507;
    assert_eq!(bench.counters().up.load(Relaxed), bytes + 3);
    assert_eq!(bench.counters().down.load(Relaxed), bytes);

    // More than a batch in one write, with one that no device could make sense of; then one in pieces.
    let many: Vec<[u8; 1]> = (0..100).map(|number| [number]).collect();
    let mut all: Vec<_> = many.iter().map(|one| (peer(4), &one[..])).collect();
    all.insert(50, ("[2001:db8::1]:7".parse().expect("a literal"), b"no"));
    association.answer(&all).await;
    for one in &many {
        assert_eq!(receive(&device).await.0, one);
    }
    assert_eq!(bench.counters().datagrams_dropped.load(Relaxed), 1);
    let mut frame = Vec::new();
    assert!(put_datagram(peer(5), &[5; 3_000], &mut frame));
    for piece in frame.chunks(400) {
        association.write(piece).await;
    }
    assert_eq!(receive(&device).await.0, [5; 3_000]);
    assert_eq!(bench.counters().total(Protocol::Udp).load(Relaxed), 1);

    // The association goes: so does the stream.
    let later = Instant::now() + Duration::from_secs(301);
    bench.relay.sweep_at(later);
    let end = timeout(SOON, association.stream.read(&mut [0])).await;
    assert!(matches!(end.expect("in time"), Ok(0) | Err(_)));
    let idle = bench.counters().ended(Outcome::Idle);
    until("the end", || idle.load(Relaxed) == 1).await;
}

#[tokio::test]
async fn what_the_stream_has_no_room_for_is_dropped_and_counted() {
    let (server, way) = Server::start().await;
    let bench = Bench::with_router(way.into(), 10, "127.0.0.1:0");
    let client = "192.0.2.9:5000".parse().expect("a literal");
    bench.steer(&[(client, peer(1), b"first")]);
    let mut association = server.associate(peer(1)).await;
    assert_eq!(association.receive().await.1, b"first");
    let (sent, blocked) = (&bench.counters().up, &bench.counters().datagrams_blocked);
    let mut last = 0;
    let payload = [9; 10_000];
    while blocked.load(Relaxed) < 10 {
        bench.steer(&[(client, peer(1), &payload)]);
        tokio::task::yield_now().await;
        last += 1;
    }
    // Nothing that was taken is lost.
    let taken = (sent.load(Relaxed) - 5) / 10_000;
    assert_eq!(taken + blocked.load(Relaxed), last);
    for _ in 0..taken {
        assert_eq!(association.receive().await.1, payload);
    }
    bench.steer(&[(client, peer(1), b"last")]);
    assert_eq!(association.receive().await.1, b"last");
}

#[tokio::test]
async fn a_stream_that_ends_is_followed_by_another_one() {
    let (server, way) = Server::start().await;
    let bench = Bench::with_router(way.into(), 10, "127.0.0.1:0");
    let (device, client) = bind("127.0.0.1:0").await;
    for number in 1..3 {
        bench.steer(&[(client, peer(number), b"question")]);
        let mut association = server.associate(peer(number)).await;
        association.receive().await;
        association.answer(&[(peer(number), b"answer")]).await;
        assert_eq!(receive(&device).await.0, b"answer");
        drop(association);
        let reset = bench.counters().ended(Outcome::UpstreamReset);
        until("its end", || reset.load(Relaxed) == u64::from(number)).await;
        assert_eq!(bench.relay.table().len(), 0);
    }
}

#[tokio::test]
async fn a_wrong_password_shows_and_is_not_tried_with_every_datagram() {
    tokio::join!(
        is_told(b"HTTP/1.1 400 Bad Request\r\n\r\n", Outcome::ProxyAuth),
        is_told(b"", Outcome::ProxyAuth),
        is_told(b"SSH-2.0-OpenSSH", Outcome::ProxyProtocol),
    );
}

/// Of a server that says this and ends the stream.
async fn is_told(said: &[u8], outcome: Outcome) {
    let (server, way) = Server::start().await;
    let bench = Bench::with_router(way.into(), 10, "127.0.0.1:0");
    let (_device, client) = bind("127.0.0.1:0").await;
    bench.steer(&[(client, peer(1), b"question")]);
    let mut stream = server.accept().await;
    stream.read_exact(&mut [0; HEAD]).await.expect("a head");
    stream.write_all(said).await.expect("room");
    stream.shutdown().await.expect("room");
    let ended = bench.counters().ended(outcome);
    while ended.load(Relaxed) == 0 {
        bench.steer(&[(client, peer(1), b"question")]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(bench.counters().datagrams_blocked.load(Relaxed) > 10);
    let total = bench.counters().total(Protocol::Udp).load(Relaxed);
    assert!(total <= 2, "{total}");
}
