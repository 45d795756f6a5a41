//! Links and addresses that come, go and change, the kinds of links, and who may use the proxy.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Far, Lab, Lan, Wire,
    addr::url,
    or_skip,
    process::run,
    servers::TcpEcho,
    traffic,
    wait::{SOON, until},
    ways::soon,
};

const MIB: u64 = 1 << 20;

/// Waits until `status` shows just these links.
fn attached(lab: &Lab, names: &[&str]) -> Result<()> {
    soon(&format!("{names:?} to be attached"), || {
        let links = lab.attached_links()?;
        ensure!(links == names, "attached are {links:?}");
        Ok(())
    })
}

/// The second device's traffic is proxied (or goes direct).
fn second_device(lab: &Lab, far: &Far, proxied: bool) -> Result<()> {
    let device2 = lab.device2.as_ref().context("a second device")?;
    for family in Family::BOTH {
        let client = if proxied {
            family.gateway_wan()
        } else {
            family.device2()
        };
        far.sees(client, device2, family.far(2))?;
    }
    Ok(())
}

/// Gives `link` on the gateway the addresses of the second LAN.
fn address_second_lan(lab: &Lab, link: &str) -> Result<()> {
    let [v4, v6] = Family::BOTH.map(Family::gateway_lan1);
    lab.gateway.ip(&[
        &format!("link set {link} up"),
        &format!("addr replace {v4}/24 dev {link}"),
        &format!("addr replace {v6}/64 dev {link} nodad"),
    ])
}

#[test]
fn a_glob_follows_links_as_they_go_come_and_change_their_names() -> Result<()> {
    let lab = Lab::builder().second_lan().build()?;
    let far = Far::start(&lab)?;
    let device2 = lab.device2.as_ref().context("a second device")?;
    let proxy = lab.tproxy(&["run", "--lan", "lan*"])?;
    attached(&lab, &["lan0", "lan1"])?;
    second_device(&lab, &far, true)?;

    // A name that is not meant, and back.
    lab.gateway
        .ip(&["link set lan1 down", "link set lan1 name office"])?;
    address_second_lan(&lab, "office")?;
    attached(&lab, &["lan0"])?;
    second_device(&lab, &far, false)?;
    lab.gateway
        .ip(&["link set office down", "link set office name lan7"])?;
    address_second_lan(&lab, "lan7")?;
    attached(&lab, &["lan0", "lan7"])?;
    soon("sources of lan7", || second_device(&lab, &far, true))?;

    // Gone, and another one in its place.
    lab.gateway.ip(&["link del lan7"])?;
    attached(&lab, &["lan0"])?;
    assert_eq!(
        std::fs::read_dir(lab.pins())?
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("link_"))
            .count(),
        // Two of lan0, and two of wan0 for the express lane.
        4,
        "the pins of a link that is gone are still there"
    );
    far.sees_proxy(&lab)?;
    lab.gateway.ip(&[&format!(
        "link add lan8 type veth peer name eth0 netns {}",
        device2.name()
    )])?;
    let give = |family: Family, length: u8| {
        let (address, via) = (family.device2(), family.gateway_lan1());
        [
            format!("addr add {address}/{length} dev eth0"),
            format!(
                "route add {} via {via}",
                ["default", "::/0"][family as usize]
            ),
        ]
    };
    let mut lines = vec!["link set eth0 up".to_owned()];
    lines.extend(give(Family::V4, 24).into_iter().chain(give(Family::V6, 64)));
    device2.ip(&lines.iter().map(String::as_str).collect::<Vec<_>>())?;
    address_second_lan(&lab, "lan8")?;
    attached(&lab, &["lan0", "lan8"])?;
    soon("traffic on lan8", || second_device(&lab, &far, true))?;
    proxy.stop()
}

#[test]
fn a_named_link_that_goes_and_comes_back_is_attached_again() -> Result<()> {
    let lab = Lab::builder().second_lan().build()?;
    let before = lab::Snapshot::take(&lab)?;
    let proxy = lab.tproxy(&["run", "--lan", "lan1", "--lan", "lan0"])?;
    attached(&lab, &["lan0", "lan1"])?;
    lab.gateway
        .ip(&["link del lan1", "link add lan1 type veth peer name lan1far"])?;
    attached(&lab, &["lan0", "lan1"])?;
    lab.gateway.ip(&["link del lan1"])?;
    attached(&lab, &["lan0"])?;
    proxy.stop()?;
    let left: Vec<String> = lab::Snapshot::take(&lab)?
        .since(&before)
        .into_iter()
        .filter(|line| line.starts_with('+'))
        .collect();
    assert!(left.is_empty(), "{left:#?}");
    Ok(())
}

#[test]
fn the_gateways_own_addresses_are_followed() -> Result<()> {
    let lab = Lab::new()?;
    let _ssh = TcpEcho::start(&lab.gateway, 22)?;
    let _proxy = lab.tproxy_with("direct://")?;
    // Not in a private range, so only knowing it as its own keeps it from the proxy.
    for (family, address) in [(Family::V4, "198.18.5.1"), (Family::V6, "2001:db8:55::1")] {
        let target = SocketAddr::new(address.parse()?, 22);
        let length = family.host_bits();
        for link in ["lan0", "wan0"] {
            lab.gateway
                .ip(&[&format!("addr add {address}/{length} dev {link}")])?;
            // The kernel inserts the local route of an IPv6 address from a work queue.
            until("the address to be local", SOON, || {
                let route = run(lab.gateway.argv(&["ip", "route", "get", address]), SOON)?;
                Ok(route.stdout.starts_with("local").then_some(()))
            })?;
            // At once: until it is known as the gateway's own the proxy leads back to it.
            traffic::echo_line(&lab.device, target)?;
            soon("the address to be known as the gateway's own", || {
                let own = lab.packets("own_address")?;
                traffic::echo_line(&lab.device, target)?;
                ensure!(lab.packets("own_address")? > own, "{:?}", lab.counters()?);
                Ok(())
            })?;
            let opened = lab.packets("tcp_opened")?;
            lab.gateway
                .ip(&[&format!("addr del {address}/{length} dev {link}")])?;
            until("the old address to be foreign", SOON, || {
                // Refused or unreachable through the proxy: it is an address like any other now.
                traffic::connect(&lab.device, target).err();
                Ok((lab.packets("tcp_opened")? > opened).then_some(()))
            })?;
        }
    }
    Ok(())
}

#[test]
fn a_new_prefix_of_the_lan_may_use_the_proxy() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let _proxy = lab.tproxy_with("direct://")?;
    let server = Family::V6.far(1);
    far.sees(Family::V6.gateway_wan(), &lab.device, server)?;
    // The provider gives another prefix: the gateway's goes, and the device's with it.
    let v6 = Family::V6.gateway_wan();
    lab.internet
        .ip(&[&format!("route add 2001:db8:99::/64 via {v6}")])?;
    let (old_device, old_gateway) = (Family::V6.device(), Family::V6.gateway_lan());
    lab.device.ip(&[
        "addr add 2001:db8:99::2/64 dev eth0 nodad",
        &format!("addr del {old_device}/64 dev eth0"),
    ])?;
    // The device is ahead of the gateway: nobody vouches for its source yet.
    let link_local = lab
        .gateway
        .run(&["ip", "-6", "-br", "addr", "show", "lan0", "scope", "link"])?;
    let via = link_local
        .stdout
        .split_whitespace()
        .find_map(|word| word.strip_suffix("/64"))
        .context("a link-local address of lan0")?
        .to_owned();
    lab.device
        .ip(&[&format!("route replace ::/0 via {via} dev eth0")])?;
    lab.gateway
        .ip(&["route add 2001:db8:99::2/128 via fe80::dead dev lan0"])?;
    let foreign = lab.packets("foreign_source")?;
    let socket = traffic::open_udp(&lab.device, Family::V6)?;
    until("a packet of a foreign source", SOON, || {
        socket.send_to(b"?", Far::echo_at(server))?;
        Ok((lab.packets("foreign_source")? > foreign).then_some(()))
    })?;
    lab.gateway.ip(&[
        "route del 2001:db8:99::2/128 via fe80::dead dev lan0",
        "addr add 2001:db8:99::1/64 dev lan0 nodad",
        &format!("addr del {old_gateway}/64 dev lan0"),
    ])?;
    soon("the new prefix to be proxied", || {
        far.sees(Family::V6.gateway_wan(), &lab.device, server)
    })?;
    // IPv4 noticed nothing.
    far.sees(Family::V4.gateway_wan(), &lab.device, Family::V4.far(1))
}

#[test]
fn between_two_lans_nothing_is_proxied() -> Result<()> {
    let lab = Lab::builder().second_lan().build()?;
    let far = Far::start(&lab)?;
    let device2 = lab.device2.as_ref().context("a second device")?;
    let server = TcpEcho::start(device2, 7)?;
    let _proxy = lab.tproxy(&["run", "--lan", "lan0", "--lan", "lan1"])?;
    far.sees_proxy(&lab)?;
    second_device(&lab, &far, true)?;
    for family in Family::BOTH {
        traffic::echo_line(&lab.device, SocketAddr::new(family.device2(), 7))?;
        let target = SocketAddr::new(family.device(), 7001);
        let _near = lab::servers::UdpEcho::start(&lab.device, 7001..=7001)?;
        traffic::echo_sizes(device2, target, &[1, 9_000])?;
    }
    let clients: Vec<IpAddr> = server.clients().iter().map(SocketAddr::ip).collect();
    assert_eq!(clients, Family::BOTH.map(Family::device));
    Ok(())
}

fn carries(lan: Lan, link: Option<&str>, mtu: (u32, u32), clsact: bool) -> Result<()> {
    let built = Lab::builder()
        .lan(lan)
        .lan_mtu(mtu.0)
        .wan_mtu(mtu.1)
        .build();
    let Some(lab) = or_skip(built)? else {
        return Ok(());
    };
    let link = link.unwrap_or_else(|| lab.lan());
    eprintln!("{lan:?} at {link}, MTU {mtu:?}");
    let far = Far::start(&lab)?;
    let _ssh = TcpEcho::start(&lab.gateway, 22)?;
    let before = lab::Snapshot::take(&lab)?;
    let mut command = lab.tproxy_command(&["run", "--lan", link, "--outbound", "direct://"])?;
    if clsact {
        command.env("TPROXY_BPF_ATTACH", "clsact");
    }
    let proxy = Lab::tproxy_by(command)?;
    far.sees_proxy(&lab)?;
    let (path, content) = far.nginx.offer(4 * MIB)?;
    for family in Family::BOTH {
        let down = traffic::download(&lab.device, &url(family.far(1), &path))?;
        assert_eq!(down.sha256, content.sha256);
        traffic::echo_sizes(
            &lab.device,
            Far::echo_at(family.far(4)),
            &[1, 1_400, 1_473, 65_507],
        )?;
        for address in [family.gateway_lan(), family.gateway_wan()] {
            traffic::echo_line(&lab.device, SocketAddr::new(address, 22))?;
        }
    }
    lab.bypass(&["add", "203.0.113.0/24", "2001:db8:f::/64"])?;
    far.sees_device(&lab)?;
    proxy.stop()?;
    lab.restored(&before)
}

#[test]
fn a_bridge_carries_everything() -> Result<()> {
    carries(Lan::Bridge, None, (1500, 1500), false)
}

#[test]
fn a_port_of_a_bridge_carries_everything() -> Result<()> {
    carries(Lan::Bridge, Some("lan0"), (1500, 1500), false)
}

#[test]
fn a_link_without_ethernet_carries_everything() -> Result<()> {
    carries(Lan::Tun, None, (1500, 1500), false)?;
    carries(Lan::Tun, None, (1420, 1500), true)
}

#[test]
fn a_vlan_carries_everything() -> Result<()> {
    carries(Lan::Vlan(10), None, (1500, 1500), false)
}

#[test]
fn tagged_traffic_on_the_parent_of_a_vlan_is_understood() -> Result<()> {
    carries(Lan::Vlan(10), Some("lan0"), (1500, 1500), false)
}

#[test]
fn a_vlan_in_a_vlan_carries_everything() -> Result<()> {
    carries(Lan::QinQ(20, 30), None, (1500, 1500), false)?;
    carries(Lan::QinQ(20, 30), Some("lan0"), (1500, 1500), false)
}

#[test]
fn links_may_differ_in_mtu() -> Result<()> {
    carries(Lan::Ethernet, None, (1280, 1500), false)?;
    carries(Lan::Ethernet, None, (1500, 1280), false)?;
    carries(Lan::Ethernet, None, (9000, 1500), true)
}

#[test]
fn a_source_of_the_wan_side_may_not_use_the_proxy() -> Result<()> {
    let lab = Lab::builder().neighbour().build()?;
    let far = Far::start(&lab)?;
    let _proxy = lab.tproxy_with("direct://")?;
    far.sees_proxy(&lab)?;
    let neighbour = lab.neighbour.as_ref().context("a neighbour")?;
    for family in Family::BOTH {
        // A machine on the WAN that has us as its default route.
        far.sees(family.neighbour(), neighbour, family.far(1))?;

        // A device with an address of the WAN; the internet knows no way back to it but through us.
        let (borrowed, length): (IpAddr, _) = match family {
            Family::V4 => ("192.0.2.77".parse()?, 32),
            Family::V6 => ("2001:db8:2::77".parse()?, 128),
        };
        let (wan, device) = (family.gateway_wan(), family.device());
        lab.device
            .ip(&[&format!("addr add {borrowed}/{length} dev lo")])?;
        lab.gateway
            .ip(&[&format!("route add {borrowed}/{length} via {device}")])?;
        lab.internet
            .ip(&[&format!("route add {borrowed}/{length} via {wan}")])?;
        let foreign = lab.packets("foreign_source")?;
        let server = family.far(1);
        let seen = lab.device.run(&[
            "curl",
            "-sS",
            "--max-time",
            "5",
            "--interface",
            &borrowed.to_string(),
            &url(server, "whoami"),
        ])?;
        assert!(
            seen.stdout.starts_with(&format!("{borrowed} ")),
            "the server saw {}",
            seen.stdout
        );
        let socket = lab.device.enter(|| UdpSocket::bind((borrowed, 0)))??;
        socket.set_read_timeout(Some(SOON))?;
        socket.send_to(&[7; 3_000], Far::echo_at(server))?;
        assert_eq!(socket.recv_from(&mut [0; 4_000])?.0, 3_000);
        ensure!(
            lab.packets("foreign_source")? >= foreign + 4,
            "{:?}",
            lab.counters()?
        );
        // Its own address goes on to be proxied.
        far.sees(family.gateway_wan(), &lab.device, server)?;
    }
    Ok(())
}

#[test]
fn multicast_broadcast_and_link_local_are_left_alone() -> Result<()> {
    let lab = Lab::new()?;
    let wire = Wire::tap(&lab)?;
    let _proxy = lab.tproxy_with("direct://")?;
    let group = Ipv4Addr::new(224, 0, 0, 251);
    let IpAddr::V4(own) = Family::V4.gateway_lan() else {
        unreachable!("an IPv4 address");
    };
    let receiver = lab
        .gateway
        .enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5353)))??;
    receiver.join_multicast_v4(&group, &own)?;
    receiver.set_read_timeout(Some(SOON))?;
    let sender = traffic::open_udp(&lab.device, Family::V4)?;
    sender.set_broadcast(true)?;
    lab.device.ip(&["route add 169.254.0.0/16 dev eth0"])?;
    lab.gateway.ip(&["addr add 169.254.7.1/16 dev lan0"])?;
    for (to, reason) in [
        ("224.0.0.251", "multicast"),
        ("255.255.255.255", "multicast"),
        ("10.77.0.255", "multicast"),
        ("169.254.7.1", "link_local"),
    ] {
        let counted = lab.packets(reason)?;
        sender.send_to(to.as_bytes(), (to, 5353))?;
        let mut buffer = [0; 64];
        let (length, from) = receiver.recv_from(&mut buffer).context(to)?;
        assert_eq!(&buffer[..length], to.as_bytes());
        assert_eq!(from.ip(), Family::V4.device());
        ensure!(
            lab.packets(reason)? > counted,
            "{to}: {:?}",
            lab.counters()?
        );
    }
    assert_eq!(lab.packets("udp_steered")?, 0);
    assert_eq!(wire.packets()?, 0);
    Ok(())
}
