//! Rules: which outbound a connection takes, by where it comes from, where it goes and what name it asks for.
//!
//! Of the conditions of a rule all that are given must hold, and within one any of its entries. The first rule that
//! matches decides. All sets are plain data here; who reads them from files is no matter of rules.

mod gate;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use self::gate::Gate;
use super::domain::{Domain, DomainError, DomainSet};
use super::port::PortRange;
use super::prefix_set::PrefixSet;

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One rule, with what its files held. A condition that is None is not given, so it holds always; an empty list holds
/// never.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it is called.
    pub name: String,
    /// The name that the device asks for. Without a name the condition does not hold.
    pub domain: Option<Vec<Domain>>,
    /// The original destination.
    pub prefix: Option<Vec<IpNet>>,
    /// The device.
    pub source: Option<Vec<IpNet>>,
    /// The port of the original destination.
    pub port: Option<Vec<PortRange>>,
    /// TCP or UDP.
    pub protocol: Option<Protocol>,
    /// The name of the outbound that what matches takes.
    pub outbound: String,
}

/// What rules are asked about.
#[derive(Clone, Copy, Debug)]
pub struct Query<'q> {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The device.
    pub source: SocketAddr,
    /// The original destination.
    pub destination: SocketAddr,
    /// The name that the device asks for, if it is known.
    pub name: Option<&'q str>,
}

/// What rules say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'r> {
    /// The index of the rule that matched and its name. None: no rule, so it is the default.
    pub rule: Option<(usize, &'r str)>,
    /// The name of the outbound.
    pub outbound: &'r str,
}

/// Why there are no rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Their domains.
    #[error("the domains of the rules are of no use: {0}")]
    Domain(#[from] DomainError),
    /// More rules than there are numbers for.
    #[error("there are more than {} rules; join some of them", u32::MAX)]
    TooMany,
}

/// Rules in their order.
///
/// ```
/// use tproxy_userspace::policy::rule::{Protocol, Query, Rule, Rules};
///
/// let rule = Rule {
///     name: "video".to_owned(),
///     domain: Some(vec!["video.example".parse().unwrap()]),
///     prefix: None,
///     source: None,
///     port: None,
///     protocol: None,
///     outbound: "fast".to_owned(),
/// };
/// let rules = Rules::new([rule], "slow").unwrap();
/// let query = Query {
///     protocol: Protocol::Tcp,
///     source: "192.0.2.7:40000".parse().unwrap(),
///     destination: "198.51.100.1:443".parse().unwrap(),
///     name: None,
/// };
/// assert!(rules.needs_name(&query));
/// assert_eq!(rules.decide(&query).outbound, "slow");
/// let query = Query { name: Some("a.video.example"), ..query };
/// assert_eq!(rules.decide(&query).outbound, "fast");
/// ```
#[derive(Debug)]
pub struct Rules {
    rules: Box<[Compiled]>,
    /// The rules with a condition about the name, and those without, by their indices.
    named: Box<[(u32, Gate)]>,
    plain: Box<[(u32, Gate)]>,
    /// The domains of all rules, each with the index of its rule.
    domains: DomainSet,
    default: String,
    /// The number that the default's outbound has in the gates.
    default_number: u32,
}

/// A rule without its domains.
#[derive(Debug)]
struct Compiled {
    name: String,
    outbound: String,
    /// It has domains.
    named: bool,
    protocol: Option<Protocol>,
    ports: Option<Box<[PortRange]>>,
    source: Option<PrefixSet>,
    prefix: Option<PrefixSet>,
}

impl Compiled {
    /// Of source, port and protocol it asks nothing.
    fn is_for_everything(&self) -> bool {
        self.source.is_none() && self.ports.is_none() && self.protocol.is_none()
    }

    /// Do the conditions hold that are not about the name? The cheap ones come first.
    fn holds(&self, query: &Query<'_>) -> bool {
        let contains = |set: &Option<PrefixSet>, address: IpAddr| {
            set.as_ref().is_none_or(|set| set.contains(address))
        };
        let port = query.destination.port();
        self.protocol
            .is_none_or(|protocol| protocol == query.protocol)
            && self
                .ports
                .as_ref()
                .is_none_or(|ports| ports.iter().any(|range| range.contains(port)))
            && contains(&self.source, query.source.ip())
            && contains(&self.prefix, query.destination.ip())
    }
}

impl Rules {
    /// Rules, and the name of the outbound for what no rule matches.
    ///
    /// # Errors
    /// When their domains are wrong or too many. There is no half set of rules.
    pub fn new(
        rules: impl IntoIterator<Item = Rule>,
        default: impl Into<String>,
    ) -> Result<Self, RuleError> {
        let (mut compiled, mut named, mut plain) = (Vec::new(), Vec::new(), Vec::new());
        let mut domains = Vec::new();
        let default = default.into();
        let default_number = 0;
        let mut numbers = HashMap::from([(default.clone(), default_number)]);
        for rule in rules {
            let index = u32::try_from(compiled.len()).map_err(|_| RuleError::TooMany)?;
            let next = index.checked_add(1).ok_or(RuleError::TooMany)?;
            let number = *numbers.entry(rule.outbound.clone()).or_insert(next);
            let set = |prefixes: Option<Vec<IpNet>>| prefixes.map(PrefixSet::from_iter);
            let without_domains = Compiled {
                name: rule.name,
                outbound: rule.outbound,
                named: rule.domain.is_some(),
                protocol: rule.protocol,
                ports: rule.port.map(Into::into),
                source: set(rule.source),
                prefix: set(rule.prefix),
            };
            let gate = Gate::of(&without_domains, number);
            compiled.push(without_domains);
            match rule.domain {
                Some(of_rule) => {
                    named.push((index, gate));
                    domains.extend(of_rule.into_iter().map(|domain| (domain, index)));
                }
                None => plain.push((index, gate)),
            }
        }
        Ok(Self {
            rules: compiled.into(),
            named: named.into(),
            plain: plain.into(),
            domains: DomainSet::new(domains)?,
            default,
            default_number,
        })
    }

    /// No rules.
    #[must_use]
    pub fn none() -> Self {
        Self::new([], "").expect("there is nothing to refuse")
    }

    /// The outbound for this query: that of the first rule that matches, or the default.
    #[must_use]
    pub fn decide(&self, query: &Query<'_>) -> Decision<'_> {
        let plain = self.first_plain(query).map(|(index, _)| index);
        let before = plain.unwrap_or(u32::MAX);
        // The domains are looked through once for all rules, and not at all if none of those comes first.
        let by_name = query
            .name
            .filter(|_| self.named.first().is_some_and(|(first, _)| *first < before))
            .and_then(|name| {
                self.domains
                    .first(name, before, |index| self.rule(index).holds(query))
            });
        match by_name.or(plain) {
            Some(index) => {
                let rule = self.rule(index);
                Decision {
                    rule: Some((index as usize, &rule.name)),
                    outbound: &rule.outbound,
                }
            }
            None => Decision {
                rule: None,
                outbound: &self.default,
            },
        }
    }

    /// Could a name send this query to another outbound? False when it has one already.
    ///
    /// Where it is false, there is no need to find out what name the device asks for.
    #[must_use]
    pub fn needs_name(&self, query: &Query<'_>) -> bool {
        query.name.is_none() && self.turned_by_name(query).next().is_some()
    }

    /// The rules (by their places) that could send this query to another outbound than it has without a name, if it
    /// had one.
    pub fn turned_by_name(&self, query: &Query<'_>) -> impl Iterator<Item = usize> {
        let plain = if self.named.is_empty() {
            None
        } else {
            self.first_plain(query)
        };
        let outbound = plain.map_or(self.default_number, |(_, gate)| gate.outbound);
        self.named
            .iter()
            .take_while(move |(index, _)| plain.is_none_or(|(plain, _)| *index < plain))
            .filter(move |(index, gate)| {
                gate.outbound != outbound && gate.is_open(query) && self.rule(*index).holds(query)
            })
            .map(|(index, _)| *index as usize)
    }

    /// Is this name one of the domains of the rule (by its place)?
    #[must_use]
    pub fn has_domain(&self, rule: usize, name: &str) -> bool {
        let most = u32::try_from(rule).unwrap_or(u32::MAX);
        let is_rule = |index| index as usize == rule;
        self.domains.first(name, most, is_rule).is_some()
    }

    /// Does `accept` take every rule (None: the default) that could decide for something that asks for this name at
    /// this address, whatever its source, port and protocol?
    #[must_use]
    pub fn all(&self, name: &str, address: IpAddr, accept: impl Fn(Option<usize>) -> bool) -> bool {
        let mut named = Vec::new();
        self.domains.first(name, u32::MAX, |index| {
            named.push(index as usize);
            false
        });
        for (index, rule) in self.rules.iter().enumerate() {
            let is_about = (!rule.named || named.contains(&index))
                && rule.prefix.as_ref().is_none_or(|set| set.contains(address));
            if is_about {
                if !accept(Some(index)) {
                    return false;
                }
                if rule.is_for_everything() {
                    return true;
                }
            }
        }
        accept(None)
    }

    /// What each rule is called, and the name of its outbound.
    pub fn names_and_outbounds(&self) -> impl Iterator<Item = (&str, &str)> {
        self.rules.iter().map(|rule| (&*rule.name, &*rule.outbound))
    }

    /// The first rule that matches without a name.
    fn first_plain(&self, query: &Query<'_>) -> Option<(u32, Gate)> {
        self.plain
            .iter()
            .copied()
            .find(|(index, gate)| gate.is_open(query) && self.rule(*index).holds(query))
    }

    fn rule(&self, index: u32) -> &Compiled {
        &self.rules[index as usize]
    }

    /// How many rules there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// How many domains they have, all together.
    #[must_use]
    pub fn domains(&self) -> usize {
        self.domains.len()
    }

    /// Does everything take the default?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}
