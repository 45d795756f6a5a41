//! What the commands say in each state of a gateway.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use lab::{Far, Lab, Snapshot, servers::TcpEcho, wait::until, ways::soon};
use serde_json::Value;

fn human(lab: &Lab) -> Result<String> {
    Ok(lab.tproxy_run(&["status"])?.ok()?.stdout)
}

#[track_caller]
fn holds(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no \"{word}\" in\n{text}");
    }
}

#[test]
fn status_tells_each_state() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let nothing = lab.status()?;
    assert_eq!(nothing["attached"], false);
    assert_eq!(nothing["links"], Value::Array(Vec::new()));
    assert_eq!(nothing["proxy"]["running"], false);
    holds(&human(&lab)?, &["not running", "none is attached"]);

    lab.tproxy_run(&["attach", "lan0"])?.ok()?;
    lab.bypass(&["add", "198.51.100.0/24"])?;
    let attached = lab.status()?;
    assert_eq!(attached["attached"], true);
    assert_eq!(attached["links"][0]["name"], "lan0");
    assert_eq!(attached["links"][0]["persistent"], true);
    assert_eq!(attached["rules_and_routes"], true);
    assert_eq!(attached["proxy"]["pid"], Value::Null);
    assert_eq!(attached["on_proxy_down"], "pass");
    assert_eq!(attached["bypass_prefixes"], 1);
    assert_eq!(attached["warnings"], Value::Array(Vec::new()));
    holds(
        &human(&lab)?,
        &[
            "not running",
            "goes direct",
            "lan0",
            "stays without a proxy",
            "1 prefix and",
        ],
    );
    lab.tproxy_run(&["detach"])?.ok()?;

    let args = ["run", "--lan", "lan0", "--on-proxy-down", "drop"];
    let args = [
        &args[..],
        &["--outbound", "socks5://u:secret@192.0.2.9:1080"],
    ]
    .concat();
    let proxy = lab.tproxy(&args)?;
    let pid = proxy.process().pid();
    let running = lab.status()?;
    assert_eq!(running["proxy"]["running"], true);
    assert_eq!(running["proxy"]["pid"], pid);
    assert_eq!(running["links"][0]["persistent"], false);
    assert_eq!(running["on_proxy_down"], "drop");
    ensure!(!running.to_string().contains("secret"), "{running}");
    let text = human(&lab)?;
    holds(
        &text,
        &[&format!("process {pid}"), "socks5://", "lan0", "dropped"],
    );
    ensure!(!text.contains("secret"), "{text}");
    proxy.stop()?;

    // Counts grow with the traffic.
    let proxy = lab.tproxy_with("direct://")?;
    far.sees_proxy(&lab)?;
    let counted = lab.status()?;
    let steered = counted["counts"]["steered_packets"].as_u64();
    ensure!(steered.is_some_and(|steered| steered > 10), "{counted}");
    let connections = counted["proxy"]["detail"]["traffic"]["connections_total"].as_u64();
    assert_eq!(connections, Some(2), "{counted}");

    proxy.kill9();
    let killed = lab.status()?;
    assert_eq!(killed["attached"], true);
    assert_eq!(killed["proxy"]["running"], false);
    holds(&human(&lab)?, &["not running", "goes direct", "lan0"]);
    lab.tproxy_run(&["detach"])?.ok()?;
    assert_eq!(lab.status()?["attached"], false);
    Ok(())
}

#[test]
fn status_warns_when_rules_or_routes_are_missing() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let proxy = lab.tproxy_with("direct://")?;
    lab.gateway.ip(&["rule del priority 100"])?;
    let status = lab.status()?;
    assert_eq!(status["rules_and_routes"], false);
    holds(&human(&lab)?, &["warning", "rules or routes are missing"]);
    // The next one puts them back.
    proxy.kill9();
    let _proxy = lab.tproxy_with("direct://")?;
    assert_eq!(lab.status()?["rules_and_routes"], true);
    far.sees_proxy(&lab)
}

#[test]
fn check_tells_what_is_wrong_and_where() -> Result<()> {
    let lab = Lab::new()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = lab.dir().join(name);
        fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    let before = Snapshot::take(&lab)?;
    file(
        "list.txt",
        "198.18.0.0/16\n# two more\n198.51.100.0/24\n192.0.2.7\n",
    )?;
    let good = file(
        "good.toml",
        "[lan]\ninterfaces = [\"lan*\"]\n[bypass]\nfiles = [\"list.txt\"]\n\
         [[outbound]]\nname = \"far\"\nurl = \"socks5://u:secret@192.0.2.1:1080\"\n",
    )?;
    let text = lab.tproxy_run(&["check", &good])?.ok()?.stdout;
    holds(
        &text,
        &["is valid", "3 prefixes", "on_proxy_down = \"pass\"", "lan*"],
    );
    let json: Value = lab.tproxy_run(&["check", "--json", &good])?.ok()?.json()?;
    assert_eq!(json["valid"], true);
    assert_eq!(json["bypass_prefixes"], 3);
    assert_eq!(json["config"]["lan"]["interfaces"][0], "lan*");
    ensure!(
        !text.contains("secret") && !json.to_string().contains("secret"),
        "{json}"
    );

    let bad = file(
        "bad.toml",
        "stage = 2\n[lan]\n  interfacs = [\"lan0\"]\n[udp]\nidle = \"x\"\n",
    )?;
    lab.refused(
        &["check", &bad],
        1,
        &["bad.toml:3:3", "interfaces", "bad.toml:5:"],
    )?;
    let output = lab.tproxy_run(&["check", "--json", &bad])?;
    assert_eq!(output.code(), Some(1));
    let json: Value = output.json()?;
    assert_eq!(json["valid"], false);
    assert_eq!(json["findings"].as_array().map(Vec::len), Some(2), "{json}");
    assert_eq!(json["findings"][0]["line"], 3);

    file("wrong.txt", "198.18.0.0/16\n198.18.0.1/16\n")?;
    let list = file("list.toml", "[bypass]\nfiles = [\"wrong.txt\"]\n")?;
    lab.refused(&["check", &list], 1, &["wrong.txt:2", "198.18.0.0/16"])?;
    let json: Value = lab.tproxy_run(&["check", "--json", &list])?.json()?;
    assert_eq!(json["valid"], false);
    lab.refused(&["check", "/nowhere.toml"], 1, &["/nowhere.toml"])?;
    // It looks, and touches nothing.
    lab.restored(&before)
}

#[test]
fn wrong_usage_is_told_apart_from_failure() -> Result<()> {
    let lab = Lab::new()?;
    for args in [
        &[][..],
        &["frobnicate"],
        &["run", "--frobnicate"],
        &["run", "--on-proxy-down", "maybe"],
        &["attach"],
        &["check"],
        &["status", "lan0"],
    ] {
        lab.refused(args, 2, &["--help"])?;
    }
    lab.refused(&["run", "--outbound", "direct://"], 1, &["--lan"])?;
    lab.refused(&["detach", "lan0"], 1, &["lan0", "not attached"])?;
    for args in [&["--version"][..], &["--help"], &["bypass", "--help"]] {
        lab.tproxy_run(args)?.ok()?;
    }
    Ok(())
}

#[test]
fn one_of_two_links_can_be_detached_while_the_proxy_runs() -> Result<()> {
    let lab = Lab::builder().second_lan().build()?;
    let far = Far::start(&lab)?;
    let device2 = lab.device2.as_ref().expect("a second device");
    let proxy = lab.tproxy(&["run", "--lan", "lan0", "--lan", "lan1"])?;
    let (there, seen) = (lab::Family::V4.far(1), lab::Family::V4.gateway_wan());
    far.sees_proxy(&lab)?;
    far.sees(seen, device2, there)?;
    lab.tproxy_run(&["detach", "lan1"])?.ok()?;
    let status = lab.status()?;
    assert_eq!(status["links"][0]["name"], "lan0", "{status:#}");
    assert_eq!(lab.attached_links()?, ["lan0"]);
    far.sees_proxy(&lab)?;
    far.sees(lab::Family::V4.device2(), device2, there)?;
    lab.refused(&["detach", "lan1"], 1, &["lan1", "lan0"])?;
    // Something happens to the links; what was detached stays so.
    lab.gateway.ip(&["addr add 10.79.0.1/24 dev lan1"])?;
    far.sees(lab::Family::V4.device2(), device2, there)?;
    assert_eq!(lab.attached_links()?, ["lan0"]);
    // It can be had again.
    lab.tproxy_run(&["attach", "lan1"])?.ok()?;
    far.sees(seen, device2, there)?;
    lab.gateway.ip(&["addr add 10.79.1.1/24 dev lan1"])?;
    soon("the proxy to know the new address", || {
        let target = std::net::SocketAddr::new("10.79.1.1".parse()?, 22);
        let own = lab.packets("own_address")?;
        lab::traffic::connect(device2, target).ok();
        ensure!(lab.packets("own_address")? > own, "{:?}", lab.counters()?);
        Ok(())
    })?;
    assert_eq!(lab.attached_links()?, ["lan0", "lan1"]);
    far.sees(seen, device2, there)?;
    proxy.stop()
}

#[test]
fn two_gateways_do_not_see_each_other() -> Result<()> {
    let (one, other) = (Lab::new()?, Lab::new()?);
    let (far_one, far_other) = (Far::start(&one)?, Far::start(&other)?);
    let before = Snapshot::take(&other)?;
    let proxy_one = one.tproxy_with("direct://")?;
    assert_eq!(other.status()?["attached"], false);
    assert_eq!(other.status()?["proxy"]["running"], false);
    other.refused(&["bypass", "list"], 1, &["nothing is attached"])?;
    other.restored(&before)?;

    let proxy_other = other.tproxy_with("direct://")?;
    other.bypass(&["add", "203.0.113.0/24", "2001:db8:f::/64"])?;
    assert!(one.bypass_list()?.is_empty());
    far_one.sees_proxy(&one)?;
    far_other.sees_device(&other)?;
    other.tproxy_run(&["detach"])?.ok()?;
    drop(proxy_other);
    other.restored(&before)?;
    far_one.sees_proxy(&one)?;
    proxy_one.stop()
}

#[test]
fn detach_waits_for_a_running_proxy_and_says_what_it_did() -> Result<()> {
    let lab = Lab::new()?;
    let before = Snapshot::take(&lab)?;
    let mut proxy = lab.tproxy_with("direct://")?;
    let _echo = TcpEcho::start(&lab.internet, 7)?;
    let said = lab.tproxy_run(&["detach"])?.ok()?.stdout;
    // When it returns everything is gone, not a moment later.
    Snapshot::take(&lab)?.same_as(&before)?;
    eprintln!("detach says {said:?}");
    let status = proxy.process_mut().wait(Duration::from_secs(2))?;
    ensure!(status.success(), "the proxy ended with {status}");
    Ok(())
}

#[test]
fn a_hangup_does_not_end_the_proxy() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let mut proxy = lab.tproxy_with("direct://")?;
    proxy.process().signal(nix::sys::signal::Signal::SIGHUP)?;
    proxy
        .process()
        .wait_for_line("reloaded", Duration::from_secs(5))?;
    far.sees_proxy(&lab)?;
    proxy.process().signal(nix::sys::signal::Signal::SIGINT)?;
    let status = proxy.process_mut().wait(Duration::from_secs(5))?;
    ensure!(status.success(), "SIGINT ended it with {status}");
    soon("nothing to be attached", || {
        ensure!(lab.status()?["attached"] == false, "{}", lab.status()?);
        Ok(())
    })?;
    until("the pins to be gone", Duration::from_secs(1), || {
        Ok((!lab.pins().exists()).then_some(()))
    })
}
