//! The lab itself: which namespaces there are and how they are joined.

mod site;
mod split;

use std::{
    fmt, fs,
    fs::File,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};

pub use site::{Shape, Site};
pub use split::{Split, SplitServers, names};

use crate::{
    Lan, Namespace, Process,
    addr::{FAR_COUNT, Family, UPSTREAM_COUNT},
    links, remains, snapshot,
    wait::{SOON, until},
};

/// What a lab shall be like.
#[derive(Clone, Copy, Debug)]
pub struct Builder {
    lan: Lan,
    second_lan: bool,
    neighbour: bool,
    masquerade: bool,
    no_way_back: bool,
    alone: bool,
    lan_mtu: u32,
    wan_mtu: u32,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            lan: Lan::default(),
            second_lan: false,
            neighbour: false,
            masquerade: false,
            no_way_back: false,
            alone: false,
            lan_mtu: 1500,
            wan_mtu: 1500,
        }
    }
}

impl Builder {
    /// What the LAN is made of. A veth pair if not told.
    #[must_use]
    pub const fn lan(mut self, lan: Lan) -> Self {
        self.lan = lan;
        self
    }

    /// A second LAN, `lan1` on the gateway, with a device of its own.
    #[must_use]
    pub const fn second_lan(mut self) -> Self {
        self.second_lan = true;
        self
    }

    /// Another machine on the WAN, which has the gateway as its default route.
    #[must_use]
    pub const fn neighbour(mut self) -> Self {
        self.neighbour = true;
        self
    }

    /// The gateway masquerades what it forwards to the WAN, both families (nft).
    #[must_use]
    pub const fn masquerade(mut self) -> Self {
        self.masquerade = true;
        self
    }

    /// The internet knows no route to the LANs, as the real one knows none to private addresses.
    #[must_use]
    pub const fn no_way_back(mut self) -> Self {
        self.no_way_back = true;
        self
    }

    /// No other lab on this machine while this one lives, so that kernel objects without a namespace
    /// (programs, maps) can be compared.
    #[must_use]
    pub const fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// MTU of the LAN links, in bytes. 1500 if not told.
    #[must_use]
    pub const fn lan_mtu(mut self, mtu: u32) -> Self {
        self.lan_mtu = mtu;
        self
    }

    /// MTU of the WAN links, in bytes. 1500 if not told.
    #[must_use]
    pub const fn wan_mtu(mut self, mtu: u32) -> Self {
        self.wan_mtu = mtu;
        self
    }

    /// Makes it.
    ///
    /// # Errors
    /// [`Unsupported`] when this kernel lacks a kind of link; otherwise names the command that failed.
    pub fn build(self) -> Result<Lab> {
        let ground = Ground::new(self.alone)?;
        let device = ground.namespace("dev")?;
        let gateway = ground.namespace("gw")?;
        let internet = ground.namespace("net")?;
        let device2 = self
            .second_lan
            .then(|| ground.namespace("dev2"))
            .transpose()?;
        let neighbour = self.neighbour.then(|| ground.namespace("nb")).transpose()?;
        gateway.sysctl(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
        ])?;

        let pump = self.lan.make(&device, &gateway, self.lan_mtu)?;
        let lan = self.lan.gateway_link();
        give(&gateway, &lan, Family::gateway_lan, None)?;
        let link = self.lan.device_link();
        give(&device, &link, Family::device, Some(Family::gateway_lan))?;
        if let Some(device2) = &device2 {
            links::veth((&gateway, "lan1"), (device2, "eth0"), self.lan_mtu)?;
            give(&gateway, "lan1", Family::gateway_lan1, None)?;
            give(device2, "eth0", Family::device2, Some(Family::gateway_lan1))?;
        }

        links::veth((&gateway, "wan0"), (&internet, "eth0"), self.wan_mtu)?;
        give(
            &gateway,
            "wan0",
            Family::gateway_wan,
            Some(Family::internet),
        )?;
        let mut uplink = "eth0";
        if let Some(neighbour) = &neighbour {
            links::veth((&internet, "eth1"), (neighbour, "eth0"), self.wan_mtu)?;
            internet.ip(&[
                "link add br0 type bridge",
                &format!("link set br0 mtu {} up", self.wan_mtu),
                "link set eth0 master br0",
                "link set eth1 master br0",
            ])?;
            give(
                neighbour,
                "eth0",
                Family::neighbour,
                Some(Family::gateway_wan),
            )?;
            uplink = "br0";
        }
        give(&internet, uplink, Family::internet, None)?;
        far_addresses(&internet)?;
        if !self.no_way_back {
            ways_back(&internet)?;
        }
        if self.masquerade {
            masquerade(&gateway)?;
        }
        if self.lan != Lan::Tun {
            answers(&gateway, &lan, Family::gateway_lan)?;
            answers(&device, &link, Family::device)?;
        }
        answers(&gateway, "wan0", Family::gateway_wan)?;
        answers(&internet, uplink, Family::internet)?;
        if let Some(device2) = &device2 {
            answers(&gateway, "lan1", Family::gateway_lan1)?;
            answers(device2, "eth0", Family::device2)?;
        }
        if let Some(neighbour) = &neighbour {
            answers(neighbour, "eth0", Family::neighbour)?;
        }
        Ok(Lab {
            pump,
            device,
            gateway,
            internet,
            device2,
            neighbour,
            lan,
            ground,
        })
    }
}

/// What every lab stands on: namespaces with a common prefix, a folder, and its share of the machine.
#[derive(Debug)]
struct Ground {
    remains: Remains,
    dir: PathBuf,
    alone: bool,
    _lock: File,
}

impl Ground {
    fn new(alone: bool) -> Result<Self> {
        remains::clear_stale();
        let lock = lock(alone)?;
        if alone {
            snapshot::settle();
        }
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("tp{}-{number}-", std::process::id());
        remains::register(&prefix);
        // From here on dropping `remains` clears what is there already.
        let remains = Remains(prefix);
        let dir = remains::folder(&remains.0);
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self {
            remains,
            dir,
            alone,
            _lock: lock,
        })
    }

    /// A namespace that is ready for links.
    fn namespace(&self, role: &str) -> Result<Namespace> {
        let ns = Namespace::create(&format!("{}{role}", self.remains.0))?;
        ns.sysctl(&[
            ("net/ipv4/tcp_congestion_control", "reno"),
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
        ])?;
        ns.ip(&["link set lo up"])?;
        Ok(ns)
    }
}

/// A switch: a bridge in a namespace of its own, with a veth pair to `eth0` of each member.
fn switch(ns: &Namespace, members: &[&Namespace]) -> Result<()> {
    ns.ip(&[
        "link add br0 type bridge mcast_snooping 0",
        "link set br0 up",
    ])?;
    for (index, member) in members.iter().enumerate() {
        let port = format!("port{index}");
        links::veth((ns, &port), (member, "eth0"), 1500)?;
        ns.ip(&[&format!("link set {port} master br0")])?;
    }
    Ok(())
}

/// Gives a link its addresses, and its namespace a default route by `via`.
fn give(
    ns: &Namespace,
    link: &str,
    address: fn(Family) -> IpAddr,
    via: Option<fn(Family) -> IpAddr>,
) -> Result<()> {
    let mut lines = vec![
        format!("addr add {}/24 dev {link}", address(Family::V4)),
        format!("addr add {}/64 dev {link} nodad", address(Family::V6)),
    ];
    if let Some(via) = via {
        lines.push(format!("route add default via {}", via(Family::V4)));
        lines.push(format!("route add ::/0 via {}", via(Family::V6)));
    }
    batch(ns, &lines)
}

/// Waits until an IPv6 address answers its neighbours. The kernel joins the solicited-node group
/// (RFC 4291, 2.7.1) a moment after the address is there, without duplicate address detection too; a solicitation
/// that comes before is lost, and repeated only after a second.
fn answers(ns: &Namespace, link: &str, address: impl Fn(Family) -> IpAddr) -> Result<()> {
    match address(Family::V6) {
        IpAddr::V6(address) => hears(ns, link, address),
        IpAddr::V4(_) => Ok(()),
    }
}

fn hears(ns: &Namespace, link: &str, address: Ipv6Addr) -> Result<()> {
    let [.., high, middle, low] = address.octets();
    let group = format!("ff0200000000000000000001ff{high:02x}{middle:02x}{low:02x}");
    let what = format!("the neighbour discovery group of {address} on {link}");
    until(&what, SOON, || {
        let groups = ns.enter(|| fs::read_to_string("/proc/thread-self/net/igmp6"))??;
        let joined = groups.lines().any(|line| {
            let mut words = line.split_whitespace().skip(1);
            words.next() == Some(link) && words.next() == Some(&group)
        });
        Ok(joined.then_some(()))
    })
}

fn batch(ns: &Namespace, lines: &[String]) -> Result<()> {
    ns.ip(&lines.iter().map(String::as_str).collect::<Vec<_>>())
}

fn far_addresses(internet: &Namespace) -> Result<()> {
    let all = Family::BOTH.into_iter().flat_map(|family| {
        let far = (1..=FAR_COUNT).map(move |n| family.far(n));
        far.chain((1..=UPSTREAM_COUNT).map(move |n| family.upstream(n)))
    });
    on_loopback(internet, all)
}

fn on_loopback(ns: &Namespace, addresses: impl Iterator<Item = IpAddr>) -> Result<()> {
    let lines: Vec<String> = addresses
        .map(|address| match Family::of(address) {
            Family::V4 => format!("addr add {address}/32 dev lo"),
            Family::V6 => format!("addr add {address}/128 dev lo nodad"),
        })
        .collect();
    batch(ns, &lines)
}

/// Not translated, so a server sees the device's own address when its traffic went direct.
fn ways_back(internet: &Namespace) -> Result<()> {
    let (v4, v6) = (Family::V4.gateway_wan(), Family::V6.gateway_wan());
    internet.ip(&[
        &format!("route add 10.76.0.0/14 via {v4}"),
        &format!("route add 2001:db8:77::/64 via {v6}"),
        &format!("route add 2001:db8:78::/64 via {v6}"),
    ])
}

fn masquerade(gateway: &Namespace) -> Result<()> {
    gateway.run(&[
        "nft",
        "add table inet lab; \
         add chain inet lab wan { type nat hook postrouting priority srcnat; }; \
         add rule inet lab wan oifname wan0 masquerade",
    ])?;
    Ok(())
}

/// Labs share the machine unless one wants it alone.
fn lock(alone: bool) -> Result<File> {
    const PATH: &str = "/run/lock/tproxy-bpf-lab";
    let file = File::create(PATH).with_context(|| format!("opening {PATH}"))?;
    let what = if alone {
        "all other labs of this machine to end"
    } else {
        "a lab to end that must be alone on this machine"
    };
    until(what, Duration::from_mins(5), || {
        let locked = if alone {
            file.try_lock()
        } else {
            file.try_lock_shared()
        };
        match locked {
            Ok(()) => Ok(Some(())),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("locking {PATH}"))
            }
        }
    })?;
    Ok(file)
}

/// A device, a gateway and an internet. Dropping it kills every process in them and removes
/// namespaces, folders, and what the program under test left under its own.
#[derive(Debug)]
pub struct Lab {
    // First, so that it ends before the namespaces do.
    pump: Option<Process>,
    /// Behind the gateway, 10.77.0.2.
    pub device: Namespace,
    /// Between `lan0` and `wan0`.
    pub gateway: Namespace,
    /// All servers are here.
    pub internet: Namespace,
    /// The device of the second LAN, if asked for.
    pub device2: Option<Namespace>,
    /// The other machine on the WAN, if asked for.
    pub neighbour: Option<Namespace>,
    lan: String,
    ground: Ground,
}

impl Lab {
    /// The plain lab: veth pairs, no translation.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn new() -> Result<Self> {
        Builder::default().build()
    }

    /// A lab with options.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The name of the LAN link on the gateway.
    #[must_use]
    pub fn lan(&self) -> &str {
        &self.lan
    }

    /// A folder for this lab's files; it goes with the lab.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.ground.dir
    }

    /// Was it built to be the only one on the machine?
    #[must_use]
    pub const fn is_alone(&self) -> bool {
        self.ground.alone
    }

    /// The process that carries the packets of a tun LAN.
    #[must_use]
    pub const fn pump(&self) -> Option<&Process> {
        self.pump.as_ref()
    }
}

#[derive(Debug)]
struct Remains(String);

impl Drop for Remains {
    fn drop(&mut self) {
        remains::clear(&self.0);
    }
}

/// This kernel lacks something that a lab needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported(pub &'static str);

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this kernel has no {}", self.0)
    }
}

impl std::error::Error for Unsupported {}

/// The lab, or `None` (and a line that says so) where the kernel cannot have it. With `LAB_REQUIRE_ALL`
/// in the environment a missing feature is an error.
///
/// # Errors
/// Every other failure to make it.
pub fn or_skip(lab: Result<Lab>) -> Result<Option<Lab>> {
    match lab {
        Ok(lab) => Ok(Some(lab)),
        Err(error) => match error.downcast_ref::<Unsupported>() {
            Some(missing) if std::env::var_os("LAB_REQUIRE_ALL").is_none() => {
                eprintln!("SKIPPED: {missing}");
                Ok(None)
            }
            _ => Err(error),
        },
    }
}
