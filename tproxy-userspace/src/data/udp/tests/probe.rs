//! One question by each kind of outbound.

use super::shadowsocks::Server as Shadowsocks;
use super::socks5::associate;
use super::trojan::Server as Trojan;
use super::*;
use crate::data::outbound::DialError;
use crate::data::udp::probe::ask;
use crate::data::way::Way;
use tokio::net::TcpListener;

const QUESTION: &[u8] = b"anyone?";

/// Asks by this way.
fn asking(way: Way, to: SocketAddr) -> tokio::task::JoinHandle<Result<Vec<u8>, DialError>> {
    let dialer = Hands::fixed(Router::fixed("direct://"), &Limits::default()).dialer;
    tokio::spawn(async move { ask(&dialer, &way, to, QUESTION).await })
}

fn peer() -> SocketAddr {
    "192.0.2.1:53".parse().expect("a literal")
}

fn other() -> SocketAddr {
    "192.0.2.2:53".parse().expect("a literal")
}

async fn is_answered(asking: tokio::task::JoinHandle<Result<Vec<u8>, DialError>>) {
    let answer = timeout(SOON, asking).await.expect("in time");
    assert_eq!(answer.expect("no panic").expect("an answer"), b"yes");
}

#[tokio::test]
async fn the_first_answer_of_whom_was_asked_is_it() {
    for any in ["127.0.0.1:0", "[::1]:0"] {
        let (socket, address) = bind(any).await;
        let (stranger, _) = bind(any).await;
        let asking = asking(Way::fixed("direct://"), address);
        let (question, from) = receive(&socket).await;
        assert_eq!(question, QUESTION);
        stranger.send_to(b"no", from).await.expect("sent");
        socket.send_to(b"yes", from).await.expect("sent");
        is_answered(asking).await;
    }

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let server = listener.local_addr().expect("bound");
    let asked = asking(Way::fixed(&format!("socks5://{server}")), peer());
    let (relay, relay_address) = bind("127.0.0.1:0").await;
    let _control = associate(&listener, relay_address).await;
    let (question, from) = receive(&relay).await;
    assert_eq!(question[10..], *QUESTION);
    let answer = [&question[..10], b"yes"].concat();
    relay.send_to(&answer, from).await.expect("sent");
    is_answered(asked).await;

    let mut server = Shadowsocks::start().await;
    let asked = asking(Way::fixed(&server.url), peer());
    let (to, question, from) = server.receive().await;
    assert_eq!((to, &question[..]), (peer(), QUESTION));
    server.answer(other(), b"no", from).await;
    server.answer(peer(), b"yes", from).await;
    is_answered(asked).await;

    let (server, way) = Trojan::start().await;
    let asked = asking(way, peer());
    let mut association = server.associate(peer()).await;
    assert_eq!(association.receive().await, (peer(), QUESTION.to_vec()));
    association
        .answer(&[(other(), b"no"), (peer(), b"yes")])
        .await;
    is_answered(asked).await;
}

#[tokio::test]
async fn what_ends_without_an_answer_says_why() {
    for (url, outcome) in [
        ("block://", Outcome::Blocked),
        ("http://192.0.2.1:8080", Outcome::Unsupported),
        ("socks5://127.0.0.1:1", Outcome::ConnectRefused),
    ] {
        let asked = timeout(SOON, asking(Way::fixed(url), peer())).await;
        let error = asked.expect("in time").expect("no panic");
        assert_eq!(error.expect_err("nothing").outcome(), outcome, "{url}");
    }
    let (server, way) = Trojan::start().await;
    let asked = asking(way, peer());
    drop(server.associate(peer()).await);
    let asked = timeout(SOON, asked).await.expect("in time");
    let error = asked.expect("no panic").expect_err("a hang-up");
    assert!(
        matches!(error.outcome(), Outcome::ProxyAuth | Outcome::ProxyProtocol),
        "{error}"
    );
}
