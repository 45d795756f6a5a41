//! Arbitrary bytes from both sides.

use proptest::prelude::*;

use super::wire::{Mismatch, Query, Question};
use super::*;

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(work)
}

/// A well-formed answer with some bytes changed, added or missing.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let question = question("a.example.", RecordType::A);
    let mut answer = addresses(&question, &["192.0.2.1", "192.0.2.2"], 300);
    answer.set_edns(Edns::new());
    let good = answer.to_vec().expect("well formed");
    let changes = prop::collection::vec((0..good.len(), any::<u8>()), 0..6);
    (
        changes,
        0..=good.len(),
        prop::collection::vec(any::<u8>(), 0..20),
    )
        .prop_map(move |(changes, end, more)| {
            let mut bytes = good.clone();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            if more.is_empty() {
                bytes.truncate(end);
            }
            bytes.extend(more);
            bytes
        })
}

proptest! {
    #[test]
    fn no_bytes_of_a_client_make_it_panic(bytes: Vec<u8>, damaged in damaged(), query in any::<bool>()) {
        let mock = Mock::new(|question| Some(addresses(question, &["192.0.2.1"], 60)));
        let (dns, _learned) = resolver_of(&mock, &settings());
        let mut damaged = damaged;
        if query && damaged.len() > 2 {
            damaged[2] &= 0x7f;
        }
        for bytes in [&bytes, &damaged] {
            for over in [Over::Udp, Over::Tcp] {
                // Names that the mock cannot read are its own matter.
                if let Ok(query) = Query::parse(bytes) {
                    let text = query.question.text();
                    prop_assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
                    prop_assert!(query.empty(2).len() >= 12);
                    continue;
                }
                if let Some(answer) = run(dns.answer(bytes, over, CLIENT)) {
                    prop_assert_eq!(&answer[..2], &bytes[..2]);
                    prop_assert!(answer[2] & 0x80 != 0);
                    prop_assert!(Message::from_vec(&answer).is_ok());
                }
            }
        }
    }

    #[test]
    fn no_bytes_of_an_upstream_make_it_panic(bytes: Vec<u8>, damaged in damaged(), ttl: u32) {
        let query = question("A.example.", RecordType::A).to_vec().expect("well formed");
        let query = Query::parse(&query).expect("fit");
        for bytes in [bytes, damaged] {
            if let Ok(response) = Response::parse(bytes, 4711, &query.question) {
                // Behind another message, as in a batch.
                let mut answer = vec![0xff; 7];
                query.answer(&response, |_| ttl, &mut answer);
                let answer = answer.split_off(7);
                // What is taken is well formed on the outside at least: it walks again to the same.
                let again = Response::parse(answer.clone(), 4711, &query.question);
                let again = again.expect("what was taken is taken again");
                prop_assert_eq!(again.addresses.len(), response.addresses.len());
                prop_assert_eq!(again.is_positive, response.is_positive);
                prop_assert_eq!(&answer[12..23], b"\x01A\x07example\0");
            }
        }
    }

    #[test]
    fn an_answer_to_another_question_is_never_taken(
        label in "a|[a-z]{1,8}",
        kind in prop_oneof![Just(1), any::<u16>()],
        id in prop_oneof![Just(4711), any::<u16>()],
    ) {
        let asked = Question { name: b"\x01a\x07example\0"[..].into(), kind: 1, class: 1 };
        let other = question(&format!("{label}.example."), RecordType::from(kind));
        let mut answer = addresses(&other, &["192.0.2.1"], 300);
        answer.metadata.id = id;
        let result = Response::parse(answer.to_vec().expect("well formed"), 4711, &asked);
        let same = label == "a" && kind == 1 && id == 4711;
        prop_assert_eq!(result.err(), if same { None } else { Some(Mismatch::Foreign) });
    }

    #[test]
    fn no_text_makes_the_reader_of_upstreams_panic(text: String, pieces in prop::collection::vec(
        prop::sample::select(&["tls", "https", "://", ":", "/", "#", "[", "]", "@", "?", "a.b", "1.1.1.1", "::1", "53", "ü"][..]),
        0..8,
    )) {
        for text in [text, pieces.concat()] {
            if let Ok(upstream) = text.parse::<Upstream>() {
                prop_assert_eq!(upstream.to_string().parse::<Upstream>(), Ok(upstream));
            }
        }
    }
}
