//! Thousands of flows at a time, half of them busy.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use lab::{
    Family, Lab, Tproxy,
    probe::at,
    servers::{OneByte, UdpEcho},
    traffic::{hold, open_udp},
    wait::patient,
};

use super::seconds;

/// What 20,000 open files are enough for, on either side.
const MANY: usize = 9_000;
const PORT: u16 = 8000;
/// How many threads keep flows busy.
const WORKERS: usize = 4;
/// How many datagrams of a worker are on their way at a time.
const WINDOW: usize = 64;
/// How often a datagram is sent until it counts as lost.
const TRIES: usize = 5;

/// The lab's ports are enough for so many flows to one address.
fn lab() -> Result<Lab> {
    let lab = Lab::new()?;
    for ns in [&lab.device, &lab.gateway] {
        ns.sysctl(&[("net/ipv4/ip_local_port_range", "1024 65535")])?;
    }
    Ok(lab)
}

/// Keeps these busy for a while, each worker its part one round after the other; gives how many rounds there were in all.
fn busy<T: Send>(
    flows: &mut [T],
    time: Duration,
    round: impl Fn(&mut [T]) -> Result<()> + Sync,
) -> Result<usize> {
    let start = Instant::now();
    let part = flows.len().div_ceil(WORKERS);
    thread::scope(|scope| {
        let round = &round;
        let workers: Vec<_> = flows
            .chunks_mut(part)
            .map(|part| {
                scope.spawn(move || -> Result<usize> {
                    let mut exchanges = 0;
                    while start.elapsed() < time || exchanges == 0 {
                        round(part)?;
                        exchanges += part.len();
                    }
                    Ok(exchanges)
                })
            })
            .collect();
        let count = |worker: thread::ScopedJoinHandle<'_, Result<usize>>| {
            worker.join().map_err(|_| anyhow!("a worker panicked"))?
        };
        workers.into_iter().map(count).sum()
    })
}

/// A byte there and one back, on all of them at a time.
fn exchange(streams: &mut [TcpStream]) -> Result<()> {
    for stream in &mut *streams {
        stream.write_all(b"x")?;
    }
    for stream in streams {
        stream.read_exact(&mut [0]).context("waiting for a byte")?;
    }
    Ok(())
}

/// A datagram there and back, on each of them.
fn ask(sockets: &mut [UdpSocket]) -> Result<()> {
    for group in sockets.chunks(WINDOW) {
        for socket in group {
            socket.send(b"question")?;
        }
        for socket in group {
            let mut tries = 1;
            while let Err(error) = socket.recv(&mut [0; 16]) {
                ensure!(
                    error.kind() == ErrorKind::WouldBlock && tries < TRIES,
                    "after {tries} questions: {error}"
                );
                tries += 1;
                socket.send(b"question")?;
            }
        }
    }
    Ok(())
}

/// Half of the flows are busy for a while, then all of them; and what that took is told and wanted to be little.
fn hold_and_use<T: Send>(
    lab: &Lab,
    tproxy: &Tproxy,
    (mut flows, name, rest): (Vec<T>, &str, u64),
    round: impl Fn(&mut [T]) -> Result<()> + Sync,
) -> Result<()> {
    assert_eq!(lab.proxy_count(&format!("/{name}"))?, MANY as u64);
    let held = tproxy.resident_kib()?;
    let start = Instant::now();
    let exchanges = busy(&mut flows[..MANY / 2], seconds(3), &round)?;
    let rate = exchanges as f64 / start.elapsed().as_secs_f64();
    let loaded = tproxy.resident_kib()?;
    // Those that were idle live as well.
    busy(&mut flows, Duration::ZERO, &round)?;
    assert_eq!(lab.proxy_count(&format!("/{name}_total"))?, MANY as u64);
    eprintln!(
        "{MANY} {name}: {rest} KiB resident at rest, {held} with all, {loaded} with half of them busy at {rate:.0} \
         exchanges a second"
    );
    let most = rest + MANY as u64 * 6;
    ensure!(loaded < most, "{loaded} KiB are resident, not {most}");
    drop(flows);
    Ok(())
}

#[test]
fn nine_thousand_connections() -> Result<()> {
    let lab = lab()?;
    let _server = OneByte::start(&lab.internet, PORT)?;
    let tproxy = lab.tproxy_configured("[udp]\nmax_associations = 64")?;
    let (before, rest) = (tproxy.open_now()?, tproxy.resident_kib()?);
    let targets: Vec<_> = (1..=10)
        .flat_map(|n| Family::BOTH.map(|family| at(family.far(n), PORT)))
        .collect();
    let open = lab.device.enter(|| hold(&targets, MANY, b"x"))??;
    hold_and_use(&lab, &tproxy, (open, "connections", rest), exchange)?;
    lab.await_proxy_count("/connections", 0)?;
    tproxy.back_to(before)
}

#[test]
fn nine_thousand_associations() -> Result<()> {
    let lab = lab()?;
    let _server = UdpEcho::start(&lab.internet, PORT..=PORT)?;
    // More than those: the two addresses of the device may have sixteen times as many as are free.
    let tproxy = lab.tproxy_configured(
        "[tcp]\nmax_connections = 200\n[udp]\nmax_associations = 9400\nidle = \"60s\"",
    )?;
    let (before, rest) = (tproxy.open_sockets()?, tproxy.resident_kib()?);
    let socket = |number: usize| -> Result<UdpSocket> {
        let family = Family::BOTH[number % 2];
        let socket = open_udp(&lab.device, family)?;
        let target: SocketAddr = at(family.far(1 + (number % 20) as u8), PORT);
        lab.device.enter(|| socket.connect(target))??;
        socket.set_read_timeout(Some(patient(Duration::from_secs(1))))?;
        Ok(socket)
    };
    let mut sockets = (0..MANY).map(socket).collect::<Result<Vec<_>>>()?;
    busy(&mut sockets, Duration::ZERO, ask)?;
    hold_and_use(&lab, &tproxy, (sockets, "associations", rest), ask)?;
    assert_eq!(lab.proxy_count("/evicted")?, 0);
    // Each of them has a socket, until it idles or the proxy ends.
    let sockets = tproxy.open_sockets()?;
    ensure!(
        sockets >= before + MANY,
        "{sockets} sockets, {before} before"
    );
    tproxy.stop()
}
