//! Made packets: the first one of a connection or of an exchange of datagrams, as a device would send it.

use std::net::{IpAddr, SocketAddr};

use tproxy_common::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_TCP, PROTOCOL_UDP};

use crate::policy::rule::Protocol;

/// The address of an Ethernet link.
pub type LinkAddress = [u8; 6];

/// The flags of a SYN, and the place of its checksum and of a datagram's (RFC 9293, 3.1; RFC 768).
const SYN: u8 = 0x02;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
/// What a made datagram carries.
const PAYLOAD: &[u8] = b"tproxy-bpf explain";
/// The next header of an IPv6 fragment header (RFC 8200, 4.5).
const FRAGMENT: u8 = 44;
/// "More fragments", as IPv4 and IPv6 have it.
const MORE_V4: u16 = 0x2000;
const MORE_V6: u16 = 1;
/// How many hops it may take.
const HOPS: u8 = 64;

/// A packet to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// TCP: a SYN. UDP: a datagram.
    pub protocol: Protocol,
    /// Who sends it.
    pub source: SocketAddr,
    /// Where it goes; of the same family.
    pub destination: SocketAddr,
    /// It is the first of several fragments, not a whole packet.
    pub fragment: bool,
}

impl Made {
    /// Its bytes, behind an Ethernet header that is addressed to `link`. None: the families differ.
    #[must_use]
    pub fn frame(&self, link: LinkAddress) -> Option<Vec<u8>> {
        let mut frame = link.to_vec();
        frame.extend([0; 6]);
        let (kind, next) = match self.protocol {
            Protocol::Tcp => (PROTOCOL_TCP, self.segment()),
            Protocol::Udp => (PROTOCOL_UDP, self.datagram()),
        };
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let flags = if self.fragment { MORE_V4 } else { 0 };
                let mut header = vec![0x45, 0];
                header.extend((20 + next.len() as u16).to_be_bytes());
                header.extend([0, 1]);
                header.extend(flags.to_be_bytes());
                header.extend([HOPS, kind, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend(ETHERTYPE_IPV4.to_be_bytes());
                frame.extend(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut fragment = Vec::new();
                if self.fragment {
                    fragment.extend([kind, 0]);
                    fragment.extend(MORE_V6.to_be_bytes());
                    fragment.extend([0, 0, 0, 1]);
                }
                frame.extend(ETHERTYPE_IPV6.to_be_bytes());
                frame.extend([0x60, 0, 0, 0]);
                frame.extend(((fragment.len() + next.len()) as u16).to_be_bytes());
                frame.extend([if self.fragment { FRAGMENT } else { kind }, HOPS]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                frame.extend(fragment);
            }
            _ => return None,
        }
        frame.extend(next);
        Some(frame)
    }

    fn ports(&self) -> Vec<u8> {
        let ports = [self.source.port(), self.destination.port()];
        ports.map(u16::to_be_bytes).concat()
    }

    fn segment(&self) -> Vec<u8> {
        let mut bytes = self.ports();
        // Sequence number, acknowledgement; five words of header; the window.
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, SYN, 0xff, 0xff, 0, 0, 0, 0]);
        self.put_checksum(&mut bytes, PROTOCOL_TCP, TCP_CHECKSUM);
        // Fragments but the last have a length that is a multiple of 8 bytes.
        bytes.resize(if self.fragment { 24 } else { 20 }, 0);
        bytes
    }

    fn datagram(&self) -> Vec<u8> {
        let mut bytes = self.ports();
        let mut payload = PAYLOAD.to_vec();
        if self.fragment {
            payload.resize(24, 0);
        }
        bytes.extend((8 + payload.len() as u16).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(payload);
        self.put_checksum(&mut bytes, PROTOCOL_UDP, UDP_CHECKSUM);
        bytes
    }

    /// With the pseudo header of either family: RFC 9293, 3.1; RFC 8200, 8.1.
    fn put_checksum(&self, bytes: &mut [u8], protocol: u8, at: usize) {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let mut all = octets(self.source.ip());
        all.extend(octets(self.destination.ip()));
        all.extend([0, protocol]);
        all.extend((bytes.len() as u16).to_be_bytes());
        all.extend_from_slice(bytes);
        // A datagram's 0 means "none" (RFC 768).
        let sum = match checksum(&all) {
            0 if protocol == PROTOCOL_UDP => 0xffff,
            sum => sum,
        };
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = words.map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;
    use tproxy_common::packet::{Addresses, ETHERNET_HEADER, Transport, parse};

    use super::*;

    fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
        let v4 = any::<(u32, u32)>().prop_map(|(source, destination)| {
            let address = |bits| IpAddr::from(Ipv4Addr::from_bits(bits));
            (address(source), address(destination))
        });
        let v6 = any::<(u128, u128)>().prop_map(|(source, destination)| {
            let address = |bits| IpAddr::from(Ipv6Addr::from_bits(bits));
            (address(source), address(destination))
        });
        prop_oneof![v4, v6]
    }

    fn made() -> impl Strategy<Value = Made> {
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
        let ports = any::<(u16, u16)>();
        (protocol, addresses(), ports, any::<bool>()).prop_map(
            |(protocol, (source, destination), ports, fragment)| Made {
                protocol,
                source: SocketAddr::new(source, ports.0),
                destination: SocketAddr::new(destination, ports.1),
                fragment,
            },
        )
    }

    fn is_from(addresses: &Addresses, source: IpAddr, destination: IpAddr) -> bool {
        let mapped = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let bytes = |words: [u32; 4]| words.map(u32::to_ne_bytes).concat();
        let (from, to) = addresses.mapped();
        bytes(from) == mapped(source) && bytes(to) == mapped(destination)
    }

    proptest! {
        #[test]
        fn the_parser_of_the_kernel_half_finds_the_same_flow(made in made()) {
            let frame = made.frame([2, 0, 0, 0, 0, 1]).expect("one family");
            prop_assert_eq!(&frame[..6], &[2, 0, 0, 0, 0, 1]);
            let ethertype = u16::from_be_bytes([frame[12], frame[13]]);
            let packet = parse(&frame[..], ethertype, ETHERNET_HEADER).expect("a packet");
            prop_assert!(is_from(&packet.addresses, made.source.ip(), made.destination.ip()));
            prop_assert_eq!(packet.fragment.is_one(), made.fragment);
            let (protocol, ports) = match packet.transport {
                Transport::Tcp { ports, opens } => {
                    prop_assert!(opens);
                    (Protocol::Tcp, ports)
                }
                Transport::Udp { ports } => (Protocol::Udp, ports),
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            };
            prop_assert_eq!(protocol, made.protocol);
            prop_assert_eq!(u16::from_be(ports.source), made.source.port());
            prop_assert_eq!(u16::from_be(ports.destination), made.destination.port());
        }

        #[test]
        fn checksums_are_right(made in made()) {
            let frame = made.frame([0; 6]).expect("one family");
            let header = if made.source.is_ipv4() { 20 } else { 40 };
            let ip = &frame[ETHERNET_HEADER..];
            let (mut pseudo, mut from) = (Vec::new(), header);
            if made.source.is_ipv4() {
                prop_assert_eq!(checksum(&ip[..20]), 0);
                pseudo.extend_from_slice(&ip[12..20]);
            } else {
                pseudo.extend_from_slice(&ip[8..40]);
                from += if made.fragment { 8 } else { 0 };
            }
            let next = &ip[from..];
            // What a fragment of TCP is filled up with is data, which the checksum would count.
            let length = match made.protocol {
                Protocol::Tcp => 20,
                Protocol::Udp => next.len(),
            };
            let kind = if made.protocol == Protocol::Tcp { PROTOCOL_TCP } else { PROTOCOL_UDP };
            pseudo.extend([0, kind]);
            pseudo.extend((length as u16).to_be_bytes());
            pseudo.extend_from_slice(&next[..length]);
            prop_assert_eq!(checksum(&pseudo), 0);
        }
    }

    #[test]
    fn two_families_make_no_packet() {
        let made = Made {
            protocol: Protocol::Tcp,
            source: "192.0.2.1:1".parse().expect("a literal"),
            destination: "[2001:db8::1]:443".parse().expect("a literal"),
            fragment: false,
        };
        assert_eq!(made.frame([0; 6]), None);
    }
}
