//! What tproxy-bpf does to the machine beside steering: masquerading, forwarding, redirects; and what
//! `doctor` says of it.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Far, Lab, Namespace, Snapshot, Tproxy, Wire,
    ways::{nft_packets, soon},
};
use serde_json::Value;

/// A proxy that nobody answers, so what comes through went direct.
const NOWHERE: &str = "[[outbound]]\nname = \"none\"\nurl = \"socks5://192.0.2.99:1080\"\n\
                       [bypass]\nprefixes = [\"203.0.113.0/24\", \"2001:db8:f::/64\"]\n";
const TABLE: [&str; 5] = ["nft", "list", "table", "inet", "tproxy_bpf"];

/// Writes a configuration and returns its path.
fn config(lab: &Lab, lan: &str, gateway: &str) -> Result<String> {
    let path = lab.dir().join("config.toml");
    let text = format!("[lan]\ninterfaces = [\"{lan}\"]\n[gateway]\n{gateway}\n{NOWHERE}");
    fs::write(&path, text)?;
    Ok(path.to_string_lossy().into_owned())
}

fn run(lab: &Lab, gateway: &str) -> Result<Tproxy> {
    lab.tproxy(&["run", "-c", &config(lab, lab.lan(), gateway)?])
}

/// The internet does not know the device: no answer comes.
fn fails(from: &Namespace, server: IpAddr) -> Result<()> {
    let target = SocketAddr::new(server, 80);
    let connected =
        from.enter(|| TcpStream::connect_timeout(&target, Duration::from_millis(300)).map(drop))?;
    let error = connected.expect_err("there is no way back");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
    Ok(())
}

/// What a module brings when it is first loaded (sysctls of conntrack) is not for detach to remove.
fn load_nat(ns: &Namespace) -> Result<()> {
    ns.run(&[
        "nft",
        "add table inet warm; add chain inet warm c { type nat hook postrouting priority 100; }; \
         add rule inet warm c masquerade; delete table inet warm",
    ])?;
    Ok(())
}

/// The device has unique local addresses (RFC 4193) instead of global ones.
fn local_addresses(lab: &Lab) -> Result<()> {
    let device = Family::V6.device();
    lab.gateway.ip(&["addr add fd77::1/64 dev lan0 nodad"])?;
    lab.device.ip(&[
        &format!("addr del {device}/64 dev eth0"),
        "addr add fd77::2/64 dev eth0 nodad",
        "route replace ::/0 via fd77::1",
    ])
}

fn masqueraded(lab: &Lab, far: &Far, family: Family) -> Result<()> {
    far.sees(family.gateway_wan(), &lab.device, family.far(1))
}

#[test]
fn bypassed_devices_get_answers_only_if_masqueraded() -> Result<()> {
    let lab = Lab::builder().no_way_back().build()?;
    local_addresses(&lab)?;
    let far = Far::start(&lab)?;
    let wire = Wire::tap(&lab)?;

    let proxy = run(&lab, "")?;
    for family in Family::BOTH {
        fails(&lab.device, family.far(1))?;
    }
    ensure!(wire.packets()? > 0, "the device's packets did not arrive");
    proxy.stop()?;

    let sent = wire.packets()?;
    let proxy = run(&lab, "masquerade = true")?;
    for family in Family::BOTH {
        // An IPv6 address answers its neighbours a moment after it is there.
        soon("answers", || masqueraded(&lab, &far, family))?;
    }
    assert_eq!(lab.status()?["counts"]["steered_packets"], 0);
    assert_eq!(wire.packets()?, sent, "something left untranslated");
    proxy.stop()
}

/// Masquerading has the kernel track connections, those to the proxy too.
#[test]
fn what_is_proxied_goes_on_beside_masquerading() -> Result<()> {
    let lab = Lab::builder().no_way_back().build()?;
    let far = Far::start(&lab)?;
    let path = lab.dir().join("proxied.toml");
    fs::write(
        &path,
        "[lan]\ninterfaces = [\"lan0\"]\n[gateway]\nmasquerade = true\n",
    )?;
    let _proxy = lab.tproxy(&["run", "-c", &path.to_string_lossy()])?;
    far.sees_proxy(&lab)?;
    let steered = lab.status()?["counts"]["steered_packets"].as_u64();
    ensure!(steered > Some(10), "{steered:?} packets were steered");
    // And what was proxied is masqueraded from the next connection on.
    lab.bypass(&["add", "203.0.113.0/24"])?;
    masqueraded(&lab, &far, Family::V4)?;
    ensure!(lab.packets("bypassed")? > 0, "it was not bypassed");
    Ok(())
}

#[test]
fn global_ipv6_addresses_are_left_as_they_are() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let _proxy = run(&lab, "masquerade = true")?;
    masqueraded(&lab, &far, Family::V4)?;
    let v6 = Family::V6;
    far.sees(v6.device(), &lab.device, v6.far(1))
}

#[test]
fn a_port_of_a_bridge_is_masqueraded_too() -> Result<()> {
    let lab = Lab::builder().lan(lab::Lan::Bridge).no_way_back().build()?;
    let far = Far::start(&lab)?;
    let _proxy = lab.tproxy(&["run", "-c", &config(&lab, "lan0", "masquerade = true")?])?;
    masqueraded(&lab, &far, Family::V4)
}

#[test]
fn masquerading_comes_and_goes_without_a_trace() -> Result<()> {
    let lab = Lab::builder().no_way_back().build()?;
    let far = Far::start(&lab)?;
    load_nat(&lab.gateway)?;
    let before = Snapshot::take(&lab)?;
    let works = || masqueraded(&lab, &far, Family::V4);

    let proxy = run(&lab, "masquerade = true")?;
    works()?;
    let shown = Snapshot::take(&lab)?.since(&before);
    ensure!(
        shown.iter().any(|line| line.contains("masquerade")),
        "the snapshot does not show it: {shown:?}"
    );
    proxy.stop()?;
    lab.restored(&before).context("after SIGTERM")?;
    fails(&lab.device, Family::V4.far(1))?;

    run(&lab, "masquerade = true")?.kill9();
    works()?;
    lab.tproxy_run(&["detach"])?.ok()?;
    lab.restored(&before).context("after kill -9 and detach")?;

    run(&lab, "masquerade = true")?.kill9();
    run(&lab, "masquerade = true")?.stop()?;
    lab.restored(&before).context("after kill -9 and a run")?;

    run(&lab, "masquerade = true")?.kill9();
    let proxy = run(&lab, "")?;
    fails(&lab.device, Family::V4.far(1)).context("a run that does not masquerade")?;
    proxy.stop()?;
    lab.restored(&before)?;

    // The file it is remembered in is enough.
    run(&lab, "masquerade = true")?.kill9();
    lab.gateway.run(&["nft", "flush", "ruleset"])?;
    lab.tproxy_run(&["detach"])?.ok()?;
    lab.restored(&before).context("flushed by somebody else")
}

#[test]
fn attach_masquerades_until_the_last_link_is_detached() -> Result<()> {
    let lab = Lab::builder().no_way_back().second_lan().build()?;
    let far = Far::start(&lab)?;
    load_nat(&lab.gateway)?;
    lab.gateway.sysctl(&[("net/ipv4/ip_forward", "0")])?;
    let before = Snapshot::take(&lab)?;
    let config = config(&lab, "lan0", "forward = true\nmasquerade = true")?;
    lab.tproxy_run(&["attach", "-c", &config, "lan0"])?.ok()?;
    masqueraded(&lab, &far, Family::V4)?;
    let device2 = lab.device2.as_ref().context("a second device")?;
    fails(device2, Family::V4.far(1))?;

    // Without -c what is there stays, and the new link has its part in it.
    lab.tproxy_run(&["attach", "lan1"])?.ok()?;
    let v4 = Family::V4;
    far.sees(v4.gateway_wan(), device2, v4.far(1))?;
    lab.tproxy_run(&["detach", "lan0"])?.ok()?;
    fails(&lab.device, v4.far(2))?;
    far.sees(v4.gateway_wan(), device2, v4.far(1))?;
    lab.tproxy_run(&["detach", "lan1"])?.ok()?;
    lab.restored(&before)
}

#[test]
fn masquerading_follows_links_and_default_routes() -> Result<()> {
    let lab = Lab::new()?;
    let config = config(&lab, "lan*", "masquerade = true")?;
    let _proxy = lab.tproxy(&["run", "-c", &config])?;
    let table = |what: &str, yes: &[&str], no: &[&str]| {
        soon(what, || {
            let text = lab.gateway.run(&TABLE)?.stdout;
            for word in yes {
                ensure!(text.contains(word), "no {word} in {text}");
            }
            for word in no {
                ensure!(!text.contains(word), "{word} in {text}");
            }
            Ok(())
        })
    };
    table("the table", &["\"lan0\"", "\"wan0\""], &["lan9", "wan9"])?;
    lab.gateway.ip(&[
        "link add lan9 type veth peer name wan9",
        "link set lan9 up",
        "link set wan9 up",
    ])?;
    table(
        "a new link",
        &["\"lan0\"", "\"lan9\"", "\"wan0\""],
        &["wan9"],
    )?;
    lab.gateway.ip(&["route add default dev wan9 metric 50"])?;
    table("a second way out", &["\"wan0\"", "\"wan9\""], &[])?;
    lab.gateway.ip(&["link del lan9"])?;
    table(
        "a link that went",
        &["\"lan0\"", "\"wan0\""],
        &["lan9", "wan9"],
    )?;
    lab.gateway.ip(&["route del default", "route del ::/0"])?;
    table("no way out", &["postrouting"], &["masquerade"])?;
    lab.gateway.run(&["nft", "flush", "ruleset"])?;
    let router = Family::V4.internet();
    lab.gateway
        .ip(&[&format!("route add default via {router}")])?;
    table("the way out again", &["\"lan0\"", "\"wan0\""], &[])
}

#[test]
fn what_cannot_be_masqueraded_is_refused_and_nothing_is_left() -> Result<()> {
    let lab = Lab::new()?;
    let config = config(&lab, "lan0", "masquerade = true")?;
    load_nat(&lab.gateway)?;
    let verbs: [&[&str]; 2] = [&["run", "-c", &config], &["attach", "-c", &config, "lan0"]];

    let before = Snapshot::take(&lab)?;
    for verb in verbs {
        let mut command = lab.tproxy_command(verb)?;
        command.env("PATH", "/nowhere");
        let output = lab::process::run(command, Duration::from_mins(1))?;
        assert_eq!(output.code(), Some(1), "{output:?}");
        ensure!(
            output.stderr.contains("install the package nftables"),
            "{output:?}"
        );
        lab.restored(&before).context("without nft")?;
    }
    // Who does not ask for it needs no nft.
    let mut command = lab.tproxy_command(&["run", "--lan", "lan0"])?;
    command.env("PATH", "/nowhere");
    Lab::tproxy_by(command)?.stop()?;
    lab.restored(&before)
        .context("without nft and masquerading")?;

    lab.gateway
        .run(&["nft", "add", "table", "inet", "tproxy_bpf"])?;
    let theirs = Snapshot::take(&lab)?;
    for verb in verbs {
        lab.refused(verb, 1, &["inet tproxy_bpf", "nft delete table"])?;
        lab.restored(&theirs).context("a table of somebody else")?;
    }
    lab.tproxy_run(&["detach"])?.ok()?;
    lab.restored(&theirs)
        .context("detach and a table of somebody else")
}

/// Counts the redirects that come to a machine.
fn count_redirects(ns: &Namespace) -> Result<()> {
    ns.run(&[
        "nft",
        "add table ip redirects; add counter ip redirects seen; \
         add chain ip redirects in { type filter hook input priority 0; }; \
         add rule ip redirects in icmp type redirect counter name seen drop",
    ])?;
    Ok(())
}

fn redirects_seen(ns: &Namespace) -> Result<u64> {
    nft_packets(ns, ["ip", "redirects"])
}

/// The neighbour's default route is the gateway, which forwards by the link that its packets came by.
#[test]
fn a_one_armed_gateway_masquerades_and_sends_no_redirects() -> Result<()> {
    let lab = Lab::builder().neighbour().build()?;
    let far = Far::start(&lab)?;
    let device = lab.neighbour.as_ref().context("a neighbour")?;
    count_redirects(device)?;
    load_nat(&lab.gateway)?;
    let v4 = Family::V4;
    let before = Snapshot::take(&lab)?;
    let sends = |name: &str| -> Result<String> {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/send_redirects");
        let value = lab.gateway.enter(|| fs::read_to_string(&path))??;
        Ok(value.trim().to_owned())
    };

    let neither = config(&lab, "wan0", "")?;
    let proxy = lab.tproxy(&["run", "-c", &neither])?;
    far.sees(v4.neighbour(), device, v4.far(1))?;
    ensure!(redirects_seen(device)? > 0, "this lab makes no redirects");
    assert_eq!(severity(&doctor(&lab, &[], 0)?, "redirects"), "hint");
    proxy.stop()?;
    lab.restored(&before)?;

    let forward = config(&lab, "wan0", "forward = true")?;
    let proxy = lab.tproxy(&["run", "-c", &forward])?;
    let seen = redirects_seen(device)?;
    far.sees(v4.neighbour(), device, v4.far(2))?;
    assert_eq!(
        redirects_seen(device)?,
        seen,
        "devices are told to go round the gateway"
    );
    proxy.stop()?;
    lab.restored(&before)?;

    let both = config(&lab, "wan0", "masquerade = true\nforward = true")?;
    let proxy = lab.tproxy(&["run", "-c", &both])?;
    let seen = redirects_seen(device)?;
    far.sees(v4.gateway_wan(), device, v4.far(2))?;
    assert_eq!(
        redirects_seen(device)?,
        seen,
        "devices are told to go round the gateway"
    );
    assert_eq!(severity(&doctor(&lab, &[], 0)?, "redirects"), "ok");
    assert_eq!(
        [sends("all")?, sends("wan0")?, sends("lan0")?],
        ["0", "0", "1"]
    );

    // With another way out there is no reason any more.
    lab.gateway.ip(&["route del default", "route del ::/0"])?;
    soon("the redirects", || {
        ensure!(
            sends("all")? == "1" && sends("wan0")? == "1",
            "they are off"
        );
        Ok(())
    })?;
    lab.gateway.ip(&[
        &format!("route add default via {}", v4.internet()),
        &format!("route add ::/0 via {}", Family::V6.internet()),
    ])?;
    soon("no redirects", || {
        ensure!(sends("all")? == "0" && sends("wan0")? == "0", "they are on");
        Ok(())
    })?;
    proxy.kill9();
    lab.tproxy_run(&["detach"])?.ok()?;
    lab.restored(&before)
}

/// What `doctor` finds, which must end with this exit code.
fn doctor(lab: &Lab, args: &[&str], code: i32) -> Result<Vec<Value>> {
    let output = lab.tproxy_run(&[&["doctor", "--json"], args].concat())?;
    ensure!(output.code() == Some(code), "{output:?}");
    let report: Value = output.json()?;
    let findings = report["findings"].as_array().context("findings")?.clone();
    let problems = findings.iter().filter(|f| f["severity"] == "problem");
    assert_eq!(report["problems"], problems.count());
    Ok(findings)
}

fn severity<'f>(findings: &'f [Value], check: &str) -> &'f str {
    let finding = findings.iter().find(|finding| finding["check"] == check);
    finding
        .and_then(|finding| finding["severity"].as_str())
        .unwrap_or("none")
}

fn problems(findings: &[Value]) -> Vec<&str> {
    let bad = findings
        .iter()
        .filter(|finding| finding["severity"] == "problem");
    bad.filter_map(|finding| finding["check"].as_str())
        .collect()
}

#[test]
fn doctor_finds_what_is_missing_until_it_is_there() -> Result<()> {
    let lab = Lab::builder().no_way_back().build()?;
    load_nat(&lab.gateway)?;
    lab.gateway.sysctl(&[
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv6/conf/all/forwarding", "0"),
    ])?;
    let before = Snapshot::take(&lab)?;
    let lan = ["--lan", "lan0"];
    let missing = ["forwarding", "forwarding, IPv6", "translation"];
    assert_eq!(problems(&doctor(&lab, &lan, 1)?), missing);
    local_addresses(&lab)?;
    let with_local = [&missing[..], &["translation, IPv6"]].concat();
    assert_eq!(problems(&doctor(&lab, &lan, 1)?), with_local);
    let text = lab.tproxy_run(&["doctor", "--lan", "lan0"])?.stdout;
    for words in [
        "PROBLEM",
        "`[gateway] forward = true`",
        "`[gateway] masquerade = true`",
        "4 problems",
    ] {
        ensure!(text.contains(words), "no {words} in {text}");
    }

    // A configuration that will see to it, and one that does.
    let config = config(&lab, "lan0", "forward = true\nmasquerade = true")?;
    assert_eq!(problems(&doctor(&lab, &["-c", &config], 0)?), [""; 0]);
    lab.gateway.ip(&["addr del fd77::1/64 dev lan0"])?;
    lab.restored(&before).context("doctor changed something")?;
    let proxy = lab.tproxy(&["run", "-c", &config])?;
    assert_eq!(problems(&doctor(&lab, &[], 0)?), [""; 0]);
    lab.gateway.run(&["nft", "flush", "ruleset"])?;
    assert_eq!(problems(&doctor(&lab, &[], 1)?), ["translation"]);
    proxy.stop()?;
    assert_eq!(problems(&doctor(&lab, &lan, 1)?), missing);

    // The remedy that it names, word by word.
    let findings = doctor(&lab, &lan, 1)?;
    let translation = findings.iter().find(|f| f["check"] == "translation");
    let remedy = translation
        .and_then(|f| f["remedy"].as_str())
        .context("a remedy")?;
    let command = remedy.split('\'').nth(1).context("a command")?;
    lab.gateway.run(&["nft", command])?;
    assert_eq!(problems(&doctor(&lab, &lan, 1)?), missing[..2]);

    ensure!(lab.tproxy_run(&["doctor", "--lan", "lan7"])?.code() == Some(1));
    let wrong = doctor(&lab, &["--lan", "lan7"], 1)?;
    assert_eq!(severity(&wrong, "LAN links"), "problem");
    Ok(())
}
