//! A gateway between two worlds: the near one, whose servers are asked directly, and the far one, which shall only
//! be reached through a proxy.
//!
//! ```text
//! device  --+                 192.0.2.1   192.0.2.2
//!           +-- eth0 [gateway] eth1 ------ eth0 [near] eth1 ------ eth0 [far]
//! device2 --+                              198.18.0.1..             203.0.113.1..   far servers, far DNS
//!                                          near servers, near DNS   198.51.100.1    SOCKS5
//! ```
//!
//! The near world is also the provider's router, and it forwards to the far one, so nothing but the gateway keeps
//! traffic from going there directly. The near DNS server lies about far names, as one that is poisoned does, and the
//! far one sees near names from afar.

use std::net::{IpAddr, UdpSocket};

use anyhow::Result;

use super::{Ground, Lab, answers, batch, far_addresses, give, on_loopback, switch, ways_back};
use crate::{
    Family, Namespace, Tproxy,
    addr::{FAR_COUNT, NEAR_COUNT, in_lan},
    capture::{Capture, Packet},
    links::veth,
    probe::udp_at,
    servers::{Danted, Dnsmasq, Log, Nginx, Serve, Unbound, Zone},
};

/// The names that the two DNS servers know, each in its own way.
pub mod names {
    /// The zone of near names. Those that are not named below stand for [`near_site`](super::Split::near_site).
    pub const NEAR_ZONE: &str = "near.test";
    /// The zone of far names. The near server says of each that it is [`forged`](super::Split::forged).
    pub const FAR_ZONE: &str = "far.test";
    /// A near site.
    pub const NEAR: &str = "www.near.test";
    /// A far site.
    pub const FAR: &str = "www.far.test";
    /// A near site at an address that a far one has, too.
    pub const SHARED_NEAR: &str = "shared.near.test";
    /// A far site at an address that a near one has, too.
    pub const SHARED_FAR: &str = "shared.far.test";
    /// Another name (CNAME) of [`NEAR`].
    pub const ALIAS_NEAR: &str = "alias.near.test";
    /// Another name (CNAME) of [`FAR`].
    pub const ALIAS_FAR: &str = "alias.far.test";
    /// A TXT record of over 3,000 bytes: it is truncated over UDP.
    pub const BIG_NEAR: &str = "big.near.test";
    /// The same on the far side.
    pub const BIG_FAR: &str = "big.far.test";
    /// A name that does not exist (NXDOMAIN).
    pub const GONE_NEAR: &str = "gone.near.test";
    /// The same on the far side.
    pub const GONE_FAR: &str = "gone.far.test";
    /// A name that the near server never answers for.
    pub const SILENT_NEAR: &str = "silent.near.test";
    /// The same on the far side.
    pub const SILENT_FAR: &str = "silent.far.test";
}

/// The network that is split. It has no servers yet: [`SplitServers`].
#[derive(Debug)]
pub struct Split {
    // Before the lab, whose end removes it.
    /// The far world.
    pub far: Namespace,
    /// The others. Its internet is the near world.
    pub lab: Lab,
}

impl Split {
    /// The link of the gateway that leads to the provider.
    pub const WAN: &str = "eth1";

    /// Builds it.
    ///
    /// # Errors
    /// Names the command that failed.
    pub fn build() -> Result<Self> {
        let ground = Ground::new(false)?;
        let device = ground.namespace("dev")?;
        let device2 = ground.namespace("dev2")?;
        let gateway = ground.namespace("gw")?;
        let near = ground.namespace("net")?;
        let far = ground.namespace("far")?;
        for router in [&gateway, &near] {
            router.sysctl(&[
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv6/conf/all/forwarding", "1"),
            ])?;
        }
        switch(&ground.namespace("sw")?, &[&gateway, &device, &device2])?;
        veth((&gateway, Self::WAN), (&near, "eth0"), 1500)?;
        veth((&near, "eth1"), (&far, "eth0"), 1500)?;

        give(&gateway, "eth0", Family::gateway_lan, None)?;
        give(&device, "eth0", Family::device, Some(Family::gateway_lan))?;
        give(&device2, "eth0", Self::device2, Some(Family::gateway_lan))?;
        let provider = Some(Family::internet as fn(Family) -> IpAddr);
        give(&gateway, Self::WAN, Family::gateway_wan, provider)?;
        give(&near, "eth0", Family::internet, None)?;
        give(&near, "eth1", near_transit, None)?;
        give(&far, "eth0", far_transit, Some(near_transit))?;
        far_addresses(&far)?;
        on_loopback(
            &near,
            Family::BOTH
                .into_iter()
                .flat_map(|family| (1..=NEAR_COUNT).map(move |n| family.near(n))),
        )?;
        ways_back(&near)?;
        let [v4, v6] = Family::BOTH.map(far_transit);
        batch(
            &near,
            &[
                format!("route add 203.0.113.0/24 via {v4}"),
                format!("route add 198.51.100.0/24 via {v4}"),
                format!("route add 2001:db8:f::/64 via {v6}"),
                format!("route add 2001:db8:b::/64 via {v6}"),
            ],
        )?;
        answers(&device, "eth0", Family::device)?;
        answers(&device2, "eth0", Self::device2)?;
        answers(&gateway, "eth0", Family::gateway_lan)?;
        answers(&gateway, Self::WAN, Family::gateway_wan)?;
        answers(&near, "eth0", Family::internet)?;
        answers(&near, "eth1", near_transit)?;
        answers(&far, "eth0", far_transit)?;
        Ok(Self {
            far,
            lab: Lab {
                pump: None,
                device,
                gateway,
                internet: near,
                device2: Some(device2),
                neighbour: None,
                lan: "eth0".to_owned(),
                ground,
            },
        })
    }

    /// The near world: the provider's router, near servers, near DNS.
    #[must_use]
    pub const fn near(&self) -> &Namespace {
        &self.lab.internet
    }

    /// The other device: 10.77.0.4, 2001:db8:77::4.
    #[must_use]
    pub const fn device2(family: Family) -> IpAddr {
        in_lan(family, 4)
    }

    /// What near names stand for, by the near DNS server.
    #[must_use]
    pub const fn near_site(family: Family) -> IpAddr {
        family.near(1)
    }

    /// The near DNS server. It also answers at every other address of the near world.
    #[must_use]
    pub const fn near_dns(family: Family) -> IpAddr {
        family.near(3)
    }

    /// What [`names::SHARED_NEAR`] and [`names::SHARED_FAR`] both stand for. It is in the near world.
    #[must_use]
    pub const fn shared(family: Family) -> IpAddr {
        family.near(5)
    }

    /// What far names stand for, by the near DNS server. It is in the near world.
    #[must_use]
    pub const fn forged(family: Family) -> IpAddr {
        family.near(13)
    }

    /// What [`names::FAR`] stands for, by the far DNS server.
    #[must_use]
    pub const fn far_site(family: Family) -> IpAddr {
        family.far(1)
    }

    /// The far DNS server: unbound, which listens at this address alone.
    #[must_use]
    pub const fn far_dns(family: Family) -> IpAddr {
        family.far(3)
    }

    /// What near names stand for, by the far DNS server: a far address.
    #[must_use]
    pub const fn near_from_afar(family: Family) -> IpAddr {
        family.far(7)
    }

    /// A far address where no DNS server is.
    #[must_use]
    pub const fn no_dns(family: Family) -> IpAddr {
        family.far(19)
    }

    /// Where what goes through the SOCKS server comes from, and where that listens.
    #[must_use]
    pub const fn exit(family: Family) -> IpAddr {
        family.upstream(1)
    }

    /// The configuration that splits, 10 lines, with all its servers of one family.
    #[must_use]
    pub fn config(servers: &SplitServers, family: Family) -> String {
        format!(
            "stage = 4\n[lan]\ninterfaces = [\"eth0\"]\n\
             [[outbound]]\nname = \"proxy\"\nurl = \"{}\"\n\
             [dns]\ndirect = [\"{}\"]\nproxy = [\"{}\"]\ndirect_domains = [\"{}\"]\n",
            servers.socks.url(family),
            Self::near_dns(family),
            Self::far_dns(family),
            names::NEAR_ZONE
        )
    }

    /// Runs tproxy-bpf on the gateway with this configuration, ready.
    ///
    /// # Errors
    /// As [`Lab::tproxy`].
    pub fn run(&self, config: &str) -> Result<Tproxy> {
        self.lab.tproxy(&["run", "-c", &self.lab.write(config)?])
    }

    /// Captures what comes and goes by the link to the provider.
    ///
    /// # Errors
    /// As [`Capture::start`].
    pub fn capture(&self) -> Result<Capture> {
        Capture::start(&self.lab.gateway, Self::WAN)
    }

    /// Of what was [captured](Self::capture), what tells the provider of the far world: packets that name a far
    /// name, or are to or from a far address. What is said to the SOCKS server and by it is not looked at.
    #[must_use]
    pub fn leaks(packets: &[Packet]) -> Vec<&Packet> {
        let far = |packet: &Packet| {
            Family::BOTH
                .into_iter()
                .any(|family| (1..=FAR_COUNT).any(|n| packet.touches(family.far(n))))
        };
        packets
            .iter()
            .filter(|packet| {
                Family::BOTH
                    .into_iter()
                    .all(|family| !packet.touches(Self::exit(family)))
            })
            .filter(|packet| far(packet) || packet.names(names::FAR_ZONE))
            .collect()
    }
}

/// 100.64.0.1, 2001:db8:64::1.
const fn near_transit(family: Family) -> IpAddr {
    family.pick([100, 64, 0, 1], [0x2001, 0xdb8, 0x64, 0, 0, 0, 0, 1])
}

/// 100.64.0.2, 2001:db8:64::2.
const fn far_transit(family: Family) -> IpAddr {
    family.pick([100, 64, 0, 2], [0x2001, 0xdb8, 0x64, 0, 0, 0, 0, 2])
}

/// The servers of both worlds.
#[derive(Debug)]
pub struct SplitServers {
    /// The near DNS server, at every near address.
    pub near_dns: Dnsmasq,
    /// The far DNS server, also over TLS.
    pub far_dns: Unbound,
    /// HTTP at every near address, HTTPS for [`names::SHARED_NEAR`] and [`names::SHARED_FAR`].
    pub near_web: Nginx,
    /// HTTP at every far address, HTTPS for [`names::FAR`].
    pub far_web: Nginx,
    /// SOCKS5 in the far world.
    pub socks: Danted,
    _silent: UdpSocket,
}

impl SplitServers {
    /// Starts them.
    ///
    /// # Errors
    /// When one of them does not start; the message holds its log.
    pub fn start(split: &Split) -> Result<Self> {
        Self::start_with(split, Log::Questions)
    }

    /// Starts them, with DNS servers that log this.
    ///
    /// # Errors
    /// As [`SplitServers::start`].
    pub fn start_with(split: &Split, log: Log) -> Result<Self> {
        let (near, far, dir) = (split.near(), &split.far, split.lab.dir());
        let silent = udp_at(near, ([127, 0, 0, 1], 0).into())?;
        let silent_port = silent.local_addr()?.port();
        Ok(Self {
            near_dns: Dnsmasq::start_with(near, log, &near_names(silent_port))?,
            far_dns: Unbound::start(
                far,
                dir,
                &Serve {
                    addresses: &Family::BOTH.map(Split::far_dns),
                    zones: &far_names(),
                    unanswered: &[names::SILENT_FAR],
                    log,
                },
            )?,
            near_web: Nginx::start_sites(near, dir, &[names::SHARED_NEAR, names::SHARED_FAR])?,
            far_web: Nginx::start_sites(far, dir, &[names::FAR])?,
            socks: Danted::start(far, dir)?,
            _silent: silent,
        })
    }
}

/// What makes a TXT record big: over 3,000 bytes.
fn big() -> Vec<String> {
    vec!["x".repeat(250); 13]
}

fn near_names(silent_port: u16) -> Vec<String> {
    let host = |name: &str, address: fn(Family) -> IpAddr| {
        let [v4, v6] = Family::BOTH.map(address);
        format!("--host-record={name},{v4},{v6}")
    };
    let all_of = |zone: &str, address: IpAddr| format!("--address=/{zone}/{address}");
    let mut arguments = vec![
        "--local-ttl=60".to_owned(),
        host(names::NEAR, Split::near_site),
        host(names::SHARED_NEAR, Split::shared),
        format!("--cname={},{}", names::ALIAS_NEAR, names::NEAR),
        format!("--mx-host={},{},10", names::NEAR_ZONE, names::NEAR),
        format!("--txt-record={},near", names::NEAR_ZONE),
        format!("--txt-record={},{}", names::BIG_NEAR, big().join(",")),
        // An address that is none: no such name.
        format!("--address=/{}/", names::GONE_NEAR),
        format!("--server=/{}/127.0.0.1#{silent_port}", names::SILENT_NEAR),
    ];
    for family in Family::BOTH {
        arguments.push(all_of(names::NEAR_ZONE, Split::near_site(family)));
        arguments.push(all_of(names::FAR_ZONE, Split::forged(family)));
    }
    arguments
}

fn far_names() -> [Zone; 2] {
    let host = |name: &str, address: fn(Family) -> IpAddr| {
        let [v4, v6] = Family::BOTH.map(address);
        format!("{name} A {v4}\n{name} AAAA {v6}\n")
    };
    let big = big()
        .iter()
        .map(|text| format!(" \"{text}\""))
        .collect::<String>();
    [
        Zone {
            name: names::FAR_ZONE,
            records: [
                host("www", Split::far_site),
                host("shared", Split::shared),
                host("dns", Split::far_dns),
                "alias CNAME www\n@ MX 10 www\n@ TXT \"far\"\n".to_owned(),
                format!("big TXT{big}\n"),
            ]
            .concat(),
        },
        Zone {
            name: names::NEAR_ZONE,
            records: host("*", Split::near_from_afar),
        },
    ]
}
