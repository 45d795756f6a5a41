//! Outbounds whose server is reached through another one, and the one that leads nowhere.

use super::*;
use crate::data::outbound::Target;
use crate::net::Binding;

/// The SOCKS5 server's part, up to the request. It agrees.
async fn socks(stream: &mut TcpStream) -> Vec<u8> {
    assert_eq!(read(stream, 3).await, [5, 1, 0]);
    send(stream, &[5, 0]).await;
    let mut request = read(stream, 5).await;
    let more = match request[3] {
        1 => 5,
        3 => usize::from(request[4]) + 2,
        other => panic!("address type {other}"),
    };
    request.extend(read(stream, more).await);
    send(stream, &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await;
    request
}

async fn dial(way: Way) -> Stream {
    let relay = relay_by(1, 1, way.into(), &Limits::default());
    let target = Target::Address("192.0.2.9:443".parse().expect("a literal"));
    let router = relay.hands.shared.router();
    let dialled = relay.hands.dialer.connect(router.default_way(), target);
    let dialled = timeout(SOON, dialled).await.expect("in time");
    dialled.expect("connected")
}

#[tokio::test]
async fn a_server_is_asked_for_by_name_or_address_and_stays_plain() {
    for (host, asked) in [
        (
            "192.0.2.1",
            &b"\x05\x01\x00\x01\xc0\x00\x02\x01\x1f\x90"[..],
        ),
        (
            "proxy.example",
            b"\x05\x01\x00\x03\x0dproxy.example\x1f\x90",
        ),
    ] {
        let (listener, address) = listen().await;
        let other = Way::named("other", &format!("socks5://{address}"));
        let way = Way::fixed(&format!("http://{host}:8080")).via(other);
        assert!(way.addresses().is_empty());
        let dialling = tokio::spawn(dial(way));
        let (mut server, _) = listener.accept().await.expect("a client came");
        assert_eq!(socks(&mut server).await, asked);
        let mut server = Stream::Plain(server);
        http::agree(&mut server, "192.0.2.9:443").await;
        send(&mut server, b"hello").await;
        let mut stream = dialling.await.expect("no panic");
        assert!(matches!(stream, Stream::Plain(_)));
        assert_eq!(read(&mut stream, 5).await, b"hello");
    }
}

#[tokio::test]
async fn socks5_through_an_https_proxy_is_spoken_within_tls() {
    let (listener, address) = listen().await;
    let (acceptor, roots) = secure::certified();
    let other = Way::trusting(&format!("https://{address}"), &roots);
    let way = Way::fixed("socks5://[2001:db8::1]:1080").via(other);
    let dialling = tokio::spawn(dial(way));
    let (server, _) = listener.accept().await.expect("a client came");
    let mut server = secure::wrap(&acceptor, server).await.expect("trusted");
    http::agree(&mut server, "[2001:db8::1]:1080").await;
    assert_eq!(read(&mut server, 3).await, [5, 1, 0]);
    send(&mut server, &[5, 0]).await;
    assert_eq!(read(&mut server, 10).await[..4], [5, 1, 0, 1]);
    send(&mut server, &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await;
    send(&mut server, b"hello").await;
    let mut stream = dialling.await.expect("no panic");
    assert!(matches!(stream, Stream::Wrapped(_)));
    assert_eq!(read(&mut stream, 5).await, b"hello");
}

#[tokio::test]
async fn a_direct_way_lends_its_sockets() {
    let (listener, address) = listen().await;
    let source = [127, 3, 2, 1];
    let binding = Binding {
        v4: Some(source.into()),
        ..Binding::default()
    };
    let other = Way::fixed("direct://").bound(binding);
    let way = Way::fixed(&format!("http://{address}")).via(other);
    assert_eq!(way.addresses().len(), 1);
    let dialling = tokio::spawn(dial(way));
    let (server, client) = listener.accept().await.expect("a client came");
    assert_eq!(client.ip(), IpAddr::from(source));
    http::agree(&mut Stream::Plain(server), "192.0.2.9:443").await;
    dialling.await.expect("no panic");
}

#[tokio::test]
async fn what_is_blocked_is_reset_and_no_failure() {
    let relay = relay_with(1, 1, "block://", &Limits::default());
    let mut device = device(&relay, "192.0.2.1:443".parse().expect("a literal")).await;
    assert!(is_reset(&mut device).await);
    assert_eq!(outcome(&relay).await, Outcome::Blocked);
    assert!(!Outcome::Blocked.is_failure());
}
