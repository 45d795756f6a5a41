//! `explain`: what it says, that it says what then happens, and that it leaves no trace.

use std::{fs, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Lab, Lan, Namespace, Snapshot, Tproxy,
    probe::at,
    servers::{Dnsmasq, TcpEcho},
    topology::or_skip,
    traffic::{connect, open_udp},
};
use serde_json::{Value, json};

/// The gateway's whole configuration, beside its links.
const RULES: &str = r#"
[bypass]
prefixes = ["203.0.113.16/28", "2001:db8:f::10/124"]
[[outbound]]
name = "slow"
url = "direct://"
[[outbound]]
name = "fast"
url = "socks5://me:secret@198.51.100.1:1080"
[[rule]]
name = "video"
domain = ["host.lab"]
outbound = "fast"
[[rule]]
name = "mail"
port = [25]
outbound = "fast"
[[rule]]
name = "near"
prefix = ["203.0.113.2/32", "2001:db8:f::2/128"]
protocol = "tcp"
outbound = "fast"
"#;

fn explain(lab: &Lab, args: &[&str]) -> Result<Value> {
    let args = [&["explain", "--json"], args].concat();
    lab.tproxy_run(&args)?.ok()?.json()
}

/// What is said of the one packet.
#[track_caller]
fn one(said: &Value) -> &Value {
    let packets = said["packets"].as_array().expect("packets");
    assert_eq!(packets.len(), 1, "{said:#}");
    &packets[0]
}

#[track_caller]
fn is(packet: &Value, expected: &Value) {
    for (key, value) in expected.as_object().expect("an object") {
        let found = packet.pointer(&format!("/{}", key.replace('.', "/")));
        assert_eq!(found, Some(value), "{key} in {packet:#}");
    }
}

fn run(lab: &Lab, top: &str, links: &str, rest: &str) -> Result<Tproxy> {
    let path = lab.dir().join("config.toml");
    fs::write(&path, format!("{top}\n{links}\n{rest}"))?;
    let path = path.to_str().context("the path of the lab is not UTF-8")?;
    lab.tproxy(&["run", "-c", path])
}

fn run_on_lan(lab: &Lab, rest: &str) -> Result<Tproxy> {
    let lan = format!("[lan]\ninterfaces = [\"{}\"]", lab.lan());
    run(lab, "", &lan, rest)
}

/// Sends the real packet, whatever becomes of it.
fn send(ns: &Namespace, udp: bool, target: SocketAddr) -> Result<()> {
    if udp {
        open_udp(ns, Family::of(target.ip()))?.send_to(b"for real", target)?;
    } else {
        connect(ns, target).ok();
    }
    Ok(())
}

/// What is explained is then sent for real, and the counter with the same reason moves.
fn as_explained(lab: &Lab, ns: &Namespace, args: &[&str], target: SocketAddr) -> Result<Value> {
    let target_text = target.to_string();
    let said = explain(lab, &[args, &[&target_text]].concat())?;
    let reason = one(&said)["reason"].as_str().context("no reason")?;
    let before = lab.packets(reason)?;
    send(ns, args.contains(&"--udp"), target)?;
    lab::ways::soon(&format!("{target} to be counted as {reason}"), || {
        ensure!(lab.packets(reason)? > before, "{:?}", lab.counted()?);
        Ok(())
    })?;
    Ok(said)
}

#[test]
fn what_is_explained_happens() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = TcpEcho::start(&lab.internet, 7)?;
    let _proxy = run_on_lan(&lab, RULES)?;
    for family in Family::BOTH {
        let (private, subnet) = match family {
            Family::V4 => ("192.168.99.1", "192.0.2.0/24"),
            Family::V6 => ("fd00::1", "2001:db8:2::/64"),
        };
        let own = family.gateway_lan();
        let (far, bypassed) = (family.far(1), family.far(17));
        for udp in [false, true] {
            let args: &[&str] = if udp { &["--udp"] } else { &[] };
            let steered = if udp { "udp_steered" } else { "tcp_opened" };
            let cases = [
                (far, "steer", steered),
                (bypassed, "pass", "bypassed"),
                (private.parse()?, "pass", "private_range"),
                (own, "pass", "own_address"),
                (family.internet(), "pass", "own_subnet"),
            ];
            for (destination, verdict, reason) in cases {
                // TCP to nowhere would wait for an answer that never comes.
                let said = if udp || destination == far || destination == own {
                    as_explained(&lab, &lab.device, args, at(destination, 7))?
                } else {
                    explain(&lab, &[args, &[&at(destination, 7).to_string()]].concat())?
                };
                let packet = one(&said);
                is(
                    packet,
                    &json!({
                        "verdict": verdict, "reason": reason, "link": lab.lan(), "own": false,
                        "destination": at(destination, 7).to_string(), "on_proxy_down": "pass", "outdated": false,
                    }),
                );
                ensure!(packet["admitted"].is_string(), "{packet:#}");
                if destination == family.internet() {
                    is(
                        packet,
                        &json!({ "local.prefix": subnet, "local.kind": "subnet" }),
                    );
                }
            }
        }
        let said = explain(&lab, &[&at(bypassed, 443).to_string()])?;
        let prefix = if family == Family::V4 {
            "203.0.113.16/28"
        } else {
            "2001:db8:f::10/124"
        };
        is(
            one(&said),
            &json!({ "bypass.prefix": prefix, "bypass.origin": "config", "bypass.expires_in": null }),
        );
    }
    // Who asks counts, and where.
    let far = at(Family::V4.far(1), 443).to_string();
    is(
        one(&explain(&lab, &[&far, "--from", "198.51.100.9"])?),
        &json!({ "reason": "foreign_source", "admitted": null, "source": "198.51.100.9" }),
    );
    is(
        one(&explain(&lab, &[&far, "--from", "10.77.0.99"])?),
        &json!({ "reason": "tcp_opened", "admitted": "10.77.0.0/24", "source": "10.77.0.99" }),
    );
    // An edit holds at once; of two prefixes the longer one.
    lab.bypass(&["add", "203.0.113.0/24", "--comment", "all of it"])?;
    lab.bypass(&["add", "203.0.113.0/30", "--ttl", "1h"])?;
    is(
        one(&explain(&lab, &["203.0.113.1"])?),
        &json!({ "bypass.prefix": "203.0.113.0/30", "bypass.origin": "command" }),
    );
    let text = lab.tproxy_run(&["explain", "203.0.113.9"])?.ok()?.stdout;
    ensure!(
        text.contains("203.0.113.0/24") && text.contains("all of it"),
        "{text}"
    );
    Ok(())
}

#[test]
fn rules_are_told_with_the_outbound() -> Result<()> {
    let lab = Lab::new()?;
    let _proxy = run_on_lan(&lab, RULES)?;
    let rule = |place: u64, name: &str, outbound: &str| json!({ "place": place, "name": name, "outbound": outbound });
    for family in Family::BOTH {
        let to = |n: u8, port: u16| at(family.far(n), port).to_string();
        let by_port = explain(&lab, &[&to(1, 25)])?;
        is(
            one(&by_port),
            &json!({
                "proxy.says.rule": rule(2, "mail", "fast"), "proxy.says.outbound.name": "fast",
                "proxy.says.outbound.servers": ["198.51.100.1:1080"],
                "proxy.says.turned_by_name": [], "proxy.says.resolver": null,
            }),
        );
        ensure!(!by_port.to_string().contains("secret"), "{by_port:#}");
        is(
            one(&explain(&lab, &[&to(2, 443)])?),
            &json!({ "proxy.says.rule": rule(3, "near", "fast") }),
        );
        let default = json!({ "proxy.says.rule": null, "proxy.says.outbound.name": "slow" });
        is(one(&explain(&lab, &[&to(2, 443), "--udp"])?), &default);
        let unnamed = explain(&lab, &[&to(1, 443)])?;
        is(one(&unnamed), &default);
        is(
            one(&unnamed),
            &json!({
                "proxy.says.reads_name": true,
                "proxy.says.turned_by_name": [rule(1, "video", "fast")],
            }),
        );
        is(
            one(&explain(&lab, &[&to(1, 443), "--name", "WWW.Host.Lab"])?),
            &json!({ "proxy.says.rule": rule(1, "video", "fast"), "proxy.says.turned_by_name": [] }),
        );
    }
    let text = |args: &[&str]| -> Result<String> {
        let args = [&["explain"], args].concat();
        Ok(lab.tproxy_run(&args)?.ok()?.stdout)
    };
    let said = text(&["203.0.113.1:443"])?;
    for words in [
        "1. arrives on lan0 from 10.77.0.",
        "(admitted: 10.77.0.0/24)",
        "2. not bypassed",
        "3. steered to the proxy",
        "4. no rule is about it → outbound \"slow\" (direct://), the default",
        "5. a name could change it (--name): rule 1 \"video\"",
    ] {
        ensure!(said.contains(words), "no {words:?} in\n{said}");
    }
    let said = text(&["203.0.113.1:25"])?;
    let words = "4. rule 2 \"mail\" → outbound \"fast\" (socks5://";
    ensure!(said.contains(words) && !said.contains("secret"), "{said}");
    Ok(())
}

#[test]
fn names_are_looked_up_as_devices_do() -> Result<()> {
    let lab = Lab::new()?;
    let _dnsmasq = Dnsmasq::start(&lab.internet)?;
    let server = Family::V4.far(3);
    let dns = format!(
        "[dns]\ndirect = [\"{server}\"]\nproxy = [\"{server}\"]\ndirect_domains = [\"host.lab\"]\n"
    );
    let _proxy = run_on_lan(&lab, &format!("{RULES}{dns}"))?;
    let said = explain(&lab, &["host.lab"])?;
    is(
        &said,
        &json!({ "name": "host.lab", "destination": "host.lab:443", "looked_up.by": "proxy" }),
    );
    let packets = said["packets"].as_array().context("packets")?;
    let to: Vec<_> = packets
        .iter()
        .map(|packet| packet["destination"].clone())
        .collect();
    let far = Family::BOTH.map(|family| json!(at(family.far(1), 443).to_string()));
    assert_eq!(to, far, "{said:#}");
    for packet in packets {
        is(
            packet,
            &json!({ "reason": "tcp_opened", "proxy.says.rule.name": "video" }),
        );
    }
    // With --from only what that one can reach.
    let said = explain(&lab, &["host.lab", "--from", "10.77.0.2"])?;
    is(one(&said), &json!({ "destination": far[0] }));
    assert_eq!(
        said["left_out"].as_array().map(Vec::len),
        Some(1),
        "{said:#}"
    );

    // Questions to anybody are answered by the resolver.
    for (args, group) in [
        (
            &["203.0.113.9:53", "--udp", "--name", "a.host.lab"][..],
            json!("direct"),
        ),
        (
            &["[2001:db8:f::9]:53", "--name", "other.lab"],
            json!("proxy"),
        ),
        (&["10.77.0.1:53", "--udp"], Value::Null),
    ] {
        is(
            one(&explain(&lab, args)?),
            &json!({ "verdict": "steer", "reason": "dns_steered", "proxy.says.resolver.group": group }),
        );
    }
    lab.refused(
        &["explain", "nowhere.invalid"],
        1,
        &["nowhere.invalid", "no DNS server", "[dns]"],
    )?;
    Ok(())
}

#[test]
fn with_no_proxy_the_kernel_half_is_explained() -> Result<()> {
    let lab = Lab::new()?;
    lab.tproxy_run(&["attach", "lan0"])?.ok()?;
    let no_proxy = json!({ "proxy.pid": null, "proxy.says": null, "proxy.error": null });
    for family in Family::BOTH {
        for udp in [false, true] {
            let args: &[&str] = if udp { &["--udp"] } else { &[] };
            let target = at(family.far(1), 7);
            let said = if udp {
                as_explained(&lab, &lab.device, args, target)?
            } else {
                explain(&lab, &[&target.to_string()])?
            };
            is(one(&said), &no_proxy);
            is(
                one(&said),
                &json!({ "verdict": "pass", "reason": "down_passed" }),
            );
        }
    }
    lab.tproxy_run(&["detach"])?.ok()?;
    lab.tproxy_run(&["attach", "lan0", "--on-proxy-down", "drop"])?
        .ok()?;
    let said = as_explained(&lab, &lab.device, &["--udp"], at(Family::V4.far(1), 7))?;
    is(
        one(&said),
        &json!({ "verdict": "drop", "reason": "down_dropped", "on_proxy_down": "drop" }),
    );
    let text = lab.tproxy_run(&["explain", "203.0.113.1"])?.ok()?.stdout;
    ensure!(
        text.contains("3. dropped") && text.contains("on_proxy_down"),
        "{text}"
    );
    lab.tproxy_run(&["detach"])?.ok()?;

    // A killed one is none.
    let proxy = run_on_lan(&lab, RULES)?;
    is(
        one(&explain(&lab, &["203.0.113.1"])?),
        &json!({ "verdict": "steer" }),
    );
    proxy.kill9();
    is(
        one(&explain(&lab, &["203.0.113.1"])?),
        &json!({ "reason": "down_passed" }),
    );
    Ok(())
}

#[test]
fn the_gateways_own_traffic_is_explained() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = TcpEcho::start(&lab.internet, 7)?;
    let links = "[lan]\ninterfaces = [\"lan0\"]\n[wan]\ninterfaces = [\"default\"]";
    let _proxy = run(&lab, "", links, RULES)?;
    for family in Family::BOTH {
        for udp in [false, true] {
            let mut args = vec!["--from", "gateway"];
            args.extend(udp.then_some("--udp"));
            let said = as_explained(&lab, &lab.gateway, &args, at(family.far(1), 7))?;
            let own = family.gateway_wan().to_string();
            is(
                one(&said),
                &json!({
                    "verdict": "steer", "own": true, "link": "wan0", "source": own,
                    "reason": if udp { "udp_steered" } else { "tcp_opened" },
                    "proxy.says.outbound.name": "slow", "may_be_exempt": false,
                }),
            );
        }
        let own = family.gateway_wan().to_string();
        let far = at(family.far(17), 443).to_string();
        is(
            one(&explain(&lab, &[&far, "--from", &own])?),
            &json!({ "own": true, "reason": "bypassed", "link": "wan0" }),
        );
        let neighbour = at(family.internet(), 443).to_string();
        is(
            one(&explain(&lab, &[&neighbour, "--on", "wan0"])?),
            &json!({ "own": true, "reason": "own_subnet" }),
        );
        // The LAN's own devices are not reached by the WAN link.
        let device = at(family.device(), 22).to_string();
        is(
            one(&explain(&lab, &[&device, "--from", "gateway"])?),
            &json!({ "own": true, "reason": null, "verdict": "pass", "link": "lan0" }),
        );
    }
    lab.tproxy_run(&["exempt", "add", "--mark", "0x100"])?
        .ok()?;
    is(
        one(&explain(&lab, &["203.0.113.1", "--from", "gateway"])?),
        &json!({ "may_be_exempt": true }),
    );
    Ok(())
}

/// All that a user can see of a gateway, but for what machines tell their neighbours by themselves.
#[test]
fn nothing_is_counted_and_nothing_is_left() -> Result<()> {
    let lab = Lab::builder().alone().build()?;
    let links = "[lan]\ninterfaces = [\"lan0\"]\n[wan]\ninterfaces = [\"default\"]";
    let _proxy = run(&lab, "", links, RULES)?;
    lab.bypass(&["add", "203.0.113.5", "--comment", "stays"])?;
    let counters = || -> Result<_> {
        let mut counters = lab.counters()?;
        let neighbours = ["not_ip", "other_protocol", "multicast"];
        counters.retain(|counter| !neighbours.contains(&&*counter.reason));
        Ok(counters)
    };
    let seen = || -> Result<_> {
        let hits = lab.bypass(&["list", "--hits", "--json"])?.stdout;
        let traffic = lab.proxy_traffic()?.to_string();
        Ok((counters()?, hits, traffic, pins(&lab)?))
    };
    let (before, gateway) = (seen()?, Snapshot::take(&lab)?);
    for args in [
        &["203.0.113.1"][..],
        &["203.0.113.5"],
        &["203.0.113.17:53", "--udp"],
        &["2001:db8:f::1"],
        &["10.77.0.1"],
        &["203.0.113.1", "--from", "192.0.2.1"],
        &["203.0.113.5", "--from", "gateway", "--udp"],
    ] {
        explain(&lab, args)?;
    }
    assert_eq!(before, seen()?);
    lab.restored(&gateway)
}

fn pins(lab: &Lab) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(lab.pins())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// On such a link a packet has no header for it, and a bridge has an address of its own.
#[test]
fn every_kind_of_link_is_explained() -> Result<()> {
    for lan in [Lan::Tun, Lan::Bridge] {
        let Some(lab) = or_skip(Lab::builder().lan(lan).build())? else {
            continue;
        };
        let _proxy = run_on_lan(&lab, RULES)?;
        for family in Family::BOTH {
            let said = explain(&lab, &[&at(family.far(1), 443).to_string()])?;
            is(
                one(&said),
                &json!({ "reason": "tcp_opened", "link": lab.lan() }),
            );
            let said = as_explained(&lab, &lab.device, &["--udp"], at(family.far(17), 7))?;
            is(one(&said), &json!({ "reason": "bypassed" }));
        }
    }
    Ok(())
}

#[test]
fn what_cannot_be_explained_is_told() -> Result<()> {
    let lab = Lab::builder().second_lan().build()?;
    lab.refused(&["explain", "203.0.113.1"], 1, &["nothing is attached"])?;
    for (args, words) in [
        (&["explain"][..], "DEST"),
        (&["explain", "https://host.lab/"], "only the host"),
        (&["explain", "203.0.113.1:http"], "not a port"),
        (&["explain", "203.0.113"], "no IPv4 address"),
        (&["explain", "203.0.113.1", "--from", "me"], "gateway"),
        (
            &["explain", "203.0.113.1", "--from", "2001:db8::1"],
            "other family",
        ),
        (&["explain", "203.0.113.1", "--name", "a b"], "--name"),
    ] {
        lab.refused(args, 2, &[words, "--help"])?;
    }
    lab.tproxy_run(&["attach", "lan0", "lan1"])?.ok()?;
    lab.refused(
        &["explain", "203.0.113.1", "--on", "eth9"],
        1,
        &["eth9", "lan0, lan1"],
    )?;
    is(
        one(&explain(&lab, &["203.0.113.1", "--on", "lan1"])?),
        &json!({ "link": "lan1", "admitted": "10.78.0.0/24" }),
    );
    is(
        one(&explain(&lab, &["203.0.113.1", "--from", "10.78.0.2"])?),
        &json!({ "link": "lan1" }),
    );
    is(
        one(&explain(
            &lab,
            &["203.0.113.1", "--from", "10.78.0.2", "--on", "lan0"],
        )?),
        &json!({ "link": "lan0", "reason": "foreign_source" }),
    );
    is(
        one(&explain(&lab, &["203.0.113.1", "--from", "gateway"])?),
        &json!({ "own": true, "reason": null, "verdict": "pass", "link": "wan0" }),
    );
    Ok(())
}

#[test]
fn a_stranger_may_not_look() -> Result<()> {
    let lab = Lab::new()?;
    lab.tproxy_run(&["attach", "lan0"])?.ok()?;
    // Where anybody may run it.
    let binary = lab.dir().join("tproxy-bpf");
    fs::copy(lab::gateway::binary()?, &binary)?;
    let binary = binary
        .to_str()
        .context("the path of the lab is not UTF-8")?;
    let output = lab.gateway.try_run(&[
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        binary,
        "explain",
        "203.0.113.1",
    ])?;
    assert_eq!(output.code(), Some(1), "{output:?}");
    ensure!(output.stderr.contains("root"), "{}", output.stderr);
    Ok(())
}
