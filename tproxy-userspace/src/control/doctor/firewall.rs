//! The firewall on the way of steered packets, and rules of others that use our marks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;
use tproxy_common::abi::{MARK_EXEMPT, MARK_MASK, MARK_REPLY, MARK_STEER};

use super::checks::list;
use super::filter::judge::{self, Found, What};
use super::filter::{Fit, Hook, Packets, Rules, iptables, nft};
use super::gather::{self, Unseen};
use super::{Facts, Finding, LanLink};

/// What is known of the firewall.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Firewall {
    /// All rules that could be read.
    pub rules: Rules,
    /// Why there may be more that were not seen, and how to let them be seen.
    pub unseen: Vec<Unseen>,
    /// The gateway's addresses.
    pub own: Vec<IpAddr>,
}

/// Reads the rules of all programs that there are.
pub(super) fn gather(ruleset: &Result<Value, Unseen>, own: Vec<IpAddr>) -> Firewall {
    let mut found = Firewall {
        own,
        ..Firewall::default()
    };
    match ruleset {
        Ok(ruleset) => {
            let theirs = nft::with_iptables(ruleset);
            // What nft cannot print as text is named by its handle.
            let text = gather::run("nft", &["-a", "list", "ruleset"]).unwrap_or_default();
            found.rules.add(nft::read(ruleset, &text, &theirs));
            for family in theirs {
                let program = gather::iptables(family);
                match gather::run(&format!("{program}-nft-save"), &[])
                    .or_else(|_| gather::run(&format!("{program}-save"), &[]))
                {
                    Ok(text) => found.rules.add(iptables::read(&text, family, program)),
                    Err(_) => found.unseen.push((
                        format!("{program} is not there to print its rules"),
                        format!("install the package iptables, and try again; or look at: nft list ruleset {}", if family == 4 { "ip" } else { "ip6" }),
                    )),
                }
            }
        }
        Err(unseen) => found.unseen.push(unseen.clone()),
    }
    for family in [4, 6] {
        if gather::legacy_tables(family).is_empty() {
            continue;
        }
        match gather::legacy_save(family, &[]) {
            Ok(text) => {
                let command = format!("{}-legacy", gather::iptables(family));
                found.rules.add(iptables::read(&text, family, &command));
            }
            Err(unseen) => found.unseen.push(unseen),
        }
    }
    found
}

/// What was found of several kinds of packets, as one.
struct Joined<'r> {
    found: Found<'r>,
    packets: BTreeSet<&'static str>,
    links: BTreeSet<&'r str>,
    arrive: BTreeSet<String>,
}

/// The packets of a link: steered ones, or the proxy's answers to its devices over UDP.
fn packets(facts: &Facts, link: &LanLink, answers: bool) -> Vec<Packets> {
    let mut all = Vec::new();
    for v4 in [true, false] {
        let sources = link.sources.iter().copied();
        let sources: Vec<_> = sources
            .filter(|source| source.addr().is_ipv4() == v4)
            .collect();
        if sources.is_empty() {
            continue;
        }
        for tcp in [true, false] {
            let (arrive, leave) = (link.arrive.clone(), BTreeSet::new());
            all.extend(match answers {
                false => Some(Packets {
                    v4,
                    tcp,
                    arrive,
                    leave,
                    sources: sources.clone(),
                    targets: Vec::new(),
                    own: facts.firewall.own.clone(),
                    mark: MARK_STEER,
                }),
                // TCP's answers are not told by their mark.
                true if tcp => None,
                true => Some(Packets {
                    v4,
                    tcp,
                    arrive: leave,
                    leave: arrive,
                    sources: Vec::new(),
                    targets: sources.clone(),
                    own: Vec::new(),
                    mark: MARK_REPLY,
                }),
            });
        }
    }
    all
}

/// What happens to the packets of all links in these hooks.
fn join<'f>(facts: &'f Facts, hooks: &[Hook], answers: bool) -> Vec<Joined<'f>> {
    let mut all: BTreeMap<(&str, What, Option<&str>), Joined<'f>> = BTreeMap::new();
    let mut every = Vec::new();
    for link in &facts.lan {
        for packets in packets(facts, link, answers) {
            for hook in hooks {
                let found = judge::follow(&facts.firewall.rules, *hook, &packets);
                every.extend(found.into_iter().map(|found| (link, packets.word(), found)));
            }
        }
    }
    for (link, word, found) in every {
        let key = (
            found.base.name(),
            found.what.clone(),
            found.rule.map(|rule| rule.delete),
        );
        let joined = all.entry(key).or_insert_with(|| Joined {
            found: found.clone(),
            packets: BTreeSet::new(),
            links: BTreeSet::new(),
            arrive: BTreeSet::new(),
        });
        joined.found.fit = joined.found.fit.max(found.fit);
        joined.found.doubt &= found.doubt;
        joined.packets.insert(word);
        joined.links.insert(&link.name);
        joined.arrive.extend(link.arrive.iter().cloned());
    }
    all.into_values().collect()
}

const WHY_INPUT: &str = "what is steered is delivered to the gateway itself, so it passes the rules for \
                         packets to the gateway, with the destination that the device gave it";

/// Does a firewall drop what is steered?
pub(super) fn firewall(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "firewall";
    if facts.lan.is_empty() {
        return Vec::new();
    }
    let mut findings: Vec<Finding> = Vec::new();
    let mut not_understood = 0;
    for joined in join(facts, &[Hook::Prerouting, Hook::Input], false) {
        let Joined {
            found,
            packets,
            links,
            arrive,
        } = &joined;
        let (chain, packets, links) = (found.base.name(), list(packets), list(links));
        let by = match (&found.what, found.rule) {
            (What::Policy, _) => "its policy is drop, and no rule accepts them".to_owned(),
            (What::Dropped, Some(rule)) => format!("by {:?}", rule.text),
            _ => continue,
        };
        if found.fit == Fit::Perhaps {
            not_understood += 1;
            continue;
        }
        let remedy = format!("{}{}", found.base.accept(arrive), keep(chain));
        findings.push(if found.fit == Fit::All && !found.doubt {
            let what =
                format!("the chain {chain} drops what is steered from {links} ({packets}): {by}");
            Finding::problem(CHECK, what)
                .because(WHY_INPUT)
                .remedy(remedy)
        } else {
            let how = if found.doubt {
                "may drop (some rules before it are not understood here)"
            } else {
                "drops a part of"
            };
            let what =
                format!("the chain {chain} {how} what is steered from {links} ({packets}): {by}");
            Finding::hint(CHECK, what).because(WHY_INPUT).remedy(remedy)
        });
    }
    for (reason, remedy) in &facts.firewall.unseen {
        let finding = Finding::hint(CHECK, format!("not all rules could be read: {reason}"));
        findings.push(finding.because(WHY_INPUT).remedy(remedy.clone()));
    }
    if findings.is_empty() {
        let doubt = match not_understood {
            0 => String::new(),
            1 => "; one rule that drops has conditions that are not understood here".to_owned(),
            many => {
                format!("; {many} rules that drop have conditions that are not understood here")
            }
        };
        findings.push(Finding::ok(
            CHECK,
            format!("no rule drops what is steered{doubt}"),
        ));
    }
    findings
}

/// How the line outlives the next start of what made the chain.
fn keep(chain: &str) -> &'static str {
    let mut words = chain.split(' ');
    match (words.nth(1), words.next()) {
        (Some("firewalld"), _) => {
            "; firewalld lets nobody change its table, so: firewall-cmd --permanent --zone=trusted \
             --change-interface=LINK && firewall-cmd --reload, and IPv6_rpfilter=no in \
             /etc/firewalld/firewalld.conf if its prerouting chain drops"
        }
        (Some("fw4"), _) => {
            "; to keep it: a file in /etc/nftables.d, see the documentation of OpenWrt's firewall"
        }
        (Some("filter"), Some("INPUT")) => {
            "; to keep it: where these rules are made (ufw: /etc/ufw/before.rules and before6.rules)"
        }
        _ => "; to keep it: where these rules are made (/etc/nftables.conf, say)",
    }
}

/// Do rules of others use our marks, or take what we steer?
pub(super) fn marks(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "marks";
    let mut findings = Vec::new();
    let mut arriving = join(facts, &[Hook::Prerouting, Hook::Input], false);
    // After its last rule a packet's mark is of no use any more.
    arriving.retain(|joined| joined.found.what != What::Remarked || !is_input(&joined.found));
    for (joined, why) in arriving.into_iter().map(|joined| (joined, "without its mark a steered packet is not delivered to the proxy"))
        .chain(join(facts, &[Hook::Output, Hook::Postrouting], true).into_iter().map(|joined| (joined, "the mark of the proxy's answers over UDP says from which port they come; without it they come from the wrong one")))
    {
        let Joined { found, packets, links, .. } = &joined;
        let Some(rule) = found.rule else { continue };
        let (chain, packets, links) = (found.base.name(), list(packets), list(links));
        let (what, why) = match &found.what {
            What::Remarked => (
                format!("a rule of {chain} overwrites the mark bits {MARK_MASK:#x} of {links} ({packets}): {:?}", rule.text),
                why,
            ),
            What::Taken(word) => (
                format!("a rule of {chain} takes packets of {links} elsewhere by {word} ({packets}): {:?}", rule.text),
                "what it takes does not come to tproxy-bpf, though its program has chosen it; rules of another proxy must go",
            ),
            _ => continue,
        };
        let sure = match found.what {
            What::Remarked => found.fit >= Fit::Part,
            _ => found.fit == Fit::All,
        } && !found.doubt;
        let what = if sure { what } else { format!("perhaps {what}") };
        let finding = if sure { Finding::problem(CHECK, what) } else { Finding::hint(CHECK, what) };
        let remedy = match &found.what {
            What::Remarked => format!("have it leave these bits alone (nft: meta mark set meta mark & {MARK_MASK:#x} | VALUE; iptables: VALUE/{:#x}), or: {}", !MARK_MASK, rule.delete),
            _ => rule.delete.to_owned(),
        };
        findings.push(finding.because(why).remedy(remedy));
    }
    let ours = [MARK_STEER, MARK_EXEMPT, MARK_REPLY];
    for (text, delete) in judge::asking_for(&facts.firewall.rules, &ours) {
        let what = format!("a rule of somebody else asks for a mark of tproxy-bpf: {text:?}");
        findings.push(
            Finding::hint(CHECK, what)
                .because(format!("under {MARK_MASK:#x}, {MARK_STEER:#x} is what is steered, {MARK_EXEMPT:#x} and {MARK_REPLY:#x} what the proxy sends"))
                .remedy(format!("give it a mark that leaves the bits {MARK_MASK:#x} alone, or: {delete}")),
        );
    }
    findings.extend(facts.rules.iter().map(|rule| {
        let what = &rule.sentence;
        let finding = if rule.refused {
            Finding::problem(CHECK, what)
        } else {
            Finding::hint(CHECK, what)
        };
        finding.because(rule.why).remedy(rule.delete.clone())
    }));
    if findings.is_empty() {
        findings.push(Finding::ok(
            CHECK,
            format!("nobody else uses the bits {MARK_MASK:#x}, or our routing table"),
        ));
    }
    findings
}

fn is_input(found: &Found<'_>) -> bool {
    found.base.hook() == Hook::Input
}
