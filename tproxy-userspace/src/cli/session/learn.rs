//! Names reach the kernel: the addresses of names that go direct are let pass there.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use tproxy_common::abi::Origin;
use tproxy_userspace::control::bpf::Maps;
use tproxy_userspace::control::bypass::{self, Terms};
use tproxy_userspace::control::place::EditLock;
use tproxy_userspace::data::dns::Announcement;
use tproxy_userspace::policy::learned::{Change, Learned};

use super::start::Reader;
use super::{SWEEP, Session};

/// Addresses that are kept. A device that asks for more names than that is no browser.
const MOST: usize = 65_536;
/// The least time that an address is let pass. Browsers keep an answer for a minute, whatever its TTL.
const HOLD: Duration = Duration::from_secs(300);
/// The kernel lets go of an entry by itself after this time more: when the proxy was killed.
const SLACK: Duration = SWEEP.saturating_mul(3);
/// Announcements that are acted on at a time.
const BATCH: usize = 64;

/// What names stand for, and how much the entries in the kernel were used.
pub(super) struct Names {
    learned: Learned,
    used: HashMap<IpAddr, u64>,
    /// Made when it is first needed.
    lock: Option<EditLock>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            learned: Learned::new(MOST, HOLD),
            used: HashMap::new(),
            lock: None,
        }
    }
}

/// The next announcements, as many as there are.
pub(super) async fn announced(reader: &mut Option<Reader>) -> Vec<Announcement> {
    let mut batch = Vec::new();
    if let Some(reader) = reader
        && reader.recv_many(&mut batch, BATCH).await > 0
    {
        return batch;
    }
    std::future::pending().await
}

impl Session<'_> {
    /// Acts on what was learned. The answers wait for that.
    pub(super) fn learn(&mut self, announced: &[Announcement]) -> Result<()> {
        let now = Instant::now();
        let mut changes = Vec::new();
        for Announcement { learned, .. } in announced {
            for (address, ttl) in &learned.addresses {
                if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
                    continue;
                }
                let direct = self.proxy.is_always_direct(&learned.name, *address);
                let ttl = Duration::from_secs(u64::from(*ttl));
                let names = &mut self.names.learned;
                changes.extend(names.learn(&learned.name, *address, direct, ttl, now));
            }
        }
        self.let_pass(changes, now)
    }

    /// Forgets the names whose time is over, but for those that are in use.
    pub(super) fn forget_names(&mut self) -> Result<()> {
        let now = Instant::now();
        let maps = self.gateway.maps();
        let Names { learned, used, .. } = &mut self.names;
        let changes = learned.expire(now, |address| {
            let packets = bypass::packets(maps, address).unwrap_or(0);
            used.insert(address, packets) != Some(packets) && packets > 0
        });
        self.let_pass(changes, now)
    }

    /// All names that hold, their addresses, and for how many seconds: for the process that takes over.
    pub(super) fn names_left(&self) -> Vec<(String, IpAddr, u64)> {
        let names = self.names.learned.names(Instant::now());
        names
            .map(|(name, address, left)| (name.to_owned(), address, left.as_secs()))
            .collect()
    }

    /// Goes on with the names that another process knew, by the rules of this one.
    pub(super) fn inherit_names(&mut self, names: Vec<(String, IpAddr, u64)>) -> Result<()> {
        let now = Instant::now();
        let mut changes = Vec::new();
        // What is let pass may not be any more.
        let mut others: HashSet<IpAddr> = names.iter().map(|(_, address, _)| *address).collect();
        for (name, address, left) in names {
            let direct = self.proxy.is_always_direct(&name, address);
            let left = Duration::from_secs(left);
            let learned = &mut self.names.learned;
            changes.extend(learned.learn(&name, address, direct, left, now));
        }
        for change in &changes {
            match change {
                Change::Bypass { address, .. } => others.remove(address),
                Change::Spare(address) => others.insert(*address),
            };
        }
        changes.extend(others.into_iter().map(Change::Spare));
        self.let_pass(changes, now)
    }

    /// The rules are others.
    pub(super) fn reconsider_names(&mut self) -> Result<()> {
        let proxy = &self.proxy;
        let changes = self
            .names
            .learned
            .reconsider(|name, address| proxy.is_always_direct(name, address));
        self.let_pass(changes, Instant::now())
    }

    fn let_pass(&mut self, changes: Vec<Change>, now: Instant) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let Names { used, lock, .. } = &mut self.names;
        // Answers wait for this, so it is not the lock of the commands with its files.
        let lock = match lock {
            Some(lock) => lock,
            None => lock.insert(self.place.edit_lock()?),
        };
        let _editing = lock.hold()?;
        let maps = self.gateway.maps();
        for change in changes {
            match change {
                Change::Bypass {
                    address,
                    until,
                    name,
                } => {
                    let terms = Terms {
                        ttl: Some(until.saturating_duration_since(now) + SLACK),
                        note: name.into(),
                    };
                    bypass::learn(maps, address, &terms)?;
                }
                Change::Spare(address) => {
                    used.remove(&address);
                    bypass::unlearn(maps, address)?;
                }
            }
        }
        Ok(())
    }

    /// For `status`.
    pub(super) fn names_status(&self) -> Value {
        let count = self.names.learned.count();
        json!({
            "bypassed": count.bypassed,
            "spared": count.spared,
            "refused": self.names.learned.refused(),
        })
    }
}

/// Removes all that was learned: of a proxy that was killed, or because this one ends.
pub(super) fn unlearn_all(maps: &mut Maps) -> Result<()> {
    bypass::replace(maps, &[], &Terms::default(), Origin::Learned)?;
    Ok(())
}
