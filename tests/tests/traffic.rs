//! What devices do through the proxy with nothing but `run --lan lan0 --outbound direct://`: transfers,
//! names, throughput; and what stays out of its reach: the gateway itself, and its own ports.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use lab::{
    Family, Lab, Namespace,
    addr::url,
    probe::{at, carry, overflowed_datagrams, udp_at},
    servers::{Dnsmasq, Iperf, Nginx, TcpEcho, UdpEcho},
    traffic::{self, Test, connect, open_udp, whoami},
};
use tproxy_common::abi::LANES;

const MIB: u64 = 1 << 20;
const DIRECT: &str = "direct://";

/// One gibibyte down and one up, whole, and the server sees the gateway.
fn a_gibibyte_both_ways(family: Family) -> Result<()> {
    let lab = Lab::new()?;
    let nginx = Nginx::start(&lab.internet, lab.dir())?;
    let (path, content) = nginx.offer(1024 * MIB)?;
    let _tproxy = lab.tproxy_with(DIRECT)?;
    let server = family.far(1);

    let down = traffic::download(&lab.device, &url(server, &path))?;
    assert_eq!((down.bytes, &down.sha256), (content.bytes, &content.sha256));
    let up = traffic::upload(&lab.device, &content.path, &url(server, "upload/whole"))?;
    assert_eq!(nginx.uploaded("whole")?, content.sha256);
    assert_eq!(whoami(&lab.device, server)?, family.gateway_wan());
    let put = nginx.request_for("/upload/whole")?;
    assert_eq!((put.client, put.server), (family.gateway_wan(), server));

    lab.await_proxy_count("/connections", 0)?;
    let counted = lab.all_proxied()?;
    assert_eq!(counted["tcp_opened"], 3);
    let traffic = lab.proxy_traffic()?;
    assert_eq!(traffic["connections_total"], 3);
    // HTTP's own bytes come on top.
    for direction in ["bytes_up", "bytes_down"] {
        let bytes = traffic[direction].as_u64().unwrap_or_default();
        assert!(
            (content.bytes..content.bytes + 10_000).contains(&bytes),
            "{direction}: {bytes}"
        );
    }
    assert_eq!(traffic["failures"], serde_json::json!({}));
    eprintln!("{family:?}: 1 GiB down {:?}, up {up:?}", down.elapsed);
    Ok(())
}

#[test]
fn a_gibibyte_both_ways_over_ipv4() -> Result<()> {
    a_gibibyte_both_ways(Family::V4)
}

#[test]
fn a_gibibyte_both_ways_over_ipv6() -> Result<()> {
    a_gibibyte_both_ways(Family::V6)
}

#[test]
fn two_hundred_downloads_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let nginx = Nginx::start(&lab.internet, lab.dir())?;
    let (path, content) = nginx.offer(MIB / 4 + 1)?;
    let tproxy = lab.tproxy_with(DIRECT)?;
    let before = tproxy.open_now()?;
    for family in Family::BOTH {
        let url = url(family.far(2), &path);
        let hashes = traffic::parallel_downloads(&lab.device, &url, 200, lab.dir())?;
        assert_eq!(hashes.len(), 200);
        assert!(hashes.iter().all(|hash| *hash == content.sha256));
    }
    lab.await_proxy_count("/connections", 0)?;
    let counted = lab.all_proxied()?;
    assert_eq!(lab.proxy_count("/connections_total")?, 400);
    assert_eq!(counted["tcp_opened"], 400);
    let requests = nginx.requests()?;
    for family in Family::BOTH {
        let seen = |request: &&lab::servers::Request| request.client == family.gateway_wan();
        assert_eq!(requests.iter().filter(seen).count(), 200);
    }
    tproxy.back_to(before)
}

#[test]
fn names_are_resolved_over_udp_and_tcp() -> Result<()> {
    let lab = Lab::new()?;
    let dnsmasq = Dnsmasq::start(&lab.internet)?;
    let _tproxy = lab.tproxy_with(DIRECT)?;
    let mut count = 0;
    for family in Family::BOTH {
        let server = family.far(3);
        for ask in [traffic::dig, traffic::dig_tcp] {
            for (kind, answer) in [("A", Family::V4), ("AAAA", Family::V6)] {
                let answers = ask(&lab.device, server, "host.lab", kind)?;
                assert_eq!(answers, [answer.far(1).to_string()]);
                count += 1;
                assert_eq!(dnsmasq.client_of("host.lab", count)?, family.gateway_wan());
            }
        }
        let whole = traffic::dig_tcp(&lab.device, server, "big.lab", "TXT")?;
        assert_eq!(whole.concat().matches('x').count(), 13 * 250);
    }
    lab.await_proxy_count("/connections", 0)?;
    let counted = lab.all_proxied()?;
    assert_eq!(counted["tcp_opened"], 6);
    assert_eq!(counted["udp_steered"], 4);
    assert_eq!(counted["reply_sent"], 4);
    assert_eq!(lab.proxy_count("/associations_total")?, 4);
    Ok(())
}

#[test]
fn iperf_measures_both_ways_and_udp() -> Result<()> {
    let lab = Lab::new()?;
    let _tproxy = lab.tproxy_with(DIRECT)?;
    let overflowed = |one: &Namespace, other: &Namespace| {
        anyhow::Ok(overflowed_datagrams(one)? + overflowed_datagrams(other)?)
    };
    let mut overflowed_before = 0;
    for family in Family::BOTH {
        let server = Iperf::start(&lab.internet, family.far(1))?;
        for test in Test::all("50M") {
            let report = traffic::iperf(&lab.device, server.address(), test)?;
            let least = if test.udp.is_some() { 30e6 } else { 200e6 };
            assert!(
                report.bits_per_second > least,
                "{family:?} {test:?}: {} bit/s",
                report.bits_per_second
            );
            if test.udp.is_some() {
                // iperf3's own buffers overflow when it does not get the CPU in time.
                let ends = overflowed(&lab.device, &lab.internet)?;
                let own = ends - std::mem::replace(&mut overflowed_before, ends);
                let lost = report.json["end"]["sum"]["lost_packets"].as_u64();
                let lost = lost.context("iperf3 says nothing of losses")?;
                assert!(lost <= own + 5, "{lost} lost, {own} by iperf3 itself");
            }
            eprintln!(
                "{family:?} {test:?}: {:.0} Mbit/s, {:.2} % lost",
                report.bits_per_second / 1e6,
                report.lost_percent
            );
        }
    }
    assert_eq!(overflowed_datagrams(&lab.gateway)?, 0);
    let traffic = lab.proxy_traffic()?;
    for lost in [
        "datagrams_blocked",
        "datagrams_lost",
        "datagrams_refused",
        "datagrams_dropped",
    ] {
        assert_eq!(traffic[lost], 0, "{lost}");
    }
    // iperf3 resets connections, and what it sends after that has no connection any more.
    let counted = lab.counted()?;
    assert_eq!(counted.get("direct_connection"), None, "{counted:?}");
    assert_eq!(counted.get("down_passed"), None, "{counted:?}");
    // A control connection for each test, and one more for the data of TCP.
    assert_eq!(counted["tcp_opened"], 2 * (2 * 2 + 2));
    Ok(())
}

/// The proxy's own addresses, by `ss` in the gateway: TCP listeners and UDP sockets.
fn own_addresses(lab: &Lab, pid: u32) -> Result<[Vec<SocketAddr>; 2]> {
    let of = |kind: &str| -> Result<Vec<SocketAddr>> {
        let output = lab.gateway.run(&["ss", "-Hnlp", kind])?;
        let lines = output
            .stdout
            .lines()
            .filter(|line| line.contains(&format!("pid={pid},")));
        lines
            .map(|line| {
                let local = line.split_whitespace().nth(3).context("no local address")?;
                local.parse().with_context(|| format!("reading {line:?}"))
            })
            .collect()
    };
    Ok([of("-t")?, of("-u")?])
}

/// `nc` from a namespace to an address: what it says when it is refused.
fn netcat(ns: &Namespace, target: SocketAddr) -> Result<String> {
    let (ip, port) = (target.ip().to_string(), target.port().to_string());
    let output = ns.try_run(&["nc", "-nv", "-w", "5", &ip, &port])?;
    Ok(output.stderr)
}

#[test]
fn its_own_ports_are_refused_to_everyone() -> Result<()> {
    let lab = Lab::new()?;
    let tproxy = lab.tproxy_with(DIRECT)?;
    let [tcp, udp] = own_addresses(&lab, tproxy.process().pid())?;
    let all = 2 * LANES as usize;
    assert_eq!((tcp.len(), udp.len()), (all, all), "{tcp:?} {udp:?}");
    // The first and the last lane of each family.
    let ends = [0, all / 2 - 1, all / 2, all - 1].map(|lane| (tcp[lane], udp[lane]));
    let before = tproxy.open_now()?;
    let cpu = tproxy.cpu_time()?;
    let mut own = 0;
    for (tcp, udp) in ends {
        let family = Family::of(tcp.ip());
        assert_eq!(Family::of(udp.ip()), family);
        // From the LAN and from the WAN: the gateway's addresses are not captured, and nobody listens there.
        let outside = [
            (&lab.device, family.gateway_lan()),
            (&lab.device, family.gateway_wan()),
            (&lab.internet, family.gateway_wan()),
            (&lab.internet, family.gateway_lan()),
            (&lab.gateway, family.gateway_lan()),
            (&lab.gateway, family.gateway_wan()),
        ];
        for (ns, address) in outside {
            let said = netcat(ns, at(address, tcp.port()))?;
            assert!(
                said.contains("refused"),
                "from {} to {address}: {said}",
                ns.name()
            );
            refused_datagram(ns, at(address, udp.port()))?;
        }
        // From the gateway itself the listener can be reached; it ends the connection and counts it.
        let said = lab.gateway.try_run(&[
            "nc",
            "-nv",
            "-w",
            "5",
            &tcp.ip().to_string(),
            &tcp.port().to_string(),
        ])?;
        assert!(said.stdout.is_empty(), "{said:?}");
        own += 1;
        lab.await_proxy_count("/own_port", own)?;
        let socket = open_udp(&lab.gateway, family)?;
        socket.send_to(b"to yourself", udp)?;
        own += 1;
        lab.await_proxy_count("/own_port", own)?;
        lab.await_proxy_count("/connections", 0)?;
    }
    // A loop would have made a connection of each connection, on and on.
    assert_eq!(lab.proxy_count("/connections_total")?, ends.len() as u64);
    assert_eq!(lab.proxy_count("/associations_total")?, 0);
    tproxy.back_to(before)?;
    let used = tproxy.cpu_time()? - cpu;
    assert!(used <= Duration::from_millis(100), "it used {used:?}");
    Ok(())
}

/// Sends a datagram from a connected socket and wants the ICMP error.
fn refused_datagram(ns: &Namespace, target: SocketAddr) -> Result<()> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = udp_at(ns, at(any, 0))?;
    socket.connect(target)?;
    socket.send(b"anyone?")?;
    let answer = socket.recv(&mut [0; 16]).map_err(|error| error.kind());
    assert_eq!(
        answer,
        Err(std::io::ErrorKind::ConnectionRefused),
        "{target}"
    );
    Ok(())
}

/// The port number means nothing: at another address it is a destination like any other.
#[test]
fn its_port_elsewhere_is_proxied() -> Result<()> {
    let lab = Lab::new()?;
    let tproxy = lab.tproxy_with(DIRECT)?;
    let [tcp, udp] = own_addresses(&lab, tproxy.process().pid())?;
    for (tcp, udp) in tcp.iter().zip(&udp) {
        let family = Family::of(tcp.ip());
        let echo = TcpEcho::start(&lab.internet, tcp.port())?;
        let mut stream = connect(&lab.device, at(family.far(2), tcp.port()))?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        assert_eq!(echo.clients()[0].ip(), family.gateway_wan());

        let _echo = UdpEcho::start(&lab.internet, udp.port()..=udp.port())?;
        let target = at(family.far(2), udp.port());
        let socket = open_udp(&lab.device, family)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        assert_eq!(carry(&socket, target, &socket, b"x")?, target);
    }
    assert_eq!(lab.proxy_count("/own_port")?, 0);
    Ok(())
}

#[test]
fn the_gateway_itself_is_reached_as_ever() -> Result<()> {
    let lab = Lab::new()?;
    let ssh = TcpEcho::start(&lab.gateway, 22)?;
    let names = UdpEcho::start(&lab.gateway, 53..=53)?;
    let _tproxy = lab.tproxy_with(DIRECT)?;
    let ping = |address: IpAddr, size: &str| -> Result<()> {
        let ip = address.to_string();
        lab.device
            .run(&["ping", "-c2", "-i0.01", "-W2", "-s", size, &ip])?;
        Ok(())
    };
    for family in Family::BOTH {
        for address in [family.gateway_lan(), family.gateway_wan()] {
            let mut stream = connect(&lab.device, at(address, 22))?;
            stream.write_all(b"ssh")?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            assert_eq!(answer, "ssh", "{address}");
            let socket = open_udp(&lab.device, family)?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            assert_eq!(
                carry(&socket, at(address, 53), &socket, b"dns")?,
                at(address, 53)
            );
            ping(address, "56")?;
            ping(address, "4000")?;
        }
        // Through it, whole and in fragments; the internet's own end of the WAN too.
        for address in [family.far(9), family.internet()] {
            ping(address, "56")?;
            ping(address, "4000")?;
        }
    }
    assert!(ssh.clients().iter().all(|client| {
        let ip = client.ip();
        ip == Family::of(ip).device()
    }));
    assert_eq!(ssh.clients().len(), 4);
    assert!(names.clients().keys().all(|client| {
        let ip = client.ip();
        ip == Family::of(ip).device()
    }));
    let counted = lab.counted()?;
    for steered in [
        "tcp_opened",
        "udp_steered",
        "tcp_steered",
        "fragment_steered",
    ] {
        assert_eq!(counted.get(steered), None, "{counted:?}");
    }
    Ok(())
}
