//! Where traffic goes: the outbounds in use, and the rules that choose among them.

mod explain;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;

use super::Error;
use super::guard::Guard;
use super::outbound::Outbound;
use super::resolve::Resolver;
use super::way::Way;
use crate::policy::rule::{Protocol, Query, Rules};

pub use self::explain::{Explained, NamedRule, Resolving, Taken};

/// The outbound that rules may name although no configuration has it.
const DIRECT: &str = "direct";

/// An outbound as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name, for people.
    pub name: String,
    /// What it is.
    pub outbound: Outbound,
}

/// What decides where traffic goes.
#[derive(Clone, Debug)]
pub struct Routing {
    /// The outbounds. The first is for all that no rule is about.
    pub outbounds: Vec<Named>,
    /// Which connections take which. They may name "direct" although there is none of that name.
    pub rules: Arc<Rules>,
    /// The rule (by its place) whose names are looked up by the DNS servers that are asked directly.
    pub direct_names: Option<usize>,
    /// How names are read. None: they are not.
    pub sniff: Option<Sniff>,
}

/// How names are read from what devices send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sniff {
    /// How long a connection may wait for its device's first bytes, if its server may be the one to speak first.
    pub timeout: Duration,
    /// The outbound is asked for the name rather than for the address, where it takes names.
    pub rewrite: bool,
}

/// Ports (plain numbers) where no server speaks first: HTTP and HTTPS.
const CLIENT_FIRST: [u16; 2] = [80, 443];
/// How many times longer the device's first bytes are waited for there. A device that is slow to send them (over
/// Wi-Fi, or because it is busy) would otherwise go the way of those without a name.
const PATIENCE: u32 = 10;

impl Sniff {
    /// How long a connection to this port (a plain number) may wait for its device's first bytes.
    #[must_use]
    pub fn limit(&self, port: u16) -> Duration {
        if CLIENT_FIRST.contains(&port) {
            self.timeout.saturating_mul(PATIENCE)
        } else {
            self.timeout
        }
    }
}

impl Routing {
    /// All traffic by the first outbound.
    #[must_use]
    pub fn plain(outbounds: Vec<Named>) -> Self {
        Self {
            outbounds,
            rules: Arc::new(Rules::none()),
            direct_names: None,
            sniff: None,
        }
    }
}

#[cfg(test)]
impl Named {
    /// An outbound as a test writes it.
    pub fn fixed(url: &str) -> Self {
        Self {
            name: "fixed".to_owned(),
            outbound: url.parse().expect("a URL"),
        }
    }
}

/// Which way something takes.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The outbound.
    pub way: Arc<Way>,
    /// The rule that says so. None: no rule is about it, so it is the default.
    pub rule: Option<Arc<str>>,
}

/// Name and way of a rule.
type OfRule = (Arc<str>, Arc<Way>);

/// The outbounds in use, and the rules.
#[derive(Debug)]
pub struct Router {
    /// Never empty. The first is for all that no rule is about.
    ways: Vec<Arc<Way>>,
    rules: Arc<Rules>,
    of_rules: Vec<OfRule>,
    direct_names: Option<usize>,
    sniff: Option<Sniff>,
}

impl Router {
    /// Looks the servers of all outbounds up, and makes sure that none is the proxy itself. An outbound that
    /// `previous` has already is taken from there as it is.
    ///
    /// # Errors
    /// [`Error::NoOutbound`], [`Error::Lookup`], [`Error::Loop`], [`Error::UnknownOutbound`].
    pub async fn open(
        routing: Routing,
        previous: Option<&Self>,
        resolver: &Resolver,
        guard: &Guard,
    ) -> Result<Self, Error> {
        let Routing {
            mut outbounds,
            rules,
            direct_names,
            sniff,
        } = routing;
        if outbounds.is_empty() {
            return Err(Error::NoOutbound);
        }
        let is_named =
            |outbounds: &[Named], name: &str| outbounds.iter().any(|one| one.name == name);
        if !is_named(&outbounds, DIRECT) {
            outbounds.push(Named {
                name: DIRECT.to_owned(),
                outbound: Outbound::Direct,
            });
        }
        let mut ways = Vec::new();
        for named in outbounds {
            let kept = previous.and_then(|router| router.same(&named));
            ways.push(match kept {
                Some(way) => way,
                None => Arc::new(Way::open(named, resolver, guard).await?),
            });
        }
        let of_rules = of_rules(&rules, &ways)?;
        Ok(Self {
            ways,
            rules,
            of_rules,
            direct_names,
            sniff,
        })
    }

    /// One outbound as a test writes it.
    #[cfg(test)]
    pub fn fixed(outbound: &str) -> Self {
        Self::from(Way::fixed(outbound))
    }

    /// These ways and rules, as a test has them.
    #[cfg(test)]
    pub fn with_rules(ways: Vec<impl Into<Arc<Way>>>, rules: Rules, sniff: Option<Sniff>) -> Self {
        let ways: Vec<_> = ways.into_iter().map(Into::into).collect();
        let rules = Arc::new(rules);
        Self {
            of_rules: of_rules(&rules, &ways).expect("outbounds that are there"),
            ways,
            rules,
            direct_names: None,
            sniff,
        }
    }

    /// The way that this outbound has already.
    fn same(&self, named: &Named) -> Option<Arc<Way>> {
        let same = |way: &&Arc<Way>| *way.name == *named.name && *way.outbound == named.outbound;
        self.ways.iter().find(same).cloned()
    }

    /// The way of all that no rule is about.
    #[must_use]
    pub fn default_way(&self) -> &Arc<Way> {
        self.ways.first().expect("a router has an outbound")
    }

    /// The same as a choice.
    #[must_use]
    pub fn default_choice(&self) -> Choice {
        Choice {
            way: Arc::clone(self.default_way()),
            rule: None,
        }
    }

    /// The way that the rules say.
    #[must_use]
    pub fn choose(&self, query: &Query<'_>) -> Choice {
        match self.rules.decide(query).rule {
            Some((rule, _)) => {
                let (rule, way) = &self.of_rules[rule];
                Choice {
                    way: Arc::clone(way),
                    rule: Some(Arc::clone(rule)),
                }
            }
            None => self.default_choice(),
        }
    }

    /// Is there anything to choose? Without rules all takes the default way.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty()
    }

    /// How to read the name that this is for. None: there is no need to.
    #[must_use]
    pub fn sniff(&self, query: &Query<'_>) -> Option<Sniff> {
        // Datagrams keep their addresses: the peer that answers is one of these.
        let rewrites = |sniff: &Sniff| sniff.rewrite && query.protocol == Protocol::Tcp;
        self.sniff
            .filter(|sniff| rewrites(sniff) || self.rules.needs_name(query))
    }

    /// Is this one of the names that are looked up directly?
    #[must_use]
    pub fn is_direct_name(&self, name: &str) -> bool {
        self.direct_names
            .is_some_and(|rule| self.rules.has_domain(rule, name))
    }

    /// Does everything that asks for this name at this address go to its destination itself, whoever it is?
    #[must_use]
    pub fn is_always_direct(&self, name: &str, address: IpAddr) -> bool {
        let is_direct = |rule: Option<usize>| {
            let way = rule.map_or(self.default_way(), |rule| &self.of_rules[rule].1);
            *way.outbound == Outbound::Direct
        };
        self.rules.all(name, address, is_direct)
    }

    /// The addresses of all servers.
    #[must_use]
    pub fn servers(&self) -> BTreeSet<IpAddr> {
        self.ways.iter().flat_map(|way| way.addresses()).collect()
    }

    /// Waits until it is time to look one of the servers up, and does. Never ends without a name.
    pub(super) async fn refresh(&self, resolver: &Resolver, guard: &Guard) {
        let all = self
            .ways
            .iter()
            .map(|way| Box::pin(way.refresh(resolver, guard)));
        select_all(all).await;
    }
}

fn of_rules(rules: &Rules, ways: &[Arc<Way>]) -> Result<Vec<OfRule>, Error> {
    let of_rule = |(rule, outbound): (&str, &str)| {
        let way = ways.iter().find(|way| *way.name == *outbound);
        let way = way.ok_or_else(|| Error::UnknownOutbound {
            rule: rule.to_owned(),
            outbound: outbound.to_owned(),
        })?;
        Ok((rule.into(), Arc::clone(way)))
    };
    rules.names_and_outbounds().map(of_rule).collect()
}

#[cfg(test)]
impl From<Way> for Router {
    fn from(way: Way) -> Self {
        Self::with_rules(vec![way], Rules::none(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_waited_for_longer_where_no_server_speaks_first() {
        let sniff = Sniff {
            timeout: Duration::from_millis(30),
            rewrite: false,
        };
        for (port, milliseconds) in [(443, 300), (80, 300), (22, 30), (25, 30), (8443, 30)] {
            assert_eq!(sniff.limit(port), Duration::from_millis(milliseconds));
        }
    }
}
