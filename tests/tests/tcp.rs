//! Connections through the proxy: how they begin, how they end, and that they leave nothing behind.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Lab,
    probe::{Acceptor, End, at, fate, read_to_end, reset},
    servers::TcpEcho,
    traffic::connect,
    wait::{SOON, until},
};

const MIB: usize = 1 << 20;
const DIRECT: &str = "direct://";

#[test]
fn each_side_may_end_its_direction_first() -> Result<()> {
    let lab = Lab::new()?;
    let _tproxy = lab.tproxy_with(DIRECT)?;
    for family in Family::BOTH {
        let server = Acceptor::listen(&lab.internet, at(family.far(4), 4000))?;
        // More than the buffers on the way hold, so that the ended direction is long gone by then.
        let much: Vec<u8> = (0..24 * MIB).map(|byte| (byte / 251) as u8).collect();
        for device_first in [true, false] {
            let device = connect(&lab.device, server.address())?;
            let (far, client) = server.accept()?;
            assert_eq!(client.ip(), family.gateway_wan());
            let (mut first, mut second) = if device_first {
                (&device, &far)
            } else {
                (&far, &device)
            };
            first.write_all(b"all I have to say")?;
            first.shutdown(Shutdown::Write)?;
            assert_eq!(
                read_to_end(second)?,
                (b"all I have to say".to_vec(), End::Fin)
            );
            thread::scope(|scope| -> Result<()> {
                let writing = scope.spawn(|| -> Result<()> {
                    second.write_all(&much)?;
                    second.shutdown(Shutdown::Write)?;
                    Ok(())
                });
                let (bytes, end) = read_to_end(first)?;
                assert!(bytes == much, "{} of {} bytes", bytes.len(), much.len());
                assert_eq!(end, End::Fin);
                writing.join().expect("no assertion in it")
            })?;
        }
    }
    lab.await_proxy_count("/connections", 0)?;
    assert_eq!(lab.proxy_traffic()?["failures"], serde_json::json!({}));
    lab.all_proxied()?;
    Ok(())
}

#[test]
fn a_reset_reaches_the_other_side() -> Result<()> {
    let lab = Lab::new()?;
    let _tproxy = lab.tproxy_with(DIRECT)?;
    for family in Family::BOTH {
        let server = Acceptor::listen(&lab.internet, at(family.far(5), 4000))?;
        for from_device in [true, false] {
            for after in ["nothing", "bytes", "fin of the other side"] {
                let mut device = connect(&lab.device, server.address())?;
                let (mut far, _) = server.accept()?;
                if after == "bytes" {
                    device.write_all(b"up")?;
                    far.read_exact(&mut [0; 2])?;
                    far.write_all(b"down")?;
                    device.read_exact(&mut [0; 4])?;
                }
                let (resetting, other) = if from_device {
                    (device, far)
                } else {
                    (far, device)
                };
                if after == "fin of the other side" {
                    other.shutdown(Shutdown::Write)?;
                    assert_eq!(read_to_end(&resetting)?, (Vec::new(), End::Fin));
                }
                reset(resetting)?;
                let (_, end) = read_to_end(&other)?;
                assert_eq!(end, End::Reset, "{family:?} {from_device} {after}");
            }
        }
    }
    lab.await_proxy_count("/connections", 0)?;
    assert_eq!(lab.proxy_traffic()?["failures"], serde_json::json!({}));
    Ok(())
}

/// A server that resets what it has just accepted: the proxy may learn of the connection and of its end
/// at once, and calls it by the same name whichever it sees first.
#[test]
fn a_reset_on_acceptance_is_the_servers() -> Result<()> {
    const COUNT: u64 = 100;
    let lab = Lab::new()?;
    let _tproxy = lab.tproxy_with(DIRECT)?;
    let server = Acceptor::listen(&lab.internet, at(Family::V4.far(5), 4000))?;
    thread::scope(|scope| -> Result<()> {
        let resetting = scope.spawn(|| -> Result<()> {
            for _ in 0..COUNT {
                reset(server.accept()?.0)?;
            }
            Ok(())
        });
        for _ in 0..COUNT {
            assert_eq!(
                fate(&lab.device, server.address())?,
                (Vec::new(), End::Reset)
            );
        }
        resetting.join().expect("no assertion in it")
    })?;
    lab.await_proxy_count("/connections", 0)?;
    assert_eq!(lab.proxy_traffic()?["failures"], serde_json::json!({}));
    Ok(())
}

/// A reset that comes when the other direction is full: nobody reads, so only the error tells.
#[test]
fn a_reset_reaches_a_side_that_does_not_read() -> Result<()> {
    let lab = Lab::new()?;
    let _tproxy = lab.tproxy_with(DIRECT)?;
    for family in Family::BOTH {
        let server = Acceptor::listen(&lab.internet, at(family.far(5), 4000))?;
        for from_device in [true, false] {
            let device = connect(&lab.device, server.address())?;
            let (far, _) = server.accept()?;
            let (resetting, mut other) = if from_device {
                (device, far)
            } else {
                (far, device)
            };
            // Fills every buffer on the way to the one who is about to reset.
            other.set_write_timeout(Some(Duration::from_millis(100)))?;
            while other.write(&[7; 65_536]).is_ok() {}
            reset(resetting)?;
            let (_, end) = read_to_end(&other)?;
            assert_eq!(end, End::Reset, "{family:?} {from_device}");
        }
    }
    lab.await_proxy_count("/connections", 0)
}

#[test]
fn nobody_upstream_is_a_reset_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let _tproxy = lab.tproxy_with(DIRECT)?;
    for (family, count) in Family::BOTH.into_iter().zip(1..) {
        let start = Instant::now();
        let (bytes, end) = fate(&lab.device, at(family.far(6), 4999))?;
        assert_eq!((bytes.len(), end), (0, End::Reset));
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{:?}",
            start.elapsed()
        );
        lab.await_proxy_count("/failures/connect_refused", count)?;
    }
    Ok(())
}

#[test]
fn silence_upstream_is_a_reset_after_the_time_that_is_configured() -> Result<()> {
    let lab = Lab::new()?;
    let echo = TcpEcho::start(&lab.internet, 7)?;
    lab.internet.run(&[
        "nft",
        "add table inet hole; \
         add chain inet hole input { type filter hook input priority filter; }; \
         add rule inet hole input tcp dport 7 drop",
    ])?;
    let _tproxy = lab.tproxy_configured("[tcp]\nconnect_timeout = \"700ms\"")?;
    for (family, count) in Family::BOTH.into_iter().zip(1..) {
        let start = Instant::now();
        let (bytes, end) = fate(&lab.device, at(family.far(7), 7))?;
        assert_eq!((bytes.len(), end), (0, End::Reset));
        let elapsed = start.elapsed();
        assert!(
            elapsed >= Duration::from_millis(650) && elapsed < Duration::from_secs(3),
            "{elapsed:?}"
        );
        lab.await_proxy_count("/failures/connect_timeout", count)?;
    }
    assert!(echo.clients().is_empty());
    Ok(())
}

#[test]
fn a_server_may_speak_first_and_bytes_may_come_one_by_one() -> Result<()> {
    let lab = Lab::new()?;
    let _tproxy = lab.tproxy_with(DIRECT)?;
    for family in Family::BOTH {
        let server = Acceptor::listen(&lab.internet, at(family.far(8), 4000))?;
        let mut device = connect(&lab.device, server.address())?;
        device.set_nodelay(true)?;
        let (mut far, _) = server.accept()?;
        far.write_all(b"220 welcome\r\n")?;
        let mut greeting = [0; 13];
        device.read_exact(&mut greeting)?;
        assert_eq!(&greeting, b"220 welcome\r\n");

        let start = Instant::now();
        for round in 0..=255_u8 {
            let mut byte = [0];
            device.write_all(&[round])?;
            far.read_exact(&mut byte)?;
            assert_eq!(byte, [round]);
            far.write_all(&[!round])?;
            device.read_exact(&mut byte)?;
            assert_eq!(byte, [!round]);
        }
        // Held back for an acknowledgement (40 ms each), they would take over ten seconds.
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        eprintln!(
            "{family:?}: 256 round trips of one byte in {:?}",
            start.elapsed()
        );
    }
    Ok(())
}

#[test]
fn an_idle_connection_lives_until_its_limit() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = TcpEcho::start(&lab.internet, 7)?;
    let say = |stream: &mut TcpStream| -> Result<()> {
        stream.write_all(b"there?")?;
        let mut answer = [0; 6];
        stream.read_exact(&mut answer)?;
        ensure!(&answer == b"there?");
        Ok(())
    };
    let mut idle = Vec::new();
    let tproxy = lab.tproxy_configured("[tcp]\nkeepalive = \"1s\"")?;
    for family in Family::BOTH {
        let mut stream = connect(&lab.device, at(family.far(9), 7))?;
        say(&mut stream)?;
        idle.push(stream);
    }
    // Nothing is said; all that comes from the device are its answers to the proxy's keepalive probes.
    lab.await_proxy_count("/connections", 2)?;
    let before = lab.packets("tcp_steered")?;
    until("three probes of each connection", SOON, || {
        Ok((lab.packets("tcp_steered")? >= before + 6).then_some(()))
    })?;
    for stream in &mut idle {
        say(stream)?;
    }
    drop(idle);
    tproxy.stop()?;

    let _tproxy = lab.tproxy_configured("[tcp]\nidle = \"1s\"")?;
    for (family, count) in Family::BOTH.into_iter().zip(1..) {
        let mut busy = connect(&lab.device, at(family.far(9), 7))?;
        let mut silent = connect(&lab.device, at(family.far(9), 7))?;
        say(&mut silent)?;
        let start = Instant::now();
        silent.set_read_timeout(Some(Duration::from_millis(20)))?;
        let mut byte = [0];
        let end = loop {
            say(&mut busy)?;
            match silent.read(&mut byte) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => break other.map_err(|error| error.kind()),
            }
            ensure!(start.elapsed() < SOON, "it never ends");
        };
        assert_eq!(end, Err(ErrorKind::ConnectionReset));
        assert!(
            start.elapsed() > Duration::from_millis(900),
            "{:?}",
            start.elapsed()
        );
        say(&mut busy)?;
        drop(busy);
        lab.await_proxy_count("/connections_total", 2 * count)?;
    }
    Ok(())
}

#[test]
fn at_the_limit_the_next_connection_is_reset_and_counted() -> Result<()> {
    let lab = Lab::new()?;
    let echo = TcpEcho::start(&lab.internet, 7)?;
    let tproxy = lab.tproxy_configured("[tcp]\nmax_connections = 4")?;
    assert_eq!(lab.proxy_count("/limits/connections")?, 4);
    let target = |n: usize| at(Family::BOTH[n % 2].far(10), 7);
    let say = |stream: &mut TcpStream| -> Result<()> {
        stream.write_all(b"x")?;
        Ok(stream.read_exact(&mut [0])?)
    };
    let mut streams = Vec::new();
    for n in 0..4 {
        let mut stream = connect(&lab.device, target(n))?;
        say(&mut stream)?;
        streams.push(stream);
    }
    for (n, count) in [(0, 1), (1, 2)] {
        let start = Instant::now();
        assert_eq!(fate(&lab.device, target(n))?, (Vec::new(), End::Reset));
        assert!(start.elapsed() < Duration::from_secs(1));
        lab.await_proxy_count("/limit_reached", count)?;
    }
    let told = "limit reached: connections refused";
    tproxy.process().wait_for_line(told, SOON)?;
    let status = lab.tproxy_run(&["status"])?.ok()?.stdout;
    ensure!(
        status.contains("as many as are allowed lived (2 times)"),
        "{status}"
    );
    ensure!(status.contains("raise tcp.max_connections"), "{status}");
    for stream in &mut streams {
        say(stream)?;
    }
    streams.pop();
    lab.await_proxy_count("/connections", 3)?;
    say(&mut connect(&lab.device, target(1))?)?;
    assert_eq!(echo.clients().len(), 5);
    Ok(())
}

#[test]
fn one_device_cannot_take_the_places_of_others() -> Result<()> {
    const MOST: usize = 51;
    let lab = Lab::builder().second_lan().build()?;
    let _echo = TcpEcho::start(&lab.internet, 7)?;
    let text = format!("[lan]\ninterfaces = [\"lan*\"]\n[tcp]\nmax_connections = {MOST}\n");
    let _tproxy = lab.tproxy(&["run", "-c", &lab.write(&text)?])?;
    let far = at(Family::V4.far(10), 7);
    // It has sixteen times as many as are free.
    let mut held = Vec::new();
    for _ in 0..48 {
        held.push(connect(&lab.device, far)?);
    }
    lab.await_proxy_count("/connections", 48)?;
    for count in 1..=2 {
        assert_eq!(fate(&lab.device, far)?, (Vec::new(), End::Reset));
        lab.await_proxy_count("/failures/device_limit", count)?;
    }
    let other = lab.device2.as_ref().context("a second device")?;
    for _ in 0..2 {
        let mut stream = connect(other, far)?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        held.push(stream);
    }
    lab.await_proxy_count("/connections", 50)?;
    let status = lab.tproxy_run(&["status"])?.ok()?.stdout;
    ensure!(status.contains("one device had its share"), "{status}");
    Ok(())
}

#[test]
fn two_thousand_short_connections_leave_nothing_behind() -> Result<()> {
    const COUNT: usize = 2_000;
    let lab = Lab::new()?;
    let echo = TcpEcho::start(&lab.internet, 7)?;
    let tproxy = lab.tproxy_with(DIRECT)?;
    let one = |target: SocketAddr| -> Result<()> {
        let mut stream = connect(&lab.device, target)?;
        stream.write_all(b"short")?;
        stream.shutdown(Shutdown::Write)?;
        let (bytes, end) = read_to_end(&stream)?;
        ensure!(
            (&bytes[..], end) == (b"short", End::Fin),
            "{bytes:?}, {end:?}"
        );
        Ok(())
    };
    let batch = |count: usize, family: Family| -> Result<Duration> {
        let next = AtomicUsize::new(0);
        let start = Instant::now();
        thread::scope(|scope| {
            let workers: Vec<_> = (0..50)
                .map(|_| {
                    scope.spawn(|| {
                        while next.fetch_add(1, Ordering::Relaxed) < count {
                            one(at(family.far(11), 7))?;
                        }
                        anyhow::Ok(())
                    })
                })
                .collect();
            for worker in workers {
                worker.join().expect("no assertion in it")?;
            }
            anyhow::Ok(())
        })?;
        Ok(start.elapsed())
    };
    let before = tproxy.open_now()?;
    for (family, round) in Family::BOTH.into_iter().zip(1..) {
        let elapsed = batch(COUNT, family)?;
        lab.await_proxy_count("/connections", 0)?;
        eprintln!("{family:?}: {COUNT} connections in {elapsed:?}");
        tproxy.back_to(before)?;
        assert_eq!(echo.clients().len(), round * COUNT);
        assert_eq!(
            lab.proxy_count("/connections_total")?,
            (round * COUNT) as u64
        );
    }
    let counted = lab.all_proxied()?;
    assert_eq!(counted["tcp_opened"], 2 * COUNT as u64);
    assert_eq!(lab.proxy_traffic()?["failures"], serde_json::json!({}));
    Ok(())
}
