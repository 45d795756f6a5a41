//! Where traffic goes: the outbounds in use, and the rules that choose among them.

mod explain;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::select_all;

use super::Error;
use super::check::{CheckSettings, Checker};
use super::exit::{Choice, Exit, Group, GroupStatus, NamedGroup};
use super::guard::Guard;
use super::outbound::Outbound;
use super::resolve::Resolver;
use super::way::{OutboundStatus, Way};
use crate::net::Binding;
#[cfg(test)]
use crate::policy::group::Kind;
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
    /// The outbounds.
    pub outbounds: Vec<Named>,
    /// The groups of them. No name is that of an outbound or of another group.
    pub groups: Vec<NamedGroup>,
    /// The name of the outbound or group for all that no rule is about. None: the first outbound.
    pub default: Option<String>,
    /// How the members of groups are checked.
    pub check: CheckSettings,
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
            groups: Vec::new(),
            default: None,
            check: CheckSettings::default(),
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

/// Name and exit of a rule.
type OfRule = (Arc<str>, Exit);

/// The outbounds in use, their groups, and the rules.
#[derive(Debug)]
pub struct Router {
    /// Never empty.
    ways: Vec<Arc<Way>>,
    groups: Vec<Arc<Group>>,
    /// For all that no rule is about.
    default: Exit,
    checker: Arc<Checker>,
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
    /// [`Error::UnknownOutbound`], [`Error::Member`].
    pub async fn open(
        routing: Routing,
        previous: Option<&Self>,
        resolver: &Resolver,
        guard: &Guard,
    ) -> Result<Self, Error> {
        let Routing {
            mut outbounds,
            groups,
            default,
            check,
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
        let before = previous.map_or(&[][..], |router| &router.groups);
        let groups = open_groups(groups, &ways, before)?;
        let checker = Arc::new(Checker::new(check)?);
        let default = match default {
            None => Exit::Way(Arc::clone(&ways[0])),
            Some(name) => exit(&name, &ways, &groups).ok_or(Error::NoOutbound)?,
        };
        let router = Self {
            of_rules: of_rules(&rules, &ways, &groups)?,
            ways,
            groups,
            default,
            checker,
            rules,
            direct_names,
            sniff,
        };
        // When nothing can fail any more: the ways may be in use.
        router.set_checks();
        Ok(router)
    }

    /// The members of groups are checked, and no other outbound is: nobody asked for that.
    fn set_checks(&self) {
        let groups = self
            .groups
            .iter()
            .map(|group| Exit::Group(Arc::clone(group)));
        let groups: Vec<Exit> = groups.collect();
        for way in &self.ways {
            let mut members = groups.iter().flat_map(Exit::all);
            let is_member = members.any(|member| Arc::ptr_eq(member, way));
            way.check_every(is_member.then(|| self.checker.interval()));
        }
    }

    /// One outbound as a test writes it.
    #[cfg(test)]
    pub fn fixed(outbound: &str) -> Self {
        Self::from(Way::fixed(outbound))
    }

    /// All traffic by a group of these ways, as a test has it. Nothing is checked.
    #[cfg(test)]
    pub fn group(kind: Kind, ways: Vec<Arc<Way>>) -> Self {
        let mut router = Self::with_rules(ways, Rules::none(), None);
        let spec = NamedGroup {
            name: "group".to_owned(),
            kind,
            members: router.ways.iter().map(|way| way.name.to_string()).collect(),
            default: None,
        };
        let members = router.ways.iter().cloned().map(Exit::Way).collect();
        let group = Group::open(spec, members, None);
        router.default = Exit::Group(Arc::clone(&group));
        router.groups.push(group);
        router
    }

    /// These ways and rules, as a test has them.
    #[cfg(test)]
    pub fn with_rules(ways: Vec<impl Into<Arc<Way>>>, rules: Rules, sniff: Option<Sniff>) -> Self {
        let ways: Vec<_> = ways.into_iter().map(Into::into).collect();
        let rules = Arc::new(rules);
        let checker = Checker::new(CheckSettings::default());
        Self {
            of_rules: of_rules(&rules, &ways, &[]).expect("outbounds that are there"),
            groups: Vec::new(),
            default: Exit::Way(Arc::clone(&ways[0])),
            checker: Arc::new(checker.expect("no TLS")),
            ways,
            rules,
            direct_names: None,
            sniff,
        }
    }

    /// The way of all that no rule is about, where that is no group.
    #[cfg(test)]
    pub fn default_way(&self) -> &Arc<Way> {
        match &self.default {
            Exit::Way(way) => way,
            Exit::Group(group) => panic!("the default is the group {}", group.name),
        }
    }

    /// What takes all that no rule is about.
    #[must_use]
    pub fn default_exit(&self) -> &Exit {
        &self.default
    }

    /// The way of something that no rule is about.
    #[must_use]
    pub fn default_choice(&self, query: &Query<'_>) -> Choice {
        Choice::new(&self.default, None, query)
    }

    /// The way that the rules say.
    #[must_use]
    pub fn choose(&self, query: &Query<'_>) -> Choice {
        match self.rules.decide(query).rule {
            Some((rule, _)) => {
                let (rule, exit) = &self.of_rules[rule];
                Choice::new(exit, Some(rule), query)
            }
            None => self.default_choice(query),
        }
    }

    /// Is there a group?
    #[must_use]
    pub fn has_groups(&self) -> bool {
        !self.groups.is_empty()
    }

    /// All outbounds.
    #[must_use]
    pub fn ways(&self) -> &[Arc<Way>] {
        &self.ways
    }

    /// Who makes the checks.
    #[must_use]
    pub fn checker(&self) -> &Arc<Checker> {
        &self.checker
    }

    /// When the next check is to be made.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.ways.iter().filter_map(|way| way.next_due()).min()
    }

    /// Waits until a check may be due sooner than it was.
    pub(super) async fn doubted(&self) {
        select_all(self.ways.iter().map(|way| Box::pin(way.doubted()))).await;
    }

    /// What is known of the outbounds.
    #[must_use]
    pub fn outbounds(&self) -> Vec<OutboundStatus> {
        self.ways.iter().map(|way| way.status()).collect()
    }

    /// What the groups do.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupStatus> {
        self.groups.iter().map(|group| group.status()).collect()
    }

    /// From now on the group takes this member.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn select(&self, group: &str, member: &str) -> Result<(), String> {
        match self.groups.iter().find(|one| *one.name == *group) {
            Some(group) => group.select(member),
            None if self.groups.is_empty() => Err(format!(
                "there is no group \"{group}\": the configuration has no [[group]]"
            )),
            None => {
                let names: Vec<&str> = self.groups.iter().map(|one| &*one.name).collect();
                Err(format!(
                    "there is no group \"{group}\"; there are {}",
                    names.join(", ")
                ))
            }
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
            let exit = rule.map_or(&self.default, |rule| &self.of_rules[rule].1);
            exit.is_plainly_direct()
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

/// The outbound or group of this name.
fn exit(name: &str, ways: &[Arc<Way>], groups: &[Arc<Group>]) -> Option<Exit> {
    let way = ways.iter().find(|way| *way.name == *name);
    let group = groups.iter().find(|group| *group.name == *name);
    way.cloned()
        .map(Exit::Way)
        .or_else(|| group.cloned().map(Exit::Group))
}

/// Opens groups, each behind those that are its members.
fn open_groups(
    mut specs: Vec<NamedGroup>,
    ways: &[Arc<Way>],
    before: &[Arc<Group>],
) -> Result<Vec<Arc<Group>>, Error> {
    let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    let mut groups = Vec::with_capacity(specs.len());
    while !specs.is_empty() {
        let members = |spec: &NamedGroup| -> Option<Vec<Exit>> {
            let members = spec.members.iter();
            members.map(|name| exit(name, ways, &groups)).collect()
        };
        let ready = specs
            .iter()
            .position(|spec| members(spec).is_some_and(|members| !members.is_empty()));
        let Some(ready) = ready else {
            return Err(Error::Member(specs.swap_remove(0).name));
        };
        let spec = specs.remove(ready);
        let members = members(&spec).unwrap_or_default();
        let previous = before.iter().find(|group| *group.name == *spec.name);
        groups.push(Group::open(spec, members, previous));
    }
    let place = |group: &Arc<Group>| names.iter().position(|name| **name == *group.name);
    groups.sort_by_key(place);
    Ok(groups)
}

fn of_rules(rules: &Rules, ways: &[Arc<Way>], groups: &[Arc<Group>]) -> Result<Vec<OfRule>, Error> {
    let of_rule = |(rule, outbound): (&str, &str)| {
        let exit = exit(outbound, ways, groups).ok_or_else(|| Error::UnknownOutbound {
            rule: rule.to_owned(),
            outbound: outbound.to_owned(),
        })?;
        Ok((rule.into(), exit))
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
