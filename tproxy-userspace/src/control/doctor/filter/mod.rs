//! The rules of a firewall, as far as they can be understood, and what they do to packets of ours.
//!
//! [`nft`] and [`iptables`] read, [`judge`] follows packets through what was read. What is not understood is
//! said to be so, and nothing is concluded from it.

pub(super) mod iptables;
pub(super) mod judge;
pub(super) mod mark;
pub(super) mod nft;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use tproxy_common::abi::{MARK_MASK, MARK_STEER};

use super::checks::is_private;
use super::nat::{Among, is_named};

/// How many of the packets in question are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// None.
    No,
    /// It is not understood.
    Perhaps,
    /// Some: those to one port, say.
    Part,
    /// All.
    All,
}

impl Fit {
    /// What is meant if the condition is turned round.
    fn unless(self, negated: bool) -> Self {
        match (self, negated) {
            (Self::No, true) => Self::All,
            (Self::All, true) => Self::No,
            (fit, _) => fit,
        }
    }

    fn all_or_no(all: bool) -> Self {
        if all { Self::All } else { Self::No }
    }
}

/// Where a chain stands on a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// What is delivered to the gateway, steered packets among it.
    Input,
    /// What the gateway sends.
    Output,
    /// What leaves.
    Postrouting,
}

impl Hook {
    /// From the words of nft; those of iptables are the same in capitals.
    fn from_word(word: &str) -> Option<Self> {
        Some(match word.to_ascii_lowercase().as_str() {
            "prerouting" => Self::Prerouting,
            "input" => Self::Input,
            "output" => Self::Output,
            "postrouting" => Self::Postrouting,
            _ => return None,
        })
    }
}

/// Packets that are followed: the first ones of connections, alike but for their addresses and ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packets {
    /// Of IPv4, else of IPv6.
    pub v4: bool,
    /// TCP, else UDP.
    pub tcp: bool,
    /// The links that they may be seen to arrive by.
    pub arrive: BTreeSet<String>,
    /// The links that they leave by; none while they arrive.
    pub leave: BTreeSet<String>,
    /// Where they come from; empty if that is anywhere.
    pub sources: Vec<IpNet>,
    /// Where they go; empty if that is elsewhere: what is for the gateway or near goes direct.
    pub targets: Vec<IpNet>,
    /// The gateway's addresses: nothing that is steered is for one of them.
    pub own: Vec<IpAddr>,
    /// Their mark.
    pub mark: u32,
}

impl Packets {
    /// For a person.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match (self.v4, self.tcp) {
            (true, true) => "TCP over IPv4",
            (true, false) => "UDP over IPv4",
            (false, true) => "TCP over IPv6",
            (false, false) => "UDP over IPv6",
        }
    }
}

/// What a rule asks of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    /// IPv4, else IPv6.
    V4(bool),
    /// The protocol above IP, by name or number.
    Protocol(Among<String>),
    Arrive(Among<String>),
    Leave(Among<String>),
    Source(Among<IpNet>),
    Destination(Among<IpNet>),
    /// The mark's bits under `mask` are `value`.
    Mark {
        mask: u32,
        value: u32,
        negated: bool,
    },
    /// States of conntrack.
    State(Among<String>),
    /// The same of all packets that are followed.
    Known(Fit),
}

impl Condition {
    fn fit(&self, packets: &Packets) -> Fit {
        match self {
            Self::V4(v4) => Fit::all_or_no(*v4 == packets.v4),
            Self::Protocol(among) => {
                let own = if packets.tcp {
                    ["tcp", "6"]
                } else {
                    ["udp", "17"]
                };
                Fit::all_or_no(among.holds(|name| own.contains(&name.as_str())))
            }
            Self::Arrive(among) => by_link(among, &packets.arrive),
            Self::Leave(among) => by_link(among, &packets.leave),
            Self::Source(among) if packets.sources.is_empty() => {
                let every = among.values.iter().any(|prefix| prefix.prefix_len() == 0);
                if every { Fit::All } else { Fit::Part }.unless(among.negated)
            }
            Self::Source(among) => by_prefix(among, &packets.sources),
            Self::Destination(among) if !packets.targets.is_empty() => {
                by_prefix(among, &packets.targets)
            }
            Self::Destination(among) => {
                let elsewhere = |prefix: &IpNet| {
                    is_near(*prefix)
                        || prefix.prefix_len() == prefix.max_prefix_len()
                            && packets.own.contains(&prefix.addr())
                };
                let fit = if among.values.iter().any(|prefix| prefix.prefix_len() == 0) {
                    Fit::All
                } else if among.values.iter().all(elsewhere) {
                    Fit::No
                } else {
                    Fit::Part
                };
                fit.unless(among.negated)
            }
            Self::Mark {
                mask,
                value,
                negated,
            } => {
                let differs = (packets.mark ^ value) & mask;
                let fit = if differs == 0 {
                    Fit::All
                } else if differs & MARK_MASK != 0 {
                    Fit::No
                } else {
                    // Bits that others may have set.
                    Fit::Perhaps
                };
                fit.unless(*negated)
            }
            Self::State(among) => {
                Fit::all_or_no(among.holds(|state| state.eq_ignore_ascii_case("new")))
            }
            Self::Known(fit) => *fit,
        }
    }
}

/// A packet that leaves arrives by no link, and the other way round. With several that it may come by, the one
/// that is named may be the one.
fn by_link(among: &Among<String>, links: &BTreeSet<String>) -> Fit {
    let mut links = links.iter();
    Fit::all_or_no(if links.len() == 0 {
        among.negated
    } else {
        links.any(|link| among.holds(|name| is_named(name, link)))
    })
}

/// Which of these are within the prefixes?
fn by_prefix(among: &Among<IpNet>, those: &[IpNet]) -> Fit {
    let prefixes = || among.values.iter();
    let within = |one: &IpNet| prefixes().any(|prefix| prefix.contains(one));
    let touched = |one: &IpNet| within(one) || prefixes().any(|prefix| one.contains(prefix));
    let fit = if those.iter().all(within) {
        Fit::All
    } else if those.iter().any(touched) {
        Fit::Part
    } else {
        Fit::No
    };
    fit.unless(among.negated)
}

/// Destinations that go direct: private ones (as they do unless that is switched off), those for many, loopback.
fn is_near(prefix: IpNet) -> bool {
    const NEAR: [&str; 6] = [
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/3",
        "::1/128",
        "fe80::/10",
        "ff00::/8",
    ];
    let mut near = NEAR.iter().filter_map(|range| range.parse::<IpNet>().ok());
    is_private(prefix) || near.any(|range| range.contains(&prefix))
}

/// What a rule does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
    /// Leaves these bits of the mark as they are.
    SetMark(u32),
    /// Sends it elsewhere: the word of nft or iptables.
    Takes(String),
    /// Goes on where it is not understood where.
    Somewhere,
}

/// A rule of a chain. Chains are named by all that makes them differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    chain: String,
    conditions: Vec<Condition>,
    actions: Vec<Action>,
    /// As the program writes it.
    text: String,
    /// The command that removes it.
    delete: String,
}

impl Rule {
    fn fit(&self, packets: &Packets) -> Fit {
        let fits = self
            .conditions
            .iter()
            .map(|condition| condition.fit(packets));
        fits.min().unwrap_or(Fit::All)
    }
}

/// How a chain is spoken to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tool {
    /// The command, as `iptables` or `ip6tables-legacy`, and the table.
    Iptables { command: String, table: String },
    /// nft, with the table's and the chain's full name.
    Nft,
}

/// A chain that the kernel calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// As in [`Rule`].
    chain: String,
    hook: Hook,
    /// The policy is to drop.
    drops: bool,
    tool: Tool,
}

impl Base {
    /// The chain, for a person.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.chain
    }

    /// Where it stands.
    #[must_use]
    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// The command that has the chain accept what carries our mark and arrives by these links.
    #[must_use]
    pub fn accept(&self, links: &BTreeSet<String>) -> String {
        match &self.tool {
            Tool::Nft => {
                let names: Vec<_> = links.iter().map(|link| format!("\"{link}\"")).collect();
                let names = match &names[..] {
                    [one] => one.clone(),
                    many => format!("{{ {} }}", many.join(", ")),
                };
                format!(
                    "nft 'insert rule {} iifname {names} meta mark & {MARK_MASK:#x} == {MARK_STEER:#x} accept'",
                    self.chain
                )
            }
            Tool::Iptables { command, table } => {
                let chain = self.chain.rsplit(' ').next().unwrap_or_default();
                let lines: Vec<_> = links
                    .iter()
                    .map(|link| {
                        format!(
                            "{command} -t {table} -I {chain} -i {link} -m mark --mark {MARK_STEER:#x}/{MARK_MASK:#x} -j ACCEPT"
                        )
                    })
                    .collect();
                lines.join("; ")
            }
        }
    }
}

/// All rules that could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The chains that the kernel calls.
    bases: Vec<Base>,
    rules: Vec<Rule>,
}

impl Rules {
    /// Adds what another program told.
    pub(super) fn add(&mut self, other: Self) {
        self.bases.extend(other.bases);
        self.rules.extend(other.rules);
    }
}
