//! Flows of quinn, and packets made with the keys of rustls.

use std::time::Instant;

use proptest::prelude::*;

use super::super::tests::{hello, named, sni};
use super::keys::tests::bytes;
use super::samples::*;
use super::*;

fn name(name: &str) -> Progress {
    named(name, Protocol::Quic)
}

#[test]
fn the_flows_of_quinn_are_read() {
    for (server, protocols, least) in [("www.Example.com", 1, 1), ("x.example", 200, 2)] {
        let datagrams = quinn_datagrams(server, protocols);
        assert!(datagrams.len() >= least, "{}", datagrams.len());
        let found = name(&server.to_lowercase());
        let mut sniffer = Quic::new();
        let (last, first) = datagrams.split_last().unwrap();
        for datagram in first {
            assert_eq!(*sniffer.feed(datagram), Progress::NeedMore);
            assert!(sniffer.memory() > 0);
        }
        assert_eq!(*sniffer.feed(last), found);
        assert_eq!(sniffer.memory(), 0);
        assert_eq!(*sniffer.feed(b"more"), found);

        // The first may be lost and come again.
        let mut sniffer = Quic::default();
        for datagram in datagrams.iter().rev().chain(&datagrams) {
            sniffer.feed(datagram);
        }
        assert_eq!(*sniffer.feed(b""), found);
    }
}

/// As browsers do it: 1,700 bytes over two datagrams, in frames that are cut and shuffled, with PING and PADDING
/// among them.
#[test]
fn shuffled_frames_over_two_datagrams_are_read() {
    let message = hello(&[(21, vec![7; 1_650]), sni("www.example.com")]);
    assert!(message.len() > 1_700);
    for version in [Version::V1, Version::V2] {
        let kind = initial_kind(version);
        let mut frames: Vec<Vec<u8>> = (0..message.len())
            .step_by(90)
            .map(|start| crypto(&message, start, 90.min(message.len() - start)))
            .collect();
        // Some overlap, some stand twice, and between them lies what does not matter.
        frames.push(crypto(&message, 70, 200));
        frames.push(crypto(&message, 0, 10));
        frames.push(vec![1, 0, 0, 0]);
        frames.push(vec![2, 5, 0, 1, 0, 1, 0]);
        frames.push(vec![3, 5, 0, 0, 0, 1, 2, 3]);
        let count = frames.len();
        let order: Vec<usize> = (0..count).map(|index| index * 7 % count).collect();
        assert_ne!(count % 7, 0, "all of them are in the order");
        let shuffled: Vec<&[u8]> = order.iter().map(|index| &*frames[*index]).collect();
        let (first, second) = shuffled.split_at(count / 2);
        let first = sealed(version, kind, ID, 1, &first.concat());
        let second = sealed(version, kind, ID, 2, &second.concat());
        for datagrams in [[&first, &second], [&second, &first]] {
            let mut sniffer = Quic::new();
            assert_eq!(*sniffer.feed(datagrams[0]), Progress::NeedMore);
            assert_eq!(*sniffer.feed(datagrams[1]), name("www.example.com"));
        }
        // Both in one datagram, with others between them.
        let other = sealed(version, kind + 1, ID, 1, &[0; 50]);
        let together = [&*first, &other, &second, &[0; 20]].concat();
        assert_eq!(*Quic::new().feed(&together), name("www.example.com"));
    }
}

/// RFC 9001 appendix A.2 and RFC 9369 appendix A.2: one payload in both versions. Beginning and tag of the protected
/// packets stand for all of them.
#[test]
fn the_packets_of_the_standards_are_read() {
    let mut frames = bytes(
        "060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e86804fe3a47f06a2b69484c000004\
         13011302010000c000000010000e00000b6578616d706c652e636f6dff01000100000a00080006001d00170018\
         00100007000504616c706e000500050100000000003300260024001d00209370b2c9caa47fbabaf4559fedba75\
         3de171fa71f50f1ce15d43e994ec74d748002b0003020304000d0010000e040305030603020308040805080600\
         2d00020101001c00024001003900320408ffffffffffffffff05048000ffff07048000ffff0801100104800075\
         300901100f088394c8f03e51570806048000ffff",
    );
    frames.resize(1162, 0);
    for (version, header, start, tag) in [
        (
            Version::V1,
            "c300000001088394c8f03e5157080000449e00000002",
            "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11d242b123dc9b",
            "e221af44860018ab0856972e194cd934",
        ),
        (
            Version::V2,
            "d36b3343cf088394c8f03e5157080000449e00000002",
            "d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485dd04de806071",
            "a18b2faa745b6fe189cf772a9f84cbfc",
        ),
    ] {
        let packet = protected(version, ID, &bytes(header), 4, 2, &frames);
        assert_eq!(packet.len(), 1200);
        assert!(packet.starts_with(&bytes(start)), "{version:?}");
        assert!(packet.ends_with(&bytes(tag)), "{version:?}");
        assert_eq!(*Quic::new().feed(&packet), name("example.com"));
    }
}

#[test]
fn a_client_goes_on_with_another_connection_id() {
    let message = hello(&[sni("a.example")]);
    let (first, second) = (
        crypto(&message, 0, 20),
        crypto(&message, 20, message.len() - 20),
    );
    // After the server's answer the keys stay, after a Retry they are new.
    for keys_of in [ID, b"of the server"] {
        let mut sniffer = Quic::new();
        assert_eq!(*sniffer.feed(&initial(0, &first)), Progress::NeedMore);
        // Whatever is no packet of this client changes nothing.
        assert_eq!(*sniffer.feed(b"\x40 short header"), Progress::NeedMore);
        let mut forged = initial(1, &[&second[..], &[0; 30]].concat());
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(*sniffer.feed(&forged), Progress::NeedMore);
        let last = sealed(Version::V1, 0, keys_of, 1, &second);
        assert_eq!(*sniffer.feed(&last), name("a.example"));
    }
}

#[test]
fn other_packets_are_not_this() {
    let message = hello(&[sni("a.example")]);
    let whole = crypto(&message, 0, message.len());
    let good = initial(0, &whole);
    assert_eq!(*Quic::new().feed(&good), name("a.example"));
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let no_name = hello(&[(21, vec![0; 9])]);
    for (what, datagram) in [
        ("nothing", vec![]),
        ("a short header", changed(0, 0x40)),
        ("version negotiation", changed(4, 0)),
        ("a draft", changed(1, 0xff)),
        ("a long connection ID", changed(5, 21)),
        (
            "a short connection ID",
            sealed(Version::V1, 0, &ID[..7], 0, &whole),
        ),
        ("another connection ID", changed(7, 0)),
        ("Handshake", sealed(Version::V1, 2, ID, 0, &whole)),
        ("Retry", sealed(Version::V1, 3, ID, 0, &whole)),
        (
            "a tag that is wrong",
            changed(good.len() - 1, !good[good.len() - 1]),
        ),
        ("cut off", good[..good.len() - 1].to_vec()),
        ("CONNECTION_CLOSE", initial(0, &[0x1c, 0, 0, 0, 0, 0])),
        ("a STREAM frame", initial(0, &[0x08, 0, 0, 0, 0, 0])),
        ("a frame that is cut off", initial(0, &[6, 0, 60, 0, 0, 0])),
        (
            "a far offset",
            initial(0, &[&[6, 0x80, 1, 0, 0][..], &[1, 0]].concat()),
        ),
        (
            "no server name",
            initial(0, &crypto(&no_name, 0, no_name.len())),
        ),
        ("a server hello", initial(0, &crypto(&[2; 50], 0, 50))),
        (
            "DNS",
            b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01".to_vec(),
        ),
    ] {
        assert_eq!(*Quic::new().feed(&datagram), Progress::NotThis, "{what}");
    }
    // 0-RTT may overtake the first Initial.
    let mut sniffer = Quic::new();
    let early = sealed(Version::V1, 1, ID, 0, &whole);
    assert_eq!(*sniffer.feed(&early), Progress::NeedMore);
    assert_eq!(*sniffer.feed(&good), name("a.example"));
}

#[test]
fn packet_numbers_are_completed() {
    for (truncated, length, largest, number) in [
        (0, 1, None, 0),
        (0xff, 1, None, 0xff),
        (0x9b32, 2, Some(0xa82f_30ea), 0xa82f_9b32),
        (1, 1, Some(0xfe), 0x101),
        (0xfe, 1, Some(0x101), 0xfe),
        (0xffff_ffff, 4, None, 0xffff_ffff),
    ] {
        assert_eq!(packet_number(truncated, length, largest), number);
    }
}

#[test]
fn a_flow_without_end_is_given_up() {
    let mut sniffer = Quic::new();
    for packet in 0..MOST_DATAGRAMS as u16 - 1 {
        assert_eq!(
            *sniffer.feed(&initial(packet, &[1; 20])),
            Progress::NeedMore
        );
    }
    assert_eq!(*sniffer.feed(&initial(99, &[1; 20])), Progress::NotThis);
    assert_eq!(sniffer.memory(), 0);
}

fn any_frames() -> impl Strategy<Value = Vec<u8>> {
    let message = hello(&[sni("a.example"), (21, vec![0; 500])]);
    let length = message.len();
    let one = prop_oneof![
        (0..length, 0..length).prop_map(move |(start, end)| {
            let (start, end) = (start.min(end), start.max(end));
            crypto(&message, start, end - start)
        }),
        (0..LIMIT, prop::collection::vec(any::<u8>(), 0..30)).prop_map(|(offset, data)| {
            [
                &[6][..],
                &number(offset % 0x3fff),
                &number(data.len()),
                &data,
            ]
            .concat()
        }),
        Just(vec![0; 9]),
        prop::collection::vec(any::<u8>(), 0..9),
    ];
    prop::collection::vec(one, 1..5).prop_map(|frames| frames.concat())
}

const STARTS: &[&[u8]] = &[b"", b"\xc0\0\0\0\x01", b"\xd0\x6b\x33\x43\xcf\x08"];

proptest! {
    #[test]
    fn no_frames_make_it_panic(packets in prop::collection::vec(any_frames(), 1..12)) {
        let mut sniffer = Quic::new();
        for (number, frames) in packets.iter().enumerate() {
            sniffer.feed(&initial(number as u16, &[&**frames, &[0; 4]].concat()));
            prop_assert!(sniffer.memory() <= Quic::MOST_MEMORY);
        }
    }

    #[test]
    fn no_datagrams_make_it_panic(
        datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..4),
        start in prop::sample::select(STARTS),
        slips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut sniffer = Quic::new();
        for datagram in datagrams {
            sniffer.feed(&[start, &datagram].concat());
        }
        let message = hello(&[sni("a.example")]);
        let mut datagram = initial(0, &crypto(&message, 0, message.len()));
        for (at, byte) in slips {
            let at = at.index(datagram.len());
            datagram[at] = byte;
        }
        let cut = &datagram[..cut.index(datagram.len())];
        prop_assert!(!matches!(Quic::new().feed(cut), Progress::Name(_)));
        Quic::new().feed(&datagram);
    }
}

/// `cargo test --release -p tproxy-userspace --lib data::sniff -- --ignored --nocapture`
#[test]
#[ignore = "prints figures; run it by hand in release mode"]
fn figures() {
    let rounds = 10_000;
    let quic = quinn_datagrams("www.example.com", 1);
    let message = hello(&[(21, vec![7; 1_650]), sni("www.example.com")]);
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    let tls = [&[22, 3, 1, length[0], length[1]], &*message].concat();
    let http = b"GET / HTTP/1.1\r\nUser-Agent: a\r\nHost: www.example.com\r\n\r\n";
    let start = Instant::now();
    for _ in 0..rounds {
        let mut sniffer = Quic::new();
        let last = quic
            .iter()
            .map(|datagram| sniffer.feed(datagram).clone())
            .last();
        assert_eq!(last, Some(name("www.example.com")));
    }
    println!(
        "QUIC: {:?} a flow of {} datagrams",
        start.elapsed() / rounds,
        quic.len()
    );
    for (what, bytes) in [("TLS, 1,700 bytes", &*tls), ("HTTP", http)] {
        let start = Instant::now();
        for _ in 0..rounds {
            let found = super::super::tcp(std::hint::black_box(bytes));
            assert!(matches!(found, Progress::Name(_)));
        }
        println!("{what}: {:?}", start.elapsed() / rounds);
    }
}
