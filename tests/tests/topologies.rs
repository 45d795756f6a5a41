//! The networks of `docs/`: each is built as its page draws it, and runs the configuration that stands there.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Far, Lab, Namespace, Shape, Site, Snapshot, Tproxy,
    servers::{Danted, Dnsmasq, Iperf, TcpEcho, UdpEcho},
    traffic::{self, Test},
    ways::soon,
};

const MASQUERADE: &str = "masquerade = true\n";
/// Far addresses that the tests bypass: 17 to 20 of each family.
const BYPASSED: [&str; 2] = ["203.0.113.16/28", "2001:db8:f::10/124"];

/// A network with its servers, and the configuration of its page.
struct Scene {
    site: Site,
    config: String,
    far: Far,
    dns: Dnsmasq,
    _socks: Danted,
}

impl Scene {
    fn new(shape: Shape) -> Result<Self> {
        Self::with(Site::build(shape)?, |_| ())
    }

    /// With a configuration that differs from that of the page.
    fn with(site: Site, change: impl FnOnce(&mut String)) -> Result<Self> {
        let mut config = site.config()?;
        change(&mut config);
        // What a module brings when it is first loaded (sysctls of conntrack) is not for detach to remove.
        site.lab.gateway.run(&[
            "nft",
            "add table inet warm; add chain inet warm c { type nat hook postrouting priority 100; }; \
             add rule inet warm c masquerade; delete table inet warm",
        ])?;
        // TO SWITCH: without these lines it is the key of the configuration that masquerades.
        if config.contains(MASQUERADE) {
            site.masquerade()?;
            config = config.replace(MASQUERADE, "");
        }
        let internet = &site.lab.internet;
        Ok(Self {
            far: Far::start(&site.lab)?,
            dns: Dnsmasq::start(internet)?,
            _socks: Danted::start(internet, site.lab.dir())?,
            site,
            config,
        })
    }

    fn lab(&self) -> &Lab {
        &self.site.lab
    }

    fn run(&self) -> Result<Tproxy> {
        self.site.run(&self.config)
    }

    /// Traffic from `from` is proxied: the servers see the SOCKS server.
    fn proxied(&self, from: &Namespace) -> Result<()> {
        for family in Family::BOTH {
            self.far.sees(family.upstream(1), from, family.far(1))?;
        }
        Ok(())
    }

    /// What is bypassed goes direct, and the servers see these clients.
    fn bypassed(&self, from: &Namespace, client: impl Fn(Family) -> IpAddr) -> Result<()> {
        for family in Family::BOTH {
            self.far.sees(client(family), from, family.far(17))?;
        }
        Ok(())
    }

    /// Names over UDP and TCP, and the server sees this client.
    fn resolved(&self, from: &Namespace) -> Result<()> {
        for family in Family::BOTH {
            let before = self.dns.clients_of("host.lab").len();
            let server = family.far(2);
            for ask in [traffic::dig, traffic::dig_tcp] {
                assert_eq!(ask(from, server, "host.lab", "A")?, ["203.0.113.1"]);
            }
            assert_eq!(
                self.dns.client_of("host.lab", before + 2)?,
                family.upstream(1)
            );
        }
        Ok(())
    }

    /// Transfers at full speed in both directions, proxied and bypassed.
    fn transferred(&self, from: &Namespace) -> Result<()> {
        for server in [Family::V4.far(1), Family::V6.far(17)] {
            let iperf = Iperf::start(&self.lab().internet, server)?;
            for test in Test::all("20M") {
                let report = traffic::iperf(from, iperf.address(), test)?;
                ensure!(report.bits_per_second > 1e6, "{test:?}: {report:?}");
            }
        }
        Ok(())
    }

    /// The gateway itself answers its devices, as SSH would.
    fn gateway_answers(&self) -> Result<()> {
        let _ssh = TcpEcho::start(&self.lab().gateway, 22)?;
        for family in Family::BOTH {
            for address in [
                self.site.shape.gateway_lan(family),
                self.site.shape.gateway(family),
            ] {
                echo(&self.lab().device, SocketAddr::new(address, 22))?;
            }
        }
        Ok(())
    }

    /// The gateway's own traffic is proxied, and the proxy's own goes out.
    fn own_traffic(&self) -> Result<()> {
        let gateway = &self.lab().gateway;
        let words = ["tcp_opened", "udp_steered", "exempt", "bypassed"];
        let read =
            || -> Result<Vec<u64>> { words.iter().map(|word| self.lab().packets(word)).collect() };
        let before = read()?;
        self.proxied(gateway)?;
        self.resolved(gateway)?;
        self.bypassed(gateway, |family| self.site.shape.gateway(family))?;
        let after = read()?;
        for ((word, before), after) in words.iter().zip(before).zip(after) {
            ensure!(after > before, "{word} was {before} and is {after}");
        }
        Ok(())
    }

    /// All that a page promises, from start to stop. `direct`: whom servers see for what is bypassed.
    fn carries(&self, direct: impl Fn(Family) -> IpAddr) -> Result<()> {
        let lab = self.lab();
        let before = Snapshot::take(lab)?;
        let proxy = self.run()?;
        lab.bypass(&[&["add"], &BYPASSED[..]].concat())?;
        self.proxied(&lab.device)?;
        self.bypassed(&lab.device, direct)?;
        self.resolved(&lab.device)?;
        self.own_traffic()?;
        self.gateway_answers()?;
        self.transferred(&lab.device)?;
        for word in ["foreign_source", "down_passed", "malformed_ip"] {
            assert_eq!(lab.packets(word)?, 0, "{word}");
        }
        let status = lab.status()?;
        ensure!(status["proxy"] != serde_json::Value::Null, "{status}");
        proxy.stop()?;
        lab.restored(&before)
    }

    /// Whom servers see for what is bypassed and masqueraded: the gateway over IPv4, the device itself
    /// over IPv6, where its address is a global one.
    fn translated(&self) -> impl Fn(Family) -> IpAddr + use<> {
        let shape = self.site.shape;
        move |family| match family {
            Family::V4 => shape.gateway(family),
            Family::V6 => shape.device(family),
        }
    }

    /// Whom servers see for what is bypassed and not translated.
    fn untranslated(&self) -> impl Fn(Family) -> IpAddr + use<> {
        let shape = self.site.shape;
        move |family| shape.device(family)
    }
}

fn echo(from: &Namespace, target: SocketAddr) -> Result<()> {
    let mut stream = traffic::connect(from, target)?;
    stream.write_all(b"SSH-2.0-lab\r\n")?;
    let mut answer = [0; 13];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"SSH-2.0-lab\r\n");
    Ok(())
}

#[test]
fn a_main_router() -> Result<()> {
    let scene = Scene::new(Shape::MainRouter)?;
    scene.carries(scene.translated())
}

/// The gateway has a rule of its own that translates all that leaves, what it sends itself too.
fn beside_a_rule_for_all(rule: &str) -> Result<()> {
    let scene = Scene::with(Site::build(Shape::MainRouter)?, |config| {
        *config = config.replace(MASQUERADE, "");
    })?;
    let gateway = &scene.lab().gateway;
    gateway.run(&[
        "nft",
        &format!(
            "add table ip own; \
             add chain ip own c {{ type nat hook postrouting priority srcnat; }}; \
             add rule ip own c oifname eth1 {rule}"
        ),
    ])?;
    scene.carries(scene.translated())
}

#[test]
fn a_main_router_with_a_rule_that_masquerades_all() -> Result<()> {
    beside_a_rule_for_all("masquerade")
}

#[test]
fn a_main_router_with_a_rule_that_masquerades_all_at_other_ports() -> Result<()> {
    beside_a_rule_for_all("masquerade fully-random")
}

#[test]
fn a_one_armed_router() -> Result<()> {
    let scene = Scene::new(Shape::OneArmed)?;
    scene.carries(scene.translated())
}

#[test]
fn a_one_armed_router_between_two_subnets() -> Result<()> {
    let scene = Scene::new(Shape::OneArmedTwoSubnets)?;
    scene.carries(scene.translated())
}

#[test]
fn a_side_router() -> Result<()> {
    let scene = Scene::new(Shape::SideRouter)?;
    scene.carries(scene.translated())
}

#[test]
fn a_side_router_that_does_not_masquerade() -> Result<()> {
    let scene = Scene::with(Site::build(Shape::SideRouter)?, |config| {
        *config = config.replace(MASQUERADE, "");
    })?;
    scene.carries(scene.untranslated())
}

fn containers(bridge_netfilter: bool) -> Result<()> {
    let Some(site) = Site::build_or_skip(Shape::Containers { bridge_netfilter })? else {
        return Ok(());
    };
    let scene = Scene::with(site, |_| ())?;
    let shape = scene.site.shape;
    scene.carries(|family| shape.gateway(family))
}

#[test]
fn containers_behind_a_bridge() -> Result<()> {
    containers(false)
}

#[test]
fn containers_behind_a_bridge_that_netfilter_sees() -> Result<()> {
    containers(true)
}
