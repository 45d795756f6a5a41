//! The handshake bytes of a flow, put together from CRYPTO frames in any order (RFC 9000 section 19.6).

use std::ops::Range;

use super::super::LIMIT;

/// The most pieces that may lie apart from each other. Browsers cut a client hello into a dozen or two and shuffle them.
pub(super) const MOST_PIECES: usize = 64;

/// The bytes so far, with gaps.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Zeros where nothing came yet.
    bytes: Vec<u8>,
    /// What did come: in order, apart from each other.
    pieces: Vec<Range<usize>>,
}

/// More than is kept: bytes behind [`LIMIT`], or too many pieces.
#[derive(Debug)]
pub(super) struct TooMuch;

impl Stream {
    /// Puts the bytes of a frame in. What is there already stays as it is.
    pub fn put(&mut self, offset: usize, data: &[u8]) -> Result<(), TooMuch> {
        let end = offset
            .checked_add(data.len())
            .filter(|end| *end <= LIMIT)
            .ok_or(TooMuch)?;
        if data.is_empty() {
            return Ok(());
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        // Those before `first` end before this one, those from `behind` on begin after it.
        let first = self.pieces.partition_point(|piece| piece.end < offset);
        let behind = self.pieces.partition_point(|piece| piece.start <= end);
        let mut at = offset;
        let mut joined = offset..end;
        for piece in &self.pieces[first..behind] {
            if at < piece.start {
                self.bytes[at..piece.start]
                    .copy_from_slice(&data[at - offset..piece.start - offset]);
            }
            at = at.max(piece.end);
            joined = joined.start.min(piece.start)..joined.end.max(piece.end);
        }
        if at < end {
            self.bytes[at..end].copy_from_slice(&data[at - offset..]);
        }
        self.pieces.splice(first..behind, [joined]);
        if self.pieces.len() > MOST_PIECES {
            return Err(TooMuch);
        }
        Ok(())
    }

    /// The bytes from the beginning to the first gap.
    pub fn beginning(&self) -> &[u8] {
        match self.pieces.first() {
            Some(piece) if piece.start == 0 => &self.bytes[..piece.end],
            _ => &[],
        }
    }

    /// Bytes on the heap.
    pub fn memory(&self) -> usize {
        self.bytes.capacity() + self.pieces.capacity() * size_of::<Range<usize>>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_too_far_or_too_scattered_is_refused() {
        let mut stream = Stream::default();
        stream.put(LIMIT - 1, b"a").unwrap();
        stream.put(LIMIT, b"").unwrap();
        assert!(stream.put(LIMIT, b"a").is_err());
        assert!(stream.put(usize::MAX, b"a").is_err());
        let mut stream = Stream::default();
        for piece in 1..=MOST_PIECES {
            stream.put(2 * piece, b"a").unwrap();
        }
        assert!(stream.put(2 * MOST_PIECES + 2, b"a").is_err());
    }

    #[test]
    fn the_first_bytes_of_a_place_stay() {
        let mut stream = Stream::default();
        stream.put(2, b"cd").unwrap();
        stream.put(6, b"g").unwrap();
        assert_eq!(stream.beginning(), b"");
        stream.put(0, b"XXXXXXXXX").unwrap();
        assert_eq!(stream.beginning(), b"XXcdXXgXX");
    }

    proptest! {
        #[test]
        fn pieces_in_any_order_make_the_whole(
            pieces in prop::collection::vec((0..300_usize, 0..60_usize), 0..60),
        ) {
            let whole: Vec<u8> = (0..400_u16).map(|byte| (byte % 251) as u8).collect();
            let mut stream = Stream::default();
            let mut there = vec![false; whole.len()];
            for (start, length) in pieces {
                stream.put(start, &whole[start..start + length]).unwrap();
                there[start..start + length].fill(true);
                let beginning = there.iter().take_while(|there| **there).count();
                prop_assert_eq!(stream.beginning(), &whole[..beginning]);
            }
        }
    }
}
