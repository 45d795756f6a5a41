//! The policy for DNS questions, where the proxy's resolver wants them.

mod frames;
mod gateway;

use frames::Between;
use gateway::{Gateway, ip};
use tproxy_common::abi::{Reason, Settings};
use tproxy_common::packet::{Fragment, Packet, Ports, Transport};
use tproxy_common::verdict::{Connection, Target, Verdict, decide};

/// The gateway itself, a neighbour, a private one, a bypassed one, a far one; in both families.
const SERVERS: [(&str, &str, Reason); 10] = [
    ("192.0.2.10", "192.0.2.1", Reason::OwnAddress),
    ("192.0.2.10", "192.0.2.53", Reason::OwnSubnet),
    ("192.0.2.10", "10.0.0.53", Reason::PrivateRange),
    ("192.0.2.10", "198.51.100.53", Reason::Bypassed),
    ("192.0.2.10", "203.0.113.53", Reason::UdpSteered),
    ("2001:db8:1::10", "2001:db8:1::1", Reason::OwnAddress),
    ("2001:db8:1::10", "2001:db8:1::53", Reason::OwnSubnet),
    ("2001:db8:1::10", "fd00::53", Reason::PrivateRange),
    ("2001:db8:1::10", "2001:db8:b::53", Reason::Bypassed),
    ("2001:db8:1::10", "2001:db8:5::53", Reason::UdpSteered),
];

fn hijacking() -> Gateway {
    let mut gateway = Gateway::new();
    gateway.settings = Settings {
        flags: gateway.settings.flags | Settings::HIJACK_DNS,
        ..gateway.settings
    };
    gateway
}

fn packet(from: &str, to: &str, transport: Transport, fragment: Option<u32>) -> Packet {
    Packet {
        addresses: Between::new(ip(from), ip(to)).addresses(),
        transport,
        fragment: fragment.map_or(Fragment::NONE, Fragment::of),
        transport_offset: 34,
    }
}

fn to_port(port: u16) -> Ports {
    Ports {
        source: 40_000_u16.to_be(),
        destination: port.to_be(),
    }
}

#[test]
fn questions_are_steered_whomever_they_are_for() {
    for (from, to, reason) in SERVERS {
        let target = if reason == Reason::OwnAddress {
            Target::OwnResolver
        } else {
            Target::Resolver
        };
        let ports = to_port(53);
        for transport in [
            Transport::Udp { ports },
            Transport::Tcp { ports, opens: true },
        ] {
            assert_eq!(
                decide(&packet(from, to, transport, None), &hijacking()),
                Verdict::Steer(target),
                "{to}: {transport:?}"
            );
            // Reassembled first, and socket lookup finds the listener then.
            assert_eq!(
                decide(&packet(from, to, transport, Some(7)), &hijacking()),
                Verdict::Steer(Target::Reassembly),
                "{to}: {transport:?}"
            );
        }
    }
}

#[test]
fn without_the_flag_and_on_other_ports_nothing_changes() {
    for (from, to, reason) in SERVERS {
        for (port, gateway) in [
            (53, Gateway::new()),
            (54, hijacking()),
            (853, hijacking()),
            (0x3500, hijacking()),
        ] {
            let ports = to_port(port);
            let expected = match reason {
                Reason::UdpSteered => Verdict::Steer(Target::Listener),
                reason => Verdict::Pass(reason),
            };
            let datagram = packet(from, to, Transport::Udp { ports }, None);
            assert_eq!(decide(&datagram, &gateway), expected, "{to}:{port}");
        }
    }
}

/// Only who may use the proxy: others who ask the gateway's own server get its answers.
#[test]
fn strangers_are_not_answered() {
    for (from, to, reason) in [
        ("203.0.113.200", "192.0.2.1", Reason::OwnAddress),
        ("203.0.113.200", "198.51.100.53", Reason::Bypassed),
        ("203.0.113.200", "203.0.113.53", Reason::ForeignSource),
        ("2001:db8:f::1", "2001:db8:1::1", Reason::OwnAddress),
        ("2001:db8:f::1", "2001:db8:5::53", Reason::ForeignSource),
    ] {
        let ports = to_port(53);
        for transport in [
            Transport::Udp { ports },
            Transport::Tcp { ports, opens: true },
        ] {
            let verdict = decide(&packet(from, to, transport, None), &hijacking());
            assert_eq!(
                verdict,
                Verdict::Pass(reason),
                "{from} to {to}: {transport:?}"
            );
        }
    }
}

/// A program that is exempt by its mark asks whom it likes.
#[test]
fn the_exempt_ask_for_themselves() {
    for (from, to, reason) in SERVERS {
        let mut gateway = hijacking();
        gateway.exempt = true;
        let ports = to_port(53);
        let expected = match reason {
            Reason::UdpSteered | Reason::Bypassed => Reason::Exempt,
            reason => reason,
        };
        let datagram = packet(from, to, Transport::Udp { ports }, None);
        assert_eq!(decide(&datagram, &gateway), Verdict::Pass(expected), "{to}");
    }
}

/// The rest of a connection follows its socket; one to the gateway itself is delivered anyway.
#[test]
fn the_rest_of_a_connection_follows_it() {
    for (from, to, reason) in SERVERS {
        let ports = to_port(53);
        let segment = packet(
            from,
            to,
            Transport::Tcp {
                ports,
                opens: false,
            },
            None,
        );
        let mut gateway = hijacking();
        gateway.connection = Connection::Held;
        let expected = if reason == Reason::OwnAddress {
            Verdict::Pass(reason)
        } else {
            Verdict::Steer(Target::Connection)
        };
        assert_eq!(decide(&segment, &gateway), expected, "{to}");
        gateway.connection = Connection::Unknown;
        let expected = if reason == Reason::OwnAddress {
            Verdict::Pass(reason)
        } else {
            Verdict::Pass(Reason::DirectConnection)
        };
        assert_eq!(decide(&segment, &gateway), expected, "{to}");
    }
}
