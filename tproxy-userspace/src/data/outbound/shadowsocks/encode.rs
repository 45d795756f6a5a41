//! What a client sends on a stream, without any I/O.

use rand::RngExt as _;

use super::cipher::{Counting, TAG};
use super::keys::Keys;
use super::method::Method;
use super::{FROM_CLIENT, unix_seconds};
use crate::data::outbound::{Target, wire};

/// The most padding of a header that goes without payload (SIP022 section 3.1.3).
const MOST_PADDING: u16 = 900;

/// Encrypts one connection's way to the server.
pub struct Encoder {
    method: Method,
    cipher: Counting,
}

/// What of a connection's beginning is chance or time.
pub(super) struct Beginning<'s> {
    pub salt: &'s [u8],
    /// Seconds since 1970.
    pub now: u64,
    /// Bytes of padding of a head without payload.
    pub padding: u16,
}

/// Chance for the beginning of a connection.
#[must_use]
pub fn random_salt(method: Method) -> Vec<u8> {
    let mut salt = vec![0; method.key_length()];
    rand::rng().fill(&mut salt[..]);
    salt
}

impl Encoder {
    /// Begins a connection to `target`: adds the head, with as much of `payload` as has room, to `out`. Returns how
    /// much that is. The head goes out in one piece, as SIP022 wants it. `salt` is of [`random_salt`].
    #[must_use]
    pub fn start(
        keys: &Keys,
        salt: &[u8],
        target: Target<'_>,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> (Self, usize) {
        let beginning = Beginning {
            salt,
            now: unix_seconds(),
            padding: rand::rng().random_range(1..=MOST_PADDING),
        };
        Self::start_at(keys, &beginning, target, payload, out)
    }

    pub(super) fn start_at(
        keys: &Keys,
        beginning: &Beginning<'_>,
        target: Target<'_>,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> (Self, usize) {
        let method = keys.method();
        let salt = beginning.salt;
        let mut encoder = Self {
            method,
            cipher: Counting::new(method, keys.subkey(salt).as_slice()),
        };
        let mut head = Vec::with_capacity(2 + 256 + 2);
        wire::put_target(&mut head, target);
        let padding = if payload.is_empty() {
            beginning.padding
        } else {
            0
        };
        if method.is_2022() {
            head.extend_from_slice(&padding.to_be_bytes());
            // It is encrypted, so nobody sees that these are zeros.
            head.resize(head.len() + usize::from(padding), 0);
        }
        let payload = &payload[..payload.len().min(method.longest_chunk() - head.len())];
        let length = (head.len() + payload.len()) as u16;
        out.reserve(salt.len() + 128 + usize::from(length) + 2 * TAG);
        out.extend_from_slice(salt);
        if method.is_2022() {
            for header in keys.identity_headers(salt) {
                out.extend_from_slice(&header);
            }
            let start = out.len();
            out.push(FROM_CLIENT);
            out.extend_from_slice(&beginning.now.to_be_bytes());
            out.extend_from_slice(&length.to_be_bytes());
            encoder.cipher.seal(out, start);
        } else {
            encoder.seal(&[&length.to_be_bytes()], out);
        }
        encoder.seal(&[&head, payload], out);
        (encoder, payload.len())
    }

    /// Adds a payload to `out`, in chunks of about the same length: a last one of a few bytes would cost what a long one
    /// does.
    pub fn encode(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        let chunks = payload.len().div_ceil(self.method.longest_chunk()).max(1);
        out.reserve(payload.len() + chunks * (2 + TAG + TAG));
        for chunk in payload.chunks(payload.len().div_ceil(chunks).max(1)) {
            self.seal(&[&(chunk.len() as u16).to_be_bytes()], out);
            self.seal(&[chunk], out);
        }
    }

    fn seal(&mut self, parts: &[&[u8]], out: &mut Vec<u8>) {
        let start = out.len();
        for part in parts {
            out.extend_from_slice(part);
        }
        self.cipher.seal(out, start);
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Encoder({})", self.method)
    }
}
