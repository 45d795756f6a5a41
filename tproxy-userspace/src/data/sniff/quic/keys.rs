//! The keys of Initial packets (RFC 9001 section 5, RFC 9369 section 3.3). They follow from the first destination
//! connection ID, so anybody on the path can read these packets.

use aes::Aes128;
use aes::cipher::{BlockCipherEncrypt as _, KeyInit as _};
use aes_gcm::aead::AeadInOut as _;
use aes_gcm::{Aes128Gcm, Nonce, Tag};
use hkdf::Hkdf;
use sha2::Sha256;

use super::packet::Version;

/// Bytes of the sample for header protection, and of the tag behind the ciphertext.
pub(super) const SAMPLE: usize = 16;
pub(super) const TAG: usize = 16;
const NONCE: usize = 12;

/// What a client's Initial packets are protected with.
pub(super) struct Keys {
    payload: Aes128Gcm,
    iv: [u8; NONCE],
    header: Aes128,
}

impl Keys {
    /// The keys of a client that sends to this connection ID first.
    pub fn client(version: Version, destination_id: &[u8]) -> Self {
        let (salt, labels) = match version {
            Version::V1 => (&SALT_V1, ["quic key", "quic iv", "quic hp"]),
            Version::V2 => (&SALT_V2, ["quicv2 key", "quicv2 iv", "quicv2 hp"]),
        };
        let initial = Hkdf::<Sha256>::new(Some(salt), destination_id);
        let mut secret = [0; 32];
        expand(&initial, "client in", &mut secret);
        let client = Hkdf::<Sha256>::from_prk(&secret).expect("a secret is as long as a hash");
        let (mut key, mut iv, mut header) = ([0; 16], [0; NONCE], [0; 16]);
        expand(&client, labels[0], &mut key);
        expand(&client, labels[1], &mut iv);
        expand(&client, labels[2], &mut header);
        Self {
            payload: Aes128Gcm::new(&key.into()),
            iv,
            header: Aes128::new(&header.into()),
        }
    }

    /// The mask that protects a header (RFC 9001 section 5.4.3): for the first byte and up to four more.
    pub fn mask(&self, sample: [u8; SAMPLE]) -> [u8; 5] {
        let mut block = sample.into();
        self.header.encrypt_block(&mut block);
        std::array::from_fn(|at| block[at])
    }

    /// Deciphers a payload with its tag in its place. None if it was not made with these keys.
    pub fn open<'p>(&self, number: u64, header: &[u8], payload: &'p mut [u8]) -> Option<&'p [u8]> {
        let (text, tag) = payload.split_last_chunk_mut::<TAG>()?;
        let mut nonce = self.iv;
        for (byte, number) in nonce[NONCE - 8..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= number;
        }
        self.payload
            .decrypt_inout_detached(
                &Nonce::from(nonce),
                header,
                (&mut *text).into(),
                &Tag::from(*tag),
            )
            .ok()?;
        Some(text)
    }
}

const SALT_V1: [u8; 20] = [
    0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad,
    0xcc, 0xbb, 0x7f, 0x0a,
];
const SALT_V2: [u8; 20] = [
    0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93, 0x81, 0xbe, 0x6e, 0x26, 0x9d, 0xcb,
    0xf9, 0xbd, 0x2e, 0xd9,
];

/// HKDF-Expand-Label without a context (RFC 8446 section 7.1).
fn expand(secret: &Hkdf<Sha256>, label: &str, into: &mut [u8]) {
    const PREFIX: &str = "tls13 ";
    let length = (into.len() as u16).to_be_bytes();
    let label_length = [(PREFIX.len() + label.len()) as u8];
    let info = [
        &length[..],
        &label_length,
        PREFIX.as_bytes(),
        label.as_bytes(),
        &[0],
    ];
    secret
        .expand_multi_info(&info, into)
        .expect("32 bytes are not too many for HKDF");
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The bytes that hexadecimal digits stand for.
    pub(in super::super) fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len() / 2)
            .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
            .collect()
    }

    /// RFC 9001 appendix A.1 and A.2, RFC 9369 appendix A.1 and A.2.
    #[test]
    fn keys_are_those_of_the_standards() {
        for (version, key, iv, header, sample, mask) in [
            (
                Version::V1,
                "1f369613dd76d5467730efcbe3b1a22d",
                "fa044b2f42a3fd3b46fb255c",
                "9f50449e04a0e810283a1e9933adedd2",
                "d1b1c98dd7689fb8ec11d242b123dc9b",
                "437b9aec36",
            ),
            (
                Version::V2,
                "8b1a0bc121284290a29e0971b5cd045d",
                "91f73e2351d8fa91660e909f",
                "45b95e15235d6f45a6b19cbcb0294ba9",
                "ffe67b6abcdb4298b485dd04de806071",
                "94a0c95e80",
            ),
        ] {
            let keys = Keys::client(version, &bytes("8394c8f03e515708"));
            assert_eq!(keys.iv.to_vec(), bytes(iv));
            let sample = bytes(sample).try_into().unwrap();
            assert_eq!(keys.mask(sample).to_vec(), bytes(mask), "{version:?}");
            let key: [u8; 16] = bytes(key).try_into().unwrap();
            let header: [u8; 16] = bytes(header).try_into().unwrap();
            let expected = Keys {
                payload: Aes128Gcm::new(&key.into()),
                header: Aes128::new(&header.into()),
                ..keys
            };
            let mut text = *b"a text";
            let tag = expected
                .payload
                .encrypt_inout_detached(
                    &Nonce::from(expected.iv),
                    b"header",
                    (&mut text[..]).into(),
                )
                .unwrap();
            let mut sealed = [&text[..], &tag[..]].concat();
            let keys = Keys::client(version, &bytes("8394c8f03e515708"));
            assert_eq!(keys.open(0, b"header", &mut sealed), Some(&b"a text"[..]));
            assert_eq!(keys.mask(sample), expected.mask(sample));
        }
    }
}
