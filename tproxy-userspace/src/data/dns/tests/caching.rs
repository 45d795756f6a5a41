//! Virtual time: the upstream has no network.

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::{CNAME, SOA};
use tokio::time::{Instant, advance};

use super::*;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ttls(answer: &Message) -> Vec<u32> {
    answer.all_sections().map(|record| record.ttl).collect()
}

fn negative(question: &Message, code: ResponseCode, ttl: u32, minimum: u32) -> Message {
    let mut answer = addresses(question, &[], 0);
    answer.metadata.response_code = code;
    let soa = SOA::new(
        name("ns.example."),
        name("me.example."),
        1,
        2,
        3,
        4,
        minimum,
    );
    answer.add_authority(Record::from_rdata(name("example."), ttl, RData::SOA(soa)));
    answer
}

#[tokio::test(start_paused = true)]
async fn ttls_count_down_and_the_smallest_ends_them_all() {
    let mock = Mock::new(|question| {
        let query = &question.queries[0];
        let mut answer = addresses(question, &[], 0);
        let alias = RData::CNAME(CNAME(name("b.example.")));
        answer.add_answer(Record::from_rdata(query.name().clone(), 600, alias));
        let data = RData::from("192.0.2.1".parse::<std::net::IpAddr>().expect("a literal"));
        answer.add_answer(Record::from_rdata(name("b.example."), 100, data));
        Some(answer)
    });
    let mut settings = settings();
    settings.stale = Duration::ZERO;
    let (dns, _learned) = resolver_of(&mock, &settings);
    let question = question("a.example.", RecordType::A);
    assert_eq!(ttls(&ask(&dns, &question).await), [600, 100]);
    advance(seconds(40)).await;
    assert_eq!(ttls(&ask(&dns, &question).await), [560, 60]);
    advance(seconds(59)).await;
    assert_eq!(ttls(&ask(&dns, &question).await), [501, 1]);
    assert_eq!(mock.asked(), 1);
    advance(seconds(1)).await;
    assert_eq!(ttls(&ask(&dns, &question).await), [600, 100]);
    assert_eq!(mock.asked(), 2);
    assert_eq!(dns.stats().cache_hits, 2);
}

#[tokio::test(start_paused = true)]
async fn absence_is_kept_for_as_long_as_the_soa_says() {
    for (code, ttl, minimum, kept) in [
        (ResponseCode::NXDomain, 300, 60, 60),
        (ResponseCode::NXDomain, 60, 300, 60),
        (ResponseCode::NoError, 300, 60, 60),
        (ResponseCode::NoError, 1_000_000, 1_000_000, 3 * 3600),
    ] {
        let mock = Mock::new(move |question| Some(negative(question, code, ttl, minimum)));
        let (dns, _learned) = resolver_of(&mock, &settings());
        let question = question("a.example.", RecordType::A);
        for _ in 0..2 {
            let answer = ask(&dns, &question).await;
            assert_eq!(answer.metadata.response_code, code);
            assert_eq!(answer.authorities.len(), 1, "clients keep it by the SOA");
            advance(seconds(kept) / 2 - Duration::from_millis(10)).await;
        }
        assert_eq!(mock.asked(), 1);
        advance(Duration::from_millis(30)).await;
        // An absence is not given out when it is over, though presence would be.
        mock.set(|_| None);
        let answer = ask(&dns, &question).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        advance(seconds(5)).await;
        mock.set(|question| Some(addresses(question, &["192.0.2.1"], 60)));
        assert_eq!(found(&ask(&dns, &question).await), ["192.0.2.1"]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_must_not_be_kept_is_asked_for_each_time() {
    let zero = Mock::new(|question| Some(addresses(question, &["192.0.2.1"], 0)));
    // Highest bit set: as 0.
    let odd = Mock::new(|question| Some(addresses(question, &["192.0.2.1"], 0x8000_0001)));
    // No SOA.
    let empty = Mock::new(|question| Some(addresses(question, &[], 0)));
    for mock in [zero, odd, empty] {
        let (dns, _learned) = resolver_of(&mock, &settings());
        let question = question("a.example.", RecordType::A);
        for _ in 0..3 {
            assert!(
                ttls(&ask(&dns, &question).await)
                    .iter()
                    .all(|ttl| *ttl == 0)
            );
        }
        assert_eq!(mock.asked(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_remembered_for_five_seconds() {
    for code in [None, Some(ResponseCode::ServFail)] {
        let mock = Mock::new(move |question| {
            let mut answer = addresses(question, &[], 0);
            answer.metadata.response_code = code?;
            Some(answer)
        });
        let (dns, _learned) = resolver_of(&mock, &settings());
        let question = question("a.example.", RecordType::A);
        for _ in 0..5 {
            let answer = ask(&dns, &question).await;
            assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        }
        assert_eq!(mock.asked(), 1);
        advance(seconds(5)).await;
        ask(&dns, &question).await;
        assert_eq!(mock.asked(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_stale_is_given_out_when_upstreams_are_slow_or_fail() {
    let mock = Mock::new(|question| Some(addresses(question, &["192.0.2.1"], 60)));
    let (dns, _learned) = resolver_of(&mock, &settings());
    let question = question("a.example.", RecordType::A);
    ask(&dns, &question).await;
    advance(seconds(61)).await;

    // Slow: the client waits for a moment, and the answer comes for the next.
    mock.set(|question| Some(addresses(question, &["192.0.2.2"], 60)));
    mock.delay(seconds(2));
    let start = Instant::now();
    let answer = ask(&dns, &question).await;
    assert!(start.elapsed() < seconds(1), "{:?}", start.elapsed());
    assert_eq!(
        (found(&answer), ttls(&answer)),
        (vec!["192.0.2.1".to_owned()], vec![30])
    );
    tokio::time::sleep(seconds(2)).await;
    assert_eq!(found(&ask(&dns, &question).await), ["192.0.2.2"]);
    assert_eq!(mock.asked(), 2);

    // Failing: and for 30 s nobody is bothered again.
    advance(seconds(61)).await;
    mock.delay(Duration::ZERO);
    mock.set(|_| None);
    for _ in 0..3 {
        assert_eq!(found(&ask(&dns, &question).await), ["192.0.2.2"]);
    }
    assert_eq!(mock.asked(), 3);
    advance(seconds(31)).await;
    assert_eq!(found(&ask(&dns, &question).await), ["192.0.2.2"]);
    assert_eq!(mock.asked(), 4);
    assert_eq!(dns.stats().stale, 5);

    // Quick: the fresh one.
    advance(seconds(31)).await;
    mock.set(|question| Some(addresses(question, &["192.0.2.3"], 60)));
    assert_eq!(found(&ask(&dns, &question).await), ["192.0.2.3"]);

    // Too old to be of use.
    advance(seconds(60 + 3600)).await;
    mock.set(|_| None);
    let answer = ask(&dns, &question).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test(start_paused = true)]
async fn equal_questions_share_one_upstream_question() {
    let mock = Mock::new(|question| Some(addresses(question, &["192.0.2.1"], 60)));
    mock.delay(seconds(1));
    let (dns, _learned) = resolver_of(&mock, &settings());
    let asking = (0..100).map(|number| {
        let mut question = question(
            if number % 2 == 0 {
                "a.example."
            } else {
                "A.Example."
            },
            RecordType::A,
        );
        question.metadata.id = number;
        let dns = dns.clone();
        async move { (ask(&dns, &question).await, question) }
    });
    for (answer, question) in futures_util::future::join_all(asking).await {
        assert_eq!(found(&answer), ["192.0.2.1"]);
        // Letter by letter, as some clients compare.
        assert_eq!(
            answer.queries[0].name().to_ascii(),
            question.queries[0].name().to_ascii()
        );
    }
    assert_eq!(mock.asked(), 1);
    assert_eq!(dns.stats().coalesced, 99);
    // Other types and other wishes are other questions.
    let mut dnssec = question("a.example.", RecordType::A);
    dnssec.edns.as_mut().expect("there").set_dnssec_ok(true);
    let mut unchecked = question("a.example.", RecordType::A);
    unchecked.metadata.checking_disabled = true;
    for other in [dnssec, unchecked, question("a.example.", RecordType::AAAA)] {
        ask(&dns, &other).await;
    }
    assert_eq!(mock.asked(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_takes_the_answer_from_nobody() {
    let mock = Mock::new(|question| Some(addresses(question, &["192.0.2.1"], 60)));
    mock.delay(seconds(1));
    let (dns, _learned) = resolver_of(&mock, &settings());
    let question = question("a.example.", RecordType::A);
    let left = tokio::time::timeout(seconds(1) / 2, ask(&dns, &question)).await;
    assert!(left.is_err());
    assert_eq!(found(&ask(&dns, &question).await), ["192.0.2.1"]);
    assert_eq!(mock.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_longest_unused_makes_room() {
    let mock = Mock::new(|question| Some(addresses(question, &["192.0.2.1"], 60)));
    let (dns, _learned) = resolver_of(&mock, &settings());
    for index in 0..100 {
        address(&dns, &format!("{index}.example.")).await;
    }
    address(&dns, "0.example.").await;
    address(&dns, "new.example.").await;
    let stats = dns.stats();
    assert_eq!((stats.cached, stats.evicted, mock.asked()), (100, 1, 101));
    address(&dns, "0.example.").await;
    assert_eq!(mock.asked(), 101, "it was used");
    address(&dns, "1.example.").await;
    assert_eq!(mock.asked(), 102, "it was the oldest");
    dns.flush();
    let stats = dns.stats();
    assert_eq!((stats.cached, stats.cached_bytes), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn large_answers_do_not_fill_the_memory() {
    let mock = Mock::new(|question| {
        let mut answer = addresses(question, &[], 0);
        let text = RData::TXT(hickory_resolver::proto::rr::rdata::TXT::new(
            vec!["x".repeat(200); 200],
        ));
        answer.add_answer(Record::from_rdata(
            question.queries[0].name().clone(),
            60,
            text,
        ));
        Some(answer)
    });
    let (dns, _learned) = resolver_of(&mock, &settings());
    for index in 0..100 {
        let question = question(&format!("{index}.example."), RecordType::TXT).to_vec();
        dns.answer(&question.expect("well formed"), Over::Tcp, CLIENT)
            .await;
    }
    let stats = dns.stats();
    assert!(stats.cached_bytes <= 100 * 2048, "{}", stats.cached_bytes);
    assert!(stats.cached >= 4);
    // And with nothing to keep it in, it is still answered.
    let none = Settings {
        cache: 0,
        ..settings()
    };
    let (dns, _learned) = resolver_of(&mock, &none);
    for _ in 0..2 {
        ask(&dns, &question("a.example.", RecordType::TXT)).await;
    }
    assert_eq!((mock.asked(), dns.stats().cached), (102, 0));
}
