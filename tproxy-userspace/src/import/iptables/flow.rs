//! The rules that a packet comes to, as one list of cases: the chains are followed, so that what is left are conditions
//! and what becomes of a packet for which they hold.

use super::Ruleset;
use super::rule::{Condition, Match, Target, Transport};

/// More cases than this (chains that call each other over and over) are given up.
const MOST: usize = 5_000;
/// The kernel refuses chains that call themselves; so deep no set-up goes.
const DEEPEST: usize = 16;
/// More conditions than this has no rule, with those on the way to it.
const MOST_CONDITIONS: usize = 64;

/// What happens to packets for which all conditions hold, if no case before has decided.
#[derive(Clone, Debug)]
pub(super) struct Case {
    /// The line of the rule that decides.
    pub line: usize,
    /// TCP, UDP.
    pub transports: [bool; 2],
    /// What must hold beside.
    pub conditions: Vec<Condition>,
    /// What happens.
    pub fate: Fate,
    /// For what goes back to a chain before: the case that comes next.
    resume: Option<usize>,
    /// Is it about what the gateway sends, where a mark leads to the proxy?
    marks: bool,
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on as it is.
    Pass,
    /// It goes to the proxy at this port (empty: it gets a mark that leads there).
    Proxy(String),
    /// It ends.
    Drop,
    /// Something that is no affair of a proxy.
    Else(String),
}

/// The cases of a chain of the kernel's, or `None` if there are too many.
pub(super) fn cases(rules: &Ruleset, table: &str, chain: &str) -> Option<Vec<Case>> {
    let mut walk = Walk {
        rules,
        table,
        marks: chain == "OUTPUT",
        steps: 0,
        cases: Vec::new(),
    };
    walk.follow(chain, [true; 2], &[], 0)?;
    let mut cases = walk.cases;
    // What comes back to a chain and is taken there after all did not pass.
    for index in 0..cases.len() {
        let Some(resume) = cases[index].resume else {
            continue;
        };
        let later = cases[resume.min(cases.len())..].iter().find(|later| {
            matches!(later.fate, Fate::Proxy(_) | Fate::Drop) && later.may_take(&cases[index])
        });
        if let Some(later) = later {
            let why = format!(
                "it only leaves its chain, and line {} comes behind",
                later.line
            );
            cases[index].fate = Fate::Else(why);
        }
    }
    Some(cases)
}

impl Case {
    /// May a packet that this case is about be one that the other is about, too? The second pass of the gateway's own
    /// traffic (by `lo`, with a mark) is no affair of devices.
    pub fn may_take(&self, other: &Self) -> bool {
        use Match::{Arrives, Leaves, Mark};
        let apart = |one: &Condition, two: &Condition| match (&one.what, &two.what) {
            (Arrives(a), Arrives(b)) | (Leaves(a), Leaves(b)) if !one.negated && !two.negated => {
                a != b && !a.ends_with('*') && !b.ends_with('*')
            }
            (a, b) => a == b && one.negated != two.negated,
        };
        let own = self.conditions.iter().any(|condition| {
            let own = match &condition.what {
                Arrives(link) => link == "lo",
                Mark(..) => !self.marks,
                _ => false,
            };
            own && !condition.negated
        });
        let meets = (0..2).any(|at| self.transports[at] && other.transports[at]);
        meets
            && !own
            && !self
                .conditions
                .iter()
                .any(|one| other.conditions.iter().any(|two| apart(one, two)))
    }
}

struct Walk<'r> {
    rules: &'r Ruleset,
    table: &'r str,
    /// Is a mark what leads to the proxy?
    marks: bool,
    steps: usize,
    cases: Vec<Case>,
}

impl Walk<'_> {
    fn follow(
        &mut self,
        chain: &str,
        transports: [bool; 2],
        way: &[Condition],
        depth: usize,
    ) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        let start = self.cases.len();
        for rule in self.rules.chain(self.table, chain) {
            self.steps += 1;
            if self.steps > MOST || self.cases.len() > MOST {
                return None;
            }
            let mut transports = transports;
            let mut conditions = way.to_vec();
            for condition in &rule.conditions {
                match condition.what {
                    Match::Protocol(protocol) => {
                        let of = [Transport::Tcp, Transport::Udp];
                        for (kept, of) in transports.iter_mut().zip(of) {
                            *kept &= (protocol == Some(of)) != condition.negated;
                        }
                    }
                    _ if conditions.contains(condition) => {}
                    _ => conditions.push(condition.clone()),
                }
            }
            if transports == [false; 2] {
                continue;
            }
            if conditions.len() > MOST_CONDITIONS {
                return None;
            }
            let fate = match &rule.target {
                Target::Nothing => continue,
                Target::Mark if !self.marks => continue,
                Target::Jump(name) | Target::Goto(name) => {
                    self.follow(name, transports, &conditions, depth + 1)?;
                    continue;
                }
                Target::Mark => Fate::Proxy(String::new()),
                Target::Proxy(port) => Fate::Proxy(port.clone()),
                Target::Return | Target::Accept => Fate::Pass,
                Target::Drop => Fate::Drop,
                Target::Other(name) => Fate::Else(format!("{name} is no affair of a proxy")),
            };
            self.cases.push(Case {
                line: rule.line,
                transports,
                conditions,
                fate,
                marks: self.marks,
                resume: (rule.target == Target::Return && depth > 0).then_some(usize::MAX),
            });
        }
        // Behind what this chain and those below it came to.
        let end = self.cases.len();
        for case in &mut self.cases[start..] {
            if case.resume == Some(usize::MAX) {
                case.resume = Some(end);
            }
        }
        Some(())
    }
}
