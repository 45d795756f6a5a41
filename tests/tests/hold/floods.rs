//! One device sends as fast as it can. What do the others keep of their rate?

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use lab::{
    Family, Lab, Namespace,
    forger::{Flood, Forger, dns_question},
    probe::{at, carry},
    servers::{Dnsmasq, Log, OneByte, TcpEcho, UdpEcho},
    traffic::{self, open_udp},
    wait::{SOON, patient, until},
};
use nix::sys::signal::Signal;
use tproxy_common::packet::Addresses;

use super::seconds;

/// What the other device does each second: datagrams that are echoed, questions for a name, connections.
const DATAGRAMS: u32 = 1_000;
const QUESTIONS: u32 = 50;
const CONNECTIONS: u32 = 50;
/// A later answer is as good as none.
const LATE: Duration = Duration::from_millis(500);

const TCP: u16 = 7;
/// A server with room for all that the flood connects.
const HELD: u16 = 8000;
const UDP: u16 = 7000;
/// Nobody listens there.
const NOBODY: u16 = 9;
/// How many threads connect.
const WORKERS: usize = 4;
/// How many connections it keeps: more than the proxy lets in.
const MOST_HELD: usize = 1_000;
/// What a flood may add to the proxy's resident memory.
const MOST_KIB: u64 = 32 * 1024;

/// What came back of what the other device sent, from 0 to 1.
#[derive(Clone, Copy, Debug)]
struct Share {
    datagrams: f64,
    questions: f64,
    connections: f64,
}

impl Share {
    fn least(self) -> f64 {
        self.datagrams.min(self.questions).min(self.connections)
    }
}

/// What the flood is made of.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Large datagrams, from one port to one server.
    OneFlow,
    /// Small ones: more of them.
    Small,
    /// Each from another port, so that each is an association.
    ManyPorts,
    /// Each to another port.
    ManyPeers,
    /// Questions for ever new names.
    Questions,
    /// First segments, from ever new ports, of connections that never come about.
    Syns,
    /// Connections that come about, as many as are let in, and say nothing.
    Connections,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::OneFlow,
        Self::Small,
        Self::ManyPorts,
        Self::ManyPeers,
        Self::Questions,
        Self::Syns,
        Self::Connections,
    ];

    /// Starts it.
    fn start(self, lab: &Lab, family: Family) -> Result<Running> {
        let (from, to) = (family.device(), family.far(5));
        if let Self::Connections = self {
            return Running::connecting(&lab.device, at(to, HELD));
        }
        let forger = Forger::new(&lab.device, family)?;
        let port = |number: u64| 1024 + u16::try_from(number % 60_000).unwrap_or_default();
        let large = vec![0; 1_200];
        Ok(Running::Forging(match self {
            Self::OneFlow => forger.flood(move |_| (at(from, 5000), at(to, NOBODY), large.clone())),
            Self::Small => forger.flood(move |_| (at(from, 5000), at(to, NOBODY), vec![0; 18])),
            Self::ManyPorts => {
                forger.flood(move |n| (at(from, port(n)), at(to, NOBODY), large.clone()))
            }
            Self::ManyPeers => {
                forger.flood(move |n| (at(from, 5000), at(to, port(n)), large.clone()))
            }
            Self::Questions => forger.flood(move |n| {
                let message = dns_question(n as u16, &format!("n{n}.flood.test"));
                (at(from, port(n)), at(to, 53), message)
            }),
            Self::Syns | Self::Connections => {
                forger.flood_syns(move |n| (at(from, port(n)), at(to, HELD)))
            }
        }))
    }
}

/// A flood that goes on until it is dropped.
enum Running {
    Forging(Flood),
    Connecting(Arc<Connecting>, Vec<thread::JoinHandle<()>>),
}

#[derive(Debug, Default)]
struct Connecting {
    ending: AtomicBool,
    made: AtomicU64,
    held: Mutex<Vec<TcpStream>>,
}

impl Running {
    /// Connects again and again, and keeps every connection.
    fn connecting(ns: &Namespace, target: SocketAddr) -> Result<Self> {
        let shared = Arc::<Connecting>::default();
        let worker = || {
            let shared = Arc::clone(&shared);
            ns.enter(|| thread::spawn(move || shared.run(target)))
        };
        let workers = (0..WORKERS).map(|_| worker()).collect::<Result<_>>()?;
        Ok(Self::Connecting(shared, workers))
    }

    /// What it has sent so far: packets or connections.
    fn sent(&self) -> u64 {
        match self {
            Self::Forging(flood) => flood.sent(),
            Self::Connecting(shared, _) => shared.made.load(Relaxed),
        }
    }
}

impl Connecting {
    fn run(&self, target: SocketAddr) {
        while !self.ending.load(Relaxed) {
            if let Ok(stream) = TcpStream::connect_timeout(&target, LATE) {
                self.made.fetch_add(1, Relaxed);
                let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
                // What was refused is only noticed when it is used.
                if held.len() < MOST_HELD {
                    held.push(stream);
                }
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Self::Connecting(shared, workers) = self {
            shared.ending.store(true, Relaxed);
            for worker in workers.drain(..) {
                worker.join().ok();
            }
        }
    }
}

/// Sends this datagram again and again for a while; gives the share that was answered.
fn datagrams(
    ns: &Namespace,
    target: SocketAddr,
    what: (&[u8], u32),
    time: Duration,
) -> Result<f64> {
    let (payload, rate) = what;
    let socket = open_udp(ns, Family::of(target.ip()))?;
    ns.enter(|| socket.connect(target))??;
    let all = (time.as_secs_f64() * f64::from(rate)) as u32;
    let start = Instant::now();
    let end = start + time + patient(LATE);
    let count = || -> io::Result<u32> {
        let mut count = 0;
        while count < all {
            let left = end.saturating_duration_since(Instant::now());
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match socket.recv(&mut [0; 512]) {
                Ok(_) => count += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    };
    let answered = thread::scope(|scope| -> Result<_> {
        let counting = scope.spawn(count);
        for number in 0..all {
            thread::sleep(pause(start, number, rate));
            socket.send(payload)?;
        }
        Ok(counting
            .join()
            .map_err(|_| anyhow!("a thread panicked"))??)
    })?;
    Ok(f64::from(answered) / f64::from(all))
}

/// Opens connections at their rate for a while; gives the share that echoed something in time.
fn connections(ns: &Namespace, target: SocketAddr, time: Duration) -> Result<f64> {
    let all = (time.as_secs_f64() * f64::from(CONNECTIONS)) as u32;
    let start = Instant::now();
    let work = |worker: usize| -> u32 {
        let mut done = 0;
        for number in (0..all).skip(worker).step_by(WORKERS) {
            thread::sleep(pause(start, number, CONNECTIONS));
            let begun = Instant::now();
            // Those that there was no time for did not come about.
            if begun > start + time + LATE {
                break;
            }
            if traffic::echo(target).is_ok() && begun.elapsed() < patient(LATE) {
                done += 1;
            }
        }
        done
    };
    let done = thread::scope(|scope| -> Result<u32> {
        let work = &work;
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| scope.spawn(move || ns.enter(|| work(worker))))
            .collect();
        let count = |worker: thread::ScopedJoinHandle<'_, Result<u32>>| {
            worker.join().map_err(|_| anyhow!("a worker panicked"))?
        };
        workers.into_iter().map(count).sum()
    })?;
    Ok(f64::from(done) / f64::from(all))
}

/// How long it is until the next of so many a second.
fn pause(start: Instant, number: u32, rate: u32) -> Duration {
    let due = start + Duration::from_secs(1) * number / rate;
    due.saturating_duration_since(Instant::now())
}

/// What the other device keeps.
fn share(ns: &Namespace, family: Family, time: Duration) -> Result<Share> {
    let name = dns_question(7, "host.lab");
    thread::scope(|scope| {
        let echoed = scope.spawn(|| {
            let target = at(family.far(3), UDP);
            datagrams(ns, target, (b"question", DATAGRAMS), time)
        });
        let named = scope.spawn(|| {
            let target = at(family.far(4), 53);
            datagrams(ns, target, (&name, QUESTIONS), time)
        });
        let connections = connections(ns, at(family.far(4), TCP), time)?;
        let panicked = |_| anyhow!("a thread panicked");
        Ok(Share {
            datagrams: echoed.join().map_err(panicked)??,
            questions: named.join().map_err(panicked)??,
            connections,
        })
    })
}

/// Two devices in lanes of their own, whatever their number.
fn have_lanes(family: Family) -> bool {
    let lane = |address: IpAddr| -> u32 {
        let octets = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let word = |at: usize| {
            let bytes = octets
                .get(at..at + 4)
                .and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_ne_bytes)
        };
        match address {
            IpAddr::V4(_) => Addresses::v4(word(0), 0),
            IpAddr::V6(_) => Addresses::V6 {
                source: [word(0), word(4), word(8), word(12)],
                destination: [0; 4],
            },
        }
        .lane()
    };
    lane(family.device()) != lane(family.device2())
}

/// The other device keeps at least half of all that it does, whatever the first one floods the gateway with.
fn others_keep_their_rate(family: Family) -> Result<()> {
    ensure!(have_lanes(family), "the devices share a lane");
    let time = seconds(1);
    let lab = Lab::builder().second_lan().build()?;
    let other = lab.device2.as_ref().context("a second device")?;
    let _tcp = TcpEcho::start(&lab.internet, TCP)?;
    let _held = OneByte::start(&lab.internet, HELD)?;
    let _udp = UdpEcho::start(&lab.internet, UDP..=UDP)?;
    let _dns = Dnsmasq::start_with(&lab.internet, Log::Nothing, &[])?;
    let tproxy = lab.tproxy(&[
        "run",
        "-c",
        &lab.write(&format!(
            "[lan]\ninterfaces = [\"lan*\"]\n[tcp]\nmax_connections = 500\n[udp]\nmax_associations = 1000\n\
             [dns]\nproxy = [\"{}\"]\n",
            Family::V4.far(1)
        ))?,
    ])?;
    let quiet = share(other, family, time)?;
    eprintln!("{family:?}, nobody floods: {quiet:?}");
    ensure!(quiet.least() > 0.9, "{quiet:?} with nobody else");
    let rest = tproxy.resident_kib()?;
    let mut kept = Vec::new();
    for kind in Kind::ALL {
        let (flood, start) = (kind.start(&lab, family)?, Instant::now());
        let share = share(other, family, time)?;
        let rate = flood.sent() as f64 / start.elapsed().as_secs_f64();
        drop(flood);
        let kib = tproxy.resident_kib()?;
        eprintln!("{family:?}, {kind:?} ({rate:.0} a second): {share:?}, {kib} KiB resident");
        kept.push((kind, share));
        ensure!(
            kib < rest + MOST_KIB,
            "{kib} KiB are resident after {kind:?}, {rest} before"
        );
    }
    for (kind, share) in kept {
        ensure!(share.least() >= 0.5, "{share:?} under {kind:?}");
    }
    let after = share(other, family, time)?;
    ensure!(after.least() > 0.9, "{after:?} after all floods");
    // Who was refused is counted and told, as is what was lost, if the proxy was too slow for a flood.
    let traffic = lab.proxy_traffic()?;
    eprintln!(
        "{family:?}: {} datagrams of floods were lost",
        traffic["datagrams_lost"]
    );
    ensure!(
        traffic["failures"]["device_limit"].as_u64() > Some(0),
        "{traffic}"
    );
    Ok(())
}

#[test]
fn others_keep_their_rate_over_ipv4() -> Result<()> {
    others_keep_their_rate(Family::V4)
}

#[test]
fn others_keep_their_rate_over_ipv6() -> Result<()> {
    others_keep_their_rate(Family::V6)
}

/// What comes faster than it is taken is counted, and told with what it means; those in other lanes lose nothing.
#[test]
fn what_a_flood_loses_is_counted_and_the_others_lose_nothing() -> Result<()> {
    /// Far more than a lane has room for.
    const MANY: u64 = 20_000;
    const FEW: usize = 50;
    let family = Family::V4;
    let lab = Lab::builder().second_lan().build()?;
    let other = lab.device2.as_ref().context("a second device")?;
    let _echo = UdpEcho::start(&lab.internet, UDP..=UDP)?;
    let config = lab.write("[lan]\ninterfaces = [\"lan*\"]\n")?;
    let tproxy = lab.tproxy(&["run", "-c", &config])?;
    let socket = open_udp(other, family)?;
    let target = at(family.far(3), UDP);
    socket.set_read_timeout(Some(patient(SOON)))?;
    carry(&socket, target, &socket, b"first")?;
    tproxy.process().signal(Signal::SIGSTOP)?;
    let (from, to) = (family.device(), family.far(5));
    let forger = Forger::new(&lab.device, family)?;
    let flood = forger.flood(move |_| (at(from, 5000), at(to, NOBODY), vec![0; 1_200]));
    flood.wait_for(MANY)?;
    for _ in 0..FEW {
        socket.send_to(b"question", target)?;
    }
    let sent = flood.stop()?;
    tproxy.process().signal(Signal::SIGCONT)?;
    for _ in 0..FEW {
        socket.recv(&mut [0; 64])?;
    }
    // The socket tells of its losses with the next datagram.
    let forger = Forger::new(&lab.device, family)?;
    let lost = until("a count of what was lost", SOON, || {
        forger.send(at(from, 5000), at(to, NOBODY), b"one more")?;
        Ok(Some(lab.proxy_count("/datagrams_lost")?).filter(|lost| *lost > 0))
    })?;
    ensure!(lost > MANY / 2 && lost < sent, "{lost} of {sent}");
    let told = "limit reached: datagrams";
    tproxy.process().wait_for_line(told, SOON)?;
    Ok(())
}
