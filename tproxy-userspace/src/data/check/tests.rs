use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, UdpSocket};
use tokio::time::{Instant as Clock, sleep};

use super::*;
use crate::data::exit::NamedGroup;
use crate::data::guard::Guard;
use crate::data::outbound::Outbound;
use crate::data::router::{Named, Router, Routing};
use crate::net::SocketFactory;
use crate::policy::group::Kind;
use crate::policy::health::State;

/// A web server that answers each request with this status line, or not at all.
async fn web(reply: Option<&'static str>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 1000];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let head = format!("GET /a?b HTTP/1.1\r\nHost: {address}\r\n");
            assert!(request.starts_with(&head), "{request}");
            if let Some(reply) = reply {
                let reply = format!("HTTP/1.1 {reply}\r\nContent-Length: 0\r\n\r\n");
                let _ = stream.write_all(reply.as_bytes()).await;
            }
        }
    });
    address
}

/// What answers each datagram with what `answer` makes of it.
async fn datagrams(answer: fn(&[u8]) -> Vec<u8>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    let address = socket.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut question = [0; 100];
        while let Ok((length, peer)) = socket.recv_from(&mut question).await {
            let _ = socket.send_to(&answer(&question[..length]), peer).await;
        }
    });
    address
}

fn dns(question: &[u8]) -> Vec<u8> {
    let mut answer = question.to_vec();
    answer[2] |= 0x80;
    answer
}

fn settings(web: SocketAddr, dns: SocketAddr) -> CheckSettings {
    CheckSettings {
        url: CheckUrl {
            tls: false,
            host: match web.ip() {
                std::net::IpAddr::V4(ip) => Host::Ipv4(ip),
                std::net::IpAddr::V6(ip) => Host::Ipv6(ip),
            },
            port: web.port(),
            path: "/a?b".to_owned(),
        },
        dns,
        interval: Duration::from_secs(60),
        timeout: Duration::from_secs(1),
    }
}

/// An outbound that connects directly, in a group or not.
async fn router(check: CheckSettings, grouped: bool, previous: Option<&Router>) -> Router {
    let mut routing = Routing::plain(vec![Named::new("plain", Outbound::Direct)]);
    routing.check = check;
    if grouped {
        routing.groups.push(NamedGroup {
            name: "all".to_owned(),
            kind: Kind::Fallback,
            members: vec!["plain".to_owned(), "block".to_owned()],
            default: None,
        });
    }
    let resolver = Resolver::system(SocketFactory::default());
    let router = Router::open(routing, previous, &resolver, &Guard::default()).await;
    router.expect("sound")
}

/// A proxy's checks of one outbound that connects directly.
struct Watched {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Watched {
    async fn start(settings: CheckSettings) -> Self {
        Self::start_with(settings, true).await
    }

    async fn start_with(settings: CheckSettings, grouped: bool) -> Self {
        let factory = SocketFactory::default();
        let resolver = Resolver::system(factory);
        let shared = Arc::new(Shared::new(router(settings, grouped, None).await));
        let dialer = Dialer {
            factory,
            limit: Duration::from_secs(10),
            keepalive: Duration::from_secs(60),
            guard: Arc::new(Guard::default()),
        };
        let task = tokio::spawn(watch(Arc::clone(&shared), dialer, resolver));
        Self { shared, task }
    }

    /// State, error and whether there is a delay, once both checks were made.
    async fn made(&self) -> [(State, String, bool); 2] {
        let start = Clock::now();
        loop {
            let status = &self.shared.router().outbounds()[0];
            let both = [&status.tcp, &status.udp];
            if both.iter().all(|one| one.state != State::Unknown) {
                return both.map(|one| {
                    let error = one.error.clone().unwrap_or_default();
                    (one.state, error, one.delay_milliseconds.is_some())
                });
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{status:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn what_answers_is_up_and_what_ends_traffic_is_not_asked() {
    let settings = settings(web(Some("204 No Content")).await, datagrams(dns).await);
    let watched = Watched::start(settings).await;
    let up = (State::Up, String::new(), true);
    assert_eq!(watched.made().await, [up.clone(), up]);
    let block = &watched.shared.router().outbounds()[2];
    assert_eq!((&*block.name, block.tcp.state), ("block", State::Unknown));
    assert_eq!(block.tcp.check_in_seconds, None);
}

#[tokio::test]
async fn what_answers_wrongly_or_not_is_down_and_says_why() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], 9));
    for (reply, tcp) in [
        (Some("502 Bad Gateway"), "was answered with 502 Bad Gateway"),
        (Some("302 Found"), "was answered with 302 Found"),
        (None, "the connection ended before an answer came"),
    ] {
        let settings = settings(web(reply).await, datagrams(<[u8]>::to_vec).await);
        let watched = Watched::start(settings).await;
        let made = watched.made().await;
        assert_eq!(made.each_ref().map(|one| one.0), [State::Down; 2]);
        assert!(made[0].1.contains(tcp), "{}", made[0].1);
        assert!(made[1].1.contains("no DNS answer"), "{}", made[1].1);
    }
    let watched = Watched::start(settings(nobody, nobody)).await;
    let made = watched.made().await;
    assert!(made[0].1.contains("Connection refused"), "{}", made[0].1);
    assert!(made[1].1.contains("no answer within 1s"), "{}", made[1].1);
}

#[tokio::test]
async fn a_reload_checks_what_came_to_be_a_member() {
    let settings = settings(web(Some("200 OK")).await, datagrams(dns).await);
    let watched = Watched::start_with(settings.clone(), false).await;
    let before = watched.shared.router();
    assert_eq!(before.next_due(), None, "nobody asked for checks");
    let after = router(settings, true, Some(&before)).await;
    assert!(Arc::ptr_eq(&before.ways()[0], &after.ways()[0]));
    watched.shared.replace(after);
    let made = watched.made().await;
    assert_eq!(made.map(|one| one.0), [State::Up; 2]);
}
