//! The policy for what the gateway itself sends: where it differs from that for devices.

mod frames;
mod gateway;

use frames::Between;
use gateway::{Gateway, Question, ip};
use tproxy_common::abi::{FragmentFate, Reason, Settings};
use tproxy_common::packet::{Fragment, Packet, Ports, Transport};
use tproxy_common::verdict::{Connection, Target, Verdict, decide, decide_own};

const FAR: [&str; 2] = ["203.0.113.5", "2001:db8:5::5"];

fn gateway() -> Gateway {
    let mut gateway = Gateway::new();
    gateway.settings = Settings {
        first_free_port: 32_768,
        last_free_port: 60_999,
        ..gateway.settings
    };
    gateway
}

fn packet(to: &str, transport: Transport, fragment: Option<u32>) -> Packet {
    let own = if ip(to).is_ipv4() {
        "192.0.2.1"
    } else {
        "2001:db8:1::1"
    };
    Packet {
        addresses: Between::new(ip(own), ip(to)).addresses(),
        transport,
        fragment: fragment.map_or(Fragment::NONE, Fragment::of),
        transport_offset: 34,
    }
}

fn ports(source: u16, destination: u16) -> Ports {
    Ports {
        source: source.to_be(),
        destination: destination.to_be(),
    }
}

fn datagram(to: &str, source: u16, destination: u16) -> Packet {
    let ports = ports(source, destination);
    packet(to, Transport::Udp { ports }, None)
}

fn to_proxy() -> Verdict {
    Verdict::Steer(Target::Listener)
}

#[test]
fn a_service_answers_whoever_wrote_to_it() {
    for to in FAR {
        let mut gateway = gateway();
        let answer = datagram(to, 1194, 40_000);
        assert_eq!(decide_own(&answer, &gateway), to_proxy());
        gateway.caller = true;
        assert_eq!(
            decide_own(&answer, &gateway),
            Verdict::Pass(Reason::ServiceReply)
        );
        // Nothing else is asked then.
        assert_eq!(gateway.asked.borrow().last(), Some(&Question::Caller));
    }
}

/// What the kernel gives to clients by itself is never a service's, whoever wrote to it.
#[test]
fn a_clients_port_has_no_callers() {
    for to in FAR {
        for (port, service) in [
            (1, true),
            (32_767, true),
            (32_768, false),
            (50_000, false),
            (60_999, false),
            (61_000, true),
            (65_535, true),
        ] {
            let mut gateway = gateway();
            gateway.caller = true;
            let expected = if service {
                Verdict::Pass(Reason::ServiceReply)
            } else {
                to_proxy()
            };
            let verdict = decide_own(&datagram(to, port, 53), &gateway);
            assert_eq!(verdict, expected, "port {port} to {to}");
            let asked = gateway.asked.borrow().contains(&Question::Caller);
            assert_eq!(asked, service, "port {port}");
        }
    }
}

#[test]
fn a_lease_is_renewed_directly() {
    for to in FAR {
        for (source, destination, direct) in [
            (68, 67, true),
            (546, 547, true),
            (67, 68, false),
            (68, 53, false),
            (40_000, 67, false),
        ] {
            let verdict = decide_own(&datagram(to, source, destination), &gateway());
            let expected = if direct {
                Verdict::Pass(Reason::DhcpClient)
            } else {
                to_proxy()
            };
            assert_eq!(verdict, expected, "{source} to {destination}");
        }
    }
}

#[test]
fn later_fragments_follow_a_first_one_that_passed() {
    for to in FAR {
        let later = packet(to, Transport::LaterFragment { tcp: false }, Some(7));
        for (fate, expected) in [
            (None, Verdict::Steer(Target::Reassembly)),
            (
                Some(FragmentFate::Steered),
                Verdict::Steer(Target::Reassembly),
            ),
            (
                Some(FragmentFate::Passed),
                Verdict::Pass(Reason::DirectFragment),
            ),
        ] {
            let mut gateway = gateway();
            gateway.fragment = fate;
            assert_eq!(decide_own(&later, &gateway), expected, "{fate:?}");
        }
    }
}

/// Everything else is as for a device.
#[test]
fn the_rest_is_decided_as_for_a_device() {
    let mut kinds = vec![
        (Transport::Other, None),
        (Transport::CutOff, None),
        (Transport::Buried, None),
        (Transport::LaterFragment { tcp: true }, Some(7)),
    ];
    for opens in [true, false] {
        let ports = ports(1194, 443);
        for fragment in [None, Some(7)] {
            kinds.push((Transport::Tcp { ports, opens }, fragment));
            kinds.push((Transport::Udp { ports }, fragment));
        }
    }
    for to in [
        "203.0.113.5",
        "2001:db8:5::5",
        "198.51.100.9",
        "10.1.2.3",
        "224.0.0.1",
        "192.0.2.9",
    ] {
        for (transport, fragment) in &kinds {
            for connection in [Connection::Held, Connection::Gone, Connection::Unknown] {
                let mut gateway = gateway();
                gateway.connection = connection;
                let packet = packet(to, *transport, *fragment);
                assert_eq!(
                    decide_own(&packet, &gateway),
                    decide(&packet, &gateway),
                    "{to} {transport:?} {connection:?}"
                );
            }
        }
    }
}
