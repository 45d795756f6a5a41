//! What the rules say of what the gateway itself sends.

use ipnet::IpNet;

use super::clause::Clause;
use super::flow::{Case, Fate};
use super::judge::{Judge, named};
use crate::config::{IdOrName, Mark};
use crate::import::draft::Exit;

/// The marks that old set-ups give the proxy's own packets.
const CUSTOMARY: [u32; 2] = [255, 2];

impl Judge<'_> {
    /// Judges them.
    pub(super) fn own(&mut self, cases: &[Case]) {
        let mut own = [false; 2];
        let mut direct = Vec::new();
        for case in cases {
            let live = [0, 1].map(|at| case.transports[at] && !own[at]);
            if live == [false; 2] {
                continue;
            }
            let mut clause = Clause::of(case, self.sets);
            let at = self.at(case.line);
            if let Some(why) = clause.needless {
                self.notes.needless(format!("{at}: {why}"));
                continue;
            }
            match &case.fate {
                Fate::Else(why) => self.left_out(case.line, why),
                _ if clause.odd.is_some() => {
                    let why = clause.odd.as_deref().unwrap_or_default();
                    self.left_out(
                        case.line,
                        &format!("the condition {why} cannot be asked for here"),
                    );
                }
                Fate::Pass => self.own_pass(&clause, case.line, &mut direct),
                Fate::Drop => self.left_out(
                    case.line,
                    "what the gateway itself sends is blocked by rules for all alone",
                ),
                Fate::Proxy(_) => {
                    if clause.is_dns() {
                        self.verdict.dns = true;
                    }
                    for except in std::mem::take(&mut clause.except) {
                        self.own_pass(&except, case.line, &mut direct);
                    }
                    if let Some(link) = clause.leaves.take()
                        && !self.verdict.wan.contains(&link)
                    {
                        self.verdict.wan.push(link);
                    }
                    if clause.is_empty() {
                        for (own, live) in own.iter_mut().zip(live) {
                            *own |= live;
                        }
                    } else if !clause.is_dns() {
                        self.left_out(case.line, "only a part of what the gateway itself sends goes to the proxy; here it is all or nothing, but for exemptions");
                    }
                }
            }
        }
        self.verdict.own = own != [false; 2];
        self.verdict.own_direct = direct;
        if self.verdict.own {
            self.notes.understood(format!(
                "{}: {} of the gateway itself goes to the proxy, so stage 3 or 4",
                self.rules.file,
                named(own)
            ));
        }
        let half = own[0] != own[1];
        let devices_half = self.verdict.rules.iter().any(|rule| {
            rule.exit == Exit::Direct
                && rule.prefix.is_empty()
                && rule.source.is_empty()
                && rule.port.is_empty()
        });
        if self.verdict.own && half && !devices_half {
            self.notes.left_out(format!(
                "{}: of the gateway's own traffic only {} went to the proxy; here the other goes there, too",
                self.rules.file,
                named(own)
            ));
        }
    }

    /// Something of the gateway's own that passes.
    fn own_pass(&mut self, clause: &Clause, line: usize, direct: &mut Vec<IpNet>) {
        let at = self.at(line);
        if let Some(why) = clause.needless {
            self.notes.needless(format!("{at}: {why}"));
        } else if let Some((value, mask)) = clause.mark {
            self.own_mark(value, mask, line);
        } else if let Some((first, last)) = clause.gid.or(clause.uid) {
            let (word, is_gid) = if clause.gid.is_some() {
                ("group", true)
            } else {
                ("user", false)
            };
            if first > IdOrName::LARGEST {
                return self.left_out(line, &format!("no {word} has the number {first}"));
            }
            if first != last {
                return self.left_out(
                    line,
                    &format!("a range of {word}s cannot be exempt; name each in [exempt]"),
                );
            }
            self.notes.understood(format!(
                "{at}: the {word} {first} goes direct, as an exemption"
            ));
            let list = if is_gid {
                &mut self.verdict.gids
            } else {
                &mut self.verdict.uids
            };
            list.push((first, at));
        } else if clause.source.is_empty() && (clause.port.is_empty() || clause.not_dns) {
            direct.extend(clause.destination);
            if let Some(name) = &clause.set
                && let Ok((prefixes, _)) = self.sets.prefixes(name)
            {
                direct.extend(prefixes);
            }
            if clause.destination.is_none() && clause.set.is_none() {
                self.left_out(line, "what passes here has no condition that is known");
            }
        } else {
            self.left_out(
                line,
                "rules by port or source are for devices and the gateway alike here",
            );
        }
    }

    fn own_mark(&mut self, value: u32, mask: u32, line: usize) {
        let at = self.at(line);
        let known = self.own_marks.contains(&value);
        if known || (self.own_marks.is_empty() && CUSTOMARY.contains(&value)) {
            return self.notes.needless(format!(
                "{at}: the mark {value:#x} protects the old proxy from its own packets; tproxy-bpf knows its own. If another \
                 program sets it, `tproxy-bpf exempt add --mark {value:#x}`"
            ));
        }
        match Mark::new(value, mask) {
            Ok(_) => {
                self.notes.understood(format!(
                    "{at}: the mark {value:#x} goes direct, as an exemption"
                ));
                self.verdict.marks.push(((value, mask), at));
            }
            Err(refusal) => self.left_out(line, &refusal.message),
        }
    }
}
