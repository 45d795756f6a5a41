use super::*;
use crate::net::{Binding, SocketFactory};
use nix::sys::socket::{setsockopt, sockopt};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6, UdpSocket};
use std::time::Duration;

fn loopback() -> [SocketAddr; 2] {
    [
        (Ipv4Addr::LOCALHOST, 0).into(),
        (Ipv6Addr::LOCALHOST, 0).into(),
    ]
}

/// Receives until `wanted` datagrams came, waiting for each with a blocking peek.
fn receive(batch: &mut RecvBatch, socket: &UdpSocket, wanted: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    socket.set_nonblocking(false).expect("a plain flag");
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .expect("a plain option");
    let mut all = Vec::new();
    while all.len() < wanted {
        socket.peek_from(&mut [0]).expect("a datagram comes");
        batch.recv(socket).expect("one waits");
        for one in batch.datagrams() {
            let one = one.expect("whole");
            all.push((one.original.unwrap_or(one.peer), one.payload.to_vec()));
        }
    }
    all
}

/// A receiver, where it is bound, and who sends to it.
fn pair(address: SocketAddr) -> (UdpSocket, SocketAddr, UdpSocket) {
    let factory = SocketFactory::default();
    let receiver = factory.udp_receiver(address).expect("root");
    let address = receiver.local_addr().expect("bound");
    let sender = factory
        .udp_outgoing(address, &Binding::default())
        .expect("root");
    (receiver, address, sender)
}

#[test]
fn original_destination_and_payload_of_every_size() {
    for address in loopback() {
        let (receiver, address, sender) = pair(address);
        let sizes = [0, 1, 1472, 1473, 9000, 65_507];
        let payloads: Vec<Vec<u8>> = sizes.iter().map(|size| vec![7; *size]).collect();
        let report = SendBatch::default().send(
            &sender,
            payloads.iter().map(|payload| Outgoing {
                to: Some(address),
                from: None,
                prefix: Prefix::default(),
                payload,
                overhead: 0,
            }),
        );
        assert_eq!((report.sent, report.refused, report.blocked), (6, 0, 0));
        assert_eq!(report.bytes, sizes.iter().sum::<usize>());
        let got = receive(&mut RecvBatch::default(), &receiver, sizes.len());
        for ((original, payload), sent) in got.iter().zip(&payloads) {
            assert_eq!(*original, address);
            assert_eq!(payload, sent);
        }
    }
}

#[test]
fn more_than_one_batch_and_a_refused_one_in_between() {
    let [address, _] = loopback();
    let (receiver, address, sender) = pair(address);
    let too_large = vec![0; 65_508];
    let report = SendBatch::default().send(
        &sender,
        (0..100).map(|number| Outgoing {
            to: Some(address),
            from: None,
            prefix: {
                let mut prefix = Prefix::default();
                prefix.push(&[number]);
                prefix
            },
            payload: if number == 50 { &too_large } else { b"tail" },
            overhead: 1,
        }),
    );
    assert_eq!((report.sent, report.refused, report.blocked), (99, 1, 0));
    assert_eq!(report.bytes, 99 * 3, "a byte of each does not count");
    let got = receive(&mut RecvBatch::default(), &receiver, 99);
    let numbers: Vec<u8> = got.iter().map(|(_, payload)| payload[0]).collect();
    assert_eq!(
        numbers,
        (0..100).filter(|number| *number != 50).collect::<Vec<_>>()
    );
    assert!(got.iter().all(|(_, payload)| &payload[1..] == b"tail"));
}

/// What arrives of datagrams with these payloads and ports of a peer, and how they were grouped on their way.
fn messages_of(sizes: &[(u16, usize)]) -> Vec<usize> {
    let mut counts: Vec<usize> = Vec::new();
    let mut last: Option<(u16, Message)> = None;
    for (port, size) in sizes {
        if let Some((known, message)) = &mut last
            && known == port
            && message.take(*size)
        {
            *counts.last_mut().expect("one was begun") += 1;
            continue;
        }
        counts.push(1);
        let message = Message {
            count: 1,
            part: *size,
            bytes: *size,
            ..Message::default()
        };
        last = Some((*port, message));
    }
    counts
}

#[test]
fn a_train_is_of_one_length_and_a_shorter_one_ends_it() {
    assert_eq!(messages_of(&[(1, 100), (1, 100), (1, 99), (1, 99)]), [3, 1]);
    assert_eq!(messages_of(&[(1, 100), (1, 101), (1, 101)]), [1, 2]);
    assert_eq!(messages_of(&[(1, 100), (2, 100), (1, 100)]), [1, 1, 1]);
    // The kernel makes no datagrams without payload.
    assert_eq!(messages_of(&[(1, 0), (1, 0), (1, 5), (1, 0)]), [1, 1, 1, 1]);
    // What is longer is cut by IP, which no train may be.
    assert_eq!(messages_of(&[(1, 1_452), (1, 1_452)]), [2]);
    assert_eq!(messages_of(&[(1, 1_453), (1, 1_453)]), [1, 1]);
}

/// Payloads that tell their place, of these sizes.
fn payloads(sizes: impl Iterator<Item = usize>) -> Vec<Vec<u8>> {
    let payload = |(number, size)| vec![number as u8; size];
    sizes.enumerate().map(payload).collect()
}

#[test]
fn trains_arrive_as_they_were_sent() {
    for address in loopback() {
        for takes in [true, false] {
            let (receiver, address, sender) = pair(address);
            setsockopt(&receiver, sockopt::UdpGroSegment, &takes).expect("a plain option");
            let sent = payloads((0..200).map(|number| match number % 50 {
                49 => 3,
                20..30 => number % 50,
                _ => 1_200,
            }));
            let report = SendBatch::default().send(
                &sender,
                sent.iter().map(|payload| Outgoing {
                    to: Some(address),
                    from: None,
                    prefix: Prefix::default(),
                    payload,
                    overhead: 1,
                }),
            );
            assert_eq!((report.sent, report.refused, report.blocked), (200, 0, 0));
            let bytes: usize = sent.iter().map(|payload| payload.len() - 1).sum();
            assert_eq!(report.bytes, bytes);
            let mut batch = RecvBatch::default();
            let got = receive(&mut batch, &receiver, 200);
            assert!(got.iter().map(|(_, payload)| payload).eq(&sent));
            assert!(got.iter().all(|(original, _)| *original == address));
            // As trains they need fewer places than they are.
            assert_eq!(batch.filled < batch.datagrams().count(), takes);
        }
    }
}

/// The kernel has no trains for such a socket (`udp_send_skb` in its net/ipv4/udp.c).
fn no_checksums(socket: &UdpSocket) {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads an integer, whose size it is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            (&raw const on).cast(),
            size_of_val(&on) as u32,
        )
    };
    assert_eq!(result, 0, "a plain option");
}

#[test]
fn a_train_that_is_refused_goes_one_by_one() {
    let mut batch = SendBatch::default();
    for address in loopback() {
        let (receiver, address, sender) = pair(address);
        no_checksums(&sender);
        let sent = payloads((0..100).map(|_| 700));
        let mut send = || {
            let outgoing = sent.iter().map(|payload| Outgoing {
                to: Some(address),
                from: None,
                prefix: Prefix::default(),
                payload,
                overhead: 0,
            });
            batch.send(&sender, outgoing)
        };
        for _ in 0..3 {
            let report = send();
            assert_eq!((report.sent, report.refused, report.blocked), (100, 0, 0));
            assert_eq!(report.bytes, 70_000);
            let got = receive(&mut RecvBatch::default(), &receiver, 100);
            assert!(got.iter().map(|(_, payload)| payload).eq(&sent));
        }
    }
    assert!(batch.rest > 0, "trains rest for a while");
}

#[test]
fn a_reply_has_a_foreign_source_and_its_port_in_the_mark() {
    let foreign: [SocketAddr; 2] = [
        "203.0.113.9:4500".parse().expect("literal"),
        "[2001:db8::9]:65535".parse().expect("literal"),
    ];
    for (address, from) in loopback().into_iter().zip(foreign) {
        let factory = SocketFactory::default();
        let receiver = factory.udp_receiver(address).expect("root");
        let device = UdpSocket::bind(address).expect("loopback");
        device
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a plain option");
        let report = SendBatch::default().send(
            &receiver,
            [Outgoing {
                to: Some(device.local_addr().expect("bound")),
                from: Some(from),
                prefix: Prefix::default(),
                payload: b"reply",
                overhead: 0,
            }],
        );
        assert_eq!(report.sent, 1, "the reply to {address} was refused");
        let mut buffer = [0; 16];
        let (length, source) = device.recv_from(&mut buffer).expect("it came");
        assert_eq!(&buffer[..length], b"reply");
        assert_eq!(source.ip(), from.ip());
        // The kernel half, which is absent here, writes the port.
        assert_eq!(source.port(), receiver.local_addr().expect("bound").port());
    }
}

#[test]
fn marks_carry_the_port_as_a_number() {
    assert_eq!(reply_mark(53), 53 << 16 | MARK_REPLY);
    assert_eq!(reply_mark(u16::MAX), 0xffff_0000 | MARK_REPLY);
    for from in ["192.0.2.1:53", "[2001:db8::1]:53"] {
        let mut control = Control::EMPTY;
        let length = control.set_reply(from.parse().expect("literal"));
        assert!(length <= CONTROL);
        let mark = &control.0[length - 8..][..4];
        assert_eq!(mark, reply_mark(53).to_ne_bytes());
    }
}

proptest! {
    #[test]
    fn names_survive_the_way_to_the_kernel_and_back(v4: [u8; 4], v6: [u8; 16], port: u16, scope: u32) {
        let addresses: [SocketAddr; 2] = [
            (Ipv4Addr::from(v4), port).into(),
            SocketAddrV6::new(Ipv6Addr::from(v6), port, 0, scope).into(),
        ];
        for address in addresses {
            let mut name = Name::EMPTY;
            let length = name.set(address);
            prop_assert_eq!(parse_name(&name.0[..length]), Some(address));
        }
    }

    #[test]
    fn no_control_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..CONTROL)) {
        let _ = parse_original(&bytes);
        let _ = parse_part(&bytes);
        let _ = parse_name(&bytes);
    }
}

#[test]
fn what_a_full_socket_loses_is_told() {
    for address in loopback() {
        let (receiver, address, sender) = pair(address);
        let mut batch = RecvBatch::default();
        let mut drain = || {
            let (mut count, mut lost) = (0, None);
            while let Ok(more) = batch.recv(&receiver) {
                count += more as u32;
                lost = batch.lost();
            }
            (count, lost)
        };
        let payload = vec![7; 60_000];
        let send = || assert_eq!(sender.send_to(&payload, address).expect("sent"), 60_000);
        send();
        assert_eq!(drain(), (1, None));
        // More than its buffer holds.
        (0..1_000).for_each(|_| send());
        let (count, _) = drain();
        send();
        assert_eq!(drain(), (1, Some(1_000 - count)));
        assert!((1..1_000).contains(&count), "{count}");
    }
}
