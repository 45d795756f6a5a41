//! Flows by rules, without names.

use super::socks5::associate;
use super::*;
use crate::data::router::Sniff;
use crate::data::way::Way;
use crate::policy::rule::{Rule, Rules};
use tokio::net::TcpListener;

/// Ways as a test names them.
pub struct Ways(Vec<Arc<Way>>);

impl Ways {
    pub fn new(ways: &[(&str, &str)]) -> Self {
        let way = |(name, url): &(&str, &str)| Arc::new(Way::named(name, url));
        Self(ways.iter().map(way).collect())
    }

    /// A router with these ways, the first of which is for what no rule is about.
    pub fn router(&self, rules: Vec<Rule>, sniff: Option<Sniff>) -> Router {
        let rules = Rules::new(rules, &*self.0[0].name).expect("rules");
        Router::with_rules(self.0.clone(), rules, sniff)
    }

    pub fn get(&self, name: &str) -> Arc<Way> {
        let way = self.0.iter().find(|way| *way.name == *name);
        Arc::clone(way.expect("a way of this name"))
    }

    /// The same ways in another order.
    fn turned(&self) -> Self {
        Self(self.0.iter().rev().map(Arc::clone).collect())
    }
}

/// What goes to this network takes this outbound.
pub fn to(network: &str, outbound: &str) -> Rule {
    Rule {
        name: format!("to {outbound}"),
        domain: None,
        prefix: Some(vec![network.parse().expect("a literal")]),
        source: None,
        port: None,
        protocol: None,
        outbound: outbound.to_owned(),
    }
}

impl Bench {
    pub fn replace(&self, router: Router) {
        self.relay.hands.shared.replace(router);
    }

    /// Ends all associations, as if others had needed their places.
    pub fn evict_all(&self) {
        while let Some(association) = self.relay.table().pop() {
            association.close(Outcome::Evicted);
        }
    }

    /// Steers a datagram to a peer that is there, and returns where the peer saw it come from.
    pub async fn reach(&self, client: SocketAddr, peer: &UdpSocket, payload: &[u8]) -> SocketAddr {
        let address = peer.local_addr().expect("bound");
        self.steer(&[(client, address, payload)]);
        let (got, upstream) = receive(peer).await;
        assert_eq!(got, payload);
        upstream
    }
}

const THREE: &[(&str, &str)] = &[
    ("near", "direct://"),
    ("far", "direct://"),
    ("farther", "direct://"),
];

#[tokio::test]
async fn one_client_port_has_one_upstream_port_for_each_outbound() {
    let rules = vec![to("127.0.0.2/32", "far"), to("127.0.0.3/32", "farther")];
    let router = Ways::new(THREE).router(rules, None);
    let bench = Bench::with_router(router, 10, "127.0.0.1:0");
    let (device, client) = bind("127.0.0.1:0").await;
    let mut ports = BTreeSet::new();
    for place in ["127.0.0.1:0", "127.0.0.2:0", "127.0.0.3:0"] {
        let mut of_place = BTreeSet::new();
        for number in 0..10 {
            let (peer, address) = bind(place).await;
            let upstream = bench.reach(client, &peer, &[number]).await;
            of_place.insert(upstream);
            peer.send_to(b"answer", upstream).await.expect("sent");
            let (payload, from) = receive(&device).await;
            assert_eq!((&*payload, from.ip()), (&b"answer"[..], address.ip()));
        }
        assert_eq!(of_place.len(), 1, "one port for all peers of an outbound");
        // Any peer may answer by it.
        let (stranger, _) = bind("127.0.0.1:0").await;
        let upstream = of_place.pop_first().expect("one");
        stranger.send_to(b"hello", upstream).await.expect("sent");
        assert_eq!(receive(&device).await.0, b"hello");
        ports.insert(upstream);
    }
    assert_eq!(ports.len(), 3);
    assert_eq!(bench.counters().total(Protocol::Udp).load(Relaxed), 3);
    assert_eq!(bench.counters().flows.load(Relaxed), 30);
}

#[tokio::test]
async fn a_mixed_batch_keeps_the_order_of_each_flow() {
    let router = Ways::new(THREE).router(vec![to("127.0.0.2/32", "far")], None);
    let bench = Bench::with_router(router, 10, "127.0.0.1:0");
    let peers = [
        bind("127.0.0.1:0").await,
        bind("127.0.0.2:0").await,
        bind("127.0.0.2:0").await,
    ];
    let client = "192.0.2.1:5000".parse().expect("literal");
    let payloads: Vec<[u8; 2]> = (0..90).map(|number| [number % 5 % 3, number]).collect();
    let batch: Vec<(SocketAddr, SocketAddr, &[u8])> = payloads
        .iter()
        .map(|payload| (client, peers[usize::from(payload[0])].1, &payload[..]))
        .collect();
    bench.steer(&batch);
    for (index, (peer, _)) in peers.iter().enumerate() {
        for expected in payloads.iter().filter(|one| usize::from(one[0]) == index) {
            assert_eq!(receive(peer).await.0, expected);
        }
    }
}

#[tokio::test]
async fn a_reload_changes_new_flows_only() {
    let ways = Ways::new(THREE);
    let router = ways.router(vec![to("127.0.0.2/32", "far")], None);
    let bench = Bench::with_router(router, 10, "127.0.0.1:0");
    let client = "192.0.2.1:5000".parse().expect("literal");
    let (near, _) = bind("127.0.0.1:0").await;
    let (far, _) = bind("127.0.0.2:0").await;
    let by_near = bench.reach(client, &near, b"1").await;
    let by_far = bench.reach(client, &far, b"2").await;
    assert_ne!(by_near, by_far);

    // Now all of them would go elsewhere.
    bench.replace(ways.router(vec![to("127.0.0.2/32", "farther")], None));
    assert_eq!(bench.reach(client, &far, b"3").await, by_far);
    let (new, _) = bind("127.0.0.2:0").await;
    let by_farther = bench.reach(client, &new, b"4").await;
    assert!(by_farther != by_far && by_farther != by_near);

    // The rules go. What is remembered is kept, and only that.
    bench.replace(ways.router(vec![], None));
    assert_eq!(bench.reach(client, &far, b"5").await, by_far);
    assert_eq!(bench.reach(client, &new, b"6").await, by_farther);
    assert_eq!(bench.reach(client, &near, b"7").await, by_near);
    let (newer, _) = bind("127.0.0.2:0").await;
    assert_eq!(bench.reach(client, &newer, b"8").await, by_near);
    assert_eq!(bench.counters().flows.load(Relaxed), 3);

    // Without its association a flow goes by what holds now.
    bench.evict_all();
    let again = bench.reach(client, &far, b"9").await;
    assert_eq!(bench.reach(client, &newer, b"10").await, again);
}

#[tokio::test]
async fn another_default_leaves_the_association_that_lives() {
    let ways = Ways::new(&THREE[..2]);
    let rule = || vec![to("127.0.0.2/32", "far")];
    let bench = Bench::with_router(ways.router(vec![], None), 10, "127.0.0.1:0");
    let client = "192.0.2.1:5000".parse().expect("literal");
    let (near, _) = bind("127.0.0.1:0").await;
    let by_near = bench.reach(client, &near, b"1").await;
    bench.replace(ways.turned().router(vec![], None));
    assert_eq!(bench.reach(client, &near, b"2").await, by_near);
    // A rule that names the new default means it, though the client has a default association of before.
    bench.replace(ways.turned().router(rule(), None));
    let (far, _) = bind("127.0.0.2:0").await;
    let by_far = bench.reach(client, &far, b"3").await;
    assert_ne!(by_far, by_near);
    assert_eq!(bench.reach(client, &near, b"4").await, by_near);
    // Another client has one association for both.
    let client = "192.0.2.1:5001".parse().expect("literal");
    let first = bench.reach(client, &near, b"5").await;
    assert_eq!(bench.reach(client, &far, b"6").await, first);
}

#[tokio::test]
async fn what_a_rule_is_about_does_not_follow_another_default() {
    let ways = Ways::new(&THREE[..2]);
    let rule = || vec![to("127.0.0.2/32", "near")];
    let bench = Bench::with_router(ways.router(rule(), None), 10, "127.0.0.1:0");
    let client = "192.0.2.1:5000".parse().expect("literal");
    let (ruled, _) = bind("127.0.0.2:0").await;
    let (other, _) = bind("127.0.0.1:0").await;
    let by_near = bench.reach(client, &ruled, b"1").await;
    assert_eq!(bench.reach(client, &other, b"2").await, by_near);
    bench.replace(ways.turned().router(rule(), None));
    assert_eq!(bench.reach(client, &other, b"3").await, by_near);
    // The default association is made anew, by the other outbound.
    bench.evict_all();
    let by_far = bench.reach(client, &other, b"4").await;
    let by_near = bench.reach(client, &ruled, b"5").await;
    assert_ne!(by_near, by_far);
    assert_eq!(bench.reach(client, &other, b"6").await, by_far);
}

#[tokio::test]
async fn flows_are_bounded_and_idle() {
    let router = Ways::new(THREE).router(vec![to("127.0.0.2/32", "far")], None);
    let bench = Bench::with_router(router, 2, "127.0.0.1:0");
    let (device, client) = bind("127.0.0.1:0").await;
    let (peer, address) = bind("127.0.0.1:0").await;
    let upstream = bench.reach(client, &peer, b"x").await;
    let flow = |port| (client, ([127, 0, 0, 2], port).into(), &b"x"[..]);
    let flows: Vec<_> = (1..8).map(flow).collect();
    bench.steer(&flows);
    assert_eq!(bench.counters().flows.load(Relaxed), 8);
    // An answer uses its flow, so another is the longest unused.
    peer.send_to(b"answer", upstream).await.expect("sent");
    receive(&device).await;
    bench.steer(&[flow(8)]);
    assert_eq!(bench.counters().flows.load(Relaxed), 8);
    assert_eq!(bench.counters().flows_evicted.load(Relaxed), 1);
    let known = |destination| {
        let flow = Flow {
            client,
            destination,
        };
        bench.relay.flows().knows(&flow)
    };
    assert!(known(address) && !known(flow(1).1) && known(flow(2).1));
    let now = Instant::now();
    bench.relay.sweep_at(now + Duration::from_secs(299));
    assert_eq!(bench.counters().flows.load(Relaxed), 8);
    bench.relay.sweep_at(now + Duration::from_secs(301));
    assert_eq!(bench.counters().flows.load(Relaxed), 0);
}

#[tokio::test]
async fn a_rule_sends_a_flow_to_a_socks5_server_beside_direct_ones() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let server = format!("socks5://{}", listener.local_addr().expect("bound"));
    let ways = Ways::new(&[("near", "direct://"), ("far", &server)]);
    let router = ways.router(vec![to("198.51.100.0/24", "far")], None);
    let bench = Bench::with_router(router, 10, "127.0.0.1:0");
    let (device, client) = bind("127.0.0.1:0").await;
    let (near, address) = bind("127.0.0.1:0").await;
    let (relay, relay_address) = bind("127.0.0.1:0").await;
    let far = "198.51.100.1:444".parse().expect("literal");
    bench.steer(&[
        (client, far, b"1"),
        (client, address, b"2"),
        (client, far, b"3"),
    ]);
    assert_eq!(
        receive(&near).await.0,
        b"2",
        "it does not wait for a server"
    );
    let _control = associate(&listener, relay_address).await;
    let header = b"\0\0\0\x01\xc6\x33\x64\x01\x01\xbc";
    for payload in [b"1", b"3"] {
        assert_eq!(receive(&relay).await.0, [&header[..], payload].concat());
    }
    bench.steer(&[(client, far, b"4")]);
    let (_, upstream) = receive(&relay).await;
    relay
        .send_to(&[&header[..], b"answer"].concat(), upstream)
        .await
        .expect("sent");
    let (payload, from) = receive(&device).await;
    assert_eq!((&*payload, from.ip()), (&b"answer"[..], far.ip()));
}
