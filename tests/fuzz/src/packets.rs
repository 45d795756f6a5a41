//! Packets, as the kernel half reads them.

use tproxy_common::packet::{Bytes, Packet, PacketBytes, Unparsed, parse_frame};

/// The same bytes, of which no long piece is read at once, so that the parser has to take the long way.
struct Piecemeal<'b>(&'b [u8]);

impl PacketBytes for Piecemeal<'_> {
    fn length(&self) -> usize {
        0
    }

    fn read<const N: usize>(&self, offset: usize) -> Option<Bytes<N>> {
        self.0.read(offset)
    }
}

/// An Ethernet frame.
pub fn frame(bytes: &[u8]) {
    let packet = parse_frame(bytes);
    assert_eq!(
        packet,
        parse_frame(&Piecemeal(bytes)),
        "the short way and the long one"
    );
    // The same behind a VLAN tag, which a parser that follows two may or may not still follow.
    let Some((ethernet, rest)) = bytes.split_at_checked(12) else {
        assert_eq!(packet, Err(Unparsed::Malformed));
        return;
    };
    let tagged = [ethernet, &[0x81, 0, 0, 7], rest].concat();
    if let Ok(packet) = packet {
        let expected = Packet {
            transport_offset: packet.transport_offset + 4,
            ..packet
        };
        let found = parse_frame(&tagged[..]);
        assert!(
            found == Ok(expected) || found == Err(Unparsed::NotIp),
            "{found:?}, not {expected:?}"
        );
        // Of a turned packet the turned one is the first again.
        assert_eq!(packet.addresses.turned().turned(), packet.addresses);
    }
    independent(bytes, packet);
}

/// What etherparse finds in a frame that it takes for whole.
fn independent(bytes: &[u8], packet: Result<Packet, Unparsed>) {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use tproxy_common::packet::{Addresses, Transport};

    let Ok(sliced) = SlicedPacket::from_ethernet(bytes) else {
        return;
    };
    // A type of tags from before the standard, which Linux takes for no tag.
    let old_tag = [12, 16]
        .iter()
        .any(|at| bytes.get(*at..at + 2) == Some(&[0x91, 0]));
    if old_tag || sliced.link_exts.len() > 2 {
        return;
    }
    // A length of 0 stands for what is there with etherparse, and for nothing with us.
    let (v4, v6, unknown) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let unknown = ip.is_payload_fragmented() || header.total_len() == 0;
            (Some((header.source(), header.destination())), None, unknown)
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let unknown = ip.is_payload_fragmented() || header.payload_length() == 0;
            (None, Some((header.source(), header.destination())), unknown)
        }
        _ => return,
    };
    let packet = packet.expect("etherparse finds addresses in it");
    match packet.addresses {
        Addresses::V4 {
            source,
            destination,
            ..
        } => {
            assert_eq!(v4, Some((source.to_ne_bytes(), destination.to_ne_bytes())));
        }
        Addresses::V6 {
            source,
            destination,
        } => {
            let octets = |words: [u32; 4]| -> [u8; 16] {
                let bytes = words.map(u32::to_ne_bytes);
                std::array::from_fn(|at| bytes[at / 4][at % 4])
            };
            assert_eq!(v6, Some((octets(source), octets(destination))));
        }
    }
    if unknown {
        return;
    }
    match (&sliced.transport, packet.transport) {
        (Some(TransportSlice::Tcp(tcp)), Transport::Tcp { ports, opens }) => {
            assert_eq!(u16::from_be(ports.source), tcp.source_port());
            assert_eq!(u16::from_be(ports.destination), tcp.destination_port());
            assert_eq!(opens, tcp.syn() && !tcp.ack() && !tcp.rst());
        }
        (Some(TransportSlice::Udp(udp)), Transport::Udp { ports }) => {
            assert_eq!(u16::from_be(ports.source), udp.source_port());
            assert_eq!(u16::from_be(ports.destination), udp.destination_port());
        }
        // More extension headers than a parser in the kernel follows.
        (_, Transport::Buried) => {}
        (Some(TransportSlice::Tcp(_) | TransportSlice::Udp(_)), other) => {
            panic!("etherparse finds a transport header, and we {other:?}")
        }
        _ => {}
    }
}
