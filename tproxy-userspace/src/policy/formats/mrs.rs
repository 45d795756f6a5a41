//! mihomo's binary rule sets.
//!
//! Format: mihomo's rules/provider/mrs_reader.go. All of it is zstd; in it:
//!
//! ```text
//! "MRS" 1, behaviour 0 names or 1 addresses, i64 number of rules, i64 length of something more, that
//! names     1, i64 n, n words of leaves, i64 n, n words of bits, i64 n, n bytes of labels (a trie)
//! addresses 1, i64 n, n times: first and last address, 16 bytes each, those of IPv4 as ::ffff:a.b.c.d
//! ```
//!
//! Numbers and words are big-endian. In a trie `+.` before a name means all below it; with the name itself
//! beside it that is the name and all below. `*` stands for any one part of a name.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};

use super::cursor::Cursor;
use super::reading::{Reading, Trouble};
use super::trie::Trie;
use super::{Fault, unpack};
use crate::policy::domain::{name, pattern};
use crate::policy::prefix::excerpt;

pub(super) const ZSTD_MAGIC: &[u8] = b"\x28\xb5\x2f\xfd";

pub(super) fn read(bytes: &[u8], out: &mut Reading) -> Result<(), Trouble> {
    unpacked(&unpack::zstd(bytes, unpack::MOST)?, out).map_err(Trouble::unpacked)
}

/// Reads what the file unpacks to.
pub(super) fn unpacked(bytes: &[u8], out: &mut Reading) -> Result<(), Trouble> {
    let mut data = Cursor::new(bytes);
    if data.take(3, "the head")? != b"MRS" {
        return Err(Trouble::byte(
            0,
            Fault::Malformed("it is zstd, but no rule set of mihomo (MRS)"),
        ));
    }
    let version = data.byte("the head")?;
    if version != 1 {
        return Err(Trouble::byte(
            3,
            Fault::Version {
                found: version.into(),
                known: 1,
            },
        ));
    }
    let behaviour = data.byte("the head")?;
    data.u64("the head")?;
    let more = data.u64("the head")?;
    let more = data.count(more, 1, "the head")?;
    data.take(more, "the head")?;
    match behaviour {
        0 => names(&mut data, out)?,
        1 => addresses(&mut data, out)?,
        _ => return data.malformed("its rules are neither names nor addresses"),
    }
    if data.is_empty() {
        Ok(())
    } else {
        data.malformed("something follows the last rule")
    }
}

fn version(data: &mut Cursor<'_>, what: &'static str) -> Result<(), Trouble> {
    match data.byte(what)? {
        1 => Ok(()),
        _ => data.malformed("its rules are in a form that is not known"),
    }
}

fn addresses(data: &mut Cursor<'_>, out: &mut Reading) -> Result<(), Trouble> {
    version(data, "addresses")?;
    let count = data.u64("addresses")?;
    for _ in 0..data.count(count, 32, "addresses")? {
        let place = data.place();
        let mut address = || -> Result<IpAddr, Trouble> {
            Ok(Ipv6Addr::from(data.array::<16>("an address")?).to_canonical())
        };
        let (first, last) = (address()?, address()?);
        out.range(first, last)
            .map_err(|reason| Trouble::entry(place, format!("{first}-{last}"), reason))?;
        out.room().map_err(|fault| Trouble::byte(place, fault))?;
    }
    Ok(())
}

fn names(data: &mut Cursor<'_>, out: &mut Reading) -> Result<(), Trouble> {
    version(data, "names")?;
    let mut part = |size: usize| {
        let count = data.u64("names")?;
        let count = data.count(count, size, "names")?;
        data.take(size * count, "names")
    };
    let trie = Trie {
        leaves: part(8)?,
        bitmap: part(8)?,
        labels: part(1)?,
    };
    let (mut alone, mut below) = (Vec::new(), HashSet::new());
    trie.for_each(data, |key| {
        let taken = match key.strip_prefix("+.") {
            Some(name) => name::normalize(name).map(|name| {
                below.insert(name);
            }),
            None if key.contains('*') => pattern::wildcard(key).map(|entry| out.domain(entry)),
            None => name::normalize(key).map(|name| alone.push(name)),
        };
        taken.map_err(|reason| Trouble::entry(data.place(), excerpt(key), reason))?;
        out.room_for(alone.len() + below.len())
            .map_err(|fault| Trouble::byte(data.place(), fault))
    })?;
    out.names(alone, below);
    Ok(())
}
