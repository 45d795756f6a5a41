//! Datagrams: round trips, and one way with loss.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lab::{Family, Namespace, traffic};
use nix::sys::socket::{setsockopt, sockopt};

use super::{Exchanges, percent};
use crate::{
    rows::{GBIT, LOST, RATE, Readings, SENT},
    stage::Stage,
};

const PORT: u16 = 9000;
const TRIP_BYTES: usize = 64;
const ONE_WAY_BYTES: usize = 1_200;
/// How often a blocked reader looks at clock and stop flag.
const TICK: Duration = Duration::from_millis(50);
/// A datagram that is not back by then is lost.
const PATIENCE: Duration = Duration::from_millis(200);
/// Marks the datagrams that only open the way.
const OPENING: u64 = u64::MAX;

/// The server's socket at the first far address and the device's, connected to it.
fn sockets(stage: &Stage, client: &Namespace, family: Family) -> Result<(UdpSocket, UdpSocket)> {
    let target = SocketAddr::new(family.far(1), PORT);
    let server = bind(&stage.lab.internet, target)?;
    let client = traffic::open_udp(client, family)?;
    client.connect(target)?;
    client.set_read_timeout(Some(TICK))?;
    Ok((server, client))
}

fn bind(ns: &Namespace, address: SocketAddr) -> Result<UdpSocket> {
    let socket = ns
        .enter(|| UdpSocket::bind(address))?
        .with_context(|| format!("opening UDP {address} in {}", ns.name()))?;
    setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20))?;
    setsockopt(&socket, sockopt::SndBufForce, &(4 << 20))?;
    socket.set_read_timeout(Some(TICK))?;
    Ok(socket)
}

/// Nothing came in time; or an ICMP error of an earlier datagram was reported, which is a loss like others.
fn is_nothing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::ConnectionRefused
    )
}

fn echo(server: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, client)) = server.recv_from(&mut buffer) {
            // A lost answer shows at the client.
            server.send_to(&buffer[..length], client).ok();
        }
    }
}

/// One run of 64-byte datagrams to an echo, `in_flight` at any moment.
///
/// # Errors
/// When nothing comes back.
pub fn round_trips(
    stage: &Stage,
    client: &Namespace,
    family: Family,
    in_flight: usize,
    time: Duration,
) -> Result<Exchanges> {
    let (server, client) = sockets(stage, client, family)?;
    let stop = AtomicBool::new(false);
    let exchanges = thread::scope(|scope| {
        scope.spawn(|| echo(&server, &stop));
        let exchanges = ask(&client, in_flight, time);
        stop.store(true, Ordering::Relaxed);
        exchanges
    })?;
    if exchanges.times.is_empty() {
        bail!("none of {} datagrams came back", exchanges.lost);
    }
    Ok(exchanges)
}

/// A datagram in flight.
#[derive(Clone, Copy)]
struct Flight {
    number: u64,
    sent: Instant,
}

fn ask(client: &UdpSocket, in_flight: usize, time: Duration) -> Result<Exchanges> {
    open_way(client, || receive_number(client))?;
    let mut result = Exchanges::default();
    let mut next: u64 = 0;
    let mut send = |slot: usize| -> Result<Flight> {
        let mut datagram = [0; TRIP_BYTES];
        let number = next;
        next += 1;
        datagram[..8].copy_from_slice(&number.to_be_bytes());
        datagram[8..16].copy_from_slice(&(slot as u64).to_be_bytes());
        let sent = Instant::now();
        match client.send(&datagram) {
            Ok(_) => {}
            Err(error) if is_nothing(&error) => {}
            Err(error) => return Err(error).context("sending a datagram"),
        }
        Ok(Flight { number, sent })
    };
    let start = Instant::now();
    let mut flights = (0..in_flight).map(&mut send).collect::<Result<Vec<_>>>()?;
    let mut looked = start;
    let mut buffer = [0; 2048];
    loop {
        let received = client.recv(&mut buffer);
        let now = Instant::now();
        if now - start > time {
            break;
        }
        match received {
            Ok(_) => {
                let slot = usize::try_from(word(&buffer, 8))?;
                let Some(flight) = flights.get_mut(slot) else {
                    continue;
                };
                // An answer to what was given up already comes too late.
                if flight.number == word(&buffer, 0) {
                    result.times.push(now - flight.sent);
                    *flight = send(slot)?;
                }
            }
            Err(error) if is_nothing(&error) => {}
            Err(error) => return Err(error).context("waiting for an answer"),
        }
        if now - looked > TICK {
            looked = now;
            for (slot, flight) in flights.iter_mut().enumerate() {
                if now.saturating_duration_since(flight.sent) > PATIENCE {
                    result.lost += 1;
                    *flight = send(slot)?;
                }
            }
        }
    }
    result.elapsed = start.elapsed();
    Ok(result)
}

/// Sends until something arrives, so that setting an association up is not measured.
fn open_way(client: &UdpSocket, mut receive: impl FnMut() -> Option<u64>) -> Result<()> {
    let mut datagram = [0; TRIP_BYTES];
    datagram[..8].copy_from_slice(&OPENING.to_be_bytes());
    for _ in 0..40 {
        client.send(&datagram).context("sending a datagram")?;
        if receive().is_some() {
            return Ok(());
        }
    }
    bail!("no datagram comes through");
}

fn receive_number(socket: &UdpSocket) -> Option<u64> {
    let mut buffer = [0; 2048];
    socket.recv(&mut buffer).ok().map(|_| word(&buffer, 0))
}

fn word(buffer: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&buffer[at..at + 8]);
    u64::from_be_bytes(word)
}

/// One run of 1,200-byte datagrams from the device to a server that only counts.
///
/// # Errors
/// When nothing comes through.
pub fn one_way(
    stage: &Stage,
    client: &Namespace,
    family: Family,
    rate: Option<u32>,
    time: Duration,
) -> Result<Readings> {
    let (server, client) = sockets(stage, client, family)?;
    open_way(&client, || receive_number(&server))?;
    let done = AtomicBool::new(false);
    let run = || {
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let sent = flood(&client, rate, time);
                done.store(true, Ordering::Relaxed);
                sent
            });
            let received = count(&server, &done);
            match sender.join() {
                Ok(sent) => Ok((sent?, received)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    };
    let ((sent, received), used) = stage.with_effort(run)?;
    let (Some(first), Some(last)) = (received.first, received.last) else {
        bail!("none of {sent} datagrams came through");
    };
    let arrived = received.numbers as f64;
    let seconds = (last - first).as_secs_f64();
    let per_second = arrived / seconds;
    let mut readings = vec![
        (&RATE, per_second),
        (&GBIT, per_second * ONE_WAY_BYTES as f64 * 8.0 / 1e9),
        (&SENT, sent as f64 / time.as_secs_f64()),
        (&LOST, percent(sent as f64 - arrived, sent as f64)),
    ];
    readings.extend(used.into_iter().flat_map(|used| used.each(arrived)));
    Ok(readings)
}

/// Sends numbered datagrams and tells how many the kernel took.
fn flood(client: &UdpSocket, rate: Option<u32>, time: Duration) -> Result<u64> {
    let mut datagram = [0; ONE_WAY_BYTES];
    let mut sent: u64 = 0;
    let start = Instant::now();
    loop {
        let elapsed = start.elapsed();
        if elapsed > time {
            return Ok(sent);
        }
        // Bursts of what is due, as real senders do; the clock is read once for each.
        let due = match rate {
            Some(rate) => (elapsed.as_secs_f64() * f64::from(rate)) as u64,
            None => sent + 32,
        };
        if due <= sent {
            thread::sleep(Duration::from_micros(200));
        }
        while sent < due {
            datagram[..8].copy_from_slice(&sent.to_be_bytes());
            match client.send(&datagram) {
                Ok(_) => sent += 1,
                Err(error) if is_nothing(&error) => {}
                Err(error) => return Err(error).context("sending a datagram"),
            }
        }
    }
}

#[derive(Default)]
struct Received {
    numbers: u64,
    first: Option<Instant>,
    last: Option<Instant>,
}

/// Counts until the sender is done and nothing comes any more.
fn count(server: &UdpSocket, done: &AtomicBool) -> Received {
    let mut received = Received::default();
    let mut buffer = [0; 2048];
    loop {
        match server.recv(&mut buffer) {
            Ok(_) => {
                if word(&buffer, 0) == OPENING {
                    continue;
                }
                let now = Instant::now();
                received.numbers += 1;
                received.first.get_or_insert(now);
                received.last = Some(now);
            }
            Err(_) => {
                if done.load(Ordering::Relaxed) {
                    return received;
                }
            }
        }
    }
}
