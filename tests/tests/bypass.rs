//! The bypass commands: on the maps alone and beside a running proxy, whole or not at all.

use std::{
    fmt::Write as _,
    fs,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{Family, Far, Lab, ways::soon};
use serde_json::Value;

/// Different prefixes of mixed lengths, none of which holds an address of the lab. No two are halves of one, so a load
/// joins none of them.
fn prefixes(family: Family, count: u32) -> impl Iterator<Item = String> {
    (0..count).map(move |number| match family {
        // Multiplying by an odd number leaves 2^20 different ones, in no order.
        Family::V4 => {
            let scattered = number.wrapping_mul(0x9_e375) & 0xf_ffff;
            let [_, high, middle, low] = (scattered << 4).to_be_bytes();
            let first = 20 + number % 3;
            format!("{first}.{high}.{middle}.{low}/{}", 29 + number % 4)
        }
        Family::V6 => {
            let scattered = number.wrapping_mul(0x9e37_79b1);
            let (high, low) = (scattered >> 16, scattered & 0xffff);
            format!("2600:{high:x}:{low:x}::/{}", 49 + number % 16)
        }
    })
}

fn write_list(lab: &Lab, name: &str, lines: impl IntoIterator<Item = String>) -> Result<String> {
    let path = lab.dir().join(name);
    let mut text = String::new();
    for line in lines {
        writeln!(text, "{line}")?;
    }
    fs::write(&path, text)?;
    Ok(path.to_string_lossy().into_owned())
}

fn listed(lab: &Lab) -> Result<Vec<String>> {
    let entries = lab.bypass_list()?;
    Ok(entries
        .iter()
        .filter_map(|entry| Some(entry["prefix"].as_str()?.to_owned()))
        .collect())
}

fn entry(lab: &Lab, prefix: &str) -> Result<Value> {
    let entries = lab.bypass_list()?;
    let found = entries.into_iter().find(|entry| entry["prefix"] == prefix);
    found.with_context(|| format!("{prefix} is not in the list"))
}

#[test]
fn an_edit_changes_the_next_connection_beside_a_running_proxy() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let _proxy = lab.tproxy_with("direct://")?;
    far.sees_proxy(&lab)?;
    for (family, prefix) in [
        (Family::V4, "203.0.113.0/24"),
        (Family::V6, "2001:db8:f::/48"),
    ] {
        let (server, device, gateway) = (family.far(2), family.device(), family.gateway_wan());
        lab.bypass(&["add", prefix])?;
        far.sees(device, &lab.device, server)?;
        lab.bypass(&["del", prefix])?;
        far.sees(gateway, &lab.device, server)?;
        // One address only.
        lab.bypass(&["add", &server.to_string()])?;
        far.sees(device, &lab.device, server)?;
        far.sees(gateway, &lab.device, family.far(3))?;
        lab.bypass(&["flush"])?;
        far.sees(gateway, &lab.device, server)?;
    }
    assert!(listed(&lab)?.is_empty());
    Ok(())
}

#[test]
fn without_a_proxy_an_edit_decides_between_direct_and_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    lab.tproxy_run(&["attach", "--on-proxy-down", "drop", "lan0"])?
        .ok()?;
    let dropped = || lab.packets("down_dropped");
    for (family, prefix) in [
        (Family::V4, "203.0.113.0/24"),
        (Family::V6, "2001:db8:f::/48"),
    ] {
        let before = dropped()?;
        let socket = lab::traffic::open_udp(&lab.device, family)?;
        socket.send_to(b"lost", Far::echo_at(family.far(1)))?;
        soon("a datagram to be dropped", || {
            ensure!(dropped()? == before + 1, "{:?}", lab.counters()?);
            Ok(())
        })?;
        lab.bypass(&["add", prefix])?;
        far.sees(family.device(), &lab.device, family.far(1))?;
        assert_eq!(dropped()?, before + 1);
        lab.bypass(&["del", prefix])?;
        socket.send_to(b"lost", Far::echo_at(family.far(1)))?;
        soon("a datagram to be dropped again", || {
            ensure!(dropped()? == before + 2, "{:?}", lab.counters()?);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn an_entry_ends_with_its_time() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let _proxy = lab.tproxy_with("direct://")?;
    let (device, gateway): (Vec<IpAddr>, Vec<IpAddr>) = Family::BOTH
        .map(|family| (family.device(), family.gateway_wan()))
        .into_iter()
        .unzip();
    // A shorter one that stays: the end of the longer one must not hide it.
    lab.bypass(&["add", "203.0.112.0/23", "--comment", "stays"])?;
    let start = Instant::now();
    lab.bypass(&["add", "203.0.113.0/24", "2001:db8:f::/64", "--ttl", "2s"])?;
    let left = entry(&lab, "203.0.113.0/24")?["expires_in"].clone();
    ensure!(left.as_u64().is_some_and(|left| left <= 2), "{left}");
    assert_eq!(entry(&lab, "203.0.112.0/23")?["expires_in"], Value::Null);
    far.sees(device[1], &lab.device, Family::V6.far(1))?;
    soon("the entries to end", || {
        far.sees(gateway[1], &lab.device, Family::V6.far(1))
    })?;
    let lived = start.elapsed();
    ensure!(lived >= Duration::from_secs(2), "it ended after {lived:?}");
    assert_eq!(listed(&lab)?, ["203.0.112.0/23"]);
    far.sees(device[0], &lab.device, Family::V4.far(1))?;
    // The same prefix again, for ever.
    lab.bypass(&["add", "2001:db8:f::/64"])?;
    far.sees(device[1], &lab.device, Family::V6.far(1))?;
    for ttl in ["0s", "-1s", "soon", "1h 30"] {
        lab.refused(
            &["bypass", "add", "192.0.2.0/24", &format!("--ttl={ttl}")],
            1,
            &["--ttl"],
        )?;
    }
    Ok(())
}

#[test]
fn hits_and_comments_are_shown() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    lab.tproxy_run(&["attach", "lan0"])?.ok()?;
    lab.bypass(&["add", "203.0.113.0/24", "--comment", "the far side"])?;
    lab.bypass(&["add", "198.51.100.0/24"])?;
    let first = entry(&lab, "203.0.113.0/24")?;
    assert_eq!(first["comment"], "the far side");
    assert_eq!(first["origin"], "command");
    assert_eq!(first["packets"], 0);
    far.sees(Family::V4.device(), &lab.device, Family::V4.far(1))?;
    let second = entry(&lab, "203.0.113.0/24")?;
    let count = |entry: &Value, key: &str| entry[key].as_u64().unwrap_or(0);
    // A SYN, one datagram, seven fragments.
    assert!(count(&second, "packets") >= 9, "{second}");
    assert!(count(&second, "bytes") >= 9_100, "{second}");
    assert_eq!(entry(&lab, "198.51.100.0/24")?["packets"], 0);
    // New terms, the same hits.
    lab.bypass(&["add", "203.0.113.0/24", "--comment", "other", "--ttl", "1h"])?;
    let third = entry(&lab, "203.0.113.0/24")?;
    assert_eq!(third["packets"], second["packets"]);
    assert_eq!(third["comment"], "other");
    let text = lab.bypass(&["list", "--hits"])?.stdout;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].contains("packets"), "{text}");
    // Most hits first, though the other sorts before it.
    assert!(
        lines[1].starts_with("203.0.113.0/24") && lines[1].contains("other"),
        "{text}"
    );
    Ok(())
}

#[test]
fn a_long_list_is_loaded_at_once_or_not_at_all() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let _proxy = lab.tproxy_with("direct://")?;
    lab.bypass(&["add", "198.51.100.0/24"])?;
    let before = listed(&lab)?;

    let mut lines: Vec<String> = prefixes(Family::V4, 16_383).collect();
    lines.push("203.0.113.0/24".to_owned());
    let mut broken = lines.clone();
    broken[8_999] = "203.0.113.0/33".to_owned();
    let broken = write_list(&lab, "broken.txt", broken)?;
    lab.refused(
        &["bypass", "load", &broken],
        1,
        &["broken.txt:9000", "203.0.113.0/33", "not changed"],
    )?;
    assert_eq!(listed(&lab)?, before);
    lab.refused(
        &["bypass", "load", &broken, "--replace"],
        1,
        &["broken.txt:9000"],
    )?;
    assert_eq!(listed(&lab)?, before);
    // A good file beside a bad one is not loaded either, nor one that is missing.
    let good = write_list(&lab, "good.txt", lines)?;
    lab.refused(&["bypass", "load", &good, &broken], 1, &["broken.txt:9000"])?;
    let missing = lab.dir().join("missing.txt");
    let missing = missing.to_string_lossy();
    lab.refused(&["bypass", "load", &good, &missing], 1, &["missing.txt"])?;
    assert_eq!(listed(&lab)?, before);

    let start = Instant::now();
    let output = lab.bypass(&["load", &good])?;
    let elapsed = start.elapsed();
    eprintln!("{} in {elapsed:?}", output.stdout.trim());
    ensure!(elapsed < Duration::from_secs(1), "it took {elapsed:?}");
    assert_eq!(listed(&lab)?.len(), 16_385);
    far.sees(Family::V4.device(), &lab.device, Family::V4.far(1))?;
    far.sees(Family::V6.gateway_wan(), &lab.device, Family::V6.far(1))
}

#[test]
fn lists_of_any_format_are_loaded_as_the_fewest_prefixes() -> Result<()> {
    let lab = Lab::new()?;
    lab.tproxy_run(&["attach", "lan0"])?.ok()?;
    let list = |name: &str, lines: &[&str]| {
        write_list(&lab, name, lines.iter().map(|line| (*line).to_owned()))
    };
    let table = list(
        "delegated",
        &[
            "2|apnic|20261101|2|19830613|20261031|+1000",
            "apnic|CN|ipv4|198.18.0.0|768|20110414|allocated",
            "apnic|JP|ipv4|198.19.0.0|256|20110414|allocated",
        ],
    )?;
    let ipset = list("dump", &["create x hash:net", "add x 198.18.3.0/24"])?;
    let clash = list(
        "rules",
        &["DOMAIN,far.example", "IP-CIDR,198.18.1.0/24,no-resolve"],
    )?;
    let domains = list("domains", &["far.example"])?;
    let table = format!("{table}:cn");

    // What is added one by one stays as it is.
    lab.bypass(&["add", "203.0.113.0/25", "203.0.113.128/25"])?;
    let said = lab.bypass(&["load", &table, &ipset, &clash])?.stdout;
    ensure!(said.contains("1 prefix loaded"), "it said {said}");
    ensure!(
        said.contains("rules: passed over domains (1)"),
        "it said {said}"
    );
    let wanted = ["198.18.0.0/22", "203.0.113.0/25", "203.0.113.128/25"];
    assert_eq!(listed(&lab)?, wanted);

    let wrong = table.replace(":cn", ":ch");
    for (files, words) in [
        ([&ipset, &domains], &["domains only", "not changed"][..]),
        ([&ipset, &wrong], &["no list `ch`", "did you mean `CN`"]),
    ] {
        lab.refused(&["bypass", "load", files[0], files[1]], 1, words)?;
        assert_eq!(listed(&lab)?, wanted);
    }
    let config = list(
        "config.toml",
        &["[bypass]", "files = [\"delegated:JP\", \"rules\"]"],
    )?;
    let checked = lab.tproxy_run(&["check", &config])?.ok()?.stdout;
    ensure!(
        checked.contains("2 prefixes are bypassed"),
        "it said {checked}"
    );
    ensure!(
        checked.contains("passed over domains (1)"),
        "it said {checked}"
    );
    Ok(())
}

#[test]
fn replacing_applies_the_difference() -> Result<()> {
    let lab = Lab::new()?;
    let config = lab.dir().join("config.toml");
    fs::write(&config, "[bypass]\nprefixes = [\"192.88.99.0/24\"]\n")?;
    let config = config.to_string_lossy();
    lab.tproxy_run(&["attach", "lan0", "-c", &config])?.ok()?;
    let list = |name: &str, range: std::ops::Range<u8>| {
        write_list(&lab, name, range.map(|n| format!("198.18.{}.0/24", 2 * n)))
    };
    let (old, new) = (list("old.txt", 0..10)?, list("new.txt", 8..12)?);
    lab.bypass(&["load", &old, "--comment", "old"])?;
    let said = lab.bypass(&["load", &new, "--replace"])?.stdout;
    ensure!(
        said.contains("2 new or changed, 8 removed"),
        "it said {said}"
    );
    let wanted = [
        "192.88.99.0/24",
        "198.18.16.0/24",
        "198.18.18.0/24",
        "198.18.20.0/24",
        "198.18.22.0/24",
    ];
    assert_eq!(listed(&lab)?, wanted);
    // What stayed is as it was; what the configuration says is not the command's.
    assert_eq!(entry(&lab, "198.18.16.0/24")?["comment"], "old");
    assert_eq!(entry(&lab, "192.88.99.0/24")?["origin"], "config");
    lab.bypass(&["load", &new, "--replace"])?;
    assert_eq!(listed(&lab)?, wanted);
    Ok(())
}

#[test]
fn what_is_not_a_prefix_or_not_there_changes_nothing() -> Result<()> {
    let lab = Lab::new()?;
    lab.tproxy_run(&["attach", "lan0"])?.ok()?;
    lab.bypass(&["add", "192.0.2.0/24"])?;
    for (wrong, words) in [
        ("203.0.113.7/24", "203.0.113.0/24"),
        ("2001:db8:f::7/64", "2001:db8:f::/64"),
        ("203.0.113.0/33", "0 to 32"),
        ("203.0.113", "203.0.113"),
        ("far.example", "far.example"),
        ("", "no address"),
    ] {
        lab.refused(&["bypass", "add", "198.51.100.0/24", wrong], 1, &[words])?;
        assert_eq!(listed(&lab)?, ["192.0.2.0/24"], "after {wrong:?}");
    }
    for present in ["192.0.2.0/24", "203.0.113.0/24"] {
        // With one that is there before it or not.
        let args = ["bypass", "del", present, "198.51.100.0/24"];
        lab.refused(&args, 1, &["not in the bypass set", "nothing was removed"])?;
        assert_eq!(listed(&lab)?, ["192.0.2.0/24"]);
    }
    for wrong in [
        &["bypass"][..],
        &["bypass", "add"],
        &["bypass", "frobnicate"],
        &["bypass", "list", "--frobnicate"],
        &["bypass", "load"],
    ] {
        lab.refused(wrong, 2, &[])?;
    }
    Ok(())
}

#[test]
fn without_an_attached_link_it_says_so() -> Result<()> {
    let lab = Lab::new()?;
    let list = write_list(&lab, "list.txt", ["203.0.113.0/24".to_owned()])?;
    for args in [
        &["bypass", "add", "203.0.113.0/24"][..],
        &["bypass", "del", "203.0.113.0/24"],
        &["bypass", "list"],
        &["bypass", "list", "--json"],
        &["bypass", "load", &list],
        &["bypass", "flush"],
        &["counters"],
    ] {
        lab.refused(args, 1, &["nothing is attached", "tproxy-bpf attach IF"])?;
    }
    Ok(())
}

#[test]
fn more_than_65536_prefixes_of_each_family_have_room() -> Result<()> {
    const COUNT: u32 = 70_000;
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    lab.tproxy_run(&["attach", "--on-proxy-down", "drop", "lan0"])?
        .ok()?;
    let all = prefixes(Family::V4, COUNT).chain(prefixes(Family::V6, COUNT));
    let lines = all.chain(["203.0.113.0/24".to_owned(), "2001:db8:f::/64".to_owned()]);
    let list = write_list(&lab, "all.txt", lines)?;
    let start = Instant::now();
    lab.bypass(&["load", &list])?;
    eprintln!("{} prefixes loaded in {:?}", 2 * COUNT + 2, start.elapsed());
    assert_eq!(lab.status()?["bypass_prefixes"], 2 * COUNT + 2);
    far.sees_device(&lab)?;
    let start = Instant::now();
    lab.bypass(&["flush"])?;
    eprintln!("flushed in {:?}", start.elapsed());
    assert_eq!(lab.status()?["bypass_prefixes"], 0);
    Ok(())
}
