//! DNS messages.

use tproxy_userspace::data::dns::wire::{
    HEADER, LARGEST, Mismatch, Query, Response, Unfit, ask, code,
};

const QR: u8 = 0x80;

/// A client's question.
pub fn query(bytes: &[u8]) {
    let query = match Query::parse(bytes) {
        Ok(query) => query,
        Err(Unfit::Silence) => return,
        Err(Unfit::Answer(answer)) => {
            assert_eq!(answer[..2], bytes[..2], "the number");
            assert!(answer.len() >= HEADER && answer[2] & QR != 0);
            // It is no question, so nobody answers it.
            assert_eq!(Query::parse(&answer), Err(Unfit::Silence));
            return;
        }
    };
    let text = query.question.text();
    assert!(
        text.is_ascii() && !text.chars().any(char::is_control),
        "{text:?}"
    );
    let parse = |answer| Response::parse(answer, query.id, &query.question);

    let empty = parse(query.empty(code::NX_DOMAIN)).expect("the answer is to the question");
    assert_eq!(empty.code, code::NX_DOMAIN);
    assert!(!empty.is_positive && empty.addresses.is_empty());
    assert_eq!(
        parse(query.truncated(code::NO_ERROR)),
        Err(Mismatch::Truncated)
    );

    for pad in [false, true] {
        let asked = ask(
            7,
            &query.question,
            query.dnssec_ok(),
            query.checking_disabled(),
            pad,
        );
        assert!(!pad || asked.len().is_multiple_of(128));
        let again = Query::parse(&asked).expect("our own question is one");
        assert_eq!(again.question, query.question);
        assert_eq!(
            (again.dnssec_ok(), again.checking_disabled()),
            (query.dnssec_ok(), query.checking_disabled())
        );
    }
}

/// An upstream's answer, to whatever it says it is an answer to.
pub fn response(bytes: &[u8]) {
    let Some(header) = bytes.first_chunk::<HEADER>() else {
        return;
    };
    // Its own question, asked with and without EDNS.
    let mut question = bytes.to_vec();
    question[2] = 1;
    question[3] = 0;
    question[6..HEADER].fill(0);
    let Ok(plain) = Query::parse(&question) else {
        return;
    };
    let id = u16::from_be_bytes([header[0], header[1]]);
    let asked = ask(id, &plain.question, true, false, false);
    let with_edns = Query::parse(&asked).expect("our own question is one");

    let Ok(response) = Response::parse(bytes.to_vec(), id, &plain.question) else {
        return;
    };
    assert!(
        response.size() <= 8 * bytes.len() + 1024,
        "{}",
        response.size()
    );
    assert_eq!(
        Response::parse(bytes.to_vec(), id ^ 1, &plain.question),
        Err(Mismatch::Foreign)
    );
    for query in [plain, with_edns] {
        let mut answer = Vec::new();
        query.answer(&response, |ttl| ttl, &mut answer);
        assert!(answer.len() <= LARGEST + HEADER);
        let again = Response::parse(answer, query.id, &query.question)
            .expect("what is passed on is an answer to the question");
        assert_eq!(again.addresses, response.addresses);
        assert_eq!(again.ttl, response.ttl);
        assert_eq!(again.negative_ttl, response.negative_ttl);
        assert_eq!(again.is_positive, response.is_positive);
        assert_eq!(again.code & 15, response.code & 15);
    }
}
