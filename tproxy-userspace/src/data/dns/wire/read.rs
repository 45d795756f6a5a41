//! Walking through a message.

use super::Question;

/// The longest name, in bytes (RFC 1035 section 2.3.4).
const LONGEST_NAME: usize = 255;

/// The first 12 bytes.
pub struct Header {
    pub id: u16,
    pub flags: u16,
    /// Questions, answers, authority, additional.
    pub counts: [u16; 4],
}

impl Header {
    pub fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let mut number = || reader.number();
        Some(Self {
            id: number()?,
            flags: number()?,
            counts: [number()?, number()?, number()?, number()?],
        })
    }

    /// How many records follow the question.
    pub fn records(&self) -> usize {
        self.counts[1..]
            .iter()
            .map(|count| usize::from(*count))
            .sum()
    }
}

/// A record without its name.
pub struct Record<'m> {
    pub kind: u16,
    pub class: u16,
    pub ttl: u32,
    /// Where the TTL stands in the message.
    pub ttl_at: usize,
    pub data: &'m [u8],
}

/// Reads a message from front to back. Pointers are not followed, so there is no loop to fall into.
pub struct Reader<'m> {
    bytes: &'m [u8],
    /// Where the next byte is.
    pub at: usize,
}

impl<'m> Reader<'m> {
    /// At the front of a message.
    pub fn new(bytes: &'m [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn take(&mut self, length: usize) -> Option<&'m [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Walks over a name. True if it is whole here, false if it ends in a pointer.
    fn name(&mut self) -> Option<bool> {
        let start = self.at;
        loop {
            let length = usize::from(self.take(1)?[0]);
            match length {
                0 => return Some(true),
                1..=63 => self.take(length).map(drop)?,
                0xc0.. => return self.take(1).map(|_| false),
                _ => return None,
            }
            // Only the byte of the root may follow.
            if self.at - start >= LONGEST_NAME {
                return None;
            }
        }
    }

    /// The next bytes as a question.
    pub fn question(&mut self) -> Option<Question> {
        let start = self.at;
        // The first name of a message has nothing to point to.
        if !self.name()? {
            return None;
        }
        let name = self.bytes[start..self.at].into();
        let (kind, class) = (self.number()?, self.number()?);
        Some(Question { name, kind, class })
    }

    /// The next bytes as a record.
    pub fn record(&mut self) -> Option<Record<'m>> {
        self.name()?;
        let (kind, class, ttl_at) = (self.number()?, self.number()?, self.at);
        let ttl = u32::from(self.number()?) << 16 | u32::from(self.number()?);
        let length = self.number()?;
        let data = self.take(length.into())?;
        Some(Record {
            kind,
            class,
            ttl,
            ttl_at,
            data,
        })
    }
}
