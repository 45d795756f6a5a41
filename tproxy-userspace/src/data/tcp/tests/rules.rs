//! Connections that go by rules, with the name in what the device sends first.

use super::*;
use crate::data::router::Sniff;
use crate::data::sniff::tests::{hello, in_records, sni};
use crate::data::way::Way;
use crate::policy::rule::{Rule, Rules};

/// Longer than a test may take: what waits for it fails.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// A relay whose default is `direct://`, and where `far.example` takes the SOCKS5 server at this address.
fn relay_by_name(server: SocketAddr, sniff: Option<Sniff>) -> Arc<TcpRelay> {
    let rule = Rule {
        name: "far names".to_owned(),
        domain: Some(vec!["far.example".parse().expect("a domain")]),
        prefix: None,
        source: None,
        port: None,
        protocol: None,
        outbound: "far".to_owned(),
    };
    let rules = Rules::new([rule], "near").expect("sound");
    let ways = vec![
        Way::named("near", "direct://"),
        Way::named("far", &format!("socks5://{server}")),
    ];
    let limits = Limits::default();
    let hands = Hands::fixed(Router::with_rules(ways, rules, sniff), &limits);
    let budget = Budget {
        open_files: 1024,
        connections: 10,
        associations: 1,
        pipes: 8,
    };
    TcpRelay::new(hands, budget, &limits)
}

fn sniff(timeout: Duration) -> Option<Sniff> {
    Some(Sniff {
        timeout,
        rewrite: false,
    })
}

/// A connection whose device has sent nothing yet, to a near server, with the far one beside it.
struct Fork {
    relay: Arc<TcpRelay>,
    device: TcpStream,
    near: TcpListener,
    far: TcpListener,
    destination: SocketAddr,
}

impl Fork {
    async fn new(sniff: Option<Sniff>) -> Self {
        let (far, far_address) = listen().await;
        let (near, destination) = listen().await;
        let relay = relay_by_name(far_address, sniff);
        let (front, front_address) = listen().await;
        let device = TcpStream::connect(front_address).await.expect("it listens");
        let (accepted, client) = front.accept().await.expect("the device came");
        relay.relay_to(accepted, client, destination);
        Self {
            relay,
            device,
            near,
            far,
            destination,
        }
    }

    /// What the far server is asked for, by a server that agrees to it.
    async fn far(&self) -> (TcpStream, Vec<u8>) {
        let accepted = timeout(SOON, self.far.accept()).await;
        let (mut stream, _) = accepted.expect("in time").expect("loopback");
        assert_eq!(read(&mut stream, 3).await, [5, 1, 0]);
        stream.write_all(&[5, 0]).await.expect("connected");
        let mut request = read(&mut stream, 4).await;
        let more = match request[3] {
            1 => 6,
            3 => usize::from(read(&mut stream, 1).await[0]) + 2,
            other => panic!("address type {other}"),
        };
        request.extend(read(&mut stream, more).await);
        let reply = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        stream.write_all(&reply).await.expect("connected");
        (stream, request)
    }

    async fn near(&self) -> TcpStream {
        let accepted = timeout(SOON, self.near.accept()).await;
        accepted.expect("in time").expect("loopback").0
    }
}

/// A client hello of about 1,700 bytes, as browsers send it today, in two records.
fn big_hello(name: &str) -> Vec<u8> {
    let message = hello(&[(0x33, vec![9; 1600]), sni(name)]);
    in_records(&message, 1000)
}

#[tokio::test]
async fn the_name_of_a_hello_in_three_segments_decides_and_all_bytes_arrive() {
    for (name, is_far) in [("www.far.example", true), ("far.example.org", false)] {
        let mut fork = Fork::new(sniff(FOR_EVER)).await;
        let sent = big_hello(name);
        assert!(sent.len() > 1650);
        fork.device.set_nodelay(true).expect("TCP");
        for part in sent.chunks(600) {
            fork.device.write_all(part).await.expect("connected");
            // Each part is on its way alone before the next one is written.
            tokio::task::yield_now().await;
        }
        let mut server = if is_far {
            let (stream, request) = fork.far().await;
            assert_eq!(request[..8], [5, 1, 0, 1, 127, 0, 0, 1]);
            assert_eq!(request[8..], fork.destination.port().to_be_bytes());
            stream
        } else {
            fork.near().await
        };
        assert_eq!(read(&mut server, sent.len()).await, sent);
        // And both directions go on.
        fork.device.write_all(b"more").await.expect("connected");
        assert_eq!(read(&mut server, 4).await, b"more");
        server.write_all(b"answer").await.expect("connected");
        assert_eq!(read(&mut fork.device, 6).await, b"answer");
        let up = fork.relay.counters().up.load(Relaxed);
        assert!(up >= sent.len() as u64, "{up}");
    }
}

#[tokio::test]
async fn the_outbound_is_asked_for_the_name_if_that_is_wanted() {
    let mut fork = Fork::new(Some(Sniff {
        timeout: FOR_EVER,
        rewrite: true,
    }))
    .await;
    let request = b"GET / HTTP/1.1\r\nHost: WWW.far.example\r\n\r\n";
    fork.device.write_all(request).await.expect("connected");
    let (mut server, asked) = fork.far().await;
    let port = fork.destination.port().to_be_bytes();
    assert_eq!(asked[..4], [5, 1, 0, 3]);
    assert_eq!(asked[4..], [&b"www.far.example"[..], &port].concat());
    assert_eq!(read(&mut server, request.len()).await, request);
}

#[tokio::test]
async fn what_names_nobody_is_relayed_at_once_and_unharmed() {
    for sent in [
        &b"SSH-2.0-client\r\n"[..],
        &[0x16, 3, 1, 0, 4, 99, 0, 0, 0],
        &[0],
    ] {
        let mut fork = Fork::new(sniff(FOR_EVER)).await;
        fork.device.write_all(sent).await.expect("connected");
        let mut server = fork.near().await;
        assert_eq!(read(&mut server, sent.len()).await, sent);
    }
}

#[tokio::test]
async fn a_device_that_ends_its_side_early_is_heard_out() {
    for sent in [&b""[..], &[0x16, 3, 1], b"GET / HT"] {
        let mut fork = Fork::new(sniff(FOR_EVER)).await;
        fork.device.write_all(sent).await.expect("connected");
        fork.device.shutdown().await.expect("connected");
        let mut server = fork.near().await;
        assert_eq!(read(&mut server, sent.len()).await, sent);
        assert!(is_end(&mut server).await);
        server.write_all(b"answer").await.expect("half open");
        assert_eq!(read(&mut fork.device, 6).await, b"answer");
    }
}

#[tokio::test]
async fn a_server_that_speaks_first_waits_for_the_limit_and_half_a_hello_too() {
    for sent in [&b""[..], &[0x16, 3, 1]] {
        let mut fork = Fork::new(sniff(Duration::from_millis(30))).await;
        fork.device.write_all(sent).await.expect("connected");
        let mut server = fork.near().await;
        server.write_all(b"220 ready").await.expect("connected");
        assert_eq!(read(&mut fork.device, 9).await, b"220 ready");
        assert_eq!(read(&mut server, sent.len()).await, sent);
        fork.device.write_all(b"EHLO").await.expect("connected");
        assert_eq!(read(&mut server, 4).await, b"EHLO");
    }
}

#[tokio::test]
async fn without_sniffing_nothing_is_waited_for() {
    let mut fork = Fork::new(None).await;
    let mut server = fork.near().await;
    fork.device
        .write_all(&big_hello("www.far.example"))
        .await
        .expect("connected");
    read(&mut server, 1000).await;
}

#[tokio::test]
async fn a_device_that_resets_while_it_is_read_is_no_failure_of_the_server() {
    let fork = Fork::new(sniff(FOR_EVER)).await;
    reset_on_close(&fork.device);
    drop(fork.device);
    timeout(SOON, fork.relay.ended()).await.expect("in time");
    let counters = fork.relay.counters();
    assert_eq!(counters.ended(Outcome::DeviceReset).load(Relaxed), 1);
}
