//! Flows by the names in their first datagrams.

use super::rules::{Ways, to};
use super::*;
use crate::data::router::Sniff;
use crate::data::sniff::quic::samples::{incomplete, quinn_datagrams, two_datagrams};
use crate::policy::rule::Rule;

const NAME: &str = "www.video.example";
/// So long that a test which waits for it fails.
const NEVER: Duration = Duration::from_hours(1);

/// What asks for the name goes far.
fn bench(timeout: Duration) -> (Bench, Ways) {
    let ways = Ways::new(&[("near", "direct://"), ("far", "direct://")]);
    let sniff = Sniff {
        timeout,
        rewrite: false,
    };
    let router = ways.router(vec![video("far")], Some(sniff));
    (Bench::with_router(router, 10, "127.0.0.1:0"), ways)
}

fn video(outbound: &str) -> Rule {
    Rule {
        name: "video".to_owned(),
        domain: Some(vec!["video.example".parse().expect("a literal")]),
        prefix: None,
        source: None,
        port: None,
        protocol: None,
        outbound: outbound.to_owned(),
    }
}

/// Gets these datagrams in this order, all from one upstream port, which it returns.
async fn expect(peer: &UdpSocket, datagrams: &[&[u8]]) -> SocketAddr {
    let mut upstream = None;
    for datagram in datagrams {
        let (payload, from) = receive(peer).await;
        assert!(payload == *datagram, "another one, or changed");
        assert_eq!(*upstream.get_or_insert(from), from);
    }
    upstream.expect("some datagrams")
}

#[tokio::test]
async fn flows_of_quinn_go_by_their_names() {
    let (bench, ways) = bench(NEVER);
    let (_, client) = bind("127.0.0.1:0").await;
    let (near, _) = bind("127.0.0.1:0").await;
    let by_near = bench.reach(client, &near, b"not QUIC").await;
    let mut upstreams = BTreeSet::new();
    for (protocols, least) in [(1, 1), (200, 2)] {
        let (peer, address) = bind("127.0.0.1:0").await;
        let datagrams = quinn_datagrams(NAME, protocols);
        assert!(datagrams.len() >= least);
        for datagram in &datagrams {
            bench.steer(&[(client, address, datagram)]);
        }
        let datagrams: Vec<_> = datagrams.iter().map(|one| &**one).collect();
        let upstream = expect(&peer, &datagrams).await;
        assert_ne!(upstream, by_near);
        upstreams.insert(upstream);
        // What comes later has no name, and goes the same way, whatever the rules say by then.
        assert_eq!(bench.reach(client, &peer, b"\x40 later").await, upstream);
    }
    assert_eq!(upstreams.len(), 1, "one port for one outbound");
    let (peer, address) = bind("127.0.0.1:0").await;
    let other = quinn_datagrams("www.other.example", 1);
    bench.steer(&[(client, address, &other[0])]);
    assert_eq!(expect(&peer, &[&other[0]]).await, by_near);
    assert_eq!(bench.counters().names_missed.load(Relaxed), 0);

    // It is in the record of the association that the flow began.
    let key = Key {
        client,
        way: WayKey::Other(ways.get("far")),
    };
    let table = bench.relay.table();
    let record = table.get(&key).expect("it lives").record();
    assert_eq!(record.flow().name(), Some(NAME));
    let choice = record.choice().expect("it was chosen");
    assert_eq!(choice.rule.as_deref(), Some("video"));
    assert_eq!(&*choice.way.name, "far");
}

#[tokio::test]
async fn two_datagrams_arrive_in_order_however_they_come() {
    let (bench, _) = bench(NEVER);
    let client = "192.0.2.1:5000".parse().expect("literal");
    let (near, _) = bind("127.0.0.1:0").await;
    let by_near = bench.reach(client, &near, b"not QUIC").await;
    let [first, second] = two_datagrams(NAME);
    for order in [[&first, &second], [&second, &first]] {
        for batch in [1, 3] {
            let (peer, address) = bind("127.0.0.1:0").await;
            let sent = [&**order[0], &**order[1], b"\x40 third"];
            let datagrams = sent.map(|payload| (client, address, payload));
            for batch in datagrams.chunks(batch) {
                bench.steer(batch);
            }
            assert_ne!(expect(&peer, &sent).await, by_near);
        }
    }
    assert_eq!(bench.relay.flows().held(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_threads_may_have_one_datagram_each() {
    let (bench, _) = bench(NEVER);
    let client = "192.0.2.1:5000".parse().expect("literal");
    let (near, _) = bind("127.0.0.1:0").await;
    let by_near = bench.reach(client, &near, b"not QUIC").await;
    let datagrams = two_datagrams(NAME);
    let runtime = tokio::runtime::Handle::current();
    for _ in 0..50 {
        let (peer, address) = bind("127.0.0.1:0").await;
        std::thread::scope(|scope| {
            for datagram in &datagrams {
                scope.spawn(|| {
                    let _runtime = runtime.enter();
                    bench.steer(&[(client, address, datagram)]);
                });
            }
        });
        let (one, upstream) = receive(&peer).await;
        let (other, same) = receive(&peer).await;
        let got = BTreeSet::from([&one, &other]);
        assert!(got == datagrams.iter().collect(), "another one, or changed");
        assert_eq!(upstream, same);
        assert_ne!(upstream, by_near);
    }
}

#[tokio::test]
async fn a_name_that_does_not_come_is_not_waited_for_any_longer() {
    let limit = Duration::from_millis(30);
    let (bench, _) = bench(limit);
    let client = "192.0.2.1:5000".parse().expect("literal");
    let (peer, address) = bind("127.0.0.1:0").await;
    let [first, second] = two_datagrams(NAME);
    let start = Instant::now();
    bench.steer(&[(client, address, &first)]);
    assert_eq!(bench.counters().total(Protocol::Udp).load(Relaxed), 0);
    bench.steer(&[(client, address, b"\x40 more")]);
    let upstream = expect(&peer, &[&first, b"\x40 more"]).await;
    assert!(start.elapsed() >= limit);
    assert_eq!(bench.counters().names_missed.load(Relaxed), 1);
    // It is decided for good: the name comes too late.
    assert_eq!(bench.reach(client, &peer, &second).await, upstream);
    let (other, _) = bind("127.0.0.1:0").await;
    assert_eq!(bench.reach(client, &other, b"not QUIC").await, upstream);
}

#[tokio::test]
async fn a_name_that_no_rule_needs_is_not_waited_for() {
    let ways = Ways::new(&[("near", "direct://"), ("far", "direct://")]);
    let sniff = Sniff {
        timeout: NEVER,
        rewrite: true,
    };
    let router = ways.router(vec![to("127.0.0.2/32", "far"), video("far")], Some(sniff));
    let bench = Bench::with_router(router, 10, "127.0.0.1:0");
    let client = "192.0.2.1:5000".parse().expect("literal");
    let (peer, _) = bind("127.0.0.2:0").await;
    bench.reach(client, &peer, &incomplete()).await;
}

#[tokio::test]
async fn a_flow_without_its_association_keeps_its_name() {
    let (bench, ways) = bench(NEVER);
    let client = "192.0.2.1:5000".parse().expect("literal");
    let (near, _) = bind("127.0.0.1:0").await;
    let (peer, address) = bind("127.0.0.1:0").await;
    let [first, second] = two_datagrams(NAME);
    bench.steer(&[(client, address, &first), (client, address, &second)]);
    expect(&peer, &[&first, &second]).await;
    bench.evict_all();
    let by_near = bench.reach(client, &near, b"not QUIC").await;
    let by_far = bench.reach(client, &peer, b"\x40 later").await;
    assert_ne!(by_far, by_near);
    // Anew means by the rules that hold now.
    bench.replace(ways.router(vec![video("near")], None));
    assert_eq!(bench.reach(client, &peer, b"\x40 live").await, by_far);
    bench.evict_all();
    let by_near = bench.reach(client, &near, b"not QUIC").await;
    assert_eq!(bench.reach(client, &peer, b"\x40 anew").await, by_near);
}

#[tokio::test]
async fn a_flood_of_handshakes_stays_bounded_and_delays_nobody() {
    const FLOWS: usize = 10_000;
    let (bench, _) = bench(NEVER);
    let flooding = "192.0.2.66:5000".parse().expect("literal");
    let fake = incomplete();
    let destination = |number: usize| {
        let [.., high, low] = number.to_be_bytes();
        SocketAddr::from(([127, 1, high, low], 9))
    };
    let flood: Vec<_> = (0..FLOWS)
        .map(|number| (flooding, destination(number), &fake[..]))
        .collect();
    bench.steer(&flood);
    let held = bench.relay.flows().held();
    assert!((100..1_000).contains(&held), "{held}");
    let missed = bench.counters().names_missed.load(Relaxed);
    assert_eq!(missed as usize, FLOWS - held, "they went on at once");

    // Others have names and no delay. So has the same device for what is no handshake, or a whole one.
    let (peer, _) = bind("127.0.0.1:0").await;
    let by_near = bench.reach(flooding, &peer, b"not QUIC").await;
    let (peer, whole) = bind("127.0.0.1:0").await;
    let datagram = &quinn_datagrams(NAME, 1)[0];
    bench.steer(&[(flooding, whole, datagram)]);
    assert_ne!(expect(&peer, &[datagram]).await, by_near);
    let client = "192.0.2.1:5000".parse().expect("literal");
    let by_near = bench.reach(client, &peer, b"not QUIC").await;
    let (peer, address) = bind("127.0.0.1:0").await;
    let [first, second] = two_datagrams(NAME);
    bench.steer(&[(client, address, &first)]);
    bench.steer(&[(client, address, &second)]);
    assert_ne!(expect(&peer, &[&first, &second]).await, by_near);

    // What is held when all ends is dropped, and said to be.
    assert_eq!(bench.relay.flows().held(), held);
    bench.relay.refuse_new();
    bench.relay.close_all();
    assert_eq!(bench.counters().flows.load(Relaxed), 0);
    let dropped = bench.counters().datagrams_dropped.load(Relaxed);
    assert_eq!(dropped as usize, held);
}
