//! The draft of the configuration, joined with what the rules of the kernel come to.

use std::net::IpAddr;

use ipnet::IpNet;

use super::draft::{Draft, Exit, RuleDraft};
use super::iptables::Verdict;
use super::notes::{Notes, some};
use super::xray::Found;
use super::{is_built_in, is_private};

/// Adds what the rules of the kernel say: it comes before what the proxy itself decided.
pub(super) fn join(
    verdicts: Vec<(bool, Verdict)>,
    found: &Found,
    draft: &mut Draft,
    notes: &mut Notes,
) {
    if verdicts.is_empty() {
        return notes.open(
            "no rules of the kernel were given, so whether the gateway's own traffic was proxied is not known: stage 3 or 4 does it, \
             stage 2 does not",
        );
    }
    let both = verdicts.len() > 1;
    draft.own = Some(verdicts.iter().any(|(_, verdict)| verdict.own));
    // The families have one switch; where they differ, IPv4 decides.
    let private = verdicts
        .iter()
        .find(|(is_v4, _)| *is_v4)
        .or(verdicts.first());
    let private = private.is_some_and(|(_, verdict)| verdict.private);
    if verdicts
        .iter()
        .any(|(_, verdict)| verdict.private != private && (verdict.devices || verdict.own))
    {
        notes.left_out(
            "private ranges went direct for one family alone; here they do for both or none, as for IPv4",
        );
    }
    draft.private = Some(private || draft.private == Some(true));
    if draft.own == Some(true) && !verdicts.iter().any(|(_, verdict)| verdict.devices) {
        notes.understood("only the gateway's own traffic is proxied, so [lan] stays empty");
    }
    for is_v4 in [true, false] {
        let proxied = verdicts
            .iter()
            .any(|(family, verdict)| *family == is_v4 && (verdict.devices || verdict.own));
        if !proxied {
            let (name, program) = if is_v4 {
                ("IPv4", "iptables-save")
            } else {
                ("IPv6", "ip6tables-save")
            };
            notes.left_out(format!(
                "{name} went by no proxy, or the output of {program} was not given: here both families are always proxied"
            ));
        }
    }
    let mut rules: Vec<RuleDraft> = Vec::new();
    let mut dns = false;
    for (is_v4, verdict) in verdicts {
        dns |= verdict.dns;
        draft.lan.extend(verdict.lan);
        draft.wan.extend(verdict.wan);
        draft.gids.extend(verdict.gids);
        draft.uids.extend(verdict.uids);
        draft.marks.extend(verdict.marks);
        draft.missing_sets.extend(verdict.missing_sets);
        own_direct(&verdict.own_direct, &verdict.bypass, found, private, notes);
        for mut rule in verdict.rules {
            let neutral = rule.prefix.is_empty() && rule.source.is_empty();
            if !(neutral && both) {
                rules.push(rule);
                continue;
            }
            // The same for both families, or for this one alone.
            let same = |other: &&mut RuleDraft| {
                other.port == rule.port
                    && other.protocol == rule.protocol
                    && other.exit == rule.exit
            };
            let any: IpNet = if is_v4 {
                IpAddr::from([0; 4])
            } else {
                IpAddr::from([0; 16])
            }
            .into();
            let any = IpNet::new(any.addr(), 0).unwrap_or(any);
            rule.prefix = vec![any];
            match rules.iter_mut().find(same) {
                Some(other) if other.prefix.len() == 1 && other.prefix[0].prefix_len() == 0 => {
                    other.prefix.clear();
                }
                _ => rules.push(rule),
            }
        }
        draft.bypass.extend(verdict.bypass);
    }
    if rules.iter().any(|rule| rule.exit == Exit::Default) && !draft.rules.is_empty() {
        notes.left_out("what the kernel's rules sent to the proxy before others passed goes by the default outbound, whatever routing says of it");
    }
    rules.append(&mut draft.rules);
    draft.rules = rules;
    if dns && draft.dns.is_none() {
        notes.open(
            "questions to port 53 were led to the proxy, also those to servers nearby: [dns] with your servers does that here (see the page about near \
             and far)",
        );
    }
}

/// Destinations that went direct for the gateway alone: mostly the proxy's server.
fn own_direct(
    own: &[IpNet],
    bypass: &[(String, Vec<IpNet>)],
    found: &Found,
    private: bool,
    notes: &mut Notes,
) {
    let mut servers = Vec::new();
    let mut others = Vec::new();
    for prefix in own {
        let known = bypass
            .iter()
            .any(|(_, prefixes)| prefixes.iter().any(|other| other.contains(prefix)));
        if known || is_built_in(*prefix) || (private && is_private(*prefix)) {
            continue;
        }
        let server = found
            .servers
            .iter()
            .filter_map(|host| host.parse::<IpAddr>().ok());
        if server.into_iter().any(|ip| prefix.contains(&ip)) {
            servers.push(*prefix);
        } else {
            others.push(*prefix);
        }
    }
    if !servers.is_empty() {
        notes.needless(format!(
            "OUTPUT, RETURN for {}: an outbound's server goes direct for everybody by itself",
            some(&servers)
        ));
    }
    if !others.is_empty() {
        notes.left_out(format!(
            "OUTPUT, RETURN for {}: these went direct for the gateway alone. If it was the proxy's server, nothing is needed; if not, and devices may \
             go there directly too, write it into [bypass] prefixes",
            some(&others)
        ));
    }
}
