//! What should be, from what there is: pure, no I/O.
//!
//! A [`Snapshot`] and the configuration give [`Wanted`]; [`diff`] against what is present gives
//! the changes. Following a link, an address or a reload is the same thing done again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::links::{Framing, Snapshot, is_way_out};
use crate::config::LinkPattern;

/// Why a prefix is local.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LocalKind {
    /// An address of the gateway.
    Address,
    /// A subnet that one of its links is part of.
    Subnet,
}

/// What the kernel half should know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// LAN links by index: their names, and what precedes the IP header. [`Framing::Unknown`] only
    /// for one that is named without a glob; attaching it is refused with the reason.
    pub attach: BTreeMap<u32, (String, Framing)>,
    /// The gateway's own addresses and subnets.
    pub locals: BTreeMap<IpNet, LocalKind>,
    /// Who may use the proxy: a LAN link's index, and a source prefix on it. Also under the index of
    /// the bridge that it is a port of and the like: socket lookup hears of that link only.
    pub sources: BTreeSet<(u32, IpNet)>,
}

/// Works out what should be.
///
/// On a LAN link these sources are admitted: the link's own prefixes, those of what is stacked on it
/// (VLANs, macvlans) and of the bridge or bond that it is part of, and `extra_sources`. Prefixes of
/// the gateway's other links are not, so that no neighbour on the WAN side borrows the proxy.
#[must_use]
pub fn wanted(snapshot: &Snapshot, lan: &[LinkPattern], extra_sources: &[IpNet]) -> Wanted {
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

    let mut behind = Vec::new();
    for link in snapshot.links.iter().filter(|link| !link.loopback) {
        let named = lan
            .iter()
            .any(|pattern| pattern.exact() == Some(&*link.name));
        let meant = named
            || !matches!(link.framing, Framing::Unknown(_))
                && lan.iter().any(|pattern| pattern.matches(&link.name));
        if !meant {
            continue;
        }
        wanted
            .attach
            .insert(link.index, (link.name.clone(), link.framing));
        let carriers = carriers(snapshot, link.index);
        let own = prefixes
            .iter()
            .filter(|(carrier, prefix)| carriers.contains(carrier) && !is_link_local(prefix))
            .map(|(_, prefix)| *prefix);
        let extra = extra_sources.iter().map(IpNet::trunc);
        wanted
            .sources
            .extend(own.chain(extra).map(|prefix| (link.index, prefix)));
        behind.extend(carriers.into_iter().map(|carrier| (link.index, carrier)));
    }
    // Not for a carrier that is attached itself: its devices may use its own sources only.
    let own = wanted.sources.clone();
    for (link, carrier) in behind {
        if !wanted.attach.contains_key(&carrier) {
            let of_link = own.iter().filter(|(index, _)| *index == link);
            let for_carrier = of_link.map(|(_, prefix)| (carrier, *prefix));
            wanted.sources.extend(for_carrier);
        }
    }
    wanted
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

    fn patterns(texts: &[&str]) -> Vec<LinkPattern> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn sources_of(wanted: &Wanted, link: u32) -> Vec<String> {
        wanted
            .sources
            .iter()
            .filter(|(index, _)| *index == link)
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
        let wanted = wanted(&router(), &patterns(&["eth0"]), &[]);
        assert_eq!(wanted.attach.keys().copied().collect::<Vec<_>>(), [2]);
        assert_eq!(
            sources_of(&wanted, 2),
            ["192.168.1.0/24", "192.168.5.0/24", "fd00::/64"]
        );
    }

    #[test]
    fn a_vlan_admits_itself_alone_and_extra_sources_count_for_each_link() {
        let extra = [net("10.1.2.3/8")];
        let wanted = wanted(&router(), &patterns(&["eth0.5", "eth1"]), &extra);
        assert_eq!(sources_of(&wanted, 4), ["10.0.0.0/8", "192.168.5.0/24"]);
        assert!(sources_of(&wanted, 3).contains(&"10.0.0.0/8".to_owned()));
        assert_eq!(sources_of(&wanted, 2), [""; 0]);
    }

    #[test]
    fn every_address_and_subnet_of_every_link_is_local() {
        let wanted = wanted(&router(), &[], &[]);
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
        let of_port = wanted(&snapshot, &patterns(&["eth0"]), &[]);
        assert_eq!(sources_of(&of_port, 2), ["10.9.0.0/24", "10.10.0.0/24"]);
        let of_bridge = wanted(&snapshot, &patterns(&["br0"]), &[]);
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
        let wanted = wanted(&snapshot, &patterns(&["eth1"]), &[]);
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
        let before = wanted(&router(), &patterns(&["eth0"]), &[]);
        assert_eq!(wanted(&snapshot, &patterns(&["eth0"]), &[]), before);
    }

    #[test]
    fn globs_skip_the_loopback_and_what_cannot_be_attached() {
        let mut snapshot = router();
        snapshot.links[2].framing = Framing::Unknown(280);
        let all = wanted(&snapshot, &patterns(&["*"]), &[]);
        assert_eq!(all.attach.keys().copied().collect::<Vec<_>>(), [2, 4]);
        let named = wanted(&snapshot, &patterns(&["eth1"]), &[]);
        assert_eq!(named.attach[&3].1, Framing::Unknown(280));
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
            let wanted = wanted(&snapshot, &patterns(&[&pattern]), &[]);
            for address in &snapshot.addresses {
                let own = IpNet::from(address.address);
                prop_assert_eq!(wanted.locals.get(&own), Some(&LocalKind::Address));
            }
            prop_assert!(wanted.locals.keys().all(|prefix| prefix.prefix_len() >= 8));
            prop_assert!(wanted.locals.keys().all(|prefix| *prefix == prefix.trunc()));
            for (link, prefix) in &wanted.sources {
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
