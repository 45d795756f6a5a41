//! A datagram and its fragments go one way.

mod frames;
mod gateway;

use frames::{Between, Extension, Frame, Payload, any_extension, any_tags, any_udp};
use gateway::{Gateway, ip};
use proptest::prelude::*;
use tproxy_common::abi::Settings;
use tproxy_common::packet::parse_frame;
use tproxy_common::verdict::{Target, Verdict, decide};

fn any_pair() -> impl Strategy<Value = Between> {
    let v6 = |word: u16, host: u64| {
        let host = host.to_be_bytes();
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        bytes[4..6].copy_from_slice(&word.to_be_bytes());
        bytes[8..].copy_from_slice(&host);
        std::net::Ipv6Addr::from(bytes)
    };
    let prefix = prop::sample::select(vec![1_u16, 0xb, 5, 0xf]);
    prop_oneof![
        frames::any_between(),
        // From the LAN, to the near, the bypassed and the far.
        (
            any::<u8>(),
            prop::sample::select(vec![[192, 0, 2], [198, 51, 100], [203, 0, 113], [10, 0, 0]]),
            any::<u8>()
        )
            .prop_map(|(host, [a, b, c], d)| Between::V4(
                [192, 0, 2, host].into(),
                [a, b, c, d].into()
            )),
        (any::<u64>(), prefix, any::<u64>())
            .prop_map(move |(from, word, to)| Between::V6(v6(1, from), v6(word, to))),
    ]
}

proptest! {
    /// A datagram whose head goes one way and whose tail goes another arrives nowhere, and leaks.
    #[test]
    fn all_fragments_of_a_datagram_share_one_verdict(
        tags in any_tags(),
        between in any_pair(),
        option_words in 0..=10_u8,
        extensions in prop::collection::vec(any_extension(), 0..4),
        after in prop::collection::vec(any_extension(), 0..3),
        payload in any_udp(8..1500),
        size in 4..100_usize,
        private in any::<bool>(),
    ) {
        let frame = Frame { tags, between, option_words, extensions, payload };
        let mut gateway = Gateway::new();
        if !private {
            gateway.settings = Settings::default();
        }
        // An extension header that does not fit the first fragment is refused by every receiver
        // (RFC 7112), so it is no datagram.
        let front = frames::chain(&after, 17, &[]).1.len() + 8;
        let size = size.max(front.div_ceil(8));
        let fragments = frame.fragments(size, 99, &after);
        let verdicts = fragments
            .iter()
            .map(|bytes| decide(&parse_frame(bytes.as_slice()).expect("well-formed"), &gateway))
            .collect::<Vec<_>>();
        prop_assert!(
            verdicts.windows(2).all(|pair| pair[0] == pair[1]),
            "{:?}", verdicts
        );
    }

    /// The same for a datagram that need not be divided: its destination alone decides.
    #[test]
    fn a_datagram_goes_the_same_way_divided_or_not(between in any_pair(), payload in any_udp(100..200)) {
        let frame = Frame::plain(between, payload);
        let gateway = Gateway::new();
        let parsed = |bytes: &[u8]| parse_frame(bytes).expect("well-formed");
        let verdict = |bytes: &[u8]| decide(&parsed(bytes), &gateway);
        let whole = verdict(&frame.bytes());
        for fragment in frame.fragments(5, 1, &[]) {
            prop_assert_eq!(parsed(&fragment).listener(), parsed(&frame.bytes()).listener());
            match (whole, verdict(&fragment)) {
                (
                    Verdict::Steer(Target::Listener),
                    Verdict::Steer(Target::Reassembly),
                ) => {}
                (one, other) => prop_assert_eq!(one, other),
            }
        }
    }
}

#[test]
fn a_fragmented_datagram_with_options_behind_the_fragment_header_is_not_leaked() {
    // Only the first fragment shows that it is UDP.
    let between = Between::new(ip("2001:db8:1::10"), ip("2001:db8:5::5"));
    let payload = Payload::Udp {
        ports: (4000, 53),
        data: 200,
    };
    let frame = Frame::plain(between, payload);
    let gateway = Gateway::new();
    for fragment in frame.fragments(4, 5, &[Extension::Options(60, 0)]) {
        let packet = parse_frame(fragment.as_slice()).expect("it has addresses");
        assert!(
            !matches!(decide(&packet, &gateway), Verdict::Pass(_)),
            "{packet:?}"
        );
    }
}
