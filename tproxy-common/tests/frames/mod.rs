//! Ethernet frames made by a crate that knows nothing of ours, so that parser and builder cannot be
//! wrong in the same way.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    EtherType, Ethernet2Header, IpAuthHeader, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, SingleVlanHeader, TcpHeader, UdpHeader,
    VlanId,
};
use proptest::prelude::*;
use tproxy_common::packet::{Addresses, Fragment, Packet, Ports, Transport};

/// An IPv6 extension header with the bytes that follow its fixed part.
#[derive(Clone, Debug)]
pub enum Extension {
    /// Hop-by-hop (0), routing (43), destination options (60), mobility (135), HIP (139), shim6
    /// (140): the protocol number, and how many words of eight bytes come after the first.
    Options(u8, u8),
    /// Authentication, with so many words of four bytes as check value.
    Authentication(u8),
    /// A fragment header of a datagram that is whole (RFC 6946).
    Atomic(u32),
}

impl Extension {
    fn number(&self) -> u8 {
        match self {
            Self::Options(number, _) => *number,
            Self::Authentication(_) => 51,
            Self::Atomic(_) => 44,
        }
    }

    fn bytes(&self, next: u8) -> Vec<u8> {
        let next = IpNumber(next);
        match self {
            Self::Options(_, words) => {
                let rest = vec![0; 6 + 8 * usize::from(*words)];
                let header = Ipv6RawExtHeader::new_raw(next, &rest).expect("a multiple of eight");
                header.to_bytes().to_vec()
            }
            Self::Authentication(words) => {
                let check = vec![0xcc; 4 * usize::from(*words)];
                let header = IpAuthHeader::new(next, 1, 2, &check).expect("a multiple of four");
                header.to_bytes().to_vec()
            }
            Self::Atomic(id) => fragment_header(next.0, 0, false, *id),
        }
    }
}

fn fragment_header(next: u8, offset: u16, more: bool, id: u32) -> Vec<u8> {
    let offset = IpFragOffset::try_new(offset).expect("13 bits");
    Ipv6FragmentHeader::new(IpNumber(next), offset, more, id)
        .to_bytes()
        .to_vec()
}

/// A chain of extension headers in front of `payload`: the number of the first header and the bytes.
pub fn chain(extensions: &[Extension], protocol: u8, payload: &[u8]) -> (u8, Vec<u8>) {
    let mut first = protocol;
    let mut bytes = payload.to_vec();
    for extension in extensions.iter().rev() {
        let mut front = extension.bytes(first);
        front.append(&mut bytes);
        bytes = front;
        first = extension.number();
    }
    (first, bytes)
}

/// What is behind the IP header and its extensions.
#[derive(Clone, Debug)]
pub enum Payload {
    /// TCP with these flags (the low byte of the header's flags) and options of so many words.
    Tcp {
        ports: (u16, u16),
        flags: u8,
        option_words: u8,
        data: usize,
    },
    /// UDP.
    Udp { ports: (u16, u16), data: usize },
    /// Another protocol.
    Other { protocol: u8, data: usize },
}

impl Payload {
    pub fn protocol(&self) -> u8 {
        match self {
            Self::Tcp { .. } => 6,
            Self::Udp { .. } => 17,
            Self::Other { protocol, .. } => *protocol,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let (mut header, data) = match self {
            Self::Tcp {
                ports,
                flags,
                option_words,
                data,
            } => {
                let mut tcp = TcpHeader::new(ports.0, ports.1, 0x0102_0304, 1024);
                (tcp.fin, tcp.syn, tcp.rst, tcp.psh) = (
                    flags & 1 != 0,
                    flags & 2 != 0,
                    flags & 4 != 0,
                    flags & 8 != 0,
                );
                (tcp.ack, tcp.urg, tcp.ece, tcp.cwr) = (
                    flags & 16 != 0,
                    flags & 32 != 0,
                    flags & 64 != 0,
                    flags & 128 != 0,
                );
                tcp.set_options_raw(&vec![1; usize::from(*option_words) * 4])
                    .expect("at most 40 bytes");
                (tcp.to_bytes().to_vec(), *data)
            }
            Self::Udp { ports, data } => {
                let length = u16::try_from(8 + data).expect("a datagram");
                let udp = UdpHeader {
                    source_port: ports.0,
                    destination_port: ports.1,
                    length,
                    checksum: 0,
                };
                (udp.to_bytes().to_vec(), *data)
            }
            Self::Other { data, .. } => (Vec::new(), *data),
        };
        header.resize(header.len() + data, 0xda);
        header
    }

    /// What the parser should say of a whole one.
    pub fn expected(&self) -> Transport {
        match self {
            Self::Tcp { ports, flags, .. } => Transport::Tcp {
                ports: network_order(*ports),
                // SYN, and neither RST nor ACK.
                opens: flags & 2 != 0 && flags & 4 == 0 && flags & 16 == 0,
            },
            Self::Udp { ports, .. } => Transport::Udp {
                ports: network_order(*ports),
            },
            Self::Other { .. } => Transport::Other,
        }
    }

    /// How many bytes of it the parser must see to know it.
    pub fn needed(&self) -> usize {
        match self {
            Self::Tcp { .. } => 14,
            Self::Udp { .. } => 4,
            Self::Other { .. } => 0,
        }
    }
}

fn network_order((source, destination): (u16, u16)) -> Ports {
    Ports {
        source: source.to_be(),
        destination: destination.to_be(),
    }
}

/// Who sends it where.
#[derive(Clone, Copy, Debug)]
pub enum Between {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

impl Between {
    /// # Panics
    /// They are of different families.
    pub fn new(source: IpAddr, destination: IpAddr) -> Self {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Self::V4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Self::V6(source, destination),
            _ => panic!("{source} and {destination} are of different families"),
        }
    }

    pub fn addresses(&self) -> Addresses {
        match self {
            Self::V4(source, destination) => Addresses::v4(
                u32::from_ne_bytes(source.octets()),
                u32::from_ne_bytes(destination.octets()),
            ),
            Self::V6(source, destination) => Addresses::V6 {
                source: words(*source),
                destination: words(*destination),
            },
        }
    }
}

fn words(address: Ipv6Addr) -> [u32; 4] {
    let bytes = address.octets();
    std::array::from_fn(|word| {
        u32::from_ne_bytes(std::array::from_fn(|byte| bytes[4 * word + byte]))
    })
}

/// Where a fragment lies in its datagram.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// In units of eight bytes.
    pub offset: u16,
    pub more: bool,
    pub id: u32,
}

/// Everything about a frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Ethertypes of VLAN tags, the outermost first.
    pub tags: Vec<u16>,
    pub between: Between,
    /// IPv4 options in words of four bytes.
    pub option_words: u8,
    /// IPv6 extension headers before a fragment header.
    pub extensions: Vec<Extension>,
    pub payload: Payload,
}

impl Frame {
    /// The plainest frame between these.
    pub fn plain(between: Between, payload: Payload) -> Self {
        Self {
            tags: Vec::new(),
            between,
            option_words: 0,
            extensions: Vec::new(),
            payload,
        }
    }

    /// The length of everything before the IP header.
    pub fn link_length(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// The whole frame.
    pub fn bytes(&self) -> Vec<u8> {
        self.around(self.payload.protocol(), &self.payload.bytes(), None)
    }

    /// Its fragments, each with at most `size` units of eight bytes of what can be divided.
    /// `after` are IPv6 extension headers that stand behind the fragment header.
    pub fn fragments(&self, size: usize, id: u32, after: &[Extension]) -> Vec<Vec<u8>> {
        let (protocol, whole) = match self.between {
            Between::V4(..) => (self.payload.protocol(), self.payload.bytes()),
            Between::V6(..) => chain(after, self.payload.protocol(), &self.payload.bytes()),
        };
        let count = whole.chunks(size * 8).count();
        whole
            .chunks(size * 8)
            .enumerate()
            .map(|(index, part)| {
                let place = Place {
                    offset: u16::try_from(index * size).expect("13 bits"),
                    more: index + 1 < count,
                    id,
                };
                self.around(protocol, part, Some(place))
            })
            .collect()
    }

    /// A frame around `payload`.
    pub fn around(&self, protocol: u8, payload: &[u8], place: Option<Place>) -> Vec<u8> {
        let (ip_type, ip) = match self.between {
            Between::V4(source, destination) => (
                EtherType::IPV4,
                self.v4(source, destination, protocol, payload, place),
            ),
            Between::V6(source, destination) => (
                EtherType::IPV6,
                self.v6(source, destination, protocol, payload, place),
            ),
        };
        let types = self.tags.iter().map(|tag| EtherType(*tag)).chain([ip_type]);
        let types = types.collect::<Vec<_>>();
        let mut bytes = Ethernet2Header {
            source: [2, 0, 0, 0, 0, 1],
            destination: [2, 0, 0, 0, 0, 2],
            ether_type: types[0],
        }
        .to_bytes()
        .to_vec();
        for inner in &types[1..] {
            let tag = SingleVlanHeader {
                vlan_id: VlanId::try_new(7).expect("12 bits"),
                ether_type: *inner,
                ..SingleVlanHeader::default()
            };
            bytes.extend(tag.to_bytes());
        }
        bytes.extend(ip);
        bytes
    }

    fn v4(
        &self,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        protocol: u8,
        payload: &[u8],
        place: Option<Place>,
    ) -> Vec<u8> {
        let options = vec![1; usize::from(self.option_words) * 4];
        let mut header = Ipv4Header {
            protocol: IpNumber(protocol),
            time_to_live: 64,
            source: source.octets(),
            destination: destination.octets(),
            options: Ipv4Options::try_from(options.as_slice()).expect("at most 40 bytes"),
            ..Ipv4Header::default()
        };
        header.set_payload_len(payload.len()).expect("a datagram");
        if let Some(place) = place {
            header.identification = place.id as u16;
            header.dont_fragment = false;
            header.more_fragments = place.more;
            header.fragment_offset = IpFragOffset::try_new(place.offset).expect("13 bits");
        }
        header.header_checksum = header.calc_header_checksum();
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(payload);
        bytes
    }

    fn v6(
        &self,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        protocol: u8,
        payload: &[u8],
        place: Option<Place>,
    ) -> Vec<u8> {
        let (number, behind) = match place {
            None => (protocol, payload.to_vec()),
            Some(place) => {
                let mut bytes = fragment_header(protocol, place.offset, place.more, place.id);
                bytes.extend(payload);
                (44, bytes)
            }
        };
        let (first, behind) = chain(&self.extensions, number, &behind);
        let header = Ipv6Header {
            payload_length: u16::try_from(behind.len()).expect("a datagram"),
            next_header: IpNumber(first),
            hop_limit: 64,
            source: source.octets(),
            destination: destination.octets(),
            ..Ipv6Header::default()
        };
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(behind);
        bytes
    }

    /// What the parser should make of the whole frame.
    pub fn expected(&self) -> Packet {
        let ip = match self.between {
            Between::V4(..) => 20 + 4 * usize::from(self.option_words),
            Between::V6(..) => 40 + chain(&self.extensions, 0, &[]).1.len(),
        };
        Packet {
            addresses: self.between.addresses(),
            transport: self.payload.expected(),
            fragment: Fragment::NONE,
            transport_offset: self.link_length() + ip,
        }
    }
}

pub fn any_between() -> impl Strategy<Value = Between> {
    prop_oneof![
        any::<(Ipv4Addr, Ipv4Addr)>().prop_map(|(from, to)| Between::V4(from, to)),
        any::<(Ipv6Addr, Ipv6Addr)>().prop_map(|(from, to)| Between::V6(from, to)),
    ]
}

pub fn any_payload() -> impl Strategy<Value = Payload> {
    prop_oneof![
        (any::<(u16, u16)>(), any::<u8>(), 0..=10_u8, 0..64_usize).prop_map(
            |(ports, flags, option_words, data)| Payload::Tcp {
                ports,
                flags,
                option_words,
                data
            }
        ),
        (any::<(u16, u16)>(), 0..64_usize).prop_map(|(ports, data)| Payload::Udp { ports, data }),
        // ICMP, IGMP, IPv6 in IP, GRE, ESP, ICMPv6, "no next header", OSPF, SCTP.
        (
            prop::sample::select(vec![1_u8, 2, 41, 47, 50, 58, 59, 89, 132]),
            0..64_usize
        )
            .prop_map(|(protocol, data)| Payload::Other { protocol, data }),
    ]
}

pub fn any_udp(data: std::ops::Range<usize>) -> impl Strategy<Value = Payload> {
    (any::<(u16, u16)>(), data).prop_map(|(ports, data)| Payload::Udp { ports, data })
}

pub fn any_extension() -> impl Strategy<Value = Extension> {
    prop_oneof![
        4 => (prop::sample::select(vec![0_u8, 43, 60, 135, 139, 140]), 0..8_u8)
            .prop_map(|(number, words)| Extension::Options(number, words)),
        1 => (0..9_u8).prop_map(Extension::Authentication),
        1 => any::<u32>().prop_map(Extension::Atomic),
    ]
}

pub fn any_tags() -> impl Strategy<Value = Vec<u16>> {
    prop::collection::vec(prop::sample::select(vec![0x8100_u16, 0x88a8]), 0..=2)
}

/// Any well-formed frame with at most `extensions` extension headers.
pub fn any_frame(extensions: usize) -> impl Strategy<Value = Frame> {
    (
        any_tags(),
        any_between(),
        0..=10_u8,
        prop::collection::vec(any_extension(), 0..=extensions),
        any_payload(),
    )
        .prop_map(|(tags, between, option_words, extensions, payload)| Frame {
            tags,
            between,
            option_words,
            extensions,
            payload,
        })
}
