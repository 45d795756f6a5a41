//! What the resolver does when others get in its way.

use std::net::UdpSocket;

use lab::{Reloadable, servers::Dnsmasq};

use super::*;

#[test]
fn a_dns_server_on_the_gateway_keeps_its_port_and_is_asked_when_dns_is_left_alone() -> Result<()> {
    let scene = Scene::new()?;
    let lab = &scene.split.lab;
    let own = "--address=/www.near.test/192.0.2.53".to_owned();
    let dnsmasq = Dnsmasq::start_with(&lab.gateway, Log::Questions, &[own])?;
    let config = Split::config(&scene.servers, Family::V4);
    let proxy = Reloadable::start(lab, &config)?;
    let gateway = Family::V4.gateway_lan();
    let ask = |over: &Over| -> Result<Vec<IpAddr>> {
        Ok(answer(&lab.device, gateway, names::NEAR, "A", over)?.addresses())
    };
    for over in [Over::Udp, Over::Tcp] {
        assert_eq!(ask(&over)?, [Split::near_site(Family::V4)]);
    }
    assert!(dnsmasq.clients_of(names::NEAR).is_empty());
    // The gateway itself reaches it on loopback, as ever.
    let local = IpAddr::from([127, 0, 0, 1]);
    let of_own = answer(&lab.gateway, local, names::NEAR, "A", &Over::Udp)?;
    assert_eq!(of_own.addresses(), [IpAddr::from([192, 0, 2, 53])]);
    proxy.reload(
        &config.replace("[dns]", "[dns]\nhijack = false"),
        "reloaded",
    )?;
    for over in [Over::Udp, Over::Tcp] {
        assert_eq!(ask(&over)?, [IpAddr::from([192, 0, 2, 53])]);
    }
    proxy.reload(&config, "reloaded")?;
    assert_eq!(ask(&Over::Udp)?, [Split::near_site(Family::V4)]);
    proxy.stop()?;
    assert_eq!(ask(&Over::Udp)?, [IpAddr::from([192, 0, 2, 53])]);
    Ok(())
}

#[test]
fn a_silent_server_keeps_nobody_else_waiting_and_leaves_nothing_wrong() -> Result<()> {
    let scene = Scene::new()?;
    let lab = &scene.split.lab;
    let config = Split::config(&scene.servers, Family::V4);
    let proxy = scene.split.run(&config)?;
    let device = &lab.device;
    let asked = Split::no_dns(Family::V4);
    let other = lab.device2.as_ref().context("a second device")?;
    std::thread::scope(|scope| -> Result<()> {
        let silent = [names::SILENT_NEAR, names::SILENT_FAR].map(|name| {
            scope.spawn(move || {
                answer(device, asked, name, "A", &Over::Udp).map(|answer| answer.status)
            })
        });
        for _ in 0..5 {
            stands_for(other, asked, names::NEAR, &Over::Udp, Split::near_site)?;
            stands_for(other, asked, names::FAR, &Over::Udp, Split::far_site)?;
        }
        for thread in silent {
            let status = thread
                .join()
                .map_err(|_| anyhow::anyhow!("a question panicked"))??;
            assert_eq!(status, "SERVFAIL");
        }
        Ok(())
    })?;
    // Nothing but that is remembered.
    for (name, address) in [
        (names::NEAR, Split::near_site as Address),
        (names::FAR, Split::far_site),
    ] {
        stands_for(device, asked, name, &Over::Udp, address)?;
    }
    proxy.stop()
}

#[test]
fn malformed_questions_of_one_device_do_not_keep_another_waiting() -> Result<()> {
    let scene = Scene::new()?;
    let lab = &scene.split.lab;
    let config = Split::config(&scene.servers, Family::V4);
    let proxy = scene.split.run(&config)?;
    let asked = Split::no_dns(Family::V4);
    let forger = Forger::new(&lab.device, Family::V4)?;
    let flood = forger.flood(move |n| {
        let source = at(Family::V4.device(), 1024 + (n % 60_000) as u16);
        (
            source,
            at(asked, 53),
            malformed(n, names::FAR, Split::forged(Family::V4)),
        )
    });
    flood.wait_for(1_000)?;
    let other = lab.device2.as_ref().context("a second device")?;
    let before = proxy.resident_kib()?;
    for _ in 0..3 {
        for over in [Over::Udp, Over::Tcp] {
            stands_for(other, asked, names::NEAR, &over, Split::near_site)?;
            stands_for(other, asked, names::FAR, &over, Split::far_site)?;
        }
    }
    let sent = flood.stop()?;
    let grown = proxy.resident_kib()?.saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB after {sent} packets");
    let status = lab.status()?;
    let malformed = status["proxy"]["detail"]["dns"]["malformed"].as_u64();
    let malformed = malformed.context("no count of malformed questions")?;
    assert!(malformed > 100, "{malformed} of {sent}");
    proxy.stop()
}

#[test]
fn what_is_not_dns_ends_the_connection_and_gets_no_answer() -> Result<()> {
    let scene = Scene::new()?;
    let lab = &scene.split.lab;
    let proxy = scene
        .split
        .run(&Split::config(&scene.servers, Family::V4))?;
    let asked = at(Split::no_dns(Family::V4), 53);
    let mut stream = traffic::connect(&lab.device, asked)?;
    std::io::Write::write_all(&mut stream, b"\x00\x04GET ")?;
    stream.set_read_timeout(Some(lab::wait::SOON))?;
    let read = std::io::Read::read(&mut stream, &mut [0; 16]);
    ensure!(
        matches!(read, Ok(0))
            || read.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
    );
    let socket: UdpSocket = traffic::open_udp(&lab.device, Family::V4)?;
    // Nobody waits for an answer to this, and nothing breaks.
    for size in [0, 1, 11, 12, 13, 512, 1400] {
        socket.send_to(&vec![0xff; size], asked)?;
    }
    stands_for(
        &lab.device,
        asked.ip(),
        names::NEAR,
        &Over::Udp,
        Split::near_site,
    )?;
    proxy.stop()
}

#[test]
fn questions_follow_the_policy_when_the_proxy_was_killed() -> Result<()> {
    let scene = Scene::new()?;
    let lab = &scene.split.lab;
    let own = "--address=/www.near.test/192.0.2.53".to_owned();
    let _dnsmasq = Dnsmasq::start_with(&lab.gateway, Log::Questions, &[own])?;
    let gateway = Family::V4.gateway_lan();
    let near = Split::near_dns(Family::V4);
    let config = Split::config(&scene.servers, Family::V4);
    for (policy, answers) in [("pass", true), ("drop", false)] {
        let config = format!("on_proxy_down = \"{policy}\"\n{config}");
        scene.split.run(&config)?.kill9();
        for over in [Over::Udp, Over::Tcp] {
            // The gateway itself stays reachable whatever the policy.
            for (server, address, heard) in [
                (near, Split::near_site(Family::V4), answers),
                (gateway, IpAddr::from([192, 0, 2, 53]), true),
            ] {
                let answer = question(&lab.device, server, names::NEAR, "A", &over)?;
                let addresses = answer.map(|answer| answer.addresses());
                let wanted = heard.then(|| vec![address]);
                assert_eq!(addresses, wanted, "{policy} {server} {over:?}");
            }
        }
        lab.tproxy_run(&["detach"])?.ok()?;
        let answer = question(&lab.device, gateway, names::NEAR, "A", &Over::Udp)?;
        assert!(answer.is_some(), "{policy}: after detach");
    }
    Ok(())
}
