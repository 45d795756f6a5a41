//! Real sockets on loopback, and messages read and written by an independent implementation.

mod answers;
mod caching;
mod random;
mod secure;
mod server;
mod splitting;
mod upstreams;

use std::net::Ipv4Addr;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query as HickoryQuery};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

pub use self::server::{Reply, TestServer};
use super::transport::{Ask, Failure};
use super::wire::Response;
use super::*;
use crate::data::guard::Guard;
use crate::data::outbound::Dialer;
use crate::data::record::Shared;
use crate::data::router::Router;

/// Where test clients are said to be.
pub const CLIENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 40_000);

/// Short times for tests with real sockets.
pub const QUICK: Timing = Timing {
    hearing: Duration::ZERO,
    limit: Duration::from_millis(1500),
    overtake: Duration::from_millis(150),
    resend: Duration::from_millis(300),
    reused: Duration::from_millis(500),
    idle: Duration::from_secs(5),
    patience: Duration::from_millis(100),
};

pub fn settings() -> Settings {
    Settings {
        direct: Vec::new(),
        proxy: Vec::new(),
        cache: 100,
        stale: Duration::from_secs(3600),
        ipv6: true,
        prefer: Prefer::Both,
    }
}

/// Names below `direct.example` go direct.
pub fn chooser() -> Box<dyn Choose> {
    Box::new(Suffixes::from_iter(["direct.example"]))
}

pub fn builder(timing: Timing, roots: Option<Roots>) -> Builder {
    Builder {
        timing,
        counters: Arc::default(),
        roots,
        system: Resolver::at(SocketFactory::default(), CLIENT),
    }
}

/// Through an outbound as in a URL.
pub fn outbound(url: &str) -> Path {
    let dialer = Dialer {
        factory: SocketFactory::default(),
        limit: Duration::from_secs(1),
        keepalive: Duration::from_secs(60),
        guard: Arc::new(Guard::default()),
    };
    Path::Outbound(dialer, Arc::new(Shared::new(Router::fixed(url))))
}

/// A resolver with these upstreams, as they are written.
pub fn resolver(direct: &[&str], proxy: &[&str]) -> Dns {
    resolver_with(direct, proxy, &outbound("direct://"), settings(), None)
}

pub fn resolver_with(
    direct: &[&str],
    proxy: &[&str],
    outbound: &Path,
    settings: Settings,
    roots: Option<Roots>,
) -> Dns {
    let parse = |texts: &[&str]| -> Vec<Upstream> {
        let parsed = texts.iter().map(|text| text.parse().expect("an upstream"));
        parsed.collect()
    };
    let builder = builder(QUICK, roots);
    let path = Path::Direct(SocketFactory::default());
    let (direct, known) = builder.group(&parse(direct), &path, &[]).expect("roots");
    let (proxy, _) = builder
        .group(&parse(proxy), outbound, &[known])
        .expect("roots");
    Dns::assemble(&settings, chooser(), direct, proxy, builder).0
}

/// A resolver whose proxy group is this.
pub fn resolver_of(mock: &Mock, settings: &Settings) -> (Dns, mpsc::Receiver<Announcement>) {
    let builder = builder(Timing::default(), None);
    let member = group::Member::new("mock", Box::new(mock.clone()));
    let proxy = builder.new_group(vec![member]);
    let nobody = builder.new_group(Vec::new());
    Dns::assemble(settings, chooser(), nobody, proxy, builder)
}

/// An upstream without a network, for virtual time.
#[derive(Clone)]
pub struct Mock(Arc<Inner>);

type MockAnswer = Box<dyn Fn(&Message) -> Option<Message> + Send>;

struct Inner {
    asked: AtomicUsize,
    delay: Mutex<Duration>,
    answer: Mutex<MockAnswer>,
}

impl fmt::Debug for Mock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mock")
    }
}

impl Mock {
    /// None from `answer` is a failure.
    pub fn new(answer: impl Fn(&Message) -> Option<Message> + Send + 'static) -> Self {
        Self(Arc::new(Inner {
            asked: AtomicUsize::new(0),
            delay: Mutex::default(),
            answer: Mutex::new(Box::new(answer)),
        }))
    }

    pub fn set(&self, answer: impl Fn(&Message) -> Option<Message> + Send + 'static) {
        *self.0.answer.lock().expect("no panic") = Box::new(answer);
    }

    pub fn delay(&self, delay: Duration) {
        *self.0.delay.lock().expect("no panic") = delay;
    }

    pub fn asked(&self) -> usize {
        self.0.asked.load(SeqCst)
    }
}

impl Exchange for Mock {
    fn exchange<'a>(&'a self, ask: &'a Ask) -> BoxFuture<'a, Result<Response, Failure>> {
        async move {
            self.0.asked.fetch_add(1, SeqCst);
            let delay = *self.0.delay.lock().expect("no panic");
            tokio::time::sleep(delay).await;
            let question = wire::ask(
                7,
                &ask.question,
                ask.dnssec_ok,
                ask.checking_disabled,
                false,
            );
            let question = Message::from_vec(&question).expect("well formed");
            let answer = (self.0.answer.lock().expect("no panic"))(&question);
            let answer = answer
                .ok_or(Failure::Timeout)?
                .to_vec()
                .expect("well formed");
            Ok(Response::parse(answer, 7, &ask.question)?)
        }
        .boxed()
    }
}

pub fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

/// A client's question with EDNS.
pub fn question(about: &str, kind: RecordType) -> Message {
    let mut question = Message::new(4711, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(HickoryQuery::query(name(about), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    question.set_edns(edns);
    question
}

/// The answer to a question, with these addresses.
pub fn addresses(question: &Message, addresses: &[&str], ttl: u32) -> Message {
    let query = &question.queries[0];
    let mut answer = question.clone().into_response();
    answer.edns = None;
    answer.metadata.recursion_available = true;
    for address in addresses {
        let data = RData::from(address.parse::<std::net::IpAddr>().expect("a literal"));
        if data.record_type() == query.query_type() {
            answer.add_answer(Record::from_rdata(query.name().clone(), ttl, data));
        }
    }
    answer
}

/// Asks as a client by UDP, and reads the answer.
pub async fn ask(dns: &Dns, question: &Message) -> Message {
    let bytes = question.to_vec().expect("well formed");
    let answer = dns
        .answer(&bytes, Over::Udp, CLIENT)
        .await
        .expect("an answer");
    let answer = Message::from_vec(&answer).expect("well formed");
    assert_eq!(answer.metadata.id, question.metadata.id);
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    answer
}

/// The addresses of an answer.
pub fn found(answer: &Message) -> Vec<String> {
    let addresses = answer
        .answers
        .iter()
        .filter_map(|record| record.data.ip_addr());
    addresses.map(|address| address.to_string()).collect()
}

/// Asks for an address and returns what came.
pub async fn address(dns: &Dns, about: &str) -> Vec<String> {
    found(&ask(dns, &question(about, RecordType::A)).await)
}
