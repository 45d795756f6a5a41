use super::*;
use crate::data::router::Router;
use crate::data::way::Way;
use std::io::ErrorKind;
use std::net::Shutdown;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

mod chains;
mod encrypted;
mod http;
mod relay;
mod rules;
mod secure;
mod socks5;

const SOON: Duration = Duration::from_secs(20);

fn relay_with(connections: usize, pipes: usize, outbound: &str, limits: &Limits) -> Arc<TcpRelay> {
    relay_by(connections, pipes, Router::fixed(outbound), limits)
}

fn relay_by(connections: usize, pipes: usize, router: Router, limits: &Limits) -> Arc<TcpRelay> {
    let budget = Budget {
        open_files: 1024,
        connections,
        associations: 1,
        pipes,
    };
    TcpRelay::new(Hands::fixed(router, limits), budget, limits)
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// A device and a server with the relay between them.
struct Pair {
    device: TcpStream,
    server: Stream,
    relay: Arc<TcpRelay>,
}

impl Pair {
    async fn new() -> Self {
        Self::over(relay_with(10, 8, "direct://", &Limits::default())).await
    }

    /// Spliced, and copied.
    async fn both() -> [Self; 2] {
        [Self::new().await, Self::secure(&Limits::default()).await]
    }

    async fn over(relay: Arc<TcpRelay>) -> Self {
        let (back, back_address) = listen().await;
        let device = device(&relay, back_address).await;
        let (server, _) = back.accept().await.expect("the relay came");
        Self {
            device,
            server: Stream::Plain(server),
            relay,
        }
    }

    /// The server is behind an HTTPS proxy, and is the proxy's end of TLS.
    async fn secure(limits: &Limits) -> Self {
        let (back, address) = listen().await;
        let (acceptor, roots) = secure::certified();
        let way = Way::trusting(&format!("https://{address}"), &roots);
        let relay = relay_by(10, 8, way.into(), limits);
        let destination = "192.0.2.1:443".parse().expect("a literal");
        let device = device(&relay, destination).await;
        let (server, _) = back.accept().await.expect("the relay came");
        let mut server = secure::wrap(&acceptor, server).await.expect("trusted");
        http::agree(&mut server, "192.0.2.1:443").await;
        Self {
            device,
            server,
            relay,
        }
    }

    /// Waits for the end of the connection and says how it ended.
    async fn outcome(self) -> Outcome {
        outcome(&self.relay).await
    }
}

/// Waits for the end of the only connection and says how it ended.
async fn outcome(relay: &TcpRelay) -> Outcome {
    let ended = timeout(SOON, relay.ended()).await;
    ended.expect("the connection ends");
    let counters = &relay.hands.shared.counters;
    let ended = |outcome: &&Outcome| counters.ended(**outcome).load(Relaxed) > 0;
    let mut outcomes = Outcome::ALL.iter().filter(ended);
    *outcomes.next().expect("it has an outcome")
}

/// A device whose connection to `destination` is relayed.
async fn device(relay: &Arc<TcpRelay>, destination: SocketAddr) -> TcpStream {
    let (front, front_address) = listen().await;
    let device = TcpStream::connect(front_address).await.expect("it listens");
    let (accepted, client) = front.accept().await.expect("the device came");
    relay.relay_to(accepted, client, destination);
    device
}

async fn read(stream: &mut (impl AsyncRead + Unpin), bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    let read = timeout(SOON, stream.read_exact(&mut buffer)).await;
    read.expect("in time").expect("connected");
    buffer
}

async fn is_reset(stream: &mut (impl AsyncRead + Unpin)) -> bool {
    let read = timeout(SOON, stream.read(&mut [0; 64])).await;
    let error = read.expect("in time").expect_err("not FIN");
    error.kind() == ErrorKind::ConnectionReset
}

async fn is_end(stream: &mut (impl AsyncRead + Unpin)) -> bool {
    let read = timeout(SOON, stream.read(&mut [0; 64])).await;
    read.expect("in time").expect("not reset") == 0
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) {
    let sent = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    timeout(SOON, sent)
        .await
        .expect("in time")
        .expect("connected");
}

#[tokio::test]
async fn upstream_failures_reset_the_device() {
    let relay = relay_with(10, 8, "direct://", &Limits::default());
    let (front, front_address) = listen().await;
    let (gone, nobody) = listen().await;
    drop(gone);
    let mut device = TcpStream::connect(front_address).await.expect("it listens");
    let (accepted, client) = front.accept().await.expect("the device came");
    relay.relay_to(accepted, client, nobody);
    assert!(is_reset(&mut device).await);
    relay.ended().await;
    let counters = &relay.hands.shared.counters;
    assert_eq!(counters.ended(Outcome::ConnectRefused).load(Relaxed), 1);
    assert_eq!(counters.now(Protocol::Tcp).load(Relaxed), 0);
}

#[tokio::test]
async fn the_own_port_is_refused() {
    let relay = relay_with(10, 8, "direct://", &Limits::default());
    let (front, own) = listen().await;
    tokio::spawn(Arc::clone(&relay).accept(front, own));
    let mut device = TcpStream::connect(own).await.expect("it listens");
    assert!(is_reset(&mut device).await);
    let counters = &relay.hands.shared.counters;
    assert_eq!(counters.ended(Outcome::OwnPort).load(Relaxed), 1);
}

#[tokio::test]
async fn over_the_limit_is_reset_and_counted_and_others_live() {
    let relay = relay_with(1, 8, "direct://", &Limits::default());
    let mut first = Pair::over(Arc::clone(&relay)).await;
    let (front, front_address) = listen().await;
    // Not the listener's own address as far as the relay knows.
    let elsewhere = listen().await.1;
    tokio::spawn(Arc::clone(&relay).accept(front, elsewhere));
    let mut second = TcpStream::connect(front_address).await.expect("accepted");
    assert!(is_reset(&mut second).await);
    let refused = relay.hands.shared.counters.ended(Outcome::LimitReached);
    assert_eq!(refused.load(Relaxed), 1);
    first.device.write_all(b"x").await.expect("connected");
    assert_eq!(read(&mut first.server, 1).await, b"x");
}

#[tokio::test]
async fn an_idle_connection_is_small() {
    let relay = relay_with(10, 8, "direct://", &Limits::default());
    let mut pair = Pair::over(Arc::clone(&relay)).await;
    pair.device.write_all(b"x").await.expect("connected");
    read(&mut pair.server, 1).await;
    let (front, address) = listen().await;
    let device = TcpStream::connect(address).await.expect("it listens");
    let shared = Arc::clone(&relay.hands.shared);
    let record = Record::new(shared, Protocol::Tcp, address, address);
    let id = record.flow().id;
    let place = Place::take(&relay, address.ip()).expect("there is room");
    let future = serve(Member::enter(place, id), record, ResetOnDrop::new(device));
    let size = size_of_val(&future);
    assert!(size <= 704, "the future of a connection takes {size} bytes");
    drop((future, front));
}
