use super::*;
use crate::data::{Named, Outbound};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn start() -> (Proxy, std::net::SocketAddr) {
    let factory = SocketFactory::default();
    let limits = Limits::default();
    let sockets = Sockets::bind(&factory, None, &limits).expect("root");
    let own = sockets.v4.listeners[0].1;
    let upstream = Upstream {
        router: Router::fixed("direct://"),
        resolver: Resolver::system(factory),
        guard: Arc::new(Guard::new(&sockets, BTreeSet::new())),
    };
    let proxy = Proxy::start(sockets, upstream, &limits, factory, Inheritance::default());
    (proxy.expect("started"), own)
}

/// A connection between these two, relayed.
async fn connection(proxy: &Proxy) -> (TcpStream, TcpStream) {
    let front = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let back = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = |listener: &TcpListener| listener.local_addr().expect("bound");
    let device = TcpStream::connect(address(&front)).await.expect("listens");
    let (accepted, client) = front.accept().await.expect("a device");
    proxy.tcp.relay_to(accepted, client, address(&back));
    let (server, _) = back.accept().await.expect("the relay");
    (device, server)
}

#[tokio::test]
async fn the_own_port_is_refused_and_shows_in_the_stats() {
    let (proxy, own) = start();
    let mut stream = TcpStream::connect(own).await.expect("it listens");
    stream.read(&mut [0]).await.expect_err("reset");
    let stats = proxy.stats();
    assert_eq!((stats.own_port, stats.connections_total), (1, 1));
    assert_eq!(stats.failures.get("own_port"), Some(&1));
    assert!(stats.limits.connections > 0);
    let json = serde_json::to_value(&stats).expect("plain data");
    assert_eq!(json["failures"]["own_port"], 1);
}

#[tokio::test]
async fn draining_lets_connections_end_and_resets_the_rest() {
    let (proxy, own) = start();
    let (mut first, mut server) = connection(&proxy).await;
    let (mut second, _stuck) = connection(&proxy).await;
    assert_eq!(proxy.stats().connections, 2);
    let draining = tokio::spawn(proxy.drain(Duration::from_millis(500)));
    // The drain has begun when nobody accepts any more.
    while TcpStream::connect(own).await.is_ok() {
        tokio::task::yield_now().await;
    }
    first.write_all(b"still works").await.expect("relayed");
    let mut buffer = [0; 11];
    server.read_exact(&mut buffer).await.expect("relayed");
    first.shutdown().await.expect("relayed");
    server.shutdown().await.expect("relayed");
    assert_eq!(first.read(&mut buffer).await.expect("FIN"), 0);
    second.read(&mut buffer).await.expect_err("reset");
    let report = draining.await.expect("no panic");
    assert_eq!((report.ended, report.reset, report.associations), (1, 1, 0));
}

#[tokio::test]
async fn dropping_the_proxy_resets_what_lives() {
    let (proxy, own) = start();
    let (mut device, _server) = connection(&proxy).await;
    drop(proxy);
    device.read(&mut [0]).await.expect_err("reset");
    TcpStream::connect(own).await.expect_err("nobody listens");
}

#[tokio::test]
async fn another_outbound_holds_for_what_is_new_and_a_bad_one_changes_nothing() {
    let (proxy, own) = start();
    let mut servers = proxy.servers();
    let (mut device, mut old) = connection(&proxy).await;
    let bad = Named::fixed(&format!("socks5://{own}"));
    let also_bad = vec![Named::fixed("direct://"), bad.clone()];
    for outbounds in [vec![bad], also_bad] {
        let error = proxy
            .set_routing(Routing::plain(outbounds))
            .await
            .expect_err("a loop");
        assert!(matches!(error, Error::Loop { .. }), "{error}");
    }
    let error = proxy
        .set_routing(Routing::plain(Vec::new()))
        .await
        .expect_err("none");
    assert!(matches!(error, Error::NoOutbound), "{error}");
    assert_eq!(
        *proxy.shared.router().default_way().outbound,
        Outbound::Direct
    );
    assert!(!servers.has_changed().expect("it runs"));

    let server = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = server.local_addr().expect("bound");
    let good = Named::fixed(&format!("socks5://{address}"));
    let good = vec![good, Named::fixed("socks5://192.0.2.9:1")];
    proxy
        .set_routing(Routing::plain(good))
        .await
        .expect("no loop");
    servers.changed().await.expect("it runs");
    assert_eq!(
        *servers.borrow(),
        BTreeSet::from([address.ip(), "192.0.2.9".parse().expect("a literal")])
    );

    let front = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let front_address = front.local_addr().expect("bound");
    let _new = TcpStream::connect(front_address).await.expect("listens");
    let (accepted, client) = front.accept().await.expect("a device");
    proxy.tcp.relay_to(accepted, client, front_address);
    let (mut upstream, _) = server.accept().await.expect("by the new outbound");
    let mut greeting = [0; 3];
    upstream.read_exact(&mut greeting).await.expect("SOCKS5");
    assert_eq!(greeting, [5, 1, 0]);

    device.write_all(b"still").await.expect("connected");
    let mut buffer = [0; 5];
    old.read_exact(&mut buffer).await.expect("relayed");
    assert_eq!(&buffer, b"still");
}

/// What a scrape costs while as many flows live as a busy gateway has.
#[tokio::test]
async fn nine_thousand_flows_cost_a_scrape_little() {
    use crate::observe::metrics::{Doors, Scrape};
    use crate::policy::rule::{Protocol, Query};

    let (proxy, _) = start();
    let shared = &proxy.shared;
    let flows: Vec<_> = (0..9_000_u32)
        .map(|number| {
            let client = std::net::SocketAddr::from((number.to_be_bytes(), 1));
            let flow = shared.live.enter(Protocol::Tcp, client, client);
            let query = Query {
                protocol: Protocol::Tcp,
                source: client,
                destination: client,
                name: None,
            };
            flow.set_choice(shared.router().default_choice(&query));
            flow.count_up(1);
            flow
        })
        .collect();
    let doors = Doors {
        unix: 0,
        tcp: 0,
        refused: [("token", 0), ("origin", 0), ("host", 0), ("connections", 0)],
    };
    let start = std::time::Instant::now();
    let scrape = Scrape::take(&proxy.view(), Vec::new(), Duration::ZERO, doors);
    let text = scrape.text().expect("it is written");
    let elapsed = start.elapsed();
    eprintln!("a scrape of {} bytes took {elapsed:?}", text.len());
    assert!(text.contains("tproxy_outbound_bytes_total{outbound=\"fixed\",direction=\"up\"} 9000"));
    assert!(elapsed < Duration::from_millis(200), "{elapsed:?}");
    for flow in &flows {
        shared.live.leave(flow);
    }
}
