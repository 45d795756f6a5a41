//! The tries of names in the binary rule sets of sing-box and mihomo.
//!
//! Format: LOUDS, as openacid's succinct sets write it. The nodes are numbered level by level. The bitmap has, for
//! each node in this order, a 0 for every child and then a 1. `labels` has the byte of every child in the same
//! order, so label n leads to node n + 1. A bit in `leaves` says that a key ends at the node. Bits are
//! counted from the least significant of each word.
//!
//! The keys are names written backwards, so the way from a leaf up to the root gives the name.

use super::Fault;
use super::cursor::Cursor;
use super::reading::{MOST_NAMES, Trouble, too_many_domains};

/// Longer keys (in bytes) are no names, with the marks that formats put before them.
const LONGEST_KEY: usize = 1024;
const TOO_LONG: &str = "a name has more than 1024 bytes";

/// The parts of a trie as they stand in a file.
pub(super) struct Trie<'a> {
    /// Big-endian words.
    pub leaves: &'a [u8],
    /// Big-endian words.
    pub bitmap: &'a [u8],
    pub labels: &'a [u8],
}

impl Trie<'_> {
    /// Gives each key, turned round, to `take`. `file` is for the place in errors.
    pub fn for_each(
        &self,
        file: &Cursor<'_>,
        mut take: impl FnMut(&str) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let parents = self.parents(file)?;
        let mut key = Vec::new();
        // Keys share their beginnings, so all of them together can be far larger than the trie.
        let mut total = 0;
        for leaf in (0..=self.labels.len()).filter(|node| bit(self.leaves, *node).unwrap_or(false))
        {
            key.clear();
            let mut node = leaf;
            while node > 0 {
                if key.len() == LONGEST_KEY {
                    return file.malformed(TOO_LONG);
                }
                key.push(self.labels[node - 1]);
                node = parents[node - 1] as usize;
            }
            total += key.len();
            if total > MOST_NAMES {
                return Err(Trouble::byte(file.place(), too_many_domains()));
            }
            // The writers turn letters round, not bytes. So a letter of several bytes is now backwards.
            if key.is_ascii() {
                take(std::str::from_utf8(&key).expect("ASCII"))?;
            } else {
                key.reverse();
                let backwards = std::str::from_utf8(&key);
                let backwards = backwards.map_err(|_| {
                    Trouble::byte(file.place(), Fault::Malformed("a name is not UTF-8"))
                })?;
                take(&backwards.chars().rev().collect::<String>())?;
            }
        }
        Ok(())
    }

    /// The parent of each node but the root.
    fn parents(&self, file: &Cursor<'_>) -> Result<Vec<u32>, Trouble> {
        const WRONG: &str = "the bits and the letters of its names do not fit together";
        let mut parents = Vec::with_capacity(self.labels.len());
        let mut node = 0_usize;
        let mut at = 0;
        // The last nodes have no children; their bits need not be looked at.
        while parents.len() < self.labels.len() {
            match bit(self.bitmap, at) {
                Some(true) => node += 1,
                // A parent comes before its children.
                Some(false) if node <= parents.len() => {
                    let Ok(node) = u32::try_from(node) else {
                        return file.malformed(WRONG);
                    };
                    parents.push(node);
                }
                _ => return file.malformed(WRONG),
            }
            at += 1;
        }
        Ok(parents)
    }
}

fn bit(words: &[u8], index: usize) -> Option<bool> {
    // The words are big-endian, so the byte with the least significant bits is the last of eight.
    let byte = words.get(index / 64 * 8 + 7 - index % 64 / 8)?;
    Some(byte >> (index % 8) & 1 == 1)
}
