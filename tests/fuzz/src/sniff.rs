//! Sniffers for TLS, HTTP and QUIC.

use std::sync::LazyLock;

use rustls::Tls13CipherSuite;
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::quic::{Keys, Version};
use tproxy_userspace::data::sniff::quic::MOST_DATAGRAMS;
use tproxy_userspace::data::sniff::{
    self, Found, LIMIT, Progress, Protocol, Quic, Tcp, tls as hello,
};
use tproxy_userspace::policy::domain::name::normalize;

use crate::bytes::Input;

/// The first byte says how large the pieces are in which the rest comes.
pub fn tcp(bytes: &[u8]) {
    let mut input = Input(bytes);
    let size = usize::from(input.byte()) + 1;
    let whole = sniff::tcp(input.0);
    named(&whole);
    let mut sniffer = Tcp::new();
    for piece in input.0.chunks(size) {
        sniffer.feed(piece);
        assert!(sniffer.memory() <= 2 * LIMIT, "{}", sniffer.memory());
    }
    assert_eq!(*sniffer.feed(b""), whole, "pieces of {size}");
    assert!(whole == Progress::NeedMore || sniffer.memory() == 0);
}

/// A handshake message in records whose size the first byte says.
pub fn tls(bytes: &[u8]) {
    let mut input = Input(bytes);
    let size = usize::from(input.byte()) * 8 + 1;
    let message = &input.0[..input.0.len().min(LIMIT / 8)];
    let records: Vec<u8> = message
        .chunks(size)
        .flat_map(|part| {
            let length = u16::try_from(part.len())
                .expect("a part is short")
                .to_be_bytes();
            [&[hello::HANDSHAKE, 3, 1, length[0], length[1]], part].concat()
        })
        .collect();
    let alone = hello::client_hello(message, Protocol::Tls);
    named(&alone);
    if !message.is_empty() {
        assert_eq!(
            sniff::tcp(&records[..records.len().min(LIMIT)]),
            alone,
            "records of {size}"
        );
    }
}

/// Datagrams, each behind its length.
pub fn quic_datagrams(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut flow = Flow::new();
    while !input.is_empty() {
        flow.feed(input.piece());
    }
}

/// The payloads of Initial packets, each behind its length and encrypted here. If the first byte is odd they are not frames
/// but how a client hello is cut into frames, which must not change what is found.
pub fn quic_frames(bytes: &[u8]) {
    let mut input = Input(bytes);
    let cut = input.byte() & 1 == 1;
    let mut flow = Flow::new();
    if cut {
        let message = &input.piece();
        let message = &message[..message.len().min(1 << 12)];
        let mut frames = Vec::new();
        let step = usize::from(input.byte()) + 64;
        let mut starts: Vec<usize> = (0..message.len()).step_by(step).collect();
        // A shuffle that the bytes choose.
        for index in (1..starts.len()).rev() {
            starts.swap(index, usize::from(input.byte()) % (index + 1));
        }
        for start in starts {
            let end = message.len().min(start + step + usize::from(input.byte()));
            frames.push(crypto(start, &message[start..end]));
        }
        for (number, frames) in (0..).zip(frames.chunks(6)) {
            flow.feed(&sealed(number, &frames.concat()));
        }
        if !message.is_empty() {
            assert_eq!(flow.progress, hello::client_hello(message, Protocol::Quic));
        }
        return;
    }
    let mut number = 0;
    while !input.is_empty() && number <= MOST_DATAGRAMS {
        flow.feed(&sealed(number, input.piece()));
        number += 1;
    }
}

/// A flow, and what is known of it so far.
struct Flow {
    sniffer: Quic,
    progress: Progress,
}

impl Flow {
    fn new() -> Self {
        Self {
            sniffer: Quic::new(),
            progress: Progress::NeedMore,
        }
    }

    fn feed(&mut self, datagram: &[u8]) {
        let progress = self.sniffer.feed(datagram).clone();
        assert!(
            self.progress == Progress::NeedMore || self.progress == progress,
            "it was done with {:?}, and now {progress:?}",
            self.progress
        );
        named(&progress);
        let memory = self.sniffer.memory();
        assert!(memory <= Quic::MOST_MEMORY, "{memory}");
        assert!(progress == Progress::NeedMore || memory == 0, "{memory}");
        self.progress = progress;
    }
}

/// A name is a name, as names are compared.
fn named(progress: &Progress) {
    if let Progress::Name(Found { name, .. }) = progress {
        assert_eq!(normalize(name).as_ref(), Ok(name));
        assert!(
            name.parse::<std::net::IpAddr>().is_err(),
            "{name} is an address"
        );
    }
}

const ID: &[u8] = b"12345678";

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let suite = TLS13_AES_128_GCM_SHA256
        .tls13()
        .and_then(Tls13CipherSuite::quic_suite);
    let suite = suite.expect("QUIC has this suite for its first packets");
    suite.keys(ID, rustls::Side::Client, Version::V1)
});

/// A number of QUIC in two bytes.
fn number(number: usize) -> [u8; 2] {
    let number = u16::try_from(number).expect("numbers are small here");
    assert!(number < 0x4000);
    (0x4000 | number).to_be_bytes()
}

fn crypto(offset: usize, data: &[u8]) -> Vec<u8> {
    [&[6][..], &number(offset), &number(data.len()), data].concat()
}

/// An Initial packet of a client (RFC 9001 section 5), encrypted by rustls.
pub fn sealed(packet_number: u32, frames: &[u8]) -> Vec<u8> {
    let frames = &frames[..frames.len().min(1 << 12)];
    // The sample needs some bytes.
    let mut payload = [frames, &[0; 4]].concat();
    let mut header = vec![0xc3, 0, 0, 0, 1, ID.len() as u8];
    header.extend(ID);
    header.extend([0, 0]);
    header.extend(number(4 + payload.len() + 16));
    header.extend(packet_number.to_be_bytes());
    let keys = &KEYS.local;
    let tag = keys
        .packet
        .encrypt_in_place(packet_number.into(), &header, &mut payload)
        .expect("few packets are encrypted");
    let number_at = header.len() - 4;
    let mut packet = [&header[..], &payload, tag.as_ref()].concat();
    let sample = packet[number_at + 4..][..16].to_vec();
    let (start, rest) = packet.split_at_mut(number_at);
    keys.header
        .encrypt_in_place(&sample, &mut start[0], &mut rest[..4])
        .expect("the sample is long enough");
    packet
}
