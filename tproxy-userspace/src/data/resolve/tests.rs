use super::*;
use std::sync::{Arc, Mutex, MutexGuard};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::RData;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A name server on loopback, UDP and TCP, that has the same answer to all questions for addresses.
pub struct TestDns {
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

/// What it answers.
struct Zone {
    addresses: Vec<IpAddr>,
    ttl: u32,
    code: ResponseCode,
    truncates: bool,
    asked: [usize; 2],
}

impl TestDns {
    pub async fn start(addresses: &[&str], ttl: u32) -> Self {
        let (udp, tcp, address) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
            let address = udp.local_addr().expect("bound");
            // Another program may have that port.
            if let Ok(tcp) = TcpListener::bind(address).await {
                break (udp, tcp, address);
            }
        };
        let zone = Arc::new(Mutex::new(Zone {
            addresses: parse(addresses),
            ttl,
            code: ResponseCode::NoError,
            truncates: false,
            asked: [0; 2],
        }));
        let tasks = [
            tokio::spawn(answer_udp(udp, Arc::clone(&zone))),
            tokio::spawn(answer_tcp(tcp, Arc::clone(&zone))),
        ];
        Self {
            address,
            zone,
            tasks,
        }
    }

    pub fn resolver(&self) -> Resolver {
        Resolver::at(SocketFactory::default(), self.address)
    }

    /// From now on the names stand for these addresses.
    pub fn set(&self, addresses: &[&str]) {
        let mut zone = self.zone();
        zone.addresses = parse(addresses);
        zone.code = ResponseCode::NoError;
    }

    /// From now on there is no answer but this code.
    pub fn fail(&self, code: ResponseCode) {
        self.zone().code = code;
    }

    /// How many questions came over UDP and TCP.
    pub fn asked(&self) -> [usize; 2] {
        self.zone().asked
    }

    fn zone(&self) -> MutexGuard<'_, Zone> {
        self.zone.lock().expect("no panic")
    }
}

impl Drop for TestDns {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn parse(addresses: &[&str]) -> Vec<IpAddr> {
    let parsed = addresses.iter().map(|text| text.parse());
    parsed.collect::<Result<_, _>>().expect("literals")
}

impl Zone {
    fn answer(&mut self, question: &[u8], over_tcp: bool) -> Vec<u8> {
        self.asked[usize::from(over_tcp)] += 1;
        let question = Message::from_vec(question).expect("a question");
        let query = question.queries[0].clone();
        let mut answer = question.into_response();
        answer.metadata.response_code = self.code;
        answer.metadata.recursion_available = true;
        if self.truncates && !over_tcp {
            answer.metadata.truncation = true;
        } else if self.code == ResponseCode::NoError {
            for address in &self.addresses {
                let data = RData::from(*address);
                if data.record_type() == query.query_type() {
                    let record = Record::from_rdata(query.name().clone(), self.ttl, data);
                    answer.add_answer(record);
                }
            }
        }
        answer.to_vec().expect("well formed")
    }
}

async fn answer_udp(socket: UdpSocket, zone: Arc<Mutex<Zone>>) {
    let mut buffer = [0; 1024];
    while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
        let answer = zone
            .lock()
            .expect("no panic")
            .answer(&buffer[..length], false);
        socket.send_to(&answer, client).await.expect("loopback");
    }
}

async fn answer_tcp(listener: TcpListener, zone: Arc<Mutex<Zone>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let zone = Arc::clone(&zone);
        tokio::spawn(async move {
            while let Ok(length) = stream.read_u16().await {
                let mut question = vec![0; length.into()];
                stream.read_exact(&mut question).await.expect("a question");
                let answer = zone.lock().expect("no panic").answer(&question, true);
                stream.write_u16(answer.len() as u16).await.expect("open");
                stream.write_all(&answer).await.expect("open");
            }
        });
    }
}

#[tokio::test]
async fn both_families_come_with_their_time() {
    let dns = TestDns::start(&["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"], 300).await;
    let answer = dns.resolver().lookup("proxy.example").await;
    let answer = answer.expect("an answer");
    let mut addresses = answer.addresses;
    addresses.sort();
    assert_eq!(addresses, parse(&["192.0.2.1", "2001:db8::1"]));
    assert_eq!(answer.ttl, Duration::from_secs(300));
    assert_eq!(dns.asked(), [2, 0], "one question for each family");
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_asked_for_over_tcp() {
    let dns = TestDns::start(&["192.0.2.1"], 1).await;
    dns.zone().truncates = true;
    let answer = dns.resolver().lookup("proxy.example").await;
    assert_eq!(answer.expect("by TCP").addresses, parse(&["192.0.2.1"]));
    assert!(dns.asked()[1] > 0);
}

#[tokio::test]
async fn a_failure_names_the_server_the_reason_and_the_way_out() {
    let dns = TestDns::start(&[], 1).await;
    for (code, reason) in [
        (ResponseCode::NXDomain, "it has no address"),
        (ResponseCode::NoError, "it has no address"),
        (ResponseCode::ServFail, "Server Failure"),
    ] {
        dns.fail(code);
        let error = dns.resolver().lookup("proxy.example").await;
        let text = error.expect_err("no address").to_string();
        for part in ["proxy.example", reason, "/etc/resolv.conf"] {
            assert!(text.contains(part), "{code}: {text}");
        }
    }
}

#[tokio::test]
async fn the_system_knows_its_own_name() {
    let resolver = Resolver::system(SocketFactory::default());
    let answer = resolver.lookup("localhost").await.expect("it is known");
    assert!(answer.addresses.iter().all(IpAddr::is_loopback));
}
