//! The ground for splitting by destination: a near and a far world whose DNS servers disagree. First the ground
//! itself, then what stage 4 does there.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Namespace, Split, SplitServers,
    capture::Packet,
    forger::{Forger, dns_answer, malformed},
    names,
    probe::{at, udp_at},
    servers::{Log, TcpEcho},
    traffic::{self, Answer, Load, Over, dnsperf, question, visit, whoami},
};

/// One of each family.
type Address = fn(Family) -> IpAddr;

/// A split network with its servers.
struct Scene {
    servers: SplitServers,
    split: Split,
}

impl Scene {
    fn new() -> Result<Self> {
        let split = Split::build()?;
        Ok(Self {
            servers: SplitServers::start(&split)?,
            split,
        })
    }

    fn tls(&self) -> Over {
        Over::Tls(self.servers.far_dns.certificate().authority.clone())
    }

    /// Each machine behind or on the gateway, and the address that servers see when it goes direct.
    fn clients(&self) -> [(&Namespace, Address); 2] {
        let lab = &self.split.lab;
        [
            (&lab.device, Family::device),
            (&lab.gateway, Family::gateway_wan),
        ]
    }
}

fn answer(from: &Namespace, server: IpAddr, name: &str, kind: &str, over: &Over) -> Result<Answer> {
    question(from, server, name, kind, over)?
        .with_context(|| format!("no answer of {server} to {name} {kind} over {over:?}"))
}

const fn kind(family: Family) -> &'static str {
    match family {
        Family::V4 => "A",
        Family::V6 => "AAAA",
    }
}

/// Wants the name to stand for one address of each family.
fn stands_for(
    from: &Namespace,
    server: IpAddr,
    name: &str,
    over: &Over,
    address: impl Fn(Family) -> IpAddr,
) -> Result<()> {
    for family in Family::BOTH {
        let answer = answer(from, server, name, kind(family), over)?;
        ensure!(
            answer.addresses() == [address(family)],
            "{server} says of {name} over {over:?}: {answer:?}"
        );
    }
    Ok(())
}

/// Wants all of it over TCP, and less over UDP.
fn is_big(answer: &Answer, over: &Over) {
    let bytes: usize = answer.data("TXT").iter().map(|text| text.len()).sum();
    assert_eq!(answer.is_truncated(), *over == Over::Udp, "{answer:?}");
    assert_eq!(bytes > 3_000, *over == Over::Tcp, "{answer:?}");
}

#[test]
fn each_dns_server_tells_of_its_own_world() -> Result<()> {
    let scene = Scene::new()?;
    let lab = &scene.split.lab;
    let from = &lab.device;
    for (by, asked) in Family::BOTH.into_iter().zip([(4, 6), (10, 12)]) {
        let (near, far) = (Split::near_dns(by), Split::far_dns(by));
        for over in [Over::Udp, Over::Tcp] {
            for name in [names::NEAR, "any.near.test", names::ALIAS_NEAR] {
                stands_for(from, near, name, &over, Split::near_site)?;
            }
            stands_for(from, near, names::SHARED_NEAR, &over, Split::shared)?;
            for name in [names::FAR, names::SHARED_FAR, names::GONE_FAR] {
                stands_for(from, near, name, &over, Split::forged)?;
            }
        }
        for over in [Over::Udp, Over::Tcp, scene.tls()] {
            for name in [names::FAR, names::ALIAS_FAR] {
                stands_for(from, far, name, &over, Split::far_site)?;
            }
            stands_for(from, far, names::SHARED_FAR, &over, Split::shared)?;
            for name in [names::NEAR, names::SHARED_NEAR] {
                stands_for(from, far, name, &over, Split::near_from_afar)?;
            }
        }
        let client = scene.servers.near_dns.client_of(names::FAR, asked.0)?;
        assert_eq!(client, by.device());
        let client = scene.servers.far_dns.client_of(names::FAR, asked.1)?;
        assert_eq!(client, by.device());
        // The far server answers there alone, the near one everywhere.
        assert!(question(from, Split::no_dns(by), names::FAR, "A", &Over::Udp)?.is_none());
        let device2 = lab.device2.as_ref().context("a second device")?;
        stands_for(device2, by.near(9), names::FAR, &Over::Udp, Split::forged)?;
    }
    Ok(())
}

#[test]
fn the_dns_servers_have_answers_of_every_kind() -> Result<()> {
    let scene = Scene::new()?;
    let from = &scene.split.lab.device;
    let near = Split::near_dns(Family::V4);
    let far = Split::far_dns(Family::V6);
    let ask = |server, name, kind, over: &Over| answer(from, server, name, kind, over);
    for over in [Over::Udp, Over::Tcp] {
        for (server, zone, mail, text) in [
            (near, names::NEAR_ZONE, "10 www.near.test.", "\"near\""),
            (far, names::FAR_ZONE, "10 www.far.test.", "\"far\""),
        ] {
            assert_eq!(ask(server, zone, "MX", &over)?.data("MX"), [mail]);
            assert_eq!(ask(server, zone, "TXT", &over)?.data("TXT"), [text]);
        }
        for (server, alias, name) in [
            (near, names::ALIAS_NEAR, "www.near.test."),
            (far, names::ALIAS_FAR, "www.far.test."),
        ] {
            assert_eq!(ask(server, alias, "A", &over)?.data("CNAME"), [name]);
        }
        for (server, gone) in [(near, names::GONE_NEAR), (far, names::GONE_FAR)] {
            assert_eq!(ask(server, gone, "A", &over)?.status, "NXDOMAIN");
        }
        for (server, big) in [(near, names::BIG_NEAR), (far, names::BIG_FAR)] {
            is_big(&ask(server, big, "TXT", &over)?, &over);
        }
    }
    for (server, silent) in [(near, names::SILENT_NEAR), (far, names::SILENT_FAR)] {
        let answer = question(from, server, silent, "A", &Over::Udp)?;
        assert_eq!(answer, None, "{silent}");
    }
    // A certificate of another authority is not taken.
    let other = scene.servers.far_web.certificate()?.authority.clone();
    let refused = question(from, far, names::FAR, "A", &Over::Tls(other))?;
    assert_eq!(refused, None);
    Ok(())
}

#[test]
fn a_capture_sees_what_goes_to_the_far_world_directly() -> Result<()> {
    let scene = Scene::new()?;
    let device = &scene.split.lab.device;
    // What of the far world is on the link to the provider while `work` is done?
    let during = |work: &dyn Fn() -> Result<()>| -> Result<Vec<Packet>> {
        let capture = scene.split.capture()?;
        work()?;
        let packets = capture.stop()?;
        assert!(!packets.is_empty());
        Ok(Split::leaks(&packets).into_iter().cloned().collect())
    };
    for by in Family::BOTH {
        for over in [Over::Udp, Over::Tcp, scene.tls()] {
            let far = Split::far_dns(by);
            let leaks = during(&|| {
                answer(device, far, names::FAR, "A", &over)?;
                Ok(())
            })?;
            let sent = |packet: &&Packet| packet.target.ip() == far;
            let names = leaks.iter().filter(|packet| packet.names(names::FAR));
            let named = names.filter(sent).count();
            assert!(leaks.iter().any(|packet| sent(&packet)), "{by:?} {over:?}");
            assert_eq!(named, usize::from(!matches!(over, Over::Tls(_))));
        }
        let leaks = during(&|| {
            let near = Split::near_dns(by);
            // In letters of both cases, as resolvers ask that do not trust the way.
            answer(device, near, "wWw.FaR.tEsT", "A", &Over::Udp)?;
            Ok(())
        })?;
        assert_eq!(leaks.len(), 2, "{leaks:?}");
        let leaks = during(&|| {
            answer(device, Split::near_dns(by), names::NEAR, "A", &Over::Tcp)?;
            whoami(device, Split::near_site(by))?;
            let socks = scene.servers.socks.url(by);
            traffic::through_socks(device, &socks, Split::far_site(by))?;
            Ok(())
        })?;
        assert!(leaks.is_empty(), "{leaks:?}");
    }
    let capture = scene.split.capture()?;
    whoami(device, Split::far_site(Family::V4))?;
    let packet = capture.wait_for("a packet to the far site", |packet| {
        packet.target == at(Split::far_site(Family::V4), 80)
    })?;
    assert_eq!(packet.source.ip(), Family::V4.device());
    Ok(())
}

#[test]
fn the_socks_server_reaches_both_worlds() -> Result<()> {
    let scene = Scene::new()?;
    let lab = &scene.split.lab;
    for by in Family::BOTH {
        let url = scene.servers.socks.url(by);
        for family in Family::BOTH {
            for server in [Split::far_site(family), Split::near_site(family)] {
                assert_eq!(whoami(&lab.device, server)?, family.device());
                let client = traffic::through_socks(&lab.device, &url, server)?;
                assert_eq!(client, Split::exit(family));
            }
        }
        // The program as it is without splitting: all goes there, and the far server believes nobody else.
        let tproxy = lab.tproxy(&[
            "run",
            "--lan",
            "eth0",
            "--wan",
            "default",
            "--outbound",
            &url,
        ])?;
        let capture = scene.split.capture()?;
        for (from, _) in scene.clients() {
            for family in Family::BOTH {
                let far = Split::far_dns(family);
                for over in [Over::Udp, Over::Tcp, scene.tls()] {
                    stands_for(from, far, names::FAR, &over, Split::far_site)?;
                }
                let client = whoami(from, Split::far_site(family))?;
                assert_eq!(client, Split::exit(family));
            }
        }
        let packets = capture.stop()?;
        let leaks = Split::leaks(&packets);
        assert!(leaks.is_empty(), "{leaks:?}");
        tproxy.stop()?;
    }
    let clients = scene.servers.far_dns.clients_of(names::FAR);
    assert_eq!(clients.len(), 48);
    let exits = Family::BOTH.map(Split::exit);
    assert!(clients.iter().all(|client| exits.contains(client)));
    Ok(())
}

#[test]
fn a_shared_address_has_two_sites_with_tls_and_without() -> Result<()> {
    let scene = Scene::new()?;
    let device = &scene.split.lab.device;
    for family in Family::BOTH {
        let (near, far) = (&scene.servers.near_web, &scene.servers.far_web);
        for (web, name, server) in [
            (near, names::SHARED_NEAR, Split::shared(family)),
            (near, names::SHARED_FAR, Split::shared(family)),
            (far, names::FAR, Split::far_site(family)),
        ] {
            let authority = &web.certificate()?.authority;
            for authority in [None, Some(authority.as_path())] {
                let visit = visit(device, name, server, authority)?;
                assert_eq!((visit.site.as_str(), visit.server), (name, server));
                assert_eq!(visit.client, family.device());
            }
        }
        let authority = &near.certificate()?.authority;
        let other = visit(device, names::FAR, Split::shared(family), Some(authority));
        assert!(other.is_err(), "{other:?}");
    }
    Ok(())
}

#[test]
fn a_server_that_speaks_first_does_not_wait() -> Result<()> {
    let split = Split::build()?;
    let _near = TcpEcho::start_speaking(split.near(), 25)?;
    let _far = TcpEcho::start_speaking(&split.far, 25)?;
    for family in Family::BOTH {
        for server in [Split::near_site(family), Split::far_site(family)] {
            let elapsed = traffic::banner(&split.lab.device, at(server, 25))?;
            assert!(elapsed.as_millis() < 500, "{server}: {elapsed:?}");
        }
    }
    Ok(())
}

#[test]
fn a_forger_is_heard_under_the_name_of_another() -> Result<()> {
    let split = Split::build()?;
    for family in Family::BOTH {
        let far = at(Split::far_dns(family), 53);
        let heard = udp_at(&split.lab.gateway, at(family.gateway_wan(), 5300))?;
        let target = heard.local_addr()?;
        let forged = dns_answer(7, names::FAR, Split::forged(family));
        let forger = Forger::new(split.near(), family)?;
        forger.send(far, target, &forged)?;
        let mut buffer = [0; 2048];
        assert_eq!(heard.recv_from(&mut buffer)?, (forged.len(), far));
        assert_eq!(&buffer[..forged.len()], forged);

        let flood = forger.flood(move |n| {
            let source = SocketAddr::new(far.ip(), if n % 2 == 0 { 53 } else { 853 });
            let payload = malformed(n, names::FAR, Split::forged(family));
            (source, target, payload)
        });
        flood.wait_for(10_000)?;
        let (_, from) = heard.recv_from(&mut buffer)?;
        assert_eq!(from.ip(), far.ip());
        assert!(flood.stop()? >= 10_000);
    }
    Ok(())
}

#[test]
fn dnsperf_measures_both_dns_servers() -> Result<()> {
    let split = Split::build()?;
    let _servers = SplitServers::start_with(&split, Log::Nothing)?;
    let load = Load {
        seconds: 1,
        clients: 4,
        per_second: Some(500),
    };
    for by in Family::BOTH {
        for (server, name) in [
            (Split::near_dns(by), names::NEAR),
            (Split::far_dns(by), names::FAR),
        ] {
            let questions = [format!("{name} A"), format!("{name} AAAA")];
            let questions: Vec<&str> = questions.iter().map(String::as_str).collect();
            let lab = &split.lab;
            let found = dnsperf(&lab.device, server, &questions, load, lab.dir())?;
            assert_eq!(found.sent, found.completed + found.lost, "{found:?}");
            assert!(found.completed > 100 && found.lost == 0, "{found:?}");
            assert!(found.per_second > 100.0, "{found:?}");
            assert!(!found.latency.is_zero(), "{found:?}");
        }
    }
    Ok(())
}

/// What stage 4 does with the configuration of [`Split::config`]: names of the near zone are asked of the near DNS
/// server and go direct, all else is asked and goes through the proxy.
mod stage4 {
    use lab::Tproxy;

    use super::*;

    /// The ground with the program on it, all its servers by one family.
    struct Running {
        tproxy: Tproxy,
        scene: Scene,
        by: Family,
    }

    impl Running {
        fn new(by: Family) -> Result<Self> {
            let scene = Scene::new()?;
            let config = Split::config(&scene.servers, by);
            assert!(config.lines().count() <= 10, "{config}");
            let tproxy = scene.split.run(&config)?;
            Ok(Self { tproxy, scene, by })
        }

        /// Wants the name to stand for an address, whoever of the split network asks, over UDP and TCP. The server
        /// that is asked is none.
        fn stands_for(&self, name: &str, address: impl Fn(Family) -> IpAddr) -> Result<()> {
            for (from, _) in self.scene.clients() {
                for over in [Over::Udp, Over::Tcp] {
                    stands_for(from, Split::no_dns(self.by), name, &over, &address)?;
                }
            }
            Ok(())
        }

        /// How the address is bypassed: `None` if it is not.
        fn origin(&self, address: IpAddr) -> Result<Option<String>> {
            let prefix = format!("{address}/{}", Family::of(address).host_bits());
            let entries = self.scene.split.lab.bypass_list()?;
            let entry = entries.into_iter().find(|entry| entry["prefix"] == prefix);
            Ok(entry.and_then(|entry| Some(entry["origin"].as_str()?.to_owned())))
        }

        /// Connections that were bypassed, those that were steered, and those that came to the proxy, so far.
        fn ways(&self) -> Result<[u64; 3]> {
            let lab = &self.scene.split.lab;
            Ok([
                lab.packets("bypassed")?,
                lab.packets("tcp_opened")?,
                lab.proxy_count("/connections_total")?,
            ])
        }
    }

    #[test]
    #[ignore = "stage 4 is not wired yet"]
    fn near_names_are_asked_nearby_and_bypassed_in_the_kernel() -> Result<()> {
        for by in Family::BOTH {
            let running = Running::new(by)?;
            let (scene, servers) = (&running.scene, &running.scene.servers);
            let (path, content) = servers.near_web.offer(1 << 20)?;
            for family in Family::BOTH {
                assert_eq!(running.origin(Split::near_site(family))?, None);
                // The first answer must not come before the kernel knows.
                let asked = Split::no_dns(by);
                let name = format!("first-{by:?}-{family:?}.near.test").to_lowercase();
                let device = &scene.split.lab.device;
                answer(device, asked, &name, kind(family), &Over::Udp)?;
                let origin = running.origin(Split::near_site(family))?;
                assert_eq!(origin.as_deref(), Some("learned"), "{name}");
            }
            for name in [names::NEAR, names::ALIAS_NEAR, "any.near.test"] {
                running.stands_for(name, Split::near_site)?;
                assert_eq!(servers.near_dns.client_of(name, 1)?, by.gateway_wan());
                assert!(servers.far_dns.clients_of(name).is_empty());
            }
            for (from, own) in scene.clients() {
                for family in Family::BOTH {
                    let server = Split::near_site(family);
                    let [bypassed, steered, proxied] = running.ways()?;
                    assert_eq!(whoami(from, server)?, own(family));
                    let down = traffic::download(from, &lab::addr::url(server, &path))?;
                    assert_eq!(down.sha256, content.sha256);
                    let after = running.ways()?;
                    assert!(after[0] >= bypassed + 2, "{after:?}");
                    assert_eq!(after[1..], [steered, proxied]);
                }
            }
            running.tproxy.stop()?;
        }
        Ok(())
    }

    #[test]
    #[ignore = "stage 4 is not wired yet"]
    fn far_names_are_asked_and_reached_through_the_proxy() -> Result<()> {
        for by in Family::BOTH {
            let running = Running::new(by)?;
            let (scene, servers) = (&running.scene, &running.scene.servers);
            let (path, content) = servers.far_web.offer(1 << 20)?;
            let capture = scene.split.capture()?;
            for name in [names::FAR, names::ALIAS_FAR] {
                running.stands_for(name, Split::far_site)?;
                assert_eq!(servers.far_dns.client_of(name, 1)?, Split::exit(by));
                assert!(servers.near_dns.clients_of(name).is_empty());
            }
            for (from, _) in scene.clients() {
                for family in Family::BOTH {
                    let server = Split::far_site(family);
                    assert_eq!(running.origin(server)?, None);
                    let [bypassed, _, proxied] = running.ways()?;
                    assert_eq!(whoami(from, server)?, Split::exit(family));
                    let down = traffic::download(from, &lab::addr::url(server, &path))?;
                    assert_eq!(down.sha256, content.sha256);
                    let after = running.ways()?;
                    assert_eq!([after[0], after[2]], [bypassed, proxied + 2]);
                }
            }
            let packets = capture.stop()?;
            let leaks = Split::leaks(&packets);
            assert!(leaks.is_empty(), "{leaks:?}");
            running.tproxy.stop()?;
        }
        Ok(())
    }

    #[test]
    #[ignore = "stage 4 is not wired yet"]
    fn whatever_server_is_asked_the_answer_is_the_same() -> Result<()> {
        let running = Running::new(Family::V4)?;
        let lab = &running.scene.split.lab;
        for family in Family::BOTH {
            // The near one of these would lie, and one is the gateway itself, where nobody listens.
            let others = [Split::no_dns(family), family.near(9), family.internet()];
            let own = [family.gateway_lan(), family.gateway_wan()];
            for (from, servers) in [
                (&lab.gateway, others.to_vec()),
                (&lab.device, [&others[..], &own[..]].concat()),
            ] {
                for server in servers {
                    for over in [Over::Udp, Over::Tcp] {
                        stands_for(from, server, names::NEAR, &over, Split::near_site)?;
                        stands_for(from, server, names::FAR, &over, Split::far_site)?;
                        for (name, kind, data) in [
                            (names::NEAR_ZONE, "MX", "10 www.near.test."),
                            (names::FAR_ZONE, "MX", "10 www.far.test."),
                            (names::NEAR_ZONE, "TXT", "\"near\""),
                            (names::FAR_ZONE, "TXT", "\"far\""),
                        ] {
                            let answer = answer(from, server, name, kind, &over)?;
                            assert_eq!(answer.data(kind), [data], "{server} {over:?}");
                        }
                        for name in [names::GONE_NEAR, names::GONE_FAR] {
                            let answer = answer(from, server, name, "A", &over)?;
                            assert_eq!(answer.status, "NXDOMAIN", "{server} {over:?}");
                        }
                        for name in [names::BIG_NEAR, names::BIG_FAR] {
                            let answer = answer(from, server, name, "TXT", &over)?;
                            is_big(&answer, &over);
                        }
                    }
                }
            }
        }
        running.tproxy.stop()
    }

    #[test]
    #[ignore = "stage 4 is not wired yet"]
    fn the_provider_never_hears_of_a_far_name() -> Result<()> {
        for by in Family::BOTH {
            let running = Running::new(by)?;
            let scene = &running.scene;
            let capture = scene.split.capture()?;
            for (from, _) in scene.clients() {
                for server in [Split::no_dns(by), Split::near_dns(by), Split::far_dns(by)] {
                    for name in [
                        names::FAR,
                        names::GONE_FAR,
                        names::BIG_FAR,
                        names::SILENT_FAR,
                    ] {
                        for over in [Over::Udp, Over::Tcp] {
                            // Not all of them have an answer, but none may have the near one.
                            let answer = question(from, server, name, "A", &over)?;
                            let forged = answer.is_some_and(|answer| {
                                answer.addresses().contains(&Split::forged(Family::V4))
                            });
                            assert!(!forged, "{server} {name} {over:?}");
                        }
                    }
                }
                // So that there is something to see, and near questions are where they belong.
                answer(from, Split::no_dns(by), names::NEAR, "A", &Over::Udp)?;
            }
            let packets = capture.stop()?;
            assert!(packets.iter().any(|packet| packet.names(names::NEAR)));
            let leaks = Split::leaks(&packets);
            assert!(leaks.is_empty(), "{by:?}: {leaks:?}");
            let servers = &scene.servers;
            assert!(servers.near_dns.clients_of(names::FAR).is_empty());
            running.tproxy.stop()?;
        }
        Ok(())
    }

    #[test]
    #[ignore = "stage 4 is not wired yet"]
    fn an_address_that_a_proxied_name_shares_is_not_bypassed() -> Result<()> {
        for orders in [
            [names::SHARED_NEAR, names::SHARED_FAR],
            [names::SHARED_FAR, names::SHARED_NEAR],
        ] {
            let running = Running::new(Family::V4)?;
            let web = &running.scene.servers.near_web;
            let authority = web.certificate()?.authority.as_path();
            for name in orders {
                running.stands_for(name, Split::shared)?;
            }
            for family in Family::BOTH {
                let server = Split::shared(family);
                assert_eq!(running.origin(server)?, None, "{orders:?}");
                for (from, _) in running.scene.clients() {
                    // The name decides, which only the proxy can read.
                    for authority in [None, Some(authority)] {
                        let near = visit(from, names::SHARED_NEAR, server, authority)?;
                        assert_eq!(near.client, family.gateway_wan(), "{authority:?}");
                        let far = visit(from, names::SHARED_FAR, server, authority)?;
                        assert_eq!(far.client, Split::exit(family), "{authority:?}");
                    }
                }
            }
            running.tproxy.stop()?;
        }
        Ok(())
    }

    #[test]
    #[ignore = "stage 4 is not wired yet"]
    fn nobody_believes_a_forger() -> Result<()> {
        for by in Family::BOTH {
            let running = Running::new(by)?;
            let split = &running.scene.split;
            let forger = Forger::new(split.near(), by)?;
            // In the name of each server in turn, to every port that the gateway may ask from.
            let flood = forger.flood(move |n| {
                let sources = [Split::near_dns(by), Split::far_dns(by), Split::exit(by)];
                let [a, b, c, d, source, ..] = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
                let (id, port) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                let source = sources[usize::from(source % 3)];
                let payload = match n % 3 {
                    0 => malformed(n, names::FAR, Split::forged(by)),
                    1 => dns_answer(id, names::FAR, Split::forged(by)),
                    _ => dns_answer(id, names::NEAR, by.near(20)),
                };
                let target = at(by.gateway_wan(), 1024 + port % 64_000);
                (at(source, 53), target, payload)
            });
            flood.wait_for(1_000)?;
            running.stands_for(names::FAR, Split::far_site)?;
            running.stands_for(names::NEAR, Split::near_site)?;
            assert_eq!(running.origin(by.near(20))?, None);
            flood.wait_for(1_000)?;
            flood.stop()?;
            running.tproxy.stop()?;
        }
        Ok(())
    }
}
