use hickory_resolver::proto::op::ResponseCode;

use super::*;

#[tokio::test]
async fn each_group_sees_its_own_names_alone_whatever_fails() {
    let direct = TestServer::with("192.0.2.1").await;
    // Nobody listens there any more.
    let gone = TestServer::with("192.0.2.66").await.url("tcp");
    let silent = TestServer::start(|_, _| Vec::new()).await;
    let failing = TestServer::start(|question, _| {
        let mut answer = addresses(question, &[], 0);
        answer.metadata.response_code = ResponseCode::ServFail;
        vec![Reply::Here(answer.to_vec().expect("well formed"))]
    })
    .await;
    for proxy in [&gone, &silent.url("tcp"), &failing.url("tcp")] {
        let dns = resolver(&[&direct.url("udp")], &[proxy]);
        let names = [
            "secret.example.",
            "notdirect.example.",
            "direct.example.evil.",
        ];
        let kinds = [RecordType::A, RecordType::HTTPS, RecordType::PTR];
        let all = names
            .iter()
            .flat_map(|name| kinds.map(|kind| question(name, kind)));
        let all = all.map(|question| {
            let dns = dns.clone();
            async move { ask(&dns, &question).await.metadata.response_code }
        });
        let codes = futures_util::future::join_all(all).await;
        assert_eq!(codes, [ResponseCode::ServFail; 9]);
        assert_eq!(direct.asked(), [], "{proxy}");
    }
    let dns = resolver(&[&direct.url("udp")], &[&silent.url("tcp")]);
    let before = silent.asked().len();
    // Letters' size makes no other name.
    assert_eq!(address(&dns, "A.DIRECT.Example.").await, ["192.0.2.1"]);
    assert_eq!(address(&dns, "direct.example.").await, ["192.0.2.1"]);
    assert_eq!(silent.asked().len(), before);
    // Nor does a direct name go to the proxy when its upstreams fail.
    let dns = resolver(&[&gone], &[&direct.url("tcp")]);
    let before = direct.asked().len();
    let answer = ask(&dns, &question("a.direct.example.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(direct.asked().len(), before);
}

#[tokio::test]
async fn a_group_without_upstreams_has_no_answers() {
    let dns = resolver(&[], &[]);
    let answer = ask(&dns, &question("a.direct.example.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(dns.stats().failures, 1);
}

#[tokio::test(start_paused = true)]
async fn addresses_are_announced_with_name_group_and_time() {
    let mock = Mock::new(|question| Some(addresses(question, &["192.0.2.1", "2001:db8::1"], 60)));
    let (dns, mut learned) = resolver_of(&mock, &settings());
    address(&dns, "A.example.").await;
    let expected = Learned {
        name: "a.example".to_owned(),
        group: Group::Proxy,
        addresses: vec![("192.0.2.1".parse().expect("a literal"), 60)],
    };
    let announced = learned.try_recv().expect("announced");
    assert_eq!(announced.learned, expected);
    address(&dns, "a.example.").await;
    assert!(
        learned.try_recv().is_err(),
        "once an answer, not once a client"
    );
    ask(&dns, &question("a.example.", RecordType::TXT)).await;
    assert!(learned.try_recv().is_err(), "there is no address in it");
    // More than the queue takes: dropped, counted, and announced when there is room again.
    for index in 0..learned::QUEUE + 5 {
        let dns = dns.clone();
        assert_eq!(
            address(&dns, &format!("{index}.many.example.")).await,
            ["192.0.2.1"]
        );
    }
    assert_eq!(dns.stats().events_dropped, 5);
    while learned.try_recv().is_ok() {}
    let last = format!("{}.many.example.", learned::QUEUE + 4);
    address(&dns, &last).await;
    assert_eq!(
        learned.try_recv().expect("again").learned.name,
        last.trim_end_matches('.')
    );
}

#[test]
fn names_as_text_cannot_be_mistaken_for_others() {
    for (wire, text) in [
        (&b"\0"[..], ""),
        (b"\x01A\x07Example\x00", "a.example"),
        (b"\x04a.LN\x03x_y\x00", "a\\046ln.x_y"),
        (b"\x03\xc3\xbc\x5c\x00", "\\195\\188\\092"),
        (b"\x01 \x00", "\\032"),
    ] {
        let name = wire.into();
        let question = wire::Question {
            name,
            kind: 1,
            class: 1,
        };
        assert_eq!(question.text(), text);
    }
}
