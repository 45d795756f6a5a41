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

pub mod names;
mod servers;

use std::{net::IpAddr, path::Path};

use anyhow::Result;

use super::{Ground, Lab, answers, batch, far_addresses, give, on_loopback, switch, ways_back};
use crate::{
    Family, Namespace, Tproxy,
    addr::{FAR_COUNT, NEAR_COUNT, in_lan},
    capture::{Capture, Packet},
    links::veth,
};

pub use servers::SplitServers;

/// The network that is split. It has no servers yet: [`SplitServers`].
#[derive(Debug)]
pub struct Split {
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

    /// Runs it as [`Split::run`] does, where the system trusts this authority (PEM) and no other.
    ///
    /// # Errors
    /// As [`Lab::tproxy`].
    pub fn run_trusting(&self, config: &str, authority: &Path) -> Result<Tproxy> {
        let path = self.lab.write(config)?;
        let mut command = self.lab.tproxy_command(&["run", "-c", &path])?;
        command
            .env("SSL_CERT_FILE", authority)
            .env_remove("SSL_CERT_DIR");
        Lab::tproxy_by(command)
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
