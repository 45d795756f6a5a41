//! What rules do to packets: each chain that the kernel calls is followed from its first rule.

use tproxy_common::abi::MARK_MASK;

use super::{Action, Base, Fit, Hook, Packets, Rule, Rules};

/// Deeper calls of chains are a loop, which no program lets in.
const DEEPEST: usize = 16;

/// What happens to packets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// They are dropped: the policy of the chain.
    Policy,
    /// They are dropped by a rule.
    Dropped,
    /// Their mark loses bits that are ours.
    Remarked,
    /// They are taken elsewhere: the word of nft or iptables.
    Taken(String),
}

/// Something that happens on the way of packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<'r> {
    /// In which chain, as the kernel calls it.
    pub base: &'r Base,
    /// What.
    pub what: What,
    /// To how many of the packets.
    pub fit: Fit,
    /// A rule that is not understood may have accepted them before.
    pub doubt: bool,
    /// By which rule; none is the policy.
    pub rule: Option<Place<'r>>,
}

/// A rule for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'r> {
    /// Its text.
    pub text: &'r str,
    /// The command that removes it.
    pub delete: &'r str,
}

impl<'r> From<&'r Rule> for Place<'r> {
    fn from(rule: &'r Rule) -> Self {
        Self {
            text: &rule.text,
            delete: &rule.delete,
        }
    }
}

/// How a chain is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// All packets have ended in it.
    Ended,
    /// All, or some, go on behind the call.
    GoesOn,
    /// All go on behind the chain that the kernel calls (`goto`).
    Out,
}

/// A walk through one chain that the kernel calls.
struct Walk<'r, 'p> {
    rules: &'r Rules,
    base: &'r Base,
    packets: &'p Packets,
    /// A rule that is not understood may have accepted all that is left.
    perhaps_accepted: bool,
    found: Vec<Found<'r>>,
}

/// What happens to these packets in the chains of a hook.
#[must_use]
pub fn follow<'r>(rules: &'r Rules, hook: Hook, packets: &Packets) -> Vec<Found<'r>> {
    let bases = rules.bases.iter().filter(|base| {
        // iptables has a table for each family, which the kernel calls for no other.
        let other = if packets.v4 { "ip6 " } else { "ip " };
        base.hook == hook && !base.chain.starts_with(other)
    });
    let mut found = Vec::new();
    for base in bases {
        let mut walk = Walk {
            rules,
            base,
            packets,
            perhaps_accepted: false,
            found: Vec::new(),
        };
        if walk.chain(&base.chain, Fit::All, 0) != Left::Ended && base.drops {
            walk.note(What::Policy, Fit::All, None);
        }
        found.append(&mut walk.found);
    }
    found
}

impl<'r> Walk<'r, '_> {
    fn note(&mut self, what: What, fit: Fit, rule: Option<&'r Rule>) {
        let found = Found {
            base: self.base,
            what,
            fit,
            doubt: self.perhaps_accepted,
            rule: rule.map(Place::from),
        };
        if !self.found.contains(&found) {
            self.found.push(found);
        }
    }

    /// Follows the packets that got here, `under` of all.
    fn chain(&mut self, chain: &str, under: Fit, depth: usize) -> Left {
        let mut under = under;
        if depth > DEEPEST {
            return Left::GoesOn;
        }
        // All that got here.
        let mut rest = Fit::All;
        for rule in self.rules.rules.iter().filter(|rule| rule.chain == chain) {
            let fit = rest.min(rule.fit(self.packets));
            if fit == Fit::No {
                continue;
            }
            let meant = under.min(fit);
            for action in &rule.actions {
                let left = match action {
                    Action::SetMark(kept) => {
                        if kept & MARK_MASK != MARK_MASK {
                            self.note(What::Remarked, meant, Some(rule));
                        }
                        continue;
                    }
                    Action::Somewhere => {
                        self.perhaps_accepted = true;
                        continue;
                    }
                    Action::Accept => {
                        self.perhaps_accepted |= meant == Fit::Perhaps;
                        Left::Ended
                    }
                    Action::Drop => {
                        self.note(What::Dropped, meant, Some(rule));
                        Left::Ended
                    }
                    Action::Takes(word) => {
                        self.note(What::Taken(word.clone()), meant, Some(rule));
                        Left::Ended
                    }
                    Action::Return => Left::GoesOn,
                    Action::Jump(to) => match self.chain(to, meant, depth + 1) {
                        Left::GoesOn => continue,
                        left => left,
                    },
                    Action::Goto(to) => match self.chain(to, meant, depth + 1) {
                        // Behind the call of this chain, or with none at the policy.
                        Left::GoesOn if depth == 0 => Left::Out,
                        left => left,
                    },
                };
                if fit == Fit::All {
                    return left;
                }
                // Of what returned, nobody sees the rules that follow.
                if matches!(action, Action::Return | Action::Goto(_)) {
                    rest = rest.min(fit);
                    under = under.min(fit);
                }
                break;
            }
        }
        Left::GoesOn
    }
}

/// The rules that ask for one of our marks and do something else than let pass.
#[must_use]
pub fn asking_for(rules: &Rules, marks: &[u32]) -> Vec<(String, String)> {
    let asks = |rule: &&Rule| {
        rule.conditions.iter().any(|condition| {
            let super::Condition::Mark {
                mask,
                value,
                negated: false,
            } = condition
            else {
                return false;
            };
            let ours = mask & MARK_MASK;
            ours != 0
                && value & ours != 0
                && marks
                    .iter()
                    .any(|mark| (mark ^ value) & ours == 0 && value & !0xffff_u32 & mask == 0)
        })
    };
    let lets_pass = |action: &Action| matches!(action, Action::Accept | Action::Return);
    let meant = rules.rules.iter().filter(asks);
    meant
        .filter(|rule| !rule.actions.iter().all(lets_pass))
        .map(|rule| (rule.text.clone(), rule.delete.clone()))
        .collect()
}
