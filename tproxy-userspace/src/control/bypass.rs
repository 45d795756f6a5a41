//! Edits of the bypass set. Each edit is done whole or not at all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use nix::time::{ClockId, clock_gettime};
use tproxy_common::abi::{Bypass, Origin};

use super::bpf::{self, BypassEntry, Maps};

/// Why an edit was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A prefix to be removed is not there.
    #[error(
        "{0} is not in the bypass set, so nothing was removed; `tproxy-bpf bypass list` shows what is"
    )]
    Absent(IpNet),
    /// A map operation failed. What had been changed was taken back.
    #[error("{0}; nothing was changed")]
    Map(#[source] bpf::Error),
    /// A map operation failed, and so did taking back what had been changed.
    #[error("{edit}; taking back what had been changed failed as well: {undo}")]
    HalfDone {
        /// The first failure.
        #[source]
        edit: Box<bpf::Error>,
        /// The second.
        undo: Box<bpf::Error>,
    },
}

/// What goes with the prefixes of an edit.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// How long they hold; for ever if there is no limit.
    pub ttl: Option<Duration>,
    /// A text beside them.
    pub note: String,
}

/// The time that expiry is measured in: nanoseconds since boot, sleep included.
#[must_use]
pub fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| Duration::from(time).as_nanos() as u64)
}

/// What is left of an entry's time: `None` if it never expires, zero if it has.
#[must_use]
pub fn time_left(value: &Bypass, now: u64) -> Option<Duration> {
    (value.expires != 0).then(|| Duration::from_nanos(value.expires.saturating_sub(now)))
}

fn entry(prefix: IpNet, terms: &Terms, origin: Origin) -> BypassEntry {
    let expires = terms.ttl.map_or(0, |ttl| {
        now()
            .saturating_add(u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX))
            .max(1)
    });
    BypassEntry {
        prefix,
        value: Bypass {
            expires,
            prefix_len: prefix.prefix_len().into(),
            origin: origin as u32,
            ..Bypass::default()
        },
        note: terms.note.clone(),
    }
}

/// Adds prefixes. One that is there already gets the new terms and keeps its hits.
///
/// # Errors
/// [`Error::Map`], when a map is full for example.
pub fn add(maps: &mut Maps, prefixes: &[IpNet], terms: &Terms) -> Result<(), Error> {
    let added = prefixes
        .iter()
        .map(|prefix| entry(*prefix, terms, Origin::Command))
        .collect();
    apply(maps, added, Vec::new())
}

/// Removes prefixes, each of which must be there.
///
/// # Errors
/// [`Error::Absent`], [`Error::Map`].
pub fn remove(maps: &mut Maps, prefixes: &[IpNet]) -> Result<(), Error> {
    for prefix in prefixes {
        if maps.bypass_entry(*prefix).map_err(Error::Map)?.is_none() {
            return Err(Error::Absent(*prefix));
        }
    }
    apply(maps, Vec::new(), prefixes.to_vec())
}

/// Makes the entries of one origin be just these. Entries of the other origins stay, but for a prefix that the
/// configuration or a command wants for itself: then it is theirs.
///
/// # Errors
/// [`Error::Map`].
pub fn replace(
    maps: &mut Maps,
    prefixes: &[IpNet],
    terms: &Terms,
    origin: Origin,
) -> Result<Replaced, Error> {
    let present: HashMap<IpNet, Bypass> = maps
        .bypass()
        .map_err(Error::Map)?
        .into_iter()
        .map(|entry| (entry.prefix, entry.value))
        .collect();
    let wanted: std::collections::HashSet<IpNet> = prefixes.iter().copied().collect();
    let now = now();
    let keeps = |value: &Bypass| match origin {
        // What is there for good is there, whoever put it there. Only the proxy's own entries go with it.
        Origin::Config => value.expires == 0 && value.origin != Origin::Outbound as u32,
        Origin::Outbound => serves(value, now),
        Origin::Command | Origin::Run | Origin::Learned => {
            value.origin == origin as u32 && value.expires == 0 && terms.ttl.is_none()
        }
    };
    let added: Vec<_> = wanted
        .iter()
        .filter(|prefix| !present.get(*prefix).is_some_and(keeps))
        .map(|prefix| entry(*prefix, terms, origin))
        .collect();
    let removed: Vec<_> = present
        .iter()
        .filter(|(prefix, value)| value.origin == origin as u32 && !wanted.contains(*prefix))
        .map(|(prefix, _)| *prefix)
        .collect();
    let replaced = Replaced {
        added: added.len(),
        removed: removed.len(),
        wanted: wanted.len(),
    };
    apply(maps, added, removed)?;
    Ok(replaced)
}

/// Adds those of the prefixes that nobody has in the set, or whose time is over, and says how many that were.
/// It costs a look-up for each prefix, however large the set is.
///
/// # Errors
/// [`Error::Map`].
pub fn restore(
    maps: &mut Maps,
    prefixes: &[IpNet],
    terms: &Terms,
    origin: Origin,
) -> Result<usize, Error> {
    let now = now();
    let mut missing = Vec::new();
    for prefix in prefixes {
        let present = maps.bypass_entry(*prefix).map_err(Error::Map)?;
        if !present.is_some_and(|entry| serves(&entry.value, now)) {
            missing.push(entry(*prefix, terms, origin));
        }
    }
    let count = missing.len();
    apply(maps, missing, Vec::new())?;
    Ok(count)
}

/// Does an entry count?
fn holds(value: &Bypass, now: u64) -> bool {
    time_left(value, now).is_none_or(|left| !left.is_zero())
}

/// Does an entry stand in for one that the proxy needs for its server? One that was learned goes when its name does.
fn serves(value: &Bypass, now: u64) -> bool {
    holds(value, now) && value.origin != Origin::Learned as u32
}

/// Adds an address that a name stands for, or gives it new terms. An entry of somebody else stays as it is, and
/// then it is false.
///
/// # Errors
/// [`Error::Map`].
pub fn learn(maps: &mut Maps, address: IpAddr, terms: &Terms) -> Result<bool, Error> {
    let prefix = IpNet::from(address);
    let present = maps.bypass_entry(prefix).map_err(Error::Map)?;
    let is_free = present.is_none_or(|entry| {
        entry.value.origin == Origin::Learned as u32 || !holds(&entry.value, now())
    });
    if is_free {
        let added = vec![entry(prefix, terms, Origin::Learned)];
        apply(maps, added, Vec::new())?;
    }
    Ok(is_free)
}

/// Removes an address that was learned. An entry of somebody else stays.
///
/// # Errors
/// [`Error::Map`].
pub fn unlearn(maps: &mut Maps, address: IpAddr) -> Result<(), Error> {
    let prefix = IpNet::from(address);
    let present = maps.bypass_entry(prefix).map_err(Error::Map)?;
    if present.is_some_and(|entry| entry.value.origin == Origin::Learned as u32) {
        apply(maps, Vec::new(), vec![prefix])?;
    }
    Ok(())
}

/// How many packets the entry of just this address let pass. 0 without one.
///
/// # Errors
/// [`Error::Map`].
pub fn packets(maps: &Maps, address: IpAddr) -> Result<u64, Error> {
    let present = maps.bypass_entry(address.into()).map_err(Error::Map)?;
    Ok(present.map_or(0, |entry| entry.value.packets))
}

/// What a replacement came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// Entries that are new or have new terms.
    pub added: usize,
    /// Entries that are gone.
    pub removed: usize,
    /// Entries there are now, of this origin.
    pub wanted: usize,
}

/// Removes all entries and says how many there were.
///
/// # Errors
/// [`Error::Map`].
pub fn flush(maps: &mut Maps) -> Result<usize, Error> {
    let all: Vec<_> = maps
        .bypass()
        .map_err(Error::Map)?
        .into_iter()
        .map(|entry| entry.prefix)
        .collect();
    let count = all.len();
    apply(maps, Vec::new(), all)?;
    Ok(count)
}

/// Removes what has expired and says how many entries that were. The programs pass over such
/// entries by themselves; this gives the room back.
///
/// # Errors
/// [`Error::Map`].
pub fn sweep(maps: &mut Maps) -> Result<usize, Error> {
    let now = now();
    let expired: Vec<_> = maps
        .bypass()
        .map_err(Error::Map)?
        .into_iter()
        .filter(|entry| entry.value.expires != 0 && entry.value.expires <= now)
        .map(|entry| entry.prefix)
        .collect();
    let count = expired.len();
    apply(maps, Vec::new(), expired)?;
    Ok(count)
}

/// Additions before removals, so that an address in an old and a new prefix is bypassed throughout.
fn apply(maps: &mut Maps, added: Vec<BypassEntry>, removed: Vec<IpNet>) -> Result<(), Error> {
    let mut undo: Vec<(IpNet, Option<BypassEntry>)> = Vec::new();
    let result = change(maps, added, removed, &mut undo);
    let Err(edit) = result else {
        return Ok(());
    };
    for (prefix, before) in undo.into_iter().rev() {
        let undone = match before {
            Some(entry) => maps.insert_bypass(&entry),
            None => maps.remove_bypass(prefix),
        };
        if let Err(undo) = undone {
            return Err(Error::HalfDone {
                edit: Box::new(edit),
                undo: Box::new(undo),
            });
        }
    }
    Err(Error::Map(edit))
}

fn change(
    maps: &mut Maps,
    added: Vec<BypassEntry>,
    removed: Vec<IpNet>,
    undo: &mut Vec<(IpNet, Option<BypassEntry>)>,
) -> Result<(), bpf::Error> {
    for mut entry in added {
        let before = maps.bypass_entry(entry.prefix)?;
        if let Some(before) = &before {
            entry.value.packets = before.value.packets;
            entry.value.bytes = before.value.bytes;
        }
        undo.push((entry.prefix, before));
        maps.insert_bypass(&entry)?;
    }
    for prefix in removed {
        undo.push((prefix, maps.bypass_entry(prefix)?));
        maps.remove_bypass(prefix)?;
    }
    Ok(())
}
