//! The ground for splitting by destination: a near and a far world whose DNS servers disagree. First the ground
//! itself, then what stage 4 does there.

#[path = "split/resolver.rs"]
mod resolver;
#[path = "split/rules.rs"]
mod rules;
#[path = "split/stage4.rs"]
mod stage4;

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
