//! The server name in the first packets of a QUIC client (RFC 9001, RFC 9369).
//!
//! A client hello comes in CRYPTO frames of Initial packets, which anybody can decipher who sees the first of them. It
//! may be spread over several frames, packets and datagrams, in any order.

mod keys;
mod packet;
#[cfg(test)]
pub mod samples;
mod stream;
#[cfg(test)]
mod tests;

use std::fmt;

use self::keys::{Keys, SAMPLE};
use self::packet::{Kind, Packet, Reader, Version};
use self::stream::Stream;
use super::{LIMIT, Progress, Protocol, tls};

/// The most datagrams that are looked at: a client hello takes one or two, and each may be lost and sent again.
pub const MOST_DATAGRAMS: u32 = 32;
/// The most packets of one datagram that are looked at.
const MOST_PACKETS: usize = 8;
/// The shortest destination connection ID that a client may begin with (RFC 9000 section 7.2).
const SHORTEST_ID: usize = 8;

/// The server name that a QUIC client asks for, from the datagrams of one flow.
///
/// It stays at [`Progress::NeedMore`] after a datagram without a whole client hello, and at [`Progress::NotThis`] after
/// a first one that does not begin with a client's packet of version 1 or 2. It keeps less than [`Quic::MOST_MEMORY`] bytes.
pub struct Quic {
    /// None before the first datagram, and when it is done.
    flow: Option<Box<Flow>>,
    datagrams: u32,
    progress: Progress,
}

struct Flow {
    version: Version,
    keys: Keys,
    /// The largest packet number so far.
    largest: Option<u64>,
    stream: Stream,
}

/// Nothing more can come of this flow.
struct Hopeless;

impl Default for Quic {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Quic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quic")
            .field("datagrams", &self.datagrams)
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

impl Quic {
    /// The most memory in bytes that a flow takes: its handshake bytes, where they are, and its keys.
    pub const MOST_MEMORY: usize =
        2 * LIMIT + 4 * stream::MOST_PIECES * size_of::<usize>() + size_of::<Flow>();

    /// Before the first datagram.
    #[must_use]
    pub fn new() -> Self {
        Self {
            flow: None,
            datagrams: 0,
            progress: Progress::NeedMore,
        }
    }

    /// Looks at the next datagram of the client. Once it is done, it stays with what it found.
    pub fn feed(&mut self, datagram: &[u8]) -> &Progress {
        if self.progress == Progress::NeedMore {
            self.datagrams += 1;
            self.progress = match self.read(datagram) {
                Ok(()) => self.hello(),
                Err(Hopeless) => Progress::NotThis,
            };
            if self.progress == Progress::NeedMore && self.datagrams >= MOST_DATAGRAMS {
                self.progress = Progress::NotThis;
            }
            if self.progress != Progress::NeedMore {
                self.flow = None;
            }
        }
        &self.progress
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.flow
            .as_ref()
            .map_or(0, |flow| size_of::<Flow>() + flow.stream.memory())
    }

    fn hello(&self) -> Progress {
        match &self.flow {
            Some(flow) => tls::client_hello(flow.stream.beginning(), Protocol::Quic),
            None => Progress::NeedMore,
        }
    }

    /// Reads all packets of a datagram. Those behind the first may be anything (RFC 9000 section 12.2).
    fn read(&mut self, datagram: &[u8]) -> Result<(), Hopeless> {
        let mut rest = datagram;
        for _ in 0..MOST_PACKETS {
            let Some((packet, behind)) = Packet::split(rest) else {
                let begins = self.flow.is_none() && rest.len() == datagram.len();
                return if begins { Err(Hopeless) } else { Ok(()) };
            };
            match packet.kind {
                Kind::Initial => self.initial(packet)?,
                // It may have overtaken the Initial packet.
                Kind::ZeroRtt => {}
                Kind::Handshake if self.flow.is_some() => {}
                // The beginning was missed, or it is a server's.
                Kind::Handshake | Kind::Retry => return Err(Hopeless),
            }
            rest = behind;
        }
        Ok(())
    }

    fn initial(&mut self, packet: Packet<'_>) -> Result<(), Hopeless> {
        let Some(flow) = &mut self.flow else {
            if packet.destination_id.len() < SHORTEST_ID {
                return Err(Hopeless);
            }
            let mut flow = Flow {
                version: packet.version,
                keys: Keys::client(packet.version, packet.destination_id),
                largest: None,
                stream: Stream::default(),
            };
            let payload = open(&flow.keys, &mut flow.largest, packet).ok_or(Hopeless)?;
            frames(&mut flow.stream, &payload)?;
            self.flow = Some(Box::new(flow));
            return Ok(());
        };
        if packet.version != flow.version {
            // The client takes up another version that the server offered (RFC 9368), with the handshake anew.
            return Ok(());
        }
        let payload = open(&flow.keys, &mut flow.largest, packet).or_else(|| {
            // After a Retry the keys follow from the connection ID that the server chose (RFC 9001 section 5.2). The
            // client hello is the same (RFC 9000 section 17.2.5.3).
            let keys = Keys::client(packet.version, packet.destination_id);
            let payload = open(&keys, &mut flow.largest, packet)?;
            flow.keys = keys;
            Some(payload)
        });
        // What nobody can decipher did not come from the client.
        payload.map_or(Ok(()), |payload| frames(&mut flow.stream, &payload))
    }
}

/// Takes the protection from a packet and returns its payload. None if it was not made with these keys.
fn open(keys: &Keys, largest: &mut Option<u64>, packet: Packet<'_>) -> Option<Vec<u8>> {
    let Packet {
        bytes, number_at, ..
    } = packet;
    // The sample begins where the packet number would end, were it of four bytes (RFC 9001 section 5.4.2).
    let sample = bytes.get(number_at + 4..)?.first_chunk::<SAMPLE>()?;
    let mask = keys.mask(*sample);
    let first = bytes[0] ^ mask[0] & 0x0f;
    let length = usize::from(first & 3) + 1;
    let mut header = bytes[..number_at + length].to_vec();
    header[0] = first;
    let mut truncated = 0;
    for (byte, mask) in header[number_at..].iter_mut().zip(&mask[1..]) {
        *byte ^= mask;
        truncated = truncated << 8 | u64::from(*byte);
    }
    let number = packet_number(truncated, length, *largest);
    let mut payload = bytes[number_at + length..].to_vec();
    let text = keys.open(number, &header, &mut payload)?.len();
    payload.truncate(text);
    *largest = Some(largest.map_or(number, |largest| largest.max(number)));
    Some(payload)
}

/// The whole number of which a packet has the last bytes (RFC 9000 appendix A.3).
fn packet_number(truncated: u64, length: usize, largest: Option<u64>) -> u64 {
    let expected = largest.map_or(0, |largest| largest + 1);
    let window = 1_u64 << (8 * length);
    let candidate = expected & !(window - 1) | truncated;
    if candidate + window / 2 <= expected {
        candidate + window
    } else if candidate > expected + window / 2 && candidate >= window {
        candidate - window
    } else {
        candidate
    }
}

/// Reads the frames of an Initial packet (RFC 9000 section 17.2.2 says which there may be).
fn frames(stream: &mut Stream, payload: &[u8]) -> Result<(), Hopeless> {
    let mut reader = Reader::new(payload);
    while !reader.is_empty() {
        frame(stream, &mut reader).ok_or(Hopeless)?;
    }
    Ok(())
}

fn frame(stream: &mut Stream, reader: &mut Reader<'_>) -> Option<()> {
    const PADDING: u64 = 0;
    const PING: u64 = 1;
    const ACK: u64 = 2;
    const ACK_ECN: u64 = 3;
    const CRYPTO: u64 = 6;
    let kind = reader.number()?;
    match kind {
        PADDING | PING => {}
        ACK | ACK_ECN => {
            let (_largest, _delay) = (reader.number()?, reader.number()?);
            let (ranges, _first) = (reader.number()?, reader.number()?);
            for _ in 0..ranges {
                let (_gap, _length) = (reader.number()?, reader.number()?);
            }
            if kind == ACK_ECN {
                let _counts = (reader.number()?, reader.number()?, reader.number()?);
            }
        }
        CRYPTO => {
            let (offset, length) = (reader.length()?, reader.length()?);
            stream.put(offset, reader.take(length)?).ok()?;
        }
        // CONNECTION_CLOSE, or what must not stand here.
        _ => return None,
    }
    Some(())
}
