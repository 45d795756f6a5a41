//! What is counted for devices of made packets.

use std::net::IpAddr;

use tproxy_common::abi::{Reason, Settings, Traffic, program};
use tproxy_userspace::control::account::{Account, account};
use tproxy_userspace::control::bpf::Trial;

use super::{Bench, Kind, LO, bench, frame, frame_from};

const DEVICES: [&str; 2] = ["192.168.77.2", "2001:db8:77::2"];

fn of(bench: &Bench, device: &str) -> Option<Traffic> {
    let address: IpAddr = device.parse().unwrap();
    let devices = account(&bench.maps).unwrap().devices;
    Some(devices.into_iter().find(|it| it.0 == address)?.1)
}

/// All networks that were counted for, and the packets from devices and to them.
fn networks(bench: &Bench) -> Vec<(String, u64, u64)> {
    let networks = account(&bench.maps).unwrap().networks.into_iter();
    networks
        .map(|(network, it)| (network.to_string(), it.up.packets, it.down.packets))
        .collect()
}

/// A forwarded packet on its way to a device.
fn to_device(bench: &mut Bench, source: &str, device: &str) -> u64 {
    let frame = frame_from(Kind::Udp, source, device);
    let outcome = bench
        .programs
        .try_packet(&Trial {
            program: program::UDP_REPLY,
            frame: &frame,
            interface: 0,
            came_by: LO,
            mark: 0,
            repeat: 1,
        })
        .unwrap();
    assert_eq!((outcome.action, &outcome.frame), (-1, &frame));
    frame.len() as u64
}

#[test]
fn what_devices_send_past_the_proxy_is_counted_and_nothing_else() {
    bench("counted", |bench| {
        for (prefix, address) in [
            ("192.0.2.1/32", true),
            ("192.0.2.0/24", false),
            ("2001:db8:2::1/128", true),
            ("2001:db8:2::/64", false),
        ] {
            let prefix = prefix.parse().unwrap();
            bench.maps.set_local(prefix, Some(address)).unwrap();
        }
        bench.bypass("198.51.100.0/24", 0);
        bench.bypass("2001:db8:b::/48", 0);
        // Not before it is switched on.
        bench.reason(&frame(Kind::Udp, "198.51.100.1"));
        assert_eq!(account(&bench.maps).unwrap(), Account::default());
        bench.switch(Settings::ACCOUNT, true);
        for (device, near, far) in [
            (
                DEVICES[0],
                ["192.0.2.1", "192.0.2.9", "224.0.0.251", "169.254.1.1"],
                ["198.51.100.1", "203.0.113.1", "10.1.2.3"],
            ),
            (
                DEVICES[1],
                ["2001:db8:2::1", "2001:db8:2::9", "ff02::1", "fe80::1"],
                ["2001:db8:b::1", "2001:db8:f::1", "fd00::1"],
            ),
        ] {
            for destination in near {
                for kind in [Kind::Syn, Kind::Ack, Kind::Udp, Kind::Icmp] {
                    bench.reason(&frame(kind, destination));
                }
            }
            assert_eq!(of(bench, device), None);
            let (mut packets, mut bytes) = (0, 0);
            for destination in far {
                for kind in [Kind::Syn, Kind::Ack, Kind::Udp, Kind::Icmp] {
                    let frame = frame(kind, destination);
                    bench.reason(&frame);
                    packets += 1;
                    bytes += frame.len() as u64;
                }
            }
            let own = of(bench, device).unwrap();
            assert_eq!((own.up.packets, own.up.bytes), (packets, bytes));
            assert_eq!((own.down.packets, own.down.bytes), (0, 0));
        }
        // Who may not use the proxy takes no room, whyever the packet passes.
        for (kind, source, destination) in [
            (Kind::Udp, "192.0.2.77", "198.51.100.1"),
            (Kind::Ack, "192.0.2.77", "203.0.113.1"),
            (Kind::Udp, "2001:db8:78::2", "2001:db8:f::1"),
        ] {
            bench.reason(&frame_from(kind, source, destination));
        }
        assert_eq!(account(&bench.maps).unwrap().devices.len(), 2);
        let gone = [
            "10.1.2.0/24",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "2001:db8:b::/48",
            "2001:db8:f::/48",
            "fd00::/48",
        ];
        assert_eq!(
            networks(bench),
            gone.map(|network| (network.to_owned(), 4, 0))
        );
        // What ends in the gateway is not on its way past the proxy.
        bench.switch(Settings::DOWN_DROPS, true);
        let before = of(bench, DEVICES[0]);
        let dropped = frame(Kind::Udp, "203.0.113.1");
        assert_eq!(bench.reason(&dropped), Reason::DownDropped);
        assert_eq!(of(bench, DEVICES[0]), before);
    });
}

#[test]
fn what_is_forwarded_to_devices_is_counted() {
    bench("down", |bench| {
        for prefix in ["192.0.2.0/24", "2001:db8:2::/64"] {
            bench
                .maps
                .set_local(prefix.parse().unwrap(), Some(false))
                .unwrap();
        }
        bench.switch(Settings::ACCOUNT, true);
        let pairs = [
            (DEVICES[0], "203.0.113.1", "192.0.2.9"),
            (DEVICES[1], "2001:db8:f::1", "2001:db8:2::9"),
        ];
        for (device, far, near) in pairs {
            // Who has sent nothing is no device: on a one-armed gateway the far server is also on this link.
            to_device(bench, far, device);
            assert_eq!(of(bench, device), None);
            bench.reason(&frame(Kind::Udp, far));
            let bytes = to_device(bench, far, device);
            // From a subnet of the gateway.
            to_device(bench, near, device);
            let own = of(bench, device).unwrap();
            assert_eq!((own.down.packets, own.down.bytes), (1, bytes));
            // What the gateway itself sends, the proxy's answers for example.
            bench.try_on(program::UDP_REPLY, &frame_from(Kind::Udp, far, device), 0);
            assert_eq!(of(bench, device).unwrap().down.packets, 1);
        }
        let both = ["203.0.113.0/24", "2001:db8:f::/48"];
        assert_eq!(
            networks(bench),
            both.map(|network| (network.to_owned(), 1, 1))
        );
        bench.switch(Settings::ACCOUNT, false);
        for (device, far, _) in pairs {
            to_device(bench, far, device);
            bench.reason(&frame(Kind::Udp, far));
            let own = of(bench, device).unwrap();
            assert_eq!((own.up.packets, own.down.packets), (1, 1));
        }
        assert_eq!(bench.maps.devices().unwrap().len(), 2);
        assert!(
            bench
                .maps
                .devices()
                .unwrap()
                .iter()
                .all(|(_, traffic)| *traffic != Traffic::default())
        );
    });
}
