//! What stage 4 does with the configuration of [`Split::config`]: names of the near zone are asked of the near DNS
//! server and go direct, all else is asked and goes through the proxy.

use std::path::Path;

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
            // As long as nobody knows of the other name it is a near address like all of them.
            let alone = name == names::SHARED_NEAR && orders[0] == name;
            for family in Family::BOTH {
                let origin = running.origin(Split::shared(family))?;
                let wanted = alone.then_some("learned");
                assert_eq!(origin.as_deref(), wanted, "{name} of {orders:?}");
            }
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
fn over_tls_not_even_the_proxy_hears_of_a_far_name() -> Result<()> {
    for by in Family::BOTH {
        let scene = Scene::new()?;
        let far = Split::far_dns(by).to_string();
        let tls = format!("tls://{}", lab::addr::host(Split::far_dns(by)));
        let config = Split::config(&scene.servers, by).replace(&far, &tls);
        let trusted = |authority: &Path| scene.split.run_trusting(&config, authority);
        let dns = &scene.servers.far_dns;
        let (from, asked) = (&scene.split.lab.device, Split::no_dns(by));

        let tproxy = trusted(&dns.certificate().authority)?;
        let capture = scene.split.capture()?;
        for over in [Over::Udp, Over::Tcp] {
            stands_for(from, asked, names::FAR, &over, Split::far_site)?;
        }
        assert_eq!(dns.client_of(names::FAR, 1)?, Split::exit(by));
        let packets = capture.stop()?;
        assert!(packets.iter().any(|packet| packet.touches(Split::exit(by))));
        let named = packets.iter().find(|packet| packet.names(names::FAR_ZONE));
        assert_eq!(named, None);
        tproxy.stop()?;

        // A server that cannot prove who it is has no say.
        let before = dns.clients_of(names::FAR).len();
        let other = &scene.servers.far_web.certificate()?.authority;
        let tproxy = trusted(other)?;
        let answer = question(from, asked, names::FAR, "A", &Over::Udp)?;
        assert!(answer.is_none_or(|answer| answer.status == "SERVFAIL"));
        assert_eq!(dns.clients_of(names::FAR).len(), before);
        tproxy.stop()?;
    }
    Ok(())
}

#[test]
fn a_server_that_speaks_first_is_not_kept_waiting_for_a_name() -> Result<()> {
    let running = Running::new(Family::V4)?;
    let _far = TcpEcho::start_speaking(&running.scene.split.far, 25)?;
    for (from, _) in running.scene.clients() {
        for family in Family::BOTH {
            let mut times = Vec::new();
            for _ in 0..5 {
                times.push(traffic::banner(from, at(Split::far_site(family), 25))?);
            }
            // The machine may be slow, but not each time.
            let fastest = times.iter().min().context("no time")?;
            assert!(fastest.as_millis() < 200, "{family:?}: {times:?}");
        }
    }
    let lab = &running.scene.split.lab;
    assert_eq!(lab.proxy_count("/connections_total")?, 20);
    running.tproxy.stop()
}

#[test]
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
