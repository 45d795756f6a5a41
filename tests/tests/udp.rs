//! Datagrams through the proxy: peers by the thousand, every size, limits.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::Result;
use lab::{
    Family, Lab,
    addr::FAR_COUNT,
    probe::{at, carry, udp_at},
    servers::UdpEcho,
    traffic::{self, open_udp},
    wait::{SOON, until},
};

const DIRECT: &str = "direct://";
/// Empty, one byte, at and over the MTU of 1,500 for either family, and the largest that UDP carries over
/// IPv4.
const SIZES: [usize; 8] = [0, 1, 1_452, 1_453, 1_472, 1_473, 9_000, 65_507];

#[test]
fn ten_thousand_peers_of_one_socket_cost_no_files() -> Result<()> {
    let lab = Lab::new()?;
    let echo = UdpEcho::start(&lab.internet, 20_000..=20_499)?;
    let tproxy = lab.tproxy_with(DIRECT)?;
    let files = tproxy.open_files()?;
    for family in Family::BOTH {
        let addresses: Vec<IpAddr> = (1..=FAR_COUNT).map(|n| family.far(n)).collect();
        let peers = traffic::peers(&lab.device, &addresses, 20_000..=20_499, 64)?;
        assert_eq!((peers.asked, peers.answered), (10_000, 10_000));
        assert!(peers.wrong.is_empty(), "{:?}", peers.wrong);
        let clients: Vec<SocketAddr> = echo.clients().into_keys().collect();
        assert_eq!(clients.len(), 1, "one upstream port for all: {clients:?}");
        assert_eq!(clients[0].ip(), family.gateway_wan());
        echo.forget();
        let now = tproxy.open_files()?;
        assert!(now < files + 16, "{files} files before, {now} now");
        eprintln!(
            "{family:?}: {:?}, {} asked again, {now} files open, {files} before",
            peers.elapsed, peers.resent
        );
    }
    assert_eq!(lab.proxy_count("/associations")?, 2);
    assert_eq!(lab.proxy_count("/datagrams_refused")?, 0);
    let counted = lab.all_proxied()?;
    assert!(counted["udp_steered"] >= 20_000, "{counted:?}");
    assert!(counted["reply_sent"] >= 20_000, "{counted:?}");
    Ok(())
}

#[test]
fn anyone_may_write_to_a_mapped_port() -> Result<()> {
    let lab = Lab::new()?;
    let tproxy = lab.tproxy_with(DIRECT)?;
    for family in Family::BOTH {
        let device = open_udp(&lab.device, family)?;
        device.set_read_timeout(Some(Duration::from_secs(1)))?;
        let known = udp_at(&lab.internet, at(family.far(1), 5000))?;
        let other = udp_at(&lab.internet, at(family.far(2), 5001))?;
        let mapped = carry(&device, known.local_addr()?, &known, b"hello")?;
        assert_eq!(mapped.ip(), family.gateway_wan());
        let again = carry(&device, other.local_addr()?, &other, b"hello too")?;
        assert_eq!(again, mapped, "the same port for another peer");

        // Same address and another port; another address; neither was ever written to.
        for stranger in [
            at(family.far(1), 6000),
            at(family.far(3), 53),
            at(family.far(4), 65_535),
        ] {
            let socket = udp_at(&lab.internet, stranger)?;
            let seen = carry(&socket, mapped, &device, format!("{stranger}").as_bytes())?;
            assert_eq!(seen, stranger);
            let back = carry(&device, stranger, &socket, b"and back")?;
            assert_eq!(back, mapped);
        }

        // Another port of the device is another mapping, and gets none of it.
        let second = open_udp(&lab.device, family)?;
        second.set_read_timeout(Some(Duration::from_secs(1)))?;
        let its = carry(&second, known.local_addr()?, &known, b"second")?;
        assert_ne!(its, mapped);
        assert_eq!(
            carry(&known, its, &second, b"for the second")?,
            known.local_addr()?
        );
        assert_eq!(
            carry(&known, mapped, &device, b"for the first")?,
            known.local_addr()?
        );
        for socket in [&device, &second] {
            socket.set_nonblocking(true)?;
            let more = socket.recv_from(&mut [0; 64]).map_err(|error| error.kind());
            assert_eq!(more, Err(ErrorKind::WouldBlock));
        }
    }
    lab.all_proxied()?;
    tproxy.stop()
}

/// Every size, to two ports of a server at once, with links of these MTUs.
fn sizes(lan_mtu: u32, wan_mtu: u32) -> Result<()> {
    let lab = Lab::builder().lan_mtu(lan_mtu).wan_mtu(wan_mtu).build()?;
    let echo = UdpEcho::start(&lab.internet, 7000..=7001)?;
    let _tproxy = lab.tproxy_with(DIRECT)?;
    for family in Family::BOTH {
        for port in [7000, 7001] {
            traffic::echo_sizes(&lab.device, at(family.far(5), port), &SIZES)?;
        }
        let clients: BTreeSet<IpAddr> = echo.clients().keys().map(SocketAddr::ip).collect();
        assert_eq!(clients, BTreeSet::from([family.gateway_wan()]));
        echo.forget();
    }
    let counted = lab.all_proxied()?;
    assert!(
        counted["fragment_steered"] > 0 || lan_mtu > 65_535,
        "{counted:?}"
    );
    assert!(counted["lookup_steered"] > 0, "{counted:?}");
    assert_eq!(lab.proxy_count("/datagrams_refused")?, 0);
    Ok(())
}

#[test]
fn every_size_comes_back_whole() -> Result<()> {
    sizes(1_500, 1_500)
}

#[test]
fn every_size_with_a_narrower_lan() -> Result<()> {
    sizes(1_280, 1_500)
}

#[test]
fn every_size_with_a_narrower_wan() -> Result<()> {
    sizes(1_500, 1_280)
}

#[test]
fn every_size_with_jumbo_frames_on_either_side() -> Result<()> {
    sizes(9_000, 1_500)?;
    sizes(1_500, 9_000)
}

#[test]
fn what_only_asks_for_names_is_forgotten_soon() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = UdpEcho::start(&lab.internet, 53..=54)?;
    let tproxy = lab.tproxy_configured("[udp]\ndns_idle = \"1s\"\nidle = \"60s\"")?;
    let (files, sockets) = (tproxy.open_files()?, tproxy.open_sockets()?);
    let mut total = 0;
    for family in Family::BOTH {
        let before = lab.proxy_count("/associations")?;
        let ask = |socket: &UdpSocket, port: u16| {
            carry(socket, at(family.far(6), port), socket, b"a question")
        };
        let open = || -> Result<UdpSocket> {
            let socket = open_udp(&lab.device, family)?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            Ok(socket)
        };
        let (names, other, both) = (open()?, open()?, open()?);
        ask(&names, 53)?;
        ask(&other, 54)?;
        ask(&both, 53)?;
        ask(&both, 54)?;
        total += 3;
        assert_eq!(lab.proxy_count("/associations_total")?, total);
        lab.await_proxy_count("/associations", before + 2)?;
        // The two that live on are those that did something else, and not new ones.
        ask(&other, 54)?;
        ask(&both, 53)?;
        assert_eq!(lab.proxy_count("/associations_total")?, total);
        // A forgotten one is made anew when it asks again.
        ask(&names, 53)?;
        total += 1;
        assert_eq!(lab.proxy_count("/associations_total")?, total);
        lab.await_proxy_count("/associations", before + 2)?;
    }
    assert_eq!(tproxy.open_sockets()?, sockets + 4);
    assert!(tproxy.open_files()? <= files + 4 + 2);
    assert_eq!(lab.proxy_count("/evicted")?, 0);
    Ok(())
}

#[test]
fn at_the_cap_the_longest_unused_association_makes_room() -> Result<()> {
    const CAP: usize = 8;
    let lab = Lab::new()?;
    let echo = UdpEcho::start(&lab.internet, 7000..=7000)?;
    let tproxy = lab.tproxy_configured(&format!("[udp]\nmax_associations = {CAP}"))?;
    let sockets = tproxy.open_sockets()?;
    let ask = |socket: &UdpSocket| -> Result<()> {
        let target = at(Family::of(socket.local_addr()?.ip()).far(7), 7000);
        assert_eq!(carry(socket, target, socket, b"a question")?, target);
        Ok(())
    };
    let mut devices = Vec::new();
    for n in 0..CAP + 3 {
        let socket = open_udp(&lab.device, Family::BOTH[n % 2])?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        ask(&socket)?;
        if n + 1 == CAP {
            // The first is used again, so others are older.
            ask(&devices[0])?;
        }
        devices.push(socket);
    }
    assert_eq!(lab.proxy_count("/associations")?, CAP as u64);
    lab.await_proxy_count("/evicted", 3)?;
    until("closed sockets of evicted associations", SOON, || {
        Ok((tproxy.open_sockets()? == sockets + CAP).then_some(()))
    })?;
    // Those that made room were the second to the fourth: the first still has its upstream port.
    let known = echo.clients();
    assert_eq!(known.len(), CAP + 3);
    ask(&devices[0])?;
    assert_eq!(lab.proxy_count("/associations_total")?, CAP as u64 + 3);
    // One that made room gets a new place, at the cost of the longest unused.
    ask(&devices[1])?;
    assert_eq!(lab.proxy_count("/associations_total")?, CAP as u64 + 4);
    lab.await_proxy_count("/evicted", 4)?;
    assert_eq!(lab.proxy_count("/associations")?, CAP as u64);
    Ok(())
}

#[test]
fn nobody_upstream_does_not_disturb_the_others() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = UdpEcho::start(&lab.internet, 7000..=7000)?;
    let _tproxy = lab.tproxy_with(DIRECT)?;
    for family in Family::BOTH {
        let device = open_udp(&lab.device, family)?;
        device.set_read_timeout(Some(Duration::from_secs(1)))?;
        let (open, closed) = (at(family.far(8), 7000), at(family.far(8), 7999));
        let mapped = lab.proxy_count("/associations_total")?;
        for _ in 0..20 {
            // Port unreachable comes back to the proxy for each of these.
            device.send_to(b"nobody", closed)?;
            assert_eq!(carry(&device, open, &device, b"somebody")?, open);
        }
        assert_eq!(lab.proxy_count("/associations_total")?, mapped + 1);
    }
    Ok(())
}
