//! Addresses that names were found to stand for: which of them the kernel may let pass.
//!
//! An address is let pass while names that always go direct stand for it, and none that does not. No I/O and no
//! clock: the caller says what time it is, and puts the changes into force.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Names that are kept of one address. One that goes elsewhere is never given up for one that goes direct.
const MOST_NAMES: usize = 32;

/// What is to be done about an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Let it pass until then.
    Bypass {
        /// The address.
        address: IpAddr,
        /// Until when.
        until: Instant,
        /// One of the names that stand for it.
        name: Box<str>,
    },
    /// Let it pass no more.
    Spare(IpAddr),
}

/// How many addresses there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Those that are let pass.
    pub bypassed: usize,
    /// Those that a name which goes elsewhere stands for as well, or alone.
    pub spared: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Learned {
    addresses: HashMap<IpAddr, Vec<Name>>,
    most: usize,
    hold: Duration,
    /// Addresses that there was no room for.
    refused: u64,
}

#[derive(Debug)]
struct Name {
    name: Box<str>,
    until: Instant,
    direct: bool,
}

impl Learned {
    /// Nothing yet, of at most `most` addresses. Each name holds for `hold` at least, since devices keep answers for
    /// longer than they are told to.
    #[must_use]
    pub fn new(most: usize, hold: Duration) -> Self {
        Self {
            addresses: HashMap::new(),
            most,
            hold,
            refused: 0,
        }
    }

    /// This name stands for this address for the time `ttl`. `direct`: all that asks for it there goes direct.
    pub fn learn(
        &mut self,
        name: &str,
        address: IpAddr,
        direct: bool,
        ttl: Duration,
        now: Instant,
    ) -> Option<Change> {
        if self.addresses.len() >= self.most && !self.addresses.contains_key(&address) {
            self.refused += 1;
            return None;
        }
        let names = self.addresses.entry(address).or_default();
        let before = verdict(names);
        let until = now + ttl.max(self.hold);
        match names.iter_mut().find(|known| *known.name == *name) {
            Some(known) => {
                known.until = known.until.max(until);
                known.direct = direct;
            }
            None => {
                let name = name.into();
                names.push(Name {
                    name,
                    until,
                    direct,
                });
                if names.len() > MOST_NAMES {
                    give_one_up(names);
                }
            }
        }
        change(address, before, verdict(names))
    }

    /// All names that hold, with their addresses, and for how long.
    pub fn names(&self, now: Instant) -> impl Iterator<Item = (&str, IpAddr, Duration)> {
        let all = self.addresses.iter();
        let all = all.flat_map(|(address, names)| names.iter().map(|name| (*address, name)));
        all.map(move |(address, name)| {
            let left = name.until.saturating_duration_since(now);
            (&*name.name, address, left)
        })
    }

    /// Drops the names whose time is over. The last direct name of an address that `is_used` holds on.
    pub fn expire(&mut self, now: Instant, mut is_used: impl FnMut(IpAddr) -> bool) -> Vec<Change> {
        let mut changes = Vec::new();
        let hold = self.hold;
        self.addresses.retain(|address, names| {
            if names.iter().all(|name| name.until > now) {
                return true;
            }
            let before = verdict(names);
            let last = before.as_ref().is_some_and(|(until, _)| *until <= now);
            if last && is_used(*address) {
                // Those whose time is over but for one are dropped below.
                if let Some(name) = names.iter_mut().max_by_key(|name| name.until) {
                    name.until = now + hold;
                }
            }
            names.retain(|name| name.until > now);
            changes.extend(change(*address, before, verdict(names)));
            !names.is_empty()
        });
        changes
    }

    /// Decides anew about all of them, because the rules are others.
    pub fn reconsider(&mut self, is_direct: impl Fn(&str, IpAddr) -> bool) -> Vec<Change> {
        let mut changes = Vec::new();
        for (address, names) in &mut self.addresses {
            let before = verdict(names);
            for name in names.iter_mut() {
                name.direct = is_direct(&name.name, *address);
            }
            changes.extend(change(*address, before, verdict(names)));
        }
        changes
    }

    /// How many addresses there are.
    #[must_use]
    pub fn count(&self) -> Count {
        let bypassed = self
            .addresses
            .values()
            .filter(|names| verdict(names).is_some())
            .count();
        Count {
            bypassed,
            spared: self.addresses.len() - bypassed,
        }
    }

    /// How many addresses there was no room for, so far.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

/// Until when the address is let pass, if it is, and a name for it.
fn verdict(names: &[Name]) -> Option<(Instant, Box<str>)> {
    if names.iter().any(|name| !name.direct) {
        return None;
    }
    let last = names.iter().max_by_key(|name| name.until)?;
    Some((last.until, last.name.clone()))
}

fn change(
    address: IpAddr,
    before: Option<(Instant, Box<str>)>,
    after: Option<(Instant, Box<str>)>,
) -> Option<Change> {
    match (before, after) {
        (Some((before, _)), Some((after, _))) if before == after => None,
        (_, Some((until, name))) => Some(Change::Bypass {
            address,
            until,
            name,
        }),
        (Some(_), None) => Some(Change::Spare(address)),
        (None, None) => None,
    }
}

/// Of too many names: a direct one first, and the one that goes soonest.
fn give_one_up(names: &mut Vec<Name>) {
    let (at, _) = names
        .iter()
        .enumerate()
        .min_by_key(|(_, name)| (!name.direct, name.until))
        .expect("there are too many");
    names.swap_remove(at);
}
