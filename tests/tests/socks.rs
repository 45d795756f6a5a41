//! What devices do through the proxy when its outbound is a real SOCKS5 server.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::Result;
use lab::{
    Family, Lab, Tproxy,
    addr::url,
    probe::{at, carry, is_reset_at_once},
    servers::{Danted, Dnsmasq, Iperf, Microsocks, Nginx, TcpEcho, UdpEcho, V2ray},
    traffic::{self, Test, connect, open_udp, whoami},
    wait::{SOON, until},
};

const MIB: u64 = 1 << 20;

/// A lab whose proxy goes through danted, reached over `family`.
fn through_danted(family: Family) -> Result<(Lab, Danted, Tproxy)> {
    let lab = Lab::new()?;
    let danted = Danted::start(&lab.internet, lab.dir())?;
    let tproxy = lab.tproxy_with(&danted.url(family))?;
    Ok((lab, danted, tproxy))
}

fn udp_socket(lab: &Lab, family: Family) -> Result<UdpSocket> {
    let socket = open_udp(&lab.device, family)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    Ok(socket)
}

#[test]
fn downloads_and_uploads_are_whole_and_the_server_sees_the_socks_server() -> Result<()> {
    for by in Family::BOTH {
        let (lab, _danted, tproxy) = through_danted(by)?;
        let nginx = Nginx::start(&lab.internet, lab.dir())?;
        let (path, content) = nginx.offer(256 * MIB)?;
        for family in Family::BOTH {
            let server = family.far(1);
            let down = traffic::download(&lab.device, &url(server, &path))?;
            assert_eq!((down.bytes, &down.sha256), (content.bytes, &content.sha256));
            let name = format!("{family:?}");
            let to = url(server, &format!("upload/{name}"));
            let up = traffic::upload(&lab.device, &content.path, &to)?;
            assert_eq!(nginx.uploaded(&name)?, content.sha256);
            assert_eq!(whoami(&lab.device, server)?, family.upstream(1));
            let put = nginx.request_for(&format!("/upload/{name}"))?;
            assert_eq!((put.client, put.server), (family.upstream(1), server));
            eprintln!(
                "to {family:?} by {by:?}: 256 MiB down {:?}, up {up:?}",
                down.elapsed
            );
        }
        lab.await_proxy_count("/connections", 0)?;
        let counted = lab.all_proxied()?;
        assert_eq!(counted["tcp_opened"], 6);
        assert_eq!(lab.proxy_traffic()?["failures"], serde_json::json!({}));
        tproxy.stop()?;
    }
    Ok(())
}

#[test]
fn two_hundred_downloads_at_once() -> Result<()> {
    let (lab, _danted, tproxy) = through_danted(Family::V4)?;
    let nginx = Nginx::start(&lab.internet, lab.dir())?;
    let (path, content) = nginx.offer(MIB / 4 + 1)?;
    let before = tproxy.open_now()?;
    for family in Family::BOTH {
        let start = Instant::now();
        let url = url(family.far(2), &path);
        let hashes = traffic::parallel_downloads(&lab.device, &url, 200, lab.dir())?;
        assert_eq!(hashes.len(), 200);
        assert!(hashes.iter().all(|hash| *hash == content.sha256));
        eprintln!("{family:?}: {:?}", start.elapsed());
    }
    lab.await_proxy_count("/connections", 0)?;
    assert_eq!(lab.all_proxied()?["tcp_opened"], 400);
    tproxy.back_to(before)
}

#[test]
fn names_and_throughput_over_both_protocols() -> Result<()> {
    for by in Family::BOTH {
        let (lab, _danted, _tproxy) = through_danted(by)?;
        let dnsmasq = Dnsmasq::start(&lab.internet)?;
        let mut count = 0;
        for family in Family::BOTH {
            for ask in [traffic::dig, traffic::dig_tcp] {
                let answers = ask(&lab.device, family.far(3), "host.lab", "AAAA")?;
                assert_eq!(answers, [Family::V6.far(1).to_string()]);
                count += 1;
                assert_eq!(
                    dnsmasq.client_of("host.lab", count)?,
                    family.upstream(1),
                    "to {family:?} by {by:?}"
                );
            }
            let server = Iperf::start(&lab.internet, family.far(1))?;
            for test in Test::all("20M") {
                let report = traffic::iperf(&lab.device, server.address(), test)?;
                let least = if test.udp.is_some() { 15e6 } else { 50e6 };
                assert!(
                    report.bits_per_second > least,
                    "to {family:?} by {by:?} {test:?}: {} bit/s",
                    report.bits_per_second
                );
                eprintln!(
                    "to {family:?} by {by:?}, {test:?}: {:.0} Mbit/s, \
                         {:.2} % lost",
                    report.bits_per_second / 1e6,
                    report.lost_percent
                );
            }
        }
    }
    Ok(())
}

#[test]
fn datagrams_of_every_size_and_one_port_for_all_peers() -> Result<()> {
    for by in Family::BOTH {
        let (lab, danted, tproxy) = through_danted(by)?;
        let echo = UdpEcho::start(&lab.internet, 7000..=7009)?;
        for family in Family::BOTH {
            // SOCKS5's header takes 10 or 22 of the bytes that a datagram can have.
            let header = if family == Family::V4 { 10 } else { 22 };
            let sizes = [0, 1, 1_472, 1_473, 9_000, 65_507 - header];
            traffic::echo_sizes(&lab.device, at(family.far(5), 7000), &sizes)?;
            echo.forget();

            let files = tproxy.open_files()?;
            // Of IPv6 answers danted takes only those from the address that it first sent to.
            let count = if family == Family::V4 { 10 } else { 1 };
            let addresses: Vec<IpAddr> = (1..=count).map(|n| family.far(n)).collect();
            let peers = traffic::peers(&lab.device, &addresses, 7000..=7009, 16)?;
            assert_eq!(peers.asked, 10 * usize::from(count));
            assert_eq!(peers.answered, peers.asked);
            assert!(peers.wrong.is_empty(), "{:?}", peers.wrong);
            let clients: Vec<SocketAddr> = echo.clients().into_keys().collect();
            assert_eq!(clients.len(), 1, "{clients:?}");
            assert_eq!(clients[0].ip(), family.upstream(1));
            assert!(tproxy.open_files()? <= files + 2);
        }
        assert_eq!(lab.proxy_count("/datagrams_refused")?, 0);
        assert_eq!(danted.open_associations(), 4);
        lab.all_proxied()?;

        // A byte more does not fit into the wrapping: it is dropped and counted, and the next one goes.
        let family = by;
        let socket = udp_socket(&lab, family)?;
        let target = at(family.far(5), 7000);
        carry(&socket, target, &socket, b"before")?;
        socket.send_to(&vec![1; 65_507], target)?;
        lab.await_proxy_count("/datagrams_refused", 1)?;
        carry(&socket, target, &socket, b"after")?;
    }
    Ok(())
}

#[test]
fn an_association_and_its_control_connection_end_together() -> Result<()> {
    for by in Family::BOTH {
        let lab = Lab::new()?;
        let danted = Danted::start(&lab.internet, lab.dir())?;
        let _echo = UdpEcho::start(&lab.internet, 7000..=7000)?;
        let tproxy = lab.tproxy_configured(&format!(
            "[udp]\nidle = \"1s\"\n[[outbound]]\nname = \"danted\"\nurl = \"{}\"",
            danted.url(by)
        ))?;
        let before = tproxy.open_now()?;
        let target = at(by.far(5), 7000);
        let devices = [udp_socket(&lab, by)?, udp_socket(&lab, by)?];
        for device in &devices {
            carry(device, target, device, b"hello")?;
        }
        lab.await_proxy_count("/associations", 0)?;
        until("the end of danted's associations", SOON, || {
            Ok((danted.open_associations() == 0).then_some(()))
        })?;
        tproxy.back_to(before)?;

        // The other way round: the server goes, and with it the association. The next server serves the next
        // datagram.
        carry(&devices[0], target, &devices[0], b"again")?;
        drop(danted);
        lab.await_proxy_count("/associations", 0)?;
        let _danted = Danted::start(&lab.internet, lab.dir())?;
        carry(&devices[0], target, &devices[0], b"and again")?;
    }
    Ok(())
}

/// Sends a datagram that cannot be answered.
fn is_not_answered(lab: &Lab, target: SocketAddr, outcome: &str) -> Result<()> {
    let socket = udp_socket(lab, Family::of(target.ip()))?;
    let pointer = format!("/failures/{outcome}");
    let before = lab.proxy_count(&pointer)?;
    socket.send_to(b"anyone?", target)?;
    // It is held down for a moment before it is given up and counted.
    lab.await_proxy_count(&pointer, before + 1)?;
    socket.set_nonblocking(true)?;
    let answer = socket.recv_from(&mut [0; 16]).map_err(|error| error.kind());
    assert_eq!(answer, Err(ErrorKind::WouldBlock));
    Ok(())
}

#[test]
fn a_wrong_password_is_a_reset_and_shows_in_the_status() -> Result<()> {
    let lab = Lab::new()?;
    let tcp = TcpEcho::start(&lab.internet, 7)?;
    let udp = UdpEcho::start(&lab.internet, 7..=7)?;
    let danted = Danted::start(&lab.internet, lab.dir())?;
    for by in Family::BOTH {
        let wrong = danted.url(by).replace("secret", "other");
        let tproxy = lab.tproxy_with(&wrong)?;
        for (family, count) in Family::BOTH.into_iter().zip(1..) {
            is_reset_at_once(&lab, at(family.far(4), 7))?;
            lab.await_proxy_count("/failures/proxy_auth", count)?;
        }
        is_not_answered(&lab, at(by.far(4), 7), "proxy_auth")?;
        let status = lab.tproxy_run(&["status", "--json"])?.ok()?.stdout;
        assert!(!status.contains("other"), "{status}");
        tproxy.stop()?;
    }
    assert!(tcp.clients().is_empty() && udp.clients().is_empty());
    Ok(())
}

#[test]
fn a_server_that_is_down_is_a_reset_until_it_is_up() -> Result<()> {
    let lab = Lab::new()?;
    let _tcp = TcpEcho::start(&lab.internet, 7)?;
    let _udp = UdpEcho::start(&lab.internet, 7..=7)?;
    // Its address does not depend on a running server.
    let danted = Danted::start(&lab.internet, lab.dir())?;
    let by = Family::V6;
    let outbound = danted.url(by);
    drop(danted);
    let _tproxy = lab.tproxy_with(&outbound)?;
    for (family, count) in Family::BOTH.into_iter().zip([1, 3]) {
        is_reset_at_once(&lab, at(family.far(4), 7))?;
        lab.await_proxy_count("/failures/connect_refused", count)?;
        is_not_answered(&lab, at(family.far(4), 7), "connect_refused")?;
    }
    let _danted = Danted::start(&lab.internet, lab.dir())?;
    for family in Family::BOTH {
        let target = at(family.far(4), 7);
        let mut stream = connect(&lab.device, target)?;
        stream.write_all(b"back")?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer)?;
        assert_eq!(&answer, b"back");
        let socket = udp_socket(&lab, family)?;
        assert_eq!(carry(&socket, target, &socket, b"back")?, target);
    }
    lab.all_proxied()?;
    Ok(())
}

#[test]
fn a_server_that_is_silent_is_a_reset_in_time() -> Result<()> {
    let lab = Lab::new()?;
    let danted = Danted::start(&lab.internet, lab.dir())?;
    lab.internet.run(&[
        "nft",
        "add table inet hole; \
         add chain inet hole input { type filter hook input priority filter; }; \
         add rule inet hole input tcp dport 1080 drop",
    ])?;
    let _tproxy = lab.tproxy_configured(&format!(
        "[tcp]\nconnect_timeout = \"600ms\"\n[[outbound]]\nname = \"danted\"\nurl = \"{}\"",
        danted.url(Family::V4)
    ))?;
    for (family, count) in Family::BOTH.into_iter().zip(1..) {
        is_reset_at_once(&lab, at(family.far(4), 7))?;
        lab.await_proxy_count("/failures/connect_timeout", count)?;
    }
    Ok(())
}

#[test]
fn what_the_server_cannot_do_is_refused_and_counted() -> Result<()> {
    let lab = Lab::new()?;
    let nginx = Nginx::start(&lab.internet, lab.dir())?;
    let microsocks = Microsocks::start(&lab.internet, Family::V4)?;
    let _tproxy = lab.tproxy_with(&microsocks.url())?;
    let server = Family::V4.far(1);
    assert_eq!(whoami(&lab.device, server)?, Family::V4.upstream(2));
    // It has no UDP, and nobody listens at this port.
    is_not_answered(&lab, at(server, 7), "proxy_refused")?;
    is_reset_at_once(&lab, at(server, 4999))?;
    lab.await_proxy_count("/failures/proxy_refused", 2)?;
    drop(nginx);
    Ok(())
}

#[test]
fn a_server_without_a_password_carries_both_protocols() -> Result<()> {
    let lab = Lab::new()?;
    let _nginx = Nginx::start(&lab.internet, lab.dir())?;
    let _echo = UdpEcho::start(&lab.internet, 7..=7)?;
    for family in Family::BOTH {
        let (configuration, address) = V2ray::socks(family);
        let _v2ray = V2ray::start(&lab.internet, lab.dir(), &configuration, address.port())?;
        let tproxy = lab.tproxy_with(&format!("socks5://{address}"))?;
        assert_eq!(whoami(&lab.device, family.far(1))?, family.upstream(3));
        // v2ray cuts what does not fit into its buffers of 2,048 bytes.
        let sizes = [1, 1_472, 1_473, 2_000];
        traffic::echo_sizes(&lab.device, at(family.far(2), 7), &sizes)?;
        // One peer after the other: v2ray exchanges the payloads of peers that are new at the same time.
        let socket = udp_socket(&lab, family)?;
        for target in (1..=10).map(|n| at(family.far(n), 7)) {
            assert_eq!(carry(&socket, target, &socket, b"hello")?, target);
        }
        tproxy.stop()?;
    }
    Ok(())
}
