//! Is this machine fit to be a gateway? [`gather()`] looks, [`examine`] judges: pure, over [`Facts`].
//!
//! A check is a function in `checks.rs` and its line in the list there; what it needs is a field of [`Facts`].

mod checks;
mod clock;
mod filter;
mod firewall;
mod gather;
mod hooks;
mod limits;
mod nat;
mod ports;
mod secrets;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Serialize;

pub use clock::Clock;
pub use firewall::Firewall;
pub use gather::{Subject, attached_links, gather};
pub use hooks::{Held, Hooks, Neighbour, Stands};
pub use limits::{Files, Limits};
pub use nat::{Covered, Translates};
pub use ports::{Listening, Ports, Wanted};

use super::route::Foreign;
use crate::config;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Works, but not all of it, or it could not be told.
    Hint,
    /// Something will not work.
    Problem,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, in a word or two.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// Why it matters. Empty if all is well.
    pub why: String,
    /// A command or a configuration line that mends it. Empty if all is well, or nothing does.
    pub remedy: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            severity: Severity::Ok,
            found: found.into(),
            why: String::new(),
            remedy: String::new(),
        }
    }

    fn hint(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            severity: Severity::Hint,
            ..Self::ok(check, found)
        }
    }

    fn problem(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            severity: Severity::Problem,
            ..Self::ok(check, found)
        }
    }

    fn because(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

/// The BPF file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bpffs {
    /// It is mounted.
    Mounted,
    /// The kernel has it, so it can be mounted.
    Available,
    /// The kernel has none.
    Missing,
}

/// A LAN link that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanLink {
    /// Its name.
    pub name: String,
    /// The links that netfilter and routing see its packets arrive by: itself, its bridge and the like.
    pub arrive: BTreeSet<String>,
    /// Who may use the proxy there.
    pub sources: BTreeSet<IpNet>,
}

/// What is known of translation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    /// Rules that translate source addresses.
    pub rules: Vec<Translates>,
    /// Why there may be more that were not seen, and how to let them be seen.
    pub unseen: Option<(String, String)>,
}

/// What was gathered from the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What the kernel calls itself.
    pub release: String,
    /// What holds programs where there is no tcx, and is not to be had.
    pub missing_for_clsact: Vec<&'static str>,
    /// Capabilities that the process lacks.
    pub missing_capabilities: Vec<&'static str>,
    /// The BPF file system.
    pub bpffs: Bpffs,
    /// Where cgroup2 is mounted.
    pub cgroup2: Option<PathBuf>,
    /// Is the kernel half attached?
    pub attached: bool,
    /// What the configuration has tproxy-bpf do while it is attached.
    pub configured: config::Gateway,
    /// The LAN links.
    pub lan: Vec<LanLink>,
    /// Why a LAN link that is named cannot be used.
    pub unfit_lan: Option<String>,
    /// Names of the links with a default route, loopback not among them.
    pub ways_out: BTreeSet<String>,
    /// `net.ipv4.ip_forward`; `None` if it cannot be read.
    pub forwarding_v4: Option<bool>,
    /// `net.ipv6.conf.all.forwarding`; `None` if the kernel has no IPv6.
    pub forwarding_v6: Option<bool>,
    /// Source translation.
    pub translation: Translation,
    /// `send_redirects` of `all` and of the links that devices' packets arrive by.
    pub send_redirects: BTreeMap<String, bool>,
    /// `rp_filter` of `all` and of the links that devices' packets arrive by.
    pub rp_filter: BTreeMap<String, String>,
    /// Programs of others on the links.
    pub hooks: Hooks,
    /// Routing rules and routes of others that meet ours.
    pub rules: Vec<Foreign>,
    /// Rules of netfilter.
    pub firewall: Firewall,
    /// Ports.
    pub ports: Ports,
    /// Limits of the machine.
    pub limits: Limits,
    /// What the configuration lets in.
    pub files: Files,
    /// Files with passwords or tokens that every user of the machine can read, with their modes.
    pub exposed: Vec<(PathBuf, u32)>,
    /// The clock.
    pub clock: Clock,
}

/// Judges.
#[must_use]
pub fn examine(facts: &Facts) -> Vec<Finding> {
    checks::CHECKS
        .iter()
        .flat_map(|check| check(facts))
        .collect()
}
