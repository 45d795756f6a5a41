mod names;
mod nowhere;
mod probe;
mod rules;
mod shadowsocks;
mod socks5;
mod trojan;

use super::*;
use crate::data::stats::Counters;
use crate::net::SocketFactory;
use std::collections::BTreeSet;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

/// A relay whose datagrams are handed to it, as if the kernel half had steered them.
struct Bench {
    relay: Arc<UdpRelay>,
    receiver: Arc<Receiver>,
}

impl Bench {
    fn new(outbound: &str, associations: usize, address: &str) -> Self {
        Self::with_router(Router::fixed(outbound), associations, address)
    }

    fn with_router(router: Router, associations: usize, address: &str) -> Self {
        let limits = Limits::default();
        let factory = SocketFactory::default();
        let budget = Budget {
            open_files: 1024,
            connections: 1,
            associations,
            pipes: 1,
        };
        let socket = factory
            .udp_receiver(address.parse().expect("a literal"))
            .expect("root");
        let own = socket.local_addr().expect("bound");
        Self {
            relay: UdpRelay::new(Hands::fixed(router, &limits), budget, &limits),
            receiver: UdpRelay::register(socket, own).expect("in a runtime"),
        }
    }

    fn steer(&self, datagrams: &[(SocketAddr, SocketAddr, &[u8])]) {
        for batch in datagrams.chunks(BATCH) {
            let received = batch.iter().map(|(peer, original, payload)| {
                Some(Received {
                    peer: *peer,
                    original: Some(*original),
                    payload,
                })
            });
            let mut send = SendBatch::default();
            self.relay.forward(&self.receiver, received, &mut send);
        }
    }

    fn counters(&self) -> &Counters {
        &self.relay.hands.shared.counters
    }
}

/// Waits until this is so, which something else brings about.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, waiting).await.expect(what);
}

async fn bind(address: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(address).await.expect("loopback");
    let address = socket.local_addr().expect("bound");
    (socket, address)
}

async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let received = timeout(SOON, socket.recv_from(&mut buffer)).await;
    let (length, from) = received.expect("in time").expect("a datagram");
    buffer.truncate(length);
    (buffer, from)
}

#[tokio::test]
async fn one_upstream_port_for_all_peers_and_any_peer_may_answer() {
    for any in ["127.0.0.1:0", "[::1]:0"] {
        let bench = Bench::new("direct://", 10, any);
        let (device, client) = bind(any).await;
        let mut ports = BTreeSet::new();
        let mut upstream = None;
        for number in 0..40_u8 {
            let (peer, address) = bind(any).await;
            bench.steer(&[(client, address, &[number])]);
            let (payload, from) = receive(&peer).await;
            assert_eq!(payload, [number]);
            ports.insert(from.port());
            upstream = Some(from);
        }
        assert_eq!(ports.len(), 1);
        assert_eq!(bench.counters().now(Protocol::Udp).load(Relaxed), 1);
        assert_eq!(bench.counters().flows.load(Relaxed), 0);
        // One that was never spoken to.
        let (stranger, _) = bind(any).await;
        let upstream = upstream.expect("an upstream socket");
        stranger.send_to(b"hello", upstream).await.expect("sent");
        let (payload, from) = receive(&device).await;
        assert_eq!(payload, b"hello");
        assert_eq!(from, bench.receiver.own, "the kernel half writes the port");
    }
}

#[tokio::test]
async fn datagrams_of_every_size_go_there_and_back() {
    for any in ["127.0.0.1:0", "[::1]:0"] {
        let bench = Bench::new("direct://", 10, any);
        let (device, client) = bind(any).await;
        let (peer, address) = bind(any).await;
        for size in [0, 1, 1472, 1473, 9000, 65_507] {
            let payload = vec![size as u8; size];
            bench.steer(&[(client, address, &payload)]);
            let (got, upstream) = receive(&peer).await;
            assert!(got == payload, "{size} bytes changed on the way up");
            peer.send_to(&got, upstream).await.expect("sent");
            let (got, _) = receive(&device).await;
            assert!(got == payload, "{size} bytes changed on the way down");
        }
        let bytes = bench.counters().up.load(Relaxed);
        assert_eq!(bytes, 1 + 1472 + 1473 + 9000 + 65_507);
    }
}

#[tokio::test]
async fn a_mixed_batch_keeps_the_order_of_each_client() {
    let bench = Bench::new("direct://", 10, "127.0.0.1:0");
    let (peer, address) = bind("127.0.0.1:0").await;
    let clients: [SocketAddr; 3] = [1, 2, 3].map(|number| ([192, 0, 2, number], 5000).into());
    let payloads: Vec<[u8; 2]> = (0..90).map(|number| [number % 3, number]).collect();
    let batch: Vec<(SocketAddr, SocketAddr, &[u8])> = payloads
        .iter()
        .map(|payload| (clients[usize::from(payload[0])], address, &payload[..]))
        .collect();
    bench.steer(&batch);
    let mut last = [None; 3];
    let mut ports = BTreeSet::new();
    for _ in 0..90 {
        let (payload, from) = receive(&peer).await;
        let last = &mut last[usize::from(payload[0])];
        assert!(last.is_none_or(|last| last < payload[1]), "out of order");
        *last = Some(payload[1]);
        ports.insert(from.port());
    }
    assert_eq!(ports.len(), 3);
}

#[tokio::test]
async fn the_receiver_itself_hands_on_and_refuses_its_own_port() {
    let bench = Bench::new("direct://", 10, "127.0.0.1:0");
    let receiving = Arc::clone(&bench.relay).receive(Arc::clone(&bench.receiver));
    tokio::spawn(receiving);
    let (device, _) = bind("127.0.0.1:0").await;
    device
        .send_to(b"x", bench.receiver.own)
        .await
        .expect("sent");
    let counter = &bench.counters().own_port_datagrams;
    let counted = async {
        while counter.load(Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, counted).await.expect("it is counted");
    assert_eq!(bench.counters().total(Protocol::Udp).load(Relaxed), 0);
}

#[tokio::test]
async fn port_zero_is_dropped_and_counted() {
    let bench = Bench::new("direct://", 10, "127.0.0.1:0");
    let client = "192.0.2.1:5000".parse().expect("literal");
    let nowhere = "203.0.113.1:0".parse().expect("literal");
    bench.steer(&[(client, nowhere, b"x")]);
    assert_eq!(bench.counters().port_zero.load(Relaxed), 1);
    assert_eq!(bench.counters().total(Protocol::Udp).load(Relaxed), 0);
}

#[tokio::test]
async fn a_peer_that_is_not_there_does_not_end_the_association() {
    let bench = Bench::new("direct://", 10, "127.0.0.1:0");
    let (_device, client) = bind("127.0.0.1:0").await;
    let (gone, nobody) = bind("127.0.0.1:0").await;
    drop(gone);
    let (peer, address) = bind("127.0.0.1:0").await;
    bench.steer(&[(client, address, b"1")]);
    let (_, first) = receive(&peer).await;
    for _ in 0..5 {
        bench.steer(&[(client, nobody, b"x")]);
        tokio::task::yield_now().await;
    }
    bench.steer(&[(client, address, b"2")]);
    let (_, second) = receive(&peer).await;
    assert_eq!(first, second);
    assert_eq!(bench.counters().total(Protocol::Udp).load(Relaxed), 1);
}

#[tokio::test]
async fn the_cap_evicts_the_longest_unused_and_counts_it() {
    let bench = Bench::new("direct://", 2, "127.0.0.1:0");
    let (peer, address) = bind("127.0.0.1:0").await;
    let clients: [SocketAddr; 3] = [1, 2, 3].map(|number| ([192, 0, 2, number], 5000).into());
    let mut ports = Vec::new();
    for client in [0, 1, 0, 2, 0] {
        bench.steer(&[(clients[client], address, b"x")]);
        ports.push(receive(&peer).await.1.port());
    }
    assert_eq!(ports[0], ports[2], "used again, so not the longest unused");
    assert_eq!(ports[0], ports[4], "it outlived the one that was evicted");
    let live = bench.counters().now(Protocol::Udp);
    let evicted = async {
        while live.load(Relaxed) > 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, evicted).await.expect("its task ends");
    let evicted = bench.counters().ended(Outcome::Evicted);
    assert_eq!(evicted.load(Relaxed), 1);
}

#[tokio::test]
async fn idle_associations_end_by_their_class() {
    let bench = Bench::new("direct://", 10, "127.0.0.1:0");
    let dns: SocketAddr = "127.0.0.1:53".parse().expect("literal");
    let (_peer, other) = bind("127.0.0.1:0").await;
    bench.steer(&[
        ("192.0.2.1:5000".parse().expect("literal"), dns, b"x"),
        ("192.0.2.2:5000".parse().expect("literal"), other, b"x"),
        ("192.0.2.2:5000".parse().expect("literal"), dns, b"x"),
    ]);
    let live = async |wanted| {
        let counter = bench.counters().now(Protocol::Udp);
        let reached = async {
            while counter.load(Relaxed) != wanted {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, reached).await.expect("associations end");
    };
    let now = Instant::now();
    bench.relay.sweep_at(now + Duration::from_secs(9));
    live(2).await;
    bench.relay.sweep_at(now + Duration::from_secs(11));
    live(1).await;
    bench.relay.sweep_at(now + Duration::from_secs(301));
    live(0).await;
    let idle = bench.counters().ended(Outcome::Idle);
    assert_eq!(idle.load(Relaxed), 2);
}
