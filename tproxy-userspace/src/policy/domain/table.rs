//! The names of a [`DomainSet`](super::DomainSet) in one piece of memory.
//!
//! A hash table whose buckets lie behind one another: a name costs its text, its length, one byte for its
//! tag, and its share of the bucket's offset. A look-up hashes the name once from its end and stops at each dot, so it
//! reads one bucket for each label.

use super::DomainError;

/// The name itself matches.
pub(super) const ITSELF: u8 = 1;
/// What lies below it matches.
pub(super) const BELOW: u8 = 2;
/// Bits that say which of both.
const EXTENT_BITS: u32 = 2;
/// Stands for a tag that has no room in the byte, and follows it in four.
const LARGE_TAG: u8 = u8::MAX >> EXTENT_BITS;
/// How many names share a bucket on average: fewer cost memory, more cost time.
const PER_BUCKET: usize = 3;

#[derive(Debug)]
pub(super) struct Table {
    /// Where each bucket begins in `bytes`, and where the last one ends.
    buckets: Box<[u32]>,
    /// Entries: length of the name, extent and tag, the tag if it is large, the name.
    bytes: Box<[u8]>,
    len: usize,
}

/// Collects names for a [`Table`].
#[derive(Default)]
pub(super) struct Builder {
    text: Vec<u8>,
    items: Vec<Item>,
}

#[derive(Clone, Copy)]
struct Item {
    /// The hash, then the bucket.
    place: u32,
    start: u32,
    tag: u32,
    length: u8,
    extent: u8,
}

impl Item {
    fn text(self, text: &[u8]) -> &[u8] {
        &text[self.start as usize..][..usize::from(self.length)]
    }
}

impl Builder {
    /// Adds a name of at most 253 bytes.
    pub fn push(&mut self, name: &[u8], extent: u8, tag: u32) -> Result<(), DomainError> {
        let length = u8::try_from(name.len()).map_err(|_| DomainError::TooMany)?;
        let start = u32::try_from(self.text.len()).map_err(|_| DomainError::TooMany)?;
        self.text.extend_from_slice(name);
        self.items.push(Item {
            place: hash(name),
            start,
            tag,
            length,
            extent,
        });
        Ok(())
    }

    pub fn finish(self) -> Result<Table, DomainError> {
        let Self { text, mut items } = self;
        let count = (items.len() / PER_BUCKET).max(1);
        for item in &mut items {
            item.place = bucket(item.place, count);
        }
        items.sort_unstable_by(|a, b| {
            let key = |item: &Item| (item.place, item.length);
            key(a)
                .cmp(&key(b))
                .then_with(|| a.text(&text).cmp(b.text(&text)))
                .then(a.tag.cmp(&b.tag))
        });
        items.dedup_by(|later, earlier| {
            let same = later.tag == earlier.tag && later.text(&text) == earlier.text(&text);
            if same {
                earlier.extent |= later.extent;
            }
            same
        });
        let mut bytes = Vec::with_capacity(items.len() * 2 + text.len());
        let mut buckets = Vec::with_capacity(count + 1);
        for item in &items {
            let offset = u32::try_from(bytes.len()).map_err(|_| DomainError::TooMany)?;
            buckets.resize(item.place as usize + 1, offset);
            put(&mut bytes, *item, item.text(&text));
        }
        let end = u32::try_from(bytes.len()).map_err(|_| DomainError::TooMany)?;
        buckets.resize(count + 1, end);
        Ok(Table {
            buckets: buckets.into(),
            bytes: bytes.into(),
            len: items.len(),
        })
    }
}

fn put(bytes: &mut Vec<u8>, item: Item, name: &[u8]) {
    let small = u8::try_from(item.tag).ok().filter(|tag| *tag < LARGE_TAG);
    bytes.push(item.length);
    bytes.push((small.unwrap_or(LARGE_TAG) << EXTENT_BITS) | item.extent);
    if small.is_none() {
        bytes.extend_from_slice(&item.tag.to_le_bytes());
    }
    bytes.extend_from_slice(name);
}

impl Table {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + size_of_val(&*self.buckets)
    }

    /// Reports the tag of each entry that matches a folded name.
    pub fn each(&self, name: &[u8], hit: &mut impl FnMut(u32)) {
        if self.len == 0 {
            return;
        }
        let mut state = SEED;
        for start in (0..name.len()).rev() {
            state = step(state, name[start]);
            if start == 0 || name[start - 1] == b'.' {
                let extent = if start == 0 { ITSELF } else { BELOW };
                self.probe(finish(state), &name[start..], extent, hit);
            }
        }
    }

    fn probe(&self, hash: u32, name: &[u8], extent: u8, hit: &mut impl FnMut(u32)) {
        let at = bucket(hash, self.buckets.len() - 1) as usize;
        let (start, end) = (self.buckets[at] as usize, self.buckets[at + 1] as usize);
        let mut rest = &self.bytes[start..end];
        while let [length, meta, behind @ ..] = rest {
            let small = meta >> EXTENT_BITS;
            let (tag, behind) = match behind.split_first_chunk() {
                Some((large, behind)) if small == LARGE_TAG => (u32::from_le_bytes(*large), behind),
                _ => (small.into(), behind),
            };
            let (text, behind) = behind.split_at(usize::from(*length));
            if meta & extent != 0 && text == name {
                hit(tag);
            }
            rest = behind;
        }
    }
}

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// From the last byte to the first, so that the hash of `x.com` is on the way to that of `www.x.com`.
fn step(state: u64, byte: u8) -> u64 {
    (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
}

/// Spreads what [`step`] gathered over the upper bits, which choose the bucket.
fn finish(state: u64) -> u32 {
    let mixed = (state ^ (state >> 32)).wrapping_mul(SEED);
    (mixed >> 32) as u32
}

fn hash(name: &[u8]) -> u32 {
    finish(
        name.iter()
            .rev()
            .fold(SEED, |state, byte| step(state, *byte)),
    )
}

/// One of `count` buckets.
fn bucket(hash: u32, count: usize) -> u32 {
    ((u64::from(hash) * count as u64) >> 32) as u32
}
