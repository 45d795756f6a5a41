//! Reading of binary data from front to end, with the place in each error.

use super::Fault;
use super::reading::Trouble;

/// Bytes, and how far they have been read.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where `bytes` begins in the file.
    base: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            base: 0,
        }
    }

    /// Where the next byte is in the file.
    pub fn place(&self) -> usize {
        self.base + self.at
    }

    pub fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub fn malformed<T>(&self, what: &'static str) -> Result<T, Trouble> {
        Err(Trouble::byte(self.place(), Fault::Malformed(what)))
    }

    /// The next `count` bytes; `what` is being read.
    pub fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], Trouble> {
        let Some(taken) = self.bytes[self.at..].get(..count) else {
            // The place is the end of the data: what is missing begins there.
            return Err(Trouble::byte(
                self.base + self.bytes.len(),
                Fault::Cut(what),
            ));
        };
        self.at += count;
        Ok(taken)
    }

    /// The next `count` bytes as data of their own.
    pub fn part(&mut self, count: usize, what: &'static str) -> Result<Self, Trouble> {
        let base = self.place();
        Ok(Self {
            bytes: self.take(count, what)?,
            at: 0,
            base,
        })
    }

    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Trouble> {
        let bytes = self.take(N, what)?;
        Ok(bytes.try_into().expect("so many were taken"))
    }

    pub fn byte(&mut self, what: &'static str) -> Result<u8, Trouble> {
        Ok(self.array::<1>(what)?[0])
    }

    /// A number of eight bytes, most significant first.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, Trouble> {
        Ok(u64::from_be_bytes(self.array(what)?))
    }

    /// A number in groups of seven bits, least significant first (LEB128, the varint of Protocol Buffers).
    pub fn varint(&mut self, what: &'static str) -> Result<u64, Trouble> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        self.malformed("a number has more than 64 bits")
    }

    /// How many elements of at least `size` bytes follow; more than there are bytes for is an error.
    pub fn count(
        &mut self,
        number: u64,
        size: usize,
        what: &'static str,
    ) -> Result<usize, Trouble> {
        usize::try_from(number)
            .ok()
            .filter(|count| {
                count
                    .checked_mul(size)
                    .is_some_and(|bytes| bytes <= self.left())
            })
            .ok_or_else(|| Trouble::byte(self.base + self.bytes.len(), Fault::Cut(what)))
    }

    /// The number of bytes in front of them, then the bytes.
    pub fn counted(&mut self, what: &'static str) -> Result<&'a [u8], Trouble> {
        let number = self.varint(what)?;
        let count = self.count(number, 1, what)?;
        self.take(count, what)
    }
}
