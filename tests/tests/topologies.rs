//! The networks of `docs/`: each is built as its page draws it, and runs the configuration that stands there.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Far, Lab, Namespace, Shape, Site, Snapshot, Tproxy,
    addr::host,
    servers::{Danted, Dnsmasq, Iperf, Nginx, TcpEcho, UdpEcho},
    traffic::{self, Test},
    wait::SOON,
    ways::{nft_packets, soon},
};
use serde_json::Value;

const MASQUERADE: &str = "masquerade = true\n";
/// Far addresses that the tests bypass: 17 to 20 of each family.
const BYPASSED: [&str; 2] = ["203.0.113.16/28", "2001:db8:f::10/124"];

/// A network with its servers, and the configuration of its page.
struct Scene {
    site: Site,
    config: String,
    /// Attach as kernels without tcx do.
    clsact: bool,
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
        let internet = &site.lab.internet;
        Ok(Self {
            far: Far::start(&site.lab)?,
            dns: Dnsmasq::start(internet)?,
            _socks: Danted::start(internet, site.lab.dir())?,
            site,
            config,
            clsact: false,
        })
    }

    fn lab(&self) -> &Lab {
        &self.site.lab
    }

    fn run(&self) -> Result<Tproxy> {
        let path = self.site.write(&self.config)?;
        let mut command = self.lab().tproxy_command(&["run", "-c", &path])?;
        if self.clsact {
            command.env("TPROXY_BPF_ATTACH", "clsact");
        }
        Lab::tproxy_by(command)
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
            for test in Test::all("20M") {
                // A server that has just ended a test refuses the next for a moment.
                let iperf = Iperf::start(&self.lab().internet, server)?;
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
                traffic::echo_line(&self.lab().device, SocketAddr::new(address, 22))?;
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

    fn problems(&self, doctor: &[&str]) -> Result<Vec<String>> {
        let report: Value = self
            .lab()
            .tproxy_run(&[doctor, &["--json"]].concat())?
            .json()?;
        let findings = report["findings"].as_array().context("findings")?.iter();
        Ok(findings
            .filter(|finding| finding["severity"] == "problem")
            .filter_map(|finding| Some(finding["check"].as_str()?.to_owned()))
            .collect())
    }

    /// All that a page promises, from start to stop. `direct`: whom servers see for what is bypassed;
    /// `problems`: those that `doctor` finds.
    fn carries(&self, direct: impl Fn(Family) -> IpAddr, problems: &[&str]) -> Result<()> {
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
        assert_eq!(
            lab.packets("own_redirect")? > 0,
            self.site.shape.is_one_armed()
        );
        let doctor = ["doctor", "-c", &self.site.write(&self.config)?];
        assert_eq!(self.problems(&doctor)?, problems);
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

#[test]
fn a_main_router() -> Result<()> {
    let scene = Scene::new(Shape::MainRouter)?;
    scene.carries(scene.translated(), &[])
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
    scene.carries(scene.translated(), &[])
}

#[test]
fn a_main_router_with_a_rule_that_masquerades_all() -> Result<()> {
    beside_a_rule_for_all("masquerade")
}

#[test]
fn a_main_router_with_a_rule_that_gives_devices_other_ports() -> Result<()> {
    beside_a_rule_for_all("iifname eth0 masquerade fully-random")
}

#[test]
fn a_one_armed_router() -> Result<()> {
    let scene = Scene::new(Shape::OneArmed)?;
    scene.carries(scene.translated(), &[])
}

#[test]
fn a_one_armed_router_with_clsact() -> Result<()> {
    let mut scene = Scene::new(Shape::OneArmed)?;
    scene.clsact = true;
    scene.carries(scene.translated(), &[])
}

#[test]
fn a_one_armed_router_between_two_subnets() -> Result<()> {
    let scene = Scene::new(Shape::OneArmedTwoSubnets)?;
    scene.carries(scene.translated(), &[])
}

#[test]
fn a_side_router() -> Result<()> {
    let scene = Scene::new(Shape::SideRouter)?;
    scene.carries(scene.translated(), &[])
}

#[test]
fn a_side_router_that_does_not_masquerade() -> Result<()> {
    let scene = Scene::with(Site::build(Shape::SideRouter)?, |config| {
        *config = config.replace(MASQUERADE, "");
    })?;
    scene.carries(scene.untranslated(), &["translation"])
}

fn containers(bridge_netfilter: bool) -> Result<()> {
    let Some(site) = Site::build_or_skip(Shape::Containers { bridge_netfilter })? else {
        return Ok(());
    };
    let scene = Scene::with(site, |_| ())?;
    let shape = scene.site.shape;
    scene.carries(|family| shape.gateway(family), &[])
}

#[test]
fn containers_behind_a_bridge() -> Result<()> {
    containers(false)
}

#[test]
fn containers_behind_a_bridge_that_netfilter_sees() -> Result<()> {
    containers(true)
}

/// Counts the redirects that come to a machine.
fn count_redirects(ns: &Namespace) -> Result<()> {
    ns.run(&[
        "nft",
        "add table inet redirects; add counter inet redirects seen; \
         add chain inet redirects in { type filter hook input priority 0; }; \
         add rule inet redirects in icmp type redirect counter name seen; \
         add rule inet redirects in icmpv6 type nd-redirect counter name seen",
    ])?;
    Ok(())
}

fn redirects(ns: &Namespace) -> Result<u64> {
    nft_packets(ns, ["inet", "redirects"])
}

/// Whom the device sends packets for `server` to.
fn next_hop(device: &Namespace, server: IpAddr) -> Result<String> {
    let text = device
        .run(&["ip", "route", "get", &server.to_string()])?
        .stdout;
    let mut words = text.split_whitespace().skip_while(|word| *word != "via");
    let hop = words
        .nth(1)
        .with_context(|| format!("no next hop in {text}"))?;
    Ok(hop.to_owned())
}

/// Traffic to `server`, answered.
fn ask(device: &Namespace, server: IpAddr) -> Result<()> {
    traffic::whoami(device, server)?;
    traffic::echo_sizes(device, Far::echo_at(server), &[10, 20, 30])
}

/// A router that sends packets on by the link they came by tells their senders to go round it. (Over IPv4 not
/// about what it translates: `nf_nat_icmp_reply_translation` in the kernel's net/netfilter/nf_nat_proto.c.)
fn no_device_goes_round_the_gateway(shape: Shape) -> Result<()> {
    let scene = Scene::with(Site::build(shape)?, |config| {
        *config = config.replace(MASQUERADE, "");
    })?;
    let (lab, shape) = (scene.lab(), scene.site.shape);
    let own = Family::BOTH.map(|family| match family {
        Family::V4 => shape.gateway_lan(family).to_string(),
        Family::V6 => "fe80::1".to_owned(),
    });
    count_redirects(&lab.device)?;
    let before = Snapshot::take(lab)?;

    let proxy = scene.run()?;
    lab.bypass(&[&["add"], &BYPASSED[..]].concat())?;
    for family in Family::BOTH {
        for n in 17..=20 {
            ask(&lab.device, family.far(n))?;
            assert_eq!(
                next_hop(&lab.device, family.far(n))?,
                own[family as usize],
                "the device goes round the gateway"
            );
        }
    }
    assert_eq!(redirects(&lab.device)?, 0, "redirects came");
    proxy.stop()?;
    lab.restored(&before)?;

    // Without tproxy-bpf the same gateway tells.
    lab.gateway.sysctl(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ])?;
    for family in Family::BOTH {
        let before = redirects(&lab.device)?;
        soon("a redirect", || {
            ask(&lab.device, family.far(1))?;
            ensure!(redirects(&lab.device)? > before, "none over {family:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_one_armed_router_sends_no_redirects() -> Result<()> {
    no_device_goes_round_the_gateway(Shape::OneArmed)
}

#[test]
fn a_side_router_sends_no_redirects() -> Result<()> {
    no_device_goes_round_the_gateway(Shape::SideRouter)
}

#[test]
fn who_is_in_a_subnet_of_the_one_arm_may_use_the_proxy() -> Result<()> {
    let scene = Scene::new(Shape::OneArmedTwoSubnets)?;
    let neighbour = scene.site.device2()?;
    let _proxy = scene.run()?;
    let see = |client: fn(Family) -> IpAddr| {
        Family::BOTH
            .into_iter()
            .try_for_each(|f| scene.far.sees(client(f), neighbour, f.far(1)))
    };
    see(Family::neighbour)?;
    neighbour.ip(&[
        &format!("route replace default via {}", Family::V4.gateway_wan()),
        "route replace ::/0 via fe80::1 dev eth0",
    ])?;
    see(|family| family.upstream(1))
}

#[test]
fn a_device_that_keeps_the_main_router_is_not_touched() -> Result<()> {
    let scene = Scene::new(Shape::SideRouter)?;
    let (lab, shape) = (scene.lab(), scene.site.shape);
    let device2 = scene.site.device2()?;
    let _proxy = scene.run()?;
    for family in Family::BOTH {
        scene
            .far
            .sees(shape.device2(family), device2, family.far(1))?;
    }
    // One that changed its gateway over IPv4 alone.
    lab.device
        .ip(&["route replace ::/0 via fe80::3 dev eth0"])?;
    let (v4, v6) = (Family::V4, Family::V6);
    scene.far.sees(v4.upstream(1), &lab.device, v4.far(1))?;
    scene.far.sees(shape.device(v6), &lab.device, v6.far(1))
}

/// A firewall on the side router that wants to see both directions.
#[test]
fn a_side_router_with_a_strict_firewall_must_masquerade() -> Result<()> {
    let (v4, shape) = (Family::V4, Shape::SideRouter);
    let site = Site::build(shape)?;
    let internet = &site.lab.internet;
    let far = Far::start(&site.lab)?;
    let _socks = Danted::start(internet, site.lab.dir())?;
    site.lab.gateway.run(&[
        "nft",
        "add table inet strict; \
         add chain inet strict c { type filter hook forward priority 0; }; \
         add rule inet strict c ct state invalid drop",
    ])?;
    let proxy = site.run(&site.config()?.replace(MASQUERADE, ""))?;
    site.lab.bypass(&[&["add"], &BYPASSED[..]].concat())?;
    far.sees(v4.upstream(1), &site.lab.device, v4.far(1))?;
    far.sees(shape.device(v4), &site.lab.device, v4.far(17))
        .expect_err("the firewall sees one direction only");
    proxy.stop()?;

    let _proxy = site.run(&site.config()?)?;
    site.lab.bypass(&[&["add"], &BYPASSED[..]].concat())?;
    far.sees(shape.gateway(v4), &site.lab.device, v4.far(17))
}

fn containers_alone(bridge_netfilter: bool) -> Result<()> {
    let Some(site) = Site::build_or_skip(Shape::Containers { bridge_netfilter })? else {
        return Ok(());
    };
    let scene = Scene::with(site, |_| ())?;
    let (lab, shape) = (scene.lab(), scene.site.shape);
    let device2 = scene.site.device2()?;
    let _proxy = scene.run()?;
    let steered = || Ok::<_, anyhow::Error>(lab.status()?["counts"]["steered_packets"].as_u64());
    scene.proxied(device2)?;
    let before = steered()?;
    let tcp = TcpEcho::start(device2, 7)?;
    let udp = UdpEcho::start(device2, 7001..=7001)?;
    for family in Family::BOTH {
        traffic::echo_line(&lab.device, SocketAddr::new(shape.device2(family), 7))?;
        let target = SocketAddr::new(shape.device2(family), 7001);
        traffic::echo_sizes(&lab.device, target, &[1, 9_000])?;
    }
    let ip = |clients: Vec<SocketAddr>| clients.iter().map(SocketAddr::ip).collect::<Vec<_>>();
    let own = Family::BOTH.map(|family| shape.device(family));
    assert_eq!(ip(tcp.clients()), own);
    assert_eq!(ip(udp.clients().into_keys().collect()), own);
    assert_eq!(steered()?, before, "{:?}", lab.counters()?);
    Ok(())
}

#[test]
fn between_containers_nothing_is_proxied() -> Result<()> {
    containers_alone(false)
}

#[test]
fn between_containers_nothing_is_proxied_though_netfilter_sees_it() -> Result<()> {
    containers_alone(true)
}

/// The address and port that answer when `client` asks the UDP service behind the gateway's port 7070.
fn answerer(scene: &Scene, client: IpAddr) -> Result<SocketAddr> {
    let server = scene.site.shape.gateway(Family::of(client));
    let internet = &scene.lab().internet;
    let socket = internet.enter(|| UdpSocket::bind((client, 0)))??;
    socket.set_read_timeout(Some(SOON))?;
    socket.send_to(b"?", (server, 7070))?;
    Ok(socket.recv_from(&mut [0; 8])?.1)
}

/// Clients near by are answered from where they asked. Those in the internet are not, as the pages say: an answer to
/// them looks like new traffic of the device, and is proxied.
fn udp_behind_the_gateway(scene: &Scene) -> Result<()> {
    let (lab, shape) = (scene.lab(), scene.site.shape);
    let _udp = UdpEcho::start(&lab.device, 7000..=7000)?;
    lab.internet.ip(&["addr add 10.99.0.1/32 dev lo"])?;
    let asked = |family| SocketAddr::new(shape.gateway(family), 7070);
    for near in [
        shape.router(Family::V4),
        shape.router(Family::V6),
        IpAddr::from([10, 99, 0, 1]),
    ] {
        assert_eq!(answerer(scene, near)?, asked(Family::of(near)));
    }
    for family in Family::BOTH {
        assert_eq!(answerer(scene, family.far(5))?.ip(), family.upstream(1));
        lab.bypass(&["add", &family.far(5).to_string()])?;
        assert_eq!(answerer(scene, family.far(5))?, asked(family));
    }
    Ok(())
}

#[test]
fn a_forwarded_udp_port_answers_who_is_bypassed() -> Result<()> {
    let scene = Scene::new(Shape::MainRouter)?;
    let [v4, v6] = Family::BOTH.map(|family| host(scene.site.shape.device(family)));
    scene.lab().gateway.run(&[
        "nft",
        &format!(
            "add table inet own; \
             add chain inet own c {{ type nat hook prerouting priority dstnat; }}; \
             add rule inet own c iifname eth1 udp dport 7070 dnat ip to {v4}:7000; \
             add rule inet own c iifname eth1 udp dport 7070 dnat ip6 to {v6}:7000"
        ),
    ])?;
    let _proxy = scene.run()?;
    udp_behind_the_gateway(&scene)
}

fn published(bridge_netfilter: bool) -> Result<()> {
    let Some(site) = Site::build_or_skip(Shape::Containers { bridge_netfilter })? else {
        return Ok(());
    };
    let scene = Scene::with(site, |_| ())?;
    let (lab, shape) = (scene.lab(), scene.site.shape);
    let _tcp = Nginx::start(&lab.device, lab.dir())?;
    let _proxy = scene.run()?;
    for family in Family::BOTH {
        let client = family.far(5).to_string();
        let url = format!("http://{}:8080/whoami", host(shape.gateway(family)));
        let curl = [
            "curl",
            "-sS",
            "--max-time",
            "5",
            "--interface",
            &client,
            &url,
        ];
        let seen = lab.internet.run(&curl)?.stdout;
        ensure!(seen.starts_with(&format!("{client} ")), "{seen}");
    }
    udp_behind_the_gateway(&scene)
}

#[test]
fn published_ports_answer_over_tcp_and_who_is_bypassed_over_udp() -> Result<()> {
    published(false)
}

#[test]
fn published_ports_answer_though_netfilter_sees_the_bridge() -> Result<()> {
    published(true)
}

#[test]
fn the_bridge_of_a_new_network_is_proxied_and_the_machine_is_not_in_stage_2() -> Result<()> {
    let bridge_netfilter = true;
    let Some(site) = Site::build_or_skip(Shape::Containers { bridge_netfilter })? else {
        return Ok(());
    };
    let scene = Scene::with(site, |config| {
        *config = config.replace("stage = 3", "stage = 2");
    })?;
    let lab = scene.lab();
    let second = scene.site.device2()?;
    let _proxy = scene.run()?;
    // As Docker does for a network and a container in it.
    lab.gateway.ip(&[
        "link add br-8d0e type bridge",
        "addr add 172.18.0.1/16 dev br-8d0e",
        "link set br-8d0e up",
        "link set veth1 master br-8d0e",
    ])?;
    second.ip(&[
        "addr add 172.18.0.2/16 dev eth0",
        "route replace default via 172.18.0.1",
        "addr del 172.17.0.3/16 dev eth0",
    ])?;
    let v4 = Family::V4;
    soon("the new network to be proxied", || {
        scene.far.sees(v4.upstream(1), second, v4.far(1))
    })?;
    scene.proxied(&lab.device)?;
    for family in Family::BOTH {
        let gateway = scene.site.shape.gateway(family);
        scene.far.sees(gateway, &lab.gateway, family.far(1))?;
    }
    Ok(())
}
