//! What the cases of a ruleset come to in a configuration.

use ipnet::IpNet;

use super::Ruleset;
use super::clause::{Clause, outside};
use super::flow::{Case, Fate, cases};
use crate::import::draft::{Exit, RuleDraft};
use crate::import::ipset::{MOST_PREFIXES, Sets};
use crate::import::notes::{Notes, shown, some};
use crate::import::{is_built_in, private_ranges};
use crate::policy::aggregate::{aggregate, complement};

/// The words for TCP and UDP in a rule.
const TRANSPORTS: [&str; 2] = ["tcp", "udp"];

/// What one family's rules come to.
#[derive(Debug, Default)]
pub(in crate::import) struct Verdict {
    /// Is traffic of devices led to a proxy?
    pub devices: bool,
    /// Is the gateway's own?
    pub own: bool,
    /// Links with devices.
    pub lan: Vec<String>,
    /// Links that the gateway's own traffic leaves by.
    pub wan: Vec<String>,
    /// Do the private ranges of the family go direct?
    pub private: bool,
    /// Destinations that go direct, with where they come from.
    pub bypass: Vec<(String, Vec<IpNet>)>,
    /// Sets that go direct and are not known.
    pub missing_sets: Vec<(String, String)>,
    /// Rules.
    pub rules: Vec<RuleDraft>,
    /// Exempt groups.
    pub gids: Vec<(u32, String)>,
    /// Exempt users.
    pub uids: Vec<(u32, String)>,
    /// Exempt marks.
    pub marks: Vec<((u32, u32), String)>,
    /// Questions to DNS servers go to the proxy, wherever to.
    pub dns: bool,
    /// Destinations that go direct for the gateway alone.
    pub own_direct: Vec<IpNet>,
}

/// Judges.
pub(in crate::import) fn judge(
    rules: &Ruleset,
    sets: &Sets,
    own_marks: &[u32],
    notes: &mut Notes,
) -> Verdict {
    let mut judge = Judge {
        rules,
        sets,
        own_marks,
        notes,
        verdict: Verdict::default(),
        direct: Vec::new(),
    };
    let devices = judge.chain("PREROUTING");
    judge.devices(&devices);
    let own = judge.chain("OUTPUT");
    judge.own(&own);
    judge.sum_up();
    judge.verdict
}

pub(super) struct Judge<'j> {
    pub(super) rules: &'j Ruleset,
    pub(super) sets: &'j Sets,
    /// Marks that the old proxy gives its own packets.
    pub(super) own_marks: &'j [u32],
    pub(super) notes: &'j mut Notes,
    pub(super) verdict: Verdict,
    /// Destinations that go direct, for which transports, and the line.
    direct: Vec<(IpNet, [bool; 2], usize)>,
}

impl Judge<'_> {
    /// `file:line`.
    pub(super) fn at(&self, line: usize) -> String {
        format!("{}:{line}", self.rules.file)
    }

    /// The cases of a chain in the tables that lead to a proxy. What mangle proxies is no affair of nat.
    fn chain(&mut self, chain: &str) -> Vec<Case> {
        let mut all = Vec::new();
        let mut taken = [false; 2];
        for table in ["mangle", "nat"] {
            let Some(mut found) = cases(self.rules, table, chain) else {
                self.notes.left_out(format!(
                    "{}: chain {chain} of table {table}: the chains below it are too many to be followed",
                    self.rules.file
                ));
                continue;
            };
            for case in &mut found {
                for (on, taken) in case.transports.iter_mut().zip(taken) {
                    *on &= !taken;
                }
            }
            let proxied = |at: usize| {
                found
                    .iter()
                    .any(|case| case.transports[at] && matches!(case.fate, Fate::Proxy(_)))
            };
            let here = [proxied(0), proxied(1)];
            if here == [false; 2] {
                continue;
            }
            taken = [taken[0] || here[0], taken[1] || here[1]];
            found.retain(|case| case.transports != [false; 2]);
            all.append(&mut found);
        }
        all
    }

    fn devices(&mut self, cases: &[Case]) {
        self.links(cases);
        // TCP, UDP: all that comes so far is led to the proxy, so no later case is ever asked.
        let mut done = [false; 2];
        // A part of it is led there by conditions that cannot be asked for here.
        let mut unclear = [false; 2];
        let mut partial: Vec<(Clause, [bool; 2], usize)> = Vec::new();
        for (index, case) in cases.iter().enumerate() {
            let live = [0, 1].map(|at| case.transports[at] && !done[at]);
            if live == [false; 2] {
                continue;
            }
            let mut clause = Clause::of(case, self.sets);
            self.drop_link(&mut clause, &case.fate);
            let at = self.at(case.line);
            if let Some(why) = clause.needless {
                self.notes.needless(format!("{at}: {why}"));
                continue;
            }
            if clause.mark.is_some() {
                let why = "a mark decides, which protects the old proxy from its own packets or leads the gateway's own \
                           traffic here; tproxy-bpf knows its own packets";
                self.notes.needless(format!("{at}: {why}"));
                continue;
            }
            match &case.fate {
                Fate::Else(why) => self.left_out(case.line, why),
                fate if clause.odd.is_some() => {
                    let why = clause.odd.as_deref().unwrap_or_default();
                    self.left_out(
                        case.line,
                        &format!("the condition {why} cannot be asked for here"),
                    );
                    if matches!(fate, Fate::Proxy(_)) {
                        self.verdict.devices = true;
                        unclear = [0, 1].map(|at| unclear[at] || live[at]);
                    }
                }
                Fate::Pass | Fate::Drop => {
                    self.emit_partial(&mut partial, live);
                    let exit = if case.fate == Fate::Pass {
                        Exit::Direct
                    } else {
                        Exit::Block
                    };
                    let after = partial
                        .iter()
                        .any(|(clause, on, _)| !clause.is_dns() && meet(*on, live));
                    self.pass(clause, live, case.line, exit, after);
                }
                Fate::Proxy(port) => {
                    self.verdict.devices = true;
                    let later = cases[index + 1..]
                        .iter()
                        .any(|other| matches!(other.fate, Fate::Proxy(_)) && other.may_take(case));
                    let except = std::mem::take(&mut clause.except);
                    let except: Vec<Option<Clause>> = except
                        .iter()
                        .filter(|one| one.needless.is_none() && one.mark.is_none())
                        .map(|one| one.and(&clause).filter(|_| !later))
                        .collect();
                    if except.contains(&None) {
                        let why = "conditions with `!` that other rules, or conditions of the same kind, stand beside; here all of it goes to the proxy";
                        self.left_out(case.line, why);
                    }
                    for one in except.into_iter().flatten() {
                        self.pass(one, live, case.line, Exit::Direct, false);
                    }
                    let what = if port.is_empty() {
                        String::new()
                    } else {
                        format!(" (port {port})")
                    };
                    if clause.is_dns() {
                        self.verdict.dns = true;
                    }
                    if clause.is_empty() {
                        for (done, live) in done.iter_mut().zip(live) {
                            *done |= live;
                        }
                        let of = named(live);
                        self.notes
                            .understood(format!("{at}: {of} of devices goes to the proxy{what}"));
                    } else {
                        partial.push((clause, live, case.line));
                    }
                }
            }
        }
        self.rest(done, unclear, &partial);
        self.destinations(done);
    }

    /// Which links have devices.
    fn links(&mut self, cases: &[Case]) {
        for case in cases {
            use super::rule::Match::Arrives;
            let by = case
                .conditions
                .iter()
                .find_map(|condition| match &condition.what {
                    Arrives(link) if link != "lo" => Some((link, condition.negated)),
                    _ => None,
                });
            let lan = match (&case.fate, by) {
                (Fate::Proxy(_), Some((link, false))) => link,
                (Fate::Pass, Some((link, true))) if case.conditions.len() == 1 => link,
                _ => continue,
            };
            if !self.verdict.lan.contains(lan) {
                self.verdict.lan.push(lan.clone());
                let at = self.at(case.line);
                self.notes
                    .understood(format!("{at}: devices are behind {}", shown(lan)));
            }
        }
    }

    /// A condition about a link says nothing where only that link is asked anyhow.
    fn drop_link(&mut self, clause: &mut Clause, fate: &Fate) {
        let Some(link) = &clause.arrives else {
            // `! -i eth0 -j RETURN` has been read as the links with devices.
            if *fate == Fate::Pass
                && let [lan] = &self.verdict.lan[..]
                && clause.odd == Some(format!("every link but {}", shown(lan)))
            {
                clause.odd = None;
                clause.needless = Some("only the links in [lan] are proxied");
            }
            return;
        };
        let lan = &self.verdict.lan;
        if !lan.contains(link) && !lan.is_empty() {
            clause.needless = Some("only the links in [lan] are proxied");
        } else if lan[..] == [link.clone()] || matches!(fate, Fate::Proxy(_)) {
            clause.arrives = None;
        } else {
            clause.odd = Some(format!("the link {}, but not others", shown(link)));
        }
    }

    /// What is led to the proxy before something else passes needs a rule of its own.
    fn emit_partial(&mut self, partial: &mut [(Clause, [bool; 2], usize)], live: [bool; 2]) {
        for (clause, on, line) in partial {
            if clause.is_dns() || !meet(*on, live) {
                continue;
            }
            let from = self.at(*line);
            if self.verdict.rules.iter().any(|rule| rule.from == from) {
                continue;
            }
            for rule in self.as_rules(clause, *on, *line, &Exit::Default) {
                self.verdict.rules.push(rule);
            }
        }
    }

    /// A destination, a device or a port that passes, or ends.
    fn pass(&mut self, clause: Clause, live: [bool; 2], line: usize, exit: Exit, after: bool) {
        let alone = clause.source.is_empty() && (clause.port.is_empty() || clause.not_dns);
        if exit == Exit::Direct && alone && !after {
            if clause.not_dns {
                self.verdict.dns = true;
            }
            if let Some(prefix) = clause.destination {
                self.direct.push((prefix, live, line));
                return;
            }
            if let Some(name) = &clause.set {
                let at = self.at(line);
                match self.sets.prefixes(name) {
                    Ok((prefixes, _)) if prefixes.len() > MOST_PREFIXES => {
                        let from = format!("{at}: the set {}", shown(name));
                        self.verdict.missing_sets.push((name.clone(), from));
                    }
                    Ok((prefixes, file)) => {
                        self.notes.understood(format!(
                            "{at}: the set {} of {file} goes direct",
                            shown(name)
                        ));
                        let found: Vec<_> = prefixes
                            .iter()
                            .map(|prefix| (*prefix, live, line))
                            .collect();
                        self.direct.extend(found);
                    }
                    Err(_) => {
                        let from = format!("{at}: the set {}", shown(name));
                        self.verdict.missing_sets.push((name.clone(), from));
                    }
                }
                return;
            }
        }
        let rules = self.as_rules(&clause, live, line, &exit);
        if !rules.is_empty() {
            let at = self.at(line);
            let goes = if exit == Exit::Direct {
                "goes direct by a rule"
            } else {
                "is blocked by a rule"
            };
            self.notes.understood(format!("{at}: {goes}"));
        }
        self.verdict.rules.extend(rules);
    }

    /// A clause as rules, one for each transport that it is about, or one for both.
    fn as_rules(
        &mut self,
        clause: &Clause,
        live: [bool; 2],
        line: usize,
        exit: &Exit,
    ) -> Vec<RuleDraft> {
        let mut rule = RuleDraft::new(self.at(line), exit.clone());
        rule.source.clone_from(&clause.source);
        rule.port.clone_from(&clause.port);
        rule.prefix.extend(clause.destination);
        if let Some(name) = &clause.set {
            match self.sets.prefixes(name) {
                Ok((prefixes, _)) if prefixes.len() <= MOST_PREFIXES && !prefixes.is_empty() => {
                    rule.prefix.extend(prefixes);
                }
                Ok(_) => {
                    self.left_out(
                        line,
                        &format!("the set {} is empty, or too long for a rule", shown(name)),
                    );
                    return Vec::new();
                }
                Err(why) => {
                    self.left_out(
                        line,
                        &format!(
                            "the set {}: {why}; give the output of `ipset save`, too",
                            shown(name)
                        ),
                    );
                    return Vec::new();
                }
            }
        }
        if live == [true; 2] {
            return vec![rule];
        }
        let of = TRANSPORTS.iter().zip(live).filter(|(_, live)| *live);
        of.map(|(word, _)| RuleDraft {
            protocol: Some(word),
            ..rule.clone()
        })
        .collect()
    }

    /// What goes direct since nothing leads it to the proxy.
    fn rest(
        &mut self,
        done: [bool; 2],
        unclear: [bool; 2],
        partial: &[(Clause, [bool; 2], usize)],
    ) {
        if !self.verdict.devices {
            return;
        }
        for at in 0..2 {
            if done[at] {
                continue;
            }
            let word = TRANSPORTS[at];
            let of: Vec<&Clause> = partial
                .iter()
                .filter(|(_, on, _)| on[at])
                .map(|(clause, _, _)| clause)
                .collect();
            let from = format!(
                "{}: {}",
                self.rules.file,
                match of.is_empty() {
                    true => format!("no rule leads {word} to the proxy"),
                    false => format!("other {word} is led to no proxy"),
                }
            );
            let mut rule = RuleDraft::new(from.clone(), Exit::Direct);
            rule.protocol = Some(word);
            let only = |rest: fn(&Clause) -> Clause| {
                !unclear[at] && of.iter().all(|clause| rest(clause).is_empty())
            };
            if of.is_empty() && !unclear[at] {
                // All of it.
            } else if only(|clause| Clause {
                port: Vec::new(),
                ..clause.clone()
            }) {
                let ports: Vec<_> = of.iter().flat_map(|clause| clause.port.clone()).collect();
                rule.port = outside(&ports);
            } else if only(|clause| Clause {
                source: Vec::new(),
                ..clause.clone()
            }) {
                let sources: Vec<_> = of.iter().flat_map(|clause| clause.source.clone()).collect();
                rule.source = self.outside(&sources);
            } else if only(|clause| Clause {
                destination: None,
                ..clause.clone()
            }) {
                let prefixes: Vec<_> = of.iter().filter_map(|clause| clause.destination).collect();
                rule.prefix = self.outside(&prefixes);
            } else {
                self.notes.left_out(format!(
                    "{}: only a part of {word} is led to the proxy, by conditions of several kinds; here all of it is, but for what \
                     the rules say",
                    self.rules.file
                ));
                continue;
            }
            // All of it is led there, by other words.
            let nothing = rule.port.is_empty() && rule.source.is_empty() && rule.prefix.is_empty();
            if nothing && !of.is_empty() {
                continue;
            }
            self.notes
                .understood(format!("{from}, so a rule sends it direct"));
            self.verdict.rules.push(rule);
        }
    }

    /// The prefixes of this family that are in none of these.
    fn outside(&self, prefixes: &[IpNet]) -> Vec<IpNet> {
        let mut outside = complement(prefixes);
        outside.retain(|prefix| prefix.addr().is_ipv4() == self.rules.is_v4);
        outside
    }

    /// Which destinations go direct, and which of them do so without being named.
    fn destinations(&mut self, done: [bool; 2]) {
        let direct = std::mem::take(&mut self.direct);
        // A transport that is led nowhere goes direct anyhow.
        let whole = |on: [bool; 2]| (0..2).all(|at| on[at] || !done[at]);
        let mut joined: Vec<(IpNet, [bool; 2], usize)> = Vec::new();
        for (prefix, on, line) in direct {
            match joined.iter_mut().find(|(other, _, _)| *other == prefix) {
                Some((_, other, _)) => *other = [on[0] || other[0], on[1] || other[1]],
                None => joined.push((prefix, on, line)),
            }
        }
        let all: Vec<IpNet> = joined
            .iter()
            .filter(|(_, on, _)| whole(*on))
            .map(|(prefix, _, _)| *prefix)
            .collect();
        let set = aggregate(&all);
        let inside = |range: &IpNet| set.iter().any(|prefix| prefix.contains(range));
        self.verdict.private = private_ranges(self.rules.is_v4).iter().all(inside);
        let (mut built_in, mut private) = (Vec::new(), Vec::new());
        let mut bypass: Vec<(usize, Vec<IpNet>)> = Vec::new();
        for (prefix, on, line) in joined {
            if is_built_in(prefix) {
                built_in.push(prefix);
            } else if self.verdict.private && crate::import::is_private(prefix) {
                private.push(prefix);
            } else if whole(on) {
                match bypass.last_mut() {
                    Some((at, prefixes)) if *at == line => prefixes.push(prefix),
                    _ => bypass.push((line, vec![prefix])),
                }
            } else {
                let clause = Clause {
                    destination: Some(prefix),
                    ..Clause::default()
                };
                let rules = self.as_rules(&clause, on, line, &Exit::Direct);
                self.verdict.rules.extend(rules);
            }
        }
        let file = &self.rules.file;
        if !built_in.is_empty() {
            self.notes.needless(format!(
                "{file}: RETURN for {}: multicast, broadcast, link-local, loopback and reserved destinations are never proxied",
                some(&built_in)
            ));
        }
        if !private.is_empty() {
            self.notes.needless(format!(
                "{file}: RETURN for {}: private ranges go direct by the stage, and the gateway's own subnets always",
                some(&private)
            ));
        }
        for (line, prefixes) in bypass {
            let at = self.at(line);
            self.notes
                .understood(format!("{at}: {} goes direct", some(&prefixes)));
            self.verdict.bypass.push((at, prefixes));
        }
    }

    pub(super) fn left_out(&mut self, line: usize, why: &str) {
        let at = self.at(line);
        self.notes.left_out(format!("{at}: {why}"));
    }

    fn sum_up(&mut self) {
        let file = self.rules.file.clone();
        let tables: Vec<String> = self
            .rules
            .tables()
            .filter(|table| !matches!(*table, "mangle" | "nat"))
            .map(str::to_owned)
            .collect();
        if tables.iter().any(|table| table == "filter") {
            self.notes.needless(format!(
                "{file}: the table filter stays as it is: it is no part of a proxy"
            ));
        }
        if !self.rules.chain("nat", "POSTROUTING").is_empty() {
            self.notes.needless(format!(
                "{file}: nat POSTROUTING (translation of what goes direct) may stay as it is; without it there is `[gateway] masquerade = true`"
            ));
        }
        if self.verdict.devices || self.verdict.own {
            self.notes.needless(
                "`ip rule add fwmark …` and `ip route add local …`: tproxy-bpf makes its own and takes them away",
            );
        }
    }
}

fn meet(one: [bool; 2], other: [bool; 2]) -> bool {
    (0..2).any(|at| one[at] && other[at])
}

/// TCP, UDP, or both.
pub(super) fn named(on: [bool; 2]) -> &'static str {
    match on {
        [true, true] => "TCP and UDP",
        [true, false] => "TCP",
        [false, true] => "UDP",
        [false, false] => "nothing",
    }
}
