//! What devices send and get past the proxy is counted for them, whole.

use std::{fs, net::IpAddr};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Far, Lab, Snapshot,
    addr::url,
    servers::UdpEcho,
    traffic::{download, echo_sizes, upload},
};
use serde_json::Value;
use tproxy_common::abi::Traffic;
use tproxy_userspace::control::account::{Account, account};
use tproxy_userspace::control::bpf::Maps;

/// What is moved each way, in bytes.
const SIZE: u64 = 8 << 20;
/// All far addresses go direct.
const BYPASS: &str = "[bypass]\nprefixes = [\"203.0.113.0/24\", \"2001:db8:f::/64\"]\n";
const ACCOUNT: &str = "[gateway]\naccount = true\n";

fn config(lab: &Lab, text: &str) -> Result<String> {
    let path = lab.dir().join("config.toml");
    fs::write(&path, format!("[lan]\ninterfaces = [\"lan0\"]\n{text}"))?;
    Ok(path.to_string_lossy().into_owned())
}

fn accounts(lab: &Lab) -> Result<Account> {
    let maps = Maps::open(&lab.pins())?.context("nothing is attached")?;
    Ok(account(&maps)?)
}

fn of(lab: &Lab, address: IpAddr) -> Result<Traffic> {
    let mut devices = accounts(lab)?.devices.into_iter();
    let found = devices.find(|(device, _)| *device == address);
    Ok(found.map(|(_, traffic)| traffic).unwrap_or_default())
}

/// Is that what it takes to move [`SIZE`]: the bytes themselves, and a header for each 1,448 at most?
#[track_caller]
fn is_whole(bytes: u64) {
    let most = SIZE + SIZE / 16 + 4_096;
    assert!((SIZE..=most).contains(&bytes), "{bytes} for {SIZE} bytes");
}

/// Is it no more than it takes to acknowledge that?
#[track_caller]
fn is_acknowledgement(bytes: u64) {
    assert!(bytes > 500 && bytes < SIZE / 10, "{bytes}");
}

#[test]
fn what_is_forwarded_is_counted_whole_and_what_is_proxied_is_not() -> Result<()> {
    let lab = Lab::builder().second_lan().build()?;
    let before = Snapshot::take(&lab)?;
    let far = Far::start(&lab)?;
    let (path, content) = far.nginx.offer(SIZE)?;
    let proxy = lab.tproxy(&["run", "-c", &config(&lab, &format!("{BYPASS}{ACCOUNT}"))?])?;
    for family in Family::BOTH {
        let (server, device) = (family.far(1), family.device());
        let start = of(&lab, device)?;
        assert_eq!((start.up.bytes, start.down.bytes), (0, 0));
        download(&lab.device, &url(server, &path))?;
        let got = of(&lab, device)?;
        is_whole(got.down.bytes);
        is_acknowledgement(got.up.bytes);
        upload(&lab.device, &content.path, &url(server, "upload/counted"))?;
        let sent = of(&lab, device)?;
        is_whole(sent.up.bytes - got.up.bytes);
        is_acknowledgement(sent.down.bytes - got.down.bytes);
        // Datagrams in fragments, headers included: 20 or 48 bytes for each but the link's.
        echo_sizes(&lab.device, Far::echo_at(server), &[9_000])?;
        let echoed = of(&lab, device)?;
        for bytes in [
            echoed.up.bytes - sent.up.bytes,
            echoed.down.bytes - sent.down.bytes,
        ] {
            ensure!((9_000..9_800).contains(&bytes), "{bytes} for 9,000");
        }
        // Its neighbour on the other link is no way past the proxy.
        let second = lab.device2.as_ref().context("a second device")?;
        let echo = UdpEcho::start(second, 7001..=7001)?;
        echo_sizes(&lab.device, (family.device2(), 7001).into(), &[1_000])?;
        // The last segments of the upload may come late.
        let after = of(&lab, device)?;
        for more in [
            after.up.bytes - echoed.up.bytes,
            after.down.bytes - echoed.down.bytes,
        ] {
            ensure!(more < 500, "{more} bytes more");
        }
        drop(echo);
    }
    // Two devices, by their own addresses: nobody else is one.
    let known: Vec<IpAddr> = accounts(&lab)?.devices.iter().map(|it| it.0).collect();
    assert_eq!(known, Family::BOTH.map(Family::device));

    let networks = accounts(&lab)?.networks;
    let networks: Vec<String> = networks.iter().map(|it| it.0.to_string()).collect();
    assert_eq!(networks, ["203.0.113.0/24", "2001:db8:f::/48"]);

    // What the proxy relays is the proxy's to count, and a person sees both.
    lab.bypass(&["flush"])?;
    let counted = accounts(&lab)?;
    for family in Family::BOTH {
        download(&lab.device, &url(family.far(2), &path))?;
        echo_sizes(&lab.device, Far::echo_at(family.far(2)), &[100, 9_000])?;
    }
    assert_eq!(accounts(&lab)?, counted);
    for (by, names) in [
        (
            "device",
            Family::BOTH.map(|family| family.device().to_string()),
        ),
        (
            "network",
            ["203.0.113.0/24".into(), "2001:db8:f::/48".into()],
        ),
    ] {
        let shown: Value = lab
            .tproxy_run(&["account", "--by", by, "--json"])?
            .ok()?
            .json()?;
        let rows = shown.as_array().context("a list")?;
        assert_eq!(rows.len(), 2, "{shown}");
        for name in names {
            let row = rows.iter().find(|row| row["of"] == name.as_str());
            let row = row.with_context(|| format!("{name} in {shown}"))?;
            let bytes = |way: &str, to: &str| row[way][to].as_u64().unwrap_or_default();
            is_whole(bytes("direct", "up") - 9_000);
            is_whole(bytes("direct", "down") - 9_000);
            // A head of the request and of the answer, and two datagrams each way.
            ensure!(
                (SIZE..SIZE + 11_000).contains(&bytes("proxied", "down")),
                "{row}"
            );
            ensure!((9_100..11_000).contains(&bytes("proxied", "up")), "{row}");
        }
    }
    let table = lab.tproxy_run(&["account"])?.ok()?.stdout;
    for word in ["direct down", "24.1 MiB", &Family::V6.device().to_string()] {
        ensure!(table.contains(word), "{word} in {table}");
    }
    proxy.stop()?;
    lab.restored(&before)
}

#[test]
fn it_is_off_unless_asked_for_and_stays_as_it_was_set() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let echo = |n| echo_sizes(&lab.device, Far::echo_at(Family::V4.far(n)), &[100]);
    let device = Family::V4.device();
    lab.tproxy_run(&["attach", "-c", &config(&lab, BYPASS)?, "lan0"])?
        .ok()?;
    echo(1)?;
    assert_eq!(accounts(&lab)?, Account::default());

    let on = config(&lab, &format!("{BYPASS}{ACCOUNT}"))?;
    lab.tproxy_run(&["attach", "-c", &on, "lan0"])?.ok()?;
    echo(1)?;
    let counted = of(&lab, device)?;
    assert_eq!((counted.up.packets, counted.down.packets), (1, 1));
    // Another policy for a proxy that is down is no word on this.
    lab.tproxy_run(&["attach", "--on-proxy-down", "drop", "lan0"])?
        .ok()?;
    echo(2)?;
    assert_eq!(of(&lab, device)?.up.packets, 2);

    lab.tproxy_run(&["attach", "-c", &config(&lab, BYPASS)?, "lan0"])?
        .ok()?;
    echo(3)?;
    assert_eq!(of(&lab, device)?.up.packets, 2);
    drop(far);
    Ok(())
}
