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
use crate::net::Binding;
use crate::policy::rule::{Protocol, Query, Rules};

pub use self::explain::{Explained, NamedRule, Resolving, Taken};

/// The outbounds that may be named although no configuration has them.
const BUILT_IN: [(&str, Outbound); 2] = [("direct", Outbound::Direct), ("block", Outbound::Block)];

/// An outbound as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name, for people.
    pub name: String,
    /// What it is.
    pub outbound: Outbound,
    /// The name of the outbound that its server is reached through.
    pub via: Option<String>,
    /// What the sockets have that this machine connects with.
    pub binding: Binding,
}

impl Named {
    /// One with nothing but what it is.
    #[must_use]
    pub fn new(name: &str, outbound: Outbound) -> Self {
        Self {
            name: name.to_owned(),
            outbound,
            via: None,
            binding: Binding::default(),
        }
    }
}

/// What decides where traffic goes.
#[derive(Clone, Debug)]
pub struct Routing {
    /// The outbounds. The first is for all that no rule is about.
    pub outbounds: Vec<Named>,
    /// Which connections take which. They may name "direct" and "block" although there is none of that name.
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
        Self::new("fixed", url.parse().expect("a URL"))
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
    /// [`Error::NoOutbound`], [`Error::Via`], [`Error::Lookup`], [`Error::Loop`], [`Error::Tls`],
    /// [`Error::UnknownOutbound`].
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
        for (name, outbound) in BUILT_IN {
            if !outbounds.iter().any(|one| one.name == name) {
                outbounds.push(Named::new(name, outbound));
            }
        }
        let kept = |named: &Named, via: Option<&Arc<Way>>| {
            let ways = previous.map_or(&[][..], |router| &router.ways);
            ways.iter().find(|way| way.is(named, via)).cloned()
        };
        let mut ways: Vec<Option<Arc<Way>>> = vec![None; outbounds.len()];
        // Those that others are reached through come first.
        for place in order(&outbounds)? {
            let named = outbounds[place].clone();
            let of = |name: &String| outbounds.iter().position(|one| one.name == *name);
            let via = named.via.as_ref().and_then(of);
            let via = via.and_then(|via| ways[via].clone());
            ways[place] = Some(match kept(&named, via.as_ref()) {
                Some(way) => way,
                None => Arc::new(Way::open(named, via, resolver, guard).await?),
            });
        }
        let ways: Vec<Arc<Way>> = ways.into_iter().flatten().collect();
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
            way.is_plainly_direct()
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

/// The places of all outbounds, each behind the one that its server is reached through.
fn order(outbounds: &[Named]) -> Result<Vec<usize>, Error> {
    let mut order: Vec<usize> = Vec::with_capacity(outbounds.len());
    while order.len() < outbounds.len() {
        let is_ready = |place: &usize| match &outbounds[*place].via {
            None => true,
            Some(via) => order.iter().any(|done| outbounds[*done].name == *via),
        };
        let next = (0..outbounds.len())
            .filter(|place| !order.contains(place))
            .find(is_ready);
        let Some(next) = next else {
            let stuck = (0..outbounds.len()).find(|place| !order.contains(place));
            let stuck = &outbounds[stuck.expect("one is left")];
            return Err(Error::Via {
                outbound: stuck.name.clone(),
                via: stuck.via.clone().unwrap_or_default(),
            });
        };
        order.push(next);
    }
    Ok(order)
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

    fn named(name: &str, via: Option<&str>) -> Named {
        let mut named = Named::fixed("http://192.0.2.1:1");
        named.name = name.to_owned();
        named.via = via.map(ToOwned::to_owned);
        named
    }

    #[test]
    fn outbounds_come_behind_those_that_they_are_reached_through() {
        let all = [
            named("a", Some("b")),
            named("b", Some("c")),
            named("c", None),
        ];
        assert_eq!(order(&all).expect("no circle"), [2, 1, 0]);
        for bad in [
            vec![named("a", Some("a"))],
            vec![named("a", Some("b")), named("b", Some("a"))],
            vec![named("a", Some("nobody"))],
        ] {
            let error = order(&bad).expect_err("a circle").to_string();
            assert!(error.contains("\"a\" cannot be reached"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_way_is_kept_while_it_and_what_it_is_reached_through_are_the_same() {
        let (resolver, guard) = (Resolver::system(Default::default()), Guard::default());
        let open = async |outbounds: Vec<Named>, previous: Option<&Router>| {
            let routing = Routing::plain(outbounds);
            let router = Router::open(routing, previous, &resolver, &guard).await;
            router.expect("addresses")
        };
        let chain = || vec![named("far", Some("near")), named("near", None)];
        let first = open(chain(), None).await;
        assert_eq!(*first.default_way().name, *"far");
        assert_eq!(first.servers().len(), 1);
        let second = open(chain(), Some(&first)).await;
        assert!(Arc::ptr_eq(first.default_way(), second.default_way()));
        let mut other = chain();
        other[1].binding.mark = 0x100;
        let third = open(other, Some(&second)).await;
        assert!(!Arc::ptr_eq(second.default_way(), third.default_way()));
    }
}
