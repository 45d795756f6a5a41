//! The client side of SOCKS5.

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
) -> Result<(Stream, TcpStream), crate::data::outbound::DialError> {
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
