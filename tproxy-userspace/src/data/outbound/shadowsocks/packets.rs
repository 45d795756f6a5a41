//! Datagrams by Shadowsocks: SIP007 and SIP022 section 3.2.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Buf as _;
use rand::RngExt as _;
use ring::aead::{LessSafeKey, NONCE_LEN};

use super::cipher::{self, Block, Extended, Forged, TAG, XNONCE};
use super::keys::{IDENTITY, Keys};
use super::window::Window;
use super::{FROM_CLIENT, FROM_SERVER, clock_difference, unix_seconds};
use crate::data::outbound::wire::{self, Address};

/// Session and number of a datagram.
const NUMBER: usize = 16;
/// How long an old session of the server blocks a third one, in seconds (SIP022 section 3.2.4).
const OLD_SESSION: u64 = 60;

/// Why a datagram from a server is not taken. Others of the session may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketFault {
    /// Shorter than any.
    #[error("the datagram is cut off")]
    Short,
    /// Not encrypted with our key.
    #[error(
        "decrypting the datagram failed: it was changed on its way, or password or method differ from the server's"
    )]
    Forged,
    /// It is no server's datagram, but perhaps our own sent back.
    #[error("the datagram is of type {0}, not a server's")]
    Type(u8),
    /// The clocks differ too much.
    #[error(
        "the Shadowsocks server's clock and this one differ by {0} s, and SIP022 allows 30; set both by NTP"
    )]
    Clock(i64),
    /// It is for another session.
    #[error("the datagram is for another session")]
    Foreign,
    /// It came before, or is too old to tell.
    #[error("the datagram came before")]
    Replayed,
    /// The server began a third session within a minute.
    #[error("the Shadowsocks server began too many sessions")]
    Sessions,
    /// Its sender is of an unknown type.
    #[error("the datagram's sender cannot be read")]
    Sender,
}

impl From<Forged> for PacketFault {
    fn from(_: Forged) -> Self {
        Self::Forged
    }
}

/// Starts a UDP session: one of a device's sockets, say. The sealer may be shared; the opener remembers what came.
#[must_use]
pub fn session(keys: &Arc<Keys>) -> (PacketSealer, PacketOpener) {
    session_of(keys, rand::random())
}

pub(super) fn session_of(keys: &Arc<Keys>, id: u64) -> (PacketSealer, PacketOpener) {
    let method = keys.method();
    let aead = || cipher::body_key(method, keys.subkey(&id.to_be_bytes()).as_slice());
    let (seal, open) = if !method.is_2022() {
        (Sealing::Salted, Opening::Salted)
    } else if method.takes_identities() {
        let identities = keys.identities();
        let seal = Sealing::Numbered {
            number: Block::new(keys.first()),
            identities: identities
                .map(|(key, next)| (Block::new(key), next))
                .collect(),
            body: Box::new(aead()),
        };
        let number = Block::new(keys.key());
        (seal, Opening::Numbered { number })
    } else {
        let (seal, open) = (Extended::new(keys.key()), Extended::new(keys.key()));
        (Sealing::Extended(seal), Opening::Extended(open))
    };
    let sealer = PacketSealer {
        keys: Arc::clone(keys),
        session: id,
        next: AtomicU64::new(0),
        sealing: seal,
    };
    let opener = PacketOpener {
        keys: Arc::clone(keys),
        session: id,
        opening: open,
        current: None,
        old: None,
    };
    (sealer, opener)
}

/// Encrypts a session's datagrams to the server.
pub struct PacketSealer {
    keys: Arc<Keys>,
    session: u64,
    next: AtomicU64,
    sealing: Sealing,
}

enum Sealing {
    /// Each has a salt, and a key that follows from it (SIP004).
    Salted,
    /// Each has a number, which one block of AES hides.
    Numbered {
        number: Block,
        identities: Vec<(Block, [u8; IDENTITY])>,
        body: Box<LessSafeKey>,
    },
    /// Each has a nonce of chance.
    Extended(Extended),
}

impl PacketSealer {
    /// Adds a datagram with this payload for `peer` to `out`.
    pub fn seal(&self, peer: SocketAddr, payload: &[u8], out: &mut Vec<u8>) {
        self.seal_at(peer, payload, out, unix_seconds());
    }

    pub(super) fn seal_at(&self, peer: SocketAddr, payload: &[u8], out: &mut Vec<u8>, now: u64) {
        out.reserve(XNONCE.max(NUMBER) + 128 + payload.len() + TAG);
        let mut number = [0; NUMBER];
        number[..8].copy_from_slice(&self.session.to_be_bytes());
        number[8..].copy_from_slice(&self.next.fetch_add(1, Relaxed).to_be_bytes());
        match &self.sealing {
            Sealing::Salted => {
                let mut salt = [0; 32];
                let salt = &mut salt[..self.keys.method().key_length()];
                rand::rng().fill(&mut *salt);
                out.extend_from_slice(salt);
                let start = out.len();
                wire::put_target(out, peer.into());
                out.extend_from_slice(payload);
                let key = self.keys.subkey(salt);
                let key = cipher::body_key(self.keys.method(), key.as_slice());
                cipher::seal(&key, [0; NONCE_LEN], out, start);
            }
            Sealing::Numbered {
                number: block,
                identities,
                body,
            } => {
                out.extend_from_slice(&block.encrypt(number));
                for (block, identity) in identities {
                    let header = std::array::from_fn(|at| identity[at] ^ number[at]);
                    out.extend_from_slice(&block.encrypt(header));
                }
                let start = out.len();
                put_body(out, now, peer, payload);
                cipher::seal(body, nonce_of(&number), out, start);
            }
            Sealing::Extended(key) => {
                let nonce: [u8; XNONCE] = rand::random();
                out.extend_from_slice(&nonce);
                let start = out.len();
                out.extend_from_slice(&number);
                put_body(out, now, peer, payload);
                key.seal(nonce, out, start);
            }
        }
    }
}

/// A client's message of SIP022, without padding.
fn put_body(out: &mut Vec<u8>, now: u64, peer: SocketAddr, payload: &[u8]) {
    out.push(FROM_CLIENT);
    out.extend_from_slice(&now.to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    wire::put_target(out, peer.into());
    out.extend_from_slice(payload);
}

fn nonce_of(number: &[u8; NUMBER]) -> [u8; NONCE_LEN] {
    *number.last_chunk().expect("16 bytes are more than 12")
}

/// Decrypts a session's datagrams from the server.
pub struct PacketOpener {
    keys: Arc<Keys>,
    session: u64,
    opening: Opening,
    /// The server's sessions: a server that was restarted begins a new one.
    current: Option<Box<Theirs>>,
    old: Option<Box<Theirs>>,
}

enum Opening {
    Salted,
    Numbered { number: Block },
    Extended(Extended),
}

/// A session of the server's.
struct Theirs {
    id: u64,
    /// None with XChaCha20, which takes the same key always.
    body: Option<LessSafeKey>,
    window: Window,
    /// When something of it came last, in seconds since 1970.
    last: u64,
}

impl PacketOpener {
    /// Decrypts a datagram into `out`, behind what is there. Gives who sent it, and where in `out` its payload is. None:
    /// the sender is given as a name, which no device could make sense of.
    ///
    /// # Errors
    /// See [`PacketFault`]; what is added to `out` then means nothing.
    pub fn open(
        &mut self,
        datagram: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(Option<SocketAddr>, Range<usize>), PacketFault> {
        self.open_at(datagram, out, unix_seconds())
    }

    pub(super) fn open_at(
        &mut self,
        datagram: &[u8],
        out: &mut Vec<u8>,
        now: u64,
    ) -> Result<(Option<SocketAddr>, Range<usize>), PacketFault> {
        let body = match &self.opening {
            Opening::Salted => {
                let salt = self.keys.method().key_length();
                let (salt, sealed) = datagram.split_at_checked(salt).ok_or(PacketFault::Short)?;
                let key = self.keys.subkey(salt);
                let key = cipher::body_key(self.keys.method(), key.as_slice());
                let at = out.len();
                out.extend_from_slice(sealed);
                let text = cipher::open(&key, [0; NONCE_LEN], &mut out[at..])?;
                at..at + text.len()
            }
            Opening::Numbered { number } => {
                let (first, sealed) = datagram
                    .split_first_chunk::<NUMBER>()
                    .ok_or(PacketFault::Short)?;
                let number = number.decrypt(*first);
                let (id, count) = split_number(&number);
                let at = out.len();
                out.extend_from_slice(sealed);
                let nonce = nonce_of(&number);
                let (text, new) = match self.known(id) {
                    Some(theirs) => {
                        if !theirs.window.admits(count) {
                            return Err(PacketFault::Replayed);
                        }
                        let key = theirs.body.as_ref().ok_or(PacketFault::Forged)?;
                        (cipher::open(key, nonce, &mut out[at..])?, None)
                    }
                    None => {
                        let key = self.keys.subkey(&id.to_be_bytes());
                        let key = cipher::body_key(self.keys.method(), key.as_slice());
                        (cipher::open(&key, nonce, &mut out[at..])?, Some(key))
                    }
                };
                let body = self.accept(text, id, count, new, now)?;
                at + body..at + text.len()
            }
            Opening::Extended(key) => {
                let (nonce, sealed) = datagram
                    .split_first_chunk::<XNONCE>()
                    .ok_or(PacketFault::Short)?;
                let at = out.len();
                out.extend_from_slice(sealed);
                let text = key.open(*nonce, &mut out[at..])?;
                let (number, text) = text
                    .split_first_chunk::<NUMBER>()
                    .ok_or(PacketFault::Short)?;
                let (id, count) = split_number(number);
                let at = at + NUMBER;
                let body = self.accept(text, id, count, None, now)?;
                at + body..at + text.len()
            }
        };
        match wire::parse_address(&out[body.clone()]) {
            Ok(Address::Whole(peer, length)) => Ok((peer, body.start + length..body.end)),
            Ok(Address::Needs(_)) => Err(PacketFault::Short),
            Err(_) => Err(PacketFault::Sender),
        }
    }

    fn known(&self, id: u64) -> Option<&Theirs> {
        let sessions = [&self.current, &self.old];
        let mut known = sessions.into_iter().flatten();
        known.find(|theirs| theirs.id == id).map(Box::as_ref)
    }

    /// Checks the head of a server's message (SIP022 section 3.2.3) and remembers its number. Gives where the address
    /// begins.
    fn accept(
        &mut self,
        text: &[u8],
        id: u64,
        count: u64,
        body: Option<LessSafeKey>,
        now: u64,
    ) -> Result<usize, PacketFault> {
        const HEAD: usize = 1 + 8 + 8 + 2;
        let mut head = text.get(..HEAD).ok_or(PacketFault::Short)?;
        let kind = head.get_u8();
        if kind != FROM_SERVER {
            return Err(PacketFault::Type(kind));
        }
        if let Some(difference) = clock_difference(head.get_u64(), now) {
            return Err(PacketFault::Clock(difference));
        }
        if head.get_u64() != self.session {
            return Err(PacketFault::Foreign);
        }
        let address = HEAD + usize::from(head.get_u16());
        if address > text.len() {
            return Err(PacketFault::Short);
        }
        let sessions = [&mut self.current, &mut self.old];
        let known = sessions
            .into_iter()
            .flatten()
            .find(|theirs| theirs.id == id);
        if let Some(theirs) = known {
            if !theirs.window.admits(count) {
                return Err(PacketFault::Replayed);
            }
            theirs.window.mark(count);
            theirs.last = now;
            return Ok(address);
        }
        let is_recent = |old: &Theirs| now.saturating_sub(old.last) < OLD_SESSION;
        if self.old.as_deref().is_some_and(is_recent) {
            return Err(PacketFault::Sessions);
        }
        self.old = self.current.take();
        let mut window = Window::default();
        window.mark(count);
        self.current = Some(Box::new(Theirs {
            id,
            body,
            window,
            last: now,
        }));
        Ok(address)
    }
}

/// Session and number of a datagram, in network order.
fn split_number(number: &[u8; NUMBER]) -> (u64, u64) {
    let mut bytes = &number[..];
    (bytes.get_u64(), bytes.get_u64())
}

impl fmt::Debug for PacketSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PacketSealer({})", self.keys.method())
    }
}

impl fmt::Debug for PacketOpener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PacketOpener({})", self.keys.method())
    }
}
