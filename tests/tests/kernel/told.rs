//! What listeners are told of made packets.

use std::net::UdpSocket;
use std::os::fd::AsFd;

use tproxy_common::abi::{Listener, Reason, program};
use tproxy_common::trace::{Hook, Message, TraceEvent, TraceFilter};
use tproxy_userspace::control::bpf::TraceMaps;
use tproxy_userspace::control::bypass;

use super::{Bench, Kind, LO, bench, frame};

/// Long enough for a test.
const MINUTE: u64 = 60_000_000_000;

fn listen(bench: &Bench, filter: TraceFilter) -> TraceMaps {
    let mut maps = TraceMaps::open(&bench._pins.0).unwrap();
    maps.set_filter(TraceFilter {
        session: 9,
        until: bypass::now() + MINUTE,
        ..filter
    })
    .unwrap();
    maps
}

fn told(maps: &mut TraceMaps) -> Vec<TraceEvent> {
    std::iter::from_fn(|| maps.take_event()).collect()
}

#[test]
fn a_listener_is_told_what_the_packet_was_and_why() {
    bench("told", |bench| {
        bench.bypass("198.51.100.0/24", 0);
        bench.bypass("2001:db8:b::/48", 0);
        let mut maps = listen(bench, TraceFilter::everything());
        let start = bypass::now();
        for (kind, destination) in [
            (Kind::Syn, "203.0.113.1"),
            (Kind::Ack, "198.51.100.1"),
            (Kind::Udp, "198.51.100.1"),
            (Kind::Icmp, "203.0.113.1"),
            (Kind::Syn, "2001:db8:f::1"),
            (Kind::Ack, "2001:db8:b::1"),
            (Kind::Udp, "2001:db8:b::1"),
        ] {
            let frame = frame(kind, destination);
            let reason = bench.reason(&frame);
            let [event] = told(&mut maps)[..] else {
                panic!("one event for {destination}");
            };
            assert_eq!(event.code, reason as u16, "{destination}");
            assert_eq!((event.kind, event.session), (TraceEvent::DECISION, 9));
            assert_eq!(event.hook, Hook::LanIngress as u8);
            assert_eq!((event.link, event.length), (LO, frame.len() as u32));
            assert!(event.time >= start && event.time <= bypass::now());
            let mut expected = TraceEvent::empty(9, event.time);
            let packet = tproxy_common::packet::parse_frame(&frame[..]).unwrap();
            expected.describe(&packet);
            assert_eq!(
                TraceEvent {
                    code: 0,
                    hook: 0,
                    link: 0,
                    length: 0,
                    ..event
                },
                expected
            );
        }
        // What is not parsed is told as well.
        let mut arp = frame(Kind::Syn, "203.0.113.1");
        arp[13] = 6;
        let mut other = frame(Kind::Udp, "203.0.113.1");
        other[5] = 1;
        assert_eq!(bench.reason(&arp), Reason::NotIp);
        assert_eq!(bench.reason(&other), Reason::OtherHost);
        let events = told(&mut maps);
        let seen: Vec<_> = events.iter().map(|it| (it.code, it.family)).collect();
        let expected =
            [Reason::NotIp, Reason::OtherHost].map(|reason| (reason as u16, TraceEvent::NOT_IP));
        assert_eq!(seen, expected);
        assert_eq!(maps.lost().unwrap(), 0);
    });
}

#[test]
fn nobody_is_told_who_does_not_listen_or_asked_for_something_else() {
    bench("untold", |bench| {
        let frame = frame(Kind::Udp, "203.0.113.1");
        let mut maps = listen(
            bench,
            TraceFilter {
                reasons: 1 << Reason::Bypassed as u32,
                ..TraceFilter::everything()
            },
        );
        assert_eq!(bench.reason(&frame), Reason::DownPassed);
        assert_eq!(told(&mut maps), []);
        // One who was killed is taken out by the first packet after his time.
        maps.set_filter(TraceFilter {
            until: 1,
            ..TraceFilter::everything()
        })
        .unwrap();
        bench.reason(&frame);
        assert_eq!(told(&mut maps), []);
        assert_eq!(maps.filter().unwrap(), TraceFilter::everything());
        bench.reason(&frame);
        assert_eq!(told(&mut maps), []);
        assert_eq!(maps.lost().unwrap(), 0);
    });
}

#[test]
fn what_finds_no_room_is_counted() {
    bench("room", |bench| {
        let frame = frame(Kind::Udp, "203.0.113.1");
        let mut maps = listen(bench, TraceFilter::everything());
        let tries = 5_000;
        for _ in 0..tries {
            bench.try_on(program::LAN_INGRESS, &frame, 0);
        }
        let lost = maps.lost().unwrap();
        let read = told(&mut maps).len() as u64;
        assert!(lost > 0 && read > 3_000, "{read} read, {lost} lost");
        assert_eq!(read + lost, tries);
    });
}

/// In a trial no socket can be assigned: that is what should not happen with real packets.
#[test]
fn a_refused_assignment_is_a_message_with_its_error() {
    bench("message", |bench| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        bench
            .maps
            .set_listener(Listener::Udp4, &[socket.as_fd()])
            .unwrap();
        let frame = frame(Kind::Udp, "203.0.113.1");
        // Without a listener for the programs nothing is kept.
        assert_eq!(bench.reason(&frame), Reason::DownPassed);
        let mut maps = listen(
            bench,
            TraceFilter {
                reasons: 0,
                ..TraceFilter::everything()
            },
        );
        assert_eq!(told(&mut maps), []);
        assert_eq!(bench.reason(&frame), Reason::DownPassed);
        let [message] = told(&mut maps)[..] else {
            panic!("one message");
        };
        assert_eq!(message.kind, TraceEvent::MESSAGE);
        assert_eq!(message.code, Message::NotAssigned as u16);
        assert_eq!(message.error, libc::EOPNOTSUPP as u32);
    });
}

/// Nobody is told of what never happened.
#[test]
fn a_rehearsal_is_not_told() {
    use tproxy_userspace::control::bpf::Rehearsal;
    bench("rehearsed", |bench| {
        let mut maps = listen(bench, TraceFilter::everything());
        let mut rehearsal = Rehearsal::load(&bench._pins.0).unwrap();
        let frame = frame(Kind::Udp, "203.0.113.1");
        let destination = "203.0.113.1".parse().unwrap();
        let rehearsed = rehearsal.run(&bench.maps, program::LAN_INGRESS, LO, &frame, destination);
        assert_eq!(rehearsed.unwrap().reason, Some(Reason::DownPassed));
        assert_eq!(told(&mut maps), []);
    });
}
