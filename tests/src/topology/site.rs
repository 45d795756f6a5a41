//! The networks that the pages of `docs/` draw, with the names of links that stand there.
//!
//! A page holds one configuration, and a test runs just that. Of it only the words `user:password` are
//! replaced: by those of the SOCKS server of the lab, which listens where the pages say.

use std::{net::IpAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Ground, Lab, Unsupported, answers, batch, far_addresses, give, hears, or_skip, switch,
    ways_back,
};
use crate::{
    Family, Namespace, Tproxy,
    addr::in_lan,
    links::veth,
    process,
    servers::{PASSWORD, USER},
};

/// Link-local addresses of the routers on a shared link, by which router advertisements make them known.
const GATEWAY: &str = "fe80::1";
const ROUTER: &str = "fe80::3";

/// Which network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `docs/main-router.md`: devices on `eth0`, the provider on `eth1`.
    MainRouter,
    /// `docs/one-armed-router.md`: devices and the upstream router on `eth0`, in one subnet.
    OneArmed,
    /// The same in two subnets: the upstream router knows the devices only by the gateway.
    OneArmedTwoSubnets,
    /// `docs/side-router.md`: as [`Shape::OneArmed`], and one device that uses the main router.
    SideRouter,
    /// `docs/containers.md`: containers on the bridge `docker0`, the provider on `eth0`, rules of
    /// netfilter as Docker makes them.
    Containers {
        /// Whether netfilter sees what the bridge forwards (`net.bridge.bridge-nf-call-iptables`).
        bridge_netfilter: bool,
    },
}

impl Shape {
    /// The text of the page.
    #[must_use]
    pub const fn page(self) -> &'static str {
        match self {
            Self::MainRouter => include_str!("../../../docs/main-router.md"),
            Self::OneArmed | Self::OneArmedTwoSubnets => {
                include_str!("../../../docs/one-armed-router.md")
            }
            Self::SideRouter => include_str!("../../../docs/side-router.md"),
            Self::Containers { .. } => include_str!("../../../docs/containers.md"),
        }
    }

    /// The links of the gateway: where the devices are, and where the provider is.
    #[must_use]
    pub const fn links(self) -> (&'static str, &'static str) {
        match self {
            Self::MainRouter => ("eth0", "eth1"),
            Self::OneArmed | Self::OneArmedTwoSubnets | Self::SideRouter => ("eth0", "eth0"),
            Self::Containers { .. } => ("docker0", "eth0"),
        }
    }

    /// Are these one and the same link?
    #[must_use]
    pub fn is_one_armed(self) -> bool {
        let (lan, wan) = self.links();
        lan == wan
    }

    /// The device (or container) whose traffic is looked at.
    ///
    /// # Panics
    /// Never: the addresses are constants.
    #[must_use]
    pub fn device(self, family: Family) -> IpAddr {
        match self {
            Self::Containers { .. } => container(family, 2),
            _ => family.device(),
        }
    }

    /// The other device (or container).
    #[must_use]
    pub fn device2(self, family: Family) -> IpAddr {
        match self {
            Self::Containers { .. } => container(family, 3),
            Self::OneArmedTwoSubnets => family.neighbour(),
            _ => in_lan(family, 4),
        }
    }

    /// The gateway, as the devices know it.
    #[must_use]
    pub fn gateway_lan(self, family: Family) -> IpAddr {
        match self {
            Self::Containers { .. } => container(family, 1),
            _ => family.gateway_lan(),
        }
    }

    /// The gateway, as servers see what it sends.
    #[must_use]
    pub fn gateway(self, family: Family) -> IpAddr {
        match self {
            Self::OneArmed | Self::SideRouter => family.gateway_lan(),
            _ => family.gateway_wan(),
        }
    }

    /// The router beyond the gateway.
    #[must_use]
    pub fn router(self, family: Family) -> IpAddr {
        match self {
            Self::OneArmed | Self::SideRouter => in_lan(family, 3),
            _ => family.internet(),
        }
    }
}

/// 172.17.0.n, fd17::n.
fn container(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([172, 17, 0, n]),
        Family::V6 => IpAddr::from([0xfd17, 0, 0, 0, 0, 0, 0, u16::from(n)]),
    }
}

/// A [`Shape`] that was built.
#[derive(Debug)]
pub struct Site {
    /// Its machines. The internet is also the router beyond the gateway.
    pub lab: Lab,
    /// Which network it is.
    pub shape: Shape,
}

impl Site {
    /// Builds it. The gateway forwards nothing by itself, but where Docker has it forward.
    ///
    /// # Errors
    /// [`Unsupported`] when this kernel lacks something; otherwise names the command that failed.
    pub fn build(shape: Shape) -> Result<Self> {
        let ground = Ground::new(false)?;
        let device = ground.namespace("dev")?;
        let device2 = ground.namespace("dev2")?;
        let gateway = ground.namespace("gw")?;
        let internet = ground.namespace("net")?;
        // Routers that look at sources strictly (RFC 3704) are the hardest to please.
        gateway.sysctl(&[
            ("net/ipv4/conf/all/rp_filter", "1"),
            ("net/ipv4/conf/default/rp_filter", "1"),
        ])?;
        internet.sysctl(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
        ])?;
        match shape {
            Shape::MainRouter | Shape::Containers { .. } => {
                veth((&gateway, shape.links().1), (&internet, "eth0"), 1500)?;
                give(
                    &gateway,
                    shape.links().1,
                    Family::gateway_wan,
                    Some(Family::internet),
                )?;
                give(&internet, "eth0", Family::internet, None)?;
            }
            Shape::OneArmed | Shape::OneArmedTwoSubnets | Shape::SideRouter => {}
        }
        match shape {
            Shape::MainRouter => {
                veth((&gateway, "eth0"), (&device, "eth0"), 1500)?;
                give(&gateway, "eth0", Family::gateway_lan, None)?;
                give(&device, "eth0", Family::device, Some(Family::gateway_lan))?;
            }
            Shape::OneArmed | Shape::OneArmedTwoSubnets | Shape::SideRouter => {
                let members = [&gateway, &internet, &device, &device2];
                shared_link(&ground.namespace("sw")?, members, shape)?;
            }
            Shape::Containers { bridge_netfilter } => {
                docker0(&gateway, [&device, &device2])?;
                docker_rules(&gateway)?;
                let value = if bridge_netfilter { "1" } else { "0" };
                bridge_sysctl(&gateway, value)?;
            }
        }
        far_addresses(&internet)?;
        match shape {
            Shape::MainRouter | Shape::OneArmedTwoSubnets => ways_back(&internet)?,
            Shape::OneArmed | Shape::SideRouter | Shape::Containers { .. } => {}
        }
        let site = Self {
            lab: Lab {
                pump: None,
                device,
                gateway,
                internet,
                device2: Some(device2),
                neighbour: None,
                lan: shape.links().0.to_owned(),
                ground,
            },
            shape,
        };
        site.await_neighbours()?;
        Ok(site)
    }

    /// [`Site::build`], or `None` as [`or_skip`] has it.
    ///
    /// # Errors
    /// As [`or_skip`].
    pub fn build_or_skip(shape: Shape) -> Result<Option<Self>> {
        match Self::build(shape) {
            Ok(site) => Ok(Some(site)),
            Err(error) => or_skip(Err(error)).map(|_| None),
        }
    }

    fn await_neighbours(&self) -> Result<()> {
        let (shape, lab) = (self.shape, &self.lab);
        let (lan, wan) = shape.links();
        for (ns, link, address) in [
            (&lab.device, "eth0", shape.device(Family::V6)),
            (&lab.gateway, lan, shape.gateway_lan(Family::V6)),
            (&lab.gateway, wan, shape.gateway(Family::V6)),
            (&lab.internet, "eth0", shape.router(Family::V6)),
        ] {
            answers(ns, link, |_| address)?;
        }
        if lan == wan {
            hears(&lab.gateway, "eth0", GATEWAY.parse()?)?;
            hears(&lab.internet, "eth0", ROUTER.parse()?)?;
        }
        if shape != Shape::MainRouter {
            answers(self.device2()?, "eth0", |_| shape.device2(Family::V6))?;
        }
        Ok(())
    }

    /// The other device (or container).
    ///
    /// # Errors
    /// Never: each has one.
    pub fn device2(&self) -> Result<&Namespace> {
        self.lab.device2.as_ref().context("a second device")
    }

    /// The configuration of the page, as it stands there.
    ///
    /// # Errors
    /// When the page does not hold just one, or one that is too long to be read at a glance.
    pub fn config(&self) -> Result<String> {
        let blocks: Vec<&str> = self
            .shape
            .page()
            .split("```toml\n")
            .skip(1)
            .filter_map(|rest| Some(rest.split_once("```")?.0))
            .collect();
        let [block] = blocks[..] else {
            bail!("the page holds {} configurations", blocks.len());
        };
        ensure!(block.lines().count() <= 10, "more than 10 lines:\n{block}");
        Ok(block.to_owned())
    }

    /// Writes a configuration to a file of the lab, with the SOCKS server's password; gives its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, config: &str) -> Result<String> {
        let password = PASSWORD.replace(' ', "%20");
        self.lab
            .write(&config.replace("user:password", &format!("{USER}:{password}")))
    }

    /// Runs tproxy-bpf on the gateway with this configuration, ready.
    ///
    /// # Errors
    /// As [`Lab::tproxy`].
    pub fn run(&self, config: &str) -> Result<Tproxy> {
        self.lab.tproxy(&["run", "-c", &self.write(config)?])
    }
}

/// Gateway, router and two devices on one switch. All have their way out by a link-local address
/// over IPv6, without which there would be no redirects (RFC 4861, 8.2).
fn shared_link(between: &Namespace, members: [&Namespace; 4], shape: Shape) -> Result<()> {
    // Routers get theirs below.
    for router in &members[..2] {
        router.sysctl(&[("net/ipv6/conf/default/addr_gen_mode", "1")])?;
    }
    switch(between, &members)?;
    let [gateway, internet, device, device2] = members;
    let address = |address: fn(Shape, Family) -> IpAddr| Family::BOTH.map(|f| address(shape, f));
    let lines =
        |own: &[[IpAddr; 2]], link_local: Option<&str>, via: Option<([IpAddr; 2], &str)>| {
            let mut lines = Vec::new();
            for [v4, v6] in own {
                lines.push(format!("addr replace {v4}/24 dev eth0"));
                lines.push(format!("addr replace {v6}/64 dev eth0 nodad"));
            }
            if let Some(own) = link_local {
                lines.push(format!("addr add {own}/64 dev eth0 nodad"));
            }
            if let Some(([v4, _], v6)) = via {
                lines.push(format!("route add default via {v4}"));
                lines.push(format!("route add ::/0 via {v6} dev eth0"));
            }
            lines
        };
    let (lan, wan) = (address(Shape::gateway_lan), address(Shape::gateway));
    let router = address(Shape::router);
    batch(
        gateway,
        &lines(&[lan, wan], Some(GATEWAY), Some((router, ROUTER))),
    )?;
    batch(internet, &lines(&[router], Some(ROUTER), None))?;
    batch(
        device,
        &lines(&[address(Shape::device)], None, Some((lan, GATEWAY))),
    )?;
    let own = address(Shape::device2);
    batch(device2, &lines(&[own], None, Some((router, ROUTER))))
}

/// A bridge as Docker makes it, with a veth port for each container.
fn docker0(gateway: &Namespace, containers: [&Namespace; 2]) -> Result<()> {
    gateway.sysctl(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ])?;
    gateway.ip(&["link add docker0 type bridge", "link set docker0 up"])?;
    let gives = |ns: &Namespace, link: &str, n: u8, router: bool| {
        let [v4, v6] = Family::BOTH.map(|family| container(family, n));
        let mut lines = vec![
            format!("addr add {v4}/16 dev {link}"),
            format!("addr add {v6}/64 dev {link} nodad"),
        ];
        if !router {
            let [v4, v6] = Family::BOTH.map(|family| container(family, 1));
            lines.push(format!("route add default via {v4}"));
            lines.push(format!("route add ::/0 via {v6}"));
        }
        batch(ns, &lines)
    };
    gives(gateway, "docker0", 1, true)?;
    for (index, ns) in containers.into_iter().enumerate() {
        let port = format!("veth{index}");
        veth((gateway, &port), (ns, "eth0"), 1500)?;
        gateway.ip(&[&format!("link set {port} master docker0")])?;
        gives(ns, "eth0", 2 + u8::try_from(index)?, false)?;
    }
    Ok(())
}

/// What Docker tells netfilter: translation, and nothing is forwarded but by its rules. The first
/// container's ports 80 (TCP) and 7000 (UDP) are published as 8080 and 7070.
fn docker_rules(gateway: &Namespace) -> Result<()> {
    for family in Family::BOTH {
        let (program, subnet) = match family {
            Family::V4 => ("iptables-restore", "172.17.0.0/16"),
            Family::V6 => ("ip6tables-restore", "fd17::/64"),
        };
        let first = container(family, 2);
        let to = crate::addr::host(first);
        let rules = format!(
            "*nat\n:DOCKER - [0:0]\n\
             -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
             -A POSTROUTING -s {subnet} ! -o docker0 -j MASQUERADE\n\
             -A DOCKER ! -i docker0 -p tcp --dport 8080 -j DNAT --to-destination {to}:80\n\
             -A DOCKER ! -i docker0 -p udp --dport 7070 -j DNAT --to-destination {to}:7000\n\
             COMMIT\n*filter\n:FORWARD DROP [0:0]\n:DOCKER - [0:0]\n\
             -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A FORWARD -o docker0 -j DOCKER\n\
             -A FORWARD -i docker0 ! -o docker0 -j ACCEPT\n\
             -A FORWARD -i docker0 -o docker0 -j ACCEPT\n\
             -A DOCKER -d {first} ! -i docker0 -o docker0 -p tcp --dport 80 -j ACCEPT\n\
             -A DOCKER -d {first} ! -i docker0 -o docker0 -p udp --dport 7000 -j ACCEPT\n\
             COMMIT\n"
        );
        let command: Command = gateway.command(program);
        process::run_with_input(command, rules.as_bytes(), Duration::from_secs(10))?.ok()?;
    }
    Ok(())
}

fn bridge_sysctl(gateway: &Namespace, value: &str) -> Result<()> {
    let keys = [
        "net/bridge/bridge-nf-call-iptables",
        "net/bridge/bridge-nf-call-ip6tables",
    ];
    if !Path::new("/proc/sys").join(keys[0]).exists() {
        bail!(Unsupported("bridge netfilter (CONFIG_BRIDGE_NETFILTER)"));
    }
    gateway.sysctl(&keys.map(|key| (key, value)))
}
