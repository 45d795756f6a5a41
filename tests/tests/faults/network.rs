//! The network around the program fails or is changed by others: links, addresses, filters, rules.

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Lab, Process, Snapshot,
    faults::{Policy, Row, Scene, Seen, Sight, Trickle, moves, whole},
    foreign::{Foreign, Place, Says},
    traffic,
    wait::{SOON, until},
    ways::soon,
};
use nix::sys::signal::Signal;
use tproxy_userspace::control::preflight::KernelVersion;

const PART: &str = "Links, addresses, rules of others";

fn serves(scene: &Scene) -> Result<()> {
    scene.look(Sight::all(Seen::Proxied)).map(drop)
}

/// What is there is what was there before, but for what the test itself did.
fn nothing_new(scene: &Scene) -> Result<()> {
    soon("nothing to be left", || {
        let now = Snapshot::take(&scene.lab)?.since(&scene.before);
        // Links that were made anew have another number.
        let left: Vec<_> = now.into_iter().filter(|line| is_ours(line)).collect();
        ensure!(left.is_empty(), "{left:#?}");
        Ok(())
    })
}

fn is_ours(line: &str) -> bool {
    let added = line.starts_with('+');
    let kinds = [
        "rule", "qdisc", "filter", "attached", "file", "cgroup", "sysctl",
    ];
    added
        && kinds
            .iter()
            .any(|kind| line[2..].starts_with(kind) && !line.contains("noqueue"))
        && !line.contains("/conf/lan0/")
        && !line.contains("/neigh/lan0/")
}

fn lan_link_made_anew(policy: Policy) -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let lab = &scene.lab;
    let mut process = scene.run(&scene.write(policy, "")?, None)?;
    let held = scene.streams()?;
    let trickle = Trickle::start(lab)?;
    lab.gateway.ip(&["link del lan0"])?;
    until("the link to be given up", SOON, || {
        let links = lab.attached_links()?;
        Ok((!links.iter().any(|name| name == "lan0")).then_some(()))
    })?;
    lab.gateway.ip(&[&format!(
        "link add lan0 type veth peer name eth0 netns {}",
        lab.device.name()
    )])?;
    until("the link to be attached", SOON, || {
        let links = lab.attached_links()?;
        Ok(links.iter().any(|name| name == "lan0").then_some(()))
    })?;
    lab.gateway.ip(&["link set lan0 up"])?;
    lab.device.ip(&["link set eth0 up"])?;
    for (family, length, default) in [(Family::V4, 24, "default"), (Family::V6, 64, "::/0")] {
        let (device, gateway) = (family.device(), family.gateway_lan());
        lab.gateway
            .ip(&[&format!("addr replace {gateway}/{length} dev lan0")])?;
        lab.device.ip(&[
            &format!("addr replace {device}/{length} dev eth0"),
            &format!("route replace {default} via {gateway}"),
        ])?;
    }
    soon("the gateway to answer on the new link", || {
        let target = lab::probe::at(Family::V6.gateway_lan(), 22);
        traffic::echo_line(&lab.device, target)
    })?;
    let expected = Sight::all(Seen::Proxied);
    // Netlink tells of the addresses a moment after they are there, and until then a source that they vouch for is foreign.
    soon("the addresses to be known", || {
        scene.look(expected).map(drop)
    })?;
    let row = Row::new(PART, 0, "the LAN link is removed and made anew", policy);
    let (row, _) = scene.observe(row, expected)?;
    drop(trickle);
    held.iter().try_for_each(moves)?;
    drop(held);
    process.stop(2 * SOON)?;
    nothing_new(&scene)?;
    row.then("connections of before go on; what comes before the link and its addresses are known is forwarded")
        .left("nothing")
}

fn other_wan_address(policy: Policy) -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let lab = &scene.lab;
    let mut process = scene.run(&scene.write(policy, "")?, None)?;
    let held = scene.streams()?;
    let trickle = Trickle::start(lab)?;
    let meanwhile = scene.wan()?;
    let renumber = |to: [&str; 2], from: [String; 2]| -> Result<()> {
        let [v4, v6] = to;
        let via = Family::BOTH.map(Family::internet);
        lab.gateway.ip(&[
            "route del default",
            "route del ::/0",
            &format!("addr del {}/24 dev wan0", from[0]),
            &format!("addr del {}/64 dev wan0", from[1]),
            &format!("addr add {v4}/24 dev wan0"),
            &format!("addr add {v6}/64 dev wan0 nodad"),
            &format!("route add default via {}", via[0]),
            &format!("route add ::/0 via {}", via[1]),
        ])?;
        lab.internet.ip(&[
            &format!("route replace 10.76.0.0/14 via {v4}"),
            &format!("route replace 2001:db8:77::/64 via {v6}"),
            &format!("route replace 2001:db8:78::/64 via {v6}"),
        ])
    };
    let before = Family::BOTH.map(|family| family.gateway_wan().to_string());
    renumber(["192.0.2.9", "2001:db8:2::9"], before.clone())?;
    let row = Row::new(
        PART,
        1,
        "the WAN address and the default route change",
        policy,
    );
    let expected = Sight::all(Seen::Proxied);
    // The gateway's own traffic is known by its addresses.
    soon("the addresses to be known", || {
        scene.look_out(expected).map(drop)
    })?;
    meanwhile.nothing_of_devices()?;
    let wan = scene.wan()?;
    scene.look_out(expected)?;
    let row = row.seen(expected, wan.leaves_as(expected)?);
    drop(trickle);
    // They are from an address that is no more; what the kernel does is the same without a proxy.
    drop(held);
    let [v4, v6] = &before;
    renumber(
        [v4, v6],
        ["192.0.2.9".to_owned(), "2001:db8:2::9".to_owned()],
    )?;
    soon("the old addresses to be known again", || serves(&scene))?;
    process.stop(2 * SOON)?;
    row.then("connections of before end, as without a proxy")
        .left(scene.clean()?)
}

fn programs_of_others(policy: Policy) -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let gateway = &scene.lab.gateway;
    let mut process = scene.run(&scene.write(policy, "")?, None)?;
    let drops = Foreign::load(&scene.lab, "drops", Says::Drop)?;
    for (index, place) in [Place::First, Place::Last].into_iter().enumerate() {
        let link = drops.tcx(gateway, "lan0", place)?;
        let word = ["before", "behind"][index];
        let row = Row::new(
            PART,
            2 + index,
            format!("another program {word} ours drops all"),
            policy,
        );
        let wan = scene.wan()?;
        // Even the gateway's own addresses are not reached: their program, not ours, says so.
        let expected = Sight::device(Seen::Nothing);
        scene.look_out(expected)?;
        let leaves = wan.leaves_as(expected)?;
        drop(link);
        serves(&scene)?;
        row.seen(expected, leaves)
            .then("proxied again when it goes")
            .left("nothing")?;
    }
    process.stop(2 * SOON)?;
    scene.clean().map(drop)
}

/// Everything of netfilter goes, ours and that of others.
fn flushed(policy: Policy) -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let more = "[bypass]\nprefixes = [\"203.0.113.4/32\"]\n[gateway]\nmasquerade = true\n";
    let mut process = scene.run(&scene.write(policy, more)?, None)?;
    let held = scene.streams()?;
    let wan = scene.wan()?;
    let ours = || -> Result<bool> {
        let list = scene.lab.gateway.run(&["nft", "list", "tables"])?;
        Ok(list.stdout.contains("inet tproxy_bpf"))
    };
    ensure!(ours()?, "nothing is masqueraded");
    scene.lab.gateway.run(&["nft", "flush", "ruleset"])?;
    let expected = Sight::all(Seen::Proxied);
    scene.look(expected)?;
    let row = Row::new(PART, 4, "`nft flush ruleset`", policy);
    let row = row.seen(expected, wan.leaves_as(expected)?);
    held.iter().try_for_each(moves)?;
    ensure!(!ours()?, "who has put it there?");
    // A reload redoes it at once; without one it is back with the next sweep.
    if !whole() {
        process.signal(Signal::SIGHUP)?;
    }
    until("masquerading to be back", 8 * SOON, || {
        Ok(ours()?.then_some(()))
    })?;
    drop(held);
    process.stop(2 * SOON)?;
    row.then("connections go on; masquerading is back within a minute")
        .left(scene.clean()?)
}

/// The rules that Docker makes, for the policy of its FORWARD chain and its translation.
fn rules_like_dockers(policy: Policy) -> Result<()> {
    let scene = Scene::new(Lab::builder())?;
    let gateway = &scene.lab.gateway;
    let mut process: Process = scene.run(&scene.write(policy, "")?, None)?;
    let held = scene.streams()?;
    for iptables in ["iptables", "ip6tables"] {
        for words in [
            "-N DOCKER",
            "-N DOCKER-USER",
            "-P FORWARD DROP",
            "-A FORWARD -j DOCKER-USER",
            "-A FORWARD -o docker0 -j DOCKER",
            "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
        ] {
            gateway.run(&[&[iptables], &words.split(' ').collect::<Vec<_>>()[..]].concat())?;
        }
    }
    let nat = "-t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE";
    gateway.run(&[&["iptables"], &nat.split(' ').collect::<Vec<_>>()[..]].concat())?;
    let row = Row::new(PART, 5, "Docker's rules come: FORWARD drops", policy);
    let (row, _) = scene.observe(row, Sight::all(Seen::Proxied))?;
    held.iter().try_for_each(moves)?;
    drop(held);
    row.then("connections go on").left("Docker's rules")?;
    // Without a proxy nothing is forwarded that these rules forbid, whatever our policy is.
    process.kill();
    let down = Sight::device(Seen::Nothing).and_own(policy.seen());
    let row = Row::new(PART, 6, "and then the proxy is killed", policy);
    let (row, _) = scene.observe(row, down)?;
    scene.lab.tproxy_run(&["detach"])?.ok()?;
    gateway.run(&["nft", "flush", "ruleset"])?;
    soon("what was forwarded to be so again", || scene.old_lives())?;
    gateway.run(&["nft", "list", "ruleset"])?;
    scene
        .clean()
        .context("after Docker's rules and the proxy")?;
    row.then("what Docker forbids stays forbidden")
        .left("Docker's rules")
}

#[test]
fn the_lan_link_is_made_anew() -> Result<()> {
    lan_link_made_anew(Policy::Drop)?;
    match whole() {
        true => lan_link_made_anew(Policy::Pass),
        false => Ok(()),
    }
}

#[test]
fn the_wan_address_changes() -> Result<()> {
    other_wan_address(Policy::Drop)?;
    match whole() {
        true => other_wan_address(Policy::Pass),
        false => Ok(()),
    }
}

#[test]
fn another_program_drops_before_and_behind_ours() -> Result<()> {
    if !KernelVersion::running()?.has_tcx() {
        eprintln!("SKIPPED: this kernel has no tcx, so nobody attaches programs by it");
        return Ok(());
    }
    if whole() {
        programs_of_others(Policy::Pass)?;
    }
    programs_of_others(Policy::Drop)
}

#[test]
fn somebody_flushes_all_of_netfilter() -> Result<()> {
    flushed(Policy::Drop)
}

#[test]
fn somebody_flushes_all_of_netfilter_with_pass() -> Result<()> {
    match whole() {
        true => flushed(Policy::Pass),
        false => Ok(()),
    }
}

#[test]
fn docker_comes_later() -> Result<()> {
    if whole() {
        rules_like_dockers(Policy::Drop)?;
    }
    rules_like_dockers(Policy::Pass)
}
