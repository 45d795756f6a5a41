//! UDP flows that go past the proxy in the kernel: the express lane.

use std::{
    io::{ErrorKind, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Lab, Snapshot, Tproxy,
    forger::Forger,
    probe::{at, udp_at},
    servers::UdpEcho,
    traffic::open_udp,
    wait::{SOON, patient, until},
};
use nix::{
    cmsg_space,
    sys::{
        signal::Signal,
        socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt},
    },
};
use serde_json::Value;

const PORT: u16 = 7000;
/// Datagrams after which a flow is surely asked for.
const MANY: u32 = 200;

/// How the lane takes datagrams through.
const MODES: [&str; 2] = ["forward", "redirect"];

fn run(lab: &Lab, mode: &str) -> Result<Tproxy> {
    lab.tproxy_configured(&format!(
        "[udp]\nexpress = \"{mode}\"\n[[outbound]]\nname = \"near\"\nurl = \"direct://\"\n"
    ))
}

/// A socket of the device that speaks with one peer alone.
fn talker(lab: &Lab, family: Family) -> Result<UdpSocket> {
    let socket = open_udp(&lab.device, family)?;
    socket.set_read_timeout(Some(patient(Duration::from_secs(3))))?;
    let peer = at(family.far(1), PORT);
    lab.device.enter(|| socket.connect(peer))??;
    Ok(socket)
}

/// Sends so many numbered datagrams one by one, and wants each back.
fn talk(socket: &UdpSocket, count: u32) -> Result<()> {
    let mut answer = [0; 64];
    for number in 0..count {
        socket.send(&number.to_be_bytes())?;
        let length = socket
            .recv(&mut answer)
            .with_context(|| format!("waiting for datagram {number}"))?;
        ensure!(
            answer[..length] == number.to_be_bytes(),
            "datagram {number}: {:?}",
            &answer[..length]
        );
    }
    Ok(())
}

fn count(lab: &Lab, reason: &str) -> Result<u64> {
    Ok(lab.counted()?.get(reason).copied().unwrap_or(0))
}

/// Talks until the flow is on the lane.
fn talk_onto_lane(lab: &Lab, socket: &UdpSocket) -> Result<()> {
    until("the flow to go by the lane", SOON, || {
        Ok((by_lane(lab, socket)? > u64::from(MANY) / 2).then_some(()))
    })
}

/// How many of the next datagrams go by the lane.
fn by_lane(lab: &Lab, socket: &UdpSocket) -> Result<u64> {
    let before = count(lab, "express")?;
    talk(socket, MANY)?;
    Ok(count(lab, "express")? - before)
}

/// The one flow that the proxy tells of.
fn flow(lab: &Lab) -> Result<Value> {
    let all = flows(lab)?;
    ensure!(all.len() == 1, "{all:?}");
    Ok(all[0].clone())
}

fn flows(lab: &Lab) -> Result<Vec<Value>> {
    let shown: Value = lab.tproxy_run(&["flows", "--json"])?.ok()?.json()?;
    Ok(shown["flows"].as_array().context("no list")?.clone())
}

#[test]
fn a_long_flow_goes_by_the_lane_and_nobody_sees_the_difference() -> Result<()> {
    for mode in MODES {
        // As in the world: the internet knows no way to the LAN, and the gateway masquerades what it forwards.
        let lab = Lab::builder().masquerade().no_way_back().build()?;
        let before = Snapshot::take(&lab)?;
        let echo = UdpEcho::start(&lab.internet, PORT..=PORT)?;
        let tproxy = run(&lab, mode)?;
        for family in Family::BOTH {
            echo.forget();
            let socket = talker(&lab, family)?;
            talk_onto_lane(&lab, &socket).with_context(|| format!("{mode} {family:?}"))?;
            let cpu = tproxy.cpu_time()?;
            talk(&socket, 2_000)?;
            let used = tproxy.cpu_time()? - cpu;
            ensure!(
                used < Duration::from_millis(30),
                "the proxy worked for {used:?}"
            );
            // The same address and port as by the proxy.
            let clients: Vec<SocketAddr> = echo.clients().into_keys().collect();
            assert_eq!(clients.len(), 1, "{mode}: {clients:?}");
            assert_eq!(clients[0].ip(), family.gateway_wan());
            // All is counted, at once.
            let sent: u64 = echo.clients().values().sum();
            let own = socket.local_addr()?.to_string();
            let flow = flows(&lab)?
                .into_iter()
                .rfind(|flow| flow["client"] == own)
                .context("it is told of")?;
            assert_eq!(flow["up"], sent * 4, "{flow}");
            assert_eq!(flow["down"], sent * 4, "{flow}");
        }
        let counted = lab.all_proxied()?;
        assert_eq!(counted.get("express_astray"), None, "{counted:?}");
        let traffic = lab.proxy_traffic()?;
        assert_eq!(traffic["datagrams_lost"], 0, "{traffic}");
        tproxy.stop()?;
        lab.restored(&before)?;
    }
    Ok(())
}

#[test]
fn the_gateways_own_flows_go_by_the_lane() -> Result<()> {
    let lab = Lab::new()?;
    let echo = UdpEcho::start(&lab.internet, PORT..=PORT)?;
    let tproxy = lab.tproxy(&["run", "--wan", "wan0", "--outbound", "direct://"])?;
    for family in Family::BOTH {
        echo.forget();
        let socket = open_udp(&lab.gateway, family)?;
        socket.set_read_timeout(Some(patient(Duration::from_secs(3))))?;
        lab.gateway
            .enter(|| socket.connect(at(family.far(1), PORT)))??;
        talk_onto_lane(&lab, &socket)?;
        let clients: Vec<SocketAddr> = echo.clients().into_keys().collect();
        assert_eq!(clients.len(), 1, "{clients:?}");
        // Not its own port, but that of its association.
        assert_ne!(clients[0], socket.local_addr()?);
    }
    tproxy.stop()
}

#[test]
fn without_the_lane_the_proxy_does_all() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = UdpEcho::start(&lab.internet, PORT..=PORT)?;
    let tproxy = run(&lab, "off")?;
    talk(&talker(&lab, Family::V4)?, 3 * MANY)?;
    assert_eq!(count(&lab, "express")?, 0);
    tproxy.stop()
}

#[test]
fn a_flow_ends_when_it_is_killed_and_comes_back_as_another() -> Result<()> {
    for mode in MODES {
        let lab = Lab::new()?;
        let echo = UdpEcho::start(&lab.internet, PORT..=PORT)?;
        let tproxy = run(&lab, mode)?;
        let socket = talker(&lab, Family::V4)?;
        talk_onto_lane(&lab, &socket)?;
        let id = flow(&lab)?["id"].to_string();
        lab.tproxy_run(&["flows", "kill", &id])?.ok()?;
        talk_onto_lane(&lab, &socket)?;
        assert_ne!(flow(&lab)?["id"].to_string(), id);
        // Another association, so another port.
        assert_eq!(echo.clients().len(), 2);
        tproxy.stop()?;
    }
    Ok(())
}

#[test]
fn edits_reach_a_flow_on_the_lane() -> Result<()> {
    for mode in MODES {
        let lab = Lab::new()?;
        let echo = UdpEcho::start(&lab.internet, PORT..=PORT)?;
        let tproxy = run(&lab, mode)?;
        let socket = talker(&lab, Family::V4)?;
        talk_onto_lane(&lab, &socket)?;
        // A reload that changes nothing about it leaves it there.
        tproxy.process().signal(Signal::SIGHUP)?;
        tproxy
            .process()
            .wait_for_line("reload", Duration::from_secs(10))?;
        talk_onto_lane(&lab, &socket)?;
        // A bypassed destination is bypassed from the next datagram on.
        let far = Family::V4.far(1).to_string();
        lab.tproxy_run(&["bypass", "add", &far])?.ok()?;
        assert_eq!(by_lane(&lab, &socket)?, 0);
        assert!(
            echo.clients().contains_key(&socket.local_addr()?),
            "it went directly: {:?}",
            echo.clients()
        );
        lab.tproxy_run(&["bypass", "del", &far])?.ok()?;
        talk_onto_lane(&lab, &socket)?;
        tproxy.stop()?;
    }
    Ok(())
}

#[test]
fn without_a_proxy_nothing_goes_by_the_lane() -> Result<()> {
    for mode in MODES {
        for (policy, reason) in [("drop", "down_dropped"), ("pass", "down_passed")] {
            let lab = Lab::new()?;
            let echo = UdpEcho::start(&lab.internet, PORT..=PORT)?;
            let config = format!(
                "on_proxy_down = \"{policy}\"\n[lan]\ninterfaces = [\"{}\"]\n[udp]\nexpress = \"{mode}\"\n",
                lab.lan()
            );
            let tproxy =
                lab.tproxy(&["run", "-c", &lab.write(&config)?, "--outbound", "direct://"])?;
            let socket = talker(&lab, Family::V4)?;
            talk_onto_lane(&lab, &socket)?;
            tproxy.kill9();
            echo.forget();
            let (lane, down) = (count(&lab, "express")?, count(&lab, reason)?);
            for _ in 0..10 {
                socket.send(b"anybody?")?;
            }
            until("the policy to be followed", SOON, || {
                Ok((count(&lab, reason)? == down + 10).then_some(()))
            })?;
            assert_eq!(count(&lab, "express")?, lane);
            // With "pass" they went as if there were no proxy.
            let own = echo.clients().contains_key(&socket.local_addr()?);
            assert_eq!(own, policy == "pass");
            // The next proxy finds what is left, and begins anew.
            let tproxy = run(&lab, mode)?;
            talk_onto_lane(&lab, &talker(&lab, Family::V4)?)?;
            tproxy.stop()?;
        }
    }
    Ok(())
}

#[test]
fn a_takeover_breaks_no_flow_on_the_lane() -> Result<()> {
    let lab = Lab::new()?;
    let echo = UdpEcho::start(&lab.internet, PORT..=PORT)?;
    let old = lab.tproxy_with("direct://")?;
    let socket = talker(&lab, Family::V4)?;
    talk_onto_lane(&lab, &socket)?;
    let new = lab.tproxy(&[
        "run",
        "--lan",
        lab.lan(),
        "--outbound",
        "direct://",
        "--takeover",
    ])?;
    // It goes on with its port, in the old process.
    talk(&socket, MANY)?;
    assert_eq!(echo.clients().len(), 1, "{:?}", echo.clients());
    // One that is new goes by the lane of the new process.
    talk_onto_lane(&lab, &talker(&lab, Family::V6)?)?;
    talk(&socket, MANY)?;
    assert_eq!(echo.clients().len(), 2, "{:?}", echo.clients());
    drop(old);
    new.stop()
}

#[test]
fn what_is_more_than_a_plain_datagram_goes_by_the_proxy() -> Result<()> {
    for mode in MODES {
        // Datagrams of 1,450 bytes fit on the LAN, and not on the WAN.
        let lab = Lab::builder().wan_mtu(1_400).build()?;
        let _echo = UdpEcho::start(&lab.internet, PORT..=PORT)?;
        let tproxy = run(&lab, mode)?;
        for family in Family::BOTH {
            let socket = talker(&lab, family)?;
            talk_onto_lane(&lab, &socket)?;
            let mut answer = vec![0; 65_536];
            for size in [
                0, 1, 1_300, 1_352, 1_353, 1_372, 1_373, 1_450, 1_473, 9_000, 60_000,
            ] {
                let sent: Vec<u8> = (0..size).map(|byte: usize| byte as u8).collect();
                socket.send(&sent)?;
                let length = socket
                    .recv(&mut answer)
                    .with_context(|| format!("{mode} {family:?}: {size} bytes"))?;
                assert_eq!(answer[..length], sent, "{mode} {family:?}: {size} bytes");
            }
            // And what is plain goes by the lane as before.
            assert!(by_lane(&lab, &socket)? > u64::from(MANY) / 2);
        }
        assert_eq!(count(&lab, "express_astray")?, 0);
        tproxy.stop()?;
    }
    Ok(())
}

#[test]
fn forged_datagrams_do_not_get_in() -> Result<()> {
    for mode in MODES {
        let lab = Lab::new()?;
        let echo = UdpEcho::start(&lab.internet, PORT..=PORT)?;
        let tproxy = run(&lab, mode)?;
        let family = Family::V4;
        let socket = talker(&lab, family)?;
        talk_onto_lane(&lab, &socket)?;
        let mapped = *echo.clients().keys().next().context("it was seen")?;
        let answers = count(&lab, "express_answer")?;
        // To other ports than that of the flow, from others than its peer.
        let flood = Forger::new(&lab.internet, family)?.flood(move |number| {
            let source = at(family.far(2), (number % 60_000) as u16 + 1_000);
            let port = match (number % 50_000) as u16 + 1_024 {
                port if port == mapped.port() => 1_023,
                port => port,
            };
            (source, at(family.gateway_wan(), port), b"forged".to_vec())
        });
        flood.wait_for(20_000)?;
        flood.stop()?;
        assert_eq!(count(&lab, "express_answer")?, answers);
        socket.set_nonblocking(true)?;
        let heard = socket.recv(&mut [0; 64]).map_err(|error| error.kind());
        assert_eq!(heard, Err(ErrorKind::WouldBlock));
        socket.set_nonblocking(false)?;
        assert!(by_lane(&lab, &socket)? > u64::from(MANY) / 2);
        tproxy.stop()?;
    }
    Ok(())
}

/// What came of numbered datagrams.
#[derive(Debug, Default)]
struct Arrived {
    count: u64,
    late: u64,
}

#[test]
fn a_flow_that_changes_to_the_lane_and_back_loses_nothing_and_keeps_its_order() -> Result<()> {
    const ALL: u64 = 20_000;
    /// The time between two datagrams.
    const PAUSE: Duration = Duration::from_micros(150);
    for mode in MODES {
        let lab = Lab::new()?;
        let sink = udp_at(&lab.internet, at(Family::V4.far(1), PORT))?;
        setsockopt(&sink, sockopt::RcvBufForce, &(4 << 20))?;
        let tproxy = run(&lab, mode)?;
        let socket = talker(&lab, Family::V4)?;
        let done = AtomicBool::new(false);
        let arrived = thread::scope(|scope| -> Result<Arrived> {
            let receiver = scope.spawn(|| {
                let mut arrived = Arrived::default();
                let (mut buffer, mut next) = ([0; 8], 0);
                while arrived.count < ALL {
                    if sink.recv(&mut buffer).is_err() {
                        if done.load(Ordering::Relaxed) {
                            break;
                        }
                        continue;
                    }
                    let number = u64::from_be_bytes(buffer);
                    arrived.count += 1;
                    arrived.late += u64::from(number < next);
                    next = next.max(number + 1);
                }
                arrived
            });
            let mut due = Instant::now();
            let mut sent = || -> Result<()> {
                for number in 0..ALL {
                    // Off the lane at the third of its way, and on to it again.
                    if number == ALL / 3 {
                        lab.gateway.ip(&["address add 203.0.113.250/32 dev lo"])?;
                        due = Instant::now();
                    }
                    socket.send(&number.to_be_bytes())?;
                    due += PAUSE;
                    while Instant::now() < due {
                        std::hint::spin_loop();
                    }
                }
                Ok(())
            };
            let sent = sent();
            done.store(true, Ordering::Relaxed);
            sent?;
            Ok(receiver.join().expect("no assertion in it"))
        })?;
        let counted = lab.counted()?;
        assert_eq!(
            (arrived.count, arrived.late),
            (ALL, 0),
            "{mode}: {counted:?}"
        );
        assert!(counted["express"] > ALL / 2, "{counted:?}");
        assert!(counted["udp_steered"] > 2, "{counted:?}");
        tproxy.stop()?;
    }
    Ok(())
}

#[test]
fn a_device_that_comes_with_another_address_is_another_flow() -> Result<()> {
    let lab = Lab::new()?;
    let echo = UdpEcho::start(&lab.internet, PORT..=PORT)?;
    let tproxy = lab.tproxy_with("direct://")?;
    let first = talker(&lab, Family::V4)?;
    talk_onto_lane(&lab, &first)?;
    let gateway = Family::V4.gateway_lan();
    lab.device.ip(&[
        "address flush dev eth0 scope global",
        "address add 10.77.0.77/24 dev eth0",
        &format!("route add default via {gateway}"),
    ])?;
    let second = talker(&lab, Family::V4)?;
    assert_eq!(second.local_addr()?.ip().to_string(), "10.77.0.77");
    talk_onto_lane(&lab, &second)?;
    assert_eq!(echo.clients().len(), 2, "{:?}", echo.clients());
    tproxy.stop()
}

#[test]
fn an_error_about_a_datagram_reaches_the_device() -> Result<()> {
    for mode in MODES {
        let lab = Lab::builder().masquerade().no_way_back().build()?;
        let tproxy = run(&lab, mode)?;
        for family in Family::BOTH {
            let echo = UdpEcho::start(&lab.internet, PORT..=PORT)?;
            let socket = talker(&lab, family)?;
            talk_onto_lane(&lab, &socket)?;
            drop(echo);
            let refused = until("the device to be told", SOON, || {
                socket.send(b"anybody?")?;
                Ok(match socket.recv(&mut [0; 64]) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                    other => Some(other.map_err(|error| error.kind())),
                })
            })
            .with_context(|| format!("{mode} {family:?}: {:?}", lab.counted()))?;
            assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
        }
        assert!(count(&lab, "express_error")? >= 2);
        tproxy.stop()?;
    }
    Ok(())
}

/// The time to live, or the hop limit, of the next datagram.
fn time_to_live(socket: &UdpSocket, family: Family) -> Result<i32> {
    match family {
        Family::V4 => setsockopt(socket, sockopt::Ipv4RecvTtl, &true)?,
        Family::V6 => setsockopt(socket, sockopt::Ipv6RecvHopLimit, &true)?,
    }
    let mut space = cmsg_space!(i32);
    let mut payload = [0; 64];
    let mut vectors = [IoSliceMut::new(&mut payload)];
    let received = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut vectors,
        Some(&mut space),
        MsgFlags::empty(),
    )?;
    received
        .cmsgs()?
        .find_map(|message| match message {
            ControlMessageOwned::Ipv4Ttl(time) | ControlMessageOwned::Ipv6HopLimit(time) => {
                Some(time)
            }
            _ => None,
        })
        .context("the kernel tells it")
}

#[test]
fn a_datagram_ages_by_one_on_its_way() -> Result<()> {
    for mode in MODES {
        let lab = Lab::new()?;
        let tproxy = run(&lab, mode)?;
        for family in Family::BOTH {
            let echo = UdpEcho::start(&lab.internet, PORT..=PORT)?;
            let socket = talker(&lab, family)?;
            talk_onto_lane(&lab, &socket)?;
            let mapped = *echo.clients().keys().next().context("it was seen")?;
            drop(echo);
            let far = udp_at(&lab.internet, at(family.far(1), PORT))?;
            let lane = count(&lab, "express")?;
            socket.send(b"how old?")?;
            assert_eq!(time_to_live(&far, family)?, 63, "{mode} {family:?}");
            assert_eq!(count(&lab, "express")?, lane + 1);
            let lane = count(&lab, "express_answer")?;
            far.send_to(b"and you?", mapped)?;
            assert_eq!(time_to_live(&socket, family)?, 63, "{mode} {family:?}");
            assert_eq!(count(&lab, "express_answer")?, lane + 1);
        }
        tproxy.stop()?;
    }
    Ok(())
}

#[test]
fn a_firewall_that_forwards_nothing_costs_a_flow_some_datagrams_and_no_more() -> Result<()> {
    const ALL: u64 = 1_000;
    let lab = Lab::new()?;
    let _echo = UdpEcho::start(&lab.internet, PORT..=PORT)?;
    let nft = |rule: &str| lab.gateway.run(&["nft", rule]);
    nft("add table inet strict")?.ok()?;
    nft("add chain inet strict forward { type filter hook forward priority 0; policy drop; }")?
        .ok()?;
    let tproxy = run(&lab, "forward")?;
    for family in Family::BOTH {
        let socket = talker(&lab, family)?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let mut answered = 0;
        for number in 0..ALL {
            socket.send(&number.to_be_bytes())?;
            answered += u64::from(socket.recv(&mut [0; 64]).is_ok());
        }
        assert!(answered >= ALL - 80, "{family:?}: {answered}");
        let lane = count(&lab, "express")?;
        socket.set_read_timeout(Some(patient(SOON)))?;
        talk(&socket, 3 * MANY)?;
        // Longer than the time after which a flow is asked for again.
        assert_eq!(count(&lab, "express")?, lane, "it is not tried again");
    }
    // With "redirect" no firewall is asked.
    tproxy.stop()?;
    let tproxy = run(&lab, "redirect")?;
    talk_onto_lane(&lab, &talker(&lab, Family::V4)?)?;
    tproxy.stop()
}

#[test]
fn answers_that_a_firewall_ends_close_the_lane() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = UdpEcho::start(&lab.internet, PORT..=PORT)?;
    let nft = |rule: &str| lab.gateway.run(&["nft", rule]);
    nft("add table inet strict")?.ok()?;
    nft("add chain inet strict forward { type filter hook forward priority 0; }")?.ok()?;
    nft("add rule inet strict forward iifname wan0 drop")?.ok()?;
    let tproxy = run(&lab, "forward")?;
    let socket = talker(&lab, Family::V4)?;
    socket.set_read_timeout(Some(Duration::from_millis(5)))?;
    until("the flow to go by the proxy", SOON, || {
        let answered = (0..100)
            .map(|number: u32| {
                socket.send(&number.to_be_bytes())?;
                Ok(u32::from(socket.recv(&mut [0; 64]).is_ok()))
            })
            .sum::<Result<u32>>()?;
        Ok((answered == 100).then_some(()))
    })?;
    tproxy
        .process()
        .wait_for_line("no express lane any more", SOON)?;
    tproxy.stop()
}
