use super::*;
use crate::data::Limits;
use crate::data::outbound::Dialer;
use crate::data::resolve::tests::TestDns;
use crate::data::stream::Stream;
use hickory_resolver::proto::op::ResponseCode;
use std::net::Ipv4Addr;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{advance, timeout};

const NAMED: &str = "socks5://proxy.example:1080";

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    let parsed = texts.iter().map(|text| text.parse());
    parsed.collect::<Result<_, _>>().expect("literals")
}

#[test]
fn the_time_of_an_answer_has_bounds() {
    for (ttl, bound) in [(0, 10), (9, 10), (60, 60), (601, 600), (86_400, 600)] {
        assert_eq!(
            bounded(Duration::from_secs(ttl)),
            Duration::from_secs(bound)
        );
    }
}

#[test]
fn families_take_turns_and_the_order_of_an_answer_does_not_matter() {
    let mixed = ["192.0.2.2", "2001:db8::1", "192.0.2.3", "192.0.2.1"];
    let mut mixed: Vec<IpAddr> = mixed
        .iter()
        .map(|ip| ip.parse().expect("literal"))
        .collect();
    let arranged = arrange(&mixed, 1080);
    assert_eq!(
        list(&arranged),
        "[2001:db8::1]:1080, 192.0.2.1:1080, 192.0.2.2:1080, 192.0.2.3:1080"
    );
    mixed.reverse();
    assert_eq!(arrange(&mixed, 1080), arranged);
    let many: Vec<IpAddr> = (0..100).map(|n| Ipv4Addr::from_bits(n).into()).collect();
    assert_eq!(arrange(&many, 1).len(), MOST_ADDRESSES);
}

#[test]
fn the_address_that_worked_last_is_tried_first() {
    let ips: Vec<IpAddr> = addresses(&["192.0.2.1", "192.0.2.2", "192.0.2.3"])
        .into_iter()
        .collect();
    let way = Way::new("direct", Outbound::Direct, arrange(&ips, 1), Duration::ZERO);
    let order = || list(&way.candidates());
    assert_eq!(order(), "192.0.2.1:1, 192.0.2.2:1, 192.0.2.3:1");
    way.worked((ips[2], 1).into());
    assert_eq!(order(), "192.0.2.3:1, 192.0.2.1:1, 192.0.2.2:1");
    // One that is an address of the server no more.
    way.worked(([192, 0, 2, 9], 1).into());
    assert_eq!(order(), "192.0.2.1:1, 192.0.2.2:1, 192.0.2.3:1");
}

/// A way by name that is followed, with a clock that only the test moves.
struct Followed {
    dns: TestDns,
    shared: Arc<Shared>,
    servers: watch::Receiver<BTreeSet<IpAddr>>,
    task: JoinHandle<()>,
    _clock: std::sync::mpsc::Sender<()>,
}

impl Followed {
    async fn start(ttl: u32, guard: Guard) -> Self {
        tokio::time::pause();
        // A blocking task that runs keeps the paused clock from moving by itself while packets are under way.
        let (clock, stopped) = std::sync::mpsc::channel();
        drop(tokio::task::spawn_blocking(move || stopped.recv()));
        let dns = TestDns::start(&["192.0.2.1"], ttl).await;
        let outbound = Named::fixed(NAMED);
        let way = Way::open(outbound, None, &dns.resolver(), &guard).await;
        let shared = Arc::new(Shared::new(way.expect("an address").into()));
        let following = follow(Arc::clone(&shared), dns.resolver(), Arc::new(guard));
        let task = tokio::spawn(following);
        let followed = Self {
            servers: shared.servers(),
            dns,
            shared,
            task,
            _clock: clock,
        };
        followed.settle().await;
        followed
    }

    /// Lets all tasks do what they can without time passing.
    async fn settle(&self) {
        for _ in 0..100 {
            yield_now().await;
        }
    }

    async fn changed(&mut self) -> BTreeSet<IpAddr> {
        self.servers.changed().await.expect("it is followed");
        self.servers.borrow_and_update().clone()
    }

    /// The questions so far, two for each look-up.
    fn asked(&self) -> usize {
        self.dns.asked()[0]
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
        tokio::time::resume();
    }
}

#[tokio::test]
async fn a_name_is_looked_up_again_when_its_time_is_over() {
    // A TTL below the bounds, within, and above.
    for (ttl, seconds) in [(1, 10), (60, 60), (86_400, 600)] {
        let mut followed = Followed::start(ttl, Guard::default()).await;
        assert_eq!(*followed.servers.borrow(), addresses(&["192.0.2.1"]));
        followed.dns.set(&["192.0.2.2", "2001:db8::2"]);
        advance(Duration::from_secs(seconds - 1)).await;
        followed.settle().await;
        assert_eq!(followed.asked(), 2, "TTL {ttl}: too early");
        advance(Duration::from_secs(2)).await;
        let now = followed.changed().await;
        assert_eq!(now, addresses(&["192.0.2.2", "2001:db8::2"]), "TTL {ttl}");
        let candidates = list(&followed.shared.router().default_way().candidates());
        assert_eq!(candidates, "[2001:db8::2]:1080, 192.0.2.2:1080");
    }
}

#[tokio::test]
async fn a_failed_look_up_keeps_the_addresses_and_is_tried_again() {
    let mut followed = Followed::start(60, Guard::default()).await;
    followed.dns.fail(ResponseCode::ServFail);
    let until_stale = async {
        while !followed.shared.router().default_way().known().stale {
            advance(Duration::from_secs(1)).await;
            yield_now().await;
        }
    };
    until_stale.await;
    assert!(followed.asked() > 2);
    assert!(!followed.servers.has_changed().expect("it is followed"));
    assert_eq!(
        followed.shared.router().default_way().addresses(),
        addresses(&["192.0.2.1"])
    );
    followed.dns.set(&["192.0.2.3"]);
    // Timers go by whole milliseconds.
    advance(SHORTEST_TTL + Duration::from_millis(1)).await;
    assert_eq!(followed.changed().await, addresses(&["192.0.2.3"]));
    assert!(!followed.shared.router().default_way().known().stale);
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_looked_up_at_once_but_once_a_second() {
    let mut followed = Followed::start(600, Guard::default()).await;
    advance(Duration::from_secs(5)).await;
    followed.dns.set(&["192.0.2.2"]);
    followed.shared.router().default_way().failed();
    // Without the clock being moved.
    assert_eq!(followed.changed().await, addresses(&["192.0.2.2"]));
    let asked = followed.asked();
    followed.dns.set(&["192.0.2.3"]);
    for _ in 0..50 {
        followed.shared.router().default_way().failed();
    }
    followed.settle().await;
    advance(Duration::from_millis(900)).await;
    followed.settle().await;
    assert_eq!(followed.asked(), asked, "within the same second");
    advance(Duration::from_millis(200)).await;
    assert_eq!(followed.changed().await, addresses(&["192.0.2.3"]));
}

#[tokio::test]
async fn another_way_is_followed_and_published_at_once() {
    let mut followed = Followed::start(60, Guard::default()).await;
    let outbound = "socks5://192.0.2.7:1080";
    followed.shared.replace(Router::fixed(outbound));
    assert_eq!(followed.changed().await, addresses(&["192.0.2.7"]));
    // The name of the one before is forgotten.
    followed.settle().await;
    advance(Duration::from_secs(1000)).await;
    followed.settle().await;
    assert_eq!(followed.asked(), 2);
}

/// The proxy's own sockets, and who knows them.
fn guarded() -> (Sockets, Guard) {
    let factory = SocketFactory::default();
    let sockets = Sockets::bind(&factory, None, &Limits::default()).expect("root");
    let own = addresses(&["192.0.2.77", "2001:db8::77"]);
    let guard = Guard::new(&sockets, own);
    (sockets, guard)
}

#[tokio::test]
async fn an_outbound_that_leads_to_the_own_listener_is_refused() {
    let (sockets, guard) = guarded();
    let v4 = sockets.v4.listeners[0].1.port();
    let v6 = sockets
        .v6
        .as_ref()
        .map(|family| family.listeners[0].1.port());
    let dns = TestDns::start(&["192.0.2.1", "127.0.0.1"], 60).await;
    let resolver = dns.resolver();
    let hosts = [
        ("127.0.0.1", Some(v4)),
        ("0.0.0.0", Some(v4)),
        ("192.0.2.77", Some(v4)),
        ("[::ffff:127.0.0.1]", Some(v4)),
        ("proxy.example", Some(v4)),
        ("[::1]", v6),
        ("[::]", v6),
        ("[2001:db8::77]", v6),
    ];
    for (host, port) in hosts {
        let Some(port) = port else { continue };
        let url = format!("socks5://me:secret@{host}:{port}");
        let outbound = Named::fixed(&url);
        let error = Way::open(outbound, None, &resolver, &guard).await;
        let error = error.expect_err(host);
        assert!(matches!(error, Error::Loop { .. }), "{error}");
        let text = error.to_string();
        for part in ["socks5://me:***@", "its own listener", "`[proxy] port`"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("secret"));
        let beside = format!("socks5://{host}:{}", port ^ 1);
        let beside = Named::fixed(&beside);
        let beside = Way::open(beside, None, &resolver, &guard).await;
        assert!(beside.is_ok(), "another port of {host} is another program");
    }
}

fn dialer(guard: Guard, limit: Duration) -> Dialer {
    Dialer {
        factory: SocketFactory::default(),
        limit,
        keepalive: Duration::from_secs(60),
        guard: Arc::new(guard),
    }
}

fn socks_way(addresses: Vec<SocketAddr>) -> Way {
    Way::new(
        "named",
        NAMED.parse().expect("a URL"),
        addresses,
        Duration::ZERO,
    )
}

async fn dial(dialer: &Dialer, way: &Way) -> Result<Stream, DialError> {
    let destination = SocketAddr::from(([192, 0, 2, 1], 443));
    timeout(
        Duration::from_secs(20),
        dialer.connect(way, destination.into()),
    )
    .await
    .expect("within the dialer's own limit")
}

#[tokio::test]
async fn a_name_that_comes_to_mean_the_own_listener_is_not_dialled() {
    let (sockets, guard) = guarded();
    let own = sockets.v4.listeners[0].1;
    let dialer = dialer(guard, Duration::from_secs(10));
    let error = dial(&dialer, &socks_way(vec![own])).await;
    let error = error.expect_err("a loop");
    assert_eq!(error.outcome(), Outcome::Loop);
    let text = error.to_string();
    assert!(
        text.contains(&own.to_string()) && text.contains(NAMED),
        "{text}"
    );
    sockets.v4.listeners[0]
        .0
        .set_nonblocking(true)
        .expect("a flag");
    let nobody = sockets.v4.listeners[0].0.accept().map(drop);
    assert_eq!(
        nobody.map_err(|error| error.kind()),
        Err(std::io::ErrorKind::WouldBlock)
    );

    // An address beside it that is no loop is used; when it fails, the loop is what is told.
    let server = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = server.local_addr().expect("bound");
    let way = socks_way(vec![own, address]);
    let dialling = tokio::spawn(async move {
        let result = dial(&dialer, &way).await;
        (result, dialer, way)
    });
    drop(server.accept().await.expect("the other address"));
    let (result, dialer, way) = dialling.await.expect("no panic");
    let outcome = result.expect_err("no SOCKS5 server").outcome();
    assert_eq!(outcome, Outcome::ProxyProtocol);
    drop(server);
    let outcome = dial(&dialer, &way)
        .await
        .map(drop)
        .map_err(|error| error.outcome());
    assert_eq!(outcome, Err(Outcome::Loop));
}

/// A listener that answers no SYN, because its queue is full.
fn silent(address: Ipv4Addr) -> (socket2::Socket, Vec<socket2::Socket>, u16) {
    let socket = || {
        let stream = socket2::Type::STREAM;
        socket2::Socket::new(socket2::Domain::IPV4, stream.nonblocking(), None).expect("a socket")
    };
    let listener = socket();
    listener
        .bind(&SocketAddr::from((address, 0)).into())
        .expect("loopback");
    listener.listen(0).expect("bound");
    let bound = listener.local_addr().expect("bound");
    let queue = (0..4).map(|_| socket()).inspect(|client| {
        // In progress, or for ever so.
        let _ = client.connect(&bound);
    });
    let queue = queue.collect();
    let port = bound.as_socket_ipv4().expect("IPv4").port();
    (listener, queue, port)
}

#[tokio::test]
async fn a_silent_address_leaves_time_for_the_next_and_comes_after_it_from_then_on() {
    let (_silent, _queue, port) = silent(Ipv4Addr::LOCALHOST);
    let good = SocketAddr::from(([127, 0, 0, 2], port));
    let server = TcpListener::bind(good).await.expect("loopback");
    let serving = tokio::spawn(async move {
        loop {
            drop(server.accept().await.expect("a client"));
        }
    });
    let limit = Duration::from_secs(2);
    let dialer = dialer(Guard::default(), limit);
    let way = socks_way(vec![(Ipv4Addr::LOCALHOST, port).into(), good]);
    let mut took = Vec::new();
    for _ in 0..2 {
        let start = std::time::Instant::now();
        let error = dial(&dialer, &way).await.expect_err("it hangs up");
        assert_eq!(error.outcome(), Outcome::ProxyProtocol, "{error}");
        took.push(start.elapsed());
    }
    let stagger = Duration::from_millis(250);
    assert!(took[0] >= stagger && took[0] < limit / 2, "{took:?}");
    assert!(took[1] < stagger, "{took:?}");
    // All silent: the whole limit, no more, and the name is to be looked up.
    serving.abort();
    let _ = serving.await;
    let way = socks_way(vec![(Ipv4Addr::LOCALHOST, port).into()]);
    let start = std::time::Instant::now();
    let outcome = dial(&dialer, &way).await.expect_err("silent").outcome();
    assert_eq!(outcome, Outcome::ConnectTimeout);
    assert!(start.elapsed() >= limit);
    timeout(Duration::from_secs(1), way.failed.notified())
        .await
        .expect("the failure is told");
}

#[tokio::test]
async fn an_address_that_refuses_makes_room_at_once_and_a_late_answer_still_counts() {
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let refuses = gone.local_addr().expect("bound");
    drop(gone);
    let server = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let good = server.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            drop(server.accept().await.expect("a client"));
        }
    });
    let dialer = dialer(Guard::default(), Duration::from_secs(10));
    let start = std::time::Instant::now();
    let way = socks_way(vec![refuses, refuses, refuses, good]);
    let error = dial(&dialer, &way).await.expect_err("it hangs up");
    assert_eq!(error.outcome(), Outcome::ProxyProtocol, "{error}");
    assert!(start.elapsed() < Duration::from_millis(250));
    assert_eq!(way.candidates()[0], good);

    // Nobody after the silent one answers, so there is no end before the limit.
    let (_silent, _queue, port) = silent(Ipv4Addr::LOCALHOST);
    let limit = Duration::from_millis(600);
    let dialer = Dialer { limit, ..dialer };
    let way = socks_way(vec![(Ipv4Addr::LOCALHOST, port).into(), refuses]);
    let start = std::time::Instant::now();
    let outcome = dial(&dialer, &way).await.expect_err("silent").outcome();
    assert_eq!(outcome, Outcome::ConnectTimeout);
    assert!(start.elapsed() >= limit);
}
