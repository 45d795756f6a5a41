//! What a server sends on a stream, without any I/O.

use std::fmt;
use std::io;

use bytes::{Buf as _, BytesMut};

use super::cipher::{Counting, TAG};
use super::keys::Keys;
use super::{FROM_SERVER, clock_difference};

/// Bytes of a length.
const LENGTH: usize = 2;

/// Why what a server sends cannot be used. Nothing behind it can be, either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Already the first bytes are not encrypted with our key.
    #[error(
        "decrypting the Shadowsocks server's first bytes failed: password or method differ from the server's, or it is no \
         Shadowsocks server; compare both"
    )]
    Key,
    /// Later bytes are not what the server sent.
    #[error(
        "decrypting what the Shadowsocks server sent failed in the middle of the connection: it was changed on its way; \
         try again"
    )]
    Forged,
    /// An AEAD chunk that is too long.
    #[error(
        "the Shadowsocks server sent a chunk of {0} bytes, and SIP004 allows 16,383; look for a newer server"
    )]
    Length(usize),
    /// It is no server's stream, but perhaps our own sent back.
    #[error(
        "the answer is a stream of type {0}, not a server's: somebody sends back what was recorded, or the server is broken"
    )]
    Type(u8),
    /// The clocks differ too much.
    #[error(
        "the Shadowsocks server's clock and this one differ by {} s (the server's is {}), and SIP022 allows 30; set both by NTP",
        .0.unsigned_abs(),
        if *.0 < 0 { "behind" } else { "ahead" }
    )]
    Clock(i64),
    /// The answer is to another request.
    #[error(
        "the answer is to another connection's request: somebody sends back what was recorded, or the server is broken"
    )]
    Foreign,
    /// The end came inside of a chunk.
    #[error("the Shadowsocks server closed the connection in the middle of a chunk; see its log")]
    Cut,
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        let kind = match fault {
            Fault::Cut => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, fault)
    }
}

/// What the bytes so far give.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// There must be so many bytes in the buffer before there is more; never fewer than are in it.
    Needs(usize),
    /// The next part of what the target sent. It may be empty.
    Plain(BytesMut),
}

/// Decrypts one connection's way from the server.
pub struct Decoder {
    keys: Keys,
    /// What the answer of SIP022 must name: the salt that was sent.
    request_salt: Vec<u8>,
    /// Once the salt came.
    cipher: Option<Counting>,
    step: Step,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Head,
    Length,
    Payload(usize),
}

impl Decoder {
    /// For the answer to what began with this salt.
    #[must_use]
    pub fn new(keys: Keys, request_salt: &[u8]) -> Self {
        Self {
            keys,
            request_salt: request_salt.to_vec(),
            cipher: None,
            step: Step::Head,
        }
    }

    /// Has anything come that only a server with our key can have sent?
    #[must_use]
    pub fn has_answered(&self) -> bool {
        self.step != Step::Head
    }

    /// Takes as much from the front of `received` as is complete. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// See [`Fault`]. The decoder is of no use then.
    pub fn decode(&mut self, received: &mut BytesMut, now: u64) -> Result<Decoded, Fault> {
        loop {
            let needs = match self.step {
                Step::Head => self.head_length(),
                Step::Length => LENGTH + TAG,
                Step::Payload(length) => length + TAG,
            };
            if received.len() < needs {
                return Ok(Decoded::Needs(needs));
            }
            let mut part = received.split_to(needs);
            self.step = match self.step {
                Step::Head => self.head(&mut part, now)?,
                Step::Length => {
                    let length = open(&mut self.cipher, &mut part).ok_or(Fault::Forged)?;
                    self.payload_of(length)?
                }
                Step::Payload(_) => {
                    open(&mut self.cipher, &mut part).ok_or(Fault::Forged)?;
                    part.truncate(part.len() - TAG);
                    self.step = Step::Length;
                    return Ok(Decoded::Plain(part));
                }
            };
        }
    }

    /// What the end of the stream means after these bytes.
    ///
    /// # Errors
    /// [`Fault::Cut`] inside of a chunk, [`Fault::Key`] inside of the first one.
    pub fn end(&self, received: &BytesMut) -> Result<(), Fault> {
        match self.step {
            Step::Head | Step::Length if received.is_empty() => Ok(()),
            Step::Head => Err(Fault::Key),
            Step::Length | Step::Payload(_) => Err(Fault::Cut),
        }
    }

    /// The salt and the first chunk of fixed length.
    fn head_length(&self) -> usize {
        let salt = self.keys.method().key_length();
        let fixed = if self.keys.method().is_2022() {
            1 + 8 + salt + LENGTH
        } else {
            LENGTH
        };
        salt + fixed + TAG
    }

    fn head(&mut self, head: &mut BytesMut, now: u64) -> Result<Step, Fault> {
        let method = self.keys.method();
        let salt = head.split_to(method.key_length());
        let subkey = self.keys.subkey(&salt);
        self.cipher = Some(Counting::new(method, subkey.as_slice()));
        let mut fixed = open(&mut self.cipher, head).ok_or(Fault::Key)?;
        if method.is_2022() {
            let kind = fixed.get_u8();
            if kind != FROM_SERVER {
                return Err(Fault::Type(kind));
            }
            if let Some(difference) = clock_difference(fixed.get_u64(), now) {
                return Err(Fault::Clock(difference));
            }
            // Both have gone over the wire in clear, so how long this takes tells nothing.
            if !fixed.starts_with(&self.request_salt) {
                return Err(Fault::Foreign);
            }
            fixed.advance(method.key_length());
        }
        self.payload_of(fixed)
    }

    fn payload_of(&self, mut length: &[u8]) -> Result<Step, Fault> {
        let length = usize::from(length.get_u16());
        if length > self.keys.method().longest_chunk() {
            return Err(Fault::Length(length));
        }
        Ok(Step::Payload(length))
    }
}

/// Decrypts a chunk in its place; gives the text.
fn open<'c>(cipher: &mut Option<Counting>, chunk: &'c mut BytesMut) -> Option<&'c [u8]> {
    cipher.as_mut()?.open(chunk).ok()?;
    Some(&chunk[..chunk.len() - TAG])
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Decoder({}, {:?})", self.keys.method(), self.step)
    }
}
