//! What should be, from what there is: pure, no I/O.
//!
//! A [`Snapshot`] and the configuration give [`Wanted`]; [`diff`] against what is present gives
//! the changes. Following a link, an address or a reload is the same thing done again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use tproxy_common::abi::SOURCE_OWN;

use super::links::{Framing, LinkInfo, Snapshot, is_way_out};
use crate::config::{LinkPattern, WanPattern};

/// Why a prefix is local.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LocalKind {
    /// An address of the gateway.
    Address,
    /// A subnet that one of its links is part of.
    Subnet,
}

/// What a link is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// Devices are behind it, and what comes from them is steered.
    pub lan: bool,
    /// What the gateway itself sends by it is steered.
    pub wan: bool,
    /// It is `lo`, by which the gateway's own traffic gets to the proxy.
    pub loopback: bool,
    /// Datagrams on the express lane leave and come by it.
    pub express: bool,
}

impl Roles {
    /// A LAN link.
    pub const LAN: Self = Self {
        lan: true,
        wan: false,
        loopback: false,
        express: false,
    };
    /// A WAN link.
    pub const WAN: Self = Self {
        lan: false,
        wan: true,
        loopback: false,
        express: false,
    };
    /// A link for the express lane alone.
    pub const EXPRESS: Self = Self {
        lan: false,
        wan: false,
        loopback: false,
        express: true,
    };
    /// `lo`.
    pub const LOOPBACK: Self = Self {
        lan: false,
        wan: false,
        loopback: true,
        express: false,
    };

    /// Those that people know of.
    #[must_use]
    pub fn told(self) -> Self {
        Self {
            loopback: false,
            express: false,
            ..self
        }
    }

    /// Is it there for devices or the gateway's own traffic, and so one that people know of?
    #[must_use]
    pub fn is_told(self) -> bool {
        !self.told().is_empty()
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Those of either.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            lan: self.lan || other.lan,
            wan: self.wan || other.wan,
            loopback: self.loopback || other.loopback,
            express: self.express || other.express,
        }
    }

    /// Those of this that are not of the other.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self {
            lan: self.lan && !other.lan,
            wan: self.wan && !other.wan,
            loopback: self.loopback && !other.loopback,
            express: self.express && !other.express,
        }
    }
}

/// Where a source is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Via {
    /// The interface index.
    pub link: u32,
    /// For what the gateway itself sends by the link; otherwise for what comes in there.
    pub own: bool,
}

impl Via {
    /// What comes in by a link.
    #[must_use]
    pub const fn arriving(link: u32) -> Self {
        Self { link, own: false }
    }

    /// What the gateway itself sends by a link.
    #[must_use]
    pub const fn leaving(link: u32) -> Self {
        Self { link, own: true }
    }

    /// The key in the maps.
    pub(super) fn key(self) -> u32 {
        let own = if self.own { SOURCE_OWN } else { 0 };
        (self.link | own).to_be()
    }

    /// From the key in the maps.
    pub(super) fn of(key: u32) -> Self {
        let key = u32::from_be(key);
        Self {
            link: key & !SOURCE_OWN,
            own: key & SOURCE_OWN != 0,
        }
    }
}

/// Which links are meant.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// LAN links.
    pub lan: Vec<LinkPattern>,
    /// WAN links.
    pub wan: Vec<WanPattern>,
    /// Prefixes that may use the proxy on each LAN link, beside its own.
    pub sources: Vec<IpNet>,
    /// Do links that hold a default route, and WAN links, serve the express lane?
    pub express: bool,
    /// Names of links that are not meant all the same.
    pub except: Vec<String>,
}

impl Selection {
    /// What the link is meant to be; `lo` is never meant.
    #[must_use]
    pub fn roles(&self, link: &LinkInfo, snapshot: &Snapshot) -> Roles {
        if link.loopback || self.except.contains(&link.name) {
            return Roles::default();
        }
        // One that cannot be attached is meant only if it is named, so that its refusal is seen.
        let fit = !matches!(link.framing, Framing::Unknown(_));
        let meant = |pattern: &LinkPattern| {
            pattern.exact() == Some(&*link.name) || fit && pattern.matches(&link.name)
        };
        let wan = |pattern: &WanPattern| match pattern {
            WanPattern::Default => fit && snapshot.ways_out.contains(&link.index),
            WanPattern::Link(pattern) => meant(pattern),
        };
        let wan = self.wan.iter().any(wan);
        let way_out = fit && snapshot.ways_out.contains(&link.index);
        Roles {
            lan: self.lan.iter().any(meant),
            wan,
            loopback: false,
            express: self.express && (wan || way_out),
        }
    }
}

/// How a link should be attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Its name.
    pub name: String,
    /// What precedes the IP header. [`Framing::Unknown`] only for one that is named without a
    /// glob; attaching it is refused with the reason.
    pub framing: Framing,
    /// What it is for.
    pub roles: Roles,
}

/// What the kernel half should know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Links by index. With a WAN link comes `lo`.
    pub attach: BTreeMap<u32, Attachment>,
    /// The gateway's own addresses and subnets.
    pub locals: BTreeMap<IpNet, LocalKind>,
    /// Who may use the proxy, and where. On a LAN link also under the index of
    /// the bridge that it is a port of and the like: socket lookup hears of that link only. For what the
    /// gateway itself sends also on `lo`, for the same reason.
    pub sources: BTreeSet<(Via, IpNet)>,
}

/// Works out what should be.
///
/// On a LAN link these sources are admitted: the link's own prefixes, those of what is stacked on it
/// (VLANs, macvlans) and of the bridge or bond that it is part of, and the extra ones. Prefixes of
/// the gateway's other links are not, so that no neighbour on the WAN side borrows the proxy.
/// Of what leaves by a WAN link the gateway's own addresses are admitted.
#[must_use]
pub fn wanted(snapshot: &Snapshot, selection: &Selection) -> Wanted {
    let mut wanted = Wanted::default();
    let prefixes = prefixes(snapshot);

    for (_, prefix) in &prefixes {
        wanted.locals.insert(*prefix, LocalKind::Subnet);
    }
    // Second, so that an own address wins over a subnet of the same extent.
    for address in &snapshot.addresses {
        wanted
            .locals
            .insert(IpNet::from(address.address), LocalKind::Address);
    }

    for link in &snapshot.links {
        let roles = selection.roles(link, snapshot);
        if !roles.is_empty() {
            let attachment = Attachment {
                name: link.name.clone(),
                framing: link.framing,
                roles,
            };
            wanted.attach.insert(link.index, attachment);
        }
    }
    admit_lan(&mut wanted, snapshot, selection, &prefixes);
    admit_own(&mut wanted, snapshot);
    wanted
}

fn admit_lan(
    wanted: &mut Wanted,
    snapshot: &Snapshot,
    selection: &Selection,
    prefixes: &[(u32, IpNet)],
) {
    let links: Vec<u32> = wanted
        .attach
        .iter()
        .filter(|(_, attachment)| attachment.roles.lan)
        .map(|(index, _)| *index)
        .collect();
    let mut behind = Vec::new();
    for index in &links {
        let index = *index;
        let carriers = carriers(snapshot, index);
        let own = prefixes
            .iter()
            .filter(|(carrier, prefix)| carriers.contains(carrier) && !is_link_local(prefix))
            .map(|(_, prefix)| *prefix);
        let extra = selection.sources.iter().map(IpNet::trunc);
        wanted.sources.extend(
            own.chain(extra)
                .map(|prefix| (Via::arriving(index), prefix)),
        );
        behind.extend(carriers.into_iter().map(|carrier| (index, carrier)));
    }
    // Not for a carrier that is a LAN link itself: its devices may use its own sources only.
    let own = wanted.sources.clone();
    for (link, carrier) in behind {
        if !links.contains(&carrier) {
            let of_link = own.iter().filter(|(via, _)| *via == Via::arriving(link));
            let for_carrier = of_link.map(|(_, prefix)| (Via::arriving(carrier), *prefix));
            wanted.sources.extend(for_carrier);
        }
    }
}

fn admit_own(wanted: &mut Wanted, snapshot: &Snapshot) {
    let wan: Vec<u32> = wanted
        .attach
        .iter()
        .filter(|(_, attachment)| attachment.roles.wan)
        .map(|(index, _)| *index)
        .collect();
    let Some(loopback) = snapshot.links.iter().find(|link| link.loopback) else {
        return;
    };
    if wan.is_empty() {
        return;
    }
    let attachment = Attachment {
        name: loopback.name.clone(),
        framing: loopback.framing,
        roles: Roles::LOOPBACK,
    };
    wanted.attach.insert(loopback.index, attachment);
    let places = wan
        .into_iter()
        .map(Via::leaving)
        .chain([Via::arriving(loopback.index)]);
    for via in places {
        let own = snapshot
            .addresses
            .iter()
            .map(|address| IpNet::from(address.address))
            .filter(|own| !own.addr().is_loopback() && !is_link_local(own));
        wanted.sources.extend(own.map(|own| (via, own)));
    }
}

/// Each link's subnets, from its addresses and on-link routes.
fn prefixes(snapshot: &Snapshot) -> Vec<(u32, IpNet)> {
    let of_addresses = snapshot
        .addresses
        .iter()
        .filter_map(|address| Some((address.link, address.subnet()?)));
    let of_routes = snapshot
        .routes
        .iter()
        .map(|route| (route.link, route.prefix.trunc()));
    of_addresses
        .chain(of_routes)
        .filter(|(_, prefix)| !is_way_out(prefix))
        .collect()
}

/// The links whose addresses a packet that arrives on `link` may be meant for: the link, what is
/// stacked on it, and what it is a port of, and so on from there. Never down to other ports.
pub(super) fn carriers(snapshot: &Snapshot, link: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::from([link]);
    let mut todo = vec![link];
    while let Some(index) = todo.pop() {
        let stacked = snapshot
            .links
            .iter()
            .filter(|other| other.parent == Some(index))
            .map(|other| other.index);
        let master = snapshot.link(index).and_then(|link| link.master);
        for next in stacked.chain(master) {
            if found.insert(next) {
                todo.push(next);
            }
        }
    }
    found
}

/// RFC 3927, RFC 4291: such a source means nothing beyond its link.
fn is_link_local(prefix: &IpNet) -> bool {
    match prefix.network() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// What to do to get from what is present to what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes<K, V> {
    /// To be added, or to be replaced where another value stands.
    pub add: Vec<(K, V)>,
    /// To be removed.
    pub remove: Vec<K>,
}

impl<K, V> Changes<K, V> {
    /// Is there nothing to do?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }

    /// Does it: all additions before the first removal, so that nothing is missing in between when
    /// a prefix moves from one entry to another. Ends at the first error.
    ///
    /// # Errors
    /// The first that `add` or `remove` returns.
    pub fn apply<E>(
        self,
        mut add: impl FnMut(K, V) -> Result<(), E>,
        remove: impl FnMut(K) -> Result<(), E>,
    ) -> Result<(), E> {
        self.add
            .into_iter()
            .try_for_each(|(key, value)| add(key, value))?;
        self.remove.into_iter().try_for_each(remove)
    }
}

/// Compares two maps.
#[must_use]
pub fn diff<K: Ord + Clone, V: PartialEq + Clone>(
    wanted: &BTreeMap<K, V>,
    present: &BTreeMap<K, V>,
) -> Changes<K, V> {
    Changes {
        add: wanted
            .iter()
            .filter(|(key, value)| present.get(key) != Some(value))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        remove: present
            .keys()
            .filter(|key| !wanted.contains_key(key))
            .cloned()
            .collect(),
    }
}

/// Compares two sets.
#[must_use]
pub fn diff_sets<K: Ord + Clone>(wanted: &BTreeSet<K>, present: &BTreeSet<K>) -> Changes<K, ()> {
    Changes {
        add: wanted
            .difference(present)
            .map(|key| (key.clone(), ()))
            .collect(),
        remove: present.difference(wanted).cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::control::links::{AddressInfo, LinkInfo, OnLinkRoute};

    fn link(index: u32, name: &str) -> LinkInfo {
        LinkInfo {
            index,
            name: name.to_owned(),
            up: true,
            loopback: name == "lo",
            framing: Framing::Ethernet,
            mtu: 1500,
            master: None,
            parent: None,
        }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    /// `own/length`, on a link.
    fn on(link: u32, text: &str) -> AddressInfo {
        let net = net(text);
        AddressInfo {
            link,
            address: net.addr(),
            peer: None,
            prefix_len: net.prefix_len(),
        }
    }

    fn lan(texts: &[&str]) -> Selection {
        Selection {
            lan: texts.iter().map(|text| text.parse().unwrap()).collect(),
            ..Selection::default()
        }
    }

    fn wan(texts: &[&str]) -> Selection {
        Selection {
            wan: texts.iter().map(|text| text.parse().unwrap()).collect(),
            ..Selection::default()
        }
    }

    fn sources_of(wanted: &Wanted, link: u32) -> Vec<String> {
        wanted
            .sources
            .iter()
            .filter(|(via, _)| *via == Via::arriving(link))
            .map(|(_, prefix)| prefix.to_string())
            .collect()
    }

    /// LAN 2 with a VLAN 4 on it, WAN 3.
    fn router() -> Snapshot {
        Snapshot {
            links: vec![
                link(1, "lo"),
                link(2, "eth0"),
                link(3, "eth1"),
                LinkInfo {
                    parent: Some(2),
                    ..link(4, "eth0.5")
                },
            ],
            addresses: vec![
                on(1, "127.0.0.1/8"),
                on(2, "192.168.1.1/24"),
                on(2, "fd00::1/64"),
                on(2, "fe80::1/64"),
                on(2, "169.254.3.4/16"),
                on(3, "203.0.113.7/29"),
                on(3, "2001:db8::7/64"),
                on(4, "192.168.5.1/24"),
            ],
            routes: vec![OnLinkRoute {
                link: 3,
                prefix: net("198.51.100.0/24"),
            }],
            ways_out: BTreeSet::from([3]),
        }
    }

    #[test]
    fn a_router_admits_its_lan_and_not_its_wan() {
        let wanted = wanted(&router(), &lan(&["eth0"]));
        assert_eq!(wanted.attach.keys().copied().collect::<Vec<_>>(), [2]);
        assert_eq!(
            sources_of(&wanted, 2),
            ["192.168.1.0/24", "192.168.5.0/24", "fd00::/64"]
        );
    }

    #[test]
    fn a_vlan_admits_itself_alone_and_extra_sources_count_for_each_link() {
        let extra = [net("10.1.2.3/8")];
        let selection = Selection {
            sources: extra.to_vec(),
            ..lan(&["eth0.5", "eth1"])
        };
        let wanted = wanted(&router(), &selection);
        assert_eq!(sources_of(&wanted, 4), ["10.0.0.0/8", "192.168.5.0/24"]);
        assert!(sources_of(&wanted, 3).contains(&"10.0.0.0/8".to_owned()));
        assert_eq!(sources_of(&wanted, 2), [""; 0]);
    }

    #[test]
    fn every_address_and_subnet_of_every_link_is_local() {
        let wanted = wanted(&router(), &Selection::default());
        for (prefix, kind) in [
            ("192.168.1.1/32", LocalKind::Address),
            ("192.168.1.0/24", LocalKind::Subnet),
            ("203.0.113.7/32", LocalKind::Address),
            ("203.0.113.0/29", LocalKind::Subnet),
            ("198.51.100.0/24", LocalKind::Subnet),
            ("2001:db8::7/128", LocalKind::Address),
            ("2001:db8::/64", LocalKind::Subnet),
        ] {
            assert_eq!(wanted.locals.get(&net(prefix)), Some(&kind), "{prefix}");
        }
        assert!(wanted.attach.is_empty() && wanted.sources.is_empty());
    }

    #[test]
    fn a_port_admits_its_bridge_and_what_is_stacked_there_but_no_sibling() {
        let mut snapshot = router();
        snapshot.links[1].master = Some(9);
        snapshot.links.push(link(9, "br0"));
        snapshot.links.push(LinkInfo {
            parent: Some(9),
            ..link(10, "br0.7")
        });
        snapshot.links.push(LinkInfo {
            master: Some(9),
            ..link(11, "eth2")
        });
        snapshot.addresses = vec![
            on(9, "10.9.0.1/24"),
            on(10, "10.10.0.1/24"),
            on(11, "10.11.0.1/24"),
            on(3, "203.0.113.7/29"),
        ];
        let of_port = wanted(&snapshot, &lan(&["eth0"]));
        assert_eq!(sources_of(&of_port, 2), ["10.9.0.0/24", "10.10.0.0/24"]);
        let of_bridge = wanted(&snapshot, &lan(&["br0"]));
        assert_eq!(sources_of(&of_bridge, 9), ["10.9.0.0/24", "10.10.0.0/24"]);
    }

    #[test]
    fn links_that_name_each_other_do_not_hang() {
        let mut snapshot = router();
        snapshot.links[1].parent = Some(4);
        snapshot.links[3].master = Some(2);
        assert_eq!(carriers(&snapshot, 2), BTreeSet::from([2, 4]));
    }

    #[test]
    fn an_own_address_wins_over_a_subnet_of_its_extent() {
        let mut snapshot = router();
        snapshot.addresses = vec![on(2, "10.8.0.1/32")];
        snapshot.addresses.push(AddressInfo {
            peer: Some("10.8.0.1".parse().unwrap()),
            ..on(3, "10.8.0.2/32")
        });
        let wanted = wanted(&snapshot, &lan(&["eth1"]));
        assert_eq!(
            wanted.locals.get(&net("10.8.0.1/32")),
            Some(&LocalKind::Address)
        );
        // The other end of a point-to-point link may use the proxy.
        assert_eq!(sources_of(&wanted, 3), ["10.8.0.1/32", "198.51.100.0/24"]);
    }

    #[test]
    fn a_default_route_through_a_link_makes_nothing_local() {
        let mut snapshot = router();
        for prefix in ["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/0", "2000::/3"] {
            snapshot.routes.push(OnLinkRoute {
                link: 2,
                prefix: net(prefix),
            });
        }
        let before = wanted(&router(), &lan(&["eth0"]));
        assert_eq!(wanted(&snapshot, &lan(&["eth0"])), before);
    }

    #[test]
    fn globs_skip_the_loopback_and_what_cannot_be_attached() {
        let mut snapshot = router();
        snapshot.links[2].framing = Framing::Unknown(280);
        let all = wanted(&snapshot, &lan(&["*"]));
        assert_eq!(all.attach.keys().copied().collect::<Vec<_>>(), [2, 4]);
        let named = wanted(&snapshot, &lan(&["eth1"]));
        assert_eq!(named.attach[&3].framing, Framing::Unknown(280));
    }

    fn any_net() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<u32>(), 0..=32u8)
                .prop_map(|(bits, length)| IpNet::new(Ipv4Addr::from(bits).into(), length)),
            (any::<u128>(), 0..=128u8)
                .prop_map(|(bits, length)| IpNet::new(Ipv6Addr::from(bits).into(), length)),
        ]
        .prop_map(|net| net.unwrap())
    }

    fn any_snapshot() -> impl Strategy<Value = Snapshot> {
        let links = prop::collection::vec(
            (
                prop::option::of(1..8u32),
                prop::option::of(1..8u32),
                "[ab]{1,2}",
            ),
            0..8,
        );
        let placed = || prop::collection::vec((1..8u32, any_net()), 0..12);
        (links, placed(), placed()).prop_map(|(links, addresses, routes)| Snapshot {
            links: links
                .into_iter()
                .zip(1..)
                .map(|((master, parent, name), index)| LinkInfo {
                    master,
                    parent,
                    ..link(index, &name)
                })
                .collect(),
            addresses: addresses
                .into_iter()
                .map(|(link, net)| on(link, &net.to_string()))
                .collect(),
            routes: routes
                .into_iter()
                .map(|(link, prefix)| OnLinkRoute { link, prefix })
                .collect(),
            ways_out: BTreeSet::new(),
        })
    }

    #[test]
    fn a_wan_link_admits_own_addresses_and_brings_lo() {
        let both = Selection {
            lan: lan(&["eth0"]).lan,
            ..wan(&["default"])
        };
        let wanted = wanted(&router(), &both);
        let roles: Vec<_> = wanted
            .attach
            .iter()
            .map(|(index, link)| (*index, link.roles))
            .collect();
        assert_eq!(
            roles,
            [(1, Roles::LOOPBACK), (2, Roles::LAN), (3, Roles::WAN)]
        );
        let own: Vec<_> = wanted
            .sources
            .iter()
            .filter(|(via, _)| *via == Via::leaving(3))
            .map(|(_, prefix)| prefix.to_string())
            .collect();
        // No loopback and no link-local address, and no neighbour's.
        let expected = [
            "192.168.1.1/32",
            "192.168.5.1/32",
            "203.0.113.7/32",
            "2001:db8::7/128",
            "fd00::1/128",
        ];
        assert_eq!(own, expected);
        // Reassembled datagrams come in by lo.
        assert_eq!(sources_of(&wanted, 1), expected);
        assert_eq!(sources_of(&wanted, 3), [""; 0]);
    }

    #[test]
    fn one_link_may_have_both_roles_and_none_may_be_left() {
        let mut selection = Selection {
            lan: lan(&["eth1"]).lan,
            ..wan(&["eth*"])
        };
        let both = wanted(&router(), &selection);
        assert_eq!(both.attach[&3].roles, Roles::LAN.and(Roles::WAN));
        assert_eq!(both.attach[&3].roles.without(Roles::LAN), Roles::WAN);
        selection.except = vec!["eth0".into(), "eth0.5".into(), "eth1".into()];
        assert!(wanted(&router(), &selection).attach.is_empty());
        // lo is no WAN link, whoever names it.
        assert!(wanted(&router(), &wan(&["lo"])).attach.is_empty());
    }

    proptest! {
        #[test]
        fn changes_lead_from_present_to_wanted_and_touch_nothing_else(
            wanted in prop::collection::btree_map(0..20u8, 0..3u8, 0..15),
            present in prop::collection::btree_map(0..20u8, 0..3u8, 0..15),
        ) {
            let changes = diff(&wanted, &present);
            for (key, value) in &changes.add {
                prop_assert_ne!(present.get(key), Some(value));
            }
            let result = std::cell::RefCell::new(present.clone());
            let removing = std::cell::Cell::new(false);
            changes.apply::<()>(
                |key, value| {
                    assert!(!removing.get(), "an addition after a removal");
                    result.borrow_mut().insert(key, value);
                    Ok(())
                },
                |key| {
                    removing.set(true);
                    assert!(result.borrow_mut().remove(&key).is_some());
                    Ok(())
                },
            ).unwrap();
            prop_assert_eq!(result.into_inner(), wanted.clone());
            prop_assert!(diff(&wanted, &wanted).is_empty());

            let keys = |map: &BTreeMap<u8, u8>| map.keys().copied().collect::<BTreeSet<_>>();
            let of_sets = diff_sets(&keys(&wanted), &keys(&present));
            prop_assert_eq!(of_sets.remove, diff(&wanted, &present).remove);
        }

        #[test]
        fn own_addresses_are_always_local_and_sources_never_foreign(
            snapshot in any_snapshot(),
            pattern in "[ab]{1,2}|a\\*|\\*",
        ) {
            let wanted = wanted(&snapshot, &lan(&[&pattern]));
            for address in &snapshot.addresses {
                let own = IpNet::from(address.address);
                prop_assert_eq!(wanted.locals.get(&own), Some(&LocalKind::Address));
            }
            prop_assert!(wanted.locals.keys().all(|prefix| prefix.prefix_len() >= 8));
            prop_assert!(wanted.locals.keys().all(|prefix| *prefix == prefix.trunc()));
            for (via, prefix) in &wanted.sources {
                let link = &via.link;
                prop_assert!(!via.own);
                // Its own, or as a carrier those of an attached link.
                let mut lans = wanted.attach.keys().filter(|lan| {
                    let attached = wanted.attach.contains_key(link);
                    *lan == link || !attached && carriers(&snapshot, **lan).contains(link)
                });
                let known = lans.any(|lan| {
                    let carriers = carriers(&snapshot, *lan);
                    snapshot.addresses.iter().any(|address| {
                        carriers.contains(&address.link) && address.subnet() == Some(*prefix)
                    }) || snapshot.routes.iter().any(|route| {
                        carriers.contains(&route.link) && route.prefix.trunc() == *prefix
                    })
                });
                prop_assert!(known, "{} is of no link that {} carries", prefix, link);
            }
        }
    }
}
