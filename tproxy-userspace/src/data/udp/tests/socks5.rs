//! Associations with a SOCKS5 server.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The server's part of UDP ASSOCIATE: answers with this relay address and returns the control connection.
pub async fn associate(listener: &TcpListener, relay: SocketAddr) -> TcpStream {
    let (mut control, _) = listener.accept().await.expect("a client came");
    let mut greeting = [0; 3];
    control.read_exact(&mut greeting).await.expect("greeting");
    control.write_all(&[5, 0]).await.expect("connected");
    let mut request = [0; 10];
    control.read_exact(&mut request).await.expect("request");
    assert_eq!(request, [5, 3, 0, 1, 0, 0, 0, 0, 0, 0]);
    let mut reply = vec![5, 0, 0, 1, 0, 0, 0, 0];
    reply.extend(relay.port().to_be_bytes());
    control.write_all(&reply).await.expect("connected");
    control
}

#[tokio::test]
async fn socks5_datagrams_wait_for_the_relay_and_are_wrapped() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let server = listener.local_addr().expect("bound");
    let bench = Bench::new(&format!("socks5://{server}"), 10, "127.0.0.1:0");
    let (device, client) = bind("127.0.0.1:0").await;
    let (relay, relay_address) = bind("127.0.0.1:0").await;
    let first: SocketAddr = "192.0.2.1:443".parse().expect("literal");
    let second: SocketAddr = "198.51.100.1:444".parse().expect("literal");
    bench.steer(&[(client, first, b"one"), (client, second, b"two")]);

    // The reply names 0.0.0.0: the server's own address is meant.
    let control = associate(&listener, relay_address).await;
    let (one, upstream) = receive(&relay).await;
    assert_eq!(one, b"\0\0\0\x01\xc0\0\x02\x01\x01\xbbone");
    assert_eq!(
        receive(&relay).await.0,
        b"\0\0\0\x01\xc6\x33\x64\x01\x01\xbctwo"
    );

    // Neither a fragment, nor rubbish, nor a datagram from elsewhere reaches the device.
    let fragment = b"\0\0\x01\x01\xc0\0\x02\x01\x01\xbbpart";
    relay.send_to(fragment, upstream).await.expect("sent");
    relay.send_to(b"\0\0", upstream).await.expect("sent");
    let answer = b"\0\0\0\x01\xc0\0\x02\x01\x01\xbbanswer";
    let (stranger, _) = bind("127.0.0.1:0").await;
    stranger
        .send_to(b"\0\0\0\x01\xc0\0\x02\x01\x01\xbbforged", upstream)
        .await
        .expect("sent");
    relay.send_to(answer, upstream).await.expect("sent");
    let (payload, from) = receive(&device).await;
    assert_eq!(payload, b"answer");
    assert_eq!(from.ip(), first.ip());
    assert_eq!(bench.counters().datagrams_dropped.load(Relaxed), 2);

    // The relay's port closes for a moment: ICMP errors come, the association stays.
    drop(relay);
    for _ in 0..3 {
        bench.steer(&[(client, first, b"lost")]);
        tokio::task::yield_now().await;
    }
    let (relay, _) = bind(&relay_address.to_string()).await;
    bench.steer(&[(client, first, b"last")]);
    let (payload, again) = receive(&relay).await;
    assert_eq!((&payload[10..], again), (&b"last"[..], upstream));

    drop(control);
    let live = bench.counters().now(Protocol::Udp);
    let ended = async {
        while live.load(Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, ended)
        .await
        .expect("it ends with its control");
    let ended = bench.counters().ended(Outcome::UpstreamReset);
    assert_eq!(ended.load(Relaxed), 1);
    assert_eq!(bench.relay.table().len(), 0);
}

#[tokio::test]
async fn socks5_control_ends_with_the_association() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let server = listener.local_addr().expect("bound");
    let bench = Bench::new(&format!("socks5://{server}"), 10, "127.0.0.1:0");
    let (relay, relay_address) = bind("127.0.0.1:0").await;
    let client = "192.0.2.1:5000".parse().expect("literal");
    bench.steer(&[(client, "192.0.2.9:443".parse().expect("literal"), b"x")]);
    let mut control = associate(&listener, relay_address).await;
    receive(&relay).await;
    bench
        .relay
        .sweep_at(Instant::now() + Duration::from_secs(301));
    let read = timeout(SOON, control.read(&mut [0])).await;
    assert_eq!(read.expect("in time").expect("FIN"), 0);
}

#[tokio::test]
async fn a_failed_socks5_server_is_asked_once_in_a_while() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let server = listener.local_addr().expect("bound");
    drop(listener);
    let bench = Bench::new(&format!("socks5://{server}"), 10, "127.0.0.1:0");
    let client = "192.0.2.1:5000".parse().expect("literal");
    for _ in 0..200 {
        bench.steer(&[(client, "192.0.2.9:443".parse().expect("literal"), b"x")]);
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.counters().total(Protocol::Udp).load(Relaxed), 1);
    assert!(bench.counters().datagrams_blocked.load(Relaxed) >= 100);
    let failed = async {
        while bench
            .counters()
            .ended(Outcome::ConnectRefused)
            .load(Relaxed)
            == 0
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, failed).await.expect("it ends after a while");
}
