//! Rules: which outbound a connection takes, by all that they may ask for.

use lab::{Reloadable, servers::UdpEcho, traffic::echo_sizes, wait::SOON};

use super::*;

/// A configuration whose default is the SOCKS server, with these rules.
fn config(servers: &SplitServers, rules: &str) -> String {
    format!(
        "[lan]\ninterfaces = [\"eth0\"]\n[wan]\ninterfaces = [\"default\"]\n[[outbound]]\nname = \"proxy\"\n\
         url = \"{}\"\n{rules}",
        servers.socks.url(Family::V4)
    )
}

fn rule(name: &str, conditions: &str) -> String {
    format!("[[rule]]\nname = \"{name}\"\n{conditions}\noutbound = \"direct\"\n")
}

/// The record of a connection to this destination, which has ended or is about to.
fn record(proxy: &Reloadable, seen: usize, destination: SocketAddr) -> Result<String> {
    let destination = format!("destination={destination} ");
    let process = proxy.process();
    process.wait_for_line_after(seen, &destination, SOON)
}

#[test]
fn each_condition_leads_where_the_rule_says_and_the_record_names_it() -> Result<()> {
    let scene = Scene::new()?;
    let lab = &scene.split.lab;
    let (prefix4, prefix6) = (Family::V4.far(7), Family::V6.far(6));
    let device2 = Family::BOTH.map(Split::device2);
    let rules = [
        rule(
            "by prefix",
            &format!("prefix = [\"{prefix4}\", \"{prefix6}/127\"]"),
        ),
        rule(
            "by device",
            &format!("source = [\"{}\", \"{}\"]", device2[0], device2[1]),
        ),
        rule("by port", "port = [\"1-79\", 81]\nprotocol = \"tcp\""),
        rule(
            "by name",
            &format!("domain = [\"full:{}\"]", names::SHARED_NEAR),
        ),
        rule("nobody", "domain = [\"no.such.name\"]\nport = [80, 443]"),
    ];
    let proxy = Reloadable::start(lab, &config(&scene.servers, &rules.concat()))?;
    let device = &lab.device;
    let other = lab.device2.as_ref().context("a second device")?;
    let _speaker = TcpEcho::start_speaking(&scene.split.far, 22)?;
    for family in Family::BOTH {
        let direct = family.gateway_wan();
        for (from, server, client, rule) in [
            (device, family.far(9), Split::exit(family), None),
            (&lab.gateway, family.far(9), Split::exit(family), None),
            (device, family.far(7), direct, Some("by prefix")),
            (&lab.gateway, family.far(7), direct, Some("by prefix")),
            (other, family.far(9), direct, Some("by device")),
            (other, family.far(7), direct, Some("by prefix")),
        ] {
            let seen = proxy.process().lines().len();
            assert_eq!(whoami(from, server)?, client, "{server}");
            let line = record(&proxy, seen, at(server, 80))?;
            match rule {
                Some(rule) => {
                    ensure!(
                        line.contains(&format!("outbound=\"direct\" rule=\"{rule}\"")),
                        "{line}"
                    );
                }
                None => ensure!(
                    line.contains("outbound=\"proxy\"") && !line.contains("rule="),
                    "{line}"
                ),
            }
        }
        // A rule about a port, whatever is said there.
        let seen = proxy.process().lines().len();
        traffic::banner(device, at(family.far(1), 22))?;
        let line = record(&proxy, seen, at(family.far(1), 22))?;
        ensure!(line.contains("rule=\"by port\""), "{line}");
        // And about a name, which is read in TLS and in HTTP.
        let web = &scene.servers.near_web;
        let authority = web.certificate()?.authority.as_path();
        for (authority, port) in [(None, 80), (Some(authority), 443)] {
            let server = Split::shared(family);
            for (name, client, rule) in [
                (names::SHARED_NEAR, direct, Some("by name")),
                (names::SHARED_FAR, Split::exit(family), None),
            ] {
                let seen = proxy.process().lines().len();
                let visit = visit(device, name, server, authority)?;
                assert_eq!((&*visit.site, visit.client), (name, client));
                let line = record(&proxy, seen, at(server, port))?;
                ensure!(line.contains(&format!("name=\"{name}\"")), "{line}");
                assert_eq!(line.contains("rule=\"by name\""), rule.is_some(), "{line}");
            }
        }
    }
    proxy.stop()
}

#[test]
fn datagrams_of_one_port_go_by_rules_too() -> Result<()> {
    let scene = Scene::new()?;
    let lab = &scene.split.lab;
    let echo = UdpEcho::start(&scene.split.far, 7000..=7001)?;
    let rules = rule("one port", "port = [7001]\nprotocol = \"udp\"");
    let proxy = Reloadable::start(lab, &config(&scene.servers, &rules))?;
    for family in Family::BOTH {
        for (port, client) in [(7000, Split::exit(family)), (7001, family.gateway_wan())] {
            echo.forget();
            echo_sizes(&lab.device, at(family.far(1), port), &[1, 1200])?;
            let clients: Vec<_> = echo
                .clients()
                .into_keys()
                .map(|client| client.ip())
                .collect();
            assert_eq!(clients, [client], "{port}");
        }
    }
    proxy.stop()
}

#[test]
fn a_reload_changes_rules_for_new_connections_and_a_bad_one_changes_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let lab = &scene.split.lab;
    let server = Family::V4.far(9);
    let lists = lab.dir().join("far.txt");
    std::fs::write(&lists, format!("{server}\n"))?;
    let by_file = rule("a list", "prefix_files = [\"far.txt\"]");
    let plain = config(&scene.servers, "");
    let proxy = Reloadable::start(lab, &plain)?;
    let exit = Split::exit(Family::V4);
    assert_eq!(whoami(&lab.device, server)?, exit);
    let direct = Family::V4.gateway_wan();
    let ruled = config(&scene.servers, &by_file);
    proxy.reload(&ruled, "reloaded")?;
    assert_eq!(whoami(&lab.device, server)?, direct);
    let broken = [
        ruled.replace("far.txt", "missing.txt"),
        ruled.replace("outbound = \"direct\"", "outbound = \"drect\""),
        ruled.replace("prefix_files", "prefixfiles"),
    ];
    for (text, word) in broken
        .iter()
        .zip(["missing.txt", "did you mean `direct`?", "prefixfiles"])
    {
        proxy.reload(text, word)?;
        assert_eq!(whoami(&lab.device, server)?, direct, "{word}");
    }
    // The list itself has changed.
    std::fs::write(&lists, "192.0.2.0/24\n")?;
    proxy.reload(&ruled, "reloaded")?;
    assert_eq!(whoami(&lab.device, server)?, exit);
    proxy.stop()
}
