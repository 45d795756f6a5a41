//! The client side of HTTP's CONNECT.

use super::*;
use crate::data::outbound::{DialError, Target};

/// The request of a client, up to the empty line.
pub async fn request(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.extend(read(stream, 1).await);
    }
    String::from_utf8(bytes).expect("a text")
}

/// The proxy's part of a request for `authority` that it agrees to.
pub async fn agree(stream: &mut Stream, authority: &str) {
    let asked = request(stream).await;
    let wanted = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    assert_eq!(asked, wanted);
    send(stream, b"HTTP/1.1 200 Connection established\r\n\r\n").await;
}

/// What the client gets of a proxy that answers so, and what it asked for.
async fn dial(
    way: impl FnOnce(SocketAddr) -> Way,
    target: Target<'_>,
    answer: &'static [u8],
) -> (Result<Stream, DialError>, String) {
    let (listener, address) = listen().await;
    let relay = relay_by(1, 1, way(address).into(), &Limits::default());
    let playing = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client came");
        let asked = request(&mut stream).await;
        // In two pieces, so that the end of the head is not in the first one.
        let (first, second) = answer.split_at(answer.len().min(20));
        stream.set_nodelay(true).expect("TCP");
        send(&mut stream, first).await;
        sleep(Duration::from_millis(20)).await;
        // Who has heard enough is gone already.
        let _ = stream.write_all(second).await;
        let _ = stream.shutdown().await;
        (stream, asked)
    });
    let router = relay.hands.shared.router();
    let dialled = relay.hands.dialer.connect(router.default_way(), target);
    let dialled = timeout(SOON, dialled).await.expect("in time");
    let (stream, asked) = playing.await.expect("no assertion failed");
    // What the proxy had to say is read by then.
    drop(stream);
    (dialled, asked)
}

fn plain(userinfo: &str) -> impl FnOnce(SocketAddr) -> Way {
    move |address| Way::fixed(&format!("http://{userinfo}{address}"))
}

fn target(text: &str) -> Target<'static> {
    Target::Address(text.parse().expect("a literal"))
}

#[tokio::test]
async fn the_target_is_asked_for_and_what_follows_the_reply_is_kept() {
    for (target, authority) in [
        (target("192.0.2.1:443"), "192.0.2.1:443"),
        (target("[2001:db8::1]:80"), "[2001:db8::1]:80"),
        (Target::Name("www.example", 443), "www.example:443"),
    ] {
        let answer =
            b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.0 200 OK\r\nVia: x\r\n\r\nfirst bytes";
        let (stream, asked) = dial(plain("me:p%40ss@"), target, answer).await;
        let mut stream = stream.expect("connected");
        assert!(matches!(stream, Stream::Plain(_)));
        assert_eq!(read(&mut stream, 11).await, b"first bytes");
        assert_eq!(
            asked,
            format!(
                "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\
                 Proxy-Authorization: Basic bWU6cEBzcw==\r\n\r\n"
            )
        );
    }
}

#[tokio::test]
async fn each_failure_has_its_outcome_and_its_words() {
    for (userinfo, answer, outcome, words) in [
        (
            "me:s3cret@",
            &b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"a\"\r\n\r\n"[..],
            Outcome::ProxyAuth,
            "refused the user \"me\"",
        ),
        (
            "me:s3cret@",
            b"HTTP/1.0 401 Unauthorized\r\n\r\n",
            Outcome::ProxyAuth,
            "refused the user \"me\"",
        ),
        (
            "",
            b"HTTP/1.1 407 No\r\n\r\n",
            Outcome::ProxyAuth,
            "wants a user and password",
        ),
        (
            "me:s3cret@",
            b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\n\r\n",
            Outcome::ProxyAuth,
            "wants the authentication method NTLM",
        ),
        (
            "",
            b"HTTP/1.1 403 Filtered\r\nContent-Length: 2\r\n\r\nNo",
            Outcome::ProxyRefused,
            "refused a connection to 192.0.2.1:443: 403 Filtered",
        ),
        (
            "",
            b"HTTP/1.0 500 Unable to connect\r\n\r\n",
            Outcome::ProxyRefused,
            "500 Unable to connect",
        ),
        (
            "",
            b"SSH-2.0-OpenSSH_9.9 of somebody\r\n",
            Outcome::ProxyProtocol,
            "is it an HTTP proxy?",
        ),
        (
            "",
            b"HTTP/1.1 200 OK\r\nVia: nobody\r\n",
            Outcome::ProxyProtocol,
            "broke off while waiting for its reply",
        ),
    ] {
        let (dialled, _) = dial(plain(userinfo), target("192.0.2.1:443"), answer).await;
        let error = dialled.expect_err(words);
        assert_eq!(error.outcome(), outcome, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_or_for_another_host_is_refused() {
    let (acceptor, _) = secure::certified();
    let (_, strangers) = secure::certified();
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = secure::wrap(&acceptor, stream).await;
        }
    });
    let way = Way::trusting(&format!("https://{address}"), &strangers);
    let relay = relay_by(1, 1, way.into(), &Limits::default());
    let mut device = device(&relay, "192.0.2.1:443".parse().expect("a literal")).await;
    assert!(is_reset(&mut device).await);
    assert_eq!(outcome(&relay).await, Outcome::ProxyTls);
}
