use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// The event of a TCP segment between two addresses of one family.
fn event(source: &str, destination: &str) -> TraceEvent {
    let mapped = |text: &str| match text.parse().unwrap() {
        IpAddr::V4(v4) => in_words(v4.to_ipv6_mapped().octets()),
        IpAddr::V6(v6) => in_words(v6.octets()),
    };
    TraceEvent {
        source: mapped(source),
        destination: mapped(destination),
        source_port: 40_000_u16.to_be(),
        destination_port: 443_u16.to_be(),
        protocol: TraceEvent::TCP,
        family: if source.contains(':') {
            TraceEvent::IPV6
        } else {
            TraceEvent::IPV4
        },
        code: Reason::TcpOpened as u16,
        hook: Hook::LanIngress as u8,
        link: 7,
        opens: 1,
        ..TraceEvent::empty(1, 1)
    }
}

#[track_caller]
fn wants(filter: &Filter, event: &TraceEvent) -> bool {
    filter.for_kernel().unwrap().wants(event)
}

#[test]
fn what_is_empty_is_any() {
    let all = Filter::default();
    assert!(wants(&all, &event("10.0.0.5", "203.0.113.1")));
    assert!(wants(&all, &event("2001:db8::5", "2001:db8:f::1")));
    assert!(wants(&all, &TraceEvent::empty(1, 1)));
}

#[test]
fn a_prefix_is_of_one_family() {
    let v4 = event("10.0.0.5", "203.0.113.1");
    let v6 = event("2001:db8::5", "2001:db8:f::1");
    let mapped = TraceEvent {
        family: TraceEvent::IPV6,
        ..v4
    };
    for (prefix, expected) in [
        ("0.0.0.0/0", [true, false, false]),
        ("10.0.0.0/8", [true, false, false]),
        ("10.0.0.5/32", [true, false, false]),
        ("10.0.0.4/32", [false, false, false]),
        ("::/0", [false, true, true]),
        ("2001:db8::/32", [false, true, false]),
        ("::ffff:10.0.0.5/128", [false, false, true]),
    ] {
        let filter = Filter {
            source: Some(net(prefix)),
            ..Filter::default()
        };
        let found = [&v4, &v6, &mapped].map(|event| wants(&filter, event));
        assert_eq!(found, expected, "{prefix}");
        assert!(!wants(&filter, &TraceEvent::empty(1, 1)), "{prefix}");
    }
}

#[test]
fn effects_and_reasons_both_count() {
    let filter = Filter {
        effects: vec![Effect::Steer],
        reasons: vec![Reason::TcpOpened, Reason::Bypassed],
        ..Filter::default()
    };
    assert_eq!(
        filter.for_kernel().unwrap().reasons,
        1 << Reason::TcpOpened as u32
    );
    let none = Filter {
        effects: vec![Effect::Drop],
        ..filter
    };
    assert_eq!(none.for_kernel(), Err(Contradiction::Effects));
}

#[test]
fn packets_between_families_are_not_waited_for() {
    let filter = Filter {
        source: Some(net("10.0.0.0/8")),
        destination: Some(net("2001:db8::/32")),
        ..Filter::default()
    };
    let error = filter.for_kernel().unwrap_err().to_string();
    assert!(error.contains("10.0.0.0/8 to 2001:db8::/32"), "{error}");
}

#[test]
fn an_event_is_told_in_plain_values() {
    let time = SystemTime::UNIX_EPOCH;
    let Some(Event::Decision(decision)) = decode(&event("10.0.0.5", "203.0.113.1"), time) else {
        panic!("a decision");
    };
    let addresses = ("10.0.0.5".parse().unwrap(), "203.0.113.1".parse().unwrap());
    assert_eq!(decision.addresses, Some(addresses));
    assert_eq!(decision.ports, Some((40_000, 443)));
    assert_eq!(decision.protocol, Protocol::Tcp);
    assert_eq!(decision.reason, Reason::TcpOpened);
    assert_eq!(decision.length, None);
    assert!(decision.opens);

    let message = TraceEvent {
        kind: TraceEvent::MESSAGE,
        code: Message::NotAssigned as u16,
        error: 95,
        ..TraceEvent::empty(1, 1)
    };
    let expected = Event::Message {
        time,
        message: Message::NotAssigned,
        error: Some(95),
    };
    assert_eq!(decode(&message, time), Some(expected));
    // Of another build.
    let unknown = TraceEvent {
        code: 63,
        ..event("10.0.0.5", "203.0.113.1")
    };
    assert_eq!(decode(&unknown, time), None);
}
