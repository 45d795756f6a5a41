//! What counts as forwarded past the proxy.

mod frames;
mod gateway;

use frames::Between;
use gateway::{Gateway, Question, ip};
use tproxy_common::abi::{Effect, Reason, Settings};
use tproxy_common::packet::{Fragment, Packet, Ports, Transport};
use tproxy_common::verdict::{Verdict, decide, is_forwarded};

const PORTS: Ports = Ports {
    source: 1,
    destination: 2,
};
const SYN: Transport = Transport::Tcp {
    ports: PORTS,
    opens: true,
};
const DATA: Transport = Transport::Tcp {
    ports: PORTS,
    opens: false,
};
const UDP: Transport = Transport::Udp { ports: PORTS };

fn packet(to: &str, transport: Transport) -> Packet {
    let from = if ip(to).is_ipv4() {
        "192.0.2.10"
    } else {
        "2001:db8:1::10"
    };
    Packet {
        addresses: Between::new(ip(from), ip(to)).addresses(),
        transport,
        fragment: Fragment::NONE,
        transport_offset: 34,
    }
}

/// Decides, and says whether the packet then counts as forwarded.
fn forwarded(to: &str, transport: Transport) -> bool {
    let gateway = Gateway::new();
    let packet = packet(to, transport);
    match decide(&packet, &gateway) {
        Verdict::Pass(reason) => is_forwarded(&packet, reason, &gateway),
        // No proxy runs.
        Verdict::Steer(_) => is_forwarded(&packet, Reason::DownPassed, &gateway),
        Verdict::Drop(reason) => is_forwarded(&packet, reason, &gateway),
    }
}

#[test]
fn what_goes_on_to_elsewhere_does() {
    for to in [
        "203.0.113.1",
        "198.51.100.1",
        "10.1.2.3",
        "2001:db8:f::1",
        "2001:db8:b::1",
        "fd00::1",
    ] {
        for transport in [SYN, DATA, UDP, Transport::Other, Transport::CutOff] {
            // What is cut off is dropped unless it is bypassed.
            if transport == Transport::CutOff && ["203.0.113.1", "2001:db8:f::1"].contains(&to) {
                assert!(!forwarded(to, transport), "{to}");
            } else {
                assert!(forwarded(to, transport), "{to} {transport:?}");
            }
        }
    }
}

/// The gateway's own addresses and subnets, and what no router forwards, whatever the packet carries.
#[test]
fn what_stays_near_does_not() {
    for to in [
        "192.0.2.1",
        "192.0.2.99",
        "224.0.0.251",
        "255.255.255.255",
        "169.254.1.1",
        "2001:db8:1::1",
        "2001:db8:1::99",
        "ff02::1",
        "fe80::1",
    ] {
        for transport in [SYN, DATA, UDP, Transport::Other] {
            assert!(!forwarded(to, transport), "{to} {transport:?}");
        }
    }
}

#[test]
fn only_a_packet_that_passes_can_be() {
    let gateway = Gateway {
        settings: Settings::default(),
        ..Gateway::new()
    };
    let packet = packet("203.0.113.1", UDP);
    for reason in Reason::ALL {
        if is_forwarded(&packet, *reason, &gateway) {
            assert_eq!(reason.effect(), Effect::Pass, "{reason:?}");
        }
    }
    // And where the destination is, is asked only for reasons that do not say.
    gateway.asked.take();
    assert!(is_forwarded(&packet, Reason::Bypassed, &gateway));
    assert!(!is_forwarded(&packet, Reason::OwnAddress, &gateway));
    assert_eq!(gateway.asked.take(), []);
    assert!(is_forwarded(&packet, Reason::DirectConnection, &gateway));
    assert_eq!(gateway.asked.take(), [Question::Locality]);
}
