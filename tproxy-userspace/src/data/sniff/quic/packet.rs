//! Headers of QUIC packets (RFC 9000 section 17.2, RFC 9369 section 3.2), as far as they are not protected.

/// The longest connection ID in bytes (RFC 9000 section 17.2).
const LONGEST_ID: usize = 20;

/// The versions whose Initial packets can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// RFC 9000.
    V1,
    /// RFC 9369.
    V2,
}

/// What kind of packet it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Initial,
    ZeroRtt,
    Handshake,
    Retry,
}

/// A packet with a long header, still protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet<'d> {
    pub version: Version,
    pub kind: Kind,
    pub destination_id: &'d [u8],
    /// From the first byte of the header to the end of the payload.
    pub bytes: &'d [u8],
    /// Where the packet number begins in `bytes`.
    pub number_at: usize,
}

impl<'d> Packet<'d> {
    /// The first packet in these bytes, and what lies behind it. None for a short header, another version and
    /// whatever is cut off.
    pub fn split(bytes: &'d [u8]) -> Option<(Self, &'d [u8])> {
        let mut reader = Reader::new(bytes);
        let first = reader.byte()?;
        // The next bit is not asked for: it may have been cleared (RFC 9287).
        if first & 0x80 == 0 {
            return None;
        }
        let version = match reader.take(4)? {
            [0, 0, 0, 1] => Version::V1,
            [0x6b, 0x33, 0x43, 0xcf] => Version::V2,
            _ => return None,
        };
        let initial = match version {
            Version::V1 => 0,
            Version::V2 => 1,
        };
        // Initial, 0-RTT, Handshake, Retry: version 2 turns them by one (RFC 9369 section 3.2).
        let kind = match ((first >> 4) & 3).wrapping_sub(initial) & 3 {
            0 => Kind::Initial,
            1 => Kind::ZeroRtt,
            2 => Kind::Handshake,
            _ => Kind::Retry,
        };
        let destination_id = reader.id()?;
        reader.id()?;
        if kind == Kind::Initial {
            let token = reader.length()?;
            reader.take(token)?;
        }
        let (end, number_at) = if kind == Kind::Retry {
            (bytes.len(), bytes.len())
        } else {
            let length = reader.length()?;
            let number_at = reader.at();
            reader.take(length)?;
            (reader.at(), number_at)
        };
        let (packet, rest) = bytes.split_at(end);
        let packet = Self {
            version,
            kind,
            destination_id,
            bytes: packet,
            number_at,
        };
        Some((packet, rest))
    }
}

/// Reads from the front. Everything is None at its end.
pub(super) struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    pub fn new(bytes: &'b [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub fn at(&self) -> usize {
        self.at
    }

    pub fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    pub fn take(&mut self, length: usize) -> Option<&'b [u8]> {
        let taken = self.bytes[self.at..].get(..length)?;
        self.at += length;
        Some(taken)
    }

    /// A number of 1, 2, 4 or 8 bytes (RFC 9000 section 16).
    pub fn number(&mut self) -> Option<u64> {
        let first = self.byte()?;
        let more = self.take((1 << (first >> 6)) - 1)?;
        let number = u64::from(first & 0x3f);
        Some(
            more.iter()
                .fold(number, |number, byte| number << 8 | u64::from(*byte)),
        )
    }

    pub fn length(&mut self) -> Option<usize> {
        self.number()?.try_into().ok()
    }

    fn id(&mut self) -> Option<&'b [u8]> {
        let length = usize::from(self.byte()?);
        self.take(length).filter(|id| id.len() <= LONGEST_ID)
    }
}
