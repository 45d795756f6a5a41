//! The parser on frames of all kinds, well-formed and not.

mod frames;

use frames::{Between, Extension, Frame, Payload, Place, any_extension, any_frame, any_tags};
use proptest::prelude::*;
use tproxy_common::abi::LANES;
use tproxy_common::packet::{
    Addresses, ETHERTYPE_IPV4, ETHERTYPE_IPV6, MAX_EXTENSIONS, Transport, Unparsed, parse,
    parse_frame,
};

fn v4() -> Between {
    Between::V4([192, 0, 2, 10].into(), [203, 0, 113, 5].into())
}

fn v6() -> Between {
    Between::V6(
        "2001:db8:1::10".parse().expect("an address"),
        "2001:db8:5::5".parse().expect("an address"),
    )
}

fn udp() -> Payload {
    Payload::Udp {
        ports: (4000, 53),
        data: 16,
    }
}

fn syn() -> Payload {
    Payload::Tcp {
        ports: (4000, 443),
        flags: 2,
        option_words: 5,
        data: 0,
    }
}

fn transport(bytes: &[u8]) -> Transport {
    parse_frame(bytes).expect("it has addresses").transport
}

proptest! {
    /// Whatever the bytes are, there is an answer, and it never reaches past what was there.
    #[test]
    fn any_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_frame(bytes.as_slice());
    }

    /// Random bytes rarely get past the first checks; these start like IP.
    #[test]
    fn bytes_that_start_like_ip_get_an_answer(
        mut bytes in prop::collection::vec(any::<u8>(), 1..200),
        v6 in any::<bool>(),
        words in 5..=15_u8,
    ) {
        bytes[0] = if v6 { 0x60 } else { 0x40 | words };
        let ethertype = if v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
        if let Ok(packet) = parse(bytes.as_slice(), ethertype, 0) {
            let needed = match packet.transport {
                Transport::Tcp { .. } => 14,
                Transport::Udp { .. } => 4,
                _ => return Ok(()),
            };
            prop_assert!(packet.transport_offset + needed <= bytes.len());
        }
    }

    /// A frame with a few bytes wrong gets an answer too.
    #[test]
    fn damaged_frames_get_an_answer(
        frame in any_frame(MAX_EXTENSIONS + 2),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = frame.bytes();
        for (index, value) in damage {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        let _ = parse_frame(bytes.as_slice());
    }

    /// VLAN and QinQ tags, IPv4 options, chains of every kind of IPv6 extension header.
    #[test]
    fn well_formed_frames_are_understood(frame in any_frame(MAX_EXTENSIONS)) {
        prop_assert_eq!(parse_frame(frame.bytes().as_slice()), Ok(frame.expected()));
    }

    /// Behind the bytes of the packet there may be padding, which is no part of it.
    #[test]
    fn padding_changes_nothing(frame in any_frame(MAX_EXTENSIONS), padding in 0..46_usize) {
        let mut bytes = frame.bytes();
        bytes.resize(bytes.len() + padding, 0xff);
        prop_assert_eq!(parse_frame(bytes.as_slice()), Ok(frame.expected()));
    }

    /// Cut off at any length it is the same packet, or a refusal that names what was cut off.
    #[test]
    fn truncated_frames_are_refused_by_what_is_cut_off(frame in any_frame(MAX_EXTENSIONS)) {
        let bytes = frame.bytes();
        let whole = frame.expected();
        let header = frame.link_length() + match frame.between {
            Between::V4(..) => 20,
            Between::V6(..) => 40,
        };
        for length in 0..=bytes.len() {
            let parsed = parse_frame(&bytes[..length]);
            if length < header {
                prop_assert_eq!(parsed, Err(Unparsed::Malformed), "{} bytes", length);
                continue;
            }
            let packet = parsed.expect("the IP header is there");
            prop_assert_eq!(packet.addresses, whole.addresses);
            if length >= whole.transport_offset + frame.payload.needed() {
                prop_assert_eq!(packet, whole, "{} bytes", length);
            } else if frame.payload.needed() > 0 {
                prop_assert_eq!(packet.transport, Transport::CutOff, "{} bytes", length);
            } else {
                // Of an extension header eight bytes are read; the rest may be cut off unnoticed.
                prop_assert!(
                    matches!(packet.transport, Transport::CutOff | Transport::Other),
                    "{} bytes: {:?}", length, packet.transport
                );
            }
        }
    }

    /// A length field below the transport header is a cut, however many bytes follow.
    #[test]
    fn a_length_field_that_cuts_the_transport_header_is_believed(
        tags in any_tags(),
        tcp in any::<bool>(),
        left in 0..20_u16,
        six in any::<bool>(),
    ) {
        let payload = if tcp { syn() } else { udp() };
        let between = if six { v6() } else { v4() };
        let frame = Frame { tags, ..Frame::plain(between, payload) };
        let mut bytes = frame.bytes();
        let (field, length) = if six {
            (frame.link_length() + 4, left)
        } else {
            (frame.link_length() + 2, 20 + left)
        };
        bytes[field..field + 2].copy_from_slice(&length.to_be_bytes());
        let enough = left >= if tcp { 20 } else { 8 };
        let expected = if enough { frame.expected().transport } else { Transport::CutOff };
        prop_assert_eq!(transport(&bytes), expected);
    }

    /// Only the first fragment shows its ports; all show the identification.
    #[test]
    fn fragments_are_told_apart(
        tags in any_tags(),
        six in any::<bool>(),
        tcp in any::<bool>(),
        extensions in prop::collection::vec(any_extension(), 0..MAX_EXTENSIONS),
        id in any::<u16>(),
        size in 4..9_usize,
    ) {
        let payload = if tcp {
            Payload::Tcp { ports: (4000, 443), flags: 16, option_words: 0, data: 300 }
        } else {
            Payload::Udp { ports: (4000, 53), data: 300 }
        };
        let between = if six { v6() } else { v4() };
        let frame = Frame { tags, extensions, ..Frame::plain(between, payload) };
        let later = Transport::LaterFragment { tcp };
        // In IPv4 the identification is read as a number, in IPv6 as a word: only equality counts.
        let id = u32::from(id);
        let id_as_read = if six { u32::from_ne_bytes(id.to_be_bytes()) } else { id };
        for (index, bytes) in frame.fragments(size, id, &[]).iter().enumerate() {
            let packet = parse_frame(bytes.as_slice()).expect("it has addresses");
            let expected = if index == 0 { frame.payload.expected() } else { later };
            prop_assert_eq!(packet.transport, expected, "fragment {}", index);
            prop_assert_eq!(packet.fragment.id(), Some(id_as_read), "fragment {}", index);
            prop_assert_eq!(packet.addresses, frame.between.addresses());
        }
    }
}

#[test]
fn a_tcp_header_split_over_fragments_is_cut_off() {
    // The tiny-fragment attack (RFC 1858, 3): the flags would be in the second fragment.
    for between in [v4(), v6()] {
        let frame = Frame::plain(between, syn());
        let fragments = frame.fragments(1, 7, &[]);
        assert_eq!(transport(&fragments[0]), Transport::CutOff);
        assert_eq!(
            transport(&fragments[1]),
            Transport::LaterFragment { tcp: true }
        );
    }
}

#[test]
fn the_longest_chain_is_followed_and_one_more_buries_the_packet() {
    for kind in [
        Extension::Options(0, 0),
        Extension::Options(43, 2),
        Extension::Options(60, 31),
        Extension::Options(135, 0),
        Extension::Options(139, 4),
        Extension::Options(140, 1),
        Extension::Authentication(0),
        Extension::Authentication(3),
        Extension::Atomic(9),
    ] {
        let mut frame = Frame::plain(v6(), udp());
        frame.extensions = vec![kind.clone(); MAX_EXTENSIONS];
        assert_eq!(
            parse_frame(frame.bytes().as_slice()),
            Ok(frame.expected()),
            "{kind:?}"
        );
        frame.extensions.push(kind.clone());
        assert_eq!(transport(&frame.bytes()), Transport::Buried, "{kind:?}");
    }
}

#[test]
fn an_extension_header_longer_than_the_packet_is_cut_off() {
    let mut frame = Frame::plain(v6(), udp());
    frame.extensions = vec![Extension::Options(60, 0)];
    let mut bytes = frame.bytes();
    // 8 + 4 * 8 bytes of options, where 8 + 24 are left.
    bytes[14 + 40 + 1] = 4;
    assert_eq!(transport(&bytes), Transport::CutOff);
    // Exactly as long as what is left: nothing remains for UDP.
    bytes[14 + 40 + 1] = 3;
    assert_eq!(transport(&bytes), Transport::CutOff);
}

#[test]
fn a_third_vlan_tag_is_not_followed() {
    let mut frame = Frame::plain(v4(), udp());
    frame.tags = vec![0x88a8, 0x8100];
    assert!(parse_frame(frame.bytes().as_slice()).is_ok());
    frame.tags.push(0x8100);
    assert_eq!(parse_frame(frame.bytes().as_slice()), Err(Unparsed::NotIp));
}

#[test]
fn other_ethertypes_are_not_ip() {
    let bytes = Frame::plain(v4(), udp()).bytes();
    // ARP, PPPoE session, LLDP, the length field of an 802.3 frame.
    for ethertype in [0x0806_u16, 0x8864, 0x88cc, 0x0040] {
        let mut bytes = bytes.clone();
        bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
        assert_eq!(
            parse_frame(bytes.as_slice()),
            Err(Unparsed::NotIp),
            "{ethertype:#06x}"
        );
    }
}

#[test]
fn a_version_that_contradicts_the_ethertype_is_malformed() {
    for between in [v4(), v6()] {
        let bytes = Frame::plain(between, udp()).bytes();
        for version in (0..16).filter(|version| *version != bytes[14] >> 4) {
            let mut bytes = bytes.clone();
            bytes[14] = version << 4 | (bytes[14] & 0xf);
            assert_eq!(
                parse_frame(bytes.as_slice()),
                Err(Unparsed::Malformed),
                "version {version}"
            );
        }
    }
}

#[test]
fn an_ipv4_header_shorter_than_twenty_bytes_or_longer_than_the_packet_is_malformed() {
    let bytes = Frame::plain(v4(), udp()).bytes();
    for words in 0..5 {
        let mut bytes = bytes.clone();
        bytes[14] = 0x40 | words;
        assert_eq!(parse_frame(bytes.as_slice()), Err(Unparsed::Malformed));
    }
    for total in 0..20_u16 {
        let mut bytes = bytes.clone();
        bytes[16..18].copy_from_slice(&total.to_be_bytes());
        assert_eq!(parse_frame(bytes.as_slice()), Err(Unparsed::Malformed));
    }
}

#[test]
fn a_connection_opens_with_syn_alone() {
    let opens = |flags| {
        let payload = Payload::Tcp {
            ports: (1, 2),
            flags,
            option_words: 0,
            data: 0,
        };
        match transport(&Frame::plain(v4(), payload).bytes()) {
            Transport::Tcp { opens, .. } => opens,
            other => panic!("not TCP: {other:?}"),
        }
    };
    let (fin, syn, rst, psh, ack, ece, cwr) = (1, 2, 4, 8, 16, 64, 128);
    assert!(opens(syn));
    // With ECN (RFC 3168, 6.1.1) and with data (TCP Fast Open).
    assert!(opens(syn | ece | cwr));
    assert!(opens(syn | psh));
    for flags in [
        syn | ack,
        ack,
        rst,
        rst | ack,
        fin | ack,
        syn | rst,
        0,
        psh | ack,
    ] {
        assert!(!opens(flags), "{flags:#04x}");
    }
}

#[test]
fn a_link_without_ethernet_header_is_parsed_from_its_first_byte() {
    for (between, ethertype) in [(v4(), ETHERTYPE_IPV4), (v6(), ETHERTYPE_IPV6)] {
        let frame = Frame::plain(between, udp());
        let expected = frame.expected();
        let packet = parse(&frame.bytes()[14..], ethertype, 0).expect("well-formed");
        assert_eq!(packet.transport, expected.transport);
        assert_eq!(packet.addresses, expected.addresses);
        assert_eq!(packet.transport_offset, expected.transport_offset - 14);
    }
}

#[test]
fn ipv4_addresses_are_mapped_and_ipv6_addresses_are_not() {
    let (source, destination) = v4().addresses().mapped();
    let mapped = |address: [u8; 4]| {
        let bytes = std::net::Ipv4Addr::from(address).to_ipv6_mapped().octets();
        std::array::from_fn(|word| {
            u32::from_ne_bytes(std::array::from_fn(|byte| bytes[4 * word + byte]))
        })
    };
    assert_eq!(source, mapped([192, 0, 2, 10]));
    assert_eq!(destination, mapped([203, 0, 113, 5]));
    let Addresses::V6 {
        source,
        destination,
    } = v6().addresses()
    else {
        panic!("not IPv6");
    };
    assert_eq!(v6().addresses().mapped(), (source, destination));
}

#[test]
fn a_later_fragment_of_another_protocol_is_another_protocol() {
    for between in [v4(), v6()] {
        let payload = Payload::Other {
            protocol: if matches!(between, Between::V4(..)) {
                1
            } else {
                58
            },
            data: 0,
        };
        let frame = Frame::plain(between, payload.clone());
        let place = Place {
            offset: 4,
            more: false,
            id: 3,
        };
        let bytes = frame.around(payload.protocol(), &[0; 8], Some(place));
        assert_eq!(transport(&bytes), Transport::Other);
    }
}

#[test]
fn neighbours_come_in_different_lanes() {
    let lanes = |all: Vec<Addresses>| all.iter().map(Addresses::lane).collect::<Vec<_>>();
    let v4 = (1..=16).map(|n| Addresses::v4(u32::from_ne_bytes([192, 168, 1, n]), 0));
    let v6 = (1..=16_u16).map(|n| {
        let address: std::net::Ipv6Addr = format!("2001:db8::{n:x}").parse().unwrap();
        let word = |at: usize| u32::from_ne_bytes(address.octets()[at..at + 4].try_into().unwrap());
        Addresses::V6 {
            source: [word(0), word(4), word(8), word(12)],
            destination: [0; 4],
        }
    });
    for lanes in [lanes(v4.collect()), lanes(v6.collect())] {
        assert!(lanes.iter().all(|lane| *lane < LANES), "{lanes:?}");
        let most = (0..LANES).map(|lane| lanes.iter().filter(|other| **other == lane).count());
        assert!(most.max() <= Some(2), "{lanes:?}");
    }
    // Where it goes has no say.
    let one = |destination| Addresses::v4(7, destination).lane();
    assert_eq!(one(1), one(u32::MAX));
}
