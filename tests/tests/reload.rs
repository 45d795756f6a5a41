//! SIGHUP: the changed configuration comes into force, all of it or nothing, and nothing that lives is
//! broken.

use std::{
    fmt::Write as _,
    fs,
    io::{Read, Write},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

use anyhow::{Result, anyhow, ensure};
use lab::{
    Family, Far, Lab, Reloadable, Snapshot,
    addr::url,
    probe::at,
    servers::{Danted, TcpEcho},
    traffic::{HeldDownload, connect, whoami},
    wait::SOON,
    ways::soon,
};

/// What is bypassed, in order.
fn bypassed(lab: &Lab) -> Result<Vec<String>> {
    let list = lab.bypass_list()?;
    let mut prefixes: Vec<_> = list
        .iter()
        .filter_map(|entry| Some(entry["prefix"].as_str()?.to_owned()))
        .collect();
    prefixes.sort();
    Ok(prefixes)
}

#[test]
fn the_difference_comes_into_force() -> Result<()> {
    let lab = Lab::new()?;
    let before = Snapshot::take(&lab)?;
    let far = Far::start(&lab)?;
    let _echo = TcpEcho::start(&lab.internet, 22)?;
    let lan = lab.lan();
    let first =
        format!("[lan]\ninterfaces = [\"{lan}\"]\n[bypass]\nprefixes = [\"198.18.1.0/24\"]\n");
    let proxy = Reloadable::start(&lab, &first)?;
    far.sees_proxy(&lab)?;
    let mut proxied = connect(&lab.device, at(Family::V4.far(5), 22))?;
    lab.bypass(&["add", "198.18.9.0/24"])?;

    // More goes direct, and the gateway's own traffic is proxied too.
    let second = format!(
        "on_proxy_down = \"drop\"\n[lan]\ninterfaces = [\"{lan}\"]\n[wan]\ninterfaces = [\"default\"]\n\
         [bypass]\nprefixes = [\"203.0.113.0/24\", \"2001:db8:f::/48\"]\n[exempt]\nuids = [4711]\n"
    );
    let exempt = || -> Result<Vec<String>> {
        let list: Vec<serde_json::Value> = lab
            .tproxy_run(&["exempt", "list", "--json"])?
            .ok()?
            .json()?;
        Ok(list.iter().map(|entry| entry["id"].to_string()).collect())
    };
    proxy.reload(&second, "reloaded")?;
    far.sees_device(&lab)?;
    assert_eq!(
        bypassed(&lab)?,
        ["198.18.9.0/24", "2001:db8:f::/48", "203.0.113.0/24"]
    );
    let status = lab.status()?;
    assert_eq!(status["on_proxy_down"], "drop");
    assert_eq!(exempt()?, ["4711"]);
    assert_eq!(lab.attached_links()?, [lan, "wan0"]);
    // A connection keeps the verdict of its SYN.
    proxied.set_read_timeout(Some(SOON))?;
    proxied.write_all(b"x")?;
    proxied.read_exact(&mut [0])?;
    assert_eq!(lab.proxy_count("/connections")?, 1);

    // And back.
    proxy.reload(&first, "detached from wan0")?;
    far.sees_proxy(&lab)?;
    assert_eq!(bypassed(&lab)?, ["198.18.1.0/24", "198.18.9.0/24"]);
    assert_eq!(exempt()?, [""; 0]);
    assert_eq!(lab.attached_links()?, [lan]);
    proxied.write_all(b"x")?;
    proxied.read_exact(&mut [0])?;
    drop(proxied);
    proxy.stop()?;
    drop(far);
    lab.restored(&before)
}

#[test]
fn another_outbound_takes_new_connections() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let danted = Danted::start(&lab.internet, lab.dir())?;
    let _echo = TcpEcho::start(&lab.internet, 22)?;
    let lan = lab.lan();
    let with = |url: &str| {
        format!("[lan]\ninterfaces = [\"{lan}\"]\n[[outbound]]\nname = \"out\"\nurl = \"{url}\"\n")
    };
    let proxy = Reloadable::start(&lab, &with("direct://"))?;
    far.sees_proxy(&lab)?;
    let mut before = connect(&lab.device, at(Family::V4.far(5), 22))?;
    before.set_read_timeout(Some(SOON))?;
    proxy.reload(&with(&danted.url(Family::V4)), "proxied through socks5")?;
    assert_eq!(
        whoami(&lab.device, Family::V6.far(1))?,
        Family::V6.upstream(1)
    );
    let server = format!("{}/32", Family::V4.upstream(1));
    let present = bypassed(&lab)?;
    assert!(present.contains(&server), "{present:?}");
    // An outbound that cannot be is refused.
    proxy.reload(
        &with("socks5://no.such.host.invalid:1080"),
        "no.such.host.invalid",
    )?;
    assert_eq!(
        whoami(&lab.device, Family::V4.far(1))?,
        Family::V4.upstream(1)
    );
    proxy.reload(&with("direct://"), "reloaded")?;
    soon("the old way", || far.sees_proxy(&lab))?;
    assert_eq!(bypassed(&lab)?, [""; 0]);
    before.write_all(b"x")?;
    before.read_exact(&mut [0])?;
    Ok(())
}

/// What the machine was given for as long as it is configured goes back when it is not.
#[test]
fn settings_of_the_machine_follow() -> Result<()> {
    let lab = Lab::new()?;
    lab.gateway.sysctl(&[("net/ipv4/ip_forward", "0")])?;
    let before = Snapshot::take(&lab)?;
    let lan = lab.lan();
    let plain = format!("[lan]\ninterfaces = [\"{lan}\"]\n");
    let router = format!("{plain}[gateway]\nforward = true\nmasquerade = true\n");
    let forwards = || -> Result<String> {
        let read = ["cat", "/proc/sys/net/ipv4/ip_forward"];
        Ok(lab.gateway.run(&read)?.stdout.trim().to_owned())
    };
    let tables = || -> Result<String> { Ok(lab.gateway.run(&["nft", "list", "tables"])?.stdout) };
    let proxy = Reloadable::start(&lab, &plain)?;
    for _ in 0..2 {
        assert_eq!((&*forwards()?, &*tables()?), ("0", ""));
        proxy.reload(&router, "reloaded")?;
        soon("forwarding and masquerade", || {
            ensure!(forwards()? == "1", "it does not forward");
            ensure!(tables()?.contains("tproxy_bpf"), "it does not masquerade");
            Ok(())
        })?;
        proxy.reload(&plain, "reloaded")?;
        soon("no forwarding and no masquerade", || {
            ensure!(forwards()? == "0", "it forwards");
            ensure!(tables()?.is_empty(), "it masquerades");
            Ok(())
        })?;
    }
    proxy.stop()?;
    lab.restored(&before)
}

#[test]
fn a_broken_configuration_changes_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let lan = lab.lan();
    let good =
        format!("[lan]\ninterfaces = [\"{lan}\"]\n[bypass]\nprefixes = [\"198.18.1.0/24\"]\n");
    let proxy = Reloadable::start(&lab, &good)?;
    let broken = [
        (good.replace("prefixes", "prefixs"), "unknown key `prefixs`"),
        (good.replace(lan, "nolan0"), "nolan0"),
        (
            good.replace("[bypass]", "[bypass]\nfiles = [\"missing.txt\"]"),
            "missing.txt",
        ),
        (
            good.replace("198.18.1.0/24", "198.18.1.0/33"),
            "198.18.1.0/33",
        ),
    ];
    for (text, word) in &broken {
        proxy.reload(text, word)?;
        assert_eq!(bypassed(&lab)?, ["198.18.1.0/24"]);
        assert_eq!(lab.attached_links()?, [lan]);
    }
    let failed = "the old configuration goes on to hold";
    let lines = proxy.process().lines();
    let told = lines.iter().filter(|line| line.contains(failed)).count();
    assert_eq!(told, broken.len(), "{lines:?}");
    fs::remove_file(proxy.path())?;
    proxy.again("config.toml")?;
    far.sees_proxy(&lab)?;
    // What takes a restart is told.
    proxy.reload(
        &format!("{good}[tcp]\nidle = \"1h\"\n"),
        "[tcp] has changed",
    )?;
    Ok(())
}

/// Under load, with sets of 10,000 prefixes that have nothing in common but what matters here.
#[test]
fn ten_thousand_prefixes_change_and_what_stays_goes_its_way() -> Result<()> {
    const PREFIXES: u32 = 10_000;
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let (path, content) = far.nginx.offer(96 << 20)?;
    let kept = Family::BOTH.map(|family| family.far(1));
    let list = |first: u8| -> Result<()> {
        let mut text = format!("{}\n{}\n", kept[0], kept[1]);
        // Every other /24 and /48, so that no two of them become one.
        for n in 0..PREFIXES / 2 {
            let [_, _, high, low] = (2 * n).to_be_bytes();
            writeln!(text, "{first}.{high}.{low}.0/24")?;
            writeln!(text, "2a{first:02x}:{:x}::/48", 2 * n)?;
        }
        Ok(fs::write(lab.dir().join("list.txt"), text)?)
    };
    let lan = lab.lan();
    let config = format!("[lan]\ninterfaces = [\"{lan}\"]\n[bypass]\nfiles = [\"list.txt\"]\n");
    list(20)?;
    let proxy = Reloadable::start(&lab, &config)?;
    let start = |n: u8| HeldDownload::start(&lab.device, &url(Family::V4.far(n), &path));
    // One that is bypassed and one that is proxied, before, during and after all of it.
    let mut downloads = [start(1)?, start(5)?];
    for download in &mut downloads {
        download.advance(1 << 20)?;
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let asking = scope.spawn(|| -> Result<u32> {
            let mut rounds = 0;
            while !done.load(Relaxed) {
                for (family, server) in Family::BOTH.into_iter().zip(kept) {
                    far.sees(family.device(), &lab.device, server)?;
                }
                rounds += 1;
            }
            Ok(rounds)
        });
        let reloading = (|| -> Result<()> {
            for round in 0..6 {
                let first = 21 + round % 2;
                list(first)?;
                proxy.reload(&config, "reloaded")?;
                let present = bypassed(&lab)?;
                assert_eq!(present.len() as u32, PREFIXES + 2);
                assert!(present.contains(&format!("{first}.0.0.0/24")));
                for download in &mut downloads {
                    download.advance(8 << 20)?;
                }
            }
            Ok(())
        })();
        done.store(true, Relaxed);
        let rounds = asking.join().map_err(|_| anyhow!("asking panicked"))??;
        reloading?;
        assert!(rounds > 3, "{rounds}");
        Ok(())
    })?;
    for download in downloads {
        assert_eq!(download.finish()?.sha256, content.sha256);
    }
    assert_eq!(
        (
            lab.packets("udp_steered")?,
            lab.packets("fragment_steered")?
        ),
        (0, 0)
    );
    assert_eq!(lab.proxy_count("/connections_total")?, 1);
    proxy.stop()
}
