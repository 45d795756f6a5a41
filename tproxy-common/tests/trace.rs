//! Who is told of which decision: the filter against a plain model of it, and what an event says of a packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use tproxy_common::abi::Reason;
use tproxy_common::packet::{Addresses, Fragment, Packet, Ports, Transport};
use tproxy_common::trace::{Message, TraceEvent, TraceFilter};

/// What is asked for, as a person says it.
#[derive(Clone, Debug)]
struct Asked {
    source: Option<(IpAddr, u8)>,
    destination: Option<(IpAddr, u8)>,
    port: u16,
    destination_port: u16,
    link: u32,
    protocols: u8,
    reasons: u64,
    new: bool,
}

fn words(address: Ipv6Addr) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(address.octets().chunks(4)) {
        *word = u32::from_ne_bytes(bytes.try_into().unwrap());
    }
    words
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn prefix(asked: Option<(IpAddr, u8)>) -> ([u32; 4], [u32; 4], u8) {
    let Some((address, length)) = asked else {
        return ([0; 4], [0; 4], TraceFilter::ALL_FAMILIES);
    };
    let (length, family) = match address {
        IpAddr::V4(_) => (length + 96, TraceEvent::IPV4),
        IpAddr::V6(_) => (length, TraceEvent::IPV6),
    };
    let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
    (words(mapped(address)), words(mask.into()), family)
}

impl Asked {
    fn filter(&self) -> TraceFilter {
        let (source, source_mask, from) = prefix(self.source);
        let (destination, destination_mask, to) = prefix(self.destination);
        TraceFilter {
            reasons: self.reasons,
            source,
            source_mask,
            destination,
            destination_mask,
            link: self.link,
            port: self.port.to_be(),
            destination_port: self.destination_port.to_be(),
            protocols: self.protocols,
            families: from & to,
            new: self.new.into(),
            ..TraceFilter::everything()
        }
    }

    /// Condition by condition, bit by bit.
    fn is_met(&self, seen: &Seen) -> bool {
        let contains = |asked: Option<(IpAddr, u8)>, address: IpAddr| {
            asked.is_none_or(|(prefix, length)| match (prefix, address) {
                (IpAddr::V4(prefix), IpAddr::V4(address)) => {
                    same_bits(&prefix.octets(), &address.octets(), length)
                }
                (IpAddr::V6(prefix), IpAddr::V6(address)) => {
                    same_bits(&prefix.octets(), &address.octets(), length)
                }
                _ => false,
            })
        };
        let (source_port, destination_port) = seen.ports();
        let protocol = match seen.transport {
            Transport::Tcp { .. } | Transport::LaterFragment { tcp: true } => TraceEvent::TCP,
            Transport::Udp { .. } | Transport::LaterFragment { tcp: false } => TraceEvent::UDP,
            _ => TraceEvent::OTHER,
        };
        let opens = matches!(seen.transport, Transport::Tcp { opens: true, .. });
        contains(self.source, seen.source)
            && contains(self.destination, seen.destination)
            && (self.port == 0 || [source_port, destination_port].contains(&self.port))
            && [0, destination_port].contains(&self.destination_port)
            && [0, seen.link].contains(&self.link)
            && self.protocols & protocol != 0
            && self.reasons & (1 << seen.reason as u64) != 0
            && !(self.new && protocol == TraceEvent::TCP && !opens)
    }
}

fn same_bits(one: &[u8], other: &[u8], length: u8) -> bool {
    let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    (0..usize::from(length)).all(|at| bit(one, at) == bit(other, at))
}

#[derive(Clone, Debug)]
struct Seen {
    source: IpAddr,
    destination: IpAddr,
    transport: Transport,
    link: u32,
    reason: Reason,
}

impl Seen {
    fn ports(&self) -> (u16, u16) {
        match self.transport {
            Transport::Tcp { ports, .. } | Transport::Udp { ports } => {
                (u16::from_be(ports.source), u16::from_be(ports.destination))
            }
            _ => (0, 0),
        }
    }

    fn event(&self) -> TraceEvent {
        let word = |address: Ipv4Addr| u32::from_ne_bytes(address.octets());
        let addresses = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Addresses::v4(word(source), word(destination))
            }
            (source, destination) => Addresses::V6 {
                source: words(mapped(source)),
                destination: words(mapped(destination)),
            },
        };
        let mut event = TraceEvent::empty(1, 1);
        event.link = self.link;
        event.code = self.reason as u16;
        event.describe(&Packet {
            addresses,
            transport: self.transport,
            fragment: Fragment::NONE,
            transport_offset: 34,
        });
        event
    }
}

/// Few of each, so that they often meet.
fn v4() -> impl Strategy<Value = IpAddr> {
    (0..4_u8, 0..4_u8).prop_map(|(a, b)| [10, 0, a, b].into())
}

/// Among them those that look like an IPv4 address.
fn v6() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..4_u16, 0..4_u16).prop_map(|(a, b)| IpAddr::from([0x2001, 0xdb8, a, 0, 0, 0, 0, b])),
        v4().prop_map(|address| mapped(address).into()),
    ]
}

fn asked_prefix() -> impl Strategy<Value = Option<(IpAddr, u8)>> {
    prop_oneof![
        Just(None),
        (v4(), 0..=32_u8).prop_map(Some),
        (v6(), 0..=128_u8).prop_map(Some),
    ]
}

fn port() -> impl Strategy<Value = u16> + Clone {
    prop_oneof![Just(0), Just(53), Just(443), Just(0x3500)]
}

fn transport() -> impl Strategy<Value = Transport> {
    let ports = |source: u16, destination: u16| Ports {
        source: source.to_be(),
        destination: destination.to_be(),
    };
    prop_oneof![
        (port(), port(), any::<bool>()).prop_map(move |(from, to, opens)| Transport::Tcp {
            ports: ports(from, to),
            opens,
        }),
        (port(), port()).prop_map(move |(from, to)| Transport::Udp {
            ports: ports(from, to),
        }),
        any::<bool>().prop_map(|tcp| Transport::LaterFragment { tcp }),
        Just(Transport::Other),
        Just(Transport::CutOff),
        Just(Transport::Buried),
    ]
}

fn seen() -> impl Strategy<Value = Seen> {
    let addresses = prop_oneof![(v4(), v4()), (v6(), v6())];
    let reason = (0..Reason::COUNT).prop_map(|index| Reason::ALL[index]);
    (addresses, transport(), 1..3_u32, reason).prop_map(|(addresses, transport, link, reason)| {
        Seen {
            source: addresses.0,
            destination: addresses.1,
            transport,
            link,
            reason,
        }
    })
}

fn asked() -> impl Strategy<Value = Asked> {
    let reasons = prop_oneof![Just(u64::MAX), any::<u64>()];
    (
        (asked_prefix(), asked_prefix()),
        (port(), port()),
        0..3_u32,
        prop_oneof![Just(7_u8), 0..8_u8],
        reasons,
        any::<bool>(),
    )
        .prop_map(|(prefixes, ports, link, protocols, reasons, new)| Asked {
            source: prefixes.0,
            destination: prefixes.1,
            port: ports.0,
            destination_port: ports.1,
            link,
            protocols,
            reasons,
            new,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_096))]

    #[test]
    fn the_filter_wants_what_was_asked_for(asked in asked(), seen in seen()) {
        prop_assert_eq!(asked.filter().wants(&seen.event()), asked.is_met(&seen));
    }
}

#[test]
fn without_conditions_everything_is_wanted_whatever_it_is() {
    let everything = TraceFilter::everything();
    for reason in Reason::ALL {
        let event = TraceEvent {
            code: *reason as u16,
            ..TraceEvent::empty(1, 1)
        };
        assert!(everything.wants(&event), "{reason:?}");
    }
    assert_eq!(everything.until, 0, "nobody listens");
}

#[test]
fn messages_have_words_of_their_own() {
    for (index, message) in Message::ALL.iter().enumerate() {
        assert_eq!(*message as usize, index);
        let mut others = Message::ALL[..index].iter();
        assert!(others.all(|other| other.word() != message.word()));
        assert!(message.sentence().ends_with('.'));
    }
}
