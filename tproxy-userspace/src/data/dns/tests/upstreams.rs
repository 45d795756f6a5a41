use hickory_resolver::proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::*;

fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().expect("well formed")
}

/// Answers as a forger would who does not see the question.
fn forged(question: &Message) -> Vec<Vec<u8>> {
    let lie = addresses(question, &["192.0.2.66"], 300);
    let mut other_id = lie.clone();
    other_id.metadata.id = lie.metadata.id.wrapping_add(1);
    let mut other_name = lie.clone();
    other_name.queries[0].set_name(name("other.example."));
    let mut other_kind = lie.clone();
    other_kind.queries[0].set_query_type(RecordType::TXT);
    let mut no_question = lie.clone();
    no_question.queries.clear();
    let mut all: Vec<Vec<u8>> = [other_id, other_name, other_kind, no_question]
        .iter()
        .map(bytes)
        .collect();
    // The question itself, come back.
    all.push(bytes(question));
    all.push(bytes(&lie)[..11].to_vec());
    all
}

#[tokio::test]
async fn forged_answers_are_ignored_and_the_true_one_counts() {
    for over in [Over::Udp, Over::Tcp] {
        let server = TestServer::start(move |question, _| {
            let mut replies: Vec<Reply> = forged(question).into_iter().map(Reply::Here).collect();
            if over == Over::Udp {
                // All is right but the sender.
                let lie = addresses(question, &["192.0.2.66"], 300);
                replies.push(Reply::Elsewhere(bytes(&lie)));
            } else {
                // A message that ends within the header cannot be on a connection of a sane server.
                replies.pop();
            }
            replies.push(Reply::Here(bytes(&addresses(
                question,
                &["192.0.2.1"],
                300,
            ))));
            replies
        })
        .await;
        let scheme = if over == Over::Udp { "udp" } else { "tcp" };
        let dns = resolver(&[&server.url(scheme)], &[]);
        assert_eq!(address(&dns, "a.direct.example.").await, ["192.0.2.1"]);
        let stats = dns.stats();
        // On a connection a number that nobody waits for is no question's, so it is passed over.
        let expected = if over == Over::Udp { 6 } else { 4 };
        assert_eq!(stats.forged, expected, "{over:?}");
        assert_eq!((stats.upstream_failures, stats.failures), (0, 0));
    }
}

#[tokio::test]
async fn with_nothing_but_forged_answers_there_is_none() {
    let server =
        TestServer::start(|question, _| forged(question).into_iter().map(Reply::Here).collect())
            .await;
    let dns = resolver(&[&server.url("udp")], &[]);
    let answer = ask(&dns, &question("a.direct.example.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(answer.answers.is_empty());
    assert_eq!(dns.stats().failures, 1);
}

#[tokio::test]
async fn numbers_and_ports_of_questions_differ() {
    let seen: Arc<Mutex<Vec<u16>>> = Arc::default();
    let log = Arc::clone(&seen);
    let server = TestServer::start(move |question, _| {
        log.lock().expect("no panic").push(question.metadata.id);
        vec![Reply::Here(bytes(&addresses(
            question,
            &["192.0.2.1"],
            300,
        )))]
    })
    .await;
    let dns = resolver(&[&server.url("udp")], &[]);
    for index in 0..20 {
        address(&dns, &format!("{index}.direct.example.")).await;
    }
    let mut ids = seen.lock().expect("no panic").clone();
    assert!(
        !ids.windows(2)
            .all(|pair| pair[1] == pair[0].wrapping_add(1))
    );
    ids.sort_unstable();
    ids.dedup();
    assert!(ids.len() > 15, "{ids:?}");
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_asked_for_by_tcp() {
    let server = TestServer::start(|question, over| {
        let mut answer = addresses(question, &["192.0.2.1"], 300);
        if over == Over::Udp {
            answer.metadata.truncation = true;
            answer.answers.clear();
        }
        vec![Reply::Here(bytes(&answer))]
    })
    .await;
    let dns = resolver(&[&server.url("udp")], &[]);
    assert_eq!(address(&dns, "a.direct.example.").await, ["192.0.2.1"]);
    let about = "a.direct.example.".to_owned();
    assert_eq!(
        server.asked(),
        [(Over::Udp, about.clone()), (Over::Tcp, about)]
    );
}

#[tokio::test]
async fn a_lost_datagram_is_sent_again() {
    let count = AtomicUsize::new(0);
    let server = TestServer::start(move |question, _| {
        if count.fetch_add(1, SeqCst) == 0 {
            return Vec::new();
        }
        vec![Reply::Here(bytes(&addresses(
            question,
            &["192.0.2.1"],
            300,
        )))]
    })
    .await;
    let dns = resolver(&[&server.url("udp")], &[]);
    assert_eq!(address(&dns, "a.direct.example.").await, ["192.0.2.1"]);
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn the_next_upstream_stands_in_for_one_that_fails() {
    let good = TestServer::with("192.0.2.1").await;
    let silent = TestServer::start(|_, _| Vec::new()).await;
    let broken = TestServer::start(|question, _| {
        let mut answer = bytes(&addresses(question, &["192.0.2.66"], 300));
        answer.truncate(answer.len() - 2);
        vec![Reply::Here(answer)]
    })
    .await;
    let unwilling = TestServer::start(|question, _| {
        let mut answer = addresses(question, &[], 300);
        answer.metadata.response_code = ResponseCode::Refused;
        vec![Reply::Here(bytes(&answer))]
    })
    .await;
    let closing = TestServer::start(|_, _| vec![Reply::Close]).await;
    // Nobody listens there any more.
    let gone = TestServer::with("192.0.2.66").await.url("udp");
    for bad in [
        silent.url("udp"),
        broken.url("udp"),
        unwilling.url("udp"),
        closing.url("tcp"),
        gone,
    ] {
        let dns = resolver(&[&bad, &good.url("udp")], &[]);
        assert_eq!(
            address(&dns, "a.direct.example.").await,
            ["192.0.2.1"],
            "{bad}"
        );
        let before = silent.asked().len();
        assert_eq!(
            address(&dns, "b.direct.example.").await,
            ["192.0.2.1"],
            "{bad}"
        );
        assert_eq!(
            silent.asked().len(),
            before,
            "one that failed is not asked first"
        );
        assert_eq!(dns.stats().failures, 0);
    }
    // What the only upstream says is said.
    let dns = resolver(&[&unwilling.url("udp")], &[]);
    let answer = ask(&dns, &question("a.direct.example.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn questions_share_a_connection_and_answers_come_in_any_order() {
    // Keeps the first question back until the second is there.
    let kept: Mutex<Option<Vec<u8>>> = Mutex::default();
    let server = TestServer::start(move |question, _| {
        let last = question.queries[0].name().to_ascii().starts_with('b');
        let address = if last { "192.0.2.2" } else { "192.0.2.1" };
        let answer = bytes(&addresses(question, &[address], 300));
        if last {
            let first = kept.lock().expect("no panic").take();
            return [Some(answer), first]
                .into_iter()
                .flatten()
                .map(Reply::Here)
                .collect();
        }
        *kept.lock().expect("no panic") = Some(answer);
        Vec::new()
    })
    .await;
    let dns = resolver(&[], &[&server.url("udp")]);
    let (first, second) = tokio::join!(address(&dns, "a.example."), async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        address(&dns, "b.example.").await
    });
    assert_eq!(
        (first, second),
        (vec!["192.0.2.1".into()], vec!["192.0.2.2".into()])
    );
    assert_eq!(
        server.connections(),
        1,
        "through the outbound all goes by one connection"
    );
}

#[tokio::test]
async fn a_connection_that_ended_or_went_silent_is_replaced() {
    let count = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&count);
    let server = TestServer::start(move |question, _| {
        let answer = || Reply::Here(bytes(&addresses(question, &["192.0.2.1"], 300)));
        match asked.fetch_add(1, SeqCst) {
            // Ends behind an answer; later answers nothing where it answered before.
            0 => vec![answer(), Reply::Close],
            2 => Vec::new(),
            _ => vec![answer()],
        }
    })
    .await;
    let dns = resolver(&[&server.url("tcp")], &[]);
    for about in ["a", "b", "c", "d"] {
        assert_eq!(
            address(&dns, &format!("{about}.direct.example.")).await,
            ["192.0.2.1"]
        );
    }
    assert_eq!(count.load(SeqCst), 5, "one question twice");
    assert_eq!(server.connections(), 3);
    assert_eq!(dns.stats().upstream_failures, 0);
}

/// A SOCKS5 server without a password.
async fn socks5() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            seen.fetch_add(1, SeqCst);
            tokio::spawn(async move {
                let mut greeting = [0; 3];
                client.read_exact(&mut greeting).await.expect("a greeting");
                client.write_all(&[5, 0]).await.expect("open");
                let mut request = [0; 10];
                client.read_exact(&mut request).await.expect("a request");
                let ip: [u8; 4] = request[4..8].try_into().expect("four");
                let port = u16::from_be_bytes([request[8], request[9]]);
                let mut server = TcpStream::connect((Ipv4Addr::from(ip), port))
                    .await
                    .expect("there");
                client
                    .write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])
                    .await
                    .expect("open");
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address, count)
}

#[tokio::test]
async fn the_proxy_group_is_asked_through_the_outbound_by_tcp() {
    let server = TestServer::with("192.0.2.1").await;
    let (socks, count) = socks5().await;
    let path = outbound(&format!("socks5://{socks}"));
    let dns = resolver_with(&[], &[&server.url("udp")], &path, settings(), None);
    for about in ["a.example.", "b.example."] {
        assert_eq!(address(&dns, about).await, ["192.0.2.1"]);
    }
    assert_eq!(count.load(SeqCst), 1);
    assert!(server.asked().iter().all(|(over, _)| *over == Over::Tcp));
}

#[tokio::test]
async fn an_upstream_given_by_name_is_looked_up_at_those_given_by_address() {
    // It is found at 127.0.0.1, where the second one listens.
    let names = TestServer::with("127.0.0.1").await;
    let server = TestServer::with("192.0.2.1").await;
    let by_name = format!("tcp://dns.example:{}", server.address.port());
    let dns = resolver(&[&names.url("udp")], &[&by_name]);
    assert_eq!(address(&dns, "a.example.").await, ["192.0.2.1"]);
    assert!(
        names
            .asked()
            .iter()
            .all(|(_, about)| about == "dns.example.")
    );
    let before = names.asked().len();
    assert_eq!(address(&dns, "b.example.").await, ["192.0.2.1"]);
    assert_eq!(names.asked().len(), before, "the address is remembered");
}
