//! What the conditions of a case come to.

use ipnet::IpNet;

use super::flow::Case;
use super::rule::{Condition, Match};
use crate::import::ipset::Sets;
use crate::import::notes::shown;
use crate::policy::port::PortRange;

/// What a case asks for, in the words of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Clause {
    /// The destination.
    pub destination: Option<IpNet>,
    /// A set that the destination is in.
    pub set: Option<String>,
    /// The source.
    pub source: Vec<IpNet>,
    /// Ports of the destination.
    pub port: Vec<PortRange>,
    /// Any port but 53.
    pub not_dns: bool,
    /// The link that it comes by.
    pub arrives: Option<String>,
    /// The link that it leaves by.
    pub leaves: Option<String>,
    /// What cannot be asked for here.
    pub odd: Option<String>,
    /// The mark of others.
    pub mark: Option<(u32, u32)>,
    /// The group of the process.
    pub gid: Option<(u32, u32)>,
    /// Its user.
    pub uid: Option<(u32, u32)>,
    /// It never comes to the proxy here, for this reason.
    pub needless: Option<&'static str>,
    /// What must not be so: each alone lets the packet pass.
    pub except: Vec<Self>,
}

impl Clause {
    /// Reads the conditions of a case.
    pub fn of(case: &Case, sets: &Sets) -> Self {
        let mut clause = Self::default();
        for condition in &case.conditions {
            clause.add(condition, sets);
        }
        clause
    }

    fn add(&mut self, condition: &Condition, sets: &Sets) {
        let Condition { negated, what } = condition;
        let twice = match what {
            Match::Destination(_) => self.destination.is_some(),
            Match::Source(_) => !self.source.is_empty(),
            Match::Ports(_) => !self.port.is_empty(),
            Match::Set { .. } => self.set.is_some(),
            _ => false,
        };
        if *negated {
            return self.add_negated(what, sets);
        }
        if twice {
            self.odd = Some("two conditions of one kind".to_owned());
            return;
        }
        match what {
            Match::Protocol(_) => {}
            Match::Destination(prefix) => self.destination = Some(*prefix),
            Match::Source(prefix) => self.source = vec![*prefix],
            Match::Ports(ports) => self.port.clone_from(ports),
            Match::Set {
                name,
                destination: true,
            } => self.set = Some(name.clone()),
            Match::Set { name, .. } => match sets.prefixes(name) {
                Ok((prefixes, _)) if !prefixes.is_empty() => self.source = prefixes.to_vec(),
                Ok(_) => self.odd = Some(format!("the empty set {}", shown(name))),
                Err(why) => self.odd = Some(format!("sources in the set {}: {why}", shown(name))),
            },
            Match::Near(kind) => {
                let known = kind
                    .split(',')
                    .all(|kind| matches!(kind, "LOCAL" | "BROADCAST" | "MULTICAST" | "ANYCAST"));
                if known {
                    self.needless = Some(
                        "the gateway's own addresses, multicast and broadcast are never proxied",
                    );
                } else {
                    self.odd = Some(format!("--dst-type {}", shown(kind)));
                }
            }
            Match::Established | Match::Socket => {
                self.needless = Some("a connection that is there keeps its way by itself");
            }
            Match::Mark(value, mask) => self.mark = Some((*value, *mask)),
            Match::Gid(first, last) => self.gid = Some((*first, *last)),
            Match::Uid(first, last) => self.uid = Some((*first, *last)),
            Match::Arrives(link) if link == "lo" => {
                self.needless = Some(
                    "what the gateway sends turns round by itself, there is no second pass by lo",
                );
            }
            Match::Leaves(link) if link == "lo" => {
                self.needless = Some("what the gateway says to itself is never proxied");
            }
            Match::Arrives(link) => self.arrives = Some(link.clone()),
            Match::Leaves(link) => self.leaves = Some(link.clone()),
            Match::Other(text) => self.odd = Some(text.clone()),
        }
    }

    fn add_negated(&mut self, what: &Match, sets: &Sets) {
        match what {
            // Whoever is near, or has a connection, passes in any case.
            Match::Near(_) | Match::Established | Match::Socket => {}
            Match::Ports(ports) => {
                self.not_dns = ports[..] == [PortRange::from(53)];
                self.port = outside(ports);
            }
            Match::Arrives(link) if link == "lo" => {}
            Match::Leaves(link) if link == "lo" => {}
            Match::Other(text) => self.odd = Some(format!("! {text}")),
            Match::Arrives(link) | Match::Leaves(link) => {
                self.odd = Some(format!("every link but {}", shown(link)));
            }
            what => {
                let mut except = Self::default();
                let positive = Condition {
                    negated: false,
                    what: what.clone(),
                };
                except.add(&positive, sets);
                self.except.push(except);
            }
        }
    }

    /// Both, or none where they ask for the same in two ways.
    pub fn and(&self, other: &Self) -> Option<Self> {
        let twice = (self.destination.is_some() || self.set.is_some())
            && (other.destination.is_some() || other.set.is_some())
            || !(self.source.is_empty() || other.source.is_empty())
            || !(self.port.is_empty() || other.port.is_empty());
        if twice || self.odd.is_some() {
            return None;
        }
        let mut both = self.clone();
        both.destination = both.destination.or(other.destination);
        both.set = both.set.or_else(|| other.set.clone());
        both.source.extend(&other.source);
        both.port.extend(&other.port);
        both.not_dns |= other.not_dns;
        Some(both)
    }

    /// Does it hold for every packet?
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Is it about questions to DNS servers alone?
    pub fn is_dns(&self) -> bool {
        self.port[..] == [PortRange::from(53)]
    }
}

/// The ports that are not in these.
pub(super) fn outside(ports: &[PortRange]) -> Vec<PortRange> {
    let mut free = Vec::new();
    let mut from = None;
    for port in 0..=u16::MAX {
        let taken = ports.iter().any(|range| range.contains(port));
        match (taken, from) {
            (false, None) => from = Some(port),
            (true, Some(first)) => {
                free.extend(PortRange::new(first, port - 1));
                from = None;
            }
            _ => {}
        }
    }
    free.extend(from.and_then(|first| PortRange::new(first, u16::MAX)));
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_outside() {
        let shown = |ports: &[PortRange]| {
            let all: Vec<String> = outside(ports).iter().map(ToString::to_string).collect();
            all.join(" ")
        };
        assert_eq!(shown(&[53.into()]), "0-52 54-65535");
        assert_eq!(
            shown(&[443.into(), 80.into(), PortRange::new(0, 10).unwrap()]),
            "11-79 81-442 444-65535"
        );
        assert_eq!(shown(&[PortRange::new(0, u16::MAX).unwrap()]), "");
        assert_eq!(shown(&[]), "0-65535");
    }
}
