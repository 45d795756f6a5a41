use super::*;
use crate::data::router::Router;
use std::io::ErrorKind;
use std::net::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

fn relay_with(connections: usize, pipes: usize, outbound: &str, limits: &Limits) -> Arc<TcpRelay> {
    let budget = Budget {
        open_files: 1024,
        connections,
        associations: 1,
        pipes,
    };
    TcpRelay::new(
        Hands::fixed(Router::fixed(outbound), limits),
        budget,
        limits,
    )
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// A device and a server with the relay between them.
struct Pair {
    device: TcpStream,
    server: TcpStream,
    relay: Arc<TcpRelay>,
}

impl Pair {
    async fn new() -> Self {
        Self::over(relay_with(10, 8, "direct://", &Limits::default())).await
    }

    async fn over(relay: Arc<TcpRelay>) -> Self {
        let (front, front_address) = listen().await;
        let (back, back_address) = listen().await;
        let device = TcpStream::connect(front_address).await.expect("it listens");
        let (accepted, client) = front.accept().await.expect("the device came");
        relay.relay_to(accepted, client, back_address);
        let (server, _) = back.accept().await.expect("the relay came");
        Self {
            device,
            server,
            relay,
        }
    }

    /// Waits for the end of the connection and says how it ended.
    async fn outcome(self) -> Outcome {
        let ended = timeout(SOON, self.relay.ended()).await;
        ended.expect("the connection ends");
        let ended = |outcome: &&Outcome| {
            self.relay
                .hands
                .shared
                .counters
                .ended(**outcome)
                .load(Relaxed)
                > 0
        };
        let mut outcomes = Outcome::ALL.iter().filter(ended);
        *outcomes.next().expect("it has an outcome")
    }
}

async fn read(stream: &mut TcpStream, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    let read = timeout(SOON, stream.read_exact(&mut buffer)).await;
    read.expect("in time").expect("connected");
    buffer
}

async fn is_reset(stream: &mut TcpStream) -> bool {
    let read = timeout(SOON, stream.read(&mut [0; 64])).await;
    let error = read.expect("in time").expect_err("not FIN");
    error.kind() == ErrorKind::ConnectionReset
}

async fn is_end(stream: &mut TcpStream) -> bool {
    let read = timeout(SOON, stream.read(&mut [0; 64])).await;
    read.expect("in time").expect("not reset") == 0
}

#[tokio::test]
async fn fin_of_the_device_leaves_the_way_back_open() {
    let mut pair = Pair::new().await;
    pair.device.write_all(b"question").await.expect("connected");
    pair.device.shutdown().await.expect("connected");
    assert_eq!(read(&mut pair.server, 8).await, b"question");
    assert!(is_end(&mut pair.server).await);
    pair.server.write_all(b"answer").await.expect("half open");
    assert_eq!(read(&mut pair.device, 6).await, b"answer");
    pair.server.shutdown().await.expect("half open");
    assert!(is_end(&mut pair.device).await);
    assert_eq!(pair.outcome().await, Outcome::Finished);
}

#[tokio::test]
async fn fin_of_the_server_leaves_the_way_up_open() {
    let mut pair = Pair::new().await;
    pair.server.shutdown().await.expect("connected");
    assert!(is_end(&mut pair.device).await);
    pair.device
        .write_all(b"still here")
        .await
        .expect("half open");
    assert_eq!(read(&mut pair.server, 10).await, b"still here");
    pair.device.shutdown().await.expect("half open");
    assert!(is_end(&mut pair.server).await);
    assert_eq!(pair.outcome().await, Outcome::Finished);
}

#[tokio::test]
async fn a_reset_passes_in_both_directions() {
    let mut pair = Pair::new().await;
    reset_on_close(&pair.device);
    pair.device = TcpStream::connect(listen().await.1)
        .await
        .expect("any stream");
    assert!(is_reset(&mut pair.server).await);
    assert_eq!(pair.outcome().await, Outcome::DeviceReset);

    let mut pair = Pair::new().await;
    reset_on_close(&pair.server);
    pair.server = TcpStream::connect(listen().await.1)
        .await
        .expect("any stream");
    assert!(is_reset(&mut pair.device).await);
    assert_eq!(pair.outcome().await, Outcome::UpstreamReset);
}

#[tokio::test]
async fn a_reset_after_fin_is_seen_while_the_other_side_idles() {
    let mut pair = Pair::new().await;
    pair.device.shutdown().await.expect("connected");
    assert!(is_end(&mut pair.server).await);
    reset_on_close(&pair.device);
    pair.device = TcpStream::connect(listen().await.1)
        .await
        .expect("any stream");
    // Past FIN there is nothing to read; the RST shows as an error.
    let errors = pair.server.ready(tokio::io::Interest::ERROR);
    timeout(SOON, errors)
        .await
        .expect("in time")
        .expect("polled");
    let error = pair.server.write_all(b"x").await.expect_err("reset");
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    assert_eq!(pair.outcome().await, Outcome::DeviceReset);
}

/// Numbers that repeat with no power of two.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|number| (number % 251) as u8).collect()
}

async fn transfer(pair: Pair, bytes: usize) -> Outcome {
    let sent = pattern(bytes);
    let Pair {
        device,
        server,
        relay,
    } = pair;
    let (mut device_read, mut device_write) = device.into_split();
    let (mut server_read, mut server_write) = server.into_split();
    let mut up = Vec::new();
    let mut down = Vec::new();
    // Both directions at once; the device reads after a while, so that buffers and pipe fill up.
    let work = async {
        tokio::try_join!(
            async {
                device_write.write_all(&sent).await?;
                device_write.shutdown().await
            },
            async {
                server_write.write_all(&sent).await?;
                server_write.shutdown().await
            },
            server_read.read_to_end(&mut up),
            async {
                tokio::task::yield_now().await;
                device_read.read_to_end(&mut down).await
            },
        )
    };
    timeout(SOON, work).await.expect("in time").expect("whole");
    assert!(up == sent, "the way up changed bytes");
    assert!(down == sent, "the way down changed bytes");
    let counted = relay.hands.shared.counters.up.load(Relaxed);
    assert_eq!(counted, bytes as u64);
    let (device, server) = (
        device_read.reunite(device_write).expect("of one stream"),
        server_read.reunite(server_write).expect("of one stream"),
    );
    let pair = Pair {
        device,
        server,
        relay,
    };
    pair.outcome().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_transfers_stay_equal_through_pipes() {
    let pair = Pair::new().await;
    let relay = Arc::clone(&pair.relay);
    assert_eq!(transfer(pair, 48 << 20).await, Outcome::Finished);
    assert_eq!(relay.hands.shared.counters.pipe_missing.load(Relaxed), 0);
    assert_eq!(relay.pool.lent(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_transfers_stay_equal_without_pipes() {
    let pair = Pair::over(relay_with(10, 0, "direct://", &Limits::default())).await;
    let relay = Arc::clone(&pair.relay);
    assert_eq!(transfer(pair, 8 << 20).await, Outcome::Finished);
    assert!(relay.hands.shared.counters.pipe_missing.load(Relaxed) > 0);
}

#[tokio::test]
async fn single_bytes_pass_one_by_one() {
    let mut pair = Pair::new().await;
    for number in 0..1000_u32 {
        let byte = [(number % 251) as u8];
        pair.device.write_all(&byte).await.expect("connected");
        assert_eq!(read(&mut pair.server, 1).await, byte);
        pair.server.write_all(&byte).await.expect("connected");
        assert_eq!(read(&mut pair.device, 1).await, byte);
    }
}

#[tokio::test]
async fn many_single_bytes_fill_the_pipe_by_pages_not_by_bytes() {
    let mut pair = Pair::new().await;
    let sent = pattern(5000);
    for byte in &sent {
        pair.device.write_all(&[*byte]).await.expect("connected");
    }
    assert_eq!(read(&mut pair.server, 5000).await, sent);
}

#[tokio::test]
async fn an_idle_connection_holds_no_pipe_and_a_stuck_one_does() {
    let mut pair = Pair::new().await;
    pair.device.write_all(b"a").await.expect("connected");
    read(&mut pair.server, 1).await;
    pair.server.write_all(b"b").await.expect("connected");
    read(&mut pair.device, 1).await;
    // On one thread, reading "b" means that the relay was last polled with nothing left.
    assert_eq!(pair.relay.pool.lent(), 0);

    // The server does not read: bytes pile up until the relay holds some.
    let block = vec![0; 1 << 20];
    while pair.relay.pool.lent() == 0 {
        let written = timeout(SOON, pair.device.write_all(&block)).await;
        written.expect("in time").expect("connected");
        tokio::task::yield_now().await;
    }
    // A pipe with bytes in it does not go back.
    pair.relay.reset_all();
    let pool = Arc::clone(&pair.relay.pool);
    pair.outcome().await;
    assert_eq!(pool.lent(), 0);
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
async fn idle_connections_are_reset_and_busy_ones_are_not() {
    let limits = Limits {
        tcp_idle: Duration::from_millis(300),
        ..Limits::default()
    };
    let mut pair = Pair::over(relay_with(10, 8, "direct://", &limits)).await;
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_millis(700) {
        ticks.tick().await;
        pair.device.write_all(b"x").await.expect("it lives");
        read(&mut pair.server, 1).await;
    }
    assert!(is_reset(&mut pair.device).await);
    assert!(is_reset(&mut pair.server).await);
    assert_eq!(pair.outcome().await, Outcome::Idle);
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
    let future = serve(Member::enter(&relay), record, ResetOnDrop::new(device));
    let size = size_of_val(&future);
    assert!(
        size <= 1024,
        "the future of a connection takes {size} bytes"
    );
    drop((future, front));
}

mod rules;

mod socks5 {
    use super::*;

    /// Plays the server's part of one handshake: reads what is expected, answers (with FIN
    /// where the answer is empty), and hands the stream over.
    async fn server(listener: TcpListener, steps: Vec<(&'static [u8], Vec<u8>)>) -> TcpStream {
        let (mut stream, _) = listener.accept().await.expect("a client came");
        for (expected, answer) in steps {
            assert_eq!(read(&mut stream, expected.len()).await, expected);
            stream.write_all(&answer).await.expect("connected");
            if answer.is_empty() {
                stream.shutdown().await.expect("connected");
            }
        }
        stream
    }

    async fn dial(
        credentials: &str,
        steps: Vec<(&'static [u8], Vec<u8>)>,
    ) -> Result<(TcpStream, TcpStream), crate::data::outbound::DialError> {
        let (listener, address) = listen().await;
        let relay = relay_with(
            1,
            1,
            &format!("socks5://{credentials}{address}"),
            &Limits::default(),
        );
        let playing = tokio::spawn(server(listener, steps));
        let destination: SocketAddr = "192.0.2.1:443".parse().expect("a literal");
        let stream = relay
            .hands
            .dialer
            .connect(
                relay.hands.shared.router().default_way(),
                destination.into(),
            )
            .await?;
        Ok((stream, playing.await.expect("no assertion failed")))
    }

    const REQUEST: &[u8] = &[5, 1, 0, 1, 192, 0, 2, 1, 1, 187];

    #[tokio::test]
    async fn relayed_bytes_that_follow_the_reply_at_once_are_kept() {
        let mut reply = vec![5, 0, 0, 3, 4];
        reply.extend(b"host\x00\x50first bytes");
        let steps = vec![(&b"\x05\x01\x00"[..], vec![5, 0]), (REQUEST, reply)];
        let (mut stream, _server) = dial("", steps).await.expect("connected");
        assert_eq!(read(&mut stream, 11).await, b"first bytes");
    }

    #[tokio::test]
    async fn user_and_password_are_sent_when_asked_for() {
        let steps = vec![
            (&b"\x05\x02\x00\x02"[..], vec![5, 2]),
            (&b"\x01\x02me\x04p@ss"[..], vec![1, 0]),
            (REQUEST, vec![5, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
        ];
        dial("me:p%40ss@", steps).await.expect("connected");
    }

    #[tokio::test]
    async fn each_failure_has_its_outcome_and_its_words() {
        let greeting = (&b"\x05\x01\x00"[..], vec![5, 0]);
        let cases = [
            (
                "me:wrong@",
                vec![
                    (&b"\x05\x02\x00\x02"[..], vec![5, 2]),
                    (&b"\x01\x02me\x05wrong"[..], vec![1, 1]),
                ],
                Outcome::ProxyAuth,
                "refused the user \"me\"",
            ),
            (
                "",
                vec![(&b"\x05\x01\x00"[..], vec![5, 0xff])],
                Outcome::ProxyAuth,
                "it wants a user and password",
            ),
            (
                "",
                vec![
                    greeting.clone(),
                    (REQUEST, vec![5, 2, 0, 1, 0, 0, 0, 0, 0, 0]),
                ],
                Outcome::ProxyRefused,
                "a connection to 192.0.2.1:443: not allowed by its rules",
            ),
            (
                "",
                vec![(&b"\x05\x01\x00"[..], b"HT".to_vec())],
                Outcome::ProxyProtocol,
                "is it a SOCKS5 server?",
            ),
            (
                "",
                vec![greeting, (REQUEST, vec![5, 0]), (&[], vec![])],
                Outcome::ProxyProtocol,
                "broke off while waiting for its reply",
            ),
        ];
        for (credentials, steps, outcome, words) in cases {
            let error = dial(credentials, steps).await.expect_err(words);
            assert_eq!(error.outcome(), outcome);
            assert!(error.to_string().contains(words), "{error}");
            assert!(!error.to_string().contains("wrong@"));
        }
    }

    #[tokio::test]
    async fn bytes_are_relayed_and_ends_passed_on() {
        let (listener, address) = listen().await;
        let relay = relay_with(1, 1, &format!("socks5://{address}"), &Limits::default());
        let (front, front_address) = listen().await;
        let mut device = TcpStream::connect(front_address).await.expect("it listens");
        let (accepted, client) = front.accept().await.expect("the device came");
        let destination: SocketAddr = "192.0.2.1:443".parse().expect("a literal");
        relay.relay_to(accepted, client, destination);
        let steps = vec![
            (&b"\x05\x01\x00"[..], vec![5, 0]),
            (REQUEST, vec![5, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
        ];
        let mut server = server(listener, steps).await;
        device.write_all(b"up").await.expect("connected");
        assert_eq!(read(&mut server, 2).await, b"up");
        server.write_all(b"down").await.expect("connected");
        assert_eq!(read(&mut device, 4).await, b"down");
        socket2::SockRef::from(&server)
            .shutdown(Shutdown::Write)
            .expect("connected");
        assert!(is_end(&mut device).await);
        drop(device);
        assert!(is_end(&mut server).await);
        timeout(SOON, relay.ended()).await.expect("it ends");
        let finished = relay.hands.shared.counters.ended(Outcome::Finished);
        assert_eq!(finished.load(Relaxed), 1);
    }
}
