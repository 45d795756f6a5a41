//! The kernel half alone: what the real programs do with made packets.
//!
//! Each test has a network namespace and pins of its own. Sockets cannot be assigned in a trial run,
//! so what would be steered to a listener comes out as `down_passed` or `down_dropped`; the traffic
//! tests show the rest.

#[path = "kernel/counted.rs"]
mod counted;
#[path = "kernel/told.rs"]
mod told;

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use tproxy_common::abi::{
    self, Bypass, Counter, EXEMPT_MARKS, ExemptMark, ExemptMarks, MARK_EXEMPT, MARK_REPLY,
    MARK_STEER, Origin, Reason, Settings, program,
};
use tproxy_userspace::control::bpf::{
    BypassEntry, Maps, Outcome, Programs, Rehearsal, Trial, remove_pins,
};
use tproxy_userspace::control::bypass::{self, Terms};
use tproxy_userspace::control::sync::Via;

/// Pins in a folder that goes away with the test.
struct Pins(PathBuf);

impl Pins {
    fn new(name: &str) -> Self {
        let mounted = std::fs::read_to_string("/proc/self/mounts").unwrap();
        if !mounted
            .lines()
            .any(|line| line.split(' ').nth(1) == Some("/sys/fs/bpf"))
        {
            nix::mount::mount(
                Some("bpf"),
                "/sys/fs/bpf",
                Some("bpf"),
                nix::mount::MsFlags::empty(),
                None::<&str>,
            )
            .unwrap();
        }
        let path = PathBuf::from(format!(
            "/sys/fs/bpf/tproxy-test-{}-{name}",
            std::process::id()
        ));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = remove_pins(&self.0);
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// The programs with maps of their own, in a namespace of its own.
struct Bench {
    programs: Programs,
    maps: Maps,
    _pins: Pins,
}

const LO: u32 = 1;

/// Runs a test in a thread with a network namespace of its own.
fn bench(name: &'static str, test: impl FnOnce(&mut Bench) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
        let pins = Pins::new(name);
        let (programs, mut maps) = Programs::load(&pins.0).unwrap();
        maps.set_settings(Settings {
            flags: Settings::BYPASS_PRIVATE,
            reply_port_v4: 4000_u16.to_be(),
            reply_port_v6: 6000_u16.to_be(),
            ..maps.settings().unwrap()
        })
        .unwrap();
        for source in ["192.168.77.0/24", "2001:db8:77::/64"] {
            maps.set_source(Via::arriving(LO), source.parse().unwrap(), true)
                .unwrap();
        }
        test(&mut Bench {
            programs,
            maps,
            _pins: pins,
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Bench {
    /// Switches one of the settings' flags.
    fn switch(&mut self, flag: u32, on: bool) {
        let mut settings = self.maps.settings().unwrap();
        settings.set(flag, on);
        self.maps.set_settings(settings).unwrap();
    }

    fn try_on(&mut self, program: &'static str, frame: &[u8], mark: u32) -> Outcome {
        self.programs
            .try_packet(&Trial {
                program,
                frame,
                interface: 0,
                came_by: 0,
                mark,
                repeat: 1,
            })
            .unwrap()
    }

    fn counter(&self, reason: Reason) -> Counter {
        self.maps.counters().unwrap()[reason as usize].1
    }

    /// The reason for which a packet from the LAN went its way: the one counter that moved.
    fn reason(&mut self, frame: &[u8]) -> Reason {
        self.reason_of(program::LAN_INGRESS, frame, 0)
    }

    /// The same for any program and mark.
    fn reason_of(&mut self, program: &'static str, frame: &[u8], mark: u32) -> Reason {
        let before = self.maps.counters().unwrap();
        let outcome = self.try_on(program, frame, mark);
        let after = self.maps.counters().unwrap();
        let moved: Vec<_> = before
            .iter()
            .zip(&after)
            .filter(|(old, new)| old.1 != new.1)
            .collect();
        let [(old, new)] = moved[..] else {
            panic!("{} counters moved", moved.len());
        };
        assert_eq!(new.1.packets, old.1.packets + 1);
        assert_eq!(new.1.bytes, old.1.bytes + frame.len() as u64);
        let expected = match new.0.effect() {
            abi::Effect::Drop => 2,
            abi::Effect::Pass | abi::Effect::Steer => -1,
        };
        assert_eq!(outcome.action, expected, "{:?}", new.0);
        let steered = new.0.effect() == abi::Effect::Steer;
        assert_eq!(
            outcome.mark,
            if steered { MARK_STEER } else { mark },
            "{:?}",
            new.0
        );
        new.0
    }

    fn bypass(&mut self, prefix: &str, expires: u64) {
        let prefix: IpNet = prefix.parse().unwrap();
        let value = Bypass {
            expires,
            prefix_len: prefix.prefix_len().into(),
            origin: Origin::Command as u32,
            ..Bypass::default()
        };
        self.maps
            .insert_bypass(&BypassEntry {
                prefix,
                value,
                note: String::new(),
            })
            .unwrap();
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Syn,
    Ack,
    Udp,
    Icmp,
}

/// A frame to `lo`, whose address is all zeros, from the LAN to a destination.
fn frame(kind: Kind, destination: &str) -> Vec<u8> {
    let v4 = destination.contains('.');
    frame_from(
        kind,
        if v4 { "192.168.77.2" } else { "2001:db8:77::2" },
        destination,
    )
}

fn frame_from(kind: Kind, source: &str, destination: &str) -> Vec<u8> {
    let transport = match kind {
        Kind::Syn | Kind::Ack => {
            let mut tcp = vec![
                0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0, 1, 0, 0, 0, 0, 0,
            ];
            tcp[13] = if let Kind::Syn = kind { 0x02 } else { 0x10 };
            tcp
        }
        Kind::Udp => vec![0x9c, 0x40, 0x01, 0xbb, 0, 12, 0, 0, b'p', b'i', b'n', b'g'],
        Kind::Icmp => vec![8, 0, 0, 0, 0, 1, 0, 1],
    };
    let protocol = match kind {
        Kind::Syn | Kind::Ack => 6,
        Kind::Udp => 17,
        Kind::Icmp => 1,
    };
    ip(source, destination, protocol, 0, &transport)
}

/// `fragment` is the flags-and-offset field of IPv4.
fn ip(source: &str, destination: &str, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    match (source.parse().unwrap(), destination.parse().unwrap()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend((20 + payload.len() as u16).to_be_bytes());
            frame.extend([0, 7]);
            frame.extend(fragment.to_be_bytes());
            frame.extend([64, protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((payload.len() as u16).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        _ => panic!("two families"),
    }
    frame.extend(payload);
    frame
}

#[test]
fn destinations_decide() {
    bench("destinations", |bench| {
        bench
            .maps
            .set_local("192.0.2.1/32".parse().unwrap(), Some(true))
            .unwrap();
        bench
            .maps
            .set_local("192.0.2.0/24".parse().unwrap(), Some(false))
            .unwrap();
        bench
            .maps
            .set_local("2001:db8:2::1/128".parse().unwrap(), Some(true))
            .unwrap();
        bench
            .maps
            .set_local("2001:db8:2::/64".parse().unwrap(), Some(false))
            .unwrap();
        bench.bypass("198.51.100.0/24", 0);
        bench.bypass("2001:db8:b::/48", 0);
        let table = [
            ("203.0.113.1", Reason::DownPassed),
            ("2001:db8:f::1", Reason::DownPassed),
            ("198.51.100.7", Reason::Bypassed),
            ("2001:db8:b::7", Reason::Bypassed),
            ("192.0.2.1", Reason::OwnAddress),
            ("192.0.2.9", Reason::OwnSubnet),
            ("2001:db8:2::1", Reason::OwnAddress),
            ("2001:db8:2::9", Reason::OwnSubnet),
            ("10.1.2.3", Reason::PrivateRange),
            ("172.16.0.1", Reason::PrivateRange),
            ("172.32.0.1", Reason::DownPassed),
            ("192.168.1.1", Reason::PrivateRange),
            ("100.64.0.1", Reason::PrivateRange),
            ("100.128.0.1", Reason::DownPassed),
            ("fd00::1", Reason::PrivateRange),
            ("224.0.0.251", Reason::Multicast),
            ("239.255.255.250", Reason::Multicast),
            ("255.255.255.255", Reason::Multicast),
            ("ff02::1", Reason::Multicast),
            ("169.254.1.1", Reason::LinkLocal),
            ("fe80::1", Reason::LinkLocal),
            ("127.0.0.1", Reason::Loopback),
            ("0.0.0.0", Reason::Loopback),
            ("::1", Reason::Loopback),
            ("240.0.0.1", Reason::Reserved),
            ("::ffff:203.0.113.1", Reason::Reserved),
        ];
        for (destination, expected) in table {
            for kind in [Kind::Syn, Kind::Udp] {
                let destination_v6 = if destination.starts_with("::ffff") {
                    "::ffff:cb00:7101"
                } else {
                    destination
                };
                assert_eq!(
                    bench.reason(&frame(kind, destination_v6)),
                    expected,
                    "{destination}"
                );
            }
        }
        assert_eq!(
            bench.reason(&frame(Kind::Icmp, "203.0.113.1")),
            Reason::OtherProtocol
        );
        assert_eq!(
            bench.reason(&frame(Kind::Ack, "203.0.113.1")),
            Reason::DirectConnection
        );
    });
}

#[test]
fn a_source_that_is_not_of_the_lan_is_not_admitted() {
    bench("sources", |bench| {
        for kind in [Kind::Syn, Kind::Udp] {
            let v4 = frame_from(kind, "192.0.2.77", "203.0.113.1");
            let v6 = frame_from(kind, "2001:db8:78::2", "2001:db8:f::1");
            assert_eq!(bench.reason(&v4), Reason::ForeignSource);
            assert_eq!(bench.reason(&v6), Reason::ForeignSource);
        }
    });
}

/// A trial run comes with a socket that has no mark.
#[test]
fn of_what_the_gateway_sends_the_exempt_passes() {
    bench("exempt", |bench| {
        for (own, far) in [
            ("192.168.77.2", "203.0.113.1"),
            ("2001:db8:77::2", "2001:db8:f::1"),
        ] {
            for kind in [Kind::Syn, Kind::Udp] {
                let frame = frame_from(kind, own, far);
                let reason =
                    |bench: &mut Bench, mark| bench.reason_of(program::LOCAL_EGRESS, &frame, mark);
                // What comes in by this link is admitted, what is sent by it is not.
                let own = own.parse::<IpAddr>().unwrap().into();
                bench.maps.set_source(Via::leaving(LO), own, false).unwrap();
                assert_eq!(reason(bench, 0), Reason::ForeignSource);
                bench.maps.set_source(Via::leaving(LO), own, true).unwrap();
                assert_eq!(reason(bench, 0), Reason::DownPassed);
                assert_eq!(reason(bench, MARK_EXEMPT), Reason::Exempt);
                // Bits of others do not matter, and the steer mark exempts nothing.
                assert_eq!(reason(bench, 0xff00 | MARK_EXEMPT), Reason::Exempt);
                assert_eq!(reason(bench, MARK_EXEMPT | 0x40), Reason::DownPassed);

                let mut marks = ExemptMarks::default();
                let mark = |value, mask| ExemptMark {
                    value,
                    mask,
                    origin: Origin::Command as u32,
                };
                marks.marks[0] = mark(0x8_0000, 0xff_0000);
                marks.marks[1] = mark(0x2, 0xffff_ffff);
                marks.count = 2;
                for (packet, expected) in [
                    (0x8_0000, Reason::Exempt),
                    (0x8_0007, Reason::Exempt),
                    (0x9_0000, Reason::DownPassed),
                    (2, Reason::Exempt),
                    (3, Reason::DownPassed),
                    (0, Reason::DownPassed),
                ] {
                    assert_eq!(reason(bench, packet), Reason::DownPassed, "{packet:x}");
                    bench.maps.set_exempt_marks(marks).unwrap();
                    assert_eq!(reason(bench, packet), expected, "{packet:x}");
                    bench.maps.set_exempt_marks(ExemptMarks::default()).unwrap();
                }
                // Every place of the table counts, and none beyond the count.
                marks.marks = [mark(0x100, 0x100); EXEMPT_MARKS];
                marks.marks[EXEMPT_MARKS - 1] = mark(0x2, 0xff);
                for (count, expected) in [
                    (EXEMPT_MARKS as u32, Reason::Exempt),
                    (EXEMPT_MARKS as u32 - 1, Reason::DownPassed),
                ] {
                    marks.count = count;
                    bench.maps.set_exempt_marks(marks).unwrap();
                    assert_eq!(reason(bench, 2), expected);
                }
                bench.maps.set_exempt_marks(ExemptMarks::default()).unwrap();
            }
        }
    });
}

#[test]
fn lo_is_left_alone_but_for_what_was_turned_round() {
    bench("lo", |bench| {
        for (mark, expected) in [(0, 0), (MARK_EXEMPT, MARK_EXEMPT), (MARK_STEER, MARK_STEER)] {
            for kind in [Kind::Syn, Kind::Ack, Kind::Udp] {
                let before = bench.maps.counters().unwrap();
                let frame = frame(kind, "203.0.113.1");
                let outcome = bench.try_on(program::LO_INGRESS, &frame, mark);
                assert_eq!((outcome.action, outcome.mark), (-1, expected));
                assert_eq!(outcome.frame, frame);
                assert_eq!(bench.maps.counters().unwrap(), before);
            }
        }
    });
}

#[test]
fn without_a_proxy_the_policy_decides() {
    bench("down", |bench| {
        bench.switch(Settings::DOWN_DROPS, true);
        for destination in ["203.0.113.1", "2001:db8:f::1"] {
            for kind in [Kind::Syn, Kind::Udp] {
                assert_eq!(bench.reason(&frame(kind, destination)), Reason::DownDropped);
            }
            assert_eq!(
                bench.reason(&frame(Kind::Ack, destination)),
                Reason::DirectConnection
            );
        }
        // Fragments of one datagram share the verdict of the first.
        let first = ip("192.168.77.2", "203.0.113.1", 17, 0x2000, &[0; 64]);
        let later = ip("192.168.77.2", "203.0.113.1", 17, 0x0008, &[0; 64]);
        assert_eq!(bench.reason(&first), Reason::DownDropped);
        assert_eq!(bench.reason(&later), Reason::DownDropped);
        // However little there is behind the header of the last one.
        for size in 1..=9 {
            let last = ip("192.168.77.2", "203.0.113.1", 17, 0x0010, &vec![0; size]);
            assert_eq!(bench.reason(&last), Reason::DownDropped, "{size} bytes");
            let fragment = |offset: u16, payload: &[u8]| {
                let mut header = vec![17, 0, 0, 0, 0, 0, 0, size as u8];
                header[2..4].copy_from_slice(&offset.to_be_bytes());
                let all = [header, payload.to_vec()].concat();
                ip("2001:db8:77::2", "2001:db8:f::1", 44, 0, &all)
            };
            let (first, last) = (fragment(1, &[0; 64]), fragment(64, &vec![0; size]));
            assert_eq!(bench.reason(&first), Reason::DownDropped);
            assert_eq!(bench.reason(&last), Reason::DownDropped, "{size} bytes");
        }
    });
}

#[test]
fn what_the_proxy_spares_leaves_the_entries_of_others_alone() {
    bench("origins", |bench| {
        let prefixes = |texts: &[&str]| -> Vec<IpNet> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let terms = Terms::default();
        let origins = |bench: &Bench| {
            let entries = bench.maps.bypass().unwrap().into_iter();
            let mut all: Vec<_> = entries
                .map(|entry| (entry.prefix.to_string(), entry.value.origin))
                .collect();
            all.sort();
            all
        };
        let [command, config, outbound, ..] = Origin::ALL.map(|origin| origin as u32);
        let is = |text: &str, origin| (text.to_owned(), origin);
        let (one, two, three) = ("192.0.2.1/32", "192.0.2.2/32", "2001:db8::3/128");

        bench.bypass(one, 0);
        let wanted = prefixes(&[one, two, three]);
        let replaced = bypass::replace(&mut bench.maps, &wanted, &terms, Origin::Outbound);
        assert_eq!(replaced.unwrap().added, 2);
        let all = [is(one, command), is(two, outbound), is(three, outbound)];
        assert_eq!(origins(bench), all);

        // What the configuration wants too is the configuration's, or it would go with the proxy.
        bypass::replace(&mut bench.maps, &prefixes(&[two]), &terms, Origin::Config).unwrap();
        bypass::replace(&mut bench.maps, &wanted, &terms, Origin::Outbound).unwrap();
        let all = [is(one, command), is(two, config), is(three, outbound)];
        assert_eq!(origins(bench), all);

        // Removed, or over: put back. What holds is left as it is.
        bypass::remove(&mut bench.maps, &prefixes(&[three])).unwrap();
        bench.bypass(one, 1);
        let restored = bypass::restore(&mut bench.maps, &wanted, &terms, Origin::Outbound);
        assert_eq!(restored.unwrap(), 2);
        let all = [is(one, outbound), is(two, config), is(three, outbound)];
        assert_eq!(origins(bench), all);
        let restored = bypass::restore(&mut bench.maps, &wanted, &terms, Origin::Outbound);
        assert_eq!(restored.unwrap(), 0);

        bypass::replace(&mut bench.maps, &[], &terms, Origin::Outbound).unwrap();
        assert_eq!(origins(bench), [is(two, config)]);
    });
}

#[test]
fn an_expired_prefix_gives_way_to_a_shorter_one_that_holds() {
    bench("expiry", |bench| {
        bench.bypass("198.51.100.0/24", 1);
        assert_eq!(
            bench.reason(&frame(Kind::Udp, "198.51.100.7")),
            Reason::DownPassed
        );
        bench.bypass("198.51.100.7/32", 1);
        bench.bypass("198.0.0.0/8", 0);
        assert_eq!(
            bench.reason(&frame(Kind::Udp, "198.51.100.7")),
            Reason::Bypassed
        );
        let hits: Vec<_> = bench.maps.bypass().unwrap();
        let hit = hits
            .iter()
            .find(|entry| entry.prefix.prefix_len() == 8)
            .unwrap();
        assert_eq!(hit.value.packets, 1);
        bench.bypass("198.51.100.7/32", u64::MAX);
        bench.bypass("198.0.0.0/8", 1);
        assert_eq!(
            bench.reason(&frame(Kind::Udp, "198.51.100.7")),
            Reason::Bypassed
        );
        bench.bypass("0.0.0.0/0", 0);
        assert_eq!(
            bench.reason(&frame(Kind::Udp, "203.0.113.1")),
            Reason::Bypassed
        );
    });
}

#[test]
fn what_is_cut_off_passes_where_it_is_harmless_and_drops_where_it_would_leak() {
    bench("cut-off", |bench| {
        bench.bypass("198.51.100.0/24", 0);
        let cut = |destination| ip("192.168.77.2", destination, 6, 0, &[0; 12]);
        assert_eq!(
            bench.reason(&cut("203.0.113.1")),
            Reason::MalformedTransport
        );
        assert_eq!(bench.reason(&cut("198.51.100.1")), Reason::Bypassed);
        let mut wrong = frame(Kind::Syn, "203.0.113.1");
        wrong[14] = 0x41;
        assert_eq!(bench.reason(&wrong), Reason::MalformedIp);
        let mut arp = frame(Kind::Syn, "203.0.113.1");
        arp[13] = 6;
        assert_eq!(bench.reason(&arp), Reason::NotIp);
        let mut other = frame(Kind::Syn, "203.0.113.1");
        other[5] = 1;
        assert_eq!(bench.reason(&other), Reason::OtherHost);
        // Nine destination-options headers are more than are followed.
        let mut chain: Vec<u8> = [60_u8, 0, 1, 4, 0, 0, 0, 0].repeat(9);
        chain[64] = 17;
        chain.extend([0x9c, 0x40, 0x01, 0xbb, 0, 8, 0, 0]);
        let buried = ip("2001:db8:77::2", "2001:db8:f::1", 60, 0, &chain);
        assert_eq!(bench.reason(&buried), Reason::LongExtensionChain);
        let followed = ip("2001:db8:77::2", "2001:db8:f::1", 60, 0, &chain[8..]);
        assert_eq!(bench.reason(&followed), Reason::DownPassed);
    });
}

#[test]
fn later_fragments_of_tcp_follow_the_first() {
    bench("fragments", |bench| {
        let mut syn = vec![0; 20];
        syn[12] = 0x50;
        syn[13] = 0x02;
        let first = ip("192.168.77.2", "203.0.113.1", 6, 0x2000, &syn);
        let later = ip("192.168.77.2", "203.0.113.1", 6, 0x0003, &[0; 8]);
        assert_eq!(bench.reason(&later), Reason::LoneFragment);
        assert_eq!(bench.reason(&first), Reason::DownPassed);
        assert_eq!(bench.reason(&later), Reason::DirectFragment);
    });
}

#[test]
fn a_vlan_tag_inside_the_frame_is_passed_over() {
    bench("vlan", |bench| {
        let plain = frame(Kind::Udp, "203.0.113.1");
        // The kernel takes the first tag off before a program sees the frame, a trial run does not.
        for tags in 1..=2 {
            let mut tagged = plain[..12].to_vec();
            for _ in 0..tags {
                tagged.extend([0x81, 0x00, 0x00, 0x0a]);
            }
            tagged.extend(&plain[12..]);
            assert_eq!(bench.reason(&tagged), Reason::DownPassed, "{tags} tags");
        }
    });
}

#[test]
fn a_reply_gets_its_port_and_a_right_checksum() {
    bench("reply", |bench| {
        for (source, destination, reply_port) in [
            ("203.0.113.1", "192.168.77.2", 4000_u16),
            ("2001:db8:f::1", "2001:db8:77::2", 6000),
        ] {
            let mut udp = vec![0; 12];
            udp[..2].copy_from_slice(&reply_port.to_be_bytes());
            udp[2..4].copy_from_slice(&40_000_u16.to_be_bytes());
            udp[5] = 12;
            udp[8..].copy_from_slice(b"pong");
            let sum = checksum(source, destination, &udp);
            udp[6..8].copy_from_slice(&sum.to_be_bytes());
            let frame = ip(source, destination, 17, 0, &udp);
            let mark = 443 << 16 | MARK_REPLY;
            let outcome = bench.try_on(program::UDP_REPLY, &frame, mark);
            let at = frame.len() - udp.len();
            assert_eq!(outcome.action, -1);
            assert_eq!(outcome.mark, 0);
            assert_eq!(outcome.frame[at..at + 2], 443_u16.to_be_bytes());
            let mut header = outcome.frame[at..].to_vec();
            let found = u16::from_be_bytes([header[6], header[7]]);
            header[6..8].fill(0);
            assert_eq!(found, checksum(source, destination, &header));
            assert_eq!(outcome.frame[..at], frame[..at]);
            // Whoever else uses such a mark, or another port, is left alone.
            let other = bench.try_on(program::UDP_REPLY, &frame, 443 << 16 | 0xd1);
            assert_eq!((other.frame, other.mark), (frame.clone(), 443 << 16 | 0xd1));
            let mut foreign = frame.clone();
            foreign[at] ^= 1;
            assert_eq!(
                bench.try_on(program::UDP_REPLY, &foreign, mark).frame,
                foreign
            );
        }
        assert_eq!(bench.counter(Reason::ReplySent).packets, 2);
    });
}

/// RFC 768 with the pseudo header of either family.
fn checksum(source: &str, destination: &str, udp: &[u8]) -> u16 {
    let octets = |text: &str| match text.parse().unwrap() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let mut bytes = [octets(source), octets(destination)].concat();
    bytes.extend([0, 17, 0, udp.len() as u8]);
    bytes.extend(udp);
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[test]
fn a_rehearsal_finds_the_entry_and_leaves_no_trace() {
    bench("rehearsal", |bench| {
        bench.bypass("203.0.113.0/24", 0);
        bench.bypass("203.0.0.0/16", 0);
        // Expired long ago.
        bench.bypass("203.0.113.128/25", 1);
        bench.bypass("203.0.113.200/32", 1);
        bench.bypass("::/0", 0);
        let counters = bench.maps.counters().unwrap();
        let pins = || std::fs::read_dir(&bench._pins.0).unwrap().count();
        let before = pins();
        let mut rehearsal = Rehearsal::load(&bench._pins.0).unwrap();
        assert_eq!(pins(), before);
        for (destination, matched) in [
            ("203.0.113.200", Some("203.0.113.0/24")),
            ("203.0.113.1", Some("203.0.113.0/24")),
            ("203.0.1.1", Some("203.0.0.0/16")),
            ("198.51.100.1", None),
            ("2001:db8:f::1", Some("::/0")),
        ] {
            for kind in [Kind::Syn, Kind::Udp] {
                let frame = frame(kind, destination);
                let destination: IpAddr = destination.parse().unwrap();
                let rehearsed =
                    rehearsal.run(&bench.maps, program::LAN_INGRESS, LO, &frame, destination);
                let rehearsed = rehearsed.unwrap();
                let found = rehearsed.bypass.map(|entry| entry.prefix.to_string());
                assert_eq!(found.as_deref(), matched, "{destination}");
                let reason = matched.map_or(Reason::DownPassed, |_| Reason::Bypassed);
                assert_eq!(rehearsed.reason, Some(reason), "{destination}");
            }
        }
        assert_eq!(bench.maps.counters().unwrap(), counters);
        let entries = bench.maps.bypass().unwrap();
        assert_eq!(entries.len(), 5);
        assert!(entries.iter().all(|entry| entry.value.packets == 0));
    });
}

/// The kernel gives up at a million. Older ones follow more for the same program: 6.1 up to six times what 6.18 does.
#[test]
fn the_verifier_has_room_for_every_program() {
    bench("verifier", |bench| {
        for (program, verified) in bench.programs.load_all().unwrap() {
            println!("{program}: {verified:?}");
            assert!(verified.is_none_or(|count| count < 600_000), "{program}");
        }
    });
}

#[test]
fn the_tries_hold_what_they_promise() {
    bench("capacity", |bench| {
        for index in 0..65_536_u32 {
            let v4 = std::net::Ipv4Addr::from(0x0100_0000 + (index << 8));
            let v6 = std::net::Ipv6Addr::from((0x2001_0db8_u128 << 96) + (u128::from(index) << 64));
            bench.bypass(&format!("{v4}/24"), 0);
            bench.bypass(&format!("{v6}/64"), 0);
        }
        assert_eq!(bench.maps.bypass_count().unwrap(), (65_536, 65_536));
        assert_eq!(bench.reason(&frame(Kind::Udp, "1.0.0.9")), Reason::Bypassed);
        assert_eq!(
            bench.reason(&frame(Kind::Udp, "2001:db8:0:ffff::9")),
            Reason::Bypassed
        );
    });
}

#[test]
fn maps_of_another_version_are_refused() {
    bench("version", |bench| {
        let settings = bench.maps.settings().unwrap();
        bench
            .maps
            .set_settings(Settings {
                abi: 999,
                ..settings
            })
            .unwrap();
        let error = Programs::load(&bench._pins.0).err().unwrap().to_string();
        assert!(
            error.contains("another version") && error.contains("detach"),
            "{error}"
        );
    });
}
