//! Datagrams, against a server's side.

use proptest::collection::vec;
use proptest::prelude::*;
use std::net::IpAddr;

use super::*;
use crate::data::outbound::shadowsocks::cipher::{Block, Extended, body_key, seal};
use crate::data::outbound::shadowsocks::packets::session_of;

const OURS: u64 = 0x0102_0304_0506_0708;
const NOW: u64 = 1_800_000_000;

/// A datagram of the server's session `theirs` with this body behind its number.
fn packet(keys: &Keys, theirs: u64, count: u64, body: &[u8]) -> Vec<u8> {
    let method = keys.method();
    let mut number = [0; 16];
    number[..8].copy_from_slice(&theirs.to_be_bytes());
    number[8..].copy_from_slice(&count.to_be_bytes());
    if method == Method::Blake3Chacha20Poly1305 {
        let nonce = [5; 24];
        let mut out = [&nonce[..], &number, body].concat();
        Extended::new(keys.key()).seal(nonce, &mut out, 24);
        return out;
    }
    let mut out = Block::new(keys.key()).encrypt(number).to_vec();
    out.extend(body);
    let key = keys.subkey(&theirs.to_be_bytes());
    let nonce = *number.last_chunk().expect("16 bytes");
    seal(&body_key(method, key.as_slice()), nonce, &mut out, 16);
    out
}

/// A server's message for our session.
fn message(padding: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![FROM_SERVER];
    body.extend(NOW.to_be_bytes());
    body.extend(OURS.to_be_bytes());
    body.extend(padding.to_be_bytes());
    body.resize(body.len() + usize::from(padding), 1);
    wire::put_target(&mut body, target().into());
    body.extend(payload);
    body
}

fn keys_2022() -> impl Iterator<Item = Arc<Keys>> {
    all_keys()
        .into_iter()
        .filter(|keys| keys.method().is_2022())
}

#[test]
fn a_server_that_was_restarted_is_heard_and_its_past_is_not() {
    for keys in keys_2022() {
        let (_, mut opener) = session_of(&keys, OURS);
        let mut open = |theirs, count, now: u64| {
            let mut body = message(3, b"text");
            body[1..9].copy_from_slice(&now.to_be_bytes());
            let mut out = Vec::new();
            let opened = opener.open_at(&packet(&keys, theirs, count, &body), &mut out, now);
            opened.map(|(peer, payload)| {
                assert_eq!((peer, &out[payload]), (Some(target()), &b"text"[..]));
            })
        };
        assert_eq!(open(1, 5, NOW), Ok(()));
        assert_eq!(open(1, 4, NOW), Ok(()));
        assert_eq!(open(1, 5, NOW), Err(PacketFault::Replayed));
        // A new session, whose numbers begin anew, while the last words of the old one come.
        assert_eq!(open(2, 5, NOW + 1), Ok(()));
        assert_eq!(open(1, 6, NOW + 2), Ok(()));
        assert_eq!(open(2, 5, NOW + 2), Err(PacketFault::Replayed));
        // A third one is to wait until nothing came of the first one for a minute.
        assert_eq!(open(3, 0, NOW + 61), Err(PacketFault::Sessions));
        assert_eq!(open(3, 0, NOW + 62), Ok(()));
        assert_eq!(open(2, 6, NOW + 63), Ok(()));
        assert_eq!(open(1, 7, NOW + 64), Err(PacketFault::Sessions));
    }
}

#[test]
fn what_is_refused_is_not_remembered() {
    for keys in keys_2022() {
        let (_, mut opener) = session_of(&keys, OURS);
        let mut open = |count, body: &[u8]| {
            let mut out = Vec::new();
            opener
                .open_at(&packet(&keys, 1, count, body), &mut out, NOW)
                .map(|(peer, _)| peer)
        };
        let good = message(0, b"");
        let with = |at: usize, byte: u8| {
            let mut body = good.clone();
            body[at] = byte;
            body
        };
        assert_eq!(open(9000, &with(0, FROM_CLIENT)), Err(PacketFault::Type(0)));
        assert!(matches!(
            open(9000, &with(1, 1)),
            Err(PacketFault::Clock(_))
        ));
        assert_eq!(open(9000, &with(9, 7)), Err(PacketFault::Foreign));
        assert_eq!(open(9000, &with(17, 7)), Err(PacketFault::Short), "padding");
        assert_eq!(open(9000, &good[..18]), Err(PacketFault::Short));
        assert_eq!(open(0, &good), Ok(Some(target())));
        assert_eq!(open(1, &with(19, 9)), Err(PacketFault::Sender));
        assert_eq!(open(2, &good[..22]), Err(PacketFault::Short));
        // Names are no senders that a device could make sense of.
        let named = [&good[..19], b"\x03\x01x\x00\x50text"].concat();
        assert_eq!(open(3, &named), Ok(None));
    }
}

#[test]
fn sealers_number_their_datagrams_and_salt_them() {
    for keys in all_keys() {
        let (sealer, _) = session_of(&keys, OURS);
        let (mut one, mut two) = (Vec::new(), Vec::new());
        sealer.seal_at(target(), b"text", &mut one, NOW);
        sealer.seal_at(target(), b"text", &mut two, NOW);
        assert_eq!(one.len(), two.len());
        let same = one.iter().zip(&two).filter(|(one, two)| one == two).count();
        assert!(same < 12, "{same} bytes of {} are the same", one.len());
        assert!(!format!("{sealer:?} {keys:?}").contains("AAEC"));
    }
}

proptest! {
    #[test]
    fn datagrams_of_sip007_come_back_as_they_were_sent(
        index in 0..3_usize, ip: IpAddr, port: u16, payload in vec(any::<u8>(), 0..1500), flip: usize,
    ) {
        let keys = &all_keys()[index];
        let (sealer, mut opener) = session(keys);
        let (mut sealed, mut out) = (Vec::new(), Vec::new());
        sealer.seal((ip, port).into(), &payload, &mut sealed);
        let (peer, range) = opener.open(&sealed, &mut out).expect("our own");
        prop_assert_eq!(peer, Some((ip.to_canonical(), port).into()));
        prop_assert_eq!(&out[range], payload);
        let at = flip % (8 * sealed.len());
        sealed[at / 8] ^= 1 << (at % 8);
        prop_assert_eq!(opener.open(&sealed, &mut out), Err(PacketFault::Forged));
    }

    #[test]
    fn no_bytes_break_an_opener_even_with_our_key(
        index: usize, bytes in vec(any::<u8>(), 0..100), cut in 0..80_usize, padding in 0..40_u16,
    ) {
        let keys = &all_keys()[index % 8];
        let (_, mut opener) = session_of(keys, OURS);
        let mut out = Vec::new();
        let _ = opener.open_at(&bytes, &mut out, NOW);
        if keys.method().is_2022() {
            let body = message(padding, b"payload");
            for body in [&bytes[..], &body[..cut.min(body.len())]] {
                let mut out = Vec::new();
                if let Ok((_, range)) = opener.open_at(&packet(keys, 1, 1, body), &mut out, NOW) {
                    prop_assert!(out.get(range).is_some());
                }
            }
        }
    }
}
