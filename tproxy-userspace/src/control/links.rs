//! What the network looks like: links, their addresses and the prefixes reached through them,
//! and how to hear of changes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use rtnetlink::packet_core::NlasIterator;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use rtnetlink::packet_route::route::{RouteHeader, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::{
    AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE,
};
use tokio::time::{Instant, timeout_at};

use super::netlink::text;
use super::{Error, Netlink};

/// A burst of changes is over when nothing came for this long.
const QUIET: Duration = Duration::from_millis(50);
/// A burst that does not end is looked at after this time.
const PATIENCE: Duration = Duration::from_millis(500);

/// What precedes the IP header in a link's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Framing {
    /// An Ethernet header of 14 bytes.
    Ethernet,
    /// Nothing.
    None,
    /// Not known, so such a link cannot be attached. The `ARPHRD_*` number of `<linux/if_arp.h>`.
    Unknown(u16),
}

impl Framing {
    /// From an `ARPHRD_*` number. Those without a header are what the kernel takes for such in
    /// `dev_is_mac_header_xmit` (include/linux/if_arp.h).
    #[must_use]
    pub fn from_hardware(hardware: u16) -> Self {
        match hardware {
            libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Self::Ethernet,
            libc::ARPHRD_NONE
            | libc::ARPHRD_PPP
            | libc::ARPHRD_TUNNEL
            | libc::ARPHRD_TUNNEL6
            | libc::ARPHRD_SIT
            | libc::ARPHRD_IPGRE
            | ARPHRD_IP6GRE
            | ARPHRD_RAWIP => Self::None,
            other => Self::Unknown(other),
        }
    }
}

const ARPHRD_IP6GRE: u16 = 823;
const ARPHRD_RAWIP: u16 = 519;

/// A network link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Its index, which it keeps when it is renamed.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Is it switched on?
    pub up: bool,
    /// Is it `lo`?
    pub loopback: bool,
    /// What precedes the IP header.
    pub framing: Framing,
    /// The longest packet that it carries, in bytes; 0 if it does not say.
    pub mtu: u32,
    /// The bridge, bond, team or VRF that it is part of.
    pub master: Option<u32>,
    /// The link of the same network namespace that it is stacked on, as a VLAN or macvlan is: its
    /// packets arrive there first. The other end of a veth pair and a tunnel's underlay are no parents.
    pub parent: Option<u32>,
}

impl LinkInfo {
    /// Can the programs be attached to it as a LAN or WAN link?
    ///
    /// # Errors
    /// [`Error::UnfitLink`] says why not.
    pub fn check_attachable(&self) -> Result<(), Error> {
        let reason = match self.framing {
            _ if self.loopback => "it is the loopback, no device is behind it; \
                                   name the link that your devices are connected to"
                .to_owned(),
            Framing::Unknown(hardware) => format!(
                "its hardware type {hardware} is neither Ethernet nor bare IP; name the link \
                 above it that carries IP, or a bridge"
            ),
            Framing::Ethernet | Framing::None => return Ok(()),
        };
        Err(Error::UnfitLink {
            name: self.name.clone(),
            reason,
        })
    }
}

/// An address of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressInfo {
    /// The index of the link that has it.
    pub link: u32,
    /// The gateway's own address.
    pub address: IpAddr,
    /// The other end's address, on a point-to-point link that is configured with one.
    pub peer: Option<IpAddr>,
    /// How many bits of the peer's address, or without a peer of the own, name the subnet.
    pub prefix_len: u8,
}

impl AddressInfo {
    /// The subnet that comes with the address. With a peer it is the peer's: the kernel makes its
    /// route from that (`ip-address(8)`).
    #[must_use]
    pub fn subnet(&self) -> Option<IpNet> {
        IpNet::new(self.peer.unwrap_or(self.address), self.prefix_len)
            .ok()
            .map(|net| net.trunc())
    }
}

/// A prefix that is reached through a link without a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnLinkRoute {
    /// The link's index.
    pub link: u32,
    /// The prefix.
    pub prefix: IpNet,
}

/// An on-link prefix that is shorter is no subnet but a way out: VPNs lay 0.0.0.0/1 or 2000::/3 on
/// their link, and nothing would be proxied if those counted as near. Number of bits for IPv4.
const SHORTEST_SUBNET_V4: u8 = 8;
/// [`SHORTEST_SUBNET_V4`] for IPv6.
const SHORTEST_SUBNET_V6: u8 = 16;

/// Is a route to this prefix a default route, or a large part of one?
#[must_use]
pub fn is_way_out(prefix: &IpNet) -> bool {
    let shortest = match prefix {
        IpNet::V4(_) => SHORTEST_SUBNET_V4,
        IpNet::V6(_) => SHORTEST_SUBNET_V6,
    };
    prefix.prefix_len() < shortest
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Route {
    prefix: IpNet,
    /// The links that it leaves by; more than one if it has several next hops.
    links: Vec<u32>,
    /// Is there a router on the way?
    routed: bool,
}

impl Route {
    fn on_link(self) -> Option<OnLinkRoute> {
        match self.links[..] {
            [link] if !self.routed => Some(OnLinkRoute {
                link,
                prefix: self.prefix,
            }),
            _ => None,
        }
    }
}

/// The network at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All links, by index.
    pub links: Vec<LinkInfo>,
    /// All addresses.
    pub addresses: Vec<AddressInfo>,
    /// The on-link routes of the main table.
    pub routes: Vec<OnLinkRoute>,
    /// Indices of the links that a default route of the main table leaves by, in either family.
    pub ways_out: BTreeSet<u32>,
}

impl Snapshot {
    /// Reads the network of the namespace that `netlink` was opened in. What changes meanwhile may
    /// be seen or not: [`Watch`] then yields another snapshot.
    ///
    /// # Errors
    /// [`Error::Netlink`] when the kernel does not answer.
    pub async fn take(netlink: &Netlink) -> Result<Self, Error> {
        let mut request = LinkMessage::default();
        // Statistics are most of a link's message.
        request
            .attributes
            .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let links = netlink
            .dump(&RouteNetlinkMessage::GetLink(request))
            .await
            .map_err(Error::netlink("read", "the links"))?;
        let addresses = netlink
            .dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))
            .await
            .map_err(Error::netlink("read", "the addresses"))?;
        let (mut routes, mut ways_out) = (Vec::new(), BTreeSet::new());
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            // A filter in the kernel: a full Internet table stays there, except its own main part.
            request.header.table = RouteHeader::RT_TABLE_MAIN;
            request.header.kind = RouteType::Unicast;
            let answer = netlink.dump(&RouteNetlinkMessage::GetRoute(request)).await;
            match answer {
                // No such table yet, or no such family.
                Err(error)
                    if [libc::ENOENT, libc::EAFNOSUPPORT, libc::EOPNOTSUPP]
                        .contains(&error.errno) => {}
                other => {
                    let messages = other.map_err(Error::netlink("read", "the main table"))?;
                    for route in messages.iter().filter_map(|bytes| parse_route(bytes)) {
                        if is_way_out(&route.prefix) {
                            ways_out.extend(&route.links);
                        }
                        routes.extend(route.on_link());
                    }
                }
            }
        }
        let mut links: Vec<_> = links.iter().filter_map(|bytes| parse_link(bytes)).collect();
        links.sort_by_key(|link| link.index);
        Ok(Self {
            links,
            addresses: addresses
                .iter()
                .filter_map(|bytes| parse_address(bytes))
                .collect(),
            routes,
            ways_out,
        })
    }

    /// The link with this name.
    #[must_use]
    pub fn link_named(&self, name: &str) -> Option<&LinkInfo> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The link with this index.
    #[must_use]
    pub fn link(&self, index: u32) -> Option<&LinkInfo> {
        self.links.iter().find(|link| link.index == index)
    }
}

/// A burst of changes. It is kept when the future that waits for its end is dropped: who is asked
/// for something else all the time must hear of it all the same.
#[derive(Clone, Copy, Debug)]
struct Burst {
    /// It counts as over then, if nothing comes before.
    quiet: Instant,
    /// It counts as over then, whatever comes.
    end: Instant,
}

impl Burst {
    fn now() -> Self {
        let now = Instant::now();
        Self {
            quiet: now + QUIET,
            end: now + PATIENCE,
        }
    }
}

/// Hears of changes.
#[derive(Debug)]
pub struct Watch {
    netlink: Netlink,
    events: Events,
    /// Something changed since the last snapshot that was handed out.
    dirty: Option<Burst>,
    last: Option<Snapshot>,
}

impl Watch {
    /// Subscribes to changes of the namespace that the calling thread is in.
    ///
    /// # Errors
    /// [`Error::NetlinkSocket`] when the kernel gives no socket.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            // First: what changes from here on leaves an event, so the first snapshot cannot miss it.
            events: Events::subscribe().map_err(|reason| Error::NetlinkSocket { reason })?,
            netlink: Netlink::open()?,
            dirty: Some(Burst::now()),
            last: None,
        })
    }

    /// The first call returns the network as it is. Each later call waits for a change and returns
    /// the network after it; a burst of changes is one. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// [`Error::NetlinkSocket`] or [`Error::Netlink`] when the kernel does not answer; the next
    /// call tries again.
    pub async fn next(&mut self) -> Result<Snapshot, Error> {
        loop {
            let first = self.last.is_none();
            let mut burst = match self.dirty {
                Some(burst) => burst,
                None => {
                    self.events.wait().await?;
                    *self.dirty.insert(Burst::now())
                }
            };
            if !first {
                while let Ok(event) =
                    timeout_at(burst.end.min(burst.quiet), self.events.wait()).await
                {
                    event?;
                    burst.quiet = Instant::now() + QUIET;
                    self.dirty = Some(burst);
                }
            }
            let snapshot = match Snapshot::take(&self.netlink).await {
                Ok(snapshot) => snapshot,
                Err(error) => {
                    // Not at once again.
                    self.dirty = Some(Burst::now());
                    return Err(error);
                }
            };
            self.dirty = None;
            // A renewed lease or a route of another table changes nothing for us.
            if self.last.as_ref() != Some(&snapshot) {
                self.last = Some(snapshot.clone());
                return Ok(snapshot);
            }
        }
    }
}

/// Notifications, of which only the fact counts.
struct Events {
    socket: TokioSocket,
    scratch: Vec<u8>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    fn subscribe() -> std::io::Result<Self> {
        let groups = [
            libc::RTNLGRP_LINK,
            libc::RTNLGRP_IPV4_IFADDR,
            libc::RTNLGRP_IPV6_IFADDR,
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV6_ROUTE,
        ];
        let mask = groups
            .iter()
            .fold(0, |mask, group| mask | 1 << (*group - 1));
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, mask))?;
        Ok(Self {
            socket,
            scratch: Vec::with_capacity(64),
        })
    }

    /// Returns after the next notification. What it says does not matter, so it may be cut off;
    /// that some were lost (`ENOBUFS`) says the same: look again.
    async fn wait(&mut self) -> Result<(), Error> {
        self.scratch.clear();
        let mut scratch = bytes::BufMut::limit(&mut self.scratch, 64);
        match self.socket.recv(&mut scratch).await {
            Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => {
                Err(Error::NetlinkSocket { reason: error })
            }
            _ => Ok(()),
        }
    }
}

/// Splits a message into its header of `N` bytes and its attributes.
fn split<const N: usize>(bytes: &[u8]) -> Option<(&[u8; N], NlasIterator<&[u8]>)> {
    let (header, attributes) = bytes.split_first_chunk()?;
    Some((header, NlasIterator::new(attributes)))
}

fn word(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// `struct ifinfomsg` (`rtnetlink(7)`).
fn parse_link(bytes: &[u8]) -> Option<LinkInfo> {
    let (header, attributes) = split::<16>(bytes)?;
    let flags = word(&header[8..])?;
    let flag = |flag: i32| flags & flag.cast_unsigned() != 0;
    let (mut name, mut mtu, mut master, mut below) = (None, 0, None, None);
    let (mut elsewhere, mut stacked) = (false, false);
    for attribute in attributes.filter_map(Result::ok) {
        let value = attribute.value();
        match attribute.kind() {
            libc::IFLA_IFNAME => name = Some(text(value)),
            libc::IFLA_MTU => mtu = word(value).unwrap_or(0),
            libc::IFLA_MASTER => master = word(value),
            libc::IFLA_LINK => below = word(value).filter(|index| *index != 0),
            libc::IFLA_LINK_NETNSID => elsewhere = true,
            libc::IFLA_LINKINFO => stacked = is_stacked(value),
            _ => {}
        }
    }
    Some(LinkInfo {
        index: word(&header[4..])?,
        name: name?,
        up: flag(libc::IFF_UP),
        loopback: flag(libc::IFF_LOOPBACK),
        framing: Framing::from_hardware(u16::from_ne_bytes([header[2], header[3]])),
        mtu,
        master,
        parent: below.filter(|_| stacked && !elsewhere),
    })
}

/// Does `IFLA_LINK` name a link that this one's packets come in by, as they are?
fn is_stacked(info: &[u8]) -> bool {
    NlasIterator::new(info)
        .filter_map(Result::ok)
        .any(|attribute| {
            attribute.kind() == libc::IFLA_INFO_KIND
                && ["vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"]
                    .contains(&text(attribute.value()).as_str())
        })
}

/// `struct ifaddrmsg` (`rtnetlink(7)`). `IFA_ADDRESS` is the peer's address where `IFA_LOCAL` differs.
fn parse_address(bytes: &[u8]) -> Option<AddressInfo> {
    let (header, attributes) = split::<8>(bytes)?;
    let (mut own, mut far) = (None, None);
    for attribute in attributes.filter_map(Result::ok) {
        match attribute.kind() {
            libc::IFA_LOCAL => own = address(attribute.value()),
            libc::IFA_ADDRESS => far = address(attribute.value()),
            _ => {}
        }
    }
    let own_address = own.or(far)?;
    Some(AddressInfo {
        link: word(&header[4..])?,
        address: own_address,
        // 0.0.0.0 is what some PPP and WireGuard set-ups leave there: no peer.
        peer: far.filter(|far| *far != own_address && !far.is_unspecified()),
        prefix_len: header[1],
    })
}

/// `struct rtmsg` (`rtnetlink(7)`). Only what the main table sends on by a link.
fn parse_route(bytes: &[u8]) -> Option<Route> {
    let (header, attributes) = split::<12>(bytes)?;
    let [family, prefix_len, .., table, _protocol, _scope, kind] = header[..8] else {
        return None;
    };
    let (mut to, mut links, mut routed) = (None, Vec::new(), false);
    for attribute in attributes.filter_map(Result::ok) {
        match attribute.kind() {
            libc::RTA_DST => to = address(attribute.value()),
            libc::RTA_OIF => links.extend(word(attribute.value())),
            libc::RTA_GATEWAY | libc::RTA_VIA => routed = true,
            libc::RTA_MULTIPATH => {
                routed = true;
                links.extend(next_hops(attribute.value()));
            }
            _ => {}
        }
    }
    let everything = if i32::from(family) == libc::AF_INET {
        IpAddr::from(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::from(Ipv6Addr::UNSPECIFIED)
    };
    let sends_on = kind == libc::RTN_UNICAST && table == RouteHeader::RT_TABLE_MAIN;
    (sends_on && !links.is_empty()).then_some(Route {
        prefix: IpNet::new(to.unwrap_or(everything), prefix_len).ok()?,
        links,
        routed,
    })
}

/// The links of an `RTA_MULTIPATH`: `struct rtnexthop` (linux/rtnetlink.h), each with its length.
fn next_hops(mut bytes: &[u8]) -> Vec<u32> {
    let mut links = Vec::new();
    while let Some(hop) = bytes.first_chunk::<8>() {
        links.extend(word(&hop[4..]));
        let length = usize::from(u16::from_ne_bytes([hop[0], hop[1]])).next_multiple_of(4);
        // Shorter than its header: broken.
        match bytes.get(length..) {
            Some(rest) if length >= hop.len() => bytes = rest,
            _ => break,
        }
    }
    links
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::{in_namespace, ip};

    async fn snapshot() -> Snapshot {
        Snapshot::take(&Netlink::open().unwrap()).await.unwrap()
    }

    #[test]
    fn links_are_told_with_framing_master_and_parent() {
        in_namespace(|| async {
            ip("link add br0 type bridge");
            ip("link add lan type veth peer name far");
            ip("link set lan master br0 up");
            ip("link add link far mac0 type macvlan mode bridge");
            ip("tuntap add dev tun0 mode tun");
            ip("tuntap add dev tap0 mode tap");
            let snapshot = snapshot().await;
            let link = |name: &str| snapshot.link_named(name).unwrap();
            assert!(link("lo").loopback && link("lo").up);
            assert_eq!(link("lo").framing, Framing::Ethernet);
            assert_eq!(link("tun0").framing, Framing::None);
            assert_eq!(link("tap0").framing, Framing::Ethernet);
            assert_eq!(link("lan").master, Some(link("br0").index));
            assert!(link("lan").up && !link("far").up);
            assert_eq!(link("mac0").parent, Some(link("far").index));
            // The ends of a veth pair name each other, but neither is stacked.
            assert_eq!((link("lan").parent, link("far").parent), (None, None));
            link("lan").check_attachable().unwrap();
            link("lo").check_attachable().unwrap_err();
        });
    }

    #[test]
    fn a_parent_in_another_namespace_is_none() {
        in_namespace(|| async {
            ip("link add under type veth peer name far");
            ip("link add link under mac0 type macvlan");
            // The macvlan goes to a namespace of its own, held open by a process.
            let mut holder = std::process::Command::new("unshare")
                .args(["-n", "sh", "-c", "echo ready; exec sleep 60"])
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let mut ready = [0; 5];
            std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut ready).unwrap();
            ip(&format!("link set mac0 netns {}", holder.id()));
            let file = std::fs::File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let snapshot = snapshot().await;
            holder.kill().unwrap();
            holder.wait().unwrap();
            assert_eq!(snapshot.link_named("mac0").unwrap().parent, None);
        });
    }

    #[test]
    fn addresses_keep_own_and_peer_apart() {
        in_namespace(|| async {
            ip("tuntap add dev tun0 mode tun");
            ip("address add 10.8.0.1 peer 10.9.0.2/24 dev tun0");
            ip("address add fd00::1 peer fd01::2/64 dev tun0");
            ip("address add 192.0.2.5/28 dev tun0");
            let snapshot = snapshot().await;
            let find = |own: &str| {
                let found = snapshot
                    .addresses
                    .iter()
                    .find(|address| address.address.to_string() == own)
                    .unwrap();
                (
                    found.peer.map(|peer| peer.to_string()),
                    found.subnet().unwrap().to_string(),
                )
            };
            let peer = |text: &str| Some(text.to_owned());
            assert_eq!(
                find("10.8.0.1"),
                (peer("10.9.0.2"), "10.9.0.0/24".to_owned())
            );
            assert_eq!(find("fd00::1"), (peer("fd01::2"), "fd01::/64".to_owned()));
            assert_eq!(find("192.0.2.5"), (None, "192.0.2.0/28".to_owned()));
            assert_eq!(find("127.0.0.1").0, None);
        });
    }

    #[test]
    fn only_on_link_routes_of_the_main_table_are_told() {
        in_namespace(|| async {
            ip("tuntap add dev tun0 mode tun");
            ip("link set tun0 up");
            ip("address add 10.8.0.1/32 dev tun0");
            ip("route add 192.168.9.0/24 dev tun0 scope link");
            ip("route add default dev tun0");
            ip("route add 198.51.100.0/24 via 192.168.9.1 dev tun0");
            ip("route add 203.0.113.0/24 dev tun0 table 77");
            ip("route add blackhole 192.0.2.0/24");
            ip("-6 route add fd09::/48 dev tun0");
            ip("-6 route add fd0a::/48 via fd09::1 dev tun0");
            let snapshot = snapshot().await;
            let tun = snapshot.link_named("tun0").unwrap().index;
            let mut found: Vec<String> = snapshot
                .routes
                .iter()
                .inspect(|route| assert_eq!(route.link, tun))
                .map(|route| route.prefix.to_string())
                // The kernel adds this one in its own time.
                .filter(|prefix| prefix != "fe80::/64")
                .collect();
            found.sort();
            assert_eq!(found, ["0.0.0.0/0", "192.168.9.0/24", "fd09::/48"]);
        });
    }

    #[test]
    fn default_routes_name_the_ways_out() {
        in_namespace(|| async {
            let mut wanted = BTreeSet::new();
            for (name, own) in [
                ("tun1", 1),
                ("tun2", 2),
                ("tun3", 3),
                ("tun4", 4),
                ("tun5", 5),
            ] {
                ip(&format!("tuntap add dev {name} mode tun"));
                ip(&format!("link set {name} up"));
                ip(&format!("address add 10.8.{own}.1/24 dev {name}"));
            }
            // A router, several routers, half of the Internet, the other family; and no way out.
            ip("route add default via 10.8.1.2 metric 5");
            ip("route add default metric 6 nexthop via 10.8.2.2 nexthop via 10.8.1.2");
            ip("route add 128.0.0.0/1 dev tun3");
            ip("-6 route add 2000::/3 dev tun4");
            ip("route add 198.51.0.0/16 via 10.8.5.2");
            ip("route add default dev tun5 table 77");
            ip("route add unreachable default metric 900");
            let snapshot = snapshot().await;
            for name in ["tun1", "tun2", "tun3", "tun4"] {
                wanted.insert(snapshot.link_named(name).unwrap().index);
            }
            assert_eq!(snapshot.ways_out, wanted);
        });
    }

    #[test]
    fn each_kind_of_change_is_heard_and_a_burst_is_one() {
        in_namespace(|| async {
            let mut watch = Watch::open().unwrap();
            // Between subscription and first snapshot.
            ip("link add la type veth peer name lb");
            let first = watch.next().await.unwrap();
            let index = first.link_named("la").unwrap().index;

            ip("link set la name lan0");
            let renamed = watch.next().await.unwrap();
            assert_eq!(renamed.link_named("lan0").unwrap().index, index);

            for host in 1..=50 {
                ip(&format!("address add 10.0.0.{host}/24 dev lan0"));
            }
            let mut snapshots = 0;
            while watch.last.as_ref().unwrap().addresses.len() < 52 {
                watch.next().await.unwrap();
                snapshots += 1;
            }
            assert!(snapshots <= 10, "{snapshots} snapshots for one burst");

            ip("address add fd00::1/64 dev lan0 nodad");
            let with_v6 = watch.next().await.unwrap();
            assert!(with_v6.addresses.iter().any(|a| a.address.is_ipv6()
                && a.link == index
                && a.subnet().unwrap().to_string() == "fd00::/64"));

            ip("link set lan0 up");
            while !watch.next().await.unwrap().link_named("lan0").unwrap().up {}
            ip("route add 192.168.7.0/24 dev lan0");
            while !watch
                .next()
                .await
                .unwrap()
                .routes
                .iter()
                .any(|route| route.prefix.to_string() == "192.168.7.0/24")
            {}
            ip("link del lan0");
            while watch.next().await.unwrap().link(index).is_some() {}
        });
    }

    #[test]
    fn lost_notifications_lead_to_a_new_look() {
        in_namespace(|| async {
            let mut watch = Watch::open().unwrap();
            watch
                .events
                .socket
                .socket_ref()
                .set_rx_buf_sz(2_048)
                .unwrap();
            watch.next().await.unwrap();
            ip("link add la type veth peer name lb");
            let batch: String = (1..=200)
                .map(|host| format!("address add 10.0.0.{host}/24 dev la\n"))
                .collect();
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), batch).unwrap();
            ip(&format!("-batch {}", file.path().display()));
            let snapshot = watch.next().await.unwrap();
            // And lo's two.
            assert_eq!(snapshot.addresses.len(), 202);
        });
    }

    #[test]
    fn a_dropped_wait_loses_no_change() {
        in_namespace(|| async {
            let mut watch = Watch::open().unwrap();
            watch.next().await.unwrap();
            ip("link add la type veth peer name lb");
            // Long enough to take the event, too short to hand out the snapshot.
            tokio::time::timeout(QUIET / 2, watch.next())
                .await
                .unwrap_err();
            assert!(watch.dirty.is_some());
            assert!(watch.next().await.unwrap().link_named("la").is_some());
        });
    }

    #[test]
    fn broken_messages_are_passed_over() {
        for length in 0..40 {
            let bytes = vec![0xff; length];
            assert_eq!(parse_link(&bytes), None);
            assert_eq!(parse_address(&bytes), None);
            assert_eq!(parse_route(&bytes), None);
            assert!(next_hops(&bytes).len() <= 1);
        }
        assert_eq!(next_hops(&[0; 16]), [0]);
        assert_eq!(Framing::from_hardware(32), Framing::Unknown(32));
    }
}
