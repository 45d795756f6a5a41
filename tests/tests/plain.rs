//! The lab itself, with plain forwarding: what these tests do through the gateway is what the others
//! do through the proxy.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr},
};

use anyhow::{Result, ensure};
use lab::{
    Family, Lab, Lan, Namespace, Snapshot,
    addr::{FAR_COUNT, url},
    or_skip,
    servers::{Content, Danted, Dnsmasq, Iperf, Microsocks, Nginx, TcpEcho, UdpEcho, V2ray},
    traffic::{self, HeldDownload, Test, whoami},
};

const MIB: u64 = 1 << 20;

#[test]
fn downloads_and_uploads_are_whole_and_the_server_sees_the_device() -> Result<()> {
    let lab = Lab::new()?;
    let nginx = Nginx::start(&lab.internet, lab.dir())?;
    let (path, content) = nginx.offer(64 * MIB)?;
    for family in Family::BOTH {
        let server = family.far(1);
        let down = traffic::download(&lab.device, &url(server, &path))?;
        assert_eq!((down.bytes, &down.sha256), (content.bytes, &content.sha256));
        let name = format!("{family:?}");
        let to = url(server, &format!("upload/{name}"));
        traffic::upload(&lab.device, &content.path, &to)?;
        assert_eq!(nginx.uploaded(&name)?, content.sha256);

        assert_eq!(whoami(&lab.device, server)?, family.device());
        assert_eq!(whoami(&lab.gateway, server)?, family.gateway_wan());
        let put = nginx.request_for(&format!("/upload/{name}"))?;
        assert_eq!((put.client, put.server), (family.device(), server));
        assert_eq!((put.method.as_str(), put.status), ("PUT", 201));
    }
    Ok(())
}

#[test]
fn two_hundred_downloads_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let nginx = Nginx::start(&lab.internet, lab.dir())?;
    let (path, content) = nginx.offer(MIB / 4 + 1)?;
    for family in Family::BOTH {
        let url = url(family.far(2), &path);
        let hashes = traffic::parallel_downloads(&lab.device, &url, 200, lab.dir())?;
        assert_eq!(hashes.len(), 200);
        assert!(hashes.iter().all(|hash| *hash == content.sha256));
    }
    Ok(())
}

#[test]
fn a_held_download_lives_until_it_is_finished() -> Result<()> {
    let lab = Lab::new()?;
    let nginx = Nginx::start(&lab.internet, lab.dir())?;
    let (path, content) = nginx.offer(64 * MIB)?;
    let mut held = HeldDownload::start(&lab.device, &url(Family::V4.far(1), &path))?;
    held.advance(MIB)?;
    assert!(
        nginx.requests()?.is_empty(),
        "the whole file fits into the buffers on the way, so it was not held"
    );
    held.advance(MIB)?;
    assert_eq!(held.finish()?.sha256, content.sha256);

    // And when the way is cut it does not look finished.
    let mut cut = HeldDownload::start(&lab.device, &url(Family::V4.far(1), &path))?;
    cut.advance(MIB)?;
    drop(nginx);
    let error = cut.finish().expect_err("the server is gone");
    assert!(error.to_string().contains("failed after"), "{error}");
    Ok(())
}

#[test]
fn names_are_resolved_over_udp_and_tcp() -> Result<()> {
    let lab = Lab::new()?;
    let dnsmasq = Dnsmasq::start(&lab.internet)?;
    let mut count = 0;
    for family in Family::BOTH {
        let server = family.far(3);
        for ask in [traffic::dig, traffic::dig_tcp] {
            let answer = ask(&lab.device, server, "host.lab", "A")?;
            assert_eq!(answer, [Family::V4.far(1).to_string()]);
            count += 1;
            assert_eq!(dnsmasq.client_of("host.lab", count)?, family.device());
        }
        let answer = traffic::dig(&lab.device, server, "host.lab", "AAAA")?;
        assert_eq!(answer, [Family::V6.far(1).to_string()]);
        count += 1;
        let whole = traffic::dig_tcp(&lab.device, server, "big.lab", "TXT")?;
        assert_eq!(whole.concat().matches('x').count(), 13 * 250);
        let truncated = traffic::dig(&lab.device, server, "big.lab", "TXT")?;
        assert!(truncated.concat().matches('x').count() < 13 * 250);
    }
    Ok(())
}

#[test]
fn datagrams_of_every_size_come_back_from_where_they_were_sent() -> Result<()> {
    let lab = Lab::new()?;
    let echo = UdpEcho::start(&lab.internet, 7000..=7001)?;
    for family in Family::BOTH {
        let target = SocketAddr::new(family.far(5), 7000);
        traffic::echo_sizes(
            &lab.device,
            target,
            &[0, 1, 1_452, 1_472, 1_473, 9_000, 65_507],
        )?;
        let clients: Vec<IpAddr> = echo.clients().keys().map(SocketAddr::ip).collect();
        assert_eq!(clients, [family.device()], "one socket, the device's own");
        echo.forget();
    }
    Ok(())
}

#[test]
fn ten_thousand_peers_of_one_socket() -> Result<()> {
    let lab = Lab::new()?;
    let echo = UdpEcho::start(&lab.internet, 20_000..=20_499)?;
    for family in Family::BOTH {
        let addresses: Vec<IpAddr> = (1..=FAR_COUNT).map(|n| family.far(n)).collect();
        let peers = traffic::peers(&lab.device, &addresses, 20_000..=20_499, 64)?;
        assert_eq!((peers.asked, peers.answered), (10_000, 10_000));
        assert!(peers.wrong.is_empty(), "{:?}", peers.wrong);
        assert_eq!(echo.clients().len(), 1);
        echo.forget();
        eprintln!(
            "{family:?}: {:?}, {} asked again",
            peers.elapsed, peers.resent
        );
    }
    Ok(())
}

#[test]
fn iperf_measures_both_ways_and_udp() -> Result<()> {
    let lab = Lab::new()?;
    let tests = [
        (Family::V4, Test::default()),
        (
            Family::V6,
            Test {
                reverse: true,
                ..Test::default()
            },
        ),
        (
            Family::V6,
            Test {
                udp: Some("50M"),
                length: Some(1_200),
                ..Test::default()
            },
        ),
    ];
    for (family, test) in tests {
        let server = Iperf::start(&lab.internet, family.far(1))?;
        let report = traffic::iperf(&lab.device, server.address(), test)?;
        let least = if test.udp.is_some() { 40e6 } else { 200e6 };
        assert!(
            report.bits_per_second > least,
            "{test:?}: {} bit/s",
            report.bits_per_second
        );
        assert!(report.lost_percent < 5.0, "{} % lost", report.lost_percent);
    }
    Ok(())
}

#[test]
fn tcp_echo_ends_its_direction_after_the_client_does() -> Result<()> {
    let lab = Lab::new()?;
    let far = TcpEcho::start(&lab.internet, 7)?;
    let near = TcpEcho::start(&lab.gateway, 22)?;
    for family in Family::BOTH {
        for target in [
            SocketAddr::new(family.far(20), 7),
            SocketAddr::new(family.gateway_lan(), 22),
            SocketAddr::new(family.gateway_wan(), 22),
        ] {
            let mut stream = traffic::connect(&lab.device, target)?;
            stream.write_all(b"hello")?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            assert_eq!(answer, "hello", "{target}");
        }
        lab.device
            .run(&["ping", "-c1", "-W2", &family.far(9).to_string()])?;
    }
    assert_eq!(far.clients().len(), 2);
    assert!(near.clients().iter().all(|client| {
        let ip = client.ip();
        ip == Family::of(ip).device()
    }));
    Ok(())
}

#[test]
fn with_masquerade_servers_see_the_gateway() -> Result<()> {
    let lab = Lab::builder().masquerade().build()?;
    let _nginx = Nginx::start(&lab.internet, lab.dir())?;
    for family in Family::BOTH {
        assert_eq!(whoami(&lab.device, family.far(1))?, family.gateway_wan());
    }
    Ok(())
}

/// curl through a SOCKS server: the address that nginx sees.
fn whoami_by(ns: &Namespace, proxy: &str, server: IpAddr) -> Result<IpAddr> {
    let output = ns.run(&[
        "curl",
        "-sS",
        "--fail",
        "--max-time",
        "10",
        "--proxy",
        proxy,
        &url(server, "whoami"),
    ])?;
    Ok(output
        .stdout
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .parse()?)
}

#[test]
fn socks_servers_connect_for_those_who_know_the_password() -> Result<()> {
    let lab = Lab::new()?;
    let _nginx = Nginx::start(&lab.internet, lab.dir())?;
    let danted = Danted::start(&lab.internet, lab.dir())?;
    for client in Family::BOTH {
        for target in Family::BOTH {
            let seen = whoami_by(&lab.gateway, &danted.url(client), target.far(1))?;
            assert_eq!(seen, target.upstream(1));
        }
        let wrong = danted.url(client).replace("secret", "other");
        assert!(whoami_by(&lab.gateway, &wrong, client.far(1)).is_err());
    }
    assert_eq!(danted.open_associations(), 0);
    let microsocks = Microsocks::start(&lab.internet, Family::V4)?;
    let seen = whoami_by(&lab.gateway, &microsocks.url(), Family::V4.far(1))?;
    assert_eq!(seen, Family::V4.upstream(2));
    let (configuration, address) = V2ray::socks(Family::V4);
    let _v2ray = V2ray::start(&lab.internet, lab.dir(), &configuration, address.port())?;
    let seen = whoami_by(
        &lab.gateway,
        &format!("socks5://{address}"),
        Family::V4.far(1),
    )?;
    assert_eq!(seen, Family::V4.upstream(3));
    Ok(())
}

#[test]
fn every_kind_of_lan_carries_both_families() -> Result<()> {
    for lan in [Lan::Bridge, Lan::Tun, Lan::Vlan(10), Lan::QinQ(20, 30)] {
        let Some(lab) = or_skip(Lab::builder().lan(lan).lan_mtu(1400).build())? else {
            continue;
        };
        let nginx = Nginx::start(&lab.internet, lab.dir())?;
        let echo = UdpEcho::start(&lab.internet, 7000..=7000)?;
        let (path, content) = nginx.offer(MIB)?;
        for family in Family::BOTH {
            let down = traffic::download(&lab.device, &url(family.far(1), &path))?;
            assert_eq!(down.sha256, content.sha256, "{lan:?}");
            let target = SocketAddr::new(family.far(1), 7000);
            traffic::echo_sizes(&lab.device, target, &[1, 1_473, 65_507])?;
        }
        drop(echo);
    }
    Ok(())
}

#[test]
fn a_second_lan_and_a_neighbour_on_the_wan() -> Result<()> {
    let lab = Lab::builder().second_lan().neighbour().build()?;
    let _nginx = Nginx::start(&lab.internet, lab.dir())?;
    let (device2, neighbour) = (lab.device2.as_ref(), lab.neighbour.as_ref());
    for family in Family::BOTH {
        let server = family.far(1);
        assert_eq!(whoami(&lab.device, server)?, family.device());
        let seen = device2.map(|ns| whoami(ns, server)).transpose()?;
        assert_eq!(seen, Some(family.device2()));
        // By way of the gateway: it is the neighbour's default route.
        let seen = neighbour.map(|ns| whoami(ns, server)).transpose()?;
        assert_eq!(seen, Some(family.neighbour()));
    }
    Ok(())
}

#[test]
fn a_snapshot_shows_what_changed_and_only_that() -> Result<()> {
    let lab = Lab::new()?;
    let before = Snapshot::take(&lab)?;
    Snapshot::take(&lab)?.same_as(&before)?;
    lab.gateway.ip(&[
        "rule add fwmark 0xa0/0xf0 lookup 29808 priority 100",
        "route add local default dev lo table 29808",
    ])?;
    lab.gateway
        .run(&["tc", "qdisc", "add", "dev", "lan0", "clsact"])?;
    lab.gateway
        .sysctl(&[("net/ipv4/conf/lo/accept_local", "1")])?;
    let changes = Snapshot::take(&lab)?.since(&before);
    for part in ["rule: 100:", "route: local default", "qdisc: qdisc clsact"] {
        assert!(
            changes
                .iter()
                .any(|line| line.starts_with("+ ") && line.contains(part)),
            "no {part} in {changes:#?}"
        );
    }
    assert!(changes.contains(&"- sysctl: net/ipv4/conf/lo/accept_local = 0".to_owned()));
    assert_eq!(changes.len(), 5, "{changes:#?}");
    Ok(())
}

#[test]
fn a_lab_leaves_nothing_behind() -> Result<()> {
    let lab = Lab::new()?;
    let (path, dir) = (lab.gateway.path(), lab.dir().to_owned());
    // A daemon that nobody holds a guard of.
    lab.gateway
        .run(&["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"])?;
    let inode = lab.gateway.inode().to_string();
    std::fs::create_dir_all(lab.state())?;
    let state = lab.state();
    assert!(state.ends_with(&inode));
    drop(lab);
    ensure!(!path.exists(), "{} is still there", path.display());
    ensure!(!dir.exists(), "{} is still there", dir.display());
    ensure!(!state.exists(), "{} is still there", state.display());
    Ok(())
}

#[test]
fn content_is_what_its_hash_says() -> Result<()> {
    let content = Content::of(3 * MIB + 5)?;
    assert_eq!(std::fs::metadata(&content.path)?.len(), 3 * MIB + 5);
    assert_eq!(lab::servers::hash_file(&content.path)?, content.sha256);
    Ok(())
}
