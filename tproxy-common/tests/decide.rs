//! The steering policy: every kind of packet against every kind of destination.

mod frames;
mod gateway;

use frames::Between;
use gateway::{Gateway, Question, ip};
use tproxy_common::abi::{Effect, FragmentFate, Listener, Reason, Settings};
use tproxy_common::packet::{Fragment, Packet, Ports, Transport};
use tproxy_common::verdict::{Connection, Target, Verdict, decide};

/// Everything a packet can carry, fragments included.
fn kinds() -> Vec<(Transport, Option<u32>)> {
    let ports = Ports {
        source: 1,
        destination: 2,
    };
    let (syn, other) = (true, false);
    vec![
        (Transport::Tcp { ports, opens: syn }, None),
        (Transport::Tcp { ports, opens: syn }, Some(7)),
        (
            Transport::Tcp {
                ports,
                opens: other,
            },
            None,
        ),
        (
            Transport::Tcp {
                ports,
                opens: other,
            },
            Some(7),
        ),
        (Transport::Udp { ports }, None),
        (Transport::Udp { ports }, Some(7)),
        (Transport::LaterFragment { tcp: false }, Some(7)),
        (Transport::LaterFragment { tcp: true }, Some(7)),
        (Transport::CutOff, None),
        (Transport::Buried, None),
        (Transport::Other, None),
    ]
}

fn packet(from: &str, to: &str, (transport, fragment): (Transport, Option<u32>)) -> Packet {
    Packet {
        addresses: Between::new(ip(from), ip(to)).addresses(),
        transport,
        fragment: fragment.map_or(Fragment::NONE, Fragment::of),
        transport_offset: 34,
    }
}

/// A device of the LAN in the family of `to`.
fn device(to: &str) -> &'static str {
    if ip(to).is_ipv4() {
        "192.0.2.10"
    } else {
        "2001:db8:1::10"
    }
}

/// (destination, why it passes whatever the packet is).
const NEVER_STEERED: &[(&str, Reason)] = &[
    ("192.0.2.1", Reason::OwnAddress),
    ("2001:db8:1::1", Reason::OwnAddress),
    ("224.0.0.251", Reason::Multicast),
    ("239.255.255.250", Reason::Multicast),
    ("255.255.255.255", Reason::Multicast),
    ("ff02::fb", Reason::Multicast),
    ("ff0e::1", Reason::Multicast),
    ("169.254.0.1", Reason::LinkLocal),
    ("169.254.255.254", Reason::LinkLocal),
    ("fe80::1", Reason::LinkLocal),
    ("febf::1", Reason::LinkLocal),
    ("127.0.0.1", Reason::Loopback),
    ("127.255.255.255", Reason::Loopback),
    ("0.0.0.0", Reason::Loopback),
    ("::1", Reason::Loopback),
    ("::", Reason::Loopback),
    ("240.0.0.1", Reason::Reserved),
    ("255.255.255.254", Reason::Reserved),
    ("::ffff:203.0.113.5", Reason::Reserved),
];

/// (destination, why it passes unless it belongs to a connection that the proxy holds).
const DIRECT: &[(&str, Reason)] = &[
    ("192.0.2.77", Reason::OwnSubnet),
    ("192.0.2.255", Reason::OwnSubnet),
    ("2001:db8:1::77", Reason::OwnSubnet),
    ("10.1.2.3", Reason::PrivateRange),
    ("172.16.0.1", Reason::PrivateRange),
    ("172.31.255.255", Reason::PrivateRange),
    ("192.168.1.1", Reason::PrivateRange),
    ("100.64.0.1", Reason::PrivateRange),
    ("100.127.255.255", Reason::PrivateRange),
    ("fc00::1", Reason::PrivateRange),
    ("fdff::1", Reason::PrivateRange),
    ("198.51.100.9", Reason::Bypassed),
    ("2001:db8:b::9", Reason::Bypassed),
];

/// Neighbours of the ranges above among them.
const STEERED: &[&str] = &[
    "203.0.113.5",
    "1.0.0.0",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "192.169.0.0",
    "223.255.255.255",
    "2001:db8:5::5",
    "::1:0:0:1",
    "64:ff9b::203.0.113.5",
    "fbff::1",
    "fe00::1",
    "fec0::1",
];

fn listeners(to: &str) -> (Listener, Listener) {
    if ip(to).is_ipv4() {
        (Listener::Tcp4, Listener::Udp4)
    } else {
        (Listener::Tcp6, Listener::Udp6)
    }
}

/// An edit of the exempt marks must not break what lives, as with the bypass set.
#[test]
fn an_exempt_mark_decides_about_what_is_new() {
    for to in STEERED {
        for kind in kinds() {
            for connection in [Connection::Unknown, Connection::Held, Connection::Gone] {
                let decide_with = |exempt| {
                    let gateway = Gateway {
                        exempt,
                        connection,
                        ..Gateway::new()
                    };
                    decide(&packet(device(to), to, kind), &gateway)
                };
                let wanted = match kind.0 {
                    Transport::Other | Transport::Tcp { opens: false, .. } => decide_with(false),
                    _ => Verdict::Pass(Reason::Exempt),
                };
                assert_eq!(decide_with(true), wanted, "{to} {kind:?} {connection:?}");
            }
        }
    }
}

#[test]
fn each_kind_of_packet_has_its_listener() {
    for (to, _) in DIRECT {
        let (tcp, udp) = listeners(to);
        for kind in kinds() {
            let expected = match kind.0 {
                Transport::Tcp { .. } | Transport::LaterFragment { tcp: true } => tcp,
                Transport::Udp { .. } | Transport::LaterFragment { tcp: false } => udp,
                // For none.
                Transport::Other | Transport::CutOff | Transport::Buried => continue,
            };
            let packet = packet(device(to), to, kind);
            assert_eq!(packet.listener(), expected, "{to}: {kind:?}");
        }
    }
}

#[test]
fn some_destinations_are_never_steered() {
    for (to, reason) in NEVER_STEERED {
        for kind in kinds() {
            for from in [device(to), foreigner(to)] {
                let mut gateway = Gateway::new();
                // Not even where the proxy seems to hold something.
                gateway.connection = Connection::Held;
                gateway.fragment = Some(FragmentFate::Steered);
                let expected = match kind.0 {
                    Transport::Other => Reason::OtherProtocol,
                    _ => *reason,
                };
                assert_eq!(
                    decide(&packet(from, to, kind), &gateway),
                    Verdict::Pass(expected),
                    "{from} to {to}: {kind:?}"
                );
                let asked = gateway.asked.borrow();
                assert!(
                    asked.iter().all(|question| *question == Question::Locality),
                    "{from} to {to}: {kind:?} asked {asked:?}"
                );
            }
        }
    }
}

fn foreigner(to: &str) -> &'static str {
    if ip(to).is_ipv4() {
        "203.0.113.200"
    } else {
        "2001:db8:f::1"
    }
}

#[test]
fn direct_destinations_pass_unless_the_proxy_holds_the_connection() {
    for (to, reason) in DIRECT {
        goes_direct(device(to), to, *reason, &Gateway::new);
    }
}

#[test]
fn a_foreign_source_may_not_use_the_proxy() {
    for to in STEERED {
        goes_direct(foreigner(to), to, Reason::ForeignSource, &Gateway::new);
    }
}

/// A connection keeps the verdict of its SYN, wherever it leads.
fn follows_its_connection(whole: bool, why: &str, verdict: impl Fn(Connection) -> Verdict) {
    let held = if whole {
        Target::Connection
    } else {
        Target::Reassembly
    };
    for (connection, expected) in [
        (Connection::Held, Verdict::Steer(held)),
        (Connection::Gone, Verdict::Steer(Target::Gone)),
        (Connection::Unknown, Verdict::Pass(Reason::DirectConnection)),
    ] {
        assert_eq!(verdict(connection), expected, "{connection:?}, {why}");
    }
}

fn goes_direct(from: &str, to: &str, reason: Reason, gateway: &dyn Fn() -> Gateway) {
    for kind in kinds() {
        let verdict = |connection, fragment| {
            let mut gateway = gateway();
            gateway.connection = connection;
            gateway.fragment = fragment;
            decide(&packet(from, to, kind), &gateway)
        };
        let whole = kind.1.is_none();
        let why = format!("{from} to {to}: {kind:?}");
        match kind.0 {
            Transport::Tcp { opens: false, .. } => {
                follows_its_connection(whole, &why, |connection| verdict(connection, None));
            }
            Transport::LaterFragment { tcp: true } => {
                assert_eq!(
                    verdict(Connection::Unknown, Some(FragmentFate::Steered)),
                    Verdict::Steer(Target::Reassembly),
                    "{why}"
                );
                assert_eq!(
                    verdict(Connection::Unknown, Some(FragmentFate::Passed)),
                    Verdict::Pass(Reason::DirectFragment),
                    "{why}"
                );
                assert_eq!(
                    verdict(Connection::Unknown, None),
                    Verdict::Pass(reason),
                    "{why}"
                );
            }
            Transport::Other => assert_eq!(
                verdict(Connection::Unknown, None),
                Verdict::Pass(Reason::OtherProtocol),
                "{why}"
            ),
            // A new connection and a datagram ask for no connection.
            _ => assert_eq!(
                verdict(Connection::Held, None),
                Verdict::Pass(reason),
                "{why}"
            ),
        }
    }
}

#[test]
fn all_else_goes_to_the_proxy() {
    for to in STEERED {
        goes_to_the_proxy(to, Gateway::new().settings);
    }
}

#[test]
fn private_ranges_go_to_the_proxy_when_they_are_not_bypassed() {
    for (to, _) in DIRECT
        .iter()
        .filter(|(_, reason)| *reason == Reason::PrivateRange)
    {
        goes_to_the_proxy(to, Settings::default());
    }
}

fn goes_to_the_proxy(to: &str, settings: Settings) {
    for kind in kinds() {
        let verdict = |connection, fragment| {
            let gateway = Gateway {
                settings,
                connection,
                fragment,
                ..Gateway::new()
            };
            decide(&packet(device(to), to, kind), &gateway)
        };
        let whole = kind.1.is_none();
        let why = format!("{to}: {kind:?}");
        let unknown = verdict(Connection::Unknown, None);
        match kind.0 {
            Transport::Tcp { opens: true, .. } if whole => {
                let listener = Verdict::Steer(Target::Listener);
                assert_eq!(unknown, listener, "{why}");
                assert_eq!(verdict(Connection::Gone, None), listener, "{why}");
                // Sent twice, it belongs to the connection it opened.
                assert_eq!(
                    verdict(Connection::Held, None),
                    Verdict::Steer(Target::Connection),
                    "{why}"
                );
            }
            Transport::Tcp { opens: true, .. } => {
                assert_eq!(unknown, Verdict::Steer(Target::Reassembly), "{why}");
            }
            Transport::Tcp { opens: false, .. } => {
                follows_its_connection(whole, &why, |connection| verdict(connection, None));
            }
            Transport::Udp { .. } if whole => {
                assert_eq!(unknown, Verdict::Steer(Target::Listener), "{why}");
            }
            Transport::Udp { .. } | Transport::LaterFragment { tcp: false } => {
                assert_eq!(unknown, Verdict::Steer(Target::Reassembly), "{why}");
            }
            Transport::LaterFragment { tcp: true } => {
                assert_eq!(unknown, Verdict::Drop(Reason::LoneFragment), "{why}");
                assert_eq!(
                    verdict(Connection::Unknown, Some(FragmentFate::Steered)),
                    Verdict::Steer(Target::Reassembly),
                    "{why}"
                );
                assert_eq!(
                    verdict(Connection::Unknown, Some(FragmentFate::Passed)),
                    Verdict::Pass(Reason::DirectFragment),
                    "{why}"
                );
            }
            Transport::CutOff => {
                assert_eq!(unknown, Verdict::Drop(Reason::MalformedTransport), "{why}");
            }
            Transport::Buried => {
                assert_eq!(unknown, Verdict::Drop(Reason::LongExtensionChain), "{why}");
            }
            Transport::Other => {
                assert_eq!(unknown, Verdict::Pass(Reason::OtherProtocol), "{why}");
            }
        }
    }
}

#[test]
fn a_private_destination_counts_no_hit_in_the_bypass_set() {
    let gateway = Gateway::new();
    let ports = Ports {
        source: 1,
        destination: 2,
    };
    let datagram = packet("192.0.2.10", "10.0.0.1", (Transport::Udp { ports }, None));
    assert_eq!(
        decide(&datagram, &gateway),
        Verdict::Pass(Reason::PrivateRange)
    );
    assert!(!gateway.asked.borrow().contains(&Question::Bypassed));
}

#[test]
fn the_verdict_says_of_a_reason_what_the_list_of_reasons_says() {
    for to in NEVER_STEERED
        .iter()
        .chain(DIRECT)
        .map(|(to, _)| *to)
        .chain(STEERED.iter().copied())
    {
        for kind in kinds() {
            for from in [device(to), foreigner(to)] {
                match decide(&packet(from, to, kind), &Gateway::new()) {
                    Verdict::Pass(reason) => {
                        assert_eq!(reason.effect(), Effect::Pass, "{reason:?}");
                    }
                    Verdict::Drop(reason) => {
                        assert_eq!(reason.effect(), Effect::Drop, "{reason:?}");
                    }
                    Verdict::Steer(_) => {}
                }
            }
        }
    }
}
