//! Associations with a Shadowsocks server.

use super::*;
use crate::data::Sockets;
use crate::data::guard::Guard;
use crate::data::outbound::shadowsocks::{PacketOpener, PacketSealer, ShadowsocksServer, session};
use crate::data::way::Way;

/// The server's part. With these methods it speaks as a client does (SIP004).
pub struct Server {
    pub socket: UdpSocket,
    pub url: String,
    sealer: PacketSealer,
    opener: PacketOpener,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_at("127.0.0.1:0").await
    }

    async fn start_at(address: &str) -> Self {
        let (socket, address) = bind(address).await;
        let url = format!("ss://aes-128-gcm:secret@{address}");
        let server: ShadowsocksServer = url.parse().expect("a URL");
        let (sealer, opener) = session(&server.keys);
        Self {
            socket,
            url,
            sealer,
            opener,
        }
    }

    /// The next datagram: for whom, what, and from where.
    pub async fn receive(&mut self) -> (SocketAddr, Vec<u8>, SocketAddr) {
        let (bytes, from) = receive(&self.socket).await;
        let mut out = Vec::new();
        let (peer, payload) = self.opener.open(&bytes, &mut out).expect("ours");
        (peer.expect("an address"), out[payload].to_vec(), from)
    }

    pub async fn answer(&self, peer: SocketAddr, payload: &[u8], to: SocketAddr) {
        let mut out = Vec::new();
        self.sealer.seal(peer, payload, &mut out);
        self.socket.send_to(&out, to).await.expect("sent");
    }
}

const PEERS: [&str; 3] = ["192.0.2.1:443", "192.0.2.1:53", "198.51.100.1:443"];

fn peers() -> [SocketAddr; 3] {
    PEERS.map(|peer| peer.parse().expect("a literal"))
}

#[tokio::test]
async fn all_peers_are_one_session_and_any_may_answer() {
    let mut server = Server::start().await;
    let bench = Bench::new(&server.url, 10, "127.0.0.1:0");
    let (device, client) = bind("127.0.0.1:0").await;
    let mut ports = BTreeSet::new();
    for peer in peers() {
        bench.steer(&[(client, peer, b"one"), (client, peer, b"another")]);
        for expected in [&b"one"[..], b"another"] {
            let (to, payload, from) = server.receive().await;
            assert_eq!((to, &payload[..]), (peer, expected));
            ports.insert(from);
        }
    }
    assert_eq!(ports.len(), 1);
    assert_eq!(bench.counters().up.load(Relaxed), 3 * 10);
    let upstream = *ports.first().expect("one");
    let stranger = "203.0.113.1:7".parse().expect("a literal");
    server.answer(stranger, b"hello", upstream).await;
    assert_eq!(receive(&device).await.0, b"hello");
    assert_eq!(bench.counters().down.load(Relaxed), 5);
    assert_eq!(bench.counters().total(Protocol::Udp).load(Relaxed), 1);
}

#[tokio::test]
async fn sizes_and_batches_are_whole_and_what_does_not_fit_is_refused() {
    // Salt, address and tag.
    const OVERHEAD: usize = 16 + 7 + 16;
    let mut server = Server::start().await;
    let bench = Bench::new(&server.url, 10, "127.0.0.1:0");
    let (device, client) = bind("127.0.0.1:0").await;
    let [peer, ..] = peers();
    let largest = 65_507 - OVERHEAD;
    for size in [0, 1, 1_200, 9_000, largest] {
        let payload = vec![size as u8; size];
        bench.steer(&[(client, peer, &payload)]);
        let (_, got, from) = server.receive().await;
        assert!(got == payload, "{size} bytes changed on the way up");
        server.answer(peer, &got, from).await;
        assert!(
            receive(&device).await.0 == payload,
            "{size} bytes changed on the way down"
        );
    }
    let bytes = 1 + 1_200 + 9_000 + largest as u64;
    assert_eq!(bench.counters().up.load(Relaxed), bytes);
    assert_eq!(bench.counters().down.load(Relaxed), bytes);
    let more = vec![0; largest + 1];
    bench.steer(&[(client, peer, &more), (client, peer, b"behind")]);
    assert_eq!(server.receive().await.1, b"behind");
    assert_eq!(bench.counters().datagrams_refused.load(Relaxed), 1);
    assert_eq!(bench.counters().up.load(Relaxed), bytes + 6);

    let many: Vec<[u8; 1]> = (0..100).map(|number| [number]).collect();
    let batch: Vec<_> = many.iter().map(|one| (client, peer, &one[..])).collect();
    bench.steer(&batch);
    for one in many {
        assert_eq!(server.receive().await.1, one);
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_dropped_and_a_server_that_comes_back_is_used_again() {
    let mut server = Server::start().await;
    let bench = Bench::new(&server.url, 10, "127.0.0.1:0");
    let (device, client) = bind("127.0.0.1:0").await;
    let [peer, ..] = peers();
    bench.steer(&[(client, peer, b"one")]);
    let (_, _, upstream) = server.receive().await;
    server
        .socket
        .send_to(&[7; 60], upstream)
        .await
        .expect("sent");
    // Of another family than the device is.
    let other = "[2001:db8::1]:443".parse().expect("a literal");
    server.answer(other, b"no", upstream).await;
    server.answer(peer, b"yes", upstream).await;
    assert_eq!(receive(&device).await.0, b"yes");
    assert_eq!(bench.counters().datagrams_dropped.load(Relaxed), 2);

    let address = server.socket.local_addr().expect("bound").to_string();
    drop(server);
    for _ in 0..3 {
        bench.steer(&[(client, peer, b"lost")]);
        tokio::task::yield_now().await;
    }
    let mut server = Server::start_at(&address).await;
    bench.steer(&[(client, peer, b"two")]);
    let (_, payload, again) = server.receive().await;
    assert_eq!((&payload[..], again), (&b"two"[..], upstream));
    server.answer(peer, b"back", again).await;
    assert_eq!(receive(&device).await.0, b"back");

    bench
        .relay
        .sweep_at(Instant::now() + Duration::from_secs(301));
    let live = bench.counters().now(Protocol::Udp);
    until("the end", || live.load(Relaxed) == 0).await;
    assert_eq!(bench.counters().ended(Outcome::Idle).load(Relaxed), 1);
}

#[tokio::test]
async fn a_server_that_is_the_proxy_itself_is_not_written_to() {
    let factory = SocketFactory::default();
    let sockets = Sockets::bind(&factory, None, &Limits::default()).expect("root");
    let own = sockets.v4.receiver_address;
    let guard = Guard::new(&sockets, BTreeSet::new());
    let way = Way::fixed(&format!("ss://aes-128-gcm:secret@{own}"));
    let mut dialer = Hands::fixed(Router::fixed("direct://"), &Limits::default()).dialer;
    dialer.guard = Arc::new(guard);
    let [peer, ..] = peers();
    let error = upstream::reach(&dialer, &way, peer).await;
    let error = error.expect_err("a loop");
    assert_eq!(error.outcome(), Outcome::Loop, "{error}");
}
