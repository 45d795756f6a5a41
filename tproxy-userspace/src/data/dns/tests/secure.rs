//! DoT and DoH, with a certificate of the test's own.

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;

use super::*;
use crate::data::tls::samples;

/// A server for `dns.example` and 127.0.0.1 that has 192.0.2.1 for every name.
struct Secure {
    address: SocketAddr,
    roots: Roots,
    handshakes: Arc<AtomicUsize>,
    sizes: Arc<Mutex<Vec<usize>>>,
}

async fn start(http: bool) -> Secure {
    let protocols: &[&[u8]] = if http { &[b"h2"] } else { &[] };
    let (acceptor, roots) = samples::certified("dns.example", protocols);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let server = Secure {
        address: listener.local_addr().expect("bound"),
        roots,
        handshakes: Arc::default(),
        sizes: Arc::default(),
    };
    let (handshakes, sizes) = (Arc::clone(&server.handshakes), Arc::clone(&server.sizes));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, sizes) = (acceptor.clone(), Arc::clone(&sizes));
            let handshakes = Arc::clone(&handshakes);
            tokio::spawn(async move {
                // A client that does not trust it goes away.
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                handshakes.fetch_add(1, SeqCst);
                if http {
                    by_http(stream, sizes).await;
                } else {
                    let log = |question: &Message| note(&sizes, question);
                    server::framed(
                        stream,
                        Arc::new(|question, _| vec![Reply::Here(reply(question))]),
                        log,
                    )
                    .await;
                }
            });
        }
    });
    server
}

fn reply(question: &Message) -> Vec<u8> {
    let answer = addresses(question, &["192.0.2.1"], 300);
    answer.to_vec().expect("well formed")
}

fn note(sizes: &Mutex<Vec<usize>>, question: &Message) {
    let size = question.to_vec().expect("well formed").len();
    sizes.lock().expect("no panic").push(size);
}

async fn by_http(stream: TlsStream<TcpStream>, sizes: Arc<Mutex<Vec<usize>>>) {
    let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let sizes = Arc::clone(&sizes);
        tokio::spawn(async move {
            let sound = request.method() == http::Method::POST
                && request
                    .uri()
                    .path_and_query()
                    .is_some_and(|path| path == "/q?x=1")
                && request.uri().host() == Some("dns.example")
                && request.headers()["content-type"] == "application/dns-message";
            let status = if sound { 200 } else { 404 };
            let mut body = request.into_body();
            let mut question = Vec::new();
            while let Some(Ok(part)) = body.data().await {
                question.extend_from_slice(&part);
            }
            let question = Message::from_vec(&question).expect("a question");
            note(&sizes, &question);
            let response = http::Response::builder()
                .status(status)
                .body(())
                .expect("sound");
            let mut body = respond.send_response(response, false).expect("open");
            // In two pieces.
            let answer = Bytes::from(reply(&question));
            body.send_data(answer.slice(..5), false).expect("open");
            body.send_data(answer.slice(5..), true).expect("open");
        });
    }
}

fn resolver_to(server: &Secure, upstream: &str) -> Dns {
    let path = outbound("direct://");
    resolver_with(
        &[],
        &[upstream],
        &path,
        settings(),
        Some(server.roots.clone()),
    )
}

#[tokio::test]
async fn dot_and_doh_answer_by_one_connection_with_padded_questions() {
    for http in [false, true] {
        let server = start(http).await;
        let upstream = if http {
            format!("https://{}/q?x=1#dns.example", server.address)
        } else {
            format!("tls://{}#dns.example", server.address)
        };
        let dns = resolver_to(&server, &upstream);
        let all = (0..10).map(|index| {
            let dns = dns.clone();
            async move { address(&dns, &format!("{}.example.", "x".repeat(index + 1))).await }
        });
        for found in futures_util::future::join_all(all).await {
            assert_eq!(found, ["192.0.2.1"]);
        }
        assert_eq!(server.handshakes.load(SeqCst), 1);
        let sizes = server.sizes.lock().expect("no panic").clone();
        assert_eq!(sizes, [128; 10], "their lengths tell nothing");
        assert_eq!(dns.stats().upstream_failures, 0);
    }
}

#[tokio::test]
async fn the_address_may_be_in_the_certificate() {
    let server = start(false).await;
    let dns = resolver_to(&server, &format!("tls://{}", server.address));
    assert_eq!(address(&dns, "a.example.").await, ["192.0.2.1"]);
}

#[tokio::test]
async fn a_certificate_of_another_name_or_of_nobody_known_is_refused() {
    let server = start(false).await;
    let other = start(false).await;
    for (roots, certified) in [(&server, "other.example"), (&other, "dns.example")] {
        let upstream = format!("tls://{}#{certified}", server.address);
        let dns = resolver_to(roots, &upstream);
        assert!(address(&dns, "a.example.").await.is_empty());
        let stats = dns.stats();
        assert_eq!((stats.failures, stats.upstream_failures), (1, 1));
    }
    assert!(
        server.sizes.lock().expect("no panic").is_empty(),
        "no question left"
    );
}

#[tokio::test]
async fn another_status_of_http_is_a_failure() {
    let server = start(true).await;
    let dns = resolver_to(
        &server,
        &format!("https://{}/other#dns.example", server.address),
    );
    assert!(address(&dns, "a.example.").await.is_empty());
    assert_eq!(dns.stats().upstream_failures, 1);
}

#[test]
fn the_machine_has_certificates_or_says_what_to_do() {
    match Roots::system() {
        Ok(roots) => {
            let host = url::Host::parse("dns.example").expect("a name");
            assert!(roots.connector(&host, &[b"h2"], "").is_ok());
        }
        Err(error) => assert!(error.to_string().contains("ca-certificates"), "{error}"),
    }
}
