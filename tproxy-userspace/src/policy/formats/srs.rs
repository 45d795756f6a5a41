//! sing-box's binary rule sets.
//!
//! Format: sing-box's common/srs/binary.go. `SRS`, a version, then zlib; in it the number of rules and the rules:
//!
//! ```text
//! rule      0, items, 255, inverted?           or   1, and 0 / or 1, varint n, n rules, inverted?
//! item      2 names   3 keywords   4 expressions   6 addresses   … others, which are conditions
//! names     0, varint n, n words of leaves, varint n, n words of bits, varint n, n bytes of labels (a trie)
//! addresses 1, u64 n, n times: varint 4 or 16, first address, varint, last address
//! list      varint n, n times: varint length, bytes
//! ```
//!
//! Words and fixed numbers are big-endian. In a trie `\n` before a name means the name and all below, `\r` before
//! a dot all below; version 1 has the latter beside the name itself for the former.

use std::collections::HashSet;
use std::net::IpAddr;

use super::cursor::Cursor;
use super::reading::{Reading, Trouble};
use super::singbox::{CONDITIONS, INVERTED, JOINED};
use super::trie::Trie;
use super::{EntryError, Fault, unpack};
use crate::policy::prefix::excerpt;

pub(super) const MAGIC: &[u8] = b"SRS";
/// Version 5 came with sing-box 1.14.
pub(super) const NEWEST: u8 = 5;
/// How deep rules may be inside others: none in use go beyond two.
const DEEPEST: usize = 16;

const READING: &str = "a rule";

pub(super) fn read(bytes: &[u8], out: &mut Reading) -> Result<(), Trouble> {
    let mut file = Cursor::new(bytes);
    if file.take(MAGIC.len(), "the head")? != MAGIC {
        return file.malformed("it does not begin with SRS");
    }
    let version = file.byte("the head")?;
    if !(1..=NEWEST).contains(&version) {
        let fault = Fault::Version {
            found: version.into(),
            known: NEWEST.into(),
        };
        return Err(Trouble::byte(MAGIC.len(), fault));
    }
    unpacked(&unpack::zlib(bytes, file.place(), unpack::MOST)?, out).map_err(Trouble::unpacked)
}

/// Reads what the compressed part holds.
pub(super) fn unpacked(bytes: &[u8], out: &mut Reading) -> Result<(), Trouble> {
    let mut data = Cursor::new(bytes);
    let rules = data.varint("the number of rules")?;
    let rules = data.count(rules, 1, "the rules")?;
    for _ in 0..rules {
        rule(&mut data, out, 0)?;
    }
    if data.is_empty() {
        Ok(())
    } else {
        data.malformed("something follows the last rule")
    }
}

fn rule(data: &mut Cursor<'_>, out: &mut Reading, depth: usize) -> Result<(), Trouble> {
    // What a rule says counts only if nothing else in it speaks against that, which may come last.
    let mut part = Reading::default();
    match data.byte(READING)? {
        0 => {
            let conditions = items(data, &mut part)?;
            if data.byte(READING)? != 0 {
                out.pass_over(INVERTED);
            } else if conditions {
                out.pass_over(CONDITIONS);
            } else {
                out.append(part);
            }
        }
        1 if depth == DEEPEST => return data.malformed("its rules are too deep"),
        1 => {
            let mode = data.byte(READING)?;
            let rules = data.varint(READING)?;
            for _ in 0..data.count(rules, 1, READING)? {
                rule(data, &mut part, depth + 1)?;
            }
            let inverted = data.byte(READING)? != 0;
            match mode {
                1 if !inverted => out.append(part),
                0 | 1 => out.pass_over(JOINED),
                _ => return data.malformed("rules are joined neither by `and` nor by `or`"),
            }
        }
        _ => return data.malformed("a rule is of a type that there is not"),
    }
    out.room()
        .map_err(|fault| Trouble::byte(data.place(), fault))
}

/// Reads the items of a rule, and says whether there are conditions among them.
fn items(data: &mut Cursor<'_>, out: &mut Reading) -> Result<bool, Trouble> {
    let mut conditions = false;
    loop {
        let item = data.byte(READING)?;
        match item {
            0xff => return Ok(conditions),
            2 => {
                if data.byte("names")? > 1 {
                    return data.malformed("the names are in a form that is not known");
                }
                names(data, out)?;
            }
            3 => strings(data, |text| out.keyword(text))?,
            4 => strings(data, |text| out.regex(text))?,
            6 => addresses(data, |first, last| out.range(first, last))?,
            _ => {
                conditions = true;
                skip(item, data)?;
            }
        }
        out.room()
            .map_err(|fault| Trouble::byte(data.place(), fault))?;
    }
}

/// Passes an item that is a condition.
fn skip(item: u8, data: &mut Cursor<'_>) -> Result<(), Trouble> {
    match item {
        // Numbers of two bytes.
        0 | 7 | 9 => {
            let count = data.varint(READING)?;
            let count = data.count(count, 2, READING)?;
            data.take(2 * count, READING)?;
        }
        1 | 8 | 10..=15 | 17 | 23 => strings(data, |_| Ok(()))?,
        5 => addresses(data, |_, _| Ok(()))?,
        16 => {
            data.byte(READING)?;
            trie(data)?;
        }
        18 => drop(data.counted(READING)?),
        19 | 20 => {}
        21 => {
            let kinds = data.varint(READING)?;
            for _ in 0..data.count(kinds, 2, READING)? {
                data.byte(READING)?;
                prefixes(data)?;
            }
        }
        22 => prefixes(data)?,
        _ => return data.malformed("a rule has an item that is not known"),
    }
    Ok(())
}

fn prefixes(data: &mut Cursor<'_>) -> Result<(), Trouble> {
    let count = data.varint(READING)?;
    for _ in 0..data.count(count, 2, READING)? {
        data.counted(READING)?;
        data.byte(READING)?;
    }
    Ok(())
}

fn strings(
    data: &mut Cursor<'_>,
    mut take: impl FnMut(&str) -> Result<(), EntryError>,
) -> Result<(), Trouble> {
    let count = data.varint(READING)?;
    for _ in 0..data.count(count, 1, READING)? {
        let place = data.place();
        let Ok(text) = std::str::from_utf8(data.counted(READING)?) else {
            return Err(Trouble::byte(
                place,
                Fault::Malformed("a text is not UTF-8"),
            ));
        };
        take(text).map_err(|reason| Trouble::entry(place, excerpt(text), reason))?;
    }
    Ok(())
}

fn addresses(
    data: &mut Cursor<'_>,
    mut take: impl FnMut(IpAddr, IpAddr) -> Result<(), EntryError>,
) -> Result<(), Trouble> {
    if data.byte("addresses")? != 1 {
        return data.malformed("the addresses are in a form that is not known");
    }
    let count = data.u64("addresses")?;
    for _ in 0..data.count(count, 10, "addresses")? {
        let place = data.place();
        let (first, last) = (address(data)?, address(data)?);
        take(first, last)
            .map_err(|reason| Trouble::entry(place, format!("{first}-{last}"), reason))?;
    }
    Ok(())
}

fn address(data: &mut Cursor<'_>) -> Result<IpAddr, Trouble> {
    match data.varint("an address")? {
        4 => Ok(data.array::<4>("an address")?.into()),
        16 => Ok(data.array::<16>("an address")?.into()),
        _ => data.malformed("an address has neither 4 nor 16 bytes"),
    }
}

fn trie<'a>(data: &mut Cursor<'a>) -> Result<Trie<'a>, Trouble> {
    let mut words = || -> Result<&'a [u8], Trouble> {
        let count = data.varint("names")?;
        let count = data.count(count, 8, "names")?;
        data.take(8 * count, "names")
    };
    Ok(Trie {
        leaves: words()?,
        bitmap: words()?,
        labels: data.counted("names")?,
    })
}

fn names(data: &mut Cursor<'_>, out: &mut Reading) -> Result<(), Trouble> {
    let trie = trie(data)?;
    let (mut alone, mut below) = (Vec::new(), HashSet::new());
    let bad = |text: &str, reason| Trouble::entry(data.place(), excerpt(text), reason);
    trie.for_each(data, |key| {
        let taken = match key.as_bytes() {
            [b'\n', ..] => out.suffix(&key[1..]),
            [b'\r', b'.', ..] => crate::policy::domain::name::normalize(&key[2..])
                .map_err(EntryError::from)
                .map(|name| {
                    below.insert(name);
                }),
            [b'\r', ..] => Err(EntryError::Line(
                "an ending of names that does not begin with a dot",
            )),
            _ => crate::policy::domain::name::normalize(key)
                .map_err(EntryError::from)
                .map(|name| alone.push(name)),
        };
        taken.map_err(|reason| bad(key, reason))?;
        // Names that wait count as well.
        out.room_for(alone.len() + below.len())
            .map_err(|fault| Trouble::byte(data.place(), fault))
    })?;
    out.names(alone, below);
    Ok(())
}
