use hickory_resolver::proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

/// A resolver of many addresses: 20 of them make some 400 bytes, 200 make 3.3 kB.
fn many(count: u8) -> (Dns, mpsc::Receiver<Announcement>) {
    let mock = Mock::new(move |question| {
        let texts: Vec<String> = (0..count).map(|last| format!("192.0.2.{last}")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        Some(addresses(question, &texts, 60))
    });
    resolver_of(&mock, &settings())
}

async fn raw(dns: &Dns, question: &[u8], over: Over) -> Option<Vec<u8>> {
    dns.answer(question, over, CLIENT).await
}

#[tokio::test]
async fn answers_by_udp_keep_to_the_size_that_the_client_takes() {
    // (addresses, announced size, what it comes to)
    for (count, announced, fits) in [
        (20, None, true),
        (40, None, false),
        (40, Some(512), false),
        (40, Some(0), false),
        (40, Some(1232), true),
        (200, Some(1232), false),
        (200, Some(65_535), false),
    ] {
        let (dns, _learned) = many(count);
        let mut question = question("a.example.", RecordType::A);
        question.edns = None;
        if let Some(size) = announced {
            let mut edns = Edns::new();
            edns.set_max_payload(512);
            question.set_edns(edns);
            let mut bytes = question.to_vec().expect("well formed");
            // The encoder does not write sizes below 512.
            let at = bytes.len() - 8;
            bytes[at..at + 2].copy_from_slice(&u16::to_be_bytes(size));
            let answer = raw(&dns, &bytes, Over::Udp).await.expect("an answer");
            assert!(answer.len() <= 1232);
            let answer = Message::from_vec(&answer).expect("well formed");
            assert_eq!(answer.metadata.truncation, !fits, "{count} {announced:?}");
            assert_eq!(answer.edns.expect("as in the question").max_payload(), 1232);
            let whole = raw(&dns, &bytes, Over::Tcp).await.expect("an answer");
            let whole = Message::from_vec(&whole).expect("well formed");
            assert_eq!(
                (whole.answers.len(), whole.metadata.truncation),
                (count.into(), false)
            );
        } else {
            let answer = ask(&dns, &question).await;
            assert_eq!(answer.metadata.truncation, !fits, "{count}");
            assert_eq!(answer.answers.len(), if fits { count.into() } else { 0 });
            assert!(answer.edns.is_none(), "the client does not speak it");
        }
        assert_eq!(dns.stats().truncated, u64::from(!fits));
    }
}

#[tokio::test]
async fn flags_are_those_of_a_resolver() {
    let mock = Mock::new(|question| {
        assert!(question.metadata.recursion_desired);
        let mut answer = addresses(question, &["192.0.2.1"], 60);
        answer.metadata.authentic_data = true;
        answer.metadata.authoritative = true;
        Some(answer)
    });
    let (dns, _learned) = resolver_of(&mock, &settings());
    let mut question = question("a.example.", RecordType::A);
    let plain = ask(&dns, &question).await.metadata;
    assert!(plain.recursion_desired && plain.recursion_available);
    assert!(!plain.authoritative, "the answer is another's");
    assert!(!plain.authentic_data, "the client did not ask");
    question.metadata.authentic_data = true;
    assert!(ask(&dns, &question).await.metadata.authentic_data);
    question.metadata.authentic_data = false;
    question.edns.as_mut().expect("there").set_dnssec_ok(true);
    let answer = ask(&dns, &question).await;
    assert!(answer.metadata.authentic_data);
    assert!(answer.edns.expect("there").flags().dnssec_ok);
    question.metadata.checking_disabled = true;
    question.metadata.recursion_desired = false;
    let answer = ask(&dns, &question).await.metadata;
    assert!(answer.checking_disabled && !answer.recursion_desired);
}

#[tokio::test]
async fn what_is_no_fit_question_is_told_so_or_ignored() {
    let (dns, _learned) = many(1);
    let good = question("a.example.", RecordType::A)
        .to_vec()
        .expect("well formed");
    let code = |answer: Option<Vec<u8>>| {
        let answer = Message::from_vec(&answer?).expect("well formed");
        assert_eq!(answer.metadata.id, 4711);
        Some(u16::from(answer.metadata.response_code))
    };
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    for (bytes, expected) in [
        (Vec::new(), None),
        (good[..11].to_vec(), None),
        // An answer.
        (changed(2, 0x81), None),
        // Status, notify, update.
        (changed(2, 0x10), Some(4)),
        (changed(2, 0x20), Some(4)),
        (changed(2, 0x28), Some(4)),
        // No question, and two.
        (changed(5, 0), Some(1)),
        (changed(5, 2), Some(1)),
        (good[..12].to_vec(), Some(1)),
        (good[..20].to_vec(), Some(1)),
        (good[..good.len() - 1].to_vec(), Some(1)),
        // A name that points to itself.
        (changed(12, 0xc0), Some(1)),
        // Version 1 of EDNS.
        (changed(good.len() - 5, 1), Some(16)),
        // A zone transfer.
        (changed(24, 252), Some(4)),
    ] {
        assert_eq!(
            code(raw(&dns, &bytes, Over::Udp).await),
            expected,
            "{bytes:02x?}"
        );
    }
    // Two OPT records.
    let mut twice = good.clone();
    twice.extend_from_slice(&good[good.len() - 11..]);
    twice[11] = 2;
    assert_eq!(code(raw(&dns, &twice, Over::Udp).await), Some(1));
    let stats = dns.stats();
    assert_eq!((stats.queries, stats.malformed), (15, 15));
}

#[tokio::test]
async fn families_that_are_not_wanted_are_empty() {
    let both = |question: &Message| Some(addresses(question, &["192.0.2.1", "2001:db8::1"], 60));
    let only4 = |question: &Message| Some(addresses(question, &["192.0.2.1"], 60));
    let (v4, v6) = (vec!["192.0.2.1".to_owned()], vec!["2001:db8::1".to_owned()]);
    let no = Vec::new();
    for (ipv6, prefer, has_v6, expected) in [
        (true, Prefer::Both, true, [&v4, &v6]),
        (false, Prefer::Both, true, [&v4, &no]),
        (true, Prefer::V4, true, [&v4, &no]),
        (true, Prefer::V6, true, [&no, &v6]),
        (true, Prefer::V6, false, [&v4, &no]),
        (false, Prefer::V6, true, [&v4, &no]),
    ] {
        let mock = Mock::new(if has_v6 { both } else { only4 });
        let settings = Settings {
            ipv6,
            prefer,
            ..settings()
        };
        let (dns, _learned) = resolver_of(&mock, &settings);
        for (kind, expected) in [RecordType::A, RecordType::AAAA].into_iter().zip(expected) {
            let answer = ask(&dns, &question("a.example.", kind)).await;
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
            assert_eq!(found(&answer), *expected, "{ipv6} {prefer:?} {kind}");
        }
    }
    // A name with IPv6 alone keeps it, whatever is preferred.
    let mock = Mock::new(|question| Some(addresses(question, &["2001:db8::1"], 60)));
    let settings = Settings {
        prefer: Prefer::V4,
        ..settings()
    };
    let (dns, _learned) = resolver_of(&mock, &settings);
    let answer = ask(&dns, &question("a.example.", RecordType::AAAA)).await;
    assert_eq!(found(&answer), ["2001:db8::1"]);
}

/// Two records of a type. Their name is that of the question, their time 0x10000 seconds.
fn records(kind: u16) -> Vec<u8> {
    let data: Vec<u8> = match kind {
        1 => vec![192, 0, 2, 1],
        28 => vec![0x20; 16],
        _ => (0..=u8::try_from(kind % 251).expect("less")).collect(),
    };
    let head = [&[0xc0, 12][..], &kind.to_be_bytes(), &[0, 1, 0, 1, 0, 0]].concat();
    let length = (data.len() as u16).to_be_bytes();
    [&head, &length[..], &data, &head, &length, &data].concat()
}

#[tokio::test]
async fn every_record_type_passes_unharmed() {
    let server = TestServer::start(|question, _| {
        let mut answer = addresses(question, &[], 0).to_vec().expect("well formed");
        answer[7] = 2;
        answer.extend(records(question.queries[0].query_type().into()));
        vec![Reply::Here(answer)]
    })
    .await;
    let dns = resolver(&[], &[&server.url("tcp")]);
    // What is no data but a request, and EDNS.
    let refused = [41, 249, 250, 251, 252];
    for kind in (1..=300).chain([32_768, 65_280, 65_534]) {
        if refused.contains(&kind) {
            continue;
        }
        let mut question = question("a.example.", RecordType::from(kind));
        question.edns = None;
        let question = question.to_vec().expect("well formed");
        for from in ["the upstream", "the cache"] {
            let answer = raw(&dns, &question, Over::Tcp).await.expect("an answer");
            assert_eq!(
                answer[4..12],
                [0, 1, 0, 2, 0, 0, 0, 0],
                "{kind} from {from}"
            );
            assert_eq!(answer[12..question.len()], question[12..]);
            let mut rest = answer[question.len()..].to_vec();
            // The test takes less than 255 s.
            let second = rest.len() / 2;
            for at in [6, second + 6] {
                if rest[at..at + 3] == [0, 0, 0xff] {
                    rest[at..at + 4].copy_from_slice(&[0, 1, 0, 0]);
                }
            }
            assert_eq!(rest, records(kind), "{kind} from {from}");
        }
    }
    assert_eq!(dns.stats().malformed_answers, 0);
}

#[tokio::test]
async fn records_behind_the_edns_part_go_with_it() {
    let code = Arc::new(AtomicUsize::new(0));
    let upper = Arc::clone(&code);
    let server = TestServer::start(move |question, _| {
        let mut answer = addresses(question, &["192.0.2.1"], 60)
            .to_vec()
            .expect("well formed");
        let additional = [
            &[0xc0, 12][..],
            &[0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 2],
        ]
        .concat();
        answer[11] = 3;
        answer.extend(&additional);
        answer.extend([0, 0, 41, 4, 0, upper.load(SeqCst) as u8, 0, 0, 0, 0, 0]);
        answer.extend(&additional);
        vec![Reply::Here(answer)]
    })
    .await;
    let dns = resolver(&[], &[&server.url("tcp")]);
    let answer = ask(&dns, &question("a.example.", RecordType::A)).await;
    assert_eq!((answer.answers.len(), answer.additionals.len()), (1, 1));
    assert_eq!(answer.edns.expect("our own").max_payload(), 1232);
    // A code with upper bits is about the question that this resolver asked, and none of the client's business.
    code.store(1, SeqCst);
    let answer = ask(&dns, &question("b.example.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn the_edns_part_is_between_neighbours() {
    let mock = Mock::new(|question| {
        let edns = question
            .edns
            .as_ref()
            .expect("upstreams are asked with EDNS");
        assert_eq!(edns.max_payload(), 1232);
        let mut answer = addresses(question, &["192.0.2.1"], 60);
        let mut edns = Edns::new();
        edns.set_max_payload(4000);
        answer.set_edns(edns);
        Some(answer)
    });
    let (dns, _learned) = resolver_of(&mock, &settings());
    for _ in 0..2 {
        let answer = ask(&dns, &question("a.example.", RecordType::A)).await;
        assert_eq!(answer.edns.expect("asked for").max_payload(), 1232);
        let mut plain = question("a.example.", RecordType::A);
        plain.edns = None;
        assert!(ask(&dns, &plain).await.edns.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_may_have_so_many_questions_under_way() {
    let mock = Mock::new(|question| Some(addresses(question, &["192.0.2.1"], 60)));
    mock.delay(Duration::from_secs(1));
    let (dns, _learned) = resolver_of(&mock, &settings());
    let all = (0..300).map(|index| {
        let dns = dns.clone();
        async move { ask(&dns, &question(&format!("{index}.example."), RecordType::A)).await }
    });
    let answers = futures_util::future::join_all(all).await;
    let refused = answers
        .iter()
        .filter(|answer| answer.metadata.response_code == ResponseCode::ServFail);
    assert_eq!(refused.count(), 300 - 256);
    assert_eq!(dns.stats().limited, 300 - 256);
    assert_eq!(address(&dns, "later.example.").await, ["192.0.2.1"]);
    assert!(dns.0.clients.lock().expect("no panic").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_connection_answers_many_questions_each_as_soon_as_it_can() {
    let mock = Mock::new(|question| Some(addresses(question, &["192.0.2.1"], 60)));
    let (dns, _learned) = resolver_of(&mock, &settings());
    address(&dns, "known.example.").await;
    mock.delay(Duration::from_secs(1));
    let (mut client, stream) = duplex(1 << 16);
    let serving = tokio::spawn(async move { dns.serve(stream, CLIENT).await });
    let send = |about: &str, id| {
        let mut question = question(about, RecordType::A);
        question.metadata.id = id;
        let question = question.to_vec().expect("well formed");
        [&(question.len() as u16).to_be_bytes()[..], &question].concat()
    };
    // More than may be under way at once, then one that is known.
    let mut all = Vec::new();
    for id in 0..31 {
        all.extend(send(&format!("{id}.example."), id));
    }
    all.extend(send("known.example.", 31));
    for id in 32..50 {
        all.extend(send(&format!("{id}.example."), id));
    }
    // In pieces that do not fit the frames, and FIN behind the last.
    for piece in all.chunks(7) {
        client.write_all(piece).await.expect("open");
    }
    client.shutdown().await.expect("open");
    let mut ids = Vec::new();
    while let Ok(length) = client.read_u16().await {
        let mut answer = vec![0; length.into()];
        client.read_exact(&mut answer).await.expect("whole");
        let answer = Message::from_vec(&answer).expect("well formed");
        assert_eq!(found(&answer), ["192.0.2.1"]);
        ids.push(answer.metadata.id);
    }
    assert_eq!(ids[0], 31);
    ids.sort_unstable();
    assert!(ids.iter().copied().eq(0..50), "{ids:?}");
    serving.await.expect("no panic").expect("a good end");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_idles_or_talks_nonsense_ends() {
    let (dns, _learned) = many(1);
    let (mut client, stream) = duplex(64);
    let start = tokio::time::Instant::now();
    dns.serve(stream, CLIENT).await.expect("a good end");
    assert_eq!(start.elapsed().as_secs(), 30);
    assert_eq!(client.read(&mut [0]).await.expect("the end"), 0);
    let (mut client, stream) = duplex(64);
    client.write_all(b"\0\x05GET /").await.expect("open");
    dns.serve(stream, CLIENT).await.expect("a good end");
    assert_eq!(start.elapsed().as_secs(), 30, "at once");
}
