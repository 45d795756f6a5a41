use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{advance, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::*;
use crate::data::guard::Guard;
use crate::data::outbound::DialError;
use crate::data::router::Router;
use crate::data::tls::samples::certified;
use crate::net::SocketFactory;

const SOON: Duration = Duration::from_secs(20);

/// An HTTPS proxy, and a proxy of ours that goes by it.
struct Pair {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    way: Arc<Way>,
    dialer: Dialer,
    task: tokio::task::JoinHandle<()>,
}

impl Pair {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let (acceptor, roots) = certified("proxy.example", &[b"http/1.1"]);
        let way = Arc::new(Way::trusting(&format!("https://{address}"), &roots));
        let dialer = Dialer {
            factory: SocketFactory::default(),
            limit: SOON,
            keepalive: Duration::from_secs(60),
            guard: Arc::new(Guard::default()),
        };
        let router = Router::with_rules(
            vec![Arc::clone(&way)],
            crate::policy::rule::Rules::none(),
            None,
        );
        let shared = Arc::new(Shared::new(router));
        let task = tokio::spawn(keep(shared, dialer.clone()));
        Self {
            listener,
            acceptor,
            way,
            dialer,
            task,
        }
    }

    async fn accept(&self) -> TlsStream<TcpStream> {
        let accepted = timeout(SOON, self.listener.accept()).await;
        let (stream, _) = accepted.expect("in time").expect("a client");
        self.acceptor.accept(stream).await.expect("a handshake")
    }

    async fn connect(&self) -> Result<Stream, DialError> {
        let target = SocketAddr::from(([192, 0, 2, 1], 443));
        self.dialer.connect(&self.way, target.into()).await
    }

    /// Waits until so many are ready.
    async fn ready(&self, count: usize) {
        let spares = self.way.spares.as_ref().expect("it speaks TLS");
        let waiting = async {
            while spares.ready().len() != count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(SOON, waiting).await.expect("in time");
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Does what a client asks for.
async fn serve(server: &mut TlsStream<TcpStream>) {
    let mut request = [0; 1000];
    let length = server.read(&mut request).await.expect("connected");
    assert!(request[..length].starts_with(b"CONNECT 192.0.2.1:443 HTTP/1.1\r\n"));
    server
        .write_all(b"HTTP/1.1 200 OK\r\n\r\n")
        .await
        .expect("connected");
}

/// Both ends, of a connection that is made now.
async fn first(pair: &Pair) -> (Stream, TlsStream<TcpStream>) {
    let serving = async {
        let mut server = pair.accept().await;
        serve(&mut server).await;
        server
    };
    let (stream, server) = tokio::join!(pair.connect(), serving);
    (stream.expect("connected"), server)
}

#[tokio::test]
async fn each_connection_makes_one_for_the_next() {
    let pair = Pair::new().await;
    let _first = first(&pair).await;
    let mut spare = pair.accept().await;
    pair.ready(1).await;
    let (stream, ()) = tokio::join!(pair.connect(), serve(&mut spare));
    let mut stream = stream.expect("by the spare one");
    spare.write_all(b"hello").await.expect("connected");
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).await.expect("connected");
    assert_eq!(&hello, b"hello");
    // And so on.
    let _spare = pair.accept().await;
    pair.ready(1).await;
}

#[tokio::test]
async fn one_that_is_dead_is_not_used() {
    let pair = Pair::new().await;
    let _first = first(&pair).await;
    drop(pair.accept().await);
    pair.ready(1).await;
    // Which of the next two is the spare one is not known before it is asked for something.
    let serving = async {
        let (mut one, mut other) = (pair.accept().await, pair.accept().await);
        tokio::select! {
            () = serve(&mut one) => {}
            () = serve(&mut other) => {}
        }
        (one, other)
    };
    let (stream, _servers) = tokio::join!(pair.connect(), serving);
    stream.expect("by a new one");
}

#[tokio::test]
async fn a_burst_makes_a_few() {
    let pair = Pair::new().await;
    let serving = async {
        let mut servers = Vec::new();
        for _ in 0..10 + MOST {
            servers.push(pair.accept().await);
        }
        servers
    };
    let spares = pair.way.spares.as_ref().expect("it speaks TLS");
    for _ in 0..10 {
        assert!(spares.take().await.is_none());
    }
    assert!(
        timeout(Duration::from_millis(300), serving).await.is_err(),
        "no more than a few"
    );
    pair.ready(MOST).await;
}

#[tokio::test]
async fn they_do_not_last() {
    let pair = Pair::new().await;
    let _first = first(&pair).await;
    let mut spare = pair.accept().await;
    pair.ready(1).await;
    tokio::time::pause();
    advance(LIFETIME + Duration::from_millis(1)).await;
    pair.ready(0).await;
    let ended = timeout(SOON, spare.read(&mut [0])).await;
    assert!(matches!(ended.expect("in time"), Ok(0) | Err(_)));
}
