//! Datagrams of QUIC clients for tests: of quinn, and packets made with the keys of rustls.

use std::sync::Arc;
use std::time::Instant;

use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{ClientConfig, Endpoint, EndpointConfig};
use rustls::quic::Version as RustlsVersion;

use super::super::tests::{hello, rustls_config, sni};
use super::packet::Version;

/// The connection ID of the samples of RFC 9001.
pub(super) const ID: &[u8] = &[0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];

/// The first datagrams of a connection of quinn.
pub fn quinn_datagrams(server: &str, protocols: usize) -> Vec<Vec<u8>> {
    let crypto = QuicClientConfig::try_from(rustls_config(protocols)).unwrap();
    let config = ClientConfig::new(Arc::new(crypto));
    let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None);
    let now = Instant::now();
    let remote = "192.0.2.1:443".parse().unwrap();
    let (_, mut connection) = endpoint.connect(now, config, remote, server).unwrap();
    let mut datagrams = Vec::new();
    loop {
        let mut datagram = Vec::new();
        if connection.poll_transmit(now, 1, &mut datagram).is_none() {
            return datagrams;
        }
        datagrams.push(datagram);
    }
}

pub(super) fn number(number: usize) -> [u8; 2] {
    (0x4000 | u16::try_from(number).unwrap()).to_be_bytes()
}

pub(super) fn crypto(message: &[u8], offset: usize, length: usize) -> Vec<u8> {
    let data = &message[offset..offset + length];
    [&[6][..], &number(offset), &number(length), data].concat()
}

pub(super) fn initial_kind(version: Version) -> u8 {
    match version {
        Version::V1 => 0,
        Version::V2 => 1,
    }
}

/// A packet of a client with this type. The packet number has two bytes.
pub(super) fn sealed(
    version: Version,
    kind: u8,
    id: &[u8],
    packet_number: u16,
    frames: &[u8],
) -> Vec<u8> {
    let number_of_version = match version {
        Version::V1 => [0, 0, 0, 1],
        Version::V2 => [0x6b, 0x33, 0x43, 0xcf],
    };
    let mut header = vec![0xc0 | kind << 4 | 1];
    header.extend_from_slice(&number_of_version);
    header.push(id.len() as u8);
    header.extend_from_slice(id);
    // Source connection ID, and the token that only Initial packets have.
    header.extend_from_slice(&[3, 1, 2, 3]);
    if kind == initial_kind(version) {
        header.extend_from_slice(&[2, 9, 9]);
    }
    header.extend_from_slice(&number(2 + frames.len() + 16));
    header.extend_from_slice(&packet_number.to_be_bytes());
    protected(version, id, &header, 2, packet_number, frames)
}

/// A packet with this header, whose last bytes are the packet number, protected by rustls.
pub(super) fn protected(
    version: Version,
    id: &[u8],
    header: &[u8],
    number_length: usize,
    packet_number: u16,
    frames: &[u8],
) -> Vec<u8> {
    let suite = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256
        .tls13()
        .unwrap()
        .quic_suite()
        .unwrap();
    let rustls_version = match version {
        Version::V1 => RustlsVersion::V1,
        Version::V2 => RustlsVersion::V2,
    };
    let keys = suite.keys(id, rustls::Side::Client, rustls_version).local;
    let mut payload = frames.to_vec();
    let tag = keys
        .packet
        .encrypt_in_place(packet_number.into(), header, &mut payload)
        .unwrap();
    let mut packet = [header, &payload, tag.as_ref()].concat();
    let number_at = header.len() - number_length;
    let sample = packet[number_at + 4..][..16].to_vec();
    let (start, rest) = packet.split_at_mut(number_at);
    keys.header
        .encrypt_in_place(&sample, &mut start[0], &mut rest[..number_length])
        .unwrap();
    packet
}

pub(super) fn initial(packet_number: u16, frames: &[u8]) -> Vec<u8> {
    sealed(Version::V1, 0, ID, packet_number, frames)
}

/// A client hello of 1,700 bytes that asks for this name, over two datagrams. Neither alone has the name.
pub fn two_datagrams(name: &str) -> [Vec<u8>; 2] {
    let message = hello(&[(21, vec![7; 1_650]), sni(name)]);
    assert!(message.len() > 1_700);
    let half = message.len() / 2;
    [(0, 0, half), (1, half, message.len() - half)]
        .map(|(packet, offset, length)| initial(packet, &crypto(&message, offset, length)))
}

/// A datagram whose client hello never comes to its end.
pub fn incomplete() -> Vec<u8> {
    initial(0, &[1; 20])
}
