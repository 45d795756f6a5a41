//! The gateway's own traffic: what goes through the proxy, what does not, and that nothing the proxy
//! sends comes back to it.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsFd,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Far, Lab, Lan, Namespace, Snapshot, Tproxy,
    addr::url,
    probe::{End, at, carry, fate, udp_at},
    servers::{Danted, Dnsmasq, Iperf, Nginx, TcpEcho, UdpEcho},
    traffic::{self, Test, connect, echo_sizes, open_udp, whoami},
    wait::{SOON, until},
};
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};

const MIB: u64 = 1 << 20;
const DIRECT: &str = "direct://";
/// In one packet, in several, and as large as there are.
const SIZES: [usize; 4] = [1, 1_200, 9_000, 65_000];

/// The proxy for the gateway's own traffic alone.
fn own(lab: &Lab, outbound: &str) -> Result<Tproxy> {
    lab.tproxy(&["run", "--wan", "default", "--outbound", outbound])
}

fn count(lab: &Lab, reason: &str) -> Result<u64> {
    Ok(lab.counted()?.get(reason).copied().unwrap_or(0))
}

/// Sends a line and wants it back.
fn echo(stream: &mut TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"still there?")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"still there?", "it says {answer:?}");
    Ok(())
}

/// curl, dig and iperf3 on the gateway, whatever `rp_filter` says.
fn all_kinds_go_through_the_proxy(rp_filter: &str) -> Result<()> {
    let lab = Lab::new()?;
    lab.gateway
        .sysctl(&[("net/ipv4/conf/all/rp_filter", rp_filter)])?;
    let nginx = Nginx::start(&lab.internet, lab.dir())?;
    let dnsmasq = Dnsmasq::start(&lab.internet)?;
    let (path, content) = nginx.offer(64 * MIB)?;
    let _tproxy = own(&lab, DIRECT)?;
    let (mut connections, mut questions) = (0, 0);
    for family in Family::BOTH {
        let server = family.far(1);
        let down = traffic::download(&lab.gateway, &url(server, &path))?;
        assert_eq!((down.bytes, &down.sha256), (content.bytes, &content.sha256));
        let name = format!("{family:?}");
        let to = url(server, &format!("upload/{name}"));
        traffic::upload(&lab.gateway, &content.path, &to)?;
        assert_eq!(nginx.uploaded(&name)?, content.sha256);
        assert_eq!(
            nginx.request_for(&format!("/upload/{name}"))?.server,
            server
        );
        connections += 2;

        for (kind, answer) in [("A", Family::V4), ("AAAA", Family::V6)] {
            let answers = traffic::dig(&lab.gateway, family.far(3), "host.lab", kind)?;
            assert_eq!(answers, [answer.far(1).to_string()]);
            questions += 1;
            let client = dnsmasq.client_of("host.lab", questions)?;
            assert_eq!(client, family.gateway_wan());
        }

        for test in Test::all("50M") {
            // A server that has just ended a test refuses the next for a moment, and every connection counts here.
            let iperf = Iperf::start(&lab.internet, family.far(2))?;
            let report = traffic::iperf(&lab.gateway, iperf.address(), test)?;
            let least = if test.udp.is_some() { 30e6 } else { 200e6 };
            assert!(
                report.bits_per_second > least,
                "{family:?} {test:?}: {} bit/s",
                report.bits_per_second
            );
            connections += if test.udp.is_some() { 1 } else { 2 };
        }
    }
    lab.await_proxy_count("/connections", 0)?;
    // Every connection that was opened came to the proxy, and each one went on from there.
    assert_eq!(count(&lab, "tcp_opened")?, connections);
    assert_eq!(lab.proxy_count("/connections_total")?, connections);
    assert_eq!(lab.proxy_traffic()?["failures"], serde_json::json!({}));
    let counted = lab.counted()?;
    for elsewhere in [
        "direct_connection",
        "down_passed",
        "foreign_source",
        "service_reply",
    ] {
        assert_eq!(counted.get(elsewhere), None, "{counted:?}");
    }
    assert!(counted["udp_steered"] >= questions as u64, "{counted:?}");
    // What the proxy sent for it carries the exempt mark.
    assert!(counted["exempt"] > counted["tcp_opened"], "{counted:?}");
    Ok(())
}

#[test]
fn all_kinds_go_through_the_proxy_without_reverse_path_filter() -> Result<()> {
    all_kinds_go_through_the_proxy("0")
}

#[test]
fn all_kinds_go_through_the_proxy_with_a_strict_reverse_path_filter() -> Result<()> {
    all_kinds_go_through_the_proxy("1")
}

#[test]
fn all_kinds_go_through_the_proxy_with_a_loose_reverse_path_filter() -> Result<()> {
    all_kinds_go_through_the_proxy("2")
}

#[test]
fn the_server_sees_the_socks_server() -> Result<()> {
    let lab = Lab::new()?;
    let danted = Danted::start(&lab.internet, lab.dir())?;
    let nginx = Nginx::start(&lab.internet, lab.dir())?;
    let echo = UdpEcho::start(&lab.internet, 7000..=7000)?;
    let _tproxy = own(&lab, &danted.url(Family::V4))?;
    for family in Family::BOTH {
        assert_eq!(whoami(&lab.gateway, family.far(1))?, family.upstream(1));
    }
    echo.forget();
    echo_sizes(&lab.gateway, at(Family::V4.far(1), 7000), &SIZES[..3])?;
    let clients: Vec<_> = echo
        .clients()
        .into_keys()
        .map(|client| client.ip())
        .collect();
    assert_eq!(clients, [Family::V4.upstream(1)]);
    drop(nginx);
    Ok(())
}

#[test]
fn datagrams_of_all_sizes_from_sockets_of_all_kinds() -> Result<()> {
    let lab = Lab::new()?;
    let echo = UdpEcho::start(&lab.internet, 7000..=7001)?;
    let _tproxy = own(&lab, DIRECT)?;
    for family in Family::BOTH {
        let (one, other) = (at(family.far(1), 7000), at(family.far(2), 7001));
        echo_sizes(&lab.gateway, one, &SIZES)?;

        // One unconnected socket, two peers: each answer comes from whom it was asked.
        let socket = open_udp(&lab.gateway, family)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        for peer in [one, other, one] {
            assert_eq!(carry(&socket, peer, &socket, b"who?")?, peer);
        }

        // A connected one hears its peer alone.
        let connected = open_udp(&lab.gateway, family)?;
        lab.gateway.enter(|| connected.connect(one))??;
        connected.set_read_timeout(Some(SOON))?;
        connected.send(b"connected")?;
        let mut answer = [0; 64];
        let length = connected.recv(&mut answer)?;
        assert_eq!(&answer[..length], b"connected");

        // Several datagrams in one call: the kernel hands them on as one large packet.
        setsockopt(&connected, sockopt::UdpGsoSegment, &1_000)?;
        let batch: Vec<u8> = (0..10_000).map(|byte| (byte / 1_000) as u8).collect();
        connected.send(&batch)?;
        for number in 0..10 {
            let mut answer = [0; 2_000];
            let length = connected.recv(&mut answer)?;
            assert_eq!(&answer[..length], &[number; 1_000], "segment {number}");
        }
    }
    let counted = lab.counted()?;
    assert!(counted["fragment_steered"] > 40, "{counted:?}");
    assert!(counted["lookup_steered"] >= 4, "{counted:?}");
    // One upstream socket for each of our three.
    assert_eq!(lab.proxy_count("/associations_total")?, 6);
    assert!(echo.clients().len() <= 6, "{:?}", echo.clients());
    Ok(())
}

/// `count` connections from the gateway, a few at a time.
fn thousand_connections(lab: &Lab, outbound: &str) -> Result<()> {
    const COUNT: usize = 1_000;
    const AT_A_TIME: usize = 20;
    let server = TcpEcho::start(&lab.internet, 4000)?;
    let tproxy = own(lab, outbound)?;
    let before = tproxy.open_now()?;
    thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..AT_A_TIME)
            .map(|worker| {
                scope.spawn(move || -> Result<()> {
                    let family = Family::BOTH[worker % 2];
                    for _ in 0..COUNT / AT_A_TIME {
                        echo(&mut connect(&lab.gateway, at(family.far(4), 4000))?)?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("no assertion in it"))
    })?;
    lab.await_proxy_count("/connections", 0)?;
    assert_eq!(server.clients().len(), COUNT);
    assert_eq!(count(lab, "tcp_opened")?, COUNT as u64);
    assert_eq!(lab.proxy_count("/connections_total")?, COUNT as u64);
    assert_eq!(lab.proxy_traffic()?["failures"], serde_json::json!({}));
    tproxy.back_to(before)?;
    // Idle: whatever went round in circles would go on.
    let mut last = tproxy.cpu_time()?;
    until("the proxy to rest", SOON, || {
        thread::park_timeout(Duration::from_millis(300));
        let now = tproxy.cpu_time()?;
        let used = now - std::mem::replace(&mut last, now);
        Ok((used <= Duration::from_millis(10)).then_some(()))
    })?;
    assert_eq!(count(lab, "tcp_opened")?, COUNT as u64);
    Ok(())
}

#[test]
fn a_thousand_connections_are_a_thousand_upstream() -> Result<()> {
    thousand_connections(&Lab::new()?, DIRECT)
}

#[test]
fn a_thousand_connections_through_a_socks_server_on_the_same_link() -> Result<()> {
    let lab = Lab::new()?;
    let danted = Danted::start(&lab.internet, lab.dir())?;
    thousand_connections(&lab, &danted.url(Family::V4))
}

#[test]
fn a_session_from_before_lives_through_everything() -> Result<()> {
    let lab = Lab::new()?;
    let before = Snapshot::take(&lab)?;
    let _server = TcpEcho::start(&lab.internet, 22)?;
    let mut sessions = Vec::new();
    for family in Family::BOTH {
        sessions.push(connect(&lab.gateway, at(family.far(6), 22))?);
    }
    let mut alive = |when: &str| -> Result<()> {
        for session in &mut sessions {
            echo(session).with_context(|| format!("after {when}"))?;
        }
        Ok(())
    };
    alive("connecting")?;
    lab.tproxy_run(&["attach", "wan0", "--as", "wan", "--on-proxy-down", "drop"])?
        .ok()?;
    alive("attach")?;
    let tproxy = own(&lab, DIRECT)?;
    alive("run")?;
    tproxy.process().signal(Signal::SIGHUP)?;
    tproxy
        .process()
        .wait_for_line("reload", Duration::from_secs(10))?;
    alive("a reload")?;
    tproxy.kill9();
    alive("kill -9")?;
    let tproxy = own(&lab, DIRECT)?;
    alive("the next run")?;
    tproxy.stop()?;
    alive("its end")?;
    lab.tproxy_run(&["detach"])?.ok()?;
    alive("detach")?;
    lab.restored(&before)
}

#[test]
fn a_killed_proxy_leaves_what_was_promised() -> Result<()> {
    for (policy, passes) in [("drop", false), ("pass", true)] {
        let lab = Lab::new()?;
        let before = Snapshot::take(&lab)?;
        let far = Far::start(&lab)?;
        let run = ["run", "--wan", "wan0", "--on-proxy-down", policy];
        let tproxy = lab.tproxy(&run)?;
        for family in Family::BOTH {
            far.sees(family.gateway_wan(), &lab.gateway, family.far(1))?;
        }
        let mut held = connect(&lab.gateway, at(Family::V4.far(1), 80))?;
        tproxy.kill9();
        // A proxied connection ends, and nothing of it reaches the server.
        let mut rest = Vec::new();
        held.set_read_timeout(Some(SOON))?;
        let ended = held.read_to_end(&mut rest);
        assert!(ended.is_err() || rest.is_empty(), "{ended:?} {rest:?}");
        for family in Family::BOTH {
            let target = at(family.far(1), 80);
            let connecting = lab
                .gateway
                .enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(1)))?;
            assert_eq!(
                connecting.is_ok(),
                passes,
                "{policy} {family:?}: {connecting:?}"
            );
        }
        let down = if passes {
            "down_passed"
        } else {
            "down_dropped"
        };
        assert!(count(&lab, down)? >= 2);
        lab.tproxy_run(&["detach"])?.ok()?;
        for family in Family::BOTH {
            far.sees(family.gateway_wan(), &lab.gateway, family.far(1))?;
        }
        drop(far);
        lab.restored(&before)?;
    }
    Ok(())
}

#[test]
fn services_of_the_gateway_are_answered_directly() -> Result<()> {
    let lab = Lab::new()?;
    let _tcp = TcpEcho::start(&lab.gateway, 22)?;
    let _udp = UdpEcho::start(&lab.gateway, 1194..=1194)?;
    let _tproxy = own(&lab, DIRECT)?;
    for family in Family::BOTH {
        let gateway = family.gateway_wan();
        echo(&mut connect(&lab.internet, at(gateway, 22))?)?;
        // From an address beyond the link, so that its answers are for the proxy but for this.
        let client = udp_at(&lab.internet, at(family.far(1), 0))?;
        let target = at(gateway, 1194);
        for size in [10, 1_900] {
            assert_eq!(carry(&client, target, &client, &vec![7; size])?, target);
        }
    }
    let counted = lab.counted()?;
    assert_eq!(counted.get("udp_steered"), None, "{counted:?}");
    assert_eq!(counted.get("tcp_opened"), None, "{counted:?}");
    assert!(counted["service_reply"] >= 4, "{counted:?}");
    // The second fragment carries no ports.
    assert!(counted["direct_fragment"] >= 2, "{counted:?}");
    Ok(())
}

/// Whoever writes to the port of a client, with a forged source perhaps, does not lead it past the proxy.
#[test]
fn a_stranger_opens_no_way_past_the_proxy() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = UdpEcho::start(&lab.internet, 7000..=7000)?;
    let _tproxy = own(&lab, DIRECT)?;
    for family in Family::BOTH {
        let client = open_udp(&lab.gateway, family)?;
        client.set_read_timeout(Some(SOON))?;
        let stranger = udp_at(&lab.internet, at(family.far(2), 7000)).or_else(|_| {
            // The echo holds the port of every address: another one is as good.
            udp_at(&lab.internet, at(family.far(2), 7001))
        })?;
        let own = at(family.gateway_wan(), client.local_addr()?.port());
        let from = carry(&stranger, own, &client, b"unasked")?;
        let before = count(&lab, "udp_steered")?;
        client.send_to(b"my own question", from)?;
        until("the question to be steered", SOON, || {
            Ok((count(&lab, "udp_steered")? > before).then_some(()))
        })?;
    }
    assert_eq!(count(&lab, "service_reply")?, 0);
    Ok(())
}

#[test]
fn a_socket_that_is_bound_to_a_link_goes_direct() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let _tproxy = own(&lab, DIRECT)?;
    for family in Family::BOTH {
        let url = url(family.far(1), "whoami");
        lab.gateway
            .run(&[
                "curl",
                "-sSf",
                "--max-time",
                "5",
                "--interface",
                "wan0",
                &url,
            ])?
            .ok()?;
    }
    let counted = lab.counted()?;
    assert_eq!(counted.get("tcp_opened"), None, "{counted:?}");
    assert!(counted["bound_to_link"] > 4, "{counted:?}");
    drop(far);
    Ok(())
}

#[test]
fn what_is_near_or_bypassed_goes_direct() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let _tproxy = own(&lab, DIRECT)?;
    lab.bypass(&["add", "203.0.113.2/32", "2001:db8:f::2"])?;
    for family in Family::BOTH {
        far.sees(family.gateway_wan(), &lab.gateway, family.far(2))?;
        far.sees(family.gateway_wan(), &lab.gateway, family.internet())?;
    }
    let counted = lab.counted()?;
    assert_eq!(counted.get("tcp_opened"), None, "{counted:?}");
    assert_eq!(counted.get("udp_steered"), None, "{counted:?}");
    assert!(
        counted["bypassed"] > 10 && counted["own_subnet"] > 10,
        "{counted:?}"
    );
    Ok(())
}

#[test]
fn the_default_route_is_followed() -> Result<()> {
    let lab = Lab::new()?;
    let _tproxy = own(&lab, DIRECT)?;
    let attached = |wanted: &[&str]| {
        until(&format!("{wanted:?} to be attached"), SOON, || {
            Ok((lab.attached_links()? == wanted).then_some(()))
        })
    };
    attached(&["wan0"])?;
    let via: [&str; 2] = [
        "route replace default dev wan1",
        "route replace ::/0 dev wan1",
    ];
    lab.gateway.ip(&[
        "link add wan1 type veth peer name far1",
        "link set wan1 up",
        "link set far1 up",
    ])?;
    lab.gateway.ip(&via[..1])?;
    // IPv6 still goes the old way.
    attached(&["wan0", "wan1"])?;
    let v6 = Family::V6.internet();
    lab.gateway
        .ip(&[&format!("route del ::/0 via {v6}"), via[1]])?;
    attached(&["wan1"])?;
    lab.gateway.ip(&[
        &format!("route replace default via {}", Family::V4.internet()),
        &format!("route replace ::/0 via {v6} dev wan0"),
        "link del wan1",
    ])?;
    attached(&["wan0"])?;
    let _far = Far::start(&lab)?;
    whoami(&lab.gateway, Family::V4.far(1))?;
    assert_eq!(count(&lab, "tcp_opened")?, 1);
    Ok(())
}

/// A link without a link header as the way out: packets get one for their way over `lo`.
#[test]
fn a_link_without_ethernet_header_is_a_way_out() -> Result<()> {
    let lab = Lab::builder().lan(Lan::Tun).build()?;
    let beyond = [
        (Family::V4, "203.0.113.200"),
        (Family::V6, "2001:db8:99::1"),
    ];
    for (family, address) in beyond {
        let bits = family.host_bits();
        let nodad = if family == Family::V6 { " nodad" } else { "" };
        lab.device
            .ip(&[&format!("addr add {address}/{bits} dev lo{nodad}")])?;
        let via = family.device();
        lab.gateway
            .ip(&[&format!("route add {address}/{bits} via {via}")])?;
    }
    let server = TcpEcho::start(&lab.device, 4000)?;
    let _udp = UdpEcho::start(&lab.device, 7000..=7000)?;
    let _tproxy = lab.tproxy(&["run", "--wan", lab.lan()])?;
    for (_, address) in beyond {
        let address = address.parse()?;
        echo(&mut connect(&lab.gateway, at(address, 4000))?)?;
        echo_sizes(&lab.gateway, at(address, 7000), &SIZES)?;
    }
    lab.await_proxy_count("/connections", 0)?;
    assert_eq!(server.clients().len(), 2);
    assert_eq!(count(&lab, "tcp_opened")?, 2);
    assert_eq!(lab.proxy_count("/connections_total")?, 2);
    assert_eq!(count(&lab, "no_link_header")?, 0);
    Ok(())
}

/// The links that `status` names, with their roles.
fn roles(lab: &Lab) -> Result<Vec<(String, String)>> {
    let status = lab.status()?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(status["links"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|link| (text(&link["name"]), text(&link["role"])))
        .collect())
}

/// Roles come and go one by one, held by tcx links and by clsact filters.
#[test]
fn roles_of_a_link_come_and_go() -> Result<()> {
    for way in ["", "clsact"] {
        let lab = Lab::builder().alone().build()?;
        let before = Snapshot::take(&lab)?;
        let far = Far::start(&lab)?;
        let attach = |args: &[&str]| -> Result<()> {
            let mut command = lab.tproxy_command(args)?;
            command.env("TPROXY_BPF_ATTACH", way);
            lab::process::run(command, SOON)?.ok()?;
            Ok(())
        };
        attach(&["attach", "wan0", "--as", "wan"])?;
        attach(&["attach", "wan0"])?;
        attach(&["attach", lab.lan()])?;
        let both = |name: &str, role: &str| (name.to_owned(), role.to_owned());
        let mut wanted = vec![
            both(lab.lan(), "lan"),
            both("wan0", "lan"),
            both("wan0", "wan"),
        ];
        wanted.sort();
        assert_eq!(roles(&lab)?, wanted);
        let mut command = lab.tproxy_command(&["run", "--wan", "default"])?;
        command.env("TPROXY_BPF_ATTACH", way);
        let tproxy = Lab::tproxy_by(command)?;
        for family in Family::BOTH {
            far.sees(family.gateway_wan(), &lab.device, family.far(1))?;
            far.sees(family.gateway_wan(), &lab.gateway, family.far(1))?;
        }
        assert_eq!(count(&lab, "tcp_opened")?, 4);
        tproxy.stop()?;
        assert_eq!(roles(&lab)?, wanted);
        lab.tproxy_run(&["detach", "wan0"])?.ok()?;
        assert_eq!(roles(&lab)?, [both(lab.lan(), "lan")]);
        let accept = lab
            .gateway
            .run(&["cat", "/proc/sys/net/ipv4/conf/lo/accept_local"])?;
        assert_eq!(accept.stdout.trim(), "0");
        lab.tproxy_run(&["detach"])?.ok()?;
        drop(far);
        lab.restored(&before)?;
    }
    Ok(())
}

/// A masquerading firewall sees both halves of a connection that turned round.
#[test]
fn a_stateful_firewall_does_not_mind() -> Result<()> {
    let lab = Lab::builder().masquerade().build()?;
    lab.gateway
        .run(&[
            "nft",
            "add table inet wall; \
         add chain inet wall in { type filter hook input priority 0; policy drop; }; \
         add rule inet wall in ct state invalid drop; \
         add rule inet wall in ct state established,related accept; \
         add rule inet wall in iif lo accept; \
         add rule inet wall in icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept",
        ])?
        .ok()?;
    let far = Far::start(&lab)?;
    let _tproxy = own(&lab, DIRECT)?;
    for family in Family::BOTH {
        far.sees(family.gateway_wan(), &lab.gateway, family.far(1))?;
        // Refused connections are refused at once.
        let (_, end) = fate(&lab.gateway, at(family.far(1), 9))?;
        assert_eq!(end, End::Reset);
    }
    assert_eq!(count(&lab, "tcp_opened")?, 4);
    Ok(())
}

/// Sockets of other network namespaces are none of this gateway's.
#[test]
fn sockets_carry_no_mark_unless_exempt() -> Result<()> {
    let lab = Lab::new()?;
    let _tproxy = own(&lab, DIRECT)?;
    let marked = |ns: &Namespace| -> Result<u32> {
        let socket: UdpSocket = open_udp(ns, Family::V4)?;
        Ok(nix::sys::socket::getsockopt(
            &socket.as_fd(),
            sockopt::Mark,
        )?)
    };
    assert_eq!(marked(&lab.gateway)?, 0);
    assert_eq!(marked(&lab.device)?, 0);
    Ok(())
}

#[test]
fn loopback_and_own_addresses_are_left_alone() -> Result<()> {
    let lab = Lab::new()?;
    let _server = TcpEcho::start(&lab.gateway, 4000)?;
    let _udp = UdpEcho::start(&lab.gateway, 7000..=7000)?;
    let _tproxy = own(&lab, DIRECT)?;
    let addresses: [SocketAddr; 4] = [
        "127.0.0.1:4000".parse()?,
        "[::1]:4000".parse()?,
        at(Family::V4.gateway_wan(), 4000),
        at(Family::V6.gateway_lan(), 4000),
    ];
    for address in addresses {
        echo(&mut connect(&lab.gateway, address)?)?;
        echo_sizes(&lab.gateway, at(address.ip(), 7000), &SIZES)?;
    }
    let counted = lab.counted()?;
    assert_eq!(counted.get("tcp_opened"), None, "{counted:?}");
    assert_eq!(counted.get("udp_steered"), None, "{counted:?}");
    Ok(())
}
