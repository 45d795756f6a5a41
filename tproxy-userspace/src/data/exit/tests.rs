use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::data::guard::Guard;
use crate::data::logged::Lines;
use crate::data::outbound::Outbound;
use crate::data::record::Outcome;
use crate::data::resolve::Resolver;
use crate::data::router::{Named, Router, Routing};
use crate::net::SocketFactory;

fn query(destination: [u8; 4]) -> Query<'static> {
    Query {
        protocol: Protocol::Tcp,
        source: ([192, 0, 2, 7], 40000).into(),
        destination: (destination, 443).into(),
        name: None,
    }
}

fn way(name: &str, url: &str) -> Arc<Way> {
    Arc::new(Way::named(name, url))
}

fn names(ways: &[Arc<Way>]) -> Vec<&str> {
    ways.iter().map(|way| &*way.name).collect()
}

fn spec(name: &str, kind: Kind, members: &[&str]) -> NamedGroup {
    NamedGroup {
        name: name.to_owned(),
        kind,
        members: members.iter().map(ToString::to_string).collect(),
        default: None,
    }
}

/// Two of its connections failed.
fn down(way: &Way, protocol: Protocol) {
    let error = || DialError::Connect {
        peer: ([192, 0, 2, 1], 1080).into(),
        source: std::io::Error::from_raw_os_error(libc::EHOSTUNREACH),
    };
    for _ in 0..2 {
        way.report(protocol, Some(&error()));
    }
    assert_eq!(way.standing(protocol).state, State::Down);
}

async fn open(
    groups: Vec<NamedGroup>,
    before: Option<&Router>,
) -> Result<Router, crate::data::Error> {
    let url = "socks5://192.0.2.1:1080";
    let outbounds = ["a", "b", "c"].map(|name| Named::new(name, url.parse().expect("a URL")));
    let mut routing = Routing::plain(outbounds.to_vec());
    routing.default = groups.first().map(|group| group.name.clone());
    routing.groups = groups;
    let resolver = Resolver::system(SocketFactory::default());
    Router::open(routing, before, &resolver, &Guard::default()).await
}

#[tokio::test]
async fn a_group_in_a_group_stands_for_the_best_of_its_members() {
    let groups = vec![
        spec("outer", Kind::Fallback, &["inner", "c", "block"]),
        spec("inner", Kind::Fallback, &["a", "b"]),
    ];
    let router = open(groups, None).await.expect("sound");
    let exit = router.default_exit();
    let order = || {
        let ways = exit.ways(&query([198, 51, 100, 1]));
        names(&ways).join(" ")
    };
    assert_eq!(order(), "a b c block");
    let of = |name: &str| {
        let way = router.ways().iter().find(|way| *way.name == *name);
        Arc::clone(way.expect("a way"))
    };
    down(&of("a"), Protocol::Tcp);
    assert_eq!(order(), "b a c block");
    down(&of("b"), Protocol::Tcp);
    assert_eq!(order(), "c block a b");
    // What ends traffic is never down: behind all others it keeps traffic from going astray.
    down(&of("c"), Protocol::Tcp);
    assert_eq!(order(), "block a b c");
    let choice = router.default_choice(&query([198, 51, 100, 1]));
    assert_eq!(
        (choice.group(), &*choice.way.name),
        (Some("outer"), "block")
    );
    let status = router.groups();
    let now: Vec<_> = status.iter().map(|one| one.tcp.as_deref()).collect();
    assert_eq!(now, [Some("block"), Some("a")]);
    assert!(!router.is_always_direct("x.example", [198, 51, 100, 1].into()));
}

#[tokio::test]
async fn a_group_that_cannot_be_is_refused() {
    for members in [&["nobody"][..], &["g"], &[]] {
        let error = open(vec![spec("g", Kind::Select, members)], None).await;
        let error = error.expect_err("no such group").to_string();
        assert!(error.contains("the group \"g\" has no members"), "{error}");
    }
}

#[tokio::test]
async fn only_members_are_checked_and_a_reload_keeps_what_is_known() {
    let groups = || vec![spec("g", Kind::Fallback, &["a", "b"])];
    let first = open(groups(), None).await.expect("sound");
    let now = std::time::Instant::now();
    let due = |router: &Router| -> Vec<String> {
        let ways = router.ways().iter();
        let due = ways.filter(|way| {
            way.next_due()
                .is_some_and(|due| due <= now + Duration::from_secs(1))
        });
        due.map(|way| way.name.to_string()).collect()
    };
    assert_eq!(due(&first), ["a", "b"]);
    down(&first.ways()[0], Protocol::Udp);
    let second = open(groups(), Some(&first)).await.expect("sound");
    assert!(second.default_exit().is(first.default_exit()));
    let udp = |router: &Router| router.outbounds()[0].udp.state;
    assert_eq!(udp(&second), State::Down);
    let third = open(vec![], Some(&second)).await.expect("sound");
    assert!(due(&third).is_empty());
}

#[tokio::test]
async fn what_a_person_chose_outlives_a_reload_unless_the_default_is_another() {
    let groups = |members: &[&str], default: Option<&str>| {
        let mut group = spec("mine", Kind::Select, members);
        group.default = default.map(ToOwned::to_owned);
        vec![group]
    };
    let taken = |router: &Router| {
        let choice = router.default_choice(&query([198, 51, 100, 1]));
        choice.way.name.to_string()
    };
    let first = open(groups(&["a", "b"], Some("b")), None)
        .await
        .expect("sound");
    assert_eq!(taken(&first), "b");
    first.select("mine", "a").expect("a member");
    assert_eq!(taken(&first), "a");
    for (group, member, part) in [
        ("mine", "c", "has no member \"c\"; it has a, b"),
        ("yours", "a", "there is no group \"yours\"; there are mine"),
    ] {
        let error = first.select(group, member).expect_err("a refusal");
        assert!(error.contains(part), "{error}");
    }
    let second = open(groups(&["c", "b", "a"], Some("b")), Some(&first));
    let second = second.await.expect("sound");
    assert_eq!(taken(&second), "a");
    let third = open(groups(&["c", "b", "a"], Some("c")), Some(&second));
    let third = third.await.expect("sound");
    assert_eq!(taken(&third), "c");
    let fourth = open(groups(&["b", "a"], Some("a")), Some(&third));
    assert_eq!(taken(&fourth.await.expect("sound")), "a");
    let other = open(vec![spec("mine", Kind::Fallback, &["a"])], None);
    let error = other.await.expect("sound").select("mine", "a");
    assert!(
        error
            .expect_err("nobody chooses")
            .contains("chooses by itself (fallback)")
    );
}

#[test]
fn one_destination_or_one_source_keeps_its_member() {
    let ways: Vec<_> = ["a", "b", "c"].map(|name| way(name, "direct://")).to_vec();
    let members = ways.iter().cloned().map(Exit::Way);
    for key in [Key::Destination, Key::Source] {
        let kind = Kind::Balance(key);
        let group = Group::open(
            spec("g", kind, &["a", "b", "c"]),
            members.clone().collect(),
            None,
        );
        assert_eq!(group.status().tcp, None);
        let exit = Exit::Group(group);
        let taken = |source: u8, destination: u8, name: Option<&'static str>| {
            let mut query = query([198, 51, 100, destination]);
            query.source.set_ip([192, 0, 2, source].into());
            query.name = name;
            exit.first(&query).name.to_string()
        };
        let differ = |taken: &dyn Fn(u8) -> String| (0..50).any(|n| taken(n) != taken(0));
        assert_eq!(differ(&|n| taken(n, 1, None)), key == Key::Source);
        assert_eq!(differ(&|n| taken(1, n, None)), key == Key::Destination);
        // A name counts more than its many addresses.
        assert!(!differ(&|n| taken(1, n, Some("www.example"))));
    }
}

fn dialer(limit: Duration) -> Dialer {
    Dialer {
        factory: SocketFactory::default(),
        limit,
        keepalive: Duration::from_secs(60),
        guard: Arc::new(Guard::default()),
    }
}

/// A SOCKS5 server that does what it is asked for, and says by this byte how that went.
async fn server(reply: u8) -> (SocketAddr, Arc<std::sync::atomic::AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let asked = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let serve = move |mut stream: TcpStream| async move {
        let mut bytes = [0; 10];
        stream.read_exact(&mut bytes[..3]).await?;
        stream.write_all(&[5, 0]).await?;
        stream.read_exact(&mut bytes).await?;
        stream
            .write_all(&[5, reply, 0, 1, 0, 0, 0, 0, 0, 0])
            .await?;
        stream.read_to_end(&mut Vec::new()).await
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::spawn(serve(stream));
        }
    });
    (address, asked)
}

/// Nobody listens there.
async fn gone() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    listener.local_addr().expect("bound")
}

fn socks(name: &str, address: SocketAddr) -> Arc<Way> {
    way(name, &format!("socks5://{address}"))
}

async fn connect(router: &Router, limit: Duration) -> (Choice, Result<Stream, DialError>) {
    let query = query([198, 51, 100, 1]);
    let mut choice = router.default_choice(&query);
    let destination = query.destination;
    let dialer = dialer(limit);
    let connected = dialer.connect_by(&mut choice, &query, |_| destination.into());
    let connected = connected.await;
    (choice, connected)
}

const LIMIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn no_connection_fails_while_a_member_works() {
    let (good, _) = server(0).await;
    let ways = vec![
        socks("dead", gone().await),
        socks("gone", gone().await),
        socks("good", good),
    ];
    let router = Router::group(Kind::Fallback, ways);
    for _ in 0..5 {
        let (choice, connected) = connect(&router, LIMIT).await;
        connected.expect("the third member");
        assert_eq!(&*choice.way.name, "good");
    }
    // The others are known to be down by now, so they cost nothing.
    let states: Vec<State> = router.outbounds().iter().map(|one| one.tcp.state).collect();
    assert_eq!(states, [State::Down, State::Down, State::Up]);
    let choice = router.default_choice(&query([198, 51, 100, 1]));
    assert_eq!(&*choice.way.name, "good");
    let error = router.outbounds()[0].tcp.error.clone().expect("an error");
    assert!(error.contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn a_member_that_is_silent_leaves_time_for_the_next() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("loopback");
    let silent = listener.local_addr().expect("bound");
    let (good, _) = server(0).await;
    let router = Router::group(
        Kind::Fallback,
        vec![socks("silent", silent), socks("good", good)],
    );
    let limit = Duration::from_secs(1);
    let start = Instant::now();
    let (choice, connected) = connect(&router, limit).await;
    connected.expect("the second member");
    assert_eq!(&*choice.way.name, "good");
    assert!(start.elapsed() < limit, "{:?}", start.elapsed());
    // It has accepted, so a destination could be to blame as well.
    assert_eq!(router.outbounds()[0].tcp.state, State::Unknown);
}

#[tokio::test]
async fn what_the_destination_refuses_is_asked_of_nobody_else() {
    let (refuses, asked) = server(5).await;
    let (good, never) = server(0).await;
    let router = Router::group(
        Kind::Fallback,
        vec![socks("first", refuses), socks("good", good)],
    );
    for _ in 0..3 {
        let (choice, connected) = connect(&router, LIMIT).await;
        let error = connected.expect_err("refused");
        assert_eq!(error.outcome(), Outcome::ProxyRefused);
        assert_eq!(&*choice.way.name, "first");
    }
    let count =
        |asked: &std::sync::atomic::AtomicU32| asked.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((count(&asked), count(&never)), (3, 0));
    assert_eq!(router.outbounds()[0].tcp.state, State::Up, "it answers");
}

#[tokio::test]
async fn what_a_person_chose_is_not_gone_round() {
    let (good, never) = server(0).await;
    let router = Router::group(
        Kind::Select,
        vec![socks("dead", gone().await), socks("good", good)],
    );
    let (_, connected) = connect(&router, LIMIT).await;
    assert_eq!(
        connected.expect_err("dead").outcome(),
        Outcome::ConnectRefused
    );
    assert_eq!(never.load(std::sync::atomic::Ordering::Relaxed), 0);
    router.select("group", "good").expect("a member");
    connect(&router, LIMIT).await.1.expect("the other member");
}

#[tokio::test]
async fn behind_all_that_are_down_block_ends_it() {
    let router = Router::group(
        Kind::Fallback,
        vec![socks("dead", gone().await), way("block", "block://")],
    );
    let (choice, connected) = connect(&router, LIMIT).await;
    assert_eq!(connected.expect_err("blocked").outcome(), Outcome::Blocked);
    assert_eq!(*choice.way.outbound, Outbound::Block);
}

#[test]
fn only_what_would_go_elsewhere_now_is_stranded() {
    let ways = vec![
        way("a", "socks5://192.0.2.1:1080"),
        way("b", "socks5://192.0.2.2:1080"),
    ];
    let router = Router::group(Kind::Fallback, ways.clone());
    let query = Query {
        protocol: Protocol::Udp,
        ..query([198, 51, 100, 1])
    };
    let choice = router.default_choice(&query);
    assert!(!choice.is_stranded(&query));
    down(&ways[0], Protocol::Tcp);
    assert!(!choice.is_stranded(&query), "it carries UDP");
    down(&ways[0], Protocol::Udp);
    assert!(choice.is_stranded(&query));
    down(&ways[1], Protocol::Udp);
    assert!(!choice.is_stranded(&query), "no other is better");
    let alone = Choice::new(&Exit::Way(Arc::clone(&ways[0])), None, &query);
    assert!(!alone.is_stranded(&query), "it is no group");
}

#[test]
fn what_comes_and_goes_is_told_of_once_a_minute() {
    let lines = Lines::default();
    let _guard = lines.collect();
    let way = Way::named("a", "socks5://192.0.2.1:1080");
    for _ in 0..10 {
        down(&way, Protocol::Tcp);
        way.report(Protocol::Tcp, None);
    }
    down(&way, Protocol::Udp);
    for (words, count) in [
        ("is down for TCP", 1),
        ("is up again for TCP", 1),
        ("is down for UDP", 1),
    ] {
        assert_eq!(lines.with(words), count, "{words}");
    }
}
